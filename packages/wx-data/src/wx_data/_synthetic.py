"""Fields that look like a reanalysis and are none: a source for tests, examples and disk-space trials."""

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._channels import GRAVITY, Channel, channel
from wx_data._grid import Grid
from wx_data._shards import Field
from wx_data._store import field_array
from wx_data._times import LeadLike, TimeLike, from_hours, lead_hours, period_hours, to_hours

Floats = NDArray[np.float64]
_BITS = 16  # per value in the GRIB files of a reanalysis
_YEAR_HOURS = 365.2425 * 24


class SyntheticSource:
    """Waves of a red spectrum that travel over a mean state with a seasonal cycle: a pure function of time.

    Values have the units, the rough climate and the 16-bit precision of ERA5, so that they compress like it.
    `sst` is missing over land. There is no physics in them, and nothing to learn.

    Args:
        channels: names.
        grid: of the fields.
        period: first and last time, both inclusive.
        step: time step.
        seed: of the waves.
    """

    def __init__(
        self,
        channels: Sequence[str],
        grid: Grid,
        period: tuple[TimeLike, TimeLike],
        step: LeadLike = 6,
        seed: int = 0,
    ) -> None:
        self.channels, self.grid, self.seed = tuple(channels), grid, seed
        first, last = period_hours(period, np.zeros(0, dtype=np.int64))
        self.times: NDArray[np.datetime64] = from_hours(np.arange(first, last + 1, lead_hours(step)))
        land = self._waves("lsm", 0) > 0.5
        self.statics = {
            "lsm": land.astype(np.float32),
            "z_surface": np.where(land, 4000.0 * (self._waves("lsm", 0) - 0.5), 0.0).astype(np.float32),
        }
        self.provenance = {"source": "synthetic", "seed": seed}
        self._spectrum = lru_cache(maxsize=256)(self._make_spectrum)

    def read(self, times: Any, channels: Sequence[str], /) -> xr.DataArray:
        """float32 (time, channel, latitude, longitude)."""
        hours = np.atleast_1d(to_hours(times)).tolist()
        values = np.stack([[self._field(channel(name), hour) for name in channels] for hour in hours])
        return field_array(values, from_hours(hours), tuple(channels), self.grid)

    def _field(self, spec: Channel, hour: int) -> Field:
        latitude = np.deg2rad(self.grid.latitude)[:, None]
        waves = self._waves(spec.name, hour)
        season = np.sin(latitude) * np.cos(2 * np.pi * (hour / _YEAR_HOURS - 0.55))
        field = _climate(spec, latitude, season, waves, self.grid)
        packed = _pack(np.clip(field, *spec.valid_range))
        if spec.variable == "sst":
            packed[self.statics["lsm"] > 0.5] = np.nan
        return packed

    def _waves(self, name: str, hour: int) -> Floats:
        """(H, W) of mean 0 and standard deviation near 1 away from the poles, where it vanishes."""
        spectrum, frequency = self._make_spectrum(name) if name == "lsm" else self._spectrum(name)
        rows, columns = self.grid.shape
        turned = spectrum * np.exp(1j * frequency * hour)
        waves: Floats = np.fft.irfft2(turned, s=(2 * rows, columns))[:rows]
        return waves * np.cos(np.deg2rad(self.grid.latitude))[:, None]

    def _make_spectrum(self, name: str) -> tuple[NDArray[np.complex128], Floats]:
        rows, columns = 2 * self.grid.shape[0], self.grid.shape[1]
        random = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        k = np.hypot(np.fft.fftfreq(rows, 1 / rows)[:, None] / 2, np.arange(columns // 2 + 1))
        # Kinetic energy falls with k^-3 at synoptic scales; two dimensions share it among k modes.
        amplitude = np.where(k > 0, (1 + (k / 4) ** 2) ** -1.0, 0.0)
        phases = random.uniform(0, 2 * np.pi, amplitude.shape)
        # Rossby-like: eastward with the flow, shorter waves faster; some days from crest to trough.
        frequency = (
            -2 * np.pi / (24 * 10) * np.arange(columns // 2 + 1) ** 0.5 * random.uniform(0.5, 1.5, k.shape)
        )
        waves = np.fft.irfft2(amplitude * np.exp(1j * phases), s=(rows, columns))
        return amplitude * np.exp(1j * phases) / waves.std(), frequency


def _climate(spec: Channel, latitude: Floats, season: Floats, waves: Floats, grid: Grid) -> Floats:
    """The variable's mean state, with its season and its waves."""
    level = float(spec.level or 1000)
    upper = 1.0 - level / 1100.0
    warm = 15.0 - 40.0 * np.sin(latitude) ** 2 + 12.0 * season
    moist = np.cos(latitude) ** 2 * (level / 1000.0) ** 3
    fields: dict[str, Any] = {
        "t": _standard_temperature(level) + warm * (level / 1000.0) + 4.0 * waves,
        "z": GRAVITY * (_standard_height(level) + upper * 12.0 * warm + 70.0 * waves),
        "u": 45.0 * upper * np.sin(2 * latitude) ** 2 - 3.0 + 9.0 * waves,
        "v": 8.0 * waves,
        "w": 0.2 * waves,
        "q": np.maximum(1e-7, 0.013 * moist * (1.0 + 0.3 * waves)),
        "r": 55.0 + 18.0 * waves,
        "t2m": 288.0 + 1.2 * warm + 4.0 * waves,
        "sst": np.maximum(271.35, 290.0 + 0.8 * warm + 0.7 * waves),
        "sp": 99000.0 + 900.0 * waves,
        "msl": 101325.0 + 900.0 * waves,
        "tcwv": np.maximum(0.2, 38.0 * np.cos(latitude) ** 2 * (1.0 + 0.3 * waves)),
        "tp": np.maximum(0.0, 2e-3 * (waves - 0.8)),
    }
    if spec.variable in fields:
        return np.broadcast_to(fields[spec.variable], grid.shape)
    if spec.wind:
        return 6.0 * waves
    low, high = spec.valid_range
    return (low + high) / 2 + (high - low) / 20 * waves


def _standard_temperature(level: float) -> float:
    """Of the International Standard Atmosphere (ISO 2533), level in hPa."""
    return float(max(216.65, 288.15 * (level / 1013.25) ** 0.190263))


def _standard_height(level: float) -> float:
    """Metres, of the same atmosphere."""
    if level > 226.32:
        return float(44330.8 * (1.0 - (level / 1013.25) ** 0.190263))
    return float(11000.0 + 6341.6 * np.log(226.32 / level))


def _pack(field: Floats) -> Field:
    """Rounded as simple GRIB packing with a binary scale does."""
    low = field.min()
    spread = field.max() - low
    if spread == 0:
        return field.astype(np.float32)
    step = 2.0 ** np.ceil(np.log2(spread / (2**_BITS - 1)))
    return np.asarray(low + step * np.rint((field - low) / step), dtype=np.float32)
