"""Quantile scores and variants of the CRPS: closed forms, identities, independent formulas."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from scipy import integrate, special

from wx_eval import CRPS, Chunk, Records, cell_weights, compare, evaluate, scores
from wx_eval import _score as scoring
from wx_eval._case import Case
from wx_eval._crps import CRPSPart, HersbachBins, HersbachTerm, TwCRPS
from wx_eval._grid import Grid
from wx_eval._metrics import Metric, linearised
from wx_eval._quantiles import METHODS, WIS, IntervalScore, QuantileScore, quantile_error
from wx_eval._statistics import Fields, Statistic

Array = npt.NDArray[np.float64]
LAT, LON = np.linspace(80, -80, 9), np.arange(0, 360, 30.0)
START, LEAD = np.datetime64("2020-01-01T00", "s"), np.timedelta64(24, "h")


def case(values: Array, truth: Array, field: float = 0.0) -> Case:
    """Of one channel and points along a line."""
    points = truth.size
    return Case(
        values.reshape(len(values), 1, points),
        truth.reshape(1, points),
        channels=("x",),
        grid=Grid.from_points(np.zeros(points), np.arange(points)),
        points=slice(0, points),
        valid_time=START,
        reference=lambda _: np.full((1, points), field),
    )


def score(metric: Metric, made: Case, weight: Array | None = None) -> float:
    """From weighted means over the points."""
    means = {}
    for statistic in metric.statistics:
        assert isinstance(statistic, Statistic)
        field = statistic.map(made)
        if isinstance(field, Fields):
            field = np.stack(list(field.fields), axis=-1)
        rows = field[0].toarray() if isinstance(field, list) else np.asarray(field)[0]
        means[statistic.id] = np.average(rows, axis=0, weights=weight)
    return float(metric.value(means))


def normal(points: int, members: int, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    return case(rng.standard_normal((members, points)), rng.standard_normal(points))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("members", [1, 2, 5, 10])
def test_quantiles_are_those_of_numpy(method: str, members: int) -> None:
    made = normal(50, members)
    for p in (0.01, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 0.975):
        expected = np.quantile(made.values, p, axis=0, method=method) - made.truth  # type: ignore[call-overload]
        np.testing.assert_allclose(quantile_error(made, p, method), expected, atol=1e-14)


def test_quantile_score_of_two_members() -> None:
    made = case(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([2.0, -1.0]))
    # The 0.25 quantile is 0.25: a truth 1.75 above costs 0.25 each, one 1.25 below costs 0.75 each.
    assert score(QuantileScore(0.25), made) == pytest.approx((0.25 * 1.75 + 0.75 * 1.25) / 2, abs=1e-15)
    assert score(QuantileScore(0.5), made) == pytest.approx((0.5 * 1.5 + 0.5 * 1.5) / 2, abs=1e-15)
    # alpha = 0.5: the interval is [0.25, 0.75].
    assert score(IntervalScore(0.5), made) == pytest.approx(0.5 + 2 / 0.5 * (1.25 + 1.25) / 2, abs=1e-14)


def test_an_interval_score_is_the_sum_of_its_quantile_scores() -> None:
    made = normal(200, 9)
    for level in (0.5, 0.8, 0.95):
        alpha = 1 - level
        both = score(QuantileScore(alpha / 2), made) + score(QuantileScore(1 - alpha / 2), made)
        assert score(IntervalScore(level), made) == pytest.approx(2 / alpha * both, rel=1e-13)


def test_wis_is_the_mean_of_quantile_scores_and_tends_to_the_crps() -> None:
    made, levels = normal(300, 7), (0.2, 0.6, 0.9)
    tails = [(1 - level) / 2 for level in levels]
    total = score(QuantileScore(0.5), made)
    total += sum(score(QuantileScore(p), made) for t in tails for p in (t, 1 - t))
    assert score(WIS(levels), made) == pytest.approx(2 * total / 7, rel=1e-13)
    many = WIS(np.arange(1, 1000) / 1000, method="inverted_cdf")
    assert score(many, made) == pytest.approx(score(CRPS("biased"), made), rel=2e-3)


def test_interval_score_of_a_calibrated_normal_ensemble() -> None:
    rng = np.random.default_rng(0)
    members, level = 2001, 0.8
    x = special.ndtri((np.arange(members) + 0.5) / members)[:, None]
    made = case(np.broadcast_to(x, (members, 4000)), rng.standard_normal(4000))
    z = special.ndtri(0.9)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    expected = 2 * z + 2 * 2 / 0.2 * (density - z * 0.1)
    assert score(IntervalScore(level), made) == pytest.approx(expected, abs=0.1)
    assert score(IntervalScore(0.6), made) != pytest.approx(expected, abs=0.1)


def integral(made: Case, lower: float, upper: float) -> float:
    """Mean over points of the integral of (F - step)^2 between the limits."""
    total = 0.0
    for members, y in zip(made.values[:, 0].T, made.truth[0], strict=True):
        edges = np.unique(np.clip([lower, upper, y, *members], lower, upper))
        centre, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        cdf = (members[:, None] <= centre).mean(0)
        total += (width * (cdf - (y <= centre)) ** 2).sum()
    return total / made.truth.size


@pytest.mark.parametrize(("lower", "upper"), [(0.3, None), (None, -0.2), (-0.4, 0.8)])
def test_twcrps_is_the_integral_over_its_range(lower: float | None, upper: float | None) -> None:
    made = normal(60, 6)
    expected = integral(made, -50.0 if lower is None else lower, 50.0 if upper is None else upper)
    assert score(TwCRPS(lower, upper, "biased"), made) == pytest.approx(expected, rel=1e-12)


def test_twcrps_splits_the_crps_and_its_fair_kind_is_unbiased() -> None:
    made = normal(100, 5)
    for kind in ("fair", "biased"):
        parts = [TwCRPS(None, -0.5, kind), TwCRPS(-0.5, 0.7, kind), TwCRPS(0.7, None, kind)]
        total = sum(score(part, made) for part in parts)
        assert total == pytest.approx(score(CRPS(kind), made), rel=1e-12)
    # Independent N(0, 1) members and truth: E = integral over z > t of F (1 - F), whatever M.
    exact = integrate.quad(lambda z: special.ndtr(z) * special.ndtr(-z), 0.5, 40)[0]
    got = score(TwCRPS(0.5), normal(200_000, 3))
    assert got == pytest.approx(exact, abs=4 * 0.3 / np.sqrt(200_000))


def test_twcrps_takes_limits_from_the_climatology() -> None:
    values, truth = normal(40, 4).values, normal(40, 4).truth
    named, number = TwCRPS("quantile(0.9)"), TwCRPS(0.25)
    assert score(named, case(values, truth, 0.25)) == score(number, case(values, truth))
    assert named.name == "twcrps_fair(lower=quantile(0.9))"


def test_almost_fair_lies_between() -> None:
    made = normal(30, 4)
    fair, biased = score(CRPS("fair"), made), score(CRPS("biased"), made)
    assert score(CRPS("almost_fair", 0.95), made) == pytest.approx(0.95 * fair + 0.05 * biased, rel=1e-14)
    assert CRPS("almost_fair", 0.95).name == "crps_almost_fair(alpha=0.95)"


def test_penalties_and_spread_are_the_crps() -> None:
    made = normal(80, 5)
    away = made.values - made.truth
    over, under = score(CRPSPart("overforecast"), made), score(CRPSPart("underforecast"), made)
    assert over == pytest.approx(np.maximum(away, 0).mean(), rel=1e-13)
    assert under == pytest.approx(np.maximum(-away, 0).mean(), rel=1e-13)
    for kind in ("fair", "biased"):
        whole = over + under - score(CRPSPart(f"spread_{kind}"), made)
        assert whole == pytest.approx(score(CRPS(kind), made), rel=1e-12)


def hersbach(x: Array, y: Array) -> tuple[float, float]:
    """Equations 26, 33, 36 and 37 of Hersbach (2000), point by point."""
    m, points = x.shape
    alpha, beta = np.zeros((2, m + 1))
    below, above = np.mean(y < x.min(0)), np.mean(y > x.max(0))
    for k in range(points):
        s = np.sort(x[:, k])
        if y[k] < s[0]:
            beta[0] += (s[0] - y[k]) / points
        if y[k] > s[-1]:
            alpha[m] += (y[k] - s[-1]) / points
        for i in range(1, m):
            low, high = s[i - 1], s[i]
            if y[k] > high:
                alpha[i] += (high - low) / points
            elif y[k] < low:
                beta[i] += (high - low) / points
            else:
                alpha[i] += (y[k] - low) / points
                beta[i] += (high - y[k]) / points
    reliability = potential = 0.0
    for i in range(m + 1):
        if i == 0:
            o, g = below, beta[0] / below if below else 0.0
        elif i == m:
            o, g = 1 - above, alpha[m] / above if above else 0.0
        else:
            g = alpha[i] + beta[i]
            o = beta[i] / g if g else 0.0
        reliability += g * (o - i / m) ** 2
        potential += g * o * (1 - o)
    return reliability, potential


@pytest.mark.parametrize("members", [1, 2, 7])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_hersbachs_terms_match_his_equations_and_add_up(members: int, shift: float) -> None:
    rng = np.random.default_rng(members)
    x, y = np.round(2 * rng.standard_normal((members, 60))) / 2, np.round(2 * rng.standard_normal(60)) / 2
    made = case(x + shift, y)
    terms = [score(HersbachTerm(term), made) for term in ("reliability", "potential")]
    np.testing.assert_allclose(terms, hersbach(x + shift, y), rtol=1e-12, atol=1e-15)
    whole = np.abs(x + shift - y).mean() - np.abs(x - x[:, None]).mean() / 2
    assert sum(terms) == pytest.approx(whole, rel=1e-12)
    bins = np.stack(list(HersbachBins().map(made).fields))
    np.testing.assert_allclose(bins[2:].sum(), np.ptp(np.vstack([x + shift, y]), axis=0).sum(), rtol=1e-13)


def test_hersbachs_bins_are_never_all_in_memory() -> None:
    """404 numbers per point would take 105 MB."""
    members, points = 200, 1 << 15
    made = normal(points, members)
    tracemalloc.start()
    numbers = [float(f.mean()) for f in HersbachBins().map(made).fields]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(numbers) == 2 * members + 4
    assert peak < 3 * made.values.nbytes < 8 * points * len(numbers) * 1.6


def test_hersbachs_reliability_of_a_calibrated_ensemble_vanishes_with_its_size() -> None:
    small, large = (score(HersbachTerm(), normal(20_000, m)) for m in (4, 64))
    assert small == pytest.approx(16**2 * large, rel=0.2), "it falls as 1 / M^2"
    assert large < 0.001
    wide = normal(20_000, 64)
    assert score(HersbachTerm(), case(3 * wide.values, wide.truth)) > 0.1


def test_uncertainty_is_the_crps_of_the_truths_and_closes_the_decomposition() -> None:
    made = normal(3000, 5)
    y = made.truth[0]
    gini = np.abs(y - y[:, None]).mean() / 2
    uncertainty = score(HersbachTerm("uncertainty", -6.0, 6.0), made)
    assert uncertainty == pytest.approx(gini, rel=1e-5)
    resolution = score(HersbachTerm("resolution", {"x": -6.0}, {"x": 6.0}), made)
    reliability = score(HersbachTerm(), made)
    assert reliability - resolution + uncertainty == pytest.approx(score(CRPS("biased"), made), rel=1e-12)
    ramp = case(np.zeros((2, 1000)), (np.arange(1000) + 0.5) / 1000)
    assert score(HersbachTerm("uncertainty", 0.0, 1.0, 10), ramp) == pytest.approx(1 / 6, abs=1e-6)
    dry = case(np.zeros((2, 10)), np.array([0.0] * 7 + [1.0] * 3))
    assert score(HersbachTerm("uncertainty", 0.0, 1.0, 1000), dry) == pytest.approx(0.21, abs=1e-3)
    assert np.isnan(score(HersbachTerm("uncertainty", -1.0, 6.0), made))


EVERY: list[Metric] = [
    QuantileScore(0.9),
    IntervalScore(0.8),
    WIS((0.5, 0.9)),
    TwCRPS(0.5),
    TwCRPS({"x": -0.5}, {"x": 0.5}, "biased"),
    CRPS("almost_fair", 0.9),
    CRPSPart("underforecast"),
    CRPSPart("spread_fair"),
    HersbachTerm(),
    HersbachTerm("potential"),
    HersbachTerm("resolution", -9.0, {"x": 9.0}, 50),
    HersbachTerm("uncertainty", -9.0, 9.0, 50),
]


def make(members: int, noise: float, model: str, seed: int) -> tuple[list[Chunk], xr.DataArray, Records]:
    days = 40
    rng = np.random.default_rng(0)
    states = rng.standard_normal((days, 1, LAT.size, LON.size))
    states[rng.random(states.shape) < 0.1] = np.nan
    coords = {
        "time": START + LEAD * np.arange(1, days + 1),
        "channel": ["x"],
        "latitude": LAT,
        "longitude": LON,
    }
    truth = xr.DataArray(states, coords, ("time", "channel", "latitude", "longitude"))
    rng = np.random.default_rng(seed)
    chunks = [
        Chunk(
            init_time=START + day * LEAD,
            lead_time=LEAD,
            channels=("x",),
            values=np.nan_to_num(states[day])
            + noise
            * (
                rng.standard_normal((1, *states[day].shape))
                + rng.standard_normal((members, *states[day].shape))
            ),
            latitude=LAT,
            longitude=LON,
        )
        for day in range(days)
    ]
    return chunks, truth, evaluate(chunks, truth, model=model, metrics=EVERY, regions=["global", "tropics"])


def test_means_are_weighted_and_skip_gaps() -> None:
    chunks, truth, records = make(5, 1.0, "a", 1)
    got = scores(records).sel(region="tropics").squeeze()
    weight = xr.DataArray(cell_weights(LAT), {"latitude": LAT}, ("latitude",))
    expected: dict[str, list[xr.DataArray]] = {"quantile": [], "interval": [], "tw": []}
    for chunk in chunks:
        y = truth.sel(time=chunk.init_time + LEAD)
        x = xr.DataArray(chunk.values, dims=("member", *y.dims), coords=y.drop_vars("time").coords)
        q, low, high = (x.quantile(p, "member") for p in (0.9, 0.1, 0.9))
        outside = (low - y).clip(0) + (y - high).clip(0)
        xc, yc = x.clip(0.5), y.clip(0.5)
        pairs = abs(xc - xc.rename(member="other")).sum(("member", "other")) / (2 * 5 * 4)
        fields = {
            "quantile": ((y < q) - 0.9) * (q - y),
            "interval": high - low + 10 * outside,
            "tw": abs(xc - yc).mean("member") - pairs,
        }
        for name, field in fields.items():
            field = field.where(y.notnull() & (abs(field["latitude"]) <= 20), drop=True)
            expected[name].append(field.weighted(weight).mean(("latitude", "longitude")))
    for name, metric in zip(expected, (EVERY[0], EVERY[1], EVERY[3]), strict=True):
        mean = float(np.mean([f.item() for f in expected[name]]))
        assert got[metric.name].item() == pytest.approx(mean, rel=1e-12)


def test_bits_do_not_depend_on_how_many_rows_are_handled_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, truth, whole = make(5, 1.0, "a", 1)
    monkeypatch.setattr(scoring, "_GROUP_POINTS", 50)
    regions = ["tropics", "global"]
    assert evaluate(chunks, truth, model="a", metrics=EVERY, regions=regions).table.equals(whole.table)


def test_every_metric_is_tested_and_its_slopes_are_exact() -> None:
    _, _, better = make(5, 0.5, "better", 1)
    _, _, worse = make(5, 1.0, "worse", 2)
    chosen = [m for m in EVERY if m.goal != "none"]
    card = compare(better, worse, chosen)
    assert all(cell.difference < 0 and cell.significant for cell in card.cells)
    for metric in chosen:
        ids = [s.id for s in metric.statistics]
        rows = better.to_xarray(ids).sel(region="global").squeeze()
        series = {name: rows[name].values for name in ids}
        value, line = linearised(metric, series)
        means = {name: s.mean(axis=0) for name, s in series.items()}
        step = 1e-6
        up, down = (
            float(metric.value({n: means[n] + sign * step * (series[n][0] - means[n]) for n in ids}))
            for sign in (1, -1)
        )
        assert line[0] - value == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-9)


def test_scores_of_ensembles_of_different_size_do_not_mix() -> None:
    _, _, small = make(3, 0.5, "small", 1)
    _, _, large = make(6, 0.5, "large", 2)
    both = scores(small.merge(large))
    for alone in (scores(small), scores(large)):
        for metric in EVERY:
            np.testing.assert_allclose(
                both[metric.name].sel(model=alone["model"]), alone[metric.name], rtol=1e-13
            )
    for metric in (CRPS("almost_fair", 0.9), EVERY[4]):
        with pytest.raises(ValueError, match="depends on the ensemble size"):
            compare(small, large, metric)


@pytest.mark.parametrize(
    ("make_metric", "message"),
    [
        (lambda: QuantileScore(1.0), "must lie between 0 and 1"),
        (lambda: QuantileScore(0.5, "nearest"), "method must be one of"),
        (lambda: IntervalScore(0.0), "must lie between 0 and 1"),
        (lambda: WIS(()), "must lie between 0 and 1"),
        (lambda: WIS((0.9, 0.5)), "levels must increase"),
        (lambda: TwCRPS(), "give lower, upper or both"),
        (lambda: TwCRPS(1.0, 0.5), "lower must be below upper"),
        (lambda: CRPS("almost_fair"), "needs an alpha"),
        (lambda: CRPS("fair", 0.5), "needs an alpha"),
        (lambda: CRPSPart("bias"), "part must be one of"),
        (lambda: HersbachTerm("spread"), "term must be one of"),
        (lambda: HersbachTerm("resolution", 0.0), "need lower and upper"),
        (lambda: HersbachTerm("reliability", 0.0, 1.0), "need lower and upper"),
        (lambda: HersbachTerm("uncertainty", 0.0, 1.0, 0), "steps must be at least 1"),
    ],
)
def test_bad_settings_are_refused(make_metric: Callable[[], Metric], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_metric()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.float16])
def test_narrow_numbers_do_not_wrap(dtype: type) -> None:
    rng = np.random.default_rng(4)
    top = min(2000, np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 2000)
    x, y = rng.integers(0, top, (5, 40)).astype(dtype), rng.integers(0, top, 40).astype(dtype)
    wide = case(x.astype(np.float64), y.astype(np.float64))
    for metric in (QuantileScore(0.3), IntervalScore(0.5), WIS(), HersbachTerm("potential")):
        assert score(metric, case(x, y)) == pytest.approx(score(metric, wide), rel=1e-6)
