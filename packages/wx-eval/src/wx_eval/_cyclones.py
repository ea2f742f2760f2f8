"""Scores of tropical cyclone forecasts against best tracks, as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa

from ._fields import seconds
from ._grid import EARTH_RADIUS_KM, Grid, Vector, digest, great_circle_km
from ._metrics import STANDARD_METRICS
from ._records import SCHEMA, WEIGHT, Conventions, Records
from ._regions import BOXES, box
from ._tracker import bearing
from ._tracks import Track, TrackForecasts, angle_between

Sample = Literal["homogeneous", "each"]

CYCLONE_CHANNELS = {
    "position": "km",
    "along_track": "km",
    "cross_track": "km",
    "pressure": "Pa",
    "wind": "m s-1",
}
"""Channels of `score_tracks` and their units."""

_HALF_DAY = np.timedelta64(12 * 3600, "s")
_ALWAYS = ("mae_mean", "mse_mean")
_SOMETIMES = ("error_mean", "variance", "variance_of_mean", "crps_fair", "crps_biased")


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Which forecast track belongs to which storm.

    A forecast track is that of a storm when the first time that both have is at most `late` after the start,
    they are within `radius_km` there, and share `overlap` times. A track belongs to one storm at most, and a
    storm has one track per member; nearest pairs first.

    Args:
        radius_km: distance at the first common time.
        late: time after the start.
        overlap: common times.

    Raises:
        ValueError: for a radius, time or number out of range.
    """

    radius_km: float = 300.0
    late: np.timedelta64 = _HALF_DAY
    overlap: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "late", seconds(self.late)[()])
        if not self.radius_km > 0 or self.late < np.timedelta64(0, "s") or self.overlap < 1:
            raise ValueError(f"need radius_km > 0, late >= 0 and overlap >= 1, got {asdict(self)}")

    @property
    def name(self) -> str:
        """Kept with the records."""
        hours = self.late / np.timedelta64(3600, "s")
        return f"match {self.radius_km:g} km within {hours:g} h, {self.overlap} common"

    def pairs(
        self, tracks: Sequence[Track], best: Sequence[Track], init: np.datetime64
    ) -> list[tuple[int, int]]:
        """(track, storm) positions for the tracks of one member of one start."""
        options = []
        for s, storm in enumerate(best):
            for t, track in enumerate(tracks):
                common = np.intersect1d(track.times, storm.times)
                common = common[common >= init]
                if common.size < self.overlap or common[0] - init > self.late:
                    continue
                away = _away(track, storm, common[0])
                if away <= self.radius_km:
                    options.append((away, t, s))
        pairs: list[tuple[int, int]] = []
        for _, t, s in sorted(options):
            if all(t != other and s != taken for other, taken in pairs):
                pairs.append((t, s))
        return pairs


def score_tracks(
    forecasts: Mapping[str, TrackForecasts],
    best: Sequence[Track],
    *,
    matching: Matching | None = None,
    alive: float = 0.5,
    sample: Sample = "homogeneous",
    regions: Sequence[str] = ("global",),
    truth_name: str = "best tracks",
) -> Records:
    """Errors of the ensemble mean track and intensity by start and lead, with those of the members.

    A case is a storm that the best tracks have at the valid time and, `matching.late` after the start at the
    latest, near it. It is scored when at least the share `alive` of the members has the storm then; the mean
    position is that of their unit vectors. Rows are means over the cases of one start and lead, `n` counts
    them, and `n_missing` those that were not scored. Storms that are forecast but never were are not cases:
    `strikes` scores them.

    Channels: "position", whose `mae` is the mean great-circle error, and whose CRPS is the energy score with
    the great-circle distance; "along_track" and "cross_track", its parts along the motion of the storm into
    its position and to the right of it; "pressure" and "wind", with `bias`. The CRPS and the spread are those
    of the members that are alive. Start and storm counts differ: `scores(..., average="weights")` gives means
    over cases, and `compare` works on starts, because cases of one start are not independent.

    Args:
        forecasts: by model.
        best: tracks of the storms.
        matching: of tracks with storms.
        alive: share of the members, above 0 to 1.
        sample: "homogeneous" scores the cases that every model has; "each" what each has, which cannot be
            compared.
        regions: names out of `BOXES`, by the position of the storm at the valid time.
        truth_name: kept with the records.

    Raises:
        ValueError: for best tracks of one name, an unknown region or sample, starts or leads that a
            homogeneous sample lacks, or no case at all.
    """
    if sample not in get_args(Sample) or not 0 < alive <= 1:
        raise ValueError(
            f"sample must be one of {get_args(Sample)} and alive within 0..1, got {sample!r} and {alive!r}"
        )
    names = [storm.storm for storm in best]
    if not forecasts or len(set(names)) != len(names):
        raise ValueError("there must be a model or more, and every best track needs a name of its own")
    unknown = sorted(set(regions) - set(BOXES))
    if unknown or not regions:
        raise ValueError(f"unknown regions {unknown}: choose among {', '.join(BOXES)}")
    rule = Matching() if matching is None else matching
    cases = {model: _model_cases(found, best, rule, alive) for model, found in forecasts.items()}
    if sample == "homogeneous":
        _check_same(forecasts)
        cases = _homogeneous(cases)
    rows = [row for model, found in cases.items() for row in _rows(model, forecasts[model], found, regions)]
    if not rows:
        raise ValueError(
            "there is no case: check that best tracks exist at the starts and valid times of forecasts"
        )
    who = f"homogeneous over {', '.join(sorted(forecasts))}" if sample == "homogeneous" else "each"
    conventions = Conventions(
        truth=truth_name,
        weights="equal",
        grid=f"storms, {rule.name}, {alive:g} alive, {who}",
        regions={name: digest(np.array(BOXES[name], np.float64)) for name in regions},
        units=CYCLONE_CHANNELS,
    )
    columns = [*SCHEMA.names, *_ALWAYS, *_SOMETIMES, *(name + WEIGHT for name in _SOMETIMES)]
    kinds = {f.name: f.type for f in SCHEMA}
    table = pa.table(
        {n: pa.array([r[n] for r in rows], kinds.get(n, pa.float64()), from_pandas=True) for n in columns}
    )
    return Records(table, conventions, {m.name: m.to_dict() for m in STANDARD_METRICS})


class _Key(NamedTuple):
    """A case."""

    init: np.datetime64
    lead: np.timedelta64
    storm: str


class _Case(NamedTuple):
    """Where the storm was, and the statistics by channel; none where the model does not have it."""

    latitude: float
    longitude: float
    statistics: dict[str, dict[str, float]] | None


def _model_cases(
    forecasts: TrackForecasts, best: Sequence[Track], rule: Matching, alive: float
) -> dict[_Key, _Case]:
    out: dict[_Key, _Case] = {}
    for init in forecasts.init_times:
        storms = [s for s in best if ((s.times >= init) & (s.times <= init + rule.late)).any()]
        members = _by_storm(forecasts, storms, init, rule)
        for storm, tracks in zip(storms, members, strict=True):
            for lead in forecasts.lead_times:
                place = np.flatnonzero(storm.times == init + lead)
                if place.size:
                    there = [t for t in tracks if (t.times == init + lead).any()]
                    enough = len(there) >= alive * forecasts.members and there
                    found = _statistics(storm, int(place[0]), there) if enough else None
                    where = float(storm.latitude[place[0]]), float(storm.longitude[place[0]])
                    out[_Key(init, lead, storm.storm)] = _Case(*where, found)
    return out


def _by_storm(
    forecasts: TrackForecasts, storms: Sequence[Track], init: np.datetime64, rule: Matching
) -> list[list[Track]]:
    """Tracks of the members for each storm."""
    out: list[list[Track]] = [[] for _ in storms]
    ours = forecasts.by_start[init]
    for member in range(forecasts.members):
        tracks = [t for t in ours if t.member == member]
        for t, s in rule.pairs(tracks, storms, init):
            out[s].append(tracks[t])
    return out


def _statistics(storm: Track, k: int, tracks: Sequence[Track]) -> dict[str, dict[str, float]]:
    """Statistics of one case by channel."""
    here = [int(np.flatnonzero(t.times == storm.times[k])[0]) for t in tracks]
    places = np.stack([t.place[i] for t, i in zip(tracks, here, strict=True)])
    truth = storm.place[k]
    mean = places.mean(axis=0)
    mean = mean / np.linalg.norm(mean)
    error = float(EARTH_RADIUS_KM * angle_between(mean, truth))
    out = {"position": _position(places, mean, truth, error)}
    along, cross = _parts(storm, k, mean, error)
    out["along_track"], out["cross_track"] = _signed(along), _signed(cross)
    for channel in ("pressure", "wind"):
        values = np.array([getattr(t, channel)[i] for t, i in zip(tracks, here, strict=True)])
        out[channel] = _intensity(values[~np.isnan(values)], float(getattr(storm, channel)[k]))
    return {channel: found for channel, found in out.items() if not np.isnan(found["mae_mean"])}


def _position(places: Vector, mean: Vector, truth: Vector, error: float) -> dict[str, float]:
    members = EARTH_RADIUS_KM * angle_between(places, truth)
    pairs = EARTH_RADIUS_KM * np.asarray(angle_between(places[:, None], places[None]))
    away = EARTH_RADIUS_KM * np.asarray(angle_between(places, mean))
    shared = _ensemble(float(members.mean()), float(pairs.sum()), float((away**2).sum()), len(places))
    return {"error_mean": np.nan, "mae_mean": error, "mse_mean": error**2, **shared}


def _intensity(values: Vector, truth: float) -> dict[str, float]:
    if not values.size or np.isnan(truth):
        return _signed(np.nan)
    error = float(values.mean()) - truth
    pairs = float(np.abs(values[:, None] - values).sum())
    squares = float(((values - values.mean()) ** 2).sum())
    shared = _ensemble(float(np.abs(values - truth).mean()), pairs, squares, values.size)
    return _signed(error) | shared


def _signed(error: float) -> dict[str, float]:
    none = dict.fromkeys(_SOMETIMES, np.nan)
    return none | {"error_mean": error, "mae_mean": abs(error), "mse_mean": error**2}


def _ensemble(skill: float, pairs: float, squares: float, members: int) -> dict[str, float]:
    """Statistics of members from their mean distance to the truth, sums over all pairs and squares."""
    if members < 2:
        return dict.fromkeys(_SOMETIMES[1:], np.nan)
    variance = squares / (members - 1)
    return {
        "variance": variance,
        "variance_of_mean": variance / members,
        "crps_fair": skill - pairs / (2 * members * (members - 1)),
        "crps_biased": skill - pairs / (2 * members**2),
    }


def _parts(storm: Track, k: int, mean: Vector, error: float) -> tuple[float, float]:
    """Error along the motion of the storm and to its right, in km; NaN for a storm that stands still."""
    other = k - 1 if k else 1
    if storm.times.size < 2 or not angle_between(storm.place[k], storm.place[other]) > 0:
        return np.nan, np.nan
    here = float(storm.latitude[k]), float(storm.longitude[k])
    back = float(bearing(*here, storm.latitude[other], storm.longitude[other]))
    heading = back + np.pi if k else back
    there = np.rad2deg(np.arcsin(np.clip(mean[2], -1, 1))), np.rad2deg(np.arctan2(mean[1], mean[0]))
    away = float(bearing(*here, *there)) - heading
    return error * float(np.cos(away)), error * float(np.sin(away))


def _check_same(forecasts: Mapping[str, TrackForecasts]) -> None:
    """Refuse models that share no start or lead."""
    for name in ("init_times", "lead_times"):
        shared = set.intersection(*({*getattr(f, name).tolist()} for f in forecasts.values()))
        if not shared:
            raise ValueError(
                f"models {sorted(forecasts)} share none of their {name}: there is no homogeneous sample"
            )


def _homogeneous(cases: Mapping[str, dict[_Key, _Case]]) -> dict[str, dict[_Key, _Case]]:
    """Cases of all models, without statistics where one of them has none."""
    keys = set.intersection(*(set(found) for found in cases.values()))
    out: dict[str, dict[_Key, _Case]] = {}
    for model, found in cases.items():
        out[model] = {}
        for key in keys:
            both = [c[key].statistics for c in cases.values()]
            channels = set.intersection(*({*s} if s is not None else set() for s in both))
            own = found[key].statistics or {}
            kept = {c: own[c] for c in channels} if channels else None
            out[model][key] = found[key]._replace(statistics=kept)
    return out


def _rows(
    model: str, forecasts: TrackForecasts, cases: Mapping[_Key, _Case], regions: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per (start, lead, region, channel) with a case."""
    keys = sorted(cases)
    if not keys:
        return []
    points = Grid.from_points([cases[k].latitude for k in keys], [cases[k].longitude for k in keys])
    inside = {name: box(points, *BOXES[name]) for name in regions}
    groups: dict[tuple[np.datetime64, np.timedelta64, str], list[_Case]] = {}
    for position, key in enumerate(keys):
        for region in regions:
            if inside[region][position]:
                groups.setdefault((key.init, key.lead, region), []).append(cases[key])
    out = []
    for (init, lead, region), found in groups.items():
        shared = {"model": model, "region": region, "lead_time": lead, "init_time": init}
        for channel in CYCLONE_CHANNELS:
            scored = [c.statistics[channel] for c in found if c.statistics and channel in c.statistics]
            counts = {"members": forecasts.members, "n": len(scored), "n_missing": len(found) - len(scored)}
            out.append({**shared, "channel": channel, **counts, **_means(scored)})
    return out


def _means(scored: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over cases, with the number behind those that not every case has."""
    out = {"sum_w": float(len(scored))}
    for name in (*_ALWAYS, *_SOMETIMES):
        values = np.array([s[name] for s in scored])
        there = values[~np.isnan(values)]
        out[name] = float(there.mean()) if there.size else np.nan
        if name in _SOMETIMES:
            out[name + WEIGHT] = float(there.size)
    return out


def _away(track: Track, storm: Track, time: np.datetime64) -> float:
    a, b = (int(np.flatnonzero(t.times == time)[0]) for t in (track, storm))
    return float(
        great_circle_km(track.latitude[a], track.longitude[a], storm.latitude[b], storm.longitude[b])
    )
