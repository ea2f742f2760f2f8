"""Presets: each reproduces the plain calls with its conventions, and keeps its records to itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from wx_eval import RMSE, Records, compare, evaluate, scores
from wx_eval._climatology import DayClimatology
from wx_eval._presets import PRESETS, Preset

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


def test_selections_keep_the_label_and_conventions_change_it() -> None:
    wb2 = PRESETS["wb2"]
    assert replace(wb2, regions=("europe",), metrics=(RMSE(),)).label == wb2.label
    for change in (
        {"weights": "cos"},
        {"average": "weights"},
        {"method": "iid"},
        {"correction": "none"},
        {"seeps": "wbx"},
        {"name": "mine"},
    ):
        assert replace(wb2, **change).label != wb2.label
    assert len({p.label for p in PRESETS.values()}) == len(PRESETS) == 5
    # The label is written into files: it may only change together with the conventions.
    assert wb2.label == "wb2:18ed5cd3"


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
