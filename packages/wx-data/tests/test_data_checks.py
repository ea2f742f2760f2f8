"""Units on the way into a store, and the rules for missing values."""

import numpy as np
import pytest
import xarray as xr

from wx_data import Grid, SourceError, channel, convert, open_source
from wx_data._checks import MissingFill, convert_units

GRID = Grid.regular(9, 16)


@pytest.mark.parametrize(
    ("name", "units", "standard_name", "factor", "offset"),
    [
        ("z500", "gpm", "geopotential_height", 9.80665, 0),
        ("z500", "dam", "geopotential_height", 98.0665, 0),
        ("z500", "J kg-1", "geopotential", 1, 0),
        ("z_surface", "m**2 s**-2", "geopotential", 1, 0),
        ("z_surface", "m", "surface_altitude", 9.80665, 0),
        ("z_surface", "m", None, 9.80665, 0),
        ("tp", "mm", "unknown", 1e-3, 0),
        ("tp", "kg m**-2", "unknown", 1e-3, 0),
        ("tp", "kg m**-2", "precipitation_amount", 1e-3, 0),
        ("t2m", "degC", None, 1, 273.15),
        ("lsm", "(0 - 1)", "unknown", 1, 0),
        ("tcwv", "kg m**-2", "lwe_thickness_of_atmosphere_mass_content_of_water_vapor", 1, 0),
        ("r500", "1", "relative_humidity", 100, 0),
    ],
)
def test_quantities_convert(
    name: str, units: str, standard_name: str | None, factor: float, offset: float
) -> None:
    got = convert_units(channel(name), units, standard_name)
    assert got == pytest.approx((factor, offset), rel=1e-13)


@pytest.mark.parametrize(
    ("name", "units", "standard_name", "message"),
    [
        ("z500", "m", None, "'m' found, 'm2 s-2' expected; not convertible"),
        ("z500", "K", "geopotential_height", "'K' found, 'm' expected; not convertible"),
        ("t850", "K", "dew_point_temperature", "different quantities"),
        ("tp", "m s-1", None, "not convertible"),
        ("t850", "warm", None, "'warm' is not understood; expected units like 'K'"),
        ("tp", "kg m-2", "snowfall_amount", "different quantities"),
    ],
)
def test_other_quantities_are_refused(name: str, units: str, standard_name: str | None, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        convert_units(channel(name), units, standard_name)


def _fields() -> np.ndarray:
    field = np.random.default_rng(0).standard_normal((3, *GRID.shape)).astype(np.float32)
    field[0, 2:6, 3:9] = np.nan
    field[2, 8] = np.nan
    return field


def test_a_constant_fills_and_keep_keeps() -> None:
    field = _fields()
    filled = MissingFill(("sst", "t2m", "siconc"), {"sst": 271.0}, GRID)(field)
    missing = np.isnan(field)
    assert (filled[0][missing[0]] == 271).all()
    np.testing.assert_array_equal(filled[2], field[2])
    np.testing.assert_array_equal(filled[0][~missing[0]], field[0][~missing[0]])
    assert np.isnan(field[0]).any()  # the caller's array stays as it is
    kept = MissingFill(("sst", "t2m", "siconc"), {"sst": "keep"}, GRID)(field)
    assert kept is field


def test_the_mean_is_that_of_the_area_with_values() -> None:
    field = _fields()
    filled = MissingFill(("sst", "t2m", "siconc"), {"sst": "mean", "siconc": "mean"}, GRID)(field)
    area = np.broadcast_to(GRID.area_weights()[:, None], GRID.shape)
    for place in (0, 2):
        there = ~np.isnan(field[place])
        expected = np.average(field[place][there].astype(np.float64), weights=area[there])
        np.testing.assert_allclose(filled[place][~there], expected, rtol=1e-6)


def test_the_nearest_point_gives_the_value_and_is_found_once_per_mask() -> None:
    rule = MissingFill(("sst",), {"sst": "nearest"}, GRID)
    field = _fields()[:1]
    filled = rule(field)
    assert not np.isnan(filled).any()
    # Across the dateline of the array and at the border of the hole.
    assert filled[0, 3, 3] == field[0, 3, 2]
    assert filled[0, 3, 8] == field[0, 3, 9]
    again = rule(field * 2)
    np.testing.assert_array_equal(again, filled * 2)
    assert len(rule._nearest) == 1


def test_a_field_that_is_missing_altogether_stays_missing() -> None:
    field = np.full((1, *GRID.shape), np.nan, np.float32)
    for policy in ("mean", "nearest", 0.0):
        assert np.isnan(MissingFill(("sst",), {"sst": policy}, GRID)(field)).all()


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="a number or one of keep, mean, nearest"):
        MissingFill(("sst",), {"sst": "zero"}, GRID)  # type: ignore[dict-item]


@pytest.mark.parametrize("rule", ["mean", "nearest", 280.0])
def test_conversion_records_the_rule(tmp_path, rule) -> None:
    from wx_data import Store

    times = np.datetime64("2001-01-01", "ns") + np.arange(2) * np.timedelta64(6, "h")
    values = np.random.default_rng(1).uniform(275, 300, (2, *GRID.shape)).astype("f4")
    values[:, 2:5, 4:7] = np.nan
    coords = {"time": times, "latitude": GRID.latitude, "longitude": GRID.longitude}
    dataset = xr.Dataset({"sst": (("time", "latitude", "longitude"), values, {"units": "K"})}, coords=coords)
    with pytest.raises(SourceError, match=r'sst at 2001-01-01T00: 9 missing values .*"mean", "nearest"'):
        convert(open_source(dataset), tmp_path / "refused")
    convert(open_source(dataset), tmp_path / "s", nan={"sst": rule})
    store = Store(tmp_path / "s")
    assert store.attributes["fills"] == {"sst": rule}
    stored = store.read(store.times).values[:, 0]
    np.testing.assert_array_equal(stored[~np.isnan(values)], values[~np.isnan(values)])
    assert not np.isnan(stored).any()
