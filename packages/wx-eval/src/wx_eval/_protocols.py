"""What this package asks of the objects of others."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr


class ForecastChunk(Protocol):
    """All members of a forecast at one init time and one lead time.

    `values` has shape (member, channel, latitude, longitude), or (member, channel, point) on a mesh, on the
    grid of the truth; anything that numpy can slice and turn into an array. A chunk that also has attributes
    `latitude`, `longitude` or `units` (one string per channel) has them checked against the truth; without
    them the caller vouches for grid and units.
    """

    @property
    def init_time(self) -> np.datetime64: ...

    @property
    def lead_time(self) -> np.timedelta64: ...

    @property
    def channels(self) -> tuple[str, ...]: ...

    @property
    def values(self) -> npt.NDArray[Any]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A ForecastChunk that also states its grid and units, so that they are checked.

    Attributes:
        init_time: start of the forecast.
        lead_time: time since then.
        channels: names.
        values: shape (member, channel, latitude, longitude), or (member, channel, point).
        latitude: degrees, of the rows or of the points, or None when unknown.
        longitude: degrees, of the columns or of the points, or None when unknown.
        units: one string per channel, or None when unknown.
        interpolation: how the values were brought to these points, "" when they were computed on them.
    """

    init_time: np.datetime64
    lead_time: np.timedelta64
    channels: tuple[str, ...]
    values: npt.NDArray[Any]
    latitude: npt.NDArray[Any] | None = None
    longitude: npt.NDArray[Any] | None = None
    units: tuple[str, ...] | None = None
    interpolation: str = ""


class Comm(Protocol):
    """Ranks that each hold some rows of the grid, see `Band`."""

    def sum(self, array: npt.NDArray[np.float64], /) -> npt.NDArray[np.float64]:
        """Sum of this array over all ranks, the same on each of them; they call it equally often."""
        ...


class History(Protocol):
    """A series of atmospheric states that is read when needed: a truth or the data behind a baseline.

    `times` is strictly increasing; `read` returns the states at exactly the given times with dims
    (time, channel, latitude, longitude), or (time, channel, point) with coordinates latitude and longitude
    along the points.
    """

    @property
    def times(self) -> npt.NDArray[np.datetime64]: ...

    def read(self, times: npt.NDArray[np.datetime64], /) -> xr.DataArray: ...


class Climatology(Protocol):
    """Climatological fields by valid time."""

    @property
    def name(self) -> str:
        """Kept with the records: only scores against the same climatology can be compared."""
        ...

    def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
        """A field with dims (channel, latitude, longitude) or (channel, point).

        Coordinates latitude, longitude and `units` along channel are checked against the truth where it has
        them. A channel without the statistic is absent.

        statistic: "mean", "std", "quantile(<probability>)", "seeps_threshold", or "seeps_dry_fraction", which
            is the mean over all hours and days.
        """
        ...
