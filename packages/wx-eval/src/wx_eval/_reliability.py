"""Reliability of probabilities and ranks: decompositions of the Brier score, flatness of rank histograms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ._event_scores import EventMetric, outcomes
from ._grid import Array
from ._metrics import Goal, Metric, one_of
from ._statistics import AnyStatistic, RankCounts

_BINNED = ("reliability", "resolution", "within")
_GOALS: dict[str, Goal] = {
    "reliability": "low",
    "resolution": "high",
    "uncertainty": "none",
    "within": "none",
    "miscalibration": "low",
    "discrimination": "high",
}


def isotonic(weight: Array, total: Array) -> Array:
    """Non-decreasing fit to the means total / weight, by pooling adjacent violators, (..., K).

    Bins without weight take the value of the bin before them, or that of the first one with weight.
    """
    weight, total = np.broadcast_arrays(weight, total)
    out = np.full(weight.shape, np.nan, np.result_type(weight, total, np.float64))
    for where in np.ndindex(weight.shape[:-1]):
        filled = np.flatnonzero(weight[where].real > 0)
        if filled.size:
            fit = _pool(weight[where][filled], total[where][filled])
            out[where] = fit[
                np.clip(np.searchsorted(filled, np.arange(weight.shape[-1]), "right") - 1, 0, None)
            ]
    return out


def _pool(weight: Array, total: Array) -> Array:
    blocks: list[tuple[complex, complex, int]] = []
    for w, t in zip(weight.tolist(), total.tolist(), strict=True):
        blocks.append((w, t, 1))
        while len(blocks) > 1 and _violates(blocks[-2], blocks[-1]):
            (w1, t1, n1), (w2, t2, n2) = blocks.pop(), blocks.pop()
            blocks.append((w1 + w2, t1 + t2, n1 + n2))
    return np.repeat([t / w for w, t, _ in blocks], [n for _, _, n in blocks])


def _violates(left: tuple[complex, complex, int], right: tuple[complex, complex, int]) -> bool:
    return left[1].real * right[0].real >= right[1].real * left[0].real


@dataclass(frozen=True)
class BrierTerm(EventMetric):
    """One term of a decomposition of the biased Brier score.

    With forecasts in bins of weight f_b, mean probability p_b and event frequency o_b, and base rate s
    (Murphy 1973, with the terms within bins of Stephenson et al. 2008, Weather and Forecasting 23, 752):

        Brier = sum f_b (p_b - o_b)^2 - sum f_b (o_b - s)^2 + s (1 - s) + within
              =     reliability       -     resolution      + uncertainty + within.

    With the frequencies c_b recalibrated by isotonic regression instead of bins (CORP, Dimitriadis, Gneiting
    and Jordan 2021, PNAS 118):

        Brier = [Brier - Brier(c)] - [s (1 - s) - Brier(c)] + s (1 - s)
              =   miscalibration   -    discrimination      + uncertainty.

    All terms are of the period: they are no means of terms of single start dates.

    Args:
        threshold, event: see `EventMetric`.
        term: "reliability", "resolution", "uncertainty", "within", "miscalibration" or "discrimination".
        bins: 0 gives each of the M + 1 probabilities a bin, where "within" is 0 to rounding; a number n
            divides [0, 1] into n equal bins, closed on the left and the last one on both sides.

    Raises:
        ValueError: for anything else.
    """

    term: str = "reliability"
    bins: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("term", self.term, tuple(_GOALS))
        if self.bins < 0 or (self.bins and self.term not in _BINNED):
            raise ValueError(f"bins must be 0 or, for one of {_BINNED}, positive, got {self.bins}")

    @property
    def goal(self) -> Goal:
        """See `Metric.goal`."""
        return _GOALS[self.term]

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"brier_{self.term}({self.label}{f', bins={self.bins}' if self.bins else ''})"

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        quiet, event, p = outcomes(means[self.statistics[0].id])
        rate = event.sum(axis=-1)
        if self.term == "uncertainty":
            return np.asarray(rate * (1 - rate))
        if self.term in _BINNED:
            return _binned(self.term, quiet, event, p, self.bins)
        recalibrated = _brier(quiet, event, isotonic(quiet + event, event))
        reference = _brier(quiet, event, p) if self.term == "miscalibration" else rate * (1 - rate)
        return np.asarray(reference - recalibrated)


def _brier(quiet: Array, event: Array, p: Array) -> Array:
    return np.asarray((quiet * p**2 + event * (1 - p) ** 2).sum(axis=-1))


def _binned(term: str, quiet: Array, event: Array, p: Array, bins: int) -> Array:
    weight = quiet + event
    f, fp, e = (_in_bins(x, p, bins) for x in (weight, weight * p, event))
    divisor = np.where(f.real > 0, f, 1)
    if term == "reliability":
        return np.asarray(((fp - e) ** 2 / divisor).sum(axis=-1))
    if term == "resolution":
        rate = event.sum(axis=-1, keepdims=True)
        return np.asarray(((e - f * rate) ** 2 / divisor).sum(axis=-1))
    variance = (weight * p**2).sum(axis=-1) - (fp**2 / divisor).sum(axis=-1)
    covariance = (event * p).sum(axis=-1) - (fp * e / divisor).sum(axis=-1)
    return np.asarray(variance - 2 * covariance)


def _in_bins(x: Array, p: Array, bins: int) -> Array:
    """Sums over the bins, (..., bins)."""
    if not bins:
        return x
    # Probabilities are fractions k / M: rounding must not move one over an edge.
    group = np.minimum(np.floor(p * bins * (1 + 1e-12)), bins - 1)
    return np.stack([np.where(group == b, x, 0 * x).sum(axis=-1) for b in range(bins)], axis=-1)


@dataclass(frozen=True)
class RankUniformity(Metric):
    """Distance of a rank histogram f_k from the flat one; 0 is flat, sampling alone makes it positive.

    "index": sum_k |f_k - 1 / (M + 1)| (reliability index, Delle Monache et al. 2006). "chi_square":
    (M + 1) sum_k (f_k - 1 / (M + 1))^2, the chi-square statistic per independent observation.

    ties: see `RankCounts`.
    """

    kind: str = "index"
    ties: str = "share"
    unit: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("index", "chi_square"))
        RankCounts(self.ties)

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"rank_{self.kind}" + ("" if self.ties == "share" else f"(ties={self.ties})")

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (RankCounts(self.ties),)

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        frequency = means[self.statistics[0].id]
        there = ~np.isnan(frequency)
        ranks = there.sum(axis=-1, keepdims=True)
        away = np.where(there, frequency - 1 / np.maximum(ranks, 1), 0)
        if self.kind == "index":
            value = np.where(away.real < 0, -away, away).sum(axis=-1)
        else:
            value = ranks[..., 0] * (away**2).sum(axis=-1)
        return np.asarray(np.where(ranks[..., 0] > 0, value, np.nan))
