"""Confidence intervals of the scores of a period."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import xarray as xr

from ._bootstrap import resampled
from ._grid import Array, Vector
from ._inference import Method
from ._metrics import Metric, linearised
from ._records import KEY, Records
from ._samples import Test, groups, scored_starts, spacing, take_all, weights_of
from ._scores import Average, check_lengths, needed, resolve


def score_intervals(
    records: Records,
    metrics: Sequence[Metric | str] | None = None,
    *,
    method: Method | Literal["bootstrap"] = "ewc_ar1",
    level: float = 0.95,
    average: Average = "starts",
    seed: int | None = None,
    resamples: int = 2000,
    block: float | None = None,
) -> xr.Dataset:
    """Confidence intervals of single scores, for curves with bands.

    An interval says how well the score of all starts of this kind is known from these starts. Whether two
    models differ is another question: their scores share the weather, so compare them by `compare`, never by
    whether their bands overlap.

    Args:
        records: of one or more models.
        metrics: see `scores`; by default all that are single numbers.
        method: see `paired_test` and `compare`; a metric that is not linear goes through its linearisation.
        level: of the intervals.
        average: see `scores`.
        seed, resamples, block: of the bootstrap, see `compare`.

    Returns:
        For each metric its value under its name, "<name>_low", "<name>_high" and "<name>_stderr", (model,
        channel, region, lead_time); NaN where fewer than 2 starts are scored or the score is not defined.
        The attributes `method` and `level` say how they were made.

    Raises:
        ValueError: for a vector metric, statistics that the records do not hold, or settings out of range.
    """
    test = Test(method=method, seed=seed, resamples=resamples, block=block, level=level)
    if average not in ("starts", "weights"):
        raise ValueError(f'average must be "starts" or "weights", got {average!r}')
    chosen = resolve(records, metrics)
    vectors = [metric.name for metric in chosen if metric.vector]
    if metrics is not None and vectors:
        raise ValueError(f"metric {vectors[0]!r} is a vector: intervals are for single numbers")
    chosen = [metric for metric in chosen if not metric.vector]
    rows = records.to_xarray(needed(records, chosen)).transpose(*KEY, ...)
    data = {}
    for metric in chosen:
        for suffix, values in _intervals(metric, rows, test, average).items():
            attributes = {"goal": metric.goal, "unit": metric.unit, "method": method, "level": level}
            data[metric.name + suffix] = (KEY[:4], values, attributes)
    coords = {name: rows[name] for name in KEY[:4]}
    return xr.Dataset(data, coords, attrs={"method": method, "level": level})


def _intervals(metric: Metric, rows: xr.Dataset, test: Test, average: Average) -> dict[str, Array]:
    """Value, limits and standard error, (model, channel, region, lead_time), by the end of their name."""
    scored = scored_starts(rows, metric).values
    shape = scored.shape[:4]
    ids = [s.id for s in metric.statistics]
    statistics = {n: _flat(rows[n].values) for n in ids}
    weights = {n: _flat(weights_of(rows, n).values) for n in ids} if average == "weights" else None
    out = {suffix: np.full((int(np.prod(shape[:3])), shape[3]), np.nan) for suffix in _SUFFIXES}
    for group in groups(_flat(scored)):
        if len(group.starts) < 2:
            continue
        series = take_all(statistics, group)
        for name, values in series.items():
            if values.ndim > 2:
                check_lengths(name, np.moveaxis(values, 0, -2))
        own = None if weights is None else take_all(weights, group)
        lead, starts = rows["lead_time"].values[group.lead], rows["init_time"].values[group.starts]
        found = _estimate(metric, series, own, test, spacing(starts, lead))
        for suffix, column in zip(_SUFFIXES, found, strict=True):
            out[suffix][group.cells, group.lead] = column
    return {suffix: column.reshape(shape) for suffix, column in out.items()}


_SUFFIXES = ("", "_low", "_high", "_stderr")


def _estimate(
    metric: Metric,
    series: Mapping[str, Vector],
    weights: Mapping[str, Vector] | None,
    test: Test,
    steps: tuple[int, bool],
) -> tuple[Vector, Vector, Vector, Vector]:
    value, line = linearised(metric, series, weights)
    if test.method == "bootstrap":
        counts, _ = test.counts(line)
        drawn = resampled(metric.value, series, counts, weights)
        found = test.of_draws(drawn, value, line, steps[1])
    else:
        found = test.of_series(line, value, *steps)
    return value, found.low, found.high, found.stderr


def _flat(values: Array) -> Array:
    """(model, channel, region, ...) as (cells, ...)."""
    return np.ascontiguousarray(values).reshape(-1, *values.shape[3:])
