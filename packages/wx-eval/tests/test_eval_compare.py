"""Scores of a period and paired comparisons, from records made by hand."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from wx_eval import Records, SpreadSkill, compare, paired_test, scores
from wx_eval._bootstrap import bootstrap_index
from wx_eval._compare import compare_models
from wx_eval._intervals import score_intervals
from wx_eval._records import SCHEMA, Conventions

START = np.datetime64("2021-01-01T00", "s")
DAY = np.timedelta64(1, "D")
COLUMNS = ("crps_fair", "crps_biased", "mae_mean", "mse_mean", "error_mean", "variance")


def make(
    model: str, cells: dict[tuple[str, str, int], dict[str, np.ndarray]], *, members: int = 8, step: int = 1
) -> Records:
    """Records with the given series over starts; scores that are not given are 1."""
    parts = []
    for (channel, region, lead), series in cells.items():
        length = len(next(iter(series.values())))
        data = {
            "model": [model] * length,
            "channel": [channel] * length,
            "region": [region] * length,
            "lead_time": np.full(length, lead * DAY).astype("timedelta64[s]"),
            "init_time": START + step * DAY * np.arange(length),
            "members": np.full(length, members, np.int32),
            "n": np.full(length, 10),
            "n_missing": np.zeros(length, np.int64),
            "sum_w": np.full(length, 10.0),
            **{name: np.asarray(series.get(name, np.ones(length)), float) for name in COLUMNS},
        }
        data["variance_of_mean"] = data["variance"] / members
        kinds = {f.name: f.type for f in SCHEMA}
        arrays = {n: pa.array(v, kinds.get(n, pa.float64()), from_pandas=True) for n, v in data.items()}
        parts.append(pa.table(arrays))
    conventions = Conventions(truth="t", weights="cell", grid="g", units={"z500": "m2 s-2"})
    return Records(pa.concat_tables(parts), conventions)


def series(seed: int, length: int = 60, low: float = 0.5) -> np.ndarray:
    return low + np.random.default_rng(seed).random(length)


def test_roots_follow_the_mean_and_the_three_ratios_have_their_names() -> None:
    mse, variance = np.array([1.0, 9.0]), np.array([2.0, 4.0])
    cell = {"mse_mean": mse, "variance": variance, "error_mean": np.array([1.0, -3.0])}
    got = scores(make("a", {("z500", "nh", 1): cell}, members=4)).isel(
        model=0, channel=0, region=0, lead_time=0
    )
    assert float(got["rmse"]) == pytest.approx(np.sqrt(5))
    assert float(got["spread"]) == pytest.approx(np.sqrt(3))
    assert float(got["bias"]) == -1
    assert float(got["spread_skill_raw"]) == pytest.approx(np.sqrt(3 / 5))
    assert float(got["spread_skill_fortin"]) == pytest.approx(np.sqrt(3 / 5 * 5 / 4))
    assert float(got["spread_skill_debiased"]) == pytest.approx(np.sqrt(3 / (5 - 3 / 4)))
    assert got["units"].item() == "m2 s-2"
    assert int(got["n_starts"]) == 2


@pytest.mark.parametrize("members", [3, 8, 40])
def test_a_perfect_ensemble_has_ratio_one_whatever_its_size(members: int) -> None:
    # Members and truth from one distribution: E mse = (1 + 1/M) s^2 and E variance = s^2.
    rng = np.random.default_rng(members)
    starts, points = 400, 200
    x, y = rng.standard_normal((members, starts, points)), rng.standard_normal((starts, points))
    cell = {
        "mse_mean": ((x.mean(axis=0) - y) ** 2).mean(axis=-1),
        "variance": x.var(axis=0, ddof=1).mean(axis=-1),
    }
    got = scores(make("a", {("z500", "nh", 1): cell}, members=members)).squeeze()
    assert float(got["spread_skill_fortin"]) == pytest.approx(1, abs=0.01)
    assert float(got["spread_skill_debiased"]) == pytest.approx(1, abs=0.015)
    assert float(got["spread_skill_raw"]) == pytest.approx(np.sqrt(members / (members + 1)), abs=0.01)


def test_a_negative_debiased_error_has_no_ratio() -> None:
    cell = {"mse_mean": np.full(2, 0.1), "variance": np.full(2, 1.0)}
    got = scores(make("a", {("z500", "nh", 1): cell}, members=2))
    assert np.isnan(got["spread_skill_debiased"].values).all()


def test_difference_skill_and_p_values_are_those_of_the_paired_series() -> None:
    a, b = series(1), series(2, low=0.7)
    got = compare(
        make("a", {("z500", "nh", 3): {"crps_fair": a}}), make("b", {("z500", "nh", 3): {"crps_fair": b}})
    )
    row = got.table().to_pylist()[0]
    assert row["difference"] == pytest.approx((a - b).mean())
    assert row["skill"] == pytest.approx(1 - a.mean() / b.mean())
    for method in ("iid", "geer", "ewc", "ewc_ar1"):
        assert row[f"p_{method}"] == pytest.approx(paired_test(a - b, method=method).p_value)  # type: ignore[arg-type]
    assert row["p_value"] == row["p_ewc_ar1"] == pytest.approx(row["p_adjusted"])
    assert row["low"] < row["difference"] < row["high"]
    assert got.spacing == DAY
    assert row["n"] == 60


def test_rmse_is_linearised_around_itself() -> None:
    a, b = series(1), series(2, low=0.7)
    got = compare(
        make("a", {("z500", "nh", 3): {"mse_mean": a}}),
        make("b", {("z500", "nh", 3): {"mse_mean": b}}),
        "rmse",
        method="iid",
    ).cells[0]
    assert got.score_a == pytest.approx(np.sqrt(a.mean()))
    assert got.difference == pytest.approx(np.sqrt(a.mean()) - np.sqrt(b.mean()), rel=1e-12)
    # Leaving one start out at a time gives the standard error of any smooth function of means.
    left_out = [np.sqrt(np.delete(a, t).mean()) - np.sqrt(np.delete(b, t).mean()) for t in range(60)]
    assert got.stderr == pytest.approx(np.std(left_out) * np.sqrt(59), rel=0.01)


def test_only_starts_of_both_are_paired_and_the_rest_is_counted() -> None:
    a, b = series(1, 50), series(2, 60)
    a[7] = np.nan
    got = compare(
        make("a", {("z500", "nh", 3): {"crps_fair": a}}), make("b", {("z500", "nh", 3): {"crps_fair": b}})
    ).cells[0]
    assert (got.n, got.n_dropped) == (49, 11)
    assert got.score_b == pytest.approx(np.delete(b[:50], 7).mean())
    assert got.notes == ("irregular spacing",)


def test_a_model_against_itself_has_no_difference_and_no_star() -> None:
    a = make("a", {(f"c{k}", "nh", 1): {"crps_fair": series(k)} for k in range(5)})
    got = compare(a, a)
    assert got.count()["better"] == got.count()["worse"] == 0
    assert not any(cell.significant for cell in got.cells)


def test_the_card_keeps_its_level_under_the_null() -> None:
    """Two models that differ by noise alone light up about as often as announced."""
    cells = 200
    one = make("a", {(f"c{k:03}", "nh", 1): {"crps_fair": series(k)} for k in range(cells)})
    two = make("b", {(f"c{k:03}", "nh", 1): {"crps_fair": series(k + 9000)} for k in range(cells)})
    raw = compare(one, two, correction="none")
    hits = sum(cell.significant for cell in raw.cells)
    assert raw.expected_false_positives == 10
    assert abs(hits - 10) < 3 * np.sqrt(cells * 0.05 * 0.95)
    for correction in ("benjamini-hochberg", "sidak"):
        assert sum(cell.significant for cell in compare(one, two, correction=correction).cells) <= 1


def test_the_card_is_what_was_chosen_before() -> None:
    a = make(
        "a", {(c, r, lead): {"crps_fair": series(lead)} for c in "xy" for r in "pq" for lead in (1, 2, 3)}
    )
    b = make("b", {(c, r, lead): {"crps_fair": series(9)} for c in "xy" for r in "pq" for lead in (1, 2)})
    assert compare(a, b).n_tests == 8
    assert compare(a, b, channels=["x"], regions=["p"], lead_times=[DAY]).n_tests == 1


def test_settings_state_what_a_reader_must_know() -> None:
    cell = {("z500", "nh", 1): {"crps_fair": series(1)}}
    got = compare(make("a", cell, members=8), make("b", cell, members=50))
    settings = got.settings()
    assert settings["members"] == "8 against 50"
    assert settings["starts paired"] == "60 per cell, at most 0 dropped"
    assert settings["period of starts"] == "2021-01-01T00 to 2021-03-01T00, spacing 24 h"
    assert "over 1 tests at level 0.05" in settings["correction"]
    assert got.table().schema.metadata[b"truth"] == b"t"


def test_a_cell_with_one_pair_is_reported_as_untested() -> None:
    a = {("x", "nh", 1): {"crps_fair": series(1)}, ("y", "nh", 1): {"crps_fair": series(1, 1)}}
    got = compare(make("a", a), make("b", a))
    assert got.n_tests == 1
    assert got.cells[1].notes == ("fewer than 2 pairs",)
    table = got.table()
    assert table["p_value"].null_count == 1
    assert table["bias_a"].type == table["p_value"].type == pa.float64()
    assert np.isnan(got.cells[1].p_adjusted)


def test_comparisons_without_meaning_are_refused() -> None:
    cell = {("z500", "nh", 1): {"crps_fair": series(1)}}
    a, b = make("a", cell), make("b", cell)
    with pytest.raises(ValueError, match="crps_biased depends on the ensemble size"):
        compare(a, make("b", cell, members=50), "crps_biased")
    with pytest.raises(ValueError, match=r"'d' has 1 member\(s\)"):
        compare(a, make("d", cell, members=1))
    with pytest.raises(ValueError, match="no metric 'acc'"):
        compare(a, b, "acc")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"hold the models \['a', 'b'\]: choose one by model_a"):
        compare(a.merge(b), b)
    late = Records(b.table.slice(0, 1), b.conventions)
    with pytest.raises(ValueError, match="share 1 scored starts"):
        compare(a, late)
    with pytest.raises(ValueError, match="correction must be"):
        compare(a, b, correction="bonferroni")  # type: ignore[arg-type]


def test_a_model_is_chosen_by_name() -> None:
    cell = {("z500", "nh", 1): {"crps_fair": series(1)}}
    both = make("a", cell).merge(make("b", cell))
    got = compare(both, both, model_a="b", model_b="a")
    assert (got.model_a, got.model_b) == ("b", "a")


def with_column(records: Records, name: str, values: np.ndarray) -> Records:
    """Records with another column, rows in key order."""
    table = records.table
    array = pa.array(values, table.schema.field(name).type if name in table.column_names else pa.float64())
    if name in table.column_names:
        return replace(records, table=table.set_column(table.column_names.index(name), name, array))
    return replace(records, table=table.append_column(name, array))


def test_forecasts_scored_at_different_points_are_refused() -> None:
    cell = {("z500", "nh", 1): {"crps_fair": series(1)}}
    a, b = make("a", cell), make("b", cell)
    count = np.full(60, 10)
    count[7] = 9
    with pytest.raises(
        ValueError, match=r"points is 10 and 9 for z500, nh, lead time 24 h, start 2021-01-08T00;"
    ):
        compare(a, with_column(b, "n", count))
    # One polar cell of a quarter degree grid has a share of 8e-10.
    weight = np.full(60, 10 * (1 - 8e-10))
    with pytest.raises(ValueError, match=r"weight of crps_fair is 10 and 9\.999999992"):
        compare(a, with_column(b, "sum_w", weight))
    compare(a, with_column(b, "sum_w", np.full(60, 10 * (1 + 1e-15))))
    # A statistic with a weight of its own on one side only.
    own = with_column(b, "mse_mean.w", np.full(60, 9.0))
    compare(a, own)
    with pytest.raises(ValueError, match="weight of mse_mean is 10 and 9"):
        compare(a, own, "rmse")
    # Without a weight of its own in a row, it is the one of all scored points.
    holes = np.where(np.arange(60) < 30, np.nan, 10.0)
    column = pa.array(holes, from_pandas=True)
    compare(a, replace(b, table=b.table.append_column("mse_mean.w", column)), "rmse")
    compare(a, with_column(b, "mse_mean.w", np.full(60, 10.0)), "rmse")


def test_cells_with_different_gaps_are_what_they_are_alone() -> None:
    rng = np.random.default_rng(3)
    cells = {(c, r, lead): series(k) for k, (c, r, lead) in enumerate(np.ndindex(3, 2, 3))}
    named = {(f"c{c}", f"r{r}", lead + 1): x.copy() for (c, r, lead), x in cells.items()}
    for k, x in enumerate(named.values()):
        if k % 3:
            x[rng.integers(60, size=k)] = np.nan
    # As many gaps as the cell before, at other starts.
    named["c0", "r1", 1][:] = series(50)
    named["c0", "r1", 1][[3, 30]] = np.nan
    named["c0", "r0", 1][:] = series(51)
    named["c0", "r0", 1][[4, 9]] = np.nan
    other = {key: x + 0.1 * rng.standard_normal(60) for key, x in named.items()}
    a, b = (make(m, {k: {"mse_mean": x} for k, x in d.items()}) for m, d in (("a", named), ("b", other)))
    card = compare(a, b, "rmse")
    assert [(c.channel, c.region, c.lead_time // DAY) for c in card.cells] == sorted(named)
    for cell in card.cells:
        alone = compare(
            a, b, "rmse", channels=[cell.channel], regions=[cell.region], lead_times=[cell.lead_time]
        ).cells[0]
        assert cell.n == alone.n == np.isfinite(named[cell.channel, cell.region, cell.lead_time // DAY]).sum()
        for name in ("score_a", "difference", "stderr", "p_geer", "p_value", "low"):
            assert getattr(cell, name) == pytest.approx(getattr(alone, name), rel=1e-11)
        assert cell.notes == alone.notes


def test_a_start_that_lacks_one_of_several_statistics_is_dropped_and_counted() -> None:
    mse, variance = series(1), series(2)
    holes = variance.copy()
    holes[:4] = np.nan
    a = make("a", {("z500", "nh", 1): {"mse_mean": mse, "variance": holes}})
    b = make("b", {("z500", "nh", 1): {"mse_mean": mse, "variance": variance}})
    [cell] = compare(a, b, SpreadSkill("raw")).cells
    assert (cell.n, cell.n_dropped) == (56, 4)
    assert cell.score_b == pytest.approx(np.sqrt(variance[4:].mean() / mse[4:].mean()))


def test_samples_can_be_the_same_at_all_lead_times() -> None:
    def holey(model: str, seed: int) -> Records:
        cells = {("z500", "nh", lead): {"crps_fair": series(seed + lead)} for lead in (1, 2, 4)}
        cells["z500", "nh", 2]["crps_fair"][10] = np.nan
        cells["z500", "nh", 4]["crps_fair"][50:] = np.nan
        return make(model, cells)

    a, b = holey("a", 1), holey("b", 5)
    assert [cell.n for cell in compare(a, b).cells] == [60, 59, 50]
    starts = compare(a, b, sample="starts")
    assert [cell.n for cell in starts.cells] == [49, 49, 49]
    keep = np.delete(np.arange(50), 10)
    assert starts.cells[0].score_a == pytest.approx(series(2)[keep].mean())
    # Valid days after the first start: 1..60, 2..61 without 12, 4..53; shared are 4..53 without 12.
    valid = compare(a, b, sample="valid")
    assert [cell.n for cell in valid.cells] == [49, 49, 49]
    days = np.delete(np.arange(4, 54), 8)
    for cell, lead in zip(valid.cells, (1, 2, 4), strict=True):
        assert cell.score_a == pytest.approx(series(1 + lead)[days - lead].mean())
    assert valid.settings()["sample"] == "the same valid times at all lead times"


def test_starts_can_be_restricted_to_months() -> None:
    a, b = series(1, 400), series(2, 400)
    cells = ({("z500", "nh", 1): {"crps_fair": x}} for x in (a, b))
    got = compare(*(make(m, c) for m, c in zip("ab", cells, strict=True)), months=(12, 1, 2))
    days = START.astype("datetime64[D]") + np.arange(400)
    winter = np.isin(days.astype("datetime64[M]").astype(int) % 12 + 1, (12, 1, 2))
    [cell] = got.cells
    assert cell.n == winter.sum() == 59 + 66
    assert cell.score_a == pytest.approx(a[winter].mean())
    assert cell.notes == ("irregular spacing",)
    assert got.settings()["months of starts"] == "1 2 12"


def test_an_older_baseline_is_compared_at_equal_valid_time() -> None:
    one = {("z500", "nh", lead): {"crps_fair": series(lead)} for lead in (1, 2)}
    two = {("z500", "nh", lead): {"crps_fair": series(10 + lead)} for lead in (1, 2, 3)}
    got = compare(make("a", one), make("b", two), lag=DAY)
    assert [cell.lead_time // DAY for cell in got.cells] == [1, 2]
    for cell, lead in zip(got.cells, (1, 2), strict=True):
        # b started on day t - 1 with a lead time one day longer.
        expected = series(lead)[1:] - series(10 + lead + 1)[:-1]
        assert cell.n == 59
        assert cell.difference == pytest.approx(expected.mean())
        assert cell.p_ewc == pytest.approx(paired_test(expected, method="ewc").p_value)
    assert got.settings()["pairing"] == "b started 24 h earlier, same valid time"


def test_the_bias_of_both_is_that_of_the_paired_starts() -> None:
    error = np.random.default_rng(4).standard_normal(60)
    score = series(1)
    score[:5] = np.nan
    a = make("a", {("z500", "nh", 1): {"crps_fair": score, "error_mean": error}})
    b = make("b", {("z500", "nh", 1): {"crps_fair": series(2), "error_mean": 2 * error}})
    [cell] = compare(a, b).cells
    assert cell.bias_a == pytest.approx(error[5:].mean())
    assert cell.bias_b == pytest.approx(2 * error[5:].mean())


def test_the_first_days_against_the_own_analysis_are_marked() -> None:
    cells = {("z500", "nh", lead): {"crps_fair": series(lead)} for lead in (1, 2, 3)}
    a, b, c = make("a", cells), make("b", cells), make("c", cells)
    a = replace(a, conventions=replace(a.conventions, truth_models=("a",)))
    got = compare(a, b)
    assert ["own analysis" in cell.notes for cell in got.cells] == [True, False, False]
    assert "that of a" in got.settings()["own analysis"]
    assert not any("own analysis" in cell.notes for cell in compare(b, c).cells)
    assert "own analysis" not in compare(b, c).settings()
    assert a.merge(b).conventions.truth_models == ("a",)
    assert a.conventions.digest == b.conventions.digest


def test_scores_near_their_target_say_that_their_loss_has_a_kink() -> None:
    noise = np.random.default_rng(5).standard_normal(60)
    near, far = ({("z500", "nh", 1): {"error_mean": noise + shift}} for shift in (0.0, 5.0))
    assert "near its target" in compare(make("a", near), make("b", far), "bias").cells[0].notes
    both = compare(make("a", far), make("b", {("z500", "nh", 1): {"error_mean": 7 + noise[::-1]}}), "bias")
    assert "near its target" not in both.cells[0].notes


def test_scores_averaged_by_weight_are_those_of_all_points() -> None:
    weight = np.r_[np.full(30, 10.0), np.full(30, 4.0)]
    a, b = (make(m, {("z500", "nh", 1): {"mse_mean": series(k)}}) for k, m in ((1, "a"), (2, "b")))
    a, b = with_column(a, "sum_w", weight), with_column(b, "sum_w", weight)
    [cell] = compare(a, b, "rmse", average="weights", method="iid").cells
    assert cell.score_a == pytest.approx(np.sqrt(np.average(series(1), weights=weight)))
    assert cell.score_a == pytest.approx(float(scores(a, ["rmse"], average="weights")["rmse"].item()))
    left_out = []
    for t in range(60):
        w, x, y = (np.delete(z, t) for z in (weight, series(1), series(2)))
        left_out.append(np.sqrt(np.average(x, weights=w)) - np.sqrt(np.average(y, weights=w)))
    assert cell.stderr == pytest.approx(np.std(left_out) * np.sqrt(59), rel=0.03)


def test_bootstrap_draws_the_same_starts_for_both_models() -> None:
    x, y = series(1), series(2)
    a, b = (make(m, {("z500", "nh", 1): {"mse_mean": z}}) for z, m in ((x, "a"), (y, "b")))
    [cell] = compare(a, b, "rmse", method="bootstrap", seed=7, resamples=300, block=4).cells
    index = bootstrap_index(60, 300, 4.0, np.random.default_rng(7))
    drawn = np.sqrt(x[index].mean(axis=1)) - np.sqrt(y[index].mean(axis=1))
    assert cell.stderr == pytest.approx(drawn.std(ddof=1))
    assert (cell.low, cell.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    away = np.abs(drawn - cell.difference) >= abs(cell.difference)
    assert cell.p_value == (1 + away.sum()) / 301
    assert cell.p_ewc == compare(a, b, "rmse", method="ewc").cells[0].p_value
    again = compare(a, b, "rmse", method="bootstrap", seed=7, resamples=300, block=4)
    assert replace(again.cells[0], df=0.0) == replace(cell, df=0.0)
    assert "300 resamples of blocks of 4 starts, seed 7" in again.settings()["resampling"]
    with pytest.raises(ValueError, match="needs a seed"):
        compare(a, b, method="bootstrap")
    with pytest.raises(ValueError, match="needs a seed, and no other"):
        compare(a, b, seed=3)


def test_diebold_mariano_reaches_as_far_as_the_lead_time() -> None:
    a, b = (make(m, {("z500", "nh", 3): {"crps_fair": series(k)}}) for k, m in ((1, "a"), (2, "b")))
    for method in ("hln", "hg"):
        [cell] = compare(a, b, method=method).cells  # type: ignore[arg-type]
        expected = paired_test(series(1) - series(2), method=method, horizon=3)  # type: ignore[arg-type]
        assert cell.p_value == pytest.approx(expected.p_value, rel=1e-10)
    slow = [make(m, {("z500", "nh", 3): {"crps_fair": series(k)}}, step=2) for k, m in ((1, "a"), (2, "b"))]
    expected = paired_test(series(1) - series(2), method="hln", horizon=2)
    assert compare(*slow, method="hln").cells[0].p_value == pytest.approx(expected.p_value, rel=1e-10)
    a, b = (make(m, {("z500", "nh", 9): {"crps_fair": series(k, 8)}}) for k, m in ((1, "a"), (2, "b")))
    [cell] = compare(a, b, method="hln").cells
    assert np.isnan(cell.p_value)
    assert cell.notes == ("lead time beyond the sample",)


def test_settings_out_of_range_are_refused() -> None:
    cell = {("z500", "nh", 1): {"crps_fair": series(1)}}
    a, b = make("a", cell), make("b", cell)
    for wrong, message in (
        ({"sample": "all"}, "sample must be one of"),
        ({"months": [13]}, "months must be numbers"),
        ({"months": []}, "months must be numbers"),
        ({"lag": -DAY}, "lag must be positive"),
        ({"average": "area"}, "average must be"),
        ({"method": "dm"}, "method must be one of"),
        ({"months": [7]}, r"no start of a lies in the months \[7\], they lie in"),
        ({"lead_times": [9 * DAY]}, "no lead time 777600 seconds in the records, which hold 1"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(a, b, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="need models other than the baseline 'a'"):
        compare_models(a, "a")


def test_intervals_of_scores_are_those_of_their_series() -> None:
    short = {("z500", "nh", 1): {"mse_mean": series(1), "crps_fair": series(3)}}
    short["z500", "nh", 2] = {"mse_mean": series(2, 1), "crps_fair": series(4, 1)}
    records = make("a", short)
    got = score_intervals(records, ["crps_fair", "rmse"], method="iid", level=0.9)
    xr_scores = scores(records, ["crps_fair", "rmse"])
    one = got.isel(lead_time=0).squeeze()
    expected = paired_test(series(3), method="iid")
    assert (float(one["crps_fair_low"]), float(one["crps_fair_high"])) == pytest.approx(
        expected.interval(0.9)
    )
    assert float(one["crps_fair_stderr"]) == pytest.approx(expected.stderr)
    np.testing.assert_allclose(got["rmse"].isel(lead_time=0), xr_scores["rmse"].isel(lead_time=0), rtol=1e-14)
    assert float(one["rmse_stderr"]) == pytest.approx(
        paired_test(series(1), method="iid").stderr / (2 * np.sqrt(series(1).mean()))
    )
    assert np.isnan(got["rmse_low"].isel(lead_time=1)).all()
    assert got["rmse"].attrs == {"goal": "low", "unit": "channel", "method": "iid", "level": 0.9}
    assert got["rmse"].dims == ("model", "channel", "region", "lead_time")


def test_scores_that_differ_by_rounding_alone_are_equal() -> None:
    # The members in another order, say: always a little lower, which a test of the bits would find.
    b = 5 + series(1)
    a, b = (make(m, {("z500", "nh", 1): {"crps_fair": x}}) for m, x in (("a", np.nextafter(b, 0)), ("b", b)))
    for choices in ({}, {"method": "bootstrap", "seed": 1, "resamples": 100}):
        got = compare(a, b, **choices)  # type: ignore[arg-type]
        [cell] = got.cells
        assert cell.score_a < cell.score_b
        assert (cell.difference, cell.skill, cell.p_value, cell.p_ewc_ar1) == (0, 0, 1, 1)
        assert "constant difference" in cell.notes
        assert got.count()["better"] == 0
    # A difference that does not vary but for rounding is one all the same.
    c = make("c", {("z500", "nh", 1): {"crps_fair": 5 + series(1) - 0.1}})
    [cell] = compare(c, b).cells
    assert cell.difference == pytest.approx(-0.1)
    assert (cell.p_value, cell.stderr) == (0.5**59, 0)


def test_a_perfect_baseline_is_infinitely_far_and_equals_are_not() -> None:
    keys = [("z500", "nh", 1), ("z500", "sh", 1)]
    nothing = np.zeros(60)
    a = make("a", {keys[0]: {"mse_mean": series(1)}, keys[1]: {"mse_mean": nothing}})
    b = make("b", {key: {"mse_mean": nothing} for key in keys})
    worse, same = compare(a, b, "rmse").cells
    assert worse.significant
    assert worse.skill == -np.inf
    assert (same.skill, same.p_value) == (0, 1)


@pytest.mark.parametrize("length", [3, 12, 60])
def test_the_bootstrap_says_what_limits_trust(length: int) -> None:
    step = np.where(np.arange(length) == length - 1, 5, 0) * DAY
    a, b = (make(m, {("z500", "nh", 1): {"crps_fair": series(k, length)}}) for k, m in enumerate("ab"))
    irregular = []
    for r in (a, b):
        k = r.table.column_names.index("init_time")
        times = pa.array(r.table["init_time"].to_numpy() + step, r.table.schema.field("init_time").type)
        irregular.append(replace(r, table=r.table.set_column(k, r.table.schema.field("init_time"), times)))
    few = ("few starts",) * (length < 30)
    for records, uneven in (((a, b), ()), (irregular, ("irregular spacing",))):
        [cell] = compare(*records, method="bootstrap", seed=2, resamples=100).cells
        assert set(cell.notes) - {"few effective starts"} == {*few, *uneven}
        assert cell.p_value >= 0.5 ** (length - 1)


def test_too_few_resamples_for_the_tests_are_told() -> None:
    cells = {(f"c{k:02}", "nh", 1): {"crps_fair": series(k)} for k in range(30)}
    a = make("a", cells)
    b = make("b", {key: {"crps_fair": x["crps_fair"] + 1 + 0.1 * series(99)} for key, x in cells.items()})
    for resamples, coarse in ((500, True), (598, True), (600, False)):
        card = compare(a, b, method="bootstrap", seed=1, resamples=resamples)
        assert card.coarse is coarse
        # A cell alone at the smallest p-value there is.
        assert (30 / (1 + resamples) >= 0.05) is coarse
    assert not compare(a, b).coarse
    assert not compare(a, b, method="bootstrap", seed=1, resamples=100, correction="none").coarse


def test_levels_are_in_the_order_of_their_numbers() -> None:
    names = ["z1000", "z50", "t2m", "z500", "10u", "q700", "t850"]
    a, b = (make(m, {(c, "nh", 1): {"crps_fair": series(k)} for c in names}) for k, m in enumerate("ab"))
    got = [cell.channel for cell in compare(a, b).cells]
    assert got == ["10u", "q700", "t2m", "t850", "z50", "z500", "z1000"]
