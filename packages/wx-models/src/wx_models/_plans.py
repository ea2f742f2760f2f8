"""Index tables that depend on shapes alone: made once, constants of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
_MOST_PLANS = 64


def planned(function: Callable[P, T]) -> Callable[P, T]:
    """Caches a function of hashable arguments; torch.compile takes its result for a constant.

    The function runs on the CPU and outside of inference mode: the cache outlives the caller's modes, and an
    inference tensor could not be saved for a later backward pass.
    """
    cached = lru_cache(maxsize=_MOST_PLANS)(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.device("cpu"):
            return cached(*args, **kwargs)  # type: ignore[arg-type]

    # What torch.compiler.assume_constant_result sets; that function takes seconds to import the compiler.
    call._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return call


def fixed(*sizes: int) -> list[int]:
    """Returns sizes as numbers, for which a graph compiled for symbolic sizes is specialised."""
    return [len(range(size)) for size in sizes]
