"""Slicing, selecting, rolling and flipping. Slices of a sharded dimension stay where their rows are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shardtensor._collectives import Wants, fetch_rows
from shardtensor._plans import planned
from shardtensor._reduce import dimensions, settle
from shardtensor._spec import Sizes, offsets
from shardtensor._tensor import ShardTensor, place, unsupported


def getitem(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """x[...] with integers, slices, None, Ellipsis and, on an unsharded dimension, one list or 1-d tensor."""
    x, index = args
    if not isinstance(x, ShardTensor) or x.spec.partial:
        raise unsupported("indexing", args, kwargs)
    items = list(index) if isinstance(index, tuple) else [index]
    lists = [i for i in items if isinstance(i, list | Tensor)]
    if (
        len(lists) > 1
        or any(isinstance(i, ShardTensor | bool) for i in items)
        or any(_is_mask(i) for i in lists)
    ):
        raise unsupported("indexing", args, kwargs, f"with {[type(i).__name__ for i in items]}")
    used = sum(item is not None and item is not Ellipsis for item in items)
    at = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    items[at : at + 1] = [slice(None)] * (x.ndim - used)
    dim = 0
    for item in items:
        x, dim = _index_one(x, dim, item)
    return x


def _is_mask(index: list[Any] | Tensor) -> bool:
    tensor = torch.as_tensor(index)
    return tensor.dtype in (torch.bool, torch.uint8) or tensor.ndim != 1


def _index_one(x: ShardTensor, dim: int, item: Any) -> tuple[ShardTensor, int]:
    if item is None:
        lifted: ShardTensor = x.unsqueeze(dim)
        return lifted, dim + 1
    if isinstance(item, slice):
        return (x if item == slice(None) else slice_(x, dim, item)), dim + 1
    if isinstance(item, list | Tensor):
        return index_select(x, dim, torch.as_tensor(item, device=x.device)), dim + 1
    return select(x, dim, int(item)), dim


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
    return settle(row.local.sum(dim, dtype=x.dtype), x, (dim,), False)


def narrow(x: ShardTensor, dim: int, start: int, length: int) -> ShardTensor:
    (dim,) = dimensions(dim, x.ndim)
    begin = start % x.shape[dim] if start < 0 else start
    if length < 0 or begin + length > x.shape[dim]:
        raise RuntimeError(f"narrow: rows {start} + {length} leave dimension {dim} of extent {x.shape[dim]}")
    return slice_(x, dim, slice(begin, begin + length))


def index_select(x: ShardTensor, dim: int, index: Tensor) -> ShardTensor:
    (dim,) = dimensions(dim, x.ndim)
    if dim in x.spec.dims or not isinstance(index, Tensor):
        raise unsupported("index_select", (x,), {}, f"dimension {dim} is sharded, or the index is")
    extent = x.shape[dim]
    return place(
        x.local.index_select(dim, torch.where(index < 0, index + extent, index)),
        x.spec,
        x.spec.dims,
        x.spec.sizes,
    )


def split(x: ShardTensor, size: int | Sequence[int], dim: int = 0) -> tuple[ShardTensor, ...]:
    (dim,) = dimensions(dim, x.ndim)
    _whole("split", x, dim)
    return _each(x, x.local.split(size if isinstance(size, int) else list(size), dim))


def chunk(x: ShardTensor, chunks: int, dim: int = 0) -> tuple[ShardTensor, ...]:
    (dim,) = dimensions(dim, x.ndim)
    _whole("chunk", x, dim)
    return _each(x, x.local.chunk(chunks, dim))


def tensor_split(x: ShardTensor, sections: int | Sequence[int], dim: int = 0) -> tuple[ShardTensor, ...]:
    (dim,) = dimensions(dim, x.ndim)
    _whole("tensor_split", x, dim)
    parts = (
        x.local.tensor_split(sections, dim)
        if isinstance(sections, int)
        else x.local.tensor_split(list(sections), dim)
    )
    return _each(x, parts)


def unbind(x: ShardTensor, dim: int = 0) -> tuple[ShardTensor, ...]:
    (dim,) = dimensions(dim, x.ndim)
    _whole("unbind", x, dim)
    return tuple(settle(part, x, (dim,), False, pending=False) for part in x.local.unbind(dim))


def _whole(op: str, x: ShardTensor, dim: int) -> None:
    if dim in x.spec.dims:
        raise unsupported(op, (x,), {}, f"dimension {dim} is sharded")


def _each(x: ShardTensor, parts: Sequence[Tensor]) -> tuple[ShardTensor, ...]:
    return tuple(place(part, x.spec, x.spec.dims, x.spec.sizes) for part in parts)


def roll(x: ShardTensor, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> ShardTensor:
    """out[g] = x[(g - shift) mod L]; along a sharded dimension only the rows that change owner travel."""
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        raise unsupported("roll", (x,), {}, "without dims it mixes all dimensions")
    moves = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    local = x.local
    for shift, dim in zip(moves, dimensions(dims, x.ndim), strict=True):
        if dim not in x.spec.dims:
            local = local.roll(shift, dim)
            continue
        m = x.spec.dims.index(dim)
        local = fetch_rows(local, dim, x.spec, m, _rolled(x.spec.sizes[m] or (), shift))
    return ShardTensor(local, x.spec)


@planned
def _rolled(sizes: Sizes, shift: int) -> Wants:
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
