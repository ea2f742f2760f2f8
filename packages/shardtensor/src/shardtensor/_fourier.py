"""torch.fft over sharded dimensions: another dimension is sharded while the transform runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from shardtensor._collectives import swap_rows
from shardtensor._index import roll
from shardtensor._reduce import dimensions, splitting
from shardtensor._spec import chunk_sizes
from shardtensor._tensor import ShardTensor, elsewhere, place, replaced, unsupported
from shardtensor._window import fill_empty

ONE = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
MANY = tuple(name + end for end in ("2", "n") for name in ONE)
NAMES = {getattr(torch.fft, name): name for name in (*ONE, *MANY)}
_COMPLEX = {"fft2": "fft", "fftn": "fft", "ifft2": "ifft", "ifftn": "ifft"}


def transform(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Any transform of torch.fft: two collectives for a sharded dimension, none for another.

    Transforms of several dimensions need one more that is not sharded; complex ones without that go dimension
    by dimension.
    """
    op = NAMES[func]
    several = op in MANY
    default = (-2, -1) if op.endswith("2") else None if several else -1
    named = dict(zip(("input", "s" if several else "n", "dim", "norm"), args, strict=False)) | dict(kwargs)
    x, count, dim = named["input"], named.get("s" if several else "n"), named.get("dim", default)
    if not isinstance(x, ShardTensor) or x.spec.partial or named.get("out") is not None:
        raise unsupported(op, args, kwargs, "needs a tensor that is no pending sum, and no out=")
    if dim is None and count is not None:
        dim = tuple(range(-len(count), 0))
    dims = dimensions(dim, x.ndim)
    if not dims:
        raise unsupported(op, args, kwargs, "needs a dimension")
    free = _free(x, dims, len(splitting(x, dims)))
    if free is None:
        if op not in _COMPLEX or len(dims) < 2:
            remedy = elsewhere(x, dims)
            raise unsupported(op, args, kwargs, "needs another dimension that is not sharded", remedy)
        one, extents = getattr(torch.fft, _COMPLEX[op]), count or [None] * len(dims)
        for at, n in sorted(zip(dims, extents, strict=True), key=lambda pair: pair[0] in x.spec.dims):
            x = transform(one, (), (x, n, at, named.get("norm")), {})
        return x
    y, moves = _transposed(x, dims, free)
    # Not every library transforms nothing.
    local, gone = fill_empty(y.local, [d for d in range(y.ndim) if d not in dims])
    out = func(local, count, dims if several else dims[0], named.get("norm"))
    for d in gone:
        out = out.narrow(d, 0, 0)
    return _returned(place(out, y.spec, y.spec.dims, y.spec.sizes), x, moves)


def _free(x: ShardTensor, dims: Sequence[int], count: int) -> list[int] | None:
    """Returns the longest dimensions that are neither transformed nor sharded; None if too few."""
    rest = [d for d in range(x.ndim) if d not in dims and d not in x.spec.dims and x.shape[d] > 1]
    rest.sort(key=lambda d: -x.shape[d])
    return rest[:count] if len(rest) >= count else None


def _transposed(
    x: ShardTensor, dims: Sequence[int], free: Sequence[int]
) -> tuple[ShardTensor, dict[int, int]]:
    """Shards the dimensions `free` instead of `dims`; returns what each mesh dimension shards now."""
    moves = dict(zip(splitting(x, dims), free, strict=True))
    for m, goal in moves.items():
        x = _swapped(x, m, goal, chunk_sizes(x.shape[goal], x.spec.mesh.size(m)))
    return x, moves


def _returned(y: ShardTensor, x: ShardTensor, moves: Mapping[int, int]) -> ShardTensor:
    """Shards the dimensions that x shards, with its rows, or evenly where the extent is another."""
    for m in moves:
        goal, rows = x.spec.dims[m] or 0, x.spec.sizes[m] or ()
        same = y.shape[goal] == x.shape[goal]
        y = _swapped(y, m, goal, rows if same else chunk_sizes(y.shape[goal], len(rows)))
    return y


def _swapped(x: ShardTensor, m: int, goal: int, rows: tuple[int, ...]) -> ShardTensor:
    local = swap_rows(x.local, x.spec.dims[m] or 0, x.spec.sizes[m] or (), goal, rows, x.spec, m)
    return place(local, x.spec, replaced(x.spec.dims, m, goal), replaced(x.spec.sizes, m, rows))


def shift(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """fftshift and ifftshift: a roll by half the extent."""
    named = dict(zip(("input", "dim"), args, strict=False)) | dict(kwargs)
    x = named["input"]
    dims = dimensions(named.get("dim"), x.ndim)
    sign = -1 if func is torch.fft.ifftshift else 1
    halves = [sign * (x.shape[d] // 2) for d in dims]
    return roll(x, halves, dims)


def install(handlers: dict[Callable[..., Any], Any]) -> None:
    """Enters the functions of torch.fft."""
    for function in NAMES:
        handlers[function] = transform
    for function in (torch.fft.fftshift, torch.fft.ifftshift):
        handlers[function] = shift
