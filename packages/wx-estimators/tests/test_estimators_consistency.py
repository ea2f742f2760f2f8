"""Consistency models: exact fixed point, tangent and sample law; distillation of a small EDM."""
# ruff: noqa: ARG001, ARG002, ARG004, ARG005 - signatures are those of the protocols

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn import functional as F

from wx_estimators import (
    EDM,
    RK4,
    Batch,
    EnsembleCRPS,
    Key,
    NetSpec,
    Rollout,
    RolloutBatch,
    bind,
    estimator_from_dict,
)
from wx_estimators._consistency import Consistency, tangent
from wx_estimators._edm import noisy_pair
from wx_estimators._uncertainty import UncertaintyWeight

# torch registers decompositions for forward derivatives with torch.jit.script, which it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

SPEC = NetSpec(out_channels=2, takes_x=True, takes_t=True, supports_jvp=True)
MEAN, VARIANCE = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.5, 2.0]).double()
DATA = (0.8, 1.3)


def column(values):
    return values.reshape(1, 2, 1)


class Gaussian:
    """The network of D = m + (q / (q + sigma^2))^power (x - m), by inverting the preconditioning.

    For a target N(m, q), power 1 is the denoiser E[target | x] and power 1/2 the end of its flow.
    """

    def __init__(self, power):
        self.spec, self.power = SPEC, power

    def predict(self, x, cond, /, *, t, noise):
        sigma, sd = (4 * t).exp().reshape(-1, 1, 1), column(torch.tensor(DATA, dtype=torch.float64))
        norm = (sigma**2 + sd**2).sqrt()
        m, q = column(MEAN), column(VARIANCE)
        end = m + (q / (q + sigma**2)) ** self.power * (norm * x - m)
        return (end / sd - sd / norm * x) / (sigma / norm)


TEACHER, EXACT = Gaussian(1.0), Gaussian(0.5)


class Small(torch.nn.Module):
    """A nonlinear network without structure."""

    def __init__(self, spec=SPEC):
        super().__init__()
        self.spec = spec
        g = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter(0.5 * torch.randn(2, 5, generator=g, dtype=torch.float64))

    def predict(self, x, cond, /, *, t, noise):
        label = t[:, None, None].expand_as(x[:, :1])
        return torch.einsum("oi,nis->nos", self.weight.to(x), torch.cat([x, cond["state"], label], 1).sin())


def data(rows=6, **settings):
    g = torch.Generator().manual_seed(1)
    base, target = torch.randn(2, rows, 2, 3, generator=g, dtype=torch.float64)
    return Batch(base=base, target=target, cond={"state": base}, **settings)


def key(rows=6, members=2):
    return Key(1, torch.arange(rows), torch.arange(members))


def consistency(**settings):
    return Consistency(**{"sigma_data": DATA} | settings)


# Loss


def test_the_exact_network_and_teacher_are_a_fixed_point():
    at_rest = consistency(teacher=TEACHER).loss(EXACT, data(), key())
    assert float(at_rest.loss) < 1e-20
    # The teacher itself is not consistent, nor is the exact network along another flow.
    assert float(consistency(teacher=TEACHER).loss(TEACHER, data(), key()).loss) > 0.1
    assert float(consistency(teacher=EXACT).loss(EXACT, data(), key()).loss) > 0.1


@pytest.mark.parametrize("taught", [True, False])
def test_the_tangent_is_a_central_difference_of_the_denoiser(taught):
    """(dD / dln sigma) / (sigma_data sin) along the flow, every channel at its own angle."""
    net, batch, e = Small(), data(), consistency()
    pair = noisy_pair(e.training, e.noise, DATA, batch.target, key(members=1))
    velocity = -TEACHER.predict(pair.x, batch.cond, t=pair.label, noise=None) if taught else -pair.truth

    def end(step):
        """D / sigma_data at ln(sigma) + step."""
        sigma, sd = (
            (4 * pair.label + step).exp().reshape(-1, 1, 1),
            column(torch.tensor(DATA, dtype=torch.float64)),
        )
        norm = (sigma**2 + sd**2).sqrt()
        u = pair.x + step * pair.sin * pair.cos * velocity
        f = net.predict(u, batch.cond, t=pair.label + step / 4, noise=None)
        return sd / norm * u + sigma / norm * f

    expected = (end(1e-5) - end(-1e-5)) / 2e-5 / pair.sin
    found = tangent(net, pair, velocity, batch.cond, 1.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    flow = tangent(net, pair, velocity, batch.cond, 0.0)
    f = net.predict(pair.x, batch.cond, t=pair.label, noise=None)
    torch.testing.assert_close(flow, pair.cos**2 * (f + velocity))
    torch.testing.assert_close(tangent(net, pair, velocity, batch.cond, 0.3), 0.7 * flow + 0.3 * found)


def test_the_pair_moves_along_its_own_flow():
    """Without a teacher du/dtheta is that of fixed data and noise: -truth."""
    e, batch = consistency(), data()
    pair = noisy_pair(e.training, e.noise, DATA, batch.target, key(members=1))
    xi = batch.target / column(torch.tensor(DATA, dtype=torch.float64))
    z = (pair.x - pair.cos * xi) / pair.sin
    torch.testing.assert_close(-pair.sin * xi + pair.cos * z, -pair.truth)


def test_without_warmup_the_gradient_is_that_of_edm_by_the_squared_cosine():
    """A floor far above the tangent switches its normalisation off."""
    net, batch, floor = Small(), data(), 1e9
    edm = EDM(sigma_data=DATA, training=consistency().training).loss(net, batch, key())
    cos2 = 1 / (1 + (8 * edm.label).exp()[:, None] / torch.tensor(DATA, dtype=torch.float64) ** 2)
    (expected,) = torch.autograd.grad((cos2 * edm.row_sums).sum() / edm.count, net.weight)
    out = consistency(warmup=0.0, floor=floor).loss(net, batch, key())
    (found,) = torch.autograd.grad(out.loss, net.weight)
    torch.testing.assert_close(floor * found, expected)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_gradient_pulls_against_the_normalised_tangent(weighted):
    net, e = Small(), consistency(teacher=TEACHER, floor=0.2)
    weight = torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(0)).double() if weighted else None
    batch = data(weight=weight)
    w = torch.ones(6, 2, 3).double() if weight is None else weight.expand(6, 2, 3)
    pair = noisy_pair(e.training, e.noise, DATA, batch.target, key(members=1))
    with torch.no_grad():
        velocity = -TEACHER.predict(pair.x, batch.cond, t=pair.label, noise=None)
        g = tangent(net, pair, velocity, batch.cond, 1.0)
        rms = ((w * g**2).sum((1, 2)) / w.sum((1, 2))).sqrt()
        g = g / (rms + 0.2).reshape(-1, 1, 1)
    f = net.predict(pair.x, batch.cond, t=pair.label, noise=None)
    (expected,) = torch.autograd.grad((2 * w * g * f).sum() / w.sum(), net.weight)
    out = e.loss(net, batch, key(members=1))
    (found,) = torch.autograd.grad(out.loss, net.weight)
    torch.testing.assert_close(found, expected)
    assert float(out.loss.detach()) == pytest.approx(float((w * g**2).sum() / w.sum()))


def test_masked_points_take_no_part():
    net, e, batch = Small(), consistency(), data()
    holes = batch.target.clone()
    holes[2], holes[0, 1, 1] = torch.nan, torch.nan
    weight = (~holes.isnan()).double()
    grads = []
    for target, w in ((holes, None), (torch.nan_to_num(holes), weight), (holes, 7 * weight)):
        out = e.loss(net, Batch(base=batch.base, target=target, cond=batch.cond, weight=w), key())
        assert out.loss.isfinite()
        assert out.row_counts[4:6].abs().max() == 0
        grads.append(torch.autograd.grad(out.loss, net.weight)[0])
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(grads[0], grads[2])
    kept = [0, 1, 3, 4, 5]
    few = Batch(base=batch.base[kept], target=holes[kept], cond={"state": batch.base[kept]})
    out = e.loss(net, few, Key(1, torch.tensor(kept), torch.arange(2)))
    torch.testing.assert_close(torch.autograd.grad(out.loss, net.weight)[0], grads[0])

    class Undefined(Small):
        """Not a number where nothing is known, as on land for an ocean model."""

        def predict(self, x, cond, /, *, t, noise):
            out = super().predict(x, cond, t=t, noise=noise)
            return torch.where(holes.isnan().repeat_interleave(2, 0), torch.nan, out)

    out = e.loss(Undefined(), Batch(base=batch.base, target=holes, cond=batch.cond), key())
    assert out.loss.isfinite()


def test_the_loss_works_with_learned_weights_and_under_autocast():
    net, batch = Small(), data()
    out = consistency(teacher=TEACHER).loss(net, batch, key())
    torch.testing.assert_close(UncertaintyWeight().double()(out), out.loss)

    class Layer(Small):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def predict(self, x, cond, /, *, t, noise):
            return self.layer(x) * (1 + t[:, None, None])

    layer, single = Layer(), Batch(base=batch.base.float(), target=batch.target.float(), cond={})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = consistency().loss(layer, single, key())
    high = consistency().loss(layer, single, key())
    assert low.loss.dtype == torch.float32
    (low_gradient,) = torch.autograd.grad(low.loss, layer.layer.weight)
    (high_gradient,) = torch.autograd.grad(high.loss, layer.layer.weight)
    torch.testing.assert_close(low_gradient, high_gradient, rtol=0.05, atol=0.02)


# Networks without a forward derivative


class Attention(torch.nn.Module):
    """Rows of 3 points attend to each other."""

    def __init__(self, attend=F.scaled_dot_product_attention, spec=SPEC):
        super().__init__()
        self.spec, self.attend = spec, attend
        self.mix = torch.nn.Parameter(torch.eye(2, dtype=torch.float64))

    def predict(self, x, cond, /, *, t, noise):
        tokens = ((x * (1 + t[:, None, None])).transpose(1, 2) @ self.mix).unsqueeze(1)
        return self.attend(tokens, tokens, tokens).squeeze(1).transpose(1, 2)


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class WithoutJvp(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_attention_is_differentiated_by_its_plain_kernel():
    def plain(q, k, v):
        return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v

    results = []
    for attend in (F.scaled_dot_product_attention, plain):
        net = Attention(attend)
        loss = consistency(teacher=TEACHER).loss(net, data(), key()).loss
        results.append((loss, torch.autograd.grad(loss, net.mix)[0]))
    torch.testing.assert_close(results[0], results[1])


@dataclass
class Foreign:
    out_channels: int = 2
    takes_x: bool = True
    takes_t: bool = True
    noise: None = None


def test_networks_without_a_forward_derivative_are_refused():
    needed = "supports_jvp = True.*torch.func.jvp"
    for spec in (replace(SPEC, supports_jvp=False), Foreign()):
        with pytest.raises(ValueError, match=needed):
            consistency().loss(Small(spec), data(), key())
        # To sample, and to train other estimators, they need none.
        consistency().sample(Small(spec), data().base, data().cond, key())
        EDM(sigma_data=DATA).loss(Small(spec), data(), key())
        consistency(teacher=Small(spec)).loss(Small(), data(), key())
    EDM(sigma_data=DATA).loss(Small(), data(), key())
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    for attend in (
        lambda q, k, v: OldStyle.apply(q),
        lambda q, k, v: WithoutJvp.apply(q),
        lambda q, k, v: flash(q, k, v)[0],
    ):
        with pytest.raises(ValueError, match="custom autograd functions without `jvp` have no forward"):
            consistency().loss(Attention(attend), data(), key())

    def broken(q, k, v):
        raise RuntimeError("out of cheese")

    with pytest.raises(RuntimeError, match="out of cheese"):
        consistency().loss(Attention(broken), data(), key())
    with pytest.raises(ValueError, match="does not fit the teacher of Consistency: takes_t = False"):
        consistency(teacher=Small(replace(SPEC, takes_t=False))).loss(Small(), data(), key())
    with pytest.raises(ValueError, match="does not fit Consistency: out_channels = 2 but 1"):
        Consistency().loss(Small(), Batch(base=data().base, target=data().base[:, :1], cond={}), key())


# Samples


class Basis:
    """Noise that gives member j > 0 a one in the j-th draw of the sampler and zero elsewhere."""

    def draw(self, key, shape, /, *, device, dtype, window=None):
        draw = 0 if key.stream.endswith("/start") else key.step
        one = (key.member == draw + 1).expand(key.batch, key.members).to(dtype)
        return one.reshape(key.batch, key.members, *[1] * len(shape)).expand(-1, -1, *shape)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_samples_of_the_exact_network_have_the_exact_law(steps):
    """Linear in the noises: value at no noise, squared slopes. Each call contracts by sqrt(q / (q + s^2))."""
    e = consistency(steps=steps, sigma_max=80.0, noise=Basis())
    one = Key(0, torch.tensor([0]), torch.arange(steps + 1))
    y = e.sample(EXACT, torch.zeros(1, 2, 1, dtype=torch.float64), {}, one)[0, :, :, 0]
    variance = (y[1:] - y[0]).square().sum(0)
    mean, expected = torch.zeros(2).double(), torch.zeros(2).double()
    for sigma in e.levels():
        shrink = VARIANCE / (VARIANCE + sigma**2)
        mean = MEAN + shrink.sqrt() * (mean - MEAN)
        expected = shrink * (expected + sigma**2)
    torch.testing.assert_close(y[0], mean)
    torch.testing.assert_close(variance, expected)
    # Only the start is not exact: q / sigma_max^2 = 3e-4 relative in variance, sqrt(q) / sigma_max in mean.
    assert (expected / VARIANCE - 1).abs().max() < 4e-4
    assert (mean - MEAN).abs().max() < 6e-3
    assert e.calls_per_sample == len(e.levels()) == steps


def test_one_call_ends_where_the_flow_of_edm_ends_from_the_same_noise():
    base = torch.zeros(3, 2, 4, dtype=torch.float64)
    one = consistency(steps=1, sigma_max=80.0).sample(EXACT, base, {}, key(3, 5))
    edm = EDM(sigma_data=DATA, steps=200, sigma_min=1e-3, sampler=RK4())
    torch.testing.assert_close(edm.sample(TEACHER, base, {}, key(3, 5)), one, rtol=1e-4, atol=1e-4)


def test_levels_fall_from_sigma_max():
    assert Consistency(steps=1).levels() == [20.0]
    assert Consistency(steps=2, sigma_data=(1.0, 7.0)).levels() == pytest.approx([20.0, 10.0])
    thirds = [20.0, 2 * math.tan(math.pi / 3), 2 * math.tan(math.pi / 6)]
    assert Consistency(steps=3).levels() == pytest.approx(thirds)
    assert Consistency(steps=3, sigma_max=80.0, between=(4.0, 0.5)).levels() == [80.0, 4.0, 0.5]


def test_members_do_not_depend_on_how_they_are_asked_for():
    net, batch = Small(), data()
    e, many = consistency(steps=3), key(6, 8)
    whole = e.sample(net, batch.base, batch.cond, many)
    again = e.sample(net, batch.base, batch.cond, replace(many, member=many.member.flip(0))).flip(1)
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-12)
    for chunk in (1, 5, 48):
        part = e.sample(net, batch.base, batch.cond, many, chunk=chunk)
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
    few = Key(1, many.init[2:4], many.member[3:5])
    part = e.sample(net, batch.base[2:4], {"state": batch.base[2:4]}, few)
    torch.testing.assert_close(part, whole[2:4, 3:5], rtol=0, atol=1e-12)
    rows = bind(e, net).sample(
        batch.base.repeat_interleave(8, 0), {"state": batch.base.repeat_interleave(8, 0)}, many.rows()
    )
    torch.testing.assert_close(rows.view_as(whole), whole, rtol=0, atol=1e-12)
    assert not rows.requires_grad
    assert (whole.std(1) > 0).all()
    low = e.sample(net, batch.base.float(), {"state": batch.base.float()}, many)
    torch.testing.assert_close(low.double(), whole, rtol=1e-4, atol=1e-4)


# Rollout


class Direct:
    def inputs(self, previous, current, known, /):
        return current, {"state": current}

    def advance(self, current, output, /):
        return 0.5 * current + output


def test_rollouts_train_through_the_sampler():
    g = torch.Generator().manual_seed(4)
    states = torch.randn(3, 4, 2, 3, generator=g, dtype=torch.float64)
    batch = RolloutBatch(previous=states[:, 0], current=states[:, 1], targets=states[:, 2:])
    net, results = Small(), []
    for again in (False, True):
        rollout = Rollout(
            estimator=consistency(steps=2, sigma_max=5.0), transition=Direct(), checkpoint=again
        )
        loss = rollout.loss(net, batch, key(3, 1)).loss
        results.append(torch.autograd.grad(loss, net.weight)[0])
    torch.testing.assert_close(results[0], results[1])
    values = []
    for step in (-1e-5, 1e-5):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            moved.weight[0, 1] += step
            values.append(float(rollout.loss(moved, batch, key(3, 1)).loss))
    assert float(results[0][0, 1]) == pytest.approx((values[1] - values[0]) / 2e-5, rel=1e-5)
    with pytest.raises(ValueError, match="Consistency calls the network 5 times"):
        Rollout(estimator=Consistency(steps=5), transition=Direct())


# Distillation

A = torch.tensor([[0.8, 0.2], [-0.1, 0.7]])
Q = torch.tensor([[0.30, 0.18], [0.18, 0.20]])


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.spec, g = SPEC, torch.Generator().manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(7, 64),
            torch.nn.SiLU(),
            torch.nn.Linear(64, 64),
            torch.nn.SiLU(),
            torch.nn.Linear(64, 2),
        )
        for p in self.body.parameters():
            bound = p.shape[-1] ** -0.5 if p.ndim == 2 else 0.0
            torch.nn.init.uniform_(p, -bound, bound, generator=g)

    def predict(self, x, cond, /, *, t, noise):
        return self.body(torch.cat([cond["state"], x, t[:, None], t[:, None].sin(), t[:, None].cos()], 1))


def train(net, estimator, steps, rate):
    g = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x0 = torch.randn(256, 2, generator=g)
        target = x0 @ A.T + torch.randn(256, 2, generator=g) @ torch.linalg.cholesky(Q).T
        batch = Batch(base=x0, target=target, cond={"state": x0})
        if isinstance(estimator, Consistency):
            estimator = replace(estimator, warmup=min(1.0, 5 * step / steps))
        out = estimator.loss(net, batch, Key(1, torch.arange(256), torch.tensor([step])))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        schedule.step()
    return net


def expected_distance(d, sd):
    """E|d - sd z|, z ~ N(0, 1)."""
    u = d / sd
    return sd * (u * torch.erf(u / 2**0.5) + (2 / math.pi) ** 0.5 * torch.exp(-u.square() / 2))


def quality(estimator, net):
    """CRPS over that of the true law (truth integrated out), and correlation."""
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        y = estimator.sample(net, x, {"state": x}, Key(9, torch.arange(32), torch.arange(128)))
    m, sd = y.shape[1], Q.diagonal().sqrt()
    skill = expected_distance(y - (x @ A.T)[:, None], sd).mean((0, 1))
    pairs = (y[:, :, None] - y[:, None]).abs().sum((1, 2)).mean(0) / (m * (m - 1))
    ratio = ((skill - 0.5 * pairs) * math.pi**0.5 / sd).mean()
    away = y - y.mean(1, keepdim=True)
    cov = torch.einsum("bmi,bmj->ij", away, away)
    return float(ratio), float(cov[0, 1] / (cov[0, 0] * cov[1, 1]).sqrt())


def test_distillation_keeps_the_joint_law_in_one_and_two_steps():
    law = Consistency().training
    teacher = train(Toy(), EDM(training=law), 500, 6e-3).requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_()
    e = Consistency(steps=1, teacher=teacher, floor=1.0)
    assert quality(e, teacher)[0] > 1.1  # one step of the teacher is not a sampler
    train(student, e, 500, 3e-3)
    for steps in (1, 2):
        ratio, correlation = quality(replace(e, steps=steps), student)
        assert 0.99 < ratio < 1.02
        assert correlation == pytest.approx(0.735, abs=0.08)


# Settings


def test_settings_survive_json_and_the_teacher_is_left_out():
    e = consistency(steps=3, between=(4.0, 0.5), warmup=0.5, teacher=TEACHER)
    assert "teacher" not in e.to_dict()
    assert "Gaussian" not in repr(e)
    assert estimator_from_dict(e.to_dict()) == replace(e, teacher=None)
    assert estimator_from_dict(Consistency().to_dict()) == Consistency()
    assert Consistency().required(2) == SPEC
    assert not EnsembleCRPS().required(2).supports_jvp


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 2, "between": (90.0,)}, "2 steps need sigma_max and 1 falling positive levels"),
        ({"steps": 3, "between": (4.0,)}, "3 steps need sigma_max and 2 falling"),
        ({"steps": 2, "between": (0.0,)}, "falling positive"),
        ({"sigma_max": math.inf}, "falling positive"),
        ({"sigma_max": math.nan, "steps": 1}, "falling positive"),
        ({"warmup": 1.5}, r"warmup must be inside \[0, 1\]"),
        ({"floor": 0.0}, "floor must be positive"),
        ({"sigma_data": -1.0}, "sigma_data must be positive"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Consistency(**settings)
