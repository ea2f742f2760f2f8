"""The null test: two draws of one system differ as often as announced, and real differences are found."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from wx_eval import PRESETS, RMSE, Records, Report, compare
from wx_eval._compare import compare_models
from wx_eval._inference import Method, mean_tests
from wx_eval._intervals import score_intervals
from wx_eval._records import SCHEMA, Conventions

DAY = np.timedelta64(1, "D")


def ar1(rho: float, length: int, series: int, seed: int) -> np.ndarray:
    """Stationary AR(1) with variance 1, shape (length, series)."""
    rng = np.random.default_rng(seed)
    x = np.empty((length, series))
    x[0] = rng.standard_normal(series)
    for t in range(1, length):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * rng.standard_normal(series)
    return x


def records(models: dict[str, np.ndarray], statistic: str = "crps_fair") -> Records:
    """One row per model, channel and start from series (T, channels)."""
    tables = []
    for model, x in models.items():
        starts, channels = x.shape
        columns = {
            "model": np.full(x.size, model),
            "channel": np.repeat([f"c{k:03}" for k in range(channels)], starts),
            "region": np.full(x.size, "nh"),
            "lead_time": np.full(x.size, DAY).astype("timedelta64[s]"),
            "init_time": np.tile(np.datetime64("2020-01-01", "s") + DAY * np.arange(starts), channels),
            "members": np.full(x.size, 8, np.int32),
            "n": np.full(x.size, 10),
            "n_missing": np.zeros(x.size, np.int64),
            "sum_w": np.full(x.size, 10.0),
        }
        arrays = {f.name: pa.array(columns[f.name], f.type) for f in SCHEMA}
        tables.append(pa.table({**arrays, statistic: x.T.ravel()}))
    return Records(pa.concat_tables(tables), Conventions(truth="t", weights="cell", grid="g"))


def draws(rho: float, starts: int, cells: int, seed: int, models: str = "ab") -> dict[str, np.ndarray]:
    """Scores of models that share the weather and differ by noise as correlated as it is."""
    weather = ar1(rho, starts, cells, seed)
    return {m: 8 + weather + 0.5 * ar1(rho, starts, cells, 100 * seed + k + 1) for k, m in enumerate(models)}


def rates(rho: float, length: int, method: Method, series: int = 20000, seed: int = 5) -> float:
    """Share of series of mean zero that are found different from zero at the 5 % level."""
    return float((mean_tests(ar1(rho, length, series, seed), method).p_value < 0.05).mean())


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("starts", [50, 200])
def test_two_draws_of_one_system_light_alpha_of_the_cells(rho: float, starts: int) -> None:
    cells = 400
    both = records(draws(rho, starts, cells, seed=1))
    card = compare(both, both, model_a="a", model_b="b", correction="none")
    assert card.expected_false_positives == 20
    # One draw decides, so the limits are those of three standard deviations of a binomial.
    assert abs(sum(cell.significant for cell in card.cells) - 20) < 3 * np.sqrt(cells * 0.05 * 0.95)
    plain = sum(cell.p_iid < 0.05 for cell in card.cells)
    assert plain < 34 if rho == 0 else plain > 80


@pytest.mark.parametrize(
    ("rho", "length", "level"),
    [
        (-0.3, 50, 0.050),
        (0.0, 20, 0.052),
        (0.0, 50, 0.050),
        (0.0, 200, 0.049),
        (0.5, 50, 0.055),
        (0.5, 200, 0.050),
        (0.6, 50, 0.056),
        (0.8, 50, 0.071),
        (0.9, 50, 0.099),
        (0.8, 200, 0.054),
        (0.9, 200, 0.064),
    ],
)
def test_the_default_test_has_the_level_that_its_docstring_states(
    rho: float, length: int, level: float
) -> None:
    assert abs(rates(rho, length, "ewc_ar1") - level) < 3 * np.sqrt(level * (1 - level) / 20000) + 0.002


def test_levels_of_the_other_tests_are_as_documented() -> None:
    # Geer's test is optimistic at few starts, the plain cosine estimator where correlation is strong.
    assert 0.11 < rates(0.6, 50, "geer") < 0.125
    assert 0.06 < rates(0.6, 200, "geer") < 0.072
    assert 0.10 < rates(0.8, 50, "ewc") < 0.12
    assert 0.045 < rates(0.0, 200, "iid") < 0.055
    assert rates(0.8, 200, "iid") > 0.5
    # At few starts its tails are too long even without correlation, which a whole card feels.
    assert 0.08 < rates(0.0, 30, "geer") < 0.10
    for method, low, high in (("geer", 0.33, 0.41), ("ewc_ar1", 0.03, 0.065)):
        p = mean_tests(ar1(0.0, 30, 60 * 1000, 21), method).p_value.reshape(1000, 60)  # type: ignore[arg-type]
        smallest = (np.sort(p, axis=1) * 60 / np.arange(1, 61)).min(axis=1)
        assert low < (smallest < 0.05).mean() < high
    for rho in (0.5, 0.8):
        assert rates(rho, 100, "ewc_ar1") < rates(rho, 100, "ewc") < rates(rho, 100, "geer")


def test_the_default_keeps_its_level_in_a_process_that_is_not_first_order() -> None:
    # AR(2) with a cycle, and the MA(3) of overlapping forecasts.
    rng = np.random.default_rng(11)
    noise = rng.standard_normal((400, 10000))
    cycle = np.zeros_like(noise)
    for t in range(2, 400):
        cycle[t] = 0.6 * cycle[t - 1] - 0.4 * cycle[t - 2] + noise[t]
    overlap = noise[3:] + noise[2:-1] + noise[1:-2] + noise[:-3]
    for process in (cycle[200:], overlap[:200]):
        rate = float((mean_tests(process, "ewc_ar1").p_value < 0.05).mean())
        assert 0.03 < rate < 0.07


@pytest.mark.parametrize("method", ["ewc", "ewc_ar1"])
def test_intervals_of_differences_cover_the_truth(method: Method) -> None:
    """The target: 93 to 97 % at T = 200 and correlation 0.6."""
    tests = mean_tests(ar1(0.6, 200, 20000, 7), method)
    assert 0.93 < float((np.abs(tests.mean) < tests.half_width(0.95)).mean()) < 0.97


@pytest.mark.parametrize(
    ("method", "rho", "lowest"), [("ewc_ar1", 0.0, 0.93), ("ewc_ar1", 0.5, 0.93), ("bootstrap", 0.0, 0.92)]
)
def test_intervals_of_scores_cover_the_score_of_the_system(method: str, rho: float, lowest: float) -> None:
    # Mean squares of values of variance 1: the RMSE of the system is 1.
    both = records({"a": ar1(rho, 200, 500, 8) ** 2}, "mse_mean")
    seed = 3 if method == "bootstrap" else None
    got = score_intervals(both, [RMSE()], method=method, seed=seed, resamples=400)  # type: ignore[arg-type]
    low, value, high = (got[f"rmse{end}"].squeeze() for end in ("_low", "", "_high"))
    assert bool(((low < value) & (value < high)).all())
    assert lowest < float(((low < 1) & (high > 1)).mean()) < 0.97


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_power_follows_the_noncentral_t_distribution(rho: float) -> None:
    starts, cells = 200, 4000
    noise = ar1(rho, starts, cells, 9)
    stderr = np.sqrt((1 + rho) / (1 - rho) / starts)
    shifts = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    power = [float((mean_tests(noise + s * stderr, "ewc_ar1").p_value < 0.05).mean()) for s in shifts]
    df = int(0.4 * starts ** (2 / 3))
    critical = stats.t.ppf(0.975, df)
    theory = stats.nct.sf(critical, df, shifts[1:]) + stats.nct.cdf(-critical, df, shifts[1:])
    np.testing.assert_allclose(power[1:], theory, atol=0.03)
    assert np.all(np.diff(power) > 0)
    assert power[-1] > 0.99


def test_metrics_that_are_not_linear_keep_the_level() -> None:
    cells = 400
    system = {m: x**2 for m, x in draws(0.5, 150, cells, seed=4).items()}
    both = records(system, "mse_mean")
    card = compare(both, both, RMSE(), model_a="a", model_b="b", correction="none")
    assert abs(sum(cell.significant for cell in card.cells) - 20) < 3 * np.sqrt(cells * 0.05 * 0.95)


@pytest.mark.parametrize(("rho", "low", "high"), [(0.0, 0.03, 0.09), (0.5, 0.08, 0.15)])
def test_the_bootstrap_has_the_level_that_is_documented(rho: float, low: float, high: float) -> None:
    both = records(draws(rho, 200, 300, seed=6))
    card = compare(
        both, both, model_a="a", model_b="b", method="bootstrap", seed=1, resamples=500, correction="none"
    )
    found = np.array([cell.p_value for cell in card.cells])
    assert low < (found < 0.05).mean() < high
    assert np.corrcoef(found, [cell.p_geer for cell in card.cells])[0, 1] > 0.97


@pytest.mark.parametrize("correction", ["benjamini-hochberg", "benjamini-yekutieli", "holm", "sidak"])
def test_a_corrected_card_of_equals_is_dark_in_all_but_alpha_of_cases(correction: str) -> None:
    lit = 0
    cards = 100
    for seed in range(cards):
        both = records(draws(0.3, 100, 12, seed=1000 + seed))
        card = compare(both, both, model_a="a", model_b="b", correction=correction)  # type: ignore[arg-type]
        lit += any(cell.significant for cell in card.cells)
        if correction == "benjamini-hochberg":
            assert card.field_p_value == min(cell.p_adjusted for cell in card.cells)
    limit = 3 * np.sqrt(cards * 0.05 * 0.95)
    assert lit < cards * 0.05 + limit
    if correction != "benjamini-yekutieli":
        assert lit > 0


def test_cards_against_one_baseline_are_corrected_together() -> None:
    system = draws(0.3, 100, 20, seed=12, models="abcd")
    system["b"] = system["b"] - 0.4
    together = compare_models(records(system), "d")
    assert [card.model_a for card in together] == ["a", "b", "c"]
    assert {card.n_corrected for card in together} == {60}
    assert {card.n_tests for card in together} == {20}
    assert "over 60 tests" in together[0].settings()["correction"]
    each = [np.array([cell.p_value for cell in card.cells]) for card in together]
    joint = stats.false_discovery_control(np.concatenate(each))
    expected = np.maximum(joint, np.concatenate([stats.false_discovery_control(p) for p in each]))
    got = [cell.p_adjusted for card in together for cell in card.cells]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    alone = compare(records(system), records(system), model_a="a", model_b="d")
    assert alone.n_corrected == 20
    assert [c.p_value for c in alone.cells] == [c.p_value for c in together[0].cells]
    assert sum(cell.significant for cell in together[1].cells) > 15


def test_a_page_of_equal_models_finds_a_difference_no_more_often_than_one_card() -> None:
    pages, level = 40, 0.05
    joint = alone = 0
    for seed in range(pages):
        cards = compare_models(records(draws(0.3, 60, 8, seed=3000 + seed, models="abcde")), "e")
        joint += any(cell.significant for card in cards for cell in card.cells)
        each = [stats.false_discovery_control([cell.p_value for cell in card.cells]) for card in cards]
        alone += bool((np.array(each) < level).any())
    assert joint < pages * level + 3 * np.sqrt(pages * level * (1 - level))
    # Four cards that are each corrected by themselves are four chances, though they share a baseline.
    assert alone > 2 * joint
    assert alone > pages * 0.1


def test_a_good_model_does_not_pay_for_finds_on_the_card_of_another() -> None:
    pages, level = 60, 0.05
    found = shared = 0
    for seed in range(pages):
        system = draws(0.0, 60, 10, seed=7000 + seed, models="abz")
        system["a"] = system["a"] - 2
        cards = compare_models(records(system), "z")
        assert all(cell.significant for cell in cards[0].cells)
        found += any(cell.significant for cell in cards[1].cells)
        p = np.array([cell.p_value for card in cards for cell in card.cells])
        shared += bool((stats.false_discovery_control(p)[10:] < level).any())
    assert found < pages * level + 3 * np.sqrt(pages * level * (1 - level))
    assert shared > 2 * found


def test_a_preset_with_a_plain_test_says_what_a_sound_one_finds() -> None:
    # Equal models whose differences are correlated from start to start.
    atlas = PRESETS["atlas"]
    both = records(draws(0.8, 120, 60, seed=5))
    both = replace(both, conventions=replace(both.conventions, preset=atlas.label))
    [card] = atlas.cards(both.select(model="a"), both.select(model="b"), metrics=["crps_fair"])
    count, (better, worse) = card.count(), card.count_robust()
    assert count["better_significant"] + count["worse_significant"] > 20
    assert better + worse <= 1
    page = Report("t").scorecard("c", card).html()
    assert f"{better} are significantly better and {worse} worse." in page
    assert f"significantly better in {better} and worse in {worse} cells (ewc_ar1" in page
    sound = stats.false_discovery_control([cell.p_ewc_ar1 for cell in card.cells])
    np.testing.assert_allclose([cell.p_robust for cell in card.cells], sound, rtol=1e-12)


def test_every_method_has_a_level_below_that_of_independent_starts() -> None:
    x = ar1(0.6, 100, 3000, 13)
    rate = {m: float((mean_tests(x, m, 4).p_value < 0.05).mean()) for m in get_args(Method)}
    assert max(rate, key=lambda m: rate[m]) == "iid"
    assert all(r < 0.2 for m, r in rate.items() if m != "iid")
