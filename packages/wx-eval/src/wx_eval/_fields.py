"""Forecasts and truths as chunks and states with checked dims, times, grid and units."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from . import _open
from ._dims import GRID_TOLERANCE, SPACE, lead_seconds, standard_names, stored_size
from ._dims import seconds as seconds
from ._grid import Grid
from ._kept import Kept
from ._protocols import Chunk as Chunk
from ._protocols import ForecastChunk, History
from ._units import same_units

Array = npt.NDArray[Any]

_FORECAST_DIMS = ("init_time", "lead_time", "member", "channel")
_STATE_DIMS = ("time", "channel")
# Of a forecast `time` is the start, and of a truth the valid time is the time.
_TIMES = {"init_time": "time", "time": "valid_time"}
_CACHE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class States:
    """A History over an array of dims (time, channel, *space) that may load lazily."""

    array: xr.DataArray

    @property
    def times(self) -> npt.NDArray[np.datetime64]:
        return np.asarray(self.array["time"].values)

    def read(self, times: npt.NDArray[np.datetime64], /) -> xr.DataArray:
        where = np.searchsorted(seconds(self.times), seconds(times))
        # A slice of an array in memory is no copy.
        return self.array.isel(time=slice(where[0], where[0] + 1) if len(where) == 1 else where)

    def of_channels(self, names: Sequence[str]) -> "States":
        """Some channels."""
        return States(self.array.sel(channel=list(names)))


def as_history(data: xr.DataArray | xr.Dataset | History, argument: str) -> History:
    """Wrap an xarray object, pass anything else through, and check that times can be looked up exactly.

    Raises:
        TypeError: for anything without `times` and `read`.
        ValueError: see `open_source`, and for times that do not increase.
    """
    if isinstance(data, xr.DataArray | xr.Dataset):
        array = _block(data, _STATE_DIMS)
        data = _open.Truth(_source(data, argument, truth=True)) if array is None else States(array)
    if not hasattr(data, "times") or not hasattr(data, "read"):
        raise TypeError(
            f"{argument} must be an xarray.DataArray, an xarray.Dataset or an object with `times` and "
            f"`read(times)`, got {type(data).__name__}"
        )
    steps = np.diff(seconds(data.times))
    if (steps <= np.timedelta64(0, "s")).any():
        where = data.times[1:][steps <= np.timedelta64(0, "s")][0]
        raise ValueError(f"the times of {argument} must strictly increase, which fails at {where}: sort them")
    return data


def as_chunks(forecast: xr.DataArray | xr.Dataset | Iterable[ForecastChunk]) -> Iterable[ForecastChunk]:
    """Chunks of an xarray object, which load one at a time; anything else passes through.

    Raises:
        TypeError: for what is neither.
        ValueError: see `open_source`, and for duplicate times.
    """
    if isinstance(forecast, np.ndarray) or not isinstance(forecast, Iterable):
        raise TypeError(
            "forecast must be an xarray.DataArray, an xarray.Dataset or chunks with init_time, lead_time, "
            f"channels and values, got {type(forecast).__name__}"
        )
    if not isinstance(forecast, xr.DataArray | xr.Dataset):
        return forecast
    array = _block(forecast, _FORECAST_DIMS)
    if array is not None:
        return _chunks(array)
    source = _source(forecast, "forecast", truth=False)
    return _open.Forecast(source).chunks(source.init_times)


def _chunks(array: xr.DataArray) -> Iterator[Chunk]:
    """Every (init time, lead time) of an array whose dims are in order."""
    inits, leads = seconds(array["init_time"].values), lead_seconds(array["lead_time"], "forecast")
    for name, times in (("init_time", inits), ("lead_time", leads)):
        if len(np.unique(times)) != len(times):
            raise ValueError(f"forecast has duplicate values along {name}")
    channels, units = channel_names(array), channel_units(array)
    latitude, longitude = (array[axis].values for axis in SPACE)
    for i, init_time in enumerate(inits):
        for j, lead_time in enumerate(leads):
            yield Chunk(
                init_time=init_time,
                lead_time=lead_time,
                channels=channels,
                values=_Lazy(array.variable.isel(init_time=i, lead_time=j)),  # type: ignore[arg-type]
                latitude=latitude,
                longitude=longitude,
                units=units,
            )


def _source(data: xr.DataArray | xr.Dataset, name: str, *, truth: bool) -> _open.Source:
    source = _open.open_source(data, name, truth=truth)
    source.refuse_duplicates()
    return source


def on_grid(field: Any, grid: Grid, argument: str) -> Any:
    """An xarray field of a latitude-longitude grid in the order of its rows and columns, by its coordinates.

    Anything else is as it was. A field along one of both dims keeps that one.

    Raises:
        ValueError: for further dims, or other coordinates.
    """
    if not isinstance(field, xr.DataArray) or grid.axes is None:
        return field
    array = standard_names(field)
    if not set(SPACE) & set(array.dims):
        return field
    if set(array.dims) - set(SPACE):
        raise ValueError(f"{argument} must have the dims latitude and longitude alone, it has {field.dims}")
    for dim, theirs in zip(SPACE, grid.axes, strict=True):
        if dim in array.dims and dim in array.coords:
            found = _open.positions(np.asarray(array[dim].values, np.float64), theirs, dim)
            if found is None:
                raise ValueError(
                    f"{dim} of {argument} and truth differ: {_axis(array[dim].values)} against "
                    f"{_axis(theirs)}; interpolate {argument} to the truth first"
                )
            array = array.isel({dim: found})
    return array.transpose(*(dim for dim in SPACE if dim in array.dims))


class _Lazy:
    """Values of a variable that are read when they are sliced or turned into a numpy array."""

    def __init__(self, array: xr.Variable) -> None:
        self._array = array
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, array.dtype
        stored = tuple(stored_size(array, str(dim)) for dim in array.dims)
        self.chunks: tuple[Any, ...] = array.chunks or stored

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        return np.asarray(self._array[index].values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        del copy
        values = np.asarray(self._array.values)
        return values if dtype is None else values.astype(dtype)


class Layout:
    """Channels, units and points of a truth, with which forecasts and climatologies are compared.

    Args:
        state: with dims (time, channel, *space).
    """

    def __init__(self, state: xr.DataArray) -> None:
        self.channels = channel_names(state)
        self.units = channel_units(state)
        self.latitude = np.asarray(state["latitude"].values)
        self.longitude = np.asarray(state["longitude"].values)
        make = Grid.from_axes if len(_space(state, "truth")) == 2 else Grid.from_points
        self.grid = make(self.latitude, self.longitude)

    def check(self, chunk: ForecastChunk, shape: tuple[int, ...]) -> list[int]:
        """Positions of the chunk's channels, after channels, shape, grid and units were compared.

        Raises:
            ValueError: naming what differs and what to do about it.
        """
        unknown = [c for c in chunk.channels if c not in self.channels]
        if unknown:
            raise ValueError(
                f"truth has no channel {unknown}; it has {list(self.channels)}: select the common ones first"
            )
        if len(set(chunk.channels)) != len(chunk.channels):
            raise ValueError(f"forecast names a channel twice: {list(chunk.channels)}")
        expected = (len(chunk.channels), *self.grid.shape)
        if shape[1:] != expected or not shape[0]:
            space = "latitude, longitude" if self.grid.regular else "point"
            raise ValueError(
                f"forecast values at {chunk.init_time} + {chunk.lead_time} have shape {shape}, "
                f"expected (member, channel, {space}) = (M, {', '.join(map(str, expected))}) on the "
                "grid of the truth"
            )
        for axis in ("latitude", "longitude"):
            self._check_axis(axis, getattr(chunk, axis, None), "forecast")
        positions = [self.channels.index(c) for c in chunk.channels]
        self._check_units(chunk, positions)
        return positions

    def check_reference(self, field: xr.DataArray, *, dimensionless: bool) -> None:
        """Compare the coordinates and units of a climatological field (channel, *space), where it has them.

        Raises:
            ValueError: naming what differs.
        """
        for axis in SPACE:
            if axis in field.coords:
                self._check_axis(axis, np.asarray(field[axis].values), "climatology")
        units = None if dimensionless else channel_units(field)
        known = dict(zip(self.channels, self.units or (), strict=False))
        for channel, unit in zip(channel_names(field), units or (), strict=False):
            if unit and known.get(channel) and not same_units(unit, known[channel]):
                raise ValueError(
                    f"channel {channel!r} is in {unit!r} in the climatology and in {known[channel]!r} in the "
                    "truth: convert one of them"
                )

    def _check_axis(self, axis: str, theirs: Array | None, side: str) -> None:
        ours = np.asarray(getattr(self, axis), np.float64)
        if theirs is None:
            return
        other = np.asarray(theirs, np.float64)
        if other.shape == ours.shape and np.abs(other - ours).max() <= GRID_TOLERANCE:
            return
        hint = "regrid one of them first"
        if other.shape == ours.shape and np.abs(other[::-1] - ours).max() <= GRID_TOLERANCE:
            hint = f"reverse one of them: {side}.isel({axis}=slice(None, None, -1))"
        raise ValueError(
            f"{axis} of {side} and truth differ: {_axis(other)} against {_axis(ours)}; nothing is "
            f"regridded here, {hint}"
        )

    def _check_units(self, chunk: ForecastChunk, positions: list[int]) -> None:
        theirs: tuple[str, ...] | None = getattr(chunk, "units", None)
        if theirs is None or self.units is None:
            return
        for channel, unit, position in zip(chunk.channels, theirs, positions, strict=True):
            if not same_units(unit, self.units[position]):
                raise ValueError(
                    f"channel {channel!r} is in {unit!r} in the forecast and in {self.units[position]!r} in "
                    "the truth: convert one of them"
                )


class Truth:
    """States of a History by valid time, with the last ones kept because consecutive leads share them."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._known = set(seconds(history.times).tolist())
        first = history.read(history.times[:1])
        self._dims = (*_STATE_DIMS, *_space(first, "truth"))
        missing = [dim for dim in self._dims if dim not in first.dims]
        if missing:
            raise ValueError(f"truth lacks the dims {missing}: it has {first.dims}")
        self.layout = Layout(first)
        self.name = str(first.name) if first.name is not None else "truth"
        # Two states at least, however large.
        self._states: Kept[Array] = Kept(max(_CACHE_BYTES, 2 * first.nbytes))

    def at(self, valid_time: np.datetime64) -> Array | None:
        """State (channel, point) at exactly this time, or None when there is none."""
        if valid_time.item() not in self._known:
            return None
        return self._states.get(valid_time, lambda: self._read(valid_time))

    def _read(self, valid_time: np.datetime64) -> Array:
        state = self._history.read(np.array([valid_time])).transpose(*self._dims)
        values: Array = np.asarray(state.values)[0]
        return values.reshape(len(self.layout.channels), -1)


def channel_names(array: xr.DataArray) -> tuple[str, ...]:
    """Names along the channel dim."""
    return tuple(str(c) for c in array["channel"].values)


def channel_units(array: xr.DataArray) -> tuple[str, ...] | None:
    """Units per channel, from a `units` coordinate along channel or an attribute (one, list or mapping)."""
    channels = channel_names(array)
    if "units" in array.coords and array["units"].dims == ("channel",):
        return tuple(str(u) for u in array["units"].values)
    units = array.attrs.get("units")
    if isinstance(units, str):
        return (units,) * len(channels)
    if isinstance(units, Mapping) and all(c in units for c in channels):
        return tuple(str(units[c]) for c in channels)
    if isinstance(units, list | tuple | np.ndarray) and len(units) == len(channels):
        return tuple(str(u) for u in units)
    return None


def _block(data: xr.DataArray | xr.Dataset, dims: tuple[str, ...]) -> xr.DataArray | None:
    """An array with these dims, then space; None for what has to be put together from its parts."""
    if not isinstance(data, xr.DataArray):
        return None
    array = standard_names(data)
    for name in dims:
        synonym = _TIMES.get(name)
        if synonym is not None and name not in array.coords and synonym in array.coords:
            array = array.rename({synonym: name})
        if name not in array.dims and (name in array.coords or name == "member"):
            array = array.expand_dims(name)
    labelled = all(name in array.coords for name in (*dims, *SPACE) if name != "member")
    order = (*dims, *_space(array, "the array")) if labelled else ()
    return array.transpose(*order) if labelled and set(order) == set(array.dims) else None


def _space(array: xr.DataArray, argument: str) -> tuple[str, ...]:
    """The dims of space: latitude and longitude, or the one along which both are coordinates."""
    absent = [name for name in SPACE if name not in array.coords]
    if absent:
        raise ValueError(f"{argument} needs coordinate values of {absent}, it has dims {array.dims}")
    dims = {str(d) for name in SPACE for d in array[name].dims}
    if len(dims) == 1:
        return tuple(dims)
    if dims != set(SPACE):
        raise ValueError(
            f"latitude and longitude of {argument} must be the two axes of a grid or both lie along one "
            f"dim of points, got {array['latitude'].dims} and {array['longitude'].dims}"
        )
    return SPACE


def _axis(values: Array) -> str:
    return f"{values.size} values {values[0]:g}..{values[-1]:g}" if values.size else "no values"
