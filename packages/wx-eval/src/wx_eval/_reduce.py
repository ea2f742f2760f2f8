"""Weighted sums over regions, added up in one fixed order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ._grid import Array, Grid, Vector
from ._regions import Mask

if TYPE_CHECKING:
    from scipy import sparse


# Numbers in a row of sums from which one call per row costs less than running sums of each number.
_WIDE_ROW = 64


@dataclass(frozen=True)
class _Band:
    """Points of one region in some rows, counted from the first point of these rows.

    Attributes:
        rows: those with points.
        points: of these rows; a slice where they are neighbours.
        first: position in `points` of the first one of each row.
        line: row of each point.
        weight: of each point.
    """

    rows: npt.NDArray[np.intp]
    points: npt.NDArray[np.intp] | slice
    first: npt.NDArray[np.intp]
    line: npt.NDArray[np.int32]
    weight: Vector


class Reducer:
    """Sums of fields over the regions of one grid.

    A region is summed along every row of the grid, and then row after row, in float64. The sum of a row needs
    the points of that row alone. So the bits depend on the grid, the mask of the region and the field: not on
    the other regions, nor on how many rows, channels or statistics are handled at a time or where.

    Args:
        grid: points.
        masks: (N,) by region, from `region_masks`.
        weight: (N,), from `point_weights`.
    """

    def __init__(self, grid: Grid, masks: Mapping[str, Mask], weight: Vector) -> None:
        self.grid, self.regions = grid, tuple(masks)
        self._edges = grid.edges
        self._weight = weight
        self._points = [np.flatnonzero(mask).astype(np.uint32) for mask in masks.values()]
        self._first = [np.searchsorted(points, self._edges) for points in self._points]
        self._bands: dict[tuple[int, int], list[_Band]] = {}
        self._ones: dict[tuple[int, int, bool], Vector] = {}
        self._matrices: dict[tuple[int, int], sparse.csr_array] = {}

    @property
    def rows(self) -> int:
        """Rows of the grid."""
        return len(self._edges) - 1

    def points(self, rows: slice) -> slice:
        """The points of some rows."""
        return slice(int(self._edges[rows.start]), int(self._edges[rows.stop]))

    def bands(self, rows: slice, points: int) -> list[slice]:
        """Cut rows into bands of about so many points."""
        step = max(1, points // int(np.diff(self._edges).max()))
        return [slice(r, min(r + step, rows.stop)) for r in range(rows.start, rows.stop, step)]

    def sums(self, field: Array, rows: slice, *, weighted: bool = True) -> Vector:
        """sum_i w_i field_i over each row of each region: (rows, R, C, K) from (C, N) or (C, N, K).

        Without `weighted`, w is 1.
        """
        full = field if field.ndim == 3 else field[..., None]
        out = np.zeros((rows.stop - rows.start, len(self.regions), full.shape[0], full.shape[2]))
        for region, band in enumerate(self._of(rows)):
            if band.rows.size:
                weight = band.weight[:, None] if field.ndim == 3 else band.weight
                picked = _take(field, band.points)
                product = picked * weight if weighted else picked.astype(np.float64)
                summed = np.add.reduceat(product, band.first, axis=1)
                out[band.rows, region] = np.moveaxis(summed.reshape(len(full), -1, full.shape[2]), 1, 0)
        return out

    def weights(self, rows: slice, *, weighted: bool = True) -> Vector:
        """`sums` of a field of ones, (rows, R, 1, 1), computed once."""
        key = rows.start, rows.stop, weighted
        if key not in self._ones:
            points = self.points(rows)
            self._ones[key] = self.sums(np.ones((1, points.stop - points.start)), rows, weighted=weighted)
        return self._ones[key]

    def rank_sums(
        self, below_N: Array, tied_N: Array, scored_N: npt.NDArray[np.bool_], members: int, rows: slice
    ) -> Vector:
        """Weight of every rank in each row of each region, (rows, R, M + 1).

        A point spreads its weight evenly from rank `below` to rank `below` + `tied`.
        """
        out = np.zeros((rows.stop - rows.start, len(self.regions), members + 1))
        for region, band in enumerate(self._of(rows)):
            used, weight, line = scored_N[band.points], band.weight, band.line
            below, tied = below_N[band.points], tied_N[band.points]
            if not used.all():
                weight, line, below, tied = weight[used], line[used], below[used], tied[used]
            out[:, region] = _rank_weights(line, below, tied, weight, out.shape[0], members)
        return out

    def sparse_sums(self, field_NK: sparse.csr_array, rows: slice) -> Vector:
        """sum_i w_i field_ik over each row of each region, (rows, R, K)."""
        key = rows.start, rows.stop
        if key not in self._matrices:
            self._matrices[key] = self._matrix(rows)
        summed: Vector = (self._matrices[key] @ field_NK).toarray()
        return summed.reshape(rows.stop - rows.start, len(self.regions), -1)

    def product_sums(self, vectors_VN: Vector, rows: slice, *, weighted: bool = True) -> Vector:
        """sum_i w_i x_ui x_vi over each row of each region, (rows, R, V, V)."""
        size = len(vectors_VN)
        out = np.zeros((rows.stop - rows.start, len(self.regions), size, size))
        for region, band in enumerate(self._of(rows)):
            ends = [*band.first, band.weight.size]
            points = np.arange(vectors_VN.shape[1])[band.points]
            for row, start, stop in zip(band.rows, ends[:-1], ends[1:], strict=True):
                x = vectors_VN[:, points[start:stop]]
                out[row, region] = (x * band.weight[start:stop] if weighted else x) @ x.T
        return out

    def _of(self, rows: slice) -> list[_Band]:
        """The bands of all regions."""
        key = rows.start, rows.stop
        if key not in self._bands:
            self._bands[key] = [self._band(region, rows) for region in range(len(self.regions))]
        return self._bands[key]

    def _band(self, region: int, rows: slice) -> _Band:
        first = self._first[region][rows.start : rows.stop + 1]
        points = self._points[region][first[0] : first[-1]]
        held = np.diff(first)
        origin = int(self._edges[rows.start])
        start = int(points[0]) if points.size else origin
        stop = start + points.size
        neighbours = points.size == 0 or int(points[-1]) + 1 == stop
        return _Band(
            rows=np.flatnonzero(held),
            points=slice(start - origin, stop - origin) if neighbours else points.astype(np.intp) - origin,
            first=(first[:-1] - first[0])[held > 0],
            line=np.repeat(np.arange(held.size, dtype=np.int32), held),
            weight=self._weight[start:stop] if neighbours else self._weight[points],
        )

    def _matrix(self, rows: slice) -> sparse.csr_array:
        """((row, region), point) of a band."""
        from scipy import sparse

        bands, points = self._of(rows), self.points(rows)
        size = points.stop - points.start
        lines = [np.multiply(band.line, len(bands), dtype=np.intp) for band in bands]
        line = np.concatenate([each + r for r, each in enumerate(lines)])
        point = np.concatenate([np.arange(size)[band.points] for band in bands])
        order = np.lexsort((point, line))
        shape = ((rows.stop - rows.start) * len(bands), size)
        first = np.searchsorted(line[order], np.arange(shape[0] + 1))
        weight = np.concatenate([band.weight for band in bands])[order]
        return sparse.csr_array((weight, point[order], first), shape=shape)


def _take(field: Array, points: npt.NDArray[np.intp] | slice) -> Array:
    return field[:, points] if isinstance(points, slice) else np.take(field, points, axis=1)


def add_rows(total: Vector, rows: Vector) -> None:
    """Add rows (rows, *S) to a total (*S) in place, one after the other."""
    if total.size > _WIDE_ROW:
        for row in rows:
            np.add(total, row, out=total)
    else:
        # Running sums add in the same order without a call per row.
        total[...] = np.add.accumulate(np.concatenate([total[None], rows]), axis=0)[-1]


def _rank_weights(
    line: npt.NDArray[np.int32], below: Array, tied: Array, weight: Vector, lines: int, members: int
) -> Vector:
    """(lines, M + 1) from the points in order of their lines.

    Fields with a bound, such as precipitation, tie many members at it: these runs start at the first rank or
    end at the last one and are cumulated, whatever their length. Only the rest is written out.
    """
    place = np.multiply(line, members + 1, dtype=np.intp)
    if not tied.any():
        return _histogram(place + below, weight, lines, members)
    out = _histogram(place + below, np.where(tied, 0.0, weight), lines, members)
    share = weight / np.add(tied, 1, dtype=np.float64)
    low = (below == 0) & (tied > 0)
    high = (below + tied == members) & (tied > 0) & ~low
    if low.any():
        run = _histogram(place + tied, share * low, lines, members)
        out += np.cumsum(run[:, ::-1], axis=1)[:, ::-1]
    if high.any():
        out += np.cumsum(_histogram(place + below, share * high, lines, members), axis=1)
    rest = np.flatnonzero((tied > 0) & ~low & ~high)
    if rest.size:
        entries = np.add(tied[rest], 1, dtype=np.intp)
        ends = np.cumsum(entries)
        first = place[rest] + below[rest] - ends + entries
        run = np.arange(ends[-1]) + np.repeat(first, entries)
        out += _histogram(run, np.repeat(share[rest], entries), lines, members)
    return out


def _histogram(place: npt.NDArray[np.intp], weight: Vector, lines: int, members: int) -> Vector:
    """(lines, M + 1) sums of weights at line * (M + 1) + rank."""
    # Of no points at all bincount makes integers.
    counts = np.bincount(place, weight, lines * (members + 1)).astype(np.float64, copy=False)
    return counts.reshape(lines, members + 1)
