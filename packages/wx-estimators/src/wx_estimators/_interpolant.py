"""Stochastic interpolants that start from the current state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ._noise import NOISES, WhiteNoise
from ._path import AtlasPreconditioner, Bridge, GaussianPreconditioner, check_channels, per_channel
from ._protocols import Network, NoiseSource, SdeSampler
from ._rows import call, check_batch, check_network, cond_rows, sample_rows, to_rows
from ._samplers import SDE_SAMPLERS, SRA1
from ._settings import read, write
from ._types import Batch, Cond, Key, LossOut, NetSpec
from ._weights import point_weights, weighted_square_error


@dataclass(frozen=True, kw_only=True)
class StochasticInterpolant:
    """Diffusion from a point base to the conditional law of the target (Chen et al., arXiv 2403.13724).

    I_t = a x0 + b x1 + s W_t with a = 1 - t, b = t^power, s = eps (1 - t), W_t = sqrt(t) z. The network gives
    the drift D = E[a' x0 + b' x1 + s' W_t | I_t, x0], and dX = D dt + g dW from X_0 = x0 ends in
    p(x1 | x0, cond). One t ~ U(0, 1) per row. `cond` must determine the base: the network sees x0 through it.

    Args:
        steps: solver steps.
        sampler: `SRA1`, `StochasticHeun` or `EulerMaruyama`.
        eps: noise amplitude, in units of the normalised target.
        power: 1, or 2, which needs about three times the steps.
        diffusion: "sigma" (g = s) or "foellmer" (g^2 = eps^2 (1 - t^2) for power 1).
        preconditioning: "gaussian" (see `GaussianPreconditioner`) or "atlas" (the published form).
        sigma_base, sigma_target, correlation: root mean squares of base and target and the mean of their
            product divided by both, for all channels or one value each; `from_pairs` measures them.
        noise: source of z.
    """

    steps: int = 10
    sampler: SdeSampler = field(default_factory=SRA1)
    eps: float = 1.0
    power: int = 1
    diffusion: str = "sigma"
    preconditioning: str = "gaussian"
    sigma_base: float | tuple[float, ...] = 1.0
    sigma_target: float | tuple[float, ...] = 1.0
    correlation: float | tuple[float, ...] = 0.0
    noise: NoiseSource = field(default_factory=WhiteNoise)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.eps > 0:
            raise ValueError(f"eps must be positive, got {self.eps}")
        if self.power not in (1, 2):
            raise ValueError(f"power must be 1 or 2, got {self.power}")
        if self.diffusion not in ("sigma", "foellmer"):
            raise ValueError(f"diffusion must be 'sigma' or 'foellmer', got {self.diffusion!r}")
        if self.preconditioning not in ("gaussian", "atlas"):
            raise ValueError(f"preconditioning must be 'gaussian' or 'atlas', got {self.preconditioning!r}")
        for name, value in (("sigma_base", self.sigma_base), ("sigma_target", self.sigma_target)):
            if bool((per_channel(name, value) <= 0).any()):
                raise ValueError(f"{name} must be positive, got {value}")
        if bool((per_channel("correlation", self.correlation).abs() >= 1).any()):
            raise ValueError(f"correlation must be inside (-1, 1), got {self.correlation}")

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
        f = call(net, x, cond_rows(batch.cond, m), t.to(x), None, x)
        return weighted_square_error(f, truth, to_rows(point_weights(batch.target, batch.weight), m))

    def sample(
        self, net: Network, base: Tensor, cond: Cond, key: Key, /, *, chunk: int | None = None
    ) -> Tensor:
        """Integrate from the base: (B, M, C, *S), at most `chunk` rows at a time."""
        check_network(self.required(base.shape[1]), net.spec, "StochasticInterpolant")
        return sample_rows(lambda b, c, k: self._run(net, b, c, k), base, cond, key.sub("sample"), chunk)

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return write(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StochasticInterpolant:
        """Inverse of `to_dict`."""
        return read(cls, data, (*NOISES, *SDE_SAMPLERS))

    def _bridge(self) -> Bridge:
        return Bridge(self.eps, self.power)

    def _preconditioner(self) -> GaussianPreconditioner | AtlasPreconditioner:
        s0, s1 = per_channel("sigma_base", self.sigma_base), per_channel("sigma_target", self.sigma_target)
        rho = per_channel("correlation", self.correlation)
        if self.preconditioning == "atlas":
            return AtlasPreconditioner(self._bridge(), s0, s1, rho)
        return GaussianPreconditioner(self._bridge(), rho * s1 / s0, s1.square() * (1.0 - rho.square()))

    def _run(self, net: Network, base: Tensor, cond: Cond, key: Key) -> Tensor:
        """One member per row, from X_0 = base to X_1."""
        bridge, model = self._bridge(), self._preconditioner()

        def unit(k: Key) -> Tensor:
            shape = tuple(base.shape[1:])
            return self.noise.draw(k, shape, device=base.device, dtype=base.dtype).squeeze(1)

        def predict(u: Tensor, t: Tensor) -> Tensor:
            return call(net, u, cond, t.to(u), None, u)

        def advance(x: Tensor, n: int) -> Tensor:
            # b = t^2 has a removable 1/t at t = 0: its first step keeps g = s.
            foellmer = self.diffusion == "foellmer" and (self.power == 1 or n > 0)

            def drift(y: Tensor, t: float) -> Tensor:
                d = model.drift(predict, y, base, t, lambda: unit(key.sub("start")))
                return bridge.foellmer_drift(d, y, base, t) if foellmer else d

            here = key.sub("step", n)
            return self.sampler.step(
                drift,
                x,
                n / self.steps,
                (n + 1) / self.steps,
                lambda t: bridge.diffusion(t, foellmer),
                lambda i: unit(here.sub("noise", i)),
            )

        x = base
        for n in range(self.steps):
            x = advance(x, n)
        return x
