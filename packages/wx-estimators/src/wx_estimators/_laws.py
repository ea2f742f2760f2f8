"""Laws of the training time or noise level, as quantile functions: one number u in (0, 1) gives one draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._settings import Settings


@dataclass(frozen=True)
class Uniform(Settings):
    """t ~ U(0, 1)."""

    def quantile(self, u: Tensor) -> Tensor:
        """See `Law.quantile`."""
        return u


@dataclass(frozen=True, kw_only=True)
class LogitNormal(Settings):
    """t = 1 / (1 + exp(-n)), n ~ N(mean, std^2) (Esser et al., arXiv 2403.03206): few draws near 0 and 1."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _finite_normal(self.mean, self.std)

    def quantile(self, u: Tensor) -> Tensor:
        """See `Law.quantile`."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True, kw_only=True)
class LogNormal(Settings):
    """ln sigma ~ N(mean, std^2), the training law of EDM (Karras et al., arXiv 2206.00364).

    The published mean of -1.2 is for sigma_data = 0.5: at sigma_data = 1 the same law has mean -0.5, the
    default. With -1.2 there too little large noise is seen, at which the network learns the mean from the
    condition (benchmarks/estimators_claim.py).
    """

    mean: float = -0.5
    std: float = 1.2

    def __post_init__(self) -> None:
        _finite_normal(self.mean, self.std)

    def quantile(self, u: Tensor) -> Tensor:
        """See `Law.quantile`."""
        normal: Tensor = torch.special.ndtri(u)
        return (self.mean + self.std * normal).exp()


@dataclass(frozen=True, kw_only=True)
class RhoQuantile(Settings):
    """sigma^(1/rho) uniform between its values at `low` and `high`, the training law of GenCast."""

    low: float = 0.02
    high: float = 88.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high or not self.rho > 0:
            raise ValueError(f"expected 0 < low < high and rho > 0, got {self}")

    def quantile(self, u: Tensor) -> Tensor:
        """See `Law.quantile`."""
        low, high = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        root: Tensor = low + u * (high - low)
        return root.pow(self.rho)


def _finite_normal(mean: float, std: float) -> None:
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise ValueError(f"expected a finite mean and a positive std, got mean {mean} and std {std}")


TIME_LAWS: tuple[type[Any], ...] = (Uniform, LogitNormal)
SIGMA_LAWS: tuple[type[Any], ...] = (LogNormal, RhoQuantile)
