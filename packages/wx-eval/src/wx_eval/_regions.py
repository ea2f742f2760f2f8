"""Named regions as masks of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ._choices import BOXES as BOXES
from ._grid import Grid

Mask = npt.NDArray[np.bool_]

DEFAULT_REGIONS = ("global", "tropics", "nh", "sh")
LAND = "_land"

# Coordinates stored in float32 miss their nominal value by up to 2e-5 degrees.
_SLACK = 1e-4

RegionSpec = Sequence[str] | Mapping[str, Mask]


def region_masks(
    grid: Grid, regions: RegionSpec = DEFAULT_REGIONS, *, land_fraction: npt.ArrayLike | None = None
) -> dict[str, Mask]:
    """Masks (N,) of regions given by name, or the caller's own masks after a check of their shape.

    Args:
        grid: points.
        regions: names out of `BOXES`, each also with "_land" at its end for its land points, or a mapping
            from any name to a boolean mask of the shape of the grid.
        land_fraction: share of land (H, W) or (N,), for the names with "_land"; a point is land from 0.5 on.

    Raises:
        ValueError: for an unknown name, a mask of another shape or type, a region without a point, or a land
            region without a land fraction.
    """
    if isinstance(regions, Mapping):
        masks = {name: np.asarray(mask) for name, mask in regions.items()}
    else:
        names = [regions] if isinstance(regions, str) else list(regions)
        masks = {name: _named(grid, name, land_fraction) for name in names}
    if not masks:
        raise ValueError("regions must name at least one region")
    for name, mask in masks.items():
        if mask.shape not in (grid.shape, (grid.size,)) or mask.dtype != np.bool_:
            raise ValueError(
                f"region {name!r} must be a boolean mask {grid.shape}, got {mask.dtype} {mask.shape}"
            )
        if not mask.any():
            raise ValueError(f"region {name!r} holds no point of the grid: leave it out of the regions")
    return {name: mask.ravel() for name, mask in masks.items()}


def box(grid: Grid, south_north: tuple[float, float], west_east: tuple[float, float]) -> Mask:
    """Mask (N,) of the points inside a box, edges included; a west beyond the east wraps at 360 degrees."""
    (south, north), (west, east) = south_north, west_east
    lat, lon = grid.latitude, grid.longitude
    inside = (lat >= south - _SLACK) & (lat <= north + _SLACK)
    if east - west >= 360:
        return np.asarray(inside)
    # Distance eastwards from the western edge; one that is just short of 360 lies on the edge.
    along = (lon - west + _SLACK) % 360.0
    return np.asarray(inside & (along <= (east - west) % 360.0 + 2 * _SLACK))


def _named(grid: Grid, name: str, land_fraction: npt.ArrayLike | None) -> Mask:
    plain = name.removesuffix(LAND)
    if plain not in BOXES:
        raise ValueError(
            f"unknown region {name!r}: choose among {', '.join(BOXES)}, each also with {LAND!r} at its end, "
            "or pass a mapping of masks"
        )
    mask = box(grid, *BOXES[plain])
    if plain == name:
        return mask
    if land_fraction is None:
        raise ValueError(f"region {name!r} needs land_fraction, the share of land of every point")
    land = np.asarray(land_fraction, np.float64)
    if land.shape not in (grid.shape, (grid.size,)) or not ((land >= 0) & (land <= 1)).all():
        raise ValueError(
            f"land_fraction must hold shares 0..1 of shape {grid.shape}, got {land.shape} with values "
            f"{np.nanmin(land):g}..{np.nanmax(land):g}"
        )
    return mask & (land.ravel() >= 0.5)
