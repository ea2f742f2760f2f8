"""Convolution and padding: every rank fetches exactly the rows that the windows it owns look at."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._collectives import Wants, fetch_rows, plan_fetch, shared_all
from shardtensor._index import slice_, wrapped
from shardtensor._plans import planned
from shardtensor._spec import Sizes, offsets
from shardtensor._tensor import ShardTensor, place, unsupported

WindowPlan = tuple[Sizes, Wants, tuple[tuple[int, int], ...]]


@planned
def plan_windows(
    sizes: Sizes, kernel: int, stride: int, before: int, after: int, dilation: int
) -> WindowPlan:
    """Gives every output j, which reads rows j s - before + t d, t < k, to the owner of its window's centre.

    The centre is j s - before + floor(d (k - 1) / 2), moved into the domain if it lies outside.

    Returns:
        Outputs per rank, the rows that every rank needs, and for every rank the zero rows beyond the domain.
        A rank without outputs gets one window of zeros, so that its local function runs and its gradients
        exist.
    """
    extent, reach = sum(sizes), dilation * (kernel - 1) + 1
    outputs = (extent + before + after - reach) // stride + 1
    if outputs < 1:
        raise RuntimeError(
            f"window of {reach} rows is larger than the padded input of {extent + before + after}"
        )
    centre = [min(max(j * stride - before + (reach - 1) // 2, 0), extent - 1) for j in range(outputs)]
    wants: list[tuple[tuple[int, int], ...]] = []
    counts, pads = [], []
    for offset, rows in zip(offsets(sizes), sizes, strict=True):
        first, last = bisect_left(centre, offset), bisect_left(centre, offset + rows)
        counts.append(last - first)
        if first == last:
            wants.append(())
            pads.append((reach, 0))
            continue
        low, high = first * stride - before, (last - 1) * stride - before + reach
        start, stop = min(max(low, 0), extent), max(min(high, extent), 0)
        wants.append(((start, stop),) if start < stop else ())
        pads.append((min(max(0, -low), high - low), max(0, high - max(extent, low))))
    return tuple(counts), tuple(wants), tuple(pads)


def convolution(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """conv1d, conv2d, conv3d with plain weights, sharded over the batch or over any spatial dimensions."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    named = dict(zip(names, args, strict=False)) | dict(kwargs)
    x, weight, bias = named["input"], named["weight"], named.get("bias")
    if not isinstance(x, ShardTensor) or isinstance(weight, ShardTensor) or x.spec.partial:
        raise unsupported(func.__name__, args, kwargs, "needs a sharded input and plain weights")
    spatial = weight.ndim - 2
    lead = x.ndim - spatial
    if any(dim == lead - 1 for dim in x.spec.dims):
        raise unsupported(func.__name__, args, kwargs, "the channels are sharded")
    kernel = tuple(weight.shape[2:])
    stride, dilation = _each(named.get("stride", 1), spatial), _each(named.get("dilation", 1), spatial)
    padding = _padding(named.get("padding", 0), kernel, dilation)
    local, sizes, empty, pads = x.local, list(x.spec.sizes), [], list(padding)
    for m, dim in enumerate(x.spec.dims):
        if dim is None or dim < lead:
            continue
        i = dim - lead
        counts, wants, rims = plan_windows(
            cast("Sizes", x.spec.sizes[m]), kernel[i], stride[i], *padding[i], dilation[i]
        )
        local = fetch_rows(local, dim, x.spec, m, wants)
        rank = x.spec.coordinate[m]
        sizes[m], pads[i] = counts, rims[rank]
        empty += [dim] if counts[rank] == 0 else []
    weights = shared_all([weight] if bias is None else [weight, bias], x.spec, x.spec.split)
    local, even = _pad_uneven(local, pads)
    out = func(
        local,
        weights[0],
        None if bias is None else weights[1],
        stride,
        even,
        dilation,
        named.get("groups", 1),
    )
    for dim in empty:
        out = out.narrow(dim, 0, 0)
    return place(out, x.spec, x.spec.dims, tuple(sizes))


def _each(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * count
    return tuple(value) * count if len(value) == 1 else tuple(value)


def _padding(value: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    if value == "valid":
        return [(0, 0)] * len(kernel)
    if value == "same":
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(n // 2, n - n // 2) for n in reach]
    return [(p, p) for p in _each(value, len(kernel))]


def _pad_uneven(x: Tensor, pads: Sequence[tuple[int, int]]) -> tuple[Tensor, list[int]]:
    """Applies paddings that differ between the two sides; leaves the others to the convolution."""
    explicit = [pad if pad[0] != pad[1] else (0, 0) for pad in pads]
    if any(any(pad) for pad in explicit):
        x = F.pad(x, [n for pad in reversed(explicit) for n in pad])
    return x, [0 if pad[0] != pad[1] else pad[0] for pad in pads]


def pad(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """F.pad: along a sharded dimension only the ranks that own the edges grow."""
    named = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | dict(kwargs)
    widths, mode = named["pad"], named.get("mode", "constant")
    x: ShardTensor = named["input"]
    if x.spec.partial:
        raise unsupported("pad", args, kwargs, "the tensor is a pending sum")
    rims = {x.ndim - 1 - i: (widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)}
    inner = [0 if x.ndim - 1 - i // 2 in x.spec.dims else n for i, n in enumerate(widths)]
    if mode == "constant" and any(inner):
        x = place(F.pad(x.local, inner, value=named.get("value")), x.spec, x.spec.dims, x.spec.sizes)
    for dim, (before, after) in rims.items():
        if (before, after) != (0, 0) and (dim in x.spec.dims or mode != "constant"):
            x = pad_dimension(x, dim, before, after, mode, named.get("value") or 0.0)
    return x


def pad_dimension(x: ShardTensor, dim: int, before: int, after: int, mode: str, value: float) -> ShardTensor:
    """Pads one dimension, sharded or not."""
    if before < 0 or after < 0:
        if mode != "constant":
            raise ValueError(f"negative padding needs mode='constant', got {mode!r}")
        x = slice_(x, dim, slice(max(0, -before), x.shape[dim] - max(0, -after)))
        before, after = max(before, 0), max(after, 0)
    _check_width(mode, before, after, x.shape[dim])
    if dim not in x.spec.dims:
        ends = [_take(x.local, dim, rows) for rows in _rim_rows(mode, before, after, x.shape[dim])]
        rims = [_rim(x.local, dim, *rim, mode, value) for rim in zip((before, after), ends, strict=True)]
        local = torch.cat([rims[0], x.local, rims[1]], dim)
        return place(local, x.spec, x.spec.dims, x.spec.sizes)
    m = x.spec.dims.index(dim)
    sizes = cast("Sizes", x.spec.sizes[m])
    grown, wants, widths = plan_padding(sizes, before, after, mode)
    rank = x.spec.coordinate[m]
    top, bottom = widths[rank]
    rows = fetch_rows(x.local, dim, x.spec, m, wants)
    # A rank that only serves rows keeps its empty rim in the graph: the backward of the fetch is a collective
    # too.
    if (top, bottom) != (0, 0) or not plan_fetch(sizes, wants, rank).quiet:
        ends = rows.split(
            [sum(b - a for a, b in part) for part in _rim_rows(mode, top, bottom, sum(sizes))], dim
        )
        rims = [_rim(x.local, dim, *rim, mode, value) for rim in zip((top, bottom), ends, strict=True)]
        local = torch.cat([rims[0], x.local, rims[1]], dim)
    else:
        local = x.local
    return place(
        local, x.spec, x.spec.dims, tuple(grown if i == m else n for i, n in enumerate(x.spec.sizes))
    )


@planned
def plan_padding(
    sizes: Sizes, before: int, after: int, mode: str
) -> tuple[Sizes, Wants, tuple[tuple[int, int], ...]]:
    """Returns rows per rank after padding, the rows each rank copies, and the rows it adds (above, below).

    The ranks that own the first and the last row own the padding beyond them.
    """
    extent = sum(sizes)
    holders = [rank for rank, rows in enumerate(sizes) if rows] or [0]
    widths, wants, grown = [], [], []
    for rank, rows in enumerate(sizes):
        top, bottom = before * (rank == holders[0]), after * (rank == holders[-1])
        above, below = _rim_rows(mode, top, bottom, extent)
        wants.append((*above, *below))
        widths.append((top, bottom))
        grown.append(top + rows + bottom)
    return tuple(grown), tuple(wants), tuple(widths)


def _rim_rows(mode: str, before: int, after: int, extent: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Returns the intervals of rows from which the padding above and below is made."""
    if mode == "reflect":
        above, below = (1, 1 + before), (extent - 1 - after, extent - 1)
    elif mode == "replicate":
        above, below = (0, 1), (extent - 1, extent)
    elif mode == "circular":
        return wrapped(-before, 0, extent), wrapped(extent, extent + after, extent)
    else:
        return (), ()
    return ((above,) if before else ()), ((below,) if after else ())


def _rim(own: Tensor, dim: int, width: int, rows: Tensor, mode: str, value: float) -> Tensor:
    if mode == "constant":
        shape = list(own.shape)
        shape[dim] = width
        return own.new_full(shape, value)
    if mode == "replicate" and width:
        return rows.expand(*(width if d == dim else -1 for d in range(own.ndim)))
    return rows.flip(dim) if mode == "reflect" else rows


def _take(x: Tensor, dim: int, intervals: Sequence[tuple[int, int]]) -> Tensor:
    parts = [x.narrow(dim, start, stop - start) for start, stop in intervals]
    return torch.cat(parts, dim) if parts else x.narrow(dim, 0, 0)


def _check_width(mode: str, before: int, after: int, extent: int) -> None:
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise ValueError(f"mode must be constant, reflect, replicate or circular, got {mode!r}")
    most = {"reflect": extent - 1, "circular": extent}.get(mode)
    if (most is not None and max(before, after) > most) or (mode == "replicate" and extent == 0):
        raise RuntimeError(
            f"{mode} padding ({before}, {after}) is wider than a dimension of extent {extent} allows"
        )
