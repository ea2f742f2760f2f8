"""What says that an operation has no sharded form here, or none without all of the data."""

from __future__ import annotations

import warnings

from shardtensor._plans import constant


class GatherWarning(UserWarning):
    """An operation gathers a sharded dimension on every rank, because its result needs all of it."""


class UnsupportedShardedOp(NotImplementedError):
    """An operation that cannot run on this layout; the message names a `redistribute` that makes it work.

    Attributes:
        op: name of the operation.
        reason: why it cannot run.
        remedy: what to do instead.
        random: the operation draws random numbers, so that running it on every rank would not agree either.
    """

    def __init__(self, op: str, reason: str, remedy: str, *, random: bool = False) -> None:
        # No super().__init__, which Dynamo does not trace: it would hide this error behind its own.
        self.op = op
        self.reason = reason
        self.remedy = remedy
        self.random = random

    def __str__(self) -> str:
        return f"{self.op}: {self.reason}. {self.remedy}"


@constant
def warn_of_gather(text: str, stacklevel: int) -> bool:
    """Warns; in a compiled graph once, while it is made: Dynamo does not trace a warning of this kind."""
    warnings.warn(text, GatherWarning, stacklevel=stacklevel)
    return True
