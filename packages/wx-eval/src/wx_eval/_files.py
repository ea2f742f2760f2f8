"""Files to datasets with one set of names for dims, channels and times."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._dims import UNIT_SECONDS, standard_names

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


def open_dataset(path: str, section: str) -> xr.Dataset:
    """The one dataset at a path.

    Raises:
        FileNotFoundError, ValueError: see `open_datasets`, and for several datasets.
    """
    found = open_datasets([path])
    if len(found) > 1:
        raise ValueError(f"[{section}] needs one file, {path} has {len(found)} of one kind of field")
    return found[0][1]


def short_name(variable: str) -> str:
    """Usual short name of a variable, such as t2m of "2m_temperature"."""
    return _SHORT.get(variable, variable)


@dataclass(frozen=True)
class Field:
    """A channel of a dataset.

    Attributes:
        channel: name.
        unit: "" when not stated.
        variable: that holds it.
        dim: along which the variable holds several channels, "" when it holds one.
        place: position along it.
    """

    channel: str
    unit: str
    variable: str
    dim: str = ""
    place: int = 0


def channel_fields(dataset: xr.Dataset) -> Iterator[Field]:
    """Every channel: one per variable, level and entry along `channel`."""
    for variable in map(str, dataset.data_vars):
        array = dataset[variable]
        if array.dtype.kind not in "fiu" or not array.dims:
            continue
        short, unit = short_name(variable), str(array.attrs.get("units", ""))
        if "channel" in array.dims:
            stated = array.coords.get("units")
            units = stated.values if stated is not None and stated.dims == ("channel",) else ()
            for k, name in enumerate(array["channel"].values):
                own = str(units[k]) if len(units) else ""
                yield Field(str(name), own or unit, variable, "channel", k)
        elif "level" not in array.coords:
            yield Field(short, unit, variable)
        else:
            levels = _hectopascals(array["level"])
            dim = "level" if levels.ndim else ""
            for k, level in enumerate(np.atleast_1d(levels)):
                yield Field(f"{short}{level:g}", unit, variable, dim, k)


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
        if engine == "zarr":
            # A store lists its variables in any order.
            raw = raw[sorted(raw.data_vars, key=str)]
        return [xr.decode_cf(_common_years(raw), mask_and_scale=False, decode_timedelta=False)]
    except ImportError as error:
        raise ValueError(f"{path} needs a reader that is not installed: {error}") from error
    except (ValueError, OSError) as error:
        # xarray's text lists every engine it knows over several lines.
        why = (str(error).splitlines() or [""])[0]
        if "did not find a match" in why:
            why = "it is neither netCDF, zarr nor GRIB, or the reader of its format is not installed"
        if "No group found" in why or (isinstance(error, FileNotFoundError) and Path(path).is_dir()):
            why = (
                f'the folder holds no zarr; name files in it by a pattern, such as "{path.rstrip("/")}/*.nc"'
            )
        raise ValueError(f"cannot read {path}: {why.partition('. To install')[0]}") from error


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
        total = np.round(variable.values * UNIT_SECONDS[unit.strip().lower()]).astype(np.int64) + passed
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
    length = (years + np.timedelta64(1, "Y")).astype("datetime64[D]") - years.astype("datetime64[D]")
    return np.asarray(length == np.timedelta64(366, "D"))


def _hectopascals(level: xr.DataArray) -> npt.NDArray[np.float64]:
    try:
        values = np.asarray(level.values, np.float64)
    except ValueError:
        raise ValueError(f"levels must be pressures, got {level.values.ravel()[0]!s} among them") from None
    return values / 100 if str(level.attrs.get("units", "")).strip() == "Pa" else values


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name and rename it: whoever is stopped leaves the old one as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    write(unfinished)
    os.replace(unfinished, path)
