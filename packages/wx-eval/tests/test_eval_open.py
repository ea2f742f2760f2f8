"""Files to channels, times and members; alignment and regridding."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_eval import Records, _blocks, _open, _score, evaluate
from wx_eval._dims import SYNONYMS
from wx_eval._files import _from_common
from wx_eval._kept import Kept
from wx_eval._open import Forecast, Source, Truth, open_source
from wx_eval._regrid import Regridder, global_axes

HOUR = np.timedelta64(1, "h")
DAY = np.timedelta64(24, "h")
START = np.datetime64("2020-02-27T00", "ns")
LAT, LON = np.linspace(90, -90, 7), np.arange(0, 360, 45.0)


def fields(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, LAT.size, LON.size)).astype(np.float32)


def ensemble(members: int = 3) -> xr.Dataset:
    """Geopotential at two levels and 2 m temperature: (2 inits, 3 leads, M)."""
    coords: dict[str, Any] = {
        "init_time": START + DAY * np.arange(2),
        "lead_time": (12 * HOUR * np.arange(1, 4)).astype("timedelta64[ns]"),
        "member": np.arange(members),
        "latitude": LAT,
        "longitude": LON,
    }
    dims = ("init_time", "lead_time", "member")
    data = {
        "geopotential": (
            (*dims, "level", "latitude", "longitude"),
            fields(2, 3, members, 2),
            {"units": "m2 s-2"},
        ),
        "2m_temperature": (
            (*dims, "latitude", "longitude"),
            fields(2, 3, members, seed=1),
            {"units": "K"},
        ),
    }
    return xr.Dataset(data, {**coords, "level": [500, 850]})


def read(source: Source, channel: str, init: int, lead: int) -> np.ndarray:
    key = int((START + init * DAY).astype("datetime64[s]").astype(int)), 43200 * (lead + 1)
    return source.read(channel, key)


def test_levels_and_long_names_become_channels() -> None:
    source = open_source(ensemble())
    assert source.channels == ("z500", "z850", "t2m")
    assert source.units == {"z500": "m2 s-2", "z850": "m2 s-2", "t2m": "K"}
    np.testing.assert_array_equal(read(source, "z850", 1, 2), ensemble()["geopotential"].values[1, 2, :, 1])


@pytest.mark.parametrize(
    "names",
    [
        {"init_time": "time", "lead_time": "step", "member": "number", "level": "isobaricInhPa"},
        {
            "init_time": "forecast_reference_time",
            "lead_time": "prediction_timedelta",
            "member": "realization",
        },
        {"latitude": "lat", "longitude": "lon", "member": "ensemble", "level": "pressure_level"},
        {"member": "sample", "level": "plev"},
    ],
)
def test_synonyms_of_dims(names: dict[str, str]) -> None:
    plain, renamed = open_source(ensemble()), open_source(ensemble().rename(names))
    assert renamed.channels == plain.channels
    assert renamed.keys == plain.keys
    np.testing.assert_array_equal(read(renamed, "z500", 0, 1), read(plain, "z500", 0, 1))


@pytest.mark.parametrize(
    ("name", "synonym"), [(name, s) for name, known in SYNONYMS.items() for s in known], ids=lambda text: text
)
def test_every_synonym_of_the_table_is_known_and_documented(name: str, synonym: str) -> None:
    given = ensemble().assign_coords(valid_time=ensemble()["init_time"] + ensemble()["lead_time"])
    if name == "valid_time":
        given = given.isel(init_time=[0]).squeeze("init_time", drop=True)
    plain, renamed = open_source(given), open_source(given.rename({name: synonym}))
    assert renamed.keys == plain.keys
    assert renamed.channels == plain.channels
    np.testing.assert_array_equal(read(renamed, "z850", 0, 1), read(plain, "z850", 0, 1))
    page = Path(__file__).resolve().parents[3] / "docs/wx-eval-conventions.md"
    if page.exists():
        row = next(line for line in page.read_text().splitlines() if line.startswith(f"| `{name}` |"))
        assert f"`{synonym}`" in row


# xarray before 2025.4 reads the store to which it appends.
@pytest.mark.filterwarnings("ignore:.*decode_timedelta will default to False")
def test_the_order_of_variables_in_a_store_does_not_matter(tmp_path: Path) -> None:
    """A folder lists its entries in any order; the variables of a store come by name."""
    pytest.importorskip("zarr", reason="zarr is not installed: stores are not tested")
    whole = ensemble().assign({name: ensemble()["2m_temperature"] for name in ("msl", "a10", "u9", "x", "b")})
    found = set()
    for k, order in enumerate((list(whole.data_vars), list(whole.data_vars)[::-1])):
        for consolidated in (True, False):
            path = tmp_path / f"{k}{consolidated}.zarr"
            whole[order[:1]].to_zarr(path, zarr_format=2, consolidated=consolidated)
            for name in order[1:]:
                whole[[name]].to_zarr(path, mode="a", consolidated=consolidated)
            found.add(open_source(path).channels)
    assert found == {("t2m", "a10", "b", "z500", "z850", "msl", "u9", "x")}


def test_pressure_in_pascal_and_any_order_of_dims() -> None:
    dataset = ensemble().transpose("longitude", "level", "member", "latitude", ...)
    dataset = dataset.assign_coords(level=("level", [50000.0, 85000.0], {"units": "Pa"}))
    np.testing.assert_array_equal(
        read(open_source(dataset), "z500", 1, 0), ensemble()["geopotential"].values[1, 0, :, 0]
    )


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
@pytest.mark.parametrize("split", ["init_time", "lead_time", "member", "variable"])
def test_files_may_split_a_forecast_along_anything(tmp_path: Path, split: str, suffix: str) -> None:
    pytest.importorskip("h5netcdf" if suffix == "nc" else "zarr")
    whole = ensemble()
    if split == "variable":
        pieces = [whole[[v]] for v in whole.data_vars]
    else:
        pieces = [whole.isel({split: [k]}) for k in range(whole.sizes[split])]
    for k, piece in enumerate(reversed(pieces)):
        if suffix == "nc":
            piece.to_netcdf(tmp_path / f"part{k}.nc", engine="h5netcdf")
        else:
            piece.to_zarr(tmp_path / f"part{k}.zarr", consolidated=False)
    source, plain = open_source(str(tmp_path / f"part*.{suffix}")), open_source(whole)
    assert set(source.channels) == set(plain.channels)
    assert source.keys == plain.keys
    for channel in plain.channels:
        for init in range(2):
            for lead in range(3):
                np.testing.assert_array_equal(
                    read(source, channel, init, lead), read(plain, channel, init, lead)
                )


def test_a_member_in_two_files_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    for name in ("a", "b"):
        ensemble().to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
    source = open_source([tmp_path / "a.nc", tmp_path / "b.nc"])
    with pytest.raises(ValueError, match=r"holds 'z500' .* twice \(members \[0, 1, 2\]\)"):
        read(source, "z500", 0, 0)


def test_netcdf_lead_times_in_hours_and_fields_in_hours(tmp_path: Path) -> None:
    """A lead time is decoded by its unit; a field whose unit is a time stays a number."""
    pytest.importorskip("h5netcdf")
    dataset = ensemble().assign_coords(lead_time=("lead_time", [12, 24, 36], {"units": "hours"}))
    dataset["2m_temperature"].attrs["units"] = "hours"
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    source = open_source(tmp_path / "a.nc")
    np.testing.assert_array_equal(source.lead_times, np.array([12, 24, 36]) * HOUR)
    np.testing.assert_array_equal(read(source, "t2m", 0, 0), read(open_source(ensemble()), "t2m", 0, 0))
    with pytest.raises(ValueError, match="plain numbers without a unit"):
        open_source(ensemble().assign_coords(lead_time=[12, 24, 36]))


def test_cf_forecasts_along_their_valid_time() -> None:
    one = ensemble().isel(init_time=1, drop=True)
    valid = START + DAY + one["lead_time"].values
    cf = one.rename(lead_time="time").assign_coords(time=valid)
    by_reference = cf.assign_coords(forecast_reference_time=START + DAY)
    by_period = cf.assign_coords(forecast_period=("time", [12.0, 24.0, 36.0], {"units": "hours"}))
    for dataset in (by_reference, by_period):
        source = open_source(dataset)
        assert source.keys == [k for k in open_source(ensemble()).keys if k[0] == source.keys[0][0]]
        np.testing.assert_array_equal(read(source, "z500", 1, 2), read(open_source(ensemble()), "z500", 1, 2))
    with pytest.raises(ValueError, match=r'no lead time.*lead_time = "24h"'):
        open_source(cf)
    fixed = open_source(cf, lead_time=12 * HOUR)
    np.testing.assert_array_equal(fixed.init_times, (valid - 12 * HOUR).astype("datetime64[s]"))


def test_a_truth_of_forecast_files_counts_by_valid_time() -> None:
    """Bases every 12 h with steps 0 and 6 h are one series; steps that overlap are refused."""
    whole = ensemble(1).isel(member=0, drop=True)
    series = whole.assign_coords(
        init_time=START + 12 * HOUR * np.arange(2),
        lead_time=(6 * HOUR * np.array([0, 1, 2])).astype("timedelta64[ns]"),
    )
    truth = Truth(open_source(series.isel(lead_time=[0, 1]), "truth", truth=True))
    np.testing.assert_array_equal(truth.times, (START + 6 * HOUR * np.arange(4)).astype("datetime64[s]"))
    got = truth.read(truth.times[[3]])
    np.testing.assert_array_equal(got.sel(channel="t2m")[0], whole["2m_temperature"][1, 1])
    with pytest.raises(ValueError, match=r"with lead times .*choose one by leads"):
        Truth(open_source(series, "truth", truth=True))
    only = open_source(series, "truth", truth=True, lead_times=[0 * HOUR])
    assert Truth(only).times.size == 2


def test_times_without_leap_days() -> None:
    """Seconds since 1990 in years of 365 days against counting the days one by one."""
    days = np.arange("1990-01-01", "1997-01-01", dtype="datetime64[D]")
    common = days[[str(d)[5:] != "02-29" for d in days]]
    got = _from_common(1990, 86400 * np.arange(common.size))
    np.testing.assert_array_equal(got.astype("datetime64[D]"), common)


@pytest.mark.parametrize("origin", ["1992-03-01", "1992-02-28", "1991-07-09 12:00:00", "1850-01-01"])
def test_a_file_of_a_calendar_without_leap_days(tmp_path: Path, origin: str) -> None:
    pytest.importorskip("h5netcdf")
    first = np.datetime64(origin.replace(" ", "T"), "h")
    all_hours = np.arange(first, np.datetime64("1997-01-01", "h"), np.timedelta64(24, "h"))
    common = all_hours[[str(d)[5:10] != "02-29" for d in all_hours]]
    dataset = xr.Dataset(
        {"t": (("time", "lat", "lon"), np.zeros((3, 2, 2)), {"units": "K"})},
        {"time": [0.0, 1.0, common.size - 1.0], "lat": [0.0, 1.0], "lon": [0.0, 1.0]},
    )
    dataset["time"].attrs = {"units": f"days since {origin}", "calendar": "noleap"}
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    times = Truth(open_source(tmp_path / "a.nc", "truth", truth=True)).times
    np.testing.assert_array_equal(times, common[[0, 1, -1]].astype("datetime64[s]"))


def test_selection_renaming_and_refusals() -> None:
    source = open_source(ensemble(), rename={"t2m": "temperature"}, members=[2, 0], channels=["temperature"])
    expected = ensemble()["2m_temperature"].values[1, 0, [0, 2]]
    np.testing.assert_array_equal(read(source, "temperature", 1, 0), expected)
    with pytest.raises(ValueError, match=r"no member \[7\]"):
        open_source(ensemble(), members=[7])
    with pytest.raises(ValueError, match=r"no channel of \['q700'\]|no channel \['q700'\]"):
        open_source(ensemble(), channels=["q700"])
    with pytest.raises(FileNotFoundError, match="no file"):
        open_source("nowhere/*.nc")
    with pytest.raises(ValueError, match="no coordinate"):
        open_source(ensemble().drop_vars("latitude"))


def test_chunks_are_lazy_and_score_like_an_array() -> None:
    """Records from files equal those from one array in memory, bit for bit."""
    whole = ensemble()
    truth = xr.Dataset(
        {
            "geopotential": (("time", "level", "latitude", "longitude"), fields(6, 2, seed=3)),
            "2m_temperature": (("time", "latitude", "longitude"), fields(6, seed=4)),
        },
        {"time": START + 12 * HOUR * np.arange(6), "level": [500, 850], "latitude": LAT, "longitude": LON},
    )
    source = open_source(whole)
    states = Truth(open_source(truth, "truth", truth=True), source.units)
    got = evaluate(Forecast(source).chunks(source.init_times), states, model="a")
    array = xr.concat(
        [whole["geopotential"].sel(level=v, drop=True) for v in (500, 850)] + [whole["2m_temperature"]],
        xr.Variable("channel", ["z500", "z850", "t2m"]),
        coords="minimal",
        compat="override",
    )
    array.attrs = {}
    expected = evaluate(array, states.read(states.times).drop_vars("units"), model="a")
    assert got.table.equals(expected.table)
    chunk = next(Forecast(source).chunks(source.init_times))
    assert chunk.values.shape == (3, 3, 7, 8)
    np.testing.assert_array_equal(chunk.values[:, [2, 0], 2:4], np.asarray(chunk.values)[:, [2, 0], 2:4])


def test_chunks_tell_how_their_values_are_stored(tmp_path: Path) -> None:
    pytest.importorskip("zarr", reason="zarr is not installed: stored pieces are not tested")
    pieces = {"init_time": 1, "lead_time": 1, "member": 3, "lat": 2, "longitude": 8}
    stored = ensemble().rename(latitude="lat")
    for name, array in stored.items():
        stored[name].encoding["chunks"] = tuple(pieces.get(str(d), 2) for d in array.dims)
    stored.to_zarr(tmp_path / "ens.zarr", consolidated=False)
    source = open_source(tmp_path / "ens.zarr")
    chunk = next(Forecast(source).chunks(source.init_times))
    assert chunk.values.chunks == (0, (1, 2), 2, 0)  # type: ignore[attr-defined]


FIELD = {"init_time": 1, "lead_time": 1, "member": 1, "level": 1, "time": 1}
LAYOUTS: dict[str, dict[str, int]] = {
    "one field": {},
    "channels together": {"level": 3},
    "some channels together": {"level": 2},
    "members together": {"member": 4},
    "lead times together": {"lead_time": 3},
    "starts together": {"init_time": 2},
    "rows apart": {"latitude": 2},
    "all of a start together": {"lead_time": 3, "member": 4, "level": 3},
    "states together": {"time": 6, "level": 3},
}


def counted(dataset: xr.Dataset, pieces: dict[str, int]) -> tuple[xr.Dataset, Counter[str]]:
    """A dataset in a store of such pieces, and how often each of them was read."""
    storage = pytest.importorskip("zarr.storage", reason="zarr is not installed: reads are not counted")
    reads: Counter[str] = Counter()

    class Counting(storage.MemoryStore):  # type: ignore[misc, name-defined]
        async def get(self, key: str, *arguments: Any, **named: Any) -> Any:
            if key.partition("/")[2].replace(".", "").isdecimal():
                reads[key] += 1
            return await super().get(key, *arguments, **named)

    store = Counting()
    chunks = {
        name: tuple({**FIELD, **pieces}.get(str(d), n) for d, n in array.sizes.items())
        for name, array in dataset.items()
    }
    encoding = {name: {"chunks": chunk, "compressors": None} for name, chunk in chunks.items()}
    dataset.to_zarr(store, zarr_format=2, consolidated=False, encoding=encoding)
    reads.clear()
    opened = xr.open_zarr(store, chunks=None, consolidated=False, decode_timedelta=True)
    reads.clear()
    return opened, reads


def stacked() -> tuple[xr.Dataset, xr.Dataset]:
    """Three levels and a surface field: (2 inits, 3 leads, 4 members) and 6 states."""
    surface = ensemble(4)["2m_temperature"].drop_attrs()
    level = {"level": [500, 700, 850]}
    dims, space = ("init_time", "lead_time", "member", "level"), ("latitude", "longitude")
    levels = xr.DataArray(fields(2, 3, 4, 3), {**surface.coords, **level}, (*dims, *space))
    axes = {"time": START + 12 * HOUR * np.arange(6), "latitude": LAT, "longitude": LON}
    states = xr.DataArray(fields(6, 3, seed=3), {**axes, **level}, ("time", "level", *space))
    ground = xr.DataArray(fields(6, seed=4), axes, ("time", *space))
    return (
        xr.Dataset({"geopotential": levels, "2m_temperature": surface}),
        xr.Dataset({"geopotential": states, "2m_temperature": ground}),
    )


def scored(forecast: xr.Dataset, truth: xr.Dataset, **choices: Any) -> Records:
    source = open_source(forecast, **choices)
    states = open_source(truth, "truth", truth=True, channels=source.channels)
    return evaluate(Forecast(source).chunks(source.init_times), Truth(states), model="a")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_piece_of_a_store_is_read_once(layout: str) -> None:
    forecast, truth = stacked()
    stored, reads = counted(forecast, LAYOUTS[layout])
    states, other = counted(truth, LAYOUTS[layout])
    reads.clear()
    other.clear()
    got = scored(stored, states)
    assert got.table.equals(scored(forecast, truth).table)
    assert set(reads.values()) == {1}
    # The valid times of both starts, the first of which is also read for its axes.
    assert set(other.values()) == {1}
    sizes = {**FIELD, "latitude": LAT.size, **LAYOUTS[layout]}
    ends = {"init_time": 2, "lead_time": 3, "member": 4, "level": 3, "latitude": LAT.size}
    counts = {dim: -(-n // sizes[dim]) for dim, n in ends.items()}
    surface = int(np.prod([n for dim, n in counts.items() if dim != "level"]))
    assert len(reads) == surface * (counts["level"] + 1)


def test_chosen_channels_in_another_order_share_their_piece() -> None:
    forecast, truth = stacked()
    stored, reads = counted(forecast, LAYOUTS["channels together"])
    names = ["z850", "t2m", "z500"]
    got = scored(stored, truth, channels=names, members=[3, 1])
    assert got.table.equals(scored(forecast, truth, channels=names, members=[3, 1]).table)
    assert max(reads.values()) == 1
    reads.clear()
    chunk = next(Forecast(open_source(stored, channels=names)).chunks([START]))
    assert chunk.values.chunks[1] == (3,)  # type: ignore[attr-defined]
    for c in range(3):
        expected = np.asarray(chunk.values)[:, c]
        np.testing.assert_array_equal(chunk.values[:, c], expected)
    assert max(reads.values()) <= 2 + 3


def test_what_is_read_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two of three lead times: each piece is read twice; room for none: for each lead time."""
    forecast, truth = stacked()
    state = 4 * 4 * 4 * LAT.size * LON.size
    stored, reads = counted(forecast, LAYOUTS["lead times together"])
    expected = scored(forecast, truth)
    for limit, times in ((2 * state, 2), (state - 1, 3), (3 * state, 1)):
        monkeypatch.setattr(_open, "READ_AHEAD_BYTES", limit)
        reads.clear()
        source = open_source(stored)
        records = evaluate(Forecast(source).chunks(source.init_times), Truth(_truth_source(truth)), model="a")
        assert records.table.equals(expected.table)
        assert set(reads.values()) == {times}
        held = source._kept._arrays.values()
        assert sum(array.nbytes for array in held) <= limit
        assert not pickle.loads(pickle.dumps(source._kept))._arrays


def _truth_source(truth: xr.Dataset) -> Source:
    return open_source(truth, "truth", truth=True)


def test_channels_of_one_piece_are_read_apart_where_together_they_are_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Room for two of the three levels: their pieces are read twice, and the scores are the same."""
    forecast, truth = stacked()
    channel = 4 * 4 * LAT.size * LON.size
    stored, reads = counted(forecast, LAYOUTS["channels together"])
    expected = scored(forecast, truth)
    monkeypatch.setattr(_open, "READ_AHEAD_BYTES", 0)
    monkeypatch.setattr(_blocks, "_READ_BYTES", channel)
    for limit, times in ((3 * channel, 1), (2 * channel, 2), (channel, 3)):
        monkeypatch.setattr(_blocks, "_PIECE_BYTES", limit)
        monkeypatch.setattr(_score, "_GROUP_POINTS", LAT.size * LON.size)
        reads.clear()
        assert scored(stored, truth).table.equals(expected.table)
        assert max(reads.values()) == times


def test_what_is_kept_is_what_was_used_last() -> None:
    kept = Kept(8 * 3)
    for name in ("a", "b", "a", "c", "d"):
        np.testing.assert_array_equal(
            kept.get(name, lambda name=name: np.full(1, ord(name), float)), ord(name)
        )
    made: list[str] = []
    for name in ("a", "c", "d", "b"):
        kept.get(name, lambda name=name: made.append(name) or np.zeros(1))  # type: ignore[func-returns-value]
    assert made == ["b"]
    large = kept.get("large", lambda: np.zeros(100))
    assert kept.get("large", lambda: np.ones(1)) is large


def test_dims_in_another_order_are_read_as_they_lie() -> None:
    """Longitude before latitude, as in WeatherBench 2."""
    forecast, truth = stacked()
    turned, reads = counted(
        forecast.transpose("longitude", "latitude", "level", ...), {"member": 4, "level": 3}
    )
    assert scored(turned, truth).table.equals(scored(forecast, truth).table)
    assert set(reads.values()) == {1}


@pytest.mark.parametrize("longitudes", [LON, (LON + 180) % 360 - 180])
@pytest.mark.parametrize("rows", [1, -1])
def test_alignment_moves_every_value_to_its_place(rows: int, longitudes: np.ndarray) -> None:
    order = np.argsort(longitudes)
    moved = (
        ensemble()
        .assign_coords(longitude=longitudes)
        .isel(longitude=order)
        .isel(latitude=slice(None, None, rows))
    )
    source, target = open_source(moved), open_source(ensemble())
    assert source.same_grid(target) == (rows == 1 and (longitudes == LON).all())
    aligned = source.aligned(target)
    assert aligned.same_grid(target)
    np.testing.assert_array_equal(read(aligned, "z850", 1, 1), read(target, "z850", 1, 1))


def test_alignment_refuses_other_points() -> None:
    other = ensemble().assign_coords(latitude=LAT * 0.9)
    with pytest.raises(ValueError, match=r"different grids.*--regrid"):
        open_source(other).aligned(open_source(ensemble()))


def test_a_regridded_source_reads_regridded_fields() -> None:
    source = open_source(ensemble())
    axes = global_axes(5, 6)
    moved = ensemble().assign_coords(longitude=(LON + 180) % 360 - 180).sortby("longitude")
    expected = Regridder((LAT, LON), axes, "conservative")(read(source, "z500", 0, 0))
    np.testing.assert_array_equal(read(source.regridded(axes, "conservative"), "z500", 0, 0), expected)
    chunk = next(Forecast(source.regridded(axes, "bilinear")).chunks(source.init_times))
    whole = np.asarray(chunk.values)
    assert chunk.values.shape == whole.shape == (3, 3, 5, 6)
    np.testing.assert_array_equal(chunk.values[:, 1:3, 1:4], whole[:, 1:3, 1:4])
    turned = ensemble().roll(longitude=4, roll_coords=False)
    turned = turned.assign_coords(longitude=moved["longitude"])
    np.testing.assert_allclose(
        read(open_source(turned).regridded(axes, "conservative"), "z500", 0, 0), expected, atol=1e-12
    )
