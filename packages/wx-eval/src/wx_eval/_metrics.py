"""Metrics: functions of mean statistics, with their convention in the name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Literal, Self

import numpy as np

from ._grid import Array, Vector
from ._statistics import (
    AnyStatistic,
    CrpsBiased,
    CrpsFair,
    MeanAbsoluteError,
    MeanError,
    MeanSquareError,
    RankCounts,
    RootMeanSquareError,
    Variance,
    VarianceOfMean,
)

Goal = Literal["low", "high", "zero", "one", "none"]


@dataclass(frozen=True)
class Metric(ABC):
    """A score of a period.

    Subclasses are frozen dataclasses whose fields are the convention. `value` must be made of analytic numpy
    functions where it is not linear: `compare` differentiates it by complex steps.

    Attributes:
        goal: what is better: "low", "high", near "zero" or near "one"; "none" for what has no sign.
        unit: "channel" for that of the channel, its "square", or "1".
        vector: whether the value has a last axis of its own.
    """

    vector: ClassVar[bool] = False

    @property
    def unit(self) -> str:
        """ "channel" for that of the channel, its "square", or "1"."""
        return "channel"

    @property
    def goal(self) -> Goal:
        """What is better."""
        return "low"

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the score, which holds every parameter."""

    @property
    @abstractmethod
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """What `evaluate` has to keep for it."""

    def value(self, means: Mapping[str, Array], /) -> Array:
        """Score from means over init times of its statistics, by their ids; vectors have a last axis K.

        By default the mean of its only statistic.
        """
        if len(self.statistics) > 1:
            raise TypeError(f"{type(self).__name__} has {len(self.statistics)} statistics: define its value")
        return means[self.statistics[0].id]

    @property
    def named_channels(self) -> tuple[str, ...]:
        """Channels that the settings name, such as those of thresholds by channel: all have to be there."""
        found = (name for f in fields(self) for name in _named(f.name, getattr(self, f.name)))
        return tuple(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"type": type(self).__name__, **settings}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ValueError: another type, or unknown settings.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known - {"type"})
        if data.get("type") != cls.__name__ or unknown:
            raise ValueError(
                f"expected type {cls.__name__!r} and settings out of {sorted(known)}, got {dict(data)}"
            )
        return cls(**{k: _tuples(v) for k, v in data.items() if k != "type"})


def check_channels(metrics: Iterable[Metric], known: Iterable[str], side: str) -> None:
    """Refuse metrics whose settings name a channel that is not among those of a side."""
    held = list(known)
    for metric in metrics:
        absent = [c for c in metric.named_channels if c not in held]
        if absent:
            raise ValueError(
                f"metric {metric.name!r} names the channels {absent} and {side} has {held}: correct them, or "
                "leave them out of its settings"
            )


def _named(setting: str, value: Any) -> Iterator[str]:
    """Channels in a setting: names under `channels` and `pairs`, and the first of (channel, number)."""
    if isinstance(value, str):
        if setting in ("channels", "pairs"):
            yield value
    elif isinstance(value, tuple):
        by_channel = len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], Real)
        for item in value[:1] if by_channel else value:
            yield from _named("channels" if by_channel else setting, item)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a parameter that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def _tuples(value: Any) -> Any:
    """JSON lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class Bias(Metric):
    """Ensemble mean minus truth."""

    goal: ClassVar[Goal] = "zero"
    name: ClassVar[str] = "bias"
    statistics: ClassVar[tuple[AnyStatistic, ...]] = (MeanError(),)


@dataclass(frozen=True)
class MAE(Metric):
    """Mean absolute error of the ensemble mean; of the forecast itself when it has one member."""

    name: ClassVar[str] = "mae"
    statistics: ClassVar[tuple[AnyStatistic, ...]] = (MeanAbsoluteError(),)


@dataclass(frozen=True)
class MSE(Metric):
    """Mean squared error of the ensemble mean."""

    unit: ClassVar[str] = "square"
    name: ClassVar[str] = "mse"
    statistics: ClassVar[tuple[AnyStatistic, ...]] = (MeanSquareError(),)


@dataclass(frozen=True)
class RMSE(Metric):
    """Root mean squared error of the ensemble mean.

    debiased: subtract variance / M first, the expectation for an ensemble of infinite size.
    root: "after" the mean over init times (WeatherBench 2, WMO). "each" takes the mean over init times of the
        root at each, which is smaller and common in older papers.
    """

    debiased: bool = False
    root: str = "after"

    def __post_init__(self) -> None:
        one_of("root", self.root, ("after", "each"))
        if self.debiased and self.root == "each":
            raise ValueError('debiased needs root="after": at one init time the difference can be negative')

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return "rmse" + "_debiased" * self.debiased + "_root_each" * (self.root == "each")

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        if self.root == "each":
            return (RootMeanSquareError(),)
        return (MeanSquareError(), VarianceOfMean()) if self.debiased else (MeanSquareError(),)

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        if self.root == "each":
            return means[RootMeanSquareError().id]
        mse = means[MeanSquareError().id]
        return np.asarray(np.sqrt(mse - means[VarianceOfMean().id] if self.debiased else mse))


@dataclass(frozen=True)
class CRPS(Metric):
    """Continuous ranked probability score.

    "fair": unbiased in M. "biased": of the empirical distribution. "almost_fair": alpha fair +
    (1 - alpha) biased, a training loss (Lang et al. 2024, arXiv 2412.15832).

    Raises:
        ValueError: for another kind, or an alpha that is missing, out of [0, 1] or of no use.
    """

    kind: str = "fair"
    alpha: float | None = None

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("fair", "biased", "almost_fair"))
        if (self.kind == "almost_fair") != (self.alpha is not None and 0 <= self.alpha <= 1):
            raise ValueError(
                'kind "almost_fair" needs an alpha in [0, 1] and other kinds none, got '
                f"kind={self.kind!r}, alpha={self.alpha!r}"
            )

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"crps_{self.kind}" + ("" if self.alpha is None else f"(alpha={self.alpha!r})")

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        both = {"fair": CrpsFair(), "biased": CrpsBiased()}
        return tuple(both.values()) if self.alpha is not None else (both[self.kind],)

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        if self.alpha is None:
            return means[self.statistics[0].id]
        return self.alpha * means[CrpsFair().id] + (1 - self.alpha) * means[CrpsBiased().id]


@dataclass(frozen=True)
class Spread(Metric):
    """Root of the mean variance, M - 1 in the denominator; never the mean of standard deviations."""

    goal: ClassVar[Goal] = "none"
    name: ClassVar[str] = "spread"
    statistics: ClassVar[tuple[AnyStatistic, ...]] = (Variance(),)

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        return np.sqrt(means[Variance().id])


@dataclass(frozen=True)
class SpreadSkill(Metric):
    """Spread over the error of the ensemble mean.

    "raw": spread / rmse, below 1 even for a perfect ensemble. "fortin": with spread^2 (M + 1) / M (Fortin et
    al. 2014). "debiased": with the squared error less variance / M.
    """

    kind: str = "debiased"
    goal: ClassVar[Goal] = "one"
    unit: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("raw", "fortin", "debiased"))

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"spread_skill_{self.kind}"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        both = (MeanSquareError(), Variance())
        return both if self.kind == "raw" else (*both, VarianceOfMean())

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        mse, variance = means[MeanSquareError().id], means[Variance().id]
        if self.kind == "fortin":
            variance = variance + means[VarianceOfMean().id]
        if self.kind == "debiased":
            mse = mse - means[VarianceOfMean().id]
        return np.sqrt(variance / mse)


@dataclass(frozen=True)
class RankHistogram(Metric):
    """Frequency of each rank of the truth among the members, K = M + 1.

    ties: "share" or "lowest", see `RankCounts`.
    """

    ties: str = "share"
    goal: ClassVar[Goal] = "none"
    unit: ClassVar[str] = "1"
    vector: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return RankCounts(self.ties).id

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (RankCounts(self.ties),)


STANDARD_METRICS: tuple[Metric, ...] = (
    CRPS("fair"),
    CRPS("biased"),
    MAE(),
    RMSE(),
    Bias(),
    Spread(),
    SpreadSkill("raw"),
    SpreadSkill("fortin"),
    SpreadSkill("debiased"),
)


def linearised(
    metric: Metric, series: Mapping[str, Vector], weights: Mapping[str, Vector] | None = None
) -> tuple[Vector, Vector]:
    """Value of a scalar metric at the means of its statistics, and its linearisation at every init time.

    With means m and gradient g, the second is value + sum_k g_k (s_kt - m_k): a series whose mean is the
    value and whose variation is, to first order, what the value owes to each init time (delta method). The
    gradient comes from complex steps, exact to rounding.

    Args:
        metric: not a vector.
        series: statistics by id, (T, ...), those of several numbers (T, ..., K).
        weights: of each init time in the means, (T, ...) by id; equal by default.

    Returns:
        Value (...) and linearisation (T, ...).
    """
    vectors = {s.id for s in metric.statistics if s.vector}
    means, away = {}, {}
    for name, s in series.items():
        if weights is None:
            means[name] = s.mean(axis=0)
            away[name] = s - means[name]
        else:
            scale = weights[name] / weights[name].mean(axis=0)
            scale = scale[..., None] if name in vectors else scale
            means[name] = (scale * s).mean(axis=0)
            away[name] = scale * (s - means[name])
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.asarray(metric.value(means), np.float64)
        out = np.repeat(value[None], len(next(iter(series.values()))), axis=0)
        for name in series:
            if name in vectors:
                # Vectors of fewer numbers than others end in NaN.
                change = np.where(np.isnan(means[name]), 0, away[name])
                for k in range(change.shape[-1]):
                    out += change[..., k] * _slope(metric, means, name, (..., k))
            else:
                out += away[name] * _slope(metric, means, name, ...)
    return value, out


_STEP = 1e-40


def _slope(metric: Metric, means: Mapping[str, Vector], name: str, where: Any) -> Vector:
    """Derivative of the value by one component of one mean."""
    moved = np.array(means[name], np.complex128)
    step = _STEP * np.maximum(np.abs(moved[where]), 1.0)
    moved[where] += 1j * step
    return np.asarray(np.imag(metric.value({**means, name: moved if moved.ndim else moved[()]})) / step)
