"""Multi-head attention as torch.nn.MultiheadAttention calls it, composed of sharded operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._collectives import gather
from shardtensor._tensor import ShardTensor, place, replaced, unsupported

_NAME = "multi_head_attention_forward"
_ARGUMENTS = (
    *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k"),
    *("bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias"),
)


def multi_head_attention(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Projects, attends and projects back; batch and sequence may be sharded.

    With `need_weights` the keys of the sequence are gathered, since every row of the weights needs all.
    """
    named = dict(zip(_ARGUMENTS, args, strict=False)) | dict(kwargs)
    extras = [name for name in ("bias_k", "bias_v", "static_k", "static_v") if named.get(name) is not None]
    if extras or named["add_zero_attn"]:
        reason = f"appends keys ({', '.join(extras or ['add_zero_attn'])})"
        raise unsupported(_NAME, args, kwargs, reason)
    q, k, v = (named[name] for name in ("query", "key", "value"))
    if q.shape[-1] != named["embed_dim_to_check"] or k.shape[:2] != v.shape[:2]:
        shapes = [tuple(x.shape) for x in (q, k, v)]
        raise AssertionError(f"{_NAME}: shapes {shapes} do not fit width {named['embed_dim_to_check']}")
    alone = q.ndim == 2
    heads = named["num_heads"]
    q, k, v = (_split(x, heads, alone) for x in _projected(q, k, v, named))
    mask, causal = _masks(named, q, k, alone)
    p = named["dropout_p"] if named.get("training", True) else 0.0
    weights = None
    if named.get("need_weights", True):
        out, weights = _weighed(q, k, v, mask, p)
        weights = weights.mean(1) if named.get("average_attn_weights", True) else weights
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=causal)
    out = F.linear(out.permute(2, 0, 1, 3).flatten(-2), named["out_proj_weight"], named["out_proj_bias"])
    if not alone:
        return out, weights
    return out.squeeze(1), None if weights is None else weights.squeeze(0)


def _projected(q: Any, k: Any, v: Any, named: Mapping[str, Any]) -> tuple[Any, ...]:
    """Projects with as few products as inputs differ: the gradient of a weight is reduced once."""
    width, bias = q.shape[-1], named["in_proj_bias"]
    if named.get("use_separate_proj_weight", False):
        weights = [named[f"{name}_proj_weight"] for name in "qkv"]
        biases = [None] * 3 if bias is None else bias.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip((q, k, v), weights, biases, strict=True))
    weight = named["in_proj_weight"]
    if q is k and k is v:
        return tuple(F.linear(q, weight, bias).unflatten(-1, (3, width)).unbind(-2))
    first = F.linear(q, weight[:width], None if bias is None else bias[:width])
    if k is v:
        both = F.linear(k, weight[width:], None if bias is None else bias[width:])
        return (first, *both.unflatten(-1, (2, width)).unbind(-2))
    rest = zip((k, v), weight[width:].chunk(2), _halves(bias, width), strict=True)
    return (first, *(F.linear(x, w, b) for x, w, b in rest))


def _halves(bias: Tensor | None, width: int) -> tuple[Tensor | None, ...]:
    return (None, None) if bias is None else bias[width:].chunk(2)


def _split(x: Any, heads: int, alone: bool) -> Any:
    """Returns (batch, heads, rows, width) from (rows, batch, heads * width)."""
    x = x.unsqueeze(1) if alone else x
    return x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)


def _masks(named: Mapping[str, Any], q: Any, k: Any, alone: bool) -> tuple[Any, bool]:
    """Returns what to add to the scores, broadcasting to (batch, heads, queries, keys), and is_causal."""
    mask, padding = named.get("attn_mask"), named.get("key_padding_mask")
    causal = named.get("is_causal", False)
    if causal and mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    if causal and padding is None and not named.get("need_weights", True):
        return None, True
    whole = (*q.shape[:3], k.shape[-2])
    if mask is not None:
        mask = _scores(mask, q.dtype)
        if tuple(mask.shape) not in (whole[2:], (whole[0] * whole[1], *whole[2:])):
            raise RuntimeError(f"{_NAME}: attn_mask of shape {tuple(mask.shape)} does not fit {whole}")
        mask = mask if mask.ndim == 2 else mask.unflatten(0, whole[:2])
    if padding is not None:
        padding = padding.unsqueeze(0) if alone else padding
        if tuple(padding.shape) != (whole[0], whole[3]):
            raise RuntimeError(
                f"{_NAME}: key_padding_mask of shape {tuple(padding.shape)} does not fit {whole}"
            )
        padding = _scores(padding, q.dtype).unsqueeze(1).unsqueeze(1)
        mask = padding if mask is None else mask + padding
    return mask, False


def _scores(mask: Any, dtype: torch.dtype) -> Any:
    """Returns a mask, of which True means hidden, as numbers to add to the scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


def _weighed(q: Any, k: Any, v: Any, mask: Any, p: float) -> tuple[Any, Any]:
    k, v = (_whole(x, q) for x in (k, v))
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
    weights = (scores if mask is None else scores + mask).softmax(-1)
    weights = F.dropout(weights, p) if p else weights
    return torch.matmul(weights, v), weights


def _whole(x: Any, q: Any) -> Any:
    """Gathers keys where the queries are sharded over the same mesh dimension."""
    if not isinstance(x, ShardTensor) or not isinstance(q, ShardTensor) or 2 not in x.spec.dims:
        return x
    m = x.spec.dims.index(2)
    if q.spec.dims[m] is None:
        return x
    local = gather(x.local, 2, x.spec, m, x.spec.sizes[m] or ())
    return place(local, x.spec, replaced(x.spec.dims, m, None), replaced(x.spec.sizes, m, None))
