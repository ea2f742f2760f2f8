"""What this package asks of the objects of others."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr


class ForecastChunk(Protocol):
    """All members of a forecast at one init time and one lead time.

    `values` has shape (member, channel, latitude, longitude) on the grid of the truth. A chunk that also has
    attributes `latitude`, `longitude` or `units` (one string per channel) has them checked against the truth;
    without them the caller vouches for grid and units.
    """

    @property
    def init_time(self) -> np.datetime64: ...

    @property
    def lead_time(self) -> np.timedelta64: ...

    @property
    def channels(self) -> tuple[str, ...]: ...

    @property
    def values(self) -> npt.NDArray[Any]: ...


class History(Protocol):
    """A series of atmospheric states that is read when needed: a truth or the data behind a baseline.

    `times` is strictly increasing; `read` returns the states at exactly the given times with dims
    (time, channel, latitude, longitude).
    """

    @property
    def times(self) -> npt.NDArray[np.datetime64]: ...

    def read(self, times: npt.NDArray[np.datetime64], /) -> xr.DataArray: ...
