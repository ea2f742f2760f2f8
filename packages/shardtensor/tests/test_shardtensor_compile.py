"""torch.compile: every kind of operation in one graph, with the values and gradients of one process."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from shard_ranks import close, compare, names, random, registry, shard
from shard_samples import check_compiled
from test_shardtensor_table import SAMPLES

import shardtensor as st

CASES, case = registry()


def in_one_graph(run, *inputs, weights=()):
    """Makes a case: `run` compiled on sharded tensors against `run` itself on plain ones.

    Args:
        run: takes the inputs and weights; returns a tensor or a sequence of tensors.
        inputs: (shape, dimension to shard or None); the sharded extents are equal.
        weights: shapes of plain tensors.
    """

    def check(mesh):
        compiled = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
        extent = next(shape[dim] for shape, dim in inputs if dim is not None)
        rows = {2: (extent - 2, 2), 3: (3, 0, extent - 3)}[mesh.size()]
        torch._dynamo.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Dynamo itself
            compare(
                lambda *leaves: (compiled if any(map(st.is_sharded, leaves)) else run)(*leaves),
                mesh,
                [(random(*shape, seed=i), dim) for i, (shape, dim) in enumerate(inputs)],
                weights=[random(*shape, seed=50 + i) for i, shape in enumerate(weights)],
                sizes=[rows],
            )

    return check


IMAGE = ((2, 3, 9, 8), 2)
ROWS = ((2, 7, 6), 1)
MATRIX = ((7, 4), 0)
SEQUENCE = ((2, 2, 8, 4), 2)
OPERATIONS = {
    "operators": in_one_graph(lambda x, w: 1 - (w - 2 * x).abs() / (x**2 + 1), ROWS, weights=[(6,)]),
    "comparisons": in_one_graph(lambda x: torch.where((x > 0) & (x < 1), x, -x).clamp(max=0.5), ROWS),
    "reductions": in_one_graph(lambda x: [x.sum(1), x.mean(), x.amax(1), x.norm(), x.prod(1)], ROWS),
    "variance": in_one_graph(lambda x: [*torch.var_mean(x, 1), x.std(), x.logsumexp(1)], ROWS),
    "softmax": in_one_graph(lambda x: [x.softmax(1), x.log_softmax(2)], ROWS),
    "scans": in_one_graph(lambda x: [x.cumsum(1), x.diff(dim=1), x.cummax(1)[0]], ROWS),
    "orders": in_one_graph(
        lambda x: [x.max(1)[0], x.topk(2, 1)[0], x.sort(1)[0], x.median(1)[0], x.argmax(1)], ROWS
    ),
    "views": in_one_graph(
        lambda x: [x.transpose(0, 1).flatten(1), (2 * x).unflatten(2, (3, -1)), x.squeeze(), x.T], ROWS
    ),
    "reshape": in_one_graph(lambda x: x.reshape(4, 2, 4).permute(1, 0, 2), ((8, 4), 0)),
    "repeats": in_one_graph(
        lambda x: [x.repeat(1, 2, 1), x.repeat_interleave(2, 1), x.unfold(1, 3, 2)], ROWS
    ),
    "rolls": in_one_graph(lambda x: [x.roll(2, 1), x.flip(1), x.narrow(1, 1, 4), *x.split(3, 1)], ROWS),
    "brackets": in_one_graph(lambda x: [x[:, 1:6:2], x[..., None, :2], x[:, -1], x[:, [4, 0, 0]]], ROWS),
    "gathers": in_one_graph(
        lambda x: [x.index_select(1, torch.arange(4)), x.gather(1, torch.ones(2, 3, 6).long())], ROWS
    ),
    "scatters": in_one_graph(
        lambda x, w: [x.index_add(1, torch.tensor([0, 5, 0]), w), x.index_fill(1, torch.tensor([6]), 2.0)],
        ROWS,
        weights=[(2, 3, 6)],
    ),
    "joins": in_one_graph(
        lambda x, y: [torch.cat([x, y], 1), torch.cat([x, y], 2), torch.stack([x, y])], ROWS, ROWS
    ),
    "linear": in_one_graph(F.linear, ROWS, weights=[(5, 6), (5,)]),
    "products": in_one_graph(
        lambda x, y, w: [torch.matmul(x, w), torch.matmul(x.mT, y), torch.matmul(w, x.mT)],
        MATRIX,
        MATRIX,
        weights=[(4, 4)],
    ),
    "einsum": in_one_graph(lambda x, w: torch.einsum("b n i, i o -> b o", x, w), ROWS, weights=[(6, 5)]),
    "solves": in_one_graph(
        lambda x: [torch.linalg.solve(torch.matmul(x, torch.ones(4, 4)) + 9 * torch.eye(4), x)],
        ((7, 4, 4), 0),
    ),
    "convolution": in_one_graph(
        lambda x, w, b: F.conv2d(F.pad(x, (1, 1, 0, 0), "circular"), w, b, stride=2, padding=1),
        IMAGE,
        weights=[(4, 3, 3, 3), (4,)],
    ),
    "transposed convolution": in_one_graph(
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1), IMAGE, weights=[(3, 2, 3, 3)]
    ),
    "pools": in_one_graph(
        lambda x: [F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 2), F.adaptive_avg_pool2d(x, (4, 3))], IMAGE
    ),
    "resampling": in_one_graph(
        lambda x: [
            F.interpolate(x, scale_factor=2, mode="bilinear"),
            F.interpolate(x, size=(7, 5), mode="bicubic", align_corners=True),
            F.interpolate(x, size=(7, 5), mode="bilinear"),
            F.interpolate(x, size=(4, 7), mode="nearest"),
            F.interpolate(x, size=(5, 4), mode="bilinear", antialias=True),
        ],
        IMAGE,
    ),
    "blocks": in_one_graph(
        lambda x: [F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), F.pad(x, (0, 0, 2, 1), "reflect")],
        ((2, 4, 9, 8), 2),
    ),
    "normalisation": in_one_graph(
        lambda x, w, b: [
            F.group_norm(x, 3, w, b),
            F.instance_norm(x),
            F.batch_norm(x, None, None, training=True),
            F.layer_norm(x, x.shape[1:]),
            F.rms_norm(x, x.shape[2:]),
        ],
        IMAGE,
        weights=[(3,), (3,)],
    ),
    "attention": in_one_graph(
        lambda q, k, v: [
            F.scaled_dot_product_attention(q, k, v),
            F.scaled_dot_product_attention(q, k, v, is_causal=True),
        ],
        SEQUENCE,
        SEQUENCE,
        SEQUENCE,
    ),
    "losses": in_one_graph(
        lambda x, y: [F.mse_loss(x, y), F.smooth_l1_loss(x, y), F.cosine_similarity(x, y, 1)], ROWS, ROWS
    ),
    # Dynamo hands on what is written; torch, all arguments by name.
    "arguments left out": in_one_graph(
        lambda x: [F.alpha_dropout(x), F.feature_alpha_dropout(x), F.rrelu(x), F.avg_pool1d(x, 2, 2, 1)],
        ((2, 7, 6), 2),
    ),
    "spectra": in_one_graph(lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), 7, 1), ROWS),
}
for _name, _check in OPERATIONS.items():
    _check.__name__ = _name.replace(" ", "_")
    case("2", "3", compiles=True)(_check)

# One or two operations of each kind. The cases above have the others that models use most.
KINDS = """
    lerp copy_ bucketize prelu view_as_real to new_full isin dropout dropout2d
    nansum aminmax count_nonzero dist matrix_norm cummin logcumsumexp trapezoid
    softmin movedim broadcast_to tile rot90 diagonal tril meshgrid tensor_split roll unbind glu
    take take_along_dim embedding __getitem__ __setitem__ index_put scatter_reduce scatter_
    concat column_stack atleast_2d bilinear addmm tensordot cdist cross vecdot inverse eigh
    fft2 irfftn fftshift multi_head_attention_forward normalize batch_norm local_response_norm
    cross_entropy nll_loss kl_div cosine_embedding_loss
    conv1d conv_transpose1d pad max_pool1d lp_pool2d adaptive_max_pool1d interpolate channel_shuffle fold
"""
FIRST = {sample.op: sample for sample in reversed(SAMPLES) if sample.dims}


def _sample(op):
    def check(mesh):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_compiled(FIRST[op], mesh)

    check.__name__ = f"sample_{op}"
    return check


for _op in KINDS.split():
    case("2", compiles=True)(_sample(_op))


@case("2", "3", compiles=True)
def attention_as_a_module(mesh):
    net = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    for i, parameter in enumerate(net.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    in_one_graph(lambda x: net(x, x, x, need_weights=True), ((2, 6, 8), 1))(mesh)


@case("2", compiles=True)
def what_a_graph_writes(mesh):
    """Running statistics and tensors given to the graph are written in place."""
    x = random(4, 3, 5)
    plain, net = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    plain(x)

    def run(x, y):
        y[1:3] = 0
        y.mul_(2).cumsum_(2)
        return net(x)

    torch._dynamo.reset()
    part, there = shard(x, mesh, 0, (3, 1)), shard(x, mesh, 0, (3, 1)).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")(part, there)
    close(net.running_mean, plain.running_mean)
    close(net.running_var, plain.running_var)
    x[1:3] = 0
    close(there, (2 * x).cumsum(2))


@case("2", compiles=True)
def the_error_of_an_operation_is_told(mesh):
    """What has no sharded form fails while the graph is made, with the reason and the remedy."""
    x = shard(random(6, 4), mesh, 0)
    for run, message in (
        (torch.cov, r"cov.*redistribute\(\[Replicate\(\)\]\)"),
        (lambda x: torch.kron(x, x), "kron"),
        (lambda x: x[x > 0], "depend on data"),
        (lambda x: F.conv1d(x, torch.ones(4, 6, 3)), "the channels are sharded"),
        (lambda x: x @ torch.ones(4, 2), r"operator @.*torch\.matmul"),
        (lambda x: x.detach().histc(4), "in a compiled graph.*min="),
        (lambda x: x.repeat_interleave(torch.tensor([1, 0, 2, 1]), 1), "in a compiled graph.*output_size"),
        (lambda x: x[:, torch.tensor([True, False, True, True])], r"in a compiled graph.*torch\.where"),
        (lambda x: 1.0 if torch.allclose(x, x) else 2.0, "allclose: in a compiled graph"),
        (lambda x: torch.bincount(x.long().abs()), "bincount: in a compiled graph"),
        (lambda x: torch.unique(x), "unique: in a compiled graph"),
        (lambda x: F.l1_loss(x, x, weight=x), "loses the weight"),
    ):
        torch._dynamo.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(Exception, match=message):
                torch.compile(run, fullgraph=True, dynamic=False, backend="eager")(x)


@pytest.mark.parametrize("name", names(CASES))
def test_ranks(name, outcome):
    assert name in outcome.passed, outcome.trouble
