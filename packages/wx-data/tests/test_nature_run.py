"""Data sets: what is written, resuming, sharing the work, and ensembles from true states."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from wx_data.nature import (
    NatureConfig,
    NatureModel,
    ensemble,
    load_states,
    operational,
    restart_states,
    run,
)
from wx_data.nature._dataset import explain_full_disk

CONFIG = NatureConfig()
PERIODS = [("2003-01-01", "2003-01-03"), ("2004-01-01", "2004-01-03")]
KEPT = ["2003-01-02T00", "2003-01-02T12", "2004-01-01T18"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Bits are promised on one thread, and at these sizes more threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nature")


@pytest.fixture(scope="module")
def truth(folder: Path) -> Path:
    return run(CONFIG, folder / "truth.zarr", PERIODS, restart_times=KEPT, progress=False)


def opened(path: Path) -> xr.Dataset:
    data: xr.Dataset = xr.open_zarr(path, decode_timedelta=False).load()
    return data


def test_the_data_set_is_cf_with_era5_names(truth: Path) -> None:
    data = opened(truth)
    assert set(data.data_vars) == {"z", "t", "u", "v", "q", "msl", "t2m", "tp", "z_surface", "lsm"}
    assert data["z"].dims == ("time", "level", "latitude", "longitude")
    assert data["msl"].dims == ("time", "latitude", "longitude")
    assert data["level"].values.tolist() == [850, 500, 250]
    assert data["latitude"].values[[0, -1]].tolist() == [90.0, -90.0]
    assert data["longitude"].values[[0, -1]].tolist() == [0.0, 354.375]
    hours = data["time"].values
    assert hours[0] == np.datetime64("2003-01-01")
    assert hours[-1] == np.datetime64("2004-01-02T18")
    assert (np.diff(hours) > np.timedelta64(0, "h")).all()
    units = {name: data[name].attrs["units"] for name in ("z", "u", "q", "msl", "t2m", "tp")}
    assert list(units.values()) == ["m**2 s**-2", "m s**-1", "kg kg**-1", "Pa", "K", "m"]
    assert data["tp"].attrs["accumulation_hours"] == 6
    assert all(np.isfinite(data[name]).all() for name in data.data_vars)
    assert (data["tp"].sel(time="2003-01-01T00").values > 0).any()
    assert not truth.with_name("truth.zarr.progress").exists()


def test_values_are_the_models_and_kept_states_reproduce_them(truth: Path) -> None:
    data, model = opened(truth), NatureModel(CONFIG)
    state = load_states(f"{truth}.restarts", KEPT)
    fields = model.output(state).numpy()
    for row, moment in enumerate(KEPT):
        record = data.sel(time=moment)
        assert np.array_equal(record["z"].values, fields[row, :3])
        assert np.array_equal(record["tp"].values, fields[row, -1])
    later = model.output(model.advance(state, 6)).numpy()
    assert np.array_equal(data["t2m"].sel(time="2003-01-02T06").values, later[0, -2])


def test_a_complete_run_is_not_done_again(truth: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in truth.rglob("*") if path.is_file()}
    run(CONFIG, truth, PERIODS, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in truth.rglob("*") if path.is_file()}


def test_shared_work_gives_the_same_bits(truth: Path, folder: Path) -> None:
    out = folder / "shared.zarr"
    run(CONFIG, out, PERIODS, part=(1, 2), progress=False)
    assert Path(f"{out}.progress").exists()
    run(CONFIG, out, PERIODS, part=(0, 2), progress=False)
    assert not Path(f"{out}.progress").exists()
    xr.testing.assert_identical(opened(out).drop_attrs(), opened(truth).drop_attrs())


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from wx_data.nature import NatureConfig, _dataset, run
write, written = _dataset.write, []

def write_and_die(*arguments):
    write(*arguments)
    written.append(1)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

_dataset.write = write_and_die
run(NatureConfig(), sys.argv[1], [("2005-01-01", "2005-01-27T12")], progress=False)
"""


def test_a_killed_run_resumes_with_the_same_bits(folder: Path) -> None:
    """Killed where it hurts most: the second block is written, the checkpoint still says that it is not."""
    interrupted, whole = folder / "killed.zarr", folder / "whole.zarr"
    command = [sys.executable, "-c", KILLED, str(interrupted)]
    ended = subprocess.run(command, env=os.environ | {"PYTHONWARNINGS": "default"}, timeout=300, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (folder / "killed.zarr.progress/part-0-of-1.npz").exists()
    for out in (interrupted, whole):
        run(CONFIG, out, [("2005-01-01", "2005-01-27T12")], progress=False)
    xr.testing.assert_identical(opened(interrupted), opened(whole))


def test_another_configuration_is_refused(truth: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"meridional_contrast = 85\.0 there and 60\.0 here"):
        run(NatureConfig(meridional_contrast=60.0), truth, PERIODS, progress=False)
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match="is no nature run"):
        run(CONFIG, tmp_path / "notes", PERIODS, progress=False)


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="repeat the same call") as caught, explain_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("periods", "message"),
    [
        ([], "periods is empty"),
        ([("2003-01-01", "2003-01-01T03")], "multiple of six hours"),
        ([("2003-01-01", "2003-01-02"), ("2004-01-01", "2004-01-03")], "equally long"),
        ([("2003-01-01", "2003-01-03"), ("2003-01-02", "2003-01-04")], "without overlap"),
        ([("2003-01-01", "2003-01-02"), ("2019-01-01", "2019-01-02")], "same of 16 shipped states"),
    ],
)
def test_bad_periods_are_refused(periods: list[tuple[str, str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(CONFIG, tmp_path / "x.zarr", periods, progress=False)


def test_bad_restarts_and_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no record of any period"):
        run(CONFIG, tmp_path / "x.zarr", PERIODS, restart_times=["2003-02-01"], progress=False)
    with pytest.raises(ValueError, match="2 periods need as many states"):
        run(CONFIG, tmp_path / "x.zarr", PERIODS, states=restart_states().select([0]), progress=False)
    with pytest.raises(ValueError, match="0 <= i < n"):
        run(CONFIG, tmp_path / "x.zarr", PERIODS, part=(2, 2), progress=False)


def test_ensemble_of_unperturbed_members_is_the_truth(truth: Path, folder: Path) -> None:
    states = load_states(f"{truth}.restarts", [KEPT[0]])
    out = ensemble(
        CONFIG, folder / "still.zarr", states, members=2, days=1, seed=0, perturbation=0.0, progress=False
    )
    forecast, data = opened(out), opened(truth)
    assert forecast["z"].dims == ("init_time", "lead_time", "member", "level", "latitude", "longitude")
    for member in range(2):
        lead = forecast["v"].isel(init_time=0, lead_time=2, member=member).values
        assert np.array_equal(lead, data["v"].sel(time="2003-01-02T18").values)


def test_operational_ensemble(truth: Path, folder: Path) -> None:
    states = load_states(f"{truth}.restarts", [KEPT[0], KEPT[2]])
    pool = restart_states().at("1999-01-05")
    arguments = {"members": 3, "days": 1, "seed": 4, "pool": pool, "truth": CONFIG, "progress": False}
    config = operational(CONFIG)
    out = ensemble(config, folder / "centre.zarr", states, **arguments)  # type: ignore[arg-type]
    forecast = opened(out)
    assert dict(forecast.sizes) == {
        "init_time": 2,
        "lead_time": 4,
        "member": 3,
        "level": 3,
        "latitude": 33,
        "longitude": 64,
    }
    assert forecast["lead_time"].values.tolist() == [6, 12, 18, 24]
    assert forecast["init_time"].values.tolist() == states.valid_time.astype("datetime64[ns]").tolist()
    assert all(np.isfinite(forecast[name]).all() for name in forecast.data_vars)
    spread = float(forecast["z"].sel(level=500).std("member").mean()) / 9.80665
    error = forecast["z"].sel(level=500).mean("member") / 9.80665
    truth_z = opened(truth)["z"].sel(level=500, time="2003-01-02T06").values / 9.80665
    miss = float(np.sqrt(((error.isel(init_time=0, lead_time=0).values - truth_z) ** 2).mean()))
    assert 2.0 < spread < 40.0
    assert 2.0 < miss < 60.0
    alone = ensemble(config, folder / "part.zarr", states, part=(1, 2), **arguments)  # type: ignore[arg-type]
    ensemble(config, alone, states, part=(0, 2), **arguments)  # type: ignore[arg-type]
    xr.testing.assert_identical(opened(alone).drop_attrs(), forecast.drop_attrs())


def test_bad_ensembles_are_refused(tmp_path: Path) -> None:
    states = restart_states().select([0, 1])
    with pytest.raises(ValueError, match="members >= 1"):
        ensemble(CONFIG, tmp_path / "x.zarr", states.select([0]), members=0, days=1, seed=0)
    with pytest.raises(ValueError, match="in order of time"):
        ensemble(CONFIG, tmp_path / "x.zarr", states, members=2, days=1, seed=0)
