"""Fields on the globe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import _charts, _raster
from ._figure import Figure, arranged


@dataclass(frozen=True, kw_only=True)
class Map:
    """A field for Report.maps.

    Attributes:
        title: above the map.
        field: shape (H, W); NaN is drawn grey.
        latitude: degrees, shape (H,), either direction.
        longitude: degrees, shape (W,), increasing.
        units: at the colour bar.
        scale: "sequential", or "diverging" around zero.
        limits: ends of the colour scale; by default the 1st to 99th percentile.
        land: mask or fraction (H, W) whose 0.5 contour is drawn as a coast line, or "earth" for the coasts of
            the Earth.
    """

    title: str
    field: npt.NDArray[Any]
    latitude: npt.NDArray[Any]
    longitude: npt.NDArray[Any]
    units: str = ""
    scale: _raster.Scale = "sequential"
    limits: tuple[float, float] | None = None
    land: npt.NDArray[Any] | Literal["earth"] | None = None

    def __post_init__(self) -> None:
        shape = (np.size(self.latitude), np.size(self.longitude))
        for name in ("field", "land"):
            array = getattr(self, name)
            if isinstance(array, str) and array != "earth":
                raise ValueError(f'land of map {self.title!r} must be an array or "earth", got {array!r}')
            if array is not None and not isinstance(array, str) and np.shape(array) != shape:
                raise ValueError(
                    f"{name} of map {self.title!r} must have shape {shape}, got {np.shape(array)}"
                )


def map_panels(maps: Sequence[Map], shared: bool) -> dict[str, Figure]:
    """A panel per title; `shared` puts those of one scale and unit without limits on common limits."""
    fixed = [replace(m, limits=_limits([o for o in maps if _alike(o, m)] if shared else [m])) for m in maps]
    return {m.title: _draw_map(m) for m in fixed}


def _alike(a: Map, b: Map) -> bool:
    return (a.scale, a.units, a.limits) == (b.scale, b.units, b.limits)


def _limits(maps: Sequence[Map]) -> tuple[float, float]:
    if maps[0].limits is not None:
        return maps[0].limits
    values = np.concatenate([np.ravel(m.field) for m in maps]).astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, [1, 99]))
    if maps[0].scale == "diverging":
        high = max(abs(low), abs(high)) or 1.0
        return -high, high
    return (low, high) if high > low else (low, low + 1.0)


def _draw_map(m: Map) -> Figure:
    """Map and colour bar, north up."""
    limits = _limits([m])
    lat, lon = np.asarray(m.latitude, np.float64), np.asarray(m.longitude, np.float64)
    flip = slice(None, None, -1 if lat[0] < lat[-1] else 1)
    image = _raster.field_image(np.asarray(m.field)[flip], limits, m.scale)
    half_y, half_x = abs(lat[1] - lat[0]) / 2, (lon[1] - lon[0]) / 2
    extent = (lon[0] - half_x, lon[-1] + half_x, lat.min() - half_y, lat.max() + half_y)
    panel = _charts.map_panel(m.title, image, extent, _coasts(m, lat[flip], lon, flip))
    bar = _charts.colour_bar(_raster.palette(m.scale), limits, m.units)
    return arranged((panel, bar), panel.width, panel.label, gap=2)


def _coasts(
    m: Map, lat: npt.NDArray[np.float64], lon: npt.NDArray[np.float64], flip: slice
) -> Sequence[npt.NDArray[np.float64]]:
    if m.land is None:
        return ()
    if isinstance(m.land, str):
        return _raster.earth_coasts()
    segments = np.array(_raster.contour(np.asarray(m.land)[flip])).reshape(-1, 2, 2)
    at_x, at_y = np.arange(lon.size), np.arange(lat.size)
    return [
        np.stack([np.interp(s[:, 0], at_x, lon), np.interp(s[:, 1], at_y, lat)], axis=1) for s in segments
    ]
