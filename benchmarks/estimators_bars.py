"""Attainable quality on two problems with exactly known transition laws.

Problem A: a 2-D Ornstein-Uhlenbeck transition whose noise has correlation 0.735, the test of the joint law.
Problem B: a 1-D mixture of two modes 8 standard deviations apart, the test of multimodality.

Each row trains one small MLP (3 x 128, Adam 2e-3 with cosine decay, batch 1024, power-function average) and
samples 256 members for 128 conditions. Run:

    python benchmarks/estimators_bars.py [--steps 2000] [--seeds 1 2 3]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from wx_estimators import (
    CRPS,
    EDM,
    EMA,
    SRA1,
    Batch,
    DifferenceCRPS,
    EnergyScore,
    EnsembleCRPS,
    Estimator,
    EulerMaruyama,
    Key,
    NetworkSpec,
    StochasticInterpolant,
    SumScore,
)

A = torch.tensor([[0.8, 0.2], [-0.1, 0.7]])
Q = torch.tensor([[0.30, 0.18], [0.18, 0.20]])
MODES = (-1.0, 1.0)
MODE_SD = 0.25


class Toy(nn.Module):
    """A perceptron on (x, state, features of t, noise) with the interface of `wx_estimators.Network`."""

    def __init__(self, spec: NetworkSpec, state: int) -> None:
        super().__init__()
        self.spec = spec
        width = state + spec.takes_x * spec.out_channels + 7 * spec.takes_t
        width += spec.noise[0] if spec.noise else 0
        sizes = [width, 128, 128, 128]
        layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.SiLU())]
        self.body = nn.Sequential(*layers, nn.Linear(128, spec.out_channels))

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
    """A transition law: states, and draws of the next state."""

    name: str
    channels: int
    states: Callable[[int, torch.Generator], Tensor]
    draw: Callable[[Tensor, torch.Generator], Tensor]


def _states_a(n: int, g: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=g)


def _draw_a(x: Tensor, g: torch.Generator) -> Tensor:
    noise: Tensor = torch.randn(x.shape, generator=g) @ torch.linalg.cholesky(Q).T
    return x @ A.T + noise


def _states_b(n: int, g: torch.Generator) -> Tensor:
    return torch.randn(n, 1, generator=g)


def _right(x: Tensor) -> Tensor:
    return torch.sigmoid(2.0 * x)


def _draw_b(x: Tensor, g: torch.Generator) -> Tensor:
    right = torch.rand(x.shape, generator=g) < _right(x)
    return torch.where(right, MODES[1], MODES[0]) + MODE_SD * torch.randn(x.shape, generator=g)


PROBLEMS = (Problem("A", 2, _states_a, _draw_a), Problem("B", 1, _states_b, _draw_b))


def train(problem: Problem, estimator: Estimator, steps: int, seed: int, rows: int = 1024) -> Toy:
    """A trained network with averaged weights."""
    g = torch.Generator().manual_seed(seed)
    x0 = problem.states(50_000, g)
    x1 = problem.draw(x0, g)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Toy(estimator.required(problem.channels), problem.channels)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ema = EMA(net, sigma_rel=0.10)
    for step in range(steps):
        pick = torch.randint(len(x0), (rows,), generator=g)
        batch = Batch(base=x0[pick], target=x1[pick], cond={"state": x0[pick]})
        # `step` takes the place of the member number: every step draws anew.
        out = estimator.loss(net, batch, Key(seed, pick, torch.tensor([step])))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        schedule.step()
        ema.update(net)
    ema.copy_to(net)
    return net


def mean_pair_distance(x: Tensor) -> Tensor:
    """Mean distance over distinct pairs of members: (B, M, C) -> (B,)."""
    m = x.shape[1]
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sum((1, 2)) / (m * (m - 1))


def gaussian_distance(d: Tensor, sd: Tensor) -> Tensor:
    """E|d - sd z| for z ~ N(0, 1)."""
    u = d / sd
    return sd * (u * torch.erf(u / math.sqrt(2.0)) + math.sqrt(2 / math.pi) * torch.exp(-u.square() / 2))


def report_a(x: Tensor, y: Tensor, exact: Tensor) -> dict[str, float]:
    """Scores of members y (B, M, 2) for states x; `exact` are members of the true law."""
    mean, sd = x @ A.T, Q.diagonal().sqrt()
    skill = gaussian_distance(y - mean[:, None], sd).mean(1)
    spread = torch.stack([mean_pair_distance(y[..., c : c + 1]) for c in range(2)], -1)
    ratio = (skill - 0.5 * spread).mean(0) / (sd / math.sqrt(math.pi))
    away = y - y.mean(1, keepdim=True)
    cov = torch.einsum("bmi,bmj->ij", away, away) / (y.shape[0] * (y.shape[1] - 1))
    cross = torch.cdist(y, exact, compute_mode="donot_use_mm_for_euclid_dist").mean((1, 2))
    within, truth = mean_pair_distance(y), mean_pair_distance(exact)
    return {
        "crps ratio": float(ratio.mean()),
        "mean rmse/sd": float(((y.mean(1) - mean) / sd).square().mean().sqrt()),
        "cov bias": float((cov - Q).norm() / Q.norm()),
        "corr": float(cov[0, 1] / (cov[0, 0] * cov[1, 1]).sqrt()) if float(cov.trace()) > 1e-6 else math.nan,
        "rel energy": float(((2 * cross - within - truth) / truth).mean()),
    }


def report_b(x: Tensor, y: Tensor, exact: Tensor) -> dict[str, float]:
    """Scores of members y (B, M, 1) for states x; the true law enters in closed form."""
    del exact
    sd, right = torch.tensor(MODE_SD), _right(x)
    to_modes = [gaussian_distance(y[..., 0] - mode, sd).mean(1, keepdim=True) for mode in MODES]
    skill = (1 - right) * to_modes[0] + right * to_modes[1]
    same, other = (
        2 * MODE_SD / math.sqrt(math.pi),
        gaussian_distance(torch.tensor(MODES[1] - MODES[0]), sd * math.sqrt(2.0)),
    )
    entropy = 0.5 * ((right**2 + (1 - right) ** 2) * same + 2 * right * (1 - right) * other)
    score = skill[:, 0] - 0.5 * mean_pair_distance(y)
    gap = torch.stack([(y[..., 0] - mode).abs() for mode in MODES]).amin(0)
    return {
        "crps ratio": float(score.mean() / entropy.mean()),
        "mode-weight error": float(((y[..., 0] > 0).float().mean(1) - right[:, 0]).abs().mean()),
        "outside 3 sd": float((gap > 3 * MODE_SD).float().mean()),
    }


def estimators(problem: Problem) -> dict[str, Estimator]:
    """The rows of the table, and settings that differ between problems."""
    sigma = (1.0, 0.89) if problem.name == "A" else (1.03,)
    crps: dict[str, Estimator] = {
        "CRPS alone, M = 2": EnsembleCRPS(score=CRPS(), noise_shape=(4,)),
        "energy score, M = 2": EnsembleCRPS(score=EnergyScore(), noise_shape=(4,)),
    }
    if problem.channels > 1:
        joint = SumScore(terms=(CRPS(), DifferenceCRPS(steps=((1,),), periodic=(True,))), factors=(1.0, 0.2))
        crps["CRPS + 0.2 differences"] = EnsembleCRPS(score=joint, noise_shape=(4,))
    atlas = StochasticInterpolant(sigma_target=sigma, preconditioning="atlas")
    return {
        "SI, SRA1 10": StochasticInterpolant(sigma_target=sigma, sampler=SRA1(), steps=10),
        "SI, EM 60": StochasticInterpolant(sigma_target=sigma, sampler=EulerMaruyama(), steps=60),
        "SI, Foellmer SRA1 20": StochasticInterpolant(sigma_target=sigma, diffusion="foellmer", steps=20),
        "SI, published form": atlas,
        "EDM, DPM++2S 20": EDM(sigma_data=sigma),
        "EDM, churn 2.5": EDM(sigma_data=sigma, churn=2.5),
        **crps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--problems", nargs="+", default=["A", "B"])
    parser.add_argument("--only", default="", help="text that the name of an estimator must contain")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for problem in (p for p in PROBLEMS if p.name in options.problems):
        for seed in options.seeds:
            g = torch.Generator().manual_seed(1000 + seed)
            x = problem.states(128, g)
            exact, again = (problem.draw(x.repeat_interleave(256, 0), g).view(128, 256, -1) for _ in range(2))
            report = report_a if problem.name == "A" else report_b
            print_row(problem, seed, "exact law", 0, 0.0, report(x, again, exact))
            for name, estimator in estimators(problem).items():
                if options.only not in name:
                    continue
                start = time.process_time()
                net = train(problem, estimator, options.steps, seed)
                spent = time.process_time() - start
                with torch.no_grad():
                    key = Key(seed + 77, torch.arange(128), torch.arange(256))
                    y = estimator.sample(net, x, {"state": x}, key)
                print_row(problem, seed, name, estimator.calls_per_sample, spent, report(x, y, exact))


def print_row(
    problem: Problem, seed: int, name: str, calls: int, seconds: float, scores: dict[str, float]
) -> None:
    """One line of the table."""
    cells = "  ".join(f"{key} {value:7.4f}" for key, value in scores.items())
    print(f"{problem.name} seed {seed}  {name:24s} {calls:4d} calls {seconds:5.1f} s  {cells}", flush=True)


if __name__ == "__main__":
    main()
