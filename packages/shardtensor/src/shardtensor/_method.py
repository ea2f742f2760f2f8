"""How queries and keys of a sharded sequence meet: what `attention` says, or the least estimated time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from shardtensor._plans import planned

Method: TypeAlias = Literal["auto", "ring", "ulysses", "gather"]
_METHODS = ("auto", "ring", "ulysses", "gather")
_LATENCY = 1 << 20  # bytes that a link moves (50 GB/s) while one message starts (20 us)


class _Choice:
    __slots__ = ("method",)

    def __init__(self) -> None:
        self.method: Method = "auto"


_choice = _Choice()


@contextmanager
def attention(method: Method) -> Iterator[None]:
    """Fixes how attention over a sharded sequence communicates; every rank must choose alike.

    "ring": keys and values travel from rank to rank while the queries stay (Liu et al. 2023,
    arXiv 2310.01889); P - 1 messages that overlap with the computation, and never more than two blocks of
    keys in memory. "ulysses": all_to_all from sequence to heads and back (Jacobs et al. 2023,
    arXiv 2309.14509); 4 messages, whose size falls with P; a mask must be replicated. "gather": every rank
    fetches the keys that it sees; one message. "auto" estimates the time of a forward pass as messages x
    20 us + bytes / 50 GB/s and takes the least; ulysses needs a head of the keys for each rank, and gather
    is only chosen if all keys take no more memory than a rank's queries or than 1 MiB.

    Examples:
        with shardtensor.attention("ring"):
            y = model(x)
    """
    if method not in _METHODS:
        raise ValueError(f"attention method must be one of {_METHODS}, got {method!r}")
    before, _choice.method = _choice.method, method
    try:
        yield
    finally:
        _choice.method = before


def chosen() -> Method:
    """Returns the method that `attention` fixes, or "auto"."""
    return _choice.method


@planned
def cheapest(ranks: int, queries: int, keys: int, heads: int) -> Method:
    """Returns the method with the least estimated time.

    Args:
        ranks: P.
        queries: bytes of all queries and outputs.
        keys: bytes of all keys and values.
        heads: of the keys; 0 where ulysses is ruled out.
    """
    others = ranks - 1
    cost: dict[Method, float] = {"ring": others * _LATENCY + others * keys / ranks}
    if keys <= max(queries / ranks, _LATENCY):
        cost["gather"] = _LATENCY + others * keys / ranks
    if heads >= ranks:
        cost["ulysses"] = 4 * _LATENCY + others * (queries + keys) / ranks**2
    return min(cost, key=lambda method: cost[method])
