"""What belongs to estimators that follow a flow: densities, conversions, guidance."""
# ruff: noqa: ARG002 - signatures are those of the protocols

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wx_estimators import (
    EDM,
    Batch,
    FlowMatching,
    Guided,
    Key,
    NetSpec,
    SphericalNoise,
    StochasticInterpolant,
    Unconditional,
    convert_prediction,
    drop_condition,
    log_likelihood,
)

MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
COV = torch.tensor([[0.5, 0.3, 0.0], [0.3, 0.6, -0.2], [0.0, -0.2, 0.4]], dtype=torch.float64)
SCALE = torch.tensor([0.7, 1.5, 1.0], dtype=torch.float64)
SPEC = NetSpec(out_channels=3, takes_x=True, takes_t=True)


class GaussianFlow:
    """Velocity of flow matching for x1 ~ N(MEAN, COV) / SCALE, and its counterpart F of EDM."""

    spec = SPEC

    def predict(self, x, cond, /, *, t, noise):
        b = float(t[0])
        s, mean = 1 - b, MEAN / SCALE
        gain = torch.linalg.inv(b * b * COV / SCALE.outer(SCALE) + s * s * torch.eye(3).double())
        away = (x - b * mean) @ gain
        return mean + b * away @ (COV / SCALE.outer(SCALE)) - s * away


class GaussianEDM:
    spec = SPEC

    def predict(self, x, cond, /, *, t, noise):
        sigma = math.exp(4 * float(t[0]))
        norm = (sigma**2 + SCALE**2).sqrt()
        noisy = x * norm
        d = MEAN + (noisy - MEAN) @ torch.linalg.inv(COV + sigma**2 * torch.eye(3).double()) @ COV
        return (d - SCALE**2 / norm**2 * noisy) * norm / (sigma * SCALE)


def exact(x, cov):
    return torch.distributions.MultivariateNormal(MEAN, cov).log_prob(x)


def data(rows=6):
    g = torch.Generator().manual_seed(0)
    x = MEAN + torch.randn(rows, 3, generator=g, dtype=torch.float64) @ torch.linalg.cholesky(COV).T
    key = Key(0, torch.arange(rows), torch.tensor([0]))
    return x, Batch(base=torch.zeros_like(x), target=x, cond={}), key


def test_likelihood_of_flow_matching_is_the_exact_density():
    x, batch, key = data()
    fm = FlowMatching(sigma_data=tuple(SCALE.tolist()))
    got = log_likelihood(fm, GaussianFlow(), batch, key, probes=None)
    torch.testing.assert_close(got, exact(x, COV), atol=1e-5, rtol=0)
    residual = FlowMatching(sigma_data=tuple(SCALE.tolist()), residual=True)
    shifted = Batch(base=torch.ones_like(x), target=x + 1, cond={})
    torch.testing.assert_close(log_likelihood(residual, GaussianFlow(), shifted, key, probes=None), got)


def test_likelihood_of_edm_is_the_exact_density():
    """The law of N(0, smax^2) under the exact map, which scales eigenvectors of COV about MEAN."""
    x, batch, key = data()
    edm = EDM(sigma_data=tuple(SCALE.tolist()), sigma_min=0.01)
    got = log_likelihood(edm, GaussianEDM(), batch, key, probes=None, steps=80)
    power, vectors = torch.linalg.eigh(COV)
    stretch = ((power + 80.0**2) / (power + 0.01**2)).sqrt()
    start = MEAN @ vectors + stretch * ((x - MEAN) @ vectors)
    truth = torch.distributions.Normal(0.0, 80.0).log_prob(start).sum(1) + stretch.log().sum()
    torch.testing.assert_close(got, truth, atol=1e-4, rtol=0)
    assert 0 < (got - exact(x, COV)).abs().max() < 0.05  # the bias of a finite start, and sigma_min


def test_hutchinson_is_unbiased_and_a_pure_function_of_the_key():
    _, batch, key = data(3)
    fm = FlowMatching(sigma_data=tuple(SCALE.tolist()))
    truth = log_likelihood(fm, GaussianFlow(), batch, key, probes=None, steps=10)
    draws = torch.stack(
        [log_likelihood(fm, GaussianFlow(), batch, key.sub("try", i), steps=10) for i in range(150)]
    )
    error = (draws.mean(0) - truth).abs() / (draws.std(0) / math.sqrt(150))
    assert draws.std(0).min() > 0.05
    assert error.max() < 4
    again = log_likelihood(fm, GaussianFlow(), batch, key.sub("try", 3), steps=10)
    assert torch.equal(again, draws[3])
    many = log_likelihood(fm, GaussianFlow(), batch, key, steps=10, probes=64)
    assert ((many - truth).abs() < 4 * draws.std(0) / 8).all()


def test_likelihood_leaves_no_graph_and_refuses_what_it_cannot_do():
    x, batch, key = data(2)
    assert not log_likelihood(FlowMatching(), GaussianFlow(), batch, key, steps=2).requires_grad
    holes = Batch(base=x, target=x.masked_fill(x > 0, math.nan), cond={})
    with pytest.raises(ValueError, match="holds NaN"):
        log_likelihood(FlowMatching(), GaussianFlow(), holes, key)
    coloured = FlowMatching(noise=SphericalNoise(latitudes=(0.0,), longitudes=3))
    with pytest.raises(ValueError, match="WhiteNoise"):
        log_likelihood(coloured, GaussianFlow(), batch, key)
    with pytest.raises(ValueError, match="probes must be at least 1"):
        log_likelihood(FlowMatching(), GaussianFlow(), batch, key, probes=0)


KINDS = ("data", "noise", "v", "score", "flow")


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.floats(0.05, 3.0),
    st.floats(0.05, 80.0),
    st.integers(0, 2**31),
)
def test_conversions_round_trip_and_agree_with_the_definitions(given_kind, wanted, alpha, sigma, seed):
    g = torch.Generator().manual_seed(seed)
    x1, z = torch.randn(2, 3, 2, 4, generator=g, dtype=torch.float64)
    x = alpha * x1 + sigma * z
    true = {
        "data": x1,
        "noise": z,
        "v": alpha * z - sigma * x1,
        "score": -z / sigma,
        "flow": x1 - z,
    }
    levels = {"alpha": alpha, "sigma": torch.full((3,), sigma, dtype=torch.float64)}
    out = convert_prediction(true[given_kind], x, given=given_kind, wanted=wanted, **levels)
    torch.testing.assert_close(out, true[wanted], rtol=1e-9, atol=1e-9)
    back = convert_prediction(out, x, given=wanted, wanted=given_kind, **levels)
    torch.testing.assert_close(back, true[given_kind], rtol=1e-9, atol=1e-9)


def test_conversion_with_a_level_per_row_and_at_the_ends():
    x = torch.arange(6.0).reshape(2, 3)
    p = torch.ones(2, 3)
    out = convert_prediction(
        p, x, given="flow", wanted="data", alpha=torch.tensor([0.0, 1.0]), sigma=torch.tensor([1.0, 0.0])
    )
    # x1 = x + (1 - t) v holds up to t = 1.
    torch.testing.assert_close(out, x + torch.tensor([[1.0], [0.0]]) * p)
    with pytest.raises(ValueError, match="'noise' does not follow from 'data' at alpha"):
        convert_prediction(p, x, given="data", wanted="noise", alpha=1.0, sigma=0.0)
    with pytest.raises(ValueError, match="expected one of data, noise, v, score, flow, got 'eps'"):
        convert_prediction(p, x, given="eps", wanted="noise", alpha=1.0, sigma=1.0)


class Shift:
    """v = gain x + state."""

    spec = NetSpec(out_channels=1, takes_x=True, takes_t=True)

    def __init__(self, gain):
        self.gain = gain

    def predict(self, x, cond, /, *, t, noise):
        return self.gain * x + cond["state"]


@pytest.mark.parametrize("estimator", [FlowMatching(steps=4), EDM(steps=4), StochasticInterpolant(steps=4)])
def test_guidance_extrapolates_between_networks(estimator):
    state = torch.ones(2, 1, 5)
    key, cond = Key(0, torch.arange(2), torch.tensor([0, 1])), {"state": state}
    strong, weak = Shift(0.5), Shift(0.1)

    def sample(net):
        return estimator.sample(net, state, cond, key)

    assert torch.equal(sample(Guided(strong, weak, 1.0)), sample(strong))
    assert torch.equal(sample(Guided(strong, weak, 0.0)), sample(weak))
    torch.testing.assert_close(sample(Guided(strong, weak, 2.0)), sample(Shift(0.9)))
    # Without the condition the field of Shift loses `state`: weight 3 gives 3 state - 2 * 0.
    free = Guided(strong, Unconditional(strong, ("state",)), 3.0)
    tripled = estimator.sample(strong, state, {"state": 3 * state}, key)
    torch.testing.assert_close(sample(free), tripled)


def test_guidance_refuses_what_does_not_fit():
    other = Shift(0.1)
    other.spec = NetSpec(out_channels=2, takes_x=True, takes_t=True)
    with pytest.raises(ValueError, match="out_channels = 2 but 1 is needed"):
        Guided(Shift(0.5), other, 2.0)
    with pytest.raises(ValueError, match=r"cond has no \['history'\]; it holds \['state'\]"):
        Unconditional(Shift(0.5), ("history",)).predict(
            torch.zeros(1, 1), {"state": torch.zeros(1, 1)}, t=None, noise=None
        )


def test_condition_dropout_is_a_pure_function_of_the_key():
    cond = {"state": torch.ones(2000, 1, 2), "extra": torch.ones(2000, 3)}
    key = Key(0, torch.arange(2000), torch.tensor([4]))
    out = drop_condition(cond, key, names=("state",), probability=0.2)
    dropped = out["state"][:, 0, 0] == 0
    assert torch.equal(out["extra"], cond["extra"])
    assert float(dropped.float().mean()) == pytest.approx(0.2, abs=4 * 0.4 / math.sqrt(2000))
    some = Key(0, torch.arange(100, 200), torch.tensor([4]))
    part = drop_condition({"state": cond["state"][100:200]}, some, names=("state",), probability=0.2)
    assert torch.equal(part["state"], out["state"][100:200])
    with pytest.raises(ValueError, match="probability must be inside"):
        drop_condition(cond, key, names=("state",), probability=1.2)
    with pytest.raises(ValueError, match="has 2000 rows but the key has 100"):
        drop_condition(cond, some, names=("state",), probability=0.2)
