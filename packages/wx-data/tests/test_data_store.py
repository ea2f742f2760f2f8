"""Conversion and the training store: round trip, refusals, resume, damage."""

import errno
import hashlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr

from wx_data import (
    Grid,
    RowRange,
    SourceError,
    Statistics,
    Store,
    StoreError,
    _convert,
    compute_statistics,
    convert,
)
from wx_data._manifest import ManifestLog
from wx_data._repair import repair
from wx_data._rounding import quantum, round_field, rounding_bounds

Make = Callable[..., Any]


def _hashes(root: Path) -> dict[str, str]:
    files = [p for p in sorted(root.rglob("*")) if p.is_file()]
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
    assert dataset["data"].sel(channel="z500")["units"] == "m2 s-2"
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


def test_ranks_read_their_own_rows(make_source: Make, tmp_path: Path) -> None:
    source = make_source(3, grid=Grid.regular(17, 12))
    convert(source, tmp_path / "s", band_rows=5)
    store = Store(tmp_path / "s")
    whole = store.read(source.times[:2], ["msl", "z500"])
    parts = [store.read(source.times[:2], ["msl", "z500"], rows=RowRange(*r)) for r in ((0, 9), (9, 17))]
    xr.testing.assert_identical(xr.concat(parts, "latitude"), whole)
    inner = store.read(source.times[:2], ["msl", "z500"], rows=RowRange(9, 17, halo=2))
    xr.testing.assert_identical(inner, whole.isel(latitude=slice(7, 17)))
    with pytest.raises(ValueError, match="does not lie within a grid of 17 rows"):
        store.read(source.times[:1], rows=RowRange(9, 18))


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


class Slow:
    """A source that takes its time, so that a conversion can be killed in the middle."""

    def __init__(self, source: Any, seconds: float) -> None:
        self.channels, self.grid, self.times = source.channels, source.grid, source.times
        self.statics, self.provenance = source.statics, source.provenance
        self._source, self._seconds = source, seconds

    def read(self, times: Any, channels: Sequence[str], /) -> xr.DataArray:
        time.sleep(self._seconds * len(times))
        return self._source.read(times, channels)


def _hurry() -> None:
    """Blocks of one step and frequent logging: many more places to be killed at."""
    _convert._BLOCK_BYTES = 1
    _convert._FLUSH_SECONDS = 0.05


def _die_at_rename(number: int) -> None:
    """Kill this process instead of its `number`-th rename: no file appears in any other way."""
    renames = itertools.count(1)
    rename = os.replace

    def replace(*arguments: Any) -> None:
        if next(renames) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*arguments)

    os.replace = replace
    Path.replace = lambda path, target: replace(path, target)


def _killed(child: int) -> bool:
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def test_twenty_kills_at_any_rename_leave_the_same_store(make_source: Make, tmp_path: Path) -> None:
    source, random = make_source(120, ("z500", "t850")), np.random.default_rng(0)
    convert(source, tmp_path / "whole")
    kills = 0

    def work(number: int) -> None:
        _hurry()
        _die_at_rename(number)
        convert(Slow(source, 0.002), tmp_path / "s")

    while kills < 20:
        # The store has about 20 files besides its shards and logs: the first kills hit its creation.
        number = int(random.integers(1, 4 + 2 * kills))
        child = _in_child(lambda number=number: work(number))
        if _killed(child):
            kills += 1
        if (tmp_path / "s" / "zarr.json").exists() and not (tmp_path / "s/_wx/manifest.parquet").exists():
            with pytest.raises(StoreError, match="interrupted"):
                Store(tmp_path / "s")
        if (tmp_path / "s/_wx/manifest.parquet").exists():
            assert _hashes(tmp_path / "s") == _hashes(tmp_path / "whole")
            shutil.rmtree(tmp_path / "s")
    convert(source, tmp_path / "s")
    assert _hashes(tmp_path / "s") == _hashes(tmp_path / "whole")
    Store(tmp_path / "s", verify="checksum")


def test_twenty_kills_of_parts_leave_the_same_store(make_source: Make, tmp_path: Path) -> None:
    source, random = make_source(240, ("z500", "t850")), np.random.default_rng(1)
    convert(source, tmp_path / "whole")

    def work(part: tuple[int, int]) -> None:
        _hurry()
        convert(Slow(source, 0.05), tmp_path / "s", part=part)

    done = []
    for _ in range(10):
        children = [_in_child(lambda part=(i, 2): work(part)) for i in range(2)]
        for child in children:
            time.sleep(random.uniform(0.0, 0.25))
            os.kill(child, signal.SIGKILL)
        assert all(_killed(child) for child in children)
        done.append(len(ManifestLog(tmp_path / "s" / "_wx").read()))
    assert done == sorted(done), "logged work was lost"
    assert 0 < done[-1] < 240
    # Another number of parts may end what two began.
    reports = [convert(source, tmp_path / "s", part=(i, 3)) for i in range(3)]
    assert [report.complete for report in reports] == [False, False, True]
    assert sum(report.written for report in reports) == 240 - done[-1]
    assert _hashes(tmp_path / "s") == _hashes(tmp_path / "whole")


def test_parts_give_the_same_bytes_as_one_process(make_source: Make, tmp_path: Path) -> None:
    source = make_source(31)
    convert(source, tmp_path / "whole")
    for order in ((0, 1, 2), (2, 0, 1)):
        folder = tmp_path / str(order)
        for place, part in enumerate(order):
            report = convert(source, folder, part=(part, 3))
            assert report.complete == (place == 2)
            if not report.complete:
                with pytest.raises(StoreError, match=r"interrupted, \d+ of 31"):
                    Store(folder)
        assert _hashes(folder) == _hashes(tmp_path / "whole")
    assert convert(source, folder, part=(0, 3)).written == 0
    with pytest.raises(ValueError, match=r"0 <= i < n; got \(3, 3\)"):
        convert(source, folder, part=(3, 3))


def test_a_step_has_one_writer(make_source: Make, tmp_path: Path) -> None:
    source, refused = make_source(12), []

    def nested(array: xr.DataArray) -> xr.DataArray:
        for part in ((0, 2), (0, 3), (1, 3), (0, 1)):
            with pytest.raises(StoreError, match="another process is converting"):
                convert(source, tmp_path / "s", part=part)
            refused.append(part)
        convert(source, tmp_path / "s", part=(1, 2))  # its steps are nobody else's
        return array

    report = convert(Changed(source, nested), tmp_path / "s", part=(0, 2))
    assert len(refused) == 4
    assert report.complete


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
    with pytest.raises(StoreError, match=truncated + ".*wx-data repair"):
        Store(tmp_path / "s", verify="sizes")
    shard.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert store.verify("sizes").ok
    (failure,) = store.verify("checksum").failures
    assert (failure.time, failure.key) == (store.times[3], "data/c.3.0.0.0")
    assert re.fullmatch(r"crc32 0x\w{8} in manifest, 0x\w{8} found", failure.problem)
    with pytest.raises(StoreError, match="checksum of the inner chunk does not match"):
        store.read(store.times[3])
    shard.unlink()
    with pytest.raises(StoreError, match=r"2001-01-01T18 .*missing"):
        store.read(store.times[3])
    # Opening for training looks, and names every date.
    with pytest.raises(StoreError, match=r"1 of 5 steps are damaged: step 2001-01-01T18 .*missing.*repair"):
        Store(tmp_path / "s")
    (tmp_path / "s" / "data" / "c.1.0.0.0").unlink()
    assert [str(f.time)[:13] for f in Store(tmp_path / "s", verify=None).verify("manifest").failures] == [
        "2001-01-01T06",
        "2001-01-01T18",
    ]


@pytest.mark.parametrize("codec", ["lz4", "none"])
def test_one_hundred_flipped_bytes_are_found(make_source: Make, tmp_path: Path, codec: Any) -> None:
    convert(make_source(10, grid=Grid.regular(17, 32)), tmp_path / "s", band_rows=5, codec=codec)
    store, random = Store(tmp_path / "s"), np.random.default_rng(0)
    found = 0
    for _ in range(100):
        step = int(random.integers(len(store)))
        shard = tmp_path / "s" / "data" / f"c.{step}.0.0.0"
        data = bytearray(shard.read_bytes())
        place, bits = int(random.integers(len(data))), int(random.integers(1, 256))
        data[place] ^= bits
        shard.write_bytes(data)
        found += [failure.step for failure in store.verify("checksum").failures] == [step]
        data[place] ^= bits
        shard.write_bytes(data)
    assert found == 100
    assert store.verify("checksum").ok


def _damage(folder: Path) -> None:
    (folder / "data" / "c.1.0.0.0").unlink()
    shard = folder / "data" / "c.4.0.0.0"
    shard.write_bytes(shard.read_bytes()[:-7])
    shard = folder / "data" / "c.6.0.0.0"
    shard.write_bytes(shard.read_bytes()[:50] + b"wrong" + shard.read_bytes()[55:])


def test_repair_fetches_only_what_is_damaged(make_source: Make, tmp_path: Path) -> None:
    source, asked = make_source(9), []
    bounds = {"z500": 3.0}
    convert(source, tmp_path / "s", rounding=bounds, nan={"tp": 0.0})
    before = _hashes(tmp_path / "s")

    def watch(array: xr.DataArray) -> xr.DataArray:
        asked.extend(array["time"].values.tolist())
        return array

    _damage(tmp_path / "s")
    report = repair(tmp_path / "s", Changed(source, watch))
    assert [failure.step for failure in report.repaired] == [1, 4, 6]
    assert asked == source.times[[1, 4, 6]].tolist()
    assert report.changed == ()
    assert _hashes(tmp_path / "s") == before
    assert repair(tmp_path / "s", Changed(source, watch)).repaired == ()
    assert len(asked) == 3


def test_repair_from_a_source_that_has_changed(make_source: Make, tmp_path: Path) -> None:
    source = make_source(9)
    convert(source, tmp_path / "s")
    before = Store(tmp_path / "s").manifest
    _damage(tmp_path / "s")
    final = Changed(source, lambda array: array + 1e-4 * np.abs(array))
    with pytest.raises(SourceError, match=r"other data for 2001-01-01T06 than at the conversion.*keep"):
        repair(tmp_path / "s", final)
    assert not (tmp_path / "s" / "data" / "c.1.0.0.0").exists()
    report = repair(tmp_path / "s", final, changed="keep")
    np.testing.assert_array_equal(report.changed, source.times[[1, 4, 6]])
    store = Store(tmp_path / "s", verify="checksum")
    expected = source.read(source.times, source.channels)
    expected[[1, 4, 6]] += (1e-4 * np.abs(expected[[1, 4, 6]])).astype(np.float32)
    np.testing.assert_allclose(store.read(store.times).values, expected.values, rtol=1e-6)
    assert store.manifest.content_hash != before.content_hash
    rows = pq.read_table(tmp_path / "s" / "_wx" / "provenance.parquet").to_pylist()
    assert {row["content_sha256"] for row in rows} == {store.manifest.content_hash}
    _damage(tmp_path / "s")
    with pytest.raises(SourceError, match="the source's grid is"):
        repair(tmp_path / "s", make_source(9, grid=Grid.regular(9, 18)))
    with pytest.raises(SourceError, match="the source lacks 2 of 3 damaged times, first 2001-01-02T00"):
        repair(tmp_path / "s", make_source(3))


def test_provenance_is_kept(make_source: Make, tmp_path: Path) -> None:
    source = make_source(6)
    source.provenance = {"source": "gs://bucket/era5", "valid_time_stop": "2001-01-31"}
    about = {"variable": "geopotential", "attributes": {"units": "m**2 s**-2", "offset": np.float32(2)}}
    versions = ["0001"] * 4 + ["0005"] * 2

    def label(array: xr.DataArray) -> xr.DataArray:
        place = np.searchsorted(source.times, array["time"].values)
        return array.assign_coords(expver=("time", np.array(versions)[place]))

    labelled = Changed(source, label)
    labelled.variables = {"z500": about | {"dataset": {"valid_time_stop": "2001-01-31"}}}
    convert(labelled, tmp_path / "s")
    store = Store(tmp_path / "s")
    assert store.manifest.table["expver"].to_pylist() == versions
    assert set(store.manifest.table["source"].to_pylist()) == {"gs://bucket/era5"}
    rows = pq.read_table(tmp_path / "s" / "_wx" / "provenance.parquet").to_pylist()
    assert [row["channel"] for row in rows] == list(source.channels)
    assert rows[0]["variable"] == "geopotential"
    assert json.loads(rows[0]["attributes"]) == {"units": "m**2 s**-2", "offset": 2.0}
    assert json.loads(rows[0]["dataset"]) == {"valid_time_stop": "2001-01-31"}
    assert json.loads(rows[0]["provenance"]) == {"valid_time_stop": "2001-01-31"}
    assert rows[0]["content_sha256"] == store.manifest.content_hash
    # An archive that has grown since is still the same source.
    source.provenance = source.provenance | {"valid_time_stop": "2001-02-28"}
    assert convert(Changed(source, label), tmp_path / "s").written == 0


def test_values_equal_in_tensorstore(make_source: Make, tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    source = make_source(7, grid=Grid.regular(17, 12))
    for codec in ("lz4", "none"):
        convert(source, tmp_path / codec, band_rows=5, codec=codec)
        kvstore = {"driver": "file", "path": str(tmp_path / codec / "data")}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        values = array.read().result()
        np.testing.assert_array_equal(values, source.read(source.times, source.channels).values)
        np.testing.assert_array_equal(values, xr.open_zarr(tmp_path / codec, chunks=None)["data"].values)


def test_rounding_keeps_its_bound(make_source: Make, tmp_path: Path) -> None:
    source = make_source(20)
    bounds = {"z500": 40.0, "t850": 0.013}
    report = convert(source, tmp_path / "s", rounding=bounds)
    plain = convert(source, tmp_path / "plain")
    store = Store(tmp_path / "s")
    errors = np.abs(store.read(store.times).values - source.read(source.times, source.channels).values)
    largest = errors.max(axis=(0, 2, 3))
    assert [entry.channel for entry in report.rounding] == ["z500", "t850"]
    for entry in report.rounding:
        place = source.channels.index(entry.channel)
        assert 0 < largest[place] <= bounds[entry.channel]
        assert entry.largest_error == largest[place]
        assert entry.bytes_saved > 0
        assert entry.sampled_steps == 2
    assert (largest[2:] == 0).all(), "the other channels are exact"
    assert report.bytes < plain.bytes
    assert store.attributes["rounding"] == bounds
    assert convert(source, tmp_path / "s", rounding=bounds).rounding == report.rounding
    with pytest.raises(StoreError, match="rounding was"):
        convert(source, tmp_path / "s", rounding={"z500": 10.0})
    with pytest.raises(ValueError, match="v850 is not converted"):
        convert(source, tmp_path / "t", rounding={"v850": 1.0})


def test_rounding_by_closed_form() -> None:
    assert [quantum(bound) for bound in (1.0, 0.999, 0.5, 3.0, 0.013)] == [2.0, 1.0, 1.0, 4.0, 2.0**-6]
    for bound in 2.0 ** np.random.default_rng(0).uniform(-60, 60, 500):
        assert bound / 2 < quantum(bound) / 2 <= bound
        assert np.log2(quantum(bound)).is_integer()
    field = np.array([[[1e5 + 0.3, -7.49, 2.0, np.nan, 3e9, 0.0]]], dtype=np.float32)
    rounded = round_field(field, ["msl"], {"msl": 0.25})
    np.testing.assert_array_equal(rounded[0, 0], np.float32([1e5 + 0.5, -7.5, 2.0, np.nan, 3e9, 0.0]))
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="positive and finite"):
            quantum(bad)


def test_bounds_follow_the_residual(make_source: Make, tmp_path: Path) -> None:
    convert(make_source(20), tmp_path / "s")
    statistics: Statistics = compute_statistics(Store(tmp_path / "s"))
    bounds = rounding_bounds(statistics, 0.01)
    np.testing.assert_allclose(list(bounds.values()), 0.01 * statistics.residual(6).std)
    assert rounding_bounds(statistics, {"t850": 0.1}) == {"t850": 0.1 * statistics.residual(6).std[1]}
    with pytest.raises(ValueError, match="between 0 and 1"):
        rounding_bounds(statistics, 1.5)


def test_folder_that_may_not_be_written(make_source: Make, tmp_path: Path) -> None:
    source, folder = make_source(3), tmp_path / "s"
    tmp_path.chmod(0o555)

    def work() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may write everywhere
        try:
            convert(source, folder)
        except PermissionError as error:
            os._exit(7 if error.errno == errno.EACCES and str(folder.parent) in str(error.filename) else 8)

    try:
        assert os.waitstatus_to_exitcode(os.waitpid(_in_child(work), 0)[1]) == 7
    finally:
        tmp_path.chmod(0o755)


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


def test_checksum_tells_contents_apart(make_source: Make, tmp_path: Path) -> None:
    # Every part of a shard ends in its CRC-32C, so that the CRC-32C of the file would not depend on content.
    convert(make_source(6), tmp_path / "s", codec="none")
    manifest = Store(tmp_path / "s").manifest
    assert len(set(manifest.sizes.tolist())) == 1
    assert len(set(manifest.checksums.tolist())) == 6
    first, second = (tmp_path / "s" / "data" / f"c.{step}.0.0.0" for step in (0, 1))
    first.write_bytes(second.read_bytes())
    assert [failure.step for failure in Store(tmp_path / "s").verify("checksum").failures] == [0]


def test_manifest_of_an_earlier_version(make_source: Make, tmp_path: Path) -> None:
    source = make_source(4)
    convert(source, tmp_path / "s")
    path = tmp_path / "s" / "_wx" / "manifest.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["crc32", "expver", "rounding_error"]), path)
    store = Store(tmp_path / "s", verify="sizes")
    np.testing.assert_array_equal(store.read(source.times), source.read(source.times, source.channels))
    with pytest.raises(StoreError, match="of an earlier version, without checksums"):
        store.verify("checksum")
