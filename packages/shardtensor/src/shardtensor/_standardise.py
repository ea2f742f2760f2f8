"""Normalisation by a mean and a variance over all ranks, with one collective each way.

Forward, torch's kernel of group_norm gives the values standardised by the moments of this rank; the moments
of all ranks, merged, correct them in place. On a CPU sums give the moments for less, where that is accurate.
Backward, with x^ = (x - m) r and w the weight,

    dx = r (w g - sum(w g) / n - x^ sum(w g x^) / n),

the two sums come from one pass by the kernel of its backward and travel with the gradients of the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from shardtensor import _wire as wire
from shardtensor._collectives import all_reduce, shared, total
from shardtensor._moments import merge, moments, sum_of_squares, wide
from shardtensor._spec import ShardSpec, Sizes

Slices = tuple[slice, ...]
_LEAST = 1e-30  # eps where it is 0: values that are equal on this rank may differ from those of others


@dataclass(frozen=True, slots=True)
class Scheme:
    """How to normalise the local part seen as (batch, groups, channels, length).

    Args:
        spec: gives the mesh and the rows per rank.
        dims: dimensions of the view that share a mean and a variance.
        across: mesh dimensions that split them.
        count: global number of elements under one mean.
        eps: added to the variance.
        centred: subtract the mean and divide by the deviation; otherwise divide by the root mean square.
        here: this rank's part of weight and bias.
        shape: that part as it broadcasts to the view.
    """

    spec: ShardSpec
    dims: tuple[int, ...]
    across: Sizes
    count: int
    eps: float
    centred: bool
    here: Slices
    shape: tuple[int, ...]

    @property
    def along(self) -> bool:
        """Whether weight and bias extend along the length."""
        return self.shape[-1] != 1

    def part(self, param: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Returns this rank's part of a weight, ready to broadcast."""
        return None if param is None else param[self.here].reshape(self.shape).to(dtype)


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scheme: Scheme
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (x - mean) / sqrt(var + eps) * weight + bias, the mean, and var + eps.

    One collective for the moments; in the backward pass one for the sums of the gradient, in which the
    gradients of weight and bias travel as well. (On a mesh of two dimensions one for each that is split.)

    Args:
        x: local part, viewed as (batch, groups, channels, length).
        weight: whole, on every rank.
        bias: the same.
        scheme: what to normalise over.
    """
    out, mean, power = _Normalise.apply(x, weight, bias, scheme)
    return out, mean, power


class _Normalise(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, scheme: Scheme
    ) -> tuple[Tensor, Tensor, Tensor]:
        wire.remember(ctx)
        ctx.scheme = scheme
        values = x.to(wide(x.dtype))
        w, b = (scheme.part(param, values.dtype) for param in (weight, bias))
        if scheme.centred:
            out, mean, power = _centred(values, *((None, None) if scheme.along else (w, b)), scheme)
        else:
            squares = total(sum_of_squares(values, scheme.dims), scheme.spec, scheme.across)
            power = squares / max(scheme.count, 1) + scheme.eps
            mean, out = torch.zeros_like(power), values * power.rsqrt()
        if scheme.along:  # a factor w / sqrt(power) would be as large as x
            out = out if w is None else out.mul_(w)
            out = out if b is None else out.add_(b)
        ctx.save_for_backward(x, weight, bias, mean, power.rsqrt())
        ctx.mark_non_differentiable(mean, power)
        return out.to(x.dtype), mean, power

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, _mean: Tensor, _power: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        wire.recall(ctx)
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_gradients_of_composition(x, weight, bias, grad, ctx), None
        return *_gradients(x, weight, bias, grad, mean, rstd, ctx.scheme), None


def _centred(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scheme: Scheme
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (x - mean) / sqrt(var + eps) * weight + bias, the mean, and var + eps."""
    eps = scheme.eps or _LEAST
    quick = None if torch.compiler.is_compiling() else _moments_by_sums(x)
    if quick is not None:
        here = _over_samples(quick[0], quick[1] + eps, scheme.dims)
        mean, power = merge(*here, scheme.spec, scheme.across)
        return _scaled(x, mean, power, weight, bias), mean, power
    out, own, own_rstd = _standardised(x, eps)
    here = _over_samples(own, own_rstd.pow(-2), scheme.dims)
    mean, power = merge(*here, scheme.spec, scheme.across)
    now = ((mean - own) * own_rstd, power * own_rstd.square())  # moments of the standardised values
    return _scaled(out, *now, weight, bias, out), mean, power


def _moments_by_sums(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns mean and variance of every sample and group of this rank from sums of x and of x^2, on a CPU.

    These cost less than the pass that corrects the result of the kernel. None where the mean is so large that
    the difference of the sums would lose digits; on other devices the host would have to wait for that.
    """
    count = x.shape[2] * x.shape[3]
    if x.device.type != "cpu" or x.numel() == 0:
        return None
    mean = x.sum(3, keepdim=True).sum(2, keepdim=True) / count
    var = sum_of_squares(x, (2, 3)) / count - mean.square()
    return None if (mean.square() > var).any() else (mean, var)


def _standardised(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (x - mean) rstd, mean and rstd = 1 / sqrt(var + eps) of every sample and group of this rank."""
    batch, groups, _, length = x.shape
    rows = math.prod(x.shape[:3])
    each = (batch, groups, 1, 1)
    if x.numel() == 0:
        return x.clone(), x.new_zeros(each), x.new_full(each, math.inf)
    flat = x.reshape(1, rows, length).contiguous()
    out, mean, rstd = torch.native_group_norm(flat, None, None, 1, rows, length, batch * groups, eps)
    return out.view(x.shape), mean.view(each), rstd.view(each)


def _over_samples(mean: Tensor, power: Tensor, dims: Sizes) -> tuple[Tensor, Tensor]:
    """Merges the moments of the samples of this rank where `dims` says that they share them."""
    if 0 not in dims:
        return mean, power
    samples = max(mean.shape[0], 1)
    merged = mean.sum(0, keepdim=True) / samples
    return merged, (power + (mean - merged).square()).sum(0, keepdim=True) / samples


def _scaled(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """Returns (x - mean) / sqrt(var) * weight + bias in one pass, that of batch_norm in evaluation.

    Args:
        x: (batch, groups, channels, length).
        mean: broadcasts to (batch, groups, channels, 1), as the others.
        var: positive.
        weight: by default 1.
        bias: by default 0.
        out: takes the result; may be x.
    """
    if x.numel() == 0:
        return x
    rows = math.prod(x.shape[:3])
    flat = x.reshape(1, rows, x.shape[3])
    w, b, m, v = (
        None if part is None else part.expand(*x.shape[:3], 1).contiguous().view(rows)
        for part in (weight, bias, mean, var)
    )
    if out is None or torch.compiler.is_compiling():
        return torch.native_batch_norm(flat, w, b, m, v, False, 0.0, 0.0)[0].view(x.shape)
    into = (out.view(flat.shape), x.new_empty(0), x.new_empty(0))
    torch.native_batch_norm(flat, w, b, m, v, False, 0.0, 0.0, out=into)
    return out


def _row_sums(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """Returns sum(g) and sum(g (x - mean) rstd) over the last dimension, (2, batch, groups, channels, 1).

    One pass over g and x.
    """
    batch, groups, _, length = x.shape
    rows = math.prod(x.shape[:3])
    if x.numel() == 0:
        return x.new_zeros((2, *x.shape[:3], 1))
    flat = (1, rows, length)  # of three dimensions, which have but one memory format
    grad, x, lead = grad.reshape(flat).contiguous(), x.reshape(flat).contiguous(), x.shape[:3]
    mean, rstd = (part.expand(batch, groups, 1, 1).contiguous().view(1, -1) for part in (mean, rstd))
    _, second, first = torch.ops.aten.native_group_norm_backward(
        grad, x, mean, rstd, x.new_ones(rows), 1, rows, length, batch * groups, [False, True, True]
    )
    return torch.stack([first, second]).view(2, *lead, 1)


def _column_sums(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Returns sum(g) and sum(g (x - mean) rstd) over the rows of (rows, 1, 1, length), in one pass."""
    rows, length = x.shape[0], x.shape[3]
    shape = (1, 1, 1, length)
    if x.numel() == 0:
        return x.new_zeros(shape), x.new_zeros(shape)
    one = x.new_ones(length)
    grad, x, mean, rstd = (part.reshape(rows, -1) for part in (grad, x, mean, rstd))
    _, second, first = torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), x.contiguous(), [length], mean, rstd, one, one, [False, True, True]
    )
    return first.view(shape), second.view(shape)


def _gradients(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    grad: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scheme: Scheme,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    kind = mean.dtype
    values, g = x.to(kind), grad.to(kind)
    w = scheme.part(weight, kind)
    scale = rstd
    if scheme.along:
        of_bias, of_weight = _column_sums(g, values, mean, rstd)
        g = g if w is None else g * w
        sums = _row_sums(g, values, mean, rstd)
    else:
        sums = _row_sums(g, values, mean, rstd)
        of_bias, of_weight = sums.unbind()
        if w is not None:
            sums, scale = sums * w, rstd * w
    params = [
        _whole(part, param, scheme)
        for part, param in ((of_weight, weight), (of_bias, bias))
        if param is not None
    ]
    sums, *params = _sums(sums.sum([d + 1 for d in scheme.dims], keepdim=True), params, scheme)
    first, second = (sums * (rstd / -max(scheme.count, 1))).unbind()
    slope = second * rstd
    out = _scaled(values, mean, torch.ones_like(mean), slope, first) if scheme.centred else values * slope
    out.addcmul_(g, scale)
    found = iter(params)
    to_weight, to_bias = (
        None if param is None else next(found).view(param.shape).to(param.dtype) for param in (weight, bias)
    )
    return out.to(x.dtype), to_weight, to_bias


def _whole(part: Tensor, param: Tensor, scheme: Scheme) -> Tensor:
    """Sums the gradient to this rank's part of a weight; as many values as the whole has, 0 elsewhere."""
    mine = part.sum_to_size(scheme.shape)
    if mine.numel() == param.numel():
        return mine
    out = part.new_zeros(param.shape)
    here = out[scheme.here]
    here.copy_(mine.reshape(here.shape))
    return out


def _sums(sums: Tensor, params: list[Tensor], scheme: Scheme) -> list[Tensor]:
    """All-reduces the sums over `across`, and in the same exchange the gradients of weights."""
    spec = scheme.spec
    across: list[Any] = []
    others: list[Any] = []
    for m in spec.split:
        if spec.ranks[m] > 1:
            (across if m in scheme.across else others).append(spec.groups[m])
    parts = [sums, *params]
    flat = torch.cat([part.reshape(-1) for part in parts])
    flat = all_reduce(flat, across) if across else flat
    if others and params:
        flat = torch.cat([flat[: sums.numel()], all_reduce(flat[sums.numel() :], others)])
    pieces = flat.split([part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]


def _gradients_of_composition(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, grad: Tensor, ctx: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same by operations that differentiate again, for gradients of gradients."""
    scheme: Scheme = ctx.scheme
    spec, across, dims = scheme.spec, scheme.across, scheme.dims
    if scheme.centred:
        mean, var = moments(x, dims, spec, across, scheme.count)
        out = x - shared(mean, spec, across)
    else:
        var = total(x.square().sum(dims, keepdim=True), spec, across) / scheme.count
        out = x
    out = out * shared((var + scheme.eps).rsqrt(), spec, across)
    if weight is not None:
        out = out * shared(weight, spec, spec.split)[scheme.here].reshape(scheme.shape)
    if bias is not None:
        out = out + shared(bias, spec, spec.split)[scheme.here].reshape(scheme.shape)
    leaves: list[Any] = [x, weight, bias]
    wanted = [i for i in range(3) if ctx.needs_input_grad[i]]
    grads = torch.autograd.grad(out, [leaves[i] for i in wanted], grad, create_graph=True)
    found = dict(zip(wanted, grads, strict=True))
    return found.get(0), found.get(1), found.get(2)
