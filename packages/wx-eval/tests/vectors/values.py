"""Scores of values: errors, CRPS, quantiles, anomalies, vectors."""

from __future__ import annotations

from itertools import combinations

from areas import distance_km, near, point_areas
from events import Settings, Value, level
from exact import HALF, ONE, ZERO, D, Decimal, mean, total
from sample import Point, Sample, Start


def _root(value: Decimal | None) -> Decimal | None:
    return None if value is None else value.sqrt()


def error(start: Start, n: int) -> Decimal:
    return mean(start.x(n)) - start.y(n)


def square_error(start: Start, n: int) -> Decimal:
    return error(start, n) ** 2


def variance(start: Start, n: int) -> Decimal:
    x = start.x(n)
    middle = mean(x)
    return total((v - middle) ** 2 for v in x) / (len(x) - 1)


def bias(sample: Sample, _s: Settings) -> Value:
    return sample.mean(error)


def mae(sample: Sample, _s: Settings) -> Value:
    return sample.mean(lambda start, n: abs(error(start, n)))


def mse(sample: Sample, _s: Settings) -> Value:
    return sample.mean(square_error)


def rmse(sample: Sample, s: Settings) -> Value:
    if s["root"] == "each":
        return sample.each(lambda start: _root(start.area_mean(square_error)))
    if s["debiased"]:
        return (sample.known(square_error) - sample.known(variance) / sample.members).sqrt()
    return _root(sample.mean(square_error))


def spread(sample: Sample, _s: Settings) -> Value:
    return _root(sample.mean(variance))


def spread_skill(sample: Sample, s: Settings) -> Value:
    skill, width = sample.known(square_error), sample.known(variance)
    if s["kind"] == "fortin":
        width *= D(sample.members + 1) / sample.members
    if s["kind"] == "debiased":
        skill -= width / sample.members
    return (width / skill).sqrt()


def crps_at(x: list[Decimal], y: Decimal, kind: str) -> Decimal:
    members = len(x)
    pairs = total(abs(a - b) for a, b in combinations(x, 2))
    return total(abs(a - y) for a in x) / members - pairs / (members * (members - (kind == "fair")))


def crps(sample: Sample, s: Settings) -> Value:
    fair, biased = (
        sample.known(lambda start, n, kind=kind: crps_at(start.x(n), start.y(n), kind))  # type: ignore[misc]
        for kind in ("fair", "biased")
    )
    if s["kind"] != "almost_fair":
        return fair if s["kind"] == "fair" else biased
    alpha = D(s["alpha"])
    return alpha * fair + (1 - alpha) * biased


def tw_crps(sample: Sample, s: Settings) -> Value:
    def point(start: Start, n: int) -> Decimal | None:
        sides = []
        for side in ("lower", "upper"):
            bound = None if s[side] is None else level(start, s[side], n)
            if s[side] is not None and bound is None:
                return None
            sides.append(bound)
        low, high = sides

        def clip(v: Decimal) -> Decimal:
            v = v if low is None else max(v, low)
            return v if high is None else min(v, high)

        return crps_at([clip(x) for x in start.x(n)], clip(start.y(n)), s["kind"])

    return sample.mean(point)


def crps_part(sample: Sample, s: Settings) -> Value:
    def point(start: Start, n: int) -> Decimal:
        x, y = start.x(n), start.y(n)
        if s["part"] == "overforecast":
            return mean([max(a - y, ZERO) for a in x])
        if s["part"] == "underforecast":
            return mean([max(y - a, ZERO) for a in x])
        return mean([abs(a - y) for a in x]) - crps_at(x, y, s["part"].removeprefix("spread_"))

    return sample.mean(point)


def hersbach(sample: Sample, s: Settings) -> Value:
    if s["term"] == "uncertainty":
        return _uncertainty(sample, s)
    members = sample.members

    def bin_length(i: int, above: bool) -> Point:
        """Part of bin i that lies above (below) the truth; open bins end at an outlying truth."""

        def point(start: Start, n: int) -> Decimal:
            x, y = sorted(start.x(n)), start.y(n)
            low = min(y, x[0]) if i == 0 else x[i - 1]
            high = max(y, x[-1]) if i == members else x[i]
            cut = min(max(y, low), high)
            return high - cut if above else cut - low

        return point

    below_all = sample.known(lambda start, n: D(start.y(n) < min(start.x(n))))
    above_all = sample.known(lambda start, n: D(start.y(n) > max(start.x(n))))
    reliability = potential = ZERO
    for i in range(members + 1):
        alpha, beta = (sample.known(bin_length(i, above=above)) for above in (False, True))
        length = alpha + beta
        if not length:
            continue
        frequency = beta / length
        if i == 0:
            length, frequency = beta / below_all, below_all
        if i == members:
            length, frequency = alpha / above_all, 1 - above_all
        reliability += length * (frequency - D(i) / members) ** 2
        potential += length * frequency * (1 - frequency)
    if s["term"] == "resolution":
        return _uncertainty(sample, s) - potential
    return reliability if s["term"] == "reliability" else potential


def _uncertainty(sample: Sample, s: Settings) -> Decimal:
    """Integral of F (1 - F); within a step F is the parabola with the right ends and the right mean."""
    low, high, steps = D(s["lower"]), D(s["upper"]), s["steps"]
    width = (high - low) / steps

    def cdf(z: Decimal) -> Decimal:
        """Share of truth below z, or up to the last edge."""
        return sample.known(lambda start, n: D(start.y(n) < z or z >= high))

    out = ZERO
    for k in range(steps):
        edge = low + k * width
        left, right = cdf(edge), cdf(edge + width)
        # Mean of F over the step: every truth below its end adds the part that lies above it.
        end = edge + width
        part = sample.known(lambda start, n, end=end: min(max(end - start.y(n), ZERO), width) / width)  # type: ignore[misc]
        bulge = 6 * (part - (left + right) / 2)

        def integrand(t: Decimal, a: Decimal = left, b: Decimal = right, c: Decimal = bulge) -> Decimal:
            f = a + (b - a) * t + c * t * (1 - t)
            return f * (1 - f)

        # Boole's rule is exact for polynomials of degree 5.
        nodes = [7, 32, 12, 32, 7]
        out += width * total(c * integrand(D(j) / 4) for j, c in enumerate(nodes)) / 90
    return out


_POSITIONS = {
    "linear": (ONE, ONE),
    "weibull": (ZERO, ZERO),
    "hazen": (HALF, HALF),
    "median_unbiased": (ONE / 3, ONE / 3),
}


def quantile(x: list[Decimal], p: Decimal, method: str) -> Decimal:
    """Of a sample, by the definitions of Hyndman and Fan (1996)."""
    ordered, size = sorted(x), len(x)
    if method == "inverted_cdf":
        return next(v for k, v in enumerate(ordered, start=1) if D(k) / size >= p)
    alpha, beta = _POSITIONS[method]
    place = min(max(alpha + p * (size + 1 - alpha - beta), ONE), D(size))
    k = min(int(place), size - 1)
    return ordered[k - 1] + (place - k) * (ordered[k] - ordered[k - 1])


def quantile_score(sample: Sample, s: Settings) -> Value:
    def point(start: Start, n: int) -> Decimal:
        p = D(s["probability"])
        q, y = quantile(start.x(n), p, s["method"]), start.y(n)
        return (1 - p) * (q - y) if q >= y else p * (y - q)

    return sample.mean(point)


def _interval(start: Start, n: int, coverage: Decimal, method: str) -> Decimal:
    tail, y = (1 - coverage) / 2, start.y(n)
    low, high = (quantile(start.x(n), p, method) for p in (tail, 1 - tail))
    return high - low + (max(low - y, ZERO) + max(y - high, ZERO)) / tail


def interval_score(sample: Sample, s: Settings) -> Value:
    return sample.mean(lambda start, n: _interval(start, n, D(s["level"]), s["method"]))


def wis(sample: Sample, s: Settings) -> Value:
    levels = [D(v) for v in s["levels"]]

    def point(start: Start, n: int) -> Decimal:
        out = abs(quantile(start.x(n), HALF, s["method"]) - start.y(n)) / 2
        out += total((1 - v) / 2 * _interval(start, n, v, s["method"]) for v in levels)
        return out / (len(levels) + HALF)

    return sample.mean(point)


def _climate(start: Start, n: int) -> Decimal:
    value = start.reference("mean", n)
    assert value is not None
    return value


def _forecast_anomaly(start: Start, n: int) -> Decimal:
    return mean(start.x(n)) - _climate(start, n)


def _truth_anomaly(start: Start, n: int) -> Decimal:
    return start.y(n) - _climate(start, n)


def _product(f: Point, g: Point) -> Point:
    return lambda start, n: f(start, n) * g(start, n)  # type: ignore[operator]


def acc(sample: Sample, s: Settings) -> Value:
    f, y = _forecast_anomaly, _truth_anomaly
    if s["kind"] == "pooled":
        fy, ff, yy = (sample.known(_product(a, b)) for a, b in ((f, y), (f, f), (y, y)))
        return fy / (ff * yy).sqrt()

    def correlation(start: Start) -> Decimal | None:
        f0 = start.area_mean(f) if s["kind"] == "wmo" else ZERO
        y0 = start.area_mean(y) if s["kind"] == "wmo" else ZERO
        if f0 is None or y0 is None:
            return None

        def away_f(start: Start, n: int) -> Decimal:
            return f(start, n) - f0  # type: ignore[operator]

        def away_y(start: Start, n: int) -> Decimal:
            return y(start, n) - y0  # type: ignore[operator]

        pairs = ((away_f, away_y), (away_f, away_f), (away_y, away_y))
        products = (start.area_mean(_product(a, b)) for a, b in pairs)
        fy, ff, yy = (p for p in products if p is not None)
        return fy / (ff * yy).sqrt()

    return sample.each(correlation)


def activity(sample: Sample, s: Settings) -> Value:
    def members(start: Start, n: int) -> Decimal:
        return mean([(x - _climate(start, n)) ** 2 for x in start.x(n)])

    f = _truth_anomaly if s["of"] == "truth" else _forecast_anomaly
    return _root(sample.mean(members if s["of"] == "members" else _product(f, f)))


def mse_skill(sample: Sample, _s: Settings) -> Value:
    return 1 - sample.known(square_error) / sample.known(_product(_truth_anomaly, _truth_anomaly))


def wind_rmse(sample: Sample, s: Settings) -> Value:
    parts = sample.first.channel.split("+")

    def point(start: Start, n: int) -> Decimal | None:
        sides = [start.of(c) for c in parts]
        return total(square_error(c, n) for c in sides) if all(c.scored(n) for c in sides) else None

    joined = sample.of(parts[0])
    if s["root"] == "each":
        return joined.each(lambda start: _root(start.area_mean(point)))
    return _root(joined.mean(point))


def energy(sample: Sample, s: Settings) -> Value:
    def one(start: Start) -> Decimal | None:
        points = [n for n in start.region if start.scored(n)]
        if not points:
            return None
        fields = [[start.x(n)[m] for n in points] for m in range(start.members)]
        truth = [start.y(n) for n in points]
        weight = [start.weight[n] for n in points]

        def norm(a: list[Decimal], b: list[Decimal]) -> Decimal:
            squares = [(p - q) ** 2 for p, q in zip(a, b, strict=True)]
            if s["norm"] == "euclidean":
                return total(squares).sqrt()
            return (total(w * v for w, v in zip(weight, squares, strict=True)) / total(weight)).sqrt()

        lags = s["lags"] or start.members
        near_pairs = [(j, k) for j, k in combinations(range(start.members), 2) if k - j <= lags]
        between = mean([norm(fields[j], fields[k]) for j, k in near_pairs])
        if s["kind"] == "biased":
            between *= D(start.members - 1) / start.members
        return mean([norm(f, truth) for f in fields]) - between / 2

    return sample.each(one)


def joint_energy(sample: Sample, s: Settings) -> Value:
    channels = s["channels"]
    scales = [D(v) for v in s["scales"]] or [ONE] * len(channels)

    def point(start: Start, n: int) -> Decimal | None:
        sides = [start.of(c) for c in channels]
        if not all(c.scored(n) for c in sides):
            return None
        x, y = [c.x(n) for c in sides], [c.y(n) for c in sides]

        def norm(a: list[Decimal], b: list[Decimal]) -> Decimal:
            return total(((p - q) / k) ** 2 for p, q, k in zip(a, b, scales, strict=True)).sqrt()

        members = [[row[m] for row in x] for m in range(start.members)]
        pairs = total(norm(a, b) for a, b in combinations(members, 2))
        return mean([norm(a, y) for a in members]) - pairs / (
            start.members * (start.members - (s["kind"] == "fair"))
        )

    return sample.of(channels[0]).mean(point)


def variogram(sample: Sample, s: Settings) -> Value:
    grid = sample.first.given.grid
    everywhere = [list(range(grid.size))] * grid.size
    around = everywhere if s["within_km"] is None else near(grid, s["within_km"])
    if s["pairs"]:
        around = [[j for i, j in s["pairs"] if i == n] for n in range(grid.size)]
    areas = point_areas(grid) if s["norm"] == "area" else [ONE] * grid.size
    p = D(s["p"])

    def square(start: Start, i: int, j: int) -> Decimal:
        truth = abs(start.y(i) - start.y(j)) ** p if start.y(i) != start.y(j) else ZERO
        away = []
        for a, b in zip(start.x(i), start.x(j), strict=True):
            away.append((abs(a - b) ** p if a != b else ZERO) - truth)
        middle = mean(away)
        if s["kind"] == "biased":
            return middle**2
        size = start.members
        return middle**2 - total((d - middle) ** 2 for d in away) / (size * (size - 1))

    def terms(start: Start, i: int) -> tuple[Decimal, Decimal]:
        value = weight = ZERO
        for j in around[i]:
            if j != i and start.scored(j):
                w = areas[j]
                if s["weights"] == "inverse":
                    w /= distance_km(grid.points[i], grid.points[j])
                value, weight = value + w * square(start, i, j), weight + w
        return value, weight

    if s["norm"] == "sum":
        return sample.each(lambda start: total(terms(start, i)[0] for i in start.region if start.scored(i)))

    def point(start: Start, i: int) -> Decimal | None:
        value, weight = terms(start, i)
        return value / weight if weight else None

    return sample.mean(point)
