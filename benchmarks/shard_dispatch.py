"""Microseconds per call of a torch function on a plain tensor, a ShardTensor, a DTensor, and PhysicsNeMo's.

What a handler costs beyond the torch function: tensors have 8 x 8 elements and nothing communicates.
Starts its two ranks itself. Run:

    python benchmarks/shard_dispatch.py
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import shard_common as common
import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

REPEATS, CALLS = 8, 200
KINDS = ("plain", "ShardTensor", "DTensor", "PhysicsNeMo")


def microseconds(call: Callable[[], object]) -> float:
    """Returns the best mean of CALLS calls."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, time.perf_counter() - start)
    return best / CALLS * 1e6


def cases(x: Any, weight: Any, scale: Any) -> dict[str, Callable[[], object]]:
    """Returns the calls to time; no one of them communicates in its forward pass."""
    return {
        "x + x": lambda: x + x,
        "torch.add(x, x)": lambda: torch.add(x, x),
        "relu": lambda: torch.relu(x),
        "linear": lambda: F.linear(x, weight),
        "layer_norm": lambda: F.layer_norm(x, (8,), scale),
        "reshape": lambda: x.reshape(8, 2, 4),
        "transpose": lambda: x.transpose(0, 1),
        "shape": lambda: x.shape,
    }


def operands(mesh: DeviceMesh, gradient: bool) -> dict[str, tuple[Any, Any, Any]]:
    """Returns x (8, 8), sharded over its rows, and two weights, of every kind that is installed."""
    x = torch.randn(8, 8)
    weights = [torch.randn(*shape, requires_grad=gradient) for shape in ((8, 8), (8,))]
    everywhere = functools.partial(distribute_tensor, device_mesh=mesh, placements=[Replicate()])
    found: dict[str, tuple[Any, Any, Any]] = {
        "plain": (x, weights[0], weights[1]),
        "ShardTensor": (common.shard(x, mesh, 0), weights[0], weights[1]),
        "DTensor": (
            distribute_tensor(x, mesh, [Shard(0)]),
            everywhere(weights[0]),
            everywhere(weights[1]),
        ),
    }
    theirs = common.physicsnemo(x, mesh, 0)
    if theirs is not None:
        found["PhysicsNeMo"] = (theirs, weights[0], weights[1])
    return found


def measure(mesh: DeviceMesh) -> dict[tuple[str, str], float]:
    results = {}
    for gradient in (False, True):
        for kind, (x, *weights) in operands(mesh, gradient).items():
            x.requires_grad_(gradient)
            for name, call in cases(x, *weights).items():
                results[f"{name}, grad" if gradient else name, kind] = microseconds(call)
    return results


def main() -> None:
    found = common.on_ranks(measure, 2)[0]
    print(common.machine())
    if not any(kind == "PhysicsNeMo" for _, kind in found):
        print("physicsnemo can not be imported here: its column is left out")
    names = list(dict.fromkeys(name for name, _ in found))
    kinds = [kind for kind in KINDS if (names[0], kind) in found]
    rows = []
    for name in names:
        times = [found[name, kind] for kind in kinds]
        rows.append((name, *times, *(each - times[0] for each in times[1:])))
    common.table(["us per call", *kinds, *(f"{kind} - plain" for kind in kinds[1:])], rows)


if __name__ == "__main__":
    main()
