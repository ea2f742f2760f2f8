"""Write src/wx_eval/vectors.json: named conventions, small inputs, and values in 50-digit arithmetic.

    python tests/vectors/make.py            # writes the file
    python tests/vectors/make.py --check    # exit status 1 if the file differs

Only the standard library is used, and nothing of wx_eval: formulas come from the papers named with each case.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import areas
import events
import fields
import inference
import values
from exact import ONE, D, mean, total
from inputs import Input, all_inputs
from sample import Sample, sample
from texts import PEERS, TEXTS

VERSION = 1
FILE = Path(__file__).parents[2] / "src" / "wx_eval" / "vectors.json"
ABOUT = (
    "Conformance vectors of wx-eval. Inputs are exact in float64, null is a missing value, and the last dim "
    "of `data` runs fastest. `expected` was computed with 50 digits and rounded once; null is undefined. The "
    "label of a score is channel, region and lead time; settings that it does not name are those of "
    "`defaults`, parameters of a metric those of the class of its type. Formula and source of a case are "
    "those of its topic. An implementation agrees to -log10(max |found - expected| / max |expected|) digits, "
    "the maxima taken over the numbers of one label."
)
# Settings of scores that a case does not name.
PLAIN: dict[str, Any] = {"regions": ["global"], "weights": "cell", "average": "starts"}

SCORES: dict[str, Callable[[Sample, dict[str, Any]], events.Value]] = {
    "ACC": values.acc,
    "AUC": events.auc,
    "Activity": values.activity,
    "Bias": values.bias,
    "Brier": events.brier,
    "BrierTerm": events.brier_term,
    "CRPS": values.crps,
    "CRPSPart": values.crps_part,
    "Categorical": events.categorical,
    "Coherence": fields.coherence,
    "EnergyScore": values.energy,
    "EventFrequencies": events.frequencies,
    "FSS": fields.fss,
    "HersbachTerm": values.hersbach,
    "IntervalScore": values.interval_score,
    "JointEnergyScore": values.joint_energy,
    "LogSpectralDistance": fields.log_spectral_distance,
    "MAE": values.mae,
    "MSE": values.mse,
    "MSESkill": values.mse_skill,
    "PooledCRPS": fields.pooled_crps,
    "PowerSpectrum": fields.power,
    "QuantileScore": values.quantile_score,
    "REV": events.rev,
    "RMSE": values.rmse,
    "RPS": events.rps,
    "RankHistogram": events.ranks,
    "RankUniformity": events.rank_uniformity,
    "SEEPS": events.seeps,
    "SpectralBias": fields.spectral_bias,
    "SpectralRatio": fields.spectral_ratio,
    "Spread": values.spread,
    "SpreadSkill": values.spread_skill,
    "TwCRPS": values.tw_crps,
    "UsefulFSS": fields.useful_fss,
    "VariogramScore": values.variogram,
    "WIS": values.wis,
    "WindRMSE": values.wind_rmse,
}

Case = dict[str, Any]


class Suite:
    """Cases as they are added."""

    def __init__(self) -> None:
        self.inputs = all_inputs()
        self.data: dict[str, Any] = {}
        self.cases: list[Case] = []

    def add(
        self, kind: str, topic: str, name: str, settings: dict[str, Any], expected: Any, digits: int
    ) -> None:
        """A case; its texts are those of the topic."""
        found = {label: _rounded(value) for label, value in expected.items()}
        case = {"name": name, "kind": kind, "topic": topic, "settings": settings, "expected": found}
        self.cases.append(case | {"digits": digits} | ({"peers": PEERS[name]} if name in PEERS else {}))

    def score(
        self,
        given: str,
        channels: str,
        metric: str,
        /,
        *,
        weights: Any = "cell",
        regions: str = "global",
        average: str = "starts",
        members: int | None = None,
        digits: int = 12,
        pair_weights: str | None = None,
        **parameters: Any,
    ) -> None:
        """A score of a period; parameters are those of the metric, `pair_weights` its `weights`."""
        parameters |= {"weights": pair_weights} if pair_weights else {}
        source = self.inputs[given]
        m = source.members if members is None else members
        dictionary = {"type": metric, **parameters}
        chosen = {"regions": regions.split(), "weights": weights, "average": average}
        settings = {"input": given, "channels": channels.split(), "members": m, "metric": dictionary}
        settings |= {k: v for k, v in chosen.items() if v != PLAIN[k]}
        full = {**DEFAULTS[metric], **parameters}
        expected = {}
        for channel in _scored(metric, full, channels.split()):
            for region in regions.split():
                for lead in source.leads:
                    cell = sample(source, channel, region, lead, weights, m, average)
                    expected[f"{channel} {region} {lead}h"] = SCORES[metric](cell, full)
        self.add("score", metric, _name(settings), settings, expected, digits)


def _scored(metric: str, parameters: dict[str, Any], channels: list[str]) -> list[str]:
    if metric in ("WindRMSE", "JointEnergyScore"):
        return ["+".join(channels)]
    return [c for c in channels if metric != "SEEPS" or c in parameters["channels"]]


def _name(settings: dict[str, Any]) -> str:
    metric = settings["metric"]
    parts = ", ".join(f"{k}={_text(v)}" for k, v in metric.items() if k != "type")
    extra = [f"{k} {_text(settings[k])}" for k in PLAIN if k in settings]
    where = [settings["input"], *settings["channels"], f"M={settings['members']}", *extra]
    return f"{metric['type']}({parts}) {' '.join(where)}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(_text(v) for v in value.values()) + ")"
    return "[" + " ".join(map(_text, value)) + "]" if isinstance(value, list) else str(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if value is None or isinstance(value, int):
        return value
    # What cancels to nothing leaves the last of 50 digits.
    return float(value) if abs(value) > D("1e-40") else 0.0


# Parameters that a case does not name.
_SPECTRAL = {"kind": "sphere", "latitudes": None}
_WAVES = {**_SPECTRAL, "first": 1, "last": None}
_EVENT = {"event": ">"}
_FSS = {**_EVENT, "window": None, "radius_km": None, "edge": "periodic", "own_quantile": False}
_LIMITS = {"lower": None, "upper": None}
DEFAULTS: dict[str, dict[str, Any]] = {name: {} for name in SCORES} | {
    "RMSE": {"debiased": False, "root": "after"},
    "WindRMSE": {"root": "after"},
    "CRPS": {"alpha": None},
    "Brier": _EVENT,
    "BrierTerm": {**_EVENT, "bins": 0},
    "AUC": _EVENT,
    "REV": _EVENT,
    "Categorical": _EVENT,
    "EventFrequencies": _EVENT,
    "RPS": {"event": "<"},
    "TwCRPS": _LIMITS,
    "HersbachTerm": _LIMITS,
    "EnergyScore": {"lags": 0},
    "JointEnergyScore": {"scales": []},
    "VariogramScore": {"within_km": None, "weights": "equal", "norm": "area", "kind": "biased", "pairs": []},
    "FSS": _FSS,
    "UsefulFSS": _FSS,
    "PowerSpectrum": _SPECTRAL,
    "SpectralRatio": _SPECTRAL,
    "Coherence": _SPECTRAL,
    "LogSpectralDistance": _WAVES,
    "SpectralBias": _WAVES,
    "RankUniformity": {"ties": "share"},
    "SEEPS": {"of": "mean"},
}


def value_cases(suite: Suite) -> None:
    score = suite.score
    both = "global tropics"
    for metric in ("Bias", "MAE", "MSE", "RMSE"):
        score("globe", "t850", metric, regions=both, digits=11 if metric == "Bias" else 12)
        score("globe", "t850", metric, members=1)
    score("globe", "t850", "RMSE", root="each")
    score("globe", "t850", "RMSE", debiased=True)
    for weights in ("cell-wb2", "cell-wbx", "cos", "equal"):
        score("globe", "t850", "RMSE", weights=weights)
        score("crop", "t2m", "RMSE", weights=weights)
    score("globe", "t850", "RMSE", average="weights")
    score("sphere-gauss", "t850", "RMSE", weights="gauss")
    score("mesh", "z500 t2m", "RMSE", weights={"type": "area"})
    score("mesh", "z500", "RMSE", weights="equal")
    for settings in ({"kind": "count", "radius_km": 75.0}, {"kind": "gauss", "angle": 0.75}):
        score("stations", "tp", "RMSE", weights={"type": "density", **settings})
    score("globe", "t850", "RMSE", regions="nh sh arctic antarctic europe global_land nh_land")
    score("globe", "u850 v850", "WindRMSE", regions=both)
    score("globe", "u850 v850", "WindRMSE", root="each")
    for kind in ("fair", "biased"):
        for members in (2, 3, 8):
            score("globe", "t850", "CRPS", kind=kind, members=members, digits=13)
        score("globe", "tp", "CRPS", kind=kind, digits=13)
        score("stations", "tp", "CRPS", kind=kind, weights="equal", digits=13)
        score("mesh", "z500", "CRPS", kind=kind, weights={"type": "area"}, digits=13)
        score("globe", "t850", "TwCRPS", lower=282.0, kind=kind)
        score("globe", "t850", "TwCRPS", lower=278.0, upper=281.5, kind=kind)
    score("globe", "t850", "CRPS", kind="almost_fair", alpha=0.95, digits=13)
    score("globe", "t850", "CRPS", kind="fair", average="weights", regions=both, digits=13)
    score("globe", "t850", "TwCRPS", lower="quantile(0.9)", kind="fair")
    score("globe", "t850 tp", "TwCRPS", upper=[["tp", 1.0]], kind="fair")
    for part in ("overforecast", "underforecast", "spread_fair", "spread_biased"):
        score("globe", "t850", "CRPSPart", part=part)
    for term in ("reliability", "potential"):
        score("globe", "t850", "HersbachTerm", term=term)
        score("stations", "tp", "HersbachTerm", term=term, weights="equal")
    for term in ("resolution", "uncertainty"):
        score("globe", "t850", "HersbachTerm", term=term, lower=260.0, upper=300.0, steps=8)
    score("globe", "t850", "Spread", regions=both)
    for kind in ("raw", "fortin", "debiased"):
        score("globe", "t850", "SpreadSkill", kind=kind)
        score("mesh", "t2m", "SpreadSkill", kind=kind, weights={"type": "area"})
    for method in ("linear", "weibull", "hazen", "median_unbiased", "inverted_cdf"):
        score("globe", "t850", "QuantileScore", probability=0.9, method=method)
    score("stations", "tp", "QuantileScore", probability=0.5, method="linear", weights="equal")
    for method in ("linear", "inverted_cdf"):
        score("globe", "t850", "IntervalScore", level=0.5, method=method)
    score("globe", "t850", "WIS", levels=[0.2, 0.5, 0.9], method="linear")
    for kind in ("wb2", "pooled", "wmo"):
        score("globe", "t850", "ACC", kind=kind, regions=both, digits=11)
    for of in ("mean", "members", "truth"):
        score("globe", "t850", "Activity", of=of)
    score("globe", "t850", "MSESkill", digits=11)


def event_cases(suite: Suite) -> None:
    score = suite.score
    for event in (">", ">=", "<", "<="):
        for kind in ("fair", "biased"):
            score("globe", "tp", "Brier", threshold=0.25, event=event, kind=kind)
    score(
        "globe", "t850", "Brier", threshold="quantile(0.9)", event=">", kind="fair", regions="global tropics"
    )
    score("globe", "t850 tp", "Brier", threshold=[["tp", 1.0]], event=">=", kind="fair")
    score("stations", "tp", "Brier", threshold=0.1, event=">=", kind="fair", weights="equal")
    for kind in ("fair", "biased"):
        score("globe", "tp", "RPS", thresholds=[0.1, 0.25, 1.0], event="<", kind=kind)
    score("globe", "tp", "RPS", thresholds=[0.1, 0.25, 1.0], event=">=", kind="fair")
    score("globe", "tp", "EventFrequencies", threshold=0.25, event=">=", members=3)
    score("globe", "tp", "AUC", threshold=0.25, event=">=")
    score("globe", "tp", "AUC", threshold=0.25, event=">")
    for decision in ("best", "cost_loss", 0.5):
        score("globe", "tp", "REV", threshold=0.25, event=">=", cost_loss=0.25, decision=decision)
    for name in ("pod", "far", "pofd", "csi", "ets", "frequency_bias", "peirce", "heidke", "sedi"):
        score("globe", "tp", "Categorical", threshold=0.3, event=">=", score=name, by=0.5)
    score("globe", "tp", "Categorical", threshold=0.6, event=">", score="ets", by="mean")
    for term in ("reliability", "resolution", "uncertainty", "miscalibration", "discrimination"):
        score("globe", "tp", "BrierTerm", threshold=0.25, event=">=", term=term, digits=11)
    for term in ("reliability", "resolution", "within"):
        score("globe", "tp", "BrierTerm", threshold=0.25, event=">=", term=term, bins=5, digits=11)
    for ties in ("share", "lowest"):
        score("globe", "tp", "RankHistogram", ties=ties)
        score("globe", "t850", "RankHistogram", ties=ties, members=2, weights="cos")
    score("stations", "tp", "RankHistogram", ties="share", weights="equal")
    for kind in ("index", "chi_square"):
        score("globe", "tp", "RankUniformity", kind=kind)
    score("globe", "tp", "RankUniformity", kind="index", ties="lowest")
    for kind, hours in (("wbx", 24), ("wbx", 6), ("wb2", 24), ("wb2", 6), ("rodwell", 24)):
        score("globe", "tp", "SEEPS", channels=["tp"], hours=hours, kind=kind, members=1)
    score("globe", "tp", "SEEPS", channels=["tp"], hours=24, kind="wbx")
    for kind in ("wbx", "wb2", "rodwell"):
        score("globe", "tp", "SEEPS", channels=["tp"], hours=24, kind=kind, of="members")


def field_cases(suite: Suite) -> None:
    score = suite.score
    area = {"type": "area"}
    for kind in ("fair", "biased"):
        score("globe", "t850", "EnergyScore", kind=kind, norm="area")
        score("mesh", "z500", "EnergyScore", kind=kind, norm="euclidean", weights="equal")
        pair = {"channels": ["u850", "v850"], "kind": kind}
        score("globe", "u850 v850", "JointEnergyScore", **pair)
    score("globe", "t850", "EnergyScore", kind="fair", norm="area", lags=1)
    score("globe", "t850 u850", "JointEnergyScore", channels=["t850", "u850"], scales=[4.0, 5.0], kind="fair")
    for p in (0.5, 1.0):
        score("mesh", "z500 t2m", "VariogramScore", p=p, norm="sum", weights="equal")
    score("mesh", "t2m", "VariogramScore", p=0.5, kind="fair", norm="sum", weights="equal")
    score("mesh", "t2m", "VariogramScore", p=0.5, norm="area", pair_weights="inverse", weights=area)
    score("box", "t2m", "VariogramScore", p=0.5, within_km=4000.0, norm="area")
    edges = [[0, 1], [1, 0], [2, 5], [7, 3]]
    score("mesh", "t2m", "VariogramScore", p=0.5, norm="sum", pairs=edges, weights="equal")
    event = {"threshold": 0.25, "event": ">="}
    for edge in ("periodic", "interior", "zero"):
        score("box", "tp", "FSS", **event, window=3, edge=edge)
    score("box", "tp", "FSS", **event, window=3, edge="interior", weights="equal")
    score("box", "t2m", "FSS", threshold=285.0, event=">", window=3, edge="periodic")
    score("box", "t2m", "FSS", threshold=285.0, event=">", radius_km=3500.0)
    score("box", "t2m", "FSS", threshold=0.8, event=">", window=3, edge="periodic", own_quantile=True)
    score("box", "tp", "UsefulFSS", **event, window=3, edge="periodic")
    for pool in ("average", "max"):
        for kind in ("fair", "biased"):
            score("box", "t2m", "PooledCRPS", radius_km=3500.0, pool=pool, kind=kind)
    for of in ("members", "truth", "mean", "error"):
        score("sphere", "t850", "PowerSpectrum", of=of)
    score("sphere-between", "t850", "PowerSpectrum", of="members")
    score("sphere-gauss", "t850", "PowerSpectrum", of="members", weights="gauss")
    for kind in ("zonal", "zonal-wb2"):
        score("sphere-between", "t850", "PowerSpectrum", of="truth", kind=kind)
    score("sphere-between", "t850", "PowerSpectrum", of="truth", kind="zonal", latitudes=[20.0, 70.0])
    for of in ("members", "mean"):
        score("sphere", "t850", "SpectralRatio", of=of)
        score("sphere", "t850", "Coherence", of=of)
    score("sphere", "t850", "LogSpectralDistance")
    score("sphere", "t850", "LogSpectralDistance", first=2, last=4)
    score("sphere", "t850", "SpectralBias", digits=11)


ROWS = {
    "poles": [90.0, 60.0, 30.0, 0.0, -30.0, -60.0, -90.0],
    "uneven": [-90.0, -80.0, -30.0, 10.0, 50.0, 90.0],
    "no pole": [67.5, 22.5, -22.5, -67.5],
    "crop 20..60": [20.0, 30.0, 40.0, 50.0, 60.0],
}


def weight_cases(suite: Suite) -> None:
    rows = ROWS | {"gaussian": suite.inputs["sphere-gauss"].grid.latitude}
    for place, latitude in rows.items():
        kinds = ["cell-wbx"] if place == "uneven" else ["cell-wb2", "cell-wbx", "cos"]
        kinds += ["cell"] if not place.startswith("crop") else []
        kinds += ["gauss"] if place == "gaussian" else []
        kinds += ["equal"] if place == "poles" else []
        for kind in kinds:
            settings = {"latitude": latitude, "kind": kind}
            expected = {"weights": areas.row_weights(latitude, kind)}
            suite.add("weights", f"weights {kind}", f"weights {kind}, {place}", settings, expected, 13)
    grid = suite.inputs["stations"].grid
    rules: list[dict[str, Any]] = [
        {"kind": "count", "radius_km": 75.0},
        {"kind": "gauss", "angle": 0.75},
        {"kind": "count", "radius_km": 75.0, "limit": 1.5},
    ]
    for rule in rules:
        settings = {"latitude": grid.latitude, "longitude": grid.longitude, **rule}
        expected = {"weights": areas.density_weights(grid, **rule)}
        name = f"density {' '.join(map(str, rule.values()))}"
        suite.add("density", f"density {rule['kind']}", name, settings, expected, 11)


def region_cases(suite: Suite) -> None:
    """Corners of the boxes, which belong to them, and points just outside."""
    places: list[tuple[float, float]] = [
        (90.0, 0.0),
        (-90.0, 180.0),
        (20.0, 0.0),
        (-20.0, 359.5),
        (0.0, -180.0),
    ]
    places += [(sign * 75.0, 90.0 * k) for sign in (1, -1) for k in range(4)]
    for south, north, west, east in areas.BOXES.values():
        if D(east) - D(west) < 360:
            places += [(float(north), float(west)), (float(south), float(east) % 360)]
            places += [(float(north) + 0.01, float(west)), (float(south), float(east) + 0.01)]
    land = [[0.0, 0.49, 0.5, 1.0][k % 4] for k in range(len(places))]
    latitude, longitude = [a for a, _ in places], [b for _, b in places]
    suite.data["points"] = {"latitude": latitude, "longitude": longitude, "land_fraction": land}
    for suffix in ("", "_land"):
        expected = {}
        for region in areas.BOXES:
            name = region + suffix
            inside = (
                areas.inside(name, D(a), D(b), c) for a, b, c in zip(latitude, longitude, land, strict=True)
            )
            expected[name] = [k for k, yes in enumerate(inside) if yes]
        suite.add("regions", "regions", f"regions{suffix}", {"input": "points"}, expected, 16)


def differences(suite: Suite, count: int) -> list[float]:
    """A series that persists, from the data of "series"."""
    given = suite.inputs["series"]
    return [given.values[i, 24][0][0][0] for i in given.inits[:count]]  # type: ignore[misc]


def inference_cases(suite: Suite) -> None:
    for count in (40, 15):
        d = differences(suite, count)
        suite.data[f"differences {count}"] = d
        for method, horizons in (
            ("iid", [1]),
            ("geer", [1]),
            ("geer_wbx", [1]),
            ("ewc", [1]),
            ("ewc_ar1", [1]),
            ("hln", [1, 3]),
            ("hg", [1, 3]),
        ):
            for horizon in horizons:
                settings = {"input": f"differences {count}", "method": method, "horizon": horizon}
                expected = inference.paired_test([D(v) for v in d], method, horizon)
                name = f"test {method} horizon={horizon} T={count}"
                suite.add("test", f"test {method}", name, settings, expected, 11)
        expected = {"block": inference.block_length([D(v) for v in d])}
        suite.add(
            "block", "block", f"block length T={count}", {"input": f"differences {count}"}, expected, 11
        )
    p = [0.001, 0.04, None, 0.03, 0.2, 0.04, 0.9, 0.012, None, 0.5]
    for name in ("none", "sidak", "holm", "benjamini-hochberg", "benjamini-yekutieli"):
        adjusted = inference.corrected([None if v is None else D(v) for v in p], name)
        settings = {"p_values": p, "correction": name}
        suite.add("correction", name, f"correction {name}", settings, {"p_adjusted": adjusted}, 12)
    compare_cases(suite)


def compare_cases(suite: Suite) -> None:
    """Differences of scores of two systems; those that are not linear by the delta method."""
    given = suite.inputs["series"]
    for metric, settings in (
        ("CRPS", {"kind": "fair"}),
        ("RMSE", {}),
        ("SpreadSkill", {"kind": "debiased"}),
    ):
        for method in ("iid", "ewc_ar1"):
            sides = [_linear(given, metric, pair) for pair in ((0, 1), (2, 3))]
            line = [a - b for a, b in zip(sides[0][1], sides[1][1], strict=True)]
            stderr, df = inference.standard_error(line, method, 1)
            expected = {
                "score_a": sides[0][0],
                "score_b": sides[1][0],
                "difference": sides[0][2] - sides[1][2],
                "stderr": stderr,
                "df": D(df),
            }
            dictionary = {"type": metric, **settings}
            full = {"input": "series", "metric": dictionary, "a": [0, 1], "b": [2, 3], "method": method}
            name = f"compare {metric}({', '.join(map(str, settings.values()))}) {method}"
            suite.add("compare", f"compare {metric}", name, full, expected, 10)


def _linear(given: Input, metric: str, pair: tuple[int, int]) -> tuple[Decimal, list[Decimal], Decimal]:
    """Score, loss linearised at every start, and loss."""
    points = range(given.grid.size)
    series: dict[str, list[Decimal]] = {"crps": [], "mse": [], "variance": []}
    for init in given.inits:
        truth = given.truth[init + timedelta(days=1)][0]
        x = [[D(given.values[init, 24][m][0][n]) for m in pair] for n in points]  # type: ignore[arg-type]
        y = [D(v) for v in truth]  # type: ignore[arg-type]
        series["crps"].append(mean([values.crps_at(a, b, "fair") for a, b in zip(x, y, strict=True)]))
        series["mse"].append(mean([(mean(a) - b) ** 2 for a, b in zip(x, y, strict=True)]))
        series["variance"].append(mean([(a[0] - a[1]) ** 2 / 2 for a in x]))
    if metric == "CRPS":
        score = mean(series["crps"])
        return score, series["crps"], score
    mse, var = mean(series["mse"]), mean(series["variance"])
    if metric == "RMSE":
        score = mse.sqrt()
        return score, [score + (v - mse) / (2 * score) for v in series["mse"]], score
    # r = sqrt(V / Q) with Q = mse - V / 2 for two members; the loss is |r - 1|.
    q = mse - var / 2
    score = (var / q).sqrt()
    by_mse, by_var = -score / (2 * q), score / (2 * var) + score / (4 * q)
    sign = ONE if score >= 1 else -ONE
    rows = zip(series["mse"], series["variance"], strict=True)
    line = [sign * (score - 1 + by_mse * (m - mse) + by_var * (v - var)) for m, v in rows]
    return score, line, abs(score - 1)


DATES = ["2019-02-28", "2019-03-01", "2019-12-31", "2020-02-28", "2020-02-29", "2020-03-01", "2020-12-31"]


def calendar_cases(suite: Suite) -> None:
    years = [2019, 2020, 2021]
    for kind in ("monthday", "doy"):
        days = [date.fromisoformat(d) for d in DATES]
        settings = {"dates": DATES, "calendar": kind}
        expected = {"day": [inference.day_of_year(d, kind) for d in days]}
        suite.add("day", f"calendar {kind}", f"day of the year {kind}", settings, expected, 16)
        chosen = {
            str(d): [(inference.same_day(d, y, kind) - date(1970, 1, 1)).days for y in years] for d in days
        }
        settings = {"dates": DATES, "calendar": kind, "years": years}
        suite.add("members", f"climatology {kind}", f"climatological members {kind}", settings, chosen, 16)
    climatology_cases(suite)


def climatology_cases(suite: Suite) -> None:
    first, count = datetime(2019, 1, 1), 365 + 366
    # A congruential sequence: the same numbers in any language.
    state, series = 1, []
    for _ in range(count):
        state = (1103515245 * state + 12345) % 2**31
        series.append(max(0, state // 2**16 % 100 - 40))
    suite.data["history"] = {"first": "2019-01-01", "values": series, "units": "mm"}
    times = [first + timedelta(days=k) for k in range(count)]
    numbers = [D(v) for v in series]
    for kind, kernel, half in (
        ("monthday", "triangle", 30),
        ("doy", "triangle", 30),
        ("monthday", "flat", 5),
    ):
        settings = {
            "input": "history",
            "dates": DATES,
            "calendar": kind,
            "kernel": kernel,
            "window_days": half,
            "quantiles": [0.1, 0.9],
            "dry": 0.25,
        }
        windows = {
            day: inference.climatology(times, numbers, day, kind=kind, kernel=kernel, half=half)
            for day in range(1, 367)
        }
        chosen = [windows[inference.day_of_year(date.fromisoformat(d), kind)] for d in DATES]
        means = [total(v * w for v, w in c) / total(w for _, w in c) for c in chosen]
        squares = [
            (total(w * (v - m) ** 2 for v, w in c) / total(w for _, w in c)).sqrt()
            for c, m in zip(chosen, means, strict=True)
        ]
        dry = [D(sum(v <= D(0.25) for v, _ in w)) / len(w) for w in windows.values()]
        wet = [[(v, w) for v, w in c if v > D(0.25)] for c in chosen]
        expected = {
            "mean": means,
            "std": squares,
            "quantile(0.1)": [inference.weighted_quantile(c, D(0.1)) for c in chosen],
            "quantile(0.9)": [inference.weighted_quantile(c, D(0.9)) for c in chosen],
            "seeps_dry_fraction": [mean(dry)] * len(DATES),
            "seeps_threshold": [inference.weighted_quantile(c, D(2) / 3) for c in wet],
        }
        name = f"climatology {kind} {kernel} {half}"
        suite.add("climatology", "climatology", name, settings, expected, 11)


def build() -> dict[str, Any]:
    suite = Suite()
    for make in (
        value_cases,
        event_cases,
        field_cases,
        weight_cases,
        region_cases,
        inference_cases,
        calendar_cases,
    ):
        make(suite)
    names = [case["name"] for case in suite.cases]
    assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)
    given = {name: i.json() for name, i in suite.inputs.items()} | suite.data
    topics = {
        case["topic"]: dict(zip(("formula", "source"), TEXTS[case["topic"]], strict=True))
        for case in suite.cases
    }
    assert set(topics) == set(TEXTS), set(TEXTS) ^ set(topics)
    head = {"about": ABOUT, "version": VERSION, "defaults": PLAIN}
    return {**head, "topics": topics, "inputs": given, "cases": suite.cases}


def text(suite: dict[str, Any]) -> str:
    """JSON with one line per input and case, so that a change can be read."""
    parts = []
    for name, value in suite.items():
        if isinstance(value, dict):
            body = "{\n" + ",\n".join(f"{_dump(k)}:{_dump(v)}" for k, v in value.items()) + "\n}"
        else:
            body = "[\n" + ",\n".join(map(_dump, value)) + "\n]" if isinstance(value, list) else _dump(value)
        parts.append(f"{_dump(name)}:{body}")
    return "{" + ",\n".join(parts) + "}\n"


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def main() -> int:
    found = text(build())
    if "--check" in sys.argv[1:]:
        same = FILE.read_text() == found
        print("the file is that of the generator" if same else f"{FILE} differs: run {Path(__file__).name}")
        return 0 if same else 1
    FILE.write_text(found)
    print(f"{FILE}: {len(found)} bytes, {found.count(chr(10))} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
