"""Blocks of rows and columns as channels, and back: pixel shuffle, channel shuffle, unfold and fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from shardtensor._collectives import fetch_rows
from shardtensor._errors import UnsupportedShardedOp
from shardtensor._pool import global_shape
from shardtensor._spec import Sizes
from shardtensor._tensor import ShardTensor, elsewhere, place, replaced, unsupported
from shardtensor._window import each, fetch_windows, fill_empty, pad_uneven, plan_transposed


def _whole_dimension(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], dim: int
) -> ShardTensor:
    """Returns the input, which must not be sharded over the dimension `dim`."""
    x = kwargs.get("input", args[0] if args else None)
    if not isinstance(x, ShardTensor) or x.spec.partial:
        raise unsupported(func.__name__, args, kwargs, "needs a sharded tensor that is no pending sum")
    if dim % x.ndim in x.spec.dims:
        advice = elsewhere(x, [dim % x.ndim])
        raise unsupported(func.__name__, args, kwargs, f"dimension {dim % x.ndim} is sharded", advice)
    return x


def pixel_shuffle(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """(..., C r^2, H, W) -> (..., C, r H, r W): every rank keeps its rows."""
    x = _whole_dimension(func, args, kwargs, -3)
    factor = int(kwargs["upscale_factor"] if len(args) < 2 else args[1])
    sizes = tuple(
        tuple(n * factor for n in rows) if rows is not None and dim in (x.ndim - 2, x.ndim - 1) else rows
        for dim, rows in zip(x.spec.dims, x.spec.sizes, strict=True)
    )
    return place(_on_rows(F.pixel_shuffle, x, factor), x.spec, x.spec.dims, sizes)


def pixel_unshuffle(
    func: Callable[..., Any], __: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """(..., C, r H, r W) -> (..., C r^2, H, W): a block belongs to the owner of its centre."""
    x = _whole_dimension(func, args, kwargs, -3)
    factor = int(kwargs["downscale_factor"] if len(args) < 2 else args[1])
    global_shape(F.pixel_unshuffle, tuple(x.shape), factor)
    blocks = (factor, factor)
    windows = fetch_windows(x, blocks, blocks, [(0, 0), (0, 0)], (1, 1))
    local, _ = pad_uneven(windows.local, windows.rims)
    return place(windows.crop(F.pixel_unshuffle(local, factor)), x.spec, x.spec.dims, windows.sizes)


def channel_shuffle(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """(N, g C, ...) -> the channels of g groups interleaved."""
    x = _whole_dimension(func, args, kwargs, 1)
    groups = kwargs["groups"] if len(args) < 2 else args[1]
    return place(_on_rows(F.channel_shuffle, x, groups), x.spec, x.spec.dims, x.spec.sizes)


def _on_rows(function: Callable[..., Tensor], x: ShardTensor, option: int) -> Tensor:
    """Runs a local function that needs rows, also where this rank has none."""
    local, empty = fill_empty(x.local, [dim for dim in x.spec.dims if dim is not None])
    out = function(local, option)
    for dim in empty:
        out = out.narrow(dim, 0, 0)
    return out


def unfold(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """F.unfold: windows of (N, C, H, W) as columns (N, C kh kw, blocks); all but W may be sharded."""
    x = _whole_dimension(func, args, kwargs, -1)
    names = ("input", "kernel_size", "dilation", "padding", "stride")
    named = dict(zip(names, args, strict=False)) | dict(kwargs)
    kernel, dilation, padding, stride = (
        each(named.get(key, default), 2)
        for key, default in (("kernel_size", 1), ("dilation", 1), ("padding", 0), ("stride", 1))
    )
    global_shape(F.unfold, tuple(x.shape), kernel, dilation, padding, stride)
    windows = fetch_windows(x, kernel, stride, [(p, p) for p in padding], dilation, zeros=True)
    local, even = pad_uneven(windows.local, windows.rims)
    out = windows.crop(F.unfold(local, kernel, dilation, tuple(even), stride))
    columns = (x.shape[-1] + 2 * padding[1] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    times = {x.ndim - 2: columns, x.ndim - 3: math.prod(kernel)}
    sizes = tuple(
        rows if rows is None or dim is None else tuple(n * times.get(dim, 1) for n in rows)
        for dim, rows in zip(x.spec.dims, windows.sizes, strict=True)
    )
    return place(out, x.spec, x.spec.dims, sizes)


def fold(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """F.fold: columns (N, C kh kw, blocks) summed into (N, C, H, W), sharded over rows of blocks or batch."""
    x = _whole_dimension(func, args, kwargs, -2)
    names = ("input", "output_size", "kernel_size", "dilation", "padding", "stride")
    named = dict(zip(names, args, strict=False)) | dict(kwargs)
    size, kernel, dilation, padding, stride = (
        list(each(named.get(key, default), 2))
        for key, default in zip(names[1:], (0, 1, 1, 0, 1), strict=True)
    )
    global_shape(F.fold, tuple(x.shape), *map(tuple, (size, kernel, dilation, padding, stride)))
    at = x.ndim - 1
    columns = (size[1] + 2 * padding[1] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    local, sizes, crop = x.local, x.spec.sizes, None
    if at in x.spec.dims:
        m = x.spec.dims.index(at)
        held = cast("Sizes", x.spec.sizes[m])
        if any(n % columns for n in held):
            reason = f"blocks per rank are not multiples of the {columns} blocks of one row"
            remedy = f"Call .redistribute(sizes=...) with multiples of {columns} first."
            raise UnsupportedShardedOp("fold", f"{reason} ({x.spec.describe()})", remedy)
        rows = tuple(n // columns for n in held)
        reach = dilation[0] * (kernel[0] - 1)
        extra = size[0] - ((sum(rows) - 1) * stride[0] - 2 * padding[0] + reach + 1)
        counts, wants, edges = plan_transposed(rows, kernel[0], stride[0], padding[0], extra, dilation[0])
        wanted = tuple(tuple((a * columns, b * columns) for a, b in want) for want in wants)
        local = fetch_rows(local, at, x.spec, m, wanted)
        rank = x.spec.coordinate[m]
        if counts[rank] == 0:
            local = F.pad(local, (0, columns))
        left, right = edges[rank]
        padding[0] = max(min(left, right), 0)
        size[0] = (local.shape[at] // columns - 1) * stride[0] - 2 * padding[0] + reach + 1 + max(-right, 0)
        crop, sizes = (left - padding[0], counts[rank]), replaced(sizes, m, counts)
    out: Tensor = F.fold(local, *map(tuple, (size, kernel, dilation, padding, stride)))
    out = out if crop is None or crop[1] == out.shape[-2] else out.narrow(-2, *crop)
    return place(out, x.spec, x.spec.dims, sizes)
