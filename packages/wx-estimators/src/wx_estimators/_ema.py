"""Exponential moving averages of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def power_from_width(sigma_rel: float) -> float:
    """gamma of the power-function average whose profile has relative width sigma_rel.

    sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), Karras et al., arXiv 2312.02696.
    """
    if not 0.0 < sigma_rel < 12.0**-0.5:
        raise ValueError(f"sigma_rel must be in (0, 0.2887), got {sigma_rel}")
    inverse = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


class EMA:
    """Average of the weights of a module over its training.

    avg_k = beta_k avg_{k-1} + (1 - beta_k) w_k at step k, with beta_k = (1 - 1/k)^(gamma + 1) (the power
    function, which forgets the start at any length of training) or beta_k = `decay`.

    Args:
        module: floating-point parameters are averaged in float32; buffers are copied.
        sigma_rel: relative width of the power function, 0.05 to 0.10 as a rule.
        decay: constant decay instead.
    """

    def __init__(self, module: nn.Module, *, sigma_rel: float = 0.10, decay: float | None = None) -> None:
        if decay is not None and not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.gamma = power_from_width(sigma_rel)
        self.step = 0
        self.average = {name: p.detach().float().clone() for name, p in module.named_parameters()}

    def beta(self, step: int) -> float:
        """Weight of the past at step k = 1, 2, ..."""
        power: float = (1.0 - 1.0 / step) ** (self.gamma + 1.0)
        return power if self.decay is None else self.decay

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after one optimiser step."""
        self.step += 1
        now = dict(module.named_parameters())
        averages = list(self.average.values())
        values = [now[name].detach().to(average) for name, average in self.average.items()]
        torch._foreach_lerp_(averages, values, 1.0 - self.beta(self.step))

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the weights of a module with the average."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.average[name])

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Run a block with the average in the module; its own weights come back afterwards."""
        own = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: step, gamma, decay and the average."""
        return {"step": self.step, "gamma": self.gamma, "decay": self.decay, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; ValueError when the parameter names differ."""
        average: Mapping[str, Tensor] = state["average"]
        if set(average) != set(self.average):
            odd = sorted(set(average) ^ set(self.average))
            raise ValueError(f"the state is of another module; names only on one side: {odd[:6]}")
        self.step, self.gamma, self.decay = int(state["step"]), float(state["gamma"]), state["decay"]
        for name, value in average.items():
            self.average[name].copy_(value)
