"""The command line further: every command alike, rules for missing values, sources, exit codes end to end."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_data import Grid, Store, open_source
from wx_data import _commands as commands
from wx_data._cli import _COMMANDS, main
from wx_data._remote import Remote

GRID = Grid.regular(9, 16)
COMMANDS = "channels inspect plan convert stats climatology verify repair bench fetch-init export synth"
Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with --json and check its exit code; its document."""

    def call(*words: Any, code: int = 0, quiet: bool = False) -> Any:
        capsys.readouterr()
        assert main([str(word) for word in words] + ["--json", "--no-progress"]) == code
        out, error = capsys.readouterr()
        assert len(error.splitlines()) == (2 if code and not quiet else 0), error
        return json.loads(out)

    return call


@pytest.fixture
def sea(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A Zarr store of sea surface temperatures with land, and its values."""
    values = np.random.default_rng(1).uniform(275, 300, (2, *GRID.shape)).astype("f4")
    values[:, 2:5, 4:7] = np.nan
    times = np.datetime64("2001-01-01", "ns") + np.arange(2) * np.timedelta64(6, "h")
    coords = {"time": times, "latitude": GRID.latitude, "longitude": GRID.longitude}
    data = {"sea_surface_temperature": (("time", "latitude", "longitude"), values, {"units": "K"})}
    xr.Dataset(data, coords).to_zarr(tmp_path / "sea", zarr_format=2)
    return tmp_path / "sea", values


def test_every_command_of_the_specification_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(_COMMANDS) == set(COMMANDS.split())
    for name in _COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        assert "--json" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "exit codes: 0 ok, 1 problem with the data, 2 usage, 3 input or output" in shown
    assert all(name in shown for name in _COMMANDS)


@pytest.mark.parametrize("rule", ["mean", "nearest", "271.5", "keep"])
def test_rules_for_missing_values(run: Run, sea: tuple[Path, np.ndarray], tmp_path: Path, rule: str) -> None:
    path, values = sea
    refused = run("convert", path, tmp_path / "s", code=1)
    assert "sst at 2001-01-01T00: 9 missing values (6.2% of the field)" in refused["error"]
    assert refused["remedy"].startswith("Pass --nan sst=RULE, the rule being")
    run("convert", path, tmp_path / "s", "--nan", f"sst={rule}")
    store = Store(tmp_path / "s")
    stored = store.read(store.times).values[:, 0]
    missing = np.isnan(values)
    np.testing.assert_array_equal(stored[~missing], values[~missing])
    assert store.attributes["fills"] == {"sst": float(rule) if rule[0].isdigit() else rule}
    if rule == "mean":
        area = np.broadcast_to(GRID.area_weights()[:, None], GRID.shape)
        for field, original in zip(stored, values, strict=True):
            there = ~np.isnan(original)
            mean = np.average(original[there].astype(np.float64), weights=area[there])
            np.testing.assert_allclose(field[~there], mean, rtol=1e-6)
    elif rule == "nearest":
        np.testing.assert_array_equal(stored[:, 3, 4], values[:, 3, 3])
        np.testing.assert_array_equal(stored[:, 3, 6], values[:, 3, 7])
        assert not np.isnan(stored).any()
    elif rule == "keep":
        assert np.isnan(stored[missing]).all()
    else:
        assert (stored[missing] == np.float32(rule)).all()


def test_a_plan_refuses_what_the_conversion_would(
    run: Run, sea: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    assert "9 missing values" in run("plan", sea[0], tmp_path / "s", code=1)["error"]
    assert run("plan", sea[0], tmp_path / "s", "--nan", "sst=nearest")["steps"] == 2


def test_a_plan_that_does_not_fit_is_a_problem(
    run: Run, sea: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("plan", sea[0], tmp_path / "s", "--nan", "sst=mean")
    assert run(*words)["fits"] is True
    monkeypatch.setattr("wx_data._plan.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    assert run(*words, quiet=True, code=1)["fits"] is False


def test_members_leads_and_derived_channels(run: Run, samples: Path, tmp_path: Path) -> None:
    pytest.importorskip("cfgrib")
    members = samples / "era5" / "era5_eda10_z_t_500_850_20170101.grib"
    assert "choose one with --member, got None" in run("inspect", members, code=1)["error"]
    assert run("inspect", members, "--member", 3)["channels"] == ["z500", "z850", "t500", "t850"]
    forecast = samples / "ifs_fc" / "ifs_pl_10deg_20240603-04_step0-6.grib"
    found = run("inspect", forecast, "--forecast-lead", "6h")
    assert (found["times"], found["first"], found["step_hours"]) == (4, "2024-06-03T06", 12)
    words = ["--channels", "q850,t2m", "--derive", "q=relative_humidity", "--fill", "t2m=280"]
    run("convert", forecast, tmp_path / "s", *words, "--keep-implausible")
    store = Store(tmp_path / "s")
    assert store.attributes["provenance"]["filled"] == {"t2m": "constant 280.0"}
    expected = open_source(forecast, channels=["q850"], derive={"q": "relative_humidity"})
    np.testing.assert_array_equal(
        store.read(store.times, ["q850"]).values, expected.read(expected.times).values
    )


def test_an_initial_state_from_a_store_or_file(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    words = ("--channels", "t850,msl", "--grid", "9x16", "--stop", "2001-01-02")
    run("synth", tmp_path / "s", *words)
    state = ("fetch-init", tmp_path / "a.nc", "--time", "2001-01-01T12", "--source", tmp_path / "s")
    found = run(*state, "--channels", "msl")
    assert found["sizes"] == {"time": 1, "channel": 1, "latitude": 9, "longitude": 16}
    store = Store(tmp_path / "s")
    with xr.open_dataset(tmp_path / "a.nc") as opened:
        expected = store.read(np.datetime64("2001-01-01T12"), ["msl"])
        np.testing.assert_array_equal(opened["state"].values, expected.values)
        np.testing.assert_array_equal(opened["time"].values, expected["time"].values)
        assert opened.attrs["Conventions"] == "CF-1.11"
    assert "a.nc exists" in run(*state, "--channels", "msl", code=1)["error"]
    run("export", tmp_path / "s", tmp_path / "plain")
    other = ("fetch-init", tmp_path / "b.nc", "--time", "2001-01-01T12", "--source", tmp_path / "plain")
    assert run(*other, "--channels", "msl", "--grid", "5x8")["sizes"]["latitude"] == 5
    late = (
        "fetch-init",
        tmp_path / "c.nc",
        "--time",
        "2002",
        "--source",
        tmp_path / "s",
        "--channels",
        "msl",
    )
    assert "time 2002-01-01T00 is not in the store" in run(*late, code=1)["error"]
    nowhere = ("fetch-init", tmp_path / "c.nc", "--time", "2002", "--source", "icon", "--channels", "msl")
    assert "icon does not exist" in run(*nowhere, code=3)["error"]
    assert not (tmp_path / "c.nc").exists()


def test_the_preset_is_named_where_a_channel_is_missing(run: Run, sea: tuple[Path, np.ndarray]) -> None:
    found = run("inspect", sea[0], "--channels", "atlas75", code=1)
    assert "lacks 74 of 75 channels of preset 'atlas75'" in found["error"] + found["remedy"]


def test_a_dead_server_is_input_output(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setattr(commands, "Remote", partial(Remote, retries=1, max_wait=0.01, connect_timeout=1))
    found = run("inspect", "s3://bucket/era5.zarr", "--endpoint", "http://127.0.0.1:9", code=3)
    assert found["exit_code"] == 3
    assert "s3://bucket/era5.zarr" in found["error"]
    assert "anonymous" in found["error"] + found["remedy"]


def test_an_interrupted_conversion_is_a_problem_of_the_data(run: Run, tmp_path: Path) -> None:
    words = ("--channels", "msl", "--grid", "5x8", "--stop", "2001-01-02")
    run("synth", tmp_path / "whole", *words)
    run("convert", tmp_path / "whole", tmp_path / "s", "--part", "0/2")
    for command in ("stats", "verify", "bench", "climatology"):
        found = run(command, tmp_path / "s", code=1)
        assert "4 of 8 steps are done" in found["error"]
        assert found["remedy"] == "Run the same wx-data convert again to finish it"
    assert "4 of 8 steps are done" in run("export", tmp_path / "s", tmp_path / "out", code=1)["error"]


def test_remedies_are_options_of_the_command(run: Run, sea: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """What a message of the package says in Python, the command says as its own option, which then works."""

    def told(*words: Any) -> str:
        found = run(*words, code=1)
        return f"{found['error']} {found['remedy']}"

    path = tmp_path / "hot"
    with xr.open_zarr(sea[0]) as dataset:
        (dataset.fillna(280.0) + 100.0).assign_attrs(
            valid_time_start="2001-01-01", valid_time_stop="2000-12-31", valid_time_stop_era5t="2001-01-01"
        ).pipe(_kelvin).drop_encoding().to_zarr(path, zarr_format=2)
    assert "pass --kind arco" in told("inspect", path, "--kind", "wb2")
    assert "no time of the store lies within its validity" in told("inspect", path)
    assert "--keep-implausible stores" in told("convert", path, tmp_path / "a", "--era5t")
    assert run("convert", path, tmp_path / "a", "--era5t", "--keep-implausible")["complete"]
    assert "--fill CHANNEL=VALUE" in told("inspect", sea[0], "--channels", "sst,t2m")
    assert run("inspect", sea[0], "--channels", "sst,t2m", "--fill", "t2m=280")["channels"] == ["sst", "t2m"]
    assert "--forecast-lead 6 was asked for" in told("inspect", sea[0], "--forecast-lead", "6h")


def _kelvin(dataset: xr.Dataset) -> xr.Dataset:
    for array in dataset.data_vars.values():
        array.attrs["units"] = "K"
    return dataset


def test_yearly_hdf5_files_with_makanis_metadata(run: Run, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "train").mkdir()
    with h5py.File(tmp_path / "train" / "2019.h5", "w") as file:
        file["fields"] = np.random.default_rng(0).uniform(260, 300, (365, 2, 3, 4)).astype("f4")
    about = {"lat": [90, 0, -90], "lon": [0, 90, 180, 270], "channel": ["t2m", "t850"]}
    (tmp_path / "data.json").write_text(json.dumps({"dhours": 24, "h5_path": "fields", "coords": about}))
    assert "pass --hdf5 DATA.JSON" in run("inspect", tmp_path / "train", code=1)["error"]
    found = run("inspect", tmp_path / "train", "--hdf5", tmp_path / "data.json")
    assert (found["times"], found["step_hours"], found["channels"]) == (365, 24, ["t2m", "t850"])


def test_an_export_goes_block_by_block_and_a_file_has_a_limit(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("synth", tmp_path / "s", "--channels", "t850,msl", "--grid", "9x16", "--stop", "2001-01-02")
    store = Store(tmp_path / "s")
    monkeypatch.setattr("wx_data._export._BLOCK_BYTES", 3 * 4 * 2 * 9 * 16)  # three steps
    run("export", tmp_path / "s", tmp_path / "out")
    source = open_source(tmp_path / "out", channels=["t850", "msl"])
    np.testing.assert_array_equal(source.times, store.times)
    np.testing.assert_array_equal(source.read(store.times).values, store.read(store.times).values)
    monkeypatch.setattr("wx_data._export._NETCDF_BYTES", 8 * 4 * 2 * 9 * 16 - 1)
    found = run("export", tmp_path / "s", tmp_path / "out.nc", "--format", "netcdf", code=1)
    assert "one NetCDF file would hold" in found["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s"]
