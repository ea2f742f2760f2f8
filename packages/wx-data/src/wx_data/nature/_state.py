"""The state of a batch of atmospheres."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class State:
    """Two time levels of the leapfrog, members leading, and what the next step needs to go on bitwise.

    Attributes:
        now: coefficients (member, row, m, n) complex64; rows are vorticity, divergence, humidity and
            temperature (minus 300 K) on every layer, top first, then ln(surface pressure / 1000 hPa).
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

    def select(self, index: slice | Sequence[int]) -> "State":
        """Some of the members, in the order of ``index``."""
        rows = list(range(self.members)[index]) if isinstance(index, slice) else list(index)
        return State(
            now=self.now[rows],
            previous=self.previous[rows],
            heating=self.heating[rows],
            rain=self.rain[rows],
            time=self.time[rows],
        )

    def at(self, time: ArrayLike) -> "State":
        """The same atmospheres under other dates: one for all, or one per member."""
        seconds = seconds_since_1970(time)
        return replace(self, time=np.broadcast_to(seconds, (self.members,)).copy())

    @staticmethod
    def stack(states: "Sequence[State]") -> "State":
        """The members of several states, in order."""
        return State(
            now=torch.cat([state.now for state in states]),
            previous=torch.cat([state.previous for state in states]),
            heating=torch.cat([state.heating for state in states]),
            rain=torch.cat([state.rain for state in states]),
            time=np.concatenate([state.time for state in states]),
        )

    def to(self, device: torch.device | str) -> "State":
        """The same state on another device."""
        return State(
            now=self.now.to(device),
            previous=self.previous.to(device),
            heating=self.heating.to(device),
            rain=self.rain.to(device),
            time=self.time,
        )


def seconds_since_1970(time: ArrayLike) -> NDArray[np.int64]:
    """Dates (datetime64, datetime or ISO strings) as whole seconds since 1970-01-01."""
    return np.asarray(time, dtype="datetime64[s]").astype(np.int64)


def _triangle(size: int) -> NDArray[np.bool_]:
    return np.triu(np.ones((size, size), bool))


def pack(coefficients: Tensor) -> NDArray[np.float32]:
    """The non-zero half (m <= n) of coefficients (member, row, m, n), float32 (member, row, 2 * pairs)."""
    values = coefficients.cpu().numpy()[:, :, _triangle(coefficients.shape[-1])]
    return np.ascontiguousarray(values).view(np.float32)


def unpack(packed: NDArray[np.float32]) -> Tensor:
    """The inverse of `pack`."""
    values = np.ascontiguousarray(packed, np.float32).view(np.complex64)
    size = round((np.sqrt(8 * values.shape[2] + 1) - 1) / 2)
    full = np.zeros((*values.shape[:2], size, size), np.complex64)
    full[:, :, _triangle(size)] = values
    return torch.from_numpy(full)


def to_arrays(state: State) -> dict[str, NDArray[np.generic]]:
    """Everything in a state as numpy arrays, exactly."""
    return {
        "now": pack(state.now),
        "previous": pack(state.previous),
        "heating": state.heating.cpu().numpy(),
        "rain": state.rain.cpu().numpy(),
        "time": state.time,
    }


def from_arrays(arrays: "dict[str, NDArray[np.generic]]", device: torch.device | str = "cpu") -> State:
    """The inverse of `to_arrays`."""
    state = State(
        now=unpack(arrays["now"].astype(np.float32)),
        previous=unpack(arrays["previous"].astype(np.float32)),
        heating=torch.from_numpy(arrays["heating"].astype(np.float32)),
        rain=torch.from_numpy(arrays["rain"].astype(np.float32)),
        time=arrays["time"].astype(np.int64),
    )
    return state.to(device)
