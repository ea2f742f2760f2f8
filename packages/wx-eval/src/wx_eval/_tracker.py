"""A minimal tracker of tropical cyclones on latitude-longitude fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._blocks import stored_pieces
from ._fields import as_chunks, as_history, channel_names, seconds
from ._grid import EARTH_RADIUS_KM, Array, Grid, Vector, great_circle_km, search_tree, unit_vectors
from ._protocols import ForecastChunk, History
from ._regrid import Axes, is_global
from ._tracks import Track, TrackForecasts, angle_between

_KM_PER_DEGREE = EARTH_RADIUS_KM * np.pi / 180
# A sea-level pressure below this is in hPa.
_LOWEST_PRESSURE = 50_000.0


class Fix(NamedTuple):
    """A centre at one time; degrees, Pa, m s-1, NaN where the field is not there."""

    latitude: float
    longitude: float
    pressure: float
    wind: float


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """Finds centres in fields and links them to tracks.

    A centre is the lowest of the minima of sea-level pressure within `separation_km`, or the strongest of the
    cyclonic maxima of vorticity, that passes the checks. It is moved off the grid point to the minimum of the
    paraboloid through it that fits the points around best, in distance and bearing on the sphere. "Around"
    is a ring: all grid points between 0.8 and 1 times a radius, in every direction, so a check does not
    depend on where on the sphere the storm is. The checks follow TempestExtremes (Ullrich et al. 2021,
    Geosci. Model Dev. 14, 5023), which looks for closed contours in place of rings.

    From one step to the next a centre goes to the centre nearest to where its last motion takes it, of those
    within reach at `speed`; nearest pairs first.

    Args:
        search: "pressure" or "vorticity".
        pressure: channel of sea-level pressure in Pa.
        wind: channels (u, v) at 10 m, None for no check of the wind.
        vorticity: channels (u, v) of `search` "vorticity".
        depth: Pa by which the pressure around at `depth_km` is higher, at least.
        depth_km: radius.
        vorticity_minimum: s-1, of `search` "vorticity".
        warm_core: channels of geopotential (upper, lower), such as ("z300", "z500"), None for no check.
        warm_core_drop: m2 s-2 by which the thickness around at `warm_core_km` is below its maximum within 110
            km of the centre, at least.
        warm_core_km: radius.
        wind_minimum: m s-1, at least somewhere within `wind_km`.
        wind_km: radius, in which the pressure of a vortex is looked for too.
        separation_km: between centres, at least.
        speed: m s-1, at most.
        missed: steps in a row without a centre that a track survives.
        steps: fixes that a track has, at least.
    """

    search: Literal["pressure", "vorticity"] = "pressure"
    pressure: str = "msl"
    wind: tuple[str, str] | None = ("10u", "10v")
    vorticity: tuple[str, str] = ("u850", "v850")
    depth: float = 200.0
    depth_km: float = 550.0
    vorticity_minimum: float = 5e-5
    warm_core: tuple[str, str] | None = None
    warm_core_drop: float = 58.8
    warm_core_km: float = 720.0
    wind_minimum: float = 10.0
    wind_km: float = 250.0
    separation_km: float = 500.0
    speed: float = 25.0
    missed: int = 1
    steps: int = 2

    def __post_init__(self) -> None:
        if self.search not in ("pressure", "vorticity"):
            raise ValueError(f'search must be "pressure" or "vorticity", got {self.search!r}')
        radii = (self.depth_km, self.warm_core_km, self.wind_km, self.separation_km, self.speed)
        if not all(r > 0 for r in radii) or self.missed < 0 or self.steps < 1:
            raise ValueError(f"radii and speed must be positive, missed >= 0 and steps >= 1, got {self}")

    @property
    def channels(self) -> tuple[str, ...]:
        """Channels that are read."""
        searched = (self.pressure,) if self.search == "pressure" else self.vorticity
        return tuple(dict.fromkeys((*searched, *(self.wind or ()), *(self.warm_core or ()))))

    def find(self, fields: Mapping[str, Array], axes: Axes) -> list[Fix]:
        """Centres at one time, deepest or strongest first.

        Args:
            fields: (H, W) by channel; the pressure is also reported by `search` "vorticity" if it is there.
            axes: latitude (H,) and longitude (W,).

        Raises:
            ValueError: for a channel that is absent or not finite, or a pressure that is not in Pa.
        """
        sphere = _Sphere(*axes)
        field = {name: np.asarray(fields[name], np.float64) for name in self._present(fields)}
        for name, values in field.items():
            if values.shape != sphere.shape or not np.isfinite(values).all():
                raise ValueError(
                    f"channel {name!r} must be finite with shape {sphere.shape}, got {values.shape}"
                )
        if self.pressure in field and field[self.pressure].min() < _LOWEST_PRESSURE:
            raise ValueError(f"channel {self.pressure!r} must be in Pa, its smallest value is below 500 hPa")
        low = (
            field[self.pressure]
            if self.search == "pressure"
            else -sphere.cyclonic(*(field[c] for c in self.vorticity))
        )
        found = (self._fix(sphere, field, low, point) for point in sphere.minima(low, self.separation_km))
        return [fix for fix in found if fix is not None]

    def link(self, times: Sequence[np.datetime64], fixes: Sequence[Sequence[Fix]]) -> list[Track]:
        """Tracks from the centres at each time, in order of their start."""
        growing: list[_Growing] = []
        done: list[_Growing] = []
        for step, (time, found) in enumerate(zip(times, fixes, strict=True)):
            late = [g for g in growing if step - g.steps[-1] > self.missed + 1]
            done += late
            growing = [g for g in growing if g not in late]
            free = set(range(len(found)))
            for track, fix in self._pairs(growing, time, times, found):
                growing[track].add(step, found[fix])
                free.remove(fix)
            growing += [_Growing([step], [found[k]]) for k in sorted(free)]
        kept = [g for g in (*done, *growing) if len(g.steps) >= self.steps]
        kept.sort(key=lambda g: (g.steps[0], g.fixes[0]))
        return [_track(f"{k:04d}", g, times) for k, g in enumerate(kept)]

    def _pairs(
        self,
        growing: Sequence[_Growing],
        time: np.datetime64,
        times: Sequence[np.datetime64],
        found: Sequence[Fix],
    ) -> list[tuple[int, int]]:
        """(track, centre) that belong together."""
        options = []
        places = [_place(fix) for fix in found]
        for t, track in enumerate(growing):
            last, expected = _place(track.fixes[-1]), track.expected(time, times)
            reach = self.speed * float((time - times[track.steps[-1]]) / np.timedelta64(1, "s")) / 1000
            for k, place in enumerate(places):
                if EARTH_RADIUS_KM * angle_between(last, place) <= reach:
                    options.append((float(angle_between(expected, place)), t, k))
        pairs: list[tuple[int, int]] = []
        for _, t, k in sorted(options):
            if all(t != other and k != taken for other, taken in pairs):
                pairs.append((t, k))
        return pairs

    def _present(self, fields: Mapping[str, Array]) -> list[str]:
        absent = sorted(set(self.channels) - set(fields))
        if absent:
            raise ValueError(f"the tracker needs the channels {absent}; there are {sorted(fields)}")
        return [*self.channels, *([self.pressure] if self.pressure in fields else [])]

    def _fix(
        self, sphere: _Sphere, field: Mapping[str, Array], low: Array, point: tuple[int, int]
    ) -> Fix | None:
        """The centre at a minimum, None where it fails a check."""
        if self.search == "vorticity" and -low[point] < self.vorticity_minimum:
            return None
        if self.search == "pressure":
            around = sphere.ring(point, self.depth_km)
            if around is None or low[around].min() < low[point] + self.depth:
                return None
        if self.warm_core is not None and not self._warm(sphere, field, point):
            return None
        near, _ = sphere.disc(point, self.wind_km)
        wind = np.nan
        if self.wind is not None:
            wind = float(np.hypot(field[self.wind[0]][near], field[self.wind[1]][near]).max())
            if wind < self.wind_minimum:
                return None
        latitude, longitude, value = sphere.refine(low, point)
        if self.search == "vorticity":
            value = float(field[self.pressure][near].min()) if self.pressure in field else np.nan
        return Fix(latitude, longitude, value, wind)

    def _warm(self, sphere: _Sphere, field: Mapping[str, Array], point: tuple[int, int]) -> bool:
        upper, lower = self.warm_core or ("", "")
        around = sphere.ring(point, self.warm_core_km)
        if around is None:
            return False
        thickness = field[upper] - field[lower]
        core = thickness[sphere.disc(point, 110.0)[0]].max()
        return bool(thickness[around].max() <= core - self.warm_core_drop)


def track_forecasts(
    forecast: xr.DataArray | xr.Dataset | Iterable[ForecastChunk],
    tracker: Tracker,
    *,
    axes: Axes | None = None,
) -> TrackForecasts:
    """Tracks of every start and member; only centres are kept of the fields.

    Args:
        forecast: as for `evaluate`, in any order.
        tracker: with its settings.
        axes: latitude and longitude of chunks that do not state them.

    Raises:
        ValueError: for chunks without axes, an ensemble whose size changes, or what `Tracker.find` refuses.
    """
    fixes: dict[tuple[np.datetime64, int], dict[np.timedelta64, list[Fix]]] = {}
    leads: set[np.timedelta64] = set()
    sizes: set[int] = set()
    for chunk in as_chunks(forecast):
        init: np.datetime64 = chunk.init_time.astype("datetime64[s]")
        lead: np.timedelta64 = chunk.lead_time.astype("timedelta64[s]")
        stated = getattr(chunk, "latitude", None), getattr(chunk, "longitude", None)
        latitude, longitude = axes if axes is not None and stated[0] is None else stated
        if latitude is None or longitude is None:
            raise ValueError("chunks state no latitude and longitude: pass axes")
        wanted = [c for c in dict.fromkeys((*tracker.channels, tracker.pressure)) if c in chunk.channels]
        sizes.add(len(chunk.values))
        leads.add(lead)
        # What is stored together is read at once: one member, or all members of a channel.
        apart = stored_pieces(chunk.values)[0] == 1
        whole = {} if apart else {c: np.asarray(chunk.values[:, chunk.channels.index(c)]) for c in wanted}
        for member in range(len(chunk.values)):
            values = chunk.values[member] if apart else None
            fields = {
                c: whole[c][member] if values is None else np.asarray(values[chunk.channels.index(c)])
                for c in wanted
            }
            found = tracker.find(fields, (np.asarray(latitude), np.asarray(longitude)))
            fixes.setdefault((init, member), {})[lead] = found
    if len(sizes) != 1:
        raise ValueError(f"a forecast must have chunks of one ensemble size, got sizes {sorted(sizes)}")
    tracks = []
    for (init, member), found_at in sorted(fixes.items()):
        order = sorted(found_at)
        for t in tracker.link([init + lead for lead in order], [found_at[lead] for lead in order]):
            tracks.append(_of_forecast(t, init, member))
    inits = np.unique([init for init, _ in fixes])
    return TrackForecasts(
        tracks=tracks, members=sizes.pop(), init_times=inits, lead_times=np.array(sorted(leads))
    )


def track_history(history: xr.DataArray | xr.Dataset | History, tracker: Tracker) -> list[Track]:
    """Tracks of an analysis, for the case that there is no best track."""
    source = as_history(history, "history")
    found = []
    for time in source.times:
        state = source.read(np.array([time])).transpose("time", "channel", "latitude", "longitude")
        fields = dict(zip(channel_names(state), np.asarray(state.values)[0], strict=True))
        found.append(tracker.find(fields, (state["latitude"].values, state["longitude"].values)))
    return tracker.link(list(seconds(source.times)), found)


class _Growing:
    """A track while it is linked."""

    def __init__(self, steps: list[int], fixes: list[Fix]) -> None:
        self.steps, self.fixes = steps, fixes

    def add(self, step: int, fix: Fix) -> None:
        self.steps.append(step)
        self.fixes.append(fix)

    def expected(self, time: np.datetime64, times: Sequence[np.datetime64]) -> Vector:
        """Position (3,) if the last motion went on."""
        here = _place(self.fixes[-1])
        if len(self.fixes) == 1:
            return here
        before = _place(self.fixes[-2])
        last = times[self.steps[-1]]
        share = float((time - last) / (last - times[self.steps[-2]]))
        moved = here + share * (here - before)
        return np.asarray(moved / np.linalg.norm(moved))


class _Sphere:
    """Neighbourhoods on a latitude-longitude grid."""

    def __init__(self, latitude: Array, longitude: Array) -> None:
        self.latitude, self.longitude = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
        self.shape = self.latitude.size, self.longitude.size
        self.poles, self.circle = is_global(self.latitude, self.longitude)
        self._step = np.abs(np.diff(self.latitude)).max(), np.abs(np.diff(self.longitude)).max()

    def cyclonic(self, u: Array, v: Array) -> Vector:
        """Vorticity in s-1, positive in the sense of the rotation of the Earth; 0 on rows at a pole."""
        phi, lam = np.deg2rad(self.latitude), np.deg2rad(self.longitude)
        cos = np.cos(phi)[:, None]
        if self.circle:
            turn = np.concatenate([[lam[-1] - 2 * np.pi], lam, [lam[0] + 2 * np.pi]])
            dv = np.gradient(np.concatenate([v[:, -1:], v, v[:, :1]], axis=1), turn, axis=1)[:, 1:-1]
        else:
            dv = np.gradient(v, lam, axis=1)
        away = np.where(np.abs(cos) > 1e-6, cos, np.inf)
        spin = (dv - np.gradient(u * cos, phi, axis=0)) / away / (EARTH_RADIUS_KM * 1000)
        return np.asarray(spin * np.sign(self.latitude)[:, None])

    def minima(self, low: Vector, separation_km: float) -> list[tuple[int, int]]:
        """Local minima, the lowest first, each with no lower one within a distance."""
        wide = np.pad(low, ((1, 1), (0, 0)), constant_values=np.nan)
        mode = {"mode": "wrap"} if self.circle else {"constant_values": np.nan}
        wide = np.pad(wide, ((0, 0), (1, 1)), **mode)
        height, width = low.shape
        least, most = np.full(low.shape, np.inf), np.full(low.shape, -np.inf)
        for i, j in np.ndindex(3, 3):
            if (i, j) != (1, 1):
                shifted = wide[i : i + height, j : j + width]
                np.fmin(least, shifted, out=least)
                np.fmax(most, shifted, out=most)
        # A plain holds no minimum.
        rows, columns = np.nonzero((low <= least) & (low < most))
        order = np.argsort(low[rows, columns], kind="stable")
        rows, columns = rows[order], columns[order]
        if not rows.size:
            return []
        place = unit_vectors(Grid.from_points(self.latitude[rows], self.longitude[columns]))
        tree, chord = search_tree(place), 2 * np.sin(separation_km / EARTH_RADIUS_KM / 2)
        kept, hidden = [], np.zeros(rows.size, bool)
        for k in range(rows.size):
            if not hidden[k]:
                kept.append((int(rows[k]), int(columns[k])))
                hidden[tree.query_ball_point(place[k], chord)] = True
        return kept

    def disc(
        self, point: tuple[int, int], radius_km: float
    ) -> tuple[tuple[npt.NDArray[np.intp], ...], Vector]:
        """Indices of the grid points within a distance, and the distances."""
        latitude, longitude = self.latitude[point[0]], self.longitude[point[1]]
        reach = radius_km / _KM_PER_DEGREE
        rows = np.flatnonzero(np.abs(self.latitude - latitude) <= reach + 1e-9)
        width = 180.0
        if abs(latitude) + reach < 89.9:
            width = float(np.rad2deg(np.arcsin(np.sin(np.deg2rad(reach)) / np.cos(np.deg2rad(latitude)))))
        columns = np.flatnonzero(np.abs((self.longitude - longitude + 180) % 360 - 180) <= width + 1e-9)
        away = great_circle_km(latitude, longitude, self.latitude[rows][:, None], self.longitude[columns])
        i, j = np.nonzero(away <= radius_km * (1 + 1e-12))
        return (rows[i], columns[j]), away[i, j]

    def ring(self, point: tuple[int, int], radius_km: float) -> tuple[npt.NDArray[np.intp], ...] | None:
        """Indices of the grid points around; None where a regional grid ends before."""
        latitude, longitude = self.latitude[point[0]], self.longitude[point[1]]
        reach = radius_km / _KM_PER_DEGREE
        low, high = self.latitude.min(), self.latitude.max()
        if not self.poles and not low + reach <= latitude <= high - reach:
            return None
        index, away = self.disc(point, radius_km)
        if not self.circle:
            edge = np.deg2rad(min(reach, 89.0))
            width = np.rad2deg(np.arcsin(min(1.0, np.sin(edge) / max(np.cos(np.deg2rad(latitude)), 1e-9))))
            if not self.longitude[0] + width <= longitude <= self.longitude[-1] - width:
                return None
        # Never narrower than a grid point.
        inner = min(0.8 * radius_km, radius_km - 1.5 * self._step[0] * _KM_PER_DEGREE)
        around = away >= inner
        return tuple(side[around] for side in index)

    def refine(self, low: Vector, point: tuple[int, int]) -> tuple[float, float, float]:
        """Position and value of the minimum of the paraboloid that fits a grid point and its neighbours."""
        latitude, longitude = self.latitude[point[0]], self.longitude[point[1]]
        across = self._step[1] * np.cos(np.deg2rad(latitude))
        index, away = self.disc(point, 1.6 * max(self._step[0], across) * _KM_PER_DEGREE)
        heading = bearing(latitude, longitude, self.latitude[index[0]], self.longitude[index[1]])
        x, y = away * np.sin(heading), away * np.cos(heading)
        rise = low[index] - low[point]
        terms = np.stack([x, y, x * x / 2, x * y, y * y / 2], axis=1)
        (bx, by, hxx, hxy, hyy), _, rank, _ = np.linalg.lstsq(terms, rise, rcond=None)
        determinant = hxx * hyy - hxy**2
        if rank < 5 or hxx <= 0 or determinant <= 0:
            return float(latitude), float(longitude) % 360, float(low[point])
        dx, dy = (hxy * by - hyy * bx) / determinant, (hxy * bx - hxx * by) / determinant
        distance = float(np.hypot(dx, dy))
        if distance > max(self._step[0], across) * _KM_PER_DEGREE:
            return float(latitude), float(longitude) % 360, float(low[point])
        there = destination(latitude, longitude, float(np.arctan2(dx, dy)), distance)
        return (*there, float(low[point] + (bx * dx + by * dy) / 2))


def bearing(lat1: npt.ArrayLike, lon1: npt.ArrayLike, lat2: npt.ArrayLike, lon2: npt.ArrayLike) -> Vector:
    """Direction in radians, clockwise from north, in which the great circle from the first point leaves."""
    a, b = np.deg2rad(lat1), np.deg2rad(lat2)
    turn = np.deg2rad(np.asarray(lon2) - np.asarray(lon1))
    return np.asarray(
        np.arctan2(np.sin(turn) * np.cos(b), np.cos(a) * np.sin(b) - np.sin(a) * np.cos(b) * np.cos(turn))
    )


def destination(latitude: float, longitude: float, heading: float, distance_km: float) -> tuple[float, float]:
    """Where a great circle ends: degrees, longitude 0..360; heading in radians."""
    a, d = np.deg2rad(latitude), distance_km / EARTH_RADIUS_KM
    z = np.sin(a) * np.cos(d) + np.cos(a) * np.sin(d) * np.cos(heading)
    x = np.cos(a) * np.cos(d) - np.sin(a) * np.sin(d) * np.cos(heading)
    y = np.sin(d) * np.sin(heading)
    # x and y stay exact at a pole, where an arc sine of z and the usual form of the turn do not.
    turn, north = np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))
    return float(np.rad2deg(north)), float((longitude + np.rad2deg(turn)) % 360)


def _place(fix: Fix) -> Vector:
    return np.asarray(unit_vectors(Grid.from_points([fix.latitude], [fix.longitude]))[0])


def _track(name: str, track: _Growing, times: Sequence[np.datetime64]) -> Track:
    latitude, longitude, pressure, wind = np.array(track.fixes).T
    stamps = np.array([times[k] for k in track.steps])
    return Track(
        storm=name, times=stamps, latitude=latitude, longitude=longitude, pressure=pressure, wind=wind
    )


def _of_forecast(track: Track, init: np.datetime64, member: int) -> Track:
    names = ("storm", "times", "latitude", "longitude", "pressure", "wind")
    return Track(**{n: getattr(track, n) for n in names}, init_time=init, member=member)
