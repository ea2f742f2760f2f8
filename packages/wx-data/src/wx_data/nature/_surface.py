"""An analytic Earth: ridges and plateaus where the real ones stand, and a smooth land mask."""

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# Height (m), latitude, longitude, half-widths in latitude and longitude (degrees) of elliptic Gaussians.
_MOUNTAINS = (
    (4300.0, 34.0, 88.0, 6.0, 13.0),  # Tibet
    (1500.0, 48.0, 98.0, 5.0, 10.0),  # Altai, Mongolia
    (1300.0, 33.0, 56.0, 5.0, 9.0),  # Iran
    (900.0, 64.0, 140.0, 6.0, 18.0),  # East Siberia
    (900.0, 46.0, 10.0, 4.0, 7.0),  # Alps
    (800.0, 63.0, 12.0, 6.0, 6.0),  # Scandinavia
    (2000.0, 42.0, -110.0, 11.0, 7.0),  # Rockies
    (1000.0, 60.0, -130.0, 7.0, 10.0),  # Yukon
    (1500.0, 23.0, -103.0, 6.0, 5.0),  # Mexico
    (2500.0, 73.0, -40.0, 7.0, 14.0),  # Greenland
    (1800.0, -6.0, -77.0, 9.0, 4.0),  # Northern Andes
    (3000.0, -20.0, -68.0, 8.0, 4.5),  # Altiplano
    (1500.0, -38.0, -70.0, 9.0, 4.0),  # Southern Andes
    (700.0, -15.0, -47.0, 8.0, 7.0),  # Brazil
    (1600.0, 8.0, 39.0, 6.0, 5.0),  # Ethiopia
    (1000.0, -8.0, 33.0, 9.0, 6.0),  # East Africa
    (1100.0, -27.0, 25.0, 7.0, 7.0),  # South Africa
    (500.0, 22.0, 8.0, 8.0, 10.0),  # Ahaggar
)
_ANTARCTICA = (2900.0, -76.0, 3.0)  # height, latitude of the edge, width of the edge

# Latitude, longitude, half-axes in latitude and longitude (degrees) of the ellipses of land.
_LAND = (
    (52.0, -102.0, 20.0, 26.0),
    (64.0, -118.0, 8.0, 42.0),
    (21.0, -101.0, 11.0, 7.0),
    (73.0, -40.0, 11.0, 14.0),
    (-9.0, -60.0, 17.0, 17.0),
    (-34.0, -66.0, 19.0, 6.0),
    (17.0, 13.0, 17.0, 29.0),
    (-12.0, 26.0, 22.0, 12.0),
    (51.0, 22.0, 11.0, 24.0),
    (63.0, 20.0, 7.0, 12.0),
    (52.0, 88.0, 20.0, 48.0),
    (65.0, 110.0, 8.0, 68.0),
    (22.0, 78.0, 13.0, 9.0),
    (31.0, 106.0, 13.0, 14.0),
    (18.0, 102.0, 10.0, 6.0),
    (24.0, 46.0, 10.0, 9.0),
    (36.0, 60.0, 9.0, 22.0),
    (-25.0, 134.0, 10.0, 18.0),
    (0.0, 113.0, 5.0, 6.0),
)
_COAST = 0.12


def _offset(longitudes: Float64, centre: float) -> Float64:
    return (longitudes - centre + 180.0) % 360.0 - 180.0


def _mesh(latitudes: Float64, longitudes: Float64) -> tuple[Float64, Float64]:
    return np.asarray(latitudes, np.float64)[:, None], np.asarray(longitudes, np.float64)[None, :]


def _sigmoid(x: Float64) -> Float64:
    result: Float64 = 0.5 * (1.0 + np.tanh(0.5 * x))
    return result


def orography(latitudes: Float64, longitudes: Float64) -> Float64:
    """Height of the ground in metres, shape (latitude, longitude); arguments in degrees."""
    lat, lon = _mesh(latitudes, longitudes)
    height, edge, width = _ANTARCTICA
    ground = height * _sigmoid((edge - lat) / width) + 0.0 * lon
    for peak, centre_lat, centre_lon, half_lat, half_lon in _MOUNTAINS:
        distance = ((lat - centre_lat) / half_lat) ** 2 + (_offset(lon, centre_lon) / half_lon) ** 2
        ground = ground + peak * np.exp(-distance)
    return ground


def land_fraction(latitudes: Float64, longitudes: Float64) -> Float64:
    """Smooth land fraction in 0..1, shape (latitude, longitude); arguments in degrees."""
    lat, lon = _mesh(latitudes, longitudes)
    sea = 1.0 - _sigmoid((-70.0 - lat) / 2.0) + 0.0 * lon
    for centre_lat, centre_lon, half_lat, half_lon in _LAND:
        distance = np.hypot((lat - centre_lat) / half_lat, _offset(lon, centre_lon) / half_lon)
        sea = sea * (1.0 - _sigmoid((1.0 - distance) / _COAST))
    return 1.0 - sea
