"""Station reports as a truth: matched in time, controlled, in the units of the forecast."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise
from os import PathLike, fspath
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xarray as xr

from ._fields import channel_names, channel_units, seconds
from ._grid import Array, Grid, Vector, great_circle_km
from ._protocols import Climatology
from ._regions import box
from ._units import convert_units, same_units, unit_kind

Pick = Literal["nearest", "mean"]
Tie = Literal["before", "after"]
Times = npt.NDArray[np.datetime64]

MADIS_BAD = ("B", "Q", "X", "Z", "k")
"""Quality flags of MADIS for bad, questioned, rejected and unchecked values, as in WeatherBench-X."""

_DAY = np.timedelta64(86400, "s")
_HALF_HOUR = np.timedelta64(30, "m")
_BLOCKS = 4
_HIGHEST = 9000.0


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One variable of a table of reports and the channel that it becomes.

    Args:
        column: in the table; in a table in long form the name of the variable.
        channel: name in forecasts.
        unit: in the table.
        to: unit of the channel; by default that of the table.
        flag: column of quality flags, of a table in wide form.
        reject: flags whose values are not used.
        limits: smallest and largest value that is used, in the unit of the channel; None is no limit. With
            `direction`, of the speed.
        direction: column with the direction in degrees that the wind blows from, when `column` is its speed.
            A value without direction is not used, unless the wind is calm.
        component: "u" (eastward) or "v" (northward), with `direction`.

    Raises:
        ValueError: for unknown units or limits that exclude everything.
    """

    column: str
    channel: str
    unit: str
    to: str = ""
    flag: str = ""
    reject: tuple[str, ...] = ()
    limits: tuple[float | None, float | None] = (None, None)
    direction: str = ""
    component: Literal["", "u", "v"] = ""

    def __post_init__(self) -> None:
        low, high = self.bounds
        if not low < high:
            raise ValueError(
                f"limits of {self.channel!r} must be a smaller and a larger number, got {self.limits}"
            )
        if bool(self.direction) != (self.component in ("u", "v")):
            raise ValueError(
                f'{self.channel!r} needs both a direction and a component "u" or "v", or neither'
            )
        if self.to:
            convert_units(0.0, self.unit, self.to)

    @property
    def bounds(self) -> tuple[float, float]:
        """Limits as numbers."""
        low, high = self.limits
        return (-np.inf if low is None else low), (np.inf if high is None else high)

    @property
    def name(self) -> str:
        """Everything that decides which values are used."""
        parts = [f"{self.channel} from {self.column}"]
        if self.component:
            parts[0] += f" and {self.direction}"
        if self.reject:
            parts.append(f"not {''.join(sorted(self.reject))}")
        if self.limits != (None, None):
            parts.append("{:g} to {:g}".format(*self.bounds))
        return " ".join(parts)


def metar(*channels: str) -> tuple[Observed, ...]:
    """Variables of METAR tables of MADIS, whose columns are in SI units, under the names of ERA5.

    Values whose flag is one of `MADIS_BAD` are not used, nor those beyond any that was ever measured.

    Args:
        channels: some of the names; all without any.

    Raises:
        ValueError: for another name.
    """
    unknown = sorted(set(channels) - set(_METAR))
    if unknown:
        raise ValueError(f"METAR tables have no {unknown}; they have {list(_METAR)}")
    found = []
    for name in channels or _METAR:
        column, unit, limits = _METAR[name]
        found.append(
            Observed(
                column=column, channel=name, unit=unit, flag=f"{column}DD", reject=MADIS_BAD, limits=limits
            )
        )
    return tuple(found)


_METAR: dict[str, tuple[str, str, tuple[float, float]]] = {
    "2m_temperature": ("temperature", "K", (180, 335)),
    "2m_dewpoint_temperature": ("dewpoint", "K", (170, 310)),
    "10m_wind_speed": ("windSpeed", "m s-1", (0, 115)),
    "10m_wind_gust": ("windGust", "m s-1", (0, 130)),
    "mean_sea_level_pressure": ("seaLevelPress", "Pa", (85_000, 110_000)),
    "total_precipitation_1hr": ("precip1Hour", "m", (0, 0.5)),
    "total_precipitation_3hr": ("precip3Hour", "m", (0, 1)),
    "total_precipitation_6hr": ("precip6Hour", "m", (0, 1.5)),
    "total_precipitation_24hr": ("precip24Hour", "m", (0, 2)),
}


@dataclass(frozen=True, kw_only=True)
class ReportLayout:
    """Names of the columns of a table of reports; the default is that of METAR tables of MADIS.

    Args:
        station, time, latitude, longitude, elevation: columns; degrees and m. Without a column of elevations
            the name is "".
        variable, value, flag: of a table in long form, which has one value per row.
    """

    station: str = "stationName"
    time: str = "timeObs"
    latitude: str = "latitude"
    longitude: str = "longitude"
    elevation: str = "elevation"
    variable: str = ""
    value: str = ""
    flag: str = ""

    @property
    def long(self) -> bool:
        """Whether there is one value per row."""
        return bool(self.variable)


@dataclass(frozen=True)
class ClimateCheck:
    """Values further than `sigmas` standard deviations from the climatological mean are not used.

    climatology: at the stations, with "mean" and "std". For one on a grid, make the reports without a check
        first: `dataclasses.replace(reports, climate=ClimateCheck(PointClimatology(grid, reports.grid)))`.
    """

    climatology: Climatology
    sigmas: float = 5.0


@dataclass(frozen=True, eq=False)
class _Block:
    """Reports in order of time: station (R,), times (R,) and values (C, R), NaN where nothing is usable."""

    station: npt.NDArray[np.intp]
    times: npt.NDArray[np.int64]
    values: Vector


@dataclass(frozen=True, kw_only=True, eq=False)
class StationReports:
    """A `History` of the reports of N stations, read from parquet a few days at a time.

    The state at a valid time holds, for each station and channel, one value made of the usable reports within
    `tolerance` of it, edges included, and NaN where there is none.

    Args:
        path: a parquet file or a folder of such files, of which only the rows of the days that are needed are
            read, or a file that ends in .csv, which is read as a whole.
        times: valid times at which there is a state, increasing.
        variables: channels.
        layout: names of the columns.
        tolerance: of the time of reports.
        pick: "nearest" takes the usable value nearest in time, of reports with the same time the last in the
            table. "mean" takes the mean of all, which the components of a wind have and its direction has
            not.
        tie: which of two reports as near, one before and one after, is nearest.
        climate: check against a climatology.
        within: ((south, north), (west, east)) in degrees, edges included; stations outside are left out.
        exclude: stations of the table that are left out.
        days: how many are read at a time.

    Attributes:
        stations: names, sorted; the order of the points.
        grid: positions, longitudes 0..360.
        elevation: m, NaN where unknown.

    Raises:
        ValueError: for columns or excluded stations that are not there, times that do not increase, or
            stations without one position.
    """

    path: str | PathLike[str]
    times: Times
    variables: Sequence[Observed]
    layout: ReportLayout = field(default_factory=ReportLayout)
    tolerance: np.timedelta64 = _HALF_HOUR
    pick: Pick = "nearest"
    tie: Tie = "before"
    climate: ClimateCheck | None = None
    within: tuple[tuple[float, float], tuple[float, float]] | None = None
    exclude: Sequence[str] = ()
    days: int = 4
    _blocks: OrderedDict[int, _Block] = field(default_factory=OrderedDict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", seconds(self.times))
        if (
            self.times.ndim != 1
            or not self.times.size
            or (np.diff(self.times) <= np.timedelta64(0, "s")).any()
        ):
            raise ValueError("times must be one or more valid times that strictly increase")
        if self.pick not in get_args(Pick) or self.tie not in get_args(Tie):
            raise ValueError(
                f"pick must be one of {get_args(Pick)} and tie one of {get_args(Tie)}, got {self.pick!r} and "
                f"{self.tie!r}"
            )
        turning = [v.channel for v in self.variables if unit_kind(v.to or v.unit) == "angle"]
        if self.pick == "mean" and turning:
            raise ValueError(f"directions {turning} have no mean: take the components of the wind")
        if self._half < 0 or self.days < 1:
            raise ValueError(f"need tolerance >= 0 and days >= 1, got {self.tolerance} and {self.days}")
        channels = [v.channel for v in self.variables]
        if not channels or len(set(channels)) != len(channels):
            raise ValueError(f"variables must be one or more different channels, got {channels}")
        if self.layout.long and any(v.component or v.flag for v in self.variables):
            raise ValueError(
                "a table in long form has one column of flags, that of its layout, and no components"
            )
        absent = sorted(set(self._columns) - set(self._data.schema.names))
        if absent:
            raise ValueError(
                f"{self.path} has no column {absent}; it has {self._data.schema.names}: name its columns by "
                "layout and variables (of the section truth on the command line)"
            )

    @property
    def name(self) -> str:
        """The rules by which values are chosen."""
        minutes = self._half / 60
        rule = f"nearest, tie {self.tie}" if self.pick == "nearest" else "mean"
        parts = [
            f"stations {rule} within {minutes:g} min of {self.layout.time}",
            *(v.name for v in self.variables),
        ]
        if self.climate is not None:
            parts.append(f"within {self.climate.sigmas:g} sd of {self.climate.climatology.name}")
        return "; ".join(parts)

    @property
    def stations(self) -> list[str]:
        """Names, sorted."""
        return self._network[0]

    @property
    def grid(self) -> Grid:
        """Positions."""
        return self._network[1]

    @property
    def elevation(self) -> Vector:
        """(N,) m."""
        return self._network[2]

    def read(self, times: Times, /) -> xr.DataArray:
        """States (time, channel, point); NaN where there is no usable report.

        Raises:
            ValueError: for another time than those of `times`.
        """
        wanted = seconds(times)
        unknown = wanted[~np.isin(wanted, self.times)]
        if unknown.size:
            raise ValueError(f"there is no state at {unknown[0]}: name it in times")
        values = [self._state(t) for t in wanted]
        coords = {
            "time": wanted.astype("datetime64[ns]"),
            "channel": [v.channel for v in self.variables],
            "units": ("channel", [v.to or v.unit for v in self.variables]),
            "station": ("point", self.stations),
            "latitude": ("point", self.grid.latitude),
            "longitude": ("point", self.grid.longitude),
            "elevation": ("point", self.elevation),
        }
        shape = (len(wanted), len(self.variables), self.grid.size)
        return xr.DataArray(np.reshape(values, shape), coords, ("time", "channel", "point"), name=self.name)

    def counts(self) -> pa.Table:
        """What became of the reports from the first to the last of `times`, within `tolerance` of them.

        One row per channel: reports; missing: without a value; flagged: with a rejected flag; outside: beyond
        the limits; no_direction: wind without one; usable: the rest. Each is counted once, in this order. The
        check against a climatology depends on the valid time and comes later.
        """
        rows = []
        totals: dict[str, dict[str, int]] = {v.channel: dict.fromkeys(FATES, 0) for v in self.variables}
        for cut in self._cuts():
            table = self._table(*cut)
            for variable in self.variables:
                fate = self.control(table, variable)[1]
                for number, label in enumerate(FATES):
                    totals[variable.channel][label] += int((fate == number).sum())
        for channel, found in totals.items():
            rows.append({"channel": channel, "reports": sum(found.values()), **found})
        return pa.Table.from_pylist(rows)

    def tables(self) -> Iterator[pa.Table]:
        """Reports of the period as they are, a few days at a time."""
        for cut in self._cuts():
            yield self._table(*cut)

    def raw(self, table: pa.Table, variable: Observed) -> Vector:
        """Values of a variable in a table (R,), in its unit there, before any control."""
        if not self.layout.long:
            return _floats(table, variable.column)
        other = table[self.layout.variable].to_numpy() != variable.column
        return np.where(other, np.nan, _floats(table, self.layout.value))

    def places(self) -> dict[str, list[Any]]:
        """Every station, latitude, longitude and elevation that reports of the period give, as they are."""
        place = self.layout
        names = [place.station, place.latitude, place.longitude, *([place.elevation] * bool(place.elevation))]
        table = self._data.to_table(columns=names, filter=self._between(*self._period))
        found: dict[str, list[Any]] = table.group_by(names).aggregate([]).to_pydict()
        keys = ("station", "latitude", "longitude", "elevation")
        columns = {key: found[name] for key, name in zip(keys, names, strict=False)}
        return {"elevation": [None] * len(columns["station"])} | columns

    def reported(self) -> Times:
        """Those of `times` with a report within `tolerance`, usable or not, of any station of the table."""
        near = np.zeros(self.times.shape, bool)
        for cut in self._cuts():
            table = self._data.to_table(columns=[self.layout.time], filter=self._between(*cut))
            found = np.unique(seconds(table[self.layout.time].to_numpy()))
            low, high = self.times - self._margin, self.times + self._margin
            near |= np.searchsorted(found, high, side="right") > np.searchsorted(found, low)
        return self.times[near]

    @cached_property
    def _data(self) -> Any:
        """The parquet files."""
        # Slow to import, and few need it.
        import pyarrow.dataset as ds

        if fspath(self.path).endswith(".csv"):
            from pyarrow.csv import ConvertOptions, read_csv

            # Numbers of stations may begin with 0.
            text = ConvertOptions(column_types={self.layout.station: pa.string()})
            return ds.dataset(read_csv(fspath(self.path), convert_options=text))
        try:
            return ds.dataset(self.path, format="parquet")
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{self.path} is no table of reports: give a parquet file, a folder of them, or a .csv file"
            ) from error

    @property
    def _half(self) -> int:
        return int(self.tolerance / np.timedelta64(1, "s"))

    @property
    def _columns(self) -> list[str]:
        place = self.layout
        names = [place.station, place.time]
        if place.long:
            return [*names, place.variable, place.value, *([place.flag] if place.flag else [])]
        for v in self.variables:
            names += [name for name in (v.column, v.flag, v.direction) if name]
        return list(dict.fromkeys(names))

    @cached_property
    def _network(self) -> tuple[list[str], Grid, Vector]:
        """Names, positions and elevations."""
        place = self.layout
        names = [
            place.station,
            place.latitude,
            place.longitude,
            *([place.elevation] if place.elevation else []),
        ]
        self._check_variables()
        table = self._data.to_table(columns=names, filter=self._between(*self._period))
        found = table.group_by(names).aggregate([]).to_pydict()
        self._check_excluded(set(found[place.station]))
        kept = [i for i, s in enumerate(found[place.station]) if s not in set(self.exclude)]
        station = np.array([found[place.station][i] for i in kept], str)
        latitude, longitude, elevation = (
            np.array([np.nan if found[n][i] is None else found[n][i] for i in kept], np.float64)
            if n
            else np.full(len(kept), np.nan)
            for n in (place.latitude, place.longitude, place.elevation)
        )
        order = np.argsort(station, kind="stable")
        station, latitude, longitude = station[order], latitude[order], longitude[order] % 360.0
        elevation = np.where(np.abs(elevation) <= _HIGHEST, elevation, np.nan)[order]
        names_, start = np.unique(station, return_index=True)
        _check_places(station, latitude, longitude, names_, start)
        inside = self._inside(Grid.from_points(latitude[start], longitude[start]))
        if not inside.any():
            raise ValueError(
                f"{self.path} has no report of a station in the period {self._period}: check times and within"
            )
        start, names_ = start[inside], names_[inside]
        return names_.tolist(), Grid.from_points(latitude[start], longitude[start]), elevation[start]

    def _check_variables(self) -> None:
        """Refuse variables that a table in long form does not have."""
        if self.layout.long:
            column = self.layout.variable
            table = self._data.to_table(columns=[column], filter=self._between(*self._period))
            found = pc.unique(table[column]).to_pylist()
            absent = [v.column for v in self.variables if v.column not in found]
            if absent:
                raise ValueError(f"{self.path} has no variable {absent} in the period; it has {found}")

    def _check_excluded(self, reporting: set[str]) -> None:
        """Refuse names of stations that the whole table does not have; those of the period are known."""
        absent = set(self.exclude) - reporting
        if absent:
            column = self.layout.station
            held = set(pc.unique(self._data.to_table(columns=[column])[column]).to_pylist())
            if absent - held:
                close = get_close_matches(min(absent - held), sorted(map(str, held)), 3)
                raise ValueError(
                    f"exclude names {sorted(absent - held)}, which are no stations of {self.path}"
                    + (f": did you mean {', '.join(close)}?" if close else "")
                )

    def _inside(self, grid: Grid) -> npt.NDArray[np.bool_]:
        return np.ones(grid.size, bool) if self.within is None else box(grid, *self.within)

    @property
    def _margin(self) -> np.timedelta64:
        return np.timedelta64(self._half, "s")

    def _between(self, first: np.datetime64, stop: np.datetime64) -> Any:
        """Filter of the rows from one time to before another."""
        kind = self._data.schema.field(self.layout.time).type
        if not pa.types.is_timestamp(kind):
            raise ValueError(
                f"column {self.layout.time!r} of {self.path} must hold timestamps, it holds {kind}: write it "
                "as 2020-01-31T23:55:00, or in pandas by pandas.to_datetime"
            )
        column = pc.field(self.layout.time)
        low, high = (
            pa.scalar(int(t.astype("datetime64[s]").astype(np.int64)), pa.timestamp("s", kind.tz)).cast(kind)
            for t in (first, stop)
        )
        return (column >= low) & (column < high)

    def _span(self, number: int) -> tuple[np.datetime64, np.datetime64]:
        """Times of reports for the valid times of a block of days, the second excluded."""
        start = np.datetime64(0, "s") + number * self.days * _DAY
        return start - self._margin, start + self.days * _DAY + self._margin

    def _number(self, time: np.datetime64) -> int:
        return int((time - np.datetime64(0, "s")) // (self.days * _DAY))

    @property
    def _period(self) -> tuple[np.datetime64, np.datetime64]:
        return self.times[0] - self._margin, self.times[-1] + self._margin + np.timedelta64(1, "s")

    def _cuts(self) -> list[tuple[np.datetime64, np.datetime64]]:
        """Cuts of the whole period that do not overlap."""
        first, stop = self._period
        return list(pairwise(np.append(np.arange(first, stop, self.days * _DAY), stop)))

    def _table(self, first: np.datetime64, stop: np.datetime64) -> pa.Table:
        wanted = pa.array(self.stations, pa.string())
        table = self._data.to_table(columns=self._columns, filter=self._between(first, stop))
        return table.filter(pc.is_in(table[self.layout.station].cast(pa.string()), wanted))

    def control(self, table: pa.Table, variable: Observed) -> tuple[Vector, npt.NDArray[np.intp]]:
        """Values (R,), NaN where they are not usable, and the number of what became of each in `FATES`."""
        place = self.layout
        if place.long:
            value_column, flag_column = place.value, place.flag
            other = table[place.variable].to_numpy() != variable.column
        else:
            value_column, flag_column = variable.column, variable.flag
            other = np.zeros(table.num_rows, bool)
        values = convert_units(_floats(table, value_column), variable.unit, variable.to or variable.unit)
        low, high = variable.bounds
        fate = np.full(values.shape, FATES.index("usable"))
        if variable.component:
            direction = _floats(table, variable.direction)
            fate[np.isnan(direction) & (values != 0)] = FATES.index("no_direction")
        fate[(values < low) | (values > high)] = FATES.index("outside")
        if flag_column and variable.reject:
            bad = pc.is_in(table[flag_column].cast(pa.string()), pa.array(variable.reject, pa.string()))
            fate[bad.to_numpy()] = FATES.index("flagged")
        fate[~np.isfinite(values)] = FATES.index("missing")
        fate[other] = -1
        if variable.component:
            turn = np.deg2rad(np.where(values == 0, 0.0, direction))
            values = -values * (np.sin(turn) if variable.component == "u" else np.cos(turn))
        return np.where(fate == FATES.index("usable"), values, np.nan), fate

    def _block(self, number: int) -> _Block:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        table = self._table(*self._span(number))
        times = seconds(table[self.layout.time].to_numpy()).astype(np.int64)
        order = np.argsort(times, kind="stable")
        names = np.asarray(table[self.layout.station].to_numpy(), str)
        station = np.searchsorted(np.array(self.stations), names)
        values = np.stack([self.control(table, v)[0] for v in self.variables])
        self._blocks[number] = _Block(station[order].astype(np.intp), times[order], values[:, order])
        if len(self._blocks) > _BLOCKS:
            self._blocks.popitem(last=False)
        return self._blocks[number]

    def _state(self, time: np.datetime64) -> Vector:
        """(C, N)."""
        block, now = self._block(self._number(time)), int(time.astype(np.int64))
        part = slice(*np.searchsorted(block.times, [now - self._half, now + self._half + 1]))
        station, late = block.station[part], block.times[part] - now
        values = self._plausible(block.values[:, part], station, time)
        chosen = _mean if self.pick == "mean" else self._nearest
        return np.stack([chosen(v, station, late, self.grid.size) for v in values])

    def _plausible(self, values_CR: Vector, station: npt.NDArray[np.intp], time: np.datetime64) -> Vector:
        if self.climate is None:
            return values_CR
        found = (self.climate.climatology.at(s, time) for s in ("mean", "std"))
        mean, deviation = (_pick_channels(f, self.variables) for f in found)
        if mean.shape[1] != self.grid.size:
            raise ValueError(
                f"climatology {self.climate.climatology.name!r} has {mean.shape[1]} points and there are "
                f"{self.grid.size} stations: use PointClimatology"
            )
        away = np.abs(values_CR - mean[:, station])
        return np.where(away <= self.climate.sigmas * deviation[:, station], values_CR, np.nan)

    def _nearest(
        self, values: Vector, station: npt.NDArray[np.intp], late: npt.NDArray[np.int64], size: int
    ) -> Vector:
        usable = np.flatnonzero(~np.isnan(values))
        preferred = late if self.tie == "before" else -late
        # The last key sorts first; among reports of one time the later row wins.
        keys = (-usable, preferred[usable], np.abs(late[usable]), station[usable])
        order = usable[np.lexsort(keys)]
        out = np.full(size, np.nan)
        found, first = np.unique(station[order], return_index=True)
        out[found] = values[order[first]]
        return out


FATES = ("missing", "flagged", "outside", "no_direction", "usable")
"""What becomes of the values of a variable."""


def _mean(values: Vector, station: npt.NDArray[np.intp], late: npt.NDArray[np.int64], size: int) -> Vector:
    del late
    usable = ~np.isnan(values)
    number = np.bincount(station[usable], minlength=size)
    total = np.bincount(station[usable], weights=values[usable], minlength=size)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / number)


def _floats(table: pa.Table, column: str) -> Vector:
    return np.asarray(table[column].cast(pa.float64()).to_numpy(), np.float64)


def _pick_channels(found: xr.DataArray, variables: Sequence[Observed]) -> Vector:
    """Fields (C, N) of a climatology, after their units were compared."""
    channels = [v.channel for v in variables]
    absent = sorted(set(channels) - set(channel_names(found)))
    if absent:
        raise ValueError(f"the climatology of the check has no {absent}; it has {channel_names(found)}")
    known = dict(zip(channel_names(found), channel_units(found) or (), strict=False))
    for v in variables:
        if known.get(v.channel) and not same_units(known[v.channel], v.to or v.unit):
            raise ValueError(
                f"channel {v.channel!r} is in {known[v.channel]!r} in the climatology of the check and in "
                f"{v.to or v.unit!r} at the stations: convert one of them"
            )
    return np.asarray(found.sel(channel=channels).transpose("channel", ...).values, np.float64)


# Positions are given to 0.01 degrees, in single precision.
_SAME_PLACE_KM = 5.0


def _check_places(
    station: Array, latitude: Vector, longitude: Vector, names: Array, start: npt.NDArray[np.intp]
) -> None:
    """Refuse stations without a position or with more than one."""
    group = np.searchsorted(names, station)
    away = great_circle_km(latitude, longitude, latitude[start][group], longitude[start][group])
    # NaN is not near either.
    wrong = np.unique(station[~(away <= _SAME_PLACE_KM)])
    if wrong.size:
        raise ValueError(
            f"{wrong.size} stations have no position or more than one, {_SAME_PLACE_KM:g} km apart or more: "
            f"{', '.join(wrong[:5])}; give them different names or exclude them"
        )
