"""How fast a store reads here, against copying memory: what a loader can expect, and what holds it up."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from wx_data._manifest import checksum
from wx_data._store import Store, shard_key


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Decoded megabytes (1e6 bytes) a second, each the best of three rounds in random order.

    Attributes:
        steps: read in a round.
        megabytes: decoded size of a step.
        ratio: decoded over stored bytes.
        memcpy: copying that much memory.
        files: reading the stored bytes only.
        checksum: reading them and computing their checksum.
        one_thread: reading and decoding with one thread.
        threads: the same with several.
        workers: how many these are.
    """

    steps: int
    megabytes: float
    ratio: float
    memcpy: float
    files: float
    checksum: float
    one_thread: float
    threads: float
    workers: int

    @property
    def bottleneck(self) -> str:
        """What a faster machine would need."""
        if self.threads > 0.7 * self.files:
            return "storage"
        return "decompression" if self.ratio > 1.05 else "memory"


def bench(store: Store, *, steps: int = 32, workers: int = 2, seed: int = 0) -> BenchReport:
    """Measure how fast `steps` random steps of a store are read; the page cache is as it is."""
    chosen = np.random.default_rng(seed).permutation(len(store))[:steps].tolist()
    shape = (len(store.channels), *store.grid.shape)
    fields = [np.zeros(shape, dtype=np.float32) for _ in range(workers)]
    source = np.ones(shape, dtype=np.float32)
    paths = [store.path / shard_key(step, store.codec) for step in chosen]
    megabytes = source.nbytes * len(chosen) / 1e6

    def decode(worker: int) -> None:
        for step in chosen[worker::workers]:
            store.read_into(step, fields[worker])

    def copy() -> None:
        for _ in chosen:
            np.copyto(fields[0], source)

    def one() -> None:
        for step in chosen:
            store.read_into(step, fields[0])

    # Never on the main thread, where blosc starts threads of its own.
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(1) as single:
        return BenchReport(
            steps=len(chosen),
            megabytes=source.nbytes / 1e6,
            ratio=len(store) * source.nbytes / int(store.manifest.sizes.sum()),
            memcpy=megabytes / _best(copy),
            files=megabytes / _best(lambda: [path.read_bytes() for path in paths]),
            checksum=megabytes / _best(lambda: [checksum(path.read_bytes()) for path in paths]),
            one_thread=megabytes / _best(lambda: single.submit(one).result()),
            threads=megabytes / _best(lambda: list(pool.map(decode, range(workers)))),
            workers=workers,
        )


def _best(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
