"""Sums over regions against sums written out, and their bits against every way to cut the work."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from wx_eval._grid import Grid
from wx_eval._reduce import Reducer, add_rows

LAT, LON = np.linspace(80, -80, 9), np.arange(0, 360, 30.0)
GRID = Grid.from_axes(LAT, LON)
MASKS = {
    "global": np.ones(GRID.size, bool),
    "rows": GRID.latitude >= 20,
    "box": (abs(GRID.latitude) <= 40) & (GRID.longitude >= 60) & (GRID.longitude <= 200),
    "wrapped": (GRID.longitude < 60) | (GRID.longitude > 250),
    "scattered": np.random.default_rng(0).random(GRID.size) < 0.3,
    "one": np.arange(GRID.size) == 41,
    "none": np.zeros(GRID.size, bool),
}
WEIGHT = np.random.default_rng(1).random(GRID.size)


def total(reducer: Reducer, cuts: list[int], make: object) -> np.ndarray:
    """Sum over bands that end at `cuts`."""
    out = None
    for start, stop in zip([0, *cuts], [*cuts, reducer.rows], strict=True):
        rows = make(slice(start, stop))  # type: ignore[operator]
        out = np.zeros(rows.shape[1:]) if out is None else out
        add_rows(out, rows)
    assert out is not None
    return out


def band(rows: slice) -> slice:
    return slice(rows.start * LON.size, rows.stop * LON.size)


@pytest.mark.parametrize("weighted", [True, False])
def test_sums_are_those_of_exact_arithmetic(weighted: bool) -> None:
    field = np.random.default_rng(2).standard_normal((2, GRID.size, 3))
    reducer = Reducer(GRID, MASKS, WEIGHT)
    got = total(reducer, [], lambda rows: reducer.sums(field, rows, weighted=weighted))
    assert got.shape == (len(MASKS), 2, 3)
    for r, mask in enumerate(MASKS.values()):
        for c, k in np.ndindex(2, 3):
            w = WEIGHT if weighted else np.ones(GRID.size)
            exact = sum((Fraction(w[i]) * Fraction(field[c, i, k]) for i in np.flatnonzero(mask)), Fraction())
            assert got[r, c, k] == pytest.approx(float(exact), rel=1e-13, abs=1e-14)


def test_shares_of_ranks_are_those_of_exact_arithmetic_for_ties_at_every_place() -> None:
    rng = np.random.default_rng(3)
    members = 6
    below = rng.integers(0, members + 1, GRID.size)
    tied = rng.integers(0, members + 1 - below)
    below[:30], tied[:30] = 0, rng.integers(0, members + 1, 30)
    used = rng.random(GRID.size) < 0.9
    reducer = Reducer(GRID, MASKS, WEIGHT)
    got = total(reducer, [], lambda rows: reducer.rank_sums(below, tied, used, members, rows))
    for r, mask in enumerate(MASKS.values()):
        exact = [Fraction()] * (members + 1)
        for i in np.flatnonzero(mask & used):
            for rank in range(below[i], below[i] + tied[i] + 1):
                exact[rank] += Fraction(WEIGHT[i]) / int(tied[i] + 1)
        np.testing.assert_allclose(got[r], [float(e) for e in exact], rtol=1e-13, atol=0)


def test_products_and_sparse_fields_are_summed_like_full_ones() -> None:
    x = np.random.default_rng(4).standard_normal((3, GRID.size))
    reducer, rows = Reducer(GRID, MASKS, WEIGHT), slice(2, 7)
    x = x[:, band(rows)]
    full = np.einsum("un,vn->nuv", x, x).reshape(1, -1, 9)
    expected = reducer.sums(full, rows)[:, :, 0].reshape(5, -1, 3, 3)
    np.testing.assert_allclose(reducer.product_sums(x, rows), expected, rtol=1e-12, atol=1e-12)
    thin = np.where(np.abs(x) > 0.5, x, 0).T
    got = reducer.sparse_sums(sparse.csr_array(thin), rows)
    np.testing.assert_allclose(got, reducer.sums(thin[None], rows)[:, :, 0], rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(1, LAT.size - 1), unique=True, max_size=5).map(sorted),
    names=st.lists(st.sampled_from(sorted(MASKS)), unique=True, min_size=1),
    channels=st.lists(st.integers(0, 2), unique=True, min_size=1),
    seed=st.integers(0, 2**32 - 1),
)
def test_bits_depend_on_no_cut_no_other_region_and_no_other_channel(
    cuts: list[int], names: list[str], channels: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((3, GRID.size)) * 10.0 ** rng.integers(-3, 6, (3, 1))
    below = rng.integers(0, 6, GRID.size)
    tied = np.where(rng.random(GRID.size) < 0.5, rng.integers(0, 6 - below), 0)
    used = rng.random(GRID.size) < 0.9
    whole = Reducer(GRID, MASKS, WEIGHT)
    some = Reducer(GRID, {name: MASKS[name] for name in names}, WEIGHT)
    place = [list(MASKS).index(name) for name in names]

    def ranks(reducer: Reducer, rows: slice) -> np.ndarray:
        part = band(rows)
        return reducer.rank_sums(below[part], tied[part], used[part], 5, rows)

    expected = total(whole, [], lambda rows: whole.sums(field, rows))
    got = total(some, cuts, lambda rows: some.sums(field[channels][:, band(rows)], rows))
    np.testing.assert_array_equal(got[..., 0], expected[place][:, channels, 0])
    deep = total(some, cuts, lambda rows: some.sums(np.moveaxis(field[None, :, band(rows)], 1, 2), rows))
    np.testing.assert_array_equal(deep[:, 0], expected[place][..., 0])
    expected = total(whole, [], lambda rows: ranks(whole, rows))
    np.testing.assert_array_equal(total(some, cuts, lambda rows: ranks(some, rows)), expected[place])
