"""Ensemble scores of spectral coefficients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ._kernel import point_scores
from ._protocols import SpectralAnalysis, Total, alone
from ._scores import check_alpha, weighted_mean, weights_of
from ._settings import Settings
from ._weights import blank

# What makes a coefficient of white noise score 1 / sqrt(pi), like a point: E |x - y| / 2 is sqrt(pi / 8) for
# a complex normal of unit variance and 1 / sqrt(2 pi) for each of its parts.
_COMPLEX_SCALE = {"complex": math.sqrt(8.0) / math.pi, "parts": math.sqrt(0.5), "amplitude": 1.0}


@dataclass(frozen=True, kw_only=True)
class SpectralCRPS(Settings):
    """CRPS of spectral coefficients, each by itself, weighted by Parseval: a score by scale.

    Coefficients a_k of freedom f_k (1 if real, 2 if complex) are scaled so that the mean square of the field
    is sum(f_k |a_k|^2) / sum(f_k); the score is the mean with weights f_k. White noise scores as in `CRPS`.

    Without a transform these are the zonal Fourier coefficients of every row: the last dimension is a full
    latitude circle. Rows with a masked point are left out; other rows have the mean weight of their points.
    With a transform a field with a masked point is left out as a whole, and weights count in no other way:
    the transform has its own quadrature. On a grid that is spread over ranks, rows lie within a rank, and a
    transform communicates as it needs to and returns each coefficient on one rank.

    Args:
        alpha: as in `crps`.
        wavenumbers: keep coefficients first..last of the last dimension, inclusive; default all.
        kernel: "complex" scores by the modulus of differences, an energy score of (real, imaginary): phases
            count, and the origin of longitude does not. "parts" scores real and imaginary parts one by one,
            O(M log M), but depends on the origin. "amplitude" scores |a_k|, blind to phases: proper for
            amplitudes, so only of use next to another score.
        transform: e.g. a spherical harmonic transform; not part of `to_dict`.
    """

    alpha: float = 1.0
    wavenumbers: tuple[int, int] | None = None
    kernel: str = "complex"
    transform: SpectralAnalysis | None = None
    _runtime: ClassVar[tuple[str, ...]] = ("transform",)

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.wavenumbers is not None and not 0 <= self.wavenumbers[0] <= self.wavenumbers[1]:
            raise ValueError(
                f"wavenumbers must be (first, last) with 0 <= first <= last, got {self.wavenumbers}"
            )
        if self.kernel not in _COMPLEX_SCALE:
            raise ValueError(f"kernel must be one of {sorted(_COMPLEX_SCALE)}, got {self.kernel!r}")
        if self.transform is not None and self.wavenumbers is not None:
            raise ValueError("wavenumbers choose Fourier coefficients: a transform chooses its own")

    def score(
        self, pred: Tensor, target: Tensor, weight: Tensor | None, /, *, total: Total = alone
    ) -> Tensor:
        """(B, C), see `EnsembleScore.score`."""
        w = weights_of(pred, target, weight)
        if target.ndim < 3:
            raise ValueError(f"SpectralCRPS needs a longitude dimension, got target {tuple(target.shape)}")
        # Coefficients of the difference are the difference of coefficients, at the precision of x - y.
        d = blank(pred - target.unsqueeze(1), w.unsqueeze(1))
        if self.kernel == "amplitude":
            y = blank(target, w)
            x, y = self._coefficients(d + y.unsqueeze(1)).abs(), self._coefficients(y).abs()
        else:
            x = self._coefficients(d)
            y = torch.zeros_like(x[:, 0])
        freedom = self._freedom(target.shape[-1], x)
        scale = torch.ones_like(freedom).masked_fill_(freedom == 2, _COMPLEX_SCALE[self.kernel])
        value = self._values(x, y) * scale
        if self.transform is None:
            row = w.mean(-1) * (w > 0).all(-1)
            return weighted_mean((value * (freedom / freedom.sum())).sum(-1), row, total)
        missing = total((w <= 0).flatten(2).sum(-1).to(w))
        return weighted_mean(value, freedom.expand_as(value), total) * (missing == 0)

    def _values(self, x: Tensor, y: Tensor) -> Tensor:
        if self.kernel != "parts":
            return point_scores(x, y, None, self.alpha)
        x, y = torch.view_as_real(x), torch.view_as_real(y)
        return point_scores(x, y, None, self.alpha).sum(-1)

    def _coefficients(self, x: Tensor) -> Tensor:
        if self.transform is not None:
            return self.transform.analyse(x)
        first, last = self.wavenumbers or (0, x.shape[-1] // 2)
        if first > x.shape[-1] // 2:
            raise ValueError(f"wavenumbers {self.wavenumbers} begin beyond those of {x.shape[-1]} points")
        coefficients: Tensor = torch.fft.rfft(x, dim=-1, norm="ortho")
        return coefficients[..., first : last + 1]

    def _freedom(self, longitudes: int, like: Tensor) -> Tensor:
        """Degrees of freedom of each coefficient: wavenumbers 0 and n/2 of a real field are real."""
        if self.transform is not None:
            return self.transform.freedom.to(like.real)
        first = self.wavenumbers[0] if self.wavenumbers else 0
        k = first + torch.arange(like.shape[-1], device=like.device)
        return torch.where((k == 0) | (2 * k == longitudes), 1.0, 2.0).to(like.real.dtype)
