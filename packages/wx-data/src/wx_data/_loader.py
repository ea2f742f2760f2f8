"""From a training store to batches: seeded order, threads reading ahead, exact resume in mid-epoch."""

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from wx_data._fields import Buffers, Fields, Fill, Mask
from wx_data._forcings import Forcings
from wx_data._protocols import RowRange
from wx_data._shards import Field, crc32c
from wx_data._statistics import Statistics
from wx_data._store import Store
from wx_data._times import LeadLike, TimeLike, from_hours
from wx_data._upload import Uploader
from wx_data._windows import Ints, Missing, TimeWindow, find_windows


@dataclass(frozen=True)
class Batch:
    """b samples; rows are those of the loader's `RowRange`, halo included.

    Of a store on `Healpix` every (..., rows, lon) is (..., cell); ``batch.x[..., store.grid.faces]`` is
    (..., 12, nside, nside), which networks on base pixels take.

    Attributes:
        x: (b, t_in, c, rows, lon) states at the history offsets.
        y: (b, t_out, c, rows, lon) states at the target offsets.
        forcing: (b, t_in + t_out, a, rows, lon) at all valid times; None without forcings.
        static: (s, rows, lon), as stored; None where the store has none.
        valid_time: (b, t_in + t_out) ``datetime64[ns]``.
        mask: (b, t_out, c, rows, lon), True where y was present; None where nothing can be missing.
        x_mask: the same of x.
    """

    x: torch.Tensor
    y: torch.Tensor
    forcing: torch.Tensor | None
    static: torch.Tensor | None
    valid_time: NDArray[np.datetime64]
    mask: torch.Tensor | None
    x_mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)


class Loader(Iterable[Batch]):
    """Batches of a store, one epoch per `iter`, or without end through `forever`.

    The order is a pure function of (seed, epoch); threads decide only when a batch is ready, never which.
    Every rank builds the same order and takes its own slice of each global batch: ranks see disjoint samples,
    and ranks of one domain group (same `rank` here, other `rows`) the same ones.

    It reads ahead with threads, so it is iterated directly and not through `torch.utils.data.DataLoader`.

    Args:
        store: an open training store.
        window: the times of a sample.
        batch_size: samples per batch and rank.
        seed: of the shuffling.
        shuffle: False keeps the order of time.
        times: period (first, last), both inclusive, that must contain every time of a sample.
        stride: base times at multiples of this only, counted from 00 UTC; every step of the store by default.
        channels: which, in which order; all by default.
        rows: latitude rows of this rank; all by default. A halo ends at the poles. On `Healpix` the rows are
            cells, in nested order those of a compact region, and there is no halo.
        normalise: statistics of the store; x and y become (value - mean) / std.
        training_period: (first, last), both inclusive, beyond which the statistics must not reach, since they
            would know of the years that test the model; the same in a loader of validation years.
        forcings: computed at all valid times of a sample.
        missing: a window of which a state is absent is an "error", is left out ("drop-window"), or has that
            state filled and False in the masks ("fill").
        fill: channel -> what its missing values become: a number in the channel's units, "mean" (that of
            `normalise`) or "keep" (NaN). By default the mean where `normalise` is given, else NaN.
        threads: threads that decode.
        depth: batches built ahead.
        cache_bytes: memory for decoded steps, most recently used first.
        rank: data-parallel rank.
        world: number of data-parallel ranks.
        drop_last: leave out the last, smaller batch of an epoch. False shares its samples among the ranks,
            which then may differ by one sample.
        device: where tensors are delivered. A CUDA device gets them from page-locked memory, on a stream of
            its own, one batch ahead.
        pin: page-locked host memory; by default for a CUDA device only.

    Attributes:
        epoch: of the next batch.
        samples: windows in the period.
        memory_bytes: host memory of its arrays at most: `depth` + 2 batches, the cache, the scratch. The
            decoder and the allocator take some 20 MB more.

    Raises:
        StoreError: an absent state, an unknown channel, or statistics of something else.
        ValueError: an argument out of range, or no window in the period.
    """

    def __init__(
        self,
        store: Store,
        window: TimeWindow,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        times: tuple[TimeLike, TimeLike] | None = None,
        stride: LeadLike | None = None,
        channels: Sequence[str] | None = None,
        rows: RowRange | None = None,
        normalise: Statistics | None = None,
        training_period: tuple[TimeLike, TimeLike] | None = None,
        forcings: Forcings | None = None,
        missing: Missing = "error",
        fill: Fill | None = None,
        threads: int = 2,
        depth: int = 4,
        cache_bytes: int = 1 << 30,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
        device: torch.device | str | None = None,
        pin: bool | None = None,
    ) -> None:
        if batch_size < 1 or threads < 1 or depth < 1:
            raise ValueError(f"batch_size, threads and depth must be >= 1: {batch_size}, {threads}, {depth}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in 0..{world - 1}; got {rank}")
        if training_period is not None:
            if normalise is None:
                raise ValueError("training_period is that of the statistics; pass normalise= as well")
            normalise.check(store.channels, store.grid, training_period)
        self.store, self.window = store, window
        self.channels = store.channels if channels is None else tuple(channels)
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.epoch, self._consumed = 0, 0
        self._rank, self._world, self._drop_last = rank, world, drop_last
        self._threads, self._depth, self._pid = threads, depth, os.getpid()
        low, high = store.row_bounds(rows)
        self._fields = Fields(
            store, self.channels, (low, high), normalise=normalise, fill=fill, cache_bytes=cache_bytes
        )
        self._windows = find_windows(
            store, window, self.channels, times=times, stride=stride, missing=missing
        )
        self._check_batches()
        on_device = torch.device("cpu" if device is None else device)
        self._uploader = None if on_device.type == "cpu" else Uploader(on_device)
        self._buffers = Buffers(pin=on_device.type == "cuda" if pin is None else pin)
        self._forcings = forcings.crop(low, high) if forcings is not None else None
        static = _statics(store, low, high)
        self._static = None if static is None else static.to(on_device)
        self._masked = bool(self._fields.gappy) or not self._windows.complete

    def __len__(self) -> int:
        """Batches per epoch."""
        whole = len(self._windows) // self._global_batch
        return whole if self._drop_last else -(-len(self._windows) // self._global_batch)

    def __repr__(self) -> str:
        return (
            f"Loader({self.window}, {self.samples} windows, {len(self)} batches of {self.batch_size} x "
            f"{self._world}, at most {self.memory_bytes / 1e6:.0f} MB)"
        )

    def __getitem__(self, index: int) -> NoReturn:
        raise TypeError(
            "a Loader makes whole batches in its own order and reads ahead with threads: iterate it directly "
            "(`for batch in loader`) instead of wrapping it in torch.utils.data.DataLoader"
        )

    @property
    def samples(self) -> int:
        """Windows in the period."""
        return len(self._windows)

    @property
    def memory_bytes(self) -> int:
        """Host memory in bytes that batches, cache and scratch buffers will take at most."""
        state = 4 * int(np.prod(self._fields.shape))
        per_state = state + (state // 4 if self._masked else 0)
        if self._forcings is not None:
            per_state += state // len(self.channels) * len(self._forcings.channels)
        batch = self.batch_size * len(self.window.offsets) * per_state
        cache = min(self._fields.room, np.unique(self._windows.steps).size) * state
        return (self._depth + 2) * batch + cache + self._threads * self.store.scratch_bytes

    def __iter__(self) -> Iterator[Batch]:
        """What is left of the current epoch."""
        return self._run(endless=False)

    def forever(self) -> Generator[Batch, None, None]:
        """Batches without end; reading ahead goes across the borders of epochs."""
        return self._run(endless=True)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out: JSON data."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "samples": self._consumed,
            **self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; any number of threads, and any world size with the same global batch.

        Raises:
            ValueError: the state is of another set of windows, or lies between two batches.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the state was saved with {name}={state.get(name)}, this loader has {value}"
                )
        if state["samples"] % self._global_batch:
            raise ValueError(
                f"the state stands at sample {state['samples']}, which is not a multiple of the global batch "
                f"{self.batch_size} x {self._world}"
            )
        self.seed, self.epoch, self._consumed = state["seed"], state["epoch"], state["samples"]

    def order(self, epoch: int) -> Ints:
        """Indices of the windows in the order of `epoch`."""
        if not self.shuffle:
            return np.arange(len(self._windows))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self._windows))

    @property
    def _global_batch(self) -> int:
        return self.batch_size * self._world

    def _identity(self) -> dict[str, Any]:
        """What a state must share with the loader that takes it up."""
        digest = f"{crc32c(self._windows.hours):08x}"
        return {"windows": len(self._windows), "base_times": digest, "shuffle": self.shuffle}

    def _check_batches(self) -> None:
        if len(self) == 0:
            raise ValueError(
                f"{self.samples} windows do not fill a batch of {self.batch_size} x {self._world} ranks"
            )
        tail = self.samples % self._global_batch
        if not self._drop_last and 0 < tail < self._world:
            raise ValueError(
                f"drop_last=False leaves {tail} samples for the last batch of {self._world} ranks; use "
                "drop_last=True or another period"
            )

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this loader was made in process {self._pid} and is read in process {os.getpid()} after a "
                "fork. It reads ahead with threads and needs no worker processes; if you must, start them "
                "with forkserver or spawn and make the loader there"
            )

    def _run(self, *, endless: bool) -> Generator[Batch, None, None]:
        self._check_process()
        with _pool(self._threads, "wx-loader") as readers, _pool(1, "wx-upload") as uploads:
            made = self._read_ahead(readers, endless)
            stream = made if self._uploader is None else self._upload_ahead(self._uploader, uploads, made)
            for position, future in stream:
                self._check_process()
                batch = future.result()
                if self._uploader is not None:
                    self._uploader.hand_over(_tensors(batch))
                self.epoch, self._consumed = position
                del future
                yield batch
                del batch

    def _plan(self, endless: bool) -> Iterator[tuple["_Position", Ints]]:
        """The position after every batch to come, and its windows on this rank."""
        epoch, start = self.epoch, self._consumed
        while True:
            order = self.order(epoch)
            for begin in range(start, len(self) * self._global_batch, self._global_batch):
                part = order[begin : begin + self._global_batch]
                end = begin + self._global_batch
                last = end >= len(self) * self._global_batch
                yield (
                    _Position(epoch + last, 0 if last else end),
                    np.array_split(part, self._world)[self._rank],
                )
            if not endless:
                return
            epoch, start = epoch + 1, 0

    def _read_ahead(self, pool: ThreadPoolExecutor, endless: bool) -> Iterator[tuple["_Position", "_Result"]]:
        """Batches in the making, `depth` of them begun before they are wanted."""
        ahead: deque[tuple[_Position, _Result]] = deque()
        for position, windows in self._plan(endless):
            ahead.append((position, self._begin(pool, windows)))
            if len(ahead) > self._depth:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()

    def _upload_ahead(
        self, uploader: Uploader, pool: ThreadPoolExecutor, made: Iterator[tuple["_Position", "_Result"]]
    ) -> Iterator[tuple["_Position", "_Result"]]:
        """The same batches on the device, one of them begun before it is wanted."""

        def upload(pending: _Result) -> Batch:
            batch = pending.result()
            moved: dict[str, Any] = dict(zip(_MOVED, uploader.copy(_tensors(batch)), strict=True))
            return replace(batch, **moved)

        ahead: deque[tuple[_Position, _Result]] = deque()
        for position, pending in made:
            ahead.append((position, pool.submit(upload, pending)))
            del pending
            if len(ahead) > 1:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()

    def _begin(self, pool: ThreadPoolExecutor, windows: Ints) -> "_Pending":
        """Have all threads fill one batch."""
        steps, n_in = self._windows.steps[windows], len(self.window.history)
        x, x_mask = self._states(len(steps), n_in)
        y, mask = self._states(len(steps), steps.shape[1] - n_in)
        work: list[_Work] = []
        for sample, row in enumerate(steps.tolist()):
            work += _work(row[:n_in], x[sample], None if x_mask is None else x_mask[sample])
            work += _work(row[n_in:], y[sample], None if mask is None else mask[sample])
        parts = min(self._threads, len(work))
        tasks: list[Future[Any]] = [pool.submit(self._fill, work[part::parts]) for part in range(parts)]
        hours = self._windows.hours[windows][:, None] + np.array(self.window.offsets)
        times = from_hours(hours)
        forcing = None if self._forcings is None else pool.submit(_forcing, self._forcings, times)
        batch = Batch(
            x=torch.from_numpy(x),
            y=torch.from_numpy(y),
            forcing=None,
            static=self._static,
            valid_time=times,
            mask=None if mask is None else torch.from_numpy(mask),
            x_mask=None if x_mask is None else torch.from_numpy(x_mask),
        )
        return _Pending(batch, tasks, forcing)

    def _states(self, samples: int, times: int) -> tuple[Field, Mask | None]:
        shape = (samples, times, *self._fields.shape)
        return self._buffers.take(shape), self._buffers.take(shape, np.bool_) if self._masked else None

    def _fill(self, work: Sequence["_Work"]) -> None:
        for step, out, mask in work:
            self._fields.copy(step, out, mask)


class _Position(NamedTuple):
    """Where the next batch begins."""

    epoch: int
    samples: int


_Work = tuple[int, Field, Mask | None]


@dataclass(frozen=True)
class _Pending:
    """A batch that threads are filling."""

    batch: Batch
    tasks: Sequence[Future[Any]]
    forcing: Future[torch.Tensor] | None

    def result(self) -> Batch:
        """The batch when it is full."""
        for task in self.tasks:
            task.result()
        if self.forcing is None:
            return self.batch
        return replace(self.batch, forcing=self.forcing.result())


_Result = _Pending | Future[Batch]
_MOVED = ("x", "y", "forcing", "mask", "x_mask")


def _tensors(batch: Batch) -> list[torch.Tensor | None]:
    return [getattr(batch, name) for name in _MOVED]


def _work(steps: Sequence[int], states: Field, masks: Mask | None) -> list[_Work]:
    return [(step, states[i], None if masks is None else masks[i]) for i, step in enumerate(steps)]


def _forcing(forcings: Forcings, times: NDArray[np.datetime64]) -> torch.Tensor:
    fields = forcings.at(times.reshape(-1))
    return fields.reshape(*times.shape, *fields.shape[1:])


@contextmanager
def _pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _statics(store: Store, low: int, high: int) -> torch.Tensor | None:
    if not store.statics:
        return None
    return torch.from_numpy(np.stack([field[low:high] for field in store.statics.values()]))
