"""The one error that says: this operation has no sharded form here."""

from __future__ import annotations


class UnsupportedShardedOp(NotImplementedError):
    """An operation that cannot run on this layout; the message names a `redistribute` that makes it work.

    Attributes:
        op: name of the operation.
        random: the operation draws random numbers, so that running it on every rank would not agree either.
    """

    def __init__(self, op: str, reason: str, remedy: str, *, random: bool = False) -> None:
        super().__init__(f"{op}: {reason}. {remedy}")
        self.op = op
        self.random = random
