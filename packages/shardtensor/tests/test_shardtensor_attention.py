"""Attention over sharded sequences and grids: bytes, methods, dropout, modules, refusals."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from shard_local_attention import local_attention
from shard_ranks import close, compare, layouts, names, random, registry, shard
from torch.distributed.tensor import Replicate

import shardtensor
from shardtensor import (
    ShardSpec,
    ShardTensor,
    UnsupportedShardedOp,
    attention,
    ring_shift,
    traffic,
)
from shardtensor._method import cheapest
from shardtensor._random import at_least, numbers

CASES, case = registry()
attend = F.scaled_dot_product_attention
METHODS = ("ring", "ulysses", "gather")


def test_cost_rule():
    """Large and many heads: ulysses; few heads: ring; few keys: gather."""
    large, small = 1 << 30, 1 << 12
    assert cheapest(8, large, large, 16) == "ulysses"
    assert cheapest(8, large, large, 4) == "ring"
    assert cheapest(8, large, small, 16) == "gather"
    assert cheapest(2, large, large, 16) == "ring"
    assert cheapest(4, small, large, 1) == "ring"


def test_method_is_checked_and_restored():
    with pytest.raises(ValueError, match="method"), attention("flash"):
        pass
    with attention("ring"), pytest.raises(KeyError), attention("gather"):
        raise KeyError
    assert shardtensor._method._choice.method == "auto"


@case("1", "2", "3", "4")
def ring_bytes(mesh):
    """P - 1 blocks of keys and values forward; they and their gradients backward. Ulysses: a P-th of each."""
    ranks, rank = mesh.size(), mesh.get_local_rank(0)
    sizes = {1: (8,), 2: (7, 1), 3: (4, 0, 4), 4: (1, 3, 2, 2)}[ranks]
    shape, narrow = (2, 4, 8, 6), (2, 2, 8, 6)
    for dtype in (torch.float64, torch.bfloat16):
        row = 2 * (6 + 6) * 2 * dtype.itemsize  # of the two heads of keys and values
        wide = max(dtype.itemsize, 4) // dtype.itemsize
        q, k, v = (
            shard(random(*s, seed=i).to(dtype), mesh, 2, sizes) for i, s in enumerate((shape, narrow, narrow))
        )
        for causal in (False, True):
            with attention("ring"), traffic() as there:
                out = attend(q, k, v, is_causal=causal, enable_gqa=True)
            with traffic() as back:
                out.local.sum().backward()
            passed = sum(sizes) - sizes[(rank + 1) % ranks]  # every block but the one that comes from next
            arrived = sum(sizes) - sizes[rank]
            assert (len(there), there.sent, there.received) == (ranks - 1, passed * row, arrived * row)
            # gradients of every block but the own one leave; those of the own one arrive from the others
            assert back.sent == (passed + arrived * wide) * row
            assert back.received == (arrived + passed_gradients(sizes, rank) * wide) * row
    with attention("ulysses"), traffic() as there:
        out = attend(q, k, v, enable_gqa=True)
    assert len(there) == (4 if ranks > 1 else 0)
    with attention("gather"), traffic() as there:
        attend(q, k, v, enable_gqa=True)
    assert (len(there), there.received) == (min(ranks - 1, 1), (8 - sizes[rank]) * row)
    with attention("gather"), traffic() as there:
        attend(q, k, v, enable_gqa=True, is_causal=True)
    assert there.received == sum(sizes[:rank]) * row, "later keys are not fetched"


def passed_gradients(sizes, rank):
    """Rows of gradients that a rank receives: of all blocks but those of the rank after it."""
    return sum(sizes) - sizes[(rank - 1) % len(sizes)] if len(sizes) > 1 else 0


@case("2", "4")
def ulysses_bytes(mesh):
    """Each of the four exchanges sends (P - 1) / P of the own rows."""
    ranks = mesh.size()
    q, k, v = (shard(random(2, 4, 8, 6, seed=i), mesh, 2) for i in range(3))
    with attention("ulysses"), traffic() as there:
        out = attend(q, k, v)
    each = q.local.numel() * q.dtype.itemsize * (ranks - 1) // ranks
    assert [t.sent for t in there.transfers] == [each] * 4
    with traffic() as back:
        out.local.sum().backward()
    assert [t.sent for t in back.transfers] == [each] * 4


@case()
def automatic_method(mesh):
    q, k, v = (random(2, 8, 9, 4, seed=i) for i in range(3))
    compare(lambda q, k, v: attend(q, k, v, is_causal=True), mesh, [(q, 2), (k, 2), (v, 2)])
    compare(lambda q, k, v: attend(q, k, v), mesh, [(q, 2), (k, 2), (v, None)])


def whole(x, mesh):
    """Returns x replicated, with a gradient."""
    spec = ShardSpec.create(mesh, [Replicate()] * mesh.ndim, x.shape)
    return ShardTensor(x.detach().clone().requires_grad_(), spec)


def dropped(q, k, v, p, causal):
    """Reference: the weights of the drawn elements are dropped after the softmax."""
    shape = (*q.shape[:-1], k.shape[-2])
    keep = numbers((3, 0), shape, [slice(0, n) for n in shape], q.device, at_least(p))
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    return (scores.softmax(-1) * keep / (1 - p)) @ v


@case()
def dropout_of_weights(mesh):
    """The same weights drop whatever is sharded and however the sequence communicates."""
    inputs = [random(2, 4, n, 6, seed=i) for i, n in enumerate((5, 7, 7))]
    for causal in (False, True):
        plain = [x.clone().requires_grad_() for x in inputs]
        want = dropped(*plain, 0.4, causal)
        seed = random(*want.shape, seed=9)
        want.backward(seed)
        for dims, method in (
            ((None, None, None), "auto"),
            ((0, 0, 0), "auto"),
            ((1, 1, 1), "auto"),
            ((2, None, None), "auto"),
            ((None, 2, 2), "auto"),
            *(((2, 2, 2), method) for method in METHODS),
        ):
            parts = [
                whole(x, mesh) if d is None else shard(x, mesh, d, layouts(mesh, x.shape[d])[-1])
                for x, d in zip(inputs, dims, strict=True)
            ]
            shardtensor.manual_seed(3)
            with attention(method):
                got = attend(*parts, dropout_p=0.4, is_causal=causal)
            close(got, want, note=(dims, method))
            got.local.backward(seed[got.local_slices()])
            for part, x in zip(parts, plain, strict=True):
                close(part.grad, x.grad, note=(dims, method))


@case("2", compiles=True)
def compiled_attention(mesh):
    """One graph for every method and for dropout, whose draws advance without a new compilation."""
    q, k, v = (random(2, 4, 6, 8, seed=i) for i in range(3))
    run = lambda q, k, v: F.dropout(attend(q, k, v, is_causal=True), 0.3)  # noqa: E731
    for method in METHODS:
        torch.compiler.reset()
        with attention(method), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
            for draw in range(3):
                results = []
                for function in (run, compiled):
                    shardtensor.set_rng_state({"seed": 5, "draws": draw})
                    parts = [shard(x, mesh, 2, (4, 2)) for x in (q, k, v)]
                    out = function(*parts)
                    assert shardtensor.get_rng_state()["draws"] == draw + 1
                    out.local.square().sum().backward()
                    results.append([out.local, *(part.local.grad for part in parts)])
                for a, b in zip(*results, strict=True):
                    close(b, a)


@case("2")
def attention_refusals(mesh):
    x = random(2, 4, 6, 8)
    rows, heads, whole_ = shard(x, mesh, 2), shard(x, mesh, 1), random(2, 4, 6, 8, seed=1)
    for call in (
        lambda: attend(heads, rows, rows),
        lambda: attend(rows, heads, heads),
        lambda: attend(rows, rows, heads),
        lambda: attend(shard(x, mesh, 3), whole_, whole_),
        lambda: attend(whole_, whole_, shard(x, mesh, 3)),
    ):
        with pytest.raises(UnsupportedShardedOp, match=r"sharded over.*redistribute"):
            call()
    with pytest.raises(RuntimeError, match="is_causal"):
        attend(rows, rows, rows, attn_mask=random(6, 6), is_causal=True)
    with pytest.raises(RuntimeError, match="does not broadcast"):
        attend(rows, rows, rows, attn_mask=random(3, 6))
    with pytest.raises(UnsupportedShardedOp, match="equal batch and heads"):
        attend(rows, rows, shard(random(2, 4, 4, 8), mesh, 2))
    with pytest.raises(UnsupportedShardedOp, match="equal batch and heads"):
        attend(rows, shard(random(1, 4, 6, 8), mesh, 2), rows)
    with attention("ulysses"), pytest.raises(UnsupportedShardedOp, match="whole mask"):
        attend(rows, rows, rows, attn_mask=shard(random(6, 6), mesh, 0))


@case()
def ring_of_parts(mesh):
    x, ranks, rank = random(2, 7, 3), mesh.size(), mesh.get_local_rank(0)
    for rows in layouts(mesh, 7):
        for shift in (1, -1, 2):
            part, weight = shard(x, mesh, 1, rows), random(2, 7, 3, seed=4)
            source = (rank - shift) % ranks
            own = slice(sum(rows[:source]), sum(rows[: source + 1]))
            got = ring_shift(part, 1, shift)
            close(got, x[:, own])
            got.backward(weight[:, own])
            close(part.grad, weight)
    with pytest.raises(ValueError, match="not sharded"):
        ring_shift(part, 0)


def initialised(module):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


def called(module, pick=(0,), outputs=slice(None), **options):
    """Returns run(*inputs, *weights), that calls the module with inputs[i] for i in pick, and the weights."""
    parameters = dict(module.named_parameters())

    def run(*tensors):
        inputs, weights = tensors[: -len(parameters)], tensors[-len(parameters) :]
        named = dict(zip(parameters, weights, strict=True))
        return torch.func.functional_call(module, named, tuple(inputs[i] for i in pick), options)[outputs]

    return run, list(parameters.values())


@case()
def multi_head_modules(mesh):
    """Self and cross attention, rows or batch first, both masks, with and without the weights."""
    hidden = torch.rand(3, 6, generator=torch.Generator().manual_seed(2)) > 0.7
    hidden[:, 0] = False
    causal = torch.ones(6, 6).triu(1).bool()
    for first, batch, rows in ((True, 0, 1), (False, 1, 0)):
        module = initialised(torch.nn.MultiheadAttention(8, 2, batch_first=first))
        x, y = random(3, 6, 8), random(3, 5, 8, seed=1)
        x, y = (x, y) if first else (x.transpose(0, 1), y.transpose(0, 1))
        for dims, options in (
            ((batch, rows), {}),
            ((batch, rows), {"need_weights": False}),
            ((rows,), {"attn_mask": causal, "key_padding_mask": hidden}),
            ((rows,), {"attn_mask": causal, "key_padding_mask": hidden, "need_weights": False}),
            ((rows,), {"attn_mask": causal, "is_causal": True, "need_weights": False}),
            ((rows,), {"attn_mask": random(6, 6, 6, seed=3), "average_attn_weights": False}),
        ):
            outputs = slice(0, 1 + options.get("need_weights", True))
            run, weights = called(module, (0, 0, 0), outputs, **options)
            for dim in dims:
                compare(run, mesh, [(x, dim)], weights=weights)
        run, weights = called(module, (0, 1, 1), slice(0, 2))
        compare(run, mesh, [(x, rows), (y, None)], weights=weights)
        compare(run, mesh, [(x, None), (y, rows)], weights=weights)
        run, weights = called(module, (0, 1, 1), slice(0, 1), need_weights=False)
        compare(run, mesh, [(x, None), (y, rows)], weights=weights)
        for sizes in layouts(mesh, 6):
            close(run(shard(x, mesh, rows, sizes), shard(y, mesh, rows), *weights)[0], run(x, y, *weights)[0])
    alone, weights = called(initialised(torch.nn.MultiheadAttention(8, 2)), (0, 0, 0), slice(0, 2))
    compare(alone, mesh, [(random(6, 8), 0)], weights=weights)
    three = torch.nn.MultiheadAttention(8, 2, kdim=6, vdim=5, bias=False)
    run, weights = called(initialised(three), (0, 1, 2), slice(0, 1), need_weights=False)
    inputs = [(random(6, 2, width, seed=width), 0) for width in (8, 6, 5)]
    compare(run, mesh, inputs, weights=weights)


@case()
def encoder_layers(mesh):
    causal = torch.nn.Transformer.generate_square_subsequent_mask(6)
    for first in (True, False):
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=first)
        run, weights = called(initialised(layer))
        for dim in (0, 1):
            compare(run, mesh, [(random(3, 6, 8), dim)], weights=weights)
        run, weights = called(layer, src_mask=causal, is_causal=True)
        compare(run, mesh, [(random(3, 6, 8), 1)], weights=weights)
    layer.eval()
    with torch.no_grad():
        close(layer(shard(random(3, 6, 8), mesh, 1)), layer(random(3, 6, 8)))
    dropping = initialised(torch.nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True))
    outputs = []
    for part in (whole(random(3, 6, 8), mesh), shard(random(3, 6, 8), mesh, 1, layouts(mesh, 6)[-1])):
        shardtensor.manual_seed(4)
        outputs.append(dropping(part))
    close(outputs[1], outputs[0].local)


@case("2")
def multi_head_refusals(mesh):
    x = shard(random(6, 3, 8), mesh, 0)
    for options in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(UnsupportedShardedOp, match="appends keys"):
            torch.nn.MultiheadAttention(8, 2, **options)(x, x, x)
    with pytest.raises(RuntimeError, match="attn_mask"):
        torch.nn.MultiheadAttention(8, 2)(x, x, x, attn_mask=torch.zeros(3, 6))


GRID = [(2, 7, 5, 2, 3)] * 3


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


@case("1", "2", "3")
def neighborhood_columns(mesh):
    """Around the globe, also where the kernel is as wide as the globe or wider than a shard."""
    q, k, v = (random(*shape, seed=s) for s, shape in enumerate(GRID))
    for kernel in ((3, 3), (5, 1), (1, 5), (3, 4), (2, 2)):
        run = lambda q, k, v, n=kernel: local_attention(q, k, v, kernel=n)  # noqa: E731
        compare(run, mesh, [(q, 2), (k, 2), (v, 2)])
    run = lambda q, k, v, b: local_attention(q, k, v, kernel=(3, 3), bias=b)  # noqa: E731
    compare(run, mesh, [(q, 2), (k, None), (v, None)], weights=[random(2, seed=5)])


@case("4")
def neighborhood_of_four(mesh):
    q, k, v = (random(*shape, seed=s) for s, shape in enumerate(GRID))
    for kernel in ((3, 3), (3, 5)):
        want = local_attention(q, k, v, kernel=kernel)
        for dim, rows in ((1, (1, 0, 5, 1)), (2, (2, 1, 1, 1)), (2, (0, 4, 0, 1))):
            parts = [shard(x, mesh, dim, rows) for x in (q, k, v)]
            close(local_attention(*parts, kernel=kernel), want)


@case()
def neighborhood_of_some_rows(mesh):
    """Queries that cover rows 2:7 of 9 key rows, with sizes of their own."""
    q, k, v = random(1, 5, 4, 2, 3), random(1, 9, 4, 2, 3, seed=1), random(1, 9, 4, 2, 3, seed=2)
    want = local_attention(q, k, v, kernel=(3, 3), row_offset=2)
    for rows in layouts(mesh, 5):
        for others in layouts(mesh, 9):
            parts = [shard(q, mesh, 1, rows), shard(k, mesh, 1, others), shard(v, mesh, 1, others)]
            close(local_attention(*parts, kernel=(3, 3), row_offset=2), want)


@case("1", "2", "3")
def neighborhood_across_poles(mesh):
    """Rows beyond a pole come from the ranks that hold them; a kernel as high as the grid needs all."""
    q, k, v = (random(2, 7, 4, 2, 3, seed=s) for s in range(3))
    for poles in ("cross", "cross_pole_row"):
        for kernel in ((3, 3), (7, 3), (1, 3)):
            run = lambda q, k, v, n=kernel, p=poles: local_attention(q, k, v, kernel=n, poles=p)  # noqa: E731
            compare(run, mesh, [(q, 1), (k, 1), (v, 1)])
        run = lambda q, k, v, p=poles: local_attention(q, k, v, kernel=(5, 3), poles=p)  # noqa: E731
        compare(run, mesh, [(q, 1), (k, None), (v, None)])
        compare(run, mesh, [(q, 3), (k, 3), (v, 3)])


@case("2x2")
def neighborhood_on_a_grid(mesh):
    inputs = [random(*shape, seed=s) for s, shape in enumerate(GRID)]
    bias = random(2, seed=5)
    for dims, sizes in (
        ((1, 3), {0: (5, 2)}),
        ((1, 2), {0: (5, 2), 1: (4, 1)}),
        ((1, 2), {0: (3, 4), 1: (0, 5)}),
        ((2, 1), {0: (2, 3), 1: (7, 0)}),
        ((2, 0), {0: (2, 3)}),
    ):
        for kernel in ((3, 3), (5, 5)):
            plain, theirs = [x.clone().requires_grad_() for x in inputs], bias.clone().requires_grad_()
            parts, ours = [shard(x, mesh, dims, sizes) for x in inputs], bias.clone().requires_grad_()
            if dims == (1, 3):
                theirs, ours = (b.detach()[:1].clone().requires_grad_() for b in (theirs, ours))
            want = local_attention(*plain, kernel=kernel, bias=theirs)
            got = local_attention(*parts, kernel=kernel, bias=ours)
            close(got, want)
            seed = random(*want.shape, seed=8)
            want.backward(seed)
            got.local.backward(seed[got.local_slices()])
            for a, b in zip([*plain, theirs], [*parts, ours], strict=True):
                close(b.grad, a.grad, note=(dims, sizes, kernel))


@case("2", "3")
def neighborhood_bytes(mesh):
    """By rows every rank receives the key rows that its windows need and it does not hold."""
    q, k, v = (random(1, 12, 4, 2, 3, seed=s) for s in range(3))
    for rows in layouts(mesh, 12):
        parts = [shard(x, mesh, 1, rows) for x in (q, k, v)]
        with traffic() as there:
            local_attention(*parts, kernel=(5, 3))
        own = parts[0].local_slices()[1]
        starts = [min(max(row - 2, 0), 7) for row in range(own.start, own.stop)]
        seen = {row for start in starts for row in range(start, start + 5)}
        missing = len(seen - set(range(own.start, own.stop)))
        if own.start < own.stop:
            assert there.received == 2 * missing * 4 * 2 * 3 * 8


@case("2")
def neighborhood_refusals(mesh):
    parts = [shard(random(1, 7, 6, 2, 3), mesh, 1) for _ in range(3)]
    with pytest.raises(UnsupportedShardedOp, match="queries must be"):
        local_attention(random(1, 7, 6, 2, 3), *parts[1:], kernel=(3, 3))
    with pytest.raises(UnsupportedShardedOp, match="channels are sharded"):
        local_attention(*(shard(random(1, 7, 6, 2, 4), mesh, 4) for _ in range(3)), kernel=(3, 3))
    columns = [shard(random(1, 7, 6, 2, 3), mesh, 2) for _ in range(3)]
    with pytest.raises(UnsupportedShardedOp, match="do not wrap"):
        local_attention(*columns, kernel=(3, 3), longitude="clamp")
    with pytest.raises(UnsupportedShardedOp, match="turn at the poles"):
        local_attention(*columns, kernel=(3, 3), poles="cross")
    with pytest.raises(ValueError, match="poles must be one of"):
        local_attention(*parts, kernel=(3, 3), poles="reflect")
    with pytest.raises(ValueError, match="must be even"):
        local_attention(
            *(shard(random(1, 7, 5, 2, 3), mesh, 1) for _ in range(3)), kernel=(3, 3), poles="cross"
        )
    with pytest.raises(ValueError, match="more rows"):
        local_attention(*parts, kernel=(9, 3))
    with pytest.raises(ValueError, match="more columns"):
        local_attention(*columns, kernel=(3, 7))
    with pytest.raises(ValueError, match="columns of the queries"):
        local_attention(shard(random(1, 7, 4, 2, 3), mesh, 2), *columns[1:], kernel=(3, 3))


@pytest.mark.parametrize("name", names(CASES))
def test_ranks(name, outcome):
    assert name in outcome.passed, outcome.trouble
