"""Faults of station reports and of a forecast on a grid that is scored against them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ._cube import Key
from ._doctor import (
    Diagnosis,
    Finding,
    Sample,
    Severity,
    chosen_keys,
    duplicates,
    magnitudes,
    member_counts,
    member_faults,
    missing,
    range_faults,
    result,
    shortest,
    when,
)
from ._fields import seconds
from ._grid import Array, Grid, Vector, great_circle_km
from ._interpolate import Interpolator, PointMethod
from ._open import Source
from ._regrid import is_global
from ._stations import FATES, MADIS_BAD, Observed, StationReports, metar
from ._units import convert_units, unit_kind, units_of_kind

# Those of MADIS that are not rejected: passed one, two or three stages of control, good by hand, corrected.
_MADIS_KNOWN = (*MADIS_BAD, "C", "S", "V", "G", "K", "T", "")
_HOURS = np.arange(-12, 13)
_BETTER, _AGREE, _FEW = 1.25, 0.7, 3
_ELSEWHERE, _WRONG = 3.0, 0.5
_CONSTANT_REPORTS, _CONSTANT_SECONDS = 24, 2 * 86400
_SAME_PLACE_KM = 5.0
_OFF_M, _FEET = 200.0, 0.3048


def doctor_stations(
    forecast: Source,
    reports: StationReports,
    *,
    interpolation: PointMethod = "bilinear",
    land_fraction: Array | None = None,
    orography: Array | None = None,
    samples: int = 12,
    seed: int = 0,
) -> Diagnosis:
    """Look for faults in a forecast and the station reports that it will be scored against.

    From the table alone: stations without a place, at (0, 0) or with several places, reports that come twice,
    unknown quality flags, units, impossible values, sensors that do not move. With the fields of some
    forecast times: the share of stations that is matched, units, shifted valid times, exchanged or mirrored
    positions, heights far from those of the model, and the faults of members that `doctor` finds.

    Args:
        forecast: on a latitude-longitude grid, from `open_source`.
        reports: with its valid times.
        interpolation: see `Interpolator`.
        land_fraction: (H, W), for "nearest_land".
        orography: height (H, W) of the surface of the model in m.
        samples: (init time, lead time) pairs whose fields are read, half of them at the shortest lead time.
        seed: of the choice of pairs.
    """
    found = [*duplicates(forecast), *missing(forecast), *member_counts(forecast)]
    found += _channels(forecast, reports)
    faults, lost = _places(reports)
    found += faults
    if forecast.axes is None:
        text = "it is a set of points"
        found.append(_finding("error", "different grids", forecast.name, text, 0, "give a grid"))
        return result(found, 0, forecast, "only grids can be brought to stations")
    if len(lost) == len(set(reports.places()["station"])):
        return result(found, 0, forecast, "no station has a place of its own")
    forecast = forecast.eastwards()
    reports = replace(reports, exclude=(*reports.exclude, *lost))
    outside = _outside(forecast, reports)
    found += outside[0]
    if len(outside[1]) == len(reports.stations):
        return result(found, 0, forecast, "no station lies within the grid of the forecast")
    reports = replace(reports, exclude=(*reports.exclude, *outside[1]))
    found += _Scan.of(reports).findings()
    mapped = Interpolator(
        (forecast.latitude, forecast.longitude), reports.grid, interpolation, land_fraction=land_fraction
    )
    if orography is not None:
        found += _heights(reports, mapped(np.asarray(orography, np.float64)))
    held = set(reports.reported().astype(np.int64).tolist())
    found += _coverage(forecast, held, reports)
    known = {v.channel for v in reports.variables} & set(forecast.channels)
    keys = chosen_keys(forecast, held, known, {key for _, key in forecast.duplicates}, samples, seed)
    if not keys:
        return result(found, 0, forecast, "no forecast time has a report of a channel of the forecast")
    fields = [(key, channel) for key in keys for channel in forecast.channels_at(key) if channel in known]
    values = {(key, c): forecast.read(c, key).astype(np.float64) for key, c in fields}
    read = [_sample(forecast, reports, mapped, key, c, values[key, c]) for key, c in fields]
    units = {v.channel: v.to or v.unit for v in reports.variables}
    # Values in another unit are beyond the limits, and none is left.
    strange = {f.where for f in found if f.check == "units"}
    found += _matched([s for s in read if s.channel not in strange])
    found += [*member_faults(read), *magnitudes(read)]
    found += range_faults(read, forecast.units, units)
    near = [s for s in read if s.key in shortest(keys)]
    found += _valid_times(near, reports)
    found += _moved(read, values, forecast, reports)
    return result(found, len(keys), forecast, "")


def _finding(severity: Severity, check: str, where: str, message: str, evidence: float, fix: str) -> Finding:
    return Finding(
        severity=severity, check=check, where=where, message=message, evidence=float(evidence), fix=fix
    )


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


# The table.


def _channels(forecast: Source, reports: StationReports) -> Iterator[Finding]:
    ours, theirs = forecast.channels, [v.channel for v in reports.variables]
    common = [c for c in ours if c in theirs]
    if not common:
        text = f"none of {list(ours)[:8]} is among {theirs} of the reports"
        fix = "rename those that are the same: --truth-rename OLD=NEW"
        yield _finding("error", "channels", forecast.name, text, 0, fix)
    for side, names in (("reports", ours), ("forecast", theirs)):
        alone = [c for c in names if c not in common]
        if common and alone:
            text = f"the {side} have no {_some(alone)}" if side == "reports" else f"it has no {_some(alone)}"
            where = "stations" if side == "reports" else forecast.name
            yield _finding("note", "channels", where, text, len(alone), "they are not scored")


def _places(reports: StationReports) -> tuple[list[Finding], list[str]]:
    """Faults of positions, and the stations that cannot be placed."""
    table = reports.places()
    station = np.array(table["station"], str)
    kept = ~np.isin(station, list(reports.exclude))
    latitude, longitude = (
        np.array([np.nan if v is None else v for v in table[k]], np.float64)[kept]
        for k in ("latitude", "longitude")
    )
    station = station[kept]
    first = {name: k for k, name in reversed(list(enumerate(station)))}
    start = np.array([first[name] for name in station], np.intp)
    away = great_circle_km(latitude, longitude, latitude[start], longitude[start])
    beyond = np.abs(latitude) > 90
    cases: list[tuple[str, Any, str, str]] = [
        (
            "no position",
            np.isnan(latitude) | np.isnan(longitude) | (np.abs(longitude) > 360),
            "have no position",
            "add it, or exclude them",
        ),
        (
            "latitudes",
            beyond,
            "have a latitude beyond 90 degrees: latitude and longitude may be exchanged",
            "exchange the two columns by truth.layout = {latitude = ..., longitude = ...}",
        ),
        (
            "stations at (0, 0)",
            (np.abs(latitude) < 0.01) & (np.abs(longitude) < 0.01),
            "lie at 0, 0, which stands for a position that is not known",
            "exclude them",
        ),
        (
            "several positions",
            (away > _SAME_PLACE_KM) & ~beyond & ~beyond[start],
            f"have places {_SAME_PLACE_KM:g} km apart or more",
            "give them different names, or exclude them",
        ),
    ]
    found, lost = [], set()
    for check, wrong, text, fix in cases:
        names = sorted(set(station[wrong].tolist()))
        lost |= set(names)
        if names:
            found.append(
                _finding("error", check, _some(names), f"{len(names)} stations {text}", len(names), fix)
            )
    return found, sorted(lost)


def _outside(forecast: Source, reports: StationReports) -> tuple[list[Finding], list[str]]:
    """Stations beyond the grid."""
    poles, circle = is_global(forecast.latitude, forecast.longitude)
    grid, lat, lon = reports.grid, forecast.latitude, forecast.longitude
    wrong = np.zeros(grid.size, bool)
    if not poles:
        wrong |= (grid.latitude < lat.min()) | (grid.latitude > lat.max())
    if not circle:
        wrong |= (grid.longitude - lon[0]) % 360 > lon[-1] - lon[0]
    names = [name for name, w in zip(reports.stations, wrong, strict=True) if w]
    if not names:
        return [], []
    text = f"{len(names)} of {grid.size} stations lie outside the grid of the forecast, {forecast.grid_text}"
    fix = "leave them out by truth.within = [[south, north], [west, east]] or exclude"
    return [_finding("error", "stations outside", _some(names), text, len(names), fix)], names


@dataclass
class _Scan:
    """One pass over the table."""

    reports: StationReports
    rows: int = 0
    repeats: int = 0
    repeated: Counter[str] = field(default_factory=Counter)
    flags: dict[str, Counter[str]] = field(default_factory=dict)
    fates: dict[str, Counter[str]] = field(default_factory=dict)
    fits: dict[str, Counter[str]] = field(default_factory=dict)
    sensors: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, reports: StationReports) -> _Scan:
        scan = cls(reports)
        for table in reports.tables():
            scan._add(table)
        return scan

    def _add(self, table: pa.Table) -> None:
        place = self.reports.layout
        self.rows += table.num_rows
        names = [place.station, place.time, *([place.variable] if place.long else [])]
        groups = table.group_by(names).aggregate([([], "count_all")])
        more = groups.filter(pc.greater(groups["count_all"], 1))
        self.repeats += int(pc.sum(more["count_all"]).as_py() or 0) - more.num_rows
        self.repeated.update(map(str, more[place.station].to_pylist()))
        stations = np.asarray(table[place.station].to_numpy(), str)
        times = seconds(table[place.time].to_numpy()).astype(np.int64)
        for variable in self.reports.variables:
            self._add_variable(table, variable, stations, times)

    def _add_variable(
        self, table: pa.Table, variable: Observed, stations: Array, times: npt.NDArray[np.int64]
    ) -> None:
        channel = variable.channel
        values, fate = self.reports.control(table, variable)
        counts = self.fates.setdefault(channel, Counter())
        for number, label in enumerate(FATES):
            counts[label] += int((fate == number).sum())
        column = self.reports.layout.flag if self.reports.layout.long else variable.flag
        if column:
            there = np.isin(fate, [FATES.index("missing"), -1], invert=True)
            kinds = table[column].cast(pa.string()).filter(pa.array(there)).value_counts().to_pylist()
            self.flags.setdefault(channel, Counter()).update(
                {str(k["values"] or ""): int(k["counts"]) for k in kinds}
            )
        self._add_units(channel, variable, self.reports.raw(table, variable))
        usable = np.flatnonzero(np.isfinite(values))
        order = usable[np.argsort(stations[usable], kind="stable")]
        if not order.size:
            return
        names, start = np.unique(stations[order], return_index=True)
        parts = (
            names.tolist(),
            np.minimum.reduceat(values[order], start).tolist(),
            np.maximum.reduceat(values[order], start).tolist(),
            np.diff(start, append=order.size).tolist(),
            np.minimum.reduceat(times[order], start).tolist(),
            np.maximum.reduceat(times[order], start).tolist(),
        )
        for name, *found in zip(*parts, strict=True):
            held = self.sensors.get((name, channel), (np.inf, -np.inf, 0, np.inf, -np.inf))
            self.sensors[name, channel] = (
                min(held[0], found[0]),
                max(held[1], found[1]),
                held[2] + found[2],
                min(held[3], found[3]),
                max(held[4], found[4]),
            )

    def _add_units(self, channel: str, variable: Observed, raw: Vector) -> None:
        """How many values lie within the limits, in each unit of the kind."""
        raw = raw[np.isfinite(raw)]
        low, high = variable.bounds
        counts = self.fits.setdefault(channel, Counter())
        for unit in {variable.unit, *units_of_kind(unit_kind(variable.unit) or "")}:
            to = variable.to or variable.unit
            values = raw if unit == to else convert_units(raw, unit, to)
            counts[unit] += int(((values >= low) & (values <= high)).sum())
        counts[""] += raw.size

    def findings(self) -> Iterator[Finding]:
        """Faults of the table."""
        if self.repeats:
            severity: Severity = "warning" if self.repeats > 0.01 * self.rows else "note"
            text = f"{self.repeats} of {self.rows} reports have the station and time of another one"
            fix = 'drop the older ones: pick = "nearest" takes the last in the table, "mean" counts each'
            where = _some([name for name, _ in self.repeated.most_common()])
            yield _finding(severity, "duplicate reports", where, text, self.repeats, fix)
        for variable in self.reports.variables:
            yield from self._of(variable)
        yield from self._constant()

    def _of(self, variable: Observed) -> Iterator[Finding]:
        channel, fates, fits = variable.channel, self.fates[variable.channel], self.fits[variable.channel]
        values = fits[""]
        if not values:
            text = f"none of {sum(fates.values())} reports has a value"
            fix = "leave the channel out by truth.channels, or check its column"
            yield _finding("warning", "no values", channel, text, 0, fix)
            return
        strange = {f: n for f, n in self.flags.get(channel, {}).items() if f not in _known(variable)}
        if strange:
            text = (
                f"{sum(strange.values())} values have flags {sorted(strange)}, of which nothing is known here"
            )
            fix = "name those that mean bad values in reject of truth.variables"
            yield _finding("warning", "unknown flags", channel, text, sum(strange.values()), fix)
        others = [u for u, n in fits.items() if u not in ("", variable.unit) and n > 0.95 * values]
        if fits[variable.unit] < 0.5 * values and others:
            text = f"the values fit {' or '.join(sorted(others))} and not {variable.unit}"
            fix = "state the unit of the column by truth.variables = [{column = ..., unit = ..., to = ...}]"
            yield _finding("error", "units", channel, text, 1 - fits[variable.unit] / values, fix)
            return
        share = fates["outside"] / values
        if share > 0.001:
            text = f"{share:.1%} of the values lie outside {variable.bounds[0]:g} to {variable.bounds[1]:g}"
            severity: Severity = "error" if share > 0.05 else "warning"
            yield _finding(
                severity, "impossible values", channel, text, share, "they are not used: check the table"
            )
        if fates["flagged"] > 0.2 * values:
            share = fates["flagged"] / values
            text = f"{share:.1%} of the values have a rejected flag"
            yield _finding("note", "rejected flags", channel, text, share, "look at the flags: wx-eval info")

    def _constant(self) -> Iterator[Finding]:
        stuck: dict[str, list[str]] = {}
        for (station, channel), (low, high, number, first, last) in self.sensors.items():
            # No rain and no wind for days is weather.
            long = number >= _CONSTANT_REPORTS and last - first >= _CONSTANT_SECONDS
            if low == high != 0 and long:
                stuck.setdefault(channel, []).append(station)
        for channel, names in stuck.items():
            text = f"{len(names)} stations report one value only, for two days or more"
            yield _finding(
                "warning",
                "constant sensors",
                f"{channel} of {_some(names)}",
                text,
                len(names),
                "exclude them",
            )


def _known(variable: Observed) -> set[str]:
    return {*variable.reject, *_MADIS_KNOWN}


# The table and the forecast.


def _heights(reports: StationReports, model: Vector) -> Iterator[Finding]:
    unknown = [n for n, e in zip(reports.stations, reports.elevation, strict=True) if np.isnan(e)]
    if unknown:
        text = f"{len(unknown)} of {model.size} stations have no elevation"
        yield _finding(
            "note", "elevation", _some(unknown), text, len(unknown), "exclude them to correct heights"
        )
    high = model > 50
    with np.errstate(invalid="ignore"):
        ratio = reports.elevation[high] / model[high]
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    if ratio.size >= _FEW and abs(np.log(np.median(ratio) * _FEET)) < 0.15:
        text = f"stations are {np.median(ratio):.2f} times as high as the model, as between feet and m"
        yield _finding(
            "error", "elevation", "stations", text, np.median(ratio), "convert the elevations to m"
        )
        return
    off = reports.elevation - model
    names = np.array(reports.stations)[np.abs(off) > _OFF_M].tolist()
    if names:
        worst = float(off[np.nanargmax(np.abs(off))])
        text = (
            f"{len(names)} of {model.size} stations lie more than {_OFF_M:g} m above or below the surface of "
            f"the model, up to {worst:+.0f} m, which is {-0.0065 * worst:+.1f} K in a standard atmosphere"
        )
        severity: Severity = "warning" if len(names) > 0.1 * model.size else "note"
        fix = "correct temperatures by [stations.orography], or exclude them"
        yield _finding(severity, "elevation", _some(names), text, worst, fix)


def _coverage(forecast: Source, held: set[int], reports: StationReports) -> Iterator[Finding]:
    lost = [key for key in forecast.keys if sum(key) not in held]
    if lost:
        text = (
            f"{len(lost)} of {len(forecast.keys)} valid times have no report within "
            f"{reports.tolerance / np.timedelta64(1, 'm'):g} min, the first is that of {when(lost[0])}"
        )
        fix = 'add reports, choose inits and leads, widen truth.window, or set missing_truth = "drop"'
        yield _finding("warning", "missing truth", "stations", text, len(lost), fix)


def _sample(
    forecast: Source, reports: StationReports, mapped: Interpolator, key: Key, channel: str, values: Vector
) -> Sample:
    state = reports.read(np.array([sum(key)], "datetime64[s]"))[0].sel(channel=channel)
    labels = tuple(forecast.members(channel, key))
    return Sample(channel, key, labels, mapped(values), np.asarray(state.values, np.float64))


def _by_channel(read: Sequence[Sample]) -> dict[str, list[Sample]]:
    out: dict[str, list[Sample]] = {}
    for s in read:
        out.setdefault(s.channel, []).append(s)
    return out


def _matched(read: Sequence[Sample]) -> Iterator[Finding]:
    for channel, group in _by_channel(read).items():
        share = float(np.mean([np.isfinite(s.truth).mean() for s in group]))
        severity: Severity = "error" if share == 0 else "warning" if share < 0.1 else "note"
        text = f"{share:.0%} of {group[0].truth.size} stations have a usable report at the valid times"
        fix = "widen truth.window, or look at flags and limits: wx-eval info"
        yield _finding(severity, "share matched", channel, text, share, fix)


def _valid_times(near: Sequence[Sample], reports: StationReports) -> Iterator[Finding]:
    """Hours by which the reports would have to be moved to fit best."""
    keys = sorted({s.key for s in near})
    if len(keys) < _FEW:
        return
    valid = np.array([sum(k) for k in keys], "datetime64[s]")
    hours = _HOURS * np.timedelta64(3600, "s")
    wanted = np.unique(valid[:, None] + hours).astype("datetime64[s]")
    moved = replace(reports, times=wanted, climate=None)
    # Not all stations report around these times, and others may.
    states = moved.read(wanted).swap_dims(point="station").reindex(station=reports.stations)
    # Stations differ from the grid around them by a constant, which the time of day does not hide.
    constant = len({int(v) % 86400 for v in valid.astype(np.int64)}) > 1
    errors = np.zeros((len(hours), len(keys)))
    for channel, group in _by_channel(near).items():
        truth = states.sel(channel=channel).values
        scale = np.nanstd(truth) if np.isfinite(truth).any() else 0.0
        if not scale:
            continue
        ours = np.full((len(keys), truth.shape[1]), np.nan)
        for s in group:
            ours[keys.index(s.key)] = s.mean
        for k, hour in enumerate(hours):
            away = (ours - truth[np.searchsorted(wanted, valid + hour)]) / scale
            if constant:
                away = away - _mean(away, 0)
            errors[k] += _mean(np.abs(away), 1)
    here = errors[_HOURS.tolist().index(0)]
    if not np.isfinite(errors).any() or not np.isfinite(here).all():
        return
    best = int(np.argmin(np.where(np.isnan(errors).any(axis=1), np.inf, errors.mean(axis=1))))
    ratio = here / np.maximum(errors[best], 1e-12)
    if _HOURS[best] and np.mean(ratio > _BETTER) >= _AGREE:
        lead = near[0].key[1] / 3600
        text = (
            f"the forecast fits the reports {_HOURS[best]:+d} h from its valid time best, "
            f"{np.median(ratio):.1f} times as well as those at it"
        )
        fix = "check the time zone of the reports, which must be UTC, and what the time of each file means"
        yield _finding("error", "shifted valid times", f"lead time {lead:g} h", text, _HOURS[best], fix)


def _mean(values: Vector, axis: int) -> Vector:
    """Mean of what there is, NaN of nothing."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(
            np.where(there, values, 0).sum(axis, keepdims=axis == 0) / there.sum(axis, keepdims=axis == 0)
        )


def _moved(
    read: Sequence[Sample],
    values: Mapping[tuple[Key, str], Vector],
    forecast: Source,
    reports: StationReports,
) -> Iterator[Finding]:
    """Stations whose reports fit another place: exchanged coordinates, or a sign that is lost."""
    if not all(is_global(forecast.latitude, forecast.longitude)):
        return
    lat, lon = reports.grid.latitude, (reports.grid.longitude + 180) % 360 - 180
    inside = np.abs(lon) <= 90
    elsewhere = {
        "latitude and longitude exchanged": (np.where(inside, lon, lat), np.where(inside, lat, lon)),
        "west and east exchanged": (lat, -lon),
        "south and north exchanged": (-lat, lon),
    }
    here, number = _misfit(read, {(s.key, s.channel): s.mean for s in read})
    for text, (north, east) in elsewhere.items():
        place = Interpolator((forecast.latitude, forecast.longitude), Grid.from_points(north, east % 360))
        there = _misfit(read, {k: place(v.mean(axis=0)) for k, v in values.items()})[0]
        wrong = (number >= _FEW) & (here > _WRONG) & (there < here / _ELSEWHERE)
        names = np.array(reports.stations)[wrong].tolist()
        if names:
            ratio = float(np.median(here[wrong] / there[wrong]))
            yield _finding(
                "error",
                "positions",
                _some(names),
                f"the reports of {len(names)} stations fit {ratio:.1f} times better with {text}",
                len(names),
                "correct their positions, or exclude them",
            )


def _misfit(read: Sequence[Sample], fields: Mapping[tuple[Key, str], Vector]) -> tuple[Vector, Vector]:
    """Root mean square error at each station in units of the spread over stations, and samples of it."""
    total = number = np.zeros(read[0].truth.size)
    for group in _by_channel(read).values():
        truth = np.stack([s.truth for s in group])
        scale = np.nanstd(truth) if np.isfinite(truth).any() else 0.0
        away = np.square((np.stack([fields[s.key, s.channel] for s in group]) - truth) / (scale or np.nan))
        there = np.isfinite(away)
        total, number = total + np.where(there, away, 0).sum(axis=0), number + there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(total / number), number


def station_facts(path: str) -> dict[str, Any]:
    """What a table of METAR reports holds, or its columns where it is another table."""
    # Slow to import, and few need it.
    import pyarrow.dataset as ds

    data = ds.dataset(path, format="parquet")
    times = data.schema.field("timeObs") if "timeObs" in data.schema.names else None
    if times is None or "stationName" not in data.schema.names or not pa.types.is_timestamp(times.type):
        columns = ", ".join(f"{f.name} ({f.type})" for f in data.schema)
        return {"rows": data.count_rows(), "columns": columns, "layout": "name the columns by truth.layout"}
    ends = pc.min_max(data.to_table(columns=["timeObs"])["timeObs"]).as_py()
    first, last = (int(np.datetime64(ends[k].replace(tzinfo=None), "s").astype(int)) for k in ("min", "max"))
    named = [v for v in metar() if v.column in data.schema.names]
    # One valid time in the middle whose window is the whole table.
    half = (last - first) // 2 + 1
    reports = StationReports(
        path=path,
        times=np.array([first + half], "datetime64[s]"),
        variables=named,
        tolerance=np.timedelta64(half, "s"),
    )
    places, lost = _places(reports)
    scan = _Scan.of(replace(reports, exclude=lost))
    grid, height = scan.reports.grid, scan.reports.elevation
    daily = scan.rows / grid.size / max((last - first) / 86400, 1)
    known = np.isfinite(height)
    facts = {
        "rows": data.count_rows(),
        "stations": grid.size,
        "times": f"{np.datetime64(first, 's')} to {np.datetime64(last, 's')}",
        "reports per station and day": f"{daily:.1f}",
        "area": f"latitude {grid.latitude.min():g}..{grid.latitude.max():g}, longitude "
        f"{grid.longitude.min():g}..{grid.longitude.max():g}",
        "elevation": f"{height[known].min():g}..{height[known].max():g} m" if known.any() else "unknown",
        "duplicate reports": scan.repeats,
    }
    for v in named:
        fates, flags = scan.fates[v.channel], scan.flags.get(v.channel, Counter())
        held = ", ".join(f"{n} {label}" for label, n in fates.items() if n)
        facts[f"{v.channel} [{v.unit}]"] = f"{held}; flags " + " ".join(
            f"{f or '-'} {n}" for f, n in sorted(flags.items())
        )
    return facts | {f"fault, {f.check}": f"{f.message}: {f.where}" for f in places}
