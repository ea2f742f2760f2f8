"""Forecast output: round trip through xarray, resume, processes, refusals."""

import itertools
import os
import resource
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from wx_data import ForecastWriter, Grid, StoreError, open_forecast

INITS = np.array(["2001-01-01T00", "2001-01-03T12"], dtype="datetime64[ns]")
NAMES = ("z500", "t850", "tp")
DIMS = ("init_time", "lead_time", "member", "channel", "latitude", "longitude")
GRID = Grid.regular(5, 8)


def _create(path: Path, **more: Any) -> ForecastWriter:
    arguments: dict[str, Any] = {
        "init_times": INITS,
        "lead_times": [6, 12, 18],
        "members": 4,
        "channels": NAMES,
        "grid": GRID,
    }
    return ForecastWriter.create(path, **(arguments | more))


def _values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 4, 3, 5, 8)).astype(np.float32)


def test_round_trip_in_plain_xarray(tmp_path: Path) -> None:
    writer, values = _create(tmp_path / "f", attributes={"model": "test"}), _values()
    for i, init in enumerate(INITS):
        for j, lead in enumerate((6, 12, 18)):
            writer.write(init, lead, torch.from_numpy(values[i, j]))
    writer.finalise()
    for dataset in (open_forecast(tmp_path / "f"), xr.open_zarr(tmp_path / "f", chunks=None)):
        assert dataset["forecast"].dims == (
            "init_time",
            "lead_time",
            "member",
            "channel",
            "latitude",
            "longitude",
        )
        np.testing.assert_array_equal(dataset["forecast"].values, values)
        np.testing.assert_array_equal(dataset["init_time"].values, INITS)
        assert dataset["lead_time"].values.tolist() == [6, 12, 18]
        assert dataset["lead_time"].attrs == {
            "standard_name": "forecast_period",
            "long_name": "lead time",
            "units": "h",
        }
        expected = INITS[:, None] + np.array([6, 12, 18]).astype("timedelta64[h]")
        np.testing.assert_array_equal(dataset["valid_time"].values, expected)
        assert dataset["forecast"].sel(channel="tp")["accumulation_hours"] == 6
        assert dataset["forecast"].sel(channel="t850")["units"] == "K"
        assert dataset["forecast"].sel(channel="t850")["level"] == 850
        assert dataset.attrs["model"] == "test"
        picked = dataset["forecast"].sel(channel="t850", lead_time=12, member=2)
        np.testing.assert_array_equal(picked.values, values[:, 1, 2, 1])


def test_one_member_at_a_time(tmp_path: Path) -> None:
    writer, values = _create(tmp_path / "f", unit="member", members=[0, 3, 7, 8]), _values()
    for i, init in enumerate(INITS):
        for j, lead in enumerate((6, 12, 18)):
            for k, member in enumerate((0, 3, 7, 8)):
                writer.write(init, lead, values[i, j, k], member=member)
    writer.finalise()
    dataset = open_forecast(tmp_path / "f")
    np.testing.assert_array_equal(dataset["forecast"].values, values)
    assert dataset["member"].values.tolist() == [0, 3, 7, 8]


def test_what_is_missing_and_resume(tmp_path: Path) -> None:
    values = _values()
    writer = _create(tmp_path / "f")
    writer.write(INITS[1], 12, values[1, 1])
    writer = _create(tmp_path / "f")  # the same declaration opens the same store
    assert writer.done() == [(INITS[1], 12)]
    assert len(writer.missing()) == 5
    with pytest.raises(StoreError, match=r"5 of 6 slices are missing, first 2001-01-01T00 \+6 h"):
        writer.finalise()
    with pytest.raises(StoreError, match="not finalised"):
        open_forecast(tmp_path / "f")
    partial = open_forecast(tmp_path / "f", incomplete=True)
    assert partial["forecast"][0].isnull().all()
    np.testing.assert_array_equal(partial["forecast"][1, 1].values, values[1, 1])
    for init, lead in writer.missing():
        writer.write(init, lead, values[INITS.tolist().index(init.astype(int)), lead // 6 - 1])
    writer.finalise()
    np.testing.assert_array_equal(open_forecast(tmp_path / "f")["forecast"].values, values)


def test_unfinished_files_do_not_count(tmp_path: Path) -> None:
    writer = _create(tmp_path / "f")
    (tmp_path / "f" / "_wx" / "tmp" / ".c.0.0.0.0.0.0.1.2.part").write_bytes(b"half")
    assert writer.done() == []


def test_processes_write_one_store(tmp_path: Path) -> None:
    writer, values = _create(tmp_path / "f"), _values()
    children = []
    for place, init in enumerate(INITS):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # forking beside idle threads of other libraries
            child = os.fork()
        if child == 0:
            try:
                for j, lead in enumerate((6, 12, 18)):
                    ForecastWriter(tmp_path / "f").write(init, lead, values[place, j])
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    writer.finalise()
    np.testing.assert_array_equal(open_forecast(tmp_path / "f")["forecast"].values, values)


def test_refused_slices(tmp_path: Path) -> None:
    writer, values = _create(tmp_path / "f"), _values()
    with pytest.raises(ValueError, match="init time 2001-01-02T00 was not declared"):
        writer.write("2001-01-02", 6, values[0, 0])
    with pytest.raises(ValueError, match="lead time 9 h was not declared"):
        writer.write(INITS[0], 9, values[0, 0])
    with pytest.raises(ValueError, match=r"must have shape \(4, 3, 5, 8\); got \(3, 3, 5, 8\)"):
        writer.write(INITS[0], 6, values[0, 0, :3])
    with pytest.raises(ValueError, match="must not be given"):
        writer.write(INITS[0], 6, values[0, 0], member=1)
    values[0, 0, 2, 1] = np.inf
    with pytest.raises(ValueError, match=r"T00 \+6 h: 40 values are not finite, in 1 of 4 members.*t850"):
        writer.write(INITS[0], 6, values[0, 0])
    assert writer.done() == []


def test_refused_declarations(tmp_path: Path) -> None:
    _create(tmp_path / "f")
    with pytest.raises(StoreError, match="other lead_hours"):
        _create(tmp_path / "f", lead_times=[6, 12])
    with pytest.raises(StoreError, match="other channels"):
        _create(tmp_path / "f", channels=("z500", "t850", "msl"))
    with pytest.raises(StoreError, match="other unit"):
        _create(tmp_path / "f", unit="member")
    with pytest.raises(ValueError, match="strictly increasing"):
        _create(tmp_path / "g", lead_times=[12, 6])
    with pytest.raises(ValueError, match="not in the lexicon"):
        _create(tmp_path / "h", channels=("zz",))
    with pytest.raises(StoreError, match="not a forecast store"):
        ForecastWriter(tmp_path)
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        _create(tmp_path / "k")
    assert [path.name for path in (tmp_path / "k").iterdir()] == ["notes.txt"]


def _in_child(work: Callable[[], object]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside idle threads of other libraries
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def _write_missing(path: Path, values: np.ndarray) -> None:
    writer = _create(path)
    for init, lead in writer.missing():
        writer.write(init, lead, values[INITS.tolist().index(init.astype(int)), lead // 6 - 1])
    writer.finalise()


def test_killed_at_every_rename(tmp_path: Path) -> None:
    values, rename = _values(), os.replace

    def work(number: int) -> None:
        count = itertools.count(1)

        def replace(*arguments: Any) -> None:
            if next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*arguments)

        os.replace = replace
        _write_missing(tmp_path / "f", values)

    kills = 0
    for number in (1, 2, 9, 14, 18, 2, 2, 3, 1, 3, 1):
        child = _in_child(lambda number=number: work(number))
        kills += os.waitpid(child, 0)[1] == signal.SIGKILL
    assert kills >= 10
    _write_missing(tmp_path / "f", values)
    np.testing.assert_array_equal(open_forecast(tmp_path / "f")["forecast"].values, values)


def test_processes_declare_at_the_same_time(tmp_path: Path) -> None:
    values = _values()

    def work(place: int) -> None:
        writer = _create(tmp_path / "f")
        for lead in (6, 12, 18):
            if (place + lead // 6) % 2:
                for i, init in enumerate(INITS):
                    writer.write(init, lead, values[i, lead // 6 - 1])

    children = [_in_child(lambda place=place: work(place)) for place in range(4)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    _create(tmp_path / "f").finalise()
    np.testing.assert_array_equal(open_forecast(tmp_path / "f")["forecast"].values, values)


def test_a_lost_slice_does_not_read_as_missing_values(tmp_path: Path) -> None:
    values = _values()
    _write_missing(tmp_path / "f", values)
    with pytest.raises(StoreError, match="was finalised"):
        ForecastWriter(tmp_path / "f").write(INITS[0], 6, values[0, 0])
    (tmp_path / "f" / "forecast" / "c.1.2.0.0.0.0").unlink()
    with pytest.raises(StoreError, match=r"has lost 1 slices, first 2001-01-03T12 \+18 h"):
        open_forecast(tmp_path / "f")
    assert open_forecast(tmp_path / "f", incomplete=True)["forecast"][1, 2].isnull().all()
    (tmp_path / "f" / "_wx" / "complete.json").unlink()
    _write_missing(tmp_path / "f", values)
    np.testing.assert_array_equal(open_forecast(tmp_path / "f")["forecast"].values, values)


def test_full_disk(tmp_path: Path) -> None:
    writer, values = _create(tmp_path / "f"), _values()
    writer.write(INITS[0], 6, values[0, 0])
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, old[1]))  # a write beyond fails like a full disk
    try:
        with pytest.raises(
            StoreError, match=r"disk is full .* at 2001-01-01T00 \+12 h, 5 slices are missing"
        ):
            writer.write(INITS[0], 12, values[0, 1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert writer.done() == [(INITS[0], 6)]
    assert not list((tmp_path / "f" / "_wx" / "tmp").iterdir())


def test_same_values_in_tensorstore(tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    values = _values()
    _write_missing(tmp_path / "f", values)
    kvstore = {"driver": "file", "path": str(tmp_path / "f" / "forecast")}
    array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
    np.testing.assert_array_equal(array.read().result(), values)


def test_cf_attributes(tmp_path: Path) -> None:
    _create(tmp_path / "f")
    raw = xr.open_zarr(tmp_path / "f", chunks=None, decode_cf=False)
    assert raw.attrs["Conventions"] == "CF-1.11"
    expected = {
        "init_time": ("forecast_reference_time", "hours since 1970-01-01"),
        "lead_time": ("forecast_period", "h"),
        "member": ("realization", "1"),
        "valid_time": ("time", "hours since 1970-01-01"),
        "latitude": ("latitude", "degrees_north"),
        "longitude": ("longitude", "degrees_east"),
    }
    for name, (standard_name, units) in expected.items():
        assert (raw[name].attrs["standard_name"], raw[name].attrs["units"]) == (standard_name, units)
    # Written under `coordinates`, so that CF readers find the two-dimensional time.
    assert raw["forecast"].attrs["coordinates"].split()[0] == "valid_time"
    assert raw["standard_name"].sel(channel="z500") == "geopotential"
