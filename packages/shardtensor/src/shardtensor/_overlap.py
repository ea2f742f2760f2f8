"""Exchange of halo rows while the windows that need none of them are computed, forward and backward.

Two autograd nodes span the computation of the interior. `_Launch` starts the exchange of the forward pass and
ends that of the backward pass; `_Wait` does the reverse. Of two nodes that are ready autograd runs the later
one first, so the gradients of the halo leave before the backward of the interior starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from shardtensor import _wire as wire
from shardtensor._collectives import FetchPlan, Wants, plan_fetch
from shardtensor._errors import UnsupportedShardedOp
from shardtensor._plans import planned
from shardtensor._spec import ShardSpec, Sizes, offsets
from shardtensor._wire import Group

_LEAST_INTERIOR = {"cpu": 1 << 62, "cuda": 1 << 24}  # elements that each interior reads


class _Setting:
    """The smallest interior for which the exchange is overlapped; None leaves the choice to the device."""

    __slots__ = ("least",)

    def __init__(self) -> None:
        self.least: int | None = None


_setting = _Setting()


@contextmanager
def overlap(enabled: bool = True) -> Iterator[None]:
    """Lets convolutions exchange halo rows while they compute the interior, always or never.

    Outside of this context large convolutions on CUDA devices do; over gloo on CPUs, where the exchange needs
    the cores of the computation, it does not pay. All ranks must use it alike. A convolution that overlaps
    can not be differentiated twice.

    Args:
        enabled: whether they do.

    Examples:
        with overlap(False):
            y = net(x)
    """
    before, _setting.least = _setting.least, 0 if enabled else 1 << 62
    try:
        yield
    finally:
        _setting.least = before


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive windows of one rank.

    Attributes:
        outputs: how many.
        remote: rows (start, length) of those received.
        own: rows (start, length) of the own ones.
        rim: rows to add at the two sides, beyond the domain.
    """

    outputs: int
    remote: tuple[int, int]
    own: tuple[int, int]
    rim: tuple[int, int]


@planned
def plan_split(
    sizes: Sizes, counts: Sizes, wants: Wants, reach: int, stride: int, before: int, rank: int
) -> tuple[tuple[Part, ...], int]:
    """Splits the windows of a rank into those that read rows of lower ranks, own rows only, of higher ranks.

    Returns:
        The three parts, and the fewest rows that the interior of any rank reads; 0 if one has no interior.
    """
    extent, least = sum(sizes), sum(sizes)
    chosen: tuple[Part, ...] = ()
    for r, (j0, count, offset, rows) in enumerate(
        zip(offsets(counts), counts, offsets(sizes), sizes, strict=True)
    ):
        j1, end = j0 + count, offset + rows
        inside = [
            j
            for j in range(j0, j1)
            if max(j * stride - before, 0) >= offset and min(j * stride - before + reach, extent) <= end
        ]
        if not inside:
            return (), 0
        a, b = inside[0], inside[-1] + 1
        parts, cursor = [], 0
        for first, last in ((j0, a), (a, b), (b, j1)):
            if first == last:
                parts.append(Part(0, (cursor, 0), (0, 0), (0, 0)))
                continue
            low, high = first * stride - before, (last - 1) * stride - before + reach
            start, stop = max(low, 0), min(high, extent)
            begin, finish = min(max(start, offset), end), max(min(stop, end), offset)
            away = (stop - start) - max(finish - begin, 0)
            own = (begin - offset, max(finish - begin, 0))
            parts.append(Part(last - first, (cursor, away), own, (start - low, high - stop)))
            cursor += away
        least = min(least, parts[1].own[1])
        if cursor != sum(b - a for a, b in wants[r]) - rows + _unread(wants[r], offset, end):
            return (), 0
        chosen = tuple(parts) if r == rank else chosen
    return chosen, least


def _unread(want: tuple[tuple[int, int], ...], offset: int, end: int) -> int:
    """Returns how many own rows are not among those wanted."""
    return end - offset - sum(max(min(b, end) - max(a, offset), 0) for a, b in want)


def parts_of(
    device: torch.device,
    dim: int,
    spec: ShardSpec,
    m: int,
    plan: tuple[Sizes, Wants],
    window: tuple[int, int, int],
) -> tuple[Part, ...]:
    """Returns the split of the windows along `dim`, or () where overlap is impossible or does not pay.

    Args:
        device: of the shards.
        dim: dimension of the windows.
        spec: the layout.
        m: mesh dimension that splits it.
        plan: outputs per rank and the rows that they need.
        window: rows that one window spans, stride, and padding before.
    """
    least = _LEAST_INTERIOR.get(device.type, 1 << 62) if _setting.least is None else _setting.least
    sizes = spec.sizes[m]
    if least == 1 << 62 or sizes is None or torch.compiler.is_compiling():
        return ()
    rank = spec.coordinate[m]
    parts, rows = plan_split(sizes, *plan, *window, rank)
    each = spec.shape.numel() // max(spec.shape[dim], 1)  # alike on all ranks, as their decision must be
    quiet = plan_fetch(sizes, plan[1], rank).quiet
    return parts if rows and rows * each >= least and not quiet else ()


@dataclass(slots=True, eq=False)
class _Flight:
    """An exchange along one mesh dimension, in either direction."""

    dim: int
    plan: FetchPlan
    group: Group
    pending: wire.Pending | None = None
    sent: Tensor | None = None  # must live until the exchange ends
    received: Tensor | None = None

    def start(self, sent: Tensor, send: Sizes, receive: Sizes) -> Tensor:
        self.sent = sent
        self.received = sent.new_empty((sum(receive), *sent.shape[1:]))
        self.pending = wire.all_to_all(self.received, sent, receive, send, self.group, wait=False)
        return self.received

    def finish(self) -> Tensor:
        received, self.received = self.received, None
        if self.pending is None or received is None:
            raise RuntimeError("no exchange is in flight")
        self.pending.wait()
        self.pending = self.sent = None
        return received


class _Launch(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, flight: _Flight) -> tuple[Tensor, Tensor]:
        wire.remember(ctx)
        ctx.flight = flight
        plan, dim = flight.plan, flight.dim
        pieces = [x.narrow(dim, start, length) for asked in plan.send for start, length in asked]
        rest = [n for d, n in enumerate(x.shape) if d != dim]
        rows = torch.cat([piece.movedim(dim, 0) for piece in pieces]) if pieces else x.new_empty((0, *rest))
        received = flight.start(rows.contiguous(), plan.send_rows, plan.receive)
        return x.view_as(x), x.new_zeros(()).expand(received.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        wire.recall(ctx)
        flight: _Flight = ctx.flight
        received, cursor = flight.finish(), 0
        for start, length in (piece for asked in flight.plan.send for piece in asked):
            part = received.narrow(0, cursor, length).movedim(0, flight.dim)
            grad.narrow(flight.dim, start, length).add_(part)  # made for this node alone
            cursor += length
        return grad, None


class _Wait(Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, flight: _Flight) -> Tensor:
        wire.remember(ctx)
        ctx.flight = flight
        return flight.finish()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        wire.recall(ctx)
        if torch.is_grad_enabled():
            reason = "an exchange that overlaps the computation can not be differentiated twice"
            raise UnsupportedShardedOp(
                wire.current.name, reason, "Call it within shardtensor.overlap(False)."
            )
        ctx.flight.start(grad.contiguous(), ctx.flight.plan.receive, ctx.flight.plan.send_rows)
        return grad, None


class _Tie(Function):
    """Keeps an unused operand in the graph: its backward communicates."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, operand: Tensor) -> Tensor:
        ctx.shape = operand.shape
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_zeros(ctx.shape)


def run_overlapped(
    run: Callable[[Tensor, tuple[int, int]], Tensor],
    x: Tensor,
    dim: int,
    spec: ShardSpec,
    m: int,
    wants: Wants,
    parts: tuple[Part, ...],
) -> Tensor:
    """Returns `run` on all windows of this rank; those that read own rows only run during the exchange.

    Args:
        run: `run(rows, rim)` computes all windows of these rows, with rows of zeros added at the two sides.
        x: this rank's shard.
        dim: dimension of the windows.
        spec: the layout.
        m: mesh dimension that splits it.
        wants: the rows that every rank needs.
        parts: of `parts_of`.
    """
    plan = plan_fetch(spec.sizes[m] or (), wants, spec.coordinate[m])
    flight = _Flight(dim, plan, spec.groups[m])
    own, token = _Launch.apply(x, flight)
    before, inner, after = parts
    whole = inner.own == (0, x.shape[dim])
    outs = [run(own if whole else own.narrow(dim, *inner.own), inner.rim)]
    received = _Wait.apply(token, flight)
    for part in (before, after):
        if part.outputs:
            rows = [own.narrow(dim, *part.own)] if part.own[1] else []
            away = [received.narrow(0, *part.remote).movedim(0, dim)] if part.remote[1] else []
            piece = run(torch.cat([*away, *rows] if part is before else [*rows, *away], dim), part.rim)
            outs = [piece, *outs] if part is before else [*outs, piece]
    out = torch.cat(outs, dim) if len(outs) > 1 else outs[0]
    used = any(part.outputs and part.remote[1] for part in (before, after))
    return out if used else _Tie.apply(out, received)
