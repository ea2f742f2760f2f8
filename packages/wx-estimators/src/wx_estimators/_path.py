"""Interpolation paths a x0 + b x1 + s W, and the two ways to precondition a network on a bridge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ._field import Affine, affine
from ._rows import column
from ._settings import Settings


class Coeff(NamedTuple):
    """Factors of x0, x1 and the noise, and their derivatives in t, all float64."""

    a: Tensor
    b: Tensor
    s: Tensor
    da: Tensor
    db: Tensor
    ds: Tensor


class Path(Protocol):
    """A path a x0 + b x1 + s (noise), t in [0, 1], from the base at 0 to the data at 1."""

    def coeff(self, t: Tensor, /) -> Coeff:
        """Factors at times t (float64, any shape)."""
        ...


@dataclass(frozen=True)
class LinearPath(Settings):
    """x_t = (1 - t) z + t x1: the conditional optimal transport path of flow matching (arXiv 2210.02747)."""

    def coeff(self, t: Tensor, /) -> Coeff:
        """See `Path.coeff`."""
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        return Coeff(zero, t, 1.0 - t, zero, one, -one)


@dataclass(frozen=True)
class TrigPath(Settings):
    """x_t = cos(pi t / 2) z + sin(pi t / 2) x1: variance preserving for targets of unit variance."""

    def coeff(self, t: Tensor, /) -> Coeff:
        """See `Path.coeff`."""
        rate = math.pi / 2
        # cos as a sine: exactly 0 at t = 1.
        sin, cos, zero = torch.sin(rate * t), torch.sin(rate * (1.0 - t)), torch.zeros_like(t)
        return Coeff(zero, sin, cos, zero, rate * cos, -rate * sin)


FLOW_PATHS: tuple[type[Any], ...] = (LinearPath, TrigPath)


@dataclass(frozen=True)
class Bridge:
    """From a point x0: a = 1 - t, b = t^power, s = eps (1 - t), noise W_t = sqrt(t) z."""

    eps: float
    power: int

    def coeff(self, t: Tensor, /) -> Coeff:
        """See `Path.coeff`."""
        one = torch.ones_like(t)
        db = self.power * t ** (self.power - 1)
        return Coeff(1.0 - t, t**self.power, self.eps * (1.0 - t), -one, db, -self.eps * one)

    def wronskian(self, t: Tensor) -> Tensor:
        """b' s - b s' in its factored form, without the cancellation at t = 1."""
        return self.eps * t ** (self.power - 1) * (self.power - (self.power - 1) * t)

    def diffusion(self, t: float, choice: str) -> float:
        """g(t) of arXiv 2403.13724: "sigma" g = s; "foellmer" g^2 = 2 t s (s b' / b - s') - s^2."""
        if choice == "sigma":
            return self.eps * (1.0 - t)
        return self.eps * math.sqrt((1.0 - t) * (1.0 + t if self.power == 1 else 3.0 - t))

    def foellmer(self, d: Affine, t: float) -> Affine:
        """Drift for the Föllmer diffusion from the drift D for g = s, in closed form: no division by s.

        power 1: (1 + t) D - (x - x0). power 2 (t > 0 only): D + [t D - 2 x + (2 - t) x0] / [t (2 - t)].
        """
        if self.power == 1:
            return d.mixed(1.0 + t, -1.0, 1.0)
        over = t * (2.0 - t)
        return d.mixed(1.0 + t / over, -2.0 / over, (2.0 - t) / over)

    def flow(self, d: Affine, tau: float) -> Affine:
        """Probability flow (g = 0) of y = (x - x0) / tau in tau = sqrt(t): regular on all of [0, 1].

        With D_0 = D - s^2 / 2 times the score, dy/dtau = 2 D_0 - y / tau. power 1: (1 + t) D - tau y.
        power 2: [(3 - t) D - tau y + (1 - t) x0] / (2 - t). It starts from y = eps z at tau = 0.
        """
        t = tau * tau
        x_in, base_in = tau * d.x_in, d.base_in + d.x_in
        if tau == 0.0:  # Gaussian preconditioning: the limit of (x - x0) / (eps sqrt(t))
            x_in = torch.where(base_in == 0.0, 1.0 / self.eps, x_in)
        y = Affine(x_in, base_in, tau * d.x_out, d.base_out + d.x_out, d.net_out)
        if self.power == 1:
            return y.mixed(1.0 + t, -tau)
        return y.mixed((3.0 - t) / (2.0 - t), -tau / (2.0 - t), (1.0 - t) / (2.0 - t))


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
        across = self.bridge.coeff(t).s.expand_as(along)
        radius = torch.hypot(along, across)
        return along / radius, across / radius, radius

    def pair(self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Network input and target for times (N,)."""
        cos, sin, _ = self._angle(t.unsqueeze(1))
        xi = (x1 - column(self.slope, x1) * x0) / column(self.variance.sqrt(), x1)
        return rotate(column(cos, x1), column(sin, x1), xi, z)

    def drift(self, t: float) -> Affine:
        """D at one time; at t = 0 the input is a pure noise, which x and x0 do not enter."""
        time = torch.full((1, 1), t, dtype=torch.float64)
        c, q, power = self.bridge.coeff(time), self.variance, self.bridge.power
        _, _, radius = self._angle(time)
        mean = c.a + c.b * self.slope
        c_in = 1.0 / (math.sqrt(t) * radius) if t > 0 else torch.zeros_like(radius)
        skip = (power * time ** (2 * power - 2) * q + c.s * c.ds) / radius**2
        out = q.sqrt() * self.bridge.wronskian(time) / radius
        return affine(c_in, -c_in * mean, skip, c.da + c.db * self.slope - skip * mean, out)


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
        c = self.bridge.coeff(t)
        cross = 2.0 * c.a * c.b * self.correlation * self.base * self.target
        c_in = (c.a**2 * self.base**2 + c.b**2 * self.target**2 + cross + c.s**2 * t).rsqrt()
        return c_in, (c.db**2 * self.target**2 + c.ds**2 * t).sqrt()

    def pair(self, t: Tensor, x0: Tensor, x1: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Network input and target for times (N,)."""
        t = t.unsqueeze(1)
        c, (c_in, c_out) = self.bridge.coeff(t), self._scales(t)
        w = column(t.sqrt(), z) * z
        x = column(c.a, x0) * x0 + column(c.b, x1) * x1 + column(c.s, w) * w
        target = (column(c.db, x1) * x1 + column(c.ds, w) * w) / column(c_out, x1)
        return column(c_in, x) * x, target

    def drift(self, t: float) -> Affine:
        """D at one time."""
        c_in, c_out = self._scales(torch.full((1, 1), t, dtype=torch.float64))
        return affine(c_in, 0.0, 0.0, -1.0, c_out)


def rotate(cos: Tensor, sin: Tensor, xi: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """(cos xi + sin z, sin xi - cos z): a noisy input of unit variance and what it hides."""
    return cos * xi + sin * z, sin * xi - cos * z


def per_channel(name: str, value: float | tuple[float, ...]) -> Tensor:
    """(1, C) or (1, 1) float64 tensor of a setting that may differ by channel."""
    out = torch.as_tensor(value, dtype=torch.float64).reshape(1, -1)
    if not bool(torch.isfinite(out).all()):
        raise ValueError(f"{name} must be finite, got {value}")
    return out


def check_scale(name: str, value: float | tuple[float, ...]) -> None:
    """Raise ValueError unless a per-channel setting is positive."""
    if bool((per_channel(name, value) <= 0).any()):
        raise ValueError(f"{name} must be positive, got {value}")


def check_channels(name: str, value: float | tuple[float, ...], channels: int) -> None:
    """Raise ValueError unless a per-channel setting has one value per channel."""
    if isinstance(value, tuple) and len(value) not in (1, channels):
        raise ValueError(f"{name} has {len(value)} values for {channels} channels")
