"""Attention on a latitude-longitude grid: periodic in longitude, clamped at the poles."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

_LONGITUDE = ("periodic", "clamp")
_BACKENDS = ("blocked", "dense")
_BLOCK = 16  # columns of queries per block; the fastest of 8, 16, 32 (benchmarks/models_attention.py)


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kernel: tuple[int, int],
    row_offset: int = 0,
    longitude: str = "periodic",
    backend: str = "blocked",
) -> Tensor:
    """Softmax attention of every grid point over the kh x kw window around it.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j over kh rows, from clamp(i - kh // 2, 0, Hk - kh) on, and
    kw columns. At the poles the window is shifted inward, so that every query has exactly kh * kw keys
    (Hassani et al. 2023, arXiv 2204.07143). Columns wrap around the globe; with `longitude="clamp"` they are
    shifted inward as well, as released ATLAS weights expect.

    Queries may cover only some of the rows of the keys: query row i lies at key row i + row_offset. A tensor
    type that is split by rows takes over through `__torch_function__`, hands each part the key rows it needs
    and calls this function again.

    Args:
        q: queries (B, Hq, W, heads, d).
        k: keys (B, Hk, W, heads, d).
        v: values (B, Hk, W, heads, d).
        kernel: odd window sizes (rows, columns), no larger than (Hk, W).
        row_offset: key row of the first query row.
        longitude: "periodic" or "clamp".
        backend: "blocked", cost O(Hq W kh (kw + 15)) per channel, or "dense", cost O(Hq Hk W^2): the
            reference.

    Returns:
        Tensor (B, Hq, W, heads, d).

    Raises:
        ValueError: shapes disagree, or the window does not fit.
    """
    if has_torch_function((q, k, v)):
        result: Tensor = handle_torch_function(
            neighborhood_attention,
            (q, k, v),
            q,
            k,
            v,
            kernel=kernel,
            row_offset=row_offset,
            longitude=longitude,
            backend=backend,
        )
        return result
    _check(q, k, v, kernel, longitude, backend)
    attend = _blocked if backend == "blocked" else _dense
    return attend(q, k, v, kernel, row_offset, longitude == "periodic")


def _check(q: Tensor, k: Tensor, v: Tensor, kernel: tuple[int, int], longitude: str, backend: str) -> None:
    agree = q.ndim == k.ndim == 5 and q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:]
    if not agree or k.shape != v.shape:
        raise ValueError(
            "q (B, Hq, W, heads, d) and k, v (B, Hk, W, heads, d) must agree outside the rows, "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if any(size % 2 == 0 or size < 1 for size in kernel):
        raise ValueError(f"kernel sizes must be odd, got {kernel}")
    if kernel[0] > k.shape[1] or kernel[1] > k.shape[2]:
        raise ValueError(f"kernel {kernel} is larger than the {tuple(k.shape[1:3])} key grid")
    if longitude not in _LONGITUDE:
        raise ValueError(f"longitude must be one of {_LONGITUDE}, got {longitude!r}")
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {_BACKENDS}, got {backend!r}")


def _window_start(index: Tensor, size: int, length: int) -> Tensor:
    return (index - size // 2).clamp(0, length - size)


def _dense(
    q: Tensor, k: Tensor, v: Tensor, kernel: tuple[int, int], row_offset: int, periodic: bool
) -> Tensor:
    (_, hq, w, *_), hk = q.shape, k.shape[1]
    (kh, kw), columns = kernel, torch.arange(w, device=q.device)
    first_row = _window_start(torch.arange(hq, device=q.device) + row_offset, kh, hk)[:, None]
    key_row = torch.arange(hk, device=q.device)
    sees_row = (key_row >= first_row) & (key_row < first_row + kh)
    first_column = columns - kw // 2 if periodic else _window_start(columns, kw, w)
    sees_column = (columns - first_column[:, None]) % w < kw
    mask = (sees_row[:, None, :, None] & sees_column[None, :, None, :]).reshape(hq * w, hk * w)
    queries, keys, values = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return out.transpose(1, 2).reshape(q.shape)


def _blocked(
    q: Tensor, k: Tensor, v: Tensor, kernel: tuple[int, int], row_offset: int, periodic: bool
) -> Tensor:
    """Attends block by block: the queries of T columns of a row share kh rows of T + kw - 1 key columns."""
    b, hq, w, heads, d = q.shape
    block = _block_width(w)
    index, mask = _window_plan(hq, k.shape[1], w, kernel, row_offset, periodic, block, q.device)
    rows = b * hq * (w // block)

    def windows(x: Tensor) -> Tensor:
        gathered = x.reshape(b, -1, heads * d).index_select(1, index)
        return gathered.view(rows, mask.shape[-1], heads, d).transpose(1, 2)

    if mask.shape[0] > 1:
        mask = mask.repeat(b * hq, 1, 1, 1)
    queries = q.reshape(rows, block, heads, d).transpose(1, 2)
    out = F.scaled_dot_product_attention(queries, windows(k), windows(v), attn_mask=mask)
    return out.transpose(1, 2).reshape(q.shape)


def _block_width(columns: int) -> int:
    """Returns the divisor of `columns` nearest to the preferred block, in ratio."""
    divisors = [width for width in range(1, columns + 1) if columns % width == 0]
    return min(divisors, key=lambda width: abs(math.log(width / _BLOCK)))


@lru_cache(maxsize=64)
def _window_plan(
    hq: int,
    hk: int,
    w: int,
    kernel: tuple[int, int],
    row_offset: int,
    periodic: bool,
    block: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Returns which keys each block reads and which of them each query sees.

    Returns:
        Flat key indices (hq * blocks * kh * span,), and a mask (1 or blocks, 1, block, kh * span).
    """
    # The cache outlives the caller's modes: an inference tensor could not be saved for a later backward pass.
    with torch.inference_mode(False), torch.device("cpu"):
        kh, kw = kernel
        columns = torch.arange(w).view(-1, block)
        if periodic:
            span, start = block + kw - 1, columns - kw // 2
            first = start[:, :1]
        else:
            span, start = min(block + kw - 1, w), _window_start(columns, kw, w)
            first = start[:, :1].clamp(max=w - span)
        rows = _window_start(torch.arange(hq) + row_offset, kh, hk)[:, None] + torch.arange(kh)
        reads = (first + torch.arange(span)) % w
        index = (rows[:, None, :, None] * w + reads[None, :, None, :]).reshape(-1)
        offset = torch.arange(span) - (start - first)[..., None]
        sees = ((offset >= 0) & (offset < kw)).repeat(1, 1, kh)
        mask = sees[:1] if periodic else sees
        return index.to(device), mask[:, None].to(device)
