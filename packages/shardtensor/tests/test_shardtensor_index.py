"""Indexing, concatenation, reshapes and contractions: refusals, layouts and what must not be mistaken."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from shard_ranks import close, compare, layouts, names, random, registry, shard
from shard_samples import put
from torch.distributed.tensor import Replicate, Shard

from shardtensor import ShardTensor, UnsupportedShardedOp, traffic
from shardtensor._concat import plan_join
from shardtensor._products import plan_chain
from shardtensor._rearrange import diagonal_rows, plan_unfold
from shardtensor._take import plan_rows
from shardtensor._views import whole_rows

CASES, case = registry()


def test_plan_join():
    """Ranks hold (a0, b0) and (a1, b1); the result is a0 a1 b0 b1, cut where the ranks' loads end."""
    assert plan_join(((2, 3), (4, 1))) == ((6, 4), (((0, 2), (6, 9), (2, 3)), ((3, 6), (9, 10))))
    assert plan_join(((1, 0), (4, 5), (0, 2))) == ((5, 7), (((0, 5),), ((5, 12),)))


def test_plans_of_rows():
    assert whole_rows((15, 3), (5, 9), 0, 0, (8, 7)) == (9, 6)
    assert whole_rows((15, 3), (5, 9), 0, 0, (1, 0, 14)) == (0, 0, 15)
    assert plan_unfold((4, 5), 3, 2) == ((2, 2), (((0, 5),), ((4, 9),)))
    assert plan_rows((3, 4, 5, -1, 0), 7, 2) == ((3, 2), (((3, 6),), ((6, 7), (0, 1))))
    assert diagonal_rows((2, 3), 1, 4) == (2, 1)
    assert diagonal_rows((2, 3), -1, 4) == (1, 3)
    assert plan_chain((10, 100, 5, 50)) == ((0, 1), 2)
    assert plan_chain((50, 5, 100, 10)) == (0, (1, 2))


@case("2", "3")
def refusals_name_the_way_out(mesh):
    x = shard(random(6, 7, 2), mesh, 1)
    square = shard(random(6, 6), mesh, 0)
    whole = shard(random(7, 3), mesh, 1).redistribute([Replicate()])
    for message, function in (
        (r"where\(mask", lambda: x[x > 0]),
        (r"where\(mask", lambda: x[:, torch.ones(7, dtype=torch.bool)]),
        (r"where\(mask", lambda: x[True]),
        (r"where\(mask", lambda: torch.masked_select(x, x > 0)),
        (r"where\(mask", lambda: x.nonzero()),
        ("as many rows as the mask", lambda: x.__setitem__(x > 0, random(3))),
        ("plain tensor", lambda: random(6, 7, 2).__setitem__(0, x[0])),
        ("does not split the tensor", lambda: x[0].redistribute([Replicate()]).__setitem__(..., x[1])),
        (r"\[Shard\(0\)\]", lambda: x.flatten(0, 1)),
        (
            "all indices at once",
            lambda: F.embedding(shard(torch.arange(6), mesh, 0), random(6, 2), max_norm=1.0),
        ),
        ("sharded like the target", lambda: x.index_add(1, torch.arange(7), x)),
        (
            "only sums",
            lambda: whole.index_copy(0, shard(torch.arange(7), mesh, 0), shard(random(7, 3), mesh, 0)),
        ),
        ("several ranks", lambda: torch.kron(square, square)),
        ("matrices are sharded", lambda: torch.linalg.inv(square)),
        ("rows or columns of the matrices", lambda: torch.linalg.solve(square, random(6, 2))),
        ("coordinates", lambda: torch.cdist(shard(random(4, 6), mesh, 1), random(3, 6))),
        ("is sharded", lambda: torch.linalg.cross(shard(random(4, 3), mesh, 1), random(4, 3))),
        ("do not match", lambda: torch.cat([x, shard(random(6, 7, 2), mesh, 0)], 1)),
        ("index tensors together", lambda: x.__setitem__((0, [1, 2]), 0.0)),
    ):
        with pytest.raises(UnsupportedShardedOp, match=message) as caught:
            function()
        assert any(word in str(caught.value) for word in ("Call .", "Use ", "Give ", "Assign "))


@case("2", "3")
def advice_for_merges_works(mesh):
    x = shard(random(6, 7, 2), mesh, 1)
    with pytest.raises(UnsupportedShardedOp, match=r"redistribute\(\[Shard\(0\)\]\)"):
        x.flatten(0, 1)
    close(x.redistribute([Shard(0)]).flatten(0, 1), random(6, 7, 2).flatten(0, 1))


@case("2x2")
def two_sharded_dimensions_do_not_merge(mesh):
    x = shard(random(2, 6, 4), mesh, (1, 2))
    with pytest.raises(UnsupportedShardedOp, match=r"redistribute\(\[Shard\(1\), Replicate\(\)\]\)"):
        x.flatten(1)
    close(x.redistribute([Shard(1), Replicate()]).flatten(1), random(2, 6, 4).flatten(1))
    with pytest.raises(UnsupportedShardedOp, match="both"):
        shard(random(4, 4), mesh, (0, 1)).diagonal()


@case("2", "3")
def extents_and_indices_are_checked_globally(mesh):
    parts = mesh.size()
    x = shard(random(2 * parts, 3), mesh, 0)
    for function in (
        lambda: x[2 * parts],
        lambda: x[[0, 2 * parts]],
        lambda: x[torch.tensor([2 * parts])],
        lambda: x[torch.tensor([[-2 * parts - 1]])],
        lambda: x.gather(0, torch.full((1, 3), 2 * parts)),
        lambda: x.index_add(0, torch.tensor([2 * parts]), random(1, 3)),
        lambda: x.__setitem__(slice(0, 2), random(3, 3)),
        lambda: x.__setitem__(2 * parts, 0.0),
        lambda: x.__setitem__(..., random(2, 3)),
        lambda: x.__setitem__(torch.ones(2, dtype=torch.bool), 0.0),
        lambda: x.__setitem__(torch.tensor([0, 1]), random(3, 3)),
        lambda: x.split([2, 2 * parts], 0),
        lambda: x.expand(2 * parts + 1, 3),
        lambda: x.unsqueeze(4),
        lambda: x.hsplit(2),
        lambda: torch.addmm(random(2, 4), x, random(3, 4)),
        lambda: torch.outer(x, x),
        lambda: x.repeat_interleave(torch.tensor([1, 2, 3]), 0),
        lambda: x.repeat_interleave(torch.tensor([2, -1] * parts), 0),
        lambda: x.repeat_interleave(torch.tensor([2]), 0, output_size=3),
        lambda: F.one_hot(shard(torch.zeros(0, dtype=torch.long), mesh, 0)),
    ):
        with pytest.raises((RuntimeError, IndexError)):
            function()


@case()
def indices_out_of_range_raise_as_torch_does(mesh):
    """Negative ones too, where torch does not count them from the end; along any dimension."""
    x, source = random(6, 3), random(2, 3, seed=1)
    for bad in (-1, -7, 6):
        index = torch.tensor([1, bad])
        column = index.unsqueeze(1).expand(2, 3)
        for function in (
            lambda x, at, _: x.index_select(0, at),
            lambda x, _, column: x.gather(0, column),
            lambda x, at, _: F.embedding(at, x),
            lambda x, at, _: x.index_add(0, at, source),
            lambda x, at, _: x.index_copy(0, at, source),
            lambda x, _, column: x.scatter(0, column, source),
            lambda x, _, column: x.scatter_add(0, column, source),
            lambda x, _, column: x.scatter_reduce(0, column, source, "sum"),
            lambda x, at, _: x[at],
            lambda x, at, _: x[:, 0].take(at),
            lambda x, at, _: x.index_fill(0, at, 0.0),
            lambda x, at, _: x.index_put((at,), source),
        ):
            try:
                want = function(x, index, column)
            except (RuntimeError, IndexError) as error:
                for dim in (0, 1):
                    with pytest.raises(type(error)):
                        function(shard(x, mesh, dim), index, column)
            else:
                close(function(shard(x, mesh, 0), index, column), want)
    for dim in (0, 1):  # torch < 2.13 refuses these
        if torch.__version__ >= "2.13" or dim == 0:
            back = torch.take_along_dim(shard(x, mesh, dim), torch.tensor([[-1], [-6]]), 0)
            close(back, x[[5, 0]])


@case()
def layouts_of_concatenations(mesh):
    """The loads of the ranks are the sums of the parts'; plain rows join the rank at their end."""
    x, y = random(7, 3), random(5, 3, seed=1)
    for a in layouts(mesh, 7):
        for b in layouts(mesh, 5):
            out = torch.cat([shard(x, mesh, 0, a), shard(y, mesh, 0, b)])
            assert out.sizes == (tuple(m + n for m, n in zip(a, b, strict=True)),)
            close(out, torch.cat([x, y]))
        with traffic() as seen:
            out = torch.cat([y, shard(x, mesh, 0, a).detach(), y[:2]])
        assert len(seen) == 0
        assert out.sizes[0] == (a[0] + 5, *a[1:-1], a[-1] + 2) if mesh.size() > 1 else (14,)
        close(out, torch.cat([y, x, y[:2]]))


@case()
def masks_of_truth_values(mesh):
    """Rows of boolean tensors are exchanged too."""
    flags = random(8, 3) > 0
    for rows in layouts(mesh, 8):
        x = shard(flags, mesh, 0, rows)
        close(x[3], flags[3])
        close(x[torch.tensor([7, 0, 5])], flags[[7, 0, 5]])
        close(x.squeeze(), flags.squeeze())


@case()
def determinants(mesh):
    compare(lambda x: (torch.det(x), torch.linalg.det(x)), mesh, [(random(5, 3, 3), 0)])


@case()
def assignments_return_nothing_and_write_the_tensor(mesh):
    x = random(5, 4)
    for rows in layouts(mesh, 5):
        y = shard(x, mesh, 0, rows).detach()
        local = y.local
        y[1:3, 2] = 7.0
        y[:, [0, 3]] = torch.tensor([1.0, 2.0])
        y[torch.tensor([4, -5])] = 0.5
        y[y > 6] = torch.tensor(-1.0)
        want = x.clone()
        want[1:3, 2] = 7.0
        want[:, [0, 3]] = torch.tensor([1.0, 2.0])
        want[torch.tensor([4, -5])] = 0.5
        want[want > 6] = torch.tensor(-1.0)
        assert y.local is local
        close(y, want)


@case()
def plain_tables_at_sharded_indices(mesh):
    """A plain tensor indexed by a sharded one gives a sharded result."""
    table, index = random(9, 4), torch.tensor([3, 8, 0, -1, 3])
    for rows in layouts(mesh, 5):
        out = table[shard(index, mesh, 0, rows), ...]
        assert isinstance(out, ShardTensor)
        assert out.sizes == (rows,)
        close(out, table[index])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            close(table[shard(index[:2], mesh, 0)], table[index[:2]])


@case("2", "3")
def rows_known_to_python_travel_alone(mesh):
    """A list costs only its rows; a tensor of indices costs the result once from every rank."""
    x = shard(random(60, 10), mesh, 0).detach()
    with traffic() as listed:
        x[[59, 0]]
    with traffic() as indexed:
        x[torch.tensor([59, 0])]
    assert listed.sent <= 10 * 8
    assert indexed.sent <= 2 * 10 * 8


@case("2", "3")
def empty_shapes(mesh):
    x = put(random(4, 0, 3), mesh, [0], {0: (4, *(0,) * (mesh.size() - 1))})
    assert x.reshape(0, 2).shape == (0, 2)
    assert x.flatten().shape == (0,)
    assert len(x.chunk(2, 1)) == 2


@pytest.mark.parametrize("name", names(CASES))
def test_ranks(name, outcome):
    assert name in outcome.passed, outcome.trouble
