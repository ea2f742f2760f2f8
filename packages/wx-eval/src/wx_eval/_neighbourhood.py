"""Scores of neighbourhoods: fractions skill score and pooled CRPS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ._case import Case
from ._event_scores import EventMetric
from ._events import COMPARE, Threshold, chosen_alone, climatological, event_counts, has_threshold
from ._grid import EARTH_RADIUS_KM, Array, Grid, Vector, search_tree, unit_vectors
from ._kept import Kept
from ._kernels import EnsembleStatistics, ensemble_statistics
from ._metrics import Goal, Metric, one_of
from ._statistics import AnyStatistic, Statistic
from ._weights import point_areas

Mask = npt.NDArray[np.bool_]

_MOST_ENTRIES = 1 << 25
_BLOCK_NUMBERS = 1 << 23


class Discs:
    """The points within a great-circle distance of every point of a grid, each with its cell area."""

    def __init__(self, grid: Grid, radius_km: float) -> None:
        self._area = point_areas(grid)
        place = unit_vectors(grid)
        tree = search_tree(place)
        chord = _chord(radius_km)
        counts = tree.query_ball_point(place, chord, return_length=True)
        if counts.sum() > _MOST_ENTRIES:
            raise ValueError(
                f"neighbourhoods of {radius_km:g} km hold {counts.sum():.2g} points together, at most "
                f"{_MOST_ENTRIES:.2g} are worked on here: choose a smaller radius"
            )
        lists = tree.query_ball_point(place, chord, return_sorted=True)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._points = np.concatenate([np.asarray(row, np.int32) for row in lists])
        weight = self._area[self._points]
        self._matrix = sparse.csr_array((weight, self._points, self._first), shape=(grid.size, grid.size))
        self.nbytes = self._points.nbytes + self._matrix.data.nbytes + self._matrix.indices.nbytes

    def sums(self, fields_BN: Array) -> Vector:
        """Area-weighted sums (B, N)."""
        return np.stack([self._matrix @ field for field in fields_BN.astype(np.float64)])

    def maxima(self, fields_BN: Array) -> Array:
        """Largest values (B, N)."""
        return np.stack([np.maximum.reduceat(field[self._points], self._first[:-1]) for field in fields_BN])


class RowDiscs:
    """`Discs` on a latitude-longitude grid that goes around the globe.

    In each row a disc covers a run of columns whose length depends on the two rows alone, so sums are
    differences of running sums, and maxima those of two runs whose length is a power of two.
    """

    def __init__(self, grid: Grid, radius_km: float) -> None:
        assert grid.axes is not None
        lat, lon = grid.axes
        self._shape = rows, columns = len(lat), len(lon)
        self._area = point_areas(grid)[::columns]
        phi = np.deg2rad(lat)
        turn = 2 * np.pi * np.arange(columns // 2 + 1) / columns
        length = np.empty((rows, rows), np.intp)
        for target in range(rows):
            # Squared chord to the points of each row that are k columns away: it increases with k.
            across = np.square(np.cos(phi) - np.cos(phi[target])) + np.square(
                np.sin(phi) - np.sin(phi[target])
            )
            along = np.outer(np.cos(phi[target]) * np.cos(phi), 2 - 2 * np.cos(turn))
            near = (along + across[:, None] <= _chord(radius_km) ** 2).sum(axis=1)
            length[target] = np.clip(2 * near - 1, 0, columns)
        self._length = length
        self.nbytes = length.nbytes

    def sums(self, fields_BN: Array) -> Vector:
        """Area-weighted sums (B, N)."""
        rows, columns = self._shape
        fields = fields_BN.reshape(-1, rows, columns)
        out = np.zeros(fields.shape)
        for source in range(rows):
            turns = np.concatenate([fields[:, source]] * 3, axis=1)
            running = np.zeros((len(turns), 3 * columns + 1))
            np.cumsum(turns, axis=1, out=running[:, 1:])
            for target in np.flatnonzero(self._length[:, source]):
                length = self._length[target, source]
                west = columns - length // 2
                east = west + length
                part = running[:, east : east + columns] - running[:, west : west + columns]
                out[:, target] += self._area[source] * part
        return out.reshape(fields_BN.shape)

    def maxima(self, fields_BN: Array) -> Array:
        """Largest values (B, N)."""
        rows, columns = self._shape
        fields = fields_BN.reshape(-1, rows, columns)
        out = np.full(fields.shape, -np.inf, fields.dtype)
        for source in range(rows):
            powers = [np.concatenate([fields[:, source]] * 3, axis=1)]
            for target in np.flatnonzero(self._length[:, source]):
                length = int(self._length[target, source])
                level = length.bit_length() - 1
                while len(powers) <= level:
                    last, step = powers[-1], 1 << (len(powers) - 1)
                    powers.append(np.maximum(last[:, :-step], last[:, step:]))
                west = columns - length // 2
                east = west + length - (1 << level)
                run = powers[level]
                np.maximum(out[:, target], run[:, west : west + columns], out=out[:, target])
                np.maximum(out[:, target], run[:, east : east + columns], out=out[:, target])
        return out.reshape(fields_BN.shape)


_kept: Kept[Discs | RowDiscs] = Kept(512 << 20)


def discs(grid: Grid, radius_km: float) -> Discs | RowDiscs:
    """Discs of one radius, by rows where the grid allows it; those used last are kept, up to 512 MB."""
    return _kept.get((grid, radius_km), lambda: _made(grid, radius_km))


def _made(grid: Grid, radius_km: float) -> Discs | RowDiscs:
    if grid.axes is not None:
        step = np.diff(grid.axes[1], append=grid.axes[1][0] + 360.0)
        if np.allclose(step, 360.0 / len(step), atol=1e-4):
            return RowDiscs(grid, radius_km)
    return Discs(grid, radius_km)


def _chord(radius_km: float) -> float:
    # A point at the radius itself belongs to the disc whatever the rounding.
    return float(2 * np.sin(min(radius_km / EARTH_RADIUS_KM, np.pi) / 2) * (1 + 1e-9))


def _windows(field_CHW: Array, window: int, edge: str, *, outside: float = 0.0) -> Vector:
    """Sums over window x window points about each point, with `outside` beyond the edges."""
    half = window // 2
    wide = field_CHW.astype(np.float64)
    if edge == "periodic":
        wide = np.pad(wide, [(0, 0), (0, 0), (half, half)], mode="wrap")
    sides = (0, 0) if edge == "periodic" else (half, half)
    wide = np.pad(wide, [(0, 0), (half, half), sides], constant_values=outside)
    total = np.pad(wide, [(0, 0), (1, 0), (1, 0)]).cumsum(axis=1).cumsum(axis=2)
    last, first = slice(window, None), slice(None, -window)
    return np.asarray(
        total[:, last, last] - total[:, last, first] - total[:, first, last] + total[:, first, first]
    )


@dataclass(frozen=True)
class Fractions(Statistic):
    """(p - q)^2, p^2 + q^2 and whether the event happened, K = 3.

    p and q are the fractions of a neighbourhood in which the event is forecast and happens, p averaged over
    the members. Parameters as in `FSS`.
    """

    label: ClassVar[str] = "fractions"
    scope: ClassVar[str] = "field"
    vector: ClassVar[bool] = True
    threshold: Threshold
    event: str = ">"
    window: int | None = None
    radius_km: float | None = None
    edge: str = "periodic"
    own_quantile: bool = False
    channels: tuple[str, ...] = field(default=(), kw_only=True, repr=False)

    @property
    def references(self) -> tuple[str, ...]:
        """See `Statistic.references`."""
        return () if self.own_quantile else climatological(self.threshold)

    def groups(self, channels: tuple[str, ...]) -> dict[str, tuple[str, ...]] | None:
        """See `Statistic.groups`."""
        return chosen_alone(self.channels, channels)

    def valid(self, case: Case) -> Mask | None:
        """Points with a threshold; windows must be complete."""
        if self.window is None:
            return None if self.own_quantile else has_threshold(case, self.threshold)
        missing = (~self._used(case)).reshape(-1, *_two_axes(case.grid))
        outside = 0.0 if self.edge == "zero" else 1.0
        absent = _windows(missing, self.window, self.edge, outside=outside)
        return np.asarray(absent < 0.5).reshape(case.truth.shape)

    def _used(self, case: Case) -> Mask:
        known = None if self.own_quantile else has_threshold(case, self.threshold)
        return case.scored if known is None else case.scored & known

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        counts, happened = self._events(case)
        used = self._used(case)
        forecast, observed = (np.where(used, x, 0) for x in (counts, happened))
        p, q = (self._means(case, x, used) for x in (forecast, observed))
        p = p / case.members
        return np.stack([np.square(p - q), np.square(p) + np.square(q), observed], axis=-1)

    def _means(self, case: Case, field_CN: Array, used: Mask) -> Vector:
        """Means over the neighbourhood of each point, from sums of whole numbers."""
        if self.radius_km is not None:
            around = discs(case.grid, self.radius_km)
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray(around.sums(field_CN) / around.sums(used))
        assert self.window is not None
        field = field_CN.reshape(-1, *_two_axes(case.grid))
        return _windows(field, self.window, self.edge).reshape(field_CN.shape) / self.window**2

    def _events(self, case: Case) -> tuple[Array, Mask]:
        """Number of members (C, N) that forecast the event, and whether it happened."""
        if not self.own_quantile:
            return event_counts(case, self.threshold, self.event)
        assert isinstance(self.threshold, float)
        beyond, level, area = COMPARE[self.event], self.threshold, point_areas(case.grid)
        counts, happened = np.zeros(case.truth.shape), np.zeros(case.truth.shape, np.bool_)
        for c, used in enumerate(case.scored):
            for member in case.values[:, c]:
                counts[c] += beyond(member, _quantile(member[used], area[used], level))
            happened[c] = beyond(case.truth[c], _quantile(case.truth[c, used], area[used], level))
        return counts, happened


def _quantile(values: Array, weight: Vector, level: float) -> float:
    """Smallest value with at least this share of the weight at or below it."""
    if not values.size:
        return float("nan")
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weight[order])
    return float(values[order[np.searchsorted(share, level * share[-1] * (1 - 1e-12))]])


def _two_axes(grid: Grid) -> tuple[int, ...]:
    if grid.axes is None:
        raise ValueError("a window of grid points needs a latitude-longitude grid: give radius_km on a mesh")
    return grid.shape


@dataclass(frozen=True)
class FSS(EventMetric):
    """Fractions skill score, 1 - sum (p - q)^2 / sum (p^2 + q^2) (Roberts and Lean 2008).

    p and q are the fractions of the neighbourhood of a point in which the event is forecast and happens; p is
    averaged over members. Sums run over points (area-weighted) and init times before the ratio is taken. NaN
    where the event is never forecast and never happens.

    | peer | settings |
    |---|---|
    | scores.spatial.fss_2d | window=n, edge="interior", weights="equal" |
    | WeatherBench-X, wrap_longitude=True | window=n, edge="periodic" |
    | WeatherBench-X, wrap_longitude=False | window=n, edge="interior" |

    Args:
        threshold, event: see `EventMetric`.
        window: neighbourhoods of window x window grid points, odd.
        radius_km: neighbourhoods within this great-circle distance, weighted by cell area, cut off where a
            limited grid ends and around missing truth. Give this or `window`.
        edge: what becomes of windows at the edge. "periodic": longitudes wrap, windows that cross the first
            or last row are left out; "interior": those that cross any edge are left out; "zero": no event
            beyond the edges. Windows with a missing truth are left out.
        own_quantile: `threshold` is a probability, and the event of each field is beyond its own
            area-weighted quantile: no effect of bias.
    """

    window: int | None = None
    radius_km: float | None = None
    edge: str = "periodic"
    own_quantile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("edge", self.edge, ("periodic", "interior", "zero"))
        if (self.window is None) == (self.radius_km is None):
            raise ValueError("give either window, in grid points, or radius_km")
        if self.window is not None and (self.window < 1 or self.window % 2 == 0):
            raise ValueError(f"window must be odd and positive, got {self.window}")
        if self.radius_km is not None and not self.radius_km > 0:
            raise ValueError(f"radius_km must be positive, got {self.radius_km}")
        level = self.threshold
        if self.own_quantile and not (isinstance(level, float) and 0 < level < 1):
            raise ValueError(f"with own_quantile the threshold is a probability, got {level!r}")

    @property
    def goal(self) -> Goal:
        """See `Metric.goal`."""
        return "high"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        threshold, event = self.key
        place = self.window, self.radius_km, self.edge, self.own_quantile
        return (Fractions(threshold, event, *place, channels=self.channels),)

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"fss({self._place})"

    @property
    def _place(self) -> str:
        area = f"{self.radius_km:.12g} km" if self.window is None else f"{self.window} points {self.edge}"
        return f"{self.label}{' quantile' if self.own_quantile else ''}, {area}"

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        terms = means[self.statistics[0].id]
        return np.asarray(1 - terms[..., 0] / terms[..., 1])


@dataclass(frozen=True)
class UsefulFSS(FSS):
    """The value 1/2 + f/2 that FSS exceeds at useful scales, f the frequency of the event."""

    @property
    def goal(self) -> Goal:
        """See `Metric.goal`."""
        return "none"

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"fss_useful({self._place})"

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        return np.asarray(0.5 + means[self.statistics[0].id][..., 2] / 2)


@dataclass(frozen=True)
class PooledSkill(Statistic):
    """CRPS of fields pooled over discs. Parameters as in `PooledCRPS`."""

    label: ClassVar[str] = "crps_pooled"
    scope: ClassVar[str] = "field"
    minimum_members: ClassVar[int] = 2
    radius_km: float
    pool: str = "average"
    kind: str = "fair"

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        pooled: EnsembleStatistics = case.shared(
            ("pooled", self.radius_km, self.pool), lambda: self._pooled(case)
        )
        return pooled.crps_fair if self.kind == "fair" else pooled.crps_biased

    def _pooled(self, case: Case) -> EnsembleStatistics:
        around = discs(case.grid, self.radius_km)
        shape = case.truth.shape
        values = np.empty((case.members, *shape), np.result_type(case.values, case.truth, np.float32))
        used = case.scored
        step = max(1, _BLOCK_NUMBERS // case.truth.size)
        blocks = [slice(k, k + step) for k in range(0, case.members, step)]
        if self.pool == "max":
            for block in blocks:
                x = np.where(used, case.values[block], -np.inf).astype(values.dtype)
                values[block] = around.maxima(x.reshape(-1, shape[1])).reshape(x.shape)
            truth = around.maxima(np.where(used, case.truth, -np.inf).astype(values.dtype))
            return ensemble_statistics(values, truth)
        with np.errstate(invalid="ignore", divide="ignore"):
            weight = around.sums(used)
            for block in blocks:
                # Averages are linear: those of the differences from the truth keep all their digits.
                x = np.subtract(case.values[block], case.truth, dtype=np.float64)
                x = np.where(used, x, 0.0)
                values[block] = around.sums(x.reshape(-1, shape[1])).reshape(x.shape) / weight
        return ensemble_statistics(values, np.zeros(shape, values.dtype))


@dataclass(frozen=True)
class PooledCRPS(Metric):
    """CRPS of the average or the maximum over a disc around each point (Price et al. 2025, GenCast).

    Every grid point is the centre of a disc and counts by its area; GenCast takes the nodes of a refined
    icosahedron, as dense everywhere, for centres. A disc ends where a limited grid does and leaves out points
    without truth.

    Args:
        radius_km: great-circle radius of the disc.
        pool: "average", weighted by cell area, or "max".
        kind: "fair" or "biased", see `CRPS`.
    """

    radius_km: float
    pool: str = "average"
    kind: str = "fair"

    def __post_init__(self) -> None:
        one_of("pool", self.pool, ("average", "max"))
        one_of("kind", self.kind, ("fair", "biased"))
        if not self.radius_km > 0:
            raise ValueError(f"radius_km must be positive, got {self.radius_km}")

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"crps_{self.kind}_{self.pool}_pooled({self.radius_km:.12g} km)"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (PooledSkill(self.radius_km, self.pool, self.kind),)
