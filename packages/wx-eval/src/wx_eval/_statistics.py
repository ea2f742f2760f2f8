"""Statistics: what is averaged over an area and kept for every forecast.

A statistic is a number (or a vector of K numbers) per point. `evaluate` takes its weighted mean over each
region and keeps it for each init time, under an id that holds every parameter. Whatever is not linear, such
as a square root, is left to the metrics, which see means over init times too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from ._case import Case
from ._grid import Array, Vector

if TYPE_CHECKING:
    from scipy import sparse


@dataclass(frozen=True)
class Products:
    """Vectors whose products x_u x_v at a point are averaged over an area, K = V^2.

    Attributes:
        vectors: (C, V, N), finite; zero where a point is not scored.
    """

    vectors: Vector


@dataclass(frozen=True)
class Fields:
    """K numbers per point that are made one after the other, so that only one of them is in memory.

    Attributes:
        fields: K arrays (C, N), finite.
    """

    fields: Iterable[Array]


@dataclass(frozen=True)
class Ranks:
    """Ranks of the truth among M members, of which the share of each is averaged over an area, K = M + 1.

    Attributes:
        below: (C, N), the first rank.
        tied: (C, N), by how much the last rank is above it; the point is spread evenly over them.
    """

    below: npt.NDArray[np.unsignedinteger[Any]]
    tied: npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Statistic(ABC):
    """A mean over points that a metric needs.

    Subclasses are frozen dataclasses: their fields are the parameters, and equal statistics are computed
    once. `label` names the column of the records; fields are added to it.
    """

    label: ClassVar[str]
    scope: ClassVar[str] = "point"
    """"point": the value at a point needs that point alone. "field": it needs the whole field."""
    minimum_members: ClassVar[int] = 1
    vector: ClassVar[bool] = False
    ranks: ClassVar[bool] = False
    """Whether it reads ranks from `Case.ensemble`."""
    reads_ensemble: ClassVar[bool] = False
    """Whether it reads `Case.ensemble`, which is then computed first and gives `Case.error` with it."""

    @property
    def id(self) -> str:
        """Column name: the label and all parameters but fields with repr=False."""
        settings = ", ".join(f"{f.name}={_text(getattr(self, f.name))}" for f in fields(self) if f.repr)
        return f"{self.label}({settings})" if settings else self.label

    @property
    def summed(self) -> bool:
        """Whether `finish` gets unweighted sums over the points of an area instead of weighted means."""
        return False

    @property
    def references(self) -> tuple[str, ...]:
        """Names of the climatological fields that it reads: a run looks for them before it begins."""
        return ()

    def groups(self, channels: tuple[str, ...]) -> dict[str, tuple[str, ...]] | None:
        """Channels that are combined into one, by the name of the result; None scores each by itself."""
        del channels
        return None

    def valid(self, case: Case) -> npt.NDArray[np.bool_] | None:
        """(C, N) points where it exists besides those with a truth; None for all."""
        del case
        return None

    @abstractmethod
    def map(self, case: Case) -> Array | list[sparse.csr_array] | Fields | Products | Ranks:
        """(C, N) or (C, N, K), C sparse matrices (N, K), `Fields`, `Products` or `Ranks`.

        With `groups`, C is 1.
        """

    def finish(self, mean_CRK: Vector, members: int) -> Vector:
        """What is kept, (C, R, K'), from the area means; the means themselves by default."""
        del members
        return mean_CRK


@dataclass(frozen=True)
class FieldStatistic(ABC):
    """A vector of numbers of a whole global field, such as its spectrum. Kept for the region "global"."""

    label: ClassVar[str]
    minimum_members: ClassVar[int] = 1
    vector: ClassVar[bool] = True

    @property
    def id(self) -> str:
        """Column name: the label and all parameters."""
        settings = ", ".join(f"{f.name}={_text(getattr(self, f.name))}" for f in fields(self))
        return f"{self.label}({settings})" if settings else self.label

    @abstractmethod
    def value(self, case: Case) -> Vector:
        """(C, K)."""


AnyStatistic = Statistic | FieldStatistic


@dataclass(frozen=True)
class MeanError(Statistic):
    """Ensemble mean minus truth."""

    label: ClassVar[str] = "error_mean"

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return case.error


@dataclass(frozen=True)
class MeanAbsoluteError(Statistic):
    """|ensemble mean - truth|."""

    label: ClassVar[str] = "mae_mean"

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return np.abs(case.error)


@dataclass(frozen=True)
class MeanSquareError(Statistic):
    """(ensemble mean - truth)^2."""

    label: ClassVar[str] = "mse_mean"

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return np.square(case.error)


@dataclass(frozen=True)
class RootMeanSquareError(MeanSquareError):
    """Root of the area mean of (ensemble mean - truth)^2 at one time."""

    label: ClassVar[str] = "rmse_mean"

    def finish(self, mean_CRK: Vector, members: int) -> Vector:
        """See `Statistic.finish`."""
        del members
        return np.sqrt(mean_CRK)


@dataclass(frozen=True)
class Variance(Statistic):
    """Variance over members with M - 1 in the denominator."""

    label: ClassVar[str] = "variance"
    reads_ensemble: ClassVar[bool] = True
    minimum_members: ClassVar[int] = 2

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return case.ensemble.variance


@dataclass(frozen=True)
class VarianceOfMean(Statistic):
    """Variance / M: what sampling M members adds to the squared error of their mean."""

    label: ClassVar[str] = "variance_of_mean"
    reads_ensemble: ClassVar[bool] = True
    minimum_members: ClassVar[int] = 2

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return case.ensemble.variance.astype(np.float64) / case.members


@dataclass(frozen=True)
class MemberSkill(Statistic):
    """Mean over members of |member - truth|: the first term of the CRPS."""

    label: ClassVar[str] = "mae_members"
    reads_ensemble: ClassVar[bool] = True

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return case.ensemble.skill


@dataclass(frozen=True)
class CrpsFair(Statistic):
    """CRPS whose expectation does not depend on M."""

    label: ClassVar[str] = "crps_fair"
    reads_ensemble: ClassVar[bool] = True
    minimum_members: ClassVar[int] = 2

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return case.ensemble.crps_fair


@dataclass(frozen=True)
class CrpsBiased(Statistic):
    """CRPS of the empirical distribution of the members."""

    label: ClassVar[str] = "crps_biased"
    reads_ensemble: ClassVar[bool] = True
    minimum_members: ClassVar[int] = 2

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return case.ensemble.crps_biased


@dataclass(frozen=True)
class RankCounts(Statistic):
    """Rank of the truth among the members, K = M + 1 shares.

    ties: "share" spreads a truth that equals t members evenly over its t + 1 ranks; "lowest" counts members
    strictly below it (WeatherBench-X).
    """

    label: ClassVar[str] = "rank_histogram"
    reads_ensemble: ClassVar[bool] = True
    vector: ClassVar[bool] = True
    ranks: ClassVar[bool] = True
    ties: str = "share"

    def __post_init__(self) -> None:
        if self.ties not in ("share", "lowest"):
            raise ValueError(f'ties must be "share" or "lowest", got {self.ties!r}')

    @property
    def id(self) -> str:
        """See `Statistic.id`."""
        return self.label if self.ties == "share" else f"{self.label}(ties={self.ties})"

    def map(self, case: Case) -> Ranks:
        """See `Statistic.map`."""
        below, equal = case.ensemble.below, case.ensemble.equal
        assert below is not None
        assert equal is not None
        return Ranks(below, equal if self.ties == "share" else np.zeros_like(equal))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, tuple):
        return "[" + " ".join(map(_text, value)) + "]"
    return str(value)
