"""Weights and masks: one rule for every loss."""

from __future__ import annotations

import torch
from torch import Tensor

from ._types import LossOut


def point_weights(target: Tensor, weight: Tensor | None) -> Tensor:
    """Weights of the shape of `target`, zero where the target is NaN.

    Raises:
        ValueError: the weight does not broadcast to the target.
    """
    present = ~torch.isnan(target)
    if weight is None:
        return present.to(target.dtype)
    try:
        full = weight.to(target).expand_as(target)
    except RuntimeError:
        shapes = f"{tuple(weight.shape)} to {tuple(target.shape)}"
        raise ValueError(f"weight must broadcast to the target, cannot expand {shapes}") from None
    return torch.where(present, full, torch.zeros((), dtype=target.dtype, device=target.device))


def blank(x: Tensor, keep: Tensor) -> Tensor:
    """x with zeros (and no gradient) where `keep` is not positive, whatever stood there, NaN included."""
    return torch.where(keep > 0, x, torch.zeros((), dtype=x.dtype, device=x.device))


def space_sum(x: Tensor) -> Tensor:
    """(N, C, *S) -> (N, C)."""
    return x.reshape(x.shape[0], x.shape[1], -1).sum(-1)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where both vanish because everything is masked."""
    empty = denominator == 0
    return torch.where(empty, 0.0, numerator) / torch.where(empty, 1.0, denominator)


def reduce(
    numerator_NC: Tensor, count_NC: Tensor, members: Tensor | None = None, label_N: Tensor | None = None
) -> LossOut:
    """Loss from sums over space of w l and of w, per row and channel."""
    numerator, count = numerator_NC.sum(0), count_NC.sum(0)
    return LossOut(
        loss=ratio(numerator.sum(), count.sum()),
        per_channel=ratio(numerator, count).detach(),
        count=count.sum().detach(),
        row_sums=numerator_NC,
        row_counts=count_NC,
        label=label_N,
        members=members,
    )


def weighted_square_error(
    pred: Tensor, target: Tensor, weight: Tensor, label: Tensor | None = None
) -> LossOut:
    """sum(w (pred - target)^2) / sum(w); weight has the shape of pred and is zero at masked points."""
    error = blank(pred - target, weight).square() * weight
    return reduce(space_sum(error), space_sum(weight), label_N=label)
