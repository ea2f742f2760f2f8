"""Learned weights of noise levels: optimum and gradient in closed form, masks, precision, training."""
# ruff: noqa: ARG002 - signatures are those of the protocols

import math

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from wx_estimators import (
    EDM,
    Batch,
    EnsembleCRPS,
    FlowMatching,
    Key,
    LossOut,
    NetSpec,
    Regression,
    StochasticInterpolant,
)
from wx_estimators._uncertainty import UncertaintyWeight
from wx_estimators._weights import reduce

ESTIMATORS = pytest.mark.parametrize(
    "estimator",
    [EDM(sigma_data=0.7), FlowMatching(), StochasticInterpolant()],
    ids=lambda e: type(e).__name__,
)


class Small(torch.nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.spec = NetSpec(out_channels=2, takes_x=True, takes_t=True)
        g = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(0.3 * torch.randn(2, 5, generator=g, dtype=torch.float64))

    def predict(self, x, cond, /, *, t, noise):
        label = t[:, None, None].expand_as(x[:, :1])
        fields = torch.cat([x, cond["state"], label], 1)
        return torch.einsum("oi,nis->nos", self.weight.to(x), fields.sin())


def batch(rows=6, dtype=torch.float64, **settings):
    g = torch.Generator().manual_seed(1)
    base, target = torch.randn(2, rows, 2, 3, generator=g, dtype=torch.float64).to(dtype)
    return Batch(base=base, target=target, cond={"state": base}, **settings)


def key(rows=6, members=2):
    return Key(1, torch.arange(rows), torch.arange(members))


def made(sums, counts, label):
    return reduce(sums, counts, None, label)


def fitted(u, out, steps=60):
    """u at the minimum of the convex loss, by Newton steps with line search."""
    u = u.double()
    optimizer = torch.optim.LBFGS(u.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = u(out)
        loss.backward()
        return loss

    optimizer.step(closure)
    return u


def test_the_optimum_is_the_log_of_the_mean_error_of_a_level():
    """Errors s(c) chi2_3 / 3 with s(c) known: exp(u) must be E[l | c] = s(c), per channel."""
    g = torch.Generator().manual_seed(0)
    label = torch.linspace(-1.2, 1.2, 3000, dtype=torch.float64)
    scale = torch.stack([torch.exp(2.0 * label), 0.2 + label.square()], 1)
    chi2 = torch.randn(len(label), 2, 3, generator=g, dtype=torch.float64).square().mean(-1)
    counts = torch.full((len(label), 2), 5.0, dtype=torch.float64)
    few = slice(None, None, 10)
    exact = made(5.0 * scale[few], counts[few], label[few])
    u = fitted(UncertaintyWeight(2, width=32), exact, steps=150)
    assert (u.level(label) / scale - 1)[label.abs() < 1.1].abs().max() < 0.02
    # With random errors, 33 coefficients have a sampling error of sqrt(2 / 3 * 33 / 3000) = 9 %.
    noisy = fitted(UncertaintyWeight(2, width=32), made(5.0 * scale * chi2, counts, label), steps=40)
    ratio = noisy.level(label) / scale
    assert (ratio - 1).square().mean().sqrt() < 0.15
    assert (ratio.mean(0) - 1).abs().max() < 0.04
    # The value there is 1 + E[ln s]: every level counts alike.
    assert float(u(exact).detach()) == pytest.approx(1.0 + float(scale[few].log().mean()), abs=1e-3)


def test_one_u_for_all_channels_is_the_mean_over_channels():
    label = torch.linspace(-1, 1, 500, dtype=torch.float64)
    sums = torch.stack([label.exp(), 3.0 * label.exp()], 1)
    counts = torch.tensor([[1.0, 2.0]], dtype=torch.float64).expand(500, 2)
    u = fitted(UncertaintyWeight(width=32), made(sums, counts, label), steps=400)
    assert u.level(label).shape == (500, 1)
    assert (u.level(label)[:, 0] / (4.0 / 3.0 * label.exp()) - 1).abs()[20:-20].max() < 0.02


@ESTIMATORS
def test_a_new_weight_gives_the_plain_loss_and_its_gradient(estimator):
    net, weigh = Small(), UncertaintyWeight().double()
    out = estimator.loss(net, batch(), key())
    (plain,) = torch.autograd.grad(out.loss, net.weight, retain_graph=True)
    loss = weigh(out)
    torch.testing.assert_close(loss, out.loss)
    torch.testing.assert_close(torch.autograd.grad(loss, net.weight)[0], plain)
    assert out.label.shape == (12,)
    assert out.row_sums.shape == out.row_counts.shape == (12, 2)
    torch.testing.assert_close(out.row_sums.sum() / out.row_counts.sum(), out.loss)


@ESTIMATORS
def test_the_gradient_of_a_network_is_that_of_its_rows_by_exp_minus_u(estimator):
    net, weigh = Small(), UncertaintyWeight(2).double()
    torch.nn.init.normal_(weigh.weight, std=0.3, generator=torch.Generator().manual_seed(3))
    out = estimator.loss(net, batch(), key())
    level = weigh.level(out.label)
    weigh(out).backward()
    expected = torch.zeros_like(net.weight)
    for row in range(12):
        for channel in range(2):
            (part,) = torch.autograd.grad(out_of(estimator, net, row, channel), net.weight)
            expected += part / level[row, channel] / 24
    torch.testing.assert_close(net.weight.grad, expected)


def out_of(estimator, net, row, channel):
    """Mean error of one row and channel, by a weight that leaves out everything else."""
    weight = torch.zeros(6, 2, 3, dtype=torch.float64)
    weight[row // 2, channel] = 1.0
    whole = estimator.loss(net, batch(weight=weight), key())
    # Both members of the initial condition count; take the one asked for.
    return whole.row_sums[row, channel] / whole.row_counts[row, channel]


def test_scaling_the_error_shifts_u_and_the_loss():
    """l -> a l is met by u -> u + ln a: the loss grows by ln a and the network's gradient stays."""
    g = torch.Generator().manual_seed(0)
    label = torch.rand(7, generator=g, dtype=torch.float64)
    sums = torch.rand(7, 2, generator=g, dtype=torch.float64).requires_grad_()
    counts = torch.rand(7, 2, generator=g, dtype=torch.float64)
    weigh = UncertaintyWeight(2).double()
    torch.nn.init.normal_(weigh.weight, std=0.3, generator=g)
    first = weigh(made(sums, counts, label))
    (one,) = torch.autograd.grad(first, sums)
    with torch.no_grad():
        weigh.bias += math.log(5.0)
    second = weigh(made(5.0 * sums, counts, label))
    (two,) = torch.autograd.grad(second, sums)
    torch.testing.assert_close(second, first + math.log(5.0))
    torch.testing.assert_close(two, one)
    # Weights are relative.
    torch.testing.assert_close(weigh(made(35.0 * sums, 7.0 * counts, label)), second)


@ESTIMATORS
def test_masked_points_and_rows_take_no_part(estimator):
    data, net, weigh = batch(), Small(), UncertaintyWeight(2).double()
    torch.nn.init.normal_(weigh.weight, std=0.3, generator=torch.Generator().manual_seed(3))
    holes = data.target.clone()
    holes[2:4] = torch.nan
    holes[0, 1, 1] = torch.nan
    gaps = Batch(base=data.base, target=holes, cond=data.cond)
    out = estimator.loss(net, gaps, key())
    assert out.row_counts[4:8].abs().max() == 0
    loss = weigh(out)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in (net.weight, weigh.weight))
    # The same rows without the missing ones.
    kept = [0, 1, 4, 5]
    few = Batch(base=data.base[kept], target=holes[kept], cond={"state": data.base[kept]})
    alone = weigh(estimator.loss(net, few, Key(1, torch.tensor(kept), torch.arange(2))))
    torch.testing.assert_close(loss, alone)
    nothing = Batch(base=data.base, target=torch.full_like(holes, torch.nan), cond=data.cond)
    assert float(weigh(estimator.loss(net, nothing, key())).detach()) == 0.0


@pytest.mark.parametrize(
    ("dtype", "autocast", "error"),
    [(torch.float32, False, 2e-6), (torch.float32, True, 0.03), (torch.bfloat16, True, 0.03)],
)
def test_low_precision(dtype, autocast, error):
    net, weigh = Small(), UncertaintyWeight()
    torch.nn.init.normal_(weigh.weight, std=0.1, generator=torch.Generator().manual_seed(3))
    double = weigh(EDM().loss(net, batch(), key()))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        low = weigh(EDM().loss(net, batch(dtype=dtype), key()))
    assert low.dtype == torch.float32
    assert float(low.detach()) == pytest.approx(float(double.detach()), rel=error)
    low.backward()
    assert weigh.weight.grad.dtype == torch.float32
    assert weigh.weight.grad.isfinite().all()


def test_averaged_gradients_of_equal_shares_are_those_of_the_batch():
    """What DDP computes, rank by rank, in one process; and the module itself in a DDP of one rank."""
    data, weigh = batch(), UncertaintyWeight(2).double()
    torch.nn.init.normal_(weigh.weight, std=0.3, generator=torch.Generator().manual_seed(3))
    whole, parts = [], torch.zeros_like(weigh.weight)
    for rows in (range(6), range(3), range(3, 6)):
        net, pick = Small(), list(rows)
        share = Batch(base=data.base[pick], target=data.target[pick], cond={"state": data.base[pick]})
        out = EDM().loss(net, share, Key(1, torch.tensor(pick), torch.arange(2)))
        weigh.zero_grad()
        weigh(out).backward()
        if len(pick) == 6:
            whole = weigh.weight.grad.clone()
        else:
            parts += weigh.weight.grad / 2
    torch.testing.assert_close(parts, whole)


def test_a_ddp_wrapper_gives_the_same_loss(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        weigh, net = UncertaintyWeight(2).double(), Small()
        out = EDM().loss(net, batch(), key())
        wrapped = DistributedDataParallel(weigh)
        loss = wrapped(out)
        loss.backward()
        torch.testing.assert_close(loss, out.loss)
        assert weigh.weight.grad.abs().max() > 0
    finally:
        dist.destroy_process_group()


def test_state_seed_and_global_randomness():
    before = torch.random.get_rng_state()
    first, second, other = UncertaintyWeight(3), UncertaintyWeight(3), UncertaintyWeight(3, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.frequency, second.frequency)
    assert not torch.equal(first.frequency, other.frequency)
    torch.nn.init.normal_(first.weight, generator=torch.Generator().manual_seed(1))
    other.load_state_dict(first.state_dict())
    label = torch.linspace(-1, 1, 5)
    assert torch.equal(other.level(label), first.level(label))
    assert first.level(label).shape == (5, 3)


def trained(weigh, steps=300, rows=256):
    """A small EDM of x' = 0.8 x + 0.5 xi, with or without learned weights; returns the network."""
    g = torch.Generator().manual_seed(2)
    spec = EDM().required(1)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.spec = spec
            self.body = torch.nn.Sequential(torch.nn.Linear(3, 48), torch.nn.SiLU(), torch.nn.Linear(48, 1))
            for p in self.body.parameters():
                torch.nn.init.uniform_(p, -0.5, 0.5, generator=g)

        def predict(self, x, cond, /, *, t, noise):
            return self.body(torch.cat([x, cond["state"], t[:, None]], 1))

    net = Net()
    extra = [] if weigh is None else list(weigh.parameters())
    optimizer = torch.optim.Adam([*net.parameters(), *extra], 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x0 = torch.randn(rows, 1, generator=g)
        target = 0.8 * x0 + 0.5 * torch.randn(rows, 1, generator=g)
        data = Batch(base=x0, target=target, cond={"state": x0})
        out = EDM().loss(net, data, Key(1, torch.arange(rows), torch.tensor([step])))
        optimizer.zero_grad()
        (out.loss if weigh is None else weigh(out)).backward()
        optimizer.step()
        schedule.step()
    return net


def moments_error(net):
    """Error of conditional mean and standard deviation of samples, in units of the latter, 0.5."""
    x = torch.linspace(-2, 2, 32)[:, None]
    with torch.no_grad():
        y = EDM().sample(net, x, {"state": x}, Key(9, torch.arange(32), torch.arange(256)))
    mean = (y.mean(1) - 0.8 * x).square().mean().sqrt() / 0.5
    return float(mean), abs(float(y.var(1).mean().sqrt()) / 0.5 - 1)


def test_a_trained_edm_learns_its_levels_and_loses_nothing():
    weigh = UncertaintyWeight()
    plain, weighed = moments_error(trained(None)), moments_error(trained(weigh))
    for error in (plain, weighed):
        assert error[0] < 0.15  # the sampling error of 256 members is 0.0625
        assert error[1] < 0.1
    # E |F - F*|^2 of the best F: (sigma^2 + 1) / sigma^2 times the posterior variance, q = 1/4.
    sigma2 = torch.linspace(-2.4, 0.0, 9).mul(2.0).exp()
    expected = (sigma2 + 1) / sigma2 * (0.25 * sigma2 / (0.25 + sigma2))
    found = weigh.level(sigma2.log() / 8)[:, 0]
    assert (found / expected - 1).abs().max() < 0.25


def test_errors_say_what_to_do():
    data, weigh = batch(), UncertaintyWeight(3)

    class Plain(Small):
        def predict(self, x, cond, /, *, t, noise):
            return cond["state"] * self.weight.sum()

    net = Plain()
    net.spec = NetSpec(out_channels=2, takes_x=False, takes_t=False)
    with pytest.raises(ValueError, match=r"tells its network no time.*LossOut\.loss"):
        weigh(Regression().loss(net, data, key()))
    net.spec = NetSpec(out_channels=2, takes_x=False, takes_t=False, noise=(4,))
    out = EnsembleCRPS(noise_shape=(4,)).loss(net, data, key())
    assert out.label is None
    assert isinstance(out, LossOut)
    with pytest.raises(ValueError, match="3 channels but the loss has 2"):
        weigh(EDM().loss(Small(), data, key()))
    with pytest.raises(ValueError, match="width and channels must be positive"):
        UncertaintyWeight(0)
