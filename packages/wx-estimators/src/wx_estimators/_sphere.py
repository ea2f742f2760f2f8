"""Spherical-harmonic synthesis on rings of latitude, in tiles that do not depend on the window."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

TILE = 16
"""Latitudes per matrix product. Fixed, so that a latitude has the same bits in every window."""

ORDERS = 32
"""Orders m per block: a block starts at degree m of its first order, which skips most of l < m."""

Tile = tuple[Tensor, ...]
"""Basis of one tile of latitudes: per block of orders (orders, degrees from the first order on, TILE)."""


def legendre(latitudes: tuple[float, ...], lmax: int, orders: range) -> np.ndarray:
    """Normalised associated Legendre functions P[m, l, latitude] in float64, l = orders.start..lmax.

    Y_lm(lat, lon) = P_lm(sin lat) exp(i m lon) is orthonormal on the unit sphere, without the Condon-Shortley
    phase; zero for l < m. Recursion in l at fixed m (Holmes and Featherstone 2002), stable up to l = 1900,
    where cos(lat)^m underflows.
    """
    # Scalar functions: a vectorised sine may round differently with the position in the array.
    mu = np.array([math.sin(math.radians(v)) for v in latitudes])
    # cos(90 deg) is 6e-17 in floating point; an exact zero keeps m > 0 exactly absent at the poles.
    cos = np.array([0.0 if abs(v) == 90.0 else math.cos(math.radians(v)) for v in latitudes])
    m = np.arange(orders.start, orders.stop)[:, None]
    p = np.zeros((len(orders), lmax + 1 - orders.start, len(latitudes)))
    sectoral = _sectoral(cos, orders)
    for l in range(orders.start, lmax + 1):  # noqa: E741
        here = p[:, l - orders.start]
        inner = np.flatnonzero(m[:, 0] < l)
        n = m[inner].astype(np.float64)
        a = np.sqrt((4.0 * l * l - 1.0) / (l * l - n * n))
        if l > orders.start:
            here[inner] = a * mu * p[inner, l - orders.start - 1]
        if l > orders.start + 1:
            b = np.sqrt(np.maximum((l - 1.0) ** 2 - n * n, 0.0) / (4.0 * (l - 1.0) ** 2 - 1.0))
            here[inner] -= a * b * p[inner, l - orders.start - 2]
        if l in orders:
            here[l - orders.start] = sectoral[l - orders.start]
    return p


def _sectoral(cos: np.ndarray, orders: range) -> np.ndarray:
    """P_mm (orders, latitude)."""
    out = np.empty((len(orders), cos.size))
    value = np.full(cos.size, math.sqrt(1.0 / (4.0 * math.pi)))
    for m in range(orders.stop):
        if m > 0:
            value = math.sqrt((2 * m + 1) / (2 * m)) * cos * value
        if m in orders:
            out[m - orders.start] = value
    return out


def order_blocks(degrees: int) -> list[range]:
    """Blocks of orders 0..degrees - 1."""
    return [range(m, min(m + ORDERS, degrees)) for m in range(0, degrees, ORDERS)]


@lru_cache(maxsize=8)
def noise_basis(
    latitudes: tuple[float, ...], amplitude: tuple[float, ...], zonal: float, device: torch.device
) -> tuple[Tile, ...]:
    """Tiles of the basis E[m, l, latitude] = amplitude[l] P_lm, times `zonal` for m = 0, in float32.

    Latitudes are padded to whole tiles with zeros in the basis. Size: (lmax + 1)^2 / 2 floats per latitude.
    """
    scale = np.asarray(amplitude)
    tiles: list[list[Tensor]] = [[] for _ in range(0, len(latitudes), TILE)]
    for orders in order_blocks(len(amplitude)):
        p = legendre(latitudes, len(amplitude) - 1, orders) * scale[orders.start :, None]
        if orders.start == 0:
            p[0] *= zonal
        padded = np.pad(p, ((0, 0), (0, 0), (0, -len(latitudes) % TILE)))
        for i, tile in enumerate(tiles):
            part = np.ascontiguousarray(padded[:, :, i * TILE : (i + 1) * TILE], np.float32)
            tile.append(torch.from_numpy(part).to(device))
    return tuple(tuple(tile) for tile in tiles)


def point_variance(tiles: tuple[Tile, ...], latitudes: int, longitudes: int) -> Tensor:
    """(latitude,) float64 variance of the synthesis of unit normals at a grid point.

    sum_l E_0l^2 + 4 sum_{m>0} E_ml^2; the order m = longitudes / 2 is a cosine alone, once: E_ml^2.
    """
    rows = []
    for tile in tiles:
        square = torch.cat([block.double().square().sum(1) for block in tile])
        weight = torch.full((len(square), 1), 4.0, dtype=torch.float64, device=square.device)
        weight[0] = 1.0
        weight[longitudes // 2 :] = 1.0 if longitudes % 2 == 0 else 4.0
        rows.append((square * weight).sum(0))
    return torch.cat(rows)[:latitudes]


def pack(normals_KLL: Tensor) -> list[Tensor]:
    """Real and imaginary parts per block of orders, (orders, 2 K, degrees), from unit normals (K, L, L).

    The upper triangle [m, l >= m] holds the real parts; the strictly lower one, [l, m - 1], the imaginary
    parts of m > 0: as many numbers as there are coefficients. The basis is zero for l < m.
    """
    blocks = []
    for orders in order_blocks(normals_KLL.shape[1]):
        m = torch.arange(orders.start, orders.stop, device=normals_KLL.device)
        real = normals_KLL[:, orders.start : orders.stop, orders.start :]
        imag = normals_KLL[:, orders.start :].index_select(2, (m - 1).clamp(min=0)).transpose(1, 2)
        both = torch.cat([real, imag]).transpose(0, 1).contiguous()
        if orders.start == 0:
            both[0, normals_KLL.shape[0] :] = 0.0
        blocks.append(both)
    return blocks


def synthesize(packed: list[Tensor], tile: Tile, longitudes: int) -> Tensor:
    """Fields (K, TILE, W) = E_0 u_0 + 2 Re sum_{m>0} sum_l (u_lm + i v_lm) E_ml exp(i m lon)."""
    parts = torch.cat([torch.bmm(c, block) for c, block in zip(packed, tile, strict=True)])
    fields = parts.shape[1] // 2
    fourier = torch.complex(parts[:, :fields], parts[:, fields:]).permute(1, 2, 0)
    field: Tensor = torch.fft.irfft(fourier, n=longitudes, dim=-1, norm="forward")
    return field


def coefficients(packed: list[Tensor], amplitude: tuple[float, ...], zonal: float) -> Tensor:
    """(K, l, m) complex coefficients a_lm of the orthonormal Y_lm, m >= 0, for an injected transform."""
    degrees, fields = len(amplitude), packed[0].shape[1] // 2
    scale = torch.tensor(amplitude, device=packed[0].device, dtype=packed[0].dtype)
    out = torch.zeros(fields, degrees, degrees, dtype=torch.complex64, device=scale.device)
    for orders, block in zip(order_blocks(degrees), packed, strict=True):
        value = torch.complex(block[:, :fields], block[:, fields:]).permute(1, 2, 0)
        out[:, orders.start :, orders.start : orders.stop] = value * scale[orders.start :, None]
    out[:, :, 0] *= zonal
    return out.tril()
