"""Paired comparison of forecasts with tests over a whole card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ._cells import OWN_ANALYSIS as OWN_ANALYSIS
from ._cells import Cell as Cell
from ._cells import Pair, cells_of, hours
from ._grid import Vector
from ._inference import Method
from ._metrics import Metric
from ._multiplicity import Correction, adjusted, benjamini_hochberg
from ._records import Conventions, Records
from ._samples import Sample, Test
from ._scores import Average, needed, resolve


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores of model a against model b over the starts that both have, cell by cell.

    Attributes:
        model_a: name of the model under test.
        model_b: name of the baseline.
        metrics: names of what is compared.
        cells: one per metric, channel, region and lead time.
        method: of the standard error behind `p_value`.
        correction: for the number of tests.
        alpha: level of significance, after the correction.
        members_a: ensemble sizes found.
        members_b: ensemble sizes found.
        first_start: first start that entered any cell.
        last_start: last start that entered any cell.
        spacing: between starts, None when uneven.
        conventions: of both sets of records.
        n_corrected: tests that were corrected together, more than `n_tests` in one of several cards.
        n_cards: cards of which these are the tests.
        sample: which starts enter, see `compare`.
        months: of the starts, empty for all.
        lag: how much earlier b started, None for at the same time.
        average: over starts.
        resampling: of the bootstrap, "" without one.
        metric_units: `Metric.unit` by name.
        regridding: what was done to each forecast before it was scored, "" where the records do not tell.
    """

    model_a: str
    model_b: str
    metrics: tuple[str, ...]
    cells: tuple[Cell, ...]
    method: str
    correction: Correction
    alpha: float
    members_a: tuple[int, ...]
    members_b: tuple[int, ...]
    first_start: np.datetime64
    last_start: np.datetime64
    spacing: np.timedelta64 | None
    conventions: Conventions
    n_corrected: int
    sample: Sample = "each"
    months: tuple[int, ...] = ()
    lag: np.timedelta64 | None = None
    average: Average = "starts"
    resampling: str = ""
    metric_units: Mapping[str, str] = field(default_factory=dict)
    n_cards: int = 1
    regridding: tuple[str, str] = ("", "")

    @property
    def title(self) -> str:
        """Who is compared, and how if not by a t test."""
        return f"{self.model_a} against {self.model_b}" + (", bootstrap" if self.resampling else "")

    @property
    def by_default(self) -> bool:
        """Whether test and correction are the defaults of `compare`, to which `Cell.robust` refers."""
        return (self.method, self.correction) == ("ewc_ar1", "benjamini-hochberg")

    @property
    def n_tests(self) -> int:
        """Cells that were tested."""
        return sum(not np.isnan(cell.p_value) for cell in self.cells)

    @property
    def expected_false_positives(self) -> float:
        """Expected number of cells below alpha without a correction if the models were equal."""
        return self.alpha * self.n_tests

    @property
    def field_p_value(self) -> float:
        """P-value of no difference in any cell: the smallest after Benjamini-Hochberg (test of Simes 1986).

        Valid under positive dependence between cells, where counting significant cells is not (Wilks 2016,
        Bull. Am. Meteorol. Soc. 97, 2263). NaN without a test.
        """
        p = benjamini_hochberg([cell.p_value for cell in self.cells])
        return float(np.nanmin(p)) if self.n_tests else np.nan

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

    def count_robust(self) -> tuple[int, int]:
        """Cells in which a is significantly better, and worse, by the default test and correction."""
        sure = [cell.difference for cell in self.cells if cell.robust]
        return sum(d < 0 for d in sure), sum(d > 0 for d in sure)

    def table(self) -> pa.Table:
        """One row per cell.

        n starts are paired and n_dropped left out because one model lacks a score. difference = loss_a -
        loss_b with its standard error (t distribution with df) and 95 % interval, negative if a is better.
        The loss is the score where low is good, its negative where high is, and |score - 1| or |score| where
        1 or 0 is. skill = (loss_b - loss_a) / |loss_b|. bias_a and bias_b are mean errors over the same
        starts, null where the records do not hold them. inflation is the standard error over the one for
        independent starts, n_effective = n / inflation^2, above n where successive differences alternate.
        p_iid, p_geer, p_ewc and p_ewc_ar1 come before any correction; p_value is the one of `method`,
        p_adjusted that after `correction`, p_robust the p_ewc_ar1 after the correction of Benjamini and
        Hochberg over the same tests, so that a lenient test has a sound one beside it. The notes are those of
        `paired_test` and

        - "own analysis": the truth is the analysis of a or b and the lead time below two days;
        - "near its target": a score whose best value is 0 or 1 lies within two standard errors of it, where
          the loss has a kink and the test is conservative;
        - "not defined", "fewer than 2 pairs", "lead time beyond the sample": no test was made.

        The settings are in the schema metadata.
        """
        columns = {f.name: [getattr(cell, f.name) for cell in self.cells] for f in fields(Cell)}
        leads = np.array(columns.pop("lead_time"), "timedelta64[s]")
        notes = pa.array([", ".join(n) for n in columns.pop("notes")], pa.string())
        # What does not exist is null.
        kinds = {f.name: pa.float64() for f in fields(Cell) if f.type == "float"}
        table = pa.table({n: pa.array(c, kinds.get(n), from_pandas=True) for n, c in columns.items()})
        table = table.append_column("lead_time", pa.array(leads)).append_column("notes", notes)
        names = [f.name for f in fields(Cell)]
        return table.select(names).replace_schema_metadata({k: str(v) for k, v in self.settings().items()})

    def settings(self) -> dict[str, str]:
        """Everything a reader needs to judge or repeat the comparison."""
        paired = [cell.n for cell in self.cells]
        dropped = max((cell.n_dropped for cell in self.cells), default=0)
        spacing = "uneven" if self.spacing is None else hours(self.spacing)
        c = self.conventions
        better, worse = self.count_robust()
        brought = [
            f"{m}: {t}" for m, t in zip((self.model_a, self.model_b), self.regridding, strict=True) if t
        ]
        own = [name for name in (self.model_a, self.model_b) if name in c.truth_models]
        optional = {
            "months of starts": " ".join(map(str, self.months)),
            "pairing": f"{self.model_b} started {hours(self.lag)} earlier, same valid time"
            if self.lag
            else "",
            "own analysis": f"the truth is that of {' and '.join(own)}: below 2 days it is favoured"
            if own
            else "",
            "resampling": self.resampling,
            "interpolation": c.interpolation,
            "regridding": "; ".join(brought),
            "by the default test": ""
            if self.by_default
            else f"significantly better in {better} and worse in {worse} cells (ewc_ar1, Benjamini-Hochberg "
            f"over the same {self.n_corrected} tests)",
        }
        return {
            "models": f"{self.model_a} against {self.model_b}",
            "metric": ", ".join(self.metrics),
            "truth": c.truth,
            "period of starts": f"{self.first_start} to {self.last_start}, spacing {spacing}",
            "starts paired": f"{_span(paired)} per cell, at most {dropped} dropped",
            "sample": _SAMPLES[self.sample],
            "average": f"equal weight of {self.average}" if self.average == "starts" else "weights of points",
            "members": f"{_sizes(self.members_a)} against {_sizes(self.members_b)}",
            "weights": c.weights,
            "grid": c.grid,
            "climatology": c.climatology or "none",
            "preset": c.preset or "none",
            "conventions": c.digest,
            "test": _TESTS[self.method],
            "number of tests": f"{self.n_tests} on this card"
            + (f", {self.n_corrected} on all {self.n_cards} cards" if self.n_cards > 1 else ""),
            "correction": f"{self.correction} over {self.n_corrected} tests at level {self.alpha:g}"
            + (", and over those of this card" if self.n_cards > 1 and self.correction != "none" else ""),
            "expected false positives": f"{self.expected_false_positives:.1f} before the correction",
            "any difference at all": f"p = {self.field_p_value:.2g} (Simes)",
            **{name: text for name, text in optional.items() if text},
        }


_SAMPLES: Mapping[str, str] = {
    "each": "each cell has all its pairs",
    "starts": "the same starts at all lead times",
    "valid": "the same valid times at all lead times",
}
_T = "two-sided paired t test, standard error"
_TESTS: Mapping[str, str] = {
    "iid": f"{_T} iid (independent starts)",
    "geer": f"{_T} geer (AR(2) inflation)",
    "geer_wbx": f"{_T} geer_wbx (AR(2) inflation as in WeatherBench-X)",
    "ewc": f"{_T} ewc (equal-weighted cosines)",
    "ewc_ar1": f"{_T} ewc_ar1 (equal-weighted cosines, corrected by an AR(1) spectrum)",
    "hln": "Diebold-Mariano test of Harvey, Leybourne and Newbold (hln)",
    "hg": "Diebold-Mariano test of Hering and Genton (hg)",
    "bootstrap": "two-sided stationary bootstrap of starts",
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
    months: Iterable[int] | None = None,
    sample: Sample = "each",
    lag: np.timedelta64 | None = None,
    average: Average = "starts",
    method: Method | Literal["bootstrap"] = "ewc_ar1",
    seed: int | None = None,
    resamples: int = 2000,
    block: float | None = None,
    correction: Correction = "benjamini-hochberg",
    alpha: float = 0.05,
) -> Comparison:
    """Test model a against baseline b on the starts that both have, in every cell they share.

    The card that is corrected for multiplicity is what `metrics`, `channels`, `regions` and `lead_times`
    leave: choose it before looking. Metrics that are not linear, such as RMSE or a ratio, are tested through
    their linearisation at the means (delta method), or by the bootstrap through their values. Cost: one pass
    over the series per cell; for vectors of K numbers K passes; the bootstrap takes `resamples` T
    multiplications per number.

    Args:
        a: records of the model under test.
        b: records of the baseline.
        metrics: one or several, by name or as objects; not vectors and not those without a goal.
        model_a: which model of `a`, needed when it holds several.
        model_b: which model of `b`, needed when it holds several.
        channels: restrict to these.
        regions: restrict to these.
        lead_times: restrict to these.
        months: restrict to starts in these months, 1 to 12.
        sample: "each" cell has all its pairs; "starts" keeps those that all lead times share, "valid" the
            valid times that all lead times share, so that curves along lead time show one sample.
        lag: b started so much earlier and is compared at the same valid time, where its lead time is longer
            by it. Cells have the lead times of a. For models that start at different hours.
        average: over starts, see `scores`.
        method: of the p-value, see `paired_test`; "hln" and "hg" get lead time / spacing as horizon.
            "bootstrap" draws blocks of starts, the same for both models, and needs no smooth metric: for AUC,
            value or few events. Its p-values are not below 1 / (1 + resamples): a large card needs many.
            Blocks cut correlation: at T = 200 it finds a difference between equals in 6 % of cases for
            correlation 0 and 11 % for 0.5, at T = 50 in 17 % for 0.5.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        block: mean length of its blocks in starts; by default the mean over the cells of a lead time of the
            choice of Politis and White (2004).
        correction: over all tests of the card, see `benjamini_hochberg`, `benjamini_yekutieli`, `holm`,
            `sidak`.
        alpha: level of significance.

    Raises:
        ValueError: for different conventions, an unknown, untestable or undefined metric, biased scores of
            ensembles of different size, forecasts scored at different points, settings out of range, or no
            start in common.
    """
    test = Test(method=method, seed=seed, resamples=resamples, block=block)
    adjusted([], correction)
    if average not in ("starts", "weights"):
        raise ValueError(f'average must be "starts" or "weights", got {average!r}')
    conventions = a.conventions.union(b.conventions)
    chosen = resolve(a, [metrics] if isinstance(metrics, str | Metric) else list(metrics))
    seasons = checked_months(months)
    sides = (_one_model(a, model_a, "a"), _shifted(_one_model(b, model_b, "b"), lag))
    lead_times = None if lead_times is None else list(lead_times)
    ours, theirs = (
        in_months(r.select(channel=channels, region=regions, lead_time=lead_times), seasons) for r in sides
    )
    names = (sides[0].models[0], sides[1].models[0]) if len(sides[0]) and len(sides[1]) else ("", "")
    sizes = _members(ours), _members(theirs)
    for metric in chosen:
        _check_metric(metric, names, sizes)
    pair = Pair.of(ours, theirs, needed(ours, chosen), sample)
    own = any(name in conventions.truth_models for name in names)
    scored = [pair.scored(metric) for metric in chosen]
    starts = pair.starts[np.any([both.any(axis=(0, 1, 2)) for both, _ in scored], axis=0)]
    if starts.size < 2:
        raise ValueError(
            f"{names[0]!r} and {names[1]!r} share {starts.size} scored starts and a test needs 2: check that "
            "the init times, lead times, channels and regions of both records overlap"
        )
    cells = [
        cell
        for metric, (both, either) in zip(chosen, scored, strict=True)
        for cell in cells_of(metric, pair, both, either, test, average, own)
    ]
    steps = np.unique(np.diff(starts))
    blocks = "automatic blocks" if block is None else f"blocks of {block:g} starts"
    return corrected_together(
        [
            Comparison(
                model_a=names[0],
                model_b=names[1],
                metrics=tuple(metric.name for metric in chosen),
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
                n_corrected=0,
                sample=sample,
                months=seasons,
                lag=lag,
                average=average,
                metric_units={metric.name: metric.unit for metric in chosen},
                regridding=(regridding(a, names[0]), regridding(b, names[1])),
                resampling=f"{resamples} resamples of {blocks}, seed {seed}" if method == "bootstrap" else "",
            )
        ]
    )[0]


def compare_models(
    records: Records,
    baseline: str,
    metrics: str | Metric | Sequence[str | Metric] = "crps_fair",
    *,
    models: Sequence[str] | None = None,
    **choices: Any,
) -> tuple[Comparison, ...]:
    """`compare` several models with one baseline, with a correction over the tests of all cards.

    An adjusted p-value is the larger of that over all cards and that over its own card.

    Args:
        records: of all models.
        baseline: name of one of them.
        metrics: see `compare`.
        models: to be tested; by default all others.
        **choices: arguments of `compare` from `channels` on.

    Raises:
        ValueError: as `compare`, or when there is no model to test.
    """
    names = [m for m in records.models if m != baseline] if models is None else list(models)
    if not names or baseline in names:
        raise ValueError(f"need models other than the baseline {baseline!r}, got {names} of {records.models}")
    cards = [compare(records, records, metrics, model_a=m, model_b=baseline, **choices) for m in names]
    return tuple(corrected_together(cards))


def corrected_together(cards: Sequence[Comparison]) -> list[Comparison]:
    """Adjust p-values over the tests of all cards, by the correction of each and by the default.

    An adjusted p-value is the larger of that over all cards and that over its own. By the first alone the
    discoveries that one model deserves would allow more false ones on the card of another, which the
    Benjamini-Hochberg procedure counts as a share of all; by the second alone every further model would be
    another chance to find something where there is nothing.
    """
    tests = sum(card.n_tests for card in cards)
    adjust = {card.correction: _adjusted(cards, "p_value", card.correction) for card in cards}
    robust = _adjusted(cards, "p_ewc_ar1", "benjamini-hochberg")
    out = []
    for k, card in enumerate(cards):
        found = zip(card.cells, adjust[card.correction][k].tolist(), robust[k].tolist(), strict=True)
        cells = (
            replace(c, p_adjusted=p, significant=p < card.alpha, p_robust=q, robust=q < card.alpha)
            for c, p, q in found
        )
        out.append(replace(card, cells=tuple(cells), n_corrected=tests, n_cards=len(cards)))
    return out


def _adjusted(cards: Sequence[Comparison], name: str, correction: Correction) -> list[Vector]:
    """Adjusted p-values of every card."""
    each = []
    for card in cards:
        p, tested = (np.array([getattr(c, key) for c in card.cells]) for key in (name, "p_value"))
        each.append(np.where(np.isnan(tested), np.nan, p))
    ends = np.cumsum([len(p) for p in each])[:-1]
    together = np.split(adjusted(np.concatenate(each), correction), ends)
    return [np.maximum(all_, adjusted(p, correction)) for all_, p in zip(together, each, strict=True)]


def checked_months(months: Iterable[int] | None) -> tuple[int, ...]:
    """Increasing months, none for all.

    Raises:
        ValueError: for other numbers than 1 to 12, or none of them.
    """
    chosen = tuple(sorted(set(months or ())))
    if not set(chosen) <= set(range(1, 13)) or (months is not None and not chosen):
        raise ValueError(f"months must be numbers from 1 to 12, got {months!r}")
    return chosen


def in_months(records: Records, months: tuple[int, ...]) -> Records:
    """Rows that started in these months, all without any.

    Raises:
        ValueError: for a month in which none started.
    """
    if not months:
        return records
    held = set(pc.unique(pc.month(records.table["init_time"])).to_pylist())
    if not held.issuperset(months):
        raise ValueError(
            f"no start of {', '.join(records.models)} lies in the months {sorted(set(months) - held)}, they "
            f"lie in {sorted(held)}: name some of these"
        )
    keep = pc.is_in(pc.month(records.table["init_time"]), pa.array(months, pa.int64()))
    return replace(records, table=records.table.filter(keep))


def regridding(records: Records, model: str) -> str:
    """What the runs of a model did to bring it to the grid of the truth."""
    found = []
    for run in records.runs.get(model, ()):
        regrid, stations = run.get("regrid"), run.get("stations")
        if isinstance(regrid, Mapping):
            found.append(f"{regrid.get('method')} to {regrid.get('grid', 'truth')}")
        elif regrid:
            found.append(f"{regrid} to truth")
        elif "forecast" in run and not stations:
            found.append("none")
    return ", ".join(dict.fromkeys(found))


def _shifted(records: Records, lag: np.timedelta64 | None) -> Records:
    """Rows as if they had started `lag` later, for the same valid time."""
    if lag is None:
        return records
    if lag <= np.timedelta64(0, "s"):
        raise ValueError(f"lag must be positive, got {lag}: exchange the models if a is the older forecast")
    table, columns = records.table, {}
    for name, step in (("init_time", lag), ("lead_time", -lag)):
        values = table[name].to_numpy() + step
        columns[name] = pa.array(values, table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), table.schema.field(name), columns[name])
    ahead = np.asarray(columns["lead_time"]) >= np.timedelta64(0, "s")
    return replace(records, table=table.filter(pa.array(ahead)))


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
    if getattr(metric, "kind", "") in ("biased", "almost_fair") and sizes[0] != sizes[1]:
        raise ValueError(
            f"{metric.name} depends on the ensemble size and {names[0]!r} has {_sizes(sizes[0])} members, "
            f"{names[1]!r} {_sizes(sizes[1])}: use the fair kind"
        )


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _sizes(members: tuple[int, ...]) -> str:
    return "/".join(map(str, members))
