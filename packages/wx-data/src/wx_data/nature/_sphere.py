"""Spherical harmonic transforms on any set of parallels, without a single transposition.

Layout. Coefficients of a real field are real tensors ``(m, 2, rows..., n)``: zonal wavenumber m = 0..T, real
and imaginary part, any number of rows (field, level, member), total wavenumber n = 0..T (zero where n < m).
Values on the sphere are ``(longitude, rows..., latitude)``. Then a Fourier sum is one matrix product
``(longitude, 2m) @ (2m, rows * latitude)`` and a Legendre sum is one product batched over m, and both read
and write contiguous memory.

Normalisation. ``f = sum_m (2 - delta_m0) Re[f_mn P_mn(mu) exp(i m lambda)]`` with ``1/2 int P_mn^2 dmu = 1``
and no Condon-Shortley sign, so that the coefficient (0, 0) is the global mean.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Float64 = NDArray[np.float64]


def gaussian_latitudes(count: int) -> tuple[Float64, Float64]:
    """Sines of the Gaussian latitudes, north to south, and the quadrature weights, which sum to one."""
    sines = np.polynomial.legendre.leggauss(count)[0][::-1].copy()
    # Christoffel numbers, sums of squares: numpy's weights lose four digits at 192 latitudes.
    squares = np.polynomial.legendre.legvander(sines, count - 1) ** 2
    return sines, 1 / (squares @ (2.0 * np.arange(count) + 1))


def _epsilon(m: int, n: int) -> float:
    return float(np.sqrt((n * n - m * m) / (4.0 * n * n - 1.0)))


def legendre(truncation: int, sines: ArrayLike) -> tuple[Float64, Float64, Float64]:
    """Associated Legendre functions by recursion in float64.

    Args:
        truncation: largest degree T.
        sines: mu = sin(latitude), shape (lat,); the poles are allowed.

    Returns:
        ``P``, ``m P / cos(lat)`` and ``dP / dlat``, each (m, n, lat). The last two are exact at the poles,
        because the recursion in n runs on ``P / cos(lat)`` for m > 0.
    """
    mu = np.asarray(sines, np.float64)
    cosine = np.sqrt(np.maximum(0.0, 1.0 - mu * mu))
    size = truncation + 2  # one degree more: the derivative needs it
    full = np.zeros((size, size, mu.size))  # P for m = 0, P / cos(lat) for m > 0
    sector = 1.0
    for m in range(size):
        sector *= np.sqrt((2 * m + 1) / (2 * m)) if m else 1.0
        full[m, m] = sector * cosine ** max(m - 1, 0)
        for n in range(m + 1, size):
            below = _epsilon(m, n - 1) * full[m, n - 2] if n > m + 1 else 0.0
            full[m, n] = (mu * full[m, n - 1] - below) / _epsilon(m, n)
    values, zonal, slope = (np.zeros((truncation + 1, truncation + 1, mu.size)) for _ in range(3))
    for m in range(truncation + 1):
        values[m] = full[m, :-1] * (cosine if m else 1.0)
        zonal[m] = m * full[m, :-1]
        for n in range(m, truncation + 1):
            if m == 0:
                slope[0, n] = np.sqrt(n * (n + 1)) * full[1, n] * cosine if n else 0.0
            else:
                below = (n + 1) * _epsilon(m, n) * full[m, n - 1] if n > m else 0.0
                slope[m, n] = below - n * _epsilon(m, n + 1) * full[m, n + 1]
    return values, zonal, slope


def _fourier(truncation: int, longitudes: Float64) -> Float64:
    """Real matrix (2, m, longitude): cosine and minus sine."""
    angle = np.arange(truncation + 1)[:, None] * longitudes[None, :]
    return np.stack([np.cos(angle), -np.sin(angle)], axis=0)


def _tensor(array: Float64, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device=device, dtype=dtype)


class Synthesis:
    """Coefficients to values on the parallels ``sines`` and ``longitudes`` equally spaced meridians from 0.

    Args:
        truncation: triangular truncation T.
        sines: sin(latitude) of the rows.
        longitudes: number of meridians, more than 2 T.
        radius: radius of the sphere in metres; winds and gradients carry it.
    """

    def __init__(
        self,
        truncation: int,
        sines: ArrayLike,
        longitudes: int,
        *,
        radius: float = 1.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if longitudes <= 2 * truncation:
            raise ValueError(
                f"T{truncation} needs more than {2 * truncation} longitudes, got {longitudes}; "
                "use a larger grid or a smaller truncation"
            )
        self.truncation, self.longitudes = truncation, longitudes
        values, zonal, slope = legendre(truncation, sines)
        self.latitudes = values.shape[2]
        degree = np.arange(truncation + 1.0)
        inverse = np.divide(-radius, degree * (degree + 1), where=degree > 0, out=np.zeros_like(degree))
        potential = np.concatenate([zonal, slope], axis=1) * np.tile(inverse, 2)[None, :, None]
        twice = np.where(np.arange(truncation + 1) > 0, 2.0, 1.0)
        angles = 2 * np.pi * np.arange(longitudes) / longitudes
        waves = (_fourier(truncation, angles) * twice[:, None]).transpose(2, 1, 0)
        self._scalar = _tensor(values, device, dtype)
        self._wind = _tensor(potential, device, dtype)
        self._waves = _tensor(waves.reshape(longitudes, -1), device, dtype)

    def scalar(self, coefficients: Tensor) -> Tensor:
        """Values ``(longitude, rows..., latitude)`` of coefficients ``(m, 2, rows..., n)``."""
        return self._sum(coefficients, self._scalar)

    def wind(self, vorticity: Tensor, divergence: Tensor) -> Tensor:
        """Eastward and northward wind ``(longitude, 2, rows..., latitude)``.

        The gradient of a scalar s is the wind of vorticity 0 and divergence laplacian(s).
        """
        size = self.truncation + 1
        zeta, delta = vorticity.unsqueeze(2), divergence.unsqueeze(2)
        shape = (*vorticity.shape[:2], 2, *vorticity.shape[2:-1], 2 * size)
        both = vorticity.new_empty(shape)
        both[:, 0, :1, ..., :size] = -delta[:, 1]
        both[:, 1, :1, ..., :size] = delta[:, 0]
        both[:, :, :1, ..., size:] = -zeta
        both[:, 0, 1:, ..., :size] = -zeta[:, 1]
        both[:, 1, 1:, ..., :size] = zeta[:, 0]
        both[:, :, 1:, ..., size:] = delta
        return self._sum(both, self._wind)

    def _sum(self, coefficients: Tensor, matrix: Tensor) -> Tensor:
        m, _, *rows, n = coefficients.shape
        waves = torch.bmm(coefficients.reshape(m, -1, n), matrix)
        values = self._waves @ waves.view(2 * m, -1)
        return values.view(self.longitudes, *rows, self.latitudes)


class Analysis:
    """Values on a Gaussian grid to coefficients: exact for products of two fields when the grid allows it."""

    def __init__(
        self,
        truncation: int,
        latitudes: int,
        longitudes: int,
        *,
        radius: float = 1.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if latitudes <= truncation or longitudes <= 2 * truncation:
            raise ValueError(
                f"T{truncation} needs more than {truncation} latitudes and {2 * truncation} longitudes, "
                f"got {latitudes} x {longitudes}"
            )
        self.truncation = truncation
        sines, weights = gaussian_latitudes(latitudes)
        values, zonal, slope = (part * weights for part in legendre(truncation, sines))
        angles = 2 * np.pi * np.arange(longitudes) / longitudes
        waves = _fourier(truncation, angles).transpose(1, 0, 2) / longitudes
        self._scalar = _tensor(values.transpose(0, 2, 1), device, dtype)
        vector = np.concatenate([zonal.transpose(0, 2, 1), slope.transpose(0, 2, 1)], axis=1)
        self._vector = _tensor(vector / radius, device, dtype)
        self._waves = _tensor(waves.reshape(-1, longitudes), device, dtype)

    def fourier(self, values: Tensor) -> Tensor:
        """Zonal waves ``(m, 2, rows..., latitude)`` of values ``(longitude, rows..., latitude)``."""
        waves = self._waves @ values.reshape(values.shape[0], -1)
        return waves.view(self.truncation + 1, 2, *values.shape[1:])

    def scalar(self, waves: Tensor) -> Tensor:
        """Coefficients ``(m, 2, rows..., n)`` of zonal waves ``(m, 2, rows..., latitude)``."""
        return self._sum(waves, self._scalar)

    def divergence(self, eastward: Tensor, northward: Tensor) -> Tensor:
        """Coefficients of div(F) from the zonal waves of the two components of F."""
        return self.derivative(eastward, -northward)

    def curl(self, eastward: Tensor, northward: Tensor) -> Tensor:
        """Coefficients of the vertical component of curl(F) from the zonal waves of the two components."""
        return self.derivative(northward, eastward)

    def derivative(self, turned: Tensor, straight: Tensor) -> Tensor:
        """Coefficients of (d turned / dlambda - d (straight cos) / dlat) / (radius cos), from zonal waves."""
        latitudes = turned.shape[-1]
        both = turned.new_empty(*turned.shape[:-1], 2 * latitudes)
        both[:, 0, ..., :latitudes] = -turned[:, 1]
        both[:, 1, ..., :latitudes] = turned[:, 0]
        both[..., latitudes:] = straight
        return self._sum(both, self._vector)

    def _sum(self, waves: Tensor, matrix: Tensor) -> Tensor:
        m, _, *rows, latitudes = waves.shape
        product = torch.bmm(waves.reshape(m, -1, latitudes), matrix)
        return product.view(m, 2, *rows, self.truncation + 1)


def laplacian_eigenvalues(truncation: int, radius: float = 1.0) -> Float64:
    """``-n (n + 1) / radius^2`` for n = 0..T."""
    degree = np.arange(truncation + 1.0)
    return -degree * (degree + 1) / radius**2
