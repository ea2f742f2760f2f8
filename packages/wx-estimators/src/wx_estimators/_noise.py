"""Noise sources: unit variance, pure functions of the key and the global shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._settings import read, write
from ._sphere import noise_basis, synthesize
from ._types import Key, Window


def _normals(key: Key, shape: tuple[int, ...]) -> Tensor:
    """(B*M, *shape) standard normals in float32 on the CPU: one generator per row, seeded by the key's hash.

    Always float32 on the CPU, so that a key names the same numbers for every dtype and device. A torch CPU
    generator keeps 32 bits of its seed: two given keys share a field with probability 2^-32.
    """
    seeds = key.seeds().reshape(-1).tolist()
    out = torch.empty(len(seeds), *shape)
    generator = torch.Generator()
    for row, seed in zip(out, seeds, strict=True):
        row.normal_(generator=generator.manual_seed(seed))
    return out


def _global_shape(shape: tuple[int, ...], window: Window | None) -> tuple[int, ...]:
    return tuple(shape) if window is None else tuple(window.global_shape)


def _finish(
    x: Tensor,
    key: Key,
    shape: tuple[int, ...],
    window: Window | None,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    if window is not None:
        x = x[(slice(None), *window.slices(tuple(shape)))]
    return x.reshape(key.batch, key.members, *shape).to(device=device, dtype=dtype)


@dataclass(frozen=True)
class WhiteNoise:
    """Independent N(0, 1) values, one `torch.Generator` per (init, member, lead, stream, step).

    Cost: about 5 ns per value on one CPU thread plus 3 us per row.
    """

    def draw(
        self,
        key: Key,
        shape: tuple[int, ...],
        /,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        window: Window | None = None,
    ) -> Tensor:
        """Noise (B, M, *shape), see `NoiseSource.draw`."""
        return _finish(_normals(key, _global_shape(shape, window)), key, shape, window, device, dtype)

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return write(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WhiteNoise:
        """Inverse of `to_dict`."""
        return read(cls, data)


@dataclass(frozen=True, kw_only=True)
class SphericalNoise:
    """Isotropic Gaussian noise on the sphere, of unit variance at every point, poles included.

    f = sum_lm a_lm Y_lm with a_l0 ~ N(0, C_l), Re a_lm and Im a_lm ~ N(0, C_l / 2) for m > 0, and
    sum_l (2l + 1) C_l / 4 pi = 1. Real fields keep only the real part of m = 0, so its variance must not be
    halved: the sqrt(2) that several published codes leave out, which costs half the variance at the poles.

    Args:
        latitudes: degrees, one per row, any order; poles allowed.
        longitudes: number of equally spaced columns from 0 degrees.
        spectrum: "white" (C_l constant: power grows like 2l + 1), "flat" (C_l ~ 1/(2l + 1): equal power per
            degree, the "white" of GenCast), or a number p for C_l ~ (2l + 1)^-p.
        lmax: largest degree; default and upper bound (longitudes - 1) // 2, the largest that does not alias.

    Noise of degree lmax spans (lmax + 1)^2 directions: fewer than the grid has points.
    """

    latitudes: tuple[float, ...]
    longitudes: int
    spectrum: str | float = "white"
    lmax: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "latitudes", tuple(float(v) for v in self.latitudes))
        if not self.latitudes or max(abs(v) for v in self.latitudes) > 90.0:
            raise ValueError(f"latitudes must be degrees in [-90, 90], got {self.latitudes}")
        bound = (self.longitudes - 1) // 2
        if self.lmax is not None and not 0 <= self.lmax <= bound:
            raise ValueError(f"lmax must be in 0..{bound} for {self.longitudes} longitudes, got {self.lmax}")
        if isinstance(self.spectrum, str) and self.spectrum not in ("white", "flat"):
            raise ValueError(f"spectrum must be 'white', 'flat' or a number, got {self.spectrum!r}")

    @property
    def degree(self) -> int:
        """Largest degree l in use."""
        return (self.longitudes - 1) // 2 if self.lmax is None else self.lmax

    def power(self) -> tuple[float, ...]:
        """C_l for l = 0..degree, normalised to unit point variance."""
        exponent = {"white": 0.0, "flat": 1.0}.get(str(self.spectrum))
        p = float(self.spectrum) if exponent is None else exponent
        width = 2.0 * np.arange(self.degree + 1) + 1.0
        raw = width**-p
        return tuple((raw * 4.0 * math.pi / (width * raw).sum()).tolist())

    def basis(self) -> Tensor:
        """(m, l, latitude) float32 factors between unit normals and zonal Fourier coefficients."""
        return noise_basis(self.latitudes, self.degree, self.power())

    def draw(
        self,
        key: Key,
        shape: tuple[int, ...],
        /,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        window: Window | None = None,
    ) -> Tensor:
        """Noise (B, M, *shape); the global shape must end in (latitude, longitude) of this grid."""
        full = _global_shape(shape, window)
        grid = (len(self.latitudes), self.longitudes)
        if full[-2:] != grid:
            raise ValueError(f"shape must end in the grid {grid} of this SphericalNoise, got {full}")
        fields = math.prod(full[:-2])
        basis = self.basis()
        normals = _normals(key, (fields, *basis.shape[:2]))
        # Row by row: a batched product may round differently with the number of rows.
        rows = [synthesize(row, basis, self.longitudes) for row in normals]
        x = torch.stack(rows).reshape(-1, *full)
        return _finish(x, key, shape, window, device, dtype)

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return write(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SphericalNoise:
        """Inverse of `to_dict`."""
        return read(cls, data)


NOISES: tuple[type[Any], ...] = (WhiteNoise, SphericalNoise)
