"""Normalisation and softmax: one local call, or two passes of reductions where the dimension is sharded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._collectives import shared, shared_all
from shardtensor._reduce import amax, mean, sum_
from shardtensor._tensor import ShardTensor, elsewhere, is_sharded, unsupported


def softmax(x: ShardTensor, dim: int | None = None, *args: Any, **kwargs: Any) -> ShardTensor:
    shifted = _shifted(x, dim, _dtype(args, kwargs))
    if isinstance(shifted, Tensor):
        return ShardTensor(shifted.softmax(int(dim or 0)), x.spec)
    weights = shifted.exp()
    scaled: ShardTensor = weights / sum_(weights, dim, keepdim=True)
    return scaled


def log_softmax(x: ShardTensor, dim: int | None = None, *args: Any, **kwargs: Any) -> ShardTensor:
    shifted = _shifted(x, dim, _dtype(args, kwargs))
    if isinstance(shifted, Tensor):
        return ShardTensor(shifted.log_softmax(int(dim or 0)), x.spec)
    scaled: ShardTensor = shifted - sum_(shifted.exp(), dim, keepdim=True).log()
    return scaled


def _dtype(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.dtype | None:
    found = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
    return found[0] if found else None


def _shifted(x: ShardTensor, dim: int | None, dtype: torch.dtype | None) -> ShardTensor | Tensor:
    """Returns x - max(x) if `dim` is sharded, else the local part."""
    if dim is None:
        raise ValueError("softmax of a sharded tensor needs dim=")
    local = x.local if dtype is None else x.local.to(dtype)
    if dim % x.ndim not in x.spec.dims:
        return local
    y = ShardTensor(local, x.spec)
    difference: ShardTensor = y - amax(ShardTensor(local.detach(), x.spec), dim, keepdim=True)
    return difference


def layer_norm(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Normalises over the last dimensions: one local call unless one of them is sharded."""
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    values = dict(zip(names, args, strict=False)) | dict(kwargs)
    x, shape, eps = values["input"], values["normalized_shape"], values.get("eps", 1e-5)
    count = 1 if isinstance(shape, int) else len(shape)
    affine = {name: values[name] for name in ("weight", "bias") if values.get(name) is not None}
    if not isinstance(x, ShardTensor) or x.spec.partial or any(map(is_sharded, affine.values())):
        raise unsupported(func.__name__, args, kwargs, "needs a sharded input and plain weights")
    tail = tuple(range(x.ndim - count, x.ndim))
    if any(d in tail for d in x.spec.dims):
        return _layer_norm_across(x, tail, eps, affine)
    weights = dict(zip(affine, shared_all(list(affine.values()), x.spec, x.spec.split), strict=True))
    out = F.layer_norm(x.local, shape, weights.get("weight"), weights.get("bias"), eps)
    return ShardTensor(out, x.spec)


def _layer_norm_across(
    x: ShardTensor, dims: tuple[int, ...], eps: float, affine: Mapping[str, Any]
) -> ShardTensor:
    centred = x - mean(x, dims, keepdim=True)
    out: ShardTensor = centred * (mean(centred.square(), dims, keepdim=True) + eps).rsqrt()
    out = out * affine["weight"] if "weight" in affine else out
    return out + affine["bias"] if "bias" in affine else out


def rms_norm(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """x / sqrt(mean(x^2) + eps) over the last dimensions, times the weight."""
    values = dict(zip(("input", "normalized_shape", "weight", "eps"), args, strict=False)) | dict(kwargs)
    x, shape, weight = values["input"], values["normalized_shape"], values.get("weight")
    tail = tuple(range(x.ndim - (1 if isinstance(shape, int) else len(shape)), x.ndim))
    if not isinstance(x, ShardTensor) or x.spec.partial or is_sharded(weight):
        raise unsupported(func.__name__, args, kwargs, "needs a sharded input and plain weights")
    if any(d in tail for d in x.spec.dims):
        raise unsupported(func.__name__, args, kwargs, "normalises a sharded dimension", elsewhere(x, tail))
    weight = None if weight is None else shared(weight, x.spec, x.spec.split)
    return ShardTensor(F.rms_norm(x.local, shape, weight, values.get("eps")), x.spec)
