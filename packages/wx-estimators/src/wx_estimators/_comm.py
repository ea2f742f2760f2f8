"""An ensemble and a grid spread over the ranks of torch.distributed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """All-gather of unequal shares along dimension 1; backward: sum of all ranks' gradients of this share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...], group: dist.ProcessGroup | None) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        rows = x.transpose(0, 1)
        # Equal shares are the only ones that every backend gathers.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)]).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        rank = dist.get_rank(ctx.group)
        start = (0, *accumulate(ctx.sizes))[rank]
        return total[:, start : start + ctx.sizes[rank]], None, None


class _Sum(torch.autograd.Function):
    """All-reduce; its adjoint is an all-reduce."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


@dataclass(frozen=True, kw_only=True, eq=False)
class ProcessGroupComm:
    """`Comm` over process groups of torch.distributed, for `EnsembleCRPS`.

    Args:
        members: members on each rank of `member_group`, in its order; None if every rank has all of them.
        member_group: ranks that hold different members of the same forecasts and points.
        space_group: ranks that hold different points of the same forecasts; None if every rank has all.

    A group of None with `members` given is the default group. Every rank must run the same estimator, on
    equal batches; backward communicates too.
    """

    members: tuple[int, ...] | None = None
    member_group: dist.ProcessGroup | None = None
    space_group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if self.members is None:
            if self.member_group is not None:
                raise ValueError("member_group needs members, the number on each of its ranks")
            return
        ranks = dist.get_world_size(self.member_group)
        if len(self.members) != ranks or min(self.members) < 1:
            raise ValueError(
                f"members must be one positive number for each of the {ranks} ranks, got {self.members}"
            )

    def gather_members(self, x: Tensor, /) -> Tensor:
        """See `Comm.gather_members`; ValueError unless x holds this rank's number of members."""
        if self.members is None:
            return x
        mine = self.members[dist.get_rank(self.member_group)]
        if x.shape[1] != mine:
            raise ValueError(f"this rank has {x.shape[1]} members but members = {self.members} says {mine}")
        out: Tensor = _Gather.apply(x, self.members, self.member_group)  # type: ignore[no-untyped-call]
        return out

    def sum_space(self, x: Tensor, /) -> Tensor:
        """See `Comm.sum_space`."""
        if self.space_group is None:
            return x
        out: Tensor = _Sum.apply(x, self.space_group)  # type: ignore[no-untyped-call]
        return out
