"""Conventions of published evaluations.

What the evaluations were is in `Preset.facts`. Those named in `Preset.unchecked` were written down from
memory of the publication and were not compared with its text.
"""

from __future__ import annotations

from collections.abc import Mapping

from ._anomaly import ACC, Activity, MSESkill
from ._metrics import CRPS, MAE, MSE, RMSE, Bias, RankHistogram, Spread, SpreadSkill
from ._neighbourhood import PooledCRPS
from ._preset import Bootstrap as Bootstrap
from ._preset import Card as Card
from ._preset import Events as Events
from ._preset import Preset as Preset
from ._wind import WindRMSE

_BELTS = ("global", "tropics", "nh", "sh")
_WB2_REGIONS = (
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
_WBX_REGIONS = (
    *_WB2_REGIONS,
    "northern-africa",
    "southern-africa",
    "south-america",
    "west-asia",
    "south-east-asia",
)
_SINGLE_DAYS, _ENSEMBLE_DAYS = (1, 3, 5, 7, 10), (1, 3, 5, 10, 15)

_WB2 = Preset(
    name="wb2",
    source="WeatherBench 2, code of November 2025; it has no test and its thresholds are options: the test "
    "is ours and there are no events",
    weights="cell-wb2",
    average="starts",
    method="ewc",
    correction="benjamini-hochberg",
    seeps="wb2",
    regions=_WB2_REGIONS,
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
    facts={
        "period": "2020 by start, 00 and 12 UTC",
        "lead times": "6 h steps",
        "grid": "240x121, also 64x32 and 1440x721",
        "levels": "500, 700 and 850 hPa",
        "truth": "ERA5; operational models also their analysis",
        "climatology": "ERA5 1990-2019 by day and hour, window of 61 days",
    },
)
_WBX = Preset(
    name="wbx",
    source="WeatherBench-X, public benchmark of August 2026; MAE and rank histograms are of its library, not "
    "of the benchmark",
    weights="cell-wbx",
    average="weights",
    method="geer_wbx",
    correction="none",
    seeps="wbx",
    regions=_WBX_REGIONS,
    metrics=(
        RMSE(),
        RMSE(debiased=True),
        MSE(),
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
    facts={
        "period": "2018, 2020 and 2022 by start, 00 and 12 UTC; 2022 to 16 December",
        "lead times": "6 h steps",
        "grid": "240x121, also 64x32 and 1440x721",
        "levels": "500, 700 and 850 hPa",
        "truth": "ERA5 for models that start from it, the HRES analysis for ENS and operational models",
        "regions": "each also over land",
        "card": "relative difference to IFS in per cent, colours from 1, 2, 5, 10, 20 and 50 on",
        "test": "t test with the AR(2) inflation of its library",
    },
)
_GENCAST = Preset(
    name="gencast",
    source="GenCast (Price et al. 2025); the text does not settle the estimator of the CRPS, both are kept. "
    "The ratios of cost to loss on the card, the seed and the number of resamples are ours",
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
    events=(
        Events(
            channels=("t2m", "10m_wind_speed"),
            event=">",
            thresholds=("quantile(0.99)", "quantile(0.999)", "quantile(0.9999)"),
            cost_loss=(0.01, 0.05),
        ),
        Events(
            channels=("t2m", "msl"),
            event="<",
            thresholds=("quantile(0.01)", "quantile(0.001)", "quantile(0.0001)"),
            cost_loss=(0.01, 0.05),
        ),
    ),
    event_bootstrap=Bootstrap(),
    event_days=(1, 3, 5, 7, 10, 15),
    costly=tuple(PooledCRPS(60.0 * 2**k, pool) for pool in ("average", "max") for k in range(6)),
    facts={
        "period": "2019, 06 and 18 UTC for models that start from ERA5",
        "lead times": "12 h steps to 15 days",
        "members": "50",
        "truth": "ERA5 for models that start from it, the HRES analysis for ENS",
        "thresholds": "climatological quantiles 0.99, 0.999 and 0.9999 of t2m and 10 m wind speed, 0.01, "
        "0.001 and 0.0001 of t2m and sea level pressure",
        "test": "paired t test with autocorrelation inflation for CRPS and RMSE, block bootstrap for Brier "
        "score and economic value",
        "pooled CRPS": "averages and maxima over discs of 120 to 3840 km across",
        "cyclones": "track errors and the value of track probabilities, see score_tracks",
    },
    unchecked=("period", "members", "truth", "thresholds", "test", "pooled CRPS", "cyclones"),
)
_ATLAS = Preset(
    name="atlas",
    source="ATLAS (arXiv 2601.18111): a plain paired t test, whose standard error ignores autocorrelation; "
    "it scores no events",
    weights="cell",
    average="starts",
    method="iid",
    correction="none",
    seeps="wbx",
    regions=_BELTS,
    metrics=(CRPS("fair"), RMSE(), Spread(), SpreadSkill("fortin")),
    ensembles=Card(metrics=("crps_fair", "rmse")),
    single=Card(metrics=("rmse",)),
    facts={
        "period": "2020",
        "lead times": "to 15 days",
        "truth": "ERA5",
        "baselines": "IFS ENS and GenCast",
        "test": "paired two-sided t test over starts with T - 1 degrees of freedom",
    },
    unchecked=("period", "lead times", "truth", "baselines", "test"),
)
_WMO = Preset(
    name="wmo",
    source="WMO-No. 485, appendix 2.2.34, its zonal areas; wind events as the lead centre for deterministic "
    "verification exchanges them. It prescribes no test, which is ours",
    weights="cos",
    average="starts",
    method="ewc_ar1",
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
    events=(Events(channels=("10m_wind_speed",), event=">", thresholds=(5.0, 10.0, 15.0)),),
    facts={
        "truth": "the own analysis of each centre, and observations",
        "thresholds": "10 m wind speed 5, 10 and 15 m s-1; precipitation in 24 h 1, 10 and 50 mm, in 6 h "
        "1, 5 and 25 mm, which have to be given in the unit of the channel",
    },
    unchecked=("truth",),
)

PRESETS: Mapping[str, Preset] = {p.name: p for p in (_WB2, _WBX, _GENCAST, _ATLAS, _WMO)}
"""Presets by name: "wb2", "wbx", "gencast", "atlas" and "wmo"."""
