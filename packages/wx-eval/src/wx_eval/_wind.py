"""Errors of the wind as a vector."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ._case import Case
from ._grid import Array, Vector
from ._metrics import Metric, one_of
from ._statistics import AnyStatistic, Statistic

# The letter u by itself: u850, 10u, u10m, 10m_u_component_of_wind, but not uvb or humidity.
_EAST = re.compile(r"(?<![A-Za-z])u(?![A-Za-z])")
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class VectorSquareError(Statistic):
    """(u error)^2 + (v error)^2 of the ensemble mean, in a channel of its own named "<u>+<v>".

    Args:
        pairs: (u, v) channels. None pairs every channel that has the letter u by itself in its name, such as
            "u850" or "10m_u_component_of_wind", with the one that has a v in its place.
        rooted: keep the root of each area mean.
    """

    label: ClassVar[str] = "vector_mse"
    pairs: Pairs | None = None
    rooted: bool = False

    @property
    def id(self) -> str:
        """See `Statistic.id`; which channels were paired is in the names of the rows."""
        return f"{self.label}(rooted)" if self.rooted else self.label

    def groups(self, channels: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """See `Statistic.groups`."""
        pairs = _wind_pairs(channels) if self.pairs is None else self.pairs
        return {f"{u}+{v}": (u, v) for u, v in pairs if u in channels and v in channels}

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        if case.units[0] != case.units[1]:
            raise ValueError(f"wind components {case.channels} have units {case.units}: convert one of them")
        return np.asarray(np.square(case.error).sum(axis=0, keepdims=True))

    def finish(self, mean_CRK: Vector, members: int) -> Vector:
        """See `Statistic.finish`."""
        del members
        return np.sqrt(mean_CRK) if self.rooted else mean_CRK


@dataclass(frozen=True)
class WindRMSE(Metric):
    """Root of the mean of (u error)^2 + (v error)^2 of the ensemble mean, in channels named "<u>+<v>".

    Args:
        pairs: see `VectorSquareError`.
        root: "after" the mean over init times, or of "each" init time, see `RMSE`.
    """

    pairs: Pairs | None = None
    root: str = "after"

    def __post_init__(self) -> None:
        one_of("root", self.root, ("after", "each"))

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return "wind_rmse" if self.root == "after" else "wind_rmse_root_each"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (VectorSquareError(self.pairs, self.root == "each"),)

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        mean = means[self.statistics[0].id]
        return mean if self.root == "each" else np.sqrt(mean)


def _wind_pairs(channels: tuple[str, ...]) -> Pairs:
    return tuple((u, _EAST.sub("v", u)) for u in channels if _EAST.search(u))
