"""Weights of stations by how densely they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ._grid import EARTH_RADIUS_KM, Grid, Vector, search_tree, unit_vectors


@dataclass(frozen=True)
class DensityWeights:
    """Weights of stations that even out how densely they lie, with mean 1; pass one as `weights`.

    "count": 1 / number of stations within `radius_km`, the station itself and the edge included.
    "gauss": 1 / sum over stations of exp(-(angle / `angle`)^2), at distances of `angle` degrees (Rodwell et
    al. 2010, Q. J. R. Meteorol. Soc. 136, 1344, eq. 22-23; WeatherBench-X). What lies further than 6.1 angles
    adds less than rounding and is left out.

    The density is that of all stations of the truth, whether or not they reported. Cost: O(N log N) and the
    pairs that are near, not N^2.

    Args:
        kind: see above.
        radius_km: of "count".
        angle: degrees, of "gauss".
        limit: largest weight, after the mean was made 1; None for none.

    Raises:
        ValueError: for another kind, or a size that is not positive.
    """

    kind: Literal["count", "gauss"] = "count"
    radius_km: float = 75.0
    angle: float = 0.75
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("count", "gauss"):
            raise ValueError(f'kind must be "count" or "gauss", got {self.kind!r}')
        sizes = (self.radius_km, self.angle, 1.0 if self.limit is None else self.limit)
        if not all(s > 0 for s in sizes) or self._reach >= np.pi:
            raise ValueError(
                f"radius, angle and limit must be positive and far less than the globe, got {self}"
            )

    @property
    def name(self) -> str:
        """Kept with the records."""
        size = f"{self.radius_km:g} km" if self.kind == "count" else f"{self.angle:g} degrees"
        return f"density({self.kind} {size}{'' if self.limit is None else f' limit {self.limit:g}'})"

    def of(self, grid: Grid, /) -> Vector:
        """Weights (N,)."""
        weight = 1 / self.density(grid)
        weight = weight / weight.mean()
        return weight if self.limit is None else np.asarray(np.minimum(weight, self.limit))

    def density(self, grid: Grid) -> Vector:
        """Number of stations around each, (N,), counted or by the kernel."""
        place = unit_vectors(grid)
        # A distance of exactly the radius counts, whatever rounding does to it.
        chord = 2 * np.sin(self._reach / 2) * (1 + 1e-12)
        tree = search_tree(place)
        if self.kind == "count":
            return np.asarray(tree.query_ball_point(place, chord, return_length=True), np.float64)
        pairs = tree.query_pairs(chord, output_type="ndarray")
        apart = np.linalg.norm(place[pairs[:, 0]] - place[pairs[:, 1]], axis=1)
        near = np.exp(-np.square(2 * np.arcsin(np.minimum(apart / 2, 1)) / np.deg2rad(self.angle)))
        sums = (np.bincount(side, weights=near, minlength=grid.size) for side in pairs.T)
        return np.asarray(1 + sum(sums))

    @property
    def _reach(self) -> float:
        """Radians."""
        return (
            self.radius_km / EARTH_RADIUS_KM if self.kind == "count" else float(np.deg2rad(6.1 * self.angle))
        )
