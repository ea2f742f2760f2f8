"""CF data sets in Zarr format 3 with the ERA5 short names."""

import errno
import json
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from wx_data.nature._model import NatureModel

Coordinate = tuple[NDArray[Any], dict[str, Any]]

_ATTRIBUTES: dict[str, tuple[str, str, str]] = {
    "z": ("Geopotential", "geopotential", "m**2 s**-2"),
    "t": ("Temperature", "air_temperature", "K"),
    "u": ("U component of wind", "eastward_wind", "m s**-1"),
    "v": ("V component of wind", "northward_wind", "m s**-1"),
    "q": ("Specific humidity", "specific_humidity", "kg kg**-1"),
    "msl": ("Mean sea level pressure", "air_pressure_at_mean_sea_level", "Pa"),
    "t2m": ("2 metre temperature", "air_temperature", "K"),
    "tp": ("Total precipitation of the past 6 hours", "lwe_thickness_of_precipitation_amount", "m"),
    "z_surface": ("Geopotential at the surface", "surface_geopotential", "m**2 s**-2"),
    "lsm": ("Land-sea mask", "land_binary_mask", "1"),
}
_TIME_UNITS = {"units": "hours since 1970-01-01", "calendar": "proleptic_gregorian"}


def attributes(name: str) -> dict[str, Any]:
    """CF attributes of a variable."""
    long_name, standard_name, units = _ATTRIBUTES[name]
    result: dict[str, Any] = {"long_name": long_name, "standard_name": standard_name, "units": units}
    if name == "tp":
        result |= {"cell_methods": "time: sum (interval: 6 hours)", "accumulation_hours": 6}
    return result


def time_coordinate(times: NDArray[np.datetime64], standard_name: str) -> Coordinate:
    """Dates as int64 hours since 1970."""
    hours = times.astype("datetime64[h]").astype(np.int64)
    return hours, {**_TIME_UNITS, "standard_name": standard_name}


def create(
    path: Path,
    model: NatureModel,
    leading: Mapping[str, Coordinate],
    chunks: Mapping[str, int],
    identity: Mapping[str, Any],
) -> None:
    """Declare the whole data set; it appears under ``path`` with all coordinates, or not at all."""
    building = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        _declare(building, model, leading, chunks, identity)
        _consolidate(building)
        building.rename(path)
    except FileExistsError:
        shutil.rmtree(building)  # another process was first
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _declare(
    path: Path,
    model: NatureModel,
    leading: Mapping[str, Coordinate],
    chunks: Mapping[str, int],
    identity: Mapping[str, Any],
) -> None:
    about: dict[str, Any] = {
        "Conventions": "CF-1.11",
        "title": "Simulated atmosphere for development and benchmarks; not weather",
        "source": "wx_data.nature, a spectral primitive-equation model",
        "nature": json.dumps(identity, sort_keys=True),
    }
    group = zarr.open_group(path, mode="w", zarr_format=3, attributes=about)
    horizontal: dict[str, Coordinate] = {
        "latitude": (model.latitudes, {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": (model.longitudes, {"units": "degrees_east", "standard_name": "longitude"}),
    }
    levels = np.asarray(model.config.pressure_levels, np.int64)
    vertical = (levels, {"units": "hPa", "standard_name": "air_pressure", "positive": "down"})
    for name, (values, attrs) in {**leading, "level": vertical, **horizontal}.items():
        _whole(group, name, values, (name,), attrs)
    for name, field in model.statics().items():
        _whole(group, name, field.cpu().numpy(), ("latitude", "longitude"), attributes(name))
    outer = {name: values.size for name, (values, _) in leading.items()}
    inner = {name: values.size for name, (values, _) in horizontal.items()}
    for name in (*"ztuvq", "msl", "t2m", "tp"):
        level = {"level": levels.size} if name in "ztuvq" else {}
        sizes = {**outer, **level, **inner}
        group.create_array(
            name,
            shape=tuple(sizes.values()),
            chunks=tuple(chunks.get(dim, size) for dim, size in sizes.items()),
            dtype="float32",
            compressors=BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
            fill_value=float("nan"),
            dimension_names=tuple(sizes),
            attributes=attributes(name),
        )


def _consolidate(path: Path) -> None:
    """One metadata file for all arrays, which xarray looks for first; shapes never change afterwards."""
    with warnings.catch_warnings():
        # zarr says that format 3 does not specify it yet; readers without it take the arrays' own files.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)


def _whole(
    group: zarr.Group, name: str, values: NDArray[Any], dims: tuple[str, ...], attrs: Mapping[str, Any]
) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=tuple(max(1, size) for size in values.shape),
        dtype=values.dtype,
        compressors=None,
        dimension_names=dims,
        attributes=dict(attrs),
    )
    array[...] = values


def write(
    group: zarr.Group, index: tuple[int | slice, ...], fields: NDArray[np.float32], levels: int
) -> None:
    """Write ``fields`` (leading..., channel, latitude, longitude) at ``index`` of the leading dimensions."""
    for position, name in enumerate("ztuvq"):
        _array(group, name)[index] = fields[..., position * levels : (position + 1) * levels, :, :]
    for position, name in enumerate(("msl", "t2m", "tp"), 5 * levels):
        _array(group, name)[index] = fields[..., position, :, :]


def _array(group: zarr.Group, name: str) -> Any:
    # zarr types members as Array | Group; every name here was created as an array.
    return group[name]


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Say what to do when the disk is full: nothing already checkpointed is lost."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"the disk is full while writing {path}; free space and repeat the same call, it resumes"
        raise OSError(error.errno, message) from error
