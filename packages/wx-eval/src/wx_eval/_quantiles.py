"""Quantiles and intervals of an ensemble: pinball loss, interval score, weighted interval score.

All depend on the members only through their differences from the truth, which are sorted once per case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ._case import Case
from ._grid import Array
from ._metrics import Metric
from ._statistics import AnyStatistic, Statistic

# (alpha, beta) of the plotting positions of Hyndman and Fan (1996, American Statistician 50, 361).
_POSITIONS = {
    "linear": (1.0, 1.0),
    "weibull": (0.0, 0.0),
    "hazen": (0.5, 0.5),
    "median_unbiased": (1 / 3, 1 / 3),
}
METHODS = ("inverted_cdf", *_POSITIONS)


def sorted_errors(case: Case) -> Array:
    """Members minus truth in increasing order, (M, C, N), in float32 or float64."""

    def sort() -> Array:
        dtype = np.result_type(case.values.dtype, case.truth.dtype, np.float32)
        with np.errstate(invalid="ignore"):
            return np.sort(np.subtract(case.values, case.truth, dtype=dtype), axis=0)

    errors: Array = case.shared("sorted_errors", sort)
    return errors


def quantile_error(case: Case, probability: float, method: str) -> Array:
    """Quantile of the ensemble minus truth (C, N) in float64; methods as in `numpy.quantile`."""
    rows = sorted_errors(case)
    last = len(rows) - 1
    if method == "inverted_cdf":
        k = int(np.clip(np.ceil(len(rows) * probability - 1e-12) - 1, 0, last))
        return np.asarray(rows[k], np.float64)
    a, b = _POSITIONS[method]
    place = float(np.clip(len(rows) * probability + a + probability * (1 - a - b) - 1, 0, last))
    low = min(int(place), max(last - 1, 0))
    high = rows[min(low + 1, last)].astype(np.float64)
    return np.asarray(rows[low] + (place - low) * (high - rows[low]))


def _check(method: str, *levels: float) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"probabilities and levels must lie between 0 and 1, got {list(levels)}")


@dataclass(frozen=True)
class Pinball(Statistic):
    """(1{y < q} - probability) (q - y) of one quantile q of the ensemble."""

    label: ClassVar[str] = "pinball"
    probability: float = 0.5
    method: str = "linear"

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        error = quantile_error(case, self.probability, self.method)
        return np.asarray(((error > 0) - self.probability) * error)


@dataclass(frozen=True)
class IntervalLoss(Statistic):
    """Interval score of the central interval of one level."""

    label: ClassVar[str] = "interval"
    level: float = 0.9
    method: str = "linear"

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return _interval(case, self.level, self.method)


def _interval(case: Case, level: float, method: str) -> Array:
    tail = (1 - level) / 2
    low, high = (quantile_error(case, p, method) for p in (tail, 1 - tail))
    return np.asarray(high - low + (np.maximum(low, 0) + np.maximum(-high, 0)) / tail)


@dataclass(frozen=True)
class WeightedIntervalLoss(Statistic):
    """Weighted sum of the error of the median and of interval scores."""

    label: ClassVar[str] = "weighted_interval"
    levels: tuple[float, ...] = (0.5, 0.9)
    method: str = "linear"

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        total = np.abs(quantile_error(case, 0.5, self.method)) / 2
        for level in self.levels:
            total += (1 - level) / 2 * _interval(case, level, self.method)
        return np.asarray(total / (len(self.levels) + 0.5))


@dataclass(frozen=True)
class QuantileScore(Metric):
    """Pinball loss of a quantile of the ensemble, (1{y < q} - p) (q - y); for the median half the error.

    Args:
        probability: p, between 0 and 1.
        method: of the quantile of M members, named as in `numpy.quantile`: "linear" (its default, Hyndman and
            Fan type 7), "weibull", "hazen", "median_unbiased" or "inverted_cdf". Unlike the fair CRPS, the
            score depends on it and on M.

    Raises:
        ValueError: for anything else.
    """

    probability: float = 0.5
    method: str = "linear"

    def __post_init__(self) -> None:
        _check(self.method, self.probability)

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"quantile_score({self.probability!r}, method={self.method})"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (Pinball(self.probability, self.method),)


@dataclass(frozen=True)
class IntervalScore(Metric):
    """Width of a central interval [l, u], plus 2 / alpha times the distance of a truth outside it.

    alpha = 1 - level; Gneiting and Raftery (2007, JASA 102, 359).

    Args:
        level: nominal coverage, between 0 and 1; l and u are the quantiles at alpha / 2 and 1 - alpha / 2.
        method: see `QuantileScore`.

    Raises:
        ValueError: for anything else.
    """

    level: float = 0.9
    method: str = "linear"

    def __post_init__(self) -> None:
        _check(self.method, self.level)

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"interval_score({self.level!r}, method={self.method})"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (IntervalLoss(self.level, self.method),)


@dataclass(frozen=True)
class WIS(Metric):
    """Weighted interval score (Bracher et al. 2021, PLOS Comput. Biol. 17, e1008618).

    WIS = [|y - median| / 2 + sum_k alpha_k / 2 IS_k] / (K + 1/2) over K central intervals; with
    many of them it tends to the CRPS.

    Args:
        levels: nominal coverages 1 - alpha_k that increase, between 0 and 1.
        method: see `QuantileScore`.

    Raises:
        ValueError: for anything else.
    """

    levels: Any = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98)
    method: str = "linear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(float(level) for level in self.levels))
        _check(self.method, *self.levels)
        if sorted(set(self.levels)) != list(self.levels):
            raise ValueError(f"levels must increase, got {self.levels}")

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"wis([{' '.join(map(repr, self.levels))}], method={self.method})"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (WeightedIntervalLoss(self.levels, self.method),)
