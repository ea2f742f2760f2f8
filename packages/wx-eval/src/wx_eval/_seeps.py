"""SEEPS, the stable equitable error in probability space of precipitation.

Rodwell, Richardson, Hewson and Haiden (2010, Q. J. R. Meteorol. Soc. 136, 1344).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ._case import Case
from ._events import as_kept
from ._grid import Array, Vector
from ._metrics import Metric, one_of
from ._statistics import AnyStatistic, Statistic
from ._units import same_units

_DRY_MM = {"wbx": {6: 0.1, 24: 0.25}, "wb2": {6: 0.1, 24: 0.25}, "rodwell": {24: 0.2}}

_P1 = (0.1, 0.85)
_MILLIMETRES = {"m": 1000.0, "mm": 1.0, "kg m-2": 1.0}


@dataclass(frozen=True)
class SeepsError(Statistic):
    """Error of three categories, dry, light and heavy, against climatological frequencies; see `SEEPS`."""

    label: ClassVar[str] = "seeps_error"
    channels: tuple[str, ...]
    hours: int
    kind: str
    of: str

    @property
    def references(self) -> tuple[str, ...]:
        """See `Statistic.references`."""
        return "seeps_dry_fraction", "seeps_threshold"

    def groups(self, channels: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """See `Statistic.groups`: the channels of precipitation, each by itself."""
        return {c: (c,) for c in self.channels if c in channels}

    @property
    def id(self) -> str:
        """See `Statistic.id`; which channels are scored is in the rows."""
        return f"{self.label}(hours={self.hours}, kind={self.kind}, of={self.of})"

    def valid(self, case: Case) -> npt.NDArray[np.bool_]:
        """See `Statistic.valid`: neither too dry nor too wet a climate."""
        p1 = case.reference("seeps_dry_fraction")
        low, high = _P1
        if self.kind == "wb2":
            return np.asarray((p1 > low) & (p1 < high))
        return np.asarray((p1 >= low) & (p1 <= high))

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        dry = _DRY_MM[self.kind][self.hours] / millimetres(case.units[0], case.channels[0])
        wet = case.reference("seeps_threshold")
        if (case.scored & self.valid(case) & ~np.isfinite(wet)).any():
            raise ValueError(
                f"the climatology of {case.channels[0]!r} has no seeps_threshold at points whose "
                f"seeps_dry_fraction lies within {_P1}: build both from the same states"
            )
        cost = seeps_matrix(case.reference("seeps_dry_fraction"))
        # In the precision of the data: 0.25 mm kept in float32 is on the threshold, not above it.
        seen = self._categories(case.truth, as_kept(dry, case.truth.dtype), wet)
        edge = as_kept(dry, case.values.dtype)
        forecasts = case.values if self.of == "members" or case.members == 1 else [_mean(case.values)]
        errors = [_cost(self._categories(x, edge, wet), seen, cost) for x in forecasts]
        return np.asarray(np.mean(errors, axis=0))

    def _categories(self, x: Array, edge: Array, wet: Vector) -> list[npt.NDArray[np.bool_]]:
        """Dry, light and heavy."""
        dry = x < edge if self.kind == "wb2" else x <= edge
        heavy = x > wet if self.kind == "rodwell" else x >= wet
        return [dry, (x > edge) & ~heavy, heavy]


@dataclass(frozen=True)
class SEEPS(Metric):
    """0 for a perfect forecast, 1 on average for any that knows the climatology alone; less is better.

    A point's climatology gives p1, the fraction of dry times, and the threshold above which a third of the
    wet ones lie. Points whose p1 lies outside 0.1 to 0.85 are left out. The categories are dry, light and
    heavy.

    | kind | dry | heavy | a value on the dry threshold |
    |---|---|---|---|
    | "wbx" | up to 0.25 mm in 24 h, 0.1 mm in 6 h | from the threshold on | is dry (WeatherBench-X) |
    | "wb2" | the same | the same | has no category and costs nothing (WeatherBench 2) |
    | "rodwell" | up to 0.2 mm in 24 h | above the threshold | is dry (the paper, `scores`) |

    "wb2" also leaves out points where p1 is 0.1 or 0.85.

    Args:
        channels: of precipitation, in m, mm or kg m-2, summed over `hours`.
        hours: 24 or 6.
        kind: see above.
        of: "mean" scores the ensemble mean, "members" each member; their scores are averaged.
    """

    channels: tuple[str, ...]
    hours: int = 24
    kind: str = "wbx"
    of: str = "mean"
    unit: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        if isinstance(self.channels, str) or not self.channels:
            raise ValueError(f"channels must be a tuple of names of precipitation, got {self.channels!r}")
        one_of("kind", self.kind, tuple(_DRY_MM))
        if self.hours not in _DRY_MM[self.kind]:
            raise ValueError(
                f"hours must be one of {tuple(_DRY_MM[self.kind])} for kind {self.kind!r}, got {self.hours!r}"
            )
        one_of("of", self.of, ("mean", "members"))

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"seeps_{self.kind}_{self.hours}h" + ("_members" if self.of == "members" else "")

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (SeepsError(self.channels, self.hours, self.kind, self.of),)


def millimetres(unit: str, channel: str) -> float:
    """How many mm one unit of a channel of precipitation is.

    Raises:
        ValueError: for a unit that is absent or not of precipitation.
    """
    found = next((mm for name, mm in _MILLIMETRES.items() if unit and same_units(unit, name)), None)
    if found is None:
        raise ValueError(
            f"channel {channel!r} has the unit {unit!r}, precipitation needs one of {tuple(_MILLIMETRES)}: "
            "state it in a `units` coordinate along channel"
        )
    return found


def seeps_matrix(p1: Vector) -> Vector:
    """Cost (3, 3, ...) of a forecast (first axis) when the truth (second) is dry, light or heavy."""
    zero = np.zeros_like(p1)
    with np.errstate(divide="ignore", invalid="ignore"):
        wet, dry, heavy = 1 / (1 - p1), 1 / p1, 3 / (2 + p1)
    rows = [[zero, wet, 4 * wet], [dry, zero, 3 * wet], [dry + heavy, heavy, zero]]
    return np.asarray(0.5 * np.array(rows))


def _cost(forecast: list[npt.NDArray[np.bool_]], truth: list[npt.NDArray[np.bool_]], cost: Vector) -> Vector:
    """Cost at every point; 0 where either has no category."""
    out = np.zeros(truth[0].shape)
    for i, said in enumerate(forecast):
        for k, came in enumerate(truth):
            if i != k:
                np.copyto(out, cost[i, k], where=said & came)
    return out


def _mean(values: Array) -> Array:
    return np.asarray(values.mean(axis=0, dtype=np.float64))
