"""Climatology by day and hour: against sums over Python dates, peers' definitions, bounded memory."""

import os
import signal
import subprocess
import sys
import tracemalloc
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_eval import climatology
from wx_eval._climatology import DayClimatology
from wx_eval._seasons import weighted_quantiles

DIMS = ("time", "channel", "latitude", "longitude")
LAT, LON = np.array([60.0, 0, -60]), np.array([0.0, 180])


def history(
    start: str = "2003-01-01", end: str = "2009-01-01", hours: int = 12, seed: int = 0, dtype: str = "f8"
) -> xr.DataArray:
    """Seasonal cycle, diurnal cycle and noise, over two leap years."""
    times = np.arange(start, end, np.timedelta64(hours, "h"), dtype="datetime64[ns]")
    rng = np.random.default_rng(seed)
    day = (times - times[0]) / np.timedelta64(1, "D")
    wave = 20 * np.cos(2 * np.pi * day / 365.25) + 3 * (day % 1)
    noise = rng.standard_normal((times.size, 2, 3, 2))
    values = 5.5e4 + wave[:, None, None, None] + noise
    values[:, 1] = np.maximum(rng.gamma(0.5, 4, (times.size, 3, 2)) - 0.6, 0) / 1000
    coords = {
        "time": times,
        "channel": ["z500", "tp"],
        "latitude": LAT,
        "longitude": LON,
        "units": ("channel", ["m2 s-2", "m"]),
    }
    return xr.DataArray(values.astype(dtype), coords, DIMS)


def days_apart(a: tuple[int, int], sample: date) -> int:
    """Days between a month-day and a date around the ring of the date's own year, by Python dates."""
    leap = sample.year % 4 == 0
    month, day = a if leap or a != (2, 29) else (2, 28)
    length = 366 if leap else 365
    days = abs((date(sample.year, month, day) - sample).days)
    return min(days, length - days)


def sample(
    states: xr.DataArray, month_day: tuple[int, int], hour: int, half: int
) -> tuple[np.ndarray, np.ndarray]:
    """States in a window with triangular weights: the documented rule, state by state."""
    chosen, weights = [], []
    for t, values in zip(states["time"].values.astype("datetime64[s]").tolist(), states.values, strict=True):
        days = days_apart(month_day, t.date())
        if t.hour == hour and days <= half:
            chosen.append(values)
            weights.append(1 - days / half if half else 1.0)
    return np.array(chosen), np.array(weights)


@pytest.mark.parametrize("day", ["2008-02-29", "2007-03-01", "2007-01-02", "2008-12-31", "2006-07-15"])
def test_mean_and_std_are_weighted_moments_of_the_states_in_the_window(day: str) -> None:
    states = history()
    built = DayClimatology.build(states, window_days=10)
    moment = np.datetime64(day) + np.timedelta64(12, "h")
    when = moment.astype("datetime64[s]").item()
    x, w = sample(states, (when.month, when.day), 12, 10)
    mean = np.average(x, axis=0, weights=w)
    std = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
    got = built.at("mean", moment)
    np.testing.assert_allclose(got, mean, rtol=1e-13)
    np.testing.assert_allclose(built.at("std", moment), std, rtol=1e-9)
    assert got.dims == ("channel", "latitude", "longitude")
    assert got["units"].values.tolist() == ["m2 s-2", "m"]


def test_the_29th_of_february_has_its_own_neighbours() -> None:
    """A ramp within each year: windows are symmetric, so the mean at a day is the value of that day."""
    times = np.arange("2004-01-01", "2008-01-01", dtype="datetime64[D]")
    ramp = (times - times.astype("datetime64[Y]").astype("datetime64[D]")).astype(float)
    ramp = np.broadcast_to(ramp[:, None, None, None], (times.size, 1, 1, 1))
    coords = {"time": times.astype("datetime64[ns]"), "channel": ["x"], "latitude": [0.0], "longitude": [0.0]}
    built = DayClimatology.build(xr.DataArray(ramp, coords, DIMS), window_days=5)
    at = {d: built.at("mean", np.datetime64(d)).item() for d in ("2005-02-20", "2004-02-29", "2005-03-10")}
    # One leap year of four: from March on its count is one ahead.
    assert at == pytest.approx({"2005-02-20": 50, "2004-02-29": 0.25 * 59 + 0.75 * 58, "2005-03-10": 68.25})


def test_doy_calendar_is_that_of_weatherbench_2() -> None:
    """Years stacked by day of year, day 366 of common years filled with day 365, wrapped windows."""
    states, half = history(hours=24), 15
    built = DayClimatology.build(states, window_days=half, calendar="doy", quantiles=(0.1, 0.5))
    years = np.full((6, 366, 2, 3, 2), np.nan)
    stamps = states["time"].values.astype("datetime64[D]")
    year = stamps.astype("datetime64[Y]").astype(int) - 33
    years[year, (stamps - stamps.astype("datetime64[Y]")).astype(int)] = states.values
    years[:, 365] = np.where(np.isnan(years[:, 365]), years[:, 364], years[:, 365])
    weights = np.concatenate([np.linspace(0, 1, half + 1), np.linspace(1, 0, half + 1)[1:]])
    for day, moment in ((1, "2007-01-01"), (60, "2007-03-01"), (60, "2008-02-29"), (366, "2008-12-31")):
        window = years[:, (day - 1 + np.arange(-half, half + 1)) % 366]
        mean = np.einsum("w,ywchl->chl", weights, window) / weights.sum() / 6
        var = np.einsum("w,ywchl->chl", weights, (window - mean) ** 2) / weights.sum() / 6
        np.testing.assert_allclose(built.at("mean", np.datetime64(moment)), mean, rtol=1e-13)
        np.testing.assert_allclose(built.at("std", np.datetime64(moment)), np.sqrt(var), rtol=1e-9)
        array = xr.DataArray(window, dims=("y", "w", "c", "h", "l"))
        peer = array.weighted(xr.DataArray(weights, dims="w")).quantile([0.1, 0.5], dim=("y", "w"))
        for q, field in zip((0.1, 0.5), peer, strict=True):
            got = built.at(f"quantile({q})", np.datetime64(moment))
            np.testing.assert_allclose(got, field, rtol=1e-12, atol=1e-15)


def test_weighted_quantiles_without_weights_are_those_of_numpy() -> None:
    x = np.random.default_rng(1).standard_normal((5, 37))
    got = weighted_quantiles(x, np.full(37, 3.0), (0, 0.05, 0.5, 2 / 3, 1))
    np.testing.assert_allclose(got, np.quantile(x, (0, 0.05, 0.5, 2 / 3, 1), axis=1), rtol=1e-12)
    # A weight of zero is an absent state, and integer weights are not repetitions of it (Kish's size).
    w = np.where(np.arange(37) % 3 == 0, 0.0, 1.0)
    np.testing.assert_allclose(
        weighted_quantiles(x, w, (0.3,)), [np.quantile(x[:, w > 0], 0.3, axis=1)], rtol=1e-12
    )


def test_seeps_climatology_splits_wet_days_two_to_one() -> None:
    states = history(hours=24)
    built = DayClimatology.build(states, seeps={"tp": 0.25}, window_days=20, kernel="flat")
    when = np.datetime64("2007-03-05")
    near = [
        days_apart((3, 5), t.date()) <= 20 for t in states["time"].values.astype("datetime64[s]").tolist()
    ]
    rain = states.sel(channel="tp").values[near]
    wet = np.where(rain > 0.25e-3, rain, np.nan)
    threshold = built.at("seeps_threshold", when)
    assert threshold["channel"].values.tolist() == ["tp"]
    np.testing.assert_allclose(threshold[0], np.nanquantile(wet, 2 / 3, axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        built.dataset["tp_seeps_dry_fraction"].sel(dayofyear=65, hour=0), np.isnan(wet).mean(0), rtol=1e-12
    )
    mean = built.dataset["tp_seeps_dry_fraction"].mean(("hour", "dayofyear"))
    np.testing.assert_allclose(built.at("seeps_dry_fraction", when)[0], mean, rtol=1e-12)


def test_little_memory_gives_the_same_bits_and_reads_more_often() -> None:
    states = history("2003-01-01", "2006-01-01", dtype="f4")
    reads = []

    class Counted:
        times = states["time"].values

        def read(self, times: np.ndarray, /) -> xr.DataArray:
            reads.append(times.size)
            return states.sel(time=times)

    options = {"window_days": 5, "quantiles": (0.9,), "seeps": {"tp": 0.25}}
    whole = DayClimatology.build(states, **options)
    small = DayClimatology.build(Counted(), **options, memory_bytes=100_000)
    assert max(reads) * 48 <= 100_000 / 4
    assert sum(reads) > 5 * states.sizes["time"]
    xr.testing.assert_identical(whole.dataset, small.dataset)
    assert whole.dataset["z500"].dtype == np.float32


def test_float32_fields_keep_their_small_deviations() -> None:
    states = history(dtype="f4")
    exact = DayClimatology.build(states.astype("f8"), window_days=10)
    got = DayClimatology.build(states, window_days=10)
    np.testing.assert_allclose(got.dataset["z500_std"], exact.dataset["z500_std"], rtol=2e-7)


def test_missing_states_make_their_windows_missing_and_no_others() -> None:
    states = history(hours=24)
    states[100, 0, 1, 1] = np.nan
    built = DayClimatology.build(states, window_days=3, quantiles=(0.5,))
    gaps = np.flatnonzero(np.isnan(built.dataset["z500"][0, :, 1, 1]))
    assert gaps.min() == 101 - 3
    assert gaps.max() == 101 + 3
    assert int(built.dataset["z500"].isnull().sum()) == 7
    np.testing.assert_array_equal(
        built.dataset["z500"].isnull(), built.dataset["z500_quantile"].isnull().squeeze("quantile")
    )


def test_it_survives_zarr(tmp_path: Path) -> None:
    pytest.importorskip("zarr", reason="the extra zarr is not installed")
    built = DayClimatology.build(history(hours=24), window_days=4, quantiles=(0.9, 0.1))
    built.dataset.to_zarr(tmp_path / "c.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "c.zarr", consolidated=False, chunks=None) as dataset:
        again, when = DayClimatology.open(dataset), np.datetime64("2011-05-06")
        xr.testing.assert_identical(again.at("quantile(0.1)", when), built.at("quantile(0.1)", when))


def test_channels_keep_their_order_whatever_the_store_lists_first() -> None:
    built = DayClimatology.build(history(hours=24), window_days=4, quantiles=(0.9, 0.1))
    names = list(built.dataset)
    for order in (sorted(names), sorted(names, reverse=True)):
        assert list(DayClimatology.open(built.dataset[order]).channels) == list(built.channels)
    assert list(DayClimatology.open(built.dataset[["tp"]]).channels) == ["tp"]


def test_it_survives_netcdf(tmp_path: Path) -> None:
    built = DayClimatology.build(history(), window_days=4, quantiles=(0.9, 0.1), seeps={"tp": 0.1})
    built.dataset.to_netcdf(tmp_path / "c.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "c.nc", engine="scipy") as dataset:
        again = DayClimatology.open(dataset)
        assert (again.name, again.calendar, again.channels) == (built.name, "monthday", built.channels)
        for statistic in ("mean", "std", "quantile(0.1)", "seeps_dry_fraction", "seeps_threshold"):
            when = np.datetime64("2011-05-06T12")
            xr.testing.assert_identical(again.at(statistic, when), built.at(statistic, when))
    assert built.name == "2003-01-01 to 2008-12-31, triangle of 4 days, monthday"


def test_a_dataset_in_the_layout_of_weatherbench_2() -> None:
    rng = np.random.default_rng(0)
    dims = ("hour", "dayofyear", "level", "longitude", "latitude")
    shape = (2, 366, 2, 4, 3)
    coords = {
        "hour": [0, 12],
        "dayofyear": np.arange(1, 367),
        "level": [500, 850],
        "latitude": [-60.0, 0, 60],
    }
    coords["longitude"] = np.arange(4) * 90.0
    dataset = xr.Dataset(
        {name: (dims, rng.random(shape)) for name in ("temperature", "temperature_std")}, coords
    )
    for day, when in ((60, "2021-03-01T12"), (61, "2020-03-01T12")):
        found = DayClimatology.open(
            dataset, name="ERA5", calendar="doy", channels={"t850": ("temperature", 850)}
        )
        expected = dataset["temperature_std"].sel(hour=12, dayofyear=day, level=850)
        np.testing.assert_array_equal(found.at("std", np.datetime64(when))[0], expected.T)
    with pytest.raises(ValueError, match="states no name: give it, such as name = 'ERA5 1990-2019'"):
        DayClimatology.open(dataset, calendar="doy")
    with pytest.raises(ValueError, match="no variables"):
        DayClimatology.open(dataset, name="x", calendar="doy", channels={"z500": "geopotential"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calendar": "noleap"}, "calendar must be one of"),
        ({"kernel": "gauss"}, "kernel must be one of"),
        ({"window_days": 300}, "window_days within"),
        ({"quantiles": (1.5,)}, "within 0..1"),
        ({"seeps": {"z500": 0.2}}, "precipitation needs one of"),
        ({"seeps": {"rain": 0.2}}, "seeps names channels"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DayClimatology.build(history("2003-01-01", "2004-01-01"), **change)


def test_what_is_not_kept_is_refused() -> None:
    built = DayClimatology.build(history(hours=12), window_days=2, quantiles=(0.9,))
    for statistic, when, message in (
        ("median", "2007-01-01", "no statistic 'median'"),
        ("quantile(0.5)", "2007-01-01", r"quantiles of .* are \[0.9\], not 0.5"),
        ("quantile(x)", "2007-01-01", "expected quantile"),
        ("mean", "2007-01-01T06", r"has the hours \[0, 12\]"),
        ("seeps_threshold", "2007-01-01", "holds no seeps_threshold"),
    ):
        with pytest.raises(ValueError, match=message):
            built.at(statistic, np.datetime64(when))
    with pytest.raises(ValueError, match="no state at 00 h in the window around day"):
        DayClimatology.build(history("2003-01-01", "2003-06-01"), window_days=5)


@pytest.fixture(scope="module")
def real_series(climate_members: np.ndarray) -> np.ndarray:
    """Surface temperature of a climate run without leap days, 1990 to 1995: (6, 365, 4)."""
    runs = climate_members[:, :-1]
    return runs[np.isfinite(runs).all(axis=1)][0].reshape(6, 365, 4)


def test_real_states_without_leap_days(real_series: np.ndarray) -> None:
    days = [np.arange(f"{y}-01-01", f"{y + 1}-01-01", dtype="datetime64[D]") for y in range(1990, 1996)]
    days = [d[d != np.datetime64("1992-02-29")] for d in days]
    times = (np.concatenate(days)[:, None] + 6 * np.arange(4).astype("timedelta64[h]")).ravel()
    coords = {
        "time": times.astype("datetime64[ns]"),
        "channel": ["ts"],
        "latitude": [0.0],
        "longitude": [0.0],
    }
    states = xr.DataArray(real_series.reshape(-1, 1, 1, 1), coords, DIMS)
    daily = DayClimatology.build(states, window_days=0)
    x = real_series.astype(np.float64)
    for slot, day in ((31, 31), (200, 199)):
        for hour in range(4):
            moment = np.datetime64("2000-01-01") + np.timedelta64(slot, "D") + np.timedelta64(6 * hour, "h")
            mean, std = daily.at("mean", moment).item(), daily.at("std", moment).item()
            assert mean == pytest.approx(x[:, day, hour].mean(), rel=1e-7)
            assert std == pytest.approx(x[:, day, hour].std(), rel=1e-6)
    wide = DayClimatology.build(states, kernel="flat", window_days=30, quantiles=(0.05, 0.9))
    near = x[:, 99 - 30 : 99 + 31, 2].ravel()
    moment = np.datetime64("2001-04-10T12")
    assert wide.at("mean", moment).item() == pytest.approx(near.mean(), rel=1e-7)
    for q in (0.05, 0.9):
        assert wide.at(f"quantile({q})", moment).item() == pytest.approx(np.quantile(near, q), rel=1e-7)
    # A season that a climatology must show: the range of the means is far above that of their error.
    seasonal = wide.dataset["ts"].values[2].ravel()
    assert np.ptp(seasonal) > 5 * near.std() / np.sqrt(near.size)


def own_time() -> xr.DataArray:
    """States that hold their own day since 2003."""
    states = history(hours=24, end="2009-01-02").sel(channel=["z500"])
    days = (states["time"].values.astype("datetime64[D]") - np.datetime64("2003-01-01")).astype(float)
    return states.copy(data=np.broadcast_to(days[:, None, None, None], states.shape))


@pytest.mark.parametrize(
    ("calendar", "valid", "dates"),
    [
        ("monthday", "2012-03-01", ["2003-03-01", "2004-03-01", "2005-03-01", "2008-03-01"]),
        ("doy", "2012-03-01", ["2003-03-02", "2004-03-01", "2005-03-02", "2008-03-01"]),
        ("doy", "2013-03-01", ["2003-03-01", "2004-02-29", "2005-03-01", "2008-02-29"]),
        ("monthday", "2012-02-29", ["2003-02-28", "2004-02-29", "2005-02-28", "2008-02-29"]),
        ("doy", "2012-12-31", ["2004-01-01", "2004-12-31", "2006-01-01", "2008-12-31"]),
    ],
)
def test_each_year_is_a_member(calendar: str, valid: str, dates: list[str]) -> None:
    [chunk] = climatology(
        own_time(),
        [np.datetime64(valid)],
        [np.timedelta64(0, "h")],
        years=(2003, 2004, 2005, 2008),
        calendar=calendar,
    )
    stamps = np.datetime64("2003-01-01") + chunk.values[:, 0, 0, 0].astype("timedelta64[D]")
    assert stamps.astype(str).tolist() == dates


def test_each_year_needs_its_day() -> None:
    start, lead = [np.datetime64("2012-12-31")], [np.timedelta64(0, "h")]
    with pytest.raises(ValueError, match="no state at 2010-12-31"):
        list(climatology(own_time(), start, lead, years=[2008, 2010]))
    for choice in ({}, {"members": 2, "years": [2008]}):
        with pytest.raises(ValueError, match="either members or years"):
            list(climatology(own_time(), start, lead, **choice))


# Written piece by piece


class Waves:
    """A history that counts the states that were read, and may kill its process."""

    def __init__(self, rows: int = 40, columns: int = 90, last: int = 10**9) -> None:
        self.times = np.arange("2001-01-01", "2003-01-01", np.timedelta64(12, "h"), "datetime64[ns]")
        lat, lon = np.linspace(90, -90, rows), np.arange(columns) * 360 / columns
        phase = np.arange(self.times.size, dtype=np.float32)[:, None, None, None]
        values = np.sin(phase + np.deg2rad(lat[:, None] + lon).astype(np.float32))
        coords = {"time": self.times, "channel": ["x"], "latitude": lat, "longitude": lon}
        self.states = xr.DataArray(values, coords, DIMS, attrs={"units": "K"})
        self.made, self.last = 0, last

    def read(self, times: np.ndarray, /) -> xr.DataArray:
        self.made += times.size
        if self.made > self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.states.sel(time=times)


@pytest.mark.parametrize("name", ["c.zarr", "c.nc"])
def test_pieces_in_a_file_are_the_arrays_in_memory(name: str, tmp_path: Path) -> None:
    pytest.importorskip("zarr" if name.endswith("zarr") else "h5netcdf", reason="the extra is not installed")
    options: dict[str, Any] = {"window_days": 5, "quantiles": (0.5, 0.9), "seeps": {"tp": 0.25}}
    states = history("2003-01-01", "2006-01-01", dtype="f4")
    whole = DayClimatology.build(states, **options)
    (tmp_path / name).mkdir() if name.endswith("zarr") else (tmp_path / name).write_text("an older one")
    kept = DayClimatology.build(states, **options, memory_bytes=100_000, path=tmp_path / name)
    assert (kept.name, kept.calendar, kept.channels) == (whole.name, whole.calendar, whole.channels)
    for statistic in ("mean", "std", "quantile(0.9)", "seeps_dry_fraction", "seeps_threshold"):
        when = np.datetime64("2011-05-06T12")
        xr.testing.assert_identical(kept.at(statistic, when), whole.at(statistic, when))
    assert [p.name for p in tmp_path.iterdir()] == [name]
    loaded = kept.dataset.load()
    for variable in whole.dataset:
        np.testing.assert_array_equal(loaded[variable], whole.dataset[variable])
    loaded.close()


@pytest.mark.parametrize("name", ["c.zarr", "c.nc"])
def test_memory_does_not_grow_with_the_result(name: str, tmp_path: Path) -> None:
    """Its 21 MB are written with a work space of 8 MB."""
    pytest.importorskip("zarr" if name.endswith("zarr") else "h5netcdf", reason="the extra is not installed")
    DayClimatology.build(Waves(4, 4), window_days=4, path=tmp_path / f"small-{name}")  # imports
    source = Waves()
    tracemalloc.start()
    built = DayClimatology.build(source, window_days=4, memory_bytes=8 << 20, path=tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(v.nbytes for v in built.dataset.data_vars.values()) > 20e6
    assert peak < 10e6


STOPPED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_eval_climatology import DayClimatology, Waves
states = Waves(8, 8, last=int(sys.argv[3]))
DayClimatology.build(states, window_days=4, memory_bytes=1 << 20, path=sys.argv[2])
"""


@pytest.mark.parametrize("name", ["c.zarr", "c.nc"])
def test_a_killed_build_leaves_nothing_that_looks_whole_and_goes_on(name: str, tmp_path: Path) -> None:
    pytest.importorskip("zarr" if name.endswith("zarr") else "h5netcdf", reason="the extra is not installed")
    path = tmp_path / name
    command = [sys.executable, "-c", STOPPED, str(Path(__file__).parent), str(path), "2500"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == [f".{name}.unfinished"]
    options: dict[str, Any] = {"window_days": 4, "memory_bytes": 1 << 20}
    source, again = Waves(8, 8), Waves(8, 8)
    whole = DayClimatology.build(source, **options)
    kept = DayClimatology.build(again, **options, path=path)
    np.testing.assert_array_equal(kept.dataset["x_std"].values, whole.dataset["x_std"].values)
    assert (again.made < source.made) == name.endswith("zarr")
    kept.dataset.close()
    # What another build left is of no use.
    (tmp_path / name).rename(tmp_path / f".{name}.unfinished")
    if name.endswith("zarr"):
        (tmp_path / f".{name}.unfinished/progress.json").write_text('{"key": "another", "done": []}')
    other = DayClimatology.build(again, window_days=9, memory_bytes=1 << 20, path=path)
    right = DayClimatology.build(again, window_days=9)
    np.testing.assert_array_equal(other.dataset["x"].values, right.dataset["x"].values)


def test_quantiles_kept_in_float32_are_found_and_near_ones_are_not() -> None:
    levels = (0.0001, 0.1, 0.9999)
    built = DayClimatology.build(history(hours=24), window_days=4, quantiles=levels)
    single = built.dataset.assign_coords(quantile=built.dataset["quantile"].astype("f4"))
    again, when = DayClimatology.open(single), np.datetime64("2011-05-06")
    for p in levels:
        xr.testing.assert_identical(again.at(f"quantile({p})", when), built.at(f"quantile({p})", when))
    with pytest.raises(ValueError, match=r"not 0\.00011"):
        again.at("quantile(0.00011)", when)
