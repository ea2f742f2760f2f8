"""Paired comparison of two forecasts with tests over a whole card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xarray as xr

from ._grid import Vector
from ._inference import Method, benjamini_hochberg, paired_test, sidak
from ._metrics import Goal, Metric, linearised
from ._records import WEIGHT, Conventions, Records
from ._scores import needed, resolve

Correction = Literal["benjamini-hochberg", "sidak", "none"]


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
    difference: float
    skill: float
    stderr: float
    low: float
    high: float
    inflation: float
    n_effective: float
    p_iid: float
    p_geer: float
    p_ewc: float
    p_value: float
    p_adjusted: float
    significant: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores of model a against model b over the starts that both have, cell by cell.

    Attributes:
        model_a: name of the model under test.
        model_b: name of the baseline.
        metrics: names of what is compared.
        cells: one per metric, channel, region and lead time.
        method: of the standard error behind `p_value`.
        correction: for the number of tests on the card.
        alpha: level of significance, after the correction.
        members_a: ensemble sizes found.
        members_b: ensemble sizes found.
        first_start: first start that entered any cell.
        last_start: last start that entered any cell.
        spacing: between starts, None when uneven.
        conventions: of both sets of records.
    """

    model_a: str
    model_b: str
    metrics: tuple[str, ...]
    cells: tuple[Cell, ...]
    method: str
    correction: str
    alpha: float
    members_a: tuple[int, ...]
    members_b: tuple[int, ...]
    first_start: np.datetime64
    last_start: np.datetime64
    spacing: np.timedelta64 | None
    conventions: Conventions

    @property
    def n_tests(self) -> int:
        """Cells that were tested."""
        return sum(not np.isnan(cell.p_value) for cell in self.cells)

    @property
    def expected_false_positives(self) -> float:
        """Expected number of cells below alpha without a correction if the models were equal."""
        return self.alpha * self.n_tests

    def count(self) -> dict[str, int]:
        """Cells in which a is better or worse, and in how many of them significantly."""
        better = [cell for cell in self.cells if cell.difference < 0]
        worse = [cell for cell in self.cells if cell.difference > 0]
        return {
            "cells": len(self.cells),
            "tested": self.n_tests,
            "better": len(better),
            "better_significant": sum(cell.significant for cell in better),
            "worse": len(worse),
            "worse_significant": sum(cell.significant for cell in worse),
        }

    def table(self) -> pa.Table:
        """One row per cell.

        difference = loss_a - loss_b with its standard error and 95 % interval, negative where a is
        better: the loss is the score where low is good, its negative where high is, and |score - 1| or |score| where 1 or
        0 is; skill = (loss_b - loss_a) / |loss_b|; p_iid, p_geer and p_ewc before any correction; p_value the
        one of `method`, p_adjusted after `correction`. The settings are in the schema metadata.
        """
        columns = {f.name: [getattr(cell, f.name) for cell in self.cells] for f in fields(Cell)}
        leads = np.array(columns.pop("lead_time"), "timedelta64[s]")
        notes = pa.array([", ".join(n) for n in columns.pop("notes")], pa.string())
        table = pa.table({**columns, "lead_time": leads, "notes": notes})
        names = [f.name for f in fields(Cell)]
        return table.select(names).replace_schema_metadata({k: str(v) for k, v in self.settings().items()})

    def settings(self) -> dict[str, str]:
        """Everything a reader needs to judge or repeat the comparison."""
        paired = [cell.n for cell in self.cells]
        dropped = max((cell.n_dropped for cell in self.cells), default=0)
        spacing = "uneven" if self.spacing is None else _hours(self.spacing)
        c = self.conventions
        return {
            "models": f"{self.model_a} against {self.model_b}",
            "metric": ", ".join(self.metrics),
            "truth": c.truth,
            "period of starts": f"{self.first_start} to {self.last_start}, spacing {spacing}",
            "starts paired": f"{_span(paired)} per cell, at most {dropped} dropped",
            "members": f"{_sizes(self.members_a)} against {_sizes(self.members_b)}",
            "weights": c.weights,
            "grid": c.grid,
            "conventions": c.digest,
            "test": f"two-sided paired t test, standard error {self.method}",
            "correction": f"{self.correction} over {self.n_tests} tests at level {self.alpha:g}",
            "expected false positives": f"{self.expected_false_positives:.1f} before the correction",
        }


def compare(
    a: Records,
    b: Records,
    metrics: str | Metric | Sequence[str | Metric] = "crps_fair",
    *,
    model_a: str | None = None,
    model_b: str | None = None,
    channels: Sequence[str] | None = None,
    regions: Sequence[str] | None = None,
    lead_times: Iterable[np.timedelta64] | None = None,
    method: Method = "ewc",
    correction: Correction = "benjamini-hochberg",
    alpha: float = 0.05,
) -> Comparison:
    """Test model a against baseline b on the starts that both have, in every cell they share.

    The card that is corrected for multiplicity is what `metrics`, `channels`, `regions` and `lead_times`
    leave: choose it before looking. Metrics that are not linear, such as RMSE or a ratio, are tested through
    their linearisation at the means (delta method).

    Args:
        a: records of the model under test.
        b: records of the baseline.
        metrics: one or several, by name or as objects; not vectors and not those without a goal.
        model_a: which model of `a`, needed when it holds several.
        model_b: which model of `b`, needed when it holds several.
        channels: restrict to these.
        regions: restrict to these.
        lead_times: restrict to these.
        method: standard error behind the p-value, see `paired_test`.
        correction: over all tests of the card.
        alpha: level of significance.

    Raises:
        ValueError: for different conventions, an unknown, untestable or undefined metric, biased scores of
            ensembles of different size, forecasts scored at different points, or no start in common.
    """
    if correction not in ("benjamini-hochberg", "sidak", "none"):
        raise ValueError(f'correction must be "benjamini-hochberg", "sidak" or "none", got {correction!r}')
    conventions = a.conventions.union(b.conventions)
    chosen = resolve(a, [metrics] if isinstance(metrics, str | Metric) else list(metrics))
    ours = _one_model(a, model_a, "a").select(channel=channels, region=regions, lead_time=lead_times)
    theirs = _one_model(b, model_b, "b").select(channel=channels, region=regions, lead_time=lead_times)
    names = (ours.models[0], theirs.models[0]) if len(ours) and len(theirs) else ("", "")
    sizes = _members(ours), _members(theirs)
    for metric in chosen:
        _check_metric(metric, names, sizes)
    pairs = [_align(ours, theirs, metric) for metric in chosen]
    starts = np.unique(np.concatenate([_starts(pair) for pair in pairs]))
    if starts.size < 2:
        raise ValueError(
            f"{names[0]!r} and {names[1]!r} share {starts.size} scored starts and a test needs 2: check that "
            "the init times, lead times, channels and regions of both records overlap"
        )
    steps = np.unique(np.diff(starts))
    cells = [
        cell
        for metric, pair in zip(chosen, pairs, strict=True)
        for cell in _cells(metric, pair, method, steps.size == 1)
    ]
    return Comparison(
        model_a=names[0],
        model_b=names[1],
        metrics=tuple(metric.name for metric in chosen),
        cells=tuple(_correct(cells, correction, alpha)),
        method=method,
        correction=correction,
        alpha=alpha,
        members_a=sizes[0],
        members_b=sizes[1],
        first_start=starts[0].astype("datetime64[h]"),
        last_start=starts[-1].astype("datetime64[h]"),
        spacing=steps[0] if steps.size == 1 else None,
        conventions=conventions,
    )


def _one_model(records: Records, model: str | None, argument: str) -> Records:
    if model is None and len(records.models) != 1:
        raise ValueError(
            f"records {argument} hold the models {records.models}: choose one by model_{argument}"
        )
    return records if model is None else records.select(model=model)


def _members(records: Records) -> tuple[int, ...]:
    return tuple(int(m) for m in np.unique(records.table["members"].to_numpy()))


def _check_metric(
    metric: Metric, names: tuple[str, str], sizes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    if metric.vector or metric.goal == "none":
        raise ValueError(f"metric {metric.name!r} has no better and worse: it cannot be compared")
    most = max(s.minimum_members for s in metric.statistics)
    for name, size in zip(names, sizes, strict=True):
        if size and min(size) < most:
            raise ValueError(
                f"model {name!r} has {_sizes(size)} member(s), for which {metric.name} does not exist: it "
                f'needs {most}; compare metric "mae" or "rmse"'
            )
    if metric.name == "crps_biased" and sizes[0] != sizes[1]:
        raise ValueError(
            f"biased CRPS depends on the ensemble size and {names[0]!r} has {_sizes(sizes[0])} members, "
            f'{names[1]!r} {_sizes(sizes[1])}: use metric "crps_fair"'
        )


_ORDER = ("channel", "region", "lead_time", "init_time")


def _align(a: Records, b: Records, metric: Metric) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """Statistics of both models on the cells they share and all starts of either, and which starts count.

    Raises:
        ValueError: when a start was scored at different points.
    """
    both = [r.to_xarray(needed(r, [metric])).isel(model=0, drop=True) for r in (a, b)]
    shared = {dim: np.intersect1d(both[0][dim], both[1][dim]) for dim in _ORDER[:3]}
    left, right = xr.align(*(r.sel(shared).transpose(*_ORDER, ...) for r in both), join="outer")
    first = metric.statistics[0].id
    there = [r[first].notnull().any([d for d in r[first].dims if d not in _ORDER]) for r in (left, right)]
    paired = there[0] & there[1]
    for name in left:
        if (name == "sum_w" or str(name).endswith(WEIGHT)) and bool(
            (paired & (abs(left[name] - right[name]) > 1e-9 * abs(left[name]))).any()
        ):
            raise ValueError(
                f"the two models were scored at different points ({name} of a start differs): compare "
                "forecasts on the same truth, with the same missing points"
            )
    return left, right, xr.Dataset({"both": paired, "either": there[0] | there[1]})


def _starts(pair: tuple[xr.Dataset, xr.Dataset, xr.Dataset]) -> Any:
    """Init times that enter any cell."""
    both = pair[2]["both"]
    return both["init_time"].values[both.any(_ORDER[:3])]


def _cells(
    metric: Metric, pair: tuple[xr.Dataset, xr.Dataset, xr.Dataset], method: Method, regular: bool
) -> Iterator[Cell]:
    left, right, counts = pair
    both, either = counts["both"].values, counts["either"].values
    ids = [s.id for s in metric.statistics]
    ours, theirs = ({name: side[name].values for name in ids} for side in (left, right))
    axes = [left[name].values for name in _ORDER[:3]]
    for where in np.ndindex(*both.shape[:3]):
        keep = both[where]
        key = {name: axis[i] for name, axis, i in zip(_ORDER[:3], axes, where, strict=True)}
        if not either[where].any():
            continue
        dropped = int(either[where].sum() - keep.sum())
        even = regular and _contiguous(keep)
        series = [{name: side[name][where][keep] for name in ids} for side in (ours, theirs)]
        yield _cell(metric, key, series[0], series[1], method, dropped, even)


def _contiguous(keep: npt.NDArray[np.bool_]) -> bool:
    where = np.flatnonzero(keep)
    return where.size > 0 and where[-1] - where[0] + 1 == where.size


def _cell(
    metric: Metric,
    key: dict[str, Any],
    a: dict[str, Vector],
    b: dict[str, Vector],
    method: Method,
    dropped: int,
    regular: bool,
) -> Cell:
    key = {"metric": metric.name, **key, "channel": str(key["channel"]), "region": str(key["region"])}
    pairs = len(next(iter(a.values())))
    if pairs < 2:
        return _untested(key, pairs, dropped)
    (score_a, line_a), (score_b, line_b) = linearised(metric, a), linearised(metric, b)
    (loss_a, series_a), (loss_b, series_b) = (
        _loss(metric.goal, score, line) for score, line in ((score_a, line_a), (score_b, line_b))
    )
    if not np.isfinite(series_a - series_b).all():
        return replace(
            _untested(key, pairs, dropped), score_a=score_a, score_b=score_b, notes=("not defined",)
        )
    methods: tuple[Method, ...] = ("iid", "geer", "ewc")
    tests = {m: paired_test(series_a - series_b, method=m, regular=regular) for m in methods}
    chosen = tests[method]
    low, high = chosen.interval()
    return Cell(
        **key,
        n=pairs,
        n_dropped=dropped,
        score_a=score_a,
        score_b=score_b,
        difference=chosen.mean,
        skill=(loss_b - loss_a) / abs(loss_b) if loss_b else np.nan,
        stderr=chosen.stderr,
        low=low,
        high=high,
        inflation=chosen.inflation,
        n_effective=chosen.n_effective,
        p_iid=tests["iid"].p_value,
        p_geer=tests["geer"].p_value,
        p_ewc=tests["ewc"].p_value,
        p_value=chosen.p_value,
        p_adjusted=np.nan,
        significant=False,
        notes=chosen.notes,
    )


def _loss(goal: Goal, score: float, line: Vector) -> tuple[float, Vector]:
    """Score and its linearisation as something of which less is better."""
    if goal == "low":
        return score, line
    if goal == "high":
        return -score, -line
    target = 1.0 if goal == "one" else 0.0
    sign = 1.0 if score >= target else -1.0
    return abs(score - target), sign * (line - target)


def _untested(key: dict[str, Any], n: int, dropped: int) -> Cell:
    values: dict[str, Any] = {f.name: np.nan for f in fields(Cell) if f.type == "float"}
    values |= {"n": n, "n_dropped": dropped, "significant": False, "notes": ("fewer than 2 pairs",)}
    return Cell(**key, **values)


def _correct(cells: list[Cell], correction: Correction, alpha: float) -> list[Cell]:
    p = np.array([cell.p_value for cell in cells])
    adjusted = p
    if correction != "none":
        adjusted = benjamini_hochberg(p) if correction == "benjamini-hochberg" else sidak(p)
    return [
        replace(cell, p_adjusted=float(q), significant=bool(q < alpha))
        for cell, q in zip(cells, adjusted, strict=True)
    ]


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _sizes(members: tuple[int, ...]) -> str:
    return "/".join(map(str, members))


def _hours(step: np.timedelta64) -> str:
    return f"{step / np.timedelta64(1, 'h'):g} h"
