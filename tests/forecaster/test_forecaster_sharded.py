"""Two gloo ranks, the grid in two bands of latitude: the forecast of one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from recipes.forecaster.assemble import forecaster
from recipes.forecaster.parallelize import read_rows, row_sizes, sharded_forecaster
from recipes.forecaster.settings import Settings
from recipes.forecaster.train import load
from wx_data import Store
from wx_estimators import Key

MEMBERS = 2


def test_bands_hold_whole_patches_and_every_row() -> None:
    assert row_sizes(33, 2, 2) == [16, 17]
    assert row_sizes(721, 4, 3) == [240, 240, 241]
    assert row_sizes(5, 2, 4) == [0, 2, 2, 1]


def test_two_ranks_give_the_forecast_of_one(settings: Settings, run: Path, tmp_path: Path) -> None:
    mp.spawn(_rank, args=(2, settings, run, tmp_path), nprocs=2)
    parts, trained = load(settings, run)
    truth, inits = Store(run / "test.store"), _inits(settings)
    previous, current = (
        parts.space.encode(torch.from_numpy(truth.read(times).values)).repeat_interleave(MEMBERS, 0)
        for times in _analyses(settings)
    )
    model = forecaster(parts, trained)
    with torch.inference_mode():
        start = model.start(previous, current, inits.repeat(MEMBERS))
        states = list(model.rollout(start, _key(settings), steps=2))
    for step, state in enumerate(states):
        for rank in range(2):
            found = torch.load(tmp_path / f"{rank}-{step}.pt", weights_only=True)
            difference = (found - state.current).abs().max() / state.current.abs().max()
            assert difference < 1e-5, f"rank {rank}, step {step}: {difference:.1e}"


def _inits(settings: Settings) -> np.ndarray:
    return settings.init_times[:2]


def _analyses(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    return _inits(settings) - np.timedelta64(settings.step_hours, "h"), _inits(settings)


def _key(settings: Settings) -> Key:
    return Key.from_times(settings.seed, _inits(settings), range(MEMBERS)).rows()


def _rank(rank: int, world: int, settings: Settings, run: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    parts, trained = load(settings, run)
    truth = Store(run / "test.store")
    previous, current = (
        read_rows(truth, times, parts, mesh, members=MEMBERS) for times in _analyses(settings)
    )
    model = sharded_forecaster(parts, trained, mesh)
    with torch.inference_mode():
        start = model.start(previous, current, _inits(settings).repeat(MEMBERS))
        for step, state in enumerate(model.rollout(start, _key(settings), steps=2)):
            assert state.current.to_local().shape[2] == row_sizes(33, settings.downsampling[0], world)[rank]
            torch.save(state.current.full_tensor(), out / f"{rank}-{step}.pt")
    # A rank that leaves while another still talks to it ends in an abort.
    dist.barrier()
    dist.destroy_process_group()
