"""Scores made of scores: sums, and scores of averages over patches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ._protocols import EnsembleScore, Total, alone
from ._scores import CRPS, EnergyScore, check_patch, cut, weights_of
from ._scores_pairs import DifferenceCRPS, EdgeCRPS, VariogramScore
from ._scores_spectral import SpectralCRPS
from ._settings import Settings
from ._weights import blank, ratio


@dataclass(frozen=True, kw_only=True)
class PatchMeanScore(Settings):
    """A score of weighted means over patches; one term for each scale makes a multi-scale score.

    Proper if `score_of_means` is: means are linear in the field. A mean is over the points that count, of
    ensemble and truth alike, and weighs as much as its points together. The inner score sees
    (B, M, C, patches).

    Args:
        patch: size in the trailing dimensions; patches tile the grid from its start, those at the end may be
            smaller. On a grid that is spread over ranks, patches lie within a rank.
        score_of_means: default `CRPS`.

    Multi-scale CRPS: SumScore(terms=(CRPS(), PatchMeanScore(patch=(4, 4)), PatchMeanScore(patch=(16, 16))),
    factors=(1.0, 1.0, 1.0)).
    """

    patch: tuple[int, ...]
    score_of_means: EnsembleScore = field(default_factory=CRPS)

    @classmethod
    def _parts(cls) -> tuple[type[Any], ...]:
        return SCORES

    def __post_init__(self) -> None:
        check_patch(self.patch)

    def score(
        self, pred: Tensor, target: Tensor, weight: Tensor | None, /, *, total: Total = alone
    ) -> Tensor:
        """(B, C), see `EnsembleScore.score`."""
        w = weights_of(pred, target, weight)
        mass = cut(w, self.patch).sum(-1)
        mean = self._means(blank(target, w) * w, mass)
        d = blank(pred - target.unsqueeze(1), w.unsqueeze(1)) * w.unsqueeze(1)
        away = self._means(d.flatten(0, 1), mass.repeat_interleave(d.shape[1], 0)).unflatten(0, d.shape[:2])
        return self.score_of_means.score(mean.unsqueeze(1) + away, mean, mass, total=total)

    def _means(self, x: Tensor, mass: Tensor) -> Tensor:
        return ratio(cut(x, self.patch).sum(-1), mass)


@dataclass(frozen=True, kw_only=True)
class SumScore(Settings):
    """Weighted sum of scores, e.g. SumScore(terms=(CRPS(), DifferenceCRPS()), factors=(1.0, 0.2))."""

    terms: tuple[EnsembleScore, ...]
    factors: tuple[float, ...]

    @classmethod
    def _parts(cls) -> tuple[type[Any], ...]:
        return SCORES

    def __post_init__(self) -> None:
        if not self.terms or len(self.terms) != len(self.factors) or min(self.factors) < 0:
            raise ValueError(
                f"expected one non-negative factor per term, got {len(self.terms)} terms and {self.factors}"
            )

    def score(
        self, pred: Tensor, target: Tensor, weight: Tensor | None, /, *, total: Total = alone
    ) -> Tensor:
        """(B, C), see `EnsembleScore.score`."""
        parts = [
            factor * term.score(pred, target, weight, total=total)
            for factor, term in zip(self.factors, self.terms, strict=True)
        ]
        return torch.stack(parts).sum(0)


SCORES: tuple[type[Any], ...] = (
    CRPS,
    DifferenceCRPS,
    EdgeCRPS,
    EnergyScore,
    PatchMeanScore,
    SpectralCRPS,
    SumScore,
    VariogramScore,
)
