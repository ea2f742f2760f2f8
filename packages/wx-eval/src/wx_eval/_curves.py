"""Curves of probability forecasts of an event: reliability, ROC, economic value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import xarray as xr

from ._bootstrap import bootstrap_index
from ._event_scores import COST_LOSS, EventFrequencies, cutoffs, economic_value, outcomes
from ._events import ThresholdLike
from ._grid import Array, Vector
from ._records import Records
from ._reliability import isotonic
from ._scores import Average, scores

Bars = Literal["starts", "points"]


def reliability_diagram(
    records: Records,
    threshold: ThresholdLike,
    event: str = ">",
    *,
    average: Average = "starts",
    seed: int | None = None,
    bars: Bars = "starts",
    resamples: int = 1000,
    level: float = 0.9,
    block: float = 1.0,
) -> xr.Dataset:
    """How often the event happened for each of the M + 1 forecast probabilities.

    Consistency bars say where the observed frequency of a reliable forecast would lie (Broecker and Smith
    2007, Weather and Forecasting 22, 651). "starts" resamples start dates, in blocks if they are correlated:
    the bars are the forecast probability plus the resampled departure from the observed frequency, so
    neighbouring points count as dependent as they are. "points" draws outcomes as if all points were
    independent and weighed the same, as the paper does, which is far too narrow for fields.

    Args:
        records: evaluated with `EventFrequencies` or another metric of the event's `EventOutcomes`.
        threshold: see `EventFrequencies`.
        event: see `EventFrequencies`.
        average: see `scores`; "starts" when there are bars.
        seed: of the resampling; without it there are no bars.
        bars: see above.
        resamples: number of samples drawn.
        level: of the interval that the bars cover.
        block: mean length of the blocks of start dates, in start dates.

    Returns:
        Variables (model, channel, region, lead_time, bin): `probability` k / M, `weight` the share of points
        with it, `frequency` of the event among them, `calibrated` by isotonic regression (CORP), and with a
        seed `low` and `high`. NaN where a probability was not forecast.

    Raises:
        ValueError: when the records lack the outcomes, or a setting is out of range.
    """
    metric = EventFrequencies(threshold, event)
    mean = scores(records, [metric], average=average)[metric.name]
    quiet, happened, probability = outcomes(mean.values)
    weight = quiet + happened
    size = (~np.isnan(mean.values[..., ::2])).sum(axis=-1, keepdims=True)
    some = (np.arange(weight.shape[-1]) < size) & (weight > 0)
    out = {
        "probability": probability,
        "weight": weight,
        "frequency": happened / np.where(some, weight, 1),
        "calibrated": isotonic(weight, happened),
    }
    if seed is not None:
        if average != "starts":
            raise ValueError('bars weigh every start date the same: use average="starts" with a seed')
        rows = records.to_xarray([metric.statistics[0].id])
        draw = _Draw(bars, resamples, level, block, np.random.default_rng(seed))
        limits = draw.limits(rows[metric.statistics[0].id].values, rows["n"].values, weight, probability)
        out["low"], out["high"] = np.clip(limits, 0, 1)
    dims = (*mean.dims[:-1], "bin")
    hidden = {name: (dims, np.where(some, field, np.nan)) for name, field in out.items() if name != "weight"}
    return xr.Dataset({**hidden, "weight": (dims, weight)}, {d: mean[d] for d in mean.dims[:-1]})


@dataclass(frozen=True)
class _Draw:
    """How consistency bars are drawn, see `reliability_diagram`."""

    bars: Bars
    resamples: int
    level: float
    block: float
    rng: np.random.Generator

    def __post_init__(self) -> None:
        known = self.bars in get_args(Bars)
        if not known or not 0 < self.level < 1 or self.resamples < 1 or self.block < 1:
            raise ValueError(
                'need bars "starts" or "points", level within (0, 1), resamples >= 1 and block >= 1, got '
                f"{self.bars!r}, {self.level!r}, {self.resamples!r} and {self.block!r}"
            )

    def limits(self, frequencies: Vector, points: Vector, weight: Vector, probability: Vector) -> Vector:
        """(2, ..., bins) from outcomes (..., T, K), points (..., T), and pooled shares (..., bins)."""
        out = np.full((2, *weight.shape), np.nan)
        for where in np.ndindex(weight.shape[:-1]):
            p = probability[where]
            if self.bars == "starts":
                drawn = self._departures(frequencies[where])
            else:
                drawn = self._outcomes(weight[where], p, int(points[where].sum()))
            some = ~np.isnan(drawn).all(axis=0)
            tails = [(1 - self.level) / 2, (1 + self.level) / 2]
            out[(slice(None), *where, some)] = p[some] + np.nanquantile(drawn[:, some], tails, axis=0)
        return out

    def _departures(self, series: Vector) -> Vector:
        """Observed frequencies of resampled start dates less those of all, (resamples, bins)."""
        there = ~np.isnan(series).all(axis=-1)
        table = np.nan_to_num(series[there]).reshape(-1, series.shape[-1] // 2, 2)
        weight, happened = table.sum(axis=-1), table[..., 1]
        if len(weight) < 2:
            return np.full((self.resamples, weight.shape[-1]), np.nan)
        total = weight.sum(axis=0)
        frequency = happened.sum(axis=0) / np.where(total > 0, total, 1)
        index = bootstrap_index(len(weight), self.resamples, self.block, self.rng)
        # As products with how often each start was drawn: the starts themselves would not fit in memory.
        times = np.stack([np.bincount(row, minlength=len(weight)) for row in index]).astype(np.float64)
        drawn, away = times @ weight, times @ (happened - weight * frequency)
        return np.asarray(np.where(drawn > 0, away / np.where(drawn > 0, drawn, 1), np.nan))

    def _outcomes(self, weight: Vector, p: Vector, points: int) -> Vector:
        """Frequencies of independent outcomes less their probabilities, (resamples, bins)."""
        share = np.nan_to_num(weight)
        if not share.sum():
            return np.full((self.resamples, p.size), np.nan)
        counts = self.rng.multinomial(points, share / share.sum(), size=self.resamples)
        events = self.rng.binomial(counts, np.minimum(p, 1))
        return np.asarray(np.where(counts > 0, events / np.maximum(counts, 1) - p, np.nan))


def roc_curve(
    records: Records, threshold: ThresholdLike, event: str = ">", *, average: Average = "starts"
) -> xr.Dataset:
    """Hits against false alarms when one acts if at least j of M members forecast the event.

    Args:
        records: evaluated with `EventFrequencies` or another metric of the event's `EventOutcomes`.
        threshold: see `EventFrequencies`.
        event: see `EventFrequencies`.
        average: see `scores`.

    Returns:
        Variables (model, channel, region, lead_time, cutoff), cutoff j = 0..M + 1 from always to never:
        `pod`, the probability of detection, and `pofd`, that of false detection.

    Raises:
        ValueError: when the records lack the outcomes.
    """
    mean, quiet, happened = _frequencies(records, threshold, event, average)
    alarms, hits = cutoffs(quiet, happened)
    with np.errstate(invalid="ignore", divide="ignore"):
        out = {"pod": hits / hits[..., :1], "pofd": alarms / alarms[..., :1]}
    dims = (*mean.dims[:-1], "cutoff")
    coords = {d: mean[d] for d in mean.dims[:-1]} | {"cutoff": np.arange(hits.shape[-1])}
    return xr.Dataset({name: (dims, field) for name, field in out.items()}, coords)


def value_curve(
    records: Records,
    threshold: ThresholdLike,
    event: str = ">",
    *,
    cost_loss: tuple[float, ...] = COST_LOSS,
    chosen_on: Records | None = None,
    average: Average = "starts",
) -> xr.Dataset:
    """Relative economic value by ratio of cost to loss, for each cutoff and for the best one.

    Args:
        records: evaluated with `EventFrequencies` or another metric of the event's `EventOutcomes`.
        threshold: see `EventFrequencies`.
        event: see `EventFrequencies`.
        cost_loss: ratios between 0 and 1; by default those of WeatherBench-X.
        chosen_on: records of another period of the same model, by which the best cutoff is chosen. Without
            them it is the best one of the very sample, an optimistic figure ("potential value").
        average: see `scores`.

    Returns:
        `value` (model, channel, region, lead_time, cost_loss, cutoff), where one acts if at least `cutoff`
        members forecast the event, and `best` without the last dim.

    Raises:
        ValueError: when the records lack the outcomes, or `chosen_on` differs in its keys or ensemble sizes.
    """
    ratios = np.asarray(cost_loss, np.float64)
    if ratios.ndim != 1 or not ((ratios > 0) & (ratios < 1)).all():
        raise ValueError(f"cost_loss must be ratios between 0 and 1, got {cost_loss!r}")
    mean, quiet, happened = _frequencies(records, threshold, event, average)
    value = _values(quiet, happened, ratios)
    chooser = value
    if chosen_on is not None:
        other, other_quiet, other_happened = _frequencies(chosen_on, threshold, event, average)
        try:
            xr.align(mean, other, join="exact")
        except ValueError as error:
            raise ValueError(
                "chosen_on must have the models, channels, regions, lead times and ensemble sizes of records"
            ) from error
        chooser = _values(other_quiet, other_happened, ratios)
    # The value is undefined for all cutoffs or for none.
    best = np.nan_to_num(chooser).argmax(axis=-1)
    taken = np.take_along_axis(value + 0 * chooser[..., :1], best[..., None], axis=-1)[..., 0]
    dims = (*mean.dims[:-1], "cost_loss")
    coords = {d: mean[d] for d in mean.dims[:-1]} | {
        "cost_loss": ratios,
        "cutoff": np.arange(value.shape[-1]),
    }
    return xr.Dataset({"value": ((*dims, "cutoff"), value), "best": (dims, taken)}, coords)


def _frequencies(
    records: Records, threshold: ThresholdLike, event: str, average: Average
) -> tuple[xr.DataArray, Array, Array]:
    metric = EventFrequencies(threshold, event)
    mean = scores(records, [metric], average=average)[metric.name]
    quiet, happened, _ = outcomes(mean.values)
    return mean, quiet, happened


def _values(quiet: Array, happened: Array, ratios: Vector) -> Array:
    alarms, hits = cutoffs(quiet, happened)
    rate = hits[..., :1, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return economic_value(alarms[..., None, :], hits[..., None, :], rate, ratios[:, None])
