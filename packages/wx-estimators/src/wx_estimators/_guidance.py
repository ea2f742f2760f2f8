"""Guidance as a network: sharper samples at a second network call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ._protocols import Network, NetworkSpec
from ._rows import check_network
from ._types import Cond, Key


@dataclass(frozen=True, eq=False)
class Guided:
    """F = F_weak + weight (F_strong - F_weak).

    The estimators make the same affine map of either network at a given x and time, so this guides denoiser,
    velocity, drift and score alike. Two forms: classifier-free guidance with weak = `Unconditional(strong,
    names)` (Ho and Salimans, arXiv 2207.12598), and autoguidance with a smaller or less trained weak network
    (Karras et al., arXiv 2406.02507). With a weight other than 1 samples leave the calibrated forecast law.

    Args:
        strong, weak: networks with equal `spec`.
        weight: 1 is the strong network alone and costs one call; any other value costs two.

    Raises:
        ValueError: the specifications differ.
    """

    strong: Network
    weak: Network
    weight: float

    def __post_init__(self) -> None:
        check_network(self.strong.spec, self.weak.spec, "Guided")

    @property
    def spec(self) -> NetworkSpec:
        """That of the strong network."""
        return self.strong.spec

    def predict(self, x: Tensor | None, cond: Cond, /, *, t: Tensor | None, noise: Tensor | None) -> Tensor:
        """See `Network.predict`."""
        strong = self.strong.predict(x, cond, t=t, noise=noise)
        if self.weight == 1.0:
            return strong
        weak = self.weak.predict(x, cond, t=t, noise=noise)
        return torch.lerp(weak, strong, self.weight)


@dataclass(frozen=True, eq=False)
class Unconditional:
    """A network that sees zeros in place of the named conditioning tensors; trained with `drop_condition`."""

    network: Network
    names: tuple[str, ...]

    @property
    def spec(self) -> NetworkSpec:
        """That of the network."""
        return self.network.spec

    def predict(self, x: Tensor | None, cond: Cond, /, *, t: Tensor | None, noise: Tensor | None) -> Tensor:
        """See `Network.predict`."""
        _check_names(cond, self.names)
        hidden = {k: torch.zeros_like(v) if k in self.names else v for k, v in cond.items()}
        return self.network.predict(x, hidden, t=t, noise=noise)


def drop_condition(
    cond: Mapping[str, Tensor], key: Key, /, *, names: tuple[str, ...], probability: float
) -> dict[str, Tensor]:
    """Zero the named tensors of randomly chosen rows together, so that the network learns both laws.

    Args:
        cond: conditioning tensors (B, ...).
        key: with one member, e.g. the key of the training step.
        names: what to drop. If zeros can be real data, give the network an extra tensor of ones to drop too.
        probability: of dropping a row; 0.1 to 0.2 is usual.

    Raises:
        ValueError: a name is not in cond, the probability is outside [0, 1], or the key does not fit.
    """
    _check_names(cond, names)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability must be inside [0, 1], got {probability}")
    if key.members != 1:
        raise ValueError(f"expected one member in the key, got {key.members}")
    keep = (key.sub("drop").uniform()[:, 0] >= probability).tolist()
    out = dict(cond)
    for name in names:
        value = cond[name]
        if value.shape[0] != len(keep):
            raise ValueError(f"cond[{name!r}] has {value.shape[0]} rows but the key has {len(keep)}")
        mask = torch.tensor(keep, device=value.device).reshape(-1, *[1] * (value.ndim - 1))
        out[name] = torch.where(mask, value, torch.zeros((), dtype=value.dtype, device=value.device))
    return out


def _check_names(cond: Cond, names: tuple[str, ...]) -> None:
    missing = sorted(set(names) - set(cond))
    if missing:
        raise ValueError(f"cond has no {missing}; it holds {sorted(cond)}")
