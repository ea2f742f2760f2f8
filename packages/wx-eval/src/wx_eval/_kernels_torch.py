"""The kernel of `_kernels` on tensors, on the accelerator where they lie."""

from __future__ import annotations

import torch
from torch import Tensor

# Points that are handled at once: calls cost more on an accelerator than on a CPU and memory is ample.
_TILE_POINTS = 1 << 20


@torch.no_grad()
def statistics(
    values: Tensor, truth: Tensor, pairs: tuple[tuple[int, int], ...], *, ranks: bool
) -> tuple[Tensor, Tensor | None]:
    """Skill, pair sum, error and variance (4, N) and ranks (2, N) of values (M, N) and truth (N,)."""
    members, points = values.shape
    dtype = torch.promote_types(torch.promote_types(values.dtype, truth.dtype), torch.float32)
    out = torch.empty((4, points), dtype=dtype, device=values.device)
    kind = torch.uint8 if members < 256 else torch.int32
    counts = torch.empty((2, points), dtype=kind, device=values.device) if ranks else None
    for start in range(0, points, _TILE_POINTS):
        part = slice(start, start + _TILE_POINTS)
        rows = values[:, part].to(dtype) - truth[part].to(dtype)
        _fill(rows, pairs, out[:, part], None if counts is None else counts[:, part])
    return out, counts


def _fill(rows: Tensor, pairs: tuple[tuple[int, int], ...], out: Tensor, counts: Tensor | None) -> None:
    """Write the statistics of one tile; `rows` (M, n) are sorted in place."""
    members = len(rows)
    skill, pair_sum, error, variance = out
    skill.copy_(rows.abs().mean(dim=0))
    error.copy_(rows.mean(dim=0))
    if members > 1:
        variance.copy_((rows - error).square_().sum(dim=0) / (members - 1))
    else:
        variance.fill_(float("nan"))
    if counts is not None:
        counts[0] = (rows < 0).sum(dim=0)
        counts[1] = (rows == 0).sum(dim=0)
    spare = torch.empty_like(rows[0])
    order = list(rows)
    for i, j in pairs:
        low, high = order[i], order[j]
        torch.minimum(low, high, out=spare)
        torch.maximum(low, high, out=high)
        order[i], spare = spare, low
    pair_sum.zero_()
    for k in range(members // 2):
        pair_sum.add_(order[-1 - k] - order[k], alpha=members - 1 - 2 * k)
