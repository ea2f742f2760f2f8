"""The training store: one float32 array (time, channel, latitude, longitude), one shard per time step.

On `Healpix` the array is (time, channel, cell): a cell is what a row of latitude is elsewhere.
"""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._channels import channel
from wx_data._errors import StoreError
from wx_data._grid import Grid
from wx_data._healpix import AnyGrid, Healpix
from wx_data._manifest import Manifest, ManifestLog, checksum, read_plan
from wx_data._progress import Progress
from wx_data._protocols import RowRange
from wx_data._shards import Compression, Field, Scale, ShardCodec, ShardError, ShardReader
from wx_data._times import Hours, from_hours, show, to_hours
from wx_data._zarr3 import Metadata, SmallArray, read_group, read_small, sharded_metadata, write_group

FORMAT = 1
_BAND_BYTES = 4 << 20  # finer bands decode faster (they stay in cache) but cost other readers more
_MIN_BAND_BYTES = 1 << 20
_BANDS = 16  # so that half of the rows are little more than half of the bytes
_CRS = "crs"
_CHANNEL_TEXTS = ("units", "standard_name", "long_name", "cell_methods")
_TIME_ATTRIBUTES = {
    "standard_name": "time",
    "units": "hours since 1970-01-01",
    "calendar": "proleptic_gregorian",
    "axis": "T",
}

Level = Literal["manifest", "sizes", "checksum"]


@dataclass(frozen=True, kw_only=True)
class StoreLayout:
    """What a store will hold; written once, before its first shard."""

    hours: Hours
    channels: tuple[str, ...]
    grid: AnyGrid
    band_rows: int
    statics: Mapping[str, NDArray[np.float32]]
    attributes: Mapping[str, Any]
    compression: Compression = "lz4"

    @property
    def codec(self) -> ShardCodec:
        """Shape of a shard."""
        rows, columns = self.grid.plane
        return ShardCodec(
            channels=len(self.channels),
            rows=rows,
            columns=columns,
            band=self.band_rows,
            compression=self.compression,
            dims=self.grid.dims,
        )

    def create(self, root: Path) -> None:
        """Write metadata, coordinates and static fields."""
        small = {
            "time": SmallArray(self.hours, ("time",), _TIME_ATTRIBUTES),
            **channel_arrays(self.channels),
            **grid_arrays(self.grid),
        }
        if self.statics:
            small |= channel_arrays(tuple(self.statics), "static_")
            stacked = np.stack([np.asarray(self.statics[name], dtype=np.float32) for name in self.statics])
            about = field_attributes(self.grid, *channel_coordinates("static_"))
            small["static"] = SmallArray(stacked, ("static_channel", *self.grid.dims), about)
        about = field_attributes(self.grid, *channel_coordinates())
        data = sharded_metadata(self.codec, {"time": (len(self.hours), 1)}, about)
        attributes = {"Conventions": conventions(self.grid), "wxstore": FORMAT, **self.attributes}
        write_group(root, attributes, small, {"data": data})


def conventions(grid: AnyGrid) -> str:
    """The version of CF that describes the grid."""
    return "CF-1.11" if isinstance(grid, Grid) else "CF-1.13"


def grid_arrays(grid: AnyGrid) -> dict[str, SmallArray]:
    """CF latitude and longitude coordinates; of `Healpix` also the numbers of the cells and the grid mapping.

    The grid mapping also has the attributes by which HEALPix was known before CF-1.13.
    """
    north = {"standard_name": "latitude", "units": "degrees_north"}
    east = {"standard_name": "longitude", "units": "degrees_east"}
    if isinstance(grid, Grid):
        return {
            "latitude": SmallArray(np.array(grid.latitude), ("latitude",), {**north, "axis": "Y"}),
            "longitude": SmallArray(np.array(grid.longitude), ("longitude",), {**east, "axis": "X"}),
        }
    mapping = {
        "grid_mapping_name": "healpix",
        "refinement_level": grid.nside.bit_length() - 1,
        "indexing_scheme": grid.order,
        "healpix_nside": grid.nside,
        "healpix_order": grid.order,
    }
    index = {"standard_name": "healpix_index", "long_name": "HEALPix cell", "units": "1"}
    return {
        "latitude": SmallArray(grid.latitude, grid.dims, north),
        "longitude": SmallArray(grid.longitude, grid.dims, east),
        "cell": SmallArray(np.arange(grid.shape[0]), grid.dims, index),
        _CRS: SmallArray(np.array(0, dtype=np.int32), (), mapping),
    }


def channel_arrays(names: tuple[str, ...], prefix: str = "") -> dict[str, SmallArray]:
    """The channels of an array, and what is known of each: coordinates along them, "" or NaN for nothing."""
    specs, dims = [channel(name) for name in names], (f"{prefix}channel",)

    def numbers(values: Sequence[int | None], attributes: Mapping[str, str]) -> SmallArray:
        return SmallArray(np.array(values, dtype=np.float64), dims, attributes)

    texts = {name: tuple(str(spec.attributes().get(name) or "") for spec in specs) for name in _CHANNEL_TEXTS}
    return {
        f"{prefix}channel": SmallArray(names, dims, {"long_name": "channel"}),
        f"{prefix}level": numbers(
            [spec.level for spec in specs],
            {"standard_name": "air_pressure", "units": "hPa", "positive": "down"},
        ),
        f"{prefix}accumulation_hours": numbers(
            [spec.accumulation_hours for spec in specs], {"long_name": "accumulation", "units": "h"}
        ),
        **{
            f"{prefix}{name}": SmallArray(values, dims, {"long_name": f"{name} of the channel"})
            for name, values in texts.items()
        },
    }


def channel_coordinates(prefix: str = "") -> tuple[str, ...]:
    """Names of the coordinates of `channel_arrays`, the channel itself left out."""
    return tuple(f"{prefix}{name}" for name in ("level", "accumulation_hours", *_CHANNEL_TEXTS))


def field_attributes(grid: AnyGrid, *coordinates: str) -> dict[str, Any]:
    """Attributes of an array of fields: coordinates beyond its dimensions, and the grid mapping."""
    if isinstance(grid, Grid):
        return {"coordinates": " ".join(coordinates)}
    listed = " ".join((*coordinates, "latitude", "longitude", _CRS))
    return {"coordinates": listed, "grid_mapping": _CRS}


def read_grid(root: Path, members: Mapping[str, Metadata]) -> AnyGrid:
    """The grid that `grid_arrays` described."""
    if _CRS in members:
        about = members[_CRS]["attributes"]
        return Healpix(about["healpix_nside"], about["healpix_order"])
    latitude, longitude = (read_small(root, name, members[name]) for name in ("latitude", "longitude"))
    return Grid(np.asarray(latitude), np.asarray(longitude))


def default_band_rows(channels: int, grid: AnyGrid) -> int:
    """Rows per inner chunk: 16 bands of 1 to 4 MiB, more bands on a large grid, one on a small grid.

    On `Healpix` a band is some base pixels or, in nested order, a half, a quarter, ... of one.
    """
    rows, columns = grid.plane
    size = 4 * channels * rows * columns
    bands = min(rows, max(1, round(size / _BAND_BYTES), min(_BANDS, size // _MIN_BAND_BYTES)))
    if isinstance(grid, Healpix):
        whole = 12 << max(0, (bands // 12).bit_length() - 1)
        bands = max(count for count in (1, 2, 3, 4, 6, whole) if count <= bands)
    return -(-rows // bands)


def shard_key(step: int, codec: ShardCodec) -> str:
    """Zarr key of a step's shard."""
    return f"data/c.{step}{codec.key_tail}"


@dataclass(frozen=True)
class Failure:
    """One step that is not what the manifest says: its time, its file and what is wrong with it."""

    step: int
    time: np.datetime64
    key: str
    problem: str

    def __str__(self) -> str:
        return f"step {show(self.time)} ({self.key}): {self.problem}"


@dataclass(frozen=True)
class VerifyReport:
    """What a check of a store covered, and every step that failed it."""

    level: Level
    steps: int
    bytes: int
    failures: tuple[Failure, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


class Store:
    """A finished training store, opened for reading; it is also a `Source`.

    Args:
        path: folder of the store.
        verify: checks made now. "manifest": every step was written and its file is there. "sizes": and every
            file has its size. "checksum": and every file its checksum (reads everything). None: only that
            every step was written; for `verify` and `repair`.

    Attributes:
        channels: names, in the order of the array.
        times: (T,) ``datetime64[ns]``, strictly increasing.
        grid: latitude rows from north to south and longitude columns, or `Healpix` cells.
        statics: name -> (H, W) or (cell,) float32.
        codec: shape and compression of a shard.
        attributes: of the group, among them `provenance`, `fills` and `holes`.

    Raises:
        StoreError: not a store of this format, unfinished, or damaged.
    """

    def __init__(self, path: str | Path, *, verify: Level | None = "manifest") -> None:
        self.path = Path(path)
        group = _open_group(self.path)
        members = group["consolidated_metadata"]["metadata"]
        self.attributes: dict[str, Any] = _decoded(group["attributes"])
        self.channels: tuple[str, ...] = tuple(self._small("channel", members))
        self.hours: Hours = np.asarray(self._small("time", members), dtype=np.int64)
        self.times: NDArray[np.datetime64] = from_hours(self.hours)
        self.grid = read_grid(self.path, members)
        self.statics: dict[str, NDArray[np.float32]] = {}
        if "static" in members:
            fields = np.asarray(self._small("static", members))
            names = self._small("static_channel", members)
            self.statics = {str(name): field for name, field in zip(names, fields, strict=True)}
        self.codec = _codec(members["data"])
        self._reader = ShardReader(self.codec)
        self._prefix = str(self.path / "data")
        self._steps = {int(hour): step for step, hour in enumerate(self.hours)}
        self.manifest = self._open_manifest()
        self._sizes: list[int] = self.manifest.sizes.tolist()
        if verify is not None:
            self._refuse_damage(self.verify(verify).failures)

    def __len__(self) -> int:
        return len(self.hours)

    def __repr__(self) -> str:
        first, last = show(self.times[0]), show(self.times[-1])
        return (
            f"Store({str(self.path)!r}: {len(self)} steps {first}..{last}, "
            f"{len(self.channels)} channels, {self.grid})"
        )

    @property
    def step_hours(self) -> int:
        """The most frequent time step."""
        if len(self) < 2:
            return 0
        steps, counts = np.unique(np.diff(self.hours), return_counts=True)
        return int(steps[counts.argmax()])

    @property
    def gaps(self) -> list[tuple[np.datetime64, np.datetime64]]:
        """Pairs of neighbouring times that are further apart than `step_hours`."""
        wide = np.flatnonzero(np.diff(self.hours) != self.step_hours)
        return [(self.times[i], self.times[i + 1]) for i in wide]

    @property
    def scratch_bytes(self) -> int:
        """Memory that each reading thread needs beside its target."""
        return self._reader.scratch_bytes

    @property
    def holes(self) -> NDArray[np.datetime64]:
        """Times that were asked for and that the source did not have."""
        return from_hours(self.attributes.get("holes", []))

    @cached_property
    def channels_with_nan(self) -> tuple[str, ...]:
        """Channels in which missing values were kept."""
        counts = self.manifest.per_channel("nan_count").sum(axis=0)
        return tuple(name for name, count in zip(self.channels, counts, strict=True) if count)

    def index(self, times: Any) -> NDArray[np.int64]:
        """Steps of exactly these times.

        Raises:
            StoreError: a time is not in the store; its neighbours are named.
        """
        hours = np.atleast_1d(to_hours(times))
        try:
            return np.array([self._steps[int(hour)] for hour in hours], dtype=np.int64)
        except KeyError as error:
            raise StoreError(self._absent(int(error.args[0]))) from None

    def channel_index(self, names: Sequence[str] | None) -> NDArray[np.int64] | None:
        """Positions of `names`; None where that is every channel in order.

        Raises:
            StoreError: a channel is not in the store.
        """
        if names is None or tuple(names) == self.channels:
            return None
        absent = [name for name in names if name not in self.channels]
        if absent:
            raise StoreError(
                f"{self.path}: no channel {', '.join(absent)}; it holds {', '.join(self.channels)}"
            )
        return np.array([self.channels.index(name) for name in names], dtype=np.int64)

    def read_into(
        self,
        step: int,
        out: Field,
        *,
        rows: tuple[int, int] | None = None,
        channels: Sequence[int] | None = None,
        scale: Scale | None = None,
    ) -> None:
        """Decode step number `step` into `out`, from any thread.

        Args:
            step: position on the time axis.
            out: float32 (channels, rows, columns), or (channels, cells), to fill.
            rows: rows or cells [start, stop); all by default.
            channels: positions of the channels, in the order of `out`; all by default.
            scale: applied to what is read.

        Raises:
            StoreError: the shard is missing, unreadable, truncated or damaged; time, key and sizes are named.
        """
        path = f"{self._prefix}/c.{step}{self.codec.key_tail}"
        out = out if out.ndim == 3 else out[..., None]
        try:
            self._reader.read(path, out, rows=rows, channels=channels, scale=scale, size=self._sizes[step])
        except (ShardError, RuntimeError, OSError) as error:
            raise StoreError(self._damaged(step, str(error))) from error

    def read(
        self, times: Any, channels: Sequence[str] | None = None, *, rows: RowRange | None = None
    ) -> xr.DataArray:
        """float32 (time, channel, latitude, longitude) at exactly `times`.

        Args:
            times: of the store.
            channels: which, in this order; all by default.
            rows: latitude rows to read, halo included, as a rank of a domain-parallel group needs them; all
                by default.

        Returns:
            The fields; (time, channel, cell) on `Healpix`.

        Raises:
            StoreError: a time or channel that is not in the store, or a damaged shard.
        """
        steps, (low, high) = self.index(times), self.row_bounds(rows)
        wanted = self.channel_index(channels)
        names = self.channels if channels is None else tuple(channels)
        shape = (len(steps), len(names), high - low, *self.grid.shape[1:])
        values = np.empty(shape, dtype=np.float32)

        def load(place: int, step: int) -> None:
            pick = None if wanted is None else wanted.tolist()
            self.read_into(step, values[place], rows=(low, high), channels=pick)

        # Never on the main thread, where blosc starts threads of its own for every small chunk.
        with ThreadPoolExecutor(2, thread_name_prefix="wx-store") as pool:
            list(pool.map(load, range(len(steps)), steps.tolist()))
        return field_array(values, self.times[steps], names, self.grid, slice(low, high))

    def row_bounds(self, rows: RowRange | None) -> tuple[int, int]:
        """First row, and the row after the last, that `rows` wants, halo included; all rows for None.

        Raises:
            ValueError: the range leaves the grid, or has a halo on `Healpix`.
        """
        if rows is None:
            return 0, self.grid.shape[0]
        if rows.halo and not isinstance(self.grid, Grid):
            raise ValueError(
                f"{rows}: a {self.grid} has no rows for a halo, since the neighbours of a range of cells are "
                "no range. Use halo=0 and exchange the borders, or read all cells and pad grid.faces"
            )
        return rows.within(self.grid.shape[0])

    def verify(self, level: Level = "sizes", *, workers: int = 2, progress: bool = False) -> VerifyReport:
        """Check every step, and report all that fail; nothing is raised.

        Args:
            level: "manifest" (listed, and the file is there), "sizes" (and has its size) or "checksum" (and
                its content).
            workers: threads that read.
            progress: show a progress bar.
        """
        if level not in ("manifest", "sizes", "checksum"):
            raise ValueError(f'level must be "manifest", "sizes" or "checksum"; got {level!r}')
        stored = self.manifest.checksums.tolist() if level == "checksum" else [None] * len(self)
        present = {entry.name for entry in os.scandir(self._prefix)} if os.path.isdir(self._prefix) else set()
        with (
            Progress("verify", len(self), enabled=progress) as shown,
            ThreadPoolExecutor(max(1, workers), thread_name_prefix="wx-verify") as pool,
        ):

            def check(step: int) -> str | None:
                key = shard_key(step, self.codec)
                problem = "the file is missing" if key.rpartition("/")[2] not in present else None
                if problem is None and level != "manifest":
                    problem = self._problem(step, stored[step])
                shown.update()
                return problem

            steps = range(len(self))
            problems = list(map(check, steps) if level == "manifest" else pool.map(check, steps))
        failures = tuple(
            Failure(step, self.times[step], shard_key(step, self.codec), problem)
            for step, problem in enumerate(problems)
            if problem is not None
        )
        return VerifyReport(level, len(self), int(self.manifest.sizes.sum()), failures)

    def _problem(self, step: int, stored: int | None) -> str | None:
        """What is wrong with a file's size or, if `stored` is given, with its content."""
        expected = self._sizes[step]
        path = self.path / shard_key(step, self.codec)
        try:
            found = path.stat().st_size
            data = path.read_bytes() if stored is not None and found == expected else b""
        except OSError as error:
            return f"the file cannot be read ({error.strerror})"
        if found != expected:
            return f"truncated or replaced: {expected} bytes expected, {found} found"
        if stored is not None and checksum(data) != stored:
            return f"crc32 {stored:#010x} in manifest, {checksum(data):#010x} found"
        return None

    def _refuse_damage(self, failures: tuple[Failure, ...]) -> None:
        if not failures:
            return
        listed = "; ".join(str(failure) for failure in failures[:3])
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        raise StoreError(
            f"{self.path}: {len(failures)} of {len(self)} steps are damaged: {listed}{more}. {self._remedy}"
        )

    def _small(self, name: str, members: Metadata) -> Any:
        return read_small(self.path, name, members[name])

    def _open_manifest(self) -> Manifest:
        log = ManifestLog(self.path / "_wx")
        table = log.read()
        if len(table) < len(self) or not log.final.exists():
            raise StoreError(
                f"{self.path}: the conversion was interrupted, {len(table)} of {len(self)} steps are done. "
                "Call convert() again with the same arguments (resume=True) to finish it"
            )
        manifest = Manifest(table)
        steps = table["step"].to_numpy()
        if len(table) != len(self) or not np.array_equal(steps, np.arange(len(self))):
            raise StoreError(f"{self.path}: the manifest lists {len(table)} steps, the time axis {len(self)}")
        return manifest

    def _absent(self, hour: int) -> str:
        wanted = show(from_hours(hour))
        place = int(np.searchsorted(self.hours, hour))
        near = [show(self.times[i]) for i in (place - 1, place) if 0 <= i < len(self)]
        return f"{self.path}: time {wanted} is not in the store; neighbours are {' and '.join(near)}"

    @property
    def _remedy(self) -> str:
        return f"Write them anew with repair(store, source), or: wx-data repair {self.path} SOURCE"

    def _damaged(self, step: int, cause: str) -> str:
        key = shard_key(step, self.codec)
        return f"{self.path}: step {show(self.times[step])} ({key}): {cause}. {self._remedy}"


def field_array(
    values: Field,
    times: NDArray[np.datetime64],
    names: Sequence[str],
    grid: AnyGrid,
    rows: slice = slice(None),
) -> xr.DataArray:
    """(time, channel, latitude, longitude), or (time, channel, cell), with coordinates and units."""
    coords: dict[str, Any] = {"time": times, "channel": list(names)}
    if isinstance(grid, Grid):
        coords |= {"latitude": grid.latitude[rows], "longitude": grid.longitude}
    else:
        coords |= {"latitude": ("cell", grid.latitude[rows]), "longitude": ("cell", grid.longitude[rows])}
        cells = np.arange(grid.shape[0])[rows]
        coords["cell"] = ("cell", cells, {"nside": grid.nside, "order": grid.order})
    coords["units"] = ("channel", [channel(name).units for name in names])
    return xr.DataArray(values, coords, ("time", "channel", *grid.dims))


def _decoded(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables and lists, which the group holds as JSON text."""
    found = dict(attributes)
    for name in ("provenance", "fills", "holes", "rounding"):
        if isinstance(found.get(name), str):
            found[name] = json.loads(found[name])
    return found


def _open_group(path: Path) -> Metadata:
    if not (path / "zarr.json").exists():
        if read_plan(path / "_wx") is not None:
            raise StoreError(f"{path}: the conversion stopped before its first step; call convert() again")
        listed = sorted(os.listdir(path))[:8] if path.is_dir() else "no such folder"
        raise StoreError(f"{path} is not a training store (no zarr.json at its root; found: {listed})")
    group = read_group(path)
    version = group.get("attributes", {}).get("wxstore")
    if version != FORMAT:
        raise StoreError(
            f"{path} is a Zarr group but not a training store of format {FORMAT} (attribute wxstore is "
            f"{version!r}); use open_source() and convert()"
        )
    return group


def _codec(metadata: Metadata) -> ShardCodec:
    _, channels, rows, columns = (*metadata["shape"], 1)[:4]
    band = metadata["codecs"][0]["configuration"]["chunk_shape"][2]
    inner = metadata["codecs"][0]["configuration"]["codecs"]
    packers = [codec["configuration"]["cname"] for codec in inner if codec["name"] == "blosc"]
    codec = ShardCodec(
        channels=channels,
        rows=rows,
        columns=columns,
        band=band,
        compression=packers[0] if packers else "none",
        dims=tuple(metadata["dimension_names"][2:]),
    )
    if metadata["codecs"] != codec.codec_metadata(leading=1):
        raise StoreError(f"the store's codecs are not those of format {FORMAT}: {metadata['codecs']}")
    return codec
