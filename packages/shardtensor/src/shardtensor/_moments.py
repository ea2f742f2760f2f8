"""Means and variances over sharded dimensions, and the normalisation by them.

Every rank finds the mean m_r and variance v_r of its own n_r of n elements. One exchange of these two merges
them (Chan, Golub, LeVeque 1983): with p_r = n_r / n, known everywhere,

    m = sum_r p_r m_r,    v = sum_r p_r (v_r + (m_r - m)^2).

No term is a difference of large numbers, so that a mean of 3000 costs no accuracy. Halves are computed in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from shardtensor import _wire as wire
from shardtensor._collectives import all_reduce, gather, shared, total
from shardtensor._spec import ShardSpec, Sizes

Slices = tuple[slice, ...]
_PIECE = 65536  # longest row of float32 squares that is added up in one go


def wide(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which sums of `dtype` are held."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def everyone(x: Tensor, spec: ShardSpec, mesh_dims: Sequence[int]) -> Tensor:
    """Returns the replicated tensor (ranks, *x.shape) of the values of all ranks; its gradient stays at home.

    One collective for each of `mesh_dims`; ranks are counted with the first of these running fastest.
    """
    out = x.unsqueeze(0)
    for m in mesh_dims:
        out = gather(out, 0, spec, m, (out.shape[0],) * spec.mesh.size(m))
    return out


def _sum_of_squares(x: Tensor, dims: Sizes) -> Tensor:
    """Returns sum(x^2) over `dims`, kept; long rows are added in pieces, each in one pass without a copy."""
    last = x.ndim - 1
    if last not in dims or x.shape[last] < 64 or x.dtype.is_complex:
        return x.square().sum(dims, keepdim=True)
    body = x.shape[last] // _PIECE * _PIECE
    tail: Tensor = torch.linalg.vector_norm(x.narrow(last, body, x.shape[last] - body), dim=last).square()
    if body:
        pieces = x.narrow(last, 0, body).unflatten(last, (-1, _PIECE))
        tail = tail + torch.linalg.vector_norm(pieces, dim=-1).square().sum(-1)
    tail = tail.unsqueeze(-1)
    rest = tuple(d for d in dims if d != last)
    return tail.sum(rest, keepdim=True) if rest else tail


def _local_moments(x: Tensor, dims: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean and variance over `dims`, kept as extent 1, and a new tensor x - mean."""
    count = math.prod([x.shape[d] for d in dims])
    if count == 0:
        nothing = x.sum(dims, keepdim=True)
        return nothing, nothing, x.clone()
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    return mean, _sum_of_squares(centred, dims) / count, centred


def _merge(mean: Tensor, var: Tensor, spec: ShardSpec, across: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Merges the moments of the ranks of the mesh dimensions `across`: one collective for each."""
    for m in across:
        sizes: Sizes = spec.sizes[m] or ()
        if len(sizes) == 1:
            continue
        table = everyone(torch.stack([mean, var]), spec, [m])
        shares = torch.tensor(sizes, dtype=mean.dtype, device=mean.device) / max(sum(sizes), 1)
        shares = shares.view(-1, *[1] * mean.ndim)
        means = table[:, 0]
        mean = (shares * means).sum(0)
        var = (shares * (table[:, 1] + (means - mean).square())).sum(0)
    return mean, var


def moments(
    x: Tensor, dims: tuple[int, ...], spec: ShardSpec, across: Sequence[int], count: int
) -> tuple[Tensor, Tensor]:
    """Returns the replicated mean and (biased) variance, over `dims` and the ranks that split them.

    One collective for each mesh dimension of `across`, none in the backward pass.

    Args:
        x: this rank's part.
        dims: reduced dimensions; they stay with extent 1.
        spec: gives the mesh and the rows per rank.
        across: mesh dimensions that split `dims`.
        count: global number of elements under one mean.
    """
    mean, var = _Moments.apply(x, dims, spec, tuple(across), count)
    return mean, var


class _Moments(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dims: tuple[int, ...], spec: ShardSpec, across: Sizes, count: int
    ) -> tuple[Tensor, Tensor]:
        wire.remember(ctx)
        ctx.plan = (spec, across, count)
        mean, var, _ = _local_moments(x.to(wide(x.dtype)), dims)
        mean, var = _merge(mean, var, spec, across)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_var: Tensor) -> tuple[Tensor | None, ...]:
        wire.recall(ctx)
        x, mean = ctx.saved_tensors
        spec, across, count = ctx.plan
        of_mean, of_var, mean = (shared(part, spec, across) for part in (of_mean, of_var, mean))
        grad = of_mean / count + (x.to(mean.dtype) - mean) * (of_var * (2 / max(count, 1)))
        return grad.to(x.dtype), None, None, None, None


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

    def part(self, param: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Returns this rank's part of a weight, ready to broadcast."""
        return None if param is None else param[self.here].reshape(self.shape).to(dtype)


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scheme: Scheme
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (x - mean) / sqrt(var + eps) * weight + bias, the mean and the variance.

    One collective for the moments; in the backward pass one for the sums of the gradient, in which the
    gradients of weight and bias travel as well. (On a mesh of two dimensions one for each that is split.)

    Args:
        x: local part, viewed as (batch, groups, channels, length).
        weight: whole, on every rank.
        bias: the same.
        scheme: what to normalise over.
    """
    out, mean, var = _Normalise.apply(x, weight, bias, scheme)
    return out, mean, var


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
            own, var, out = _local_moments(values, scheme.dims)
            mean, var = _merge(own, var, scheme.spec, scheme.across)
        else:
            var = _sum_of_squares(values, scheme.dims) / max(scheme.count, 1)
            var = total(var, scheme.spec, scheme.across)
            own = mean = torch.zeros_like(var)
            out = values.clone()
        rstd = (var + scheme.eps).rsqrt()
        if scheme.shape[-1] != 1:  # a weight along the length: do not make it as large as x
            out.mul_(rstd).add_((own - mean) * rstd)
            out = out if w is None else out.mul_(w)
            out = out if b is None else out.add_(b)
        else:
            scale = rstd if w is None else rstd * w
            shift = (own - mean) * scale
            out.mul_(scale).add_(shift if b is None else shift + b)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.mark_non_differentiable(mean, var)
        return out.to(x.dtype), mean, var

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, _mean: Tensor, _var: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        wire.recall(ctx)
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_gradients_of_composition(x, weight, bias, grad, ctx), None
        return *_gradients(x, weight, bias, grad, mean, rstd, ctx.scheme), None


def _row_sums(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Returns sum(g) and sum(g (x - mean) rstd) over the last dimension, in one pass over g and x."""
    rows, length = math.prod(x.shape[:-1]), x.shape[-1]
    if rows == 0 or length == 0:
        return grad.sum(-1, keepdim=True), grad.sum(-1, keepdim=True)
    flat = (1, rows, length)  # of three dimensions, which have but one memory format
    grad, x, shape = grad.reshape(flat).contiguous(), x.reshape(flat).contiguous(), x.shape[:-1]
    mean, rstd = (part.expand(*shape, 1).contiguous().view(1, rows) for part in (mean, rstd))
    _, second, first = torch.ops.aten.native_group_norm_backward(
        grad, x, mean, rstd, mean.new_ones(rows), 1, rows, length, rows, [False, True, True]
    )
    return first.view(*shape, 1), second.view(*shape, 1)


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
    if scheme.shape[-1] == 1:
        first, second = _row_sums(g, values, mean, rstd)
        of_weight, of_bias = second, first
        if w is not None:
            first, second, scale = w * first, w * second, rstd * w
    else:
        of_weight, of_bias = ((values - mean) * rstd).mul_(g), g
        g = g if w is None else g * w
        first, second = _row_sums(g, values, mean, rstd)
    first, second = (part.sum(scheme.dims, keepdim=True) for part in (first, second))
    params = [
        _whole(part, param, scheme)
        for part, param in ((of_weight, weight), (of_bias, bias))
        if param is not None
    ]
    first, second, *params = _sums([first, second], params, scheme)
    slope = second * rstd.square() / -scheme.count
    out = (values * slope).addcmul_(g, scale)
    if scheme.centred:
        out.sub_(first * rstd / scheme.count + slope * mean)
    found = iter(params)
    to_weight = None if weight is None else next(found).to(weight.dtype)
    to_bias = None if bias is None else next(found).to(bias.dtype)
    return out.to(x.dtype), to_weight, to_bias


def _whole(part: Tensor, param: Tensor, scheme: Scheme) -> Tensor:
    """Sums the gradient to the shape of this rank's part of a weight, in zeros of the shape of the whole."""
    out = part.new_zeros(param.shape)
    here = out[scheme.here]
    here.copy_(part.sum_to_size(scheme.shape).reshape(here.shape))
    return out


def _sums(sums: list[Tensor], params: list[Tensor], scheme: Scheme) -> list[Tensor]:
    """All-reduces the sums over `across`, and in the same exchange the gradients of weights."""
    spec = scheme.spec
    across: list[Any] = []
    others: list[Any] = []
    for m in spec.split:
        if spec.mesh.size(m) > 1:
            (across if m in scheme.across else others).append(spec.groups[m])
    parts = [*sums, *params]
    flat = torch.cat([part.reshape(-1) for part in parts])
    flat = all_reduce(flat, across) if across else flat
    if others and params:
        first = sum(part.numel() for part in sums)
        flat = torch.cat([flat[:first], all_reduce(flat[first:], others)])
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
