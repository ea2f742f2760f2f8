"""Stochastic Lorenz-96: 40 variables, additive noise, a law that depends on the state (T9).

The truth is a large ensemble of the solver; training sees only pairs of its states.
"""

import math

import pytest
import torch
from torch import nn

from wx_estimators import (
    CRPS,
    EDM,
    DifferenceCRPS,
    EnsembleCRPS,
    FlowMatching,
    Key,
    StochasticInterpolant,
    SumScore,
    WhiteNoise,
)

from .known_laws import fit

SITES, FORCING, S, LEAD, STEP = 40, 8.0, 2.0, 0.2, 0.02
TRUTH, MEMBERS, STATES = 2000, 100, 32
MEAN, SD = 2.35, 3.82  # of the climate
CHANGE = 3.84  # root mean square of the change over the lead
NOISE = WhiteNoise(engine="philox")


def tendency(x):
    return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + FORCING


def solve(x, g, lead=LEAD):
    """Stochastic Heun steps of dx_i = [(x_i+1 - x_i-2) x_i-1 - x_i + F] dt + S dW_i."""
    for _ in range(round(lead / STEP)):
        noise = S * math.sqrt(STEP) * torch.randn(x.shape, generator=g)
        f = tendency(x)
        x = x + 0.5 * STEP * (f + tendency(x + STEP * f + noise)) + noise
    return x


class RingNetwork(nn.Module):
    """Convolutions over the ring; products of channels let it form the quadratic terms."""

    def __init__(self, spec, width):
        super().__init__()
        self.spec = spec
        inputs = 1 + spec.takes_x + 7 * spec.takes_t + (spec.noise[0] if spec.noise else 0)

        def conv(i, o, kernel=5):
            return nn.Conv1d(i, o, kernel, padding="same", padding_mode="circular")

        self.inlet = conv(inputs, width)
        self.blocks = nn.ModuleList([conv(width, 2 * width) for _ in range(3)])
        self.mixers = nn.ModuleList([conv(width, width, 1) for _ in range(3)])
        self.outlet = conv(width, 1, 1)

    def predict(self, x, cond, /, *, t, noise):
        state = cond["state"]
        parts = [state] + [v for v in (x, noise) if v is not None]
        if t is not None:
            angle = t[:, None] * torch.tensor([math.pi, 2 * math.pi, 4 * math.pi])
            label = torch.cat((t[:, None], angle.sin(), angle.cos()), 1)
            parts.append(label.unsqueeze(2).expand(-1, -1, SITES))
        h = self.inlet(torch.cat(parts, 1))
        for block, mixer in zip(self.blocks, self.mixers, strict=True):
            a, b = block(h).chunk(2, 1)
            h = h + mixer(a * torch.tanh(b))
        return self.outlet(h)


DIFFERENCES = SumScore(
    terms=(CRPS(), DifferenceCRPS(steps=((1,), (2,)), periodic=(True,))), factors=(1.0, 0.5)
)


ESTIMATORS = {
    "interpolant": StochasticInterpolant(noise=NOISE),
    "flow matching": FlowMatching(noise=NOISE),
    "edm": EDM(noise=NOISE),
    "crps": EnsembleCRPS(score=DIFFERENCES, noise_shape=(1, SITES), noise=NOISE),
}


def pairs(seed, count=512):
    """A stream of (state, change) in units of the climate and of the change: trajectories that never end."""
    g = torch.Generator().manual_seed(seed)
    x = solve(FORCING + torch.randn(count, SITES, generator=g), g, lead=10.0)
    while True:
        after = solve(x, g)
        yield x, after
        x = after


@pytest.fixture(scope="module")
def truth():
    """32 states of the climate, and 2000 members of the solver from each, (B, K, N)."""
    g = torch.Generator().manual_seed(7)
    x = solve(FORCING + torch.randn(STATES, SITES, generator=g), g, lead=10.0)
    return x, solve(x.repeat_interleave(TRUTH, 0), g).view(STATES, TRUTH, SITES)


def encode(x):
    """State as the network sees it."""
    return ((x - MEAN) / SD).view(-1, 1, SITES)


def members_of(estimator, x):
    """(B, MEMBERS, N) draws of a network that was trained on what the state changes by."""
    stream = pairs(3, 128)

    def batch_of(_):
        before, after = next(stream)
        return encode(before), ((after - before) / CHANGE).view(-1, 1, SITES)

    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = RingNetwork(estimator.required(1), width=48)
    fit(net, estimator, batch_of, 600, seed=1, rate=4e-3)
    state = encode(x)
    with torch.no_grad():
        key = Key(5, torch.arange(STATES), torch.arange(MEMBERS))
        change = estimator.sample(net, state, {"state": state}, key)
    return x[:, None] + CHANGE * change[:, :, 0]


def pair_sums(x):
    """Sum of |x_i - x_j| over pairs i < j of dimension 1."""
    rank = torch.arange(1 - x.shape[1], x.shape[1], 2, dtype=torch.float64).view(-1, 1)
    return (x.double().sort(1).values * rank).sum(1)


def crps(members, y):
    """Mean fair CRPS of members (B, M, N) over draws y (B, K, N) of the truth."""
    m, k = members.shape[1], y.shape[1]
    within = pair_sums(members)
    across = pair_sums(torch.cat((members, y), 1)) - within - pair_sums(y)
    return float((across / (m * k) - within / (m * (m - 1))).mean())


def quality(members, y):
    """CRPS over that of the true law, and spread over skill (1 for the true law)."""
    ratio = crps(members, y) / crps(y[:, : TRUTH // 2], y[:, TRUTH // 2 :])
    centre = members.mean(1, keepdim=True)
    spread = members.var(1).mean() * (1 + 1 / members.shape[1])
    return ratio, float((spread / (y - centre).square().mean()).sqrt())


def neighbours(x):
    """Correlations of sites 1 and 2 apart, around the ensemble mean."""
    away = x - x.mean(1, keepdim=True)
    return [float((away * away.roll(-k, -1)).mean() / away.square().mean()) for k in (1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_forecast_like_the_solver(name, truth):
    x, y = truth
    members = members_of(ESTIMATORS[name], x)
    ratio, balance = quality(members, y)
    assert ratio < 1.05
    assert 0.95 < balance < 1.05
    near = neighbours(members)
    # CRPS of points and differences finds the signs at this length of training: 0.05 and -0.18 to -0.24.
    assert near[0] > 0.02
    assert near[1] < -0.1
    if name != "crps":
        assert near == pytest.approx(neighbours(y), abs=0.03)


def test_the_scores_know_the_truth_and_what_is_wrong(truth):
    y = truth[1]
    own, rest = y[:, :MEMBERS], y[:, MEMBERS:]
    ratio, balance = quality(own, rest)
    assert ratio == pytest.approx(1.0, abs=0.01)
    assert balance == pytest.approx(1.0, abs=0.01)
    # The relations between sites are far above the noise of their estimate, and no ratio sees them.
    assert min(abs(v) for v in neighbours(y)) > 0.06
    shuffled = torch.stack([own[:, :, i].roll(i, 1) for i in range(SITES)], -1)
    assert quality(shuffled, rest) == pytest.approx((ratio, balance), rel=1e-5)
    assert max(abs(v) for v in neighbours(shuffled)) < 0.02
    mean = y.mean(1, keepdim=True)
    assert quality(mean.expand(-1, MEMBERS, -1), rest)[0] > 1.3
    assert quality(mean + 0.9 * (own - mean), rest)[1] < 0.95
    assert quality(y.roll(1, 0)[:, :MEMBERS], rest)[0] > 2  # of another state
