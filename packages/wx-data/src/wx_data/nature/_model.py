"""The nature run: start, advance and look at a batch of atmospheres."""

import numpy as np
import torch
from torch import Tensor

from wx_data.nature._config import DAY, GAS_CONSTANT, REFERENCE_TEMPERATURE, NatureConfig
from wx_data.nature._diagnostics import Diagnostics
from wx_data.nature._dynamics import Dynamics
from wx_data.nature._state import State


class NatureModel:
    """A global primitive-equation atmosphere, many members at a time."""

    def __init__(self, config: NatureConfig | None = None, device: torch.device | str = "cpu") -> None:
        self.config = config or NatureConfig()
        self.device = torch.device(device)
        self._dynamics = Dynamics(self.config, device)
        self._diagnostics = Diagnostics(self._dynamics)

    def initial(self, members: int, seed: int, time: str = "2000-01-01") -> State:
        d, c = self._dynamics, self.config
        size, k = c.truncation + 1, c.levels
        now = torch.zeros(size, 2, 4 * k + 1, members, size)
        for member in range(members):
            gen = torch.Generator().manual_seed(seed * 1000003 + member)
            noise = torch.randn(size, 2, k, size, generator=gen) * 2e-6
            noise *= torch.tensor([[4 <= m <= n <= 10 for n in range(size)] for m in range(size)])[:, None, None]
            now[:, :, :k, member] = noise
        warm = d.rows()[3]
        now[0, 0, warm, :, 0] = 270.0 - REFERENCE_TEMPERATURE
        now = now.to(self.device)
        now[:, :, -1] = -d.surface / (GAS_CONSTANT * 270.0)
        if c.moist:
            now[0, 0, d.rows()[2].stop - 1, :, 0] = 1e-3
        nlat, nlon = c.gaussian_grid
        seconds = np.full(members, np.datetime64(time, "s").astype(np.int64))
        return State(
            now=_outside(now), previous=_outside(now),
            heating=torch.zeros(members, 2, k, nlat, nlon, device=self.device),
            rain=torch.zeros(members, nlat, nlon, device=self.device), time=seconds)

    def advance(self, state: State, hours: float) -> State:
        step = self.config.step_seconds
        count = round(hours * 3600 / step)
        now, previous = _inside(state.now), _inside(state.previous)
        heating = state.heating.permute(4, 1, 2, 0, 3).contiguous()
        rain = state.rain.permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
        time = state.time.copy()
        for _ in range(count):
            now, previous, heating = self._dynamics.step(now, previous, heating, rain, time)
            time = time + step
        return State(now=_outside(now), previous=_outside(previous),
                     heating=heating.permute(3, 1, 2, 4, 0).contiguous(),
                     rain=rain.permute(1, 2, 0).contiguous(), time=time)

    def output(self, state: State) -> Tensor:
        return self._diagnostics.fields(_inside(state.now), state.rain, state.time)


def _inside(state: Tensor) -> Tensor:
    """(member, row, m, n) complex to (m, 2, row, member, n)."""
    return torch.view_as_real(state).permute(2, 4, 1, 0, 3).contiguous()


def _outside(state: Tensor) -> Tensor:
    return torch.view_as_complex(state.permute(3, 2, 0, 4, 1).contiguous())
