"""Small forecasts with the traps in them: ties, zeros, missing truth, poles, meshes, stations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any

from exact import TWO, D, Decimal, asin, cos, pi, sin, sin_deg

Fields = list[list[float | None]]
"""Values by channel and point."""


@dataclass
class Grid:
    """Points; on a latitude-longitude grid they are the pairs of both axes, longitude fastest."""

    latitude: list[float]
    longitude: list[float]
    mesh: bool = False

    @property
    def shape(self) -> list[int]:
        return [len(self.latitude)] if self.mesh else [len(self.latitude), len(self.longitude)]

    @property
    def dims(self) -> list[str]:
        return ["point"] if self.mesh else ["latitude", "longitude"]

    @property
    def points(self) -> list[tuple[Decimal, Decimal]]:
        lat, lon = map(D, self.latitude), list(map(D, self.longitude))
        return list(zip(lat, lon, strict=True)) if self.mesh else [(a, b) for a in lat for b in lon]

    @property
    def rows(self) -> list[int]:
        """Row of every point."""
        width = len(self.longitude)
        return list(range(len(self.latitude))) if self.mesh else [k // width for k in range(self.size)]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass
class Input:
    """A forecast and its truth.

    values: by (init, lead) the members' fields. truth, reference: by valid time, the second of a name.
    """

    name: str
    channels: list[str]
    units: list[str]
    grid: Grid
    inits: list[datetime]
    leads: list[int]
    members: int
    values: dict[tuple[datetime, int], list[Fields]]
    truth: dict[datetime, Fields]
    reference: dict[str, dict[datetime, Fields]] = field(default_factory=dict)
    cell_area: list[float] = field(default_factory=list)
    land_fraction: list[float] = field(default_factory=list)
    coefficients: dict[Any, Any] = field(default_factory=dict)
    _exact: dict[Any, list[Decimal]] = field(default_factory=dict)

    def members_at(self, init: datetime, lead: int, channel: int, n: int) -> list[Decimal]:
        """All members at a point."""
        key = init, lead, channel, n
        if key not in self._exact:
            self._exact[key] = [D(f[channel][n]) for f in self.values[init, lead]]  # type: ignore[arg-type]
        return self._exact[key]

    def json(self) -> dict[str, Any]:
        times = sorted(self.truth)
        space = self.grid.dims, self.grid.shape
        out: dict[str, Any] = {
            "channels": self.channels,
            "units": self.units,
            "latitude": self.grid.latitude,
            "longitude": self.grid.longitude,
            "mesh": self.grid.mesh,
            "init_times": [t.isoformat() for t in self.inits],
            "lead_hours": self.leads,
            "times": [t.isoformat() for t in times],
            "values": _array(
                ["init_time", "lead_time", "member", "channel", *space[0]],
                [len(self.inits), len(self.leads), self.members, len(self.channels), *space[1]],
                ([self.values[i, k] for k in self.leads] for i in self.inits),
            ),
            "truth": _states(self, [self.truth[t] for t in times]),
        }
        if self.reference:
            found = {n: [by[t] for t in times] for n, by in self.reference.items()}
            out["climatology"] = {name: _states(self, states) for name, states in found.items()}
        for name in ("cell_area", "land_fraction"):
            if getattr(self, name):
                out[name] = _array(*space, getattr(self, name))
        return out


def _states(given: Input, states: list[Fields]) -> dict[str, Any]:
    shape = [len(states), len(given.channels), *given.grid.shape]
    return _array(["time", "channel", *given.grid.dims], shape, states)


def _array(dims: list[str], shape: list[int], nested: Any) -> dict[str, Any]:
    data = list(_flat(nested))
    assert len(data) == math.prod(shape), (dims, shape, len(data))
    return {"dims": dims, "shape": shape, "data": data}


def _flat(nested: Any) -> Iterator[Any]:
    if nested is None or isinstance(nested, float | int):
        yield nested
    else:
        for item in nested:
            yield from _flat(item)


Draw = Callable[[Random], float]


def rounded(mean: float, spread: float, digits: int) -> Draw:
    return lambda rng: round(rng.gauss(mean, spread), digits)


def rain(rng: Random) -> float:
    """Half of it zero, the rest on or near the thresholds 0.1, 0.25 and 1 mm, so that values tie."""
    return 0.0 if rng.random() < 0.5 else rng.choice([0.05, 0.1, 0.2, 0.25, 0.3, 1.0, 2.5, 7.0])


def _forecast(
    name: str,
    grid: Grid,
    channels: dict[str, tuple[str, Draw]],
    *,
    seed: int,
    inits: list[datetime],
    leads: list[int],
    members: int,
) -> Input:
    rng = Random(seed)
    draws = [draw for _, draw in channels.values()]

    def fields() -> Fields:
        return [[draw(rng) for _ in range(grid.size)] for draw in draws]

    values = {(i, k): [fields() for _ in range(members)] for i in inits for k in leads}
    truth = {t: fields() for t in sorted({i + timedelta(hours=k) for i, k in values})}
    units = [unit for unit, _ in channels.values()]
    return Input(name, list(channels), units, grid, inits, leads, members, values, truth)


def days(first: datetime, count: int) -> list[datetime]:
    return [first + timedelta(days=k) for k in range(count)]


def globe() -> Input:
    """Uneven rows with both poles and the edges of regions; wind, temperature, rain; 29 February."""
    grid = Grid([90.0, 60.0, 20.0, -20.0, -60.0, -90.0], [0.0, 90.0, 180.0, 270.0])
    channels = {
        "t850": ("K", rounded(280, 4, 1)),
        "u850": ("m s-1", rounded(3, 5, 1)),
        "v850": ("m s-1", rounded(0, 5, 1)),
        "tp": ("mm", rain),
    }
    given = _forecast(
        "globe", grid, channels, seed=1, inits=days(datetime(2020, 2, 28), 2), leads=[24, 48], members=8
    )
    rng, times = Random(2), sorted(given.truth)
    # One truth is missing at one time, one ties with members, and a whole row of one time is missing.
    given.truth[times[1]][0][5] = None
    given.truth[times[2]][0][8:12] = [None] * 4
    given.truth[times[0]][0][7] = given.values[given.inits[0], 24][3][0][7]
    given.truth[times[0]][3][6], given.truth[times[0]][3][9] = 0.25, 0.1
    for member in given.values[given.inits[0], 24]:
        member[3][6] = 0.25
    like = [rounded(280, 2, 1), rounded(3, 1, 1), rounded(0, 1, 1), rounded(1.5, 0, 1)]
    given.reference["mean"] = {t: [[draw(rng) for _ in range(grid.size)] for draw in like] for t in times}
    given.reference["quantile(0.9)"] = {
        t: [[round(x + 2.5, 1) for x in row] for row in fields]  # type: ignore[operator]
        for t, fields in given.reference["mean"].items()
    }
    dry = [0.1, 0.85, 0.05, 0.9] + [round(0.3 + 0.02 * k, 2) for k in range(grid.size - 4)]
    wet = [rng.choice([1.0, 2.0, 2.5]) for _ in range(grid.size)]
    given.reference["seeps_dry_fraction"] = {t: [dry] * 4 for t in times}
    given.reference["seeps_threshold"] = {t: [wet] * 4 for t in times}
    given.land_fraction = [rng.choice([0.0, 0.4, 0.5, 1.0]) for _ in range(grid.size)]
    # Every region of the cases has land.
    given.land_fraction[8:10] = [0.5, 0.499]
    return given


def mesh() -> Input:
    """Cells of unequal area without axes."""
    rng = Random(3)
    grid = Grid(
        [round(rng.uniform(-85, 85), 2) for _ in range(12)],
        [round(rng.uniform(0, 360), 2) for _ in range(12)],
        mesh=True,
    )
    channels = {"z500": ("m2 s-2", rounded(55000, 300, 0)), "t2m": ("K", rounded(285, 8, 1))}
    given = _forecast(
        "mesh", grid, channels, seed=4, inits=days(datetime(2021, 7, 1), 3), leads=[72], members=3
    )
    given.cell_area = [round(rng.uniform(0.5, 3), 3) for _ in range(12)]
    given.truth[sorted(given.truth)[1]][1][4] = None
    return given


def stations() -> Input:
    """Clustered stations and 51 members, many of them dry."""
    places = [(50.0, 8.0), (50.1, 8.1), (50.2, 8.5), (50.2, 9.9), (52.4, 13.5), (-33.9, 151.2)]
    grid = Grid([a for a, _ in places], [b for _, b in places], mesh=True)
    channels = {"tp": ("mm", rain)}
    return _forecast(
        "stations", grid, channels, seed=5, inits=days(datetime(2022, 1, 1), 2), leads=[24], members=51
    )


def box() -> Input:
    """A grid for neighbourhoods: even rows with poles, columns around the globe."""
    grid = Grid([90.0, 60.0, 30.0, 0.0, -30.0, -60.0, -90.0], [45.0 * k for k in range(8)])
    channels = {"tp": ("mm", rain), "t2m": ("K", rounded(285, 8, 1))}
    given = _forecast(
        "box", grid, channels, seed=6, inits=days(datetime(2021, 1, 1), 2), leads=[24], members=3
    )
    given.truth[sorted(given.truth)[1]][1][27] = None
    return given


def crop() -> Input:
    """Rows from 20 to 60 degrees, where cell areas of the edge rows are ambiguous; south first."""
    grid = Grid([20.0, 30.0, 40.0, 50.0, 60.0], [0.0, 10.0])
    channels = {"t2m": ("K", rounded(285, 8, 1))}
    return _forecast(
        "crop", grid, channels, seed=7, inits=days(datetime(2021, 1, 1), 2), leads=[24], members=2
    )


def series(count: int = 40) -> Input:
    """Two systems on the same truth, as members 0-1 and 2-3, with errors that persist from day to day."""
    rng, grid = Random(8), Grid([10.0, -10.0], [20.0, 200.0], mesh=True)
    inits = days(datetime(2020, 1, 1), count)
    values: dict[tuple[datetime, int], list[Fields]] = {}
    state = [0.0] * 2
    for init in inits:
        state = [0.7 * s + rng.gauss(0, 1) for s in state]
        values[init, 24] = [
            [[round(s + rng.gauss(0, 0.8 + 0.2 * (m > 1)), 1) for s in state]] for m in range(4)
        ]
    truth: dict[datetime, Fields] = {
        i + timedelta(days=1): [[round(rng.gauss(0, 0.5), 1) for _ in range(2)]] for i in inits
    }
    return Input("series", ["t850"], ["K"], grid, inits, [24], 4, values, truth)


Harmonics = dict[tuple[int, int], Decimal]


def legendre(degree: int, order: int, x: Decimal) -> Decimal:
    """(1 - x^2)^(m/2) d^m/dx^m of the polynomial (x^2 - 1)^l / (2^l l!) differentiated l times."""
    value = D(0)
    for k in range(degree + 1):
        power = 2 * k - degree - order
        if power >= 0:
            factor = math.comb(degree, k) * (-1) ** (degree - k) * math.perm(2 * k, degree + order)
            value += factor * (x**power if power else D(1))
    value /= 2**degree * math.factorial(degree)
    return value * ((1 - x * x).sqrt() ** order if order else 1)


def harmonic(degree: int, order: int, sine: Decimal, longitude: Decimal) -> Decimal:
    """Real spherical harmonic with mean square 1 on the sphere; order below 0 is the sine."""
    m = abs(order)
    scale = (2 * degree + 1) * (TWO if m else D(1)) * math.factorial(degree - m) / math.factorial(degree + m)
    wave = D(1) if not m else (cos(m * longitude) if order > 0 else sin(m * longitude))
    return scale.sqrt() * legendre(degree, m, sine) * wave


def gauss_nodes(rows: int) -> list[Decimal]:
    """Zeros of the Legendre polynomial, from north to south, by Newton's method."""
    nodes = []
    for k in range(rows):
        x = D(math.cos(math.pi * (k + 0.75) / (rows + 0.5)))
        for _ in range(8):
            slope = legendre(rows, 1, x) / (1 - x * x).sqrt()
            x -= legendre(rows, 0, x) / slope
        nodes.append(x)
    return nodes


def degrees_of(sine: Decimal) -> float:
    return float(asin(sine) * 180 / pi())


def sphere(name: str, sines: Sequence[Decimal], columns: int, l_max: int, seed: int) -> Input:
    """Fields made of spherical harmonics, whose power is known."""
    rng = Random(seed)
    grid = Grid([degrees_of(s) for s in sines], [360.0 * k / columns for k in range(columns)])
    count = 2 if name == "sphere" else 1
    inits, members = days(datetime(2021, 3, 1), count), count
    modes = [(n, m) for n in range(l_max + 1) for m in range(-n, n + 1)]
    angles = [2 * pi() * k / columns for k in range(columns)]
    basis = {(n, m): [harmonic(n, m, s, a) for s in sines for a in angles] for n, m in modes}

    def draw() -> tuple[Harmonics, Fields]:
        found = {mode: D(round(rng.gauss(0, 3 / (1 + mode[0])), 3)) for mode in modes}
        values = [sum(found[mode] * basis[mode][p] for mode in modes) for p in range(grid.size)]
        return found, [[float(v) for v in values]]

    coefficients: dict[Any, Any] = {}
    values, truth = {}, {}
    for init in inits:
        drawn = [draw() for _ in range(members)]
        coefficients[init, 24] = [c for c, _ in drawn]
        values[init, 24] = [f for _, f in drawn]
        coefficients[init + timedelta(days=1)], truth[init + timedelta(days=1)] = draw()
    return Input(name, ["t850"], ["K"], grid, inits, [24], members, values, truth, coefficients=coefficients)


def all_inputs() -> dict[str, Input]:
    poles = [sin_deg(D(90 - 30 * k)) for k in range(7)]
    between = [sin_deg(D("67.5") - 45 * k) for k in range(4)]
    made = [
        globe(),
        mesh(),
        stations(),
        box(),
        crop(),
        series(),
        sphere("sphere", poles, 12, 5, 9),
        sphere("sphere-between", between, 8, 3, 10),
        sphere("sphere-gauss", gauss_nodes(4), 8, 3, 11),
    ]
    return {given.name: given for given in made}
