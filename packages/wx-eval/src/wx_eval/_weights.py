"""Area weights of grid cells."""

from __future__ import annotations

from typing import Any, Protocol, get_args

import numpy as np
import numpy.typing as npt

from ._choices import Weights as Weights
from ._grid import Grid, Vector, digest


class PointWeights(Protocol):
    """A rule that gives every point of a grid a weight, such as `DensityWeights`."""

    @property
    def name(self) -> str:
        """Kept with the records, with every parameter."""
        ...

    def of(self, grid: Grid, /) -> Vector:
        """Weights (N,)."""
        ...


# Columns closer than this, in degrees, are one: a file with 0 and 360, perhaps in float32.
_SAME_MERIDIAN = 1e-3

WeightSpec = Weights | PointWeights | npt.NDArray[np.floating[Any]]


def cell_weights(latitude: npt.ArrayLike, kind: Weights = "cell") -> Vector:
    """Weight of each row of a latitude-longitude grid, with mean 1 over the rows.

    | kind | weight of a row | rows that stop short of a pole |
    |---|---|---|
    | "cell" | area between the midpoints to its neighbours, poles as outermost bounds | refused |
    | "cell-wb2" | the same | edge rows own the area up to the pole (WB2) |
    | "cell-wbx" | the same, edge rows reach half a step out, at most to the pole (WB-X) | as inside |
    | "cos" | cos(latitude), the WMO convention; 0 at a pole | as inside |
    | "gauss" | quadrature weight of a Gaussian grid | refused |
    | "equal" | 1 | as inside |

    The three cell areas agree on global grids. "cos" and "cell" agree to rounding on equidistant rows without
    a pole row.

    Args:
        latitude: degrees, monotone in either direction, shape (H,).
        kind: see above.

    Raises:
        ValueError: when the rows are not monotone or the kind cannot be used for them.
    """
    lat = np.asarray(latitude, dtype=np.float64)
    _check_rows(lat)
    if kind == "cos":
        weights = np.cos(np.deg2rad(lat))
        weights[np.abs(lat) >= 90 - 1e-9] = 0.0
    elif kind in ("cell", "cell-wb2", "cell-wbx"):
        if kind == "cell":
            _check_global(lat)
        weights = np.abs(np.diff(np.sin(np.deg2rad(row_bounds(lat, half_step=kind == "cell-wbx")))))
    elif kind == "gauss":
        weights = _gauss(lat)
    elif kind == "equal":
        weights = np.ones_like(lat)
    else:
        raise ValueError(f"weights must be an array or one of {get_args(Weights)}, got {kind!r}")
    return np.asarray(weights / weights.mean())


def point_weights(grid: Grid, weights: WeightSpec) -> tuple[Vector, str]:
    """Weight of every point (N,) and the name under which records keep the choice.

    Raises:
        ValueError: for a convention that the grid does not have, or an array that does not fit.
    """
    if isinstance(weights, str):
        if grid.axes is not None:
            _check_columns(grid.axes[1])
            return np.repeat(cell_weights(grid.axes[0], weights), grid.shape[1]), weights
        if weights == "equal":
            return np.ones(grid.size), weights
        raise ValueError(
            f"weights {weights!r} need a latitude-longitude grid and these are {grid.size} points: pass the "
            'area of each cell as an array, "equal" for meshes of equal areas such as HEALPix, or '
            "DensityWeights() for stations"
        )
    rule = None if isinstance(weights, np.ndarray) or not hasattr(weights, "of") else weights
    array = np.asarray(weights if rule is None else rule.of(grid), np.float64)
    if grid.regular and array.shape == grid.shape[:1]:
        array = np.broadcast_to(array[:, None], grid.shape)
    if array.shape not in (grid.shape, (grid.size,)):
        rows = f"({grid.shape[0]},) or " if grid.regular else ""
        raise ValueError(f"weights must have shape {rows}{grid.shape}, got {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all() and array.any()):
        raise ValueError("weights must be finite, not negative and not all zero")
    flat = array.ravel()
    return flat, f"custom:{digest(flat)}" if rule is None else rule.name


def point_areas(grid: Grid) -> Vector:
    """Area of every cell (N,) relative to the others, for means around a point; equal on a mesh."""
    if grid.axes is None:
        return np.ones(grid.size)
    return np.repeat(cell_weights(grid.axes[0], "cell-wbx"), grid.shape[1])


def row_bounds(lat: Vector, *, half_step: bool) -> Vector:
    """Edges of the rows (H + 1,)."""
    inner = (lat[:-1] + lat[1:]) / 2
    if half_step:
        first, last = lat[0] - (lat[1] - lat[0]) / 2, lat[-1] + (lat[-1] - lat[-2]) / 2
        return np.asarray(np.clip(np.concatenate([[first], inner, [last]]), -90, 90))
    edge = np.copysign(90.0, lat[0] - lat[-1])
    return np.asarray(np.concatenate([[edge], inner, [-edge]]))


def _gauss(lat: Vector) -> Vector:
    nodes, weights = np.polynomial.legendre.leggauss(lat.size)
    order = slice(None, None, -1 if lat[0] > lat[-1] else 1)
    away = np.abs(np.rad2deg(np.arcsin(nodes))[order] - lat).max()
    if away > 1e-3:
        raise ValueError(
            f'weights "gauss" need the {lat.size} rows of a global Gaussian grid, these are up to {away:.3g} '
            'degrees away from them: use "cell"'
        )
    return np.asarray(weights[order])


def _check_rows(lat: Vector) -> None:
    steps = np.diff(lat)
    if lat.ndim != 1 or lat.size < 2 or not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError("latitude must be one strictly monotone row of at least 2 values in degrees")
    if np.abs(lat).max() > 90 + 1e-6:
        raise ValueError(f"latitude must lie within -90..90 degrees, got {lat.min()}..{lat.max()}")


def _check_columns(lon: Vector) -> None:
    columns = np.sort(lon % 360.0)
    if np.diff(columns, append=columns[0] + 360.0).min() < _SAME_MERIDIAN:
        raise ValueError(
            f"longitude {lon[0]:g}..{lon[-1]:g} holds a meridian twice, which would count twice: drop one, "
            "such as by isel(longitude=slice(None, -1)), or pass `weights` as an array"
        )


def _check_global(lat: Vector) -> None:
    # An edge row owns the area up to the pole, so it may be at most one row spacing away from it.
    gap = max(90 - lat.max(), 90 + lat.min())
    if gap > np.abs(np.diff(lat)).max() * (1 + 1e-6):
        raise ValueError(
            f"latitude runs {lat.max():g}..{lat.min():g} and stops {gap:g} degrees short of a pole: the area "
            "of edge rows of a cropped grid is ambiguous. Evaluate on the global grid and choose regions, "
            'pass `weights` as an array taken from the global grid, or name a convention: "cell-wbx" or "cos"'
        )
