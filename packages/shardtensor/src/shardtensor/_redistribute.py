"""From any layout to any other: one collective for each mesh dimension that changes."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import Partial

from shardtensor._collectives import Interval, fetch_rows, gather, own_rows, reduce_rows, swap_rows, total
from shardtensor._spec import ShardSpec, Sizes, offsets


def redistribute_local(x: Tensor, source: ShardSpec, target: ShardSpec) -> Tensor:
    """Returns this rank's part under `target` of the global tensor whose part under `source` is x.

    Raises:
        ValueError: the target asks for a Partial that the source does not have.
    """
    dims, sizes = list(source.dims), list(source.sizes)
    changed = [m for m in range(source.mesh.ndim) if _differs(source, target, m)]
    for m in changed:
        if isinstance(target.placements[m], Partial):
            raise ValueError(
                f"a value can not be split into partial terms: {source.describe()} to {target.describe()}"
            )
    # Leave a tensor dimension before another mesh dimension takes it.
    for m in changed:
        occupied = target.dims[m] in [d for other, d in enumerate(dims) if other != m and d is not None]
        if target.dims[m] is None or (occupied and dims[m] is not None):
            x = _to_replicate(x, source, m, dims[m], sizes[m])
            dims[m], sizes[m] = None, None
    for m in sorted(changed, key=lambda m: target.dims[m] in dims):
        goal, extents = target.dims[m], target.sizes[m]
        if goal is None or extents is None:
            continue
        x = _to_shard(x, source, m, dims[m], sizes[m], goal, extents)
        dims[m], sizes[m] = goal, extents
    return x


def rebalance(x: Tensor, dim: int, spec: ShardSpec, mesh_dim: int, sizes: Sizes, new_sizes: Sizes) -> Tensor:
    """Moves rows between ranks until they hold `new_sizes`; only rows that change owner travel."""
    wants: tuple[tuple[Interval, ...], ...] = tuple(
        ((start, start + rows),) if rows else ()
        for start, rows in zip(offsets(new_sizes), new_sizes, strict=True)
    )
    return fetch_rows(x, dim, spec, mesh_dim, wants, sizes)


def _differs(source: ShardSpec, target: ShardSpec, m: int) -> bool:
    return source.placements[m] != target.placements[m] or source.sizes[m] != target.sizes[m]


def _to_replicate(x: Tensor, spec: ShardSpec, m: int, dim: int | None, sizes: Sizes | None) -> Tensor:
    if dim is not None and sizes is not None:
        return gather(x, dim, spec, m, sizes)
    return total(x, spec, [m]) if isinstance(spec.placements[m], Partial) else x


def _to_shard(
    x: Tensor, spec: ShardSpec, m: int, dim: int | None, sizes: Sizes | None, goal: int, extents: Sizes
) -> Tensor:
    if dim is None or sizes is None:
        partial = isinstance(spec.placements[m], Partial)
        return reduce_rows(x, goal, spec, m, extents) if partial else own_rows(x, goal, spec, m, extents)
    if dim == goal:
        return rebalance(x, dim, spec, m, sizes, extents)
    return swap_rows(x, dim, sizes, goal, extents, spec, m)
