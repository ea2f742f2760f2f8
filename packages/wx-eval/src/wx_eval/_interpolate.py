"""Forecasts and climatologies on a latitude-longitude grid, brought to points such as stations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._blocks import stored_pieces
from ._choices import PointMethod as PointMethod
from ._fields import Chunk, as_chunks, channel_names, channel_units
from ._grid import Array, Grid, Vector, great_circle_km, search_tree, unit_vectors
from ._protocols import Climatology, ForecastChunk
from ._regrid import Axes, Neighbours, brackets, check_axes
from ._units import same_units

_HIGHEST = 9000.0
_TEMPERATURES = ("K", "degC", "celsius", "C")


class Interpolator:
    """A map from a latitude-longitude grid to points.

    "bilinear": linear in latitude and longitude between the four grid points around; beyond the outermost row
    of a global grid the value of that row at the longitude of the point, as `Regridder` does.
    "nearest": the grid point at the smallest great-circle distance, of equally near ones the first.
    "nearest_land": the same among grid points with a land fraction of 0.5 or more.
    A point is NaN where a grid point with a weight is. Components of the wind are interpolated as scalars.

    Args:
        source: latitude (H,) and longitude (W,) in degrees; rows in either direction, columns eastwards
            within one turn.
        points: N positions.
        method: see above.
        land_fraction: (H, W), for "nearest_land".

    Attributes:
        distance_km: (N,) to the nearest grid point that is used.

    Raises:
        ValueError: for another method, axes that are no grid, or points outside a regional grid.
    """

    def __init__(
        self,
        source: Axes,
        points: Grid,
        method: PointMethod = "bilinear",
        *,
        land_fraction: npt.ArrayLike | None = None,
    ) -> None:
        if method not in get_args(PointMethod):
            raise ValueError(f"method must be one of {get_args(PointMethod)}, got {method!r}")
        latitude, longitude = (np.asarray(a, np.float64) for a in source)
        check_axes((latitude, longitude), "source")
        self.method, self.points, self.shape = method, points, (latitude.size, longitude.size)
        rows, columns = brackets((latitude, longitude), points.latitude, points.longitude)
        outside = np.isnan(rows[1]) | np.isnan(columns[1])
        if method == "bilinear":
            self._index, self._weight = _product(rows, columns, longitude.size)
        else:
            land = None if method == "nearest" else _land(land_fraction, self.shape)
            self._index = _nearest(Grid.from_axes(latitude, longitude), points, land)
            self._weight = np.ones(self._index.shape)
        if outside.any():
            raise ValueError(
                f"{outside.sum()} of {points.size} points lie outside the grid, the first at "
                f"{points.latitude[outside][0]:g}, {points.longitude[outside][0]:g}: nothing is "
                "extrapolated, leave them out"
            )
        self.distance_km = _distance(latitude, longitude, points, self._index, self._weight)

    def __call__(self, values: npt.ArrayLike) -> Array:
        """Map (..., H, W) to (..., N), in the precision of the values."""
        array = np.asarray(values)
        if array.shape[-2:] != self.shape:
            raise ValueError(
                f"field must have shape (..., {self.shape[0]}, {self.shape[1]}), got {array.shape}"
            )
        flat = array.reshape(*array.shape[:-2], -1)
        dtype = array.dtype if array.dtype.kind == "f" and array.dtype.itemsize >= 4 else np.dtype(np.float64)
        out = np.zeros((*array.shape[:-2], len(self._index)), dtype)
        for index, weight in zip(self._index.T, self._weight.T.astype(dtype), strict=True):
            out += weight * flat[..., index]
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class HeightCorrection:
    """Temperature moved from the height of the interpolated orography to that of the station.

    T + rate (z_grid - z_station), with z_grid interpolated as T was.

    Args:
        orography: height (H, W) of the surface of the model in m.
        elevation: of the stations (N,) in m.
        rates: K per m by channel; the standard atmosphere has 0.0065.

    Raises:
        ValueError: for heights that look like a geopotential, or a station without an elevation.
    """

    orography: Array
    elevation: Array
    rates: Mapping[str, float] = field(default_factory=lambda: {"2m_temperature": 0.0065})

    def __post_init__(self) -> None:
        if not np.isfinite(self.orography).all() or np.abs(self.orography).max() > _HIGHEST:
            raise ValueError(
                f"orography must be finite heights in m below {_HIGHEST:g}, got up to "
                f"{np.nanmax(self.orography):g}: divide a geopotential by 9.80665"
            )
        unknown = int(np.isnan(self.elevation).sum())
        if unknown:
            raise ValueError(f"{unknown} stations have no elevation: leave them out or correct no heights")

    @property
    def name(self) -> str:
        """Channels with their rates in K per km."""
        return "height " + " ".join(f"{c}={1000 * r:g} K/km" for c, r in sorted(self.rates.items()))


def at_points(
    forecast: xr.DataArray | xr.Dataset | Iterable[ForecastChunk],
    points: Grid,
    *,
    method: PointMethod = "bilinear",
    axes: Axes | None = None,
    land_fraction: npt.ArrayLike | None = None,
    height: HeightCorrection | None = None,
) -> Iterator[Chunk]:
    """Forecasts on a latitude-longitude grid as forecasts at points.

    What is stored together is read at once: one member, or all members of a channel. How it was done is kept
    in the conventions of the records: only scores of forecasts that were interpolated in the same way can be
    compared.

    Args:
        forecast: as for `evaluate`.
        points: N positions, such as `StationReports.grid`.
        method: see `Interpolator`.
        axes: latitude and longitude of chunks that do not state them.
        land_fraction: (H, W), for "nearest_land".
        height: correction of temperatures.

    Yields:
        Chunks with values (member, channel, N).

    Raises:
        ValueError: for chunks without axes, points outside the grid, or a corrected channel that is not in
            kelvin or degrees Celsius.
    """
    maps: dict[bytes, Interpolator] = {}
    for chunk in as_chunks(forecast):
        source = _axes(chunk, axes)
        key = b"".join(a.tobytes() for a in source)
        if key not in maps:
            maps[key] = Interpolator(source, points, method, land_fraction=land_fraction)
        yield chunk_at_points(chunk, maps[key], height)


def chunk_at_points(chunk: ForecastChunk, mapped: Interpolator, height: HeightCorrection | None) -> Chunk:
    """One chunk of `at_points`, on the grid of an interpolator."""
    return Chunk(
        init_time=chunk.init_time,
        lead_time=chunk.lead_time,
        channels=chunk.channels,
        values=_members(chunk, mapped, height),
        latitude=mapped.points.latitude,
        longitude=mapped.points.longitude,
        units=getattr(chunk, "units", None),
        interpolation=mapped.method if height is None else f"{mapped.method}, {height.name}",
    )


@dataclass(frozen=True, eq=False)
class PointClimatology:
    """A climatology on a latitude-longitude grid at points.

    Args:
        source: on the grid.
        points: N positions.
        method: see `Interpolator`.
        land_fraction: (H, W), for "nearest_land".
    """

    source: Climatology
    points: Grid
    method: PointMethod = "bilinear"
    land_fraction: Array | None = None
    _maps: dict[bytes, Interpolator] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """Of the source, and the method."""
        return f"{self.source.name}, {self.method}"

    def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
        """See `Climatology.at`."""
        found = self.source.at(statistic, valid_time).transpose("channel", "latitude", "longitude")
        axes = (np.asarray(found["latitude"].values), np.asarray(found["longitude"].values))
        coords: dict[str, Any] = {
            "channel": list(channel_names(found)),
            "latitude": ("point", self.points.latitude),
            "longitude": ("point", self.points.longitude),
        }
        units = channel_units(found)
        if units is not None:
            coords["units"] = ("channel", list(units))
        key = b"".join(axis.tobytes() for axis in axes)
        if key not in self._maps:
            self._maps[key] = Interpolator(axes, self.points, self.method, land_fraction=self.land_fraction)
        return xr.DataArray(self._maps[key](found.values), coords, ("channel", "point"))


def _members(chunk: ForecastChunk, mapped: Interpolator, height: HeightCorrection | None) -> Array:
    shift = None if height is None else _shift(chunk, mapped, height)
    values, channels = chunk.values, range(chunk.values.shape[1])
    if stored_pieces(values)[0] == 1:
        stacked = np.stack([mapped(values[m]) for m in range(len(values))])
    else:
        stacked = np.stack([mapped(values[:, c]) for c in channels], axis=1)
    return stacked if shift is None else (stacked + shift).astype(stacked.dtype)


def _shift(chunk: ForecastChunk, mapped: Interpolator, height: HeightCorrection) -> Vector:
    """(C, N) to be added."""
    units = getattr(chunk, "units", None) or ("K",) * len(chunk.channels)
    out = np.zeros((len(chunk.channels), len(height.elevation)))
    absent = sorted(set(height.rates) - set(chunk.channels))
    if absent:
        raise ValueError(f"channels {absent} of the height correction are not in {list(chunk.channels)}")
    for channel, rate in height.rates.items():
        position = chunk.channels.index(channel)
        if not any(same_units(units[position], t) for t in _TEMPERATURES):
            raise ValueError(
                f"channel {channel!r} is in {units[position]!r}: only temperatures in K or degC are corrected"
            )
        out[position] = rate * (mapped(np.asarray(height.orography, np.float64)) - height.elevation)
    return out


def _axes(chunk: ForecastChunk, given: Axes | None) -> Axes:
    stated = tuple(getattr(chunk, name, None) for name in ("latitude", "longitude"))
    latitude, longitude = given if given is not None and stated[0] is None else stated
    if latitude is None or longitude is None:
        raise ValueError("chunks state no latitude and longitude: pass axes")
    if np.ndim(chunk.values) != 4:
        raise ValueError(
            "a forecast must have values (member, channel, latitude, longitude), got "
            f"{np.ndim(chunk.values)} dims"
        )
    return np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)


def _product(rows: Neighbours, columns: Neighbours, width: int) -> tuple[npt.NDArray[np.intp], Vector]:
    """Indices and weights (N, 4)."""
    (i, a), (j, b) = rows, columns
    row, down = np.stack([i, i, i + 1, i + 1], 1), np.stack([1 - a, 1 - a, a, a], 1)
    column, along = np.stack([j, j + 1, j, j + 1], 1) % width, np.stack([1 - b, b, 1 - b, b], 1)
    index, weight = row * width + column, down * along
    # What has no weight is not read: it may be NaN.
    best = np.take_along_axis(index, np.argmax(np.nan_to_num(weight), axis=1)[:, None], axis=1)
    return np.where(weight > 0, index, best), weight


def _nearest(grid: Grid, points: Grid, land: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.intp]:
    """Indices (N, 1)."""
    place = unit_vectors(grid)
    kept = np.arange(grid.size) if land is None else np.flatnonzero(land)
    distance, found = search_tree(place[kept]).query(unit_vectors(points), k=min(4, kept.size))
    distance, found = distance.reshape(points.size, -1), found.reshape(points.size, -1)
    # Distances of equally near grid points differ by rounding.
    tied = distance <= distance[:, :1] * (1 + 1e-9) + 1e-12
    first: npt.NDArray[np.intp] = np.where(tied, kept[found], grid.size).min(axis=1)[:, None]
    return first


def _land(fraction: npt.ArrayLike | None, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    if fraction is None:
        raise ValueError('method "nearest_land" needs land_fraction, the share of land of every grid point')
    land = np.asarray(fraction, np.float64)
    if land.shape != shape or not ((land >= 0) & (land <= 1)).all() or not (land >= 0.5).any():
        raise ValueError(
            f"land_fraction must be shares 0..1 of shape {shape} with some land, got {land.shape}"
        )
    return land.ravel() >= 0.5


def _distance(
    latitude: Vector, longitude: Vector, points: Grid, index: npt.NDArray[np.intp], weight: Vector
) -> Vector:
    row, column = index // longitude.size, index % longitude.size
    away = great_circle_km(
        points.latitude[:, None], points.longitude[:, None], latitude[row], longitude[column]
    )
    return np.asarray(np.where(weight > 0, away, np.inf).min(axis=1))
