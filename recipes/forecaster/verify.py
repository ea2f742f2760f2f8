"""Verification: every model and baseline against the test year, as records and as one page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from recipes.forecaster.data import OPERATIONAL, PERFECT, ensemble_path
from recipes.forecaster.forecast import DISCLAIMER
from recipes.forecaster.settings import Settings
from wx_data import Store, open_forecast
from wx_eval import (
    STANDARD_METRICS,
    Chunk,
    Comparison,
    Map,
    RankHistogram,
    Records,
    Report,
    climatology,
    compare,
    evaluate,
    persistence,
    power_spectrum,
    scores,
)

CLIMATOLOGY, PERSISTENCE = "climatology", "persistence"
BASELINES = (CLIMATOLOGY, PERSISTENCE, OPERATIONAL, PERFECT)
_PANELS = ("z500", "t850", "u250", "q850", "msl", "t2m", "tp", "v850")
_MAP = "z500"


def verify(settings: Settings, run: Path, *, progress: bool = True) -> None:
    """Write `run/scores.parquet` and `run/report.html`, and print what they say."""
    records = score(settings, run, progress)
    records.to_parquet(run / "scores.parquet")
    cards = scorecards(settings, records)
    result, curve = summary(settings, records, cards), skill(settings, records)
    _report(settings, run, records, cards, {"Result": result, "Skill": curve}).write(run / "report.html")
    for row in result:
        print("\n  ".join(f"{name}: {value}" for name, value in row.items()))
    for row in [dict(zip(curve[0], curve[0], strict=True)), *curve]:
        print(f"{row['fair CRPS over climatology']:28}" + "".join(f"{v:>8}" for v in list(row.values())[1:]))
    print(f"report: {run / 'report.html'}", flush=True)


def forecaster_name(settings: Settings) -> str:
    """Name of the forecaster's records."""
    return f"forecaster ({settings.estimator})"


def score(settings: Settings, run: Path, progress: bool) -> Records:
    """Records of the forecaster and of the four baselines."""
    truth, past = Store(run / "test.store"), Store(run / "train.store")
    inits, leads = settings.init_times, np.array(settings.leads).astype("timedelta64[h]")
    # Two equal members: their fair CRPS is |x - y|, the CRPS of a point forecast.
    twice = (replace(c, values=np.repeat(c.values, 2, axis=0)) for c in persistence(truth, inits, leads))
    models = {
        forecaster_name(settings): open_forecast(run / "forecast.zarr")["forecast"],
        CLIMATOLOGY: climatology(past, inits, leads, members=settings.climate_members),
        PERSISTENCE: twice,
        OPERATIONAL: ensemble_chunks(settings, ensemble_path(run, OPERATIONAL)),
        PERFECT: ensemble_chunks(settings, ensemble_path(run, PERFECT)),
    }
    found = []
    with tqdm(total=len(models) * inits.size * leads.size, desc="verify", disable=not progress) as bar:
        for name, forecasts in models.items():
            found.append(
                evaluate(
                    forecasts,
                    truth,
                    model=name,
                    truth_name="nature run",
                    metrics=(*STANDARD_METRICS, RankHistogram()),
                    progress=lambda _: bar.update(),
                )
            )
    return found[0].merge(*found[1:])


def ensemble_chunks(settings: Settings, path: Path) -> Iterator[Chunk]:
    """The forecasts of `wx_data.nature.ensemble` at the settings' lead times."""
    data = xr.open_zarr(path, chunks=None, consolidated=False, decode_timedelta=False)
    variables = list(dict.fromkeys(name.rstrip("0123456789") for name in settings.nature.channels[:-3]))
    surface = settings.nature.channels[-3:]
    units = [data[v].attrs["units"] for v in variables for _ in settings.nature.pressure_levels]
    for i, init in enumerate(data["init_time"].values):
        # One read per start: every lead and variable is stored in few chunks.
        one = data.isel(init_time=i).load()
        for hours in settings.leads:
            at = one.sel(lead_time=hours)
            upper = [at[v].transpose("member", "level", ...).values for v in variables]
            flat = [at[name].values[:, None] for name in surface]
            yield Chunk(
                init_time=init,
                lead_time=np.timedelta64(hours, "h"),
                channels=settings.nature.channels,
                values=np.concatenate(upper + flat, axis=1),
                latitude=data["latitude"].values,
                longitude=data["longitude"].values,
                units=(*units, *(data[name].attrs["units"] for name in surface)),
            )


def scorecards(settings: Settings, records: Records) -> dict[str, Comparison]:
    """Fair CRPS of the forecaster against each baseline at the scorecard's lead times."""
    leads = [np.timedelta64(24 * day, "h") for day in settings.scorecard_days]
    return {
        name: compare(
            records,
            records,
            "crps_fair",
            model_a=forecaster_name(settings),
            model_b=name,
            channels=list(settings.nature.channels),
            regions=["global"],
            lead_times=leads,
        )
        for name in BASELINES
    }


def summary(settings: Settings, records: Records, cards: dict[str, Comparison]) -> list[dict[str, str]]:
    """The result, good and bad: one row per lead time, one column per baseline."""
    table = scores(records.select(region="global")).sel(region="global", model=forecaster_name(settings))
    rows = []
    for day in settings.scorecard_days:
        lead = np.timedelta64(24 * day, "h")
        row = {"lead time": f"day {day}"}
        for name, card in cards.items():
            row[f"fair CRPS better than {name}"] = _standing(card, lead)
        ratio = table["spread_skill_debiased"].sel(lead_time=lead).to_series()
        low, high = f"{ratio.min():.2f} ({ratio.idxmin()})", f"{ratio.max():.2f} ({ratio.idxmax()})"
        row["debiased spread/skill"] = f"{ratio.mean():.2f}, from {low} to {high}"
        rows.append(row)
    return rows


def skill(settings: Settings, records: Records) -> list[dict[str, str]]:
    """Fair CRPS over that of climatology, mean over channels: one row per model, one column per day."""
    table = scores(records.select(region="global"))["crps_fair"].sel(region="global")
    ratio = (table / table.sel(model=CLIMATOLOGY)).mean("channel")
    rows = []
    for name in (PERFECT, forecaster_name(settings), OPERATIONAL, PERSISTENCE):
        row = {"fair CRPS over climatology": name}
        for day in range(1, settings.forecast_days + 1):
            row[f"day {day}"] = f"{float(ratio.sel(model=name, lead_time=np.timedelta64(24 * day, 'h'))):.3f}"
        rows.append(row)
    return rows


def _standing(card: Comparison, lead: np.timedelta64) -> str:
    """How many channels are better, how sure that is, by how much, and which are not."""
    cells = [cell for cell in card.cells if cell.lead_time == lead]
    better = [cell for cell in cells if cell.difference < 0]
    sure = sum(cell.significant for cell in better)
    share = np.mean([cell.score_a / cell.score_b for cell in cells])
    worse = [cell.channel for cell in cells if cell.difference >= 0]
    tail = f"; not {' '.join(worse)}" if 0 < len(worse) <= 6 else ""
    return f"{len(better)} of {len(cells)} channels, {sure} significantly (mean ratio {share:.2f}){tail}"


def _report(
    settings: Settings,
    run: Path,
    records: Records,
    cards: dict[str, Comparison],
    tables: dict[str, list[dict[str, str]]],
) -> Report:
    table = scores(records)
    report = Report("Ensemble forecasts of a simulated planet", f"{forecaster_name(settings)}, {run.name}")
    report.text("What this is", DISCLAIMER)
    for title, rows in tables.items():
        report.table(title, rows)
    for name, card in cards.items():
        report.scorecard(f"Against {name}", card)
    shown = [c for c in _PANELS if c in settings.nature.channels]
    report.curves("Fair CRPS", table, "crps_fair", channels=shown)
    report.curves("Spread and skill", table, ["rmse", "spread"], channels=shown)
    ensembles = table.sel(model=[m for m in table["model"].values if m != PERSISTENCE])
    report.curves("Spread / skill", ensembles, "spread_skill_debiased", channels=shown)
    leads = [np.timedelta64(24 * day, "h") for day in settings.scorecard_days]
    report.rank_histograms(
        "Rank histograms",
        {
            f"{channel}, day {settings.scorecard_days[k]}": records.rank_histogram(
                model=forecaster_name(settings), channel=channel, region="global", lead_time=leads[k]
            )
            for k in (0, len(leads) // 2)
            for channel in shown[:4]
        },
    )
    _fields(report, settings, run)
    report.table("Settings", {k: v for k, v in settings.to_dict().items() if k != "nature"})
    report.table("Planet", settings.to_dict()["nature"])
    changes = " ".join(map(shlex.quote, settings.assignments()))
    arguments = f" -- run --out {shlex.quote(str(run))} --set {changes}" if changes else ""
    return report.code("Reproduce", f"python -m pip install uv nox && python -m nox -s forecast{arguments}")


def _fields(report: Report, settings: Settings, run: Path) -> None:
    """One forecast as maps, and the power spectra of members and truth."""
    truth, forecasts = Store(run / "test.store"), open_forecast(run / "forecast.zarr")["forecast"]
    day = settings.scorecard_days[len(settings.scorecard_days) // 2]
    lead, init = np.timedelta64(24 * day, "h"), settings.init_times[len(settings.init_times) // 2]
    place = {"init_time": len(settings.init_times) // 2, "lead_time": settings.leads.index(24 * day)}
    members = forecasts.isel(place).sel(channel=_MAP).values
    state = truth.read(np.array([init + lead]), [_MAP]).values[0, 0]
    land = truth.statics.get("lsm")

    def panel(title: str, field: np.ndarray, units: str = "m2 s-2") -> Map:
        return Map(
            title=title,
            field=field,
            latitude=truth.grid.latitude,
            longitude=truth.grid.longitude,
            units=units,
            land=land,
        )

    singles = [panel(f"member {m}", members[m]) for m in range(min(3, len(members)))]
    spread = panel("spread", members.std(axis=0, ddof=1), units="spread, m2 s-2")
    panels = [panel("truth", state), panel("ensemble mean", members.mean(axis=0)), spread, *singles]
    report.maps(f"{_MAP} from {init}, day {day}", panels)
    spectra = {}
    for channel in (_MAP, "t850", "q850"):
        if channel not in settings.nature.channels:
            continue
        times = settings.init_times + lead
        fields = forecasts.isel(lead_time=place["lead_time"]).sel(channel=channel).values
        states = truth.read(times, [channel]).values[:, 0]
        spectra[f"{channel}, day {day}"] = {
            "truth": power_spectrum(states, truth.grid.latitude).mean(axis=0),
            "members": power_spectrum(fields, truth.grid.latitude).mean(axis=(0, 1)),
            "ensemble mean": power_spectrum(fields.mean(axis=1), truth.grid.latitude).mean(axis=0),
        }
    report.spectrum("Power spectra", spectra, "Spectra are averaged over starts and members after squaring.")
