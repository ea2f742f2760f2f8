"""Part of a training store as a plain CF data set: one variable per field, levels as a dimension."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from wx_data._channels import Channel, channel
from wx_data._errors import StoreError
from wx_data._progress import Progress
from wx_data._store import Store
from wx_data._times import TimeLike, period_hours

_BLOCK_BYTES = 256 << 20
_NETCDF_BYTES = 4 << 30


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
    longitude), with CF attributes. `open_source` reads the result.

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
        StoreError: `out` exists, or a NetCDF file would pass 4 GiB.
        ValueError: no step in the period, or channels of one variable on different levels.
    """
    path = Path(out)
    if path.exists():
        raise StoreError(f"{path} exists; delete it or choose another name")
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
            _to_netcdf(_dataset(store, times, names), path)
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
    array = store.read(times, names)
    fields = {spec.long_name: _variable(array, specs) for specs in _groups(names) for spec in specs[:1]}
    dataset = xr.Dataset(
        {name: field.drop_vars(("units",), errors="ignore") for name, field in fields.items()}
    )
    for name, field in store.statics.items():
        spec = channel(name)
        dataset[spec.long_name] = (("latitude", "longitude"), field, spec.attributes())
    dataset["latitude"].attrs = {"standard_name": "latitude", "units": "degrees_north"}
    dataset["longitude"].attrs = {"standard_name": "longitude", "units": "degrees_east"}
    dataset.attrs = {"Conventions": "CF-1.11", "source": str(store.attributes.get("provenance", {}))}
    return dataset


def _groups(names: Sequence[str]) -> list[list[Channel]]:
    """Channels of one variable together, by level; they must share one set of levels."""
    found: dict[str, list[Channel]] = {}
    for name in names:
        spec = channel(name)
        found.setdefault(spec.variable, []).append(spec)
    groups = [sorted(group, key=lambda spec: spec.level or 0) for group in found.values()]
    levels = {tuple(spec.level for spec in group) for group in groups if group[0].level is not None}
    if len(levels) > 1:
        raise ValueError(
            f"variables on different levels share no dimension: {sorted(levels)}; export them apart"
        )
    return groups


def _variable(array: xr.DataArray, specs: list[Channel]) -> xr.DataArray:
    field = array.sel(channel=[spec.name for spec in specs])
    attributes = {key: value for key, value in specs[0].attributes().items() if key != "level_hPa"}
    if specs[0].level is None:
        field = field.isel(channel=0, drop=True)
    else:
        levels = xr.DataArray(
            [spec.level for spec in specs], dims="level", attrs={"units": "hPa", "long_name": "pressure"}
        )
        field = field.rename(channel="level").drop_vars("level").assign_coords(level=levels)
    return field.drop_vars("units", errors="ignore").assign_attrs(attributes)


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
    encoding["time"] = {
        "chunks": (len(times),),
        "units": "hours since 1970-01-01",
        "calendar": "proleptic_gregorian",
        "dtype": "int64",
    }
    dataset.to_zarr(path, mode="w-", zarr_format=2, consolidated=True, encoding=encoding)


def _to_netcdf(dataset: xr.Dataset, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    try:
        dataset.to_netcdf(
            unfinished, encoding={"time": {"units": "hours since 1970-01-01", "dtype": "int64"}}
        )
    except (ImportError, ValueError) as error:
        raise ImportError(f"{path}: writing NetCDF needs a backend; pip install 'wx-data[netcdf]'") from error
    unfinished.rename(path)
