"""Interpolant and solvers without Monte Carlo: coefficients, weak order by linear propagation."""

import math

import pytest
import torch

from wx_estimators import SRA1, EulerMaruyama, StochasticHeun, StochasticInterpolant
from wx_estimators._path import Bridge, GaussianPreconditioner

X0, MEAN, VARIANCE = 0.7, 0.3, 0.5
SAMPLERS = {"em": EulerMaruyama(), "heun": StochasticHeun(), "sra1": SRA1()}
# Relative error of the variance at 10, 40 and 160 steps for power and Foellmer choice: specification 2.2.
TABLE = {
    (1, False): {
        "em": (3.5e-2, 8.0e-3, 2.0e-3),
        "heun": (6.3e-4, 3.9e-5, 2.4e-6),
        "sra1": (2.7e-5, 2.2e-5, 1.7e-6),
    },
    (1, True): {
        "em": (1.9e-2, 5.9e-3, 1.5e-3),
        "heun": (1.2e-2, 9.2e-4, 7.0e-5),
        "sra1": (1.3e-2, 9.0e-4, 6.4e-5),
    },
    (2, False): {
        "em": (1.1e-1, 3.3e-2, 8.7e-3),
        "heun": (1.3e-2, 6.9e-4, 4.0e-5),
        "sra1": (5.5e-3, 2.6e-4, 1.4e-5),
    },
    (2, True): {
        "em": (1.1e-1, 3.4e-2, 9.0e-3),
        "heun": (2.7e-2, 1.6e-3, 1.1e-4),
        "sra1": (1.4e-2, 6.3e-4, 4.1e-5),
    },
}


def exact_drift(x, t, power, x0=X0, m=MEAN, q=VARIANCE):
    """D = E[R | I_t = x] for x1 ~ N(m, q) and eps = 1, from the covariances of the interpolant."""
    b, db, s = t**power, power * t ** (power - 1), 1 - t
    if t == 0:
        return -x0 + db * m - (x - x0)
    gain = (b * db * q - s * t) / (b * b * q + s * s * t)
    return -x0 + db * m + gain * (x - (1 - t) * x0 - b * m)


def propagate(sampler, steps, power, foellmer, drift=exact_drift):
    """Mean and variance of X_1, exactly: the scheme is affine in its unit noises.

    Row 0 has all noises zero, row j only the j-th noise equal to one; (row j - row 0) is its coefficient.
    """
    bridge, columns = Bridge(1.0, power), 2 * steps
    x = torch.full((columns + 1,), X0, dtype=torch.float64)
    basis = torch.cat([torch.zeros(1, columns), torch.eye(columns)]).double()
    for n in range(steps):
        use = foellmer and (power == 1 or n > 0)

        def f(y, t, use=use):
            d = drift(y, t, power)
            return bridge.foellmer_drift(d, y, torch.full_like(y, X0), t) if use else d

        x = sampler.step(
            f,
            x,
            n / steps,
            (n + 1) / steps,
            lambda t, use=use: bridge.diffusion(t, use),
            lambda i, n=n: basis[:, 2 * n + i],
        )
    return float(x[0]), float((x[1:] - x[0]).square().sum())


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("power", "foellmer"), TABLE)
def test_weak_order_and_error_of_the_variance(name, power, foellmer):
    error = {}
    for steps in (10, 40, 160, 320):
        mean, variance = propagate(SAMPLERS[name], steps, power, foellmer)
        error[steps] = abs(variance / VARIANCE - 1)
        if power == 1:
            assert mean == pytest.approx(MEAN, abs=1e-12)  # the mean path is a straight line
    assert error[40] < 1.5 * TABLE[power, foellmer][name][1]
    order = math.log2(error[160] / error[320])
    if name == "em":
        assert 0.95 < order < 1.05
    else:
        assert order > 1.8


class SRA2:
    """Rößler's other additive-noise scheme: c1 = (1/3, 1), beta1 = (0, 1), beta2 = sign (3/2, -3/2)."""

    def __init__(self, sign):
        self.sign = sign

    def step(self, f, x, t0, t1, g, z):
        h = t1 - t0
        r = math.sqrt(h) * z(0)
        area = 0.5 * (r + math.sqrt(h / 3) * z(1))
        early = g(t0 + h / 3)
        f1 = f(x, t0)
        f2 = f(x + 0.75 * h * f1 + 1.5 * early * area, t0 + 0.75 * h)
        extra = self.sign * 1.5 * area
        return x + h / 3 * (f1 + 2 * f2) + early * extra + g(t1) * (r - extra)


def test_the_published_sign_error_is_seen():
    # Negative control: the condition beta2 . c1 = -1 fails with the other sign, and with it the order.
    _, right = propagate(SRA2(1), 40, 1, False)
    _, wrong = propagate(SRA2(-1), 40, 1, False)
    assert abs(right / VARIANCE - 1) < 1.5 * 7.7e-5
    assert abs(wrong / VARIANCE - 1) > 0.05


@pytest.mark.parametrize("power", [1, 2])
def test_foellmer_drift_is_the_general_formula(power):
    # D_g = D + (g^2 - s^2) / 2 S with S from its definition, arXiv 2403.13724.
    bridge = Bridge(0.8, power)
    for t in torch.linspace(0.01, 0.99, 50, dtype=torch.float64):
        a, b, s, db = bridge.a(t), bridge.b(t), bridge.s(t), bridge.db(t)
        x, x0, drift = (torch.tensor(v, dtype=torch.float64) for v in (0.3, -1.1, 0.9))
        score = (b * drift - db * x - (-b - db * a) * x0) / (t * s * (db * s + 0.8 * b))
        g2 = 2 * t * s * (s * db / b + 0.8) - s**2
        general = drift + 0.5 * (g2 - s**2) * score
        assert float(g2) == pytest.approx(bridge.diffusion(float(t), True) ** 2, rel=1e-12)
        assert float(bridge.foellmer_drift(drift, x, x0, float(t))) == pytest.approx(
            float(general), rel=1e-11
        )


@pytest.mark.parametrize("power", [1, 2])
def test_derivatives_and_boundary_values(power):
    bridge = Bridge(0.8, power)
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64, requires_grad=True)
    (db,) = torch.autograd.grad(bridge.b(t).sum(), t)
    (ds,) = torch.autograd.grad(bridge.s(t).sum(), t)
    torch.testing.assert_close(bridge.db(t), db)
    torch.testing.assert_close(ds, torch.full_like(t, -0.8))
    torch.testing.assert_close(bridge.wronskian(t), db * bridge.s(t) - bridge.b(t) * ds)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert bridge.a(ends).tolist() == [1, 0]
    assert bridge.b(ends).tolist() == [0, 1]
    assert bridge.s(ends).tolist() == [0.8, 0]
    assert bridge.diffusion(1.0, True) == 0.0


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
        seen = []

        def predict(v, times, target=target, seen=seen):
            seen.append((v, times))
            return target

        drift = model.drift(predict, x, x0, t, lambda: z)
        torch.testing.assert_close(drift, -x0 + power * t ** (power - 1) * x1 - 0.8 * w, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(seen[0][0], u, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(seen[0][1], time)


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
