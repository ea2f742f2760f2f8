"""From a training store to batches: seeded order, threads reading ahead, exact resume in mid-epoch."""

import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from wx_data._errors import StoreError
from wx_data._forcings import Forcings
from wx_data._protocols import RowRange
from wx_data._shards import Field
from wx_data._statistics import Statistics
from wx_data._store import Store
from wx_data._times import LeadLike, TimeLike, from_hours, leads_hours, period_hours, show

Ints = NDArray[np.int64]


class TimeWindow:
    """Which times around a base time make a sample.

    Args:
        history: offsets of the input states, zero or negative, e.g. (-6, 0).
        targets: offsets of the target states, positive, e.g. (6,).

    Integers are hours; `timedelta` works as well.

    Raises:
        ValueError: an empty or unsorted part, a positive history or a non-positive target.
    """

    def __init__(self, history: Sequence[LeadLike], targets: Sequence[LeadLike]) -> None:
        self.history = leads_hours(history)
        self.targets = leads_hours(targets)
        offsets = self.offsets
        if not self.history or list(offsets) != sorted(set(offsets)):
            raise ValueError(f"history and targets must be given and increase; got {offsets}")
        if self.history[-1] > 0 or (self.targets and self.targets[0] <= 0):
            raise ValueError(f"history must be <= 0 h and targets > 0 h; got {self.history}, {self.targets}")

    @property
    def offsets(self) -> tuple[int, ...]:
        """Hours of all states, inputs first."""
        return self.history + self.targets

    def __repr__(self) -> str:
        return f"TimeWindow(history={self.history}, targets={self.targets})"


@dataclass(frozen=True)
class Batch:
    """b samples; rows are those of the loader's `RowRange`.

    Attributes:
        x: (b, t_in, c, rows, lon) states at the history offsets.
        y: (b, t_out, c, rows, lon) states at the target offsets.
        forcing: (b, t_in + t_out, a, rows, lon) at all valid times; None without forcings.
        static: (s, rows, lon), as stored; None where the store has none.
        valid_time: (b, t_in + t_out) ``datetime64[ns]``.
        mask: (b, t_out, c, rows, lon), True where y was present; None where the store kept no NaN.
    """

    x: torch.Tensor
    y: torch.Tensor
    forcing: torch.Tensor | None
    static: torch.Tensor | None
    valid_time: NDArray[np.datetime64]
    mask: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.x)


class Loader(Iterable[Batch]):
    """Batches of a store, one epoch per `iter`, or without end through `forever`.

    The order is a pure function of (seed, epoch); threads decide only when a batch is ready, never which.
    Every rank builds the same order and takes its own slice of each global batch, so ranks of one domain
    group (same `rank` here, other `rows`) see the same samples.

    Args:
        store: an open training store.
        window: the times of a sample.
        batch_size: samples per batch and rank.
        seed: of the shuffling.
        shuffle: False keeps the order of time.
        times: period (first, last), both inclusive, that must contain every time of a sample.
        channels: which, in which order; all by default.
        rows: latitude rows of this rank; all by default.
        normalise: statistics of the store; x and y become (value - mean) / std, and a missing value 0.
        forcings: computed at all valid times of a sample.
        missing: a window across a gap in time is an "error", or "drop-window".
        threads: threads that build batches.
        depth: batches built ahead.
        cache_bytes: decoded steps kept in memory, most recently used first.
        rank: data-parallel rank.
        world: number of data-parallel ranks.
        drop_last: leave out the last, smaller batch of an epoch.

    Raises:
        StoreError: a gap, an unknown channel, or statistics of something else.
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
        channels: Sequence[str] | None = None,
        rows: RowRange | None = None,
        normalise: Statistics | None = None,
        forcings: Forcings | None = None,
        missing: Literal["error", "drop-window"] = "error",
        threads: int = 2,
        depth: int = 4,
        cache_bytes: int = 1 << 30,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
    ) -> None:
        if batch_size < 1 or threads < 1 or depth < 1:
            raise ValueError(f"batch_size, threads and depth must be >= 1: {batch_size}, {threads}, {depth}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in 0..{world - 1}; got {rank}")
        if not drop_last and world > 1:
            raise ValueError("drop_last=False would give ranks unequal batches; use it with world=1")
        self.store, self.window = store, window
        self.channels = store.channels if channels is None else tuple(channels)
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.epoch, self._samples = 0, 0
        self._rank, self._world, self._drop_last = rank, world, drop_last
        self._threads, self._depth, self._pid = threads, depth, os.getpid()
        self._base, self._steps = _windows(store, window, times, missing)
        if len(self) == 0:
            raise ValueError(f"{len(self._base)} windows do not fill a batch of {batch_size} x {world} ranks")
        low, high = (rows or RowRange(0, store.grid.shape[0])).within(store.grid.shape[0])
        self._buffers = _Buffers()
        self._fields = _Fields(store, self.channels, (low, high), normalise, cache_bytes, self._buffers)
        self._forcings = forcings.crop(low, high) if forcings is not None else None
        self._static = _statics(store, low, high)
        self._masked = bool(set(self.channels) & set(store.channels_with_nan))

    def __len__(self) -> int:
        """Batches per epoch."""
        per_step = self.batch_size * self._world
        whole = len(self._base) // per_step
        return whole if self._drop_last else -(-len(self._base) // per_step)

    @property
    def samples(self) -> int:
        """Windows in the period."""
        return len(self._base)

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
            "samples": self._samples,
            "windows": len(self._base),
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; any number of threads, and any world size with the same global batch.

        Raises:
            ValueError: the state is of another set of windows, or lies between two batches.
        """
        mine = {"windows": len(self._base), "shuffle": self.shuffle}
        for name, value in mine.items():
            if state[name] != value:
                raise ValueError(f"the state was saved with {name}={state[name]}, this loader has {value}")
        if state["samples"] % (self.batch_size * self._world):
            raise ValueError(
                f"the state stands at sample {state['samples']}, which is not a multiple of the global batch "
                f"{self.batch_size} x {self._world}"
            )
        self.seed, self.epoch, self._samples = state["seed"], state["epoch"], state["samples"]

    def order(self, epoch: int) -> Ints:
        """Indices of the windows in the order of `epoch`."""
        if not self.shuffle:
            return np.arange(len(self._base))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self._base))

    def _run(self, *, endless: bool) -> Generator[Batch, None, None]:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this loader was made in process {self._pid} and is read in process {os.getpid()} after a "
                "fork. It reads ahead with threads and needs no worker processes; if you must, start them "
                "with forkserver or spawn and make the loader there"
            )
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="wx-loader")
        ahead: deque[tuple[int, int, Future[Batch]]] = deque()
        try:
            for epoch, end, windows in self._plan(endless):
                ahead.append((epoch, end, pool.submit(self._build, windows)))
                if len(ahead) > self._depth:
                    yield self._take(ahead)
            while ahead:
                yield self._take(ahead)
        finally:
            for _, _, future in ahead:
                future.cancel()
            pool.shutdown(wait=True)

    def _plan(self, endless: bool) -> Iterator[tuple[int, int, Ints]]:
        """(epoch, samples consumed after it, windows of this rank) of every batch to come."""
        epoch, start = self.epoch, self._samples
        stride = self.batch_size * self._world
        while True:
            order = self.order(epoch)
            usable = len(self) * stride
            for begin in range(start, usable, stride):
                mine = begin + self._rank * self.batch_size
                yield epoch, begin + stride, order[mine : mine + self.batch_size]
            if not endless:
                return
            epoch, start = epoch + 1, 0

    def _take(self, ahead: deque[tuple[int, int, Future[Batch]]]) -> Batch:
        epoch, end, future = ahead.popleft()
        batch = future.result()
        last = end >= len(self) * self.batch_size * self._world
        self.epoch, self._samples = (epoch + 1, 0) if last else (epoch, end)
        return batch

    def _build(self, windows: Ints) -> Batch:
        steps = self._steps[windows]
        n_in = len(self.window.history)
        x = self._buffers.take((len(steps), n_in, *self._fields.shape))
        y = self._buffers.take((len(steps), steps.shape[1] - n_in, *self._fields.shape))
        for sample, row in enumerate(steps.tolist()):
            for place, step in enumerate(row):
                self._fields.copy(step, x[sample, place] if place < n_in else y[sample, place - n_in])
        mask = None
        if self._masked:
            mask = torch.from_numpy(~np.isnan(y))
            if self._fields.normalised:
                np.nan_to_num(x, copy=False)
                np.nan_to_num(y, copy=False)
        hours = self._base[windows][:, None] + np.array(self.window.offsets)
        times = from_hours(hours)
        return Batch(
            x=torch.from_numpy(x),
            y=torch.from_numpy(y),
            forcing=self._forcing(times),
            static=self._static,
            valid_time=times,
            mask=mask,
        )

    def _forcing(self, times: NDArray[np.datetime64]) -> torch.Tensor | None:
        if self._forcings is None:
            return None
        fields = self._forcings.at(times.reshape(-1))
        return fields.reshape(*times.shape, *fields.shape[1:])


class _Buffers:
    """Memory that is used again once nobody refers to it: fresh pages cost more than the copy into them."""

    def __init__(self) -> None:
        self._free: dict[int, deque[NDArray[np.float32]]] = {}

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """An uninitialised array; its memory comes back when it and every tensor made of it are gone."""
        size = int(np.prod(shape))
        free = self._free.setdefault(size, deque())
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(size, dtype=np.float32)
        array = memory.reshape(shape).view()
        # No exit hook: at the end of the process there is nothing to give back to.
        weakref.finalize(array, free.append, memory).atexit = False
        return array


class _Fields:
    """Decoded, selected and normalised steps, the most recently used of them kept."""

    def __init__(
        self,
        store: Store,
        channels: tuple[str, ...],
        rows: tuple[int, int],
        normalise: Statistics | None,
        cache_bytes: int,
        buffers: "_Buffers",
    ) -> None:
        self._store, self._rows, self._buffers = store, rows, buffers
        self._pick = store.channel_index(channels)
        self.shape = (len(channels), rows[1] - rows[0], store.grid.shape[1])
        self._whole = (len(store.channels), *self.shape[1:])
        self.normalised = normalise is not None
        if normalise is not None:
            normalise.check(store.channels, store.grid)
            chosen = normalise.select(channels)
            flat = [name for name, std in zip(channels, chosen.std, strict=True) if not std > 0]
            if flat:
                raise StoreError(f"channel {', '.join(flat)} has no spread; it cannot be normalised")
            self._mean = chosen.mean.astype(np.float32)[:, None, None]
            self._scale = (1 / chosen.std).astype(np.float32)[:, None, None]
        self._room = cache_bytes // (4 * int(np.prod(self.shape)))
        self._held: OrderedDict[int, Field] = OrderedDict()
        self._lock = threading.Lock()

    def copy(self, step: int, out: Field) -> None:
        """Write the field of a step into `out`."""
        if not self._room:
            self._read(step, out)
            return
        with self._lock:
            field = self._held.get(step)
            if field is not None:
                self._held.move_to_end(step)
        if field is None:
            field = self._buffers.take(self.shape)
            self._read(step, field)
            with self._lock:
                self._held[step] = field
                while len(self._held) > self._room:
                    self._held.popitem(last=False)
        np.copyto(out, field)

    def _read(self, step: int, out: Field) -> None:
        if self._pick is None:
            self._store.read_into(step, out, rows=self._rows)
        else:
            whole = self._buffers.take(self._whole)
            self._store.read_into(step, whole, rows=self._rows)
            np.take(whole, self._pick, axis=0, out=out, mode="clip")  # any other mode copies twice
        if self.normalised:
            out -= self._mean
            out *= self._scale


def _windows(
    store: Store, window: TimeWindow, times: tuple[TimeLike, TimeLike] | None, missing: str
) -> tuple[Ints, Ints]:
    """Base hours (N,) and steps (N, offsets) of the windows that lie within the period and are complete."""
    if missing not in ("error", "drop-window"):
        raise ValueError(f'missing must be "error" or "drop-window"; got {missing!r}')
    first, last = period_hours(times, store.hours)
    first, last = max(first, int(store.hours[0])), min(last, int(store.hours[-1]))
    offsets = np.array(window.offsets)
    hours = store.hours[:, None] + offsets
    inside = ((hours >= first) & (hours <= last)).all(axis=1)
    places = np.searchsorted(store.hours, hours).clip(max=len(store) - 1)
    complete = (store.hours[places] == hours).all(axis=1)
    if (inside & ~complete).any() and missing == "error":
        raise StoreError(_gap_message(store, int((inside & ~complete).sum())))
    keep = inside & complete
    if not keep.any():
        span = f"{show(from_hours(first))}..{show(from_hours(last))}"
        raise ValueError(f"no {window} lies within {span} of {store!r}")
    return store.hours[keep], places[keep]


def _gap_message(store: Store, lost: int) -> str:
    gaps = store.gaps
    cause = f"the time step of {store.step_hours} h does not divide the window's offsets"
    if gaps:
        cause = f"{len(gaps)} gaps in time, first {show(gaps[0][0])} -> {show(gaps[0][1])}, "
        cause += f"expected a step of {store.step_hours} h"
    return f'{store.path}: {cause}; {lost} windows are incomplete. missing="drop-window" leaves them out'


def _statics(store: Store, low: int, high: int) -> torch.Tensor | None:
    if not store.statics:
        return None
    return torch.from_numpy(np.stack([field[low:high] for field in store.statics.values()]))
