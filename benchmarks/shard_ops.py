"""What two ranks spend on one operation, forward and backward, against one process without shardtensor.

Four tables: CPU time with the allocator as it is, the same without page faults, redistribute against an
all_to_all_single written by hand, and peak memory. A large plain tensor is paid for by page faults, half of it
on each of two ranks often not: that flatters us, so the second table is the one to judge by. Both ranks run
the plain program at the same time, so that all forms share the cores alike. Starts its ranks itself. Run:

    python benchmarks/shard_ops.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import shard_common as common
import torch
import torch.distributed as dist
import torch.nn.functional as F
from shard_common import Spent
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.profiler import ProfilerActivity, profile

import shardtensor as st

TOLERANCE = 1e-4  # of the largest value; sums of float32 in another order
BLOCK = (8, 1024, 16, 64)  # what redistribute moves: batch, rows, heads, channels
RANKS = 2


@dataclass(frozen=True)
class Case:
    """An operation.

    Attributes:
        inputs: shape of each input; all are sharded.
        dim: the dimension that is sharded, of inputs and result.
        weights: shapes, on every rank.
        run: takes inputs and weights.
        bar: CPU time of all ranks over that of one process which we promise not to pass.
        share: of the repeats; attention takes seconds.
    """

    inputs: tuple[tuple[int, ...], ...]
    dim: int
    weights: tuple[tuple[int, ...], ...]
    run: Callable[..., Any]
    bar: float
    share: float = 1.0


def attend(method: Any) -> Callable[..., Any]:
    def run(q: Any, k: Any, v: Any) -> Any:
        with st.attention(method):
            return F.scaled_dot_product_attention(q, k, v)

    return run


IMAGE = (1, 64, 256, 512)
TOKENS = (1, 8, 8192, 64)
CASES = {
    "conv2d 3x3 (1, 64, 256, 512)": Case(
        (IMAGE,), 2, ((64, 64, 3, 3), (64,)), lambda x, w, b: F.conv2d(x, w, b, padding=1), 1.02
    ),
    "attention 8192 x 8 x 64": Case((TOKENS,) * 3, 2, (), attend("auto"), 1.05, 0.4),
    "attention, ring": Case((TOKENS,) * 3, 2, (), attend("ring"), 1.05, 0.4),
    "layer_norm 8192 x 1024": Case(
        ((8192, 1024),), 0, ((1024,), (1024,)), lambda x, w, b: F.layer_norm(x, (1024,), w, b), 1.05
    ),
    "group_norm 8, (1, 64, 256, 512)": Case(
        (IMAGE,), 2, ((64,), (64,)), lambda x, w, b: F.group_norm(x, 8, w, b), 1.15
    ),
}


@dataclass(frozen=True)
class Form:
    """How a case is run.

    Attributes:
        sharded: makes an input or a seed out of a plain tensor.
        weight: makes a weight.
        part: this rank's share of a gradient or result, as slices of the plain one; None compares the whole.
    """

    sharded: Callable[[Tensor], Any]
    weight: Callable[[Tensor], Any]


def forms(mesh: DeviceMesh, dim: int) -> dict[str, Form]:
    def leaf(x: Any) -> Any:
        return x.detach().clone().requires_grad_()

    return {
        "plain": Form(leaf, leaf),
        "ours": Form(lambda x: common.shard(x, mesh, dim).requires_grad_(), leaf),
        "DTensor": Form(
            lambda x: leaf(distribute_tensor(x, mesh, [Shard(dim)])),
            lambda w: leaf(distribute_tensor(w, mesh, [Replicate()])),
        ),
    }


@dataclass(frozen=True)
class Outcome:
    runs: tuple[Spent, ...]
    verdict: str


def measure(mesh: DeviceMesh, repeats: int) -> dict[tuple[str, str], Outcome]:
    """Runs every case in every form, repeats interleaved: a disturbance hits all."""
    results = {}
    for name, case in CASES.items():
        torch.manual_seed(0)
        inputs, weights = ([torch.randn(shape) for shape in shapes] for shapes in (case.inputs, case.weights))
        steps, verdicts = {}, {}
        want: list[Tensor] = []
        for kind, form in forms(mesh, case.dim).items():
            if kind == "DTensor" and name == "attention, ring":
                continue
            step = training_step(case, form, inputs, weights)
            try:
                got = [whole(value) for value in step()]
            except Exception as error:  # what another library raises is part of the table
                verdicts[kind] = f"{type(error).__name__}"
                continue
            want = want or got
            verdicts[kind] = verdict(got, want)
            steps[kind] = step
        runs: dict[str, list[Spent]] = {kind: [] for kind in verdicts}
        for _ in range(max(1, round(repeats * case.share))):
            for kind, step in steps.items():
                runs[kind].append(common.spend(step))
        results |= {(name, kind): Outcome(tuple(runs[kind]), verdicts[kind]) for kind in verdicts}
    return results


def training_step(
    case: Case, form: Form, inputs: list[Tensor], weights: list[Tensor]
) -> Callable[[], list[Any]]:
    """Returns a function that runs forward and backward; it returns the result and all gradients."""
    xs, ws = [form.sharded(x) for x in inputs], [form.weight(w) for w in weights]
    with torch.no_grad():
        seed = form.sharded(torch.randn(case.run(*inputs, *weights).shape)).detach()

    def step() -> list[Any]:
        for leaf in (*xs, *ws):
            (leaf.local if isinstance(leaf, st.ShardTensor) else leaf).grad = None
        out = case.run(*xs, *ws)
        out.backward(seed)
        return [out.detach(), *(leaf.grad for leaf in (*xs, *ws))]

    return step


def whole(value: Any) -> Tensor:
    full: Tensor = value.full_tensor() if isinstance(value, DTensor | st.ShardTensor) else value
    return full


def verdict(got: list[Tensor], want: list[Tensor]) -> str:
    names = ["value", *(f"gradient {i}" for i in range(len(want) - 1))]
    for name, ours, theirs in zip(names, got, want, strict=True):
        if ours.shape != theirs.shape:
            return f"wrong {name}: shape {tuple(ours.shape)}"
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        if not error < TOLERANCE:
            return f"wrong {name}: error {error:.1g}"
    return "right"


def compare(title: str, repeats: int, environment: Mapping[str, str]) -> None:
    found = common.on_ranks(measure, RANKS, repeats, environment=environment)
    rows = []
    for name, case in CASES.items():
        plain = [rank[name, "plain"].runs for rank in found]
        alone = min(sum(spent.cpu for spent in repeat) for repeat in zip(*plain, strict=True)) / RANKS
        rows.append((name, "plain", 1e3 * alone, 1e3 * common.least_wall(plain), None, None, "right"))
        for kind in ("ours", "DTensor"):
            if (name, kind) not in found[0]:
                continue
            runs = [rank[name, kind].runs for rank in found]
            word = next((r[name, kind].verdict for r in found if r[name, kind].verdict != "right"), "right")
            bar = case.bar if kind == "ours" else None
            if runs[0]:
                total = common.least_cpu(runs)
                rows.append(
                    (name, kind, 1e3 * total, 1e3 * common.least_wall(runs), total / alone, bar, word)
                )
            else:
                rows.append((name, kind, None, None, None, bar, word))
    print(f"{title}: forward + backward, {RANKS} ranks, ms of CPU of all ranks, best of {repeats}")
    common.table(["operation", "form", "CPU ms", "wall ms", "over plain", "bar", "value and gradients"], rows)


def round_trips(mesh: DeviceMesh, repeats: int) -> dict[str, list[Spent]]:
    """Shard(1) -> Shard(2) -> Shard(1), by redistribute and by hand."""
    ranks, group = mesh.size(), mesh.get_group()
    x = common.shard(torch.randn(BLOCK), mesh, 1)
    batch, rows, heads, width = BLOCK
    few, some = rows // ranks, heads // ranks

    def there(local: Tensor) -> Tensor:
        sent = local.view(batch, few, ranks, some, width).permute(2, 0, 1, 3, 4).contiguous()
        arrived = torch.empty_like(sent)
        dist.all_to_all_single(arrived, sent, group=group)
        return arrived.transpose(0, 1).reshape(batch, rows, some, width)

    def back(local: Tensor) -> Tensor:
        sent = local.view(batch, ranks, few, some, width).transpose(0, 1).contiguous()
        arrived = torch.empty_like(sent)
        dist.all_to_all_single(arrived, sent, group=group)
        return arrived.permute(1, 2, 0, 3, 4).reshape(batch, few, heads, width)

    ways: dict[str, Callable[[], Tensor]] = {
        "by hand": lambda: back(there(x.local)),
        "ours": lambda: x.redistribute([Shard(2)]).redistribute([Shard(1)]).local,
    }
    distributed = distribute_tensor(x.full_tensor(), mesh, [Shard(1)])
    ways["DTensor"] = lambda: distributed.redistribute(mesh, [Shard(2)]).redistribute(mesh, [Shard(1)])
    for run in ways.values():
        got = run()
        assert torch.equal(got.to_local() if isinstance(got, DTensor) else got, x.local)
    runs: dict[str, list[Spent]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(4 * repeats):
            for name, run in ways.items():
                runs[name].append(common.spend(run))
    return runs


def compare_redistribute(repeats: int) -> None:
    print(f"redistribute Shard(1) -> Shard(2) -> Shard(1) of {BLOCK} float32, {RANKS} ranks (bar 1.15)")
    for title, environment in ALLOCATORS.items():
        found = common.on_ranks(round_trips, RANKS, repeats, environment=environment)
        runs = {name: [rank[name] for rank in found] for name in found[0]}
        cpu = {name: common.least_cpu(each) for name, each in runs.items()}
        wall = {name: common.least_wall(each) for name, each in runs.items()}
        print(title)
        common.table(
            ["way", "CPU ms", "wall ms", "CPU over by hand", "wall over by hand"],
            [
                (name, 1e3 * cpu[name], 1e3 * wall[name], cpu[name] / cpu["by hand"], wall[name] / wall["by hand"])
                for name in runs
            ],
        )


def conv_net() -> nn.Module:
    layers = [nn.Conv2d(3, 32, 3, padding=1)]
    for _ in range(4):
        layers += [nn.GroupNorm(4, 32), nn.GELU(), nn.Conv2d(32, 32, 3, padding=1)]  # type: ignore[list-item]
    return nn.Sequential(*layers)


MEMORY: dict[str, tuple[tuple[int, ...], int, Callable[[], Callable[..., Any]]]] = {
    "5 convolutions, (1, 3, 256, 512)": ((1, 3, 256, 512), 2, conv_net),
    "attention, ulysses, 2048 x 8 x 64": ((1, 8, 2048, 64), 2, lambda: self_attention("ulysses")),
    "attention, ring, 2048 x 8 x 64": ((1, 8, 2048, 64), 2, lambda: self_attention("ring")),
    "attention, gather, 2048 x 8 x 64": ((1, 8, 2048, 64), 2, lambda: self_attention("gather")),
}


def self_attention(method: Any) -> Callable[..., Any]:
    run = attend(method)
    return lambda x: run(x, x, x)


def peak(run: Callable[[], object]) -> int:
    """Returns the most bytes of torch's CPU allocator that live at once within a run, counted exactly."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    steps = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(accumulate(steps))


def peaks(mesh: DeviceMesh) -> dict[str, tuple[int, int]]:
    """Returns for every net the peak of the plain program and of this rank."""
    results = {}
    for name, (shape, dim, make) in MEMORY.items():
        torch.manual_seed(0)
        net, x = make(), torch.randn(shape)

        def step(x: Any, net: Callable[..., Any] = net) -> None:
            x = x.detach().clone().requires_grad_()  # within what is counted
            net(x).square().mean().backward()
            if isinstance(net, nn.Module):
                net.zero_grad()

        ours = common.shard(x, mesh, dim)
        # Every rank runs both, the plain program too: only the second communicates.
        results[name] = (peak(lambda x=x: step(x)), peak(lambda ours=ours: step(ours)))  # type: ignore[misc]
    return results


def compare_memory() -> None:
    rows = []
    for ranks in (2, 4):
        found = common.on_ranks(peaks, ranks)
        for name in MEMORY:
            plain, ours = found[0][name][0], max(rank[name][1] for rank in found)
            rows.append((name, ranks, plain / 2**20, ours / 2**20, ranks * ours / plain))
    print("peak memory of a rank in a training step, MiB of live tensors")
    common.table(["net", "ranks", "plain", "ours", "ours x ranks / plain"], rows)


ALLOCATORS: dict[str, Mapping[str, str]] = {
    "allocator as it is": {},
    "without page faults": common.NO_PAGE_FAULTS,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(common.machine() + "\n")
    for title, environment in ALLOCATORS.items():
        compare(title, repeats, environment)
    compare_redistribute(repeats)
    compare_memory()


if __name__ == "__main__":
    main()
