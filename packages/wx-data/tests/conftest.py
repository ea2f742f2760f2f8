"""One synthetic source for the tests of stores, and the folder of real sample files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_data import Grid, channel

NAMES = ("z500", "t850", "q850", "msl", "tp")


class SyntheticSource:
    """Smooth plausible fields, a pure function of (time, channel)."""

    def __init__(
        self,
        steps: int = 24,
        names: Sequence[str] = NAMES,
        grid: Grid | None = None,
        start: str = "2001-01-01",
        step_hours: int = 6,
    ) -> None:
        self.channels = tuple(names)
        self.grid = grid or Grid.regular(9, 16)
        hours = np.arange(steps) * step_hours
        self.times = np.datetime64(start, "ns") + hours.astype("timedelta64[h]")
        rows, columns = self.grid.shape
        mask = (np.arange(rows * columns).reshape(rows, columns) % 3 == 0).astype(np.float32)
        self.statics = {"z_surface": 9.0e3 * mask + 5.0, "lsm": mask}
        self.provenance = {"source": "synthetic"}

    def field(self, time: np.datetime64, name: str) -> np.ndarray:
        low, high = channel(name).valid_range
        hour = int(time.astype("datetime64[h]").astype(int))
        noise = np.random.default_rng([hour, sum(map(ord, name))]).uniform(-1, 1, self.grid.shape)
        return ((low + high) / 2 + (high - low) / 5 * noise).astype(np.float32)

    def read(self, times: Any, channels: Sequence[str], /) -> xr.DataArray:
        times = np.asarray(times)
        values = np.stack([np.stack([self.field(t, c) for c in channels]) for t in times])
        coords = {"time": times, "channel": list(channels)}
        return xr.DataArray(values, coords, ("time", "channel", "latitude", "longitude"))


@pytest.fixture
def make_source() -> Callable[..., SyntheticSource]:
    return SyntheticSource


@pytest.fixture(scope="session")
def samples() -> Path:
    """Real files, kept beside the repository; without them the tests that need them are skipped loudly."""
    folder = Path(__file__).resolve().parents[4] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"NOT TESTED: the real sample files are not at {folder}")
    return folder
