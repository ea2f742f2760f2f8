"""Conversions between what denoising networks predict."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_Pair = tuple[Tensor, Tensor]

# Each prediction is A x1 + B z for x = alpha x1 + sigma z; the table holds (A, B).
_PREDICTIONS: dict[str, Callable[[Tensor, Tensor], _Pair]] = {
    "data": lambda alpha, sigma: (torch.ones_like(alpha), torch.zeros_like(sigma)),
    "noise": lambda alpha, sigma: (torch.zeros_like(alpha), torch.ones_like(sigma)),
    "v": lambda alpha, sigma: (-sigma, alpha),
    "score": lambda alpha, sigma: (torch.zeros_like(alpha), -1.0 / sigma),
    "flow": lambda alpha, sigma: (torch.ones_like(alpha), -torch.ones_like(sigma)),
}


def convert_prediction(
    prediction: Tensor, x: Tensor, *, given: str, wanted: str, alpha: float | Tensor, sigma: float | Tensor
) -> Tensor:
    """Convert an expected value given x = alpha x1 + sigma z, z ~ N(0, K).

    | name | value |
    |---|---|
    | "data" | x1, the denoised field |
    | "noise" | z |
    | "v" | alpha z - sigma x1 (Salimans and Ho, arXiv 2202.00512) |
    | "score" | -z / sigma, which is K grad log p |
    | "flow" | x1 - z, the velocity of the linear path alpha = t, sigma = 1 - t |

    EDM has alpha = 1. All are affine in each other at given x, so converting loses nothing.

    Args:
        prediction, x: (N, C, *S).
        given, wanted: names from the table.
        alpha, sigma: numbers, or one value per row (N,).

    Raises:
        ValueError: unknown name, or a level at which x and the prediction do not determine what is wanted
            (e.g. the noise from the data at sigma = 0).
    """
    for name in (given, wanted):
        if name not in _PREDICTIONS:
            raise ValueError(f"expected one of {', '.join(_PREDICTIONS)}, got {name!r}")
    if given == wanted:
        return prediction
    level = [torch.as_tensor(v, dtype=torch.float64) for v in (alpha, sigma)]
    al, si = torch.broadcast_tensors(*level)
    (a, b), (c, d) = _PREDICTIONS[given](al, si), _PREDICTIONS[wanted](al, si)
    det = al * b - si * a
    of_x, of_prediction = (c * b - d * a) / det, (al * d - si * c) / det
    if not bool((torch.isfinite(of_x) & torch.isfinite(of_prediction)).all()):
        raise ValueError(f"{wanted!r} does not follow from {given!r} at alpha = {alpha}, sigma = {sigma}")
    return _column(of_x, x) * x + _column(of_prediction, x) * prediction


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))
