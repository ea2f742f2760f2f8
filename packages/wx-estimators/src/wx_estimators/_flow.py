"""Flow matching: a velocity field from Gaussian noise to the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ._field import Affine, Field, Table, affine, solver_dtype
from ._laws import TIME_LAWS, Uniform
from ._likelihood import DensityFlow
from ._noise import NOISES, WhiteNoise
from ._path import FLOW_PATHS, LinearPath, Path, check_channels, check_scale, per_channel
from ._protocols import Law, Network, NoiseSource, OdeSampler
from ._rows import call, check_batch, check_network, column, cond_rows, sample_rows, to_rows
from ._samplers import DENOISING_SAMPLERS, ODE_SAMPLERS, SDE_SAMPLERS, Heun, refuse_sampler
from ._settings import Settings
from ._types import Batch, Cond, Key, LossOut, NetSpec
from ._weights import point_weights, weighted_square_error


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Settings):
    """Ordinary differential equation from noise to data (Lipman et al., arXiv 2210.02747).

    x_t = b x1 + s z with z ~ N(0, K), K the covariance of `noise`; the network gives the velocity
    v = E[b' x1 + s' z | x_t], and dx = v dt from x = z at t = 0 ends in the law of x1. Here x1 is the target
    over `sigma_data`. Noise and data are drawn independently: pairing them by optimal transport inside a
    batch would mix conditions and change the conditional law.

    Args:
        steps: solver steps, uniform in t.
        sampler: `Heun`, `RK4` or `Euler`.
        path: `LinearPath` (b = t, s = 1 - t) or `TrigPath`.
        training: law of t in training, `Uniform` or `LogitNormal`.
        sigma_data: root mean square of what is modelled, for all channels or one value each.
        residual: model (target - base) / sigma_data; the base is then a mean forecast of the target
            (ArchesWeatherGen, arXiv 2412.12971). Otherwise only the shape of the base is used.
        noise: source of z.
        double: solver state in float64; the network still gets the dtype of the base.
    """

    steps: int = 10
    sampler: OdeSampler = field(default_factory=Heun)
    path: Path = field(default_factory=LinearPath)
    training: Law = field(default_factory=Uniform)
    sigma_data: float | tuple[float, ...] = 1.0
    residual: bool = False
    noise: NoiseSource = field(default_factory=WhiteNoise)
    double: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        check_scale("sigma_data", self.sigma_data)
        refuse_sampler(self.sampler, (*SDE_SAMPLERS, *DENOISING_SAMPLERS), ODE_SAMPLERS, "FlowMatching")

    @property
    def calls_per_sample(self) -> int:
        """Network evaluations per member."""
        return self.steps * self.sampler.calls_per_step

    def required(self, out_channels: int) -> NetSpec:
        """The network this estimator needs."""
        check_channels("sigma_data", self.sigma_data, out_channels)
        return NetSpec(out_channels=out_channels, takes_x=True, takes_t=True, noise=None)

    def loss(self, net: Network, batch: Batch, key: Key) -> LossOut:
        """Weighted mean square error of the velocity, one time and noise per (row, member)."""
        check_network(self.required(batch.target.shape[1]), net.spec, "FlowMatching")
        check_batch(key, batch.target.shape[0], "batch.target")
        key, m = key.sub("loss"), key.members
        x1 = to_rows(self._encode(torch.nan_to_num(batch.target), batch.base), m)
        t = self.training.quantile(key.sub("time").uniform().reshape(-1))
        z = self.noise.draw(key.sub("noise"), tuple(x1.shape[1:]), device=x1.device, dtype=x1.dtype)
        x, truth = self._pair(t, x1, z.flatten(0, 1))
        label = t.to(x)
        f = call(net, x, cond_rows(batch.cond, m), label, None, x)
        return weighted_square_error(f, truth, to_rows(point_weights(batch.target, batch.weight), m), label)

    def sample(
        self, net: Network, base: Tensor, cond: Cond, key: Key, /, *, chunk: int | None = None
    ) -> Tensor:
        """Integrate from noise: (B, M, C, *S), at most `chunk` rows at a time."""
        check_network(self.required(net.spec.out_channels), net.spec, "FlowMatching")
        table = Table(self._velocity, base[:0].to(solver_dtype(base, self.double)))
        return sample_rows(
            lambda b, c, k: self._run(net, table, b, c, k), base, cond, key.sub("sample"), chunk
        )

    @classmethod
    def _parts(cls) -> tuple[type[Any], ...]:
        return (*NOISES, *ODE_SAMPLERS, *FLOW_PATHS, *TIME_LAWS)

    def _pair(self, t: Tensor, x1: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Network input and target for times (N,)."""
        c = self.path.coeff(t)
        b, s, db, ds = (column(v, x1) for v in (c.b, c.s, c.db, c.ds))
        return b * x1 + s * z, db * x1 + ds * z

    @staticmethod
    def _velocity(t: float) -> Affine:
        del t
        return affine(1.0, 0.0, 0.0, 0.0, 1.0)

    def _field(self, net: Network, table: Table, base: Tensor, cond: Cond) -> Field:
        return Field(net, cond, base, table, label=lambda t: t, dtype=base.dtype)

    def _scale(self, like: Tensor) -> Tensor:
        return column(per_channel("sigma_data", self.sigma_data), like)

    def _encode(self, target: Tensor, base: Tensor) -> Tensor:
        x1 = target - base if self.residual else target
        return x1 / self._scale(x1)

    def _decode(self, x1: Tensor, base: Tensor) -> Tensor:
        target = x1 * self._scale(x1)
        return base + target if self.residual else target

    def _run(self, net: Network, table: Table, base: Tensor, cond: Cond, key: Key) -> Tensor:
        """One member per row."""
        shape, dtype = (net.spec.out_channels, *base.shape[2:]), solver_dtype(base, self.double)
        x = self.noise.draw(key.sub("start"), shape, device=base.device, dtype=dtype).squeeze(1)
        velocity = self._field(net, table, base, cond)
        for t0, t1 in pairwise([n / self.steps for n in range(self.steps + 1)]):
            x = self.sampler.step(velocity, x, t0, t1)
        return self._decode(x, base.to(dtype)).to(base.dtype)

    def density_flow(self, net: Network, batch: Batch, steps: int, dtype: torch.dtype) -> DensityFlow:
        """The flow from data to noise, for `log_likelihood`."""
        base, target = batch.base.to(dtype), batch.target.to(dtype)
        start = self._encode(target, base)
        sigma = per_channel("sigma_data", self.sigma_data).expand(1, start.shape[1])
        return DensityFlow(
            velocity=self._field(net, Table(self._velocity, start), batch.base, batch.cond),
            start=start,
            times=[1.0 - n / steps for n in range(steps + 1)],
            noise=1.0,
            log_scale=-float(sigma.log().sum()) * math.prod(start.shape[2:]),
        )
