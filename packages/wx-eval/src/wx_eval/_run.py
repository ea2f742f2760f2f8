"""A resumable evaluation: one file per start, written atomically, then one file of all."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from functools import lru_cache
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np

from ._config import RunSettings, digest
from ._files import write_whole
from ._job import Job, prepare
from ._made import Starts
from ._records import Records

_LINE_SECONDS = 10.0
_POLL_SECONDS = 0.2


def run(
    settings: RunSettings, *, workers: int = 1, overwrite: bool = False, quiet: bool = False
) -> Records | None:
    """Evaluate every start that is not done yet and write one parquet file.

    The rows of a start are kept in a file of their own beside the output until all are there, so a run that
    was killed goes on where it stopped. The result is the same, bit for bit, for any number of workers and of
    interruptions. Under torchrun, or with RANK and WORLD_SIZE set by something else, each rank takes its
    share of the starts and rank 0 joins them.

    Args:
        settings: what to evaluate.
        workers: processes of this rank.
        overwrite: drop what another configuration left.
        quiet: no progress on stderr.

    Returns:
        Records of all starts; None on ranks other than 0.

    Raises:
        ValueError: as `prepare` and `evaluate` do, and when files of another configuration are in the way.
        RuntimeError: when a worker was killed.
    """
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if overwrite and ranks > 1:
        raise ValueError("several ranks cannot agree on what --overwrite drops: remove the old output first")
    job, parts = prepare(settings), _Parts(settings)
    starts = job.init_times
    if settings.missing_truth == "error":
        job.check_truth()
    job.check_climatology()
    parts.begin(overwrite=overwrite)
    if job.unscored and not (rank or quiet):
        text = f"the truth has no channel {', '.join(job.unscored)}: not scored"
        print(f"{settings.model}: {text}", file=sys.stderr)
    done = parts.done()
    mine = [t for t in starts[rank::ranks] if t not in done]
    with _Progress(
        settings.model, len(starts[rank::ranks]), len(starts[rank::ranks]) - len(mine), quiet
    ) as bar:
        if workers <= 1 or len(mine) <= 1:
            for start in mine:
                parts.write(start, job.records(start))
                bar.step()
        else:
            for _ in _pooled(settings, mine, workers):
                bar.step()
    if rank:
        return None
    _wait_for(parts, starts, quiet)
    return parts.join(starts)


def _pooled(settings: RunSettings, starts: Sequence[np.datetime64], workers: int) -> Iterator[None]:
    """Evaluate starts in processes of their own."""
    pool = ProcessPoolExecutor(min(workers, len(starts)), mp_context=_context())
    try:
        pending = {pool.submit(_work, settings, str(t)) for t in starts}
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                yield
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker was killed, perhaps for its memory: finished starts are kept, run the same command "
            "again, with fewer workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> BaseContext:
    """Processes that inherit no thread and no open file, and share one import of this package if possible."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@lru_cache(maxsize=1)
def _opened(text: str, folder: str) -> Job:
    return prepare(RunSettings.parse(json.loads(text), folder))


def _work(settings: RunSettings, start: str) -> None:
    job = _opened(json.dumps(settings.text), settings.folder)
    init = np.datetime64(start)
    _Parts(settings).write(init, job.records(init))


class _Parts:
    """Files of the starts that are done, in the folder <output>.parts."""

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self.output = Path(settings.path(settings.output))
        self.folder = self.output.with_name(self.output.name + ".parts")
        self._mark = self.folder / "run.json"
        self._kept: Records | None = None

    def begin(self, *, overwrite: bool) -> None:
        """Look at what earlier runs left."""
        if overwrite:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.output.unlink(missing_ok=True)
        if self._mark.exists():
            self._refuse(json.loads(self._mark.read_text()), self.folder)
        if self.output.exists():
            self._kept = Records.from_parquet(self.output)
            for found in [run for of_model in self._kept.runs.values() for run in of_model] or [{}]:
                self._refuse(found, self.output)

    def _refuse(self, found: Mapping[str, Any], where: Path) -> None:
        ours = digest(self._settings.kept)
        if digest(found) != ours:
            raise ValueError(
                f"{where} is of another configuration or version ({digest(found)}, this is {ours}): choose "
                "another output, or drop the old one by --overwrite"
            )

    def done(self) -> set[Any]:
        """Starts that need no work."""
        found: set[Any] = {np.datetime64(_stamp(p.stem), "s") for p in self.folder.glob("[0-9]*.parquet")}
        if self._kept is not None:
            found |= set(self._kept.init_times.astype("datetime64[s]"))
        return found

    def write(self, start: np.datetime64, records: Records) -> None:
        """Keep the rows of one start; the first one marks the folder as that of this configuration."""
        if not self._mark.exists():
            write_whole(self._mark, lambda path: path.write_text(json.dumps(self._settings.kept, indent=1)))
        write_whole(self.folder / f"{str(start).replace(':', '')}.parquet", records.to_parquet)

    def join(self, starts: Starts) -> Records:
        """Write the output from all starts and drop the parts."""
        files = sorted(self.folder.glob("[0-9]*.parquet"))
        found = [Records.from_parquet(path) for path in files]
        if self._kept is not None:
            found.append(self._kept)
        joined = found[0].merge(*found[1:])
        absent = np.setdiff1d(starts, joined.init_times.astype("datetime64[s]"))
        if absent.size:
            raise RuntimeError(f"{self.folder} lacks the start {absent[0]}: run the same command again")
        if files:
            write_whole(self.output, joined.to_parquet)
        shutil.rmtree(self.folder, ignore_errors=True)
        return joined


class _Progress(AbstractContextManager["_Progress"]):
    """Starts done, on stderr: one line that is rewritten on a terminal, a line now and then elsewhere."""

    def __init__(self, model: str, total: int, done: int, quiet: bool) -> None:
        self._model, self._total, self._done, self._first, self._quiet = model, total, done, done, quiet
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()
        if done:
            self._line(f", {done} of them by an earlier run")

    def step(self) -> None:
        """One more start is done."""
        self._done += 1
        now = time.monotonic()
        if self._terminal or now - self._shown > _LINE_SECONDS or self._done == self._total:
            speed = (self._done - self._first) / max(now - self._start, 1e-9)
            self._shown = now
            self._line(f", {speed:.2f} a second, {(self._total - self._done) / speed:.0f} s left")

    def __exit__(self, *_: object) -> None:
        if self._terminal and not self._quiet:
            print(file=sys.stderr)

    def _line(self, more: str) -> None:
        if not self._quiet:
            text = f"{self._model}: {self._done} of {self._total} starts{more}"
            print(
                f"\r\033[K{text}" if self._terminal else text,
                end="" if self._terminal else "\n",
                file=sys.stderr,
            )
            sys.stderr.flush()


def _wait_for(parts: _Parts, starts: Starts, quiet: bool) -> None:
    """Until the other ranks are done."""
    shown = time.monotonic()
    while left := set(starts) - parts.done():
        time.sleep(_POLL_SECONDS)
        if not quiet and time.monotonic() - shown > _LINE_SECONDS:
            shown = time.monotonic()
            print(f"waiting for {len(left)} starts of other ranks", file=sys.stderr)


def _stamp(stem: str) -> str:
    """ISO time of the name of a part."""
    date, _, clock = stem.partition("T")
    return f"{date}T{clock[:2]}:{clock[2:4]}:{clock[4:6]}"
