"""Paired comparison of two forecasts with tests over a whole card."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xarray as xr

from ._inference import Method, benjamini_hochberg, paired_test, sidak
from ._records import Conventions, Records

Metric = Literal["crps_fair", "crps_biased", "mae", "rmse"]
Correction = Literal["benjamini-hochberg", "sidak", "none"]

# The record column of each metric and whether a square root follows the mean over starts.
_METRICS: dict[str, tuple[str, bool]] = {
    "crps_fair": ("crps_fair", False),
    "crps_biased": ("crps_biased", False),
    "mae": ("mae_mean", False),
    "rmse": ("mse_mean", True),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Comparison of one (channel, region, lead time); see Comparison.table for the meaning of the fields."""

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
        metric: what is compared; smaller is better.
        cells: one per channel, region and lead time.
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
    metric: str
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

        difference = score_a - score_b with its standard error and 95 % interval; skill = 1 - a / b; p_iid,
        p_geer and p_ewc before any correction; p_value the one of `method`, p_adjusted after `correction`.
        The settings are in the schema metadata.
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
            "metric": self.metric,
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
    metric: Metric = "crps_fair",
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

    The card that is corrected for multiplicity is what `channels`, `regions` and `lead_times` leave: choose
    it before looking. RMSE is tested through the linearisation of the square root at the mean.

    Args:
        a: records of the model under test.
        b: records of the baseline.
        metric: "crps_fair", "crps_biased", "mae" or "rmse" (of the ensemble mean).
        model_a: which model of `a`, needed when it holds several.
        model_b: which model of `b`, needed when it holds several.
        channels: restrict to these.
        regions: restrict to these.
        lead_times: restrict to these.
        method: standard error behind the p-value, see `paired_test`.
        correction: over all tests of the card.
        alpha: level of significance.

    Raises:
        ValueError: for different conventions, an unknown or undefined metric, biased scores of ensembles of
            different size, or no start in common.
    """
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {tuple(_METRICS)}, got {metric!r}")
    if correction not in ("benjamini-hochberg", "sidak", "none"):
        raise ValueError(f'correction must be "benjamini-hochberg", "sidak" or "none", got {correction!r}')
    conventions = a.conventions.union(b.conventions)
    ours = _one_model(a, model_a, "a").select(channel=channels, region=regions, lead_time=lead_times)
    theirs = _one_model(b, model_b, "b").select(channel=channels, region=regions, lead_time=lead_times)
    names = (ours.models[0], theirs.models[0]) if len(ours) and len(theirs) else ("", "")
    sizes = _members(ours), _members(theirs)
    _check_metric(metric, names, sizes)
    pair = _align(ours, theirs, _METRICS[metric][0])
    starts = pair["init_time"].values[pair["both"].any([d for d in pair["both"].dims if d != "init_time"])]
    if starts.size < 2:
        raise ValueError(
            f"{names[0]!r} and {names[1]!r} share {starts.size} scored starts and a test needs 2: check that "
            "the init times, lead times, channels and regions of both records overlap"
        )
    steps = np.unique(np.diff(starts))
    cells = _correct(list(_cells(pair, _METRICS[metric][1], method, steps.size == 1)), correction, alpha)
    return Comparison(
        model_a=names[0],
        model_b=names[1],
        metric=metric,
        cells=tuple(cells),
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
    metric: str, names: tuple[str, str], sizes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    for name, size in zip(names, sizes, strict=True):
        if metric.startswith("crps") and 1 in size:
            raise ValueError(
                f"model {name!r} has a single member, for which {metric} does not exist: compare metric "
                '"mae" or "rmse"'
            )
    if metric == "crps_biased" and sizes[0] != sizes[1]:
        raise ValueError(
            f"biased CRPS depends on the ensemble size and {names[0]!r} has {_sizes(sizes[0])} members, "
            f'{names[1]!r} {_sizes(sizes[1])}: use metric "crps_fair"'
        )


def _align(a: Records, b: Records, column: str) -> xr.Dataset:
    """Scores of both models on the cells they share and all starts of either."""
    left, right = (r.to_xarray()[column].isel(model=0, drop=True) for r in (a, b))
    shared = {dim: np.intersect1d(left[dim], right[dim]) for dim in ("channel", "region", "lead_time")}
    left, right = xr.align(left.sel(shared), right.sel(shared), join="outer")
    either, both = left.notnull() | right.notnull(), left.notnull() & right.notnull()
    return xr.Dataset({"a": left, "b": right, "either": either, "both": both})


def _cells(pair: xr.Dataset, root: bool, method: Method, regular: bool) -> Iterator[Cell]:
    order = ("channel", "region", "lead_time", "init_time")
    a, b, both, either = (pair[name].transpose(*order).values for name in ("a", "b", "both", "either"))
    axes = [pair[name].values for name in order[:3]]
    for where in np.ndindex(*both.shape[:3]):
        keep = both[where]
        key = {name: axis[i] for name, axis, i in zip(order[:3], axes, where, strict=True)}
        dropped = int(either[where].sum() - keep.sum())
        even = regular and _contiguous(keep)
        yield _cell(key, a[where][keep], b[where][keep], root, method, dropped, even)


def _contiguous(keep: npt.NDArray[np.bool_]) -> bool:
    where = np.flatnonzero(keep)
    return where.size > 0 and where[-1] - where[0] + 1 == where.size


def _cell(
    key: dict[str, Any],
    a: npt.NDArray[np.float64],
    b: npt.NDArray[np.float64],
    root: bool,
    method: Method,
    dropped: int,
    regular: bool,
) -> Cell:
    key = {**key, "channel": str(key["channel"]), "region": str(key["region"])}
    if a.size < 2:
        return _untested(key, a.size, dropped)
    score_a, score_b = float(a.mean()), float(b.mean())
    if root:
        # d sqrt(m) = dm / (2 sqrt(m)): the mean of these series is the RMSE itself.
        a, b = _linear_root(a), _linear_root(b)
        score_a, score_b = float(np.sqrt(score_a)), float(np.sqrt(score_b))
    methods: tuple[Method, ...] = ("iid", "geer", "ewc")
    tests = {m: paired_test(a - b, method=m, regular=regular) for m in methods}
    chosen = tests[method]
    low, high = chosen.interval()
    return Cell(
        **key,
        n=a.size,
        n_dropped=dropped,
        score_a=score_a,
        score_b=score_b,
        difference=chosen.mean,
        skill=1 - score_a / score_b if score_b else np.nan,
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


def _linear_root(mse: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    mean = mse.mean()
    return np.asarray((mse + mean) / (2 * np.sqrt(mean))) if mean > 0 else mse


def _untested(key: dict[str, Any], n: int, dropped: int) -> Cell:
    values: dict[str, Any] = {f.name: np.nan for f in fields(Cell) if f.type is float}
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
