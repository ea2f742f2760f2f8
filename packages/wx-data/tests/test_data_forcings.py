"""Forcings against independent astronomy, symmetries and the calendar."""

import numpy as np
import pytest
import torch

from wx_data import Forcings, Grid
from wx_data._sun import Sun, cos_zenith, incident_radiation

DAY = np.timedelta64(1, "D").astype("timedelta64[ns]")


def _times(*stamps: str) -> np.ndarray:
    return np.array(stamps, dtype="datetime64[ns]")


def _sky(times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Independent: declination, Greenwich hour angle and distance by the IAU's own routines (ERFA).

    Earth's position from VSOP2000 with aberration, IAU 2006/2000A precession and nutation and sidereal time.
    """
    erfa = pytest.importorskip("erfa")
    epoch = 2451545.0
    days = (times - np.datetime64("2000-01-01T12:00:00", "ns")) / DAY
    dynamical = days + 69.2 / 86400
    earth, barycentric = erfa.epv00(epoch, dynamical)
    distance = np.linalg.norm(earth["p"], axis=-1)
    seen = -earth["p"] / distance[:, None] + barycentric["v"] / 173.1446327  # light: 173 au a day
    seen /= np.linalg.norm(seen, axis=-1, keepdims=True)
    x, y, z = np.einsum("nij,nj->in", erfa.pnm06a(epoch, dynamical), seen)
    return np.arcsin(z), erfa.gst06a(epoch, days, epoch, dynamical) - np.arctan2(y, x), distance


def _cosine(times: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    declination, hour, _ = _sky(times)
    across = np.cos(latitude) * np.cos(declination) * np.cos(hour + longitude)
    return np.sin(latitude) * np.sin(declination) + across


def _points(count: int, year: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(year)
    seconds = rng.integers(0, 365 * 86400, count).astype("timedelta64[s]")
    latitude = np.arcsin(rng.uniform(-1, 1, count))
    latitude[:2], latitude[2:4] = np.pi / 2, -np.pi / 2
    return np.datetime64(f"{year}-01-01", "ns") + seconds, latitude, rng.uniform(0, 2 * np.pi, count)


@pytest.mark.parametrize("year", [1959, 1979, 2000, 2024, 2040])
def test_cos_zenith_against_an_independent_ephemeris(year: int) -> None:
    times, latitude, longitude = _points(2000, year)
    ours = [cos_zenith(times[i : i + 1], latitude[[i]], longitude[[i]])[0, 0, 0] for i in range(2000)]
    assert np.abs(np.array(ours) - _cosine(times, latitude, longitude)).max() < 1e-4


@pytest.mark.parametrize("hours", [1, 6, 24])
def test_radiation_against_a_sum_over_minutes(hours: int) -> None:
    interval = np.timedelta64(hours, "h")
    times, latitude, longitude = _points(max(10, 120 // hours), 2021)
    minutes = ((np.arange(60 * hours) + 0.5) * 60e9).astype("timedelta64[ns]") - interval
    for time, north, east in zip(times, latitude, longitude, strict=True):
        cosine = _cosine(time + minutes, np.array(north), np.array(east))
        power = 1361 / _sky(time + minutes)[2] ** 2 * cosine.clip(min=0)
        expected = 60 * power.sum()
        found = incident_radiation(np.array([time]), np.array([north]), np.array([east]), interval)[0, 0, 0]
        # 0.5 % in light; near the horizon 2e-4 of a zenith sun: 0.01 degrees, and the minute of a sunrise.
        assert found == pytest.approx(expected, rel=5e-3, abs=2e-4 * 1361 * 3600 * hours)
        assert (expected > 0) or found < 2e-4 * 1361 * 3600 * hours


def test_radiation_adds_up_and_its_mean_is_a_quarter_of_the_solar_constant() -> None:
    grid = Grid.regular(91, 72)
    latitude, longitude = np.deg2rad(grid.latitude), np.deg2rad(grid.longitude)
    days = np.datetime64("2019-01-02", "ns") + np.arange(365) * np.timedelta64(1, "D")
    total = incident_radiation(days, latitude, longitude, np.timedelta64(24, "h"))
    mean = np.einsum("nhw,h->", total.astype(np.float64), grid.area_weights()) / 72 / 365 / 86400
    # <1/r^2> = 1 / sqrt(1 - e^2) over a year; the grid integrates a terminator to about 1e-4.
    assert mean == pytest.approx(1361 / 4 / np.sqrt(1 - 0.01671**2), rel=2e-4)
    hours = days[100] - np.arange(24) * np.timedelta64(1, "h")
    parts = incident_radiation(hours, latitude, longitude, np.timedelta64(1, "h"))
    np.testing.assert_allclose(parts.sum(axis=0), total[100], rtol=2e-3, atol=2e3)


def test_polar_night_and_polar_day() -> None:
    longitude = np.deg2rad(np.arange(0, 360, 30.0))
    june, december = _times("2020-06-21T00"), _times("2020-12-21T18")
    north = np.deg2rad(np.array([90.0, 80.0, 70.0]))
    for hours in (1, 6, 24):
        night = incident_radiation(december, north, longitude, np.timedelta64(hours, "h"))
        assert (night == 0).all()
        day = incident_radiation(june, north, longitude, np.timedelta64(hours, "h"))
        assert (day > 0).all()
        # At the pole the sun circles at the height of its declination.
        sun = Sun.at(june)
        expected = 1361 / sun.distance**2 * np.sin(sun.declination) * 3600 * hours
        np.testing.assert_allclose(day[0, 0], expected[0], rtol=2e-4)


def test_radiation_at_noon_of_an_equinox() -> None:
    # Equator, sun overhead: the day's integral is S / r^2 x 86400 / pi, the hour's nearly S x 3600. Sun time
    # was 7.4 minutes late; the true solar day is 18 s shorter than 24 h (2e-4).
    equator, sun = np.zeros(1), Sun.at(_times("2024-03-20T12:07:24"))
    midnight, after_noon = _times("2024-03-21T00:07:24"), _times("2024-03-20T12:37:24")
    day = incident_radiation(midnight, equator, equator, np.timedelta64(24, "h"))[0, 0, 0]
    assert day == pytest.approx(1361 / sun.distance[0] ** 2 * 86400 / np.pi, rel=3e-4)
    hour = incident_radiation(after_noon, equator, equator, np.timedelta64(1, "h"))[0, 0, 0]
    half = np.deg2rad(7.5)
    assert hour == pytest.approx(1361 / sun.distance[0] ** 2 * 3600 * np.sin(half) / half, rel=3e-4)


def test_radiation_is_a_forcing() -> None:
    grid = Grid.regular(9, 16)
    forcings = Forcings(grid, ["toa_incident_solar_radiation", "cos_zenith"], interval=6)
    field = forcings.at(_times("2001-06-21T00", "2001-12-21T06"))
    assert field.dtype == torch.float32
    assert field.shape == (2, 2, 9, 16)
    assert (field[0, 0, 0] > 0).all()
    assert (field[1, 0, 0] == 0).all()
    np.testing.assert_array_equal(
        field[:, 0],
        incident_radiation(
            _times("2001-06-21T00", "2001-12-21T06"),
            np.deg2rad(grid.latitude),
            np.deg2rad(grid.longitude),
            np.timedelta64(6, "h"),
        ),
    )
    with pytest.raises(ValueError, match="interval must be 1 to 24 h; got 25"):
        Forcings(grid, ["cos_zenith"], interval=25)


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
    assert np.rad2deg(Sun.at(_times(moment)).declination[0]) == pytest.approx(degrees, abs=0.01)


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
    names = ["cos_zenith", "toa_incident_solar_radiation", "day_progress", "latlon", "orography"]
    forcings = Forcings(grid, names, statics)
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
