"""Power spectra on the sphere."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]


def power_spectrum(values: npt.ArrayLike, latitude: npt.ArrayLike, *, l_max: int | None = None) -> Vector:
    """Power per total wavenumber, S_l = sum_m |a_lm|^2, normalised so that sum_l S_l is the mean of f^2.

    Rows are first doubled by trigonometric interpolation along the meridian circle, after which
    Clenshaw-Curtis quadrature is exact: the spectrum of any field without power beyond `l_max` is exact, with
    l_max up to rows - 2. Power is quadratic: average spectra over members and dates, never fields.

    Args:
        values: fields on an equidistant grid with both poles, shape (..., H, W), W even.
        latitude: degrees, 90..-90 or -90..90, shape (H,).
        l_max: last total wavenumber; by default the largest that the grid resolves, min(H - 2, W/2 - 1).

    Returns:
        Shape (..., l_max + 1).

    Raises:
        ValueError: for another grid, values that are not finite, or an l_max that the grid cannot resolve.
    """
    fields, lat = np.asarray(values, np.float64), np.asarray(latitude, np.float64)
    _check(fields, lat)
    rows, columns = fields.shape[-2:]
    limit = min(rows - 2, columns // 2 - 1)
    l_max = limit if l_max is None else l_max
    if not 0 <= l_max <= limit:
        raise ValueError(f"l_max must lie within 0..{limit} on a {rows} x {columns} grid, got {l_max}")
    if lat[0] < lat[-1]:
        fields = fields[..., ::-1, :]
    zonal = np.fft.rfft(fields, axis=-1)[..., : l_max + 1] / columns
    fine = _double_rows(zonal)
    colatitude = np.linspace(0, np.pi, fine.shape[-2])
    weights = _clenshaw_curtis(fine.shape[-2])
    power = np.zeros((*fields.shape[:-2], l_max + 1))
    for m, legendre_LT in enumerate(_legendre(np.cos(colatitude), np.sin(colatitude), l_max)):
        # Half the integral over cos(colatitude) turns the mean over the sphere of f Y* into a_lm.
        coefficient = fine[..., m] @ (legendre_LT * weights / 2).T
        power[..., m:] += (1 if m == 0 else 2) * np.abs(coefficient) ** 2
    return power


def _check(fields: Vector, lat: Vector) -> None:
    if fields.ndim < 2 or fields.shape[-2] != lat.size or lat.size < 3 or fields.shape[-1] % 2:
        raise ValueError(
            f"values must have shape (..., {lat.size}, W) with W even to match latitude, got {fields.shape}"
        )
    regular = np.linspace(90, -90, lat.size)
    if min(np.abs(lat - regular).max(), np.abs(lat + regular).max()) > 1e-4:
        raise ValueError(
            f"latitude must be equidistant from pole to pole, got {lat.size} rows {lat[0]:g}..{lat[-1]:g}: "
            "interpolate to such a grid first"
        )
    if not np.isfinite(fields).all():
        raise ValueError("values must be finite: fill missing points before taking a spectrum")


def _double_rows(zonal_HM: Array) -> Array:
    """Interpolate to twice the rows; past a pole zonal wave m continues as (-1)^m times itself."""
    rows = zonal_HM.shape[-2]
    sign = (-1.0) ** np.arange(zonal_HM.shape[-1])
    circle = np.concatenate([zonal_HM, sign * zonal_HM[..., -2:0:-1, :]], axis=-2)
    harmonics = np.fft.fft(circle, axis=-2)
    middle = rows - 1
    # The wave at the Nyquist frequency is its own mirror image: half of it belongs to either sign.
    nyquist = harmonics[..., middle : middle + 1, :] / 2
    zeros = np.zeros((*harmonics.shape[:-2], 2 * middle - 1, harmonics.shape[-1]))
    parts = [harmonics[..., :middle, :], nyquist, zeros, nyquist, harmonics[..., middle + 1 :, :]]
    return np.fft.ifft(np.concatenate(parts, axis=-2), axis=-2)[..., : 2 * rows - 1, :] * 2


def _clenshaw_curtis(points: int) -> Vector:
    """Weights of the integral over cos(theta) on theta_j = pi j / (points - 1)."""
    n = points - 1
    k = np.arange(n // 2 + 1)
    factor = np.where((k == 0) | (2 * k == n), 1.0, 2.0) / (1 - 4.0 * k**2)
    cosines = np.cos(2 * np.pi * np.outer(np.arange(points), k) / n)
    weights = 2 / n * (cosines @ factor)
    weights[[0, -1]] /= 2
    return np.asarray(weights)


def _legendre(x: Vector, sine: Vector, l_max: int) -> Iterator[Vector]:
    """For m = 0, 1, ... the associated Legendre functions l = m..l_max with mean square 1 on the sphere."""
    sectoral = np.ones_like(x)
    for m in range(l_max + 1):
        if m:
            sectoral = sectoral * sine * np.sqrt((2 * m + 1) / (2 * m))
        table = np.empty((l_max + 1 - m, x.size))
        table[0] = sectoral
        previous = np.zeros_like(x)
        for degree in range(m + 1, l_max + 1):
            a = np.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
            b = np.sqrt(((degree - 1) ** 2 - m**2) / (4 * (degree - 1) ** 2 - 1)) if degree > m + 1 else 0.0
            table[degree - m] = a * (x * table[degree - m - 1] - b * previous)
            previous = table[degree - m - 1]
        yield table
