"""Sources: real files first, then what may go wrong in synthetic ones."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_data import PRESETS, Grid, SourceError, Store, convert, open_source
from wx_data._humidity import saturation_vapour_pressure, specific_humidity

TARGET = Grid.regular(33, 64)
RECIPE = (*(f"{v}{p}" for v in "ztuvq" for p in (850, 500, 250)), "msl", "t2m", "tp")


def test_era5_netcdf(samples: Path) -> None:
    path = samples / "era5" / "era5_tl31_19590102T00.nc"
    source = open_source(path)
    assert source.times.tolist() == [np.datetime64("1959-01-02T00", "ns").astype(int)]
    assert source.grid.shape == (32, 64)
    assert {"z500", "q850", "t1000", "u10", "sst"} <= set(source.channels)
    assert "t2m" not in source.channels
    raw = xr.open_dataset(path)
    got = source.read(source.times, ["z500", "v250"])
    for name, variable, level in (("z500", "geopotential", 500), ("v250", "v_component_of_wind", 250)):
        expected = raw[variable].sel(level=level).transpose("latitude", "longitude").values[::-1]
        np.testing.assert_array_equal(got.sel(channel=name).values[0], expected)
    assert got["units"].sel(channel="z500").item() == "m2 s-2"


def test_missing_channels_are_one_error_that_lists_them(samples: Path) -> None:
    path = samples / "era5" / "era5_tl31_19590102T00.nc"
    with pytest.raises(
        SourceError, match=r"lacks 3 of 18 channels:(?s:.*)msl (?s:.*)t2m (?s:.*)tp (?s:.*)fill="
    ):
        open_source(path, channels=RECIPE)
    with pytest.raises(SourceError, match=r"z666 \(geopotential\): levels present are 1, 2, 3, 5"):
        open_source(path, channels=["z666"])


def test_era5_netcdf_onto_the_recipes_grid_and_channels(samples: Path, tmp_path: Path) -> None:
    climate = np.broadcast_to(288 - 30 * np.sin(np.deg2rad(TARGET.latitude))[:, None] ** 2, TARGET.shape)
    source = open_source(
        samples / "era5" / "era5_tl31_19590102T00.nc",
        channels=RECIPE,
        grid=TARGET,
        fill={"msl": 101325.0, "t2m": climate, "tp": 0.0},
    )
    assert source.provenance["filled"] == {
        "msl": "constant 101325.0",
        "t2m": "field given by the caller",
        "tp": "constant 0.0",
    }
    field = source.read(source.times)
    assert field.shape == (1, 18, 33, 64)
    assert field.attrs["filled"]["msl"] == "constant 101325.0"
    np.testing.assert_array_equal(field.sel(channel="t2m").values[0], climate.astype(np.float32))
    weights = TARGET.area_weights()
    mean = (field.values[0].mean(-1) @ weights).tolist()
    # Global means of the atmosphere: z500 about 5.4 to 5.6 km, t850 about 280 K in January
    assert 54000 < mean[1] < 55500
    assert 276 < mean[3] < 284
    convert(source, tmp_path / "s", implausible="keep")
    store = Store(tmp_path / "s")
    np.testing.assert_array_equal(store.read(store.times).values, field.values)
    assert store.attributes["provenance"]["filled"]["tp"] == "constant 0.0"


def test_ifs_grib_bases_and_steps_are_one_time_axis(samples: Path) -> None:
    path = samples / "ifs_fc" / "ifs_pl_10deg_20240603-04_step0-6.grib"
    source = open_source(path)
    np.testing.assert_array_equal(np.diff(source.times), np.timedelta64(6, "h"))
    assert len(source.times) == 8
    raw = xr.open_dataset(path, engine="cfgrib", backend_kwargs={"indexpath": ""}, decode_timedelta=True)
    order = [(b, s) for b in range(4) for s in range(2)]
    expected = np.stack([raw["z"].sel(isobaricInhPa=500).values[b, s] for b, s in order])
    np.testing.assert_array_equal(source.read(source.times, ["z500"]).values[:, 0], expected)
    picked = source.read(source.times[[5, 2]], ["t850", "z500"]).values
    np.testing.assert_array_equal(picked[:, 1], expected[[5, 2]])


def test_specific_humidity_is_derived_only_when_asked(samples: Path) -> None:
    path = samples / "ifs_fc" / "ifs_pl_10deg_20240603-04_step0-6.grib"
    with pytest.raises(SourceError, match=r'q850 (?s:.*)derive=\{"q": "relative_humidity"\}'):
        open_source(path, channels=["z500", "q850"])
    source = open_source(path, channels=["z500", "q850"], derive={"q": "relative_humidity"})
    assert source.provenance["derived"] == {"q850": "specific humidity from r850 and t850"}
    both = open_source(path, channels=["r850", "t850"]).read(source.times).values.astype(np.float64)
    q = source.read(source.times, ["q850"]).values[:, 0]
    np.testing.assert_allclose(q, specific_humidity(both[:, 0], both[:, 1], 85000.0), rtol=1e-6)
    mean = (q.mean(axis=(0, 2)) @ source.grid.area_weights()).item()
    assert 0.004 < mean < 0.010


def test_humidity_of_an_analysis_is_below_saturation_and_inverts(samples: Path) -> None:
    source = open_source(samples / "era5" / "era5_tl31_19590102T00.nc", channels=["t850", "q850"])
    t, q = source.read(source.times).values[0].astype(np.float64)
    vapour = q * 85000.0 / (0.621981 + (1 - 0.621981) * q)
    relative = 100 * vapour / saturation_vapour_pressure(t)
    np.testing.assert_allclose(specific_humidity(relative, t, 85000.0), q, rtol=1e-10)
    assert np.quantile(relative, 0.99) < 115
    assert relative.max() > 80


def test_humidity_against_an_independent_climatology(samples: Path) -> None:
    """NCEP's June means hold both humidities; a mean of products differs from theirs by some per cent."""
    path = samples / "misc" / "ncep_june_climatology_t42.nc"
    raw = xr.open_dataset(path, decode_cf=False)
    ours, theirs = [], []
    for level in (1000, 850, 700):
        t = raw["T"].isel(time=0).sel(lev=level).values.astype(np.float64)
        r, q = (raw[n].isel(time=0).sel(lev2=level).values.astype(np.float64) for n in ("RELHUM", "SHUM"))
        area = np.cos(np.deg2rad(raw["lat"].values))[:, None] * np.ones_like(t)
        ours.append((specific_humidity(r, t, 100.0 * level) * area).sum() / area.sum())
        theirs.append((q * 1e-3 * area).sum() / area.sum())
    np.testing.assert_allclose(ours, theirs, rtol=0.05)


def test_saturation_in_closed_form() -> None:
    assert saturation_vapour_pressure(np.array([273.16]))[0] == pytest.approx(611.21)
    # Smithsonian tables: 2337 Pa over water at 20 C; 38.0 Pa over ice at -30 C
    got = saturation_vapour_pressure(np.array([293.15, 243.15]))
    np.testing.assert_allclose(got, [2337, 38.0], rtol=4e-3)


def test_members(samples: Path) -> None:
    path = samples / "era5" / "era5_eda10_z_t_500_850_20170101.grib"
    with pytest.raises(SourceError, match=r"members \[0, 1, 2.*choose one"):
        open_source(path)
    raw = xr.open_dataset(path, engine="cfgrib", backend_kwargs={"indexpath": ""}, decode_timedelta=True)
    source = open_source(path, channels=["t850", "z500"], member=3)
    got = source.read(source.times)
    np.testing.assert_array_equal(got.values[:, 1], raw["z"].sel(number=3, isobaricInhPa=500).values)
    assert source.provenance["member"] == 3
    with pytest.raises(SourceError, match="got 10"):
        open_source(path, member=10)


def test_single_levels_and_limited_areas(samples: Path) -> None:
    source = open_source(samples / "era5" / "era5-2mt-2019-03-uk.grib", channels=["t2m"])
    assert len(source.times) == 744
    assert source.grid.longitude[0] == 0
    with pytest.raises(ValueError, match="never extrapolates"):
        open_source(samples / "era5" / "era5-2mt-2019-03-uk.grib", grid=TARGET).read(source.times[:1])


def test_grib_to_store(samples: Path, tmp_path: Path) -> None:
    names = ("z500", "t850", "u850", "v850")
    source = open_source(
        samples / "ifs_fc" / "ifs_pl_10deg_20240603-04_step0-6.grib", channels=names, grid=TARGET
    )
    convert(source, tmp_path / "s")
    store = Store(tmp_path / "s")
    assert store.step_hours == 6
    assert store.attributes["provenance"]["regridded_from"].startswith("19 x 36")
    np.testing.assert_array_equal(store.read(store.times).values, source.read(source.times).values)


def _dataset(**changes: Any) -> xr.Dataset:
    rng = np.random.default_rng(0)
    coords = {
        "time": np.datetime64("2001-01-01", "ns") + np.arange(3) * np.timedelta64(6, "h"),
        "level": ("level", [500, 850], {"units": "hPa"}),
        "latitude": [-90.0, -45, 0, 45, 90],
        "longitude": [-180.0, -90, 0, 90],
    }
    dims = ("time", "level", "latitude", "longitude")
    units = changes.pop("units", {"z": "m**2 s**-2", "t": "K"})
    dataset = xr.Dataset(coords=coords)
    for name in ("z", "t"):
        dataset[name] = (dims, rng.uniform(200, 300, (3, 2, 5, 4)).astype("f4"), {"units": units[name]})
    dataset["t2m"] = (dims[:1] + dims[2:], rng.uniform(200, 300, (3, 5, 4)).astype("f4"), {"units": "degC"})
    return dataset.assign(**changes)


def test_order_of_everything_is_by_name() -> None:
    plain = _dataset()
    turned = plain.transpose("longitude", "level", "latitude", "time")
    flipped = plain.isel(latitude=slice(None, None, -1), level=slice(None, None, -1))
    rolled = plain.assign_coords(longitude=plain["longitude"] % 360).sortby("longitude")
    expected = open_source(plain, channels=["t850", "t2m"]).read(plain["time"].values)
    raw = plain["t"].sel(level=850, latitude=90, longitude=-90).values
    np.testing.assert_array_equal(expected.sel(channel="t850", latitude=90, longitude=270).values, raw)
    for other in (
        turned,
        flipped,
        rolled,
        plain.rename(latitude="lat", longitude="lon", level="isobaricInhPa"),
    ):
        got = open_source(other, channels=["t850", "t2m"]).read(plain["time"].values)
        np.testing.assert_array_equal(got.values, expected.values)


@pytest.mark.parametrize("fmt", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
def test_zarr_of_either_format(tmp_path: Path, fmt: int, consolidated: bool) -> None:
    dataset = _dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr-python: consolidated metadata are not in the v3 specification
        dataset.to_zarr(tmp_path / "named.zarr-v3", zarr_format=fmt, consolidated=consolidated)
    source = open_source(tmp_path / "named.zarr-v3")
    expected = open_source(dataset).read(source.times, source.channels)
    np.testing.assert_array_equal(source.read(source.times).values, expected.values)


def test_levels_in_pascal_and_exact() -> None:
    dataset = _dataset()
    dataset = dataset.assign_coords(level=("level", [50000.0, 85000.0], {"units": "Pa"}))
    assert "z500" in open_source(dataset).channels
    with pytest.raises(SourceError, match=r"z925 \(geopotential\): levels present are 500, 850"):
        open_source(dataset, channels=["z925"])
    hybrid = dataset.assign_coords(level=("level", [1, 2], {"units": "K"}))
    with pytest.raises(SourceError, match="pressure levels are expected"):
        open_source(hybrid)


def test_units_are_converted_or_refused() -> None:
    times = _dataset()["time"].values
    celsius = open_source(_dataset(units={"z": "m2/s2", "t": "degC"}))
    kelvin = open_source(_dataset())
    np.testing.assert_allclose(
        celsius.read(times, ["t850"]).values, kelvin.read(times, ["t850"]).values + 273.15, rtol=1e-6
    )
    np.testing.assert_array_equal(celsius.read(times, ["z500"]).values, kelvin.read(times, ["z500"]).values)
    with pytest.raises(SourceError, match="units 'm' found, 'm2 s-2' expected; not convertible"):
        open_source(_dataset(units={"z": "m", "t": "K"}))
    with pytest.raises(SourceError, match="'bananas' is not understood"):
        open_source(_dataset(units={"z": "bananas", "t": "K"}))
    height = _dataset(units={"z": "m", "t": "K"})
    height["z"].attrs["standard_name"] = "geopotential_height"
    expected = kelvin.read(times, ["z500"]).values * 9.80665
    np.testing.assert_allclose(open_source(height).read(times, ["z500"]).values, expected, rtol=1e-6)
    bare = _dataset()
    del bare["t"].attrs["units"]
    with pytest.raises(SourceError, match="'t' has no units, 'K' expected"):
        open_source(bare)


def test_another_quantity_under_the_same_name_is_refused() -> None:
    dataset = _dataset()
    dataset["q"] = dataset["t"].copy()
    dataset["q"].attrs = {"units": "%", "standard_name": "relative_humidity"}
    with pytest.raises(SourceError, match="'relative_humidity', expected 'specific_humidity'"):
        open_source(dataset, channels=["q850"])


def test_accumulation_must_be_stated() -> None:
    dataset = _dataset()
    dataset["tp"] = dataset["t2m"].copy(data=np.full((3, 5, 4), 2.0, "f4"))
    dataset["tp"].attrs = {"units": "mm"}
    with pytest.raises(SourceError, match="'tp' does not say over how many hours it accumulates"):
        open_source(dataset, channels=["tp"])
    dataset["tp"].attrs["accumulation_hours"] = 1
    with pytest.raises(SourceError, match="no time has every hourly field of its window, 6 h long"):
        open_source(dataset, channels=["tp"])
    dataset["tp"].attrs["accumulation_hours"] = 6
    source = open_source(dataset, channels=["tp"])
    np.testing.assert_allclose(source.read(source.times).values, 2e-3, rtol=1e-6)
    named = dataset.rename(tp="total_precipitation_6hr")
    del named["total_precipitation_6hr"].attrs["accumulation_hours"]
    assert open_source(named, channels=["tp"]).channels == ("tp",)


def test_cds_names_and_heights_do_not_collide_with_levels() -> None:
    dataset = _dataset()
    dataset["u10"] = dataset["t2m"].copy()
    dataset["u10"].attrs = {"units": "m s-1"}
    assert "u10m" in open_source(dataset).channels
    assert "u10" not in open_source(dataset).channels
    with pytest.raises(SourceError, match="lacks 1 of 1"):
        open_source(dataset, channels=["u10"])


def test_statics_are_found() -> None:
    dataset = _dataset()
    fields = {"z_surface": 100.0, "lsm": 1.0}
    for name, value in fields.items():
        dataset[name] = dataset["t2m"].isel(time=0, drop=True).copy(data=np.full((5, 4), value, "f4"))
    dataset["z_surface"].attrs = {"units": "m2 s-2", "standard_name": "surface_geopotential"}
    dataset["lsm"].attrs = {"units": "(0 - 1)"}
    source = open_source(dataset)
    assert {name: float(field.mean()) for name, field in source.statics.items()} == fields


def test_a_stacked_array_is_a_source(tmp_path: Path) -> None:
    source = open_source(_dataset(), channels=["t850", "t2m"])
    again = open_source(source.read(source.times))
    assert again.channels == ("t2m", "t850")
    np.testing.assert_array_equal(
        again.read(source.times, source.channels).values, source.read(source.times).values
    )
    convert(source, tmp_path / "s", implausible="keep")
    stored = open_source(tmp_path / "s", channels=["t850"])
    np.testing.assert_array_equal(
        stored.read(source.times).values, source.read(source.times, ["t850"]).values
    )


def test_times_are_exact_and_increasing() -> None:
    source = open_source(_dataset())
    with pytest.raises(SourceError, match="1 of 1 times are not in the source, first 2001-01-01T03"):
        source.read(np.datetime64("2001-01-01T03"))
    twice = _dataset().isel(time=[0, 1, 1])
    with pytest.raises(SourceError, match="2001-01-01T06 is followed by 2001-01-01T06"):
        open_source(twice)
    with pytest.raises(SourceError, match="times decoded to datetime64"):
        open_source(_dataset().assign_coords(time=[0, 6, 12]))


def test_fill_and_derive_are_explicit() -> None:
    with pytest.raises(SourceError, match="fill: t2m would be ignored"):
        open_source(_dataset(), channels=["t850", "t2m"], fill={"t2m": 3.0})
    with pytest.raises(ValueError, match="derive knows"):
        open_source(_dataset(), derive={"w": "divergence"})


def test_what_is_not_understood(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_source(tmp_path / "absent")
    (tmp_path / "a.nc").write_text("hello")
    with pytest.raises(SourceError, match="neither NetCDF nor GRIB: it begins with b'hell'"):
        open_source(tmp_path / "a.nc")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.txt").write_text("")
    with pytest.raises(SourceError, match=r"not a Zarr store.*x\.txt"):
        open_source(tmp_path / "d")
    with pytest.raises(SourceError, match="latitude and longitude"):
        open_source(_dataset().drop_vars(["latitude", "longitude"]), channels=["t850"])
    wide = _dataset().expand_dims(experiment=2)
    with pytest.raises(SourceError, match=r"experiment \(2\) is not understood"):
        open_source(wide, channels=["t850"]).read(wide["time"].values)
    repeated = _dataset().assign_coords(longitude=[0.0, 120, 240, 360])
    with pytest.raises(SourceError, match="repeats a column"):
        open_source(repeated)
    with pytest.raises(SourceError, match="no channel of the lexicon"):
        open_source(_dataset().drop_vars(["z", "t", "t2m"]).assign(foo=("time", [1, 2, 3])))


def test_presets_work_as_channels() -> None:
    with pytest.raises(SourceError, match=f"of {len(PRESETS['pangu69'])} channels"):
        open_source(_dataset(), channels="pangu69")
