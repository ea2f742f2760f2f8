"""Arrays that are filled piece by piece: in memory, in a zarr store or in a netCDF file."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ._grid import Array

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Variable:
    """One array.

    Attributes:
        dims: names of its axes.
        shape: their sizes.
        piece: shape of what is written at a time.
        dtype: of its numbers.
        unit: "" without one.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    piece: tuple[int, ...]
    dtype: np.dtype[Any]
    unit: str

    @property
    def attributes(self) -> dict[str, Any]:
        """Its unit."""
        return {"units": self.unit} if self.unit else {}

    @property
    def chunks(self) -> tuple[int, ...]:
        """Pieces cut along days, which one field is read from, to a few MB."""
        day = self.dims.index("dayofyear")
        rest = [1 if k < day else size for k, size in enumerate(self.piece) if k != day]
        size = int(np.prod(rest)) * self.dtype.itemsize
        days = int(np.clip(_CHUNK_BYTES // max(size, 1), 1, self.shape[day]))
        return (*rest[:day], days, *rest[day:])


class Store(ABC):
    """Where variables are written, and which pieces are there already."""

    @abstractmethod
    def write(self, name: str, index: tuple[Any, ...], values: Array) -> None:
        """Set a part of a variable."""

    def holds(self, piece: str) -> bool:
        """Whether an earlier attempt finished this piece."""
        del piece
        return False

    def finish(self, piece: str) -> None:
        """Note that a piece is complete."""
        del piece


class Memory(Store):
    """Arrays in memory."""

    def __init__(self, variables: Mapping[str, Variable]) -> None:
        self._variables = variables
        self._arrays = {name: np.empty(v.shape, v.dtype) for name, v in variables.items()}

    def write(self, name: str, index: tuple[Any, ...], values: Array) -> None:
        """See `Store.write`."""
        self._arrays[name][index] = values

    def dataset(self, frame: xr.Dataset) -> xr.Dataset:
        """All arrays with the coordinates and attributes of a frame."""
        arrays = {n: (v.dims, self._arrays[n], v.attributes) for n, v in self._variables.items()}
        return frame.assign(arrays)


class _Zarr(Store):
    """Arrays in a folder; `progress.json` beside them tells the pieces that are complete."""

    def __init__(self, group: Any, folder: Path, key: str, done: list[str]) -> None:
        self._group, self._path, self._key, self._done = group, folder / _PROGRESS, key, done

    def write(self, name: str, index: tuple[Any, ...], values: Array) -> None:
        """See `Store.write`."""
        self._group[name][index] = values

    def holds(self, piece: str) -> bool:
        """See `Store.holds`."""
        return piece in self._done

    def finish(self, piece: str) -> None:
        """See `Store.finish`."""
        self._done.append(piece)
        unfinished = self._path.with_suffix(".new")
        unfinished.write_text(json.dumps({"key": self._key, "done": self._done}))
        os.replace(unfinished, self._path)


class _NetCDF(Store):
    """Arrays in one file."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, name: str, index: tuple[Any, ...], values: Array) -> None:
        """See `Store.write`."""
        self._file.variables[name][index] = values


_PROGRESS = "progress.json"


@contextmanager
def written(
    path: str | os.PathLike[str], frame: xr.Dataset, variables: Mapping[str, Variable], key: str
) -> Iterator[Store]:
    """A store that appears under its name when everything is in it.

    Until then it has another name beside it, ".<name>.unfinished". A zarr folder of that name goes on where
    it was stopped, if `key` is the same; a netCDF file starts again.

    Args:
        path: a folder that ends in .zarr, or a netCDF file.
        frame: coordinates and attributes.
        variables: all arrays by name.
        key: of everything that decides on their content.
    """
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.unfinished")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".zarr":
        store = _zarr(unfinished, frame, variables, key)
        yield store
        (unfinished / _PROGRESS).unlink(missing_ok=True)
        _consolidate(unfinished)
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.replace(target, old)
        os.replace(unfinished, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        with _netcdf(unfinished, frame, variables) as opened:
            yield opened
        os.replace(unfinished, target)


def _zarr(folder: Path, frame: xr.Dataset, variables: Mapping[str, Variable], key: str) -> _Zarr:
    try:
        import zarr
    except ImportError as error:
        raise ImportError("a folder of zarr needs zarr: pip install wx-eval[zarr]") from error
    found = folder / _PROGRESS
    kept = json.loads(found.read_text()) if found.exists() else {}
    if kept.get("key") == key:
        return _Zarr(zarr.open_group(str(folder), mode="r+"), folder, key, kept["done"])
    shutil.rmtree(folder, ignore_errors=True)
    frame.to_zarr(folder, mode="w", consolidated=False, zarr_format=3)
    group = zarr.open_group(str(folder), mode="r+")
    for name, v in variables.items():
        group.create_array(
            name,
            shape=v.shape,
            chunks=v.chunks,
            dtype=v.dtype,
            fill_value=np.nan,
            attributes=v.attributes,
            dimension_names=v.dims,
        )
    return _Zarr(group, folder, key, [])


def _consolidate(folder: Path) -> None:
    """Gather the metadata of all arrays, without which xarray warns."""
    import zarr

    with warnings.catch_warnings():
        # That this is no part yet of the text of format 3.
        warnings.simplefilter("ignore", UserWarning)
        zarr.consolidate_metadata(str(folder))


@contextmanager
def _netcdf(file: Path, frame: xr.Dataset, variables: Mapping[str, Variable]) -> Iterator[_NetCDF]:
    try:
        import h5netcdf
    except ImportError as error:
        raise ImportError("a netCDF file needs h5netcdf: pip install wx-eval[netcdf]") from error
    file.unlink(missing_ok=True)
    frame.to_netcdf(file, engine="h5netcdf")
    with h5netcdf.File(file, "r+") as opened:
        for v in variables.values():
            for dim, size in zip(v.dims, v.shape, strict=True):
                if dim not in opened.dimensions:
                    opened.dimensions[dim] = size
        for name, v in variables.items():
            made = opened.create_variable(name, v.dims, v.dtype, fillvalue=v.dtype.type(np.nan))
            made.attrs.update(v.attributes)
        yield _NetCDF(opened)
