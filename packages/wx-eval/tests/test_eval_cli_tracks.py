"""Cyclones through the command line: a low that moves east, with a member that has it too far north."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from wx_eval import Chunk, Records, Tracker, TrackForecasts, compare, scores, track_forecasts
from wx_eval._cli import main
from wx_eval._grid import great_circle_km
from wx_eval._tracks import tracks_to_table

pytest.importorskip("h5netcdf", reason="the files of these tests are netCDF")

LAT, LON = np.arange(0, 41.0), np.arange(100, 161.0)
START = np.datetime64("2020-08-01T00", "ns")
HOURS = np.arange(0, 25, 6)
DEGREE_KM = 111.19508


def wx_eval(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def low(hours: float, north: float) -> dict[str, np.ndarray]:
    """Pressure and wind of a low at 18 N that moves one degree eastwards in 6 hours."""
    lat, lon = np.meshgrid(LAT, LON, indexing="ij")
    here = 18.0 + north, 125.0 + hours / 6
    away = great_circle_km(lat, lon, *here)
    shape = np.exp(-((away / 250) ** 2) / 2)
    blow = 40 * away / 250 * shape * np.exp(0.5)
    heading = np.arctan2(lon - here[1], lat - here[0])
    return {"msl": 101_000 - 4000 * shape, "u": -blow * np.cos(heading), "v": blow * np.sin(heading)}


def write(path: Path, norths: tuple[float, ...], names: tuple[str, str, str] = ("msl", "u10", "v10")) -> Path:
    states = [[low(h, n) for n in norths] for h in HOURS]
    dims = ("init_time", "lead_time", "member", "latitude", "longitude")
    variables = {
        name: (dims, np.array([[[state[key] for state in at] for at in states]], np.float32), {"units": unit})
        for name, key, unit in zip(names, ("msl", "u", "v"), ("Pa", "m s-1", "m s-1"), strict=True)
    }
    coords = {
        "init_time": [START],
        "lead_time": HOURS.astype("timedelta64[h]").astype("timedelta64[ns]"),
        "member": np.arange(len(norths)),
        "latitude": LAT,
        "longitude": LON,
    }
    xr.Dataset(variables, coords).to_netcdf(path, engine="h5netcdf")
    return path


@pytest.fixture
def best(tmp_path: Path) -> Path:
    rows = [
        f"A,{START.astype('datetime64[s]') + np.timedelta64(int(h), 'h')},18,{125 + h / 6}" for h in HOURS
    ]
    path = tmp_path / "best.csv"
    path.write_text("\n".join(["id,when,lat,lon", *rows]))
    return path


LAYOUT = "storm='id', time='when', latitude='lat', longitude='lon', pressure='', wind=''"


def test_tracks_equal_the_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "ens.nc", (0.0, 1.0))
    assert wx_eval("tracks", path, "-o", tmp_path / "t.parquet") == 0
    assert "2 tracks of 1 starts and 2 members" in capsys.readouterr().out
    with xr.open_dataset(path, engine="h5netcdf", decode_timedelta=True) as data:
        values = np.stack([data[n].values[0] for n in ("msl", "u10", "v10")], axis=2)
    chunks = (
        Chunk(
            init_time=START, lead_time=np.timedelta64(int(h), "h"), channels=("msl", "u10", "v10"),
            values=values[k], latitude=LAT, longitude=LON,
        )
        for k, h in enumerate(HOURS)
    )  # fmt: skip
    expected = track_forecasts(chunks, Tracker(wind=("u10", "v10")))
    found = TrackForecasts.from_parquet(tmp_path / "t.parquet")
    assert tracks_to_table(found.tracks).equals(tracks_to_table(expected.tracks))
    assert np.abs(found.tracks[0].latitude - 18).max() < 0.04
    other = write(tmp_path / "other.nc", (0.0, 1.0), ("prmsl", "10u", "10v"))
    options = ["--rename", "prmsl=msl", "--tracker", "wind=('10u', '10v')", "--members", "1"]
    assert wx_eval("tracks", other, *options, "--leads", "0h/12h/6h", "-o", tmp_path / "o.parquet") == 0
    [one] = TrackForecasts.from_parquet(tmp_path / "o.parquet").tracks
    np.testing.assert_array_equal(one.latitude, found.tracks[1].latitude[:3])
    assert wx_eval("tracks", path, "--tracker", "depth=9000", "-o", tmp_path / "none.parquet") == 0
    assert TrackForecasts.from_parquet(tmp_path / "none.parquet").tracks == ()


def test_scores_of_known_errors(tmp_path: Path, best: Path) -> None:
    """The mean of the ensemble is half a degree to the left of the storm, the other forecast two degrees."""
    for name, norths in (("ens", (0.0, 1.0)), ("far", (2.0,))):
        path = write(tmp_path / f"{name}.nc", norths)
        assert wx_eval("tracks", path, "-o", tmp_path / f"{name}.parquet") == 0
    models = [f"{name}={tmp_path / name}.parquet" for name in ("ens", "far")]
    out = tmp_path / "cyclones.parquet"
    assert wx_eval("score-tracks", *models, "--best", best, "--layout", LAYOUT, "-o", out) == 0
    records = Records.from_parquet(out)
    assert records.models == ["ens", "far"]
    assert records.conventions.truth == "best"
    table = scores(records).sel(region="global")
    for model, degrees in (("ens", 0.5), ("far", 2.0)):
        position = table["mae"].sel(model=model, channel="position")
        np.testing.assert_allclose(position, degrees * DEGREE_KM, atol=4)
        across = table["bias"].sel(model=model, channel="cross_track")
        np.testing.assert_allclose(across, -degrees * DEGREE_KM, atol=4)
    near = ["--radius-km", "150", "--sample", "each", "-o", out, "--layout", LAYOUT, "--best", best]
    assert wx_eval("score-tracks", *models, *near) == 0
    alone = scores(Records.from_parquet(out)).sel(region="global", channel="position")["mae"]
    assert alone.sel(model="far").isnull().all()
    with pytest.raises(ValueError, match="share 1 scored starts"):
        compare(records, records, "mae", model_a="ens", model_b="far")


def test_refusals(tmp_path: Path, best: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "ens.nc", (0.0,), ("msl", "10u", "10v"))
    out = ["-o", tmp_path / "t.parquet"]
    for options, message in (
        ([], "the tracker needs the channels ['u10', 'v10'], the files have ['msl', '10u', '10v']"),
        (["--tracker", "depths=3"], "unknown key 'depths' in [tracker], did you mean 'depth'?"),
        (["--tracker", "3"], "expected tracker settings such as"),
    ):
        assert wx_eval("tracks", path, *options, *out) == 1
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "t.parquet").exists()
    assert wx_eval("score-tracks", f"a={best}", "--best", best, *out) == 1
    for usage in (["tracks", path, "--rename", "10u"], ["score-tracks", best, "--best", best]):
        with pytest.raises(SystemExit) as stop:
            wx_eval(*usage, *out)
        assert stop.value.code == 2
        assert "expected NAME=VALUE, got " in capsys.readouterr().err
