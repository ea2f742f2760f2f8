"""Energy and variogram scores: ensembles as vectors over an area, or over channels at a point."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from ._case import Case
from ._grid import EARTH_RADIUS_KM, Array, Grid, Vector, digest, search_tree, unit_vectors
from ._kernels import unmasked
from ._metrics import Metric, one_of
from ._statistics import AnyStatistic, Products, Statistic
from ._weights import point_areas

# Points (times members times channels) that are worked on together: they stay in cache.
_TILE_NUMBERS = 1 << 18
_PAIRS_AT_ONCE = 1 << 18
_MOST_PAIRS = 1 << 26
# 16 bytes each.
_KEPT_PAIRS = 1 << 22

Edges = tuple[tuple[int, int], ...]
"""Pairs of points by their number in row-major order."""


@dataclass(frozen=True)
class EnergyTerms(Statistic):
    """Mean norms E||x - y||, E||x - x'|| over pairs of different members and over all pairs, K = 3.

    The products of all members are summed over an area once, so the cost is that of one matrix product per
    row of the grid and the memory that of one band.

    norm: "area": root of the area-weighted mean of squares; "euclidean": root of the unweighted sum.
    lags: 0 takes all pairs of members; k only those at most k apart in their order.
    """

    label: ClassVar[str] = "energy_terms"
    minimum_members: ClassVar[int] = 2
    vector: ClassVar[bool] = True
    norm: str = "area"
    lags: int = 0

    @property
    def summed(self) -> bool:
        """See `Statistic.summed`."""
        return self.norm == "euclidean"

    def map(self, case: Case) -> Products:
        """See `Statistic.map`."""
        vectors = np.empty((len(case.channels), case.members + 1, case.truth.shape[1]))
        vectors[:, :-1] = np.moveaxis(case.values, 0, 1)
        vectors[:, -1] = case.truth
        # Distances come from squares: taken about the mean of the members they do not cancel.
        vectors -= vectors[:, :-1].mean(axis=1, keepdims=True)
        vectors[:, :] = np.where(case.scored[:, None], vectors, 0.0)
        return Products(vectors)

    def finish(self, mean_CRK: Vector, members: int) -> Vector:
        """Norms from the sums of products of members and truth."""
        size = members + 1
        product = mean_CRK.reshape(*mean_CRK.shape[:2], size, size)
        square = np.einsum("...ii->...i", product)
        norm = np.sqrt(np.maximum(square[..., None] + square[..., None, :] - 2 * product, 0.0))
        apart = np.subtract.outer(np.arange(members), np.arange(members))
        pairs = (apart > 0) & (apart <= (self.lags or members))
        between = norm[..., :-1, :-1][..., pairs].mean(axis=-1)
        skill = norm[..., :-1, -1].mean(axis=-1)
        return np.stack([skill, between, between * (members - 1) / members], axis=-1)


@dataclass(frozen=True)
class EnergyScore(Metric):
    """Energy score E||x - y|| - E||x - x'|| / 2 of whole fields (Gneiting and Raftery 2007, section 4.3).

    | peer | settings |
    |---|---|
    | WeatherBench 2 | norm="area", lags=1 |
    | WeatherBench-X, scoringrules "fair" | norm="euclidean" |
    | scoringrules "nrg" | norm="euclidean", kind="biased" |

    Args:
        kind: "fair" (pairs of different members, unbiased in M) or "biased" (empirical distribution).
        norm: "area" is the root of the area-weighted mean of squares, in the unit of the channel on any grid;
            "euclidean" the root of the unweighted sum over the points, for stations.
        lags: 0 for all pairs. k > 0 takes pairs of members at most k apart, unbiased too but noisier and
            dependent on the order of the members: for comparison with numbers that were made so.
    """

    kind: str = "fair"
    norm: str = "area"
    lags: int = 0

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("fair", "biased"))
        one_of("norm", self.norm, ("area", "euclidean"))
        if self.lags < 0 or (self.lags and self.kind == "biased"):
            raise ValueError(f'lags must be 0, or positive with kind="fair", got {self.lags} ({self.kind})')

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        lags = f"_lags{self.lags}" if self.lags else ""
        return f"energy_{self.kind}{'' if self.norm == 'area' else '_' + self.norm}{lags}"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (EnergyTerms(self.norm, self.lags),)

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        terms = means[self.statistics[0].id]
        return np.asarray(terms[..., 0] - terms[..., 1 if self.kind == "fair" else 2] / 2)


@dataclass(frozen=True)
class JointEnergy(Statistic):
    """Energy score over channels at every point, kept under a channel name such as "u10+v10".

    channels: joined ones, in their own units.
    scales: what each is divided by before the norm; empty for 1.
    """

    label: ClassVar[str] = "energy_joint"
    minimum_members: ClassVar[int] = 2
    channels: tuple[str, ...]
    scales: tuple[float, ...] = ()
    kind: str = "fair"

    def groups(self, channels: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """See `Statistic.groups`."""
        return {"+".join(self.channels): self.channels} if set(self.channels) <= set(channels) else {}

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        scale = np.asarray(self.scales or np.ones(len(self.channels)))[:, None]
        out = np.empty(case.truth.shape[1])
        step = max(1, _TILE_NUMBERS // case.values[..., 0].size)
        for start in range(0, out.size, step):
            part = slice(start, start + step)
            x_MCN = np.subtract(case.values[..., part], case.truth[:, part], dtype=np.float64) / scale
            out[part] = _energy(x_MCN, self.kind)
        return out[None]


def _energy(x_MCN: Array, kind: str) -> Array:
    """Energy score (N,) of members less truth, with the norm over C."""
    members = len(x_MCN)
    skill = np.sqrt(np.square(x_MCN).sum(axis=1)).mean(axis=0)
    between = np.zeros_like(skill)
    for k in range(1, members):
        between += np.sqrt(np.square(x_MCN[k:] - x_MCN[k - 1]).sum(axis=1)).sum(axis=0)
    pairs = members * (members - 1 if kind == "fair" else members)
    return np.asarray(skill - between / pairs)


@dataclass(frozen=True)
class JointEnergyScore(Metric):
    """Energy score of several channels at each point, averaged over the area: tests their dependence.

    Its channel is the names joined by "+". Channels of different units need `scales`, such as climatological
    standard deviations. Agrees with scoringrules ("nrg" for "biased", else "fair") at every point.

    Args:
        channels: two or more names.
        scales: one positive number per channel that it is divided by; empty for none.
        kind: "fair" or "biased".
    """

    channels: tuple[str, ...]
    scales: tuple[float, ...] = ()
    kind: str = "fair"

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("fair", "biased"))
        if len(set(self.channels)) != len(self.channels) or len(self.channels) < 2:
            raise ValueError(f"channels must be two or more different names, got {self.channels}")
        if self.scales and (len(self.scales) != len(self.channels) or min(self.scales) <= 0):
            raise ValueError(f"scales must be one positive number per channel, got {self.scales}")

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return self.statistics[0].id

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (JointEnergy(self.channels, self.scales, self.kind),)

    @property
    def unit(self) -> str:
        """See `Metric.unit`."""
        return "1" if self.scales else "channel"


class MemberStream:
    """Fair energy score and CRPS of members that arrive one after the other, such as in a running rollout.

    E||x - x'|| is estimated from each member and the `lags` before it: unbiased for any number of lags, exact
    (the fair estimator over all pairs) from M - 1 on. `lags` fields are kept and a few sums.

    Args:
        truth: (C, N); NaN marks points that are not scored. A channel without any has the scores NaN.
        weight: of the points, (N,), such as cell areas.
        lags: members that are kept, at least 1.

    Raises:
        ValueError: for shapes that do not match or no lag.
    """

    def __init__(self, truth: npt.ArrayLike, weight: npt.ArrayLike, *, lags: int = 1) -> None:
        y, w = np.asarray(unmasked(truth), np.float64), np.asarray(weight, np.float64)
        if y.ndim != 2 or w.shape != y.shape[1:] or lags < 1:
            raise ValueError(
                f"expected truth (C, N), weight (N,) and lags of at least 1, got {y.shape}, {w.shape}, {lags}"
            )
        self._truth = y
        scored = w * ~np.isnan(y)
        with np.errstate(invalid="ignore"):
            self._weight = scored / scored.sum(axis=1, keepdims=True)
        self._kept: deque[Vector] = deque(maxlen=lags)
        self._skill, self._between = np.zeros((2, len(y))), np.zeros((2, len(y)))
        self.members, self._pairs = 0, 0

    def add(self, member: npt.ArrayLike) -> None:
        """Take one member (C, N) into account.

        Raises:
            ValueError: for a field of another shape, or one that is not finite where the truth is.
        """
        x = np.asarray(unmasked(member), np.float64)
        if x.shape != self._truth.shape:
            raise ValueError(f"member must have the shape of the truth {self._truth.shape}, got {x.shape}")
        away = np.where(np.isnan(self._truth), 0.0, x - self._truth)
        if not np.isfinite(away).all():
            raise ValueError("member is not finite where the truth is")
        self._skill += self._norms(away)
        for other in self._kept:
            self._between += self._norms(away - other)
        self._pairs += len(self._kept)
        self._kept.append(away)
        self.members += 1

    def _norms(self, x: Vector) -> Vector:
        """Root of the mean square and mean absolute value, (2, C)."""
        square = (self._weight * np.square(x)).sum(axis=1)
        return np.stack([np.sqrt(square), (self._weight * np.abs(x)).sum(axis=1)])

    def _score(self, which: int) -> Vector:
        if self.members < 2:
            raise ValueError(f"a fair score needs at least 2 members, {self.members} came")
        return np.asarray(self._skill[which] / self.members - self._between[which] / self._pairs / 2)

    @property
    def energy(self) -> Vector:
        """Energy score with the norm of `EnergyScore(norm="area")`, (C,)."""
        return self._score(0)

    @property
    def crps(self) -> Vector:
        """Area mean of the CRPS, (C,)."""
        return self._score(1)


@dataclass(frozen=True)
class VariogramTerms(Statistic):
    """Sum, or mean with norm="area", over j at each point i of w_ij (|y_i - y_j|^p - E|x_i - x_j|^p)^2.

    Parameters as in `VariogramScore`.
    """

    label: ClassVar[str] = "variogram"
    scope: ClassVar[str] = "field"
    p: float = 0.5
    within_km: float | None = None
    weights: str = "equal"
    norm: str = "area"
    kind: str = "biased"
    pairs: Edges = ()

    @property
    def id(self) -> str:
        """See `Statistic.id`; of pairs their number and a hash."""
        if not self.pairs:
            return super().id.replace(", pairs=[]", "")
        settings = replace(self, pairs=()).id.removesuffix(")")
        return f"{settings}, pairs={len(self.pairs)} {digest(np.array(self.pairs, np.int64))})"

    @property
    def summed(self) -> bool:
        """See `Statistic.summed`."""
        return self.norm == "sum"

    def valid(self, case: Case) -> npt.NDArray[np.bool_] | None:
        """Points that have a partner."""
        return None if self.norm == "sum" else np.asarray(self._terms(case)[1] > 0)

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        total, weight = self._terms(case)
        with np.errstate(invalid="ignore"):
            return total if self.norm == "sum" else np.where(weight > 0, total / weight, 0.0)

    def _terms(self, case: Case) -> tuple[Vector, Vector]:
        """Weighted sums of the squares and of the weights, each (C, N)."""
        found: tuple[Vector, Vector] = case.shared(self, lambda: self._sums(case))
        return found

    def _sums(self, case: Case) -> tuple[Vector, Vector]:
        total, weight = np.zeros(case.truth.shape), np.zeros(case.truth.shape)
        area = point_areas(case.grid) if self.norm == "area" else np.ones(case.grid.size)
        for i, j, km in _pairs(case.grid, self.within_km, self.pairs):
            w = area[j] if self.weights == "equal" else area[j] / _apart(km)
            for c, scored in enumerate(case.scored):
                both = scored[i] & scored[j]
                square = self._square(case.values[:, c], case.truth[c], i, j)
                total[c] += np.bincount(i, np.where(both, w * square, 0.0), len(scored))
                weight[c] += np.bincount(i, w * both, len(scored))
        return total, weight

    def _square(self, x_MN: Array, y_N: Array, i: Array, j: Array) -> Vector:
        members = len(x_MN)
        truth = self._power(y_N[i].astype(np.float64) - y_N[j])
        away, square = np.zeros(len(i)), np.zeros(len(i))
        for x in x_MN:
            d = self._power(x[i].astype(np.float64) - x[j]) - truth
            away += d
            square += d * d
        away = np.square(away / members)
        if self.kind == "biased":
            return away
        if members < 2:
            return np.full(len(i), np.nan)
        # Less the variance of the mean of the members.
        return np.asarray(away - (square / members - away) / (members - 1))

    def _power(self, x: Vector) -> Vector:
        x = np.abs(x)
        return np.sqrt(x) if self.p == 0.5 else x**self.p


@dataclass(frozen=True)
class VariogramScore(Metric):
    """Variogram score of order p (Scheuerer and Hamill 2015): are differences between points right?

    Pairs are ordered: (i, j) and (j, i) both count, as in scoringrules and WeatherBench-X. A pair belongs to
    the regions of its first point. Some 2^18 pairs are worked on at a time, whatever their number.

    Args:
        p: power of the absolute differences.
        within_km: pairs up to this great-circle distance apart; None takes all pairs of a set of points.
        weights: "equal", or "inverse" for 1 / distance in km.
        norm: "area": the area-weighted mean over i of the area-weighted mean over j, so that it does not
            depend on the grid; "sum": the plain sum over pairs, as the peers do, for stations.
        kind: "biased" as in the paper; "fair" subtracts the sampling variance of the mean over M members.
        pairs: (i, j) of points in row-major order, such as the edges of a graph, instead of a distance: these
            count once each, as they are given. Records keep all of them.

    Raises:
        ValueError: for anything else, pairs that come twice and points paired with themselves.
    """

    p: float = 0.5
    within_km: float | None = None
    weights: str = "equal"
    norm: str = "area"
    kind: str = "biased"
    pairs: Edges = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", _edges(self.pairs))
        if self.pairs and self.within_km is not None:
            raise ValueError("give pairs or within_km, not both")
        one_of("weights", self.weights, ("equal", "inverse"))
        one_of("norm", self.norm, ("area", "sum"))
        one_of("kind", self.kind, ("biased", "fair"))
        if not self.p > 0 or (self.within_km is not None and not self.within_km > 0):
            raise ValueError(f"p and within_km must be positive, got {self.p} and {self.within_km}")

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return self.statistics[0].id

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (VariogramTerms(self.p, self.within_km, self.weights, self.norm, self.kind, self.pairs),)

    @property
    def unit(self) -> str:
        """See `Metric.unit`."""
        return {0.5: "channel", 1.0: "square"}.get(self.p, f"channel^{2 * self.p:g}")


def _edges(pairs: npt.ArrayLike) -> Edges:
    """Pairs in a form that can be hashed."""
    array = np.asarray(pairs)
    if not array.size:
        return ()
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu" or array.min() < 0:
        raise ValueError(
            f"pairs must be (i, j) of points counted from 0, got {array.dtype} of shape {array.shape}"
        )
    if (array[:, 0] == array[:, 1]).any() or len(np.unique(array, axis=0)) < len(array):
        raise ValueError("pairs must be different, each of two different points")
    return tuple(map(tuple, array.tolist()))


def _pairs(grid: Grid, within_km: float | None, pairs: Edges) -> Iterator[tuple[Array, Array, Vector]]:
    """Ordered pairs i, j and their distance in km, some at a time."""
    if pairs:
        yield from _given_pairs(grid, pairs)
        return
    if within_km is not None:
        near = _NearPairs.of(grid, within_km)
        yield from near.kept or near.blocks()
        return
    if grid.size**2 > _MOST_PAIRS:
        raise ValueError(
            f"{grid.size} points have {grid.size**2:.2g} pairs, at most {_MOST_PAIRS:.2g} are worked on: "
            "limit them by within_km"
        )
    place = unit_vectors(grid)
    step = max(1, _PAIRS_AT_ONCE // grid.size)
    for start in range(0, grid.size, step):
        i = np.arange(start, min(start + step, grid.size))
        first, second = np.repeat(i, grid.size), np.tile(np.arange(grid.size), len(i))
        other = first != second
        first, second = first[other], second[other]
        yield first, second, _distance_km(place, first, second)


@lru_cache(maxsize=2)
def _given_pairs(grid: Grid, pairs: Edges) -> list[tuple[Array, Array, Vector]]:
    edges = np.array(pairs, np.intp)
    if edges.max() >= grid.size:
        raise ValueError(f"pairs name point {edges.max()} and there are {grid.size}, counted from 0")
    place = unit_vectors(grid)
    cuts = range(0, len(edges), _PAIRS_AT_ONCE)
    parts = [edges[start : start + _PAIRS_AT_ONCE].T for start in cuts]
    return [(i, j, _distance_km(place, i, j)) for i, j in parts]


class _NearPairs:
    """Pairs of points within a distance: few are kept, many are looked up again each time."""

    def __init__(self, grid: Grid, within_km: float) -> None:
        self._place = unit_vectors(grid)
        self._tree = search_tree(self._place)
        self._chord = 2 * np.sin(min(within_km / EARTH_RADIUS_KM, np.pi) / 2) * (1 + 1e-9)
        counts = self._tree.query_ball_point(self._place, self._chord, return_length=True)
        total = int(counts.sum())
        if total > _MOST_PAIRS:
            raise ValueError(
                f"{total:.2g} pairs lie within {within_km:g} km, at most {_MOST_PAIRS:.2g} are worked on: "
                "choose a smaller distance or a coarser grid"
            )
        cuts = np.searchsorted(np.cumsum(counts), np.arange(0, total + _PAIRS_AT_ONCE, _PAIRS_AT_ONCE))
        self._cuts = list(pairwise(np.minimum(cuts, grid.size).tolist()))
        self.kept = list(self.blocks()) if total <= _KEPT_PAIRS else []

    @classmethod
    @lru_cache(maxsize=2)
    def of(cls, grid: Grid, within_km: float) -> Self:
        """Those of a grid, kept for the forecasts on it."""
        return cls(grid, within_km)

    def blocks(self) -> Iterator[tuple[Array, Array, Vector]]:
        """See `_pairs`."""
        for start, stop in self._cuts:
            lists = self._tree.query_ball_point(self._place[start:stop], self._chord, return_sorted=True)
            if not len(lists):
                continue
            j = np.concatenate([np.asarray(row, np.int32) for row in lists])
            i = np.repeat(np.arange(start, stop, dtype=np.int32), [len(row) for row in lists])
            i, j = i[i != j], j[i != j]
            yield i, j, _distance_km(self._place, i, j)


def _distance_km(place: Vector, i: Array, j: Array) -> Vector:
    """Great-circle distance of pairs of unit vectors."""
    chord = np.sqrt(np.square(place[i] - place[j]).sum(axis=1))
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chord / 2, 1)))


def _apart(km: Vector) -> Vector:
    if (km < 1e-6).any():
        raise ValueError('weights="inverse" needs points that do not coincide: drop duplicate stations')
    return km
