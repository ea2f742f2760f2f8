"""Interpolants without Monte Carlo: coefficients, closed forms, weak order by linear propagation (T1, T2)."""
# ruff: noqa: ARG002 - signatures are those of the protocols

import math
from dataclasses import dataclass

import pytest
import torch

from wx_estimators import (
    RK4,
    SRA1,
    SRA2,
    EulerMaruyama,
    Heun,
    Key,
    LinearPath,
    NetSpec,
    StochasticHeun,
    StochasticInterpolant,
    TrigPath,
)
from wx_estimators._field import affine
from wx_estimators._path import Bridge, GaussianPreconditioner

X0, MEAN, VARIANCE = 0.7, 0.3, 0.5
SAMPLERS = {"em": EulerMaruyama(), "heun": StochasticHeun(), "sra1": SRA1(), "sra2": SRA2()}
# Relative error of the variance at 10, 40 and 160 steps for power and diffusion: specification 2.2.
TABLE = {
    (1, "sigma"): {
        "em": (3.5e-2, 8.0e-3, 2.0e-3),
        "heun": (6.3e-4, 3.9e-5, 2.4e-6),
        "sra1": (2.7e-5, 2.2e-5, 1.7e-6),
        "sra2": (1.3e-3, 7.7e-5, 4.7e-6),
    },
    (1, "foellmer"): {
        "em": (1.9e-2, 5.9e-3, 1.5e-3),
        "heun": (1.2e-2, 9.2e-4, 7.0e-5),
        "sra1": (1.3e-2, 9.0e-4, 6.4e-5),
        "sra2": (7.9e-4, 3.7e-5, 2.0e-6),
    },
    (2, "sigma"): {
        "em": (1.1e-1, 3.3e-2, 8.7e-3),
        "heun": (1.3e-2, 6.9e-4, 4.0e-5),
        "sra1": (5.5e-3, 2.6e-4, 1.4e-5),
        "sra2": (1.2e-2, 6.7e-4, 4.1e-5),
    },
    (2, "foellmer"): {
        "em": (1.1e-1, 3.4e-2, 9.0e-3),
        "heun": (2.7e-2, 1.6e-3, 1.1e-4),
        "sra1": (1.4e-2, 6.3e-4, 4.1e-5),
        "sra2": (1.1e-2, 4.6e-4, 2.5e-5),
    },
}


class ExactNetwork:
    """F for x1 ~ N(MEAN, VARIANCE), eps = 1, by inverting the preconditioning of unit statistics."""

    spec = NetSpec(out_channels=1, takes_x=True, takes_t=True)

    def __init__(self, power, preconditioning):
        self.power, self.preconditioning = power, preconditioning

    def predict(self, u, cond, /, *, t, noise):
        t, p = float(t[0]), self.power
        b, db, s = t**p, p * t ** (p - 1), 1 - t
        if self.preconditioning == "atlas":
            x = u * math.sqrt(s * s + b * b + s * s * t)
            return (self.drift(x, t) + X0) / math.sqrt(db**2 + t)
        if t == 0:
            return torch.full_like(u, MEAN)
        width = math.sqrt(b * b + s * s * t)
        x = s * X0 + width * u
        guess = -X0 + (b * db - s * t) / width**2 * (x - s * X0)
        return (self.drift(x, t) - guess) * width / (math.sqrt(t) * (db * s + b))

    def drift(self, x, t):
        """D = E[R | I_t = x] from the covariances of the interpolant."""
        p = self.power
        b, db, s = t**p, p * t ** (p - 1), 1 - t
        gain = -1.0 if t == 0 else (b * db * VARIANCE - s * t) / (b * b * VARIANCE + s * s * t)
        return -X0 + db * MEAN + gain * (x - s * X0 - b * MEAN)


class Basis:
    """Noise that gives member j > 0 a one in the j-th draw of the solver and zero elsewhere."""

    def draw(self, key, shape, /, *, device, dtype, window=None):
        if "step:" in key.stream:
            draw = 2 * int(key.stream.split("step:")[1].split("/")[0]) + key.step
        else:
            draw = 0 if key.stream.endswith("start") else -2
        one = (key.member == draw + 1).expand(key.batch, key.members).to(dtype)
        return one.reshape(key.batch, key.members, *[1] * len(shape)).expand(-1, -1, *shape)


def propagate(steps, power, preconditioning="gaussian", **settings):
    """Mean and variance of X_1, exactly: the scheme is affine in its unit noises."""
    si = StochasticInterpolant(
        steps=steps, power=power, preconditioning=preconditioning, noise=Basis(), **settings
    )
    base = torch.full((1, 1), X0, dtype=torch.float64)
    key = Key(0, torch.tensor([0]), torch.arange(2 * steps + 1))
    x = si.sample(ExactNetwork(power, preconditioning), base, {}, key)[0, :, 0]
    return float(x[0]), float((x[1:] - x[0]).square().sum())


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("power", "diffusion"), TABLE)
def test_weak_order_and_error_of_the_variance(name, power, diffusion):
    error = {}
    for steps in (10, 40, 160, 320):
        mean, variance = propagate(steps, power, diffusion=diffusion, sampler=SAMPLERS[name])
        error[steps] = abs(variance / VARIANCE - 1)
        if power == 1:
            assert mean == pytest.approx(MEAN, abs=1e-11)  # the mean path is a straight line
    assert error[40] < 1.5 * TABLE[power, diffusion][name][1]
    order = math.log2(error[160] / error[320])
    if name == "em":
        assert 0.95 < order < 1.05
    else:
        assert order > 1.8


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("power", [1, 2])
def test_both_preconditionings_carry_the_same_drift(name, power):
    settings = {"diffusion": "foellmer", "sampler": SAMPLERS[name]}
    assert propagate(12, power, "atlas", **settings) == pytest.approx(
        propagate(12, power, "gaussian", **settings), rel=1e-9
    )


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("sampler", "order"), [(Heun(), 2), (RK4(), 4)], ids=["heun", "rk4"])
def test_probability_flow_reaches_the_law(power, sampler, order):
    errors = []
    settings = {"power": power, "sampler": sampler, "diffusion": "none"}
    for steps in (40, 80, 160):
        mean, variance = propagate(steps, **settings)
        errors.append(math.hypot(mean - MEAN, math.sqrt(variance) - math.sqrt(VARIANCE)))
    assert math.log2(errors[1] / errors[2]) > order - 0.3
    assert errors[0] < {2: 5e-4, 4: 1e-7}[order]


class WrongSign(SRA2):
    """SRA2 as published elsewhere: beta2 = (-3/2, 3/2)."""

    def step(self, f, x, t0, t1, g, z, /):
        h = t1 - t0
        r = math.sqrt(h) * z(0)
        area = 0.5 * (r + math.sqrt(h / 3) * z(1))
        early = g(t0 + h / 3)
        f1 = f(x, t0)
        f2 = f(x + 0.75 * h * f1 + 1.5 * early * area, t0 + 0.75 * h)
        return x + h / 3 * (f1 + 2 * f2) + g(t1) * (r + 1.5 * area) - 1.5 * early * area


def test_probability_flow_starts_with_the_noise_of_the_bridge():
    """(x - x0) / sqrt(t) tends to eps z as t tends to 0."""
    seen = []

    class Watch(Heun):
        def step(self, f, x, t0, t1, /):
            seen.append(x.flatten().tolist())
            return super().step(f, x, t0, t1)

    si = StochasticInterpolant(steps=1, eps=0.3, diffusion="none", sampler=Watch(), noise=Basis())
    base = torch.full((1, 1), X0, dtype=torch.float64)
    si.sample(ExactNetwork(1, "gaussian"), base, {}, Key(0, torch.tensor([0]), torch.arange(3)))
    assert seen == [pytest.approx([0.0, 0.3, 0.0])]


def test_the_published_sign_error_is_seen():
    # Negative control: the condition beta2 . c1 = -1 fails with the other sign, and with it the order.
    error = [abs(propagate(n, 1, sampler=WrongSign())[1] / VARIANCE - 1) for n in (40, 160, 320)]
    assert error[0] > 100 * TABLE[1, "sigma"]["sra2"][1]
    assert math.log2(error[1] / error[2]) < 1.2


def test_conditions_of_the_additive_schemes():
    """beta1 . e = 1, beta2 . e = 0, beta1 . c1 = 1, beta2 . c1 = -1, read off one step without drift."""
    for scheme in (SRA1(), SRA2()):

        def weights(g, z, scheme=scheme):
            x = torch.zeros(1, dtype=torch.float64)
            return float(scheme.step(lambda x, _: 0 * x, x, 0.0, 1.0, g, lambda i: x + z[i]))

        # x1 = beta1 . g r + beta2 . g area with r = z0 and area = (z0 + z1 / sqrt 3) / 2.
        def betas(g, weights=weights):
            of_area = weights(g, (0.0, 1.0)) * 2 * math.sqrt(3)
            return weights(g, (1.0, 0.0)) - of_area / 2, of_area

        assert betas(lambda _: 1.0) == pytest.approx((1.0, 0.0), abs=1e-14)
        assert betas(lambda t: t) == pytest.approx((1.0, -1.0), abs=1e-14)


@pytest.mark.parametrize("power", [1, 2])
def test_other_drifts_are_the_general_formula(power):
    # D_g = D + (g^2 - s^2) / 2 S with S from its definition, arXiv 2403.13724.
    bridge, identity = Bridge(0.8, power), affine(0.0, 0.0, 0.0, 0.0, 1.0)
    x, x0, drift = (torch.tensor(v, dtype=torch.float64) for v in (0.3, -1.1, 0.9))
    for t in torch.linspace(0.01, 0.99, 50, dtype=torch.float64):
        a, b, s, _, db, _ = bridge.coeff(t)
        score = (b * drift - db * x - (-b - db * a) * x0) / (t * s * (db * s + 0.8 * b))
        foellmer = 2 * t * s * (s * db / b + 0.8) - s**2
        assert float(foellmer) == pytest.approx(bridge.diffusion(float(t), "foellmer") ** 2, rel=1e-12)
        assert foellmer >= 0
        d = bridge.foellmer(identity, float(t))
        mine = d.net_out * drift + d.x_out * x + d.base_out * x0
        assert float(mine) == pytest.approx(float(drift + 0.5 * (foellmer - s**2) * score), rel=1e-11)
        tau = math.sqrt(t)
        d, y = bridge.flow(identity, tau), (x - x0) / tau
        mine = d.net_out * drift + d.x_out * y + d.base_out * x0
        assert float(mine) == pytest.approx(float(2 * (drift - 0.5 * s**2 * score) - y / tau), rel=1e-11)


def test_foellmer_drift_is_regular_at_both_ends():
    for t, power in ((0.0, 1), (1.0, 1), (1.0, 2)):
        d = Bridge(1.0, power).foellmer(affine(0.0, 0.0, 0.0, 0.0, 1.0), t)
        assert all(bool(torch.isfinite(v).all()) for v in d)
    d = Bridge(1.0, 1).foellmer(affine(0.0, 0.0, 0.0, 0.0, 1.0), 0.25)
    assert [float(v) for v in d] == [0.0, 0.0, -1.0, 1.0, 1.25]  # (1 + t) D - (x - x0)


@pytest.mark.parametrize(
    "path", [Bridge(0.8, 1), Bridge(0.8, 2), LinearPath(), TrigPath()], ids=["t", "t^2", "linear", "trig"]
)
def test_derivatives_and_boundary_values(path):
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64, requires_grad=True)
    c = path.coeff(t)
    for value, dot in ((c.a, c.da), (c.b, c.db), (c.s, c.ds)):
        auto = torch.autograd.grad(value.sum(), t, allow_unused=True)[0] if value.requires_grad else None
        torch.testing.assert_close(dot, torch.zeros_like(t) if auto is None else auto)
    ends = path.coeff(torch.tensor([0.0, 1.0], dtype=torch.float64))
    bridge = isinstance(path, Bridge)
    assert ends.a.tolist() == ([1, 0] if bridge else [0, 0])
    assert ends.b.tolist() == [0, 1]
    assert ends.s.tolist() == [0.8 if bridge else 1.0, 0]
    if bridge:
        torch.testing.assert_close(path.wronskian(t), c.db * c.s - c.b * c.ds)
        assert path.diffusion(1.0, "foellmer") == 0.0 == path.diffusion(1.0, "sigma")


@dataclass
class Recorder:
    """A network that gives one prepared output and keeps what it was asked."""

    output: torch.Tensor
    spec = NetSpec(out_channels=1, takes_x=True, takes_t=True)

    def predict(self, x, cond, /, *, t, noise):
        self.x, self.t = x, t
        return self.output


class Given:
    """A noise source that gives prepared numbers, one per row."""

    def __init__(self, z):
        self.z = z

    def draw(self, key, shape, /, *, device, dtype, window=None):
        return self.z[:, None]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("preconditioning", ["gaussian", "atlas"])
def test_perfect_network_reproduces_the_drift_target(power, preconditioning):
    """Feeding the training target of one draw as network output must give R = a' x0 + b' x1 + s' W."""
    si = StochasticInterpolant(
        power=power,
        preconditioning=preconditioning,
        eps=0.8,
        sigma_base=2.0,
        sigma_target=0.5,
        correlation=0.6,
    )
    model = si._preconditioner()
    g = torch.Generator().manual_seed(0)
    x0, x1, z = torch.randn(3, 64, 1, generator=g, dtype=torch.float64)
    for t in (0.001, 0.3, 0.999, 1.0):
        time = torch.full((64,), t, dtype=torch.float64)
        u, target = model.pair(time, x0, x1, z)
        w = math.sqrt(t) * z
        x = (1 - t) * x0 + t**power * x1 + 0.8 * (1 - t) * w
        d = model.drift(t)
        drift = d.x_out * x + d.base_out * x0 + d.net_out * target
        torch.testing.assert_close(drift, -x0 + power * t ** (power - 1) * x1 - 0.8 * w, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(d.x_in * x + d.base_in * x0, u, atol=1e-9, rtol=1e-9)


def test_a_point_base_starts_from_pure_noise():
    """At t = 0 the network of the Gaussian preconditioning sees noise, as in training, and D is finite."""
    z = torch.randn(5, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = Recorder(torch.full((5, 1), 0.4, dtype=torch.float64))
    si = StochasticInterpolant(steps=1, sampler=EulerMaruyama(), eps=0.5, noise=Given(z))
    key = Key(0, torch.arange(5), torch.tensor([0]))
    out = si.sample(net, torch.ones(5, 1, dtype=torch.float64), {}, key)[:, 0]
    torch.testing.assert_close(net.x, z)
    assert net.t.tolist() == [0.0] * 5
    # x0 + D + eps z with D = -x0 + sqrt(q) F, q = 1.
    torch.testing.assert_close(out, 0.4 + 0.5 * z)


def test_input_and_target_have_unit_variance_and_no_correlation():
    model = GaussianPreconditioner(
        Bridge(1.3, 1), torch.tensor([[0.4]]).double(), torch.tensor([[0.6]]).double()
    )
    g = torch.Generator().manual_seed(0)
    n = 200_000
    x0, xi, z = torch.randn(3, n, 1, generator=g, dtype=torch.float64)
    for t in (0.0, 0.1, 0.5, 1.0):
        u, f = model.pair(torch.full((n,), t).double(), x0, 0.4 * x0 + math.sqrt(0.6) * xi, z)
        moments = torch.stack([u.square().mean(), f.square().mean(), (u * f).mean(), (u * x0).mean()])
        assert (moments - torch.tensor([1.0, 1, 0, 0])).abs().max() < 5 * math.sqrt(2 / n)
