"""Fields as indexed images, PNG, and coast lines."""

import base64
import struct
import zlib
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Scale = Literal["sequential", "diverging"]
Vector = npt.NDArray[np.float64]

# Anchors are evenly spaced in value. Lightness rises steadily (sequential) or peaks in the middle
# (diverging), so that both survive grey printing and the common forms of colour blindness.
_ANCHORS: dict[str, tuple[int, ...]] = {
    "sequential": (0x1B1443, 0x26377F, 0x20629B, 0x23899C, 0x43AD8B, 0x8FCB6B, 0xDFE268, 0xFDF6C4),
    "diverging": (0x123A72, 0x2A6DB0, 0x6FA8D6, 0xBCD8EC, 0xF7F7F5, 0xF9D2A8, 0xE99A52, 0xC4601A, 0x7A330C),
}
_MISSING = (190, 190, 190)


def palette(scale: Scale, size: int = 255) -> npt.NDArray[np.uint8]:
    """Colours (size, 3) of a scale.

    Raises:
        ValueError: for an unknown scale.
    """
    if scale not in _ANCHORS:
        raise ValueError(f"scale must be one of {tuple(_ANCHORS)}, got {scale!r}")
    anchors = np.array([[c >> 16, c >> 8 & 255, c & 255] for c in _ANCHORS[scale]])
    at = np.linspace(0, len(anchors) - 1, size)
    channels = [np.interp(at, np.arange(len(anchors)), anchors[:, k]) for k in range(3)]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


def field_image(
    field: npt.ArrayLike, limits: tuple[float, float], scale: Scale, width: int = 480
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Palette index (h, w) and colours (256, 3) of a field (H, W).

    Bilinear in between and periodic in longitude; NaN is grey.
    """
    values = np.asarray(field, np.float64)
    fine = _magnify(values, max(1, round(width / values.shape[1])))
    low, high = limits
    with np.errstate(invalid="ignore"):
        level = np.clip(np.round((fine - low) / (high - low) * 254), 0, 254)
    index = np.where(np.isfinite(level), level, 255).astype(np.uint8)
    return index, np.vstack([palette(scale), _MISSING]).astype(np.uint8)


def data_uri(index: npt.NDArray[np.uint8], colours: npt.NDArray[np.uint8]) -> str:
    """An indexed image (H, W) with its palette (n, 3) as the data URI of a PNG."""
    height, width = index.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    # Every row starts with the number of its filter; 2 stores differences to the row above.
    rows = np.vstack([np.zeros((1, width), np.uint8), index])
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), np.diff(rows, axis=0)])
    content = zlib.compress(filtered.tobytes(), 9)
    chunks = ((b"IHDR", header), (b"PLTE", colours.tobytes()), (b"IDAT", content), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, data) for kind, data in chunks)
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _magnify(values: Vector, factor: int) -> Vector:
    """Bilinear interpolation at `factor` points per cell, each cell centred on its value."""
    offset = (np.arange(factor) + 0.5) / factor - 0.5
    rows, columns = (np.add.outer(np.arange(n), offset).ravel() for n in values.shape)
    rows = np.clip(rows, 0, values.shape[0] - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom = np.minimum(top + 1, values.shape[0] - 1)
    y, x = (rows - top)[:, None], columns - left
    wide = values[:, left % values.shape[1]] * (1 - x) + values[:, (left + 1) % values.shape[1]] * x
    return np.asarray(wide[top] * (1 - y) + wide[bottom] * y)


def contour(mask: npt.ArrayLike, level: float = 0.5) -> list[tuple[float, float, float, float]]:
    """Segments (x0, y0, x1, y1) of a contour in units of columns and rows, without crossing the date line."""
    field: npt.NDArray[Any] = np.asarray(mask, np.float64) - level
    above = field > 0
    corners = above[:-1, :-1] + 2 * above[:-1, 1:] + 4 * above[1:, 1:] + 8 * above[1:, :-1].astype(int)
    segments = []
    for i, j in np.argwhere((corners > 0) & (corners < 15)):
        ring = [(i, j), (i, j + 1), (i + 1, j + 1), (i + 1, j)]
        points = [_crossing(field, ring[k], ring[(k + 1) % 4]) for k in range(4)]
        crossed = [p for p in points if p is not None]
        segments += [(*crossed[k], *crossed[k + 1]) for k in range(0, len(crossed), 2)]
    return segments


def _crossing(field: npt.NDArray[Any], a: tuple[int, int], b: tuple[int, int]) -> tuple[float, float] | None:
    at_a, at_b = float(field[a]), float(field[b])
    if (at_a > 0) == (at_b > 0):
        return None
    t = at_a / (at_a - at_b)
    return float(a[1] + t * (b[1] - a[1])), float(a[0] + t * (b[0] - a[0]))


@cache
def earth_coasts() -> tuple[npt.NDArray[np.float64], ...]:
    """Coast lines of the Earth, longitude -180..180 and latitude in degrees, (n, 2) each.

    Natural Earth 4.1, 1:110 million, public domain, rounded to 0.1 degrees.
    """
    with files("wx_eval").joinpath("coast.npy").open("rb") as stream:
        points = np.load(stream)
    ends = np.flatnonzero(points[:, 0] == _END)
    return tuple(points[a:b] / 10 for a, b in zip([0, *(ends[:-1] + 1)], ends, strict=True))


_END = 32767
