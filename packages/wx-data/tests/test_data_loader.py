"""Batches: content, order, resume, ranks, rows, gaps, missing values."""

import itertools
import json
import os
import warnings
from collections.abc import Callable
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
        ({"batch_size": 1, "world": 2, "drop_last": False}, "unequal batches"),
        ({"batch_size": 1, "missing": "fill"}, "drop-window"),
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
