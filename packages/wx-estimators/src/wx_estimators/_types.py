"""The values that cross the package border: keys, windows, batches, losses, network specifications."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Cond = Mapping[str, Tensor]
"""Conditioning tensors by name; every value has the batch (or row) dimension first."""

Engine = Literal["generator", "philox"]
"""Where normals come from, see `WhiteNoise`."""

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False)
class Key:
    """Names one set of random draws; holds no random state.

    Noise is a pure function of a key, so a member is the same field alone, in a batch, in any chunk and on
    any rank.

    Args:
        seed: experiment seed, any Python integer that fits 64 signed bits.
        init: (B,) int64, the initial time of each forecast, e.g. hours since 1970-01-01.
        member: (M,) int64 member numbers shared by the batch, or (B, M) when rows differ.
        lead: autoregressive step.
        stream: purpose of the draw; extended by `sub`.
        step: counter inside the stream, e.g. the solver step.

    Raises:
        ValueError: shapes do not fit, or a number takes more than 64 bits. TypeError: a tensor is not of an
            integer type.
    """

    seed: int
    init: Tensor
    member: Tensor
    lead: int = 0
    stream: str = ""
    step: int = 0

    def __post_init__(self) -> None:
        for name, value in (("init", self.init), ("member", self.member)):
            if not isinstance(value, Tensor) or value.dtype not in _INTEGERS:
                raise TypeError(
                    f"Key.{name} must be an integer tensor, got {getattr(value, 'dtype', value)!r}"
                )
        if self.init.ndim != 1:
            raise ValueError(f"Key.init must have shape (B,), got {tuple(self.init.shape)}")
        shape = tuple(self.member.shape)
        if self.member.ndim not in (1, 2) or (self.member.ndim == 2 and shape[0] != self.batch):
            raise ValueError(f"Key.member must have shape (M,) or ({self.batch}, M), got {shape}")
        for field, number in (("seed", self.seed), ("lead", self.lead), ("step", self.step)):
            if not -(2**63) <= number < 2**63:
                raise ValueError(f"Key.{field} must fit 64 signed bits, got {number}")

    @classmethod
    def from_times(cls, seed: int, init_time: np.ndarray, member: Sequence[int]) -> Key:
        """Key for datetime64 initial times (B,), whole hours, and member numbers (M,).

        Raises:
            ValueError: a time is NaT or not a whole hour; such keys need their own integers in `init`.
        """
        times = np.asarray(init_time).reshape(-1)
        whole = times.astype("datetime64[h]")
        if np.isnat(times).any() or (whole != times).any():
            raise ValueError(
                f"init_time must hold whole hours, got {times[np.isnat(times) | (whole != times)]}"
            )
        hours = whole.astype(np.int64)
        return cls(seed, torch.from_numpy(hours), torch.as_tensor(list(member), dtype=torch.int64))

    @property
    def batch(self) -> int:
        """Number of initial conditions B."""
        return int(self.init.shape[0])

    @property
    def members(self) -> int:
        """Number of members M."""
        return int(self.member.shape[-1])

    def at_lead(self, lead: int) -> Key:
        """The same forecast at autoregressive step `lead`."""
        return replace(self, lead=int(lead))

    def sub(self, stream: str, step: int = 0) -> Key:
        """An independent key for a named purpose; nesting keeps every outer name and step."""
        if not stream or set(stream) & set(":/"):
            raise ValueError(f"stream must be a non-empty name without ':' and '/', got {stream!r}")
        return replace(self, stream=f"{self.stream}:{self.step}/{stream}", step=int(step))

    def rows(self, selection: slice | None = None) -> Key:
        """Fold (B, M) to rows, init (N,) and member (N, 1) with the member fastest, then select rows."""
        init = self.init.repeat_interleave(self.members)
        member = self._member_grid().reshape(-1, 1)
        if selection is not None:
            init, member = init[selection], member[selection]
        return replace(self, init=init, member=member)

    def seeds(self) -> np.ndarray:
        """(B, M) uint64: blake2b of (seed, init, member, lead, stream, step), stable across processes."""
        head = hashlib.blake2b(digest_size=8)
        head.update(struct.pack("<qqq", self.seed, self.lead, self.step) + self.stream.encode())
        init = self.init.tolist()
        out = np.empty((self.batch, self.members), np.uint64)
        for b, row in enumerate(self._member_grid().tolist()):
            for m, member in enumerate(row):
                state = head.copy()
                state.update(struct.pack("<qq", init[b], member))
                out[b, m] = int.from_bytes(state.digest(), "little")
        return out

    def uniform(self) -> Tensor:
        """(B, M) float64 numbers, uniform in the open interval (0, 1), straight from the hash."""
        bits = (self.seeds() >> np.uint64(11)).astype(np.float64)
        return torch.from_numpy((bits + 0.5) * 2.0**-53)

    def _member_grid(self) -> Tensor:
        return self.member.expand(self.batch, self.members)


@dataclass(frozen=True, kw_only=True)
class Window:
    """The part of a global tensor that this rank holds: its global shape and the start of the part."""

    global_shape: tuple[int, ...]
    start: tuple[int, ...]

    def slices(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Index of a local tensor of `shape` in the global tensor; ValueError when it does not fit."""
        if not len(shape) == len(self.start) == len(self.global_shape):
            raise ValueError(f"window {self} has another number of dimensions than the local shape {shape}")
        fits = all(
            first >= 0 and first + n <= size
            for first, n, size in zip(self.start, shape, self.global_shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"local shape {shape} at {self.start} leaves the global shape {self.global_shape}"
            )
        return tuple(slice(first, first + n) for first, n in zip(self.start, shape, strict=True))


@dataclass(frozen=True, kw_only=True)
class NetSpec:
    """What a network accepts, or an estimator needs.

    Args:
        out_channels: C of the output (N, C, *S).
        takes_x: the network is given a noisy or interpolated field.
        takes_t: the network is given one time or noise label per row.
        noise: None, or the shape (without the row dimension) of the noise input: (Z,) or (Z, *S).
        supports_jvp: `torch.func.jvp` through `predict` is right, which `Consistency` asks for and no other
            estimator does. Compare it with a finite difference once: custom autograd functions without `jvp`
            raise an error, but operators made by torch's `custom_op` have a derivative of zero.
    """

    out_channels: int
    takes_x: bool
    takes_t: bool
    noise: tuple[int, ...] | None = None
    supports_jvp: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One training batch.

    Args:
        base: (B, C, *S), the state that sampling starts from.
        target: (B, C, *S), the normalised target. NaN marks a missing value: it never enters a loss.
        cond: conditioning tensors (B, ...).
        weight: broadcastable to (B, C, *S), non-negative; 0 leaves a point out. Latitude weights go here.
    """

    base: Tensor
    target: Tensor
    cond: Cond
    weight: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class LossOut:
    """A training loss: sum(w l) / sum(w) over all local rows, channels and points.

    Args:
        loss: scalar with gradient.
        per_channel: (C,), the same average per channel, detached.
        count: scalar sum of weights, for exact averaging across ranks.
        row_sums: (N, C), sum(w l) over the points of each row and channel, with gradient.
        row_counts: (N, C), sum(w) of the same points, 0 where all are masked.
        label: (N,), the time or noise label that the network was told; None where it takes none.
        members: (B, M, C, *S) when the loss built an ensemble.
    """

    loss: Tensor
    per_channel: Tensor
    count: Tensor
    row_sums: Tensor
    row_counts: Tensor
    label: Tensor | None = None
    members: Tensor | None = None
