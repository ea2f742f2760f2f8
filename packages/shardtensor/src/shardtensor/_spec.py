"""Where every element of a sharded tensor lives: known on every rank, so that no plan needs a negotiation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Placement, Replicate, Shard

Sizes: TypeAlias = tuple[int, ...]
Dims: TypeAlias = tuple[int | None, ...]  # per mesh dimension: the tensor dimension that it splits
SizesArgument: TypeAlias = Sequence[int] | Mapping[int, Sequence[int]] | None


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """The layout of a global tensor over a device mesh.

    Along mesh dimension m, `Shard(d)` gives rank coordinate r the rows [o_r, o_r + n_r) of tensor dimension
    d, with n = sizes[m] and o the running sum; any n_r may be 0. `Replicate()` gives every rank the same
    value. `Partial()` makes the global value the sum of the local ones.

    From these follow, for this rank: `dims`, the tensor dimension that each mesh dimension splits; `split`,
    the mesh dimensions that split any; `coordinate` in the mesh; `starts` and `local_shape` of its block; the
    process `groups`.

    Args:
        mesh: the device mesh; this rank must be in it.
        placements: one of torch's `Shard`, `Replicate`, `Partial()` for each mesh dimension.
        shape: global shape.
        sizes: for each mesh dimension the extents held by its ranks, or None where the placement is not a
            `Shard`.

    Raises:
        ValueError: the arguments disagree, or two mesh dimensions split the same tensor dimension.
    """

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: torch.Size
    sizes: tuple[Sizes | None, ...]
    dims: Dims = field(init=False, repr=False, compare=False)
    starts: Sizes = field(init=False, repr=False, compare=False)
    local_shape: torch.Size = field(init=False, repr=False, compare=False)
    coordinate: Sizes = field(init=False, repr=False, compare=False)
    groups: tuple[dist.ProcessGroup, ...] = field(init=False, repr=False, compare=False)
    split: Sizes = field(init=False, repr=False, compare=False)
    partial: bool = field(init=False, repr=False, compare=False)
    replicated: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shape = torch.Size(self.shape)
        if len(self.placements) != self.mesh.ndim or len(self.sizes) != self.mesh.ndim:
            raise ValueError(
                f"placements and sizes need one entry for each of the {self.mesh.ndim} mesh dimensions, "
                f"got {self.placements} and {self.sizes}"
            )
        placements = tuple(_normalised(placement, len(shape)) for placement in self.placements)
        dims = tuple(p.dim if isinstance(p, Shard) else None for p in placements)
        _check_sizes(self.mesh, shape, dims, self.sizes)
        coordinate = _coordinate(self.mesh)
        slices = _slices(shape, dims, self.sizes, coordinate)
        starts = tuple(0 if dim is None else slices[dim].start for dim in dims)
        for name, value in (
            ("shape", shape),
            ("placements", placements),
            ("dims", dims),
            ("coordinate", coordinate),
            ("groups", tuple(self.mesh.get_group(m) for m in range(self.mesh.ndim))),
            ("split", tuple(m for m, dim in enumerate(dims) if dim is not None)),
            ("starts", starts),
            ("local_shape", torch.Size(part.stop - part.start for part in slices)),
            ("partial", any(isinstance(p, Partial) for p in placements)),
            ("replicated", all(isinstance(p, Replicate) for p in placements)),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def create(
        cls,
        mesh: DeviceMesh,
        placements: Sequence[Placement],
        shape: Sequence[int],
        sizes: SizesArgument = None,
    ) -> ShardSpec:
        """Builds a spec; dimensions without `sizes` are split as `torch.chunk` (and DTensor) would.

        Args:
            mesh: the device mesh.
            placements: one placement for each mesh dimension.
            shape: global shape.
            sizes: extents per rank: a sequence where one mesh dimension is sharded, else {mesh dimension:
                extents}.
        """
        given = sizes_by_mesh_dim(placements, sizes)
        filled: list[Sizes | None] = []
        for mesh_dim, placement in enumerate(placements):
            if isinstance(placement, Shard):
                extent = shape[_normalised_dim(placement.dim, len(shape))]
                filled.append(given.get(mesh_dim) or chunk_sizes(extent, mesh.size(mesh_dim)))
            else:
                filled.append(None)
        return cls(mesh, tuple(placements), torch.Size(shape), tuple(filled))

    def local_slices(self) -> tuple[slice, ...]:
        """Returns this rank's block as slices of the global array: read these rows and nothing else."""
        return _slices(self.shape, self.dims, self.sizes, self.coordinate)

    def slices_at(self, coordinate: Sequence[int]) -> tuple[slice, ...]:
        """Returns the block of the rank at a mesh coordinate as slices of the global array."""
        return _slices(self.shape, self.dims, self.sizes, coordinate)

    def describe(self) -> str:
        """Returns the layout in words, as error messages and `repr` show it."""
        names = self.mesh.mesh_dim_names or tuple(f"mesh dim {m}" for m in range(self.mesh.ndim))
        parts = []
        for name, placement, sizes in zip(names, self.placements, self.sizes, strict=True):
            text = (
                f"Shard({placement.dim}) {'+'.join(map(str, sizes))}"
                if isinstance(placement, Shard) and sizes
                else None
            )
            parts.append(f"{name}: {text or type(placement).__name__ + '()'}")
        return f"shape {tuple(self.shape)}, {', '.join(parts)}"


def chunk_sizes(extent: int, parts: int) -> Sizes:
    """Returns the extents of torch.chunk: ceil(extent / parts) for each part, until none is left."""
    each = -(-extent // parts)
    return tuple(max(0, min(each, extent - each * part)) for part in range(parts))


def sizes_by_mesh_dim(placements: Sequence[Placement], sizes: SizesArgument) -> dict[int, Sizes]:
    """Returns `sizes` as {mesh dimension: extents}."""
    if sizes is None:
        return {}
    if isinstance(sizes, Mapping):
        return {mesh_dim: tuple(int(n) for n in extents) for mesh_dim, extents in sizes.items()}
    sharded = [m for m, placement in enumerate(placements) if isinstance(placement, Shard)]
    if len(sharded) != 1:
        raise ValueError(
            f"a plain sequence of sizes needs exactly one sharded mesh dimension, got {tuple(placements)}: "
            "give {mesh dimension: extents}"
        )
    return {sharded[0]: tuple(int(n) for n in sizes)}


_SPECS: dict[tuple[object, ...], ShardSpec] = {}
_MOST_SPECS = 8192


def derive(spec: ShardSpec, dims: Dims, shape: Sequence[int], sizes: tuple[Sizes | None, ...]) -> ShardSpec:
    """Returns the spec on the mesh of `spec` with these sharded dimensions; equal requests share one object.

    The key holds the identity of the mesh, not its value: an equal mesh of an earlier process group is a
    different one.
    """
    key = (id(spec.mesh), dims, tuple(shape), sizes)
    known = _SPECS.get(key)
    if known is None:
        if len(_SPECS) >= _MOST_SPECS:
            _SPECS.clear()
        placements = tuple(Replicate() if dim is None else Shard(dim) for dim in dims)
        known = _SPECS[key] = ShardSpec(spec.mesh, placements, torch.Size(shape), sizes)
    return known


def _normalised(placement: Placement, ndim: int) -> Placement:
    if type(placement) is Shard:
        return Shard(_normalised_dim(placement.dim, ndim))
    if isinstance(placement, Partial) and placement.reduce_op != "sum":
        raise ValueError(f"Partial must be a pending sum, got {placement}")
    if type(placement) not in (Replicate, Partial):
        raise ValueError(f"placements are Shard(dim), Replicate() or Partial(), got {placement!r}")
    return placement


def _normalised_dim(dim: int, ndim: int) -> int:
    if not -ndim <= dim < ndim:
        raise ValueError(f"Shard({dim}) does not fit a tensor of {ndim} dimensions")
    return dim % ndim


def _check_sizes(mesh: DeviceMesh, shape: torch.Size, dims: Dims, sizes: tuple[Sizes | None, ...]) -> None:
    sharded = [dim for dim in dims if dim is not None]
    if len(set(sharded)) != len(sharded):
        raise ValueError(f"two mesh dimensions split the same tensor dimension: {dims}; split different ones")
    for mesh_dim, (dim, extents) in enumerate(zip(dims, sizes, strict=True)):
        if (dim is None) != (extents is None):
            raise ValueError(
                f"sizes of mesh dimension {mesh_dim} must be given exactly for a Shard, got {extents}"
            )
        if dim is None or extents is None:
            continue
        if len(extents) != mesh.size(mesh_dim) or sum(extents) != shape[dim] or min(extents) < 0:
            raise ValueError(
                f"sizes of mesh dimension {mesh_dim} must be {mesh.size(mesh_dim)} extents >= 0 that sum to "
                f"{shape[dim]} (tensor dimension {dim}), got {extents}"
            )


def _coordinate(mesh: DeviceMesh) -> Sizes:
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ValueError(f"this rank is not in the mesh {mesh}")
    return tuple(coordinate)


def _slices(
    shape: torch.Size, dims: Dims, sizes: tuple[Sizes | None, ...], coordinate: Sequence[int]
) -> tuple[slice, ...]:
    slices = [slice(0, extent) for extent in shape]
    for dim, extents, rank in zip(dims, sizes, coordinate, strict=True):
        if dim is not None and extents is not None:
            start = offsets(extents)[rank]
            slices[dim] = slice(start, start + extents[rank])
    return tuple(slices)


def offsets(sizes: Sizes) -> Sizes:
    """Returns o_r = sum of n_q over q < r."""
    return tuple(accumulate(sizes, initial=0))[:-1]
