"""What a page of records shows when nobody chose."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._card import days, event_title, metric_title, metrics_title, unit_text
from ._cells import hours, natural
from ._charts import DASHES
from ._compare import Comparison, checked_months, compare_models, in_months, regridding
from ._curves import reliability_diagram, roc_curve, value_curve
from ._event_scores import EventMetric
from ._events import EventOutcomes
from ._intervals import score_intervals
from ._metrics import Metric, RankHistogram
from ._presets import PRESETS, Preset
from ._records import Records
from ._scores import Average, resolve, scores
from ._spectra import Coherence, PowerSpectrum, SpectralRatio

if TYPE_CHECKING:
    from ._report import Report

_CARD = ("crps_fair", "rmse")
_SELECTION = {"months", "sample", "lag"}
# Their siblings say the same in a chart; the table has all of them.
_NOT_DRAWN = ("crps_biased", "mse", "spread", "spread_skill_raw", "spread_skill_fortin")
_DAYS = (1, 2, 3, 5, 7, 10, 14)
_MOST_LEADS = 12
_MOST_CHANNELS = 6


def fill(
    report: Report,
    records: Records,
    baseline: str,
    metrics: Sequence[str] | None,
    alpha: float,
    seed: int,
    choices: Mapping[str, Any],
) -> None:
    """Add every section that the records have data for; `choices` are arguments of `compare`."""
    preset = next((p for p in PRESETS.values() if p.label == records.conventions.preset), None)
    if preset is not None and not set(choices) <= _SELECTION:
        raise TypeError(f"preset {preset.name!r} sets {sorted(set(choices) - _SELECTION)}: leave them out")
    if choices.get("method") == "bootstrap":
        choices = {**choices, "seed": seed}
    months = checked_months(choices.get("months"))
    every, records = records, in_months(records, months)
    if months:
        report.text("Period", f"Starts in the months {', '.join(map(str, months))} only.")
    average = preset.average if preset else "starts"
    chosen = resolve(records, None)
    table = scores(records, chosen, average=average)
    table = table.sel(channel=sorted(map(str, table["channel"].values), key=natural))
    if len(records.models) > 1:
        _cards(report, every, baseline, metrics, alpha, preset, choices)
    region = "global" if "global" in records.regions else records.regions[0]
    bands = _bands(records.select(region=region), chosen, preset, average)
    _curves(report, table, chosen, region, bands)
    _vectors(report, table, chosen, region)
    _events(report, records, chosen, region, seed)
    _tables(report, table, chosen)
    _settings(report, records, chosen, preset)


def _bands(
    records: Records, metrics: Sequence[Metric], preset: Preset | None, average: Average
) -> xr.Dataset:
    """Confidence intervals of all single numbers, of events by the bootstrap where the preset has one."""
    single = [m for m in metrics if not m.vector]
    bootstrap = None if preset is None else preset.event_bootstrap
    drawn = [m for m in single if bootstrap is not None and isinstance(m, EventMetric)]
    found = score_intervals(records, [m for m in single if m not in drawn], average=average)
    if bootstrap is None or not drawn:
        return found
    more = score_intervals(records, drawn, method="bootstrap", average=average, **asdict(bootstrap))
    return found.assign(more.data_vars)


def _cards(
    report: Report,
    records: Records,
    baseline: str,
    metrics: Sequence[str] | None,
    alpha: float,
    preset: Preset | None,
    choices: Mapping[str, Any],
) -> None:
    """A summary and a card for each model against the baseline."""
    others = [model for model in records.models if model != baseline]
    refused: list[str] = []
    try:
        cards = _compared(records, others, baseline, metrics, alpha, preset, choices)
    except ValueError:
        # One model that cannot be compared must not hide the others.
        able = []
        for model in others:
            try:
                _compared(records, [model], baseline, metrics, alpha, preset, choices)
                able.append(model)
            except ValueError as error:
                refused.append(f"No scorecard of {model}: {error}.")
        cards = _compared(records, able, baseline, metrics, alpha, preset, choices) if able else []
    intro = (
        f"The baseline is {baseline}. A cell is one metric, channel, region and lead time. Level {alpha:g}."
    )
    if cards:
        rows = [
            {"card": card.title, "metrics": metrics_title(card.metrics)}
            | {name.replace("_", ", "): number for name, number in card.count().items()}
            | _robust_columns(card)
            for card in cards
        ]
        report.table("Summary", rows, intro, _tests_text(cards), *refused)
    else:
        report.text("Summary", intro, *refused)
    for card in cards:
        report.scorecard(card.title, card)


def _tests_text(cards: Sequence[Comparison]) -> str:
    """How many tests there were, and what chance makes of so many."""
    first, tests = cards[0], cards[0].n_corrected
    by_chance = sum(card.expected_false_positives for card in cards)
    corrected = (
        "They are not corrected for their number, as in the evaluation that this preset follows."
        if first.correction == "none"
        else f"They are corrected for their number{' over all cards and on each' * (len(cards) > 1)} "
        f"({first.correction})."
    )
    expected = f"{by_chance:.0f}" if by_chance >= 9.5 else f"{by_chance:.2g}"
    cards_text = f"{len(cards)} card{'s' * (len(cards) > 1)}"
    return (
        f"{tests} tests on {cards_text}: if no model differed from the baseline, about {expected} would "
        f"lie below the level uncorrected. {corrected}"
    )


def _robust_columns(card: Comparison) -> dict[str, str | int]:
    if card.by_default:
        return {}
    better, worse = card.count_robust()
    return {"better by the default test": better, "worse by the default test": worse}


def _compared(
    records: Records,
    models: Sequence[str],
    baseline: str,
    metrics: Sequence[str] | None,
    alpha: float,
    preset: Preset | None,
    choices: Mapping[str, Any],
) -> Sequence[Comparison]:
    if preset is not None:
        tested, base = records.select(model=list(models)), records.select(model=baseline)
        return preset.cards(tested, base, metrics=metrics, alpha=alpha, **choices)
    names = list(metrics) if metrics is not None else _card_metrics(records, [*models, baseline])
    leads = _shown(records, [*models, baseline], choices.get("lag"))
    return compare_models(records, baseline, names, models=models, lead_times=leads, alpha=alpha, **choices)


def _shown(
    records: Records, models: Sequence[str], lag: np.timedelta64 | None
) -> npt.NDArray[np.timedelta64] | None:
    """Lead times of the cards: the usual days that all models hold where there are many, None for all."""
    if records.lead_times.size <= _MOST_LEADS:
        return None
    wanted = np.array(_DAYS, "timedelta64[D]").astype(records.lead_times.dtype)
    for model in models:
        later = lag if lag is not None and model == models[-1] else np.timedelta64(0, "s")
        wanted = wanted[np.isin(wanted + later, records.select(model=model).lead_times)]
    return wanted if wanted.size else None


def _card_metrics(records: Records, models: Sequence[str]) -> list[str]:
    """Fair CRPS and RMSE where they exist, otherwise every number that can be better or worse."""
    fewest = int(records.select(model=models).table["members"].to_numpy().min())
    found = [m for m in resolve(records, None) if not m.vector and m.goal != "none" and _exists(m, fewest)]
    usual = [m.name for m in found if m.name in _CARD]
    return usual or [m.name for m in found]


def _exists(metric: Metric, members: int) -> bool:
    return max(s.minimum_members for s in metric.statistics) <= members


def _curves(
    report: Report, table: xr.Dataset, metrics: Sequence[Metric], region: str, bands: xr.Dataset
) -> None:
    shown = [m for m in metrics if not m.vector and m.name not in _NOT_DRAWN]
    held = {m.name for m in metrics}
    for heading, names in _together(shown).items():
        if names == ["rmse"] and "spread" in held and bool(table["spread"].notnull().any()):
            heading, names = "Spread and error", ["rmse", "spread"]
        some = table[names].sel(region=region).notnull().any(["model", "lead_time"])
        where = np.any([some[name].values for name in names], axis=0)
        channels = [str(c) for c in table["channel"].values[where]]
        if channels:
            title = heading[0].upper() + heading[1:]
            report.curves(title, table, names, region=region, channels=channels, bands=bands)


def _together(metrics: Sequence[Metric]) -> dict[str, list[str]]:
    """Names that share a chart: scores of one kind for several thresholds; fair CRPS and RMSE first."""
    out: dict[str, list[str]] = {}
    for metric in sorted(metrics, key=lambda m: m.name not in _CARD):
        heading = metric_title(metric.name)
        if isinstance(metric, EventMetric):
            heading = metric_title(metric.name.replace(metric.label, f"{metric.event}thresholds"))
        if len(out.get(heading, ())) == len(DASHES):
            heading = metric_title(metric.name)
        out.setdefault(heading, []).append(metric.name)
    return {metric_title(n[0]) if len(n) == 1 else heading: n for heading, n in out.items()}


def _vectors(report: Report, table: xr.Dataset, metrics: Sequence[Metric], region: str) -> None:
    """Rank histograms and spectra at one lead time."""
    lead = table["lead_time"].values[table.sizes["lead_time"] // 2]
    at = table.sel(region=region, lead_time=lead)
    where = f"Region {region}, day {days(lead)}."
    channels = [str(c) for c in table["channel"].values]
    few = channels[:_MOST_CHANNELS]
    note = f" The first {len(few)} of {len(channels)} channels." if len(channels) > len(few) else ""
    for metric in metrics:
        if isinstance(metric, RankHistogram):
            histograms = {
                f"{channel}, {model}": values
                for channel in few
                for model in at["model"].values
                if (values := _finite(at[metric.name].sel(model=model, channel=channel))).size > 2
            }
            if histograms:
                report.rank_histograms("Rank histograms", histograms, where + note)
    _powers(report, at, metrics, few, where + note)
    for metric in metrics:
        if isinstance(metric, SpectralRatio | Coherence):
            ratio = isinstance(metric, SpectralRatio)
            lines = {c: _by_model(at[metric.name].sel(channel=c)) for c in few}
            panels = {c: by_model for c, by_model in lines.items() if by_model}
            if not panels:
                continue
            report.spectrum(
                f"{'Power over that of the truth' if ratio else 'Coherence with the truth'}: {metric.name}",
                panels,
                where + note,
                log="x",
                reference=1.0 if ratio else None,
                x_label=_waves(metric.kind),
            )


def _powers(
    report: Report, at: xr.Dataset, metrics: Sequence[Metric], channels: Sequence[str], where: str
) -> None:
    """Power of each model and of the truth, those of one kind in one section."""
    found = [m for m in metrics if isinstance(m, PowerSpectrum)]
    for kind, rows in dict.fromkeys((m.kind, m.latitudes) for m in found):
        alike = [m for m in found if (m.kind, m.latitudes) == (kind, rows)]
        panels: dict[str, dict[str, np.ndarray]] = {}
        for channel in channels:
            unit = unit_text(alike[0].unit, str(at["units"].sel(channel=channel).values))
            lines: dict[str, np.ndarray] = {}
            for metric in alike:
                by_model = _by_model(at[metric.name].sel(channel=channel))
                if metric.of == "truth":
                    # All models were paired with the same truth.
                    lines |= {"truth": next(iter(by_model.values()))} if by_model else {}
                else:
                    lines |= {f"{model}, {metric.of}": values for model, values in by_model.items()}
            if lines:
                panels[f"{channel}, {unit}" if unit else channel] = lines
        rows_text = "" if rows is None else f", latitudes {rows[0]:g} to {rows[1]:g}"
        heading = f"Power spectra, {kind}{rows_text}"
        if panels:
            report.spectrum(heading, panels, where, x_label=_waves(kind))


def _waves(kind: str) -> str:
    return "total wavenumber" if kind == "sphere" else "zonal wavenumber"


def _finite(values: xr.DataArray) -> np.ndarray:
    found = values.values
    return np.asarray(found[np.isfinite(found)])


def _by_model(values: xr.DataArray) -> dict[str, np.ndarray]:
    found = {str(m): values.sel(model=m).values for m in values["model"].values}
    return {m: v for m, v in found.items() if np.isfinite(v).any()}


def _events(report: Report, records: Records, metrics: Sequence[Metric], region: str, seed: int) -> None:
    """Reliability, ROC and economic value of every event whose outcomes were kept."""
    leads = records.lead_times
    one = records.select(region=region, lead_time=leads[[leads.size // 2]])
    for event in dict.fromkeys(_outcomes(metrics)):
        label = _event_text(event)
        try:
            _event(report, one, event, region, seed)
        except ValueError as error:
            report.text(f"Event: {label}", f"No diagrams: {error}.")


def _event(report: Report, records: Records, event: EventOutcomes, region: str, seed: int) -> None:
    label, where = _event_text(event), f"Region {region}."
    key = (event.threshold, event.event)
    diagram = reliability_diagram(records, *key, seed=seed)
    roc, value = roc_curve(records, *key), value_curve(records, *key)
    weight = diagram["weight"]
    some = weight.notnull().any([d for d in weight.dims if d != "channel"]).values
    channels = [str(c) for c in diagram["channel"].values[some]][:_MOST_CHANNELS]
    bars = " Bars: where 90 % of the frequencies of a reliable forecast would lie, by resampled starts."
    first = report.length
    report.reliability(f"Reliability: {label}", diagram, where + bars, region=region, channels=channels)
    report.roc(f"ROC: {label}", roc, where, region=region, channels=channels)
    potential = " The best cutoff for each ratio was chosen on this very sample: potential value."
    report.value(f"Economic value: {label}", value, where + potential, region=region, channels=channels)
    report.joined(first, f"Event: {label}")


def _event_text(event: EventOutcomes) -> str:
    if isinstance(event.threshold, tuple):
        return ", ".join(f"{channel} {event.event} {value:g}" for channel, value in event.threshold)
    value = event.threshold if isinstance(event.threshold, str) else f"{event.threshold:g}"
    return event_title(event.event, value)


def _outcomes(metrics: Sequence[Metric]) -> Iterator[EventOutcomes]:
    for metric in metrics:
        for statistic in metric.statistics:
            if isinstance(statistic, EventOutcomes):
                yield statistic


def _tables(report: Report, table: xr.Dataset, metrics: Sequence[Metric]) -> None:
    names = [m.name for m in metrics if not m.vector]
    rows = list(_score_rows(table, names))
    report.table("Scores", rows, "Means over all starts of each model.", fold=f"All {len(rows)} rows")


def _settings(report: Report, records: Records, metrics: Sequence[Metric], preset: Preset | None) -> None:
    """Everything that the records say of how they were made."""
    c = records.conventions
    units = ", ".join(f"{k} {v}" for k, v in sorted(c.units.items()) if v)
    starts = records.init_times.astype("datetime64[h]")
    rows: dict[str, object] = {
        "models": ", ".join(f"{m} ({_members(records, m)})" for m in records.models),
        "truth": c.truth,
        "the truth is the analysis of": ", ".join(c.truth_models) or "not stated",
        "missing truth": _missing(records),
        "starts": f"{starts[0]} to {starts[-1]}, {starts.size} in all{_spacing(starts)}",
        "lead times in days": ", ".join(map(days, records.lead_times)),
        "regions": ", ".join(f"{name} (mask {c.regions.get(name, 'unknown')})" for name in records.regions),
        "units": units or "not stated",
        "weights": c.weights,
        "grid": c.grid,
        "interpolation": c.interpolation or "none: forecasts were on the points of the truth",
        "regridding": "; ".join(filter(None, (_regridded(records, m) for m in records.models)))
        or "not known: the records were not made by wx-eval run",
        "climatology": c.climatology or "none",
        "preset": c.preset or "none",
        "hash of these conventions": c.digest,
        "metrics": ", ".join(m.name for m in metrics),
    }
    if preset is not None:
        rows["source of the preset"] = preset.source
        rows |= {
            f"published: {word}": text + " (not compared with the text)" * (word in preset.unchecked)
            for word, text in preset.facts.items()
        }
    elif c.preset:
        rows["source of the preset"] = "not of this version of wx-eval: cards are those without a preset"
    report.table("Settings", rows)
    if report.command:
        report.code("Reproduce", report.command, "The command that makes this page again.")
    if records.runs:
        text = json.dumps(records.runs, indent=2, sort_keys=True)
        report.code("Runs", text, "What the records of each model were made from.")


def _members(records: Records, model: str) -> str:
    sizes = np.unique(records.select(model=model).table["members"].to_numpy())
    return f"{'/'.join(map(str, sizes))} member{'s' * bool((sizes > 1).any())}"


def _spacing(starts: npt.NDArray[np.datetime64]) -> str:
    steps = np.unique(np.diff(starts))
    if steps.size > 1:
        return ", unevenly spaced"
    return f", every {hours(steps[0])}" if steps.size else ""


def _missing(records: Records) -> str:
    """What became of a truth that is not there, by the rows and the runs."""
    table = records.table
    n, absent = table["n"].to_numpy(), table["n_missing"].to_numpy()
    policy = {str(run.get("missing_truth", "error")) for runs in records.runs.values() for run in runs}
    text = f"{int((n == 0).sum())} of {len(n)} rows have none and count nowhere"
    masked = (n > 0) & (absent > 0)
    if masked.any():
        share = absent[masked] / (n + absent)[masked]
        text += f"; {int(masked.sum())} rows lack it at some points, at most {100 * share.max():.3g} %"
    return text + f"; policy of the runs: {', '.join(sorted(policy))}" * bool(policy)


def _regridded(records: Records, model: str) -> str:
    text = regridding(records, model)
    return f"{model}: {text}" if text else ""


def _score_rows(table: xr.Dataset, names: Sequence[str]) -> Iterator[dict[str, object]]:
    axes = ("model", "channel", "region", "lead_time")
    fields = {name: table[name].transpose(*axes).values for name in (*names, "n_starts", "members")}
    models, channels, regions, leads = (table[axis].values for axis in axes)
    units = table["units"].values
    for where in np.argwhere(fields["n_starts"] > 0):
        m, c, r, k = where
        size = fields["members"][m, c, r, k]
        yield {
            "model": str(models[m]),
            "channel": str(channels[c]),
            "unit": str(units[c]),
            "region": str(regions[r]),
            "days": float(days(leads[k])),
            "starts": int(fields["n_starts"][m, c, r, k]),
            "members": int(size) if np.isfinite(size) else "varying",
            **{name: float(fields[name][m, c, r, k]) for name in names},
        }
