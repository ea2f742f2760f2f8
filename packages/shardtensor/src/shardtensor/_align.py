"""Brings the operands of an operation to matching local parts.

Every dimension of every operand carries a label, as in einsum: dimensions with equal labels are the same
axis. One labelling rule serves broadcasting, contraction, concatenation, normalisation and attention.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from shardtensor._collectives import own_rows, shared, tied, total
from shardtensor._plans import planned
from shardtensor._redistribute import rebalance
from shardtensor._spec import ShardSpec, Sizes
from shardtensor._tensor import ShardTensor, place, unsupported

Label: TypeAlias = Hashable
Labels: TypeAlias = tuple[Label, ...]
Operand: TypeAlias = "Tensor | ShardTensor"


@dataclass(frozen=True, slots=True)
class Aligned:
    """Matching local parts.

    Args:
        locals: local parts of the operands, ready for the local function.
        spec: gives the mesh.
        labels: for each mesh dimension the axis that it splits, or None.
        sizes: for each mesh dimension the rows of its ranks along that axis.
    """

    locals: tuple[Tensor, ...]
    spec: ShardSpec
    labels: Labels
    sizes: tuple[Sizes | None, ...]

    def wrap(self, out: Tensor, axes: Labels) -> ShardTensor:
        """Wraps the local result with labels `axes`; where it lacks a split axis, it is all-reduced."""
        summed = [m for m, label in enumerate(self.labels) if label is not None and label not in axes]
        dims = tuple(axes.index(label) if label in axes else None for label in self.labels)
        sizes = tuple(None if dim is None else n for dim, n in zip(dims, self.sizes, strict=True))
        out = tied(out, self.locals) if out.numel() == 0 else out
        return place(total(out, self.spec, summed), self.spec, dims, sizes)


def align(
    op: str, operands: Sequence[Operand], axes: Sequence[Labels], exact: Collection[Label] = ()
) -> Aligned:
    """Cuts, moves and marks the operands so that the local function computes this rank's part.

    The first sharded operand decides how each mesh dimension splits an axis. An operand with the axis whole
    is cut to the own rows; one with other sizes is moved; one without the axis is marked `shared`, so that
    its gradient is summed.

    Args:
        op: name of the operation, for errors.
        operands: plain and sharded tensors.
        axes: for every operand the label of every dimension.
        exact: labels along which an extent of 1 is not broadcast.

    Raises:
        RuntimeError: extents of an axis do not match; the local ones might, by accident.
        UnsupportedShardedOp: operands split different axes over one mesh dimension, one is a pending sum, or
            an axis of extent 1 is split and broadcast.
    """
    spec = next(x.spec for x in operands if isinstance(x, ShardTensor))
    extents: dict[Label, int] = {}
    for x, labels in zip(operands, axes, strict=True):
        for label, extent in zip(labels, x.shape, strict=True):
            known = extents.setdefault(label, extent)
            if known != extent and (label in exact or 1 not in (known, extent)):
                shapes = [tuple(x.shape) for x in operands]
                raise RuntimeError(
                    f"{op}: shapes {shapes} do not match: extents {known} and {extent} of one axis"
                )
            extents[label] = extent if known == 1 else known
    split = [_split(op, operands, axes, m, extents) for m in range(spec.mesh.ndim)]
    parts = tuple(_part(x, labels, spec, split, extents) for x, labels in zip(operands, axes, strict=True))
    return Aligned(parts, spec, tuple(label for label, _ in split), tuple(sizes for _, sizes in split))


def mesh_dim(x: Operand | None, dim: int) -> int | None:
    """Returns the mesh dimension that splits dimension `dim` of x; None where x is whole along it."""
    if not isinstance(x, ShardTensor) or dim not in x.spec.dims:
        return None
    return x.spec.dims.index(dim)


def split_of(x: ShardTensor, dim: int) -> tuple[int, Sizes]:
    """Returns the mesh dimension that splits dimension `dim` of x, which may be negative, and its sizes.

    Raises:
        ValueError: dim is not sharded.
    """
    m = mesh_dim(x, dim % x.ndim)
    sizes = None if m is None else x.spec.sizes[m]
    if m is None or sizes is None:
        raise ValueError(f"dimension {dim} is not sharded: {x.spec.describe()}")
    return m, sizes


def broadcast_axes(shapes: Sequence[Sequence[int]]) -> list[Labels]:
    """Returns labels that align trailing dimensions; label d is dimension d of the broadcast result."""
    ndim = max(len(shape) for shape in shapes)
    return [tuple(range(ndim - len(shape), ndim)) for shape in shapes]


@planned
def broadcast_shape(*shapes: Sequence[int]) -> torch.Size:
    """Returns the shape to which all broadcast; as torch.broadcast_shapes, which is slow."""
    shape: torch.Size = torch.broadcast_shapes(*shapes)
    return shape


def _split(
    op: str, operands: Sequence[Operand], axes: Sequence[Labels], m: int, extents: dict[Label, int]
) -> tuple[Label | None, Sizes | None]:
    label: Label | None = None
    sizes: Sizes | None = None
    for x, labels in zip(operands, axes, strict=True):
        if not isinstance(x, ShardTensor):
            continue
        if x.spec.partial:
            raise unsupported(op, operands, {}, "an operand is a pending sum")
        dim = x.spec.dims[m]
        if dim is None:
            continue
        if x.shape[dim] == 1 and extents[labels[dim]] != 1:
            raise unsupported(
                op, operands, {}, f"dimension {dim} has extent 1, is sharded and would be broadcast"
            )
        if labels.count(labels[dim]) > 1:
            raise unsupported(op, operands, {}, f"dimension {dim} is sharded and on a diagonal")
        if sizes is None:
            label, sizes = labels[dim], x.spec.sizes[m]
        elif label != labels[dim]:
            raise unsupported(op, operands, {}, "the operands are sharded over dimensions that do not match")
    return label, sizes


def _part(
    x: Operand,
    labels: Labels,
    spec: ShardSpec,
    split: Sequence[tuple[Label | None, Sizes | None]],
    extents: dict[Label, int],
) -> Tensor:
    part = x.local if isinstance(x, ShardTensor) else x
    if isinstance(x, ShardTensor) and x.spec.groups != spec.groups:
        raise ValueError(f"operands live on different meshes: {x.spec.mesh} and {spec.mesh}")
    everywhere = []
    for m, (label, sizes) in enumerate(split):
        if sizes is None:
            continue
        here = x.spec.sizes[m] if isinstance(x, ShardTensor) else None
        dim = labels.index(label) if label in labels else None
        if dim is None or x.shape[dim] != extents[label]:
            everywhere.append(m)
        elif here is None:
            part = own_rows(part, dim, spec, m, sizes)
        elif here != sizes:
            part = rebalance(part, dim, spec, m, here, sizes)
    return shared(part, spec, everywhere) if everywhere else part
