"""Solvers: one small class per scheme, one `step` each. Times are Python floats, states tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from ._protocols import Drift
from ._settings import read, write

_S = TypeVar("_S", bound="_Solver")


@dataclass(frozen=True)
class _Solver:
    """Settings as JSON data; the schemes below have no other common part."""

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return write(self)

    @classmethod
    def from_dict(cls: type[_S], data: Mapping[str, Any]) -> _S:
        """Inverse of `to_dict`."""
        return read(cls, data)


@dataclass(frozen=True)
class EulerMaruyama(_Solver):
    """x + h f + sqrt(h) g z: weak order 1."""

    order: ClassVar[float] = 1.0

    @property
    def calls_per_step(self) -> int:
        """Drift evaluations per step."""
        return 1

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
        """See `SdeSampler.step`."""
        h = t1 - t0
        return x + h * f(x, t0) + math.sqrt(h) * g(t0) * z(0)


@dataclass(frozen=True)
class StochasticHeun(_Solver):
    """Trapezoidal predictor-corrector, weak order 2 for additive noise (Roberts, arXiv 1210.0933, S = 0)."""

    order: ClassVar[float] = 2.0

    @property
    def calls_per_step(self) -> int:
        """Drift evaluations per step."""
        return 2

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
        """See `SdeSampler.step`."""
        h = t1 - t0
        r = math.sqrt(h) * z(0)
        k1 = h * f(x, t0) + g(t0) * r
        k2 = h * f(x + k1, t1) + g(t1) * r
        return x + 0.5 * (k1 + k2)


@dataclass(frozen=True)
class SRA1(_Solver):
    """Rößler's stochastic Runge-Kutta scheme for additive noise (doi 10.1137/09076636X): strong order 1.5.

    Weak order 2. Never evaluates the drift at the end of the step.
    """

    order: ClassVar[float] = 2.0

    @property
    def calls_per_step(self) -> int:
        """Drift evaluations per step."""
        return 2

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
        """See `SdeSampler.step`."""
        h = t1 - t0
        r = math.sqrt(h) * z(0)
        area = 0.5 * (r + math.sqrt(h / 3.0) * z(1))
        f1 = f(x, t0)
        f2 = f(x + 0.75 * h * f1 + 1.5 * g(t1) * area, t0 + 0.75 * h)
        return x + (h / 3.0) * (f1 + 2.0 * f2) + g(t1) * (r - area) + g(t0) * area


@dataclass(frozen=True)
class Heun(_Solver):
    """Second-order solver of the EDM ordinary differential equation (Karras et al., arXiv 2206.00364)."""

    order: ClassVar[float] = 2.0

    @property
    def calls_per_step(self) -> int:
        """Drift evaluations per step."""
        return 2

    def step(self, denoise: Drift, x: Tensor, s0: float, s1: float, /) -> Tensor:
        """See `OdeSampler.step`."""
        slope = (x - denoise(x, s0)) / s0
        guess = x + (s1 - s0) * slope
        return x + 0.5 * (s1 - s0) * (slope + (guess - denoise(guess, s1)) / s1)


@dataclass(frozen=True)
class DPM2S(_Solver):
    """DPM-Solver++(2S) with the midpoint in log sigma (Lu et al., arXiv 2211.01095), as in GenCast.

    About half the error of `Heun` at equal cost for Gaussian targets.
    """

    order: ClassVar[float] = 2.0

    @property
    def calls_per_step(self) -> int:
        """Drift evaluations per step."""
        return 2

    def step(self, denoise: Drift, x: Tensor, s0: float, s1: float, /) -> Tensor:
        """See `OdeSampler.step`."""
        mid = math.sqrt(s0 * s1)
        x_mid = (mid / s0) * x + (1.0 - mid / s0) * denoise(x, s0)
        return (s1 / s0) * x + (1.0 - s1 / s0) * denoise(x_mid, mid)


SDE_SAMPLERS: tuple[type[Any], ...] = (EulerMaruyama, StochasticHeun, SRA1)
ODE_SAMPLERS: tuple[type[Any], ...] = (Heun, DPM2S)
