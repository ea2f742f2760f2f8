"""Opening what others wrote, here or far away, as a `Source`."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._accumulation import HOURLY, AccumulatedSource
from wx_data._channels import PRESETS, Channel, channel
from wx_data._channels import channels as lexicon
from wx_data._errors import SourceError
from wx_data._formats import Access, Kind, Opened, open_any, refuse_calendar
from wx_data._grid import Grid, Reorder, regrid, reorder
from wx_data._hdf5 import YearlyHdf5
from wx_data._humidity import specific_humidity
from wx_data._join import JoinedSource, join
from wx_data._matching import LATITUDE, LONGITUDE, MEMBER, Match, explain, match, one_of, present
from wx_data._remote import Remote, Traffic, refuse_fork
from wx_data._store import field_array
from wx_data._times import Hours, LeadLike, from_hours, lead_hours, show, to_hours

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

Data: TypeAlias = "str | Path | xr.Dataset | xr.DataArray | ZarrStore"
Fill = Mapping[str, float | NDArray[Any]]
_STATICS = ("z_surface", "lsm")
_UNIT_BYTES = 64 << 20  # decoded bytes of one read, unless a single chunk is larger


def open_source(
    data: "Data | Sequence[Data]",
    kind: Kind = "auto",
    *,
    channels: str | Sequence[str] | None = None,
    grid: Grid | None = None,
    member: int | None = None,
    lead: LeadLike | None = None,
    fill: Fill | None = None,
    derive: Mapping[str, str] | None = None,
    remote: Remote | None = None,
    era5t: bool = False,
    missing_chunks: Literal["error", "fill"] = "error",
    hdf5: YearlyHdf5 | None = None,
) -> "DatasetSource | AccumulatedSource | JoinedSource":
    """Open data as a source of lexicon channels, on its own grid or regridded to `grid`.

    Dimensions are found by name, levels and times must match exactly, and units are parsed and converted.
    Latitude may run either way and longitude from -180 or from 0. What a file lacks is an error that lists
    everything missing, unless the caller decides otherwise through `fill` or `derive`.

    Args:
        data: URL (s3, gs, az, https) or folder of a Zarr store (format 2 or 3), NetCDF or GRIB file, folder
            of yearly HDF5 files, any Zarr store object, or an xarray object. A list of those is one source:
            parts of the same channels follow each other in time, others stand side by side; see `join`.
        kind: "auto" looks at the content, never at the name; "arco" and "wb2" refuse anything but ARCO-ERA5
            and WeatherBench 2.
        channels: names or a preset; by default every channel of the lexicon that is there.
        grid: target of bilinear regridding; `RegriddedSource` does other kinds.
        member: number of the ensemble member, where there are several.
        lead: of forecasts, the lead time; `times` are then valid times.
        fill: channel -> constant or (H, W) field on the final grid, for channels that are not there;
            recorded in `provenance` and in every array read. Not of a list, as `derive`.
        derive: variable -> how, for channels that are not there. {"q": "relative_humidity"} computes
            specific humidity from r and t of the same level.
        remote: credentials, time-outs, retries and cache, for URLs.
        era5t: of ARCO-ERA5, also read the provisional last months (ERA5T).
        missing_chunks: a Zarr chunk that is not there is an "error", or read as "fill" values.
        hdf5: what yearly HDF5 files do not say themselves.

    Raises:
        SourceError: missing channels, wrong units, several members, a format that is not understood, a
            server that does not deliver, or a list that `join` refuses.
        ValueError: `fill` or `derive` of a list, or a `grid` that has no rows.
        ImportError: the reader of the format is not installed; the extra is named.
    """
    access = Access(
        kind=kind, remote=remote, lead=lead, era5t=era5t, missing_chunks=missing_chunks, hdf5=hdf5
    )
    fills, rules = dict(fill or {}), dict(derive or {})
    if rules and rules != {"q": "relative_humidity"}:
        raise ValueError(f'derive knows {{"q": "relative_humidity"}}; got {rules}')
    if not isinstance(grid, Grid | None):
        raise ValueError(f"grid must be a Grid; RegriddedSource(source, {grid!r}) brings a source to others")
    several = list(data) if isinstance(data, list | tuple) else None
    if several is not None and (fills or rules):
        raise ValueError("fill and derive are of one source: open each by itself and join them")
    parts = [open_any(one, access) for one in ([data] if several is None else several)]
    parts = [replace(one, datasets=_select_member(one.datasets, member)) for one in parts]
    wanted = None if channels is None else tuple(c.name for c in lexicon(channels))
    names = tuple(dict.fromkeys(name for one in parts for name in wanted or present(one.datasets)))
    stored = _with_hourly(names, [dataset for one in parts for dataset in one.datasets])

    def source_of(opened: Opened, held: tuple[str, ...]) -> DatasetSource:
        return _dataset_source(opened, held, grid=grid, member=member, lead=lead, fills=fills, rules=rules)

    source: DatasetSource | JoinedSource
    if several is None:
        source = source_of(parts[0], stored)
    else:
        source = join([source_of(one, _held(one, stored)) for one in parts], channels=stored)
    return source if stored == names else AccumulatedSource(source, names)


def _held(opened: Opened, names: tuple[str, ...]) -> tuple[str, ...]:
    """Which channels one part of several has."""
    held = tuple(name for name in names if match(channel(name), opened.datasets) is not None)
    if not held:
        raise SourceError(f"{opened.origin} has none of {', '.join(names)}; leave it out of the list")
    return held


def _dataset_source(
    opened: Opened,
    names: tuple[str, ...],
    *,
    grid: Grid | None,
    member: int | None,
    lead: LeadLike | None,
    fills: dict[str, float | NDArray[Any]],
    rules: dict[str, str],
) -> "DatasetSource":
    datasets, origin = opened.datasets, opened.origin
    readers = _plan(names, datasets, fills, rules, origin)
    # Filled channels alone have no file behind them: the first dataset then gives times and grid.
    used = sorted({m.dataset for r in readers.values() for m in r.matches}) or [0]
    axis, order = _common_axes([datasets[number] for number in used])
    provenance: dict[str, Any] = {"source": origin}
    if member is not None:
        provenance["member"] = member
    if lead is not None:
        provenance["lead_hours"] = lead_hours(lead)
    for label, chosen in (("filled", _Filled), ("derived", _Derived)):
        listed = {name: r.describe() for name, r in readers.items() if isinstance(r, chosen)}
        if listed:
            provenance[label] = listed
    if order.flip or order.roll:
        provenance["reordered"] = _turned(order)
    if grid is not None and grid != order.grid:
        provenance["regridded_from"] = f"{order.grid.shape[0]} x {order.grid.shape[1]}, {order.grid.digest}"
    return DatasetSource(readers, _Frame(axis, order, grid or order.grid), opened, provenance)


def _with_hourly(names: tuple[str, ...], datasets: list[xr.Dataset]) -> tuple[str, ...]:
    """`names`, with the hourly channel in place of a sum that is not there itself."""

    def stored(name: str) -> str:
        hourly = HOURLY.get(name)
        if hourly is None or match(channel(name), datasets) or not match(channel(hourly), datasets):
            return name
        return hourly

    return tuple(dict.fromkeys(stored(name) for name in names))


class DatasetSource:
    """Lexicon channels of xarray datasets; made by `open_source`.

    Attributes:
        channels: names that can be read.
        times: ``datetime64[ns]``, strictly increasing.
        grid: of what `read` returns.
        provenance: where the data come from and what was filled or derived, as JSON data.
    """

    def __init__(
        self,
        readers: Mapping[str, "_Reader"],
        frame: "_Frame",
        opened: Opened,
        provenance: dict[str, Any],
    ) -> None:
        self._readers, self._frame, self._opened = readers, frame, opened
        self.channels = tuple(readers)
        self.times: NDArray[np.datetime64] = from_hours(frame.axis.hours)
        self.grid = frame.grid
        self.provenance = provenance

    def __repr__(self) -> str:
        first, last = show(self.times[0]), show(self.times[-1])
        rows, columns = self.grid.shape
        return (
            f"DatasetSource({self.provenance['source']!r}: {len(self.times)} times {first}..{last}, "
            f"{len(self.channels)} channels, {rows} x {columns})"
        )

    @cached_property
    def statics(self) -> dict[str, NDArray[np.float32]]:
        """name -> (H, W) float32, of `z_surface` and `lsm` what is there."""
        return _read_statics(self._opened.datasets, self._frame)

    @property
    def variables(self) -> dict[str, dict[str, Any]]:
        """Channel -> the `variable` behind it, its `attributes` and its `dataset`'s, as in the file."""
        found: dict[str, dict[str, Any]] = {}
        for name, reader in self._readers.items():
            for match_ in reader.matches[:1]:
                found[name] = {
                    "variable": " and ".join(str(m.array.name) for m in reader.matches),
                    "attributes": dict(match_.array.attrs),
                    "dataset": dict(self._opened.datasets[match_.dataset].attrs),
                }
        return found

    @property
    def traffic(self) -> Traffic:
        """Requests, bytes and cache hits so far; zeros for local data."""
        return Traffic() if self._opened.traffic is None else self._opened.traffic.total

    def read(self, times: Any, channels: Sequence[str] | None = None) -> xr.DataArray:
        """float32 (time, channel, latitude, longitude) at exactly `times`; all channels by default.

        A coordinate `expver` tells final ERA5 ("0001") from provisional ERA5T ("0005") where the data say so.

        Raises:
            SourceError: a time, channel or chunk that is not there, or a server that does not deliver.
        """
        if self._opened.traffic is not None:
            refuse_fork(self._opened.origin)
        names = self.channels if channels is None else tuple(channels)
        absent = [name for name in names if name not in self._readers]
        if absent:
            raise SourceError(f"this source was opened without {', '.join(absent)}; it has {self.channels}")
        rows = self._rows(times)
        values = np.empty((len(rows), len(names), *self.grid.shape), dtype=np.float32)
        fields = self._load(names, rows, values)
        for place, name in enumerate(names):
            reader = self._readers[name]
            if type(reader) is not _Reader:
                values[:, place] = reader.value([fields[m.dataset, m.spec.name] for m in reader.matches])
        array = field_array(values, self.times[rows], names, self.grid)
        array.attrs = {key: v for key, v in self.provenance.items() if key in ("filled", "derived")}
        versions = self._opened.datasets[0].coords.get("expver")
        index = self._frame.axis.index
        if versions is not None and versions.dims == tuple(index):
            found = versions.values[tuple(place[rows] for place in index.values())].astype(str)
            array = array.assign_coords(expver=("time", np.broadcast_to(found, len(rows))))
        return array

    def _rows(self, times: Any) -> NDArray[np.intp]:
        try:
            return self._frame.axis.rows(times)
        except SourceError as error:
            if self._opened.validity is None:
                raise
            wanted = np.atleast_1d(from_hours(to_hours(times)))
            raise SourceError(f"{error}{self._opened.validity.explain(wanted)}") from None

    def _load(
        self, names: Sequence[str], rows: NDArray[np.intp], values: NDArray[np.float32]
    ) -> dict[tuple[int, str], NDArray[np.float32]]:
        """Fields (T, H, W) by (dataset, channel); those of plain channels lie in `values`."""
        fields: dict[tuple[int, str], NDArray[np.float32]] = {}
        for place, name in enumerate(names):
            if type(self._readers[name]) is _Reader:
                (found,) = self._readers[name].matches
                fields[found.dataset, found.spec.name] = values[:, place]
        groups = _groups([m for name in names for m in self._readers[name].matches])
        for found in (found for group in groups for found in group):
            if (found.dataset, found.spec.name) not in fields:
                fields[found.dataset, found.spec.name] = np.empty((len(rows), *self.grid.shape), np.float32)

        def fetch(unit: tuple[list[Match], slice]) -> None:
            group, part = unit
            loaded = self._fetch(group, rows[part])
            for place, found in enumerate(group):
                fields[found.dataset, found.spec.name][part] = loaded[:, place]

        units = [(group, part) for group in groups for part in self._frame.axis.units(group[0].array, rows)]
        if self._opened.in_flight == 1 or len(units) == 1:
            for unit in units:
                fetch(unit)
        else:
            _in_threads(fetch, units, self._opened.in_flight)
        return fields

    def _fetch(self, group: list[Match], rows: NDArray[np.intp]) -> NDArray[np.float32]:
        array = self._frame.select(group, rows)
        try:
            array = array.load()
        except (SourceError, ValueError, RuntimeError, OSError) as error:
            if not self._opened.is_zarr:
                raise
            first, last = (show(self.times[row]) for row in (rows[0], rows[-1]))
            when = first if first == last else f"{first}..{last}"
            kind = "" if isinstance(error, SourceError) else f"{self._opened.origin}: damaged chunk? "
            raise SourceError(f"{kind}{error} (variable {group[0].array.name!r} at {when})") from error
        return self._frame.finish(group[0], array)


def _in_threads(
    fetch: Callable[[tuple[list[Match], slice]], None], units: list[tuple[list[Match], slice]], count: int
) -> None:
    """`fetch` of every unit, `count` at a time; after the first failure no further one begins."""
    with ThreadPoolExecutor(min(count, len(units)), thread_name_prefix="wx-read") as pool:
        futures = [pool.submit(fetch, unit) for unit in units]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


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
        raise SourceError(_lacking_message(lacking, names, datasets, origin))
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


def _lacking_message(
    lacking: list[Channel], names: Sequence[str], datasets: list[xr.Dataset], origin: str
) -> str:
    # An hourly field may stand for a sum of the preset.
    wanted = {HOURLY.get(name, name) for name in names}
    presets = {f" of preset {name!r}": {HOURLY.get(n, n) for n in its} for name, its in PRESETS.items()}
    preset = next((label for label, its in presets.items() if its == wanted), "")
    lines = [f"{origin} lacks {len(lacking)} of {len(names)} channels{preset}:"]
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

    def units(self, array: xr.DataArray, rows: NDArray[np.intp]) -> list[slice]:
        """Parts of `rows` to read at a time: of bounded size, and no time chunk in two of them."""
        if len(rows) < 2 or len(self.index) != 1:
            return [slice(0, len(rows))]
        ((dim, index),) = self.index.items()
        length = int(array.encoding.get("preferred_chunks", {}).get(dim, 1))
        step_bytes = max(1, 4 * array.size // max(1, array.sizes[dim]))
        chunks = index[rows] // length
        starts = np.flatnonzero(np.diff(chunks, prepend=chunks[0] - 1))
        parts, begin = [], 0
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            if start > begin and (stop - begin) * step_bytes > _UNIT_BYTES:
                parts.append(slice(begin, int(start)))
                begin = int(start)
        return [*parts, slice(begin, len(rows))]

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

    def select(self, group: list[Match], rows: NDArray[np.intp]) -> xr.DataArray:
        """What matches that share one variable need of it; dimensions `sample` and, on levels, `pick`."""
        array = group[0].array
        level = next(iter(group[0].pick), None)
        if level is not None:
            array = array.isel({level: [found.pick[level] for found in group]}).rename({level: "pick"})
        array = self.axis.take(array, rows)
        _split(array, ("sample", "pick"))
        return array

    def finish(self, found: Match, array: xr.DataArray) -> NDArray[np.float32]:
        """(T, levels, H, W) on the final grid and in the lexicon's units; `array` is loaded."""
        if "pick" not in array.dims:  # not in `select`: expand_dims loads what it is given
            array = array.expand_dims(pick=1)
        values = self.place(array, ("sample", "pick"), wind=found.spec.wind)
        factor, offset = found.factor, found.offset
        return values if (factor, offset) == (1.0, 0.0) else (values * factor + offset).astype(np.float32)

    def place(self, array: xr.DataArray, leading: tuple[str, ...], *, wind: bool) -> NDArray[np.float32]:
        """Values (*leading, H, W) in the grid's order, regridded where asked."""
        dims, extra = _split(array, leading)
        array = array.squeeze(extra, drop=True).transpose(*dims)
        return regrid(self.order(np.asarray(array.values)), self.order.grid, self.grid, wind=wind)


def _split(array: xr.DataArray, leading: tuple[str, ...]) -> tuple[tuple[Any, ...], list[Hashable]]:
    """Dimensions (*leading, latitude, longitude) of `array`, and further ones, all of length one."""
    dims = (*leading, one_of(LATITUDE, array.dims), one_of(LONGITUDE, array.dims))
    extra = [dim for dim in array.dims if dim not in dims]
    wide = [f"{dim} ({array.sizes[dim]})" for dim in extra if array.sizes[dim] > 1]
    if wide:
        raise SourceError(
            f"variable {array.name!r}: dimension {', '.join(wide)} is not understood; select with xarray "
            "and pass the dataset to open_source"
        )
    return dims, extra


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


def _turned(order: Reorder) -> list[str]:
    """What `order` does to the rows and columns of the file."""
    found = ["latitude ran from south to north"] if order.flip else []
    return found + ([f"longitude began {-order.roll} columns west of 0"] if order.roll else [])


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
        refuse_calendar(getattr(times.values.flat[0], "calendar", ""), "the data")
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


def _members(dataset: xr.Dataset) -> list[int] | None:
    """Numbers of the members; None where nothing says that it is an ensemble."""
    name = one_of(MEMBER, dataset.dims)
    if name is not None and name not in dataset.coords:
        return list(range(dataset.sizes[name]))
    name = name or one_of(MEMBER, dataset.coords)
    return None if name is None else [int(number) for number in np.atleast_1d(dataset[name].values)]


def _select_member(datasets: list[xr.Dataset], member: int | None) -> list[xr.Dataset]:
    """One member; control and perturbed members of a GRIB file are datasets of their own."""
    numbers = [_members(dataset) for dataset in datasets]
    every = sorted({number for found in numbers for number in found or ()})
    if every and member not in every and (member is not None or len(every) > 1):
        raise SourceError(f"the data hold members {every}; choose one with member=, got {member}")
    if member is not None and not every:
        raise SourceError(f"member={member} was asked for, but the data have no such dimension")
    chosen = member if member is not None else (every or [0])[0]
    found = []
    for dataset, held in zip(datasets, numbers, strict=True):
        name = one_of(MEMBER, dataset.dims)
        if held is None or (name is None and chosen in held):
            found.append(dataset)
        elif chosen in held:
            found.append(dataset.isel({name: held.index(chosen)}))
    return found


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
