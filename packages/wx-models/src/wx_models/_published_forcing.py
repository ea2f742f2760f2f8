"""The auxiliary fields that released ATLAS weights were trained with, reproduced to the last bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Single = npt.NDArray[np.float32]
Times = npt.NDArray[np.datetime64]

_J2000 = np.datetime64("2000-01-01T12:00", "us")
_ARCSECONDS = 3600.0


class PublishedForcing:
    """Cosine of the solar zenith angle, then static fields, as released ATLAS weights expect them.

    It is a `Forcing` for `LatentForecaster` and for nothing else: the zenith angle is that of the grid upside
    down (row 0 is the south pole, while row 0 of the data is the north pole), is not clipped at night, and is
    computed in float32, where a minute of hour angle is lost. Weights trained on it need it as it is.

    Args:
        statics: (S, H, W), in the order and scaling of the checkpoint: land-sea mask, SST mask, orography.

    Raises:
        ValueError: `statics` is not (S, H, W), or not finite.
    """

    def __init__(self, statics: Tensor) -> None:
        if statics.ndim != 3 or not bool(statics.isfinite().all()):
            raise ValueError(f"statics must be finite and (S, H, W), got {tuple(statics.shape)}")
        self.statics = statics.to(torch.float32)

    def at(self, valid_time: Times, /) -> Tensor:
        """Returns float32 (N, 1 + S, H, W) on the device of the statics, at (N,) times."""
        times = np.asarray(valid_time)
        zenith = published_cos_zenith(times, tuple(self.statics.shape[1:]))
        fields = torch.from_numpy(zenith)[:, None].to(self.statics.device)
        return torch.cat([fields, self.statics.expand(len(times), -1, -1, -1)], dim=1)


def published_cos_zenith(valid_time: Times, grid: tuple[int, ...]) -> Single:
    """Cosine of the solar zenith angle, float32 (N, H, W), rows from the south pole to the north pole.

    The sun's position follows Meeus, Astronomical Algorithms (1998), chapter 25, sidereal time the IAU 1982
    formula, but with the cubic term ten times too large, as published. Every operation is float32 in the
    published order: in float64 the result differs by up to 8e-3.
    """
    rows, columns = grid
    longitude = np.linspace(0, 2 * np.pi, columns + 1, dtype=np.float32)[:-1]
    latitude = np.linspace(-np.pi / 2, np.pi / 2, rows, dtype=np.float32)[:, None]
    days = (np.asarray(valid_time).astype("datetime64[us]") - _J2000) / np.timedelta64(1, "D")
    century = (days.astype(np.float32) / np.float32(36525.0)).reshape(-1, 1, 1)
    right_ascension, declination = _sun(century)
    hour_angle = (_sidereal_time(century) + longitude) - right_ascension
    vertical = np.sin(latitude) * np.sin(declination)
    found: Single = vertical + np.cos(latitude) * np.cos(declination) * np.cos(hour_angle)
    return found


def _sun(century: Single) -> tuple[Single, Single]:
    """Right ascension and declination."""
    obliquity, longitude = _obliquity(century), _ecliptic_longitude(century)
    x = np.cos(longitude)
    y = np.cos(obliquity) * np.sin(longitude)
    z = np.sin(obliquity) * np.sin(longitude)
    r = np.sqrt(1.0 - z * z)
    return 2.0 * np.arctan2(y, x + r), np.arctan2(z, r)


def _obliquity(t: Single) -> Single:
    change = 46.836769 * t - 0.0001831 * t**2 + 0.00200340 * t**3 - 0.576e-6 * t**4 - 4.34e-8 * t**5
    degrees = 23.0 + 26.0 / 60 + 21.406 / _ARCSECONDS - change / _ARCSECONDS
    obliquity: Single = np.deg2rad(degrees, dtype=np.float32)
    return obliquity


def _ecliptic_longitude(t: Single) -> Single:
    anomaly = 357.52910 + 35999.05030 * t - 0.0001559 * t * t - 0.00000048 * t * t * t
    mean = 280.46645 + 36000.76983 * t + 0.0003032 * t**2
    m = np.deg2rad(anomaly, dtype=np.float32)
    centre = (
        (1.914600 - 0.004817 * t - 0.000014 * t**2) * np.sin(m)
        + (0.019993 - 0.000101 * t) * np.sin(2 * m)
        + 0.000290 * np.sin(3 * m)
    )
    longitude: Single = np.deg2rad(mean, dtype=np.float32) + np.deg2rad(centre, dtype=np.float32)
    return longitude


def _sidereal_time(t: Single) -> Single:
    """At Greenwich, radians."""
    seconds = 67310.54841 + t * (876600 * 3600 + 8640184.812866 + t * (0.093104 - t * 6.2 * 10e-6))
    angle: Single = np.deg2rad(seconds / 240.0) % np.float32(2 * np.pi)
    return angle
