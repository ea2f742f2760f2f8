"""Files to datasets with one set of names for dims, channels and times."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._fields import seconds

ALIASES = {
    "init_time": ("initial_time", "forecast_reference_time", "initialization_time", "reftime"),
    "lead_time": ("prediction_timedelta", "step", "forecast_period", "leadtime", "lead"),
    "valid_time": ("validity_time",),
    "member": ("number", "realization", "ensemble", "sample", "member_id", "ensemble_member"),
    "latitude": ("lat",),
    "longitude": ("lon",),
    "level": ("isobaricInhPa", "pressure_level", "plev", "pressure", "lev", "isobaricInPa"),
}
_SHORT = {
    "geopotential": "z",
    "temperature": "t",
    "u_component_of_wind": "u",
    "v_component_of_wind": "v",
    "vertical_velocity": "w",
    "specific_humidity": "q",
    "relative_humidity": "r",
    "2m_temperature": "t2m",
    "2m_dewpoint_temperature": "d2m",
    "10m_u_component_of_wind": "u10",
    "10m_v_component_of_wind": "v10",
    "mean_sea_level_pressure": "msl",
    "surface_pressure": "sp",
    "sea_surface_temperature": "sst",
    "total_precipitation": "tp",
}
_STEPS = {
    "ns": 1e-9,
    "nanoseconds": 1e-9,
    "s": 1,
    "seconds": 1,
    "minutes": 60,
    "h": 3600,
    "hour": 3600,
    "hours": 3600,
    "d": 86400,
    "days": 86400,
}
_COMMON_YEAR = ("noleap", "365_day")


def open_datasets(paths: Sequence[str], engine: str | None = None) -> list[tuple[str, xr.Dataset]]:
    """Open files, folders of zarr and patterns with their names made uniform; nothing is read but axes.

    Raises:
        FileNotFoundError: for a path or a pattern that matches nothing.
        ValueError: for a file that none of the installed readers takes.
    """
    found = []
    for path in _expand(paths):
        for dataset in _open(path, engine):
            found.append((path, standard_names(dataset)))
    return found


def standard_names(dataset: xr.Dataset) -> xr.Dataset:
    """Rename the usual synonyms of dims and coordinates."""
    renames = {}
    for name, synonyms in ALIASES.items():
        known = set(map(str, dataset.dims)) | set(map(str, dataset.coords))
        # forecast_period and its kin may be data variables in files without a "coordinates" attribute.
        known |= {str(v) for v in dataset.data_vars if str(v) in synonyms and dataset[v].ndim <= 1}
        present = [s for s in synonyms if s in known]
        if name not in known and present:
            renames[present[0]] = name
    dataset = dataset.rename(renames)
    return dataset.set_coords([n for n in ALIASES if n in dataset.data_vars and dataset[n].ndim <= 1])


def short_name(variable: str) -> str:
    """Usual short name of a variable, such as t2m of "2m_temperature"."""
    return _SHORT.get(variable, variable)


def channel_fields(dataset: xr.Dataset) -> Iterator[tuple[str, str, xr.DataArray]]:
    """Name, unit and lazy array of every channel: one per variable, level and entry along `channel`."""
    for variable in map(str, dataset.data_vars):
        array = dataset[variable]
        if array.dtype.kind not in "fiu" or not array.dims:
            continue
        if "channel" in array.dims:
            units = array.coords.get("units")
            for k, name in enumerate(array["channel"].values):
                unit = str(units.values[k]) if units is not None and units.dims == ("channel",) else ""
                yield str(name), unit or str(array.attrs.get("units", "")), array.isel(channel=k, drop=True)
            continue
        short, unit = short_name(variable), str(array.attrs.get("units", ""))
        if "level" not in array.coords:
            yield short, unit, array
            continue
        levels = _hectopascals(array["level"])
        for k, level in enumerate(np.atleast_1d(levels)):
            yield f"{short}{level:g}", unit, array.isel(level=k, drop=True) if levels.ndim else array


def lead_seconds(lead: xr.DataArray) -> npt.NDArray[np.timedelta64]:
    """Lead times of a coordinate, from their dtype or the unit it states.

    Raises:
        ValueError: for plain numbers without a unit.
    """
    values = lead.values
    if values.dtype.kind == "m":
        return seconds(values)
    scale = _STEPS.get(str(lead.attrs.get("units", "")).strip().lower())
    if scale is None:
        raise ValueError(
            "the lead times are plain numbers without a unit: give that coordinate the attribute "
            'units = "hours", or the dtype timedelta64'
        )
    whole: npt.NDArray[np.timedelta64] = np.round(values * scale).astype("timedelta64[s]")
    return whole


def _expand(paths: Sequence[str]) -> list[str]:
    out: list[str] = []
    for path in paths:
        if "://" in path or Path(path).exists():
            out.append(path)
            continue
        matches = sorted(glob.glob(path))
        if not matches:
            raise FileNotFoundError(f"no file {path!r}")
        out += matches
    return list(dict.fromkeys(out))


def _open(path: str, engine: str | None) -> list[xr.Dataset]:
    if engine is None:
        engine = _guess(path)
    if engine == "cfgrib":
        return _open_grib(path)
    options: dict[str, Any] = {"consolidated": _consolidated(path)} if engine == "zarr" else {}
    try:
        # Lead times stay numbers, so that a field in hours does not turn into a duration with them.
        raw = xr.open_dataset(path, engine=engine, decode_times=False, decode_timedelta=False, **options)
        return [xr.decode_cf(_common_years(raw), mask_and_scale=False, decode_timedelta=False)]
    except ImportError as error:
        raise ValueError(f"{path} needs a reader that is not installed: {error}") from error
    except ValueError as error:
        # xarray's text lists every engine it knows over several lines.
        raise ValueError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _consolidated(path: str) -> bool | None:
    """Whether a local store keeps the metadata of all its arrays in one place; None when it is not local."""
    folder = Path(path)
    if not folder.is_dir():
        return None
    one = folder / "zarr.json"
    listed = one.exists() and '"consolidated_metadata": {' in one.read_text()
    return listed or (folder / ".zmetadata").exists()


def _guess(path: str) -> str | None:
    """Engine from the content; None leaves the choice to xarray."""
    local = Path(path)
    if path.rstrip("/").endswith(".zarr") or local.is_dir():
        return "zarr"
    if "://" in path:
        return None
    with local.open("rb") as file:
        head = file.read(4)
    return "cfgrib" if head == b"GRIB" else None


def _open_grib(path: str) -> list[xr.Dataset]:
    try:
        import cfgrib
    except ImportError as error:
        raise ValueError(f"{path} is GRIB and needs cfgrib: pip install cfgrib eccodes") from error
    with warnings.catch_warnings():
        # cfgrib merges through an xarray default that is going to change.
        warnings.simplefilter("ignore", FutureWarning)
        found: list[xr.Dataset] = cfgrib.open_datasets(path, backend_kwargs={"indexpath": ""})
    return found


def _common_years(dataset: xr.Dataset) -> xr.Dataset:
    """Decode times of a calendar without leap days, all of which exist in the usual calendar."""
    for name in list(dataset.variables):
        variable = dataset[name]
        if variable.attrs.get("calendar") not in _COMMON_YEAR or "since" not in variable.attrs.get(
            "units", ""
        ):
            continue
        unit, _, origin = variable.attrs["units"].partition(" since ")
        start = np.datetime64(origin.strip().replace(" ", "T")[:19], "s")
        year = int(str(start.astype("datetime64[Y]")))
        passed = int((start - np.datetime64(f"{year}-01-01", "s")) / np.timedelta64(1, "s"))
        if _leap(np.array([year - 1970], "datetime64[Y]"))[0] and passed >= 60 * 86400:
            passed -= 86400
        total = np.round(variable.values * _STEPS[unit.strip().lower()]).astype(np.int64) + passed
        dataset = dataset.assign_coords({name: (variable.dims, _from_common(year, total))})
    return dataset


def _from_common(year: int, passed: npt.NDArray[np.int64]) -> npt.NDArray[np.datetime64]:
    """Times so many seconds after a 1 January, counted in years of 365 days."""
    years, rest = np.divmod(passed, 365 * 86400)
    starts = (years + year - 1970).astype("datetime64[Y]")
    days = rest // 86400
    days = days + (_leap(starts) & (days >= 59))
    whole = starts.astype("datetime64[D]") + days.astype("timedelta64[D]")
    out: npt.NDArray[np.datetime64] = (
        whole.astype("datetime64[s]") + (rest % 86400).astype("timedelta64[s]")
    ).astype("datetime64[ns]")
    return out


def _leap(years: npt.NDArray[np.datetime64]) -> npt.NDArray[np.bool_]:
    length = (years + 1).astype("datetime64[D]") - years.astype("datetime64[D]")
    return np.asarray(length == np.timedelta64(366, "D"))


def _hectopascals(level: xr.DataArray) -> npt.NDArray[np.float64]:
    values = np.asarray(level.values, np.float64)
    return values / 100 if str(level.attrs.get("units", "")).strip() == "Pa" else values
