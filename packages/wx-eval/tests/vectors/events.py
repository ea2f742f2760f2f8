"""Scores of events, of ranks and of categories."""

from __future__ import annotations

from collections.abc import Callable
from operator import ge, gt, le, lt
from typing import Any

from exact import HALF, ONE, ZERO, D, Decimal, mean, total
from sample import Sample, Start

COMPARE: dict[str, Callable[[Any, Any], bool]] = {">": gt, ">=": ge, "<": lt, "<=": le}
Settings = dict[str, Any]
Value = Decimal | list[Decimal] | None


def level(start: Start, threshold: Any, n: int) -> Decimal | None:
    """Threshold at a point: a number, a climatological field, or a number by channel."""
    if isinstance(threshold, str):
        return start.reference(threshold, n)
    if isinstance(threshold, list):
        found = dict(threshold)
        return D(found[start.channel]) if start.channel in found else None
    return D(threshold)


def _probability(start: Start, threshold: Any, event: str, n: int) -> tuple[int, Decimal, int] | None:
    """Number of members with the event, its share, and whether it happened."""
    bound = level(start, threshold, n)
    if bound is None:
        return None
    count = sum(COMPARE[event](x, bound) for x in start.x(n))
    return count, D(count) / start.members, int(COMPARE[event](start.y(n), bound))


def brier(sample: Sample, s: Settings) -> Value:
    return _ranked(sample, [s["threshold"]], s["event"], s["kind"])


def rps(sample: Sample, s: Settings) -> Value:
    return _ranked(sample, s["thresholds"], s["event"], s["kind"])


def _ranked(sample: Sample, thresholds: list[Any], event: str, kind: str) -> Value:
    def point(start: Start, n: int) -> Decimal | None:
        out = ZERO
        for threshold in thresholds:
            found = _probability(start, threshold, event, n)
            if found is None:
                return None
            _, p, o = found
            out += (p - o) ** 2
            if kind == "fair":
                out -= p * (1 - p) / (start.members - 1)
        return out

    return sample.mean(point)


def table(sample: Sample, s: Settings) -> list[tuple[Decimal, Decimal]] | None:
    """For k = 0..M members: weight of the points without and with the event."""

    def indicator(k: int, o: int) -> Callable[[Start, int], Decimal | None]:
        def point(start: Start, n: int) -> Decimal | None:
            found = _probability(start, s["threshold"], s["event"], n)
            return None if found is None else D(found[0] == k and found[2] == o)

        return point

    rows = [(sample.mean(indicator(k, 0)), sample.mean(indicator(k, 1))) for k in range(sample.members + 1)]
    return None if rows[0][0] is None else rows  # type: ignore[return-value]


def frequencies(sample: Sample, s: Settings) -> Value:
    found = table(sample, s)
    return None if found is None else [value for row in found for value in row]


def auc(sample: Sample, s: Settings) -> Value:
    """Chance that more members forecast a random event than a random non-event; ties count one half."""
    found = table(sample, s)
    if found is None:
        return None
    quiet, event = total(q for q, _ in found), total(e for _, e in found)
    wins = total(
        e * q * (ONE if j > k else HALF if j == k else ZERO)
        for j, (_, e) in enumerate(found)
        for k, (q, _) in enumerate(found)
    )
    return wins / (quiet * event)


def rev(sample: Sample, s: Settings) -> Value:
    found = table(sample, s)
    if found is None:
        return None
    ratio, members = D(s["cost_loss"]), sample.members
    rate = total(e for _, e in found)

    def value(first: int) -> Decimal:
        """Of acting when at least `first` members forecast the event."""
        hits, alarms = total(e for _, e in found[first:]), total(q for q, _ in found[first:])
        expense, climate = ratio * (hits + alarms) + rate - hits, min(ratio, rate)
        return (climate - expense) / (climate - ratio * rate)

    if s["decision"] == "best":
        return max(value(first) for first in range(members + 2))
    bound = ratio if s["decision"] == "cost_loss" else D(s["decision"])
    return value(next((k for k in range(members + 1) if D(k) / members >= bound), members + 1))


def categorical(sample: Sample, s: Settings) -> Value:
    def cell(forecast: int, happened: int) -> Callable[[Start, int], Decimal | None]:
        def point(start: Start, n: int) -> Decimal | None:
            bound = level(start, s["threshold"], n)
            if bound is None:
                return None
            beyond = COMPARE[s["event"]]
            if s["by"] == "mean":
                said = beyond(mean(start.x(n)), bound)
            else:
                said = D(sum(beyond(x, bound) for x in start.x(n))) / start.members >= D(s["by"])
            return D(int(said) == forecast and int(beyond(start.y(n), bound)) == happened)

        return point

    hit, alarm, miss, none = (sample.known(cell(*c)) for c in ((1, 1), (1, 0), (0, 1), (0, 0)))
    pod, pofd = hit / (hit + miss), alarm / (alarm + none)
    chance = (hit + alarm) * (hit + miss)
    if s["score"] == "sedi":
        f, h, no_f, no_h = pofd.ln(), pod.ln(), (1 - pofd).ln(), (1 - pod).ln()
        return (f - h - no_f + no_h) / (f + h + no_f + no_h)
    return {
        "pod": pod,
        "far": alarm / (hit + alarm),
        "pofd": pofd,
        "csi": hit / (hit + alarm + miss),
        "ets": (hit - chance) / (hit + alarm + miss - chance),
        "frequency_bias": (hit + alarm) / (hit + miss),
        "peirce": pod - pofd,
        "heidke": (hit + none - (chance + (miss + none) * (alarm + none)))
        / (1 - (chance + (miss + none) * (alarm + none))),
    }[s["score"]]


def brier_term(sample: Sample, s: Settings) -> Value:
    found = table(sample, s)
    if found is None:
        return None
    members, term = sample.members, s["term"]
    rate = total(e for _, e in found)
    if term == "uncertainty":
        return rate * (1 - rate)
    if term in ("miscalibration", "discrimination"):
        fit = pool_adjacent([(q + e, e) for q, e in found])
        recalibrated = total(q * c * c + e * (1 - c) ** 2 for (q, e), c in zip(found, fit, strict=True))
        if term == "discrimination":
            return rate * (1 - rate) - recalibrated
        p = [D(k) / members for k in range(members + 1)]
        return total(q * c * c + e * (1 - c) ** 2 for (q, e), c in zip(found, p, strict=True)) - recalibrated
    count = s["bins"] or members + 1
    bins: list[list[int]] = [[] for _ in range(count)]
    for k in range(members + 1):
        # p = k / M lies in bin floor(p bins), exactly.
        bins[min(k * count // members, count - 1) if s["bins"] else k].append(k)
    out = ZERO
    for group in bins:
        weight = total(found[k][0] + found[k][1] for k in group)
        if not weight:
            continue
        p_bar = total((found[k][0] + found[k][1]) * k / members for k in group) / weight
        o_bar = total(found[k][1] for k in group) / weight
        if term == "reliability":
            out += weight * (p_bar - o_bar) ** 2
        elif term == "resolution":
            out += weight * (o_bar - rate) ** 2
        else:
            for k in group:
                q, e = found[k]
                p = D(k) / members
                out += (q + e) * (p - p_bar) ** 2
                out -= 2 * (q * (0 - o_bar) + e * (1 - o_bar)) * (p - p_bar)
    return out


def pool_adjacent(pairs: list[tuple[Decimal, Decimal]]) -> list[Decimal]:
    """Isotonic regression by its max-min formula, of bins (weight, weight times frequency)."""
    size = len(pairs)

    def average(a: int, b: int) -> Decimal | None:
        weight = total(w for w, _ in pairs[a : b + 1])
        return total(t for _, t in pairs[a : b + 1]) / weight if weight else None

    out = []
    for k in range(size):
        lows = []
        for a in range(k + 1):
            ups = [v for b in range(k, size) if (v := average(a, b)) is not None]
            if ups:
                lows.append(min(ups))
        out.append(max(lows) if lows else ZERO)
    return out


def ranks(sample: Sample, s: Settings) -> Value:
    def share(k: int) -> Callable[[Start, int], Decimal]:
        def point(start: Start, n: int) -> Decimal:
            below = sum(x < start.y(n) for x in start.x(n))
            equal = sum(x == start.y(n) for x in start.x(n)) if s["ties"] == "share" else 0
            return ONE / (equal + 1) if below <= k <= below + equal else ZERO

        return point

    return [v for k in range(sample.members + 1) if (v := sample.mean(share(k))) is not None]


def rank_uniformity(sample: Sample, s: Settings) -> Value:
    found = ranks(sample, s)
    assert isinstance(found, list)
    away = [f - ONE / len(found) for f in found]
    return total(abs(a) for a in away) if s["kind"] == "index" else len(found) * total(a * a for a in away)


_DRY = {"wbx": {6: 0.1, 24: 0.25}, "wb2": {6: 0.1, 24: 0.25}, "rodwell": {24: 0.2}}


def seeps(sample: Sample, s: Settings) -> Value:
    kind, dry = s["kind"], D(_DRY[s["kind"]][s["hours"]])

    def category(x: Decimal, wet: Decimal) -> int | None:
        """0 dry, 1 light, 2 heavy."""
        if x > wet if kind == "rodwell" else x >= wet:
            return 2
        if x > dry:
            return 1
        return None if kind == "wb2" and x == dry else 0

    def point(start: Start, n: int) -> Decimal | None:
        p1, wet = start.reference("seeps_dry_fraction", n), start.reference("seeps_threshold", n)
        assert p1 is not None
        assert wet is not None
        low, high = D(0.1), D(0.85)
        if not (low < p1 < high if kind == "wb2" else low <= p1 <= high):
            return None
        cost = [
            [ZERO, 1 / (1 - p1), 4 / (1 - p1)],
            [1 / p1, ZERO, 3 / (1 - p1)],
            [1 / p1 + 3 / (2 + p1), 3 / (2 + p1), ZERO],
        ]
        seen, out = category(start.y(n), wet), []
        for x in start.x(n) if s["of"] == "members" else [mean(start.x(n))]:
            said = category(x, wet)
            out.append(ZERO if said is None or seen is None else cost[said][seen] / 2)
        return mean(out)

    return sample.mean(point)
