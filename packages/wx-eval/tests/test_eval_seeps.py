"""SEEPS: equitability of its matrix, thresholds of both kinds, units, and whole fields by plain loops."""

from dataclasses import dataclass

import numpy as np
import pytest
import xarray as xr

from wx_eval import Chunk, evaluate, scores
from wx_eval._climatology import DayClimatology
from wx_eval._seeps import SEEPS, millimetres, seeps_matrix

LAT, LON = np.array([30.0, 0, -30]), np.arange(4) * 90.0
START, DAY = np.datetime64("2020-06-01", "ns"), np.timedelta64(24, "h").astype("timedelta64[ns]")
WET = 0.004


@dataclass
class Climate:
    """Given dry fractions (H, W), one threshold in m."""

    p1: np.ndarray
    threshold: float = WET
    units: str = "m"
    name: str = "climate"

    def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
        del valid_time
        field = self.p1 if statistic == "seeps_dry_fraction" else np.full(self.p1.shape, self.threshold)
        unit = "1" if statistic == "seeps_dry_fraction" else self.units
        coords = {"channel": ["tp"], "latitude": LAT, "longitude": LON, "units": ("channel", [unit])}
        return xr.DataArray(field[None], coords, ("channel", "latitude", "longitude"))


def states(values: np.ndarray, unit: str | None = "m", dtype: str = "f8") -> xr.DataArray:
    """Channel tp (T, H, W) beside a temperature."""
    both = np.stack([values, np.full(values.shape, 280.0)], axis=1).astype(dtype)
    coords = {
        "time": START + DAY * np.arange(len(values)),
        "channel": ["tp", "t2m"],
        "latitude": LAT,
        "longitude": LON,
    }
    array = xr.DataArray(both, coords, ("time", "channel", "latitude", "longitude"))
    return array if unit is None else array.assign_coords(units=("channel", [unit, "K"]))


def score(
    forecast: np.ndarray,
    truth: np.ndarray,
    climate: Climate | DayClimatology,
    metric: SEEPS,
    unit: str | None = "m",
    dtype: str = "f8",
) -> float:
    """Score of forecasts (M, T, H, W) with lead time 0."""
    truths = states(truth, unit, dtype)
    members = [states(f, unit, dtype) for f in forecast]
    array = xr.concat(members, "member").rename(time="init_time").expand_dims(lead_time=[0 * DAY])
    records = evaluate(
        array, truths, model="a", metrics=[metric], climatology=climate, regions=["global"], weights="equal"
    )
    table = scores(records)[metric.name]
    assert np.isnan(table.sel(channel="t2m")).all()
    return float(table.sel(channel="tp").squeeze())


@pytest.mark.parametrize("p1", [0.1, 0.37, 0.5, 0.85])
def test_matrix_gives_0_to_the_perfect_and_1_to_constant_and_random_forecasts(p1: float) -> None:
    cost = seeps_matrix(np.array(p1))
    climate = np.array([p1, 2 * (1 - p1) / 3, (1 - p1) / 3])
    np.testing.assert_array_equal(np.diag(cost), 0)
    np.testing.assert_allclose(cost @ climate, 1, rtol=1e-14)
    assert climate @ cost @ climate == pytest.approx(1, rel=1e-14)
    # The published table (Rodwell et al. 2010, equation 15).
    expected = [[0, 1 / (1 - p1), 4 / (1 - p1)], [1 / p1, 0, 3 / (1 - p1)]]
    expected += [[1 / p1 + 3 / (2 + p1), 3 / (2 + p1), 0]]
    np.testing.assert_allclose(cost, np.array(expected) / 2, rtol=1e-14)


def by_hand(f: float, y: float, p1: float, wet: float, kind: str) -> float:
    """One point, in m."""
    edge = 0.0002 if kind == "rodwell" else 0.00025

    def category(x: float) -> int | None:
        if x < edge or (x == edge and kind != "wb2"):
            return 0
        if x == edge:
            return None
        return 1 if x < wet or (x == wet and kind == "rodwell") else 2

    a, b = category(f), category(y)
    table = [
        [0, 1 / (1 - p1), 4 / (1 - p1)],
        [1 / p1, 0, 3 / (1 - p1)],
        [1 / p1 + 3 / (2 + p1), 3 / (2 + p1), 0],
    ]
    return 0.0 if a is None or b is None else 0.5 * table[a][b]


@pytest.mark.parametrize("kind", ["wbx", "wb2", "rodwell"])
def test_fields_point_by_point(kind: str) -> None:
    rng = np.random.default_rng(0)
    p1 = rng.uniform(0.05, 0.95, (3, 4))
    p1[0, :2] = 0.1, 0.85
    choices = np.array([0, 0.0002, 0.00025, 0.0003, WET, np.nextafter(WET, 0), 0.02])
    f, y = rng.choice(choices, (2, 20, 3, 4))
    used = (p1 > 0.1) & (p1 < 0.85) if kind == "wb2" else (p1 >= 0.1) & (p1 <= 0.85)
    costs = [
        by_hand(f[t][i], y[t][i], p1[i], WET, kind) for t in range(20) for i in np.ndindex(3, 4) if used[i]
    ]
    assert 0 < used.sum() < 12
    assert score(f[None], y, Climate(p1), SEEPS(("tp",), kind=kind)) == pytest.approx(
        np.mean(costs), rel=1e-12
    )


def test_the_kinds_differ_on_the_dry_threshold() -> None:
    climate, shape = Climate(np.full((3, 4), 0.5)), (2, 3, 4)
    f, y = np.full(shape, 0.00025), np.full(shape, 0.001)
    for dtype in ("f4", "f8"):
        assert score(f[None], y, climate, SEEPS(("tp",), kind="wbx"), dtype=dtype) == pytest.approx(1)
        assert score(f[None], y, climate, SEEPS(("tp",), kind="wb2"), dtype=dtype) == 0
        # 0.15 mm is wet in 6 h and dry in 24 h.
        less = np.full((1, *shape), 0.00015)
        assert score(less, y, climate, SEEPS(("tp",), hours=6), dtype=dtype) == 0
        assert score(less, y, climate, SEEPS(("tp",), hours=24), dtype=dtype) == pytest.approx(1)


def test_a_forecast_from_climatology_scores_1() -> None:
    rng = np.random.default_rng(3)
    times = np.arange("2000-01-01", "2009-01-01", dtype="datetime64[D]").astype("datetime64[ns]")
    rain = np.maximum(rng.gamma(0.6, 6, (times.size, 3, 4)) - 0.8, 0) / 1000
    past = states(rain).assign_coords(time=times)
    climate = DayClimatology.build(past, seeps={"tp": 0.25}, window_days=45, kernel="flat")
    truth = np.maximum(rng.gamma(0.6, 6, (120, 3, 4)) - 0.8, 0) / 1000
    metric = SEEPS(("tp",))
    for forecast in (
        np.zeros_like(truth),
        np.full_like(truth, 0.001),
        np.full_like(truth, 0.1),
        rng.permutation(truth),
    ):
        assert score(forecast[None], truth, climate, metric) == pytest.approx(1, abs=0.06)
    assert score(truth[None], truth, climate, metric) == 0


def test_units_are_read_and_never_guessed() -> None:
    rng = np.random.default_rng(1)
    f, y = np.maximum(rng.gamma(0.5, 6, (2, 10, 3, 4)) - 0.6, 0)
    p1 = np.full((3, 4), 0.4)
    metric = SEEPS(("tp",))
    metres = score(f[None] / 1000, y / 1000, Climate(p1), metric)
    assert score(f[None], y, Climate(p1, 1000 * WET, "mm"), metric, "mm") == metres
    assert score(f[None], y, Climate(p1, 1000 * WET, "kg m**-2"), metric, "kg m-2") == metres
    with pytest.raises(ValueError, match="has the unit '', precipitation needs one of"):
        score(f[None], y, Climate(p1, units=""), metric, None)
    with pytest.raises(ValueError, match="'mm' in the climatology and in 'm' in the truth"):
        score(f[None], y, Climate(p1, units="mm"), metric, "m")
    assert (millimetres("m", "tp"), millimetres("kg/m2", "tp")) == (1000, 1)


def test_ensembles_by_mean_or_by_member() -> None:
    rng = np.random.default_rng(2)
    f = np.maximum(rng.gamma(0.5, 6, (4, 10, 3, 4)) - 0.6, 0) / 1000
    y, climate = f[0][::-1], Climate(np.full((3, 4), 0.4))
    members = [score(x[None], y, climate, SEEPS(("tp",))) for x in f]
    assert score(f, y, climate, SEEPS(("tp",), of="members")) == pytest.approx(np.mean(members), rel=1e-12)
    mean = score(f.mean(axis=0)[None], y, climate, SEEPS(("tp",)))
    assert score(f, y, climate, SEEPS(("tp",))) == pytest.approx(mean, rel=1e-12)
    assert abs(mean - np.mean(members)) > 0.01


def test_bad_settings_are_refused() -> None:
    for change, message in (
        ({"channels": "tp"}, "tuple of names"),
        ({"hours": 12}, r"hours must be one of \(6, 24\)"),
        ({"hours": 6, "kind": "rodwell"}, r"hours must be one of \(24,\) for kind 'rodwell'"),
        ({"kind": "ecmwf"}, "kind must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            SEEPS(**{"channels": ("tp",), **change})
    f = np.zeros((2, 3, 4))
    with pytest.raises(ValueError, match="no seeps_threshold at points"):
        score(f[None], f, Climate(np.full((3, 4), 0.5), np.nan), SEEPS(("tp",)))


def test_members_on_the_dry_threshold_are_dry_in_the_mean_as_alone() -> None:
    climate = Climate(np.full((3, 4), 0.5), threshold=4.0, units="mm")
    truth = states(np.full((1, 3, 4), 0.1), unit="mm", dtype="f8")
    metric = SEEPS(("tp",), hours=6)
    for members in (1, 2, 3):
        chunk = Chunk(
            init_time=START - DAY,
            lead_time=DAY,
            channels=("tp",),
            values=np.full((members, 1, 3, 4), 0.1, np.float32),
        )
        records = evaluate([chunk], truth, model="a", metrics=[metric], climatology=climate, weights="cos")
        assert (scores(records)[metric.name].sel(channel="tp") == 0).all()
