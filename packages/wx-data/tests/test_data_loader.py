"""Batches: content, order, resume, ranks, rows, gaps, missing values."""

import contextlib
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wx_data import (
    Batch,
    Forcings,
    Grid,
    Loader,
    RowRange,
    Store,
    StoreError,
    TimeWindow,
    compute_statistics,
    convert,
)
from wx_data._upload import Uploader

Make = Callable[..., Any]
WINDOW = TimeWindow((-6, 0), (6,))


@pytest.fixture
def store(make_source: Make, tmp_path: Path) -> Store:
    convert(make_source(40), tmp_path / "s")
    return Store(tmp_path / "s")


def _bases(batches: list[Batch]) -> list[str]:
    return [str(t)[:13] for batch in batches for t in batch.valid_time[:, 1]]


def test_content_is_the_store_at_the_valid_times(store: Store) -> None:
    loader = Loader(store, TimeWindow((-12, 0), (timedelta(hours=6), 24)), batch_size=3, seed=1)
    for batch in loader:
        assert batch.x.shape == batch.y.shape == (3, 2, 5, 9, 16)
        assert batch.x.dtype == torch.float32
        for sample in range(3):
            expected = store.read(batch.valid_time[sample]).values
            np.testing.assert_array_equal(torch.cat((batch.x[sample], batch.y[sample])), expected)
            hours = (batch.valid_time[sample] - batch.valid_time[sample][1]) / np.timedelta64(1, "h")
            assert hours.tolist() == [-12, 0, 6, 24]


def test_an_epoch_is_every_window_once(store: Store) -> None:
    loader = Loader(store, WINDOW, batch_size=4, drop_last=False)
    assert loader.samples == 38
    assert len(loader) == 10
    seen = _bases(list(loader))
    assert len(seen) == len(set(seen)) == 38
    assert loader.epoch == 1
    again = _bases(list(loader))
    assert sorted(again) == sorted(seen)
    assert again != seen
    assert len(list(Loader(store, WINDOW, batch_size=4))) == 9


def test_without_shuffling_time_runs_forward(store: Store) -> None:
    seen = _bases(list(Loader(store, WINDOW, batch_size=4, shuffle=False)))
    assert seen == sorted(seen)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("cache_bytes", [0, 30_000, 1 << 30])
def test_order_does_not_depend_on_threads_or_cache(store: Store, threads: int, cache_bytes: int) -> None:
    plain = list(Loader(store, WINDOW, batch_size=5, seed=3, threads=1, depth=1))
    other = Loader(store, WINDOW, batch_size=5, seed=3, threads=threads, depth=6, cache_bytes=cache_bytes)
    for a, b in zip(plain, other, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_resume_in_the_middle_of_an_epoch(store: Store, stop: int) -> None:
    whole = _bases(list(itertools.islice(Loader(store, WINDOW, batch_size=5, seed=3).forever(), 18)))
    first = Loader(store, WINDOW, batch_size=5, seed=3, threads=3, depth=5)
    stream = first.forever()
    seen = _bases(list(itertools.islice(stream, stop)))
    state = json.loads(json.dumps(first.state_dict()))
    stream.close()
    second = Loader(store, WINDOW, batch_size=5, seed=99, threads=1)
    second.load_state_dict(state)
    assert seen + _bases(list(itertools.islice(second.forever(), 18 - stop))) == whole


def test_breaking_off_and_iterating_again_goes_on(store: Store) -> None:
    loader = Loader(store, WINDOW, batch_size=5)
    whole = _bases(list(Loader(store, WINDOW, batch_size=5)))
    head = _bases(list(itertools.islice(iter(loader), 2)))
    assert head + _bases(list(loader)) == whole


def test_state_of_another_loader_is_refused(store: Store) -> None:
    loader = Loader(store, WINDOW, batch_size=5)
    state = loader.state_dict()
    with pytest.raises(ValueError, match="windows=7, this loader has 38"):
        loader.load_state_dict({**state, "windows": 7})
    with pytest.raises(ValueError, match="not a multiple of the global batch"):
        loader.load_state_dict({**state, "samples": 3})


def test_ranks_share_each_global_batch(store: Store) -> None:
    alone = list(Loader(store, WINDOW, batch_size=6, seed=2))
    ranks = [list(Loader(store, WINDOW, batch_size=2, seed=2, rank=r, world=3)) for r in range(3)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.x, torch.cat([part.x for part in parts]))
    three = Loader(store, WINDOW, batch_size=2, seed=2, rank=1, world=3)
    next(iter(three))
    resumed = Loader(store, WINDOW, batch_size=6, seed=2)
    resumed.load_state_dict(three.state_dict())
    assert torch.equal(next(iter(resumed)).x, alone[1].x)


@pytest.mark.parametrize("rows", [RowRange(0, 3, 2), RowRange(3, 6, 1), RowRange(6, 9), RowRange(2, 7, 9)])
def test_rows_of_a_rank(make_source: Make, tmp_path: Path, rows: RowRange) -> None:
    convert(make_source(12), tmp_path / "s", band_rows=2)
    store = Store(tmp_path / "s")
    low, high = rows.within(9)
    assert (low, high) == (max(0, rows.start - rows.halo), min(9, rows.stop + rows.halo))
    forcings = Forcings(store.grid, ["cos_zenith", "orography"], store.statics)
    whole = next(iter(Loader(store, WINDOW, batch_size=4, seed=1, forcings=forcings)))
    part = next(iter(Loader(store, WINDOW, batch_size=4, seed=1, forcings=forcings, rows=rows)))
    assert torch.equal(part.x, whole.x[..., low:high, :])
    assert torch.equal(part.y, whole.y[..., low:high, :])
    assert part.forcing is not None
    assert whole.forcing is not None
    assert part.static is not None
    assert whole.static is not None
    assert torch.equal(part.forcing, whole.forcing[..., low:high, :])
    assert torch.equal(part.static, whole.static[:, low:high])


def test_row_ranges_lie_in_the_grid() -> None:
    for rows in (RowRange(3, 3), RowRange(-1, 4), RowRange(0, 10), RowRange(0, 4, -1)):
        with pytest.raises(ValueError, match="does not lie within a grid of 9 rows"):
            rows.within(9)


def test_normalised_channels(store: Store) -> None:
    statistics = compute_statistics(store)
    names = ("msl", "z500")
    loader = Loader(store, WINDOW, batch_size=38, normalise=statistics, channels=names, drop_last=False)
    batch = next(iter(loader))
    chosen = statistics.select(names)
    raw = np.stack([store.read(times, names).values for times in batch.valid_time])[:, :2].astype(np.float64)
    expected = (raw - chosen.mean[:, None, None]) / chosen.std[:, None, None]
    # float32 of a value x and of the mean m: error up to (|x| + |m|) eps / std
    bound = 2 * np.finfo(np.float32).eps * (np.abs(raw).max(axis=(0, 1, 3, 4)) / chosen.std).max()
    np.testing.assert_allclose(batch.x, expected, atol=float(bound), rtol=1e-6)
    other = replace(statistics, grid="x")
    with pytest.raises(StoreError, match="another grid"):
        Loader(store, WINDOW, batch_size=4, normalise=other)


def test_forcings_at_every_valid_time(store: Store) -> None:
    forcings = Forcings(store.grid, ["cos_zenith", "latlon"])
    batch = next(iter(Loader(store, WINDOW, batch_size=3, forcings=forcings)))
    assert batch.forcing is not None
    assert batch.forcing.shape == (3, 3, 5, 9, 16)
    assert torch.equal(batch.forcing[2], forcings.at(batch.valid_time[2]))


def test_every_time_of_a_sample_lies_in_the_period(store: Store) -> None:
    loader = Loader(store, WINDOW, batch_size=1, shuffle=False, times=("2001-01-02", "2001-01-04"))
    times = np.concatenate([batch.valid_time.ravel() for batch in loader])
    assert str(times.min())[:13] == "2001-01-02T00"
    assert str(times.max())[:13] == "2001-01-04T18"
    assert loader.samples == 10


def test_gaps(make_source: Make, tmp_path: Path) -> None:
    source = make_source(20)
    source.times = np.delete(source.times, [7, 15])
    convert(source, tmp_path / "s", missing="drop")
    store = Store(tmp_path / "s")
    with pytest.raises(StoreError, match=r"2 gaps in time, first 2001-01-02T12 -> 2001-01-03T00.*4 windows"):
        Loader(store, WINDOW, batch_size=2)
    loader = Loader(store, WINDOW, batch_size=1, missing="drop-window", shuffle=False)
    kept = set(_bases(list(loader)))
    have = set(store.hours.tolist())
    expected = [h for h in store.hours.tolist() if {h - 6, h + 6} <= have]
    assert len(kept) == len(expected) == loader.samples == 12


def test_kept_nan_becomes_the_mean_with_a_mask(make_source: Make, tmp_path: Path) -> None:
    source = make_source(8)
    original = source.read

    def read(times: Any, channels: Any) -> Any:
        array = original(times, channels).copy()
        array.loc[{"channel": "t850"}][:, 2:5] = np.nan
        return array

    source.read = read
    convert(source, tmp_path / "s", nan={"t850": "keep"})
    store = Store(tmp_path / "s")
    batch = next(iter(Loader(store, WINDOW, batch_size=2, normalise=compute_statistics(store))))
    assert batch.mask is not None
    assert batch.mask.shape == batch.y.shape
    assert not batch.mask[:, :, 1, 2:5].any()
    assert batch.mask[:, :, 0].all()
    assert (batch.y[~batch.mask] == 0).all()
    assert batch.x.isfinite().all()
    raw = next(iter(Loader(store, WINDOW, batch_size=2)))
    assert raw.y[:, :, 1, 2:5].isnan().all()
    without = next(iter(Loader(store, WINDOW, batch_size=2, channels=["z500"])))
    assert without.mask is None


def test_errors_of_a_thread_reach_the_caller(store: Store) -> None:
    loader = Loader(store, WINDOW, batch_size=4, shuffle=False)
    (store.path / "data" / "c.20.0.0.0").unlink()
    with pytest.raises(StoreError, match=r"2001-01-06T00 .*missing"):
        list(loader)


def test_reading_after_a_fork_is_refused(store: Store) -> None:
    loader = Loader(store, WINDOW, batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            next(iter(loader))
        except RuntimeError as error:
            os._exit(7 if str(os.getpid()) in str(error) and "forkserver" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "must be >= 1"),
        ({"batch_size": 99}, "do not fill a batch"),
        ({"batch_size": 1, "rank": 2, "world": 2}, r"rank must lie in 0\.\.1"),
        (
            {"batch_size": 12, "rank": 1, "world": 3, "drop_last": False},
            "leaves 2 samples for the last batch of 3",
        ),
        ({"batch_size": 1, "missing": "skip"}, '"error", "drop-window" or "fill"; got \'skip\''),
        ({"batch_size": 1, "fill": {"t2m": 0.0}}, "fill names t2m; the channels are z500"),
        ({"batch_size": 1, "fill": {"z500": "mean"}}, 'by "mean" needs normalise'),
        ({"batch_size": 1, "stride": 0}, "stride must be at least one hour"),
        ({"batch_size": 1, "channels": ["z500", "z500"]}, "channels must differ"),
        ({"batch_size": 1, "channels": ["t2m"]}, "no channel t2m"),
        ({"batch_size": 1, "times": ("2005-01-01", "2005-02-01")}, "lies within"),
    ],
)
def test_wrong_arguments(store: Store, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(store, WINDOW, **arguments)


@pytest.mark.parametrize(
    ("history", "targets"), [((), (6,)), ((0, -6), (6,)), ((6,), (12,)), ((0,), (0,)), ((0,), (-6,))]
)
def test_wrong_windows(history: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="history"):
        TimeWindow(history, targets)
    with pytest.raises(ValueError, match="whole number of hours"):
        TimeWindow((timedelta(minutes=-30), 0), (6,))


def test_grid_of_the_store_has_no_surprise(store: Store) -> None:
    assert store.grid == Grid.regular(9, 16)


def test_memory_in_use_is_never_written_again(store: Store) -> None:
    """Buffers are recycled, but not while a batch, a view of it or an array of it is alive."""
    loader = Loader(store, WINDOW, batch_size=4, cache_bytes=0, shuffle=False)
    views = []
    for batch in loader:
        views.append((batch.x[1, :, 2], batch.y.numpy()[3], batch.valid_time))
    for _ in range(2):
        for batch in loader:
            del batch
    for x, y, times in views:
        np.testing.assert_array_equal(x, store.read(times[1, :2]).values[:, 2])
        np.testing.assert_array_equal(y, store.read(times[3, 2:]).values)


def test_memory_is_used_again(store: Store) -> None:
    loader = Loader(store, WINDOW, batch_size=4, cache_bytes=0, threads=1, depth=1)
    places = set()
    for _ in range(4):
        for batch in loader:
            places.add(batch.x.data_ptr())
            del batch
    assert len(places) <= 4  # one in use, one ready, one in the making, and one handed over


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_remaining_order_after_resume_for_any_threads(store: Store, threads: int) -> None:
    whole = list(Loader(store, WINDOW, batch_size=3, seed=8, threads=1))
    first = Loader(store, WINDOW, batch_size=3, seed=8, threads=5 - threads, depth=3)
    stream = iter(first)
    for _ in range(5):
        next(stream)
    state = json.loads(json.dumps(first.state_dict()))
    rest = Loader(store, WINDOW, batch_size=3, threads=threads, cache_bytes=0)
    rest.load_state_dict(state)
    for expected, found in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(found.valid_time, expected.valid_time)
        assert torch.equal(found.x, expected.x)
        assert torch.equal(found.y, expected.y)


def test_state_of_other_base_times_is_refused(store: Store) -> None:
    early = Loader(store, WINDOW, batch_size=1, times=("2001-01-01", "2001-01-04"))
    late = Loader(store, WINDOW, batch_size=1, times=("2001-01-05", "2001-01-08"))
    assert early.samples == late.samples
    with pytest.raises(ValueError, match=r"saved with base_times=[0-9a-f]{8}, this loader has"):
        late.load_state_dict(early.state_dict())


@pytest.mark.parametrize(("world", "batch_size"), [(2, 4), (3, 5), (5, 3)])
def test_ranks_together_see_every_window_exactly_once(store: Store, world: int, batch_size: int) -> None:
    ranks = [
        _bases(
            list(
                Loader(store, WINDOW, batch_size=batch_size, seed=4, rank=rank, world=world, drop_last=False)
            )
        )
        for rank in range(world)
    ]
    together = list(itertools.chain(*ranks))
    assert len(together) == len(set(together)) == 38
    sizes = [len(seen) for seen in ranks]
    assert max(sizes) - min(sizes) <= 1


def test_one_order_per_domain_group(store: Store) -> None:
    north = Loader(store, WINDOW, batch_size=2, seed=5, rank=1, world=2, rows=RowRange(0, 5, 1))
    south = Loader(store, WINDOW, batch_size=2, seed=5, rank=1, world=2, rows=RowRange(5, 9, 1), threads=4)
    other = Loader(store, WINDOW, batch_size=2, seed=5, rank=0, world=2, rows=RowRange(0, 5, 1))
    a, b, c = _bases(list(north)), _bases(list(south)), _bases(list(other))
    assert a == b
    assert not set(a) & set(c)


def test_rollout_windows_and_stride(store: Store) -> None:
    window = TimeWindow.rollout(4, step=timedelta(hours=6), history=3)
    assert window.history == (-12, -6, 0)
    assert window.targets == (6, 12, 18, 24)
    loader = Loader(store, window, batch_size=1, stride=12, shuffle=False)
    bases = [batch.valid_time[0, 2] for batch in loader]
    assert {int(str(base)[11:13]) for base in bases} == {0, 12}
    assert len(bases) == loader.samples == 17
    batch = next(iter(Loader(store, window, batch_size=2, stride=12)))
    assert batch.x.shape[1] == 3
    assert batch.y.shape[1] == 4
    np.testing.assert_array_equal(batch.y[1], store.read(batch.valid_time[1, 3:]).values)
    with pytest.raises(ValueError, match="must be >= 1"):
        TimeWindow.rollout(0)


def test_fill_marks_absent_states(make_source: Make, tmp_path: Path) -> None:
    source = make_source(20)
    source.times = np.delete(source.times, [7, 15])
    convert(source, tmp_path / "s", missing="drop")
    store = Store(tmp_path / "s")
    statistics = compute_statistics(store)
    fill = {"msl": 1e5, "tp": "keep"}
    loader = Loader(
        store, WINDOW, batch_size=1, shuffle=False, missing="fill", normalise=statistics, fill=fill
    )
    have = set(store.hours.tolist())
    expected = [h for h in store.hours.tolist() if store.hours[0] <= h - 6 and h + 6 <= store.hours[-1]]
    assert loader.samples == len(expected) == 16
    for hour, batch in zip(expected, loader, strict=True):
        assert batch.mask is not None
        assert batch.x_mask is not None
        assert batch.mask.all() == (hour + 6 in have)
        assert batch.x_mask[0, 0].all() == (hour - 6 in have)
        assert batch.x_mask[0, 1].all()
        if hour + 6 not in have:
            assert not batch.mask.any()
            constant = (1e5 - statistics.select(("msl",)).mean) / statistics.select(("msl",)).std
            assert (batch.y[0, 0, :3] == 0).all()
            np.testing.assert_allclose(batch.y[0, 0, 3], np.float32(constant[0]), rtol=1e-4)
            assert batch.y[0, 0, 4].isnan().all()


def test_a_channel_without_any_value_is_an_absent_state(make_source: Make, tmp_path: Path) -> None:
    source = make_source(8)
    original = source.read

    def read(times: Any, channels: Any) -> Any:
        array = original(times, channels).copy()
        array.loc[{"channel": "t850"}][array["time"].values == source.times[3]] = np.nan
        return array

    source.read = read
    convert(source, tmp_path / "s", nan={"t850": "keep"}, implausible="keep")
    store = Store(tmp_path / "s")
    with pytest.raises(StoreError, match=r"1 steps have a channel without any value, first 2001-01-01T18; 3"):
        Loader(store, WINDOW, batch_size=1)
    assert Loader(store, WINDOW, batch_size=1, missing="drop-window").samples == 3
    assert Loader(store, WINDOW, batch_size=1, channels=["z500"]).samples == 6
    filled = next(iter(Loader(store, WINDOW, batch_size=6, missing="fill", shuffle=False)))
    assert filled.mask is not None
    assert [bool(m.all()) for m in filled.mask] == [True, False, True, True, True, True]


def test_memory_is_known_before_the_start(store: Store) -> None:
    state = 4 * 5 * 9 * 16
    none = Loader(store, WINDOW, batch_size=4, cache_bytes=0, depth=3, threads=2)
    assert none.memory_bytes == (3 + 2) * 4 * 3 * state + 2 * store.scratch_bytes
    cached = Loader(store, WINDOW, batch_size=4, depth=3, threads=2)
    assert cached.memory_bytes - none.memory_bytes == 40 * state
    forced = Loader(
        store, WINDOW, batch_size=4, cache_bytes=0, depth=3, forcings=Forcings(store.grid, ["cos_zenith"])
    )
    assert forced.memory_bytes - none.memory_bytes == 5 * 4 * 3 * state // 5
    assert "36 batches" not in repr(none)
    assert "9 batches of 4 x 1, at most" in repr(none)


def test_batches_held_stay_within_the_memory_named(store: Store) -> None:
    loader = Loader(store, WINDOW, batch_size=4, cache_bytes=0, depth=2, threads=3)
    for _ in range(3):
        for _batch in loader:
            pass
    places = {batch.x.data_ptr() for batch in itertools.islice(loader.forever(), 40)}
    assert len(places) <= 2 + 2


def test_compression_does_not_change_a_batch(make_source: Make, tmp_path: Path) -> None:
    source = make_source(6, grid=Grid.regular(181, 360))
    convert(source, tmp_path / "lz4", band_rows=23, codec="lz4")
    convert(source, tmp_path / "lz4hc", band_rows=40, codec="lz4hc")
    convert(source, tmp_path / "none", band_rows=31, codec="none")
    stores = [Store(tmp_path / name) for name in ("lz4", "lz4hc", "none")]
    assert (tmp_path / "none" / "data" / "c.0.0.0.0").stat().st_size > 4 * 5 * 181 * 360
    statistics = compute_statistics(stores[0])
    arguments = {"batch_size": 2, "normalise": statistics, "channels": ["tp", "z500"], "cache_bytes": 0}
    for rows in (None, RowRange(20, 70, 3)):
        batches = [next(iter(Loader(store, WINDOW, rows=rows, **arguments))) for store in stores]
        for other in batches[1:]:
            assert torch.equal(batches[0].x, other.x)
            assert torch.equal(batches[0].y, other.y)


def test_an_unreadable_step_is_named_with_its_date(store: Store) -> None:
    shard = store.path / "data" / "c.20.0.0.0"
    shard.unlink()
    shard.mkdir()
    with pytest.raises(StoreError, match=r"2001-01-06T00 .*directory"):
        list(Loader(store, WINDOW, batch_size=4, shuffle=False))


@pytest.mark.parametrize("workers", [0, 1])
def test_wrapping_in_a_data_loader_is_refused(store: Store, workers: int) -> None:
    wrapped = torch.utils.data.DataLoader(Loader(store, WINDOW, batch_size=4), num_workers=workers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(TypeError, match="iterate it directly"):
            next(iter(wrapped))


def test_a_fork_in_the_middle_of_an_epoch_is_refused(store: Store) -> None:
    stream = iter(Loader(store, WINDOW, batch_size=4))
    next(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            next(stream)
        except RuntimeError as error:
            os._exit(7 if "after a fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    next(stream)


class _Streams:
    """Stands in for `torch.cuda` on a machine without a device, and notes what is asked of it."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def Stream(self, _device: torch.device) -> "_Streams":
        return self

    @contextlib.contextmanager
    def stream(self, _stream: Any) -> Iterator[None]:
        self.log.append("enter")
        yield
        self.log.append("leave")

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def current_stream(self, _device: torch.device) -> str:
        return "current"


def test_upload_goes_one_batch_ahead_and_keeps_the_order(store: Store, monkeypatch: Any) -> None:
    """The pipeline of a device, with its stream replaced: content, order, state, and one upload ahead."""
    streams, used = _Streams(), []
    monkeypatch.setattr(torch, "get_device_module", lambda _device: streams)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _self, stream: used.append(stream))
    plain = list(Loader(store, WINDOW, batch_size=4, seed=6))
    loader = Loader(store, WINDOW, batch_size=4, seed=6)
    loader._uploader = Uploader(torch.device("cpu"))
    copied = []
    monkeypatch.setattr(
        loader._uploader,
        "copy",
        lambda tensors: copied.append(1) or [t if t is None else t.clone() for t in tensors],
    )
    for number, (a, b) in enumerate(zip(plain, loader, strict=True), start=1):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert loader.state_dict()["samples"] == (4 * number if number < 9 else 0)
        assert number <= len(copied) <= number + 1
        assert used == ["current"] * 2 * number  # x and y
    monkeypatch.undo()


def test_uploads_wait_for_the_stream_before_host_memory_is_free(monkeypatch: Any) -> None:
    streams = _Streams()
    monkeypatch.setattr(torch, "get_device_module", lambda _device: streams)
    source = torch.arange(6.0)
    moved = Uploader(torch.device("cpu")).copy([source, None])
    assert streams.log == ["enter", "leave", "synchronize"]
    assert moved[1] is None
    assert torch.equal(moved[0], source)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: needs a CUDA device")
def test_batches_on_a_cuda_device(store: Store) -> None:
    plain = list(Loader(store, WINDOW, batch_size=4, seed=6))
    forcings = Forcings(store.grid, ["cos_zenith"])
    loader = Loader(store, WINDOW, batch_size=4, seed=6, device="cuda", forcings=forcings)
    for _ in range(3):  # buffers are used again from the second epoch on
        loader.epoch = 0
        for a, b in zip(plain, loader, strict=True):
            assert (
                b.x.device.type == b.y.device.type == b.forcing.device.type == b.static.device.type == "cuda"
            )
            assert torch.equal(a.x, (b.x * 1).cpu())
            assert torch.equal(a.y, (b.y * 1).cpu())
    assert loader._buffers.take((8,)).size == 8
