"""Layouts: construction, scatter, redistribution, placements of gradients, errors, data parallelism."""

import pytest
import torch
import torch.nn.functional as F
from shard_ranks import close, layouts, names, random, registry, shard
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from shardtensor import (
    ShardSpec,
    ShardTensor,
    chunk_sizes,
    is_sharded,
    register_function_handler,
    scatter_tensor,
)
from shardtensor._collectives import plan_fetch
from shardtensor._index import slice_rows
from shardtensor._views import follow_rows
from shardtensor._window import plan_windows

CASES, case = registry()


@pytest.mark.parametrize(("extent", "parts"), [(33, 2), (5, 4), (0, 3), (7, 7), (3, 5)])
def test_chunk_sizes_are_those_of_torch(extent, parts):
    pieces = [piece.numel() for piece in torch.arange(extent).chunk(parts)] if extent else [0]
    assert chunk_sizes(extent, parts) == (*pieces, *[0] * (parts - len(pieces)))


def test_fetch_plans_agree_between_ranks():
    sizes, wants = (3, 0, 4, 2), (((8, 9), (0, 2)), (), ((2, 8),), ((0, 9),))
    plans = [plan_fetch(sizes, wants, rank) for rank in range(4)]
    for source in range(4):
        for asker in range(4):
            assert plans[source].send_rows[asker] == plans[asker].receive[source]
    assert [sum(length for *_, length in plan.build) for plan in plans] == [3, 0, 6, 9]


def test_windows_cover_every_output_once_and_only_what_it_reads():
    for sizes in ((5, 4), (9, 0), (1, 3, 5)):
        for kernel, stride, before, after, dilation in (
            (3, 2, 1, 1, 1),
            (2, 2, 0, 1, 1),
            (3, 1, 4, 4, 4),
            (1, 3, 0, 0, 1),
        ):
            counts, wants, pads = plan_windows(sizes, kernel, stride, before, after, dilation)
            reach = dilation * (kernel - 1) + 1
            assert sum(counts) == (9 + before + after - reach) // stride + 1
            for count, want, pad in zip(counts, wants, pads, strict=True):
                rows = sum(b - a for a, b in want) + sum(pad)
                assert rows == reach + (max(count, 1) - 1) * stride


def test_slices_of_shards_name_the_rows_of_the_slice():
    for sizes in ((4, 3), (0, 7), (2, 2, 3)):
        for item in (slice(0, 7), slice(1, 6, 2), slice(5, 7), slice(3, 3), slice(0, 7, 4)):
            named, start = [], 0
            for (low, high), rows in zip(slice_rows(sizes, *item.indices(7)), sizes, strict=True):
                named += [start + row for row in range(low, high, item.step or 1)]
                start += rows
            assert named == list(range(7))[item]


def test_reshapes_follow_the_outermost_dimension():
    assert follow_rows((2, 6, 4), (2, 24), 1, (4, 2)) == (1, (16, 8))
    assert follow_rows((2, 24), (2, 6, 4), 1, (16, 8)) == (1, (4, 2))
    assert follow_rows((2, 24), (2, 6, 4), 1, (14, 10)) == (1, None)
    assert follow_rows((2, 6, 4), (12, 4), 1, (4, 2)) == (-1, None)
    assert follow_rows((1, 6, 4), (6, 1, 4), 1, (4, 2)) == (0, (4, 2))


@case()
def construction(mesh):
    x = random(2, 7, 3)
    for rows in layouts(mesh, 7):
        part = shard(x, mesh, 1, rows)
        assert part.shape == x.shape
        assert part.sizes == (rows,)
        for given in (rows, {0: rows}, "infer", None):
            again = ShardTensor.from_local(part.local, mesh, [Shard(-2)], sizes=given)
            assert again.spec == part.spec
        torch.testing.assert_close(part.full_tensor(), x, rtol=0, atol=0)
        scattered = scatter_tensor(x if mesh.get_local_rank() == 0 else None, 0, mesh, [Shard(1)], sizes=rows)
        assert scattered.spec is part.spec
        close(scattered, x)
        known = scatter_tensor(
            x if mesh.get_local_rank() == 0 else None,
            0,
            mesh,
            [Shard(1)],
            global_shape=x.shape,
            dtype=x.dtype,
            sharding_sizes=rows,
        )
        close(known, x)
        shapes = [[2, n, 3] for n in rows]
        assert (
            ShardTensor.from_local(part.local, mesh, [Shard(1)], sharding_shapes={0: shapes}).spec
            is part.spec
        )
    chunked = ShardTensor.from_local(shard(x, mesh, 1).local, mesh, [Shard(1)], global_shape=x.shape)
    assert chunked.sizes == (chunk_sizes(7, mesh.size()),)
    assert is_sharded(chunked)
    assert not is_sharded(x)
    assert len({chunked.spec, part.spec, shard(x, mesh, 1).spec}) <= 2


@case()
def tensor_surface(mesh):
    x = random(4, 6)
    part = shard(x, mesh, 0)
    assert (part.ndim, part.dim(), part.numel(), len(part)) == (2, 2, 24, 4)
    assert (part.size(), part.size(-1), part.dtype) == (x.size(), 6, torch.float64)
    assert part.is_leaf
    assert part.requires_grad
    assert torch.is_floating_point(part)
    assert not part.detach().requires_grad
    assert isinstance(part.new_zeros(3), torch.Tensor)
    text = repr(part * 2)
    assert "Shard(0)" in text
    assert "+".join(map(str, part.sizes[0])) in text
    total = part.sum()
    assert total.item() == pytest.approx(x.sum().item())
    assert float(total) == total.item()
    assert bool((total > -1e9).all())
    assert hash(part) != hash(part * 1)
    close(part.T, x.T)
    before = part.detach().clone()
    before += 1
    close(before, x + 1)


@case()
def redistribution(mesh):
    """Between all layouts, with the gradient of a position-dependent weight."""
    x = random(5, 6, 2)
    weight = random(5, 6, 2, seed=3)
    targets = [
        (Replicate(), None),
        *((Shard(0), rows) for rows in layouts(mesh, 5)),
        *((Shard(1), rows) for rows in layouts(mesh, 6)),
    ]
    for rows in layouts(mesh, 5)[1:]:
        for placement, sizes in targets:
            part = shard(x, mesh, 0, rows)
            moved = part.redistribute([placement], sizes=sizes)
            assert moved.placements == (placement,)
            assert moved.sizes == (sizes,)
            close(moved, x)
            moved.local.backward(weight[moved.local_slices()])
            close(part.grad, weight)
            back = moved.detach().redistribute([Shard(0)], sizes=rows)
            close(back, x)


@case()
def partial_sums(mesh):
    """Every rank holds (rank + 1) x; the sum is P (P + 1) / 2 x."""
    x, count = random(5, 3), mesh.size()
    weight = random(5, 3, seed=2)
    for target, sizes in ((Replicate(), None), *((Shard(0), rows) for rows in layouts(mesh, 5))):
        mine = ((mesh.get_local_rank() + 1) * x).requires_grad_()
        pending = ShardTensor.from_local(mine, mesh, [Partial()], global_shape=x.shape)
        moved = pending.redistribute([target], sizes=sizes)
        close(moved, count * (count + 1) / 2 * x)
        moved.local.backward(weight[moved.local_slices()])
        close(mine.grad, weight)
    with pytest.raises(NotImplementedError, match="pending sum"):
        pending + 1
    with pytest.raises(ValueError, match="partial terms"):
        shard(x, mesh, 0).redistribute([Partial()])


@case()
def gradient_placements(mesh):
    """Ranks that use the gathered tensor differently ask for the sum of their gradients."""
    x = random(5, 3)
    rank, count = mesh.get_local_rank(), mesh.size()
    alike, differently = shard(x, mesh, 0), shard(x, mesh, 0)
    alike.full_tensor().sum().backward()
    (differently.full_tensor(grad_placements=[Partial()]) * (rank + 1)).sum().backward()
    close(alike.grad, torch.ones(5, 3))
    close(differently.grad, torch.full((5, 3), count * (count + 1) / 2))


@case()
def backward_from_shards(mesh):
    part = shard(random(5, 3), mesh, 0)
    (part**2).backward(shard(random(5, 3, seed=1), mesh, 0).detach())
    close(part.grad, 2 * random(5, 3) * random(5, 3, seed=1))
    if mesh.size() > 1:
        with pytest.raises(NotImplementedError, match="not replicated"):
            part.backward()
    (grad,) = torch.autograd.grad((part.exp()).sum(), part)
    close(grad, random(5, 3).exp())


@case()
def weights_used_twice(mesh):
    """Gradient of a weight through two uses, a checkpointed block included."""
    x, w = random(5, 4), random(4, 4, seed=1)

    def model(x, w):
        y = torch.utils.checkpoint.checkpoint(lambda a: torch.tanh(a @ w), x, use_reentrant=False)
        return ((y @ w) * w.sum()).sum()

    mine, theirs = w.clone().requires_grad_(), w.clone().requires_grad_()
    model(shard(x, mesh, 0, layouts(mesh, 5)[-1]), mine).backward()
    model(x.clone().requires_grad_(), theirs).backward()
    close(mine.grad, theirs.grad)


@case("2")
def wrong_layouts(mesh):
    x = random(5, 3)
    for arguments, message in (
        (((Shard(0),), (5, 3), ((3, 3),)), "sum to 5"),
        (((Shard(0),), (5, 3), ((6, -1),)), ">= 0"),
        (((Shard(2),), (5, 3), ((3, 2),)), "does not fit"),
        (((Replicate(),), (5, 3), ((3, 2),)), "exactly for a Shard"),
        (((Partial("max"),), (5, 3), (None,)), "pending sum"),
        (((Shard(0), Shard(1)), (5, 3), ((3, 2), (2, 1))), "one entry for each"),
    ):
        with pytest.raises(ValueError, match=message):
            ShardSpec(mesh, *arguments)
    with pytest.raises(ValueError, match="expected"):
        ShardTensor.from_local(x, mesh, [Shard(0)], global_shape=(6, 3))
    with pytest.raises(ValueError, match="must be one of"):
        scatter_tensor(x, 3, mesh, [Shard(0)])


@case("2x2")
def two_dimensional_layouts(mesh):
    x = random(5, 7, 4)
    sizes = {0: (4, 1), 1: (0, 7)}
    part = scatter_tensor(x, 0, mesh, [Shard(0), Shard(1)], sizes=sizes)
    close(part, x)
    torch.testing.assert_close(part.full_tensor(), x, rtol=0, atol=0)
    for placements in (
        [Shard(1), Shard(0)],
        [Shard(2), Shard(1)],
        [Shard(2), Shard(0)],
        [Replicate(), Shard(0)],
        [Shard(1), Replicate()],
        [Replicate(), Replicate()],
    ):
        moved = part.redistribute(placements)
        assert moved.placements == tuple(placements)
        close(moved, x)
        close(moved.redistribute([Shard(0), Shard(1)], sizes=sizes), x)
    with pytest.raises(ValueError, match="split different ones"):
        part.redistribute([Shard(0), Shard(0)])
    with pytest.raises(ValueError, match="exactly one sharded"):
        part.redistribute(sizes=(3, 2))


def _net() -> torch.nn.Sequential:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        torch.nn.GELU(),
        torch.nn.Conv2d(4, 2, 1),
    )
    generator = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return net


def _data_parallel_step(mesh, wrap):
    """Domain-parallel groups of two, each with a sample of its own, averaged by data parallelism."""
    samples = [random(1, 2, 7, 6, seed=s) for s in range(2)]
    net = _net()
    for x in samples:
        (net(x).square().mean() / 2).backward()
    want = [p.grad for p in net.parameters()]
    spread = wrap(_net(), mesh)
    part = shard(samples[mesh.get_local_rank(0)], mesh[("domain",)], 2, (5, 2))
    spread(part).square().mean().backward()
    got = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in spread.parameters()]
    for a, b in zip(got, want, strict=True):
        close(a, b)


@case("2x2")
def data_parallel_on_top(mesh):
    _data_parallel_step(
        DeviceMesh("cpu", mesh.mesh, mesh_dim_names=("data", "domain")),
        lambda net, _: DistributedDataParallel(net),
    )


@case("2x2")
def fully_sharded_on_top(mesh):
    def wrap(net, mesh):
        for layer in (net[0], net[2]):
            fully_shard(layer, mesh=mesh["data"])
        return fully_shard(net, mesh=mesh["data"])

    _data_parallel_step(DeviceMesh("cpu", mesh.mesh, mesh_dim_names=("data", "domain")), wrap)


@case("2")
def own_handlers(mesh):
    def scale(x, factor):
        if torch.overrides.has_torch_function_unary(x):
            return torch.overrides.handle_torch_function(scale, (x,), x, factor)
        return x * factor

    def handler(func, _types, args, _kwargs):
        x, factor = args
        return ShardTensor(func(x.local, factor), x.spec)

    x = shard(random(5, 3), mesh, 0)
    with pytest.raises(NotImplementedError, match="scale"):
        scale(x, 2.0)
    register_function_handler(scale, handler)
    close(scale(x, 2.0), random(5, 3) * 2)


@case("1")
def every_module_layer(mesh):
    layers = [
        torch.nn.Linear(4, 3),
        torch.nn.LayerNorm(4),
        torch.nn.RMSNorm(4),
        torch.nn.SiLU(),
        torch.nn.Softmax(-1),
        torch.nn.Flatten(),
    ]
    for layer in layers:
        close(layer(shard(random(2, 5, 4), mesh, 0)), layer(random(2, 5, 4)))
    close(
        F.mse_loss(shard(random(2, 5), mesh, 0), random(2, 5, seed=1)),
        F.mse_loss(random(2, 5), random(2, 5, seed=1)),
    )


@pytest.mark.parametrize("name", names(CASES))
def test_ranks(name, outcome):
    assert name in outcome.passed, outcome.trouble
