"""Random numbers of the global index: against the published generator, and alike on every layout."""

import math

import pytest
import torch
import torch.nn.functional as F
from shard_ranks import close, layouts, names, random, registry, shard
from torch.distributed.tensor import Replicate, Shard
from torch.utils.checkpoint import checkpoint

import shardtensor
from shardtensor import ShardSpec, ShardTensor, UnsupportedShardedOp, traffic
from shardtensor._random import at_least, numbers, philox

CASES, case = registry()

# Random123 (Salmon et al. 2011), kat_vectors, philox4x32 with 10 rounds: counter, key, words.
KNOWN = (
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter, key, words):
    assert tuple(int(word) for word in philox([torch.tensor(c) for c in counter], key)) == words


def test_numbers_of_a_block_are_those_of_the_whole():
    """Also where a block starts within the four words of a counter, and over several chunks of counters."""
    shape = (3, 5, 40_001)
    identity = lambda words: words  # noqa: E731
    pairs = lambda words: words[:2]  # noqa: E731
    for transform, lanes in ((identity, 4), (pairs, 2)):
        whole = numbers((7, 1), shape, [slice(0, n) for n in shape], torch.device("cpu"), transform, lanes)
        for block in (
            (slice(1, 3), slice(2, 4), slice(5, 31_234)),
            (slice(0, 0), slice(0, 5), slice(3, 4)),
            (slice(2, 3), slice(0, 5), slice(6, 6)),
        ):
            part = numbers((7, 1), shape, block, torch.device("cpu"), transform, lanes)
            assert torch.equal(part, whole[block])
    word = philox([torch.tensor(11), torch.tensor(0), torch.tensor(9), torch.tensor(3)], (5, 2))
    one = numbers(
        (5 + (2 << 32), 3), shape, [slice(2, 3), slice(1, 2), slice(38, 39)], torch.device("cpu"), identity
    )
    assert int(one) == int(word[2])


def test_draws_and_seeds_are_independent():
    block = (slice(0, 100), slice(0, 1000))
    draws = [
        numbers(draw, (100, 1000), block, torch.device("cpu"), at_least(0.5)).double() * 2 - 1
        for draw in ((0, 0), (0, 1), (1, 0), (1 << 40, 0))
    ]
    for i, a in enumerate(draws):
        assert abs(float(a.mean())) < 4 / math.sqrt(a.numel())
        for b in draws[:i]:
            assert abs(float((a * b).mean())) < 4 / math.sqrt(a.numel())


DRAWN = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "torch_dropout": lambda x: torch.dropout(x, 0.3, True),
    "dropout1d": lambda x: F.dropout1d(x[:, :, :, 0], 0.3),
    "dropout2d": lambda x: F.dropout2d(x, 0.3),
    "dropout3d": lambda x: F.dropout3d(x, 0.3),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.3, training=True),
    "module": torch.nn.Dropout(0.4),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "rand_like": torch.rand_like,
    "rand_like32": lambda x: torch.rand_like(x, dtype=torch.float32),
    "randn_like": torch.randn_like,
    "randint_like": lambda x: torch.randint_like(x, 3, 20),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli_p": lambda x: torch.bernoulli(x, 0.2),
    "bernoulli_": lambda x: x.detach().clone().bernoulli_(0.2),
    "bernoulli_tensor": lambda x: x.detach().clone().bernoulli_(x.detach().sigmoid()),
    "normal_": lambda x: x.detach().clone().normal_(1.0, 2.0),
    "uniform_": lambda x: x.detach().clone().uniform_(-1, 3),
    "exponential_": lambda x: x.detach().clone().exponential_(2.0),
}


def whole(x, mesh):
    """Returns x replicated, with a gradient."""
    spec = ShardSpec.create(mesh, [Replicate()] * mesh.ndim, x.shape)
    return ShardTensor(x.detach().clone().requires_grad_(), spec)


@case()
def the_same_numbers_on_any_layout(mesh):
    x = random(3, 6, 7, 5)
    for name, function in DRAWN.items():
        plain = whole(x, mesh)
        shardtensor.manual_seed(11)
        function(plain)  # the second draw counts
        want = function(plain)
        assert not torch.equal(want.local, function(plain).local), name
        if want.requires_grad:
            want.local.backward(random(*want.shape, seed=3))
        for dim in (0, 1, 2, 3) if name != "dropout1d" else (0, 1, 2):
            for rows in layouts(mesh, x.shape[dim]):
                part = shard(x, mesh, dim, rows)
                shardtensor.manual_seed(11)
                with traffic() as seen:
                    function(part)
                    got = function(part)
                assert not len(seen)
                assert got.dtype == want.dtype
                close(got, want.local, note=(name, dim, rows))
                assert got.requires_grad == want.requires_grad, name
                if got.requires_grad:
                    got.local.backward(random(*want.shape, seed=3)[got.local_slices()])
                    close(part.grad, plain.local.grad, note=(name, dim, rows))


@case("2x2")
def the_same_numbers_on_a_grid(mesh):
    x = random(2, 6, 7, 5)
    for name, function in DRAWN.items():
        shardtensor.manual_seed(11)
        want = function(whole(x, mesh))
        shardtensor.manual_seed(11)
        dims = (2, 3) if name != "dropout1d" else (1, 2)
        close(function(shard(x, mesh, dims, {0: (5, x.shape[dims[0]] - 5)})), want.local, note=name)


@case("2")
def dropout_values(mesh):
    """Every element is dropped or scaled; in place too; the same mask for every dtype."""
    x = random(40, 50)
    masks = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        shardtensor.manual_seed(1)
        part = shard(x.to(dtype), mesh, 0, (30, 10))
        out = F.dropout(part, 0.25)
        masks.append(out.local != 0)
        torch.testing.assert_close(out.local[masks[-1]], part.local[masks[-1]] * (1 / 0.75))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])
    shardtensor.manual_seed(1)
    part = shard(x, mesh, 0, (30, 10)).detach()
    assert F.dropout(part, 0.25, inplace=True).local is part.local
    assert torch.equal(part.local != 0, masks[0])
    assert not F.dropout(part, 1.0).local.any()
    assert F.dropout(part, 0.5, training=False) is part
    channels = F.dropout2d(shard(random(8, 9, 4, 3), mesh, 2), 0.5).local
    dropped = channels == 0
    assert torch.equal(dropped, dropped[..., :1, :1].expand_as(dropped))


@case("1")
def distributions(mesh):
    """Moments and ranges on 40000 numbers, to four standard errors."""
    shardtensor.manual_seed(5)
    x = shard(torch.zeros(200, 200), mesh, 0).detach()
    root = 200
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        flat = torch.rand_like(x, dtype=dtype).local
        assert flat.dtype == dtype
        assert float(flat.min()) >= 0
        assert float(flat.max()) < 1
        assert abs(float(flat.double().mean()) - 0.5) < 4 * 0.29 / root + 2.0**-9
        bell = torch.randn_like(x, dtype=dtype).local.double()
        assert abs(float(bell.mean())) < 4 / root
        assert abs(float(bell.var()) - 1) < 4 * 1.5 / root
        assert abs(float((bell**4).mean()) - 3) < 4 * 10 / root
        assert abs(float((bell[:, 1:] * bell[:, :-1]).mean())) < 4 / root
    assert set(torch.randint_like(x, 3).local.unique().tolist()) == {0, 1, 2}
    assert abs(float(x.clone().exponential_(2.0).local.mean()) - 0.5) < 4 * 0.5 / root
    kept = F.alpha_dropout(shard(random(200, 200), mesh, 0), 0.3, training=True).local
    assert abs(float(kept.detach().mean())) < 5 / root
    assert abs(float(kept.detach().var()) - 1) < 0.1


@case("2")
def states(mesh):
    x = shard(random(4, 6), mesh, 1)
    shardtensor.manual_seed(3)
    F.dropout(x)
    state = shardtensor.get_rng_state()
    want = [torch.randn_like(x).local for _ in range(2)]
    shardtensor.manual_seed(4)
    shardtensor.set_rng_state(state)
    got = [torch.randn_like(x).local for _ in range(2)]
    assert torch.equal(torch.stack(got), torch.stack(want))
    assert not torch.equal(*got)


@case("1", "2")
def checkpointed_dropout(mesh):
    x, w = random(5, 8), random(8, 8, seed=1)
    block = lambda x, w: F.dropout(F.dropout(x @ w, 0.4).relu(), 0.2)  # noqa: E731
    gradients = []
    for way in ("plain", "checkpoint"):
        shardtensor.manual_seed(9)
        part, weight = shard(x, mesh, 0), w.clone().requires_grad_()
        F.dropout(part)
        if way == "plain":
            y = block(part, weight)
        else:
            y = checkpoint(
                block, part, weight, use_reentrant=False, context_fn=shardtensor.checkpoint_contexts
            )
        y = F.dropout(y, 0.3)
        state = shardtensor.get_rng_state()
        y.sum().backward()
        assert shardtensor.get_rng_state() == state
        gradients.append((part.grad.local, weight.grad))
    for a, b in zip(*gradients, strict=True):
        close(a, b)
    part = shard(x, mesh, 0)
    y = checkpoint(block, part, w, use_reentrant=False)
    with pytest.raises(UnsupportedShardedOp, match="checkpoint_contexts"):
        y.sum().backward()


@case("2")
def random_refusals(mesh):
    shardtensor.set_rng_state({"seed": None, "draws": 0})
    x = shard(random(4, 6), mesh, 1).detach()
    for part in (x, x.redistribute([Replicate()])):
        with pytest.raises(UnsupportedShardedOp, match="manual_seed"):
            F.dropout(part, 0.5)
    shardtensor.manual_seed(0)
    for call in (
        lambda: x.random_(),
        lambda: torch.multinomial(x.abs(), 2),
        lambda: F.gumbel_softmax(x),
        lambda: torch.bernoulli(x.sigmoid(), generator=torch.Generator()),
        lambda: torch.normal(x, 1.0),
    ):
        with pytest.raises(UnsupportedShardedOp, match="random numbers"):
            call()
    with pytest.raises(ValueError, match="between 0 and 1"):
        F.dropout(x, 1.5)
    with pytest.raises(RuntimeError, match="broadcast"):
        x.bernoulli_(torch.zeros(2, 4, 6))
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    torch.randn_like(x)
    assert torch.equal(torch.rand(3), want), "torch's own generator is not touched"
    assert x.spec.placements == (Shard(1),)


@pytest.mark.parametrize("name", names(CASES))
def test_ranks(name, outcome):
    assert name in outcome.passed, outcome.trouble
