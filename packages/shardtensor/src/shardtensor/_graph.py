"""The collectives as operators of a compiled graph.

torch's functional collectives are free of effects for the compiler: it drops one whose result this rank does
not need, and may order them differently in the graphs of different ranks. Uneven shards have both, and then
ranks wait for each other forever. These operators stay, and `keep_order` has Inductor keep their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._library.effects import EffectType

from shardtensor._plans import constant

_group_named: Any = torch._C._distributed_c10d._resolve_process_group
gather_equal = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # torch 2.13, before


@constant
def keep_order() -> bool:
    """Switches off, from the first graph with a collective on, the passes of Inductor that reorder operators.

    Each rank's graph would be reordered by its own sizes, and then one waits in another collective than the
    others.
    """
    import torch._inductor.config as config  # only those who compile load it

    config.reorder_for_locality = False
    config.reorder_for_peak_memory = False
    return True


@torch.library.custom_op("shardtensor::all_to_all", mutates_args=())
def all_to_all(x: Tensor, receive: Sequence[int], send: Sequence[int], group: str) -> Tensor:
    """`wire.exchange` as an operator of compiled graphs: send[r] rows of x to every rank r."""
    out = x.new_empty((sum(receive), *x.shape[1:]))
    dist.all_to_all_single(out, x.contiguous(), list(receive), list(send), group=_group_named(group))
    return out


@all_to_all.register_fake
def _(x: Tensor, receive: Sequence[int], send: Sequence[int], group: str) -> Tensor:
    del send, group
    return x.new_empty((sum(receive), *x.shape[1:]))


@torch.library.custom_op("shardtensor::all_reduce", mutates_args=())
def all_reduce(x: Tensor, op: str, group: str) -> Tensor:
    """`wire.all_reduce` as an operator of compiled graphs; `op` is a name in torch's ReduceOp."""
    out = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out, getattr(dist.ReduceOp, op), group=_group_named(group))
    return out


@all_reduce.register_fake
def _(x: Tensor, op: str, group: str) -> Tensor:
    del op, group
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("shardtensor::all_gather", mutates_args=())
def all_gather(x: Tensor, ranks: int, group: str) -> Tensor:
    """`wire.all_gather` as an operator of compiled graphs: the x of all ranks as (ranks, *x.shape)."""
    out = x.new_empty((ranks, *x.shape))
    gather_equal(out.view(-1), x.reshape(-1), group=_group_named(group))
    return out


@all_gather.register_fake
def _(x: Tensor, ranks: int, group: str) -> Tensor:
    del group
    return x.new_empty((ranks, *x.shape))


for _operator in (all_to_all, all_reduce, all_gather):
    _operator.register_effect(EffectType.ORDERED)
