"""Specific humidity from relative humidity, as the ECMWF model defines saturation."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_EPSILON = 0.621981  # ratio of the gas constants of dry air and water vapour
_MELTING, _ICE = 273.16, 250.16  # K; between them saturation is a mixture over water and ice


def saturation_vapour_pressure(temperature: Floats) -> Floats:
    """Pa, from K: Teten's formula over water and ice, mixed between 250.16 K and 273.16 K.

    e = 611.21 exp(a3 (T - 273.16) / (T - a4)) with (a3, a4) = (17.502, 32.19) over water and
    (22.587, -0.7) over ice; the share of water is ((T - 250.16) / 23)^2 (IFS documentation, part IV,
    section 7.4.2).
    """
    water = np.exp(17.502 * (temperature - _MELTING) / (temperature - 32.19))
    ice = np.exp(22.587 * (temperature - _MELTING) / (temperature + 0.7))
    share = np.clip((temperature - _ICE) / (_MELTING - _ICE), 0.0, 1.0) ** 2
    found: Floats = 611.21 * (share * water + (1 - share) * ice)
    return found


def specific_humidity(relative: Floats, temperature: Floats, pressure: float) -> Floats:
    """kg kg-1, from relative humidity in %, temperature in K and pressure in Pa.

    q = epsilon e / (p - (1 - epsilon) e) with e = r / 100 e_s(T).
    """
    vapour = np.clip(relative, 0.0, None) / 100 * saturation_vapour_pressure(temperature)
    # Aloft e_s can exceed the pressure itself; there the air would be all vapour.
    vapour = np.minimum(vapour, pressure)
    found: Floats = _EPSILON * vapour / (pressure - (1 - _EPSILON) * vapour)
    return found
