"""A nature run over several calendar periods at once, as one CF data set."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from wx_data.nature import _dataset
from wx_data.nature._config import NatureConfig
from wx_data.nature._model import NatureModel
from wx_data.nature._progress import Progress
from wx_data.nature._restart import restart_states, save_states
from wx_data.nature._state import State, pack, seconds_since_1970

_SIX_HOURS = np.timedelta64(6, "h")
_LEAD_IN_DAYS = 1
_LONGEST_CHUNK = 96


@dataclass(frozen=True)
class _Plan:
    """Six-hourly records of equally long periods, laid one after the other on one time axis."""

    starts: NDArray[np.datetime64]
    records: int

    @property
    def times(self) -> NDArray[np.datetime64]:
        offsets = np.arange(self.records) * _SIX_HOURS
        return (self.starts[:, None] + offsets[None, :]).ravel()

    @property
    def chunk(self) -> int:
        """The longest chunk of time that never holds records of two periods."""
        return max(n for n in range(1, _LONGEST_CHUNK + 1) if self.records % n == 0)


def run(
    config: NatureConfig,
    out: Path | str,
    periods: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    states: State | None = None,
    restart_times: ArrayLike = (),
    part: tuple[int, int] = (0, 1),
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Path:
    """Simulate all periods as one batch, one independent atmosphere each, and write one Zarr data set.

    A killed run continues from its last chunk when the same call is repeated, with the same bits. Several
    processes may share the members: process i of n passes ``part=(i, n)``; the result does not depend on n.

    Args:
        config: the model.
        out: the data set to write. States at ``restart_times`` go to the folder ``<out>.restarts``.
        periods: (start, stop) per member, six-hourly from start to before stop, all equally long, in order of
            time and apart from each other, so that the time axis has gaps but no repetition.
        states: spun-up atmospheres valid on some 1 January 00 UTC, one per period. The default takes shipped
            state number (year of start mod 16), so that years less than 16 apart are independent.
        restart_times: records at which the full state is kept, for `ensemble` and `load_states`.
        part: (i, n), see above.
        device: where the model runs.
        progress: show a bar of simulated days.

    Returns:
        ``out`` as a path.

    Raises:
        ValueError: periods are malformed, too few states, or ``out`` holds another run.
        OSError: the disk is full; the run can be resumed.
    """
    plan, out = _plan(periods), Path(out)
    kept = _kept(restart_times, plan)
    model = NatureModel(config, device)
    states = _start(config, plan, states)
    identity = {
        "kind": "run",
        "config": asdict(config),
        "starts": [str(start) for start in plan.starts],
        "records": plan.records,
        "states": digest(states),
    }
    work = Progress(path=out, part=part[0], parts=part[1])
    mine = list(range(len(plan.starts)))[part[0] :: part[1]]

    def create() -> None:
        leading = {"time": _dataset.time_coordinate(plan.times, "time")}
        _dataset.create(out, model, leading, {"time": plan.chunk}, identity)

    with _dataset.explain_full_disk(out):
        group = work.open(identity, create)
        if group is None:
            return out
        if mine:
            _simulate(model, group, plan, mine, states, kept, work, progress)
        work.finish()
    return out


def digest(state: State) -> str:
    """A short fingerprint of the coefficients and dates of a state."""
    content = hashlib.blake2b(pack(state.now).tobytes(), digest_size=8)
    content.update(np.asarray(state.time).tobytes())
    return content.hexdigest()


def _plan(periods: Sequence[tuple[ArrayLike, ArrayLike]]) -> _Plan:
    if not len(periods):
        raise ValueError("periods is empty; give at least one (start, stop)")
    edges = np.asarray([[np.datetime64(_date(edge), "s") for edge in period] for period in periods])
    lengths = edges[:, 1] - edges[:, 0]
    if (lengths != lengths[0]).any():
        days = (lengths / np.timedelta64(1, "D")).tolist()
        raise ValueError(
            f"all periods must be equally long, got {days} days; cut the longer ones (29 February?)"
        )
    if (
        lengths[0] <= np.timedelta64(0, "s")
        or lengths[0] % _SIX_HOURS
        or (seconds_since_1970(edges) % 21600).any()
    ):
        raise ValueError(
            "every period must start and stop on a multiple of six hours and have a positive length"
        )
    if (edges[1:, 0] < edges[:-1, 1]).any():
        raise ValueError("periods must follow each other in time without overlap")
    return _Plan(edges[:, 0], int(lengths[0] // _SIX_HOURS))


def _date(value: ArrayLike) -> Any:
    return np.asarray(value, "datetime64[s]")[()]


def _kept(restart_times: ArrayLike, plan: _Plan) -> NDArray[np.int64]:
    wanted = seconds_since_1970(np.atleast_1d(np.asarray(restart_times, "datetime64[s]")))
    absent = wanted[~np.isin(wanted, seconds_since_1970(plan.times))]
    if absent.size:
        raise ValueError(f"restart time {absent[0].astype('datetime64[s]')} is no record of any period")
    return wanted


def _start(config: NatureConfig, plan: _Plan, states: State | None) -> State:
    """One state per period, dated one day and the time since 1 January before its start."""
    if states is None:
        shipped = restart_states(config)
        years = plan.starts.astype("datetime64[Y]").astype(int)
        rows = (years % shipped.members).tolist()
        if len(set(rows)) < len(rows):
            raise ValueError(
                f"two periods would start from the same of {shipped.members} shipped states; pass `states`"
            )
        states = shipped.select(rows)
    if states.members < len(plan.starts):
        raise ValueError(f"{len(plan.starts)} periods need as many states, got {states.members}")
    first = plan.starts[0]
    lead_in = first - first.astype("datetime64[Y]") + np.timedelta64(_LEAD_IN_DAYS, "D")
    return states.select(slice(0, len(plan.starts))).at(plan.starts - lead_in)


def _simulate(
    model: NatureModel,
    group: zarr.Group,
    plan: _Plan,
    mine: list[int],
    states: State,
    kept: NDArray[np.int64],
    work: Progress,
    progress: bool,
) -> None:
    following, state = work.load() or (0, None)
    if state is None:
        state = states.select(mine)
        ahead = (int(seconds_since_1970(plan.starts[mine[0]])) - int(state.time[0])) / 3600 - 6
        state = model.advance(state, ahead)
    bar = tqdm(
        total=plan.records, initial=following, unit="record", disable=not progress, desc=work.path.name
    )
    with bar:
        for first in range(following, plan.records, plan.chunk):
            fields = []
            for _ in range(plan.chunk):
                state = model.advance(state, 6)
                _keep(state, kept, work.path)
                fields.append(model.output(state).cpu().numpy())
                bar.update()
            block = np.stack(fields, 1)
            for row, member in enumerate(mine):
                begin = member * plan.records + first
                levels = len(model.config.pressure_levels)
                _dataset.write(group, (slice(begin, begin + plan.chunk),), block[row], levels)
            work.save(first + plan.chunk, state)


def _keep(state: State, kept: NDArray[np.int64], out: Path) -> None:
    rows = np.flatnonzero(np.isin(state.time, kept)).tolist()
    if rows:
        save_states(out.with_name(out.name + ".restarts"), state.select(rows))
