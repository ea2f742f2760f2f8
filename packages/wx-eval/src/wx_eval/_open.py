"""Forecasts and truths from files, read when they are needed."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike, fspath
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._cube import READ_AHEAD_BYTES, Cube, Key, file_cube
from ._dims import GRID_TOLERANCE, SPACE, seconds, standard_names, stored_size
from ._files import channel_fields, open_datasets
from ._grid import Array, Vector
from ._kept import Kept
from ._protocols import Chunk
from ._regrid import Axes, Method, Regridder

Paths = str | PathLike[str] | xr.Dataset | xr.DataArray | Sequence[str | PathLike[str]]


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
    _kept: Kept[Array] = field(default_factory=lambda: Kept(READ_AHEAD_BYTES), init=False, repr=False)

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
    def layouts(self) -> list[list[Key]]:
        """Times that the same files hold."""
        out: dict[tuple[int, ...], list[Key]] = {}
        for key in self.keys:
            out.setdefault(tuple(map(id, self._at[key])), []).append(key)
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
            for channel, unit in ((c, f.unit) for c, f in cube.fields.items()):
                if unit and out.setdefault(channel, unit) != unit:
                    raise ValueError(
                        f"channel {channel!r} of {self.name} is in {out[channel]!r} and, in {cube.origin}, "
                        f"in {unit!r}: convert one of them"
                    )
        return {c: out.get(c, "") for c in self.channels}

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Of what is stored."""
        return np.result_type(*(v.dtype for cube in self.cubes for v in cube.variables.values()))

    def stored(self, dim: str, key: Key) -> int:
        """Largest size along a dim of the pieces that hold channels at one time, 0 where it is unknown."""
        return max(stored_size(v, dim) for cube in self._at[key] for v in cube.variables.values())

    def piece(self, channel: str, key: Key) -> Hashable:
        """What channels have in common that are stored together at one time."""
        return next(cube.piece(channel) for cube in self._at[key] if channel in cube.fields)

    @property
    def axes(self) -> Axes | None:
        """Latitude and longitude of a grid, None for points."""
        return (self.latitude, self.longitude) if self.space == SPACE else None

    def members(self, channel: str, key: Key) -> list[int]:
        """Labels of the members at one time, in order."""
        return sorted(m for c in self._at.get(key, ()) if channel in c.fields for m in c.labels)

    def read(self, channel: str, key: Key) -> Array:
        """Members at one time (M, *space), in order of their labels.

        Raises:
            ValueError: for a member that two files hold, or a time that none does.
        """
        return self.stack((channel,), key)[:, 0]

    def stack(self, channels: Sequence[str], key: Key, rows: slice = slice(None)) -> Array:
        """Some channels at one time (M, C, *space), members in order of their labels.

        What shares a piece of storage with them, other times and channels, is kept for the next call as far
        as memory allows.

        Raises:
            ValueError: for a member that two files hold, a time that none does, or channels that differ in
                their number of members.
        """
        self.member_count(channels, key)
        cubes = self._at[key]
        room = READ_AHEAD_BYTES // sum(cube.state_bytes for cube in cubes)
        stored = rows if self.regridder is None else slice(None)
        parts = []
        for cube in cubes:
            if held := [c for c in channels if c in cube.fields]:
                parts.append((held, cube.labels, cube.read(held, key, stored, self._kept, room)))
        values = _joined(channels, parts)
        return values if self.regridder is None else self.regridder(values)[:, :, rows]

    def member_count(self, channels: Sequence[str], key: Key) -> int:
        """Members that each of some channels has at one time.

        Raises:
            ValueError: for a member that two files hold, a time that none does, or other numbers of members.
        """
        counts = {}
        for channel in channels:
            labels = self.members(channel, key)
            self._check(channel, key, labels)
            counts[channel] = len(labels)
        if len(set(counts.values())) != 1:
            raise ValueError(
                f"{self.name} from {_when(key)} has different numbers of members by channel, {counts}: "
                "select channels or members"
            )
        return counts[channels[0]]

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
            held = {m for c in cubes for m in c.labels}
            _absent(set(wanted) - held, held, self.name, "member")
            cubes = [p for c in cubes if (p := c.of_members(wanted)) is not None]
        if channels is not None:
            names = tuple(channels)
            _absent(set(names) - set(self.channels), self.channels, self.name, "channel")
            cubes = [p for c in cubes if (p := c.of_channels(names)) is not None]
        if lead_times is not None:
            leads = set(seconds(list(lead_times)).astype(np.int64).tolist())
            hours = {k[1] / 3600 for k in self.keys}
            _absent({lead / 3600 for lead in leads} - hours, hours, self.name, "lead time in hours")
            cubes = [replace(c, where={k: v for k, v in c.where.items() if k[1] in leads}) for c in cubes]
        return replace(self, cubes=tuple(c for c in cubes if c.where), channels=names)

    def aligned(self, truth: Source) -> Self:
        """The same points in the order and with the longitudes of another grid.

        Raises:
            ValueError: when the points are not the same.
        """
        picks = {}
        for dim, ours, theirs in zip(self.space, self._both, truth._both, strict=False):
            picks[dim] = positions(ours, theirs, dim)
        if self.space != SPACE or truth.space != SPACE or any(p is None for p in picks.values()):
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
        size = f"{lat.size} x {lon.size}" if self.space == SPACE else f"{lat.size} points"
        return f"{size} at latitude {lat[0]:g}..{lat[-1]:g}, longitude {lon[0]:g}..{lon[-1]:g}"

    @property
    def duplicates(self) -> list[tuple[str, Key]]:
        """Files and the (init time, lead time) that they hold twice."""
        return [(cube.origin, key) for cube in self.cubes for key in cube.duplicates]

    def refuse_duplicates(self) -> None:
        """See that no file holds a time twice.

        Raises:
            ValueError: naming the first.
        """
        if self.duplicates:
            origin, (init, lead) = self.duplicates[0]
            raise ValueError(
                f"{origin} holds {np.datetime64(init, 's')} + {lead / 3600:g} h twice, one of "
                f"{len(self.duplicates)} such times: drop the repeats; wx-eval doctor lists them"
            )

    def attribute(self, channel: str, name: str) -> str:
        """Of the variable behind a channel, "" without it."""
        found = (c.variable(channel).attrs.get(name) for c in self.cubes if channel in c.fields)
        return next((str(v) for v in found if v is not None), "")

    @property
    def _both(self) -> tuple[Vector, Vector]:
        return self.latitude, self.longitude

    def _check(self, channel: str, key: Key, labels: list[int]) -> None:
        if not labels:
            raise ValueError(f"{self.name} has no {channel!r} from {_when(key)}")
        if len(set(labels)) < len(labels):
            twice = sorted({m for m in labels if labels.count(m) > 1})
            raise ValueError(
                f"{self.name} holds {channel!r} from {_when(key)} twice (members {twice[:5]}), in "
                f"{sorted({c.origin for c in self._at[key]})[:4]}: drop one of them"
            )

    def _picked(self, picks: Mapping[str, npt.NDArray[np.intp]], latitude: Vector, longitude: Vector) -> Self:
        lazy = {d: p for d, p in picks.items() if (p != np.arange(p.size)).any()}
        cubes = tuple(cube.picked(lazy) for cube in self.cubes)
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


class _Values:
    """(member, channel, *space) of one chunk, read when it is sliced or turned into a numpy array.

    `chunks` tells how it is stored, so that readers take whole pieces: channels of one piece as one size.
    """

    def __init__(self, source: Source, key: Key, channels: tuple[str, ...]) -> None:
        self._source, self._key, self._channels = source, key, channels
        space = (source.latitude.size, source.longitude.size)[: len(source.space)]
        self.shape = (source.member_count(channels, key), len(channels), *space)
        self.ndim = len(self.shape)
        regridded = source.regridder is not None
        self.dtype = np.dtype(np.float64) if regridded else source.dtype
        # A field that is regridded is read whole.
        rows = space[0] if regridded else source.stored(source.space[0], key)
        self.chunks = (0, _runs([source.piece(c, key) for c in channels]), rows, *[0] * (self.ndim - 3))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        """What numpy would give, of which channels and a slice of rows are all that is read."""
        members, channels, rows, *rest = _filled(index, self.ndim)
        names = np.asarray(self._channels, object)[channels]
        some = isinstance(rows, slice)
        values = self._source.stack(list(np.atleast_1d(names)), self._key, rows if some else slice(None))
        kept = slice(None) if np.ndim(names) else 0
        part: Array = values[(members, kept, slice(None) if some else rows, *rest)]
        return part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        del copy
        values = self[:]
        return values if dtype is None else values.astype(dtype)


def _filled(index: Any, ndim: int) -> tuple[Any, ...]:
    """An index of every axis."""
    given = index if isinstance(index, tuple) else (index,)
    return (*given, *[slice(None)] * (ndim - len(given)))


def _runs(pieces: Sequence[Hashable]) -> tuple[int, ...]:
    """Sizes of the shortest runs that no piece reaches beyond."""
    last = {piece: k for k, piece in enumerate(pieces)}
    ends = [0]
    reach = 0
    for k, piece in enumerate(pieces):
        reach = max(reach, last[piece])
        if reach == k:
            ends.append(k + 1)
    return tuple(int(n) for n in np.diff(ends))


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
        self.channels = source.channels

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

    def within(self, first: np.datetime64, last: np.datetime64) -> Truth:
        """The states from one time to another.

        Raises:
            ValueError: when there is none.
        """
        source = self.source
        ends = np.array([first, last], "datetime64[s]").astype(np.int64)
        cubes = [
            replace(c, where={k: v for k, v in c.where.items() if ends[0] <= sum(k) <= ends[1]})
            for c in source.cubes
        ]
        kept = tuple(c for c in cubes if c.where)
        if not kept:
            raise ValueError(
                f"{source.name} has no state from {first} to {last}: it has {self.times[0]} to "
                f"{self.times[-1]}"
            )
        return Truth(replace(source, cubes=kept), dict(zip(source.channels, self._units, strict=True)))

    def of_channels(self, names: Sequence[str]) -> Truth:
        """Some channels."""
        units = dict(zip(self.source.channels, self._units, strict=True))
        return Truth(self.source.select(channels=names), units)

    def channels_at(self, time: int) -> tuple[str, ...]:
        """Channels that exist at one time, in seconds since 1970."""
        return self.source.channels_at(self._keys[time]) if time in self._keys else ()

    def _state(self, key: Key) -> Array:
        """All channels (C, *space), NaN for those that do not exist at this time."""
        source = self.source
        held = source.channels_at(key)
        values = source.stack(held, key)
        if len(values) != 1:
            raise ValueError(
                f"{source.name} has {len(values)} members and a truth needs one: choose it by members = [0]"
            )
        [state] = values
        if held == source.channels:
            return np.asarray(state)
        out: Array = np.full((len(source.channels), *state.shape[1:]), np.nan, state.dtype)
        out[[source.channels.index(c) for c in held]] = state
        return out


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
    opened = [(origin, *_spatial(dataset, origin)) for origin, dataset in _datasets(paths, name, engine)]
    _refuse_told(opened, init_time, lead_time)
    rename = rename or {}
    unused = set(rename) - {f.channel for _, dataset, _ in opened for f in channel_fields(dataset)}
    cubes: list[Cube] = []
    axes: list[tuple[Vector, Vector]] = []
    reasons: list[str] = []
    held: dict[str, None] = {}
    for origin, dataset, space in opened:
        cube, skipped = file_cube(
            origin, dataset, space, truth=truth, rename=rename, init_time=init_time, lead_time=lead_time
        )
        reasons += skipped
        held |= dict.fromkeys(cube.fields)
        if cube.fields and (channels is None or not cube.fields.keys().isdisjoint(channels)):
            cubes.append(cube)
            axes.append(_axes(dataset))
    if unused:
        raise ValueError(
            f"{name}.rename names {sorted(unused)}, which are no channels of the files; they hold "
            f"{list(held)[:40]}"
        )
    if not cubes:
        wanted = f" of {list(channels)}; it has {list(held)[:40]}" if held and channels is not None else ""
        why = "".join(f"; {reason}" for reason in dict.fromkeys(reasons))
        raise ValueError(f"{name} holds no channel{wanted}{why}")
    for cube, own in zip(cubes, axes, strict=True):
        if not all(map(_same, own, axes[0])):
            raise ValueError(
                f"{name} is on different grids in {cubes[0].origin} and {cube.origin}: choose channels of one"
            )
    names = tuple(dict.fromkeys(c for cube in cubes for c in cube.fields))
    source = Source(name, tuple(cubes), names, *axes[0], cubes[0].space)
    if not source.keys:
        raise ValueError(f"{name} holds no time: an axis of times is empty, or all lead times are negative")
    return source.select(members=members, channels=channels, lead_times=lead_times)


def _refuse_told(
    opened: Sequence[tuple[str, xr.Dataset, tuple[str, ...]]],
    init_time: np.datetime64 | None,
    lead_time: np.timedelta64 | None,
) -> None:
    """Refuse a time that is given for files which all tell it."""
    for key, given in (("init_time", init_time), ("lead_time", lead_time)):
        if given is not None and opened and all(key in dataset.coords for _, dataset, _ in opened):
            raise ValueError(
                f"{opened[0][0]} tells its {key} itself: drop {key}, or choose some of its times"
            )


def _axes(dataset: xr.Dataset) -> tuple[Vector, Vector]:
    latitude, longitude = (np.asarray(dataset[axis].values, np.float64) for axis in SPACE)
    return latitude, longitude


def _same(a: Vector, b: Vector) -> bool:
    return a.shape == b.shape and bool((np.abs(a - b) <= GRID_TOLERANCE).all())


def _datasets(paths: Paths, name: str, engine: str | None) -> list[tuple[str, xr.Dataset]]:
    if isinstance(paths, xr.DataArray):
        paths = paths.to_dataset(name=str(paths.name or "value"))
    if isinstance(paths, xr.Dataset):
        return [(name, standard_names(paths))]
    listed = [paths] if isinstance(paths, str | PathLike) else list(paths)
    return open_datasets([fspath(p) for p in listed], engine)


def _spatial(dataset: xr.Dataset, origin: str) -> tuple[xr.Dataset, tuple[str, ...]]:
    """A dataset with coordinates latitude and longitude, and the dims of space."""
    absent = [a for a in SPACE if a not in dataset.variables]
    if absent:
        raise ValueError(
            f"{origin} has no coordinate {absent}, it has {sorted(map(str, dataset.variables))[:12]}"
        )
    dataset = dataset.set_coords(SPACE)
    dims = tuple(dict.fromkeys(str(d) for a in SPACE for d in dataset[a].dims))
    if not dims:
        # A single point.
        points = {a: ("point", np.atleast_1d(dataset[a].values)) for a in SPACE}
        return dataset.drop_vars(SPACE).expand_dims("point").assign_coords(points), ("point",)
    if len(dims) == 1 or dims == SPACE:
        return dataset, dims
    raise ValueError(
        f"{origin} has latitude over {dataset['latitude'].dims} and longitude over "
        f"{dataset['longitude'].dims}: they must be the axes of a grid, or both lie along one dim of points"
    )


def _joined(channels: Sequence[str], parts: Sequence[tuple[list[str], tuple[int, ...], Array]]) -> Array:
    """(M, C, *space) in order of the labels, of parts that each hold some channels and members."""
    if len(parts) == 1:
        return _sorted(*parts[0][1:])
    columns = []
    for channel in channels:
        own = [(labels, values[:, held.index(channel)]) for held, labels, values in parts if channel in held]
        columns.append(_sorted(sum((labels for labels, _ in own), ()), np.concatenate([v for _, v in own])))
    return np.stack(columns, axis=1)


def _sorted(labels: tuple[int, ...], values: Array) -> Array:
    """Members in order of their labels."""
    order = np.argsort(labels, kind="stable")
    return values if (np.diff(order) == 1).all() else values[order]


def _when(key: Key) -> str:
    return f"{np.datetime64(key[0], 's')} + {key[1] / 3600:g} h"


def _absent(absent: set[Any], known: Iterable[Any], name: str, kind: str) -> None:
    if absent:
        raise ValueError(f"{name} has no {kind} {sorted(absent)[:8]}; it has {sorted(known)[:40]}")


def positions(ours: Vector, theirs: Vector, dim: str) -> npt.NDArray[np.intp] | None:
    """Where each of their values is among ours, None unless both hold the same ones."""
    if ours.shape != theirs.shape:
        return None
    away = np.abs(ours[None] - theirs[:, None])
    if dim == "longitude":
        away = np.minimum(away % 360.0, 360.0 - away % 360.0)
    found = np.argmin(away, axis=1)
    close = away[np.arange(found.size), found] <= GRID_TOLERANCE
    return found if close.all() and np.unique(found).size == found.size else None
