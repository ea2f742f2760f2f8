"""What a conversion will read, write and take, before it starts."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wx_data._checks import Policy
from wx_data._convert import Job, make_job
from wx_data._healpix import AnyGrid
from wx_data._manifest import ManifestLog
from wx_data._protocols import Source
from wx_data._shards import Compression
from wx_data._times import LeadLike, TimeLike, from_hours


@dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    """What a conversion will do; estimated figures come from a timed sample and are None where unknown.

    Attributes:
        path: the store.
        channels: in its order.
        grid: (H, W), or (cell,) on `Healpix`.
        first: first time.
        last: last time.
        steps: time steps in the store.
        done: of these, already written by an interrupted conversion.
        holes: times asked for that the source lacks.
        sampled: steps that were read and encoded for the estimates.
        requests: to a remote source, for the steps that are left.
        read_bytes: from a remote source, for the steps that are left.
        decoded_bytes: float32 fields of all steps.
        disk_bytes: the finished store.
        disk_free: on its file system.
        seconds: for the steps that are left, in this process alone.
        bottleneck: what takes most of the time: "read" or "compress".
    """

    path: Path
    channels: tuple[str, ...]
    grid: tuple[int, ...]
    first: np.datetime64
    last: np.datetime64
    steps: int
    done: int
    holes: tuple[np.datetime64, ...]
    sampled: int
    requests: int | None
    read_bytes: int | None
    decoded_bytes: int
    disk_bytes: int
    disk_free: int
    seconds: float
    bottleneck: Literal["read", "compress"]

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what is left."""
        return self.disk_bytes * (self.steps - self.done) / self.steps <= self.disk_free


def plan(
    source: Source,
    out: str | Path,
    *,
    channels: Sequence[str] | None = None,
    period: tuple[TimeLike, TimeLike] | None = None,
    step: LeadLike | None = None,
    times: Any = None,
    grid: AnyGrid | None = None,
    missing: Literal["error", "drop"] = "error",
    nan: Policy | None = None,
    implausible: Literal["error", "keep"] = "error",
    band_rows: int | None = None,
    codec: Compression = "lz4hc",
    rounding: Mapping[str, float] | None = None,
    workers: int = 2,
    sample: int = 4,
) -> ConversionPlan:
    """Read and encode a few steps from the middle, and say what `convert` with these arguments would do.

    Nothing is written. The sample passes all checks of the conversion, so that a wrong unit, a missing value
    or an implausible one shows before the work begins.

    Args:
        source: see `convert`, as every argument up to `workers`.
        out: folder of the store.
        channels: which channels.
        period: first and last time, both inclusive.
        step: expected time step.
        times: exact times.
        grid: of the store.
        missing: "error" or "drop".
        nan: what replaces missing values.
        implausible: "error" or "keep".
        band_rows: rows per inner chunk.
        codec: "lz4hc", "lz4" or "none".
        rounding: largest errors per channel.
        workers: threads that compress.
        sample: steps to read and encode. Neighbours, as in the conversion: a source whose chunks hold
            several times is not read once per time.

    Raises:
        SourceError: what `convert` would raise for the time axis and the sample.
    """
    if sample < 1:
        raise ValueError(f"sample must be at least 1; got {sample}")
    job, holes = make_job(
        source,
        out,
        channels=channels,
        period=period,
        step=step,
        times=times,
        grid=grid,
        statics={},
        missing=missing,
        nan=nan,
        implausible=implausible,
        band_rows=band_rows,
        codec=codec,
        rounding=rounding,
        part=(0, 1),
    )
    hours = job.layout.hours
    done = len(ManifestLog(job.root / "_wx").read())
    start = max(0, len(hours) // 2 - sample // 2)
    steps = range(start, min(len(hours), start + sample))
    found = _sample(job, steps)
    left, count = len(hours) - done, len(steps)
    encode = found.encode / max(1, workers)
    return ConversionPlan(
        path=job.root,
        channels=job.layout.channels,
        grid=job.layout.grid.shape,
        first=from_hours(hours)[0],
        last=from_hours(hours)[-1],
        steps=len(hours),
        done=done,
        holes=tuple(from_hours(holes)),
        sampled=count,
        requests=_scaled(found.requests, left / count),
        read_bytes=_scaled(found.read_bytes, left / count),
        decoded_bytes=4 * len(hours) * len(job.layout.channels) * int(np.prod(job.layout.grid.shape)),
        disk_bytes=int(found.bytes * len(hours) / count),
        disk_free=shutil.disk_usage(_existing(job.root)).free,
        seconds=max(found.read, encode) * left / count,
        bottleneck="read" if found.read >= encode else "compress",
    )


@dataclass(frozen=True)
class _Sample:
    read: float
    encode: float
    bytes: int
    requests: int | None
    read_bytes: int | None


def _sample(job: Job, steps: range) -> _Sample:
    """Seconds, bytes and requests of some steps."""
    hours = job.layout.hours[list(steps)]
    if steps.start:
        job.read(job.layout.hours[:1])  # opens files and connections
    before = getattr(job.source, "traffic", None)
    start = time.perf_counter()
    fields, versions = job.read(hours)
    middle = time.perf_counter()
    shards = [job.encode(*each)[0] for each in zip(steps, fields, versions, strict=True)]
    end = time.perf_counter()
    after = getattr(job.source, "traffic", None)
    requests = read_bytes = None
    # A local source counts nothing.
    if before is not None and after is not None and after.requests:
        requests, read_bytes = after.requests - before.requests, after.bytes - before.bytes
    return _Sample(middle - start, end - middle, sum(map(len, shards)), requests, read_bytes)


def _scaled(value: int | None, factor: float) -> int | None:
    return None if value is None else round(value * factor)


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
