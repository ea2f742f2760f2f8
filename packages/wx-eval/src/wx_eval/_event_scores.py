"""Scores of events.

One statistic, `EventOutcomes`, holds how often k of M members forecast the event and whether it happened. The
ROC curve, relative economic value, the reliability diagram and the decompositions of the Brier score are
functions of its means, so all of them come from sums per forecast and can be tested by `compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ._events import (
    Contingency,
    EventOutcomes,
    EventSquareError,
    EventVariance,
    RankedSquareError,
    RankedVariance,
    Threshold,
    ThresholdLike,
    as_threshold,
    as_thresholds,
    check_event,
    threshold_text,
)
from ._grid import Array, Vector
from ._metrics import Goal, Metric, one_of
from ._statistics import AnyStatistic

COST_LOSS = tuple(np.geomspace(0.005, 1, 51)[:-1].tolist())
"""Ratios of cost to loss of WeatherBench-X."""


@dataclass(frozen=True)
class EventMetric(Metric):
    """A score of the event that a channel is beyond a threshold.

    Args:
        threshold: a number in the unit of the channel; the name of a climatological field at the valid time,
            such as "quantile(0.9)", for a threshold at each point; or numbers by channel, where channels that
            are not named have no score.
        event: ">", ">=", "<" or "<=". Peers differ: WeatherBench 2 takes ">" for the Brier score and "<" for
            the RPS, `scores` ">=", properscoring "<=".
        channels: those that are scored, by default all; no part of the name.

    Raises:
        ValueError: for anything else.
    """

    unit: ClassVar[str] = "1"
    threshold: ThresholdLike
    event: str = ">"
    channels: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.channels, str):
            raise ValueError(f"channels must be a tuple of names, got {self.channels!r}")
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "threshold", as_threshold(self.threshold))
        check_event(self.event)

    @property
    def key(self) -> tuple[Threshold, str]:
        """Threshold and event, the first arguments of the statistics."""
        return as_threshold(self.threshold), self.event

    @property
    def label(self) -> str:
        """The event as in the name."""
        return self.event + threshold_text(self.key[0])

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """What most scores of an event are made of: how often k members forecast it, and it happened."""
        return (EventOutcomes(*self.key, channels=self.channels),)


@dataclass(frozen=True)
class Brier(EventMetric):
    """Mean of (p - o)^2; "fair" less p (1 - p) / (M - 1), whose expectation does not depend on M.

    Ferro (2014, Q. J. R. Meteorol. Soc. 140, 1917).
    """

    kind: str = "fair"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("kind", self.kind, ("fair", "biased"))

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"brier_{self.kind}({self.label})"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        error = EventSquareError(*self.key, channels=self.channels)
        if self.kind == "biased":
            return (error,)
        return (error, EventVariance(*self.key, channels=self.channels))

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        first, *rest = (means[s.id] for s in self.statistics)
        return first - rest[0] if rest else first


@dataclass(frozen=True)
class RPS(Metric):
    """Ranked probability score: the sum, not the mean, of the Brier scores of several thresholds.

    Args:
        thresholds: that increase; numbers, names of climatological fields, or a sequence for each channel.
        event: see `EventMetric`.
        kind: "fair" or "biased", see `Brier`.

    Raises:
        ValueError: for anything else.
    """

    unit: ClassVar[str] = "1"
    thresholds: Any
    event: str = "<"
    kind: str = "fair"

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", as_thresholds(self.thresholds))
        check_event(self.event)
        one_of("kind", self.kind, ("fair", "biased"))

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"rps_{self.kind}({self.event}[{' '.join(map(threshold_text, self.thresholds))}])"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        error = RankedSquareError(self.thresholds, self.event)
        return (error,) if self.kind == "biased" else (error, RankedVariance(self.thresholds, self.event))

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        first, *rest = (means[s.id] for s in self.statistics)
        return first - rest[0] if rest else first


@dataclass(frozen=True)
class EventFrequencies(EventMetric):
    """The numbers behind `roc_curve`, `value_curve` and `reliability_diagram`, K = 2 (M + 1).

    See `EventOutcomes` for their order. Give it to `evaluate` to have those curves.
    """

    goal: ClassVar[Goal] = "none"
    vector: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"event_frequencies({self.label})"


def outcomes(mean: Array) -> tuple[Array, Array, Vector]:
    """Weights without and with the event, and forecast probability, (..., M + 1) each.

    Numbers beyond the ensemble size of a row are 0 and have a probability above 1; a row without any stays
    NaN.

    Args:
        mean: of `EventOutcomes`, (..., 2 (M + 1)); shorter rows end in NaN.
    """
    absent = np.isnan(mean)
    filled = np.where(absent & ~absent.all(axis=-1, keepdims=True), 0.0, mean)
    table = filled.reshape(*filled.shape[:-1], -1, 2)
    bins = table.shape[-2]
    members = (~absent[..., ::2]).sum(axis=-1, keepdims=True) - 1
    return table[..., 0], table[..., 1], np.arange(bins) / np.maximum(members, 1)


@dataclass(frozen=True)
class AUC(EventMetric):
    """Area under the ROC curve of all M + 1 probabilities, by trapezoids: ties count one half."""

    goal: ClassVar[Goal] = "high"

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"auc({self.label})"

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        quiet, event, _ = outcomes(means[self.statistics[0].id])
        below = np.cumsum(quiet, axis=-1) - quiet / 2
        return np.asarray((event * below).sum(axis=-1) / (event.sum(axis=-1) * quiet.sum(axis=-1)))


def cutoffs(quiet: Array, event: Array) -> tuple[Array, Array]:
    """False alarms and hits if one acts when at least j members forecast the event, j = 0..M + 1."""
    return _at_least(quiet), _at_least(event)


def _at_least(weight: Array) -> Array:
    sums = np.cumsum(weight[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([sums, np.zeros_like(sums[..., :1])], axis=-1)


def economic_value(false_alarms: Array, hits: Array, base_rate: Array, cost_loss: float | Vector) -> Array:
    """(E_climate - E) / (E_climate - E_perfect) with E = C/L (hits + false alarms) + misses.

    NaN where the event never or always happens: the climatology is then perfect, but for rounding.
    """
    expense = cost_loss * (hits + false_alarms) + (base_rate - hits)
    climate = np.minimum(cost_loss, base_rate)
    gain = climate - cost_loss * base_rate
    return np.asarray((climate - expense) / np.where(np.real(gain) > 1e-12, gain, np.nan))


@dataclass(frozen=True)
class REV(EventMetric):
    """Relative economic value to a user who pays C to be safe from a loss L (Richardson 2000).

    Args:
        threshold, event: see `EventMetric`.
        cost_loss: C / L, between 0 and 1.
        decision: the user acts when p >= this number; "cost_loss": when p >= C / L; "best": at the cutoff of
            largest value in the very sample that is scored, never and always included (potential value, as
            WeatherBench-X has it). "best" is optimistic, the more so the smaller the sample:
            `value_curve(..., chosen_on=...)` takes cutoffs from other records.

    Raises:
        ValueError: for anything else.
    """

    goal: ClassVar[Goal] = "high"
    cost_loss: float = 0.1
    decision: float | str = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cost_loss < 1:
            raise ValueError(f"cost_loss must lie between 0 and 1, got {self.cost_loss!r}")
        if self.decision not in ("best", "cost_loss") and not isinstance(self.decision, Real):
            raise ValueError(f'decision must be "best", "cost_loss" or a number, got {self.decision!r}')

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"rev({self.label}, cost_loss={self.cost_loss!r}, decision={self.decision})"

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        quiet, event, p = outcomes(means[self.statistics[0].id])
        rate = event.sum(axis=-1)
        if self.decision == "best":
            values = economic_value(*cutoffs(quiet, event), rate[..., None], self.cost_loss)
            return np.asarray(values.max(axis=-1))
        act = p >= (self.cost_loss if self.decision == "cost_loss" else float(self.decision))
        alarms, hits = (np.where(act, weight, 0).sum(axis=-1) for weight in (quiet, event))
        return economic_value(alarms, hits, rate, self.cost_loss)


class _Table(NamedTuple):
    """Relative frequencies of hits, false alarms, misses and correct rejections."""

    hit: Array
    alarm: Array
    miss: Array
    none: Array

    @property
    def pod(self) -> Array:
        return np.asarray(self.hit / (self.hit + self.miss))

    @property
    def pofd(self) -> Array:
        return np.asarray(self.alarm / (self.alarm + self.none))


def _ets(t: _Table) -> Array:
    chance = (t.hit + t.alarm) * (t.hit + t.miss) / (t.hit + t.alarm + t.miss + t.none)
    return np.asarray((t.hit - chance) / (t.hit + t.alarm + t.miss - chance))


def _heidke(t: _Table) -> Array:
    joint = (t.hit + t.miss) * (t.miss + t.none) + (t.hit + t.alarm) * (t.alarm + t.none)
    return np.asarray(2 * (t.hit * t.none - t.alarm * t.miss) / joint)


def _sedi(t: _Table) -> Array:
    f, h = np.log(t.pofd), np.log(t.pod)
    no_f, no_h = np.log(1 - t.pofd), np.log(1 - t.pod)
    return np.asarray((f - h - no_f + no_h) / (f + h + no_f + no_h))


_CATEGORICAL: dict[str, tuple[Goal, Callable[[_Table], Array]]] = {
    "pod": ("high", lambda t: t.pod),
    "far": ("low", lambda t: t.alarm / (t.hit + t.alarm)),
    "pofd": ("low", lambda t: t.pofd),
    "csi": ("high", lambda t: t.hit / (t.hit + t.alarm + t.miss)),
    "ets": ("high", _ets),
    "frequency_bias": ("one", lambda t: (t.hit + t.alarm) / (t.hit + t.miss)),
    "peirce": ("high", lambda t: t.pod - t.pofd),
    "heidke": ("high", _heidke),
    "sedi": ("high", _sedi),
}


@dataclass(frozen=True)
class Categorical(EventMetric):
    """Score of yes or no forecasts from the contingency table of the whole period.

    Args:
        threshold, event: see `EventMetric`.
        score: "pod" (probability of detection), "far" (false alarm ratio), "pofd" (false alarm rate), "csi"
            (threat score), "ets" (equitable threat or Gilbert skill score), "frequency_bias", "peirce",
            "heidke", "sedi" (symmetric extremal dependence index, Ferro and Stephenson 2011).
        by: see `Contingency`.

    Raises:
        ValueError: for anything else.
    """

    score: str = "ets"
    by: float | str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("score", self.score, tuple(_CATEGORICAL))
        if self.by != "mean" and not (isinstance(self.by, Real) and 0 < self.by <= 1):
            raise ValueError(f'by must be "mean" or a fraction of members in (0, 1], got {self.by!r}')

    @property
    def goal(self) -> Goal:
        """See `Metric`."""
        return _CATEGORICAL[self.score][0]

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"{self.score}({self.label}, by={self.by})"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (Contingency(*self.key, self.by, channels=self.channels),)

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        table = _Table(*np.moveaxis(means[self.statistics[0].id], -1, 0))
        return np.asarray(_CATEGORICAL[self.score][1](table))
