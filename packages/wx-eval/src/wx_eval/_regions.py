"""Named regions as a points x regions matrix."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

# (south, north), edges inclusive: a row at 20 degrees belongs to the tropics and to its hemisphere.
_BANDS: dict[str, tuple[float, float]] = {
    "global": (-90.0, 90.0),
    "tropics": (-20.0, 20.0),
    "nh": (20.0, 90.0),
    "sh": (-90.0, -20.0),
}
DEFAULT_REGIONS = tuple(_BANDS)

RegionSpec = Sequence[str] | Mapping[str, npt.NDArray[np.bool_]]


def region_masks(
    latitude: npt.ArrayLike, longitude: npt.ArrayLike, regions: RegionSpec = DEFAULT_REGIONS
) -> dict[str, npt.NDArray[np.bool_]]:
    """Masks (H, W) of regions given by name, or the caller's own masks after a check of their shape.

    Args:
        latitude: degrees, shape (H,).
        longitude: degrees, shape (W,).
        regions: names out of "global", "tropics", "nh", "sh" (20 degrees, inclusive on both sides), or a
            mapping from any name to a boolean mask (H, W).

    Raises:
        ValueError: for an unknown name, a mask of another shape or type, and a region without a point.
    """
    lat, lon = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    shape = (lat.size, lon.size)
    if isinstance(regions, Mapping):
        masks = {name: np.asarray(mask) for name, mask in regions.items()}
    else:
        names = [regions] if isinstance(regions, str) else list(regions)
        masks = {name: np.broadcast_to(_band(lat, name)[:, None], shape) for name in names}
    if not masks:
        raise ValueError("regions must name at least one region")
    for name, mask in masks.items():
        if mask.shape != shape or mask.dtype != np.bool_:
            raise ValueError(f"region {name!r} must be a boolean mask {shape}, got {mask.dtype} {mask.shape}")
        if not mask.any():
            raise ValueError(f"region {name!r} holds no point of the grid")
    return masks


def _band(lat: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.bool_]:
    if name not in _BANDS:
        raise ValueError(
            f"unknown region {name!r}: choose among {', '.join(_BANDS)} or pass a mapping of masks"
        )
    south, north = _BANDS[name]
    # Latitudes stored in float32 miss their nominal value by up to 4e-6 degrees.
    return np.asarray((lat >= south - 1e-5) & (lat <= north + 1e-5))
