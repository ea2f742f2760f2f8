"""Arrays, and what is made of them, that may be asked for again, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=_Sized)


class Kept(Generic[T]):
    """Arrays, or others that know their bytes, by key.

    Those used longest ago are dropped when all take more than so many bytes.
    A copy, such as the one that a worker gets, begins empty.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._arrays: OrderedDict[Hashable, T] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The array of a key, made when it is not there."""
        if key not in self._arrays:
            made = make()
            self._arrays[key] = made
            self._bytes += made.nbytes
            while self._bytes > self._limit and len(self._arrays) > 1:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        self._arrays.move_to_end(key)
        return self._arrays[key]

    def __reduce__(self) -> tuple[type[Kept[T]], tuple[int]]:
        return Kept, (self._limit,)
