"""Coefficients of the interpolant a x0 + b x1 + s W_t, and the two ways to precondition a network on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._rows import column

Predict = Callable[[Tensor, Tensor], Tensor]
"""Network output for input (N, C, *S) and times (N,)."""


@dataclass(frozen=True)
class Bridge:
    """a = 1 - t, b = t^power, s = eps (1 - t); every method takes t in float64."""

    eps: float
    power: int

    def a(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def b(self, t: Tensor) -> Tensor:
        return t**self.power

    def db(self, t: Tensor) -> Tensor:
        return self.power * t ** (self.power - 1)

    def s(self, t: Tensor) -> Tensor:
        return self.eps * (1.0 - t)

    def wronskian(self, t: Tensor) -> Tensor:
        """b' s - b s' in its factored form, without the cancellation at t = 1."""
        return self.eps * t ** (self.power - 1) * (self.power - (self.power - 1) * t)

    def diffusion(self, t: float, foellmer: bool) -> float:
        """g(t): s(t), or the Föllmer choice g^2 = 2 t s (s b' / b - s') - s^2 of arXiv 2403.13724."""
        if not foellmer:
            return self.eps * (1.0 - t)
        return self.eps * math.sqrt((1.0 - t) * (1.0 + t if self.power == 1 else 3.0 - t))

    def foellmer_drift(self, drift: Tensor, x: Tensor, x0: Tensor, t: float) -> Tensor:
        """Drift of the process with the Föllmer diffusion, in closed form: no division by s.

        power 1: (1 + t) D - (x - x0). power 2 (t > 0 only): D + [t D - 2 x + (2 - t) x0] / [t (2 - t)].
        """
        if self.power == 1:
            return (1.0 + t) * drift - (x - x0)
        return drift + (t * drift - 2.0 * x + (2.0 - t) * x0) / (t * (2.0 - t))


@dataclass(frozen=True)
class GaussianPreconditioner:
    """Network learns what the best linear-Gaussian guess leaves open.

    With the guess x1 | x0 ~ N(m, q), m = slope x0, let xi = (x1 - m) / sqrt(q) and
    tan(theta) = s sqrt(t) / (b sqrt(q)). Then
        input   u = (x - a x0 - b m) / sqrt(b^2 q + s^2 t) = cos(theta) xi + sin(theta) z,
        target  F = sin(theta) xi - cos(theta) z,
        drift   D = a' x0 + b' m + k (x - a x0 - b m) + c_out F,
    k = (b b' q + s s' t) / (b^2 q + s^2 t), c_out = sqrt(t q) (b' s - b s') / sqrt(b^2 q + s^2 t).
    Input and target have unit variance at every t, and F = 0 is exactly the linear-Gaussian model. All
    factors are finite on [0, 1] once sqrt(t) is divided out of b sqrt(q) and s sqrt(t).
    """

    bridge: Bridge
    slope: Tensor
    variance: Tensor

    def _angle(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """cos(theta), sin(theta) and R = sqrt(b^2 q / t + s^2), each (N, C)."""
        along = t ** (self.bridge.power - 0.5) * self.variance.sqrt()
        across = self.bridge.s(t).expand_as(along)
        radius = torch.hypot(along, across)
        return along / radius, across / radius, radius

    def pair(self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Network input and target for times (N,)."""
        cos, sin, _ = self._angle(t.unsqueeze(1))
        xi = (x1 - column(self.slope, x1) * x0) / column(self.variance.sqrt(), x1)
        return rotate(column(cos, x1), column(sin, x1), xi, z)

    def drift(self, predict: Predict, x: Tensor, x0: Tensor, t: float, start: Callable[[], Tensor]) -> Tensor:
        """D at one time; at t = 0, where u is a pure noise, `start` gives it."""
        time = torch.full((1, 1), t, dtype=torch.float64)
        _, _, radius = self._angle(time)
        q, power = self.variance, self.bridge.power
        mean = self.bridge.a(time) + self.bridge.b(time) * self.slope
        away = x - column(mean, x) * x0
        u = away / column(math.sqrt(t) * radius, x) if t > 0 else start()
        f = predict(u, time.expand(x.shape[0], 1).squeeze(1))
        skip = (power * time ** (2 * power - 2) * q - self.bridge.eps * self.bridge.s(time)) / radius**2
        out = q.sqrt() * self.bridge.wronskian(time) / radius
        mean_slope = self.bridge.db(time) * self.slope - 1.0
        return column(mean_slope, x) * x0 + column(skip, x) * away + column(out, x) * f


@dataclass(frozen=True)
class AtlasPreconditioner:
    """D = a' x0 + c_O F(c_I x): the published form.

    c_O^2 = b'^2 sigma1^2 + s'^2 t; c_I^-2 = a^2 sigma0^2 + b^2 sigma1^2 + 2 a b rho sigma0 sigma1 + s^2 t.
    """

    bridge: Bridge
    base: Tensor
    target: Tensor
    correlation: Tensor

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_I and c_O for times (N, 1), each (N, C)."""
        p = self.bridge
        a, b, s, db = p.a(t), p.b(t), p.s(t), p.db(t)
        cross = 2.0 * a * b * self.correlation * self.base * self.target
        c_in = (a**2 * self.base**2 + b**2 * self.target**2 + cross + s**2 * t).rsqrt()
        return c_in, (db**2 * self.target**2 + p.eps**2 * t).sqrt()

    def pair(self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Network input and target for times (N,)."""
        p, t = self.bridge, t.unsqueeze(1)
        c_in, c_out = self._scales(t)
        w = column(t.sqrt(), z) * z
        x = column(p.a(t), x0) * x0 + column(p.b(t), x1) * x1 + column(p.s(t), w) * w
        target = (column(p.db(t), x1) * x1 - p.eps * w) / column(c_out, x1)
        return column(c_in, x) * x, target

    def drift(self, predict: Predict, x: Tensor, x0: Tensor, t: float, start: Callable[[], Tensor]) -> Tensor:
        """D at one time; `start` is not needed."""
        del start
        time = torch.full((1, 1), t, dtype=torch.float64)
        c_in, c_out = self._scales(time)
        f = predict(column(c_in, x) * x, time.expand(x.shape[0], 1).squeeze(1))
        return column(c_out, x) * f - x0


def rotate(cos: Tensor, sin: Tensor, xi: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """(cos xi + sin z, sin xi - cos z): a noisy input of unit variance and what it hides."""
    return cos * xi + sin * z, sin * xi - cos * z


def per_channel(name: str, value: float | tuple[float, ...]) -> Tensor:
    """(1, C) or (1, 1) float64 tensor of a setting that may differ by channel."""
    out = torch.as_tensor(value, dtype=torch.float64).reshape(1, -1)
    if not bool(torch.isfinite(out).all()):
        raise ValueError(f"{name} must be finite, got {value}")
    return out


def check_channels(name: str, value: float | tuple[float, ...], channels: int) -> None:
    """Raise ValueError unless a per-channel setting has one value per channel."""
    if isinstance(value, tuple) and len(value) not in (1, channels):
        raise ValueError(f"{name} has {len(value)} values for {channels} channels")
