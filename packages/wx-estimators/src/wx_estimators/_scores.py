"""Ensemble scores: (B, M, C, *S) against (B, C, *S) -> (B, C), weighted means over space, lower is better.

All are proper. A score of single points (`CRPS`) leaves the joint law of the points free; `EnergyScore` and
`DifferenceCRPS` constrain it, alone or added in a `SumScore`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._protocols import EnsembleScore
from ._settings import read, write
from ._weights import blank, point_weights, ratio, space_sum

_LOOP_UP_TO = 8  # measured: faster than sorting, and half the memory traffic, up to about 8 members


def pair_factor(members: int, alpha: float) -> float:
    """Factor of sum_{i<j} |x_i - x_j|: alpha / (M (M - 1)) + (1 - alpha) / M^2."""
    if members < 2 and alpha > 0:
        raise ValueError(f"alpha = {alpha} needs at least 2 members, got {members}; alpha = 0 allows 1")
    fair = alpha / (members * (members - 1)) if members > 1 else 0.0
    return fair + (1.0 - alpha) / members**2


def _sum_pairs_loop(d: Tensor) -> Tensor:
    members = d.shape[1]
    total = torch.zeros_like(d[:, 0].abs())
    for i in range(members):
        for j in range(i + 1, members):
            total = total + (d[:, i] - d[:, j]).abs()
    return total


def _sum_pairs_sorted(d: Tensor) -> Tensor:
    members = d.shape[1]
    gaps = d.sort(dim=1).values.diff(dim=1)
    k = torch.arange(1, members, device=d.device, dtype=d.dtype)
    return torch.einsum("k,bk...->b...", k * (members - k), gaps)


def crps(pred: Tensor, target: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Almost-fair CRPS of every point: pred (B, M, *P), target (B, *P) -> (B, *P).

    CRPS_a = mean_i |x_i - y| - [a / (M (M - 1)) + (1 - a) / M^2] sum_{i<j} |x_i - x_j|

    a = 1 is the fair score, a = 0 the plain one, 0.95 that of AIFS-CRPS (arXiv 2412.15832). Everything is
    computed on x - y, so a large common offset costs no precision; above 8 members the pair sum is a sum of
    non-negative sorted gaps, O(M log M) time and O(M) memory. Complex values score by their modulus.

    Expectation when members and truth are N(0, s^2): s / sqrt(pi) (1 + (1 - a) / M). With a < 1 the optimal
    spread is below the true one, e.g. 0.952 of it for M = 2 and a = 0.95.
    """
    factor = pair_factor(pred.shape[1], alpha)
    d = pred - target.unsqueeze(1)
    sortable = pred.shape[1] > _LOOP_UP_TO and not d.is_complex()
    pairs = _sum_pairs_sorted(d) if sortable else _sum_pairs_loop(d)
    return d.abs().mean(1) - factor * pairs


def _check_alpha(alpha: float) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1] (0 plain, 1 fair), got {alpha}")


def _check_shapes(pred: Tensor, target: Tensor) -> None:
    if pred.ndim < 3 or pred.shape[:1] + pred.shape[2:] != target.shape:
        got = f"{tuple(pred.shape)} and {tuple(target.shape)}"
        raise ValueError(f"expected pred (B, M, C, *S) and target (B, C, *S), got {got}")


def _masked(pred: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """pred and target blanked where they do not count, and the weights of every point."""
    _check_shapes(pred, target)
    w = point_weights(target, weight)
    return blank(pred, w.unsqueeze(1)), blank(target, w), w


def _mean(values: Tensor, w: Tensor) -> Tensor:
    return ratio(space_sum(values * w), space_sum(w))


@dataclass(frozen=True, kw_only=True)
class CRPS:
    """Almost-fair CRPS of every point, see `crps`."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def score(self, pred: Tensor, target: Tensor, weight: Tensor | None, /) -> Tensor:
        """(B, C), see `EnsembleScore.score`."""
        pred, target, w = _masked(pred, target, weight)
        return _mean(crps(pred, target, alpha=self.alpha), w)

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return write(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CRPS:
        """Inverse of `to_dict`."""
        return read(cls, data)


@dataclass(frozen=True, kw_only=True)
class DifferenceCRPS:
    """CRPS of the differences x_p - x_q between points a fixed step apart: a score of the joint law.

    Args:
        steps: displacements along the trailing dimensions; the default pairs each point of (..., latitude,
            longitude) with its eastern and its southern neighbour. ((1,),) on (B, M, C) pairs channels.
        periodic: whether each of these trailing dimensions wraps round; otherwise pairs over the edge are
            left out.
        alpha: as in `crps`.

    The weight of a pair is the geometric mean of the weights of its points.
    """

    steps: tuple[tuple[int, ...], ...] = ((0, 1), (1, 0))
    periodic: tuple[bool, ...] = (False, True)
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        if not self.steps or any(len(step) != len(self.periodic) or not any(step) for step in self.steps):
            raise ValueError(
                "steps must be non-zero displacements with one entry per entry of periodic, "
                f"got steps = {self.steps} and periodic = {self.periodic}"
            )

    def score(self, pred: Tensor, target: Tensor, weight: Tensor | None, /) -> Tensor:
        """(B, C): mean over the steps, see `EnsembleScore.score`."""
        pred, target, w = _masked(pred, target, weight)
        if target.ndim - 1 < len(self.periodic):
            raise ValueError(
                f"steps have {len(self.periodic)} dimensions, target {tuple(target.shape)} too few"
            )
        total = [self._one(step, pred, target, w) for step in self.steps]
        return torch.stack(total).mean(0)

    def _one(self, step: tuple[int, ...], pred: Tensor, target: Tensor, w: Tensor) -> Tensor:
        dims = tuple(range(-len(step), 0))
        back = tuple(-n for n in step)
        pair = (w * torch.roll(w, back, dims)).sqrt() * self._inside(step, w)
        d_pred = blank(torch.roll(pred, back, dims) - pred, pair.unsqueeze(1))
        d_target = blank(torch.roll(target, back, dims) - target, pair)
        return _mean(crps(d_pred, d_target, alpha=self.alpha), pair)

    def _inside(self, step: tuple[int, ...], like: Tensor) -> Tensor:
        """1 where point + step stays in the domain, 0 where a dimension that is not periodic wraps."""
        inside = torch.ones((), dtype=like.dtype, device=like.device)
        for dim, (n, wraps) in enumerate(zip(step, self.periodic, strict=True), start=-len(step)):
            if not wraps:
                index = torch.arange(like.shape[dim], device=like.device) + n
                line = ((index >= 0) & (index < like.shape[dim])).to(like.dtype)
                inside = inside * line.reshape(-1, *[1] * (-1 - dim))
        return inside

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return write(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DifferenceCRPS:
        """Inverse of `to_dict`."""
        return read(cls, data)


@dataclass(frozen=True, kw_only=True)
class SpectralCRPS:
    """Score of the complex zonal Fourier coefficients of every row, for each coefficient by itself.

    The kernel is `crps` with the modulus of complex differences: an energy score of (real, imaginary), so
    phases count, unlike a score of amplitudes, and the origin of longitude does not, unlike a score of both
    parts one by one. The last dimension is a full latitude circle. Rows with a masked point are left out;
    other rows have the mean weight of their points. Coefficients are scaled so that a field of white noise
    scores as in `CRPS`, and count by their degrees of freedom: 1 if real, else 2.

    Args:
        alpha: as in `crps`.
        wavenumbers: keep zonal wavenumbers first..last, inclusive; default all.
    """

    alpha: float = 1.0
    wavenumbers: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        if self.wavenumbers is not None and not 0 <= self.wavenumbers[0] <= self.wavenumbers[1]:
            raise ValueError(
                f"wavenumbers must be (first, last) with 0 <= first <= last, got {self.wavenumbers}"
            )

    def score(self, pred: Tensor, target: Tensor, weight: Tensor | None, /) -> Tensor:
        """(B, C), see `EnsembleScore.score`."""
        pred, target, w = _masked(pred, target, weight)
        if target.ndim < 3:
            raise ValueError(f"SpectralCRPS needs a longitude dimension, got target {tuple(target.shape)}")
        value = crps(self._coefficients(pred), self._coefficients(target), alpha=self.alpha)
        freedom = self._freedom(target.shape[-1], value)
        # A complex normal of unit variance scores sqrt(pi / 8), a real one 1 / sqrt(pi).
        scale = torch.where(freedom == 2, math.sqrt(8.0) / math.pi, 1.0)
        row = w.mean(-1) * (w > 0).all(-1)
        return _mean((value * (scale * freedom / freedom.sum())).sum(-1), row)

    def _coefficients(self, x: Tensor) -> Tensor:
        first, last = self.wavenumbers or (0, x.shape[-1] // 2)
        coefficients: Tensor = torch.fft.rfft(x, dim=-1, norm="ortho")
        return coefficients[..., first : last + 1]

    def _freedom(self, longitudes: int, like: Tensor) -> Tensor:
        """Degrees of freedom of each coefficient: wavenumbers 0 and n/2 of a real field are real."""
        first = self.wavenumbers[0] if self.wavenumbers else 0
        k = first + torch.arange(like.shape[-1], device=like.device)
        return torch.where((k == 0) | (2 * k == longitudes), 1.0, 2.0).to(like.dtype)

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return write(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SpectralCRPS:
        """Inverse of `to_dict`."""
        return read(cls, data)


@dataclass(frozen=True, kw_only=True)
class EnergyScore:
    """Almost-fair energy score: `crps` with |v| replaced by a weighted root-mean-square norm.

    ES = mean_i ||x_i - y|| - [a / (M (M - 1)) + (1 - a) / M^2] sum_{i<j} ||x_i - x_j||,
    ||v||^2 = sum(w v^2) / sum(w).

    Args:
        alpha: as in `crps`.
        over: "all" takes the norm over channels and space (the result is equal for all channels), "space"
            over the space of each channel.
    """

    alpha: float = 1.0
    over: str = "all"

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        if self.over not in ("all", "space"):
            raise ValueError(f"over must be 'all' or 'space', got {self.over!r}")

    def score(self, pred: Tensor, target: Tensor, weight: Tensor | None, /) -> Tensor:
        """(B, C), see `EnsembleScore.score`."""
        pred, target, w = _masked(pred, target, weight)
        members = pred.shape[1]
        skill = torch.stack([self._norm(pred[:, i] - target, w) for i in range(members)]).mean(0)
        factor = pair_factor(members, self.alpha)
        pairs = torch.zeros_like(skill)
        for i in range(members):
            for j in range(i + 1, members):
                pairs = pairs + self._norm(pred[:, i] - pred[:, j], w)
        return (skill - factor * pairs).expand(target.shape[:2])

    def _norm(self, v: Tensor, w: Tensor) -> Tensor:
        square, count = space_sum(v.square() * w), space_sum(w)
        if self.over == "all":
            square, count = square.sum(1, keepdim=True), count.sum(1, keepdim=True)
        # The square root has no gradient at 0, where members that coincide are.
        return (ratio(square, count) + 1e-12).sqrt()

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return write(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EnergyScore:
        """Inverse of `to_dict`."""
        return read(cls, data)


@dataclass(frozen=True, kw_only=True)
class SumScore:
    """Weighted sum of scores, e.g. SumScore(terms=(CRPS(), DifferenceCRPS()), factors=(1.0, 0.2))."""

    terms: tuple[EnsembleScore, ...]
    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.terms or len(self.terms) != len(self.factors) or min(self.factors) < 0:
            raise ValueError(
                f"expected one non-negative factor per term, got {len(self.terms)} terms and {self.factors}"
            )

    def score(self, pred: Tensor, target: Tensor, weight: Tensor | None, /) -> Tensor:
        """(B, C), see `EnsembleScore.score`."""
        parts = [
            factor * term.score(pred, target, weight)
            for factor, term in zip(self.factors, self.terms, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return write(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SumScore:
        """Inverse of `to_dict`; terms are scores of this package."""
        return read(cls, data, SCORES)


SCORES: tuple[type[Any], ...] = (CRPS, DifferenceCRPS, SpectralCRPS, EnergyScore, SumScore)
