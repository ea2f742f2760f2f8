"""Differentiable communication over a mesh dimension, built on all_to_all_single and all_reduce.

Gradients follow one convention: the gradient of a shard is that shard of the gradient; the gradient of a
replicated value is the whole gradient, the same on every rank; the gradient of a partial sum is that of its
total. Every backward is the forward of another function here, so that all of them differentiate twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from shardtensor import _wire as wire
from shardtensor._graph import keep_order
from shardtensor._plans import planned
from shardtensor._spec import ShardSpec, Sizes, offsets
from shardtensor._wire import Group

Interval: TypeAlias = tuple[int, int]  # global rows [start, stop)
Wants: TypeAlias = tuple[
    tuple[Interval, ...], ...
]  # for every rank the intervals that it asks for, in output order
LinearMap: TypeAlias = Callable[..., Tensor]


class FetchPlan(NamedTuple):
    """One rank's share of a fetch along one mesh dimension; all counts are rows.

    Args:
        rows: own rows before the fetch.
        send: for every destination the pieces (start, length) of the own shard that it receives.
        send_rows: rows for every destination.
        receive: rows that come from every source.
        build: the output in order, as (received?, start, length); rows of zeros where the first is None.
        quiet: no rank sends anything.
    """

    rows: int
    send: tuple[tuple[tuple[int, int], ...], ...]
    send_rows: Sizes
    receive: Sizes
    build: tuple[tuple[bool | None, int, int], ...]
    quiet: bool


@planned
def plan_fetch(sizes: Sizes, wants: Wants, rank: int, rim: tuple[int, int] = (0, 0)) -> FetchPlan:
    """Returns the plan by which `rank` gets the global rows wants[rank], and serves the other ranks theirs.

    Zeros are added before and after what it gets, as many rows as `rim` says.

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
    build: list[tuple[bool | None, int, int]] = []
    for source, start, length in pieces[rank]:
        build.append((source != rank, start if source == rank else cursor[source], length))
        cursor[source] += length
    build = [(None, 0, n) for n in rim[:1] if n] + build + [(None, 0, n) for n in rim[1:] if n]
    quiet = all(source == asker for asker, asked in enumerate(pieces) for source, _, _ in asked)
    send_rows = tuple(sum(length for _, length in asked) for asked in send)
    return FetchPlan(sizes[rank], send, send_rows, tuple(receive), tuple(build), quiet)


def _pieces(sizes: Sizes, want: tuple[Interval, ...]) -> list[tuple[int, int, int]]:
    found = []
    for start, stop in want:
        for source, offset in enumerate(offsets(sizes)):
            low, high = max(start, offset), min(stop, offset + sizes[source])
            if low < high:
                found.append((source, low - offset, high - low))
    return found


def fetch_rows(
    x: Tensor,
    dim: int,
    spec: ShardSpec,
    mesh_dim: int,
    wants: Wants,
    sizes: Sizes | None = None,
    rim: tuple[int, int] = (0, 0),
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
        rim: rows of zeros to add before and after those of this rank.
    """
    rows = sizes or spec.sizes[mesh_dim]
    if rows is None:
        raise ValueError(f"mesh dimension {mesh_dim} splits no tensor dimension: {spec.describe()}")
    plan = plan_fetch(rows, wants, spec.coordinate[mesh_dim], rim)
    if plan.quiet:
        return _assemble(x, None, dim, plan)
    return linear(x, _run_fetch, _run_return, (dim, plan, spec.groups[mesh_dim]))


def linear(x: Tensor, run: LinearMap, back: LinearMap, plan: tuple[Any, ...]) -> Tensor:
    """Returns run(x, *plan), a linear map between ranks whose transpose is back(gradient, *plan)."""
    result: Tensor = _Linear.apply(x, run, back, plan)
    return result


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, run: LinearMap, back: LinearMap, plan: tuple[Any, ...]) -> Tensor:
        wire.remember(ctx)
        ctx.maps = (run, back, plan)
        out = run(x, *plan)
        # A compiled graph makes a result that is a view of its input anew, without this function's backward.
        return out.clone() if torch.compiler.is_compiling() else out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        wire.recall(ctx)
        run, back, plan = ctx.maps
        # Compiled graphs differentiate once.
        out = back(grad, *plan) if torch.compiler.is_compiling() else linear(grad, back, run, plan)
        return out, None, None, None


def _exchange(
    pieces: list[Tensor], like: Tensor, dim: int, send: Sizes, receive: Sizes, group: Group
) -> Tensor:
    """Sends the concatenated pieces; returns what arrives, with `dim` moved to the front."""
    rest = [n for d, n in enumerate(like.shape) if d != dim]
    out = torch.cat([piece.movedim(dim, 0) for piece in pieces]) if pieces else like.new_empty((0, *rest))
    return wire.exchange(out.contiguous(), receive, send, group)


def _assemble(x: Tensor, received: Tensor | None, dim: int, plan: FetchPlan) -> Tensor:
    parts = []
    for remote, start, length in plan.build:
        if remote is None:
            parts.append(x.new_zeros([length if d == dim else n for d, n in enumerate(x.shape)]))
        elif remote and received is not None:
            parts.append(received.narrow(0, start, length).movedim(0, dim))
        elif (start, length) == (0, plan.rows) and received is None and len(plan.build) == 1:
            return x
        else:
            parts.append(x.narrow(dim, start, length))
    if all(remote is None for remote, *_ in plan.build):  # keeps x in the graph
        parts.append(x.narrow(dim, 0, 0))
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0].clone()


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
    whole = [part for (remote, *_), part in zip(plan.build, parts, strict=True) if remote is False]
    if len(whole) == 1 and whole[0].shape[dim] == plan.rows:  # a halo: the own rows, once
        home = whole[0].clone()
    else:
        shape = list(grad.shape)
        shape[dim] = plan.rows
        home = grad.new_zeros(shape)
        for (remote, start, length), part in zip(plan.build, parts, strict=True):
            if remote is False:
                home.narrow(dim, start, length).add_(part)
    cursor = 0
    for start, length in [piece for asked in plan.send for piece in asked]:
        home.narrow(dim, start, length).add_(received.narrow(0, cursor, length).movedim(0, dim))
        cursor += length
    return home


@planned
def plan_gather(sizes: Sizes, rank: int) -> FetchPlan:
    """Returns the plan by which every rank gets all rows."""
    return plan_fetch(sizes, (((0, sum(sizes)),),) * len(sizes), rank)


def gather(x: Tensor, dim: int, spec: ShardSpec, mesh_dim: int, sizes: Sizes) -> Tensor:
    """Shard -> Replicate: returns all rows on every rank; the backward keeps the own rows of the gradient."""
    if len(sizes) == 1:
        return x
    return linear(x, _run_gather, _run_own, (dim, sizes, spec.coordinate[mesh_dim], spec.groups[mesh_dim]))


def own_rows(x: Tensor, dim: int, spec: ShardSpec, mesh_dim: int, sizes: Sizes) -> Tensor:
    """Replicate -> Shard: returns the own rows; the backward gathers the gradient of all rows."""
    rank = spec.coordinate[mesh_dim]
    if len(sizes) == 1 or not needs_gradient(x):
        return x.narrow(dim, sum(sizes[:rank]), sizes[rank])
    return linear(x, _run_own, _run_gather, (dim, sizes, rank, spec.groups[mesh_dim]))


def _run_gather(x: Tensor, dim: int, sizes: Sizes, rank: int, group: Group) -> Tensor:
    return _run_fetch(x, dim, plan_gather(sizes, rank), group)


def _run_own(x: Tensor, dim: int, sizes: Sizes, rank: int, group: Group) -> Tensor:
    del group
    return x.narrow(dim, sum(sizes[:rank]), sizes[rank]).clone()


def reduce_rows(x: Tensor, dim: int, spec: ShardSpec, mesh_dim: int, sizes: Sizes) -> Tensor:
    """Partial -> Shard: adds the local terms and keeps the own rows; the backward gathers."""
    if len(sizes) == 1:
        return x
    rank = spec.coordinate[mesh_dim]
    return linear(x, _run_return, _run_fetch, (dim, plan_gather(sizes, rank), spec.groups[mesh_dim]))


def swap_rows(
    x: Tensor, dim: int, sizes: Sizes, new_dim: int, new_sizes: Sizes, spec: ShardSpec, mesh_dim: int
) -> Tensor:
    """Shard(dim) -> Shard(new_dim) in one all_to_all_single; the backward is the inverse."""
    if len(sizes) == 1:
        return x
    rank, group = spec.coordinate[mesh_dim], spec.groups[mesh_dim]
    return linear(x, _run_swap, _run_unswap, (dim, sizes, new_dim, new_sizes, rank, group))


def _run_swap(
    x: Tensor, dim: int, sizes: Sizes, new_dim: int, new_sizes: Sizes, rank: int, group: Group
) -> Tensor:
    blocks = x.split(list(new_sizes), new_dim)
    leaving = [block.numel() for block in blocks]
    out = x.new_empty(x.numel())
    for part, block in zip(out.split(leaving), blocks, strict=True):
        part.view(block.shape).copy_(block)
    shapes = []
    for rows in sizes:
        shape = list(x.shape)
        shape[dim], shape[new_dim] = rows, new_sizes[rank]
        shapes.append(shape)
    counts = [math.prod(shape) for shape in shapes]
    received = wire.exchange(out, counts, leaving, group)
    parts = [part.view(shape) for part, shape in zip(received.split(counts), shapes, strict=True)]
    return torch.cat(parts, dim)


def _run_unswap(
    x: Tensor, dim: int, sizes: Sizes, new_dim: int, new_sizes: Sizes, rank: int, group: Group
) -> Tensor:
    return _run_swap(x, new_dim, new_sizes, dim, sizes, rank, group)


def total(x: Tensor, spec: ShardSpec, mesh_dims: Sequence[int]) -> Tensor:
    """Partial -> Replicate: all-reduces local terms; the gradient of each term is that of the total."""
    groups = _groups(spec, mesh_dims)
    if not groups:
        return x
    return linear(x, _run_total, _run_nothing, (groups,))


def _run_total(x: Tensor, groups: Sequence[Group]) -> Tensor:
    return all_reduce(x, groups)


def _run_nothing(x: Tensor, groups: Sequence[Group]) -> Tensor:
    del groups
    return x.view_as(x)


def shared(x: Tensor, spec: ShardSpec, mesh_dims: Sequence[int]) -> Tensor:
    """Marks a replicated value that is used on shards: the identity; the backward all-reduces."""
    return shared_all([x], spec, mesh_dims)[0]


def shared_all(tensors: Sequence[Tensor], spec: ShardSpec, mesh_dims: Sequence[int]) -> list[Tensor]:
    """Marks the weights of one operation as `shared`; their gradients travel in one all_reduce."""
    chosen = [i for i, x in enumerate(tensors) if needs_gradient(x)]
    groups = _groups(spec, mesh_dims) if chosen else ()
    out = list(tensors)
    if not groups:
        return out
    if torch.compiler.is_compiling():
        for i in chosen:
            out[i] = linear(tensors[i], _run_nothing, _run_total, (groups,))
        return out
    for i, x in zip(chosen, _Shared.apply(groups, *[tensors[i] for i in chosen]), strict=True):
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
    """Whether autograd records what is done with x."""
    return x.requires_grad and torch.is_grad_enabled()


def all_reduce(x: Tensor, groups: Sequence[Group], op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Returns the reduction over the groups in a new tensor, without autograd."""
    if torch.compiler.is_compiling():
        keep_order()
        for group in groups:
            x = torch.ops.shardtensor.all_reduce(x, wire.reduce_name(op), group.name)
        return x
    out = x.detach().clone(memory_format=torch.contiguous_format)
    for group in groups:
        wire.all_reduce(out, group, op)
    return out


def _groups(spec: ShardSpec, mesh_dims: Sequence[int]) -> tuple[Group, ...]:
    return tuple([spec.groups[m] for m in mesh_dims if spec.ranks[m] > 1])


def reduce_together(tensors: Sequence[Tensor], groups: Sequence[Group]) -> tuple[Tensor, ...]:
    """All-reduces tensors in one collective where they have one dtype; halves are summed in float32."""
    if len({x.dtype for x in tensors}) > 1:
        return tuple(part for x in tensors for part in reduce_together([x], groups))
    dtype = tensors[0].dtype
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    if len(tensors) == 1:
        return (all_reduce(tensors[0].to(wide), groups).to(dtype),)
    flat = torch.cat([x.reshape(-1).to(wide) for x in tensors])
    for group in groups:
        wire.all_reduce(flat, group)
    parts = torch.split(flat.to(dtype), [x.numel() for x in tensors])
    # Separate storage: a gradient that is accumulated in place must not keep or touch the others.
    return tuple(part.view(x.shape).clone() for part, x in zip(parts, tensors, strict=True))


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, groups: tuple[Group, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        wire.remember(ctx)
        ctx.groups = groups
        return reduce_together(tensors, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wire.recall(ctx)
        return None, *_Shared.apply(ctx.groups, *grads)


class _Shared(Function):
    @staticmethod
    def forward(ctx: Any, groups: tuple[Group, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        wire.remember(ctx)
        ctx.groups, ctx.leaves = groups, [x if x.is_leaf else None for x in tensors]
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wire.recall(ctx)
        if deferred.active is None or torch.is_grad_enabled():
            return None, *_Total.apply(ctx.groups, *grads)
        now = [i for i, leaf in enumerate(ctx.leaves) if leaf is None]
        out: list[Tensor | None] = [None] * len(grads)
        for i, grad in zip(
            now, reduce_together([grads[i] for i in now], ctx.groups) if now else (), strict=True
        ):
            out[i] = grad
        for leaf, grad in zip(ctx.leaves, grads, strict=True):
            if leaf is not None:
                deferred.add(leaf, ctx.groups, grad)
        return None, *out


Waiting: TypeAlias = dict[int, tuple[Tensor, tuple[Group, ...], Tensor]]


class _Deferred:
    """Gradients of weights that are summed over the ranks later, all together; off while `active` is None."""

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active: Waiting | None = None

    def add(self, weight: Tensor, groups: tuple[Group, ...], grad: Tensor) -> None:
        if self.active is None:
            raise RuntimeError("no gradients are waited for")
        known = self.active.get(id(weight))
        if known is not None and known[1] != groups:
            raise RuntimeError(
                "bucketed_gradients: a weight is used on tensors sharded over different mesh dimensions; "
                "leave its gradient to the operations"
            )
        self.active[id(weight)] = (weight, groups, grad if known is None else known[2] + grad)


deferred = _Deferred()
