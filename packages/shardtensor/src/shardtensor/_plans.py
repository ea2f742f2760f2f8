"""Plans: pure functions of layouts that every rank computes alike, once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_MOST_PLANS = 8192


def planned(function: Callable[P, T]) -> Callable[P, T]:
    """Caches a function of hashable arguments; torch.compile takes its result for a constant.

    The result may hold tensors, but must not be one: Dynamo (torch 2.13) names constant tensors by the code
    that returns them, which is the same for all plans, and takes a second one for the first.
    """
    cached = lru_cache(maxsize=_MOST_PLANS)(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return cached(*args, **kwargs)  # type: ignore[arg-type]

    constant: Callable[P, T] = torch.compiler.assume_constant_result(call)
    return constant
