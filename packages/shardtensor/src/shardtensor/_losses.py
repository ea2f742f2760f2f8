"""Losses: local terms are added, summed over the ranks in one all-reduce, and divided by the global count."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shardtensor._align import Aligned, Labels, align, broadcast_axes, broadcast_shape
from shardtensor._collectives import total
from shardtensor._moments import wide
from shardtensor._pointwise import pointwise
from shardtensor._reduce import dimensions, sum_
from shardtensor._softmax import log_sum_exp
from shardtensor._spec import Sizes
from shardtensor._take import check_range
from shardtensor._tensor import Handler, ShardTensor, place, unsupported

_OLD = ("size_average", "reduce")
ELEMENTWISE = {
    "mse_loss": "input target size_average reduce reduction weight",
    "l1_loss": "input target size_average reduce reduction weight",
    "smooth_l1_loss": "input target size_average reduce reduction beta",
    "huber_loss": "input target reduction delta weight",
    "binary_cross_entropy": "input target weight size_average reduce reduction",
    "binary_cross_entropy_with_logits": "input target weight size_average reduce reduction pos_weight",
    "kl_div": "input target size_average reduce reduction log_target",
    "gaussian_nll_loss": "input target var full eps reduction",
    "poisson_nll_loss": "input target log_input full size_average eps reduce reduction",
    "soft_margin_loss": "input target size_average reduce reduction",
    "hinge_embedding_loss": "input target margin size_average reduce reduction",
    "margin_ranking_loss": "input1 input2 target margin size_average reduce reduction",
}
_SAME_SHAPE = ("mse_loss", "huber_loss")
_CLASSES = "input target weight size_average ignore_index reduce reduction label_smoothing"
_COSINE = "input1 input2 target margin size_average reduce reduction"


def _arguments(
    op: str, names: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Returns the arguments by name, and the reduction."""
    named = dict(zip(names.split(), args, strict=False)) | dict(kwargs)
    if any(named.pop(name, None) is not None for name in _OLD):
        raise unsupported(
            op, args, kwargs, "has no size_average= and reduce= here", "Use reduction= instead."
        )
    reduction = named.pop("reduction", "mean")
    known = ("none", "sum", "mean", *(["batchmean"] if op == "kl_div" else []))
    if reduction not in known:
        raise ValueError(f"{op}: reduction must be one of {', '.join(known)}, got {reduction!r}")
    return {name: value for name, value in named.items() if value is not None}, reduction


def elementwise(names: str) -> Handler:
    """Returns the handler of a loss that has one term for each element of the broadcast operands."""

    def handler(
        func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ShardTensor:
        op = func.__name__
        named, reduction = _arguments(op, names, args, kwargs)
        if op == "gaussian_nll_loss":
            named["var"] = _variance(named["input"], named["var"])
        keys = [name for name, value in named.items() if isinstance(value, Tensor | ShardTensor)]
        operands = [named[name] for name in keys]
        if op == "l1_loss" and "weight" in named:  # only compiled: elsewhere it does not arrive at all
            raise unsupported(op, args, kwargs, "torch 2.13 loses the weight", "Weigh the terms yourself.")
        if op in _SAME_SHAPE and "weight" in named and named["weight"].shape != named["input"].shape:
            raise ValueError(f"{op}: weight and input must have the same shape")
        if op == "mse_loss" and "weight" in named and reduction == "mean":
            each = pointwise(func, (), (), {**named, "reduction": "none"})
            zeros = ShardTensor(torch.zeros_like(each.local), each.spec)
            return _ratio(each, pointwise(torch.add, (), (zeros, named["weight"]), {}))
        if reduction == "none" or any([x.dtype != wide(x.dtype) for x in operands]):
            each = pointwise(func, (), (), {**named, "reduction": "none"})
            if reduction == "none":
                return each
            kind = each.dtype
            summed = sum_(each, dtype=wide(kind))
        else:
            aligned = align(op, operands, broadcast_axes([x.shape for x in operands]))
            local = named | dict(zip(keys, aligned.locals, strict=True))
            summed = aligned.wrap(func(**local, reduction="sum"), ())
            kind = summed.dtype
        shape = broadcast_shape(*[x.shape for x in operands])
        count = {"sum": 1, "mean": shape.numel(), "batchmean": operands[0].shape[:1].numel()}[reduction]
        return ShardTensor((summed.local / count).to(kind), summed.spec)

    return handler


def _variance(x: Any, var: Any) -> Any:
    """Lets a variance without the last dimension broadcast, as torch does."""
    if isinstance(var, Tensor | ShardTensor) and var.ndim == x.ndim - 1 and var.shape == x.shape[:-1]:
        return var.unsqueeze(-1)
    return var


def _ratio(terms: ShardTensor, weights: ShardTensor) -> ShardTensor:
    """Returns sum(terms) / sum(weights) of operands that lie alike, in one all-reduce."""
    kind = wide(terms.dtype)
    pair = torch.stack([terms.local.sum(dtype=kind), weights.local.sum(dtype=kind)])
    above, below = total(pair, terms.spec, terms.spec.split).unbind()
    nowhere = (None,) * terms.spec.mesh.ndim
    return place((above / below).to(terms.dtype), terms.spec, nowhere, nowhere)


def class_loss(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """cross_entropy and nll_loss, also where the classes are sharded.

    "mean" divides the weighted sum over all ranks by the sum of the weights of all targets that count.
    """
    op = func.__name__
    named, reduction = _arguments(op, _CLASSES, args, kwargs)
    x, target, weight = named["input"], named["target"], named.get("weight")
    if isinstance(weight, ShardTensor):
        if not weight.spec.replicated:
            raise unsupported(op, args, kwargs, "needs a plain or replicated weight")
        weight = weight.local
    at = min(1, x.ndim - 1)
    axes: Labels = tuple("class" if d == at else d for d in range(x.ndim))
    samples = tuple(label for label in axes if label != "class")
    soft = op == "cross_entropy" and target.shape == x.shape and target.dtype.is_floating_point
    if not soft and tuple(target.shape) != tuple(x.shape[d] for d in samples if isinstance(d, int)):
        raise ValueError(f"{op}: target of shape {tuple(target.shape)} does not fit {tuple(x.shape)}")
    aligned = align(op, [x, target], [axes, axes if soft else samples], axes)
    local, labels = aligned.locals
    options = {"weight": weight, "ignore_index": named.get("ignore_index", -100)}
    if op == "cross_entropy":
        options["label_smoothing"] = named.get("label_smoothing", 0.0)
    if "class" in aligned.labels:
        if not soft:
            check_range(op, labels.masked_fill(labels == options["ignore_index"], 0), 0, x.shape[at])
        each = _over_sharded_classes(aligned, x, at, soft, normalised=op == "nll_loss", **options)
    else:
        each = func(local, labels, reduction="none", **options)
    dims: Any = tuple(samples.index(label) if label in samples else None for label in aligned.labels)
    sizes = tuple(None if dim is None else n for dim, n in zip(dims, aligned.sizes, strict=True))
    terms = place(each, aligned.spec, dims, sizes)
    if reduction == "none":
        return terms
    if reduction == "sum" or soft:
        summed = sum_(terms, dtype=wide(terms.dtype))
        count = 1 if reduction == "sum" else math.prod(terms.shape)
        return ShardTensor((summed.local / count).to(terms.dtype), summed.spec)
    counts = (labels != options["ignore_index"]).to(each.dtype)
    if weight is not None:
        counts = counts * weight[labels.clamp(0, len(weight) - 1)]
    return _ratio(terms, place(counts, aligned.spec, dims, sizes))


def _over_sharded_classes(
    aligned: Aligned,
    x: Any,
    at: int,
    soft: bool,
    *,
    normalised: bool,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Returns the loss of every sample: one exchange for the log-sum-exp, one for the terms of all classes.

    With targets t, weights w and y = logsumexp(x) - x the loss is sum_c t_c w_c y_c.
    """
    local, target = aligned.locals
    spec, split = aligned.spec, tuple(m for m, label in enumerate(aligned.labels) if label == "class")
    kind, classes = local.dtype, x.shape[at]
    local = local.to(wide(kind))
    here = _own_classes(aligned, split)
    scale = torch.ones(classes, dtype=local.dtype, device=local.device)
    scale = scale if weight is None else weight.to(local.dtype)
    own = scale[here].view(-1, *[1] * (local.ndim - 1 - at))
    if soft:
        shares = target.to(local.dtype) * (1 - label_smoothing) + label_smoothing / classes
        terms = torch.stack([(shares * own * local).sum(at), (shares * own).sum(at)])
        picked, shared_weight = total(terms, spec, split).unbind()
    else:
        hot = _picked(local * own, target - here.start, at)
        spread = (own * local).sum(at)
        hot, spread = total(torch.stack([hot, spread]), spec, split).unbind()
        picked = (1 - label_smoothing) * hot + label_smoothing / classes * spread
        shared_weight = (1 - label_smoothing) * scale[target.clamp(0, classes - 1)]
        shared_weight = shared_weight + label_smoothing / classes * scale.sum()
    if normalised:
        out = -picked
    else:
        top, rest = log_sum_exp(local, (at,), spec, split)
        out = (top + rest).squeeze(at) * shared_weight - picked
    if not soft:
        out = out.masked_fill(target == ignore_index, 0.0)
    return out.to(kind)


def _own_classes(aligned: Aligned, split: Sizes) -> slice:
    (m,) = split
    sizes, rank = aligned.sizes[m] or (), aligned.spec.coordinate[m]
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def _picked(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """Returns x[index] along `dim`, and 0 where the index lies outside."""
    if x.shape[dim] == 0:
        return x.sum(dim)
    inside = (index >= 0) & (index < x.shape[dim])
    rows = x.gather(dim, index.clamp(0, x.shape[dim] - 1).unsqueeze(dim)).squeeze(dim)
    return torch.where(inside, rows, 0.0)


def cosine_similarity(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """x y / (max(|x|, eps) max(|y|, eps)); along a sharded dimension all three sums in one all-reduce."""
    named = dict(zip(("x1", "x2", "dim", "eps"), args, strict=False)) | dict(kwargs)
    x, y, eps = named["x1"], named["x2"], named.get("eps", 1e-8)
    axes = broadcast_axes([x.shape, y.shape])
    ndim = max(x.ndim, y.ndim)
    (dim,) = dimensions(named.get("dim", 1), ndim)
    aligned = align("cosine_similarity", [x, y], axes)
    rest = tuple(d for d in range(ndim) if d != dim)
    if dim not in aligned.labels:
        return aligned.wrap(func(*aligned.locals, dim=dim, eps=eps), rest)
    a, b = torch.broadcast_tensors(*aligned.locals)
    sums = aligned.wrap(torch.stack([(a * b).sum(dim), (a * a).sum(dim), (b * b).sum(dim)]), ("three", *rest))
    product, first, second = sums.local.unbind()
    out = product / (first.clamp_min(eps**2) * second.clamp_min(eps**2)).sqrt()
    dims: Any = tuple(None if d is None else d - 1 for d in sums.spec.dims)
    return place(out, sums.spec, dims, sums.spec.sizes)


def cosine_embedding_loss(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Sharded over the samples; the features must be whole."""
    named, reduction = _arguments("cosine_embedding_loss", _COSINE, args, kwargs)
    operands = [named.pop(name) for name in ("input1", "input2", "target")]
    sample: Labels = ("sample",) * operands[2].ndim
    aligned = align(
        func.__name__, operands, [(*sample, "feature"), (*sample, "feature"), sample], ["feature"]
    )
    if "feature" in aligned.labels:
        raise unsupported(func.__name__, args, kwargs, "the features are sharded")
    each = aligned.wrap(func(*aligned.locals, **named, reduction="none"), sample)
    if reduction == "none":
        return each
    summed = sum_(each, dtype=wide(each.dtype))
    count = math.prod(each.shape) if reduction == "mean" else 1
    return ShardTensor((summed.local / count).to(each.dtype), summed.spec)
