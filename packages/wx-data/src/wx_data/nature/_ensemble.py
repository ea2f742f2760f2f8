"""Ensemble forecasts with the nature model: the limit of predictability, or a physical centre."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from tqdm import tqdm

from wx_data.nature import _dataset
from wx_data.nature._config import NatureConfig
from wx_data.nature._model import NatureModel
from wx_data.nature._progress import Progress
from wx_data.nature._restart import monthly_states
from wx_data.nature._run import digest
from wx_data.nature._state import State
from wx_data.nature._transfer import perturb, transfer

_RECORDS_PER_DAY = 4
_ROWS = 64  # members of all init times that are integrated together


def ensemble(
    config: NatureConfig,
    out: Path | str,
    states: State,
    *,
    members: int,
    days: int,
    seed: int,
    perturbation: float = 0.1,
    pool: State | None = None,
    truth: NatureConfig | None = None,
    window_days: float = 20.0,
    part: tuple[int, int] = (0, 1),
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Path:
    """Forecast from true states with perturbed starts and write one Zarr data set.

    With the configuration of the truth this is a perfect-model ensemble, the limit of predictability; with
    `operational` of it, the stand-in for a physical forecasting centre. Dimensions are (init_time, lead_time,
    member, level, latitude, longitude); lead_time counts hours from 6. Resumes like `run`.

    Args:
        config: the forecast model.
        out: the data set to write.
        states: true states, one per init time, in order of time (`run` keeps them at ``restart_times``).
        members: ensemble size.
        days: length of the forecasts.
        seed: seed of the perturbations.
        perturbation: size of the analysis error and of the perturbations, as a fraction of the climatological
            standard deviation.
        pool: states of the truth's configuration whose differences make the perturbations, see `perturb`;
            the more years the better. The default carries the shipped states through the year to the months
            wanted, at most 6000 member-days of work.
        truth: configuration of ``states`` and ``pool``; the default is ``config``.
        window_days: see `perturb`.
        part: (i, n): this process takes init times i, i + n, ...
        device: where the model runs.
        progress: show a bar of simulated days.

    Raises:
        ValueError: arguments do not fit each other, or ``out`` holds another ensemble.
        OSError: the disk is full; the call can be repeated and resumes.
    """
    out, truth = Path(out), truth or config
    _refuse(states, members, days, perturbation)
    model = NatureModel(config, device)
    identity = {
        "kind": "ensemble",
        "config": asdict(config),
        "truth": asdict(truth),
        "states": digest(states),
        "pool": "shipped" if pool is None else digest(pool),
        "sizes": {"members": members, "days": days, "window_days": window_days},
        "perturbation": perturbation,
        "seed": seed,
    }

    def create() -> None:
        leads = np.arange(1, _RECORDS_PER_DAY * days + 1) * 6
        leading: dict[str, _dataset.Coordinate] = {
            "init_time": _dataset.time_coordinate(states.valid_time, "forecast_reference_time"),
            "lead_time": (leads.astype(np.int64), {"units": "hours", "standard_name": "forecast_period"}),
            "member": (np.arange(members, dtype=np.int64), {"standard_name": "realization"}),
        }
        chunks = {"init_time": 1, "lead_time": _RECORDS_PER_DAY}
        _dataset.create(out, model, leading, chunks, identity)

    work = Progress(path=out, part=part[0], parts=part[1])
    with _dataset.explain_full_disk(out):
        group = work.open(identity, create)
        if group is None:
            return out
        starts = _Starts(states, pool, truth, config, members, seed, perturbation, window_days)
        mine = range(states.members)[part[0] :: part[1]]
        _forecast(model, group, starts, mine, days, work, progress)
        work.finish()
    return out


def _refuse(states: State, members: int, days: int, perturbation: float) -> None:
    if members < 1 or days < 1 or perturbation < 0:
        raise ValueError(
            f"need members >= 1, days >= 1 and perturbation >= 0, got {members}, {days} and {perturbation}"
        )
    if (np.diff(states.time) <= 0).any() or (states.time % 21600).any():
        raise ValueError("states must lie in order of time, each on its own multiple of six hours")


@dataclass(frozen=True)
class _Starts:
    """Perturbed analyses of the forecast model."""

    states: State
    pool: State | None
    truth: NatureConfig
    config: NatureConfig
    members: int
    seed: int
    size: float
    window_days: float

    def of(self, inits: list[int]) -> State:
        analyses = []
        for init in inits:
            centre = self.states.select([init])
            analyses.append(
                perturb(
                    centre,
                    self._pool(centre),
                    size=self.size,
                    seed=self.seed,
                    members=self.members,
                    window_days=self.window_days,
                )
            )
        return transfer(State.stack(analyses), self.truth, self.config)

    def _pool(self, centre: State) -> State:
        if self.pool is not None or not self.size:
            return self.pool if self.pool is not None else centre
        # One month only: the draw must not depend on which other init times are asked for.
        month = _months(centre)[0]
        return self._monthly.select(np.flatnonzero(_months(self._monthly) == month).tolist())

    @cached_property
    def _monthly(self) -> State:
        return monthly_states(self.truth, _months(self.states).tolist())


def _months(state: State) -> NDArray[np.int64]:
    return state.valid_time.astype("datetime64[M]").astype(np.int64) % 12 + 1


def _forecast(
    model: NatureModel,
    group: zarr.Group,
    starts: _Starts,
    mine: Sequence[int],
    days: int,
    work: Progress,
    progress: bool,
) -> None:
    """Day by day through batches of whole init times; one checkpoint per written day."""
    width = max(1, _ROWS // starts.members)
    batches = [list(mine[first : first + width]) for first in range(0, len(mine), width)]
    following, state = work.load() or (0, None)
    total = len(batches) * days
    bar = tqdm(total=total, initial=following, unit="day", disable=not progress, desc=work.path.name)
    with bar:
        for piece in range(following, total):
            inits, day = batches[piece // days], piece % days
            if day == 0 or state is None:
                state = starts.of(inits)
            state = _one_day(model, group, state, inits, day)
            work.save(piece + 1, state)
            bar.update()


def _one_day(model: NatureModel, group: zarr.Group, state: State, inits: list[int], day: int) -> State:
    fields = []
    for _ in range(_RECORDS_PER_DAY):
        state = model.advance(state, 6)
        fields.append(model.output(state).cpu().numpy())
    block = np.stack(fields).reshape(_RECORDS_PER_DAY, len(inits), -1, *fields[0].shape[1:])
    leads = slice(day * _RECORDS_PER_DAY, (day + 1) * _RECORDS_PER_DAY)
    for row, init in enumerate(inits):
        _dataset.write(group, (init, leads), block[:, row], len(model.config.pressure_levels))
    return state
