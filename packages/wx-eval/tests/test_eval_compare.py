"""Scores of a period and paired comparisons, from records made by hand."""

import numpy as np
import pyarrow as pa
import pytest

from wx_eval import Records, compare, paired_test, scores
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
    for method in ("iid", "geer", "ewc"):
        assert row[f"p_{method}"] == pytest.approx(paired_test(a - b, method=method).p_value)
    assert row["p_value"] == row["p_ewc"] == pytest.approx(row["p_adjusted"])
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
    assert np.isnan(got.cells[1].p_adjusted)


def test_comparisons_without_meaning_are_refused() -> None:
    cell = {("z500", "nh", 1): {"crps_fair": series(1)}}
    a, b = make("a", cell), make("b", cell)
    with pytest.raises(ValueError, match="biased CRPS depends on the ensemble size"):
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
        compare(a, b, correction="holm")  # type: ignore[arg-type]


def test_a_model_is_chosen_by_name() -> None:
    cell = {("z500", "nh", 1): {"crps_fair": series(1)}}
    both = make("a", cell).merge(make("b", cell))
    got = compare(both, both, model_a="b", model_b="a")
    assert (got.model_a, got.model_b) == ("b", "a")
