"""Attainable quality on two problems with exactly known transition laws, against acceptance bars.

Problem A: a 2-D Ornstein-Uhlenbeck transition whose noise has correlation 0.735, the test of the joint law.
Problem B: a 1-D mixture of two modes 8 standard deviations apart, the test of multimodality.

Each row trains one small MLP (3 x 128, Adam 2e-3 with cosine decay, batch 1024, power-function average) and
samples 256 members for 128 conditions. Regression is the negative control: it must miss every bar. Problems,
training and bars are those of the package's tests. The exit status is 1 when a bar is missed. With --distil
the network of EDM then teaches a copy of itself to sample in 1, 2 and 4 calls. Run:

    OMP_NUM_THREADS=1 python benchmarks/estimators_bars.py [--steps 2000] [--seeds 1 2 3] [--more] [--distil]
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

import torch

from wx_estimators import (
    EDM,
    SRA1,
    Consistency,
    Estimator,
    EulerMaruyama,
    StochasticInterpolant,
    WhiteNoise,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "packages/wx-estimators/tests"))
from known_laws import PROBLEMS, Problem, estimators, fit, missed, pairs, scores, train


def more(problem: Problem) -> dict[str, Estimator]:
    """Other samplers and settings, without bars."""
    sigma, noise = problem.sigma, WhiteNoise(engine="philox")
    return {
        "SI, EM 60": StochasticInterpolant(
            sigma_target=sigma, sampler=EulerMaruyama(), steps=60, noise=noise
        ),
        "SI, SRA1 20": StochasticInterpolant(sigma_target=sigma, sampler=SRA1(), steps=20, noise=noise),
        "SI, Foellmer SRA1 20": StochasticInterpolant(
            sigma_target=sigma, diffusion="foellmer", steps=20, noise=noise
        ),
        "SI, published form": StochasticInterpolant(sigma_target=sigma, preconditioning="atlas", noise=noise),
        "EDM, churn 2.5": EDM(sigma_data=sigma, churn=2.5, noise=noise),
    }


def line(
    problem: Problem, seed: int, name: str, calls: int, spent: float, found: dict[str, float], verdict: str
) -> str:
    """One line of the table."""
    cells = "  ".join(f"{key} {value:7.4f}" for key, value in found.items() if key != "corr error")
    return f"{problem.name} seed {seed}  {name:20s} {calls:3d} calls {spent:5.1f} s  {cells}  {verdict}"


def run(problem: Problem, seed: int, rows: dict[str, Estimator], steps: int, barred: bool) -> int:
    """Print rows; returns how many missed a bar."""
    failures = 0
    for name, estimator in rows.items():
        start = time.process_time()
        net = train(problem, estimator, seed, steps)
        spent = time.process_time() - start
        found = scores(problem, estimator, net, seed)
        short = missed(problem, name, found) if barred else []
        verdict = ("pass" if not short else f"FAIL: {', '.join(short)}") if barred else ""
        failures += bool(short)
        print(line(problem, seed, name, estimator.calls_per_sample, spent, found, verdict), flush=True)
    return failures


def distil(problem: Problem, seed: int, steps: int) -> None:
    """Print rows of a consistency model that starts as its teacher, a network of EDM."""
    noise = WhiteNoise(engine="philox")
    teacher = train(problem, EDM(sigma_data=problem.sigma, noise=noise), seed, steps)
    # Rows of one or two values: the norm of a tangent is noisy, which a floor of 1 damps.
    model = Consistency(sigma_data=problem.sigma, teacher=teacher, noise=noise, floor=1.0)
    teacher.spec = model.required(problem.channels)
    student = copy.deepcopy(teacher)
    start = time.process_time()
    fit(student, model, pairs(problem, seed), steps, seed, rate=3e-3)
    spent = time.process_time() - start
    for calls in (1, 2, 4):
        sampler = Consistency(sigma_data=problem.sigma, noise=noise, steps=calls)
        found = scores(problem, sampler, student, seed)
        print(line(problem, seed, "distilled EDM", calls, spent, found, ""), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--problems", nargs="+", default=["A", "B"])
    parser.add_argument("--only", default="", help="text that the name of an estimator must contain")
    parser.add_argument("--distil", action="store_true", help="consistency models taught by EDM too")
    parser.add_argument("--more", action="store_true", help="other samplers and settings too, without bars")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("SI: SRA1, 10 steps; FM: Heun, 10; EDM: DPM++2S, 20; CRPS family: M = 2. Time: training, CPU.")
    failures = 0
    for problem in (PROBLEMS[name] for name in options.problems):
        for seed in options.seeds:
            x, exact, again = problem.test_case(seed)
            found = problem.report(x, again, exact)
            print(line(problem, seed, "exact law", 0, 0.0, found, ""), flush=True)
            groups = [(estimators(problem), True), *([(more(problem), False)] if options.more else [])]
            for rows, barred in groups:
                wanted = {name: e for name, e in rows.items() if options.only in name}
                failures += run(problem, seed, wanted, options.steps, barred)
            if options.distil:
                distil(problem, seed, options.steps)
    print(f"{failures} rows missed a bar" if failures else "every row met its bars")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
