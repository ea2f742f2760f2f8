"""Attention of any layout: local over batch and heads; over a sharded sequence by one of three methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._align import Aligned, Label, Labels, Operand, align, mesh_dim
from shardtensor._collectives import Wants, fetch_rows, gather, own_rows, shared, swap_rows
from shardtensor._plans import planned
from shardtensor._random import next_draw
from shardtensor._redistribute import rebalance
from shardtensor._ring import CombinedAttention, Dropout, Plan, RingAttention
from shardtensor._spec import ShardSpec, Sizes, offsets
from shardtensor._tensor import ShardTensor, place, replaced, unsupported

Method: TypeAlias = Literal["auto", "ring", "ulysses", "gather"]
_METHODS = ("auto", "ring", "ulysses", "gather")
_NAME = "scaled_dot_product_attention"
_LATENCY = 1 << 20  # bytes that a link moves (50 GB/s) while one message starts (20 us)


class _Choice:
    __slots__ = ("method",)

    def __init__(self) -> None:
        self.method: Method = "auto"


_choice = _Choice()


@contextmanager
def attention(method: Method) -> Iterator[None]:
    """Fixes how attention over a sharded sequence communicates; every rank must choose alike.

    "ring": keys and values travel from rank to rank while the queries stay (Liu et al. 2023,
    arXiv 2310.01889); P - 1 messages that overlap with the computation, and never more than two blocks of
    keys in memory. "ulysses": all_to_all from sequence to heads and back (Jacobs et al. 2023,
    arXiv 2309.14509); 4 messages, whose size falls with P; a mask must be replicated. "gather": every rank
    fetches the keys that it sees; one message. "auto" estimates the time of a forward pass as messages x
    20 us + bytes / 50 GB/s and takes the least; ulysses needs a head of the keys for each rank, and gather
    is only chosen if all keys take no more memory than a rank's queries or than 1 MiB.

    Examples:
        with shardtensor.attention("ring"):
            y = model(x)
    """
    if method not in _METHODS:
        raise ValueError(f"attention method must be one of {_METHODS}, got {method!r}")
    before, _choice.method = _choice.method, method
    try:
        yield
    finally:
        _choice.method = before


@dataclass(frozen=True, slots=True)
class _Call:
    """The arguments of scaled_dot_product_attention."""

    q: Operand
    k: Operand
    v: Operand
    mask: Operand | None
    p: float
    causal: bool
    scale: float
    grouped: bool

    @property
    def operands(self) -> list[Operand]:
        return [self.q, self.k, self.v, *([] if self.mask is None else [self.mask])]


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
    call = _Call(
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
    return _attend(call)


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


def _check(call: _Call) -> None:
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
            _NAME,
            call.operands,
            {},
            f"needs (batch, heads, rows, width) with equal batch and heads, got shapes {shapes}",
            "Expand them first.",
        )
    if call.mask is not None:
        whole = (*q.shape[:-1], k.shape[-2])
        if call.causal:
            raise RuntimeError(f"{_NAME}: explicit attn_mask should not be set when is_causal=True")
        fits = all(n in (1, all_) for n, all_ in zip(call.mask.shape[::-1], whole[::-1], strict=False))
        if len(call.mask.shape) > len(whole) or not fits:
            raise RuntimeError(
                f"{_NAME}: attn_mask of shape {tuple(call.mask.shape)} does not broadcast to {tuple(whole)}"
            )
    if not 0 <= call.p <= 1:
        raise ValueError(f"{_NAME}: dropout probability has to be between 0 and 1, got {call.p}")


def _attend(call: _Call) -> ShardTensor:
    q, k, v, mask = call.q, call.k, call.v, call.mask
    spec = next(x.spec for x in call.operands if isinstance(x, ShardTensor))
    ndim, rows = q.ndim, q.ndim - 2
    cut: dict[int, tuple[int, Sizes]] = {}  # mesh dimensions of the result that alignment does not see
    if call.grouped:
        on_heads, ratio = mesh_dim(q, ndim - 3), q.shape[-3] // k.shape[-3]
        sizes = _sizes_of(q, on_heads) if on_heads is not None else ()
        lone = on_heads is None and not mesh_dim(k, ndim - 3) is mesh_dim(v, ndim - 3) is None
        if lone or any(n % ratio for n in sizes):
            return _attend(replace(call, k=_repeated(k, ratio), v=_repeated(v, ratio), grouped=False))
        if on_heads is not None:
            q, k, v = _by_heads(call, spec, on_heads, sizes, ratio)
            cut[on_heads] = (ndim - 3, sizes)
    over_q, over_k = mesh_dim(q, rows), mesh_dim(k, rows)
    over_k = mesh_dim(v, rows) if over_k is None else over_k
    if over_k is None:
        return _wrap(call, spec, *_over_whole_keys(call, q, k, v, mask, spec, cut), cut)
    extents = _sizes_of(k if mesh_dim(k, rows) is not None else v, over_k)
    k, v = (_own(x, rows, spec, over_k, extents, call) for x in (k, v))
    if over_q == over_k:
        sizes = _sizes_of(q, over_k)
        q = _own(q, rows, spec, over_k, sizes, call)
        cut[over_k] = (rows, sizes)
        return _wrap(call, spec, *_over_ring(call, q, k, v, mask, spec, over_k, sizes, extents, cut), cut)
    if isinstance(q, ShardTensor) and q.spec.dims[over_k] is not None:
        raise _mismatch(call)
    return _wrap(call, spec, *_over_own_keys(call, q, k, v, mask, spec, over_k, extents, cut), cut)


def _mismatch(call: _Call) -> Exception:
    heads = f"Call .redistribute([Shard({call.q.ndim - 2})]) on query, key and value to shard the sequence."
    return unsupported(_NAME, call.operands, {}, "the operands are sharded over different dimensions", heads)


Cut: TypeAlias = dict[int, tuple[int, Sizes]]


def _wrap(call: _Call, spec: ShardSpec, aligned: Aligned, out: Tensor, cut: Cut) -> ShardTensor:
    axes = (*_batch(call.q.ndim), "query", "value")
    wrapped = aligned.wrap(out.reshape(out.shape[4 - call.q.ndim :]), axes)
    dims, sizes = wrapped.spec.dims, wrapped.spec.sizes
    for m, (dim, extents) in cut.items():
        dims, sizes = replaced(dims, m, dim), replaced(sizes, m, extents)
    return place(wrapped.local, spec, dims, sizes) if cut else wrapped


def _sizes_of(x: Any, m: int) -> Sizes:
    sizes: Sizes = x.spec.sizes[m]
    return sizes


def _own(x: Operand, dim: int, spec: ShardSpec, m: int, sizes: Sizes, call: _Call) -> Operand:
    """Returns this rank's rows of x, no longer marked as sharded over mesh dimension m."""
    if not isinstance(x, ShardTensor):
        return own_rows(x, dim, spec, m, sizes)
    here = x.spec.sizes[m]
    if x.spec.partial or x.spec.dims[m] not in (None, dim):
        raise _mismatch(call)
    if here is None:
        local = own_rows(x.local, dim, spec, m, sizes)
    else:
        local = x.local if here == sizes else rebalance(x.local, dim, spec, m, here, sizes)
    return place(local, x.spec, replaced(x.spec.dims, m, None), replaced(x.spec.sizes, m, None))


def _by_heads(
    call: _Call, spec: ShardSpec, m: int, sizes: Sizes, ratio: int
) -> tuple[Operand, Operand, Operand]:
    """Cuts keys and values to the heads that the own query heads share."""
    dim, fewer = call.q.ndim - 3, tuple(n // ratio for n in sizes)
    q = _own(call.q, dim, spec, m, sizes, call)
    return q, _own(call.k, dim, spec, m, fewer, call), _own(call.v, dim, spec, m, fewer, call)


def _repeated(x: Operand, ratio: int) -> Operand:
    """Gives every query head keys of its own, where the split of heads cuts through a group."""
    dim = x.ndim - 3
    if not isinstance(x, ShardTensor):
        return x.repeat_interleave(ratio, dim)
    sizes = tuple(
        tuple(n * ratio for n in rows) if at == dim and rows is not None else rows
        for at, rows in zip(x.spec.dims, x.spec.sizes, strict=True)
    )
    return place(x.local.repeat_interleave(ratio, dim), x.spec, x.spec.dims, sizes)


def _batch(ndim: int) -> tuple[int, ...]:
    """Labels of batch dimensions, counted from the right; the heads are -1."""
    return tuple(range(-(ndim - 2), 0))


def _aligned(
    call: _Call, q: Operand, k: Operand, v: Operand, mask: Operand | None, rows: Label, columns: Label
) -> Aligned:
    """Matches batch, heads and what else is sharded; the mask's rows and columns have labels of their own."""
    batch = _batch(call.q.ndim)
    shared_heads: Labels = (*batch[:-1], "group") if call.grouped else batch
    operands, axes = [q, k, v], [(*batch, "query", "width"), (*shared_heads, "key", "width")]
    axes.append((*shared_heads, "key", "value"))
    if mask is not None:
        operands.append(mask)
        axes.append((*_batch(mask.ndim), rows, columns))
    aligned = align(_NAME, operands, axes)
    if {"key", "width", "value", "group", "row", "column"} & set(aligned.labels):
        raise _mismatch(call)
    return aligned


def _fours(call: _Call, aligned: Aligned) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Returns the local parts with four dimensions."""
    missing = 4 - call.q.ndim
    q, k, v, *rest = aligned.locals
    q, k, v = (x.reshape((1,) * missing + x.shape) for x in (q, k, v))
    mask = rest[0] if rest else None
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    return q, k, v, mask


def _over_whole_keys(
    call: _Call, q: Any, k: Any, v: Any, mask: Any, spec: ShardSpec, cut: Cut
) -> tuple[Aligned, Tensor]:
    """Every rank holds all the keys of its queries."""
    if cut and mask is not None:
        mask = _mask_part(call, mask, spec, cut)
    aligned = _aligned(call, q, k, v, mask, "query", "column")
    row = _start(aligned, "query")
    q, k, v, mask = _fours(call, aligned)
    return aligned, _local(call, q, k, v, mask, row, _starts(call, aligned, cut, row))


def _start(aligned: Aligned, label: Label) -> int:
    for m, (known, sizes) in enumerate(zip(aligned.labels, aligned.sizes, strict=True)):
        if known == label and sizes is not None:
            return offsets(sizes)[aligned.spec.coordinate[m]]
    return 0


def _starts(call: _Call, aligned: Aligned, cut: Cut, row: int) -> tuple[int, int, int]:
    """Returns the global index of the first batch, head and query of this rank."""
    heads = _start(aligned, -1)
    for m, (dim, sizes) in cut.items():
        if dim == call.q.ndim - 3:
            heads = offsets(sizes)[aligned.spec.coordinate[m]]
    return _start(aligned, -2), heads, row


def _dropout(call: _Call, starts: tuple[int, int, int]) -> Dropout | None:
    if not call.p:
        return None
    shape = (*((1,) * (4 - call.q.ndim)), *call.q.shape[:-1], call.k.shape[-2])
    return Dropout(call.p, next_draw(_NAME, call.operands), shape, starts)


def _local(
    call: _Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    row: int,
    starts: tuple[int, int, int],
) -> Tensor:
    """Attention over keys that are all here; the first query is the global query `row`."""
    dropout = _dropout(call, starts)
    shifted = call.causal and row > 0
    if dropout is None and not (shifted and not torch.compiler.is_compiling()):
        if shifted:
            queries = torch.arange(row, row + q.shape[2], device=q.device)[:, None]
            mask = torch.arange(k.shape[2], device=q.device) <= queries
        causal = call.causal and not shifted
        if not q.numel():
            return _empty(q, k, v, mask)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=call.scale, enable_gqa=call.grouped
        )
    plan = Plan((k.shape[2],), 0, None, call.scale, row if call.causal else None, dropout)
    out: Tensor = CombinedAttention.apply(q, k, v, mask, plan)
    return out


def _empty(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """No rows, but part of the graph like any other; torch 2.11's CPU kernel divides by their number."""
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // max(x.shape[1], 1), 1) for x in (k, v))
    scores = q @ k.transpose(-2, -1)
    if mask is not None and mask.is_floating_point():
        scores = scores + mask
    return scores.softmax(-1) @ v


def _over_own_keys(
    call: _Call,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    spec: ShardSpec,
    m: int,
    extents: Sizes,
    cut: Cut,
) -> tuple[Aligned, Tensor]:
    """Every rank of mesh dimension m attends to its own keys; then the results merge."""
    if mask is not None:
        mask = _mask_part(call, mask, spec, {**cut, m: (call.q.ndim - 1, extents)})
    aligned = _aligned(call, q, k, v, mask, "query", "column")
    row = _start(aligned, "query")
    q, k, v, mask = _fours(call, aligned)
    plan = Plan(
        extents,
        spec.coordinate[m],
        spec.groups[m] if len(extents) > 1 else None,
        call.scale,
        row if call.causal else None,
        _dropout(call, _starts(call, aligned, cut, row)),
    )
    return aligned, CombinedAttention.apply(q, k, v, mask, plan)


def _mask_part(call: _Call, mask: Operand, spec: ShardSpec, cut: Cut) -> Operand:
    """Returns the mask for the part of the attention matrix that the cut dimensions leave to this rank."""
    for m, (dim, sizes) in cut.items():
        at = dim - call.q.ndim + mask.ndim
        split = mask.spec.dims[m] if isinstance(mask, ShardTensor) else None
        if split is not None and split != at:
            mask = _moved_mask(mask, m, at, sizes)
        elif at < 0 or mask.shape[at] == 1:
            local = mask.local if isinstance(mask, ShardTensor) else mask
            local = shared(local, spec, [m])
            mask = ShardTensor(local, mask.spec) if isinstance(mask, ShardTensor) else local
        else:
            mask = _own(mask, at, spec, m, sizes, call)
    return mask


def _moved_mask(mask: Any, m: int, at: int, sizes: Sizes) -> Operand:
    """Shards the rows of a mask instead of the dimension that mesh dimension m splits now."""
    spec, dim, here = mask.spec, mask.spec.dims[m], mask.spec.sizes[m]
    dims, rest = replaced(spec.dims, m, None), replaced(spec.sizes, m, None)
    if at >= 0 and mask.shape[at] != 1:
        return place(swap_rows(mask.local, dim, here, at, sizes, spec, m), spec, dims, rest)
    return place(shared(gather(mask.local, dim, spec, m, here), spec, [m]), spec, dims, rest)


def _over_ring(
    call: _Call,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    spec: ShardSpec,
    m: int,
    sizes: Sizes,
    extents: Sizes,
    cut: Cut,
) -> tuple[Aligned, Tensor]:
    """Mesh dimension m splits queries (`sizes`) and keys (`extents`)."""
    fixed = isinstance(mask, ShardTensor) and mask.spec.dims[m] is not None
    method = _method(call, q, len(sizes), fixed=fixed)
    rank, rows = spec.coordinate[m], offsets(sizes)[spec.coordinate[m]]
    if mask is not None:
        others = {other: part for other, part in cut.items() if other != m}
        mask = _mask_part(call, mask, spec, others if method == "ulysses" else cut)
    if method == "ulysses":
        return _ulysses(call, q, k, v, mask, spec, m, sizes, extents, cut)
    aligned = _aligned(call, q, k, v, mask, "row", "column")
    starts = _starts(call, aligned, cut, rows)
    q, k, v, mask = _fours(call, aligned)
    if len(sizes) == 1:
        return aligned, _local(call, q, k, v, mask, rows, starts)
    if method == "gather":
        wants = _seen(sizes, extents, call.causal)
        width = k.shape[-1]
        both = fetch_rows(torch.cat([k, v], -1), 2, spec, m, wants, extents)
        k, v = both[..., :width], both[..., width:]
        if mask is not None and mask.shape[-1] != 1:
            mask = mask[..., : k.shape[2]]
        return aligned, _local(call, q, k, v, mask, rows, starts)
    row = rows if call.causal else None
    plan = Plan(extents, rank, spec.groups[m], call.scale, row, _dropout(call, starts))
    return aligned, RingAttention.apply(q, k, v, mask, plan)


@planned
def _seen(sizes: Sizes, extents: Sizes, causal: bool) -> Wants:
    """Returns the keys that each rank's queries see."""
    keys = sum(extents)
    ends = [start + n for start, n in zip(offsets(sizes), sizes, strict=True)]
    return tuple(((0, min(end, keys) if causal else keys),) for end in ends)


def _ulysses(
    call: _Call,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    spec: ShardSpec,
    m: int,
    sizes: Sizes,
    extents: Sizes,
    cut: Cut,
) -> tuple[Aligned, Tensor]:
    """Exchanges the sequence for heads, attends to the whole sequence, and exchanges back."""
    aligned = _aligned(call, q, k, v, mask, "row", "column")
    batch, head, _ = _starts(call, aligned, {o: part for o, part in cut.items() if o != m}, 0)
    q, k, v, mask = _fours(call, aligned)
    fewer = balanced(k.shape[1], len(sizes))
    heads = tuple(n * (q.shape[1] // max(k.shape[1], 1)) for n in fewer)
    if mask is not None and len(sizes) > 1:
        mask = shared(mask, spec, [m]) if mask.shape[1] == 1 else own_rows(mask, 1, spec, m, heads)
    q = swap_rows(q, 2, sizes, 1, heads, spec, m)
    k, v = (swap_rows(x, 2, extents, 1, fewer, spec, m) for x in (k, v))
    first = head + offsets(heads)[spec.coordinate[m]]
    out = _local(call, q, k, v, mask, 0, (batch, first, 0))
    return aligned, swap_rows(out, 1, heads, 2, sizes, spec, m)


def balanced(extent: int, parts: int) -> Sizes:
    """Returns extents that differ by one at most."""
    return tuple((extent + part) // parts for part in range(parts))


def _method(call: _Call, q: Operand, ranks: int, *, fixed: bool) -> Method:
    """Chooses how queries and keys meet, from global numbers alone, so that all ranks agree."""
    chosen = _choice.method
    if chosen == "ulysses" and fixed:
        raise unsupported(
            _NAME, call.operands, {}, "ulysses needs the whole mask", "Redistribute the mask to Replicate()."
        )
    if chosen != "auto":
        return chosen
    size, heads = q.dtype.itemsize, call.k.shape[-3] if call.k.ndim > 2 else 1
    over_heads = mesh_dim(q, q.ndim - 3)
    if over_heads is not None:
        heads = heads * min(_sizes_of(q, over_heads)) // max(q.shape[-3], 1)
    widths = call.q.shape[-1] + call.v.shape[-1]
    queries, keys = (x.shape[:-1].numel() * widths * size for x in (call.q, call.k))
    return cheapest(ranks, queries, keys, 0 if fixed else heads)


@planned
def cheapest(ranks: int, queries: int, keys: int, heads: int) -> Method:
    """Returns the method with the least estimated time.

    Args:
        ranks: P.
        queries: bytes of all queries and outputs.
        keys: bytes of all keys and values.
        heads: of the keys; 0 where ulysses is ruled out.
    """
    others = ranks - 1
    cost: dict[Method, float] = {"ring": others * _LATENCY + others * keys / ranks}
    if keys <= max(queries / ranks, _LATENCY):
        cost["gather"] = _LATENCY + others * keys / ranks
    if heads >= ranks:
        cost["ulysses"] = 4 * _LATENCY + others * (queries + keys) / ranks**2
    return min(cost, key=lambda method: cost[method])
