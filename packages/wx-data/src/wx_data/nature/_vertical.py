"""Sigma layers with the energy-conserving differences of Simmons and Burridge (1981, MWR 109, 758)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wx_data.nature._config import GAS_CONSTANT, KAPPA, REFERENCE_TEMPERATURE

Float64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Matrices of the vertical scheme on K layers, top first.

    Attributes:
        thickness: mass fraction of every layer, (K,).
        half: sigma at the interfaces below each layer but the last, (K - 1,).
        full: sigma at which the layer's temperature holds, (K,).
        hydrostatic: geopotential of the layers per kelvin of each layer, (K, K).
        compression: the sum in omega / p per unit of convergence, (K, K), lower triangular.
        velocity: sigma velocity at the interfaces per unit of mass convergence, (K - 1, K).
    """

    thickness: Float64
    half: Float64
    full: Float64
    hydrostatic: Float64
    compression: Float64
    velocity: Float64

    @classmethod
    def equal(cls, count: int) -> "Layers":
        """Layers of equal mass."""
        edges = np.linspace(0.0, 1.0, count + 1)
        thickness = np.diff(edges)
        ratio = np.zeros(count)
        ratio[1:] = np.log(edges[2:] / edges[1:-1])
        alpha = np.full(count, np.log(2.0))
        alpha[1:] = 1.0 - edges[1:-1] / thickness[1:] * ratio[1:]
        below = np.triu(np.ones((count, count)), 1)
        hydrostatic = GAS_CONSTANT * (np.diag(alpha) + below * ratio[None, :])
        compression = (np.tril(np.ones((count, count)), -1) * ratio[:, None] + np.diag(alpha)) / thickness[
            :, None
        ]
        compression = compression * thickness[None, :]
        above = np.tril(np.ones((count, count)))[:-1]
        velocity = (edges[1:-1, None] - above) * thickness[None, :]
        full = edges[1:] * np.exp(-alpha)
        return cls(
            thickness=thickness,
            half=edges[1:-1],
            full=full,
            hydrostatic=hydrostatic,
            compression=compression,
            velocity=velocity,
        )

    def gravity_waves(self) -> tuple[Float64, Float64, Float64]:
        """Eigenvalues c^2, modes and inverse modes of gravity waves on a resting isothermal atmosphere."""
        operator = (
            self.hydrostatic @ (KAPPA * REFERENCE_TEMPERATURE * self.compression)
            + GAS_CONSTANT * REFERENCE_TEMPERATURE * self.thickness[None, :]
        )
        speeds, modes = np.linalg.eig(operator)
        # NumPy 2.5 and later return complex numbers whether they are real or not.
        if np.imag(speeds).any() or (np.real(speeds) <= 0).any():
            raise ValueError("the vertical scheme has a gravity wave without a real phase speed")
        speeds, modes = np.real(speeds), np.real(modes)
        return speeds, modes, np.linalg.inv(modes)
