"""What lies behind a path or URL: its format, told by its content, and the datasets in it."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from wx_data._accumulation import hourly_windows, state_windows
from wx_data._arco import Validity
from wx_data._errors import SourceError
from wx_data._hdf5 import YearlyHdf5, holds_fields, open_yearly, yearly_files
from wx_data._remote import Remote, TrafficCounter, is_url
from wx_data._times import LeadLike, lead_hours

Kind = Literal["auto", "arco", "wb2", "zarr", "netcdf", "grib", "hdf5"]
_ZARR = ("auto", "zarr", "arco", "wb2")
_LEAD = ("prediction_timedelta", "lead_time", "step")
_HDF = b"\x89HDF"
_MAGIC = {b"GRIB": "grib", _HDF: "netcdf", b"CDF\x01": "netcdf", b"CDF\x02": "netcdf", b"CDF\x05": "netcdf"}


@dataclass(frozen=True, kw_only=True)
class Access:
    """How `open_source` opens: its arguments of the same names."""

    kind: Kind = "auto"
    remote: Remote | None = None
    lead: LeadLike | None = None
    era5t: bool = False
    missing_chunks: Literal["error", "fill"] = "error"
    hdf5: YearlyHdf5 | None = None


@dataclass(frozen=True)
class Opened:
    """Datasets and what they were opened from.

    Attributes:
        datasets: one, or several of which each has its own dimensions (GRIB).
        origin: name for messages and provenance.
        validity: days that hold data, for ARCO-ERA5.
        is_zarr: reading may meet damaged chunks.
        traffic: of remote data.
        in_flight: reads that may run at a time.
    """

    datasets: list[xr.Dataset]
    origin: str
    validity: Validity | None = None
    is_zarr: bool = False
    traffic: TrafficCounter | None = None
    in_flight: int = 1


def open_any(data: Any, access: Access) -> Opened:
    """Open an xarray object, a Zarr store, a path or a URL.

    Raises:
        SourceError: it is not there, or its format is not understood.
        ImportError: the reader of the format is not installed.
    """
    if access.kind not in (*_ZARR, "netcdf", "grib", "hdf5"):
        raise ValueError(
            f"kind must be one of auto, arco, wb2, zarr, netcdf, grib, hdf5; got {access.kind!r}"
        )
    if isinstance(data, xr.DataArray):
        data = data.to_dataset(name=data.name or "data")
    if isinstance(data, xr.Dataset):
        return _refine(Opened([data], "memory"), access)
    if isinstance(data, str) and is_url(data):
        if access.kind not in _ZARR:
            raise ValueError(f"{data}: only Zarr is read from URLs; download {access.kind} files first")
        return _open_zarr(data, access)
    if not isinstance(data, (str, Path)):
        return _open_zarr(data, access)
    if access.remote is not None:
        raise ValueError(f"remote= is for URLs; {data} is a local path")
    return _open_path(Path(data), access)


def _open_path(path: Path, access: Access) -> Opened:
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    kind = _kind(path) if access.kind == "auto" else access.kind
    if kind in _ZARR:
        return _open_zarr(path, access)
    openers: dict[str, Callable[[Path], list[xr.Dataset]]] = {
        "netcdf": _open_netcdf,
        "grib": _open_grib,
        "hdf5": lambda path: [open_yearly(path, access.hdf5 or YearlyHdf5())],
    }
    return _refine(Opened(openers[kind](path), path.name), access)


def _open_zarr(data: Any, access: Access) -> Opened:
    from wx_data._zarr_store import open_zarr  # imports zarr, which takes a while

    with _real_dates(str(data)):
        found = open_zarr(data, access.remote, access.missing_chunks, careful=access.era5t)
    _check_kind(access.kind, found.dataset, found.name)
    opened = Opened([found.dataset], found.name, is_zarr=True)
    if found.remote is not None:
        opened = replace(opened, traffic=found.remote.traffic, in_flight=found.remote.remote.requests)
    return _refine(opened, access)


def _refine(opened: Opened, access: Access) -> Opened:
    """`opened` at one lead time, and on the days that hold data."""
    datasets = [_at_lead(dataset, access.lead, opened.origin) for dataset in opened.datasets]
    validity = Validity.of(datasets[0].attrs) if len(datasets) == 1 else None
    if validity is not None:
        datasets = [hourly_windows(validity.clip(datasets[0], era5t=access.era5t))]
    elif access.era5t:
        raise SourceError(f"{opened.origin}: era5t=True needs the attribute valid_time_stop_era5t")
    return replace(opened, datasets=datasets, validity=validity)


def _at_lead(dataset: xr.Dataset, lead: LeadLike | None, origin: str) -> xr.Dataset:
    """Forecasts of one lead time, on their valid times."""
    name = next((name for name in _LEAD if name in dataset.coords), None)
    has_valid_time = "valid_time" in dataset.coords
    if name is None or (lead is None and has_valid_time):
        if lead is not None:
            raise SourceError(
                f"{origin}: lead={lead!r} was asked for, but there is no coordinate of lead times"
            )
        return dataset
    leads = [lead_hours(value) for value in np.atleast_1d(dataset[name].values)]
    wanted = lead_hours(lead) if lead is not None else leads[0]
    if wanted not in leads or (lead is None and name in dataset.dims):
        raise SourceError(
            f"{origin} holds forecasts with lead times ({name}) of {leads} h; choose one with lead=, "
            f"got {lead!r}"
        )
    if name in dataset.dims:
        dataset = dataset.isel({name: leads.index(wanted)})
    if not has_valid_time:
        dataset = dataset.assign_coords(time=dataset["time"] + np.timedelta64(wanted, "h"))
    return dataset


def _kind(path: Path) -> str:
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")):
            return "zarr"
        if yearly_files(path):
            return "hdf5"
        found = sorted(entry.name for entry in path.iterdir())[:8]
        raise SourceError(
            f"{path} is not a Zarr store: no zarr.json, .zgroup or .zmetadata; nor a folder of yearly HDF5 "
            f"files; found {found}"
        )
    with open(path, "rb") as file:
        start = file.read(4)
    if start not in _MAGIC:
        raise SourceError(f"{path} is neither NetCDF nor GRIB: it begins with {start!r}")
    return "hdf5" if start == _HDF and holds_fields(path) else _MAGIC[start]


def _open_netcdf(path: Path) -> list[xr.Dataset]:
    try:
        with _real_dates(path.name):
            return [xr.open_dataset(path, decode_timedelta=True)]
    except SourceError:
        raise
    except (ImportError, ValueError) as error:
        if isinstance(error, ValueError) and "backends" not in str(error):
            raise SourceError(f"{path.name}: {error}") from error
        raise ImportError(f"{path}: reading NetCDF needs a backend; pip install 'wx-data[netcdf]'") from error


@contextmanager
def _real_dates(origin: str) -> Iterator[None]:
    """Say what to do about a calendar that xarray refuses to decode."""
    try:
        yield
    except ValueError as error:
        found = re.search(r"calendar '(\w+)'", str(error))
        if isinstance(error, SourceError) or found is None:
            raise
        refuse_calendar(found[1], origin, error)
        raise


def refuse_calendar(calendar: str, origin: str, cause: Exception | None = None) -> None:
    """Refuse the calendar of a climate model, whose dates are not those of the world.

    Raises:
        SourceError: any calendar but the standard one.
    """
    if calendar not in ("", "standard", "gregorian", "proleptic_gregorian"):
        raise SourceError(
            f"{origin}: the times have the calendar {calendar!r}, the standard one is expected. Install "
            "cftime, and pass xr.open_dataset(...).convert_calendar('standard', align_on='date') to "
            "open_source: dates that one of the two calendars lacks are then absent"
        ) from cause


def _open_grib(path: Path) -> list[xr.Dataset]:
    try:
        import cfgrib
    except ImportError as error:
        raise ImportError(f"{path}: reading GRIB needs cfgrib; pip install 'wx-data[grib]'") from error
    datasets: list[xr.Dataset] = cfgrib.open_datasets(
        str(path), backend_kwargs={"indexpath": ""}, decode_timedelta=True
    )
    return state_windows(path, datasets)


def _check_kind(kind: Kind, dataset: xr.Dataset, name: str) -> None:
    is_arco = Validity.of(dataset.attrs) is not None
    if kind == "arco" and not is_arco:
        raise SourceError(
            f"{name} is not ARCO-ERA5: attributes valid_time_start and valid_time_stop are absent"
        )
    if kind == "wb2" and is_arco:
        raise SourceError(
            f"{name} is ARCO-ERA5, not WeatherBench 2: it has the attribute valid_time_stop; pass kind='arco'"
        )
