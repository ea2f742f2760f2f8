"""Forecasts and truths from files, read when they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike, fspath
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._fields import Chunk, seconds
from ._files import ALIASES, channel_fields, lead_seconds, open_datasets, standard_names
from ._grid import Array, Vector
from ._regrid import Axes, Method, Regridder

Paths = str | PathLike[str] | xr.Dataset | xr.DataArray | Sequence[str | PathLike[str]]
Key = tuple[int, int]
"""Init time in seconds since 1970 and lead time in seconds."""

_SPACE = ("latitude", "longitude")
# Axes written in float32 differ from the same axes in float64 by up to 2e-5 degrees.
_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Cube:
    """Channels of one file that share times and members.

    Attributes:
        origin: path.
        fields: lazy array of each channel, dims out of `dims`, member and space.
        dims: of time.
        where: position along `dims` of every (init time, lead time).
        duplicates: keys that the file has twice.
        members: labels, or None without members.
        attributes: of the variable behind each channel.
    """

    origin: str
    fields: Mapping[str, xr.DataArray]
    units: Mapping[str, str]
    dims: tuple[str, ...]
    where: Mapping[Key, tuple[int, ...]]
    duplicates: tuple[Key, ...]
    members: tuple[int, ...] | None
    attributes: Mapping[str, Mapping[str, Any]]

    def at(self, channel: str, key: Key) -> xr.DataArray:
        """Lazy array (member, *space) or (*space)."""
        field = self.fields[channel]
        place = {d: k for d, k in zip(self.dims, self.where[key], strict=True) if d in field.dims}
        field = field.isel(place, drop=True)
        return field.transpose("member", ...) if "member" in field.dims else field


@dataclass(frozen=True, eq=False)
class Source:
    """Everything that a set of files holds, by channel, init time, lead time and member.

    Files may split any of these between them: one per start, per lead time, per variable or per member. Of a
    truth, init time + lead time is the time that counts.

    Attributes:
        name: for messages.
        cubes: one per file, or several per GRIB file.
        channels: names.
        latitude, longitude: degrees, of rows and columns or of points.
        regridder: applied to every field that is read.
    """

    name: str
    cubes: tuple[Cube, ...]
    channels: tuple[str, ...]
    latitude: Vector
    longitude: Vector
    space: tuple[str, ...]
    regridder: Regridder | None = None

    @cached_property
    def keys(self) -> list[Key]:
        """All (init time, lead time) in order."""
        return sorted(self._at)

    @cached_property
    def _at(self) -> dict[Key, list[Cube]]:
        """Files by what they hold."""
        out: dict[Key, list[Cube]] = {}
        for cube in self.cubes:
            for key in cube.where:
                out.setdefault(key, []).append(cube)
        return out

    @cached_property
    def layouts(self) -> list[tuple[list[Cube], list[Key]]]:
        """Times by the files that hold them."""
        out: dict[tuple[int, ...], tuple[list[Cube], list[Key]]] = {}
        for key in self.keys:
            cubes = self._at[key]
            out.setdefault(tuple(map(id, cubes)), (cubes, []))[1].append(key)
        return list(out.values())

    def channels_at(self, key: Key) -> tuple[str, ...]:
        """Channels that exist at one time."""
        held = {c for cube in self._at.get(key, ()) for c in cube.fields}
        return tuple(c for c in self.channels if c in held)

    @property
    def init_times(self) -> npt.NDArray[np.datetime64]:
        """Starts, increasing."""
        return np.unique(np.array([k[0] for k in self.keys], "datetime64[s]"))

    @property
    def lead_times(self) -> npt.NDArray[np.timedelta64]:
        """Lead times, increasing."""
        return np.unique(np.array([k[1] for k in self.keys], "timedelta64[s]"))

    @cached_property
    def units(self) -> dict[str, str]:
        """Of each channel, "" when not stated.

        Raises:
            ValueError: when two files differ.
        """
        out: dict[str, str] = {}
        for cube in self.cubes:
            for channel, unit in cube.units.items():
                if unit and out.setdefault(channel, unit) != unit:
                    raise ValueError(
                        f"channel {channel!r} of {self.name} is in {out[channel]!r} and, in {cube.origin}, "
                        f"in {unit!r}: convert one of them"
                    )
        return {c: out.get(c, "") for c in self.channels}

    @property
    def axes(self) -> Axes | None:
        """Latitude and longitude of a grid, None for points."""
        return (self.latitude, self.longitude) if self.space == _SPACE else None

    def members(self, channel: str, key: Key) -> list[tuple[int, Cube]]:
        """Label of each member and the cube that holds it."""
        found = []
        for cube in self._at.get(key, ()):
            if channel in cube.fields:
                found += [(label, cube) for label in (cube.members or (0,))]
        return sorted(found, key=lambda item: item[0])

    def read(self, channel: str, key: Key, rows: slice | None = None) -> Array:
        """Members at one time (M, *space), in order of their labels.

        Raises:
            ValueError: for a member that two files hold, or a time that none does.
        """
        parts: list[Array] = []
        labels: list[int] = []
        for cube in self._at.get(key, ()):
            if channel in cube.fields:
                parts.append(self._field(cube.at(channel, key), rows))
                labels += cube.members or (0,)
        self._check(channel, key, labels)
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        order = np.argsort(labels, kind="stable")
        return values if (np.diff(order) == 1).all() else values[order]

    def select(
        self,
        *,
        members: Iterable[int] | None = None,
        channels: Iterable[str] | None = None,
        lead_times: Iterable[np.timedelta64] | None = None,
    ) -> Self:
        """Some members by their labels, channels and lead times.

        Raises:
            ValueError: for what is not there.
        """
        cubes, names = list(self.cubes), self.channels
        if members is not None:
            wanted = tuple(members)
            absent = set(wanted) - {m for c in cubes for m in (c.members or (0,))}
            if absent:
                raise ValueError(f"{self.name} has no member {sorted(absent)}")
            cubes = [p for c in cubes if (p := _members(c, wanted)) is not None]
        if channels is not None:
            names = tuple(channels)
            _absent(set(names) - set(self.channels), self.channels, self.name, "channel")
            cubes = [p for c in cubes if (p := _channels(c, names)) is not None]
        if lead_times is not None:
            leads = set(seconds(list(lead_times)).astype(np.int64).tolist())
            _absent(leads - {k[1] for k in self.keys}, {k[1] for k in self.keys}, self.name, "lead time (s)")
            cubes = [replace(c, where={k: v for k, v in c.where.items() if k[1] in leads}) for c in cubes]
        return replace(self, cubes=tuple(c for c in cubes if c.where), channels=names)

    def aligned(self, truth: Source) -> Self:
        """The same points in the order and with the longitudes of another grid.

        Raises:
            ValueError: when the points are not the same.
        """
        picks = {}
        for dim, ours, theirs in zip(self.space, self._both, truth._both, strict=False):
            picks[dim] = _positions(ours, theirs, dim)
        if self.space != _SPACE or truth.space != _SPACE or any(p is None for p in picks.values()):
            raise ValueError(
                f"{self.name} and {truth.name} are on different grids, {self.grid_text} against "
                f'{truth.grid_text}: regrid one of them by regrid = "bilinear" or "conservative" (--regrid)'
            )
        return self._picked(
            {d: p for d, p in picks.items() if p is not None}, truth.latitude, truth.longitude
        )

    def regridded(self, target: Axes, method: Method) -> Self:
        """On another grid, field by field as they are read.

        Raises:
            ValueError: for points, or a target beyond this grid.
        """
        if self.axes is None:
            raise ValueError(
                f"{self.name} is a set of points: only latitude-longitude grids can be regridded"
            )
        east = self.eastwards()
        regridder = Regridder((east.latitude, east.longitude), target, method)
        return replace(east, latitude=target[0], longitude=target[1], regridder=regridder)

    def same_grid(self, other: Source) -> bool:
        """Whether the points of both are the same and in the same order."""
        pairs = zip(self._both, other._both, strict=True)
        return self.space == other.space and all(_same(a, b) for a, b in pairs)

    @property
    def grid_text(self) -> str:
        """Shape and ends of the axes."""
        lat, lon = self.latitude, self.longitude
        size = f"{lat.size} x {lon.size}" if self.space == _SPACE else f"{lat.size} points"
        return f"{size} at latitude {lat[0]:g}..{lat[-1]:g}, longitude {lon[0]:g}..{lon[-1]:g}"

    @property
    def duplicates(self) -> list[tuple[str, Key]]:
        """Files and the (init time, lead time) that they hold twice."""
        return [(cube.origin, key) for cube in self.cubes for key in cube.duplicates]

    def attribute(self, channel: str, name: str) -> str:
        """Of the variable behind a channel, "" without it."""
        found = (c.attributes[channel].get(name) for c in self.cubes if channel in c.attributes)
        return next((str(v) for v in found if v is not None), "")

    @property
    def _both(self) -> tuple[Vector, Vector]:
        return self.latitude, self.longitude

    def _field(self, array: xr.DataArray, rows: slice | None) -> Array:
        """(M, *space) of one lazy array."""
        order = ("member", *self.space) if "member" in array.dims else self.space
        array = array.transpose(*order)
        if self.regridder is not None:
            values = self.regridder(array.values)[..., rows or slice(None), :]
        else:
            values = np.asarray((array if rows is None else array.isel({self.space[0]: rows})).values)
        return values if "member" in array.dims else values[None]

    def _check(self, channel: str, key: Key, labels: list[int]) -> None:
        when = f"{np.datetime64(key[0], 's')} + {key[1] / 3600:g} h"
        if not labels:
            raise ValueError(f"{self.name} has no {channel!r} from {when}")
        if len(set(labels)) < len(labels):
            twice = sorted({m for m in labels if labels.count(m) > 1})
            raise ValueError(
                f"{self.name} holds {channel!r} from {when} twice (members {twice[:5]}), in "
                f"{sorted({c.origin for c in self._at[key]})[:4]}: drop one of them"
            )

    def _picked(self, picks: Mapping[str, npt.NDArray[np.intp]], latitude: Vector, longitude: Vector) -> Self:
        lazy = {d: p for d, p in picks.items() if (p != np.arange(p.size)).any()}
        cubes = tuple(
            replace(cube, fields={c: f.isel(lazy) for c, f in cube.fields.items()}) for cube in self.cubes
        )
        return replace(self, cubes=cubes, latitude=latitude, longitude=longitude)

    def eastwards(self) -> Self:
        """Columns in increasing order of their longitude, in 0..360 where they are not in order already."""
        if (np.diff(self.longitude) > 0).all():
            return self
        order = np.argsort(self.longitude % 360.0, kind="stable")
        return self._picked({"longitude": order}, self.latitude, (self.longitude % 360.0)[order])


class Forecast:
    """ForecastChunks of a source on the grid of a truth.

    Args:
        source: of forecasts.
        units: of the truth, taken where the forecast states none.
    """

    def __init__(self, source: Source, units: Mapping[str, str] | None = None) -> None:
        self.source = source
        self.keys = source.keys
        self._units = {c: source.units[c] or (units or {}).get(c, "") for c in source.channels}

    def channels_at(self, key: Key) -> tuple[str, ...]:
        """Channels that exist at one init and lead time."""
        return self.source.channels_at(key)

    def chunks(self, init_times: Iterable[np.datetime64]) -> Iterator[Chunk]:
        """Every lead time of some starts."""
        for init in seconds(list(init_times)).astype(np.int64).tolist():
            for key in (k for k in self.source.keys if k[0] == init):
                channels = self.source.channels_at(key)
                yield Chunk(
                    init_time=np.datetime64(key[0], "s"),
                    lead_time=np.timedelta64(key[1], "s"),
                    channels=channels,
                    values=_Values(self.source, key, channels),  # type: ignore[arg-type]
                    latitude=self.source.latitude,
                    longitude=self.source.longitude,
                    units=tuple(self._units[c] for c in channels),
                )


def _stored(field: xr.DataArray, dim: str) -> int:
    """Size along a dim of the pieces in which a field is stored; 0 where nothing tells."""
    pieces = field.encoding.get("preferred_chunks", {})
    return max((int(pieces.get(name, 0)) for name in (dim, *ALIASES.get(dim, ()))), default=0)


class _Values:
    """(member, channel, *space) of one chunk, read when it is sliced or turned into a numpy array."""

    def __init__(self, source: Source, key: Key, channels: tuple[str, ...]) -> None:
        self._source, self._key, self._channels = source, key, channels
        self._kept: tuple[str, Array] | None = None
        named = {c: len(source.members(c, key)) for c in channels}
        counts = set(named.values())
        if len(counts) != 1:
            raise ValueError(
                f"{source.name} from {np.datetime64(key[0], 's')} + {key[1] / 3600:g} h has different "
                f"numbers of members by channel, {named}: select channels or members"
            )
        space = (source.latitude.size, source.longitude.size)
        self.shape = (counts.pop(), len(channels), *space[: len(source.space)])
        kinds = [f.dtype for c in source.cubes for f in c.fields.values()]
        self.dtype = np.dtype(np.float64) if source.regridder is not None else np.result_type(*kinds)
        self.ndim = len(self.shape)
        fields = [f for c in source.cubes for f in c.fields.values()]
        # A field that has to be regridded is read whole.
        whole = source.regridder is not None
        rows = self.shape[2] if whole else max(_stored(f, source.space[0]) for f in fields)
        self.chunks = (0, 1, rows, *[0] * (self.ndim - 3))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        members, channels, *rest = index if isinstance(index, tuple) else (index, slice(None))
        rows = rest[0] if rest and isinstance(rest[0], slice) else None
        names = np.asarray(self._channels, object)[channels]
        parts = [self._read(c, rows) for c in np.atleast_1d(names)]
        values = np.stack(parts, axis=1)[members]
        if isinstance(channels, int | np.integer):
            values = values[..., 0, :, :] if len(self._source.space) == 2 else values[..., 0, :]
        left = rest[1:] if rows is not None else rest
        return (
            values[(slice(None), slice(None), *([slice(None)] * (rows is not None)), *left)]
            if left
            else values
        )

    def _read(self, channel: str, rows: slice | None) -> Array:
        """Members of a channel; a whole field is kept where bands of it cannot be read by themselves."""
        if self._source.regridder is None:
            return self._source.read(channel, self._key, rows)
        if self._kept is None or self._kept[0] != channel:
            self._kept = channel, self._source.read(channel, self._key)
        return self._kept[1][:, rows or slice(None)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        del copy
        values = self[:, :]
        return values if dtype is None else values.astype(dtype)


class Truth:
    """A source as a History.

    Args:
        source: of states.
        units: of the forecast, taken where the truth states none.

    Raises:
        ValueError: when a time comes from two starts.
    """

    def __init__(self, source: Source, units: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._units = [source.units[c] or (units or {}).get(c, "") for c in source.channels]
        self._keys: dict[int, Key] = {}
        for key in source.keys:
            other = self._keys.setdefault(key[0] + key[1], key)
            if other != key:
                raise ValueError(
                    f"{source.name} holds {np.datetime64(key[0] + key[1], 's')} with lead times "
                    f"{other[1] / 3600:g} h and {key[1] / 3600:g} h: choose one by leads = "
                    f'["{key[1] / 3600:g}h"]'
                )
        self._times = np.array(sorted(self._keys), "datetime64[s]")

    @property
    def times(self) -> npt.NDArray[np.datetime64]:
        """Increasing."""
        return self._times

    def read(self, times: npt.NDArray[np.datetime64], /) -> xr.DataArray:
        """See `History.read`."""
        keys = [self._keys[t] for t in seconds(times).astype(np.int64).tolist()]
        source = self.source
        values = np.stack([self._state(key) for key in keys])
        grid: dict[str, Any] = {"latitude": source.latitude, "longitude": source.longitude}
        if source.axes is None:
            grid = {name: (source.space[0], axis) for name, axis in grid.items()}
        units = {"units": ("channel", self._units)}
        stamps = seconds(times).astype("datetime64[ns]")
        return xr.DataArray(
            values,
            {"time": stamps, "channel": list(source.channels), **grid, **units},
            ("time", "channel", *source.space),
            name="truth",
        )

    def channels_at(self, time: int) -> tuple[str, ...]:
        """Channels that exist at one time, in seconds since 1970."""
        return self.source.channels_at(self._keys[time]) if time in self._keys else ()

    def _state(self, key: Key) -> Array:
        """All channels (C, *space), NaN for those that do not exist at this time."""
        held = {c: self._one(c, key) for c in self.source.channels_at(key)}
        empty = np.full_like(next(iter(held.values())), np.nan)
        return np.stack([held.get(c, empty) for c in self.source.channels])

    def _one(self, channel: str, key: Key) -> Array:
        values = self.source.read(channel, key)
        if len(values) != 1:
            raise ValueError(
                f"{self.source.name} has {len(values)} members and a truth needs one: choose it by "
                "members = [0]"
            )
        state: Array = values[0]
        return state


def open_source(
    paths: Paths,
    name: str = "forecast",
    *,
    truth: bool = False,
    channels: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    members: Sequence[int] | None = None,
    lead_times: Sequence[np.timedelta64] | None = None,
    init_time: np.datetime64 | None = None,
    lead_time: np.timedelta64 | None = None,
    engine: str | None = None,
) -> Source:
    """Open whatever xarray reads: zarr, netCDF, GRIB (with cfgrib), one path or several, patterns too.

    A variable is a channel; with a pressure level it is one per level, named as in "z500". Long names of ERA5
    become the usual short ones ("geopotential" z, "2m_temperature" t2m). Usual synonyms of dims are known.
    `time` is the start of a forecast where the file has lead times too, and the valid time where it has a
    start or neither.

    Args:
        paths: files, folders, patterns, or a dataset that is open already.
        name: for messages.
        truth: a truth needs times only.
        channels: keep these, by the names above or those of `rename`.
        rename: new name of a channel by its name above.
        members: keep these labels; without a coordinate members count from 0.
        lead_times: keep these.
        init_time: start of forecasts whose files do not tell it.
        lead_time: lead time of forecasts whose files do not tell it.
        engine: of xarray, where it is not recognised.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for files without the dims or coordinates that are needed, or on different grids.
    """
    cubes: list[Cube] = []
    spaces: list[tuple[tuple[str, ...], Vector, Vector]] = []
    reasons: list[str] = []
    for origin, dataset in _datasets(paths, engine):
        dataset, space = _spatial(dataset, origin)
        made, skipped = _cube(origin, dataset, space, truth, rename or {}, init_time, lead_time)
        reasons += skipped
        if channels is None or set(channels) & set(made.fields):
            cubes += [made] if made.fields else []
            axes = (np.asarray(dataset[axis].values, np.float64) for axis in _SPACE)
            spaces += [(space, *axes)] if made.fields else []  # type: ignore[list-item]
    if not cubes:
        why = "".join(f"; {reason}" for reason in dict.fromkeys(reasons))
        raise ValueError(f"{name} holds no channel{_of(channels)}{why}")
    space, latitude, longitude = spaces[0]
    for cube, (_, *other) in zip(cubes, spaces, strict=True):
        if not all(_same(a, b) for a, b in zip(other, (latitude, longitude), strict=True)):
            raise ValueError(
                f"{name} is on different grids in {cubes[0].origin} and {cube.origin}: choose channels of one"
            )
    names = tuple(dict.fromkeys(c for cube in cubes for c in cube.fields))
    source = Source(name, tuple(cubes), names, latitude, longitude, space)
    return source.select(members=members, channels=channels, lead_times=lead_times)


def _of(channels: Sequence[str] | None) -> str:
    return "" if channels is None else f" of {list(channels)}"


def _same(a: Vector, b: Vector) -> bool:
    return a.shape == b.shape and bool((np.abs(a - b) <= _TOLERANCE).all())


def _datasets(paths: Paths, engine: str | None) -> list[tuple[str, xr.Dataset]]:
    if isinstance(paths, xr.DataArray):
        paths = paths.to_dataset(name=str(paths.name or "value"))
    if isinstance(paths, xr.Dataset):
        return [("dataset", standard_names(paths))]
    listed = [paths] if isinstance(paths, str | PathLike) else list(paths)
    return open_datasets([fspath(p) for p in listed], engine)


def _spatial(dataset: xr.Dataset, origin: str) -> tuple[xr.Dataset, tuple[str, ...]]:
    """A dataset with coordinates latitude and longitude, and the dims of space."""
    absent = [a for a in _SPACE if a not in dataset.variables]
    if absent:
        raise ValueError(
            f"{origin} has no coordinate {absent}, it has {sorted(map(str, dataset.variables))[:12]}"
        )
    dataset = dataset.set_coords(_SPACE)
    dims = tuple(dict.fromkeys(str(d) for a in _SPACE for d in dataset[a].dims))
    if not dims:
        # A single point.
        points = {a: ("point", np.atleast_1d(dataset[a].values)) for a in _SPACE}
        return dataset.drop_vars(_SPACE).expand_dims("point").assign_coords(points), ("point",)
    if len(dims) == 1 or dims == _SPACE:
        return dataset, dims
    raise ValueError(
        f"{origin} has latitude over {dataset['latitude'].dims} and longitude over "
        f"{dataset['longitude'].dims}: they must be the axes of a grid, or both lie along one dim of points"
    )


def _cube(
    origin: str,
    dataset: xr.Dataset,
    space: tuple[str, ...],
    truth: bool,
    rename: Mapping[str, str],
    init_time: np.datetime64 | None,
    lead_time: np.timedelta64 | None,
) -> tuple[Cube, list[str]]:
    """Channels of one dataset, and why others are none."""
    init, lead = _times(dataset, origin, truth, init_time, lead_time)
    dims = tuple(str(d) for d in init.dims)
    where, duplicates = _keys(init, lead)
    members = None
    if "member" in dataset.dims:
        labels = (
            dataset["member"].values if "member" in dataset.coords else np.arange(dataset.sizes["member"])
        )
        members = tuple(int(m) for m in labels)
    elif "member" in dataset.coords:
        members = (int(dataset["member"]),)
    fields, units, attributes, skipped = {}, {}, {}, []
    for channel, unit, array in channel_fields(dataset):
        channel = rename.get(channel, channel)
        own = set(map(str, array.dims))
        if not set(space) <= own:
            continue
        if not own <= {*dims, *space, "member"} or not set(dims) <= own:
            skipped.append(f"{channel!r} of {origin} has dims {array.dims}, times are along {dims}")
            continue
        fields[channel], units[channel], attributes[channel] = array, unit, array.attrs
    if not skipped and not fields:
        skipped = [f"{origin} holds {list(map(str, dataset.data_vars))}, none of them over {space}"]
    return Cube(origin, fields, units, dims, where, duplicates, members, attributes), skipped


def _times(
    dataset: xr.Dataset,
    origin: str,
    truth: bool,
    init_time: np.datetime64 | None,
    lead_time: np.timedelta64 | None,
) -> tuple[xr.DataArray, xr.DataArray]:
    """Init and lead time of every state, over the same dims."""
    coords = dataset.coords
    lead = coords.get("lead_time")
    init = coords.get("init_time", coords.get("time") if lead is not None else None)
    valid = coords.get("valid_time", coords.get("time"))
    if lead is not None:
        lead = lead.copy(data=lead_seconds(lead))
    elif lead_time is not None:
        lead = xr.DataArray(seconds(lead_time))
    elif truth and init is None:
        lead = xr.DataArray(np.timedelta64(0, "s"))
    if init is not None:
        init = _stamps(init, origin)
        # CF keeps the lead time along the valid time.
        if lead is not None and coords.get("init_time") is None and lead.dims == init.dims == ("time",):
            init = init - lead
    elif init_time is not None:
        init = xr.DataArray(seconds(init_time))
    elif valid is not None and lead is not None:
        init = _stamps(valid, origin) - lead
    if init is not None and lead is None and valid is not None:
        lead = _stamps(valid, origin) - init
    if init is None or lead is None:
        missing = "time" if truth or (valid is None and init is None) else "lead time"
        raise ValueError(
            f"{origin} has no {missing}: its coordinates are {sorted(map(str, coords))}; name a constant one "
            'by lead_time = "24h" or init_time = "2020-01-01T00"'
        )
    pair = xr.broadcast(init.reset_coords(drop=True), lead.reset_coords(drop=True))
    return pair[0], pair[1].transpose(*pair[0].dims)


def _stamps(array: xr.DataArray, origin: str) -> xr.DataArray:
    if array.dtype.kind != "M":
        raise ValueError(
            f"{array.name} of {origin} is no time but {array.dtype}: give it CF units such as "
            '"hours since 1970-01-01"'
        )
    return array.copy(data=seconds(array.values))


def _keys(init: xr.DataArray, lead: xr.DataArray) -> tuple[dict[Key, tuple[int, ...]], tuple[Key, ...]]:
    """Position of every (init time, lead time), and those that come twice."""
    where: dict[Key, tuple[int, ...]] = {}
    twice = []
    there = ~(np.isnat(init.values) | np.isnat(lead.values))
    starts, steps = seconds(init.values).astype(np.int64), seconds(lead.values).astype(np.int64)
    for place in np.ndindex(*init.shape):
        if there[place] and steps[place] >= 0:
            key = int(starts[place]), int(steps[place])
            if key in where:
                twice.append(key)
            where.setdefault(key, place)
    return where, tuple(twice)


def _members(cube: Cube, wanted: tuple[int, ...]) -> Cube | None:
    labels = cube.members or (0,)
    keep = [k for k, label in enumerate(labels) if label in wanted]
    if not keep:
        return None
    chosen = tuple(labels[k] for k in keep)
    fields = {c: f.isel(member=keep) if "member" in f.dims else f for c, f in cube.fields.items()}
    return replace(cube, fields=fields, members=chosen)


def _channels(cube: Cube, names: tuple[str, ...]) -> Cube | None:
    fields = {c: f for c, f in cube.fields.items() if c in names}
    return replace(cube, fields=fields, units={c: cube.units[c] for c in fields}) if fields else None


def _absent(absent: set[Any], known: Iterable[Any], name: str, kind: str) -> None:
    if absent:
        raise ValueError(f"{name} has no {kind} {sorted(absent)[:8]}; it has {sorted(known)[:40]}")


def _positions(ours: Vector, theirs: Vector, dim: str) -> npt.NDArray[np.intp] | None:
    """Where each of their values is among ours, None unless both hold the same ones."""
    if ours.shape != theirs.shape:
        return None
    away = np.abs(ours[None] - theirs[:, None])
    if dim == "longitude":
        away = np.minimum(away % 360.0, 360.0 - away % 360.0)
    found = np.argmin(away, axis=1)
    close = away[np.arange(found.size), found] <= _TOLERANCE
    return found if close.all() and np.unique(found).size == found.size else None
