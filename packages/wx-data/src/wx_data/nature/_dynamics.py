"""One leapfrog step of the primitive equations in vorticity, divergence, temperature, ln(ps) and humidity.

Semi-implicit: ``X+ = X- + 2 dt [F(X0) + L ((X+ + X-) / 2 - X0)]`` where L holds the gravity waves of a resting
isothermal atmosphere, which the eigenvectors of the vertical structure reduce to one division per mode and
total wavenumber (Hoskins and Simmons 1975, QJRMS 101, 637). Internally coefficients are (m, 2, row, member, n)
and grid values (longitude, row, member, latitude).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wx_data.nature._config import (
    DAY,
    EARTH_RADIUS,
    GAS_CONSTANT,
    GRAVITY,
    KAPPA,
    OUTPUT_INTERVAL,
    REFERENCE_TEMPERATURE,
    ROTATION,
    NatureConfig,
)
from wx_data.nature._physics import Forcing, Surroundings, boundary_weight
from wx_data.nature._sphere import Analysis, Synthesis, gaussian_latitudes, laplacian_eigenvalues
from wx_data.nature._surface import land_fraction, orography
from wx_data.nature._vertical import Layers


class Dynamics:
    """Operators of one configuration on one device, and the step."""

    def __init__(self, config: NatureConfig, device: torch.device | str) -> None:
        self.config = config
        self.layers = Layers.equal(config.levels)
        nlat, nlon = config.gaussian_grid
        sines, weights = gaussian_latitudes(nlat)
        space = {"radius": EARTH_RADIUS, "device": device}
        self.synthesis = Synthesis(config.truncation, sines, nlon, radius=EARTH_RADIUS, device=device)
        self.analysis = Analysis(config.truncation, nlat, nlon, radius=EARTH_RADIUS, device=device)
        del space
        self.device = torch.device(device)
        self.laplacian = self._put(laplacian_eigenvalues(config.truncation, EARTH_RADIUS))
        latitudes, longitudes = np.rad2deg(np.arcsin(sines)), 360.0 / nlon * np.arange(nlon)
        self.surface = self._surface(latitudes, longitudes)
        self.forcing = Forcing(
            config,
            Surroundings(
                sines=self._put(sines),
                angles=self._put(np.deg2rad(longitudes)),
                land=self._put(land_fraction(latitudes, longitudes).T),
                sigma=self.layers.full,
                thickness=self.layers.thickness,
            ),
        )
        self._coriolis = self._put(2 * ROTATION * sines)
        self._weights = self._put(weights / nlon)
        self._vertical_matrices()
        self._implicit_matrices()
        self._damping = self._damping_factors()
        if not config.moist:
            self._damping[2 * config.levels : 3 * config.levels] = 0.0

    def _put(self, array: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, torch.float32)

    def _surface(self, latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> Tensor:
        """Surface geopotential (m, 2, 1, n), its shortest waves damped so that ridges do not ring."""
        height = self.config.orography * GRAVITY * orography(latitudes, longitudes)
        waves = self.analysis.fourier(self._put(height.T)[:, None])
        degree = np.arange(self.config.truncation + 1.0) / (self.config.truncation + 1)
        return self.analysis.scalar(waves) * self._put(np.exp(-2.0 * degree**4))

    def _vertical_matrices(self) -> None:
        layers, nlon = self.layers, self.synthesis.longitudes
        rows = np.concatenate([layers.velocity, layers.compression, layers.thickness[None, :]])
        self._columns = self._put(rows).expand(nlon, -1, -1)
        half = 0.5 / layers.thickness
        self._below = self._put(half[:-1])[:, None, None]
        self._above = self._put(half[1:])[:, None, None]

    def _implicit_matrices(self) -> None:
        dt, layers, levels = self.config.step_seconds, self.layers, self.config.levels
        speeds, modes, inverse = layers.gravity_waves()
        pressure = np.full((levels, 1), GAS_CONSTANT * REFERENCE_TEMPERATURE)
        tau = KAPPA * REFERENCE_TEMPERATURE * layers.compression @ modes
        feedback = np.concatenate([modes, -dt * tau, -dt * layers.thickness[None, :] @ modes])
        waves = 2 * (self.config.truncation + 1)
        self._geopotential = self._put(np.concatenate([layers.hydrostatic, pressure], 1)).expand(waves, -1, -1)
        self._to_modes = self._put(inverse).expand(waves, -1, -1)
        self._from_modes = self._put(feedback).expand(waves, -1, -1)
        eigen = -laplacian_eigenvalues(self.config.truncation, EARTH_RADIUS)
        self._solve = self._put(1.0 / (1.0 + dt**2 * speeds[:, None] * eigen[None, :]))[:, None, :]

    def _damping_factors(self) -> Tensor:
        """Implicit hyperdiffusion of every field but pressure, and friction of the wind, (row, 1, n)."""
        config, double = self.config, 2.0 * self.config.step_seconds
        degree = np.arange(config.truncation + 1.0)
        scaled = degree * (degree + 1) / (config.truncation * (config.truncation + 1))
        diffusion = scaled**config.diffusion_order / (config.diffusion_hours * 3600)
        friction = boundary_weight(self.layers.full) / (config.friction_days * DAY)
        rates = np.tile(diffusion, (4 * config.levels + 1, 1))
        rates[: config.levels] += friction[:, None]
        rates[config.levels : 2 * config.levels] += friction[:, None]
        rates[-1] = 0.0
        return self._put(1.0 / (1.0 + double * rates))[:, None, :]

    def rows(self) -> tuple[slice, slice, slice, slice]:
        """Rows of vorticity, divergence, humidity and temperature."""
        k = self.config.levels
        return slice(0, k), slice(k, 2 * k), slice(2 * k, 3 * k), slice(3 * k, 4 * k)

    def on_grid(self, now: Tensor) -> tuple[Tensor, Tensor]:
        """Values of all rows, and (u, v) on the layers with grad ln(ps) as one more layer."""
        vor, div, _, _ = self.rows()
        zeros = torch.zeros_like(now[:, :, -1:])
        slope = now[:, :, -1:] * self.laplacian
        wind = self.synthesis.wind(
            torch.cat([now[:, :, vor], zeros], 2), torch.cat([now[:, :, div], slope], 2)
        )
        return self.synthesis.scalar(now), wind

    def step(
        self, now: Tensor, previous: Tensor, heating: Tensor, rain: Tensor, time: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step in place of ``rain``; returns the new now, the filtered previous and the new heating."""
        fields, wind = self.on_grid(now)
        if (fresh := time % OUTPUT_INTERVAL == 0).any():
            rain.mul_(torch.from_numpy(~fresh).to(rain)[:, None])
        _, _, wet, warm = self.rows()
        pressure = fields[:, -1]
        rates, fallen = self.forcing.tendencies(fields[:, warm], fields[:, wet], pressure, time)
        rain.add_(fallen, alpha=float(self.config.step_seconds))
        correction = self._lost_mass(pressure)
        scalars, vectors = self._tendencies(fields, wind, heating)
        after = self._leapfrog(now, previous, scalars, vectors)
        filtered = now.mul_(1.0 - 2.0 * self.config.robert).add_(previous, alpha=self.config.robert)
        filtered.add_(after, alpha=self.config.robert)
        after[0, 0, -1, :, 0] -= correction
        filtered[0, 0, -1, :, 0] -= correction
        return after, filtered, rates

    def _lost_mass(self, log_pressure: Tensor) -> Tensor:
        """Logarithm of the mean surface pressure over that of the target, (member,)."""
        mean = (torch.expm1(log_pressure) * self._weights).sum((0, 2))
        return torch.log1p(mean) - self._target

    _target = 0.0

    def _tendencies(self, fields: Tensor, wind: Tensor, heating: Tensor) -> tuple[Tensor, Tensor]:
        """Spectral sources (energy, temperature, humidity, ln ps) and fluxes (curl and divergences)."""
        k = self.config.levels
        vor, div, wet, warm = self.rows()
        nlon, members, nlat = fields.shape[0], fields.shape[2], fields.shape[3]
        vorticity, divergence, humidity, temperature = (fields[:, part] for part in (vor, div, wet, warm))
        u, v = wind[:, 0, :k], wind[:, 1, :k]
        px, py = wind[:, 0, k:], wind[:, 1, k:]
        advected = (u * px).addcmul_(v, py)
        convergence = advected + divergence
        columns = torch.bmm(self._columns, convergence.view(nlon, k, -1)).view(nlon, -1, members, nlat)
        work = fields.new_empty(nlon, 9 * k + 1, members, nlat)
        energy, heat, vapour, mass = work[:, :k], work[:, k : 2 * k], work[:, 2 * k : 3 * k], work[:, 3 * k]
        east = work[:, 3 * k + 1 : 6 * k + 1]
        north = work[:, 6 * k + 1 :]
        torch.mul(u, u, out=energy).addcmul_(v, v).mul_(0.5)
        absolute = vorticity + self._coriolis
        push = temperature * (-GAS_CONSTANT)
        torch.mul(absolute, v, out=east[:, :k]).addcmul_(push, px)
        torch.mul(absolute, u, out=north[:, :k]).neg_().addcmul_(push, py)
        torch.mul(u, temperature, out=east[:, k : 2 * k])
        torch.mul(v, temperature, out=north[:, k : 2 * k])
        torch.mul(u, humidity, out=east[:, 2 * k :])
        torch.mul(v, humidity, out=north[:, 2 * k :])
        torch.sub(advected, columns[:, k - 1 : 2 * k - 1], out=advected).mul_(KAPPA)
        torch.addcmul(heating[:, 0], temperature, divergence, out=heat)
        heat.addcmul_(advected, temperature).add_(advected, alpha=REFERENCE_TEMPERATURE)
        torch.addcmul(heating[:, 1], humidity, divergence, out=vapour)
        torch.neg(columns[:, -1], out=mass)
        down, up = columns[:, : k - 1] * self._below, columns[:, : k - 1] * self._above
        for field, target in ((u, east[:, :k]), (v, north[:, :k]), (temperature, heat), (humidity, vapour)):
            jump = field[:, 1:] - field[:, :-1]
            target[:, :-1].addcmul_(down, jump, value=-1.0)
            target[:, 1:].addcmul_(up, jump, value=-1.0)
        waves = self.analysis.fourier(work)
        scalars = self.analysis.scalar(waves[:, :, : 3 * k + 1])
        east_waves, north_waves = waves[:, :, 3 * k + 1 : 6 * k + 1], waves[:, :, 6 * k + 1 :]
        both = torch.cat([north_waves[:, :, :k], east_waves], 2), torch.cat([east_waves[:, :, :k], -north_waves], 2)
        return scalars, self.analysis._pair(*both)

    def _leapfrog(self, now: Tensor, previous: Tensor, scalars: Tensor, vectors: Tensor) -> Tensor:
        k, dt = self.config.levels, self.config.step_seconds
        vor, div, wet, warm = self.rows()
        waves, members, size = 2 * now.shape[0], now.shape[3], now.shape[4]
        after = torch.empty_like(now)
        torch.add(previous[:, :, vor], vectors[:, :, :k], alpha=2 * dt, out=after[:, :, vor])
        moist = scalars[:, :, 2 * k : 3 * k].sub_(vectors[:, :, 3 * k :])
        torch.add(previous[:, :, wet], moist, alpha=2 * dt, out=after[:, :, wet])
        # Temperature and ln(ps) half way, before the implicit divergence acts on them.
        heat = scalars[:, :, k : 2 * k].sub_(vectors[:, :, 2 * k : 3 * k])
        mid = torch.empty_like(now[:, :, 3 * k :])
        torch.add(previous[:, :, warm], heat, alpha=dt, out=mid[:, :, :k])
        torch.add(previous[:, :, -1], scalars[:, :, 3 * k], alpha=dt, out=mid[:, :, k])
        height = torch.bmm(self._geopotential, mid.view(waves, k + 1, -1)).view(*mid.shape[:2], k, members, size)
        height += scalars[:, :, :k]
        height += self.surface[:, :, None]
        height.mul_(self.laplacian).sub_(vectors[:, :, k : 2 * k]).mul_(-dt)
        height.add_(previous[:, :, div]).sub_(now[:, :, div])
        modes = torch.bmm(self._to_modes, height.view(waves, k, -1)).view(height.shape)
        modes *= self._solve
        change = torch.bmm(self._from_modes, modes.view(waves, k, -1)).view(*now.shape[:2], 2 * k + 1, members, size)
        torch.add(now[:, :, div], change[:, :, :k], out=after[:, :, div])
        torch.add(mid, change[:, :, k:], out=after[:, :, 3 * k :])
        after[:, :, div].mul_(2.0).sub_(previous[:, :, div])
        after[:, :, 3 * k :].mul_(2.0).sub_(previous[:, :, 3 * k :])
        return after.mul_(self._damping)
