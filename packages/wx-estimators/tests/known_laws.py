"""Problems whose transition law is known, a small network, its training, and the acceptance bars.

Problem A: a 2-D Ornstein-Uhlenbeck transition whose noise has correlation 0.735, the test of the joint law.
Problem B: a 1-D mixture of two modes 8 standard deviations apart, the test of multimodality.

benchmarks/estimators_bars.py prints these scores for every estimator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from wx_estimators import (
    CRPS,
    EDM,
    EMA,
    Batch,
    DifferenceCRPS,
    EnergyScore,
    EnsembleCRPS,
    Estimator,
    FlowMatching,
    Key,
    NetworkSpec,
    Regression,
    StochasticInterpolant,
    SumScore,
    WhiteNoise,
)

STEPS = 2000
STATES, MEMBERS = 128, 256

A = torch.tensor([[0.8, 0.2], [-0.1, 0.7]])
Q = torch.tensor([[0.30, 0.18], [0.18, 0.20]])
CORRELATION = 0.18 / math.sqrt(0.30 * 0.20)
MODES = (-1.0, 1.0)
MODE_SD = 0.25

# Upper bounds for 2000 steps at batch 1024. With 256 members and 128 states the true law itself has a
# covariance error of 0.005 and a mode-weight error of 0.018. CRPS alone leaves the correlation free.
BARS: dict[tuple[str, str], dict[str, float]] = {
    ("A", "SI"): {"crps ratio": 1.005, "cov bias": 0.04, "corr error": 0.03, "rel energy": 0.003},
    ("A", "FM"): {"crps ratio": 1.005, "cov bias": 0.04, "corr error": 0.03, "rel energy": 0.003},
    ("A", "EDM"): {"crps ratio": 1.005, "cov bias": 0.07, "corr error": 0.03, "rel energy": 0.003},
    ("A", "CRPS + differences"): {
        "crps ratio": 1.005,
        "cov bias": 0.08,
        "corr error": 0.04,
        "rel energy": 0.003,
    },
    ("A", "energy score"): {"crps ratio": 1.005, "cov bias": 0.08, "corr error": 0.04, "rel energy": 0.003},
    ("A", "CRPS alone"): {"crps ratio": 1.005},
    ("B", "SI"): {"crps ratio": 1.006, "mode-weight error": 0.03, "outside 3 sd": 0.03},
    ("B", "FM"): {"crps ratio": 1.008, "mode-weight error": 0.03, "outside 3 sd": 0.05},
    ("B", "EDM"): {"crps ratio": 1.006, "mode-weight error": 0.035, "outside 3 sd": 0.025},
    ("B", "CRPS alone"): {"crps ratio": 1.01, "mode-weight error": 0.03, "outside 3 sd": 0.06},
}
# The negative control: regression must be above every one of these.
FLOORS: dict[str, dict[str, float]] = {
    "A": {"crps ratio": 1.3, "cov bias": 0.9, "rel energy": 0.1},
    "B": {"crps ratio": 1.5, "mode-weight error": 0.2},
}


class Perceptron(nn.Module):
    """A perceptron on (x, state, features of t, noise) with the interface of `wx_estimators.Network`."""

    def __init__(self, spec: NetworkSpec, state: int, width: int = 128) -> None:
        super().__init__()
        self.spec = spec
        inputs = state + spec.takes_x * spec.out_channels + 7 * spec.takes_t
        inputs += spec.noise[0] if spec.noise else 0
        layers = [m for i, o in pairwise([inputs, *[width] * 3]) for m in (nn.Linear(i, o), nn.SiLU())]
        self.body = nn.Sequential(*layers, nn.Linear(width, spec.out_channels))

    def predict(
        self, x: Tensor | None, cond: Mapping[str, Tensor], /, *, t: Tensor | None, noise: Tensor | None
    ) -> Tensor:
        """See `wx_estimators.Network.predict`."""
        parts = [cond["state"]] + [v for v in (x, noise) if v is not None]
        if t is not None:
            angle = t[:, None] * torch.tensor([math.pi, 2 * math.pi, 4 * math.pi])
            parts += [t[:, None], angle.sin(), angle.cos()]
        out: Tensor = self.body(torch.cat(parts, 1))
        return out


@dataclass(frozen=True)
class Problem:
    """A transition law: states (B, C), draws of the next state, and scores of members (B, M, C)."""

    name: str
    channels: int
    sigma: tuple[float, ...]
    states: Callable[[int, torch.Generator], Tensor]
    draw: Callable[[Tensor, torch.Generator], Tensor]
    report: Callable[[Tensor, Tensor, Tensor], dict[str, float]]

    def test_case(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """128 states (B, C), and two independent ensembles (B, 256, C) of the true law."""
        g = torch.Generator().manual_seed(1000 + seed)
        x = self.states(STATES, g)
        one, two = (self.draw(x.repeat_interleave(MEMBERS, 0), g).view(STATES, MEMBERS, -1) for _ in range(2))
        return x, one, two


def fit(
    net: nn.Module,
    estimator: Estimator,
    batch_of: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    steps: int,
    seed: int,
    rate: float = 2e-3,
) -> None:
    """Train in place on pairs (state, next state): Adam, cosine decay, power-function average."""
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ema = EMA(net, sigma_rel=0.10)
    for step in range(steps):
        x0, x1 = batch_of(g)
        batch = Batch(base=x0, target=x1, cond={"state": x0})
        # `step` takes the place of the member number: every step draws anew.
        out = estimator.loss(net, batch, Key(seed, torch.arange(len(x0)), torch.tensor([step])))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        schedule.step()
        ema.update(net)
    ema.copy_to(net)


def train(problem: Problem, estimator: Estimator, seed: int, steps: int = STEPS) -> Perceptron:
    """The network of the bars: 3 x 128, batches of 1024 out of 50 000 pairs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Perceptron(estimator.required(problem.channels), problem.channels)
    fit(net, estimator, pairs(problem, seed), steps, seed)
    return net


def pairs(problem: Problem, seed: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """Batches of 1024 out of 50 000 pairs."""
    g = torch.Generator().manual_seed(seed)
    x0 = problem.states(50_000, g)
    x1 = problem.draw(x0, g)

    def batch_of(g: torch.Generator) -> tuple[Tensor, Tensor]:
        pick = torch.randint(len(x0), (1024,), generator=g)
        return x0[pick], x1[pick]

    return batch_of


def scores(problem: Problem, estimator: Estimator, net: Perceptron, seed: int) -> dict[str, float]:
    """Scores of 256 members for 128 states."""
    x, exact, _ = problem.test_case(seed)
    key = Key(seed + 77, torch.arange(STATES), torch.arange(MEMBERS))
    with torch.no_grad():
        members = estimator.sample(net, x, {"state": x}, key)
    return problem.report(x, members, exact)


def missed(problem: Problem, row: str, found: Mapping[str, float]) -> list[str]:
    """What is on the wrong side of its bar, in words."""
    if row == "regression":
        low = FLOORS[problem.name]
        return [f"{name} {found[name]:.4f} <= {bar}" for name, bar in low.items() if not found[name] > bar]
    bars = BARS[problem.name, row]
    return [f"{name} {found[name]:.4f} > {bar}" for name, bar in bars.items() if not found[name] <= bar]


def estimators(problem: Problem) -> dict[str, Estimator]:
    """The rows that have bars; counter-based noise is several times faster for thousands of small draws."""
    noise = WhiteNoise(engine="philox")
    differences = SumScore(
        terms=(CRPS(), DifferenceCRPS(steps=((1,),), periodic=(True,))), factors=(1.0, 0.2)
    )
    joint: dict[str, Estimator] = {
        "CRPS + differences": EnsembleCRPS(score=differences, noise_shape=(4,), noise=noise),
        "energy score": EnsembleCRPS(score=EnergyScore(), noise_shape=(4,), noise=noise),
    }
    return {
        "SI": StochasticInterpolant(sigma_target=problem.sigma, noise=noise),
        "FM": FlowMatching(sigma_data=problem.sigma, noise=noise),
        "EDM": EDM(sigma_data=problem.sigma, noise=noise),
        **(joint if problem.channels > 1 else {}),
        "CRPS alone": EnsembleCRPS(score=CRPS(), noise_shape=(4,), noise=noise),
        "regression": Regression(),
    }


def mean_pair_distance(x: Tensor) -> Tensor:
    """Mean distance over distinct pairs of members: (B, M, C) -> (B,)."""
    m = x.shape[1]
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sum((1, 2)) / (m * (m - 1))


def gaussian_distance(d: Tensor, sd: Tensor) -> Tensor:
    """E|d - sd z| for z ~ N(0, 1)."""
    u = d / sd
    return sd * (u * torch.erf(u / math.sqrt(2.0)) + math.sqrt(2 / math.pi) * torch.exp(-u.square() / 2))


def _report_a(x: Tensor, y: Tensor, exact: Tensor) -> dict[str, float]:
    mean, sd = x @ A.T, Q.diagonal().sqrt()
    skill = gaussian_distance(y - mean[:, None], sd).mean(1)
    spread = torch.stack([mean_pair_distance(y[..., c : c + 1]) for c in range(2)], -1)
    ratio = (skill - 0.5 * spread).mean(0) / (sd / math.sqrt(math.pi))
    away = y - y.mean(1, keepdim=True)
    cov = torch.einsum("bmi,bmj->ij", away, away) / (y.shape[0] * (y.shape[1] - 1))
    cross = torch.cdist(y, exact, compute_mode="donot_use_mm_for_euclid_dist").mean((1, 2))
    within, truth = mean_pair_distance(y), mean_pair_distance(exact)
    corr = float(cov[0, 1] / (cov[0, 0] * cov[1, 1]).sqrt()) if float(cov.trace()) > 1e-6 else math.nan
    return {
        "crps ratio": float(ratio.mean()),
        "mean rmse/sd": float(((y.mean(1) - mean) / sd).square().mean().sqrt()),
        "cov bias": float((cov - Q).norm() / Q.norm()),
        "corr": corr,
        "corr error": abs(corr - CORRELATION),
        "rel energy": float(((2 * cross - within - truth) / truth).mean()),
    }


def _right(x: Tensor) -> Tensor:
    return torch.sigmoid(2.0 * x)


def _report_b(x: Tensor, y: Tensor, exact: Tensor) -> dict[str, float]:
    del exact  # the true law enters in closed form
    sd, right = torch.tensor(MODE_SD), _right(x)
    to_modes = [gaussian_distance(y[..., 0] - mode, sd).mean(1, keepdim=True) for mode in MODES]
    skill = (1 - right) * to_modes[0] + right * to_modes[1]
    same = 2 * MODE_SD / math.sqrt(math.pi)
    other = gaussian_distance(torch.tensor(MODES[1] - MODES[0]), sd * math.sqrt(2.0))
    entropy = 0.5 * ((right**2 + (1 - right) ** 2) * same + 2 * right * (1 - right) * other)
    score = skill[:, 0] - 0.5 * mean_pair_distance(y)
    gap = torch.stack([(y[..., 0] - mode).abs() for mode in MODES]).amin(0)
    return {
        "crps ratio": float(score.mean() / entropy.mean()),
        "mode-weight error": float(((y[..., 0] > 0).float().mean(1) - right[:, 0]).abs().mean()),
        "outside 3 sd": float((gap > 3 * MODE_SD).float().mean()),
    }


def _draw_a(x: Tensor, g: torch.Generator) -> Tensor:
    noise: Tensor = torch.randn(x.shape, generator=g) @ torch.linalg.cholesky(Q).T
    return x @ A.T + noise


def _draw_b(x: Tensor, g: torch.Generator) -> Tensor:
    right = torch.rand(x.shape, generator=g) < _right(x)
    return torch.where(right, MODES[1], MODES[0]) + MODE_SD * torch.randn(x.shape, generator=g)


PROBLEMS = {
    "A": Problem("A", 2, (1.0, 0.89), lambda n, g: torch.randn(n, 2, generator=g), _draw_a, _report_a),
    "B": Problem("B", 1, (1.03,), lambda n, g: torch.randn(n, 1, generator=g), _draw_b, _report_b),
}
