"""HEALPix: equal-area pixels in rings of constant latitude."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wx_data._grid import Floats

_Ints = NDArray[np.int64]
# Ring and longitude, in units of nside and of pi / 4, of the southernmost corner of each base pixel.
_FACE_RING = np.array([2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4])
_FACE_TURN = np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7])


@dataclass(frozen=True)
class Healpix:
    """The 12 nside^2 pixel centres of HEALPix (Gorski et al. 2005, doi:10.1086/427976).

    Attributes:
        nside: pixels along the side of a base pixel, a power of two.
        order: "ring" counts from north to south along rings; "nested" counts within base pixels, so that
            four neighbours are one pixel of nside / 2 and a reshape to (12, nside, nside) is local.

    Raises:
        ValueError: nside is not a power of two, or the order is unknown.
    """

    nside: int
    order: Literal["ring", "nested"] = "ring"

    def __post_init__(self) -> None:
        if self.nside < 1 or self.nside & (self.nside - 1):
            raise ValueError(f"nside must be a power of two; got {self.nside}")
        if self.order not in ("ring", "nested"):
            raise ValueError(f"order must be 'ring' or 'nested'; got {self.order!r}")

    @property
    def shape(self) -> tuple[int]:
        """(N,)."""
        return (12 * self.nside**2,)

    @property
    def digest(self) -> str:
        """Name of the pixelisation: equal for equal grids."""
        return f"healpix-{self.order}-{self.nside}"

    @property
    def latitude(self) -> Floats:
        """(N,) degrees of the pixel centres."""
        return self._centres()[0]

    @property
    def longitude(self) -> Floats:
        """(N,) degrees of the pixel centres, in 0..<360."""
        return self._centres()[1]

    def _centres(self) -> tuple[Floats, Floats]:
        pixel = np.arange(self.shape[0])
        ring, place = _ring(pixel, self.nside) if self.order == "ring" else _nested(pixel, self.nside)
        return _angles(ring, place, self.nside)


def _ring(pixel: _Ints, nside: int) -> tuple[_Ints, _Ints]:
    """Ring (1 is the northernmost) and place along it, in units of its half spacing (equations 2 to 9)."""
    cap = 2 * nside * (nside - 1)
    mirrored = 12 * nside**2 - 1 - pixel
    north, south = pixel < cap, mirrored < cap
    folded = np.where(south, mirrored, pixel)
    polar = (1 + _isqrt(1 + 2 * folded)) // 2
    along = folded - 2 * polar * (polar - 1)
    along = np.where(south, 4 * polar - 1 - along, along)
    ring = np.where(north, polar, 4 * nside - polar)
    belt = pixel - cap
    belt_ring = belt // (4 * nside) + nside
    shift = (belt_ring - nside + 1) % 2
    belt_place = 2 * (belt % (4 * nside)) + shift
    in_cap = north | south
    return np.where(in_cap, ring, belt_ring), np.where(in_cap, 2 * along + 1, belt_place)


def _nested(pixel: _Ints, nside: int) -> tuple[_Ints, _Ints]:
    """As `_ring`, from the base pixel and the interleaved bits of the position in it (section 4.1)."""
    face, within = pixel // nside**2, pixel % nside**2
    x, y = _even_bits(within, nside), _even_bits(within >> 1, nside)
    ring = _FACE_RING[face] * nside - x - y - 1
    width = _ring_width(ring, nside)
    return ring, (_FACE_TURN[face] * width + x - y) % (8 * width)


def _ring_width(ring: _Ints, nside: int) -> _Ints:
    """A quarter of the pixels of a ring."""
    return np.minimum(np.minimum(ring, 4 * nside - ring), nside)


def _angles(ring: _Ints, place: _Ints, nside: int) -> tuple[Floats, Floats]:
    width = _ring_width(ring, nside)
    cap = 1 - width**2 / (3 * nside**2)
    sine = np.where(ring < nside, cap, np.where(ring > 3 * nside, -cap, 4 / 3 - 2 * ring / (3 * nside)))
    # arcsin loses digits near a pole; the half-angle form of the colatitude does not.
    polar = 2 * np.arcsin(width / (np.sqrt(6.0) * nside))
    colatitude = np.where(ring < nside, polar, np.where(ring > 3 * nside, np.pi - polar, np.arccos(sine)))
    return 90.0 - np.rad2deg(colatitude), 45.0 * place / width


def _even_bits(value: _Ints, nside: int) -> _Ints:
    found = np.zeros_like(value)
    for bit in range(nside.bit_length()):
        found |= ((value >> (2 * bit)) & 1) << bit
    return found


def _isqrt(value: _Ints) -> _Ints:
    root = np.sqrt(value.astype(np.float64)).astype(np.int64)
    root -= root * root > value
    return root + ((root + 1) * (root + 1) <= value)
