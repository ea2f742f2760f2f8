"""Climatology against its definition, term by term, and as an array of the store."""

import datetime
import json
import os
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_data import Grid, Store, StoreError, _climatology, convert
from wx_data._climatology import climatology, open_climatology
from wx_data._grid import Grid as _Grid
from wx_data._store import field_array

HALF = 7


class Smooth:
    """Values that tell day, year and place apart: (month, day, year) as one number, plus the place."""

    def __init__(self, start: str, stop: str, grid: _Grid, names: Sequence[str] = ("t850", "msl")) -> None:
        self.channels, self.grid = tuple(names), grid
        self.times = np.arange(start, stop, np.timedelta64(12, "h"), dtype="datetime64[h]").astype("M8[ns]")

    def read(self, times: Any, channels: Sequence[str], /) -> xr.DataArray:
        days = np.asarray(times).astype("M8[h]").astype(np.int64) / 24
        place = np.arange(np.prod(self.grid.shape)).reshape(self.grid.shape) / 50
        base = np.array([260.0 if name == "t850" else 1e5 for name in channels])
        signal_ = 10 * np.sin(days / 50) + 3 * np.sin(days / 3.7)
        values = base[None, :, None, None] + signal_[:, None, None, None] + place
        return field_array(values.astype(np.float32), np.asarray(times), tuple(channels), self.grid)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("climatology") / "s"
    convert(Smooth("2002-06-20", "2005-09-10", Grid.regular(7, 4)), path, band_rows=3)
    return Store(path)


def _weight(kind: str, days: int) -> float:
    if abs(days) > HALF:
        return 0.0
    return 1 - abs(days) / (HALF + 1) if kind == "triangular" else np.exp(-0.5 * (days * 6 / 15) ** 2)


def _by_definition(store: Store, kind: str, day: int, hour: int) -> np.ndarray:
    """Every field against the day's occurrence in every year, by the calendar of the standard library."""
    total, weights = 0.0, 0.0
    for time in store.times[store.hours % 24 == hour]:
        date = time.astype("M8[D]").astype(datetime.date)
        for year in range(date.year - 1, date.year + 2):
            centre = datetime.date(year, 1, 1) + datetime.timedelta(days=day - 1)
            weight = _weight(kind, (date - centre).days)
            if weight:
                total = total + weight * store.read(time).values[0].astype(np.float64)
                weights += weight
    return total / weights


@pytest.mark.parametrize("kind", ["gaussian", "triangular"])
def test_definition(store: Store, kind: Any) -> None:
    found = climatology(store, window=2 * HALF + 1, weights=kind)
    assert found.dims == ("dayofyear", "hour", "channel", "latitude", "longitude")
    assert found.shape == (366, 2, 2, 7, 4)
    for day, hour in [(1, 0), (4, 12), (59, 0), (60, 0), (61, 12), (180, 0), (360, 12), (365, 0), (366, 12)]:
        expected = _by_definition(store, kind, day, hour)
        np.testing.assert_allclose(found.sel(dayofyear=day, hour=hour).values, expected, rtol=1.2e-7)


def test_plain_xarray_opens_it(store: Store) -> None:
    found = climatology(store, window=15, period=("2003", "2004"))
    dataset = xr.open_zarr(store.path, chunks=None)
    np.testing.assert_array_equal(dataset["climatology"].values, found.values)
    assert dataset["dayofyear"].values.tolist() == list(range(1, 367))
    assert dataset["hour"].values.tolist() == [0, 12]
    pytest.importorskip("h5netcdf")
    dataset.isel(dayofyear=[0], time=[0]).to_netcdf(store.path.parent / "first.nc", engine="h5netcdf")
    about = json.loads(dataset["climatology"].attrs["wx_climatology"])
    assert about["period"] == ["2003-01-01T00", "2004-12-31T12"]
    assert (about["window_days"], about["weights"], about["steps"]) == (15, "gaussian", 2 * 731)
    assert dataset["data"].sizes["time"] == len(store)
    Store(store.path, verify="checksum")
    # By the day of the year of any time, as users select.
    times = xr.DataArray(store.times[:3], dims="time")
    assert found.sel(dayofyear=times.dt.dayofyear, hour=times.dt.hour).sizes["time"] == 3


def test_a_window_of_one_day_is_that_day(tmp_path: Path) -> None:
    convert(Smooth("2003-01-01", "2004-01-01", Grid.regular(3, 2)), tmp_path / "s")
    store = Store(tmp_path / "s")
    found = climatology(store, window=1, weights="triangular")
    values = store.read(store.times).values.astype(np.float64)
    # One common year and one day: every day is itself, and day 366 is 1 January.
    np.testing.assert_array_equal(found.values[:365, 0], values[::2].astype(np.float32))
    np.testing.assert_array_equal(found.values[365], found.values[0])


def test_memory_does_not_change_the_result(store: Store) -> None:
    wide = climatology(store, window=9, memory_bytes=1 << 30).values
    files = len(list((store.path / "climatology").glob("c.*")))
    small = climatology(store, window=9, memory_bytes=900 * 8 * 2 * 4 * 3)
    assert len(list((store.path / "climatology").glob("c.*"))) > files
    np.testing.assert_allclose(small.values, wide, rtol=1.2e-7)  # one unit in the last place
    with pytest.raises(ValueError, match="does not hold the sums of one band of 3 rows"):
        climatology(store, window=9, memory_bytes=1000)


def test_missing_values_are_left_out(tmp_path: Path) -> None:
    source = Smooth("2003-01-01", "2004-01-05", Grid.regular(3, 2))
    read = source.read

    def with_gaps(times: Any, channels: Sequence[str], /) -> xr.DataArray:
        array = read(times, channels).copy()
        early = np.asarray(times) < np.datetime64("2003-01-05")
        array.values[early, 0, 0, 0] = np.nan
        array.values[:, 0, 2, 1] = np.nan
        return array

    source.read = with_gaps
    convert(source, tmp_path / "s", nan={"t850": "keep"})
    store = Store(tmp_path / "s")
    found = climatology(store, window=3, weights="triangular").sel(dayofyear=3, hour=12)
    assert np.isnan(found.values[0, 2, 1])
    date = store.read(np.array(["2004-01-02T12", "2004-01-03T12", "2004-01-04T12"], "M8[ns]"))
    expected = np.average(date.values[:, 0, 0, 0].astype(np.float64), weights=[0.5, 1, 0.5])
    np.testing.assert_allclose(found.values[0, 0, 0], expected, rtol=1.2e-7)


def test_killed_climatology_goes_on(store: Store) -> None:
    whole = climatology(store, window=11, memory_bytes=1 << 30).values
    climatology(store, window=13)  # another one takes its place
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside idle threads
        child = os.fork()
    if child == 0:
        write = _climatology.write_atomic

        def third(path: Path, data: bytes) -> None:
            if path.name.startswith("c.0.1."):
                os.kill(os.getpid(), signal.SIGKILL)
            write(path, data)

        _climatology.write_atomic = third
        climatology(store, window=11)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    left = store.path / "_wx" / "climatology" / "c.0.0.0.0.0"
    written = left.stat().st_mtime_ns
    assert json.loads(open_climatology(store).attrs["wx_climatology"])["window_days"] == 13
    np.testing.assert_array_equal(climatology(store, window=11).values, whole)
    assert (store.path / "climatology" / "c.0.0.0.0.0").stat().st_mtime_ns == written
    assert not left.parent.exists()


def test_what_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="odd number of days"):
        climatology(store, window=60)
    with pytest.raises(ValueError, match='"gaussian" or "triangular"'):
        climatology(store, weights="flat")
    with pytest.raises(ValueError, match="no field at 0 UTC lies within 2 days of day 34 of the year"):
        climatology(store, period=("2003-01-01", "2003-01-31"), window=5)
    with pytest.raises(ValueError, match=r"hours \(6,\) are not all in the period; it has \[0, 12\]"):
        climatology(store, hours=[6])
    convert(Smooth("2003-01-01", "2003-01-05", Grid.regular(3, 2)), tmp_path / "s")
    with pytest.raises(StoreError, match="has no climatology"):
        open_climatology(tmp_path / "s")
