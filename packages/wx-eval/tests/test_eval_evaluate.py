"""From fields to records: alignment, invariance, refusals and real members."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import pytest
import xarray as xr

import wx_eval
from wx_eval import Chunk, ForecastChunk, Records, cell_weights, evaluate, scores
from wx_eval._dims import SYNONYMS
from wx_eval._fields import States, as_chunks

METRICS = (*wx_eval.STANDARD_METRICS, wx_eval.RankHistogram())
HOUR = np.timedelta64(1, "h")
LAT, LON = np.linspace(90, -90, 13), np.arange(0, 360, 15.0)
START = np.datetime64("2020-02-27T00", "ns")
CHANNELS = ("z500", "tp")
UNITS = ("m2 s-2", "m")
DIMS = ("init_time", "lead_time", "member", "channel", "latitude", "longitude")


def make_truth(steps: int = 12, seed: int = 0) -> xr.DataArray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((steps, 2, LAT.size, LON.size)).astype(np.float32)
    values[:, 0] = 5.5e4 + 300 * values[:, 0]
    values[:, 1] = np.maximum(values[:, 1], 0)
    coords = {
        "time": START + 12 * HOUR * np.arange(steps),
        "channel": list(CHANNELS),
        "latitude": LAT,
        "longitude": LON,
        "units": ("channel", list(UNITS)),
    }
    return xr.DataArray(values, coords, ("time", "channel", "latitude", "longitude"), name="analysis")


def make_forecast(inits: int = 4, leads: int = 3, members: int = 5, seed: int = 1) -> xr.DataArray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((inits, leads, members, 2, LAT.size, LON.size)).astype(np.float32)
    values[..., 0, :, :] = 5.5e4 + 300 * values[..., 0, :, :]
    values[..., 1, :, :] = np.maximum(values[..., 1, :, :], 0)
    coords = {
        "init_time": START + 24 * HOUR * np.arange(inits),
        "lead_time": (12 * HOUR * np.arange(1, leads + 1)).astype("timedelta64[ns]"),
        "channel": list(CHANNELS),
        "latitude": LAT,
        "longitude": LON,
    }
    return xr.DataArray(values, coords, DIMS).assign_coords(units=("channel", list(UNITS)))


@pytest.fixture(scope="module")
def truth() -> xr.DataArray:
    return make_truth()


@pytest.fixture(scope="module")
def forecast() -> xr.DataArray:
    return make_forecast()


@pytest.fixture(scope="module")
def records(forecast: xr.DataArray, truth: xr.DataArray) -> Records:
    return evaluate(forecast, truth, model="a", metrics=METRICS)


def test_every_score_matches_its_definition_at_the_right_valid_time(
    forecast: xr.DataArray, truth: xr.DataArray, records: Records
) -> None:
    got = records.to_xarray().isel(model=0)
    x, y = forecast.astype(np.float64), truth.astype(np.float64)
    weights = xr.DataArray(cell_weights(LAT), {"latitude": LAT}, ("latitude",))
    for init in forecast["init_time"].values:
        for lead in forecast["lead_time"].values:
            members = x.sel(init_time=init, lead_time=lead).where(x["latitude"] >= 20, drop=True)
            state = y.sel(time=init + lead)
            error = members.mean("member") - state
            pairs = abs(members - members.rename(member="other")).mean(("member", "other"))
            expected = {
                "mse_mean": error**2,
                "mae_mean": abs(error),
                "error_mean": error,
                "variance": members.var("member", ddof=1),
                "crps_biased": abs(members - state).mean("member") - pairs / 2,
                "crps_fair": abs(members - state).mean("member") - pairs / 2 * 5 / 4,
            }
            for name, field in expected.items():
                mean = field.weighted(weights).mean(("latitude", "longitude"))
                cell = got[name].sel(region="nh", init_time=init, lead_time=lead, channel=list(CHANNELS))
                np.testing.assert_allclose(cell.values, mean.sel(channel=list(CHANNELS)).values, rtol=3e-5)


def test_any_chunking_order_and_layout_gives_the_same_bits(
    forecast: xr.DataArray, truth: xr.DataArray, records: Records
) -> None:
    chunks = list(as_chunks(forecast))
    backwards = evaluate(reversed(chunks), truth, model="a", metrics=METRICS)
    transposed = evaluate(
        forecast.transpose(*DIMS[::-1]), truth.transpose(..., "time"), model="a", metrics=METRICS
    )
    parts = [evaluate([c], truth, model="a", metrics=METRICS) for c in chunks]
    by_channel = [
        evaluate(forecast.sel(channel=[c]), truth.sel(channel=[c]), model="a", metrics=METRICS)
        for c in CHANNELS
    ]
    for other in (backwards, transposed, parts[0].merge(*parts[1:]), by_channel[1].merge(by_channel[0])):
        assert other.table.equals(records.table)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_a_score_of_the_mean_does_not_depend_on_the_other_metrics(
    forecast: xr.DataArray, truth: xr.DataArray, records: Records, kernel: str
) -> None:
    # Without a metric of the spread the members are not sorted: the mean is computed alone.
    if kernel == "numba":
        pytest.importorskip("numba", reason="numba is not installed: the compiled kernel is not tested")
    metrics = (wx_eval.RMSE(), wx_eval.Bias())
    alone = evaluate(forecast, truth, model="a", metrics=metrics, kernel=kernel)  # type: ignore[arg-type]
    for name in ("mse_mean", "error_mean", "sum_w", "n"):
        assert alone.table[name].equals(records.table[name]), name


def test_a_region_does_not_depend_on_the_other_regions(forecast: xr.DataArray, truth: xr.DataArray) -> None:
    alone = evaluate(forecast, truth, model="a", regions=["tropics"])
    among = evaluate(forecast, truth, model="a").select(region="tropics")
    assert alone.table.equals(among.table)


def test_the_hemispheres_and_the_rest_add_up_to_the_globe(
    truth: xr.DataArray, forecast: xr.DataArray
) -> None:
    north = np.broadcast_to((LAT >= 0)[:, None], (LAT.size, LON.size))
    masks = {"north": north, "south": ~north, "all": np.ones_like(north)}
    rows = evaluate(forecast, truth, model="a", regions=masks).to_xarray()
    total = (rows["mse_mean"] * rows["sum_w"]).sel(region=["north", "south"]).sum("region")
    np.testing.assert_allclose(total / rows["sum_w"].sel(region="all"), rows["mse_mean"].sel(region="all"))


def test_synonyms_scalar_coordinates_and_numbered_leads_are_understood(
    forecast: xr.DataArray, truth: xr.DataArray, records: Records
) -> None:
    renamed = forecast.rename(init_time="time", lead_time="step", member="number", latitude="lat")
    hours = renamed.assign_coords(step=("step", [12, 24, 36], {"units": "hours"}))
    assert evaluate(hours, truth, model="a", metrics=METRICS).table.equals(records.table)
    one = evaluate(forecast.isel(init_time=0, lead_time=1), truth, model="a", metrics=METRICS)
    expected = records.select(init_time=[START], lead_time=[24 * HOUR])
    assert one.table.equals(expected.table)
    with pytest.raises(ValueError, match="plain numbers without a unit"):
        evaluate(renamed.assign_coords(step=[12, 24, 36]), truth, model="a")


@pytest.mark.parametrize(
    ("name", "synonym"), [(name, s) for name in DIMS[:3] for s in SYNONYMS[name]], ids=lambda text: text
)
def test_every_synonym_of_the_table_is_known_to_arrays(
    name: str, synonym: str, forecast: xr.DataArray, truth: xr.DataArray, records: Records
) -> None:
    part = forecast.isel(init_time=[0], lead_time=[1]).rename({name: synonym})
    expected = records.select(init_time=[START], lead_time=[24 * HOUR])
    assert evaluate(part, truth, model="a", metrics=METRICS).table.equals(expected.table)


def test_datasets_with_a_variable_per_channel_are_the_same_forecast(
    forecast: xr.DataArray, truth: xr.DataArray, records: Records
) -> None:
    """Levels and long names are taken apart as on the command line; rows come in the order of variables."""

    def taken_apart(array: xr.DataArray) -> xr.Dataset:
        z, tp = (array.sel(channel=c, drop=True) for c in CHANNELS)
        z, tp = z.assign_attrs(units=UNITS[0]), tp.assign_attrs(units=UNITS[1])
        z = z.expand_dims(isobaricInhPa=[500])
        return xr.Dataset({"geopotential": z, "total_precipitation": tp})

    f, t = taken_apart(forecast), taken_apart(truth)
    expected = records.table
    for ours, theirs in ((f, truth), (forecast, t), (f.rename(lead_time="leadtime", longitude="lon"), t)):
        got = evaluate(ours, theirs, model="a", metrics=METRICS, truth_name="analysis")
        assert got.table.equals(expected)
        assert got.conventions == records.conventions
    one = evaluate(f["total_precipitation"].rename("tp"), t, model="a", metrics=METRICS)
    assert one.table.equals(records.select(channel="tp").table)
    valid = f.assign_coords(valid_time=f["init_time"] + f["lead_time"]).isel(init_time=0, drop=True)
    got = evaluate(valid, truth, model="a", metrics=METRICS)
    assert got.table.equals(records.select(init_time=[START]).table)


def test_lazy_histories_and_arrays_are_the_same_truth(forecast: xr.DataArray, truth: xr.DataArray) -> None:
    class Counting(States):
        reads: list[int] = []  # noqa: RUF012

        def read(self, times: np.ndarray, /) -> xr.DataArray:
            self.reads.append(len(times))
            return super().read(times)

    lazy = Counting(truth)
    assert evaluate(forecast, lazy, model="a") == evaluate(forecast, truth, model="a")
    valid_times = len(np.unique(forecast["init_time"].values[:, None] + forecast["lead_time"].values))
    assert len(lazy.reads) == valid_times + 1


def test_own_weights_pick_the_points_that_count(forecast: xr.DataArray, truth: xr.DataArray) -> None:
    weights = np.zeros((LAT.size, LON.size))
    weights[3, 5] = 2.5
    got = evaluate(forecast, truth, model="a", regions=["global"], weights=weights)
    error = forecast.isel(init_time=0, lead_time=0).mean("member", dtype=np.float64)[..., 3, 5]
    expected = error.sel(channel="z500") - truth.sel(time=START + 12 * HOUR, channel="z500")[3, 5]
    row = got.select(channel="z500", init_time=[START], lead_time=[12 * HOUR]).table
    assert row["error_mean"][0].as_py() == pytest.approx(float(expected), rel=1e-4)
    assert got.conventions.weights.startswith("custom:")


def test_missing_truth_points_are_left_out_and_counted(forecast: xr.DataArray, truth: xr.DataArray) -> None:
    holes = truth.copy(deep=True)
    holes[:, :, 0, :4] = np.nan
    hidden = forecast.copy(deep=True)
    hidden[..., 0, :4] = np.nan
    got = evaluate(hidden, holes, model="a", metrics=METRICS)
    table = got.select(region="global").table
    assert set(table["n_missing"].to_pylist()) == {4}
    assert set(table["n"].to_pylist()) == {LAT.size * LON.size - 4}
    weights = np.broadcast_to(cell_weights(LAT)[:, None], (LAT.size, LON.size)).copy()
    weights[0, :4] = 0
    expected = evaluate(forecast, truth, model="a", weights=weights).select(region="global").table
    for name in ("crps_fair", "mse_mean", "sum_w"):
        np.testing.assert_allclose(table[name].to_numpy(), expected[name].to_numpy(), rtol=1e-13)
    assert all(abs(sum(h) - 1) < 1e-12 for h in table["rank_histogram"].to_pylist())


def test_a_failed_forecast_is_refused_by_name(forecast: xr.DataArray, truth: xr.DataArray) -> None:
    broken = forecast.copy(deep=True)
    broken[1, 2, 3, 1, 4, 5] = np.nan
    with pytest.raises(
        ValueError, match=r"from 2020-02-28T00:00:00 \+ 129600 seconds is not finite in channel 'tp'"
    ):
        evaluate(broken, truth, model="a")


def test_a_valid_time_without_truth_is_an_error_or_a_row_without_scores(
    forecast: xr.DataArray, truth: xr.DataArray
) -> None:
    short = truth.isel(time=slice(0, 8))
    with pytest.raises(ValueError, match="truth has no state at 2020-03-02T00"):
        evaluate(forecast, short, model="a")
    got = evaluate(forecast, short, model="a", missing_truth="drop")
    rows = got.to_xarray().isel(model=0)
    assert rows["n"].sel(lead_time=36 * HOUR)[0, 0].values.tolist() == [312, 312, 312, 0]
    assert rows["n_missing"].sel(lead_time=36 * HOUR, region="global")[0].values.tolist() == [0, 0, 0, 312]
    dropped = scores(got)["n_dropped"].sel(model="a", channel="tp", region="nh")
    assert dropped.values.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.isel(latitude=slice(None, None, -1)), "reverse one of them"),
        (lambda f: f.isel(latitude=slice(1, None)), "shape"),
        (lambda f: f.assign_coords(longitude=LON + 7.5), "longitude of forecast and truth differ"),
        (lambda f: f.assign_coords(channel=["z500", "q700"]), r"no channel \['q700'\]"),
        (lambda f: f.assign_coords(units=("channel", ["m", "m"])), "'z500' is in 'm' in the forecast"),
        (
            lambda f: f.assign_coords(lead_time=np.full(3, 12 * HOUR).astype("timedelta64[ns]")),
            "duplicate values along lead_time",
        ),
        (lambda f: f.drop_vars("latitude"), r"forecast has no coordinate \['latitude'\]"),
        (lambda f: f.isel(init_time=slice(0, 0)), "no chunk"),
        (lambda f: f.expand_dims("scenario"), r"'z500' of forecast has dims \('scenario'"),
    ],
)
def test_what_does_not_match_is_refused(change: object, message: str, truth: xr.DataArray) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(change(make_forecast()), truth, model="a")  # type: ignore[operator]


def test_other_kinds_and_unsorted_truths_are_refused(forecast: xr.DataArray, truth: xr.DataArray) -> None:
    with pytest.raises(TypeError, match=r"forecast must be an xarray\.DataArray.*got ndarray"):
        evaluate(forecast.values, truth, model="a")
    with pytest.raises(ValueError, match="must strictly increase"):
        evaluate(forecast, truth.isel(time=[1, 0, 2]), model="a")
    with pytest.raises(TypeError, match="`times` and `read"):
        evaluate(forecast, 3, model="a")  # type: ignore[arg-type]


def test_plain_objects_are_chunks(forecast: xr.DataArray, truth: xr.DataArray, records: Records) -> None:
    class Mine:
        def __init__(self, chunk: Chunk) -> None:
            self.init_time, self.lead_time = chunk.init_time, chunk.lead_time
            self.channels, self.values = chunk.channels, chunk.values

    chunks: Iterable[ForecastChunk] = [Mine(c) for c in as_chunks(forecast)]
    calls: list[int] = []
    got = evaluate(chunks, truth, model="a", metrics=METRICS, progress=calls.append)
    assert got.table.equals(records.table)
    assert calls == list(range(1, 13))


def test_deterministic_forecasts_have_a_mae_and_no_crps(forecast: xr.DataArray, truth: xr.DataArray) -> None:
    got = evaluate(forecast.isel(member=0, drop=True), truth, model="a")
    assert got.table["crps_fair"].null_count == got.table["variance"].null_count == len(got)
    assert got.table["mae_mean"].null_count == 0
    assert set(got.table["members"].to_pylist()) == {1}


def test_tied_members_share_the_rank(truth: xr.DataArray) -> None:
    # A dry truth under 4 dry members of 5: the rank is equally likely 0..4; without ties it is certain.
    dry = xr.zeros_like(truth)
    values = xr.concat([dry.isel(time=[1])] * 4 + [dry.isel(time=[1]) + 1], "member")
    chunk = Chunk(init_time=START, lead_time=12 * HOUR, channels=CHANNELS, values=values.isel(time=0).values)
    got = evaluate([chunk], dry, model="a", regions=["global"], metrics=METRICS)
    histogram = got.rank_histogram(model="a", channel="tp", region="global", lead_time=12 * HOUR)
    np.testing.assert_allclose(histogram, [0.2] * 5 + [0], atol=1e-14)


@pytest.fixture(scope="module")
def real_members(climate_members: np.ndarray) -> np.ndarray:
    # 35 of the members lack the first time.
    return climate_members[:, 1:]


def test_real_exchangeable_members_have_flat_ranks_and_the_exact_scores(real_members: np.ndarray) -> None:
    """Every member takes its turn as truth, so the identities hold exactly and not only in expectation."""
    members, times = 40, real_members.shape[1]
    chunks, states = [], []
    for k in range(members):
        rest = np.delete(real_members, k, axis=0)
        # Times lie along longitude on two rows of equal area.
        values = np.broadcast_to(rest[:, None, None], (members - 1, 1, 2, times))
        chunks.append(
            Chunk(init_time=START, lead_time=k * HOUR, channels=("ts",), values=values, units=("K",))
        )
        states.append(np.broadcast_to(real_members[k], (1, 2, times)))
    truth = xr.DataArray(
        np.stack(states),
        {
            "time": START + HOUR * np.arange(members),
            "channel": ["ts"],
            "latitude": [45.0, -45.0],
            "longitude": np.arange(times) * 360 / times,
        },
        ("time", "channel", "latitude", "longitude"),
    )
    rows = evaluate(chunks, truth, model="cesm", regions=["global"], metrics=METRICS)
    histogram = np.mean(rows.table["rank_histogram"].to_pylist(), axis=0)
    np.testing.assert_allclose(histogram, 1 / members, rtol=1e-10)
    x = np.sort(real_members.astype(np.float64), axis=0)
    order = 2 * np.arange(1, members + 1) - members - 1
    gini = float((order @ x).mean() * 2 / (members * (members - 1)))
    variance = float(x.var(axis=0, ddof=1).mean())
    means = {
        name: float(np.mean(rows.table[name].to_numpy())) for name in ("crps_fair", "mse_mean", "variance")
    }
    assert means["crps_fair"] == pytest.approx(gini / 2, rel=2e-7)
    assert means["variance"] == pytest.approx(variance, rel=2e-7)
    assert means["mse_mean"] == pytest.approx(variance * members / (members - 1), rel=2e-7)


def one_chunk(**changes: object) -> Chunk:
    """The first chunk of the forecast, in memory."""
    chunk = next(iter(as_chunks(make_forecast())))
    return replace(chunk, **({"values": np.asarray(chunk.values)} | changes))  # type: ignore[arg-type]


def test_a_forecast_without_truth_has_rows_for_combined_channels_too(truth: xr.DataArray) -> None:
    wind = truth.assign_coords(channel=["u", "v"], units=("channel", ["m s-1", "m s-1"]))
    metrics = [wx_eval.WindRMSE(), wx_eval.JointEnergyScore(("v", "u")), wx_eval.RMSE()]
    late = START + 1000 * HOUR
    chunks = [one_chunk(channels=("u", "v"), units=None, init_time=t) for t in (START, late)]
    rows = evaluate(chunks, wind, model="a", metrics=metrics, missing_truth="drop")
    found = scores(rows)
    assert found["channel"].values.tolist() == ["u", "u+v", "v", "v+u"]
    assert (found["n_starts"] == 1).all()
    assert (found["n_dropped"] == 1).all()
    single = [replace(c, values=c.values[:1]) for c in chunks]
    assert "v+u" not in evaluate(single, wind, model="a", metrics=metrics, missing_truth="drop").channels


def test_masked_values_are_missing_values_in_memory_and_in_files(truth: xr.DataArray) -> None:
    values = np.ma.array(one_chunk().values, mask=False)
    plain = evaluate([one_chunk()], truth, model="a")
    assert evaluate([one_chunk(values=values)], truth, model="a") == plain
    values[2, 1, 3, 4] = np.ma.masked

    class Stored:
        shape, dtype = values.shape, values.dtype

        def __getitem__(self, index: object) -> np.ndarray:
            return values[index]  # type: ignore[no-any-return]

    for kept in (values, Stored()):
        with pytest.raises(ValueError, match="not finite in channel 'tp'"):
            evaluate([one_chunk(values=kept)], truth, model="a")


def test_times_of_python_and_pandas_are_times_and_plain_numbers_are_not(truth: xr.DataArray) -> None:
    expected = evaluate([one_chunk()], truth, model="a")
    start, lead = datetime(2020, 2, 27), timedelta(hours=12)
    assert evaluate([one_chunk(init_time=start, lead_time=lead)], truth, model="a") == expected
    pandas = pytest.importorskip("pandas", reason="comes with xarray")
    start, lead = pandas.Timestamp(start), pandas.Timedelta(lead)
    assert evaluate([one_chunk(init_time=start, lead_time=lead)], truth, model="a") == expected
    with pytest.raises(TypeError, match="durations timedelta64, got 12"):
        evaluate([one_chunk(lead_time=12)], truth, model="a", missing_truth="drop")
    for wrong in ({"init_time": np.datetime64("NaT", "s")}, {"lead_time": START}, {"init_time": 12 * HOUR}):
        with pytest.raises(ValueError, match="needs an init time and a lead time"):
            evaluate([one_chunk(**wrong)], truth, model="a", missing_truth="drop")


def test_an_infinite_truth_is_named_as_such(truth: xr.DataArray) -> None:
    hot = truth.copy()
    hot[1, 1, 0, 0] = np.inf
    with pytest.raises(ValueError, match="the truth at 2020-02-27T12:00:00 is infinite in channel 'tp'"):
        evaluate([one_chunk()], hot, model="a")


def test_a_region_without_weight_is_refused(truth: xr.DataArray) -> None:
    pole = np.zeros((LAT.size, LON.size), bool)
    pole[0] = True
    with pytest.raises(ValueError, match=r"regions \['pole'\] have weight 0 \(cos\)"):
        evaluate([one_chunk()], truth, model="a", weights="cos", regions={"pole": pole, "all": pole | True})


@pytest.mark.parametrize("kind", ["i2", ">i2", "f2", ">f4", ">f8", "i8"])
def test_any_type_of_numbers_gives_the_scores_of_float64(truth: xr.DataArray, kind: str) -> None:
    metrics = [*METRICS, wx_eval.QuantileScore(0.2), wx_eval.EnergyScore(), wx_eval.WIS(), wx_eval.Brier(3.0)]
    rng = np.random.default_rng(5)
    whole = truth.copy(data=rng.integers(-9, 9, truth.shape).astype("f8"))
    values = rng.integers(-9, 9, (4, 2, LAT.size, LON.size)).astype("f8")
    expected = scores(evaluate([one_chunk(values=values)], whole, model="a", metrics=metrics))
    same = one_chunk(values=values.astype(kind))
    got = scores(evaluate([same], whole.astype(kind), model="a", metrics=metrics))
    xr.testing.assert_allclose(got, expected, rtol=3e-6)


@dataclass(frozen=True)
class Sum(wx_eval.Metric):
    """Two statistics and no value."""

    name = "sum"
    statistics = (*wx_eval.RMSE().statistics, *wx_eval.Bias().statistics)


@dataclass(frozen=True)
class Only(wx_eval.Metric):
    """One statistic."""

    name = "only"
    statistics = wx_eval.Bias().statistics


def test_a_metric_is_by_default_the_mean_of_its_only_statistic(truth: xr.DataArray) -> None:
    rows = evaluate([one_chunk()], truth, model="a", metrics=[Only(), Sum(), wx_eval.Bias()])
    found = scores(rows, [Only(), wx_eval.Bias()])
    np.testing.assert_array_equal(found["only"], found["bias"])
    with pytest.raises(TypeError, match="Sum has 2 statistics: define its value"):
        scores(rows, [Sum()])


def test_many_chunks_have_the_records_of_few(truth: xr.DataArray, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = list(as_chunks(make_forecast()))
    chunks[5] = replace(chunks[5], values=chunks[5].values[:1])
    expected = evaluate(chunks, truth, model="a", metrics=METRICS)
    for size in (1, 5, 12):
        monkeypatch.setattr("wx_eval._evaluate._TABLES", size)
        evaluation = wx_eval.Evaluation(truth, model="a", metrics=METRICS)
        for chunk in chunks:
            evaluation.add(chunk)
            evaluation.records()
        assert evaluation.records() == expected
