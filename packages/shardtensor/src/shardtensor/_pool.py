"""Pooling: windows as those of a convolution, adaptive windows, and windows over a whole dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._collectives import Wants, fetch_rows, gather
from shardtensor._plans import planned
from shardtensor._reduce import mean
from shardtensor._spec import Sizes, offsets
from shardtensor._tensor import Handler, ShardTensor, place, unsupported
from shardtensor._window import each, fetch_windows, fill_empty


@planned
def global_shape(function: Callable[..., Any], shape: Sizes, *options: Any) -> Sizes:
    """Returns the shape that `function` gives to a tensor of the global shape; raises the errors of torch."""
    out: Tensor = function(torch.empty(shape, device="meta"), *options)
    return tuple(out.shape)


def _sharded(op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: str) -> dict[str, Any]:
    named = dict(zip(names.split(), args, strict=False)) | dict(kwargs)
    x = named["input"]
    if not isinstance(x, ShardTensor) or x.spec.partial:
        raise unsupported(op, args, kwargs, "needs a sharded tensor that is no pending sum")
    return named


def _lowest(dtype: torch.dtype) -> float | int:
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _tail(values: Sequence[Any], spatial: int) -> tuple[Any, ...]:
    return tuple(values[len(values) - spatial :])


def _effective(
    extent: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[int, int]:
    """Returns the padding with which exactly `outputs` windows cover the rows; `ceil_mode` may add or cut."""
    return padding, (outputs - 1) * stride + dilation * (kernel - 1) + 1 - extent - padding


def max_pool(spatial: int, indices: bool = False) -> Handler:
    """Returns the handler of max_pool over `spatial` dimensions, or of its form that returns indices too."""
    names = "input kernel_size stride padding dilation ceil_mode return_indices"
    function = getattr(F, f"max_pool{spatial}d")

    def handler(_: Any, __: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        named = _sharded(f"max_pool{spatial}d", args, kwargs, names)
        x, both = named["input"], indices or named.get("return_indices", False)
        kernel = each(named["kernel_size"], spatial)
        stride = each(named.get("stride") or kernel, spatial)
        padding, dilation = (
            each(named.get(key, default), spatial) for key, default in (("padding", 0), ("dilation", 1))
        )
        ceil = named.get("ceil_mode", False)
        shape = global_shape(function, tuple(x.shape), kernel, stride, padding, dilation, ceil)
        extents = _tail(x.shape, spatial)
        steps = zip(extents, _tail(shape, spatial), kernel, stride, padding, dilation, strict=True)
        windows = fetch_windows(x, kernel, stride, [_effective(*step) for step in steps], dilation)
        inner = _unsharded(x, padding)
        local = _rimmed(windows.local, windows.rims, x, _lowest(x.dtype))
        if not both:
            out = windows.crop(function(local, kernel, stride, inner, dilation, ceil))
            return place(out, x.spec, x.spec.dims, windows.sizes)
        out, at = function(local, kernel, stride, inner, dilation, ceil, return_indices=True)
        rows = _unravelled(at, _tail(local.shape, spatial))
        # Of equal values torch takes the first; a window of -inf may begin with rows beyond the edge.
        rows = [
            torch.where(row + low < 0, (row + low) % d, row + low)
            for row, low, d in zip(rows, windows.lows, dilation, strict=True)
        ]
        parts = (out, _ravelled(rows, extents))
        return tuple(place(windows.crop(part), x.spec, x.spec.dims, windows.sizes) for part in parts)

    return handler


def _unsharded(x: ShardTensor, padding: Sequence[int]) -> tuple[int, ...]:
    """Returns the padding without that of sharded dimensions."""
    lead = x.ndim - len(padding)
    return tuple(0 if lead + i in x.spec.dims else n for i, n in enumerate(padding))


def _rimmed(local: Tensor, rims: Sequence[tuple[int, int]], x: ShardTensor, value: float) -> Tensor:
    """Adds the rows beyond the domain along sharded dimensions."""
    lead = x.ndim - len(rims)
    widths = [rim if lead + i in x.spec.dims else (0, 0) for i, rim in enumerate(rims)]
    if all(width == (0, 0) for width in widths):
        return local
    return F.pad(local, [n for width in reversed(widths) for n in width], value=value)


def _unravelled(index: Tensor, extents: Sequence[int]) -> list[Tensor]:
    rows = []
    for extent in reversed(extents):
        rows.append(index % extent)
        index = index // extent
    return rows[::-1]


def _ravelled(rows: Sequence[Tensor], extents: Sequence[int]) -> Tensor:
    index = rows[0]
    for row, extent in zip(rows[1:], extents[1:], strict=True):
        index = index * extent + row
    return index


def avg_pool(spatial: int) -> Handler:
    """Returns the handler of avg_pool over `spatial` dimensions."""
    names = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"
    function = getattr(F, f"avg_pool{spatial}d")

    def handler(_: Any, __: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ShardTensor:
        named = _sharded(f"avg_pool{spatial}d", args, kwargs, names)
        x, kernel = named["input"], each(named["kernel_size"], spatial)
        stride = each(named.get("stride") or kernel, spatial)
        padding = each(named.get("padding", 0), spatial)
        ceil, counted = named.get("ceil_mode", False), named.get("count_include_pad", True)
        divisor = named.get("divisor_override")
        extra = () if spatial == 1 else (divisor,)
        shape = global_shape(function, tuple(x.shape), kernel, stride, padding, ceil, counted, *extra)
        extents, dilation = _tail(x.shape, spatial), (1,) * spatial
        steps = zip(extents, _tail(shape, spatial), kernel, stride, padding, dilation, strict=True)
        windows = fetch_windows(x, kernel, stride, [_effective(*step) for step in steps], dilation)
        local = _rimmed(windows.local, windows.rims, x, 0.0)
        out = function(local, kernel, stride, _unsharded(x, padding), ceil, counted, *extra)
        for i in range(spatial):
            dim = x.ndim - spatial + i
            if dim in x.spec.dims and divisor is None:
                first = windows.lows[i]
                edge = padding[i] if counted else 0
                limits = (-edge, extents[i] + edge)
                out = _recounted(out, dim, first, kernel[i], stride[i], limits)
        return place(windows.crop(out), x.spec, x.spec.dims, windows.sizes)

    return handler


def _recounted(
    out: Tensor, dim: int, first: int, kernel: int, stride: int, limits: tuple[int, int]
) -> Tensor:
    """Divides by the rows of every window within `limits`, instead of by all `kernel` rows.

    Args:
        out: local averages.
        dim: dimension of the windows.
        first: global row at which the first window starts.
        kernel: rows of a window.
        stride: rows between windows.
        limits: global rows [low, high) that count.
    """
    low, high = limits
    end = first + (out.shape[dim] - 1) * stride + kernel
    if low <= first and end <= high:
        return out
    starts = torch.arange(first, end - kernel + 1, stride, device=out.device)
    rows = (starts + kernel).clamp(max=high) - starts.clamp(min=low)
    shape = [-1 if d == dim else 1 for d in range(out.ndim)]
    return out * (kernel / rows.clamp(min=1)).to(out.dtype).view(shape)


def lp_pool(spatial: int) -> Handler:
    """Returns the handler of lp_pool, (sum of x^p)^(1/p), over `spatial` dimensions."""
    average = avg_pool(spatial)

    def handler(func: Any, types: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ShardTensor:
        names = "input norm_type kernel_size stride ceil_mode"
        named = _sharded(f"lp_pool{spatial}d", args, kwargs, names)
        power, kernel = float(named["norm_type"]), each(named["kernel_size"], spatial)
        options = {key: named[key] for key in ("stride", "ceil_mode") if named.get(key) is not None}
        means = average(func, types, (named["input"] ** power, kernel), options)
        # A power of less than 0 by rounding must not become a NaN.
        local = (torch.sign(means.local) * F.relu(torch.abs(means.local))) * math.prod(kernel)
        return ShardTensor(local.pow(1.0 / power), means.spec)

    return handler


@planned
def plan_scaled(sizes: Sizes, outputs: int) -> tuple[tuple[int, int], ...]:
    """Gives every one of `outputs` rows that divide a dimension evenly to the owner of its centre.

    The centre of row j lies in row floor((j + 1/2) L / M) of L.

    Returns:
        For every rank its rows [first, last).
    """
    extent = sum(sizes)
    ends = [
        min(max(-((extent - 2 * offset * outputs) // (2 * extent)), 0), outputs)
        for offset in (*offsets(sizes), extent)
    ]
    return tuple(pairwise(ends))


@planned
def plan_adaptive(sizes: Sizes, outputs: int) -> tuple[Sizes, Wants, tuple[tuple[tuple[int, int], ...], ...]]:
    """Returns outputs per rank, the rows that every rank needs, and its windows [start, stop).

    Window j covers rows floor(j L / M) to ceil((j + 1) L / M).
    """
    extent = sum(sizes)
    windows = tuple(
        tuple((j * extent // outputs, -(-(j + 1) * extent // outputs)) for j in range(first, last))
        for first, last in plan_scaled(sizes, outputs)
    )
    wants = tuple(((own[0][0], own[-1][1]),) if own else () for own in windows)
    return tuple(len(own) for own in windows), wants, windows


@dataclass(frozen=True, slots=True)
class Even:
    """Rows rearranged so that every adaptive window of this rank has equally many.

    Attributes:
        local: the rows; short windows are filled up.
        sizes: for each mesh dimension the outputs per rank along a dimension of windows, else as before.
        outputs: local extents of the result, for each dimension of windows.
        rows: for each dimension of windows the global row of every local one, None where it is itself.
        weights: for each dimension of windows the rows per window over its true rows, None where it is 1.
        empty: dimensions along which this rank has no output.
    """

    local: Tensor
    sizes: tuple[Sizes | None, ...]
    outputs: tuple[int, ...]
    rows: tuple[Tensor | None, ...]
    weights: tuple[Tensor | None, ...]
    empty: tuple[int, ...]


def even_windows(x: ShardTensor, outputs: Sequence[int], fill: float) -> Even:
    """Fetches the rows of this rank's adaptive windows along the last dimensions, and fills short windows."""
    local, sizes, goals, empty = x.local, list(x.spec.sizes), list(outputs), []
    rows: list[Tensor | None] = [None] * len(goals)
    weights: list[Tensor | None] = [None] * len(goals)
    lead = x.ndim - len(goals)
    for m, dim in enumerate(x.spec.dims):
        if dim is None or dim < lead:
            continue
        i, rank = dim - lead, x.spec.coordinate[m]
        counts, wants, windows = plan_adaptive(cast("Sizes", sizes[m]), goals[i])
        local = fetch_rows(local, dim, x.spec, m, wants)
        sizes[m], goals[i] = counts, max(counts[rank], 1)
        if counts[rank] == 0:
            empty.append(dim)
            local, _ = fill_empty(local, [dim], fill)
            continue
        spans = torch.tensor(windows[rank], device=x.device)
        lengths = spans[:, 1] - spans[:, 0]
        width = max(stop - start for start, stop in windows[rank])
        grid = spans[:, :1] + torch.arange(width, device=x.device)
        known = rows[i] = grid.clamp(max=spans[:, 1:] - 1).flatten()
        if known.numel() != local.shape[dim] or min(b - a for a, b in windows[rank]) != width:
            shape = [-1 if d == dim else 1 for d in range(x.ndim)]
            beyond = (grid >= spans[:, 1:]).flatten().view(shape)
            local = local.index_select(dim, known - wants[rank][0][0]).masked_fill(beyond, fill)
            weights[i] = (width / lengths).view(shape)
    local, gone = fill_empty(local, [dim for dim in x.spec.dims if dim is not None and dim < lead], fill)
    return Even(local, tuple(sizes), tuple(goals), tuple(rows), tuple(weights), (*empty, *gone))


def _targets(x: ShardTensor, given: Any, spatial: int) -> tuple[int, ...]:
    sizes = (given,) * spatial if given is None or isinstance(given, int) else tuple(given)
    extents = _tail(x.shape, spatial)
    return tuple(n if size is None else size for size, n in zip(sizes, extents, strict=True))


def adaptive_avg_pool(spatial: int) -> Handler:
    """Returns the handler of adaptive_avg_pool; a mean over all of a sharded dimension is replicated."""
    function = getattr(F, f"adaptive_avg_pool{spatial}d")

    def handler(_: Any, __: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ShardTensor:
        named = _sharded(f"adaptive_avg_pool{spatial}d", args, kwargs, "input output_size")
        return adaptive_average(
            named["input"], _targets(named["input"], named["output_size"], spatial), function
        )

    return handler


def adaptive_average(x: ShardTensor, outputs: tuple[int, ...], function: Callable[..., Any]) -> ShardTensor:
    """Averages over adaptive windows along the last dimensions; `function` is torch's."""
    global_shape(function, tuple(x.shape), outputs)
    lead = x.ndim - len(outputs)
    whole = tuple(lead + i for i, n in enumerate(outputs) if n == 1)
    if any(dim in x.spec.dims for dim in whole):
        x = mean(x, whole, keepdim=True)
    even = even_windows(x, outputs, 0.0)
    out = function(even.local, even.outputs)
    for weight in even.weights:
        out = out if weight is None else out * weight.to(out.dtype)
    for dim in even.empty:
        out = out.narrow(dim, 0, 0)
    return place(out, x.spec, x.spec.dims, even.sizes)


def adaptive_max_pool(spatial: int, indices: bool = False) -> Handler:
    """Returns the handler of adaptive_max_pool; a maximum of all of a sharded dimension is replicated."""
    function = getattr(F, f"adaptive_max_pool{spatial}d")

    def handler(_: Any, __: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        named = _sharded(f"adaptive_max_pool{spatial}d", args, kwargs, "input output_size return_indices")
        x, both = named["input"], indices or named.get("return_indices", False)
        outputs = _targets(x, named["output_size"], spatial)
        global_shape(function, tuple(x.shape), outputs)
        lead, extents = x.ndim - spatial, _tail(x.shape, spatial)
        whole = [
            m
            for m, dim in enumerate(x.spec.dims)
            if dim is not None and dim >= lead and outputs[dim - lead] == 1
        ]
        inner = _without(x, whole, _lowest(x.dtype))
        even = even_windows(inner, outputs, _lowest(x.dtype))
        out, at = function(even.local, even.outputs, return_indices=True)
        places = []
        for i, row in enumerate(_unravelled(at, _tail(even.local.shape, spatial))):
            known = even.rows[i]
            places.append(row if known is None else known[row])
        for m in whole:
            places[cast("int", x.spec.dims[m]) - lead] += x.spec.starts[m]
        index = _ravelled(places, extents)
        for dim in even.empty:
            out, index = out.narrow(dim, 0, 0), index.narrow(dim, 0, 0)
        for m in whole:
            out, index = _first_largest(out, index, x, m)
        parts = tuple(place(part, x.spec, inner.spec.dims, even.sizes) for part in (out, index))
        return parts if both else parts[0]

    return handler


def _without(x: ShardTensor, whole: Sequence[int], fill: float) -> ShardTensor:
    """Returns x as if mesh dimensions `whole` split nothing; a rank without rows gets one of `fill`."""
    local, _ = fill_empty(x.local, [cast("int", x.spec.dims[m]) for m in whole], fill)
    dims = tuple(None if m in whole else dim for m, dim in enumerate(x.spec.dims))
    return place(local, x.spec, dims, tuple(None if m in whole else n for m, n in enumerate(x.spec.sizes)))


def _first_largest(value: Tensor, index: Tensor, x: ShardTensor, m: int) -> tuple[Tensor, Tensor]:
    """Returns the largest value of all ranks of mesh dimension m, of equal ones that with the least index."""
    dim, ones = cast("int", x.spec.dims[m]), (1,) * x.spec.mesh.size(m)
    values, indices = gather(value, dim, x.spec, m, ones), gather(index, dim, x.spec, m, ones)
    best = values.detach().amax(dim, keepdim=True)
    tied = (values == best) | values.isnan()
    chosen = indices.masked_fill(~tied, torch.iinfo(indices.dtype).max).argmin(dim, keepdim=True)
    return values.gather(dim, chosen), indices.gather(dim, chosen)
