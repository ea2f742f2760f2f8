"""Every real sample file: its values against eccodes, h5py or scipy, or the error that it deserves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_data import SourceError, channel, open_source

GRIB_NAMES = {"z": "z", "t": "t", "u": "u", "v": "v", "r": "r", "2t": "t2m"}
Fields = dict[tuple[str, np.datetime64, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def messages(path: Path, members: Sequence[int]) -> Fields:
    """(our name, valid time, member) -> latitude, longitude and value of every point, from eccodes alone."""
    eccodes = pytest.importorskip("eccodes")
    found: Fields = {}
    with open(path, "rb") as file:
        while (message := eccodes.codes_grib_new_from_file(file)) is not None:
            get: Callable[..., Any] = lambda key, m=message: eccodes.codes_get(m, key)  # noqa: E731
            short = get("shortName")
            member = get("number") if eccodes.codes_is_defined(message, "number") else 0
            if short in GRIB_NAMES and (member in members or not members):
                day, hour = str(get("validityDate")), get("validityTime") // 100
                time = np.datetime64(f"{day[:4]}-{day[4:6]}-{day[6:]}T{hour:02}", "ns")
                name = GRIB_NAMES[short]
                name += "" if name == "t2m" else str(get("level"))
                place = [
                    eccodes.codes_get_array(message, key) for key in ("latitudes", "longitudes", "values")
                ]
                found[name, time, member if members else -1] = place[0], place[1], place[2]
            eccodes.codes_release(message)
    return found


@pytest.mark.parametrize(
    ("name", "members", "count"),
    [
        ("era5/era5-2mt-2019-03-uk.grib", (), 744),
        ("era5/era5_eda10_z_t_500_850_20170101.grib", (0, 4, 9), 48),
        ("ifs_ens/fc_storm.grib", (), 1),
        ("ifs_ens/ens_storm.grib", (0, 1, 50), 3),
        ("ifs_ens/z500_ens.grib", (0, 1, 50), 3),
        ("ifs_fc/ifs_pl_10deg_20240603-04_step0-6.grib", (), 240),
        ("ifs_fc/ifs_ztu_5deg_20180404T12_step0-36.grib", (), 48),
        ("ifs_fc/ifs_ztuv_1deg_20170520T00_step30.grib", (), 8),
    ],
)
def test_grib_against_eccodes(samples: Path, name: str, members: tuple[int, ...], count: int) -> None:
    """Every message that names a channel, point by point at its own latitude and longitude."""
    expected = messages(samples / name, members)
    assert len(expected) == count
    for member in members or (-1,):
        mine = {key[:2]: value for key, value in expected.items() if key[2] == member}
        source = open_source(samples / name, member=None if member < 0 else member)
        assert {key[0] for key in mine} == set(source.channels)
        assert sorted({key[1] for key in mine}) == list(source.times)
        state = source.read(source.times)
        for (label, time), (latitude, longitude, value) in mine.items():
            row = np.abs(source.grid.latitude[:, None] - latitude).argmin(axis=0)
            turned = np.abs((source.grid.longitude[:, None] - longitude + 180) % 360 - 180)
            column = turned.argmin(axis=0)
            assert turned.min(axis=0).max() < 1e-3
            got = state.sel(channel=label, time=time).values[row, column]
            np.testing.assert_allclose(got, value, rtol=2e-7, err_msg=f"{label} {time}")
            assert got.size == np.prod(source.grid.shape)


def hdf5(path: Path, name: str) -> np.ndarray:
    """A packed or plain variable, unpacked by hand."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        found = file[name]
        values = found[()]
        scale, offset = found.attrs.get("scale_factor"), found.attrs.get("add_offset")
    return values if scale is None else values.astype(np.float64) * float(scale[0]) + float(offset[0])


def classic(path: Path, name: str) -> np.ndarray:
    """A variable of a NetCDF 3 file, by scipy."""
    netcdf = pytest.importorskip("scipy.io")
    with netcdf.netcdf_file(path, mmap=False) as file:
        variable = file.variables[name]
        scale, offset = getattr(variable, "scale_factor", None), getattr(variable, "add_offset", None)
        values = np.array(variable[:])
    return values if scale is None else values * scale + offset


def test_era5_netcdf_3_against_scipy(samples: Path) -> None:
    path = samples / "era5" / "era5_tl31_19590102T00.nc"
    source = open_source(path)
    assert len(source.channels) == 7 * 37 + 2
    levels = classic(path, "level").astype(int).tolist()
    state = source.read(source.times)
    latitude, longitude = classic(path, "latitude"), classic(path, "longitude")
    np.testing.assert_allclose(source.grid.latitude, latitude[::-1], atol=1e-9)
    np.testing.assert_allclose(source.grid.longitude, longitude, atol=1e-9)
    for name in source.channels:
        spec = channel(name)
        raw = classic(path, spec.long_name)
        raw = raw if spec.level is None else raw[levels.index(spec.level)]
        np.testing.assert_allclose(
            state.sel(channel=name).values[0], raw.T[::-1].astype(np.float32), rtol=2e-7, err_msg=name
        )


@pytest.mark.parametrize("variable", ["u", "v", "t"])
def test_era_interim_against_h5py(samples: Path, variable: str) -> None:
    path = samples / "era_interim" / f"2005-01-23-0000-{variable}.nc"
    source = open_source(path)
    assert source.times.tolist() == [np.datetime64("2005-01-23T00", "ns").astype(int)]
    levels = hdf5(path, "level").astype(int).tolist()
    raw = hdf5(path, variable)
    assert source.channels == tuple(f"{variable}{level}" for level in sorted(levels))
    state = source.read(source.times)
    north = -1 if hdf5(path, "latitude")[0] < 0 else 1
    for name in source.channels:
        expected = raw[levels.index(channel(name).level)][::north]
        np.testing.assert_allclose(state.sel(channel=name).values[0], expected, rtol=1e-6, atol=1e-5)


def test_fields_of_other_names_need_a_rename(samples: Path) -> None:
    """What the lexicon does not know is refused with its variables; xarray gives it known names."""
    path = samples / "era_interim" / "u_QGPV_240hPa_2012Oct28to31.nc"
    with pytest.raises(SourceError, match="no channel of the lexicon found; variables: U, QGPV"):
        open_source(path)
    days = np.datetime64("2012-10-28", "ns") + np.arange(4) * np.timedelta64(24, "h")
    renamed = xr.open_dataset(path).rename(U="u", levelist="level").assign_coords(time=days)
    source = open_source(renamed)
    assert source.channels == ("u240",)
    got = source.read(days).values[:, 0]
    np.testing.assert_array_equal(got, hdf5(path, "U")[:, 0, ::-1])


@pytest.mark.filterwarnings("ignore:.*has multiple fill values")
def test_climatology_after_a_rename(samples: Path) -> None:
    path = samples / "misc" / "ncep_june_climatology_t42.nc"
    with pytest.raises(SourceError, match="no channel of the lexicon found"):
        open_source(path)
    raw = xr.open_dataset(path, decode_cf=False)
    kept = raw[["T", "U", "Z3", "PSL"]].rename(T="t", U="u", Z3="z", PSL="msl", lev="level")
    dataset = kept.assign_coords(time=[np.datetime64("2000-06-15", "ns")])
    with pytest.raises(SourceError, match=r"z\d+.*'meters' found, 'm2 s-2' expected; not convertible"):
        open_source(dataset)
    dataset["z"].attrs["standard_name"] = "geopotential_height"
    source = open_source(dataset, channels=["t500", "u250", "z500", "msl"])
    got = source.read(source.times).values[0]
    levels = classic(path, "lev").astype(int).tolist()
    north = -1 if classic(path, "lat")[0] < 0 else 1
    for place, (name, level) in enumerate((("T", 500), ("U", 250), ("Z3", 500), ("PSL", None))):
        expected = classic(path, name)[0]
        expected = expected if level is None else expected[levels.index(level)]
        factor = {"Z3": 9.80665, "PSL": 100.0}.get(name, 1.0)
        np.testing.assert_allclose(got[place], expected[::north] * factor, rtol=1e-6, err_msg=name)


def test_orography_and_land_mask(samples: Path) -> None:
    """Heights in metres become geopotential; a terrain file has no times and is no source by itself."""
    path = samples / "statics" / "t63_terrain.nc"
    with pytest.raises(SourceError, match="no channel of the lexicon found; variables: orog, lsm"):
        open_source(path)
    terrain = xr.open_dataset(path)
    weather = xr.zeros_like(terrain["orog"]).expand_dims(time=[np.datetime64("2000-01-01", "ns")])
    weather.attrs = {"units": "K"}
    source = open_source(terrain.assign(t2m=weather))
    north = -1 if hdf5(path, "lat")[0] < 0 else 1
    turned = (slice(None, None, north), slice(None))
    raw = hdf5(path, "orog")
    raw = raw if raw.shape == (96, 192) else raw.T
    np.testing.assert_allclose(source.statics["z_surface"], raw[turned] * 9.80665, rtol=1e-6)
    mask = hdf5(path, "lsm")
    mask = mask if mask.shape == (96, 192) else mask.T
    np.testing.assert_array_equal(source.statics["lsm"], mask[turned])


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("ifs_ens/ens_storm.grib", SourceError, r"members \[0, 1, 2, .*choose one with member="),
        ("ifs_ens/wgust_ens.grib", SourceError, r"members \[1, 2, .*choose one with member="),
        ("members/cesm_lens40_point_ts_6hourly_1990-1995.nc", SourceError, "noleap"),
        ("misc/ncep_air_temperature_namerica_6hourly_20140224-28.nc", SourceError, "variables: air$"),
        ("obs/metar_2020-01_12stations.parquet", SourceError, r"neither NetCDF nor GRIB: .*b'PAR1'"),
        ("statics/t30_terrain.nc", SourceError, "no channel of the lexicon found; variables: lsm, orog"),
        ("statics/t30_monthly_surface_climatology.nc", SourceError, "no channel of the lexicon found"),
    ],
)
def test_what_is_no_source_is_refused(samples: Path, name: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        open_source(samples / name)


def test_refusals_say_what_is_there(samples: Path) -> None:
    with pytest.raises(SourceError, match="no channel of the lexicon found"):
        open_source(samples / "ifs_ens" / "wgust_ens.grib", member=3)
    with pytest.raises(SourceError, match=r"sst .*variable 'sst' lies on levels -?\d+"):
        open_source(samples / "statics" / "t30_monthly_surface_climatology.nc", channels=["sst"])


def test_no_sample_is_left_out(samples: Path) -> None:
    """A new sample file must find its way into this module."""
    here = Path(__file__).read_text(encoding="utf-8")
    for path in samples.rglob("*.*"):
        if path.parent != samples:
            stem = path.name if not path.name.startswith("2005-01-23") else "2005-01-23-0000-"
            assert stem in here, path.name
