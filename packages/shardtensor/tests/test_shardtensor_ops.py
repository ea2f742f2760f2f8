"""Elementwise operations, reductions, views, slices and products against plain tensors on one process."""

import pytest
import torch
import torch.nn.functional as F
from shard_ranks import close, compare, layouts, names, random, registry, shard
from torch.distributed.tensor import Replicate

from shardtensor import ShardTensor, UnsupportedShardedOp

CASES, case = registry()


@case()
def pointwise_unary(mesh):
    x = (random(2, 7, 3), 1)
    for function in (
        torch.relu,
        F.silu,
        F.gelu,
        F.relu,
        torch.exp,
        lambda x: x.abs().sqrt(),
        lambda x: -x,
        lambda x: 1.0 - x,
        lambda x: 2 / (x * x + 1),
        lambda x: x**2,
        lambda x: x.clamp(-0.5, 0.5),
        lambda x: torch.clamp(x, min=0.1),
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: x.float().double(),
        lambda x: x.to(torch.float64).contiguous().clone(),
        lambda x: x * torch.zeros_like(x) + torch.ones_like(x),
        lambda x: x + 0 * x.detach(),
    ):
        compare(function, mesh, [x])


@case()
def pointwise_binary(mesh):
    x, y = (random(2, 7, 3), 1), (random(2, 7, 3, seed=1), 1)
    row = (random(7, 1, seed=2), 0)
    for function in (
        lambda x, y: x + y,
        lambda x, y: x * y,
        lambda x, y: torch.sub(x, y, alpha=2),
        lambda x, y: x / (1 + y * y),
        lambda x, y: torch.where(x > y, x, y),
        lambda x, y: torch.where(x > 0, x, 0.0) + torch.lerp(x, y, 0.3),
        torch.maximum,
        lambda x, y: torch.addcmul(x, x, y, value=0.5),
        lambda x, y: (x < y) | (x > 1),
    ):
        compare(function, mesh, [x, y])
        compare(function, mesh, [x, row])
        compare(function, mesh, [row, x])


@case()
def pointwise_with_plain(mesh):
    x = (random(2, 7, 3), 1)
    weights = [
        random(3, seed=3),
        random(7, 1, seed=4),
        random(4, 1, 1, 1, seed=5),
        random(2, 7, 3, seed=6),
        random(seed=1),
    ]
    for w in weights:
        compare(lambda x, w: x * w + w, mesh, [x], weights=[w])
        compare(lambda x, w: w - x, mesh, [x], weights=[w])
        compare(lambda x, w: torch.where(w > 0, x, w), mesh, [x], weights=[w])
        compare(lambda x, w: torch.clamp(x, min=w), mesh, [x], weights=[w])


@case()
def pointwise_sizes_differ(mesh):
    x, y = random(7, 3), random(7, 3, seed=1)
    for a in layouts(mesh, 7):
        for b in layouts(mesh, 7):
            left, right = shard(x, mesh, 0, a), shard(y, mesh, 0, b)
            out = left * right
            assert out.sizes == (a,)
            close(out, x * y)
            out.sum().backward()
            close(right.grad, x)
            assert right.grad.sizes == (b,)


@case()
def in_place(mesh):
    x = random(5, 3)
    for rows in layouts(mesh, 5):
        y = shard(x, mesh, 0, rows).detach().clone()
        alias = y
        y += 1
        y *= random(5, 1, seed=2)
        y.mul_(2).add_(random(3, seed=3))
        assert alias is y
        close(y, (x + 1) * random(5, 1, seed=2) * 2 + random(3, seed=3))
        y[:, 1:].zero_()
        assert not y[:, 1:].any()


@case()
def reductions(mesh):
    x = (random(2, 7, 3), 1)
    for function in (
        torch.sum,
        torch.mean,
        torch.amax,
        torch.max,
        torch.min,
        torch.var,
        torch.std,
        lambda x: x.sum(1),
        lambda x: x.sum((0, 2)),
        lambda x: x.sum(dim=-1, keepdim=True),
        lambda x: x.mean((1, 2), keepdim=True),
        lambda x: x.mean(0),
        lambda x: x.amax(1),
        lambda x: x.amin((1, 2), keepdim=True),
        lambda x: x.amax(2),
        lambda x: x.var(1, keepdim=True),
        lambda x: x.var(dim=(0, 1), correction=0),
        lambda x: torch.std(x, 2),
        lambda x: (x > 0).any(1),
        lambda x: (x > -9).all(),
        lambda x: x.max(2),
        lambda x: x.argmax(-1),
        lambda x: x.cumsum(0),
        lambda x: (x > 0).sum(1),
    ):
        compare(function, mesh, [x])


@case()
def extrema_share_ties(mesh):
    compare(lambda x: x.amax(0) + x.amin(0), mesh, [(torch.tensor([[1.0, 2], [1, 0], [0, 2], [1, 2]]), 0)])


@case()
def softmax_and_norms(mesh):
    x = (random(2, 7, 4), 1)
    for function in (
        lambda x: x.softmax(-1),
        lambda x: F.softmax(x, dim=1),
        lambda x: F.log_softmax(x * 30, dim=1),
        lambda x: torch.log_softmax(x, 0),
        lambda x: F.normalize(x, dim=-1),
        lambda x: F.layer_norm(x, (4,)),
        lambda x: F.layer_norm(x, (7, 4)),
    ):
        compare(function, mesh, [x])
    weights = [random(4, seed=8), random(4, seed=9)]
    compare(lambda x, w, b: F.layer_norm(x, (4,), w, b, 1e-6), mesh, [x], weights=weights)
    compare(lambda x, w, b: F.layer_norm(x, (4,), w) + b, mesh, [x], weights=weights)
    compare(lambda x, w: F.rms_norm(x, (4,), w), mesh, [x], weights=weights[:1])
    across = [random(7, 4, seed=8), random(7, 4, seed=9)]
    compare(lambda x, w, b: F.layer_norm(x, (7, 4), w, b), mesh, [x], weights=across)


@case()
def losses(mesh):
    x, y = (random(2, 7, 3), 1), (random(2, 7, 3, seed=1), 1)
    for reduction in ("mean", "sum", "none"):
        compare(lambda a, b, r=reduction: F.mse_loss(a, b, reduction=r), mesh, [x, y])
        compare(lambda a, b, r=reduction: F.l1_loss(a, b, reduction=r), mesh, [x, y])
        compare(lambda a, b, r=reduction: F.huber_loss(a, b, reduction=r, delta=0.3), mesh, [x, y])
    compare(lambda a, b: F.mse_loss(b, a), mesh, [x, (y[0], None)])


@case()
def linear(mesh):
    weights = [random(5, 4, seed=2), random(5, seed=3)]
    for dim in (0, 1, 2):
        compare(F.linear, mesh, [(random(2, 6, 4), dim)], weights=weights)
        compare(F.linear, mesh, [(random(2, 6, 4), dim)], weights=weights[:1])


@case()
def matmul(mesh):
    a, b = random(2, 3, 5, 6), random(2, 3, 6, 4, seed=1)
    for dim in range(4):
        compare(torch.matmul, mesh, [(a, dim), (b, None)])
        compare(torch.matmul, mesh, [(a, None), (b, dim)])
        compare(lambda w, x: w @ x, mesh, [(random(5, 6, seed=2), None), (b, dim)])
        compare(lambda x, w: x @ w, mesh, [(a, dim), (random(6, 4, seed=2), None)])
    compare(torch.matmul, mesh, [(a, 3), (b, 2)])
    compare(torch.matmul, mesh, [(a, 1), (b, 1)])
    compare(lambda x, v: x @ v, mesh, [(a, 3)], weights=[random(6, seed=5)])
    compare(lambda x, v: v @ x, mesh, [(b, 2)], weights=[random(6, seed=5)])
    compare(torch.bmm, mesh, [(a[0], 2), (b[0], 1)])


@case()
def einsum(mesh):
    a, b = random(2, 5, 6), random(6, 4, seed=1)
    compare(lambda a, b: torch.einsum("bij,jk->bik", a, b), mesh, [(a, 1), (b, None)])
    compare(lambda a, b: torch.einsum("bij,jk->bik", a, b), mesh, [(a, 2), (b, 0)])
    compare(lambda a, b: torch.einsum("...j,jk->...k", a, b), mesh, [(a, 1), (b, None)])
    compare(lambda a, b: torch.einsum("...ij,jk", a, b), mesh, [(a, 2), (b, None)])
    compare(lambda a, w: torch.einsum("bij,i->bj", a, w), mesh, [(a, 1)], weights=[random(5, seed=3)])


@case()
def attention_over_unsharded_sequence(mesh):
    q, k, v = (random(3, 4, 5, 6, seed=s) for s in range(3))
    for dim in (0, 1):
        compare(F.scaled_dot_product_attention, mesh, [(q, dim), (k, dim), (v, dim)])
        causal = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
        compare(causal, mesh, [(q, dim), (k, dim), (v, dim)])
    compare(F.scaled_dot_product_attention, mesh, [(q, 2), (k, None), (v, None)])
    bias = random(4, 5, 5, seed=9)
    compare(F.scaled_dot_product_attention, mesh, [(q, 1), (k, 1), (v, 1)], weights=[bias])
    grouped = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)  # noqa: E731
    k, v = k[:, :2].detach().requires_grad_(), v[:, :2].detach().requires_grad_()
    compare(grouped, mesh, [(q, 2), (k, None), (v, None)])
    compare(grouped, mesh, [(q, 0), (k, 0), (v, 0)])


@case()
def views(mesh):
    x = (random(2, 6, 4, 3), 1)
    for function in (
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: torch.permute(x, (1, 0, 3, 2)),
        lambda x: x.transpose(1, -1),
        lambda x: x.movedim(1, -1),
        lambda x: torch.movedim(x, (0, 1), (2, 0)),
        lambda x: x.mT,
        lambda x: x.flatten(2),
        lambda x: x.flatten(1, 2),
        lambda x: x.reshape(2, 6, -1),
        lambda x: x.view(2, 24, 3),
        lambda x: x.reshape(2, 24, 3).reshape(2, 6, 4, 3),
        lambda x: x.unflatten(-2, (2, 2)),
        lambda x: x.unsqueeze(1).squeeze(1).unsqueeze(-1),
        lambda x: x[:, :, :1].squeeze(2),
        lambda x: x[:, :, :1].expand(-1, -1, 5, -1),
        lambda x: x.unsqueeze(0).expand(3, *[-1] * 4),
        lambda x: x.repeat(1, 1, 2, 1),
        lambda x: x.permute(1, 0, 2, 3).flatten(),
        lambda x: torch.cat([x, x * 2], dim=-1),
        lambda x: torch.stack([x, x + 1], 1),
        lambda x: torch.cat([x, torch.ones(2, 6, 1, 3)], 2),
        lambda x: x.split(2, 2),
        lambda x: x.chunk(3, dim=-1),
        lambda x: torch.split(x, [1, 3], 2),
        lambda x: x.unbind(-1),
        lambda x: torch.tensor_split(x, 3, 2),
        lambda x: list(x.transpose(0, 2)),
    ):
        compare(function, mesh, [x])


@case()
def rows_and_patches(mesh):
    """(rows) -> (rows / p, p) -> (rows) where every rank holds whole patches."""
    parts = mesh.size()
    sizes = [(4, 2, 0)[:parts] if parts == 3 else (4, 2)[:parts] if parts == 2 else (6,)]
    x = random(2, 6, 4, 3)
    split = lambda x: x.reshape(2, 3, 2, 4, 3)  # noqa: E731
    unpatch = lambda x: x.reshape(2, 6, 2, 2, 2, 3).permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 12, 4)  # noqa: E731
    compare(split, mesh, [(x, 1)], sizes=sizes)
    compare(lambda x: x.unflatten(1, (3, 2)).flatten(1, 2), mesh, [(x, 1)], sizes=sizes)
    compare(unpatch, mesh, [(random(2, 6, 2, 12), 1)])


@case()
def indexing(mesh):
    x = (random(3, 9, 4), 1)
    for function in (
        lambda x: x[:, 2:7],
        lambda x: x[:, ::2],
        lambda x: x[:, 1:8:3],
        lambda x: x[:, :-1],
        lambda x: x[..., 1],
        lambda x: x[0],
        lambda x: x[:, 4],
        lambda x: x[:, -1, None],
        lambda x: x[:, None, 3:4],
        lambda x: x[..., [2, 0]],
        lambda x: x[torch.tensor([1, -1])],
        lambda x: x.narrow(1, 2, 3),
        lambda x: x.select(1, 5),
        lambda x: x.index_select(2, torch.tensor([1, 1, 3])),
        lambda x: x.roll(2, 1),
        lambda x: torch.roll(x, (-4, 1), dims=(1, 2)),
        lambda x: x.roll(1, -1),
        lambda x: x.flip(1),
        lambda x: torch.flip(x, (0, 2)),
        lambda x: x[:, 9:],
    ):
        compare(function, mesh, [x])


@case("2", "3")
def unsupported_names_the_way_out(mesh):
    x = shard(random(4, 7, 2), mesh, 1)
    for message, function in (
        ("cov", lambda: torch.cov(x[0])),
        ("svd", lambda: torch.linalg.svdvals(x)),
        ("outermost", lambda: x.flatten(0, 1)),
        ("do not match", lambda: x + shard(random(4, 7, 2), mesh, 0)),
        ("plain tensor", lambda: random(4, 7, 2).add_(x)),
        ("numpy", lambda: x.__array__()),
        ("item", lambda: x.item()),
        ("indexing", lambda: x[x > 0]),
    ):
        with pytest.raises(UnsupportedShardedOp, match=message) as caught:
            function()
        assert any(word in str(caught.value) for word in ("Replicate()", "Call .", "Use "))
    with pytest.raises(AttributeError):
        _ = x.no_such_method


@case("2", "3")
def extents_that_match_only_locally(mesh):
    """Shapes that do not fit stay an error although the local parts would."""
    x = shard(random(2 * mesh.size(), 3), mesh, 0)
    for function in (
        lambda: x + random(2, 3),
        lambda: random(2, 2) @ x,
        lambda: torch.cat([x, random(2, 3)], 1),
        lambda: x[:, [3]],
        lambda: torch.einsum("ij,i->j", x, random(2)),
        lambda: shard(random(4, mesh.size()), mesh, 1) @ random(1, 3),
        lambda: F.linear(shard(random(4, mesh.size()), mesh, 1), random(3, 1)),
    ):
        with pytest.raises((RuntimeError, IndexError)):
            function()
    with pytest.raises(UnsupportedShardedOp, match="where"):
        torch.where(x > 0)
    assert x.type() == "torch.DoubleTensor"


@case()
def replicated_runs_everything(mesh):
    x = shard(random(4, 6), mesh, 1).redistribute([Replicate()])
    values, order = torch.sort(x, 1)
    assert values.placements == (Replicate(),)
    close(values, random(4, 6).sort(1).values)
    assert torch.equal(order.to_local(), random(4, 6).sort(1).indices)
    close(torch.linalg.svdvals(x), torch.linalg.svdvals(random(4, 6)))


@case()
def dropout_of_nothing(mesh):
    x = shard(random(4, 6), mesh, 1)
    assert F.dropout(x, 0.0) is x
    assert torch.nn.Dropout(0.3).eval()(x) is x


@case()
def gradients_of_gradients(mesh):
    """|d(loss)/dx|^2 differentiated again, through a halo, a contraction and a shared weight."""

    x, w = random(2, 3, 6, 4), random(5, 3, 3, 3, seed=1)

    def penalty(x, w):
        y = torch.tanh(F.conv2d(x, w, padding=1)).mean((2, 3)) ** 2
        (grad,) = torch.autograd.grad(y.sum(), [x], create_graph=True)
        return (grad**2).sum()

    plain, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
    penalty(plain, weight).backward()
    for rows in layouts(mesh, 6):
        part, shared = shard(x, mesh, 2, rows), w.clone().requires_grad_()
        value = penalty(part, shared)
        assert isinstance(value, ShardTensor)
        value.backward()
        close(part.grad, plain.grad)
        close(shared.grad, weight.grad)


@case("2x2")
def two_mesh_dimensions(mesh):
    x, w = random(2, 3, 7, 6), random(4, 3, 3, 3, seed=1)
    for sizes in ({0: (4, 3), 1: (5, 1)}, {0: (0, 7), 1: (3, 3)}):
        for function in (
            lambda x, w: F.conv2d(x, w, stride=2, padding=1),
            lambda x, w: F.conv2d(F.pad(x, (1, 1, 0, 0), mode="circular"), w),
            lambda x, w: (x * w[0, :, :1, :1]).mean((0, 2, 3)),
            lambda x, w: torch.einsum("nchw,oc->nohw", x, w[:, :, 0, 0]).amax((2, 3)),
            lambda x, w: x.roll(2, 3).flip(2) * random(7, 6) + w.sum(),
            lambda x, w: torch.matmul(random(5, 7), x) @ w[0, 0, 0].expand(6, 3),
        ):
            part, mine = shard(x, mesh, (2, 3), sizes), w.clone().requires_grad_()
            plain, theirs = x.clone().requires_grad_(), w.clone().requires_grad_()
            got, want = function(part, mine), function(plain, theirs)
            close(got, want)
            (got * random(*want.shape)).sum().backward()
            (want * random(*want.shape)).sum().backward()
            close(part.grad, plain.grad)
            close(mine.grad, theirs.grad)


@pytest.mark.parametrize("name", names(CASES))
def test_ranks(name, outcome):
    assert name in outcome.passed, outcome.trouble
