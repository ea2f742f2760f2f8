"""Spherical-harmonic synthesis on a regular latitude-longitude grid."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def legendre(latitudes: tuple[float, ...], lmax: int) -> np.ndarray:
    """Normalised associated Legendre functions P[m, l, latitude] in float64, zero for l < m.

    Y_lm(lat, lon) = P_lm(sin lat) exp(i m lon) is orthonormal on the unit sphere, without the Condon-Shortley
    phase. Recursion in l at fixed m (Holmes and Featherstone 2002), stable far beyond the sizes used here.
    """
    lat = np.asarray(latitudes, np.float64)
    mu = np.sin(np.deg2rad(lat))
    # cos(90 deg) is 6e-17 in floating point; an exact zero keeps m > 0 exactly absent at the poles.
    cos = np.where(np.abs(lat) == 90.0, 0.0, np.cos(np.deg2rad(lat)))
    p = np.zeros((lmax + 1, lmax + 1, mu.size))
    sectoral = np.full(mu.size, np.sqrt(1.0 / (4.0 * np.pi)))
    for m in range(lmax + 1):
        if m > 0:
            sectoral = np.sqrt((2 * m + 1) / (2 * m)) * cos * sectoral
        p[m, m] = sectoral
        if m < lmax:
            p[m, m + 1] = np.sqrt(2 * m + 3) * mu * sectoral
        for n in range(m + 2, lmax + 1):
            a = np.sqrt((4 * n**2 - 1) / (n**2 - m**2))
            b = np.sqrt(((n - 1) ** 2 - m**2) / (4 * (n - 1) ** 2 - 1))
            p[m, n] = a * (mu * p[m, n - 1] - b * p[m, n - 2])
    return p


@lru_cache(maxsize=8)
def noise_basis(latitudes: tuple[float, ...], lmax: int, power: tuple[float, ...]) -> Tensor:
    """Basis E[m, l, latitude] (float32) that turns unit real normals into isotropic noise.

    f = sum_l u_l0 E_0l + 2 Re sum_{m>0} sum_l (u_lm + i v_lm) E_ml exp(i m lon), u and v ~ N(0, 1), has the
    angular power spectrum C_l = `power[l]` when E = sqrt(C_l) P for m = 0 and sqrt(C_l / 2) P for m > 0. One
    factor for all m would leave m = 0, which has no imaginary part, with half of its variance.
    """
    basis = legendre(latitudes, lmax) * np.sqrt(np.asarray(power) / 2.0)[None, :, None]
    basis[0] *= np.sqrt(2.0)
    return torch.from_numpy(basis).float()


def point_variance(basis_MLH: Tensor) -> Tensor:
    """(latitude,) variance of the noise at a point: sum_l E_0l^2 + 4 sum_{m>0} E_ml^2."""
    square = basis_MLH.double().square().sum(1)
    return square[0] + 4.0 * square[1:].sum(0)


def synthesize(normals_KLL: Tensor, basis_MLH: Tensor, longitudes: int) -> Tensor:
    """Fields (K, H, W) from unit normals (K, L, L), as many as there are real coefficients of degree < L.

    The upper triangle [m, l >= m] holds the real parts; the strictly lower one, transposed, [l, m - 1] the
    imaginary parts of m > 0. The basis is zero for l < m, so neither needs a mask.
    """
    real = torch.bmm(normals_KLL.permute(1, 0, 2), basis_MLH)
    imag = torch.zeros_like(real)
    torch.bmm(normals_KLL.permute(2, 0, 1)[:-1], basis_MLH[1:], out=imag[1:])
    fourier = torch.complex(real, imag).permute(1, 2, 0)
    field: Tensor = torch.fft.irfft(fourier, n=longitudes, dim=-1, norm="forward")
    return field
