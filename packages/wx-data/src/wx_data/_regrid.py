"""A source on another grid."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._channels import channel
from wx_data._conservative import regrid_conservative
from wx_data._grid import Grid, Points, regrid
from wx_data._healpix import AnyGrid
from wx_data._join import versions_of, with_versions
from wx_data._protocols import Source
from wx_data._remote import Traffic
from wx_data._store import field_array

Method = Literal["bilinear", "conservative"]


class RegriddedSource:
    """A source whose fields are brought to another grid as they are read.

    Args:
        source: on a latitude-longitude grid.
        grid: target; a `Grid`, or the cell centres of `Healpix`, which take "bilinear" only. On `Healpix`
            fields have the dimension `cell` in place of latitude and longitude.
        method: "bilinear", or "conservative": means over the target's cells, which keep the area mean.

    Raises:
        ValueError: an unknown method, a conservative `Healpix`, or a source that lies on `Healpix`.
    """

    def __init__(self, source: Source, grid: AnyGrid, method: Method = "bilinear") -> None:
        if method not in ("bilinear", "conservative"):
            raise ValueError(f'method must be "bilinear" or "conservative"; got {method!r}')
        if not isinstance(grid, Grid) and method != "bilinear":
            raise ValueError(
                "a Healpix grid takes bilinear interpolation; regrid conservatively to a Grid first"
            )
        if not isinstance(source.grid, Grid):
            raise ValueError(
                f"the source lies on a {source.grid}, from which nothing is interpolated; regrid what it was "
                "made from"
            )
        self._source, self._method = source, method
        self.grid = grid
        self._move: Callable[..., NDArray[np.float32]] = (
            partial(_to_rows, source=source.grid, target=grid, method=method)
            if isinstance(grid, Grid)
            else Points(source.grid, grid.latitude, grid.longitude)
        )
        self.channels = tuple(source.channels)
        self.times: NDArray[np.datetime64] = source.times
        given: Mapping[str, NDArray[Any]] = getattr(source, "statics", {})
        self.statics = {name: self._move(field, wind=False) for name, field in given.items()}
        self.provenance: dict[str, Any] = {
            **getattr(source, "provenance", {}),
            "regridded_from": f"{source.grid}, {source.grid.digest}",
            "regridding": method,
        }

    def __repr__(self) -> str:
        return f"RegriddedSource({self._method} to {self.grid.digest} from {self._source!r})"

    @property
    def variables(self) -> Mapping[str, Mapping[str, Any]]:
        """What the source's files say about each channel."""
        return getattr(self._source, "variables", {})

    @property
    def traffic(self) -> Traffic:
        """Requests, bytes and cache hits of the source so far."""
        return getattr(self._source, "traffic", Traffic())

    def read(self, times: Any, channels: Sequence[str] | None = None, /) -> xr.DataArray:
        """float32 (time, channel, latitude, longitude), or (time, channel, cell), at exactly `times`."""
        names = self.channels if channels is None else tuple(channels)
        found = self._source.read(times, names)
        values = np.empty((found.sizes["time"], len(names), *self.grid.shape), dtype=np.float32)
        for place, name in enumerate(names):
            field = found.isel(channel=place).transpose("time", "latitude", "longitude").values
            values[:, place] = self._move(field, wind=channel(name).wind)
        array = field_array(values, found["time"].values, names, self.grid)
        array.attrs = found.attrs
        return with_versions(array, versions_of(found))


def _to_rows(
    values: NDArray[Any], *, source: Grid, target: Grid, method: Method, wind: bool
) -> NDArray[np.float32]:
    if method == "conservative":
        return regrid_conservative(values, source, target)
    return regrid(values, source, target, wind=wind)
