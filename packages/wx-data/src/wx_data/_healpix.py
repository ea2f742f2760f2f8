"""HEALPix: equal-area cells in rings of constant latitude."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wx_data._grid import Floats, Grid

_Ints = NDArray[np.int64]
# Ring and longitude, in units of nside and of pi / 4, of the southernmost corner of each base pixel.
_FACE_RING = np.array([2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4])
_FACE_TURN = np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7])


@dataclass(frozen=True)
class Healpix:
    """The 12 nside^2 cells of HEALPix, all of one area (Gorski et al. 2005, doi:10.1086/427976).

    Attributes:
        nside: cells along the side of a base pixel, a power of two.
        order: "nested" counts within base pixels, so that four successive cells are one cell of nside / 2
            and a range of cells is a compact region; "ring" counts from north to south along rings. `faces`
            brings either order to (12, nside, nside).

    Raises:
        ValueError: nside is not a power of two, or the order is unknown.
    """

    nside: int
    order: Literal["nested", "ring"] = "nested"

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
    def plane(self) -> tuple[int, int]:
        """(N, 1): as fields are cut into inner chunks and summed, a cell is a row of one column."""
        return self.shape[0], 1

    @property
    def dims(self) -> tuple[str, ...]:
        """Dimensions of a field."""
        return ("cell",)

    def __str__(self) -> str:
        return f"{self.order} Healpix of nside {self.nside}"

    @property
    def digest(self) -> str:
        """Name of the pixelisation: equal for equal grids."""
        return f"healpix-{self.order}-{self.nside}"

    @property
    def latitude(self) -> Floats:
        """(N,) degrees of the cell centres."""
        return self._centres[0]

    @property
    def longitude(self) -> Floats:
        """(N,) degrees of the cell centres, in 0..<360."""
        return self._centres[1]

    @property
    def faces(self) -> _Ints:
        """(12, nside, nside) numbers of the cells that make up each base pixel, as an image.

        ``x[..., grid.faces]`` turns (..., N) into (..., 12, nside, nside). The first cell of a face is its
        northern corner; rows run towards the western corner, columns towards the eastern one. This is the
        order in which DLWP-HPX, and physicsnemo's HEALPix layers, pad faces by their neighbours.
        """
        back = np.arange(self.nside)[::-1]
        within = _spread_bits(back, self.nside)[:, None] | _spread_bits(back, self.nside) << 1
        cells = np.arange(12)[:, None, None] * self.nside**2 + within
        return cells if self.order == "nested" else _ring_number(*_nested(cells, self.nside), self.nside)

    def area_weights(self) -> Floats:
        """(N,) share of the sphere's area in each cell: 1 / N."""
        return np.full(self.shape, 1.0 / self.shape[0])

    def nearest_present(self, missing: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Number of the nearest cell on the sphere that is not missing, for every missing one of (N,).

        In each ring the nearest longitude decides, since the distance grows with the difference in it.

        Raises:
            ValueError: everything is missing.
        """
        if missing.all():
            raise ValueError("nearest_present: every cell is missing")
        phi, lam = np.deg2rad(self.latitude), np.deg2rad(self.longitude)
        wanted = np.flatnonzero(missing)
        best, found = np.full(wanted.size, np.inf), np.zeros(wanted.size, np.intp)
        there = np.flatnonzero(~missing)
        ring_of = self._places[0]
        there = there[np.lexsort((lam[there], ring_of[there]))]
        rings = np.split(there, np.flatnonzero(np.diff(ring_of[there])) + 1)
        # Coarse to fine, so that the latitude of a ring alone soon rules most cells out.
        for number in sorted(range(len(rings)), key=lambda k: -(k & -k)):
            ring = rings[number]
            along = np.sin((phi[wanted] - phi[ring[0]]) / 2) ** 2
            left = np.flatnonzero(along < best)
            at = wanted[left]
            near = ring[_nearest_angle(lam[ring], lam[at])]
            across = np.cos(phi[at]) * np.cos(phi[near]) * np.sin((lam[at] - lam[near]) / 2) ** 2
            apart = along[left] + across
            closer = apart < best[left]
            best[left[closer]], found[left[closer]] = apart[closer], near[closer]
        return found

    @cached_property
    def _centres(self) -> tuple[Floats, Floats]:
        found = _angles(*self._places, self.nside)
        for angles in found:
            angles.flags.writeable = False
        return found

    @cached_property
    def _places(self) -> tuple[_Ints, _Ints]:
        cells = np.arange(self.shape[0])
        return _ring(cells, self.nside) if self.order == "ring" else _nested(cells, self.nside)


AnyGrid = Grid | Healpix


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


def _ring_number(ring: _Ints, place: _Ints, nside: int) -> _Ints:
    """The cell of "ring" order at a ring and a place along it: the inverse of `_ring`."""
    cap, south = 2 * nside * (nside - 1), 4 * nside - ring
    start = np.where(ring < nside, 2 * ring * (ring - 1), cap + 4 * nside * (ring - nside))
    start = np.where(south < nside, 12 * nside**2 - 2 * south * (south + 1), start)
    return start + place // 2


def _nearest_angle(ordered: Floats, wanted: Floats) -> NDArray[np.intp]:
    """Position in `ordered`, increasing within 0..<2 pi, of the angle nearest to each wanted one."""
    around = np.concatenate((ordered[-1:] - 2 * np.pi, ordered, ordered[:1] + 2 * np.pi))
    right = np.searchsorted(around, wanted).clip(1, around.size - 1)
    nearer = np.where(wanted - around[right - 1] <= around[right] - wanted, right - 1, right)
    return np.asarray((nearer - 1) % ordered.size, dtype=np.intp)


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


def _spread_bits(value: _Ints, nside: int) -> _Ints:
    """The inverse of `_even_bits`: a zero between any two bits."""
    found = np.zeros_like(value)
    for bit in range(nside.bit_length()):
        found |= ((value >> bit) & 1) << (2 * bit)
    return found


def _isqrt(value: _Ints) -> _Ints:
    root = np.sqrt(value.astype(np.float64)).astype(np.int64)
    root -= root * root > value
    return root + ((root + 1) * (root + 1) <= value)
