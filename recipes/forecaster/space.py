"""The one place where physical fields become normalised ones and back."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """Normalised states and residuals; everything else in the forecaster sees only these.

    state: n = (x - mean) / std; residual over one step: y = ((n1 - n0) - shift) / scale.

    Attributes:
        mean, std: (C,) of the state, in the units of the channels.
        scale, shift: (C,) standard deviation and mean of the residual, in units of the normalised state.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor
    shift: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Physical (..., C, H, W) to normalised."""
        return (x - _column(self.mean)) / _column(self.std)

    def decode(self, n: Tensor) -> Tensor:
        """Normalised (..., C, H, W) to physical."""
        return n * _column(self.std) + _column(self.mean)

    def residual(self, n0: Tensor, n1: Tensor) -> Tensor:
        """Normalised residual between two normalised states, on any grid."""
        return ((n1 - n0) - _column(self.shift)) / _column(self.scale)

    def to(self, device: str) -> Space:
        """The same space on another device."""
        return Space(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def to_dict(self) -> dict[str, list[float]]:
        """JSON data."""
        return {name: getattr(self, name).tolist() for name in ("mean", "std", "scale", "shift")}

    @classmethod
    def from_dict(cls, data: dict[str, list[float]]) -> Space:
        """Inverse of `to_dict`."""
        return cls(**{name: torch.tensor(values) for name, values in data.items()})


def _column(values: Tensor) -> Tensor:
    return values[:, None, None]
