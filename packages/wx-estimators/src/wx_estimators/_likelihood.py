"""Exact log-densities by the probability flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ._field import solver_dtype
from ._noise import WhiteNoise
from ._protocols import Drift, Network, OdeSampler
from ._rows import check_batch, check_network
from ._samplers import RK4
from ._types import Batch, Key, NetSpec


class DensityFlow(NamedTuple):
    """A flow from data to noise.

    Args:
        velocity: dx/dt.
        start: (N, C, *S), the data in the coordinates of the flow.
        times: from the data to the noise.
        noise: standard deviation of the Gaussian that it ends in.
        log_scale: ln |d start / d target| of one row.
    """

    velocity: Drift
    start: Tensor
    times: Sequence[float]
    noise: float
    log_scale: float


class FlowEstimator(Protocol):
    """An estimator that samples by an ordinary differential equation from Gaussian noise."""

    @property
    def noise(self) -> object: ...

    def required(self, out_channels: int) -> NetSpec: ...

    def density_flow(self, net: Network, batch: Batch, steps: int, dtype: torch.dtype) -> DensityFlow: ...


def log_likelihood(
    estimator: FlowEstimator,
    net: Network,
    batch: Batch,
    key: Key,
    /,
    *,
    steps: int = 40,
    probes: int | None = 1,
    sampler: OdeSampler | None = None,
    double: bool = False,
) -> Tensor:
    """Log-density (B,) in nats of `batch.target` under a trained `FlowMatching` or `EDM`.

    log p(x) = log N(x_T; 0, s^2) + integral of div v dt along the flow from the data to the noise
    (Chen et al., arXiv 1806.07366; Song et al., arXiv 2011.13456). EDM gives the density of the data plus
    noise of level sigma_min. Churn plays no part: the density is that of the deterministic sampler.

    Args:
        estimator: with `WhiteNoise`, whose density is known.
        net: trained for it, in evaluation mode; its rows must not depend on each other.
        batch: target without NaN; the weight is not used.
        key: names the probes, one member.
        steps: solver steps.
        probes: Rademacher vectors per row for Hutchinson's estimate of div v (unbiased, noise ~ probes^-1/2);
            None for the exact trace, whose cost grows with the number of points.
        sampler: `RK4` by default, four network calls per step, each with one backward pass per probe.
        double: float64 state.

    Raises:
        ValueError: coloured noise, NaN in the target, or probes < 1.
    """
    _check(estimator, net, batch, key, probes)
    solver = RK4() if sampler is None else sampler
    flow = estimator.density_flow(net, batch, steps, solver_dtype(batch.target, double))
    shape, size = flow.start.shape, flow.start[0].numel()
    signs = None if probes is None else _signs(key, probes, flow.start)

    def augmented(y: Tensor, t: float) -> Tensor:
        x = y[:, :-1].reshape(shape).requires_grad_()
        with torch.enable_grad():
            v = flow.velocity(x, t)
            div = _divergence(v, x, signs)
        return torch.cat([v.detach().flatten(1), div.unsqueeze(1)], 1)

    with torch.no_grad():
        y = torch.nn.functional.pad(flow.start.flatten(1), (0, 1))
        for t0, t1 in pairwise(flow.times):
            y = solver.step(augmented, y, t0, t1)
        x, integral = y[:, :-1] / flow.noise, y[:, -1]
        gaussian = -0.5 * x.square().sum(1) - size * math.log(flow.noise * math.sqrt(2.0 * math.pi))
        return gaussian + integral + flow.log_scale


def _check(estimator: FlowEstimator, net: Network, batch: Batch, key: Key, probes: int | None) -> None:
    check_network(estimator.required(batch.target.shape[1]), net.spec, type(estimator).__name__)
    check_batch(key, batch.target.shape[0], "batch.target")
    if not isinstance(estimator.noise, WhiteNoise):
        raise ValueError(f"the density needs an estimator with WhiteNoise, got {estimator.noise!r}")
    if key.members != 1:
        raise ValueError(f"expected one member in the key, got {key.members}")
    if probes is not None and probes < 1:
        raise ValueError(f"probes must be at least 1, or None for the exact trace, got {probes}")
    if bool(torch.isnan(batch.target).any()):
        raise ValueError("the target holds NaN: the density of a field with gaps is not known")


def _signs(key: Key, probes: int, like: Tensor) -> list[Tensor]:
    """Rademacher probes, the same at all times of one row."""
    draws = [
        WhiteNoise()
        .draw(key.sub("probe", i), tuple(like.shape[1:]), device=like.device, dtype=torch.float32)
        .squeeze(1)
        for i in range(probes)
    ]
    return [torch.where(draw < 0, -1.0, 1.0).to(like) for draw in draws]


def _divergence(v: Tensor, x: Tensor, signs: list[Tensor] | None) -> Tensor:
    """Trace of dv/dx per row (N,), exact or estimated."""
    if signs is not None:
        products = [
            (torch.autograd.grad(v, x, sign, retain_graph=True)[0] * sign).flatten(1).sum(1) for sign in signs
        ]
        return torch.stack(products).mean(0)
    flat = v.flatten(1)
    out = torch.zeros_like(flat[:, 0])
    for i in range(flat.shape[1]):
        (gradient,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)
        out = out + gradient.flatten(1)[:, i]
    return out.detach()
