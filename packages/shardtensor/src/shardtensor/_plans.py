"""Plans: pure functions of layouts that every rank computes alike, once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_MOST_PLANS = 8192


def constant(function: Callable[P, T]) -> Callable[P, T]:
    """Has torch.compile take the result of a function for a constant.

    It sets what `torch.compiler.assume_constant_result` sets; that one imports the compiler, a second more
    for every program, compiled or not.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def planned(function: Callable[P, T]) -> Callable[P, T]:
    """Caches a function of hashable arguments; torch.compile takes its result for a constant.

    The result may hold tensors, but must not be one: Dynamo (torch 2.13) names constant tensors by the code
    that returns them, which is the same for all plans, and takes a second one for the first.
    """
    cached = lru_cache(maxsize=_MOST_PLANS)(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return cached(*args, **kwargs)  # type: ignore[arg-type]

    return constant(call)
