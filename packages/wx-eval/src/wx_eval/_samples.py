"""Which init times enter a cell, and tests of cells that share them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._bootstrap import automatic_block_length, bootstrap_counts, check_resampling, two_sided
from ._choices import Sample as Sample
from ._grid import Array, Vector
from ._inference import MeanTests, Method, mean_tests, smallest_p_value
from ._metrics import Metric
from ._records import WEIGHT

Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]

CELL = ("channel", "region", "lead_time", "init_time")


class Group(NamedTuple):
    """Cells of one lead time whose scored init times are the same.

    Attributes:
        lead: position on the lead time axis.
        cells: flat positions on the axes before it, (N,).
        starts: positions on the init time axis, (T,).
    """

    lead: int
    cells: Index
    starts: Index

    def take(self, values: Array) -> Vector:
        """(T, N, ...) from (*cells, lead, init, ...), whose cells were made one axis."""
        return np.asarray(np.moveaxis(values[self.cells, self.lead][:, self.starts], 1, 0))


def groups(scored: Mask) -> Iterator[Group]:
    """Cut (cells, lead, init) where something is scored into groups."""
    for lead in range(scored.shape[1]):
        packed = np.packbits(scored[:, lead], axis=1)
        patterns, which = np.unique(packed, axis=0, return_inverse=True)
        for k in range(len(patterns)):
            cells = np.flatnonzero(which.reshape(-1) == k)
            yield Group(lead, cells, np.flatnonzero(scored[cells[0], lead]))


def scored_starts(rows: xr.Dataset, metric: Metric) -> xr.DataArray:
    """Where a row has all statistics of a metric."""
    there = []
    for statistic in metric.statistics:
        values = rows[statistic.id].notnull()
        there.append(values.any(f"{statistic.id}_k") if f"{statistic.id}_k" in values.dims else values)
    return xr.concat(there, "statistic").all("statistic") if len(there) > 1 else there[0]


def homogeneous(scored: Mask, sample: Sample, leads: Array, starts: Array) -> Mask:
    """Restrict (..., lead, init) to what all lead times share, see `compare`.

    Raises:
        ValueError: for an unknown sample.
    """
    if sample not in get_args(Sample):
        raise ValueError(f"sample must be one of {get_args(Sample)}, got {sample!r}")
    if sample == "each":
        return scored
    if sample == "starts":
        return np.asarray(scored & scored.all(axis=-2, keepdims=True))
    times, where = np.unique(starts + leads[:, None], return_inverse=True)
    where = where.reshape(len(leads), len(starts))
    shared = np.ones((*scored.shape[:-2], len(times)), bool)
    for lead in range(len(leads)):
        at = np.zeros_like(shared)
        at[..., where[lead]] = scored[..., lead, :]
        shared &= at
    return np.asarray(scored & shared[..., where])


def weights_of(rows: xr.Dataset, name: str) -> xr.DataArray:
    """Weight behind a statistic in every row."""
    own = name + WEIGHT
    return rows[own].fillna(rows["sum_w"]) if own in rows else rows["sum_w"]


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """Estimates of N cells with their uncertainty; NaN where there is none."""

    stderr: Vector
    df: Vector
    low: Vector
    high: Vector
    p_value: Vector
    notes: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Test:
    """How estimates are tested, see `compare`."""

    method: Method | Literal["bootstrap"]
    seed: int | None = None
    resamples: int = 2000
    block: float | None = None
    level: float = 0.95

    __test__ = False

    def __post_init__(self) -> None:
        if self.method not in (*get_args(Method), "bootstrap"):
            raise ValueError(f"method must be one of {(*get_args(Method), 'bootstrap')}, got {self.method!r}")
        if (self.method == "bootstrap") != (self.seed is not None):
            raise ValueError('method "bootstrap" needs a seed, and no other method takes one')
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {self.level!r}")
        check_resampling(self.resamples, self.block)

    def counts(self, line_TN: Vector) -> tuple[Vector, float]:
        """Draws of init times (resamples, T) for cells with these linearised values, and the block length."""
        finite = np.isfinite(line_TN).all(axis=0)
        if self.block is not None:
            block = self.block
        elif finite.any():
            block = float(np.mean([automatic_block_length(d) for d in line_TN[:, finite].T]))
        else:
            block = max(1.0, len(line_TN) ** (1 / 3))
        assert self.seed is not None
        return bootstrap_counts(len(line_TN), self.resamples, block, self.seed), block

    def of_draws(self, drawn_BN: Vector, estimate_N: Vector, line_TN: Vector, regular: bool) -> Estimates:
        """From resampled values and the linearised ones; a resample without a value is left out."""
        absent = np.isnan(drawn_BN)
        undefined, enough = np.any(absent, axis=0), np.sum(~absent, axis=0) > 1
        stderr, low, high, p = np.full((4, len(estimate_N)), np.nan)
        ok = enough & np.isfinite(estimate_N)
        notes: list[tuple[str, ...]] = [("not defined",)] * len(ok)
        if ok.any():
            d, tests = drawn_BN[:, ok], self._spread_of_draws(drawn_BN[:, ok], line_TN[:, ok])
            tails = [(1 - self.level) / 2, (1 + self.level) / 2]
            stderr[ok] = tests.stderr
            low[ok], high[ok] = np.where(tests.constant, estimate_N[ok], np.nanquantile(d, tails, axis=0))
            p[ok] = np.maximum(two_sided(d, estimate_N[ok]), smallest_p_value(len(line_TN)))
            for k, cell in enumerate(np.flatnonzero(ok)):
                more = ("undefined in some resamples",) * bool(undefined[cell])
                notes[cell] = (*tests.notes(k, regular), *more)
        return Estimates(
            stderr=stderr, df=np.full_like(p, np.nan), low=low, high=high, p_value=p, notes=tuple(notes)
        )

    def _spread_of_draws(self, drawn_BN: Vector, line_TN: Vector) -> MeanTests:
        """Tests with the standard error of the draws, which is zero where the series does not vary."""
        # Where there is no linearisation, the draws are all there is.
        finite = np.isfinite(line_TN).all(axis=0)
        tests = mean_tests(np.where(finite, line_TN, np.arange(len(line_TN))[:, None]), "iid")
        stderr = np.where(tests.constant, 0.0, np.nanstd(drawn_BN, axis=0, ddof=1))
        return replace(tests, stderr=stderr, naive=np.where(finite, tests.naive, np.nan))

    def of_series(self, line_TN: Vector, estimate_N: Vector, horizon: int, regular: bool) -> Estimates:
        """From linearised values by a t test; a cell that is not finite has none."""
        assert self.method != "bootstrap"
        cells = line_TN.shape[1]
        ok = np.isfinite(line_TN).all(axis=0)
        stderr, df, half, p = np.full((4, cells), np.nan)
        notes: list[tuple[str, ...]] = [("not defined",)] * cells
        if self.method in ("hln", "hg") and horizon >= len(line_TN):
            notes = [("lead time beyond the sample",)] * cells
        elif ok.any():
            tests = mean_tests(line_TN[:, ok], self.method, horizon)
            stderr[ok], df[ok], p[ok] = tests.stderr, tests.df, tests.p_value
            half[ok] = tests.half_width(self.level)
            for k, cell in enumerate(np.flatnonzero(ok)):
                notes[cell] = tests.notes(k, regular)
        return Estimates(
            stderr=stderr, df=df, low=estimate_N - half, high=estimate_N + half, p_value=p, notes=tuple(notes)
        )


def take_all(data: Mapping[str, Array], group: Group) -> dict[str, Vector]:
    """Several arrays at the cells and init times of a group."""
    return {name: group.take(values) for name, values in data.items()}


def spacing(starts: Array, lead: np.timedelta64) -> tuple[int, bool]:
    """Starts that a lead time reaches ahead, at least 1, and whether they are evenly spaced."""
    if len(starts) < 2:
        return 1, False
    steps = np.diff(starts)
    middle = np.sort(steps)[len(steps) // 2]
    return max(1, int(np.ceil(lead / middle))), bool((steps == steps[0]).all())
