"""Scores: closed forms, equality of kernels, invariances, masks, an independent package."""

import math

import numpy as np
import pytest
import torch

from wx_estimators import CRPS, DifferenceCRPS, EnergyScore, SpectralCRPS, SumScore, crps
from wx_estimators._scores import _sum_pairs_loop, _sum_pairs_sorted

FIELD_SCORES = [
    CRPS(),
    CRPS(alpha=0.95),
    DifferenceCRPS(),
    SpectralCRPS(),
    EnergyScore(),
    EnergyScore(over="space"),
    SumScore(terms=(CRPS(), DifferenceCRPS()), factors=(1.0, 0.2)),
]
ALL_SCORES = pytest.mark.parametrize("score", FIELD_SCORES, ids=repr)


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


@pytest.mark.parametrize("members", [2, 3, 8, 9, 50])
@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
def test_kernel_equals_the_definition(members, alpha):
    pred, target = normal(7, members, 11), normal(7, 11, seed=3)
    got = crps(pred, target, alpha=alpha)
    torch.testing.assert_close(got, brute_force(pred, target, alpha), atol=1e-13, rtol=1e-13)
    torch.testing.assert_close(_sum_pairs_loop(pred), _sum_pairs_sorted(pred), atol=1e-13, rtol=1e-13)


def test_one_member_is_the_absolute_error_and_nothing_else():
    pred, target = normal(4, 1, 5), normal(4, 5, seed=1)
    torch.testing.assert_close(crps(pred, target, alpha=0.0), (pred[:, 0] - target).abs())
    with pytest.raises(ValueError, match="needs at least 2 members, got 1"):
        crps(pred, target, alpha=1.0)


@pytest.mark.parametrize("members", [2, 5, 12])
def test_a_large_offset_costs_no_precision(members):
    pred, target = normal(3, members, 40), normal(3, 40, seed=5)
    offset = 1e5
    near = (pred + offset).float(), (target + offset).float()
    exact = brute_force(near[0].double(), near[1].double(), 1.0)
    # x - y is exact in float32 here; what is left is rounding of numbers of order one.
    assert (crps(*near).double() - exact).abs().max() < 1e-6


@pytest.mark.parametrize("members", [2, 3, 5, 10])
@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
def test_expectation_for_equal_laws(members, alpha):
    n = 40_000
    pred, target = normal(n, members, seed=members), normal(n, seed=99)
    got = crps(pred, target, alpha=alpha)
    expected = (1 + (1 - alpha) / members) / math.sqrt(math.pi)
    assert abs(float(got.mean()) - expected) < 4 * float(got.std()) / math.sqrt(n)


@pytest.mark.parametrize("members", [2, 4])
@pytest.mark.parametrize("alpha", [0.95, 1.0])
def test_optimal_spread_is_the_predicted_one(members, alpha):
    # d/dr E CRPS_a of r z_i against z is 0 where r / sqrt(1 + r^2) sqrt(2) = 1 - (1 - a) / M.
    c = 1 - (1 - alpha) / members
    r = torch.tensor(c / math.sqrt(2 - c * c), dtype=torch.float64, requires_grad=True)
    if (members, alpha) == (2, 0.95):
        assert float(r.detach()) == pytest.approx(0.952, abs=5e-4)
    n = 100
    slopes = []
    for i in range(n):
        z, y = normal(2000, members, seed=i), normal(2000, seed=10_000 + i)
        slopes.append(torch.autograd.grad(crps(r * z, y, alpha=alpha).mean(), r)[0])
    slope = torch.stack(slopes)
    assert abs(float(slope.mean())) < 4 * float(slope.std()) / math.sqrt(n)


def test_parity_with_an_independent_package():
    scoringrules = pytest.importorskip("scoringrules", reason="peer for parity only")
    pred, target = normal(60, 7, seed=1), normal(60, seed=2)
    for alpha, estimator in ((1.0, "fair"), (0.0, "nrg")):
        peer = scoringrules.crps_ensemble(target.numpy(), pred.numpy(), estimator=estimator)
        np.testing.assert_allclose(crps(pred, target, alpha=alpha).numpy(), peer, rtol=1e-13, atol=1e-14)
    peer = scoringrules.es_ensemble(target.view(6, 10).numpy(), pred.view(6, 10, 7).transpose(1, 2).numpy())
    ours = EnergyScore(alpha=0.0).score(pred.view(6, 10, 7).transpose(1, 2), target.view(6, 10), None)
    # Root mean square against Euclidean norm: a factor sqrt(C). 1e-12 is the guard of the square root.
    np.testing.assert_allclose(ours[:, 0].numpy() * math.sqrt(10), peer, rtol=1e-10)


@ALL_SCORES
def test_scores_are_invariant_and_homogeneous(score):
    pred, target = fields()
    value = score.score(pred, target, None)
    assert value.shape == (2, 3)
    close = {"atol": 1e-10, "rtol": 1e-10}
    torch.testing.assert_close(score.score(pred[:, [2, 0, 3, 1]], target, None), value, **close)
    torch.testing.assert_close(score.score(pred + 7.0, target + 7.0, None), value, **close)
    torch.testing.assert_close(score.score(3.0 * pred, 3.0 * target, None), 3.0 * value, **close)
    torch.testing.assert_close(score.score(pred.roll(3, -1), target.roll(3, -1), None), value, **close)
    weight = torch.linspace(0.5, 1.5, 5, dtype=torch.float64).view(1, 1, 5, 1)
    weighted = score.score(pred, target, weight)
    assert not torch.allclose(weighted, value)
    torch.testing.assert_close(score.score(pred, target, 2.0 * weight), weighted, **close)


@ALL_SCORES
def test_scores_have_correct_gradients(score):
    pred, target = fields(members=3)
    pred = pred[:1, :, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: score.score(p, target[:1, :2], None), (pred,))


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
    assert (value[0, 0] == 0) or isinstance(score, EnergyScore)  # the guard of its square root is 1e-6
    assert torch.isfinite(torch.autograd.grad(value.sum(), pred)[0]).all()


def test_a_nan_prediction_is_never_hidden():
    pred, target = fields()
    pred[0, 0, 0, 0, 0] = math.nan
    assert torch.isnan(CRPS().score(pred, target, None)[0, 0])


def test_gradients_survive_members_that_coincide():
    pred = torch.zeros(1, 3, 2, 4, requires_grad=True)
    for score in (CRPS(), EnergyScore(), SpectralCRPS(), DifferenceCRPS(steps=((1,),), periodic=(True,))):
        value = score.score(pred, torch.ones(1, 2, 4), None)
        assert torch.isfinite(torch.autograd.grad(value.sum(), pred)[0]).all()


def correlated(rho, members=2, n=20_000, seed=0):
    z = normal(n, members, 2, seed=seed)
    return torch.stack([z[..., 0], rho * z[..., 0] + math.sqrt(1 - rho**2) * z[..., 1]], -1)


@pytest.mark.parametrize(
    ("score", "sees"),
    [(CRPS(), False), (DifferenceCRPS(steps=((1,),), periodic=(True,)), True), (EnergyScore(), True)],
    ids=["crps", "difference", "energy"],
)
def test_joint_scores_see_a_wrong_correlation_and_crps_does_not(score, sees):
    truth = correlated(0.7, 1, seed=9)[:, 0]
    right, wrong = (score.score(correlated(r, seed=3), truth, None).mean(1) for r in (0.7, -0.3))
    gap = wrong - right
    significant = float(gap.mean()) > 4 * float(gap.std()) / math.sqrt(len(gap))
    assert significant == sees


def test_difference_pairs_are_the_named_neighbours():
    pred, target = fields()
    east = DifferenceCRPS(steps=((0, 1),)).score(pred, target, None)
    d_pred, d_target = pred.roll(-1, -1) - pred, target.roll(-1, -1) - target
    torch.testing.assert_close(east, crps(d_pred, d_target).mean((-1, -2)))
    south = DifferenceCRPS(steps=((1, 0),)).score(pred, target, None)
    torch.testing.assert_close(south, crps(pred.diff(dim=-2), target.diff(dim=-2)).mean((-1, -2)))
    north = DifferenceCRPS(steps=((-1, 0),)).score(pred, target, None)
    torch.testing.assert_close(south, north)


def test_spectral_score_of_white_noise_is_that_of_its_points():
    pred, target = normal(500, 2, 1, 2, 16), normal(500, 1, 2, 16, seed=1)
    value = SpectralCRPS().score(pred, target, None)
    assert abs(float(value.mean()) - 1 / math.sqrt(math.pi)) < 4 * float(value.std()) / math.sqrt(500)


def test_spectral_band_sees_only_its_wavenumbers():
    pred, target = fields()
    wave = torch.cos(2 * math.pi * 3 * torch.arange(8, dtype=torch.float64) / 8)
    low = SpectralCRPS(wavenumbers=(0, 2))
    high = SpectralCRPS(wavenumbers=(3, 4))
    torch.testing.assert_close(low.score(pred + wave, target, None), low.score(pred, target, None))
    assert (high.score(pred + 9 * wave, target, None) > 2 * high.score(pred, target, None)).all()


def test_scores_refuse_what_does_not_fit():
    pred, target = fields()
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
        CRPS(alpha=1.5)
    with pytest.raises(ValueError, match="expected pred"):
        CRPS().score(pred, target[:, :2], None)
    with pytest.raises(ValueError, match="weight must broadcast to the target"):
        CRPS().score(pred, target, torch.ones(4, 1))
    with pytest.raises(ValueError, match="non-zero displacements"):
        DifferenceCRPS(steps=((0, 0),))
    with pytest.raises(ValueError, match="one non-negative factor per term"):
        SumScore(terms=(CRPS(),), factors=(1.0, 2.0))
    with pytest.raises(ValueError, match="over must be"):
        EnergyScore(over="time")
