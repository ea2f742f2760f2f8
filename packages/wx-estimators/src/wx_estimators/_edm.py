"""EDM diffusion: denoising from pure noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ._noise import NOISES, WhiteNoise
from ._path import check_channels, per_channel, rotate
from ._protocols import Network, NoiseSource, OdeSampler
from ._rows import call, check_batch, check_network, column, cond_rows, sample_rows, to_rows
from ._samplers import DPM2S, ODE_SAMPLERS
from ._settings import read, write
from ._types import Batch, Cond, Key, LossOut, NetSpec
from ._weights import point_weights, weighted_square_error


@dataclass(frozen=True, kw_only=True)
class EDM:
    """Denoising diffusion in the design space of Karras et al. (arXiv 2206.00364).

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) with c_skip = sd^2 / (sigma^2 + sd^2),
    c_out = sigma sd / sqrt(sigma^2 + sd^2), c_in = 1 / sqrt(sigma^2 + sd^2), c_noise = ln(sigma) / 4. The
    loss is the mean square error of F, which is the paper's weight on D. Targets should be centred: a mean m
    leaves a bias of m sd / sqrt(sigma_max^2 + sd^2).

    Args:
        steps: noise levels n from sigma_max to sigma_min, followed by 0.
        sampler: `DPM2S` or `Heun`.
        sigma_data: root mean square of the target, for all channels or one value each.
        p_mean, p_std: ln sigma ~ N(p_mean, p_std^2) in training.
        sigma_min, sigma_max, rho: levels (smax^(1/rho) + i/(n-1) (smin^(1/rho) - smax^(1/rho)))^rho.
        churn: S_churn; 0 is the deterministic sampler, GenCast uses 2.5.
        churn_min, churn_max, churn_noise: S_tmin, S_tmax, S_noise.
        noise: source of the noise.
    """

    steps: int = 20
    sampler: OdeSampler = field(default_factory=DPM2S)
    sigma_data: float | tuple[float, ...] = 1.0
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_min: float = 0.03
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: float = 0.0
    churn_min: float = 0.75
    churn_max: float = math.inf
    churn_noise: float = 1.05
    noise: NoiseSource = field(default_factory=WhiteNoise)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"expected 0 < sigma_min < sigma_max, got {self.sigma_min}, {self.sigma_max}")
        if not self.p_std > 0 or not self.rho > 0 or self.churn < 0 or self.churn_noise < 0:
            raise ValueError("expected p_std > 0, rho > 0, churn >= 0 and churn_noise >= 0")
        if bool((per_channel("sigma_data", self.sigma_data) <= 0).any()):
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}")

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
        key, m = key.sub("loss"), key.members
        x1 = to_rows(torch.nan_to_num(batch.target), m)
        log_sigma = self.p_mean + self.p_std * torch.special.ndtri(key.sub("sigma").uniform().reshape(-1))
        z = self.noise.draw(key.sub("noise"), tuple(x1.shape[1:]), device=x1.device, dtype=x1.dtype)
        sigma, data = log_sigma.exp().unsqueeze(1), per_channel("sigma_data", self.sigma_data)
        norm = torch.hypot(sigma, data)
        cos, sin = column(data / norm, x1), column(sigma / norm, x1)
        x, truth = rotate(cos, sin, x1 / column(data, x1), z.flatten(0, 1))
        f = call(net, x, cond_rows(batch.cond, m), (log_sigma / 4).to(x), None, x)
        return weighted_square_error(f, truth, to_rows(point_weights(batch.target, batch.weight), m))

    def sample(
        self, net: Network, base: Tensor, cond: Cond, key: Key, /, *, chunk: int | None = None
    ) -> Tensor:
        """Denoise: (B, M, C, *S), at most `chunk` rows at a time; of the base only the shape is used."""
        check_network(self.required(net.spec.out_channels), net.spec, "EDM")
        return sample_rows(lambda b, c, k: self._run(net, b, c, k), base, cond, key.sub("sample"), chunk)

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        data = write(self, skip=("churn_max",))
        return data if math.isinf(self.churn_max) else {**data, "churn_max": self.churn_max}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EDM:
        """Inverse of `to_dict`."""
        return read(cls, data, (*NOISES, *ODE_SAMPLERS))

    def _denoise(self, net: Network, x: Tensor, cond: Cond, sigma: float) -> Tensor:
        data = per_channel("sigma_data", self.sigma_data)
        norm = (sigma**2 + data.square()).sqrt()
        t = x.new_full((x.shape[0],), math.log(sigma) / 4)
        f = call(net, column(1.0 / norm, x) * x, cond, t, None, x)
        return column((data / norm).square(), x) * x + column(sigma * data / norm, x) * f

    def _stir(self, sigma: float) -> float:
        """Noise level after churn: (1 + min(S_churn / n, sqrt(2) - 1)) sigma inside [S_tmin, S_tmax]."""
        inside = self.churn_min <= sigma <= self.churn_max
        return sigma * (1.0 + (min(self.churn / self.steps, math.sqrt(2.0) - 1.0) if inside else 0.0))

    def _run(self, net: Network, base: Tensor, cond: Cond, key: Key) -> Tensor:
        """One member per row."""
        shape = (net.spec.out_channels, *base.shape[2:])

        def unit(k: Key) -> Tensor:
            return self.noise.draw(k, shape, device=base.device, dtype=base.dtype).squeeze(1)

        def denoise(y: Tensor, sigma: float) -> Tensor:
            return self._denoise(net, y, cond, sigma)

        levels = self.levels()
        x = levels[0] * unit(key.sub("start"))
        for n, (s0, s1) in enumerate(pairwise(levels)):
            stirred = self._stir(s0)
            if stirred > s0:
                extra = math.sqrt(stirred**2 - s0**2)
                x = x + self.churn_noise * extra * unit(key.sub("churn", n))
            x = self.sampler.step(denoise, x, stirred, s1) if s1 > 0 else denoise(x, stirred)
        return x
