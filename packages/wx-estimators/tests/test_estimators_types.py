"""Keys and windows: purity, independence of streams, refusals."""

import numpy as np
import pytest
import torch

from wx_estimators import Key, Window


def key(members=(0, 1, 2), **kwargs):
    return Key(kwargs.pop("seed", 5), torch.tensor([10, 20]), torch.tensor(members), **kwargs)


RECORDED = [
    [7876852775004261269, 4664005540216520055, 5190180763464697865],
    [12393033698505974178, 15152525523558824349, 2251887432467258325],
]


def test_seeds_are_frozen_numbers():
    # Recorded: a change would silently change every forecast that names a seed.
    assert key().seeds().tolist() == RECORDED


def test_every_part_of_a_key_changes_every_seed():
    variants = [key(), key(seed=6), key(lead=1), key(step=1), key(stream="a"), key(members=(3, 4, 5))]
    variants += [
        key().sub("a"),
        key().sub("a", 1),
        key().sub("b"),
        key().sub("a").sub("b"),
        key(step=2).sub("a"),
    ]
    seeds = np.concatenate([k.seeds().reshape(-1) for k in variants])
    assert len(np.unique(seeds)) == len(seeds)


def test_nested_streams_do_not_collide_with_flat_ones():
    assert key().sub("a", 1).sub("b", 2).stream != key().sub("a", 12).sub("b", 2).stream
    assert not np.array_equal(key().sub("a", 1).sub("b").seeds(), key().sub("a", 2).sub("b").seeds())


@pytest.mark.parametrize("selection", [None, slice(0, 2), slice(3, 6), slice(4, 5)])
def test_rows_keep_the_seed_of_each_member(selection):
    flat = key().seeds().reshape(-1, 1)
    expected = flat if selection is None else flat[selection]
    np.testing.assert_array_equal(key().rows(selection).seeds(), expected)


def test_rows_with_members_that_differ_by_row():
    k = Key(0, torch.tensor([1, 2]), torch.tensor([[4, 5], [6, 7]]))
    assert k.rows().member.tolist() == [[4], [5], [6], [7]]
    assert k.rows().init.tolist() == [1, 1, 2, 2]


def test_uniform_is_uniform_and_open():
    u = Key(3, torch.arange(200), torch.arange(200)).uniform().reshape(-1)
    n = u.numel()
    assert u.min() > 0.0
    assert u.max() < 1.0
    # Kolmogorov-Smirnov distance: P(sqrt(n) D > 2.2) = 1.3e-4.
    ranks = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert (u.sort().values - ranks).abs().max() * n**0.5 < 2.2


def test_from_times_counts_hours():
    times = np.array(["1970-01-02T06", "2020-01-01T00"], "datetime64[ns]")
    k = Key.from_times(1, times, range(3))
    assert k.init.tolist() == [30, 438288]
    assert k.member.tolist() == [0, 1, 2]
    assert k.at_lead(4).lead == 4


def test_key_refuses_what_does_not_fit():
    with pytest.raises(TypeError, match=r"Key\.init must be an integer tensor"):
        Key(0, torch.zeros(2), torch.arange(2))
    with pytest.raises(ValueError, match=r"Key\.init must have shape"):
        Key(0, torch.zeros(2, 1, dtype=torch.int64), torch.arange(2))
    with pytest.raises(ValueError, match=r"Key\.member must have shape \(M,\) or \(2, M\)"):
        Key(0, torch.arange(2), torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="stream must be"):
        key().sub("a/b")


def test_window_refuses_what_leaves_the_grid():
    window = Window(global_shape=(3, 8), start=(0, 6))
    assert window.slices((3, 2)) == (slice(0, 3), slice(6, 8))
    with pytest.raises(ValueError, match="leaves the global shape"):
        window.slices((3, 3))
    with pytest.raises(ValueError, match="number of dimensions"):
        window.slices((3,))
