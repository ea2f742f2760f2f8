"""Deterministic regression: the baseline with the same interface."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._protocols import Network
from ._rows import call, check_batch, check_network, sample_rows
from ._settings import Settings
from ._types import Batch, Cond, Key, LossOut, NetSpec
from ._weights import blank, point_weights, reduce, space_sum, weighted_square_error


@dataclass(frozen=True, kw_only=True)
class Regression(Settings):
    """One network call; every member is the same forecast.

    Args:
        error: "square", whose minimiser is the conditional mean, or "absolute", the conditional median.
    """

    error: str = "square"

    def __post_init__(self) -> None:
        if self.error not in ("square", "absolute"):
            raise ValueError(f"error must be 'square' or 'absolute', got {self.error!r}")

    @property
    def calls_per_sample(self) -> int:
        """Network evaluations per member (and for any number of members)."""
        return 1

    def required(self, out_channels: int) -> NetSpec:
        """The network this estimator needs."""
        return NetSpec(out_channels=out_channels, takes_x=False, takes_t=False, noise=None)

    def loss(self, net: Network, batch: Batch, key: Key) -> LossOut:
        """Weighted mean error; the members of the key are not used."""
        check_network(self.required(batch.target.shape[1]), net.spec, "Regression")
        check_batch(key, batch.target.shape[0], "batch.target")
        f = call(net, None, batch.cond, None, None, batch.target)
        weight = point_weights(batch.target, batch.weight)
        if self.error == "square":
            return weighted_square_error(f, batch.target, weight)
        return reduce(space_sum(blank(f - batch.target, weight).abs() * weight), space_sum(weight))

    def sample(
        self, net: Network, base: Tensor, cond: Cond, key: Key, /, *, chunk: int | None = None
    ) -> Tensor:
        """The forecast, repeated: (B, M, C, *S), at most `chunk` rows at a time."""
        check_network(self.required(net.spec.out_channels), net.spec, "Regression")
        one = replace(key, member=torch.zeros_like(key.member[..., :1]))
        out = sample_rows(lambda b, c, _: call(net, None, c, None, None, b), base, cond, one, chunk)
        return out.repeat_interleave(key.members, 1)
