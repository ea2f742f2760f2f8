"""Real files, kept beside the repository; without them the tests that need them are skipped loudly."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def samples() -> Path:
    folder = Path(__file__).resolve().parents[4] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"NOT TESTED: the real sample files are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def climate_members(samples: Path) -> np.ndarray:
    """Six-hourly surface temperature in K of 40 exchangeable climate runs at one point, without leap days.

    Shape (40, 8760) from 1990 on, NaN at the first time of 35 members.
    """
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: the climate ensemble is not read")
    with h5py.File(samples / "members/cesm_lens40_point_ts_6hourly_1990-1995.nc") as file:
        return np.asarray(file["TS"])
