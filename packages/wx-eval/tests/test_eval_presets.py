"""Presets: each reproduces the plain calls with its conventions, and keeps its records to itself."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from wx_eval import RMSE, Chunk, Records, Report, compare, evaluate, scores
from wx_eval._cli import main
from wx_eval._climatology import DayClimatology
from wx_eval._config import RunSettings
from wx_eval._event_scores import REV, Brier
from wx_eval._figure import Lines
from wx_eval._presets import PRESETS, Bootstrap, Card, Preset

LAT, LON = np.linspace(85, -85, 18), np.arange(0, 360, 15.0)
CHANNELS, UNITS = ("u850", "v850", "tp"), ("m s-1", "m s-1", "m")
DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")
START = np.datetime64("2020-01-01", "ns")
INITS = 8
EACH = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)


def values(*leading: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = rng.standard_normal((*leading, 3, LAT.size, LON.size))
    out[..., 2, :, :] = np.maximum(out[..., 2, :, :], 0) / 200
    return out


def coords(**first: object) -> dict[str, object]:
    last = {"channel": list(CHANNELS), "latitude": LAT, "longitude": LON}
    return {**first, **last, "units": ("channel", list(UNITS))}


@pytest.fixture(scope="module")
def truth() -> xr.DataArray:
    times = START + DAY * np.arange(INITS + 3)
    dims = ("time", "channel", "latitude", "longitude")
    states = xr.DataArray(values(INITS + 3, seed=0), coords(time=times), dims, name="analysis")
    # Missing truth makes the two ways of averaging over init times differ.
    states[3, :, :9] = np.nan
    return states


@pytest.fixture(scope="module")
def climate() -> DayClimatology:
    times = np.arange("2018-01-01", "2019-01-01", dtype="datetime64[D]").astype("datetime64[ns]")
    dims = ("time", "channel", "latitude", "longitude")
    coarse = values(4, seed=9)[np.arange(times.size) % 4]
    return DayClimatology.build(
        xr.DataArray(coarse, coords(time=times), dims), window_days=4, kernel="flat", seeps={"tp": 0.25}
    )


def forecast(truth: xr.DataArray, members: int, seed: int) -> xr.DataArray:
    leads = DAY * np.array([1, 2, 3])
    noise = values(INITS, 3, members, seed=seed)
    clean = np.stack([truth.values[1 + lead : 1 + lead + INITS] for lead in range(3)], axis=1)
    clean = np.nan_to_num(clean[:, :, None])
    dims = ("init_time", "lead_time", "member", "channel", "latitude", "longitude")
    return xr.DataArray(clean + noise, coords(init_time=truth["time"].values[:INITS], lead_time=leads), dims)


@EACH
def test_a_preset_is_the_plain_calls_with_its_settings(
    preset: Preset, truth: xr.DataArray, climate: DayClimatology, tmp_path: Path
) -> None:
    rain = {"tp": 24}
    a, b = (
        preset.evaluate(forecast(truth, 3, seed), truth, model=name, climatology=climate, precipitation=rain)
        for name, seed in (("a", 1), ("b", 2))
    )
    plain = evaluate(
        forecast(truth, 3, 1),
        truth,
        model="a",
        metrics=preset.metrics,
        regions=preset.regions,
        weights=preset.weights,
        climatology=climate,
    )
    assert set(plain.statistics) < set(a.statistics)
    found = preset.scores(a)
    expected = scores(plain, average=preset.average)
    for metric in preset.metrics:
        xr.testing.assert_identical(found[metric.name], expected[metric.name])
        assert found[metric.name].notnull().any(), metric.name
    [seeps] = set(found.data_vars) - set(expected.data_vars)
    assert seeps == f"seeps_{preset.seeps}_24h"
    assert 0 < float(found[seeps].sel(channel="tp", region=preset.regions[0]).mean()) < 3
    card = preset.compare(a, b)
    manual = compare(
        a,
        b,
        preset.ensembles.metrics,
        lead_times=[d * DAY for d in (preset.ensembles.days or (1, 2, 3)) if d <= 3],
        average=preset.average,
        method=preset.method,
        correction=preset.correction,
    )
    assert card.table().equals(manual.table())
    assert card.settings()["preset"] == preset.label
    assert card.settings()["climatology"] == (climate.name if preset.seeps else "none")
    a.to_parquet(tmp_path / "a.parquet")
    assert Records.from_parquet(tmp_path / "a.parquet") == a


def test_deterministic_forecasts_get_a_card_of_their_own(
    truth: xr.DataArray, climate: DayClimatology
) -> None:
    wbx = PRESETS["wbx"]
    a, b = (wbx.evaluate(forecast(truth, m, m), truth, model=str(m), climatology=climate) for m in (1, 3))
    card = wbx.compare(a, b, regions=["global"])
    assert card.metrics == ("rmse", "acc_pooled")
    assert sorted({cell.lead_time / DAY for cell in card.cells}) == [1, 3]
    both = a.merge(b)
    again = wbx.compare(both, both, model_a="1", model_b="3", regions=["global"])
    assert again.table().equals(card.table())


def test_records_of_two_presets_do_not_mix(truth: xr.DataArray) -> None:
    metrics, states = [RMSE()], forecast(truth, 2, 1)
    kept = {
        name: PRESETS[name].evaluate(states, truth, model=name, metrics=metrics, regions=["nh"])
        for name in ("gencast", "atlas")
    }
    bare = evaluate(states, truth, model="x", metrics=metrics, regions=["nh"])
    for other in (kept["atlas"], bare):
        with pytest.raises(ValueError, match="records with different preset cannot be combined"):
            kept["gencast"].merge(other)
        with pytest.raises(ValueError, match="needs records that it evaluated"):
            PRESETS["gencast"].scores(other)
        with pytest.raises(ValueError, match="needs records that it evaluated"):
            PRESETS["gencast"].compare(kept["gencast"], other)


def test_every_change_makes_another_label_but_words_do_not() -> None:
    gencast = PRESETS["gencast"]
    assert replace(gencast, source="", facts={}, unchecked=()).label == gencast.label
    changes: list[dict[str, Any]] = [
        {"weights": "cos"},
        {"average": "weights"},
        {"method": "iid"},
        {"correction": "holm"},
        {"seeps": "wb2"},
        {"name": "mine"},
        {"regions": ("europe",)},
        {"metrics": (RMSE(),)},
        {"costly": ()},
        {"ensembles": Card(metrics=("rmse",))},
        {"single": Card(metrics=("rmse",), days=(1,))},
        {"event_bootstrap": Bootstrap(seed=1)},
        {"event_bootstrap": Bootstrap(resamples=9)},
        {"event_bootstrap": Bootstrap(block=4.0)},
        {"event_bootstrap": None},
        {"event_days": (2,)},
        {"events": gencast.events[:1]},
        {"events": (replace(gencast.events[0], thresholds=("quantile(0.9)",)), gencast.events[1])},
        {"events": (replace(gencast.events[0], cost_loss=(0.2,)), gencast.events[1])},
    ]
    labels = [replace(gencast, **change).label for change in changes]
    assert len({gencast.label, *labels}) == len(changes) + 1
    kept = {f.name for f in fields(Preset)} - {"source", "facts", "unchecked"}
    assert kept == {name for change in changes for name in change}
    assert len({p.label for p in PRESETS.values()}) == len(PRESETS) == 5


def test_the_label_is_the_same_in_another_process() -> None:
    code = "import wx_eval; print(*(p.label for p in wx_eval.PRESETS.values()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == [p.label for p in PRESETS.values()]


@EACH
def test_facts_that_were_not_compared_with_a_text_are_facts(preset: Preset) -> None:
    assert preset.facts
    assert set(preset.unchecked) <= set(preset.facts)


@EACH
def test_cards_hold_what_the_preset_evaluates(preset: Preset) -> None:
    known = {m.name: m for m in preset.metrics}
    for card, members in ((preset.ensembles, 2), (preset.single, 1)):
        for name in card.metrics:
            assert known[name].goal != "none"
            assert max(s.minimum_members for s in known[name].statistics) <= members


def test_a_card_without_its_days_is_refused(truth: xr.DataArray) -> None:
    wb2 = PRESETS["wb2"]
    short = wb2.evaluate(
        forecast(truth, 2, 1).isel(lead_time=[1]), truth, model="a", metrics=[RMSE()], regions=["global"]
    )
    with pytest.raises(ValueError, match="of which the records hold none"):
        wb2.compare(short, short)


EXTREME = ("t2m", "msl", "z500")
LEVELS = (0.0001, 0.001, 0.01, 0.99, 0.999, 0.9999)


class Gauss:
    """A climatology of standard normal values whose quantiles exist for the surface alone."""

    name = "gauss"

    def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
        del valid_time
        level = stats.norm.ppf(float(statistic.removeprefix("quantile(").removesuffix(")")))
        # Nearer to the middle, so that few points hold some of each event.
        field = np.full((2, LAT.size, LON.size), level / 3)
        grid = {"latitude": LAT, "longitude": LON}
        return xr.DataArray(field, {"channel": ["t2m", "msl"], **grid}, ("channel", *grid))


@pytest.fixture(scope="module")
def extremes() -> Records:
    """Two models by the preset of GenCast, the first of them better; the truth is the second one's own."""
    rng = np.random.default_rng(3)
    times = START + DAY * np.arange(33)
    grid = {"channel": list(EXTREME), "latitude": LAT, "longitude": LON}
    states = rng.standard_normal((33, 3, LAT.size, LON.size)).astype(np.float32)
    truth = xr.DataArray(states, {"time": times, **grid}, ("time", *grid), name="analysis")

    def model(name: str, error: float, seed: int) -> Records:
        r = np.random.default_rng(seed)
        near = np.stack([states[lead : lead + 30] for lead in (1, 3)], axis=1)[:, :, None]
        noise = r.standard_normal((30, 2, 5, 3, LAT.size, LON.size)).astype(np.float32)
        coords = {"init_time": times[:30], "lead_time": DAY * np.array([1, 3]), **grid}
        array = xr.DataArray(near + error * noise, coords, ("init_time", "lead_time", "member", *grid))
        return PRESETS["gencast"].evaluate(
            array, truth, model=name, climatology=Gauss(), regions=["global", "nh"], truth_models=["ens"]
        )

    return model("new", 0.5, 1).merge(model("ens", 1.0, 2))


def test_events_are_scored_where_the_evaluation_had_them(extremes: Records) -> None:
    gencast = PRESETS["gencast"]
    found = gencast.scores(extremes)
    for event, channels in ((">", {"t2m"}), ("<", {"t2m", "msl"})):
        for level in LEVELS[3:] if event == ">" else LEVELS[:3]:
            for metric in (
                Brier(f"quantile({level:g})", event),
                REV(f"quantile({level:g})", event, cost_loss=0.05),
            ):
                some = found[metric.name].notnull().any(["model", "region", "lead_time"])
                assert set(some["channel"].values[some.values]) == channels, metric.name
    # The fair Brier score of exceedance, written out.
    table = extremes.select(model="new", channel="msl", region="global").to_xarray()
    ids = [s.id for s in Brier("quantile(0.01)", "<").statistics]
    value = float((table[ids[0]] - table[ids[1]]).sel(lead_time=DAY).mean())
    got = float(
        found["brier_fair(<quantile(0.01))"].sel(model="new", channel="msl", region="global", lead_time=DAY)
    )
    assert got == pytest.approx(value, rel=1e-12)


def test_cards_test_events_by_the_bootstrap_and_all_together(extremes: Records) -> None:
    gencast = PRESETS["gencast"]
    plain, events = gencast.cards(extremes, extremes.select(model="ens"))
    assert (plain.method, events.method) == ("geer", "bootstrap")
    assert plain.metrics == ("crps_fair", "rmse")
    assert len(events.metrics) == 2 * 3 * 3
    assert events.settings()["resampling"] == "2000 resamples of automatic blocks, seed 0"
    assert plain.n_corrected == events.n_corrected == plain.n_tests + events.n_tests > plain.n_tests
    assert (
        plain.settings()["number of tests"]
        == f"{plain.n_tests} on this card, {plain.n_corrected} on all 2 cards"
    )
    metrics = [extremes.metrics[name] for name in events.metrics]
    assert all(m["type"] in ("Brier", "REV") for m in metrics)
    manual = compare(
        extremes,
        extremes,
        events.metrics,
        model_a="new",
        model_b="ens",
        method="bootstrap",
        seed=0,
        correction="none",
    )
    assert [c.p_value for c in manual.cells] == [c.p_value for c in events.cells]
    assert [c.p_adjusted for c in manual.cells] == [c.p_adjusted for c in events.cells]
    # Without a correction in the preset the sound result stands beside it.
    joint = np.array([c.p_ewc_ar1 for card in (plain, events) for c in card.cells])
    own = [stats.false_discovery_control([c.p_ewc_ar1 for c in card.cells]) for card in (plain, events)]
    expected = np.maximum(stats.false_discovery_control(joint), np.concatenate(own))
    got = [c.p_robust for card in (plain, events) for c in card.cells]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_one_comparison_takes_one_test(extremes: Records) -> None:
    with pytest.raises(ValueError, match="compare them apart, or all by cards"):
        PRESETS["gencast"].compare(
            extremes, extremes, model_a="new", model_b="ens", metrics=["rmse", "brier_fair(<quantile(0.01))"]
        )


def test_a_report_shows_every_score_of_the_preset(extremes: Records) -> None:
    page = Report.from_records(extremes, baseline="ens")
    words = page.html()
    for text in (
        "new against ens, bootstrap",
        "fair Brier score, above quantile 0.9999",
        "economic value at cost / loss 0.05, below quantile 0.0001",
        "Event: below quantile 0.001",
        "Economic value: above quantile 0.99",
        "Rank histograms",
        "confidence intervals (bootstrap)",
        "confidence intervals (ewc_ar1)",
        "(not compared with the text)",
        "The truth is the analysis of ens",
    ):
        assert text.replace("<", "&lt;") in words, text
    drawn = [name for name in page.figures if "fair-brier-score-above" in name]
    assert drawn
    for name in drawn:
        bands = [m for m in page.figures[name].marks if isinstance(m, Lines) and m.fill]
        assert len(bands) >= 2


def test_events_beyond_quantiles_need_a_climatology() -> None:
    grid = {"channel": ["t2m"], "latitude": LAT, "longitude": LON}
    times = START + DAY * np.arange(3)
    states = np.zeros((3, 1, LAT.size, LON.size))
    truth = xr.DataArray(states, {"time": times, **grid}, ("time", *grid))
    coords = {"init_time": times[:1], "lead_time": DAY * np.array([1]), **grid}
    made = xr.DataArray(
        np.zeros((1, 1, 2, 1, LAT.size, LON.size)), coords, ("init_time", "lead_time", "member", *grid)
    )
    with pytest.raises(ValueError, match=r"scores events of \['t2m'\] beyond quantile\(0.99\).* climatology"):
        PRESETS["gencast"].evaluate(made, truth, model="a")


def test_chunks_tell_their_channels_and_are_all_scored(truth: xr.DataArray) -> None:
    array = forecast(truth, 2, 1).isel(channel=[0])
    chunks = (
        Chunk(init_time=i, lead_time=k, channels=("u850",), values=array.sel(init_time=i, lead_time=k).values)
        for i in array["init_time"].values
        for k in array["lead_time"].values
    )
    held = replace(PRESETS["wmo"], regions=("nh",), metrics=(RMSE(),), events=())
    assert held.evaluate(chunks, Only(truth), model="a") == held.evaluate(array, truth, model="a")


class Only:
    """A history that does not say which channels it has."""

    def __init__(self, truth: xr.DataArray) -> None:
        self._truth, self.times = truth, truth["time"].values
        self.name = truth.name

    def read(self, times: np.ndarray, /) -> xr.DataArray:
        return self._truth.sel(time=times)


def test_a_run_says_whose_analysis_the_truth_is_and_what_it_may_cost() -> None:
    data = {"model": "a", "output": "a.parquet", "forecast": "f.nc", "truth": "t.nc"}
    settings = RunSettings.parse({**data, "truth_models": "ens", "preset": "gencast", "costly": True})
    assert settings.truth_models == ("ens",)
    assert settings.costly
    with pytest.raises(ValueError, match="costly adds metrics of a preset"):
        RunSettings.parse({**data, "costly": True})


def test_the_scorecard_command_corrects_all_models_together(extremes: Records, tmp_path: Path) -> None:
    table = extremes.select(model="new").table
    third = Records(
        table.set_column(0, table.schema.field("model"), [["other"] * len(table)]),
        extremes.conventions,
        extremes.metrics,
    )
    a, b, page = (tmp_path / name for name in ("a.parquet", "b.parquet", "card.html"))
    extremes.select(model="new").merge(third).to_parquet(a)
    extremes.select(model="ens").to_parquet(b)
    assert main(["scorecard", str(a), str(b), "--preset", "gencast", "-o", str(page)]) == 0
    text = page.read_text()
    for heading in ("new against ens", "new against ens, bootstrap", "other against ens, bootstrap"):
        assert f"<h2>{heading}</h2>" in text
    assert "on all 4 cards" in text
    assert 'href="a.parquet"' in text
    assert 'href="b.parquet"' in text
    assert main(["scorecard", str(a), str(b), "--metric", "rmse", "-o", str(page)]) == 0
    assert "on all 2 cards" in page.read_text()
