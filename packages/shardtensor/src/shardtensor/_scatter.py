"""From one rank to all: every rank receives its block and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Placement

from shardtensor._spec import ShardSpec, SizesArgument
from shardtensor._tensor import ShardTensor


def scatter_tensor(
    tensor: Tensor | None,
    global_src: int,
    mesh: DeviceMesh,
    placements: Sequence[Placement],
    global_shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    requires_grad: bool = False,
    *,
    sizes: SizesArgument = None,
    sharding_sizes: SizesArgument = None,
) -> ShardTensor:
    """Distributes a tensor that one rank holds.

    The source sends each rank its own block point to point. The result is a new leaf of the graph.

    Args:
        tensor: the global tensor on the source; ignored, and may be None, on the other ranks.
        global_src: global rank that holds it; must be in the mesh.
        mesh: the device mesh.
        placements: `Shard` or `Replicate` for each mesh dimension.
        global_shape: shape of the tensor; given with `dtype` on every rank, it need not be announced.
        dtype: of the tensor.
        requires_grad: whether the result asks for its gradient.
        sizes: rows per rank as in `ShardTensor.from_local`; by default torch.chunk's.
        sharding_sizes: the same, by PhysicsNeMo's name.

    Raises:
        ValueError: the source is not in the mesh, has no tensor or another one than announced, or a placement
            is Partial.
    """
    source, rows = global_src, sharding_sizes if sizes is None else sizes
    ranks = [int(rank) for rank in mesh.mesh.flatten().tolist()]
    if source not in ranks or any(isinstance(placement, Partial) for placement in placements):
        raise ValueError(
            f"source {source} must be one of {ranks}, and placements no Partial, got {tuple(placements)}"
        )
    here = dist.get_rank()
    if here == source and tensor is None:
        raise ValueError("tensor is None on the source rank")
    if global_shape is None or dtype is None:
        shape, kind = _announce(tensor, source, ranks)
    else:
        shape, kind = torch.Size(global_shape), dtype
        if here == source and tensor is not None and (tensor.shape, tensor.dtype) != (shape, kind):
            raise ValueError(
                f"tensor is {tuple(tensor.shape)} {tensor.dtype}, but global_shape and dtype say "
                f"{tuple(shape)} {kind}"
            )
    spec = ShardSpec.create(mesh, placements, shape, rows)
    if here == source and tensor is not None:
        local = _send_blocks(tensor.detach(), spec, ranks)
    else:
        local = torch.empty(spec.local_shape, dtype=kind, device=mesh.device_type)
        if local.numel():
            dist.recv(local, source)
    return ShardTensor(local.requires_grad_(requires_grad), spec)


def _announce(tensor: Tensor | None, source: int, ranks: Sequence[int]) -> tuple[torch.Size, torch.dtype]:
    if dist.get_rank() == source and tensor is not None:
        for rank in ranks:
            if rank != source:
                dist.send_object_list([tensor.shape, tensor.dtype], rank)
        return tensor.shape, tensor.dtype
    news: list[torch.Size | torch.dtype | None] = [None, None]
    dist.recv_object_list(news, source)
    shape, dtype = news
    if not isinstance(shape, torch.Size) or not isinstance(dtype, torch.dtype):
        raise RuntimeError(f"rank {source} announced {news}, expected a shape and a dtype")
    return shape, dtype


def _send_blocks(tensor: Tensor, spec: ShardSpec, ranks: Sequence[int]) -> Tensor:
    pending, kept = [], []
    for rank, coordinate in zip(
        ranks, torch.cartesian_prod(*_axes(spec.mesh)).view(len(ranks), -1), strict=True
    ):
        block = tensor[spec.slices_at(coordinate.tolist())].contiguous()
        if rank != dist.get_rank() and block.numel():
            pending.append(dist.isend(block, rank))
            kept.append(block)  # until sent
    for work in pending:
        if work is not None:
            work.wait()
    return tensor[spec.local_slices()].clone(memory_format=torch.contiguous_format)


def _axes(mesh: DeviceMesh) -> list[Tensor]:
    return [torch.arange(mesh.size(m)) for m in range(mesh.ndim)]
