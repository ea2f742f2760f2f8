"""Reading values that may lie in a file: every piece of storage once, and little of it at a time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import Any

import numpy as np

from ._grid import Array
from ._kernels import is_tensor, unmasked

# What is read at once, where the pieces of the storage allow it.
_READ_BYTES = 64 << 20
# What is read at once at most, to take the channels of a piece of the storage together.
_PIECE_BYTES = 1 << 30


class Blocks:
    """Values (M, C, *space) that are read block by block and handed out in smaller parts.

    A block holds all members of some rows, and of all channels where they fit; it begins and ends where
    pieces of the storage do, as far as `values.chunks` tells (one size per axis as in zarr, or a tuple of
    sizes as in dask). Arrays in memory are one block, which is not copied. What is masked becomes NaN.

    Args:
        values: anything with `shape` and `dtype` that numpy can slice and turn into an array.
        run: entries of the third axis that belong to one row of the grid.
        rows: rows of the grid that the values hold.
    """

    def __init__(self, values: Array, *, run: int, rows: int) -> None:
        values = unmasked(values)
        self._values, self._run = values, run
        shape = values.shape
        pieces = stored_pieces(values)
        edges = _edges(values, shape[1])
        widest = max(b - a for a, b in pairwise(edges))
        line = values.dtype.itemsize * shape[0] * int(np.prod(shape[3:])) * run
        piece = -(-(pieces[2] or run) // run)
        fitting = [_READ_BYTES // (line * c) // piece * piece for c in (shape[1], widest)]
        height = next((h for h in fitting if h), piece)
        most = max(1, _PIECE_BYTES // (line * min(height, rows)))
        self._edges = sorted({e for a, b in pairwise(edges) for e in (*range(a, b, most), b)})
        self._here = whole = isinstance(values, np.ndarray) or is_tensor(values)
        self.rows = [slice(0, rows)] if whole else _cut(rows, height)
        self._all = whole or fitting[0] > 0
        self._held: tuple[int, int, slice, Array] | None = None

    def read(self, channels: slice | list[int], rows: slice) -> Array:
        """Values (M, c, *space) of rows within one of `self.rows`, or of all of them."""
        place = slice(rows.start * self._run, rows.stop * self._run)
        if self._here:
            return self._values[:, channels, place]
        block = next((b for b in self.rows if b.start <= rows.start and rows.stop <= b.stop), None)
        if block is None or (isinstance(channels, list) and not self._all):
            return np.asarray(unmasked(self._values[:, channels, place]))
        first, values = self._block(channels, block)
        if isinstance(channels, list):
            channels = [c - first for c in channels]
        else:
            channels = slice(channels.start - first, channels.stop - first)
        start = block.start * self._run
        return values[:, channels, place.start - start : place.stop - start]

    def _block(self, channels: slice | list[int], rows: slice) -> tuple[int, Array]:
        """The block that holds some channels of some rows, and its first channel."""
        total = self._values.shape[1]
        if self._all:
            first, last = 0, total
        else:
            assert isinstance(channels, slice)
            first = self._edges[bisect_right(self._edges, channels.start) - 1]
            last = self._edges[bisect_left(self._edges, min(channels.stop, total))]
        held = self._held
        if held is None or held[2] != rows or first < held[0] or last > held[1]:
            place = slice(rows.start * self._run, rows.stop * self._run)
            self._held = None  # makes room for the next one
            values = np.asarray(unmasked(self._values[:, first:last, place]))
            self._held = held = first, last, rows, values
        return held[0], held[3]


def _cut(rows: int, height: int) -> list[slice]:
    return [slice(r, min(r + height, rows)) for r in range(0, rows, height)]


def _edges(values: Any, channels: int) -> list[int]:
    """Where pieces of the storage begin and end along the channels."""
    stored = getattr(values, "chunks", None)
    sizes = 0 if stored is None else stored[1]
    if isinstance(sizes, tuple):
        return [0, *np.cumsum(sizes).tolist()]
    return [*range(0, channels, sizes or 1), channels]


def stored_pieces(values: Any) -> tuple[int, ...]:
    """Size of the pieces of the storage along each axis, 0 where it is unknown."""
    chunks = getattr(values, "chunks", None)
    if chunks is None:
        return (0,) * len(values.shape)
    return tuple(max(c) if isinstance(c, tuple) else int(c or 0) for c in chunks)
