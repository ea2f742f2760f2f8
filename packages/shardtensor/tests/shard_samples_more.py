"""Samples of operations that have no family of their own: in place, queries, matrices, joins."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from shard_samples import Layout, Sample
from shard_samples_contract import matrix
from torch import Tensor

from shardtensor import GatherWarning

GRID = (((0, 1),),)


def alike(op: str, run: Callable[..., Any], **more: Any) -> Sample:
    """A sample that nothing has to be communicated for, whatever is sharded."""
    more = {"dims": ((0,), (1,), (2,)), "grid": GRID} | more
    return Sample(op=op, run=run, inputs=((4, 7, 3),), **more)


def asked(op: str, *args: Any) -> Sample:
    """A query: what it answers multiplies the input."""
    return alike(op, lambda x: x * getattr(x, op)(*args))


def made(op: str, *args: Any) -> Sample:
    """A query that makes a plain tensor of the dtype of the input."""
    return alike(op, lambda x: x * (getattr(x, op)(*args) * 0 + 2))


def compared(op: str) -> list[Sample]:
    """A truth that all ranks agree on, of equal and of different values."""
    function = getattr(torch, op)
    common = {"op": op, "inputs": ((4, 7), (4, 7)), "dims": ((0, 0), (1, 1)), "grid": (((0, 1), (0, 1)),)}
    return [
        Sample(run=run, forward=1, **common)
        for run in (lambda x, y: x * (2 + function(x, y)), lambda x, _: x * (2 + function(x, x)))
    ]


def joined(op: str) -> Sample:
    """cat by another name."""
    function = getattr(torch, op)
    return alike(op, lambda x: function([x, 2 * x], 1), dims=((0,), (2,)), grid=(((0, 2),),))


def hermitian(op: str) -> Sample:
    """A transform of two dimensions of three, the first of them sharded."""
    function = getattr(torch.fft, op)
    common = {"inputs": ((5, 8, 6),), "bf16": False, "forward": 2, "backward": 2}
    if op.startswith("h"):
        common["make"] = lambda x: torch.complex(x, x.flip(0))
    return Sample(op=op, run=lambda x: function(x, dim=(1, 2)), dims=((1,),), **common)


def _steps(x: Tensor) -> Tensor:
    return (2 * x).long().clamp(-1, 1)


def _quiet(run: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GatherWarning)
            return run(x)

    return call


def _rows(x: Any, s: Any) -> Any:
    index = torch.tensor([[2], [0], [3]]).expand(3, 7)
    return (x * 1).scatter_(0, index, s)


def _largest(x: Any, s: Any) -> Any:
    index = torch.tensor([[2], [0], [2]]).expand(3, 7)
    return x.detach().clone().scatter_reduce_(0, index, s.detach(), "amax")


def _attend(x: Any, into: Any, bias: Any, out: Any) -> Any:
    options = {"training": False, "need_weights": False}
    return F.multi_head_attention_forward(
        x, x, x, 8, 2, into, bias, None, None, False, 0.0, out, None, **options
    )[0]


def written(
    op: str, *args: Any, shapes: tuple[tuple[int, ...], ...], dims: tuple[Layout, ...], **counts: int
) -> Sample:
    """A method that writes its result to the tensor itself."""

    def run(x: Any, *rest: Any) -> Any:
        y = x * 1
        assert getattr(y, op)(*rest, *args) is y
        return y

    return Sample(op=op, run=run, inputs=shapes, dims=dims, **counts)


SAMPLES = [
    *(asked(op) for op in ("is_floating_point", "is_complex", "element_size", "get_device", "is_contiguous")),
    *(made(op, (3,)) for op in ("new_zeros", "new_ones")),
    alike("new_empty", lambda x: x * x.new_empty(3).fill_(2.0)),
    made("new_full", (3,), 2.0),
    made("new_tensor", [1.0, 2.0, 3.0]),
    *compared("equal"),
    *compared("allclose"),
    *(hermitian(op) for op in ("hfft2", "hfftn", "ihfft2", "ihfftn")),
    # matrices
    # torch 2.13 can not differentiate det of float32 where the default dtype is float64.
    matrix("det", lambda x: (torch.linalg.det(x.double()), torch.det(x.double()))),
    matrix("inv_ex", lambda x: torch.linalg.inv_ex(x).inverse),
    matrix("cholesky_ex", lambda x: torch.linalg.cholesky_ex(x).L),
    matrix("svd", lambda x: (torch.linalg.svd(x).S, torch.svd(x).S)),
    matrix("eigh", lambda x: torch.linalg.eigh(x).eigenvalues),
    matrix("eig", lambda x: torch.linalg.eig(x).eigenvalues.abs()),
    matrix("eigvals", lambda x: torch.linalg.eigvals(x).abs()),
    matrix("matrix_rank", lambda x: torch.linalg.matrix_rank(x)),
    matrix("cond", lambda x: torch.linalg.cond(x)),
    matrix("lu", lambda x: torch.linalg.lu(x)),
    matrix("lu_factor", lambda x: torch.linalg.lu_factor(x).LU),
    matrix("pinverse", lambda x: x.pinverse()),
    # joins by their other names
    *(joined(name) for name in ("concat", "concatenate")),
    alike(
        "row_stack", lambda x: torch.vstack([x, torch.ones(2, 7, 3)]), dims=((1,), (2,)), grid=(((1, 2),),)
    ),
    # writing in place
    Sample(
        op="index_copy_",
        run=lambda x, s: (x * 1).index_copy_(0, torch.tensor([2, 0, 3]), s),
        inputs=((4, 7), (3, 7)),
        dims=((1, 1),),
    ),
    Sample(op="scatter_", run=_rows, inputs=((4, 7), (3, 7)), dims=((1, 1),)),
    Sample(op="scatter_reduce_", run=_largest, inputs=((4, 7), (3, 7)), dims=((1, 1),)),
    written("cumsum_", 1, shapes=((4, 7, 3),), dims=((1,),), forward=1, backward=1),
    written("cumsum_", 0, shapes=((4, 7, 3),), dims=((1,),)),
    written("cumprod_", -1, shapes=((3, 7),), dims=((1,),), forward=1, backward=1),
    written("tril_", shapes=((6, 7),), dims=((0,), (1,))),
    written("triu_", 1, shapes=((6, 7),), dims=((0,), (1,))),
    written("addmm_", shapes=((6, 5), (6, 8), (8, 5)), dims=((0, 0, None), (1, None, 1)), backward=1),
    written("addmv_", shapes=((6,), (6, 8), (8,)), dims=((0, 0, None),), backward=1),
    written("addbmm_", shapes=((6, 5), (4, 6, 8), (4, 8, 5)), dims=((0, 1, None),), backward=1),
    written("baddbmm_", shapes=((4, 6, 5), (4, 6, 8), (4, 8, 5)), dims=((0, 0, 0),)),
    written("addr_", shapes=((6, 5), (6,), (5,)), dims=((0, 0, None),), backward=1),
    # the rest
    alike("glu", lambda x: F.glu(torch.cat([x, x.sin()], 1), 1), dims=((0,), (2,)), grid=(((0, 2),),)),
    Sample(
        op="glu",
        run=lambda x: F.glu(x, 1),
        inputs=((4, 14, 3),),
        dims=((1,),),
        grid=(((0, 1),), ((1, 2),)),
        forward=1,
        backward=1,
    ),
    alike("__matmul__", lambda x: x @ torch.ones(3, 2).to(x.dtype), dims=((0,), (1,))),
    alike("__rmatmul__", lambda x: torch.ones(2, 7).to(x.dtype) @ x, dims=((0,), (2,)), grid=(((0, 2),),)),
    alike(
        "view_as_complex",
        lambda x: torch.view_as_complex(torch.stack([x, x.sin()], -1)),
        dims=((0,), (1,)),
        bf16=False,
    ),
    alike(
        "searchsorted",
        lambda x: torch.searchsorted(torch.tensor([-1.0, 0.0, 0.5]).to(x.dtype), x, side="right"),
    ),
    Sample(
        op="unique_consecutive",
        run=_quiet(lambda x: torch.unique_consecutive(x)),
        inputs=((12,),),
        dims=((0,),),
        make=_steps,
        forward=1,
    ),
    *(
        Sample(op=op, run=run, inputs=((4, 7, 3),), dims=((1,),), grid=(((1, 0),),), forward=1)
        for op, run in (
            ("vector_norm", lambda x: torch.linalg.vector_norm(x, 3, (1, 2))),
            ("matrix_norm", lambda x: torch.linalg.matrix_norm(x)),
        )
    ),
    Sample(
        op="adaptive_max_pool3d",
        run=lambda x: F.adaptive_max_pool3d(x, (4, 4, 4)),
        inputs=((2, 3, 7, 7, 7),),
        dims=((2,), (3,), (4,)),
        grid=(((2, 3),),),
        forward=1,
        backward=1,
    ),
    Sample(
        op="multi_head_attention_forward",
        run=_attend,
        inputs=((7, 4, 8),),
        weights=((24, 8), (24,), (8, 8)),
        dims=((1,),),
        backward=2,
    ),
]
