"""Ensemble scores of points and of vectors: CRPS and energy score.

Every score maps (B, M, C, *S) against (B, C, *S) to (B, C), weighted means over space, lower is better. All
are proper: with alpha = 1 no law has a lower expectation than the true one. A score of single points (`CRPS`)
is lowest for every law with the right marginals and leaves their joint law free; `EnergyScore` fixes it,
`DifferenceCRPS`, `EdgeCRPS` and `VariogramScore` see the law of pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._kernel import blocks, pair_factor, point_scores
from ._protocols import Total, alone
from ._settings import Settings
from ._weights import blank, point_weights, ratio, space_sum


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless 0 <= alpha <= 1."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1] (0 plain, 1 fair), got {alpha}")


def weights_of(pred: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Weights (B, C, *S), zero where the target is NaN.

    Raises:
        ValueError: shapes do not fit.
    """
    if pred.ndim < 3 or pred.shape[:1] + pred.shape[2:] != target.shape:
        got = f"{tuple(pred.shape)} and {tuple(target.shape)}"
        raise ValueError(f"expected pred (B, M, C, *S) and target (B, C, *S), got {got}")
    return point_weights(target, weight)


def weighted_mean(values: Tensor, w: Tensor, total: Total) -> Tensor:
    """(B, C, *S) -> (B, C): mean with weights w, 0 where all are zero."""
    numerator, denominator = total(torch.stack((space_sum(values * w), space_sum(w))))
    return ratio(numerator, denominator)


def cut(x: Tensor, patch: tuple[int, ...] | None) -> Tensor:
    """(A, C, *S) -> (A, C, patches, points of a patch); None is one patch.

    Patches tile the trailing dimensions from their start; those at the end are filled up with zeros.
    """
    if patch is None:
        return x.flatten(2).unsqueeze(2) if x.ndim > 2 else x[..., None, None]
    n = len(patch)
    if x.ndim - 2 < n:
        raise ValueError(f"patch = {patch} has {n} dimensions, space has {x.ndim - 2}")
    sizes = x.shape[-n:]
    fill = [(-size) % step for size, step in zip(sizes, patch, strict=True)]
    if any(fill):
        x = torch.nn.functional.pad(x, [v for extra in reversed(fill) for v in (0, extra)])
    lead = x.ndim - n
    for i, step in enumerate(patch):
        x = x.unflatten(lead + 2 * i, (-1, step))
    counts = [lead + 2 * i for i in range(n)]
    x = x.permute(*range(lead), *counts, *[i + 1 for i in counts])
    return x.flatten(-n).flatten(2, -2)


def check_patch(patch: tuple[int, ...] | None) -> None:
    """Raise ValueError unless patch is None or holds positive sizes."""
    if patch is not None and (not patch or min(patch) < 1):
        raise ValueError(f"patch must be None or positive sizes, got {patch}")


@dataclass(frozen=True, kw_only=True)
class CRPS(Settings):
    """Almost-fair CRPS of every point, see `crps`."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    def score(
        self, pred: Tensor, target: Tensor, weight: Tensor | None, /, *, total: Total = alone
    ) -> Tensor:
        """(B, C), see `EnsembleScore.score`."""
        w = weights_of(pred, target, weight)
        return weighted_mean(point_scores(pred, target, w > 0, self.alpha), w, total)


@dataclass(frozen=True, kw_only=True)
class EnergyScore(Settings):
    """Almost-fair energy score: `crps` with |v| replaced by a weighted root-mean-square norm.

    ES = mean_i ||x_i - y|| - [a / (M (M - 1)) + (1 - a) / M^2] sum_{i<j} ||x_i - x_j||,
    ||v||^2 = sum(w v^2) / sum(w).

    Strictly proper for the joint law of everything inside one norm, though in many dimensions it tells laws
    of the same variances apart only weakly (Pinson and Tastu 2013). Time O(M^2), memory O(M) fields.

    Args:
        alpha: as in `crps`.
        over: "all" takes the norm over channels and space (the result is equal for all channels), "space"
            over the space of each channel.
        patch: take the norm within patches of this size in the trailing dimensions, and the mean of the
            patches by their weight; (1, 1) with over = "all" scores the vector of channels at each point. On
            a grid that is spread over ranks, patches lie within a rank.

    References: Gneiting and Raftery 2007, section 4.2.
    """

    alpha: float = 1.0
    over: str = "all"
    patch: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_patch(self.patch)
        if self.over not in ("all", "space"):
            raise ValueError(f"over must be 'all' or 'space', got {self.over!r}")

    def score(
        self, pred: Tensor, target: Tensor, weight: Tensor | None, /, *, total: Total = alone
    ) -> Tensor:
        """(B, C), see `EnsembleScore.score`."""
        factor = pair_factor(pred.shape[1], self.alpha)
        w = weights_of(pred, target, weight)
        d = blank(pred - target.unsqueeze(1), w.unsqueeze(1)) * w.sqrt().unsqueeze(1)
        within, between = (total, alone) if self.patch is None else (alone, total)
        vectors, count = self._vectors(d), within(self._vectors(w.unsqueeze(1)).sum((-1, -2)))
        skill = _norm(within(vectors.square().sum(-1)), count.unsqueeze(-1)).mean(-1)
        spread = _norm(within(_square_distances(vectors)), count[..., None, None])
        score = skill - 0.5 * factor * spread.sum((-1, -2))
        return weighted_mean(score, count, between).expand(target.shape[:2])

    def _vectors(self, x: Tensor) -> Tensor:
        """(B, M, C, *S) -> (B, C or 1, patches, M, points of one norm)."""
        v: Tensor = cut(x.flatten(0, 1), self.patch).unflatten(0, x.shape[:2]).permute(0, 2, 3, 1, 4)
        return v if self.over == "space" else v.movedim(1, -2).flatten(-2).unsqueeze(1)


def _norm(square: Tensor, count: Tensor) -> Tensor:
    """sqrt(square / count)."""
    mean = ratio(square, count)
    zero = mean == 0  # the square root has no gradient at 0, where members that coincide are
    return torch.where(zero, 0.0, torch.where(zero, 1.0, mean).sqrt())


def _square_distances(v: Tensor) -> Tensor:
    """(..., M, K) -> (..., M, M)."""
    flat = v.reshape(math.prod(v.shape[:-2]), *v.shape[-2:])
    squares: Tensor = _SquareDistances.apply(flat)  # type: ignore[no-untyped-call]
    return squares.reshape(*v.shape[:-1], v.shape[-2])


class _SquareDistances(torch.autograd.Function):
    """(N, M, K) -> (N, M, M), from differences: products would lose members that are close.

    Not cdist, which is slow and adds all squares in one chain: an error of 2e-4 for a million float32 points.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        members = v.shape[1]
        squares = torch.zeros(v.shape[0], members, members, dtype=torch.float64, device=v.device)
        for n, k in blocks(v):
            x = v[n, :, k]
            for i in range(members - 1):
                squares[n, i, i + 1 :] += (x[:, i + 1 :] - x[:, i : i + 1]).square_().sum(-1)
        return (squares + squares.transpose(1, 2)).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        pull = grad + grad.transpose(1, 2)
        # sum_j pull_ij (v_i - v_j); less the mean, so that rounding is that of the spread and not of v.
        laplacian: Tensor = torch.diag_embed(pull.sum(-1)) - pull
        by_v: Tensor = torch.bmm(2.0 * laplacian, v - v.mean(1, keepdim=True))
        return by_v
