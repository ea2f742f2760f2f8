"""A small network must learn the transition law of a 2-D Ornstein-Uhlenbeck process, jointly.

Short form of benchmarks/estimators_bars.py; the bars are wider because training is much shorter.
"""

import math

import pytest
import torch

from wx_estimators import (
    CRPS,
    EDM,
    EMA,
    Batch,
    DifferenceCRPS,
    EnergyScore,
    EnsembleCRPS,
    Key,
    StochasticInterpolant,
    SumScore,
)

A = torch.tensor([[0.8, 0.2], [-0.1, 0.7]])
Q = torch.tensor([[0.30, 0.18], [0.18, 0.20]])
SD = (0.30**0.5, 0.20**0.5)
DIFFERENCES = SumScore(terms=(CRPS(), DifferenceCRPS(steps=((1,),), periodic=(True,))), factors=(1.0, 0.2))
SIGMA = (1.0, 1.0)


class Toy(torch.nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        width = 2 + 2 * spec.takes_x + 5 * spec.takes_t + (spec.noise[0] if spec.noise else 0)
        g = torch.Generator().manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(width, 64),
            torch.nn.SiLU(),
            torch.nn.Linear(64, 64),
            torch.nn.SiLU(),
            torch.nn.Linear(64, 2),
        )
        for p in self.body.parameters():
            bound = p.shape[-1] ** -0.5 if p.ndim == 2 else 0.0
            torch.nn.init.uniform_(p, -bound, bound, generator=g)

    def predict(self, x, cond, /, *, t, noise):
        parts = [cond["state"]] + [v for v in (x, noise) if v is not None]
        if t is not None:
            angle = t[:, None] * torch.tensor([math.pi, 2 * math.pi])
            parts += [t[:, None], angle.sin(), angle.cos()]
        return self.body(torch.cat(parts, 1))


def draw(x, g):
    return x @ A.T + torch.randn(x.shape, generator=g) @ torch.linalg.cholesky(Q).T


def trained(estimator, steps=300, rows=256):
    g = torch.Generator().manual_seed(1)
    net = Toy(estimator.required(2))
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ema = EMA(net)
    for step in range(steps):
        x0 = torch.randn(rows, 2, generator=g)
        batch = Batch(base=x0, target=draw(x0, g), cond={"state": x0})
        out = estimator.loss(net, batch, Key(1, torch.arange(rows), torch.tensor([step])))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        schedule.step()
        ema.update(net)
    ema.copy_to(net)
    return net


def expected_distance(d, sd):
    """E|d - sd z|, z ~ N(0, 1)."""
    u = d / sd
    return sd * (u * torch.erf(u / 2**0.5) + (2 / math.pi) ** 0.5 * torch.exp(-u.square() / 2))


def quality(y, x):
    """CRPS over that of the true law (truth integrated out), correlation, relative covariance error."""
    m, sd = y.shape[1], torch.tensor(SD)
    skill = expected_distance(y - (x @ A.T)[:, None], sd).mean((0, 1))
    pairs = (y[:, :, None] - y[:, None]).abs().sum((1, 2)).mean(0) / (m * (m - 1))
    ratio = ((skill - 0.5 * pairs) * math.pi**0.5 / sd).mean()
    away = y - y.mean(1, keepdim=True)
    cov = torch.einsum("bmi,bmj->ij", away, away) / (len(y) * (m - 1))
    corr = cov[0, 1] / (cov[0, 0] * cov[1, 1]).sqrt().clamp(min=1e-9)
    return float(ratio), float(corr), float((cov - Q).norm() / Q.norm())


@pytest.mark.parametrize(
    "estimator",
    [
        StochasticInterpolant(sigma_target=SIGMA),
        EDM(sigma_data=SIGMA),
        EnsembleCRPS(noise_shape=(3,), score=DIFFERENCES),
        EnsembleCRPS(noise_shape=(3,), score=EnergyScore()),
    ],
    ids=["interpolant", "edm", "crps-differences", "energy"],
)
def test_estimators_learn_the_joint_law(estimator):
    net = trained(estimator)
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        y = estimator.sample(net, x, {"state": x}, Key(9, torch.arange(32), torch.arange(128)))
    ratio, corr, cov = quality(y, x)
    assert 0.99 < ratio < 1.02
    assert corr == pytest.approx(0.735, abs=0.08)
    assert cov < 0.15


def test_a_deterministic_ensemble_fails_the_bars():
    # Negative control: the exact conditional mean, repeated.
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(5))
    ratio, _, cov = quality((x @ A.T)[:, None].expand(-1, 128, -1), x)
    assert ratio > 1.3
    assert cov > 0.9
