"""Tests of means of correlated series: closed forms, coverage and reproducibility."""

import numpy as np
import pytest
from scipy import stats

from wx_eval import benjamini_hochberg, paired_test, stationary_bootstrap
from wx_eval._inference import automatic_block_length, sidak


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


@pytest.mark.parametrize("rho", [0.3, 0.6])
def test_autoregressive_inflation_tends_to_the_theory(rho: float) -> None:
    # For AR(1) the variance of the mean is (1 + rho) / (1 - rho) times the independent one.
    d = ar1(rho, 40000, 1, 2)[0]
    expected = np.sqrt((1 + rho) / (1 - rho))
    assert paired_test(d, method="geer").inflation == pytest.approx(expected, rel=0.04)


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


def test_too_little_data_and_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        paired_test([1.0, np.nan])
    with pytest.raises(ValueError, match="method must be one of"):
        paired_test([1.0, 2.0], method="hac")  # type: ignore[arg-type]


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
