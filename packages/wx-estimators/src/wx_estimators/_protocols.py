"""What this package asks of others: structural types, satisfied without importing anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ._types import Batch, Cond, Key, LossOut, Window


class NetworkSpec(Protocol):
    """What a network accepts; `NetSpec` is one, any object with these attributes is another."""

    @property
    def out_channels(self) -> int: ...
    @property
    def takes_x(self) -> bool: ...
    @property
    def takes_t(self) -> bool: ...
    @property
    def noise(self) -> tuple[int, ...] | None: ...


class Network(Protocol):
    """A conditional network F."""

    @property
    def spec(self) -> NetworkSpec: ...

    def predict(self, x: Tensor | None, cond: Cond, /, *, t: Tensor | None, noise: Tensor | None) -> Tensor:
        """Map x (N, C, *S), cond (N, ...), t (N,) and noise (N, *spec.noise) to (N, C, *S)."""
        ...


class NoiseSource(Protocol):
    """Unit-variance noise as a pure function of the key and the global shape."""

    def draw(
        self,
        key: Key,
        shape: tuple[int, ...],
        /,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        window: Window | None = None,
    ) -> Tensor:
        """Noise (B, M, *shape); with a window, that part of the draw of the window's global shape."""
        ...


Total = Callable[[Tensor], Tensor]
"""A differentiable sum of tensors of one shape over the ranks that share a grid."""


def alone(x: Tensor) -> Tensor:
    """The sum over ranks of one that has the whole grid."""
    return x


class EnsembleScore(Protocol):
    """A score of an ensemble, averaged over space."""

    def score(
        self, pred: Tensor, target: Tensor, weight: Tensor | None, /, *, total: Total = alone
    ) -> Tensor:
        """Score pred (B, M, C, *S) against target (B, C, *S) -> (B, C), weighted means over space.

        On a part of a grid, `total` must be applied to every sum over space: all ranks then get the score of
        the whole.
        """
        ...


class SpectralAnalysis(Protocol):
    """A linear map from real fields to real or complex coefficients, for `SpectralCRPS`."""

    @property
    def freedom(self) -> Tensor:
        """(*K), real degrees of freedom f of each coefficient: 1, 2 if complex, 0 for padding."""
        ...

    def analyse(self, x: Tensor, /) -> Tensor:
        """Fields (..., *S) to coefficients a (..., *K); sum(f |a|^2) / sum(f) is the mean of x^2."""
        ...


class Comm(Protocol):
    """Communication of an ensemble loss that is spread over ranks.

    Both methods are differentiable with the adjoint of the collective: `backward` on every rank gives the
    gradient of the sum of the ranks' (equal) losses, and averaging over ranks, as DDP does, that of the loss.
    """

    def gather_members(self, x: Tensor, /) -> Tensor:
        """Concatenate x (B, M_local, ...) of all ranks along dimension 1."""
        ...

    def sum_space(self, x: Tensor, /) -> Tensor:
        """Sum x over the ranks that share a grid."""
        ...


Drift = Callable[[Tensor, float], Tensor]
"""Drift or denoiser: (x, t) -> tensor like x."""


class SdeSampler(Protocol):
    """One step of a solver for dX = f(X, t) dt + g(t) dW with additive noise."""

    @property
    def calls_per_step(self) -> int: ...

    def step(
        self,
        f: Drift,
        x: Tensor,
        t0: float,
        t1: float,
        g: Callable[[float], float],
        z: Callable[[int], Tensor],
        /,
    ) -> Tensor:
        """Advance x from t0 to t1; z(i) is the i-th unit noise of this step."""
        ...


class OdeSampler(Protocol):
    """One step of a solver for dx/dt = f(x, t)."""

    @property
    def calls_per_step(self) -> int: ...

    def step(self, f: Drift, x: Tensor, t0: float, t1: float, /) -> Tensor:
        """Advance x from t0 to t1, forwards or backwards."""
        ...


@runtime_checkable
class DenoisingSampler(Protocol):
    """One step of a solver for dx/dsigma = (x - D(x, sigma)) / sigma that uses D itself."""

    @property
    def calls_per_step(self) -> int: ...

    def denoise_step(
        self, denoise: Drift, x: Tensor, s0: float, s1: float, last: tuple[float, Tensor] | None, /
    ) -> tuple[Tensor, tuple[float, Tensor] | None]:
        """Advance x from noise level s0 to s1, 0 < s1 < s0; the second result is the next step's `last`."""
        ...


class Law(Protocol):
    """Law of a training time or noise level."""

    def quantile(self, u: Tensor, /) -> Tensor:
        """Quantile at u in (0, 1), float64, elementwise."""
        ...


class Estimator(Protocol):
    """A probabilistic estimator: how to train a network, and how to sample with it."""

    @property
    def calls_per_sample(self) -> int: ...

    def required(self, out_channels: int) -> NetworkSpec: ...

    def loss(self, net: Network, batch: Batch, key: Key) -> LossOut: ...

    def sample(
        self, net: Network, base: Tensor, cond: Cond, key: Key, /, *, chunk: int | None = None
    ) -> Tensor: ...

    def to_dict(self) -> dict[str, Any]: ...
