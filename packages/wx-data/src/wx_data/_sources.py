"""Opening what others wrote: Zarr, NetCDF, GRIB or an xarray object, as a `Source`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._channels import Channel, channel
from wx_data._channels import channels as lexicon
from wx_data._errors import SourceError
from wx_data._grid import Grid, Reorder, regrid, reorder
from wx_data._humidity import specific_humidity
from wx_data._matching import LATITUDE, LONGITUDE, MEMBER, Match, explain, match, one_of, present
from wx_data._store import field_array
from wx_data._times import Hours, from_hours, show, to_hours
from wx_data._zarr3 import read_group

Kind = Literal["auto", "zarr", "netcdf", "grib"]
Fill = Mapping[str, float | NDArray[Any]]
_STATICS = ("z_surface", "lsm")
_MAGIC = {
    b"GRIB": "grib",
    b"\x89HDF": "netcdf",
    b"CDF\x01": "netcdf",
    b"CDF\x02": "netcdf",
    b"CDF\x05": "netcdf",
}


def open_source(
    data: str | Path | xr.Dataset | xr.DataArray,
    kind: Kind = "auto",
    *,
    channels: str | Sequence[str] | None = None,
    grid: Grid | None = None,
    member: int | None = None,
    fill: Fill | None = None,
    derive: Mapping[str, str] | None = None,
) -> "DatasetSource":
    """Open local data as a source of lexicon channels, on its own grid or regridded to `grid`.

    Dimensions are found by name, levels and times must match exactly, and units are parsed and converted.
    Latitude may run either way and longitude from -180 or from 0. What a file lacks is an error that lists
    everything missing, unless the caller decides otherwise through `fill` or `derive`.

    Args:
        data: folder of a Zarr store (format 2 or 3), NetCDF or GRIB file, or an xarray object.
        kind: "auto" looks at the content, never at the name.
        channels: names or a preset; by default every channel of the lexicon that is there.
        grid: target of bilinear regridding.
        member: number of the ensemble member, where there are several.
        fill: channel -> constant or (H, W) field on the final grid, for channels that are not there;
            recorded in `provenance` and in every array read.
        derive: variable -> how, for channels that are not there. {"q": "relative_humidity"} computes
            specific humidity from r and t of the same level.

    Raises:
        SourceError: missing channels, wrong units, several members, or a format that is not understood.
        ImportError: the reader of the format is not installed; the extra is named.
    """
    datasets, origin = _open(data, kind)
    datasets = [_select_member(dataset, member) for dataset in datasets]
    names = present(datasets) if channels is None else tuple(c.name for c in lexicon(channels))
    fills, rules = dict(fill or {}), dict(derive or {})
    if rules and rules != {"q": "relative_humidity"}:
        raise ValueError(f'derive knows {{"q": "relative_humidity"}}; got {rules}')
    readers = _plan(names, datasets, fills, rules, origin)
    # Filled channels alone have no file behind them: the first dataset then gives times and grid.
    used = sorted({m.dataset for r in readers.values() for m in r.matches}) or [0]
    axis, order = _common_axes([datasets[number] for number in used])
    provenance: dict[str, Any] = {"source": origin}
    if member is not None:
        provenance["member"] = member
    for label, chosen in (("filled", _Filled), ("derived", _Derived)):
        listed = {name: r.describe() for name, r in readers.items() if isinstance(r, chosen)}
        if listed:
            provenance[label] = listed
    if grid is not None and grid != order.grid:
        provenance["regridded_from"] = f"{order.grid.shape[0]} x {order.grid.shape[1]}, {order.grid.digest}"
    frame = _Frame(axis, order, grid or order.grid)
    return DatasetSource(readers, frame, _read_statics(datasets, frame), provenance)


class DatasetSource:
    """Lexicon channels of xarray datasets; made by `open_source`.

    Attributes:
        channels: names that can be read.
        times: ``datetime64[ns]``, strictly increasing.
        grid: of what `read` returns.
        statics: name -> (H, W) float32, of `z_surface` and `lsm` what is there.
        provenance: where the data come from and what was filled or derived, as JSON data.
    """

    def __init__(
        self,
        readers: Mapping[str, "_Reader"],
        frame: "_Frame",
        statics: dict[str, NDArray[np.float32]],
        provenance: dict[str, Any],
    ) -> None:
        self._readers, self._frame = readers, frame
        self.channels = tuple(readers)
        self.times: NDArray[np.datetime64] = from_hours(frame.axis.hours)
        self.grid = frame.grid
        self.statics, self.provenance = statics, provenance

    def __repr__(self) -> str:
        first, last = show(self.times[0]), show(self.times[-1])
        rows, columns = self.grid.shape
        return (
            f"DatasetSource({self.provenance['source']!r}: {len(self.times)} times {first}..{last}, "
            f"{len(self.channels)} channels, {rows} x {columns})"
        )

    def read(self, times: Any, channels: Sequence[str] | None = None) -> xr.DataArray:
        """float32 (time, channel, latitude, longitude) at exactly `times`; all channels by default.

        Raises:
            SourceError: a time or channel that is not there.
        """
        names = self.channels if channels is None else tuple(channels)
        absent = [name for name in names if name not in self._readers]
        if absent:
            raise SourceError(f"this source was opened without {', '.join(absent)}; it has {self.channels}")
        rows = self._frame.axis.rows(times)
        values = np.empty((len(rows), len(names), *self.grid.shape), dtype=np.float32)
        loaded: dict[tuple[int, str], NDArray[np.float32]] = {}
        groups = _groups([m for name in names for m in self._readers[name].matches])
        for group in groups:
            fields = self._frame.load(group, rows)
            for place, found in enumerate(group):
                loaded[found.dataset, found.spec.name] = fields[:, place]
        for place, name in enumerate(names):
            reader = self._readers[name]
            values[:, place] = reader.value([loaded[m.dataset, m.spec.name] for m in reader.matches])
        array = field_array(values, self.times[rows], names, self.grid)
        array.attrs = {key: v for key, v in self.provenance.items() if key in ("filled", "derived")}
        return array


@dataclass(frozen=True)
class _Reader:
    """A channel as it stands in the file."""

    matches: tuple[Match, ...]

    def value(self, fields: list[NDArray[np.float32]]) -> Any:
        return fields[0]

    def describe(self) -> str:
        return str(self.matches[0].array.name)


@dataclass(frozen=True)
class _Filled(_Reader):
    fill: NDArray[np.float32]

    def value(self, fields: list[NDArray[np.float32]]) -> Any:  # noqa: ARG002
        return self.fill

    def describe(self) -> str:
        return f"constant {float(self.fill)}" if self.fill.ndim == 0 else "field given by the caller"


@dataclass(frozen=True)
class _Derived(_Reader):
    pressure: float

    def value(self, fields: list[NDArray[np.float32]]) -> Any:
        relative, temperature = (field.astype(np.float64) for field in fields)
        return specific_humidity(relative, temperature, self.pressure)

    def describe(self) -> str:
        return "specific humidity from " + " and ".join(m.spec.name for m in self.matches)


def _plan(
    names: Sequence[str],
    datasets: list[xr.Dataset],
    fills: dict[str, float | NDArray[Any]],
    rules: dict[str, str],
    origin: str,
) -> dict[str, _Reader]:
    readers: dict[str, _Reader] = {}
    lacking: list[Channel] = []
    for name in names:
        spec = channel(name)
        found = match(spec, datasets)
        derived = _derive(spec, datasets) if found is None and spec.variable in rules else None
        if found is not None:
            readers[name] = _Reader((found,))
        elif derived is not None:
            readers[name] = derived
        elif name in fills:
            readers[name] = _Filled((), np.asarray(fills[name], dtype=np.float32))
        else:
            lacking.append(spec)
    if lacking:
        raise SourceError(_lacking_message(lacking, len(names), datasets, origin))
    idle = [name for name in fills if not isinstance(readers.get(name), _Filled)]
    if idle:
        raise SourceError(
            f"fill: {', '.join(idle)} would be ignored, since {origin} has them or nobody asked"
        )
    if not readers:
        raise SourceError(f"{origin}: no channel of the lexicon found; variables: {_variables(datasets)}")
    return readers


def _derive(spec: Channel, datasets: list[xr.Dataset]) -> _Derived | None:
    if spec.level is None:
        return None
    parts = [match(channel(f"{variable}{spec.level}"), datasets) for variable in "rt"]
    found = tuple(part for part in parts if part is not None)
    return _Derived(found, 100.0 * spec.level) if len(found) == 2 else None


def _lacking_message(lacking: list[Channel], total: int, datasets: list[xr.Dataset], origin: str) -> str:
    lines = [f"{origin} lacks {len(lacking)} of {total} channels:"]
    lines += [f"  {explain(spec, datasets)}" for spec in lacking]
    if any(spec.variable == "q" and _derive(spec, datasets) for spec in lacking):
        lines.append('derive={"q": "relative_humidity"} computes specific humidity from r and t.')
    lines.append("fill={name: constant or field} supplies a channel on your own decision; it is recorded.")
    return "\n".join(lines)


def _variables(datasets: list[xr.Dataset]) -> str:
    return ", ".join(str(name) for dataset in datasets for name in dataset.data_vars)


@dataclass(frozen=True)
class _TimeAxis:
    """Valid times, and where each lies along the dimensions that make up time."""

    hours: Hours
    index: Mapping[str, NDArray[np.intp]]

    def rows(self, times: Any) -> NDArray[np.intp]:
        wanted = np.atleast_1d(to_hours(times))
        places = np.searchsorted(self.hours, wanted).clip(max=len(self.hours) - 1)
        absent = self.hours[places] != wanted
        if absent.any():
            first, last = show(from_hours(self.hours[0])), show(from_hours(self.hours[-1]))
            raise SourceError(
                f"{int(absent.sum())} of {wanted.size} times are not in the source, first "
                f"{show(from_hours(wanted[absent][0]))}; it has {len(self.hours)} times {first}..{last}"
            )
        return places

    def take(self, array: xr.DataArray, rows: NDArray[np.intp]) -> xr.DataArray:
        """`array` with the dimension `sample` in place of its time dimensions."""
        if not self.index:
            return array.expand_dims(sample=len(rows))
        if len(self.index) > 1:
            points = {dim: xr.DataArray(index[rows], dims="sample") for dim, index in self.index.items()}
            return array.isel(points)
        ((dim, index),) = self.index.items()
        chosen = index[rows]
        # A slice reads neighbouring steps in one request; a list asks for each one.
        even = len(chosen) > 0 and bool((np.diff(chosen) == 1).all())
        where = slice(int(chosen[0]), int(chosen[-1]) + 1) if even else chosen
        return array.isel({dim: where}).rename({dim: "sample"})


@dataclass(frozen=True)
class _Frame:
    axis: _TimeAxis
    order: Reorder
    grid: Grid

    def load(self, group: list[Match], rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """(T, len(group), H, W) of matches that share one variable."""
        array = group[0].array
        level = next(iter(group[0].pick), None)
        if level is not None:
            array = array.isel({level: [found.pick[level] for found in group]}).rename({level: "pick"})
        else:
            array = array.expand_dims(pick=1)
        array = self.axis.take(array, rows)
        values = self.place(array, ("sample", "pick"), wind=group[0].spec.wind)
        factor, offset = group[0].factor, group[0].offset
        return values if (factor, offset) == (1.0, 0.0) else (values * factor + offset).astype(np.float32)

    def place(self, array: xr.DataArray, leading: tuple[str, ...], *, wind: bool) -> NDArray[np.float32]:
        """Values (*leading, H, W) in the grid's order, regridded where asked."""
        latitude, longitude = one_of(LATITUDE, array.dims), one_of(LONGITUDE, array.dims)
        dims = (*leading, latitude, longitude)
        extra = [dim for dim in array.dims if dim not in dims]
        wide = [f"{dim} ({array.sizes[dim]})" for dim in extra if array.sizes[dim] > 1]
        if wide:
            raise SourceError(
                f"variable {array.name!r}: dimension {', '.join(wide)} is not understood; select with xarray "
                "and pass the dataset to open_source"
            )
        array = array.squeeze(extra, drop=True).transpose(*dims)
        return regrid(self.order(np.asarray(array.values)), self.order.grid, self.grid, wind=wind)


def _groups(matches: list[Match]) -> list[list[Match]]:
    """Matches that one read of a variable serves."""
    found: dict[tuple[int, str, float, tuple[str, ...]], list[Match]] = {}
    for entry in matches:
        key = (entry.dataset, str(entry.array.name), entry.factor, tuple(entry.pick))
        group = found.setdefault(key, [])
        if entry not in group:
            group.append(entry)
    return list(found.values())


def _common_axes(datasets: list[xr.Dataset]) -> tuple[_TimeAxis, Reorder]:
    axes = [_time_axis(dataset) for dataset in datasets]
    orders = [_order(dataset) for dataset in datasets]
    for axis, order in zip(axes[1:], orders[1:], strict=True):
        same = np.array_equal(axis.hours, axes[0].hours) and list(axis.index) == list(axes[0].index)
        if not same or order.grid != orders[0].grid:
            raise SourceError("the file holds fields on different times or grids; open them separately")
    return axes[0], orders[0]


def _order(dataset: xr.Dataset) -> Reorder:
    latitude, longitude = one_of(LATITUDE, dataset.coords), one_of(LONGITUDE, dataset.coords)
    if latitude is None or longitude is None:
        raise SourceError(
            f"no latitude and longitude coordinates among {list(dataset.coords)}; dimensions without "
            "coordinates are ambiguous"
        )
    try:
        return reorder(dataset[latitude].values, dataset[longitude].values)
    except ValueError as error:
        raise SourceError(str(error)) from None


def _time_axis(dataset: xr.Dataset) -> _TimeAxis:
    name = "valid_time" if "valid_time" in dataset.coords else "time"
    if name not in dataset.coords:
        raise SourceError(f"no time or valid_time coordinate among {list(dataset.coords)}")
    times = dataset.coords[name]
    if times.dtype.kind != "M":
        raise SourceError(
            f"coordinate {name!r} has dtype {times.dtype}; times decoded to datetime64 are expected"
        )
    try:
        hours = to_hours(times.values).reshape(-1)
    except ValueError as error:
        raise SourceError(str(error)) from None
    places = np.unravel_index(np.arange(hours.size), times.shape) if times.ndim else ()
    index = {str(dim): place for dim, place in zip(times.dims, places, strict=True)}
    if times.ndim > 1:
        by_time = np.argsort(hours, kind="stable")
        hours, index = hours[by_time], {dim: place[by_time] for dim, place in index.items()}
    wrong = np.flatnonzero(np.diff(hours) <= 0)
    if wrong.size:
        first, second = (show(from_hours(hours[wrong[0] + k])) for k in (0, 1))
        raise SourceError(
            f"valid times must strictly increase; {first} is followed by {second} ({wrong.size} such pairs). "
            "Select one forecast per valid time with xarray and pass the dataset to open_source"
        )
    return _TimeAxis(hours, index)


def _select_member(dataset: xr.Dataset, member: int | None) -> xr.Dataset:
    name = one_of(MEMBER, dataset.dims)
    if name is None:
        scalar = one_of(MEMBER, dataset.coords)
        if member is not None and (scalar is None or int(dataset[scalar]) != member):
            raise SourceError(f"member={member} was asked for, but the data have no such dimension")
        return dataset
    numbers = (
        [int(n) for n in dataset[name].values] if name in dataset.coords else list(range(dataset.sizes[name]))
    )
    if member is None or member not in numbers:
        raise SourceError(f"the data hold members {numbers}; choose one with member=, got {member}")
    return dataset.isel({name: numbers.index(member)})


def _read_statics(datasets: list[xr.Dataset], frame: _Frame) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    for name in _STATICS:
        entry = match(channel(name), datasets)
        if entry is None or "static_channel" in entry.array.dims:
            continue
        if any(dim in frame.axis.index for dim in entry.array.dims):
            continue
        found[name] = frame.place(entry.array, (), wind=False) * np.float32(entry.factor)
    return found


def _open(data: str | Path | xr.Dataset | xr.DataArray, kind: Kind) -> tuple[list[xr.Dataset], str]:
    if isinstance(data, xr.Dataset):
        return [data], "memory"
    if isinstance(data, xr.DataArray):
        return [data.to_dataset(name=data.name or "data")], "memory"
    path = Path(data)
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    openers: dict[str, Callable[[Path], list[xr.Dataset]]] = {
        "zarr": _open_zarr,
        "netcdf": _open_netcdf,
        "grib": _open_grib,
    }
    chosen = _kind(path) if kind == "auto" else kind
    if chosen not in openers:
        raise ValueError(f"kind must be one of auto, {', '.join(openers)}; got {kind!r}")
    return openers[chosen](path), path.name


def _kind(path: Path) -> str:
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")):
            return "zarr"
        found = sorted(entry.name for entry in path.iterdir())[:8]
        raise SourceError(f"{path} is not a Zarr store: no zarr.json, .zgroup or .zmetadata; found {found}")
    with open(path, "rb") as file:
        start = file.read(4)
    if start not in _MAGIC:
        raise SourceError(f"{path} is neither NetCDF nor GRIB: it begins with {start!r}")
    return _MAGIC[start]


def _open_zarr(path: Path) -> list[xr.Dataset]:
    if (path / "zarr.json").exists():
        consolidated = read_group(path).get("consolidated_metadata") is not None
    else:
        consolidated = (path / ".zmetadata").exists()
    return [xr.open_zarr(path, chunks=None, consolidated=consolidated, decode_timedelta=True)]


def _open_netcdf(path: Path) -> list[xr.Dataset]:
    try:
        return [xr.open_dataset(path, decode_timedelta=True)]
    except (ImportError, ValueError) as error:
        raise ImportError(f"{path}: reading NetCDF needs a backend; pip install 'wx-data[netcdf]'") from error


def _open_grib(path: Path) -> list[xr.Dataset]:
    try:
        import cfgrib
    except ImportError as error:
        raise ImportError(f"{path}: reading GRIB needs cfgrib; pip install 'wx-data[grib]'") from error
    datasets: list[xr.Dataset] = cfgrib.open_datasets(
        str(path), backend_kwargs={"indexpath": ""}, decode_timedelta=True
    )
    return datasets
