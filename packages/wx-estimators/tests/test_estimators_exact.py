"""Estimators with the exact network of a known law: mixtures, linear-Gaussian transitions (T5, T6)."""
# ruff: noqa: ARG002 - signatures are those of the protocols

import math
from dataclasses import replace

import pytest
import torch

from wx_estimators import (
    DPM2M,
    EDM,
    RK4,
    SRA2,
    Batch,
    FlowMatching,
    Key,
    LogitNormal,
    NetSpec,
    RhoQuantile,
    StochasticInterpolant,
    TrigPath,
    WhiteNoise,
)

TWO = torch.tensor([[0.8, 0.3], [-0.4, -0.5]], dtype=torch.float64)


class Mixture:
    """x1 ~ sum_k w_k N(mean_k, cov_k), and E[x1 | x], E[z | x] for x = b x1 + s z, in closed form."""

    def __init__(self, weights, means, covariances):
        self.w = torch.tensor(weights, dtype=torch.float64)
        self.mean = torch.as_tensor(means, dtype=torch.float64)
        self.cov = torch.as_tensor(covariances, dtype=torch.float64)

    def posterior(self, x, b, s):
        """x (N, C, S) -> two tensors of that shape; for b = s = 0 the prior mean and 0."""
        if b == 0 and s == 0:
            return (self.w @ self.mean)[:, None].expand_as(x), torch.zeros_like(x)
        eye = torch.eye(len(self.mean[0]), dtype=torch.float64)
        total = b * b * self.cov + s * s * eye
        away = x[:, None] - b * self.mean[:, :, None]
        scaled = torch.einsum("kij,nkjs->nkis", torch.linalg.inv(total), away)
        log = self.w.log() - 0.5 * torch.logdet(total)
        share = torch.softmax(log[:, None] - 0.5 * (away * scaled).sum(2), 1)[:, :, None]
        data = self.mean[:, :, None] + b * torch.einsum("kij,nkjs->nkis", self.cov, scaled)
        return (share * data).sum(1), s * (share * scaled).sum(1)

    def cdf(self, direction, v):
        """Exact CDF at v of the projection on a direction."""
        d = torch.as_tensor(direction, dtype=torch.float64)
        sd = torch.einsum("i,kij,j->k", d, self.cov, d).sqrt()
        return (self.w * torch.special.ndtr((v[:, None] - self.mean @ d) / sd)).sum(1)

    @property
    def channels(self):
        return self.mean.shape[1]


class Exact:
    """The exact network of an estimator for a mixture, from the papers' formulas with unit statistics."""

    def __init__(self, estimator, law):
        self.estimator, self.law, self.spec = estimator, law, estimator.required(law.channels)

    def predict(self, u, cond, /, *, t, noise):
        f = self._flow if isinstance(self.estimator, FlowMatching) else self._interpolant
        f = self._edm if isinstance(self.estimator, EDM) else f
        return f(u.double(), cond, float(t[0].double())).to(u)

    def _edm(self, u, cond, label):
        sigma = math.exp(4 * label)
        norm = math.sqrt(sigma**2 + 1)
        x = u * norm
        return (self.law.posterior(x, 1.0, sigma)[0] - x / norm**2) * norm / sigma

    def _flow(self, x, cond, t):
        if self.estimator.path == TrigPath():
            b, s, db, ds = math.sin(t * math.pi / 2), math.cos(t * math.pi / 2), 0.0, 0.0
            db, ds = math.pi / 2 * s, -math.pi / 2 * b
        else:
            b, s, db, ds = t, 1 - t, 1.0, -1.0
        data, noise = self.law.posterior(x, b, s)
        return db * data + ds * noise

    def _interpolant(self, u, cond, t):
        """Published preconditioning, eps = 1, b = t."""
        x0 = cond["x0"].double()
        x = u * math.sqrt((1 - t) ** 2 + t**2 + (1 - t) ** 2 * t)
        data, noise = self.law.posterior(x - (1 - t) * x0, t, (1 - t) * math.sqrt(t))
        return (data - math.sqrt(t) * noise) / math.sqrt(1 + t)


ONE_D = Mixture([0.3, 0.7], [[-1.0], [0.8]], [[[0.05]], [[0.12]]])
TWO_D = Mixture(
    [0.4, 0.6], [[-0.9, 0.4], [0.7, -0.2]], [[[0.1, 0.07], [0.07, 0.12]], [[0.2, -0.1], [-0.1, 0.1]]]
)
GENERATORS = {
    "interpolant": StochasticInterpolant(steps=40, preconditioning="atlas"),
    "foellmer": StochasticInterpolant(
        steps=60, preconditioning="atlas", diffusion="foellmer", sampler=SRA2()
    ),
    "flow of interpolant": StochasticInterpolant(
        steps=30, preconditioning="atlas", diffusion="none", sampler=RK4()
    ),
    "flow matching": FlowMatching(steps=60),
    "trig": FlowMatching(steps=30, sampler=RK4(), path=TrigPath()),
    "edm": EDM(steps=60, sigma_min=0.002),
    "edm-2m": EDM(steps=120, sigma_min=0.002, sampler=DPM2M()),
    "churn": EDM(steps=100, sigma_min=0.002, churn=10.0, churn_min=0.01, churn_noise=1.0),
}
EACH = pytest.mark.parametrize("estimator", GENERATORS.values(), ids=GENERATORS)


def draw(estimator, law, members, points, seed=0):
    """(members * points, C) independent samples; every point of a field is one."""
    base = torch.full((1, law.channels, points), 0.5)
    key = Key(seed, torch.tensor([0]), torch.arange(members))
    out = estimator.sample(Exact(estimator, law), base, {"x0": base}, key)
    return out[0].transpose(1, 2).reshape(-1, law.channels).double()


@EACH
@pytest.mark.parametrize("law", [ONE_D, TWO_D], ids=["1-d", "2-d"])
def test_mixtures_against_the_exact_cdf(estimator, law):
    x = draw(estimator, law, 100, 1000)
    directions = [(1.0,)] if law.channels == 1 else [(1, 0), (0, 1), (0.6, 0.8), (0.8, -0.6)]
    for direction in directions:
        v = (x @ torch.tensor(direction, dtype=torch.float64)).sort().values
        exact, n = law.cdf(direction, v), len(v)
        rank = torch.arange(n + 1, dtype=torch.float64) / n
        # 1.63 / sqrt(n) = 0.0052 is the 99 % point of Kolmogorov's law.
        assert max((rank[1:] - exact).max(), (exact - rank[:-1]).max()) < 0.006


def test_a_wrong_mixture_fails_the_bar():
    # Negative control: weight 0.32 instead of 0.30.
    x = draw(GENERATORS["edm"], Mixture([0.32, 0.68], ONE_D.mean, ONE_D.cov), 100, 1000)
    v = x[:, 0].sort().values
    rank = torch.arange(1, len(v) + 1, dtype=torch.float64) / len(v)
    assert (rank - ONE_D.cdf((1.0,), v)).abs().max() > 0.01


def transition(d):
    """x' = A x + L xi: the law of x' given one state, as a mixture of one."""
    g = torch.Generator().manual_seed(d)
    a = torch.randn(d, d, generator=g, dtype=torch.float64) / math.sqrt(2 * d)
    half = torch.randn(d, d, generator=g, dtype=torch.float64) / math.sqrt(2 * d) + 0.5 * torch.eye(d)
    state = torch.full((d,), 0.5, dtype=torch.float64)
    return Mixture([1.0], (a @ state)[None], (half @ half.T)[None])


FINE = {
    "interpolant": StochasticInterpolant(steps=20, preconditioning="atlas"),
    "flow matching": FlowMatching(steps=12, sampler=RK4()),
    "edm": EDM(steps=25, sigma_min=0.01, sampler=RK4()),
}


@pytest.mark.parametrize("estimator", FINE.values(), ids=FINE)
@pytest.mark.parametrize("d", [2, 32])
def test_linear_gaussian_transition_at_monte_carlo_rates(estimator, d):
    """Errors of mean and covariance must have exactly the size that n independent draws have."""
    law = transition(d)
    mean, cov = law.mean[0], law.cov[0]
    for n in (1000, 4000, 16000) if d == 2 else (250, 1000, 4000):
        squares = torch.zeros(2, dtype=torch.float64)
        blocks = draw(estimator, law, 8, n, seed=n).view(8, n, d)
        for x in blocks:
            away = x - x.mean(0)
            squares[0] += (x.mean(0) - mean).square().sum() / 8
            squares[1] += (away.T @ away / (n - 1) - cov).square().sum() / 8
        due = torch.stack([cov.trace(), cov.trace() ** 2 + cov.square().sum()]) / n
        # Average of 8 sums of correlated squares: a chi-square of about 8 to 8 d degrees of freedom.
        freedom = 8 * cov.trace() ** 2 / cov.square().sum()
        assert ((squares / due).log().abs() < 4 * math.sqrt(2 / freedom)).all()
    corr, truth = torch.corrcoef(blocks.reshape(-1, d).T), cov / cov.diagonal().outer(cov.diagonal()).sqrt()
    assert (corr - truth).abs().max() < 5 / math.sqrt(8 * n)


@pytest.mark.parametrize("estimator", FINE.values(), ids=FINE)
def test_energy_distance_and_crps_of_the_transition(estimator):
    """The squared energy distance of two samples of size n has mean 2 E|X - X'| / n; fair CRPS is exact."""
    law, n = transition(2), 1000
    half = torch.linalg.cholesky(law.cov[0])
    g = torch.Generator().manual_seed(5)
    truth = law.mean[0] + torch.randn(16, n, 2, generator=g, dtype=torch.float64) @ half.T
    got = draw(estimator, law, 16, n, seed=3).view(16, n, 2)
    distance = [
        float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())
        for x, y in zip(got, truth, strict=True)
    ]
    pair = float(torch.cdist(truth[0], truth[1]).mean())
    assert sum(distance) / 16 == pytest.approx(2 * pair / n, rel=0.5)
    sd = law.cov[0].diagonal().sqrt()
    x = got.reshape(-1, 2)
    u = (x - law.mean[0]) / sd
    skill = (u * torch.erf(u / math.sqrt(2)) + math.sqrt(2 / math.pi) * torch.exp(-u.square() / 2)).mean(0)
    m = len(x)
    gaps = u.sort(0).values * (2 * torch.arange(m, dtype=torch.float64)[:, None] - m + 1)
    crps = skill - gaps.sum(0) / (m * (m - 1))
    assert (crps * math.sqrt(math.pi) - 1).abs().max() < 4 / math.sqrt(m)


@pytest.mark.parametrize("training", [None, LogitNormal(mean=0.3, std=0.8)], ids=["uniform", "logit-normal"])
@pytest.mark.parametrize("path", [None, TrigPath()], ids=["linear", "trig"])
def test_flow_matching_loss_of_the_exact_velocity(training, path):
    """E |v - v*|^2 = E Var[b' x1 + s' z | x_t], integrated over the training law."""
    q, rows = 0.5, 40_000
    options = ({} if training is None else {"training": training}) | ({} if path is None else {"path": path})
    fm = FlowMatching(**options)
    g = torch.Generator().manual_seed(0)
    x1 = math.sqrt(q) * torch.randn(rows, 1, generator=g, dtype=torch.float64)

    def coefficients(t):
        if path is None:
            return t, 1 - t, torch.ones_like(t), -torch.ones_like(t)
        b, s = torch.sin(t * math.pi / 2), torch.cos(t * math.pi / 2)
        return b, s, math.pi / 2 * s, -math.pi / 2 * b

    class Best:
        spec = NetSpec(out_channels=1, takes_x=True, takes_t=True)

        def predict(self, x, cond, /, *, t, noise):
            b, s, db, ds = coefficients(t)
            return ((b * db * q + s * ds) / (b * b * q + s * s))[:, None] * x

    out = fm.loss(Best(), Batch(base=x1, target=x1, cond={}), Key(0, torch.arange(rows), torch.tensor([0])))
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    t = u if training is None else torch.sigmoid(0.3 + 0.8 * torch.special.ndtri(u))
    b, s, db, ds = coefficients(t)
    expected = ((db * s - ds * b) ** 2 * q / (b * b * q + s * s)).mean()
    assert float(out.loss) == pytest.approx(float(expected), rel=0.03)


def test_flow_matching_residual_mode_is_a_shift_and_a_scale():
    """target = base + sigma_data x1: with channels of different scale, for loss and sample."""
    plain, net = FlowMatching(steps=3), None
    scaled = FlowMatching(steps=3, residual=True, sigma_data=(2.0, 0.5))
    g = torch.Generator().manual_seed(0)
    base, x1 = torch.randn(2, 4, 2, 3, generator=g, dtype=torch.float64)
    scale = torch.tensor([2.0, 0.5], dtype=torch.float64).view(2, 1)

    class Any:
        spec = NetSpec(out_channels=2, takes_x=True, takes_t=True)

        def predict(self, x, cond, /, *, t, noise):
            return torch.tanh(x) + t.view(-1, 1, 1)

    key, net = Key(0, torch.arange(4), torch.tensor([0, 1])), Any()
    members = plain.sample(net, base, {}, key)
    torch.testing.assert_close(scaled.sample(net, base, {}, key), base[:, None] + scale * members)
    a = plain.loss(net, Batch(base=base, target=x1, cond={}), key)
    b = scaled.loss(net, Batch(base=base, target=base + scale * x1, cond={}), key)
    torch.testing.assert_close(a.loss, b.loss)


def test_quantile_laws_are_those_of_the_papers():
    u = torch.tensor([1e-9, 0.25, 0.5, 1 - 1e-9], dtype=torch.float64)
    levels = RhoQuantile(low=0.02, high=88.0, rho=7.0).quantile(u)
    assert levels[0] == pytest.approx(0.02, rel=1e-6)
    assert levels[3] == pytest.approx(88.0, rel=1e-6)
    assert levels[2] == pytest.approx(((0.02 ** (1 / 7) + 88 ** (1 / 7)) / 2) ** 7)
    assert LogitNormal().quantile(u)[2] == 0.5
    with pytest.raises(ValueError, match="0 < low < high"):
        RhoQuantile(low=3.0, high=1.0)
    with pytest.raises(ValueError, match="positive std"):
        LogitNormal(std=0.0)


@pytest.mark.parametrize("name", ["interpolant", "flow of interpolant", "flow matching", "edm"])
def test_double_state_is_the_double_run_with_float32_network_input(name):
    """The solver's rounding goes away, the network still sees float32."""
    estimator = replace(GENERATORS[name], steps=60)
    law, seen = TWO_D, set()

    class Watch(Exact):
        def predict(self, u, cond, /, *, t, noise):
            seen.update({u.dtype, t.dtype})
            return super().predict(u, cond, t=t, noise=noise)

    key = Key(0, torch.tensor([0]), torch.arange(4))
    base = torch.full((1, 2, 50), 0.5)
    single = estimator.sample(Watch(estimator, law), base, {"x0": base}, key)
    double = replace(estimator, double=True).sample(Watch(estimator, law), base, {"x0": base}, key)
    assert seen == {torch.float32}
    assert double.dtype == torch.float32
    wide = base.double()
    truth = estimator.sample(Exact(estimator, law), wide, {"x0": wide}, key)
    errors = [float((v.double() - truth).square().mean().sqrt()) for v in (single, double)]
    assert 0 < errors[1] < errors[0] < 1e-3


def test_white_noise_is_the_default_start():
    assert FlowMatching().noise == EDM().noise == WhiteNoise()
