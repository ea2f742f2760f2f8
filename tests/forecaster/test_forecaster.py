"""The assembled forecaster, end to end on seconds of data: every step, interrupted steps, real files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from recipes.forecaster.data import simulate, spin_up_years
from recipes.forecaster.forecast import forecast, issue
from recipes.forecaster.settings import PRESETS, Settings
from recipes.forecaster.train import load, train
from wx_data import Store, open_forecast, open_source
from wx_data.nature import NatureConfig, NatureModel, load_states, spin_up
from wx_estimators import StochasticInterpolant
from wx_eval import Records

ROOT = Path(__file__).parents[2]


def test_settings_round_trip_and_reject_what_they_do_not_know(settings: Settings) -> None:
    assert Settings.from_dict(settings.to_dict()) == settings
    changed = settings.changed(["steps=7", "nature.friction_days=2", "estimator=edm"])
    assert (changed.steps, changed.nature.friction_days, changed.estimator) == (7, 2, "edm")
    for made in PRESETS.values():
        assert Settings().changed(made().assignments()) == made()
    with pytest.raises(ValueError, match="unknown setting 'stepz'"):
        settings.changed(["stepz=7"])
    with pytest.raises(ValueError, match="steps=many"):
        settings.changed(["steps=many"])


def test_training_years_and_test_year_do_not_touch(settings: Settings, run: Path) -> None:
    past, truth = Store(run / "train.store"), Store(run / "test.store")
    assert past.times[-1] + np.timedelta64(30, "h") <= truth.times[0]
    assert len(past.gaps) == settings.train_years - 1
    assert settings.init_times.min() - np.timedelta64(settings.step_hours, "h") >= truth.times[0]


def test_a_planet_whose_states_are_not_shipped_is_spun_up(settings: Settings, tmp_path: Path) -> None:
    nature = NatureConfig(truncation=15, levels=3, step_minutes=45, grid=(17, 32))
    small = replace(settings, nature=nature, days=9, starts=2, scorecard_days=(1,), forecast_days=1)
    for part in range(2):
        spin_up_years(small, tmp_path, (part, 2), progress=False, days=3)
    spun = load_states(tmp_path / "spin_up")
    assert list(spun.valid_time) == [start for start, _ in small.periods]
    simulate(small, tmp_path, (0, 1), progress=False)
    first = open_source(tmp_path / "nature.zarr").read([small.periods[0][0]], ["t850"]).values
    # A run begins a day early, so that its first record has rain.
    whole = spin_up(nature, 3, days=3, seed=small.seed).at(small.periods[0][0] - np.timedelta64(24, "h"))
    model = NatureModel(nature)
    at_start = model.output(model.advance(whole, 24))[:1, nature.channels.index("t850")]
    np.testing.assert_allclose(first[0], at_start, atol=1e-3)


def test_forecast_is_a_cf_store_that_plain_xarray_reads(settings: Settings, run: Path) -> None:
    data = xr.open_zarr(run / "forecast.zarr", chunks=None)
    fields = data["forecast"]
    assert fields.dims == ("init_time", "lead_time", "member", "channel", "latitude", "longitude")
    assert fields.shape == (3, 2, 3, 18, 33, 64)
    assert data.attrs["Conventions"].startswith("CF-")
    assert "simulated planet" in data.attrs["comment"]
    assert data["init_time"].attrs["standard_name"] == "forecast_reference_time"
    assert (data["latitude"].values[[0, -1]] == [90, -90]).all()
    np.testing.assert_array_equal(data["init_time"].values, settings.init_times.astype("datetime64[ns]"))
    assert np.isfinite(fields.values).all()


def test_scores_hold_every_model_start_and_lead(settings: Settings, run: Path) -> None:
    records = Records.from_parquet(run / "scores.parquet")
    assert len(records.models) == 5
    assert len(records.init_times) == settings.starts
    assert len(records.lead_times) == len(settings.leads)
    assert len(records.channels) == 18
    page = (run / "report.html").read_text()
    for heading in ("Against climatology", "Fair CRPS", "Spread / skill", "Power spectra", "Settings"):
        assert heading in page
    assert "simulated planet" in page


def test_perfect_model_beats_persistence(run: Path) -> None:
    """Order of trust: the truth's own model must be far better than no forecast at all."""
    table = Records.from_parquet(run / "scores.parquet").select(region="global").to_xarray()
    crps = table["crps_fair"].mean("init_time").isel(region=0, lead_time=0)
    ratio = crps.sel(model="perfect model") / crps.sel(model="persistence")
    assert float(ratio.sel(channel="z500")) < 0.5


def test_a_member_does_not_depend_on_the_ensemble_it_is_in(settings: Settings, run: Path) -> None:
    parts, trained = load(settings, run)
    init = settings.init_times[0]
    times = np.array([init - np.timedelta64(settings.step_hours, "h"), init])
    states = torch.from_numpy(Store(run / "test.store").read(times).values)
    two, three = (list(issue(parts, trained, states, init, members))[-1] for members in (2, 3))
    scale = three.std(dim=(0, 2, 3), keepdim=True)
    torch.testing.assert_close(two / scale, three[:2] / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("estimator", ["crps", "edm"])
def test_every_estimator_goes_through_the_same_steps(
    estimator: str, settings: Settings, run: Path, tmp_path: Path
) -> None:
    other = replace(settings, estimator=estimator, steps=3, projector_steps=2)
    for name in ("train.store", "test.store"):
        (tmp_path / name).symlink_to(run / name)
    train(other, tmp_path, progress=False)
    forecast(other, tmp_path, progress=False)
    fields = open_forecast(tmp_path / "forecast.zarr")["forecast"].values
    assert np.isfinite(fields).all()
    assert (fields.std(axis=2) > 0).any()


def test_solver_steps_are_chosen_at_the_forecast(settings: Settings, run: Path) -> None:
    _, trained = load(replace(settings, sampler_steps=7), run)
    assert isinstance(trained, StochasticInterpolant)
    assert trained.steps == 7


KILLS = {
    "data": lambda run: any((run / "nature.zarr.progress").glob("part-*.npz")),
    "conversion": lambda run: len(list((run / "train.store" / "data").glob("c.*"))) > 20,
    "projector": lambda run: (run / "model" / "projector.checkpoint").exists(),
    "network": lambda run: (run / "model" / "network.checkpoint").exists(),
    "forecast": lambda run: any((run / "forecast.zarr" / "forecast").glob("c.*")),
}


def test_killed_anywhere_and_run_again_gives_the_same_scores(
    settings: Settings, run: Path, tmp_path: Path
) -> None:
    settings.keep(tmp_path)
    command = [sys.executable, "-m", "recipes.forecaster", "run", "--out", str(tmp_path), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = []
    for name, reached in KILLS.items():
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and not reached(tmp_path):
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        killed.append(name if process.returncode == -signal.SIGKILL else f"{name}: ended before")
    assert killed == list(KILLS)
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    found, expected = (Records.from_parquet(folder / "scores.parquet") for folder in (tmp_path, run))
    assert found == expected
