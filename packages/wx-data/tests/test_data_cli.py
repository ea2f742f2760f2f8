"""The command line: every command, --json, exit codes, and errors of two lines."""

import json
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_data import PRESETS, Statistics, Store
from wx_data._cli import main
from wx_data._climatology import open_climatology

NAMES = "z500,t850,msl,sst"
Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with --json and check its exit code; its document."""

    def call(*words: Any, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([str(word) for word in words] + ["--json", "--no-progress"]) == code
        out, error = capsys.readouterr()
        if code:
            assert "Traceback" not in error
        else:
            assert error == ""
        return json.loads(out)

    return call


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "s.zarr"
    words = ["synth", path, "--channels", NAMES, "--grid", "9x16", "--start", "2001-01", "--stop", "2001-01"]
    assert main([*map(str, words), "--no-progress"]) == 0
    return path


def test_channels(run: Run) -> None:
    assert {name: tuple(names) for name, names in run("channels").items()} == PRESETS
    assert list(run("channels", "pangu69")) == list(PRESETS["pangu69"])
    assert run("channels", "z500,tp")["z500"]["units"] == "m2 s-2"


def test_synthetic_store(store: Path) -> None:
    opened = Store(store, verify="checksum")
    assert opened.channels == tuple(NAMES.split(","))
    assert len(opened) == 31 * 4
    means = opened.read(opened.times).values.mean(axis=(0, 2, 3))
    assert 5.0e4 < means[0] < 6.0e4
    assert 260 < means[1] < 300
    assert 9.9e4 < means[2] < 1.04e5


def test_inspect(run: Run, store: Path) -> None:
    found = run("inspect", store)
    assert found["channels"] == NAMES.split(",")
    assert (found["times"], found["first"], found["last"]) == (124, "2001-01-01T00", "2001-01-31T18")
    assert (found["step_hours"], found["gaps"], found["grid"]) == (6, [], [9, 16])
    assert found["training_store"] is True
    assert found["statics"] == ["lsm", "z_surface"]


def test_plan_and_convert(run: Run, store: Path, tmp_path: Path) -> None:
    words = (store, tmp_path / "out", "--start", "2001-01-05", "--stop", "2001-01-12", "--step", "12h")
    planned = run("plan", *words)
    assert not (tmp_path / "out").exists(), "a plan writes nothing"
    done = run("convert", *words)
    assert planned["steps"] == done["steps"] == done["written"] == 16
    assert planned["decoded_bytes"] == 16 * 4 * 9 * 16 * 4
    assert planned["disk_bytes"] == pytest.approx(done["bytes"], rel=0.1)
    assert planned["fits"] is True
    assert planned["sampled"] == 4
    assert run("plan", *words)["done"] == 16
    assert run("convert", *words)["written"] == 0
    assert run("convert", *words, "--no-resume", code=1)["error"].endswith(
        "exists; delete it, or leave out --no-resume to go on with it"
    )


def test_convert_in_parts(run: Run, store: Path, tmp_path: Path) -> None:
    found = [run("convert", store, tmp_path / "out", "--part", f"{i}/3")["complete"] for i in range(3)]
    assert found == [False, False, True]
    assert len(Store(tmp_path / "out")) == 124


def test_convert_with_rounding_and_another_grid(run: Run, store: Path, tmp_path: Path) -> None:
    run("stats", store)
    found = run("convert", store, tmp_path / "r", "--round", "0.05", "--round-statistics", store)
    assert [entry["channel"] for entry in found["rounding"]] == NAMES.split(",")
    std = Statistics.load(store).residual(6).std
    for place, entry in enumerate(found["rounding"]):
        assert entry["bound"] == pytest.approx(0.05 * std[place])
        assert 0 < entry["largest_error"] <= entry["bound"]
    assert (
        "needs --round-statistics" in run("convert", store, tmp_path / "n", "--round", "0.1", code=2)["error"]
    )
    run("convert", store, tmp_path / "g", "--grid", "5x8", "--method", "conservative")
    assert Store(tmp_path / "g").grid.shape == (5, 8)


def test_stats_of_a_period_and_in_parts(run: Run, store: Path) -> None:
    found = run("stats", store, "--period", "2001-01:2001-01", "--lead", "6h", "--lead", "1d")
    assert found["period"] == ["2001-01-01T00", "2001-01-31T18"]
    assert list(found["residuals"]) == ["6", "24"]
    whole = Statistics.load(store)
    (store / "_wx" / "stats.parquet").unlink()
    for i in (2, 0, 1):
        run("stats", store, "--lead", "6h", "--lead", "24h", "--part", f"{i}/3")
    merged = Statistics.load(store)
    np.testing.assert_allclose(merged.residual(24).std, whole.residual(24).std, rtol=1e-12)
    assert not list((store / "_wx").glob("stats-*"))


def test_climatology(run: Run, tmp_path: Path) -> None:
    words = ("--channels", "t850", "--grid", "3x4", "--start", "2001", "--stop", "2001", "--step", "24h")
    run("synth", tmp_path / "year", *words)
    found = run("climatology", tmp_path / "year", "--period", "2001:2001", "--window", "31")
    assert found["sizes"] == {"dayofyear": 366, "hour": 1, "channel": 1, "latitude": 3, "longitude": 4}
    assert found["period"] == ["2001-01-01T00", "2001-12-31T00"]
    assert open_climatology(tmp_path / "year").shape == (366, 1, 1, 3, 4)


def test_verify_and_repair(run: Run, store: Path, tmp_path: Path) -> None:
    run("convert", store, tmp_path / "s")
    assert run("verify", tmp_path / "s", "--checksum")["ok"] is True
    shards = [tmp_path / "s" / "data" / f"c.{step}.0.0.0" for step in (7, 50)]
    shards[0].unlink()
    data = shards[1].read_bytes()
    shards[1].write_bytes(data[:40] + bytes([data[40] ^ 4]) + data[41:])
    assert [f["step"] for f in run("verify", tmp_path / "s", code=1)["failures"]] == [7]
    assert [f["step"] for f in run("verify", tmp_path / "s", "--checksum", code=1)["failures"]] == [7, 50]
    found = run("inspect", tmp_path / "s", code=1)
    assert "step 2001-01-02T18 (data/c.7.0.0.0): the file is missing" in found["error"]
    assert f"wx-data repair {tmp_path / 's'} SOURCE" in found["remedy"]
    assert len(run("repair", tmp_path / "s", store)["repaired"]) == 2
    assert shards[1].read_bytes() == data
    assert run("verify", tmp_path / "s", "--checksum")["ok"] is True


@pytest.mark.parametrize("kind", ["zarr", "netcdf"])
def test_export_and_back(run: Run, store: Path, tmp_path: Path, kind: str) -> None:
    if kind == "netcdf":
        pytest.importorskip("h5netcdf")
    one_level = "z500,t500,sst"
    run("synth", tmp_path / "s", "--channels", one_level, "--grid", "9x16", "--stop", "2001-01-08")
    run("export", tmp_path / "s", tmp_path / "out", "--format", kind, "--period", "2001-01-02:2001-01-04")
    opened = xr.open_zarr(tmp_path / "out") if kind == "zarr" else xr.open_dataset(tmp_path / "out")
    with opened as dataset:
        assert dataset["geopotential"].dims == ("time", "level", "latitude", "longitude")
        assert dataset["temperature"].attrs["standard_name"] == "air_temperature"
        assert dataset.sizes["time"] == 12
    run("convert", tmp_path / "out", tmp_path / "back", "--channels", one_level)
    first, second = Store(tmp_path / "s"), Store(tmp_path / "back")
    np.testing.assert_array_equal(second.read(second.times).values, first.read(second.times).values)
    np.testing.assert_array_equal(second.statics["lsm"], first.statics["lsm"])
    assert "exists" in run("export", tmp_path / "s", tmp_path / "out", code=1)["error"]
    run("export", store, tmp_path / "n")  # z500 and t850 share no level
    run("convert", tmp_path / "n", tmp_path / "again", "--channels", NAMES)
    first, second = Store(store), Store(tmp_path / "again")
    np.testing.assert_array_equal(second.read(second.times).values, first.read(first.times).values)


def test_bench(run: Run, store: Path) -> None:
    found = run("bench", store, "--steps", "8")
    assert found["steps"] == 8
    assert 0 < found["one_thread"] < found["memcpy"]
    assert found["bottleneck"] in ("storage", "decompression", "memory")


def test_plain_output(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["inspect"], ["verify"], ["bench", "--steps", "4"], ["stats"]):
        assert main([words[0], str(store), *words[1:]]) == 0
    out, error = capsys.readouterr()
    assert "9 x 16" in out
    assert "0 damaged (sizes)" in out
    assert "% of memcpy" in out
    assert "verify: 124 of 124 steps, done in" in error, "a line, since this is no terminal"


@pytest.mark.parametrize(
    ("words", "code", "cause", "remedy"),
    [
        (["inspect", "/no/such/file"], 3, "/no/such/file does not exist", "check the path"),
        (["verify", "/"], 1, "/ is not a training store", "wx-data inspect"),
        (["inspect", "{readme}"], 1, "is neither NetCDF nor GRIB", "--kind"),
        (["stats", "{store}", "--period", "1850:1851"], 2, "holds no step", "--help"),
        (["stats", "{store}", "--lead", "7h"], 2, "no two steps in the period are 7 h apart", "--help"),
        (["convert", "{store}", "{tmp}/o", "--step", "3h"], 1, "lacks 123 of 247 times", "--missing drop"),
        (
            ["convert", "{store}", "{tmp}/o", "--start", "1999", "--stop", "1999"],
            1,
            "no time left",
            "inspect",
        ),
        (["convert", "{store}", "{tmp}/o", "--channels", "q850"], 1, "no channel q850", "inspect"),
    ],
)
def test_errors_are_two_lines(
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    cause: str,
    remedy: str,
) -> None:
    filled = [word.format(store=store, tmp=tmp_path, readme=__file__) for word in words]
    assert main([*filled, "--no-progress"]) == code
    out, error = capsys.readouterr()
    assert out == ""
    first, second = error.splitlines()
    assert first.startswith("wx-data: ")
    assert cause in first
    assert second.startswith("to fix it: ")
    assert remedy in second


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["channels", "zz"],
        ["convert", "a"],
        ["convert", "a", "b", "--part", "3/3"],
        ["convert", "a", "b", "--grid", "wide"],
        ["convert", "a", "b", "--step", "weekly"],
        ["stats", "a", "--period", "1979"],
        ["convert", "a", "b", "--nan", "sst=zero"],
    ],
)
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "usage: wx-data" in capsys.readouterr().err


def test_full_disk_and_no_permission_are_input_output(run: Run, store: Path, tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, old[1]))  # a write beyond fails like a full disk
    try:
        found = run("convert", store, tmp_path / "full", "--band-rows", "9", code=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "disk is full" in found["error"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside idle threads
        child = os.fork()
    if child == 0:
        tmp_path.chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may write everywhere
        os._exit(main(["synth", str(tmp_path / "no"), "--channels", "msl", "--no-progress"]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    tmp_path.chmod(0o755)


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "wx_data", "channels", "--json"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert len(json.loads(found.stdout)["atlas75"]) == 75
