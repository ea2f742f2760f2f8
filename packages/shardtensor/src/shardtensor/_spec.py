"""Where every element of a sharded tensor lives: known on every rank, so that no plan needs a negotiation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, count
from typing import Any, NoReturn, TypeAlias
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Placement, Replicate, Shard

from shardtensor._plans import constant
from shardtensor._wire import Group

Sizes: TypeAlias = tuple[int, ...]
Dims: TypeAlias = tuple[int | None, ...]  # per mesh dimension: the tensor dimension that it splits
SizesArgument: TypeAlias = Sequence[int] | Mapping[int, Sequence[int]] | None


class ShardSpec:
    """The layout of a global tensor over a device mesh. Equal layouts are one and the same object.

    Along mesh dimension m, `Shard(d)` gives rank coordinate r the rows [o_r, o_r + n_r) of tensor dimension
    d, with n = sizes[m] and o the running sum; any n_r may be 0. `Replicate()` gives every rank the same
    value. `Partial()` makes the global value the sum of the local ones.

    Args:
        mesh: the device mesh; this rank must be in it.
        placements: one of torch's `Shard`, `Replicate`, `Partial()` for each mesh dimension.
        shape: global shape.
        sizes: for each mesh dimension the extents held by its ranks, or None where the placement is not a
            `Shard`.

    Attributes:
        dims: for each mesh dimension the tensor dimension that it splits, or None.
        split: the mesh dimensions that split any.
        partial: whether the value is a pending sum.
        replicated: whether every rank holds the whole value.
        coordinate: of this rank in the mesh.
        starts: for each mesh dimension the first global row of this rank, 0 where it splits nothing.
        local_shape: shape of this rank's block.
        groups: process group of each mesh dimension.
        ranks: number of ranks along each mesh dimension.
        mesh_name: of the mesh, within this process.
        name: of the layout, within this process.

    Raises:
        ValueError: the arguments disagree, or two mesh dimensions split the same tensor dimension.
    """

    __slots__ = (
        "__weakref__",
        "coordinate",
        "dims",
        "groups",
        "local_shape",
        "mesh",
        "mesh_name",
        "name",
        "partial",
        "placements",
        "ranks",
        "replicated",
        "shape",
        "sizes",
        "split",
        "starts",
    )

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: torch.Size
    sizes: tuple[Sizes | None, ...]
    dims: Dims
    split: Sizes
    partial: bool
    replicated: bool
    coordinate: Sizes
    starts: Sizes
    local_shape: torch.Size
    groups: tuple[Group, ...]
    ranks: Sizes
    mesh_name: str
    name: str

    def __new__(
        cls,
        mesh: DeviceMesh,
        placements: Sequence[Placement],
        shape: Sequence[int],
        sizes: Sequence[Sizes | None],
    ) -> ShardSpec:
        if len(placements) != mesh.ndim or len(sizes) != mesh.ndim:
            raise ValueError(
                f"placements and sizes need one entry for each of the {mesh.ndim} mesh dimensions, "
                f"got {tuple(placements)} and {sizes}"
            )
        where = tuple(_normalised(placement, len(shape)) for placement in placements)
        # The process groups stand for the mesh: an equal mesh of an earlier process group is another one.
        groups = tuple(group_of(mesh, m) for m in range(mesh.ndim))
        key = (groups, where, tuple(shape), tuple(sizes))
        known = _SPECS.get(key)
        if known is None:
            known = object.__new__(cls)
            known._fill(mesh, where, torch.Size(shape), tuple(sizes), groups)
            _SPECS[key] = _BY_NAME[known.name] = known
        return known

    def _fill(
        self,
        mesh: DeviceMesh,
        placements: tuple[Placement, ...],
        shape: torch.Size,
        sizes: tuple[Sizes | None, ...],
        groups: tuple[Group, ...],
    ) -> None:
        dims = tuple(p.dim if isinstance(p, Shard) else None for p in placements)
        _check_sizes(mesh, shape, dims, sizes)
        coordinate = _coordinate(mesh)
        slices = _slices(shape, dims, sizes, coordinate)
        for name, value in (
            ("mesh", mesh),
            ("placements", placements),
            ("shape", shape),
            ("sizes", sizes),
            ("dims", dims),
            ("split", tuple(m for m, dim in enumerate(dims) if dim is not None)),
            ("partial", any(isinstance(p, Partial) for p in placements)),
            ("replicated", all(isinstance(p, Replicate) for p in placements)),
            ("coordinate", coordinate),
            ("starts", tuple(0 if dim is None else slices[dim].start for dim in dims)),
            ("local_shape", torch.Size(part.stop - part.start for part in slices)),
            ("groups", groups),
            ("ranks", tuple(mesh.size(m) for m in range(mesh.ndim))),
            ("mesh_name", _named(mesh, groups)),
            ("name", f"layout {next(_COUNT)}"),
        ):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a ShardSpec is immutable; to change {name}, redistribute the tensor")

    def __copy__(self) -> ShardSpec:
        return self

    def __deepcopy__(self, memo: object) -> ShardSpec:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a layout belongs to running process groups and can not be pickled: save with "
            "torch.distributed.checkpoint, or save .to_local() and .local_slices()"
        )

    def __repr__(self) -> str:
        return f"ShardSpec({self.describe()})"

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
        return cls(mesh, placements, shape, filled)

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


_SPECS: WeakValueDictionary[tuple[Any, ...], ShardSpec] = WeakValueDictionary()
_BY_NAME: WeakValueDictionary[str, ShardSpec] = WeakValueDictionary()
_COUNT = count()
_DERIVED: dict[tuple[Any, ...], ShardSpec] = {}
_GROUPS: dict[dist.ProcessGroup, Group] = {}
_NAMES: dict[tuple[Group, ...], str] = {}
_MESHES: dict[str, DeviceMesh] = {}
_MOST_SPECS = 8192


def retarget(spec: ShardSpec, placements: Sequence[Placement], sizes: Mapping[int, Sizes]) -> ShardSpec:
    """Returns another layout of the same global tensor; `sizes` as {mesh dimension: rows per rank}."""
    if not torch.compiler.is_compiling() or any([placement.is_partial() for placement in placements]):
        return ShardSpec.create(spec.mesh, placements, spec.shape, sizes)
    dims = tuple([getattr(placement, "dim", None) for placement in placements])
    rows = [
        None if dim is None else sizes.get(m) or chunk_sizes(spec.shape[dim], spec.ranks[m])
        for m, dim in enumerate(dims)
    ]
    return derive(spec, dims, spec.shape, tuple(rows))


def derive(spec: ShardSpec, dims: Dims, shape: Sequence[int], sizes: tuple[Sizes | None, ...]) -> ShardSpec:
    """Returns the spec on the mesh of `spec` with these sharded dimensions."""
    found: ShardSpec = _derive(spec.mesh_name, dims, tuple(shape), sizes)
    return found


@constant
def spec_named(name: str) -> ShardSpec:
    """Returns a layout by its name, as a constant of the compiled graph: no size of it becomes symbolic."""
    return _BY_NAME[name]


# Arguments that Dynamo takes for constants: a mesh goes by its name, which is a string and never symbolic.
@constant
def _derive(mesh: str, dims: Dims, shape: Sizes, sizes: tuple[Sizes | None, ...]) -> ShardSpec:
    key = (mesh, dims, shape, sizes)
    known = _DERIVED.get(key)
    if known is None:
        placements = tuple(Replicate() if dim is None else Shard(dim) for dim in dims)
        known = ShardSpec(_MESHES[mesh], placements, shape, sizes)
        if len(_DERIVED) >= _MOST_SPECS:
            _DERIVED.clear()
        _DERIVED[key] = known
    return known


def group_of(mesh: DeviceMesh, mesh_dim: int) -> Group:
    """Returns the ranks along a mesh dimension; the same object for the same process group."""
    group = mesh.get_group(mesh_dim)
    known = _GROUPS.get(group)
    if known is None:
        known = _GROUPS[group] = Group(group, str(group.group_name))
    return known


def _named(mesh: DeviceMesh, groups: tuple[Group, ...]) -> str:
    name = _NAMES.setdefault(groups, f"mesh {len(_NAMES)}")
    _MESHES.setdefault(name, mesh)
    return name


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
