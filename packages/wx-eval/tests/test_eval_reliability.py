"""Decompositions of the Brier score and the reliability diagram: exact identities, closed forms, coverage."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr

from wx_eval import Chunk, Records, evaluate, scores
from wx_eval._curves import reliability_diagram
from wx_eval._event_scores import AUC, Brier, EventFrequencies
from wx_eval._events import EventOutcomes
from wx_eval._reliability import BrierTerm, RankUniformity, isotonic
from wx_eval._statistics import RankCounts

Array = npt.NDArray[np.float64]
TERMS = ("reliability", "resolution", "within")
EVENT = EventOutcomes(0.5)
START, LEAD = np.datetime64("2020-01-01T00", "s"), np.timedelta64(24, "h")


def frequencies(forecast: Array, observed: Array) -> Mapping[str, Array]:
    """Mean of `EventOutcomes`: share of each forecast, and how often the event followed."""
    table = np.stack([forecast * (1 - observed), forecast * observed], axis=-1)
    return {EVENT.id: table.reshape(*forecast.shape[:-1], -1)}


def random_frequencies(rows: int, members: int, seed: int) -> Mapping[str, Array]:
    rng = np.random.default_rng(seed)
    forecast = rng.dirichlet(np.ones(members + 1), rows) * (rng.random((rows, members + 1)) > 0.2)
    return frequencies(forecast / forecast.sum(-1, keepdims=True), rng.random((rows, members + 1)))


def brier(means: Mapping[str, Array]) -> Array:
    table = means[EVENT.id].reshape(*means[EVENT.id].shape[:-1], -1, 2)
    p = np.arange(table.shape[-2]) / (table.shape[-2] - 1)
    return (table[..., 0] * p**2 + table[..., 1] * (1 - p) ** 2).sum(-1)


@pytest.mark.parametrize("bins", [0, 1, 3, 10])
def test_the_binned_terms_add_up_exactly(bins: int) -> None:
    means = random_frequencies(20, 10, seed=bins)
    rel, res, within = (BrierTerm(0.5, term=t, bins=bins).value(means) for t in TERMS)
    unc = BrierTerm(0.5, term="uncertainty").value(means)
    np.testing.assert_allclose(rel - res + unc + within, brier(means), atol=1e-15)
    assert (rel >= 0).all()
    assert (res >= -1e-16).all()
    if not bins:
        np.testing.assert_allclose(within, 0, atol=1e-15)
    if bins == 1:
        np.testing.assert_allclose(res, 0, atol=1e-15)


def test_bins_are_closed_on_the_left_and_the_last_on_both_sides() -> None:
    means = random_frequencies(1, 10, seed=3)
    table = means[EVENT.id].reshape(-1, 2)
    expected = 0.0
    for chosen in (slice(0, 3), slice(3, 5), slice(5, 8), slice(8, 11)):
        weight, events = table[chosen].sum(), table[chosen, 1].sum()
        p = (table[chosen].sum(-1) * np.arange(11)[chosen] / 10).sum() / weight
        expected += weight * (p - events / weight) ** 2
    got = BrierTerm(0.5, bins=4).value(means)
    np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_terms_of_forecasts_that_are_known() -> None:
    p = np.arange(5) / 4
    share = np.array([[0.1, 0.2, 0.4, 0.2, 0.1]])
    reliable = frequencies(share, p[None])
    variance = (share * (p - 0.5) ** 2).sum()
    overconfident = frequencies(share, (p[None] + 0.5) / 2)
    for means, reliability, resolution in (
        (reliable, 0.0, variance),
        (overconfident, variance / 4, variance / 4),
    ):
        for term, value in (
            ("reliability", reliability),
            ("miscalibration", reliability),
            ("resolution", resolution),
            ("discrimination", resolution),
            ("uncertainty", 0.25),
        ):
            np.testing.assert_allclose(BrierTerm(0.5, term=term).value(means), value, atol=1e-15)


def test_corp_terms_add_up_and_ignore_the_labels_of_the_probabilities() -> None:
    means = random_frequencies(30, 8, seed=1)
    mcb, dsc, unc = (
        BrierTerm(0.5, term=t).value(means) for t in ("miscalibration", "discrimination", "uncertainty")
    )
    np.testing.assert_allclose(mcb - dsc + unc, brier(means), atol=1e-15)
    assert (mcb >= -1e-16).all()
    assert (dsc >= -1e-16).all()
    binned = BrierTerm(0.5).value(means)
    assert (mcb <= binned + 1e-15).all(), "no monotone recalibration gains more than the best one by bin"
    falling = frequencies(np.full((1, 5), 0.2), np.linspace(1, 0, 5)[None])
    np.testing.assert_allclose(BrierTerm(0.5, term="discrimination").value(falling), 0, atol=1e-15)


def test_isotonic_fit_is_the_best_monotone_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        weight, observed = rng.random(7), rng.random(7)
        fit = isotonic(weight, weight * observed)
        # Max-min formula of isotonic regression (Robertson, Wright and Dykstra 1988, theorem 1.4.4).
        mean = [
            [
                np.average(observed[i : j + 1], weights=weight[i : j + 1]) if j >= i else np.inf
                for j in range(7)
            ]
            for i in range(7)
        ]
        expected = [max(min(mean[i][k:]) for i in range(k + 1)) for k in range(7)]
        np.testing.assert_allclose(fit, expected, rtol=1e-13)
    np.testing.assert_array_equal(
        isotonic(np.array([0, 1, 0, 1.0]), np.array([0, 0.25, 0, 0.5])), [0.25, 0.25, 0.25, 0.5]
    )
    assert np.isnan(isotonic(np.zeros(3), np.zeros(3))).all()


def make_records(
    days: int, points: int, members: int, *, seed: int, rho: float = 0.0, channels: int = 1
) -> Records:
    """Reliable forecasts: where k of M members have the event, so has the truth with a chance of k / M.

    With a chance of rho all points of a day and channel share one random number.
    """
    rng = np.random.default_rng(seed)
    lat, lon = np.array([10.0, -10.0]), np.arange(points // 2) * 720 / points
    names, shape = tuple(f"c{i:02}" for i in range(channels)), (channels, 2, points // 2)
    states, chunks = [], []
    for day in range(days):
        k = rng.integers(0, members + 1, shape)
        shared = rng.random((channels, 1, 1)) < rho
        states.append(np.where(shared, rng.random((channels, 1, 1)), rng.random(shape)) < k / members)
        chunks.append(
            Chunk(
                init_time=START + day * LEAD,
                lead_time=LEAD,
                channels=names,
                values=(np.arange(members)[:, None, None, None] < k).astype(float),
                latitude=lat,
                longitude=lon,
            )
        )
    times = START + LEAD * (1 + np.arange(days))
    coords = {"time": times, "channel": list(names), "latitude": lat, "longitude": lon}
    truth = xr.DataArray(np.stack(states).astype(float), coords, ("time", "channel", "latitude", "longitude"))
    metrics = [EventFrequencies(0.5), Brier(0.5, kind="biased"), AUC(0.5)]
    return evaluate(chunks, truth, model="a", metrics=metrics, regions=["global"], weights="equal")


def test_the_diagram_holds_shares_and_frequencies_and_marks_unused_probabilities() -> None:
    records = make_records(6, 40, 4, seed=0)
    diagram = reliability_diagram(records, 0.5).squeeze()
    table = records.to_xarray()[EVENT.id].mean("init_time").values.reshape(5, 2)
    np.testing.assert_allclose(diagram["weight"], table.sum(1), rtol=1e-14)
    np.testing.assert_allclose(diagram["frequency"], table[:, 1] / table.sum(1), rtol=1e-14)
    np.testing.assert_array_equal(diagram["probability"], np.arange(5) / 4)
    fit = diagram["calibrated"].values
    assert (np.diff(fit) >= 0).all()
    terms = scores(records, [Brier(0.5, kind="biased"), BrierTerm(0.5, term="miscalibration")])
    recalibrated = (table[:, 0] * fit**2 + table[:, 1] * (1 - fit) ** 2).sum()
    got = (terms["brier_biased(>0.5)"] - terms["brier_miscalibration(>0.5)"]).item()
    assert got == pytest.approx(recalibrated, abs=1e-14)
    never = reliability_diagram(make_records(6, 2, 30, seed=0), 0.5).squeeze()
    unused = never["weight"].values == 0
    assert unused.any()
    assert np.isnan(never["frequency"].values[unused]).all()


@pytest.mark.parametrize(("bars", "rho"), [("starts", 0.0), ("points", 0.0), ("starts", 1.0)])
def test_bars_cover_a_reliable_forecast_at_their_level(bars: str, rho: float) -> None:
    records = make_records(60, 20, 4, seed=0, rho=rho, channels=60)
    diagram = reliability_diagram(records, 0.5, seed=1, bars=bars, resamples=200)  # type: ignore[arg-type]
    middle = diagram.isel(bin=slice(1, 4))
    inside = (middle["low"] <= middle["frequency"]) & (middle["frequency"] <= middle["high"])
    # 180 bars of a nominal 90 %; the bootstrap of 60 starts is slightly narrow.
    assert inside.size == 180
    assert 0.82 < float(inside.mean()) < 0.96


def test_bars_of_points_are_binomial_and_too_narrow_for_correlated_points() -> None:
    records = make_records(60, 50, 4, seed=0, rho=1.0)
    starts, points = (
        reliability_diagram(records, 0.5, seed=1, bars=b).squeeze()
        for b in ("starts", "points")  # type: ignore[arg-type]
    )
    expected = 2 * 1.645 * np.sqrt(0.25 / (60 * 50 / 5))
    width = (points["high"] - points["low"]).values[2]
    assert width == pytest.approx(expected, rel=0.1)
    assert (starts["high"] - starts["low"]).values[2] > 2 * width
    again = reliability_diagram(records, 0.5, seed=1).squeeze()
    xr.testing.assert_identical(starts, again)
    longer = reliability_diagram(records, 0.5, seed=1, block=5.0).squeeze()
    assert not longer["low"].equals(starts["low"])
    with pytest.raises(ValueError, match='bars "starts" or "points"'):
        reliability_diagram(records, 0.5, seed=1, bars="days")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='use average="starts"'):
        reliability_diagram(records, 0.5, seed=1, average="weights")
    with pytest.raises(ValueError, match="give evaluate the metric"):
        reliability_diagram(records, 0.7)


def test_distance_of_a_rank_histogram_from_the_flat_one() -> None:
    name = RankCounts().id
    rows = np.array([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [0.5, 0.25, 0.25, np.nan]])
    np.testing.assert_allclose(RankUniformity().value({name: rows}), [0, 1, 1 / 3], atol=1e-15)
    np.testing.assert_allclose(RankUniformity("chi_square").value({name: rows}), [0, 1, 0.125], atol=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"term": "sharpness"}, "term must be one of"),
        ({"bins": -1}, "bins must be 0"),
        ({"term": "miscalibration", "bins": 5}, "bins must be 0"),
    ],
)
def test_bad_terms_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BrierTerm(0.5, **settings)  # type: ignore[arg-type]
