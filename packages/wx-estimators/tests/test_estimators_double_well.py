"""The double well dX = (X - X^3) dt + s dW: a law with two modes that no Gaussian describes (T8).

The truth comes from the Fokker-Planck equation, the training pairs from a stochastic solver: neither knows of
the other.
"""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from wx_estimators import EDM, EnsembleCRPS, FlowMatching, Key, Regression, StochasticInterpolant, WhiteNoise

from .known_laws import Perceptron, fit

S = 0.5
LEAD = 3.0
POINTS = 400
EDGE = 2.2
STEP = 2 * EDGE / POINTS
GRID = -EDGE + (np.arange(POINTS) + 0.5) * STEP
STARTS = (-0.3, 0.0, 0.3)
MEMBERS = 8000
UNIT = 0.5  # of the states as the network sees them
NOISE = WhiteNoise(engine="philox")

ESTIMATORS = {
    "interpolant": StochasticInterpolant(noise=NOISE),
    "flow matching": FlowMatching(noise=NOISE),
    "edm": EDM(noise=NOISE),
    "crps": EnsembleCRPS(noise_shape=(1,), noise=NOISE),
}


def generator():
    """dp/dt = L p on cells: central differences of the flux f p - s^2 / 2 p', none through the ends."""
    face = GRID[:-1] + 0.5 * STEP
    drift, mixing = 0.5 * (face - face**3) / STEP, 0.5 * S**2 / STEP**2
    flux = np.zeros((POINTS + 1, POINTS))  # over STEP
    inner = np.arange(POINTS - 1)
    flux[inner + 1, inner] = drift + mixing
    flux[inner + 1, inner + 1] = drift - mixing
    return flux[:-1] - flux[1:]


@pytest.fixture(scope="module")
def kernel():
    """(POINTS, len(STARTS)): density at the lead from each start, a linear mixture of the cells around it."""
    start = np.stack([np.clip(1 - np.abs(GRID - x) / STEP, 0, None) for x in STARTS], 1)
    return expm(LEAD * generator()) @ start / STEP


def solve(x, g, lead=LEAD, step=0.02):
    """Stochastic Heun steps, weak order 2."""
    for _ in range(round(lead / step)):
        noise = S * math.sqrt(step) * torch.randn(x.shape, generator=g)
        f = x - x**3
        end = x + step * f + noise
        x = x + 0.5 * step * (f + end - end**3) + noise
    return x


def errors(members, density):
    """Largest error of the weight of the right mode, and largest integral of |F - F*|, over the starts."""
    weight, distance = [], []
    for y, p in zip(members, density.T, strict=True):
        truth = np.cumsum(p) * STEP
        found = np.searchsorted(np.sort(y), GRID + 0.5 * STEP, side="right") / len(y)
        weight.append(abs((y > 0).mean() - (1 - truth[POINTS // 2 - 1])))
        distance.append(np.abs(found - truth).sum() * STEP)
    return max(weight), max(distance)


def members_of(estimator, seed=1):
    """(starts, MEMBERS) draws of a network that was trained on pairs of the solver."""
    g = torch.Generator().manual_seed(seed)
    x0 = 2.0 * torch.rand(200_000, 1, generator=g) - 1.0
    x1 = solve(x0, g)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Perceptron(estimator.required(1), 1, width=64)

    def batch_of(g):
        pick = torch.randint(len(x0), (1024,), generator=g)
        return x0[pick] / UNIT, x1[pick]

    fit(net, estimator, batch_of, 1000, seed, rate=1e-2)
    x = torch.tensor(STARTS).unsqueeze(1) / UNIT
    with torch.no_grad():
        members = estimator.sample(
            net, x, {"state": x}, Key(seed, torch.arange(len(STARTS)), torch.arange(MEMBERS))
        )
    return members[..., 0].numpy()


def test_the_discretisation_keeps_the_invariant_density_and_all_mass():
    exact = np.exp(-(GRID**4 / 4 - GRID**2 / 2) * 2 / S**2)
    exact /= exact.sum() * STEP
    settled = expm(400.0 * generator()) @ np.full(POINTS, 1 / (2 * EDGE))
    assert settled.sum() * STEP == pytest.approx(1.0, abs=1e-9)
    assert np.abs(settled - exact).max() < 5e-4 * exact.max()


def test_fokker_planck_and_the_solver_agree_on_a_kernel_with_two_modes(kernel):
    assert kernel.sum(0) * STEP == pytest.approx(1.0, abs=1e-9)
    centre, peak = kernel[POINTS // 2], kernel.max(0)
    assert (peak > 2.5 * centre).all()
    g = torch.Generator().manual_seed(0)
    draws = solve(torch.tensor(STARTS).unsqueeze(1).repeat(1, 200_000), g).numpy()
    # 4 standard errors of a weight of 1/2 are 0.0045.
    weight, distance = errors(draws, kernel)
    assert weight < 0.0045
    assert distance < 0.009


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_learn_both_modes_and_their_weights(name, kernel):
    weight, distance = errors(members_of(ESTIMATORS[name]), kernel)
    assert weight < 0.03
    assert distance < 0.06  # the same share of members on the wrong side, 2 apart


def test_a_deterministic_network_fails(kernel):
    # Negative control.
    weight, distance = errors(members_of(Regression()), kernel)
    assert weight > 0.3
    assert distance > 0.5
