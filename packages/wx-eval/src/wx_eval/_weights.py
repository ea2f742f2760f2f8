"""Area weights of grid cells."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Weights = Literal["cell", "cos"]


def cell_weights(latitude: npt.ArrayLike, kind: Weights = "cell") -> npt.NDArray[np.float64]:
    """Weight of each row of a global latitude-longitude grid, with mean 1 over the rows.

    "cell" is the area between the midpoints of neighbouring rows, sin(upper) - sin(lower), with the poles as
    outermost bounds: the WeatherBench convention. "cos" is cos(latitude), the WMO one, which gives rows at a
    pole no weight. On a grid without pole rows the two agree to rounding when rows are equidistant.

    Args:
        latitude: degrees, monotone in either direction, shape (H,).
        kind: "cell" or "cos".

    Raises:
        ValueError: when the rows are not monotone or do not reach both poles, because the area of an edge row
            of a cropped grid is ambiguous: weigh the global grid first, then crop fields and weights.
    """
    lat = np.asarray(latitude, dtype=np.float64)
    _check_global(lat)
    if kind == "cos":
        weights = np.cos(np.deg2rad(lat))
        weights[np.abs(lat) >= 90 - 1e-9] = 0.0
    elif kind == "cell":
        edge = np.copysign(90.0, lat[0])
        bounds = np.concatenate([[edge], (lat[:-1] + lat[1:]) / 2, [-edge]])
        weights = np.abs(np.diff(np.sin(np.deg2rad(bounds))))
    else:
        raise ValueError(f'weights must be "cell" or "cos", got {kind!r}')
    return np.asarray(weights / weights.mean())


def _check_global(lat: npt.NDArray[Any]) -> None:
    steps = np.diff(lat)
    if lat.ndim != 1 or lat.size < 2 or not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError("latitude must be one strictly monotone row of at least 2 values in degrees")
    if np.abs(lat).max() > 90 + 1e-6:
        raise ValueError(f"latitude must lie within -90..90 degrees, got {lat.min()}..{lat.max()}")
    # An edge row owns the area up to the pole, so it may be at most one row spacing away from it.
    gap = max(90 - lat.max(), 90 + lat.min())
    if gap > np.abs(steps).max() * (1 + 1e-6):
        raise ValueError(
            f"latitude runs {lat.max():g}..{lat.min():g} and stops {gap:g} degrees short of a pole: the area "
            "of edge rows of a cropped grid is ambiguous. Evaluate on the global grid and choose regions, or "
            "pass `weights` as an array taken from the global grid"
        )
