"""Matrix products in any order, and attention over a sequence that is not sharded."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._align import Labels, Operand, align
from shardtensor._collectives import shared_all, tied
from shardtensor._errors import UnsupportedShardedOp
from shardtensor._spec import derive
from shardtensor._tensor import ShardTensor, unsupported


def linear(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """y = x W^T + b; a sharded contraction is all-reduced before the bias is added."""
    named = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
    x, weight, bias = named["input"], named["weight"], named.get("bias")
    if type(x) is ShardTensor and not isinstance(weight, ShardTensor) and not isinstance(bias, ShardTensor):
        spec = x.spec
        if not spec.partial and x.ndim - 1 not in spec.dims:
            weights = [weight] if bias is None else [weight, bias]
            weights = shared_all(weights, spec, spec.split)
            y = F.linear(x.local, *weights)
            y = tied(y, weights) if y.numel() == 0 else y
            return ShardTensor(y, derive(spec, spec.dims, (*spec.shape[:-1], *weight.shape[:-1]), spec.sizes))
    batch = tuple(range(x.ndim - 1))
    outer = ("out",) if weight.ndim == 2 else ()
    operands: list[Operand] = [x, weight]
    axes: list[Labels] = [(*batch, "in"), (*outer, "in")]
    if bias is not None:
        operands.append(bias)
        axes.append(outer)
    if any(isinstance(p, ShardTensor) and p.ndim and p.spec.dims[-1] is not None for p in operands[1:]):
        raise unsupported("linear", operands, {}, "needs plain or replicated weights")
    if isinstance(x, ShardTensor) and x.ndim - 1 in x.spec.dims:
        aligned = align("linear", operands[:2], axes[:2], ["in"])
        product: Any = aligned.wrap(F.linear(*aligned.locals), (*batch, *outer))
        biased: ShardTensor = product if bias is None else product + bias
        return biased
    aligned = align("linear", operands, axes, ["in", "out"])
    return aligned.wrap(F.linear(*aligned.locals), (*batch, *outer))


def matmul(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """matmul, mm, bmm, mv and dot: sharded over the batch, the rows, the columns or the contraction."""
    a, b = (*args, *kwargs.values())
    if func is torch.Tensor.__rmatmul__:
        a, b = b, a
    left: Labels = (*_batch(a.ndim), "row", "inner") if a.ndim > 1 else ("inner",)
    right: Labels = (*_batch(b.ndim), "inner", "column") if b.ndim > 1 else ("inner",)
    aligned = align("matmul", [a, b], [left, right], ["inner"])
    axes = (
        *_batch(max(a.ndim, b.ndim)),
        *(["row"] if a.ndim > 1 else []),
        *(["column"] if b.ndim > 1 else []),
    )
    return aligned.wrap(torch.matmul(*aligned.locals), axes)


def _batch(ndim: int) -> tuple[int | str, ...]:
    """Labels of batch dimensions, counted from the right so that they broadcast."""
    return tuple(range(-(ndim - 2), 0))


def einsum(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """torch.einsum with a subscript string."""
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    if not isinstance(equation, str):
        raise unsupported("einsum", args, kwargs, "needs a subscript string")
    inputs, output = _subscripts(equation, [x.ndim for x in operands])
    aligned = align("einsum", operands, inputs)
    return aligned.wrap(torch.einsum(equation, *aligned.locals), output)


def _subscripts(equation: str, ndims: Sequence[int]) -> tuple[list[Labels], Labels]:
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    inputs = [_expand(term, ndim) for term, ndim in zip(terms, ndims, strict=True)]
    dots = max((labels[: len(labels)] for labels in map(_dots, inputs)), key=len, default=())
    if arrow:
        return inputs, tuple(
            label for part in right.partition("...") for label in (dots if part == "..." else part)
        )
    once = sorted(c for c in string.ascii_letters if left.count(c) == 1)
    return inputs, (*dots, *once)


def _dots(labels: Labels) -> Labels:
    return tuple(label for label in labels if isinstance(label, int))


def _expand(term: str, ndim: int) -> Labels:
    """Replaces the ellipsis by integers counted from the right."""
    head, dots, tail = term.partition("...")
    missing = ndim - len(head) - len(tail)
    return (*head, *(range(-missing, 0) if dots else ()), *tail)


def scaled_dot_product_attention(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Attention sharded over batch or heads, or over the queries of replicated keys; local on every rank."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    named = dict(zip(names, args, strict=False)) | dict(kwargs)
    operands: list[Operand] = [named["query"], named["key"], named["value"]]
    mask: Operand | None = named.get("attn_mask")
    if named.get("dropout_p", 0.0) > 0:
        raise _random("scaled_dot_product_attention", operands)
    causal, grouped = named.get("is_causal", False), named.get("enable_gqa", False)
    q_batch, k_batch, v_batch = (_batch(x.ndim) for x in operands)  # heads are -1
    if grouped:  # keys and values have fewer heads
        k_batch, v_batch = (*k_batch[:-1], "group"), (*v_batch[:-1], "group")
    axes: list[Labels] = [
        (*q_batch, "query", "width"),
        (*k_batch, "key", "width"),
        (*v_batch, "key", "value"),
    ]
    if mask is not None:
        operands.append(mask)
        axes.append((*_batch(mask.ndim), "query", "key"))
    split = {
        label
        for x, labels in zip(operands, axes, strict=True)
        if isinstance(x, ShardTensor)
        for label in (labels[dim] for dim in x.spec.dims if dim is not None)
    }
    if split & {"key", "width", "group"} or ("query" in split and causal) or (-1 in split and grouped):
        heads = (
            f"Call .redistribute([Shard({operands[0].ndim - 3})]) on query, key and value to shard the heads."
        )
        raise unsupported("scaled_dot_product_attention", operands, {}, "the sequence is sharded", heads)
    aligned = align("scaled_dot_product_attention", operands, axes, ["width"])
    options = {name: named[name] for name in ("scale", "enable_gqa") if name in named}
    q, k, v, *bias = aligned.locals
    mask = bias[0] if bias else None
    attend = F.scaled_dot_product_attention if q.numel() else _empty_attention
    out = attend(q, k, v, attn_mask=mask, is_causal=causal, **options)
    return aligned.wrap(out, (*_batch(q.ndim), "query", "value"))


def _empty_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """No rows, but part of the graph like any other; torch 2.11's CPU kernel divides by their number."""
    del is_causal, scale
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = q @ k.transpose(-2, -1)
    if attn_mask is not None and attn_mask.is_floating_point():
        scores = scores + attn_mask
    return scores.softmax(-1) @ v


def random(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor | Tensor:
    """Dropout that does nothing returns its input; anything that draws numbers raises."""
    name = func.__name__
    if "dropout" in name:
        named = dict(zip(("input", "p", "training"), args, strict=False)) | dict(kwargs)
        if named.get("p", 0.5) == 0 or not named.get("training", True):
            x: ShardTensor | Tensor = named["input"]
            return x
    raise _random(name, args)


def _random(name: str, args: Sequence[Any]) -> UnsupportedShardedOp:
    error = unsupported(
        name, args, {}, "random numbers of the ranks would not agree with those of one process"
    )
    error.random = True
    return error
