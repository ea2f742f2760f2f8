"""What the ranks say of their parts of a new tensor, compared before any collective relies on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Shard

from shardtensor._spec import Sizes, group_of, sizes_by_mesh_dim
from shardtensor._wire import Group, all_gather


def extents_by_mesh_dim(placements: Sequence[Placement], sizes: Any) -> dict[int, Sizes]:
    """Returns sizes given in any form as {mesh dimension: rows per rank}."""
    if not isinstance(sizes, Mapping):
        return sizes_by_mesh_dim(placements, sizes)
    rows: dict[int, Sizes] = {}
    for m, per_rank in sizes.items():
        dim = getattr(placements[m], "dim", None)
        if dim is not None:
            rows[m] = tuple(n if isinstance(n, int) else int(n[dim]) for n in per_rank)
    return rows


def compare_ranks(
    local: Tensor,
    mesh: DeviceMesh,
    placements: Sequence[Placement],
    sizes: dict[int, Sizes] | None,
    shape: Sequence[int] | None,
) -> dict[int, Sizes]:
    """Asks the ranks along every mesh dimension for their layout; returns the rows that they hold.

    Raises:
        ValueError: the ranks disagree; every rank raises it.
    """
    found: dict[int, Sizes] = {}
    groups = [group_of(mesh, m) for m in range(mesh.ndim)]
    trouble = ""
    for m, (placement, group) in enumerate(zip(placements, groups, strict=True)):
        dim = placement.dim % max(local.ndim, 1) if isinstance(placement, Shard) else None
        same = [n for d, n in enumerate(local.shape) if d != dim]
        claims = (str(local.dtype), tuple(placements), same, sizes, shape and tuple(shape))
        digest = int.from_bytes(sha256(repr(claims).encode()).digest()[:7], "big")
        rows = _ask(group, [digest, 0 if dim is None else local.shape[dim]], local.device)
        if len({row[0] for row in rows}) > 1:
            trouble = trouble or (
                f"the ranks along mesh dimension {m} disagree on dtype, placements, sizes, or the other "
                f"extents; this rank (coordinate {group.rank()}) has {local.dtype} {tuple(local.shape)}, "
                f"placements {tuple(placements)}, sizes {sizes}, global shape {shape}"
            )
        if dim is None:
            continue
        found[m] = tuple(row[1] for row in rows)
        if sizes is not None and m in sizes and sizes[m] != found[m]:
            trouble = trouble or (
                f"the ranks along mesh dimension {m} hold {found[m]} rows of tensor dimension {dim}, but "
                f"sizes say {sizes[m]}"
            )
    # On a mesh of several dimensions the ranks that saw nothing wrong must hear of it too.
    wrong = bool(trouble)
    for group in groups if len(groups) > 1 else ():
        wrong = any(row[0] for row in _ask(group, [int(wrong)], local.device))
    if wrong:
        raise ValueError(f"from_local: {trouble or 'other ranks of the mesh disagree; see their errors'}")
    return found


def _ask(group: Group, mine: list[int], device: torch.device) -> list[list[int]]:
    """Returns the numbers of every rank."""
    if group.size() == 1:
        return [mine]
    numbers = torch.tensor(mine, device=device)
    table = numbers.new_empty((group.size(), len(mine)))
    all_gather(table, numbers, group)
    rows: list[list[int]] = table.tolist()
    return rows


def global_shape_of(local: Tensor, placements: Sequence[Placement], sizes: Mapping[int, Sizes]) -> list[int]:
    """Returns the global shape that a local part and the rows of all ranks make; ValueError if any lack."""
    shape = list(local.shape)
    for m, placement in enumerate(placements):
        if isinstance(placement, Shard):
            if m not in sizes:
                raise ValueError(f"sizes miss the sharded mesh dimension {m}")
            shape[placement.dim] = sum(sizes[m])
    return shape
