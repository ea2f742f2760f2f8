"""Consistency models: the end of the denoising flow in one to a few network calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ._edm import NoisyPair, denoiser, noise_label, noisy_pair
from ._field import Field, Table, solver_dtype
from ._laws import SIGMA_LAWS, LogNormal
from ._noise import NOISES, WhiteNoise
from ._path import check_channels, check_scale, per_channel
from ._protocols import Law, Network, NoiseSource
from ._rows import call, check_batch, check_network, cond_rows, sample_rows, to_rows
from ._settings import Settings
from ._types import Batch, Cond, Key, LossOut, NetSpec
from ._weights import blank, point_weights, ratio, space_sum, weighted_square_error


@dataclass(frozen=True, kw_only=True)
class Consistency(Settings):
    """Few-step sampler: D(x, sigma) is where the denoising flow through (x, sigma) ends.

    sCM (Lu and Song, arXiv 2410.11081); for weather Swift (arXiv 2509.25631). The network is that of `EDM`,
    with the same input, label and D, so that weights trained by `EDM` are the teacher and the start. With
    tan(theta) = sigma / sigma_data, u = cos xi + sin z the input and D = sigma_data (cos u + sin F), the loss
    is |F - stop(F) + g / (rms(g) + floor)|^2 with the tangent
        g = cos^2 (F + u') - warmup (cos sin u - dF/dln(sigma)),
    which for warmup 1 is (dD/dln(sigma)) / (sigma_data sin) along u' = du/dtheta: minus the teacher's output,
    or without a teacher cos z - sin xi of the sample. Its value is the mean square of the normalised tangent,
    near 1 throughout: judge a training by scores of samples. A step costs a forward derivative (without a
    graph) and a forward and backward pass, and a call of the teacher. Label features must be smooth: high
    frequencies of the label make dF/dln(sigma) rough.

    Args:
        steps: network calls of a sample; noise is added anew between them.
        sigma_max: noise level of the first.
        between: levels of the others, steps - 1 falling numbers; None: 2 tan(pi (steps - n) / (2 steps))
            times the root mean square of sigma_data, n = 1.. (for two steps 2, the paper's theta of 1.1).
        sigma_data: as for the `EDM` that trained the teacher.
        training: law of sigma in training; it must reach sigma_max, where every sample starts.
        teacher: network trained by `EDM`, in evaluation mode, or None to train without. A run-time object:
            not part of `to_dict`.
        warmup: 0 learns F (a flow), 1 is the consistency loss. Settings are constant, so that the loss is a
            function of its arguments: a training raises it by `replace(estimator, warmup=min(1, step /
            10_000))`.
        floor: c of the normalisation of the tangent, whose rms is over channels and points of a row. With few
            of them take 1: a direction alone is a noisy gradient.
        noise: source of the noise.
        double: sampler state in float64; the network still gets the dtype of the base.
    """

    steps: int = 2
    sigma_max: float = 20.0
    between: tuple[float, ...] | None = None
    sigma_data: float | tuple[float, ...] = 1.0
    training: Law = field(default_factory=lambda: LogNormal(mean=-0.4, std=1.6))
    teacher: Network | None = field(default=None, repr=False)
    warmup: float = 1.0
    floor: float = 0.1
    noise: NoiseSource = field(default_factory=WhiteNoise)
    double: bool = False
    _runtime: ClassVar[tuple[str, ...]] = ("teacher",)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        check_scale("sigma_data", self.sigma_data)
        if not 0.0 <= self.warmup <= 1.0:
            raise ValueError(f"warmup must be inside [0, 1], got {self.warmup}")
        if not 0.0 < self.floor < math.inf:
            raise ValueError(f"floor must be positive, got {self.floor}")
        levels = self.levels()
        falling = all(high > low for high, low in zip(levels, [*levels[1:], 0.0], strict=True))
        if len(levels) != self.steps or not falling or levels[0] == math.inf:
            raise ValueError(
                f"{self.steps} steps need sigma_max and {self.steps - 1} falling positive levels below it "
                f"in `between`, got {levels}"
            )

    @property
    def calls_per_sample(self) -> int:
        """Network evaluations per member."""
        return self.steps

    def levels(self) -> list[float]:
        """Noise level of every network call."""
        if self.between is not None:
            return [self.sigma_max, *self.between]
        scale = float(per_channel("sigma_data", self.sigma_data).square().mean().sqrt())
        angles = [math.pi * (self.steps - n) / (2 * self.steps) for n in range(1, self.steps)]
        return [self.sigma_max, *(2.0 * scale * math.tan(angle) for angle in angles)]

    def required(self, out_channels: int) -> NetSpec:
        """The network this estimator trains; for `sample` alone it need not support forward derivatives."""
        check_channels("sigma_data", self.sigma_data, out_channels)
        return NetSpec(out_channels=out_channels, takes_x=True, takes_t=True, noise=None, supports_jvp=True)

    def loss(self, net: Network, batch: Batch, key: Key) -> LossOut:
        """Weighted mean square of the normalised tangent, one noise level per (row, member).

        Attention by `scaled_dot_product_attention` is differentiated forwards by its plain (math) kernel.

        Raises:
            ValueError: network or teacher do not fit, or a forward derivative of the network does not exist.
        """
        needed = self.required(batch.target.shape[1])
        check_network(needed, net.spec, "Consistency")
        _check_jvp(net)
        if self.teacher is not None:
            check_network(needed, self.teacher.spec, "the teacher of Consistency")
        check_batch(key, batch.target.shape[0], "batch.target")
        cond, m = cond_rows(batch.cond, key.members), key.members
        pair = noisy_pair(self.training, self.noise, self.sigma_data, batch.target, key)
        weight = to_rows(point_weights(batch.target, batch.weight), m)
        with torch.no_grad():
            g = blank(tangent(net, pair, self._velocity(pair, cond), cond, self.warmup), weight)
            g = g / (_row_rms(g, weight) + self.floor)
        f = call(net, pair.x, cond, pair.label, None, pair.x)
        return weighted_square_error(f, f.detach() - g, weight, pair.label)

    def sample(
        self, net: Network, base: Tensor, cond: Cond, key: Key, /, *, chunk: int | None = None
    ) -> Tensor:
        """Denoise: (B, M, C, *S), at most `chunk` rows at a time; of the base only the shape is used.

        A key gives the first call the noise from which `EDM` starts: the members of both are comparable.
        """
        check_network(self.required(net.spec.out_channels), net.spec, "Consistency")
        table = Table(
            lambda sigma: denoiser(sigma, self.sigma_data), base[:0].to(solver_dtype(base, self.double))
        )
        return sample_rows(
            lambda b, c, k: self._run(net, table, b, c, k), base, cond, key.sub("sample"), chunk
        )

    @classmethod
    def _parts(cls) -> tuple[type[Any], ...]:
        return (*NOISES, *SIGMA_LAWS)

    def _velocity(self, pair: NoisyPair, cond: Cond) -> Tensor:
        """du/dtheta along the flow."""
        if self.teacher is None:
            return -pair.truth
        return -call(self.teacher, pair.x, cond, pair.label, None, pair.x)

    def _run(self, net: Network, table: Table, base: Tensor, cond: Cond, key: Key) -> Tensor:
        """One member per row."""
        shape, dtype = (net.spec.out_channels, *base.shape[2:]), solver_dtype(base, self.double)

        def unit(k: Key) -> Tensor:
            return self.noise.draw(k, shape, device=base.device, dtype=dtype).squeeze(1)

        denoise = Field(net, cond, base, table, label=noise_label, dtype=base.dtype)
        first, *others = self.levels()
        x = denoise(first * unit(key.sub("start")), first)
        for n, sigma in enumerate(others, 1):
            x = denoise(torch.add(x, unit(key.sub("again", n)), alpha=sigma), sigma)
        return x.to(base.dtype)


def tangent(net: Network, pair: NoisyPair, velocity: Tensor, cond: Cond, warmup: float) -> Tensor:
    """g of `Consistency`: free of division, with dF/dln(sigma) by forward differentiation.

    Along the flow du/dln(sigma) = sin cos du/dtheta, in every channel at its own theta, and the label grows
    by 1/4.
    """
    mixed = pair.sin * pair.cos

    def predict(x: Tensor, label: Tensor) -> Tensor:
        return net.predict(x, cond, t=label, noise=None)

    directions = mixed * velocity, torch.full_like(pair.label, 0.25)
    try:
        # Fused attention has no forward derivative; the plain kernel computes the same function.
        with sdpa_kernel(SDPBackend.MATH):
            f, df = torch.func.jvp(predict, (pair.x, pair.label), directions)[:2]
    except (NotImplementedError, RuntimeError) as error:
        if not any(phrase in str(error) for phrase in _TORCH_SAYS):
            raise
        raise ValueError(_NO_JVP) from error
    g: Tensor = pair.cos.square() * (f + velocity) - warmup * (mixed * pair.x - df)
    return g


_TORCH_SAYS = ("forward AD", "forward mode AD", "functorch transforms")
_NO_JVP = (
    "Consistency differentiates the network forwards, with torch.func.jvp; fused attention called directly "
    "and custom autograd functions without `jvp` have no forward derivative: use "
    "F.scaled_dot_product_attention and plain operations"
)


def _check_jvp(net: Network) -> None:
    if not getattr(net.spec, "supports_jvp", False):
        raise ValueError(
            f"this network's spec does not say supports_jvp = True. {_NO_JVP}; once torch.func.jvp agrees "
            "with a finite difference of `predict`, set NetSpec(supports_jvp=True)"
        )


def _row_rms(g: Tensor, weight: Tensor) -> Tensor:
    """Weighted root mean square over channels and points, (N, 1, ...)."""
    square = ratio(space_sum(g.square() * weight).sum(1), space_sum(weight).sum(1))
    return square.sqrt().reshape(-1, *[1] * (g.ndim - 1))
