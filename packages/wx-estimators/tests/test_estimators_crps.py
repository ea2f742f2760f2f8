"""The CRPS estimator: chunks, recomputation, antithetic pairs, ensembles and grids spread over ranks."""
# ruff: noqa: ARG002 - signatures are those of the protocols

import math
import multiprocessing
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from wx_estimators import (
    CRPS,
    Batch,
    DifferenceCRPS,
    EnergyScore,
    EnsembleCRPS,
    Key,
    NetSpec,
    PatchMeanScore,
    ProcessGroupComm,
    SpectralCRPS,
    SumScore,
    VariogramScore,
)

SHAPE = (2, 6, 8)
CLOSE = {"atol": 1e-13, "rtol": 1e-12}


class Rows(torch.nn.Module):
    """A network on rows of latitude: wide inside, so that its activations dwarf its output."""

    def __init__(self, noise, width=40):
        super().__init__()
        self.spec = NetSpec(out_channels=2, takes_x=False, takes_t=False, noise=noise)
        g = torch.Generator().manual_seed(0)
        self.inside = torch.nn.Parameter(torch.randn(width, 4, generator=g, dtype=torch.float64) / 2)
        self.outside = torch.nn.Parameter(torch.randn(2, width, generator=g, dtype=torch.float64) / 6)
        self.calls = 0

    def predict(self, x, cond, /, *, t, noise):
        self.calls += 1
        if noise.ndim == 2:
            noise = noise[:, :2, None, None].expand(-1, -1, *cond["state"].shape[2:])
        y = torch.cat([cond["state"], noise], 1)
        hidden = torch.einsum("dc,nchw->ndhw", self.inside, y).tanh()
        return torch.einsum("cd,ndhw->nchw", self.outside, hidden)


def setting(batch=3, members=4, noise=SHAPE):
    g = torch.Generator().manual_seed(1)
    state, target = torch.randn(2, batch, *SHAPE, generator=g, dtype=torch.float64)
    weight = torch.rand(6, 1, generator=g, dtype=torch.float64) + 0.5
    target[0, :, 2, 3] = math.nan
    key = Key(5, 100 + torch.arange(batch), torch.arange(members))
    return Rows(noise), Batch(base=state, target=target, cond={"state": state}, weight=weight), key


def loss_and_gradient(estimator, batch, key):
    net = Rows(estimator.noise_shape)
    out = estimator.loss(net, batch, key)
    return out, torch.autograd.grad(out.loss, list(net.parameters())), net.calls


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("noise", [(3,), SHAPE], ids=["vector", "fields"])
@pytest.mark.parametrize("chunk", [1, 5, 12, 50])
def test_chunks_and_recomputation_change_nothing(chunk, noise, recompute):
    _, batch, key = setting()
    whole = EnsembleCRPS(members=4, noise_shape=noise)
    expected, gradient, _ = loss_and_gradient(whole, batch, key)
    parts = replace(whole, chunk=chunk, recompute=recompute)
    got, same, calls = loss_and_gradient(parts, batch, key)
    torch.testing.assert_close(got.loss, expected.loss, **CLOSE)
    torch.testing.assert_close(got.members, expected.members, **CLOSE)
    for a, b in zip(same, gradient, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    assert calls == -(-12 // chunk) * (1 + recompute)
    assert EnsembleCRPS.from_dict(parts.to_dict()) == parts


def kept_bytes(estimator, batch, key):
    """Bytes that the loss keeps for its backward pass."""
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = estimator.loss(Rows(estimator.noise_shape), batch, key)
    assert torch.isfinite(out.loss)
    return sum(kept.values())


@pytest.mark.parametrize("members", [4, 16])
def test_recomputation_keeps_fields_and_no_activations(members):
    _, batch, key = setting(members=members)
    estimator = EnsembleCRPS(members=members, noise_shape=(3,))
    field = 3 * members * math.prod(SHAPE) * 8
    assert kept_bytes(estimator, batch, key) > 20 * field
    assert kept_bytes(replace(estimator, chunk=2, recompute=True), batch, key) < 2 * field


class Noise(torch.nn.Module):
    """x = xi: the law is exactly N(0, 1)."""

    spec = NetSpec(out_channels=1, takes_x=False, takes_t=False, noise=(1,))

    def predict(self, x, cond, /, *, t, noise):
        return noise


def test_antithetic_members_are_opposite_in_the_loss_only_and_bias_the_fair_score():
    n = 4000
    target = torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    batch = Batch(base=target, target=target, cond={"state": target})
    pairs = EnsembleCRPS(members=4, noise_shape=(1,), antithetic=True)
    single = Key(1, torch.arange(n), torch.tensor([3]))
    members = pairs.loss(Noise(), batch, single).members[..., 0]
    assert torch.equal(members[:, 0], -members[:, 1])
    assert torch.equal(members[:, 2], -members[:, 3])
    same = (members[:, 0].abs() - members[:, 2].abs()).abs() < 1e-6
    assert int(same.sum()) < 3
    assert abs(float(members.std()) - 1) < 0.03
    key = Key(1, torch.arange(n), torch.arange(4))
    plain = replace(pairs, antithetic=False)
    assert torch.equal(
        pairs.sample(Noise(), target, {"state": target}, key),
        plain.sample(Noise(), target, {"state": target}, key),
    )
    # M = 2: E|x - y| = 2 / sqrt(pi), and |x_1 - x_2| = 2 |xi| with mean 2 sqrt(2 / pi), not 2 / sqrt(pi).
    for antithetic, exact in ((True, 2 / math.pi**0.5 - (2 / math.pi) ** 0.5), (False, 1 / math.pi**0.5)):
        two = EnsembleCRPS(members=2, noise_shape=(1,), antithetic=antithetic)
        loss = float(two.loss(Noise(), batch, single).loss)
        assert abs(loss - exact) < 4 * 0.7 / math.sqrt(n)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="come in pairs, got members = 3"):
        EnsembleCRPS(members=3, antithetic=True)
    with pytest.raises(ValueError, match="chunk must be a positive number of rows"):
        EnsembleCRPS(chunk=0)
    with pytest.raises(ValueError, match="member_group needs members"):
        ProcessGroupComm(member_group=object())


def test_without_groups_nothing_is_communicated():
    comm, x = ProcessGroupComm(), torch.ones(2, 3, requires_grad=True)
    assert comm.gather_members(x) is x
    assert comm.sum_space(x) is x


# Ranks

SCORE = SumScore(
    terms=(CRPS(alpha=0.95), EnergyScore(), EnergyScore(over="space"), SpectralCRPS(), DifferenceCRPS()),
    factors=(1.0, 0.5, 0.3, 0.2, 0.1),
)
# Rows of latitude lie whole on a rank; pairs of rows, across ranks, are not part of the score.
BANDS = {2: (4, 2), 3: (1, 3, 2)}
SHARES = {2: (3, 1), 3: (1, 1, 2)}


ROWS = SumScore(
    terms=(
        CRPS(alpha=0.95),
        EnergyScore(),
        EnergyScore(over="space"),
        EnergyScore(patch=(1, 4)),
        SpectralCRPS(),
        SpectralCRPS(kernel="parts"),
        DifferenceCRPS(steps=((0, 1),)),
        VariogramScore(steps=((0, 1),)),
        PatchMeanScore(patch=(1, 4)),
    ),
    factors=(1.0, 0.5, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.4),
)


def mean_over_ranks(gradients):
    """What DDP does."""
    out = []
    for g in gradients:
        total = g.clone()
        dist.all_reduce(total)
        out.append(total / dist.get_world_size())
    return out


def split_members(rank, world):
    _, batch, key = setting()
    shares = SHARES[world]
    start = sum(shares[:rank])
    comm = ProcessGroupComm(members=shares)
    mine = replace(key, member=key.member[start : start + shares[rank]])
    estimator = EnsembleCRPS(members=4, noise_shape=SHAPE, score=SCORE, comm=comm, chunk=2, recompute=True)
    out, gradient, _ = loss_and_gradient(estimator, batch, mine)
    wrong = replace(key, member=key.member[: shares[rank] + 1])
    with pytest.raises(ValueError, match=f"this rank has {shares[rank] + 1} members but"):
        estimator.loss(Rows(SHAPE), batch, wrong)
    assert torch.equal(out.members.detach()[:, 0], SAMPLES[:, start])
    return out, mean_over_ranks(gradient)


def split_space(rank, world):
    _, batch, key = setting(noise=(3,))
    start = sum(BANDS[world][:rank])
    band = slice(start, start + BANDS[world][rank])
    comm = ProcessGroupComm(space_group=dist.group.WORLD)
    part = Batch(
        base=batch.base[:, :, band],
        target=batch.target[:, :, band],
        cond={"state": batch.cond["state"][:, :, band]},
        weight=batch.weight[band],
    )
    estimator = EnsembleCRPS(members=4, noise_shape=(3,), score=ROWS, comm=comm)
    out, gradient, _ = loss_and_gradient(estimator, part, key)
    return out, mean_over_ranks(gradient)


def split_both(rank, world):
    """Two ranks for members by two for space."""
    grid = torch.arange(world).view(2, -1)
    members = [dist.new_group(column.tolist()) for column in grid.T]
    space = [dist.new_group(row.tolist()) for row in grid]
    share, column = divmod(rank, grid.shape[1])
    band = (slice(0, 4), slice(4, 6))[column]
    comm = ProcessGroupComm(members=(3, 1), member_group=members[column], space_group=space[share])
    _, batch, key = setting(noise=(3,))
    part = Batch(
        base=batch.base[:, :, band],
        target=batch.target[:, :, band],
        cond={"state": batch.cond["state"][:, :, band]},
        weight=batch.weight[band],
    )
    mine = replace(key, member=key.member[(0, 3)[share] : (3, 4)[share]])
    estimator = EnsembleCRPS(members=4, noise_shape=(3,), score=ROWS, comm=comm)
    out, gradient, _ = loss_and_gradient(estimator, part, mine)
    return out, mean_over_ranks(gradient)


def whole(case):
    noise = SHAPE if case is split_members else (3,)
    score = SCORE if case is split_members else ROWS
    _, batch, key = setting(noise=noise)
    return loss_and_gradient(EnsembleCRPS(members=4, noise_shape=noise, score=score), batch, key)


SAMPLES = whole(split_members)[0].members.detach()


def run_rank(case, rank, world, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    expected, gradient, _ = whole(case)
    got, same = case(rank, world)
    torch.testing.assert_close(got.loss, expected.loss, **CLOSE)
    torch.testing.assert_close(got.per_channel, expected.per_channel, **CLOSE)
    assert got.count == pytest.approx(float(expected.count), rel=1e-12)
    for a, b in zip(same, gradient, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    # A rank that leaves while another still talks to it ends in an abort.
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("case", "world"),
    [(split_members, 2), (split_members, 3), (split_space, 2), (split_space, 3), (split_both, 4)],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_ranks_have_the_loss_and_the_gradient_of_one_process(case, world, tmp_path):
    context = multiprocessing.get_context("fork")
    common = (world, tmp_path / "store")
    ranks = [context.Process(target=run_rank, args=(case, rank, *common)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0] * world
