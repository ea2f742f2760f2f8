"""Bytes and collectives of operations on sharded tensors, against the least that the operation needs.

The bound is computed without shardtensor. For an operation whose gradient shows what it reads, every rank's
rows of the result are differentiated on one process: each input element that has a gradient and that the rank
does not own must travel to it, once, and its gradient back. Weights add an all_reduce of their gradients,
2 (P - 1) n over all ranks. Other operations (reductions, all-to-all algorithms) have a formula, in the last
column. Nothing here depends on the speed of the machine. Starts its ranks itself. Run:

    python benchmarks/shard_bytes.py [--ranks 4]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import shard_common as common
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

import shardtensor as st
from wx_models import neighborhood_attention

FIELD = (2, 8, 64, 32)
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Item:
    """An operation on sharded tensors.

    Attributes:
        run: takes inputs and weights.
        inputs: shapes.
        dim: the dimension that is sharded.
        weights: shapes, on every rank.
        trace: a function that reads what `run` reads and whose gradient shows it; by default `run`.
        forward: bytes that all P ranks together must send, of P; None where they are traced.
        backward: the same for the backward pass; None for the transpose of the forward and the weights.
        how: what the formulas stand for.
    """

    run: Callable[..., Any]
    inputs: tuple[tuple[int, ...], ...] = (FIELD,)
    dim: int = 2
    weights: tuple[tuple[int, ...], ...] = ()
    trace: Callable[..., Any] | None = None
    forward: Callable[[int], float] | None = None
    backward: Callable[[int], float] | None = None
    how: str = ""


def reduced(count: int) -> Callable[[int], float]:
    """Bytes of an all_reduce of `count` floats, over all ranks."""
    return lambda ranks: 2 * (ranks - 1) * count * FLOAT


def swapped(count: float) -> Callable[[int], float]:
    """Bytes of an all_to_all of `count` floats, over all ranks."""
    return lambda ranks: count * (ranks - 1) / ranks * FLOAT


def around(count: int) -> Callable[[int], float]:
    """Bytes when `count` floats reach every other rank."""
    return lambda ranks: count * (ranks - 1) * FLOAT


def conv(kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Item:
    def run(x: Any, w: Any) -> Any:
        return F.conv2d(x, w, stride=stride, padding=padding, dilation=dilation)

    return Item(run, weights=((8, 8, kernel, kernel),))


def circular_conv(x: Any, w: Any) -> Any:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), w)


def interpolate(**options: Any) -> Item:
    return Item(lambda x: F.interpolate(x, **options))


def attend(method: Any) -> Callable[..., Any]:
    def run(q: Any, k: Any, v: Any) -> Any:
        with st.attention(method):
            return F.scaled_dot_product_attention(q, k, v)

    return run


HEADS = ((2, 4, 64, 16),) * 3
WINDOWS = ((1, 32, 24, 2, 8),) * 3
N = math.prod(FIELD)
KEYS = 2 * math.prod(HEADS[0])
ITEMS = {
    "conv2d 3x3": conv(3, padding=1),
    "conv2d 5x5": conv(5, padding=2),
    "conv2d 3x3 dilation 4": conv(3, padding=4, dilation=4),
    "conv2d 3x3 stride 2": conv(3, stride=2, padding=1),
    "conv2d 7x7 stride 2": conv(7, stride=2, padding=3),
    "conv2d 4x4 stride 4 (patches)": conv(4, stride=4),
    "conv2d 33x33 (over several ranks)": conv(33, padding=16),
    "conv2d 3x3 circular": Item(circular_conv, weights=((8, 8, 3, 3),)),
    "conv_transpose2d 4x4 stride 2": Item(
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1), weights=((8, 8, 4, 4),)
    ),
    "avg_pool2d 2": Item(lambda x: F.avg_pool2d(x, 2)),
    "avg_pool2d 3 stride 2": Item(lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "max_pool2d 3 stride 2": Item(
        lambda x: F.max_pool2d(x, 3, 2, 1), trace=lambda x: F.avg_pool2d(x, 3, 2, 1)
    ),
    "interpolate bilinear x 2": interpolate(scale_factor=2, mode="bilinear"),
    "interpolate bicubic x 2": interpolate(scale_factor=2, mode="bicubic"),
    "interpolate to (40, 20), corners": interpolate(size=(40, 20), mode="bilinear", align_corners=True),
    "roll by 5": Item(lambda x: x.roll(5, 2)),
    "flip": Item(lambda x: x.flip(2)),
    "pad circular 2 (with a convolution's halo)": Item(lambda x: F.pad(x, (0, 0, 2, 2), mode="circular")),
    "cat of 2, in place of order": Item(lambda x, y: torch.cat([x, y], 2), inputs=(FIELD, FIELD)),
    "x[:, :, 8:40]": Item(lambda x: x[:, :, 8:40]),
    "redistribute Shard(2) to Shard(1)": Item(
        lambda x: x.redistribute([Shard(1)]) if st.is_sharded(x) else x
    ),
    "redistribute to other sizes": Item(
        lambda x: x.redistribute(sizes=other_sizes(x)) if st.is_sharded(x) else x
    ),
    "linear": Item(lambda x, w: F.linear(x, w), weights=((32, 32),)),
    "layer_norm": Item(lambda x, w: F.layer_norm(x, (32,), w), weights=((32,),)),
    "group_norm": Item(
        lambda x, w, b: F.group_norm(x, 4, w, b),
        weights=((8,), (8,)),
        forward=reduced(2 * 2 * 4),
        backward=reduced(2 * 2 * 4 + 2 * 8),
        how="all_reduce of mean and variance; of two sums, gradients of weights",
    ),
    "softmax over the shards": Item(
        lambda x: x.softmax(2),
        forward=reduced(2 * N // 64),
        backward=reduced(N // 64),
        how="all_reduce of maximum and sum; of one sum",
    ),
    "mean": Item(lambda x: x.mean(), forward=reduced(1), backward=lambda _: 0.0, how="all_reduce"),
    "fft over the shards": Item(
        lambda x: torch.view_as_real(torch.fft.fft(x, dim=2)),
        forward=swapped(3 * N),
        backward=swapped(3 * N),
        how="transposed there (real) and back (complex); the reverse",
    ),
    "attention, ring": Item(
        attend("ring"), inputs=HEADS, forward=around(KEYS), backward=around(2 * KEYS),
        how="keys and values to every rank; again, with their gradients",
    ),
    "attention, gather": Item(attend("gather"), inputs=HEADS),
    "attention, ulysses": Item(
        attend("ulysses"), inputs=HEADS, forward=swapped(2 * KEYS), backward=swapped(2 * KEYS),
        how="q, k, v and result change owner; their gradients",
    ),
    "neighbourhood attention 3x3": Item(
        lambda q, k, v: neighborhood_attention(q, k, v, kernel=(3, 3)), inputs=WINDOWS, dim=1
    ),
    "neighbourhood attention 7x7": Item(
        lambda q, k, v: neighborhood_attention(q, k, v, kernel=(7, 7)), inputs=WINDOWS, dim=1
    ),
}  # fmt: skip


def other_sizes(x: Any) -> list[int]:
    """Returns sizes of which every rank but the first has two rows more."""
    ranks, rows = x.spec.mesh.size(), x.shape[2]
    more = [rows // ranks + 2] * (ranks - 1)
    return [rows - sum(more), *more]


@dataclass(frozen=True)
class Seen:
    """What one rank sent, and what it had to receive (None where a formula says it)."""

    sent: tuple[int, int]  # forward, backward
    messages: tuple[int, int]
    needed: int | None


def measure(mesh: DeviceMesh) -> dict[str, Seen]:
    st.register_function_handler(neighborhood_attention, st.neighborhood_handler)
    results = {}
    for name, item in ITEMS.items():
        torch.manual_seed(0)
        plain = [torch.randn(shape, requires_grad=True) for shape in item.inputs]
        weights = [torch.randn(shape, requires_grad=True) for shape in item.weights]
        parts = [common.shard(x, mesh, item.dim) for x in plain]
        with st.traffic() as there:
            out = item.run(*parts, *weights)
        with st.traffic() as back:
            out.local.backward(torch.ones_like(out.local))
        needed = None if item.forward else read_from_others(item, plain, weights, parts, out.local_slices())
        results[name] = Seen((there.sent, back.sent), (len(there), len(back)), needed)
    return results


def read_from_others(
    item: Item,
    plain: list[Tensor],
    weights: list[Tensor],
    parts: list[st.ShardTensor],
    mine: tuple[slice, ...],
) -> int:
    """Returns the bytes of other ranks' inputs on which this rank's part of the result depends."""
    out = (item.trace or item.run)(*plain, *weights)[mine]
    grads = torch.autograd.grad(out, plain, torch.rand_like(out) + 0.5)
    count = 0
    for grad, part in zip(grads, parts, strict=True):
        read = grad != 0
        read[part.local_slices()] = False
        count += int(read.sum())
    return count * FLOAT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    ranks = parser.parse_args().ranks
    found = common.on_ranks(measure, ranks)
    rows = []
    for name, item in ITEMS.items():
        seen = [rank[name] for rank in found]
        if item.forward is None:
            moved = float(sum(each.needed or 0 for each in seen))
            summed = reduced(sum(math.prod(shape) for shape in item.weights))(ranks)
            bounds = (moved, moved + summed)
        else:
            bounds = (item.forward(ranks), item.backward(ranks) if item.backward else item.forward(ranks))
        cells: list[object] = [name]
        for when, bound in enumerate(bounds):
            sent = sum(each.sent[when] for each in seen)
            ratio = "-" if not bound and not sent else f"{sent / bound:.3f}" if bound else "inf"
            cells += [max(each.messages[when] for each in seen), sent, round(bound), ratio]
        rows.append((*cells, item.how or "traced"))
    print(f"torch {torch.__version__}, {ranks} ranks, even shards, float32; bytes sent by all ranks together")
    head = [f"{when}{what}" for when in ("", "back: ") for what in ("messages", "bytes", "least", "ratio")]
    common.table(["operation", *head, "how the least is known"], rows)


if __name__ == "__main__":
    main()
