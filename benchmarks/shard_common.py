"""What the benchmarks of shardtensor share: processes on this machine, their time, tables."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard

import shardtensor as st

# glibc keeps what is freed, so that no tensor is paid for by page faults; set before a process starts.
NO_PAGE_FAULTS = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def on_ranks(
    worker: Callable[..., Any], ranks: int, *arguments: Any, environment: Mapping[str, str] | None = None
) -> list[Any]:
    """Runs worker(mesh, *arguments) on fresh processes of one thread; returns what they return, by rank.

    Args:
        worker: a function of a module that the processes can import.
        ranks: number of processes; their mesh has one dimension, "domain".
        arguments: pickled.
        environment: added to that of the processes.
    """
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, environment or {}):
        mp.spawn(_rank, (worker, ranks, folder, arguments), nprocs=ranks)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _rank(rank: int, worker: Callable[..., Any], ranks: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("domain",))
    result = worker(mesh, *arguments)
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of one process. Times of processes add up to those of a step.

    Attributes:
        cpu: of all threads: what the machine pays.
        compute: CPU time of the thread that computes; gloo's threads, which move bytes, are the rest.
        wall: from start to end, with the time lost to other processes.
    """

    cpu: float
    compute: float
    wall: float

    @property
    def moving(self) -> float:
        """CPU seconds of the threads that communicate."""
        return max(0.0, self.cpu - self.compute)


def spend(run: Callable[[], object]) -> Spent:
    """Runs a function on all ranks at once."""
    dist.barrier()
    cpu, compute, wall = time.process_time(), time.thread_time(), time.perf_counter()
    run()
    return Spent(time.process_time() - cpu, time.thread_time() - compute, time.perf_counter() - wall)


def least_cpu(runs: Sequence[Sequence[Spent]]) -> float:
    """Returns the CPU seconds of all ranks in the best repeat, of runs[rank][repeat]."""
    return min(sum(spent.cpu for spent in repeat) for repeat in zip(*runs, strict=True))


def least_wall(runs: Sequence[Sequence[Spent]]) -> float:
    """Returns the seconds from the start of a repeat to the end of its last rank, in the best repeat."""
    return min(max(spent.wall for spent in repeat) for repeat in zip(*runs, strict=True))


def shard(x: Tensor, mesh: DeviceMesh, dim: int) -> st.ShardTensor:
    """Returns x, the same on every rank, as a leaf sharded over a dimension in the sizes of torch.chunk."""
    spec = st.ShardSpec.create(mesh, [Shard(dim)], x.shape)
    local = x.detach()[spec.local_slices()].clone()
    return st.ShardTensor(local.requires_grad_(x.requires_grad), spec)


def physicsnemo(x: Tensor, mesh: DeviceMesh, dim: int) -> Any:
    """Returns the same as PhysicsNeMo's ShardTensor; None where it is not installed."""
    if importlib.util.find_spec("physicsnemo") is None:
        return None
    theirs = importlib.import_module("physicsnemo.domain_parallel")
    if not torch.cuda.is_available():
        theirs.register_custom_ops()  # which it does itself where there is CUDA
    parts = x.detach().chunk(mesh.size(), dim)
    return theirs.ShardTensor.from_local(
        parts[mesh.get_local_rank()].clone(),
        mesh,
        [Shard(dim)],
        sharding_shapes={0: [tuple(part.shape) for part in parts]},
    )


def machine() -> str:
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"torch {torch.__version__}, gloo, one thread per rank, {os.cpu_count()} cores {platform.machine()}, "
        f"load {load} (other jobs share the cores)"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table: text to the left, numbers to the right."""
    cells = [list(head), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    left = [all(isinstance(row[column], str) for row in rows) for column in range(len(head))]
    for cell_row in cells:
        print(
            "  ".join(
                cell.ljust(width) if text else cell.rjust(width)
                for cell, width, text in zip(cell_row, widths, left, strict=True)
            ).rstrip()
        )
    print(flush=True)


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 1e-2 and cell else f"{cell:,.{1 if abs(cell) >= 100 else 2}f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
