"""Means and variances over sharded dimensions.

Every rank finds the mean m_r and variance v_r of its own n_r of n elements. One exchange of these two merges
them (Chan, Golub, LeVeque 1983): with p_r = n_r / n, known everywhere,

    m = sum_r p_r m_r,    v = sum_r p_r (v_r + (m_r - m)^2).

No term is a difference of large numbers, so that a mean of 3000 costs no accuracy. Halves are computed in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from shardtensor import _wire as wire
from shardtensor._collectives import gather, shared
from shardtensor._spec import ShardSpec, Sizes

_PIECE = 4096  # longest row of float32 squares that is added up in one go: error below 2e-7


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


def sum_of_squares(x: Tensor, dims: Sizes) -> Tensor:
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


def _local_moments(x: Tensor, dims: Sizes) -> tuple[Tensor, Tensor]:
    """Returns mean and variance over `dims`, kept as extent 1."""
    count = math.prod([x.shape[d] for d in dims])
    if count == 0:
        nothing = x.sum(dims, keepdim=True)
        return nothing, nothing
    mean = x.mean(dims, keepdim=True)
    return mean, sum_of_squares(x - mean, dims) / count


def merge(mean: Tensor, var: Tensor, spec: ShardSpec, across: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Merges the moments of the ranks of the mesh dimensions `across`: one collective for each."""
    for m in across:
        sizes: Sizes = spec.sizes[m] or ()
        ranks = len(sizes)
        if ranks == 1:
            continue
        each = [2 * mean.numel()] * ranks
        sent = torch.cat([mean.reshape(-1), var.reshape(-1)]).repeat(ranks)
        table = wire.exchange(sent, each, each, spec.groups[m]).view(ranks, 2, *mean.shape)
        shares = torch.tensor(sizes, dtype=mean.dtype, device=mean.device) / max(sum(sizes), 1)
        shares = shares.view(-1, *[1] * mean.ndim)
        means, spreads = table.unbind(1)
        mean = (shares * means).sum(0)
        var = (shares * (spreads + (means - mean).square())).sum(0)
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
        mean, var = _local_moments(x.to(wide(x.dtype)), dims)
        mean, var = merge(mean, var, spec, across)
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
