"""Faults of a forecast and its truth that scores would hide.

Each check compares what files say and what fields hold; a finding states where, a number as evidence, and
what to do. Correlations are of the ensemble mean with the truth, over space, and do not depend on units.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._cube import Key
from ._grid import Array, Vector
from ._open import Source, Truth
from ._regrid import is_global
from ._units import same_units

Severity = Literal["error", "warning", "note"]

_GRAVITY = 9.80665
# (factor, what it is between)
_FACTORS = (
    (_GRAVITY, "geopotential and geopotential height"),
    (100.0, "Pa and hPa, or shares and per cent"),
    (1000.0, "m and mm, or kg/kg and g/kg"),
    (10.0, "m and dam"),
    (1 / 0.514444, "knots and m/s"),
    (3.6, "km/h and m/s"),
    (3600.0, "hourly sums and rates per second"),
    (21600.0, "6-hourly sums and rates per second"),
    (86400.0, "daily sums and rates per second"),
)
_SUMS = (
    (4.0, "24-hourly and 6-hourly sums"),
    (24.0, "24-hourly and hourly sums"),
    (6.0, "6-hourly and hourly sums"),
)
_CELSIUS = 273.15
# (pattern, unit, low, high): what an analysis or a sane forecast stays within.
_RANGES = (
    (r"t\d+", "K", 150, 350),
    (r"t2m|2t|d2m|2d|skt", "K", 170, 350),
    (r"sst", "K", 260, 320),
    (r"[uv]\d{3,}", "m s-1", -160, 160),
    (r"[uv]10|10[uv]", "m s-1", -110, 110),
    (r"q\d+", "kg kg-1", -1e-3, 0.05),
    (r"r\d+", "%", -20, 200),
    (r"msl", "Pa", 84000, 112000),
    (r"sp", "Pa", 40000, 112000),
    (r"tp\w*", "m", -1e-3, 2),
)
_OUTSIDE_SHARE = 0.01
_FEW_POINTS = 16
# How much smaller 1 - correlation has to be elsewhere: for three samples or more, and for fewer.
_BETTER, _MUCH_BETTER = 1.5, 4.0
_AGREE = 0.7
_CLOSE = 0.5
_OFFSETS = 8


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault.

    Attributes:
        severity: "error" for what makes scores wrong or impossible, "warning" for what probably does, "note"
            for what is good to know.
        check: name of the check.
        where: files, channels or times.
        message: what was found.
        evidence: the number behind it; its meaning is in the message.
        fix: what to do.
    """

    severity: Severity
    check: str
    where: str
    message: str
    evidence: float
    fix: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Result of `doctor`.

    Attributes:
        findings: errors first.
        samples: (init time, lead time) pairs whose fields were read.
        pairs: all of the forecast.
        skipped: checks of fields that could not be made, and why.
    """

    findings: tuple[Finding, ...]
    samples: int
    pairs: int
    skipped: str = ""

    @property
    def healthy(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(f.severity == "note" for f in self.findings)

    def text(self) -> str:
        """The findings, one paragraph each, and what was looked at."""
        lines = []
        for f in self.findings:
            lines += [f"{f.severity}: {f.check}: {f.where}: {f.message}", f"    to fix it: {f.fix}"]
        counts = Counter(f.severity for f in self.findings)
        found = ", ".join(f"{counts[s]} {s}{'s' * (counts[s] != 1)}" for s in ("error", "warning", "note"))
        lines.append(f"{found}; fields of {self.samples} of {self.pairs} forecast times were read")
        if self.skipped:
            lines.append(f"fields were not compared: {self.skipped}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Sample:
    """Members and truth of one channel at one time."""

    channel: str
    key: Key
    labels: tuple[int, ...]
    members: Vector  # (M, *space)
    truth: Vector  # (*space)

    @property
    def mean(self) -> Vector:
        with np.errstate(invalid="ignore"):
            return np.asarray(self.members.mean(axis=0))


def doctor(forecast: Source, truth: Source, *, samples: int = 12, seed: int = 0) -> Diagnosis:
    """Look for faults in a forecast and the truth that it will be scored against.

    From times and labels alone: duplicate and missing starts, lead times and truths, mixed member counts,
    grids, units. From the fields of some forecast times: shifted valid times, flipped latitudes and shifted
    longitudes (of these three the one that explains most), magnitudes and physical ranges, members that are
    missing, identical or constant, sums that run on from the start.

    Args:
        forecast, truth: from `open_source`.
        samples: (init time, lead time) pairs whose fields are read, half of them at the shortest lead time.
        seed: of the choice of pairs.
    """
    found = [*duplicates(forecast), *duplicates(truth), *missing(forecast), *member_counts(forecast)]
    found += _channels(forecast, truth)
    try:
        states = Truth(truth)
    except ValueError as error:
        fault = Finding(
            severity="error",
            check="truth times",
            where=truth.name,
            message=str(error),
            evidence=float("nan"),
            fix="keep one lead time of the truth",
        )
        return result([*found, fault], 0, forecast, "the truth has two states for one time")
    found += _coverage(forecast, states)
    found += _truth_members(truth)
    grid, common, why = _on_grid_of(forecast, truth)
    found += grid
    broken = {key for _, key in forecast.duplicates} | set(doubles(forecast))
    if common is None or any(f.check == "truth members" for f in found):
        return result(found, 0, forecast, why or "the truth has several members")
    keys = chosen_keys(
        common, set(states.times.astype(np.int64).tolist()), set(truth.channels), broken, samples, seed
    )
    read = [s for key in keys for s in _samples(common, states, key)]
    found += [
        *member_faults(read),
        *_constant(read),
        *magnitudes(read),
        *range_faults(read, forecast.units, truth.units),
    ]
    short = shortest(keys)
    near = [s for s in read if s.key in short and s.truth.size >= _FEW_POINTS and np.isfinite(s.mean).any()]
    # Waves that travel fit elsewhere both in space and in time: what fits better is the fault.
    moved = [*_places(near, common), *_valid_times(near, states)]
    found += [max(moved, key=lambda item: item[0])[1]] if moved else []
    found += _sums(common, states, keys, broken)
    return result(found, len(keys), forecast, "" if keys else "no forecast time has a truth")


def result(found: Sequence[Finding], samples: int, forecast: Source, skipped: str) -> Diagnosis:
    order = ("error", "warning", "note")
    ordered = sorted(found, key=lambda f: order.index(f.severity))
    return Diagnosis(findings=tuple(ordered), samples=samples, pairs=len(forecast.keys), skipped=skipped)


# Times and labels.


def duplicates(source: Source) -> Iterator[Finding]:
    held = [(origin, when(key)) for origin, key in source.duplicates]
    held += [(source.name, when(key)) for key in doubles(source)]
    if held:
        yield Finding(
            severity="error",
            check="duplicate times",
            where=held[0][0],
            message=f"{len(held)} times come twice, the first is {held[0][1]}",
            evidence=len(held),
            fix="drop the repeats, or name files that do not overlap",
        )


def doubles(source: Source) -> list[Key]:
    """Times that two files hold for one channel and member."""
    out = []
    for keys in source.layouts:
        for channel in source.channels_at(keys[0]):
            labels = source.members(channel, keys[0])
            if len(set(labels)) < len(labels):
                out += keys
                break
    return sorted(out)


def missing(forecast: Source) -> Iterator[Finding]:
    starts = forecast.init_times.astype(np.int64)
    steps = np.diff(starts)
    if steps.size >= 2:
        step, count = Counter(steps.tolist()).most_common(1)[0]
        gaps = np.flatnonzero((steps > step) & (steps % step == 0))
        absent = [t for g in gaps for t in range(int(starts[g]) + step, int(starts[g + 1]), step)]
        if not any(map(_leap_day, starts)):
            # A calendar without leap days lacks nothing.
            absent = [t for t in absent if not _leap_day(t)]
        if count >= 0.6 * steps.size and absent:
            yield Finding(
                severity="warning",
                check="missing starts",
                where=forecast.name,
                message=f"{len(absent)} of {len(absent) + starts.size} starts every {step / 3600:g} h are "
                f"absent, the first is {np.datetime64(absent[0], 's')}",
                evidence=len(absent),
                fix="add the files, or accept fewer starts in comparisons",
            )
    leads = forecast.lead_times.astype(np.int64)
    widths = np.diff(leads)
    # Steps grow with lead time in operational archives and never shrink.
    wide = [i for i in range(widths.size - 1) if widths[i] > widths[i + 1 :].min()]
    if wide:
        yield Finding(
            severity="warning",
            check="missing lead times",
            where=forecast.name,
            message=f"the step after {leads[wide[0]] / 3600:g} h is {widths[wide[0]] / 3600:g} h, later "
            f"ones are {widths[wide[0] + 1 :].min() / 3600:g} h",
            evidence=len(wide),
            fix="add the files of the lead times between",
        )
    yield from _holes(forecast)


def _holes(forecast: Source) -> Iterator[Finding]:
    """Starts without lead times that others of the same hour of day have."""
    by_hour: dict[int, dict[int, set[int]]] = {}
    for init, lead in forecast.keys:
        by_hour.setdefault(init % 86400, {}).setdefault(init, set()).add(lead)
    lacking = []
    for starts in by_hour.values():
        everything = set().union(*starts.values())
        lacking += [(init, min(everything - leads)) for init, leads in starts.items() if everything - leads]
    if lacking:
        yield Finding(
            severity="warning",
            check="missing lead times",
            where=forecast.name,
            message=f"{len(lacking)} starts lack lead times that others of the same hour have, the first is "
            f"{when(min(lacking))}",
            evidence=len(lacking),
            fix="add the files, or leave these starts out by inits",
        )


def member_counts(forecast: Source) -> Iterator[Finding]:
    found: dict[int, list[tuple[Key, str]]] = {}
    for keys in forecast.layouts:
        for channel in forecast.channels_at(keys[0]):
            count = len(forecast.members(channel, keys[0]))
            found.setdefault(count, []).extend((key, channel) for key in keys)
    if len(found) > 1:
        usual = max(found, key=lambda count: len(found[count]))
        count, (key, channel) = min(((n, min(p)) for n, p in found.items() if n != usual), key=lambda i: i[1])
        total = sum(map(len, found.values()))
        other = total - len(found[usual])
        yield Finding(
            severity="warning",
            check="mixed member counts",
            where=f"{channel} from {when(key)}",
            message=f"{count} members here, {usual} elsewhere, at {other} of {total} times and channels",
            evidence=other,
            fix="add the members, or keep the common ones: biased scores depend on their number",
        )


def _channels(forecast: Source, truth: Source) -> Iterator[Finding]:
    common = [c for c in forecast.channels if c in truth.channels]
    if not common:
        yield Finding(
            severity="error",
            check="channels",
            where=forecast.name,
            message=f"none of {list(forecast.channels)[:8]} is among {list(truth.channels)[:8]} of the truth",
            evidence=0,
            fix="rename those that are the same: --truth-rename OLD=NEW",
        )
    elif len(common) < len(forecast.channels):
        yield Finding(
            severity="note",
            check="channels",
            where=forecast.name,
            message=f"{len(forecast.channels) - len(common)} channels have no truth and are not scored",
            evidence=len(forecast.channels) - len(common),
            fix="rename those that are the same: --truth-rename OLD=NEW",
        )
    for channel in common:
        ours, theirs = forecast.units[channel], truth.units[channel]
        if ours and theirs and not same_units(ours, theirs):
            yield _units(channel, f"the files say {ours!r} in the forecast and {theirs!r} in the truth", 1.0)
        steps = [s.attribute(channel, "GRIB_stepType") for s in (forecast, truth)]
        if all(steps) and steps[0] != steps[1]:
            yield Finding(
                severity="warning",
                check="step type",
                where=channel,
                message=f"the forecast is {steps[0]!r} over its step, the truth {steps[1]!r}",
                evidence=1.0,
                fix="verify like with like: sums over the same hours, extremes of the same window",
            )


def _coverage(forecast: Source, states: Truth) -> Iterator[Finding]:
    known = set(states.times.astype(np.int64).tolist())
    lost = [key for key in forecast.keys if sum(key) not in known]
    if lost:
        yield Finding(
            severity="warning",
            check="missing truth",
            where=states.source.name,
            message=f"{len(lost)} of {len(forecast.keys)} valid times have no truth, the first is "
            f"{when(lost[0])}",
            evidence=len(lost),
            fix='add the truth, choose inits and leads, or set missing_truth = "drop"',
        )


def _truth_members(truth: Source) -> Iterator[Finding]:
    count = max((len(truth.members(c, truth.keys[0])) for c in truth.channels_at(truth.keys[0])), default=1)
    if count > 1:
        yield Finding(
            severity="error",
            check="truth members",
            where=truth.name,
            message=f"the truth has {count} members",
            evidence=count,
            fix="choose one: --truth-members 0",
        )


def _on_grid_of(forecast: Source, truth: Source) -> tuple[list[Finding], Source | None, str]:
    """What is wrong with the grids, the forecast on that of the truth, and why it cannot be."""
    if forecast.same_grid(truth):
        return [], forecast, ""
    text = f"forecast {forecast.grid_text}, truth {truth.grid_text}"
    try:
        aligned = forecast.aligned(truth)
    except ValueError:
        found = Finding(
            severity="error",
            check="different grids",
            where=forecast.name,
            message=text,
            evidence=abs(forecast.latitude.size - truth.latitude.size),
            fix='regrid one of them by regrid = "conservative" or "bilinear"',
        )
        try:
            assert truth.axes is not None
            return [found], forecast.regridded(truth.axes, "bilinear"), ""
        except (ValueError, AssertionError):
            return [found], None, "the grids differ and one does not cover the other"
    found = Finding(
        severity="warning",
        check="order of points",
        where=forecast.name,
        message=f"same points in another order or with other longitudes: {text}",
        evidence=float(np.abs(forecast.latitude - truth.latitude).max()),
        fix="align = true (--align)",
    )
    return [found], aligned, ""


# Fields.


def chosen_keys(
    forecast: Source, known: set[int], names: set[str], broken: set[Key], samples: int, seed: int
) -> list[Key]:
    """Half of the samples at the shortest lead time beyond 0, the others anywhere.

    Args:
        forecast: whose times are chosen.
        known: valid times with a truth, in seconds since 1970.
        names: channels with one.
        broken: times that are left out.
        samples: at most so many.
        seed: of the choice.
    """
    keys = [
        k
        for k in forecast.keys
        if sum(k) in known and k not in broken and names & set(forecast.channels_at(k))
    ]
    rng = np.random.default_rng(seed)
    near = sorted(shortest(keys))
    first = [near[i] for i in _pick(rng, len(near), (samples + 1) // 2)]
    rest = [k for k in keys if k not in set(first)]
    return sorted([*first, *(rest[i] for i in _pick(rng, len(rest), samples - len(first)))])


def _pick(rng: np.random.Generator, size: int, count: int) -> list[int]:
    return sorted(rng.choice(size, min(size, count), replace=False).tolist()) if size else []


def shortest(keys: Sequence[Key]) -> set[Key]:
    leads = sorted({lead for _, lead in keys})
    wanted = next((lead for lead in leads if lead > 0), leads[0] if leads else 0)
    return {key for key in keys if key[1] == wanted}


def _samples(forecast: Source, states: Truth, key: Key) -> Iterator[Sample]:
    state = states.read(np.array([sum(key)], "datetime64[s]"))[0]
    for channel in forecast.channels_at(key):
        if channel in states.channels_at(sum(key)):
            labels = forecast.members(channel, key)
            values = forecast.read(channel, key).astype(np.float64)
            truth = state.sel(channel=channel).values.astype(np.float64)
            yield Sample(channel, key, tuple(labels), values, truth)


def member_faults(read: Sequence[Sample]) -> Iterator[Finding]:
    """Members that are not finite, and members that are copies."""
    for s in read:
        bad = ~np.isfinite(s.members) & np.isfinite(s.truth)
        if bad.any():
            per_member = bad.reshape(len(bad), -1).mean(axis=1)
            names = [s.labels[k] for k in np.flatnonzero(per_member)]
            yield Finding(
                severity="error",
                check="missing values",
                where=f"{s.channel} from {when(s.key)}",
                message=f"members {names[:8]} are not finite at up to {per_member.max():.1%} of the points "
                "that have a truth",
                evidence=float(per_member.max()),
                fix="run these members again, leave them out by members, or set the truth to NaN there",
            )
            break
    by_key: dict[Key, list[Sample]] = {}
    for s in read:
        by_key.setdefault(s.key, []).append(s)
    for key, group in by_key.items():
        twins = _twins(group)
        if twins:
            yield Finding(
                severity="warning" if key[1] else "note",
                check="identical members",
                where=f"from {when(key)}",
                message=f"members {twins[0][0]} and {twins[0][1]} are the same in all channels, one of "
                f"{len(twins)} such pairs",
                evidence=len(twins),
                fix="check how members were written: a copy makes the spread too small",
            )
            break


def _twins(group: Sequence[Sample]) -> list[tuple[int, int]]:
    if len({s.labels for s in group}) > 1 or all(np.ptp(s.members[:, None]) == 0 for s in group):
        return []
    seen: dict[bytes, int] = {}
    out = []
    for k, label in enumerate(group[0].labels):
        content = b"".join(s.members[k].tobytes() for s in group)
        if content in seen:
            out.append((seen[content], label))
        seen.setdefault(content, label)
    return out


def _constant(read: Sequence[Sample]) -> Iterator[Finding]:
    for s in read:
        if s.truth.size < _FEW_POINTS:
            continue
        flat = s.members.reshape(len(s.members), -1)
        still = np.flatnonzero(np.ptp(flat, axis=1) == 0)
        # A dry member is one value too, where others are dry in places.
        moist = np.delete(flat, still, axis=0)
        dry = (flat[still, 0] == 0) & ((moist == 0).any() or (s.truth == 0).any())
        still = still[~dry]
        if still.size and np.ptp(s.truth[np.isfinite(s.truth)]) > 0:
            yield Finding(
                severity="error",
                check="constant fields",
                where=f"{s.channel} from {when(s.key)}",
                message=f"members {[s.labels[k] for k in still[:8]]} are {flat[still[0], 0]:g} everywhere",
                evidence=len(still),
                fix="write these fields again",
            )
            return


def _by_channel(read: Sequence[Sample]) -> dict[str, list[Sample]]:
    out: dict[str, list[Sample]] = {}
    for s in read:
        out.setdefault(s.channel, []).append(s)
    return out


def magnitudes(read: Sequence[Sample]) -> Iterator[Finding]:
    """Channels whose size differs from that of the truth by the factor between two units."""
    for channel, group in _by_channel(read).items():
        ours, theirs = (np.concatenate([np.ravel(a) for a in side]) for side in _sides(group))
        both = np.isfinite(ours) & np.isfinite(theirs)
        ours, theirs = ours[both], theirs[both]
        if ours.size < _FEW_POINTS or not theirs.any() or not ours.any():
            continue
        size = np.sqrt(np.mean(ours**2) / np.mean(theirs**2))
        spread = ours.std() / theirs.std() if theirs.std() > 0 else np.nan
        shift = ours.mean() - theirs.mean()
        if abs(abs(shift) - _CELSIUS) < 25 and 0.5 < spread < 2:
            yield _units(
                channel,
                f"forecast - truth is {shift:.1f} on average, as between degrees Celsius and kelvin",
                shift,
            )
            continue
        rain = re.search(r"tp|prec|rain", channel) is not None
        for factor, text in (*_FACTORS, *(_SUMS if rain else ())):
            if any(
                abs(np.log(size * f)) < 0.1 and abs(np.log(spread * f)) < 0.35 for f in (factor, 1 / factor)
            ):
                yield _units(channel, f"the forecast is {size:.4g} times the truth, as between {text}", size)
                break
        else:
            if not 0.05 < size < 20:
                yield _units(channel, f"the forecast is {size:.3g} times as large as the truth", size)


def _sides(group: Sequence[Sample]) -> tuple[list[Vector], list[Vector]]:
    """One member per time and its truth: averages of members are smaller than a truth."""
    return [s.members[0] for s in group], [s.truth for s in group]


def _units(channel: str, message: str, evidence: float) -> Finding:
    return Finding(
        severity="error",
        check="units",
        where=channel,
        message=message,
        evidence=float(evidence),
        fix="convert one of them and state its unit in the attribute `units`",
    )


def range_faults(
    read: Sequence[Sample], forecast: Mapping[str, str], truth: Mapping[str, str]
) -> Iterator[Finding]:
    """Values that nothing on Earth has, by the units of both sides."""
    for channel, group in _by_channel(read).items():
        limits = _range(channel)
        if limits is None:
            continue
        unit, low, high = limits
        for units, side in ((forecast, "forecast"), (truth, "truth")):
            stated = units.get(channel, "")
            if stated and not same_units(stated, unit):
                continue
            values = [s.members if side == "forecast" else s.truth for s in group]
            flat = np.concatenate([v[np.isfinite(v)] for v in values])
            share = float(np.mean((flat < low) | (flat > high))) if flat.size else 0.0
            if share > _OUTSIDE_SHARE:
                yield Finding(
                    severity="error",
                    check="physical range",
                    where=f"{channel} of {side}",
                    message=f"{share:.1%} of the values, {flat.min():.4g} to {flat.max():.4g}, lie outside "
                    f"{low:g} to {high:g} {unit}",
                    evidence=share,
                    fix=f"convert it to {unit} or rename the channel",
                )


def _range(channel: str) -> tuple[str, float, float] | None:
    for pattern, unit, low, high in _RANGES:
        if re.fullmatch(pattern, channel):
            return unit, low, high
    level = re.fullmatch(r"z(\d+)", channel)
    if level is None:
        return None
    height = 7400 * np.log(1013 / max(float(level[1]), 0.5))
    away = 1500 + 0.15 * height
    return "m2 s-2", round(_GRAVITY * (height - away), -2), round(_GRAVITY * (height + away), -2)


def _correlation(a: Array, b: Array) -> float:
    keep = np.isfinite(a) & np.isfinite(b)
    x, y = a[keep], b[keep]
    if x.size < _FEW_POINTS:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else 0.0


def _convincing(here: Vector, there: Vector) -> bool:
    """Whether correlations elsewhere are high and clearly better than here, sample after sample."""
    if not there.size or np.median(there) < _CLOSE:
        return False
    with np.errstate(divide="ignore"):
        ratio = (1 - here) / np.maximum(1 - there, 1e-12)
    needed = _BETTER if there.size >= 3 else _MUCH_BETTER
    return bool(np.mean(ratio > needed) >= _AGREE)


def _places(near: Sequence[Sample], forecast: Source) -> Iterator[tuple[float, Finding]]:
    """Rows from the other end, columns elsewhere, and how well the forecast fits then."""
    near = [s for s in near if s.truth.ndim == 2]
    if not near:
        return
    here = np.array([_correlation(s.mean, s.truth) for s in near])
    flipped = np.array([_correlation(s.mean[::-1], s.truth) for s in near])
    if _convincing(here, flipped):
        fault = Finding(
            severity="error",
            check="flipped latitudes",
            where=forecast.name,
            message=f"with its rows reversed the forecast correlates with the truth by "
            f"{np.median(flipped):.3f}, as it is by {np.median(here):.3f}",
            evidence=float(np.median(flipped) - np.median(here)),
            fix="correct the latitudes of the file, or reverse its rows",
        )
        yield float(np.median(flipped)), fault
        return
    if not is_global(forecast.latitude, forecast.longitude)[1]:
        return
    waves = [(_waves(s.mean), _waves(s.truth)) for s in near]
    turns = [_turn(a, b) for a, b in waves]
    shift, count = Counter(s for s, _, _ in turns).most_common(1)[0]
    same = [(here_r, there_r) for s, here_r, there_r in turns if s == shift]
    if shift and count >= _AGREE * len(turns) and _convincing(*np.array(same).T):
        width = 360 / forecast.longitude.size
        degrees = (shift * width + 180) % 360 - 180
        fit = np.median([_correlation(np.roll(s.mean, shift, axis=1), s.truth) for s in near])
        fault = Finding(
            severity="error",
            check="shifted longitudes",
            where=forecast.name,
            message=f"moved by {degrees:g} degrees eastwards the forecast correlates with the truth by "
            f"{np.median([r for _, r in same]):.3f}, as it is by {np.median([r for r, _ in same]):.3f}, "
            "zonal means apart",
            evidence=float(degrees),
            fix="correct the longitudes of the file: 0..360 and -180..180 may have been mixed up",
        )
        yield float(fit), fault


def _waves(field: Vector) -> Vector:
    """Without zonal means, zero where there is no value."""
    with np.errstate(invalid="ignore"):
        anomaly = field - np.nanmean(np.where(np.isfinite(field), field, np.nan), axis=1, keepdims=True)
    return np.asarray(np.nan_to_num(anomaly))


def _turn(a: Vector, b: Vector) -> tuple[int, float, float]:
    """Columns by which `a` has to move east to fit best, and the correlations unmoved and moved."""
    spectrum = (np.conj(np.fft.rfft(a, axis=1)) * np.fft.rfft(b, axis=1)).sum(axis=0)
    fit = np.fft.irfft(spectrum, a.shape[1]) / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-300)
    best = int(np.argmax(fit))
    return best, float(fit[0]), float(fit[best])


def _valid_times(near: Sequence[Sample], states: Truth) -> Iterator[tuple[float, Finding]]:
    """Another time of the truth, and how well the forecast fits it."""
    known = states.times.astype(np.int64)
    read: dict[int, xr.DataArray] = {}
    best: list[tuple[int, float, float]] = []
    for key in sorted({s.key for s in near}):
        group = [s for s in near if s.key == key]
        fits = _fits(group, states, known, sum(key), read)
        if len(fits) > 1:
            offset = max(fits, key=lambda o: fits[o])
            best.append((offset, fits[0], fits[offset]))
    if not best:
        return
    shift, count = Counter(o for o, _, _ in best).most_common(1)[0]
    same = np.array([(here, there) for o, here, there in best if o == shift])
    if shift == 0 or count < _AGREE * len(best) or not _convincing(*same.T):
        return
    lead = near[0].key[1]
    stays = shift == -lead
    fault = Finding(
        severity="warning" if stays else "error",
        check="shifted valid times",
        where=f"lead time {lead / 3600:g} h",
        message=f"the forecast fits the truth {shift / 3600:+g} h from its valid time best, correlation "
        f"{np.median(same[:, 1]):.4f} against {np.median(same[:, 0]):.4f}"
        + (": it is a persistence forecast, or its starts are valid times" if stays else ""),
        evidence=shift / 3600,
        fix="check what the time of each file means, start or valid time, and the unit of its lead times",
    )
    yield float(np.median(same[:, 1])), fault


def _fits(
    group: Sequence[Sample],
    states: Truth,
    known: npt.NDArray[np.int64],
    valid: int,
    read: dict[int, xr.DataArray],
) -> dict[int, float]:
    """Mean correlation over channels with the truth at offsets in seconds, 0 among them."""
    where = int(np.searchsorted(known, valid))
    out = {}
    for k in range(max(0, where - _OFFSETS), min(known.size, where + _OFFSETS + 1)):
        if k not in read:
            read[k] = states.read(known[k : k + 1].astype("datetime64[s]"))[0]
        fits = [_correlation(s.mean, read[k].sel(channel=s.channel).values) for s in group]
        out[int(known[k] - valid)] = float(np.mean(fits))
    return out


def _sums(forecast: Source, states: Truth, keys: Sequence[Key], broken: set[Key]) -> Iterator[Finding]:
    """Channels that only grow with lead time while the truth does not."""
    known = set(states.times.astype(np.int64).tolist())
    starts = [init for init, _ in keys]
    if not starts:
        return
    init = Counter(starts).most_common(1)[0][0]
    for channel in (c for c in forecast.channels if c in states.source.channels):
        held = [
            k
            for k in forecast.keys
            if k[0] == init and k not in broken and sum(k) in known and channel in forecast.channels_at(k)
        ][:4]
        if len(held) < 3:
            continue
        ours = np.stack([forecast.read(channel, k)[0] for k in held])
        if not (
            np.nanmin(ours) >= 0
            and _grows(ours) >= 0.999
            and np.nanmean(ours[-1]) > 1.2 * np.nanmean(ours[0])
        ):
            continue
        valid = np.array([sum(k) for k in held], "datetime64[s]")
        grown = _grows(states.read(valid).sel(channel=channel).values)
        if grown < 0.9:
            yield Finding(
                severity="warning",
                check="running sums",
                where=channel,
                message=f"it never decreases with lead time at {_grows(ours):.1%} of the points, the truth "
                f"does not at {grown:.1%}: a sum since the start against one over a fixed time",
                evidence=_grows(ours),
                fix="take differences between lead times",
            )


def _grows(values: Array) -> float:
    return float((np.diff(values, axis=0) >= 0).all(axis=0).mean())


def _leap_day(time: int) -> bool:
    return str(np.datetime64(int(time), "s"))[5:10] == "02-29"


def when(key: Any) -> str:
    return f"{np.datetime64(int(key[0]), 's')} + {key[1] / 3600:g} h"
