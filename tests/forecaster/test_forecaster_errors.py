"""Bad input on its way through the forecaster: one clear error, and nothing lost."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from recipes.forecaster.assemble import build
from recipes.forecaster.data import data
from recipes.forecaster.forecast import forecast
from recipes.forecaster.settings import Settings
from recipes.forecaster.train import load, train
from wx_data import Grid, SourceError, Statistics, Store, StoreError, compute_statistics, convert, open_source

ROOT = Path(__file__).parents[2]


@pytest.fixture
def planet(run: Path) -> xr.Dataset:
    """Ten days of the nature run, as its user may have altered them."""
    return xr.open_zarr(run / "nature.zarr", chunks=None, consolidated=False).isel(time=slice(0, 40)).load()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").glob("c.*"))}


def test_missing_channel(planet: xr.Dataset, settings: Settings) -> None:
    with pytest.raises(SourceError, match="t2m"):
        open_source(planet.drop_vars("t2m"), channels=settings.nature.channels)


def test_wrong_units(planet: xr.Dataset, settings: Settings) -> None:
    planet["t"].attrs["units"] = "m"
    with pytest.raises(SourceError, match=r"t850.*'m'|'m'.*K|units"):
        open_source(planet, channels=settings.nature.channels)


def test_nan_is_refused_and_the_conversion_goes_on_after_the_repair(
    planet: xr.Dataset, settings: Settings, tmp_path: Path
) -> None:
    convert(open_source(planet), tmp_path / "whole", channels=settings.nature.channels)
    broken = planet.copy(deep=True)
    broken["q"][20, 0, 3, 4] = np.nan
    with pytest.raises(SourceError, match="q850"):
        convert(open_source(broken), tmp_path / "store", channels=settings.nature.channels)
    with pytest.raises(StoreError, match="convert"):
        Store(tmp_path / "store")
    report = convert(open_source(planet), tmp_path / "store", channels=settings.nature.channels)
    assert report.steps == 40
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_hole_in_time(planet: xr.Dataset, tmp_path: Path) -> None:
    gap = planet.isel(time=[*range(12), *range(13, 40)])
    with pytest.raises(SourceError, match="2001-01-03T18 -> 2001-01-04T06"):
        convert(open_source(gap), tmp_path / "store")


def test_truncated_shard_names_the_time_and_the_sizes(settings: Settings, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "train.store", tmp_path / "train.store")
    for shard in (tmp_path / "train.store" / "data").glob("c.*"):
        size = shard.stat().st_size
        shard.write_bytes(shard.read_bytes()[: size // 2])
    with pytest.raises(StoreError, match=r"200[12]-.*truncated"):
        train(settings, tmp_path, progress=False)


def test_statistics_of_another_store(
    planet: xr.Dataset, settings: Settings, run: Path, tmp_path: Path
) -> None:
    channels = settings.nature.channels
    convert(open_source(planet), tmp_path / "other", channels=(*channels[1:], channels[0]))
    other = compute_statistics(Store(tmp_path / "other"), leads=(settings.step_hours,))
    with pytest.raises(StoreError, match="other channels"):
        build(settings, Store(run / "train.store"), other)
    coarse = open_source(planet, channels=channels, grid=Grid.regular(17, 32))
    convert(coarse, tmp_path / "coarse")
    other = compute_statistics(Store(tmp_path / "coarse"), leads=(settings.step_hours,))
    with pytest.raises(StoreError, match="another grid"):
        build(settings, Store(run / "train.store"), other)


def test_checkpoint_of_another_configuration(settings: Settings, run: Path) -> None:
    wider = replace(settings, latent_width=64)
    with pytest.raises(ValueError, match=r"latent_width is 32 there and 64 now"):
        wider.keep(run)
    with pytest.raises(ValueError, match=r"another configuration.*latent_width"):
        load(wider, run)


def test_steps_in_the_wrong_order(settings: Settings, run: Path, tmp_path: Path) -> None:
    for name in ("train.store", "test.store"):
        (tmp_path / name).symlink_to(run / name)
    with pytest.raises(FileNotFoundError, match="`train` step first"):
        forecast(settings, tmp_path, progress=False)


def test_disk_full_is_said_and_the_rerun_finishes(settings: Settings, run: Path, tmp_path: Path) -> None:
    """A limit on the size of files makes the same system call fail as a full disk does."""
    for name in ("nature.zarr", "nature.zarr.restarts"):
        (tmp_path / name).symlink_to(run / name)
    settings.keep(tmp_path)
    limited = subprocess.run(
        [sys.executable, "-m", "recipes.forecaster", "data", "--out", str(tmp_path), "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    assert limited.returncode == 1
    assert "full" in limited.stderr.splitlines()[-1]
    data(settings, tmp_path, progress=False)
    assert contents(tmp_path / "train.store") == contents(run / "train.store")
    assert Statistics.load(tmp_path / "train.store").digests == Statistics.load(run / "train.store").digests
