"""What a new user meets in the first hours: objects as they come, and mistakes that everybody makes."""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest
import xarray as xr

import wx_eval
from wx_eval import (
    ACC,
    CRPS,
    PRESETS,
    RMSE,
    DayClimatology,
    Observed,
    Records,
    ReportLayout,
    StationReports,
    TrackForecasts,
    evaluate,
)
from wx_eval._cli import main
from wx_eval._tracks import Track

DAY = np.timedelta64(24, "h")
START = np.datetime64("2020-01-01T00", "ns")
LAT, LON = np.linspace(-90, 90, 7), np.arange(0, 360, 45.0)
GRID = {"latitude": LAT, "longitude": LON}
SPACE = ("latitude", "longitude")


def truth(days: int = 12) -> xr.DataArray:
    values = np.random.default_rng(0).standard_normal((days, 1, 7, 8))
    coords = {"time": START + DAY * np.arange(days), "channel": ["t850"], **GRID}
    return xr.DataArray(values, coords, ("time", "channel", *SPACE), attrs={"units": "K"})


def forecast() -> xr.DataArray:
    values = np.random.default_rng(1).standard_normal((4, 2, 3, 1, 7, 8))
    coords = {
        "init_time": START + DAY * np.arange(4),
        "lead_time": (DAY * np.arange(1, 3)).astype("timedelta64[ns]"),
        "channel": ["t850"],
        **GRID,
    }
    return xr.DataArray(values, coords, ("init_time", "lead_time", "member", "channel", *SPACE))


def scored(**settings: Any) -> Records:
    return evaluate(forecast(), truth(), model="m", metrics=[CRPS("fair")], **settings)


def field() -> xr.DataArray:
    """Shares that no reordering leaves as they are."""
    return xr.DataArray(np.random.default_rng(2).random((7, 8)), GRID, SPACE)


@pytest.mark.parametrize(
    "turned",
    [
        field().T,
        field()[::-1],
        field().rename(latitude="lat", longitude="lon").T[::-1],
        field().assign_coords(longitude=(LON + 180) % 360 - 180).sortby("longitude"),
    ],
)
def test_fields_are_put_in_the_order_of_the_truth_by_their_coordinates(turned: xr.DataArray) -> None:
    plain = field().values
    regions = ["global_land", "nh_land"]
    assert scored(regions=regions, land_fraction=turned) == scored(regions=regions, land_fraction=plain)
    assert scored(regions={"r": turned > 0.4}) == scored(regions={"r": plain > 0.4})
    assert scored(weights=turned) == scored(weights=plain)
    assert scored(weights=plain) != scored(weights=plain[::-1].copy())


def test_rows_of_weights_are_put_in_order_too() -> None:
    rows = xr.DataArray(np.arange(1.0, 8), {"latitude": LAT}, ("latitude",))
    assert scored(weights=rows[::-1]) == scored(weights=rows.values)


def test_a_field_on_another_grid_or_with_more_dims_is_refused() -> None:
    with pytest.raises(ValueError, match="latitude of land_fraction and truth differ"):
        scored(regions=["nh_land"], land_fraction=field().assign_coords(latitude=LAT / 2))
    with pytest.raises(ValueError, match=r"weights must have the dims latitude and longitude alone.*time"):
        scored(weights=field().expand_dims("time"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ["crps_fair"]}, r"objects such as wx_eval.CRPS\(\"fair\"\).*got 'crps_fair'"),
        ({"metrics": [RMSE]}, "objects such as"),
        ({"climatology": "clim.zarr"}, r"DayClimatology.open\(dataset\), got a str"),
        ({"climatology": xr.Dataset()}, "got a Dataset"),
    ],
)
def test_what_is_taken_for_a_metric_or_a_climatology(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        evaluate(forecast(), truth(), model="m", **settings)


@pytest.mark.parametrize("name", PRESETS)
def test_the_name_of_a_preset_is_no_label(name: str) -> None:
    with pytest.raises(ValueError, match=rf"PRESETS\['{name}'\].evaluate"):
        scored(preset=name)
    assert scored(preset="mine").conventions.preset == "mine"


def test_a_chunk_without_an_attribute_names_all_of_them() -> None:
    chunk = SimpleNamespace(init=START, lead_time=DAY, values=np.zeros((3, 1, 7, 8)))
    with pytest.raises(
        TypeError, match="init_time, lead_time, channels, values; this SimpleNamespace has no "
    ):
        evaluate([chunk], truth(), model="m")


def test_chunks_of_torch_are_those_of_numpy() -> None:
    torch = pytest.importorskip("torch", reason="tensors of a rollout")

    def chunks(convert: Any) -> list[SimpleNamespace]:
        x = forecast()
        return [
            SimpleNamespace(
                init_time=t,
                lead_time=lead,
                channels=("t850",),
                values=convert(x.sel(init_time=t, lead_time=lead).values),
            )
            for t in x["init_time"].values
            for lead in x["lead_time"].values
        ]

    plain = evaluate(chunks(np.asarray), truth(), model="m")
    assert evaluate(chunks(torch.from_numpy), truth(), model="m") == plain
    assert evaluate(chunks(lambda v: torch.from_numpy(v).requires_grad_()), truth(), model="m") == plain


def test_a_climatology_reads_each_piece_of_the_storage_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr = pytest.importorskip("zarr", reason="a store with pieces of many days")
    climatology = DayClimatology.build(truth(2 * 366), path=tmp_path / "clim.zarr")
    reads: list[str] = []
    plain = zarr.Array.get_orthogonal_selection

    def counted(self: Any, *arguments: Any, **settings: Any) -> Any:
        reads.append(self.name)
        return plain(self, *arguments, **settings)

    monkeypatch.setattr(zarr.Array, "get_orthogonal_selection", counted)
    times = START + DAY * np.arange(30)
    fields = [climatology.at("mean", t).values for t in times]
    stored = xr.open_zarr(tmp_path / "clim.zarr", chunks=None)["t850"]
    assert stored.encoding["chunks"][1] >= 30
    assert reads.count("/t850") == 1
    for time, found in zip(times, fields, strict=True):
        day = int((time.astype("datetime64[D]") - START.astype("datetime64[D]")).astype(int))
        np.testing.assert_array_equal(found[0], stored.isel(hour=0, dayofyear=day).values)


def test_a_climatology_of_a_period_opens_without_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("zarr", reason="the files of this test are zarr")
    history = truth(3 * 366).isel(channel=0, drop=True)
    history.rename("t850").to_dataset().to_zarr(tmp_path / "era.zarr", consolidated=False)
    out = tmp_path / "clim.zarr"
    command = ["climatology", str(tmp_path / "era.zarr"), "-o", str(out), "--period"]
    assert main([*command, "2020/2021-06"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = DayClimatology.open(xr.open_zarr(out))
    assert found.name.startswith("2020-01-01 to 2021-06-30")
    part = history.sel(time=slice("2020-01-01", "2021-06-30")).expand_dims(channel=["t850"], axis=1)
    wanted = DayClimatology.build(part)
    np.testing.assert_array_equal(found.at("mean", START).values, wanted.at("mean", START).values)
    assert main([*command, "1990/1999"]) == 1
    assert "no state from 1990-01-01" in capsys.readouterr().err


def test_a_metric_without_its_climatology_says_where_to_give_it() -> None:
    with pytest.raises(ValueError, match=r"--climatology on the command line"):
        evaluate(forecast(), truth(), model="m", metrics=[ACC("wb2")])


def reports(folder: Path) -> dict[str, Any]:
    """A table with the columns of others: Fahrenheit, knots and names with a leading zero."""
    rng = np.random.default_rng(3)
    hours = np.datetime64("2020-01-02T00", "s") + np.timedelta64(3600, "s") * np.arange(121)
    names = [f"0377{k}" for k in range(6)]
    table = {
        "id": np.repeat(names, hours.size),
        "valid": np.tile(hours, 6),
        "lat": np.repeat(np.linspace(-60, 60, 6), hours.size),
        "lon": np.repeat(np.linspace(-120, 120, 6), hours.size),
        "tmpf": np.round(50 + 5 * rng.standard_normal(6 * hours.size), 1),
        "sknt": np.round(np.abs(10 * rng.standard_normal(6 * hours.size)), 1),
    }
    pq.write_table(pa.table(table), folder / "asos.parquet")
    arrow_csv.write_csv(pa.table(table), folder / "asos.csv")
    return table


VARIABLES = (
    Observed(column="tmpf", channel="t2m", unit="degF", to="K"),
    Observed(column="sknt", channel="10m_wind_speed", unit="kt", to="m s-1"),
)
LAYOUT = ReportLayout(station="id", time="valid", latitude="lat", longitude="lon", elevation="")
CONFIG = """
model = "ens"
output = "out.parquet"
forecast = "ens.nc"
[truth]
stations = "asos.csv"
layout = {station = "id", time = "valid", latitude = "lat", longitude = "lon", elevation = ""}
variables = [{column = "tmpf", channel = "t2m", unit = "degF", to = "K"}]
"""


def test_reports_in_csv_are_those_in_parquet(tmp_path: Path) -> None:
    table = reports(tmp_path)
    times = np.datetime64("2020-01-02T06", "s") + np.timedelta64(6 * 3600, "s") * np.arange(8)
    both = [
        StationReports(path=tmp_path / name, times=times, variables=VARIABLES, layout=LAYOUT)
        for name in ("asos.csv", "asos.parquet")
    ]
    assert both[0].stations == both[1].stations == [f"0377{k}" for k in range(6)]
    found = both[0].read(times)
    xr.testing.assert_identical(found, both[1].read(times))
    row = np.flatnonzero((table["id"] == "03772") & (table["valid"] == times[1]))[0]
    np.testing.assert_allclose(
        found.isel(time=1, point=2),
        [(table["tmpf"][row] - 32) / 1.8 + 273.15, table["sknt"][row] * 1852 / 3600],
    )


def test_errors_of_tables_say_what_to_name(tmp_path: Path) -> None:
    reports(tmp_path)
    times = np.array(["2020-01-02T06"], "datetime64[s]")
    with pytest.raises(ValueError, match=r"no column \['stationName'.*layout and variables"):
        StationReports(path=tmp_path / "asos.csv", times=times, variables=VARIABLES)
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match="no table of reports: give a parquet file"):
        StationReports(path=tmp_path / "notes.txt", times=times, variables=VARIABLES)


def gridded(folder: Path) -> None:
    """A forecast of t2m and of a channel that no station reports."""
    pytest.importorskip("h5netcdf", reason="the files of these tests are netCDF")
    x = forecast().isel(channel=0, drop=True).rename("t2m").assign_attrs(units="K") + 283.0
    x.attrs["units"] = "K"
    xr.Dataset({"t2m": x, "tcc": x.assign_attrs(units="1")}).to_netcdf(folder / "ens.nc", engine="h5netcdf")


def test_doctor_takes_the_configuration_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports(tmp_path)
    gridded(tmp_path)
    (tmp_path / "run.toml").write_text(CONFIG)
    assert main(["doctor", str(tmp_path / "run.toml")]) == 0
    assert "t2m: 100% of 6 stations" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "run.toml"), "--truth", "x.nc"]) == 1
    assert "a configuration names forecast and truth" in capsys.readouterr().err


def test_run_tells_what_it_scores_and_what_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports(tmp_path)
    gridded(tmp_path)
    (tmp_path / "run.toml").write_text(CONFIG)
    assert main(["run", str(tmp_path / "run.toml")]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("channels t2m\n")
    assert "ens: the truth has no channel tcc: not scored" in err
    text = CONFIG.replace('"ens.nc"', '{path = "ens.nc", channels = ["t2m"]}').replace("out.", "other.")
    (tmp_path / "run.toml").write_text(text)
    assert main(["run", str(tmp_path / "run.toml")]) == 0
    assert "not scored" not in capsys.readouterr().err


def test_doctor_of_stations_that_do_not_all_report_around_the_shortest_lead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = reports(tmp_path)
    gridded(tmp_path)
    late = (table["id"] != "03773") | (table["valid"] >= np.datetime64("2020-01-05T13"))
    kept = {name: column[late] for name, column in table.items()}
    pq.write_table(pa.table(kept), tmp_path / "asos.parquet")
    with xr.open_dataset(tmp_path / "ens.nc", decode_timedelta=True) as opened:
        x = opened.load().isel(init_time=slice(3))
    longer = x["lead_time"].values + np.array([0, 60], "timedelta64[h]").astype("timedelta64[ns]")
    x.assign_coords(lead_time=longer).to_netcdf(tmp_path / "late.nc", engine="h5netcdf")
    (tmp_path / "run.toml").write_text(
        CONFIG.replace("asos.csv", "asos.parquet").replace("ens.nc", "late.nc")
    )
    status = main(["doctor", str(tmp_path / "run.toml")])
    out, err = capsys.readouterr()
    assert "wx-eval:" not in err
    assert status in (0, 1)
    assert "of 6 stations have a usable report" in out


def test_info_of_tracks_and_files_that_hold_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = np.datetime64("2020-09-01", "s") + np.timedelta64(6 * 3600, "s") * np.arange(3)
    track = Track(
        storm="a",
        init_time=times[0],
        member=0,
        times=times,
        latitude=np.arange(3.0),
        longitude=np.arange(3.0),
        pressure=np.full(3, 99000.0),
        wind=np.full(3, 30.0),
    )
    found = TrackForecasts(tracks=[track], members=2, init_times=times[:1], lead_times=times - times[0])
    path = str(tmp_path / "t.parquet")
    found.to_parquet(path)
    assert main(["info", path]) == 0
    assert capsys.readouterr().out.startswith("tracks: 1\nstarts: 2020-09-01T00:00\n")
    scored().to_parquet(tmp_path / "r.parquet")
    assert main(["info", str(tmp_path / "r.parquet")]) == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if line.endswith(": ")]
    assert main(["report", path, "-o", str(tmp_path / "r.html")]) == 1
    assert "holds no wx-eval records" in capsys.readouterr().err
    best = ["--best", "b.csv", "-o", str(tmp_path / "s.parquet")]
    assert main(["score-tracks", f"a={tmp_path}", *best]) == 1
    assert "holds no forecast tracks: `wx-eval tracks`" in capsys.readouterr().err


DOCS = Path(__file__).parents[3] / "docs" / "wx-eval-conventions.md"


@pytest.mark.skipif(not DOCS.exists(), reason="docs are in the repository alone")
def test_the_map_of_modules_names_each_once() -> None:
    section = DOCS.read_text().split("## Where things are")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    named = re.findall(r"`(_\w+)`", "\n".join(table))
    modules = {path.stem for path in Path(wx_eval.__file__).parent.glob("_*.py")} - {"__init__", "__main__"}
    assert sorted(named) == sorted(modules)
