"""The Protocols of wx-eval: who satisfies them, what must not, and how each implementation behaves.

mypy and pyright check the annotated factories below and refuse the `refused_*` functions; the tests run every
factory.
"""

from __future__ import annotations

from collections.abc import Callable
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
