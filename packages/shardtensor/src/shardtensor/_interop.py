"""Meeting points with other parts of torch and with einops: DTensor, checkpoints, rearrange."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate

from shardtensor._spec import ShardSpec, chunk_sizes, group_of
from shardtensor._tensor import ShardTensor


def from_dtensor(x: DTensor, mesh: DeviceMesh | None = None) -> ShardTensor:
    """Returns a DTensor as a ShardTensor that shares its memory and its graph.

    Args:
        x: with at most one mesh dimension per tensor dimension.
        mesh: a larger mesh that has the dimensions of x's, over whose other dimensions x is replicated; by
            default x's own. So a weight that is split over a "tensor" mesh dimension meets fields that are
            split over a "domain" one.

    Raises:
        ValueError: the mesh lacks a dimension of x's.
    """
    own = x.device_mesh
    target = own if mesh is None else mesh
    groups = [group_of(target, m) for m in range(target.ndim)]
    placements: list[Placement] = [Replicate()] * target.ndim
    for m, placement in enumerate(x.placements):
        group = group_of(own, m)
        if group not in groups:
            raise ValueError(f"mesh dimension {m} of {own} is not among those of {target}")
        placements[groups.index(group)] = placement
    return ShardTensor(x.to_local(), ShardSpec.create(target, placements, x.shape))


def to_dtensor(x: ShardTensor) -> DTensor:
    """Returns a ShardTensor as a DTensor that shares its memory and its graph.

    Raises:
        ValueError: the sizes are not those of torch.chunk, the only ones that a DTensor can have.
    """
    for m, (dim, sizes) in enumerate(zip(x.spec.dims, x.spec.sizes, strict=True)):
        fixed = None if dim is None else chunk_sizes(x.shape[dim], x.spec.ranks[m])
        if sizes != fixed:
            raise ValueError(
                f"a DTensor needs the sizes of torch.chunk, {fixed} along mesh dimension {m}, got {sizes}: "
                "redistribute(sizes=...) first"
            )
    return DTensor.from_local(
        x.local,
        x.spec.mesh,
        x.spec.placements,
        run_check=False,
        shape=x.shape,
        stride=torch.empty(x.shape, device="meta").stride(),
    )


def checkpointable(state: Any) -> Any:
    """Returns a state dict as torch.distributed.checkpoint can save and load it, in place.

    Every ShardTensor in nested dicts, lists and tuples becomes a view that names its rows of the global
    tensor. What was saved on one mesh loads on any other, with any sizes.

    Examples:
        dcp.save(checkpointable({"fields": fields}), checkpoint_id="step-100")
        dcp.load(checkpointable({"fields": others}), checkpoint_id="step-100")  # fills `others`
    """
    if isinstance(state, ShardTensor):
        if state.spec.partial:
            raise ValueError(f"a pending sum can not be saved: {state.spec.describe()}")
        return _Stored(state)
    if isinstance(state, Mapping):
        return {name: checkpointable(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)([checkpointable(value) for value in state])
    return state


class _Stored(Tensor):
    """What torch.distributed.checkpoint asks of a tensor of which this rank has a part."""

    part: ShardTensor

    @staticmethod
    def __new__(cls, part: ShardTensor) -> _Stored:
        made: _Stored = Tensor._make_wrapper_subclass(cls, part.shape, dtype=part.dtype, device=part.device)
        made.part = part
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func}: this view is for torch.distributed.checkpoint only")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"checkpointable({self.part!r})"

    def _chunk(self) -> ChunkStorageMetadata:
        slices = self.part.local_slices()
        return ChunkStorageMetadata(
            offsets=torch.Size(part.start for part in slices), sizes=self.part.spec.local_shape
        )

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        if not self.part.local.numel():
            return []
        chunk = self._chunk()
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk,
                    properties=TensorProperties.create_from_tensor(self.part.local.detach()),
                    size=self.part.shape,
                ),
            )
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()] if self.part.local.numel() else []

    def __get_tensor_shard__(self, _: MetadataIndex) -> Tensor:
        return self.part.local.detach()


def einops_backend() -> type | None:
    """Teaches einops, if it is installed, what a ShardTensor is, for as long as the class is kept."""
    if importlib.util.find_spec("einops") is None:
        return None
    from einops._backends import AbstractBackend

    class ShardTensorBackend(AbstractBackend):  # type: ignore[misc,unused-ignore]
        """Found by einops among the subclasses of its backends."""

        framework_name = "shardtensor"

        def is_appropriate_type(self, tensor: Any) -> bool:
            return isinstance(tensor, ShardTensor)

        def reshape(self, x: Any, shape: Sequence[int]) -> Any:
            return x.reshape(shape) if tuple(shape) != tuple(x.shape) else x

        def transpose(self, x: Any, axes: Sequence[int]) -> Any:
            return x.permute(axes)

        def reduce(self, x: Any, operation: str, reduced_axes: Sequence[int]) -> Any:
            axes = tuple(reduced_axes)
            if operation in ("min", "max"):
                return x.amin(axes) if operation == "min" else x.amax(axes)
            if operation in ("sum", "mean"):
                return x.sum(axes) if operation == "sum" else x.mean(axes)
            if operation in ("any", "all"):
                return x.any(axes) if operation == "any" else x.all(axes)
            for axis in sorted(axes, reverse=True):
                x = x.prod(axis)
            return x

        def stack_on_zeroth_dimension(self, tensors: list[Any]) -> Any:
            return torch.stack(tensors)

        def add_axes(self, x: Any, n_axes: int, pos2len: Mapping[int, int]) -> Any:
            repeats = [-1] * n_axes
            for position, length in pos2len.items():
                x = x.unsqueeze(position)
                repeats[position] = length
            return x.expand(repeats)

        def tile(self, x: Any, repeats: Sequence[int]) -> Any:
            return x.repeat(repeats)

        def concat(self, tensors: Sequence[Any], axis: int) -> Any:
            return torch.cat(list(tensors), dim=axis)

        def add_axis(self, x: Any, new_position: int) -> Any:
            return x.unsqueeze(new_position)

        def is_float_type(self, x: Any) -> bool:
            return bool(x.dtype.is_floating_point or x.dtype.is_complex)

        def einsum(self, pattern: str, *x: Any) -> Any:
            return torch.einsum(pattern, *x)

    return ShardTensorBackend
