"""Neighbourhood attention in plain torch: tiles of queries share the keys of all their windows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wx_models._plans import fixed, planned

# Time of a tile in units of one score, fitted to passes forward and backward on a CPU (models_attention.py):
# a key costs two copies, a query its way into the tile and back, a tile the calls it needs.
_KEY, _QUERY, _TILE = 27, 90, 600
_LARGEST_TILE = 32
_CUDA_ROWS = 64  # torch's CUDA kernels for masked attention work on this many queries at a time
_HALVES = (torch.bfloat16, torch.float16)


class Plan(NamedTuple):
    """Which queries and keys a tile reads, over all tiles in order.

    Attributes:
        tiles: tiles along (rows, columns).
        sizes: queries T and keys S of a tile.
        alike: whether one mask serves all tiles.
        queries: flat query indices (tiles * T,); those that fill up the last tiles repeat others.
        keys: flat key indices (tiles * S,).
        home: where the result of every query lies in the tiles (Hq * W,).
        bias: 0 where a query sees a key and -inf elsewhere (row tiles or 1, column tiles or 1, T, S).
    """

    tiles: tuple[int, int]
    sizes: tuple[int, int]
    alike: bool
    queries: Tensor
    keys: Tensor
    home: Tensor
    bias: Tensor


def blocked(
    q: Tensor, k: Tensor, v: Tensor, kernel: tuple[int, int], row_offset: int, periodic: bool
) -> Tensor:
    """Attends tile by tile: T = tr * tc queries share S = (tr + kh - 1) * (tc + kw - 1) keys."""
    if q.device.type == "cpu" and q.dtype in _HALVES:
        # torch's CPU attention takes three times as long to go backward in bfloat16 as in float32.
        with torch.autocast("cpu", enabled=False):
            return blocked(q.float(), k.float(), v.float(), kernel, row_offset, periodic).to(q.dtype)
    b, _, _, heads, d = q.shape
    hq, w, hk, kh, kw, offset = fixed(*q.shape[1:3], k.shape[1], *kernel, row_offset)
    plan = window_plan(hq, w, hk, (kh, kw), offset, periodic, q.device)
    n, (t, s) = b * plan.tiles[0] * plan.tiles[1], plan.sizes

    def tiled(x: Tensor, index: Tensor, size: int) -> Tensor:
        chosen = x.reshape(b, -1, heads * d).index_select(1, index)
        return chosen.view(n, size, heads, d).transpose(1, 2)

    bias = plan.bias.to(q.dtype)
    if not plan.alike:
        bias = bias.expand(b, *plan.tiles, t, s).reshape(n, 1, t, s)
    out = F.scaled_dot_product_attention(
        tiled(q, plan.queries, t), tiled(k, plan.keys, s), tiled(v, plan.keys, s), attn_mask=bias
    )
    return out.transpose(1, 2).reshape(b, -1, heads * d).index_select(1, plan.home).view(q.shape)


@planned
def window_plan(
    rows: int,
    columns: int,
    key_rows: int,
    kernel: tuple[int, int],
    row_offset: int,
    periodic: bool,
    device: torch.device,
) -> Plan:
    """Returns the plan for queries on (rows, columns) and keys on (key_rows, columns)."""
    tr, tc = tile_size((rows, columns), kernel, device.type)
    query_rows, seen_rows, sees_rows = _tiles(rows, key_rows, kernel[0], tr, row_offset, False)
    query_columns, seen_columns, sees_columns = _tiles(columns, columns, kernel[1], tc, 0, periodic)
    sees = sees_rows[:, None, :, None, :, None] & sees_columns[None, :, None, :, None, :]
    sees = sees.flatten(4).flatten(2, 3)
    tiles = len(seen_rows), len(seen_columns)
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    home = ((row // tr * tiles[1] + column // tc) * tr + row % tr) * tc + column % tc
    queries, keys = _flat(query_rows, query_columns, columns), _flat(seen_rows, seen_columns, columns)
    bias = torch.zeros(sees.shape, dtype=torch.float32).masked_fill(~sees, -math.inf)
    sizes, alike = (sees.shape[2], sees.shape[3]), sees.shape[:2] == (1, 1)
    return Plan(tiles, sizes, alike, *(x.to(device) for x in (queries, keys, home.reshape(-1), bias)))


def _tiles(
    queries: int, keys: int, kernel: int, tile: int, offset: int, periodic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns along one axis the queries (tiles, tile) and the keys (tiles, span) of every tile, and which
    key each query sees (tiles, tile, span); one mask stands for all tiles where they agree.
    """
    place = torch.arange(-(-queries // tile))[:, None] * tile + torch.arange(tile)
    start = place + offset - kernel // 2
    if periodic:
        span, first = tile + kernel - 1, start[:, :1]
    else:
        span, start = min(tile + kernel - 1, keys), start.clamp(0, keys - kernel)
        first = start[:, :1].clamp(max=keys - span)
    seen = torch.arange(span) - (start - first)[..., None]
    sees = (seen >= 0) & (seen < kernel)
    if len(sees) and bool((sees == sees[:1]).all()):
        sees = sees[:1]
    return place.clamp(max=queries - 1), (first + torch.arange(span)) % keys, sees


def _flat(rows: Tensor, columns: Tensor, w: int) -> Tensor:
    return (rows[:, None, :, None] * w + columns[None, :, None, :]).reshape(-1)


def tile_size(grid: tuple[int, int], kernel: tuple[int, int], device: str) -> tuple[int, int]:
    """Returns the tile (rows, columns) of queries for which the whole grid takes the least time.

    Small tiles copy every key often, large ones compute many scores that are masked.
    """

    def time(tile: tuple[int, int]) -> float:
        number = math.prod(-(-size // side) for size, side in zip(grid, tile, strict=True))
        t, s = math.prod(tile), math.prod(a + b - 1 for a, b in zip(tile, kernel, strict=True))
        computed = -(-t // _CUDA_ROWS) * _CUDA_ROWS if device == "cuda" else t
        return number * (computed * s + _KEY * s + _QUERY * t + _TILE)

    tallest, widest = (min(_LARGEST_TILE, max(size, 1)) for size in grid)
    return min(((tr, tc) for tr in range(1, tallest + 1) for tc in range(1, widest + 1)), key=time)
