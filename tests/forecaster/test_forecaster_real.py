"""The forecaster on real files: channels, grids and units are mapped, gaps are the caller's decision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from recipes.forecaster.real import real
from recipes.forecaster.settings import Settings
from wx_data import Grid, SourceError, open_source

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def files() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"NOT TESTED on real files: {DATA} is absent")
    return DATA


CASES = {
    "era5": ("era5/era5_tl31_19590102T00.nc", {"history": "persist"}),
    "ifs": ("ifs_fc/ifs_pl_10deg_20240603-04_step0-6.grib", {}),
    "eda": ("era5/era5_eda10_z_t_500_850_20170101.grib", {"member": 3}),
}


@pytest.mark.parametrize("name", CASES)
def test_forecast_from_a_real_file(
    name: str, settings: Settings, run: Path, files: Path, tmp_path: Path
) -> None:
    file, choices = CASES[name]
    store = real(
        settings, run, file=files / file, out=tmp_path, fill="climatology", progress=False, **choices
    )
    data = xr.open_zarr(store, chunks=None)
    fields = data["forecast"].isel(init_time=0)
    assert np.isfinite(fields.values).all()
    assert (data["latitude"].values[[0, -1]] == [90, -90]).all()
    assert data["longitude"].values[0] == 0
    assert data["longitude"].values[-1] < 360
    expected = {"era5": "1959-01-02T00", "ifs": "2024-06-04T18", "eda": "2017-01-02T12"}[name]
    assert data["init_time"].values[0] == np.datetime64(expected)
    assert fields.sel(channel="z500")["units"] == "m2 s-2"
    assert fields.sel(channel="t850")["units"] == "K"
    assert "msl" in json.loads(data.attrs["analyses"])["filled"]
    assert "simulated planet" in data.attrs["comment"]
    page = (tmp_path / "report.html").read_text()
    assert "This is not a weather forecast" in page


def test_analyses_reach_the_forecaster_in_its_units_and_on_its_grid(files: Path) -> None:
    """Independent formula: area means of the regridded analysis against those of the file itself."""
    grid = Grid(np.linspace(90, -90, 33), np.arange(64) * 5.625)
    channels = ("z500", "t850", "u250", "q850")
    source = open_source(files / CASES["era5"][0], channels=channels, grid=grid)
    fields = source.read(source.times[-1:]).values[0]
    with xr.open_dataset(files / CASES["era5"][0]) as raw:
        for place, (variable, level) in enumerate(
            [
                ("geopotential", 500),
                ("temperature", 850),
                ("u_component_of_wind", 250),
                ("specific_humidity", 850),
            ]
        ):
            original = raw[variable].sel(level=level).squeeze().transpose("latitude", "longitude")
            weights = np.cos(np.deg2rad(original["latitude"].values))[:, None]
            mean = float((original.values * weights).sum() / (weights.sum() * original.shape[1]))
            ours = float((fields[place].mean(axis=1) * grid.area_weights()).sum() / grid.area_weights().sum())
            scale = float(original.std())
            assert abs(ours - mean) < 0.02 * scale, channels[place]


def test_what_a_file_lacks_is_one_clear_error(
    settings: Settings, run: Path, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="msl") as caught:
        real(settings, run, file=files / CASES["ifs"][0], out=tmp_path, progress=False)
    assert all(name in str(caught.value) for name in ("z250", "t2m", "tp"))
    with pytest.raises(SourceError, match="persist"):
        real(settings, run, file=files / CASES["era5"][0], out=tmp_path, fill="climatology", progress=False)
    assert not (tmp_path / "forecast.zarr").exists()
