"""The training store: one float32 array (time, channel, latitude, longitude), one shard per time step."""

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
from wx_data._manifest import Manifest, ManifestLog, checksum, read_plan
from wx_data._progress import Progress
from wx_data._shards import Compression, Field, Scale, ShardCodec, ShardError, ShardReader
from wx_data._times import Hours, from_hours, show, to_hours
from wx_data._zarr3 import Metadata, SmallArray, read_group, read_small, sharded_metadata, write_group

FORMAT = 1
_BAND_BYTES = 4 << 20  # finer bands decode faster (they stay in cache) but cost other readers more
_MIN_BAND_BYTES = 1 << 20
_BANDS = 16  # so that half of the rows are little more than half of the bytes
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
    grid: Grid
    band_rows: int
    statics: Mapping[str, NDArray[np.float32]]
    attributes: Mapping[str, Any]
    compression: Compression = "lz4"

    @property
    def codec(self) -> ShardCodec:
        """Shape of a shard."""
        rows, columns = self.grid.shape
        return ShardCodec(
            channels=len(self.channels),
            rows=rows,
            columns=columns,
            band=self.band_rows,
            compression=self.compression,
        )

    def create(self, root: Path) -> None:
        """Write metadata, coordinates and static fields."""
        small = {
            "time": SmallArray(self.hours, ("time",), _TIME_ATTRIBUTES),
            "channel": SmallArray(self.channels, ("channel",), {"long_name": "channel"}),
            **grid_arrays(self.grid),
        }
        if self.statics:
            small["static_channel"] = SmallArray(tuple(self.statics), ("static_channel",), {})
            stacked = np.stack([np.asarray(self.statics[name], dtype=np.float32) for name in self.statics])
            dims = ("static_channel", "latitude", "longitude")
            small["static"] = SmallArray(stacked, dims, {"channels": channel_table(self.statics)})
        data = sharded_metadata(
            self.codec, {"time": (len(self.hours), 1)}, {"channels": channel_table(self.channels)}
        )
        attributes = {"Conventions": "CF-1.11", "wxstore": FORMAT, **self.attributes}
        write_group(root, attributes, small, {"data": data})


def grid_arrays(grid: Grid) -> dict[str, SmallArray]:
    """CF latitude and longitude coordinates."""
    north = {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}
    east = {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}
    return {
        "latitude": SmallArray(np.array(grid.latitude), ("latitude",), north),
        "longitude": SmallArray(np.array(grid.longitude), ("longitude",), east),
    }


def channel_table(names: Sequence[str] | Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """Attributes per channel, as JSON data."""
    return {name: channel(name).attributes() for name in names}


def default_band_rows(channels: int, grid: Grid) -> int:
    """Rows per inner chunk: 16 bands of 1 to 4 MiB, more bands on a large grid, one on a small grid."""
    rows, columns = grid.shape
    size = 4 * channels * rows * columns
    bands = max(1, round(size / _BAND_BYTES), min(_BANDS, size // _MIN_BAND_BYTES))
    return -(-rows // min(bands, rows))


def shard_key(step: int) -> str:
    """Zarr key of a step's shard."""
    return f"data/c.{step}.0.0.0"


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
        grid: latitude rows from north to south and longitude columns.
        statics: name -> (H, W) float32.
        codec: shape and compression of a shard.
        attributes: of the group, among them `provenance`, `fills` and `holes`.

    Raises:
        StoreError: not a store of this format, unfinished, or damaged.
    """

    def __init__(self, path: str | Path, *, verify: Level | None = "manifest") -> None:
        self.path = Path(path)
        group = _open_group(self.path)
        members = group["consolidated_metadata"]["metadata"]
        self.attributes: dict[str, Any] = group["attributes"]
        self.channels: tuple[str, ...] = tuple(self._small("channel", members))
        self.hours: Hours = np.asarray(self._small("time", members), dtype=np.int64)
        self.times: NDArray[np.datetime64] = from_hours(self.hours)
        self.grid = Grid(
            np.asarray(self._small("latitude", members)), np.asarray(self._small("longitude", members))
        )
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
            f"{len(self.channels)} channels, {self.grid.shape[0]} x {self.grid.shape[1]})"
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
            out: float32 (channels, rows, columns) to fill.
            rows: rows [start, stop); all by default.
            channels: positions of the channels, in the order of `out`; all by default.
            scale: applied to what is read.

        Raises:
            StoreError: the shard is missing, unreadable, truncated or damaged; time, key and sizes are named.
        """
        path = f"{self._prefix}/c.{step}.0.0.0"
        try:
            self._reader.read(path, out, rows=rows, channels=channels, scale=scale, size=self._sizes[step])
        except (ShardError, RuntimeError, OSError) as error:
            raise StoreError(self._damaged(step, str(error))) from error

    def read(self, times: Any, channels: Sequence[str] | None = None) -> xr.DataArray:
        """float32 (time, channel, latitude, longitude) at exactly `times`; all channels by default."""
        steps = self.index(times)
        wanted = self.channel_index(channels)
        names = self.channels if channels is None else tuple(channels)
        values = np.empty((len(steps), len(names), *self.grid.shape), dtype=np.float32)

        def load(place: int, step: int) -> None:
            self.read_into(step, values[place], channels=None if wanted is None else wanted.tolist())

        # Never on the main thread, where blosc starts threads of its own for every small chunk.
        with ThreadPoolExecutor(2, thread_name_prefix="wx-store") as pool:
            list(pool.map(load, range(len(steps)), steps.tolist()))
        return field_array(values, self.times[steps], names, self.grid)

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
                key = shard_key(step)
                problem = "the file is missing" if key.rpartition("/")[2] not in present else None
                if problem is None and level != "manifest":
                    problem = self._problem(step, stored[step])
                shown.update()
                return problem

            steps = range(len(self))
            problems = list(map(check, steps) if level == "manifest" else pool.map(check, steps))
        failures = tuple(
            Failure(step, self.times[step], shard_key(step), problem)
            for step, problem in enumerate(problems)
            if problem is not None
        )
        return VerifyReport(level, len(self), int(self.manifest.sizes.sum()), failures)

    def _problem(self, step: int, stored: int | None) -> str | None:
        """What is wrong with a file's size or, if `stored` is given, with its content."""
        expected = self._sizes[step]
        path = self.path / shard_key(step)
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
        return f"{self.path}: step {show(self.times[step])} ({shard_key(step)}): {cause}. {self._remedy}"


def field_array(
    values: Field, times: NDArray[np.datetime64], names: Sequence[str], grid: Grid
) -> xr.DataArray:
    """(time, channel, latitude, longitude) with coordinates and the units per channel."""
    units = [channel(name).units for name in names]
    coords = {
        "time": times,
        "channel": list(names),
        "latitude": grid.latitude,
        "longitude": grid.longitude,
        "units": ("channel", units),
    }
    return xr.DataArray(values, coords, ("time", "channel", "latitude", "longitude"))


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
    _, channels, rows, columns = metadata["shape"]
    band = metadata["codecs"][0]["configuration"]["chunk_shape"][2]
    inner = metadata["codecs"][0]["configuration"]["codecs"]
    packers = [codec["configuration"]["cname"] for codec in inner if codec["name"] == "blosc"]
    codec = ShardCodec(
        channels=channels,
        rows=rows,
        columns=columns,
        band=band,
        compression=packers[0] if packers else "none",
    )
    if metadata["codecs"] != codec.codec_metadata(leading=1):
        raise StoreError(f"the store's codecs are not those of format {FORMAT}: {metadata['codecs']}")
    return codec
