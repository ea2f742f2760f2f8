"""Meeting the rest of torch: compiled graphs, checkpoints, precision, tensor parallelism, ways out."""

import copy
import math
import pickle
import tempfile
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from shard_ranks import close, compare, layouts, names, random, registry, shard
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils.checkpoint import checkpoint

import shardtensor as st
from shardtensor import ShardTensor, UnsupportedShardedOp, traffic

CASES, case = registry()


def network() -> nn.Sequential:
    """Circular padding, strides, normalisation: halos in both directions, all-reduces of weight gradients."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.GELU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Flatten(2),
        nn.LayerNorm(12),
    )
    generator = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=generator)
    return net


def gradients(net, x):
    """Value and gradients of the input and of all weights."""
    net.zero_grad()
    y = net(x)
    (y**2).mean().backward()
    return [y.detach(), x.grad, *(parameter.grad.clone() for parameter in net.parameters())]


def compare_all(got, want):
    for a, b in zip(got, want, strict=True):
        close(a, b)


def _whole_net() -> nn.Module:
    return nn.Sequential(*network()[:3], _Rows())


class _Rows(nn.Module):
    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:]).softmax(2) * x.mean((2, 3), keepdim=True)


def _compiled(mesh, backend, all_rows):
    net, x = _whole_net(), random(2, 3, 7, 6)
    want = gradients(net, x.clone().requires_grad_())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Dynamo itself
        torch._dynamo.reset()
        fast = torch.compile(net, fullgraph=True, dynamic=False, backend=backend)
        for rows in all_rows:
            compare_all(gradients(fast, shard(x, mesh, 2, rows)), want)


@case("1", "2", "3", compiles=True)
def one_compiled_graph_for_every_layout(mesh):
    """The same module compiles for even, uneven and empty shards, its collectives inside one graph."""
    _compiled(mesh, "aot_eager", layouts(mesh, 7))


@case("2", compiles=True)
def compiled_code(mesh):
    """Inductor keeps the collectives, and their order, where one rank does not need their result."""
    with tempfile.TemporaryDirectory() as folder, torch._inductor.utils.fresh_cache({}, dir=folder):
        _compiled(mesh, "inductor", [(5, 2)])


@case("1", "2", compiles=True)
def exporting_is_refused(mesh):
    net, x = network(), shard(random(2, 3, 7, 6), mesh, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match="export the module on plain tensors"):
            torch.export.export(net, (x,))


@case()
def lower_precision(mesh):
    """Under autocast the dtypes are those of one process, and values agree as far as bfloat16 does."""
    net, x = network().float(), random(2, 3, 7, 6).float()
    for rows in layouts(mesh, 7):
        with torch.autocast("cpu", torch.bfloat16):
            want, got = net[:3](x), net[:3](shard(x, mesh, 2, rows))
            assert got.dtype == want.dtype == torch.bfloat16
            a, b = F.linear(got, torch.ones(4, 3).float()), got.softmax(2)
            assert (a.dtype, b.dtype) == (torch.bfloat16, want.softmax(2).dtype)
        close(got.float(), want.float(), rtol=2**-7)


@case()
def recomputed_activations(mesh):
    net, x = network(), random(2, 3, 7, 6)
    want = gradients(net, x.clone().requires_grad_())
    for rows in layouts(mesh, 7):
        part = shard(x, mesh, 2, rows)
        net.zero_grad()
        y = checkpoint(net, part, use_reentrant=False)
        (y**2).mean().backward()
        compare_all([y, part.grad, *(p.grad for p in net.parameters())], want)


@case("2x2")
def sharded_weights_in_mixed_precision(mesh):
    """FSDP2 over one mesh dimension casts the inputs of its modules: sharded ones keep their layout."""
    both = DeviceMesh("cpu", mesh.mesh, mesh_dim_names=("data", "domain"))
    net, x = network()[:3].float(), random(2, 3, 7, 6).float()
    want = copy.deepcopy(net).bfloat16()(x.bfloat16())
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=both["data"], mp_policy=policy)
    fully_shard(net, mesh=both["data"], mp_policy=policy)
    part = shard(x, both["domain"], 2, (5, 2))
    y = net(part)
    assert isinstance(y, ShardTensor)
    assert y.dtype == torch.bfloat16
    close(y.float(), want.float(), rtol=2**-4)
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    assert part.grad is not None


@case("2x2")
def tensor_parallel_weights(mesh):
    """A block whose weights are split over one mesh dimension, on a sequence that is split over the other."""
    both = DeviceMesh("cpu", mesh.mesh, mesh_dim_names=("domain", "tensor"))
    x, up, down = random(2, 7, 6), random(8, 6, seed=1), random(6, 8, seed=2)
    leaves = [t.clone().requires_grad_() for t in (x, up, down)]
    want = F.linear(F.gelu(F.linear(leaves[0], leaves[1])), leaves[2])
    want.square().sum().backward()
    spec = st.ShardSpec.create(both, [Shard(1), Replicate()], x.shape, {0: (5, 2)})
    part = ShardTensor(x[spec.local_slices()].clone().requires_grad_(), spec)
    wide = distribute_tensor(up, both["tensor"], [Shard(0)]).requires_grad_()
    narrow = distribute_tensor(down, both["tensor"], [Shard(1)]).requires_grad_()
    hidden = F.gelu(F.linear(part, wide))
    assert hidden.placements == (Shard(1), Shard(2))
    y = F.linear(hidden, narrow)
    close(y, want)
    y.square().sum().backward()
    close(part.grad, leaves[0].grad)
    close(wide.grad.full_tensor(), leaves[1].grad)
    close(narrow.grad.full_tensor(), leaves[2].grad)


@case("1", "2", "3")
def distributed_tensors(mesh):
    x = random(5, 3)
    for rows in layouts(mesh, 5)[:1]:
        part = shard(x, mesh, 0, rows)
        there = part.to_dtensor()
        torch.testing.assert_close(there.full_tensor(), x)
        back = ShardTensor.from_dtensor(there)
        assert back.spec is part.spec
        back.square().sum().backward()
        close(part.grad, 2 * x)
    if mesh.size() > 1:
        with pytest.raises(ValueError, match=r"sizes of torch.chunk"):
            shard(x, mesh, 0, layouts(mesh, 5)[1]).to_dtensor()


@case("4")
def checkpoints_move_between_meshes(mesh):
    """Saved by four uneven ranks, loaded on a mesh of two by two with other dimensions split."""
    x, w = random(9, 6), random(4)
    folder = [tempfile.mkdtemp() if mesh.get_local_rank() == 0 else None]
    dist.broadcast_object_list(folder, 0)
    state = {"fields": shard(x, mesh, 0, (4, 0, 3, 2)), "weight": w, "step": 7}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's checkpoints: TypedStorage
        dcp.save(st.checkpointable(state), checkpoint_id=folder[0])
        square = DeviceMesh("cpu", [[0, 1], [2, 3]])
        other = st.scatter_tensor(
            torch.zeros_like(x), 0, square, [Shard(1), Shard(0)], sizes={0: (1, 5), 1: (9, 0)}
        )
        whole = ShardTensor.from_local(torch.zeros_like(x), mesh, [Replicate()])
        state = {"fields": other, "weight": torch.zeros(4), "step": 0}
        dcp.load(st.checkpointable(state), checkpoint_id=folder[0])
        dcp.load(st.checkpointable({"fields": whole}), checkpoint_id=folder[0])
    close(other, x)
    close(whole, x)
    close(state["weight"], w)


@case()
def einops_patterns(mesh):
    einops = pytest.importorskip("einops")
    x = random(2, 3, 6, 4)
    rows = {1: (6,), 2: (4, 2), 3: (2, 0, 4)}[mesh.size()]
    part = shard(x, mesh, 2, rows)
    for pattern, sizes in (
        ("b c h w -> b h w c", {}),
        ("b c h (p q) -> b c h p q", {"p": 2}),
        ("b c (h p) (w q) -> b h w (c p q)", {"p": 2, "q": 2}),
        ("b c h w -> (b c) h w", {}),
    ):
        close(einops.rearrange(part, pattern, **sizes), einops.rearrange(x, pattern, **sizes))
    close(einops.reduce(part, "b c h w -> b c", "mean"), x.mean((2, 3)))
    close(einops.reduce(part, "b c h w -> c h", "max"), x.amax((0, 3)))
    close(einops.repeat(part, "b c h w -> b c h w k", k=2), x.unsqueeze(-1).expand(2, 3, 6, 4, 2))
    w = random(5, 3, seed=1)
    close(einops.einsum(part, w, "b c h w, o c -> b o h w"), torch.einsum("bchw,oc->bohw", x, w))


class _Double(torch.autograd.Function):
    """Knows only torch.Tensor."""

    @staticmethod
    def forward(ctx, x, w):
        assert isinstance(x, torch.Tensor)
        ctx.save_for_backward(x, w)
        return 2 * x * w

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return 2 * grad * w, 2 * (grad * x).sum()


@case()
def functions_of_local_parts(mesh):
    x, w = random(2, 7, 3), random(seed=1)
    plain, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
    want = _Double.apply(plain, weight)
    want.square().sum().backward()
    for rows in layouts(mesh, 7):
        part, mine = shard(x, mesh, 1, rows), w.clone().requires_grad_()
        y = st.local_map(_Double.apply)(part, mine)
        close(y, want)
        y.square().sum().backward()
        close(part.grad, plain.grad)
        close(mine.grad, weight.grad)
    moved = st.local_map(torch.cumsum, [Shard(0)], [[Shard(0)]])(shard(x, mesh, 1), 1)
    close(moved, x.cumsum(1))
    with pytest.raises(ValueError, match="no argument is sharded"):
        st.local_map(torch.relu)(x)


@case("2", "3")
def gathering_on_request(mesh):
    x = random(5, 4)
    plain = x.clone().requires_grad_()
    want = torch.cov(plain)
    want.square().sum().backward()
    for rows in layouts(mesh, 5):
        part = shard(x, mesh, 0, rows)
        with pytest.raises(UnsupportedShardedOp, match="cov"):
            torch.cov(part)
        with st.fallback("gather"), pytest.warns(st.GatherWarning, match="cov"):
            y = torch.cov(part)
        close(y, want)
        y.square().sum().backward()
        close(part.grad, plain.grad)
    with pytest.raises(ValueError, match="gather"), st.fallback("guess"):
        pass


@case("2", "3")
def plain_tensors_on_request(mesh):
    x, w = shard(random(5, 3), mesh, 0), random(3)
    with st.promotion_mode(st.TensorPromotionMode.DISABLED):
        with pytest.raises(TypeError, match="plain tensor of shape"):
            x * w
        close(x * 2.0, random(5, 3) * 2)
    with st.promotion_mode(st.TensorPromotionMode.WARN), pytest.warns(UserWarning, match="plain tensor"):
        x * w
    close(x * w, random(5, 3) * w)


@case("1", "2", "3")
def gradients_in_buckets(mesh):
    """The same gradients, of weights used twice as well, in as many collectives as there are buckets."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = network()[:3], nn.Linear(3, 3)
            self.scale.load_state_dict({"weight": random(3, 3, seed=5), "bias": random(3, seed=6)})

        def forward(self, x):
            y = self.inner(x)
            return self.scale(self.scale(y)) * self.scale.weight.sum()

    net, x = Twice(), random(2, 3, 7, 6)
    want = gradients(net, x.clone().requires_grad_())
    for rows in layouts(mesh, 7):
        part = shard(x, mesh, 2, rows)
        net.zero_grad()
        loss = (net(part) ** 2).mean()
        with st.traffic() as seen, st.bucketed_gradients():
            loss.backward()
        compare_all([part.grad, *(p.grad for p in net.parameters())], want[1:])
        if mesh.size() > 1:
            # One for all weights, and one for their sum, which is no leaf.
            assert sum(t.kind == "all_reduce" for t in seen.transfers) == 2, seen
    first, second = (torch.nn.Parameter(random(3, seed=s)) for s in (1, 2))
    loss = (shard(random(5, 3), mesh, 0) * first + second).sum()
    with st.traffic() as seen, st.bucketed_gradients(megabytes=1e-6):
        loss.backward()
    assert sum(t.kind == "all_reduce" for t in seen.transfers) == (2 if mesh.size() > 1 else 0)


@case("2", "3", "2x2")
def weights_made_equal(mesh):
    net = nn.BatchNorm1d(3)
    with torch.no_grad():
        net.weight.fill_(1.0 + dist.get_rank())
        net.running_mean.fill_(2.0 + dist.get_rank())
    st.sync_module(net, mesh)
    close(net.weight.detach(), torch.full((3,), 1.0))
    close(net.running_mean, torch.full((3,), 2.0))
    uneven = nn.Linear(2, 2 + any(mesh.get_coordinate()))
    with pytest.raises(ValueError, match="modules differ"):
        st.sync_module(uneven, mesh)


@case("2", "3")
def disagreements_are_found_at_once(mesh):
    """What would hang or abort a later collective is an error on every rank."""
    rank, local = mesh.get_local_rank(), random(3, 4)
    for bad, sizes, message in (
        (local.float() if rank else local, None, "disagree"),
        (random(3, 4 + rank), None, "disagree"),
        (local, [3] * (mesh.size() - 1) + [4], "hold"),
        (random(3 + rank, 4), [3] * mesh.size(), "hold"),
        (local, [3 + rank] * mesh.size(), "disagree"),
    ):
        with pytest.raises(ValueError, match=message):
            ShardTensor.from_local(bad, mesh, [Shard(0)], sizes)
    with pytest.raises(ValueError, match="disagree"):
        ShardTensor.from_local(local, mesh, [Shard(1 if rank else 0)])
    close(ShardTensor.from_local(local, mesh, [Shard(0)]), torch.cat([local] * mesh.size()))


@case("2x2")
def disagreements_reach_every_rank(mesh):
    """Only two of four ranks can see it."""
    bad = random(3, 4).float() if dist.get_rank() == 3 else random(3, 4)
    with pytest.raises(ValueError, match="disagree"):
        ShardTensor.from_local(bad, mesh, [Shard(0), Shard(1)])
    assert ShardTensor.from_local(random(3, 4), mesh, [Shard(0), Shard(1)]).shape == (6, 8)


@case("4")
def meshes_do_not_mix(mesh):
    other = DeviceMesh("cpu", [[0, 1], [2, 3]])
    a = shard(random(4, 4), mesh, 0)
    b = shard(random(4, 4), other, (0, 1))
    with pytest.raises(ValueError, match="different meshes"):
        a + b


@case("1", "2")
def layouts_are_shared_objects(mesh):
    x = shard(random(6, 4), mesh, 0)
    assert (x * 2).T.T.spec is x.spec
    assert copy.deepcopy(x.detach()).spec is x.spec
    with pytest.raises(AttributeError, match="immutable"):
        x.spec.shape = (1,)
    with pytest.raises(TypeError, match=r"torch.distributed.checkpoint"):
        pickle.dumps(x.spec)
    assert x.device_mesh is mesh
    assert x.offsets(0) == (0, 3)[: mesh.size()]
    assert x.nbytes == 6 * 4 * 8


@case("1", "2")
def handlers_by_name(mesh):
    def halved(x):
        if torch.overrides.has_torch_function_unary(x):
            return torch.overrides.handle_torch_function(halved, (x,), x)
        return x / 2

    def handler(_function, _types, args, _kwargs):
        return args[0] / 2

    st.register_named_function_handler(f"{halved.__module__}.{halved.__qualname__}", handler)
    close(halved(shard(random(5, 3), mesh, 0)), random(5, 3) / 2)


@case("2", "3", "2x2")
def spherical_harmonics(mesh):
    """A transform written as torch-harmonics writes it returns a field of few waves, on every layout."""
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(12))
    table = _legendre(9, nodes)  # (m, l, latitude)

    def analysis(x):
        modes = torch.fft.rfft(x, dim=-1, norm="forward")[..., :9].transpose(-1, -2)
        parts = [torch.einsum("...mk,mlk->...lm", p, table * weights) for p in (modes.real, modes.imag)]
        return torch.complex(*parts)

    def synthesis(c):
        parts = [torch.einsum("...lm,mlk->...km", part, table) for part in (c.real, c.imag)]
        return torch.fft.irfft(torch.complex(*parts), n=24, dim=-1, norm="forward")

    waves = synthesis(torch.complex(random(2, 3, 9, 9), random(2, 3, 9, 9, seed=1)) * _real_at_zero(9))
    close(synthesis(analysis(waves)), waves)
    back = lambda x: synthesis(analysis(x))  # noqa: E731
    if mesh.ndim == 2:
        grid = ShardTensor.from_local(*_part(waves, mesh, (2, 3)))
        close(back(grid), waves)
        return
    for dim in range(4):
        compare(back, mesh, [(waves, dim)])
    with traffic() as seen:
        channels = shard(waves, mesh, 2).redistribute([Shard(1)])
        close(back(channels).redistribute([Shard(2)]), waves)
    assert [transfer.kind for transfer in seen.transfers] == ["all_to_all"] * 2


def _part(x, mesh, dims):
    spec = st.ShardSpec.create(mesh, [Shard(d) for d in dims], x.shape)
    return x[spec.local_slices()].contiguous(), mesh, spec.placements


def _legendre(degrees, nodes):
    """Normalised P_l^m at the nodes, (m, l, node), by the recurrence in l."""
    table = torch.zeros(degrees, degrees, len(nodes))
    for m in range(degrees):
        diagonal = (1 - nodes**2) ** (m / 2) * math.sqrt((2 * m + 1) / 2)
        diagonal = diagonal * math.sqrt(math.prod((2 * i - 1) / (2 * i) for i in range(1, m + 1)))
        table[m, m] = diagonal
        for n in range(m + 1, degrees):
            a = math.sqrt((4 * n * n - 1) / (n * n - m * m))
            b = math.sqrt(((n - 1) ** 2 - m * m) / (4 * (n - 1) ** 2 - 1)) if n > m + 1 else 0.0
            table[m, n] = a * (nodes * table[m, n - 1] - b * table[m, n - 2])
    return table


def _real_at_zero(degrees):
    """Zeros where l < m, and no imaginary part of m = 0 to carry."""
    keep = torch.ones(degrees, degrees).tril()
    return keep * (torch.arange(degrees) > 0)


@pytest.mark.parametrize("name", names(CASES))
def test_ranks(name, outcome):
    assert name in outcome.passed, outcome.trouble
