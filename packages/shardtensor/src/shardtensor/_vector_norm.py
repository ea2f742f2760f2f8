"""Norms of vectors over any dimensions, and of matrices that are not sharded."""

from __future__ import annotations

import math
from typing import Any

import torch

from shardtensor._collectives import total
from shardtensor._moments import everyone, wide
from shardtensor._reduce import Axis, amax, amin, dimensions, settle, splitting
from shardtensor._tensor import ShardTensor, unsupported


def vector_norm(
    x: ShardTensor,
    ord: float = 2.0,
    dim: Axis = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> ShardTensor:
    """The p-norm of all elements is the p-norm of the ranks' p-norms: one exchange."""
    dims = dimensions(dim, x.ndim)
    y = x if dtype is None else ShardTensor(x.local.to(dtype), x.spec)
    split = splitting(x, dims)
    if not split:
        out = torch.linalg.vector_norm(y.local, ord, dims, keepdim)
    elif ord in (math.inf, -math.inf):
        return (amax if ord > 0 else amin)(ShardTensor(y.local.abs(), x.spec), dims, keepdim)
    else:
        kind = wide(y.dtype)
        local = y.local.to(kind)
        if ord <= 0:
            out = total(
                local.abs().pow(ord).sum(dims, keepdim)
                if ord
                else torch.linalg.vector_norm(local, 0, dims, keepdim),
                x.spec,
                split,
            )
            out = out.pow(1 / ord) if ord else out
        else:
            out = torch.linalg.vector_norm(
                everyone(torch.linalg.vector_norm(local, ord, dims, keepdim), x.spec, split), ord, 0
            )
        out = out.to(y.local.abs().dtype if y.dtype.is_complex else y.dtype)
    return settle(out, x, dims, keepdim, pending=False)


def norm(
    x: ShardTensor,
    p: float | str | None = "fro",
    dim: Axis = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> ShardTensor:
    """torch.norm; of the matrix norms only Frobenius' over sharded dimensions."""
    if isinstance(p, str) and p != "fro":
        return _matrix_norm(x, p, dim, keepdim, dtype)
    return vector_norm(x, 2.0 if p in (None, "fro") else p, dim, keepdim, dtype=dtype)  # type: ignore[arg-type]


def linalg_norm(
    x: ShardTensor,
    ord: float | str | None = None,
    dim: Axis = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> ShardTensor:
    """torch.linalg.norm: of vectors, or of matrices if `ord` is given with two dimensions."""
    matrices = ord is not None and (x.ndim if dim is None else len(dimensions(dim, x.ndim))) == 2
    if matrices and ord != "fro":
        return _matrix_norm(x, ord, (0, 1) if dim is None else dim, keepdim, dtype)
    return vector_norm(x, 2.0 if ord in (None, "fro") else ord, dim, keepdim, dtype=dtype)  # type: ignore[arg-type]


def matrix_norm(
    x: ShardTensor,
    ord: float | str = "fro",
    dim: Axis = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> ShardTensor:
    """Norm of matrices; one all-reduce where a matrix is sharded, which only the Frobenius norm allows."""
    return linalg_norm(x, ord, dim, keepdim, dtype=dtype)


def _matrix_norm(
    x: ShardTensor, kind: Any, dim: Axis, keepdim: bool, dtype: torch.dtype | None
) -> ShardTensor:
    dims = dimensions(dim, x.ndim)
    if splitting(x, dims):
        raise unsupported("norm", (x,), {}, f"the {kind} norm of a matrix that is sharded")
    return settle(torch.linalg.matrix_norm(x.local, kind, dims, keepdim, dtype=dtype), x, dims, keepdim)


def dist(x: ShardTensor, other: Any, p: float = 2) -> ShardTensor:
    """The p-norm of x - other: one all-reduce where x is sharded."""
    return vector_norm(x - other, p)
