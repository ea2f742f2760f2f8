"""Convolution and its transpose: every rank fetches exactly the rows that its windows look at."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from shardtensor._collectives import Wants, fetch_rows, shared_all
from shardtensor._overlap import parts_of, run_overlapped
from shardtensor._plans import planned
from shardtensor._spec import Sizes, offsets
from shardtensor._tensor import ShardTensor, elsewhere, place, replaced, unsupported

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


@dataclass(frozen=True, slots=True)
class Windows:
    """The rows that the windows of this rank read.

    Attributes:
        local: these rows, without those beyond the domain.
        sizes: for each mesh dimension the outputs per rank along a dimension of windows, else as before.
        rims: for each dimension of windows the rows still to add at its two sides; the given padding where it
            is whole.
        lows: for each dimension of windows the global index of the first row, those to add included.
        empty: dimensions along which this rank has no output: the local function runs on one window or row,
            whose result `crop` removes.
    """

    local: Tensor
    sizes: tuple[Sizes | None, ...]
    rims: tuple[tuple[int, int], ...]
    lows: tuple[int, ...]
    empty: tuple[int, ...]

    def crop(self, out: Tensor) -> Tensor:
        """Returns `out` without the results of a rank that has no output."""
        for dim in self.empty:
            out = out.narrow(dim, 0, 0)
        return out


def fetch_windows(
    x: ShardTensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    *,
    zeros: bool = False,
) -> Windows:
    """Fetches, along every sharded one of the last dimensions of x, the rows that its windows read.

    With `zeros` the rows beyond the domain come with them where a function cannot add them: where the two
    sides differ.
    """
    lead = x.ndim - len(kernel)
    sizes, rims, lows, empty = list(x.spec.sizes), list(padding), [0] * len(kernel), []
    plans = {
        m: plan_windows(
            cast("Sizes", sizes[m]), kernel[i], stride[i], padding[i][0], padding[i][1], dilation[i]
        )
        for m, i in [(m, dim - lead) for m, dim in enumerate(x.spec.dims) if dim is not None and dim >= lead]
    }
    local, here = _fetched_ahead(x, {m: wants for m, (_, wants, _) in plans.items()})
    for m, (counts, wants, edges) in plans.items():
        dim, rank = cast("int", x.spec.dims[m]), x.spec.coordinate[m]
        i = dim - lead
        rim, rims[i] = edges[rank], edges[rank]
        if m not in here:
            last = m == max(plans)  # what is added earlier would travel
            added = rim if zeros and last and rim[0] != rim[1] else (0, 0)
            local = fetch_rows(local, dim, x.spec, m, wants, rim=added)
            rims[i] = (0, 0) if added == rim else rim
        sizes[m], lows[i] = counts, (wants[rank][0][0] if wants[rank] else 0) - rim[0]
        if counts[rank] == 0:
            empty.append(dim)
    local, gone = fill_empty(local, [dim for dim in x.spec.dims if dim is not None and dim < lead])
    return Windows(local, tuple(sizes), tuple(rims), tuple(lows), (*empty, *gone))


def _fetched_ahead(x: ShardTensor, wants: Mapping[int, Wants]) -> tuple[Tensor, Container[int]]:
    """Returns the local part, and the mesh dimensions along which it is already what this rank wants."""
    if x.around is None or not x.around.serves(x.local, wants):
        return x.local, ()
    return x.around.cut(wants), x.around.rows


def fill_empty(x: Tensor, dims: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Adds one row along those of `dims` that have none, so that a function which needs rows runs.

    Returns:
        The tensor, and the dimensions that were empty.
    """
    empty = [dim for dim in dims if x.shape[dim] == 0]
    if empty:
        x = F.pad(x, [n for d in reversed(range(x.ndim)) for n in (0, int(d in empty))], value=value)
    return x, empty


def _convolved(
    func: Callable[..., Any], names: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], int]:
    """Returns the arguments of a convolution by name and its number of spatial dimensions."""
    named = dict(zip(names.split(), args, strict=False)) | dict(kwargs)
    x, weight = named["input"], named["weight"]
    plain = isinstance(weight, Tensor) and not isinstance(named.get("bias"), ShardTensor)
    if not isinstance(x, ShardTensor) or not plain or x.spec.partial:
        raise unsupported(func.__name__, args, kwargs, "needs a sharded input and plain weights")
    spatial = int(weight.ndim - 2)
    if x.ndim - spatial - 1 in x.spec.dims:
        advice = elsewhere(x, [x.ndim - spatial - 1])
        raise unsupported(func.__name__, args, kwargs, "the channels are sharded", advice)
    return named, spatial


def convolution(
    func: Callable[..., Any], __: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """conv1d, conv2d, conv3d with plain weights, sharded over the batch or over any spatial dimensions."""
    named, spatial = _convolved(func, "input weight bias stride padding dilation groups", args, kwargs)
    x, weight, bias = named["input"], named["weight"], named.get("bias")
    kernel = tuple(weight.shape[2:])
    stride, dilation = each(named.get("stride", 1), spatial), each(named.get("dilation", 1), spatial)
    padding = _padding(named.get("padding", 0), kernel, stride, dilation)
    weights = shared_all([weight] if bias is None else [weight, bias], x.spec, x.spec.split)
    options = (weights[0], None if bias is None else weights[1], stride)

    def run(local: Tensor, rims: Sequence[tuple[int, int]]) -> Tensor:
        local, even = pad_uneven(local, rims)
        out: Tensor = func(local, *options, even, dilation, named.get("groups", 1))
        return out

    lead, spec = x.ndim - spatial, x.spec
    split = [m for m, dim in enumerate(spec.dims) if dim is not None and dim >= lead]
    if len(split) == 1 and x.around is None:
        m, dim = split[0], cast("int", spec.dims[split[0]])
        i, reach = dim - lead, dilation[dim - lead] * (kernel[dim - lead] - 1) + 1
        before, after = padding[i]
        held = cast("Sizes", spec.sizes[m])
        counts, wants, _ = plan_windows(held, kernel[i], stride[i], before, after, dilation[i])
        parts = parts_of(x.device, dim, spec, m, (counts, wants), (reach, stride[i], before))
        if parts:
            one = lambda rows, rim: run(rows, replaced(tuple(padding), i, rim))  # noqa: E731
            out = run_overlapped(one, x.local, dim, spec, m, wants, parts)
            return place(out, spec, spec.dims, replaced(spec.sizes, m, counts))
    windows = fetch_windows(x, kernel, stride, padding, dilation, zeros=True)
    out = windows.crop(run(windows.local, windows.rims))
    return place(out, spec, spec.dims, windows.sizes)


@planned
def plan_transposed(
    sizes: Sizes, kernel: int, stride: int, padding: int, output_padding: int, dilation: int
) -> tuple[Sizes, Wants, tuple[tuple[int, int], ...]]:
    """Gives the outputs of a transposed convolution, to which row i adds at i s - p + t d, t < k, to ranks.

    The first output of the rank with the rows from o on is o s - p + max(0, ceil((d (k - 1) - (s - 1)) / 2)),
    moved into the domain: rows and outputs have the same centre where the outputs of neighbouring rows
    overlap.

    Returns:
        Outputs per rank, the rows that every rank needs, and the outputs to remove at its two sides, of those
        that these rows make without padding; less than 0 where none of the rows adds.
    """
    extent, reach = sum(sizes), dilation * (kernel - 1)
    outputs = (extent - 1) * stride - 2 * padding + reach + output_padding + 1
    if output_padding and output_padding >= max(stride, dilation):
        raise RuntimeError(
            f"output padding {output_padding} is not smaller than stride {stride} or dilation {dilation}"
        )
    if outputs < 1 or extent < 1:
        raise RuntimeError(f"transposed convolution of {extent} rows has {outputs} outputs")
    shift = max(reach - stride + 2, 0) // 2 - padding
    starts = [
        0 if offset == 0 else outputs if offset == extent else min(max(offset * stride + shift, 0), outputs)
        for offset in (*offsets(sizes), extent)
    ]
    wants: list[tuple[tuple[int, int], ...]] = []
    counts, crops = [], []
    for first, last in pairwise(starts):
        counts.append(last - first)
        if first == last:
            wants.append(())
            crops.append((0, 0))
            continue
        low = min(-((reach - first - padding) // stride), (first + padding) // stride)
        high = (last - 1 + padding) // stride
        low = min(max(low, 0), extent - 1)
        high = max(min(high, extent - 1), low)
        wants.append(((low, high + 1),))
        crops.append((first + padding - low * stride, high * stride + reach - padding - last + 1))
    return tuple(counts), tuple(wants), tuple(crops)


def transposed_convolution(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """conv_transpose1d, 2d, 3d with plain weights, sharded over the batch or over any spatial dimensions."""
    names = "input weight bias stride padding output_padding groups dilation"
    named, spatial = _convolved(func, names, args, kwargs)
    x, weight, bias = named["input"], named["weight"], named.get("bias")
    stride, padding, extra, dilation = (
        list(each(named.get(name, default), spatial))
        for name, default in (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1))
    )
    local, lead, sizes, crops = x.local, x.ndim - spatial, list(x.spec.sizes), []
    for m, dim in enumerate(x.spec.dims):
        if dim is None or dim < lead:
            continue
        i = dim - lead
        counts, wants, edges = plan_transposed(
            cast("Sizes", sizes[m]), weight.shape[2 + i], stride[i], padding[i], extra[i], dilation[i]
        )
        local = fetch_rows(local, dim, x.spec, m, wants)
        rank = x.spec.coordinate[m]
        sizes[m], (left, right) = counts, edges[rank]
        padding[i] = max(min(left, right), 0)
        extra[i] = max(-right, 0)
        crops.append((dim, left - padding[i], counts[rank]))
        local = fill_empty(local, [dim])[0]
    weights = shared_all([weight] if bias is None else [weight, bias], x.spec, x.spec.split)
    options = (stride, padding, extra, named.get("groups", 1), dilation)
    out = func(local, weights[0], None if bias is None else weights[1], *options)
    for dim, start, length in crops:
        out = out if length == out.shape[dim] else out.narrow(dim, start, length)
    return place(out, x.spec, x.spec.dims, tuple(sizes))


def each(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """Returns one value for each of `count` dimensions."""
    if isinstance(value, int):
        return (value,) * count
    return tuple(value) * count if len(value) == 1 else tuple(value)


def _padding(
    value: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    if value == "valid":
        return [(0, 0)] * len(kernel)
    if value == "same":
        if any(s != 1 for s in stride):
            raise RuntimeError("padding='same' is not supported for strided convolutions")
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(n // 2, n - n // 2) for n in reach]
    return [(p, p) for p in each(value, len(kernel))]


def pad_uneven(x: Tensor, pads: Sequence[tuple[int, int]]) -> tuple[Tensor, list[int]]:
    """Applies paddings that differ between the two sides; leaves the others to the convolution."""
    explicit = [pad if pad[0] != pad[1] else (0, 0) for pad in pads]
    if any(any(pad) for pad in explicit):
        x = F.pad(x, [n for pad in reversed(explicit) for n in pad])
    return x, [0 if pad[0] != pad[1] else pad[0] for pad in pads]
