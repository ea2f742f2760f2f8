"""Attention of any layout: local over batch and heads; over a sharded sequence by one of three methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._align import Aligned, Label, Labels, Operand, align, mesh_dim
from shardtensor._collectives import Wants, fetch_rows, gather, own_rows, shared, swap_rows
from shardtensor._method import Method, cheapest, chosen
from shardtensor._plans import planned
from shardtensor._random import next_draw
from shardtensor._redistribute import rebalance
from shardtensor._ring import CombinedAttention, Dropout, Plan, RingAttention
from shardtensor._spec import ShardSpec, Sizes, offsets
from shardtensor._tensor import ShardTensor, place, replaced, unsupported

NAME = "scaled_dot_product_attention"


@dataclass(frozen=True, slots=True)
class Call:
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
        """Query, key, value, and the mask if there is one."""
        return [self.q, self.k, self.v, *([] if self.mask is None else [self.mask])]


Cut: TypeAlias = dict[int, tuple[int, Sizes]]
Starts: TypeAlias = tuple[int, int, int]
Fours: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor | None]


def attend(call: Call) -> ShardTensor:
    """Runs a call of which some dimension is sharded."""
    spec = next(x.spec for x in call.operands if isinstance(x, ShardTensor))
    q, k, v, ndim, rows = call.q, call.k, call.v, call.q.ndim, call.q.ndim - 2
    cut: Cut = {}
    if call.grouped:
        on_heads, ratio = mesh_dim(q, ndim - 3), q.shape[-3] // k.shape[-3]
        sizes = _sizes_of(q, on_heads) if on_heads is not None else ()
        lone = on_heads is None and not mesh_dim(k, ndim - 3) is mesh_dim(v, ndim - 3) is None
        if lone or any(n % ratio for n in sizes):
            return attend(replace(call, k=_repeated(k, ratio), v=_repeated(v, ratio), grouped=False))
        if on_heads is not None:
            q, k, v = _by_heads(call, spec, on_heads, sizes, ratio)
            cut[on_heads] = (ndim - 3, sizes)
    over_q, over_k = mesh_dim(q, rows), mesh_dim(k, rows)
    over_k = mesh_dim(v, rows) if over_k is None else over_k
    split = _Split(call, q, k, v, call.mask, spec, cut)
    if over_k is None:
        return split.wrap(*_over_whole_keys(split))
    extents = _sizes_of(k if mesh_dim(k, rows) is not None else v, over_k)
    split = replace(
        split, k=_own(k, rows, spec, over_k, extents, call), v=_own(v, rows, spec, over_k, extents, call)
    )
    if over_q != over_k:
        if isinstance(q, ShardTensor) and q.spec.dims[over_k] is not None:
            raise _mismatch(call)
        return split.wrap(*_over_own_keys(split, over_k, extents))
    sizes = _sizes_of(q, over_k)
    split = replace(split, q=_own(q, rows, spec, over_k, sizes, call), cut={**cut, over_k: (rows, sizes)})
    return split.wrap(*_over_sequence(split, over_k, sizes, extents))


def _mismatch(call: Call) -> Exception:
    heads = f"Call .redistribute([Shard({call.q.ndim - 2})]) on query, key and value to shard the sequence."
    return unsupported(NAME, call.operands, {}, "the operands are sharded over different dimensions", heads)


@dataclass(frozen=True, slots=True)
class _Split:
    """A call whose operands are cut along the mesh dimensions that alignment does not see.

    Args:
        call: as it came, with global shapes.
        q: queries, no longer marked as sharded over the mesh dimensions of `cut`; so are the others.
        k: keys.
        v: values.
        mask: boolean, or added to the scores.
        spec: gives the mesh.
        cut: {mesh dimension: (dimension of the result that it splits, rows per rank)}.
    """

    call: Call
    q: Operand
    k: Operand
    v: Operand
    mask: Operand | None
    spec: ShardSpec
    cut: Cut

    def beside(self, m: int) -> Cut:
        """Returns the cuts of the other mesh dimensions."""
        return {other: part for other, part in self.cut.items() if other != m}

    def masked(self, cut: Cut) -> _Split:
        """Returns this with the part of the mask that the cut dimensions leave to this rank."""
        if self.mask is None or not cut:
            return self
        return replace(self, mask=_mask_part(self.call, self.mask, self.spec, cut))

    def aligned(self, rows: Label) -> Aligned:
        """Matches batch, heads and what else is sharded; the mask's rows have a label of their own."""
        batch = _batch(self.call.q.ndim)
        shared_heads: Labels = (*batch[:-1], "group") if self.call.grouped else batch
        operands = [self.q, self.k, self.v]
        axes = [(*batch, "query", "width"), (*shared_heads, "key", "width"), (*shared_heads, "key", "value")]
        if self.mask is not None:
            operands.append(self.mask)
            axes.append((*_batch(self.mask.ndim), rows, "column"))
        aligned = align(NAME, operands, axes)
        if {"key", "width", "value", "group", "row", "column"} & set(aligned.labels):
            raise _mismatch(self.call)
        return aligned

    def starts(self, aligned: Aligned, row: int) -> Starts:
        """Returns the global index of the first batch, head and query of this rank."""
        heads = _start(aligned, -1)
        for m, (dim, sizes) in self.cut.items():
            if dim == self.call.q.ndim - 3:
                heads = offsets(sizes)[aligned.spec.coordinate[m]]
        return _start(aligned, -2), heads, row

    def wrap(self, aligned: Aligned, out: Tensor) -> ShardTensor:
        """Returns the result (B, H, L, Ev) of this rank as that of the call."""
        axes = (*_batch(self.call.q.ndim), "query", "value")
        wrapped = aligned.wrap(out.reshape(out.shape[4 - self.call.q.ndim :]), axes)
        dims, sizes = wrapped.spec.dims, wrapped.spec.sizes
        for m, (dim, extents) in self.cut.items():
            dims, sizes = replaced(dims, m, dim), replaced(sizes, m, extents)
        return place(wrapped.local, self.spec, dims, sizes) if self.cut else wrapped


def _fours(aligned: Aligned) -> Fours:
    """Returns the local parts of query, key, value and mask with four dimensions."""
    q, k, v, *rest = (x.reshape((1,) * (4 - x.ndim) + x.shape) for x in aligned.locals)
    return q, k, v, rest[0] if rest else None


def _over_whole_keys(split: _Split) -> tuple[Aligned, Tensor]:
    """Every rank holds all the keys of its queries."""
    aligned = split.masked(split.cut).aligned("query")
    return aligned, _local(split.call, _fours(aligned), split.starts(aligned, _start(aligned, "query")))


def _over_own_keys(split: _Split, m: int, extents: Sizes) -> tuple[Aligned, Tensor]:
    """Every rank of mesh dimension m attends to its own keys; then the results merge."""
    call, spec = split.call, split.spec
    aligned = split.masked({**split.cut, m: (call.q.ndim - 1, extents)}).aligned("query")
    row = _start(aligned, "query")
    plan = Plan(
        extents,
        spec.coordinate[m],
        spec.groups[m] if len(extents) > 1 else None,
        call.scale,
        row if call.causal else None,
        _dropout(call, split.starts(aligned, row)),
    )
    return aligned, CombinedAttention.apply(*_fours(aligned), plan)


def _over_sequence(split: _Split, m: int, sizes: Sizes, extents: Sizes) -> tuple[Aligned, Tensor]:
    """Mesh dimension m splits queries (`sizes`) and keys (`extents`)."""
    call, spec = split.call, split.spec
    method = _method(split, m, len(sizes))
    if method == "ulysses":
        return _by_ulysses(split.masked(split.beside(m)), m, sizes, extents)
    split, rank = split.masked(split.cut), spec.coordinate[m]
    aligned, row = split.aligned("row"), offsets(sizes)[rank]
    starts, (q, k, v, mask) = split.starts(aligned, row), _fours(aligned)
    if len(sizes) == 1:
        return aligned, _local(call, (q, k, v, mask), starts)
    if method == "gather":
        width = k.shape[-1]
        both = fetch_rows(torch.cat([k, v], -1), 2, spec, m, _seen(sizes, extents, call.causal), extents)
        if mask is not None and mask.shape[-1] != 1:
            mask = mask[..., : both.shape[2]]
        return aligned, _local(call, (q, both[..., :width], both[..., width:], mask), starts)
    first = row if call.causal else None
    plan = Plan(extents, rank, spec.groups[m], call.scale, first, _dropout(call, starts))
    return aligned, RingAttention.apply(q, k, v, mask, plan)


@planned
def _seen(sizes: Sizes, extents: Sizes, causal: bool) -> Wants:
    """Returns the keys that each rank's queries see."""
    keys = sum(extents)
    ends = [start + n for start, n in zip(offsets(sizes), sizes, strict=True)]
    return tuple(((0, min(end, keys) if causal else keys),) for end in ends)


def _by_ulysses(split: _Split, m: int, sizes: Sizes, extents: Sizes) -> tuple[Aligned, Tensor]:
    """Exchanges the sequence for heads, attends to the whole sequence, and exchanges back."""
    spec, aligned = split.spec, split.aligned("row")
    batch, head, _ = split.starts(aligned, 0)
    q, k, v, mask = _fours(aligned)
    fewer = balanced(k.shape[1], len(sizes))
    heads = tuple(n * (q.shape[1] // max(k.shape[1], 1)) for n in fewer)
    if mask is not None and len(sizes) > 1:
        mask = shared(mask, spec, [m]) if mask.shape[1] == 1 else own_rows(mask, 1, spec, m, heads)
    q = swap_rows(q, 2, sizes, 1, heads, spec, m)
    k, v = (swap_rows(x, 2, extents, 1, fewer, spec, m) for x in (k, v))
    first = head + offsets(heads)[spec.coordinate[m]]
    out = _local(split.call, (q, k, v, mask), (batch, first, 0))
    return aligned, swap_rows(out, 1, heads, 2, sizes, spec, m)


def _method(split: _Split, m: int, ranks: int) -> Method:
    """Chooses how queries and keys meet, from global numbers alone, so that all ranks agree."""
    call, q, mask = split.call, split.q, split.mask
    fixed = isinstance(mask, ShardTensor) and mask.spec.dims[m] is not None
    method = chosen()
    if method == "ulysses" and fixed:
        raise unsupported(
            NAME, call.operands, {}, "ulysses needs the whole mask", "Redistribute the mask to Replicate()."
        )
    if method != "auto":
        return method
    size, heads = q.dtype.itemsize, call.k.shape[-3] if call.k.ndim > 2 else 1
    over_heads = mesh_dim(q, q.ndim - 3)
    if over_heads is not None:
        heads = heads * min(_sizes_of(q, over_heads)) // max(q.shape[-3], 1)
    widths = call.q.shape[-1] + call.v.shape[-1]
    queries, keys = (x.shape[:-1].numel() * widths * size for x in (call.q, call.k))
    return cheapest(ranks, queries, keys, 0 if fixed else heads)


def balanced(extent: int, parts: int) -> Sizes:
    """Returns extents that differ by one at most."""
    return tuple((extent + part) // parts for part in range(parts))


def _sizes_of(x: Any, m: int) -> Sizes:
    sizes: Sizes = x.spec.sizes[m]
    return sizes


def _own(x: Operand, dim: int, spec: ShardSpec, m: int, sizes: Sizes, call: Call) -> Operand:
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
    call: Call, spec: ShardSpec, m: int, sizes: Sizes, ratio: int
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


def _start(aligned: Aligned, label: Label) -> int:
    for m, (known, sizes) in enumerate(zip(aligned.labels, aligned.sizes, strict=True)):
        if known == label and sizes is not None:
            return offsets(sizes)[aligned.spec.coordinate[m]]
    return 0


def _dropout(call: Call, starts: Starts) -> Dropout | None:
    if not call.p:
        return None
    shape = (*((1,) * (4 - call.q.ndim)), *call.q.shape[:-1], call.k.shape[-2])
    return Dropout(call.p, next_draw(NAME, call.operands), shape, starts)


def _local(call: Call, parts: Fours, starts: Starts) -> Tensor:
    """Attention over keys that are all here; `starts` says which batch, head and query come first."""
    (q, k, v, mask), row, dropout = parts, starts[2], _dropout(call, starts)
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


def _mask_part(call: Call, mask: Operand, spec: ShardSpec, cut: Cut) -> Operand:
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
