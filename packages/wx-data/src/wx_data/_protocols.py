"""What wx-data asks of others: a source of fields."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._healpix import AnyGrid


class Source(Protocol):
    """Fields on one grid at exact times, in the units of the channel lexicon.

    A source may also have `statics` (name -> (H, W) or (cell,) array) and `provenance` (JSON data);
    conversion stores both.
    """

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that can be read."""
        ...

    @property
    def times(self) -> NDArray[np.datetime64]:
        """Valid times, strictly increasing."""
        ...

    @property
    def grid(self) -> AnyGrid:
        """The grid of what `read` returns."""
        ...

    def read(self, times: Any, channels: Sequence[str], /) -> xr.DataArray:
        """float32 (time, channel, latitude, longitude), or (time, channel, cell), at exactly these times."""
        ...


class RowRange(NamedTuple):
    """Latitude rows of one rank: [start, stop), and `halo` more on either side where the grid has them.

    On `Healpix` the rows are cells, which take no halo.
    """

    start: int
    stop: int
    halo: int = 0

    def within(self, rows: int) -> tuple[int, int]:
        """Rows to read, halo included, cut at the poles.

        Raises:
            ValueError: the range is empty or leaves the grid.
        """
        if not 0 <= self.start < self.stop <= rows or self.halo < 0:
            raise ValueError(f"{self} does not lie within a grid of {rows} rows")
        return max(0, self.start - self.halo), min(rows, self.stop + self.halo)
