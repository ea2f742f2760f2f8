"""The command line: configuration, resumption, any number of workers, and every command once."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import xarray as xr

from wx_eval import CRPS, PRESETS, RMSE, DayClimatology, Records, climatology, compare, evaluate
from wx_eval._choices import PresetName
from wx_eval._cli import _COMMANDS, main
from wx_eval._commands import COMMANDS
from wx_eval._config import RunSettings, chosen_inits, metric
from wx_eval._event_scores import Brier
from wx_eval._job import Job
from wx_eval._open import Truth, open_source
from wx_eval._quantiles import WIS
from wx_eval._texts import durations, members

pytest.importorskip("h5netcdf", reason="the files of these tests are netCDF")

HOUR = np.timedelta64(1, "h")
DAY = np.timedelta64(24, "h")
START = np.datetime64("2020-01-01T00", "ns")
LAT, LON = np.linspace(90, -90, 13), np.arange(0, 360, 15.0)
INITS, LEADS, MEMBERS = 6, 3, 4


def dataset(values: np.ndarray, dims: tuple[str, ...], coords: dict[str, Any]) -> xr.Dataset:
    """Temperature at one level."""
    array = 280 + 5 * values.astype(np.float32)
    space = ("latitude", "longitude")
    coords = {**coords, "latitude": LAT, "longitude": LON, "level": 850}
    return xr.Dataset({"temperature": ((*dims, *space), array, {"units": "K"})}, coords)


def forecast(seed: int = 1, inits: int = INITS) -> xr.Dataset:
    values = np.random.default_rng(seed).standard_normal((inits, LEADS, MEMBERS, LAT.size, LON.size))
    coords = {
        "init_time": START + DAY * np.arange(inits),
        "lead_time": (DAY * np.arange(1, LEADS + 1)).astype("timedelta64[ns]"),
        "member": np.arange(MEMBERS),
    }
    return dataset(values, ("init_time", "lead_time", "member"), coords)


def truth() -> xr.Dataset:
    values = np.random.default_rng(0).standard_normal((80, LAT.size, LON.size))
    return dataset(values, ("time",), {"time": START + DAY * np.arange(80)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of a forecast and of a truth, and a configuration."""
    forecast().to_netcdf(tmp_path / "ens.nc", engine="h5netcdf")
    truth().to_netcdf(tmp_path / "truth.nc", engine="h5netcdf")
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


CONFIG = """
model = "ens"
output = "ens.parquet"
forecast = "ens.nc"
truth = "truth.nc"
metrics = ["crps_fair", "RMSE", {type = "Brier", threshold = 281.0}]
regions = ["global", "europe"]
"""


def wx_eval(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def expected() -> Records:
    """The same rows from arrays."""
    x = forecast()["temperature"].expand_dims(channel=["t850"], axis=3)
    y = truth()["temperature"].expand_dims(channel=["t850"], axis=1)
    return evaluate(
        x,
        y,
        model="ens",
        metrics=[CRPS("fair"), RMSE(), Brier(281.0)],
        regions=["global", "europe"],
        truth_name="truth",
    )


def test_run_equals_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wx_eval("run", folder / "run.toml") == 0
    got = Records.from_parquet(folder / "ens.parquet")
    assert got == expected()
    assert list(got.metrics) == ["brier_fair(>281.0)", "crps_fair", "rmse"]
    assert got.runs["ens"][0]["truth"] == "truth.nc"
    assert got.runs["ens"][0]["wx_eval"] == version("wx-eval")
    assert not (folder / "ens.parquet.parts").exists()
    out, err = capsys.readouterr()
    assert "36 rows of 6 starts, 3 lead times, channels t850" in out
    assert "ens: 6 of 6 starts" in err
    assert "\r" not in err


def test_the_same_as_options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    options = ["--model", "ens", "-o", "x.parquet", "--forecast", "ens.nc", "--truth", "truth.nc"]
    options += ["--metric", "crps_fair", "--metric", "RMSE", "--metric", "Brier(threshold=281.0)"]
    assert wx_eval("run", *options, "--regions", "global,europe", "--quiet") == 0
    assert Records.from_parquet("x.parquet") == expected()
    part = ["--leads", "1d,3d", "--inits", "2020-01-02/2020-01-05/2d", "-o", "part.parquet", "--quiet"]
    assert wx_eval("run", "run.toml", *part) == 0
    starts = np.array(["2020-01-02", "2020-01-04"], "datetime64[s]")
    chosen = expected().select(init_time=starts, lead_time=[DAY, 3 * DAY])
    assert Records.from_parquet("part.parquet") == chosen


def test_the_same_bytes_for_any_number_of_workers_and_ranks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = []
    for name, workers in (("one", 1), ("four", 4)):
        assert wx_eval("run", folder / "run.toml", "-o", folder / name, "--workers", workers, "--quiet") == 0
        outputs.append((folder / name).read_bytes())
    monkeypatch.setenv("WORLD_SIZE", "2")
    other = subprocess.Popen(command(folder, "ranks"), env={**os.environ, "RANK": "1"})
    monkeypatch.setenv("RANK", "0")
    assert wx_eval("run", folder / "run.toml", "-o", folder / "ranks", "--quiet") == 0
    assert other.wait(60) == 0
    outputs.append((folder / "ranks").read_bytes())
    assert len(set(outputs)) == 1


def command(folder: Path, output: str) -> list[str]:
    return [sys.executable, "-m", "wx_eval", "run", str(folder / "run.toml"), "-o", str(folder / output)]


def test_kill_9_and_resume(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The killed run is stopped while it writes; what it leaves is used and the bytes are the same."""
    forecast(inits=60).to_netcdf(folder / "ens.nc", engine="h5netcdf")
    assert wx_eval("run", folder / "run.toml", "-o", folder / "whole", "--quiet") == 0
    process = subprocess.Popen(command(folder, "killed"), stderr=subprocess.DEVNULL)
    parts = folder / "killed.parts"
    limit = time.monotonic() + 60
    while len(list(parts.glob("*.parquet"))) < 3 and time.monotonic() < limit:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = len(list(parts.glob("*.parquet")))
    assert 3 <= left < 60
    assert not (folder / "killed").exists()
    (parts / ".2020-01-01T000000.parquet.1").write_bytes(b"half a fi")
    assert wx_eval("run", folder / "run.toml", "-o", folder / "killed") == 0
    assert f"{left} of 60 starts, {left} of them by an earlier run" in capsys.readouterr().err
    assert (folder / "killed").read_bytes() == (folder / "whole").read_bytes()
    assert not parts.exists()


def test_a_longer_period_adds_to_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wx_eval("run", folder / "run.toml", "--inits", "2020-01-01/2020-01-03") == 0
    assert len(Records.from_parquet(folder / "ens.parquet").init_times) == 3
    capsys.readouterr()
    assert wx_eval("run", folder / "run.toml") == 0
    assert "3 of 6 starts, 3 of them by an earlier run" in capsys.readouterr().err
    assert Records.from_parquet(folder / "ens.parquet") == expected()


def test_another_configuration_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    before = (folder / "ens.parquet").read_bytes()
    assert wx_eval("run", folder / "run.toml", "--leads", "1d", "--quiet") == 1
    message = capsys.readouterr().err
    assert "is of another configuration or version" in message
    assert message.count("\n") == 1
    assert (folder / "ens.parquet").read_bytes() == before
    assert wx_eval("run", folder / "run.toml", "--leads", "1d", "--quiet", "--overwrite") == 0
    assert Records.from_parquet(folder / "ens.parquet") == expected().select(lead_time=[DAY])


REFUSALS: dict[str, tuple[str, str]] = {
    'metrcs = ["rmse"]': ("run.toml", "unknown key 'metrcs' in the configuration, did you mean 'metrics'?"),
    "[regrid]\nmethod = 'nearest'": ("run.toml", "regrid must be one of ('bilinear', 'conservative')"),
    "[regrid]\ngrid = 'truth'": ("run.toml", "[regrid] is not complete"),
    "[climatology]\npath = 'x'\nfile = 1": ("run.toml", "unknown key 'file' in [climatology]"),
    "preset = 'wb2'\nweights = 'cos'": ("run.toml", "sets the weights"),
    "weights = 'cosine'": ("run.toml", "weights must be one of cell"),
    "leads = ['6 hours']": ("run.toml", "expected a duration such as"),
    "leads = ['9d']": ("run.toml", "forecast has no lead time"),
    "inits = ['2031-01-01']": ("run.toml", "forecast lacks 1 of 1 starts"),
    "inits = '2031-01-01/2031-02-01'": ("run.toml", "forecast has no start within"),
    "metrics = []": ("run.toml", "metrics is an empty list"),
    "metrics = [3]": ("run.toml", "expected a metric such as"),
    "metrics = [{tipe = 'MAE'}]": ("run.toml", "or a table with a type such as"),
    "leads = []": ("run.toml", "got an empty list"),
    "inits = []": ("run.toml", "inits is an empty list"),
    "[regrid]\nmethod = 'bilinear'\ngrid = 3": ("run.toml", "regrid.grid must be a string, got 3"),
    "land = 'ens.nc'": ("run.toml", "[land] is not complete: it needs variable"),
    "truth = {path = 'truth.nc', rename = 'x'}": ("run.toml", "truth.rename must be a table of names"),
    "align = 1": ("run.toml", "align must be true or false"),
    "model = ": ("run.toml", "no valid TOML"),
}


@pytest.mark.parametrize("line", REFUSALS)
def test_a_bad_configuration_is_one_line(folder: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, message = REFUSALS[line]
    keys = {part.split(" = ")[0] for part in line.splitlines()}
    kept = [row for row in CONFIG.splitlines() if row.split(" = ")[0] not in keys or line.startswith("[")]
    (folder / path).write_text("\n".join([*kept, line]))
    assert wx_eval("run", folder / path) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crps", "unknown metric 'crps', did you mean"),
        ("Brier(threshold=", "expected a metric such as"),
        ("Brier", "takes the settings ['threshold', 'event',"),
        ("RMSE(rooted=True)", "settings out of"),
    ],
)
def test_metrics_that_do_not_exist(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        metric(text)
    assert message in str(error.value)


def test_small_languages() -> None:
    assert metric("crps_fair") == CRPS("fair")
    assert metric("CRPS(kind='almost_fair', alpha=0.95)") == CRPS("almost_fair", 0.95)
    assert metric({"type": "WIS", "levels": [0.5, 0.9]}) == WIS((0.5, 0.9))
    assert durations("6h/1d/6h") == (21600, 43200, 64800, 86400)
    assert durations(["90s", "30min", "1.5h"]) == (90, 1800, 5400)
    assert members(["0", "2-4", 7]) == (0, 2, 3, 4, 7)
    held = np.arange("2020-01-01", "2020-01-11", 86400, dtype="datetime64[s]")
    assert chosen_inits("2020-01-02/2020-01-08/3d", held).tolist() == held[1:8:3].tolist()
    assert chosen_inits("2020-01-09/2021-01-01", held).tolist() == held[8:].tolist()
    assert chosen_inits(["2020-01-05"], held).tolist() == held[4:5].tolist()


def test_every_setting_is_read(tmp_path: Path) -> None:
    text = {
        "model": "m",
        "output": "o",
        "forecast": {"path": ["a", "b"], "members": "1-3", "lead_time": "6h", "rename": {"x": "y"}},
        "truth": {"path": "t", "channels": ["y"], "init_time": "2020-01-01"},
        "regrid": "bilinear",
        "land": {"path": "l", "variable": "lsm"},
        "regions": "global_land",
        "climatology": "c",
        "inits": ["2020-01-01"],
    }
    s = RunSettings.parse(text, str(tmp_path))
    assert s.forecast.members == (1, 2, 3)
    assert s.forecast.lead_time == 21600
    assert s.regrid is not None
    assert s.regrid.grid == "truth"
    assert s.climatology is not None
    assert s.path("x") == str(tmp_path / "x")


def test_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nothing"], ["merge", "a"], ["run", "--workers", "0"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["run", "--help"])
    assert stop.value.code == 0
    assert "example configuration" in capsys.readouterr().out


HEAVY = ("numpy", "xarray", "pandas", "scipy", "pyarrow", "importlib.metadata")


@pytest.mark.parametrize(
    ("arguments", "code", "absent"),
    [
        (["--help"], 0, HEAVY),
        *(([name, "--help"], 0, HEAVY) for name in COMMANDS),
        (["nothing"], 2, HEAVY),
        (["run", "--workers", "0"], 2, HEAVY),
        (["compare", "a", "b", "--months", "13"], 2, HEAVY),
        (["doctor", "nowhere.nc", "--truth", "nowhere.nc"], 1, ("scipy", "pyarrow.parquet")),
        (["info", "nowhere.nc"], 1, ("scipy", "pyarrow.parquet")),
        (["info", "nowhere.parquet"], 1, ()),
    ],
)
def test_help_and_usage_import_the_standard_library_alone(
    arguments: list[str], code: int, absent: tuple[str, ...]
) -> None:
    script = (
        "import sys\nfrom wx_eval._cli import main\ntry:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        "print()\nprint(code, *sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    found, *modules = done.stdout.splitlines()[-1].split()
    assert int(found) == code, done.stderr
    assert not set(absent) & set(modules)


def test_choices_of_options_are_those_of_the_package() -> None:
    assert sorted(PRESETS) == list(get_args(PresetName))
    assert set(COMMANDS) == set(_COMMANDS)


def test_a_closed_pipe_is_no_error(folder: Path) -> None:
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    line = shlex.join([sys.executable, "-m", "wx_eval", "info", str(folder / "ens.parquet")])
    done = subprocess.run(f"{line} | true", shell=True, capture_output=True, text=True)
    assert done.stderr == ""


def changed(folder: Path, name: str, change: Callable[[xr.Dataset], xr.Dataset]) -> Path:
    change(forecast()).to_netcdf(folder / name, engine="h5netcdf")
    return folder / name


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text": (lambda f: write_bytes(f / "x.nc", b"hello"), "it is neither netCDF, zarr nor GRIB"),
    "truncated": (lambda f: write_bytes(f / "x.nc", (f / "ens.nc").read_bytes()[:5000]), "truncated file"),
    "folder": (lambda f: f, "the folder holds no zarr; name files in it by a pattern"),
    "no start": (
        lambda f: changed(f, "x.nc", lambda d: d.isel(init_time=slice(0, 0))),
        "forecast holds no time",
    ),
    "letters": (
        lambda f: changed(f, "x.nc", lambda d: d.assign_coords(member=list("abcd"))),
        "must be labelled by whole numbers, got a",
    ),
    "halves": (
        lambda f: changed(f, "x.nc", lambda d: d.assign_coords(member=[0, 0.5, 1, 2])),
        "must be labelled by whole numbers, got 0.5",
    ),
    "level": (
        lambda f: changed(f, "x.nc", lambda d: d.assign_coords(level="high")),
        "levels must be pressures, got high",
    ),
    "leads": (
        lambda f: changed(f, "x.nc", lambda d: d.assign_coords(lead_time=[1, 2, 3])),
        "x.nc are plain numbers without a unit",
    ),
}


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_forecast_are_one_line(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD_FILES[name]
    path = make(folder)
    for arguments in (
        ["run", folder / "run.toml", "--forecast", path, "--quiet"],
        ["doctor", path, "--truth", folder / "truth.nc"],
        ["info", path],
    ):
        assert wx_eval(*arguments) == 1
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "ens.nc"], "ens.nc is no valid TOML"),
        (["run", "run.toml", "--regrid", ""], "regrid must be one of"),
        (["run", "run.toml", "--inits", ""], "expected a time such as"),
        (["run", "run.toml", "--inits", "2020-01-01/2020-01-05/0d"], "inits must be such as"),
        (["run", "run.toml", "--leads", "3d/1d/1d"], "expected a range such as"),
        (["run", "run.toml", "--forecast-members", "3-1"], "members '3-1' run backwards"),
        (["run", "run.toml", "--forecast-members", "7"], "has no member [7]; it has [0, 1, 2, 3]"),
        (["run", "run.toml", "--forecast-channels", "q"], "no channel of ['q']; it has ['t850']"),
        (["run", "run.toml", "--forecast-lead-time", "24h"], "ens.nc tells its lead_time itself"),
        (["run", "run.toml", "--climatology", "truth.nc"], "[climatology] truth.nc: "),
        (["merge", "ens.parquet", "-o", "a.parquet"], "no file 'ens.parquet'"),
        (["merge", "ens.parquet", "-o", "nowhere/a.parquet"], "there is no folder 'nowhere'"),
        (["score-tracks", "a=ens.parquet", "--best", "x", "-o", "a.parquet"], "no file 'ens.parquet'"),
        (["climatology", "truth.nc", "-o", "a.txt"], "must end in .nc or .zarr"),
        (["doctor", "ens.nc"], "doctor needs a truth"),
        (["info", "truth.nc", "--lead-time", "soon"], None),
        (["compare", "a", "b", "--alpha", "2"], None),
        (["compare", "a", "b", "--seed", "-1"], None),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str | None,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    if message is None:
        with pytest.raises(SystemExit) as stop:
            wx_eval(*arguments)
        assert stop.value.code == 2
        return
    assert wx_eval(*arguments) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in folder.iterdir()) == ["ens.nc", "run.toml", "truth.nc"]


def test_metrics_of_a_report_are_of_its_cards(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    page = ["report", folder / "ens.parquet", "-o", folder / "a.html"]
    assert wx_eval(*page, "--metric", "rmse") == 1
    assert "which need --baseline MODEL" in capsys.readouterr().err
    assert wx_eval(*page, "--baseline", "ens", "--metric", "rmsd") == 1
    assert "no metric ['rmsd'] in the records" in capsys.readouterr().err


def test_options_name_one_kind_of_truth(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reports among the options take the place of the files of the configuration."""
    assert wx_eval("run", folder / "run.toml", "--stations", "x.parquet", "--quiet") == 1
    assert "unknown key" not in capsys.readouterr().err


def test_debug_shows_where_an_error_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert wx_eval("info", "nowhere.parquet") == 1
    assert "Traceback" not in capsys.readouterr().err
    assert wx_eval("info", "nowhere.parquet", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def written(folder: Path, name: str, change: Callable[[xr.Dataset], xr.Dataset]) -> list[object]:
    """A changed forecast and the options that evaluate it."""
    change(forecast()).to_netcdf(folder / f"{name}.nc", engine="h5netcdf")
    where = ["--forecast", folder / f"{name}.nc", "-o", folder / f"{name}.parquet", "--quiet"]
    return ["run", folder / "run.toml", *where]


def test_other_orders_need_align_and_other_grids_regrid(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def turned(f: xr.Dataset) -> xr.Dataset:
        f = f.assign_coords(longitude=(LON + 180) % 360 - 180).sortby("longitude")
        return f.isel(latitude=slice(None, None, -1))

    run = written(folder, "turned", turned)
    assert wx_eval(*run) == 1
    assert "align = true (--align)" in capsys.readouterr().err
    assert wx_eval(*run, "--align") == 0
    assert Records.from_parquet(folder / "turned.parquet").table.equals(expected().table)

    run = written(folder, "coarse", lambda f: f.isel(latitude=slice(None, None, 2)))
    assert wx_eval(*run) == 1
    assert 'regrid = "bilinear" or "conservative" (--regrid)' in capsys.readouterr().err
    assert wx_eval(*run, "--regrid", "conservative:7x12") == 0
    got = Records.from_parquet(folder / "coarse.parquet")
    assert got.conventions.grid.startswith("7 x 12 ")
    assert got.conventions.truth == "truth, conservative to 7x12"
    assert got.runs["ens"][0]["regrid"] == {"method": "conservative", "grid": "7x12"}


def test_land_regions_from_a_file_in_another_order(folder: Path) -> None:
    share = np.random.default_rng(7).uniform(size=(LAT.size, LON.size))
    land = xr.Dataset({"lsm": (("lat", "lon"), share[::-1])}, {"lat": LAT[::-1], "lon": LON})
    land.to_netcdf(folder / "land.nc", engine="h5netcdf")
    text = CONFIG.replace('"europe"', '"tropics_land"') + '[land]\npath = "land.nc"\nvariable = "lsm"\n'
    (folder / "run.toml").write_text(text)
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    mask = (np.abs(LAT) <= 20)[:, None] & (share >= 0.5)
    points = Records.from_parquet(folder / "ens.parquet").select(region="tropics_land").table["n"]
    assert set(points.to_pylist()) == {int(mask.sum())}


def test_a_missing_truth_is_refused_before_any_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth().isel(time=slice(0, 5)).to_netcdf(folder / "truth.nc", engine="h5netcdf")
    assert wx_eval("run", folder / "run.toml", "--quiet") == 1
    assert "truth has no state at 2020-01-06T00:00:00, valid time of 2020-01-03" in capsys.readouterr().err
    assert not (folder / "ens.parquet.parts").exists()
    assert wx_eval("run", folder / "run.toml", "--quiet", "--missing-truth", "drop") == 0
    rows = Records.from_parquet(folder / "ens.parquet").to_xarray().isel(model=0, channel=0, region=0)
    valid = rows["init_time"] + rows["lead_time"]
    np.testing.assert_array_equal(rows["n"].T > 0, valid <= START + 4 * DAY)


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A climatology of the truth: mean, standard deviation and one quantile."""
    path = tmp_path_factory.mktemp("climatology") / "normal.nc"
    states = Truth(open_source(truth(), "truth", truth=True))
    built = DayClimatology.build(states, quantiles=[0.9], window_days=160, name="normal")
    built.dataset.to_netcdf(path, engine="h5netcdf")
    return path


@pytest.mark.parametrize(
    ("metric_text", "message"),
    [
        ("Brier(threshold='x')", "metric brier_fair(>x): a climatology has no statistic 'x': choose among"),
        (
            "Brier(threshold='quantile(0.5)')",
            "metric brier_fair(>quantile(0.5)): the quantiles of 'normal' are [0.9], not 0.5",
        ),
        ("FSS(threshold='quantile(0.2)',window=3)", "the quantiles of 'normal' are [0.9], not 0.2"),
        ("TwCRPS(lower='quantile(0.1)')", "the quantiles of 'normal' are [0.9], not 0.1"),
        ("RPS(thresholds=['mean','y'])", "a climatology has no statistic 'y'"),
        (
            "SEEPS(channels=['t850'],hours=24)",
            "climatology 'normal' holds no seeps_dry_fraction of any channel",
        ),
        ("Brier(threshold='quantile(0.9)')", ""),
        ("ACC(kind='wb2')", ""),
    ],
)
def test_a_climatology_without_what_a_metric_reads_is_refused_before_any_work(
    folder: Path,
    normal: Path,
    metric_text: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of the forecast is read: the field that is absent is named by the metric that asks for it."""
    monkeypatch.setattr(Job, "records", lambda *_: pytest.fail("work was done"))
    options = ["--metric", metric_text, "--quiet", "-o", folder / "x.parquet"]
    if not message:
        with pytest.raises(pytest.fail.Exception):
            wx_eval("run", folder / "run.toml", *options, "--climatology", normal)
        return
    assert wx_eval("run", folder / "run.toml", *options, "--climatology", normal) == 1
    assert message in capsys.readouterr().err
    assert wx_eval("run", folder / "run.toml", *options) == 1
    assert "(--climatology)" in capsys.readouterr().err


def test_a_climatology_without_a_name_says_how_to_give_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    days = {"hour": [0], "dayofyear": np.arange(1, 367), "latitude": LAT, "longitude": LON}
    field = (tuple(days), np.zeros((1, 366, LAT.size, LON.size), np.float32))
    xr.Dataset({"t850": field}, days).to_netcdf(folder / "bare.nc", engine="h5netcdf")
    assert wx_eval("run", folder / "run.toml", "--climatology", folder / "bare.nc") == 1
    message = "bare.nc: the climatology states no name: give it, such as name = 'ERA5 1990-2019'"
    assert message in capsys.readouterr().err


def test_merge_compare_scorecard_report_info(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse = written(
        folder, "worse", lambda f: f.assign(temperature=(f["temperature"] + 3).assign_attrs(units="K"))
    )
    assert wx_eval(*worse, "--model", "worse") == 0
    assert wx_eval("run", folder / "run.toml", "--quiet") == 0
    a, b = folder / "ens.parquet", folder / "worse.parquet"
    assert wx_eval("merge", a, b, "-o", folder / "both.parquet") == 0
    both = Records.from_parquet(folder / "both.parquet")
    assert both.models == ["ens", "worse"]
    assert both == Records.from_parquet(a).merge(Records.from_parquet(b))
    assert set(both.runs) == {"ens", "worse"}
    assert both.merge(both, Records.from_parquet(a)).runs == both.runs
    capsys.readouterr()
    assert wx_eval("compare", a, b, "--regions", "global", "--leads", "1d,2d", "--method", "iid") == 0
    out = capsys.readouterr().out
    assert "models: ens against worse" in out
    assert out.count("crps_fair  t850") == 2
    assert sum(line.endswith("better") for line in out.splitlines()) == 2
    assert wx_eval("compare", folder / "both.parquet", folder / "both.parquet") == 1
    assert "hold the models ['ens', 'worse']" in capsys.readouterr().err
    choose = ["--model-a", "worse", "--model-b", "ens", "--metric", "Brier(threshold=281.0)"]
    assert wx_eval("compare", folder / "both.parquet", folder / "both.parquet", *choose) == 0
    assert wx_eval("scorecard", a, b, "-o", folder / "card.html") == 0
    assert wx_eval("report", a, b, "--baseline", "worse", "-o", folder / "report.html") == 0
    figures = ["--figures", folder / "figures", "--title", "Two models"]
    assert wx_eval("report", folder / "both.parquet", *figures, "-o", folder / "both.html") == 0
    assert "Two models" in (folder / "both.html").read_text()
    assert f"wx-eval report {folder}/both.parquet" in (folder / "both.html").read_text()
    assert 'href="both.parquet"' in (folder / "both.html").read_text()
    assert len(list((folder / "figures").glob("*.svg"))) > 3
    for page in ("card.html", "report.html"):
        assert (folder / page).read_text().startswith("<!DOCTYPE html>")
    assert wx_eval("report", a, "--baseline", "worse", "-o", folder / "no.html") == 1
    capsys.readouterr()
    assert wx_eval("info", folder / "both.parquet") == 0
    out = capsys.readouterr().out
    assert "models: ens, worse" in out
    assert "starts: 6, 2020-01-01T00:00 to 2020-01-06T00:00, every 24 h" in out
    assert wx_eval("info", folder / "ens.nc") == 0
    assert "channels: t850 [K]" in capsys.readouterr().out


@pytest.fixture
def winter(tmp_path: Path) -> tuple[Path, Records, Records]:
    """Two models with 60 daily starts from December to January, on disk and in memory."""
    starts = np.datetime64("2019-12-01", "ns") + DAY * np.arange(60)
    reference = truth().assign_coords(time=starts[0] + DAY * np.arange(80))["temperature"]
    both = []
    for seed, name in ((1, "a"), (2, "b")):
        x = forecast(seed, 60).assign_coords(init_time=starts)["temperature"] + 0.3 * seed
        x = x.expand_dims(channel=["t850"], axis=3)
        both.append(
            evaluate(
                x,
                reference.expand_dims(channel=["t850"], axis=1),
                model=name,
                regions=["global", "nh"],
                metrics=[CRPS("fair"), RMSE()],
                weights="cos",
            )
        )
        both[-1].to_parquet(tmp_path / f"{name}.parquet")
    return tmp_path, both[0], both[1]


CHOICES: dict[str, dict[str, Any]] = {
    "": {},
    "--months 1": {"months": [1]},
    "--months 12,1 --sample valid": {"months": [1, 12], "sample": "valid"},
    "--lag 24h --sample starts": {"lag": DAY, "sample": "starts"},
    "--method bootstrap --seed 3 --resamples 200": {"method": "bootstrap", "seed": 3, "resamples": 200},
    "--method geer --correction holm --alpha 0.01": {
        "method": "geer",
        "correction": "holm",
        "alpha": 0.01,
    },
}


@pytest.mark.parametrize("options", CHOICES)
def test_choices_of_starts_and_test_reach_compare(
    winter: tuple[Path, Records, Records], options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, a, b = winter
    card = compare(a, b, "crps_fair", **CHOICES[options])
    assert wx_eval("compare", folder / "a.parquet", folder / "b.parquet", *options.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, value in card.settings().items():
        assert f"{name}: {value}" in lines
    cells = [line.split() for line in lines if line.startswith("crps_fair ")]
    assert len(cells) == len(card.cells)
    for line, cell in zip(cells, card.cells, strict=True):
        assert line[5] == str(cell.n)
        assert line[10] == f"{cell.p_adjusted:.3g}"
    paths = [folder / "a.parquet", folder / "b.parquet"]
    page = folder / "card.html"
    assert wx_eval("scorecard", *paths, *options.split(), "-o", page) == 0
    assert card.settings()["test"] in page.read_text()
    if options:
        assert wx_eval("report", *paths, "--baseline", "b", *options.split(), "-o", page) == 0
        text = page.read_text()
        assert card.settings()["test"] in text
        assert card.settings()["sample"] in text
        assert ("months" in CHOICES[options]) == ("Starts in the months" in text)


def test_choices_that_cannot_be(
    winter: tuple[Path, Records, Records], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, a, b = winter
    paths = folder / "a.parquet", folder / "b.parquet"
    for options, message in (
        ("--method bootstrap", 'method "bootstrap" needs a seed'),
        ("--seed 3", "no other method takes one"),
        ("--resamples 9", "--resamples is of --method bootstrap"),
        ("--months 6", "lies in the months [6], they lie in"),
        ("--preset atlas --method iid", "the preset sets the test: drop --method or the preset"),
        ("--preset atlas --leads 1d", "needs records that it evaluated"),
    ):
        assert wx_eval("compare", *paths, *options.split()) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        wx_eval("compare", *paths, "--months", "13")
    assert "months must be numbers from 1 to 12" in capsys.readouterr().err
    label = PRESETS["atlas"].label
    for records, path in ((a, paths[0]), (b, paths[1])):
        replace(records, conventions=replace(records.conventions, preset=label)).to_parquet(path)
    choices = ["--preset", "atlas", "--months", "12", "--leads", "2d", "--metric", "rmse"]
    assert wx_eval("compare", *paths, *choices) == 0
    out = capsys.readouterr().out
    assert "months of starts: 12" in out
    assert "standard error iid" in out
    assert [line.split()[3:5] for line in out.splitlines() if line.startswith("rmse ")] == [["48", "h"]] * 2
    assert wx_eval("report", *paths, "--months", "1", "-o", folder / "p.html") == 0
    assert "2020-01-01T00 to 2020-01-29T00, 29 in all" in (folder / "p.html").read_text()
    assert wx_eval("report", *paths, "-o", folder / "p.html") == 0
    assert "2019-12-01T00 to 2020-01-29T00, 60 in all" in (folder / "p.html").read_text()
    assert wx_eval("report", *paths, "--method", "ewc", "-o", folder / "p.html") == 1
    assert "the preset sets the test" in capsys.readouterr().err


def history(folder: Path) -> np.ndarray:
    """Four years of daily states (T, H, W) as past.nc."""
    times = np.arange("2016-01-01", "2020-01-01", 86400, dtype="datetime64[s]").astype("datetime64[ns]")
    values = np.random.default_rng(5).standard_normal((times.size, LAT.size, LON.size))
    data = dataset(values, ("time",), {"time": times})
    data.to_netcdf(folder / "past.nc", engine="h5netcdf")
    states: np.ndarray = data["temperature"].values
    return states


BASELINE = """
model = "%s"
output = "%s.parquet"
truth = "truth.nc"
metrics = ["crps_fair", "rmse"]
regions = ["global"]
weights = "equal"
leads = "1d/3d/1d"
inits = "2020-01-01/2020-01-06/1d"

[forecast]
baseline = "%s"
"""


def baseline(folder: Path, kind: str, more: str = "") -> Path:
    path = folder / f"{kind}.toml"
    path.write_text(BASELINE % (kind, kind, kind) + more)
    return path


def test_a_climatology_as_the_forecast(folder: Path) -> None:
    """Scores by numpy from the members that the docstring of `climatology` names."""
    states = history(folder)
    run = baseline(folder, "climatology", 'path = "past.nc"\nmembers = 6\nperiod = "2016/2019-12-15"\n')
    assert wx_eval("run", run, "--quiet") == 0
    found = Records.from_parquet(folder / "climatology.parquet")
    assert found.table["members"].to_pylist() == [6] * 18
    days = np.arange("2016-01-01", "2020-01-01", dtype="datetime64[D]")
    reference = truth()["temperature"].values
    rows = found.to_xarray().isel(model=0, channel=0, region=0)
    for i in range(6):
        for k in range(3):
            centres = [
                np.datetime64(f"{year}-01-01") + np.timedelta64(i + 1 + k, "D") for year in range(2015, 2022)
            ]
            near = [
                t for t, d in enumerate(days) if min(abs(d - c) for c in centres) <= np.timedelta64(15, "D")
            ]
            near = [t for t in near if days[t] <= np.datetime64("2019-12-15")]
            x = states[[near[int((m + 0.5) * len(near) / 6)] for m in range(6)]].astype(np.float64)
            y = reference[i + 1 + k]
            crps = np.abs(x - y).mean() - np.abs(x[:, None] - x).sum(axis=(0, 1)).mean() / 60
            at = {"init_time": START + i * DAY, "lead_time": (k + 1) * DAY}
            np.testing.assert_allclose(rows["crps_fair"].sel(at), crps, rtol=1e-6)
    assert wx_eval("run", run, "--quiet", "-o", folder / "two", "--workers", 2) == 0
    assert (folder / "two").read_bytes() == (folder / "climatology.parquet").read_bytes()


def test_settings_of_a_climatology_reach_it(folder: Path) -> None:
    states = history(folder)
    more = 'path = "past.nc"\nmembers = 5\nwindow_days = 4\ncalendar = "doy"\nrename = {t850 = "t"}\n'
    run = baseline(folder, "climatology", more + '[truth]\npath = "truth.nc"\nrename = {t850 = "t"}\n')
    run.write_text(run.read_text().replace('truth = "truth.nc"\n', "", 1).replace("2020-01", "2020-03"))
    assert wx_eval("run", run, "--quiet") == 0
    times = np.arange("2016-01-01", "2020-01-01", dtype="datetime64[D]").astype("datetime64[ns]")
    past = xr.DataArray(
        states[:, None],
        {"time": times, "channel": ["t"], "latitude": LAT, "longitude": LON},
        ("time", "channel", "latitude", "longitude"),
    )
    starts = np.datetime64("2020-03-01", "ns") + DAY * np.arange(6)
    chunks = climatology(past, starts, [DAY, 2 * DAY, 3 * DAY], members=5, window_days=4, calendar="doy")
    reference = truth()["temperature"].expand_dims(channel=["t"], axis=1)
    found = evaluate(
        chunks, reference, model="climatology", metrics=[CRPS("fair"), RMSE()], regions=["global"],
        weights="equal", truth_name="truth",
    )  # fmt: skip
    assert Records.from_parquet(folder / "climatology.parquet").table.equals(found.table)


def test_years_and_persistence_and_a_card_of_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = history(folder)
    assert wx_eval("run", baseline(folder, "persistence"), "--quiet") == 0
    monkeypatch.chdir(folder)
    options = ["--baseline", "climatology", "--forecast", "past.nc", "--forecast-years", "2016-2019"]
    options += ["--model", "years", "-o", "years.parquet", "--quiet"]
    assert wx_eval("run", "persistence.toml", *options) == 0
    reference = truth()["temperature"].values.astype(np.float64)
    one, many = (Records.from_parquet(f"{n}.parquet").to_xarray() for n in ("persistence", "years"))
    for i in range(6):
        for k in range(3):
            at = {"init_time": START + i * DAY, "lead_time": (k + 1) * DAY}
            error = reference[i] - reference[i + k + 1]
            np.testing.assert_allclose(one["mse_mean"].sel(at).values.ravel(), (error**2).mean(), rtol=1e-6)
            # 1 January of 2016 to 2019.
            mean = states[np.array([0, 366, 731, 1096]) + i + k + 1].astype(np.float64).mean(axis=0)
            error = mean - reference[i + k + 1]
            np.testing.assert_allclose(many["mse_mean"].sel(at).values.ravel(), (error**2).mean(), rtol=1e-6)
    capsys.readouterr()
    assert (
        wx_eval("scorecard", "persistence.parquet", "years.parquet", "--metric", "rmse", "-o", "c.html") == 0
    )
    assert "persistence against years" in (folder / "c.html").read_text()


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("persistence", "members = 3", "persistence takes no members"),
        ("persistence", "path = 'past.nc'", "forecast lacks 6 of 6 starts"),
        ("persistence", "leads = '1d'", "unknown key 'leads' in [forecast]"),
        ("climatology", "path = 'past.nc'", "either members = such as 50 or years"),
        ("climatology", "path = 'past.nc'\nmembers = 3\nyears = '2016-2018'", "either members"),
        ("climatology", "path = 'past.nc'\nmembers = '3-4'", "forecast.members must be one number"),
        ("climatology", "path = 'truth.nc'\nmembers = 3", "would have 8 states of the verified period"),
        ("climatology", "path = 'truth.nc'\nyears = '2020'", "leave that period out"),
        ("climatology", "path = 'past.nc'\nmembers = 3\ncalendar = 'x'", "forecast.calendar must be one of"),
        ("climatology", "path = 'past.nc'\nmembers = 3\nperiod = '2016'", "expected a period such as"),
        ("climatology", "path = 'past.nc'\nmembers = 999", "widen window_days or lower members"),
    ],
)
def test_a_baseline_that_cannot_be(
    folder: Path, kind: str, more: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    history(folder)
    assert wx_eval("run", baseline(folder, kind, more), "--quiet") == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_baseline_needs_starts_and_lead_times(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--baseline", "persistence", "--truth", folder / "truth.nc", "--model", "m", "-o", "o"]
    assert wx_eval("run", *options, "--leads", "1d") == 1
    assert "a baseline has no starts and lead times of its own" in capsys.readouterr().err
    more = ["--inits", "2020-01-01/2020-01-03", "--leads", "1d"]
    history(folder)
    climate = ["--baseline", "climatology", "--forecast", folder / "past.nc", "--forecast-members", "3"]
    assert wx_eval("run", *climate, *options[2:], *more) == 1
    assert "a climatology has no starts of its own" in capsys.readouterr().err


def test_options_are_added_to_sections(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of a section that no option names stay, and so does the meaning of its paths."""
    text = CONFIG.replace('forecast = "ens.nc"', "").replace('truth = "truth.nc"', "")
    sections = '[forecast]\npath = "ens.nc"\nrename = {t850 = "T"}\n[truth]\npath = "truth.nc"\n'
    (folder / "run.toml").write_text(text + sections)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    options = ["--truth-rename", "t850=T", "--forecast-members", "0-2", "--quiet", "-o", "x.parquet"]
    assert wx_eval("run", "../run.toml", *options) == 0
    found = Records.from_parquet("x.parquet")
    assert wx_eval("run", "../run.toml", *options[:-1], "y.parquet", "--forecast", "../ens.nc") == 0
    assert Records.from_parquet("y.parquet") == found
    assert found.channels == ["T"]
    assert set(found.table["members"].to_pylist()) == {3}


def test_doctor_exit_codes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wx_eval("doctor", folder / "ens.nc", "--truth", folder / "truth.nc") == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    forecast().isel(init_time=[0, 1, 2, 4, 5]).to_netcdf(folder / "ens.nc", engine="h5netcdf")
    assert wx_eval("doctor", folder / "ens.nc", "--truth", folder / "truth.nc") == 1
    assert "warning: missing starts" in capsys.readouterr().out
    assert wx_eval("doctor", folder / "ens.nc") == 1
    assert "doctor needs a truth" in capsys.readouterr().err


def test_a_climatology_from_files_serves_a_run(tmp_path: Path) -> None:
    """Two years of daily states; anomalies of the run are against the file that the command wrote."""
    times = np.arange("2018-01-01", "2020-01-01", 86400, dtype="datetime64[s]").astype("datetime64[ns]")
    values = np.random.default_rng(5).standard_normal((times.size, LAT.size, LON.size))
    dataset(values, ("time",), {"time": times}).to_netcdf(tmp_path / "past.nc", engine="h5netcdf")
    forecast().to_netcdf(tmp_path / "ens.nc", engine="h5netcdf")
    truth().to_netcdf(tmp_path / "truth.nc", engine="h5netcdf")
    assert (
        wx_eval("climatology", tmp_path / "past.nc", "-o", tmp_path / "clim.nc", "--name", "two years") == 0
    )
    (tmp_path / "run.toml").write_text(CONFIG.replace('"RMSE"', "\"ACC(kind='pooled')\""))
    run = ["run", tmp_path / "run.toml", "--climatology", tmp_path / "clim.nc", "--quiet"]
    assert wx_eval(*run) == 0
    got = Records.from_parquet(tmp_path / "ens.parquet")
    assert got.conventions.climatology == "two years"
    [square] = [s for s in got.statistics if s.startswith("anomaly_square") and "truth" in s]
    with xr.open_dataset(tmp_path / "clim.nc", engine="h5netcdf", decode_timedelta=True) as clim:
        normal = clim["t850"].sel(hour=0, dayofyear=2).transpose("latitude", "longitude").values
    anomaly = truth()["temperature"].sel(time=START + DAY).values.astype(np.float64) - normal
    from wx_eval import cell_weights

    first = got.to_xarray()[square].sel(region="global", lead_time=DAY).values.ravel()[0]
    assert first == pytest.approx(np.average((anomaly**2).mean(1), weights=cell_weights(LAT)), rel=1e-6)
