"""Times cross the package as ``datetime64[ns]`` and rest in files as whole hours since 1970-01-01."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hours = NDArray[np.int64]
TimeLike = str | datetime | np.datetime64
LeadLike = int | timedelta | np.timedelta64

_HOUR = np.timedelta64(1, "h")


def to_hours(times: Any) -> Hours:
    """Whole hours since 1970-01-01 of datetime-like values.

    Raises:
        ValueError: a time is missing (NaT) or is not a whole hour.
    """
    stamps = np.asarray(times, dtype="datetime64[ns]")
    if np.isnat(stamps).any():
        raise ValueError(f"times: {int(np.isnat(stamps).sum())} of {stamps.size} are missing (NaT)")
    hours = stamps.astype("datetime64[h]")
    off = hours.astype("datetime64[ns]") != stamps
    if off.any():
        raise ValueError(f"times must be whole hours; got {show(stamps[off].ravel()[0])}")
    return np.asarray(hours.astype(np.int64))


def from_hours(hours: Any) -> NDArray[np.datetime64]:
    """``datetime64[ns]`` of whole hours since 1970-01-01."""
    return np.asarray(hours, dtype=np.int64).astype("datetime64[h]").astype("datetime64[ns]")


def lead_hours(lead: LeadLike) -> int:
    """Whole hours of a lead or offset: an integer is taken as hours.

    Raises:
        ValueError: the lead is not a whole number of hours.
    """
    # A timedelta64 is an np.integer too.
    if isinstance(lead, int | np.integer) and not isinstance(lead, np.timedelta64):
        return int(lead)
    value = np.timedelta64(lead)
    if value.astype("timedelta64[ns]") % _HOUR.astype("timedelta64[ns]") != np.timedelta64(0, "ns"):
        raise ValueError(f"a lead must be a whole number of hours; got {lead!r}")
    return int(value // _HOUR)


def leads_hours(leads: Iterable[LeadLike]) -> tuple[int, ...]:
    """`lead_hours` of several leads."""
    return tuple(lead_hours(lead) for lead in leads)


def period_hours(period: Sequence[TimeLike] | None, hours: Hours) -> tuple[int, int]:
    """First and last hour (both inclusive) of `period`; the whole of `hours` for None.

    A date, month or year without a time of day, given as the end, means the whole of it.
    """
    if period is None:
        return int(hours[0]), int(hours[-1])
    if len(period) != 2:
        raise ValueError(f"period must be (first, last), both inclusive; got {period!r}")
    start = np.datetime64(period[0]).astype("datetime64[ns]")
    stop = _end(period[1])
    if stop < start:
        raise ValueError(f"period ends ({show(stop)}) before it starts ({show(start)})")
    # An hour-aligned window: the first hour not before start, the last not after stop.
    first = -((-start.astype(np.int64)) // 3_600_000_000_000)
    return int(first), int(stop.astype(np.int64) // 3_600_000_000_000)


def show(time: Any) -> str:
    """A time as `2019-03-01T06`."""
    return str(np.datetime64(time, "h"))


def _end(time: TimeLike) -> np.datetime64:
    """The last nanosecond of a date, month or year; any other time as it is."""
    stamp: Any = np.datetime64(time)
    unit: Any = np.datetime_data(stamp.dtype)[0]
    if isinstance(time, datetime) or unit not in ("Y", "M", "W", "D"):
        return np.datetime64(stamp, "ns")
    after: np.datetime64 = (stamp + np.timedelta64(1, unit)).astype("datetime64[ns]")
    return after - np.timedelta64(1, "ns")
