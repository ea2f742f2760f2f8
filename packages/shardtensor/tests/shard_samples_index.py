"""Samples of indexing: slices, integers, index tensors, and writing at them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from shard_samples import Sample
from torch import Tensor

Run = Callable[..., Any]


def read(op: str, run: Run, shape: tuple[int, ...], *dims: int, grid: Any = (), **more: Any) -> Sample:
    """A sample of one input; with `cost`, that many collectives forward and backward."""
    cost = more.pop("cost", 0)
    grids = tuple((pair,) for pair in grid)
    more = {"forward": cost, "backward": cost} | more
    return Sample(op=op, run=run, inputs=(shape,), dims=tuple((d,) for d in dims), grid=grids, **more)


def places(x: Tensor, extent: int) -> Tensor:
    """Turns normal numbers into indices."""
    return (x * 1000).long() % extent


def indices(*shape: int, extent: int, seed: int = 0) -> Tensor:
    """Returns indices that all ranks agree on."""
    return torch.randint(extent, shape, generator=torch.Generator().manual_seed(seed))


def distinct(count: int, extent: int) -> Tensor:
    """Returns different indices in no order."""
    return torch.randperm(extent, generator=torch.Generator().manual_seed(3))[:count]


def written(change: Callable[..., Any]) -> Run:
    """Returns a function that changes a copy of its first argument in place."""

    def run(x: Any, *rest: Any) -> Any:
        y = x * 2
        change(y, *rest)
        return y

    return run


def assigned(index: Any, value: Any = None) -> Run:
    """Returns a function that assigns to x[index] the second argument, or `value`."""

    def run(x: Any, *rest: Any) -> Any:
        y = x * 2
        y[index] = rest[0] if rest else value
        return y

    return run


ALL = slice(None)
MASK = torch.tensor([True, False, True, True])
ROWS, COLUMNS = indices(5, extent=8, seed=1), indices(5, extent=7, seed=2)
TABLE = indices(2, 6, extent=8, seed=4)

SAMPLES = [
    # slices and integers
    read("__getitem__", lambda x: (x[:, 2:7], x[:, 1:8:3], x[:, :-1], x[:, 9:]), (3, 9, 4), 0, 1, 2),
    read(
        "__getitem__",
        lambda x: (x[::2, ..., 1:], x[..., None, :], x[:, None]),
        (3, 9, 4),
        0,
        1,
        2,
        grid=[(0, 1)],
    ),
    read("__getitem__", lambda x: (x[0], x[..., 1], x[-1, :, 2]), (3, 9, 4), 1),
    read("__getitem__", lambda x: x[:, 4], (3, 9, 4), 1, forward=1, grid=[(0, 1), (1, 2)]),
    read("__getitem__", lambda x: x[1, -1, None], (3, 9, 4), 0, 1, forward=1),
    read("select", lambda x: x.select(1, 5), (3, 9), 1, forward=1),
    read("select", lambda x: torch.select(x, index=1, dim=0), (3, 9), 1),
    read(
        "narrow",
        lambda x: (x.narrow(1, 2, 3), x.narrow(start=-3, length=2, dim=1)),
        (3, 9),
        0,
        1,
        grid=[(0, 1)],
    ),
    # lists and tensors where the dimension is whole
    read("__getitem__", lambda x: (x[[2, 0]], x[..., [1, -1, 1]], x[range(2)]), (3, 9, 4), 1, grid=[]),
    read("__getitem__", lambda x: x[:, [0, 2, 1], [3, 1, 0]], (8, 3, 4), 0),
    read("__getitem__", lambda x: x[[0, 2], :, [[3, 1], [2, 0]]], (3, 8, 4), 1),
    read("__getitem__", lambda x: x[:, [0, 2], None, [3, 1]], (8, 3, 4), 0),
    read("__getitem__", lambda x: x[[0, 2], 1, :, [3, 1]], (3, 2, 8, 4), 2),
    read("__getitem__", lambda x: x[1:, torch.tensor(2), ..., torch.tensor([1, 0])], (8, 3, 2, 4), 0, 2),
    read("__getitem__", lambda x: x[:, torch.tensor(-1)], (3, 9, 4), 0, 2),
    read("__getitem__", lambda x: (x[MASK], x[MASK, 1:]), (4, 9), 1),
    read("__getitem__", lambda x: x[:, MASK.view(2, 2)], (8, 2, 2, 3), 0, 3),
    # rows of a sharded dimension, known to Python: only they travel
    read("__getitem__", lambda x: x[:, [5, 0, -1, 3, 3, 4, 8, 1]], (3, 9, 4), 1, cost=1, grid=[(0, 1)]),
    read("__getitem__", lambda x: x[range(8, 0, -1)], (9, 4), 0, cost=1),
    # rows of a sharded dimension, known to the device: added and shared out
    read("__getitem__", lambda x: x[ROWS - 8], (8, 4), 0, cost=1, grid=[(0, 1)]),
    read("__getitem__", lambda x: x[:, TABLE], (3, 8, 4), 1, cost=1),
    read("__getitem__", lambda x: x[ROWS, COLUMNS], (8, 7, 3), 0, 1, cost=1, grid=[(0, 1), (1, 2)]),
    read("__getitem__", lambda x: x[ROWS, :, COLUMNS], (8, 3, 7), 0, 2, cost=1),
    read("__getitem__", lambda x: x[:, torch.tensor(4)], (3, 9, 4), 1, forward=1),
    # sharded indices
    Sample(
        op="__getitem__",
        run=lambda x, i: x[:, places(i, 5)],
        inputs=((3, 5, 2), (8,)),
        dims=((None, 0),),
        grid=(((None, 2), (0, None)), ((0, None), (None, 0))),
        backward=1,
        bf16=False,
    ),
    Sample(
        op="__getitem__",
        run=lambda x, i: x[places(i, 8)],
        inputs=((8, 2), (9, 2)),
        dims=((0, 0), (0, 1)),
        forward=2,
        backward=1,
        bf16=False,
    ),
    Sample(
        op="index_select",
        run=lambda x, i: torch.index_select(x, 0, places(i, 8)),
        inputs=((8, 2), (9,)),
        dims=((0, None),),
        grid=(((0, None), (None, 0)),),
        forward=1,
        backward=1,
        bf16=False,
    ),
    read("index_select", lambda x: x.index_select(index=torch.tensor([1, 1, 3]), dim=2), (3, 9, 4), 0, 1),
    read("take", lambda x: torch.take(x, TABLE), (8, 2), 0, cost=1),
    Sample(
        op="gather",
        run=lambda x, i: torch.gather(x, 1, places(i, 5)),
        inputs=((8, 5), (8, 6)),
        dims=((0, 0), (0, None)),
        bf16=False,
    ),
    Sample(
        op="gather",
        run=lambda x, i: x.gather(1, places(i, 5)),
        inputs=((8, 5), (6, 9)),
        dims=((None, 1),),
        backward=1,
        bf16=False,
    ),
    Sample(
        op="gather",
        run=lambda x, i: x.gather(1, places(i, 9)),
        inputs=((4, 9), (3, 8)),
        dims=((1, None),),
        grid=(((0, 1), (None, None)),),
        forward=1,
        backward=1,
        bf16=False,
    ),
    Sample(
        op="gather",
        run=lambda x, i: x.gather(1, places(i, 9)),
        inputs=((4, 9), (4, 8)),
        dims=((1, 1),),
        forward=2,
        backward=1,
        bf16=False,
    ),
    Sample(
        op="take_along_dim",
        run=lambda x, i: torch.take_along_dim(x, places(i, 5), dim=1),
        inputs=((8, 5), (1, 6)),
        dims=((0, None),),
        bf16=False,
    ),
    Sample(
        op="take_along_dim",
        run=lambda x, i: torch.take_along_dim(x, places(i, 9), dim=1),
        inputs=((4, 9), (1, 8)),
        dims=((1, None),),
        grid=(((0, 1), (None, None)),),
        forward=1,
        backward=1,
        bf16=False,
    ),
    Sample(
        op="take_along_dim",
        run=lambda x, i: x.take_along_dim(places(i, 8)),
        inputs=((8, 2), (6,)),
        dims=((0, None),),
        forward=1,
        backward=1,
        bf16=False,
    ),
    Sample(
        op="embedding",
        run=lambda i, w: F.embedding(places(i, 7), w, padding_idx=2),
        inputs=((4, 9),),
        weights=((7, 3),),
        dims=((0,), (1,)),
        grid=(((0, 1),),),
        backward=1,
        bf16=False,
    ),
    Sample(
        op="embedding",
        run=lambda i, w: F.embedding(places(i, 8), w),
        inputs=((4, 9), (8, 6)),
        dims=((None, 0),),
        grid=(((None, 1), (0, None)),),
        forward=1,
        backward=1,
        bf16=False,
    ),
    Sample(
        op="embedding",
        run=lambda i, w: F.embedding(places(i, 8), w, padding_idx=-6),
        inputs=((4, 9), (8, 6)),
        dims=((None, 0),),
        grid=(((None, 1), (0, None)),),
        forward=1,
        backward=1,
        bf16=False,
    ),
    Sample(
        op="embedding",
        run=lambda i, w: F.embedding(places(i, 8), w, padding_idx=2),
        inputs=((4, 9), (8, 6)),
        dims=((0, 0), (1, 0)),
        forward=2,
        backward=1,
        bf16=False,
    ),
    read("one_hot", lambda x: F.one_hot(places(x, 5), num_classes=5), (4, 9), 0, 1, bf16=False),
    read("one_hot", lambda x: F.one_hot(places(x, 5)), (4, 9), 0, 1, forward=1, grid=[(0, 1)], bf16=False),
    # writing
    read("__setitem__", assigned((ALL, slice(2, 6)), 1.5), (3, 9), 0, 1, grid=[(0, 1)]),
    read("__setitem__", assigned((1, ..., -2), -1.0), (3, 9, 4), 0, 1, 2, grid=[(1, 2)]),
    read("__setitem__", assigned((..., None, 3), torch.ones(4, 1)), (4, 9), 0, 1),
    read("__setitem__", assigned(..., torch.ones(1, 1, 9)), (4, 9), 0, 1),
    Sample(
        op="__setitem__",
        run=assigned((ALL, slice(1, 9, 2))),
        inputs=((3, 9, 2),),
        weights=((4, 2),),
        dims=((1,), (0,)),
        grid=(((0, 1),),),
        backward=1,
    ),
    Sample(
        op="__setitem__",
        run=assigned((2, slice(4))),
        inputs=((3, 9), (4,)),
        dims=((1, None), (0, None)),
        backward=1,
    ),
    Sample(
        op="__setitem__",
        run=assigned((ALL, 2)),
        inputs=((8, 5, 3), (8, 3)),
        dims=((0, 0),),
        grid=(((0, 2), (0, 1)),),
    ),
    Sample(
        op="__setitem__",
        run=lambda x, y: assigned(y > 0, 3.0)(x),
        inputs=((8, 5), (8, 5)),
        dims=((0, 0), (1, 1), (0, None)),
        grid=(((0, 1), (0, 1)),),
    ),
    Sample(
        op="__setitem__",
        run=lambda x, y, w: assigned((ALL, y > 0))(x, w),
        inputs=((3, 8, 5), (8,)),
        weights=((5,),),
        dims=((1, 0), (1, None), (0, None)),
        backward=1,
    ),
    Sample(
        op="__setitem__",
        run=assigned((ALL, [2, 0])),
        inputs=((8, 3), (2,)),
        dims=((0, None),),
        backward=1,
    ),
    Sample(
        op="__setitem__",
        run=assigned(distinct(3, 8)),
        inputs=((8, 4), (3, 4)),
        dims=((0, None),),
        grid=(((0, 1), (None, None)),),
        backward=1,
    ),
    Sample(
        op="__setitem__",
        run=assigned((distinct(3, 8), distinct(3, 7))),
        inputs=((8, 7), (3,)),
        dims=((0, None), (1, None)),
        grid=(((0, 1), (None, None)),),
        backward=1,
    ),
    Sample(
        op="index_put",
        run=lambda x, v: torch.index_put(x, (ROWS, COLUMNS), v, accumulate=True),
        inputs=((8, 7, 2), (5, 2)),
        dims=((0, None), (1, None)),
        grid=(((0, 1), (None, None)),),
        backward=1,
    ),
    Sample(
        op="index_put",
        run=lambda x, v: x.index_put((ROWS, COLUMNS), v, accumulate=True),
        inputs=((8, 7, 9), (5, 9)),
        dims=((2, 1),),
    ),
    Sample(
        op="index_put_",
        run=written(lambda y, v: y.index_put_((distinct(3, 7),), v)),
        inputs=((7, 8), (3, 8)),
        dims=((1, 1),),
    ),
    Sample(
        op="index_add",
        run=lambda x, s: torch.index_add(x, 0, ROWS, s, alpha=2.0),
        inputs=((8, 4), (5, 4)),
        dims=((0, None),),
        grid=(((0, 1), (None, None)),),
        backward=1,
    ),
    Sample(op="index_add", run=lambda x, s: x.index_add(0, ROWS, s), inputs=((8, 6), (5, 6)), dims=((1, 1),)),
    Sample(  # sources on the ranks, targets on all
        op="index_add",
        run=lambda x, s: x.index_add(0, places(s[:, 0].detach(), 4), s),
        inputs=((4, 2), (9, 2)),
        dims=((None, 0),),
        forward=1,
        bf16=False,
    ),
    Sample(
        op="index_add_",
        run=written(lambda y, s: y.index_add_(0, ROWS, s)),
        inputs=((8, 4), (5, 4)),
        dims=((0, None),),
        backward=1,
    ),
    Sample(
        op="index_copy",
        run=lambda x, s: x.index_copy(0, distinct(3, 8), s),
        inputs=((8, 4), (3, 4)),
        dims=((0, None),),
        backward=1,
    ),
    Sample(
        op="index_copy",
        run=lambda x, s: x.index_copy(0, distinct(3, 8), s),
        inputs=((8, 4), (3, 4)),
        dims=((1, 1),),
    ),
    read("index_fill", lambda x: (x.index_fill(1, COLUMNS, 2.0), x.index_fill(0, ROWS, -1.0)), (8, 7), 0, 1),
    read("index_fill_", written(lambda y: y.index_fill_(1, COLUMNS, 2.0)), (8, 7), 0, 1),
    Sample(
        op="scatter",
        run=lambda x, s: torch.scatter(x, 1, torch.arange(4).flip(0).expand(8, 4), s),
        inputs=((8, 9), (8, 4)),
        dims=((0, 0),),
    ),
    Sample(
        op="scatter",
        run=lambda x, s: torch.scatter(x, dim=1, src=s, index=torch.arange(4).flip(0).expand(8, 4)),
        inputs=((8, 9), (8, 4)),
        dims=((0, None), (1, None)),
        grid=(((0, 1), (0, None)),),
        backward=1,
    ),
    read("scatter", lambda x: x.scatter(1, TABLE[:, :3].expand(2, 3), 5.0), (2, 9), 1),
    Sample(
        op="scatter_add",
        run=lambda x, s: x.scatter_add(0, TABLE, s),
        inputs=((8, 6), (2, 6)),
        dims=((0, None),),
        backward=1,
    ),
    Sample(
        op="scatter_add", run=lambda x, s: x.scatter_add(0, TABLE, s), inputs=((8, 6), (2, 6)), dims=((1, 1),)
    ),
    Sample(
        op="scatter_add",
        run=lambda x, s: x.scatter_add(1, places(s.detach(), 4), s),
        inputs=((3, 4), (3, 9)),
        dims=((None, 1),),
        forward=1,
        bf16=False,
    ),
    Sample(
        op="scatter_reduce",
        run=lambda x, s: x.scatter_reduce(0, TABLE, s, reduce="mean", include_self=False),
        inputs=((8, 6), (2, 6)),
        dims=((0, None),),
        backward=1,
    ),
    Sample(
        op="scatter_add_",
        run=written(lambda y, s: y.scatter_add_(0, TABLE, s)),
        inputs=((8, 6), (2, 6)),
        dims=((0, None),),
        backward=1,
    ),
]
