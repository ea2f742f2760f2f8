"""Log-sum-exp and what is made of it: one exchange of every rank's term, whatever the dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from shardtensor import _wire as wire
from shardtensor._collectives import shared
from shardtensor._moments import everyone, wide
from shardtensor._reduce import Axis, dimensions, settle, splitting
from shardtensor._spec import ShardSpec, Sizes
from shardtensor._tensor import ShardTensor


def log_sum_exp(x: Tensor, dims: tuple[int, ...], spec: ShardSpec, split: Sizes) -> tuple[Tensor, Tensor]:
    """Returns the replicated maximum m of x over `dims`, kept, and log(sum(exp(x - m))).

    Their sum is the logarithm of sum(exp(x)); m counts as a constant, which leaves the gradient as it is.
    Differences from m are as exact as those of one process, whatever the size of x. One collective for each
    mesh dimension of `split`, none in the backward pass.
    """
    top, rest = _LogSumExp.apply(x, dims, spec, split)
    return top, rest


class _LogSumExp(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dims: tuple[int, ...], spec: ShardSpec, split: Sizes
    ) -> tuple[Tensor, Tensor]:
        wire.remember(ctx)
        ctx.plan = (spec, split)
        own = _finite(x.amax(dims, keepdim=True)) if x.numel() else x.sum(dims, keepdim=True)
        table = everyone(torch.stack([own, (x - own).exp().sum(dims, keepdim=True).log()]), spec, split)
        tops, rests = table.unbind(1)
        top = _finite(tops.masked_fill(rests == -torch.inf, -torch.inf).amax(0))
        rest = (tops - top + rests).logsumexp(0)
        ctx.save_for_backward(x, top, rest)
        ctx.mark_non_differentiable(top)
        return top, rest

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor, None, None, None]:
        wire.recall(ctx)
        x, top, rest = ctx.saved_tensors
        grad, rest = (shared(part, *ctx.plan) for part in (grad, rest))
        return grad * (x - top - rest).exp(), None, None, None


def _finite(top: Tensor) -> Tensor:
    """Replaces an infinite maximum by 0: infinity less itself is no number."""
    return top.masked_fill(top.isinf(), 0.0)


def logsumexp(x: ShardTensor, dim: Axis, keepdim: bool = False) -> ShardTensor:
    """log(sum(exp(x))); one exchange for each mesh dimension that splits a reduced one, none backward."""
    dims = dimensions(dim, x.ndim)
    split = splitting(x, dims)
    if not split:
        return settle(x.local.logsumexp(dims, keepdim), x, dims, keepdim)
    top, rest = log_sum_exp(x.local.to(wide(x.dtype)), dims, x.spec, split)
    out = (top + rest).to(x.dtype)
    return settle(out if keepdim else out.squeeze(dims), x, dims, keepdim, pending=False)


def log_softmax(
    x: ShardTensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> ShardTensor:
    """x - logsumexp(x): one exchange where `dim` is sharded, and one all-reduce backward."""
    return _softmax(x, dim, _stacklevel, dtype, log=True)


def softmax(
    x: ShardTensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> ShardTensor:
    """exp(x - logsumexp(x)): one exchange where `dim` is sharded, and one all-reduce backward."""
    return _softmax(x, dim, _stacklevel, dtype, log=False)


def softmin(
    x: ShardTensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> ShardTensor:
    """The softmax of -x."""
    return _softmax(ShardTensor(-x.local, x.spec), dim, _stacklevel, dtype, log=False)


def _softmax(
    x: ShardTensor, dim: int | None, second: Any, dtype: torch.dtype | None, *, log: bool
) -> ShardTensor:
    """exp(x - logsumexp(x)), or its logarithm; the backward adds the ranks' sums of the gradient."""
    if dim is None:
        raise ValueError("softmax of a sharded tensor needs dim=")
    dtype = second if isinstance(second, torch.dtype) else dtype  # torch.softmax has no _stacklevel
    (at,) = dimensions(dim, x.ndim)
    local = x.local if dtype is None else x.local.to(dtype)
    split = splitting(x, (at,))
    if not split:
        return ShardTensor(local.log_softmax(at) if log else local.softmax(at), x.spec)
    kind = local.dtype
    local = local.to(wide(kind))
    top, rest = log_sum_exp(local, (at,), x.spec, split)
    rest = rest.masked_fill(rest == torch.inf, torch.nan)  # as torch has it where an element is infinite
    out = local - top - shared(rest, x.spec, split)
    return ShardTensor((out if log else out.exp()).to(kind), x.spec)
