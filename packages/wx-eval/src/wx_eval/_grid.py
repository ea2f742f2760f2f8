"""Points of verification: latitude-longitude grids, meshes and stations in one form."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]

EARTH_RADIUS_KM = 6371.0088
"""Mean radius."""

# Points of a mesh are summed in runs of this length, rows of a latitude-longitude grid row by row: the order
# of additions must not depend on how much is read at a time.
_RUN = 1024


@dataclass(frozen=True, eq=False)
class Grid:
    """Positions of N points and the rows in which they are summed.

    Args:
        latitude, longitude: degrees, one value per point, shape (N,).
        shape: (H, W) of a latitude-longitude grid in row-major order, else (N,).
        axes: the 1-D latitude (H,) and longitude (W,) of such a grid.
    """

    latitude: Vector
    longitude: Vector
    shape: tuple[int, ...]
    axes: tuple[Vector, Vector] | None = None

    @classmethod
    def from_axes(cls, latitude: npt.ArrayLike, longitude: npt.ArrayLike) -> Grid:
        """Grid of all pairs of a latitude (H,) and a longitude (W,).

        Raises:
            ValueError: for positions that are none.
        """
        lat, lon = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
        _check_positions(lat, lon)
        return cls(np.repeat(lat, lon.size), np.tile(lon, lat.size), (lat.size, lon.size), (lat, lon))

    @classmethod
    def from_points(cls, latitude: npt.ArrayLike, longitude: npt.ArrayLike) -> Grid:
        """Mesh or stations with positions (N,).

        Raises:
            ValueError: for positions that are none.
        """
        lat, lon = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
        _check_positions(lat, lon)
        return cls(lat, lon, lat.shape)

    @property
    def size(self) -> int:
        """N."""
        return int(self.latitude.size)

    @property
    def regular(self) -> bool:
        """Whether this is a latitude-longitude grid."""
        return self.axes is not None

    @property
    def edges(self) -> npt.NDArray[np.intp]:
        """First point of each row, and N: shape (rows + 1,)."""
        run = self.shape[1] if self.regular else _RUN
        return np.append(np.arange(0, self.size, run), self.size).astype(np.intp)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @cached_property
    def _key(self) -> tuple[tuple[int, ...], str]:
        """Equal for equal positions in equal order: what is kept by grid serves all files on that grid."""
        return self.shape, digest(*((self.latitude, self.longitude) if self.axes is None else self.axes))

    @property
    def name(self) -> str:
        """Shape and hash of the positions; axes stored in float32 and in float64 are one grid."""
        parts = (self.latitude, self.longitude) if self.axes is None else self.axes
        # + 0.0 turns -0 into 0.
        rounded = (np.round(a, 3) + 0.0 for a in parts)
        return f"{' x '.join(map(str, self.shape))} {digest(*rounded)}"


def _check_positions(lat: Vector, lon: Vector) -> None:
    if lat.ndim != 1 or lon.ndim != 1 or not (np.isfinite(lat).all() and np.isfinite(lon).all()):
        raise ValueError(
            f"latitude and longitude must be finite and have one dim each, got {lat.shape} and {lon.shape} "
            f"with {(~np.isfinite(lat)).sum() + (~np.isfinite(lon)).sum()} values that are not finite"
        )
    if (np.abs(lat) > 90 + 1e-6).any():
        raise ValueError(f"latitude must lie within -90..90 degrees, got {lat.min():g}..{lat.max():g}")


def unit_vectors(grid: Grid) -> Vector:
    """Positions on the unit sphere, shape (N, 3)."""
    lat, lon = np.deg2rad(grid.latitude), np.deg2rad(grid.longitude)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def great_circle_km(
    lat1: npt.ArrayLike, lon1: npt.ArrayLike, lat2: npt.ArrayLike, lon2: npt.ArrayLike
) -> Vector:
    """Great-circle distance of positions in degrees, broadcast; small and large ones to rounding."""
    a, b = np.deg2rad(lat1), np.deg2rad(lat2)
    turn = np.deg2rad(np.asarray(lon2) - np.asarray(lon1))
    # The arc tangent of Vincenty: haversines lose digits near the antipodes, the arc cosine nearby.
    across = np.hypot(np.cos(b) * np.sin(turn), np.cos(a) * np.sin(b) - np.sin(a) * np.cos(b) * np.cos(turn))
    along = np.sin(a) * np.sin(b) + np.cos(a) * np.cos(b) * np.cos(turn)
    return np.asarray(EARTH_RADIUS_KM * np.arctan2(across, along))


def search_tree(place: Vector) -> Any:
    """scipy's cKDTree of positions (N, 3)."""
    # Its import takes as long as that of the rest of this package, and few metrics need it.
    from scipy.spatial import cKDTree

    return cKDTree(place)


def digest(*arrays: Array) -> str:
    """Hash of the contents of arrays, 12 hexadecimal digits."""
    content = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    return hashlib.sha256(content).hexdigest()[:12]
