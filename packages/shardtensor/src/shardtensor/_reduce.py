"""Reductions: local terms, then one all-reduce where a reduced dimension is sharded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from shardtensor import _wire as wire
from shardtensor._collectives import shared, total
from shardtensor._moments import everyone, moments, wide
from shardtensor._pointwise import pointwise
from shardtensor._spec import ShardSpec, Sizes
from shardtensor._tensor import ShardTensor, is_sharded, place, unsupported

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


def refuse_in_graph(op: str, args: Iterable[Any], what: str, remedy: str = "") -> None:
    """Raises in a compiled graph, whose layouts and branches are constants: `what` would depend on data."""
    if torch.compiler.is_compiling():
        reason = f"in a compiled graph, {what} would depend on data"
        raise unsupported(op, args, {}, reason, remedy or "Call it outside of the graph.")


def splitting(x: ShardTensor, dims: Sequence[int]) -> Sizes:
    """Returns the mesh dimensions that split any of `dims`."""
    return tuple(m for m, dim in enumerate(x.spec.dims) if dim in dims)


def result(kind: str, parts: Iterable[ShardTensor]) -> Any:
    """Returns torch's named tuple of that kind."""
    make: Any = getattr(torch.return_types, kind)
    return make(tuple(parts))


def reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns `function(x, ...)` into a handler that refuses pending sums and `out=`."""

    def handler(
        func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
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
    """Sum: one all-reduce for each mesh dimension that splits a reduced one; halves are added in float32."""
    dims = dimensions(dim, x.ndim)
    if not dims:
        return ShardTensor(x.local.sum(dtype=dtype), x.spec)
    if not splitting(x, dims):
        return settle(x.local.sum(dims, keepdim, dtype=dtype), x, dims, keepdim)
    kind = dtype or x.dtype
    out = settle(
        x.local.sum(dims, keepdim, dtype=None if dtype is None and kind == wide(kind) else wide(kind)),
        x,
        dims,
        keepdim,
    )
    return ShardTensor(out.local.to(kind), out.spec) if kind != wide(kind) else out


def mean(
    x: ShardTensor, dim: Axis = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> ShardTensor:
    """The sum over the global count; one all-reduce for each mesh dimension that splits a reduced one."""
    if not (dtype or x.dtype).is_floating_point and not (dtype or x.dtype).is_complex:
        raise RuntimeError(f"mean() needs a floating point or complex dtype, got {dtype or x.dtype}")
    dims = dimensions(dim, x.ndim)
    if not splitting(x, dims):
        return settle(x.local.mean(dims, keepdim, dtype=dtype), x, dims, keepdim)
    kind = dtype or x.dtype
    summed = sum_(x, dims, keepdim, dtype=wide(kind))
    return ShardTensor((summed.local / math.prod([x.shape[d] for d in dims])).to(kind), summed.spec)


def nansum(
    x: ShardTensor, dim: Axis = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> ShardTensor:
    """The sum without nan; collectives as for sum."""
    return sum_(
        ShardTensor(x.local.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf), x.spec),
        dim,
        keepdim,
        dtype=dtype,
    )


def nanmean(
    x: ShardTensor, dim: Axis = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> ShardTensor:
    """Sum and number of the values that are not nan, in one all-reduce."""
    dims = dimensions(dim, x.ndim)
    local = x.local.to(wide(dtype or x.dtype))
    terms = torch.stack(
        [local.nansum(dims, keepdim), local.isnan().logical_not().sum(dims, keepdim).to(local.dtype)]
    )
    summed, count = total(terms, x.spec, splitting(x, dims)).unbind()
    return settle((summed / count).to(dtype or x.dtype), x, dims, keepdim, pending=False)


def prod(
    x: ShardTensor, dim: int | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> ShardTensor:
    """Product; one exchange of the local ones for each mesh dimension that splits a reduced one."""
    dims = dimensions(dim, x.ndim)
    local = x.local.prod(dtype=dtype) if dim is None else x.local.prod(dim, keepdim, dtype=dtype)
    split = splitting(x, dims)
    if split:
        local = everyone(local, x.spec, split).prod(0, dtype=local.dtype)
    return settle(local, x, dims, keepdim, pending=False)


def any_(x: ShardTensor, dim: Axis = None, keepdim: bool = False) -> ShardTensor:
    """Whether some element is true; one all-reduce of counts where a reduced dimension is sharded."""
    dims = dimensions(dim, x.ndim)
    hits = settle((x.local != 0).any(dims, keepdim).to(torch.int32), x, dims, keepdim)
    return ShardTensor(hits.local != 0, hits.spec)


def all_(x: ShardTensor, dim: Axis = None, keepdim: bool = False) -> ShardTensor:
    """Whether no element is false; one all-reduce of counts where a reduced dimension is sharded."""
    dims = dimensions(dim, x.ndim)
    misses = settle((x.local == 0).any(dims, keepdim).to(torch.int32), x, dims, keepdim)
    return ShardTensor(misses.local == 0, misses.spec)


def count_nonzero(x: ShardTensor, dim: Axis = None) -> ShardTensor:
    """Number of elements that are not zero; one all-reduce where a reduced dimension is sharded."""
    dims = dimensions(dim, x.ndim)
    return settle(torch.count_nonzero(x.local, dims), x, dims, False)


def amax(x: ShardTensor, dim: Axis = None, keepdim: bool = False) -> ShardTensor:
    """Largest element; one exchange of the local ones for each mesh dimension that splits a reduced one."""
    return _extremum(x, dim, keepdim, largest=True)


def amin(x: ShardTensor, dim: Axis = None, keepdim: bool = False) -> ShardTensor:
    """Smallest element; one exchange of the local ones for each mesh dimension that splits a reduced one."""
    return _extremum(x, dim, keepdim, largest=False)


def aminmax(x: ShardTensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    """amin and amax: their two exchanges."""
    return result("aminmax", (amin(x, dim, keepdim), amax(x, dim, keepdim)))


def _extremum(x: ShardTensor, dim: Axis, keepdim: bool, *, largest: bool) -> ShardTensor:
    dims = dimensions(dim, x.ndim)
    if math.prod([x.shape[d] for d in dims]) == 0:
        raise IndexError(
            f"the extremum of no elements, dimensions {dims} of {tuple(x.shape)}, does not exist"
        )
    split = splitting(x, dims)
    if not split:
        out = x.local.amax(dims, keepdim) if largest else x.local.amin(dims, keepdim)
    else:
        out = _Extremum.apply(x.local, dims, x.spec, split, largest)
        out = out if keepdim else out.squeeze(dims)
    return settle(out, x, dims, keepdim, pending=False)


class _Extremum(Function):
    """One exchange of every rank's extremum and of how often it occurs.

    Equal extrema share the gradient evenly, wherever they lie, as torch.amax does.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dims: tuple[int, ...], spec: ShardSpec, split: Sizes, largest: bool
    ) -> Tensor:
        wire.remember(ctx)
        ctx.plan = (spec, split)
        if x.numel():
            own = x.amax(dims, keepdim=True) if largest else x.amin(dims, keepdim=True)
        else:
            own = x.new_full([1 if d in dims else n for d, n in enumerate(x.shape)], _worst(x.dtype, largest))
        if not ctx.needs_input_grad[0]:
            sent = own.to(torch.uint8) if x.dtype == torch.bool else own
            table = everyone(sent, spec, split)
            return (table.amax(0) if largest else table.amin(0)).to(x.dtype)
        kind = wide(x.dtype)
        counts = (x == own).sum(dims, keepdim=True).to(kind)
        table = everyone(torch.stack([own.to(kind), counts]), spec, split)
        value = table[:, 0].amax(0) if largest else table[:, 0].amin(0)
        count = torch.where(table[:, 0] == value, table[:, 1], 0.0).sum(0)
        value = value.to(x.dtype)
        ctx.save_for_backward(x == value, count)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        wire.recall(ctx)
        hit, count = ctx.saved_tensors
        return torch.where(hit, shared(grad / count, *ctx.plan), 0.0).to(grad.dtype), None, None, None, None


def _worst(dtype: torch.dtype, largest: bool) -> float | int:
    if dtype == torch.bool:
        return not largest
    if dtype.is_floating_point:
        return float("-inf") if largest else float("inf")
    return torch.iinfo(dtype).min if largest else torch.iinfo(dtype).max


def var_mean(
    x: ShardTensor,
    dim: Axis | bool = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[ShardTensor, ShardTensor]:
    """One exchange of every rank's mean and variance; the deviations are taken from the mean."""
    if isinstance(dim, bool):  # var(unbiased)
        return var_mean(x, None, dim, keepdim)
    dims = dimensions(dim, x.ndim)
    lost = float(unbiased) if correction is None else correction
    split = splitting(x, dims)
    pair: Sequence[Tensor]
    if not split and x.local.numel():
        pair = torch.var_mean(x.local, dims, correction=lost, keepdim=keepdim)
    elif not split:  # torch warns of too few elements
        pair = (x.local.mean(dims, keepdim),) * 2
    else:
        if x.dtype.is_complex:
            raise unsupported("var", (x,), {}, "needs real numbers; take real and imag apart")
        count = math.prod([x.shape[d] for d in dims])
        centre, spread = moments(x.local, dims, x.spec, split, count)
        both = (spread * count / max(count - lost, 0), centre)
        pair = tuple((out if keepdim else out.squeeze(dims)).to(x.dtype) for out in both)
    return (
        settle(pair[0], x, dims, keepdim, pending=False),
        settle(pair[1], x, dims, keepdim, pending=False),
    )


def std_mean(x: ShardTensor, *args: Any, **kwargs: Any) -> tuple[ShardTensor, ShardTensor]:
    """Square root of the variance, and mean; one exchange, as var_mean."""
    squared, centre = var_mean(x, *args, **kwargs)
    return ShardTensor(squared.local.sqrt(), squared.spec), centre


def var(x: ShardTensor, *args: Any, **kwargs: Any) -> ShardTensor:
    """Variance from deviations, not from squares; one exchange, as var_mean."""
    return var_mean(x, *args, **kwargs)[0]


def std(x: ShardTensor, *args: Any, **kwargs: Any) -> ShardTensor:
    """Square root of the variance; one exchange, as var_mean."""
    return std_mean(x, *args, **kwargs)[0]


def equal(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """torch.equal: the same answer on every rank, by one all-reduce."""
    refuse_in_graph("equal", args, "the answer")
    a, b = (*args, *kwargs.values())
    return bool(a.shape == b.shape and _everywhere(pointwise(torch.eq, (), (a, b), {})))


def allclose(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """torch.allclose: the same answer on every rank, by one all-reduce."""
    refuse_in_graph("allclose", args, "the answer")
    return _everywhere(pointwise(torch.isclose, (), args, kwargs))


def _everywhere(hits: ShardTensor) -> bool:
    return bool(all_(hits).local)


def histc(x: ShardTensor, bins: int = 100, min: float = 0, max: float = 0) -> ShardTensor:
    """Counts of the ranks are added; the range of the data, if none is given, takes two more exchanges."""
    if min == max == 0:
        refuse_in_graph("histc", (x,), "the range", "Give min= and max=.")
        low, high = amin(ShardTensor(x.local.detach(), x.spec)), amax(ShardTensor(x.local.detach(), x.spec))
        min, max = float(low.local), float(high.local)
        if min == max:
            min, max = min - 1, max + 1
    return settle(torch.histc(x.local, bins, min, max), x, range(x.ndim), False)


def bincount(x: ShardTensor, weights: Any = None, minlength: int = 0) -> ShardTensor:
    """Counts of the ranks are added, after the largest value is known to all."""
    if is_sharded(weights) and weights.spec != x.spec:
        raise unsupported("bincount", (x, weights), {}, "the weights must lie as the values do")
    if weights is not None and not is_sharded(weights):
        raise unsupported("bincount", (x,), {}, "needs sharded weights")
    refuse_in_graph("bincount", (x,), "the extent of the result")
    length = max(minlength, int(amax(x).local) + 1 if x.numel() else 0)
    local = torch.bincount(x.local, None if weights is None else weights.local, length)
    return settle(local, x, (0,), False)
