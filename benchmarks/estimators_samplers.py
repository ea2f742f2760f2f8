"""Cost of the estimators around their network, and error of every sampler against network calls.

Overhead: CPU time of `sample` and `loss` with a network that costs one multiplication, per network call, over
that of a network of 9.5 million parameters on a latent grid of 17 x 32 with 18 channels; best of several.

Error: weak error of the law of a Gaussian target N(0.3, 0.5), without Monte Carlo, with the exact network:
the error of mean and standard deviation, over the true standard deviation. EDM ends at the bias that
sigma_max leaves in the mean, 0.3 / sqrt(0.5 + 80^2) = 3.7e-3. Run:

    python benchmarks/estimators_samplers.py [--width 768] [--repeats 7] [--plot samplers.png]
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wx_estimators import (
    DPM2M,
    DPM2S,
    EDM,
    RK4,
    SRA1,
    SRA2,
    Batch,
    Estimator,
    Euler,
    EulerMaruyama,
    FlowMatching,
    Heun,
    Key,
    NetSpec,
    StochasticHeun,
    StochasticInterpolant,
)

CHANNELS, GRID = 18, (17, 32)
MEAN, VARIANCE, X0 = 0.3, 0.5, 0.7
BUDGETS = (10, 20, 40, 80, 160)  # of network calls per member


class Network(nn.Module):
    """Residual perceptrons on grid points: 9.5 million parameters at width 768."""

    def __init__(self, width: int, depth: int = 8) -> None:
        super().__init__()
        self.spec = NetSpec(out_channels=CHANNELS, takes_x=True, takes_t=True)
        self.inward = nn.Linear(2 * CHANNELS, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(2 * depth)])
        self.outward = nn.Linear(width, CHANNELS)

    def forward(self, x: Tensor, state: Tensor, t: Tensor) -> Tensor:
        h = self.inward(torch.cat([x, state], 1).flatten(2).transpose(1, 2)) + t[:, None, None]
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            h = h + second(nn.functional.silu(first(h)))
        out: Tensor = self.outward(h).transpose(1, 2).reshape(x.shape)
        return out

    def predict(
        self, x: Tensor | None, cond: Mapping[str, Tensor], /, *, t: Tensor | None, noise: Tensor | None
    ) -> Tensor:
        """See `wx_estimators.Network.predict`."""
        del noise
        assert x is not None
        assert t is not None
        out: Tensor = self(x, cond["state"], t)
        return out


class Free:
    """A network that costs one multiplication: what is left is the estimator."""

    spec = NetSpec(out_channels=CHANNELS, takes_x=True, takes_t=True)

    def __init__(self) -> None:
        self.gain = torch.full((1, 1, 1, 1), 0.5, requires_grad=True)

    def predict(
        self, x: Tensor | None, cond: Mapping[str, Tensor], /, *, t: Tensor | None, noise: Tensor | None
    ) -> Tensor:
        """See `wx_estimators.Network.predict`."""
        del cond, t, noise
        assert x is not None
        return self.gain * x


@dataclass(frozen=True)
class Stored:
    """Noise that costs nothing: the same tensor every time."""

    z: Tensor

    def draw(self, key: Key, shape: tuple[int, ...], /, **_: object) -> Tensor:
        """See `wx_estimators.NoiseSource.draw`."""
        del key, shape
        return self.z


def best(variants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Smallest process time of each, taking turns."""
    out = dict.fromkeys(variants, math.inf)
    for _ in range(repeats):
        for name, run in variants.items():
            start = time.process_time()
            run()
            out[name] = min(out[name], time.process_time() - start)
    return out


def per_channel() -> tuple[float, ...]:
    return tuple(0.8 + 0.02 * i for i in range(CHANNELS))


def overhead(width: int, repeats: int) -> None:
    """Table of time around the network."""
    torch.manual_seed(0)
    net = Network(width)
    count = sum(p.numel() for p in net.parameters())
    x = torch.randn(1, CHANNELS, *GRID)
    cond, t, key = {"state": x}, torch.full((1,), 0.3), Key(0, torch.tensor([0]), torch.tensor([0]))
    still, free = Stored(torch.randn(1, 1, CHANNELS, *GRID)), Free()
    with torch.no_grad():
        network = best({"": lambda: net.predict(x, cond, t=t, noise=None)}, repeats)[""]
    backward = best({"": lambda: bare_step(net, x, cond, t)}, repeats)[""]
    sigma = per_channel()
    estimators: dict[str, StochasticInterpolant | FlowMatching | EDM] = {
        "interpolant, SRA1": StochasticInterpolant(steps=5, sigma_target=sigma),
        "interpolant, Foellmer Heun": StochasticInterpolant(
            steps=5, sigma_target=sigma, diffusion="foellmer", sampler=StochasticHeun()
        ),
        "flow matching, Heun": FlowMatching(steps=5, sigma_data=sigma),
        "EDM, DPM++2S": EDM(steps=5, sigma_data=sigma),
        "EDM, DPM++2S, churn": EDM(steps=5, sigma_data=sigma, churn=2.5),
    }
    print(f"{count / 1e6:.1f} M parameters, {CHANNELS} x {GRID[0]} x {GRID[1]}, one thread")
    print(f"network call {1e3 * network:.1f} ms, forward + backward {1e3 * backward:.1f} ms")
    print(f"{'':28s} calls   around each call    and with noise       around a loss")
    for name, estimator in estimators.items():
        calls = estimator.calls_per_sample
        quiet = replace(estimator, noise=still)
        with torch.no_grad():
            spent = best(
                {
                    "sample": lambda e=quiet: e.sample(free, x, cond, key),
                    "noise": lambda e=estimator: e.sample(free, x, cond, key),
                },
                10 * repeats,
            )
        loss = best({"loss": lambda e=estimator: train(e, free, x, key)}, 10 * repeats)["loss"]
        parts = (spent["sample"] / calls, spent["noise"] / calls)
        print(
            f"{name:28s} {calls:5d}"
            + "".join(f"{1e6 * part:9.0f} us {100 * part / network:6.2f} %" for part in parts)
            + f"{1e6 * loss:9.0f} us {100 * loss / backward:6.2f} %"
        )


def bare_step(net: Network, x: Tensor, cond: Mapping[str, Tensor], t: Tensor) -> None:
    """Forward, mean square and backward without an estimator."""
    net.zero_grad()
    (net.predict(x, cond, t=t, noise=None) - x).square().mean().backward()


def train(estimator: Estimator, net: Free, x: Tensor, key: Key) -> None:
    """Loss and gradient of a network that costs nothing."""
    net.gain.grad = None
    estimator.loss(net, Batch(base=x, target=x, cond={"state": x}), key).loss.backward()


class Exact:
    """The exact network of a Gaussian target, behind unit preconditioning."""

    spec = NetSpec(out_channels=1, takes_x=True, takes_t=True)

    def __init__(self, estimator: Estimator) -> None:
        self.estimator = estimator

    def predict(
        self, x: Tensor | None, cond: Mapping[str, Tensor], /, *, t: Tensor | None, noise: Tensor | None
    ) -> Tensor:
        """See `wx_estimators.Network.predict`."""
        del cond, noise
        assert x is not None
        assert t is not None
        label = float(t[0])
        if isinstance(self.estimator, EDM):
            sigma = math.exp(4 * label)
            norm = math.sqrt(sigma**2 + 1)
            denoised = MEAN + VARIANCE / (VARIANCE + sigma**2) * (x * norm - MEAN)
            return (denoised - x / norm) * norm / sigma
        if isinstance(self.estimator, FlowMatching):
            gain = (label * VARIANCE - (1 - label)) / (label**2 * VARIANCE + (1 - label) ** 2)
            return MEAN + gain * (x - label * MEAN)
        s = 1 - label
        y = x * math.sqrt(s**2 + label**2 + s**2 * label)
        gain = -1.0 if label == 0 else (label * VARIANCE - s * label) / (label**2 * VARIANCE + s**2 * label)
        return (MEAN + gain * (y - s * X0 - label * MEAN)) / math.sqrt(1 + label)


class Basis:
    """Noise that gives member j > 0 a one in the j-th draw of the sampler, and zero elsewhere."""

    def __init__(self) -> None:
        self.order: dict[tuple[str, int], int] = {}

    def draw(self, key: Key, shape: tuple[int, ...], /, **_: object) -> Tensor:
        """See `wx_estimators.NoiseSource.draw`."""
        column = self.order.setdefault((key.stream, key.step), len(self.order))
        one = (key.member == column + 1).expand(key.batch, key.members).double()
        return one.reshape(key.batch, key.members, *[1] * len(shape)).expand(-1, -1, *shape)


def weak_error(estimator: StochasticInterpolant | FlowMatching | EDM) -> float:
    """Distance of (mean, standard deviation) from the truth, over the standard deviation: no Monte Carlo."""
    key = Key(0, torch.tensor([0]), torch.arange(2 * estimator.calls_per_sample + 2))
    base = torch.full((1, 1), X0, dtype=torch.float64)
    x = replace(estimator, noise=Basis()).sample(Exact(estimator), base, {}, key)[0, :, 0]
    sd = float((x[1:] - x[0]).square().sum().sqrt())
    return math.hypot(float(x[0]) - MEAN, sd - math.sqrt(VARIANCE)) / math.sqrt(VARIANCE)


def schemes() -> dict[str, Callable[[int], StochasticInterpolant | FlowMatching | EDM]]:
    """Estimators by number of steps."""

    def si(**settings: object) -> Callable[[int], StochasticInterpolant]:
        return lambda n: StochasticInterpolant(steps=n, preconditioning="atlas", **settings)  # type: ignore[arg-type]

    def fm(sampler: Euler | Heun | RK4) -> Callable[[int], FlowMatching]:
        return lambda n: FlowMatching(steps=n, sampler=sampler)

    def edm(sampler: DPM2S | DPM2M | Heun | RK4) -> Callable[[int], EDM]:
        return lambda n: EDM(steps=n, sampler=sampler, sigma_min=0.002)

    return {
        "SI, Euler-Maruyama": si(sampler=EulerMaruyama()),
        "SI, stochastic Heun": si(sampler=StochasticHeun()),
        "SI, SRA1": si(sampler=SRA1()),
        "SI, SRA2": si(sampler=SRA2()),
        "SI, Foellmer, SRA2": si(sampler=SRA2(), diffusion="foellmer"),
        "SI, flow, Heun": si(sampler=Heun(), diffusion="none"),
        "SI, flow, RK4": si(sampler=RK4(), diffusion="none"),
        "FM, Euler": fm(Euler()),
        "FM, Heun": fm(Heun()),
        "FM, RK4": fm(RK4()),
        "EDM, Heun": edm(Heun()),
        "EDM, DPM++2S": edm(DPM2S()),
        "EDM, DPM++2M": edm(DPM2M()),
        "EDM, RK4": edm(RK4()),
    }


def errors() -> dict[str, list[tuple[int, float]]]:
    """Calls and error per scheme, at the largest number of steps within each budget of calls."""
    print("\nerror of mean and standard deviation over the latter, at a budget of network calls")
    print(f"{'':24s}" + "".join(f"{budget:>10d}" for budget in BUDGETS))
    table = {}
    for name, make in schemes().items():
        row = []
        for budget in BUDGETS:
            steps = max(n for n in range(1, budget + 1) if make(n).calls_per_sample <= budget or n == 1)
            row.append((make(steps).calls_per_sample, weak_error(make(steps))))
        table[name] = row
        print(f"{name:24s}" + "".join(f"{error:10.1e}" for _, error in row))
    return table


def plot(table: Mapping[str, list[tuple[int, float]]], path: str) -> None:
    """Error against calls, one panel for each family, as a file."""
    from matplotlib.figure import Figure

    families = {"SI": "interpolant", "FM": "flow matching", "EDM": "EDM"}
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, (prefix, title) in zip(
        figure.subplots(1, 3, sharex=True, sharey=True), families.items(), strict=True
    ):
        rows = {name: row for name, row in table.items() if name.startswith(prefix + ",")}
        for (name, row), mark in zip(rows.items(), "os^vDPX", strict=False):
            axes.loglog(*zip(*row, strict=True), marker=mark, label=name.removeprefix(prefix + ", "))
        axes.set_title(title)
        axes.set_xticks(BUDGETS, map(str, BUDGETS), minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("network calls per member")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("relative error of mean and standard deviation")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--plot", default="", help="file for the plot; needs matplotlib")
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib")
    torch.set_num_threads(1)
    overhead(options.width, options.repeats)
    table = errors()
    if options.plot:
        plot(table, options.plot)


if __name__ == "__main__":
    main()
