"""Weighted sums over regions, added up in one fixed order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from ._grid import Array, Grid, Vector
from ._regions import Mask


class Reducer:
    """Sums of fields over the regions of one grid.

    A region is summed along every row of the grid, point after point, and then row after row, in float64. So
    its bits depend on the grid, its own mask and the field alone: not on the other regions, nor on how many
    rows, channels or statistics are handled at a time.

    Args:
        grid: points.
        masks: (N,) by region, from `region_masks`.
        weight: (N,), from `point_weights`.
    """

    def __init__(self, grid: Grid, masks: Mapping[str, Mask], weight: Vector) -> None:
        self.grid, self.regions = grid, tuple(masks)
        self._edges = grid.edges
        points = [np.flatnonzero(mask) for mask in masks.values()]
        point = np.concatenate(points)
        region = np.repeat(np.arange(len(points)), [len(p) for p in points])
        line = (np.searchsorted(self._edges, point, side="right") - 1) * len(points) + region
        order = np.lexsort((point, line))
        self._point = point[order].astype(np.int32)
        self._weight = weight[self._point]
        self._matrices: dict[tuple[int, int, bool], sparse.csr_array] = {}
        self._first = np.searchsorted(line[order], np.arange(self.rows * len(points) + 1))

    @property
    def rows(self) -> int:
        """Rows of the grid."""
        return len(self._edges) - 1

    def points(self, rows: slice) -> slice:
        """The points of some rows."""
        return slice(int(self._edges[rows.start]), int(self._edges[rows.stop]))

    def bands(self, points: int) -> list[slice]:
        """Cut the rows into bands of about so many points."""
        step = max(1, points // int(np.diff(self._edges).max()))
        return [slice(r, min(r + step, self.rows)) for r in range(0, self.rows, step)]

    def add(
        self, total_RK: Vector, field_NK: Array | sparse.csr_array, rows: slice, *, weighted: bool = True
    ) -> None:
        """Add sum_i w_i field_ik over the points of each region in some rows to `total_RK`, in place.

        Bands must follow one another from the first row to the last. Without `weighted`, w is 1.
        """
        sums = self._matrix(rows, weighted) @ field_NK
        if sparse.issparse(sums):
            sums = sums.toarray()
        for row in sums.reshape(rows.stop - rows.start, *total_RK.shape):
            np.add(total_RK, row, out=total_RK)

    def _matrix(self, rows: slice, weighted: bool) -> sparse.csr_array:
        """((row, region), point) of a band."""
        key = rows.start, rows.stop, weighted
        if key not in self._matrices:
            self._matrices[key] = self._make(rows, weighted)
        return self._matrices[key]

    def _make(self, rows: slice, weighted: bool) -> sparse.csr_array:
        first = self._first[rows.start * len(self.regions) : rows.stop * len(self.regions) + 1]
        part, points = slice(first[0], first[-1]), self.points(rows)
        weight = self._weight[part] if weighted else np.ones(part.stop - part.start)
        shape = (len(first) - 1, points.stop - points.start)
        return sparse.csr_array((weight, self._point[part] - points.start, first - first[0]), shape=shape)
