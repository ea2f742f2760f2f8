"""Standard errors, corrections, block lengths and calendars."""

from __future__ import annotations

import calendar
from datetime import date, datetime, timedelta

from exact import HALF, ONE, ZERO, D, Decimal, cos, mean, pi, t_two_sided, total


def autocovariance(d: list[Decimal], lag: int) -> Decimal:
    """Sum over t of anomalies at t and t + lag, divided by T."""
    middle, size = mean(d), len(d)
    return total((d[t] - middle) * (d[t + lag] - middle) for t in range(size - lag)) / size


def standard_error(d: list[Decimal], method: str, horizon: int) -> tuple[Decimal, int]:
    """Of the mean, with the degrees of freedom."""
    size = len(d)
    c0 = autocovariance(d, 0)
    naive = (c0 / (size - 1)).sqrt()
    if method == "iid":
        return naive, size - 1
    if method in ("geer", "geer_wbx"):
        r1, r2 = autocovariance(d, 1) / c0, autocovariance(d, 2) / c0
        if method == "geer_wbx":
            # Sums divided by their number of terms, the variance by T - 1.
            r1, r2 = (r * size / (size - k) * (size - 1) / size for k, r in ((1, r1), (2, r2)))
        phi1, phi2 = r1 * (1 - r2) / (1 - r1 * r1), (r2 - r1 * r1) / (1 - r1 * r1)
        return naive * (1 - r1 * phi1 - r2 * phi2).sqrt() / (1 - phi1 - phi2), size - 1
    if method in ("ewc", "ewc_ar1"):
        return _cosine(d, corrected=method == "ewc_ar1")
    long_run = (_hln if method == "hln" else _hg)(d, horizon)
    return (long_run / size).sqrt(), size - 1


def _cosine(d: list[Decimal], *, corrected: bool) -> tuple[Decimal, int]:
    size, middle = len(d), mean(d)
    count = max(1, int(D("0.4") * D(size) ** (D(2) / 3)))
    rho = autocovariance(d, 1) / autocovariance(d, 0)
    if size > 8:
        rho = max(D("-0.97"), min(D("0.97"), (size * rho + 1) / (size - 4)))
    out = ZERO
    for j in range(1, count + 1):
        omega = pi() * j / size
        amplitude = total(cos(omega * (t + HALF)) * (x - middle) for t, x in enumerate(d))
        power = 2 * amplitude**2 / size
        # Spectrum of an AR(1) process: f(0) / f(omega) = (1 - 2 rho cos + rho^2) / (1 - rho)^2.
        out += power * ((1 - 2 * rho * cos(omega) + rho * rho) / (1 - rho) ** 2 if corrected else ONE)
    return (out / count / size).sqrt(), count


def _hln(d: list[Decimal], horizon: int) -> Decimal:
    size = len(d)
    long_run = autocovariance(d, 0) + 2 * total(autocovariance(d, k) for k in range(1, horizon))
    return long_run / ((D(size) + 1 - 2 * horizon + D(horizon) * (horizon - 1) / size) / size)


def _hg(d: list[Decimal], horizon: int) -> Decimal:
    """Least squares fit of s x^k: a scan, then golden sections of the explained sum of squares."""
    size = len(d)
    lags = max((size - 1) // 2, horizon)
    c = [autocovariance(d, k) for k in range(lags)]

    def scale(x: Decimal) -> Decimal:
        powers = [x**k if k else ONE for k in range(lags)]
        return total(a * b for a, b in zip(powers, c, strict=True)) / total(p * p for p in powers)

    def explained(x: Decimal) -> Decimal:
        return scale(x) ** 2 * total(x ** (2 * k) if k else ONE for k in range(lags))

    best = max((D(k) / 400 for k in range(400)), key=explained)
    low, high = max(best - D(1) / 400, ZERO), best + D(1) / 400
    golden = (D(5).sqrt() - 1) / 2
    for _ in range(150):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if explained(a) > explained(b) else (a, high)
    x = (low + high) / 2
    return scale(x) * (1 + 2 * total(x**k for k in range(1, size)))


def paired_test(d: list[Decimal], method: str, horizon: int) -> dict[str, Decimal]:
    stderr, df = standard_error(d, method, horizon)
    middle = mean(d)
    return {"mean": middle, "stderr": stderr, "df": D(df), "p_value": t_two_sided(middle / stderr, df)}


def corrected(p: list[Decimal | None], correction: str) -> list[Decimal | None]:
    """Adjusted p-values from their definitions."""
    tested = [v for v in p if v is not None]
    m = len(tested)
    harmonic = total(ONE / k for k in range(1, m + 1))

    def rank_up(v: Decimal) -> int:
        return sum(u <= v for u in tested)

    def one(v: Decimal) -> Decimal:
        if correction == "none":
            return v
        if correction == "sidak":
            return 1 - (1 - v) ** m
        if correction == "holm":
            return min(ONE, max((m - sum(w < u for w in tested)) * u for u in tested if u <= v))
        factor = harmonic if correction == "benjamini-yekutieli" else ONE
        return min(ONE, min(factor * m * u / rank_up(u) for u in tested if u >= v))

    return [None if v is None else one(v) for v in p]


def block_length(d: list[Decimal]) -> Decimal:
    """Politis and White (2004) as corrected by Patton, Politis and White (2009), stationary bootstrap."""
    size = len(d)
    run = max(5, _ceil(D(size).log10().sqrt()))
    largest = min(size - 1, _ceil(D(size).sqrt()) + run)
    r = [autocovariance(d, k) for k in range(largest + 1)]
    bound = 2 * (D(size).log10() / size).sqrt() * r[0]
    small = [abs(v) < bound for v in r[1:]]
    quiet = next((k for k in range(len(small) - run + 1) if all(small[k : k + run])), len(small))
    cut = min(2 * max(quiet, 1), largest)
    flat = [min(ONE, max(ZERO, 2 * (1 - D(k) / cut))) for k in range(cut + 1)]
    g = 2 * total(flat[k] * k * r[k] for k in range(1, cut + 1))
    zero = r[0] + 2 * total(flat[k] * r[k] for k in range(1, cut + 1))
    optimal = (g * g / (zero * zero) * size) ** (ONE / 3)
    return min(max(optimal, ONE), D(_ceil(min(3 * D(size).sqrt(), D(size) / 3))))


def _ceil(x: Decimal) -> int:
    return -int(-x // 1)


def day_of_year(day: date, kind: str) -> int:
    """1 to 366: "doy" counts days in the year of the date, "monthday" those in a leap year."""
    year = day.year if kind == "doy" else 2000
    return (date(year, day.month, day.day) - date(year, 1, 1)).days + 1


def same_day(day: date, year: int, kind: str) -> date:
    """The day of another year."""
    if kind == "doy":
        return date(year, 1, 1) + timedelta(days=day_of_year(day, "doy") - 1)
    return date(year, day.month, min(day.day, calendar.monthrange(year, day.month)[1]))


def climatology(
    times: list[datetime], values: list[Decimal], day: int, *, kind: str, kernel: str, half: int
) -> list[tuple[Decimal, Decimal]]:
    """Values in the window around a day of the year (1..366), with their weights; dry ends have weight 0."""
    found = []
    for time, value in zip(times, values, strict=True):
        leap = calendar.isleap(time.year)
        own = [(time.date() - date(time.year, 1, 1)).days]
        ring, centre = 366, day - 1
        if kind == "monthday" and not leap:
            # A common year has no day 60: its 28 February stands in.
            ring, centre = 365, day - 1 - (day >= 60)
        elif kind == "doy" and not leap and own[0] == 364:
            own = [364, 365]
        for place in own:
            away = abs(place - centre)
            away = min(away, ring - away)
            if away <= half:
                found.append((value, 1 - D(away) / half if kernel == "triangle" else ONE))
    return found


def weighted_quantile(pairs: list[tuple[Decimal, Decimal]], p: Decimal) -> Decimal:
    """Type 7 with Kish's effective size (Akinshin 2023)."""
    pairs = sorted(pairs)
    whole = total(w for _, w in pairs)
    size = whole**2 / total(w * w for _, w in pairs)
    start = (size - 1) * p / size
    end, out, share = start + 1 / size, ZERO, ZERO
    for value, weight in pairs:
        upper = share + weight / whole
        out += value * max(ZERO, min(upper, end) - max(share, start)) * size
        share = upper
    return out
