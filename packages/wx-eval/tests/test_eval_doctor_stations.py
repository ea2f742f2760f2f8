"""Faults planted in reports of stations, one at a time, and reports without any."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr

from wx_eval._cli import main
from wx_eval._grid import Grid
from wx_eval._interpolate import Interpolator

pytest.importorskip("h5netcdf", reason="the files of these tests are netCDF")

HOUR, MINUTE = np.timedelta64(3600, "s"), np.timedelta64(60, "s")
START = np.datetime64("2020-01-01T00", "s")
LAT, LON = np.linspace(90, -90, 37), np.arange(0, 360, 5.0)
DAYS, STATIONS = 10, 40
COLUMNS = ("temperature", "windSpeed", "seaLevelPress")
Reports = dict[str, np.ndarray]


def weather(hours: np.ndarray) -> dict[str, np.ndarray]:
    """Fields (time, H, W) with a daily cycle, waves that travel and a warm equator."""
    t = hours[:, None, None]
    lat, lon = np.deg2rad(LAT)[:, None], np.deg2rad(LON)
    waves = np.cos(lat) * np.sin(5 * lon - 2 * np.pi * t / 60 + 3 * lat)
    day = np.cos(lat) * np.cos(2 * np.pi * t / 24 + lon)
    east = 3 * np.sin(lon + 0.5) + 2 * np.sin(2 * lat)
    return {
        "t2m": 255 + 40 * np.cos(lat) ** 2 + 5 * waves + 6 * day + east,
        "10m_wind_speed": 9 + 4 * waves + 2 * np.sin(lat + 2 * lon),
        "msl": 101_000 + 1500 * waves - 1000 * np.cos(2 * lat) + 200 * east,
    }


def forecast() -> xr.Dataset:
    """Starts at 00 and 12 h, lead times of 12 and 24 h, three members."""
    rng = np.random.default_rng(1)
    inits = START + 12 * HOUR * np.arange(2, 2 * DAYS - 4)
    leads = 12 * HOUR * np.arange(1, 3)
    hours = ((inits[:, None] + leads) - START) / HOUR
    dims = ("init_time", "lead_time", "member", "latitude", "longitude")
    units = {"t2m": "K", "10m_wind_speed": "m s-1", "msl": "Pa"}
    data = {}
    for name, fields in weather(hours.ravel()).items():
        noise = rng.standard_normal((len(inits), 2, 3, LAT.size, LON.size))
        values = fields.reshape(len(inits), 2, 1, LAT.size, LON.size) + 0.1 * fields.std() * noise
        data[name] = (dims, values.astype(np.float32), {"units": units[name]})
    coords = {
        "init_time": inits.astype("datetime64[ns]"),
        "lead_time": leads.astype("timedelta64[ns]"),
        "member": np.arange(3),
        "latitude": LAT,
        "longitude": LON,
    }
    return xr.Dataset(data, coords)


def clean() -> Reports:
    """Hourly reports a few minutes before the hour, near the fields."""
    rng = np.random.default_rng(2)
    lat, lon = rng.uniform(-70, 70, STATIONS), rng.uniform(20, 80, STATIONS)
    lat[np.abs(lat) < 20] += 40
    minutes = 60 * np.arange(24 * DAYS) - 7
    fields = weather(minutes / 60)
    mapped = Interpolator((LAT, LON), Grid.from_points(lat, lon))
    station = np.tile([f"S{k:03d}" for k in range(STATIONS)], minutes.size)
    table: Reports = {
        "stationName": station,
        "timeObs": np.repeat(START + minutes * MINUTE, STATIONS).astype("datetime64[ns]"),
        "latitude": np.tile(lat, minutes.size).astype(np.float32),
        "longitude": np.tile(lon, minutes.size).astype(np.float32),
        "elevation": np.tile(rng.uniform(100, 300, STATIONS), minutes.size).astype(np.float32),
    }
    for column, name in zip(COLUMNS, fields, strict=True):
        values = mapped(fields[name]).ravel()
        values = values + 0.05 * values.std() * rng.standard_normal(values.size)
        table[column] = np.maximum(values, 0.1).astype(np.float32)
        table[column + "DD"] = rng.choice(list("SV"), values.size)
    return table


def moved(table: Reports) -> None:
    table["timeObs"] = table["timeObs"] - 6 * HOUR


def celsius(table: Reports) -> None:
    table["temperature"] = table["temperature"] - np.float32(273.15)


def hectopascals(table: Reports) -> None:
    table["seaLevelPress"] = table["seaLevelPress"] / 100


def knots(table: Reports) -> None:
    table["windSpeed"] = table["windSpeed"] / np.float32(0.514444)


def twice(table: Reports) -> None:
    for name, column in table.items():
        table[name] = np.concatenate([column, column[::10]])


def nowhere(table: Reports) -> None:
    for name in ("latitude", "longitude"):
        table[name][table["stationName"] == "S003"] = 0


def two_places(table: Reports) -> None:
    table["latitude"][np.flatnonzero(table["stationName"] == "S003")[100:109]] += 2


def exchanged(table: Reports) -> None:
    """All of them, with longitudes that could be latitudes."""
    table["latitude"], table["longitude"] = table["longitude"], table["latitude"]


def one_exchanged(table: Reports) -> None:
    mine = table["stationName"] == "S005"
    table["longitude"][mine] *= -1


def stuck(table: Reports) -> None:
    table["temperature"][table["stationName"] == "S007"] = 290


def impossible(table: Reports) -> None:
    table["temperature"][::50] = 400


def odd_flags(table: Reports) -> None:
    table["windSpeedDD"][::7] = "7"


def feet(table: Reports) -> None:
    table["elevation"] = table["elevation"] / np.float32(0.3048)


def on_mountains(table: Reports) -> None:
    table["elevation"][table["stationName"] < "S010"] += 900


def no_pressure(table: Reports) -> None:
    table["seaLevelPressDD"][:] = "X"


FAULTS: dict[str, tuple[Callable[[Reports], None], str, str]] = {
    "moved": (moved, "error: shifted valid times", "fits the reports -6 h from its valid time best"),
    "celsius": (celsius, "error: units: t2m", "the values fit degC"),
    "hectopascals": (hectopascals, "error: units: msl", "the values fit hPa and not Pa"),
    "knots": (knots, "error: units: 10m_wind_speed", "as between knots and m/s"),
    "twice": (twice, "warning: duplicate reports", "reports have the station and time of another one"),
    "nowhere": (nowhere, "error: stations at (0, 0): S003", "1 stations lie at 0, 0"),
    "two places": (two_places, "error: several positions: S003", "5 km apart or more"),
    "exchanged": (exchanged, "error: positions", "with latitude and longitude exchanged"),
    "west and east": (one_exchanged, "error: positions: S005", "with west and east exchanged"),
    "stuck": (stuck, "warning: constant sensors: t2m of S007", "one value only"),
    "impossible": (
        impossible,
        "warning: impossible values: t2m",
        "2.0% of the values lie outside 180 to 335",
    ),
    "odd flags": (odd_flags, "warning: unknown flags: 10m_wind_speed", "flags ['7']"),
    "feet": (feet, "error: elevation", "as between feet and m"),
    "mountains": (on_mountains, "warning: elevation: S000", "10 of 40 stations lie more than 200 m"),
    "nothing usable": (no_pressure, "error: share matched: msl", "0% of 40 stations"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reports]:
    folder = tmp_path_factory.mktemp("stations")
    forecast().to_netcdf(folder / "ens.nc", engine="h5netcdf")
    table = clean()
    lat, lon = table["latitude"][:STATIONS], table["longitude"][:STATIONS]
    height = np.full((LAT.size, LON.size), 200.0)
    data = {"z": (("latitude", "longitude"), 9.80665 * height, {"units": "m2 s-2"})}
    xr.Dataset(data, {"latitude": LAT, "longitude": LON}).to_netcdf(folder / "z.nc", engine="h5netcdf")
    assert lat.size == lon.size
    return folder, table


def doctor(folder: Path, table: Reports, *options: object) -> int:
    path = folder / "reports.parquet"
    pq.write_table(pa.table(table), path)
    command = [
        "doctor",
        folder / "ens.nc",
        "--stations",
        path,
        "--orography",
        f"{folder / 'z.nc'}:z",
        *options,
    ]
    return main([str(a) for a in command])


def test_no_alarm_on_clean_reports(files: tuple[Path, Reports], capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        assert doctor(*files, "--seed", seed) == 0
        out = capsys.readouterr().out
        assert "0 errors, 0 warnings, 3 notes; fields of 12 of" in out
        assert "note: share matched: t2m: 100% of 40 stations" in out


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_no_other(
    files: tuple[Path, Reports], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, head, text = FAULTS[fault]
    folder, table = files
    table = {name: column.copy() for name, column in table.items()}
    plant(table)
    for name in ("ens.nc", "z.nc"):
        (tmp_path / name).symlink_to(folder / name)
    assert doctor(tmp_path, table) == 1
    out = capsys.readouterr().out
    [found] = [line for line in out.splitlines() if line.startswith(("error", "warning"))]
    assert found.startswith(head)
    assert text in found


def test_a_latitude_beyond_the_pole_and_stations_outside_a_regional_grid(
    files: tuple[Path, Reports], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = files
    table = {name: column.copy() for name, column in table.items()}
    table["latitude"][table["stationName"] == "S011"] = 120
    part = xr.open_dataset(folder / "ens.nc", decode_timedelta=True).sel(latitude=slice(90, 0))
    part.to_netcdf(tmp_path / "ens.nc", engine="h5netcdf")
    pq.write_table(pa.table(table), tmp_path / "r.parquet")
    assert main(["doctor", str(tmp_path / "ens.nc"), "--stations", str(tmp_path / "r.parquet")]) == 1
    out = capsys.readouterr().out
    south = np.unique(table["stationName"][table["latitude"] < 0]).size
    assert "error: latitudes: S011: 1 stations have a latitude beyond 90 degrees" in out
    assert f"{south} of 39 stations lie outside the grid of the forecast" in out
    assert out.count("error") == 3


def test_options_of_the_doctor_that_cannot_be(
    files: tuple[Path, Reports], capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (
        (["--truth-channels", "t3m"], "the reports have no channel ['t3m']"),
        (["--orography", "z.nc"], "--orography needs PATH:VARIABLE"),
        (["--truth-members", "1"], "unknown key 'members' in [truth]"),
    ):
        assert doctor(*files, *options) == 1
        assert message in capsys.readouterr().err


def test_info_on_a_table_of_reports(
    files: tuple[Path, Reports], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, table = files
    path = tmp_path / "reports.parquet"
    pq.write_table(pa.table(table), path)
    assert main(["info", str(path)]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["stations"] == "40"
    assert lines["rows"] == "9600"
    assert lines["reports per station and day"] == "24.1"
    assert lines["2m_temperature [K]"].startswith("9600 usable; flags S ")
    pq.write_table(pa.table({"a": [1.0]}), path)
    assert main(["info", str(path)]) == 0
    assert "columns: a (double)" in capsys.readouterr().out


def test_the_real_table_has_no_fault_of_its_own(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a forecast that is its own monthly mean everywhere: only what depends on the table counts."""
    path = samples / "obs/metar_2020-01_12stations.parquet"
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "stations: 12" in out
    assert "2m_temperature [K]: 34 missing, 19 flagged, 12496 usable; flags Q 19 S 5275 V 7221" in out
    assert "fault" not in out
    data = forecast()[["t2m"]]
    data.to_netcdf(tmp_path / "ens.nc", engine="h5netcdf")
    arguments: list[Any] = ["doctor", tmp_path / "ens.nc", "--stations", path]
    main([str(a) for a in arguments])
    found = [f for f in capsys.readouterr().out.splitlines() if f.startswith(("error", "warning"))]
    table = ("positions", "several", "unknown", "impossible", "constant", "duplicate", "units", "share")
    assert not [f for f in found if any(word in f for word in table)]
