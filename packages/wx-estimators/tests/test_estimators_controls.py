"""Negative controls (T15): what is wrong must miss the bars, and the true law must meet every one.

Elsewhere: the published sign of SRA2 loses its order (test_estimators_path), noise that members share fails
the tests of reproducibility (test_estimators_reproducible), trained regression fails (test_estimators_bars).
"""
# ruff: noqa: ARG002 - signatures are those of the protocols

import math

import pytest
import torch

from wx_estimators import CRPS, Batch, DifferenceCRPS, EnergyScore, EnsembleCRPS, Key, NetSpec, SumScore

from .known_laws import BARS, CORRELATION, FLOORS, MEMBERS, MODE_SD, PROBLEMS, STATES, A, Q, missed

SEEDS = (1, 2, 3)
SD = Q.diagonal().sqrt()


def short_of(name, row, found):
    """The scores that miss the bars of one row."""
    return {text.split(" ")[0] for text in missed(PROBLEMS[name], row, found)}


def report(name, members_of, seed=1):
    """Scores of `members_of(states (B, C), normal draws (B, M, C))`."""
    problem = PROBLEMS[name]
    x, exact, _ = problem.test_case(seed)
    z = torch.randn(STATES, MEMBERS, problem.channels, generator=torch.Generator().manual_seed(seed))
    return problem.report(x, members_of(x, z), exact)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "row"), BARS)
def test_the_true_law_meets_every_bar(name, row, seed):
    problem = PROBLEMS[name]
    x, exact, again = problem.test_case(seed)
    assert missed(problem, row, problem.report(x, again, exact)) == []


def mean_a(x, z):
    return (x @ A.T)[:, None].expand_as(z)


def mean_b(x, z):
    return (2 * torch.sigmoid(2 * x) - 1)[:, None].expand_as(z)


@pytest.mark.parametrize(("name", "mean"), [("A", mean_a), ("B", mean_b)])
def test_the_exact_mean_without_spread_misses_every_bar(name, mean):
    found = report(name, mean)
    assert missed(PROBLEMS[name], "regression", found) == []
    for problem, row in BARS:
        if problem == name:
            missing = missed(PROBLEMS[name], row, found)
            # The correlation of no spread is not a number, which meets no bar.
            assert len(missing) == len(BARS[name, row])


@pytest.mark.parametrize("name", FLOORS)
def test_the_true_law_is_not_taken_for_regression(name):
    problem = PROBLEMS[name]
    x, exact, again = problem.test_case(1)
    assert len(missed(problem, "regression", problem.report(x, again, exact))) == len(FLOORS[name])


def test_members_that_share_their_noise_miss_the_bars():
    half = torch.linalg.cholesky(Q)
    found = report("A", lambda x, z: mean_a(x, z) + z[:, :1] @ half.T)
    assert missed(PROBLEMS["A"], "CRPS alone", found)
    assert len(missed(PROBLEMS["A"], "SI", found)) == len(BARS["A", "SI"])


@pytest.mark.parametrize("correlation", [0.0, -CORRELATION, 0.999])
def test_right_marginals_with_a_wrong_joint_law_miss_the_joint_bars_only(correlation):
    def members(x, z):
        second = correlation * z[..., 0] + math.sqrt(1 - correlation**2) * z[..., 1]
        return mean_a(x, z) + SD * torch.stack((z[..., 0], second), -1)

    found = report("A", members)
    assert missed(PROBLEMS["A"], "CRPS alone", found) == []
    for row in ("SI", "FM", "EDM", "CRPS + differences", "energy score"):
        assert short_of("A", row, found) == {"cov", "corr", "rel"}


def test_small_errors_of_the_spread_miss_the_covariance_bar():
    # The spread that almost-fair CRPS asks for with two members, 0.952 of the true one.
    half = 0.952 * torch.linalg.cholesky(Q)
    found = report("A", lambda x, z: mean_a(x, z) + z @ half.T)
    assert {"cov"} <= short_of("A", "SI", found)
    assert missed(PROBLEMS["A"], "CRPS alone", found) == []


def test_one_broad_mode_with_the_right_mean_and_variance_misses_the_bars_of_two():
    def members(x, z):
        mean = mean_b(x, z)
        return mean + (1 - mean.square() + MODE_SD**2).sqrt() * z

    assert {"crps", "outside"} <= short_of("B", "CRPS alone", report("B", members))


def test_modes_with_the_weights_of_the_climate_miss_the_bar_of_the_weights():
    found = report("B", lambda _, z: z.sign() + MODE_SD * z.roll(1, 1))
    assert {"crps", "mode-weight"} <= short_of("B", "CRPS alone", found)
    assert found["outside 3 sd"] < 0.01


class Linear(torch.nn.Module):
    """x1 = A x0 + L xi with the right marginals and a correlation of its own."""

    spec = NetSpec(out_channels=2, takes_x=False, takes_t=False, noise=(2,))

    def __init__(self, correlation):
        super().__init__()
        self.angle = torch.nn.Parameter(torch.tensor(math.asin(correlation)))

    def predict(self, x, cond, /, *, t, noise):
        second = self.angle.sin() * noise[:, 0] + self.angle.cos() * noise[:, 1]
        return cond["state"] @ A.T + SD * torch.stack((noise[:, 0], second), -1)


DIFFERENCES = SumScore(terms=(CRPS(), DifferenceCRPS(steps=((1,),), periodic=(True,))), factors=(1.0, 0.2))


@pytest.mark.parametrize("start", [-0.5, 0.2])
@pytest.mark.parametrize(
    ("score", "sees"),
    [(CRPS(), False), (DIFFERENCES, True), (EnergyScore(), True)],
    ids=["crps", "sum", "energy"],
)
def test_crps_alone_leaves_the_correlation_where_it_starts(score, sees, start):
    """Among generators with the right marginals the CRPS is flat; the joint scores pull to the truth."""
    net, estimator = Linear(start), EnsembleCRPS(score=score, noise_shape=(2,))
    slopes = []
    for step in range(20):
        x0 = torch.randn(2000, 2, generator=torch.Generator().manual_seed(step))
        x1 = PROBLEMS["A"].draw(x0, torch.Generator().manual_seed(1000 + step))
        batch = Batch(base=x0, target=x1, cond={"state": x0})
        loss = estimator.loss(net, batch, Key(start > 0, torch.arange(2000), torch.tensor([step]))).loss
        slopes.append(float(torch.autograd.grad(loss, net.angle)[0]))
    slopes = torch.tensor(slopes)
    t = float(slopes.mean() / (slopes.std() / math.sqrt(len(slopes))))
    assert t < -10 if sees else abs(t) < 4
