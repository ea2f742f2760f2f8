"""Latitude-longitude grids in one order (90 to -90, 0 to <360), their area weights, and regridding."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """Rows of constant latitude from north to south, columns of constant longitude eastwards from 0.

    Attributes:
        latitude: (H,) degrees, strictly decreasing within 90..-90; need not be equally spaced.
        longitude: (W,) degrees, strictly increasing within 0..<360.

    Raises:
        ValueError: another order, a value outside the range, or a column at 360 that repeats 0.
    """

    latitude: Floats
    longitude: Floats

    def __post_init__(self) -> None:
        for name in ("latitude", "longitude"):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.ndim != 1 or values.size < 1 or not np.isfinite(values).all():
                raise ValueError(f"{name} must be a finite one-dimensional array; got shape {values.shape}")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        _check_latitude(self.latitude)
        _check_longitude(self.longitude)

    @classmethod
    def regular(cls, rows: int, columns: int, *, poles: bool = True) -> "Grid":
        """Equally spaced grid; with `poles` the first and last rows are the poles, else half a cell away."""
        if rows < 2 or columns < 1:
            raise ValueError(f"a regular grid needs at least 2 rows and 1 column; got {rows} x {columns}")
        step = 180.0 / (rows - 1 if poles else rows)
        latitude = 90.0 - step * (np.arange(rows) + (0.0 if poles else 0.5))
        longitude = 360.0 / columns * np.arange(columns)
        return cls(latitude.astype(np.float64), longitude.astype(np.float64))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.latitude.size, self.longitude.size

    @property
    def plane(self) -> tuple[int, int]:
        """(rows, columns) of a field as it is cut into inner chunks and summed: `shape`."""
        return self.shape

    @property
    def dims(self) -> tuple[str, ...]:
        """Dimensions of a field."""
        return "latitude", "longitude"

    def __str__(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}"

    @property
    def is_periodic(self) -> bool:
        """Whether the columns go round the globe without a gap wider than their spacing."""
        if self.longitude.size == 1:
            return True
        gaps = np.diff(np.append(self.longitude, self.longitude[0] + 360.0))
        return bool(gaps[-1] <= gaps[:-1].max() * (1 + 1e-4))

    @property
    def is_global(self) -> bool:
        """Periodic, and the outermost rows within one row spacing of the poles."""
        if self.latitude.size < 2:
            return False
        spacing = float(-np.diff(self.latitude).min()) * (1 + 1e-4)
        reach = bool(self.latitude[0] + spacing >= 90.0 and self.latitude[-1] - spacing <= -90.0)
        return self.is_periodic and reach

    @property
    def digest(self) -> str:
        """Short hash of the coordinates to 1e-5 degree: equal for equal grids."""
        rounded = np.round(np.concatenate((self.latitude, [999.0], self.longitude)), 5) + 0.0
        return hashlib.sha256(rounded.tobytes()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape == other.shape and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def area_weights(self) -> Floats:
        """(H,) share of the sphere's area in each row, summing to one.

        w_i is proportional to sin(north edge) - sin(south edge); edges lie half-way between rows, and on a
        global grid the outermost edges are the poles.

        Raises:
            ValueError: the grid is a crop, whose outer edges are not known, of fewer than two rows.
        """
        if self.latitude.size < 2:
            raise ValueError("area_weights needs at least two rows")
        edges = np.sin(np.deg2rad(self.latitude_edges()))
        weights: Floats = (edges[:-1] - edges[1:]) / (edges[0] - edges[-1])
        return weights

    def latitude_edges(self) -> Floats:
        """(H + 1,) degrees: borders of the rows, half-way between them, at the poles on a global grid."""
        middle = (self.latitude[1:] + self.latitude[:-1]) / 2
        north = 90.0 if self.is_global else min(90.0, 2 * self.latitude[0] - middle[0])
        south = -90.0 if self.is_global else max(-90.0, 2 * self.latitude[-1] - middle[-1])
        return np.concatenate(([north], middle, [south]))

    def longitude_edges(self) -> Floats:
        """(W + 1,) degrees, increasing: borders of the columns, half-way between them."""
        middle = (self.longitude[1:] + self.longitude[:-1]) / 2
        if self.is_periodic:
            west = (self.longitude[0] + self.longitude[-1] - 360.0) / 2
            return np.concatenate(([west], middle, [west + 360.0]))
        first, last = self.longitude[0], self.longitude[-1]
        return np.concatenate(([2 * first - middle[0]], middle, [2 * last - middle[-1]]))


def _check_latitude(latitude: Floats) -> None:
    if np.abs(latitude).max() > 90.0 + 1e-5:
        raise ValueError(f"latitude must lie in -90..90; got {latitude[np.abs(latitude).argmax()]}")
    if latitude.size > 1 and not (np.diff(latitude) < 0).all():
        raise ValueError(
            f"latitude must decrease from north to south; got {latitude[0]} at index 0, "
            f"{latitude[1]} at index 1, {latitude[-1]} at index {latitude.size - 1}"
        )


def _check_longitude(longitude: Floats) -> None:
    if longitude.size > 1 and not (np.diff(longitude) > 0).all():
        raise ValueError("longitude must increase eastwards")
    if longitude[0] < 0 or longitude[-1] >= 360.0:
        raise ValueError(f"longitude must lie in 0..<360; got {longitude[0]}..{longitude[-1]}")


@dataclass(frozen=True)
class Reorder:
    """How to bring an array (..., H, W) with coordinates in another order into a `Grid`'s order."""

    grid: Grid
    flip: bool
    roll: int

    def __call__(self, values: NDArray[Any], /) -> NDArray[Any]:
        if self.flip:
            values = values[..., ::-1, :]
        return np.roll(values, self.roll, axis=-1) if self.roll else values


def reorder(latitude: Any, longitude: Any) -> Reorder:
    """Accept latitude in either direction and longitude -180..180 or 0..360.

    Raises:
        ValueError: coordinates neither increase nor decrease, or the first column is repeated at +360.
    """
    latitude = np.asarray(latitude, dtype=np.float64)
    longitude = np.asarray(longitude, dtype=np.float64)
    flip = bool(latitude.size > 1 and latitude[0] < latitude[-1])
    # float32 coordinates carry an error of 1e-5 degree, which must not turn 0 into 359.99999.
    wrapped = np.round(np.mod(longitude, 360.0), 9)
    wrapped = np.where(wrapped >= 360.0 - 1e-6, 0.0, wrapped)
    if np.unique(np.round(wrapped, 4)).size != wrapped.size:
        raise ValueError(
            f"longitude repeats a column: {longitude[0]}..{longitude[-1]} in {longitude.size} columns; "
            "drop the last one (360 is 0)"
        )
    roll = -int(wrapped.argmin())
    return Reorder(Grid(latitude[::-1] if flip else latitude, np.roll(wrapped, roll)), flip, roll)


def regrid(values: NDArray[Any], source: Grid, target: Grid, *, wind: bool = False) -> NDArray[np.float32]:
    """Bilinear interpolation of (..., H, W) from `source` to `target`.

    Longitude is periodic. Poleward of the outermost source row the field is interpolated to the pole's
    value: the mean of that row for a scalar, the row itself for a component of the `wind`. Missing values
    (NaN) are left out and the remaining weights renormalised; a target point keeps NaN where less than half
    of its weight is present.

    Raises:
        ValueError: `values` do not lie on `source`, or `target` reaches outside a limited area.
    """
    values = on_grid(values, source)
    if source == target:
        return values.astype(np.float32, copy=False)
    field, latitude, longitude = _padded(values, source, wind)
    rows = _brackets(-latitude, -target.latitude, "latitude")
    columns = _brackets(longitude, target.longitude, "longitude")
    return without_missing(field, lambda part: _blend(part, rows, columns))


class Points:
    """Bilinear interpolation from a grid to N points as `regrid` does it; their neighbours are found once.

    Args:
        source: the grid.
        latitude: (N,) degrees.
        longitude: (N,) degrees in 0..<360.

    Raises:
        ValueError: a point lies outside a limited area.
    """

    def __init__(self, source: Grid, latitude: Floats, longitude: Floats) -> None:
        self._source = source
        north, wi = _brackets(-_rows_with_poles(source), -latitude, "latitude")
        west, wj = _brackets(_columns_around(source), longitude, "longitude")
        rows, columns = _rows_with_poles(source).size, source.longitude.size
        south = np.minimum(north + 1, rows - 1)
        east = west + 1
        if source.is_periodic:
            west, east = (west - 1) % columns, west % columns
        pairs = [(row, column) for row in (north, south) for column in (west, np.minimum(east, columns - 1))]
        self._neighbours = np.stack([row * columns + column for row, column in pairs])  # (4, N)
        self._weights = np.stack([a * b for a in (1 - wi, wi) for b in (1 - wj, wj)])

    def __call__(self, values: NDArray[Any], /, *, wind: bool = False) -> NDArray[np.float32]:
        """(..., N) from (..., H, W); see `regrid`."""
        field = _with_poles(on_grid(values, self._source), self._source, wind)
        flat = field.reshape(-1, field.shape[-2] * field.shape[-1])
        found = np.empty((len(flat), self._weights.shape[1]), dtype=np.float32)
        for one, out in zip(flat, found, strict=True):
            near = one[self._neighbours].astype(np.float64)
            out[:] = without_missing(near, lambda part: np.einsum("kn,kn->n", part, self._weights))
        return found.reshape(*field.shape[:-2], -1)


def on_grid(values: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """`values` as an array, if it ends in the shape of `grid`."""
    values = np.asarray(values)
    if values.shape[-2:] != grid.shape:
        raise ValueError(f"values end in {values.shape[-2:]} but the source grid is {grid.shape}")
    return values


def without_missing(field: Floats, blend: Callable[[Floats], Floats]) -> NDArray[np.float32]:
    """A weighted mean that leaves out NaN; NaN where less than half of the weight is present."""
    missing = np.isnan(field)
    if not missing.any():
        return blend(field).astype(np.float32)
    present = blend(1.0 - missing)
    total = blend(np.where(missing, 0.0, field))
    return (total / np.where(present >= 0.5 - 1e-9, present, np.nan)).astype(np.float32)


def nearest_present(missing: NDArray[np.bool_], grid: Grid) -> NDArray[np.intp]:
    """Flat index of the nearest point on the sphere that is not missing, for every missing point of (H, W).

    In each row the nearest column decides, since the distance grows with the difference in longitude.

    Raises:
        ValueError: everything is missing.
    """
    if missing.all():
        raise ValueError("nearest_present: every point is missing")
    near = np.stack([_nearest_column(row, grid.longitude) for row in missing])  # -1: an empty row
    phi, lam = np.deg2rad(grid.latitude), np.deg2rad(grid.longitude)
    usable = np.flatnonzero(near[:, 0] >= 0)
    found = []
    for row in np.flatnonzero(missing.any(axis=1)):
        columns = np.flatnonzero(missing[row])
        chosen = near[usable][:, columns]
        # Haversine: monotone in the distance.
        across = np.sin((lam[chosen] - lam[columns]) / 2) ** 2
        along = np.sin((phi[usable] - phi[row]) / 2) ** 2
        apart = along[:, None] + np.cos(phi[row]) * np.cos(phi[usable])[:, None] * across
        best = apart.argmin(axis=0)
        found.append(usable[best] * grid.longitude.size + chosen[best, np.arange(columns.size)])
    return np.concatenate(found) if found else np.zeros(0, np.intp)


def _nearest_column(missing: NDArray[np.bool_], longitude: Floats) -> NDArray[np.intp]:
    """Column of the nearest present point in one row, round the globe; -1 everywhere in an empty row."""
    present = np.flatnonzero(~missing)
    if not present.size:
        return np.full(missing.size, -1, np.intp)
    columns = np.concatenate((present[-1:], present, present[:1]))
    at = longitude[columns] + np.concatenate(([-360.0], np.zeros(present.size), [360.0]))
    right = np.searchsorted(at, longitude).clip(1, at.size - 1)
    nearer = np.where(longitude - at[right - 1] <= at[right] - longitude, right - 1, right)
    return np.asarray(columns[nearer], dtype=np.intp)


_Bracket = tuple[NDArray[np.intp], Floats]


def _padded(values: NDArray[Any], source: Grid, wind: bool) -> tuple[Floats, Floats, Floats]:
    """The field with a row at each pole and a column beyond either end, its latitudes and longitudes."""
    field: Floats = _with_poles(values.astype(np.float64), source, wind)
    if source.is_periodic:
        field = np.concatenate((field[..., -1:], field, field[..., :1]), axis=-1)
    return field, _rows_with_poles(source), _columns_around(source)


def _columns_around(source: Grid) -> Floats:
    """The longitudes, on a periodic grid with a column beyond either end."""
    longitude = source.longitude
    if not source.is_periodic:
        return longitude
    return np.concatenate((longitude[-1:] - 360.0, longitude, longitude[:1] + 360.0))


def _lacks_poles(source: Grid) -> tuple[bool, bool]:
    """Whether a global grid has no row at the north pole, and none at the south pole."""
    if not source.is_global:
        return False, False
    return bool(source.latitude[0] < 90.0), bool(source.latitude[-1] > -90.0)


def _rows_with_poles(source: Grid) -> Floats:
    """The latitudes, on a global grid with the poles."""
    north, south = _lacks_poles(source)
    return np.concatenate(([90.0] * north, source.latitude, [-90.0] * south))


def _with_poles(field: NDArray[Any], source: Grid, wind: bool) -> NDArray[Any]:
    north, south = _lacks_poles(source)
    parts = [field]
    if north:
        parts.insert(0, _pole(field[..., :1, :], wind))
    if south:
        parts.append(_pole(field[..., -1:, :], wind))
    return np.concatenate(parts, axis=-2) if len(parts) > 1 else field


def _pole(row: NDArray[Any], wind: bool) -> Floats:
    row = row.astype(np.float64)
    if wind:
        return row
    # A NaN in the row (sea surface temperature over land) leaves the pole NaN: it has no honest value.
    return np.broadcast_to(row.mean(axis=-1, keepdims=True), row.shape)


def _brackets(source: Floats, target: Floats, name: str) -> _Bracket:
    """Index of the left neighbour and weight of the right one; both axes increasing."""
    tolerance = 1e-4
    if target.min() < source[0] - tolerance or target.max() > source[-1] + tolerance:
        raise ValueError(
            f"target {name} reaches {target.min():g}..{target.max():g} (sign of the axis), "
            f"outside the source's {source[0]:g}..{source[-1]:g}; regridding never extrapolates"
        )
    if source.size == 1:
        return np.zeros(target.size, np.intp), np.zeros(target.size)
    left = np.clip(np.searchsorted(source, target, side="right") - 1, 0, source.size - 2)
    weight = (target - source[left]) / (source[left + 1] - source[left])
    return left, np.clip(weight, 0.0, 1.0)


def _blend(field: Floats, rows: _Bracket, columns: _Bracket) -> Floats:
    i, wi = rows
    j, wj = columns
    below = np.minimum(i + 1, field.shape[-2] - 1)
    right = np.minimum(j + 1, field.shape[-1] - 1)
    by_row = field[..., i, :] * (1 - wi)[:, None] + field[..., below, :] * wi[:, None]
    blended: Floats = by_row[..., j] * (1 - wj) + by_row[..., right] * wj
    return blended
