"""Data: simulate the planet, convert it to training stores, run the two reference ensembles."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from recipes.forecaster.settings import Settings
from wx_data import Statistics, Store, compute_statistics, convert, open_source
from wx_data.nature import NatureConfig, ensemble, load_states, save_states, spin_up
from wx_data.nature import run as nature_run

PERFECT, OPERATIONAL = "perfect model", "operational"


def data(settings: Settings, run: Path, *, progress: bool = True) -> None:
    """Fill `run` with `nature.zarr`, `train.store`, `test.store` and the ensembles; what is there is kept."""
    if not _shipped(settings):
        in_parallel(settings.threads, spin_up_years, settings, run, progress)
    in_parallel(settings.threads, simulate, settings, run, progress)
    source = open_source(run / "nature.zarr")
    first_test = settings.periods[-1][0]
    for name, chosen in (("train", source.times < first_test), ("test", source.times >= first_test)):
        convert(
            source,
            run / f"{name}.store",
            times=source.times[chosen],
            channels=settings.nature.channels,
            progress=progress,
        )
    store = Store(run / "train.store")
    try:
        Statistics.load(store.path).residual(settings.step_hours)
    except (FileNotFoundError, KeyError):
        compute_statistics(store, leads=(settings.step_hours,))
    in_parallel(settings.threads, simulate_ensembles, settings, run, progress)


def spin_up_years(
    settings: Settings, run: Path, part: tuple[int, int], progress: bool, *, days: int = 366
) -> None:
    """One process's share of the atmospheres that the years start from; the default planet's are shipped."""
    starts = np.array([start for start, _ in settings.periods])
    mine = range(part[0], len(starts), part[1])
    if not mine:
        return
    states = spin_up(
        settings.nature,
        mine,
        days=days,
        seed=settings.seed,
        device=settings.device,
        checkpoint=run / f"spin_up-{part[0]}-of-{part[1]}.npz",
        progress=progress,
    )
    save_states(run / "spin_up", states.at(starts[list(mine)]))


def simulate(settings: Settings, run: Path, part: tuple[int, int], progress: bool) -> None:
    """One process's share of the years, and the full states from which ensembles start."""
    nature_run(
        settings.nature,
        run / "nature.zarr",
        settings.periods,
        states=None if _shipped(settings) else load_states(run / "spin_up"),
        restart_times=np.concatenate([settings.init_times, _pool_times(settings)]),
        part=part,
        device=settings.device,
        progress=progress,
    )


def simulate_ensembles(settings: Settings, run: Path, part: tuple[int, int], progress: bool) -> None:
    """One process's share of the perfect-model and the operational ensemble."""
    folder = run / "nature.zarr.restarts"
    states, pool = load_states(folder, settings.init_times), load_states(folder, _pool_times(settings))
    for name, config, size in ensembles(settings):
        ensemble(
            config,
            ensemble_path(run, name),
            states,
            members=settings.members,
            days=settings.forecast_days,
            seed=settings.seed,
            perturbation=size,
            pool=pool,
            truth=settings.nature,
            part=part,
            device=settings.device,
            progress=progress,
        )


def ensembles(settings: Settings) -> list[tuple[str, NatureConfig, float]]:
    """Name, model and size of the initial error of the reference ensembles."""
    return [
        (PERFECT, settings.nature, settings.perturbation),
        (OPERATIONAL, settings.operational, settings.analysis_error),
    ]


def ensemble_path(run: Path, name: str) -> Path:
    """Where an ensemble is written."""
    return run / f"{name.replace(' ', '_')}.zarr"


def _shipped(settings: Settings) -> bool:
    default = NatureConfig()
    return (settings.nature.truncation, settings.nature.levels) == (default.truncation, default.levels)


def _pool_times(settings: Settings) -> np.ndarray:
    """The calendar days of the forecasts in the training years: differences there perturb the ensembles."""
    since = settings.init_times - settings.periods[-1][0]
    starts = np.array([start for start, _ in settings.periods[:-1]])
    return np.sort((starts[:, None] + since[None, :]).ravel())


def in_parallel(
    parts: int,
    work: Callable[[Settings, Path, tuple[int, int], bool], None],
    settings: Settings,
    run: Path,
    progress: bool,
) -> None:
    """Run `work` once, in processes of one thread each: faster here than one process with all threads.

    Raises:
        RuntimeError: a part failed; its own error stands above.
    """
    done = run / f"{work.__name__}.done"
    if done.exists():
        return
    if settings.device != "cpu":
        parts = 1
    context, parent = multiprocessing.get_context("spawn"), os.getpid()
    processes = [
        context.Process(target=_part, args=(work, settings, run, (i, parts), progress and i == 0, parent))
        for i in range(parts)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [i for i, process in enumerate(processes) if process.exitcode]
    if failed:
        raise RuntimeError(f"part {failed} of {parts} of {work.__name__} failed; its error stands above")
    done.touch()


def _part(
    work: Callable[[Settings, Path, tuple[int, int], bool], None],
    settings: Settings,
    run: Path,
    part: tuple[int, int],
    progress: bool,
    parent: int,
) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    work(settings, run, part, progress)


def _end_with(parent: int) -> None:
    """A parent that was killed cannot stop its children, and a rerun must not find them still writing."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
