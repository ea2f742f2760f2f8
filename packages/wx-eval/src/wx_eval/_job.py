"""What a configuration names, opened and brought onto one grid or to stations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ._climatology import DayClimatology
from ._config import RunSettings, chosen_inits
from ._evaluate import evaluate
from ._fields import Chunk
from ._files import open_dataset, short_name
from ._grid import Array, Grid
from ._interpolate import HeightCorrection, Interpolator, PointClimatology, chunk_at_points
from ._made import Made, Some, Starts
from ._metrics import STANDARD_METRICS, Metric, check_channels
from ._open import Forecast, Source, Truth, open_source, positions
from ._presets import PRESETS
from ._protocols import Climatology, History
from ._records import Records
from ._regions import BOXES, DEFAULT_REGIONS, box
from ._regrid import Method
from ._sections import PointSettings, SourceSettings, StationSettings
from ._stations import ClimateCheck, Observed, StationReports, metar
from ._statistics import Statistic
from ._units import same_units

_GRAVITY = 9.80665


@dataclass(frozen=True, eq=False)
class Points:
    """How a forecast on a grid is brought to stations."""

    mapped: Interpolator
    height: HeightCorrection | None

    def chunk(self, chunk: Chunk) -> Chunk:
        """At the stations."""
        return chunk_at_points(chunk, self.mapped, self.height)


AnyForecast = Forecast | Made


@dataclass(frozen=True, eq=False)
class Job:
    """Opened sources of a configuration."""

    settings: RunSettings
    forecast: AnyForecast
    truth: Truth | StationReports
    climatology: Climatology | None
    land: Any
    truth_name: str
    points: Points | None = None
    regions: Sequence[str] = DEFAULT_REGIONS
    unscored: tuple[str, ...] = ()

    @cached_property
    def init_times(self) -> Starts:
        """Starts that are evaluated."""
        held = np.unique(np.array([k[0] for k in self.forecast.keys], "datetime64[s]"))
        return held if isinstance(self.forecast, Made) else chosen_inits(self.settings.inits, held)

    def records(self, init_time: np.datetime64) -> Records:
        """Rows of one start."""
        s = self.settings
        chunks = self.forecast.chunks([init_time])
        shared: dict[str, Any] = {
            "model": s.model,
            "climatology": self.climatology,
            "land_fraction": self.land,
            "truth_name": self.truth_name,
            "missing_truth": s.missing_truth,
            "truth_models": s.truth_models,
        }
        if s.preset is not None:
            found = PRESETS[s.preset].evaluate(
                chunks, self.truth, metrics=s.metrics, regions=s.regions, costly=s.costly, **shared
            )
        else:
            found = evaluate(
                chunks if self.points is None else map(self.points.chunk, chunks),
                self._truth_of(init_time),
                metrics=self._metrics,
                regions=self.regions if s.regions is None else s.regions,
                weights=s.weights or ("cell" if self.points is None else "equal"),
                **shared,
            )
        return replace(found, runs={s.model: [s.kept]})

    def check_truth(self) -> None:
        """See that everything which is evaluated has a truth, before work is spent on any.

        Raises:
            ValueError: naming the first time without one, unless those are to be recorded without scores.
        """
        starts = set(self.init_times.astype(np.int64).tolist())
        truth = self.truth
        reported = (
            set(truth.reported().astype(np.int64).tolist()) if isinstance(truth, StationReports) else set()
        )
        for key in (k for k in self.forecast.keys if k[0] in starts):
            channels = self.forecast.channels_at(key)
            if isinstance(truth, Truth):
                held = truth.channels_at(sum(key))
            else:
                held = channels if sum(key) in reported else ()
            absent = [c for c in channels if c not in held]
            if absent:
                start, lead = np.datetime64(key[0], "s"), key[1] / 3600
                what = "report" if isinstance(truth, StationReports) else "state"
                raise ValueError(
                    f"truth has no {absent if held else what} at {np.datetime64(sum(key), 's')}, valid "
                    f"time of {start} + {lead:g} h: choose inits, leads or channels, or keep such times "
                    'without scores by missing_truth = "drop" (--missing-truth drop)'
                )

    def check_climatology(self) -> None:
        """See that the climatology has every field that a metric reads, before work is spent on any.

        Raises:
            ValueError: naming the metric, and what the climatology has.
        """
        time = np.datetime64(min(sum(k) for k in self.forecast.keys), "s")
        for metric in self._metrics:
            found = (s.references for s in metric.statistics if isinstance(s, Statistic))
            for name in dict.fromkeys(n for names in found for n in names):
                if self.climatology is None:
                    raise ValueError(
                        f"metric {metric.name} needs the climatological {name}: give the section climatology "
                        "(--climatology), or name other metrics"
                    )
                try:
                    self.climatology.at(name, time)
                except ValueError as error:
                    raise ValueError(f"metric {metric.name}: {error}") from error

    @property
    def _metrics(self) -> Sequence[Metric]:
        s = self.settings
        if s.metrics is not None:
            return s.metrics
        if s.preset is None:
            return STANDARD_METRICS
        preset = PRESETS[s.preset]
        events = () if self.climatology is None else preset.event_metrics(self.forecast.source.channels)
        return *preset.metrics, *(preset.costly if s.costly else ()), *events

    def _truth_of(self, init_time: np.datetime64) -> History:
        """The truth; of reports the valid times of one start, so that no others are read."""
        if isinstance(self.truth, Truth):
            return self.truth
        start = int(init_time.astype("datetime64[s]").astype(np.int64))
        valid = sorted(sum(key) for key in self.forecast.keys if key[0] == start)
        return Some(self.truth, np.array(valid, "datetime64[s]"))


def prepare(settings: RunSettings) -> Job:
    """Open everything and bring it onto one grid, or to stations.

    Raises:
        ValueError: for what cannot be opened, and for grids, channels or times that do not fit.
    """
    source = _forecast_source(settings)
    if isinstance(settings.truth, StationSettings):
        return _at_stations(settings, source, settings.truth, settings.stations or PointSettings())
    return _on_grid(settings, source, settings.truth)


def _on_grid(settings: RunSettings, source: Source, section: SourceSettings) -> Job:
    truth = section.open("truth", settings.path)
    given = source.channels
    source = _common_channels(settings, source, truth.channels, section.channels)
    truth = truth.select(channels=source.channels)
    source.refuse_duplicates()
    truth.refuse_duplicates()
    source, truth, note = _one_grid(settings, source, truth)
    land = settings.land
    return Job(
        settings,
        _forecast(settings, source, truth.units),
        Truth(truth, source.units),
        _climatology(settings, source),
        None if land is None else fixed_field(settings.path(land.path), land.variable, truth, "land")[0],
        (section.name or Path(section.path[0]).name.split(".")[0]) + note,
        unscored=_unscored(settings, given, source),
    )


def _at_stations(
    settings: RunSettings, source: Source, section: StationSettings, stations: PointSettings
) -> Job:
    variables = observed_variables(section)
    named = section.variables is not None or section.channels is not None
    known = [v.channel for v in variables]
    given = source.channels
    source = _common_channels(settings, source, known, known if named else None)
    variables = tuple(v for v in variables if v.channel in source.channels)
    source.refuse_duplicates()
    if source.axes is None:
        raise ValueError(f"{source.name} is a set of points: only grids can be brought to stations")
    source = source.eastwards()
    forecast = _forecast(settings, source, {v.channel: v.to or v.unit for v in variables})
    # Of all starts, so that a longer period of starts does not change the stations.
    times = np.unique(np.array([sum(key) for key in forecast.keys], "datetime64[s]"))
    reports = station_reports(section, variables, times, settings.path)
    land = None
    if settings.land is not None:
        land = fixed_field(settings.path(settings.land.path), settings.land.variable, source, "land")[0]
    normal: Climatology | None = _climatology(settings, source)
    if normal is not None:
        normal = PointClimatology(normal, reports.grid, stations.interpolation, land)
    if section.sigmas is not None and normal is not None:
        reports = replace(reports, climate=ClimateCheck(normal, section.sigmas))
    mapped = Interpolator(
        (source.latitude, source.longitude), reports.grid, stations.interpolation, land_fraction=land
    )
    points = Points(mapped, _height(settings, stations, source, reports))
    name = section.name or Path(section.stations).name.split(".")[0]
    return Job(
        settings,
        forecast,
        reports,
        normal,
        None if land is None else _nearest(source, reports.grid, land),
        f"{name}, {reports.name}",
        points,
        [r for r in DEFAULT_REGIONS if box(reports.grid, *BOXES[r]).any()],
        _unscored(settings, given, source),
    )


def _unscored(settings: RunSettings, given: Sequence[str], source: Source) -> tuple[str, ...]:
    """Channels of the forecast that nobody chose to leave out and the truth does not have."""
    chosen = settings.forecast.channels is not None
    return () if chosen else tuple(c for c in given if c not in source.channels)


def _nearest(source: Source, points: Grid, field: Array) -> Array:
    """A field on the grid of a source at the nearest grid point of each station."""
    return Interpolator((source.latitude, source.longitude), points, "nearest")(field)


def station_reports(
    section: StationSettings, variables: Sequence[Observed], times: Starts, path: Callable[[str], str] = str
) -> StationReports:
    """Reports of a section at some valid times."""
    return StationReports(
        path=path(section.stations),
        times=times,
        variables=variables,
        layout=section.layout,
        tolerance=np.timedelta64(section.window, "s"),
        pick=section.pick,
        tie=section.tie,
        within=section.within,
        exclude=section.exclude,
    )


def observed_variables(section: StationSettings) -> tuple[Observed, ...]:
    """Channels of the reports under the names that files of forecasts have."""
    if section.variables is None:
        named = [(replace(v, channel=short_name(v.channel)), v.channel) for v in metar()]
    else:
        named = [(v, v.channel) for v in section.variables]
    names = {name for v, given in named for name in (v.channel, given)}
    unused = sorted(set(section.rename) - names)
    if unused:
        raise ValueError(
            f"truth.rename names {unused}, which are no channels of the reports: {sorted(names)}"
        )
    found = [
        replace(v, channel=section.rename.get(given, section.rename.get(v.channel, v.channel)))
        for v, given in named
    ]
    if section.channels is None:
        return tuple(found)
    held = {v.channel: v for v in found}
    absent = [c for c in section.channels if c not in held]
    if absent:
        raise ValueError(f"the reports have no channel {absent}; they have {list(held)}")
    return tuple(held[c] for c in section.channels)


def _height(
    settings: RunSettings, stations: PointSettings, source: Source, reports: StationReports
) -> HeightCorrection | None:
    section = stations.orography
    if section is None:
        return None
    absent = sorted(set(section.rates) - set(source.channels))
    if absent:
        raise ValueError(
            f"stations.orography.rates names {absent} and the forecast has {list(source.channels)}: name the "
            "temperatures that are corrected, such as rates = {t2m = 0.0065}"
        )
    height = surface_height(settings.path(section.path), section.variable, source)
    return HeightCorrection(orography=height, elevation=reports.elevation, rates=section.rates)


def surface_height(path: str, variable: str, source: Source) -> Array:
    """Height of the surface of a model in m, from itself or a geopotential."""
    height, unit = fixed_field(path, variable, source, "stations.orography")
    return height / _GRAVITY if same_units(unit, "m2 s-2") else height


def _forecast_source(settings: RunSettings) -> Source:
    """Files of the forecast, or of the states that a baseline is made of."""
    section = settings.forecast
    if isinstance(section, SourceSettings):
        source = section.open("forecast", settings.path)
        if settings.leads is not None:
            source = source.select(lead_times=np.array(settings.leads, "timedelta64[s]"))
        return source
    if section.path:
        return open_source(
            [settings.path(p) for p in section.path],
            "forecast",
            truth=True,
            channels=section.channels,
            rename=section.rename,
            engine=section.engine,
        )
    assert isinstance(settings.truth, SourceSettings)
    found = settings.truth.open("truth", settings.path)
    return found if section.channels is None else found.select(channels=section.channels)


def _forecast(settings: RunSettings, source: Source, units: Mapping[str, str]) -> AnyForecast:
    section = settings.forecast
    if isinstance(section, SourceSettings):
        return Forecast(source, units)
    held = Truth(source).times if section.baseline == "persistence" else None
    return Made(source, section, chosen_inits(settings.inits, held), settings.leads or (), units)


def _common_channels(
    settings: RunSettings, source: Source, known: Sequence[str], named: Sequence[str] | None
) -> Source:
    """The channels of the forecast that the truth has; those that the truth names, or the forecast, all."""
    common = [c for c in source.channels if c in known]
    if settings.forecast.channels is None and common:
        lacking = [c for c in named or () if c not in source.channels]
        if lacking:
            raise ValueError(
                f"the truth names the channels {list(named or ())} and the forecast has no {lacking}; it has "
                f"{list(source.channels)}: correct truth.channels, rename by [forecast.rename], or name what "
                "is scored by forecast.channels too"
            )
        source = source.select(channels=common)
    absent = [c for c in source.channels if c not in known]
    if absent:
        raise ValueError(
            f"truth has no channel {absent}; it has {list(known)}: choose channels, or rename them "
            "by [truth.rename]"
        )
    check_channels(settings.metrics or (), source.channels, "the forecast")
    return source


def _one_grid(settings: RunSettings, forecast: Source, truth: Source) -> tuple[Source, Source, str]:
    """Both on one grid, and what was done to the truth."""
    regrid = settings.regrid
    if regrid is None:
        if forecast.same_grid(truth):
            return forecast, truth, ""
        aligned = forecast.aligned(truth)
        if not settings.align:
            raise ValueError(
                f"forecast has the points of the truth in another order or with other longitudes "
                f"({forecast.grid_text} against {truth.grid_text}): bring them into its order by "
                "align = true (--align)"
            )
        return aligned, truth, ""
    axes, method = regrid.axes, regrid.method
    if axes is not None:
        note = f", {method} to {regrid.grid}"
        return forecast.regridded(axes, method), truth.regridded(axes, method), note
    if regrid.grid == "truth":
        return _onto(forecast, truth, method), truth, ""
    return forecast, _onto(truth, forecast, method), f", {method} to the grid of {settings.model}"


def _onto(source: Source, target: Source, method: Method) -> Source:
    if target.axes is None:
        raise ValueError(f"{target.name} is a set of points: regridding needs a latitude-longitude grid")
    return source.regridded(target.axes, method)


def _climatology(settings: RunSettings, source: Source) -> DayClimatology | None:
    section = settings.climatology
    if section is None:
        return None
    absent = sorted(set(section.channels or ()) - set(source.channels))
    if absent:
        raise ValueError(
            f"climatology.channels names {absent} and the forecast has {list(source.channels)}: use its names"
        )
    path = settings.path(section.path)
    dataset = open_dataset(path, "climatology")
    channels: Mapping[str, Any] | None = section.channels
    if channels is not None:
        channels = {c: tuple(v) if isinstance(v, list) else v for c, v in channels.items()}
    try:
        return DayClimatology.open(dataset, name=section.name, calendar=section.calendar, channels=channels)
    except ValueError as error:
        raise ValueError(f"[climatology] {path}: {error}") from error


def fixed_field(origin: str, variable: str, source: Source, section: str) -> tuple[Array, str]:
    """A field that does not change, on the grid of a source, and its unit."""
    dataset = open_dataset(origin, section)
    if variable not in dataset:
        raise ValueError(f"{origin} has no variable {variable!r}, it has {list(map(str, dataset.data_vars))}")
    array: xr.DataArray = dataset[variable].squeeze(drop=True)
    unit = str(array.attrs.get("units", ""))
    for dim, theirs in zip(source.space, (source.latitude, source.longitude), strict=False):
        found = positions(np.asarray(array[dim].values, np.float64), theirs, dim)
        if found is None:
            raise ValueError(
                f"[{section}] {origin} is not on the grid of the {source.name}, {source.grid_text}: regrid it"
            )
        array = array.isel({dim: found})
    values: Array = array.transpose(*source.space).values
    return values, unit
