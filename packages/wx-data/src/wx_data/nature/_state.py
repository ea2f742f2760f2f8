"""The state of a batch of atmospheres."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class State:
    """Two time levels of the leapfrog, members leading, and what the next step needs to go on bitwise.

    Attributes:
        now: coefficients (member, row, m, n) complex64; rows are vorticity, divergence, humidity and temperature
            (minus 300 K) on every layer, top first, then ln(surface pressure / 1000 hPa).
        previous: the filtered state one step earlier.
        heating: physical tendencies of temperature and humidity that the next step applies, float32
            (member, 2, level, latitude, longitude) on the Gaussian grid.
        rain: precipitation since the last multiple of six hours, metres, (member, latitude, longitude).
        time: seconds since 1970-01-01, int64 (member,).
    """

    now: Tensor
    previous: Tensor
    heating: Tensor
    rain: Tensor
    time: NDArray[np.int64]

    @property
    def members(self) -> int:
        """Number of atmospheres."""
        return self.now.shape[0]

    @property
    def valid_time(self) -> NDArray[np.datetime64]:
        """Valid time of every member."""
        return self.time.astype("datetime64[s]")

    def select(self, index: slice | list[int]) -> "State":
        """Some of the members."""
        return State(
            now=self.now[index],
            previous=self.previous[index],
            heating=self.heating[index],
            rain=self.rain[index],
            time=np.atleast_1d(self.time[index]),
        )

    def at(self, time: NDArray[np.datetime64]) -> "State":
        """The same atmospheres under another date, one per member."""
        seconds = np.asarray(time).astype("datetime64[s]").astype(np.int64)
        return replace(self, time=np.broadcast_to(seconds, (self.members,)).copy())

    @staticmethod
    def stack(states: "list[State]") -> "State":
        """The members of several states, in order."""
        return State(
            now=torch.cat([state.now for state in states]),
            previous=torch.cat([state.previous for state in states]),
            heating=torch.cat([state.heating for state in states]),
            rain=torch.cat([state.rain for state in states]),
            time=np.concatenate([state.time for state in states]),
        )
