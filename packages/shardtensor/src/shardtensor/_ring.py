"""Attention block by block: keys and values travel around the ring of ranks, results merge by log-sum-exp.

Ring attention (Liu et al. 2023, arXiv 2310.01889) on blocks of any sizes. With the log-sum-exp M of all
scores of a query and D = rowsum(dO * O), the gradient of every block follows from that block alone (Dao 2023,
arXiv 2307.08691): P = exp(S - M), dV = P^T dO, dS = P * (dO V^T - D), dQ = dS K, dK = dS^T Q.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from shardtensor import _wire as wire
from shardtensor._align import split_of
from shardtensor._collectives import all_reduce, fetch_rows
from shardtensor._moments import wide as _wide
from shardtensor._random import Draw, at_least, numbers
from shardtensor._spec import Sizes, offsets
from shardtensor._tensor import ShardTensor
from shardtensor._wire import Group

_CPU_FLASH: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_CPU_FLASH_BACKWARD: Any = getattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None
)
_CUDA_FLASH = torch.ops.aten._scaled_dot_product_flash_attention
_CUDA_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward


@dataclass(frozen=True, slots=True)
class Dropout:
    """Which weights of the global attention matrix are dropped.

    Args:
        p: probability.
        draw: seed and number of the draw.
        shape: global (batch, heads, queries, keys).
        starts: first batch, head and query of this rank.
    """

    p: float
    draw: Draw
    shape: tuple[int, int, int, int]
    starts: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one rank computes of an attention.

    Args:
        sizes: keys of every rank on the ring.
        rank: this rank on the ring.
        group: the ring; None where nothing travels.
        scale: of the scores.
        row: global index of the first query, if causal: query i sees the keys up to i.
        dropout: of the attention weights.
    """

    sizes: Sizes
    rank: int
    group: Group | None
    scale: float
    row: int | None = None
    dropout: Dropout | None = None


@dataclass(frozen=True, slots=True)
class _Block:
    """Keys [start, start + rows) of the global sequence as the queries of this rank see them.

    In the mask that this rank holds they begin at `column`.
    """

    plan: Plan
    start: int
    rows: int
    queries: int
    column: int

    @property
    def shift(self) -> int | None:
        """Query i sees the keys j <= i + shift of the block; None where it sees all."""
        if self.plan.row is None or self.plan.row - self.start >= self.rows - 1:
            return None
        return self.plan.row - self.start

    @property
    def hidden(self) -> bool:
        """Whether no query sees any key."""
        empty = self.rows == 0 or self.queries == 0
        return empty or (self.shift is not None and self.shift <= -self.queries)

    @property
    def square(self) -> bool:
        """Whether the block lies on the diagonal, so that kernels know its causal mask."""
        return self.shift == 0 and self.rows == self.queries

    def mask(self, mask: Tensor | None, device: torch.device) -> Tensor | None:
        """Returns which keys are seen, or what is added to the scores: (batch, heads, queries, rows)."""
        if mask is not None and mask.shape[-1] != 1:
            mask = mask.narrow(-1, self.column, self.rows)
        if self.shift is not None and not self.square:
            query = torch.arange(self.queries, device=device)[:, None]
            return (torch.arange(self.rows, device=device) <= query + self.shift)[None, None]
        return mask

    def kept(self, like: Tensor) -> Tensor:
        """Returns the factors of dropout, in the shape and dtype of the block's weights."""
        drop = self.plan.dropout
        assert drop is not None
        starts = (*drop.starts, self.start)
        block = [slice(start, start + n) for start, n in zip(starts, like.shape, strict=True)]
        keep = numbers(drop.draw, drop.shape, block, like.device, at_least(drop.p))
        return keep.to(like.dtype) * (0.0 if drop.p == 1 else 1 / (1 - drop.p))


def _finite(lse: Tensor) -> Tensor:
    """Replaces the log-sum-exp of rows that see no key, so that exp(score - lse) is 0 there."""
    return lse.masked_fill(lse == -torch.inf, 0.0)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a mask as numbers to add to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)


def _kernel(q: Tensor, v: Tensor, mask: Tensor | None, block: _Block, *, mask_gradient: bool) -> str:
    """Returns which kernel computes a block: "cpu", "cuda" or "math"."""
    if block.plan.dropout is not None or mask_gradient or q.shape[-1] != v.shape[-1] or not q.numel():
        return "math"
    if q.device.type == "cpu":
        return "cpu" if _CPU_FLASH is not None and _CPU_FLASH_BACKWARD is not None else "math"
    half = q.dtype in (torch.float16, torch.bfloat16)
    fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    return "cuda" if q.device.type == "cuda" and half and fits and mask is None else "math"


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, block: _Block) -> Tensor:
    wide = _wide(q.dtype)
    scores = (q.to(wide) * block.plan.scale) @ k.to(wide).transpose(-2, -1)
    if block.square:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, block: _Block, *, mask_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Returns output (B, H, L, Ev) and log-sum-exp (B, H, L) of the queries over one block of keys."""
    k, v = _expanded(k, q), _expanded(v, q)
    mask, scale = block.mask(mask, q.device), block.plan.scale
    kernel = _kernel(q, v, mask, block, mask_gradient=mask_gradient)
    if kernel == "math":
        scores = _scores(q, k, mask, block)
        lse = scores.logsumexp(-1)
        weights = (scores - _finite(lse)[..., None]).exp()
        if block.plan.dropout is not None:
            weights = weights * block.kept(weights)
        return weights @ v.to(weights.dtype), lse
    if kernel == "cuda":
        out, lse, *_ = _CUDA_FLASH(q, k, v, 0.0, block.square, scale=scale)
        return out, lse
    added = None if mask is None else _added(mask, q.dtype)
    out, lse = _CPU_FLASH(q, k, v, 0.0, block.square, attn_mask=added, scale=scale)
    if added is not None:  # the kernel calls the log-sum-exp of nothing 0
        lse = lse.masked_fill((added == -torch.inf).all(-1), -torch.inf)
    return out, lse


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    block: _Block,
    *,
    mask_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Returns the block's gradients of q, k, v and of its scores; `out` and `lse` are those of all blocks."""
    groups = q.shape[1] // max(k.shape[1], 1)
    k, v = _expanded(k, q), _expanded(v, q)
    mask, scale = block.mask(mask, q.device), block.plan.scale
    kernel = _kernel(q, v, mask, block, mask_gradient=mask_gradient)
    scored = None
    if kernel == "math":
        grad, out, wide = grad.to(lse.dtype), out.to(lse.dtype), lse.dtype
        weights = (_scores(q, k, mask, block) - lse[..., None]).exp()
        kept = block.kept(weights) if block.plan.dropout is not None else None
        dropped = weights if kept is None else weights * kept
        upstream = grad @ v.to(wide).transpose(-2, -1)
        upstream = upstream if kept is None else upstream * kept
        scored = weights * (upstream - (grad * out).sum(-1, keepdim=True))
        dq = scored @ k.to(wide) * scale
        dk = scored.transpose(-2, -1) @ q.to(wide) * scale
        dv = dropped.transpose(-2, -1) @ grad
    elif kernel == "cuda":
        none = torch.empty((), dtype=torch.int64, device=q.device)
        lengths = (None, None, block.queries, block.rows, 0.0, block.square, none, none)
        dq, dk, dv = _CUDA_FLASH_BACKWARD(grad, q, k, v, out, lse, *lengths, scale=scale)
    else:
        added = None if mask is None else _added(mask, q.dtype)
        dq, dk, dv = _CPU_FLASH_BACKWARD(
            grad, q, k, v, out, lse, 0.0, block.square, attn_mask=added, scale=scale
        )
    return dq, _grouped(dk, groups), _grouped(dv, groups), scored


def _expanded(x: Tensor, q: Tensor) -> Tensor:
    """Repeats heads of keys or values that several query heads share."""
    return x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def _grouped(x: Tensor, groups: int) -> Tensor:
    return x if groups <= 1 else x.unflatten(1, (-1, groups)).sum(2)


def _merged(
    a: tuple[Tensor, Tensor] | None, b: tuple[Tensor, Tensor], wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Merges the results over two sets of keys; that of the first is overwritten."""
    out, lse = b[0].to(wide), b[1].to(wide)
    if a is None:
        return out, lse
    both = torch.logaddexp(a[1], lse)
    safe = _finite(both)
    return a[0].mul_((a[1] - safe).exp()[..., None]).addcmul_(out, (lse - safe).exp()[..., None]), both


def _nothing(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    wide = _wide(q.dtype)
    out = q.new_zeros((*q.shape[:-1], v.shape[-1]), dtype=wide)
    return out, q.new_full(q.shape[:-1], -torch.inf, dtype=wide)


def _to_shape(x: Tensor, shape: torch.Size) -> Tensor:
    """Sums over the dimensions along which `shape` was broadcast."""
    dims = [d for d, (have, want) in enumerate(zip(x.shape, shape, strict=True)) if want == 1 and have != 1]
    return x.sum(dims, keepdim=True) if dims else x


class _Ring:
    """Blocks (B, heads, rows, width) of keys and values, and of their gradients, on their way around.

    A block is one flat message. What a rank received it sends on as it is: nothing is packed twice.
    """

    def __init__(self, plan: Plan, k: Tensor, v: Tensor) -> None:
        self.plan, self.ranks = plan, len(plan.sizes)
        self.like = (k, v)

    def source(self, step: int) -> int:
        """Returns whose keys are here at a step."""
        return (self.plan.rank - step) % self.ranks

    def block(self, step: int, queries: int) -> _Block:
        source = self.source(step)
        start = offsets(self.plan.sizes)[source]
        return _Block(self.plan, start, self.plan.sizes[source], queries, start)

    def lengths(self, step: int) -> list[int]:
        rows = self.plan.sizes[self.source(step)]
        return [x.shape[0] * x.shape[1] * rows * x.shape[3] for x in self.like]

    def packed(self, step: int, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns a block as a message; zeros where there are no parts."""
        new = self.like[0].new_empty if parts else self.like[0].new_zeros
        message = new(sum(self.lengths(step)), dtype=dtype)
        for into, part in zip(self.parts(step, message), parts, strict=False):
            into.copy_(part)
        return message

    def parts(self, step: int, message: Tensor) -> list[Tensor]:
        """Returns the two tensors of a message, as views."""
        rows = self.plan.sizes[self.source(step)]
        pieces = zip(message.split(self.lengths(step)), self.like, strict=True)
        return [piece.view(*x.shape[:2], rows, x.shape[3]) for piece, x in pieces]

    def start(self, message: Tensor, step: int) -> tuple[Any, Tensor]:
        """Starts to send a message to the next rank, and to receive that of the block of `step`."""
        assert self.plan.group is not None
        send, receive = [0] * self.ranks, [0] * self.ranks
        send[(self.plan.rank + 1) % self.ranks] = message.numel()
        receive[(self.plan.rank - 1) % self.ranks] = sum(self.lengths(step))
        if torch.compiler.is_compiling():
            return None, wire.exchange(message, receive, send, self.plan.group)
        received = message.new_empty(sum(receive))
        return wire.all_to_all(received, message, receive, send, self.plan.group, wait=False), received


def _wait(pending: Any) -> None:
    if pending is not None:
        pending.wait()


def _kept(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor) -> Tensor:
    """Saves what the backward pass needs; returns the output in the dtype of the queries."""
    rounded = out.to(q.dtype)
    # The gradient of a mask is a difference that rounding of the output would dominate.
    ctx.save_for_backward(q, k, v, mask, out if ctx.mask_gradient else rounded, lse)
    return rounded


class RingAttention(Function):
    """Attention of own queries over keys and values that travel; all ranks of the ring take part.

    Every rank sends P - 1 blocks of keys and values in the forward pass. In the backward pass it sends them
    again, and P - 1 times their gradients, which follow one step behind and end at home. Besides q, k, v, the
    result and their gradients a rank holds two blocks in flight, and in the backward pass two of gradients.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, plan: Plan) -> Tensor:
        """Returns the output of the own queries (batch, heads, rows, width): P - 1 exchanges."""
        wire.remember(ctx)
        ctx.plan = plan
        ring, queries = _Ring(plan, k, v), q.shape[2]
        last, here, result = ring.ranks - 1, [k, v], None
        ctx.mask_gradient = mask is not None and ctx.needs_input_grad[3]
        keys = ring.packed(0, here, k.dtype) if last else k
        for step in range(ring.ranks):
            pending, ahead = ring.start(keys, step + 1) if step < last else (None, keys)
            block = ring.block(step, queries)
            if not block.hidden:
                part = _forward(q, here[0], here[1], mask, block, mask_gradient=ctx.mask_gradient)
                result = _merged(result, part, _wide(q.dtype))
            if step < last:
                _wait(pending)
                keys, here = ahead, ring.parts(step + 1, ahead)
        out, lse = result or _nothing(q, v)
        return _kept(ctx, q, k, v, mask, out, lse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of q, k, v and mask from that of the output."""
        wire.recall(ctx)
        q, k, v, mask, out, lse = ctx.saved_tensors
        ring, wide, queries = _Ring(ctx.plan, k, v), lse.dtype, q.shape[2]
        last, lse, grad = ring.ranks - 1, _finite(lse), grad.contiguous()
        dq: Tensor | None = None
        dmask = torch.zeros_like(mask, dtype=wide) if ctx.mask_gradient else None
        keys, here = ring.packed(0, [k, v], k.dtype) if last else k, [k, v]
        own: list[Tensor] = []
        sums = lse.new_empty(0)  # gradients of the block of this step, from the ranks where it was
        for step in range(ring.ranks):
            # Keys go ahead for the next step; gradients of the block of the last step follow it.
            pending, ahead = ring.start(keys, step + 1) if step < last else (None, keys)
            behind, sums = ring.start(sums, step) if step > 1 else (None, sums)
            block = ring.block(step, queries)
            parts: list[Tensor] = []
            if not block.hidden:
                part, *parts, scored = _backward(
                    grad, q, here[0], here[1], mask, out, lse, block, mask_gradient=ctx.mask_gradient
                )
                dq = part.to(wide) if dq is None else dq.add_(part)
                if dmask is not None and scored is not None:
                    _add_scores(dmask, scored, block)
            if step == 0:
                own = parts
            elif step == 1:
                sums = ring.packed(1, parts, wide)
            else:
                _wait(behind)
                _accumulate(ring.parts(step, sums), parts)
            if step < last:
                _wait(pending)
                keys, here = ahead, ring.parts(step + 1, ahead)
            del ahead, parts  # what a name holds the next step cannot reuse
        del keys, here
        if last:
            behind, sums = ring.start(sums, 0)
            _wait(behind)
            _accumulate(ring.parts(0, sums), own)
        else:
            sums = ring.packed(0, own, wide)
        dk, dv = ring.parts(0, sums)
        dq = torch.zeros_like(q, dtype=wide) if dq is None else dq
        dmask = None if dmask is None else dmask.to(mask.dtype)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dmask, None


def _accumulate(sums: list[Tensor], parts: list[Tensor]) -> None:
    """Adds the gradients of a block, of which there may be none, in place."""
    for total, part in zip(sums, parts, strict=False):
        total += part


def _add_scores(dmask: Tensor, scored: Tensor, block: _Block) -> None:
    """Adds the gradient of a block's scores to that of the mask, in place."""
    part = dmask if dmask.shape[-1] == 1 else dmask.narrow(-1, block.column, block.rows)
    part += _to_shape(scored, part.shape)


class CombinedAttention(Function):
    """Attention of queries that all ranks hold over the keys of each; their results merge by log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, plan: Plan) -> Tensor:
        """Returns the output of all queries on every rank: the results of the ranks merged."""
        wire.remember(ctx)
        ctx.plan = plan
        ctx.mask_gradient = mask is not None and ctx.needs_input_grad[3]
        block = _own_block(plan, q)
        result = None
        if not block.hidden:
            part = _forward(q, k, v, mask, block, mask_gradient=ctx.mask_gradient)
            result = _merged(None, part, _wide(q.dtype))
        out, lse = result or _nothing(q, v)
        if plan.group is not None:
            out, lse = _combined(out, lse, plan.group)
        return _kept(ctx, q, k, v, mask, out, lse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of q, summed over the ranks, k, v and mask."""
        wire.recall(ctx)
        q, k, v, mask, out, lse = ctx.saved_tensors
        block = _own_block(ctx.plan, q)
        dmask = torch.zeros_like(mask, dtype=lse.dtype) if ctx.mask_gradient else None
        dq, dk, dv = (torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v))
        if not block.hidden:
            parts = (grad.contiguous(), q, k, v, mask, out, _finite(lse), block)
            dq, dk, dv, scored = _backward(*parts, mask_gradient=ctx.mask_gradient)
            if dmask is not None and scored is not None:
                _add_scores(dmask, scored, block)
        dq = dq.to(lse.dtype)
        if ctx.plan.group is not None:
            dq = all_reduce(dq, [ctx.plan.group])
        dmask = None if dmask is None else dmask.to(mask.dtype)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dmask, None


def _own_block(plan: Plan, q: Tensor) -> _Block:
    return _Block(plan, offsets(plan.sizes)[plan.rank], plan.sizes[plan.rank], q.shape[2], 0)


def _combined(out: Tensor, lse: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Merges the results of the ranks by two all-reduces: of the largest log-sum-exp, and of the rest."""
    top = all_reduce(lse, [group], dist.ReduceOp.MAX)
    weight = (lse - _finite(top)).exp()[..., None]
    terms = all_reduce(torch.cat([out * weight, weight], -1), [group])
    value, weight = terms[..., :-1], terms[..., -1]
    return value / weight.clamp_min(torch.finfo(weight.dtype).tiny)[..., None], weight.log() + _finite(top)


def ring_shift(x: ShardTensor, dim: int, shift: int = 1) -> Tensor:
    """Returns the local part of another rank of the ring, as a plain tensor.

    With shift 1 every rank receives the part of the rank before it, the first that of the last; the gradient
    travels back. Parts may differ in size.

    Args:
        x: the sharded tensor.
        dim: a sharded dimension of x; its ranks form the ring.
        shift: how many ranks further every part moves; may be negative.

    Raises:
        ValueError: dim is not sharded.
    """
    m, sizes = split_of(x, dim)
    starts = offsets(sizes)
    sources = [(rank - shift) % len(sizes) for rank in range(len(sizes))]
    wants = tuple(((starts[s], starts[s] + sizes[s]),) for s in sources)
    return fetch_rows(x.local, dim % x.ndim, x.spec, m, wants)
