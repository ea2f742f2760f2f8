"""Stochastic interpolants that start from the current state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ._field import Field, Table, solver_dtype
from ._noise import NOISES, WhiteNoise, check_gaussian
from ._path import (
    AtlasPreconditioner,
    Bridge,
    GaussianPreconditioner,
    check_channels,
    check_scale,
    per_channel,
)
from ._protocols import Network, NoiseSource, OdeSampler, SdeSampler
from ._rows import call, check_batch, check_network, cond_rows, sample_rows, to_rows
from ._samplers import DENOISING_SAMPLERS, ODE_SAMPLERS, SDE_SAMPLERS, SRA1, refuse_sampler
from ._settings import Settings
from ._types import Batch, Cond, Key, LossOut, NetSpec
from ._weights import point_weights, weighted_square_error


@dataclass(frozen=True, kw_only=True)
class StochasticInterpolant(Settings):
    """Diffusion from a point base to the conditional law of the target (Chen et al., arXiv 2403.13724).

    I_t = a x0 + b x1 + s W_t with a = 1 - t, b = t^power, s = eps (1 - t), W_t = sqrt(t) z. The network gives
    the drift D = E[a' x0 + b' x1 + s' W_t | I_t, x0], and dX = D dt + g dW from X_0 = x0 ends in
    p(x1 | x0, cond). One t ~ U(0, 1) per row. `cond` must determine the base: the network sees x0 through it.

    Args:
        steps: solver steps.
        sampler: `SRA1`, `SRA2`, `StochasticHeun` or `EulerMaruyama`; with diffusion "none" `Heun`, `RK4` or
            `Euler`.
        eps: noise amplitude, in units of the normalised target.
        power: 1, or 2, which needs about three times the steps.
        diffusion: "sigma" (g = s), "foellmer" (g^2 = eps^2 (1 - t^2) for power 1), or "none": the probability
            flow, an ordinary differential equation for (x - x0) / sqrt(t) in sqrt(t), see `Bridge.flow`.
        preconditioning: "gaussian" (see `GaussianPreconditioner`) or "atlas" (the published form).
        sigma_base, sigma_target, correlation: root mean squares of base and target and the mean of their
            product divided by both, for all channels or one value each; `from_pairs` measures them.
        noise: source of z.
        double: solver state in float64; the network still gets the dtype of the base.
    """

    steps: int = 10
    sampler: SdeSampler | OdeSampler = field(default_factory=SRA1)
    eps: float = 1.0
    power: int = 1
    diffusion: str = "sigma"
    preconditioning: str = "gaussian"
    sigma_base: float | tuple[float, ...] = 1.0
    sigma_target: float | tuple[float, ...] = 1.0
    correlation: float | tuple[float, ...] = 0.0
    noise: NoiseSource = field(default_factory=WhiteNoise)
    double: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive, got {self.eps}")
        if self.power not in (1, 2):
            raise ValueError(f"power must be 1 or 2, got {self.power}")
        if self.diffusion not in ("sigma", "foellmer", "none"):
            raise ValueError(f"diffusion must be 'sigma', 'foellmer' or 'none', got {self.diffusion!r}")
        if self.preconditioning not in ("gaussian", "atlas"):
            raise ValueError(f"preconditioning must be 'gaussian' or 'atlas', got {self.preconditioning!r}")
        check_scale("sigma_base", self.sigma_base)
        check_scale("sigma_target", self.sigma_target)
        if bool((per_channel("correlation", self.correlation).abs() >= 1).any()):
            raise ValueError(f"correlation must be inside (-1, 1), got {self.correlation}")
        ordinary = self.diffusion == "none"
        if not ordinary:
            check_gaussian(self.noise, "a stochastic sampler")
        refuse_sampler(
            self.sampler,
            (*(SDE_SAMPLERS if ordinary else ODE_SAMPLERS), *DENOISING_SAMPLERS),
            ODE_SAMPLERS if ordinary else SDE_SAMPLERS,
            f"diffusion {self.diffusion!r}",
        )

    @classmethod
    def from_pairs(cls, base: Tensor, target: Tensor, **settings: Any) -> StochasticInterpolant:
        """An interpolant with sigmas and correlation measured on pairs (N, C, *S); NaN is left out."""
        keep = ~(torch.isnan(base) | torch.isnan(target))
        x0, x1 = (torch.where(keep, v, 0.0).double().transpose(0, 1).flatten(1) for v in (base, target))
        count = keep.transpose(0, 1).flatten(1).sum(1)
        s0, s1 = ((v.square().sum(1) / count).sqrt() for v in (x0, x1))
        correlation = (x0 * x1).sum(1) / count / (s0 * s1)
        return cls(
            sigma_base=tuple(s0.tolist()),
            sigma_target=tuple(s1.tolist()),
            correlation=tuple(correlation.tolist()),
            **settings,
        )

    @property
    def calls_per_sample(self) -> int:
        """Network evaluations per member."""
        return self.steps * self.sampler.calls_per_step

    def required(self, out_channels: int) -> NetSpec:
        """The network this estimator needs."""
        for name in ("sigma_base", "sigma_target", "correlation"):
            check_channels(name, getattr(self, name), out_channels)
        return NetSpec(out_channels=out_channels, takes_x=True, takes_t=True, noise=None)

    def loss(self, net: Network, batch: Batch, key: Key) -> LossOut:
        """Weighted mean square error of the preconditioned network, one time and noise per (row, member)."""
        check_network(self.required(batch.target.shape[1]), net.spec, "StochasticInterpolant")
        check_batch(key, batch.target.shape[0], "batch.target")
        key, m = key.sub("loss"), key.members
        x1, x0 = to_rows(torch.nan_to_num(batch.target), m), to_rows(batch.base, m)
        t = key.sub("time").uniform().reshape(-1)
        z = self.noise.draw(key.sub("noise"), tuple(x1.shape[1:]), device=x1.device, dtype=x1.dtype)
        x, truth = self._preconditioner().pair(t, x0, x1, z.flatten(0, 1))
        label = t.to(x)
        f = call(net, x, cond_rows(batch.cond, m), label, None, x)
        return weighted_square_error(f, truth, to_rows(point_weights(batch.target, batch.weight), m), label)

    def sample(
        self, net: Network, base: Tensor, cond: Cond, key: Key, /, *, chunk: int | None = None
    ) -> Tensor:
        """Integrate from the base: (B, M, C, *S), at most `chunk` rows at a time."""
        check_network(self.required(base.shape[1]), net.spec, "StochasticInterpolant")
        tables = self._tables(base[:0].to(solver_dtype(base, self.double)))
        return sample_rows(
            lambda b, c, k: self._run(net, tables, b, c, k), base, cond, key.sub("sample"), chunk
        )

    @classmethod
    def _parts(cls) -> tuple[type[Any], ...]:
        return (*NOISES, *SDE_SAMPLERS, *ODE_SAMPLERS)

    def _bridge(self) -> Bridge:
        return Bridge(self.eps, self.power)

    def _preconditioner(self) -> GaussianPreconditioner | AtlasPreconditioner:
        s0, s1 = per_channel("sigma_base", self.sigma_base), per_channel("sigma_target", self.sigma_target)
        rho = per_channel("correlation", self.correlation)
        if self.preconditioning == "atlas":
            return AtlasPreconditioner(self._bridge(), s0, s1, rho)
        return GaussianPreconditioner(self._bridge(), rho * s1 / s0, s1.square() * (1.0 - rho.square()))

    def _tables(self, like: Tensor) -> dict[str, Table]:
        """Factors of the drift by kind; those of the probability flow are functions of sqrt(t)."""
        bridge, model = self._bridge(), self._preconditioner()
        return {
            "sigma": Table(model.drift, like),
            "foellmer": Table(lambda t: bridge.foellmer(model.drift(t), t), like),
            "none": Table(lambda tau: bridge.flow(model.drift(tau * tau), tau), like),
        }

    def _run(self, net: Network, tables: Mapping[str, Table], base: Tensor, cond: Cond, key: Key) -> Tensor:
        """One member per row, from X_0 = base to X_1."""
        x0 = base.to(solver_dtype(base, self.double))

        def unit(k: Key) -> Tensor:
            return self.noise.draw(k, tuple(x0.shape[1:]), device=x0.device, dtype=x0.dtype).squeeze(1)

        def drift(kind: str) -> Field:
            return Field(
                net,
                cond,
                x0,
                tables[kind],
                label=(lambda tau: tau * tau) if kind == "none" else (lambda t: t),
                dtype=base.dtype,
                start=lambda: unit(key.sub("start")),
            )

        x = (
            self._flow(drift, x0, unit, key)
            if self.diffusion == "none"
            else self._diffuse(drift, x0, unit, key)
        )
        return x.to(base.dtype)

    def _diffuse(
        self, drift: Callable[[str], Field], x: Tensor, unit: Callable[[Key], Tensor], key: Key
    ) -> Tensor:
        """Stochastic differential equation from 0 to 1."""
        sampler, bridge = cast(SdeSampler, self.sampler), self._bridge()
        for n in range(self.steps):
            # b = t^2 has a removable 1/t at t = 0: its first step keeps g = s.
            kind = "sigma" if n == 0 and self.power == 2 else self.diffusion
            x = sampler.step(
                drift(kind),
                x,
                n / self.steps,
                (n + 1) / self.steps,
                partial(bridge.diffusion, choice=kind),
                partial(_stage_noise, unit, key.sub("step", n)),
            )
        return x

    def _flow(
        self, drift: Callable[[str], Field], x0: Tensor, unit: Callable[[Key], Tensor], key: Key
    ) -> Tensor:
        """Probability flow of y = (x - x0) / sqrt(t) from y = eps z."""
        sampler, f = cast(OdeSampler, self.sampler), drift("none")
        y = self.eps * unit(key.sub("start"))
        for n in range(self.steps):
            y = sampler.step(f, y, n / self.steps, (n + 1) / self.steps)
        return x0 + y


def _stage_noise(unit: Callable[[Key], Tensor], key: Key, stage: int) -> Tensor:
    return unit(key.sub("noise", stage))
