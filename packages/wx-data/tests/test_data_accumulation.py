"""Accumulations and joined sources: exact sums and differences, windows that must be known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_data import Grid, SourceError, Store, convert, open_source
from wx_data._accumulation import AccumulatedSource
from wx_data._join import join

GRID = Grid.regular(5, 8)
START = np.datetime64("2001-01-01T00", "ns")


def hourly(hours: Any = range(30), name: str = "total_precipitation", **attrs: Any) -> xr.Dataset:
    """Rain of 2^-k in the hour that ends at hour k: every sum of hours tells which they were."""
    hours = np.asarray(list(hours))
    values = np.broadcast_to((0.5 ** (hours % 12))[:, None, None], (hours.size, *GRID.shape)).astype("f4")
    dims = ("time", "latitude", "longitude")
    coords = {"time": START + hours.astype("timedelta64[h]"), "latitude": GRID.latitude}
    dataset = xr.Dataset(coords={**coords, "longitude": GRID.longitude})
    dataset[name] = (dims, values, {"units": "m", **attrs})
    dataset["t2m"] = (dims, 280 + values, {"units": "K"})
    return dataset


def window(hour: int, length: int = 6) -> float:
    return float(sum(0.5 ** ((hour - back) % 12) for back in range(length)))


def test_six_hours_are_the_sum_of_the_hours_up_to_the_valid_time() -> None:
    source = open_source(hourly(accumulation_hours=1), channels=["t2m", "tp"])
    assert source.channels == ("t2m", "tp")
    np.testing.assert_array_equal(source.times, START + np.arange(5, 30).astype("timedelta64[h]"))
    times = START + np.array([12, 6, 29]).astype("timedelta64[h]")
    got = source.read(times)
    np.testing.assert_array_equal(got.sel(channel="tp").values[:, 2, 3], [window(12), window(6), window(29)])
    np.testing.assert_allclose(got.sel(channel="t2m").values[0, 0, 0], 280 + 0.5**0)
    assert got.attrs["derived"] == {"tp": "sum of 6 hourly fields over (t - 6 h, t]"}
    assert got["units"].sel(channel="tp").item() == "m"


def test_hourly_fields_are_a_channel_of_their_own() -> None:
    source = open_source(hourly(accumulation_hours=1))
    assert set(source.channels) == {"t2m", "tp01"}
    both = open_source(hourly(accumulation_hours=1), channels=["tp01", "tp"])
    got = both.read(both.times[:1]).values[0, :, 0, 0]
    np.testing.assert_allclose(got, [0.5**5, window(5)])


def test_a_hole_takes_every_window_that_touches_it() -> None:
    hours = [h for h in range(30) if h != 10]
    source = open_source(hourly(hours, accumulation_hours=1), channels=["tp"])
    left = (source.times - START).astype("timedelta64[h]").astype(int).tolist()
    assert left == [5, 6, 7, 8, 9, *range(16, 30)]
    with pytest.raises(SourceError, match="2001-01-01T07"):
        open_source(hourly(range(12, 30), accumulation_hours=1), channels=["tp"]).read(
            [START + np.timedelta64(12, "h")]
        )


def test_six_hourly_fields_of_hourly_rain_are_refused() -> None:
    with pytest.raises(SourceError, match="no time has every hourly field of its window, 6 h long"):
        open_source(hourly(range(0, 60, 6), accumulation_hours=1), channels=["tp"])


@pytest.mark.parametrize("name", ["tp", "total_precipitation"])
def test_an_unknown_window_is_refused(name: str) -> None:
    with pytest.raises(
        SourceError, match=r"does not say over how many hours it accumulates, 6 expected; set"
    ):
        open_source(hourly(name=name), channels=["tp"])
    assert open_source(hourly(name=name)).channels == ("t2m",)
    with pytest.raises(SourceError, match="accumulates over 12 h, 6 h expected"):
        open_source(hourly(name=name, accumulation_hours=12), channels=["tp"])


@pytest.mark.parametrize(("name", "channel"), [("6hr", "tp"), ("1hr", "tp01")])
def test_a_window_in_the_name_counts(name: str, channel: str) -> None:
    source = open_source(hourly(name=f"total_precipitation_{name}"))
    assert set(source.channels) == {"t2m", channel}
    np.testing.assert_array_equal(source.read(source.times[:1], [channel]).values, 1.0)


def test_arco_is_hourly() -> None:
    dataset = hourly()
    dataset.attrs = {"valid_time_start": "2001-01-01", "valid_time_stop": "2001-01-01"}
    source = open_source(dataset, channels=["tp"])
    np.testing.assert_array_equal(source.times, START + np.arange(5, 24).astype("timedelta64[h]"))
    np.testing.assert_array_equal(source.read(source.times[-1:]).values, np.float32(window(23)))


def test_sums_convert_to_a_store(tmp_path: Path) -> None:
    source = open_source(hourly(range(60), accumulation_hours=1), channels=["tp", "t2m"])
    first = START + np.timedelta64(6, "h")
    convert(source, tmp_path / "s", period=(first, "2001-01-03T06"), step=6, implausible="keep")
    store = Store(tmp_path / "s")
    assert store.channels == ("tp", "t2m")
    got = store.read(store.times, ["tp"]).values[:, 0, 0, 0]
    np.testing.assert_array_equal(got, [window(h) for h in range(6, 55, 6)])
    assert "sum of 6" in store.attributes["provenance"]["derived"]["tp"]


def write_grib(path: Path, steps: list[tuple[int, int]], edition: int = 2, units: int = 228) -> None:
    """Precipitation over ranges of forecast hours; each hour k brings k mm."""
    eccodes = pytest.importorskip("eccodes")
    with open(path, "wb") as file:
        for start, end in steps:
            message = eccodes.codes_grib_new_from_samples(f"regular_ll_sfc_grib{edition}")
            keys = {"dataDate": 20010101, "dataTime": 0, "paramId": units, "stepType": "accum"}
            for key, value in {**keys, "stepRange": f"{start}-{end}"}.items():
                eccodes.codes_set(message, key, value)
            count = eccodes.codes_get(message, "numberOfValues")
            eccodes.codes_set(message, "bitsPerValue", 24)
            fallen = sum(range(start + 1, end + 1)) * (1e-3 if units == 228 else 1.0)
            spread = np.linspace(0, 1e-3, count)
            eccodes.codes_set_values(message, fallen * (1 + spread))
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)


@pytest.mark.parametrize("units", [228, 228228])
def test_a_forecast_accumulates_from_its_start(tmp_path: Path, units: int) -> None:
    write_grib(tmp_path / "f.grib", [(0, 6), (0, 12), (0, 18)], units=units)
    source = open_source(tmp_path / "f.grib", channels=["tp"])
    got = source.read(source.times).values[:, 0]
    expected = [sum(range(1, 7)), sum(range(7, 13)), sum(range(13, 19))]
    np.testing.assert_allclose(got[:, 0, 0], np.array(expected) * 1e-3, rtol=1e-5)
    np.testing.assert_allclose(got[:, -1, -1], np.array(expected) * 1e-3 * 1.001, rtol=1e-5)


def test_hourly_ranges_of_a_forecast(tmp_path: Path) -> None:
    write_grib(tmp_path / "f.grib", [(h, h + 1) for h in range(12)])
    source = open_source(tmp_path / "f.grib", channels=["tp"])
    got = source.read(source.times).values[:, 0, 0, 0]
    np.testing.assert_allclose(got, [sum(range(h - 5, h + 1)) * 1e-3 for h in range(6, 13)], rtol=1e-5)


@pytest.mark.parametrize("steps", [[(0, 6), (0, 9), (0, 18)], [(0, 12), (6, 12), (0, 18)]])
def test_uneven_ranges_are_refused(tmp_path: Path, steps: list[tuple[int, int]]) -> None:
    write_grib(tmp_path / "f.grib", steps)
    with pytest.raises(SourceError, match="does not say over how many hours"):
        open_source(tmp_path / "f.grib", channels=["tp"])


def test_joined_in_time_and_in_channels(make_source: Any) -> None:
    later = make_source(steps=4, names=("z500", "t850"), start="2001-01-02")
    first = make_source(steps=4, names=("t850", "z500"))
    beside = make_source(steps=8, names=("msl",))
    joined = join([later, beside, first])
    assert joined.channels == ("t850", "z500", "msl")
    np.testing.assert_array_equal(joined.times, beside.times)
    whole = make_source(steps=8, names=("z500", "msl", "t850"))
    picked = whole.times[[5, 0, 7, 3]]
    names = ["msl", "t850", "z500"]
    np.testing.assert_array_equal(joined.read(picked, names).values, whole.read(picked, names).values)
    assert joined.statics.keys() == {"z_surface", "lsm"}
    assert join([first, beside], times="common", channels=["msl", "z500"]).channels == ("msl", "z500")
    with pytest.raises(SourceError, match=r"not in the sources.*2002"):
        joined.read([np.datetime64("2002-01-01")])
    with pytest.raises(SourceError, match="no source has q500"):
        joined.read(picked, ["q500"])


def test_what_does_not_join(make_source: Any) -> None:
    first = make_source(steps=4, names=("z500", "t850"))
    with pytest.raises(SourceError, match="4 times come twice, first 2001-01-01T00"):
        join([first, make_source(steps=4, names=("t850", "z500"))])
    with pytest.raises(SourceError, match="2 grids"):
        join([first, make_source(grid=Grid.regular(5, 8))])
    with pytest.raises(SourceError, match="t850 come from sources that do not have the same channels"):
        join([first, make_source(steps=4, names=("t850",))])
    with pytest.raises(SourceError, match=r"differ in 4 times, first 2001-01-02T00.*common"):
        join([first, make_source(steps=8, names=("msl",))])
    with pytest.raises(SourceError, match="no time in common"):
        join([first, make_source(steps=2, names=("msl",), start="2005-01-01")], times="common")
    with pytest.raises(SourceError, match="no source has q500"):
        join([first], channels=["q500"])
    with pytest.raises(ValueError, match="at least one"):
        join([])


def test_any_source_accumulates(make_source: Any) -> None:
    inner = make_source(steps=12, names=("tp01", "msl"), step_hours=1)
    source = AccumulatedSource(inner, ("tp", "msl"))
    got = source.read(source.times[[3, 1]], ["tp"]).values[:, 0]
    rain = inner.read(inner.times, ["tp01"]).values[:, 0].astype(np.float64)
    np.testing.assert_allclose(got, [rain[3:9].sum(0), rain[1:7].sum(0)], rtol=1e-6)
