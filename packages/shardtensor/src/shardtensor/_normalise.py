"""Layer, root-mean-square, group, instance and batch normalisation.

Where no rank shares its statistics with another, the local function of torch runs. Otherwise the local part
is viewed as (batch, groups, channels, length), and `_standardise.normalise` does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._collectives import gather, shared_all, tied
from shardtensor._moments import everyone, wide
from shardtensor._reduce import dimensions, splitting
from shardtensor._spec import Sizes
from shardtensor._standardise import Scheme, normalise
from shardtensor._tensor import ShardTensor, elsewhere, unsupported
from shardtensor._vector_norm import vector_norm


def _prepared(
    op: str, names: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[ShardTensor, dict[str, Any]]:
    """Returns the sharded input and the arguments by name, with plain weights."""
    named = dict(zip(names.split(), args, strict=False)) | dict(kwargs)
    x = named["input"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        param = named.setdefault(name, None)
        if isinstance(param, ShardTensor):
            if not param.spec.replicated:
                raise unsupported(op, args, kwargs, f"needs a plain or replicated {name}")
            named[name] = param.local
    if not isinstance(x, ShardTensor) or x.spec.partial:
        raise unsupported(op, args, kwargs, "needs a sharded input that is no pending sum")
    return x, named


def _locally(function: Callable[..., Tensor], x: ShardTensor, params: Sequence[Tensor | None]) -> ShardTensor:
    """Runs `function(local, *params)`, of which every rank uses the whole parameters."""
    given = shared_all([p for p in params if p is not None], x.spec, x.spec.split)
    rest = iter(given)
    out = function(x.local, *(None if p is None else next(rest) for p in params))
    return ShardTensor(tied(out, [x.local, *given]) if out.numel() == 0 else out, x.spec)


def layer_norm(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """(x - mean) / sqrt(var + eps) over the last dimensions, times the weight plus the bias."""
    x, named = _prepared("layer_norm", "input normalized_shape weight bias eps", args, kwargs)
    return _over_tail(func, x, named, named.get("eps", 1e-5), centred=True)


def rms_norm(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """x / sqrt(mean(x^2) + eps) over the last dimensions, times the weight."""
    x, named = _prepared("rms_norm", "input normalized_shape weight eps", args, kwargs)
    return _over_tail(func, x, named, named.get("eps"), centred=False)


def _over_tail(
    func: Callable[..., Any], x: ShardTensor, named: Mapping[str, Any], eps: float | None, *, centred: bool
) -> ShardTensor:
    shape = named["normalized_shape"]
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if tuple(x.shape[x.ndim - len(shape) :]) != shape:
        raise RuntimeError(f"normalized_shape {shape} is not the end of the input's shape {tuple(x.shape)}")
    weight, bias = named["weight"], named["bias"]
    tail = range(x.ndim - len(shape), x.ndim)
    across = splitting(x, tail)
    if not across:
        params = [weight, bias] if centred else [weight]
        return _locally(lambda local, *rest: func(local, shape, *rest, eps), x, params)
    eps = torch.finfo(wide(x.dtype)).eps if eps is None else eps
    here = x.local_slices()[tail.start :]
    rows, length = math.prod(x.local.shape[: tail.start]), math.prod(x.local.shape[tail.start :])
    scheme = Scheme(x.spec, (3,), across, math.prod(shape), eps, centred, here, (1, 1, 1, length))
    out, _, _ = normalise(x.local.reshape(rows, 1, 1, length), weight, bias, scheme)
    return ShardTensor(out.view(x.local.shape), x.spec)


def group_norm(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Normalises groups of neighbouring channels over all positions."""
    x, named = _prepared("group_norm", "input num_groups weight bias eps", args, kwargs)
    groups, eps = named["num_groups"], named.get("eps", 1e-5)
    if x.ndim < 2 or x.shape[1] % groups:
        raise RuntimeError(f"group_norm: {groups} groups do not divide the channels of {tuple(x.shape)}")
    across = splitting(x, range(2, x.ndim))
    if not across and 1 not in x.spec.dims:
        params = (named["weight"], named["bias"])
        return _locally(lambda local, w, b: F.group_norm(local, groups, w, b, eps), x, params)
    each = x.shape[1] // groups
    if 1 in x.spec.dims and any(n % each for n in x.spec.sizes[x.spec.dims.index(1)] or ()):
        remedy = f"Call .redistribute(sizes=...) with multiples of {each} channels first."
        raise unsupported("group_norm", args, kwargs, "a group is spread over ranks", remedy)
    return _over_positions(x, named, each, (2, 3), across, eps)[0]


def instance_norm(
    _func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Normalises every channel of every sample over all positions."""
    names = "input running_mean running_var weight bias use_input_stats momentum eps"
    x, named = _prepared("instance_norm", names, args, kwargs)
    params = [named[name] for name in ("running_mean", "running_var", "weight", "bias")]
    if not named.get("use_input_stats", True):
        return batch_norm(F.batch_norm, types, (x, *params), {"eps": named.get("eps", 1e-5)})
    positions = math.prod(x.shape[2:])
    if positions == 1:
        raise ValueError(f"expected more than 1 position when training, got input of shape {tuple(x.shape)}")
    across = splitting(x, range(2, x.ndim))
    out, mean, var = _over_positions(x, named, 1, (2, 3), across, named.get("eps", 1e-5))
    with torch.no_grad():
        if params[0] is not None or params[1] is not None:
            mean, var = _over_batch(x, torch.stack([mean, var]))
        _track(x, params[0], mean, named.get("momentum", 0.1))
        _track(x, params[1], var * (positions / (positions - 1)), named.get("momentum", 0.1))
    return out


def _over_batch(x: ShardTensor, part: Tensor) -> Tensor:
    """Returns the mean over all samples of statistics (kinds, batch, channels, 1, 1)."""
    return everyone(part.sum(1), x.spec, splitting(x, (0,))).sum(0) / x.shape[0]


def batch_norm(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Normalises every channel over all samples and positions of all ranks, or by the running statistics."""
    names = "input running_mean running_var weight bias training momentum eps"
    x, named = _prepared("batch_norm", names, args, kwargs)
    eps, momentum = named.get("eps", 1e-5), named.get("momentum", 0.1)
    mean, var, weight, bias = (named[name] for name in ("running_mean", "running_var", "weight", "bias"))
    if not named.get("training", False):
        here = x.local_slices()[1]

        def apply(local: Tensor, *params: Tensor | None) -> Tensor:
            if local.numel() == 0:
                return local.clone()
            m, v, w, b = (None if p is None else p[here] for p in params)
            return F.batch_norm(local, m, v, w, b, False, momentum, eps)

        return _locally(apply, x, (mean, var, weight, bias))
    dims = (0, *range(2, x.ndim))
    count = math.prod([x.shape[d] for d in dims])
    if count == 1:
        raise ValueError(f"expected more than 1 value per channel when training, got {tuple(x.shape)}")
    out, now, spread = _over_positions(x, named, 1, (0, 2, 3), splitting(x, dims), eps)
    with torch.no_grad():
        _track(x, mean, now, momentum)
        _track(x, var, spread * (count / (count - 1)), momentum)
    return out


def _over_positions(
    x: ShardTensor, named: Mapping[str, Any], each: int, dims: tuple[int, ...], across: Sizes, eps: float
) -> tuple[ShardTensor, Tensor, Tensor]:
    """Normalises (batch, channels, ...) over `dims` of (batch, groups, each, positions).

    Returns:
        The result, the mean and the variance.
    """
    batch, channels = x.local.shape[:2]
    positions = math.prod(x.local.shape[2:])
    groups = channels // each
    view = (x.shape[0], x.shape[1] // each, each, math.prod(x.shape[2:]))
    count = math.prod([view[d] for d in dims])
    here = x.local_slices()[1:2]
    scheme = Scheme(x.spec, dims, across, count, eps, True, here, (1, groups, each, 1))
    local = x.local.reshape(batch, groups, each, positions)
    out, mean, power = normalise(local, named["weight"], named["bias"], scheme)
    return ShardTensor(out.view(x.local.shape), x.spec), mean, power - eps


def _track(x: ShardTensor, running: Tensor | None, now: Tensor, momentum: float) -> None:
    """running = (1 - momentum) running + momentum now, for the channels of all ranks."""
    if running is None:
        return
    now = now.reshape(-1)
    for m in splitting(x, (1,)):
        now = gather(now, 0, x.spec, m, x.spec.sizes[m] or ())
    running.lerp_(now.to(running.dtype), momentum)


def normalize(x: ShardTensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12) -> ShardTensor:
    """x / max(|x|_p, eps) along a dimension."""
    dims = dimensions(dim, x.ndim)
    if not splitting(x, dims):
        return ShardTensor(F.normalize(x.local, p, dim, eps), x.spec)
    scaled: ShardTensor = x / vector_norm(x, p, dims, True).clamp_min(eps)
    return scaled


def local_response_norm(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """x / (k + alpha mean of squares over neighbouring channels)^beta; the channels must not be sharded."""
    x, named = _prepared("local_response_norm", "input size alpha beta k", args, kwargs)
    if 1 in x.spec.dims:
        raise unsupported("local_response_norm", args, kwargs, "the channels are sharded", elsewhere(x, (1,)))
    options = {name: named[name] for name in ("alpha", "beta", "k") if name in named}
    return ShardTensor(func(x.local, named["size"], **options), x.spec)
