"""scaled_dot_product_attention of sharded tensors: its arguments and their checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F

from shardtensor._attend import NAME, Call, attend
from shardtensor._tensor import ShardTensor, unsupported


def scaled_dot_product_attention(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """softmax(q k^T * scale + mask) v with batch, heads, queries or keys sharded.

    Where batch and heads alone are sharded, every rank calls torch. Where a mesh dimension splits queries
    and keys, `attention` says how they meet. Where it splits the keys alone, the results of the ranks merge.
    """
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    named = dict(zip(names, args, strict=False)) | dict(kwargs)
    q, k, v = named["query"], named["key"], named["value"]
    mask: Any = named.get("attn_mask")
    if mask is None and _same_local(q, k, v) and not named.get("dropout_p", 0.0):
        out = F.scaled_dot_product_attention(q.local, k.local, v.local, **_options(named))
        return ShardTensor(out, q.spec)
    mask = mask.unsqueeze(0) if mask is not None and len(mask.shape) == 1 else mask
    scale = named.get("scale")
    call = Call(
        q,
        k,
        v,
        mask,
        named.get("dropout_p", 0.0),
        named.get("is_causal", False),
        q.shape[-1] ** -0.5 if scale is None else scale,
        named.get("enable_gqa", False) and q.ndim > 2 and q.shape[-3] != k.shape[-3],
    )
    _check(call)
    return attend(call)


def _same_local(q: Any, k: Any, v: Any) -> bool:
    """Whether all have one layout and hold what they need: the common case, at the cost of a few tests."""
    if type(q) is not ShardTensor or type(k) is not ShardTensor or type(v) is not ShardTensor:
        return False
    spec = q.spec
    if spec is not k.spec or spec is not v.spec or spec.partial or not q.local.numel():
        return False
    rows = len(spec.shape) - 2
    return all(dim is None or dim < rows for dim in spec.dims)


def _options(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: named[name] for name in ("is_causal", "scale") if name in named}


def _check(call: Call) -> None:
    """Checks the global shapes; local ones might fit by accident."""
    q, k, v = call.q, call.k, call.v
    shapes = [tuple(x.shape) for x in call.operands]
    batch = [x.shape[: -3 if call.grouped else -2] for x in (q, k, v)]
    fits = q.ndim == k.ndim == v.ndim <= 4 and q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
    fits = fits and batch[0] == batch[1] == batch[2]
    if call.grouped:
        fits = fits and k.shape[-3] == v.shape[-3] and q.shape[-3] % k.shape[-3] == 0
    if not fits:
        raise unsupported(
            NAME,
            call.operands,
            {},
            f"needs (batch, heads, rows, width) with equal batch and heads, got shapes {shapes}",
            "Expand them first.",
        )
    if call.mask is not None:
        whole = (*q.shape[:-1], k.shape[-2])
        if call.causal:
            raise RuntimeError(f"{NAME}: explicit attn_mask should not be set when is_causal=True")
        fits = all(n in (1, all_) for n, all_ in zip(call.mask.shape[::-1], whole[::-1], strict=False))
        if len(call.mask.shape) > len(whole) or not fits:
            raise RuntimeError(
                f"{NAME}: attn_mask of shape {tuple(call.mask.shape)} does not broadcast to {tuple(whole)}"
            )
    if not 0 <= call.p <= 1:
        raise ValueError(f"{NAME}: dropout probability has to be between 0 and 1, got {call.p}")
