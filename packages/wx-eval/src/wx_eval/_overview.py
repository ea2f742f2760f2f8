"""What a page of records shows when nobody chose."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ._card import days, metric_title, unit_text
from ._compare import Comparison, checked_months, compare_models, in_months
from ._curves import reliability_diagram, roc_curve, value_curve
from ._events import EventOutcomes
from ._intervals import score_intervals
from ._metrics import Metric, RankHistogram
from ._presets import PRESETS, Preset
from ._records import Records
from ._scores import resolve, scores
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
    if len(records.models) > 1:
        _cards(report, every, baseline, metrics, alpha, preset, choices)
    region = "global" if "global" in records.regions else records.regions[0]
    bands = score_intervals(records.select(region=region), average=average)
    _curves(report, table, chosen, region, bands)
    _vectors(report, table, chosen, region)
    _events(report, records, chosen, region, seed)
    _tables(report, records, table, chosen)


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
            {"model": card.model_a, "baseline": baseline}
            | {name.replace("_", ", "): number for name, number in card.count().items()}
            for card in cards
        ]
        report.table("Summary", rows, intro, *refused)
    else:
        report.text("Summary", intro, *refused)
    for card in cards:
        report.scorecard(f"{card.model_a} against {baseline}", card)


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
        return [
            preset.compare(
                records, records, model_a=m, model_b=baseline, metrics=metrics, alpha=alpha, **choices
            )
            for m in models
        ]
    names = list(metrics) if metrics is not None else _card_metrics(records, [*models, baseline])
    leads = records.lead_times
    if leads.size > _MOST_LEADS:
        wanted = np.array(_DAYS, "timedelta64[D]").astype(leads.dtype)
        leads = np.intersect1d(leads, wanted) if np.isin(wanted, leads).any() else leads
    return compare_models(records, baseline, names, models=models, lead_times=leads, alpha=alpha, **choices)


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
    names = sorted((m.name for m in metrics if not m.vector), key=lambda name: name not in _CARD)
    pairs = {"rmse": ["rmse", "spread"]} if {"rmse", "spread"} <= set(names) else {}
    for name in names:
        if name not in _NOT_DRAWN and bool(table[name].notnull().any()):
            heading = "Spread and error" if name in pairs else metric_title(name)
            shown = heading[0].upper() + heading[1:]
            report.curves(shown, table, pairs.get(name, name), region=region, bands=bands)


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
    report.reliability(f"Reliability: {label}", diagram, where + bars, region=region, channels=channels)
    report.roc(f"ROC: {label}", roc, where, region=region, channels=channels)
    potential = " The best cutoff for each ratio was chosen on this very sample: potential value."
    report.value(f"Economic value: {label}", value, where + potential, region=region, channels=channels)


def _event_text(event: EventOutcomes) -> str:
    if isinstance(event.threshold, tuple):
        return ", ".join(f"{channel} {event.event} {value:g}" for channel, value in event.threshold)
    value = event.threshold if isinstance(event.threshold, str) else f"{event.threshold:g}"
    return f"{event.event} {value}"


def _outcomes(metrics: Sequence[Metric]) -> Iterator[EventOutcomes]:
    for metric in metrics:
        for statistic in metric.statistics:
            if isinstance(statistic, EventOutcomes):
                yield statistic


def _tables(report: Report, records: Records, table: xr.Dataset, metrics: Sequence[Metric]) -> None:
    names = [m.name for m in metrics if not m.vector]
    rows = list(_score_rows(table, names))
    report.table("Scores", rows, "Means over all starts of each model.", fold=f"All {len(rows)} rows")
    c = records.conventions
    units = ", ".join(f"{k} {v}" for k, v in sorted(c.units.items()) if v)
    starts = records.init_times.astype("datetime64[h]")
    report.table(
        "Settings",
        {
            "models": ", ".join(records.models),
            "truth": c.truth,
            "starts": f"{starts[0]} to {starts[-1]}, {starts.size} in all",
            "lead times in days": ", ".join(map(days, records.lead_times)),
            "regions": ", ".join(records.regions),
            "units": units or "not stated",
            "weights": c.weights,
            "grid": c.grid,
            "climatology": c.climatology or "none",
            "preset": c.preset or "none",
            "conventions": c.digest,
            "metrics": ", ".join(m.name for m in metrics),
        },
    )
    if report.command:
        report.code("Reproduce", report.command, "The command that makes this page again.")
    if records.runs:
        text = json.dumps(records.runs, indent=2, sort_keys=True)
        report.code("Runs", text, "What the records of each model were made from.")


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
