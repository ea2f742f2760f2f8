"""Windows of days around each day of the year, and the statistics of all states within them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy import sparse

from ._fields import States, channel_names, channel_units, seconds
from ._grid import Array, Vector
from ._protocols import History
from ._seeps import millimetres

Calendar = Literal["monthday", "doy"]
Kernel = Literal["triangle", "flat"]
Times = npt.NDArray[np.datetime64]
Index = npt.NDArray[np.intp]

SLOTS = 366
SEEPS_FIELDS = ("seeps_dry_fraction", "seeps_threshold")
SUFFIXES = {"mean": "", "std": "_std"} | {s: f"_{s}" for s in SEEPS_FIELDS}
QUANTILE = "_quantile"
"""Ends of the names of variables."""

_LEAP_DAY = 59
_WET = 2 / 3


class Sweeps:
    """Sweeps over a history; a slot is a day of the year from 0, a bin one of a leap or a common year."""

    def __init__(
        self, source: History, calendar: Calendar, window: sparse.csr_array, memory_bytes: int
    ) -> None:
        self._source, self._memory = source, memory_bytes
        stamps = seconds(source.times)
        of_day = stamps - stamps.astype("datetime64[D]")
        if (of_day % np.timedelta64(3600, "s")).any():
            raise ValueError("the times of history must be whole hours")
        hours, self._hour = np.unique(of_day.astype("timedelta64[h]").astype(int), return_inverse=True)
        self.hours, self._window = hours, window
        self._sample, self._bin = _samples(stamps, calendar)
        first = source.read(source.times[:1])
        self._dims = ("time", "channel", *(d for d in first.dims if d not in ("time", "channel")))
        self.first = first.transpose(*self._dims)
        self.names = channel_names(first)
        self.units = dict(zip(self.names, channel_units(first) or ("",) * len(self.names), strict=True))
        self._kind = np.result_type(first.dtype, np.float32)
        self._counts = np.zeros((len(hours), 2 * SLOTS))
        np.add.at(self._counts, (self._hour[self._sample], self._bin), 1)
        self._total = np.stack([window @ counts for counts in self._counts])
        if (self._total == 0).any():
            hour, day = np.argwhere(self._total == 0)[0]
            raise ValueError(
                f"history has no state at {hours[hour]:02d} h in the window around day {day + 1} of the "
                "year: widen window_days or give whole years"
            )

    def moments(self) -> dict[str, Array]:
        """Mean and std of every channel, (hour, day, N)."""
        columns = int(np.prod(self.first.shape[1:]))
        out = np.empty((2, len(self.hours), SLOTS, columns), self._kind)
        # Half for the sums, the rest for a window's worth of temporaries and the states that are read.
        step = max(1, self._memory // (4 * self._counts.size * 8))
        for start in range(0, columns, step):
            part = slice(start, start + step)
            self._moments_of(part, out[..., part])
        variables: dict[str, Array] = {}
        for name, (mean, std) in zip(self.names, np.split(out, len(self.names), axis=-1), strict=True):
            variables |= {name + SUFFIXES["mean"]: mean, name + SUFFIXES["std"]: std}
        return variables

    def _moments_of(self, part: slice, out: Array) -> None:
        """Fill some columns from sums about the first state, which keep the digits of small deviations."""
        zero = np.nan_to_num(self.first.values.reshape(-1)[part].astype(np.float64))
        sums = np.zeros((2, *self._counts.shape, zero.size))
        bins = np.split(self._bin, np.searchsorted(self._sample, np.arange(1, len(self._hour))))
        for i, state in self._states(self._source):
            away = state[part] - zero
            square = away * away
            for b in bins[i]:
                sums[0, self._hour[i], b] += away
                sums[1, self._hour[i], b] += square
        for h, total in enumerate(self._total):
            mean = (self._window @ sums[0, h]) / total[:, None]
            variance = (self._window @ sums[1, h]) / total[:, None] - mean * mean
            out[0, h] = mean + zero
            out[1, h] = np.sqrt(np.maximum(variance, 0))

    def order_statistics(
        self, channel: str, quantiles: tuple[float, ...], dry_mm: float | None
    ) -> dict[str, Array]:
        """Quantiles (Q, hour, day, N) and SEEPS climatology (hour, day, N) of one channel."""
        columns = int(np.prod(self.first.shape[2:]))
        shape = (len(self.hours), SLOTS, columns)
        out = {channel + QUANTILE: np.empty((len(quantiles), *shape), self._kind)} if quantiles else {}
        edge = None
        if dry_mm is not None:
            edge = self._kind.type(dry_mm / millimetres(self.units[channel], channel))
            out |= {channel + SUFFIXES[s]: np.empty(shape, self._kind) for s in SEEPS_FIELDS}
        step = max(1, self._memory // (4 * len(self._hour) * self._kind.itemsize))
        for start in range(0, columns, step):
            part = slice(start, min(start + step, columns))
            series = self._series(channel, part)
            for h, d in np.ndindex(*shape[:2]):
                values, weight = self._near(series, h, d)
                place = (h, d, part)
                if quantiles:
                    out[channel + QUANTILE][(slice(None), *place)] = weighted_quantiles(
                        values, weight, quantiles
                    )
                if edge is not None:
                    fraction, threshold = _seeps_of(values, weight, edge)
                    out[channel + SUFFIXES["seeps_dry_fraction"]][place] = fraction
                    out[channel + SUFFIXES["seeps_threshold"]][place] = threshold
        return out

    def _series(self, channel: str, part: slice) -> Array:
        """All states of some points of a channel (P, T)."""
        source, where = self._source, self.names.index(channel)
        if isinstance(source, States):
            source, where = States(source.array.sel(channel=[channel])), 0
        series = np.empty((part.stop - part.start, len(self._hour)), self._kind)
        for i, state in self._states(source):
            series[:, i] = state.reshape(-1, int(np.prod(self.first.shape[2:])))[where, part]
        return series

    def _near(self, series_PT: Array, hour: int, day: int) -> tuple[Array, Vector]:
        """States (P, S) in the window of a day and their weights (S,), those at its ends included."""
        row = slice(self._window.indptr[day], self._window.indptr[day + 1])
        weights = np.full(2 * SLOTS, np.nan)
        weights[self._window.indices[row]] = self._window.data[row]
        keep = (self._hour[self._sample] == hour) & ~np.isnan(weights[self._bin])
        return series_PT[:, self._sample[keep]], weights[self._bin[keep]]

    def _states(self, source: History) -> Iterator[tuple[int, Array]]:
        """Every state in order of time, flat."""
        size = max(1, self._memory // (4 * max(self.first.nbytes, 1)))
        for start in range(0, len(self._hour), size):
            read = source.read(source.times[start : start + size]).transpose(*self._dims).values
            for i, state in enumerate(read, start=start):
                yield i, state.reshape(-1)

    def dataset(self, variables: Mapping[str, Array], quantiles: Sequence[float]) -> xr.Dataset:
        """All fields with their coordinates."""
        space = self._dims[2:]
        sizes = self.first.shape[2:]
        out = {}
        for name, array in variables.items():
            dims = ("quantile",) * (array.ndim == 4) + ("hour", "dayofyear", *space)
            owner = next(c for c in self.names if name.removeprefix(c) in (*SUFFIXES.values(), QUANTILE))
            unit = "1" if name.endswith("fraction") else self.units[owner]
            out[name] = (dims, array.reshape(*array.shape[:-1], *sizes), {"units": unit} if unit else {})
        axes = {"hour": self.hours, "dayofyear": np.arange(1, SLOTS + 1)}
        axes |= {"quantile": np.array(quantiles)} if quantiles else {}
        return xr.Dataset(out, axes).assign_coords({c: self.first[c] for c in ("latitude", "longitude")})


def weighted_quantiles(values_PS: Array, weight: Vector, probabilities: Sequence[float]) -> Vector:
    """Quantiles (Q, P) of P weighted samples of size S, NaN where a sample holds one or has no weight.

    With n = (sum w)^2 / sum w^2 and h = (n - 1) p + 1, the quantile is the mean of the sorted sample over the
    part (h - 1) / n to h / n of its cumulative weight (type 7, Akinshin 2023, arXiv 2304.07265).

    Args:
        values_PS: samples.
        weight: (S,) or (P, S), not negative.
        probabilities: Q values within 0..1.
    """
    order = np.argsort(values_PS, axis=1)
    ordered = np.take_along_axis(values_PS, order, axis=1).astype(np.float64)
    w = weight[order] if weight.ndim == 1 else np.take_along_axis(weight, order, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = w.sum(axis=1, keepdims=True)
        size = np.square(total) / np.square(w).sum(axis=1, keepdims=True)
        share = np.cumsum(w, axis=1) / total
        out = np.empty((len(probabilities), len(ordered)))
        for row, p in zip(out, probabilities, strict=True):
            start = (size - 1) * p / size
            inside = np.clip((share - start) * size, 0, 1)
            row[:] = np.sum(ordered * np.diff(inside, axis=1, prepend=0), axis=1)
    return out


def _seeps_of(values_PS: Array, weight: Vector, edge: np.floating) -> tuple[Vector, Vector]:
    """Share of dry states, without weights as in WeatherBench 2, and the threshold of heavy ones."""
    dry = values_PS <= edge
    fraction = np.where(np.isnan(values_PS).any(axis=1), np.nan, dry.mean(axis=1))
    [threshold] = weighted_quantiles(values_PS, np.where(dry, 0.0, weight), (_WET,))
    return fraction, threshold


def window(calendar: Calendar, kernel: Kernel, half: int) -> sparse.csr_array:
    """Weights (slot, bin); entries of weight 0 at the ends of a triangle are kept."""
    slot = np.arange(SLOTS)
    out = np.full((SLOTS, 2 * SLOTS), np.nan)
    for leap in (False, True):
        short = calendar == "monthday" and not leap
        position = slot - (slot >= _LEAP_DAY) if short else slot
        ring = SLOTS - short
        days = np.abs(position[:, None] - position)
        days = np.minimum(days, ring - days)
        weight = 1 - days / half if kernel == "triangle" and half else np.ones(days.shape)
        out[:, leap * SLOTS :][:, :SLOTS] = np.where(days <= half, weight, np.nan)
    row, column = np.nonzero(~np.isnan(out))
    first = np.searchsorted(row, np.arange(SLOTS + 1))
    return sparse.csr_array((out[row, column], column, first), shape=out.shape)


def _samples(stamps: Times, calendar: Calendar) -> tuple[Index, Index]:
    """Positions in time and bins of all states; one state can be in two bins."""
    slot, leap = slots(stamps, calendar), _in_leap_year(stamps)
    index = np.arange(stamps.size)
    if calendar == "doy":
        again = np.flatnonzero(~leap & (slot == SLOTS - 2))
        index, slot = np.append(index, again), np.append(slot, np.full(again.size, SLOTS - 1))
    bins = slot + SLOTS * leap[index]
    order = np.argsort(index, kind="stable")
    return index[order], bins[order]


def slots(stamps: Times, calendar: Calendar) -> Index:
    """Days of the year from 0."""
    days = stamps.astype("datetime64[D]")
    count: Index = (days - days.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.intp)
    if calendar == "doy":
        return count
    return np.where(~_in_leap_year(stamps) & (count >= _LEAP_DAY), count + 1, count)


def _in_leap_year(stamps: Times) -> npt.NDArray[np.bool_]:
    year = stamps.astype("datetime64[Y]")
    length = (year + np.timedelta64(1, "Y")).astype("datetime64[D]") - year.astype("datetime64[D]")
    return np.asarray(length == np.timedelta64(SLOTS, "D"))


def check_calendar(calendar: str) -> None:
    if calendar not in get_args(Calendar):
        raise ValueError(f"calendar must be one of {get_args(Calendar)}, got {calendar!r}")
