"""Stations: matching against loops over reports, interpolation against closed forms, density against N^2."""

from __future__ import annotations

import csv
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr

from wx_eval import Chunk, evaluate, scores
from wx_eval._density import DensityWeights
from wx_eval._grid import EARTH_RADIUS_KM, Grid, great_circle_km, unit_vectors
from wx_eval._interpolate import HeightCorrection, Interpolator, PointClimatology, at_points
from wx_eval._stations import ClimateCheck, Observed, ReportLayout, StationReports, metar
from wx_eval._units import convert_units

START = datetime(2020, 1, 1)
NAMES = ["AAA", "BBB", "CCC", "DDD"]
PLACES = {
    "AAA": (50.0, 10.0, 100.0),
    "BBB": (-30.5, -60.0, 9999.0),
    "CCC": (0.0, 179.9, 5.0),
    "DDD": (89.0, 0.0, 2.0),
}
TEMPERATURE = Observed(
    column="t", channel="2m_temperature", unit="degF", to="K", flag="tq", reject=("X",), limits=(200, 330)
)
WIND = Observed(column="ff", channel="10m_wind_speed", unit="knots", to="m s-1")
LAYOUT = ReportLayout(station="id", time="obs", latitude="lat", longitude="lon", elevation="z")


def reports(count: int = 600, seed: int = 0) -> list[dict[str, Any]]:
    """Reports at irregular times over 9 days, with gaps, flags, absurd values and repeated times."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(count):
        name = NAMES[rng.integers(4)]
        lat, lon, z = PLACES[name]
        minute = int(rng.integers(-120, 9 * 1440) // 10 * 10)
        out.append(
            {
                "id": name,
                "lat": lat,
                "lon": lon,
                "z": z,
                "obs": START + timedelta(minutes=minute),
                "t": None if k % 11 == 0 else 9999.0 if k % 17 == 0 else float(rng.normal(50, 20)),
                "tq": "X" if k % 7 == 0 else "V",
                "ff": float(rng.uniform(0, 40)),
                "dd": None if k % 5 == 0 else float(rng.integers(0, 36) * 10),
            }
        )
    return out


def usable_kelvin(row: dict[str, Any]) -> float | None:
    """The rule of TEMPERATURE for one report."""
    if row["t"] is None or row["tq"] == "X":
        return None
    kelvin = (row["t"] - 32) / 1.8 + 273.15
    return kelvin if 200 <= kelvin <= 330 else None


def by_loop(rows: list[dict[str, Any]], time: datetime, name: str, half: int, rule: str) -> float:
    """The documented choice, report by report."""
    found: list[tuple[tuple[float, float, int], float]] = []
    for k, row in enumerate(rows):
        late = (row["obs"] - time).total_seconds()
        value = usable_kelvin(row)
        if row["id"] == name and abs(late) <= half * 60 and value is not None:
            side = late if rule != "after" else -late
            found.append(((abs(late), side, -k), value))
    if not found:
        return np.nan
    return float(np.mean([v for _, v in found])) if rule == "mean" else min(found)[1]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "reports.parquet"
    pq.write_table(pa.Table.from_pylist(reports()), path, row_group_size=50)
    return path


def valid_times(hours: int = 6, days: int = 9) -> np.ndarray:
    return np.arange("2020-01-01", f"2020-01-{1 + days:02d}", np.timedelta64(hours, "h"), "datetime64[s]")


@pytest.mark.parametrize("rule", ["before", "after", "mean"])
@pytest.mark.parametrize("half", [0, 10, 90])
def test_matching_equals_a_loop_over_reports(table: Path, rule: str, half: int) -> None:
    stations = StationReports(
        path=table,
        times=valid_times(),
        variables=[TEMPERATURE],
        layout=LAYOUT,
        tolerance=np.timedelta64(half, "m"),
        pick="mean" if rule == "mean" else "nearest",
        tie="after" if rule == "after" else "before",
        days=2,
    )
    found = stations.read(stations.times)
    rows = reports()
    expected = [[by_loop(rows, t.item(), n, half, rule) for n in NAMES] for t in valid_times()]
    np.testing.assert_allclose(found.values[:, 0], expected, rtol=1e-13)
    assert stations.stations == NAMES
    assert found["units"].values.tolist() == ["K"]
    assert np.isnan(found.values).any()
    assert half == 0 or not np.isnan(found.values).all()


def test_rules_differ_where_they_should(table: Path) -> None:
    states = [
        StationReports(
            path=table, times=valid_times(1), variables=[TEMPERATURE], layout=LAYOUT, pick=pick, tie=tie
        ).read(valid_times(1))
        for pick, tie in (("nearest", "before"), ("nearest", "after"), ("mean", "before"))
    ]
    assert len({s.name for s in states}) == 3
    for a, b in ((0, 1), (0, 2)):
        assert (np.isnan(states[a].values) == np.isnan(states[b].values)).all()
        assert (np.nan_to_num(states[a].values) != np.nan_to_num(states[b].values)).any()


def test_days_read_at_a_time_and_order_of_reading_make_no_difference(table: Path) -> None:
    times = valid_times(3)
    arguments: dict[str, Any] = {
        "path": table,
        "times": times,
        "variables": [TEMPERATURE, WIND],
        "layout": LAYOUT,
    }
    whole = StationReports(**arguments, days=100).read(times)
    single = StationReports(**arguments, days=1)
    order = np.random.default_rng(1).permutation(times.size)
    for k in order:
        np.testing.assert_array_equal(single.read(times[k : k + 1]).values[0], whole.values[k])


def test_counts_add_up_and_equal_a_loop(table: Path) -> None:
    stations = StationReports(path=table, times=valid_times(), variables=[TEMPERATURE], layout=LAYOUT, days=2)
    [row] = stations.counts().to_pylist()
    first, last = START - timedelta(minutes=30), START + timedelta(days=8, hours=18, minutes=30)
    inside = [r for r in reports() if first <= r["obs"] <= last]
    assert row["reports"] == len(inside)
    assert row["missing"] == sum(r["t"] is None for r in inside)
    assert row["flagged"] == sum(r["t"] is not None and r["tq"] == "X" for r in inside)
    assert row["usable"] == sum(usable_kelvin(r) is not None for r in inside)
    assert row["outside"] == row["reports"] - row["missing"] - row["flagged"] - row["usable"] > 0


def test_long_form_gives_what_wide_form_gives(table: Path, tmp_path: Path) -> None:
    rows = [
        {"station_id": r["id"], "lat": r["lat"], "lon": r["lon"], "valid_time": r["obs"], "var": v,
         "value": r[v], "qc": r["tq"] if v == "t" else "V"}
        for r in reports()
        for v in ("ff", "t")
    ]  # fmt: skip
    path = tmp_path / "long.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    layout = ReportLayout(
        station="station_id", time="valid_time", latitude="lat", longitude="lon", elevation="",
        variable="var", value="value", flag="qc",
    )  # fmt: skip
    long = Observed(
        column="t", channel="2m_temperature", unit="degF", to="K", reject=("X",), limits=(200, 330)
    )
    times = valid_times()
    a = StationReports(path=path, times=times, variables=[long, WIND], layout=layout)
    b = StationReports(path=table, times=times, variables=[TEMPERATURE, WIND], layout=LAYOUT)
    np.testing.assert_array_equal(a.read(times).values, b.read(times).values)
    assert a.counts() == b.counts()
    assert np.isnan(a.elevation).all()
    np.testing.assert_array_equal(b.elevation, [100, np.nan, 5, 2])
    typo = StationReports(
        path=path, times=times, variables=[Observed(column="tt", channel="x", unit="K")], layout=layout
    )
    with pytest.raises(ValueError, match=r"no variable \['tt'\]"):
        typo.read(times)


def test_wind_components_and_calm(tmp_path: Path) -> None:
    base = {"lat": 1.0, "lon": 2.0, "z": 3.0, "obs": START}
    winds = [
        ("N", 10.0, 360.0),
        ("E", 10.0, 90.0),
        ("SW", 10.0, 225.0),
        ("calm", 0.0, None),
        ("vrb", 3.0, None),
    ]
    rows = [{**base, "id": i, "lat": k * 1.0, "ff": f, "dd": d} for k, (i, f, d) in enumerate(winds)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "w.parquet")
    variables = [
        Observed(column="ff", channel=f"10{c}", unit="kt", to="m/s", direction="dd", component=c)  # type: ignore[arg-type]
        for c in "uv"
    ]
    stations = StationReports(
        path=tmp_path / "w.parquet", times=valid_times()[:1], variables=variables, layout=LAYOUT
    )
    found = stations.read(stations.times).sel(channel=["10u", "10v"]).values[0] / (1852 / 3600)
    half = 10 / np.sqrt(2)
    expected = {"N": (0, -10), "E": (-10, 0), "SW": (half, half), "calm": (0, 0), "vrb": (np.nan, np.nan)}
    np.testing.assert_allclose(found.T, [expected[s] for s in stations.stations], atol=1e-14)
    assert stations.counts()["no_direction"].to_pylist() == [1, 1]


class GivenClimatology:
    """Mean 280 K and deviation 2 K at every point."""

    name = "given"

    def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
        del valid_time
        value = {"mean": 280.0, "std": 2.0}[statistic]
        coords = {"channel": ["2m_temperature"], "units": ("channel", ["K"])}
        return xr.DataArray(np.full((1, 4), value), coords, ("channel", "point"))


def test_climate_check_comes_before_the_choice(tmp_path: Path) -> None:
    base = {"id": "AAA", "lat": 1.0, "lon": 2.0, "z": 3.0, "tq": "V"}
    rows = [
        {**base, "obs": START, "t": 271.0},
        {**base, "obs": START + timedelta(minutes=20), "t": 283.0},
        *({**base, "id": n, "obs": START, "t": 274.0} for n in "BCD"),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    kelvin = Observed(column="t", channel="2m_temperature", unit="K")
    check = ClimateCheck(GivenClimatology(), sigmas=3.0)
    stations = StationReports(
        path=tmp_path / "t.parquet", times=valid_times()[:1], variables=[kelvin], layout=LAYOUT, climate=check
    )
    # 271 is 4.5 deviations away, 274 exactly 3.
    assert stations.read(stations.times).values.ravel().tolist() == [283, 274, 274, 274]
    assert "3 sd of given" in stations.name
    celsius = replace(stations, variables=[replace(kelvin, to="degC")])
    with pytest.raises(ValueError, match="in 'K' in the climatology of the check and in 'degC'"):
        celsius.read(stations.times)
    turning = Observed(column="t", channel="10m_wind_direction", unit="deg")
    with pytest.raises(ValueError, match="have no mean"):
        replace(stations, variables=[turning], pick="mean")


def test_time_zones_folders_areas_and_bad_input(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    rows = sorted(reports(), key=lambda r: r["obs"])
    whole = pa.Table.from_pylist(rows)
    zoned = whole.set_column(
        whole.column_names.index("obs"), "obs", whole["obs"].cast(pa.timestamp("ms", "UTC"))
    )
    pq.write_table(zoned.slice(0, 250), folder / "a.parquet")
    pq.write_table(zoned.slice(250), folder / "b.parquet")
    times = valid_times()
    arguments: dict[str, Any] = {"times": times, "variables": [WIND], "layout": LAYOUT}
    a = StationReports(path=folder, pick="mean", **arguments).read(times)
    b = StationReports(path=table, pick="mean", **arguments).read(times)
    np.testing.assert_allclose(a.values, b.values, rtol=1e-14)
    area = StationReports(path=table, within=((-40, 55), (290, 20)), **arguments)
    assert area.stations == ["AAA", "BBB"]
    assert StationReports(path=table, exclude=["AAA"], **arguments).stations == NAMES[1:]
    with pytest.raises(ValueError, match="no column"):
        StationReports(path=table, times=times, variables=[WIND])
    with pytest.raises(ValueError, match="strictly increase"):
        StationReports(path=table, times=times[::-1], variables=[WIND], layout=LAYOUT)
    with pytest.raises(ValueError, match="name it in times"):
        StationReports(path=table, **arguments).read(np.array(["2020-01-01T01"], "datetime64[s]"))
    moved = [{**r, "lat": r["lat"] - 0.1 * (k == 9)} for k, r in enumerate(reports())]
    pq.write_table(pa.Table.from_pylist(moved), tmp_path / "moved.parquet")
    with pytest.raises(ValueError, match="exclude them"):
        StationReports(path=tmp_path / "moved.parquet", **arguments).grid  # noqa: B018


@pytest.mark.parametrize(
    ("value", "unit", "to", "expected"),
    [
        (32.0, "degF", "K", 273.15),
        (212.0, "degF", "degC", 100.0),
        (-40.0, "degC", "degF", -40.0),
        (1.0, "kt", "m/s", 1852 / 3600),
        (29.92126, "inHg", "hPa", 1013.25),
        (1013.25, "mb", "Pa", 101325.0),
        (1.0, "in", "mm", 25.4),
        (1.0, "statute_mile", "km", 1.609344),
        (50.0, "%", "1", 0.5),
    ],
)
def test_units(value: float, unit: str, to: str, expected: float) -> None:
    np.testing.assert_allclose(
        convert_units(value, unit, to), expected, rtol=1e-6 if unit == "inHg" else 1e-14
    )


def test_unknown_units_are_refused() -> None:
    with pytest.raises(ValueError, match="'furlong' is unknown"):
        Observed(column="x", channel="x", unit="furlong", to="m")
    with pytest.raises(ValueError, match="'kt' is a unit of speed and 'K' of temperature"):
        Observed(column="x", channel="x", unit="kt", to="K")


# Forecasts at points


def smooth(grid: Grid) -> np.ndarray:
    x, y, z = unit_vectors(grid).T
    return 1 + x + 0.5 * y * z


GRIDS = {
    "poles": (np.linspace(90, -90, 37), np.arange(0, 360, 5.0)),
    "south first": (np.linspace(-90, 90, 37), np.arange(0, 360, 5.0)),
    "no poles": (np.linspace(87.5, -87.5, 36), np.arange(2.5, 360, 5.0)),
    "dateline": (np.linspace(90, -90, 37), np.arange(-180, 180, 5.0)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_bilinear_is_linear_between_grid_points_all_around(name: str) -> None:
    lat, lon = GRIDS[name]
    rng = np.random.default_rng(0)
    points = Grid.from_points(rng.uniform(-87, 87, 400), rng.uniform(-180, 540, 400))
    # Linear in latitude, and in longitude from column to column with a jump nowhere: a triangle wave.
    wave = np.abs((lon - lon[0]) % 360 - 180)
    field = 3 * lat[:, None] + wave[None] * (1 + lat[:, None] / 100)
    expected = 3 * points.latitude + np.abs((points.longitude - lon[0]) % 360 - 180) * (
        1 + points.latitude / 100
    )
    np.testing.assert_allclose(Interpolator((lat, lon), points)(field), expected, atol=1e-10)


def test_bilinear_at_grid_points_poles_and_beyond_the_last_row() -> None:
    lat, lon = GRIDS["poles"]
    grid = Grid.from_axes(lat, lon)
    field = np.random.default_rng(0).standard_normal((2, 37, 72)).astype(np.float32)
    mapped = Interpolator((lat, lon), Grid.from_points(grid.latitude, grid.longitude))(field)
    np.testing.assert_array_equal(mapped, field.reshape(2, -1))
    assert mapped.dtype == np.float32
    lat, lon = GRIDS["no poles"]
    field = field[:, :36]
    near = Interpolator((lat, lon), Grid.from_points([90, 88, -90.0], [2.5, 7.5, 357.5]))(field)
    np.testing.assert_array_equal(near, field[:, [0, 0, -1], [0, 1, 71]])


def test_missing_grid_points_only_matter_where_they_have_a_weight() -> None:
    lat, lon = np.array([2.0, 1, 0]), np.array([10.0, 11, 12])
    field = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, np.nan]])
    points = Grid.from_points([1, 0, 0, 0.5, 1.0], [11, 11, 11.5, 11.5, 11.5])
    np.testing.assert_array_equal(Interpolator((lat, lon), points)(field), [5, 8, np.nan, np.nan, 5.5])
    with pytest.raises(ValueError, match=r"1 of 2 points lie outside the grid, the first at 1, 12\.5"):
        Interpolator((lat, lon), Grid.from_points([1, 1], [12, 12.5]))


@pytest.mark.parametrize("land_only", [False, True])
@pytest.mark.parametrize("name", GRIDS)
def test_nearest_equals_a_search_over_all_grid_points(name: str, land_only: bool) -> None:
    lat, lon = GRIDS[name]
    grid = Grid.from_axes(lat, lon)
    rng = np.random.default_rng(1)
    points = Grid.from_points(np.degrees(np.arcsin(rng.uniform(-1, 1, 200))), rng.uniform(0, 360, 200))
    land = (rng.uniform(size=(lat.size, lon.size)) < 0.2).astype(float)
    away = great_circle_km(points.latitude[:, None], points.longitude[:, None], grid.latitude, grid.longitude)
    away = np.where(land.ravel() >= 0.5, away, np.inf) if land_only else away
    method = "nearest_land" if land_only else "nearest"
    mapped = Interpolator((lat, lon), points, method, land_fraction=land)  # type: ignore[arg-type]
    np.testing.assert_allclose(mapped.distance_km, away.min(axis=1), rtol=1e-12, atol=1e-6)
    field = np.arange(grid.size, dtype=np.float64).reshape(lat.size, lon.size)
    chosen = mapped(field).astype(int)
    np.testing.assert_allclose(away[np.arange(200), chosen], away.min(axis=1), rtol=1e-12, atol=1e-6)


def test_nearest_of_equally_near_grid_points_is_the_first() -> None:
    lat, lon = np.linspace(10, -10, 21), np.arange(0, 360, 1.0)
    mapped = Interpolator((lat, lon), Grid.from_points([0.0, 0.0], [0.5, 359.5]), "nearest")
    field = np.broadcast_to(lon, (21, 360))
    assert mapped(field).tolist() == [0, 0]


def chunk(values: np.ndarray, lat: np.ndarray, lon: np.ndarray, hours: int = 0, **more: Any) -> Chunk:
    return Chunk(
        init_time=np.datetime64("2020-01-01T00", "s"),
        lead_time=np.timedelta64(hours, "h"),
        channels=("2m_temperature", "10m_wind_speed"),
        values=values,
        latitude=lat,
        longitude=lon,
        units=more.get("units", ("K", "m s-1")),
    )


def test_height_correction_is_exact_in_a_standard_atmosphere() -> None:
    lat, lon = GRIDS["poles"]
    points = Grid.from_points([47.3, -22.1], [11.4, 290.2])
    elevation = np.array([581.0, 2100.0])
    heights = np.abs(lat)[:, None] * 20 + 0 * lon
    surface = np.stack([288.15 - 0.0065 * heights, heights])[None]
    height = HeightCorrection(orography=heights, elevation=elevation)
    [found] = at_points([chunk(surface, lat, lon)], points, height=height)
    np.testing.assert_allclose(found.values[0, 0], 288.15 - 0.0065 * elevation, rtol=1e-14)
    np.testing.assert_allclose(found.values[0, 1], np.abs(points.latitude) * 20, rtol=1e-14)
    assert found.interpolation == "bilinear, height 2m_temperature=6.5 K/km"
    with pytest.raises(ValueError, match=r"9\.80665"):
        HeightCorrection(orography=heights * 9.81, elevation=elevation)
    with pytest.raises(ValueError, match="1 stations have no elevation"):
        HeightCorrection(orography=heights, elevation=np.array([1, np.nan]))
    with pytest.raises(ValueError, match="only temperatures"):
        list(at_points([chunk(surface, lat, lon, units=("Pa", "m s-1"))], points, height=height))


def test_point_climatology_interpolates_every_channel() -> None:
    lat, lon = GRIDS["poles"]
    points = Grid.from_points([1.25, 45], [2.5, 10])

    class OnGrid:
        name = "wave"

        def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
            del statistic, valid_time
            coords = {
                "channel": ["a", "b"],
                "latitude": lat,
                "longitude": lon,
                "units": ("channel", ["K", "1"]),
            }
            values = np.stack([lat[:, None] + 0 * lon, 2 * lat[:, None] + 0 * lon])
            return xr.DataArray(values, coords, ("channel", "latitude", "longitude"))

    found = PointClimatology(OnGrid(), points)
    assert found.name == "wave, bilinear"
    field = found.at("mean", np.datetime64("2020-01-01"))
    np.testing.assert_allclose(field.values, [[1.25, 45], [2.5, 90]], rtol=1e-14)
    assert field["units"].values.tolist() == ["K", "1"]


# Weights


def globe(count: int, seed: int = 0) -> Grid:
    """Stations in clusters, as they are."""
    rng = np.random.default_rng(seed)
    place = rng.standard_normal((count // 10, 3))
    place = np.repeat(place / np.linalg.norm(place, axis=1, keepdims=True), 10, axis=0)
    place += rng.standard_normal(place.shape) * 0.01
    place /= np.linalg.norm(place, axis=1, keepdims=True)
    return Grid.from_points(
        np.degrees(np.arcsin(place[:, 2])), np.degrees(np.arctan2(place[:, 1], place[:, 0]))
    )


def haversine_km(grid: Grid) -> np.ndarray:
    lat, lon = np.deg2rad(grid.latitude), np.deg2rad(grid.longitude)
    a = np.sin((lat[:, None] - lat) / 2) ** 2
    b = np.cos(lat[:, None]) * np.cos(lat) * np.sin((lon[:, None] - lon) / 2) ** 2
    return np.asarray(EARTH_RADIUS_KM * 2 * np.arcsin(np.sqrt(np.clip(a + b, 0, 1))))


def test_density_equals_all_pairs() -> None:
    grid = globe(1000)
    away = haversine_km(grid)
    for radius in (20.0, 75.0, 500.0):
        expected = 1 / (away <= radius).sum(axis=1)
        found = DensityWeights(radius_km=radius).of(grid)
        np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-13)
        assert np.ptp(found) > 0
    angle = np.rad2deg(away / EARTH_RADIUS_KM)
    for size in (0.1, 0.75, 3.0):
        density = np.exp(-np.square(angle / size)).sum(axis=1)
        found = DensityWeights("gauss", angle=size).of(grid)
        np.testing.assert_allclose(found, (1 / density) / (1 / density).mean(), rtol=1e-12)


def test_density_across_the_date_line_at_the_pole_and_on_the_edge() -> None:
    grid = Grid.from_points([0, 0, 90, 89.95, 40], [179.9, -179.9, 0, 123, 0])
    degree = EARTH_RADIUS_KM * np.pi / 180
    assert DensityWeights(radius_km=0.2 * degree).density(grid).tolist() == [2, 2, 2, 2, 1]
    assert DensityWeights(radius_km=0.199 * degree).density(grid).tolist() == [1, 1, 2, 2, 1]
    limited = DensityWeights(radius_km=25, limit=1.1)
    assert limited.of(grid).max() == 1.1
    assert limited.name == "density(count 25 km limit 1.1)"
    with pytest.raises(ValueError, match="positive"):
        DensityWeights(radius_km=0)


def test_great_circle_distances() -> None:
    quarter = EARTH_RADIUS_KM * np.pi / 2
    np.testing.assert_allclose(great_circle_km(0, 0, 0, 90), quarter, rtol=1e-15)
    np.testing.assert_allclose(great_circle_km(90, 17, 0, 200), quarter, rtol=1e-15)
    np.testing.assert_allclose(great_circle_km(10, 20, -10, 200), 2 * quarter, rtol=1e-15)
    np.testing.assert_allclose(great_circle_km(0, 179.5, 0, -179.5), quarter / 90, rtol=1e-12)
    # Los Angeles to Nashville, 0.453 rad: the example of the haversine formula.
    np.testing.assert_allclose(
        great_circle_km(36.12, -86.67, 33.94, -118.40), 0.45306 * EARTH_RADIUS_KM, rtol=1e-4
    )
    np.testing.assert_allclose(
        great_circle_km(45, 0, 45 + 1e-9, 0), np.deg2rad(1e-9) * EARTH_RADIUS_KM, rtol=1e-5
    )


# Real data


@pytest.fixture(scope="module")
def real(samples: Path) -> StationReports:
    path = samples / "obs/metar_2020-01_12stations.parquet"
    times = np.arange("2020-01-01", "2020-02-01", np.timedelta64(6, "h"), "datetime64[s]")
    return StationReports(path=path, times=times, variables=metar("2m_temperature", "10m_wind_speed"))


def test_real_reports_equal_a_loop_over_the_table(real: StationReports) -> None:
    table = pq.read_table(real.path).to_pydict()
    assert len(table["recNum"]) == 12549
    assert len(real.stations) == 12
    epoch = datetime(1970, 1, 1)
    minutes = [(t.to_pydatetime() - epoch).total_seconds() / 60 for t in table["timeObs"]]
    states = real.read(real.times)
    valid = [(t - epoch).total_seconds() / 60 for t in real.times.tolist()]
    for c, column in enumerate(("temperature", "windSpeed")):
        reports_of: dict[str, list[tuple[float, float]]] = {name: [] for name in real.stations}
        rows = zip(table["stationName"], minutes, table[column], table[column + "DD"], strict=True)
        for name, minute, value, flag in rows:
            if value is not None and value == value and flag not in "BQXZk":
                reports_of[name].append((minute, value))
        for s, name in enumerate(real.stations):
            for t, now in enumerate(valid):
                near = [(abs(m - now), m, v) for m, v in reports_of[name] if abs(m - now) <= 30]
                np.testing.assert_equal(states.values[t, c, s], min(near)[2] if near else np.nan)
    absent = np.isnan(states.values).mean(axis=(0, 2))
    assert (absent > 0).all()
    assert (absent < 0.2).all()


def test_real_reports_score_a_forecast_of_known_errors(real: StationReports) -> None:
    lat, lon = np.linspace(90, -90, 121), np.arange(0, 360, 1.5)
    states = real.read(real.times)
    inits = real.times[8:80:4]
    offsets = np.array([-1.0, 0.5, 2.0])

    def forecast() -> Any:
        for init in inits:
            lead = np.timedelta64(6, "h")
            field = np.zeros((3, 2, lat.size, lon.size))
            truth = states.sel(time=(init + lead).astype("datetime64[ns]")).values
            for n in range(len(real.stations)):
                # The cells around the station hold the report plus the offset of the member.
                row = np.abs(lat - real.grid.latitude[n]).argsort()[:3]
                away = (lon - real.grid.longitude[n] + 180) % 360 - 180
                column = np.abs(away).argsort()[:3]
                field[:, :, row[:, None], column] = (truth[:, n] + offsets[:, None])[:, :, None, None]
            field = np.nan_to_num(field, nan=280.0)
            made = chunk(field, lat, lon, 6)
            yield Chunk(
                init_time=init, lead_time=lead, channels=made.channels, values=made.values,
                latitude=lat, longitude=lon, units=made.units,
            )  # fmt: skip

    weights = DensityWeights(radius_km=500)
    records = evaluate(
        at_points(forecast(), real.grid), real, model="made up", regions=["global", "nh"], weights=weights
    )
    found = scores(records)
    np.testing.assert_allclose(found["bias"].values, 0.5, atol=1e-9)
    np.testing.assert_allclose(found["rmse"].values, 0.5, atol=1e-9)
    np.testing.assert_allclose(found["spread"].values, np.std(offsets, ddof=1), atol=1e-9)
    # Fair CRPS of the members -1, 0.5 and 2 around 0: 3.5 / 3 - (1.5 + 1.5 + 3) / 6.
    np.testing.assert_allclose(found["crps_fair"].values, 3.5 / 3 - 1, atol=1e-9)
    assert records.conventions.weights == "density(count 500 km)"
    assert records.conventions.interpolation == "bilinear"
    assert records.conventions.truth == real.name
    table = records.select(channel="2m_temperature", region="global").table
    usable = ~np.isnan(
        states.sel(time=(inits + np.timedelta64(6, "h")).astype("datetime64[ns]")).values[:, 0]
    )
    assert table["n"].to_pylist() == usable.sum(axis=1).tolist()
    other = evaluate(at_points(forecast(), real.grid, method="nearest"), real, model="b", weights=weights)
    with pytest.raises(ValueError, match="different interpolation cannot be combined"):
        records.merge(other)


def test_figures_of_the_real_file(real: StationReports, tmp_path: Path) -> None:
    """Counts from a plain text copy of the table, read by the csv module."""
    table = pq.read_table(real.path).to_pydict()
    path = tmp_path / "copy.csv"
    names = ["stationName", "timeObs", "temperature", "temperatureDD"]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(zip(*(table[n] for n in names), strict=True))
    missing = flagged = 0
    usable: dict[str, list[float]] = {name: [] for name in real.stations}
    with path.open(newline="") as file:
        for name, time, value, flag in csv.reader(file):
            if "2019-12-31 23:30" <= time[:16] <= "2020-01-31 18:30":
                absent = value in ("", "nan")
                missing += absent
                flagged += not absent and flag in "BQXZk"
                if not absent and flag not in "BQXZk":
                    usable[name].append(float(value))
    row = next(r for r in real.counts().to_pylist() if r["channel"] == "2m_temperature")
    assert (row["missing"], row["flagged"], row["outside"]) == (missing, flagged, 0)
    assert row["usable"] == sum(map(len, usable.values()))
    # The mean of all of January at each station, as the one state of a month of tolerance.
    middle = np.array(["2020-01-16T09"], "datetime64[s]")
    month = StationReports(
        path=real.path,
        times=middle,
        variables=metar("2m_temperature"),
        tolerance=np.timedelta64(369 * 60 + 30, "m"),
        pick="mean",
    )
    means = [np.mean(values) for values in usable.values()]
    np.testing.assert_allclose(month.read(middle).values.ravel(), means, rtol=1e-12)
    # January in kelvin, from McMurdo and Minnesota to Malaysia.
    assert 260 < min(means) < 275
    assert 297 < max(means) < 302
