"""Paired comparison of forecasts with tests over a whole card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ._cells import OWN_ANALYSIS as OWN_ANALYSIS
from ._cells import Cell as Cell
from ._cells import Pair, cells_of
from ._comparison import Comparison as Comparison
from ._comparison import sizes_text
from ._grid import Vector
from ._inference import Method
from ._metrics import Metric
from ._multiplicity import Correction, adjusted
from ._records import Records
from ._samples import Sample, Test
from ._scores import Average, needed, resolve


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
            value or few events. Its p-values are not below 1 / (1 + resamples): a large card needs many
            (`Comparison.coarse`). They are not below 2^(1 - T) either, that of T equal signs.
            Blocks cut correlation: at T = 200 it finds a difference between equals in 6 % of cases for
            correlation 0 and 11 % for 0.5, at T = 50 in 18 % for 0.5, at T = 1000 in 12 % for 0.9.
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
                resamples=resamples * (method == "bootstrap"),
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
                f"model {name!r} has {sizes_text(size)} member(s), for which {metric.name} does not exist: "
                f'it needs {most}; compare metric "mae" or "rmse"'
            )
    if getattr(metric, "kind", "") in ("biased", "almost_fair") and sizes[0] != sizes[1]:
        raise ValueError(
            f"{metric.name} depends on the ensemble size and {names[0]!r} has {sizes_text(sizes[0])} "
            f"members, {names[1]!r} {sizes_text(sizes[1])}: use the fair kind"
        )
