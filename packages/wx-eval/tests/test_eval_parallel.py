"""The same bits from any number of workers and ranks, any blocks and any stream, in bounded memory."""

import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import wx_eval
from wx_eval import CRPS, RMSE, Chunk, RankHistogram, Records, Spread, _blocks, _score, evaluate
from wx_eval._evaluate import Band, Evaluation
from wx_eval._fields import as_chunks
from wx_eval._spectra import PowerSpectrum
from wx_eval._wind import WindRMSE

HOUR = np.timedelta64(1, "h")
LAT, LON = np.linspace(87.5, -87.5, 15), np.arange(0, 360, 20.0)
START = np.datetime64("2020-02-27T00", "ns")
CHANNELS = ("z500", "tp", "u850", "v850")
METRICS = (*wx_eval.STANDARD_METRICS, RankHistogram(), WindRMSE())


def fields(seed: int, *shape: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((*shape, 4, LAT.size, LON.size), np.float32)
    values[..., 0, :, :] = 5.5e4 + 300 * values[..., 0, :, :]
    values[..., 1, :, :] = np.maximum(values[..., 1, :, :], 0)
    return values


def make_truth() -> xr.DataArray:
    coords = {
        "time": START + 12 * HOUR * np.arange(10),
        "channel": list(CHANNELS),
        "latitude": LAT,
        "longitude": LON,
    }
    values = fields(0, 10)
    values[:, 1, 3:5, :7] = np.nan
    return xr.DataArray(values, coords, ("time", "channel", "latitude", "longitude"), name="analysis")


def make_forecast() -> xr.DataArray:
    coords = {
        "init_time": START + 24 * HOUR * np.arange(3),
        "lead_time": (12 * HOUR * np.arange(1, 4)).astype("timedelta64[ns]"),
        "channel": list(CHANNELS),
        "latitude": LAT,
        "longitude": LON,
    }
    dims = ("init_time", "lead_time", "member", "channel", "latitude", "longitude")
    return xr.DataArray(fields(1, 3, 3, 5), coords, dims)


@pytest.fixture(scope="module")
def truth() -> xr.DataArray:
    return make_truth()


@pytest.fixture(scope="module")
def forecast() -> xr.DataArray:
    return make_forecast()


@pytest.fixture(scope="module")
def records(forecast: xr.DataArray, truth: xr.DataArray) -> Records:
    return evaluate(forecast, truth, model="a", metrics=METRICS)


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_give_the_same_bits_in_the_same_order(
    workers: int, forecast: xr.DataArray, truth: xr.DataArray, records: Records
) -> None:
    done: list[int] = []
    got = evaluate(forecast, truth, model="a", metrics=METRICS, workers=workers, progress=done.append)
    assert got == records
    assert done == list(range(1, 10))


def test_workers_read_files_themselves_and_report_errors_in_their_own_words(
    forecast: xr.DataArray, truth: xr.DataArray, records: Records, tmp_path: Path
) -> None:
    pytest.importorskip("zarr", reason="zarr is not installed: lazily opened forecasts are not tested")
    forecast.to_dataset(name="x").to_zarr(tmp_path / "x.zarr", zarr_format=2)
    lazy = xr.open_zarr(tmp_path / "x.zarr", chunks=None, decode_timedelta=True)["x"]
    assert evaluate(lazy, truth, model="a", metrics=METRICS, workers=2) == records
    broken = forecast.copy(deep=True)
    broken[1, 2, 3, 1, 10, 5] = np.nan
    with pytest.raises(
        ValueError,
        match=r"forecast of 'a' from 2020-02-28T00:00:00 \+ 129600 seconds is not finite in .*'tp'",
    ):
        evaluate(broken, truth, model="a", workers=2)
    with pytest.raises(ValueError, match="truth has no state"):
        evaluate(forecast, truth.isel(time=slice(0, 4)), model="a", workers=2)
    short = {"model": "a", "metrics": METRICS, "missing_truth": "drop"}
    parts = [evaluate(forecast, truth.isel(time=slice(0, 4)), workers=w, **short) for w in (1, 2)]  # type: ignore[arg-type]
    assert parts[0] == parts[1]


def test_what_cannot_be_pickled_is_refused_by_name(truth: xr.DataArray, forecast: xr.DataArray) -> None:
    class Local:
        def __init__(self, values: np.ndarray) -> None:
            self._values = values
            self.shape, self.dtype = values.shape, values.dtype

        def __len__(self) -> int:
            return len(self._values)

    chunks = [replace(c, values=Local(np.asarray(c.values))) for c in as_chunks(forecast)]
    with pytest.raises(TypeError, match="needs values of a chunk that can be pickled"):
        evaluate(chunks, truth, model="a", workers=2)


class Threads:
    """Sums over threads that stand for ranks."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self._barrier = ranks, threading.Barrier(ranks, timeout=30)
        self._slots: list[np.ndarray] = [np.empty(0)] * ranks
        self.largest = 0

    def rank(self, rank: int) -> "Rank":
        return Rank(self, rank)

    def sum(self, rank: int, array: np.ndarray) -> np.ndarray:
        self._slots[rank] = array
        self.largest = max(self.largest, array.size)
        self._barrier.wait()
        out = np.sum(self._slots[::-1], axis=0)
        self._barrier.wait()
        return np.asarray(out)

    def run(self, work: Callable[["Rank"], object]) -> list[object]:
        """What each rank returns or raises."""
        out: list[object] = [None] * self.ranks

        def one(rank: int) -> None:
            try:
                out[rank] = work(self.rank(rank))
            except Exception as error:
                out[rank] = error

        threads = [threading.Thread(target=one, args=(r,)) for r in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return out


class Rank:
    def __init__(self, group: Threads, rank: int) -> None:
        self._group, self.rank = group, rank

    def sum(self, array: np.ndarray, /) -> np.ndarray:
        return self._group.sum(self.rank, array)


def in_bands(cuts: list[int], total: int, work: Callable[[slice, Band], object]) -> tuple[list[object], int]:
    edges = [0, *cuts, total]
    group = Threads(len(edges) - 1)

    def one(rank: Rank) -> object:
        rows = slice(edges[rank.rank], edges[rank.rank + 1])
        return work(rows, Band(first=rows.start, total=total, comm=rank))

    return group.run(one), group.largest


@pytest.mark.parametrize("cuts", [[7], [4, 8, 12], [1, 14]])
def test_ranks_that_hold_bands_of_rows_all_get_the_records_of_one_process(
    cuts: list[int], forecast: xr.DataArray, truth: xr.DataArray, records: Records
) -> None:
    def work(rows: slice, band: Band) -> Records:
        part, state = forecast.isel(latitude=rows), truth.isel(latitude=rows)
        return evaluate(part, state, model="a", metrics=METRICS, band=band)

    found, largest = in_bands(cuts, LAT.size, work)
    assert all(r == records for r in found), found
    # Rows times regions times numbers, whatever the length of a row and the number of members.
    numbers = sum(6 if s.vector else 1 for s in dict.fromkeys(s for m in METRICS for s in m.statistics))
    assert largest <= LAT.size * len(records.regions) * len(CHANNELS) * (2 * numbers + 3) + numbers


def test_ranks_that_hold_runs_of_a_mesh_agree_too() -> None:
    rng = np.random.default_rng(5)
    points = 2500
    where = {
        "latitude": ("point", rng.uniform(-90, 90, points)),
        "longitude": ("point", rng.uniform(0, 360, points)),
    }
    coords = {"time": [START], "channel": ["z"], **where}
    truth = xr.DataArray(rng.standard_normal((1, 1, points)), coords, ("time", "channel", "point"))
    values = rng.standard_normal((4, 1, points))

    def work(part: slice, band: Band | None) -> Records:
        chunk = Chunk(init_time=START, lead_time=0 * HOUR, channels=("z",), values=values[..., part])
        return evaluate([chunk], truth.isel(point=part), model="a", weights=np.ones(points), band=band)

    found, _ = in_bands([1024, 2048], points, work)
    assert all(r == work(slice(None), None) for r in found), found
    refused, _ = in_bands([1000], points, work)
    assert all("multiple of 1024" in str(e) for e in refused), refused


def test_all_ranks_fail_where_one_does_and_whole_fields_are_refused(
    forecast: xr.DataArray, truth: xr.DataArray
) -> None:
    broken = forecast.copy(deep=True)
    broken[0, 1, 2, 0, 3, 3] = np.inf

    def work(rows: slice, band: Band) -> Records:
        return evaluate(broken.isel(latitude=rows), truth.isel(latitude=rows), model="a", band=band)

    (first, second), _ = in_bands([8], LAT.size, work)
    assert isinstance(first, ValueError)
    assert "not finite in channel 'z500'" in str(first)
    assert isinstance(second, RuntimeError)

    def spectra(rows: slice, band: Band) -> Records:
        metrics = (PowerSpectrum(),)
        parts = forecast.isel(latitude=rows), truth.isel(latitude=rows)
        return evaluate(*parts, model="a", metrics=metrics, band=band)

    refused, _ = in_bands([8], LAT.size, spectra)
    assert all("need whole fields" in str(e) for e in refused), refused

    def gap(rows: slice, band: Band) -> Records:
        short = slice(rows.start, min(rows.stop, LAT.size - 1))
        return evaluate(forecast.isel(latitude=short), truth.isel(latitude=short), model="a", band=band)

    refused, _ = in_bands([8], LAT.size, gap)
    assert all("cover each of 15 rows once" in str(e) for e in refused), refused


class Stored:
    """Values in pieces, which count how often each is opened."""

    def __init__(self, values: np.ndarray, chunks: tuple[int, ...]) -> None:
        self._values, self.chunks = values, chunks
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim
        self.opened: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: tuple[slice | list[int], ...]) -> np.ndarray:
        _, channels, rows = index[:3]
        picked = np.arange(self.shape[1])[channels]
        assert isinstance(rows, slice)
        for c in sorted({int(c) // self.chunks[1] for c in picked}):
            for r in range(rows.start // self.chunks[2], -(-rows.stop // self.chunks[2])):
                self.opened[c, r] = self.opened.get((c, r), 0) + 1
        return self._values[index]


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 4),
    rows=st.integers(1, 15),
    budget=st.sampled_from([1, 1 << 10, 1 << 13, 1 << 15, 1 << 30]),
    points=st.sampled_from([1, 40, 100, 1 << 16]),
)
def test_blocks_of_any_size_give_the_same_bits_and_open_each_piece_once(
    channels: int, rows: int, budget: int, points: int
) -> None:
    forecast, truth = make_forecast().isel(init_time=[0], lead_time=[1]), make_truth()
    metrics = METRICS[:-1]
    expected = evaluate(forecast, truth, model="a", metrics=metrics)
    [chunk] = as_chunks(forecast)
    stored = Stored(np.asarray(chunk.values), (5, channels, rows, LON.size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_blocks, "_READ_BYTES", budget)
        patch.setattr(_score, "_GROUP_POINTS", points)
        got = evaluate([replace(chunk, values=stored)], truth, model="a", metrics=metrics)
    assert got == expected
    assert set(stored.opened.values()) == {1}


def test_dask_arrays_are_read_in_blocks(
    forecast: xr.DataArray, truth: xr.DataArray, records: Records
) -> None:
    pytest.importorskip("dask", reason="dask is not installed: its arrays are not tested")
    lazy = forecast.chunk(init_time=1, lead_time=1, latitude=4)
    assert evaluate(lazy, truth, model="a", metrics=METRICS) == records


def test_chunks_of_tensors_are_scored_where_they_lie(
    forecast: xr.DataArray, truth: xr.DataArray, records: Records
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: chunks of tensors are not tested")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chunks = [
        replace(c, values=torch.tensor(np.asarray(c.values), device=device)) for c in as_chunks(forecast)
    ]
    got = evaluate(chunks, truth, model="a", metrics=METRICS).to_xarray()
    xr.testing.assert_allclose(got, records.to_xarray(), rtol=1e-6, atol=1e-6)


def test_a_rollout_that_calls_back_gives_the_same_records(
    forecast: xr.DataArray, truth: xr.DataArray, records: Records
) -> None:
    evaluation = Evaluation(truth, model="a", metrics=METRICS)
    with pytest.raises(ValueError, match="no chunk"):
        evaluation.records()
    buffer = np.empty(forecast.shape[2:], np.float32)
    for chunk in as_chunks(forecast):
        buffer[:] = np.asarray(chunk.values)
        evaluation.add(replace(chunk, values=buffer))
        buffer[:] = np.nan
    assert evaluation.records() == records


def test_a_stream_of_chunks_leaves_only_rows_of_sums_behind() -> None:
    lat, lon = np.linspace(90, -90, 61), np.arange(0, 360, 3.0)
    rng = np.random.default_rng(6)
    steps, members = 24, 40
    coords = {"time": START + HOUR * np.arange(steps), "channel": ["z"], "latitude": lat, "longitude": lon}
    state = rng.standard_normal((steps, 1, lat.size, lon.size), np.float32)
    truth = xr.DataArray(state, coords, ("time", "channel", "latitude", "longitude"))
    held: list[int] = []

    def rollout() -> Iterator[Chunk]:
        for step in range(steps):
            values = rng.standard_normal((members, 1, lat.size, lon.size), np.float32)
            held.append(tracemalloc.get_traced_memory()[0])
            yield Chunk(init_time=START, lead_time=step * HOUR, channels=("z",), values=values)

    size = members * lat.size * lon.size * 4
    tracemalloc.start()
    try:
        evaluate(rollout(), truth, model="a", metrics=(CRPS(), Spread(), RMSE(), RankHistogram()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The names of the loop keep the last chunk while the next one is made. Truth states are kept too.
    assert held[-1] - held[2] < 0.3 * size + state.nbytes
    assert peak < 2 * size + 16e6 + state.nbytes


PEAK = """
import sys
from pathlib import Path
import numpy as np
import xarray as xr
import wx_eval
from wx_eval import CRPS, RMSE, RankHistogram, _blocks
_blocks._READ_BYTES = 4 << 20
data = xr.open_zarr(sys.argv[1], chunks=None, decode_timedelta=True)
forecast, truth = data["x"], data["y"].load()
run = lambda n: wx_eval.evaluate(forecast.isel(member=slice(0, n)), truth, model="a", regions=["global"],
                                 metrics=(CRPS(), RMSE(), RankHistogram()))
run(2)
def memory(entry):
    return int(Path("/proc/self/status").read_text().split(entry + ":")[1].split()[0]) * 1024
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
run(int(sys.argv[2]))
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc: Linux only")
def test_the_peak_of_memory_does_not_grow_with_members_times_field(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed: reading by blocks is not tested")
    lat, lon = np.linspace(90, -90, 241), np.arange(0, 360, 0.75)
    members, rng = 160, np.random.default_rng(7)
    space = {"latitude": lat, "longitude": lon}
    noise = np.round(rng.standard_normal((lat.size, lon.size)), 1).astype(np.float32)
    y = xr.DataArray(
        noise[None, None], {"time": [START], "channel": ["z"], **space}, ("time", "channel", *space)
    )
    dims = ("init_time", "lead_time", "member", "channel", *space)
    coords = {"init_time": [START], "lead_time": [np.timedelta64(0, "ns")], "channel": ["z"], **space}
    values = np.broadcast_to(noise, (1, 1, members, 1, *noise.shape))
    encoding = {"x": {"chunks": (1, 1, 10, 1, 8, lon.size)}}
    xr.Dataset({"x": xr.DataArray(values, coords, dims), "y": y}).to_zarr(
        tmp_path / "x.zarr", encoding=encoding, zarr_format=2
    )
    assert zarr.__version__
    peaks = []
    for count in (40, members):
        out = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path / "x.zarr"), str(count)],
            capture_output=True,
            text=True,
            check=True,
            env={"OMP_NUM_THREADS": "1", "PATH": ""},
        )
        peaks.append(int(out.stdout))
    field = noise.nbytes * members
    assert field > 70e6
    assert max(peaks) < 0.5 * field, peaks
    assert peaks[1] - peaks[0] < 0.2 * (field * 3 / 4), peaks
