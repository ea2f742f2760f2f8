"""Weights of points, regions and neighbourhoods."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from exact import EARTH_RADIUS_KM, HALF, ONE, ZERO, D, Decimal, asin, cos_deg, mean, pi, sin, sin_deg, total
from inputs import Grid, Input, gauss_nodes, legendre

# (south, north, west, east), edges included, longitudes modulo 360.
BOXES = {
    "global": (-90, 90, 0, 360),
    "tropics": (-20, 20, 0, 360),
    "nh": (20, 90, 0, 360),
    "sh": (-90, -20, 0, 360),
    "europe": (35, 75, "-12.5", "42.5"),
    "north-america": (25, 60, 240, 285),
    "north-atlantic": (25, 65, 290, 350),
    "north-pacific": (25, 60, 145, 230),
    "east-asia": (25, 60, "102.5", 150),
    "ausnz": (-45, "-12.5", 120, 175),
    "arctic": (60, 90, 0, 360),
    "antarctic": (-90, -60, 0, 360),
    "northern-africa": (5, "32.5", "-12.5", "37.5"),
    "southern-africa": (-30, 5, "12.5", "37.5"),
    "south-america": (-40, 5, -75, -45),
    "west-asia": (15, 60, "42.5", "102.5"),
    "south-east-asia": ("-12.5", 25, 95, 125),
}


def inside(region: str, latitude: Decimal, longitude: Decimal, land: float | None = None) -> bool:
    """Whether a point belongs to a region; "_land" asks for a land fraction of at least one half."""
    if region.endswith("_land"):
        assert land is not None
        return land >= 0.5 and inside(region.removesuffix("_land"), latitude, longitude)
    south, north, west, east = (D(edge) for edge in BOXES[region])
    if not south <= latitude <= north:
        return False
    return any(west <= longitude + turn <= east for turn in (-720, -360, 0, 360, 720))


def row_weights(latitude: list[float], kind: str) -> list[Decimal]:
    """Weights of rows with mean 1."""
    lat = [D(a) for a in latitude]
    north_first = lat[0] > lat[-1]
    if kind == "cos":
        raw = [cos_deg(a) for a in lat]
    elif kind == "equal":
        raw = [ONE for _ in lat]
    elif kind == "gauss":
        # 2 / ((1 - x^2) P'(x)^2), and (1 - x^2) P'(x)^2 is the square of the function of order 1.
        raw = [2 / legendre(len(lat), 1, x) ** 2 for x in gauss_nodes(len(lat))]
    else:
        inner = [(a + b) / 2 for a, b in pairwise(lat)]
        if kind == "cell-wbx":
            ends = lat[0] - (lat[1] - lat[0]) / 2, lat[-1] + (lat[-1] - lat[-2]) / 2
            first, last = (max(D(-90), min(D(90), edge)) for edge in ends)
        else:
            first, last = (D(90), D(-90)) if north_first else (D(-90), D(90))
        edges = [sin_deg(edge) for edge in (first, *inner, last)]
        raw = [abs(a - b) for a, b in pairwise(edges)]
    average = mean(raw)
    return [w / average for w in raw]


def point_weights(given: Input, weights: str | dict[str, object]) -> list[Decimal]:
    """Weight of every point."""
    grid = given.grid
    if isinstance(weights, dict):
        if weights["type"] == "area":
            return [D(a) for a in given.cell_area]
        return density_weights(grid, **{k: v for k, v in weights.items() if k != "type"})
    if grid.mesh:
        return [ONE] * grid.size
    rows = row_weights(grid.latitude, weights)
    return [rows[r] for r in grid.rows]


@cache
def _unit(latitude: Decimal, longitude: Decimal) -> tuple[Decimal, Decimal, Decimal]:
    c = cos_deg(latitude)
    return c * cos_deg(longitude), c * sin_deg(longitude), sin_deg(latitude)


def chord(a: tuple[Decimal, Decimal], b: tuple[Decimal, Decimal]) -> Decimal:
    """Straight distance of two points (latitude, longitude) on the unit sphere."""
    return total((p - q) ** 2 for p, q in zip(_unit(*a), _unit(*b), strict=True)).sqrt()


def distance_km(a: tuple[Decimal, Decimal], b: tuple[Decimal, Decimal]) -> Decimal:
    return 2 * EARTH_RADIUS_KM * asin(min(ONE, chord(a, b) / 2))


def density_weights(
    grid: Grid, *, kind: str = "count", radius_km: float = 75, angle: float = 0.75, limit: float | None = None
) -> list[Decimal]:
    """1 / number of stations around, or / sum of exp(-(angle between / angle)^2), with mean 1."""
    density = []
    for a in grid.points:
        km = [distance_km(a, b) for b in grid.points]
        if kind == "count":
            density.append(total(ONE for d in km if d <= D(radius_km)))
        else:
            turns = [d / EARTH_RADIUS_KM * 180 / pi() / D(angle) for d in km]
            density.append(total((-(t * t)).exp() for t in turns))
    raw = [1 / d for d in density]
    average = mean(raw)
    return [w / average if limit is None else min(D(limit), w / average) for w in raw]


def point_areas(grid: Grid) -> list[Decimal]:
    """Area of points in means around a point: cells of half a step on either side, equal on a mesh."""
    if grid.mesh:
        return [ONE] * grid.size
    rows = row_weights(grid.latitude, "cell-wbx")
    return [rows[r] for r in grid.rows]


@cache
def _near(points: tuple[tuple[Decimal, Decimal], ...], radius_km: float) -> list[list[int]]:
    reach = 2 * sin(D(radius_km) / EARTH_RADIUS_KM * HALF)
    # The rounding of coordinates must not decide: no pair may lie this close to the edge.
    found = []
    for a in points:
        lengths = [chord(a, b) for b in points]
        assert all(abs(length - reach) > D("1e-9") or length == ZERO for length in lengths)
        found.append([k for k, length in enumerate(lengths) if length <= reach])
    return found


def near(grid: Grid, radius_km: float) -> list[list[int]]:
    """Points within a distance of every point, itself included."""
    return _near(tuple(grid.points), radius_km)
