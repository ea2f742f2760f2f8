"""Products made of matrix products, and functions of pairs of vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shardtensor._align import Labels, Operand, align, broadcast_axes
from shardtensor._plans import planned
from shardtensor._reduce import dimensions, sum_
from shardtensor._tensor import Handler, ShardTensor, elsewhere, unsupported


def added(product: Callable[[Any, Any], Any]) -> Handler:
    """Returns the handler of addmm and its like: beta * input + alpha * product(a, b).

    Args:
        product: of the two factors; torch.matmul for addmm, addmv and baddbmm.
    """

    def handler(
        func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ShardTensor:
        if len(args) != 3 or kwargs.get("out") is not None:
            raise unsupported(func.__name__, args, kwargs, "needs three tensors, and no out=")
        x, a, b = args
        beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
        term = product(a, b)
        term = term if alpha == 1 else term * alpha
        if beta == 0:  # then input counts neither as NaN nor at all
            x = torch.where(torch.zeros((), dtype=torch.bool, device=x.device), x, 0)
        shape = tuple(term.shape)
        fits = len(x.shape) <= len(shape) and all(
            n in (1, goal) for n, goal in zip(reversed(x.shape), reversed(shape), strict=False)
        )
        if not fits:
            raise RuntimeError(
                f"{func.__name__}: input of {tuple(x.shape)} does not fit a product of {shape}"
            )
        return _add(x if beta in (0, 1) else x * beta, term)

    return handler


def _add(x: Any, y: Any) -> ShardTensor:
    out: ShardTensor = x + y
    return out


def summed_product(a: Any, b: Any) -> Any:
    """The product of addbmm: matrix products summed over the batch."""
    return torch.einsum("bij,bjk->ik", a, b)


def outer(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """a_i b_j; each factor may be sharded, over a mesh dimension of its own, and nothing moves."""
    a, b = (*args, *kwargs.values())
    if a.ndim != 1 or b.ndim != 1:
        raise RuntimeError(
            f"{func.__name__}: needs vectors, got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    aligned = align(func.__name__, [a, b], [("row",), ("column",)])
    return aligned.wrap(torch.outer(*aligned.locals), ("row", "column"))


def inner(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Products summed over the last dimensions."""
    a, b = (*args, *kwargs.values())
    if a.ndim == 0 or b.ndim == 0:
        scaled: ShardTensor = a * b
        return scaled
    return _contracted(func.__name__, a, b, (a.ndim - 1,), (b.ndim - 1,))


def vdot(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """sum of conj(a_i) b_i: one all-reduce where the vectors are sharded."""
    a, b = (*args, *kwargs.values())
    return _contracted("vdot", a.conj() if a.is_complex() else a, b, (0,), (0,))


def vecdot(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """sum of conj(a) b along one dimension: one all-reduce where it is sharded."""
    named = dict(zip(("x", "y"), args, strict=False)) | dict(kwargs)
    a, b = named["x"], named["y"]
    product: ShardTensor = (a.conj() if a.is_complex() else a) * b
    return sum_(product, named.get("dim", -1))


def tensordot(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Products summed over pairs of dimensions: one all-reduce where such a pair is sharded."""
    named = dict(zip(("a", "b", "dims"), args, strict=False)) | dict(kwargs)
    a, b, dims = named["a"], named["b"], named.get("dims", 2)
    if isinstance(dims, Tensor) or named.get("out") is not None:
        raise unsupported(func.__name__, args, kwargs, "needs dims as integers, and no out=")
    if isinstance(dims, int):
        dims = tuple(range(a.ndim - dims, a.ndim)), tuple(range(dims))
    first, second = ((d,) if isinstance(d, int) else tuple(d) for d in dims)
    return _contracted(
        "tensordot",
        a,
        b,
        dimensions(first, a.ndim) if first else (),
        dimensions(second, b.ndim) if second else (),
    )


def _contracted(op: str, a: Any, b: Any, first: tuple[int, ...], second: tuple[int, ...]) -> ShardTensor:
    left: Labels = tuple(("sum", first.index(d)) if d in first else ("left", d) for d in range(a.ndim))
    right: Labels = tuple(("sum", second.index(d)) if d in second else ("right", d) for d in range(b.ndim))
    aligned = align(op, [a, b], [left, right], [("sum", i) for i in range(len(first))])
    out: Labels = tuple(x for x in (*left, *right) if isinstance(x, tuple) and x[0] != "sum")
    x, y = aligned.locals
    return aligned.wrap(torch.tensordot(x, y, dims=(first, second)), out)


def chain(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """multi_dot and chain_matmul, in the order of fewest multiplications for the global shapes."""
    values = (*args, *kwargs.values())
    factors = list(values[0] if isinstance(values[0], list | tuple) else values)
    sides = tuple(x.shape[0] if x.ndim > 1 else 1 for x in factors[:1])
    sides += tuple(x.shape[0] for x in factors[1:])
    last = factors[-1]
    tree = plan_chain((*sides, last.shape[-1] if last.ndim > 1 else 1))
    out: ShardTensor = _multiplied(factors, tree)
    return out


def _multiplied(factors: Sequence[Any], tree: Any) -> Any:
    if isinstance(tree, int):
        return factors[tree]
    return torch.matmul(_multiplied(factors, tree[0]), _multiplied(factors, tree[1]))


@planned
def plan_chain(sides: tuple[int, ...]) -> Any:
    """Returns the cheapest order to multiply matrices (sides[i], sides[i + 1]), as nested pairs."""
    best: dict[tuple[int, int], tuple[float, Any]] = {(i, i + 1): (0.0, i) for i in range(len(sides) - 1)}
    for length in range(2, len(sides)):
        for i in range(len(sides) - length):
            j = i + length
            options = [
                (best[i, k][0] + best[k, j][0] + math.prod((sides[i], sides[k], sides[j])), k)
                for k in range(i + 1, j)
            ]
            cost, k = min(options)
            best[i, j] = cost, (best[i, k][1], best[k, j][1])
    return best[0, len(sides) - 1][1]


def bilinear(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """y_o = x W_o z + b_o."""
    named = dict(zip(("input1", "input2", "weight", "bias"), args, strict=False)) | dict(kwargs)
    x, z, weight, bias = named["input1"], named["input2"], named["weight"], named.get("bias")
    batch = tuple(range(x.ndim - 1))
    axes: list[Labels] = [(*batch, "in1"), (*batch, "in2"), ("out", "in1", "in2")]
    operands: list[Operand] = [x, z, weight]
    aligned = align(func.__name__, operands, axes, [label for labels in axes for label in labels])
    # F.bilinear of torch 2.13 divides by zero, and kills the process, where there are no rows.
    local = torch.einsum("...i,...j,oij->...o", *aligned.locals)
    out: Any = aligned.wrap(local, (*batch, "out"))
    biased: ShardTensor = out if bias is None else out + bias
    return biased


def cross(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Vector products along a dimension of extent 3 that is not sharded."""
    named = dict(zip(("input", "other", "dim"), args, strict=False)) | dict(kwargs)
    a, b = named["input"], named["other"]
    ndim = max(a.ndim, b.ndim)
    (dim,) = dimensions(-1 if named.get("dim") is None else named["dim"], ndim)
    if func is not torch.linalg.cross and named.get("dim") is None:
        raise unsupported(func.__name__, args, kwargs, "needs dim=", "Give dim, or use torch.linalg.cross.")
    aligned = align(func.__name__, [a, b], broadcast_axes([a.shape, b.shape]))
    if dim in aligned.labels:
        remedy = elsewhere(next(x for x in (a, b) if isinstance(x, ShardTensor)), (dim,))
        raise unsupported(func.__name__, args, kwargs, f"dimension {dim} is sharded", remedy)
    out = torch.linalg.cross(*aligned.locals, dim=dim - ndim)
    return aligned.wrap(out, tuple(range(ndim)))


def distances(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """cdist: between all rows of two sets, of which either may be sharded."""
    names = ("x1", "x2", "p", "compute_mode")
    named = dict(zip(names, args, strict=False)) | dict(kwargs)
    a, b = named.pop("x1"), named.pop("x2")
    left: Labels = (*range(2 - a.ndim, 0), "row", "width")
    right: Labels = (*range(2 - b.ndim, 0), "column", "width")
    aligned = align(func.__name__, [a, b], [left, right], ["width"])
    if "width" in aligned.labels:
        remedy = elsewhere(a if isinstance(a, ShardTensor) else b, (-1,))
        raise unsupported(func.__name__, args, kwargs, "the coordinates of the points are sharded", remedy)
    out = torch.cdist(aligned.locals[0], aligned.locals[1], **named)
    return aligned.wrap(out, (*range(2 - max(a.ndim, b.ndim), 0), "row", "column"))


def refused(reason: str, remedy: str = "") -> Handler:
    """Returns the handler of a function that has no sharded form."""

    def handler(
        func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        raise unsupported(func.__name__, args, kwargs, reason, remedy)

    return handler
