"""Regridding between latitude-longitude grids: bilinear and first-order conservative."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from ._grid import Array, Vector
from ._weights import row_bounds

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Method = Literal["bilinear", "conservative"]
Axes = tuple[Vector, Vector]
Neighbours = tuple[npt.NDArray[np.intp], Vector]

_PRESENT = {"bilinear": 1 - 1e-9, "conservative": 0.5}
_SLACK = 1e-6
# 500 m: finer than any global field, and far below what an axis in memory would be felt at.
_FINEST_DEGREES = 0.005


class Regridder:
    """A linear map from one latitude-longitude grid to another, rows and columns apart.

    "bilinear": linear in latitude and longitude between the four points around; beyond the outermost row of a
    global grid the value of that row. NaN where one of the four is.
    "conservative": mean over each target cell, weighted with area (Jones 1999, Mon. Wea. Rev. 127, 2204, of
    first order). Cells reach half-way to their neighbours and, on a global grid, to the poles, as in
    `cell_weights`, so the global mean is kept. NaN points are left out; NaN where less than half a cell is
    present. Components of the wind are averaged as scalars.

    The weights are one sparse matrix for the rows and one for the columns: a target point takes as many
    operations as it has neighbours, and its bits do not depend on other fields.

    Args:
        source, target: latitude (H,) and longitude (W,) in degrees; rows in either direction, columns
            eastwards within one turn.
        method: see above.

    Raises:
        ValueError: for another method, axes that are no grid, or a target that reaches beyond the source.
    """

    def __init__(self, source: Axes, target: Axes, method: Method) -> None:
        if method not in get_args(Method):
            raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}")
        self.method = method
        make = _bilinear if method == "bilinear" else _conservative
        self._rows, self._columns = make(_vectors(source), _vectors(target))

    def __call__(self, field: npt.ArrayLike) -> Array:
        """Map (..., H, W) to (..., H', W') in float64."""
        values = np.asarray(field, np.float64)
        expected = self._rows.shape[1], self._columns.shape[1]
        if values.shape[-2:] != expected:
            raise ValueError(f"field must have shape (..., {expected[0]}, {expected[1]}), got {values.shape}")
        missing = np.isnan(values)
        # Others keep their bits beside a field with holes.
        holed = missing.any(axis=(-2, -1))
        if not holed.any():
            return self._map(values)
        mapped = self._map(np.where(missing, 0.0, values))
        share = self._map((~missing[holed]).astype(np.float64))
        with np.errstate(invalid="ignore", divide="ignore"):
            mapped[holed] = np.where(share >= _PRESENT[self.method], mapped[holed] / share, np.nan)
        return mapped

    def _map(self, values: Vector) -> Vector:
        lead, (height, width) = values.shape[:-2], values.shape[-2:]
        rows = self._rows @ np.moveaxis(values, -2, 0).reshape(height, -1)
        columns = np.moveaxis(rows.reshape(-1, *lead, width), -1, 0).reshape(width, -1)
        mapped = (self._columns @ columns).reshape(-1, self._rows.shape[0], *lead)
        out: Vector = np.ascontiguousarray(np.moveaxis(mapped, (1, 0), (-2, -1)))
        return out


def _vectors(axes: Axes) -> Axes:
    return np.asarray(axes[0], np.float64), np.asarray(axes[1], np.float64)


def global_axes(rows: int, columns: int) -> Axes:
    """Axes of a global grid from the north: poles are rows when their number is odd.

    Raises:
        ValueError: for fewer than 2 rows or columns, or more than one each 0.005 degrees.
    """
    if rows < 2 or columns < 2:
        raise ValueError(f"a grid needs 2 rows and columns or more, got {rows} x {columns}")
    most = round(180 / _FINEST_DEGREES) + 1, round(360 / _FINEST_DEGREES)
    if rows > most[0] or columns > most[1]:
        raise ValueError(
            f"a global grid of {rows} x {columns} is finer than {_FINEST_DEGREES} degrees: give at most "
            f"{most[0]} rows and {most[1]} columns, such as 721x1440 for a quarter of a degree"
        )
    step = 180 / (rows - 1 if rows % 2 else rows)
    first = 90.0 if rows % 2 else 90 - step / 2
    latitude: Vector = first - step * np.arange(rows, dtype=np.float64)
    longitude: Vector = 360 / columns * np.arange(columns, dtype=np.float64)
    return latitude, longitude


def is_global(latitude: Vector, longitude: Vector) -> tuple[bool, bool]:
    """Whether rows reach the poles to within one spacing, and columns close the circle."""
    rows = np.abs(np.diff(latitude)).max(initial=0.0) * (1 + _SLACK)
    gap = max(90 - latitude.max(), 90 + latitude.min())
    steps = np.diff(longitude)
    span = longitude[-1] - longitude[0] + (steps.mean() if steps.size else 0.0)
    return bool(gap <= rows), bool(abs(span - 360) < _SLACK * 360)


def check_axes(axes: Axes, side: str) -> None:
    """See that axes are those of a latitude-longitude grid.

    Raises:
        ValueError: naming the side.
    """
    latitude, longitude = axes
    steps = np.diff(latitude)
    monotone = (steps > 0).all() or (steps < 0).all()
    if latitude.size < 2 or longitude.size < 2 or not monotone or (np.diff(longitude) <= 0).any():
        raise ValueError(
            f"regridding needs a {side} grid of at least 2 monotone rows and 2 columns that run eastwards"
        )


def brackets(source: Axes, latitude: Vector, longitude: Vector) -> tuple[Neighbours, Neighbours]:
    """Where latitudes and longitudes lie between the rows and between the columns of a grid.

    Beyond the outermost row of a global grid that row counts alone; its last column comes before the first.

    Args:
        source: rows in either direction, columns eastwards within one turn.
        latitude, longitude: degrees, of any lengths.

    Returns:
        Of rows, then of columns: positions of the neighbour before and shares of the one after it, NaN
        outside the grid. The column after the last is the first.
    """
    poles, circle = is_global(*source)
    rows, columns = source
    inside = np.clip(latitude, rows.min(), rows.max()) if poles else latitude
    # Moved into the turn that starts at the first column.
    moved = columns[0] + (longitude - columns[0] + _SLACK) % 360.0 - _SLACK
    return _between(rows, inside), _between(
        np.append(columns, columns[0] + 360) if circle else columns, moved
    )


def _between(axis: Vector, wanted: Vector) -> Neighbours:
    rising = axis if axis[0] < axis[-1] else axis[::-1]
    inside = (wanted >= rising[0] - _SLACK) & (wanted <= rising[-1] + _SLACK)
    place = np.clip(wanted, rising[0], rising[-1])
    before = np.clip(np.searchsorted(rising, place, side="right") - 1, 0, rising.size - 2)
    share = (place - rising[before]) / (rising[before + 1] - rising[before])
    if rising is not axis:
        before, share = axis.size - 2 - before, 1 - share
    return before, np.where(inside, share, np.nan)


def _bilinear(source: Axes, target: Axes) -> tuple[csr_array, csr_array]:
    check_axes(source, "source")
    found = zip(brackets(source, *target), source, target, ("latitude", "longitude"), strict=True)
    rows, columns = (_linear(*item) for item in found)
    return rows, columns


def _linear(neighbours: Neighbours, points: Vector, wanted: Vector, name: str) -> csr_array:
    """Weights (wanted, points) of linear interpolation."""
    from scipy import sparse

    before, share = neighbours
    if np.isnan(share).any():
        raise _beyond(name, wanted, points)
    columns = np.stack([before, before + 1]) % points.size
    lines = np.broadcast_to(np.arange(wanted.size), columns.shape)
    weights = np.stack([1 - share, share])
    shape = (wanted.size, points.size)
    return sparse.coo_array((weights.ravel(), (lines.ravel(), columns.ravel())), shape=shape).tocsr()


def _conservative(source: Axes, target: Axes) -> tuple[csr_array, csr_array]:
    for axes, side in ((source, "source"), (target, "target")):
        check_axes(axes, side)
    ours, theirs = (np.sin(np.deg2rad(_row_edges(axes))) for axes in (source, target))
    rows = _overlap(ours, np.arange(source[0].size), theirs, "latitude")
    ours, theirs = (_column_edges(axes) for axes in (source, target))
    moved = theirs + 360 * np.round((ours.mean() - theirs.mean()) / 360)
    columns = np.arange(source[1].size)
    if is_global(*source)[1]:
        ours = np.concatenate([ours[:-1] - 360, ours[:-1], ours + 360])
        columns = np.tile(columns, 3)
    return rows, _overlap(ours, columns, moved, "longitude")


def _overlap(source: Vector, columns: npt.NDArray[np.intp], target: Vector, name: str) -> csr_array:
    """Shares (target, source) of each target cell in the source cells, from the edges of both.

    Args:
        source: edges of N cells in either direction.
        columns: of the result, of the N cells.
        target: edges of N' cells in either direction.
        name: of the axis, for messages.
    """
    from scipy import sparse

    slack = 1e-9 * np.ptp(source)
    if target.min() < source.min() - slack or target.max() > source.max() + slack:
        raise _beyond(name, target, source)
    # Between two edges that follow one another there is one source cell and one target cell.
    edges = np.unique(np.concatenate([source, target]))
    inside = (edges >= max(source.min(), target.min())) & (edges <= min(source.max(), target.max()))
    edges = edges[inside]
    middle, width = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    theirs, ours = _cells(target, middle), _cells(source, middle)
    width = width / np.bincount(theirs, weights=width, minlength=target.size - 1)[theirs]
    shape = (target.size - 1, int(columns.max()) + 1)
    return sparse.coo_array((width, (theirs, columns[ours])), shape=shape).tocsr()


def _cells(edges: Vector, places: Vector) -> npt.NDArray[np.intp]:
    """The cell between edges in which each place lies."""
    rising = edges[0] < edges[-1]
    after = np.searchsorted(edges if rising else edges[::-1], places)
    # The middle of edges that differ by rounding may be one of them.
    found: npt.NDArray[np.intp] = np.clip(after - 1, 0, edges.size - 2)
    return found if rising else edges.size - 2 - found


def _row_edges(axes: Axes) -> Vector:
    return row_bounds(axes[0], half_step=not is_global(*axes)[0])


def _column_edges(axes: Axes) -> Vector:
    longitude = axes[1]
    middle = (longitude[:-1] + longitude[1:]) / 2
    if is_global(*axes)[1]:
        seam = (longitude[-1] + longitude[0] + 360) / 2
        return np.concatenate([[seam - 360], middle, [seam]])
    first, last = longitude[0] - middle[0], longitude[-1] - middle[-1]
    return np.concatenate([[longitude[0] + first], middle, [longitude[-1] + last]])


def _beyond(name: str, wanted: Vector, points: Vector) -> ValueError:
    return ValueError(
        f"the target grid reaches beyond the source in {name} ({wanted.min():g}..{wanted.max():g} against "
        f"{points.min():g}..{points.max():g}): nothing is extrapolated, choose a smaller target"
    )
