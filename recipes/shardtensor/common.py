"""What both examples share: the ranks, fields that every rank computes for itself, and the training loop."""

from __future__ import annotations

import argparse
import math
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard

import shardtensor as st

WAVES = 6


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--double", action="store_true", help="compute in float64")
    return parser.parse_args()


@contextmanager
def domain() -> Iterator[DeviceMesh]:
    """The ranks that torchrun started, or this process alone, as a mesh with the dimension "domain"."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", init_method="tcp://localhost:0", rank=0, world_size=1)
    yield init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("domain",))
    dist.barrier()  # a rank that leaves while another still talks to it ends in an abort
    dist.destroy_process_group()


def bands(shape: tuple[int, ...], mesh: DeviceMesh) -> st.ShardSpec:
    """Latitude bands of (N, C, H, W) that grow with the rank: uneven on purpose."""
    rows, ranks = shape[2], mesh.size()
    bounds = [rows * r * (r + 1) // (ranks * (ranks + 1)) for r in range(ranks + 1)]
    sizes = [bounds[r + 1] - bounds[r] for r in range(ranks)]
    return st.ShardSpec.create(mesh, [Shard(2)], shape, sizes)


def waves(spec: st.ShardSpec, seed: int) -> st.ShardTensor:
    """Sums of waves around the globe; each rank computes its own rows, as it would read them from a store."""
    amplitude = torch.randn(*spec.shape[:2], WAVES, generator=torch.Generator().manual_seed(seed))
    number = torch.arange(1, WAVES + 1)[:, None]
    rows, columns = (torch.arange(part.start, part.stop) for part in spec.local_slices()[2:])
    north = torch.cos(number * rows * (math.pi / (spec.shape[2] - 1)))
    east = torch.sin(number * columns * (2 * math.pi / spec.shape[3]))
    amplitude = amplitude.to(torch.get_default_dtype())
    return st.ShardTensor(torch.einsum("ncw,wi,wj->ncij", amplitude, north, east), spec)


def weighted_error(forecast: st.ShardTensor, truth: st.ShardTensor) -> st.ShardTensor:
    """Mean squared error with the area of each latitude as weight; the weights are a global tensor."""
    latitude = torch.linspace(-math.pi / 2, math.pi / 2, truth.shape[2])
    weight = latitude.cos() / latitude.cos().mean()
    error: st.ShardTensor = ((forecast - truth).square() * weight[:, None]).mean()
    return error


def train(net: nn.Module, loss_of: Callable[[], st.ShardTensor], mesh: DeviceMesh, steps: int) -> None:
    """Trains and prints, for every step, the loss, the bytes that the busiest rank sent, and its memory."""
    st.sync_module(net, mesh)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    for step in range(steps):
        with st.traffic() as seen:
            loss = loss_of()
            optimizer.zero_grad()
            with st.bucketed_gradients():
                loss.backward()
        optimizer.step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        most = Tensor([seen.sent / 1e3, peak])
        dist.all_reduce(most, dist.ReduceOp.MAX)
        if dist.get_rank() == 0:
            print(f"step {step}  loss {loss.item():.12f}  sent {most[0]:.1f} kB  memory {most[1]:.0f} MB")
