"""Anomaly correlation, activity and skill against a climatology at the valid time.

The anomalies are f' = ensemble mean - climatology and y' = truth - climatology. < > is the weighted mean over
an area.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ._case import Case
from ._grid import Array, Vector
from ._metrics import Goal, Metric, one_of
from ._statistics import AnyStatistic, MeanSquareError, Statistic

_MEAN = "mean"


@dataclass(frozen=True)
class AnomalyProduct(Statistic):
    """f' y'."""

    label: ClassVar[str] = "anomaly_product"

    @property
    def references(self) -> tuple[str, ...]:
        """See `Statistic.references`."""
        return (_MEAN,)

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return _forecast_anomaly(case) * _truth_anomaly(case)


@dataclass(frozen=True)
class AnomalySquare(Statistic):
    """Square of the anomaly of the ensemble "mean", of the "members" (mean over them) or of the "truth"."""

    label: ClassVar[str] = "anomaly_square"
    of: str = "mean"

    def __post_init__(self) -> None:
        one_of("of", self.of, ("mean", "members", "truth"))

    @property
    def references(self) -> tuple[str, ...]:
        """See `Statistic.references`."""
        return (_MEAN,)

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        if self.of == "truth":
            return np.square(_truth_anomaly(case))
        square = np.square(_forecast_anomaly(case))
        if self.of == "mean" or case.members == 1:
            return square
        m = case.members
        return np.asarray(square + case.ensemble.variance.astype(np.float64) * ((m - 1) / m))


@dataclass(frozen=True)
class AnomalyCorrelation(Statistic):
    """Correlation of f' and y' over the area at one time: <f'y'> / sqrt(<f'^2> <y'^2>).

    centred: subtract the area means <f'> and <y'> first.
    """

    label: ClassVar[str] = "anomaly_correlation"
    centred: bool = False

    @property
    def references(self) -> tuple[str, ...]:
        """See `Statistic.references`."""
        return (_MEAN,)

    def map(self, case: Case) -> Array:
        """See `Statistic.map`: the five moments of which `finish` makes one number."""
        forecast, truth = _forecast_anomaly(case), _truth_anomaly(case)
        moments = [forecast * truth, np.square(forecast), np.square(truth)]
        return np.stack([*moments, forecast, truth] if self.centred else moments, axis=-1)

    def finish(self, mean_CRK: Vector, members: int) -> Vector:
        """See `Statistic.finish`."""
        del members
        product, square_f, square_y = np.moveaxis(mean_CRK[..., :3], -1, 0)
        if self.centred:
            f, y = mean_CRK[..., 3], mean_CRK[..., 4]
            product, square_f, square_y = product - f * y, _less(square_f, f), _less(square_y, y)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(product / np.sqrt(square_f * square_y))[..., None]


@dataclass(frozen=True)
class ACC(Metric):
    """Anomaly correlation coefficient of the ensemble mean; the kinds differ by up to some hundredths.

    "wb2": correlation over the area at each time, then the mean over times (WeatherBench 2). "pooled": one
    ratio of means over area and time (WeatherBench-X), which days with large anomalies dominate. "wmo": as
    "wb2" with the area mean subtracted from the anomalies (WMO-No. 485, appendix 2.2.34).
    """

    kind: str = "wmo"
    goal: ClassVar[Goal] = "high"
    unit: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("wb2", "pooled", "wmo"))

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"acc_{self.kind}"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        if self.kind == "pooled":
            return (AnomalyProduct(), AnomalySquare("mean"), AnomalySquare("truth"))
        return (AnomalyCorrelation(centred=self.kind == "wmo"),)

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        found = [means[s.id] for s in self.statistics]
        if self.kind != "pooled":
            return found[0]
        product, forecast, truth = found
        return np.asarray(product / np.sqrt(forecast * truth))


@dataclass(frozen=True)
class Activity(Metric):
    """Root of the mean squared anomaly over area and time; less than that of the truth is too smooth.

    of: "mean" for the ensemble mean (WeatherBench-X), "members" for the members, "truth".
    """

    of: str = "mean"
    goal: ClassVar[Goal] = "none"

    def __post_init__(self) -> None:
        one_of("of", self.of, ("mean", "members", "truth"))

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"activity_{self.of}"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (AnomalySquare(self.of),)

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        return np.sqrt(means[AnomalySquare(self.of).id])


@dataclass(frozen=True)
class MSESkill(Metric):
    """1 - <(mean - truth)^2> / <y'^2>: skill over the climatological mean as the forecast."""

    goal: ClassVar[Goal] = "high"
    unit: ClassVar[str] = "1"
    name: ClassVar[str] = "mse_skill_climatology"
    statistics: ClassVar[tuple[AnyStatistic, ...]] = (MeanSquareError(), AnomalySquare("truth"))

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        return np.asarray(1 - means[MeanSquareError().id] / means[AnomalySquare("truth").id])


def _less(square: Vector, mean: Vector) -> Vector:
    """Variance over an area; NaN where it is rounding, such as in a region of one point."""
    variance = square - mean * mean
    return np.where(variance > 1e-12 * square, variance, np.nan)


def _truth_anomaly(case: Case) -> Vector:
    """y' (C, N), NaN where there is no truth."""
    found: Vector = case.shared("truth anomaly", lambda: _checked_anomaly(case))
    return found


def _forecast_anomaly(case: Case) -> Vector:
    """f' (C, N)."""
    found: Vector = case.shared("forecast anomaly", lambda: _truth_anomaly(case) + case.error)
    return found


def _checked_anomaly(case: Case) -> Vector:
    anomaly = case.truth.astype(np.float64) - case.reference(_MEAN)
    lacking = (case.scored & ~np.isfinite(anomaly)).any(axis=1)
    if lacking.any():
        raise ValueError(
            f"the climatology of channel {case.channels[int(np.argmax(lacking))]!r} at {case.valid_time} is "
            "not finite at points with a truth: set the truth to NaN there"
        )
    return np.asarray(anomaly)
