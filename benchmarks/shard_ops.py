"""What two ranks spend on one operation, forward and backward, against one process without shardtensor.

Four tables: CPU time with the allocator as it is, the same without page faults, redistribute against an
all_to_all_single written by hand, and peak memory. A large plain tensor is paid for by page faults, half of
it on each of two ranks often not: that flatters us, so the second table is the one to judge by. "its rows" is
torch on each rank's rows alone and one all_reduce of the gradients of weights: the least that two halves can
cost, without halos and global moments. Attention, seconds of arithmetic on small tensors, runs twice, in the
second way alone. DTensor leaves the gradients of weights as partial sums, whose reduction is not in its time;
ours are reduced. Both ranks run the plain program at the same time, so that all forms share the cores alike.
PhysicsNeMo takes part where it is installed beside. Starts its ranks itself. Run:

    python benchmarks/shard_ops.py [--repeats 20] [--only ops attention redistribute memory]
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
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
PARTS = ("ops", "attention", "redistribute", "memory")


@dataclass(frozen=True)
class Case:
    """An operation.

    Attributes:
        inputs: shape of each input; all are sharded. The result has that of the first.
        dim: the dimension that is sharded, of inputs and result.
        weights: shapes, on every rank.
        run: takes inputs and weights.
        bar: CPU time of all ranks over that of one process which we promise not to pass.
        long: takes seconds: has a table of its own.
    """

    inputs: tuple[tuple[int, ...], ...]
    dim: int
    weights: tuple[tuple[int, ...], ...]
    run: Callable[..., Any]
    bar: float
    long: bool = False


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
    "attention 8192 x 8 x 64": Case((TOKENS,) * 3, 2, (), attend("auto"), 1.05, True),
    "attention, ring": Case((TOKENS,) * 3, 2, (), attend("ring"), 1.05, True),
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
        whole: whether the result is that of the global tensors.
    """

    sharded: Callable[[Tensor], Any]
    weight: Callable[[Tensor], Any]
    whole: bool = True


def forms(mesh: DeviceMesh, dim: int) -> dict[str, Form]:
    def leaf(x: Any) -> Any:
        return x.detach().clone().requires_grad_()

    found = {
        "plain": Form(leaf, leaf),
        "its rows": Form(lambda x: leaf(common.shard(x, mesh, dim).local), leaf, whole=False),
        "ours": Form(lambda x: common.shard(x, mesh, dim).requires_grad_(), leaf),
        "DTensor": Form(
            lambda x: leaf(distribute_tensor(x, mesh, [Shard(dim)])),
            lambda w: leaf(distribute_tensor(w, mesh, [Replicate()])),
        ),
    }
    if importlib.util.find_spec("physicsnemo") is not None:
        found["PhysicsNeMo"] = Form(lambda x: leaf(common.physicsnemo(x, mesh, dim)), leaf)
    return found


@dataclass(frozen=True)
class Outcome:
    runs: tuple[Spent, ...]
    verdict: str


def measure(mesh: DeviceMesh, repeats: int, names: Sequence[str]) -> dict[tuple[str, str], Outcome]:
    """Runs cases in every form, repeats interleaved: a disturbance hits all."""
    results = {}
    for name in names:
        case = CASES[name]
        torch.manual_seed(0)
        inputs, weights = ([torch.randn(shape) for shape in shapes] for shapes in (case.inputs, case.weights))
        seed = torch.randn(case.inputs[0])
        steps: dict[str, Callable[[], list[Any]]] = {}
        runs: dict[str, list[Spent]] = {}
        verdicts, want = {}, list[Tensor]()
        for kind, form in forms(mesh, case.dim).items():
            if case.long and not form.whole:  # rows of an attention need the keys of others
                continue
            step, runs[kind], got = training_step(case, form, inputs, weights, seed), [], list[Any]()
            try:
                runs[kind].append(common.spend(lambda step=step, got=got: got.extend(step())))  # type: ignore[misc]
            except Exception as error:  # what another library raises is part of the table
                verdicts[kind] = type(error).__name__
                continue
            steps[kind], tensors = step, [whole(value) for value in got]
            want = want or tensors
            verdicts[kind] = verdict(tensors, want) if form.whole else "-"
        for _ in range(repeats - 1):
            for kind, step in steps.items():
                runs[kind].append(common.spend(step))
        results |= {(name, kind): Outcome(tuple(runs[kind]), verdicts[kind]) for kind in verdicts}
    return results


def training_step(
    case: Case, form: Form, inputs: list[Tensor], weights: list[Tensor], gradient: Tensor
) -> Callable[[], list[Any]]:
    """Returns a function that runs forward and backward; it returns the result and all gradients."""
    xs, ws = [form.sharded(x) for x in inputs], [form.weight(w) for w in weights]
    seed = form.sharded(gradient).detach()

    def step() -> list[Any]:
        for leaf in (*xs, *ws):
            (leaf.local if isinstance(leaf, st.ShardTensor) else leaf).grad = None
        out = case.run(*xs, *ws)
        out.backward(seed)
        if not form.whole and ws:
            dist.all_reduce(torch.cat([leaf.grad.view(-1) for leaf in ws]))
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


def compare(title: str, names: Sequence[str], repeats: int, environment: Mapping[str, str]) -> None:
    found = common.on_ranks(measure, RANKS, repeats, names, environment=environment)
    rows = []
    for name in names:
        case = CASES[name]
        alone = common.least_cpu([rank[name, "plain"].runs for rank in found]) / RANKS
        for kind in [kind for case_name, kind in found[0] if case_name == name]:
            runs = [rank[name, kind].runs for rank in found]
            words = {rank[name, kind].verdict for rank in found}
            word = max(words - {"right"}, default="right")
            bar = case.bar if kind == "ours" else None
            if not runs[0]:
                rows.append((name, kind, None, None, None, bar, word))
                continue
            total = alone if kind == "plain" else common.least_cpu(runs)
            wall = common.least_wall(runs)
            rows.append((name, kind, 1e3 * total, 1e3 * wall, total / alone, bar, word))
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
        for _ in range(repeats):
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
                (name, 1e3 * cpu[name], 1e3 * wall[name], *(x[name] / x["by hand"] for x in (cpu, wall)))
                for name in runs
            ],
        )


def conv_net() -> nn.Module:
    layers = [nn.Conv2d(3, 32, 3, padding=1)]
    for _ in range(4):
        layers += [nn.GroupNorm(4, 32), nn.GELU(), nn.Conv2d(32, 32, 3, padding=1)]  # type: ignore[list-item]
    return nn.Sequential(*layers)


class SelfAttention(nn.Module):
    """Projections and attention of (N, L, D)."""

    def __init__(self, method: str, width: int = 512, heads: int = 8) -> None:
        super().__init__()
        self.heads, self.attend = heads, attend(method)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(-2))


MEMORY: dict[str, tuple[tuple[int, ...], int, Callable[[], nn.Module]]] = {
    "5 convolutions of (1, 32, 256, 512)": ((1, 3, 256, 512), 2, conv_net),
    **{
        f"attention 4096 x 8 x 64, {method}": ((1, 4096, 512), 1, functools.partial(SelfAttention, method))
        for method in ("ulysses", "ring", "gather")
    },
}


def peak(run: Callable[[], object]) -> int:
    """Returns the most bytes of torch's CPU allocator that live at once within a run, counted exactly."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


def peaks(mesh: DeviceMesh) -> dict[str, tuple[int, int, int]]:
    """Returns for every net the bytes of its weights, the plain program's peak, and that of this rank."""
    results = {}
    for name, (shape, dim, make) in MEMORY.items():
        torch.manual_seed(0)
        net, x = make(), torch.randn(shape)

        def step(x: Any, net: nn.Module = net) -> None:
            x = x.detach().clone().requires_grad_()  # within what is counted
            net(x).square().mean().backward()
            net.zero_grad()

        weights = sum(weight.numel() * weight.element_size() for weight in net.parameters())
        plain = peak(functools.partial(step, x)) if mesh.get_local_rank() == 0 else 0
        results[name] = (weights, plain, peak(functools.partial(step, common.shard(x, mesh, dim))))
    return results


def compare_memory() -> None:
    rows = []
    for ranks in (2, 4):
        found = common.on_ranks(peaks, ranks, environment={"KINETO_LOG_LEVEL": "5"})
        for name in MEMORY:
            weights, plain, _ = found[0][name]
            ours = max(rank[name][2] for rank in found)
            sizes = (plain / 2**20, ours / 2**20, weights / 2**20)
            rows.append((name, ranks, *sizes, ranks * ours / plain))
    print("peak memory of a rank in a training step, MiB of live tensors, the weights themselves apart")
    common.table(["net", "ranks", "plain", "ours", "gradients of weights", "ours x ranks / plain"], rows)


ALLOCATORS: dict[str, Mapping[str, str]] = {
    "allocator as it is": {},
    "without page faults": common.NO_PAGE_FAULTS,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(PARTS))
    options = parser.parse_args()
    print(common.machine() + "\n")
    short, long = ([name for name, case in CASES.items() if case.long == kind] for kind in (False, True))
    if "ops" in options.only:
        for title, environment in ALLOCATORS.items():
            compare(title, short, options.repeats, environment)
    if "attention" in options.only:
        compare("without page faults", long, 2, common.NO_PAGE_FAULTS)
    if "redistribute" in options.only:
        compare_redistribute(options.repeats)
    if "memory" in options.only:
        compare_memory()


if __name__ == "__main__":
    main()
