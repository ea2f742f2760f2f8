"""Cells of a comparison: two models paired start by start, with their tests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xarray as xr

from ._bootstrap import resampled
from ._grid import Array, Vector
from ._inference import Method, mean_tests
from ._metrics import Goal, Metric, linearised
from ._records import Records
from ._samples import (
    CELL,
    Group,
    Mask,
    Sample,
    Test,
    groups,
    homogeneous,
    scored_starts,
    spacing,
    take_all,
    weights_of,
)
from ._scores import Average, check_lengths
from ._statistics import MeanError

OWN_ANALYSIS = np.timedelta64(2, "D")
"""A forecast is favoured by its own analysis as truth at lead times below this."""

# Weights of the same points are summed in the same order; a single polar cell of a 0.25 degree grid is 8e-10
# of the globe.
_SAME_WEIGHT = 1e-12
# The same values summed in another order.
_SAME_SCORE = 64 * np.finfo(np.float64).eps
_EACH: tuple[Method, ...] = ("iid", "geer", "ewc", "ewc_ar1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Comparison in one metric, channel, region and lead time; Comparison.table explains the fields."""

    metric: str
    channel: str
    region: str
    lead_time: np.timedelta64
    n: int
    n_dropped: int
    score_a: float
    score_b: float
    bias_a: float
    bias_b: float
    difference: float
    skill: float
    stderr: float
    df: float
    low: float
    high: float
    inflation: float
    n_effective: float
    p_iid: float
    p_geer: float
    p_ewc: float
    p_ewc_ar1: float
    p_value: float
    p_adjusted: float
    significant: bool
    notes: tuple[str, ...]
    p_robust: float = np.nan
    robust: bool = False


@dataclass(frozen=True)
class Pair:
    """Statistics of both models on the cells they share and all starts of either."""

    sides: tuple[xr.Dataset, xr.Dataset]
    sample: Sample

    @classmethod
    def of(cls, a: Records, b: Records, ids: Sequence[str], sample: Sample) -> Pair:
        held = set(a.statistics) & set(b.statistics)
        names = list(dict.fromkeys([*ids, *({MeanError().id} & held)]))
        both = [r.to_xarray(names).isel(model=0, drop=True) if len(r) else _empty(names) for r in (a, b)]
        shared = {dim: np.intersect1d(both[0][dim], both[1][dim]) for dim in CELL[:3]}
        # Ensembles of different size have vectors of different length.
        own = {dim for r in both for dim in r.dims} - set(CELL)
        cut = (r.sel(shared).transpose(*CELL, ...) for r in both)
        left, right = xr.align(*cut, join="outer", exclude=own)
        return cls((left, right), sample)

    @property
    def starts(self) -> Array:
        return np.asarray(self.sides[0]["init_time"].values)

    @property
    def leads(self) -> Array:
        return np.asarray(self.sides[0]["lead_time"].values)

    def scored(self, metric: Metric) -> tuple[Mask, Mask]:
        """Where both models have a score, and where either has, (C, R, L, T).

        Raises:
            ValueError: when a start was scored at different points.
        """
        one, two = (scored_starts(side, metric).values for side in self.sides)
        both = homogeneous(one & two, self.sample, self.leads, self.starts)
        self._check_points(metric, both)
        return both, one | two

    def _check_points(self, metric: Metric, both: Mask) -> None:
        pairs = {"n": tuple(side["n"] for side in self.sides)}
        pairs |= {s.id: tuple(weights_of(side, s.id) for side in self.sides) for s in metric.statistics}
        for name, (left, right) in pairs.items():
            tolerance = 0.0 if name == "n" else _SAME_WEIGHT
            differ = np.abs(left.values - right.values) > tolerance * np.abs(left.values)
            wrong = np.argwhere(both & differ)
            if len(wrong):
                where = tuple(wrong[0].tolist())
                what = "number of points" if name == "n" else f"weight of {name}"
                found = " and ".join(f"{float(side.values[where]):.15g}" for side in (left, right))
                raise ValueError(
                    f"the two models were scored at different points: the {what} is {found} for "
                    f"{left['channel'].values[where[0]]}, {left['region'].values[where[1]]}, lead time "
                    f"{hours(self.leads[where[2]])}, start {self.starts[where[3]].astype('datetime64[h]')}; "
                    "compare forecasts on the same truth, with the same missing points"
                )


def _empty(names: Sequence[str]) -> xr.Dataset:
    """No rows, with the dims of some."""
    kinds: tuple[Any, ...] = (object, object, "timedelta64[ns]", "datetime64[ns]")
    coords = {d: np.array([], k) for d, k in zip(CELL, kinds, strict=True)}
    return xr.Dataset({n: (CELL, np.zeros((0, 0, 0, 0))) for n in ("n", "sum_w", *names)}, coords)


def cells_of(
    metric: Metric, pair: Pair, both: Mask, either: Mask, test: Test, average: Average, own: bool
) -> list[Cell]:
    """Cells of one metric in the `natural` order of channels, then of region and lead time."""
    shape = both.shape[:3]
    flat = both.reshape(-1, *both.shape[2:])
    dropped = np.sum(either & ~both, axis=-1).reshape(flat.shape[:2])
    present = np.asarray(either.any(axis=-1)).reshape(flat.shape[:2])
    ids = [s.id for s in metric.statistics]
    sides = [_arrays(side, ids, average) for side in pair.sides]
    numbered = {}
    for group in groups(flat):
        for cell, columns in zip(group.cells, _group(metric, pair, group, sides, test, own), strict=True):
            if present[cell, group.lead]:
                channel, region = np.unravel_index(cell, shape[:2])
                numbered[cell, group.lead] = Cell(
                    metric=metric.name,
                    channel=str(pair.sides[0]["channel"].values[channel]),
                    region=str(pair.sides[0]["region"].values[region]),
                    lead_time=pair.leads[group.lead],
                    n=len(group.starts),
                    n_dropped=int(dropped[cell, group.lead]),
                    p_adjusted=np.nan,
                    significant=False,
                    **columns,
                )
    in_order = (numbered[key] for key in sorted(numbered))
    return sorted(in_order, key=lambda cell: natural(cell.channel))


@dataclass(frozen=True)
class _Arrays:
    """Statistics (cells, L, T, ...), their weights if starts do not count the same, and the mean error."""

    statistics: Mapping[str, Array]
    weights: Mapping[str, Array] | None
    bias: Array | None


def _arrays(side: xr.Dataset, ids: Sequence[str], average: Average) -> _Arrays:
    def flat(values: Array) -> Array:
        return np.ascontiguousarray(values).reshape(-1, *values.shape[2:])

    weights = {n: flat(weights_of(side, n).values) for n in ids} if average == "weights" else None
    bias = flat(side[MeanError().id].values) if MeanError().id in side else None
    return _Arrays({n: flat(side[n].values) for n in ids}, weights, bias)


def _group(
    metric: Metric, pair: Pair, group: Group, sides: Sequence[_Arrays], test: Test, own: bool
) -> Iterator[dict[str, Any]]:
    """Fields of each cell of a group that come from its series."""
    names = [f.name for f in fields(Cell) if f.type == "float" and f.name not in ("p_adjusted", "p_robust")]
    columns = {name: np.full(len(group.cells), np.nan) for name in names}
    notes: list[tuple[str, ...]] = [("fewer than 2 pairs",)] * len(group.cells)
    if len(group.starts) > 1:
        notes = _fill(columns, metric, pair, group, sides, test)
    mark = ("own analysis",) * bool(own and pair.leads[group.lead] < OWN_ANALYSIS)
    for k in range(len(group.cells)):
        yield {name: float(column[k]) for name, column in columns.items()} | {"notes": (*notes[k], *mark)}


def _fill(
    columns: dict[str, Vector],
    metric: Metric,
    pair: Pair,
    group: Group,
    sides: Sequence[_Arrays],
    test: Test,
) -> list[tuple[str, ...]]:
    """Put scores, differences and tests into the columns and return notes."""
    series = [take_all(side.statistics, group) for side in sides]
    weights = [None if side.weights is None else take_all(side.weights, group) for side in sides]
    lines, losses = [], []
    for letter, arrays, s, w in zip("ab", sides, series, weights, strict=True):
        for name, values in s.items():
            if values.ndim > 2:
                check_lengths(name, np.moveaxis(values, 0, -2))
        score, line = linearised(metric, s, w)
        columns[f"score_{letter}"] = score
        losses.append(_distance(metric.goal, score))
        lines.append(_oriented(metric.goal, score, line))
        if arrays.bias is not None:
            columns[f"bias_{letter}"] = group.take(arrays.bias).mean(axis=0)
    difference, line = _differences(losses, lines)
    columns["difference"], columns["skill"] = difference, _skill(difference, losses[1])
    horizon, regular = spacing(pair.starts[group.starts], pair.leads[group.lead])
    naive = _each_p_value(columns, line)
    if test.method == "bootstrap":
        counts, _ = test.counts(line)
        drawn = [
            _distance(metric.goal, resampled(metric.value, s, counts, w))
            for s, w in zip(series, weights, strict=True)
        ]
        found = test.of_draws(drawn[0] - drawn[1], difference, line, regular)
    else:
        found = test.of_series(line, difference, horizon, regular)
    for name in ("stderr", "df", "low", "high", "p_value"):
        columns[name] = getattr(found, name)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(found.stderr == 0, 1.0, found.stderr / naive)
        columns["inflation"], columns["n_effective"] = ratio, len(group.starts) / ratio**2
    close = _close_to_target(metric.goal, losses, lines, ratio)
    return [(*n, *("near its target",) * bool(c)) for n, c in zip(found.notes, close, strict=True)]


def _differences(losses: Sequence[Vector], lines: Sequence[Vector]) -> tuple[Vector, Vector]:
    """Difference of the losses and of their linearisations, free of variation that is rounding alone."""
    difference, line = losses[0] - losses[1], lines[0] - lines[1]
    rounding = _SAME_SCORE * np.maximum(*(np.abs(one).max(axis=0) for one in lines))
    difference = np.where(np.abs(line).max(axis=0) <= rounding, 0.0, difference)
    return difference, np.where(np.abs(line - difference).max(axis=0) <= rounding, difference, line)


def _skill(difference: Vector, baseline: Vector) -> Vector:
    """Improvement over the baseline relative to it; infinite for a baseline of zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(difference == 0, 0.0, -difference / np.abs(baseline)))


def _each_p_value(columns: dict[str, Vector], line: Vector) -> Vector:
    """Put the p-values by every standard error into the columns and return that of independent starts."""
    naive, ok = np.full(line.shape[1], np.nan), np.isfinite(line).all(axis=0)
    if ok.any():
        for method in _EACH:
            tests = mean_tests(line[:, ok], method)
            columns[f"p_{method}"][ok] = tests.p_value
        naive[ok] = tests.naive
    return naive


def _close_to_target(
    goal: Goal, losses: Sequence[Vector], lines: Sequence[Vector], inflation: Vector
) -> Mask:
    """Where either loss is within two of its standard errors of the kink at zero."""
    close = np.zeros(losses[0].shape, bool)
    if goal in ("zero", "one"):
        for loss, line in zip(losses, lines, strict=True):
            with np.errstate(invalid="ignore"):
                close |= loss < 2 * inflation * line.std(axis=0, ddof=1) / np.sqrt(len(line))
    return close


def _distance(goal: Goal, score: Vector) -> Vector:
    """Score as something of which less is better."""
    if goal in ("zero", "one"):
        return np.abs(score - (goal == "one"))
    return -score if goal == "high" else score


def _oriented(goal: Goal, score: Vector, line: Vector) -> Vector:
    """Linearisation of `_distance` from that of the score."""
    if goal in ("zero", "one"):
        target = float(goal == "one")
        return np.asarray(np.where(score >= target, 1.0, -1.0) * (line - target))
    return -line if goal == "high" else line


def natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Key that sorts z50 before z500 and z1000."""
    return tuple((not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in re.findall(r"\d+|\D+", name))


def p_text(p: float) -> str:
    """A p-value with two digits; below a millionth it says more of the tails assumed than of the data."""
    return "< 1e-6" if p < 1e-6 else f"{p:.2g}"


def hours(step: np.timedelta64) -> str:
    """A step as text."""
    return f"{step / np.timedelta64(1, 'h'):g} h"
