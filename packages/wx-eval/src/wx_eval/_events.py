"""Events, a channel beyond a threshold: what is counted at each point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ._case import Case
from ._grid import Array, Vector
from ._statistics import Statistic

Pairs = tuple[tuple[str, float], ...]
Threshold = float | str | Pairs
"""A number, the name of a climatological field such as "quantile(0.9)", or a number by channel."""
ThresholdLike = float | str | Mapping[str, float] | Pairs

COMPARE: dict[str, Callable[..., Any]] = {
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
}


def as_threshold(threshold: ThresholdLike) -> Threshold:
    """The hashable form of a threshold.

    Raises:
        ValueError: for anything but a finite number, a name or numbers by channel.
    """
    if isinstance(threshold, str) and threshold:
        return threshold
    if isinstance(threshold, Real) and not isinstance(threshold, bool) and np.isfinite(float(threshold)):
        return float(threshold)
    if isinstance(threshold, Mapping) and threshold:
        threshold = tuple(threshold.items())
    if isinstance(threshold, tuple | list) and threshold and all(map(_is_pair, threshold)):
        return tuple(sorted((channel, float(level)) for channel, level in threshold))
    raise ValueError(
        'threshold must be a finite number, the name of a climatological field such as "quantile(0.9)", or '
        f"numbers by channel, got {threshold!r}"
    )


def _is_pair(item: Any) -> bool:
    return (
        isinstance(item, tuple | list)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], Real)
        and bool(np.isfinite(float(item[1])))
    )


def as_thresholds(thresholds: Any) -> tuple[Threshold, ...]:
    """One threshold after the other, from a sequence or from sequences of equal length by channel.

    Raises:
        ValueError: when there is none, or numbers do not increase.
    """
    if isinstance(thresholds, Mapping):
        lengths = {len(levels) for levels in thresholds.values()}
        if len(lengths) != 1:
            raise ValueError(f"every channel needs the same number of thresholds, got {dict(thresholds)}")
        thresholds = [{c: levels[k] for c, levels in thresholds.items()} for k in range(lengths.pop())]
    found = tuple(as_threshold(t) for t in thresholds)
    numbers = np.array([_numbers(t) for t in found if not isinstance(t, str)])
    if not found or (numbers.size and (np.diff(numbers, axis=0) <= 0).any()):
        raise ValueError(f"thresholds must be one or more that increase, got {thresholds!r}")
    return found


def _numbers(threshold: float | Pairs) -> list[float]:
    return [level for _, level in threshold] if isinstance(threshold, tuple) else [threshold]


def climatological(*thresholds: Threshold | None) -> tuple[str, ...]:
    """Names of climatological fields among thresholds."""
    return tuple(t for t in thresholds if isinstance(t, str))


def threshold_text(threshold: Threshold) -> str:
    """As it appears in the name of a metric."""
    if isinstance(threshold, tuple):
        return "[" + " ".join(f"{channel}={level!r}" for channel, level in threshold) + "]"
    return threshold if isinstance(threshold, str) else repr(threshold)


def check_event(event: str) -> None:
    if event not in COMPARE:
        raise ValueError(f"event must be one of {tuple(COMPARE)}, got {event!r}")


def as_kept(level: npt.ArrayLike, dtype: np.dtype[Any]) -> Array:
    """A threshold in the precision of data: a field of float32 that holds 0.1 is at the threshold 0.1."""
    return np.asarray(level, dtype if dtype.kind == "f" else np.result_type(dtype, np.float32))


def threshold_field(case: Case, threshold: Threshold) -> Array:
    """(C, N), (C, 1) or (1, 1) in float64: NaN where there is no threshold."""
    if isinstance(threshold, str):
        field = case.reference(threshold)
    elif isinstance(threshold, tuple):
        levels = dict(threshold)
        field = np.array([[levels.get(channel, np.nan)] for channel in case.channels])
    else:
        field = np.full((1, 1), threshold)
    return field


def has_threshold(case: Case, threshold: Threshold) -> npt.NDArray[np.bool_] | None:
    """(C, N) points with a threshold; None for all."""
    if not isinstance(threshold, str | tuple):
        return None
    field = threshold_field(case, threshold)
    return np.broadcast_to(~np.isnan(field), case.truth.shape)


def event_counts(case: Case, threshold: Threshold, event: str) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Number of members that forecast the event, and whether it happened, both (C, N)."""

    def count() -> tuple[Array, npt.NDArray[np.bool_]]:
        field, beyond = threshold_field(case, threshold), COMPARE[event]
        level = as_kept(field, case.values.dtype)
        counts = np.zeros(case.truth.shape, np.uint8 if case.members < 256 else np.uint16)
        flag = np.empty(case.truth.shape, np.bool_)
        for member in case.values:
            beyond(member, level, out=flag)
            np.add(counts, flag.view(np.uint8), out=counts)
        return counts, np.asarray(beyond(case.truth, as_kept(field, case.truth.dtype)))

    found: tuple[Array, npt.NDArray[np.bool_]] = case.shared(("event", threshold, event), count)
    return found


def chosen_alone(chosen: tuple[str, ...], channels: tuple[str, ...]) -> dict[str, tuple[str, ...]] | None:
    """`Statistic.groups` of a statistic of some channels, each by itself; none chosen are all."""
    return {c: (c,) for c in chosen if c in channels} if chosen else None


@dataclass(frozen=True)
class _EventStatistic(Statistic):
    """A statistic of one event.

    threshold: see `Threshold`. event: ">", ">=", "<" or "<=" the threshold. channels: those that are scored,
    none for all; they are no part of the id, because the rows have them.
    """

    threshold: Threshold
    event: str = ">"
    channels: tuple[str, ...] = field(default=(), kw_only=True, repr=False)

    @property
    def references(self) -> tuple[str, ...]:
        """See `Statistic.references`."""
        return climatological(self.threshold)

    def groups(self, channels: tuple[str, ...]) -> dict[str, tuple[str, ...]] | None:
        """See `Statistic.groups`."""
        return chosen_alone(self.channels, channels)

    def valid(self, case: Case) -> npt.NDArray[np.bool_] | None:
        """See `Statistic.valid`."""
        return has_threshold(case, self.threshold)


@dataclass(frozen=True)
class EventSquareError(_EventStatistic):
    """(p - o)^2 with p the fraction of members that forecast the event and o whether it happened."""

    label: ClassVar[str] = "event_square_error"

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return _square_error(case, self.threshold, self.event)


@dataclass(frozen=True)
class EventVariance(_EventStatistic):
    """p (1 - p) / (M - 1): what sampling M members adds to (p - o)^2."""

    label: ClassVar[str] = "event_variance"
    minimum_members: ClassVar[int] = 2

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return _variance(case, self.threshold, self.event)


def _square_error(case: Case, threshold: Threshold, event: str) -> Vector:
    counts, happened = event_counts(case, threshold, event)
    return np.asarray(np.square(counts / case.members - happened))


def _variance(case: Case, threshold: Threshold, event: str) -> Vector:
    p = event_counts(case, threshold, event)[0] / case.members
    return np.asarray(p * (1 - p) / (case.members - 1))


@dataclass(frozen=True)
class EventOutcomes(_EventStatistic):
    """Joint frequency of forecasts and outcomes, K = 2 (M + 1).

    Number 2k is the weight of the points at which k members forecast the event and it did not happen, 2k + 1
    that at which it did; together they are 1.
    """

    label: ClassVar[str] = "event_outcomes"
    vector: ClassVar[bool] = True

    def map(self, case: Case) -> list[sparse.csr_array]:
        """See `Statistic.map`."""
        counts, happened = event_counts(case, self.threshold, self.event)
        column = 2 * counts.astype(np.intp) + happened
        return [_one_hot(c, 2 * (case.members + 1)) for c in column]


@dataclass(frozen=True)
class Contingency(_EventStatistic):
    """Hits, false alarms, misses and correct rejections of a yes or no forecast, K = 4; together they are 1.

    by: "mean" forecasts the event where the ensemble mean has it, a number p where at least a fraction p of
    the members do. For one member they are the same.
    """

    label: ClassVar[str] = "contingency"
    vector: ClassVar[bool] = True
    by: float | str = "mean"

    def map(self, case: Case) -> list[sparse.csr_array]:
        """See `Statistic.map`."""
        counts, happened = event_counts(case, self.threshold, self.event)
        if isinstance(self.by, str):
            level = as_kept(threshold_field(case, self.threshold), case.values.dtype)
            forecast = COMPARE[self.event](_mean(case), level)
        else:
            forecast = counts / case.members >= self.by
        column = np.where(forecast, np.where(happened, 0, 1), np.where(happened, 2, 3))
        return [_one_hot(c, 4) for c in column]


def _mean(case: Case) -> Vector:
    """Ensemble mean (C, N); of one member that member, bit for bit."""
    field: Vector = case.shared("ensemble_mean", lambda: case.values.mean(axis=0, dtype=np.float64))
    return field


def _one_hot(column: npt.NDArray[np.intp], columns: int) -> sparse.csr_array:
    """(N, columns): 1 at the column of each point."""
    rows = np.arange(column.size + 1)
    return sparse.csr_array((np.ones(column.size), column, rows), shape=(column.size, columns))


@dataclass(frozen=True)
class _RankedStatistic(Statistic):
    """A sum over thresholds; a point needs all of them."""

    thresholds: tuple[Threshold, ...]
    event: str = ">"

    @property
    def references(self) -> tuple[str, ...]:
        """See `Statistic.references`."""
        return climatological(*self.thresholds)

    def valid(self, case: Case) -> npt.NDArray[np.bool_] | None:
        """See `Statistic.valid`."""
        masks = [mask for t in self.thresholds if (mask := has_threshold(case, t)) is not None]
        return np.logical_and.reduce(masks) if masks else None


@dataclass(frozen=True)
class RankedSquareError(_RankedStatistic):
    """Sum over thresholds of (p - o)^2."""

    label: ClassVar[str] = "ranked_square_error"

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return np.asarray(sum(_square_error(case, t, self.event) for t in self.thresholds))


@dataclass(frozen=True)
class RankedVariance(_RankedStatistic):
    """Sum over thresholds of p (1 - p) / (M - 1)."""

    label: ClassVar[str] = "ranked_variance"
    minimum_members: ClassVar[int] = 2

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return np.asarray(sum(_variance(case, t, self.event) for t in self.thresholds))
