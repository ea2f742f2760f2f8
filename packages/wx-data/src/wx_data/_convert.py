"""Conversion of a source into a training store: checked, threaded, resumable at one step."""

import errno
import fcntl
import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from wx_data._checks import check_field, check_units, fill_missing
from wx_data._errors import SourceError, StoreError
from wx_data._manifest import ManifestLog, Row, read_plan, row
from wx_data._protocols import Source
from wx_data._shards import Field, ShardCodec, crc32c
from wx_data._store import StoreLayout, default_band_rows, shard_key
from wx_data._times import Hours, LeadLike, TimeLike, from_hours, lead_hours, period_hours, show, to_hours
from wx_data._zarr3 import write_atomic, write_json

_BLOCK_BYTES = 64 << 20
_FLUSH_SECONDS = 1.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

NanPolicy = Mapping[str, float | Literal["keep"]]


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: steps in the store, steps written now, bytes on disk, holes left out."""

    path: Path
    steps: int
    written: int
    bytes: int
    holes: tuple[np.datetime64, ...]


def convert(
    source: Source,
    out: str | Path,
    *,
    channels: Sequence[str] | None = None,
    period: tuple[TimeLike, TimeLike] | None = None,
    step: LeadLike | None = None,
    times: Any = None,
    statics: Mapping[str, NDArray[Any]] | None = None,
    missing: Literal["error", "drop"] = "error",
    nan: NanPolicy | None = None,
    implausible: Literal["error", "keep"] = "error",
    band_rows: int | None = None,
    workers: int = 2,
    resume: bool = True,
    progress: bool = False,
) -> ConversionReport:
    """Write the fields of `source` as a training store.

    Every step is one file, written whole or not at all and logged in the manifest; after a crash the same
    call goes on where the log ends (at most about a second of work is repeated) and gives the same bytes.

    Args:
        source: anything that satisfies `Source`.
        out: folder of the store.
        channels: which channels, in the order of the store; all of the source's by default.
        period: first and last time, both inclusive; a date as the end means its whole day.
        step: expected time step; by default the source's most frequent one.
        times: exact times instead of `period` and `step`.
        statics: name -> (H, W); `source.statics` by default, where it has them.
        missing: times that the source lacks are an "error", or "drop"ped and listed as holes.
        nan: channel -> the value that replaces missing values, or "keep". Any other NaN is an error.
        implausible: values outside the lexicon's range and constant fields are an "error", or "keep".
        band_rows: latitude rows per inner chunk; chosen near 4 MiB by default.
        workers: threads that compress and write.
        resume: go on with an interrupted conversion instead of refusing to touch it.
        progress: show a progress bar.

    Raises:
        SourceError: a hole, a missing value, an implausible value or a wrong unit in the source.
        StoreError: `out` holds something else, another process converts into it, or the disk is full.
    """
    names = tuple(channels if channels is not None else source.channels)
    hours, holes = _select_hours(source.times, period, step, times, missing)
    given = statics if statics is not None else getattr(source, "statics", {})
    layout = StoreLayout(
        hours=hours,
        channels=names,
        grid=source.grid,
        band_rows=band_rows or default_band_rows(len(names), source.grid),
        statics={name: np.asarray(field, np.float32) for name, field in given.items()},
        attributes={
            "provenance": getattr(source, "provenance", {}),
            "fills": dict(nan or {}),
            "holes": holes.tolist(),
            "wx_data_version": version("wx-data"),
        },
    )
    job = _Job(Path(out), layout, source, dict(nan or {}), implausible)
    with _lock(job.root / "_wx"):
        done = job.prepare(resume)
        with tqdm(total=len(hours), initial=len(done), disable=not progress, unit="step") as bar:
            written = job.run(done, workers, bar)
        table = job.finish()
    total = int(table["bytes"].to_numpy().sum())
    return ConversionReport(job.root, len(hours), written, total, tuple(from_hours(holes)))


@dataclass(frozen=True)
class _Job:
    root: Path
    layout: StoreLayout
    source: Source
    nan: dict[str, float | Literal["keep"]]
    implausible: Literal["error", "keep"]

    @property
    def log(self) -> ManifestLog:
        return ManifestLog(self.root / "_wx")

    def prepare(self, resume: bool) -> set[int]:
        """Create the store or check that it is the same one; the steps already done."""
        folder = self.root / "_wx"
        plan, found = self._plan(), read_plan(folder)
        if found is None:
            if (self.root / "zarr.json").exists():
                raise StoreError(f"{self.root} already holds a Zarr group that is not a training store")
            write_json(folder / "plan.json", plan)
        elif not resume:
            raise StoreError(f"{self.root} exists; delete it, or pass resume=True to go on with it")
        else:
            _same_plan(self.root, found, plan)
        # Unfinished files of a killed run stay here and nowhere else.
        shutil.rmtree(folder / "tmp", ignore_errors=True)
        (folder / "tmp").mkdir()
        if not (self.root / "zarr.json").exists():
            self.layout.create(self.root)
        return set(self.log.read()["step"].to_pylist())

    def run(self, done: set[int], workers: int, bar: Any) -> int:
        """Convert what is not done; steps written."""
        todo = [step for step in range(len(self.layout.hours)) if step not in done]
        rows, pending = _Rows(self.log, bar), deque[Future[Row]]()
        with ThreadPoolExecutor(max(1, workers), thread_name_prefix="wx-convert") as pool:
            try:
                for futures in self._submit(todo, pool):
                    pending.extend(futures)
                    rows.collect(pending, leave=len(futures))
                rows.collect(pending, leave=0)
                rows.flush()
            except OSError as error:
                raise self._disk_error(error, rows.count + len(done)) from error
            finally:
                for future in pending:
                    future.cancel()
                with suppress(OSError):
                    rows.flush()
        return rows.count

    def _submit(self, todo: list[int], pool: ThreadPoolExecutor) -> Iterator[list[Future[Row]]]:
        codec = self.layout.codec
        size = 4 * codec.channels * codec.rows * codec.columns
        block = int(np.clip(_BLOCK_BYTES // size, 1, 64))
        for start in range(0, len(todo), block):
            steps = todo[start : start + block]
            values = self._read(self.layout.hours[steps])
            yield [
                pool.submit(self._write, codec, step, field)
                for step, field in zip(steps, values, strict=True)
            ]

    def _read(self, hours: Hours) -> Field:
        names = self.layout.channels
        array = self.source.read(from_hours(hours), names)
        array = array.transpose("time", "channel", "latitude", "longitude")
        expected = (len(hours), len(names), *self.layout.grid.shape)
        if array.shape != expected:
            raise SourceError(f"source.read returned shape {array.shape}, expected {expected}")
        if not np.array_equal(to_hours(array["time"].values), hours):
            raise SourceError(f"source.read returned other times than asked: {array['time'].values}")
        check_units(array, names)
        return np.asarray(array.values, dtype=np.float32)

    def _write(self, codec: ShardCodec, step: int, field: Field) -> Row:
        hour = int(self.layout.hours[step])
        field = fill_missing(field, self.layout.channels, self.nan)
        data = codec.encode(field[None])
        key = shard_key(step)
        origin = str(getattr(self.source, "provenance", {}).get("source", ""))
        entry = row(step, hour, key, data, crc32c(data), field, origin)
        check_field(field, entry, self.layout, self.nan, self.implausible)
        write_atomic(self.root / key, data, temporary=self.root / "_wx" / "tmp")
        return entry

    def finish(self) -> Any:
        """Compact the log; from here on the store opens."""
        try:
            self.log.compact()
        except OSError as error:
            raise self._disk_error(error, len(self.layout.hours)) from error
        shutil.rmtree(self.root / "_wx" / "tmp", ignore_errors=True)
        return self.log.read()

    def _disk_error(self, error: OSError, done: int) -> Exception:
        if error.errno not in _FULL:
            return error
        count = f" after about {done} of {len(self.layout.hours)} steps"
        return StoreError(
            f"{self.root}: the disk is full or a quota is reached{count} ({error.strerror}). "
            "Free some space and call convert() again with the same arguments: it goes on from there"
        )

    def _plan(self) -> dict[str, Any]:
        layout = self.layout
        plan = {
            "times": f"{len(layout.hours)} steps, sha256 {_digest(layout.hours)}",
            "channels": list(layout.channels),
            "grid": f"{layout.grid.shape[0]} x {layout.grid.shape[1]}, {layout.grid.digest}",
            "band_rows": layout.band_rows,
            "statics": {name: _digest(field) for name, field in layout.statics.items()},
            "nan": self.nan,
            "implausible": self.implausible,
            "provenance": layout.attributes["provenance"],
        }
        normal: dict[str, Any] = json.loads(json.dumps(plan))
        return normal


class _Rows:
    """Finished rows on their way into the log, about once a second."""

    def __init__(self, log: ManifestLog, bar: Any) -> None:
        self.log, self.bar, self.count = log, bar, 0
        self._rows: list[Row] = []
        self._flushed = time.monotonic()

    def collect(self, pending: deque[Future[Row]], *, leave: int) -> None:
        """Wait for the oldest of `pending` until `leave` are left."""
        while len(pending) > leave:
            self._rows.append(pending.popleft().result())
            self.bar.update()
            self.count += 1
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Log what is collected."""
        self.log.append(self._rows)
        self._rows, self._flushed = [], time.monotonic()


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:12]


def _same_plan(root: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise StoreError(
                f"{root} was begun with other settings: {name} was {found.get(name)!r}, "
                f"now {wanted[name]!r}. Use the same arguments, or another folder"
            )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One converting process per store; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "data").mkdir(exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{folder.parent}: another process is converting into this store") from None
        yield


def _select_hours(
    available: Any,
    period: tuple[TimeLike, TimeLike] | None,
    step: LeadLike | None,
    times: Any,
    missing: str,
) -> tuple[Hours, Hours]:
    """Hours to convert, and hours asked for that the source lacks."""
    if missing not in ("error", "drop"):
        raise ValueError(f'missing must be "error" or "drop"; got {missing!r}')
    have = to_hours(available)
    _check_increasing(have)
    if times is not None:
        if period is not None or step is not None:
            raise ValueError("give either times, or period and step")
        wanted = to_hours(times)
        _check_increasing(wanted)
    else:
        wanted = _regular(have, period, step)
    holes = np.setdiff1d(wanted, have)
    if holes.size and missing == "error":
        raise SourceError(
            f"the source lacks {holes.size} of {wanted.size} times; first {show(from_hours(holes[0]))}, last "
            f'{show(from_hours(holes[-1]))}. missing="drop" leaves them out and lists them as holes'
        )
    hours = np.intersect1d(wanted, have)
    if not hours.size:
        first, last = show(from_hours(have[0])), show(from_hours(have[-1]))
        raise SourceError(f"no time left to convert: the source covers {first}..{last}")
    if step is None and times is None and missing == "error":
        _check_even(hours)
    return hours, holes


def _regular(have: Hours, period: tuple[TimeLike, TimeLike] | None, step: LeadLike | None) -> Hours:
    first, last = period_hours(period, have)
    if step is None:
        return have[(have >= first) & (have <= last)]
    hours = lead_hours(step)
    if hours < 1:
        raise ValueError(f"step must be at least one hour; got {step!r}")
    return np.arange(first, last + 1, hours, dtype=np.int64)


def _check_increasing(hours: Hours) -> None:
    if not hours.size:
        raise SourceError("the source has no times")
    wrong = np.flatnonzero(np.diff(hours) <= 0)
    if wrong.size:
        i = int(wrong[0])
        kind = "repeated" if hours[i] == hours[i + 1] else "out of order"
        first, second = show(from_hours(hours[i])), show(from_hours(hours[i + 1]))
        raise SourceError(f"times must strictly increase; {kind} at index {i}: {first} then {second}")


def _check_even(hours: Hours) -> None:
    steps, counts = np.unique(np.diff(hours), return_counts=True)
    if steps.size <= 1:
        return
    usual = int(steps[counts.argmax()])
    gaps = np.flatnonzero(np.diff(hours) != usual)
    first, second = show(from_hours(hours[gaps[0]])), show(from_hours(hours[gaps[0] + 1]))
    raise SourceError(
        f"the time axis has {gaps.size} gaps; first {first} -> {second}, expected a step of {usual} h. "
        'missing="drop" accepts them; windows across a gap are left to the loader'
    )
