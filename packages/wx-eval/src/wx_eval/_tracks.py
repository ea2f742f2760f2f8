"""Tracks of tropical cyclones: tables, positions and strikes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr

from ._fields import Chunk, seconds
from ._grid import EARTH_RADIUS_KM, Array, Grid, Vector, search_tree, unit_vectors
from ._regrid import Axes
from ._units import convert_units

Times = npt.NDArray[np.datetime64]
STRIKE = "strike"
"""Channel of `strikes`: 1 where a storm passes, else 0."""

_METADATA_KEY = b"wx_eval_tracks"


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """Fixes of one storm in order of time.

    Args:
        storm: name; of a forecast any name that is its own within the member.
        times: (T,), strictly increasing.
        latitude, longitude: (T,) degrees.
        pressure: (T,) lowest pressure at mean sea level in Pa, NaN where unknown.
        wind: (T,) largest wind in m s-1, NaN where unknown.
        init_time: start of the forecast, None of a best track.
        member: of the forecast.

    Raises:
        ValueError: for lengths that differ, times that do not increase or positions that do not exist.
    """

    storm: str
    times: Times
    latitude: Vector
    longitude: Vector
    pressure: Vector
    wind: Vector
    init_time: np.datetime64 | None = None
    member: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", seconds(self.times))
        if self.init_time is not None:
            object.__setattr__(self, "init_time", seconds(self.init_time)[()])
        for name in ("latitude", "longitude", "pressure", "wind"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
            if getattr(self, name).shape != self.times.shape:
                raise ValueError(f"{name} of storm {self.storm!r} must have shape {self.times.shape}")
        if not self.times.size or (np.diff(self.times) <= np.timedelta64(0, "s")).any():
            raise ValueError(f"times of storm {self.storm!r} must strictly increase")
        if not (np.abs(self.latitude) <= 90).all() or not np.isfinite(self.longitude).all():
            raise ValueError(f"storm {self.storm!r} has positions that do not exist")

    @cached_property
    def place(self) -> Vector:
        """(T, 3) on the unit sphere."""
        return unit_vectors(Grid.from_points(self.latitude, self.longitude))

    def during(self, first: np.datetime64, last: np.datetime64) -> Vector:
        """Corners (K, 3) of the way between two times along great circles; none outside of its life."""
        stamps = self.times.astype(np.int64)
        start = max(int(seconds(first)[()].astype(np.int64)), int(stamps[0]))
        stop = min(int(seconds(last)[()].astype(np.int64)), int(stamps[-1]))
        if start > stop:
            return np.zeros((0, 3))
        inside = (stamps > start) & (stamps < stop)
        ends = [self._at(stamps, when) for when in dict.fromkeys((start, stop))]
        return np.concatenate([ends[0][None], self.place[inside], ends[-1][None]][: 1 + 2 * (stop > start)])

    def _at(self, stamps: npt.NDArray[np.int64], when: int) -> Vector:
        """Position (3,) at a time of its life."""
        place = self.place
        left = min(int(np.searchsorted(stamps, when, side="right")) - 1, max(stamps.size - 2, 0))
        if stamps.size == 1 or stamps[left] == when:
            return np.asarray(place[left])
        share = (when - stamps[left]) / (stamps[left + 1] - stamps[left])
        angle = angle_between(place[left], place[left + 1])
        if angle < 1e-12:
            return np.asarray(place[left])
        ends = np.sin(np.array([1 - share, share]) * angle) / np.sin(angle)
        return np.asarray(ends @ place[left : left + 2])


@dataclass(frozen=True, kw_only=True, eq=False)
class TrackForecasts:
    """All tracks of the forecasts of one model.

    What was forecast is stated apart from the tracks: members and starts without a storm count too.

    Args:
        tracks: with `init_time` and `member`.
        members: M.
        init_times: starts of the forecasts.
        lead_times: of the fields in which storms were looked for.

    Raises:
        ValueError: for a track of another start or member.
    """

    tracks: Sequence[Track]
    members: int
    init_times: Times
    lead_times: npt.NDArray[np.timedelta64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tracks", tuple(self.tracks))
        object.__setattr__(self, "init_times", np.unique(seconds(self.init_times)))
        object.__setattr__(self, "lead_times", np.unique(seconds(self.lead_times)))
        inits = set(self.init_times.tolist())
        for track in self.tracks:
            known = track.init_time is not None and track.init_time.item() in inits
            if not known or not 0 <= track.member < self.members:
                raise ValueError(
                    f"storm {track.storm!r} of start {track.init_time} and member {track.member} is "
                    f"of no forecast among {self.init_times.size} starts and {self.members} members"
                )

    @cached_property
    def by_start(self) -> dict[np.datetime64, list[Track]]:
        """Tracks of each start."""
        out: dict[np.datetime64, list[Track]] = {init: [] for init in self.init_times}
        for track in self.tracks:
            assert track.init_time is not None
            out[track.init_time].append(track)
        return out

    def to_parquet(self, path: str | PathLike[str]) -> None:
        """Write one file, with starts, leads and members in the metadata."""
        payload = {
            "members": self.members,
            "init_times": self.init_times.astype(np.int64).tolist(),
            "lead_times": self.lead_times.astype(np.int64).tolist(),
        }
        table = tracks_to_table(self.tracks)
        pq.write_table(table.replace_schema_metadata({_METADATA_KEY: json.dumps(payload)}), path)

    @classmethod
    def from_parquet(cls, path: str | PathLike[str]) -> TrackForecasts:
        """Read what `to_parquet` wrote.

        Raises:
            ValueError: for a file of another kind.
        """
        if not holds_tracks(path):
            raise ValueError(
                f"{path} holds no forecast tracks: `wx-eval tracks` or TrackForecasts.to_parquet write them"
            )
        table = pq.read_table(path)
        payload = json.loads(table.schema.metadata[_METADATA_KEY])
        return cls(
            tracks=tracks_from_table(table, TrackLayout.own()),
            members=payload["members"],
            init_times=np.array(payload["init_times"], "datetime64[s]"),
            lead_times=np.array(payload["lead_times"], "timedelta64[s]"),
        )


def holds_tracks(path: str | PathLike[str]) -> bool:
    """Whether a file is one of `TrackForecasts.to_parquet`."""
    if not Path(path).exists():
        raise FileNotFoundError(f"no file {str(path)!r}")
    try:
        return _METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False


@dataclass(frozen=True, kw_only=True)
class TrackLayout:
    """Columns and units of a table of fixes; the default is IBTrACS with the intensities of the WMO.

    Args:
        storm, time, latitude, longitude: columns.
        pressure, wind: columns, "" without.
        init_time, member: columns of forecasts, "" of best tracks.
        pressure_unit, wind_unit: in the table.
        only: values to keep, by column, such as {"NATURE": ("TS",)}.
    """

    storm: str = "SID"
    time: str = "ISO_TIME"
    latitude: str = "LAT"
    longitude: str = "LON"
    pressure: str = "WMO_PRES"
    wind: str = "WMO_WIND"
    init_time: str = ""
    member: str = ""
    pressure_unit: str = "hPa"
    wind_unit: str = "kt"
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def own(cls) -> TrackLayout:
        """Of `tracks_to_table`."""
        names = ("storm", "time", "latitude", "longitude", "pressure", "wind", "init_time", "member")
        return cls(**{n: n for n in names}, pressure_unit="Pa", wind_unit="m s-1")  # type: ignore[arg-type]

    @property
    def columns(self) -> list[str]:
        """All that are read."""
        names = (self.storm, self.time, self.latitude, self.longitude, self.pressure, self.wind)
        return [name for name in (*names, self.init_time, self.member, *self.only) if name]


def read_tracks(
    path: str | PathLike[str], layout: TrackLayout | None = None, *, unit_row: bool | None = None
) -> list[Track]:
    """Best tracks, or forecast tracks, of a parquet or csv file.

    Args:
        path: ends in ".csv", else parquet.
        layout: columns and units; IBTrACS by default.
        unit_row: whether the second row of a csv file holds units and is skipped; by default for the columns
            of IBTrACS.

    Raises:
        ValueError: for columns that are not there, unknown units, or two fixes of a storm at one time.
    """
    layout = TrackLayout() if layout is None else layout
    if Path(path).suffix.lower() != ".csv":
        return tracks_from_table(pq.read_table(path), layout)
    skip = layout.storm == "SID" if unit_row is None else unit_row
    import pyarrow.csv as arrow_csv

    table = arrow_csv.read_csv(
        path,
        read_options=arrow_csv.ReadOptions(skip_rows_after_names=int(skip)),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=layout.columns, column_types=dict.fromkeys(layout.columns, pa.string())
        ),
    )
    return tracks_from_table(table, layout)


def tracks_from_table(table: pa.Table, layout: TrackLayout) -> list[Track]:
    """Tracks in order of start, member, storm; rows in any order.

    Raises:
        ValueError: see `read_tracks`.
    """
    absent = sorted(set(layout.columns) - set(table.column_names))
    if absent:
        raise ValueError(
            f"the table of tracks has no column {absent}; it has {table.column_names}: name its columns by "
            "a TrackLayout (--layout)"
        )
    columns = {name: table[name].to_pylist() for name in layout.columns}
    kept = [
        k
        for k in range(table.num_rows)
        if all(str(columns[name][k]).strip() in values for name, values in layout.only.items())
    ]
    groups: dict[tuple[Any, int, str], list[int]] = {}
    for k in kept:
        init = (
            np.datetime64(columns[layout.init_time][k], "s")
            if layout.init_time and columns[layout.init_time][k]
            else None
        )
        member = int(columns[layout.member][k]) if layout.member else 0
        groups.setdefault((init, member, str(columns[layout.storm][k])), []).append(k)
    numbers = {
        "latitude": _numbers(columns[layout.latitude]),
        "longitude": _numbers(columns[layout.longitude]),
        "pressure": _converted(columns, layout.pressure, layout.pressure_unit, "Pa", table.num_rows),
        "wind": _converted(columns, layout.wind, layout.wind_unit, "m s-1", table.num_rows),
    }
    times = np.array([np.datetime64(str(t).strip().replace(" ", "T"), "s") for t in columns[layout.time]])
    out = []
    for (init, member, storm), rows in sorted(
        groups.items(), key=lambda item: (str(item[0][0]), *item[0][1:])
    ):
        order = np.array(rows)[np.argsort(times[rows], kind="stable")]
        fixes = {name: values[order] for name, values in numbers.items()}
        out.append(Track(storm=storm, times=times[order], init_time=init, member=member, **fixes))
    return out


def tracks_to_table(tracks: Sequence[Track]) -> pa.Table:
    """One row per fix; init_time is null and member 0 of best tracks."""
    lengths = [t.times.size for t in tracks]
    joined = {
        name: np.concatenate([getattr(t, name) for t in tracks] or [np.zeros(0)])
        for name in ("latitude", "longitude", "pressure", "wind")
    }
    inits = [t.init_time for t, n in zip(tracks, lengths, strict=True) for _ in range(n)]
    times = np.concatenate([t.times for t in tracks] or [np.zeros(0, "datetime64[s]")])
    return pa.table(
        {
            "storm": pa.array(
                [t.storm for t, n in zip(tracks, lengths, strict=True) for _ in range(n)], pa.string()
            ),
            "init_time": pa.array([None if i is None else i.item() for i in inits], pa.timestamp("s")),
            "member": pa.array(np.repeat([t.member for t in tracks], lengths), pa.int32()),
            "time": pa.array(times, pa.timestamp("s")),
            **joined,
        }
    )


def strikes(
    forecasts: TrackForecasts, axes: Axes, *, radius_km: float = 120.0, window: np.timedelta64
) -> Iterator[Chunk]:
    """Where storms pass, member by member: a forecast of 0 and 1 whose mean is the strike probability.

    A point is struck when the great circles between the fixes of any track come within `radius_km` of it in
    the `window` that ends at the valid time, both ends included. Score it against `strike_truth` with `Brier`
    or any other metric of events, at the threshold 0.5.

    Args:
        forecasts: of one model.
        axes: latitude (H,) and longitude (W,) of the map.
        radius_km: 120 in the products of ECMWF.
        window: length.

    Yields:
        One chunk per start and lead from `window` on, with the channel "strike".
    """
    grid = Grid.from_axes(*axes)
    place = unit_vectors(grid)
    tree, window = search_tree(place), window.astype("timedelta64[s]")
    for init in forecasts.init_times:
        ours = forecasts.by_start[init]
        for lead in forecasts.lead_times[forecasts.lead_times >= window]:
            struck = np.zeros((forecasts.members, grid.size), np.float32)
            for track in ours:
                struck[track.member, _struck(track, init + lead, window, radius_km, tree, place)] = 1
            yield Chunk(
                init_time=init,
                lead_time=lead,
                channels=(STRIKE,),
                values=struck.reshape(-1, 1, *grid.shape),
                latitude=np.asarray(axes[0]),
                longitude=np.asarray(axes[1]),
                units=("1",),
            )


def strike_truth(
    best: Sequence[Track], times: Times, axes: Axes, *, radius_km: float = 120.0, window: np.timedelta64
) -> xr.DataArray:
    """Where storms passed (time, channel, latitude, longitude), by the rule of `strikes`."""
    grid = Grid.from_axes(*axes)
    place = unit_vectors(grid)
    tree, window = search_tree(place), window.astype("timedelta64[s]")
    stamps = seconds(times)
    struck = np.zeros((stamps.size, grid.size), np.float32)
    for row, time in zip(struck, stamps, strict=True):
        for track in best:
            row[_struck(track, time, window, radius_km, tree, place)] = 1
    coords = {
        "time": stamps.astype("datetime64[ns]"),
        "channel": [STRIKE],
        "units": ("channel", ["1"]),
        "latitude": np.asarray(axes[0]),
        "longitude": np.asarray(axes[1]),
    }
    hours = window / np.timedelta64(3600, "s")
    name = f"storms within {radius_km:g} km in {hours:g} h"
    values = struck.reshape(-1, 1, *grid.shape)
    return xr.DataArray(values, coords, ("time", "channel", "latitude", "longitude"), name=name)


def _struck(
    track: Track, time: np.datetime64, window: np.timedelta64, radius_km: float, tree: Any, place: Vector
) -> npt.NDArray[np.intp]:
    """Points that the track comes near."""
    corners, reach = track.during(time - window, time), radius_km / EARTH_RADIUS_KM
    found = []
    for a, b in zip(corners, corners[1:] if len(corners) > 1 else corners, strict=False):
        middle = a + b
        around = reach + angle_between(a, b) / 2
        chord = 2 * np.sin(min(around, np.pi) / 2) * (1 + 1e-9)
        near = np.array(tree.query_ball_point(middle / np.linalg.norm(middle), chord), np.intp)
        found.append(near[_arc_angle(place[near], a, b) <= reach * (1 + 1e-12)])
    return np.unique(np.concatenate(found or [np.zeros(0, np.intp)]))


def _arc_angle(place: Vector, a: Vector, b: Vector) -> Vector:
    """Angle between points (N, 3) and the nearest point of the shorter arc from a to b."""
    ends = np.asarray(np.minimum(angle_between(place, a), angle_between(place, b)), np.float64)
    pole = np.cross(a, b)
    length = np.linalg.norm(pole)
    if length < 1e-12:
        return ends
    pole = pole / length
    beside = (place @ np.cross(pole, a) >= 0) & (place @ np.cross(b, pole) >= 0)
    beyond = np.abs(np.arcsin(np.clip(place @ pole, -1, 1)))
    return np.asarray(np.where(beside, beyond, ends))


def angle_between(a: Vector, b: Vector) -> Any:
    """Angle between unit vectors (..., 3); exact for small ones."""
    return 2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))


def _numbers(column: Sequence[Any]) -> Vector:
    return np.array([np.nan if v is None or str(v).strip() == "" else float(v) for v in column], np.float64)


def _converted(columns: Mapping[str, Sequence[Any]], name: str, unit: str, to: str, rows: int) -> Array:
    return convert_units(_numbers(columns[name]), unit, to) if name else np.full(rows, np.nan)
