"""Largest, smallest and ordered elements along sharded dimensions.

Maxima with their indices and topk merge the candidates of the ranks. Sorting and order statistics gather the
dimension, with a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shardtensor._collectives import gather, own_rows
from shardtensor._errors import warn_of_gather
from shardtensor._moments import everyone
from shardtensor._pointwise import pointwise
from shardtensor._reduce import amax, amin, dimensions, reduction, refuse_in_graph, result, settle, splitting
from shardtensor._spec import Sizes, offsets
from shardtensor._tensor import Handler, ShardTensor, elsewhere, place, replaced


def _packed(dtype: torch.dtype) -> torch.dtype:
    """Returns a dtype that holds values of `dtype` and indices, so that both travel together."""
    return torch.float64 if dtype.is_floating_point else torch.int64


def _winner(x: ShardTensor, dim: int, keepdim: bool, *, largest: bool) -> tuple[ShardTensor, ShardTensor]:
    """Returns the extremum along a dimension and its index, the lowest among equals: one exchange."""
    (dim,) = dimensions(dim, x.ndim)
    split = splitting(x, (dim,))
    pick = torch.max if largest else torch.min
    if not split:
        pair = tuple(pick(x.local, dim, keepdim))
    else:
        if x.shape[dim] == 0:
            raise IndexError(f"the extremum along dimension {dim} of extent 0 does not exist")
        m, kind = split[0], _packed(x.dtype)
        sizes: Sizes = x.spec.sizes[m] or ()
        if x.local.shape[dim]:
            value, at = pick(x.local, dim, keepdim=True)
            at = at + offsets(sizes)[x.spec.coordinate[m]]
        else:
            value = x.local.sum(dim, keepdim=True)
            at = torch.zeros_like(value)
        table = everyone(torch.stack([value.to(kind), at.to(kind)]), x.spec, [m])
        if len(sizes) > 1:
            table = torch.stack([part for part, rows in zip(table.unbind(), sizes, strict=True) if rows])
        best, rank = pick(table[:, 0], 0)
        index = table[:, 1].detach().gather(0, rank.unsqueeze(0)).squeeze(0).long()
        pair = tuple(out if keepdim else out.squeeze(dim) for out in (best.to(x.dtype), index))
    values, indices = (settle(out, x, (dim,), keepdim, pending=False) for out in pair)
    return values, indices


def _extremum(whole: Callable[..., ShardTensor], kind: str, *, largest: bool) -> Handler:
    """max and min: of everything, of two tensors, or with indices along a dimension."""

    def along(x: ShardTensor, dim: int, keepdim: bool = False) -> Any:
        return result(kind, _winner(x, dim, keepdim, largest=largest))

    everything, one = reduction(whole), reduction(along)

    def handler(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if len(args) + len(kwargs) == 1:
            return everything(func, types, args, kwargs)
        second = args[1] if len(args) > 1 else kwargs.get("other")
        if isinstance(second, Tensor | ShardTensor):
            return pointwise(func, types, args, kwargs)
        return one(func, types, args, kwargs)

    return handler


maximum = _extremum(amax, "max", largest=True)
minimum = _extremum(amin, "min", largest=False)


def argmax(x: ShardTensor, dim: int | None = None, keepdim: bool = False) -> ShardTensor:
    """Index of the largest element, the lowest among equals: one exchange of the ranks' candidates."""
    return _argument(x, dim, keepdim, largest=True)


def argmin(x: ShardTensor, dim: int | None = None, keepdim: bool = False) -> ShardTensor:
    """Index of the smallest element, the lowest among equals: one exchange of the ranks' candidates."""
    return _argument(x, dim, keepdim, largest=False)


def _argument(x: ShardTensor, dim: int | None, keepdim: bool, *, largest: bool) -> ShardTensor:
    """The index of the extremum; without dim of the flattened tensor."""
    y = ShardTensor(x.local.detach(), x.spec)
    if dim is not None:
        return _winner(y, dim, keepdim, largest=largest)[1]
    if math.prod(x.shape) == 0:
        raise IndexError("the extremum of no elements does not exist")
    kind, dims = _packed(x.dtype), tuple(range(x.ndim))
    pick = torch.max if largest else torch.min
    if y.local.numel():
        value, at = pick(y.local.reshape(-1), 0)
        held = torch.stack(
            [value.to(kind), _global_index(at, y).to(kind), torch.ones((), dtype=kind, device=at.device)]
        )
    else:
        held = torch.zeros(3, dtype=kind, device=y.local.device)
    values, indices, valid = everyone(held, x.spec, splitting(x, dims)).unbind(1)
    last = torch.finfo(kind).max if kind.is_floating_point else torch.iinfo(kind).max
    worst = (torch.finfo(kind).min if kind.is_floating_point else torch.iinfo(kind).min) if largest else last
    values = torch.where(valid > 0, values, -math.inf if largest and kind.is_floating_point else worst)
    best = pick(values)
    hit = (valid > 0) & ((values == best) | ((values != values) & (best != best)))
    index = torch.where(hit, indices, last).min().long()
    return settle(index.view([1] * x.ndim) if keepdim else index, x, dims, keepdim, pending=False)


def _global_index(flat: Tensor, x: ShardTensor) -> Tensor:
    """Returns the index in the flattened global tensor of an index in the flattened local one."""
    out, stride = torch.zeros_like(flat), 1
    for here, whole, local in zip(
        reversed(x.local_slices()), reversed(x.shape), reversed(x.local.shape), strict=True
    ):
        out = out + (flat % local + here.start) * stride
        flat, stride = flat // local, stride * whole
    return out


def topk(
    x: ShardTensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
) -> Any:
    """The k best of the k best of every rank, in one exchange; whole along the dimension."""
    (dim,) = dimensions(dim, x.ndim)
    split = splitting(x, (dim,))
    if not split:
        pair = tuple(x.local.topk(k, dim, largest, sorted))
        dims, sizes = x.spec.dims, x.spec.sizes
    else:
        if k > x.shape[dim]:
            raise RuntimeError(f"topk: k = {k} is more than the extent {x.shape[dim]} of dimension {dim}")
        m, kind = split[0], _packed(x.dtype)
        rows: Sizes = x.spec.sizes[m] or ()
        most = tuple(min(k, n) for n in rows)
        value, at = x.local.topk(min(k, x.local.shape[dim]), dim, largest, sorted)
        at = at + offsets(rows)[x.spec.coordinate[m]]
        table = gather(torch.stack([value.to(kind), at.to(kind)]), dim + 1, x.spec, m, most)
        best, which = table[0].topk(k, dim, largest, sorted)
        pair = (best.to(x.dtype), table[1].detach().gather(dim, which).long())
        dims, sizes = replaced(x.spec.dims, m, None), replaced(x.spec.sizes, m, None)
    return result("topk", (place(out, x.spec, dims, sizes) for out in pair))


def _gathered(op: str, x: ShardTensor, dims: Sequence[int]) -> ShardTensor:
    """Returns x with `dims` whole on every rank, and warns if that moves data."""
    split = splitting(x, dims)
    if any(x.spec.mesh.size(m) > 1 for m in split):
        remedy = elsewhere(x, dims) or "Shard another dimension first."
        warn_of_gather(
            f"{op} gathers dimensions {tuple(dims)} on every rank ({x.spec.describe()}). {remedy}", 7
        )
    local, sharded, sizes = x.local, x.spec.dims, x.spec.sizes
    for m in split:
        local = gather(local, sharded[m] or 0, x.spec, m, sizes[m] or ())
        sharded, sizes = replaced(sharded, m, None), replaced(sizes, m, None)
    return place(local, x.spec, sharded, sizes)


def _back(out: Tensor, x: ShardTensor, y: ShardTensor) -> ShardTensor:
    """Returns a local result of the shape of y, the gathered x, in the layout of x."""
    for m, (dim, sizes) in enumerate(zip(x.spec.dims, x.spec.sizes, strict=True)):
        if dim is not None and y.spec.dims[m] is None:
            out = own_rows(out, dim, y.spec, m, sizes or ())
    return ShardTensor(out, x.spec)


def sort(x: ShardTensor, *args: Any, **kwargs: Any) -> Any:
    """torch.sort; the result lies as x does."""
    stable = args[0] if args and isinstance(args[0], bool) else kwargs.pop("stable", None)
    rest = args[1:] if args and isinstance(args[0], bool) else args
    dim = rest[0] if rest else kwargs.get("dim", -1)
    descending = rest[1] if len(rest) > 1 else kwargs.get("descending", False)
    y = _gathered("sort", x, dimensions(dim, x.ndim))
    pair = torch.sort(y.local, stable=stable, dim=dim, descending=descending)
    return result("sort", (_back(out, x, y) for out in pair))


def argsort(x: ShardTensor, dim: int = -1, descending: bool = False, stable: bool = False) -> ShardTensor:
    """Indices that sort x, in the layout of x; gathers a sharded dimension, with a warning."""
    if isinstance(dim, bool):  # argsort(stable, dim, descending)
        stable, dim, descending = dim, int(descending), bool(stable)
    y = _gathered("argsort", ShardTensor(x.local.detach(), x.spec), dimensions(dim, x.ndim))
    return _back(torch.sort(y.local, stable=stable, dim=dim, descending=descending).indices, x, y)


def msort(x: ShardTensor) -> ShardTensor:
    """Sorts along the first dimension, as sort."""
    out: ShardTensor = sort(x, dim=0)[0]
    return out


def _statistic(name: str) -> Callable[..., Any]:
    """Returns median, nanmedian or mode: a value of everything, or values with indices along a dimension."""
    function = getattr(torch, name)

    def run(x: ShardTensor, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is None and name == "mode":
            dim = -1
        dims = dimensions(dim, x.ndim)
        y = _gathered(name, x, dims)
        if dim is None:
            return settle(function(y.local), y, dims, False, pending=False)
        pair = function(y.local, dim, keepdim)
        return result(name, (settle(out, y, dims, keepdim, pending=False) for out in pair))

    return run


median, nanmedian, mode = _statistic("median"), _statistic("nanmedian"), _statistic("mode")


def kthvalue(x: ShardTensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The k-th smallest element and its index; gathers a sharded dimension, with a warning."""
    dims = dimensions(dim, x.ndim)
    y = _gathered("kthvalue", x, dims)
    pair = torch.kthvalue(y.local, k, dim, keepdim)
    return result("kthvalue", (settle(out, y, dims, keepdim, pending=False) for out in pair))


def _quantile(name: str) -> Callable[..., ShardTensor]:
    function = getattr(torch, name)

    def run(
        x: ShardTensor,
        q: Any,
        dim: int | None = None,
        keepdim: bool = False,
        *,
        interpolation: str = "linear",
    ) -> ShardTensor:
        dims = dimensions(dim, x.ndim)
        y = _gathered(name, x, dims)
        several = isinstance(q, Tensor) and q.ndim > 0
        if y.local.numel():
            out = function(y.local, q, dim, keepdim, interpolation=interpolation)
        else:
            out = y.local.sum(dims, keepdim)
            out = torch.stack([out] * len(q)) if several else out
        settled = settle(out[0] if several else out, y, dims, keepdim, pending=False)
        if not several:
            return settled
        moved = tuple(None if d is None else d + 1 for d in settled.spec.dims)
        return place(out, y.spec, moved, settled.spec.sizes)

    return run


quantile, nanquantile = _quantile("quantile"), _quantile("nanquantile")


def unique(x: ShardTensor, *args: Any, **kwargs: Any) -> Any:
    """torch.unique, the same on every rank."""
    return _distinct(torch.unique, x, args, kwargs)


def unique_consecutive(x: ShardTensor, *args: Any, **kwargs: Any) -> Any:
    """torch.unique_consecutive, the same on every rank."""
    return _distinct(torch.unique_consecutive, x, args, kwargs)


def _distinct(function: Callable[..., Any], x: ShardTensor, args: Any, kwargs: Any) -> Any:
    refuse_in_graph(function.__name__, (x,), "the extent of the result")
    y = _gathered(function.__name__, x, range(x.ndim))
    out = function(y.local, *args, **kwargs)
    nowhere = (None,) * x.spec.mesh.ndim
    if isinstance(out, Tensor):
        return place(out, x.spec, nowhere, nowhere)
    return tuple(place(part, x.spec, nowhere, nowhere) for part in out)
