"""Spun-up states: those shipped with the package, their regeneration, and files of states."""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from wx_data.nature._config import DAY, NatureConfig
from wx_data.nature._model import NatureModel
from wx_data.nature._state import State, from_arrays, pack, seconds_since_1970, to_arrays, unpack

_SHIPPED = "restart_t21l5.npz"
_COUNT = 16
_SPIN_UP_DAYS = 366
_CHECKPOINT_DAYS = 30
_DATE = "2001-01-01"


def restart_states(config: NatureConfig | None = None) -> State:
    """Sixteen independent spun-up atmospheres of T21 L5, valid 1 January 2001 00 UTC.

    They hold the coefficients of two time levels; heating and rain start from zero, so integrate six hours
    before the first output. Other forcing parameters may use them after a spin-up of their own.

    Raises:
        ValueError: ``config`` has another truncation or number of levels; `spin_up` makes states for it.
    """
    config = config or NatureConfig()
    if (config.truncation, config.levels) != (21, 5):
        raise ValueError(
            f"states are shipped for T21 L5, not T{config.truncation} L{config.levels}; "
            "use spin_up or transfer"
        )
    with as_file(files("wx_data.nature") / _SHIPPED) as path, np.load(path) as arrays:
        now, previous = unpack(arrays["now"]), unpack(arrays["previous"])
    nlat, nlon = config.gaussian_grid
    return State(
        now=now,
        previous=previous,
        heating=torch.zeros(now.shape[0], 2, config.levels, nlat, nlon),
        rain=torch.zeros(now.shape[0], nlat, nlon),
        time=np.full(now.shape[0], seconds_since_1970(_DATE)),
    )


def spin_up(
    config: NatureConfig,
    members: int | Sequence[int],
    *,
    days: int = 366,
    seed: int = 0,
    time: str = _DATE,
    device: str = "cpu",
    checkpoint: Path | str | None = None,
    progress: bool = False,
) -> State:
    """Independent atmospheres from rest and noise, integrated for ``days`` up to ``time``.

    Args:
        config: the planet.
        members: number of atmospheres, or the numbers of some; member k depends on (seed, k) only.
        days: length.
        seed: of the noise.
        time: valid time of the result.
        device: where to compute.
        checkpoint: file that keeps the state reached, every 30 days; a rerun continues from it. It stays, so
            that a finished spin-up is not done again.
        progress: show a bar.

    Raises:
        ValueError: the checkpoint is of another spin-up.
    """
    numbers = list(range(members)) if isinstance(members, int) else list(members)
    identity = json.dumps([asdict(config), numbers, days, seed, time])
    model, stop = NatureModel(config, device), int(seconds_since_1970(time))
    state = None if checkpoint is None else _checkpoint(Path(checkpoint), identity)
    if state is None:
        state = model.initial(numbers, seed, time=str(np.datetime64(time, "s") - np.timedelta64(days, "D")))
    left = (stop - int(state.time[0])) // DAY
    with tqdm(total=days, initial=days - left, desc="spin-up", unit="day", disable=not progress) as bar:
        while left:
            chunk = min(left, _CHECKPOINT_DAYS)
            state = model.advance(state, 24 * chunk)
            left -= chunk
            bar.update(chunk)
            if checkpoint is not None:
                arrays = {"identity": np.asarray(identity), **to_arrays(state)}
                save_arrays(Path(checkpoint), arrays)
    return state


def _checkpoint(path: Path, identity: str) -> State | None:
    if not path.exists():
        return None
    with np.load(path) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    if str(content.pop("identity")) != identity:
        raise ValueError(f"{path} is of another spin-up; remove it or choose another path")
    return from_arrays(content)


def monthly_states(config: NatureConfig, months: Sequence[int], device: torch.device | str = "cpu") -> State:
    """The shipped states carried on to the 15th of each of the ``months`` (1 to 12) of 1970, stacked."""
    model, parts = NatureModel(config, device), []
    state = restart_states(config).at("1970-01-01")
    for month in sorted(set(months)):
        date = seconds_since_1970(f"1970-{month:02d}-15")
        state = model.advance(state, float(date - state.time[0]) / 3600)
        parts.append(state)
    return State.stack(parts).to("cpu")


def save_states(folder: Path | str, state: State) -> None:
    """Write every member into ``folder`` as <valid time>.npz, each file complete or absent."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for row in range(state.members):
        one = state.select([row])
        save_arrays(Path(folder) / f"{file_stem(one.valid_time[0])}.npz", to_arrays(one))


def load_states(folder: Path | str, times: ArrayLike | None = None) -> State:
    """The states that `save_states` or `run` wrote, at ``times`` or all of them in order of time.

    Raises:
        ValueError: a state is missing, naming its time.
    """
    present = {path.stem: path for path in sorted(Path(folder).glob("*.npz"))}
    stems = (
        list(present)
        if times is None
        else [file_stem(t) for t in np.atleast_1d(np.asarray(times, "datetime64[s]"))]
    )
    missing = [stem for stem in stems if stem not in present]
    if missing or not stems:
        raise ValueError(
            f"no saved state for {missing or 'any time'} in {folder}; it holds {len(present)} states"
        )
    states = []
    for stem in stems:
        with np.load(present[stem]) as arrays:
            states.append(from_arrays({name: arrays[name] for name in arrays.files}))
    return State.stack(states)


def file_stem(time: np.datetime64) -> str:
    """20010101T06: hours are enough, states are kept on multiples of six."""
    return str(time.astype("datetime64[h]")).replace("-", "")


def save_arrays(path: Path, arrays: "dict[str, NDArray[np.generic]]") -> None:
    """Write an npz through a temporary file, so that a crash leaves the old one or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the shipped states again: python -m wx_data.nature._restart [--out FILE], minutes of one core."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(_SHIPPED))
    torch.set_num_threads(1)
    target = parser.parse_args(arguments).out
    state = spin_up(NatureConfig(), _COUNT, days=_SPIN_UP_DAYS, seed=2001)
    np.savez_compressed(target, now=pack(state.now), previous=pack(state.previous))


if __name__ == "__main__":
    main()
