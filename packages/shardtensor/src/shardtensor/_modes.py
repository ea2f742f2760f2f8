"""Switches: what happens to plain tensors, and to operations without a sharded form."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager


class TensorPromotionMode(enum.Enum):
    """What an operation does with a plain tensor that meets a sharded one.

    Attributes:
        SILENT: takes it for a global value, the same on every rank. The default.
        WARN: does so, and warns.
        DISABLED: raises a TypeError.
    """

    DISABLED = "disabled"
    WARN = "warn"
    SILENT = "silent"


class _Modes:
    """The switches; a run has one set of them, since autograd uses threads of its own."""

    __slots__ = ("gather", "promotion")

    def __init__(self) -> None:
        self.promotion = TensorPromotionMode.SILENT
        self.gather = False


modes = _Modes()


def set_promotion_mode(mode: TensorPromotionMode) -> None:
    """Chooses from now on what happens to plain tensors that meet sharded ones."""
    modes.promotion = TensorPromotionMode(mode)


@contextmanager
def promotion_mode(mode: TensorPromotionMode) -> Iterator[None]:
    """Chooses within a block what happens to plain tensors that meet sharded ones."""
    before = modes.promotion
    set_promotion_mode(mode)
    try:
        yield
    finally:
        modes.promotion = before


@contextmanager
def fallback(how: str) -> Iterator[None]:
    """Within a block, `fallback("gather")` lets operations without a sharded form run all the same.

    Every rank gathers the whole operands, runs the operation, and keeps its rows of the result; a
    GatherWarning says so. It costs the memory and time of one process on every rank.

    Raises:
        ValueError: another word than "gather".
    """
    if how != "gather":
        raise ValueError(f'fallback must be "gather", got {how!r}')
    before, modes.gather = modes.gather, True
    try:
        yield
    finally:
        modes.gather = before
