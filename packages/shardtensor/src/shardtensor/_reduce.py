"""Reductions: local terms, then one all-reduce where a reduced dimension is sharded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shardtensor._collectives import extremum, total
from shardtensor._pointwise import pointwise
from shardtensor._spec import Sizes
from shardtensor._tensor import ShardTensor, place, unsupported

Axis = int | Sequence[int] | None


def dimensions(dim: Axis, ndim: int) -> tuple[int, ...]:
    """Returns non-negative dimensions; None and () mean all."""
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return tuple(range(ndim))
    chosen = (dim,) if isinstance(dim, int) else tuple(dim)
    for d in chosen:
        if not -ndim <= d < max(ndim, 1):
            raise IndexError(f"dimension {d} is out of range for a tensor of {ndim} dimensions")
    return tuple(d % ndim for d in chosen) if ndim else ()


def settle(
    out: Tensor, x: ShardTensor, dims: Sequence[int], keepdim: bool, *, pending: bool = True
) -> ShardTensor:
    """Wraps a local reduction of x over `dims`; `pending` terms of sharded ones are all-reduced."""
    if pending:
        out = total(out, x.spec, [m for m, d in enumerate(x.spec.dims) if d in dims])
    kept: list[int | None] = []
    sizes: list[Sizes | None] = []
    for dim, extents in zip(x.spec.dims, x.spec.sizes, strict=True):
        gone = dim is None or dim in dims
        kept.append(None if dim is None or gone else dim - (0 if keepdim else sum(d < dim for d in dims)))
        sizes.append(None if gone else extents)
    return place(out, x.spec, tuple(kept), tuple(sizes))


def reduction(function: Callable[..., ShardTensor]) -> Callable[..., ShardTensor]:
    """Turns `function(x, ...)` into a handler that refuses pending sums and `out=`."""

    def handler(
        func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ShardTensor:
        named = {_ALIASES.get(name, name): value for name, value in kwargs.items()}
        first = args[0] if args else named.pop("input")
        if not isinstance(first, ShardTensor) or first.spec.partial or named.pop("out", None) is not None:
            raise unsupported(
                func.__name__, args, kwargs, "needs a tensor that is no pending sum, and no out="
            )
        return function(first, *args[1:], **named)

    return handler


_ALIASES = {"axis": "dim", "keepdims": "keepdim"}


def sum_(
    x: ShardTensor, dim: Axis = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> ShardTensor:
    dims = dimensions(dim, x.ndim)
    if not dims:
        return ShardTensor(x.local.sum(dtype=dtype), x.spec)
    return settle(x.local.sum(dims, keepdim, dtype=dtype), x, dims, keepdim)


def mean(
    x: ShardTensor, dim: Axis = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> ShardTensor:
    if not (dtype or x.dtype).is_floating_point and not (dtype or x.dtype).is_complex:
        raise RuntimeError(f"mean() needs a floating point or complex dtype, got {dtype or x.dtype}")
    dims = dimensions(dim, x.ndim)
    if not any(d in dims for d in x.spec.dims):
        return settle(x.local.mean(dims, keepdim, dtype=dtype), x, dims, keepdim)
    kind = dtype or x.dtype
    wide = torch.float32 if kind in (torch.float16, torch.bfloat16) else kind
    summed = sum_(x, dims, keepdim, dtype=wide)
    return ShardTensor((summed.local / math.prod(x.shape[d] for d in dims)).to(kind), summed.spec)


def amax(x: ShardTensor, dim: Axis = None, keepdim: bool = False) -> ShardTensor:
    return _extremum(x, dim, keepdim, largest=True)


def amin(x: ShardTensor, dim: Axis = None, keepdim: bool = False) -> ShardTensor:
    return _extremum(x, dim, keepdim, largest=False)


def _extremum(x: ShardTensor, dim: Axis, keepdim: bool, *, largest: bool) -> ShardTensor:
    dims = dimensions(dim, x.ndim)
    split = [m for m, d in enumerate(x.spec.dims) if d in dims]
    if not split:
        out = x.local.amax(dims, keepdim) if largest else x.local.amin(dims, keepdim)
    else:
        out = extremum(x.local, dims, x.spec, split, largest)
        out = out if keepdim else out.squeeze(dims)
    return settle(out, x, dims, keepdim, pending=False)


def any_(x: ShardTensor, dim: Axis = None, keepdim: bool = False) -> ShardTensor:
    hits = sum_(ShardTensor((x.local != 0).to(torch.int32), x.spec), dim, keepdim)
    return ShardTensor(hits.local != 0, hits.spec)


def all_(x: ShardTensor, dim: Axis = None, keepdim: bool = False) -> ShardTensor:
    misses = sum_(ShardTensor((x.local == 0).to(torch.int32), x.spec), dim, keepdim)
    return ShardTensor(misses.local == 0, misses.spec)


def var(
    x: ShardTensor,
    dim: Axis | bool = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> ShardTensor:
    """Two passes: sum((x - mean)^2) / (n - correction)."""
    if isinstance(dim, bool):  # var(unbiased)
        return var(x, None, dim, keepdim)
    dims = dimensions(dim, x.ndim)
    lost = float(unbiased) if correction is None else correction
    count = math.prod(x.shape[d] for d in dims)
    spread: ShardTensor = (x - mean(x, dims, keepdim=True)).square()
    summed = sum_(spread, dims, keepdim)
    return ShardTensor(summed.local / max(count - lost, 0), summed.spec)


def std(x: ShardTensor, *args: Any, **kwargs: Any) -> ShardTensor:
    squared = var(x, *args, **kwargs)
    return ShardTensor(squared.local.sqrt(), squared.spec)


def loss(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Elementwise loss: the mean divides the sum over all ranks by the global count."""
    how = kwargs.get("reduction", "mean")
    extra = {
        k: v for k, v in kwargs.items() if k not in ("reduction", "size_average", "reduce") and v is not None
    }
    if kwargs.get("size_average") is not None or kwargs.get("reduce") is not None or len(args) > 2:
        raise unsupported(func.__name__, args, kwargs, "use reduction= by name, not size_average or reduce")
    each = pointwise(func, (), args, {**extra, "reduction": "none"})
    return {"none": lambda: each, "sum": lambda: sum_(each), "mean": lambda: mean(each)}[how]()
