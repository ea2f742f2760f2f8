"""The Protocols of wx-eval: who satisfies them, what must not, and how each implementation behaves.

mypy and pyright check the annotated factories below and refuse the `refused_*` functions; the tests run every
factory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray

import wx_data
import wx_eval

CHANNELS = ("t2m", "msl")
GRID = wx_data.Grid.regular(5, 8)
INIT, LEAD = np.datetime64("2020-01-01", "ns"), np.timedelta64(6, "h")
TIMES = INIT + LEAD * np.arange(4)
MEMBERS = 3


def fields(*leading: int, seed: int = 0) -> NDArray[np.float32]:
    """Plausible fields, all values different."""
    noise = np.random.default_rng(seed).standard_normal((*leading, len(CHANNELS), *GRID.shape))
    base = np.array([280.0, 101_000.0])[:, None, None]
    return np.asarray(base * (1 + 0.01 * noise), np.float32)


# History


def truth() -> xr.DataArray:
    return xr.DataArray(
        fields(len(TIMES)),
        dims=("time", "channel", "latitude", "longitude"),
        coords={
            "time": TIMES,
            "channel": list(CHANNELS),
            "units": ("channel", ["K", "Pa"]),
            "latitude": GRID.latitude,
            "longitude": GRID.longitude,
        },
    )


class InMemory:
    """What a third party writes."""

    times: NDArray[np.datetime64] = TIMES

    def read(self, times: NDArray[np.datetime64], /) -> xr.DataArray:
        return truth().sel(time=times)


def in_memory(_: Path) -> wx_eval.History:
    return InMemory()


def store(folder: Path) -> wx_eval.History:
    wx_data.convert(wx_data.open_source(truth()), folder / "store")
    return wx_data.Store(folder / "store")


def dataset_source(_: Path) -> wx_eval.History:
    return wx_data.open_source(truth())


class HistoryThatNeedsChannels(Protocol):
    @property
    def times(self) -> NDArray[np.datetime64]: ...
    def read(self, times: NDArray[np.datetime64], channels: list[str], /) -> xr.DataArray: ...


def refused_history(history: HistoryThatNeedsChannels) -> wx_eval.History:
    return history  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


HISTORIES = pytest.mark.parametrize("make", [in_memory, store, dataset_source])
MakeHistory = Callable[[Path], wx_eval.History]


@HISTORIES
def test_history_reads_exact_times_in_order(make: MakeHistory, tmp_path: Path) -> None:
    history = make(tmp_path)
    assert (np.diff(history.times) > np.timedelta64(0, "ns")).all()
    read = history.read(history.times[[2, 0]])
    assert read.dims == ("time", "channel", "latitude", "longitude")
    np.testing.assert_array_equal(read["time"], TIMES[[2, 0]])
    np.testing.assert_array_equal(read, truth()[[2, 0]])


# ForecastChunk


@dataclass
class RunningRollout:
    """What a rollout holds at one lead time; torch on the inside, numpy at the border."""

    init_time: np.datetime64
    lead_time: np.timedelta64
    channels: tuple[str, ...]
    members: torch.Tensor

    @property
    def values(self) -> NDArray[Any]:
        return np.asarray(self.members.numpy())


def rollout_chunk() -> wx_eval.ForecastChunk:
    return RunningRollout(INIT, LEAD, CHANNELS, torch.from_numpy(fields(MEMBERS, seed=1)))


class ChunkOfTensors(Protocol):
    @property
    def init_time(self) -> np.datetime64: ...
    @property
    def lead_time(self) -> np.timedelta64: ...
    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def values(self) -> torch.Tensor: ...


def refused_chunk(chunk: ChunkOfTensors) -> wx_eval.ForecastChunk:
    return chunk  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def test_chunk_shape_and_determinism() -> None:
    chunk = rollout_chunk()
    assert chunk.values.shape == (MEMBERS, len(chunk.channels), *GRID.shape)
    assert np.issubdtype(chunk.values.dtype, np.floating)
    assert chunk.init_time + chunk.lead_time in TIMES
    np.testing.assert_array_equal(chunk.values, rollout_chunk().values)


@HISTORIES
def test_every_chunk_scores_against_every_history(make: MakeHistory, tmp_path: Path) -> None:
    """The same rows whoever hands over the truth, and the same as from the forecast that wx-data wrote."""
    chunk = rollout_chunk()
    scored = wx_eval.evaluate([chunk], make(tmp_path), model="m", truth_name="truth")
    reference = wx_eval.evaluate([chunk], truth(), model="m", truth_name="truth")
    assert scored == reference

    writer = wx_data.ForecastWriter.create(
        tmp_path / "forecast",
        init_times=[INIT],
        lead_times=[LEAD],
        members=MEMBERS,
        channels=CHANNELS,
        grid=GRID,
    )
    writer.write(INIT, LEAD, chunk.values)
    writer.finalise()
    written = wx_data.open_forecast(tmp_path / "forecast")["forecast"]
    assert wx_eval.evaluate(written, truth(), model="m", truth_name="truth") == reference


# Climatology


def history_of_days() -> xr.DataArray:
    """A common year of daily states at the hour of the valid time of `rollout_chunk`."""
    times = np.datetime64("2019-01-01T06", "ns") + np.timedelta64(24, "h") * np.arange(365)
    days = truth().isel(time=np.arange(365) % len(TIMES))
    return days.assign_coords(time=times)


class FixedMean:
    """What a third party writes."""

    name = "fixed"

    def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
        del valid_time
        if statistic != "mean":
            raise ValueError(f"only the mean is known, not the {statistic}")
        return truth().mean("time")


def fixed_mean() -> wx_eval.Climatology:
    return FixedMean()


def day_climatology() -> wx_eval.Climatology:
    return wx_eval.DayClimatology.build(history_of_days(), window_days=2)


class ClimatologyOfTensors(Protocol):
    @property
    def name(self) -> str: ...
    def at(self, statistic: str, valid_time: np.datetime64, /) -> torch.Tensor: ...


def refused_climatology(climatology: ClimatologyOfTensors) -> wx_eval.Climatology:
    return climatology  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("make", [fixed_mean, day_climatology])
def test_climatology_gives_fields_that_anomalies_can_use(make: Callable[[], wx_eval.Climatology]) -> None:
    climatology = make()
    field = climatology.at("mean", INIT + LEAD)
    assert field.dims == ("channel", "latitude", "longitude")
    assert set(field["channel"].values) == set(CHANNELS)
    xr.testing.assert_identical(field, climatology.at("mean", INIT + LEAD))
    with pytest.raises(ValueError, match="median"):
        climatology.at("median", INIT + LEAD)
    records = wx_eval.evaluate(
        [rollout_chunk()], truth(), model="m", metrics=[wx_eval.ACC("wb2")], climatology=climatology
    )
    assert records.conventions.climatology == climatology.name
    assert (abs(wx_eval.scores(records)["acc_wb2"]) <= 1).all()


# Weights of points


class Northern:
    """What a third party writes."""

    name = "northern"

    def of(self, grid: wx_eval.Grid, /) -> NDArray[np.float64]:
        return (grid.latitude >= 0).astype(np.float64)


def northern() -> wx_eval.PointWeights:
    return Northern()


def density() -> wx_eval.PointWeights:
    return wx_eval.DensityWeights()


class WeightsByRow(Protocol):
    @property
    def name(self) -> str: ...
    def of(self, latitude: NDArray[np.float64], /) -> NDArray[np.float64]: ...


def refused_weights(weights: WeightsByRow) -> wx_eval.PointWeights:
    return weights  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("make", [northern, density])
def test_weights_name_themselves_in_the_records(make: Callable[[], wx_eval.PointWeights]) -> None:
    weights = make()
    grid = wx_eval.Grid.from_axes(GRID.latitude, GRID.longitude)
    values = weights.of(grid)
    assert values.shape == (grid.size,)
    assert values.min() >= 0
    records = wx_eval.evaluate([rollout_chunk()], truth(), model="m", regions=["global"], weights=weights)
    assert records.conventions.weights == weights.name
    np.testing.assert_allclose(records.table["sum_w"].to_numpy(), values.sum(), rtol=1e-12)


# Ranks that share a grid


class OneRank:
    """A single process."""

    def sum(self, array: NDArray[np.float64], /) -> NDArray[np.float64]:
        return array


class ProcessGroup:
    """All ranks of the default group of torch.distributed."""

    def sum(self, array: NDArray[np.float64], /) -> NDArray[np.float64]:
        total = torch.from_numpy(array.copy())
        torch.distributed.all_reduce(total)
        return total.numpy()


def one_rank() -> wx_eval.Comm:
    return OneRank()


def process_group() -> wx_eval.Comm:
    return ProcessGroup()


class SumOfTensors(Protocol):
    def sum(self, array: torch.Tensor, /) -> torch.Tensor: ...


def refused_comm(comm: SumOfTensors) -> wx_eval.Comm:
    return comm  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("make", [one_rank, process_group])
def test_a_rank_that_holds_the_whole_grid_gets_the_same_records(make: Callable[[], wx_eval.Comm]) -> None:
    band = wx_eval.Band(first=0, total=len(GRID.latitude), comm=make())
    records = wx_eval.evaluate([rollout_chunk()], truth(), model="m", band=band)
    assert records.table.equals(wx_eval.evaluate([rollout_chunk()], truth(), model="m").table)
