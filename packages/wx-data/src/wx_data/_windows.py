"""Samples as windows in time: which steps of a store each of them needs, and what happens where some lack."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wx_data._errors import StoreError
from wx_data._store import Store
from wx_data._times import Hours, LeadLike, TimeLike, from_hours, lead_hours, leads_hours, period_hours, show

Ints = NDArray[np.int64]
Missing = Literal["error", "drop-window", "fill"]
ABSENT = -1


class TimeWindow:
    """Which times around a base time make a sample.

    Args:
        history: offsets of the input states, zero or negative, e.g. (-6, 0).
        targets: offsets of the target states, positive, e.g. (6,).

    Integers are hours; `timedelta` works as well.

    Raises:
        ValueError: an empty or unsorted part, a positive history or a non-positive target.
    """

    def __init__(self, history: Sequence[LeadLike], targets: Sequence[LeadLike]) -> None:
        self.history = leads_hours(history)
        self.targets = leads_hours(targets)
        offsets = self.offsets
        if not self.history or list(offsets) != sorted(set(offsets)):
            raise ValueError(f"history and targets must be given and increase; got {offsets}")
        if self.history[-1] > 0 or (self.targets and self.targets[0] <= 0):
            raise ValueError(f"history must be <= 0 h and targets > 0 h; got {self.history}, {self.targets}")

    @classmethod
    def rollout(cls, leads: int, *, step: LeadLike = 6, history: int = 2) -> "TimeWindow":
        """`history` states that end at the base time and `leads` targets after it, all `step` apart.

        Raises:
            ValueError: a count or step below one.
        """
        hours = lead_hours(step)
        if leads < 1 or history < 1 or hours < 1:
            raise ValueError(f"leads, history and step must be >= 1; got {leads}, {history}, {step!r}")
        return cls(
            [hours * place for place in range(1 - history, 1)],
            [hours * place for place in range(1, leads + 1)],
        )

    @property
    def offsets(self) -> tuple[int, ...]:
        """Hours of all states, inputs first."""
        return self.history + self.targets

    def __repr__(self) -> str:
        return f"TimeWindow(history={self.history}, targets={self.targets})"


@dataclass(frozen=True)
class Windows:
    """Base times (N,) in hours, and the steps (N, offsets) of their states; `ABSENT` where there is none."""

    hours: Hours
    steps: Ints

    def __len__(self) -> int:
        return len(self.hours)

    @property
    def complete(self) -> bool:
        """Whether every state of every window is in the store."""
        return bool((self.steps != ABSENT).all())


def find_windows(
    store: Store,
    window: TimeWindow,
    channels: Sequence[str],
    *,
    times: tuple[TimeLike, TimeLike] | None,
    stride: LeadLike | None,
    missing: Missing,
) -> Windows:
    """The windows that stand on times of the store and lie within `times`.

    A state is absent where its time is not in the store, or one of `channels` has no value at all in it.

    Raises:
        StoreError: states are absent and `missing` is "error".
        ValueError: an argument out of range, or no window in the period.
    """
    if missing not in ("error", "drop-window", "fill"):
        raise ValueError(f'missing must be "error", "drop-window" or "fill"; got {missing!r}')
    first, last = period_hours(times, store.hours)
    first, last = max(first, int(store.hours[0])), min(last, int(store.hours[-1]))
    hours = store.hours[:, None] + np.array(window.offsets)
    inside = ((hours >= first) & (hours <= last)).all(axis=1) & _on_stride(store.hours, stride)
    bases, hours = store.hours[inside], hours[inside]
    places = np.searchsorted(store.hours, hours).clip(max=len(store) - 1)
    there = (store.hours[places] == hours) & ~_empty_steps(store, channels)[places]
    lost = ~there.all(axis=1)
    if lost.any() and missing == "error":
        raise StoreError(_message(store, hours[~there], int(lost.sum())))
    keep = np.ones_like(lost) if missing == "fill" else ~lost
    if not keep.any():
        span = f"{show(from_hours(first))}..{show(from_hours(last))}"
        raise ValueError(f"no {window} lies within {span} of {store!r}")
    return Windows(bases[keep], np.where(there, places, ABSENT)[keep])


def _on_stride(hours: Hours, stride: LeadLike | None) -> NDArray[np.bool_]:
    every = 1 if stride is None else lead_hours(stride)
    if every < 1:
        raise ValueError(f"stride must be at least one hour; got {stride!r}")
    return np.asarray(hours % every == 0)


def _empty_steps(store: Store, channels: Sequence[str]) -> NDArray[np.bool_]:
    """(T,) True where a channel was kept without a single value."""
    kept = [store.channels.index(name) for name in channels if name in store.channels_with_nan]
    if not kept:
        return np.zeros(len(store), dtype=bool)
    counts = store.manifest.per_channel("nan_count")[:, kept]
    return np.asarray((counts == np.prod(store.grid.shape)).any(axis=1))


def _message(store: Store, absent: Hours, lost: int) -> str:
    empty = np.intersect1d(absent, store.hours)
    gaps = store.gaps
    if empty.size:
        cause = f"{empty.size} steps have a channel without any value, first {show(from_hours(empty[0]))}"
    elif gaps:
        cause = f"{len(gaps)} gaps in time, first {show(gaps[0][0])} -> {show(gaps[0][1])}, "
        cause += f"expected a step of {store.step_hours} h"
    else:
        cause = f"the time step of {store.step_hours} h does not divide the window's offsets"
    return (
        f'{store.path}: {cause}; {lost} windows are incomplete. missing="drop-window" leaves them out, '
        'missing="fill" marks what they lack in the mask'
    )
