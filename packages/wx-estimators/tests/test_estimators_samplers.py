"""Solvers alone: strong order with coupled increments (T3), ordinary equations, no recompilation."""
# ruff: noqa: ARG002 - signatures are those of the protocols

import math

import pytest
import torch

from wx_estimators import (
    DPM2M,
    DPM2S,
    EDM,
    RK4,
    SRA1,
    SRA2,
    Euler,
    EulerMaruyama,
    FlowMatching,
    Heun,
    Key,
    NetSpec,
    StochasticHeun,
    StochasticInterpolant,
)


def coupled(steps, paths, finest):
    """Unit noises (steps, 2, paths) of one Brownian path seen at `steps` steps of [0, 1].

    The area I = int (W_s - W_t0) ds of a joined step is I1 + I2 + (h / 2) r1.
    """
    g = torch.Generator().manual_seed(0)
    h = 1.0 / finest
    z = torch.randn(finest, 2, paths, generator=g, dtype=torch.float64)
    r = math.sqrt(h) * z[:, 0]
    area = 0.5 * h * (r + math.sqrt(h / 3) * z[:, 1])
    while len(r) > steps:
        area = area[::2] + area[1::2] + h * r[::2]
        r = r[::2] + r[1::2]
        h *= 2
    return torch.stack([r / math.sqrt(h), (2 * area / h - r) / math.sqrt(h / 3)], 1)


def solve(sampler, drift, g, steps, paths=500, finest=2048):
    x, noise = torch.full((paths,), 0.3, dtype=torch.float64), coupled(steps, paths, finest)
    for n in range(steps):
        x = sampler.step(drift, x, n / steps, (n + 1) / steps, g, lambda i, n=n: noise[n, i])
    return x


def linear(x, t):
    return (math.cos(t) - 2.0) * x


def nonlinear(x, t):
    return torch.sin(2 * x) - x + math.cos(3 * t)


@pytest.mark.parametrize("drift", [linear, nonlinear])
@pytest.mark.parametrize(
    "sampler", [EulerMaruyama(), StochasticHeun(), SRA1(), SRA2()], ids=["em", "heun", "sra1", "sra2"]
)
def test_strong_order_with_coupled_increments(sampler, drift):
    # The error of order 1.5 of the SRA schemes carries f'': for a linear drift they have order 2.
    order = (2.0 if drift is linear else 1.5) if isinstance(sampler, SRA1 | SRA2) else 1.0

    def g(t):
        return 1.0 + 0.5 * t * t

    truth = solve(SRA1(), drift, g, 2048)
    error = [float((solve(sampler, drift, g, n) - truth).square().mean().sqrt()) for n in (16, 64)]
    assert 0.5 * math.log2(error[0] / error[1]) == pytest.approx(order, abs=0.12)


@pytest.mark.parametrize(("sampler", "order"), [(Euler(), 1), (Heun(), 2), (RK4(), 4)], ids=lambda v: str(v))
def test_order_of_ordinary_solvers(sampler, order):
    """x' = -2 t x, x(0) = 1: x(1) = 1 / e; forwards and backwards."""
    errors = []
    for n in (16, 32):
        x = torch.ones(1, dtype=torch.float64)
        for i in range(n):
            x = sampler.step(lambda x, t: -2 * t * x, x, i / n, (i + 1) / n)
        errors.append(abs(float(x) - math.exp(-1)))
        for i in range(n, 0, -1):
            x = sampler.step(lambda x, t: -2 * t * x, x, i / n, (i - 1) / n)
        assert abs(float(x) - 1) < 5 * max(errors) * math.e
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


SAMPLED = {
    "sra1": StochasticInterpolant(steps=5),
    "heun": StochasticInterpolant(steps=5, sampler=StochasticHeun(), diffusion="foellmer", power=2),
    "flow of interpolant": StochasticInterpolant(steps=5, sampler=RK4(), diffusion="none"),
    "flow matching": FlowMatching(steps=5),
    "edm-2s": EDM(steps=5, sigma_data=(0.5, 2.0), churn=2.0),
    "edm-2m": EDM(steps=5, sampler=DPM2M()),
    "edm-heun": EDM(steps=5, sampler=Heun()),
}


class Spy(torch.nn.Module):
    """Counts calls and keeps the times that it was told."""

    def __init__(self, spec):
        super().__init__()
        self.spec, self.times, self.body = spec, [], torch.nn.Linear(3, 3)
        torch.nn.init.eye_(self.body.weight)

    def forward(self, x, t):
        return self.body(x) * 0.5 + t.view(-1, 1, 1)

    def predict(self, x, cond, /, *, t, noise):
        self.times.append(float(t[0]))
        return self(x, t)


def run(estimator, net, rows=4):
    base = torch.randn(rows, 2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return estimator.sample(net, base, {}, Key(0, torch.arange(rows), torch.tensor([0, 1])))


@pytest.mark.parametrize("estimator", SAMPLED.values(), ids=SAMPLED)
def test_calls_and_times(estimator):
    """No call is wasted and none is made at a singular time (noise level 0)."""
    net = Spy(estimator.required(2))
    assert torch.isfinite(run(estimator, net)).all()
    assert len(net.times) == estimator.calls_per_sample
    assert all(math.isfinite(t) for t in net.times)
    if isinstance(estimator, EDM):
        levels = [math.exp(4 * t) for t in net.times]
        assert min(levels) == pytest.approx(estimator.sigma_min, rel=1e-5)
        assert levels.count(min(levels)) <= 2
    else:
        assert min(net.times) == 0.0
        assert max(net.times) <= 1.0


def test_calls_of_the_schemes():
    calls = [EDM(steps=20, sampler=s).calls_per_sample for s in (DPM2S(), DPM2M(), Heun(), Euler())]
    assert calls == [39, 20, 39, 20]
    assert FlowMatching(steps=10, sampler=RK4()).calls_per_sample == 40
    assert StochasticInterpolant(steps=10, sampler=Heun(), diffusion="none").calls_per_sample == 20


@pytest.mark.parametrize("estimator", SAMPLED.values(), ids=SAMPLED)
def test_one_compiled_graph_serves_all_times(estimator):
    """Times reach the network as tensors: torch.compile makes one graph, for any number of steps."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    net = Spy(estimator.required(2))
    eager = run(estimator, net)
    net.compile(backend=backend)
    compiled = run(estimator, net)
    run(estimator, net)
    assert len(graphs) == 1
    torch.testing.assert_close(compiled, eager)


def test_samplers_of_another_equation_are_refused():
    with pytest.raises(TypeError, match="diffusion 'sigma' needs one of the samplers EulerMaruyama"):
        StochasticInterpolant(sampler=Heun())
    with pytest.raises(TypeError, match="diffusion 'none' needs one of the samplers Euler, Heun, RK4"):
        StochasticInterpolant(diffusion="none")
    with pytest.raises(TypeError, match="FlowMatching needs one of the samplers Euler, Heun, RK4"):
        FlowMatching(sampler=DPM2S())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base_keeps_a_float32_state(dtype):
    """The state never has the resolution of the network."""
    states = []

    class Half:
        spec = NetSpec(out_channels=2, takes_x=True, takes_t=True)

        def predict(self, x, cond, /, *, t, noise):
            assert x.dtype == t.dtype == dtype
            return torch.zeros_like(x)

    class Watch(Heun):
        def step(self, f, x, t0, t1, /):
            states.append(x.dtype)
            return super().step(f, x, t0, t1)

    base = torch.zeros(1, 2, 3, dtype=dtype)
    out = FlowMatching(sampler=Watch()).sample(Half(), base, {}, Key(0, torch.tensor([0]), torch.tensor([0])))
    assert set(states) == {torch.float32}
    assert out.dtype == dtype
