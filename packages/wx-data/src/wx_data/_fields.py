"""States on their way from shards into batches: recycled memory, a bounded cache, missing values."""

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from wx_data._errors import StoreError
from wx_data._shards import Field, Scale
from wx_data._statistics import Statistics
from wx_data._store import Store
from wx_data._windows import ABSENT

Fill = Mapping[str, float | Literal["mean", "keep"]]
Mask = NDArray[np.bool_]


class Buffers:
    """Memory that is used again once nobody refers to it: fresh pages cost more than the copy into them.

    Args:
        pin: page-locked memory, from which a CUDA device copies without waiting.
    """

    def __init__(self, *, pin: bool = False) -> None:
        self._pin = pin
        self._free: dict[int, deque[NDArray[np.uint8]]] = {}

    def take(self, shape: tuple[int, ...], dtype: type[np.generic] = np.float32) -> NDArray[Any]:
        """An uninitialised array; its memory comes back when it and every tensor made of it are gone."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        free = self._free.setdefault(size, deque())
        try:
            memory = free.pop()
        except IndexError:
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._pin).numpy()
        array = memory.view(dtype).reshape(shape)
        # No exit hook: at the end of the process there is nothing to give back to.
        weakref.finalize(array, free.append, memory).atexit = False
        return array


class Fields:
    """Decoded, selected, normalised and filled steps, the most recently used of them kept.

    Args:
        store: where they are.
        channels: which, in order.
        rows: [start, stop).
        normalise: statistics of the store.
        fill: what missing values become, per channel in physical units.
        cache_bytes: memory for decoded steps.

    Attributes:
        shape: (c, rows, lon), or (c, cell), of a state.
        gappy: positions of the channels in which values are missing.

    Raises:
        StoreError: an unknown channel, or statistics of something else.
        ValueError: a fill of an unknown channel, or by a mean that is not known.
    """

    def __init__(
        self,
        store: Store,
        channels: tuple[str, ...],
        rows: tuple[int, int],
        *,
        normalise: Statistics | None,
        fill: Fill | None,
        cache_bytes: int,
    ) -> None:
        if len(set(channels)) < len(channels):
            raise ValueError(f"channels must differ; got {', '.join(channels)}")
        self._store, self._rows = store, rows
        pick = store.channel_index(channels)
        self._pick = None if pick is None else pick.tolist()
        self.shape = (len(channels), rows[1] - rows[0], *store.grid.shape[1:])
        self.gappy = tuple(i for i, name in enumerate(channels) if name in store.channels_with_nan)
        self._scale = None if normalise is None else _scale(normalise, store, channels)
        values = _fill_values(channels, self._scale, fill or {})
        self._fill = values.reshape(-1, *[1] * len(store.grid.shape))
        self.room = cache_bytes // (4 * int(np.prod(self.shape)))
        self._buffers = Buffers()
        self._held: OrderedDict[int, Future[Field]] = OrderedDict()
        self._lock = threading.Lock()

    def copy(self, step: int, out: Field, mask: Mask | None) -> None:
        """Write the state of a step into `out`, and into `mask` where it has values."""
        if step == ABSENT:
            out[...] = self._fill
        elif self.room:
            np.copyto(out, self._cached(step))
        else:
            self._read(step, out)
        if mask is None:
            return
        mask[...] = step != ABSENT
        for place in self.gappy if step != ABSENT else ():
            missing = np.isnan(out[place])
            np.logical_not(missing, out=mask[place])
            out[place][missing] = self._fill[place].item()

    def _cached(self, step: int) -> Field:
        """The state of a step; a thread that wants what another one is reading waits for it."""
        with self._lock:
            held = self._held.get(step)
            if held is not None:
                self._held.move_to_end(step)
            else:
                mine = self._held[step] = Future()
                while len(self._held) > self.room:
                    self._held.popitem(last=False)
        if held is not None:
            return held.result()
        try:
            field = self._buffers.take(self.shape)
            self._read(step, field)
        except BaseException as error:
            with self._lock:
                self._held.pop(step, None)
            mine.set_exception(error)
            raise
        mine.set_result(field)
        return field

    def _read(self, step: int, out: Field) -> None:
        self._store.read_into(step, out, rows=self._rows, channels=self._pick, scale=self._scale)


def _scale(normalise: Statistics, store: Store, channels: Sequence[str]) -> Scale:
    normalise.check(store.channels, store.grid)
    chosen = normalise.select(tuple(channels))
    flat = [name for name, std in zip(channels, chosen.std, strict=True) if not std > 0]
    if flat:
        raise StoreError(f"channel {', '.join(flat)} has no spread; it cannot be normalised")
    offset, factor = chosen.mean.astype(np.float32), (1 / chosen.std).astype(np.float32)
    return Scale(offset[:, None, None], factor[:, None, None])


def _fill_values(channels: Sequence[str], scale: Scale | None, fill: Fill) -> Field:
    """(c,) what a missing value becomes after scaling; NaN where it is kept."""
    unknown = [name for name in fill if name not in channels]
    if unknown:
        raise ValueError(f"fill names {', '.join(unknown)}; the channels are {', '.join(channels)}")
    values = np.full(len(channels), np.nan, dtype=np.float32)
    for place, name in enumerate(channels):
        rule = fill.get(name, "keep" if scale is None else "mean")
        if rule == "mean" and scale is None:
            raise ValueError(f'fill of {name} by "mean" needs normalise=statistics')
        if rule == "mean":
            values[place] = 0
        elif rule != "keep":
            one = (0.0, 1.0) if scale is None else (scale.offset[place, 0, 0], scale.factor[place, 0, 0])
            offset, factor = one
            values[place] = (float(rule) - offset) * factor
    return values
