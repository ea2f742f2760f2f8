"""Forecasts on a sharded grid are scored where they lie: three gloo ranks, uneven bands of latitude."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import xarray as xr
from numpy.typing import NDArray
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

import wx_eval
from shardtensor import ShardTensor, scatter_tensor

SIZES = [7, 4, 10]
LATITUDE, LONGITUDE = np.linspace(90, -90, sum(SIZES)), np.arange(0, 360, 10.0)
INIT, LEAD = np.datetime64("2021-03-01", "ns"), np.timedelta64(24, "h")
CHANNELS = ("t850", "tp")
METRICS = (*wx_eval.STANDARD_METRICS, wx_eval.RankHistogram(), wx_eval.EnergyScore())


def fields() -> tuple[torch.Tensor, NDArray[np.float32]]:
    """Members (M, C, H, W) and a truth (C, H, W) with a gap."""
    g = torch.Generator().manual_seed(3)
    values = torch.randn(6, 2, LATITUDE.size, LONGITUDE.size, generator=g)
    truth = torch.randn(2, LATITUDE.size, LONGITUDE.size, generator=g)
    values[:, 1], truth[1] = values[:, 1].clamp(min=0), truth[1].clamp(min=0)
    truth[0, 8, 3:9] = torch.nan
    return values, truth.numpy()


def history(truth: NDArray[np.float32], rows: slice) -> xr.DataArray:
    coords = {
        "time": [INIT + LEAD],
        "channel": list(CHANNELS),
        "latitude": LATITUDE[rows],
        "longitude": LONGITUDE,
    }
    return xr.DataArray(truth[None, :, rows], coords, ("time", "channel", "latitude", "longitude"))


def chunk(values: torch.Tensor) -> wx_eval.Chunk:
    return wx_eval.Chunk(init_time=INIT, lead_time=LEAD, channels=CHANNELS, values=values.numpy())


class Ranks:
    """wx_eval.Comm over a group of torch.distributed; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def sum(self, array: NDArray[np.float64], /) -> NDArray[np.float64]:
        total = torch.from_numpy(array.copy())
        dist.all_reduce(total)
        # Sums over rows, never fields: nothing has the size of a row of points.
        assert array.size < 40 * LATITUDE.size * len(wx_eval.STANDARD_METRICS) * len(CHANNELS)
        self.calls += 1
        return total.numpy()


def test_records_of_a_sharded_grid_are_those_of_one_process(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(tmp_path,), nprocs=len(SIZES))
    values, truth = fields()
    whole = wx_eval.evaluate([chunk(values)], history(truth, slice(None)), model="m", metrics=METRICS)
    for rank in range(len(SIZES)):
        assert wx_eval.Records.from_parquet(tmp_path / f"{rank}.parquet") == whole


def _rank(rank: int, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=len(SIZES))
    mesh = init_device_mesh("cpu", (len(SIZES),))
    values, truth = fields()
    sharded: ShardTensor = scatter_tensor(values, 0, mesh, [Shard(2)], sizes={0: SIZES})
    first, comm = sum(SIZES[:rank]), Ranks()
    records = wx_eval.evaluate(
        [chunk(sharded.to_local())],
        history(truth, slice(first, first + SIZES[rank])),
        model="m",
        metrics=METRICS,
        band=wx_eval.Band(first=first, total=LATITUDE.size, comm=comm),
    )
    records.to_parquet(out / f"{rank}.parquet")
    assert comm.calls <= 3
    dist.barrier()
    dist.destroy_process_group()
