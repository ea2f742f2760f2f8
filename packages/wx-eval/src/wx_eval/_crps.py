"""Variants and decompositions of the continuous ranked probability score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ._case import Case
from ._events import (
    Threshold,
    ThresholdLike,
    as_kept,
    as_threshold,
    climatological,
    has_threshold,
    threshold_field,
    threshold_text,
)
from ._grid import Array
from ._kernels import EnsembleStatistics, ensemble_statistics
from ._metrics import Goal, Metric, one_of
from ._quantiles import sorted_errors
from ._statistics import AnyStatistic, CrpsBiased, CrpsFair, Fields, MeanError, MemberSkill, Statistic


@dataclass(frozen=True)
class _Clipped(Statistic):
    """A statistic of members and truth clipped to [lower, upper]."""

    lower: Threshold | None = None
    upper: Threshold | None = None

    @property
    def references(self) -> tuple[str, ...]:
        """See `Statistic.references`."""
        return climatological(self.lower, self.upper)

    def valid(self, case: Case) -> npt.NDArray[np.bool_] | None:
        """See `Statistic.valid`."""
        limits = [limit for limit in (self.lower, self.upper) if limit is not None]
        masks = [mask for limit in limits if (mask := has_threshold(case, limit)) is not None]
        return np.logical_and.reduce(masks) if masks else None

    def of_clipped(self, case: Case) -> EnsembleStatistics:
        """Of the clipped members."""

        def clipped() -> EnsembleStatistics:
            values, truth = case.values, case.truth
            for limit, bound in ((self.lower, np.maximum), (self.upper, np.minimum)):
                if limit is not None:
                    kind = np.result_type(case.values.dtype, case.truth.dtype)
                    field = as_kept(threshold_field(case, limit), kind)
                    values, truth = bound(values, field), bound(truth, field)
            return ensemble_statistics(values, truth)

        found: EnsembleStatistics = case.shared(("clipped", self.lower, self.upper), clipped)
        return found


@dataclass(frozen=True)
class TwCrpsFair(_Clipped):
    """Fair CRPS of the clipped ensemble."""

    label: ClassVar[str] = "twcrps_fair"
    minimum_members: ClassVar[int] = 2

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return self.of_clipped(case).crps_fair


@dataclass(frozen=True)
class TwCrpsBiased(_Clipped):
    """Biased CRPS of the clipped ensemble."""

    label: ClassVar[str] = "twcrps_biased"
    minimum_members: ClassVar[int] = 2

    def map(self, case: Case) -> Array:
        """See `Statistic.map`."""
        return self.of_clipped(case).crps_biased


@dataclass(frozen=True)
class TwCRPS(Metric):
    """Threshold-weighted CRPS, the integral of (F(z) - 1{y <= z})^2 over z from `lower` to `upper` only.

    Members and truth are clipped to the range (chaining function of Allen, Ginsbourger and Ziegel 2023, SIAM
    ASA J. Uncertain. 11, 906): with `lower` alone the score looks at values above it, with `upper` alone at
    those below, with both in between.

    Args:
        lower: see `EventMetric`.
        upper: see `EventMetric`.
        kind: "fair" or "biased", see `CRPS`.

    Raises:
        ValueError: for anything else, or without any limit.
    """

    lower: ThresholdLike | None = None
    upper: ThresholdLike | None = None
    kind: str = "fair"

    def __post_init__(self) -> None:
        if self.lower is None and self.upper is None:
            raise ValueError("give lower, upper or both: without a limit this is CRPS")
        for side in ("lower", "upper"):
            limit = getattr(self, side)
            object.__setattr__(self, side, None if limit is None else as_threshold(limit))
        if isinstance(self.lower, float) and isinstance(self.upper, float) and self.lower >= self.upper:
            raise ValueError(f"lower must be below upper, got {self.lower} and {self.upper}")
        one_of("kind", self.kind, ("fair", "biased"))

    @property
    def _limits(self) -> dict[str, Threshold]:
        sides = {"lower": self.lower, "upper": self.upper}
        return {side: as_threshold(limit) for side, limit in sides.items() if limit is not None}

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        limits = ", ".join(f"{side}={threshold_text(limit)}" for side, limit in self._limits.items())
        return f"twcrps_{self.kind}({limits})"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return ((TwCrpsFair if self.kind == "fair" else TwCrpsBiased)(**self._limits),)


_PARTS: dict[str, Goal] = {
    "overforecast": "low",
    "underforecast": "low",
    "spread_fair": "none",
    "spread_biased": "none",
}


@dataclass(frozen=True)
class CRPSPart(Metric):
    """A term of CRPS = overforecast + underforecast - spread.

    "overforecast": mean over members of max(x - y, 0). "underforecast": of max(y - x, 0). "spread_fair",
    "spread_biased": what the fair or the biased CRPS subtracts from their sum. The `scores` package has the
    same parts.

    Raises:
        ValueError: for another part.
    """

    part: str = "overforecast"

    def __post_init__(self) -> None:
        one_of("part", self.part, tuple(_PARTS))

    @property
    def goal(self) -> Goal:
        """See `Metric.goal`."""
        return _PARTS[self.part]

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"crps_{self.part}"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        others = {"spread_fair": CrpsFair(), "spread_biased": CrpsBiased()}
        return MemberSkill(), others.get(self.part, MeanError())

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        skill, other = (means[s.id] for s in self.statistics)
        if self.part.startswith("spread"):
            return skill - other
        # The mean of x - y is the difference of the two penalties, that of |x - y| their sum.
        return (skill + other) / 2 if self.part == "overforecast" else (skill - other) / 2


@dataclass(frozen=True)
class HersbachBins(Statistic):
    """What the decomposition of Hersbach (2000, Weather and Forecasting 15, 559) averages, K = 2 + 2 (M + 1).

    Frequencies of a truth below all members and above all of them; then for each of the bins between sorted
    members, i = 0..M with the open ones outside, its length below the truth (alpha_i) and above it (beta_i).
    """

    label: ClassVar[str] = "hersbach"
    vector: ClassVar[bool] = True

    def map(self, case: Case) -> Fields:
        """See `Statistic.map`."""
        return Fields(_hersbach_fields(sorted_errors(case)))


def _hersbach_fields(rows: Array) -> Iterator[Array]:
    """The numbers of `HersbachBins` from the sorted errors (M, C, N)."""
    yield (rows[0] > 0).astype(np.float64)
    yield (rows[-1] < 0).astype(np.float64)
    yield np.zeros(rows[0].shape)
    yield np.maximum(rows[0].astype(np.float64), 0)
    for low, high in pairwise(rows):
        left, right = low.astype(np.float64), high.astype(np.float64)
        inside = np.clip(0.0, left, right)
        yield inside - left
        yield right - inside
    yield np.maximum(-rows[-1].astype(np.float64), 0)
    yield np.zeros(rows[0].shape)


@dataclass(frozen=True)
class TruthHistogram(Statistic):
    """Distribution of the truth over equal bins from `lower` to `upper`, K = 2 + 2 steps.

    Width of a bin; frequency of a truth outside of the range; then for each bin the frequency of a truth in
    it and the mean, over all points, of its distance from the lower edge.
    """

    label: ClassVar[str] = "truth_histogram"
    vector: ClassVar[bool] = True
    lower: Threshold
    upper: Threshold
    steps: int

    @property
    def references(self) -> tuple[str, ...]:
        """See `Statistic.references`."""
        return climatological(self.lower, self.upper)

    def valid(self, case: Case) -> npt.NDArray[np.bool_] | None:
        """See `Statistic.valid`."""
        masks = [mask for t in (self.lower, self.upper) if (mask := has_threshold(case, t)) is not None]
        return np.logical_and.reduce(masks) if masks else None

    def map(self, case: Case) -> list[sparse.csr_array]:
        """See `Statistic.map`."""
        low, high = (threshold_field(case, t) for t in (self.lower, self.upper))
        width = np.broadcast_to((high - low) / self.steps, case.truth.shape)
        place = np.nan_to_num((case.truth - low) / width)
        index = np.clip(place, 0, self.steps - 1).astype(np.intp)
        outside = (place < 0) | (place > self.steps)
        rest = np.where(outside, 0, (place - index) * np.nan_to_num(width))
        numbers = np.stack([np.nan_to_num(width), outside, ~outside, rest], axis=-1)
        first = np.zeros_like(index)
        columns = np.stack([first, first + 1, 2 + 2 * index, 3 + 2 * index], axis=-1)
        rows = np.arange(0, 4 * index.shape[1] + 1, 4)
        shape = (index.shape[1], 2 + 2 * self.steps)
        return [
            sparse.csr_array((n.ravel(), c.ravel(), rows), shape=shape)
            for n, c in zip(numbers, columns, strict=True)
        ]


_TERMS: dict[str, Goal] = {
    "reliability": "low",
    "potential": "low",
    "resolution": "high",
    "uncertainty": "none",
}


@dataclass(frozen=True)
class HersbachTerm(Metric):
    """A term of Hersbach's decomposition, biased CRPS = reliability + potential.

    With mean lengths g_i of the bins between members and frequencies o_i of a truth below them,
    reliability = sum g_i (o_i - i / M)^2 and potential = sum g_i o_i (1 - o_i), the CRPS if every o_i were
    i / M. Uncertainty is the CRPS of the distribution of the truth over the region and period as a forecast,
    the integral of F (1 - F), and resolution = uncertainty - potential. All are of the period: they are no
    means of terms of single start dates. They depend on M: the reliability of a perfect ensemble is of order
    1 / M^2, its potential exceeds the CRPS of infinitely many members by the order of 1 / M.

    Args:
        term: "reliability", "potential", "resolution" or "uncertainty".
        lower: for the last two, the least truth that can occur: a number, or numbers by channel.
        upper: the largest one; a truth outside leaves the two terms undefined.
        steps: into which the range is cut; F is quadratic within a step.

    Raises:
        ValueError: for anything else.
    """

    term: str = "reliability"
    lower: ThresholdLike | None = None
    upper: ThresholdLike | None = None
    steps: int = 256

    def __post_init__(self) -> None:
        one_of("term", self.term, tuple(_TERMS))
        ranged = self.term in ("resolution", "uncertainty")
        for side in ("lower", "upper"):
            limit = getattr(self, side)
            if (limit is None) == ranged or isinstance(limit, str):
                raise ValueError(
                    'terms "resolution" and "uncertainty" need lower and upper, numbers or numbers by '
                    f"channel, and the others none, got {side}={limit!r} for {self.term!r}"
                )
            object.__setattr__(self, side, None if limit is None else as_threshold(limit))
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    @property
    def goal(self) -> Goal:
        """See `Metric.goal`."""
        return _TERMS[self.term]

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        if self.lower is None or self.upper is None:
            return f"crps_{self.term}"
        low, high = (threshold_text(as_threshold(t)) for t in (self.lower, self.upper))
        return f"crps_{self.term}(lower={low}, upper={high}, steps={self.steps})"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        if self.lower is None or self.upper is None:
            return (HersbachBins(),)
        truth = TruthHistogram(as_threshold(self.lower), as_threshold(self.upper), self.steps)
        return (truth,) if self.term == "uncertainty" else (truth, HersbachBins())

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        if self.term == "uncertainty":
            return _uncertainty(means[self.statistics[0].id])
        length, frequency, p = _hersbach(means[HersbachBins().id])
        if self.term == "reliability":
            return np.asarray((length * (frequency - p) ** 2).sum(axis=-1))
        potential = np.asarray((length * frequency * (1 - frequency)).sum(axis=-1))
        return (
            potential if self.term == "potential" else _uncertainty(means[self.statistics[0].id]) - potential
        )


def _uncertainty(mean: Array) -> Array:
    """Integral of F (1 - F), F being the parabola through both ends of a step that has its mean."""
    width, outside = mean[..., 0], mean[..., 1]
    share, distance = mean[..., 2::2], mean[..., 3::2]
    right = np.cumsum(share, axis=-1)
    left = right - share
    average = right - distance / width[..., None]
    bulge = average - (left + right) / 2
    square = (left**2 + left * right + right**2) / 3 + bulge * (left + right) + 1.2 * bulge**2
    total = width * (average - square).sum(axis=-1)
    return np.asarray(np.where(outside.real > 0, np.nan, total))


def _hersbach(mean: Array) -> tuple[Array, Array, Array]:
    """Length, frequency of a truth below, and probability i / M of each bin."""
    absent = np.isnan(mean)
    filled = np.where(absent & ~absent.all(axis=-1, keepdims=True), 0.0, mean)
    outside, bins = filled[..., :2], filled[..., 2:].reshape(*filled.shape[:-1], -1, 2)
    members = (~absent[..., 2::2]).sum(axis=-1, keepdims=True) - 1
    i = np.arange(bins.shape[-2])
    above, length = bins[..., 1], bins.sum(axis=-1)
    frequency = above / np.where(length.real > 0, length, 1)
    # The open bins: their length is that of the outliers, spread over the frequency with which they occur.
    low, high = outside[..., :1], outside[..., 1:]
    ends = [(i == 0, low, low), (i == members, high, 1 - high)]
    for where, outliers, known in ends:
        length = np.where(where, length / np.where(outliers.real > 0, outliers, 1), length)
        frequency = np.where(where, known, frequency)
    return length, frequency, i / np.maximum(members, 1)
