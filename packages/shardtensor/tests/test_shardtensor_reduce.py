"""What the table of samples can not say of reductions, norms, losses, sorting and Fourier transforms."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from shard_ranks import close, compare, layouts, names, random, registry, shard
from torch import nn
from torch.distributed.tensor import Replicate, Shard

from shardtensor import GatherWarning, ShardSpec, ShardTensor, UnsupportedShardedOp

CASES, case = registry()


@case("2", "3")
def refusals_name_the_way_out(mesh):
    x = shard(random(4, 7, 2), mesh, 1)
    classes = shard(random(4, 7), mesh, 1)
    plane = shard(random(6, 8), mesh, 0)
    for message, function in (
        ("group is spread", lambda: F.group_norm(shard(random(2, 6, 3), mesh, 1, _uneven(mesh)), 2)),
        ("channels", lambda: F.local_response_norm(x, 2)),
        ("weight", lambda: F.layer_norm(x, (7, 2), shard(random(7, 2), mesh, 0))),
        ("another dimension", lambda: torch.fft.rfft2(plane)),
        ("another dimension", lambda: torch.fft.fft(shard(random(6), mesh, 0))),
        ("reduction=", lambda: F.mse_loss(x, x, size_average=True)),
        ("reduction=", lambda: F.cross_entropy(classes, torch.zeros(4, dtype=torch.long), reduce=True)),
        ("features", lambda: F.cosine_embedding_loss(classes, classes, torch.ones(4))),
        ("nuc norm", lambda: torch.linalg.matrix_norm(plane, "nuc")),
        ("out=", lambda: torch.sum(x, 1, out=torch.empty(4, 2))),
        ("table", lambda: torch.bucketize(random(3), shard(random(6), mesh, 0))),
        ("plain tensor", lambda: random(4, 7, 2).mul_(x)),
        ("last dimension", lambda: torch.view_as_complex(shard(random(4, 2), mesh, 1))),
    ):
        with pytest.raises(UnsupportedShardedOp, match=message) as caught:
            function()
        assert "Call ." in str(caught.value) or "Use " in str(caught.value)
    for function in (
        lambda: F.mse_loss(x, x, reduction="total"),
        lambda: F.mse_loss(x, x, weight=random(4, 7, 1)),
        lambda: F.cross_entropy(classes, torch.zeros(7, dtype=torch.long)),
        lambda: F.batch_norm(shard(random(1, 6), mesh, 1), None, None, training=True),
        lambda: F.group_norm(x, 2),
        lambda: F.layer_norm(x, (5,)),
        lambda: x.topk(8, 1),
        lambda: F.glu(x, 1),
        lambda: shard(random(0, 3), mesh, 0).max(0),
        lambda: x.softmax(3),
    ):
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            function()


def _uneven(mesh):
    return (5, 1) if mesh.size() == 2 else (1, 4, 1)


@case("1", "2", "3")
def gathering_warns(mesh):
    x = shard(random(4, 7, 2), mesh, 1)
    for name, function in (
        ("sort", lambda: x.sort(1)),
        ("argsort", lambda: x.argsort(1)),
        ("median", lambda: x.median()),
        ("quantile", lambda: x.quantile(0.5, 1)),
        ("unique", lambda: torch.unique(x)),
    ):
        if mesh.size() == 1:
            function()
            continue
        with pytest.warns(GatherWarning, match=rf"^{name} gathers .*Shard") as caught:
            function()
        assert name == "unique" or caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x.sort(0)
        x.topk(2, 1)


@case("2", "3")
def nothing_agrees_by_accident(mesh):
    """The answers of equal and allclose are those of the whole, on every rank."""
    x = random(5, 3)
    other = x.clone()
    other[0, 0] += 1e-9
    for rows in layouts(mesh, 5):
        a, b, same = shard(x, mesh, 0, rows), shard(other, mesh, 0, rows), shard(x, mesh, 0)
        assert torch.equal(a, same)
        assert a.equal(x)
        assert not torch.equal(a, b)
        assert not torch.equal(a, random(5, 1))
        assert torch.allclose(a, b)
        assert not a.allclose(b, atol=1e-12, rtol=0)


@case()
def lowest_index_among_equals(mesh):
    x = torch.tensor([[1.0, 3, 3], [3, 0, 3], [0, 0, 0], [3, 3, 0]])
    for function in (torch.argmax, torch.argmin, lambda x: x.argmax(0), lambda x: x.argmin(1)):
        compare(function, mesh, [(x, 0)])
        compare(function, mesh, [(x.T.contiguous(), 1)])
    for holes in (x.index_fill(0, torch.tensor(1), torch.nan), x * torch.inf):
        for rows in layouts(mesh, 4):
            part = shard(holes, mesh, 0, rows)
            for function in (torch.argmax, torch.argmin, torch.amax, torch.amin, lambda x: x.max(0).indices):
                got, want = function(part), function(holes)
                torch.testing.assert_close(got.local, want, equal_nan=True)


@case("2x2")
def both_dimensions(mesh):
    x = random(6, 5)
    for function in (torch.argmax, torch.argmin, torch.var, torch.amax, torch.prod, torch.linalg.vector_norm):
        part = shard(x, mesh, (0, 1), {0: (1, 5), 1: (5, 0)})
        close(function(part), function(x))


@case()
def infinities(mesh):
    x = torch.tensor([[-torch.inf, 1.0], [-torch.inf, torch.inf], [-torch.inf, 2.0]])
    for function in (lambda x: x.logsumexp(0), lambda x: x.softmax(0), lambda x: x.log_softmax(0)):
        for rows in layouts(mesh, 3):
            got = function(shard(x, mesh, 0, rows))
            want = function(x)
            want = want[got.local_slices()]
            torch.testing.assert_close(got.local, want, equal_nan=True)
    far = torch.tensor([[1e4], [1e4 + 1], [1e4 - 50]])
    compare(lambda x: x.softmax(0), mesh, [(far, 0)])


@case("2", "3")
def large_means_cost_no_accuracy(mesh):
    """In float32 the error stays at a few units in the last place of the mean, here 2.4e-4."""
    x = (random(2, 6, 40, 16) + 3000).float()
    truth = x.double()
    for function in (
        lambda x: F.group_norm(x, 2),
        F.instance_norm,
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.layer_norm(x, (40, 16)),
        lambda x: x.var(2),
        lambda x: x.std((0, 2, 3)),
    ):
        want = function(truth)
        for rows in layouts(mesh, 40):
            got = function(shard(x, mesh, 2, rows))
            assert got.dtype == torch.float32
            worst = (got.local - want[got.local_slices()]).abs().max() if got.local.numel() else 0.0
            assert worst < 1e-3, (worst, rows)


@case()
def modules_run_unmodified(mesh):
    """GroupNorm, InstanceNorm, BatchNorm and losses in a model; the buffers agree with one process."""
    torch.manual_seed(0)

    def build():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.GELU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.GroupNorm(4, 8),
            nn.SiLU(),
            nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
            nn.Conv2d(8, 5, 1),
        )

    x, target = random(2, 3, 7, 6), random(2, 7, 6).abs().long() % 5
    for rows in layouts(mesh, 7):
        ours, theirs = build(), build()
        part = shard(x, mesh, 2, rows)
        loss = nn.CrossEntropyLoss(label_smoothing=0.1)
        for _ in range(2):
            got, want = loss(ours(part), target), loss(theirs(x), target)
            close(got, want)
            got.backward()
            want.backward()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(a.grad, b.grad, 1e-9)
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            close(a, b)


@case()
def gradients_of_gradients(mesh):
    x, w, b = random(2, 6, 5), random(6, seed=1), random(6, seed=2)
    tail = random(6, 5, seed=3)

    def penalty(function):
        def run(x, *params):
            y = function(x, *params)
            grads = torch.autograd.grad((y**3).sum(), [x, *params], create_graph=True)
            return sum((grad**2).sum() for grad in grads)

        return run

    for function, params in (
        (lambda x, w, b: F.group_norm(x, 2, w, b), [w, b]),
        (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), [w, b]),
        (lambda x, w: F.layer_norm(x, (6, 5), w), [tail]),
        (lambda x, w: F.rms_norm(x, (6, 5), w, 1e-5), [tail]),
        (lambda x: x.var(2), []),
        (lambda x: x.softmax(2), []),
        (lambda x: x.logsumexp(2), []),
        (lambda x: x.amax(2), []),
        (lambda x: x.cumsum(2), []),
        (lambda x: torch.linalg.vector_norm(x, dim=2), []),
        (lambda x: torch.fft.rfft(x, dim=2).abs(), []),
    ):
        plain = [p.clone().requires_grad_() for p in (x, *params)]
        penalty(function)(*plain).backward()
        for rows in layouts(mesh, 5):
            part, *mine = shard(x, mesh, 2, rows), *(p.clone().requires_grad_() for p in params)
            penalty(function)(part, *mine).backward()
            for got, want in zip([part, *mine], plain, strict=True):
                close(got.grad, want.grad, 1e-9, rows)


@case("2", "3")
def classes_that_do_not_exist(mesh):
    """All ranks raise what one process raises, whichever classes they hold."""
    whole = random(4, 6)
    x = shard(whole, mesh, 1)
    for loss in (F.cross_entropy, F.nll_loss):
        for bad in (6, -1, -100):
            target = torch.tensor([0, bad, 1, 2])
            for labels in (target, shard(target, mesh, 0).redistribute([Replicate()])):
                if bad == -100:
                    close(loss(x, labels), loss(whole, target))
                    continue
                with pytest.raises(IndexError, match="out of range"):
                    loss(x, labels)
        target = torch.tensor([0, 9, 1, 2])
        close(loss(x, target, ignore_index=9), loss(whole, target, ignore_index=9))


@case("2", "3")
def replicated_weights_are_weights(mesh):
    x, w = random(3, 6, 5), random(6, seed=1)
    weight = ShardTensor(w.clone().requires_grad_(), ShardSpec.create(mesh, [Replicate()], (6,)))
    plain, part = w.clone().requires_grad_(), shard(x, mesh, 2)
    close(F.group_norm(part, 3, weight), F.group_norm(x, 3, plain))
    F.group_norm(part, 3, weight).square().sum().backward()
    F.group_norm(x, 3, plain).square().sum().backward()
    close(weight.grad, plain.grad)


@case("2")
def complex_parts(mesh):
    x = torch.complex(random(4, 6), random(4, 6, seed=1))
    part = shard(x, mesh, 1)
    for function in (
        lambda x: x.real,
        lambda x: x.imag,
        torch.conj,
        torch.view_as_real,
        lambda x: x.abs().sum(),
    ):
        close(function(part), function(x))
    assert torch.fft.fft(part, dim=1).placements == (Shard(1),)


@case("2", compiles=True)
def one_graph(mesh):
    """torch.compile takes the functions as one graph, collectives and all, forward and backward."""
    x, w = random(2, 6, 7), random(6, seed=1).requires_grad_()
    target = torch.zeros(2, 7, dtype=torch.long)
    for function in (
        lambda x: F.group_norm(x, 3, w),
        lambda x: F.layer_norm(x, (6, 7)),
        lambda x: x.var(2),
        lambda x: x.softmax(2),
        lambda x: x.cumsum(2),
        lambda x: x.amax(2) + x.max(2).values,
        lambda x: F.mse_loss(x, 2 * x) + F.cross_entropy(x, target),
        lambda x: torch.fft.rfft(x, dim=2).abs(),
    ):
        torch._dynamo.reset()
        results = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about itself
            for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
                part = shard(x, mesh, 2, (4, 3))
                out = run(part)
                out.local.square().sum().backward()
                results.append((out.local.detach(), part.grad.local))
        for a, b in zip(*results, strict=True):
            close(b, a)


@pytest.mark.parametrize("name", names(CASES))
def test_ranks(name, outcome):
    assert name in outcome.passed, outcome.trouble
