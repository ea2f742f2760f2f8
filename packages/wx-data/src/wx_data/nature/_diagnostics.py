"""From sigma layers to what a forecaster sees: pressure levels, sea level pressure, 2 m temperature, rain."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wx_data.nature._config import (
    EARTH_RADIUS,
    GAS_CONSTANT,
    GRAVITY,
    REFERENCE_PRESSURE,
    REFERENCE_TEMPERATURE,
)
from wx_data.nature._dynamics import Dynamics
from wx_data.nature._physics import saturation
from wx_data.nature._sphere import Synthesis, gaussian_latitudes
from wx_data.nature._sun import season, zenith_anomaly
from wx_data.nature._surface import land_fraction

_LAPSE = 6.5e-3  # K per metre, the standard atmosphere
_Taps = tuple[Tensor, Tensor, Tensor]  # two indices and the weight of the second


class Diagnostics:
    """Output of one configuration; internal layout (longitude, row, member, latitude)."""

    def __init__(self, dynamics: Dynamics) -> None:
        self.dynamics, self.config = dynamics, dynamics.config
        nlat, nlon = self.config.grid
        self.latitudes = np.linspace(90.0, -90.0, nlat)
        self.longitudes = 360.0 / nlon * np.arange(nlon, dtype=np.float64)
        sines = np.sin(np.deg2rad(self.latitudes))
        device = dynamics.device
        self._synthesis = Synthesis(self.config.truncation, sines, nlon, radius=EARTH_RADIUS, device=device)
        self.surface = self._synthesis.scalar(dynamics.surface)[:, 0]
        self._put = dynamics.put
        self._sines, self._angles = self._put(sines), self._put(np.deg2rad(self.longitudes))
        self.land = self._put(land_fraction(self.latitudes, self.longitudes).T)
        self._log_levels = [
            float(np.log(100.0 * p / REFERENCE_PRESSURE)) for p in self.config.pressure_levels
        ]
        self._rows, self._columns = self._rain_taps()

    def _rain_taps(self) -> tuple[_Taps, _Taps]:
        """Linear interpolation from the Gaussian grid in latitude and in longitude."""
        nlat, nlon = self.config.gaussian_grid
        inner = np.rad2deg(np.arcsin(gaussian_latitudes(nlat)[0]))
        rows = np.interp(-self.latitudes, -inner, np.arange(nlat))
        columns = np.arange(self.longitudes.size) * (nlon / self.longitudes.size)
        return self._taps(rows, nlat), self._taps(columns, nlon)

    def _taps(self, position: NDArray[np.floating], size: int) -> _Taps:
        first = np.floor(position).astype(np.int64)
        near, far = (torch.from_numpy(i % size).to(self.land.device) for i in (first, first + 1))
        return near, far, self._put((position - first).astype(np.float64))

    def fields(self, now: Tensor, rain: Tensor, time: NDArray[np.int64]) -> Tensor:
        """All channels, (member, channel, latitude, longitude)."""
        vor, div, wet, _ = self.dynamics.rows()
        values = self._synthesis.scalar(now[:, :, wet.start :])
        k = self.config.levels
        humidity, temperature = values[:, :k].clamp(min=0.0), values[:, k : 2 * k] + REFERENCE_TEMPERATURE
        log_surface = values[:, -1]
        wind = self._synthesis.wind(now[:, :, vor], now[:, :, div])
        logs = (
            log_surface[:, None]
            + torch.from_numpy(np.log(self.dynamics.layers.full)).to(values)[:, None, None]
        )
        heights = self._heights(temperature, logs, log_surface)
        upper: dict[str, list[Tensor]] = {name: [] for name in "ztuvq"}
        for level in self._log_levels:
            warmth, height = self._temperature_height(level, temperature, logs, heights)
            upper["z"].append(height)
            upper["t"].append(warmth)
            upper["u"].append(_interpolate(level, wind[:, 0], logs))
            upper["v"].append(_interpolate(level, wind[:, 1], logs))
            vapour = _interpolate(level, humidity, logs)
            pressure = vapour.new_tensor(REFERENCE_PRESSURE * np.exp(level))
            upper["q"].append(torch.minimum(vapour, 1.05 * saturation(warmth, pressure)[0]))
        low = temperature[:, -1] * self._to_ground()
        channels = [part for name in "ztuvq" for part in upper[name]]
        channels += [self._sea_level_pressure(log_surface, low), self._two_metre(low, time)]
        stacked = torch.stack(channels, 1)
        result = torch.cat([stacked, self._rain(rain)[:, None]], 1)
        return result.permute(2, 1, 3, 0).contiguous()

    def _to_ground(self) -> float:
        return float(self.dynamics.layers.full[-1] ** (-_LAPSE * GAS_CONSTANT / GRAVITY))

    def _heights(self, temperature: Tensor, logs: Tensor, log_surface: Tensor) -> Tensor:
        """Geopotential of the layers: temperature linear in ln(p), standard lapse rate below the lowest."""
        low = temperature[:, -1]
        below = low * (1.0 + self._to_ground()) / 2 * (log_surface - logs[:, -1])
        steps = [self.surface[:, None] + GAS_CONSTANT * below]
        for k in range(temperature.shape[1] - 2, -1, -1):
            mean = (temperature[:, k] + temperature[:, k + 1]) / 2
            steps.append(steps[-1] + GAS_CONSTANT * mean * (logs[:, k + 1] - logs[:, k]))
        return torch.stack(steps[::-1], 1)

    def _temperature_height(
        self, level: float, temperature: Tensor, logs: Tensor, heights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Temperature and geopotential at ln(p) = level, continued below the lowest layer with 6.5 K/km."""
        inside = _interpolate(level, temperature, logs)
        depth = (level - logs[:, -1]).clamp(min=0.0)
        warmth = inside * torch.exp(depth * (_LAPSE * GAS_CONSTANT / GRAVITY))
        height = heights[:, -1] - GAS_CONSTANT * (temperature[:, -1] + warmth) / 2 * (level - logs[:, -1])
        for k in range(temperature.shape[1] - 2, -1, -1):
            candidate = heights[:, k] - GAS_CONSTANT * (temperature[:, k] + inside) / 2 * (level - logs[:, k])
            height = torch.where(level < logs[:, k + 1], candidate, height)
        return warmth, height

    def _sea_level_pressure(self, log_surface: Tensor, low: Tensor) -> Tensor:
        """Standard-lapse reduction (Trenberth, Berry and Buja 1993, NCAR/TN-396, section 2)."""
        ground = self.surface[:, None]
        star = (low + 0.5 * _LAPSE * ground / GRAVITY).clamp(255.0, 290.0)
        return REFERENCE_PRESSURE * torch.exp(log_surface + ground / (GAS_CONSTANT * star))

    def _two_metre(self, low: Tensor, time: NDArray[np.int64]) -> Tensor:
        """Air brought to the ground, mixed half and half with a skin: sea, or land with season and sun."""
        c, mu = self.config, self._sines
        centre = torch.from_numpy(c.season_amplitude * season(time, 2 * c.season_lag_days)).to(mu)[:, None]
        sea = (301.0 - 38.0 * (mu - 0.5 * centre) ** 2).clamp(min=271.35)
        near = torch.from_numpy(c.season_amplitude * season(time, c.season_lag_days / 2)).to(mu)[:, None]
        land = (303.0 - 60.0 * (mu - near) ** 2)[None] - _LAPSE / GRAVITY * self.surface[:, None]
        if c.diurnal_heating:
            land = land + 14.0 * zenith_anomaly(time, mu, self._angles, lag_hours=2.0)
        skin = sea + self.land[:, None] * (land - sea)
        return 0.5 * (low + skin)

    def _rain(self, rain: Tensor) -> Tensor:
        """Rain on the output grid, (longitude, member, latitude); a pole takes its row's mean."""
        # Sums of two terms, no matrix product: a member must not feel the size of its batch.
        (above, below, weight), (west, east, share) = self._rows, self._columns
        rows = torch.lerp(rain[:, above], rain[:, below], weight[:, None])
        fields = torch.lerp(rows[:, :, west], rows[:, :, east], share)
        poles = fields[:, [0, -1]].mean(2, keepdim=True)
        fields[:, [0, -1]] = poles.expand(-1, -1, fields.shape[2])
        return fields.permute(2, 0, 1)


def _interpolate(level: float, values: Tensor, logs: Tensor) -> Tensor:
    """Linear in ln(p) between layers, constant outside."""
    result = values[:, -1]
    for k in range(values.shape[1] - 2, -1, -1):
        weight = ((level - logs[:, k]) / (logs[:, k + 1] - logs[:, k])).clamp(0.0, 1.0)
        mixed = values[:, k] + weight * (values[:, k + 1] - values[:, k])
        result = torch.where(level < logs[:, k + 1], mixed, result)
    return result
