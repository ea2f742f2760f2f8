"""Neighbourhood attention through fused kernels: NATTEN, and torch's flex_attention."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wx_models._plans import fixed, planned

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FLEX_BLOCK = 128
_FLEX_TOKENS = 4096
_SMALLEST_FLEX_HEAD = 16


def choose(device: str, dtype: torch.dtype, size: int, kernel: tuple[int, int], tokens: int) -> str:
    """Returns the backend of `backend="auto"`. All that decides stands here.

    Not on CUDA: "blocked", the fastest form in plain torch (benchmarks/models_attention.py). On CUDA, in
    this order, by what is published and not by our own timings:

    1. "natten" where it can serve the call: a fused kernel that tiles the grid in two dimensions and skips
       the rest (Hassani et al. 2024, arXiv 2403.04690; 2025, arXiv 2504.16922).
    2. "flex" from 4096 keys on: it copies no keys, but computes whole blocks of 128 x 128 scores, which
       hold most of a small grid.
    3. "blocked".

    Args:
        device: type of the device.
        dtype: of queries, keys and values.
        size: channels of one head.
        kernel: window (rows, columns).
        tokens: number of keys.
    """
    if device != "cuda":
        return "blocked"
    if not natten_lacks(device, dtype, size, kernel):
        return "natten"
    if tokens >= _FLEX_TOKENS and not flex_lacks(device, dtype, size, gradient=True):
        return "flex"
    return "blocked"


def natten_lacks(device: str, dtype: torch.dtype, size: int, kernel: tuple[int, int]) -> str:
    """Returns why NATTEN cannot serve a call, or nothing."""
    if device != "cuda":
        return f"it runs on CUDA, the tensors are on {device!r}"
    if not has_natten():
        return "it is not installed with its CUDA kernels (https://natten.org/install)"
    if dtype not in _FUSED_DTYPES:
        return f"it takes float32, bfloat16 and float16, got {dtype}"
    if size % 8:
        return f"its heads have a multiple of 8 channels, got {size}"
    if min(kernel) < 2:
        return f"its windows have at least two rows and columns, got {kernel}"
    return ""


def flex_lacks(device: str, dtype: torch.dtype, size: int, *, gradient: bool) -> str:
    """Returns why flex_attention cannot serve a call, or nothing."""
    if device == "cpu":
        return "it has no backward pass on a CPU: call it under torch.no_grad()" if gradient else ""
    if device != "cuda":
        return f"it runs on CUDA, the tensors are on {device!r}"
    if not has_triton():
        return "Triton is not installed"
    if dtype not in _FUSED_DTYPES:
        return f"it takes float32, bfloat16 and float16, got {dtype}"
    if size < _SMALLEST_FLEX_HEAD:
        return f"its heads have at least {_SMALLEST_FLEX_HEAD} channels, got {size}"
    return ""


@planned
def has_natten() -> bool:
    """Whether NATTEN is installed with the kernels; a broken installation raises its own error."""
    return find_spec("natten") is not None and bool(getattr(import_module("natten"), "HAS_LIBNATTEN", False))


@planned
def has_triton() -> bool:
    """Whether the compiler of flex_attention's kernels is installed."""
    return find_spec("triton") is not None


def natten(
    q: Tensor, k: Tensor, v: Tensor, kernel: tuple[int, int], row_offset: int, periodic: bool
) -> Tensor:
    """Calls natten.na2d, whose windows shift inward at every border, with one grid for all three.

    Queries are embedded in the rows of the keys. Around the globe, kw // 2 wrapped columns on either side
    keep the border away from every query that is not cut off again.
    """
    from natten import na2d  # type: ignore[import-not-found]

    hq, w = q.shape[1:3]
    q = F.pad(q, [0, 0] * 3 + [row_offset, k.shape[1] - hq - row_offset])
    halo = kernel[1] // 2 if periodic else 0
    if halo:
        q, k, v = (torch.cat([x[:, :, -halo:], x, x[:, :, :halo]], 2) for x in (q, k, v))
    out: Tensor = na2d(q.contiguous(), k.contiguous(), v.contiguous(), kernel_size=kernel)
    return out.narrow(1, row_offset, hq).narrow(2, halo, w)


def flex(q: Tensor, k: Tensor, v: Tensor, kernel: tuple[int, int], row_offset: int, periodic: bool) -> Tensor:
    """Calls flex_attention with the window as its mask; on a CPU it computes all scores."""
    compiling = torch.compiler.is_compiling()
    attend = _flex_attention(compiled=q.is_cuda and not compiling)
    masked = block_mask if compiling else _cached_block_mask
    hq, w, hk, kh, kw, offset = fixed(*q.shape[1:3], k.shape[1], *kernel, row_offset)
    mask = masked(hq, w, hk, (kh, kw), offset, periodic, q.device)
    out: Tensor = attend(*(x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)), block_mask=mask)
    return out.transpose(1, 2).reshape(q.shape)


def _flex_attention(*, compiled: bool) -> Any:
    # Imported late: it takes longer to import than the rest of torch.
    from torch.nn.attention.flex_attention import flex_attention

    return _compiled_flex() if compiled else flex_attention


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    return torch.compile(_flex_attention(compiled=False))


def block_mask(
    rows: int,
    columns: int,
    key_rows: int,
    kernel: tuple[int, int],
    row_offset: int,
    periodic: bool,
    device: torch.device,
) -> BlockMask:
    """Returns the mask for queries on (rows, columns) and keys on (key_rows, columns), without all scores."""
    from torch.nn.attention.flex_attention import BlockMask

    blocks = _blocks(rows, columns, key_rows, kernel, row_offset, periodic, device)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        first_row, first_column = _window(query, columns, key_rows, kernel, row_offset, periodic)
        # Two turns more keep what is divided positive.
        row, column = key // columns - first_row, (key % columns - first_column + 2 * columns) % columns
        return (row >= 0) & (row < kernel[0]) & (column < kernel[1])

    return BlockMask(
        seq_lengths=(rows * columns, key_rows * columns),
        kv_num_blocks=blocks[0],
        kv_indices=blocks[1],
        full_kv_num_blocks=None,
        full_kv_indices=None,
        q_num_blocks=blocks[2],
        q_indices=blocks[3],
        full_q_num_blocks=None,
        full_q_indices=None,
        BLOCK_SIZE=(_FLEX_BLOCK, _FLEX_BLOCK),
        mask_mod=sees,
    )


_cached_block_mask = lru_cache(maxsize=64)(block_mask)


@planned
def _blocks(
    rows: int,
    columns: int,
    key_rows: int,
    kernel: tuple[int, int],
    row_offset: int,
    periodic: bool,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """Returns for every block of queries how many blocks of keys it sees, and all of them, these first; then
    the same for every block of keys.
    """
    query, keys = torch.arange(rows * columns), key_rows * columns
    first_row, first_column = _window(query, columns, key_rows, kernel, row_offset, periodic)
    touched = torch.zeros(-(-len(query) // _FLEX_BLOCK), -(-keys // _FLEX_BLOCK), dtype=torch.bool)
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            key = (first_row + row) * columns + (first_column + column) % columns
            touched[query // _FLEX_BLOCK, key // _FLEX_BLOCK] = True
    sides = (touched, touched.T)
    found = [
        (side.sum(1), side.to(torch.int8).argsort(dim=1, descending=True, stable=True)) for side in sides
    ]
    return tuple(x[None, None].to(device, torch.int32).contiguous() for pair in found for x in pair)


def _window(
    query: Tensor, columns: int, key_rows: int, kernel: tuple[int, int], row_offset: int, periodic: bool
) -> tuple[Tensor, Tensor]:
    """Returns the first row and column of the window of every query; around the globe, one turn more."""
    first_row = (query // columns + (row_offset - kernel[0] // 2)).clamp(0, key_rows - kernel[0])
    first_column = query % columns - kernel[1] // 2
    return first_row, first_column + columns if periodic else first_column.clamp(0, columns - kernel[1])
