"""The Protocols of wx-data: who satisfies them, what must not, and how each implementation behaves.

mypy and pyright check the annotated factories below and refuse the `refused_*` functions; the tests run every
factory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

import wx_data

CHANNELS = ("t2m", "msl")
GRID = wx_data.Grid.regular(5, 8)
TIMES = np.datetime64("2020-01-01", "ns") + np.timedelta64(6, "h") * np.arange(8)


def dataset() -> xr.DataArray:
    """Plausible fields, all values different, with the units of the lexicon."""
    generator = np.random.default_rng(0)
    base = np.array([280.0, 101_000.0])[:, None, None]
    values = base * (1 + 0.01 * generator.standard_normal((len(TIMES), len(CHANNELS), *GRID.shape)))
    return xr.DataArray(
        values.astype(np.float32),
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
    """What a third party writes: nothing of wx-data but the grid."""

    channels = CHANNELS
    times: NDArray[np.datetime64] = TIMES
    grid = GRID

    def read(self, times: Any, channels: Sequence[str], /) -> xr.DataArray:
        return dataset().sel(time=np.atleast_1d(times), channel=list(channels))


def in_memory(_: Path) -> wx_data.Source:
    return InMemory()


def store(folder: Path) -> wx_data.Source:
    wx_data.convert(InMemory(), folder / "store")
    return wx_data.Store(folder / "store")


def dataset_source(_: Path) -> wx_data.Source:
    return wx_data.open_source(dataset())


class SourceOfDatasets(Protocol):
    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def times(self) -> NDArray[np.datetime64]: ...
    @property
    def grid(self) -> wx_data.Grid: ...
    def read(self, times: Any, channels: Sequence[str], /) -> xr.Dataset: ...


class SourceWithoutGrid(Protocol):
    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def times(self) -> NDArray[np.datetime64]: ...
    def read(self, times: Any, channels: Sequence[str], /) -> xr.DataArray: ...


def refused_source_of_datasets(source: SourceOfDatasets) -> wx_data.Source:
    return source  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def refused_source_without_grid(source: SourceWithoutGrid) -> wx_data.Source:
    return source  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


SOURCES = pytest.mark.parametrize("make", [in_memory, store, dataset_source])
MakeSource = Callable[[Path], wx_data.Source]


@SOURCES
def test_source_says_what_it_holds(make: MakeSource, tmp_path: Path) -> None:
    source = make(tmp_path)
    assert tuple(source.channels) == CHANNELS
    assert source.times.dtype.kind == "M"
    assert (np.diff(source.times) > np.timedelta64(0, "ns")).all()
    assert source.grid.shape == GRID.shape


@SOURCES
def test_source_reads_what_is_asked_in_that_order(make: MakeSource, tmp_path: Path) -> None:
    source = make(tmp_path)
    times, channels = TIMES[[5, 0, 3]], CHANNELS[::-1]
    read = source.read(times, channels)
    assert read.dims == ("time", "channel", "latitude", "longitude")
    assert read.dtype == np.float32
    assert read["time"].values.astype("datetime64[ns]").tolist() == times.tolist()
    assert read["channel"].values.tolist() == list(channels)
    np.testing.assert_array_equal(read["latitude"], GRID.latitude)
    np.testing.assert_array_equal(read["longitude"], GRID.longitude)
    np.testing.assert_array_equal(read, dataset().sel(time=times, channel=list(channels)))


@SOURCES
def test_source_is_deterministic(make: MakeSource, tmp_path: Path) -> None:
    source = make(tmp_path)
    first, second = (source.read(source.times[:2], source.channels) for _ in range(2))
    xr.testing.assert_identical(first, second)


@SOURCES
def test_source_refuses_a_time_or_channel_that_it_lacks(make: MakeSource, tmp_path: Path) -> None:
    source = make(tmp_path)
    with pytest.raises((KeyError, ValueError)):
        source.read(TIMES[:1] + np.timedelta64(1, "h"), CHANNELS)
    with pytest.raises((KeyError, ValueError)):
        source.read(TIMES[:1], ("sst",))
