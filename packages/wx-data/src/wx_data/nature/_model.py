"""The nature run: start, advance and look at a batch of atmospheres."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wx_data.nature._config import GAS_CONSTANT, REFERENCE_TEMPERATURE, NatureConfig
from wx_data.nature._diagnostics import Diagnostics
from wx_data.nature._dynamics import Dynamics
from wx_data.nature._state import State, seconds_since_1970

_BATCH = 8  # members whose working set stays in the cache of a core
_START_TEMPERATURE = 270.0
_START_HUMIDITY = 1e-3


def generator(*key: int) -> torch.Generator:
    """A CPU generator whose seed is a hash of the key, for example (seed, init time, member)."""
    digest = hashlib.blake2b(repr(tuple(int(part) for part in key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class NatureModel:
    """A global spectral primitive-equation atmosphere, many members at a time.

    Two calls with the same state and thread count give the same bits, and so does a member whatever the batch
    it runs in, on one thread (measured, see docs/nature-run.md); it is data for development, never weather.

    Args:
        config: resolution, numerics and forcing; the default is T21 with five levels.
        device: where the model runs; states given to it are moved there.
    """

    def __init__(self, config: NatureConfig | None = None, device: torch.device | str = "cpu") -> None:
        self.config = config or NatureConfig()
        self.device = torch.device(device)
        self._dynamics = Dynamics(self.config, self.device)
        self._diagnostics = Diagnostics(self._dynamics)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the output channels."""
        return self.config.channels

    @property
    def latitudes(self) -> NDArray[np.float64]:
        """Output latitudes, 90 to -90."""
        return self._diagnostics.latitudes

    @property
    def longitudes(self) -> NDArray[np.float64]:
        """Output longitudes, from 0 to below 360."""
        return self._diagnostics.longitudes

    def initial(
        self, members: int | Sequence[int], seed: int, *, time: str = "2000-01-01", noise: float = 2e-6
    ) -> State:
        """A resting, isothermal, hydrostatic atmosphere with random vorticity: the start of a spin-up.

        Args:
            members: number of atmospheres, or the numbers of some; member k depends on (seed, k) only.
            seed: seed of the noise.
            time: valid time.
            noise: standard deviation of the vorticity coefficients of wavenumbers 4 to 10, 1/s; 0 for rest.
        """
        config, dynamics = self.config, self._dynamics
        size, levels = config.truncation + 1, config.levels
        _, _, wet, warm = dynamics.rows()
        numbers = range(members) if isinstance(members, int) else members
        now = torch.zeros(size, 2, 4 * levels + 1, len(numbers), size)
        large = torch.tensor([[4 <= m <= n <= 10 for n in range(size)] for m in range(size)])
        for row, member in enumerate(numbers):
            draw = torch.randn(size, 2, levels, size, generator=generator(seed, member))
            now[:, :, :levels, row] = noise * draw * large[:, None, None]
        now = now.to(self.device)
        now[0, 0, warm, :, 0] = _START_TEMPERATURE - REFERENCE_TEMPERATURE
        now[:, :, -1] = dynamics.surface / (-GAS_CONSTANT * _START_TEMPERATURE)
        now[0, 0, -1, :, 0] -= dynamics.lost_mass(now)
        if config.moist:
            now[0, 0, wet.stop - 1, :, 0] = _START_HUMIDITY
        return self._resting(_outside(now), time)

    def _resting(self, now: Tensor, time: str) -> State:
        nlat, nlon = self.config.gaussian_grid
        members = now.shape[0]
        return State(
            now=now,
            previous=now.clone(),
            heating=torch.zeros(members, 2, self.config.levels, nlat, nlon, device=self.device),
            rain=torch.zeros(members, nlat, nlon, device=self.device),
            time=np.full(members, seconds_since_1970(time)),
        )

    def advance(self, state: State, hours: float) -> State:
        """The state ``hours`` later, a whole number of steps.

        Raises:
            ValueError: the state does not fit the configuration, ``hours`` is not a multiple of the step, or
                the atmosphere has blown up.
        """
        steps = hours * 3600 / self.config.step_seconds
        if steps < 0 or abs(steps - round(steps)) > 1e-6:
            raise ValueError(f"hours must be a multiple of {self.config.step_minutes} minutes, got {hours}")
        self.check(state)
        state = state.to(self.device)
        width = _BATCH if self.device.type == "cpu" else state.members
        parts = [
            self._advance(state.select(slice(start, start + width)), round(steps))
            for start in range(0, state.members, width)
        ]
        return State.stack(parts)

    def _advance(self, state: State, steps: int) -> State:
        # One member alone would take another matrix kernel, and other rounding, than in a batch.
        alone = state.members == 1
        if alone:
            state = State.stack([state, state])
        now, previous = _inside(state.now), _inside(state.previous)
        heating = state.heating.permute(4, 1, 2, 0, 3).contiguous()
        rain = state.rain.permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
        time = state.time
        for _ in range(steps):
            now, previous, heating = self._dynamics.step(now, previous, heating, rain, time)
            time = time + self.config.step_seconds
        if not torch.isfinite(now).all():
            raise ValueError(
                f"the atmosphere blew up before {time.max().astype('datetime64[s]')}; take a smaller "
                f"step_minutes than {self.config.step_minutes} or stronger diffusion"
            )
        later = State(
            now=_outside(now),
            previous=_outside(previous),
            heating=heating.permute(3, 1, 2, 4, 0).contiguous(),
            rain=rain.permute(1, 2, 0).contiguous(),
            time=time,
        )
        return later.select([0]) if alone else later

    def output(self, state: State) -> Tensor:
        """All channels on the output grid, float32 (member, channel, latitude, longitude)."""
        self.check(state)
        state = state.to(self.device)
        doubled = State.stack([state, state]) if state.members == 1 else state
        fields = self._diagnostics.fields(_inside(doubled.now), doubled.rain, doubled.time)
        return fields[: state.members]

    def statics(self) -> dict[str, Tensor]:
        """Surface geopotential ``z_surface`` and land fraction ``lsm``, (latitude, longitude)."""
        diagnostics = self._diagnostics
        return {"z_surface": diagnostics.surface.T.contiguous(), "lsm": diagnostics.land.T.contiguous()}

    def spectrum(self, state: State) -> Tensor:
        """Kinetic energy per total wavenumber and layer, (member, level, n), m2/s2."""
        levels = self.config.levels
        twice = torch.full((self.config.truncation + 1, 1), 2.0, device=self.device)
        twice[0] = 1.0
        power = (state.now.to(self.device)[:, : 2 * levels].abs() ** 2 * twice).sum(2)
        scale = torch.zeros_like(self._dynamics.laplacian)
        scale[1:] = -0.5 / self._dynamics.laplacian[1:]
        return (power[:, :levels] + power[:, levels:]) * scale

    def mean_surface_pressure(self, state: State) -> Tensor:
        """Global mean surface pressure of every member, Pa."""
        inside = _inside(state.now.to(self.device))
        return torch.exp(self._dynamics.lost_mass(inside)) * self.config.mean_surface_pressure

    def check(self, state: State) -> None:
        """Raise ValueError unless the state has the rows and the truncation of this configuration."""
        size = self.config.truncation + 1
        expected = (4 * self.config.levels + 1, size, size)
        if tuple(state.now.shape[1:]) != expected:
            raise ValueError(
                f"state has (rows, m, n) = {tuple(state.now.shape[1:])}, but T{self.config.truncation} "
                f"L{self.config.levels} needs {expected}; move it with wx_data.nature.transfer"
            )


def _inside(state: Tensor) -> Tensor:
    """(member, row, m, n) complex to (m, 2, row, member, n) real."""
    return torch.view_as_real(state).permute(2, 4, 1, 0, 3).contiguous()


def _outside(state: Tensor) -> Tensor:
    return torch.view_as_complex(state.permute(3, 2, 0, 4, 1).contiguous())
