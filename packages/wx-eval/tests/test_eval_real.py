"""Real files through the command line; one figure of each is confirmed by reading the file in another way."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from wx_eval import Records
from wx_eval._cli import main

HOURS = 3600
Fields = dict[tuple[str, int, int, int], np.ndarray]


def messages(path: Path) -> Fields:
    """(short name, level, lead in hours, member) to values (H, W), from eccodes alone."""
    eccodes = pytest.importorskip("eccodes", reason="GRIB files need eccodes")
    pytest.importorskip("cfgrib", reason="GRIB files need cfgrib")
    found: Fields = {}
    with path.open("rb") as file:
        while (message := eccodes.codes_grib_new_from_file(file)) is not None:
            member = (
                eccodes.codes_get(message, "number") if eccodes.codes_is_defined(message, "number") else 0
            )
            base = eccodes.codes_get(message, "dataDate"), eccodes.codes_get(message, "dataTime")
            key = (
                f"{eccodes.codes_get(message, 'shortName')} {base[0]} {base[1]:04}",
                eccodes.codes_get(message, "level"),
                eccodes.codes_get(message, "endStep"),
                member,
            )
            shape = eccodes.codes_get(message, "Nj"), eccodes.codes_get(message, "Ni")
            found[key] = eccodes.codes_get_values(message).reshape(shape)
            eccodes.codes_release(message)
    return found


def run(*arguments: object) -> None:
    assert main([str(a) for a in ("run", *arguments, "--quiet")]) == 0


def number(path: Path, statistic: str, channel: str, lead_hours: float, start: int = 0) -> float:
    """A statistic of the region "global" at one lead time."""
    rows = Records.from_parquet(path).to_xarray().isel(model=0).sel(region="global", channel=channel)
    lead = np.timedelta64(round(lead_hours * HOURS), "s")
    return float(rows[statistic].sel(lead_time=lead)[start])


def latitude_weights(north: float, south: float, rows: int, *, poles: bool) -> np.ndarray:
    """Areas between midpoints; edge rows of a crop reach half a step further."""
    step = (north - south) / (rows - 1)
    edges = np.clip(north + step / 2 - step * np.arange(rows + 1), -90, 90)
    assert poles == (north == 90)
    return -np.diff(np.sin(np.deg2rad(edges)))


def fair_crps(members: Sequence[np.ndarray], truth: np.ndarray, weights: np.ndarray) -> float:
    """From all pairs of members."""
    x = np.stack(members).astype(np.float64)
    m = len(x)
    pairs = sum(np.abs(a - x).sum(axis=0) for a in x)
    field = np.abs(x - truth).mean(axis=0) - pairs / (2 * m * (m - 1))
    return float(np.average(field.mean(axis=1), weights=weights))


def test_ifs_ens_z500(samples: Path, tmp_path: Path) -> None:
    """50 members against their control."""
    path = samples / "ifs_ens/z500_ens.grib"
    found = {k[3]: v for k, v in messages(path).items()}
    assert len(found) == 51
    out = tmp_path / "z500.parquet"
    sources = ["--forecast", path, "--forecast-members", "1-50", "--truth", path, "--truth-members", "0"]
    run("--model", "ens", "-o", out, *sources, "--weights", "cell-wbx", "--regions", "global")
    expected = fair_crps(
        [found[m] for m in range(1, 51)], found[0], latitude_weights(65, 20, 46, poles=False)
    )
    # eccodes unpacks to float64, cfgrib to float32.
    assert number(out, "crps_fair", "z500", 96) == pytest.approx(expected, rel=1e-6)


def test_ifs_ens_storm_and_high_resolution_forecast(samples: Path, tmp_path: Path) -> None:
    """Control and 50 members against HRES, gust at three lead times and z850 at one of them."""
    ens, hres = samples / "ifs_ens/ens_storm.grib", samples / "ifs_ens/fc_storm.grib"
    members, truth = messages(ens), messages(hres)
    out = tmp_path / "storm.parquet"
    run(
        *("--model", "ens", "-o", out, "--forecast", ens, "--truth", hres),
        *("--weights", "cell-wbx", "--regions", "global", "--metric", "crps_fair", "--metric", "rmse"),
    )
    records = Records.from_parquet(out)
    assert sorted(zip(*(records.table[c].to_pylist() for c in ("channel", "members")), strict=True)) == [
        ("fg10_3", 51),
        ("fg10_3", 51),
        ("fg10_3", 51),
        ("z850", 51),
    ]
    weights = latitude_weights(66, 43.5, 31, poles=False)
    z = {k: v for k, v in members.items() if k[0].startswith("z ")}
    [reference] = [v for k, v in truth.items() if k[0].startswith("z ")]
    assert number(out, "crps_fair", "z850", 78) == pytest.approx(
        fair_crps(list(z.values()), reference, weights), rel=1e-6
    )
    gust = np.stack([v for k, v in members.items() if not k[0].startswith("z ") and k[2] == 84])
    [reference] = [v for k, v in truth.items() if not k[0].startswith("z ") and k[2] == 84]
    mse = np.average(((gust.mean(axis=0) - reference) ** 2).mean(axis=1), weights=weights)
    assert number(out, "mse_mean", "fg10_3", 84) == pytest.approx(mse, rel=1e-5)


def test_ifs_ens_gusts(samples: Path, tmp_path: Path) -> None:
    """49 members against the first."""
    path = samples / "ifs_ens/wgust_ens.grib"
    found = {k[2:]: v for k, v in messages(path).items()}
    out = tmp_path / "gust.parquet"
    run(
        *("--model", "ens", "-o", out, "--forecast", path, "--forecast-members", "2-50"),
        *("--forecast-rename", "fg10_6=gust", "--truth", path, "--truth-members", "1"),
        *("--truth-rename", "fg10_6=gust", "--weights", "cos", "--regions", "europe,global"),
        *("--metric", "crps_fair", "--metric", "Brier(threshold=20.0)", "--leads", "60h,72h"),
    )
    assert Records.from_parquet(out).lead_times.size == 2
    weights = np.cos(np.deg2rad(np.linspace(75, 35, 41)))
    others, truth = np.stack([found[72, m] for m in range(2, 51)]), found[72, 1]
    assert number(out, "crps_fair", "gust", 72) == pytest.approx(
        fair_crps(list(others), truth, weights), rel=1e-5
    )
    error = ((others > 20).mean(axis=0) - (truth > 20)) ** 2
    records = Records.from_parquet(out)
    [square] = [s for s in records.statistics if "square" in s]
    expected = np.average(error.mean(axis=1), weights=weights)
    assert expected > 0
    assert number(out, square, "gust", 72) == pytest.approx(expected, rel=1e-9)


def test_era5_ensemble_of_analyses(samples: Path, tmp_path: Path) -> None:
    """Nine perturbed analyses against the control, four times, on the globe with poles."""
    path = samples / "era5/era5_eda10_z_t_500_850_20170101.grib"
    found = messages(path)
    out = tmp_path / "eda.parquet"
    sources = ["--forecast", path, "--forecast-members", "1-9", "--truth", path, "--truth-members", "0"]
    run("--model", "eda", "-o", out, *sources, "--preset", "atlas")
    records = Records.from_parquet(out)
    assert len(records) == 4 * 4 * 4
    assert records.channels == ["t500", "t850", "z500", "z850"]
    weights = latitude_weights(90, -90, 61, poles=True)
    t850 = {k[3]: v for k, v in found.items() if k[0] == "t 20170102 1200" and k[1] == 850}
    assert sorted(t850) == list(range(10))
    expected = fair_crps([t850[m] for m in range(1, 10)], t850[0], weights)
    assert number(out, "crps_fair", "t850", 0, start=3) == pytest.approx(expected, rel=1e-6)


def test_ifs_forecast_regridded(samples: Path, tmp_path: Path) -> None:
    """A deterministic forecast of one file against itself, both conservatively on 12 x 24."""
    path = samples / "ifs_fc/ifs_ztu_5deg_20180404T12_step0-36.grib"
    pytest.importorskip("cfgrib", reason="GRIB files need cfgrib")
    out = tmp_path / "regridded.parquet"
    common = ["--model", "fc", "--forecast", path, "--truth", path, "--regions", "global", "--metric", "bias"]
    run(*common, "-o", out, "--regrid", "conservative:12x24")
    records = Records.from_parquet(out)
    assert records.conventions.grid.startswith("12 x 24 ")
    assert records.lead_times.size == 4
    np.testing.assert_array_equal(records.table["error_mean"].to_numpy(), 0.0)


def test_a_series_of_forecast_files_as_truth(samples: Path, tmp_path: Path) -> None:
    """An analysis kept for 6 h, against the series that a file makes of its steps 0 and 6 h."""
    pytest.importorskip("h5netcdf")
    path = samples / "ifs_fc/ifs_pl_10deg_20240603-04_step0-6.grib"
    found = messages(path)
    analysis, later = (found["t 20240603 1200", 850, lead, 0] for lead in (0, 6))
    coords = {
        "init_time": np.datetime64("2024-06-03T12", "ns"),
        "lead_time": np.timedelta64(6, "h").astype("timedelta64[ns]"),
        "latitude": np.linspace(90, -90, 19),
        "longitude": np.arange(0, 360, 10.0),
    }
    still = xr.Dataset({"t850": (("latitude", "longitude"), analysis, {"units": "K"})}, coords)
    still.to_netcdf(tmp_path / "still.nc", engine="h5netcdf")
    out = tmp_path / "still.parquet"
    run(
        *("--model", "still", "-o", out, "--forecast", tmp_path / "still.nc", "--truth", path),
        *("--regions", "global", "--metric", "mae"),
    )
    weights = latitude_weights(90, -90, 19, poles=True)
    expected = np.average(np.abs(analysis - later).mean(axis=1), weights=weights)
    assert expected > 0.1
    assert number(out, "mae_mean", "t850", 6) == pytest.approx(expected, rel=1e-6)


def test_climate_ensemble_at_a_point(samples: Path, tmp_path: Path) -> None:
    """Members 2 to 40 against member 1, ten days of 6-hourly states in a calendar without leap days."""
    path = samples / "members/cesm_lens40_point_ts_6hourly_1990-1995.nc"
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("h5netcdf")
    out = tmp_path / "point.parquet"
    run(
        *("--model", "lens", "-o", out, "--forecast", path, "--forecast-members", "2-35,101-105"),
        *("--forecast-lead-time", "0h", "--truth", path, "--truth-members", "1", "--weights", "equal"),
        *("--inits", "1992-02-25/1992-03-05", "--regions", "global"),
    )
    with h5py.File(path) as file:
        days = file["time"][:]
        values = file["TS"][:].astype(np.float64)
    # Days since 1850 in years of 365 days: 142 years and 31 + 24 days.
    first = int(np.flatnonzero(days == 142 * 365 + 55)[0])
    records = Records.from_parquet(out)
    starts = records.init_times.astype("datetime64[h]").astype(str).tolist()
    assert starts[0] == "1992-02-25T00"
    assert "1992-02-29T00" not in starts
    assert len(starts) == 4 * 8 + 1
    k = starts.index("1992-03-01T06")
    x, y = values[1:, first + k], values[0, first + k]
    m = len(x)
    expected = np.abs(x - y).mean() - np.abs(x[:, None] - x).sum() / (2 * m * (m - 1))
    assert number(out, "crps_fair", "TS", 0, start=k) == pytest.approx(expected, rel=1e-5)


PAIRS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "z500": (
        "ifs_ens/z500_ens.grib",
        "ifs_ens/z500_ens.grib",
        ("--forecast-members", "1-50", "--truth-members", "0"),
    ),
    "storm": ("ifs_ens/ens_storm.grib", "ifs_ens/fc_storm.grib", ()),
    "gust": (
        "ifs_ens/wgust_ens.grib",
        "ifs_ens/wgust_ens.grib",
        ("--forecast-members", "2-50", "--truth-members", "1"),
    ),
    "analyses": (
        "era5/era5_eda10_z_t_500_850_20170101.grib",
        "era5/era5_eda10_z_t_500_850_20170101.grib",
        ("--forecast-members", "1-9", "--truth-members", "0"),
    ),
    "climate": (
        "members/cesm_lens40_point_ts_6hourly_1990-1995.nc",
        "members/cesm_lens40_point_ts_6hourly_1990-1995.nc",
        ("--forecast-members", "2-35", "--truth-members", "1", "--forecast-lead-time", "0h"),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_doctor_finds_nothing_in_real_files(
    samples: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast, truth, options = PAIRS[name]
    if forecast.endswith("grib"):
        pytest.importorskip("cfgrib", reason="GRIB files need cfgrib")
    else:
        pytest.importorskip("h5netcdf")
    code = main(["doctor", str(samples / forecast), "--truth", str(samples / truth), *options])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "0 errors, 0 warnings" in out


METAR = "obs/metar_2020-01_12stations.parquet"
SLOPES = {"t2m": (285.0, -0.25, 0.02), "10m_wind_speed": (6.0, 0.03, -0.004)}
OFFSETS = (-1.5, 0.25, 2.0)


def plane(channel: str, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Linear in latitude and in longitude from 0 to 360, which bilinear interpolation keeps."""
    at_zero, northwards, eastwards = SLOPES[channel]
    return at_zero + northwards * latitude + eastwards * longitude


def reports_near(path: Path, column: str) -> dict[tuple[str, int], tuple[float, float, float, float]]:
    """Value, latitude, longitude and elevation by station and valid time in hours of January 2020.

    A loop over the rows: the usable report nearest in time within 30 minutes, of two the earlier.
    """
    pq = pytest.importorskip("pyarrow.parquet")
    found: dict[tuple[str, int], tuple[float, ...]] = {}
    for row in pq.read_table(path).to_pylist():
        value, flag = row[column], row[column + "DD"]
        minutes = (row["timeObs"].to_pydatetime() - datetime(2020, 1, 1)).total_seconds() / 60
        hour = 6 * round(minutes / 360)
        late = minutes - 60 * hour
        if value is None or value != value or flag in "BQXZk" or abs(late) > 30:
            continue
        key, rank = (row["stationName"], hour), (abs(late), late)
        if key not in found or rank < found[key][:2]:
            place = (row["latitude"], row["longitude"] % 360, row["elevation"])
            found[key] = (*rank, value, *place)
    return {key: item[2:] for key, item in found.items()}  # type: ignore[misc]


def test_metar_reports_of_january_2020(samples: Path, tmp_path: Path) -> None:
    """Three members that are planes, scored at 12 stations for two weeks, against a loop over the table."""
    pytest.importorskip("h5netcdf")
    lat, lon = np.linspace(90, -90, 73), np.arange(0, 360, 2.5)
    inits = np.arange("2020-01-03", "2020-01-17", 43200, dtype="datetime64[s]")
    fields = {c: plane(c, lat[:, None], lon[None]) for c in SLOPES}
    # The plane has a step between 357.5 E and 0 E, where no station lies.
    dims = ("init_time", "lead_time", "member", "latitude", "longitude")
    shape = (inits.size, 2, len(OFFSETS), lat.size, lon.size)
    offsets = np.array(OFFSETS)[:, None, None]
    variables = {
        name: (dims, np.broadcast_to(fields[c] + offsets, shape).astype(np.float32), {"units": unit})
        for name, c, unit in (
            ("2m_temperature", "t2m", "K"),
            ("10m_wind_speed", "10m_wind_speed", "m s-1"),
        )
    }
    coords = {
        "init_time": inits.astype("datetime64[ns]"),
        "lead_time": np.array([6, 30], "timedelta64[h]").astype("timedelta64[ns]"),
        "member": np.arange(len(OFFSETS)),
        "latitude": lat,
        "longitude": lon,
    }
    xr.Dataset(variables, coords).to_netcdf(tmp_path / "planes.nc", engine="h5netcdf")
    # Surface of the model: 2 m per degree of latitude above 300 m.
    height = np.broadcast_to(300 + 2 * lat[:, None], (lat.size, lon.size))
    surface = xr.Dataset({"h": (dims[3:], height, {"units": "m"})}, {"latitude": lat, "longitude": lon})
    surface.to_netcdf(tmp_path / "height.nc", engine="h5netcdf")
    (tmp_path / "run.toml").write_text(
        f"""
        model = "planes"
        output = "planes.parquet"
        forecast = "planes.nc"
        metrics = ["crps_fair", "rmse", "bias"]
        regions = ["global", "nh"]
        weights = "density"

        [truth]
        stations = "{samples / METAR}"

        [stations.orography]
        path = "height.nc"
        variable = "h"
        """
    )
    run(tmp_path / "run.toml")
    out = tmp_path / "planes.parquet"
    records = Records.from_parquet(out)
    assert records.channels == ["10m_wind_speed", "t2m"]
    assert records.conventions.weights == "density(count 75 km)"
    rows = records.to_xarray().isel(model=0).sel(region="global")
    pairs = sum(abs(a - b) for a in OFFSETS for b in OFFSETS)
    counts = []
    for channel, column in (("t2m", "temperature"), ("10m_wind_speed", "windSpeed")):
        reported = reports_near(samples / METAR, column)
        for i, init in enumerate(inits):
            for k, lead in enumerate((6, 30)):
                hour = int((init - np.datetime64("2020-01-01")) / np.timedelta64(1, "h")) + lead
                skill = []
                for (_, when), (value, south, east, high) in reported.items():
                    if when == hour:
                        centre = plane(channel, np.float64(south), np.float64(east))
                        if channel == "t2m":
                            centre += 0.0065 * (300 + 2 * south - high)
                        skill.append(np.mean([abs(centre + o - value) for o in OFFSETS]) - pairs / 12)
                at = rows.sel(channel=channel).isel(lead_time=k, init_time=i)
                assert at["n"] == len(skill)
                # The stations are further apart than 75 km: their weights are equal.
                np.testing.assert_allclose(at["crps_fair"], np.mean(skill), rtol=1e-5, atol=1e-5)
                counts.append(len(skill))
    assert 5 < min(counts) < max(counts) <= 12
