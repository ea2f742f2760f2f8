"""Scores: closed forms, equality of kernels, plain loops, invariances, masks, an independent package."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from wx_estimators import (
    CRPS,
    DifferenceCRPS,
    EdgeCRPS,
    EnergyScore,
    PatchMeanScore,
    SpectralCRPS,
    SumScore,
    VariogramScore,
    crps,
)
from wx_estimators import _kernel as kernel

EDGES = ((0, 1), (5, 17), (39, 2), (30, 31))
MULTI_SCALE = SumScore(terms=(CRPS(), PatchMeanScore(patch=(2, 3))), factors=(1.0, 0.5))
# Those that do not depend on the origin of longitude, then those that do.
HOMOGENEOUS = [
    CRPS(),
    CRPS(alpha=0.95),
    DifferenceCRPS(),
    SpectralCRPS(),
    SpectralCRPS(wavenumbers=(1, 2)),
    EnergyScore(),
    EnergyScore(over="space"),
    EnergyScore(patch=(1, 1)),
    SumScore(terms=(CRPS(), DifferenceCRPS()), factors=(1.0, 0.2)),
]
ANCHORED = [
    EdgeCRPS(edges=EDGES),
    SpectralCRPS(kernel="parts"),
    EnergyScore(patch=(2, 4), over="space", alpha=0.95),
    PatchMeanScore(patch=(2, 3)),
    PatchMeanScore(patch=(2, 2), score_of_means=EnergyScore()),
    MULTI_SCALE,
]
# |a| depends on the mean of the field, |v|^p is not homogeneous of degree 1.
OTHERS = [SpectralCRPS(kernel="amplitude"), VariogramScore(), VariogramScore(power=1.0, alpha=0.0)]
ALL_SCORES = pytest.mark.parametrize("score", HOMOGENEOUS + ANCHORED + OTHERS, ids=repr)
TIGHT = {"atol": 1e-13, "rtol": 1e-13}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fields(members=4, dtype=torch.float64):
    return normal(2, members, 3, 5, 8, seed=1, dtype=dtype), normal(2, 3, 5, 8, seed=2, dtype=dtype)


def brute_force(pred, target, alpha):
    """The definition, with the double sum over all pairs."""
    m = pred.shape[1]
    skill = (pred - target[:, None]).abs().mean(1)
    pairs = (pred[:, :, None] - pred[:, None]).abs().sum((1, 2))
    fair = alpha / (m * (m - 1)) if m > 1 else 0.0
    return skill - 0.5 * (fair + (1 - alpha) / m**2) * pairs


@pytest.fixture(params=["pairs", "sorted"])
def form(request, monkeypatch):
    """Both forms of the kernel at every ensemble size, in blocks smaller than the tests' ensembles."""
    monkeypatch.setitem(kernel._PAIRS_UP_TO, "cpu", 10_000 if request.param == "pairs" else 1)
    monkeypatch.setitem(kernel._BLOCK, "cpu", 64)
    return request.param


# The kernel


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("members", [2, 3, 8, 9, 50, 128])
@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
def test_kernel_equals_the_definition(members, alpha):
    pred, target = normal(7, members, 3, 4), normal(7, 3, 4, seed=3)
    for x in (pred, pred.round()):  # rounded: members tie with each other and with the truth
        got = crps(x, target.round(), alpha=alpha)
        torch.testing.assert_close(got, brute_force(x, target.round(), alpha), **TIGHT)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("members", [2, 5, 40])
def test_gradient_equals_that_of_the_definition_also_at_ties(members):
    # |x| has the derivative 0 at 0 in torch: the mean of both sides.
    for decimals in (12, 0):
        pred = normal(6, members, 9).round(decimals=decimals).requires_grad_()
        target = normal(6, 9, seed=3).round(decimals=decimals).requires_grad_()
        up = normal(6, 9, seed=4)
        got = torch.autograd.grad(crps(pred, target, alpha=0.9), (pred, target), up)
        expected = torch.autograd.grad(brute_force(pred, target, 0.9), (pred, target), up)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, **TIGHT)


@pytest.mark.usefixtures("form")
def test_gradient_at_ties_is_the_mean_of_both_sides():
    tied = torch.tensor([[1.0, 1.0, 3.0, 1.0, 0.0]], dtype=torch.float64).unsqueeze(-1)
    y, h = torch.ones(1, 1, dtype=torch.float64), 1e-6
    x = tied.clone().requires_grad_()
    crps(x, y).sum().backward()
    for i in range(5):
        step = torch.zeros_like(tied)
        step[0, i] = h
        slope = (crps(tied + step, y) - crps(tied - step, y)).sum() / (2 * h)
        assert float(x.grad[0, i]) == pytest.approx(float(slope), abs=1e-8)
    assert torch.equal(x.grad[0, 0], x.grad[0, 1])


@pytest.mark.usefixtures("form")
def test_kernel_gradient_is_the_finite_difference():
    pred, target = normal(2, 4, 3).requires_grad_(), normal(2, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: crps(x, y, alpha=0.9), (pred, target))
    assert torch.autograd.gradgradcheck(lambda x, y: crps(x, y, alpha=0.9), (pred, target))


def test_complex_kernel_is_the_energy_score_of_two_components():
    pair, truth = normal(6, 5, 4, 2), normal(6, 4, 2, seed=1)
    got = crps(torch.view_as_complex(pair), torch.view_as_complex(truth), alpha=0.9)
    skill = (pair - truth.unsqueeze(1)).norm(dim=-1).mean(1)
    pairs = (pair.unsqueeze(1) - pair.unsqueeze(2)).norm(dim=-1).sum((1, 2))
    torch.testing.assert_close(got, skill - 0.5 * (0.9 / 20 + 0.1 / 25) * pairs, **TIGHT)
    z = torch.view_as_complex(normal(2, 3, 2, 2)).requires_grad_()
    y = torch.view_as_complex(normal(2, 2, 2, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: crps(a, b), (z, y))


@pytest.mark.parametrize("members", [2, 12, 300])
@pytest.mark.parametrize("score", [CRPS(), EnergyScore(over="space"), DifferenceCRPS()], ids=repr)
def test_memory_of_the_backward_pass_grows_with_the_members_and_not_with_their_pairs(score, members):
    pred, target = normal(1, members, 1, 4, 32).requires_grad_(), normal(1, 1, 4, 32, seed=1)
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        value = score.score(pred, target, None)
    # One value per member and point; three for norms, and the M^2 distances, which have no points.
    limit = {CRPS: 1, DifferenceCRPS: 2, EnergyScore: 3}[type(score)] * pred.nbytes
    assert sum(kept.values()) <= limit + 16 * target.nbytes + 5 * 8 * members**2
    assert torch.isfinite(torch.autograd.grad(value.sum(), pred)[0]).all()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("members", [2, 5, 12, 64])
def test_a_large_offset_costs_no_precision(members):
    pred, target = normal(3, members, 40), normal(3, 40, seed=5)
    near = (pred + 1e5).float(), (target + 1e5).float()
    exact = brute_force(near[0].double(), near[1].double(), 1.0)
    # x - y is exact in float32 here; what is left is rounding of numbers of order one.
    assert (crps(*near).double() - exact).abs().max() < 1e-6
    # Control: the usual form, which sorts x itself, loses three digits and more.
    rank = torch.arange(1 - members, members, 2, dtype=torch.float32)
    spread = (near[0].sort(1).values * rank[:, None]).sum(1) / (members * (members - 1))
    uncentred = (near[0] - near[1].unsqueeze(1)).abs().mean(1) - spread
    assert members == 2 or (uncentred.double() - exact).abs().max() > 1e-4


def test_half_precision_is_scored_in_float32():
    pred, target = normal(3, 20, 40).bfloat16(), normal(3, 40, seed=5).bfloat16()
    got = crps(pred, target)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), crps(pred.double(), target.double()), atol=1e-6, rtol=1e-6)


def test_one_member_is_the_absolute_error_and_nothing_else():
    pred, target = normal(4, 1, 5), normal(4, 5, seed=1)
    torch.testing.assert_close(crps(pred, target, alpha=0.0), (pred[:, 0] - target).abs())
    with pytest.raises(ValueError, match="needs at least 2 members, got 1"):
        crps(pred, target, alpha=1.0)


# Expectations


def gaussian_distance(mean, sd):
    """E|N(mean, sd^2)|."""
    return mean * math.erf(mean / sd / 2**0.5) + sd * (2 / math.pi) ** 0.5 * math.exp(-((mean / sd) ** 2) / 2)


@pytest.mark.parametrize("members", [2, 3, 5, 10])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.4, 1.3), (-0.2, 0.5)])
def test_fair_score_is_unbiased_and_the_plain_one_is_not(members, shift, scale):
    n = 40_000
    pred, target = shift + scale * normal(n, members, seed=members), normal(n, seed=99)
    exact = gaussian_distance(shift, math.hypot(1.0, scale)) - scale / math.sqrt(math.pi)
    for alpha in (1.0, 0.95, 0.0):
        got = crps(pred, target, alpha=alpha)
        error = float(got.mean()) - exact - (1 - alpha) * scale / members / math.sqrt(math.pi)
        assert abs(error) < 4 * float(got.std()) / math.sqrt(n)
    assert float(crps(pred, target, alpha=0.0).mean()) - exact > 10 * float(got.std()) / math.sqrt(n)


SPREADS = {(2, 0.0): 0.378, (2, 0.95): 0.952, (2, 1.0): 1.0, (4, 0.0): 0.626, (4, 0.95): 0.976}
SPREADS |= {(4, 1.0): 1.0, (8, 0.0): 0.788, (8, 0.95): 0.988}


@pytest.mark.parametrize(("members", "alpha"), SPREADS)
def test_optimal_spread_is_the_predicted_one(members, alpha):
    # Newton on E CRPS_a of r z against z: sqrt(1 + r^2) sqrt(2 / pi) - c r / sqrt(pi), c = 1 - (1 - a) / M.
    r = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for _ in range(20):
        expected = (1 + r * r).sqrt() * math.sqrt(2) - (1 - (1 - alpha) / members) * r
        (slope,) = torch.autograd.grad(expected, r, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, r)
        r = (r - slope / curvature).detach().requires_grad_()
    assert r.item() == pytest.approx(SPREADS[members, alpha], abs=6e-4)
    # There the kernel's slope must vanish, and it must not 5 % away from it.
    z, y = normal(400_000, members, seed=1), normal(400_000, seed=2)
    for factor, zero in ((1.0, True), (1.05, False), (0.95, False)):
        x = (factor * r.detach() * z).requires_grad_()
        (g,) = torch.autograd.grad(crps(x, y, alpha=alpha).sum(), x)
        slope = (g * z).sum(1)
        assert (abs(float(slope.mean())) < 4 * float(slope.std()) / math.sqrt(len(slope))) == zero


@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("dims", [1, 2, 30])
def test_expected_energy_score_of_equal_normal_laws(alpha, dims):
    n, members = 20_000, 3
    got = EnergyScore(alpha=alpha).score(normal(n, members, dims), normal(n, dims, seed=1), None)[:, 0]
    distance = 2 * math.exp(math.lgamma((dims + 1) / 2) - math.lgamma(dims / 2)) / math.sqrt(dims)
    exact = 0.5 * distance * (1 + (1 - alpha) / members)
    assert abs(float(got.mean()) - exact) < 4 * float(got.std()) / math.sqrt(n)


@pytest.mark.parametrize("members", [2, 3, 10])
def test_expected_fair_variogram_score_is_the_variance_of_the_truth(members):
    n = 40_000
    score = VariogramScore(steps=((1,),), periodic=(False,))
    got = score.score(normal(n, members, 2), normal(n, 2, seed=1), None)
    first = 2**0.5 * math.gamma(0.75) / math.sqrt(math.pi)  # E |sqrt(2) z|^(1/2)
    exact = 2 / math.sqrt(math.pi) - first**2
    got = got[:, 0]
    assert abs(float(got.mean()) - exact) < 4 * float(got.std()) / math.sqrt(n)


@pytest.mark.parametrize("name", ["complex", "parts"])
def test_spectral_score_of_white_noise_is_that_of_its_points(name):
    pred, target = normal(1000, 2, 1, 2, 16), normal(1000, 1, 2, 16, seed=1)
    for score in (SpectralCRPS(kernel=name), SpectralCRPS(kernel=name, transform=Plane(2, 16))):
        value = score.score(pred, target, None)
        assert abs(float(value.mean()) - 1 / math.sqrt(math.pi)) < 4 * float(value.std()) / math.sqrt(1000)


# Plain loops


class Plane:
    """Two-dimensional real Fourier transform."""

    def __init__(self, rows, columns):
        k = torch.arange(columns // 2 + 1)
        edge = (k == 0) | (2 * k == columns)
        self.freedom = torch.where(edge, 1.0, 2.0).expand(rows, -1)
        row = torch.arange(rows)
        real = (row == 0) | (2 * row == rows)
        # Rows r and -r of wavenumbers 0 and n/2 are conjugate: each counts once of two real numbers.
        self.whole = self.freedom.clone()
        self.real = real[:, None] & edge
        self.twin = edge & ~real[:, None] & (row > rows - row)[:, None]
        self.freedom = torch.where(self.real, 1.0, torch.where(self.twin, 0.0, 2.0))

    def analyse(self, x, /):
        return torch.fft.rfft2(x, norm="ortho")


def test_an_injected_transform_obeys_parseval():
    x, plane = normal(3, 4, 5, 8), Plane(5, 8)
    a, f = plane.analyse(x), plane.freedom
    assert f.sum() == 40
    torch.testing.assert_close((f * a.abs().square()).sum((-1, -2)) / f.sum(), x.square().mean((-1, -2)))


def one(pred, target, alpha):
    """CRPS of one list of numbers or vectors by plain Python sums."""
    m = len(pred)
    size = np.linalg.norm if np.ndim(target) else abs
    skill = sum(size(x - target) for x in pred) / m
    pairs = sum(size(a - b) for a, b in itertools.combinations(pred, 2))
    return skill - (alpha / (m * (m - 1)) + (1 - alpha) / m**2) * pairs


def loop_points(score, x, y, w):
    return sum(w[p] * one(x[:, p], y[p], score.alpha) for p in range(len(y)) if w[p] > 0) / w.sum()


def loop_edges(score, x, y, w, edges):
    total = weight = 0.0
    for p, q in edges:
        pair = math.sqrt(w[p] * w[q])
        if pair > 0:
            total += pair * one(x[:, p] - x[:, q], y[p] - y[q], score.alpha)
            weight += pair
    return total / weight


def loop_energy(score, x, y, w, groups):
    """The norm is over the points of each group."""
    total = 0.0
    for group in groups:
        keep = [p for p in group if w[p] > 0]
        mass = w[keep].sum()
        if mass > 0:
            scale = np.sqrt(w[keep] / mass)
            total += mass * one(x[:, keep] * scale, y[keep] * scale, score.alpha)
    return total / w.sum()


def loop_means(score, x, y, w, groups):
    total = 0.0
    for group in groups:
        keep = [p for p in group if w[p] > 0]
        mass = w[keep].sum()
        if mass > 0:
            means = x[:, keep] @ w[keep] / mass, y[keep] @ w[keep] / mass
            total += mass * one(*means, score.score_of_means.alpha)
    return total / w.sum()


def loop_variogram(score, x, y, w, edges):
    total = weight = 0.0
    for p, q in edges:
        pair = math.sqrt(w[p] * w[q])
        if pair > 0:
            v = [(d * d + 1e-12) ** (score.power / 2) for d in x[:, p] - x[:, q]]
            u = ((y[p] - y[q]) ** 2 + 1e-12) ** (score.power / 2)
            total += pair * ((np.mean(v) - u) ** 2 - score.alpha * np.var(v, ddof=1) / len(v))
            weight += pair
    return total / weight


def loop_spectral(score, x, y, w):
    total = weight = 0.0
    k = np.arange(5)
    wave = np.exp(-2j * np.pi * np.outer(k, np.arange(8)) / 8) / math.sqrt(8)
    freedom = np.where((k == 0) | (k == 4), 1.0, 2.0)
    for row in range(5):
        part = slice(8 * row, 8 * row + 8)
        if (w[part] > 0).all():
            a, b = x[:, part] @ wave.T, y[part] @ wave.T
            for c in range(5):
                pair = freedom[c] == 2
                if score.kernel == "complex":
                    value = one(a[:, c], b[c], score.alpha) * (math.sqrt(8) / math.pi if pair else 1)
                elif score.kernel == "parts":
                    value = one(a[:, c].real, b[c].real, score.alpha)
                    value += one(a[:, c].imag, b[c].imag, score.alpha)
                    value *= math.sqrt(0.5) if pair else 1
                else:
                    value = one(abs(a[:, c]), abs(b[c]), score.alpha)
                total += w[part].mean() * freedom[c] / freedom.sum() * value
            weight += w[part].mean()
    return total / weight


def tiles(height, width):
    rows = [range(r, min(r + height, 5)) for r in range(0, 5, height)]
    columns = [range(c, min(c + width, 8)) for c in range(0, 8, width)]
    return [[8 * r + c for r in some for c in others] for some in rows for others in columns]


EAST = [(8 * r + c, 8 * r + (c + 1) % 8) for r in range(5) for c in range(8)]
SOUTH = [(8 * r + c, 8 * r + 8 + c) for r in range(4) for c in range(8)]
LOOPS = [
    (CRPS(alpha=0.9), loop_points, ()),
    (DifferenceCRPS(steps=((0, 1),), alpha=0.9), loop_edges, (EAST,)),
    (DifferenceCRPS(steps=((1, 0),)), loop_edges, (SOUTH,)),
    (EdgeCRPS(edges=EDGES, alpha=0.9), loop_edges, (EDGES,)),
    (EnergyScore(over="space", alpha=0.9), loop_energy, ([range(40)],)),
    (EnergyScore(over="space", patch=(2, 3)), loop_energy, (tiles(2, 3),)),
    (PatchMeanScore(patch=(2, 3), score_of_means=CRPS(alpha=0.9)), loop_means, (tiles(2, 3),)),
    (VariogramScore(steps=((0, 1),)), loop_variogram, (EAST,)),
    (VariogramScore(steps=((1, 0),), power=1.2, alpha=0.3), loop_variogram, (SOUTH,)),
    (SpectralCRPS(alpha=0.9), loop_spectral, ()),
    (SpectralCRPS(kernel="parts"), loop_spectral, ()),
    (SpectralCRPS(kernel="amplitude"), loop_spectral, ()),
]


@pytest.mark.parametrize(
    ("score", "loop", "extra"), LOOPS, ids=lambda v: getattr(v, "__name__", repr(v))[:60]
)
def test_masked_and_weighted_scores_equal_plain_loops(score, loop, extra):
    pred, target = fields()
    weight = torch.linspace(0.2, 1.7, 5, dtype=torch.float64).view(5, 1) * (1 + 0.1 * torch.arange(8))
    weight[0, 5] = 0.0
    holes = target.clone()
    holes[:, :, 3, 2:4] = math.nan
    got = score.score(pred, holes, weight)
    w = (weight * ~torch.isnan(holes[0, 0])).flatten().numpy()
    for b, c in itertools.product(range(2), range(3)):
        x, y = pred[b, :, c].flatten(1).numpy(), target[b, c].flatten().numpy()
        assert float(got[b, c]) == pytest.approx(loop(score, x, y, w, *extra), abs=1e-12)


def test_energy_score_over_channels_equals_plain_loops():
    pred, target = fields()
    weight = 0.5 + normal(2, 3, 5, 8, seed=7).abs()
    for b in range(2):
        x, y, w = (v[b].flatten(-3).numpy() for v in (pred, target, weight))
        whole = loop_energy(EnergyScore(), x, y, w, [range(120)])
        assert float(EnergyScore().score(pred, target, weight)[b, 2]) == pytest.approx(whole, abs=1e-12)
        points = loop_energy(EnergyScore(), x, y, w, [[p, p + 40, p + 80] for p in range(40)])
        got = EnergyScore(patch=(1, 1)).score(pred, target, weight)[b]
        assert got.tolist() == pytest.approx([points] * 3, abs=1e-12)


def test_scores_of_a_score_of_means_nest_and_add():
    pred, target = fields()
    terms = [CRPS().score(pred, target, None), PatchMeanScore(patch=(2, 3)).score(pred, target, None)]
    torch.testing.assert_close(MULTI_SCALE.score(pred, target, None), terms[0] + 0.5 * terms[1])
    data = json.loads(json.dumps(MULTI_SCALE.to_dict()))
    assert SumScore.from_dict(data) == MULTI_SCALE
    for score in (EdgeCRPS(edges=EDGES), VariogramScore(power=1.0), EnergyScore(patch=(2, 4))):
        assert type(score).from_dict(json.loads(json.dumps(score.to_dict()))) == score


# Invariances and masks


@ALL_SCORES
def test_members_have_no_order_and_weights_no_scale(score):
    pred, target = fields()
    value = score.score(pred, target, None)
    assert value.shape == (2, 3)
    close = {"atol": 1e-12, "rtol": 1e-12}
    torch.testing.assert_close(score.score(pred[:, [2, 0, 3, 1]], target, None), value, **close)
    weight = torch.linspace(0.5, 1.5, 5, dtype=torch.float64).view(1, 1, 5, 1)
    weighted = score.score(pred, target, weight)
    assert not torch.allclose(weighted, value)
    torch.testing.assert_close(score.score(pred, target, 2.0 * weight), weighted, **close)


@pytest.mark.parametrize("score", HOMOGENEOUS + ANCHORED, ids=repr)
def test_scores_are_translation_invariant_and_homogeneous(score):
    pred, target = fields()
    value = score.score(pred, target, None)
    close = {"atol": 1e-12, "rtol": 1e-12}
    torch.testing.assert_close(score.score(pred + 7.0, target + 7.0, None), value, **close)
    torch.testing.assert_close(score.score(3.0 * pred, 3.0 * target, None), 3.0 * value, **close)
    torch.testing.assert_close(score.score(-pred, -target, None), value, **close)


@pytest.mark.parametrize("score", [*HOMOGENEOUS, *OTHERS], ids=repr)
def test_the_origin_of_longitude_is_arbitrary(score):
    pred, target = fields()
    close = {"atol": 1e-12, "rtol": 1e-12}
    value = score.score(pred, target, None)
    torch.testing.assert_close(score.score(pred.roll(3, -1), target.roll(3, -1), None), value, **close)


@ALL_SCORES
def test_scores_have_correct_gradients(score):
    pred, target = fields(members=3)
    pred = pred[:1, :, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: score.score(p, target[:1, :2], None), (pred,), fast_mode=True)


@ALL_SCORES
def test_masked_points_have_no_influence_and_no_gradient(score):
    pred, target = fields()
    target[:, :, 1, 3] = math.nan
    weight = torch.ones(5, 1, dtype=torch.float64)
    weight[4] = 0.0
    wild = pred.clone()
    wild[:, :, :, 4] = math.nan
    wild[:, :, :, 1, 3] = 1e6
    if isinstance(score, SpectralCRPS):  # a row with a hole is out as a whole
        wild[:, :, :, 1] = 5.0
    wild.requires_grad_()
    value = score.score(wild, target, weight)
    torch.testing.assert_close(value, score.score(pred, target, weight))
    (gradient,) = torch.autograd.grad(value.sum(), wild)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, :, :, 4] == 0).all()
    assert (gradient[:, :, :, 1, 3] == 0).all()


@ALL_SCORES
def test_a_field_without_any_valid_point_scores_zero(score):
    pred, target = fields()
    target[0] = math.nan
    value = score.score(pred.requires_grad_(), target, None)
    assert (value[0] == 0).all()
    assert torch.isfinite(torch.autograd.grad(value.sum(), pred)[0]).all()


@ALL_SCORES
def test_a_nan_prediction_is_never_hidden(score):
    pred, target = fields()
    pred[0, 0, 0, 0, 0] = math.nan
    assert torch.isnan(score.score(pred, target, None)[0, 0])


@ALL_SCORES
def test_gradients_survive_members_that_coincide(score):
    pred = torch.zeros(1, 3, 2, 5, 8, requires_grad=True)
    for target in (torch.ones(1, 2, 5, 8), torch.zeros(1, 2, 5, 8)):
        value = score.score(pred, target, None)
        assert torch.isfinite(torch.autograd.grad(value.sum(), pred)[0]).all()


@ALL_SCORES
def test_a_perfect_ensemble_scores_zero(score):
    _, target = fields()
    assert score.score(target.unsqueeze(1).repeat(1, 4, 1, 1, 1), target, None).abs().max() < 1e-12


def test_energy_score_of_a_million_points_in_float32():
    # The sum of a million squares is where a careless accumulation in float32 loses its digits.
    pred, target = normal(1, 2, 1, 1_000_000), normal(1, 1, 1_000_000, seed=1)
    exact = EnergyScore().score(pred, target, None)
    got = EnergyScore().score(pred.float(), target.float(), None)
    torch.testing.assert_close(got.double(), exact, rtol=2e-6, atol=0)


def correlated(rho, members=2, n=20_000, seed=0):
    z = normal(n, members, 2, seed=seed)
    return torch.stack([z[..., 0], rho * z[..., 0] + math.sqrt(1 - rho**2) * z[..., 1]], -1)


PAIR = {"steps": ((1,),), "periodic": (True,)}


@pytest.mark.parametrize(
    ("score", "sees"),
    [
        (CRPS(), False),
        (DifferenceCRPS(**PAIR), True),
        (EdgeCRPS(edges=((0, 1),)), True),
        (VariogramScore(**PAIR), True),
        (EnergyScore(), True),
        (PatchMeanScore(patch=(2,)), True),
    ],
    ids=repr,
)
def test_joint_scores_see_a_wrong_correlation_and_crps_does_not(score, sees):
    truth = correlated(0.7, 1, seed=9)
    right, wrong = (score.score(correlated(r, seed=3).unsqueeze(2), truth, None).mean(1) for r in (0.7, -0.3))
    gap = wrong - right
    significant = float(gap.mean()) > 4 * float(gap.std()) / math.sqrt(len(gap))
    assert significant == sees


def test_opposite_steps_are_the_same_pairs():
    pred, target = fields()
    south, north = (DifferenceCRPS(steps=((n, 0),)).score(pred, target, None) for n in (1, -1))
    torch.testing.assert_close(south, north)


def test_spectral_band_sees_only_its_wavenumbers():
    pred, target = fields()
    wave = torch.cos(2 * math.pi * 3 * torch.arange(8, dtype=torch.float64) / 8)
    low = SpectralCRPS(wavenumbers=(0, 2))
    high = SpectralCRPS(wavenumbers=(3, 4))
    torch.testing.assert_close(low.score(pred + wave, target, None), low.score(pred, target, None))
    assert (high.score(pred + 9 * wave, target, None) > 2 * high.score(pred, target, None)).all()


def test_amplitudes_are_blind_to_phases():
    pred, target = fields()
    score = SpectralCRPS(kernel="amplitude")
    value = score.score(pred, target, None)
    torch.testing.assert_close(score.score(pred.roll(3, -1), target, None), value)
    assert not torch.allclose(SpectralCRPS().score(pred.roll(3, -1), target, None), value)


def test_scores_refuse_what_does_not_fit():
    pred, target = fields()
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
        CRPS(alpha=1.5)
    with pytest.raises(ValueError, match="expected pred"):
        CRPS().score(pred, target[:, :2], None)
    with pytest.raises(ValueError, match=r"expected pred \(B, M, \*P\)"):
        crps(pred, target[:, :2])
    with pytest.raises(ValueError, match="weight must broadcast to the target"):
        CRPS().score(pred, target, torch.ones(4, 1))
    with pytest.raises(ValueError, match="non-zero displacements"):
        DifferenceCRPS(steps=((0, 0),))
    with pytest.raises(ValueError, match="non-zero displacements"):
        VariogramScore(steps=())
    with pytest.raises(ValueError, match="power must be positive"):
        VariogramScore(power=0.0)
    with pytest.raises(ValueError, match="one non-negative factor per term"):
        SumScore(terms=(CRPS(),), factors=(1.0, 2.0))
    with pytest.raises(ValueError, match="over must be"):
        EnergyScore(over="time")
    with pytest.raises(ValueError, match="patch must be None or positive sizes"):
        EnergyScore(patch=(0, 2))
    with pytest.raises(ValueError, match="has 3 dimensions, space has 2"):
        EnergyScore(patch=(1, 2, 2)).score(pred, target, None)
    with pytest.raises(ValueError, match="edges must be pairs"):
        EdgeCRPS(edges=())
    with pytest.raises(ValueError, match="beyond the 40 points"):
        EdgeCRPS(edges=((0, 40),)).score(pred, target, None)
    with pytest.raises(ValueError, match="kernel must be one of"):
        SpectralCRPS(kernel="phase")
    with pytest.raises(ValueError, match="begin beyond those of 8 points"):
        SpectralCRPS(wavenumbers=(5, 6)).score(pred, target, None)
    with pytest.raises(ValueError, match="a transform chooses its own"):
        SpectralCRPS(wavenumbers=(0, 1), transform=Plane(5, 8))
