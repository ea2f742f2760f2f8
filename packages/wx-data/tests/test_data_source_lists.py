"""Lists of files as one source: what stands in them, in order, and nothing lost at their borders."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from wx_data import (
    Grid,
    Healpix,
    RegriddedSource,
    SourceError,
    Store,
    Traffic,
    convert,
    join,
    open_source,
    plan,
)

GRID = Grid.regular(5, 8)
TIMES = np.datetime64("2001-01-30", "ns") + np.arange(12) * np.timedelta64(6, "h")
UNITS = {"z": "m**2 s**-2", "t2m": "K", "msl": "Pa", "tp": "m"}
MIDDLE = {"z": 54e3, "t2m": 280.0, "msl": 1e5, "tp": 1e-3}


def fields(name: str, times: np.ndarray = TIMES, seed: int = 0) -> xr.Dataset:
    levels = {"level": [850, 500]} if name == "z" else {}
    coords = {"time": times, **levels, "latitude": GRID.latitude, "longitude": GRID.longitude}
    shape = tuple(len(values) for values in coords.values())
    noise = np.random.default_rng([seed, *map(ord, name)]).uniform(0.9, 1.1, shape)
    return xr.Dataset({name: (tuple(coords), MIDDLE[name] * noise, {"units": UNITS[name]})}, coords)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Two months of heights, and one file of the surface over both."""
    whole = fields("z")
    parts = {
        "z_01": whole.isel(time=slice(8)),
        "z_02": whole.isel(time=slice(8, None)),
        "surface": xr.merge([fields("t2m"), fields("msl")]),
    }
    for name, part in parts.items():
        part.to_zarr(tmp_path / f"{name}.zarr", zarr_format=2, consolidated=True)
    return [tmp_path / f"{name}.zarr" for name in ("z_02", "surface", "z_01")]


def test_a_list_of_paths_is_one_source(files) -> None:
    source = open_source(files)
    whole = open_source(xr.merge([fields("z"), fields("t2m"), fields("msl")]))
    assert set(source.channels) == {"z500", "z850", "t2m", "msl"}
    np.testing.assert_array_equal(source.times, TIMES)
    names = ["msl", "z850", "t2m", "z500"]
    found = source.read(TIMES[[9, 2, 7]], names)
    np.testing.assert_array_equal(found.values, whole.read(TIMES[[9, 2, 7]], names).values)
    parts = [part["source"] for part in source.provenance["parts"]]
    assert parts == ["z_01.zarr", "z_02.zarr", "surface.zarr"]


def test_only_the_channels_asked_for_need_to_agree(files) -> None:
    """What else lies in some of the files does not matter."""
    extra = xr.open_zarr(files[0]).assign(fields("msl", TIMES[8:], seed=1))
    parts = [extra, files[2]]
    with pytest.raises(SourceError, match=r"z500.* do not have the same channels"):
        open_source(parts)
    source = open_source(parts, channels=["z500", "z850"])
    assert source.channels == ("z500", "z850")
    np.testing.assert_array_equal(
        source.read(TIMES, ["z850"]).values, open_source(fields("z")).read(TIMES, ["z850"]).values
    )
    grid = Grid.regular(3, 4)
    np.testing.assert_array_equal(
        open_source(parts, channels=["z500"], grid=grid).read(TIMES).values,
        open_source(fields("z"), channels=["z500"], grid=grid).read(TIMES).values,
    )


def test_accumulations_reach_across_the_border_of_two_files() -> None:
    hours = np.datetime64("2001-01-31", "ns") + np.arange(48) * np.timedelta64(1, "h")
    rain = fields("tp", hours).rename(tp="total_precipitation")
    rain["total_precipitation"].attrs["accumulation_hours"] = 1
    whole = open_source(rain, channels=["tp"])
    source = open_source([rain.isel(time=slice(24, None)), rain.isel(time=slice(24))], channels=["tp"])
    np.testing.assert_array_equal(source.times, hours[5:])
    assert np.diff(source.times).max() == np.timedelta64(1, "h")
    np.testing.assert_array_equal(source.read(source.times).values, whole.read(whole.times).values)


def test_a_list_converts(files, tmp_path) -> None:
    convert(open_source(files), tmp_path / "s", channels=["z500", "t2m"])
    store = Store(tmp_path / "s")
    expected = open_source(xr.merge([fields("z"), fields("t2m")])).read(TIMES, ["z500", "t2m"])
    np.testing.assert_array_equal(store.read(TIMES).values, expected.values)


def test_lists_that_are_refused(files) -> None:
    with pytest.raises(ValueError, match="at least one source"):
        open_source([])
    with pytest.raises(SourceError, match="no source has q500"):
        open_source(files, channels=["z500", "t2m", "q500"])
    with pytest.raises(SourceError, match=r"surface\.zarr has none of z500, z850; leave it out"):
        open_source(files, channels=["z500", "z850"])
    with pytest.raises(SourceError, match="times come twice, first 2001-01-30T00"):
        open_source([files[2], fields("z").isel(time=slice(2))])
    with pytest.raises(SourceError, match="differ in 4 times"):
        open_source(files[1:])
    with pytest.raises(ValueError, match="fill and derive are of one source"):
        open_source(files, fill={"msl": 1e5})
    with pytest.raises(ValueError, match=r"grid must be a Grid; RegriddedSource\(source, Healpix\(nside=4"):
        open_source(files[0], grid=Healpix(4))  # type: ignore[arg-type]


def test_traffic_is_that_of_all_parts(make_source, tmp_path) -> None:
    class Remote(type(make_source())):
        traffic = Traffic()

        def read(self, times, channels, /):
            self.traffic += Traffic(requests=len(times), bytes=1000 * len(times))
            return super().read(times, channels)

    parts = [Remote(8, ("z500", "t850")), Remote(8, ("msl",))]
    joined = join(parts)
    joined.read(joined.times[:3])
    assert joined.traffic == Traffic(requests=6, bytes=6000)
    found = plan(joined, tmp_path / "s", grid=Healpix(2), sample=2)
    assert (found.requests, found.read_bytes) == (16, 16000)
    assert RegriddedSource(joined, GRID).traffic == joined.traffic
