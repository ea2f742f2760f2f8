"""Tests of means of correlated series: closed forms, coverage and reproducibility."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from scipy import stats

from wx_eval import benjamini_hochberg, paired_test, stationary_bootstrap
from wx_eval._bootstrap import automatic_block_length, bootstrap_counts, bootstrap_index, resampled
from wx_eval._inference import Method, mean_tests
from wx_eval._multiplicity import adjusted, benjamini_yekutieli, holm, sidak


def ar1(rho: float, length: int, series: int, seed: int) -> np.ndarray:
    """Stationary AR(1) with variance 1, shape (series, length)."""
    rng = np.random.default_rng(seed)
    x = np.empty((series, length))
    x[:, 0] = rng.standard_normal(series)
    for t in range(1, length):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * rng.standard_normal(series)
    return x


def test_independent_values_give_students_test() -> None:
    d = np.random.default_rng(0).standard_normal(40) + 0.3
    got, expected = paired_test(d, method="iid"), stats.ttest_1samp(d, 0)
    assert got.p_value == pytest.approx(expected.pvalue, rel=1e-12)
    interval = expected.confidence_interval(0.95)
    assert got.interval() == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert got.inflation == 1
    assert got.n_effective == 40


def test_p_values_keep_their_digits_far_in_the_tail() -> None:
    d = np.random.default_rng(0).standard_normal(200) + 20
    expected = 2 * stats.t.sf(d.mean() / (d.std(ddof=1) / np.sqrt(200)), 199)
    assert 0 < expected < 1e-100
    assert paired_test(d, method="iid").p_value == pytest.approx(expected, rel=1e-9)


def test_cosine_estimator_matches_its_definition() -> None:
    d = ar1(0.5, 50, 1, 1)[0]
    v = int(0.4 * 50 ** (2 / 3))
    t = np.arange(1, 51)
    cosines = [np.sqrt(2 / 50) * sum(d * np.cos(np.pi * j * (t - 0.5) / 50)) for j in range(1, v + 1)]
    got = paired_test(d, method="ewc")
    assert got.df == v == 5
    assert got.stderr == pytest.approx(np.sqrt(np.mean(np.square(cosines)) / 50), rel=1e-12)


def test_corrected_cosine_estimator_matches_its_definition() -> None:
    n = 50
    d = ar1(0.5, n, 1, 1)[0] + 0.2
    a = d - d.mean()
    r1 = (a[1:] * a[:-1]).sum() / (a**2).sum()
    rho = (n * r1 + 1) / (n - 4)
    total = 0.0
    for j in range(1, 6):
        cosine = np.sqrt(2 / n) * sum(a[t] * np.cos(np.pi * j * (t + 0.5) / n) for t in range(n))
        spectrum = 1 / abs(1 - rho * np.exp(1j * np.pi * j / n)) ** 2
        total += cosine**2 / (spectrum * (1 - rho) ** 2) / 5
    got = paired_test(d, method="ewc_ar1")
    assert got.df == 5
    assert got.stderr == pytest.approx(np.sqrt(total / n), rel=1e-12)


@pytest.mark.parametrize("method", get_args(Method))
def test_many_series_at_once_give_the_results_of_each(method: Method) -> None:
    d = ar1(0.5, 60, 7, 20) + 0.1
    d[3] = 0.25
    many = mean_tests(d.T.copy(), method, 3)
    for k, one in enumerate(d):
        got = paired_test(one, method=method, horizon=3)
        for name in ("mean", "stderr", "p_value", "inflation", "n_effective"):
            assert getattr(got, name) == pytest.approx(
                getattr(many, name)[k], rel=1e-11, abs=1e-300, nan_ok=True
            )
        assert got.notes == many.notes(k, True)


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_diebold_mariano_of_harvey_matches_its_equations(horizon: int) -> None:
    d = ar1(0.4, 40, 1, 21)[0] + 0.3
    n, h = d.size, horizon
    gamma = [sum((d[t] - d.mean()) * (d[t - k] - d.mean()) for t in range(k, n)) / n for k in range(h)]
    plain = d.mean() / np.sqrt((gamma[0] + 2 * sum(gamma[1:])) / n)
    modified = plain * np.sqrt((n + 1 - 2 * h + h * (h - 1) / n) / n)
    got = paired_test(d, method="hln", horizon=h)
    assert got.mean / got.stderr == pytest.approx(modified, rel=1e-12)
    assert got.p_value == pytest.approx(2 * stats.t.sf(abs(modified), n - 1), rel=1e-11)
    if h == 1:
        assert got.p_value == pytest.approx(paired_test(d, method="iid").p_value, rel=1e-11)


def test_diebold_mariano_without_a_positive_variance_is_no_test() -> None:
    d = np.tile([1.0, -1.0], 20) + 0.01
    got = paired_test(d, method="hln", horizon=2)
    assert np.isnan(got.p_value)
    assert got.notes == ("no estimate of the standard error",)


@pytest.mark.parametrize(("rho", "length"), [(0.6, 40), (0.6, 201), (0.9, 120), (-0.4, 60)])
def test_exponential_fit_of_hering_is_the_least_squares_one(rho: float, length: int) -> None:
    d = ar1(rho, length, 1, 22)[0] + 0.5
    a = d - d.mean()
    size = (length - 1) // 2
    c = np.array([a[k:] @ a[: length - k] for k in range(size)]) / length

    def cost(x: float) -> tuple[float, float]:
        power = x ** np.arange(size)
        scale = max((c @ power) / (power @ power), 0)
        return float(((c - scale * power) ** 2).sum()), scale

    grid = np.linspace(0, 0.9999, 20001)
    best = min(grid, key=lambda x: cost(x)[0])
    fine = np.linspace(max(best - 1e-4, 0), best + 1e-4, 20001)
    x = min(fine, key=lambda y: cost(y)[0])
    variance = cost(x)[1] * (1 + 2 * (x ** np.arange(1, length)).sum())
    got = paired_test(d, method="hg")
    assert got.stderr == pytest.approx(np.sqrt(variance / length), rel=1e-4)


@pytest.mark.parametrize("rho", [0.3, 0.6])
def test_autoregressive_inflation_tends_to_the_theory(rho: float) -> None:
    # For AR(1) the variance of the mean is (1 + rho) / (1 - rho) times the independent one.
    d = ar1(rho, 40000, 1, 2)[0]
    expected = np.sqrt((1 + rho) / (1 - rho))
    assert paired_test(d, method="geer").inflation == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("length", [5, 60])
def test_the_inflation_of_weatherbench_x_matches_its_equations(length: int) -> None:
    # t_test.py of WeatherBench-X: means of lagged products over the variance with ddof 1.
    d = ar1(0.5, length, 1, 23)[0] + 0.3
    a = d - d.mean()
    r = [sum(a[t] * a[t - k] for t in range(k, length)) / (length - k) / d.var(ddof=1) for k in (1, 2)]
    phi1, phi2 = r[0] * (1 - r[1]) / (1 - r[0] ** 2), (r[1] - r[0] ** 2) / (1 - r[0] ** 2)
    k2 = (1 - r[0] * phi1 - r[1] * phi2) / (1 - phi1 - phi2) ** 2
    got = paired_test(d, method="geer_wbx")
    assert got.df == length - 1
    assert got.stderr == pytest.approx(np.sqrt(k2 * d.var(ddof=1) / length), rel=1e-12)
    assert got.inflation != paired_test(d, method="geer").inflation


@pytest.mark.parametrize("method", ["geer", "geer_wbx", "ewc", "ewc_ar1"])
def test_alternating_differences_have_more_effective_starts_than_starts(method: Method) -> None:
    # The variance of the mean of an AR(1) is (1 + rho) / (1 - rho) times that of independent values.
    got = paired_test(ar1(-0.5, 20000, 1, 24)[0], method=method)
    assert got.n_effective / got.n == pytest.approx(3, rel=0.35)
    assert got.n_effective > got.n


@pytest.mark.parametrize(
    ("rho", "method"), [(0.0, "iid"), (0.0, "ewc"), (0.5, "ewc"), (0.8, "ewc"), (0.5, "geer")]
)
def test_false_positives_keep_the_level(rho: float, method: str) -> None:
    series = 1500
    p = np.array([paired_test(d, method=method).p_value for d in ar1(rho, 200, series, 3)])  # type: ignore[arg-type]
    rate = float((p < 0.05).mean())
    sampling = 3 * np.sqrt(0.05 * 0.95 / series)
    # Geer's estimate and strong correlation are known to be a little optimistic at 200 starts.
    excess = 0.02 if rho == 0.8 or method == "geer" else 0.005
    assert 0.05 - sampling < rate < 0.05 + sampling + excess


def test_ignoring_correlation_raises_false_alarms() -> None:
    p = [paired_test(d, method="iid").p_value for d in ar1(0.5, 200, 400, 4)]
    assert np.mean(np.array(p) < 0.05) > 0.15


def test_notes_say_what_limits_trust() -> None:
    rng = np.random.default_rng(5)
    assert paired_test(rng.standard_normal(30)).notes == ()
    assert paired_test(rng.standard_normal(29)).notes == ("few starts",)
    gap = rng.standard_normal(40)
    gap[7] = np.nan
    got = paired_test(gap)
    assert got.notes == ("irregular spacing",)
    assert got.n == 39
    assert paired_test(np.zeros(5)).p_value == 1
    assert "constant difference" in paired_test(np.full(5, 0.1)).notes


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("length", [2, 3, 5, 30])
def test_differences_that_do_not_vary_say_no_more_than_their_signs(method: Method, length: int) -> None:
    got = paired_test(np.full(length, -0.1), method=method)
    assert got.p_value == stats.binomtest(0, length).pvalue == 0.5 ** (length - 1)
    assert got.stderr == 0
    assert "constant difference" in got.notes


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_the_bootstrap_finds_nothing_in_a_handful_of_starts(length: int) -> None:
    # All resamples of values of one sign have that sign.
    got = stationary_bootstrap(1 + 0.1 * np.arange(length), seed=1, resamples=500)
    assert got.low > 0
    assert got.p_value == 0.5 ** (length - 1) > 0.05


@pytest.mark.parametrize("method", get_args(Method))
def test_short_and_extreme_series_have_finite_results_or_say_so(method: Method) -> None:
    rng = np.random.default_rng(30)
    cases = [
        *(rng.standard_normal(n) for n in (2, 3, 4, 5, 8, 9, 12)),
        np.arange(40.0),  # a trend: no mean to speak of
        np.cumsum(rng.standard_normal(60)),
        np.tile([1.0, -1.0], 15),
        np.r_[np.zeros(39), 1.0],
        np.r_[1.0, np.zeros(39)],
        1e8 + rng.standard_normal(50),
        1e-200 * rng.standard_normal(50),
        np.r_[rng.standard_normal(49), 1e9],
    ]
    for d in cases:
        got = paired_test(d, method=method)
        if np.isnan(got.stderr):
            assert "no estimate of the standard error" in got.notes
        else:
            assert got.stderr >= 0
            assert 0 <= got.p_value <= 1
            assert np.isfinite([got.inflation, got.df]).all()


def test_a_trend_is_far_from_independent_and_says_so() -> None:
    for method in ("geer", "ewc", "ewc_ar1"):
        got = paired_test(np.arange(60.0) - 20, method=method)  # type: ignore[arg-type]
        assert got.n_effective < 10
        assert "few effective starts" in got.notes


def test_differences_that_alternate_are_known_better_than_independent_ones() -> None:
    # For AR(1) with rho = -0.5 the standard error is sqrt(1 / 3) of the independent one.
    d = ar1(-0.5, 4000, 1, 31)[0]
    for method in ("geer", "ewc_ar1"):
        assert paired_test(d, method=method).inflation == pytest.approx(np.sqrt(1 / 3), rel=0.2)  # type: ignore[arg-type]


def test_too_little_data_and_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        paired_test([1.0, np.nan])
    with pytest.raises(ValueError, match="method must be one of"):
        paired_test([1.0, 2.0], method="hac")  # type: ignore[arg-type]
    for horizon in (0, 3):
        with pytest.raises(ValueError, match="horizon must lie between 1 and the number of pairs 3 less 1"):
            paired_test([1.0, 2.0, 4.0], method="hln", horizon=horizon)
    with pytest.raises(ValueError, match="correction must be one of"):
        adjusted([0.1], "bonferroni")  # type: ignore[arg-type]


def test_benjamini_hochberg_matches_scipy_and_skips_missing_tests() -> None:
    p = np.random.default_rng(6).random(50) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p), rtol=1e-13)
    holes = np.insert(p, [0, 20], np.nan).reshape(4, 13)
    got = benjamini_hochberg(holes)
    np.testing.assert_allclose(got[~np.isnan(holes)], stats.false_discovery_control(p), rtol=1e-13)
    assert np.isnan(got).sum() == 2


def test_benjamini_hochberg_controls_the_card_under_the_null() -> None:
    p = np.random.default_rng(7).random((1000, 60))
    any_hit = np.array([(benjamini_hochberg(row) < 0.05).any() for row in p]).mean()
    assert abs(any_hit - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_benjamini_yekutieli_matches_scipy_and_skips_missing_tests() -> None:
    p = np.random.default_rng(6).random(50) ** 3
    expected = stats.false_discovery_control(p, method="by")
    np.testing.assert_allclose(benjamini_yekutieli(p), expected, rtol=1e-13)
    np.testing.assert_allclose(benjamini_yekutieli([*p, np.nan])[:-1], expected, rtol=1e-13)


def test_holm_rejects_step_by_step() -> None:
    p = np.random.default_rng(8).random(40) ** 4
    got = holm(p)
    for alpha in (0.01, 0.05, 0.3, 0.9):
        rejected = np.zeros(40, bool)
        for step, k in enumerate(np.argsort(p)):
            if p[k] * (40 - step) >= alpha:
                break
            rejected[k] = True
        assert ((got < alpha) == rejected).all()
    assert (got >= p).all()
    assert holm([0.021, 0.02]).tolist() == [0.04, 0.04]
    assert np.isnan(holm([0.1, np.nan])[1])
    assert holm([0.1, np.nan])[0] == 0.1


def test_corrections_are_ordered_by_what_they_promise() -> None:
    p = np.random.default_rng(9).random(30) ** 2
    chain = [adjusted(p, c) for c in ("none", "benjamini-hochberg", "holm")]  # type: ignore[arg-type]
    assert all((a <= b).all() for a, b in pairwise(chain))
    assert adjusted([], "sidak").size == 0


def test_sidak_is_the_chance_of_any_hit_without_loss_of_digits() -> None:
    assert sidak([0.01, 1.0, np.nan]).tolist()[:2] == pytest.approx([1 - 0.99**2, 1.0])
    assert sidak([1e-20, 0.5])[0] == pytest.approx(2e-20, rel=1e-12)


def test_bootstrap_is_a_function_of_its_seed() -> None:
    d = ar1(0.5, 80, 1, 8)[0] + 0.2
    assert stationary_bootstrap(d, seed=1) == stationary_bootstrap(d, seed=1)
    assert stationary_bootstrap(d, seed=1) != stationary_bootstrap(d, seed=2)


def test_bootstrap_spread_tends_to_the_theory_of_correlated_means() -> None:
    # Politis and Romano (1994): the variance of the bootstrap mean is a weighted sum of circular covariances.
    d = ar1(0.6, 300, 1, 9)[0]
    block, n = 8.0, d.size
    anomaly = d - d.mean()
    circular = np.array([anomaly @ np.roll(anomaly, k) for k in range(n)]) / n
    k = np.arange(1, n)
    keep = (1 - 1 / block) ** k
    weights = (1 - k / n) * keep + k / n * (1 - 1 / block) ** (n - k)
    variance = (circular[0] + (weights * circular[1:]).sum()) / n
    got = stationary_bootstrap(d, seed=3, block=block, resamples=6000)
    half = stats.norm.ppf(0.975) * np.sqrt(variance)
    assert (got.high - got.low) / 2 == pytest.approx(half, rel=0.05)


def test_block_length_grows_with_correlation() -> None:
    lengths = [np.mean([automatic_block_length(d) for d in ar1(rho, 400, 20, 10)]) for rho in (0.0, 0.5, 0.8)]
    assert lengths[0] < 4 < lengths[1] < lengths[2] < 60
    assert automatic_block_length(np.ones(20)) == 1


def test_bootstrap_refuses_gaps() -> None:
    with pytest.raises(ValueError, match="finite"):
        stationary_bootstrap([1.0, np.nan, 2.0], seed=0)
    with pytest.raises(ValueError, match="block must be at least 1"):
        stationary_bootstrap([1.0, 2.0], seed=0, block=0.5)
    for settings in ({"resamples": 0}, {"level": 1.0}):
        with pytest.raises(ValueError, match="must"):
            stationary_bootstrap([1.0, 2.0, 4.0], seed=0, **settings)  # type: ignore[arg-type]


def test_resampled_values_are_those_of_the_resampled_starts() -> None:
    rng = np.random.default_rng(40)
    x, v, w = rng.random((30, 4)), rng.random((30, 4, 3)), rng.random((30, 4))

    def value(means):  # type: ignore[no-untyped-def]
        return np.sqrt(means["x"]) + means["v"].max(axis=-1)

    counts = bootstrap_counts(30, 50, 3.0, seed=2)
    index = bootstrap_index(30, 50, 3.0, np.random.default_rng(2))
    for weights in (None, {"x": w, "v": w}):
        got = resampled(value, {"x": x, "v": v}, counts, weights)
        u = np.ones_like(w) if weights is None else w
        for b in (0, 17, 49):
            t = index[b]
            mean_x = np.average(x[t], axis=0, weights=u[t])
            mean_v = np.average(v[t], axis=0, weights=np.repeat(u[t][..., None], 3, axis=-1))
            np.testing.assert_allclose(got[b], np.sqrt(mean_x) + mean_v.max(axis=-1), rtol=1e-13)
