"""What this package needs from others, by structure only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

Cond = Mapping[str, Tensor]
"""Conditioning fields by name, each with leading dimension N.

`state` and `previous` are latent fields (N, C, h, w); `forcing` (N, A, h, w) is optional.
"""


class LeadKey(Protocol):
    """Names the randomness of the rows; the forecaster moves it along the lead time and selects rows."""

    def at_lead(self, lead: int, /) -> Self:
        """Returns the same key at autoregressive step `lead`."""
        ...

    def rows(self, selection: slice, /) -> Self:
        """Returns the key of some rows."""
        ...


KeyT_contra = TypeVar("KeyT_contra", bound=LeadKey, contravariant=True)


class LatentSampler(Protocol[KeyT_contra]):
    """Draws one normalised latent residual per row: an estimator bound to its network."""

    def sample(self, base: Tensor, cond: Cond, key: KeyT_contra, /) -> Tensor:
        """Returns r (N, C, h, w) given the current latent `base` (N, C, h, w)."""
        ...


class Projector(Protocol):
    """Maps a latent residual and the full state to the full-resolution residual."""

    def project(self, residual: Tensor, state: Tensor, forcing: Tensor | None, /) -> Tensor:
        """Returns the normalised residual (N, C, H, W) for r (N, C, h, w), x0 (N, C, H, W), (N, A, H, W)."""
        ...


class Forcing(Protocol):
    """Known fields of the time and the planet: solar zenith angle, orography, land-sea mask."""

    def at(self, valid_time: npt.NDArray[np.datetime64], /) -> Tensor:
        """Returns (N, A, H, W) for N valid times."""
        ...
