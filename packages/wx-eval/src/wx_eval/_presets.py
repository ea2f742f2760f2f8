"""Conventions of published evaluations, each as one object that evaluates, scores and compares by them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._anomaly import ACC, Activity, MSESkill
from ._compare import Comparison, compare
from ._evaluate import Band, evaluate
from ._inference import Method
from ._kernels import Kernel
from ._metrics import CRPS, MAE, RMSE, Bias, Metric, RankHistogram, Spread, SpreadSkill
from ._multiplicity import Correction
from ._protocols import Climatology, ForecastChunk, History
from ._records import Records
from ._regions import RegionSpec
from ._samples import Sample
from ._scores import Average, scores
from ._seeps import SEEPS
from ._weights import Weights
from ._wind import WindRMSE


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is tested against a baseline.

    Attributes:
        metrics: names.
        days: lead times; those that the records hold are used, and all of them when none are given.
    """

    metrics: tuple[str, ...]
    days: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Conventions of one evaluation protocol.

    Records keep `label`, so that those of two presets cannot be merged or compared by accident. Regions,
    metrics and cards are a selection and no part of it: `dataclasses.replace` changes them freely.

    Attributes:
        name: short name.
        source: what the conventions were taken from, and which of them are our choice.
        weights: see `cell_weights`.
        average: over init times, see `scores`.
        method: standard error behind p-values, see `paired_test`.
        correction: for the number of tests on a card.
        seeps: kind of `SEEPS`, which is added for channels of precipitation.
        regions: default regions.
        metrics: default metrics.
        ensembles: card when both models have two members or more.
        single: card otherwise.
    """

    name: str
    source: str
    weights: Weights
    average: Average
    method: Method
    correction: Correction
    seeps: Literal["wbx", "wb2"]
    regions: tuple[str, ...]
    metrics: tuple[Metric, ...]
    ensembles: Card
    single: Card

    @property
    def label(self) -> str:
        """Name and hash of the conventions."""
        shared = [self.name, self.weights, self.average, self.method, self.correction, self.seeps]
        return f"{self.name}:{hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:8]}"

    def evaluate(
        self,
        forecast: xr.DataArray | Iterable[ForecastChunk],
        truth: xr.DataArray | History,
        *,
        model: str,
        climatology: Climatology | None = None,
        precipitation: Mapping[str, int] | None = None,
        metrics: Sequence[Metric] | None = None,
        regions: RegionSpec | None = None,
        land_fraction: npt.ArrayLike | None = None,
        truth_name: str | None = None,
        missing_truth: Literal["error", "drop"] = "error",
        kernel: Kernel = "numpy",
        workers: int = 1,
        band: Band | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Records:
        """`wx_eval.evaluate` by these conventions.

        Those not named here are the arguments of `wx_eval.evaluate`.

        Args:
            climatology: which anomalies and SEEPS need; pass `metrics` without them where there is none.
            precipitation: hours over which each channel of precipitation is summed, 6 or 24; these get SEEPS.
            metrics: instead of those of the preset.
            regions: instead of those of the preset.
        """
        chosen = self.metrics if metrics is None else tuple(metrics)
        for hours in sorted(set((precipitation or {}).values())):
            channels = tuple(c for c, h in (precipitation or {}).items() if h == hours)
            chosen += (SEEPS(channels, hours=hours, kind=self.seeps),)
        return evaluate(
            forecast,
            truth,
            model=model,
            metrics=chosen,
            regions=self.regions if regions is None else regions,
            weights=self.weights,
            climatology=climatology,
            land_fraction=land_fraction,
            truth_name=truth_name,
            missing_truth=missing_truth,
            preset=self.label,
            kernel=kernel,
            workers=workers,
            band=band,
            progress=progress,
        )

    def scores(self, records: Records, metrics: Sequence[Metric | str] | None = None) -> xr.Dataset:
        """`wx_eval.scores` with the preset's mean over init times.

        Raises:
            ValueError: for records of other conventions.
        """
        self._check(records)
        return scores(records, metrics, average=self.average)

    def compare(
        self,
        a: Records,
        b: Records,
        *,
        model_a: str | None = None,
        model_b: str | None = None,
        metrics: Sequence[str | Metric] | None = None,
        channels: Sequence[str] | None = None,
        regions: Sequence[str] | None = None,
        lead_times: Iterable[np.timedelta64] | None = None,
        months: Iterable[int] | None = None,
        sample: Sample = "each",
        lag: np.timedelta64 | None = None,
        alpha: float = 0.05,
    ) -> Comparison:
        """`wx_eval.compare` on the preset's card.

        Args:
            a, b, model_a, model_b, channels, regions, months, sample, lag, alpha: see `compare`.
            metrics: instead of those of the card.
            lead_times: instead of those of the card.

        Raises:
            ValueError: for records of other conventions or without any lead time of the card.
        """
        for records in (a, b):
            self._check(records)
        left, right = (r if m is None else r.select(model=m) for r, m in ((a, model_a), (b, model_b)))
        sizes = np.concatenate([r.table["members"].to_numpy() for r in (left, right)])
        card = self.ensembles if (sizes > 1).all() else self.single
        return compare(
            left,
            right,
            card.metrics if metrics is None else metrics,
            channels=channels,
            regions=regions,
            lead_times=_lead_times(card, left) if lead_times is None else lead_times,
            months=months,
            sample=sample,
            lag=lag,
            average=self.average,
            method=self.method,
            correction=self.correction,
            alpha=alpha,
        )

    def _check(self, records: Records) -> None:
        if records.conventions.preset != self.label:
            raise ValueError(
                f"preset {self.label!r} needs records that it evaluated, these are of "
                f"{records.conventions.preset or 'no preset'!r}"
            )


def _lead_times(card: Card, records: Records) -> npt.NDArray[np.timedelta64] | None:
    if not card.days:
        return None
    wanted = np.array(card.days, "timedelta64[D]").astype("timedelta64[s]")
    found = np.intersect1d(wanted, records.lead_times.astype("timedelta64[s]"))
    if not found.size:
        raise ValueError(
            f"the card is of the days {card.days}, of which the records hold none: use wx_eval.compare"
        )
    return found


_BELTS = ("global", "tropics", "nh", "sh")
_WB_REGIONS = (
    *_BELTS,
    "europe",
    "north-america",
    "north-atlantic",
    "north-pacific",
    "east-asia",
    "ausnz",
    "arctic",
    "antarctic",
)
_SINGLE_DAYS, _ENSEMBLE_DAYS = (1, 3, 5, 7, 10), (1, 3, 5, 10, 15)

# Metrics of thresholds (Brier score, relative economic value) belong into the tuples of metrics below.
_WB2 = Preset(
    name="wb2",
    source="WeatherBench 2, code of November 2025; it has no test, which is ours",
    weights="cell-wb2",
    average="starts",
    method="ewc",
    correction="benjamini-hochberg",
    seeps="wb2",
    regions=_WB_REGIONS,
    metrics=(
        RMSE(),
        RMSE(debiased=True),
        MAE(),
        Bias(),
        WindRMSE(),
        ACC("wb2"),
        CRPS("fair"),
        Spread(),
        SpreadSkill("raw"),
        RankHistogram(),
    ),
    ensembles=Card(metrics=("crps_fair", "rmse"), days=_ENSEMBLE_DAYS),
    single=Card(metrics=("rmse", "acc_wb2"), days=_SINGLE_DAYS),
)
_WBX = Preset(
    name="wbx",
    source="WeatherBench-X, public benchmark of August 2026",
    weights="cell-wbx",
    average="weights",
    method="geer",
    correction="none",
    seeps="wbx",
    regions=_WB_REGIONS,
    metrics=(
        RMSE(),
        MAE(),
        Bias(),
        WindRMSE(),
        ACC("pooled"),
        Activity("mean"),
        CRPS("fair"),
        Spread(),
        SpreadSkill("debiased"),
        RankHistogram("lowest"),
    ),
    ensembles=Card(metrics=("crps_fair", "rmse"), days=_ENSEMBLE_DAYS),
    single=Card(metrics=("rmse", "acc_pooled"), days=_SINGLE_DAYS),
)
_GENCAST = Preset(
    name="gencast",
    source="GenCast (Price et al. 2024); the text does not settle the estimator of the CRPS, both are kept",
    weights="cell",
    average="starts",
    method="geer",
    correction="none",
    seeps="wbx",
    regions=_BELTS,
    metrics=(
        CRPS("fair"),
        CRPS("biased"),
        RMSE(),
        Bias(),
        Spread(),
        SpreadSkill("fortin"),
        RankHistogram(),
    ),
    ensembles=Card(metrics=("crps_fair", "rmse")),
    single=Card(metrics=("rmse",)),
)
_ATLAS = Preset(
    name="atlas",
    source="ATLAS (arXiv 2601.18111): a plain paired t test, whose standard error ignores autocorrelation",
    weights="cell",
    average="starts",
    method="iid",
    correction="none",
    seeps="wbx",
    regions=_BELTS,
    metrics=(CRPS("fair"), RMSE(), Spread(), SpreadSkill("fortin")),
    ensembles=Card(metrics=("crps_fair", "rmse")),
    single=Card(metrics=("rmse",)),
)
_WMO = Preset(
    name="wmo",
    source="WMO-No. 485, appendix 2.2.34, its zonal areas; it prescribes no test, which is ours",
    weights="cos",
    average="starts",
    method="ewc",
    correction="benjamini-hochberg",
    seeps="wbx",
    regions=("nh", "sh", "tropics", "arctic", "antarctic"),
    metrics=(
        RMSE(),
        MAE(),
        Bias(),
        WindRMSE(),
        ACC("wmo"),
        Activity("mean"),
        Activity("truth"),
        MSESkill(),
        CRPS("fair"),
        Spread(),
    ),
    ensembles=Card(metrics=("crps_fair", "rmse")),
    single=Card(metrics=("rmse", "acc_wmo")),
)

PRESETS: Mapping[str, Preset] = {p.name: p for p in (_WB2, _WBX, _GENCAST, _ATLAS, _WMO)}
"""Presets by name: "wb2", "wbx", "gencast", "atlas" and "wmo"."""
