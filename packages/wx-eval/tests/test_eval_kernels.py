"""Ensemble statistics against definitions in float64, closed forms and a peer."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wx_eval import ensemble_statistics
from wx_eval._kernels import mean_error


def normal(rng: np.random.Generator, *shape: int, dtype: type = np.float64) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def by_definition(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    x, y = x.astype(np.float64), y.astype(np.float64)
    members = len(x)
    pairs = np.abs(x[:, None] - x[None]).sum(axis=(0, 1)) / 2
    skill = np.abs(x - y).mean(axis=0)
    return {
        "skill": skill,
        "pair_sum": pairs,
        "error": x.mean(axis=0) - y,
        "variance": x.var(axis=0, ddof=1),
        "crps_fair": skill - pairs / (members * (members - 1)),
        "crps_biased": skill - pairs / members**2,
    }


@pytest.mark.parametrize("members", [*range(2, 18), 20, 33, 50, 64, 100])
def test_statistics_match_their_definition_to_rounding(members: int) -> None:
    rng = np.random.default_rng(members)
    x, y = normal(rng, members, 7, 11), normal(rng, 7, 11)
    got = ensemble_statistics(x, y)
    for name, expected in by_definition(x, y).items():
        np.testing.assert_allclose(getattr(got, name), expected, rtol=1e-13, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("mean", [0.0, 5.5e4])
def test_area_means_of_float32_input_agree_with_float64_within_2e_8(mean: float) -> None:
    rng = np.random.default_rng(1)
    x = (mean + 300 * normal(rng, 50, 30000)).astype(np.float32)
    y = (mean + 300 * normal(rng, 30000)).astype(np.float32)
    got, expected = ensemble_statistics(x, y), ensemble_statistics(x.astype(np.float64), y.astype(np.float64))
    for name in ("crps_fair", "crps_biased", "variance"):
        a, b = (float(np.mean(getattr(s, name), dtype=np.float64)) for s in (got, expected))
        assert abs(a / b - 1) < 2e-8, name
    mse = [float(np.mean(s.error.astype(np.float64) ** 2)) for s in (got, expected)]
    assert abs(mse[0] / mse[1] - 1) < 2e-8


@pytest.mark.parametrize("members", [2, 8, 50])
def test_normal_ensemble_and_truth_give_the_closed_forms(members: int) -> None:
    # X, Y ~ N(0, 1): E|X - Y| = 2 / sqrt(pi), so E fair = 1 / sqrt(pi) and E biased = (1 + 1/M) / sqrt(pi).
    rng = np.random.default_rng(members)
    points = 60000
    got = ensemble_statistics(normal(rng, members, points), normal(rng, points))
    fair, factor = 1 / np.sqrt(np.pi), 1 + 1 / members
    for name, expected in {"crps_fair": fair, "crps_biased": fair * factor, "variance": 1.0}.items():
        values = getattr(got, name)
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(points), name
    square = got.error**2
    assert abs(square.mean() - factor) < 4 * square.std() / np.sqrt(points)


def test_fair_score_does_not_depend_on_the_ensemble_size_but_the_biased_one_does() -> None:
    rng = np.random.default_rng(3)
    x, y = normal(rng, 8, 40000), normal(rng, 40000)
    full = ensemble_statistics(x, y)
    assert full.crps_biased.mean() == pytest.approx(0.635, abs=0.01)
    assert full.crps_fair.mean() == pytest.approx(0.564, abs=0.01)


def test_members_may_come_in_any_order() -> None:
    rng = np.random.default_rng(4)
    x, y = normal(rng, 21, 500), normal(rng, 500)
    a = ensemble_statistics(x, y, ranks=True)
    b = ensemble_statistics(x[rng.permutation(21)], y, ranks=True)
    np.testing.assert_array_equal(a.pair_sum, b.pair_sum)
    np.testing.assert_array_equal(a.below, b.below)
    np.testing.assert_allclose(a.skill, b.skill, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_point_does_not_depend_on_its_tile_bit_for_bit(dtype: type) -> None:
    rng = np.random.default_rng(5)
    x, y = normal(rng, 9, 40000, dtype=dtype), normal(rng, 40000, dtype=dtype)
    whole = ensemble_statistics(x, y)
    for part in (slice(0, 1), slice(32765, 32772), slice(3, 39999)):
        alone = ensemble_statistics(x[:, part], y[part])
        for name in ("skill", "pair_sum", "error", "variance"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(whole, name)[part], err_msg=name)


def test_ranks_count_members_below_and_equal() -> None:
    x = np.array([[1.0, 0.0], [2.0, 0.0], [2.0, 3.0]])
    got = ensemble_statistics(x, np.array([2.0, 0.0]), ranks=True)
    assert got.below is not None
    assert got.equal is not None
    assert got.below.tolist() == [1, 0]
    assert got.equal.tolist() == [2, 2]


def test_ranks_of_more_than_255_members_do_not_wrap() -> None:
    got = ensemble_statistics(np.zeros((300, 2)), np.array([1.0, 0.0]), ranks=True)
    assert got.below is not None
    assert got.equal is not None
    assert got.below.tolist() == [300, 0]
    assert got.equal.tolist() == [0, 300]


def test_one_missing_point_stays_alone_and_makes_no_warning() -> None:
    rng = np.random.default_rng(6)
    x, y = normal(rng, 5, 40), normal(rng, 40)
    clean = ensemble_statistics(x, y).crps_fair
    y[7], x[2, 9] = np.nan, np.inf
    got = ensemble_statistics(x, y).crps_fair
    assert np.flatnonzero(~np.isfinite(got)).tolist() == [7, 9]
    np.testing.assert_array_equal(np.delete(got, [7, 9]), np.delete(clean, [7, 9]))


def test_a_single_member_has_an_absolute_error_and_no_fair_crps() -> None:
    got = ensemble_statistics(np.array([[3.0]]), np.array([1.0]))
    assert got.skill.tolist() == [2.0]
    assert np.isnan(got.variance).all()
    with pytest.raises(ValueError, match="at least 2 members"):
        _ = got.crps_fair


@pytest.mark.parametrize("shape", [(3, 5), (4,), (0, 4), ()])
def test_shapes_that_do_not_match_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="values must have shape"):
        ensemble_statistics(np.zeros(shape), np.zeros(4))


def test_scoringrules_agrees_on_both_estimators() -> None:
    peer = pytest.importorskip("scoringrules")
    rng = np.random.default_rng(7)
    x, y = normal(rng, 13, 200), normal(rng, 200)
    got = ensemble_statistics(x, y)
    for name, estimator in {"crps_fair": "fair", "crps_biased": "nrg"}.items():
        expected = peer.crps_ensemble(y, x, m_axis=0, estimator=estimator, backend="numpy")
        np.testing.assert_allclose(getattr(got, name), expected, rtol=0, atol=1e-13)


FIELDS = ("skill", "pair_sum", "error", "variance", "below", "equal", "crps_fair", "crps_biased")


def coarse(members: int, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Ensembles with ties, a missing truth and an infinite member, on more points than a compiled tile."""
    rng = np.random.default_rng(members)
    x = np.round(normal(rng, members, 3, 1000), 2).astype(dtype)
    y = np.round(normal(rng, 3, 1000), 2).astype(dtype)
    y[1, 7], x[0, 2, 9] = np.nan, np.inf
    return x, y


@pytest.mark.parametrize("members", [1, 2, 3, 8, 50, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_kernel_gives_the_same_bits(members: int, dtype: type) -> None:
    pytest.importorskip("numba", reason="numba is not installed: the compiled kernel is not tested")
    x, y = coarse(members, dtype)
    expected = ensemble_statistics(x, y, ranks=True)
    got = ensemble_statistics(x, y, ranks=True, kernel="numba")
    for name in FIELDS if members > 1 else FIELDS[:-2]:
        a, b = getattr(got, name), getattr(expected, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=name)
    strided = ensemble_statistics(x[:, ::-1], y[::-1], kernel="numba").pair_sum[::-1]
    np.testing.assert_array_equal(strided, got.pair_sum)


def test_a_kernel_that_is_unknown_or_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='kernel must be "numpy" or "numba"'):
        ensemble_statistics(np.zeros((2, 3)), np.zeros(3), kernel="cuda")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "wx_eval._kernels_numba", raising=False)
    with pytest.raises(ImportError, match=r"wx-eval\[fast\]"):
        ensemble_statistics(np.zeros((2, 3)), np.zeros(3), kernel="numba")


@pytest.mark.parametrize("members", [1, 2, 3, 8, 50, 300])
def test_tensors_give_the_same_statistics_on_their_device(members: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: its kernel is not tested")
    x, y = coarse(members)
    expected = ensemble_statistics(x, y, ranks=True)
    for device in ["cpu", *["cuda"] * torch.cuda.is_available()]:
        tensor = torch.tensor(x, device=device, requires_grad=True)
        got = ensemble_statistics(tensor, torch.tensor(y, device=device), ranks=True)
        assert got.skill.device.type == device
        assert not got.skill.requires_grad
        for name in FIELDS if members > 1 else FIELDS[:-2]:
            a, b = getattr(got, name).cpu().numpy(), getattr(expected, name)
            finite = np.isfinite(b)
            np.testing.assert_array_equal(np.isfinite(a), finite, err_msg=name)
            np.testing.assert_allclose(a[finite], b[finite], rtol=1e-12, atol=1e-12, err_msg=name)
            np.testing.assert_array_equal(np.asarray(getattr(got.to_numpy(), name)), getattr(got, name).cpu())
    with pytest.raises(ValueError, match="values must have shape"):
        ensemble_statistics(torch.zeros(2, 5), torch.zeros(4))


@pytest.mark.parametrize("members", [1, 2, 3, 8, 50, 300])
def test_the_kernel_of_accelerators_agrees(members: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: its kernel is not tested")
    from wx_eval._kernels import _merge_exchange
    from wx_eval._kernels_torch import statistics

    x, y = (a.reshape(*a.shape[:-2], -1) for a in coarse(members))
    expected = ensemble_statistics(x, y, ranks=True)
    out, counts = statistics(torch.tensor(x), torch.tensor(y), _merge_exchange(members), ranks=True)
    for name, a in zip(FIELDS, [*out.numpy(), *counts.numpy()], strict=False):
        b = getattr(expected, name)
        finite = np.isfinite(b)
        np.testing.assert_array_equal(np.isfinite(a), finite, err_msg=name)
        np.testing.assert_allclose(a[finite], b[finite], rtol=1e-12, atol=1e-12, err_msg=name)


def test_half_precision_tensors_are_handled_in_single_precision() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: its kernel is not tested")
    rng = np.random.default_rng(9)
    x, y = (torch.tensor(normal(rng, *shape)).bfloat16() for shape in ((6, 40), (40,)))
    got = ensemble_statistics(x, y).to_numpy()
    expected = ensemble_statistics(x.float().numpy(), y.float().numpy())
    assert got.pair_sum.dtype == np.float32
    np.testing.assert_allclose(got.pair_sum, expected.pair_sum, rtol=1e-6)
    np.testing.assert_allclose(got.variance, expected.variance, rtol=1e-5)


def test_float32_tensors_agree_with_float64_within_2e_8() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: its kernel is not tested")
    rng = np.random.default_rng(8)
    x = (5.5e4 + 300 * normal(rng, 50, 30000)).astype(np.float32)
    y = (5.5e4 + 300 * normal(rng, 30000)).astype(np.float32)
    got = ensemble_statistics(torch.from_numpy(x), torch.from_numpy(y)).crps_fair.mean().item()
    assert got == pytest.approx(
        ensemble_statistics(x.astype(float), y.astype(float)).crps_fair.mean(), rel=2e-8
    )


@pytest.mark.parametrize("members", [1, 2, 7, 50])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_error_alone_has_the_bits_of_the_whole(members: int, dtype: type) -> None:
    x, y = coarse(members, dtype)
    got, expected = mean_error(x, y), ensemble_statistics(x, y).error
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    half = x.astype(np.float16)
    np.testing.assert_array_equal(mean_error(half, y), mean_error(half.astype(dtype), y))


@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=60, deadline=None)
def test_the_network_sorts_any_number_of_members(members: int, seed: int, dtype: type) -> None:
    # Small integers: every sum is exact, so the two forms of the pair sum are equal to the last bit.
    x = np.random.default_rng(seed).integers(-50, 50, (members, 30)).astype(dtype)
    pairs = np.abs(x[:, None] - x[None]).sum(axis=(0, 1)) / 2
    np.testing.assert_array_equal(ensemble_statistics(x, np.zeros(30, dtype)).pair_sum, pairs)


def test_tensors_take_a_truth_of_any_memory_layout_and_bfloat16_is_exact_in_float32() -> None:
    torch = pytest.importorskip("torch", reason="the extra torch")
    x, y = (np.random.default_rng(2).integers(-99, 99, shape) for shape in ((5, 3, 40), (3, 40)))
    expected = ensemble_statistics(x.astype(np.float32), y.astype(np.float32)).crps_fair
    frozen = y.astype(np.float32)
    frozen.flags.writeable = False
    for truth in (frozen, y[..., ::-1].astype(np.float32)[..., ::-1], y.astype(">f4")):
        for dtype in (torch.float32, torch.bfloat16):
            # Small whole numbers are exact in eight bits.
            got = ensemble_statistics(torch.tensor(x, dtype=dtype), truth)
            np.testing.assert_array_equal(got.crps_fair.numpy(), expected)
            # A device without numbers goes the way of an accelerator.
            away = ensemble_statistics(torch.tensor(x, dtype=dtype, device="meta"), truth, ranks=True)
            assert (away.skill.device.type, away.skill.shape) == ("meta", y.shape)
    tensor = torch.tensor(y, dtype=torch.float32, requires_grad=True)
    np.testing.assert_array_equal(ensemble_statistics(x.astype(np.float32), tensor).crps_fair, expected)


def test_masked_members_and_truths_are_missing() -> None:
    x, y = np.ma.masked_equal(np.arange(12).reshape(3, 4), 5), np.ma.masked_equal(np.arange(4), 2)
    got = ensemble_statistics(x, y)
    np.testing.assert_array_equal(np.isnan(got.skill), [False, True, True, False])
