"""Functions of matrices: local where only the batch is sharded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shardtensor._align import Labels, align
from shardtensor._collectives import tied
from shardtensor._tensor import ShardTensor, elsewhere, place, unsupported


def matrices(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """A function of the last two dimensions of one tensor, whose results begin with its batch dimensions."""
    name = func.__name__
    rest = dict(kwargs)
    x, *others = args or (rest.pop("A", None) if "A" in rest else rest.pop("input"),)
    if not isinstance(x, ShardTensor) or x.spec.partial or rest.get("out") is not None:
        raise unsupported(name, args, kwargs, "needs a tensor that is no pending sum, and no out=")
    if any(isinstance(value, Tensor | ShardTensor) for value in (*others, *rest.values())):
        raise unsupported(name, args, kwargs, "with a second tensor")
    last = (x.ndim - 2, x.ndim - 1)
    if any(d in last for d in x.spec.dims):
        raise unsupported(name, args, kwargs, "the matrices are sharded", elsewhere(x, last))
    return _batched(func(x.local, *others, **rest), x)


def _batched(out: Any, x: ShardTensor) -> Any:
    if isinstance(out, Tensor):
        out = tied(out, [x.local]) if out.numel() == 0 else out
        return place(out, x.spec, x.spec.dims, x.spec.sizes)
    parts = [_batched(part, x) for part in out]
    return type(out)(parts)


def solve(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """linalg.solve and solve_triangular: the batch or the right-hand sides may be sharded."""
    rest = dict(kwargs)
    a, b, *more = (*args, *(rest.pop(name) for name in ("A", "B") if name in rest))
    if more or rest.get("out") is not None or rest.get("left") is False:
        raise unsupported(func.__name__, args, kwargs, "with left=False, out= or more than two tensors")
    vectors = func is torch.linalg.solve and (b.ndim == 1 or tuple(b.shape) == tuple(a.shape[:-1]))
    sides: Labels = () if vectors else ("side",)
    depth = b.ndim - 1 - len(sides)
    matrix: Labels = (*range(2 - a.ndim, 0), "row", "column")
    right: Labels = (*range(-depth, 0), "row", *sides)
    aligned = align(func.__name__, [a, b], [matrix, right], ["row", "column"])
    if {"row", "column"} & set(aligned.labels):
        raise unsupported(func.__name__, args, kwargs, "the rows or columns of the matrices are sharded")
    out = func(*aligned.locals, **rest)
    return aligned.wrap(out, (*range(-max(depth, a.ndim - 2), 0), "column", *sides))
