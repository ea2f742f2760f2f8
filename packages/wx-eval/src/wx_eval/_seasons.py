"""Windows of days around each day of the year, and the statistics of all states within them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy import sparse

from ._choices import Calendar as Calendar
from ._choices import Kernel as Kernel
from ._fields import channel_names, channel_units, seconds
from ._grid import Array, Vector
from ._pieces import Store, Variable
from ._protocols import History
from ._seeps import millimetres

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
    """Sweeps over a history; a slot is a day of the year from 0, a bin one of a leap or a common year.

    One channel is worked on at a time where the source can tell channels apart, and as many of its hours and
    rows as `memory_bytes` holds.
    """

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
        counts = np.zeros((len(hours), 2 * SLOTS))
        np.add.at(counts, (self._hour[self._sample], self._bin), 1)
        self._total = np.stack([window @ c for c in counts])
        if (self._total == 0).any():
            hour, day = np.argwhere(self._total == 0)[0]
            raise ValueError(
                f"history has no state at {hours[hour]:02d} h in the window around day {day + 1} of the "
                "year: widen window_days or give whole years"
            )

    @property
    def frame(self) -> xr.Dataset:
        """Coordinates of all variables."""
        axes = {"hour": self.hours, "dayofyear": np.arange(1, SLOTS + 1)}
        return xr.Dataset(coords=axes).assign_coords({c: self.first[c] for c in ("latitude", "longitude")})

    def variables(self, quantiles: tuple[float, ...], seeps: Mapping[str, float]) -> dict[str, Variable]:
        """All arrays that `fill` writes."""
        out = {}
        for group in self._groups:
            rows = self._cuts(len(group), self._moment_bytes)[0][1].stop
            for name in group:
                for suffix in (SUFFIXES["mean"], SUFFIXES["std"]):
                    out[name + suffix] = self._variable(rows, self.units[name])
        rows = self._cuts(1, self._series_bytes)[0][1].stop
        for name in self.names:
            if quantiles:
                out[name + QUANTILE] = self._variable(rows, self.units[name], len(quantiles))
            for statistic in SEEPS_FIELDS if name in seeps else ():
                unit = "1" if statistic.endswith("fraction") else self.units[name]
                out[name + SUFFIXES[statistic]] = self._variable(rows, unit)
        return out

    def fill(self, store: Store, quantiles: tuple[float, ...], seeps: Mapping[str, float]) -> None:
        """Write every variable, piece by piece."""
        for group in self._groups:
            for hours, rows in self._cuts(len(group), self._moment_bytes):
                piece = f"moments {' '.join(group)} {hours} {rows.start}"
                if not store.holds(piece):
                    self._moments(store, group, hours, rows)
                    store.finish(piece)
        for name in self.names if quantiles else seeps:
            for hours, rows in self._cuts(1, self._series_bytes):
                piece = f"series {name} {hours} {rows.start}"
                if not store.holds(piece):
                    self._order_statistics(store, name, hours, rows, quantiles, seeps.get(name))
                    store.finish(piece)

    def _variable(self, rows: int, unit: str, quantiles: int = 0) -> Variable:
        space = self.first.shape[2:]
        lead, dims = ((quantiles,), ("quantile",)) if quantiles else ((), ())
        return Variable(
            dims=(*dims, "hour", "dayofyear", *map(str, self._dims[2:])),
            shape=(*lead, len(self.hours), SLOTS, *space),
            piece=(*lead, 1, SLOTS, rows, *space[1:]),
            dtype=self._kind,
            unit=unit,
        )

    @property
    def _groups(self) -> list[tuple[str, ...]]:
        """Channels that are read together."""
        return [(n,) for n in self.names] if hasattr(self._source, "of_channels") else [self.names]

    @property
    def _moment_bytes(self) -> int:
        # Half for the sums, the rest for a window's worth of temporaries and the states that are read.
        return 4 * 2 * SLOTS * 8

    @property
    def _series_bytes(self) -> int:
        return int(4 * -(-len(self._hour) // len(self.hours)) * self._kind.itemsize)

    def _cuts(self, channels: int, numbers: int) -> list[tuple[tuple[int, ...], slice]]:
        """Hours and rows that are worked on together, where a point takes so many bytes per hour."""
        height, *rest = self.first.shape[2:]
        row = channels * int(np.prod(rest)) * numbers
        every = tuple(range(len(self.hours)))
        groups = [every] if height * row * len(every) <= self._memory else [(h,) for h in every]
        step = min(height, max(1, self._memory // (row * len(groups[0]))))
        return [(g, slice(r, min(r + step, height))) for g in groups for r in range(0, height, step)]

    def _moments(self, store: Store, group: tuple[str, ...], hours: tuple[int, ...], rows: slice) -> None:
        """Write mean and std from sums about the first state, which keep the digits of small deviations."""
        first = self.first.values[0, [self.names.index(n) for n in group]]
        zero = np.nan_to_num(first[:, rows].astype(np.float64))
        sums = np.zeros((2, len(hours), 2 * SLOTS, *zero.shape))
        bins = np.split(self._bin, np.searchsorted(self._sample, np.arange(1, len(self._hour))))
        for i, state in self._states(group, hours):
            away = state[:, rows] - zero
            square = away * away
            place = hours.index(int(self._hour[i]))
            for b in bins[i]:
                sums[0, place, b] += away
                sums[1, place, b] += square
        for place, hour in enumerate(hours):
            linear, squares = sums[:, place].reshape(2, 2 * SLOTS, -1)
            total = self._total[hour][:, None]
            mean = (self._window @ linear) / total
            deviation = np.sqrt(np.maximum((self._window @ squares) / total - mean * mean, 0))
            for suffix, found in ((SUFFIXES["mean"], mean + zero.ravel()), (SUFFIXES["std"], deviation)):
                for k, name in enumerate(group):
                    values = found.reshape(SLOTS, *zero.shape)[:, k].astype(self._kind)
                    store.write(name + suffix, (hour, slice(None), rows), values)

    def _order_statistics(
        self,
        store: Store,
        channel: str,
        hours: tuple[int, ...],
        rows: slice,
        quantiles: tuple[float, ...],
        dry_mm: float | None,
    ) -> None:
        """Write quantiles and the climatology of SEEPS of one channel."""
        kind = self._kind
        edge = None if dry_mm is None else kind.type(dry_mm / millimetres(self.units[channel], channel))
        space = self.first.shape[2:]
        shape = (rows.stop - rows.start, *space[1:])
        times = np.flatnonzero(np.isin(self._hour, hours))
        series = np.empty((int(np.prod(shape)), len(times)), kind)
        own = self._groups[0] == (self.names[0],)
        where = 0 if own else self.names.index(channel)
        for k, (_, state) in enumerate(self._states((channel,) if own else self.names, hours)):
            series[:, k] = state[where, rows].reshape(-1)
        column = np.zeros(len(self._hour), np.intp)
        column[times] = np.arange(len(times))
        for hour in hours:
            levels = np.empty((len(quantiles), SLOTS, len(series)), kind)
            dry, heavy = np.empty((2, SLOTS, len(series)), kind)
            for day in range(SLOTS):
                samples, weight = self._near(hour, day)
                values = series[:, column[samples]]
                if quantiles:
                    levels[:, day] = weighted_quantiles(values, weight, quantiles)
                if edge is not None:
                    dry[day], heavy[day] = _seeps_of(values, weight, edge)
            part = (hour, slice(None), rows)
            if quantiles:
                store.write(
                    channel + QUANTILE, (slice(None), *part), levels.reshape(*levels.shape[:2], *shape)
                )
            if edge is not None:
                for statistic, found in zip(SEEPS_FIELDS, (dry, heavy), strict=True):
                    store.write(channel + SUFFIXES[statistic], part, found.reshape(SLOTS, *shape))

    def _near(self, hour: int, day: int) -> tuple[Index, Vector]:
        """States in the window of a day and their weights (S,), those at its ends included."""
        row = slice(self._window.indptr[day], self._window.indptr[day + 1])
        weights = np.full(2 * SLOTS, np.nan)
        weights[self._window.indices[row]] = self._window.data[row]
        keep = (self._hour[self._sample] == hour) & ~np.isnan(weights[self._bin])
        return self._sample[keep], weights[self._bin[keep]]

    def _states(self, channels: tuple[str, ...], hours: tuple[int, ...]) -> Iterator[tuple[int, Array]]:
        """Every state (C, *space) at some hours of the day, in order of time."""
        source: Any = self._source
        if channels != self.names:
            source = source.of_channels(channels)
        times = np.flatnonzero(np.isin(self._hour, hours))
        share = max(self.first.nbytes * len(channels) // len(self.names), 1)
        size = max(1, self._memory // (4 * share))
        for start in range(0, len(times), size):
            part = times[start : start + size]
            read = source.read(source.times[part]).transpose(*self._dims).values
            yield from zip(part.tolist(), read, strict=True)


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
