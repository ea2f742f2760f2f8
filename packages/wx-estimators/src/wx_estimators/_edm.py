"""EDM diffusion: denoising from pure noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._field import Affine, Field, Table, affine, solver_dtype
from ._laws import SIGMA_LAWS, LogNormal
from ._likelihood import DensityFlow
from ._noise import NOISES, WhiteNoise, check_gaussian
from ._path import check_channels, check_scale, per_channel, rotate
from ._protocols import DenoisingSampler, Law, Network, NoiseSource, OdeSampler
from ._rows import call, check_batch, check_network, column, cond_rows, sample_rows, to_rows
from ._samplers import DENOISING_SAMPLERS, DPM2M, DPM2S, ODE_SAMPLERS, SDE_SAMPLERS, refuse_sampler
from ._settings import Settings
from ._types import Batch, Cond, Key, LossOut, NetSpec
from ._weights import point_weights, weighted_square_error


class NoisyPair(NamedTuple):
    """Data mixed with noise at the angle tan(theta) = sigma / sigma_data.

    Args:
        x: (N, C, *S), u = cos xi + sin z, the network's input; xi = target / sigma_data.
        truth: sin xi - cos z = -du/dtheta at fixed xi and z, the network's target.
        cos, sin: of theta, (N, C or 1, 1, ...).
        label: (N,), ln(sigma) / 4.
    """

    x: Tensor
    truth: Tensor
    cos: Tensor
    sin: Tensor
    label: Tensor


def noisy_pair(
    training: Law, noise: NoiseSource, sigma_data: float | tuple[float, ...], target: Tensor, key: Key
) -> NoisyPair:
    """What a denoising loss draws: one noise level and one noise per (row, member)."""
    key = key.sub("loss")
    x1 = to_rows(torch.nan_to_num(target), key.members)
    sigma = training.quantile(key.sub("sigma").uniform().reshape(-1, 1))
    z = noise.draw(key.sub("noise"), tuple(x1.shape[1:]), device=x1.device, dtype=x1.dtype)
    data = per_channel("sigma_data", sigma_data)
    norm = torch.hypot(sigma, data)
    cos, sin = column(data / norm, x1), column(sigma / norm, x1)
    x, truth = rotate(cos, sin, x1 / column(data, x1), z.flatten(0, 1))
    return NoisyPair(x, truth, cos, sin, (sigma[:, 0].log() / 4).to(x))


def denoiser(sigma: float, sigma_data: float | tuple[float, ...]) -> Affine:
    """Factors of D(x, sigma)."""
    data = per_channel("sigma_data", sigma_data)
    norm = (sigma**2 + data.square()).sqrt()
    return affine(1.0 / norm, 0.0, (data / norm).square(), 0.0, sigma * data / norm)


def noise_label(sigma: float) -> float:
    """c_noise, what the network is told about a noise level."""
    return math.log(sigma) / 4


@dataclass(frozen=True, kw_only=True)
class EDM(Settings):
    """Denoising diffusion in the design space of Karras et al. (arXiv 2206.00364).

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) with c_skip = sd^2 / (sigma^2 + sd^2),
    c_out = sigma sd / sqrt(sigma^2 + sd^2), c_in = 1 / sqrt(sigma^2 + sd^2), c_noise = ln(sigma) / 4. The
    loss is the mean square error of F, which is the paper's weight on D. Targets should be centred: a mean m
    leaves a bias of m sd / sqrt(sigma_max^2 + sd^2).

    Args:
        steps: noise levels n from sigma_max to sigma_min, followed by 0.
        sampler: `DPM2S`, `DPM2M`, or a solver of dx/dsigma = (x - D) / sigma: `Heun`, `RK4`, `Euler`. The
            last step, to 0, returns D.
        sigma_data: root mean square of the target, for all channels or one value each.
        training: law of sigma in training, `LogNormal` or `RhoQuantile`.
        sigma_min, sigma_max, rho: levels (smax^(1/rho) + i/(n-1) (smin^(1/rho) - smax^(1/rho)))^rho.
        churn: S_churn; 0 is the deterministic sampler, GenCast uses 2.5.
        churn_min, churn_max, churn_noise: S_tmin, S_tmax (None: no upper bound), S_noise.
        noise: source of the noise.
        double: solver state in float64; the network still gets the dtype of the base.
    """

    steps: int = 20
    sampler: DenoisingSampler | OdeSampler = field(default_factory=DPM2S)
    sigma_data: float | tuple[float, ...] = 1.0
    training: Law = field(default_factory=LogNormal)
    sigma_min: float = 0.03
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: float = 0.0
    churn_min: float = 0.75
    churn_max: float | None = None
    churn_noise: float = 1.05
    noise: NoiseSource = field(default_factory=WhiteNoise)
    double: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"expected 0 < sigma_min < sigma_max, got {self.sigma_min}, {self.sigma_max}")
        if not self.rho > 0 or not self.churn >= 0 or not self.churn_noise >= 0:
            raise ValueError("expected rho > 0, churn >= 0 and churn_noise >= 0")
        if self.churn > 0:
            check_gaussian(self.noise, "churn")
        check_scale("sigma_data", self.sigma_data)
        refuse_sampler(self.sampler, SDE_SAMPLERS, (*DENOISING_SAMPLERS, *ODE_SAMPLERS), "EDM")
        if self.churn > 0 and isinstance(self.sampler, DPM2M):
            raise ValueError("churn breaks the history that DPM2M extrapolates from: use DPM2S or Heun")

    @property
    def calls_per_sample(self) -> int:
        """Network evaluations per member."""
        return (self.steps - 1) * self.sampler.calls_per_step + 1

    def levels(self) -> list[float]:
        """Noise levels from sigma_max down to sigma_min, then 0."""
        top, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        last = max(self.steps - 1, 1)
        return [(top + i / last * (low - top)) ** self.rho for i in range(self.steps)] + [0.0]

    def required(self, out_channels: int) -> NetSpec:
        """The network this estimator needs."""
        check_channels("sigma_data", self.sigma_data, out_channels)
        return NetSpec(out_channels=out_channels, takes_x=True, takes_t=True, noise=None)

    def loss(self, net: Network, batch: Batch, key: Key) -> LossOut:
        """Weighted mean square error of the preconditioned network, one noise level per (row, member)."""
        check_network(self.required(batch.target.shape[1]), net.spec, "EDM")
        check_batch(key, batch.target.shape[0], "batch.target")
        m = key.members
        p = noisy_pair(self.training, self.noise, self.sigma_data, batch.target, key)
        f = call(net, p.x, cond_rows(batch.cond, m), p.label, None, p.x)
        weight = to_rows(point_weights(batch.target, batch.weight), m)
        return weighted_square_error(f, p.truth, weight, p.label)

    def sample(
        self, net: Network, base: Tensor, cond: Cond, key: Key, /, *, chunk: int | None = None
    ) -> Tensor:
        """Denoise: (B, M, C, *S), at most `chunk` rows at a time; of the base only the shape is used."""
        check_network(self.required(net.spec.out_channels), net.spec, "EDM")
        like = base[:0].to(solver_dtype(base, self.double))
        tables = Table(lambda sigma: denoiser(sigma, self.sigma_data), like), Table(self._slope, like)
        return sample_rows(
            lambda b, c, k: self._run(net, tables, b, c, k), base, cond, key.sub("sample"), chunk
        )

    @classmethod
    def _parts(cls) -> tuple[type[Any], ...]:
        return (*NOISES, *DENOISING_SAMPLERS, *ODE_SAMPLERS, *SIGMA_LAWS)

    def _slope(self, sigma: float) -> Affine:
        """Factors of (x - D) / sigma."""
        return denoiser(sigma, self.sigma_data).mixed(-1.0 / sigma, 1.0 / sigma)

    def _stir(self, sigma: float) -> float:
        """Noise level after churn: (1 + min(S_churn / n, sqrt(2) - 1)) sigma inside [S_tmin, S_tmax]."""
        inside = self.churn_min <= sigma <= (math.inf if self.churn_max is None else self.churn_max)
        return sigma * (1.0 + (min(self.churn / self.steps, math.sqrt(2.0) - 1.0) if inside else 0.0))

    def _field(self, net: Network, table: Table, base: Tensor, cond: Cond) -> Field:
        return Field(net, cond, base, table, label=noise_label, dtype=base.dtype)

    def _run(self, net: Network, tables: tuple[Table, Table], base: Tensor, cond: Cond, key: Key) -> Tensor:
        """One member per row."""
        shape, dtype = (net.spec.out_channels, *base.shape[2:]), solver_dtype(base, self.double)

        def unit(k: Key) -> Tensor:
            return self.noise.draw(k, shape, device=base.device, dtype=dtype).squeeze(1)

        denoise, slope = (self._field(net, table, base, cond) for table in tables)
        levels = self.levels()
        x, last = levels[0] * unit(key.sub("start")), None
        for n, (s0, s1) in enumerate(pairwise(levels)):
            stirred = self._stir(s0)
            if stirred > s0:
                extra = self.churn_noise * math.sqrt(stirred**2 - s0**2)
                x = torch.add(x, unit(key.sub("churn", n)), alpha=extra)
            if s1 == 0.0:
                x = denoise(x, stirred)
            elif isinstance(self.sampler, DenoisingSampler):
                x, last = self.sampler.denoise_step(denoise, x, stirred, s1, last)
            else:
                x = self.sampler.step(slope, x, stirred, s1)
        return x.to(base.dtype)

    def density_flow(self, net: Network, batch: Batch, steps: int, dtype: torch.dtype) -> DensityFlow:
        """The flow from data to noise, for `log_likelihood`."""
        start = batch.target.to(dtype)
        return DensityFlow(
            velocity=self._field(net, Table(self._slope, start), batch.base, batch.cond),
            start=start,
            times=replace(self, steps=steps + 1).levels()[-2::-1],
            noise=self.sigma_max,
            log_scale=0.0,
        )
