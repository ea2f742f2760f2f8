"""Yearly HDF5 files of stacked fields, as SFNO and FourCastNet are trained on: `2018.h5`, `2019.h5`, ..."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from wx_data._channels import channels as lexicon
from wx_data._errors import SourceError
from wx_data._times import Hours, LeadLike, from_hours, lead_hours, show, to_hours

_YEAR = re.compile(r"(\d{4})\.(h5|hdf5)")
_SAID = ("timestamp", "channel", "lat", "lon", "valid_data")


@dataclass(frozen=True, kw_only=True)
class YearlyHdf5:
    """What yearly HDF5 files leave unsaid; what a file does say (channel, timestamp, lat, lon) wins.

    The fields are (time, channel, latitude, longitude) and carry no units: the channels' units in the lexicon
    are taken for granted, and the plausible ranges are checked at conversion. Where makani's `valid_data`
    (time, channel) is 0, the converter found nothing: the field reads as missing, and a time without any
    valid field is not offered.

    Attributes:
        channels: names in the order of the file.
        latitude, longitude: degrees of rows and columns, in either direction, from 0 or -180.
        step: hours between two steps.
        first_hour: hours from January 1st 00 UTC to a file's first step.
        times: file name -> valid times, for a year that is not whole.
        dataset: name of the dataset that holds the fields.
    """

    channels: Sequence[str] | None = None
    latitude: Any = None
    longitude: Any = None
    step: LeadLike | None = None
    first_hour: int = 0
    times: Mapping[str, Any] | None = None
    dataset: str = "fields"

    @classmethod
    def from_json(cls, path: str | Path) -> "YearlyHdf5":
        """From makani's `data.json`: `dhours`, `h5_path` and `coords` (lat, lon, channel)."""
        found = json.loads(Path(path).read_text())
        coords = found["coords"]
        return cls(
            channels=tuple(coords["channel"]),
            latitude=coords["lat"],
            longitude=coords["lon"],
            step=int(found["dhours"]),
            dataset=found.get("h5_path", "fields"),
        )


def yearly_files(path: Path) -> list[Path]:
    """The `YYYY.h5` files of a folder in order, or the one file given."""
    if path.is_file():
        return [path]
    return sorted(entry for entry in path.iterdir() if _YEAR.fullmatch(entry.name))


def holds_fields(path: Path) -> bool:
    """Whether an HDF5 file has a four-dimensional dataset `fields`: the layout of this module, not NetCDF."""
    try:
        import h5py
    except ImportError:
        return False
    with h5py.File(path, "r") as file:
        return "fields" in file and getattr(file["fields"], "ndim", 0) == 4


def open_yearly(path: Path, layout: YearlyHdf5) -> xr.Dataset:
    """All files as one lazy dataset (time, channel, latitude, longitude).

    Raises:
        SourceError: files of different shape, a length that does not fit the year, repeated times, or no
            valid field at all.
        ImportError: h5py is not installed.
    """
    files = yearly_files(path)
    if not files:
        raise SourceError(f"{path} holds no files named like 2018.h5")
    heads = [_read_head(file, layout) for file in files]
    first = heads[0]
    for head in heads[1:]:
        _same_layout(first, head)
    hours = np.concatenate([head.hours for head in heads])
    valid = np.concatenate([head.valid for head in heads])
    array = _FilesArray(files, layout.dataset, [head.hours.size for head in heads], first.shape, valid)
    units = [spec.units for spec in lexicon(first.channels)]
    dataset = xr.Dataset(
        {
            layout.dataset: (
                ("time", "channel", "latitude", "longitude"),
                indexing.LazilyIndexedArray(array),
            )
        },
        {
            "time": from_hours(hours),
            "channel": list(first.channels),
            "latitude": first.latitude,
            "longitude": first.longitude,
            "units": ("channel", units),
        },
    )
    there = np.flatnonzero(valid.any(axis=1))
    if not there.size:
        raise SourceError(f"{path}: valid_data is 0 for every time and channel")
    return dataset if there.size == len(valid) else dataset.isel(time=there)


@dataclass(frozen=True)
class _Head:
    path: Path
    hours: Hours
    channels: tuple[str, ...]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    valid: NDArray[np.bool_]  # (time, channel)

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.channels), self.latitude.size, self.longitude.size


def _read_head(path: Path, layout: YearlyHdf5) -> _Head:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path}: yearly HDF5 files need h5py; pip install 'wx-data[netcdf]'") from error
    try:
        with h5py.File(path, "r") as file:
            if layout.dataset not in file:
                raise SourceError(f"{path} has no dataset {layout.dataset!r}; it has {sorted(file)}")
            shape = file[layout.dataset].shape
            said = {name: file[name][()] for name in _SAID if name in file}
    except OSError as error:
        raise SourceError(f"{path} is not readable as HDF5, perhaps truncated: {error}") from error
    if len(shape) != 4:
        raise SourceError(
            f"{path}: {layout.dataset} has shape {shape}; (time, channel, latitude, longitude) is expected"
        )

    def coordinate(name: str, attribute: str) -> NDArray[np.float64]:
        value = said[name] if name in said else _stated(path, attribute, getattr(layout, attribute))
        return np.asarray(value, np.float64)

    names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in said.get("channel", ()))
    head = _Head(
        path,
        _hours(path, shape[0], said.get("timestamp"), layout),
        names or tuple(_stated(path, "channels", layout.channels)),
        coordinate("lat", "latitude"),
        coordinate("lon", "longitude"),
        np.asarray(said.get("valid_data", np.ones(shape[:2]))) != 0,
    )
    if shape[1:] != head.shape:
        raise SourceError(
            f"{path}: {layout.dataset} has {shape[1:]} channels, rows and columns, but {head.shape} are named"
        )
    if head.valid.shape != shape[:2]:
        raise SourceError(
            f"{path}: valid_data has shape {head.valid.shape}; (time, channel) = {shape[:2]} is expected"
        )
    return head


def _stated(path: Path, name: str, value: Any) -> Any:
    if value is None:
        raise SourceError(f"{path} does not say its {name}; pass hdf5=YearlyHdf5({name}=...)")
    return value


def _hours(path: Path, length: int, stamps: Any, layout: YearlyHdf5) -> Hours:
    """Valid times of a file: given by the caller, read from the file, or the steps of its whole year."""
    given = (layout.times or {}).get(path.name)
    if given is not None:
        hours = to_hours(given)
    elif stamps is not None:
        hours = to_hours(np.round(np.asarray(stamps, np.float64) * 1e9).astype("datetime64[ns]"))
    else:
        hours = _whole_year(path, length, layout)
    if hours.size != length:
        raise SourceError(f"{path} has {length} steps, but {hours.size} times are given for it")
    return hours


def _whole_year(path: Path, length: int, layout: YearlyHdf5) -> Hours:
    found = _YEAR.fullmatch(path.name)
    if found is None:
        raise SourceError(
            f"{path} is not named by its year; pass hdf5=YearlyHdf5(times={{{path.name!r}: ...}})"
        )
    year = int(found[1])
    step = lead_hours(_stated(path, "step", layout.step))
    first, last = (int(np.datetime64(f"{y}-01-01", "h").astype(np.int64)) for y in (year, year + 1))
    hours = np.arange(first + layout.first_hour, last, step, dtype=np.int64)
    if hours.size != length:
        days = (last - first) // 24
        raise SourceError(
            f"{path} has {length} steps, but the {days} days of {year} are {hours.size} steps of {step} h "
            f"from {show(from_hours(hours[0]))}: its times cannot be told. Pass "
            f"hdf5=YearlyHdf5(times={{{path.name!r}: its valid times}})"
        )
    return hours


def _same_layout(first: _Head, other: _Head) -> None:
    for name in ("channels", "latitude", "longitude"):
        if not np.array_equal(getattr(first, name), getattr(other, name)):
            raise SourceError(f"{other.path} has another {name} than {first.path}; open them separately")


class _FilesArray(BackendArray):
    """Fields of several files joined along time; a read opens the files it needs, one after another."""

    def __init__(
        self,
        paths: list[Path],
        dataset: str,
        lengths: list[int],
        shape: tuple[int, int, int],
        valid: NDArray[np.bool_],
    ) -> None:
        self.paths, self.dataset, self.valid = paths, dataset, valid
        self.starts = np.concatenate(([0], np.cumsum(lengths)))
        self.shape = (int(self.starts[-1]), *shape)
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[np.float32]:
        import h5py

        picks = [np.arange(n)[part] for n, part in zip(self.shape[:2], key[:2], strict=True)]
        steps, names = (np.atleast_1d(pick) for pick in picks)
        rows, columns = key[2:]
        out: NDArray[np.float32] = np.empty((steps.size, names.size, *self.shape[2:]), self.dtype)
        files = np.searchsorted(self.starts, steps, side="right") - 1
        for number in np.unique(files):
            with h5py.File(self.paths[number], "r") as file:
                data = file[self.dataset]
                for place in np.flatnonzero(files == number):
                    _read_step(data, int(steps[place] - self.starts[number]), names, out[place])
        out[~self.valid[steps][:, names]] = np.nan
        out = out[:, :, rows][..., columns]
        leading = tuple(0 if np.ndim(pick) == 0 else slice(None) for pick in picks)
        return out[leading]


def _read_step(data: Any, step: int, names: NDArray[np.intp], out: NDArray[np.float32]) -> None:
    """One request for neighbouring channels: HDF5 is slow at lists of indices."""
    for run in np.split(np.arange(names.size), np.flatnonzero(np.diff(names) != 1) + 1):
        first, last = int(names[run[0]]), int(names[run[-1]])
        out[run[0] : run[-1] + 1] = data[step, first : last + 1]
