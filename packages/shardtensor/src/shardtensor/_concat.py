"""Concatenation: local where the dimension is whole, one exchange where it is sharded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from shardtensor._align import Labels, Operand, align
from shardtensor._collectives import Interval, Wants, fetch_rows, own_rows
from shardtensor._plans import planned
from shardtensor._reduce import dimensions
from shardtensor._spec import ShardSpec, Sizes, offsets
from shardtensor._tensor import ShardTensor, place, replaced, unsupported


def concatenate(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """cat and stack.

    Along a sharded dimension every rank ends with as many rows as it held of all operands, and one
    all_to_all brings them into global order. A plain operand joins the rank at its end of the dimension: the
    first rank if it stands before the first sharded operand, else the last. So rows put before or after one
    sharded tensor move nothing. Call `.redistribute(sizes=...)` on the result for another layout.
    """
    named = dict(zip(("tensors", "dim"), args, strict=False)) | dict(kwargs)
    if named.get("out") is not None:
        raise unsupported(func.__name__, args, kwargs, "out= is not supported")
    tensors, dim = list(named["tensors"]), named.get("dim", named.get("axis", 0))
    if func.__name__ == "stack":
        return _stack(tensors, dim)
    return cat(func.__name__, tensors, dim)


def _stack(tensors: Sequence[Operand], dim: int) -> ShardTensor:
    ndim = tensors[0].ndim
    (at,) = dimensions(dim, ndim + 1)
    axes: Labels = tuple(range(ndim))
    aligned = align("stack", tensors, [axes] * len(tensors), axes)
    return aligned.wrap(torch.stack(list(aligned.locals), at), (*axes[:at], "new", *axes[at:]))


def cat(op: str, tensors: Sequence[Operand], dim: int) -> ShardTensor:
    """Concatenates plain and sharded tensors along a dimension that may be sharded."""
    ndim = max(x.ndim for x in tensors)
    tensors = [x for x in tensors if x.ndim == ndim or tuple(x.shape) != (0,)]  # torch skips these
    (at,) = dimensions(dim, ndim)
    split = [m for x in tensors if isinstance(x, ShardTensor) for m, d in enumerate(x.spec.dims) if d == at]
    if any(m != split[0] for m in split):
        raise unsupported(op, tensors, {}, f"the operands split dimension {at} over several mesh dimensions")
    return _cat_rows(op, tensors, at, split[0]) if split else _cat_local(op, tensors, at)


def _cat_local(op: str, tensors: Sequence[Operand], at: int) -> ShardTensor:
    out: Labels = tuple("new" if d == at else d for d in range(tensors[0].ndim))
    axes: list[Labels] = [
        tuple(("own", i) if d == at else d for d in range(x.ndim)) for i, x in enumerate(tensors)
    ]
    aligned = align(op, tensors, axes, out)
    return aligned.wrap(torch.cat(list(aligned.locals), at), out)


def _cat_rows(op: str, tensors: Sequence[Operand], at: int, m: int) -> ShardTensor:
    spec = next(x.spec for x in tensors if isinstance(x, ShardTensor) and x.spec.dims[m] == at)
    first = next(i for i, x in enumerate(tensors) if isinstance(x, ShardTensor) and x.spec.dims[m] == at)
    parts, pieces = [], []
    for i, x in enumerate(tensors):
        sizes, piece = _piece(op, tensors, x, at, m, spec, 0 if i < first else spec.mesh.size(m) - 1)
        parts.append(sizes)
        pieces.append(piece)
    joined = _cat_local(op, pieces, at)
    if joined.spec.dims[m] is not None:
        raise unsupported(op, tensors, {}, "the operands are sharded over dimensions that do not match")
    grown, wants = plan_join(tuple(parts))
    local = fetch_rows(joined.local, at, spec, m, wants, grown)
    return place(local, joined.spec, replaced(joined.spec.dims, m, at), replaced(joined.spec.sizes, m, grown))


def _piece(
    op: str, tensors: Sequence[Operand], x: Operand, at: int, m: int, spec: ShardSpec, edge: int
) -> tuple[Sizes, Operand]:
    """Returns the rows per rank of one operand, and its own rows, not marked as sharded over m."""
    if isinstance(x, ShardTensor) and x.spec.dims[m] == at:
        if x.spec.partial:
            raise unsupported(op, tensors, {}, "an operand is a pending sum")
        part = place(x.local, x.spec, replaced(x.spec.dims, m, None), replaced(x.spec.sizes, m, None))
        return x.spec.sizes[m] or (), part
    sizes = tuple(x.shape[at] if rank == edge else 0 for rank in range(spec.mesh.size(m)))
    if not isinstance(x, ShardTensor):
        return sizes, own_rows(x, at, spec, m, sizes)
    if x.spec.dims[m] is not None or x.spec.partial:
        raise unsupported(op, tensors, {}, "the operands are sharded over dimensions that do not match")
    return sizes, place(own_rows(x.local, at, spec, m, sizes), x.spec, x.spec.dims, x.spec.sizes)


@planned
def plan_join(parts: tuple[Sizes, ...]) -> tuple[Sizes, Wants]:
    """Plans a concatenation of operands with rows per rank `parts`, each rank's own pieces joined already.

    Returns:
        Rows per rank of the result, and the rows that every rank wants, counted in the order of the joined
        pieces, rank by rank.
    """
    grown = tuple(sum(rows) for rows in zip(*parts, strict=True))
    begins = offsets(grown)
    runs: list[Interval] = []  # the result in order
    for i, sizes in enumerate(parts):
        for rank, rows in enumerate(sizes):
            start = begins[rank] + sum(part[rank] for part in parts[:i])
            runs.append((start, start + rows))
    return grown, tuple(
        _section(runs, start, start + rows) for start, rows in zip(begins, grown, strict=True)
    )


def _section(runs: Sequence[Interval], start: int, stop: int) -> tuple[Interval, ...]:
    """Returns positions [start, stop) of the concatenated runs, as few intervals."""
    found: list[Interval] = []
    passed = 0
    for low, high in runs:
        a, b = max(low, low + start - passed), min(high, low + stop - passed)
        passed += high - low
        if a >= b:
            continue
        if found and found[-1][1] == a:
            found[-1] = (found[-1][0], b)
        else:
            found.append((a, b))
    return tuple(found)


def stacked(dim: int, least: int) -> Callable[..., Any]:
    """Returns a handler for hstack (1, 1), vstack (0, 2) and dstack (2, 3): cat of operands made `least`-d.

    Args:
        dim: dimension of the concatenation; 0 for operands of one dimension.
        least: dimensions that an operand has at least; 0 for column_stack, which makes columns of vectors.
    """

    def handler(
        func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ShardTensor:
        tensors = args[0] if args else kwargs["tensors"]
        if kwargs.get("out") is not None:
            raise unsupported(func.__name__, args, kwargs, "out= is not supported")
        if least:
            atleast: Callable[..., Any] = (torch.atleast_1d, torch.atleast_2d, torch.atleast_3d)[least - 1]
            raised = [atleast(x) for x in tensors]
        else:
            raised = [x if x.ndim > 1 else x.reshape(-1, 1) for x in tensors]
        return cat(func.__name__, raised, min(dim, raised[0].ndim - 1))

    return handler
