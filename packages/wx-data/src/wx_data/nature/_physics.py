"""Forcing: Held and Suarez (1994, BAMS 75, 1825) with seasons, land, a sun and water.

Every process is a relaxation, evaluated on one time level and applied over the next leapfrog interval 2 dt
with the exact factor (1 - exp(-2 dt / tau)) / (2 dt), so that no process can overshoot whatever the step.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wx_data.nature._config import (
    DAY,
    GRAVITY,
    HEAT_CAPACITY,
    KAPPA,
    LATENT_HEAT,
    REFERENCE_PRESSURE,
    REFERENCE_TEMPERATURE,
    NatureConfig,
)
from wx_data.nature._sun import season, zenith_anomaly

_BOUNDARY_LAYER = 0.7  # sigma at which friction and the faster relaxation begin


def saturation(temperature: Tensor, pressure: Tensor) -> tuple[Tensor, Tensor]:
    """Specific humidity over saturated water and its derivative with temperature (Bolton 1980).

    Args:
        temperature: kelvin.
        pressure: pascal, broadcast against temperature.
    """
    shifted = (temperature - 29.65).clamp_(min=60.0)
    # 17.67 (T - 273.15) / (T - 29.65) = 17.67 - 17.67 * 243.5 / (T - 29.65)
    inverse = shifted.reciprocal_()
    humidity = (inverse * (-17.67 * 243.5)).add_(17.67 + math.log(0.622 * 611.2)).exp_()
    humidity = humidity / pressure
    return humidity, humidity * inverse.square_().mul_(17.67 * 243.5)


def boundary_weight(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Zero above sigma 0.7, rising linearly to one at the ground."""
    return np.maximum(0.0, (sigma - _BOUNDARY_LAYER) / (1.0 - _BOUNDARY_LAYER))


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the forcing knows of the Gaussian grid: sin(latitude), longitude in radians, land, sigma, mass."""

    sines: Tensor
    angles: Tensor
    land: Tensor
    sigma: NDArray[np.float64]
    thickness: NDArray[np.float64]


class Forcing:
    """Heating, evaporation and condensation on the Gaussian grid, (longitude, level, member, latitude)."""

    def __init__(self, config: NatureConfig, surroundings: Surroundings) -> None:
        self.config, self.around = config, surroundings
        self._double = 2.0 * config.step_seconds
        like = surroundings.sines
        weight = boundary_weight(surroundings.sigma)
        cosine2 = 1.0 - like * like

        def level(values: NDArray[np.float64]) -> Tensor:
            return torch.from_numpy(np.asarray(values, np.float64)).to(like)[:, None, None]

        slow, fast = 1 / config.relaxation_days, 1 / config.surface_relaxation_days
        rate = (slow + (fast - slow) * level(weight) * cosine2**2) / DAY
        self._relax = self._factor(rate)
        self._season_weight = level(weight)
        self._log_sigma = level(np.log(surroundings.sigma))
        self._sigma = level(surroundings.sigma)
        self._exner = level(surroundings.sigma**KAPPA)
        self._stability = config.stability_contrast * cosine2
        self._water = level(surroundings.thickness / GRAVITY / 1000.0)
        self._land = surroundings.land[:, None, :]
        wet = 1.0 - (1.0 - config.land_evaporation) * self._land
        self._evaporate = wet * self._factor(1.0 / (config.evaporation_days * DAY))
        self._condense = self._factor(1.0 / (config.condensation_hours * 3600.0))

    def _factor(self, rate: Tensor | float) -> Tensor:
        scaled = torch.as_tensor(rate, dtype=torch.float64) * self._double
        return (-torch.expm1(-scaled) / self._double).to(self.around.sines)

    def sea_level_equilibrium(self, time: NDArray[np.int64]) -> Tensor:
        """Equilibrium temperature at 1000 hPa over the sea, (member, latitude), K."""
        c, mu = self.config, self.around.sines
        centre = torch.from_numpy(c.season_amplitude * season(time, c.season_lag_days)).to(mu)
        return c.equator_temperature - c.meridional_contrast * (mu - centre[:, None]) ** 2

    def land_season(self, time: NDArray[np.int64]) -> Tensor:
        """Extra warmth of land, (longitude, member, latitude), K."""
        c, mu = self.config, self.around.sines
        if c.season_amplitude == 0:
            return torch.zeros_like(self._land)
        strength = torch.from_numpy(c.land_season * season(time, c.season_lag_days / 2)).to(mu)
        return self._land * (strength[:, None] * mu)

    def tendencies(
        self, temperature: Tensor, humidity: Tensor, log_pressure: Tensor, time: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Rates of temperature and humidity, and the precipitation.

        Args:
            temperature: departure from 300 K, (longitude, level, member, latitude).
            humidity: specific humidity, same shape.
            log_pressure: ln(surface pressure / 1000 hPa), (longitude, member, latitude).
            time: seconds since 1970-01-01, (member,).

        Returns:
            (longitude, 2, level, member, latitude) in K/s and 1/s, and metres of water per second
            (longitude, member, latitude).
        """
        rates = temperature.new_empty(temperature.shape[0], 2, *temperature.shape[1:])
        heating, moistening = rates[:, 0], rates[:, 1]
        exner = (KAPPA * log_pressure).exp_()[:, None]
        balance = (log_pressure[:, None] + self._log_sigma).mul_(-self._stability)
        balance += self.sea_level_equilibrium(time)
        balance.mul_(exner * self._exner)
        balance.clamp_(min=self.config.stratosphere_temperature).sub_(REFERENCE_TEMPERATURE)
        if self.config.land_season:
            balance += self.land_season(time)[:, None] * self._season_weight
        torch.sub(balance, temperature, out=heating)
        heating.mul_(self._relax)
        if self.config.diurnal_heating:
            sun = zenith_anomaly(time, self.around.sines, self.around.angles)
            heating[:, -1].addcmul_(sun, self._land, value=self.config.diurnal_heating / DAY)
        if not self.config.moist:
            moistening.zero_()
            return rates, torch.zeros_like(log_pressure)
        return rates, self._water_cycle(temperature, humidity, log_pressure, heating, moistening)

    def _water_cycle(
        self, temperature: Tensor, humidity: Tensor, log_pressure: Tensor, heating: Tensor, moistening: Tensor
    ) -> Tensor:
        c = self.config
        pressure = log_pressure.exp()[:, None] * (REFERENCE_PRESSURE * self._sigma)
        saturated, slope = saturation(temperature + REFERENCE_TEMPERATURE, pressure)
        warming = c.latent_fraction * LATENT_HEAT / HEAT_CAPACITY
        rain = torch.addcmul(humidity, saturated, saturated.new_tensor(-c.condensation_humidity))
        rain.clamp_(min=0.0).mul_(self._condense).div_(slope.mul_(warming).add_(1.0))
        heating.add_(rain, alpha=warming)
        torch.neg(rain, out=moistening)
        moistening.addcmul_(humidity.clamp(max=0.0), self._condense, value=-1.0)
        thirst = (saturated[:, -1] * c.evaporation_humidity).sub_(humidity[:, -1]).clamp_(min=0.0)
        moistening[:, -1].addcmul_(thirst, self._evaporate)
        rain.mul_(self._water)
        # Layer by layer: torch.sum may take another order, and other bits, for another number of members.
        fallen = rain[:, 0].clone()
        for level in range(1, rain.shape[1]):
            fallen += rain[:, level]
        return fallen.mul_(log_pressure.exp() * REFERENCE_PRESSURE)
