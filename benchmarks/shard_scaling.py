"""Strong and weak scaling of three networks, and a cost model that carries them to 512 devices.

Networks: a small vision transformer, and the latent transformer and the local projector of wx_models with
the weights as they are made. Ranks share two cores, so four ranks can not be faster than two: read the CPU
time of all ranks (the sum over ranks, without waiting) and that of gloo's threads, which move bytes; wall
time is printed for completeness. Strong: one size on all ranks. Weak: rows grow with the ranks, and with them
the arithmetic of global attention for each of them.

The model: CPU seconds of a rank = flops / rate + messages x alpha + bytes x beta, with the rate of each
network on one process, and alpha and beta fitted to all runs of several ranks. The last tables put the full
sizes of ATLAS (counted on the meta device) and the communication formulas below, checked against the traffic
of the small networks, on the numbers of a cluster: a prediction, not a measurement. Starts its ranks itself.
Run:

    python benchmarks/shard_scaling.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import shard_common as common
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

import shardtensor as st
from wx_models import (
    LatentTransformer,
    LatentTransformerConfig,
    LocalProjector,
    LocalProjectorConfig,
    neighborhood_attention,
)

ROWS = 2  # the dimension of fields (N, C, H, W) that is sharded
RANKS = (1, 2, 4)
MODES = ("strong", "weak")
BUCKET = 25 * 2**20  # bytes of gradients in one all_reduce


class VisionTransformer(nn.Module):
    """Patches of (N, 3, H, W), blocks of attention and MLP, a mean and a classifier."""

    def __init__(self, width: int = 128, heads: int = 4, depth: int = 4, patch: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.blocks = nn.ModuleList(VisionBlock(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Any) -> Any:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(1))


class VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Any) -> Any:
        qkv = self.qkv(self.norms[0](x)).reshape(*x.shape[:-1], 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norms[1](x))


class Task(NamedTuple):
    """A network, its input fields, and how it is called with them."""

    network: nn.Module
    fields: tuple[Tensor, ...]
    call: Callable[..., Any]


def vision(rows: int) -> Task:
    return Task(VisionTransformer(), (torch.randn(1, 3, 8 * rows, 256),), lambda net, x: net(x))


def latent(rows: int) -> Task:
    config = LatentTransformerConfig(channels=8, grid=(2 * rows, 128), width=128, depth=2, heads=4)
    fields = tuple(torch.randn(1, 8, *config.grid) for _ in range(3))

    def call(net: Any, x: Any, state: Any, previous: Any) -> Any:
        return net.predict(x, {"state": state, "previous": previous}, t=torch.ones(1))

    return Task(LatentTransformer(config), fields, call)


def projector(rows: int) -> Task:
    config = LocalProjectorConfig(channels=8, grid=(4 * rows, 256), patch=(4, 4), width=128, depth=3, heads=4)
    fields = (torch.randn(1, 8, *config.latent_grid), torch.randn(1, 8, *config.grid))
    return Task(LocalProjector(config), fields, lambda net, r, x: net.project(r, x))


# Rows of tokens on one rank: of a strong run, shared by the ranks, and of a weak run.
NETWORKS: dict[str, tuple[Callable[[int], Task], int, int]] = {
    "vision transformer": (vision, 32, 16),
    "latent transformer": (latent, 32, 12),
    "local projector": (projector, 64, 32),
}


class Counter(TorchDispatchMode):
    """Counts floating-point operations of products and convolutions, and kernels that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.kernels = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, count = func._overloadpacket.__name__, flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        elif name == "_scaled_dot_product_flash_attention_for_cpu":
            self.flops += sdpa_flop_count(*(x.shape for x in args[:3]))
        elif name == "_scaled_dot_product_flash_attention_for_cpu_backward":
            self.flops += sdpa_backward_flop_count(*(x.shape for x in args[:4]))
        self.kernels += not func.is_view
        return out


@dataclass(frozen=True)
class Measured:
    """What one rank did in a training step."""

    spent: tuple[common.Spent, ...]
    flops: int
    messages: int
    sent: int


def measure(mesh: DeviceMesh, repeats: int) -> dict[tuple[str, str], Measured]:
    st.register_function_handler(neighborhood_attention, st.neighborhood_handler)
    results = {}
    for name, (make, strong, weak) in NETWORKS.items():
        for mode, rows in zip(MODES, (strong, weak * mesh.size()), strict=True):
            torch.manual_seed(0)
            task = make(rows)
            alone = mesh.size() == 1
            fields = [x if alone else common.shard(x, mesh, ROWS) for x in task.fields]

            def step(task: Task = task, fields: Sequence[Any] = fields) -> None:
                loss = task.call(task.network, *fields).square().mean()
                with st.bucketed_gradients():
                    loss.backward()
                task.network.zero_grad()

            with Counter() as counter, st.traffic() as traffic:
                step()
            spent = tuple(common.spend(step) for _ in range(repeats))
            results[name, mode] = Measured(spent, counter.flops, len(traffic), traffic.sent)
    return results


class Point(NamedTuple):
    """A run: CPU seconds of all ranks in the best repeat, and the means of a rank."""

    name: str
    mode: str
    ranks: int
    cpu: float
    moving: float
    wall: float
    flops: float
    messages: float
    sent: float


def points(repeats: int) -> list[Point]:
    found = []
    for ranks in RANKS:
        by_rank = common.on_ranks(measure, ranks, repeats, environment=common.NO_PAGE_FAULTS)
        for name, mode in by_rank[0]:
            each = [rank[name, mode] for rank in by_rank]
            runs = [one.spent for one in each]
            moving = min(sum(s.moving for s in repeat) for repeat in zip(*runs, strict=True))
            means = (
                sum(one) / ranks for one in zip(*((e.flops, e.messages, e.sent) for e in each), strict=True)
            )
            found.append(
                Point(name, mode, ranks, common.least_cpu(runs), moving, common.least_wall(runs), *means)
            )
    return found


def show(found: list[Point]) -> None:
    alone = {(p.name, p.mode): p for p in found if p.ranks == 1}
    rows = []
    for p in sorted(found, key=lambda p: (MODES.index(p.mode), list(NETWORKS).index(p.name), p.ranks)):
        base = alone[p.name, p.mode]
        useful = p.ranks * p.flops / base.flops if p.mode == "weak" else 1.0
        counts = (p.flops / 1e9, round(p.messages), p.sent / 1e6)
        times = (1e3 * p.cpu, 1e3 * p.moving, 1e3 * p.wall, useful * base.cpu / p.cpu)
        rows.append((p.mode, p.name, p.ranks, *counts, *times))
    head = ["scaling", "network", "ranks", "GFLOP a rank", "messages", "MB sent a rank"]
    common.table([*head, "CPU ms, all ranks", "of gloo's threads", "wall ms", "CPU efficiency"], rows)


def fit(found: list[Point]) -> tuple[dict[str, float], float, float]:
    """Returns the rate of each network, flop/s, and alpha (s), beta (s/byte), by least relative squares."""
    rates = {p.name: p.flops / p.cpu for p in found if p.ranks == 1 and p.mode == "strong"}
    several = [p for p in found if p.ranks > 1]
    share = np.array([p.cpu / p.ranks for p in several])
    rest = (share - np.array([p.flops / rates[p.name] for p in several])) / share
    matrix = np.array([(p.messages, p.sent) for p in several]) / share[:, None]
    best, least = (0.0, 0.0), float(np.square(rest).sum())
    for columns in ([0, 1], [0], [1]):  # neither may be negative
        answer = np.linalg.lstsq(matrix[:, columns], rest, rcond=None)[0]
        if (answer >= 0).all():
            full = np.zeros(2)
            full[columns] = answer
            error = float(np.square(rest - matrix @ full).sum())
            if error < least:
                best, least = (float(full[0]), float(full[1])), error
    return rates, *best


def error_of(p: Point, fitted: tuple[dict[str, float], float, float]) -> float:
    rates, alpha, beta = fitted
    return (p.flops / rates[p.name] + p.messages * alpha + p.sent * beta) / (p.cpu / p.ranks) - 1


def show_model(found: list[Point]) -> None:
    fitted = fit(found)
    rates, alpha, beta = fitted
    speeds = ", ".join(f"{name} {rate / 1e9:.1f} Gflop/s" for name, rate in rates.items())
    print(f"model: {speeds}; alpha {1e6 * alpha:.0f} us a message, beta {1e9 * beta:.2f} ns a byte")
    rows = []
    for p in found:
        if (p.ranks, p.mode) == (1, "strong"):
            continue
        # Of a run of several ranks the second error leaves the runs of its network out of alpha and beta.
        others = fit([q for q in found if q.name != p.name or q.ranks == 1])
        errors = [100 * error_of(p, each) for each in (fitted, others)]
        rows.append((p.name, p.mode, p.ranks, *errors))
    common.table(["network", "scaling", "ranks", "error %", "error %, network left out"], rows)
    worst = max(abs(row[3]) for row in rows)
    print(f"mean error {np.mean([abs(row[3]) for row in rows]):.1f} %, largest {worst:.1f} %\n")


# ---- communication by formula, and the cluster -------------------------------------------------


class Shape(NamedTuple):
    """What of a transformer on a grid of tokens decides its communication.

    Attributes:
        grid: rows and columns of tokens.
        width: of a token.
        heads: of attention.
        depth: blocks.
        weights: parameters.
        shared: those used on tokens, whose gradients ranks add; every rank computes the conditions whole.
        local: whether attention has a window of 3 x 3 tokens, or sees all.
        size: bytes of an activation.
    """

    grid: tuple[int, int]
    width: int
    heads: int
    depth: int
    weights: int
    shared: int
    local: bool
    size: int


def shape_of(network: nn.Module, size: int) -> Shape:
    config: Any = network.config
    local = isinstance(network, LocalProjector)
    grid = tuple(-(-extent // part) for extent, part in zip(config.grid, config.patch, strict=True))
    weights = {name: weight.numel() for name, weight in network.named_parameters()}
    shared = sum(n for name, n in weights.items() if "modulation" not in name and not name.startswith("time"))
    return Shape(grid, config.width, config.heads, config.depth, sum(weights.values()), shared, local, size)


class Messages(NamedTuple):
    """Of one rank: messages in a row and bytes sent, of activations and of gradients of weights."""

    hops: float
    sent: float
    reduces: int
    reduced: float


def communication(shape: Shape, parts: tuple[int, int], *, training: bool, mean: bool = False) -> Messages:
    """What a rank sends in a step: one inside the domain, or the mean of all.

    Local attention: one row (column) of keys and values to each neighbour, and their gradients. Global: by
    ring or by all_to_all from tokens to heads, whichever shardtensor takes by itself. An all_to_all of P
    ranks counts as log2 P messages.
    """
    ranks = math.prod(parts)
    if ranks == 1:
        return Messages(0, 0.0, 0, 0.0)
    if shape.local:
        rows, columns = (-(-extent // part) for extent, part in zip(shape.grid, parts, strict=True))
        cut = [(n, part) for n, part in ((columns, parts[0]), (rows, parts[1])) if part > 1]
        tokens = 2 * sum(n * (2 * (part - 1) / part if mean else min(2, part - 1)) for n, part in cut)
        passes = 2 if training else 1
        hops, tokens = passes * 2 * len(cut) * 1.0, passes * tokens
    else:
        hops, tokens = _global(shape, ranks, training)
    gradients = 4 * shape.shared
    reduces = -(-gradients // BUCKET) if training else 0
    reduced = 2 * gradients * (ranks - 1) / ranks if training else 0.0
    return Messages(hops * shape.depth, tokens * shape.width * shape.size * shape.depth, reduces, reduced)


def _global(shape: Shape, ranks: int, training: bool) -> tuple[float, float]:
    """Returns messages and tokens of one block; chosen as `shardtensor.attention("auto")` does."""
    moved = math.prod(shape.grid) * (ranks - 1) / ranks
    ring, swap = (ranks - 1, 2 * moved), (4, 4 * moved / ranks)

    def seconds(way: tuple[int, float]) -> float:
        return way[0] * 20e-6 + way[1] * shape.width * shape.size / 50e9

    if shape.heads >= ranks and seconds(swap) < seconds(ring):
        passes = 2 if training else 1
        return passes * 4 * math.log2(ranks), passes * swap[1]
    back = ranks + 1 if ranks > 2 else 2
    return ring[0] + (back if training else 0), ring[1] * (3 if training else 1)


def check_formulas(found: list[Point]) -> None:
    rows = []
    for name in ("latent transformer", "local projector"):
        make, strong, _ = NETWORKS[name]
        shape = shape_of(make(strong).network, 4)
        for p in found:
            if (p.name, p.mode) == (name, "strong") and p.ranks > 1:
                m = communication(shape, (p.ranks, 1), training=True, mean=True)
                rows.append((name, p.ranks, (m.sent + m.reduced) / 1e6, p.sent / 1e6))
    print("formulas of the prediction against what the small networks sent, MB, mean of the ranks")
    common.table(["network", "ranks", "formula", "measured"], rows)


class Cluster(NamedTuple):
    """Assumed numbers of a cluster of H100 SXM, 8 to a node, one 400 Gb/s link for each.

    Attributes:
        rate: flop/s of bfloat16 products: 40 % of 989 TFLOP/s.
        memory: bytes/s of HBM: 80 % of 3.35 TB/s.
        kernel: s for each kernel, in a compiled or captured graph.
        node: devices of a node.
        latency: s of a message, within a node and between nodes; an all_reduce has log2 P of them.
        link: bytes/s that a device sends, within a node (75 % of 450 GB/s) and between nodes (80 % of 50).
        reduce: bytes/s of an all_reduce, of which all 8 links of a node carry a part.
    """

    rate: float = 0.40 * 989e12
    memory: float = 0.80 * 3.35e12
    kernel: float = 3e-6
    node: int = 8
    latency: tuple[float, float] = (8e-6, 15e-6)
    link: tuple[float, float] = (0.75 * 450e9, 0.80 * 50e9)
    reduce: tuple[float, float] = (0.75 * 450e9, 8 * 0.80 * 50e9)


def full_size(training: bool) -> dict[str, tuple[Shape, int, int]]:
    """Returns shapes, flops and kernels of a step of ATLAS' networks with batch 1, on the meta device."""
    found = {}
    with torch.device("meta"):
        networks = {
            "latent transformer": LatentTransformer(LatentTransformerConfig.atlas_si()),
            "local projector": LocalProjector(LocalProjectorConfig.atlas_projector()),
        }
        for name, network in networks.items():
            config: Any = network.config
            local = isinstance(network, LocalProjector)
            with Counter() as counter, torch.set_grad_enabled(training):
                if local:
                    fields = [
                        torch.zeros(1, n, *config.grid) for n in (config.channels, config.forcing_channels)
                    ]
                    out = network.project(torch.zeros(1, config.channels, *config.latent_grid), *fields)
                else:
                    field = torch.zeros(1, config.channels, *config.grid)
                    cond = {"state": field, "previous": field}
                    out = network.predict(field, cond, t=torch.zeros(1))
                if training:
                    out.mean().backward()
            found[name] = (shape_of(network, 2), counter.flops, counter.kernels)
    return found


def parts_of(shape: Shape, ranks: int) -> tuple[int, int]:
    """Returns the division of the grid in powers of two with the smallest largest part."""
    return min(
        ((rows, ranks // rows) for rows in (2**k for k in range(ranks.bit_length()))),
        key=lambda parts: (largest(shape, parts), parts[1]),
    )


def largest(shape: Shape, parts: tuple[int, int]) -> int:
    return math.prod(-(-extent // part) for extent, part in zip(shape.grid, parts, strict=True))


def predict(shape: Shape, flops: int, kernels: int, ranks: int, training: bool) -> dict[str, float]:
    """Returns the seconds of every term of a step; nothing overlaps."""
    cluster = Cluster()
    between = int(ranks > cluster.node)
    parts = parts_of(shape, ranks)
    tokens = math.prod(shape.grid)
    sends = communication(shape, parts, training=training)
    latency, stages = cluster.latency[between], math.log2(ranks)
    passes = 3 if training else 1
    return {
        "arithmetic": flops * largest(shape, parts) / tokens / cluster.rate,
        "reading weights": passes * 2 * shape.weights / cluster.memory,
        "kernels": kernels * cluster.kernel,
        "activations: latency": sends.hops * latency,
        "activations: bytes": sends.sent / cluster.link[between],
        "gradients of weights": sends.reduces * stages * latency + sends.reduced / cluster.reduce[between],
    }


def show_prediction() -> None:
    print(f"predicted: ATLAS on H100, batch 1, {Cluster()}")
    for training in (True, False):
        for name, (shape, flops, kernels) in full_size(training).items():
            rows = []
            for ranks in (2**k for k in range(10)):
                terms = predict(shape, flops, kernels, ranks, training)
                step = sum(terms.values())
                alone = step if ranks == 1 else alone  # noqa: F821  the first of the loop
                most = max(terms, key=terms.__getitem__)
                division = "x".join(map(str, parts_of(shape, ranks)))
                share = 100 * terms[most] / step
                rows.append((ranks, division, 1e3 * step, alone / step / ranks, f"{most} ({share:.0f} %)"))
            kind = "training step" if training else "forward pass"
            size = f"{shape.weights / 1e9:.2f} billion weights, {flops / 1e12:.0f} Tflop, {kernels} kernels"
            print(f"{name}, {kind}: {size}")
            common.table(["devices", "rows x columns", "ms", "efficiency", "largest term"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(common.machine() + "\n")
    found = points(repeats)
    show(found)
    show_model(found)
    check_formulas(found)
    show_prediction()


if __name__ == "__main__":
    main()
