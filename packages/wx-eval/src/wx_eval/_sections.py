"""Sections of a configuration: the files and the settings that each names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np
import numpy.typing as npt

from ._choices import Baseline, Calendar, PointMethod
from ._readers import (
    Reader,
    by,
    instant,
    number,
    one_of,
    period,
    read_section,
    read_table,
    renames,
    strings,
    typed,
)
from ._regrid import Axes, Method, global_axes
from ._stations import Observed, Pick, ReportLayout, Tie
from ._texts import Seconds, duration, durations, listed, members

if TYPE_CHECKING:
    from ._open import Source

Box = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Section `forecast` or `truth`; see `open_source`.

    Attributes:
        path: files, folders of zarr and patterns.
        name: of the truth, kept with the records.
        channels: keep these.
        rename: channel in the file to channel in the records.
        members: labels, as numbers or ranges such as "1-50".
        leads: keep these; see `durations`.
        init_time: of a forecast whose files do not tell it.
        lead_time: of a forecast whose files do not tell it.
        engine: of xarray.
    """

    path: tuple[str, ...]
    name: str | None = None
    channels: tuple[str, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    members: tuple[int, ...] | None = None
    leads: tuple[Seconds, ...] | None = None
    init_time: str | None = None
    lead_time: Seconds | None = None
    engine: str | None = None

    @classmethod
    def parse(cls, data: Any, section: str) -> Self:
        """From TOML; a plain string or list is a path.

        Raises:
            ValueError: naming the key and what was expected.
        """
        if isinstance(data, str | list):
            data = {"path": data}
        found = read_table(data, cls, section, _SOURCE)
        if not found.get("path"):
            raise ValueError(
                f"[{section}] needs path = a file, a folder of zarr, a pattern or a list of them"
            )
        return cls(**found)

    def open(self, name: str, path: Callable[[str], str] = str) -> Source:
        """The files, not read yet.

        Args:
            name: "forecast" or "truth".
            path: where a path of the section is.

        Raises:
            FileNotFoundError, ValueError: see `open_source`.
        """
        from ._open import open_source

        return open_source(
            [path(p) for p in self.path],
            name,
            truth=name == "truth",
            channels=self.channels,
            rename=self.rename,
            members=self.members,
            lead_times=None if self.leads is None else list(np.array(self.leads, "timedelta64[s]")),
            init_time=None if self.init_time is None else np.datetime64(self.init_time),
            lead_time=None if self.lead_time is None else np.timedelta64(self.lead_time, "s"),
            engine=self.engine,
        )


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """Section `forecast` with a `baseline`: forecasts that are made of past states.

    Attributes:
        baseline: "persistence" or "climatology", see `wx_eval.persistence` and `wx_eval.climatology`.
        path: files of past states; of persistence by default those of the truth.
        channels: keep these.
        rename: channel in the file to channel in the records.
        engine: of xarray.
        members: M of a climatology.
        years: one member from each of these, instead of `members`.
        period: "first/last", states that may become members, such as "1990/2019"; None for all.
        window_days: around the day of the year, for `members`.
        calendar: "monthday" or "doy".
    """

    baseline: Baseline
    path: tuple[str, ...] = ()
    channels: tuple[str, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    engine: str | None = None
    members: int | None = None
    years: tuple[int, ...] | None = None
    period: str | None = None
    window_days: int = 15
    calendar: Calendar = "monthday"

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """From TOML.

        Raises:
            ValueError: naming the key and what was expected.
        """
        found = read_table(data, cls, "forecast", _BASELINE)
        made = [k for k in ("members", "years", "period", "window_days", "calendar") if k in data]
        if found["baseline"] == "persistence" and made:
            raise ValueError(f"persistence takes no {made[0]}: it has one member, the state of the start")
        complete = "path" in data and ("members" in data) != ("years" in data)
        if found["baseline"] == "climatology" and not complete:
            raise ValueError(
                "a climatology needs path = files of past states, and either members = such as 50 or years = "
                'such as "1990-2019"'
            )
        return cls(**found)

    def within(self, times: npt.NDArray[np.datetime64]) -> npt.NDArray[np.bool_]:
        """Which states may become members."""
        if self.period is None:
            return np.ones(times.shape, bool)
        first, last = period(self.period)
        return np.asarray((times >= first) & (times <= last))


@dataclass(frozen=True, kw_only=True)
class StationSettings:
    """Section `truth` with `stations`: reports of stations, see `StationReports`.

    Attributes:
        stations: a parquet file or a folder of them.
        name: kept with the records, before the rules by which reports are chosen.
        channels: keep these.
        rename: channel by its name in `metar`, or in `variables`, to channel in the records.
        variables: instead of those of METAR tables of MADIS.
        layout: names of the columns.
        window: of the time of a report before and after the valid time.
        pick, tie, within, exclude: see `StationReports`.
        sigmas: values further than this from the climatology of the run are not used.
    """

    stations: str
    name: str | None = None
    channels: tuple[str, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    variables: tuple[Observed, ...] | None = None
    layout: ReportLayout = field(default_factory=ReportLayout)
    window: Seconds = 1800
    pick: Pick = "nearest"
    tie: Tie = "before"
    within: Box | None = None
    exclude: tuple[str, ...] = ()
    sigmas: float | None = None

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """From TOML.

        Raises:
            ValueError: naming the key and what was expected.
        """
        return cls(**read_table(data, cls, "truth", _STATIONS))


@dataclass(frozen=True, kw_only=True)
class HeightSettings:
    """Section `stations.orography`: height of the surface of the model, for the correction of temperatures.

    Attributes:
        path: a file on the grid of the forecast.
        variable: in m, or a geopotential whose unit the file states.
        rates: K per m by channel.
    """

    path: str
    variable: str
    rates: Mapping[str, float] = field(default_factory=lambda: {"t2m": 0.0065})


@dataclass(frozen=True, kw_only=True)
class PointSettings:
    """Section `stations`: how a forecast on a grid is brought to stations, see `at_points`.

    Attributes:
        interpolation: "bilinear", "nearest" or "nearest_land", which needs the section land.
        orography: of the correction of temperatures for height; None for no correction.
    """

    interpolation: PointMethod = "bilinear"
    orography: HeightSettings | None = None

    @classmethod
    def parse(cls, data: Any) -> Self:
        """From TOML.

        Raises:
            ValueError: naming the key and what was expected.
        """
        return cls(**read_table(data, cls, "stations", _POINTS))


@dataclass(frozen=True, kw_only=True)
class ClimatologySettings:
    """Section `climatology`; see `DayClimatology.open`."""

    path: str
    name: str | None = None
    calendar: Calendar | None = None
    channels: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class LandSettings:
    """Section `land`: the share of land for regions that end in "_land"."""

    path: str
    variable: str


@dataclass(frozen=True, kw_only=True)
class RegridSettings:
    """Section `regrid`, or its method alone.

    Attributes:
        method: "bilinear" or "conservative".
        grid: "truth" or "forecast" for the grid of that side, or rows x columns of a global one, "121x240".
    """

    method: Method
    grid: str = "truth"

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"regrid must be one of {get_args(Method)}, got {self.method!r}")
        if self.grid not in ("truth", "forecast") and not re.fullmatch(r"\d+x\d+", self.grid):
            raise ValueError(
                f'regrid.grid must be "truth", "forecast" or such as "121x240", got {self.grid!r}'
            )
        _ = self.axes

    @property
    def axes(self) -> Axes | None:
        """Of a grid that is given by its size."""
        if self.grid in ("truth", "forecast"):
            return None
        rows, columns = map(int, self.grid.split("x"))
        return global_axes(rows, columns)


def _path(data: Any, key: str) -> tuple[str, ...]:
    # What is empty gets the message of a path that is absent.
    return strings(data, key) if data else ()


def _count(data: Any, key: str) -> int:
    """A number of members: an option of the command line is a list of labels."""
    counts = members(data)
    if len(counts) != 1:
        raise ValueError(f"{key} must be one number, got {data!r}")
    return counts[0]


def _period(data: Any) -> str:
    period(data)
    return str(data)


def _variables(data: Any, key: str) -> tuple[Any, ...]:
    """Variables of a table of reports."""
    found = []
    for item in listed(data):
        if not isinstance(item, Mapping):
            raise ValueError(f'{key} must be tables such as {{column = "T", ...}}, got {item!r}')
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}
        found.append(read_section(plain, Observed, key))
    return tuple(found)


def _box(data: Any, key: str) -> Box:
    try:
        (south, north), (west, east) = ((float(a), float(b)) for a, b in data)
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be [[south, north], [west, east]], got {data!r}") from None
    return (south, north), (west, east)


_SOURCE: dict[str, Reader] = {
    "path": _path,
    "channels": strings,
    "rename": renames,
    "members": by(members),
    "leads": by(durations),
    "init_time": by(lambda value: str(instant(value))),
    "lead_time": by(duration),
}
_BASELINE: dict[str, Reader] = {
    "baseline": one_of(*get_args(Baseline)),
    "path": strings,
    "channels": strings,
    "rename": renames,
    "members": _count,
    "years": by(members),
    "period": by(_period),
    "window_days": typed(int, "a number of days"),
    "calendar": one_of(*get_args(Calendar)),
}
_STATIONS: dict[str, Reader] = {
    "stations": typed(str, "a parquet file or a folder of them"),
    "channels": strings,
    "rename": renames,
    "variables": _variables,
    "layout": lambda data, key: read_section(data, ReportLayout, key),
    "window": by(duration),
    "pick": one_of(*get_args(Pick)),
    "tie": one_of(*get_args(Tie)),
    "within": _box,
    "exclude": strings,
    "sigmas": number,
}
_POINTS: dict[str, Reader] = {
    "interpolation": one_of(*get_args(PointMethod)),
    "orography": lambda data, key: read_section(data, HeightSettings, key),
}
