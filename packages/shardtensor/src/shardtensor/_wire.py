"""The collectives that everything is built on: counted on request, with errors that name the operation."""

from __future__ import annotations

import atexit
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from shardtensor._graph import (  # this import registers the operators of compiled graphs
    gather_equal,
    keep_order,
)
from shardtensor._plans import constant

Kind: TypeAlias = Literal["all_to_all", "all_reduce", "all_gather"]


@functools.cache
def _end_in_order() -> None:
    """Gives gloo's threads the interpreter once more before it ends.

    Such a thread drops the tensors of a collective after the collective is done, and takes the
    interpreter's lock for that. Where the interpreter is ending already, Python unwinds the thread through
    C++, which ends the process by SIGABRT. `destroy_process_group` does not join the threads while a mesh
    refers to the group.
    """
    atexit.register(time.sleep, 0.05)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The ranks along one mesh dimension.

    Attributes:
        group: torch's process group.
        name: its name, by which compiled graphs find it.
    """

    group: dist.ProcessGroup
    name: str

    def __post_init__(self) -> None:
        _end_in_order()

    def size(self) -> int:
        """Number of ranks."""
        return self.group.size()

    def rank(self) -> int:
        """The number of this rank in the group."""
        return self.group.rank()


class CommunicationError(RuntimeError):
    """A collective failed: another rank died, was too late, or called something else.

    Attributes:
        op: name of the torch function that communicated.
    """

    def __init__(self, op: str, message: str) -> None:
        super().__init__(message)
        self.op = op


@dataclass(frozen=True, slots=True)
class Transfer:
    """One collective as this rank saw it.

    Attributes:
        op: name of the torch function that communicated ("" for a call of this package itself).
        kind: the collective.
        sent: bytes that leave this rank; for an all_reduce of n bytes on P ranks 2 n (P - 1) / P, the least
            that any algorithm sends.
        received: bytes that arrive.
        backward: whether it ran in a backward pass.
    """

    op: str
    kind: Kind
    sent: int
    received: int
    backward: bool


@dataclass(slots=True, eq=False)
class Traffic:
    """The collectives of this rank within a `traffic()` block, in order."""

    transfers: list[Transfer] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """Bytes that left this rank."""
        return sum(transfer.sent for transfer in self.transfers)

    @property
    def received(self) -> int:
        """Bytes that arrived at this rank."""
        return sum(transfer.received for transfer in self.transfers)

    def __len__(self) -> int:
        return len(self.transfers)

    def __repr__(self) -> str:
        rows = []
        for t in self.transfers:
            when = "backward" if t.backward else "forward"
            rows.append(f"{t.op or '-':32}{t.kind:12}{when:10}{t.sent:>14}{t.received:>14}")
        head = f"{'operation':32}{'collective':12}{'pass':10}{'bytes sent':>14}{'received':>14}"
        return "\n".join([head, *rows, f"{'total':54}{self.sent:>14}{self.received:>14}"])


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Records what this rank communicates, to see what an operation or a model costs.

    Examples:
        with traffic() as seen:
            net(fields).sum().backward()
        print(seen)
    """
    record = Traffic()
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


_records: list[Traffic] = []


class _Current:
    """The operation that runs now, for records and errors; backwards restore that of their forward.

    Attributes:
        op: the function.
        count: of operations so far, the same on every rank; backwards do not count.
    """

    __slots__ = ("count", "op")

    def __init__(self) -> None:
        self.op: str | Callable[..., Any] = ""
        self.count = 0

    @property
    def name(self) -> str:
        op = self.op
        return op if isinstance(op, str) else getattr(op, "__name__", str(op))


current = _Current()


def remember(ctx: Any) -> None:
    """Notes in an autograd context which operation it belongs to; `recall` takes it up in the backward."""
    if not torch.compiler.is_compiling():
        ctx.op = current.op


def recall(ctx: Any) -> None:
    """Makes the operation that `remember` noted the present one."""
    if not torch.compiler.is_compiling():
        current.op = ctx.op


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


@dataclass(slots=True)
class Pending:
    """A collective in flight. `wait` before its output is read, and before its input is written."""

    work: Any
    fail: Callable[[Exception], CommunicationError]

    def wait(self) -> None:
        """Waits for the collective; raises CommunicationError where it failed."""
        try:
            if self.work is not None:
                self.work.wait()
        except RuntimeError as error:
            raise self.fail(error) from error


@constant
def reduce_name(op: Any) -> str:
    """Returns the name of one of torch's reductions, as `all_reduce` of compiled graphs takes it."""
    return str(op).rpartition(".")[2]


def exchange(x: Tensor, receive: Sequence[int], send: Sequence[int], group: Group) -> Tensor:
    """Sends send[r] rows of x (sum(send), ...) to every rank r; returns the rows that arrive, by rank."""
    if torch.compiler.is_compiling():
        keep_order()
        arrived: Tensor = torch.ops.shardtensor.all_to_all(x, list(receive), list(send), group.name)
        return arrived
    out = x.new_empty((sum(receive), *x.shape[1:]))
    all_to_all(out, x, receive, send, group)
    return out


def all_to_all(
    out: Tensor,
    x: Tensor,
    receive: Sequence[int],
    send: Sequence[int],
    group: Group,
    *,
    wait: bool = True,
) -> Pending | None:
    """Sends send[r] rows of x to every rank r and puts receive[r] rows of it into `out`.

    Args:
        out: (sum(receive), ...), contiguous.
        x: (sum(send), ...), contiguous.
        receive: rows from every rank.
        send: rows for every rank.
        group: who takes part.
        wait: False returns at once, with the collective in flight.
    """
    if _records:
        here = group.rank()
        each = x.element_size() * (x[:1].numel() if x.dim() > 1 else 1)
        each = out.element_size() * out[:1].numel() if not x.numel() and out.numel() else each
        _record("all_to_all", (sum(send) - send[here]) * each, (sum(receive) - receive[here]) * each)
    splits = list(receive), list(send)
    return _run(
        "all_to_all",
        group,
        wait,
        lambda: dist.all_to_all_single(out, x, *splits, group=group.group, async_op=not wait),
    )


def all_reduce(
    x: Tensor, group: Group, reduce: Any = dist.ReduceOp.SUM, *, wait: bool = True
) -> Pending | None:
    """Reduces x over the group, in place."""
    if _records:
        ranks = group.size()
        moved = 2 * x.numel() * x.element_size() * (ranks - 1) // ranks
        _record("all_reduce", moved, moved)
    return _run(
        "all_reduce", group, wait, lambda: dist.all_reduce(x, reduce, group=group.group, async_op=not wait)
    )


def all_gather(out: Tensor, x: Tensor, group: Group) -> None:
    """Puts x of every rank, equal in shape, one after the other into `out`, contiguous."""
    if torch.compiler.is_compiling():
        keep_order()
        out.copy_(torch.ops.shardtensor.all_gather(x, group.size(), group.name).view(out.shape))
        return
    if _records:
        moved = x.numel() * x.element_size() * (group.size() - 1)
        _record("all_gather", moved, moved)
    _run("all_gather", group, True, lambda: gather_equal(out.view(-1), x.reshape(-1), group=group.group))


def _record(kind: Kind, sent: int, received: int) -> None:
    for record in _records:
        record.transfers.append(Transfer(current.name, kind, sent, received, _in_backward()))


def _run(kind: Kind, group: Group, wait: bool, call: Callable[[], Any]) -> Pending | None:
    def fail(error: Exception) -> CommunicationError:
        ranks, op, backward = dist.get_process_group_ranks(group.group), current.name, _in_backward()
        when = " (backward)" if backward else ""
        return CommunicationError(
            op,
            f"{op or 'shardtensor'}{when}: {kind} of ranks {ranks} failed on rank {dist.get_rank()}: {error}"
            " Another rank stopped, was too late, or ran other operations: look for its first error, or run "
            "with TORCH_DISTRIBUTED_DEBUG=DETAIL, which compares every collective between ranks.",
        )

    try:
        work = call()
    except RuntimeError as error:
        raise fail(error) from error
    return None if wait else Pending(work, fail)
