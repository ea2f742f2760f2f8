"""Parity with peers (T13): our formulas against their code. Tests skip, by name, where the peer is absent.

`nox -s parity` installs all peers and sets REQUIRE_PEERS, with which an absent one is an error.
"""
# ruff: noqa: ARG002 - signatures are those of the protocols

import importlib
import math
import os
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from wx_estimators import (
    DPM2S,
    EDM,
    SRA1,
    Batch,
    EnergyScore,
    EulerMaruyama,
    FlowMatching,
    Heun,
    Key,
    NetSpec,
    StochasticInterpolant,
    VariogramScore,
    crps,
)

DENOISER_MEAN, DENOISER_VARIANCE = 0.3, 0.5


def peer(name, package):
    if "REQUIRE_PEERS" in os.environ:
        with warnings.catch_warnings(action="ignore"):
            return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"parity with {package} needs `pip install {package}`")


def draws(rows=64):
    x1, z = torch.randn(2, rows, 2, 3, generator=torch.Generator().manual_seed(0))
    return x1, z, torch.rand(rows, generator=torch.Generator().manual_seed(1))


class Given:
    """Noise from a list, in the order in which it is asked for."""

    def __init__(self, *values):
        self.values = list(values)

    def draw(self, key, shape, /, *, device, dtype, window=None):
        return self.values.pop(0).to(dtype)[:, None]

    def __call__(self, x):
        return self.values.pop(0)


class AtTimes:
    """A training law that gives prepared times."""

    def __init__(self, t):
        self.t = t.double()

    def quantile(self, u):
        return self.t


class Recorder:
    """Zero network that keeps its input: the loss is then the mean square of the training target."""

    spec = NetSpec(out_channels=2, takes_x=True, takes_t=True)

    def predict(self, x, cond, /, *, t, noise):
        self.x = x
        return cond["answer"]


def test_flow_matching_is_torchcfm_bit_for_bit():
    cfm = peer("torchcfm.conditional_flow_matching", "torchcfm")
    x1, z, t = draws()
    matcher = cfm.ConditionalFlowMatcher(sigma=0.0)
    _, xt, ut = matcher.sample_location_and_conditional_flow(z, x1, t=t)
    check_flow(x1, z, t, xt, ut)


def test_flow_matching_is_meta_flow_matching_bit_for_bit():
    theirs = peer("flow_matching.path", "flow-matching")
    x1, z, t = draws()
    sample = theirs.CondOTProbPath().sample(t=t, x_0=z, x_1=x1)
    check_flow(x1, z, t, sample.x_t, sample.dx_t)


def check_flow(x1, z, t, xt, ut):
    """With their x_t as network input and their velocity as network output our loss is exactly 0."""
    net = Recorder()
    fm = FlowMatching(noise=Given(z), training=AtTimes(t))
    batch = Batch(base=x1, target=x1, cond={"answer": ut})
    out = fm.loss(net, batch, Key(0, torch.arange(len(x1)), torch.tensor([0])))
    assert torch.equal(net.x, xt)
    assert float(out.loss) == 0.0


def test_sra1_is_the_additive_srk_of_torchsde():
    torchsde = peer("torchsde", "torchsde")

    class Sde(torch.nn.Module):
        noise_type, sde_type = "additive", "ito"

        def f(self, t, y):
            return torch.sin(y) - t * y

        def g(self, t, y):
            return torch.diag_embed((1.0 + 0.5 * t) * torch.ones_like(y))

    y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2)
    brownian = torchsde.BrownianInterval(
        t0=0.0, t1=1.0, size=(3, 2), dtype=torch.float64, entropy=3, levy_area_approximation="space-time"
    )
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    theirs = torchsde.sdeint(Sde(), y0, times, bm=brownian, method="srk", dt=0.125)
    ours, h = [y0], 0.125
    for t0 in times[:-1].tolist():
        w, u = brownian(t0, t0 + h, return_U=True)  # u: integral of W - W(t0)
        z = (w / math.sqrt(h), (2 * u / h - w) / math.sqrt(h / 3))
        f = lambda x, t: torch.sin(x) - t * x  # noqa: E731
        ours.append(SRA1().step(f, ours[-1], t0, t0 + h, lambda t: 1.0 + 0.5 * t, lambda i, z=z: z[i]))
    torch.testing.assert_close(torch.stack(ours), theirs, rtol=1e-12, atol=1e-12)


class GaussianDenoiser:
    """D for N(m, q) behind the EDM preconditioning of unit sigma_data."""

    spec = NetSpec(out_channels=1, takes_x=True, takes_t=True)

    def predict(self, x, cond, /, *, t, noise):
        sigma = (4 * t).exp().view(-1, *[1] * (x.ndim - 1))
        norm = (sigma**2 + 1).sqrt()
        return (denoise(x * norm, sigma) - x / norm) * norm / sigma


def denoise(x, sigma):
    return DENOISER_MEAN + DENOISER_VARIANCE / (DENOISER_VARIANCE + sigma**2) * (x - DENOISER_MEAN)


def test_edm_levels_are_physicsnemo():
    schedulers = peer("physicsnemo.diffusion.noise_schedulers", "nvidia-physicsnemo")
    for edm in (EDM(), EDM(steps=12, sigma_min=0.002, sigma_max=500.0, rho=3.0)):
        scheduler = schedulers.EDMNoiseScheduler(
            sigma_min=edm.sigma_min, sigma_max=edm.sigma_max, rho=edm.rho
        )
        theirs = scheduler.timesteps(edm.steps, dtype=torch.float64)
        torch.testing.assert_close(
            torch.tensor(edm.levels(), dtype=torch.float64), theirs, rtol=1e-12, atol=0
        )


def raw_network(x, t):
    """What both sides precondition; x (N, 2, 2, 2), t (N,)."""
    return torch.tanh(x.flip(1)) + t.view(-1, 1, 1, 1)


class Raw:
    spec = NetSpec(out_channels=2, takes_x=True, takes_t=True)

    def predict(self, x, cond, /, *, t, noise):
        return raw_network(x, t)


def test_edm_loss_is_physicsnemo(monkeypatch):
    """Their denoising loss of their preconditioned model, on the same noise levels and noises.

    Our loss is the error of the network itself: their weight times c_out^2 is 1.
    """
    losses = peer("physicsnemo.diffusion.metrics.losses", "nvidia-physicsnemo")
    schedulers = peer("physicsnemo.diffusion.noise_schedulers", "nvidia-physicsnemo")
    preconditioners = peer("physicsnemo.diffusion.preconditioners", "nvidia-physicsnemo")
    modules = peer("physicsnemo.core", "nvidia-physicsnemo")

    class Model(modules.Module):
        def forward(self, x, t, condition=None):
            return raw_network(x, t)

    x1, z = torch.randn(2, 16, 2, 2, 2, generator=torch.Generator().manual_seed(3))
    sigma = torch.logspace(-2, 1.9, 16)
    data = (0.6, 1.7)
    model = preconditioners.EDMPreconditioner(Model(), sigma_data=data)
    scheduler = schedulers.EDMNoiseScheduler(sigma_data=torch.tensor(data))
    monkeypatch.setattr(torch, "randn_like", lambda x: z.to(x))
    theirs = losses.MSEDSMLoss(model, scheduler)(x1, t=sigma)
    monkeypatch.undo()
    edm = EDM(sigma_data=data, training=AtTimes(sigma[:, None]), noise=Given(z))
    batch = Batch(base=x1, target=x1, cond={})
    ours = edm.loss(Raw(), batch, Key(0, torch.arange(16), torch.tensor([0]))).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("churn", [0.0, 8.0])
def test_edm_heun_is_physicsnemo(churn, monkeypatch):
    samplers = peer("physicsnemo.diffusion.samplers", "nvidia-physicsnemo")
    edm = EDM(steps=12, sampler=Heun(), sigma_min=0.01, churn=churn, churn_min=0.05, churn_max=50.0)
    tape = torch.randn(13, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver = samplers.EDMStochasticHeunSolver(
        lambda x, t: (x - denoise(x, t.view(-1, 1, 1, 1))) / t.view(-1, 1, 1, 1),
        S_churn=churn,
        S_min=0.05,
        S_max=50.0,
        S_noise=edm.churn_noise,
        num_steps=12,
    )
    levels, theirs, used = edm.levels(), 80.0 * tape[0], [tape[0]]
    for n in range(12):
        if edm._stir(levels[n]) > levels[n]:
            used.append(tape[n + 1])
        monkeypatch.setattr(torch, "randn_like", lambda x, n=n: tape[n + 1].to(x))
        s0, s1 = (torch.full((4,), levels[i], dtype=torch.float64) for i in (n, n + 1))
        theirs = solver.step(theirs, s0, s1)
    monkeypatch.undo()
    ours = replace(edm, noise=Given(*used)).sample(
        GaussianDenoiser(), torch.zeros_like(theirs), {}, Key(0, torch.arange(4), torch.tensor([0]))
    )
    torch.testing.assert_close(ours[:, 0], theirs, rtol=1e-6, atol=1e-6)


def test_dpm2s_is_the_update_of_gencast_in_numpy():
    """The published update, x' = (sj/si) x - expm1(-h) D(x_mid, mid), written out here."""
    g = np.random.default_rng(0)
    x = g.standard_normal((4, 1))
    for s0, s1 in ((80.0, 40.0), (2.0, 0.5), (0.05, 0.03)):
        h = math.log(s0) - math.log(s1)
        mid = math.exp(0.5 * (math.log(s0) + math.log(s1)))
        x_mid = mid / s0 * x - np.expm1(-h / 2) * denoise(x, s0)
        expected = s1 / s0 * x - np.expm1(-h) * denoise(x_mid, mid)
        got, _ = DPM2S().denoise_step(denoise, torch.from_numpy(x), s0, s1, None)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_edm_is_the_sampler_of_gencast_in_numpy():
    """All 20 levels, churn and the last step to 0 with the published settings, on a noise tape."""
    tape = torch.randn(20, 4, 1, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    noises = [z.numpy() for z in tape]
    grid = (80 ** (1 / 7) + np.arange(20) / 19 * (0.03 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    x = 80.0 * noises.pop(0)
    for s0, s1 in pairwise([*grid, 0.0]):
        if s0 >= 0.75:
            stirred = s0 * (1 + min(2.5 / 20, math.sqrt(2) - 1))
            x = x + 1.05 * math.sqrt(stirred**2 - s0**2) * noises.pop(0)
            s0 = stirred
        if s1 == 0.0:
            x = denoise(x, s0)
            continue
        mid = math.sqrt(s0 * s1)
        x_mid = mid / s0 * x + (1 - mid / s0) * denoise(x, s0)
        x = s1 / s0 * x + (1 - s1 / s0) * denoise(x_mid, mid)
    edm = EDM(churn=2.5, noise=Given(*tape))
    got = edm.sample(
        GaussianDenoiser(),
        torch.zeros(4, 1, 3, dtype=torch.float64),
        {},
        Key(0, torch.arange(4), torch.tensor([0])),
    )
    np.testing.assert_allclose(got[:, 0].numpy(), x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scheme", ["em", "a1"])
def test_interpolant_is_the_published_sampler(scheme):
    """EM and Rössler a1 of the published interpolant (specification 3.1), written out with a noise tape.

    D = c_O F(c_I x) - x0 with unit variances, g = sigma = eps (1 - t).
    """
    steps, eps = 5, 0.7
    x0 = torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tape = torch.randn(10, 3, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    class Net:
        spec = NetSpec(out_channels=1, takes_x=True, takes_t=True)

        def predict(self, x, cond, /, *, t, noise):
            return torch.tanh(x) + t.view(-1, 1, 1)

    def drift(x, t):
        c_in = ((1 - t) ** 2 + t**2 + eps**2 * (1 - t) ** 2 * t) ** -0.5
        c_out = math.sqrt(1 + eps**2 * t)
        return c_out * (torch.tanh(c_in * x) + t) - x0

    h, x, noises = 1 / steps, x0, iter(tape)
    sigma = lambda t: eps * (1 - t)  # noqa: E731
    for n in range(steps):
        t, dw = n * h, math.sqrt(h) * next(noises)
        if scheme == "em":
            x = x + h * drift(x, t) + sigma(t) * dw
            continue
        rt = 0.5 * (dw + math.sqrt(h) * next(noises) / math.sqrt(3))
        g1, g2 = sigma(t + h), sigma(t)
        b1 = drift(x, t)
        b2 = drift(x + 0.75 * h * b1 + 1.5 * g1 * rt, t + 0.75 * h)
        x = x + h * (b1 / 3 + 2 * b2 / 3) + (dw - rt) * g1 + rt * g2
    si = StochasticInterpolant(
        steps=steps,
        eps=eps,
        preconditioning="atlas",
        sampler=EulerMaruyama() if scheme == "em" else SRA1(),
        noise=Given(*tape),
    )
    got = si.sample(Net(), x0, {}, Key(0, torch.arange(3), torch.tensor([0])))[:, 0]
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


def test_ensemble_scores_are_scoringrules():
    scoringrules = peer("scoringrules", "scoringrules")
    pred = torch.randn(60, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.randn(60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for alpha, names in ((1.0, ("fair", "pwm")), (0.0, ("nrg", "qd", "int"))):
        for name in names:
            theirs = scoringrules.crps_ensemble(target.numpy(), pred.numpy(), estimator=name)
            np.testing.assert_allclose(
                crps(pred, target, alpha=alpha).numpy(), theirs, rtol=1e-13, atol=1e-14
            )
    vectors, truth = pred.view(6, 10, 7).transpose(1, 2), target.view(6, 10)
    theirs = scoringrules.es_ensemble(truth.numpy(), vectors.numpy())
    ours = EnergyScore(alpha=0.0).score(vectors, truth, None)
    # Root mean square against Euclidean norm: a factor sqrt(C).
    np.testing.assert_allclose(ours[:, 0].numpy() * math.sqrt(10), theirs, rtol=1e-13)
    theirs = scoringrules.vs_ensemble(truth[:, :2].numpy(), vectors[..., :2].numpy(), p=0.5)
    ours = VariogramScore(steps=((1,),), periodic=(False,), alpha=0.0).score(
        vectors[..., None, :2], truth[:, None, :2], None
    )
    # The peer counts both orders of a pair, and has no guard at 0.
    np.testing.assert_allclose(2 * ours[:, 0].numpy(), theirs, rtol=1e-8)
