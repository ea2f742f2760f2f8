"""Anomaly correlation, activity, wind and roots: against plain sums, closed forms and real fields."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from wx_eval import MSE, RMSE, Records, cell_weights, compare, evaluate, scores
from wx_eval._anomaly import ACC, Activity, MSESkill
from wx_eval._wind import WindRMSE

HOUR = np.timedelta64(1, "h")
LAT, LON = np.linspace(90, -90, 7), np.arange(0, 360, 45.0)
CHANNELS = ("z500", "u850", "v850")
UNITS = ("m2 s-2", "m s-1", "m s-1")
START = np.datetime64("2020-01-01T00", "ns")
KINDS = (ACC("wb2"), ACC("pooled"), ACC("wmo"))
METRICS = (*KINDS, Activity(), Activity("members"), Activity("truth"), MSESkill(), MSE())


@dataclass
class Ramp:
    """A climatology that depends on place, channel and time."""

    name: str = "ramp"
    gap: bool = False

    def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
        assert statistic == "mean"
        day = (valid_time - START) / np.timedelta64(1, "D")
        field = 100.0 * np.arange(3)[:, None, None] + LAT[:, None] / 9 + np.cos(np.deg2rad(LON)) + day
        field[0, 1, 1] = np.nan if self.gap else field[0, 1, 1]
        coords = {
            "channel": list(CHANNELS),
            "latitude": LAT,
            "longitude": LON,
            "units": ("channel", list(UNITS)),
        }
        return xr.DataArray(field, coords, ("channel", "latitude", "longitude"))


def case(inits: int = 6, members: int = 3, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    """Forecast and truth whose anomalies have amplitudes that vary from day to day and an offset."""
    rng = np.random.default_rng(seed)
    times = START + 24 * HOUR * np.arange(inits + 1)
    mean = np.stack([Ramp().at("mean", t) for t in times])
    size = rng.uniform(1, 5, (inits + 1, 1, 1, 1))
    truth = mean + size * (0.5 + rng.standard_normal((inits + 1, 3, 7, 8)))
    noise = rng.standard_normal((members, inits, 3, 7, 8))
    values = (truth[1:] + 2 * noise)[None].transpose(2, 0, 1, 3, 4, 5)
    units = {"channel": list(CHANNELS), "latitude": LAT, "longitude": LON, "units": ("channel", list(UNITS))}
    leads = {"init_time": times[:-1], "lead_time": np.array([24], "timedelta64[h]").astype("timedelta64[ns]")}
    forecast = xr.DataArray(
        values, {**leads, **units}, ("init_time", "lead_time", "member", "channel", "latitude", "longitude")
    )
    return forecast, xr.DataArray(
        truth, {"time": times, **units}, ("time", "channel", "latitude", "longitude"), name="analysis"
    )


def anomalies(forecast: xr.DataArray, truth: xr.DataArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Members (M, T, C, H, W), truth (T, C, H, W) and weights with sum 1 (H, W)."""
    mean = np.stack([Ramp().at("mean", t) for t in truth["time"].values[1:]])
    members = np.moveaxis(forecast.values[:, 0], 1, 0) - mean
    weights = np.repeat(cell_weights(LAT)[:, None], 8, axis=1)
    return members, truth.values[1:] - mean, weights / weights.sum()


def test_every_score_matches_its_definition() -> None:
    forecast, truth = case()
    got = scores(
        evaluate(forecast, truth, model="a", metrics=METRICS, climatology=Ramp(), regions=["global"])
    )
    members, y, w = anomalies(forecast, truth)
    f = members.mean(axis=0)

    def area(x: np.ndarray) -> np.ndarray:
        return np.einsum("...hw,hw->...", x, w)

    def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return area(a * b) / np.sqrt(area(a * a) * area(b * b))

    centred = (x - area(x)[..., None, None] for x in (f, y))
    pooled = area(f * y).mean(0) / np.sqrt(area(f * f).mean(0) * area(y * y).mean(0))
    expected = {
        "acc_wb2": correlation(f, y).mean(axis=0),
        "acc_wmo": correlation(*centred).mean(axis=0),
        "acc_pooled": pooled,
        "activity_mean": np.sqrt(area(f**2).mean(axis=0)),
        "activity_members": np.sqrt(area((members**2).mean(axis=0)).mean(axis=0)),
        "activity_truth": np.sqrt(area(y**2).mean(axis=0)),
        "mse_skill_climatology": 1 - area((f - y) ** 2).mean(axis=0) / area(y**2).mean(axis=0),
    }
    for name, value in expected.items():
        found = got[name].sel(channel=list(CHANNELS)).values.ravel()
        np.testing.assert_allclose(found, value, rtol=1e-12, err_msg=name)
    variants = [float(got[m.name].sel(channel="z500").squeeze()) for m in KINDS]
    assert np.ptp(variants) > 0.01


@pytest.mark.parametrize("factor", [3.0, -0.5])
def test_correlation_does_not_see_amplitude_and_wmo_not_an_offset(factor: float) -> None:
    forecast, truth = case(members=1)
    mean = np.stack([Ramp().at("mean", t) for t in truth["time"].values[1:]])[:, None, None]
    anomaly = truth.values[1:][:, None, None] - mean
    scaled = forecast.copy(data=mean + factor * anomaly)
    shifted = forecast.copy(data=mean + factor * anomaly + 7)
    for kind, tilted in (("wb2", scaled), ("pooled", scaled), ("wmo", scaled), ("wmo", shifted)):
        records = evaluate(
            tilted, truth, model="a", metrics=[ACC(kind)], climatology=Ramp(), regions=["nh", "global"]
        )
        np.testing.assert_allclose(scores(records)[f"acc_{kind}"], np.sign(factor), rtol=1e-12)
    wb2 = scores(evaluate(shifted, truth, model="a", metrics=[ACC("wb2")], climatology=Ramp()))["acc_wb2"]
    assert float(abs(wb2).max()) < 1 - 1e-3


def test_climatology_itself_has_no_skill_and_no_activity() -> None:
    forecast, truth = case(members=1)
    mean = np.stack([Ramp().at("mean", t) for t in truth["time"].values[1:]])[:, None, None]
    got = scores(evaluate(forecast.copy(data=mean), truth, model="a", metrics=METRICS, climatology=Ramp()))
    np.testing.assert_allclose(got["mse_skill_climatology"], 0, atol=1e-12)
    np.testing.assert_allclose(got["activity_mean"], 0, atol=1e-10)


def test_missing_truth_counts_in_no_moment() -> None:
    forecast, truth = case()
    crop = truth.where(truth["latitude"] >= 0)
    options = {"model": "a", "metrics": KINDS, "climatology": Ramp()}
    masked = scores(evaluate(forecast, crop, regions=["global"], **options))
    north = {"global": np.repeat((LAT >= 0)[:, None], 8, axis=1)}
    whole = scores(evaluate(forecast, truth, regions=north, **options))
    for metric in KINDS:
        np.testing.assert_allclose(masked[metric.name], whole[metric.name], rtol=1e-12)


def test_what_a_climatology_must_match() -> None:
    forecast, truth = case()

    class Flipped(Ramp):
        def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
            return super().at(statistic, valid_time).isel(latitude=slice(None, None, -1))

    class Feet(Ramp):
        def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
            field = super().at(statistic, valid_time)
            return field.assign_coords(units=("channel", ["feet", "m s-1", "m/s"]))

    class OnlyWind(Ramp):
        def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
            return super().at(statistic, valid_time).isel(channel=[1, 2])

    for climate, message in (
        (None, "give a climatology"),
        (Flipped(), "reverse one of them: climatology.isel"),
        (Feet(), "'feet' in the climatology"),
        (OnlyWind(), r"has no mean of the channels \['z500'\]"),
        (Ramp(gap=True), "'z500' at 2020-01-02T00:00:00 is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(forecast, truth, model="a", metrics=[ACC()], climatology=climate)
    with pytest.raises(ValueError, match="kind must be one of"):
        ACC("ecmwf")


def test_files_give_the_metrics_back(tmp_path: Path) -> None:
    forecast, truth = case()
    wind = WindRMSE(pairs=(("u850", "v850"),))
    kept = evaluate(
        forecast, truth, model="a", metrics=[*METRICS, RMSE(root="each"), wind], climatology=Ramp()
    )
    kept.to_parquet(tmp_path / "r.parquet")
    xr.testing.assert_identical(scores(Records.from_parquet(tmp_path / "r.parquet")), scores(kept))
    assert "acc_wmo" in scores(kept)
    assert "wind_rmse" in scores(kept)


def test_acc_is_tested_like_any_metric() -> None:
    truth = case(inits=40)[1]
    good, bad = (case(inits=40)[0] for _ in range(2))
    bad = bad + 3 * np.random.default_rng(9).standard_normal(bad.shape)
    records = [
        evaluate(f, truth, model=m, metrics=KINDS, climatology=Ramp(), regions=["global"])
        for m, f in (("good", good), ("bad", bad.assign_coords(good.coords)))
    ]
    card = compare(*records, metrics=KINDS, channels=["z500"])
    assert [cell.significant for cell in card.cells] == [True] * 3
    assert all(cell.difference < 0 for cell in card.cells)
    for cell, metric in zip(card.cells, KINDS, strict=True):
        table = scores(records[0])[metric.name].sel(channel="z500")
        assert cell.score_a == pytest.approx(table.item(), rel=1e-12)


def test_wind_is_scored_as_a_vector() -> None:
    forecast, truth = case()
    records = evaluate(
        forecast, truth, model="a", metrics=[WindRMSE(), WindRMSE(root="each"), RMSE(), RMSE(root="each")]
    )
    got = scores(records).sel(region="global").squeeze(drop=True)
    _, _, w = anomalies(forecast, truth)
    error = forecast.mean("member").values[:, 0] - truth.values[1:]
    mse = np.einsum("tchw,hw->tc", error**2, w)
    vector = mse[:, 1] + mse[:, 2]
    wind = got.sel(channel="u850+v850")
    assert float(wind["wind_rmse"]) == pytest.approx(np.sqrt(vector.mean()), rel=1e-12)
    assert float(wind["wind_rmse_root_each"]) == pytest.approx(np.sqrt(vector).mean(), rel=1e-12)
    np.testing.assert_allclose(
        got["rmse_root_each"].sel(channel=list(CHANNELS)), np.sqrt(mse).mean(axis=0), rtol=1e-12
    )
    assert float(wind["wind_rmse_root_each"]) < float(wind["wind_rmse"])
    assert records.conventions.units["u850+v850"] == "m s-1"
    assert np.isnan(wind["rmse"])
    assert np.isnan(got["wind_rmse"].sel(channel="z500"))


@pytest.mark.parametrize(
    ("channels", "rows"),
    [
        (("u850", "v850", "u10", "t2m"), ["u850+v850"]),
        (("10u", "10v"), ["10u+10v"]),
        (
            ("10m_u_component_of_wind", "10m_v_component_of_wind"),
            ["10m_u_component_of_wind+10m_v_component_of_wind"],
        ),
        (("humidity", "hvmidity"), []),
    ],
)
def test_wind_components_are_paired_by_name(channels: tuple[str, ...], rows: list[str]) -> None:
    [statistic] = WindRMSE().statistics
    assert list(statistic.groups(channels)) == rows


def test_wind_of_two_units_is_refused() -> None:
    forecast, truth = case()
    knots = ("channel", ["m2 s-2", "m s-1", "kt"])
    with pytest.raises(ValueError, match="wind components"):
        evaluate(
            forecast.assign_coords(units=knots),
            truth.assign_coords(units=knots),
            model="a",
            metrics=[WindRMSE()],
        )
    with pytest.raises(ValueError, match="root must be one of"):
        WindRMSE(root="before")
    with pytest.raises(ValueError, match='debiased needs root="after"'):
        RMSE(debiased=True, root="each")


def test_a_region_of_one_point_has_no_correlation_over_its_area() -> None:
    forecast, truth = case(inits=1)
    masks = {}
    for k in range(LON.size):
        masks[f"point {k}"] = np.zeros((LAT.size, LON.size), bool)
        masks[f"point {k}"][2, k] = True
    found = scores(evaluate(forecast, truth, model="a", metrics=KINDS, regions=masks, climatology=Ramp()))
    assert np.isnan(found["acc_wmo"]).all()
    np.testing.assert_allclose(abs(found["acc_wb2"]), 1, rtol=1e-12)
