"""Solvers: one small class per scheme, one step each. Times are Python floats, states tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._protocols import Drift
from ._settings import Settings


@dataclass(frozen=True)
class _Solver(Settings):
    """Order and cost."""

    order: ClassVar[int]
    _calls: ClassVar[int]

    @property
    def calls_per_step(self) -> int:
        """Evaluations of the network per step."""
        return self._calls


# Stochastic differential equations with additive noise


@dataclass(frozen=True)
class EulerMaruyama(_Solver):
    """x + h f + sqrt(h) g z: weak order 1."""

    order: ClassVar[int] = 1
    _calls: ClassVar[int] = 1

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
        return _plus(x, (h, f(x, t0)), (math.sqrt(h) * g(t0), z(0)))


@dataclass(frozen=True)
class StochasticHeun(_Solver):
    """Trapezoidal predictor-corrector, weak order 2 for additive noise (Roberts, arXiv 1210.0933, S = 0)."""

    order: ClassVar[int] = 2
    _calls: ClassVar[int] = 2

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
        h, noise = t1 - t0, z(0)
        g0, g1 = (math.sqrt(h) * g(t) for t in (t0, t1))
        f0 = f(x, t0)
        f1 = f(_plus(x, (h, f0), (g0, noise)), t1)
        return _plus(x, (0.5 * h, f0), (0.5 * h, f1), (0.5 * (g0 + g1), noise))


@dataclass(frozen=True)
class SRA1(_Solver):
    """Rößler's stochastic Runge-Kutta scheme for additive noise (doi 10.1137/09076636X): strong order 1.5.

    Weak order 2. Never evaluates the drift at the end of the step.
    """

    order: ClassVar[int] = 2
    _calls: ClassVar[int] = 2

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
        h, g0, g1 = t1 - t0, g(t0), g(t1)
        r, area = _increments(h, z)
        f0 = f(x, t0)
        f1 = f(_plus(x, (0.75 * h, f0), (1.5 * g1, area)), t0 + 0.75 * h)
        return _plus(x, (h / 3.0, f0), (2.0 * h / 3.0, f1), (g1, r), (g0 - g1, area))


@dataclass(frozen=True)
class SRA2(_Solver):
    """The other additive scheme of the same paper: strong order 1.5, weak order 2, g taken inside the step.

    Its weights are beta1 = (0, 1), beta2 = (3/2, -3/2) at t0 + h/3 and t1; a published implementation has
    beta2 with the other sign, which lowers the order to 1.
    """

    order: ClassVar[int] = 2
    _calls: ClassVar[int] = 2

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
        h, early, late = t1 - t0, g(t0 + (t1 - t0) / 3.0), g(t1)
        r, area = _increments(h, z)
        f0 = f(x, t0)
        f1 = f(_plus(x, (0.75 * h, f0), (1.5 * early, area)), t0 + 0.75 * h)
        return _plus(x, (h / 3.0, f0), (2.0 * h / 3.0, f1), (late, r), (1.5 * (early - late), area))


# Ordinary differential equations


@dataclass(frozen=True)
class Euler(_Solver):
    """x + h f: order 1."""

    order: ClassVar[int] = 1
    _calls: ClassVar[int] = 1

    def step(self, f: Drift, x: Tensor, t0: float, t1: float, /) -> Tensor:
        """See `OdeSampler.step`."""
        return _plus(x, (t1 - t0, f(x, t0)))


@dataclass(frozen=True)
class Heun(_Solver):
    """Trapezoidal predictor-corrector, order 2; the solver of EDM (Karras et al., arXiv 2206.00364)."""

    order: ClassVar[int] = 2
    _calls: ClassVar[int] = 2

    def step(self, f: Drift, x: Tensor, t0: float, t1: float, /) -> Tensor:
        """See `OdeSampler.step`."""
        h = t1 - t0
        f0 = f(x, t0)
        f1 = f(_plus(x, (h, f0)), t1)
        return _plus(x, (0.5 * h, f0), (0.5 * h, f1))


@dataclass(frozen=True)
class RK4(_Solver):
    """The classical Runge-Kutta scheme, order 4."""

    order: ClassVar[int] = 4
    _calls: ClassVar[int] = 4

    def step(self, f: Drift, x: Tensor, t0: float, t1: float, /) -> Tensor:
        """See `OdeSampler.step`."""
        h, mid = t1 - t0, 0.5 * (t0 + t1)
        f0 = f(x, t0)
        f1 = f(_plus(x, (0.5 * h, f0)), mid)
        f2 = f(_plus(x, (0.5 * h, f1)), mid)
        f3 = f(_plus(x, (h, f2)), t1)
        return _plus(x, (h / 6.0, f0), (h / 3.0, f1), (h / 3.0, f2), (h / 6.0, f3))


# Denoising diffusion, exact in its linear part


@dataclass(frozen=True)
class DPM2S(_Solver):
    """DPM-Solver++(2S) with the midpoint in log sigma (Lu et al., arXiv 2211.01095), as in GenCast.

    About half the error of `Heun` at equal cost for Gaussian targets.
    """

    order: ClassVar[int] = 2
    _calls: ClassVar[int] = 2

    def denoise_step(
        self, denoise: Drift, x: Tensor, s0: float, s1: float, last: tuple[float, Tensor] | None, /
    ) -> tuple[Tensor, None]:
        """See `DenoisingSampler.denoise_step`; `last` is not used."""
        del last
        mid = math.sqrt(s0 * s1)
        x_mid = _towards(x, denoise(x, s0), mid / s0)
        return _towards(x, denoise(x_mid, mid), s1 / s0), None


@dataclass(frozen=True)
class DPM2M(_Solver):
    """DPM-Solver++(2M) of the same paper: order 2 with one call per step; the first step has order 1.

    Extrapolates from the last two denoised states, so it takes no churn.
    """

    order: ClassVar[int] = 2
    _calls: ClassVar[int] = 1

    def denoise_step(
        self, denoise: Drift, x: Tensor, s0: float, s1: float, last: tuple[float, Tensor] | None, /
    ) -> tuple[Tensor, tuple[float, Tensor]]:
        """See `DenoisingSampler.denoise_step`; `last` is the level and the denoised state before."""
        now = denoise(x, s0)
        ahead = now
        if last is not None:
            gain = 0.5 * math.log(s0 / s1) / math.log(last[0] / s0)
            ahead = torch.lerp(last[1], now, 1.0 + gain)
        return _towards(x, ahead, s1 / s0), (s0, now)


def _plus(x: Tensor, *terms: tuple[float, Tensor]) -> Tensor:
    """x plus factors times tensors, one pass over memory per term."""
    for factor, value in terms:
        x = torch.add(x, value, alpha=factor)
    return x


def _towards(x: Tensor, end: Tensor, keep: float) -> Tensor:
    """keep x + (1 - keep) end."""
    return torch.lerp(end, x, keep)


def _increments(h: float, z: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
    """Brownian increment r over a step and its time average over h, I_(1,0) / h."""
    r = math.sqrt(h) * z(0)
    return r, _plus(0.5 * r, (0.5 * math.sqrt(h / 3.0), z(1)))


SDE_SAMPLERS: tuple[type[Any], ...] = (EulerMaruyama, StochasticHeun, SRA1, SRA2)
ODE_SAMPLERS: tuple[type[Any], ...] = (Euler, Heun, RK4)
DENOISING_SAMPLERS: tuple[type[Any], ...] = (DPM2S, DPM2M)


def refuse_sampler(
    sampler: object, wrong: tuple[type[Any], ...], right: tuple[type[Any], ...], what: str
) -> None:
    """Raise TypeError when a sampler of this package solves another kind of equation."""
    if isinstance(sampler, wrong):
        names = ", ".join(cls.__name__ for cls in right)
        raise TypeError(f"{what} needs one of the samplers {names}, got {sampler!r}")
