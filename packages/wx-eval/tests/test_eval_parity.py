"""Agreement with peers in float64; run by `nox -s parity`, where they are installed.

`PARITY_TABLE=held.md` writes what was found as the table of docs/wx-eval-conventions.md.
"""

import importlib
import operator
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy
import xarray as xr

import wx_eval
from wx_eval import (
    ACC,
    AUC,
    CRPS,
    FSS,
    MAE,
    MSE,
    REV,
    RMSE,
    RPS,
    SEEPS,
    WIS,
    Activity,
    Bias,
    Brier,
    BrierTerm,
    Categorical,
    Chunk,
    Coherence,
    CRPSPart,
    EnergyScore,
    EventFrequencies,
    HersbachTerm,
    IntervalScore,
    JointEnergyScore,
    LogSpectralDistance,
    Metric,
    MSESkill,
    PooledCRPS,
    PowerSpectrum,
    QuantileScore,
    RankHistogram,
    RankUniformity,
    SpectralBias,
    SpectralRatio,
    Spread,
    SpreadSkill,
    TwCRPS,
    UsefulFSS,
    VariogramScore,
    WindRMSE,
    benjamini_hochberg,
    benjamini_yekutieli,
    cell_weights,
    evaluate,
    holm,
    power_spectrum,
    reliability_diagram,
    roc_curve,
    sidak,
)
from wx_eval import scores as period_scores
from wx_eval._bootstrap import automatic_block_length
from wx_eval._grid import EARTH_RADIUS_KM
from wx_eval._inference import mean_tests
from wx_eval._vectors import VectorCase, vectors

DOCS = Path(__file__).parents[3] / "docs" / "wx-eval-conventions.md"

HELD: dict[str, dict[str, float]] = {}
"""Largest relative difference seen, by metric and peer."""


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Write `HELD` after the tests, if it is asked for."""
    yield
    if path := os.environ.get("PARITY_TABLE"):
        lines = ["| score | largest relative difference from each peer |", "|---|---|"]
        for name in sorted(HELD, key=str.lower):
            peers = sorted(HELD[name].items(), key=lambda item: item[0].lower())
            lines.append(f"| `{name}` | {', '.join(f'{peer} {worst:.0e}' for peer, worst in peers)} |")
        Path(path).write_text("\n".join(lines).replace("0e+00", "0") + "\n")


def agree(
    metric: Metric | str, peer: str, got: npt.ArrayLike, theirs: npt.ArrayLike, rtol: float = 1e-10
) -> None:
    """Assert that all values agree to `rtol` of the largest of them, and note by how much they differ."""
    name = metric if isinstance(metric, str) else type(metric).__name__
    ours, expected = (np.asarray(x, np.float64).squeeze() for x in (got, theirs))
    assert ours.shape == expected.shape
    difference = float(np.abs(ours - expected).max() / np.abs(expected).max())
    assert difference <= rtol, f"{metric}: {ours} against {expected} of {peer}"
    peers = HELD.setdefault(name, {})
    peers[peer] = max(peers.get(peer, 0.0), difference)


def peer_module(name: str, package: str) -> Any:
    """A module of a peer, whose warnings at import are its own; an absent one skips unless it is required."""
    with warnings.catch_warnings(action="ignore"):
        if "REQUIRE_PEERS" in os.environ:
            return importlib.import_module(name)
        return pytest.importorskip(name, reason=f"parity with {package} needs `pip install {package}`")


def met(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Statistics of METplus without their rounding to 7 decimals."""
    module = peer_module(f"metcalcpy.util.{name}_statistics", "metcalcpy")
    if hasattr(module, "round_half_up"):
        monkeypatch.setattr(module, "round_half_up", lambda value, _: value)
    return module


class Studio:
    """Statistics of earth2studio on numpy arrays."""

    def __init__(self) -> None:
        self._torch = peer_module("torch", "earth2studio")
        self._module = peer_module("earth2studio.statistics", "earth2studio")

    def __call__(self, name: str, *fields: xr.DataArray, **settings: Any) -> npt.NDArray[np.float64]:
        """Of DataArrays whose dims all are coordinates."""
        for key in ("weights", "reduction_weights"):
            if key in settings:
                settings[key] = self._torch.from_numpy(np.ascontiguousarray(settings[key]))
        arguments: list[Any] = []
        for field in fields:
            coords = {dim: np.arange(size) for dim, size in field.sizes.items()}
            arguments += [self._torch.from_numpy(np.ascontiguousarray(field.values)), self._ordered(coords)]
        with warnings.catch_warnings(action="ignore"):
            found: npt.NDArray[np.float64] = getattr(self._module, name)(**settings)(*arguments)[0].numpy()
        return found

    @staticmethod
    def _ordered(coords: dict[str, Any]) -> Any:
        return peer_module("collections", "earth2studio").OrderedDict(coords)


def test_every_metric_has_two_peers_in_the_docs_or_says_which_is_missing() -> None:
    text = DOCS.read_text().split("## Held to")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\| (.*) \|$", text, re.MULTILINE))
    public = [getattr(wx_eval, name) for name in wx_eval.__all__]
    metrics = {x.__name__ for x in public if isinstance(x, type) and issubclass(x, Metric)} - {"Metric"}
    assert metrics <= set(rows)
    for name in metrics:
        peers = rows[name].split(", ")
        assert len(peers) >= 2 or f"`{name}` has one peer" in text, name


# A sample of forecasts and truths at points


def sample(
    members: int = 7, *, ties: bool = True
) -> tuple[npt.NDArray[np.float64], xr.DataArray, xr.DataArray, xr.DataArray]:
    """Truth and members (1 + M, N), perhaps in steps of 1/4; for peers members, truth and uneven weights."""
    rng = np.random.default_rng(members)
    signal = rng.standard_normal(400)
    y, x = signal + rng.standard_normal(400), signal + rng.standard_normal((members, 400))
    if ties:
        x, y = np.round(4 * x) / 4, np.round(4 * y) / 4
    weight = xr.DataArray(rng.random(400) + 0.1, dims="i")
    made = np.concatenate([y[None], x])
    return made, xr.DataArray(x, dims=("member", "i")), xr.DataArray(y, dims="i"), weight


def recorded(
    metric: Metric, made: npt.NDArray[np.float64], weight: xr.DataArray | None = None
) -> wx_eval.Records:
    """Records of a sample."""
    time = np.datetime64("2020-01-01", "ns")
    points = {"latitude": ("point", np.zeros(400)), "longitude": ("point", np.arange(400) * 0.5)}
    coords = {"time": [time], "channel": ["x"], **points}
    truth = xr.DataArray(made[None, :1], coords, ("time", "channel", "point"))
    chunk = Chunk(init_time=time, lead_time=np.timedelta64(0, "h"), channels=("x",), values=made[1:, None])
    weights: Any = "equal" if weight is None else weight.values
    return evaluate([chunk], truth, model="a", metrics=[metric], regions=["global"], weights=weights)


def ours(
    metric: Metric, made: npt.NDArray[np.float64], weight: xr.DataArray | None = None
) -> npt.NDArray[np.float64]:
    """The metric of a sample, by weighted means over its points."""
    found = period_scores(recorded(metric, made, weight), [metric])[metric.name]
    return np.asarray(found.values.squeeze())


# Errors, spread and ranks


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        (Bias(), ("additive_bias", "me", None)),
        (MAE(), ("mae", "mae", "mean_absolute_error")),
        (MSE(), ("mse", "mse", "mean_squared_error")),
        (RMSE(), ("rmse", "rmse", "root_mean_squared_error")),
    ],
)
def test_errors_of_the_mean(metric: Metric, names: tuple[str, str, str | None]) -> None:
    made, x, y, weight = sample()
    mean, got = x.mean("member"), ours(metric, made, weight)
    continuous = peer_module("scores.continuous", "scores")
    agree(metric, "scores", got, getattr(continuous, names[0])(mean, y, weights=weight))
    skill = peer_module("xskillscore", "xskillscore")
    agree(metric, "xskillscore", got, getattr(skill, names[1])(mean, y, dim="i", weights=weight))
    if names[2]:
        learn = peer_module("sklearn.metrics", "scikit-learn")
        agree(metric, "scikit-learn", got, getattr(learn, names[2])(y, mean, sample_weight=weight))


def test_roots_before_the_mean_over_starts() -> None:
    values, truth = fields(times=3)
    dims = ("time", "latitude", "longitude")
    x, y = xr.DataArray(values.mean(axis=1)[:, 0], dims=dims), xr.DataArray(truth[:, 0], dims=dims)
    weight = xr.DataArray(COS, dims=dims[1:])
    got = of_fields(RMSE(root="each"), values, truth, weights="cos")
    rmse = peer_module("scores.continuous", "scores").rmse
    agree(RMSE(), "scores", got, rmse(x, y, preserve_dims="time", weights=weight).mean())
    rmse = peer_module("xskillscore", "xskillscore").rmse
    agree(RMSE(), "xskillscore", got, rmse(x, y, dim=list(dims[1:]), weights=weight).mean())


def test_wind_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    values, truth = fields(times=3)
    mean = values.mean(axis=1)
    got = of_fields(WindRMSE(), values, truth, weights="cos", channel="u+v")
    weight = np.broadcast_to(COS, (3, *COS.shape))
    dims = ("time", "channel", "latitude", "longitude")
    mse = peer_module("scores.continuous", "scores").mse
    x, y = xr.DataArray(mean, dims=dims), xr.DataArray(truth, dims=dims)
    each = mse(x, y, preserve_dims="channel", weights=xr.DataArray(COS, dims=dims[2:]))
    agree(WindRMSE(), "scores", got, np.sqrt(each.sum()))
    learn = peer_module("sklearn.metrics", "scikit-learn")
    flat = (np.moveaxis(z, 1, -1).reshape(-1, 2) for z in (truth, mean))
    both = learn.mean_squared_error(*flat, sample_weight=weight.ravel(), multioutput="raw_values")
    agree(WindRMSE(), "scikit-learn", got, np.sqrt(both.sum()))
    sums = [
        np.average((a * b).sum(axis=1), weights=weight)
        for a, b in ((mean, mean), (mean, truth), (truth, truth))
    ]
    names = np.array(["uvffbar", "uvfobar", "uvoobar", "total"])
    theirs = met("vl1l2", monkeypatch).calculate_vl1l2_rmsve(np.array([[*sums, 1.0]]), names)
    agree(WindRMSE(), "METcalcpy", got, theirs)


def test_spread_and_its_ratio_to_the_error() -> None:
    made, x, y, weight = sample()
    stats, learn = (
        peer_module("statsmodels.stats.weightstats", "statsmodels"),
        peer_module("sklearn.metrics", "scikit-learn"),
    )
    variance = np.average(stats.DescrStatsW(x.values).var_ddof(1), weights=weight)
    mse = learn.mean_squared_error(y, x.mean("member"), sample_weight=weight)
    agree(Spread(), "statsmodels", ours(Spread(), made, weight), np.sqrt(variance))
    agree(RMSE(), "scikit-learn", ours(RMSE(debiased=True), made, weight), np.sqrt(mse - variance / 7))
    ratios = {
        "raw": variance / mse,
        "fortin": variance * 8 / 7 / mse,
        "debiased": variance / (mse - variance / 7),
    }
    for kind, ratio in ratios.items():
        agree(
            SpreadSkill(),
            "statsmodels and scikit-learn",
            ours(SpreadSkill(kind), made, weight),
            np.sqrt(ratio),
        )
    studio = Studio()
    at_points = studio("variance", x, reduction_dimensions=["member"])
    agree(
        Spread(), "earth2studio", ours(Spread(), made, weight), np.sqrt(np.average(at_points, weights=weight))
    )
    settings: dict[str, Any] = {"ensemble_dimension": "member", "reduction_dimensions": ["i"]}
    theirs = studio("spread_skill_ratio", x, y, **settings, reduction_weights=weight)
    agree(SpreadSkill(), "earth2studio", ours(SpreadSkill("raw"), made, weight), theirs)


def test_rank_histograms() -> None:
    made, x, y, weight = sample()
    probability = peer_module("scores.probability", "scores")
    theirs = probability.rank_histogram(x, y, "member", weights=weight)
    agree(RankHistogram(), "scores", ours(RankHistogram(), made, weight), theirs)
    strict = scipy.stats.percentileofscore
    ranks = [round(strict(x.values[:, i], y.values[i], kind="strict") * 7 / 100) for i in range(400)]
    lowest = np.bincount(ranks, weight, minlength=8) / weight.sum().item()
    agree(RankHistogram(), "scipy", ours(RankHistogram("lowest"), made, weight), lowest)
    flat = np.full((1, 8), 1 / 8)
    manhattan = peer_module("sklearn.metrics.pairwise", "scikit-learn").manhattan_distances(
        theirs.values[None], flat
    )
    agree(RankUniformity(), "scores and scikit-learn", ours(RankUniformity(), made, weight), manhattan[0, 0])
    chi = scipy.stats.chisquare(theirs, flat[0]).statistic
    agree(RankUniformity(), "scores and scipy", ours(RankUniformity("chi_square"), made, weight), chi)
    made, x, y, weight = sample(ties=False)
    skill = peer_module("xskillscore", "xskillscore")
    theirs = skill.rank_histogram(y, x, dim="i", member_dim="member")
    agree(RankHistogram(), "xskillscore", ours(RankHistogram(), made), theirs / 400)


# The CRPS, its variants and its parts


def test_crps() -> None:
    made, x, y, weight = sample()
    probability = peer_module("scores.probability", "scores")
    rules = peer_module("scoringrules", "scoringrules")
    for kind, method, estimator in (("fair", "fair", "fair"), ("biased", "ecdf", "nrg")):
        theirs = probability.crps_for_ensemble(x, y, "member", method=method, weights=weight)
        agree(CRPS(), "scores", ours(CRPS(kind), made, weight), theirs)
        at_points = rules.crps_ensemble(y.values, x.values, m_axis=0, estimator=estimator)
        agree(CRPS(), "scoringrules", ours(CRPS(kind), made, weight), np.average(at_points, weights=weight))
    got = ours(CRPS("biased"), made, weight)
    skill = peer_module("xskillscore", "xskillscore")
    agree(CRPS(), "xskillscore", got, skill.crps_ensemble(y, x, dim="i", weights=weight))
    at_points = peer_module("properscoring", "properscoring").crps_ensemble(y.values, x.values.T)
    agree(CRPS(), "properscoring", got, np.average(at_points, weights=weight))


@pytest.mark.parametrize("kind", ["fair", "biased"])
def test_parts_of_the_crps(kind: str) -> None:
    made, x, y, weight = sample()
    method, estimator = ("fair", "fair") if kind == "fair" else ("ecdf", "nrg")
    theirs = peer_module("scores.probability", "scores").crps_for_ensemble(
        x, y, "member", method=method, weights=weight, include_components=True
    )
    spread = CRPSPart(f"spread_{kind}")
    for name, metric in (
        ("total", CRPS(kind)),
        ("underforecast_penalty", CRPSPart("underforecast")),
        ("overforecast_penalty", CRPSPart("overforecast")),
        ("spread", spread),
    ):
        agree(metric, "scores", ours(metric, made, weight), theirs.sel(component=name))
    # The pinball losses of levels 0 and 1 are the two penalties.
    pinball = peer_module("sklearn.metrics", "scikit-learn").mean_pinball_loss
    flat = (np.tile(y, 7), x.values.ravel())
    over, under = (pinball(*flat, alpha=alpha, sample_weight=np.tile(weight, 7)) for alpha in (0, 1))
    agree(CRPSPart(), "scikit-learn", ours(CRPSPart("overforecast"), made, weight), over)
    agree(CRPSPart(), "scikit-learn", ours(CRPSPart("underforecast"), made, weight), under)
    crps = peer_module("scoringrules", "scoringrules").crps_ensemble(
        y.values, x.values, m_axis=0, estimator=estimator
    )
    agree(spread, "scoringrules", ours(spread, made, weight), over + under - np.average(crps, weights=weight))


@pytest.mark.parametrize("kind", ["fair", "biased"])
def test_threshold_weighted_crps(kind: str) -> None:
    made, x, y, weight = sample()
    probability = peer_module("scores.probability", "scores")
    rules = peer_module("scoringrules", "scoringrules")
    method, estimator = ("fair", "fair") if kind == "fair" else ("ecdf", "nrg")
    for tail, metric in (("upper", TwCRPS(0.6, None, kind)), ("lower", TwCRPS(None, 0.6, kind))):
        theirs = probability.tail_tw_crps_for_ensemble(
            x, y, "member", 0.6, tail=tail, method=method, weights=weight
        )
        agree(metric, "scores", ours(metric, made, weight), theirs)
    between = TwCRPS(-0.3, 0.6, kind)
    theirs = probability.interval_tw_crps_for_ensemble(
        x, y, "member", -0.3, 0.6, method=method, weights=weight
    )
    agree(between, "scores", ours(between, made, weight), theirs)
    theirs = rules.twcrps_ensemble(y.values, x.values, a=-0.3, b=0.6, m_axis=0, estimator=estimator)
    agree(between, "scoringrules", ours(between, made, weight), np.average(theirs, weights=weight))


def test_terms_of_hersbach_make_up_the_crps() -> None:
    """No peer has the terms: their sum, and the CRPS of the distribution of the truth, are those of peers."""
    made, x, y, weight = sample(ties=False)
    terms = {term: ours(HersbachTerm(term), made, weight) for term in ("reliability", "potential")}
    total = terms["reliability"] + terms["potential"]
    at_points = peer_module("properscoring", "properscoring").crps_ensemble(y.values, x.values.T)
    agree(HersbachTerm(), "properscoring", total, np.average(at_points, weights=weight))
    rules = peer_module("scoringrules", "scoringrules")
    at_points = rules.crps_ensemble(y.values, x.values, m_axis=0, estimator="nrg")
    agree(HersbachTerm(), "scoringrules", total, np.average(at_points, weights=weight))
    # Ours sums F (1 - F) over steps, in which it is not constant: that leaves an error of the step squared.
    climate = np.broadcast_to(y.values[:, None], (400, 400))
    theirs = rules.crps_ensemble(y.values, climate, m_axis=0, estimator="nrg").mean()
    for steps, rtol in ((64, 1e-3), (4096, 1e-5)):
        got = ours(HersbachTerm("uncertainty", -8.0, 8.0, steps), made)
        assert got == pytest.approx(theirs, rel=rtol)
    resolution = ours(HersbachTerm("resolution", -8.0, 8.0), made)
    rest = ours(HersbachTerm("uncertainty", -8.0, 8.0), made) - ours(HersbachTerm("potential"), made)
    assert resolution == pytest.approx(rest, rel=1e-12)


# Events


EVENTS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@pytest.mark.parametrize("event", EVENTS)
def test_brier_scores(event: str) -> None:
    made, x, y, weight = sample()
    probability = peer_module("scores.probability", "scores")
    skill = peer_module("xskillscore", "xskillscore")
    beyond = EVENTS[event]
    for kind in ("fair", "biased"):
        theirs = probability.brier_score_for_ensemble(
            x,
            y,
            "member",
            0.5,
            weights=weight,
            fair_correction=kind == "fair",
            event_threshold_operator=beyond,
        )
        metric = Brier(0.5, event, kind)
        agree(metric, "scores", ours(metric, made, weight), theirs)
        theirs = skill.brier_score(beyond(y, 0.5), beyond(x, 0.5), fair=kind == "fair", dim="i")
        agree(metric, "xskillscore", ours(metric, made), theirs)
    learn = peer_module("sklearn.metrics", "scikit-learn")
    p = beyond(x, 0.5).mean("member")
    theirs = learn.brier_score_loss(beyond(y, 0.5), p, sample_weight=weight)
    agree(metric, "scikit-learn", ours(metric, made, weight), theirs)
    if event == ">":
        rule = peer_module("properscoring", "properscoring").threshold_brier_score
        agree(metric, "properscoring", ours(metric, made), rule(y.values, x.values.T, 0.5).mean())


def test_ranked_probability_scores() -> None:
    made, x, y, weight = sample()
    skill = peer_module("xskillscore", "xskillscore")
    edges = np.array([-1.0, 0.0, 0.5, 1.5])
    for kind in ("fair", "biased"):
        theirs = skill.rps(y, x, edges, dim="i", fair=kind == "fair", weights=weight)
        agree(RPS(edges, "<", kind), "xskillscore", ours(RPS(edges, "<", kind), made, weight), theirs)
    below = [(x < edge).mean("member").values for edge in edges]
    shares = np.diff(below, axis=0, prepend=0, append=1)
    category = 1 + sum((y.values >= edge).astype(int) for edge in edges)
    at_points = peer_module("scoringrules", "scoringrules").rps_score(category, shares, k_axis=0)
    agree(
        RPS(edges),
        "scoringrules",
        ours(RPS(edges, "<", "biased"), made, weight),
        np.average(at_points, weights=weight),
    )
    rule = peer_module("properscoring", "properscoring").threshold_brier_score
    theirs = rule(y.values, x.values.T, edges).sum(axis=-1).mean()
    agree(RPS(edges), "properscoring", ours(RPS(edges, ">", "biased"), made), theirs)


def probabilities(x: xr.DataArray, y: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Share of the members above 0.5, and whether the truth is, as a number."""
    return (x > 0.5).mean("member"), (y > 0.5).astype(float)


def test_area_under_the_roc_curve() -> None:
    made, x, y, weight = sample()
    p, event = probabilities(x, y)
    probability = peer_module("scores.probability", "scores")
    theirs = probability.roc_curve_data(p, event, np.unique(p), weights=weight)["AUC"]
    agree(AUC(0.5), "scores", ours(AUC(0.5), made, weight), theirs)
    theirs = peer_module("xskillscore", "xskillscore").roc(event, p, bin_edges="continuous", dim="i")
    agree(AUC(0.5), "xskillscore", ours(AUC(0.5), made), theirs)
    theirs = peer_module("sklearn.metrics", "scikit-learn").roc_auc_score(event, p, sample_weight=weight)
    agree(AUC(0.5), "scikit-learn", ours(AUC(0.5), made, weight), theirs)


def test_frequencies_of_events() -> None:
    made, x, y, weight = sample()
    p, event = probabilities(x, y)
    count = np.rint(7 * p).astype(int)
    confusion = peer_module("sklearn.metrics", "scikit-learn").confusion_matrix
    theirs = confusion(event.astype(int), count, labels=range(8), sample_weight=weight, normalize="all")
    metric = EventFrequencies(0.5)
    agree(metric, "scikit-learn", ours(metric, made, weight), theirs[:2].T.ravel())
    edges = (np.arange(9) - 0.5) / 7
    found = peer_module("xskillscore", "xskillscore").reliability(
        event > 0, p, dim="i", probability_bin_edges=edges
    )
    happened = np.nan_to_num(found.values) * found["samples"].values
    theirs = np.stack([found["samples"].values - happened, happened], axis=-1).ravel() / 400
    agree(metric, "xskillscore", ours(metric, made), theirs)


def test_curves() -> None:
    made, x, y, weight = sample()
    p, event = probabilities(x, y)
    records = recorded(EventFrequencies(0.5), made, weight)
    curve = roc_curve(records, 0.5).squeeze().isel(cutoff=slice(None, None, -1))
    learn = peer_module("sklearn.metrics", "scikit-learn")
    theirs = learn.roc_curve(event, p, sample_weight=weight, drop_intermediate=False)[:2]
    agree("roc_curve", "scikit-learn", [curve["pofd"], curve["pod"]], theirs)
    data = peer_module("scores.probability", "scores").roc_curve_data(
        p, event, np.arange(8) / 7, weights=weight
    )
    agree("roc_curve", "scores", curve["pod"][::-1], data["POD"])
    diagram = reliability_diagram(records, 0.5).squeeze()
    regression = peer_module("sklearn.isotonic", "scikit-learn").IsotonicRegression()
    fit = regression.fit(p.values, event.values, weight.values).predict(np.arange(8) / 7)
    agree("reliability_diagram", "scikit-learn", diagram["calibrated"], fit)
    diagram = reliability_diagram(recorded(EventFrequencies(0.5), made), 0.5).squeeze()
    edges = (np.arange(9) - 0.5) / 7
    reliability = peer_module("xskillscore", "xskillscore").reliability
    found = reliability(event > 0, p, dim="i", probability_bin_edges=edges)
    agree("reliability_diagram", "xskillscore", diagram["frequency"], found)
    agree("reliability_diagram", "xskillscore", diagram["weight"], found["samples"] / 400)


def test_economic_value(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x, y, weight = sample()
    p, event = probabilities(x, y)
    probability = peer_module("scores.probability", "scores")
    ratios = [0.05, 0.2, 0.5, 0.8]
    thresholds = [0.0, *((np.arange(7) + 0.5) / 7), 1.0]
    theirs = probability.relative_economic_value(
        p, event, cost_loss_ratios=ratios, probability_thresholds=thresholds, weights=weight
    )
    dims = ("probability_threshold", "cost_loss_ratio")
    inner = [
        [ours(REV(0.5, cost_loss=r, decision=t), made, weight) for r in ratios] for t in thresholds[1:-1]
    ]
    agree(REV(0.5), "scores", inner, theirs.transpose(*dims)[1:-1])
    never = [ours(REV(0.5, cost_loss=r, decision=1.1), made, weight) for r in ratios]
    best = [ours(REV(0.5, cost_loss=r), made, weight) for r in ratios]
    agree(REV(0.5), "scores", best, np.maximum(theirs.max(dims[0]).values, never))
    value = met("ctc", monkeypatch).calculate_economic_value
    for row, threshold in zip(inner, thresholds[1:-1], strict=True):
        act, happened = p >= threshold, event > 0
        cells = (act & happened, act & ~happened, ~act & happened, ~act & ~happened)
        table = [float((weight * cell).sum()) for cell in cells]
        agree(REV(0.5), "METcalcpy", row, value(table, np.array(ratios))["V"])


@pytest.mark.parametrize(
    ("score", "names"),
    [
        ("pod", ("probability_of_detection", "hit_rate", "pody")),
        ("far", ("false_alarm_ratio", "false_alarm_ratio", "far")),
        ("pofd", ("probability_of_false_detection", "false_alarm_rate", "pofd")),
        ("csi", ("critical_success_index", "threat_score", "csi")),
        ("ets", ("equitable_threat_score", "equit_threat_score", "gss")),
        ("frequency_bias", ("frequency_bias", "bias_score", "fbias")),
        ("peirce", ("peirce_skill_score", "peirce_score", "hk")),
        ("heidke", ("heidke_skill_score", "heidke_score", "hss")),
        ("sedi", ("symmetric_extremal_dependence_index", None, "sedi")),
    ],
)
def test_categorical_scores(
    score: str, names: tuple[str, str | None, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, x, y, _ = sample()
    mean = x.mean("member")
    metric = Categorical(0.5, ">=", score)
    got = ours(metric, made)
    categorical = peer_module("scores.categorical", "scores")
    operators = categorical.ThresholdEventOperator(default_event_threshold=0.5, default_op_fn=operator.ge)
    table = operators.make_contingency_manager(mean, y).transform()
    agree(metric, "scores", got, getattr(table, names[0])())
    p = (x >= 0.5).mean("member")
    table = operators.make_contingency_manager(p, (y >= 0.5).astype(float)).transform()
    agree(metric, "scores", ours(Categorical(0.5, ">=", score, by=0.5), made), getattr(table, names[0])())
    if names[1]:
        edges = np.array([-np.inf, 0.5, np.inf])
        table = peer_module("xskillscore", "xskillscore").Contingency(y, mean, edges, edges, dim="i")
        agree(metric, "xskillscore", got, getattr(table, names[1])())
    hit, alarm, miss = (
        (f * o).sum() for f, o in ((mean >= 0.5, y >= 0.5), (mean >= 0.5, y < 0.5), (mean < 0.5, y >= 0.5))
    )
    row = np.array([[float(n) for n in (hit, alarm, miss, 400 - hit - alarm - miss, 400)]])
    columns = np.array(["fy_oy", "fy_on", "fn_oy", "fn_on", "total"])
    theirs = getattr(met("ctc", monkeypatch), f"calculate_{names[2]}")(row, columns)
    agree(metric, "METcalcpy", got, theirs)


def test_terms_of_the_brier_score_from_isotonic_regression() -> None:
    made, x, y, weight = sample()
    p, event = probabilities(x, y)
    fit = peer_module("scores.probability", "scores").isotonic_fit(p, event, weight=weight)
    regression = peer_module("sklearn.isotonic", "scikit-learn").IsotonicRegression()
    recalibrated = {
        "scores": np.interp(p, fit["fcst_sorted"], fit["regression_values"]),
        "scikit-learn": regression.fit(p.values, event.values, weight.values).predict(p.values),
    }
    brier = ours(Brier(0.5, kind="biased"), made, weight)
    rate = np.average(event, weights=weight)
    for peer, q in recalibrated.items():
        rest = np.average((q - event) ** 2, weights=weight)
        for term, theirs in (("miscalibration", brier - rest), ("discrimination", rate * (1 - rate) - rest)):
            agree(BrierTerm(0.5), peer, ours(BrierTerm(0.5, term=term), made, weight), theirs)
    learn = peer_module("sklearn.metrics", "scikit-learn")
    constant = learn.brier_score_loss(event, p * 0 + rate, sample_weight=weight)
    agree(BrierTerm(0.5), "scikit-learn", ours(BrierTerm(0.5, term="uncertainty"), made, weight), constant)


def test_terms_of_the_brier_score_from_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x, y, _ = sample(10)
    p, event = probabilities(x, y)
    skill = peer_module("xskillscore", "xskillscore")
    found = skill.reliability(event > 0, p, dim="i", probability_bin_edges=np.array([0, 0.25, 0.5, 0.75, 1]))
    mean_p = p.groupby_bins(p, [0, 0.25, 0.5, 0.75, 1.001], right=False).mean().values
    share, frequency, rate = found["samples"].values / 400, found.values, float(event.mean())
    terms = {
        "reliability": (share * (mean_p - frequency) ** 2).sum(),
        "resolution": (share * (frequency - rate) ** 2).sum(),
    }
    got = {term: ours(BrierTerm(0.5, term=term, bins=4), made) for term in (*terms, "within")}
    for term, theirs in terms.items():
        agree(BrierTerm(0.5), "xskillscore", got[term], theirs)
    brier = peer_module("sklearn.metrics", "scikit-learn").brier_score_loss(event, p)
    rest = brier - terms["reliability"] + terms["resolution"] - rate * (1 - rate)
    agree(BrierTerm(0.5), "xskillscore and scikit-learn", got["within"], rest)
    pstd, frame = met("pstd", monkeypatch), peer_module("pandas", "pandas").DataFrame
    bins = frame({"n_i": share, "thresh_i": mean_p, "o_bar_i": frequency})
    agree(BrierTerm(0.5), "METcalcpy", got["reliability"], pstd.calc_reliability(1.0, bins))
    agree(BrierTerm(0.5), "METcalcpy", got["resolution"], pstd.calc_resolution(1.0, bins, rate))


# Quantiles and intervals


def test_quantile_scores() -> None:
    made, x, y, weight = sample()
    continuous = peer_module("scores.continuous", "scores")
    rules = peer_module("scoringrules", "scoringrules")
    pinball = peer_module("sklearn.metrics", "scikit-learn").mean_pinball_loss
    for p in (0.1, 0.5, 0.9):
        metric = QuantileScore(p, "hazen")
        q, got = x.quantile(p, "member", method="hazen"), ours(QuantileScore(p, "hazen"), made, weight)
        agree(metric, "scores", got, continuous.quantile_score(q, y, p, weights=weight))
        at_points = rules.quantile_score(y.values, q.values, p)
        agree(metric, "scoringrules", got, np.average(at_points, weights=weight))
        agree(metric, "scikit-learn", got, pinball(y, q, alpha=p, sample_weight=weight))


def test_interval_scores() -> None:
    made, x, y, weight = sample()
    continuous = peer_module("scores.continuous", "scores")
    rules = peer_module("scoringrules", "scoringrules")
    levels = np.array([0.5, 0.8, 0.9])
    low, high = (x.quantile((1 + side * levels) / 2, "member").drop_vars("quantile") for side in (-1, 1))
    for k, level in enumerate(levels):
        got = ours(IntervalScore(level), made, weight)
        theirs = continuous.interval_score(low[k], high[k], y, float(level), weights=weight)["total"]
        agree(IntervalScore(), "scores", got, theirs)
        at_points = rules.interval_score(y.values, low[k].values, high[k].values, 1 - level)
        agree(IntervalScore(), "scoringrules", got, np.average(at_points, weights=weight))
    # Its numpy version adds the median itself in place of the error of the median.
    at_points = rules.weighted_interval_score(
        y.values, x.median("member").values, low.values.T, high.values.T, 1 - levels, backend="numba"
    )
    agree(WIS(levels), "scoringrules", ours(WIS(levels), made, weight), np.average(at_points, weights=weight))
    # The score is also the mean of twice the pinball losses of all its quantiles.
    pinball = peer_module("sklearn.metrics", "scikit-learn").mean_pinball_loss
    wanted = np.concatenate([[0.5], (1 - levels) / 2, (1 + levels) / 2])
    losses = [2 * pinball(y, x.quantile(p, "member"), alpha=p, sample_weight=weight) for p in wanted]
    agree(WIS(levels), "scikit-learn", ours(WIS(levels), made, weight), np.mean(losses))


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


def anomalies() -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Forecast, truth and climatology."""
    f, y = precipitation(20, 1), precipitation(20, 2)
    mean = (y * 0).mean("time") + np.random.default_rng(4).standard_normal((19, 36))
    return f + y, y, mean


def test_anomaly_correlations(monkeypatch: pytest.MonkeyPatch) -> None:
    f, y, mean = anomalies()
    a, b, weight = f - mean, y - mean, area(mean)
    got = {kind: scored(f, y, ACC(kind), GivenClimatology(mean=mean)) for kind in ("wmo", "wb2", "pooled")}
    dims = ["latitude", "longitude"]
    theirs = peer_module("xskillscore", "xskillscore").pearson_r(a, b, dim=dims, weights=weight).mean()
    agree(ACC(), "xskillscore", got["wmo"], theirs)
    channels = (x.expand_dims("variable") for x in (a, b))
    theirs = Studio()("acc", *channels, reduction_dimensions=dims, weights=weight).mean()
    agree(ACC(), "earth2studio", got["wmo"], theirs)
    cosine = peer_module("sklearn.metrics.pairwise", "scikit-learn").cosine_similarity
    rows = [(x * np.sqrt(weight)).values.reshape(20, -1) for x in (a, b)]
    agree(ACC(), "scikit-learn", got["wb2"], np.diag(cosine(*rows)).mean())
    agree(ACC(), "scikit-learn", got["pooled"], cosine(*(row.reshape(1, -1) for row in rows))[0, 0])
    sal = met("sal1l2", monkeypatch)
    names = np.array(["fabar", "oabar", "foabar", "ffabar", "ooabar", "total"])
    means = [x.weighted(weight).mean(dims) for x in (a, b, a * b, a * a, b * b)]
    each = [np.array([[*(float(x[t]) for x in means), 1.0]]) for t in range(20)]
    agree(ACC(), "METcalcpy", got["wmo"], np.mean([sal.calculate_anom_corr(row, names) for row in each]))
    agree(ACC(), "METcalcpy", got["wb2"], np.mean([sal.calculate_anom_corr_raw(row, names) for row in each]))
    whole = np.array([[*(float(x.mean()) for x in means), 1.0]])
    agree(ACC(), "METcalcpy", got["pooled"], sal.calculate_anom_corr_raw(whole, names))
    rmse = peer_module("sklearn.metrics", "scikit-learn").root_mean_squared_error
    for of, name, x in (("mean", "rmsfa", f), ("truth", "rmsoa", y)):
        activity = scored(f, y, Activity(of), GivenClimatology(mean=mean))
        agree(Activity(), "METcalcpy", activity, getattr(sal, f"calculate_{name}")(whole, names))
        flat = (z.broadcast_like(f).values.ravel() for z in (x, mean))
        agree(
            Activity(),
            "scikit-learn",
            activity,
            rmse(*flat, sample_weight=weight.broadcast_like(f).values.ravel()),
        )


def test_skill_over_a_constant_climatology() -> None:
    """Which peers take from the sample itself."""
    f, y, mean = anomalies()
    weight = area(mean).broadcast_like(f)
    flat = [z.values.ravel() for z in (y, f, weight)]
    learn = peer_module("sklearn.metrics", "scikit-learn")
    theirs = {
        "scikit-learn": (y.weighted(weight).mean(), learn.r2_score(*flat[:2], sample_weight=flat[2])),
        "scores": (y.mean(), peer_module("scores.continuous", "scores").nse(f, y, weights=weight)),
    }
    for peer, (constant, value) in theirs.items():
        agree(MSESkill(), peer, scored(f, y, MSESkill(), GivenClimatology(mean=mean * 0 + constant)), value)


@pytest.mark.parametrize(("kind", "dry"), [("rodwell", 0.2), ("wbx", 0.25), ("wb2", 0.25)])
def test_seeps(kind: str, dry: float) -> None:
    """Off both thresholds, where the kinds differ, and with another dry threshold, `scores` has all three."""
    peer = peer_module("scores.categorical", "scores")
    f, y = precipitation(30, 1), precipitation(30, 2)
    p1 = (y * 0).mean("time") + np.random.default_rng(3).uniform(0.05, 0.95, (19, 36))
    wet = p1 * 0 + (4.0 if kind == "rodwell" else 4.05)
    climate = GivenClimatology(seeps_dry_fraction=p1, seeps_threshold=wet)
    theirs = peer.seeps(f, y, p1, wet, dry_light_threshold=dry, weights=area(p1))
    metric = SEEPS(("tp",), kind=kind)
    agree(metric, "scores", scored(f, y, metric, climate), theirs)


# Ensembles as vectors, and neighbourhoods

COLUMNS = 12
LATITUDE = np.linspace(80, -80, 9)
COS = np.repeat(np.cos(np.deg2rad(LATITUDE))[:, None], COLUMNS, axis=1)


def fields(times: int = 1, members: int = 6, columns: int = COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts (T, M, 2, 9, W) and truths (T, 2, 9, W)."""
    rng = np.random.default_rng(11)
    shape = (2, 9, columns)
    return 280 + rng.gamma(0.8, 3, (times, members, *shape)), 280 + rng.gamma(0.8, 3, (times, *shape))


def of_fields(
    metric: Metric,
    values: np.ndarray,
    truth: np.ndarray,
    *,
    weights: Any = "equal",
    channel: str = "u",
    latitude: np.ndarray | None = None,
) -> npt.NDArray[np.float64]:
    """Global score of forecasts (T, M, 2, H, W) of the channels u and v."""
    rows, columns = truth.shape[2:]
    coords = {
        "time": np.datetime64("2020-06-01", "ns") + np.arange(len(truth)) * np.timedelta64(24, "h"),
        "channel": ["u", "v"],
        "latitude": np.linspace(80, -80, rows) if latitude is None else latitude,
        "longitude": np.arange(columns) * 360.0 / columns,
    }
    state = xr.DataArray(truth, coords, ("time", "channel", "latitude", "longitude"))
    chunks = [
        Chunk(init_time=time, lead_time=np.timedelta64(0, "h"), channels=("u", "v"), values=x)
        for time, x in zip(coords["time"], values, strict=True)
    ]
    records = evaluate(chunks, state, model="a", metrics=[metric], regions=["global"], weights=weights)
    found = period_scores(records, [metric])[metric.name].sel(channel=channel)
    return np.asarray(found.values.squeeze())


@pytest.mark.parametrize(("kind", "estimator"), [("fair", "fair"), ("biased", "nrg")])
def test_energy_scores(kind: str, estimator: str) -> None:
    rules = peer_module("scoringrules", "scoringrules")
    studio = Studio()
    values, truth = fields()
    y, x = truth[0, 0].ravel(), values[0, :, 0].reshape(6, -1)
    scale = np.sqrt(COS.ravel() / COS.sum())
    for metric, factor in ((EnergyScore(kind, "euclidean"), np.ones(y.size)), (EnergyScore(kind), scale)):
        got = of_fields(metric, values, truth, weights="equal" if factor is not scale else "cos")
        agree(metric, "scoringrules", got, rules.es_ensemble(factor * y, factor * x, estimator=estimator))
        arrays = xr.DataArray(factor * x, dims=("member", "point")), xr.DataArray(factor * y, dims="point")
        settings: dict[str, Any] = {"ensemble_dimension": "member", "fair": kind == "fair"}
        theirs = studio("energy_score", *arrays, multivariate_dimensions=["point"], **settings)
        agree(metric, "earth2studio", got, theirs)


@pytest.mark.parametrize(("kind", "estimator"), [("fair", "fair"), ("biased", "nrg")])
def test_joint_energy_scores(kind: str, estimator: str) -> None:
    values, truth = fields()
    metric = JointEnergyScore(("u", "v"), kind=kind)
    got = of_fields(metric, values, truth, weights="cos", channel="u+v")
    y, x = np.moveaxis(truth[0], 0, -1), np.moveaxis(values[0], (0, 1), (-2, -1))
    at_points = peer_module("scoringrules", "scoringrules").es_ensemble(y, x, estimator=estimator)
    agree(metric, "scoringrules", got, np.average(at_points, weights=COS))
    dims = ("member", "variable", "lat", "lon")
    theirs = Studio()(
        "energy_score",
        xr.DataArray(values[0], dims=dims),
        xr.DataArray(truth[0], dims=dims[1:]),
        ensemble_dimension="member",
        multivariate_dimensions=["variable"],
        reduction_dimensions=["lat", "lon"],
        weights=COS,
        fair=kind == "fair",
    )
    agree(metric, "earth2studio", got, theirs)


@pytest.mark.parametrize(("kind", "estimator"), [("fair", "fair"), ("biased", "nrg")])
@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_variogram_scores(kind: str, estimator: str, p: float) -> None:
    rules = peer_module("scoringrules", "scoringrules")
    pairwise = peer_module("sklearn.metrics.pairwise", "scikit-learn")
    values, truth = fields()
    y, x = truth[0, 0].ravel(), values[0, :, 0].reshape(6, -1)
    metric = VariogramScore(p, norm="sum", kind=kind)
    agree(
        metric,
        "scoringrules",
        of_fields(metric, values, truth),
        rules.vs_ensemble(y, x, p=p, estimator=estimator),
    )
    km = EARTH_RADIUS_KM * pairwise.haversine_distances(places())
    near = np.where((km > 1) & (km <= 4000), 1 / np.maximum(km, 1), 0)
    metric = VariogramScore(p, within_km=4000, weights="inverse", norm="sum", kind=kind)
    theirs = rules.vs_ensemble(y, x, near, p=p, estimator=estimator)
    agree(metric, "scoringrules", of_fields(metric, values, truth), theirs)
    if kind == "biased":
        apart = [pairwise.manhattan_distances(z.reshape(-1, 1)) ** p for z in (y, *x)]
        theirs = (near * (apart[0] - np.mean(apart[1:], axis=0)) ** 2).sum()
        agree(metric, "scikit-learn", of_fields(metric, values, truth), theirs)


def places() -> npt.NDArray[np.float64]:
    """Latitude and longitude of the points in radians, (N, 2)."""
    grid = np.meshgrid(LATITUDE, np.arange(COLUMNS) * 360 / COLUMNS, indexing="ij")
    return np.deg2rad(np.stack(grid, axis=-1).reshape(-1, 2))


def neighbours(radius_km: float) -> list[npt.NDArray[np.intp]]:
    """Points within a distance of each, by the ball tree of scikit-learn."""
    tree = peer_module("sklearn.neighbors", "scikit-learn").BallTree(places(), metric="haversine")
    found: list[npt.NDArray[np.intp]] = list(
        tree.query_radius(places(), radius_km / EARTH_RADIUS_KM * (1 + 1e-9))
    )
    return found


AREA = np.repeat(-np.diff(np.sin(np.deg2rad(np.linspace(90, -90, 10)))), COLUMNS)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_fractions_skill_scores_of_windows(window: int) -> None:
    spatial = peer_module("scores.spatial", "scores")
    values, truth = fields(times=3, members=1)
    dims = ("time", "latitude", "longitude")
    settings = {"event_threshold": 283.0, "window_size": (window, window), "spatial_dims": dims[1:]}
    x, y = xr.DataArray(values[:, 0, 0], dims=dims), xr.DataArray(truth[:, 0], dims=dims)
    metric = FSS(283.0, window=window, edge="interior")
    agree(
        metric, "scores", of_fields(metric, values, truth), spatial.fss_2d(x, y, reduce_dims=dims, **settings)
    )
    # With zeros beyond the edges `scores` takes one more row and column of windows than there are points:
    # ours are the same on a grid with one more row and column without events.
    theirs = spatial.fss_2d(x, y, reduce_dims=dims, zero_padding=True, **settings)
    wider = [(0, 0)] * 2 + [(0, 1), (0, 1)]
    zero = FSS(283.0, window=window, edge="zero")
    agree(zero, "scores", of_fields(zero, np.pad(values, [(0, 0), *wider]), np.pad(truth, wider)), theirs)
    if window == 3:  # its window is a disc: a square at this size, and at 1 it fails
        values, truth = fields(times=3)
        members = xr.DataArray(values[:, :, 0], dims=("time", "member", *dims[1:]))
        theirs = Studio()(
            "fss",
            members,
            xr.DataArray(truth[:, 0], dims=dims),
            reduction_dimensions=list(dims),
            window_sizes=[window],
            thresholds=[283.0],
            ensemble_dimension="member",
        )
        agree(metric, "earth2studio", of_fields(metric, values, truth), theirs[0, 0])


def test_fractions_skill_scores_of_discs(monkeypatch: pytest.MonkeyPatch) -> None:
    values, truth = fields(times=3)
    p, q = (values[:, :, 0] > 283).mean(axis=1).reshape(3, -1), (truth[:, 0] > 283).reshape(3, -1)
    around = neighbours(3000)
    p, q = (np.stack([np.average(z[:, i], axis=1, weights=AREA[i]) for i in around], axis=1) for z in (p, q))
    metric = FSS(283.0, radius_km=3000)
    got = of_fields(metric, values, truth)
    agree(metric, "scikit-learn", got, 1 - ((p - q) ** 2).sum() / (p**2 + q**2).sum())
    happened = xr.DataArray((truth[:, 0] > 283).astype(float))
    useful = of_fields(UsefulFSS(283.0, radius_km=3000), values, truth)
    names = np.array(["o_rate", "total"])
    theirs = met("nbrcnt", monkeypatch).calculate_nbr_ufss(np.array([[float(happened.mean()), 1.0]]), names)
    agree(UsefulFSS(283.0, radius_km=1.0), "METcalcpy", useful, theirs)
    table = (
        peer_module("scores.categorical", "scores").BinaryContingencyManager(happened, happened).transform()
    )
    agree(UsefulFSS(283.0, radius_km=1.0), "scores", useful, 0.5 + table.base_rate() / 2)


@pytest.mark.parametrize("pool", ["average", "max"])
def test_pooled_crps(pool: str) -> None:
    values, truth = fields()
    around = neighbours(3000)

    def pooled(field: np.ndarray) -> np.ndarray:
        if pool == "max":
            return np.stack([field[..., i].max(axis=-1) for i in around], axis=-1)
        return np.stack([np.average(field[..., i], axis=-1, weights=AREA[i]) for i in around], axis=-1)

    x, y = pooled(values[0, :, 0].reshape(6, -1)), pooled(truth[0, 0].ravel())
    rules = peer_module("scoringrules", "scoringrules")
    for kind, estimator in (("fair", "fair"), ("biased", "nrg")):
        metric = PooledCRPS(3000, pool, kind)
        at_points = rules.crps_ensemble(y, x, m_axis=0, estimator=estimator)
        agree(metric, "scikit-learn and scoringrules", of_fields(metric, values, truth), at_points.mean())
    at_points = peer_module("properscoring", "properscoring").crps_ensemble(y, x.T)
    agree(metric, "scikit-learn and properscoring", of_fields(metric, values, truth), at_points.mean())


# Spectra


def coefficients(field: np.ndarray, geometry: str, l_max: int) -> npt.NDArray[np.complex128]:
    """Of orthonormal harmonics by ducc0, orders m >= 0, (m, l)."""
    packed = peer_module("ducc0", "ducc0").sht.analysis_2d(
        map=field[None], spin=0, lmax=l_max, geometry=geometry
    )[0]
    out = np.zeros((l_max + 1, l_max + 1), np.complex128)
    for m in range(l_max + 1):
        start = m * (2 * l_max + 1 - m) // 2
        out[m, m:] = packed[start + m : start + l_max + 1]
    return out


def common_power(a: np.ndarray, b: np.ndarray) -> npt.NDArray[np.float64]:
    """Power that two fields share, by total wavenumber."""
    each = (a * b.conj()).real / (4 * np.pi)
    return np.asarray(2 * each.sum(axis=0) - each[0])


def test_power_per_total_wavenumber_on_equidistant_rows() -> None:
    shtools = peer_module("pyshtools", "pyshtools")
    found = shtools.SHCoeffs.from_random(np.ones(8), seed=1)
    field = found.expand(grid="DH2", extend=True).to_array()[:, :-1]
    got = power_spectrum(field, np.linspace(90, -90, 17))[:8]
    agree("power_spectrum", "pyshtools", got, found.spectrum())
    agree("power_spectrum", "ducc0", got, common_power(*[coefficients(field, "CC", 15)] * 2)[:8])
    field = np.random.default_rng(2).standard_normal((12, 24))
    got = power_spectrum(field, 90 - 15 * (np.arange(12) + 0.5))
    agree("power_spectrum", "ducc0", got, common_power(*[coefficients(field, "F1", 11)] * 2))


def test_spectral_scores() -> None:
    shtools = peer_module("pyshtools", "pyshtools")
    values, truth = fields(times=2, columns=17)
    values, truth = values - 280, truth - 280
    gauss = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(9)[0]))[::-1]
    forecasts, truths = values[:, :, 0], truth[:, 0]

    def by_ducc(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return common_power(coefficients(a, "GL", 8), coefficients(b, "GL", 8))

    def by_shtools(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        clm = [shtools.SHGrid.from_array(x, grid="GLQ").expand().to_array() for x in (a, b)]
        return np.asarray(shtools.spectralanalysis.cross_spectrum(*clm))

    for peer, shared in (("ducc0", by_ducc), ("pyshtools", by_shtools)):
        check_spectral(peer, values, truth, gauss, forecasts, truths, shared)


def check_spectral(
    peer: str,
    values: np.ndarray,
    truth: np.ndarray,
    latitude: np.ndarray,
    forecasts: np.ndarray,
    truths: np.ndarray,
    shared: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    """All spectral scores against those of the spectra of a peer."""
    pairs = [(x, y) for members, y in zip(forecasts, truths, strict=True) for x in members]
    power, cross, target = (
        np.mean(
            [shared(*z) for z in ([(x, x) for x, _ in pairs], pairs, [(y, y) for _, y in pairs])[k]], axis=0
        )
        for k in range(3)
    )
    decibels = 10 * np.log10(power / target)[1:]
    expected = {
        PowerSpectrum(): power,
        PowerSpectrum(of="truth"): target,
        SpectralRatio(): power / target,
        Coherence(): cross / np.sqrt(power * target),
        LogSpectralDistance(): np.sqrt(np.mean(decibels**2)),
        SpectralBias(): decibels.mean(),
    }
    for metric, theirs in expected.items():
        agree(metric, peer, of_fields(metric, values, truth, latitude=latitude), theirs)


@pytest.mark.filterwarnings("ignore:dropping variables:FutureWarning")
def test_zonal_spectra() -> None:
    values, truth = fields()
    weight = np.sin(np.deg2rad(LATITUDE + 10)) - np.sin(np.deg2rad(LATITUDE - 10))
    circle = 2 * np.pi * 1000 * (6357 + 6378) / 2 * np.cos(np.deg2rad(LATITUDE))[:, None]
    x = xr.DataArray(truth[0, 0], dims=("lat", "lon"), coords={"lon": np.arange(12) * 1.0})
    spectra = {
        "xrft": peer_module("xrft", "xrft")
        .power_spectrum(x, dim="lon", real_dim="lon", scaling="spectrum")
        .values,
        "scipy": scipy.signal.periodogram(truth[0, 0], detrend=False, scaling="spectrum")[1],
    }
    for peer, power in spectra.items():
        metric = PowerSpectrum("zonal", of="truth")
        agree(metric, peer, of_fields(metric, values, truth), np.average(power, axis=0, weights=weight))
        power[:, -1] *= 2
        metric = PowerSpectrum("zonal-wb2", of="truth")
        agree(
            metric, peer, of_fields(metric, values, truth), np.average(circle * power, axis=0, weights=weight)
        )


# Significance


def correlated(size: int, series: int) -> npt.NDArray[np.float64]:
    d = np.cumsum(np.random.default_rng(3).standard_normal((series, size)), axis=1) * 0.1
    return np.asarray(np.diff(d, axis=1) + 0.02)


@pytest.mark.filterwarnings("ignore:yule_walker:FutureWarning")
def test_students_t_and_its_inflation() -> None:
    d = np.random.default_rng(6).standard_normal((120, 4)) + 0.1
    d[1:] += 0.5 * d[:-1]
    got = mean_tests(d, "iid")
    agree("iid", "scipy", got.p_value, scipy.stats.ttest_1samp(d, 0.0).pvalue)
    theirs = peer_module("statsmodels.stats.weightstats", "statsmodels").DescrStatsW(d).ttest_mean(0.0)
    agree("iid", "statsmodels", got.p_value, theirs[1])
    walker = peer_module("statsmodels.regression.linear_model", "statsmodels").yule_walker
    acf = peer_module("statsmodels.tsa.stattools", "statsmodels").acf
    inflation = []
    for series in d.T:
        phi, r = walker(series, order=2, method="mle")[0], acf(series, nlags=2, fft=False)
        inflation.append(np.sqrt(1 - phi @ r[1:]) / (1 - phi.sum()))
    agree("geer", "statsmodels", mean_tests(d, "geer").inflation, inflation)


@pytest.mark.parametrize("horizon", [1, 3])
def test_diebold_mariano_of_harvey(horizon: int) -> None:
    peer = peer_module("scores.stats.statistical_tests", "scores")
    d = correlated(90, 4)
    array = xr.DataArray(d, dims=("series", "time"), coords={"h": ("series", [horizon] * 4)})
    theirs = peer.diebold_mariano(array, "series", "h", method="HLN", statistic_distribution="t")
    got = mean_tests(d.T, "hln", horizon)
    agree("hln", "scores", got.mean / got.stderr, theirs["dm_test_stat"])
    agree("hln", "scores", got.mean + got.half_width(0.95), theirs["ci_upper"])
    above = np.where(got.mean > 0, 1 - got.p_value / 2, got.p_value / 2)
    agree("hln", "scores", above, theirs["confidence_gt_0"])
    test = peer_module("dieboldmariano", "dieboldmariano").dm_test
    zero = [0.0] * d.shape[1]
    each = [test(zero, list(row), zero, loss=lambda _, loss: loss, h=horizon)[0] for row in d]
    agree("hln", "dieboldmariano", got.mean / got.stderr, each)


def test_diebold_mariano_of_hering(monkeypatch: pytest.MonkeyPatch) -> None:
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
        agree("hg", "scores", got.mean / got.stderr, exact)


def test_block_lengths() -> None:
    """`arch` counts the first lag without correlation, the paper the last with it: here both stop at 1."""
    peer = peer_module("arch.bootstrap", "arch").optimal_block_length
    d = np.random.default_rng(5).standard_normal((200, 8))
    a = d - d.mean(axis=0)
    d = d[:, np.abs((a[1:] * a[:-1]).sum(axis=0) / (a * a).sum(axis=0)) < 0.2]
    assert d.shape[1] >= 6
    theirs = np.maximum(peer(d)["stationary"], 1)
    agree("automatic_block_length", "arch", [automatic_block_length(x) for x in d.T], theirs)


def test_corrections() -> None:
    peer = peer_module("statsmodels.stats.multitest", "statsmodels")
    p = np.random.default_rng(5).random((5, 8)) ** 2
    kinds = {"fdr_bh": benjamini_hochberg, "fdr_by": benjamini_yekutieli, "holm": holm, "sidak": sidak}
    for method, ours in kinds.items():
        agree(
            ours.__name__,
            "statsmodels",
            ours(p).ravel(),
            peer.multipletests(p.ravel(), alpha=0.05, method=method)[1],
        )
    for method, ours in (("bh", benjamini_hochberg), ("by", benjamini_yekutieli)):
        theirs = scipy.stats.false_discovery_control(p.ravel(), method=method)
        agree(ours.__name__, "scipy", ours(p).ravel(), theirs)


# Conformance vectors: what peers give for the inputs of cases whose `peers` name them.


PointScore = Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64]], npt.NDArray[np.float64]]
"""Scores (N,) of members (M, N) and truth (N,)."""


def points(values: npt.NDArray[Any]) -> xr.DataArray:
    return xr.DataArray(values, dims="point")


def labelled(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[xr.DataArray, xr.DataArray]:
    return xr.DataArray(x, dims=("member", "point")), points(y)


def scores_points(metric: dict[str, Any]) -> PointScore | None:
    """A score of every point by `scores`."""
    probability = peer_module("scores.probability", "scores")
    continuous = peer_module("scores.continuous", "scores")
    kind, name = metric.get("kind"), metric["type"]
    method = "fair" if kind == "fair" else "ecdf"
    keep = {"preserve_dims": ["point"]}
    if name == "CRPS" and kind in ("fair", "biased"):
        return lambda x, y: probability.crps_for_ensemble(*labelled(x, y), "member", method=method, **keep)
    if name == "TwCRPS" and isinstance(metric.get("lower"), float):
        low, high = metric["lower"], metric.get("upper", np.inf)
        return lambda x, y: probability.tw_crps_for_ensemble(
            *labelled(x, y), "member", lambda v: np.clip(v, low, high), method=method, **keep
        )
    operators = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
    if name == "Brier" and isinstance(metric["threshold"], float):
        return lambda x, y: probability.brier_score_for_ensemble(
            *labelled(x, y),
            "member",
            metric["threshold"],
            fair_correction=kind == "fair",
            event_threshold_operator=operators[metric["event"]],
            **keep,
        ).squeeze("threshold")
    if name == "QuantileScore":
        p, how = metric["probability"], metric["method"]
        return lambda x, y: continuous.quantile_score(
            points(np.quantile(x, p, axis=0, method=how)), points(y), p, **keep
        )
    if name == "IntervalScore":
        level, how = metric["level"], metric["method"]
        tails = (1 - level) / 2, (1 + level) / 2
        return lambda x, y: continuous.interval_score(
            *map(points, np.quantile(x, tails, axis=0, method=how)), points(y), level, **keep
        )["total"]
    return None


def scoringrules_points(metric: dict[str, Any]) -> PointScore | None:
    """A score of every point by scoringrules."""
    rules = peer_module("scoringrules", "scoringrules")
    kind, name = metric.get("kind"), metric["type"]
    estimator = "fair" if kind == "fair" else "nrg"
    if name == "CRPS" and kind in ("fair", "biased"):
        return lambda x, y: rules.crps_ensemble(y, x, m_axis=0, estimator=estimator)
    if name == "TwCRPS" and isinstance(metric.get("lower"), float):
        low, high = metric["lower"], metric.get("upper", np.inf)
        return lambda x, y: rules.twcrps_ensemble(y, x, low, high, m_axis=0, estimator=estimator)
    if name == "IntervalScore":
        level, how = metric["level"], metric["method"]
        tails = (1 - level) / 2, (1 + level) / 2
        return lambda x, y: rules.interval_score(y, *np.quantile(x, tails, axis=0, method=how), 1 - level)
    return None


def properscoring_points(metric: dict[str, Any]) -> PointScore | None:
    """A score of every point by properscoring."""
    if (metric["type"], metric.get("kind")) != ("CRPS", "biased"):
        return None
    proper = peer_module("properscoring", "properscoring")
    return lambda x, y: proper.crps_ensemble(y, x, axis=0)


def xskillscore_points(metric: dict[str, Any]) -> PointScore | None:
    """A score of every point by xskillscore."""
    if (metric["type"], metric.get("kind")) != ("CRPS", "biased"):
        return None
    skill = peer_module("xskillscore", "xskillscore")
    return lambda x, y: skill.crps_ensemble(labelled(x, y)[1], labelled(x, y)[0], dim=[]).values


def scoringrules_field(metric: dict[str, Any]) -> PointScore | None:
    """A score of a whole field by scoringrules."""
    rules = peer_module("scoringrules", "scoringrules")
    if metric["type"] == "EnergyScore" and metric["norm"] == "euclidean":
        estimator = "fair" if metric["kind"] == "fair" else "nrg"
        return lambda x, y: rules.es_ensemble(y, x, estimator=estimator)
    plain = metric.get("norm") == "sum" and "pairs" not in metric and "kind" not in metric
    if metric["type"] == "VariogramScore" and plain:
        return lambda x, y: rules.vs_ensemble(y, x, p=metric["p"], estimator="nrg")
    return None


POINTS = {
    "properscoring": properscoring_points,
    "scores": scores_points,
    "scoringrules": scoringrules_points,
    "xskillscore": xskillscore_points,
}
FIELDS = {"scoringrules": scoringrules_field}


def of_peers(case: VectorCase) -> dict[str, dict[str, float]]:
    """Scores by peer and label."""
    plain = case.settings["average"] == "starts" and case.settings["regions"] == ["global"]
    weights = case.settings["weights"]
    if not plain or (isinstance(weights, dict) and weights["type"] != "area"):
        return {}
    out = {}
    for peers, whole in ((POINTS, False), (FIELDS, True)):
        for peer, choose in peers.items():
            if (score := choose(case.settings["metric"])) is not None:
                out[peer] = {label: of_period(case, label, score, whole) for label in case.expected}
    return out


def of_period(case: VectorCase, label: str, score: PointScore, whole: bool) -> float:
    """Mean over starts of a score of fields, or of the area mean of a score of points."""
    channel, _, lead = label.split()
    forecast = case.forecast().sel(channel=channel, lead_time=np.timedelta64(int(lead[:-1]), "h"))
    truth = case.truth().sel(channel=channel, time=forecast["init_time"] + forecast["lead_time"])
    weights, shape = case.settings["weights"], forecast.shape[2:]
    if isinstance(weights, dict):
        area = np.asarray(case.given["cell_area"]["data"])
    elif case.given["mesh"]:
        area = np.ones(shape)
    else:
        area = np.repeat(cell_weights(case.given["latitude"], weights), shape[1])
    found = []
    for x, y in zip(forecast.values, truth.values, strict=True):
        there = ~np.isnan(y.ravel())
        values = np.asarray(score(x.reshape(len(x), -1)[:, there], y.ravel()[there]), np.float64)
        found.append(values if whole else np.average(values, weights=area[there]))
    return float(np.mean(found))


def test_peers_give_the_vectors() -> None:
    held = 0
    for case in vectors("score"):
        found = of_peers(case)
        assert ", ".join(sorted(found)) == case.peers, case.name
        for peer, values in found.items():
            assert case.agreement(values) >= 12, (case.name, peer, values, case.expected)
            held += 1
    assert held > 50


def test_peers_give_the_vectors_of_tests_and_corrections() -> None:
    control = scipy.stats.false_discovery_control
    for case in vectors("correction"):
        p = np.array(case.settings["p_values"], np.float64)
        method = {"benjamini-hochberg": "bh", "benjamini-yekutieli": "by"}.get(case.settings["correction"])
        assert case.peers == ("scipy" if method else "")
        if method:
            p[~np.isnan(p)] = control(p[~np.isnan(p)], method=method)
            assert case.agreement({"p_adjusted": p}) >= 12
    for case in vectors("test"):
        iid = case.settings["method"] == "iid"
        assert case.peers == ("scipy" if iid else "")
        if iid:
            d = np.asarray(case.given["values"])
            t = scipy.stats.ttest_1samp(d, 0)
            stderr = scipy.stats.sem(d)
            values = {"mean": d.mean(), "stderr": stderr, "df": t.df, "p_value": t.pvalue}
            assert case.agreement(values) >= 12
