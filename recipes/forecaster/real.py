"""The same forecaster on files of the real atmosphere: units, grids and gaps handled, no skill claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from recipes.forecaster.forecast import DISCLAIMER, write
from recipes.forecaster.settings import Settings
from recipes.forecaster.train import load
from wx_data import SourceError, Statistics, Store, open_forecast, open_source
from wx_eval import Map, Report


def real(
    settings: Settings,
    run: Path,
    *,
    file: Path,
    out: Path,
    fill: Literal["none", "climatology"] = "none",
    history: Literal["required", "persist"] = "required",
    member: int | None = None,
    progress: bool = True,
) -> Path:
    """Forecast from the last analysis in a file, regridded to the forecaster's grid.

    Args:
        settings: of the run.
        run: a trained run.
        file: NetCDF, GRIB or Zarr.
        out: folder for `forecast.zarr` and `report.html`.
        fill: "climatology" replaces channels that the file lacks by their training mean and records it.
        history: "persist" uses the analysis for the earlier state too, where the file has only one time.
        member: number of the member, where the file holds an ensemble.
        progress: show a bar.

    Raises:
        SourceError: the file lacks channels or the earlier time, and the caller did not decide what to do.
    """
    parts, trained = load(settings, run)
    means = Statistics.load(Store(run / "train.store").path).mean
    lacking = _lacking(parts.channels, open_source(file, member=member).channels)
    source: Any = open_source(
        file,
        channels=parts.channels,
        grid=parts.grid,
        member=member,
        fill={name: float(means[parts.channels.index(name)]) for name in lacking if fill == "climatology"},
        derive={"q": "relative_humidity"},
    )
    init = source.times[-1]
    earlier = init - np.timedelta64(settings.step_hours, "h")
    if earlier not in source.times:
        if history == "required":
            raise SourceError(
                f"{file}: the forecaster needs the states at {init} and {settings.step_hours} h before; "
                f"the file has {len(source.times)} times from {source.times[0]}. "
                'history="persist" repeats the last one'
            )
        source = _Still(source)
    store = write(parts, trained, source, np.array([init]), out / "forecast.zarr", progress=progress)
    _page(open_forecast(store), getattr(source, "provenance", {}), file).write(out / "report.html")
    return store


def _lacking(channels: Sequence[str], present: Sequence[str]) -> list[str]:
    """Channels that are neither there nor derived: specific humidity follows from relative humidity."""
    derived = {f"q{name[1:]}" for name in present if name[0] == "r" and f"t{name[1:]}" in present}
    return [name for name in channels if name not in {*present, *derived}]


@dataclass(frozen=True)
class _Still:
    """A source whose last state also stands for every earlier time."""

    source: Any

    @property
    def provenance(self) -> dict[str, Any]:
        return {**self.source.provenance, "history": "the last state stands for the earlier one"}

    def read(self, times: Any, channels: Any) -> xr.DataArray:
        states: xr.DataArray = self.source.read(np.repeat(self.source.times[-1:], len(times)), channels)
        return states


def _page(forecast: xr.Dataset, provenance: dict[str, Any], file: Path) -> Report:
    fields = forecast["forecast"].isel(init_time=0)
    init, last = forecast["init_time"].values[0], fields["lead_time"].values[-1]
    page = Report("This is not a weather forecast", f"{file.name}, initial time {init}")
    page.text("Read this first", DISCLAIMER)
    page.table("Input", {name: str(value) for name, value in provenance.items()})
    for channel in ("z500", "t850", "u850"):
        if channel not in fields["channel"].values:
            continue
        panels = []
        for lead in (fields["lead_time"].values[0], last):
            members = fields.sel(channel=channel, lead_time=lead).values
            for title, field in (("ensemble mean", members.mean(0)), ("spread", members.std(0, ddof=1))):
                latitude, longitude = fields["latitude"].values, fields["longitude"].values
                panels.append(
                    Map(title=f"{title}, +{lead}", field=field, latitude=latitude, longitude=longitude)
                )
        page.maps(channel, panels, shared=False)
    return page
