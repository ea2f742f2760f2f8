"""Ensemble scores of pairs of points: they see the joint law that scores of points leave free."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._kernel import pair_factor, point_scores
from ._protocols import Total, alone
from ._scores import check_alpha, weighted_mean, weights_of
from ._settings import Settings
from ._weights import blank


def _check_steps(steps: tuple[tuple[int, ...], ...], periodic: tuple[bool, ...]) -> None:
    if not steps or any(len(step) != len(periodic) or not any(step) for step in steps):
        raise ValueError(
            "steps must be non-zero displacements with one entry per entry of periodic, "
            f"got steps = {steps} and periodic = {periodic}"
        )


def _inside(step: tuple[int, ...], periodic: tuple[bool, ...], like: Tensor) -> Tensor:
    """1 where point + step stays in the domain, 0 where a dimension that is not periodic wraps."""
    inside = torch.ones((), dtype=like.dtype, device=like.device)
    for dim, (n, wraps) in enumerate(zip(step, periodic, strict=True), start=-len(step)):
        if not wraps:
            index = torch.arange(like.shape[dim], device=like.device) + n
            line = ((index >= 0) & (index < like.shape[dim])).to(like.dtype)
            inside = inside * line.reshape(-1, *[1] * (-1 - dim))
    return inside


def _differences(
    step: tuple[int, ...], periodic: tuple[bool, ...], pred: Tensor, target: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x(point + step) - x(point) of pred and target, and the weight of each pair."""
    if target.ndim - 1 < len(periodic):
        raise ValueError(f"steps have {len(periodic)} dimensions, target {tuple(target.shape)} too few")
    dims, back = tuple(range(-len(step), 0)), tuple(-n for n in step)
    pair = (w * torch.roll(w, back, dims)).sqrt() * _inside(step, periodic, w)
    return torch.roll(pred, back, dims) - pred, torch.roll(target, back, dims) - target, pair


@dataclass(frozen=True, kw_only=True)
class DifferenceCRPS(Settings):
    """CRPS of the differences x_p - x_q between points a fixed step apart: a score of the joint law.

    Proper, and lowest exactly where the law of every difference is right; added to a `CRPS` of points that
    fixes the covariance of each pair.

    Args:
        steps: displacements along the trailing dimensions; the default pairs each point of (..., latitude,
            longitude) with its eastern and its southern neighbour. ((1,),) on (B, M, C) pairs channels.
        periodic: whether each of these trailing dimensions wraps round; otherwise pairs over the edge are
            left out.
        alpha: as in `crps`.

    The weight of a pair is the geometric mean of the weights of its points. On a grid that is spread over
    ranks, pairs across ranks are left out: only a dimension that lies on one rank may be periodic.
    """

    steps: tuple[tuple[int, ...], ...] = ((0, 1), (1, 0))
    periodic: tuple[bool, ...] = (False, True)
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        _check_steps(self.steps, self.periodic)

    def score(
        self, pred: Tensor, target: Tensor, weight: Tensor | None, /, *, total: Total = alone
    ) -> Tensor:
        """(B, C): mean over the steps, see `EnsembleScore.score`."""
        w = weights_of(pred, target, weight)
        return torch.stack([self._one(step, pred, target, w, total) for step in self.steps]).mean(0)

    def _one(self, step: tuple[int, ...], pred: Tensor, target: Tensor, w: Tensor, total: Total) -> Tensor:
        d_pred, d_target, pair = _differences(step, self.periodic, pred, target, w)
        return weighted_mean(point_scores(d_pred, d_target, pair > 0, self.alpha), pair, total)


@dataclass(frozen=True, kw_only=True)
class EdgeCRPS(Settings):
    """CRPS of the differences x_p - x_q over the edges of a graph, on any arrangement of points.

    Args:
        edges: (p, q) point numbers; points of several dimensions are numbered row by row.
        alpha: as in `crps`.

    The weight of an edge is the geometric mean of the weights of its points.
    """

    edges: tuple[tuple[int, int], ...]
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if not self.edges or any(len(edge) != 2 or min(edge) < 0 for edge in self.edges):
            raise ValueError("edges must be pairs of point numbers, at least one")

    def score(
        self, pred: Tensor, target: Tensor, weight: Tensor | None, /, *, total: Total = alone
    ) -> Tensor:
        """(B, C): mean over the edges, see `EnsembleScore.score`."""
        w = weights_of(pred, target, weight).flatten(2)
        p, q = torch.tensor(self.edges, device=pred.device).unbind(1)
        if int(max(max(edge) for edge in self.edges)) >= w.shape[2]:
            raise ValueError(f"edges name points beyond the {w.shape[2]} points of target")
        x, y, pair = pred.flatten(3), target.flatten(2), (w[..., p] * w[..., q]).sqrt()
        values = point_scores(x[..., p] - x[..., q], y[..., p] - y[..., q], pair > 0, self.alpha)
        return weighted_mean(values, pair, total)


@dataclass(frozen=True, kw_only=True)
class VariogramScore(Settings):
    """Variogram score of order p over pairs of points a fixed step apart (Scheuerer and Hamill 2015).

    VS = (mean_i |x_i,p - x_i,q|^power - |y_p - y_q|^power)^2 - a s^2 / M, s^2 the sample variance of
    |x_i,p - x_i,q|^power over the members: with a = 1 the expectation does not depend on M (fair).

    Proper but not strictly: it sees only the mean of |x_p - x_q|^power. Scales like x^(2 power). |v| is
    sqrt(v^2 + 1e-12), which has a gradient at 0.

    Args:
        power: order p, 0.5 is the usual choice.
        steps, periodic: as in `DifferenceCRPS`.
        alpha: 1 fair, 0 plain.
    """

    power: float = 0.5
    steps: tuple[tuple[int, ...], ...] = ((0, 1), (1, 0))
    periodic: tuple[bool, ...] = (False, True)
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        _check_steps(self.steps, self.periodic)
        if not self.power > 0:
            raise ValueError(f"power must be positive, got {self.power}")

    def score(
        self, pred: Tensor, target: Tensor, weight: Tensor | None, /, *, total: Total = alone
    ) -> Tensor:
        """(B, C): mean over the steps, see `EnsembleScore.score`."""
        pair_factor(pred.shape[1], self.alpha)  # one member has no variance
        w = weights_of(pred, target, weight)
        return torch.stack([self._one(step, pred, target, w, total) for step in self.steps]).mean(0)

    def _one(self, step: tuple[int, ...], pred: Tensor, target: Tensor, w: Tensor, total: Total) -> Tensor:
        d_pred, d_target, pair = _differences(step, self.periodic, pred, target, w)
        v = self._variation(blank(d_pred, pair.unsqueeze(1)))
        error = v.mean(1) - self._variation(blank(d_target, pair))
        value = error.square()
        if self.alpha > 0:
            value = value - self.alpha / v.shape[1] * v.var(1)
        return weighted_mean(value, pair, total)

    def _variation(self, v: Tensor) -> Tensor:
        return (v.square() + 1e-12).pow(self.power / 2)
