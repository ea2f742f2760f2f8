"""The published auxiliary fields: the formulas of the model card's code, in its precision, on its grid."""

from __future__ import annotations

from datetime import datetime, timedelta
from math import atan2, cos, pi, radians, sin, sqrt

import numpy as np
import pytest
import torch

from wx_models import PublishedForcing
from wx_models._published_forcing import published_cos_zenith

TIMES = [datetime(1981, 3, 3, 18), datetime(2000, 1, 1, 12), datetime(2020, 6, 21), datetime(2024, 12, 31, 6)]
GRID = (19, 36)
# Seconds of hour angle that float32 may lose until 2025: half a unit in the last place of the days (7,300:
# 21), of T (0.25) times 3.16e9 (24), of the sidereal seconds (6e8: 32), and of their degrees (2.6e6: 30).
ROUNDING = radians((21 + 24 + 32 + 30) / 240)


def stamps(times: list[datetime]) -> np.ndarray:
    return np.array(times, dtype="datetime64[ns]")


def zenith(time: datetime, latitude: float, longitude: float, *, single: bool) -> float:
    """The formulas with plain Python numbers, the time rounded to float32 where `single`."""
    days = (time - datetime(2000, 1, 1, 12)) / timedelta(days=1)
    t = float(np.float32(np.float32(days) / np.float32(36525))) if single else days / 36525
    anomaly = radians(357.52910 + 35999.05030 * t - 0.0001559 * t**2 - 4.8e-7 * t**3)
    centre = (1.914600 - 0.004817 * t - 0.000014 * t**2) * sin(anomaly)
    centre += (0.019993 - 0.000101 * t) * sin(2 * anomaly) + 0.000290 * sin(3 * anomaly)
    ecliptic = radians(280.46645 + 36000.76983 * t + 0.0003032 * t**2 + centre)
    lost = 46.836769 * t - 0.0001831 * t**2 + 0.00200340 * t**3 - 0.576e-6 * t**4 - 4.34e-8 * t**5
    tilt = radians(23 + 26 / 60 + (21.406 - lost) / 3600)
    x, y, z = cos(ecliptic), cos(tilt) * sin(ecliptic), sin(tilt) * sin(ecliptic)
    r = sqrt(1 - z * z)
    declination, ascension = atan2(z, r), 2 * atan2(y, x + r)
    seconds = 67310.54841 + t * (876600 * 3600 + 8640184.812866 + t * (0.093104 - t * 6.2e-5))
    hour_angle = radians(seconds / 240) + longitude - ascension
    return sin(latitude) * sin(declination) + cos(latitude) * cos(declination) * cos(hour_angle)


def expected(time: datetime, *, single: bool) -> np.ndarray:
    rows, columns = GRID
    return np.array(
        [
            [
                zenith(time, -pi / 2 + pi * i / (rows - 1), 2 * pi * j / columns, single=single)
                for j in range(columns)
            ]
            for i in range(rows)
        ]
    )


@pytest.mark.parametrize("time", TIMES)
def test_formulas(time: datetime) -> None:
    [found] = published_cos_zenith(stamps([time]), GRID)
    assert found.dtype == np.float32
    assert np.abs(found - expected(time, single=False)).max() < ROUNDING


def test_j2000_is_exact() -> None:
    """At T = 0 no angle is large, so that float32 costs only its own rounding."""
    [found] = published_cos_zenith(stamps([datetime(2000, 1, 1, 12)]), GRID)
    np.testing.assert_allclose(found, expected(datetime(2000, 1, 1, 12), single=True), atol=1e-6)


def test_single_precision_is_kept() -> None:
    """A correction in float64 would be visible: the published chain is some 5e-3 away from it."""
    times = [datetime(2020, 1, 1) + timedelta(hours=6 * step) for step in range(0, 1460, 37)]
    found = published_cos_zenith(stamps(times), GRID)
    exact = np.stack([expected(time, single=False) for time in times])
    assert 5e-4 < np.abs(found - exact).max() < ROUNDING


def test_rows_are_upside_down() -> None:
    """Row 0 of the data is the north pole, in daylight in June; the published field has polar night there."""
    [june] = published_cos_zenith(stamps([datetime(2020, 6, 21)]), (721, 1440))
    assert june[0].mean() == pytest.approx(-0.40, abs=0.005)
    assert june[-1].mean() == pytest.approx(0.40, abs=0.005)


def test_forcing_appends_statics_to_the_zenith_angle() -> None:
    statics = torch.randn(3, *GRID, generator=torch.Generator().manual_seed(0))
    fields = PublishedForcing(statics).at(stamps(TIMES))
    assert fields.shape == (4, 4, *GRID)
    assert fields.dtype == torch.float32
    np.testing.assert_array_equal(fields[:, 0], published_cos_zenith(stamps(TIMES), GRID))
    for row in fields:
        assert torch.equal(row[1:], statics)


def test_refuses_statics_that_are_no_fields() -> None:
    with pytest.raises(ValueError, match=r"statics must be finite and \(S, H, W\), got \(1, 3, 4, 8\)"):
        PublishedForcing(torch.zeros(1, 3, 4, 8))
    with pytest.raises(ValueError, match="statics must be finite"):
        PublishedForcing(torch.full((1, 4, 8), torch.nan))
