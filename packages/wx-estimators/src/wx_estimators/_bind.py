"""An estimator and its network as one sampler."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._protocols import Estimator, Network
from ._types import Cond, Key


@dataclass(frozen=True, kw_only=True, eq=False)
class BoundSampler:
    """An estimator bound to a network: draws one member per row. Made by `bind`."""

    estimator: Estimator
    network: Network
    chunk: int | None = None
    grad: bool = False

    def sample(self, base: Tensor, cond: Cond, key: Key, /) -> Tensor:
        """Draw (N, C, *S) for base (N, C, *S), cond (N, ...) and a key with one member per row.

        Raises:
            ValueError: the key names several members per row; fold them with `key.rows()`.
        """
        if key.members != 1:
            raise ValueError(
                f"expected one member per row, key.member is {tuple(key.member.shape)}: use key.rows()"
            )
        with torch.set_grad_enabled(self.grad and torch.is_grad_enabled()):
            return self.estimator.sample(self.network, base, cond, key, chunk=self.chunk).squeeze(1)


def bind(
    estimator: Estimator, network: Network, chunk: int | None = None, *, grad: bool = False
) -> BoundSampler:
    """Bind an estimator to a trained network.

    Args:
        estimator: any `Estimator`.
        network: trained for it; put it in evaluation mode first.
        chunk: rows per network call, None for all; changes memory and nothing else.
        grad: keep gradients, for training through a rollout.
    """
    return BoundSampler(estimator=estimator, network=network, chunk=chunk, grad=grad)
