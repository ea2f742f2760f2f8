"""Conversion and the training store: round trip, refusals, resume, damage."""

import hashlib
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_data import Grid, SourceError, Store, StoreError, convert

Make = Callable[..., Any]


def _hashes(root: Path) -> dict[str, str]:
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.name != "lock"]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


class Changed:
    """A source with some fields replaced."""

    def __init__(self, source: Any, change: Callable[[xr.DataArray], xr.DataArray]) -> None:
        self.channels, self.grid, self.times = source.channels, source.grid, source.times
        self.statics, self.provenance = source.statics, source.provenance
        self._source, self._change = source, change

    def read(self, times: Any, channels: Sequence[str], /) -> xr.DataArray:
        return self._change(self._source.read(times, channels))


def test_round_trip_through_our_reader_and_plain_xarray(make_source: Make, tmp_path: Path) -> None:
    source = make_source(30)
    report = convert(source, tmp_path / "s.zarr")
    assert (report.steps, report.written) == (30, 30)
    expected = source.read(source.times, source.channels).values
    store = Store(tmp_path / "s.zarr", verify="checksum")
    np.testing.assert_array_equal(store.read(source.times).values, expected)
    dataset = xr.open_zarr(tmp_path / "s.zarr", chunks=None)
    np.testing.assert_array_equal(dataset["data"].values, expected)
    np.testing.assert_array_equal(dataset["time"].values, source.times)
    assert [str(name) for name in dataset["channel"].values] == list(source.channels)
    assert dataset["data"].attrs["channels"]["z500"]["units"] == "m2 s-2"
    assert dataset.attrs["Conventions"] == "CF-1.11"
    np.testing.assert_array_equal(dataset["static"].sel(static_channel="lsm").values, source.statics["lsm"])


def test_store_is_a_source(make_source: Make, tmp_path: Path) -> None:
    source = make_source(8)
    convert(source, tmp_path / "a.zarr")
    convert(
        Store(tmp_path / "a.zarr"),
        tmp_path / "b.zarr",
        channels=["tp", "z500"],
        period=("2001-01-01T06", "2001-01-02"),
    )
    store = Store(tmp_path / "b.zarr")
    assert store.channels == ("tp", "z500")
    assert len(store) == 7  # the end date means its whole day
    np.testing.assert_array_equal(
        store.read(store.times).values, source.read(store.times, ["tp", "z500"]).values
    )


def test_channels_are_selected_by_name(make_source: Make, tmp_path: Path) -> None:
    source = make_source(4)
    convert(source, tmp_path / "s")
    store = Store(tmp_path / "s")
    got = store.read(source.times[2:3], ["msl", "z500"])
    np.testing.assert_array_equal(got.values, source.read(source.times[2:3], ["msl", "z500"]).values)
    assert list(got["units"].values) == ["Pa", "m2 s-2"]
    with pytest.raises(StoreError, match="no channel t2m; it holds z500"):
        store.read(source.times[:1], ["t2m"])
    with pytest.raises(StoreError, match="T03 is not in the store; neighbours are 2001-01-01T00 and"):
        store.read(np.datetime64("2001-01-01T03"))


def test_bands_read_rows_only(make_source: Make, tmp_path: Path) -> None:
    source = make_source(3, grid=Grid.regular(17, 12))
    convert(source, tmp_path / "s", band_rows=5)
    store = Store(tmp_path / "s")
    out = np.empty((5, 4, 12), np.float32)
    store.read_into(1, out, rows=(8, 12))
    np.testing.assert_array_equal(out, source.read(source.times[1:2], source.channels).values[0][:, 8:12])
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "s", chunks=None)["data"][1, :, 8:12].values, out)


def test_same_bytes_whatever_the_workers(make_source: Make, tmp_path: Path) -> None:
    for workers in (1, 3):
        convert(make_source(20), tmp_path / str(workers), workers=workers)
    assert _hashes(tmp_path / "1") == _hashes(tmp_path / "3")


def test_interrupted_conversion_resumes_to_the_same_bytes(make_source: Make, tmp_path: Path) -> None:
    source, calls = make_source(150), []

    def fail_once(array: xr.DataArray) -> xr.DataArray:
        calls.append(array.sizes["time"])
        if len(calls) == 2:
            raise RuntimeError("link lost")
        return array

    convert(source, tmp_path / "whole")
    broken = Changed(source, fail_once)
    with pytest.raises(RuntimeError, match="link lost"):
        convert(broken, tmp_path / "parts")
    with pytest.raises(StoreError, match=r"interrupted, \d+ of 150 steps are done.*resume=True"):
        Store(tmp_path / "parts")
    with pytest.raises(StoreError, match="resume=True"):
        convert(broken, tmp_path / "parts", resume=False)
    report = convert(broken, tmp_path / "parts")
    assert 0 < report.written <= 150
    assert _hashes(tmp_path / "whole") == _hashes(tmp_path / "parts")
    assert convert(broken, tmp_path / "parts").written == 0


def _in_child(work: Callable[[], object]) -> int:
    """Start `work` in a child process that can be killed; its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside idle threads of other libraries
        child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_kill_9_leaves_a_resumable_store(make_source: Make, tmp_path: Path) -> None:
    source, folder = make_source(400, ("z500", "t850")), tmp_path / "killed" / "data"

    def wait(array: xr.DataArray) -> xr.DataArray:
        time.sleep(0.1)
        return array

    slow = Changed(source, wait)
    convert(source, tmp_path / "whole")
    for wanted in (1, 40, 170, 330):
        child = _in_child(lambda: convert(slow, tmp_path / "killed"))
        while not folder.exists() or len(os.listdir(folder)) <= wanted:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the conversion ended before it was killed"
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        with pytest.raises(StoreError, match="interrupted"):
            Store(tmp_path / "killed")
    convert(source, tmp_path / "killed")
    assert _hashes(tmp_path / "whole") == _hashes(tmp_path / "killed")


def test_full_disk_is_explained_and_resumable(make_source: Make, tmp_path: Path) -> None:
    source = make_source(10)
    convert(source, tmp_path / "whole")
    stop = Changed(source, lambda _: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        convert(stop, tmp_path / "s")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, old[1]))  # a write beyond fails like a full disk
    try:
        with pytest.raises(StoreError, match=r"disk is full.*call convert\(\) again"):
            convert(source, tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    convert(source, tmp_path / "s")
    assert _hashes(tmp_path / "whole") == _hashes(tmp_path / "s")


def test_two_conversions_into_one_store(make_source: Make, tmp_path: Path) -> None:
    source = make_source(4)

    def nested(array: xr.DataArray) -> xr.DataArray:
        convert(source, tmp_path / "s")
        return array

    with pytest.raises(StoreError, match="another process is converting"):
        convert(Changed(source, nested), tmp_path / "s")


def test_other_settings_are_refused(make_source: Make, tmp_path: Path) -> None:
    convert(make_source(6), tmp_path / "s")
    with pytest.raises(StoreError, match="times was '6 steps"):
        convert(make_source(7), tmp_path / "s")
    with pytest.raises(StoreError, match="channels was"):
        convert(make_source(6), tmp_path / "s", channels=["z500"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zarr.json").write_text("{}")
    with pytest.raises(StoreError, match="already holds a Zarr group"):
        convert(make_source(6), tmp_path / "other")


def test_holes(make_source: Make, tmp_path: Path) -> None:
    source = make_source(12)
    source.times = np.delete(source.times, [4, 5, 9])
    with pytest.raises(SourceError, match=r"2 gaps; first 2001-01-01T18 -> 2001-01-02T12, expected a step"):
        convert(source, tmp_path / "a")
    with pytest.raises(SourceError, match="lacks 3 of 12 times; first 2001-01-02T00, last 2001-01-03T06"):
        convert(source, tmp_path / "a", step=6)
    report = convert(source, tmp_path / "b", step=6, missing="drop")
    store = Store(tmp_path / "b")
    assert len(store) == report.steps == 9
    np.testing.assert_array_equal(store.holes, make_source(12).times[[4, 5, 9]])
    assert len(store.gaps) == 2
    convert(source, tmp_path / "c", missing="drop")
    assert len(Store(tmp_path / "c")) == 9


@pytest.mark.parametrize(("order", "kind"), [([0, 1, 1, 2], "repeated"), ([0, 2, 1, 3], "out of order")])
def test_duplicate_and_unsorted_times(make_source: Make, tmp_path: Path, order: list[int], kind: str) -> None:
    source = make_source(4)
    source.times = source.times[order]
    with pytest.raises(SourceError, match=f"{kind} at index 1: 2001-01-01T"):
        convert(source, tmp_path / "s")


def _with(name: str, value: float, where: Any) -> Callable[[xr.DataArray], xr.DataArray]:
    def change(array: xr.DataArray) -> xr.DataArray:
        array = array.copy()
        array.loc[{"channel": name}][(slice(None), *where)] = value
        return array

    return change


def test_missing_values(make_source: Make, tmp_path: Path) -> None:
    source = make_source(3)
    broken = Changed(source, _with("t850", np.nan, (0, slice(0, 4))))
    with pytest.raises(SourceError, match=r"t850 at 2001-01-01T00: 4 missing values \(2.8% of the field\)\."):
        convert(broken, tmp_path / "a")
    whole = Changed(source, _with("t850", np.nan, (slice(None),)))
    with pytest.raises(SourceError, match="whole field is missing: a hole"):
        convert(whole, tmp_path / "b")
    land = source.statics["lsm"] > 0.5
    masked = Changed(
        source,
        lambda array: array.where(
            ~((array["channel"] == "t850") & xr.DataArray(land, dims=("latitude", "longitude")))
        ),
    )
    with pytest.raises(SourceError, match="pattern is that of the land mask"):
        convert(masked, tmp_path / "c")
    convert(broken, tmp_path / "d", nan={"t850": 250.0})
    np.testing.assert_array_equal(
        Store(tmp_path / "d").read(source.times, ["t850"]).values[:, 0, 0, :4], 250.0
    )
    convert(broken, tmp_path / "e", nan={"t850": "keep"})
    store = Store(tmp_path / "e")
    assert store.channels_with_nan == ("t850",)
    assert store.manifest.per_channel("nan_count").tolist() == [[0, 4, 0, 0, 0]] * 3
    np.testing.assert_array_equal(
        store.manifest.per_channel("minimum"), np.nanmin(store.read(store.times).values, axis=(2, 3))
    )


def test_implausible_values(make_source: Make, tmp_path: Path) -> None:
    source = make_source(3)
    celsius = Changed(source, _with("t850", 12.0, (0, 0)))
    with pytest.raises(
        SourceError, match=r"t850 at 2001-01-01T00: values 12\.\..* K leave the plausible range"
    ):
        convert(celsius, tmp_path / "a")
    flat = Changed(source, _with("msl", 1e5, ()))
    with pytest.raises(SourceError, match=r"msl at .* constant \(100000 Pa\)"):
        convert(flat, tmp_path / "b")
    convert(Changed(source, _with("tp", 0.0, ())), tmp_path / "c")  # a dry step is plausible
    convert(flat, tmp_path / "d", implausible="keep")


def test_wrong_units_of_a_source(make_source: Make, tmp_path: Path) -> None:
    source = make_source(3)

    def labelled(units: list[str]) -> Changed:
        return Changed(source, lambda array: array.assign_coords(units=("channel", units)))

    with pytest.raises(SourceError, match="channel msl: the source gives 'hPa', it must convert to 'Pa'"):
        convert(labelled(["m2 s-2", "K", "1", "hPa", "m"]), tmp_path / "a")
    with pytest.raises(SourceError, match="z500: units 'm' found, 'm2 s-2' expected; not convertible"):
        convert(labelled(["m", "K", "1", "Pa", "m"]), tmp_path / "b")
    convert(labelled(["m**2 s**-2", "K", "kg/kg", "Pa", "m"]), tmp_path / "c")


def test_damage_is_named(make_source: Make, tmp_path: Path) -> None:
    convert(make_source(5), tmp_path / "s")
    shard = tmp_path / "s" / "data" / "c.3.0.0.0"
    data = shard.read_bytes()
    store = Store(tmp_path / "s")
    shard.write_bytes(data[:-30])
    truncated = (
        rf"2001-01-01T18 \(data/c.3.0.0.0\): truncated.*{len(data)} bytes expected, {len(data) - 30} found"
    )
    with pytest.raises(StoreError, match=truncated):
        store.read(store.times[3])
    with pytest.raises(StoreError, match=truncated):
        Store(tmp_path / "s", verify="sizes")
    shard.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert store.verify("sizes").steps == 5
    with pytest.raises(StoreError, match=r"2001-01-01T18.*crc32c 0x.* in manifest, 0x.* found"):
        store.verify("checksum")
    with pytest.raises(StoreError, match="checksum of the inner chunk does not match"):
        store.read(store.times[3])
    shard.unlink()
    with pytest.raises(StoreError, match=r"2001-01-01T18 .*missing"):
        store.verify("sizes")
    with pytest.raises(StoreError, match=r"2001-01-01T18 .*missing"):
        store.read(store.times[3])


def test_what_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        Store(tmp_path / "absent")
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(tmp_path / "z", zarr_format=3, consolidated=False)
    with pytest.raises(StoreError, match="not a training store of format 1"):
        Store(tmp_path / "z")


def test_nothing_to_convert(make_source: Make, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"the source covers 2001-01-01T00\.\.2001-01-01T18"):
        convert(make_source(4), tmp_path / "s", period=("2002-01-01", "2002-02-01"))
    with pytest.raises(ValueError, match=r"ends .* before it starts"):
        convert(make_source(4), tmp_path / "s", period=("2002-01-01", "2001-02-01"))
    with pytest.raises(ValueError, match="either times, or period"):
        convert(make_source(4), tmp_path / "s", times=[np.datetime64("2001-01-01")], step=6)
