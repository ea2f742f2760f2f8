"""Rows: initial conditions and members folded into one leading dimension, member fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ._protocols import Network, NetworkSpec
from ._types import Cond, Key


def check_network(needed: NetworkSpec, found: NetworkSpec, estimator: str) -> None:
    """Raise ValueError, naming every difference, unless the network is what the estimator needs."""
    names = ("out_channels", "takes_x", "takes_t", "noise")
    wrong = [
        f"{name} = {getattr(found, name)!r} but {getattr(needed, name)!r} is needed"
        for name in names
        if getattr(found, name) != getattr(needed, name)
    ]
    if wrong:
        raise ValueError(f"this network does not fit {estimator}: " + "; ".join(wrong))


def check_batch(key: Key, batch: int, what: str) -> None:
    """Raise ValueError unless the key has one initial time per entry of the batch."""
    if key.batch != batch:
        raise ValueError(f"key.init has {key.batch} entries but {what} has batch size {batch}")


def to_rows(x: Tensor, members: int) -> Tensor:
    """(B, ...) -> (B*M, ...); no copy for one member."""
    return x if members == 1 else x.repeat_interleave(members, 0)


def cond_rows(cond: Cond, members: int) -> dict[str, Tensor]:
    """`to_rows` of every conditioning tensor."""
    return {name: to_rows(value, members) for name, value in cond.items()}


def column(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (N,) or (N, C) or (C,)-broadcast (1, C) values to multiply (N, C, *S), in its dtype."""
    values = values.reshape(values.shape[0], -1)
    return values.reshape(*values.shape, *[1] * (like.ndim - 2)).to(device=like.device, dtype=like.dtype)


def chunks(rows: int, chunk: int | None) -> Iterator[slice]:
    """Cut `rows` rows into parts of at most `chunk`; None is one part."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be a positive number of rows, got {chunk}")
    step = rows if chunk is None else chunk
    return (slice(first, min(first + step, rows)) for first in range(0, rows, max(step, 1)))


def sample_rows(
    run: Callable[[Tensor, Cond, Key], Tensor], base: Tensor, cond: Cond, key: Key, chunk: int | None
) -> Tensor:
    """Run a sampler on rows, a chunk at a time: base (B, C, *S) -> (B, M, C, *S).

    Conditions are expanded per chunk, so memory grows with the chunk and not with B M.
    """
    check_batch(key, base.shape[0], "base")
    members = key.members
    parts = []
    for part in chunks(key.batch * members, chunk):
        picked = {name: _pick(value, part, members) for name, value in cond.items()}
        parts.append(run(_pick(base, part, members), picked, key.rows(part)))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.reshape(key.batch, members, *out.shape[1:])


def _pick(x: Tensor, part: slice, members: int) -> Tensor:
    """Rows `part` of `to_rows(x, members)`; a view for one member."""
    if members == 1:
        return x[part]
    return x.index_select(0, torch.arange(part.start, part.stop, device=x.device) // members)


def call(
    net: Network, x: Tensor | None, cond: Cond, t: Tensor | None, noise: Tensor | None, like: Tensor
) -> Tensor:
    """Network output in the dtype of `like`: solver arithmetic stays in that precision under autocast."""
    return net.predict(x, cond, t=t, noise=noise).to(like.dtype)
