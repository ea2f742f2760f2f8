"""Microseconds per call of a torch function on a plain tensor, on a ShardTensor and on a DTensor.

Run: OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 benchmarks/shard_dispatch.py
"""

import functools
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from shardtensor import ShardTensor

REPEATS, CALLS = 8, 200


def microseconds(call: Callable[[], object]) -> float:
    """Returns the best mean of CALLS calls."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, time.perf_counter() - start)
    return best / CALLS * 1e6


def cases(x: Any, weight: torch.Tensor, scale: torch.Tensor) -> dict[str, Callable[[], object]]:
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


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("domain",))
    torch.manual_seed(0)
    results: dict[str, list[float]] = {}
    for gradient in (False, True):
        x = torch.randn(8, 8)
        weight, scale = (torch.randn(*shape, requires_grad=gradient) for shape in ((8, 8), (8,)))
        sharded = ShardTensor.from_local(
            x.chunk(mesh.size())[mesh.get_local_rank()].clone(), mesh, [Shard(0)]
        )
        distributed: DTensor = distribute_tensor(x, mesh, [Shard(0)])
        everywhere = functools.partial(distribute_tensor, device_mesh=mesh, placements=[Replicate()])
        inputs = (
            (x, weight, scale),
            (sharded, weight, scale),
            (distributed, everywhere(weight), everywhere(scale)),
        )
        for tensor, *weights in inputs:
            tensor.requires_grad_(gradient)
            for name, call in cases(tensor, *weights).items():
                results.setdefault(f"{name}, grad" if gradient else name, []).append(microseconds(call))
    if dist.get_rank() == 0:
        threads = torch.get_num_threads()
        print(f"torch {torch.__version__}, {mesh.size()} ranks, {threads} thread(s), {platform.machine()}")
        print(f"{'microseconds per call':<24}{'plain':>10}{'ShardTensor':>14}{'DTensor':>10}")
        for name, (plain, ours, theirs) in results.items():
            print(f"{name:<24}{plain:>10.1f}{ours:>14.1f}{theirs:>10.1f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
