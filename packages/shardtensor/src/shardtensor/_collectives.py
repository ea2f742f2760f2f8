"""Differentiable communication over a mesh dimension, built on all_to_all_single and all_reduce.

Gradients follow one convention: the gradient of a shard is that shard of the gradient; the gradient of a
replicated value is the whole gradient, the same on every rank; the gradient of a partial sum is that of its
total. Every backward is the forward of another function here, so that all of them differentiate twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from shardtensor import _wire as wire
from shardtensor._plans import planned
from shardtensor._spec import ShardSpec, Sizes, offsets

Interval: TypeAlias = tuple[int, int]  # global rows [start, stop)
Wants: TypeAlias = tuple[
    tuple[Interval, ...], ...
]  # for every rank the intervals that it asks for, in output order
Group: TypeAlias = dist.ProcessGroup


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """One rank's share of a fetch along one mesh dimension; all counts are rows.

    Args:
        rows: own rows before the fetch.
        send: for every destination the pieces (start, length) of the own shard that it receives.
        receive: rows that come from every source.
        build: the output in order, as (received?, start, length).
        quiet: no rank sends anything.
    """

    rows: int
    send: tuple[tuple[tuple[int, int], ...], ...]
    receive: Sizes
    build: tuple[tuple[bool, int, int], ...]
    quiet: bool

    @property
    def send_rows(self) -> Sizes:
        return tuple(sum(length for _, length in pieces) for pieces in self.send)


@planned
def plan_fetch(sizes: Sizes, wants: Wants, rank: int) -> FetchPlan:
    """Returns the plan by which `rank` gets the global rows wants[rank], and serves the other ranks theirs.

    Raises:
        ValueError: an interval leaves [0, sum(sizes)), or `wants` does not have one entry per rank.
    """
    total = sum(sizes)
    if len(wants) != len(sizes):
        raise ValueError(
            f"wants needs one list of intervals for each of {len(sizes)} ranks, got {len(wants)}"
        )
    if any(not 0 <= start <= stop <= total for want in wants for start, stop in want):
        raise ValueError(f"intervals must lie within [0, {total}), got {wants}")
    pieces = [_pieces(sizes, want) for want in wants]  # per asking rank: (source, start in its shard, length)
    send = tuple(
        tuple((start, length) for source, start, length in asked if source == rank and asker != rank)
        for asker, asked in enumerate(pieces)
    )
    receive = [0] * len(sizes)
    for source, _, length in pieces[rank]:
        receive[source] += length if source != rank else 0
    cursor = list(offsets(tuple(receive)))
    build = []
    for source, start, length in pieces[rank]:
        build.append((source != rank, start if source == rank else cursor[source], length))
        cursor[source] += length
    quiet = all(source == asker for asker, asked in enumerate(pieces) for source, _, _ in asked)
    return FetchPlan(sizes[rank], send, tuple(receive), tuple(build), quiet)


def _pieces(sizes: Sizes, want: tuple[Interval, ...]) -> list[tuple[int, int, int]]:
    found = []
    for start, stop in want:
        for source, offset in enumerate(offsets(sizes)):
            low, high = max(start, offset), min(stop, offset + sizes[source])
            if low < high:
                found.append((source, low - offset, high - low))
    return found


def fetch_rows(
    x: Tensor, dim: int, spec: ShardSpec, mesh_dim: int, wants: Wants, sizes: Sizes | None = None
) -> Tensor:
    """Returns the global rows wants[rank] of tensor dimension `dim`, which mesh dimension `mesh_dim` splits.

    One `all_to_all_single` moves the rows of other ranks; none happens when every rank owns what it wants.
    The backward sends every gradient row home and adds it there.

    Args:
        x: this rank's shard.
        dim: the split tensor dimension.
        spec: gives the mesh, and the sizes unless `sizes` does.
        mesh_dim: mesh dimension over which rows are exchanged.
        wants: the intervals of every rank.
        sizes: rows of every rank, when they are not spec.sizes[mesh_dim].
    """
    rows = sizes or spec.sizes[mesh_dim]
    if rows is None:
        raise ValueError(f"mesh dimension {mesh_dim} splits no tensor dimension: {spec.describe()}")
    plan = plan_fetch(rows, wants, spec.coordinate[mesh_dim])
    if plan.quiet:
        return _assemble(x, None, dim, plan)
    result: Tensor = _Fetch.apply(x, dim, plan, spec.groups[mesh_dim])
    return result


def _exchange(
    pieces: list[Tensor], like: Tensor, dim: int, send: Sizes, receive: Sizes, group: Group
) -> Tensor:
    """Sends the concatenated pieces; returns what arrives, with `dim` moved to the front."""
    rest = [n for d, n in enumerate(like.shape) if d != dim]
    out = torch.cat([piece.movedim(dim, 0) for piece in pieces]) if pieces else like.new_empty((0, *rest))
    received = like.new_empty((sum(receive), *rest))
    wire.all_to_all(received, out.contiguous(), receive, send, group)
    return received


def _assemble(x: Tensor, received: Tensor | None, dim: int, plan: FetchPlan) -> Tensor:
    parts = []
    for remote, start, length in plan.build:
        if remote and received is not None:
            parts.append(received.narrow(0, start, length).movedim(0, dim))
        elif (start, length) == (0, plan.rows) and received is None and len(plan.build) == 1:
            return x
        else:
            parts.append(x.narrow(dim, start, length))
    return torch.cat(parts, dim) if parts else x.narrow(dim, 0, 0).clone()


def _run_fetch(x: Tensor, dim: int, plan: FetchPlan, group: Group) -> Tensor:
    pieces = [x.narrow(dim, start, length) for asked in plan.send for start, length in asked]
    received = _exchange(pieces, x, dim, plan.send_rows, plan.receive, group)
    return _assemble(x, received, dim, plan)


def _run_return(grad: Tensor, dim: int, plan: FetchPlan, group: Group) -> Tensor:
    """The transpose of a fetch: sends every row back to its owner, who adds them."""
    stops = list(accumulate(length for _, _, length in plan.build))
    parts = [
        grad.narrow(dim, stop - length, length) for stop, (*_, length) in zip(stops, plan.build, strict=True)
    ]
    away = sorted((start, i) for i, (remote, start, _) in enumerate(plan.build) if remote)
    received = _exchange([parts[i] for _, i in away], grad, dim, plan.receive, plan.send_rows, group)
    shape = list(grad.shape)
    shape[dim] = plan.rows
    home = grad.new_zeros(shape)
    for (remote, start, length), part in zip(plan.build, parts, strict=True):
        if not remote:
            home.narrow(dim, start, length).add_(part)
    cursor = 0
    for start, length in (piece for asked in plan.send for piece in asked):
        home.narrow(dim, start, length).add_(received.narrow(0, cursor, length).movedim(0, dim))
        cursor += length
    return home


class _Fetch(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, plan: FetchPlan, group: Group) -> Tensor:
        ctx.op = wire.current.op
        ctx.plan = (dim, plan, group)
        return _run_fetch(x, dim, plan, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        wire.current.op = ctx.op
        return _Return.apply(grad, *ctx.plan), None, None, None


class _Return(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, plan: FetchPlan, group: Group) -> Tensor:
        ctx.op = wire.current.op
        ctx.plan = (dim, plan, group)
        return _run_return(x, dim, plan, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        wire.current.op = ctx.op
        return _Fetch.apply(grad, *ctx.plan), None, None, None


def _everything(sizes: Sizes) -> Wants:
    return tuple(((0, sum(sizes)),) for _ in sizes)


def gather(x: Tensor, dim: int, spec: ShardSpec, mesh_dim: int, sizes: Sizes) -> Tensor:
    """Shard -> Replicate: returns all rows on every rank; the backward keeps the own rows of the gradient."""
    if len(sizes) == 1:
        return x
    result: Tensor = _Gather.apply(x, dim, sizes, spec.coordinate[mesh_dim], spec.groups[mesh_dim])
    return result


def own_rows(x: Tensor, dim: int, spec: ShardSpec, mesh_dim: int, sizes: Sizes) -> Tensor:
    """Replicate -> Shard: returns the own rows; the backward gathers the gradient of all rows."""
    rank = spec.coordinate[mesh_dim]
    if len(sizes) == 1 or not needs_gradient(x):
        return x.narrow(dim, offsets(sizes)[rank], sizes[rank])
    result: Tensor = _OwnRows.apply(x, dim, sizes, rank, spec.groups[mesh_dim])
    return result


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, sizes: Sizes, rank: int, group: Group) -> Tensor:
        ctx.op = wire.current.op
        ctx.plan = (dim, sizes, rank, group)
        return _run_fetch(x, dim, plan_fetch(sizes, _everything(sizes), rank), group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        wire.current.op = ctx.op
        return _OwnRows.apply(grad, *ctx.plan), None, None, None, None


class _OwnRows(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, sizes: Sizes, rank: int, group: Group) -> Tensor:
        ctx.op = wire.current.op
        ctx.plan = (dim, sizes, rank, group)
        return x.narrow(dim, offsets(sizes)[rank], sizes[rank]).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        wire.current.op = ctx.op
        return _Gather.apply(grad, *ctx.plan), None, None, None, None


def reduce_rows(x: Tensor, dim: int, spec: ShardSpec, mesh_dim: int, sizes: Sizes) -> Tensor:
    """Partial -> Shard: adds the local terms and keeps the own rows; the backward gathers."""
    if len(sizes) == 1:
        return x
    rank = spec.coordinate[mesh_dim]
    plan = plan_fetch(sizes, _everything(sizes), rank)
    result: Tensor = _Return.apply(x, dim, plan, spec.groups[mesh_dim])
    return result


def swap_rows(
    x: Tensor, dim: int, sizes: Sizes, new_dim: int, new_sizes: Sizes, spec: ShardSpec, mesh_dim: int
) -> Tensor:
    """Shard(dim) -> Shard(new_dim) in one all_to_all_single; the backward is the inverse."""
    if len(sizes) == 1:
        return x
    rank, group = spec.coordinate[mesh_dim], spec.groups[mesh_dim]
    result: Tensor = _Swap.apply(x, dim, sizes, new_dim, new_sizes, rank, group)
    return result


class _Swap(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dim: int, sizes: Sizes, new_dim: int, new_sizes: Sizes, rank: int, group: Group
    ) -> Tensor:
        ctx.op = wire.current.op
        ctx.plan = (new_dim, new_sizes, dim, sizes, rank, group)
        blocks = [block.reshape(-1) for block in x.split(list(new_sizes), new_dim)]
        shapes = []
        for rows in sizes:
            shape = list(x.shape)
            shape[dim], shape[new_dim] = rows, new_sizes[rank]
            shapes.append(torch.Size(shape))
        counts = [shape.numel() for shape in shapes]
        received = x.new_empty(sum(counts))
        wire.all_to_all(received, torch.cat(blocks), counts, [b.numel() for b in blocks], group)
        parts = [part.view(shape) for part, shape in zip(received.split(counts), shapes, strict=True)]
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wire.current.op = ctx.op
        return (_Swap.apply(grad, *ctx.plan), None, None, None, None, None, None)


def total(x: Tensor, spec: ShardSpec, mesh_dims: Sequence[int]) -> Tensor:
    """Partial -> Replicate: all-reduces local terms; the gradient of each term is that of the total."""
    groups = _groups(spec, mesh_dims)
    if not groups:
        return x
    (result,) = _Total.apply(groups, x)
    return cast("Tensor", result)


def shared(x: Tensor, spec: ShardSpec, mesh_dims: Sequence[int]) -> Tensor:
    """Marks a replicated value that is used on shards: the identity; the backward all-reduces."""
    return shared_all([x], spec, mesh_dims)[0]


def shared_all(tensors: Sequence[Tensor], spec: ShardSpec, mesh_dims: Sequence[int]) -> list[Tensor]:
    """Marks the weights of one operation as `shared`; their gradients travel in one all_reduce."""
    chosen = [i for i, x in enumerate(tensors) if needs_gradient(x)]
    groups = _groups(spec, mesh_dims) if chosen else ()
    out = list(tensors)
    if groups:
        for i, x in zip(chosen, _Shared.apply(groups, *(tensors[i] for i in chosen)), strict=True):
            out[i] = x
    return out


def tied(out: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Connects an empty result to its operands.

    Some functions give an operand no gradient at all if there is nothing to compute. The backward of a
    collective must run on every rank, so the operand gets zeros.
    """
    for part in parts:
        if needs_gradient(part) and out.is_floating_point():
            out = out + (0 * part.sum()).to(out.dtype)
    return out


def needs_gradient(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def all_reduce(x: Tensor, groups: Sequence[Group], op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Returns the reduction over the groups in a new tensor, without autograd."""
    out = x.detach().clone(memory_format=torch.contiguous_format)
    for group in groups:
        wire.all_reduce(out, group, op)
    return out


def _groups(spec: ShardSpec, mesh_dims: Sequence[int]) -> tuple[Group, ...]:
    return tuple(spec.groups[m] for m in mesh_dims if spec.mesh.size(m) > 1)


def _all_reduce_together(tensors: Sequence[Tensor], groups: Sequence[Group]) -> tuple[Tensor, ...]:
    if len(tensors) == 1 or len({x.dtype for x in tensors}) > 1:
        return tuple(all_reduce(x, groups) for x in tensors)
    flat = torch.cat([x.reshape(-1) for x in tensors])
    for group in groups:
        wire.all_reduce(flat, group)
    parts = torch.split(flat, [x.numel() for x in tensors])
    # Separate storage: a gradient that is accumulated in place must not keep or touch the others.
    return tuple(part.view(x.shape).clone() for part, x in zip(parts, tensors, strict=True))


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, groups: tuple[Group, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.op, ctx.groups = wire.current.op, groups
        return _all_reduce_together(tensors, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wire.current.op = ctx.op
        return None, *_Shared.apply(ctx.groups, *grads)


class _Shared(Function):
    @staticmethod
    def forward(ctx: Any, groups: tuple[Group, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.op, ctx.groups = wire.current.op, groups
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wire.current.op = ctx.op
        return None, *_Total.apply(ctx.groups, *grads)


def extremum(
    x: Tensor, dims: tuple[int, ...], spec: ShardSpec, mesh_dims: Sequence[int], largest: bool
) -> Tensor:
    """Returns the maximum (or minimum) over `dims` and the ranks of `mesh_dims`, keeping `dims` as extent 1.

    Equal extrema share the gradient evenly, wherever they lie, as torch.amax does.
    """
    result: Tensor = _Extremum.apply(x, dims, _groups(spec, mesh_dims), largest)
    return result


class _Extremum(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dims: tuple[int, ...], groups: tuple[Group, ...], largest: bool
    ) -> Tensor:
        if any(x.shape[d] == 0 for d in dims):
            shape = [1 if d in dims else n for d, n in enumerate(x.shape)]
            value = x.new_full(shape, _worst(x.dtype, largest))
        else:
            value = x.amax(dims, keepdim=True) if largest else x.amin(dims, keepdim=True)
        if groups:
            value = all_reduce(value, groups, dist.ReduceOp.MAX if largest else dist.ReduceOp.MIN)
        hit = x == value
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(hit, all_reduce(hit.sum(dims, keepdim=True), groups))
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        hit, count = ctx.saved_tensors
        return torch.where(hit, grad / count, 0.0).to(grad.dtype), None, None, None


def _worst(dtype: torch.dtype, largest: bool) -> float | int:
    if dtype == torch.bool:
        return not largest
    if dtype.is_floating_point:
        return float("-inf") if largest else float("inf")
    return torch.iinfo(dtype).min if largest else torch.iinfo(dtype).max
