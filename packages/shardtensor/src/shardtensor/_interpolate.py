"""Resampling: every output is computed from global coordinates by the owner of its place in the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._collectives import Wants, fetch_rows
from shardtensor._plans import planned
from shardtensor._pool import adaptive_average, global_shape, plan_scaled
from shardtensor._spec import Sizes
from shardtensor._tensor import ShardTensor, place, unsupported
from shardtensor._window import fill_empty

_MOST_ROWS = 4  # of a block up to which blocks are resampled by torch's own kernel
_BAND = 64  # outputs that share one product with a block of weights


class Resize(NamedTuple):
    """How one dimension is resampled.

    Args:
        mode: of F.interpolate, without area.
        align: align_corners.
        antialias: whether the filter widens where rows are left out.
        extent: rows before.
        outputs: rows after.
        factor: the scale factor if it determines the coordinates, else None.
        double: whether the coordinates are those of float64 tensors.
        spatial: dimensions that are resampled together.
    """

    mode: str
    align: bool
    antialias: bool
    extent: int
    outputs: int
    factor: float | None
    double: bool
    spatial: int

    @property
    def step(self) -> float:
        """Distance of neighbouring outputs in rows."""
        if self.align:
            return (self.extent - 1) / (self.outputs - 1) if self.outputs > 1 else 0.0
        return 1.0 / self.factor if self.factor else self.extent / self.outputs

    @property
    def identity(self) -> bool:
        """Whether every output is the row of its number; some kernels of torch ignore a factor near 1."""
        kept = self.antialias or self.mode.endswith("linear")
        return self.extent == self.outputs and (kept or self.step == 1.0)

    @property
    def block(self) -> tuple[int, int] | None:
        """Rows and outputs of the smallest block from which the coordinates repeat, if it is small."""
        common = math.gcd(self.extent, self.outputs)
        rows, outputs = self.extent // common, self.outputs // common
        exact = not self.align and not self.antialias and self.step == rows / outputs
        return (rows, outputs) if exact and rows <= _MOST_ROWS else None


def interpolate(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """F.interpolate in every mode, sharded over batch, channels or any spatial dimensions."""
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    named = dict(zip(names, args, strict=False)) | dict(kwargs)
    x, mode, align = named["input"], named.get("mode", "nearest"), named.get("align_corners")
    if not isinstance(x, ShardTensor) or x.spec.partial:
        raise unsupported(func.__name__, args, kwargs, "needs a sharded tensor that is no pending sum")
    size, factor = _frozen(named.get("size")), _frozen(named.get("scale_factor"))
    antialias, again = named.get("antialias", False), named.get("recompute_scale_factor")
    shape = global_shape(F.interpolate, tuple(x.shape), size, factor, mode, align, again, antialias)
    outputs, spatial = shape[2:], x.ndim - 2
    if mode == "area":
        return adaptive_average(x, outputs, getattr(F, f"adaptive_avg_pool{spatial}d"))
    factors = (
        (None,) * spatial
        if factor is None or again
        else factor
        if isinstance(factor, tuple)
        else (factor,) * spatial
    )
    local, empty = fill_empty(x.local, [d for d in x.spec.dims if d is not None and d < 2])
    if local.dtype in (torch.float16, torch.bfloat16) and not mode.startswith("nearest"):
        local = local.float()
    double = local.dtype == torch.float64
    steps = [
        Resize(mode, bool(align), antialias, x.shape[2 + i], outputs[i], factors[i], double, spatial)
        for i in range(spatial)
    ]
    out, sizes, gone = _resized(local, x, steps, align)
    for dim in (*empty, *gone):
        out = out.narrow(dim, 0, 0)
    return place(out.to(x.dtype), x.spec, x.spec.dims, sizes)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _resized(
    local: Tensor, x: ShardTensor, steps: Sequence[Resize], align: bool | None
) -> tuple[Tensor, tuple[Sizes | None, ...], list[int]]:
    """Returns the local result, its sizes, and the dimensions along which it must be emptied."""
    sizes, gone, crops = list(x.spec.sizes), [], []
    goals = [step.outputs for step in steps]
    factors = [step.factor for step in steps]
    blocks = all(step.block is not None for step in steps)
    left = [i for i, step in enumerate(steps) if not step.identity]
    for m, dim in enumerate(x.spec.dims):
        if dim is None or dim < 2:
            continue
        step, rank = steps[dim - 2], x.spec.coordinate[m]
        if step.identity:
            local, none = fill_empty(local, [dim])
            gone += none
            goals[dim - 2], factors[dim - 2] = local.shape[dim], 1.0
            continue
        before = cast("Sizes", sizes[m])
        if len(before) == 1:
            sizes[m] = (step.outputs,)
            continue
        counts, wants, starts = plan_resize(tuple(step), before, blocks)
        sizes[m] = counts
        local = fetch_rows(local, dim, x.spec, m, wants)
        if counts[rank] == 0:
            local, none = fill_empty(local, [dim])
            gone.append(dim)
        elif blocks:
            rows, outputs = cast("tuple[int, int]", step.block)
            goals[dim - 2] = local.shape[dim] // rows * outputs
            crops.append((dim, starts[rank], counts[rank]))
            continue
        else:
            local = _weighted(local, dim, step, before, rank)
        goals[dim - 2], factors[dim - 2] = local.shape[dim], 1.0
        left.remove(dim - 2)
    if steps[0].antialias:
        # torch 2.13 resamples contiguous tensors of width 1 wrongly.
        for i in left:
            local = _weighted(local, 2 + i, steps[i], (steps[i].extent,), 0)
    elif left:
        scaled = not blocks and any(step.factor is not None for step in steps)
        size, by = (None, cast("list[float]", factors)) if scaled else (goals, None)
        local = F.interpolate(local, size, by, steps[0].mode, align)
    for dim, start, length in crops:
        local = local if length == local.shape[dim] else local.narrow(dim, start, length)
    return local, tuple(sizes), gone


@planned
def plan_resize(resize: tuple[Any, ...], sizes: Sizes, blocks: bool) -> tuple[Sizes, Wants, Sizes]:
    """Gives every output to the owner of its place in the image.

    Returns:
        Outputs per rank, the rows that every rank needs, and the first own output, counted from the first
        that these rows make. With `blocks` the rows form whole blocks.
    """
    step = Resize(*resize)
    index, _ = _taps(step)
    rows, outputs = (step.block if blocks else None) or (1, 1)
    counts, starts = [], []
    wants: list[tuple[tuple[int, int], ...]] = []
    for first, last in plan_scaled(sizes, step.outputs):
        counts.append(last - first)
        if first == last:
            wants.append(())
            starts.append(0)
            continue
        low, high = int(index[first:last].min()) // rows, -(-(int(index[first:last].max()) + 1) // rows)
        wants.append(((low * rows, high * rows),))
        starts.append(first - low * outputs)
    return tuple(counts), tuple(wants), tuple(starts)


def _weighted(local: Tensor, dim: int, step: Resize, sizes: Sizes, rank: int) -> Tensor:
    """Resamples the fetched rows along one dimension."""
    plain = tuple(step)
    if step.mode.startswith("nearest"):
        rows, _ = _own_taps(plain, sizes, rank, local.device)
        return local.index_select(dim, rows[0])
    if step.mode != "bicubic" and not step.antialias:
        rows, weight = _own_taps(plain, sizes, rank, local.device)
        near, far = local.index_select(dim, rows[0]), local.index_select(dim, rows[1])
        return torch.lerp(near, far, weight[:, 1].view(-1, *[1] * (local.ndim - 1 - dim)))
    (matrix,) = _matrix(plain, sizes, rank, local.device)
    last = dim == local.ndim - 1
    out = [
        torch.matmul(local[..., low:high], matrix[first:stop, low:high].mT)
        if last
        else torch.matmul(matrix[first:stop, low:high], local.narrow(dim, low, high - low).flatten(dim + 1))
        for first, stop, low, high in _bands(plain, sizes, rank)
    ]
    joined = torch.cat(out, dim)
    return joined if last else joined.view(*joined.shape[: dim + 1], *local.shape[dim + 1 :])


def _own(step: Resize, sizes: Sizes, rank: int) -> tuple[Tensor, Tensor]:
    """Returns rows, counted from the first that the own outputs read, and weights, both (own outputs, K)."""
    first, last = plan_scaled(sizes, step.outputs)[rank]
    index, weight = (part[first:last] for part in _taps(step))
    return index - index.min(), weight


@planned
def _own_taps(
    resize: tuple[Any, ...], sizes: Sizes, rank: int, device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Returns the K rows of every own output, each (own outputs), and the weights (own outputs, K)."""
    with torch.inference_mode(False):
        step = Resize(*resize)
        index, weight = _own(step, sizes, rank)
        rows = tuple(part.contiguous().to(device) for part in index.unbind(1))
        return rows, weight.to(device, torch.float64 if step.double else torch.float32)


@planned
def _matrix(resize: tuple[Any, ...], sizes: Sizes, rank: int, device: torch.device) -> tuple[Tensor]:
    """Returns the weights as a matrix (own outputs, fetched rows)."""
    with torch.inference_mode(False):
        step = Resize(*resize)
        index, weight = _own(step, sizes, rank)
        matrix = weight.new_zeros(len(index), int(index.max()) + 1).scatter_add_(1, index, weight)
        return (matrix.to(device, torch.float64 if step.double else torch.float32),)


@planned
def _bands(resize: tuple[Any, ...], sizes: Sizes, rank: int) -> tuple[tuple[int, int, int, int], ...]:
    """Returns blocks of outputs [first, stop) and the rows [low, high) that they read."""
    index, _ = _own(Resize(*resize), sizes, rank)
    return tuple(
        (first, first + len(block), int(block.min()), int(block.max()) + 1)
        for first, block in zip(range(0, len(index), _BAND), index.split(_BAND), strict=True)
    )


def _taps(step: Resize) -> tuple[Tensor, Tensor]:
    """Returns for every output the rows that it reads and their weights, both (outputs, K)."""
    if step.mode.startswith("nearest"):
        # The rounding of a coordinate decides which row it is: torch's own arithmetic gives the index.
        ramp = torch.arange(step.extent, dtype=torch.float64 if step.double else torch.float32)
        ones = (1,) * (step.spatial - 1)
        size = (step.outputs, *ones) if step.factor is None else None
        factor = None if step.factor is None else (step.factor, *map(float, ones))
        rows = F.interpolate(ramp.view(1, 1, -1, *ones), size, cast("Any", factor), step.mode)
        index = rows.long().view(-1, 1)
        return index, torch.ones_like(index, dtype=torch.float64)
    j, last = torch.arange(step.outputs, dtype=torch.float64)[:, None], step.extent - 1
    if step.antialias:
        return _antialiased(step, j)
    place = j * step.step if step.align else (j + 0.5) * step.step - 0.5
    if step.mode == "bicubic":
        base = place.floor()
        index = base + torch.arange(-1, 3)
        return index.clamp(0, last).long(), _cubic(place - index, -0.75)
    place = place.clamp(0, last)
    base = place.floor()
    weight = torch.cat([1 - (place - base), place - base], 1)
    return torch.cat([base, (base + 1).clamp(max=last)], 1).long(), weight


def _antialiased(step: Resize, j: Tensor) -> tuple[Tensor, Tensor]:
    """The filter spans the rows that one output replaces; its weights are scaled to sum to 1."""
    wide = max(step.step, 1.0)
    support = (2.0 if step.mode == "bicubic" else 1.0) * wide
    centre = (j + 0.5) * step.step
    first = (centre - support + 0.5).clamp(min=0).floor()
    stop = (centre + support + 0.5).clamp(max=step.extent).floor()
    index = first + torch.arange(int((stop - first).max()))
    away = (index + 0.5 - centre) / wide
    weight = _cubic(away, -0.5) if step.mode == "bicubic" else (1 - away.abs()).clamp(min=0)
    weight = weight.masked_fill(index >= stop, 0.0)
    return torch.minimum(index, stop - 1).long(), weight / weight.sum(1, keepdim=True)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' convolution kernel (Keys 1981, doi:10.1109/TASSP.1981.1163711) with parameter a."""
    t = distance.abs()
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return torch.where(t <= 1, near, torch.where(t < 2, far, 0.0))
