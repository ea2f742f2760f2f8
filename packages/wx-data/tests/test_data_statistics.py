"""Statistics against float64 two-pass numpy, over gaps, periods and missing values."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wx_data import Grid, Statistics, Store, StoreError, compute_statistics, convert

Make = Callable[..., Any]


def _two_pass(values: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation with weights of the whole sample at once."""
    weights = np.broadcast_to(grid.area_weights()[:, None], values.shape).astype(np.float64)
    axes = (0, 2, 3)
    present = np.isfinite(values)
    weights = weights * present / (weights * present).sum(axis=(2, 3), keepdims=True) / len(values)
    filled = np.where(present, values, 0.0).astype(np.float64)
    mean = (weights * filled).sum(axis=axes)
    spread = (weights * (filled - mean[:, None, None]) ** 2).sum(axis=axes)
    return mean, np.sqrt(spread)


@pytest.fixture
def store(make_source: Make, tmp_path: Path) -> Store:
    source = make_source(40)
    source.times = np.delete(source.times, [13, 30])
    convert(source, tmp_path / "s", missing="drop")
    return Store(tmp_path / "s")


@pytest.mark.parametrize("workers", [1, 3])
def test_state_and_residuals(store: Store, workers: int) -> None:
    found = compute_statistics(store, leads=(6, timedelta(hours=24)), workers=workers)
    values = store.read(store.times).values.astype(np.float64)
    mean, std = _two_pass(values, store.grid)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, std, rtol=1e-12)
    np.testing.assert_array_equal(found.state.minimum, values.min(axis=(0, 2, 3)))
    assert found.state.count == 38
    place = {int(h): i for i, h in enumerate(store.hours)}
    for lead in (6, 24):
        pairs = [(place[h - lead], i) for h, i in place.items() if h - lead in place]
        mean, std = _two_pass(np.stack([values[b] - values[a] for a, b in pairs]), store.grid)
        moments = found.residual(lead)
        assert moments.count == len(pairs)
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-9, atol=1e-12 * np.abs(std).max())
        np.testing.assert_allclose(moments.std, std, rtol=1e-12)


def test_workers_do_not_change_the_result(store: Store) -> None:
    one, many = (compute_statistics(store, leads=(12,), workers=n, save=False) for n in (1, 7))
    np.testing.assert_allclose(one.std, many.std, rtol=1e-13)
    np.testing.assert_allclose(one.residual(12).std, many.residual(12).std, rtol=1e-13)
    assert one.residual(12).count == many.residual(12).count


def test_period_keeps_other_years_out(store: Store) -> None:
    found = compute_statistics(store, period=("2001-01-02", "2001-01-03"), save=False)
    inside = [t for t in store.times if "2001-01-02" <= str(t)[:10] <= "2001-01-03"]
    mean, _ = _two_pass(store.read(inside).values, store.grid)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    assert found.residual(6).count == len(inside) - 1
    assert found.digests["period"] == "2001-01-02T00..2001-01-03T18"


def test_missing_values_are_left_out(make_source: Make, tmp_path: Path) -> None:
    source = make_source(6)
    original = source.read

    def read(times: Any, channels: Any) -> Any:
        array = original(times, channels).copy()
        array.loc[{"channel": "t850"}][:, 2:5] = np.nan
        return array

    source.read = read
    convert(source, tmp_path / "s", nan={"t850": "keep"})
    store = Store(tmp_path / "s")
    found = compute_statistics(store)
    mean, std = _two_pass(store.read(store.times).values, store.grid)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, std, rtol=1e-12)


def test_saved_with_the_store(store: Store, tmp_path: Path) -> None:
    found = compute_statistics(store, leads=(6, 12))
    for path in (store.path, store.path / "_wx" / "stats.parquet"):
        loaded = Statistics.load(path)
        np.testing.assert_array_equal(loaded.std, found.std)
        np.testing.assert_array_equal(loaded.residual(12).mean, found.residual(12).mean)
        assert loaded.period == found.period
        assert loaded.residuals.keys() == {6, 12}
    with pytest.raises(FileNotFoundError, match="compute_statistics"):
        Statistics.load(tmp_path)


def test_statistics_know_what_they_belong_to(store: Store) -> None:
    found = compute_statistics(store, save=False)
    found.check(store.channels, store.grid)
    swapped = (store.channels[1], store.channels[0], *store.channels[2:])
    with pytest.raises(StoreError, match="channel 0 is z500 in the statistics and t850 in the data"):
        found.check(swapped, store.grid)
    with pytest.raises(StoreError, match="channel 4 is tp in the statistics and nothing in the data"):
        found.check(store.channels[:4], store.grid)
    other = Grid.regular(9, 16, poles=False)
    with pytest.raises(StoreError, match=f"another grid.*the data's is {other.digest}") as caught:
        found.check(store.channels, other)
    for refused in (lambda: found.check(swapped, store.grid), lambda: found.check(store.channels, other)):
        with pytest.raises(StoreError) as caught:
            refused()
        for digest in found.digests.values():
            assert digest in str(caught.value)
    picked = found.select(["tp", "z500"])
    np.testing.assert_array_equal(picked.residual(6).std, found.residual(6).std[[4, 0]])
    with pytest.raises(KeyError, match="computed leads: 6 h"):
        found.residual(24)
    with pytest.raises(ValueError, match="no channel t2m"):
        found.select(["t2m"])


def test_impossible_requests(store: Store) -> None:
    with pytest.raises(ValueError, match="no two steps in the period are 9 h apart"):
        compute_statistics(store, leads=(9,))
    with pytest.raises(ValueError, match="holds no step"):
        compute_statistics(store, period=("2005-01-01", "2005-02-01"))
    with pytest.raises(ValueError, match="leads must be positive"):
        compute_statistics(store, leads=(0,))


def _same(found: Statistics, expected: Statistics, rtol: float) -> None:
    assert found.period == expected.period
    pairs = [(found.state, expected.state)]
    pairs += [(found.residual(lead), moments) for lead, moments in expected.residuals.items()]
    for mine, theirs in pairs:
        assert mine.count == theirs.count
        np.testing.assert_array_equal(mine.fields, theirs.fields)
        np.testing.assert_array_equal(mine.minimum, theirs.minimum)
        np.testing.assert_array_equal(mine.maximum, theirs.maximum)
        np.testing.assert_allclose(mine.std, theirs.std, rtol=rtol)
        np.testing.assert_allclose(mine.mean, theirs.mean, rtol=rtol, atol=rtol * theirs.std.max())


def test_parts_merge_in_any_order(store: Store, tmp_path: Path) -> None:
    whole = compute_statistics(store, leads=(6, 24), save=False)
    parts = [compute_statistics(store, leads=(6, 24), part=(i, 7)) for i in range(7)]
    assert not (store.path / "_wx" / "stats.parquet").exists()
    random = np.random.default_rng(0)
    for _ in range(50):
        order = random.permutation(7)
        first, *others = (parts[i] for i in order)
        _same(first.merge(*others), whole, 1e-12)
    # Any tree of merges, and a round trip through files in between.
    parts[3].save(tmp_path / "part.parquet")
    left = parts[5].merge(parts[0], Statistics.load(tmp_path / "part.parquet"))
    right = parts[6].merge(parts[1]).merge(parts[4].merge(parts[2]))
    _same(right.merge(left), whole, 1e-12)


def test_two_pass_on_values_far_from_zero(make_source: Make, tmp_path: Path) -> None:
    # A mean 1e5 times the spread is where sums of squares fail.
    source = make_source(30, ("msl",))
    original = source.read
    source.read = lambda times, names: 1e5 + (original(times, names) - 1e5) * 1e-4
    convert(source, tmp_path / "s")
    store = Store(tmp_path / "s")
    mean, std = _two_pass(store.read(store.times).values.astype(np.float64), store.grid)
    first, *others = (compute_statistics(store, part=(i, 4)) for i in range(4))
    for found in (compute_statistics(store), first.merge(*others)):
        np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(found.std, std, rtol=1e-9)


def test_a_channel_that_is_missing_in_one_part(make_source: Make, tmp_path: Path) -> None:
    source = make_source(8)
    original = source.read

    def read(times: Any, channels: Any) -> Any:
        array = original(times, channels).copy()
        array.loc[{"channel": "t850"}][np.asarray(times) < source.times[4]] = np.nan
        return array

    source.read = read
    convert(source, tmp_path / "s", nan={"t850": "keep"})
    store = Store(tmp_path / "s")
    whole = compute_statistics(store, save=False)
    assert whole.state.fields.tolist() == [8, 4, 8, 8, 8]
    first, second = (compute_statistics(store, part=(i, 2)) for i in range(2))
    assert np.isnan(first.mean[1])
    assert np.isnan(first.std[1])
    _same(second.merge(first), whole, 1e-12)
    mean, _ = _two_pass(store.read(store.times[4:]).values, store.grid)
    np.testing.assert_allclose(whole.mean[1], mean[1], rtol=1e-12)


def test_what_does_not_merge(store: Store) -> None:
    whole = compute_statistics(store, save=False)
    part = compute_statistics(store, part=(1, 3))
    with pytest.raises(StoreError, match=r"overlapping periods.*2001-01-01T00\.\..* and 2001-01-0"):
        whole.merge(part)
    with pytest.raises(StoreError, match=r"different leads .*\[6\] and \[12\] hours"):
        part.merge(compute_statistics(store, leads=(12,), part=(2, 3)))
    with pytest.raises(StoreError, match="channel 0 is z500 in the statistics and t850 in the other part"):
        whole.merge(whole.select(["t850"]))
    with pytest.raises(ValueError, match="part must be"):
        compute_statistics(store, part=(3, 3))


def test_statistics_beyond_the_training_years_are_refused(store: Store) -> None:
    found = compute_statistics(store, save=False)
    found.check(store.channels, store.grid, ("2001", "2001"))
    found.check(store.channels, store.grid, ("2001-01-01", "2001-01-10"))
    with pytest.raises(
        StoreError, match=r"another period .*2001-01-10T18.* beyond 2001-01-01T00\.\.2001-01-09T23"
    ):
        found.check(store.channels, store.grid, ("2001-01-01", "2001-01-09"))
