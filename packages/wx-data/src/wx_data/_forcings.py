"""Fields that are known in advance: the sun, the calendar, the grid, orography and land."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wx_data._grid import Grid
from wx_data._healpix import AnyGrid
from wx_data._sun import cos_zenith, incident_radiation
from wx_data._times import LeadLike, lead_hours

Floats = NDArray[np.float64]
_DAY = np.timedelta64(86_400_000_000_000, "ns")
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "cos_zenith": ("cos_zenith",),
    "toa_incident_solar_radiation": ("toa_incident_solar_radiation",),
    "day_progress": ("sin_day", "cos_day"),
    "year_progress": ("sin_year", "cos_year"),
    "latlon": ("sin_latitude", "cos_latitude", "sin_longitude", "cos_longitude"),
    "orography": ("orography",),
    "land_sea_mask": ("land_sea_mask",),
}
_STATIC_SOURCE = {"orography": "z_surface", "land_sea_mask": "lsm"}


class Forcings:
    """Forcing fields on a grid at any valid time.

    Names, and the fields each gives:

    - `cos_zenith`: cosine of the solar zenith angle at the instant, negative at night (not clipped).
    - `toa_incident_solar_radiation`: J m-2 in the `interval` that ends at the valid time, as ERA5's `tisr`,
      for a solar constant of 1361 W m-2 (ERA5's follows the solar cycle, +-0.05 %).
    - `day_progress`: sine and cosine of 2 pi x local mean solar day fraction (longitude included).
    - `year_progress`: sine and cosine of 2 pi x fraction of the calendar year.
    - `latlon`: sine and cosine of latitude and of longitude.
    - `orography`: surface geopotential with area mean zero and variance one over the grid.
    - `land_sea_mask`: as stored, 0 to 1.

    Args:
        grid: latitude rows and longitude columns, or `Healpix` cells.
        names: which forcings, in order.
        statics: `z_surface` and `lsm` fields on that grid, where orography or the land mask is asked for.
        interval: over which radiation is integrated, at most a day; ERA5's own has 1 h.

    Attributes:
        channels: names of the A fields.

    Raises:
        ValueError: an unknown name, an interval out of range, or a static field that is missing or of another
            shape.
    """

    def __init__(
        self,
        grid: AnyGrid,
        names: Sequence[str],
        statics: Mapping[str, NDArray[Any]] | None = None,
        *,
        interval: LeadLike = 1,
    ) -> None:
        unknown = [name for name in names if name not in _FIELDS]
        if unknown:
            raise ValueError(f"unknown forcings {', '.join(unknown)}; known are {', '.join(_FIELDS)}")
        self.names = tuple(names)
        self.channels = tuple(field for name in names for field in _FIELDS[name])
        if not 1 <= lead_hours(interval) <= 24:
            raise ValueError(f"interval must be 1 to 24 h; got {interval!r}")
        constant = {n: _static(n, grid, statics or {}) for n in names if n in _STATIC_SOURCE}
        latitude, longitude = np.deg2rad(grid.latitude), np.deg2rad(grid.longitude)
        longitude = longitude[None] if isinstance(grid, Grid) else longitude[:, None]
        if "latlon" in names:
            constant["latlon"] = _latlon(latitude[:, None], longitude)
        self._geometry = _Geometry(
            latitude=latitude,
            longitude=longitude,
            interval=np.timedelta64(lead_hours(interval), "h"),
            constant=constant,
            dims=len(grid.dims),
        )

    def at(self, valid_time: NDArray[np.datetime64], /) -> torch.Tensor:
        """float32 (N, A, H, W), on `Healpix` (N, A, cell), at (N,) times."""
        times = np.asarray(valid_time, dtype="datetime64[ns]")
        if times.ndim != 1:
            raise ValueError(f"valid_time must be one-dimensional; got shape {times.shape}")
        geometry = self._geometry
        shape = (len(times), len(self.channels), geometry.latitude.size, geometry.longitude.shape[1])
        out, place = np.empty(shape, dtype=np.float32), 0
        for name in self.names:
            count = len(_FIELDS[name])
            out[:, place : place + count] = geometry.field(name, times)
            place += count
        return torch.from_numpy(out.reshape(shape[: 2 + geometry.dims]))

    def crop(self, start: int, stop: int) -> "Forcings":
        """The same forcings on rows, or cells, [start, stop) only."""
        cropped = object.__new__(Forcings)
        cropped.names, cropped.channels = self.names, self.channels
        cropped._geometry = self._geometry.crop(start, stop)
        return cropped


@dataclass(frozen=True, kw_only=True)
class _Geometry:
    latitude: Floats  # (H,) radians
    longitude: Floats  # (1, W); of cells, which are rows of one column, (H, 1)
    interval: np.timedelta64
    constant: Mapping[str, Floats]  # (fields, H, W)
    dims: int

    def field(self, name: str, times: NDArray[np.datetime64]) -> NDArray[np.floating[Any]]:
        """(N or 1, fields, H or 1, W or 1), to be broadcast."""
        if name in self.constant:
            return self.constant[name][None]
        if name == "cos_zenith":
            return cos_zenith(times, self.latitude, self.longitude)[:, None]
        if name == "toa_incident_solar_radiation":
            return incident_radiation(times, self.latitude, self.longitude, self.interval)[:, None]
        if name == "year_progress":
            phase = 2 * np.pi * _year_fraction(times)[:, None, None]
        else:
            day = (times - times.astype("datetime64[D]")) / _DAY
            phase = 2 * np.pi * day[:, None, None] + self.longitude
        return np.stack((np.sin(phase), np.cos(phase)), axis=1)

    def crop(self, start: int, stop: int) -> "_Geometry":
        constant = {name: fields[:, start:stop] for name, fields in self.constant.items()}
        longitude = self.longitude if len(self.longitude) == 1 else self.longitude[start:stop]
        return replace(self, latitude=self.latitude[start:stop], longitude=longitude, constant=constant)


def _year_fraction(times: NDArray[np.datetime64]) -> Floats:
    year = times.astype("datetime64[Y]")
    start, end = year.astype("datetime64[ns]"), (year + np.timedelta64(1, "Y")).astype("datetime64[ns]")
    fraction: Floats = (times - start) / (end - start)
    return fraction


def _latlon(latitude: Floats, longitude: Floats) -> Floats:
    fields = (np.sin(latitude), np.cos(latitude), np.sin(longitude), np.cos(longitude))
    return np.stack(np.broadcast_arrays(*fields))


def _static(name: str, grid: AnyGrid, statics: Mapping[str, NDArray[Any]]) -> Floats:
    key = _STATIC_SOURCE[name]
    if key not in statics:
        raise ValueError(f"forcing {name!r} needs the static field {key!r}; statics has {sorted(statics)}")
    field = np.asarray(statics[key], dtype=np.float64)
    if field.shape != grid.shape or not np.isfinite(field).all():
        raise ValueError(f"static field {key!r} must be finite and of shape {grid.shape}; got {field.shape}")
    field = field.reshape(grid.plane)
    if name == "orography":
        weights = grid.area_weights()[:, None] / grid.plane[1]
        field = field - (field * weights).sum()
        spread = float(np.sqrt((field**2 * weights).sum()))
        field = field / spread if spread > 0 else field
    return field[None]
