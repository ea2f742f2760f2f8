"""Scores of neighbourhoods and spectra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from areas import near, point_areas, row_weights
from events import COMPARE, Settings, Value, level
from exact import ZERO, D, Decimal, cos, cos_deg, log10, mean, pi, sin, total, weighted_mean
from inputs import Harmonics
from sample import Sample, Start
from values import crps_at


def fss(sample: Sample, s: Settings) -> Value:
    error, size = (sample.known(_fraction(s, k)) for k in (0, 1))
    return 1 - error / size


def useful_fss(sample: Sample, s: Settings) -> Value:
    return D("0.5") + sample.known(_fraction(s, 2)) / 2


def _fraction(s: Settings, which: int) -> Callable[[Start, int], Decimal | None]:
    """(p - q)^2, p^2 + q^2 or the event of a point, None where its neighbourhood is not complete."""

    def point(start: Start, n: int) -> Decimal | None:
        around = _neighbours(start, n, s)
        if around is None:
            return None
        area = point_areas(start.given.grid) if s["radius_km"] is not None else None
        p, q = (
            _share(start, around, area, lambda i, k=k: _events(start, s, i)[k])  # type: ignore[misc]
            for k in (0, 1)
        )
        return ((p - q) ** 2, p * p + q * q, _events(start, s, n)[1])[which]

    return point


def _share(
    start: Start, around: list[int | None], area: list[Decimal] | None, event: Callable[[int], Decimal]
) -> Decimal:
    if area is None:
        return total(ZERO if i is None else event(i) for i in around) / len(around)
    used = [i for i in around if i is not None and start.scored(i)]
    return total(area[i] * event(i) for i in used) / total(area[i] for i in used)


def _neighbours(start: Start, n: int, s: Settings) -> list[int | None] | None:
    """Points of the neighbourhood; None among them is beyond an edge where no event happens."""
    grid = start.given.grid
    if s["radius_km"] is not None:
        return list(near(grid, s["radius_km"])[n])
    rows, columns = grid.shape
    row, column, half = n // columns, n % columns, s["window"] // 2
    found: list[int | None] = []
    for r in range(row - half, row + half + 1):
        for c in range(column - half, column + half + 1):
            if s["edge"] == "periodic":
                c %= columns
            if 0 <= r < rows and 0 <= c < columns:
                if not start.scored(r * columns + c):
                    return None
                found.append(r * columns + c)
            elif s["edge"] != "zero":
                return None
            else:
                found.append(None)
    return found


def _events(start: Start, s: Settings, n: int) -> tuple[Decimal, Decimal]:
    """Share of the members with the event at a point, and whether it happened."""
    beyond = COMPARE[s["event"]]
    if s["own_quantile"]:
        *bounds, truth = _own_quantiles(start, s["threshold"])
        said = [beyond(x, bound) for x, bound in zip(start.x(n), bounds, strict=True)]
        return D(sum(said)) / start.members, D(beyond(start.y(n), truth))
    bound = level(start, s["threshold"], n)
    said = [beyond(x, bound) for x in start.x(n)]
    return D(sum(said)) / start.members, D(beyond(start.y(n), bound))


_QUANTILES: dict[Any, list[Decimal]] = {}


def _own_quantiles(start: Start, probability: float) -> list[Decimal]:
    """Of every member and of the truth, the smallest value with this share of the area at or below it."""
    key = start.given.name, start.init, start.lead, start.channel, probability
    if key not in _QUANTILES:
        points = [i for i in range(start.given.grid.size) if start.scored(i)]
        area = point_areas(start.given.grid)
        rows = [[start.x(i)[m] for i in points] for m in range(start.members)]
        rows.append([start.y(i) for i in points])
        _QUANTILES[key] = [_area_quantile(row, [area[i] for i in points], D(probability)) for row in rows]
    return _QUANTILES[key]


def _area_quantile(row: list[Decimal], area: list[Decimal], probability: Decimal) -> Decimal:
    share, goal = ZERO, probability * total(area)
    for value, a in sorted(zip(row, area, strict=True)):
        share += a
        if share >= goal:
            return value
    raise AssertionError


def pooled_crps(sample: Sample, s: Settings) -> Value:
    grid = sample.first.given.grid
    area, around = point_areas(grid), near(grid, s["radius_km"])

    def point(start: Start, n: int) -> Decimal:
        used = [i for i in around[n] if start.scored(i)]

        def pool(values: list[Decimal]) -> Decimal:
            if s["pool"] == "max":
                return max(values)
            return weighted_mean(values, [area[i] for i in used])

        members = [pool([start.x(i)[m] for i in used]) for m in range(start.members)]
        return crps_at(members, pool([start.y(i) for i in used]), s["kind"])

    return sample.mean(point)


Field = list[list[Decimal]]
"""Rows of a field."""

_WB2_RADIUS = D(1000) * (6357 + 6378) / 2


def spectrum(sample: Sample, s: Settings, of: str) -> list[Decimal]:
    """Power per wavenumber, averaged over starts; "cross" is Re(a b*) of members and truth."""
    per_start = [_one(start, s, of) for start in sample.starts]
    return [mean(list(row)) for row in zip(*per_start, strict=True)]


def _one(start: Start, s: Settings, of: str) -> list[Decimal]:
    transform = _harmonics if s["kind"] == "sphere" else _zonal
    members, truth = transform(start, s)
    size = len(members)
    middle = [[mean([m[k][j] for m in members]) for j in range(len(truth[k]))] for k in range(len(truth))]
    if of == "members":
        return [mean([_dot(m[k], m[k]) for m in members]) for k in range(len(truth))]
    if of == "cross":
        return [total(_dot(m[k], truth[k]) for m in members) / size for k in range(len(truth))]
    if of == "error":
        middle = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(middle, truth, strict=True)]
    used = truth if of == "truth" else middle
    return [_dot(row, row) for row in used]


def _dot(a: list[Decimal], b: list[Decimal]) -> Decimal:
    return total(p * q for p, q in zip(a, b, strict=True))


def _harmonics(start: Start, _s: Settings) -> tuple[list[Field], Field]:
    """Coefficients of every degree, from which the fields were made."""

    def rows(found: Harmonics) -> Field:
        last = max(n for n, _ in found)
        return [[found[n, m] for m in range(-n, n + 1)] for n in range(last + 1)]

    kept = start.given.coefficients
    return [rows(c) for c in kept[start.init, start.lead]], rows(kept[start.valid])


def _zonal(start: Start, s: Settings) -> tuple[list[Field], Field]:
    """Cosine and sine amplitudes of every row whose squares add up to the power, by wavenumber."""
    grid = start.given.grid
    latitudes, columns = grid.latitude, grid.shape[1]
    low, high = s["latitudes"] or (-90, 90)
    chosen = [r for r, a in enumerate(latitudes) if low - 1e-4 <= a <= high + 1e-4]
    area = row_weights(latitudes, "cell-wbx")
    share = [area[r] / total(area[i] for i in chosen) for r in chosen]
    waves = range(columns // 2 + 1)
    angle = [2 * pi() * k / columns for k in range(columns)]
    table = {k: ([cos(k * a) for a in angle], [sin(k * a) for a in angle]) for k in waves}

    def transform(values: list[Decimal]) -> Field:
        out: Field = []
        for k in waves:
            row = []
            for r, w in zip(chosen, share, strict=True):
                line = values[r * columns : (r + 1) * columns]
                factor = D(1) if k == 0 or 2 * k == columns else D(2)
                if s["kind"] == "zonal-wb2":
                    factor = D(1) if k == 0 else D(2)
                    factor *= 2 * pi() * _WB2_RADIUS * cos_deg(D(latitudes[r]))
                row += [_dot(line, wave) / columns * (factor * w).sqrt() for wave in table[k]]
            out.append(row)
        return out

    size = range(grid.size)
    members = [transform([start.x(n)[m] for n in size]) for m in range(start.members)]
    return members, transform([start.y(n) for n in size])


def power(sample: Sample, s: Settings) -> Value:
    return spectrum(sample, s, s["of"])


def spectral_ratio(sample: Sample, s: Settings) -> Value:
    pairs = zip(spectrum(sample, s, s["of"]), spectrum(sample, s, "truth"), strict=True)
    return [a / b for a, b in pairs]


def coherence(sample: Sample, s: Settings) -> Value:
    three = (spectrum(sample, s, of) for of in ("cross", s["of"], "truth"))
    return [c / (a * b).sqrt() for c, a, b in zip(*three, strict=True)]


def _decibels(sample: Sample, s: Settings) -> list[Decimal]:
    pairs = zip(spectrum(sample, s, "members"), spectrum(sample, s, "truth"), strict=True)
    found = [10 * log10(a / b) for a, b in pairs]
    return found[s["first"] : None if s["last"] is None else s["last"] + 1]


def log_spectral_distance(sample: Sample, s: Settings) -> Value:
    return mean([d * d for d in _decibels(sample, s)]).sqrt()


def spectral_bias(sample: Sample, s: Settings) -> Value:
    return mean(_decibels(sample, s))
