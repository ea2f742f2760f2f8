"""Which estimators, and which CRPS scores, learn a joint law: 64 points on a ring, everything known.

The next state is A x0 + xi, where A is a circulant matrix and xi Gaussian with a circulant covariance (power
1 / (1 + (k / 4)^4), correlation 0.94 between neighbours). One perceptron, which knows no ring, is
trained by every estimator for the same number of steps, so that only the loss can teach the joint law.

    crps     CRPS of the points over that of the true law (the truth integrated out in closed form)
    lag 1    correlation of neighbours, and the same 8 points apart
    cov      relative error of the covariance matrix of the noise (Frobenius)
    power    root mean square of log10(power / true power) over the wavenumbers
    energy   energy distance to the true law, relative to the spread of the true law

    OMP_NUM_THREADS=1 python benchmarks/estimators_claim.py [--steps 2000] [--seeds 1]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
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
    EnsembleScore,
    Estimator,
    FlowMatching,
    Key,
    NetworkSpec,
    PatchMeanScore,
    Regression,
    SpectralCRPS,
    StochasticInterpolant,
    SumScore,
    VariogramScore,
)

N = 64
POWER = 1.0 / (1.0 + (torch.arange(N // 2 + 1) / 4.0) ** 4)
POWER = 0.25 * POWER / torch.fft.irfft(POWER.double() + 0j, n=N)[0]  # point variance 0.25
FILTER = 0.9 * torch.exp(-2j * math.pi * torch.arange(N // 2 + 1) * 2 / N)  # damp, and move by two points


def ring(power: Tensor, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Gaussian fields (*shape, N) whose circulant covariance has these eigenvalues."""
    white = torch.fft.rfft(torch.randn(*shape, N, generator=g))
    return torch.fft.irfft(white * power.float().sqrt(), n=N)


def mean_of(x0: Tensor) -> Tensor:
    """A x0."""
    return torch.fft.irfft(torch.fft.rfft(x0) * FILTER, n=N)


def states(n: int, g: torch.Generator) -> Tensor:
    """(n, 1, N) states of unit variance."""
    return 2.0 * ring(POWER, (n, 1), g)


def draw(x0: Tensor, g: torch.Generator) -> Tensor:
    """Next states of the true law."""
    return mean_of(x0) + ring(POWER, tuple(x0.shape[:-1]), g)


class Perceptron(nn.Module):
    """A linear map and two hidden layers of everything it is given, with the interface of a `Network`."""

    def __init__(self, spec: NetworkSpec, width: int = 256) -> None:
        super().__init__()
        self.spec = spec
        inputs = N + N * spec.takes_x + 7 * spec.takes_t + (math.prod(spec.noise) if spec.noise else 0)
        sizes = [inputs, width, width]
        layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.SiLU())]
        self.body = nn.Sequential(*layers, nn.Linear(width, N))
        self.skip = nn.Linear(inputs, N)

    def predict(
        self, x: Tensor | None, cond: Mapping[str, Tensor], /, *, t: Tensor | None, noise: Tensor | None
    ) -> Tensor:
        """See `wx_estimators.Network.predict`."""
        parts = [v.flatten(1) for v in (cond["state"], x, noise) if v is not None]
        if t is not None:
            angle = t[:, None] * torch.tensor([math.pi, 2 * math.pi, 4 * math.pi])
            parts += [t[:, None], angle.sin(), angle.cos()]
        y = torch.cat(parts, 1)
        out: Tensor = (self.body(y) + self.skip(y)).unsqueeze(1)
        return out


def train(estimator: Estimator, steps: int, seed: int, rows: int = 256) -> Perceptron:
    """A trained network with averaged weights."""
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Perceptron(estimator.required(1))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ema = EMA(net, sigma_rel=0.10)
    for step in range(steps):
        x0 = states(rows, g)
        batch = Batch(base=x0, target=draw(x0, g), cond={"state": x0})
        out = estimator.loss(net, batch, Key(seed, torch.arange(rows), torch.tensor([step])))
        optimizer.zero_grad()
        out.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        ema.update(net)
    ema.copy_to(net)
    return net


def mean_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean distance over all pairs: (B, M, N), (B, M', N) -> (B,); pairs of a with itself are left out."""
    total = torch.cdist(a, b).sum((1, 2))
    return total / (a.shape[1] * (b.shape[1] - (a is b)))


def report(x0: Tensor, members: Tensor, exact: Tensor) -> dict[str, float]:
    """Quality of members (B, M, 1, N) for states x0 (B, 1, N); `exact` are members of the true law."""
    y, truth, mean, sd = members[:, :, 0], exact[:, :, 0], mean_of(x0), 0.5
    u = (y - mean) / sd
    skill = u * torch.erf(u / math.sqrt(2)) + math.sqrt(2 / math.pi) * torch.exp(-u.square() / 2)
    order = y.sort(1).values
    m = y.shape[1]
    rank = torch.arange(1 - m, m, 2).view(-1, 1)
    spread = (order * rank).sum(1) / (m * (m - 1))
    ratio = (sd * skill.mean() - spread.mean()) / (sd / math.sqrt(math.pi))
    away = y - y.mean(1, keepdim=True)
    cov = torch.einsum("bmi,bmj->ij", away, away) / (len(y) * (m - 1))
    line = torch.fft.irfft(POWER + 0j, n=N)
    true_cov = torch.stack([line.roll(i) for i in range(N)]).to(cov)
    power = torch.fft.rfft(away, norm="ortho").abs().square().sum((0, 1)) / (len(y) * (m - 1))
    corr = cov / torch.outer(cov.diagonal(), cov.diagonal()).sqrt().clamp(min=1e-12)
    lags = {lag: corr.roll(-lag, 1).diagonal().mean() for lag in (1, 8)}
    within = mean_distance(truth, truth)
    distance = (2 * mean_distance(y, truth) - mean_distance(y, y) - within) / within
    return {
        "crps": float(ratio),
        "lag 1": float(lags[1]),
        "lag 8": float(lags[8]),
        "cov": float((cov - true_cov).norm() / true_cov.norm()),
        "power": float((power.clamp(min=1e-12) / POWER.to(power)).log10().square().mean().sqrt()),
        "energy": float(distance.mean()),
    }


def scores() -> dict[str, EnsembleScore]:
    """Scores of an ensemble of fields (B, M, 1, N)."""
    near = DifferenceCRPS(steps=((1,), (2,), (4,), (8,), (16,)), periodic=(True,))
    variogram = VariogramScore(steps=near.steps, periodic=(True,))
    coarse = tuple(PatchMeanScore(patch=(n,)) for n in (4, 16))
    return {
        "CRPS": CRPS(),
        "CRPS, alpha 0.95": CRPS(alpha=0.95),
        "CRPS + differences": SumScore(terms=(CRPS(), near), factors=(1.0, 1.0)),
        "CRPS + spectral": SumScore(terms=(CRPS(), SpectralCRPS()), factors=(1.0, 1.0)),
        "CRPS + spectral parts": SumScore(terms=(CRPS(), SpectralCRPS(kernel="parts")), factors=(1.0, 1.0)),
        "CRPS + amplitudes": SumScore(terms=(CRPS(), SpectralCRPS(kernel="amplitude")), factors=(1.0, 1.0)),
        "CRPS + patch means": SumScore(terms=(CRPS(), *coarse), factors=(1.0, 1.0, 1.0)),
        "CRPS + variogram": SumScore(terms=(CRPS(), variogram), factors=(1.0, 1.0)),
        "energy score": EnergyScore(),
    }


def estimators() -> dict[str, Estimator]:
    """Rows of the table: other families first, then every score; with noise of 64 values and of 8."""
    rows: dict[str, Estimator] = {
        "interpolant, SRA1 10": StochasticInterpolant(correlation=0.8),
        "EDM, DPM++2S 20": EDM(),
        "flow matching": FlowMatching(),
        "regression": Regression(),
    }
    for name, score in scores().items():
        rows[name] = EnsembleCRPS(score=score, noise_shape=(64,))
    rows["CRPS, noise of 8"] = EnsembleCRPS(score=CRPS(), noise_shape=(8,))
    rows["CRPS + spectral, noise of 8"] = EnsembleCRPS(score=scores()["CRPS + spectral"], noise_shape=(8,))
    rows["CRPS + spectral, M = 8"] = EnsembleCRPS(
        score=scores()["CRPS + spectral"], noise_shape=(64,), members=8
    )
    return rows


def line(name: str, calls: int, seconds: float, values: dict[str, float]) -> str:
    """One line of the table."""
    cells = "".join(f"{value:9.4f}" for value in values.values())
    return f"{name:28s}{calls:6d}{seconds:9.1f}{cells}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", default="", help="text that the name of a row must contain")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        g = torch.Generator().manual_seed(1000 + seed)
        x0 = states(64, g)
        exact, again = (draw(x0.unsqueeze(1).expand(-1, 256, -1, -1), g) for _ in range(2))
        values = report(x0, again, exact)
        print(f"seed {seed}{'':22s} calls   CPU s" + "".join(f"{key:>9s}" for key in values))
        print(line("true law", 0, 0.0, values), flush=True)
        for name, estimator in estimators().items():
            if options.only in name:
                start = time.process_time()
                net = train(estimator, options.steps, seed)
                seconds = time.process_time() - start
                key = Key(seed + 77, torch.arange(64), torch.arange(256))
                with torch.no_grad():
                    y = estimator.sample(net, x0, {"state": x0}, key)
                print(line(name, estimator.calls_per_sample, seconds, report(x0, y, exact)), flush=True)


if __name__ == "__main__":
    main()
