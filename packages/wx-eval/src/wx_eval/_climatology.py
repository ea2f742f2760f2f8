"""Climatology by day of the year and hour of the day."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Self, get_args

import numpy as np
import xarray as xr

from ._dims import standard_names, stored_size
from ._fields import as_history, seconds
from ._files import open_datasets
from ._grid import Array, digest
from ._kept import Kept
from ._pieces import Memory, written
from ._protocols import History
from ._seasons import QUANTILE, SLOTS, SUFFIXES, Calendar, Kernel, Sweeps, check_calendar, slots, window

# Of pieces of the storage: one holds the fields of many days, and successive leads need successive days.
_KEPT_BYTES = 128 << 20


@dataclass(frozen=True, eq=False)
class DayClimatology:
    """Fields by day of the year and hour of the day, in the layout of WeatherBench 2.

    `DayClimatology.build` makes one from a series of states, `DayClimatology.open` takes a dataset that was
    kept. It is a `Climatology`.

    Attributes:
        dataset: variables <channel>, <channel>_std, <channel>_quantile (with a dim quantile),
            <channel>_seeps_dry_fraction and <channel>_seeps_threshold with dims hour, dayofyear (1..366) and
            space in any order. Write it by its own `to_netcdf` or `to_zarr`.
        name: kept with records that were scored against it.
        calendar: what a day of the year is. "monthday": a month and day, so that 1 March is day 61 in every
            year. "doy": the count of days in its own year, so that 1 March is day 60 or 61; that of
            WeatherBench 2 and X.
        channels: variable, or (variable, level), behind each channel.
    """

    dataset: xr.Dataset
    name: str
    calendar: Calendar
    channels: Mapping[str, str | tuple[str, float]]
    _dry: dict[str, xr.Variable] = field(default_factory=dict, init=False, repr=False)
    _kept: Kept[Array] = field(default_factory=lambda: Kept(_KEPT_BYTES), init=False, repr=False)

    def __post_init__(self) -> None:
        check_calendar(self.calendar)
        lacking = [dim for dim in ("hour", "dayofyear") if dim not in self.dataset.coords]
        if lacking:
            raise ValueError(f"a climatology needs coordinates hour and dayofyear, {lacking} are absent")
        if self.dataset["dayofyear"].values.tolist() != list(range(1, SLOTS + 1)):
            raise ValueError(
                f"dayofyear must run from 1 to {SLOTS}, got {self.dataset['dayofyear'].size} days"
            )
        endings = (*SUFFIXES.values(), QUANTILE)
        known = {str(v) for v in self.dataset}
        absent = [v for v in self.channels.values() if known.isdisjoint(_split(v)[0] + e for e in endings)]
        if absent or not self.channels:
            raise ValueError(f"no variables {absent} in the dataset, which holds {list(self.dataset)}")

    @classmethod
    def open(
        cls,
        dataset: xr.Dataset,
        *,
        name: str | None = None,
        calendar: Calendar | None = None,
        channels: Mapping[str, str | tuple[str, float]] | None = None,
    ) -> Self:
        """Take a dataset that `build` made, or one of WeatherBench 2 with `calendar="doy"`.

        Fields are read when they are asked for.

        Args:
            dataset: see the class; `lat` and `lon` are accepted.
            name: by default the attribute `name` of the dataset.
            calendar: by default the attribute `calendar` of the dataset.
            channels: {"z500": ("geopotential", 500), "tp": "total_precipitation_24hr"}; by default every
                variable with a mean is a channel, in the order that `build` met them.

        Raises:
            ValueError: when name or calendar are not known, or variables, hours or days are absent.
        """
        dataset = standard_names(dataset)
        told = (("name", name, "ERA5 1990-2019"), ("calendar", calendar, "doy"))
        for key, given, example in told:
            if given is None and key not in dataset.attrs:
                raise ValueError(f"the climatology states no {key}: give it, such as {key} = {example!r}")
        if channels is None:
            endings = (*(s for s in SUFFIXES.values() if s), QUANTILE)
            found = [str(v) for v in dataset if not str(v).endswith(endings)]
            # A store without consolidated metadata lists its variables as the file system does.
            order = {c: i for i, c in enumerate(json.loads(dataset.attrs.get("channels", "[]")))}
            channels = {v: v for v in sorted(found, key=lambda v: order.get(v, len(order)))}
        return cls(
            dataset,
            dataset.attrs["name"] if name is None else name,
            dataset.attrs["calendar"] if calendar is None else calendar,
            dict(channels),
        )

    @classmethod
    def build(
        cls,
        history: xr.DataArray | xr.Dataset | History,
        *,
        quantiles: Sequence[float] = (),
        seeps: Mapping[str, float] | None = None,
        window_days: int = 30,
        kernel: Kernel = "triangle",
        calendar: Calendar = "monthday",
        name: str | None = None,
        memory_bytes: int = 1 << 30,
        path: str | PathLike[str] | None = None,
    ) -> Self:
        """Statistics of all states of one hour of day within a window of days around each day of the year.

        For the day d of the year, with weights w_i of the states x_i in its window over all years:
        mean = sum w x / sum w, std = sqrt(sum w (x - mean)^2 / sum w), quantiles of the weighted sample
        (type 7 with Kish's effective size, Akinshin 2023; without weights those of `numpy.quantile`).
        A climatological forecast or a threshold is only fair when the verified period is not in `history`.

        Days are counted around the ring of the year. In the calendar "monthday" that of common years has 365
        days, and 29 February is the day of 28 February there. In "doy" every ring has 366 days and 31
        December of a common year is both day 365 and 366, as in WeatherBench 2.

        The history is swept in order of time, channel by channel, once for as many rows and hours as
        `memory_bytes` holds. A point takes 23 kB per hour of the day for means, and four times its whole
        series for quantiles and SEEPS. With `path` the result is written piece by piece and memory does not
        grow with the grid; it appears there when it is complete, and a zarr folder that was stopped goes on.

        Args:
            history: states (time, channel, *space), or a History. A NaN makes its windows NaN.
            quantiles: probabilities, each kept as "quantile(<probability>)".
            seeps: dry threshold in mm of each channel of precipitation, see `SEEPS`, for which the dry
                fraction (share of the states in the window up to it) and the threshold of heavy
                precipitation (quantile 2/3 of those above) are kept.
            window_days: half width W of the window. 30 with "triangle" is that of WeatherBench 2.
            kernel: "triangle", w = 1 - |days| / W, which is 0 at both ends, or "flat", w = 1.
            calendar: see the class.
            name: by default period, window and calendar.
            memory_bytes: of the work space; without `path` the result itself comes on top.
            path: a folder that ends in .zarr, or a netCDF file, that the result is written to and read from.

        Raises:
            ValueError: for a day without any state in its window, a channel of `seeps` that is not there, or
                precipitation without a unit.
        """
        check_calendar(calendar)
        if kernel not in get_args(Kernel) or not 0 <= window_days <= SLOTS // 2 - 1:
            raise ValueError(
                f"kernel must be one of {get_args(Kernel)} and window_days within 0..{SLOTS // 2 - 1}, got "
                f"{kernel!r} and {window_days}"
            )
        if any(not 0 <= q <= 1 for q in quantiles):
            raise ValueError(f"quantiles must lie within 0..1, got {tuple(quantiles)}")
        source = as_history(history, "history")
        work = Sweeps(source, calendar, window(calendar, kernel, window_days), memory_bytes)
        dry, levels = dict(seeps or {}), tuple(quantiles)
        if set(dry) - set(work.names):
            raise ValueError(f"seeps names channels {sorted(dry)}, the history has {list(work.names)}")
        first, last = (str(t.astype("datetime64[D]")) for t in (source.times[0], source.times[-1]))
        label = name or f"{first} to {last}, {kernel} of {window_days} days, {calendar}"
        frame = work.frame.assign_coords({"quantile": np.array(levels)} if levels else {})
        frame.attrs = {
            "name": label,
            "calendar": calendar,
            "kernel": kernel,
            "window_days": window_days,
            "channels": json.dumps(work.names),
        }
        variables = work.variables(levels, dry)
        if path is None:
            memory = Memory(variables)
            work.fill(memory, levels, dry)
            return cls(memory.dataset(frame), label, calendar, {c: c for c in work.names})
        times = digest(seconds(source.times))
        key = json.dumps([frame.attrs, levels, sorted(dry.items()), times, work.first.shape, memory_bytes])
        with written(path, frame, variables, key) as store:
            work.fill(store, levels, dry)
        [(_, dataset)] = open_datasets([fspath(path)])
        return cls.open(dataset)

    def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
        """See `Climatology.at`: of all channels that have the statistic, in their units.

        "seeps_dry_fraction" is the mean over all hours and days, as SEEPS needs it.

        Raises:
            ValueError: for a statistic, hour or quantile that is not kept.
        """
        level = _probability(statistic)
        if level is None and statistic not in SUFFIXES:
            raise ValueError(
                f"a climatology has no statistic {statistic!r}: choose among {(*SUFFIXES, 'quantile(p)')}"
            )
        suffix = QUANTILE if level is not None else SUFFIXES[statistic]
        found = {c: _split(v) for c, v in self.channels.items() if _split(v)[0] + suffix in self.dataset}
        if not found:
            raise ValueError(f"climatology {self.name!r} holds no {statistic} of any channel")
        fields = [self._field(c, *v, suffix, level, valid_time) for c, v in found.items()]
        units = [str(self.dataset[v[0] + suffix].attrs.get("units", "")) for v in found.values()]
        coords = {c: self.dataset.variables[c] for c in ("latitude", "longitude") if c in self.dataset.coords}
        return xr.DataArray(
            np.stack([f.values for f in fields]),
            {"channel": list(found), **coords, "units": ("channel", units)},
            ("channel", *fields[0].dims),
            name=statistic,
        )

    def _field(
        self,
        channel: str,
        variable: str,
        level: float | None,
        suffix: str,
        probability: float | None,
        time: np.datetime64,
    ) -> xr.Variable:
        """One field (*space)."""
        array, place = self.dataset.variables[variable + suffix], {}
        if level is not None:
            place["level"] = _nearest(self.dataset["level"].values, level, f"levels of {variable!r}")
        if probability is not None:
            kept = self.dataset["quantile"].values
            place["quantile"] = _nearest(kept, probability, f"quantiles of {self.name!r}")
        space = [d for d in array.dims if d not in ("hour", "dayofyear", *place)]
        if set(space) == {"latitude", "longitude"}:
            space = ["latitude", "longitude"]
        if suffix != SUFFIXES["seeps_dry_fraction"]:
            place["hour"], place["dayofyear"] = self._place(time)
            return self._read(variable + suffix, place).transpose(*space)
        if channel not in self._dry:
            self._dry[channel] = array.isel(place).mean(("hour", "dayofyear")).transpose(*space)
        return self._dry[channel]

    def _read(self, name: str, place: Mapping[str, int]) -> xr.Variable:
        """One entry along each dim of `place`, from the piece of the storage that holds it."""
        array = self.dataset.variables[name]
        sizes = {dim: max(1, stored_size(array, dim)) for dim in place}
        first = {dim: at // sizes[dim] * sizes[dim] for dim, at in place.items()}
        piece = array.isel({dim: slice(at, at + sizes[dim]) for dim, at in first.items()})
        if piece.nbytes > _KEPT_BYTES // 4 or max(sizes.values()) == 1:
            return array.isel(place)
        values = self._kept.get((name, *first.items()), lambda: np.asarray(piece.values))
        return xr.Variable(array.dims, values).isel({dim: at - first[dim] for dim, at in place.items()})

    def _place(self, valid_time: np.datetime64) -> tuple[int, int]:
        """Positions along hour and dayofyear."""
        stamp = seconds(valid_time)
        hour = (stamp - stamp.astype("datetime64[D]")) / np.timedelta64(1, "h")
        kept = self.dataset["hour"].values
        where = np.flatnonzero(kept == hour)
        if not where.size:
            raise ValueError(f"climatology {self.name!r} has the hours {kept.tolist()}, not that of {stamp}")
        return int(where[0]), int(slots(stamp[None], self.calendar)[0])


def _split(variable: str | tuple[str, float]) -> tuple[str, float | None]:
    return (variable, None) if isinstance(variable, str) else variable


def _probability(statistic: str) -> float | None:
    inner = statistic.removeprefix("quantile(").removesuffix(")")
    if f"quantile({inner})" != statistic:
        return None
    try:
        return float(inner)
    except ValueError:
        raise ValueError(f"expected quantile(<probability>), got {statistic!r}") from None


def _nearest(kept: Array, value: float, what: str) -> int:
    # Coordinates may be stored in float32.
    where = np.flatnonzero(np.isclose(kept, value, rtol=1e-6, atol=0))
    if not where.size:
        raise ValueError(f"the {what} are {kept.tolist()}, not {value}")
    return int(where[0])
