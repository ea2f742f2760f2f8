"""Repeating, windows, diagonals and grids of coordinates: global rows decide, whoever holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._align import align, broadcast_axes
from shardtensor._collectives import Wants, fetch_rows
from shardtensor._index import flip, slice_rows, tensor_split, wrapped
from shardtensor._plans import planned
from shardtensor._reduce import dimensions, refuse_in_graph, sum_
from shardtensor._spec import Sizes, offsets
from shardtensor._tensor import ShardTensor, elsewhere, place, replaced, unsupported
from shardtensor._views import flatten, integers, movedim, transpose


def repeat(x: ShardTensor, *counts: Any) -> ShardTensor:
    """Copies of the tensor side by side; a sharded dimension keeps the proportions of its ranks."""
    times = list(integers(counts))
    lead = len(times) - x.ndim
    if lead < 0:
        raise RuntimeError(f"repeat: needs a count for each of {x.ndim} dimensions, got {tuple(times)}")
    local, sizes = x.local, list(x.spec.sizes)
    for m, (dim, extents) in enumerate(zip(x.spec.dims, x.spec.sizes, strict=True)):
        if dim is not None and extents is not None and times[dim + lead] != 1:
            sizes[m], wants = plan_repeat(extents, times[dim + lead])
            local = fetch_rows(local, dim, x.spec, m, wants)
            times[dim + lead] = 1
    dims = tuple(None if dim is None else dim + lead for dim in x.spec.dims)
    if local is x.local or lead or any(n != 1 for n in times):
        local = local.repeat(times)
    return place(local, x.spec, dims, tuple(sizes))


@planned
def plan_repeat(sizes: Sizes, times: int) -> tuple[Sizes, Wants]:
    """Returns rows per rank of `times` copies, and the rows that every rank wants."""
    extent = sum(sizes)
    grown = tuple(times * rows for rows in sizes)
    wants = tuple(
        wrapped(start, start + rows, extent) for start, rows in zip(offsets(grown), grown, strict=True)
    )
    return grown, wants


def tile(x: ShardTensor, *counts: Any) -> ShardTensor:
    """As repeat, with counts for the last dimensions; one exchange for a sharded one that is repeated."""
    times = integers(counts)
    return repeat(x, *(1,) * (x.ndim - len(times)), *times)


def repeat_interleave(
    x: ShardTensor, repeats: int | Tensor, dim: int | None = None, *, output_size: int | None = None
) -> ShardTensor:
    """Repeats every row, where it lies. Only sharded `repeats` cost a collective: all ranks need them."""
    if dim is None:
        x, dim = flatten(x), 0
    (dim,) = dimensions(dim, x.ndim)
    if isinstance(repeats, int):
        sizes = [
            tuple([n * repeats for n in extents]) if d == dim and extents else extents
            for d, extents in zip(x.spec.dims, x.spec.sizes, strict=True)
        ]
        return place(x.local.repeat_interleave(repeats, dim), x.spec, x.spec.dims, tuple(sizes))
    if output_size is None or dim in x.spec.dims:
        remedy = elsewhere(x, (dim,)) if dim in x.spec.dims else "Give output_size=."
        refuse_in_graph("repeat_interleave", (x,), "the rows of each rank", remedy)
    counts = repeats.full_tensor() if isinstance(repeats, ShardTensor) else repeats
    if dim not in x.spec.dims:
        local = x.local.repeat_interleave(counts, dim, output_size=output_size)
        return place(local, x.spec, x.spec.dims, x.spec.sizes)
    m = x.spec.dims.index(dim)
    own = counts.reshape(-1).expand(x.shape[dim]).split(list(x.spec.sizes[m] or ()))
    rows, rank = tuple(torch.stack([part.sum() for part in own]).tolist()), x.spec.coordinate[m]
    if output_size not in (None, sum(rows)) or (counts < 0).any():
        raise RuntimeError(f"repeat_interleave: needs repeats >= 0 whose sum is output_size, {output_size}")
    local = x.local.repeat_interleave(own[rank], dim, output_size=rows[rank])
    return place(local, x.spec, x.spec.dims, replaced(x.spec.sizes, m, rows))


def glu(x: ShardTensor, dim: int = -1) -> ShardTensor:
    """a sigmoid(b) of the halves a, b of a dimension; one collective brings rows of both if it is sharded."""
    (dim,) = dimensions(dim, x.ndim)
    if x.shape[dim] % 2:
        raise RuntimeError(f"glu: dimension {dim} of extent {x.shape[dim]} does not divide into two halves")
    if dim not in x.spec.dims:
        return place(F.glu(x.local, dim), x.spec, x.spec.dims, x.spec.sizes)
    m = x.spec.dims.index(dim)
    rows, wants = plan_halves(x.spec.sizes[m] or ())
    local = fetch_rows(x.local, dim, x.spec, m, wants)
    return place(F.glu(local, dim), x.spec, x.spec.dims, replaced(x.spec.sizes, m, rows))


@planned
def plan_halves(sizes: Sizes) -> tuple[Sizes, Wants]:
    """Returns half of the rows per rank, and for every rank these rows of both halves."""
    half = sum(sizes) // 2
    bounds = [edge // 2 for edge in (*offsets(sizes), sum(sizes))]
    wants = [((low, high), (half + low, half + high)) for low, high in pairwise(bounds)]
    return tuple(high - low for low, high in pairwise(bounds)), tuple(wants)


def unfold(x: ShardTensor, dimension: int, size: int, step: int) -> ShardTensor:
    """Windows of `size` rows; the owner of its first row owns a window and fetches what it lacks."""
    (dim,) = dimensions(dimension, x.ndim)
    if not 0 <= size <= x.shape[dim] or step < 1:
        raise RuntimeError(
            f"unfold: needs windows of 0 to {x.shape[dim]} rows and steps >= 1, got {size}, {step}"
        )
    if dim not in x.spec.dims:
        return place(_windows(x.local, dim, size, step), x.spec, x.spec.dims, x.spec.sizes)
    m = x.spec.dims.index(dim)
    counts, wants = plan_unfold(x.spec.sizes[m] or (), size, step)
    local = fetch_rows(x.local, dim, x.spec, m, wants)
    if counts[x.spec.coordinate[m]]:
        windows = _windows(local, dim, size, step)
    else:
        windows = local.unsqueeze(-1).expand(*(-1,) * x.ndim, size)
    return place(windows, x.spec, x.spec.dims, replaced(x.spec.sizes, m, counts))


def _windows(x: Tensor, dim: int, size: int, step: int) -> Tensor:
    windows = x.unfold(dim, size, step)
    # The backward of a compiled graph whose result is a view with overlaps is wrong (torch 2.13).
    return windows.clone() if torch.compiler.is_compiling() else windows


@planned
def plan_unfold(sizes: Sizes, size: int, step: int) -> tuple[Sizes, Wants]:
    """Returns windows per rank, and the rows that every rank needs for its windows."""
    counts, wants = [], []
    parts = slice_rows(sizes, 0, sum(sizes) - size + 1, step)
    for offset, (first, stop) in zip(offsets(sizes), parts, strict=True):
        windows = len(range(first, stop, step))
        low = offset + first
        counts.append(windows)
        wants.append(((low, low + (windows - 1) * step + size),) if windows else ())
    return tuple(counts), tuple(wants)


def rot90(x: ShardTensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> ShardTensor:
    """Turns a plane by k quarters: one exchange for each sharded dimension that this reverses."""
    first, second = dimensions(tuple(dims), x.ndim)
    if first == second:
        raise RuntimeError(f"rot90: needs two different dimensions, got {tuple(dims)}")
    turned = {0: (), 1: (second,), 2: (first, second), 3: (first,)}[k % 4]
    y = flip(x, turned) if turned else ShardTensor(x.local.clone(), x.spec)
    return transpose(y, first, second) if k % 2 else y


def atleast(ndim: int) -> Callable[..., Any]:
    """Returns the handler of atleast_1d, atleast_2d or atleast_3d."""

    def raised(x: Tensor | ShardTensor) -> Any:
        if x.ndim == 0:
            return x.reshape((1,) * ndim)
        y: Any = x.unsqueeze(0) if x.ndim == 1 and ndim > 1 else x
        return y.unsqueeze(-1) if y.ndim == 2 and ndim == 3 else y

    def handler(
        _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        values = (*args, *kwargs.values())
        tensors = values[0] if isinstance(values[0], list | tuple) else values
        out = tuple(raised(x) for x in tensors)
        return out[0] if len(out) == 1 and not isinstance(values[0], list | tuple) else out

    return handler


def partition(dim: int) -> Callable[..., Any]:
    """Returns the function of hsplit (1), vsplit (0) and dsplit (2)."""

    def split(x: ShardTensor, sections: int | Sequence[int]) -> tuple[ShardTensor, ...]:
        at = 0 if x.ndim == 1 and dim == 1 else dim
        (at,) = dimensions(at, x.ndim)
        if isinstance(sections, int) and (sections < 1 or x.shape[at] % sections):
            raise RuntimeError(f"dimension {at} of extent {x.shape[at]} has no {sections} equal sections")
        return tensor_split(x, sections, at)

    return split


def diagonal(x: ShardTensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> ShardTensor:
    """The owner of a row, or column, owns its diagonal element."""
    first, second = dimensions((dim1, dim2), x.ndim)
    if first in x.spec.dims and second in x.spec.dims:
        raise unsupported("diagonal", (x,), {}, "both of its dimensions are sharded")
    dims: list[int | None] = []
    sizes = list(x.spec.sizes)
    shift = offset
    for m, (dim, extents, start) in enumerate(zip(x.spec.dims, x.spec.sizes, x.spec.starts, strict=True)):
        if dim is None or dim not in (first, second):
            dims.append(None if dim is None else dim - (dim > first) - (dim > second))
            continue
        along, other = (offset, second) if dim == first else (-offset, first)
        shift += start if dim == first else -start
        dims.append(x.ndim - 2)
        sizes[m] = diagonal_rows(extents or (), along, x.shape[other])
    return place(x.local.diagonal(shift, first, second), x.spec, tuple(dims), tuple(sizes))


@planned
def diagonal_rows(sizes: Sizes, offset: int, others: int) -> Sizes:
    """Returns for every rank how many of its rows i have an element i + offset in [0, others)."""
    return tuple(
        max(0, min(start + rows, others - offset) - max(start, -offset))
        for start, rows in zip(offsets(sizes), sizes, strict=True)
    )


def diag_embed(x: ShardTensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> ShardTensor:
    """Matrices with x on a diagonal; the owner of an element owns its row, edge ranks the rows of zeros."""
    first, second = dimensions((dim1, dim2), x.ndim + 1)
    last = x.ndim - 1
    if last not in x.spec.dims:
        local = x.local.diag_embed(offset)
        made = place(local, x.spec, x.spec.dims, x.spec.sizes)
    else:
        m = x.spec.dims.index(last)
        extents = x.spec.sizes[m] or ()
        rank, ranks = x.spec.coordinate[m], len(extents)
        start = offsets(extents)[rank]
        above, below = max(0, -offset) * (rank == 0), max(0, offset) * (rank == ranks - 1)
        left = start + max(0, offset)
        right = x.shape[last] + abs(offset) - left - extents[rank]
        local = F.pad(x.local.diag_embed(), (left, right, above, below))
        grown = tuple(
            rows + max(0, -offset) * (r == 0) + max(0, offset) * (r == ranks - 1)
            for r, rows in enumerate(extents)
        )
        made = place(local, x.spec, x.spec.dims, replaced(x.spec.sizes, m, grown))
    return movedim(made, (-2, -1), (first, second))


def diag(x: ShardTensor, offset: int = 0) -> ShardTensor:
    """The diagonal of a matrix, or the matrix with x on a diagonal; nothing moves."""
    return diag_embed(x, offset) if x.ndim == 1 else diagonal(x, offset)


def trace(x: ShardTensor) -> ShardTensor:
    """The sum of the diagonal: one all-reduce where the matrix is sharded."""
    return sum_(diagonal(x))


def _triangle(keep: Callable[[Tensor, int], Tensor], x: ShardTensor, diagonal: int) -> ShardTensor:
    """Element (i, j) of the local matrix is element (i + row, j + column) of the global one."""
    start = dict(zip(x.spec.dims, x.spec.starts, strict=True))
    row, column = start.get(x.ndim - 2, 0), start.get(x.ndim - 1, 0)
    return ShardTensor(keep(x.local, diagonal + row - column), x.spec)


def tril(x: ShardTensor, diagonal: int = 0) -> ShardTensor:
    """Zeros above a diagonal of the global matrices, on any layout; nothing moves."""
    return _triangle(torch.tril, x, diagonal)


def triu(x: ShardTensor, diagonal: int = 0) -> ShardTensor:
    """Zeros below a diagonal of the global matrices, on any layout; nothing moves."""
    return _triangle(torch.triu, x, diagonal)


def meshgrid(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[ShardTensor, ...]:
    """Every output is sharded like all inputs together."""
    tensors = [x.reshape(-1) for x in (args[0] if isinstance(args[0], list | tuple) else args)]
    axes = tuple(range(len(tensors)))
    aligned = align("meshgrid", tensors, [(d,) for d in axes])
    grids = [aligned.wrap(out, axes) for out in torch.meshgrid(*aligned.locals, indexing="ij")]
    swapped = kwargs.get("indexing") == "xy" and len(axes) > 1
    return tuple(transpose(x, 0, 1) if swapped else x for x in grids)


def broadcast_tensors(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], _kwargs: Mapping[str, Any]
) -> tuple[ShardTensor, ...]:
    """Every output is sharded like all inputs together; nothing moves where these lie alike."""
    tensors = args[0] if isinstance(args[0], list | tuple) else args
    axes = broadcast_axes([x.shape for x in tensors])
    aligned = align("broadcast_tensors", tensors, axes)
    out = torch.broadcast_tensors(*aligned.locals)
    return tuple(aligned.wrap(part, tuple(range(part.ndim))) for part in out)
