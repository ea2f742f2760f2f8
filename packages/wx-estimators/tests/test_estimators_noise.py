"""Noise: invariance to batching, moments, isotropy of spherical noise."""

import math

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from wx_estimators import Key, SphericalNoise, WhiteNoise, Window
from wx_estimators._sphere import legendre, point_variance

LATITUDES = tuple(np.linspace(90.0, -90.0, 17))
SPHERE = SphericalNoise(latitudes=LATITUDES, longitudes=32)
SHAPE = (3, 17, 32)
CPU = {"device": "cpu", "dtype": torch.float32}
SOURCES = pytest.mark.parametrize("source", [WhiteNoise(), SPHERE], ids=["white", "sphere"])


def key(members=range(6), inits=(100, 106)):
    return Key(7, torch.tensor(inits), torch.tensor(list(members)), lead=2)


@SOURCES
def test_members_are_the_same_bits_in_any_company(source):
    whole = source.draw(key(), SHAPE, **CPU)
    parts = [source.draw(key(range(i, i + 2)), SHAPE, **CPU) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(source.draw(key(reversed(range(6))), SHAPE, **CPU).flip(1), whole)
    for b, init in enumerate((100, 106)):
        for m in range(6):
            assert torch.equal(source.draw(key([m], [init]), SHAPE, **CPU)[0, 0], whole[b, m])
    rows = [source.draw(key().rows(slice(i, i + 5)), SHAPE, **CPU) for i in (0, 5, 10)]
    assert torch.equal(torch.cat(rows).reshape(whole.shape), whole)


@SOURCES
def test_windows_tile_the_global_draw(source):
    whole = source.draw(key(), SHAPE, **CPU)
    for start, rows in ((0, 9), (9, 8)):
        window = Window(global_shape=SHAPE, start=(0, start, 0))
        part = source.draw(key(), (3, rows, 32), **CPU, window=window)
        assert torch.equal(part, whole[..., start : start + rows, :])


@SOURCES
def test_noise_is_the_same_in_every_dtype_and_leaves_global_state_alone(source):
    before = torch.random.get_rng_state()
    single = source.draw(key(), SHAPE, **CPU)
    double = source.draw(key(), SHAPE, device="cpu", dtype=torch.float64)
    assert torch.equal(double.float(), single)
    assert torch.equal(torch.random.get_rng_state(), before)


@SOURCES
def test_members_leads_and_streams_are_independent(source):
    draws = [source.draw(k, SHAPE, **CPU).flatten(0, 1) for k in (key(), key().at_lead(3), key().sub("a"))]
    x = torch.cat(draws)[:, :, 4:13].flatten(1).double()  # middle latitudes: fewer repeated points
    corr = torch.corrcoef(x) - torch.eye(len(x))
    # 36 fields, 630 pairs; at least 3 x 100 degrees of freedom: 6 s.e. are far out.
    assert corr.abs().max() < 6 / math.sqrt(300)
    assert torch.linalg.matrix_rank(x) == len(x)


def test_white_noise_is_standard_normal():
    x = WhiteNoise().draw(Key(1, torch.arange(40), torch.arange(50)), (100,), **CPU).double()
    n = x.numel()
    assert abs(float(x.mean())) < 4 / math.sqrt(n)
    assert abs(float(x.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((x**4).mean()) - 3) < 4 * math.sqrt(96 / n)


def test_white_noise_draws_are_small_enough_for_a_training_step():
    # Cost in calls, not in seconds: one normal_ and one manual_seed per row.
    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Count.calls += getattr(func, "__name__", "") == "normal_"
            return func(*args, **(kwargs or {}))

    with Count():
        WhiteNoise().draw(key(), SHAPE, **CPU)
    assert Count.calls == 12


@pytest.mark.parametrize("rows", [17, 33, 10])
@pytest.mark.parametrize("spectrum", ["white", "flat", 3.0])
def test_point_variance_is_one_at_every_latitude(rows, spectrum):
    step = 180.0 / rows
    latitudes = np.linspace(90, -90, rows) if rows % 2 else 90 - step * (np.arange(rows) + 0.5)
    noise = SphericalNoise(latitudes=tuple(latitudes), longitudes=64, spectrum=spectrum)
    # Float32 basis: rounding of 1e-7 per factor.
    torch.testing.assert_close(
        point_variance(noise.basis()), torch.ones(rows, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_one_factor_for_every_order_halves_the_poles():
    # Negative control: the published convention, equal variance of both parts for all m.
    basis = SPHERE.basis().clone()
    basis[0] /= math.sqrt(2.0)
    variance = point_variance(basis)
    assert variance[0] == pytest.approx(0.5, abs=1e-6)
    assert 0.96 < variance[8] / variance[0] / 2 < 0.99


def test_sampled_covariance_depends_only_on_the_angle_between_points():
    noise = SphericalNoise(latitudes=LATITUDES, longitudes=32, spectrum=2.0, lmax=6)
    x = noise.draw(Key(2, torch.arange(100), torch.arange(100)), (1, 17, 32), **CPU).flatten(0, 2).double()
    n = len(x)
    lat, lon = np.deg2rad(np.array(LATITUDES)), 2 * np.pi * np.arange(32) / 32
    where = np.stack(
        [
            np.cos(lat)[:, None] * np.cos(lon),
            np.cos(lat)[:, None] * np.sin(lon),
            np.sin(lat)[:, None] + 0 * lon,
        ],
        -1,
    ).reshape(-1, 3)
    pick = np.array([0, 40, 77, 150, 200, 273, 333, 480, 543])
    angle = where[pick] @ where[pick].T
    width = 2 * np.arange(7) + 1
    # Addition theorem: covariance = sum_l (2l + 1) C_l P_l(cos angle) / 4 pi.
    expected = np.polynomial.legendre.legval(angle, width * np.array(noise.power()) / (4 * np.pi))
    got = (x.flatten(1)[:, pick].T @ x.flatten(1)[:, pick] / n).numpy()
    assert np.abs(got - expected).max() < 5 * math.sqrt(2 / n)


def test_legendre_functions_are_orthonormal():
    x, w = np.polynomial.legendre.leggauss(40)
    p = legendre(tuple(np.rad2deg(np.arcsin(x))), 20)
    for m in range(21):
        gram = 2 * np.pi * np.einsum("ij,kj,j->ik", p[m, m:], p[m, m:], w)
        np.testing.assert_allclose(gram, np.eye(21 - m), atol=1e-12)


def test_named_spectra_have_the_power_they_name():
    degree = np.arange(16)
    white = np.array(SPHERE.power())
    flat = np.array(SphericalNoise(latitudes=LATITUDES, longitudes=32, spectrum="flat").power())
    np.testing.assert_allclose(white, white[0])
    np.testing.assert_allclose(flat * (2 * degree + 1), flat[0])
    for power in (white, flat):
        assert ((2 * degree + 1) * power).sum() / (4 * np.pi) == pytest.approx(1.0, abs=1e-14)


def test_spherical_noise_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"must end in the grid \(17, 32\)"):
        SPHERE.draw(key(), (3, 16, 32), **CPU)
    with pytest.raises(ValueError, match=r"lmax must be in 0\.\.15"):
        SphericalNoise(latitudes=LATITUDES, longitudes=32, lmax=16)
    with pytest.raises(ValueError, match="spectrum must be"):
        SphericalNoise(latitudes=LATITUDES, longitudes=32, spectrum="pink")
    with pytest.raises(ValueError, match="latitudes must be degrees"):
        SphericalNoise(latitudes=(91.0,), longitudes=32)
