"""Damaged steps of a store, fetched from the source and written anew."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from wx_data._convert import Job, merging
from wx_data._errors import SourceError, StoreError
from wx_data._manifest import Manifest, ManifestLog, Row, read_plan, renew_content
from wx_data._progress import Progress
from wx_data._protocols import Source
from wx_data._store import Failure, Store, StoreLayout
from wx_data._times import from_hours, show, to_hours
from wx_data._zarr3 import write_atomic


@dataclass(frozen=True)
class RepairReport:
    """What was damaged, and of that the times whose data the source has changed since the conversion."""

    path: Path
    repaired: tuple[Failure, ...]
    changed: tuple[np.datetime64, ...]


def repair(
    store: Store | str | Path,
    source: Source,
    *,
    level: Literal["manifest", "sizes", "checksum"] = "checksum",
    changed: Literal["error", "keep"] = "error",
    progress: bool = False,
) -> RepairReport:
    """Find the missing, truncated and corrupt steps of a store, and fetch these and only these again.

    They are written with the settings of the conversion, so that a source which still gives the same data
    restores the same bytes.

    Args:
        store: the store, or its path.
        source: what it was converted from: same channels and grid.
        level: how closely to look for damage; "checksum" reads everything.
        changed: where the source gives other data than at the conversion (ERA5T that became ERA5), an
            "error" before anything of that step is written, or "keep" the new data and its new checksum.
        progress: show a progress bar.

    Raises:
        SourceError: the source lacks a time or a channel, has another grid, or gives other data than before.
        StoreError: the store is unfinished, or another process writes it.
    """
    opened = Store(store.path if isinstance(store, Store) else store, verify=None)
    failures = opened.verify(level, progress=progress).failures
    if not failures:
        return RepairReport(opened.path, (), ())
    job = _job(opened, source)
    _check_source(opened, source, failures)
    replaced: list[np.datetime64] = []
    with (
        merging(opened.path / "_wx"),
        Progress("repair", len(failures), enabled=progress) as shown,
        ThreadPoolExecutor(1, thread_name_prefix="wx-repair") as pool,
    ):
        for failure in failures:
            fields, versions = job.read(opened.hours[[failure.step]])
            data, entry = pool.submit(job.encode, failure.step, fields[0], versions[0]).result()
            if entry["crc32"] != int(opened.manifest.checksums[failure.step]):
                if changed == "error":
                    raise SourceError(_changed_message(opened, failure, entry))
                replaced.append(failure.time)
                # The row first: a kill in between leaves a wrong checksum, which is found again.
                job.log.replace([entry])
            write_atomic(opened.path / entry["key"], data)
            shown.update()
        if replaced:
            folder = opened.path / "_wx"
            renew_content(folder, Manifest(ManifestLog(folder).read()).content_hash)
    return RepairReport(opened.path, failures, tuple(replaced))


def _job(store: Store, source: Source) -> Job:
    plan = read_plan(store.path / "_wx")
    if plan is None:
        raise StoreError(f"{store.path} has lost _wx/plan.json, its conversion's settings; convert it again")
    layout = StoreLayout(
        hours=store.hours,
        channels=store.channels,
        grid=store.grid,
        band_rows=store.codec.band,
        statics=store.statics,
        attributes=store.attributes,
        compression=store.codec.compression,
    )
    rounding = plan.get("rounding", {})
    return Job(store.path, layout, source, plan["nan"], plan["implausible"], rounding, range(len(store)))


def _check_source(store: Store, source: Source, failures: tuple[Failure, ...]) -> None:
    if source.grid != store.grid:
        raise SourceError(
            f"the source's grid is {source.grid.shape} ({source.grid.digest}), the store's "
            f"{store.grid.shape} ({store.grid.digest}). Open the source with grid= as for the conversion"
        )
    absent = [name for name in store.channels if name not in source.channels]
    if absent:
        raise SourceError(f"the source lacks channels of the store: {', '.join(absent)}")
    lost = np.setdiff1d(store.hours[[f.step for f in failures]], to_hours(source.times))
    if lost.size:
        first = show(from_hours(lost[0]))
        raise SourceError(f"the source lacks {lost.size} of {len(failures)} damaged times, first {first}")


def _changed_message(store: Store, failure: Failure, entry: Row) -> str:
    stored = int(store.manifest.checksums[failure.step])
    return (
        f"{store.path}: the source gives other data for {show(failure.time)} than at the conversion (crc32 "
        f'{stored:#010x} then, {entry["crc32"]:#010x} now). changed="keep" (--accept-changes) takes the new '
        "data and records it"
    )
