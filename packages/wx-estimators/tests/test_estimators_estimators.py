"""What all estimators share: reproducible members, masks, specifications, settings as data."""
# ruff: noqa: ARG002 - signatures are those of the protocols

import json
import math

import pytest
import torch

from wx_estimators import (
    CRPS,
    DPM2M,
    DPM2S,
    EDM,
    RK4,
    SRA1,
    Batch,
    DifferenceCRPS,
    EnergyScore,
    EnsembleCRPS,
    EulerMaruyama,
    FlowMatching,
    Heun,
    Key,
    NetSpec,
    SpectralCRPS,
    SphericalNoise,
    StochasticHeun,
    StochasticInterpolant,
    SumScore,
    WhiteNoise,
    bind,
    estimator_from_dict,
)

SHAPE = (2, 5, 8)
LATITUDES = (90.0, 45.0, 0.0, -45.0, -90.0)
SPHERE = SphericalNoise(latitudes=LATITUDES, longitudes=8)
ESTIMATORS = {
    "interpolant": StochasticInterpolant(steps=3),
    "heun": StochasticInterpolant(
        steps=3, sampler=StochasticHeun(), power=2, diffusion="foellmer", noise=SPHERE
    ),
    "published": StochasticInterpolant(steps=3, preconditioning="atlas", sampler=EulerMaruyama()),
    "edm": EDM(steps=4, sigma_data=(0.9, 1.1)),
    "churn": EDM(steps=4, sampler=Heun(), churn=2.5, churn_max=50.0, noise=SPHERE),
    "multistep": EDM(steps=4, sampler=DPM2M(), double=True),
    "flow": FlowMatching(steps=3, sigma_data=(0.9, 1.1), residual=True, noise=SPHERE),
    "probability flow": StochasticInterpolant(steps=3, sampler=RK4(), diffusion="none"),
    "crps": EnsembleCRPS(noise_shape=SHAPE, noise=SPHERE),
}
EACH = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


class Pointwise(torch.nn.Module):
    """A network without sums over points or rows: equal rows give equal bits in any batch."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.gain = torch.nn.Parameter(torch.linspace(0.5, 1.0, 5).view(5, 1))

    def predict(self, x, cond, /, *, t, noise):
        y = 0.3 * cond["state"] * self.gain
        for extra in (x, noise):
            y = y if extra is None else y + 0.5 * extra * self.gain
        return y if t is None else y * (1 + 0.1 * t.view(-1, 1, 1, 1))


def setting(estimator, batch=3, members=4):
    g = torch.Generator().manual_seed(1)
    state, target = torch.randn(2, batch, *SHAPE, generator=g)
    net = Pointwise(estimator.required(2))
    key = Key(11, 100 + 6 * torch.arange(batch), torch.arange(members), lead=1)
    return net, state, target, key


@EACH
def test_members_are_the_same_bits_in_any_company(estimator):
    net, state, _, key = setting(estimator)
    with torch.no_grad():
        whole = estimator.sample(net, state, {"state": state}, key)
        assert whole.shape == (3, 4, *SHAPE)
        for chunk in (1, 5, 12, 100):
            assert torch.equal(estimator.sample(net, state, {"state": state}, key, chunk=chunk), whole)
        backwards = Key(11, key.init, key.member.flip(0), lead=1)
        assert torch.equal(estimator.sample(net, state, {"state": state}, backwards).flip(1), whole)
        alone = Key(11, key.init[2:], key.member[1:2], lead=1)
        assert torch.equal(estimator.sample(net, state[2:], {"state": state[2:]}, alone)[0, 0], whole[2, 1])
        rows = state.repeat_interleave(4, 0)
        bound = bind(estimator, net, chunk=5)
        assert torch.equal(bound.sample(rows, {"state": rows}, key.rows()), whole.flatten(0, 1))
        later = estimator.sample(net, state, {"state": state}, key.at_lead(2))
    assert not torch.isclose(later, whole).any(dim=(2, 3, 4)).all()
    assert torch.isfinite(whole).all()


@EACH
def test_members_differ_and_a_shared_seed_is_seen(estimator):
    net, state, _, key = setting(estimator)
    same = Key(11, key.init, torch.zeros(4, dtype=torch.int64))
    with torch.no_grad():
        spread = estimator.sample(net, state, {"state": state}, key).std(1)
        none = estimator.sample(net, state, {"state": state}, same).std(1)
    assert (spread.mean((-1, -2)) > 0.1).all()
    assert (none < 1e-6).all()  # negative control: one member number for all members


@EACH
def test_loss_is_a_pure_function_with_gradient(estimator):
    net, state, target, key = setting(estimator, members=2)
    batch = Batch(base=state, target=target, cond={"state": state})
    out = estimator.loss(net, batch, key)
    assert torch.equal(out.loss, estimator.loss(net, batch, key).loss)
    assert not torch.equal(out.loss, estimator.loss(net, batch, key.sub("epoch", 1)).loss)
    out.loss.backward()
    assert net.gain.grad.abs().min() > 0
    assert not out.per_channel.requires_grad
    torch.testing.assert_close(out.per_channel.mean(), out.loss.detach())
    assert not torch.equal(estimator.loss(net, batch, key).loss, torch.tensor(0.0))


@EACH
def test_missing_targets_and_zero_weights_leave_no_trace(estimator):
    net, state, target, key = setting(estimator, members=2)
    weight = torch.tensor([0.2, 1.5, 1.6, 1.5, 0.2]).view(1, 1, 5, 1).expand(3, 2, 5, 8).clone()
    weight[:, :, 2, 3:] = 0.0
    cond = {"state": state}
    clean = estimator.loss(net, Batch(base=state, target=target, cond=cond, weight=weight), key)
    holes = target.clone()
    holes[:, :, 2, 3:] = math.nan
    out = estimator.loss(net, Batch(base=state, target=holes, cond=cond, weight=weight), key)
    torch.testing.assert_close(out.loss, clean.loss)
    torch.testing.assert_close(out.count, clean.count)
    out.loss.backward()
    assert torch.isfinite(net.gain.grad).all()


@EACH
def test_losses_of_parts_add_up_by_their_counts(estimator):
    net, state, target, key = setting(estimator, members=2)
    target[0, :, :3] = math.nan
    whole = estimator.loss(net, Batch(base=state, target=target, cond={"state": state}), key)
    total = count = 0.0
    for rows in (slice(0, 1), slice(1, 3)):
        part = Batch(base=state[rows], target=target[rows], cond={"state": state[rows]})
        out = estimator.loss(net, part, Key(11, key.init[rows], key.member, lead=1))
        total, count = total + out.loss * out.count, count + out.count
    torch.testing.assert_close(total / count, whole.loss)


@EACH
def test_calls_per_sample_are_counted(estimator):
    net, state, _, key = setting(estimator)
    seen = []
    net.predict = lambda *a, **k: seen.append(1) or Pointwise.predict(net, *a, **k)
    with torch.no_grad():
        estimator.sample(net, state, {"state": state}, key)
    assert len(seen) == estimator.calls_per_sample


@EACH
def test_settings_survive_json(estimator):
    data = json.loads(json.dumps(estimator.to_dict()))
    assert type(estimator).from_dict(data) == estimator
    assert estimator_from_dict(data) == estimator
    with pytest.raises(ValueError, match=r"unknown keys \['stepz'\]"):
        type(estimator).from_dict({**data, "stepz": 3})
    with pytest.raises(ValueError, match="expected settings of type"):
        type(estimator).from_dict({**data, "type": "Other"})


def test_nested_scores_and_noises_survive_json():
    score = SumScore(
        terms=(
            CRPS(alpha=0.95),
            DifferenceCRPS(),
            SpectralCRPS(wavenumbers=(0, 8)),
            EnergyScore(over="space"),
        ),
        factors=(1.0, 0.2, 0.1, 0.0),
    )
    noise = SphericalNoise(latitudes=LATITUDES, longitudes=8, spectrum=("power", 1.5))
    est = EnsembleCRPS(score=score, noise=noise)
    assert estimator_from_dict(json.loads(json.dumps(est.to_dict()))) == est
    with pytest.raises(ValueError, match="'Pink' are not among"):
        estimator_from_dict({"type": "EDM", "noise": {"type": "Pink"}})
    for part in (WhiteNoise(), SRA1(), DPM2S()):
        assert type(part).from_dict(part.to_dict()) == part


@EACH
def test_a_network_that_does_not_fit_is_named(estimator):
    net, state, target, key = setting(estimator)
    net.spec = NetSpec(out_channels=3, takes_x=False, takes_t=True, noise=(9,))
    with pytest.raises(ValueError, match=r"out_channels = 3 but 2 is needed.*noise = \(9,\) but"):
        estimator.loss(net, Batch(base=state, target=target, cond={"state": state}), key)


def test_batch_and_key_must_agree():
    estimator = ESTIMATORS["interpolant"]
    net, state, _, key = setting(estimator)
    with pytest.raises(ValueError, match=r"key\.init has 3 entries but base has batch size 2"):
        estimator.sample(net, state[:2], {"state": state[:2]}, key)
    with pytest.raises(ValueError, match="one member per row"):
        bind(estimator, net).sample(state, {"state": state}, key)
    with pytest.raises(ValueError, match="chunk must be a positive number"):
        estimator.sample(net, state, {"state": state}, key, chunk=0)


def test_bound_sampler_has_no_gradient_unless_asked():
    estimator = ESTIMATORS["crps"]
    net, state, _, key = setting(estimator, members=1)
    assert not bind(estimator, net).sample(state, {"state": state}, key).requires_grad
    assert bind(estimator, net, grad=True).sample(state, {"state": state}, key).requires_grad


def test_zero_network_is_the_linear_gaussian_model():
    """With F = 0 the Gaussian preconditioning must sample N(slope x0, (1 - rho^2) sigma1^2)."""

    class Zero:
        spec = NetSpec(out_channels=2, takes_x=True, takes_t=True)

        def predict(self, x, cond, /, *, t, noise):
            return torch.zeros_like(x)

    class Basis:
        def draw(self, key, shape, /, *, device, dtype, window=None):
            stage = (
                2 * int(key.stream.split("step:")[1].split("/")[0]) + key.step
                if "step:" in key.stream
                else -1
            )
            one = (key.member == stage + 1).expand(key.batch, key.members).to(dtype)
            return one.reshape(key.batch, key.members, *[1] * len(shape)).expand(-1, -1, *shape)

    x0 = torch.tensor([[1.5, -0.4]], dtype=torch.float64)
    si = StochasticInterpolant(
        steps=40,
        sigma_base=2.0,
        sigma_target=(1.0, 0.5),
        correlation=0.6,
        noise=Basis(),
        sampler=StochasticHeun(),
    )
    x = si.sample(Zero(), x0, {}, Key(0, torch.tensor([0]), torch.arange(81)))[0]
    variance = (x[1:] - x[0]).square().sum(0)
    torch.testing.assert_close(x[0], 0.6 * torch.tensor([0.5, 0.25]).double() * x0[0], atol=1e-12, rtol=0)
    # Second order in the step: 4e-5 in the table of weak errors at unit noise to signal.
    torch.testing.assert_close(variance, 0.64 * torch.tensor([1.0, 0.25]).double(), atol=0, rtol=1e-3)


def test_statistics_of_pairs():
    g = torch.Generator().manual_seed(0)
    base = torch.randn(4000, 2, 3, generator=g)
    target = 0.5 * base + torch.tensor([[[1.0], [2.0]]]) * torch.randn(4000, 2, 3, generator=g)
    base[0, 0, 0] = math.nan
    si = StochasticInterpolant.from_pairs(base, target, steps=7)
    assert si.steps == 7
    assert si.sigma_base == pytest.approx((1.0, 1.0), abs=0.03)
    assert si.sigma_target == pytest.approx((math.sqrt(1.25), math.sqrt(4.25)), rel=0.03)
    assert si.correlation == pytest.approx((0.5 / math.sqrt(1.25), 0.5 / math.sqrt(4.25)), abs=0.03)


class Halves:
    """The other rank's members, and a grid split over two ranks that hold the same."""

    def __init__(self, others, ranks):
        self.others, self.ranks = others, ranks

    def gather_members(self, x, /):
        return torch.cat([x, self.others], 1)

    def sum_space(self, x, /):
        return self.ranks * x


def test_members_over_ranks_score_as_one_ensemble():
    whole = EnsembleCRPS(members=4, noise_shape=SHAPE)
    net, state, target, key = setting(whole)
    batch = Batch(base=state, target=target, cond={"state": state})
    expected = whole.loss(net, batch, key)
    left, right = (Key(11, key.init, key.member[i : i + 2], lead=1) for i in (0, 2))
    others = whole.loss(net, batch, key).members[:, 2:].detach()
    split = EnsembleCRPS(members=4, noise_shape=SHAPE, comm=Halves(others, 2))
    got = split.loss(net, batch, left)
    torch.testing.assert_close(got.loss, expected.loss)
    assert torch.equal(got.members, expected.members[:, :2])
    assert got.count == 2 * expected.count
    assert "comm" not in split.to_dict()
    with pytest.raises(ValueError, match="needs 4 members but the key gave 2"):
        whole.loss(net, batch, right)


def test_one_member_in_the_key_is_expanded():
    estimator = EnsembleCRPS(members=3, noise_shape=SHAPE)
    net, state, target, key = setting(estimator)
    batch = Batch(base=state, target=target, cond={"state": state})
    a = estimator.loss(net, batch, Key(11, key.init, torch.tensor([2]), lead=1))
    b = estimator.loss(net, batch, Key(11, key.init, torch.tensor([6, 7, 8]), lead=1))
    assert torch.equal(a.loss, b.loss)
    assert a.members.shape == (3, 3, *SHAPE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "eps must be positive"),
        ({"power": 3}, "power must be 1 or 2"),
        ({"diffusion": "big"}, "diffusion must be"),
        ({"preconditioning": "none"}, "preconditioning must be"),
        ({"sigma_target": (1.0, -1.0)}, "sigma_target must be positive"),
        ({"correlation": 1.0}, "correlation must be inside"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_interpolant_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        StochasticInterpolant(**settings)


def test_ensemble_settings_are_checked():
    with pytest.raises(ValueError, match="members must be at least 2"):
        EnsembleCRPS(members=1)
    with pytest.raises(ValueError, match="noise_shape must hold positive sizes"):
        EnsembleCRPS(noise_shape=())
