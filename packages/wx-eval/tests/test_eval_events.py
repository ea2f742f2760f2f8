"""Events: counts against independent formulas, closed forms of the scores, thresholds, tests and files."""

import operator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from wx_eval import Chunk, Records, cell_weights, compare, evaluate, scores
from wx_eval import _score as scoring
from wx_eval._case import Case
from wx_eval._crps import HersbachTerm, TwCRPS
from wx_eval._curves import roc_curve, value_curve
from wx_eval._event_scores import AUC, COST_LOSS, REV, RPS, Brier, Categorical, EventFrequencies
from wx_eval._events import Contingency, EventOutcomes, EventSquareError, EventVariance
from wx_eval._grid import Grid
from wx_eval._metrics import Metric, linearised
from wx_eval._reliability import BrierTerm, RankUniformity

HOUR = np.timedelta64(1, "h")
LAT, LON = np.linspace(90, -90, 9), np.arange(0, 360, 30.0)
START = np.datetime64("2020-01-30T00", "s")
CHANNELS = ("t2m", "tp")
COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
LEAD = 24 * HOUR


def make_truth(inits: int = 8, seed: int = 0) -> xr.DataArray:
    """Values in steps of 1/2, so that members, truth and thresholds are often equal."""
    rng = np.random.default_rng(seed)
    values = np.round(2 * rng.standard_normal((inits, 2, LAT.size, LON.size))) / 2
    coords = {
        "time": START + LEAD * (1 + np.arange(inits)),
        "channel": list(CHANNELS),
        "latitude": LAT,
        "longitude": LON,
    }
    return xr.DataArray(values.astype(np.float32), coords, ("time", "channel", "latitude", "longitude"))


def make_forecast(truth: xr.DataArray, members: int = 5, seed: int = 1, noise: float = 1.0) -> list[Chunk]:
    """Half signal, half noise."""
    rng = np.random.default_rng(seed)
    chunks = []
    for time in truth["time"].values:
        state = np.nan_to_num(truth.sel(time=time).values)
        values = np.round(2 * (state / 2 + noise * rng.standard_normal((members, *state.shape)))) / 2
        chunks.append(
            Chunk(
                init_time=time - LEAD,
                lead_time=LEAD,
                channels=CHANNELS,
                values=values.astype(np.float32),
                latitude=LAT,
                longitude=LON,
            )
        )
    return chunks


def with_gaps(truth: xr.DataArray) -> xr.DataArray:
    rng = np.random.default_rng(7)
    return truth.where(rng.random(truth.shape) > 0.1)


class Quantiles:
    """A climatology whose fields name their time and place; undefined south of 45 S."""

    name = "made up"

    def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
        level = float(statistic.removeprefix("quantile(").removesuffix(")"))
        day = (valid_time - START) / (24 * HOUR)
        field = level + 0.1 * day + 0 * LAT[:, None] + LON / 360
        field[LAT < -45] = np.nan
        coords = {"channel": list(CHANNELS), "latitude": LAT, "longitude": LON}
        return xr.DataArray(np.stack([field, field + 0.5]), coords, ("channel", "latitude", "longitude"))


def case(values: np.ndarray, truth: np.ndarray) -> Case:
    """Of one channel and a few points."""
    points = truth.size
    return Case(
        values.reshape(len(values), 1, points),
        truth.reshape(1, points),
        channels=("x",),
        grid=Grid.from_points(np.zeros(points), np.arange(points)),
        points=slice(0, points),
        valid_time=START,
        reference=lambda _: np.zeros((1, points)),
    )


@pytest.mark.parametrize("event", COMPARE)
def test_brier_and_rps_match_their_formulas_with_ties_gaps_and_regions(event: str) -> None:
    truth = with_gaps(make_truth())
    chunks, levels, beyond = make_forecast(truth), (-0.5, 0.5, 1.0), COMPARE[event]
    metrics = [Brier(0.5, event, kind) for kind in ("fair", "biased")]
    metrics += [RPS(levels, event, kind) for kind in ("fair", "biased")]
    records = evaluate(chunks, truth, model="a", metrics=metrics, regions=["nh", "global"])
    weights = xr.DataArray(cell_weights(LAT), {"latitude": LAT}, ("latitude",))
    expected = {m.name: [] for m in metrics}
    for chunk in chunks:
        state = truth.sel(time=chunk.init_time + LEAD)
        x = xr.DataArray(chunk.values, dims=("member", *state.dims)).astype(np.float64)
        terms = {}
        for level in levels:
            p = beyond(x, level).mean("member")
            biased = (p - beyond(state, level)) ** 2
            terms[level] = {"biased": biased, "fair": biased - p * (1 - p) / 4}
        for metric in metrics:
            chosen = levels if isinstance(metric, RPS) else (0.5,)
            field = sum(terms[level][metric.kind] for level in chosen).where(state.notnull())
            field = field.where(field["latitude"] >= 20, drop=True)
            expected[metric.name].append(field.weighted(weights).mean(("latitude", "longitude")))
    got = scores(records).sel(model="a", region="nh", lead_time=LEAD, channel=list(CHANNELS))
    for name, series in expected.items():
        np.testing.assert_allclose(got[name], xr.concat(series, "init").mean("init"), rtol=1e-13)


def test_the_fair_brier_score_of_m_members_has_the_expectation_of_infinitely_many() -> None:
    p, members = 0.3, 4
    cases = np.array(list(product((0.0, 1.0), repeat=members))).T
    chance = np.prod(np.where(cases > 0.5, p, 1 - p), axis=0)
    for outcome in (0.0, 1.0):
        made = case(cases, np.full(cases.shape[1], outcome))
        biased, variance = (s(0.5).map(made)[0] for s in (EventSquareError, EventVariance))
        assert chance @ (biased - variance) == pytest.approx((p - outcome) ** 2, abs=1e-15)
        assert chance @ biased == pytest.approx((p - outcome) ** 2 + p * (1 - p) / members, abs=1e-15)


def frequencies(truth: xr.DataArray, chunks: list[Chunk], level: float) -> tuple[np.ndarray, ...]:
    """Members that forecast the event, whether it happened, and weight, of every scored point of t2m."""
    states = np.stack([truth.sel(time=c.init_time + LEAD).values[0] for c in chunks])
    counts = np.stack([(c.values[:, 0] > level).sum(0) for c in chunks])
    weight = np.broadcast_to(cell_weights(LAT)[:, None], states.shape).copy()
    keep = ~np.isnan(states)
    for day in range(len(chunks)):
        weight[day] /= weight[day][keep[day]].sum()
    return counts[keep], states[keep] > level, weight[keep]


def test_auc_is_the_chance_that_an_event_has_the_higher_probability() -> None:
    truth = with_gaps(make_truth())
    chunks = make_forecast(truth)
    records = evaluate(chunks, truth, model="a", metrics=[AUC(0.5)], regions=["global"])
    counts, event, weight = frequencies(truth, chunks, 0.5)
    yes, no = counts[event][:, None], counts[~event]
    both = weight[event][:, None] * weight[~event]
    expected = (both * ((yes > no) + 0.5 * (yes == no))).sum() / both.sum()
    got = scores(records)["auc(>0.5)"].sel(channel="t2m")
    assert got.item() == pytest.approx(expected, abs=1e-13)
    assert 0.6 < expected < 0.95


def test_the_curves_match_loops_over_users_and_decisions() -> None:
    truth = make_truth()
    chunks = make_forecast(truth)
    records = evaluate(chunks, truth, model="a", metrics=[EventFrequencies(0.5)], regions=["global"])
    counts, event, weight = frequencies(truth, chunks, 0.5)
    weight, rate = weight / weight.sum(), (weight * event).sum() / weight.sum()
    place = {"model": "a", "channel": "t2m", "region": "global", "lead_time": LEAD}
    roc, value = roc_curve(records, 0.5).sel(place), value_curve(records, 0.5).sel(place)
    thresholds = [-1.0, *((np.arange(5) + 0.5) / 5), 2.0]
    for j, threshold in enumerate(thresholds):
        act = counts / 5 > threshold
        assert roc["pod"][j].item() == pytest.approx((weight * act * event).sum() / rate, abs=1e-13)
        assert roc["pofd"][j].item() == pytest.approx((weight * act * ~event).sum() / (1 - rate), abs=1e-13)
        for c, ratio in enumerate(COST_LOSS):
            spent = (weight * np.where(act, ratio, event)).sum()
            climate, perfect = min(ratio, rate), ratio * rate
            expected = (climate - spent) / (climate - perfect)
            assert value["value"][c, j].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    np.testing.assert_array_equal(value["best"], value["value"].max("cutoff"))
    at = {d: REV(0.5, ">", COST_LOSS[30], d) for d in ("best", "cost_loss", 0.3)}
    got = scores(records, list(at.values())).sel(place)
    assert got[at["best"].name].item() == pytest.approx(value["best"][30].item(), abs=1e-14)
    for decision, cutoff in (("cost_loss", int(np.ceil(COST_LOSS[30] * 5))), (0.3, 2)):
        expected = value["value"][30, cutoff].item()
        assert got[at[decision].name].item() == pytest.approx(expected, abs=1e-14)


def test_value_of_a_perfect_and_of_a_useless_forecast() -> None:
    truth = make_truth()
    perfect = [
        Chunk(
            init_time=t - LEAD,
            lead_time=LEAD,
            channels=CHANNELS,
            values=truth.sel(time=t).values[None],
            latitude=LAT,
            longitude=LON,
        )
        for t in truth["time"].values
    ]
    event = EventFrequencies(1.0)
    records = evaluate(perfect, truth, model="a", metrics=[event, Brier(1.0, kind="biased")])
    np.testing.assert_allclose(value_curve(records, 1.0)["best"], 1, atol=1e-12)
    assert float(abs(scores(records, ["brier_biased(>1.0)"])["brier_biased(>1.0)"]).max()) == 0
    rng = np.random.default_rng(3)
    useless = make_forecast(truth.copy(data=rng.permuted(truth.values, axis=0) * 0), seed=5)
    records = evaluate(useless, truth, model="a", metrics=[event], regions=["global"])
    best = value_curve(records, 1.0)["best"]
    assert (best >= -1e-12).all()
    assert float(best.max()) < 0.15


def test_cutoffs_can_be_chosen_on_another_period() -> None:
    truth = make_truth(40)
    chunks = make_forecast(truth)
    early, late = (
        evaluate(part, truth, model="a", metrics=[EventFrequencies(0.5)])
        for part in (chunks[:20], chunks[20:])
    )
    honest = value_curve(late, 0.5, chosen_on=early)
    best = value_curve(early, 0.5)["value"].argmax("cutoff")
    np.testing.assert_array_equal(honest["best"], honest["value"].isel(cutoff=best))
    assert (honest["best"] <= value_curve(late, 0.5)["best"]).all()
    with pytest.raises(ValueError, match="chosen_on must have"):
        value_curve(late, 0.5, chosen_on=early.select(channel="tp"))


# Finley's tornado forecasts of 1884, as in every textbook.
FINLEY = np.array([28.0, 72.0, 23.0, 2680.0])


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("pod", 28 / 51),
        ("far", 72 / 100),
        ("pofd", 72 / 2752),
        ("csi", 28 / 123),
        ("frequency_bias", 100 / 51),
        ("ets", (28 - 100 * 51 / 2803) / (123 - 100 * 51 / 2803)),
        ("peirce", 28 / 51 - 72 / 2752),
        ("heidke", 0.355),
    ],
)
def test_scores_of_finleys_table(score: str, expected: float) -> None:
    metric = Categorical(0.5, score=score)
    value = metric.value({metric.statistics[0].id: FINLEY / FINLEY.sum()})
    digits = 5e-4 if score == "heidke" else 1e-14
    assert float(value) == pytest.approx(expected, abs=digits)


def test_sedi_of_chance_and_of_symmetric_forecasts() -> None:
    metric = Categorical(0.5, score="sedi")
    for hit, false, expected in ((0.3, 0.3, 0.0), (0.8, 0.2, np.log(0.25) / np.log(0.16))):
        table = np.array([0.1 * hit, 0.9 * false, 0.1 * (1 - hit), 0.9 * (1 - false)])
        value = float(metric.value({metric.statistics[0].id: table}))
        assert value == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("by", ["mean", 0.4])
def test_the_contingency_table_counts_every_scored_point(by: float | str) -> None:
    truth = with_gaps(make_truth())
    chunks = make_forecast(truth)
    metrics = [Categorical(0.5, ">=", score, by) for score in ("csi", "frequency_bias")]
    records = evaluate(chunks, truth, model="a", metrics=metrics, regions=["global"])
    table = np.zeros(4)
    for chunk in chunks:
        state, x = truth.sel(time=chunk.init_time + LEAD).values[0], chunk.values[:, 0].astype(np.float64)
        forecast = x.mean(0) >= 0.5 if by == "mean" else (x >= 0.5).sum(0) >= 2
        event, weight = state >= 0.5, cell_weights(LAT)[:, None] * ~np.isnan(state)
        masks = (forecast & event, forecast & ~event, ~forecast & event, ~forecast & ~event)
        table += [(weight * mask).sum() / weight.sum() for mask in masks]
    got = scores(records).sel(channel="t2m")
    assert got[metrics[0].name].item() == pytest.approx(table[0] / table[:3].sum(), abs=1e-13)
    assert got[metrics[1].name].item() == pytest.approx(table[:2].sum() / (table[0] + table[2]), abs=1e-13)


def test_a_threshold_of_climatology_is_taken_at_the_valid_time_and_masks_where_it_is_undefined() -> None:
    truth = make_truth()
    chunks, climatology = make_forecast(truth), Quantiles()
    metric = Brier("quantile(0.25)", kind="biased")
    records = evaluate(
        chunks, truth, model="a", metrics=[metric], climatology=climatology, regions=["global", "antarctic"]
    )
    expected = []
    weight = xr.DataArray(cell_weights(LAT), {"latitude": LAT}, ("latitude",))
    for chunk in chunks:
        valid = chunk.init_time + LEAD
        level = climatology.at("quantile(0.25)", valid).astype(np.float32)
        p = (xr.DataArray(chunk.values, dims=("member", *level.dims)) > level).mean("member")
        field = ((p - (truth.sel(time=valid) > level)) ** 2).where(level.notnull())
        expected.append(field.weighted(weight).mean(("latitude", "longitude")))
    got = scores(records)[metric.name].sel(model="a", lead_time=LEAD, channel=list(CHANNELS))
    np.testing.assert_allclose(got.sel(region="global"), xr.concat(expected, "t").mean("t"), rtol=1e-13)
    assert got.sel(region="antarctic").isnull().all()
    assert records.conventions.climatology == "made up"
    with pytest.raises(ValueError, match="give a climatology"):
        evaluate(chunks, truth, model="a", metrics=[metric])


def test_thresholds_by_channel_leave_the_other_channels_without_a_score() -> None:
    truth = make_truth()
    chunks = make_forecast(truth)
    several = Brier({"t2m": 0.5, "tp": 1.0})
    one, per_channel = Brier({"tp": 1.0}), RPS({"t2m": [0.0, 0.5], "tp": [0.5, 1.0]})
    plain = [Brier(0.5), Brier(1.0), RPS([0.0, 0.5]), RPS([0.5, 1.0])]
    records = evaluate(chunks, truth, model="a", metrics=[several, one, per_channel, *plain])
    got = scores(records)
    assert several.name == "brier_fair(>[t2m=0.5 tp=1.0])"
    for channel, level, pair in (("t2m", plain[0], plain[2]), ("tp", plain[1], plain[3])):
        cell = got.sel(channel=channel)
        np.testing.assert_array_equal(cell[several.name], cell[level.name])
        np.testing.assert_array_equal(cell[per_channel.name], cell[pair.name])
    assert got[one.name].sel(channel="t2m").isnull().all()
    np.testing.assert_array_equal(got[one.name].sel(channel="tp"), got[plain[1].name].sel(channel="tp"))


EVERY: list[Metric] = [
    Brier(0.5),
    Brier({"t2m": 0.5, "tp": 1.0}, "<", "biased"),
    RPS([-0.5, 0.5]),
    RPS({"t2m": [0.0, 0.5], "tp": [0.5, 1.0]}, kind="biased"),
    AUC(0.5),
    REV(0.5),
    REV(0.5, cost_loss=0.4, decision="cost_loss"),
    REV(0.5, cost_loss=0.4, decision=0.5),
    Categorical(0.5),
    Categorical(0.5, score="sedi", by=0.5),
    Categorical(0.5, score="frequency_bias"),
    BrierTerm(0.5),
    BrierTerm(0.5, term="resolution", bins=3),
    BrierTerm(0.5, term="miscalibration"),
    BrierTerm(0.5, term="discrimination"),
    RankUniformity(),
    RankUniformity("chi_square"),
]


@pytest.mark.parametrize("metric", EVERY, ids=lambda m: m.name)
def test_slopes_for_significance_are_those_of_finite_differences(metric: Metric) -> None:
    truth = make_truth(12)
    records = evaluate(make_forecast(truth), truth, model="a", metrics=[metric], regions=["global"])
    ids = [s.id for s in metric.statistics]
    rows = records.to_xarray(ids).sel(channel="t2m").squeeze()
    series = {name: rows[name].values for name in ids}
    value, line = linearised(metric, series)
    means = {name: s.mean(axis=0) for name, s in series.items()}
    assert value == float(metric.value(means))
    step = 1e-6
    for day in range(3):
        moved = [{n: means[n] + sign * step * (series[n][day] - means[n]) for n in ids} for sign in (-1, 1)]
        slope = (float(metric.value(moved[1])) - float(metric.value(moved[0]))) / (2 * step)
        assert line[day] - value == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_every_scalar_metric_is_tested_and_comes_back_from_a_file(tmp_path: Path) -> None:
    truth = make_truth(16)
    sharp, noisy = (
        evaluate(make_forecast(truth, noise=noise), truth, model=model, metrics=EVERY, regions=["global"])
        for model, noise in (("sharp", 0.5), ("noisy", 2.0))
    )
    sharp.to_parquet(tmp_path / "a.parquet")
    back = Records.from_parquet(tmp_path / "a.parquet")
    xr.testing.assert_identical(scores(back), scores(sharp))
    assert set(scores(back)) >= {m.name for m in EVERY}
    card = compare(back, noisy, [m.name for m in EVERY])
    cells = {(c.metric, c.channel): c for c in card.cells}
    assert len(cells) == 2 * len(EVERY)
    for metric in (Brier(0.5), AUC(0.5), REV(0.5), RPS([-0.5, 0.5])):
        assert cells[metric.name, "t2m"].difference < 0
        assert cells[metric.name, "t2m"].significant


def test_ensembles_of_different_size_are_told_apart() -> None:
    truth = make_truth(16)
    metrics = [AUC(0.5), REV(0.5), Brier(0.5), Brier(0.5, kind="biased"), BrierTerm(0.5, bins=4)]
    small, large = (
        evaluate(make_forecast(truth, members=m, seed=m), truth, model=f"m{m}", metrics=metrics)
        for m in (4, 7)
    )
    both = scores(small.merge(large))
    for alone in (scores(small), scores(large)):
        for metric in metrics:
            got = both[metric.name].sel(model=alone["model"])
            np.testing.assert_allclose(got, alone[metric.name], rtol=1e-14)
    assert compare(small, large, [AUC(0.5), REV(0.5)]).n_tests == 2 * len(small.channels) * len(small.regions)
    with pytest.raises(ValueError, match=r"brier_biased\(>0.5\) depends on the ensemble size"):
        compare(small, large, Brier(0.5, kind="biased"))
    later = make_forecast(truth, members=7, seed=7)[8:]
    both_sizes = [AUC(0.5), RankUniformity(), HersbachTerm()]
    mixed = evaluate(make_forecast(truth, members=4)[:8] + later, truth, model="a", metrics=both_sizes)
    for metric in both_sizes:
        with pytest.raises(ValueError, match="ensembles of different size cannot be averaged"):
            scores(mixed, [metric])
        with pytest.raises(ValueError, match="ensembles of different size cannot be averaged"):
            compare(mixed, mixed, metric)
    early = scores(mixed.select(init_time=mixed.init_times[:8]), both_sizes)
    assert early["members"].values.tolist() == [[[[4.0]] * len(mixed.regions)] * 2]


def test_bits_do_not_depend_on_how_many_rows_are_handled_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = with_gaps(make_truth())
    chunks = make_forecast(truth)
    settings = {"model": "a", "metrics": [*EVERY, Brier("quantile(0.25)")], "climatology": Quantiles()}
    whole = evaluate(chunks, truth, **settings)
    monkeypatch.setattr(scoring, "_GROUP_POINTS", 50)
    assert evaluate(chunks[::-1], truth, **settings).table.equals(whole.table)


def test_a_threshold_has_the_precision_of_the_data() -> None:
    value = np.full((1, 1), 0.1, np.float32)
    [table] = EventOutcomes(0.1, ">=").map(case(value, value[0]))
    assert table.toarray().tolist() == [[0, 0, 0, 1]]


@pytest.fixture(scope="module")
def real_members(climate_members: np.ndarray) -> np.ndarray:
    # 35 of the members lack the first time.
    return climate_members[:, 1:]


def test_fair_scores_of_real_exchangeable_members_are_their_variances(real_members: np.ndarray) -> None:
    """With every member as truth in turn, fair Brier is k (M - k) / (M (M - 1)), fair twCRPS half of Gini."""
    members, times = real_members.shape
    level = float(np.quantile(real_members, 0.9))
    metrics = [Brier(level), TwCRPS(level)]
    totals = dict.fromkeys((m.name for m in metrics), 0.0)
    for k in range(members):
        made = case(np.delete(real_members, k, axis=0), real_members[k])
        for metric in metrics:
            means = {s.id: s.map(made).mean() for s in metric.statistics}  # type: ignore[union-attr]
            totals[metric.name] += float(metric.value(means)) / members
    count = (real_members > np.float32(level)).sum(0)
    variance = (count * (members - count)).mean() / (members * (members - 1))
    assert totals[metrics[0].name] == pytest.approx(variance, rel=1e-12)
    x = np.sort(np.maximum(real_members, np.float32(level)).astype(np.float64), axis=0)
    gini = float((2 * np.arange(1, members + 1) - members - 1) @ x.sum(axis=1)) / times
    assert totals[metrics[1].name] == pytest.approx(gini / (members * (members - 1)), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Brier(np.nan), "threshold must be a finite number"),
        (lambda: Brier({"t2m": "warm"}), "threshold must be a finite number"),
        (lambda: Brier(0.5, "="), "event must be one of"),
        (lambda: Brier(0.5, kind="debiased"), "kind must be one of"),
        (lambda: RPS([1.0, 0.5]), "thresholds must be one or more that increase"),
        (lambda: RPS({"t2m": [1.0], "tp": [0.5, 1.0]}), "same number of thresholds"),
        (lambda: REV(0.5, cost_loss=1.0), "cost_loss must lie between"),
        (lambda: REV(0.5, decision="never"), "decision must be"),
        (lambda: Categorical(0.5, by="median"), "by must be"),
        (lambda: Categorical(0.5, score="tss"), "score must be one of"),
    ],
)
def test_bad_settings_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("truth", [0.0, 3.0])
@pytest.mark.parametrize("decision", ["best", "cost_loss", 0.5])
def test_an_event_that_never_or_always_happens_has_no_value(truth: float, decision: float | str) -> None:
    still = make_truth()
    chunks = make_forecast(still)
    still[:] = truth
    metric = REV(2.0, cost_loss=0.2, decision=decision)
    records = evaluate(chunks, still, model="a", metrics=[metric], regions=["global", "nh", "tropics"])
    assert np.isnan(scores(records)[metric.name]).all()
    curve = value_curve(records, 2.0, cost_loss=(0.1, 0.7))
    assert np.isnan(curve["value"]).all()
    assert np.isnan(curve["best"]).all()


@pytest.mark.parametrize("kinds", [("f4", "f8"), ("f8", "f4"), ("f2", "f4"), ("f4", ">f4")])
def test_forecast_and_truth_of_different_precision_meet_a_threshold_alike(kinds: tuple[str, str]) -> None:
    values, truth = np.full((3, 1, 4), 0.1).astype(kinds[0]), np.full((1, 4), 0.1).astype(kinds[1])
    for event, happens in ((">", 0), (">=", 1), ("<", 0), ("<=", 1)):
        made = case(values, truth)
        outcome = EventOutcomes(0.1, event).map(made)[0].toarray()[0]
        assert outcome.argmax() == (7 if happens else 0)
        table = Contingency(0.1, event).map(case(values[:1], truth))[0].toarray()[0]
        assert table.argmax() == (0 if happens else 3)
