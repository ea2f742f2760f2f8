"""Attention on one CPU thread: forms of neighbourhood attention (float32) and of global attention (bfloat16).

Process time of the forward pass and of forward plus backward, best of several. Run:

    python benchmarks/models_attention.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

import wx_models._attention as implementation
import wx_models._blocks as blocks
from wx_models import neighborhood_attention

SHAPES = [(8, 17, 32, 4, 32), (8, 17, 32, 6, 16), (1, 45, 90, 8, 32)]
KERNELS = [(3, 3), (5, 5)]
GLOBAL_SHAPES = [(16, 9, 16, 4, 48), (16, 13, 24, 4, 64), (4, 32, 32, 4, 64)]


def shifted_slices(q: Tensor, k: Tensor, v: Tensor, kernel: tuple[int, int]) -> Tensor:
    """The alternative without blocks: one shifted copy of keys and values per window position."""
    rows = torch.arange(k.shape[1])
    start = (rows - kernel[0] // 2).clamp(0, k.shape[1] - kernel[0])
    logits, values = [], []
    for i in range(kernel[0]):
        keys_i, values_i = k.index_select(1, start + i), v.index_select(1, start + i)
        for j in range(kernel[1]):
            shift = kernel[1] // 2 - j
            logits.append((q * keys_i.roll(shift, 2)).sum(-1))
            values.append(values_i.roll(shift, 2))
    weights = torch.stack(logits, -1).mul(q.shape[-1] ** -0.5).softmax(-1)
    out = weights[..., :1] * values[0]
    for position in range(1, len(values)):
        out = out + weights[..., position : position + 1] * values[position]
    return out


@contextmanager
def block_width(width: int) -> Iterator[None]:
    default, implementation._BLOCK = implementation._BLOCK, width
    yield
    implementation._BLOCK = default


def blocked(width: int, kernel: tuple[int, int]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with block_width(width):
            return neighborhood_attention(q, k, v, kernel=kernel)

    return attend


def variants(kernel: tuple[int, int]) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    return {
        "dense": lambda q, k, v: neighborhood_attention(q, k, v, kernel=kernel, backend="dense"),
        "shifted slices": lambda q, k, v: shifted_slices(q, k, v, kernel),
        **{f"blocked, {width} columns": blocked(width, kernel) for width in (8, 16, 32)},
    }


def heads_first(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Takes (B, H, W, heads, d) like the others."""

    def call(*qkv: Tensor) -> Tensor:
        return attend(*(x.flatten(1, 2).transpose(1, 2) for x in qkv))

    return call


GLOBAL_FORMS = {
    "torch, bfloat16": heads_first(F.scaled_dot_product_attention),
    "torch, through float32": heads_first(blocks._sdpa),
    "matrix products (used)": heads_first(blocks._matmul_attention),
}


def measure(attend: Callable[[Tensor, Tensor, Tensor], Tensor], qkv: Tensor) -> tuple[float, float, Tensor]:
    leaf = qkv.clone().requires_grad_()
    begin = time.process_time()
    out = attend(*leaf.unbind(3))
    middle = time.process_time()
    out.backward(torch.ones_like(out))
    return middle - begin, time.process_time() - begin, out.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("| (B, H, W, heads, d) | kernel | form | forward ms | forward + backward ms | max error |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        for kernel in KERNELS:
            compare(shape, str(kernel), variants(kernel), torch.float32, repeats)
    for shape in GLOBAL_SHAPES:
        compare(shape, "global", GLOBAL_FORMS, torch.bfloat16, repeats)


def compare(
    shape: tuple[int, ...],
    kernel: str,
    forms: dict[str, Callable[..., Tensor]],
    dtype: torch.dtype,
    repeats: int,
) -> None:
    """Print one row per form; errors are against the first, repeats interleaved: a disturbance hits all."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(*shape[:3], 3, *shape[3:], generator=generator).to(dtype)
    runs = {name: [measure(form, qkv)] for name, form in forms.items()}
    for _ in range(repeats - 1):
        for name, form in forms.items():
            runs[name].append(measure(form, qkv))
    reference = next(iter(runs.values()))[0][2]
    for name, results in runs.items():
        forward, both = (1e3 * min(result[i] for result in results) for i in (0, 1))
        error = float((results[0][2] - reference).abs().max())
        print(f"| {shape} | {kernel} | {name} | {forward:.1f} | {both:.1f} | {error:.0e} |", flush=True)


if __name__ == "__main__":
    main()
