"""One leapfrog step of the primitive equations in vorticity, divergence, temperature, ln(ps) and humidity.

Semi-implicit: ``X+ = X- + 2 dt [F(X0) + L ((X+ + X-) / 2 - X0)]`` where L holds the gravity waves of a
resting isothermal atmosphere, which the eigenvectors of the vertical structure reduce to one division per
mode and total wavenumber (Hoskins and Simmons 1975, QJRMS 101, 637). Internally coefficients are (m, 2, row,
member, n) and grid values (longitude, row, member, latitude).
"""

import math

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
    REFERENCE_PRESSURE,
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
        self.synthesis = Synthesis(config.truncation, sines, nlon, radius=EARTH_RADIUS, device=device)
        self.analysis = Analysis(config.truncation, nlat, nlon, radius=EARTH_RADIUS, device=device)
        self.device = torch.device(device)
        self.laplacian = self.put(laplacian_eigenvalues(config.truncation, EARTH_RADIUS))
        latitudes = np.rad2deg(np.arcsin(sines))
        longitudes = 360.0 / nlon * np.arange(nlon, dtype=np.float64)
        self.surface = self._surface(latitudes, longitudes)
        self.forcing = Forcing(
            config,
            Surroundings(
                sines=self.put(sines),
                angles=self.put(np.deg2rad(longitudes)),
                land=self.put(land_fraction(latitudes, longitudes).T),
                sigma=self.layers.full,
                thickness=self.layers.thickness,
            ),
        )
        self._coriolis = self.put(2 * ROTATION * sines)
        self.weights = self.put(weights / nlon)
        self._target = math.log(config.mean_surface_pressure / REFERENCE_PRESSURE)
        self._vertical_matrices()
        self._implicit_matrices()
        self._damping = self._damping_factors()
        if not config.moist:
            self._damping[2 * config.levels : 3 * config.levels] = 0.0

    def put(self, array: NDArray[np.float64]) -> Tensor:
        """A float32 tensor on the device of the model."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, torch.float32)

    def _surface(self, latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> Tensor:
        """Surface geopotential (m, 2, 1, n), its shortest waves damped so that ridges do not ring."""
        height = self.config.orography * GRAVITY * orography(latitudes, longitudes)
        waves = self.analysis.fourier(self.put(height.T)[:, None])
        degree = np.arange(self.config.truncation + 1.0) / (self.config.truncation + 1)
        return self.analysis.scalar(waves) * self.put(np.exp(-2.0 * degree**4))

    def _vertical_matrices(self) -> None:
        layers, nlon = self.layers, self.synthesis.longitudes
        rows = np.concatenate([layers.velocity, layers.compression, layers.thickness[None, :]])
        self._columns = self.put(rows).expand(nlon, -1, -1)
        half = 0.5 / layers.thickness
        self._below = self.put(half[:-1])[:, None, None]
        self._above = self.put(half[1:])[:, None, None]

    def _implicit_matrices(self) -> None:
        dt, layers, levels = self.config.step_seconds, self.layers, self.config.levels
        speeds, modes, inverse = layers.gravity_waves()
        pressure = np.full((levels, 1), GAS_CONSTANT * REFERENCE_TEMPERATURE)
        tau = KAPPA * REFERENCE_TEMPERATURE * layers.compression @ modes
        feedback = np.concatenate([modes, -dt * tau, -dt * layers.thickness[None, :] @ modes])
        waves = 2 * (self.config.truncation + 1)
        self._geopotential = self.put(np.concatenate([layers.hydrostatic, pressure], 1)).expand(waves, -1, -1)
        self._to_modes = self.put(inverse).expand(waves, -1, -1)
        self._from_modes = self.put(feedback).expand(waves, -1, -1)
        eigen = -laplacian_eigenvalues(self.config.truncation, EARTH_RADIUS)
        self._solve = self.put(1.0 / (1.0 + dt**2 * speeds[:, None] * eigen[None, :]))[:, None, :]

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
        return self.put(1.0 / (1.0 + double * rates))[:, None, :]

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
        """One step; returns the new now, the filtered previous and the new heating.

        ``now`` is used up and ``rain`` is added to in place.
        """
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

    def lost_mass(self, now: Tensor) -> Tensor:
        """Logarithm of the mean surface pressure of coefficients over its target, (member,)."""
        return self._lost_mass(self.synthesis.scalar(now[:, :, -1:])[:, 0])

    def _lost_mass(self, log_pressure: Tensor) -> Tensor:
        """Logarithm of the mean surface pressure over its target, (member,)."""
        # expm1 and log1p: float32 keeps nine digits of a departure and six of the whole.
        mean = (torch.expm1(log_pressure) * self.weights).sum((0, 2))
        return torch.log1p(mean) - self._target

    def _tendencies(self, fields: Tensor, wind: Tensor, heating: Tensor) -> tuple[Tensor, Tensor]:
        """Explicit sources of the step.

        Returns:
            Coefficients of kinetic energy, temperature, humidity and ln(ps) sources (3 K + 1 rows), and of
            the curl and divergence of the momentum sources and the divergence of the fluxes of temperature
            and humidity (4 K rows).
        """
        k = self.config.levels
        nlon, _, members, nlat = fields.shape
        work = fields.new_empty(nlon, 9 * k + 1, members, nlat)
        scalars, east, north = work[:, : 3 * k + 1], work[:, 3 * k + 1 : 6 * k + 1], work[:, 6 * k + 1 :]
        _, div, _, warm = (fields[:, part] for part in self.rows())
        u, v = wind[:, 0], wind[:, 1]
        advected = (u[:, :k] * u[:, k:]).addcmul_(v[:, :k], v[:, k:])
        columns = torch.bmm(self._columns, (advected + div).view(nlon, k, -1)).view(nlon, -1, members, nlat)
        torch.mul(u[:, :k], u[:, :k], out=scalars[:, :k]).addcmul_(v[:, :k], v[:, :k]).mul_(0.5)
        torch.neg(columns[:, -1], out=scalars[:, 3 * k])
        self._momentum(fields, u, v, east, north)
        self._tracers(fields, u[:, :k], v[:, :k], heating, scalars[:, k : 3 * k], east[:, k:], north[:, k:])
        omega = advected.sub_(columns[:, k - 1 : 2 * k - 1]).mul_(KAPPA)
        scalars[:, k : 2 * k].addcmul_(omega, warm).add_(omega, alpha=REFERENCE_TEMPERATURE)
        self._lift(fields, u[:, :k], v[:, :k], columns[:, : k - 1], (east, north, scalars))
        waves = self.analysis.fourier(work)
        source, east, north = (
            waves[:, :, : 3 * k + 1],
            waves[:, :, 3 * k + 1 : 6 * k + 1],
            waves[:, :, 6 * k + 1 :],
        )
        turned = torch.cat([north[:, :, :k], east], 2)
        straight = torch.cat([east[:, :, :k], -north], 2)
        return self.analysis.scalar(source), self.analysis.derivative(turned, straight)

    def _momentum(self, fields: Tensor, u: Tensor, v: Tensor, east: Tensor, north: Tensor) -> None:
        """(zeta + f) v - R T' d ln(ps)/dx and -(zeta + f) u - R T' d ln(ps)/dy."""
        k = self.config.levels
        absolute = fields[:, :k] + self._coriolis
        push = fields[:, 3 * k : 4 * k] * (-GAS_CONSTANT)
        torch.mul(absolute, v[:, :k], out=east[:, :k]).addcmul_(push, u[:, k:])
        torch.mul(absolute.neg_(), u[:, :k], out=north[:, :k]).addcmul_(push, v[:, k:])

    def _tracers(
        self,
        fields: Tensor,
        u: Tensor,
        v: Tensor,
        heating: Tensor,
        source: Tensor,
        east: Tensor,
        north: Tensor,
    ) -> None:
        """Fluxes of temperature and humidity, and the part of their sources that is X times divergence."""
        k = self.config.levels
        div = fields[:, k : 2 * k]
        for row, tracer in enumerate((fields[:, 3 * k : 4 * k], fields[:, 2 * k : 3 * k])):
            part = slice(row * k, (row + 1) * k)
            torch.mul(u, tracer, out=east[:, part])
            torch.mul(v, tracer, out=north[:, part])
            torch.addcmul(heating[:, row], tracer, div, out=source[:, part])

    def _lift(
        self, fields: Tensor, u: Tensor, v: Tensor, velocity: Tensor, work: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Vertical advection -sigma_dot dX/dsigma of wind, temperature and humidity, centred, conserving."""
        k = self.config.levels
        east, north, source = work
        down, up = velocity * self._below, velocity * self._above
        pairs = (
            (u, east[:, :k]),
            (v, north[:, :k]),
            (fields[:, 3 * k : 4 * k], source[:, k : 2 * k]),
            (fields[:, 2 * k : 3 * k], source[:, 2 * k : 3 * k]),
        )
        for field, target in pairs:
            jump = field[:, 1:] - field[:, :-1]
            target[:, :-1].addcmul_(down, jump, value=-1.0)
            target[:, 1:].addcmul_(up, jump, value=-1.0)

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
        height = torch.bmm(self._geopotential, mid.view(waves, k + 1, -1)).view(
            *mid.shape[:2], k, members, size
        )
        height += scalars[:, :, :k]
        height += self.surface[:, :, None]
        height.mul_(self.laplacian).sub_(vectors[:, :, k : 2 * k]).mul_(-dt)
        height.add_(previous[:, :, div]).sub_(now[:, :, div])
        modes = torch.bmm(self._to_modes, height.view(waves, k, -1)).view(height.shape)
        modes *= self._solve
        change = torch.bmm(self._from_modes, modes.view(waves, k, -1)).view(
            *now.shape[:2], 2 * k + 1, members, size
        )
        torch.add(now[:, :, div], change[:, :, :k], out=after[:, :, div])
        torch.add(mid, change[:, :, k:], out=after[:, :, 3 * k :])
        after[:, :, div].mul_(2.0).sub_(previous[:, :, div])
        after[:, :, 3 * k :].mul_(2.0).sub_(previous[:, :, 3 * k :])
        return after.mul_(self._damping)
