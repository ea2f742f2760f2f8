"""Station reports as the truth of `wx-eval run`, and what becomes of them on the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr

from wx_eval import (
    CRPS,
    FSS,
    PRESETS,
    RMSE,
    Bias,
    DensityWeights,
    HeightCorrection,
    LogSpectralDistance,
    PowerSpectrum,
    Records,
    StationReports,
    at_points,
    evaluate,
    metar,
    scores,
)
from wx_eval._cli import main
from wx_eval._job import Job
from wx_eval._regions import BOXES

pytest.importorskip("h5netcdf", reason="the files of these tests are netCDF")

HOUR = np.timedelta64(1, "h")
DAY = 24 * HOUR
START = np.datetime64("2020-01-01T00", "ns")
LAT, LON = np.linspace(90, -90, 19), np.arange(-180, 180, 15.0)
INITS, LEADS, MEMBERS = 5, 2, 3
CHANNELS = ("2m_temperature", "10m_wind_speed")
NAMES = ("ALFA", "BETA", "GAMA", "DELT", "EPSI", "ZETA")
PLACES = np.array(
    [[52.3, 4.8], [52.1, 5.2], [-33.9, 151.2], [1.4, 103.9], [64.1, 338.0], [40.6, 286.2]], np.float32
)
HEIGHTS = np.array([-3, 2, 6, 7, 52, 4], np.float32)


def wx_eval(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def forecast() -> xr.Dataset:
    shape = (INITS, LEADS, MEMBERS, LAT.size, LON.size)
    noise = np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32)
    dims = ("init_time", "lead_time", "member", "latitude", "longitude")
    coords = {
        "init_time": START + DAY * np.arange(INITS),
        "lead_time": (DAY * np.arange(1, LEADS + 1)).astype("timedelta64[ns]"),
        "member": np.arange(MEMBERS),
        "latitude": LAT,
        "longitude": LON,
    }
    data = {
        "2m_temperature": (dims, 280 + 5 * noise[0], {"units": "K"}),
        "10m_wind_speed": (dims, np.abs(8 * noise[1]), {"units": "m s-1"}),
    }
    return xr.Dataset(data, coords)


def reports(days: int = INITS + LEADS) -> pa.Table:
    """Every 50 minutes or so; some flagged, absent or impossible."""
    rng = np.random.default_rng(2)
    minutes = np.sort(rng.integers(-40, days * 1440, 30 * days * len(NAMES)))
    station = rng.integers(0, len(NAMES), minutes.size)
    temperature = (281 + 6 * rng.standard_normal(minutes.size)).astype(np.float32)
    temperature[rng.uniform(size=minutes.size) < 0.05] = np.nan
    temperature[rng.uniform(size=minutes.size) < 0.02] = 700
    flags = rng.choice(list("SVQX"), minutes.size, p=[0.7, 0.15, 0.1, 0.05])
    return pa.table(
        {
            "stationName": np.array(NAMES)[station],
            "timeObs": START + minutes * np.timedelta64(1, "m"),
            "latitude": PLACES[station, 0],
            "longitude": PLACES[station, 1],
            "elevation": HEIGHTS[station],
            "temperature": temperature,
            "temperatureDD": flags,
            "windSpeed": np.abs(5 * rng.standard_normal(minutes.size)).astype(np.float32),
            "windSpeedDD": np.full(minutes.size, "S"),
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    forecast().to_netcdf(tmp_path / "ens.nc", engine="h5netcdf")
    pq.write_table(reports(), tmp_path / "metar.parquet")
    write(tmp_path)
    return tmp_path


CONFIG = """
model = "ens"
output = "ens.parquet"
forecast = "ens.nc"
metrics = ["crps_fair", "rmse", "bias"]
regions = ["global", "nh"]
weights = "density(radius_km=100)"

[truth]
stations = "metar.parquet"
"""


def write(folder: Path, more: str = "", change: Callable[[str], str] = str) -> None:
    (folder / "run.toml").write_text(change(CONFIG) + more)


def truth(folder: Path, **choices: Any) -> StationReports:
    times = START + DAY * np.arange(1, INITS + LEADS)
    return StationReports(path=folder / "metar.parquet", times=times, variables=metar(*CHANNELS), **choices)


def array() -> xr.DataArray:
    """The forecast with the channel names of the reports."""
    data = forecast()
    found = xr.concat([data[c] for c in CHANNELS], "channel").assign_coords(
        channel=list(CHANNELS), units=("channel", ["K", "m s-1"])
    )
    return found.transpose("init_time", "lead_time", "member", "channel", "latitude", "longitude")


def expected(
    folder: Path, method: Any = "bilinear", observed: StationReports | None = None, **choices: Any
) -> Records:
    """By the functions that a script calls."""
    observed = truth(folder) if observed is None else observed
    return evaluate(
        at_points(array(), observed.grid, method=method, **choices),
        observed,
        model="ens",
        metrics=[CRPS("fair"), RMSE(), Bias()],
        regions=["global", "nh"],
        weights=DensityWeights(radius_km=100),
    )


def numbers(records: Records) -> xr.Dataset:
    """With the names of channels in files of forecasts."""
    found = records.to_xarray()
    named = {"2m_temperature": "t2m"}
    return found.assign_coords(channel=[named.get(c, c) for c in found["channel"].values]).sortby("channel")


def kept(folder: Path, name: str = "ens.parquet") -> Records:
    return Records.from_parquet(folder / name)


def test_a_run_equals_the_functions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wx_eval("run", folder / "run.toml") == 0
    assert "40 rows of 5 starts, 2 lead times, channels 10m_wind_speed, t2m" in capsys.readouterr().out
    got = kept(folder)
    xr.testing.assert_equal(numbers(got), numbers(expected(folder)))
    # The same grid with longitudes that do not increase.
    turned = forecast().assign_coords(longitude=LON % 360)
    turned.to_netcdf(folder / "turned.nc", engine="h5netcdf")
    options = ["--forecast", folder / "turned.nc", "-o", folder / "turned.parquet", "--quiet"]
    assert wx_eval("run", folder / "run.toml", *options) == 0
    assert kept(folder, "turned.parquet").table.equals(got.table)
    c = got.conventions
    assert c.weights == "density(count 100 km)"
    assert c.interpolation == "bilinear"
    assert c.truth.startswith("metar, stations nearest, tie before within 30 min of timeObs; ")
    assert "t2m from temperature not BQXZk 180 to 335" in c.truth
    assert c.units == {"t2m": "K", "10m_wind_speed": "m s-1"}


def test_rules_of_reports_reach_them(folder: Path) -> None:
    write(
        folder,
        'name = "network"\ntie = "after"\nwindow = "1h"\nexclude = ["BETA"]\nwithin = [[-40, 90], [0, 350]]\n'
        'rename = {"2m_temperature" = "t2m", "10m_wind_speed" = "speed"}\n[forecast]\npath = "ens.nc"\n'
        'rename = {10m_wind_speed = "speed"}\n',
        lambda text: text.replace('forecast = "ens.nc"', ""),
    )
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    observed = truth(folder, tie="after", tolerance=HOUR, exclude=["BETA"], within=((-40, 90), (0, 350)))
    assert len(observed.stations) == 5
    right = numbers(expected(folder, observed=observed))
    left = numbers(kept(folder))
    assert left["channel"].values.tolist() == ["speed", "t2m"]
    xr.testing.assert_equal(left.assign_coords(channel=["10m_wind_speed", "t2m"]), right)
    assert kept(folder).conventions.truth.startswith("network, stations nearest, tie after within 60 min")
    assert not left.equals(numbers(expected(folder)))


def test_one_figure_from_the_rows_of_the_table(folder: Path) -> None:
    """Nearest grid point, mean of the reports of 20 minutes, equal weights, by loops."""
    more = 'window = "20min"\npick = "mean"\nchannels = ["t2m"]\n[stations]\ninterpolation = "nearest"\n'
    write(folder, more, lambda text: text.replace('weights = "density(radius_km=100)"', ""))
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    got = kept(folder)
    assert got.conventions.weights == "equal"
    found = got.to_xarray().isel(model=0, channel=0).sel(region="global")
    rows = reports().to_pylist()
    fields = forecast()["2m_temperature"].values.astype(np.float64)
    for i in range(INITS):
        for k in range(LEADS):
            now = START + DAY * (i + 1 + k)
            errors = []
            for name, (lat, lon) in zip(NAMES, PLACES, strict=True):
                used = [
                    r["temperature"]
                    for r in rows
                    if r["stationName"] == name
                    and abs(np.datetime64(r["timeObs"], "ns") - now) <= np.timedelta64(20, "m")
                    and r["temperatureDD"] in "SV"
                    and 180 <= r["temperature"] <= 335
                ]
                # No station lies near the edge between two cells.
                place = np.abs(LAT - lat).argmin(), np.abs((LON - lon + 180) % 360 - 180).argmin()
                if used:
                    errors.append(fields[i, k, :, *place].mean() - np.mean(used))
            at = {"init_time": START + DAY * i, "lead_time": DAY * (k + 1)}
            assert found["n"].sel(at) == len(errors)
            np.testing.assert_allclose(found["error_mean"].sel(at), np.mean(errors), rtol=1e-6, atol=1e-6)


def test_nearest_land_and_height(folder: Path) -> None:
    rng = np.random.default_rng(4)
    share = rng.uniform(size=(LAT.size, LON.size))
    height = rng.uniform(0, 3000, (LAT.size, LON.size))
    axes = {"latitude": LAT[::-1], "longitude": (LON + 360) % 360}
    dims = ("latitude", "longitude")
    xr.Dataset({"lsm": (dims, share[::-1])}, axes).to_netcdf(folder / "land.nc", engine="h5netcdf")
    z = xr.Dataset({"z": (dims, 9.80665 * height[::-1], {"units": "m**2 s**-2"})}, axes)
    z.to_netcdf(folder / "z.nc", engine="h5netcdf")
    write(
        folder,
        '[stations]\ninterpolation = "nearest_land"\norography = {path = "z.nc", variable = "z"}\n'
        '[land]\npath = "land.nc"\nvariable = "lsm"\n',
    )
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    correction = HeightCorrection(orography=height, elevation=truth(folder).elevation)
    same = expected(folder, "nearest_land", land_fraction=share, height=correction)
    assert kept(folder).conventions.interpolation == "nearest_land, height t2m=6.5 K/km"
    left, right = numbers(kept(folder)), numbers(same)
    xr.testing.assert_allclose(left, right, rtol=1e-6)
    plain = numbers(expected(folder, "nearest_land", land_fraction=share))
    assert np.abs(plain["error_mean"] - left["error_mean"]).sel(channel="t2m").max() > 1
    np.testing.assert_array_equal(
        plain["error_mean"].sel(channel="10m_wind_speed"), left["error_mean"].sel(channel="10m_wind_speed")
    )


def test_a_climatology_serves_the_control_and_the_anomalies(folder: Path) -> None:
    """Everything is 281 K and 3 K wide in it: of the reports those within two standard deviations count."""
    coords = {"hour": [0], "dayofyear": np.arange(1, 367), "latitude": LAT, "longitude": LON}
    dims = tuple(coords)
    shape = tuple(len(v) for v in coords.values())
    data = {"t2m": (dims, np.full(shape, 281.0)), "t2m_std": (dims, np.full(shape, 3.0))}
    attrs = {"name": "flat", "calendar": "monthday"}
    xr.Dataset(data, coords, attrs).to_netcdf(folder / "flat.nc", engine="h5netcdf")
    write(
        folder,
        'channels = ["t2m"]\nsigmas = 2\n[climatology]\npath = "flat.nc"\n',
        lambda text: text.replace('"bias"]', '{type = "ACC", kind = "pooled"}]'),
    )
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    c = kept(folder).conventions
    assert c.truth.endswith("within 2 sd of flat, bilinear")
    assert c.climatology == "flat, bilinear"
    found = kept(folder).to_xarray().isel(model=0, channel=0).sel(region="global")
    states = truth(folder).read(START + DAY * np.arange(1, INITS + LEADS)).sel(channel="2m_temperature")
    rows = reports().to_pylist()
    usable = np.zeros((INITS + LEADS - 1, len(NAMES)))
    for t, time in enumerate(states["time"].values):
        for s, name in enumerate(sorted(NAMES)):
            usable[t, s] = any(
                r["stationName"] == name
                and abs(np.datetime64(r["timeObs"], "ns") - time) <= 30 * np.timedelta64(1, "m")
                and r["temperatureDD"] in "SV"
                and abs(r["temperature"] - 281) <= 6
                for r in rows
            )
    for k in range(LEADS):
        np.testing.assert_array_equal(found["n"].isel(lead_time=k), usable[k : k + INITS].sum(axis=1))
    assert 0 < usable.mean() < 1


def test_the_same_bytes_by_workers_and_after_an_interruption(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = folder / "whole"
    assert wx_eval("run", folder / "run.toml", "-o", whole, "--quiet") == 0
    assert wx_eval("run", folder / "run.toml", "-o", folder / "two", "--quiet", "--workers", 2) == 0
    some = ["--inits", "2020-01-02/2020-01-03", "-o", folder / "parts", "--quiet"]
    assert wx_eval("run", folder / "run.toml", *some) == 0
    assert len(kept(folder, "parts").init_times) == 2
    assert wx_eval("run", folder / "run.toml", "-o", folder / "parts", "--quiet") == 0
    assert kept(folder, "parts") == kept(folder, "whole")
    assert (folder / "two").read_bytes() == whole.read_bytes()

    def stopped(job: Job, start: np.datetime64, scored: Any = Job.records) -> Records:
        if start == START + 3 * DAY:
            raise KeyboardInterrupt
        return scored(job, start)  # type: ignore[no-any-return]

    monkeypatch.setattr(Job, "records", stopped)
    assert wx_eval("run", folder / "run.toml", "-o", folder / "again", "--quiet") == 130
    assert len(list((folder / "again.parts").glob("2*.parquet"))) == 3
    monkeypatch.undo()
    assert wx_eval("run", folder / "run.toml", "-o", folder / "again", "--quiet") == 0
    assert (folder / "again").read_bytes() == whole.read_bytes()


def test_the_same_by_options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wx_eval("run", folder / "run.toml", "--interpolation", "nearest", "--quiet") == 0
    monkeypatch.chdir(folder)
    options = ["--model", "ens", "-o", "x.parquet", "--forecast", "ens.nc", "--stations", "metar.parquet"]
    options += [f"--metric={m}" for m in ("crps_fair", "rmse", "bias")]
    options += ["--weights", "density(radius_km=100)", "--interpolation", "nearest", "--regions", "global,nh"]
    assert wx_eval("run", *options, "--quiet") == 0
    assert kept(folder, "x.parquet") == kept(folder)
    # Paths among the options start at the working directory.
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    options = ["--stations", "../metar.parquet", "--interpolation", "nearest", "-o", "y.parquet", "--quiet"]
    assert wx_eval("run", "../run.toml", *options) == 0
    assert kept(folder, "elsewhere/y.parquet") == kept(folder)


def test_a_table_in_long_form_with_named_variables(folder: Path) -> None:
    """The same reports, one value per row, in degrees Celsius, under names of their own."""
    wide = reports()
    rows = [
        {
            "id": r["stationName"], "when": r["timeObs"], "lat": r["latitude"], "lon": r["longitude"],
            "what": "T", "v": r["temperature"] - 273.15, "qc": r["temperatureDD"],
        }
        for r in wide.to_pylist()
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "long.parquet")
    write(
        folder,
        'window = "30min"\n'
        'layout = {station = "id", time = "when", latitude = "lat", longitude = "lon", elevation = "", '
        'variable = "what", value = "v", flag = "qc"}\n'
        'variables = [{column = "T", channel = "t2m", unit = "degC", to = "K", '
        'reject = ["B", "Q", "X", "Z", "k"], limits = [180, 335]}]\n',
        lambda text: text.replace("metar.parquet", "long.parquet"),
    )
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    left = numbers(kept(folder)).sel(channel="t2m")
    right = numbers(expected(folder)).sel(channel="t2m")
    xr.testing.assert_allclose(left, right, rtol=1e-5)
    assert (left["n"] == right["n"]).all()


def test_components_of_the_wind(folder: Path) -> None:
    """Speed and direction of the reports as the eastward component, by a loop at one time."""
    table = reports()
    direction = np.random.default_rng(9).integers(1, 361, table.num_rows).astype(np.float32)
    pq.write_table(table.append_column("windDir", pa.array(direction)), folder / "metar.parquet")
    write(
        folder,
        'variables = [{column = "windSpeed", direction = "windDir", component = "u", channel = "u10", '
        'unit = "m s-1"}]\n[stations]\ninterpolation = "nearest"\n[forecast]\npath = "ens.nc"\n'
        'rename = {10m_wind_speed = "u10"}\n',
        lambda text: text.replace('forecast = "ens.nc"', "").replace("density(radius_km=100)", "equal"),
    )
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    found = kept(folder).to_xarray().isel(model=0, channel=0, init_time=0, lead_time=0).sel(region="global")
    field = forecast()["10m_wind_speed"].values[0, 0].astype(np.float64).mean(axis=0)
    errors = []
    for name, (lat, lon) in zip(NAMES, PLACES, strict=True):
        late = [
            (abs(away), away, row["windSpeed"], turn)
            for row, turn in zip(table.to_pylist(), direction.tolist(), strict=True)
            if row["stationName"] == name
            and abs(away := (np.datetime64(row["timeObs"], "ns") - START - DAY) / HOUR) <= 0.5
        ]
        place = np.abs(LAT - lat).argmin(), np.abs((LON - lon + 180) % 360 - 180).argmin()
        if late:
            _, _, speed, turn = min(late)
            errors.append(field[place] + speed * np.sin(np.deg2rad(turn)))
    assert found["n"] == len(errors) > 2
    np.testing.assert_allclose(found["error_mean"], np.mean(errors), rtol=1e-6)


def test_persistence_at_stations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """States on a grid that were kept for a day, as a forecast whose values are those states."""
    states = forecast().isel(lead_time=0, member=0, drop=True).rename(init_time="time")
    states.to_netcdf(folder / "states.nc", engine="h5netcdf")
    common = CONFIG.replace('forecast = "ens.nc"', 'leads = "1d/2d/1d"\ninits = "2020-01-01/2020-01-04"')
    section = '[forecast]\nbaseline = "persistence"\npath = "states.nc"\n'
    (folder / "run.toml").write_text(common + section)
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    same = forecast().isel(member=[0], init_time=slice(0, 4))
    same.isel(lead_time=[0, 0]).assign_coords(lead_time=same["lead_time"]).to_netcdf(
        folder / "still.nc", engine="h5netcdf"
    )
    write(folder, change=lambda text: text.replace("ens.nc", "still.nc").replace("ens.parquet", "s.parquet"))
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    assert kept(folder, "s.parquet") == kept(folder)
    # The stations are those of the period, which decides on the rows: another one needs another file.
    (folder / "run.toml").write_text(common.replace("2020-01-04", "2020-01-05") + section)
    assert wx_eval("run", folder / "run.toml", "--quiet") == 1
    assert "is of another configuration" in capsys.readouterr().err


def test_times_without_any_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(reports(days=4), folder / "metar.parquet")
    assert wx_eval("run", folder / "run.toml", "--quiet") == 1
    err = capsys.readouterr().err
    assert "truth has no report at 2020-01-06T00:00:00, valid time of 2020-01-04T00:00:00 + 48 h" in err
    assert not (folder / "ens.parquet.parts").exists()
    assert wx_eval("run", folder / "run.toml", "--quiet", "--missing-truth", "drop") == 0
    rows = kept(folder).to_xarray().isel(model=0).sel(region="global", channel="10m_wind_speed")
    valid = rows["init_time"] + rows["lead_time"]
    xr.testing.assert_equal(rows["n"] > 0, valid.transpose(*rows["n"].dims) <= START + 4 * DAY)


REFUSALS: dict[str, str] = {
    'windo = "1h"': "unknown key 'windo' in [truth], did you mean 'window'?",
    'channels = ["t850"]': "the reports have no channel ['t850']; they have ['t2m', 'd2m', '10m_wind_speed'",
    'tie = "first"': "truth.tie must be one of before, after, got 'first'",
    "window = 30": "expected a duration such as",
    "sigmas = 5": "truth.sigmas needs a climatology",
    "within = [1, 2]": "truth.within must be [[south, north], [west, east]]",
    "within = [[80, 90], [0, 10]]": "check times and within",
    'layout = {stations = "id"}': "unknown key 'stations' in [truth.layout], did you mean 'station'?",
    'layout = {station = "id"}': "has no column ['id']",
    'variables = [{column = "T"}]': "[truth.variables] is not complete",
    '[stations]\ninterpolation = "cubic"': "stations.interpolation must be one of bilinear",
    '[stations]\ninterpolation = "nearest_land"': "needs the section land",
    '[land]\npath = "ens.nc"\nvariable = "z"': "nothing uses the section land",
    'exclude = ["BETTA"]': "exclude names ['BETTA'], which are no stations of",
    'rename = {t2mm = "t2m"}': "truth.rename names ['t2mm'], which are no channels of the reports",
    'channels = ["t2m", "msl"]': "the truth names the channels ['t2m', 'msl'] and the forecast has no",
    'variables = [{column = "temperature", channel = "t3m", unit = "K"}, '
    '{column = "windSpeed", channel = "10m_wind_speed", unit = "m s-1"}]': "the forecast has no ['t3m']",
    '[stations.orography]\npath = "ens.nc"\nvariable = "z"\nrates = {t3m = 0.0065}': (
        "stations.orography.rates names ['t3m'] and the forecast has ['t2m', '10m_wind_speed']"
    ),
    '[regrid]\nmethod = "bilinear"': "choose stations.interpolation",
    '[stations.orography]\npath = "ens.nc"': "[stations.orography] is not complete",
    '[stations.orography]\npath = "ens.nc"\nvariable = "z"': "has no variable 'z'",
}


@pytest.mark.parametrize("line", REFUSALS)
def test_refusals_are_one_line(folder: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, line)
    assert wx_eval("run", folder / "run.toml", "--quiet") == 1
    err = capsys.readouterr().err
    assert REFUSALS[line] in err
    assert err.count("\n") == 1
    assert not (folder / "ens.parquet.parts").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "wbx"], "sets the weights"),
        (["--weights", "cell"], "weights 'cell' need a latitude-longitude grid"),
        (["--weights", "dense"], "weights must be one of cell, cell-wb2"),
        (["--weights", "density(radius=3)"], "unknown key 'radius' in [weights], did you mean 'radius_km'?"),
        (["--weights", "density(radius_km='3')"], "weights.radius_km must be a number"),
        (["--truth", "x.nc"], "no file"),
    ],
)
def test_refused_options(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wx_eval("run", folder / "run.toml", *options, "--quiet") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_goes_with_stations(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They weigh the cells of a grid: one error, from the command line and from Python."""
    write(
        folder, change=lambda text: text.replace('weights = "density(radius_km=100)"', f'preset = "{name}"')
    )
    assert wx_eval("run", folder / "run.toml") == 1
    err = capsys.readouterr().err
    assert f"preset '{name}' weights cells of a grid and stations have none: name metrics, regions" in err
    assert err.count("\n") == 1
    observed = truth(folder)
    chunks = at_points(array(), observed.grid)
    with pytest.raises(ValueError, match=f"weights '{PRESETS[name].weights}' need a latitude-longitude"):
        PRESETS[name].evaluate(chunks, observed, model="ens", metrics=[RMSE()])


def test_the_metrics_of_every_preset_run_at_stations(folder: Path) -> None:
    """With weights of stations; those that need a climatology have their own error elsewhere."""
    observed = truth(folder)
    for preset in PRESETS.values():
        free = [
            m
            for m in preset.metrics
            if type(m).__name__ not in ("ACC", "Activity", "MSESkill", "WindRMSE")
            and "quantile" not in m.name
        ]
        records = evaluate(
            at_points(array(), observed.grid), observed, model="ens", metrics=free, regions=["global"],
            weights=DensityWeights(),
        )  # fmt: skip
        found = scores(records)
        for metric in free:
            assert np.isfinite(found[metric.name].values).any(), metric.name


def test_what_needs_a_grid_says_so_at_stations(folder: Path) -> None:
    observed = truth(folder)
    for metric, message in (
        (PowerSpectrum(), "spectra need a latitude-longitude grid, got a mesh of 6 points"),
        (LogSpectralDistance(), "spectra need a latitude-longitude grid"),
        (FSS(280.0, window=3), "a window of grid points needs a latitude-longitude grid: give radius_km"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(
                at_points(array(), observed.grid), observed, model="ens", metrics=[metric],
                regions=["global"], weights="equal",
            )  # fmt: skip


def test_named_regions_at_stations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any named, those of the default that hold a station; a named one without is an error."""
    write(folder, change=lambda text: text.replace('regions = ["global", "nh"]\n', ""))
    options = ["--quiet", "--regions"]
    (folder / "run.toml").write_text((folder / "run.toml").read_text() + "within = [[30, 90], [0, 360]]\n")
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    assert kept(folder).regions == ["global", "nh"]
    for name in BOXES:
        # Amsterdam and its neighbour, Reykjavik, New York, which is east of north-america.
        held = name in ("global", "nh", "europe", "north-atlantic", "arctic")
        code = wx_eval("run", folder / "run.toml", "-o", folder / f"{name}.parquet", *options, name)
        assert code == (0 if held else 1), name
        err = capsys.readouterr().err
        assert held or f"region '{name}' holds no point of the grid: leave it out" in err


def test_land_regions_at_stations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A station is on land where its nearest grid point is."""
    share = np.random.default_rng(4).uniform(size=(LAT.size, LON.size))
    axes = {"latitude": LAT, "longitude": LON}
    xr.Dataset({"lsm": (("latitude", "longitude"), share)}, axes).to_netcdf(
        folder / "land.nc", engine="h5netcdf"
    )
    section = '[land]\npath = "land.nc"\nvariable = "lsm"\n'
    write(folder, section, lambda text: text.replace('"nh"]', '"global_land"]'))
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    rows = np.abs(LAT[:, None] - PLACES[:, 0]).argmin(axis=0)
    columns = np.abs((LON[:, None] - PLACES[:, 1] + 180) % 360 - 180).argmin(axis=0)
    land = dict(zip(NAMES, share[rows, columns] >= 0.5, strict=True))
    assert 0 < sum(land.values()) < len(NAMES)
    same = truth(folder, exclude=[name for name in NAMES if not land[name]])
    right = expected(folder, observed=same).to_xarray().sel(region="global")["n"].values
    left = numbers(kept(folder)).sel(region="global_land")["n"].values
    assert left.sum() == right.sum()
    write(folder, change=lambda text: text.replace('"nh"]', '"global_land"]'))
    assert wx_eval("run", folder / "run.toml", "-o", folder / "x", "--quiet") == 1
    assert "region 'global_land' needs land_fraction" in capsys.readouterr().err


def test_stations_of_a_truth_on_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'model = "m"\noutput = "o"\nforecast = "f"\ntruth = "t"\n[stations]\n'
    (tmp_path / "run.toml").write_text(text)
    assert wx_eval("run", tmp_path / "run.toml") == 1
    assert "[stations] is for reports as the truth" in capsys.readouterr().err
