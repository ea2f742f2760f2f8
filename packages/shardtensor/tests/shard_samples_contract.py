"""Samples of matrix products, contractions and functions of matrices."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from shard_samples import Sample
from torch import Tensor


def pair(
    op: str, run: Callable[..., Any], a: tuple[int, ...], b: tuple[int, ...], *dims: Any, **more: Any
) -> Sample:
    """A sample of two inputs."""
    return Sample(op=op, run=run, inputs=(a, b), dims=dims, **more)


def positive(x: Tensor) -> Tensor:
    """Well-conditioned symmetric matrices."""
    return x @ x.mT / x.shape[-1] + torch.eye(x.shape[-1])


def matrix(op: str, run: Callable[..., Any], **more: Any) -> Sample:
    """A sample of a function of batches of matrices."""
    more = {"make": positive, "bf16": False, "rtol": 1e-9, "grid": (((0, 1),),)} | more
    return Sample(op=op, run=run, inputs=((4, 5, 3, 3),), dims=((0,), (1,)), **more)


def addition(
    op: str, a: tuple[int, ...], b: tuple[int, ...], c: tuple[int, ...], row: int, inner: Any
) -> list[Sample]:
    """addmm and its like: sharded rows, and a sharded contraction."""
    function = getattr(torch, op)
    return [
        Sample(
            op=op,
            run=lambda x, y, z: function(x, y, z, beta=0.5, alpha=2.0),
            inputs=(c, a, b),
            dims=((row, row, None),),
            backward=1,
        ),
        Sample(
            op=op,
            run=lambda x, y, z: function(x, y, z),
            inputs=(c, a, b),
            dims=((None, *inner),),
            forward=1,
        ),
        Sample(
            op=op,
            run=lambda x, y, z: function(x + float("nan"), y, z, beta=0),
            inputs=(c, a, b),
            dims=((None, row, None),),
            backward=2,
        ),
    ]


SAMPLES = [
    Sample(
        op="linear", run=F.linear, inputs=((4, 6, 8),), weights=((5, 8), (5,)), dims=((0,), (1,)), backward=1
    ),
    Sample(
        op="linear", run=F.linear, inputs=((4, 6, 8),), weights=((5, 8),), dims=((2,),), forward=1, backward=1
    ),
    Sample(
        op="linear",
        run=F.linear,
        inputs=((4, 8),),
        weights=((5, 8), (5,)),
        dims=((1,),),
        forward=1,
        backward=1,
    ),
    Sample(  # columns of the weight on the ranks
        op="linear", run=F.linear, inputs=((4, 7), (8, 7), (8,)), dims=((None, 0, 0),), backward=1
    ),
    Sample(op="linear", run=F.linear, inputs=((4, 7), (8, 7), (8,)), dims=((None, 0, None),), backward=2),
    Sample(  # rows of the weight on the ranks
        op="linear", run=F.linear, inputs=((4, 8), (5, 8), (5,)), dims=((1, 1, None),), forward=1
    ),
    Sample(
        op="linear",
        run=F.linear,
        inputs=((4, 8), (5, 8), (5,)),
        dims=((None, 1, None),),
        forward=1,
        backward=1,
    ),
    Sample(  # rows and tensor parallel at once
        op="linear",
        run=F.linear,
        inputs=((4, 8), (6, 8), (6,)),
        grid=(
            ((0, None), (None, 0), (None, 0)),
            ((0, 1), (None, 1), (None, None)),
            ((0, None), (None, 0), (None, None)),
        ),
    ),
    pair("matmul", torch.matmul, (2, 4, 5, 6), (2, 4, 6, 7), (0, 0), (1, 1)),
    pair(
        "matmul",
        torch.matmul,
        (4, 5, 6),
        (4, 6, 7),
        (1, None),
        (None, 2),
        backward=1,
        grid=(((0, 1), (0, None)),),
    ),
    pair("matmul", torch.matmul, (4, 5, 6), (4, 6, 7), (2, 1), forward=1, grid=(((0, 2), (0, 1)),)),
    pair("matmul", lambda a, b: a @ b, (4, 5, 6), (6,), (2, 0), forward=1),
    pair("matmul", lambda a, b: b @ a, (4, 6, 7), (6,), (0, None), backward=1),
    pair("mm", torch.mm, (5, 6), (6, 7), (0, None), (None, 1), backward=1, grid=(((0, None), (None, 1)),)),
    pair("bmm", torch.bmm, (4, 5, 6), (4, 6, 7), (0, 0)),
    pair("mv", torch.mv, (5, 6), (6,), (1, 0), forward=1),
    pair("dot", torch.dot, (8,), (8,), (0, 0), forward=1),
    pair("vdot", torch.vdot, (8,), (8,), (0, 0), forward=1),
    pair("inner", torch.inner, (3, 8), (4, 8), (1, 1), forward=1),
    pair(
        "inner", torch.inner, (5, 8), (4, 8), (0, None), (None, 0), backward=1, grid=(((0, None), (None, 0)),)
    ),
    pair("outer", torch.outer, (5,), (8,), (0, None), (None, 0), backward=1, grid=(((0, None), (None, 0)),)),
    pair("ger", torch.ger, (5,), (8,), (0, None), backward=1),
    pair("tensordot", lambda a, b: torch.tensordot(a, b, 1), (5, 8), (8, 4), (1, 0), forward=1),
    pair(
        "tensordot",
        lambda a, b: torch.tensordot(a, b, ([0, 2], [1, 0])),
        (5, 6, 7),
        (7, 5, 4),
        (0, 1),
        (2, 0),
        forward=1,
    ),
    pair(
        "tensordot",
        lambda a, b: torch.tensordot(a, b, dims=([0, 2], [1, 0])),
        (5, 6, 7),
        (7, 5, 4),
        (1, None),
        backward=1,
    ),
    pair("tensordot", lambda a, b: torch.tensordot(a, b, dims=0), (5,), (7, 4), (0, None), backward=1),
    *addition("addmm", (6, 8), (8, 5), (6, 5), 0, (1, 0)),
    *addition("addmv", (6, 8), (8,), (6,), 0, (1, 0)),
    *addition("baddbmm", (4, 6, 8), (4, 8, 5), (4, 6, 5), 1, (2, 1)),
    Sample(op="addmm", run=torch.addmm, inputs=((5,), (6, 8), (8, 5)), dims=((None, 0, None),), backward=2),
    Sample(
        op="addbmm", run=torch.addbmm, inputs=((6, 5), (4, 6, 8), (4, 8, 5)), dims=((None, 0, 0),), forward=1
    ),
    Sample(op="addr", run=torch.addr, inputs=((6, 5), (6,), (5,)), dims=((0, 0, None),), backward=1),
    Sample(
        op="multi_dot",
        run=lambda a, b, c, d: torch.linalg.multi_dot([a, b, c, d]),
        inputs=((6, 8), (8, 2), (2, 7), (7,)),
        dims=((0, None, None, None),),
        backward=1,
    ),
    Sample(
        op="chain_matmul",
        run=lambda a, b, c: torch.linalg.multi_dot((a, b, c)),
        inputs=((6, 8), (8, 4), (4, 7)),
        dims=((1, 0, None),),
        forward=1,
    ),
    pair("einsum", lambda a, b: torch.einsum("bij,jk->bik", a, b), (2, 5, 6), (6, 4), (1, None), backward=1),
    pair("einsum", lambda a, b: torch.einsum("bij,jk->bik", a, b), (2, 5, 6), (6, 4), (2, 0), forward=1),
    pair("einsum", lambda a, b: torch.einsum("...ij,jk", a, b), (4, 5, 6), (6, 4), (0, None), backward=1),
    pair(
        "einsum",
        lambda a, b: torch.einsum("...j, kj -> k...", [a, b]),
        (4, 5, 6),
        (8, 6),
        (None, 0),
        backward=1,
    ),
    pair("einsum", lambda a, b: torch.einsum("ii,ij->j", a, b), (6, 6), (6, 4), (0, 0), forward=1),
    pair("einsum", lambda a, b: torch.einsum("iji,ik->jk", a, b), (6, 5, 6), (6, 4), (1, None), backward=1),
    pair("einsum", lambda a, b: torch.einsum("i,j", a, b), (6,), (5,), (0, None), backward=1),
    pair(
        "einsum", lambda a, b: torch.einsum(a, [0, 1], b, [1, 2], [2, 0]), (6, 8), (8, 4), (1, 0), forward=1
    ),
    pair("einsum", lambda a, b: torch.einsum(a, [..., 1], b, [1, 2]), (6, 8), (8, 4), (1, 0), forward=1),
    Sample(
        op="bilinear",
        run=F.bilinear,
        inputs=((4, 6, 5), (4, 6, 3)),
        weights=((7, 5, 3), (7,)),
        dims=((1, 1),),
        grid=(((0, 1), (0, 1)),),
        backward=2,
    ),
    Sample(
        op="bilinear",
        run=F.bilinear,
        inputs=((4, 8), (4, 3)),
        weights=((7, 8, 3),),
        dims=((1, None),),
        forward=1,
        backward=2,
    ),
    pair("cross", lambda a, b: torch.cross(a, b, dim=1), (6, 3, 4), (6, 3, 4), (0, 0), (2, 2)),
    pair("cross", lambda a, b: torch.linalg.cross(a, b), (6, 1, 3), (1, 4, 3), (0, None), backward=1),
    pair("vecdot", lambda a, b: torch.linalg.vecdot(a, b), (6, 8), (6, 8), (0, 0)),
    pair("vecdot", lambda a, b: torch.linalg.vecdot(a, b, dim=0), (6, 8), (6, 8), (0, 0), forward=1),
    pair("cdist", torch.cdist, (2, 6, 3), (2, 7, 3), (0, 0), bf16=False),
    pair(
        "cdist",
        lambda a, b: torch.cdist(a, b, p=1.0),
        (2, 6, 3),
        (7, 3),
        (1, None),
        (None, 0),
        backward=1,
        grid=(((1, None), (None, 0)),),
        bf16=False,
    ),
    matrix("inv", torch.linalg.inv),
    matrix("inverse", torch.inverse),
    matrix("slogdet", lambda x: torch.linalg.slogdet(x)),
    matrix("logdet", lambda x: x.logdet()),
    matrix("cholesky", torch.linalg.cholesky),
    matrix("qr", lambda x: torch.linalg.qr(x)),
    matrix("eigvalsh", torch.linalg.eigvalsh),
    matrix("svdvals", torch.linalg.svdvals),
    matrix("pinv", lambda x: torch.linalg.pinv(x)),
    matrix("matrix_exp", lambda x: (torch.matrix_exp(x), torch.linalg.matrix_exp(x))),
    matrix("matrix_power", lambda x: (torch.linalg.matrix_power(x, 3), x.matrix_power(2))),
    Sample(
        op="solve",
        run=lambda a, b: torch.linalg.solve(torch.matrix_exp(a), b),
        inputs=((4, 3, 3), (4, 3, 6)),
        dims=((0, 0),),
        bf16=False,
        rtol=1e-9,
    ),
    Sample(
        op="solve",
        run=lambda b, a: torch.linalg.solve(torch.matrix_exp(a), b),
        inputs=((3, 6),),
        weights=((3, 3),),
        dims=((1,),),
        bf16=False,
        rtol=1e-9,
        backward=1,
    ),
    Sample(
        op="solve_triangular",
        run=lambda a, b: torch.linalg.solve_triangular(torch.matrix_exp(a.triu()), b, upper=True),
        inputs=((4, 3, 3), (4, 3, 6)),
        dims=((0, 0),),
        bf16=False,
        rtol=1e-9,
    ),
]
