"""Scores of whole periods from records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from ._anomaly import ACC, Activity, MSESkill
from ._crps import CRPSPart, HersbachTerm, TwCRPS
from ._event_scores import AUC, REV, RPS, Brier, Categorical, EventFrequencies
from ._grid import Array
from ._metrics import MSE, STANDARD_METRICS, Metric, RankHistogram
from ._multivariate import EnergyScore, JointEnergyScore, VariogramScore
from ._neighbourhood import FSS, PooledCRPS, UsefulFSS
from ._quantiles import WIS, IntervalScore, QuantileScore
from ._records import KEY, WEIGHT, Records
from ._reliability import BrierTerm, RankUniformity
from ._seeps import SEEPS
from ._spectra import Coherence, LogSpectralDistance, PowerSpectrum, SpectralBias, SpectralRatio
from ._wind import WindRMSE

Average = Literal["starts", "weights"]
KNOWN: tuple[type[Metric], ...] = (
    *dict.fromkeys(type(m) for m in STANDARD_METRICS),
    MSE,
    RankHistogram,
    ACC,
    Activity,
    MSESkill,
    SEEPS,
    WindRMSE,
    Brier,
    RPS,
    AUC,
    REV,
    Categorical,
    EventFrequencies,
    BrierTerm,
    RankUniformity,
    QuantileScore,
    IntervalScore,
    WIS,
    TwCRPS,
    CRPSPart,
    HersbachTerm,
    EnergyScore,
    JointEnergyScore,
    VariogramScore,
    FSS,
    UsefulFSS,
    PooledCRPS,
    PowerSpectrum,
    SpectralRatio,
    Coherence,
    LogSpectralDistance,
    SpectralBias,
)


def scores(
    records: Records, metrics: Sequence[Metric | str] | None = None, *, average: Average = "starts"
) -> xr.Dataset:
    """Scores per (model, channel, region, lead time).

    Args:
        records: of one or more models.
        metrics: metrics or the names under which the records keep them; by default all that they were
            evaluated for (metrics of other packages have to be passed). A metric of several numbers has a
            last dim "<name>_k".
        average: "starts": every init time with a truth counts once. "weights": every scored point counts by
            its weight, as in WeatherBench-X, which differs where truth is missing.

    Returns:
        One variable per metric, and n_starts: init times that were scored; n_dropped: those without truth;
        members: M (NaN when it varies). Whatever needs more members than there are is NaN. The unit of each
        channel is in `units`, what each metric makes of it in the attributes `unit` and `goal`.

    Raises:
        ValueError: for metrics whose statistics the records do not hold.
    """
    chosen = resolve(records, metrics)
    rows = records.to_xarray(needed(records, chosen))
    scored = rows["n"] > 0
    data = {}
    # A small sample can put a debiased error below zero, where the score does not exist.
    with np.errstate(invalid="ignore", divide="ignore"):
        for metric in chosen:
            means = {s.id: _mean(rows, s.id, scored, average) for s in metric.statistics}
            data[metric.name] = _value(metric, means)
    members = rows["members"]
    same = members.max("init_time") == members.min("init_time")
    data |= {
        "n_starts": scored.sum("init_time"),
        "n_dropped": (rows["n"] == 0).sum("init_time"),
        "members": members.max("init_time").where(same),
    }
    result = xr.Dataset(data)
    units = records.conventions.units
    return result.assign_coords(units=("channel", [units.get(str(c), "") for c in result["channel"].values]))


def resolve(records: Records, metrics: Sequence[Metric | str] | None) -> list[Metric]:
    """Metrics from their names.

    Raises:
        ValueError: for a name that no metric of the records and none of the standard ones has.
    """
    kept = {name: metric_from_dict(settings) for name, settings in records.metrics.items()}
    known = {m.name: m for m in STANDARD_METRICS} | {name: m for name, m in kept.items() if m is not None}
    if metrics is None:
        held = set(records.statistics)
        names = records.metrics or [
            m.name for m in STANDARD_METRICS if held.issuperset(s.id for s in m.statistics)
        ]
        return [known[name] for name in names if name in known]
    unknown = [m for m in metrics if isinstance(m, str) and m not in known]
    if unknown:
        raise ValueError(
            f"no metric {unknown[0]!r} in the records, which hold {sorted(known)}: give evaluate the metric, "
            "or pass the metric itself"
        )
    return [known[m] if isinstance(m, str) else m for m in metrics]


def metric_from_dict(settings: Mapping[str, Any]) -> Metric | None:
    """A metric of this package from its JSON data; None for one of somebody else."""
    found = next((cls for cls in KNOWN if cls.__name__ == settings.get("type")), None)
    return None if found is None else found.from_dict(settings)


def needed(records: Records, metrics: Iterable[Metric]) -> list[str]:
    """Ids of the statistics of metrics.

    Raises:
        ValueError: naming the metric whose statistic was not kept.
    """
    held, out = set(records.statistics), []
    for metric in metrics:
        lacking = [s.id for s in metric.statistics if s.id not in held]
        if lacking:
            raise ValueError(
                f"metric {metric.name!r} needs the statistics {lacking}, which the records do not hold: give "
                "evaluate the metric"
            )
        out += [s.id for s in metric.statistics]
    return out


def check_lengths(name: str, values_TK: Array) -> None:
    """Refuse a series of vectors (..., T, K) that end in NaN at different places.

    Raises:
        ValueError: when they do: they belong to ensembles of different size.
    """
    if not values_TK.shape[-1]:
        return
    there = ~np.isnan(values_TK)
    length = np.where(there.any(axis=-1), values_TK.shape[-1] - there[..., ::-1].argmax(axis=-1), 0)
    if ((length > 0) & (length != length.max(axis=-1, keepdims=True, initial=0))).any():
        raise ValueError(
            f"{name} of ensembles of different size cannot be averaged: select init times of one size"
        )


def _mean(rows: xr.Dataset, name: str, scored: xr.DataArray, average: Average) -> xr.DataArray:
    """Mean over init times."""
    values = rows[name].where(scored)
    if values.ndim > len(KEY):
        check_lengths(name, values.transpose(*KEY, ...).values)
    if average == "starts":
        return values.mean("init_time")
    if average != "weights":
        raise ValueError(f'average must be "starts" or "weights", got {average!r}')
    # Rows from runs in which the statistic existed everywhere have no weight of their own.
    weight = rows["sum_w"] if name + WEIGHT not in rows else rows[name + WEIGHT].fillna(rows["sum_w"])
    weight = weight.where(values.notnull())
    return (values * weight).sum("init_time") / weight.sum("init_time")


def _value(metric: Metric, means: Mapping[str, xr.DataArray]) -> xr.DataArray:
    """The metric of arrays whose first axes are those of the records."""
    like = next(iter(means.values()))
    shared = [d for d in like.dims if not str(d).endswith("_k")]
    # A vector that no row holds has no length.
    absent = any(0 in mean.shape for mean in means.values())
    empty = np.full((*like.shape[: len(shared)], *(0,) * metric.vector), np.nan)
    value = empty if absent else np.asarray(metric.value({n: mean.values for n, mean in means.items()}))
    dims = [*shared, f"{metric.name}_k"] if metric.vector else shared
    coords = {d: like[d] for d in shared}
    return xr.DataArray(value, coords, dims, attrs={"goal": metric.goal, "unit": metric.unit})
