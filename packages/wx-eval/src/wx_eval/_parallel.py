"""Scoring in processes of their own."""

from __future__ import annotations

import pickle
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from ._score import Columns, Scorer, Task

# Chunks that are sent ahead, per worker.
_AHEAD = 2


Key = TypeVar("Key")


def in_processes(
    scorer: Scorer, tasks: Iterable[tuple[Key, Task | None]], workers: int
) -> Iterator[tuple[Key, Columns | None]]:
    """Columns of each task, in their order; None for None.

    The scorer goes to each worker once. Tasks are drawn as workers get free, so few are held at a time.

    Raises:
        TypeError: for what cannot be pickled.
        RuntimeError: when a worker was killed.
    """
    state = _pickled(scorer, "metrics and climatology")
    # A fork of a process with threads, as pyarrow and torch have them, can hang. The server has none, and
    # imports this package once.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, _begin, (state,))
    pending: deque[tuple[Key, Future[tuple[Columns, bool]] | None]] = deque()
    try:
        for key, task in tasks:
            data = None if task is None else _pickled(task, "values of a chunk")
            pending.append((key, None if data is None else pool.submit(_work, data)))
            if len(pending) >= _AHEAD * workers:
                yield _result(*pending.popleft(), scorer)
        while pending:
            yield _result(*pending.popleft(), scorer)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker of evaluate ended early: it was killed, perhaps for its memory, or the calling script "
            'starts workers where it is imported and needs `if __name__ == "__main__":`'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(
    key: Key, future: Future[tuple[Columns, bool]] | None, scorer: Scorer
) -> tuple[Key, Columns | None]:
    if future is None:
        return key, None
    columns, used_climatology = future.result()
    scorer.used_climatology |= used_climatology
    return key, columns


def _pickled(value: object, what: str) -> bytes:
    try:
        return pickle.dumps(value, protocol=5)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise TypeError(
            f"workers > 1 needs {what} that can be pickled: {error}. Use classes defined in a module, and "
            "arrays or readers that open their file again; or evaluate with workers=1"
        ) from error


_scorer: Scorer


def _begin(state: bytes) -> None:
    global _scorer
    # Ctrl-C reaches the whole group of processes; the parent alone answers to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _scorer = pickle.loads(state)


def _work(data: bytes) -> tuple[Columns, bool]:
    return _scorer.columns(pickle.loads(data)), _scorer.used_climatology
