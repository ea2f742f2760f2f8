"""Convolution, padding, halos and neighbourhood attention on uneven shards against one process."""

import pytest
import torch
import torch.nn.functional as F
from shard_ranks import close, compare, layouts, names, random, registry, shard
from torch.overrides import handle_torch_function, has_torch_function

from shardtensor import (
    ShardTensor,
    UnsupportedShardedOp,
    fetch,
    halo_exchange,
    neighborhood_handler,
    register_function_handler,
)

CASES, case = registry()


@case()
def convolution_windows(mesh):
    """Stride phases, even kernels, dilation and padding, also where windows are wider than a shard."""
    x = random(2, 2, 9, 5)
    for kernel, stride, padding, dilation in (
        ((3, 3), 1, 1, 1),
        ((3, 3), 2, 1, 1),
        ((3, 3), 2, 0, 1),
        ((2, 2), 2, 0, 1),
        ((2, 3), 1, (1, 0), 1),
        ((4, 1), 3, (2, 0), 1),
        ((3, 1), 1, (4, 0), 4),
        ((7, 1), 1, (3, 0), 1),
        ((1, 1), 1, 0, 1),
        ((1, 1), 3, 0, 1),
        ((3, 3), 1, "same", 1),
        ((4, 2), 1, "valid", 2),
        ((9, 1), 1, 0, 1),
    ):
        weights = [random(3, 2, *kernel, seed=2), random(3, seed=3)]
        conv = lambda x, w, b, s=stride, p=padding, d=dilation: F.conv2d(x, w, b, s, p, d)  # noqa: E731
        compare(conv, mesh, [(x, 2)], weights=weights)
    compare(conv, mesh, [(x, 0)], weights=weights)


@case()
def convolution_forms(mesh):
    compare(F.conv1d, mesh, [(random(2, 3, 8), 2)], weights=[random(4, 3, 3, seed=1)])
    grouped = lambda x, w: F.conv2d(x, w, groups=2, padding=1)  # noqa: E731
    compare(grouped, mesh, [(random(1, 4, 6, 5), 3)], weights=[random(4, 2, 3, 3)])
    solid = lambda x, w: F.conv3d(x, w, padding=1)  # noqa: E731
    compare(solid, mesh, [(random(1, 2, 3, 6, 4), 3)], weights=[random(2, 2, 3, 3, 3)])
    compare(
        lambda x, w: F.conv2d(x, w, padding=1), mesh, [(random(3, 6, 5), 1)], weights=[random(2, 3, 3, 3)]
    )


@case()
def convolution_modules(mesh):
    for mode in ("zeros", "reflect", "replicate", "circular"):
        layer = torch.nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode=mode)
        torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
        torch.nn.init.zeros_(layer.bias)
        run = lambda x, w, m=layer: torch.func.functional_call(m, {"weight": w}, (x,))  # noqa: E731
        compare(run, mesh, [(random(2, 2, 9, 6), 2)], weights=[random(3, 2, 3, 3, seed=4)])


@case()
def padding(mesh):
    x = random(2, 3, 7, 6)
    for dim in (2, 3):
        for mode in ("constant", "reflect", "replicate", "circular"):
            for width in ((0, 0, 0, 1), (1, 2, 3, 2), (0, 0, 4, 0), (5, 5, 5, 5)):
                compare(lambda x, m=mode, p=width: F.pad(x, p, mode=m), mesh, [(x, dim)])
        compare(lambda x: F.pad(x, (1, 0, 2, 1), value=3.5), mesh, [(x, dim)])
        compare(lambda x: F.pad(x, (-1, 2, 1, -3)), mesh, [(x, dim)])


@case()
def halo(mesh):
    x = random(2, 7, 3)
    for rows in layouts(mesh, 7):
        part = shard(x, mesh, 1, rows)
        own = part.local_slices()[1]
        for before, after in ((1, 1), (0, 3), (5, 0)):
            got = halo_exchange(part, 1, before, after)
            empty = own.start == own.stop
            close(got, x[:, 0:0] if empty else x[:, max(own.start - before, 0) : own.stop + after])
            wrapped = halo_exchange(part, 1, before, after, periodic=True)
            index = [] if empty else [g % 7 for g in range(own.start - before, own.stop + after)]
            close(wrapped, x[:, index])


@case()
def fetch_adds_gradients(mesh):
    """Every rank asks for rows 1:4 twice: their gradient is 2 P, times the gradient that each rank sends."""
    for rows in layouts(mesh, 6):
        part = shard(random(6, 2), mesh, 0, rows)
        got = fetch(part, 0, [[(1, 4), (0, 0), (1, 4)]] * mesh.size())
        close(got, random(6, 2)[[1, 2, 3, 1, 2, 3]])
        got.backward(torch.ones_like(got))
        want = torch.zeros(6, 2)
        want[1:4] = 2 * mesh.size()
        close(part.grad, want)
    with pytest.raises(ValueError, match="within"):
        fetch(part, 0, [[(1, 7)]] * mesh.size())
    with pytest.raises(ValueError, match="not sharded"):
        fetch(part, 1, [[(1, 2)]] * mesh.size())


def local_attention(q, k, v, *, kernel, row_offset=0, bias=None):
    """Dense reference: query row i sees kh key rows from clamp(i + row_offset - kh // 2, 0, Hk - kh) on."""
    if has_torch_function((q, k, v)):
        return handle_torch_function(
            local_attention, (q, k, v), q, k, v, kernel=kernel, row_offset=row_offset, bias=bias
        )
    kh, kw = kernel
    rows, keys, columns = q.shape[1], k.shape[1], k.shape[2]
    if keys < kh:
        raise ValueError("kernel has more rows than there are keys")
    start = (torch.arange(rows) + row_offset - kh // 2).clamp(0, keys - kh)
    near = (torch.arange(keys) >= start[:, None]) & (torch.arange(keys) < start[:, None] + kh)
    apart = (torch.arange(columns) - torch.arange(columns)[:, None] + kw // 2) % columns
    seen = near[:, None, :, None] & (apart < kw)[None, :, None, :]
    score = torch.einsum("bhwnd,bklnd->bnhwkl", q, k) / q.shape[-1] ** 0.5
    if bias is not None:
        score = score + bias[None, :, None, None, None, None]
        score = score * bias.mean()
    weight = score.masked_fill(~seen, -torch.inf).flatten(-2).softmax(-1).unflatten(-1, (keys, columns))
    return torch.einsum("bnhwkl,bklnd->bhwnd", weight, v)


register_function_handler(local_attention, neighborhood_handler)


@case()
def neighborhood_rows(mesh):
    q, k, v = (random(2, 7, 4, 2, 3, seed=s) for s in range(3))
    for kernel in ((3, 3), (5, 1), (7, 3), (1, 3)):
        run = lambda q, k, v, n=kernel: local_attention(q, k, v, kernel=n)  # noqa: E731
        compare(run, mesh, [(q, 1), (k, 1), (v, 1)])
    run = lambda q, k, v, b: local_attention(q, k, v, kernel=(3, 3), bias=b)  # noqa: E731
    compare(run, mesh, [(q, 1), (k, 1), (v, 1)], weights=[random(2, seed=5)])
    compare(run, mesh, [(q, 1), (k, None), (v, None)], weights=[random(2, seed=5)])
    compare(run, mesh, [(q, 3), (k, 3), (v, 3)], weights=[random(1, seed=5)])
    compare(run, mesh, [(q, 0), (k, 0), (v, 0)], weights=[random(2, seed=5)])


@case()
def neighborhood_of_some_rows(mesh):
    """Queries that cover rows 2:7 of 9 key rows, with sizes of their own."""
    q, k, v = random(1, 5, 4, 2, 3), random(1, 9, 4, 2, 3, seed=1), random(1, 9, 4, 2, 3, seed=2)
    want = local_attention(q, k, v, kernel=(3, 3), row_offset=2)
    for rows in layouts(mesh, 5):
        for others in layouts(mesh, 9):
            parts = [shard(q, mesh, 1, rows), shard(k, mesh, 1, others), shard(v, mesh, 1, others)]
            close(local_attention(*parts, kernel=(3, 3), row_offset=2), want)


@case("2x2")
def neighborhood_rows_and_heads(mesh):
    q, k, v = (random(1, 7, 4, 2, 3, seed=s) for s in range(3))
    want = local_attention(q, k, v, kernel=(3, 3))
    close(local_attention(*(shard(x, mesh, (1, 3), {0: (5, 2)}) for x in (q, k, v)), kernel=(3, 3)), want)


@case("2", "3")
def window_refusals(mesh):
    x = shard(random(2, 4, 6, 6), mesh, 1)
    with pytest.raises(UnsupportedShardedOp, match="channels"):
        F.conv2d(x, random(3, 4, 3, 3))
    columns = [shard(random(1, 7, 6, 2, 3), mesh, 2) for _ in range(3)]
    with pytest.raises(UnsupportedShardedOp, match="only rows, heads and batch"):
        local_attention(*columns, kernel=(3, 3))
    rows = [shard(random(1, 7, 6, 2, 3), mesh, 1) for _ in range(3)]
    with pytest.raises(UnsupportedShardedOp, match="queries must be"):
        local_attention(random(1, 7, 6, 2, 3), *rows[1:], kernel=(3, 3))
    with pytest.raises(ValueError, match="more rows"):
        local_attention(*rows, kernel=(9, 3))
    with pytest.raises(RuntimeError, match="larger than the padded input"):
        F.conv2d(shard(random(1, 1, 4, 4), mesh, 2), random(1, 1, 5, 1))
    with pytest.raises(RuntimeError, match="wider"):
        F.pad(shard(random(1, 1, 4, 4), mesh, 2), (0, 0, 4, 0), mode="reflect")


class Projector(torch.nn.Module):
    """A small row-sharded forecaster: pad, patch, local attention, modulation, unpatch, crop, downsample."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 8, 2, stride=2)
        self.position = torch.nn.Parameter(torch.empty(1, 5, 4, 8))
        self.norm = torch.nn.LayerNorm(8)
        self.qkv = torch.nn.Linear(8, 24)
        self.modulate = torch.nn.Linear(6, 16)
        self.out = torch.nn.Linear(8, 12)
        self.coarse = torch.nn.Parameter(torch.empty(5, 9))
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, x, noise):
        n, c, height, width = x.shape
        x = F.pad(x, (0, 0, 0, 1), mode="reflect")
        tokens = self.patch(x).permute(0, 2, 3, 1) + self.position
        shift, scale = self.modulate(F.silu(noise))[:, None, None].chunk(2, -1)
        y = self.norm(tokens) * (1 + scale) + shift
        q, k, v = self.qkv(y).unflatten(-1, (3, 2, 4)).unbind(-3)
        tokens = tokens + local_attention(q, k, v, kernel=(3, 3)).flatten(-2)
        fine = self.out(tokens).reshape(n, 5, width // 2, 2, 2, c)
        fine = fine.permute(0, 5, 1, 3, 2, 4).reshape(n, c, 10, width)[:, :, :height]
        return fine, torch.matmul(self.coarse, F.gelu(fine) + x[:, :, :height])


@case()
def forecaster(mesh):
    """Values and gradients on row-sharded and on plain fields agree; the coarse result is replicated."""
    model, noise = Projector(), random(2, 6, seed=3)
    rows = {1: [(9,)], 2: [(4, 5), (6, 3), (0, 9)], 3: [(4, 2, 3), (2, 0, 7)]}[mesh.size()]
    run = lambda x, *weights: torch.func.functional_call(  # noqa: E731
        model, dict(zip(dict(model.named_parameters()), weights, strict=True)), (x, noise)
    )
    compare(run, mesh, [(random(2, 3, 9, 8), 2)], weights=list(model.parameters()), sizes=rows)
    fine, coarse = model(shard(random(2, 3, 9, 8), mesh, 2, rows[0]), noise)
    assert isinstance(coarse, ShardTensor)
    assert coarse.spec.replicated
    assert fine.sizes == (rows[0],)


@pytest.mark.parametrize("name", names(CASES))
def test_ranks(name, outcome):
    assert name in outcome.passed, outcome.trouble
