"""Arithmetic with 50 digits: every expected value is rounded once, at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal, getcontext
from functools import cache

getcontext().prec = 50

D = Decimal
ZERO, ONE, TWO, HALF = D(0), D(1), D(2), D("0.5")
_TINY = D(10) ** -55
EARTH_RADIUS_KM = D("6371.0088")


def total(values: Iterable[Decimal]) -> Decimal:
    return sum(values, ZERO)


def mean(values: Sequence[Decimal]) -> Decimal:
    return total(values) / len(values)


def weighted_mean(values: Sequence[Decimal], weights: Sequence[Decimal]) -> Decimal:
    return total(v * w for v, w in zip(values, weights, strict=True)) / total(weights)


@cache
def pi() -> Decimal:
    """Machin: 16 atan(1/5) - 4 atan(1/239)."""
    return 16 * _atan_series(ONE / 5) - 4 * _atan_series(ONE / 239)


def _atan_series(x: Decimal) -> Decimal:
    power, out, k = x, x, 1
    while abs(power) > _TINY:
        power *= -x * x
        k += 2
        out += power / k
    return out


def atan(x: Decimal) -> Decimal:
    if abs(x) > D("0.2"):
        return 2 * atan(x / (1 + (1 + x * x).sqrt()))
    return _atan_series(x)


def asin(x: Decimal) -> Decimal:
    return pi() / 2 * x if abs(x) == 1 else atan(x / (1 - x * x).sqrt())


def sin(x: Decimal) -> Decimal:
    x %= 2 * pi()
    term, out, k = x, x, 1
    while abs(term) > _TINY:
        term *= -x * x / ((k + 1) * (k + 2))
        k += 2
        out += term
    return out


def cos(x: Decimal) -> Decimal:
    return sin(x + pi() / 2)


@cache
def sin_deg(angle: Decimal) -> Decimal:
    """Sine of degrees, exact where it is 0, 1/2 or 1."""
    if angle < 0:
        return -sin_deg(-angle)
    known = {0: ZERO, 30: HALF, 90: ONE, 150: HALF, 180: ZERO, 210: -HALF, 270: -ONE, 330: -HALF}
    turn = angle % 360
    return known[int(turn)] if turn in known else sin(turn * pi() / 180)


def cos_deg(angle: Decimal) -> Decimal:
    return sin_deg(angle + 90)


def log10(x: Decimal) -> Decimal:
    return x.log10()


def t_two_sided(t: Decimal, df: int) -> Decimal:
    """P(|T| > |t|) of Student's t with a whole number of degrees of freedom.

    Abramowitz and Stegun (1964), 26.7.3 and 26.7.4: finite sums in theta = atan(t / sqrt(df)).
    """
    tangent = abs(t) / D(df).sqrt()
    theta = atan(tangent)
    square = 1 / (1 + tangent * tangent)
    cosine = square.sqrt()
    sine = tangent * cosine
    if df % 2:
        term, series = cosine, cosine if df > 1 else ZERO
        for k in range(3, df - 1, 2):
            term *= square * (k - 1) / k
            series += term
        return 1 - 2 / pi() * (theta + sine * series)
    term = series = ONE
    for k in range(2, df - 1, 2):
        term *= square * (k - 1) / k
        series += term
    return 1 - sine * series
