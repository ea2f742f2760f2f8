"""T11. Laws of the noise sources: variance from the basis, spectra, isotropy, correlation in lead, tails."""

import hashlib
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torch.overrides import TorchFunctionMode

from wx_estimators import (
    EDM,
    EnsembleCRPS,
    FlowMatching,
    Key,
    SphericalNoise,
    StochasticInterpolant,
    WhiteNoise,
    Window,
)
from wx_estimators._draws import normals
from wx_estimators._noise import NOISES, AntitheticNoise, AR1Noise, AtlasNoise, StudentTNoise, _gamma
from wx_estimators._philox import normal_pair, philox4x32
from wx_estimators._settings import read_any
from wx_estimators._sphere import legendre, noise_basis, order_blocks, point_variance

LATITUDES = tuple(np.linspace(90.0, -90.0, 17))
SPHERE = SphericalNoise(latitudes=LATITUDES, longitudes=32)
ENGINES = pytest.mark.parametrize("engine", ["generator", "philox"])
MANY = Key(3, torch.arange(-20, 20), torch.arange(50))


def key(members=range(6), inits=(100, 106), lead=2):
    return Key(7, torch.tensor(inits), torch.tensor(list(members)), lead=lead)


def dense(noise):
    """(m, l, latitude) basis, put together from its tiles."""
    tiles = noise_basis(noise._rings(), *noise._factors(), torch.device("cpu"))
    degrees = len(noise._factors()[0])
    out = torch.zeros(degrees, degrees, noise.grid[0])
    for orders, *blocks in zip(order_blocks(degrees), *tiles, strict=True):
        part = torch.cat(blocks, -1)[..., : noise.grid[0]]
        out[orders.start : orders.stop, orders.start :] = part
    return out


# Philox and the normals made from it


@pytest.mark.parametrize(
    ("counter", "words", "expected"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(counter, words, expected):
    out = philox4x32(tuple(torch.tensor([c]) for c in counter), words)
    assert tuple(int(w) for w in out) == expected


def test_bytes_of_philox_words_are_uniform():
    index, zero = torch.arange(100_000), torch.zeros(1, dtype=torch.int64)
    words = torch.stack(philox4x32((index, zero, zero, zero), (1, 2)))
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((words >> shift & 255).reshape(-1), minlength=256).double()
        expected = words.numel() / 256
        assert stats.chi2.cdf(float(((counts - expected) ** 2 / expected).sum()), 255) < 0.9999


def python_philox(counter, words):
    """The definition, in Python integers."""
    c, (k0, k1), mask = list(counter), words, 2**32 - 1
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & mask, (p0 >> 32) ^ c[3] ^ k1, p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c


def exact_normals(first, second):
    """Box and Muller in float64, with the quadrants of `normal_pair`."""
    radius = math.sqrt(-2.0 * math.log((first + 0.5) / 2**32))
    angle = ((second << 2 & 2**32 - 1) ^ 2**31) / 2**32 * math.pi / 2
    x, y = radius * math.cos(angle), radius * math.sin(angle)
    return (-x if second >> 31 else x), (-y if second >> 30 & 1 else y)


def test_philox_noise_is_the_documented_function_of_key_and_index():
    k = Key(-(2**40) - 5, torch.tensor([-7]), torch.tensor([2**40]))
    shape = (2, 6, 3)  # the first axis of 4 or more is axis 1: its entries are lanes
    x = WhiteNoise("philox").draw(k, shape)[0, 0]
    row, seed = int(k.seeds()[0, 0]), (-(2**40) - 5) % 2**64
    for c, h, w in ((0, 0, 0), (0, 3, 1), (1, 4, 2), (1, 5, 0)):
        index = (h // 4) * 6 + c * 3 + w
        words = python_philox((index, 0, row % 2**32, row >> 32), (seed % 2**32, seed >> 32))
        pair = exact_normals(*words[:2]) if h % 4 < 2 else exact_normals(*words[2:])
        assert float(x[c, h, w]) == pytest.approx(pair[h % 2], abs=1e-6, rel=1e-6)


def test_counters_beyond_32_bits_go_on_in_the_second_word():
    low = torch.tensor([2**32 - 1, 2**32, 2**33 + 5])
    out = philox4x32((low & 2**32 - 1, low >> 32, torch.tensor([1]), torch.tensor([2])), (3, 4))
    for i, value in enumerate(low.tolist()):
        expected = python_philox((value % 2**32, value >> 32, 1, 2), (3, 4))
        assert [int(w[i]) for w in out] == expected


def test_normals_are_box_muller_to_float32_rounding_and_finite_at_the_ends():
    ends = [0, 1, 2, 2**16, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    spread = np.random.Generator(np.random.PCG64(1)).integers(0, 2**32, 4000).tolist()
    first, second = ends * len(ends) + spread, [e for e in ends for _ in ends] + spread[::-1]
    got = torch.stack(normal_pair(torch.tensor(first), torch.tensor(second))).double().numpy()
    exact = np.array([exact_normals(a, b) for a, b in zip(first, second, strict=True)]).T
    assert np.isfinite(got).all()
    # u near 1 keeps 24 bits in float32: an error of 2^-25 in u moves a radius r by 2^-25 / r.
    radius = np.hypot(*exact)
    assert (np.abs(got - exact) <= 1e-6 * radius + 2.0**-25 / np.maximum(radius, 2.0**-12)).all()


def test_normals_have_the_same_bits_wherever_they_stand_in_a_tensor():
    words = torch.randint(0, 2**32, (2, 1003), generator=torch.Generator().manual_seed(0))
    whole = torch.stack(normal_pair(*words))
    single = torch.stack([torch.stack(normal_pair(*words[:, i : i + 1])) for i in range(0, 1003, 17)], 1)
    assert torch.equal(single.squeeze(-1), whole[:, ::17])


def test_philox_noise_has_the_same_bits_without_vector_instructions():
    # Another instruction set is the nearest thing to another device that every machine has.
    program = (
        "import hashlib, torch, wx_estimators as w\n"
        "k = w.Key(7, torch.tensor([100, 106]), torch.arange(6), 2)\n"
        "x = w.WhiteNoise('philox').draw(k, (5, 63, 65)); print(torch.backends.cpu.get_cpu_capability(),"
        "hashlib.sha256(x.numpy().tobytes()).hexdigest())"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    x = WhiteNoise("philox").draw(key(), (5, 63, 65))
    capability, digest = ran.stdout.split()
    assert capability == "DEFAULT"
    assert digest == hashlib.sha256(x.numpy().tobytes()).hexdigest()


def test_philox_is_one_graph_under_torch_compile():
    index, word = torch.arange(257), torch.full((1,), 9)

    def draw(i):
        return torch.stack(normal_pair(*philox4x32((i, word, word, word), (5, 6))[:2]))

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(index), draw(index))


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NOT RUN: same bits on the CPU and on CUDA needs CUDA"
)
def test_philox_noise_has_the_same_bits_on_cuda():
    shape = (5, 63, 65)
    on_cpu = WhiteNoise("philox").draw(key(), shape)
    assert torch.equal(WhiteNoise("philox").draw(key(), shape, device="cuda").cpu(), on_cpu)
    sphere = SphericalNoise(latitudes=LATITUDES, longitudes=32, engine="philox")
    on_cpu = sphere.draw(key(), (3, 17, 32))
    torch.testing.assert_close(
        sphere.draw(key(), (3, 17, 32), device="cuda").cpu(), on_cpu, atol=1e-5, rtol=0
    )


# White noise


@ENGINES
def test_white_noise_is_standard_normal(engine):
    x = WhiteNoise(engine).draw(MANY, (100,)).double()
    n = x.numel()
    assert abs(float(x.mean())) < 4 / math.sqrt(n)
    assert abs(float(x.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((x**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    assert stats.kstest(x.reshape(-1).numpy(), "norm").pvalue > 1e-3


@ENGINES
def test_values_of_one_draw_are_independent(engine):
    # The four lanes of a counter are neighbours in the first axis.
    x = WhiteNoise(engine).draw(MANY, (8, 20)).flatten(0, 1).double()
    n = x.shape[0] * 20
    lanes = x.permute(1, 0, 2).reshape(8, -1)
    for power in (1, 2):
        corr = torch.corrcoef(lanes**power) - torch.eye(8)
        assert corr.abs().max() < 4.5 / math.sqrt(n)
    along = torch.corrcoef(x.reshape(-1, 20).T) - torch.eye(20)
    assert along.abs().max() < 4.5 / math.sqrt(8 * x.shape[0])


@pytest.mark.parametrize(
    "source",
    [
        WhiteNoise(),
        WhiteNoise("philox"),
        SPHERE,
        SphericalNoise(latitudes=LATITUDES, longitudes=32, engine="philox"),
    ],
    ids=["white", "philox", "sphere", "sphere-philox"],
)
def test_members_leads_and_streams_are_independent(source):
    keys = (key(), key(lead=3), key().sub("a"), key().sub("a", 1))
    draws = [source.draw(k, (3, 17, 32)).flatten(0, 1) for k in keys]
    x = torch.cat(draws)[:, :, 4:13].flatten(1).double()  # middle latitudes: fewer repeated points
    corr = torch.corrcoef(x) - torch.eye(len(x))
    # 48 fields, 1128 pairs; at least 3 x 100 degrees of freedom: 6 s.e. are far out.
    assert corr.abs().max() < 6 / math.sqrt(300)
    assert torch.linalg.matrix_rank(x) == len(x)


def test_generator_draws_are_small_enough_for_a_training_step():
    # Cost in calls, not in seconds: one normal_ and one manual_seed per row.
    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Count.calls += getattr(func, "__name__", "") == "normal_"
            return func(*args, **(kwargs or {}))

    with Count():
        WhiteNoise().draw(key(), (3, 17, 32))
    assert Count.calls == 12


def test_philox_blocks_bound_the_number_of_operations_for_short_rows():
    # 2000 rows of a noise vector: as many operations as for one.
    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Count.calls += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for members in (1, 2000):
        Count.calls = 0
        with Count():
            WhiteNoise("philox").draw(Key(1, torch.zeros(1, dtype=torch.int64), torch.arange(members)), (32,))
        counts.append(Count.calls)
    assert counts[0] == counts[1]


# The sphere


@pytest.mark.parametrize("rows", [17, 33, 10])
@pytest.mark.parametrize("spectrum", ["white", "flat", ("power", 3.0), ("heat", 0.01)])
def test_point_variance_is_one_at_every_latitude(rows, spectrum):
    step = 180.0 / rows
    latitudes = np.linspace(90, -90, rows) if rows % 2 else 90 - step * (np.arange(rows) + 0.5)
    noise = SphericalNoise(latitudes=tuple(latitudes), longitudes=64, spectrum=spectrum)
    # Float32 basis: rounding of 1e-7 per factor.
    torch.testing.assert_close(
        noise.point_variance(), torch.ones(rows, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_synthesis_is_the_sum_of_the_harmonics_it_names():
    # A plain sum in float64 over the Legendre functions checked below; lmax 44 crosses a block of orders.
    latitudes, longitudes = (90.0, 61.0, 7.5, -33.0, -90.0), 90
    noise = SphericalNoise(latitudes=latitudes, longitudes=longitudes, spectrum=("power", 1.0))
    degrees = noise.degree + 1
    u = normals("generator", key([3], [9]), (2, degrees, degrees), "cpu").double().numpy()[0]
    p = legendre(latitudes, noise.degree, range(degrees))
    lon = 2 * np.pi * np.arange(longitudes) / longitudes
    field = np.zeros((2, 5, longitudes))
    for degree, power in enumerate(noise.power()):
        field += math.sqrt(power) * (u[:, 0, degree, None] * p[0, degree])[:, :, None]
        for m in range(1, degree + 1):
            wave = u[:, m, degree, None] * np.cos(m * lon) - u[:, degree, m - 1, None] * np.sin(m * lon)
            field += 2 * math.sqrt(power / 2) * p[m, degree][None, :, None] * wave[:, None]
    got = noise.draw(key([3], [9]), (2, 5, longitudes))[0, 0].double().numpy()
    np.testing.assert_allclose(got, field, atol=2e-5)
    assert field.std() > 0.5


def test_sampled_covariance_depends_only_on_the_angle_between_points():
    noise = SphericalNoise(latitudes=LATITUDES, longitudes=32, spectrum=("power", 2.0), lmax=6)
    x = noise.draw(Key(2, torch.arange(100), torch.arange(100)), (1, 17, 32)).flatten(0, 2).double()
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


@pytest.mark.parametrize("spectrum", ["white", "flat", ("power", 2.0), ("heat", 0.02)])
def test_covariance_of_the_basis_is_the_legendre_sum(spectrum):
    # Rotation invariance without sampling: cov(lat, lat', dlon) = E_0 E_0' + 4 sum_m E_m E_m' cos(m dlon).
    noise = SphericalNoise(latitudes=LATITUDES, longitudes=64, spectrum=spectrum)
    e = dense(noise).double().numpy()
    dlon = 2 * np.pi * np.arange(64) / 64
    weight = np.where(np.arange(len(e)) == 0, 1.0, 4.0)
    cov = np.einsum("mli,mlj,mw->ijw", e, e, weight[:, None] * np.cos(np.arange(len(e))[:, None] * dlon))
    lat = np.deg2rad(np.array(LATITUDES))
    cos = np.sin(lat)[:, None, None] * np.sin(lat)[:, None] + np.cos(lat)[:, None, None] * np.cos(lat)[
        :, None
    ] * np.cos(dlon)
    width = 2 * np.arange(noise.degree + 1) + 1
    expected = np.polynomial.legendre.legval(cos, width * np.array(noise.power()) / (4 * np.pi))
    np.testing.assert_allclose(cov, expected, atol=1e-6)


@ENGINES
def test_empirical_spectrum_has_a_chi_square_law_per_degree(engine):
    # On a Gauss grid the analysis is exact: (2l + 1) C_l-hat / C_l is chi^2 with 2l + 1 degrees of freedom.
    x, w = np.polynomial.legendre.leggauss(24)
    latitudes, lmax = tuple(np.rad2deg(np.arcsin(x))), 12
    noise = SphericalNoise(
        latitudes=latitudes, longitudes=32, lmax=lmax, spectrum=("power", 1.5), engine=engine
    )
    draws = noise.draw(Key(5, torch.arange(10), torch.arange(20)), (1, 24, 32)).flatten(0, 2).double().numpy()
    fourier = np.fft.rfft(draws, axis=-1)[..., : lmax + 1] / 32
    p = legendre(latitudes, lmax, range(lmax + 1))
    a = 2 * np.pi * np.einsum("nhm,mlh,h->nlm", fourier, p, w)
    square = np.abs(a[..., 0]) ** 2 + 2 * (np.abs(a[..., 1:]) ** 2).sum(-1)
    for degree, power in enumerate(noise.power()):
        count = 2 * degree + 1
        values = square[:, degree] / power
        assert stats.kstest(values, stats.chi2(count).cdf).pvalue > 1e-4
        assert values.mean() / count == pytest.approx(1.0, abs=4.5 * math.sqrt(2 / count / 200))


def test_legendre_functions_are_orthonormal_and_independent_of_their_block():
    x, w = np.polynomial.legendre.leggauss(40)
    latitudes = tuple(np.rad2deg(np.arcsin(x)))
    p = legendre(latitudes, 20, range(21))
    for m in range(21):
        gram = 2 * np.pi * np.einsum("ij,kj,j->ik", p[m, m:], p[m, m:], w)
        np.testing.assert_allclose(gram, np.eye(21 - m), atol=1e-12)
    part = legendre(latitudes, 20, range(6, 9))
    assert np.array_equal(part, p[6:9, 6:])


def test_named_spectra_have_the_power_they_name():
    degree = np.arange(16)
    powers = {
        spectrum: np.array(SphericalNoise(latitudes=LATITUDES, longitudes=32, spectrum=spectrum).power())
        for spectrum in ("white", "flat", ("power", 2.5), ("heat", 0.03))
    }
    np.testing.assert_allclose(powers["white"], powers["white"][0])
    np.testing.assert_allclose(powers["flat"] * (2 * degree + 1), powers["flat"][0])
    np.testing.assert_allclose(powers["power", 2.5] * (2 * degree + 1) ** 2.5, powers["power", 2.5][0])
    heat = powers["heat", 0.03]
    np.testing.assert_allclose(heat / heat[0], np.exp(-0.03 * degree * (degree + 1)))
    for power in powers.values():
        assert ((2 * degree + 1) * power).sum() / (4 * np.pi) == pytest.approx(1.0, abs=1e-14)


def test_an_injected_transform_gives_the_field_of_the_built_in_synthesis():
    class Plain:
        def synthesize(self, a, /):
            assert not a[:, :, 0].imag.any()
            assert not a.triu(1).abs().any()
            p = torch.from_numpy(legendre(LATITUDES, a.shape[1] - 1, range(a.shape[1]))).float()
            return torch.fft.irfft(torch.einsum("klm,mlh->khm", a, p.to(a)), n=32, norm="forward")

    own = SphericalNoise(latitudes=LATITUDES, longitudes=32, spectrum=("power", 1.0), transform=Plain())
    built_in = SphericalNoise(latitudes=LATITUDES, longitudes=32, spectrum=("power", 1.0))
    torch.testing.assert_close(
        own.draw(key(), (2, 17, 32)), built_in.draw(key(), (2, 17, 32)), atol=1e-5, rtol=0
    )
    assert own.to_dict() == built_in.to_dict()


def test_the_basis_of_a_window_is_only_that_of_its_latitudes():
    # 120 latitudes: 8 tiles; a rank with rows 40..50 builds the tiles of rows 32..63.
    noise = SphericalNoise(latitudes=tuple(np.linspace(90, -90, 120)), longitudes=16)
    noise_basis.cache_clear()
    noise.draw(key(), (1, 10, 16), window=Window(global_shape=(1, 120, 16), start=(0, 40, 0)))
    assert noise_basis.cache_info().misses == 1
    latitudes = noise.latitudes[32:64]
    noise_basis(latitudes, *noise._factors(), torch.device("cpu"))
    assert noise_basis.cache_info().misses == 1


def test_autocast_does_not_touch_the_synthesis():
    plain = SPHERE.draw(key(), (3, 17, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(SPHERE.draw(key(), (3, 17, 32)), plain)


# The published noise


def test_atlas_noise_has_the_published_point_variances():
    # Published code with torch-harmonics 0.9.3, 33 x 64, 20 000 draws, s.e. 0.01: 0.52, 0.95, 1.02.
    variance = AtlasNoise(rows=33, columns=64).point_variance()
    assert variance[[0, -1]].tolist() == pytest.approx([0.52, 0.52], abs=0.02)
    assert variance[1] == pytest.approx(0.95, abs=0.02)
    assert variance[16] == pytest.approx(1.02, abs=0.02)
    # 181 x 360: standard deviation 1.00 +- 0.01 away from the poles.
    assert AtlasNoise(rows=181, columns=360).point_variance()[60:121].sqrt().sub(1).abs().max() < 0.01


def test_one_factor_for_every_order_halves_the_poles():
    # L = 32 on 33 x 64 (no order columns / 2): 0.489 and 0.968; 0.978 everywhere with sqrt(2).
    factors = AtlasNoise(rows=33, columns=64)._factors()[0][:32]
    rings = AtlasNoise(rows=33, columns=64)._rings()
    one, corrected = (
        point_variance(noise_basis(rings, factors, zonal, torch.device("cpu")), 33, 64)
        for zonal in (1.0, math.sqrt(2.0))
    )
    assert float(one[0]) == pytest.approx(0.489, abs=5e-4)
    assert float(one[16]) == pytest.approx(0.968, abs=5e-4)
    torch.testing.assert_close(corrected, torch.full_like(corrected, 0.978), atol=5e-4, rtol=0)


def test_atlas_noise_has_the_variance_of_its_basis_also_where_the_last_order_is_a_cosine_alone():
    noise = AtlasNoise(rows=9, columns=16)
    x = noise.draw(Key(4, torch.arange(40), torch.arange(100)), (2, 9, 16)).double()
    sampled = x.square().mean((0, 1, 2))  # (H, W): at W the cosine of order 8 is +-1 everywhere
    expected = noise.point_variance()[:, None].expand(9, 16)
    n = 40 * 100 * 2
    assert ((sampled / expected - 1).abs() < 4.5 * math.sqrt(2 / n)).all()


def test_atlas_coefficients_can_be_student_t():
    noise = AtlasNoise(rows=9, columns=16, dof=6.0)
    units = noise._units(MANY, (1, 3, 3), "cpu").double().reshape(-1).numpy()
    assert stats.kstest(units, stats.t(6.0).cdf).pvalue > 1e-3
    assert stats.kstest(units, "norm").pvalue < 1e-6


# Wrappers


def test_ar1_is_stationary_with_correlation_phi_to_the_lag():
    noise = AR1Noise(source=WhiteNoise(), step=6.0, tau=15.0)
    assert noise.phi == pytest.approx(math.exp(-0.4))
    x = torch.stack([noise.draw(MANY.at_lead(k), (10,)).reshape(-1).double() for k in range(6)])
    cov = (x @ x.T / x.shape[1]).numpy()
    lag = np.abs(np.arange(6)[:, None] - np.arange(6))
    assert np.abs(cov - noise.phi**lag).max() < 4.5 * math.sqrt(2 / x.shape[1])


def test_ar1_starts_at_lead_zero_with_the_draw_of_its_source():
    noise = AR1Noise(source=SPHERE, step=6.0, tau=6.0)
    at_zero = key(lead=0)
    assert torch.equal(noise.draw(at_zero, (3, 17, 32)), SPHERE.draw(at_zero, (3, 17, 32)))
    with pytest.raises(ValueError, match="starts at lead 0"):
        noise.draw(key(lead=-1), (3, 17, 32))
    with pytest.raises(ValueError, match="state must be None at lead 0"):
        noise.advance(None, key(lead=1), (3, 17, 32))


def test_student_t_has_unit_variance_and_its_own_tails():
    noise = StudentTNoise(source=WhiteNoise(), dof=6.0)
    x = noise.draw(MANY, (4,)).double()
    n = MANY.batch * MANY.members
    for i in range(4):
        values = x[..., i].reshape(-1).numpy() / math.sqrt(4.0 / 6.0)
        assert stats.kstest(values, stats.t(6.0).cdf).pvalue > 1e-3
    # Unit variance, and kurtosis 3 + 6 / (dof - 4) = 6 where it exists well: dof 20 has 3.375.
    assert float(x.square().mean()) == pytest.approx(1.0, abs=5 * math.sqrt(5 / n))
    mild = StudentTNoise(source=WhiteNoise(), dof=20.0).draw(
        Key(11, torch.arange(100), torch.arange(100)), (8,)
    )
    kurtosis = float((mild.double() ** 4).mean() / mild.double().square().mean() ** 2)
    assert kurtosis == pytest.approx(3.375, abs=0.12)
    # One scale per row: |x| of two values of a row are correlated, as they are not in independent t values.
    size = x.abs().reshape(-1, 4).T
    assert float(torch.corrcoef(size)[0, 1]) > 0.1


def test_gamma_variates_have_their_law():
    for shape in (1.25, 4.0):
        values = _gamma(MANY, shape).reshape(-1).numpy()
        assert stats.kstest(values, stats.gamma(shape).cdf).pvalue > 1e-3


def test_solvers_that_add_noise_refuse_student_t():
    heavy = StudentTNoise(source=WhiteNoise(), dof=5.0)
    for make in (
        lambda: StochasticInterpolant(noise=heavy),
        lambda: EDM(churn=2.5, noise=heavy),
        lambda: StochasticInterpolant(noise=AntitheticNoise(heavy)),
        lambda: AR1Noise(source=heavy, step=6.0, tau=24.0),
    ):
        with pytest.raises(ValueError, match="adds up draws of noise, which must be Gaussian"):
            make()
    for estimator in (EDM(noise=heavy), FlowMatching(noise=heavy), EnsembleCRPS(noise=heavy)):
        assert estimator.noise is heavy


def test_antithetic_pairs_are_negatives_of_each_other_and_pairs_are_independent():
    noise = AntitheticNoise(SPHERE)
    x = noise.draw(key(range(-2, 6)), (3, 17, 32))
    assert torch.equal(x[:, 0::2], -x[:, 1::2])
    assert torch.equal(x[:, 0::2], SPHERE.draw(key(range(-2, 6, 2)), (3, 17, 32)))
    rows = Key(7, torch.tensor([100, 100]), torch.tensor([[2, 5], [3, 4]]))
    by_row = noise.draw(rows, (3, 17, 32))
    assert torch.equal(by_row[0, 0], -by_row[1, 0])
    assert torch.equal(by_row[0, 1], -by_row[1, 1])


def test_a_fair_score_of_antithetic_pairs_is_biased():
    # M = 2, N(0, 1) truth and members: E|x - y| - E|x1 - x2| / 2 is 1 / sqrt(pi) for independent members; a
    # pair x, -x has E|x1 - x2| = 2 E|x| = 2 sqrt(2 / pi), hence 2 / sqrt(pi) - sqrt(2 / pi).
    y = WhiteNoise().draw(MANY.sub("truth"), (20,)).double()
    scores = {}
    for name, source in (("fair", WhiteNoise()), ("pairs", AntitheticNoise(WhiteNoise()))):
        x = source.draw(MANY, (20,)).double().reshape(40, 25, 2, 20)
        truth = y.reshape(40, 25, 2, 20)[:, :, 0]
        gap = (x - truth[:, :, None]).abs().mean(2) - 0.5 * (x[:, :, 0] - x[:, :, 1]).abs()
        scores[name] = float(gap.mean())
    se = 4.5 / math.sqrt(40 * 25 * 20)
    assert scores["fair"] == pytest.approx(1 / math.sqrt(math.pi), abs=se)
    assert scores["pairs"] == pytest.approx(2 / math.sqrt(math.pi) - math.sqrt(2 / math.pi), abs=se)


# Settings and errors


@pytest.mark.parametrize(
    "source",
    [
        WhiteNoise("philox"),
        SphericalNoise(latitudes=LATITUDES, longitudes=32, spectrum=("heat", 0.1), lmax=7, engine="philox"),
        AtlasNoise(rows=9, columns=16, dof=4.5),
        AR1Noise(source=SPHERE, step=6.0, tau=24.0),
        AntitheticNoise(StudentTNoise(source=SPHERE, dof=4.5)),
    ],
    ids=lambda source: type(source).__name__,
)
def test_sources_survive_the_trip_through_json(source):
    assert read_any(json.loads(json.dumps(source.to_dict())), NOISES) == source


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SPHERE.draw(key(), (3, 16, 32)), r"must end in the grid \(17, 32\)"),
        (lambda: SphericalNoise(latitudes=LATITUDES, longitudes=32, lmax=16), r"lmax must be in 0\.\.15"),
        (lambda: SphericalNoise(latitudes=LATITUDES, longitudes=32, spectrum="pink"), "spectrum must be"),
        (lambda: SphericalNoise(latitudes=LATITUDES, longitudes=32, spectrum=("heat", 0.0)), "spectrum must"),
        (lambda: SphericalNoise(latitudes=(91.0,), longitudes=32), "latitudes must be degrees"),
        (lambda: SphericalNoise(latitudes=(math.nan,), longitudes=32), "latitudes must be degrees"),
        (lambda: WhiteNoise("curand"), "engine must be one of"),
        (lambda: AtlasNoise(rows=1, columns=4), "2 rows or more"),
        (lambda: AtlasNoise(rows=3, columns=5), "even columns"),
        (lambda: AtlasNoise(rows=3, columns=4, dof=0.0), "dof must be positive"),
        (lambda: AR1Noise(source=SPHERE, step=6.0, tau=0.0), "positive hours"),
        (lambda: StudentTNoise(source=SPHERE, dof=2.0), "dof must be above 2"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_transform_of_the_wrong_shape_is_named():
    class Wrong:
        def synthesize(self, a, /):
            return torch.zeros(a.shape[0], 16, 32)

    noise = SphericalNoise(latitudes=LATITUDES, longitudes=32, transform=Wrong())
    with pytest.raises(ValueError, match=r"transform must return fields \(3, 17, 32\), got \(3, 16, 32\)"):
        noise.draw(key(), (3, 17, 32))
