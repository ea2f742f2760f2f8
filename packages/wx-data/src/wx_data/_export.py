"""Part of a training store as a plain CF data set: one variable per field, levels as a dimension."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from wx_data._channels import Channel, channel
from wx_data._errors import StoreError
from wx_data._grid import Grid
from wx_data._healpix import AnyGrid
from wx_data._progress import Progress
from wx_data._store import Store, grid_arrays
from wx_data._times import TimeLike, period_hours

_BLOCK_BYTES = 256 << 20
_NETCDF_BYTES = 4 << 30
_PRESSURE = {
    "standard_name": "air_pressure",
    "long_name": "pressure",
    "units": "hPa",
    "positive": "down",
    "axis": "Z",
}
_TIME = {"units": "hours since 1970-01-01", "calendar": "proleptic_gregorian", "dtype": "int64"}


def export(
    store: Store,
    out: str | Path,
    *,
    channels: Sequence[str] | None = None,
    period: tuple[TimeLike, TimeLike] | None = None,
    kind: Literal["zarr", "netcdf"] = "zarr",
    progress: bool = False,
) -> Path:
    """Write channels and times of a store under their ECMWF names, as WeatherBench 2 lays them out.

    A field on pressure levels becomes (time, level, latitude, longitude), any other (time, latitude,
    longitude), with CF attributes. Where variables lie on different levels, the levels most of them share are
    `level`, and others a dimension of their own, such as `level_vertical_velocity`. `open_source` reads the
    result.

    Args:
        store: the training store.
        out: what to create; it must not exist.
        channels: which; all by default.
        period: first and last time, both inclusive; all by default.
        kind: "zarr" (format 2 as there, one chunk per time), written in blocks of time, or one "netcdf" file,
            which is put together in memory.
        progress: show a progress bar.

    Returns:
        `out`.

    Raises:
        StoreError: `out` exists, the store lies on `Healpix`, or a NetCDF file would pass 4 GiB.
        ValueError: no step in the period.
    """
    path = Path(out)
    if path.exists():
        raise StoreError(f"{path} exists; delete it or choose another name")
    if not isinstance(store.grid, Grid):
        raise StoreError(
            f"{store.path} lies on a {store.grid}; export writes latitudes and longitudes. Plain "
            "xr.open_zarr reads the store as it is"
        )
    names = store.channels if channels is None else tuple(channels)
    store.channel_index(names)
    first, last = period_hours(period, store.hours)
    times = store.times[(store.hours >= first) & (store.hours <= last)]
    if not times.size:
        raise ValueError(f"period {period} holds no step of {store!r}")
    size = 4 * len(names) * int(np.prod(store.grid.shape))
    with Progress("export", len(times), enabled=progress) as shown:
        if kind == "netcdf":
            if size * len(times) > _NETCDF_BYTES:
                gigabytes = size * len(times) / 1e9
                raise StoreError(
                    f"{path}: one NetCDF file would hold {gigabytes:.1f} GB; choose a shorter period"
                )
            to_netcdf(_dataset(store, times, names), path)
            shown.update(len(times))
        else:
            block = max(1, _BLOCK_BYTES // size)
            unfinished = path.with_name(f".{path.name}.part")
            shutil.rmtree(unfinished, ignore_errors=True)
            for start in range(0, len(times), block):
                chosen = times[start : start + block]
                _append(_dataset(store, chosen, names), unfinished, first=start == 0, times=times)
                shown.update(len(chosen))
            unfinished.rename(path)
    return path


def _dataset(store: Store, times: Any, names: Sequence[str]) -> xr.Dataset:
    array = store.read(times, names).drop_vars("units")
    groups = _groups(names)
    axes = _level_axes(groups)
    dataset = xr.Dataset({group[0].long_name: _variable(array, group, axes) for group in groups})
    for name, field in store.statics.items():
        spec = channel(name)
        dataset[spec.long_name] = (array.dims[2:], field, spec.attributes())
    dataset.attrs["source"] = str(store.attributes.get("provenance", {}))
    return with_cf(dataset, store.grid)


def with_cf(dataset: xr.Dataset, grid: AnyGrid) -> xr.Dataset:
    """Give `dataset` the attributes that CF asks of coordinates."""
    dataset["time"].attrs = {"standard_name": "time", "axis": "T"}
    for name, coordinate in grid_arrays(grid).items():
        dataset.coords[name] = coordinate.dims, coordinate.values, dict(coordinate.attributes)
    for label in dataset.coords:
        dataset[label].encoding = {"_FillValue": None}  # a coordinate must not have one
    dataset.attrs["Conventions"] = "CF-1.11"
    return dataset


_Levels = tuple[int | None, ...]


def _groups(names: Sequence[str]) -> list[list[Channel]]:
    """Channels of one variable together, by level."""
    found: dict[str, list[Channel]] = {}
    for name in names:
        spec = channel(name)
        found.setdefault(spec.variable, []).append(spec)
    return [sorted(group, key=lambda spec: spec.level or 0) for group in found.values()]


def _levels(group: list[Channel]) -> _Levels:
    return tuple(spec.level for spec in group)


def _level_axes(groups: list[list[Channel]]) -> dict[_Levels, str]:
    """The name of the dimension of each set of levels."""
    upper = [group for group in groups if group[0].level is not None]
    axes = {_levels(group): f"level_{group[0].long_name}" for group in reversed(upper)}
    if upper:
        axes[Counter(map(_levels, upper)).most_common(1)[0][0]] = "level"
    return axes


def _variable(array: xr.DataArray, group: list[Channel], axes: Mapping[_Levels, str]) -> xr.DataArray:
    field = array.sel(channel=[spec.name for spec in group])
    attributes = {key: value for key, value in group[0].attributes().items() if key != "level_hPa"}
    axis = axes.get(_levels(group))
    if axis is None:
        return field.isel(channel=0, drop=True).assign_attrs(attributes)
    levels = xr.DataArray(list(_levels(group)), dims=axis, attrs=_PRESSURE)
    return field.rename(channel=axis).drop_vars(axis).assign_coords({axis: levels}).assign_attrs(attributes)


def _append(dataset: xr.Dataset, path: Path, *, first: bool, times: Any) -> None:
    if not first:
        moving = dataset.drop_vars([name for name, v in dataset.variables.items() if "time" not in v.dims])
        moving.to_zarr(path, mode="a", append_dim="time", zarr_format=2, consolidated=True)
        return
    # The whole axis in one chunk: a chunk per time makes opening slow.
    encoding: dict[Any, dict[str, Any]] = {
        name: {"chunks": tuple(1 if dim == "time" else dataset.sizes[dim] for dim in field.dims)}
        for name, field in dataset.data_vars.items()
    }
    encoding["time"] = {"chunks": (len(times),), **_TIME}
    dataset.to_zarr(path, mode="w-", zarr_format=2, consolidated=True, encoding=encoding)


def to_netcdf(dataset: xr.Dataset, path: Path) -> None:
    """Write one NetCDF file, whole or not at all.

    Raises:
        ImportError: no backend is installed.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        dataset.to_netcdf(unfinished, encoding={"time": _TIME})
    except (ImportError, ValueError) as error:
        if isinstance(error, ValueError) and "backend" not in str(error):
            raise
        raise ImportError(f"{path}: writing NetCDF needs a backend; pip install 'wx-data[netcdf]'") from error
    unfinished.rename(path)
