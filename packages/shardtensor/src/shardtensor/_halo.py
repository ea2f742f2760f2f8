"""Rows of other ranks, for those who write their own sharded function."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from shardtensor._collectives import Interval, fetch_rows
from shardtensor._index import wrapped
from shardtensor._spec import Sizes, offsets
from shardtensor._tensor import ShardTensor


def fetch(x: ShardTensor, dim: int, wants: Sequence[Sequence[Interval]]) -> Tensor:
    """Returns global rows of a sharded dimension that this rank asks for, as a plain tensor.

    Every rank knows what every rank wants, so one all_to_all_single with known sizes moves the rows. The
    backward sends the gradient of every row back to its owner, where it is added.

    Args:
        x: the sharded tensor.
        dim: a sharded dimension of x.
        wants: for every rank along that mesh dimension a list of intervals [start, stop) in output order; the
            same on all ranks.

    Raises:
        ValueError: dim is not sharded, or an interval leaves the dimension.
    """
    m, _ = _mesh_dim(x, dim)
    return fetch_rows(
        x.local, dim % x.ndim, x.spec, m, tuple(tuple((a, b) for a, b in want) for want in wants)
    )


def halo_exchange(x: ShardTensor, dim: int, before: int, after: int, *, periodic: bool = False) -> Tensor:
    """Returns the local part with the rows before and after it, as a plain tensor.

    A halo may be wider than the neighbour's shard. At the ends of the dimension it is cut off, or wraps
    around if `periodic`. A rank without rows gets none.

    Args:
        x: the sharded tensor.
        dim: a sharded dimension of x.
        before: rows wanted before the own ones.
        after: rows wanted after the own ones.
        periodic: whether the dimension is a circle.
    """
    m, sizes = _mesh_dim(x, dim)
    extent = sum(sizes)
    wants: list[tuple[Interval, ...]] = []
    for offset, rows in zip(offsets(sizes), sizes, strict=True):
        low, high = offset - before, offset + rows + after
        if rows == 0:
            wants.append(())
        elif periodic:
            wants.append(wrapped(low, high, extent))
        else:
            wants.append(((max(low, 0), min(high, extent)),))
    return fetch_rows(x.local, dim % x.ndim, x.spec, m, tuple(wants))


def _mesh_dim(x: ShardTensor, dim: int) -> tuple[int, Sizes]:
    at = dim % x.ndim
    for m, (sharded, sizes) in enumerate(zip(x.spec.dims, x.spec.sizes, strict=True)):
        if sharded == at and sizes is not None:
            return m, sizes
    raise ValueError(f"dimension {dim} is not sharded: {x.spec.describe()}")
