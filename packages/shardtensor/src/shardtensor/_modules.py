"""Weights that all ranks of a domain hold: made equal, promoted, and their gradients reduced in buckets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from shardtensor import _wire as wire
from shardtensor._collectives import Waiting, deferred, reduce_together
from shardtensor._spec import group_of

_MEGABYTE = 1 << 20


def sync_module(module: nn.Module, mesh: DeviceMesh) -> None:
    """Gives all ranks of a mesh the parameters and buffers of its first rank.

    Args:
        module: the same on every rank; its weights are plain tensors.
        mesh: the device mesh.

    Raises:
        ValueError: names, shapes or dtypes of the weights differ between ranks.
    """
    weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    groups = [group for m in range(mesh.ndim) if (group := group_of(mesh, m)).size() > 1]
    _check_alike(weights, groups)
    for group in groups:
        first = dist.get_process_group_ranks(group.group)[0]
        with torch.no_grad():
            for weight in weights.values():
                dist.broadcast(weight.detach(), first, group=group.group)


def _check_alike(weights: dict[str, Tensor], groups: Sequence[wire.Group]) -> None:
    """Raises on every rank if any two ranks of the mesh differ."""
    mine = {name: (tuple(weight.shape), str(weight.dtype)) for name, weight in weights.items()}
    everyone = [mine]
    for group in groups:
        parts: list[Any] = [None] * group.size()
        dist.all_gather_object(parts, everyone, group=group.group)
        everyone = [each for part in parts for each in part]
    for theirs in everyone:
        if theirs != everyone[0]:
            differing = sorted(dict(theirs.items() ^ everyone[0].items()))
            raise ValueError(f"modules differ between the ranks of the mesh in {', '.join(differing)}")


@contextmanager
def bucketed_gradients(*, megabytes: float = 25.0) -> Iterator[None]:
    """Around `loss.backward()`: sums the gradients of weights over the ranks in few large collectives.

    Without it every operation sums those of its own weights, and a weight that is used twice is summed twice.
    Within it they are added up on each rank, and travel together at the end of the block. All ranks of the
    mesh must enter it alike.

    It needs leaves and `.backward()`: `torch.autograd.grad`, DDP and FSDP, which take the gradients as they
    come, are for the sums of the operations.

    Args:
        megabytes: size of a collective.

    Examples:
        with bucketed_gradients():
            loss.backward()
    """
    if deferred.active is not None:
        raise RuntimeError("bucketed_gradients() is active already")
    waiting: Waiting = {}
    deferred.active = waiting
    try:
        yield
    finally:
        deferred.active = None
    by_groups: dict[tuple[wire.Group, ...], list[tuple[Tensor, Tensor]]] = {}
    for weight, groups, grad in waiting.values():
        by_groups.setdefault(groups, []).append((weight, grad))
    for groups, pairs in by_groups.items():
        for bucket in _buckets(pairs, int(megabytes * _MEGABYTE)):
            summed = reduce_together([grad for _, grad in bucket], groups)
            for (weight, _), grad in zip(bucket, summed, strict=True):
                weight.grad = grad if weight.grad is None else weight.grad + grad


def _buckets(pairs: Sequence[tuple[Tensor, Tensor]], limit: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Groups neighbours of one dtype, up to `limit` bytes."""
    bucket: list[tuple[Tensor, Tensor]] = []
    size = 0
    for weight, grad in pairs:
        here = grad.numel() * grad.element_size()
        if bucket and (size + here > limit or grad.dtype != bucket[0][1].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append((weight, grad))
        size += here
    if bucket:
        yield bucket
