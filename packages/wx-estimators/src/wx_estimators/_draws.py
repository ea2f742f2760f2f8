"""Standard normals for a key, by one of two engines."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from ._philox import Words, normal_words, philox4x32
from ._types import Engine, Key, Window

# Counters per block: enough work per operation to hide its dispatch, few enough for the cache.
_CPU_BLOCK = 2**17
_DEVICE_BLOCK = 2**22


def check_engine(engine: str) -> None:
    """Raise ValueError unless the engine is one of the two."""
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be one of {get_args(Engine)}, got {engine!r}")


def normals(
    engine: Engine, key: Key, shape: tuple[int, ...], device: torch.device | str, window: Window | None = None
) -> Tensor:
    """(B*M, *shape) standard normals in float32; with a window, that part of the draw of its global shape."""
    if engine == "generator":
        return _generator_normals(key, shape, window).to(device)
    full, start = (shape, (0,) * len(shape)) if window is None else (window.global_shape, window.start)
    if window is not None:
        window.slices(shape)
    return _philox_normals(key, shape, tuple(full), tuple(start), torch.device(device))


def _generator_normals(key: Key, shape: tuple[int, ...], window: Window | None) -> Tensor:
    """One CPU generator per row, seeded by the key's hash; a window is cut out of the whole draw."""
    seeds = key.seeds().reshape(-1).tolist()
    full = shape if window is None else tuple(window.global_shape)
    part = tuple(slice(n) for n in shape) if window is None else window.slices(shape)
    out, whole, generator = torch.empty(len(seeds), *shape), torch.empty(full), torch.Generator()
    for row, seed in zip(out, seeds, strict=True):
        row.copy_(whole.normal_(generator=generator.manual_seed(seed))[part])
    return out


def _philox_normals(
    key: Key, shape: tuple[int, ...], full: tuple[int, ...], start: tuple[int, ...], device: torch.device
) -> Tensor:
    """Values by global index: entry i of the first axis with 4 entries or more (else axis 0) is lane i mod 4.

    The counter is (index of (i div 4, other axes) in row-major order as two words, 64-bit hash of the key),
    the Philox key is the experiment seed. The hash takes 64 bits: 10^8 keys share none with probability
    0.9997.
    """
    axis = next((i for i, n in enumerate(full) if n >= 4), 0)
    lead, rest = (shape[axis], _without(shape, axis)) if shape else (1, ())
    first = start[axis] if shape else 0
    group, groups = first // 4, -(-(first + lead) // 4) - first // 4
    offsets = _indices(rest, _without(full, axis), _without(start, axis), device)
    stride = math.prod(_without(full, axis))
    hashes = key.seeds().reshape(-1)
    out = torch.empty(len(hashes) * groups, 4, len(offsets), device=device)
    bases = (torch.arange(group, group + groups, device=device) * stride).repeat(len(hashes))
    _fill(
        out,
        bases,
        offsets,
        _halves(hashes, groups, device),
        (key.seed & 0xFFFFFFFF, key.seed >> 32 & 0xFFFFFFFF),
    )
    lanes = out.view(len(hashes), 4 * groups, *rest)[:, first - 4 * group :][:, :lead]
    return lanes.movedim(1, 1 + axis).reshape(len(hashes), *shape)


def _fill(
    out: Tensor, bases: Tensor, offsets: Tensor, hashes: tuple[Tensor, Tensor], seed: tuple[int, int]
) -> None:
    """out[u, lane, r] = lane of the counter (bases[u] + offsets[r], hashes[u]), a block at a time."""
    block = _CPU_BLOCK if out.device.type == "cpu" else _DEVICE_BLOCK
    units, places = out.shape[0], out.shape[2]
    tall = max(1, block // max(places, 1))
    for u in range(0, units, tall):
        low, high = (h[u : u + tall, None] for h in hashes)
        for r in range(0, places, block):
            index = bases[u : u + tall, None] + offsets[None, r : r + block]
            counter: Words = (index & 0xFFFFFFFF, index >> 32, low, high)
            for lane, value in enumerate(normal_words(philox4x32(counter, seed))):
                out[u : u + tall, lane, r : r + block] = value


def _without(values: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return values[:axis] + values[axis + 1 :]


def _indices(
    shape: tuple[int, ...], full: tuple[int, ...], start: tuple[int, ...], device: torch.device
) -> Tensor:
    """(prod(shape),) row-major global indices of a local box."""
    index = torch.zeros(1, dtype=torch.int64, device=device)
    for n, size, first in zip(shape, full, start, strict=True):
        index = (index[:, None] * size + torch.arange(first, first + n, device=device)).reshape(-1)
    return index


def _halves(hashes: np.ndarray, repeat: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Low and high 32 bits of uint64 hashes, each repeated, as int64."""
    low, high = (hashes & np.uint64(0xFFFFFFFF)).astype(np.int64), (hashes >> np.uint64(32)).astype(np.int64)
    return tuple(torch.from_numpy(h).repeat_interleave(repeat).to(device) for h in (low, high))  # type: ignore[return-value]
