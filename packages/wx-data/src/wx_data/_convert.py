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
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from wx_data._checks import MissingFill, Policy, check_field, check_units
from wx_data._errors import SourceError, StoreError
from wx_data._healpix import AnyGrid
from wx_data._manifest import Manifest, ManifestLog, Row, read_plan, row, write_provenance
from wx_data._progress import Progress
from wx_data._protocols import Source
from wx_data._regrid import RegriddedSource
from wx_data._rounding import (
    RoundingReport,
    bytes_saved,
    largest_errors,
    quantum,
    round_field,
    rounding_report,
)
from wx_data._shards import Compression, Field
from wx_data._store import StoreLayout, default_band_rows, shard_key
from wx_data._times import Hours, LeadLike, TimeLike, from_hours, lead_hours, period_hours, show, to_hours
from wx_data._zarr3 import read_group, write_atomic, write_json

_BLOCK_BYTES = 64 << 20
_FLUSH_SECONDS = 1.0
_SAMPLE_EVERY = 16  # steps between those that are compressed unrounded as well
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        path: the store.
        steps: time steps that the store will hold.
        written: steps written by this call.
        done: steps written so far, by every part.
        bytes: their size on disk.
        holes: times asked for that the source lacks.
        rounding: per rounded channel its bound, its largest error and the bytes saved.
    """

    path: Path
    steps: int
    written: int
    done: int
    bytes: int
    holes: tuple[np.datetime64, ...]
    rounding: tuple[RoundingReport, ...]

    @property
    def complete(self) -> bool:
        """Whether the store is finished and opens."""
        return self.done == self.steps


def convert(
    source: Source,
    out: str | Path,
    *,
    channels: Sequence[str] | None = None,
    period: tuple[TimeLike, TimeLike] | None = None,
    step: LeadLike | None = None,
    times: Any = None,
    grid: AnyGrid | None = None,
    statics: Mapping[str, NDArray[Any]] | None = None,
    missing: Literal["error", "drop"] = "error",
    nan: Policy | None = None,
    implausible: Literal["error", "keep"] = "error",
    band_rows: int | None = None,
    codec: Compression = "lz4hc",
    rounding: Mapping[str, float] | None = None,
    part: tuple[int, int] = (0, 1),
    workers: int = 2,
    resume: bool = True,
    progress: bool = False,
) -> ConversionReport:
    """Write the fields of `source` as a training store.

    Every step is one file, written whole or not at all and logged in the manifest; after a crash the same
    call goes on where the log ends (at most about a second of work is repeated) and gives the same bytes.
    Several processes or nodes may share the work: process i of n passes ``part=(i, n)`` and otherwise the
    same arguments, each writes its own run of steps, and whichever ends last completes the store. The bytes
    do not depend on n, and a killed part goes on when it is called again.

    Args:
        source: anything that satisfies `Source`.
        out: folder of the store.
        channels: which channels, in the order of the store; all of the source's by default.
        period: first and last time, both inclusive; a date as the end means its whole day.
        step: expected time step; by default the source's most frequent one.
        times: exact times instead of `period` and `step`.
        grid: of the store, bilinear from the source's, which it is by default; give a `RegriddedSource` for
            conservative means. On `Healpix` the store's array is (time, channel, cell).
        statics: name -> (H, W) or (cell,) on that grid; `source.statics` by default, where it has them.
        missing: times that the source lacks are an "error", or "drop"ped and listed as holes.
        nan: channel -> what replaces missing values: a constant, "mean" (area-weighted, of the field),
            "nearest" (the nearest point that has one), or "keep". Any other NaN is an error.
        implausible: values outside the lexicon's range and constant fields are an "error", or "keep".
        band_rows: latitude rows, or `Healpix` cells, per inner chunk; by default 16 bands of 1 to 4 MiB on a
            medium grid, and on `Healpix` whole base pixels or halves, quarters, ... of them.
        codec: "lz4hc" (blosc with byte shuffle: less than half of the bytes; packed once at some 60 MB/s and
            thread, read a quarter faster than "lz4"), "lz4" (packed ten times faster), or "none", which a
            fast disk reads sooner. `plan` says what limits the conversion.
        rounding: channel -> largest absolute error, in its units, that its values may get so that they
            compress better; see `rounding_bounds`. Every other channel is stored exactly.
        part: (i, n): do part i = 0..n-1 of n. The file system must support `flock` between the nodes.
        workers: threads that compress and write.
        resume: go on with an interrupted conversion instead of refusing to touch it.
        progress: show a progress bar, or log lines where stderr is no terminal.

    Raises:
        SourceError: a hole, a missing value, an implausible value or a wrong unit in the source.
        StoreError: `out` holds something else, another process converts into it, or the disk is full.
    """
    job, holes = make_job(
        source,
        out,
        channels=channels,
        period=period,
        step=step,
        times=times,
        grid=grid,
        statics=statics,
        missing=missing,
        nan=nan,
        implausible=implausible,
        band_rows=band_rows,
        codec=codec,
        rounding=rounding,
        part=part,
    )
    folder, mine = job.root / "_wx", job.steps
    with _claim(folder, mine):
        done = job.prepare(resume)
        with Progress(f"convert {job.root.name}", len(mine), done=len(done), enabled=progress) as shown:
            written = job.run(done, workers, shown)
        table = job.finish()
    return ConversionReport(
        path=job.root,
        steps=len(job.layout.hours),
        written=written,
        done=len(table),
        bytes=int(table["bytes"].to_numpy().sum()),
        holes=tuple(from_hours(holes)),
        rounding=rounding_report(Manifest(table), job.layout.channels, job.rounding),
    )


def make_job(
    source: Source,
    out: str | Path,
    *,
    channels: Sequence[str] | None,
    period: tuple[TimeLike, TimeLike] | None,
    step: LeadLike | None,
    times: Any,
    grid: AnyGrid | None,
    statics: Mapping[str, NDArray[Any]] | None,
    missing: Literal["error", "drop"],
    nan: Policy | None,
    implausible: Literal["error", "keep"],
    band_rows: int | None,
    codec: Compression,
    rounding: Mapping[str, float] | None,
    part: tuple[int, int],
) -> tuple["Job", Hours]:
    """The work that the arguments of `convert` describe, and the times that the source lacks."""
    if not 0 <= part[0] < part[1]:
        raise ValueError(f"part must be (i, n) with 0 <= i < n; got {part}")
    if grid is not None and grid != source.grid:
        source = RegriddedSource(source, grid)
    names = tuple(channels if channels is not None else source.channels)
    hours, holes = _select_hours(source.times, period, step, times, missing)
    bounds = _check_bounds(rounding or {}, names)
    given = statics if statics is not None else getattr(source, "statics", {})
    for name, field in given.items():
        if np.shape(field) != source.grid.shape:
            raise ValueError(
                f"static field {name!r} has shape {np.shape(field)}, the store's grid {source.grid.shape}"
            )
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
            "rounding": bounds,
            "wx_data_version": version("wx-data"),
        },
        compression=codec,
    )
    mine = range(len(hours) * part[0] // part[1], len(hours) * (part[0] + 1) // part[1])
    return Job(Path(out), layout, source, dict(nan or {}), implausible, bounds, mine), holes


@dataclass(frozen=True)
class Job:
    """The writing of some steps of a store."""

    root: Path
    layout: StoreLayout
    source: Source
    nan: Policy
    implausible: Literal["error", "keep"]
    rounding: dict[str, float]
    steps: range

    @property
    def log(self) -> ManifestLog:
        """Of this part of the work."""
        return ManifestLog(self.root / "_wx", self.steps.start)

    @property
    def temporary(self) -> Path:
        """Where unfinished files of this part stay; nobody else writes there."""
        return self.root / "_wx" / "tmp" / _range_name(self.steps)

    @cached_property
    def _fill(self) -> MissingFill:
        return MissingFill(self.layout.channels, self.nan, self.layout.grid)

    def prepare(self, resume: bool) -> set[int]:
        """Create the store or check that it is the same one; the steps of this part already done."""
        try:
            self._create(resume)
        except OSError as error:
            raise self._disk_error(error, 0) from error
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        return set(self.log.read()["step"].to_pylist()) & set(self.steps)

    def _create(self, resume: bool) -> None:
        folder = self.root / "_wx"
        with merging(folder):
            plan, found = self._plan(), read_plan(folder)
            if found is None:
                if (self.root / "zarr.json").exists():
                    raise StoreError(f"{self.root} already holds a Zarr group that is not a training store")
                write_json(folder / "plan.json", plan)
            elif not resume:
                raise StoreError(f"{self.root} exists; delete it, or pass resume=True to go on with it")
            elif found != plan and self._is_untouched():
                self._clear()
                write_json(folder / "plan.json", plan)
            else:
                _same_plan(self.root, found, plan)
            if not (self.root / "zarr.json").exists():
                self.layout.create(self.root)
            # What a killed process left unfinished; nobody else writes here while this one merges.
            for left in (*self.root.glob(".*.part"), *self.root.glob("*/.*.part")):
                left.unlink()

    def _is_untouched(self) -> bool:
        """Whether no step was written nor another process is at work: the source was refused at once."""
        if len(self.log.read()) or any((self.root / "data").glob("c.*")):
            return False
        for other in (self.root / "_wx" / "claims").iterdir():
            with open(other, "r+") as claim:
                if other.name != _range_name(self.steps) and not _try_lock(claim):
                    return False
        return True

    def _clear(self) -> None:
        """Remove the metadata, the group's first: without it they are written anew."""
        if (self.root / "zarr.json").exists():
            members = read_group(self.root)["consolidated_metadata"]["metadata"]
            (self.root / "zarr.json").unlink()
            for name in members:
                shutil.rmtree(self.root / name, ignore_errors=True)

    def run(self, done: set[int], workers: int, shown: Progress) -> int:
        """Convert what is not done; steps written."""
        todo = [step for step in self.steps if step not in done]
        rows, pending = _Rows(self.log, shown), deque[Future[Row]]()
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
            values, versions = self.read(self.layout.hours[steps])
            yield [
                pool.submit(self._write, step, field, expver)
                for step, field, expver in zip(steps, values, versions, strict=True)
            ]

    def read(self, hours: Hours) -> tuple[Field, list[str | None]]:
        """Fields (T, C, H, W), or (T, C, cell), and per step the version of the data, where it is known."""
        names = self.layout.channels
        array = self.source.read(from_hours(hours), names)
        array = array.transpose("time", "channel", *self.layout.grid.dims)
        expected = (len(hours), len(names), *self.layout.grid.shape)
        if array.shape != expected:
            raise SourceError(f"source.read returned shape {array.shape}, expected {expected}")
        if not np.array_equal(to_hours(array["time"].values), hours):
            raise SourceError(f"source.read returned other times than asked: {array['time'].values}")
        check_units(array, names)
        versions: list[str | None] = [None] * len(hours)
        if "expver" in array.coords:
            versions = [str(value) for value in np.broadcast_to(array["expver"].values, len(hours))]
        return np.asarray(array.values, dtype=np.float32), versions

    def encode(self, step: int, field: Field, expver: str | None) -> tuple[bytes, Row]:
        """The shard of a step and its row in the manifest, from the field as it was read; checked."""
        names = self.layout.channels
        exact = self._fill(field)
        field = round_field(exact, names, self.rounding)
        codec = self.layout.codec
        data = codec.encode(field.reshape(1, codec.channels, codec.rows, codec.columns))
        origin = str(getattr(self.source, "provenance", {}).get("source", ""))
        entry = row(step, int(self.layout.hours[step]), shard_key(step, codec), data, field, origin)
        entry["expver"] = expver
        check_field(field, entry, self.layout, self.nan, self.implausible)
        if self.rounding:
            entry["rounding_error"] = largest_errors(exact, field)
            if step % _SAMPLE_EVERY == 0 and self.layout.compression != "none":
                entry["rounding_saved"] = bytes_saved(exact, field, self.layout.compression)
        return data, entry

    def _write(self, step: int, field: Field, expver: str | None) -> Row:
        data, entry = self.encode(step, field, expver)
        write_atomic(self.root / entry["key"], data, temporary=self.temporary)
        return entry

    def finish(self) -> Any:
        """Merge the log if every part is done; from then on the store opens. The log so far."""
        folder = self.root / "_wx"
        try:
            with merging(folder):
                table = self.log.read()
                if len(table) < len(self.layout.hours):
                    shutil.rmtree(self.temporary, ignore_errors=True)
                    return table
                self._provenance(table)
                self.log.compact()
        except OSError as error:
            raise self._disk_error(error, len(self.layout.hours)) from error
        for name in ("tmp", "claims"):
            shutil.rmtree(folder / name, ignore_errors=True)
        return table

    def _provenance(self, table: Any) -> None:
        about, channels = self.layout.attributes, self.layout.channels
        versions = about["wx_data_version"], Manifest(table).content_hash
        variables = getattr(self.source, "variables", {})
        write_provenance(self.root / "_wx", channels, about["provenance"], variables, versions)

    def _disk_error(self, error: OSError, done: int) -> Exception:
        if error.errno not in FULL:
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
            "grid": f"{layout.grid}, {layout.grid.digest}",
            "band_rows": layout.band_rows,
            "codec": layout.compression,
            "statics": {name: _digest(field) for name, field in layout.statics.items()},
            "nan": self.nan,
            "implausible": self.implausible,
            "rounding": self.rounding,
            "provenance": _lasting(layout.attributes["provenance"]),
        }
        normal: dict[str, Any] = json.loads(json.dumps(plan))
        return normal


class _Rows:
    """Finished rows on their way into the log, about once a second."""

    def __init__(self, log: ManifestLog, shown: Progress) -> None:
        self.log, self.shown, self.count = log, shown, 0
        self._rows: list[Row] = []
        self._flushed = time.monotonic()

    def collect(self, pending: deque[Future[Row]], *, leave: int) -> None:
        """Wait for the oldest of `pending` until `leave` are left."""
        while len(pending) > leave:
            self._rows.append(pending.popleft().result())
            self.shown.update()
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


def _lasting(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change while a conversion is interrupted; a growing archive's last date may."""
    return {name: value for name, value in provenance.items() if not name.startswith("valid_time")}


def _check_bounds(rounding: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    absent = [name for name in rounding if name not in names]
    if absent:
        raise ValueError(f"rounding: {', '.join(absent)} is not converted; channels are {', '.join(names)}")
    for bound in rounding.values():
        quantum(bound)  # raises where there is none
    return {name: float(rounding[name]) for name in names if name in rounding}


def _range_name(steps: range) -> str:
    return f"{steps.start}-{steps.stop}"


@contextmanager
def _claim(folder: Path, steps: range) -> Iterator[None]:
    """One writer per step, whatever the parts; a claim goes with its process, however that ends."""
    claims = folder / "claims"
    claims.mkdir(parents=True, exist_ok=True)
    (folder.parent / "data").mkdir(exist_ok=True)
    with open(claims / _range_name(steps), "w") as mine:
        held = _try_lock(mine)
        for other in claims.iterdir():
            start, stop = map(int, other.name.split("-"))
            overlaps = max(start, steps.start) < min(stop, steps.stop)
            if overlaps and other.name != _range_name(steps):
                with suppress(FileNotFoundError), open(other, "r+") as theirs:
                    held = held and _try_lock(theirs)
        if not held:
            raise StoreError(f"{folder.parent}: another process is converting into this store")
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def merging(folder: Path) -> Iterator[None]:
    """What one process of a store does at a time: create it, and complete it."""
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
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
