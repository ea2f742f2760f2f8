"""Attention on one CPU thread: forms of neighbourhood attention and, in bfloat16, of global attention.

Process time of the forward pass and of forward plus backward, best of several, all forms taking turns; the
most memory allocated at a time, beyond the inputs. Ratios are to the form in use. Run:

    python benchmarks/models_attention.py [--repeats 5] [--flex] [--tiles]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import wx_models._blocked as implementation
import wx_models._blocks as blocks
from wx_models import neighborhood_attention
from wx_models._fused import block_mask

Form = Callable[[Tensor, Tensor, Tensor], Tensor]

# (B, H, W, heads, d); the second is the token grid of ATLAS's projector, where all scores would take 34 GB.
CASES = [((1, 45, 90, 8, 32), 3), ((1, 45, 90, 8, 32), 7), ((1, 181, 360, 2, 32), 3)]
MOST_SCORES = 1 << 28
TILES = [(1, 15), (3, 5), (4, 4), (4, 6), (5, 5), (5, 6), (4, 8), (5, 10), (8, 8)]
GLOBAL_SHAPES = [(16, 9, 16, 4, 48), (16, 13, 24, 4, 64), (4, 32, 32, 4, 64)]


def first_rows(rows: int, size: int) -> Tensor:
    return (torch.arange(rows) - size // 2).clamp(0, rows - size)


@lru_cache
def window_keys(rows: int, columns: int, size: int) -> Tensor:
    """Flat indices (H W k k) of the keys that every query sees."""
    row = first_rows(rows, size)[:, None] + torch.arange(size)
    column = (torch.arange(columns)[:, None] - size // 2 + torch.arange(size)) % columns
    return (row[:, None, :, None] * columns + column[None, :, None, :]).reshape(-1)


def unfold(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    """Copies the k x k keys and values of every query."""
    (b, _, _, heads, d), index = q.shape, window_keys(*q.shape[1:3], size)
    keys, values = (
        x.reshape(b, -1, heads * d).index_select(1, index).view(-1, size * size, heads, d).transpose(1, 2)
        for x in (k, v)
    )
    queries = q.reshape(-1, 1, heads, d).transpose(1, 2)
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(q.shape)


def row_bands(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    """Every row attends to all columns of its k rows, most of them masked."""
    b, rows, columns, heads, d = q.shape
    index = (first_rows(rows, size)[:, None] + torch.arange(size)).reshape(-1)
    near = (torch.arange(columns) - torch.arange(columns)[:, None] + size // 2) % columns < size
    keys, values = (
        x.index_select(1, index).reshape(b * rows, size * columns, heads, d).transpose(1, 2) for x in (k, v)
    )
    queries = q.reshape(b * rows, columns, heads, d).transpose(1, 2)
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=near.repeat(1, size))
    return out.transpose(1, 2).reshape(q.shape)


def shifted_slices(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    """One shifted copy of keys and values per window position."""
    start, logits, values = first_rows(k.shape[1], size), [], []
    for i in range(size):
        keys_i, values_i = k.index_select(1, start + i), v.index_select(1, start + i)
        for j in range(size):
            shift = size // 2 - j
            logits.append((q * keys_i.roll(shift, 2)).sum(-1))
            values.append(values_i.roll(shift, 2))
    weights = torch.stack(logits, -1).mul(q.shape[-1] ** -0.5).softmax(-1)
    out = weights[..., :1] * values[0]
    for position in range(1, len(values)):
        out = out + weights[..., position : position + 1] * values[position]
    return out


def flex(size: int) -> Form:
    """Compiled for the CPU, where it has no backward pass."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, columns = q.shape[1:3]
        mask = block_mask(rows, columns, rows, (size, size), 0, True, q.device)
        with torch.no_grad():
            out = compiled(*(x.detach().flatten(1, 2).transpose(1, 2) for x in (q, k, v)), block_mask=mask)
        mixed: Tensor = out.transpose(1, 2).reshape(q.shape)
        return mixed

    return attend


@contextmanager
def tile(size: tuple[int, int]) -> Iterator[None]:
    plan, choose = implementation.window_plan, implementation.tile_size
    implementation.window_plan, implementation.tile_size = plan_of(size), lambda *_: size
    yield
    implementation.window_plan, implementation.tile_size = plan, choose


@lru_cache
def plan_of(_tile: tuple[int, int]) -> Callable[..., Any]:
    return lru_cache(implementation.window_plan.__wrapped__)  # type: ignore[attr-defined]


def tiled(size: tuple[int, int], kernel: tuple[int, int]) -> Form:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with tile(size):
            return neighborhood_attention(q, k, v, kernel=kernel)

    return attend


def local_forms(shape: tuple[int, ...], size: int, *, with_flex: bool, with_tiles: bool) -> dict[str, Form]:
    kernel = (size, size)
    forms: dict[str, Form] = {"blocked (used)": partial(neighborhood_attention, kernel=kernel)}
    if with_tiles:
        return forms | {
            f"tiles of {rows} x {columns}": tiled((rows, columns), kernel) for rows, columns in TILES
        }
    if shape[3] * (shape[1] * shape[2]) ** 2 <= MOST_SCORES:
        forms["dense"] = partial(neighborhood_attention, kernel=kernel, backend="dense")
    forms["unfold"] = partial(unfold, size=size)
    forms["row bands"] = partial(row_bands, size=size)
    forms["shifted slices"] = partial(shifted_slices, size=size)
    forms["blocks of one row"] = tiled((1, 15), kernel)
    return forms | ({"flex, compiled": flex(size)} if with_flex else {})


def heads_first(attend: Form) -> Form:
    """Takes (B, H, W, heads, d) like the others."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(*(x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)))

    return call


GLOBAL_FORMS = {
    "matrix products (used)": heads_first(blocks._matmul_attention),
    "torch, bfloat16": heads_first(F.scaled_dot_product_attention),
    "torch, through float32": heads_first(blocks._sdpa),
}


def measure(attend: Form, qkv: Tensor) -> tuple[float, float, Tensor]:
    leaf = qkv.clone().requires_grad_()
    begin = time.process_time()
    out = attend(*leaf.unbind(3))
    middle = time.process_time()
    if out.requires_grad:
        out.backward(torch.ones_like(out))
    total = time.process_time() - begin if out.requires_grad else float("nan")
    return middle - begin, total, out.detach()


def peak_memory(attend: Form, qkv: Tensor) -> int:
    """Bytes that forward plus backward allocate at most at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        measure(attend, qkv)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def compare(
    shape: tuple[int, ...], kernel: str, forms: dict[str, Form], dtype: torch.dtype, repeats: int
) -> None:
    """Prints one row per form; ratios and errors are against the first."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(*shape[:3], 3, *shape[3:], generator=generator).to(dtype)
    memory = {name: peak_memory(form, qkv) for name, form in forms.items()}
    runs = {name: [measure(form, qkv)] for name, form in forms.items()}
    for _ in range(repeats - 1):
        for name, form in forms.items():
            runs[name].append(measure(form, qkv))
    first = next(iter(forms))
    best = {name: [min(run[i] for run in results) for i in (0, 1)] for name, results in runs.items()}
    for name, results in runs.items():
        (forward, both), used = best[name], best[first]
        error = float((results[0][2] - runs[first][0][2]).abs().max())
        ratios = f"{forward / used[0]:.2f} | {both / used[1]:.2f}"
        more = memory[name] / memory[first]
        case = f"{shape} | {kernel} | {str(dtype)[6:]} | {name}"
        figures = (
            f"{1e3 * forward:.1f} | {1e3 * both:.1f} | {ratios} | {memory[name] / 2**20:.0f} | {more:.2f}"
        )
        print(f"| {case} | {figures} | {error:.0e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--flex", action="store_true", help="flex_attention too: compiles for half a minute")
    parser.add_argument("--tiles", action="store_true", help="sizes of tiles instead of forms")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    columns = ["(B, H, W, heads, d)", "kernel", "dtype", "form", "forward ms", "both ms", "forward", "both"]
    print(f"| {' | '.join([*columns, 'MiB', 'memory', 'error'])} |\n|{'---|' * 11}")
    for shape, size in CASES:
        forms = local_forms(shape, size, with_flex=chosen.flex, with_tiles=chosen.tiles)
        compare(shape, f"{size} x {size}", forms, torch.float32, chosen.repeats)
    for shape, size in CASES[:2]:
        forms = local_forms(shape, size, with_flex=False, with_tiles=chosen.tiles)
        compare(shape, f"{size} x {size}", forms, torch.bfloat16, chosen.repeats)
    for shape in GLOBAL_SHAPES:
        compare(shape, "global", GLOBAL_FORMS, torch.bfloat16, chosen.repeats)


if __name__ == "__main__":
    main()
