"""Forcings against independent astronomy, symmetries and the calendar."""

import numpy as np
import pytest

from wx_data import Forcings, Grid
from wx_data._forcings import _sun, cos_zenith

DAY = np.timedelta64(1, "D").astype("timedelta64[ns]")


def _times(*stamps: str) -> np.ndarray:
    return np.array(stamps, dtype="datetime64[ns]")


def _meeus(times: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Independent: Meeus' solar position and the IAU 1982 sidereal time; one value per triple."""
    days = (times - np.datetime64("2000-01-01T12:00:00", "ns")) / DAY
    c = days / 36525
    rad = np.deg2rad
    anomaly = rad(357.52910 + 35999.05030 * c - 0.0001559 * c**2 - 4.8e-7 * c**3)
    centre = (1.914600 - 0.004817 * c - 0.000014 * c**2) * np.sin(anomaly)
    centre += (0.019993 - 0.000101 * c) * np.sin(2 * anomaly) + 0.000290 * np.sin(3 * anomaly)
    ecliptic = rad(280.46645 + 36000.76983 * c + 0.0003032 * c**2 + centre)
    obliquity = rad(23 + 26 / 60 + 21.406 / 3600 - (46.836769 * c + 0.0001831 * c**2) / 3600)
    x, y = np.cos(ecliptic), np.cos(obliquity) * np.sin(ecliptic)
    declination = np.arcsin(np.sin(obliquity) * np.sin(ecliptic))
    seconds = 67310.54841 + c * (876600 * 3600 + 8640184.812866 + c * (0.093104 - c * 6.2e-6))
    hour = rad(seconds / 240) + longitude - np.arctan2(y, x)
    return np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour)


def test_cos_zenith_against_an_independent_ephemeris() -> None:
    # Both series are good to about 0.01 degree = 1.7e-4 in the angle, so 3e-4 between them.
    rng = np.random.default_rng(0)
    hours = rng.integers(0, 365 * 24 * 44, 2000).astype("timedelta64[h]")
    times = np.datetime64("1980-01-01", "ns") + hours
    latitude, longitude = rng.uniform(-np.pi / 2, np.pi / 2, 2000), rng.uniform(0, 2 * np.pi, 2000)
    ours = [
        cos_zenith(times[i : i + 1], latitude[i : i + 1], longitude[i : i + 1])[0, 0, 0] for i in range(2000)
    ]
    assert np.abs(np.array(ours) - _meeus(times, latitude, longitude)).max() < 3e-4


@pytest.mark.parametrize(
    ("moment", "degrees"),
    [
        ("2024-03-20T03:06", 0.0),
        ("2024-06-20T20:51", 23.436),
        ("2024-09-22T12:44", 0.0),
        ("2024-12-21T09:20", -23.436),
    ],
)
def test_declination_at_equinox_and_solstice(moment: str, degrees: float) -> None:
    days = (np.datetime64(moment, "ns") - np.datetime64("2000-01-01T12:00", "ns")) / DAY
    declination, _ = _sun(np.array([days]))
    assert np.rad2deg(declination[0]) == pytest.approx(degrees, abs=0.011)


def test_mean_over_the_sphere_is_zero_and_maximum_one() -> None:
    grid = Grid.regular(91, 180)
    field = Forcings(grid, ["cos_zenith"]).at(_times("2001-07-04T18", "2010-01-01T03")).double().numpy()[:, 0]
    weights = grid.area_weights()
    # The trapezoid-like cell weights are exact for the two harmonics of cos z up to O(spacing^2).
    np.testing.assert_allclose(np.einsum("nhw,h->n", field, weights) / 180, 0.0, atol=1e-7)
    np.testing.assert_allclose(field.max(axis=(1, 2)), 1.0, atol=4e-4)
    np.testing.assert_allclose(field[:, ::-1], -np.roll(field, 90, axis=-1), atol=1e-6)  # antipodes


def test_northern_summer_lights_the_first_row() -> None:
    field = Forcings(Grid.regular(33, 64), ["cos_zenith"]).at(_times("2001-06-21T00"))[0, 0]
    assert field[0].min() > 0.39
    assert field[-1].max() < -0.39


def test_noon_stands_over_the_right_meridian() -> None:
    grid = Grid.regular(33, 360)
    for hour, longitude in ((0, 180), (6, 90), (12, 0), (18, 270)):
        field = Forcings(grid, ["cos_zenith"]).at(_times(f"2001-04-15T{hour:02d}"))[
            0, 0
        ]  # equation of time 0
        assert int(field[16].argmax()) == longitude


def test_progress_of_day_and_year() -> None:
    forcings = Forcings(Grid.regular(5, 4), ["day_progress", "year_progress"])
    assert forcings.channels == ("sin_day", "cos_day", "sin_year", "cos_year")
    got = forcings.at(_times("2001-01-01T00", "2000-07-01T00", "2001-07-02T12")).double().numpy()
    np.testing.assert_allclose(got[0, 0, 0], [0, 1, 0, -1], atol=1e-6)
    np.testing.assert_allclose(got[0, 1, 0], [1, 0, -1, 0], atol=1e-6)
    np.testing.assert_allclose(got[0, 2:, 0, 0], [0, 1], atol=1e-6)
    np.testing.assert_allclose(got[2, 2:, 0, 0], [0, -1], atol=1e-6)  # middle of a year of 365 days
    assert got[1, 3, 0, 0] == pytest.approx(np.cos(2 * np.pi * 182 / 366), abs=1e-6)  # a leap year


def test_statics_and_geometry() -> None:
    grid = Grid.regular(9, 16)
    surface = np.random.default_rng(0).uniform(0, 3e4, grid.shape)
    land = (surface > 1e4).astype(np.float32)
    forcings = Forcings(grid, ["latlon", "orography", "land_sea_mask"], {"z_surface": surface, "lsm": land})
    got = forcings.at(_times("2001-01-01", "2001-01-02")).double().numpy()
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_allclose(got[0, 0] ** 2 + got[0, 1] ** 2, 1, atol=1e-6)
    np.testing.assert_allclose(got[0, 2] ** 2 + got[0, 3] ** 2, 1, atol=1e-6)
    weights = grid.area_weights()[:, None] / 16
    assert (got[0, 4] * weights).sum() == pytest.approx(0, abs=1e-6)
    assert (got[0, 4] ** 2 * weights).sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(got[0, 5], land)


def test_crop_is_a_slice() -> None:
    grid = Grid.regular(9, 16)
    statics = {"z_surface": np.random.default_rng(0).uniform(0, 3e4, grid.shape)}
    forcings = Forcings(grid, ["cos_zenith", "day_progress", "latlon", "orography"], statics)
    times = _times("2001-02-03T04", "2011-12-13T14")
    np.testing.assert_array_equal(forcings.crop(2, 7).at(times), forcings.at(times)[:, :, 2:7])


def test_refusals() -> None:
    grid = Grid.regular(9, 16)
    with pytest.raises(ValueError, match="unknown forcings tisr; known are cos_zenith"):
        Forcings(grid, ["tisr"])
    with pytest.raises(ValueError, match="'orography' needs the static field 'z_surface'"):
        Forcings(grid, ["orography"])
    with pytest.raises(ValueError, match="finite and of shape"):
        Forcings(grid, ["land_sea_mask"], {"lsm": np.zeros((3, 3))})
    with pytest.raises(ValueError, match="one-dimensional"):
        Forcings(grid, ["cos_zenith"]).at(np.datetime64("2001-01-01", "ns"))
