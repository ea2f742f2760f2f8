"""Samples of views, rearrangements and concatenations."""

from collections.abc import Callable
from typing import Any

import torch
from shard_samples import Sample, possible

Run = Callable[..., Any]


def free(op: str, run: Run, shape: tuple[int, ...], *dims: int, grid: Any = (), **more: Any) -> Sample:
    """A sample of one input that may be sharded over any of `dims` without communication."""
    grids = tuple((pair,) for pair in grid)
    return Sample(op=op, run=run, inputs=(shape,), dims=tuple((d,) for d in dims), grid=grids, **more)


def moves(op: str, run: Run, shape: tuple[int, ...], *dims: int, **more: Any) -> Sample:
    """A sample that exchanges rows once, and their gradients once."""
    return free(op, run, shape, *dims, **({"forward": 1, "backward": 1} | more))


HALF_TRACE = possible(lambda: torch.ones(2, 2, dtype=torch.bfloat16).trace())
REPEATS = torch.tensor([1, 0, 2, 0, 3, 1, 1])
SAMPLES = [
    free("permute", lambda x: x.permute(0, 2, 1), (2, 7, 6), 0, 1, 2, grid=[(1, 2)]),
    free("permute", lambda x: torch.permute(x, dims=(2, 0, -2)), (2, 7, 6), 0, 1, 2, grid=[(2, 0)]),
    free("transpose", lambda x: torch.transpose(x, dim1=-1, dim0=0), (4, 7, 6), 0, 1, 2, grid=[(0, 2)]),
    free("swapaxes", lambda x: x.swapaxes(axis0=0, axis1=1), (4, 7), 0, 1, grid=[(0, 1)]),
    free("swapdims", lambda x: torch.swapdims(x, 0, 1), (4, 7), 0, 1),
    free("t", lambda x: x.t(), (4, 7), 0, 1),
    free("adjoint", lambda x: x.mH + torch.adjoint(x) + x.mT, (2, 4, 4), 0, 1, 2),
    free(
        "movedim", lambda x: x.movedim(source=(0, 1), destination=(2, 0)), (4, 7, 6), 0, 1, 2, grid=[(0, 1)]
    ),
    free("moveaxis", lambda x: torch.moveaxis(x, 0, -1), (4, 7, 6), 0, 1, 2),
    free(
        "unsqueeze", lambda x: (x.unsqueeze(-1), x.unsqueeze(1), x.unsqueeze(0)), (4, 7), 0, 1, grid=[(0, 1)]
    ),
    free(
        "squeeze",
        lambda x: (x.squeeze(), x.squeeze(1), x.squeeze((1, -1))),
        (4, 1, 7, 1),
        0,
        2,
        grid=[(0, 2)],
    ),
    free("squeeze", lambda x: (x.squeeze(1), x.squeeze()), (4, 1, 7), 1, forward=2),
    free("expand", lambda x: (x.expand(3, -1, 7, 5), x.expand(4, 7, 5)), (4, 7, 1), 0, 1, grid=[(0, 1)]),
    free("expand", lambda x: x.expand(4, 3, 7), (4, 1, 7), 1, forward=1, grid=[(1, 2)]),
    free("expand_as", lambda x: (x.expand_as(torch.ones(4, 7, 5)),), (4, 7, 1), 0, 1),
    Sample(
        op="expand_as", run=lambda x, y: x.expand_as(y), inputs=((4, 1), (4, 7)), dims=((0, 0),), backward=0
    ),
    free("broadcast_to", lambda x: torch.broadcast_to(x, (2, 4, 7)), (4, 7), 0, 1),
    free("reshape", lambda x: x.reshape(2, 6, -1), (2, 6, 4, 3), 0, 1, grid=[(0, 1)]),
    free("reshape", lambda x: torch.reshape(x, shape=(2, 24, 3)), (2, 6, 4, 3), 0, 1, 3, grid=[(1, 3)]),
    free("reshape", lambda x: x.reshape(1, 8, 1, 2, 3), (8, 6), 0),
    moves("reshape", lambda x: x.reshape(2, 5, 3, 3), (2, 15, 3), 1, grid=[(0, 1)]),
    moves("reshape", lambda x: x.reshape(2, 15, 5), (2, 25, 3), 1, grid=[(0, 1)]),
    free("reshape_as", lambda x: x.reshape_as(torch.ones(2, 8, 3)), (2, 4, 2, 3), 0, 1, 3),
    free("view", lambda x: x.view(2, -1, 3), (2, 4, 2, 3), 0, 1, 3),
    free("view_as", lambda x: x.view_as(torch.ones(8, 3)), (4, 2, 3), 0, 2),
    free("flatten", lambda x: (x.flatten(1), x.flatten(end_dim=0), x.flatten(1, 2)), (4, 7, 6), 0, 1),
    free("flatten", lambda x: x.flatten(), (7, 6), 0),
    free("flatten", lambda x: x.flatten(0, 2), (1, 7, 6), 1),
    free("ravel", lambda x: x.ravel(), (7, 6), 0),
    free("unflatten", lambda x: x.unflatten(-1, (2, -1)), (4, 7, 6), 0, 1, grid=[(0, 1)]),
    moves("unflatten", lambda x: x.unflatten(dim=1, sizes=(5, 3)), (4, 15), 1, grid=[(0, 1)]),
    moves("unflatten", lambda x: x.unflatten(1, (5, 3)).flatten(1, 2), (4, 15), 1),
    # patches of an image and back
    moves(
        "reshape",
        lambda x: x.reshape(2, 3, 5, 3, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 20, 18),
        (2, 3, 15, 8),
        2,
    ),
    free(
        "reshape",
        lambda x: x.reshape(2, 5, 4, 3, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 10, 8),
        (2, 5, 4, 12),
        0,
        1,
        grid=[(0, 1)],
    ),
    moves("reshape", lambda x: x.reshape(2, 5, 5, 6), (2, 25, 6), 1),
    free("repeat", lambda x: x.repeat(2, 1, 3), (4, 7), 0),
    moves("repeat", lambda x: x.repeat(3, 2), (4, 7), 0, 1),
    moves("repeat", lambda x: x.repeat(1, 2), (4, 7), 1, grid=[(0, 1)]),
    moves("tile", lambda x: torch.tile(x, (2,)), (4, 7), 1),
    free("tile", lambda x: x.tile(2, 1, 1), (4, 7), 0, 1),
    free("repeat_interleave", lambda x: x.repeat_interleave(2, dim=1), (4, 7), 0, 1, grid=[(0, 1)]),
    free("repeat_interleave", lambda x: torch.repeat_interleave(x, 2), (4, 7), 0),
    free("repeat_interleave", lambda x: x.repeat_interleave(torch.tensor([1, 0, 2]), 1), (5, 3), 0),
    free("repeat_interleave", lambda x: x.repeat_interleave(REPEATS, 1), (4, 7), 1, grid=[(0, 1), (1, 0)]),
    free("repeat_interleave", lambda x: x.repeat_interleave(REPEATS, 0, output_size=8), (7, 4), 0),
    free("repeat_interleave", lambda x: x.repeat_interleave(torch.tensor([2]), 0), (7, 4), 0, 1),
    Sample(
        op="repeat_interleave",
        run=lambda x, n: x.repeat_interleave(n.long().abs(), 1),
        inputs=((4, 7), (7,)),
        dims=((1, 0), (0, 0)),
        grid=(((1, 0), (0, None)), ((0, None), (None, 0))),
        forward=1,
    ),
    free("unfold", lambda x: x.unfold(1, 3, 2), (4, 7), 0),
    moves("unfold", lambda x: x.unfold(1, 3, 1), (4, 9), 1, grid=[(0, 1)]),
    moves("unfold", lambda x: x.unfold(0, 5, 2), (13, 2), 0),
    moves("unfold", lambda x: x.unfold(0, 3, 3), (15, 2), 0),
    free("rot90", lambda x: x.rot90(1, (0, 1)), (4, 7, 6), 0, 2),
    moves("rot90", lambda x: torch.rot90(x, k=-1, dims=[0, 1]), (4, 7), 0),
    moves("rot90", lambda x: torch.rot90(x, 2), (4, 7), 0, 1),
    free("rot90", lambda x: torch.rot90(x, 4), (4, 7), 0, 1),
    free("diagonal", lambda x: (x.diagonal(), torch.diagonal(x, -1), x.diagonal(3)), (5, 7), 0, 1),
    free(
        "diagonal", lambda x: x.diagonal(dim1=2, dim2=0, offset=1), (5, 4, 7), 0, 1, 2, grid=[(0, 1), (1, 2)]
    ),
    free("diag", lambda x: (torch.diag(x, 1), x.diag(diagonal=-2)), (6, 6), 0, 1),
    free("diag", lambda x: (x.diag(), x.diag(2), x.diag(-1)), (7,), 0),
    free("diag_embed", lambda x: (x.diag_embed(), x.diag_embed(1, 0, 2)), (4, 7), 0, 1, grid=[(0, 1)]),
    free("diag_embed", lambda x: torch.diag_embed(x, offset=-2, dim1=1, dim2=0), (4, 7), 0, 1),
    free("trace", lambda x: x.trace(), (6, 6), 0, 1, forward=1, bf16=HALF_TRACE),
    free(
        "tril", lambda x: (x.tril(), torch.tril(x, -1), x.tril(diagonal=2)), (3, 6, 7), 0, 1, 2, grid=[(1, 2)]
    ),
    free(
        "triu", lambda x: (x.triu(), torch.triu(x, 1), x.triu(diagonal=-2)), (3, 6, 7), 0, 1, 2, grid=[(1, 2)]
    ),
    moves("roll", lambda x: torch.roll(x, 2, 1), (2, 7, 3), 1, grid=[(1, 2)]),
    free("roll", lambda x: x.roll(dims=(0, -1), shifts=(1, -1)), (4, 7, 3), 1),
    moves("roll", lambda x: x.roll((-4, 1), dims=(1, 0)), (4, 7, 3), 1, grid=[(1, 2)]),
    moves("roll", lambda x: x.roll(5), (6, 3), 0),
    moves("flip", lambda x: x.flip(1), (2, 8, 3), 1, grid=[(1, 2)]),
    free("flip", lambda x: torch.flip(x, (0, 2)), (4, 7, 3), 1),
    free("flip", lambda x: x.flip(dims=(0, 1)), (4, 4), 0, 1, forward=1, backward=1, grid=[(0, 1)]),
    moves("fliplr", torch.fliplr, (4, 7), 1),
    free("flipud", torch.flipud, (4, 7), 1),
    # joining
    free("stack", lambda x: torch.stack([x, 2 * x], -1), (4, 7), 0, 1, grid=[(0, 1)]),
    free("stack", lambda x: torch.stack((x, torch.ones(4, 7)), dim=0), (4, 7), 0, 1),
    free("cat", lambda x: torch.cat([x, x * 2, torch.ones(4, 2, 3)], dim=1), (4, 7, 3), 0, 2, grid=[(0, 2)]),
    moves("cat", lambda x: torch.cat([x, x * 2, x[:, :3]], 1), (4, 7, 3), 1, grid=[(0, 1), (1, 2)]),
    Sample(
        op="cat",
        run=lambda x, y, z: torch.cat([x, y, z], dim=-2),
        inputs=((4, 7, 2), (4, 9, 2), (4, 5, 2)),
        dims=((1, 1, 1),),
        grid=(((0, 1), (0, 1), (0, 1)),),
        forward=1,
        backward=1,
    ),
    Sample(  # one sharded operand: nothing moves but the gradients of the plain rows
        op="cat",
        run=lambda x, a, b: torch.concat((a, x, b), axis=1),
        inputs=((2, 7, 3),),
        weights=((2, 1, 3), (2, 2, 3)),
        dims=((1,),),
        grid=(((1, 2),), ((0, 1),)),
        backward=2,
    ),
    Sample(
        op="cat",
        run=lambda x, y, a: torch.concatenate([x, a, y]),
        inputs=((6, 3), (8, 3)),
        weights=((4, 3),),
        dims=((0, 0),),
        forward=1,
        backward=2,
    ),
    Sample(
        op="cat",
        run=lambda x, y: torch.cat([torch.ones(0, dtype=x.dtype), x, y]),
        inputs=((6, 3), (8, 3)),
        dims=((0, None),),
        backward=1,
    ),
    free("hstack", lambda x: torch.hstack([x, x]), (4, 7), 0),
    moves("hstack", lambda x: torch.hstack([x, x]), (4, 8), 1),
    moves("hstack", lambda x: torch.hstack((x, x)), (8,), 0),
    free("vstack", lambda x: torch.vstack([x, torch.ones(7)]), (4, 7), 1),
    free("vstack", lambda x: torch.vstack([x, torch.ones(2, 7)]), (4, 7), 0),
    free("vstack", lambda x: torch.vstack([x, x]), (8,), 0),
    free("dstack", lambda x: torch.dstack([x, x]), (4, 7), 0, 1),
    free("column_stack", lambda x: torch.column_stack([x, torch.ones(8), torch.ones(8, 2)]), (8,), 0),
    free("atleast_1d", lambda x: torch.atleast_1d(x), (8,), 0),
    free("atleast_2d", lambda x: torch.atleast_2d(x, x), (8,), 0),
    free("atleast_3d", lambda x: torch.atleast_3d(x), (8,), 0),
    free("atleast_3d", lambda x: torch.atleast_3d([x, x]), (8, 4), 0, 1, grid=[(0, 1)]),
    Sample(
        op="meshgrid",
        run=lambda x, y: torch.meshgrid(x, y, indexing="xy"),
        inputs=((7,), (6,)),
        dims=((0, None), (None, 0)),
        grid=(((0, None), (None, 0)),),
        backward=1,
    ),
    Sample(
        op="meshgrid",
        run=lambda x, y: torch.meshgrid([x, y], indexing="ij"),
        inputs=((7,), (6,)),
        dims=((0, None),),
        backward=1,
    ),
    Sample(
        op="broadcast_tensors",
        run=lambda x, y: torch.broadcast_tensors(x, y),
        inputs=((7, 1), (6,)),
        dims=((0, None), (None, 0)),
        backward=1,
    ),
    # pieces
    free("split", lambda x: x.split(2, 1), (4, 7), 0, 1, grid=[(0, 1)]),
    free("split", lambda x: torch.split(x, [3, 0, 4], dim=1), (4, 7), 0, 1),
    free("split_with_sizes", lambda x: x.split_with_sizes([3, 4], 1), (4, 7), 0, 1),
    free("chunk", lambda x: (*x.chunk(3, dim=-1), *x.chunk(9, 1)), (4, 7), 0, 1, grid=[(0, 1)]),
    free("tensor_split", lambda x: x.tensor_split(3, 1), (4, 7), 0, 1),
    free("tensor_split", lambda x: torch.tensor_split(x, (2, 5, -1), dim=1), (4, 7), 0, 1, grid=[(0, 1)]),
    free("hsplit", lambda x: torch.hsplit(x, 2), (4, 8), 0, 1),
    free("hsplit", lambda x: torch.hsplit(x, [3, 5]), (9,), 0),
    free("vsplit", lambda x: torch.vsplit(x, [1, 3]), (4, 8), 0, 1),
    free("dsplit", lambda x: x.dsplit(2), (2, 3, 8), 0, 2),
    free("unbind", lambda x: x.unbind(-1), (4, 3), 0),
    free("unbind", lambda x: list(x), (4, 7), 1),
    free("unbind", lambda x: x.unbind(1), (4, 7), 1, forward=1, grid=[(0, 1)]),
]
