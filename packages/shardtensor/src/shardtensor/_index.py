"""Slicing, selecting, rolling and flipping. Slices of a sharded dimension stay where their rows are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shardtensor._collectives import Wants, fetch_rows, gather
from shardtensor._plans import planned
from shardtensor._reduce import dimensions, settle
from shardtensor._spec import Sizes, offsets
from shardtensor._tensor import ShardTensor, place, unsupported


def slice_(x: ShardTensor, dim: int, item: slice) -> ShardTensor:
    """Every rank keeps those of its rows that the slice names; nothing moves."""
    start, stop, step = item.indices(x.shape[dim])
    if step < 1:
        raise ValueError(f"slice step must be positive, got {step}")
    if dim not in x.spec.dims:
        return place(_slice(x.local, dim, start, stop, step), x.spec, x.spec.dims, x.spec.sizes)
    m = x.spec.dims.index(dim)
    sizes = x.spec.sizes[m] or ()
    parts = slice_rows(sizes, start, stop, step)
    local = _slice(x.local, dim, *parts[x.spec.coordinate[m]], step)
    kept = tuple(len(range(a, b, step)) for a, b in parts)
    return place(local, x.spec, x.spec.dims, tuple(kept if i == m else n for i, n in enumerate(x.spec.sizes)))


@planned
def slice_rows(sizes: Sizes, start: int, stop: int, step: int) -> tuple[tuple[int, int], ...]:
    """Returns for every rank the local (start, stop) of its rows among start, start + step, ... < stop."""
    parts = []
    for offset, rows in zip(offsets(sizes), sizes, strict=True):
        skipped = max(0, -((start - offset) // step))  # steps to the first named row at or after the offset
        first = start + step * skipped - offset
        last = min(rows, stop - offset)
        parts.append((first, last) if first < last else (0, 0))
    return tuple(parts)


def _slice(x: Tensor, dim: int, start: int, stop: int, step: int) -> Tensor:
    return x[(slice(None),) * dim + (slice(start, stop, step),)]


def select(x: ShardTensor, dim: int, index: int) -> ShardTensor:
    """Takes one row away; of a sharded dimension its owner gives it to every rank."""
    (dim,) = dimensions(dim, x.ndim)
    extent = x.shape[dim]
    if not -extent <= index < extent:
        raise IndexError(f"index {index} is out of range for dimension {dim} of extent {extent}")
    row = slice_(x, dim, slice(index % extent, index % extent + 1))
    if dim not in x.spec.dims:
        return settle(row.local.squeeze(dim), x, (dim,), False, pending=False)
    if x.dtype == torch.bool:
        taken = settle(row.local.sum(dim, dtype=torch.int32), x, (dim,), False)
        return ShardTensor(taken.local.to(torch.bool), taken.spec)
    return settle(row.local.sum(dim, dtype=x.dtype), x, (dim,), False)


def narrow(x: ShardTensor, dim: int, start: int, length: int) -> ShardTensor:
    """Rows start ... start + length - 1, which stay where they are; nothing moves."""
    (dim,) = dimensions(dim, x.ndim)
    begin = start % x.shape[dim] if start < 0 else start
    if length < 0 or begin + length > x.shape[dim]:
        raise RuntimeError(f"narrow: rows {start} + {length} leave dimension {dim} of extent {x.shape[dim]}")
    return slice_(x, dim, slice(begin, begin + length))


def split(x: ShardTensor, split_size: int | Sequence[int], dim: int = 0) -> tuple[ShardTensor, ...]:
    """Pieces of a sharded dimension stay where their rows are; the same holds for chunk and tensor_split."""
    (dim,) = dimensions(dim, x.ndim)
    if isinstance(split_size, int):
        if split_size < 1:
            raise RuntimeError(f"split: pieces need at least one row, got {split_size}")
        return _pieces(x, dim, range(split_size, x.shape[dim], split_size))
    if sum(split_size) != x.shape[dim] or min(split_size, default=0) < 0:
        raise RuntimeError(f"split: pieces {tuple(split_size)} do not fill {x.shape[dim]} rows")
    return _pieces(x, dim, [sum(split_size[:i]) for i in range(1, len(split_size))])


def chunk(x: ShardTensor, chunks: int, dim: int = 0) -> tuple[ShardTensor, ...]:
    """Pieces of equal extent, the last one shorter; nothing moves."""
    (dim,) = dimensions(dim, x.ndim)
    if chunks < 1:
        raise RuntimeError(f"chunk: needs at least one chunk, got {chunks}")
    if x.shape[dim] == 0:
        return _pieces(x, dim, [0] * (chunks - 1))
    return split(x, -(-x.shape[dim] // chunks), dim)


def tensor_split(
    x: ShardTensor, indices_or_sections: int | Sequence[int] | Tensor, dim: int = 0
) -> tuple[ShardTensor, ...]:
    """Pieces that differ by one row at most, or between given rows; nothing moves."""
    (dim,) = dimensions(dim, x.ndim)
    given = indices_or_sections
    if isinstance(given, Tensor | ShardTensor):
        raise unsupported("tensor_split", (x,), {}, "a tensor of sections", "Give them as integers.")
    if not isinstance(given, int):
        return _pieces(x, dim, given)
    if given < 1:
        raise RuntimeError(f"tensor_split: needs at least one section, got {given}")
    least, more = divmod(x.shape[dim], given)
    return _pieces(x, dim, [i * least + min(i, more) for i in range(1, given)])


def _pieces(x: ShardTensor, dim: int, bounds: Sequence[int]) -> tuple[ShardTensor, ...]:
    edges = zip((0, *bounds), (*bounds, x.shape[dim]), strict=True)
    return tuple(slice_(x, dim, slice(start, stop)) for start, stop in edges)


def unbind(x: ShardTensor, dim: int = 0) -> tuple[ShardTensor, ...]:
    """Takes a dimension apart; rows of a sharded one are gathered on every rank, all in one collective."""
    (dim,) = dimensions(dim, x.ndim)
    local = x.local
    if dim in x.spec.dims:
        m = x.spec.dims.index(dim)
        local = gather(local, dim, x.spec, m, x.spec.sizes[m] or ())
    return tuple(settle(part, x, (dim,), False, pending=False) for part in local.unbind(dim))


def roll(x: ShardTensor, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> ShardTensor:
    """out[g] = x[(g - shift) mod L]; along a sharded dimension only the rows that change owner travel."""
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        flat: ShardTensor = roll(x.reshape(-1), shifts, 0).reshape(x.shape)
        return flat
    moves = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    local = x.local
    for shift, dim in zip(moves, dimensions(dims, x.ndim), strict=True):
        if dim not in x.spec.dims:
            local = local.roll(shift, dim)
            continue
        m = x.spec.dims.index(dim)
        local = fetch_rows(local, dim, x.spec, m, rolled(x.spec.sizes[m] or (), shift))
    return ShardTensor(local, x.spec)


@planned
def rolled(sizes: Sizes, shift: int) -> Wants:
    """Returns the rows that every rank wants of a dimension rolled by `shift`."""
    return tuple(
        wrapped(offset - shift, offset - shift + n, sum(sizes))
        for offset, n in zip(offsets(sizes), sizes, strict=True)
    )


def wrapped(start: int, stop: int, extent: int) -> tuple[tuple[int, int], ...]:
    """Returns the rows [start, stop) of a periodic dimension as intervals within [0, extent)."""
    parts = []
    while start < stop:
        low = start % extent
        length = min(extent - low, stop - start)
        parts.append((low, low + length))
        start += length
    return tuple(parts)


def flip(x: ShardTensor, *dims: Any) -> ShardTensor:
    """Reverses dimensions; along a sharded one the mirrored rows are fetched."""
    chosen = dimensions(dims[0] if len(dims) == 1 else dims, x.ndim)
    local = x.local
    for dim in chosen:
        if dim in x.spec.dims:
            m = x.spec.dims.index(dim)
            local = fetch_rows(local, dim, x.spec, m, _mirrored(x.spec.sizes[m] or ()))
    return ShardTensor(local.flip(chosen), x.spec)


@planned
def _mirrored(sizes: Sizes) -> Wants:
    extent = sum(sizes)
    return tuple(((extent - o - n, extent - o),) for o, n in zip(offsets(sizes), sizes, strict=True))
