"""Agreement with peers in float64; run by `nox -s parity`, where they are installed."""

import importlib
import operator
import os
import warnings
from typing import Any

import numpy as np
import pytest
import scipy
import xarray as xr

from wx_eval import CRPS, Chunk, cell_weights, evaluate
from wx_eval import scores as period_scores
from wx_eval._anomaly import ACC
from wx_eval._case import Case
from wx_eval._crps import CRPSPart, TwCRPS
from wx_eval._event_scores import AUC, REV, RPS, Brier, Categorical
from wx_eval._grid import Grid
from wx_eval._inference import mean_tests
from wx_eval._metrics import Metric
from wx_eval._multiplicity import benjamini_hochberg, benjamini_yekutieli, holm, sidak
from wx_eval._multivariate import EnergyScore, JointEnergyScore, VariogramScore
from wx_eval._neighbourhood import FSS
from wx_eval._quantiles import WIS, IntervalScore, QuantileScore
from wx_eval._reliability import BrierTerm
from wx_eval._seeps import SEEPS
from wx_eval._statistics import Statistic


def peer_module(name: str, package: str) -> Any:
    """A module of a peer, whose warnings at import are its own; an absent one skips unless it is required."""
    with warnings.catch_warnings(action="ignore"):
        if "REQUIRE_PEERS" in os.environ:
            return importlib.import_module(name)
        return pytest.importorskip(name, reason=f"parity with {package} needs `pip install {package}`")


# Anomalies and precipitation


class GivenClimatology:
    """Fields by statistic, the same at all times."""

    name = "given"

    def __init__(self, **fields: xr.DataArray) -> None:
        self._fields = fields

    def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
        del valid_time
        return self._fields[statistic].expand_dims(channel=["tp"])


def precipitation(times: int, seed: int) -> xr.DataArray:
    """(time, latitude, longitude) in mm, dry at more than half of the times."""
    rng = np.random.default_rng(seed)
    values = np.round(np.maximum(rng.gamma(0.5, 6, (times, 19, 36)) - 1, 0), 1)
    coords = {"time": np.datetime64("2020-06-01", "ns") + np.arange(times) * np.timedelta64(24, "h")}
    coords |= {"latitude": np.linspace(90, -90, 19), "longitude": np.arange(36) * 10.0}
    return xr.DataArray(values, coords, ("time", "latitude", "longitude"))


def scored(forecast: xr.DataArray, truth: xr.DataArray, metric: Metric, climate: GivenClimatology) -> float:
    """Score of a deterministic forecast with lead time 0, over the globe."""
    units = {"units": ("channel", ["mm"])}
    states = truth.expand_dims(channel=["tp"], axis=1).assign_coords(units)
    chunks = forecast.expand_dims(channel=["tp"], axis=1).assign_coords(units).rename(time="init_time")
    chunks = chunks.expand_dims(lead_time=np.array([0], "timedelta64[ns]"))
    rows = evaluate(chunks, states, model="a", metrics=[metric], climatology=climate, regions=["global"])
    return float(period_scores(rows)[metric.name].squeeze())


def area(like: xr.DataArray) -> xr.DataArray:
    rows = xr.DataArray(cell_weights(like["latitude"].values), {"latitude": like["latitude"]}, ("latitude",))
    return (rows * xr.ones_like(like["longitude"])).transpose("latitude", "longitude")


def test_seeps_is_that_of_scores() -> None:
    peer = peer_module("scores.categorical", "scores")
    f, y = precipitation(30, 1), precipitation(30, 2)
    p1 = (y * 0).mean("time") + np.random.default_rng(3).uniform(0.05, 0.95, (19, 36))
    wet = p1 * 0 + 4.0
    climate = GivenClimatology(seeps_dry_fraction=p1, seeps_threshold=wet)
    expected = peer.seeps(f, y, p1, wet, weights=area(p1))
    got = scored(f, y, SEEPS(("tp",), kind="rodwell"), climate)
    assert got == pytest.approx(float(expected), rel=1e-12)


def test_wmo_anomaly_correlation_is_the_weighted_correlation_of_xskillscore() -> None:
    peer = peer_module("xskillscore", "xskillscore")
    f, y = precipitation(20, 1), precipitation(20, 2)
    f = f + y
    mean = (y * 0).mean("time") + np.random.default_rng(4).standard_normal((19, 36))
    expected = peer.pearson_r(f - mean, y - mean, dim=["latitude", "longitude"], weights=area(mean)).mean()
    got = scored(f, y, ACC("wmo"), GivenClimatology(mean=mean))
    assert got == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("kind", ["wb2", "pooled"])
def test_the_kinds_of_anomaly_correlation_in_plain_xarray(kind: str) -> None:
    """The published formulas of WeatherBench 2 and X, whose packages are not on the index."""
    f, y = precipitation(20, 1), precipitation(20, 2)
    mean = (y * 0).mean("time") + np.random.default_rng(4).standard_normal((19, 36))
    a, b = f - mean, y - mean
    dims = ["latitude", "longitude"] if kind == "wb2" else ["time", "latitude", "longitude"]
    product, left, right = ((x).weighted(area(mean)).mean(dims) for x in (a * b, a * a, b * b))
    got = scored(f, y, ACC(kind), GivenClimatology(mean=mean))
    assert got == pytest.approx(float((product / np.sqrt(left * right)).mean()), rel=1e-12)


# Events, quantiles and variants of the CRPS


def case_with_ties(members: int = 7) -> tuple[Case, xr.DataArray, xr.DataArray, xr.DataArray]:
    """A case with values in steps of 1/4, and members, truth and uneven weights for peers."""
    rng = np.random.default_rng(members)
    signal = rng.standard_normal(400)
    y = np.round(4 * (signal + rng.standard_normal(400))) / 4
    x = np.round(4 * (signal + rng.standard_normal((members, 400)))) / 4
    made = Case(
        x[:, None],
        y[None],
        channels=("x",),
        grid=Grid.from_points(np.zeros(400), np.arange(400)),
        points=slice(0, 400),
        valid_time=np.datetime64("2020-01-01"),
        reference=lambda _: np.zeros((1, 400)),
    )
    weight = rng.random(400) + 0.1
    return (
        made,
        xr.DataArray(x, dims=("member", "i")),
        xr.DataArray(y, dims="i"),
        xr.DataArray(weight, dims="i"),
    )


def ours(metric: Metric, made: Case, weight: xr.DataArray | None = None) -> float:
    """The metric of weighted means over the points."""
    means = {}
    for statistic in metric.statistics:
        assert isinstance(statistic, Statistic)
        field = statistic.map(made)
        rows = field[0].toarray() if isinstance(field, list) else np.asarray(field)[0]
        means[statistic.id] = np.average(rows, axis=0, weights=weight)
    return float(metric.value(means))


EVENTS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@pytest.mark.parametrize("event", EVENTS)
def test_brier_is_that_of_scores_and_xskillscore(event: str) -> None:
    made, x, y, weight = case_with_ties()
    probability = peer_module("scores.probability", "scores")
    for kind in ("fair", "biased"):
        theirs = probability.brier_score_for_ensemble(
            x,
            y,
            "member",
            0.5,
            weights=weight,
            fair_correction=kind == "fair",
            event_threshold_operator=EVENTS[event],
        )
        assert ours(Brier(0.5, event, kind), made, weight) == pytest.approx(theirs.item(), rel=1e-10)
    skill = peer_module("xskillscore", "xskillscore")
    for kind in ("fair", "biased"):
        beyond = EVENTS[event]
        theirs = skill.brier_score(beyond(y, 0.5), beyond(x, 0.5), fair=kind == "fair", dim="i")
        assert ours(Brier(0.5, event, kind), made) == pytest.approx(theirs.item(), rel=1e-10)


def test_brier_at_or_below_is_that_of_properscoring() -> None:
    made, x, y, _ = case_with_ties()
    theirs = (
        peer_module("properscoring", "properscoring").threshold_brier_score(y.values, x.values.T, 0.5).mean()
    )
    assert ours(Brier(0.5, ">", "biased"), made) == pytest.approx(theirs, rel=1e-10)


def test_rps_is_that_of_xskillscore() -> None:
    made, x, y, weight = case_with_ties()
    skill = peer_module("xskillscore", "xskillscore")
    edges = np.array([-1.0, 0.0, 0.5, 1.5])
    for kind in ("fair", "biased"):
        theirs = skill.rps(y, x, edges, dim="i", fair=kind == "fair", weights=weight)
        assert ours(RPS(edges, "<", kind), made, weight) == pytest.approx(float(theirs), rel=1e-10)


def test_auc_is_that_of_scores_and_xskillscore() -> None:
    made, x, y, weight = case_with_ties()
    p, event = (x > 0.5).mean("member"), (y > 0.5).astype(float)
    probability, skill = (
        peer_module("scores.probability", "scores"),
        peer_module("xskillscore", "xskillscore"),
    )
    theirs = probability.roc_curve_data(p, event, np.unique(p), weights=weight)["AUC"].item()
    assert ours(AUC(0.5), made, weight) == pytest.approx(theirs, rel=1e-10)
    theirs = skill.roc(event, p, bin_edges="continuous", dim="i").item()
    assert ours(AUC(0.5), made) == pytest.approx(theirs, rel=1e-10)


def test_economic_value_is_that_of_scores() -> None:
    made, x, y, weight = case_with_ties()
    p, event = (x > 0.5).mean("member"), (y > 0.5).astype(float)
    probability = peer_module("scores.probability", "scores")
    ratios = [0.05, 0.2, 0.5, 0.8]
    thresholds = [0.0, *((np.arange(7) + 0.5) / 7), 1.0]
    theirs = probability.relative_economic_value(
        p, event, cost_loss_ratios=ratios, probability_thresholds=thresholds, weights=weight
    )
    for ratio in ratios:
        for threshold in thresholds[1:-1]:
            value = theirs.sel(cost_loss_ratio=ratio, probability_threshold=threshold).item()
            got = ours(REV(0.5, cost_loss=ratio, decision=threshold), made, weight)
            assert got == pytest.approx(value, rel=1e-10, abs=1e-12)
        never = ours(REV(0.5, cost_loss=ratio, decision=1.1), made, weight)
        best = max(theirs.sel(cost_loss_ratio=ratio).max().item(), never)
        assert ours(REV(0.5, cost_loss=ratio), made, weight) == pytest.approx(best, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("probability_of_detection", "pod"),
        ("false_alarm_ratio", "far"),
        ("probability_of_false_detection", "pofd"),
        ("critical_success_index", "csi"),
        ("equitable_threat_score", "ets"),
        ("frequency_bias", "frequency_bias"),
        ("peirce_skill_score", "peirce"),
        ("heidke_skill_score", "heidke"),
        ("symmetric_extremal_dependence_index", "sedi"),
    ],
)
def test_categorical_scores_are_those_of_scores(name: str, score: str) -> None:
    made, x, y, _ = case_with_ties()
    categorical = peer_module("scores.categorical", "scores")
    operators = categorical.ThresholdEventOperator(default_event_threshold=0.5, default_op_fn=operator.ge)
    table = operators.make_contingency_manager(x.mean("member"), y).transform()
    theirs = getattr(table, name)().item()
    assert ours(Categorical(0.5, ">=", score), made) == pytest.approx(theirs, rel=1e-10)


def test_isotonic_regression_is_that_of_scores() -> None:
    made, x, y, weight = case_with_ties()
    probability = peer_module("scores.probability", "scores")
    p, event = (x > 0.5).mean("member"), (y > 0.5).astype(float)
    fit = probability.isotonic_fit(p, event, weight=weight)
    calibrated = np.interp(p, fit["fcst_sorted"], fit["regression_values"])
    recalibrated = np.average((calibrated - event) ** 2, weights=weight)
    got = ours(Brier(0.5, kind="biased"), made, weight) - ours(
        BrierTerm(0.5, term="miscalibration"), made, weight
    )
    assert got == pytest.approx(recalibrated, rel=1e-10)


def test_reliability_is_that_of_xskillscore() -> None:
    made, x, y, _ = case_with_ties(10)
    skill = peer_module("xskillscore", "xskillscore")
    p, event = (x > 0.5).mean("member"), y > 0.5
    theirs = skill.reliability(event, p, dim="i", probability_bin_edges=np.array([0, 0.25, 0.5, 0.75, 1]))
    mean_p = p.groupby_bins(p, [0, 0.25, 0.5, 0.75, 1.001], right=False).mean().values
    share = theirs["samples"].values / y.size
    expected = (share * (mean_p - theirs.values) ** 2).sum()
    assert ours(BrierTerm(0.5, bins=4), made) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kind", ["fair", "biased"])
def test_twcrps_is_that_of_scores_and_scoringrules(kind: str) -> None:
    made, x, y, weight = case_with_ties()
    probability, rules = (
        peer_module("scores.probability", "scores"),
        peer_module("scoringrules", "scoringrules"),
    )
    method, estimator = ("fair", "fair") if kind == "fair" else ("ecdf", "nrg")
    for tail, metric in (("upper", TwCRPS(0.6, None, kind)), ("lower", TwCRPS(None, 0.6, kind))):
        theirs = probability.tail_tw_crps_for_ensemble(
            x, y, "member", 0.6, tail=tail, method=method, weights=weight
        )
        assert ours(metric, made, weight) == pytest.approx(theirs.item(), rel=1e-10)
    between = TwCRPS(-0.3, 0.6, kind)
    theirs = probability.interval_tw_crps_for_ensemble(
        x, y, "member", -0.3, 0.6, method=method, weights=weight
    )
    assert ours(between, made, weight) == pytest.approx(theirs.item(), rel=1e-10)
    theirs = rules.twcrps_ensemble(y.values, x.values, a=-0.3, b=0.6, m_axis=0, estimator=estimator)
    assert ours(between, made, weight) == pytest.approx(np.average(theirs, weights=weight), rel=1e-10)


@pytest.mark.parametrize("kind", ["fair", "biased"])
def test_parts_of_the_crps_are_those_of_scores(kind: str) -> None:
    made, x, y, weight = case_with_ties()
    method = "fair" if kind == "fair" else "ecdf"
    theirs = peer_module("scores.probability", "scores").crps_for_ensemble(
        x, y, "member", method=method, weights=weight, include_components=True
    )
    for name, metric in (
        ("total", CRPS(kind)),
        ("underforecast_penalty", CRPSPart("underforecast")),
        ("overforecast_penalty", CRPSPart("overforecast")),
        ("spread", CRPSPart(f"spread_{kind}")),
    ):
        value = theirs.sel(component=name).item()
        assert ours(metric, made, weight) == pytest.approx(value, rel=1e-10)


def test_quantile_and_interval_scores_are_those_of_scores_and_scoringrules() -> None:
    made, x, y, weight = case_with_ties()
    continuous, rules = (
        peer_module("scores.continuous", "scores"),
        peer_module("scoringrules", "scoringrules"),
    )
    for p in (0.1, 0.5, 0.9):
        q = x.quantile(p, "member", method="hazen")
        got = ours(QuantileScore(p, "hazen"), made, weight)
        assert got == pytest.approx(continuous.quantile_score(q, y, p, weights=weight).item(), rel=1e-10)
        theirs = np.average(rules.quantile_score(y.values, q.values, p), weights=weight)
        assert got == pytest.approx(theirs, rel=1e-10)
    levels = np.array([0.5, 0.8, 0.9])
    low, high = (x.quantile((1 + side * levels) / 2, "member").drop_vars("quantile") for side in (-1, 1))
    for k, level in enumerate(levels):
        got = ours(IntervalScore(level), made, weight)
        theirs = continuous.interval_score(low[k], high[k], y, float(level), weights=weight)["total"].item()
        assert got == pytest.approx(theirs, rel=1e-10)
        theirs = rules.interval_score(y.values, low[k].values, high[k].values, 1 - level)
        assert got == pytest.approx(np.average(theirs, weights=weight), rel=1e-10)
    # Its numpy version adds the median itself in place of the error of the median.
    theirs = rules.weighted_interval_score(
        y.values, x.median("member").values, low.values.T, high.values.T, 1 - levels, backend="numba"
    )
    assert ours(WIS(levels), made, weight) == pytest.approx(np.average(theirs, weights=weight), rel=1e-10)


# Ensembles as vectors, and neighbourhoods


def fields(times: int = 1, members: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts (T, M, 2, 9, 12) and truths (T, 2, 9, 12)."""
    rng = np.random.default_rng(11)
    return 280 + rng.gamma(0.8, 3, (times, members, 2, 9, 12)), 280 + rng.gamma(0.8, 3, (times, 2, 9, 12))


def of_fields(
    metric: Metric, values: np.ndarray, truth: np.ndarray, *, weights: Any = "equal", channel: str = "u"
) -> float:
    """Global score of forecasts (T, M, 2, H, W) of the channels u and v."""
    coords = {
        "time": np.datetime64("2020-06-01", "ns") + np.arange(len(truth)) * np.timedelta64(24, "h"),
        "channel": ["u", "v"],
        "latitude": np.linspace(80, -80, truth.shape[2]),
        "longitude": np.arange(truth.shape[3]) * 360.0 / truth.shape[3],
    }
    state = xr.DataArray(truth, coords, ("time", "channel", "latitude", "longitude"))
    chunks = [
        Chunk(init_time=time, lead_time=np.timedelta64(0, "h"), channels=("u", "v"), values=x)
        for time, x in zip(coords["time"], values, strict=True)
    ]
    records = evaluate(chunks, state, model="a", metrics=[metric], regions=["global"], weights=weights)
    return float(period_scores(records, [metric])[metric.name].sel(channel=channel).item())


@pytest.mark.parametrize(("kind", "estimator"), [("fair", "fair"), ("biased", "nrg")])
def test_energy_scores_are_those_of_scoringrules(kind: str, estimator: str) -> None:
    rules = peer_module("scoringrules", "scoringrules")
    values, truth = fields()
    theirs = rules.es_ensemble(truth[0, 0].ravel(), values[0, :, 0].reshape(6, -1), estimator=estimator)
    got = of_fields(EnergyScore(kind, "euclidean"), values, truth)
    assert got == pytest.approx(float(theirs), rel=1e-10)
    y, x = np.moveaxis(truth[0], 0, -1), np.moveaxis(values[0], (0, 1), (-2, -1))
    at_points = rules.es_ensemble(y, x, estimator=estimator)
    weight = np.broadcast_to(np.cos(np.deg2rad(np.linspace(80, -80, 9)))[:, None], (9, 12))
    got = of_fields(JointEnergyScore(("u", "v"), kind=kind), values, truth, weights="cos", channel="u+v")
    assert got == pytest.approx(float(np.average(at_points, weights=weight)), rel=1e-10)


@pytest.mark.parametrize(("kind", "estimator"), [("fair", "fair"), ("biased", "nrg")])
@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_variogram_scores_are_those_of_scoringrules(kind: str, estimator: str, p: float) -> None:
    rules = peer_module("scoringrules", "scoringrules")
    values, truth = fields()
    y, x = truth[0, 0].ravel(), values[0, :, 0].reshape(6, -1)
    theirs = rules.vs_ensemble(y, x, p=p, estimator=estimator)
    got = of_fields(VariogramScore(p, norm="sum", kind=kind), values, truth)
    assert got == pytest.approx(float(theirs), rel=1e-10)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_fractions_skill_scores_are_those_of_scores(window: int) -> None:
    spatial = peer_module("scores.spatial", "scores")
    values, truth = fields(times=3, members=1)
    dims = ("time", "latitude", "longitude")
    settings = {"event_threshold": 283.0, "window_size": (window, window), "spatial_dims": dims[1:]}
    x, y = xr.DataArray(values[:, 0, 0], dims=dims), xr.DataArray(truth[:, 0], dims=dims)
    theirs = spatial.fss_2d(x, y, reduce_dims=dims, **settings)
    got = of_fields(FSS(283.0, window=window, edge="interior"), values, truth)
    assert got == pytest.approx(float(theirs), rel=1e-10)
    # With zeros beyond the edges `scores` takes one more row and column of windows than there are points:
    # ours are the same on a grid with one more row and column without events.
    theirs = spatial.fss_2d(x, y, reduce_dims=dims, zero_padding=True, **settings)
    wider = [(0, 0)] * 2 + [(0, 1), (0, 1)]
    got = of_fields(
        FSS(283.0, window=window, edge="zero"), np.pad(values, [(0, 0), *wider]), np.pad(truth, wider)
    )
    assert got == pytest.approx(float(theirs), rel=1e-10)


# Significance


@pytest.mark.parametrize("horizon", [1, 3])
def test_diebold_mariano_of_harvey_agrees_with_scores(horizon: int) -> None:
    peer = peer_module("scores.stats.statistical_tests", "scores")
    d = np.cumsum(np.random.default_rng(3).standard_normal((4, 90)), axis=1) * 0.1
    d = np.diff(d, axis=1) + 0.02
    array = xr.DataArray(d, dims=("series", "time"), coords={"h": ("series", [horizon] * 4)})
    expected = peer.diebold_mariano(array, "series", "h", method="HLN", statistic_distribution="t")
    got = mean_tests(d.T, "hln", horizon)
    np.testing.assert_allclose(got.mean / got.stderr, expected["dm_test_stat"], rtol=1e-10)
    np.testing.assert_allclose(got.mean + got.half_width(0.95), expected["ci_upper"], rtol=1e-10)
    above = np.where(got.mean > 0, 1 - got.p_value / 2, got.p_value / 2)
    np.testing.assert_allclose(above, expected["confidence_gt_0"], rtol=1e-10)


def test_diebold_mariano_of_hering_agrees_with_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "scores.stats.statistical_tests.diebold_mariano_impl"
    peer_module(name, "scores")
    peer = importlib.import_module(name)
    x = np.random.default_rng(4).standard_normal((6, 121))

    def to_the_end(func: Any, start: Any, args: Any, **options: Any) -> Any:
        """The fit of the peer stops where its sum of squares is flat to rounding: go on by Gauss-Newton."""
        result = scipy.optimize.least_squares(func, start, args=args, **options)
        for _ in range(300):
            steps = np.eye(2) * 1e-30j
            slope = np.stack([np.imag(func(result.x + step, *args)) / 1e-30 for step in steps], axis=1)
            result.x = result.x - np.linalg.lstsq(slope, func(result.x, *args))[0]
        return result

    for rho in (0.4, 0.8):
        d = x.copy()
        for t in range(1, 121):
            d[:, t] += rho * d[:, t - 1]
        array = xr.DataArray(d + 0.2, dims=("series", "time"), coords={"h": ("series", [2] * 6)})
        got = mean_tests(array.values.T, "hg", 2)
        default = peer.diebold_mariano(array, "series", "h", method="HG")["dm_test_stat"]
        np.testing.assert_allclose(got.mean / got.stderr, default, rtol=1e-3)
        with monkeypatch.context() as patch:
            patch.setattr(peer, "least_squares", to_the_end)
            exact = peer.diebold_mariano(array, "series", "h", method="HG")["dm_test_stat"]
        np.testing.assert_allclose(got.mean / got.stderr, exact, rtol=1e-10)


def test_corrections_agree_with_statsmodels() -> None:
    peer = peer_module("statsmodels.stats.multitest", "statsmodels")
    p = np.random.default_rng(5).random((5, 8)) ** 2
    kinds = {"fdr_bh": benjamini_hochberg, "fdr_by": benjamini_yekutieli, "holm": holm, "sidak": sidak}
    for method, ours in kinds.items():
        expected = peer.multipletests(p.ravel(), alpha=0.05, method=method)[1]
        np.testing.assert_allclose(ours(p).ravel(), expected, rtol=1e-10)
