"""What says that an operation has no sharded form here, or none without all of the data."""

from __future__ import annotations


class GatherWarning(UserWarning):
    """An operation gathers a sharded dimension on every rank, because its result needs all of it."""


class UnsupportedShardedOp(NotImplementedError):
    """An operation that cannot run on this layout; the message names a `redistribute` that makes it work.

    Attributes:
        op: name of the operation.
        random: the operation draws random numbers, so that running it on every rank would not agree either.
    """

    def __init__(self, op: str, reason: str, remedy: str, *, random: bool = False) -> None:
        self.op = op  # no super().__init__, which Dynamo does not trace: __new__ has kept the arguments
        self.random = random

    def __str__(self) -> str:
        op, reason, remedy = self.args
        return f"{op}: {reason}. {remedy}"
