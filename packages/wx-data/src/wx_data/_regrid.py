"""A source on another grid."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._channels import channel
from wx_data._conservative import regrid_conservative
from wx_data._grid import Grid, interpolate_points, regrid
from wx_data._healpix import Healpix
from wx_data._join import versions_of, with_versions
from wx_data._protocols import Source
from wx_data._store import field_array

Method = Literal["bilinear", "conservative"]


class RegriddedSource:
    """A source whose fields are brought to another grid as they are read.

    Args:
        source: on a latitude-longitude grid.
        grid: target; a `Grid`, or `Healpix` pixel centres, which take "bilinear" only. On `Healpix` fields
            have the dimension `cell` in place of latitude and longitude, and are not for training stores.
        method: "bilinear", or "conservative": means over the target's cells, which keep the area mean.

    Raises:
        ValueError: an unknown method, or a conservative `Healpix`.
    """

    def __init__(self, source: Source, grid: Grid | Healpix, method: Method = "bilinear") -> None:
        if method not in ("bilinear", "conservative"):
            raise ValueError(f'method must be "bilinear" or "conservative"; got {method!r}')
        if isinstance(grid, Healpix) and method != "bilinear":
            raise ValueError(
                "a Healpix grid takes bilinear interpolation; regrid conservatively to a Grid first"
            )
        self._source, self._method = source, method
        self.grid = grid
        self.channels = tuple(source.channels)
        self.times: NDArray[np.datetime64] = source.times
        given: Mapping[str, NDArray[Any]] = getattr(source, "statics", {})
        self.statics = {name: self._move(field, wind=False) for name, field in given.items()}
        rows, columns = source.grid.shape
        self.provenance: dict[str, Any] = {
            **getattr(source, "provenance", {}),
            "regridded_from": f"{rows} x {columns}, {source.grid.digest}",
            "regridding": method,
        }

    def __repr__(self) -> str:
        return f"RegriddedSource({self._method} to {self.grid.digest} from {self._source!r})"

    @property
    def variables(self) -> Mapping[str, Mapping[str, Any]]:
        """What the source's files say about each channel."""
        return getattr(self._source, "variables", {})

    def read(self, times: Any, channels: Sequence[str] | None = None, /) -> xr.DataArray:
        """float32 (time, channel, latitude, longitude), or (time, channel, cell), at exactly `times`."""
        names = self.channels if channels is None else tuple(channels)
        found = self._source.read(times, names)
        values = np.empty((found.sizes["time"], len(names), *self.grid.shape), dtype=np.float32)
        for place, name in enumerate(names):
            field = found.isel(channel=place).transpose("time", "latitude", "longitude").values
            values[:, place] = self._move(field, wind=channel(name).wind)
        if isinstance(self.grid, Grid):
            array = field_array(values, found["time"].values, names, self.grid)
        else:
            array = _cell_array(values, found["time"].values, names, self.grid)
        array.attrs = found.attrs
        return with_versions(array, versions_of(found))

    def _move(self, values: NDArray[Any], *, wind: bool) -> NDArray[np.float32]:
        source, target = self._source.grid, self.grid
        if isinstance(target, Healpix):
            return interpolate_points(values, source, target.latitude, target.longitude, wind=wind)
        if self._method == "conservative":
            return regrid_conservative(values, source, target)
        return regrid(values, source, target, wind=wind)


def _cell_array(
    values: NDArray[np.float32], times: NDArray[np.datetime64], names: Sequence[str], grid: Healpix
) -> xr.DataArray:
    coords = {
        "time": times,
        "channel": list(names),
        "latitude": ("cell", grid.latitude),
        "longitude": ("cell", grid.longitude),
        "units": ("channel", [channel(name).units for name in names]),
    }
    array = xr.DataArray(values, coords, ("time", "channel", "cell"))
    array["cell"] = ("cell", np.arange(grid.shape[0]), {"nside": grid.nside, "order": grid.order})
    return array
