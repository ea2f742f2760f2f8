"""The sun over a rotating Earth: zenith angle, distance, and radiation integrated over time.

Position after Meeus, Astronomical Algorithms (1998), chapter 25, with the perturbations by Venus, Jupiter and
the Moon of Newcomb's theory (Meeus, Astronomical Formulae for Calculators (1985), chapter 18): within 0.005
degrees between 1940 and 2050. UT1 is taken as UTC; refraction is left out.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Times = NDArray[np.datetime64]

SOLAR_CONSTANT = 1361.0  # W m-2 at 1 au: Kopp and Lean (2011), doi:10.1029/2010GL045777

_J2000 = np.datetime64("2000-01-01T12:00:00", "ns")
_DAY = np.timedelta64(86_400_000_000_000, "ns")
_DYNAMICAL = 66.0 / 86_400  # days that terrestrial time was ahead of UTC in 2008; 40 s more matter 1e-5
_PART = np.timedelta64(2, "h").astype("timedelta64[ns]")


@dataclass(frozen=True)
class Sun:
    """Where the sun stands at (N,) times.

    Attributes:
        declination: radians.
        hour_angle: of the Greenwich meridian, radians in -pi..pi.
        distance: astronomical units.
    """

    declination: Floats
    hour_angle: Floats
    distance: Floats

    @classmethod
    def at(cls, times: Times) -> "Sun":
        """The sun at (N,) times."""
        days: Floats = (np.asarray(times, dtype="datetime64[ns]") - _J2000) / _DAY
        century = (days + _DYNAMICAL) / 36525
        node = np.deg2rad(125.04 - 1934.136 * century)
        ecliptic, distance = _ecliptic(century)
        ecliptic = ecliptic - np.deg2rad(0.00569 + 0.00478 * np.sin(node))  # aberration and nutation
        obliquity = np.deg2rad(23.439291 - 0.0130042 * century + 0.00256 * np.cos(node))
        right_ascension = np.arctan2(np.cos(obliquity) * np.sin(ecliptic), np.cos(ecliptic))
        sidereal = 280.46061837 + 360.98564736629 * days - 0.00478 * np.sin(node) * np.cos(obliquity)
        hour_angle = np.deg2rad(np.mod(sidereal, 360.0)) - right_ascension
        return cls(
            declination=np.arcsin(np.sin(obliquity) * np.sin(ecliptic)),
            hour_angle=np.mod(hour_angle + np.pi, 2 * np.pi) - np.pi,
            distance=distance,
        )


def cos_zenith(times: Times, latitude: Floats, longitude: Floats) -> Floats:
    """Cosine of the solar zenith angle, (N, H, W), of latitude (H,) and longitude (W,) in radians.

    cos z = sin(lat) sin(dec) + cos(lat) cos(dec) cos(hour angle of Greenwich + lon)

    Where each row has a longitude of its own, `longitude` is (H, 1) and W is 1.
    """
    sun = Sun.at(times)
    local = np.cos(sun.hour_angle[:, None, None] + np.atleast_2d(longitude))
    vertical, horizontal = _components(sun.declination, latitude)
    found: Floats = vertical[:, :, None] + horizontal[:, :, None] * local
    return found


def incident_radiation(
    times: Times, latitude: Floats, longitude: Floats, interval: np.timedelta64
) -> NDArray[np.float32]:
    """Top-of-atmosphere incident solar radiation of the `interval` that ends at each time, J m-2, (N, H, W).

    Integral of S / r^2 max(0, cos z) with the solar constant S = 1361 W m-2 and the distance r in au. Within
    parts of at most 2 h declination and distance are those of the middle; the integral over the hour angle
    is then exact, sunrise and sunset included. Latitude and longitude are those of `cos_zenith`.
    """
    longitude = np.atleast_2d(longitude)
    ends = np.asarray(times, dtype="datetime64[ns]")
    span = interval.astype("timedelta64[ns]")
    parts = -int(-span // _PART)
    edges = np.stack([ends - span + span * part // parts for part in range(parts + 1)])
    total = np.zeros((len(ends), len(latitude), longitude.shape[1]), dtype=np.float32)
    for start, stop in pairwise(edges):
        middle = Sun.at(start + (stop - start) // 2)
        turned = np.mod(Sun.at(stop).hour_angle - Sun.at(start).hour_angle, 2 * np.pi)
        first = np.mod(Sun.at(start).hour_angle[:, None, None] + longitude + np.pi, 2 * np.pi) - np.pi
        vertical, horizontal = _components(middle.declination, latitude)
        seconds = (stop - start) / np.timedelta64(1, "s")
        power = SOLAR_CONSTANT / middle.distance**2 * seconds / turned
        for place, (west, turn) in enumerate(zip(first, turned, strict=True)):
            up, across = vertical[place] * power[place], horizontal[place] * power[place]
            total[place] += _lit(up, across, west, west + turn)
            later = (west + turn > np.pi).any(axis=0)  # these columns meet the next day as well
            again = west[:, later] - 2 * np.pi
            total[place][:, later] += _lit(up, across, again, again + turn)
    return total


def _lit(vertical: Floats, horizontal: Floats, low: Floats, high: Floats) -> NDArray[np.float32]:
    """(H, W) integral of max(0, A + B cos h) over the hour angle h from low to high, within one day."""
    ratio = np.divide(-vertical, horizontal, out=-np.sign(vertical), where=horizontal > 1e-12)
    sunset = np.arccos(np.clip(ratio, -1, 1)).astype(np.float32)[:, None]  # 0: polar night, pi: polar day
    first = np.clip(low.astype(np.float32), -sunset, sunset)
    last = np.clip(high.astype(np.float32), -sunset, sunset)
    found = vertical.astype(np.float32)[:, None] * (last - first)
    found += horizontal.astype(np.float32)[:, None] * (np.sin(last) - np.sin(first))
    return np.maximum(found, 0, out=found)


def _components(declination: Floats, latitude: Floats) -> tuple[Floats, Floats]:
    """A and B of cos z = A + B cos(hour angle), each (N, H)."""
    vertical = np.sin(latitude) * np.sin(declination)[:, None]
    horizontal = np.cos(latitude) * np.cos(declination)[:, None]
    return vertical, horizontal


def _ecliptic(century: Floats) -> tuple[Floats, Floats]:
    """Geometric ecliptic longitude of date in radians, and distance in au."""
    t, u = century, century + 1  # Julian centuries since 2000 and since 1900
    anomaly = np.deg2rad(357.52911 + 35999.05029 * t - 0.0001537 * t**2)
    centre = (1.914602 - 0.004817 * t) * np.sin(anomaly)
    centre += (0.019993 - 0.000101 * t) * np.sin(2 * anomaly) + 0.000289 * np.sin(3 * anomaly)
    longitude = 280.46646 + 36000.76983 * t + 0.0003032 * t**2 + centre
    longitude += 0.00134 * np.cos(np.deg2rad(153.23 + 22518.7541 * u))
    longitude += 0.00154 * np.cos(np.deg2rad(216.57 + 45037.5082 * u))
    longitude += 0.00200 * np.cos(np.deg2rad(312.69 + 32964.3577 * u))
    longitude += 0.00179 * np.sin(np.deg2rad(350.74 + 445267.1142 * u))
    longitude += 0.00178 * np.sin(np.deg2rad(231.19 + 20.20 * u))
    eccentricity = 0.016708634 - 0.000042037 * t
    distance = 1.000001018 * (1 - eccentricity**2)
    distance = distance / (1 + eccentricity * np.cos(anomaly + np.deg2rad(centre)))
    return np.deg2rad(np.mod(longitude, 360.0)), distance
