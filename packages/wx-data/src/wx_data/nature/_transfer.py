"""States between configurations, perturbations, and the stand-in for a physical forecasting centre."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from wx_data.nature._config import DAY, GAS_CONSTANT, NatureConfig
from wx_data.nature._dynamics import Dynamics
from wx_data.nature._model import generator
from wx_data.nature._state import State

_SURFACE_AIR = 280.0  # K, for moving surface pressure to another orography
_COARSER = {21: (15, 45), 31: (21, 36), 42: (31, 24), 63: (42, 18)}
_YEAR_DAYS = 365.2425


def operational(config: NatureConfig) -> NatureConfig:
    """The same equations, coarser and with wrong parameters: what a forecasting centre has.

    T21 becomes T15, T31 T21 and so on; the equator-to-pole contrast is 6 % low, relaxation and friction 20 %
    slow, diffusion 30 % slow and latent heating 25 % low. Output grid and levels stay the same.
    """
    if config.truncation not in _COARSER:
        raise ValueError(f"operational() knows T{sorted(_COARSER)}, got T{config.truncation}")
    truncation, step = _COARSER[config.truncation]
    return replace(
        config,
        truncation=truncation,
        step_minutes=step,
        meridional_contrast=0.94 * config.meridional_contrast,
        relaxation_days=1.2 * config.relaxation_days,
        surface_relaxation_days=1.2 * config.surface_relaxation_days,
        friction_days=1.2 * config.friction_days,
        diffusion_hours=1.3 * config.diffusion_hours,
        latent_fraction=0.75 * config.latent_fraction,
    )


def transfer(state: State, source: NatureConfig, target: NatureConfig) -> State:
    """The same atmospheres under another truncation, orography and step; the levels must agree.

    Waves are cut or padded with zeros, surface pressure follows the other orography hydrostatically, and the
    earlier time level is moved along the line through both to one step of ``target`` before now. Forcing of
    the first step is zero and so is the rain since the last multiple of six hours.
    """
    if source.levels != target.levels:
        raise ValueError(f"cannot transfer from {source.levels} to {target.levels} levels; use equal levels")
    if source == target:
        return state
    ratio = target.step_seconds / source.step_seconds
    earlier = state.now + ratio * (state.previous - state.now)
    shift = (_surface(source, target.truncation) - _surface(target, target.truncation)) / (
        GAS_CONSTANT * _SURFACE_AIR
    )
    levels = []
    for coefficients in (state.now, earlier):
        moved = _resize(coefficients, target.truncation + 1)
        moved[:, -1] += shift.to(moved.device)
        levels.append(moved)
    nlat, nlon = target.gaussian_grid
    shape = (state.members, 2, target.levels, nlat, nlon)
    return State(
        now=levels[0],
        previous=levels[1],
        heating=state.heating.new_zeros(shape),
        rain=state.rain.new_zeros(state.members, nlat, nlon),
        time=state.time,
    )


def _resize(coefficients: Tensor, size: int) -> Tensor:
    kept = min(size, coefficients.shape[-1])
    result = coefficients.new_zeros(*coefficients.shape[:2], size, size)
    result[..., :kept, :kept] = coefficients[..., :kept, :kept]
    return result


def _surface(config: NatureConfig, truncation: int) -> Tensor:
    surface = Dynamics(config, "cpu").surface[:, :, 0].permute(0, 2, 1).contiguous()
    return _resize(torch.view_as_complex(surface)[None, None], truncation + 1)[0, 0]


def perturb(
    centre: State, pool: State, *, size: float, seed: int, members: int, window_days: float = 20.0
) -> State:
    """Analyses around true states, every one off by a scaled difference of two states of the same season.

    White noise decays before it grows; differences of states lie on the attractor. Truth x becomes
    ``x + a + e_i``: an analysis error a that all members share and a perturbation e_i of each, all alike in
    size, so that truth and members are exchangeable.

    Args:
        centre: the truth, one or more states.
        pool: states of the same configuration; pairs are drawn from those whose time of year lies within
            ``window_days`` of the truth and which are not within ``window_days`` of the truth itself.
        size: standard deviation of a and of e_i as a fraction of the climatological one.
        seed: draws depend on (seed, init time, member) and nothing else.
        members: members per truth.
        window_days: half-width of the season.

    Returns:
        State of ``centre.members * members`` rows, the members of a truth together.
    """
    rows = [_draw(centre, pool, k, size, seed, members, window_days) for k in range(centre.members)]
    return State.stack(rows)


def _season_rows(pool: State, time: int, window_days: float) -> list[int]:
    """Rows of the pool in the season of ``time`` but more than the window away from it."""
    apart = (pool.time - time) / DAY
    around = (apart + _YEAR_DAYS / 2) % _YEAR_DAYS - _YEAR_DAYS / 2
    return np.flatnonzero((np.abs(around) <= window_days) & (np.abs(apart) > window_days)).tolist()


def _draw(
    centre: State, pool: State, row: int, size: float, seed: int, members: int, window_days: float
) -> State:
    time = int(centre.time[row])
    rows = _season_rows(pool, time, window_days)
    if size and len(rows) < 3:
        date = centre.valid_time[row]
        raise ValueError(
            f"perturbing {date} needs at least 3 states of the pool within {window_days} days of its time of "
            f"year (another year), found {len(rows)}; pass more states in `pool` or widen `window_days`"
        )
    truth = centre.select([row])
    if not size:
        return State.stack([truth] * members)
    shared = _difference(pool, rows, generator(seed, time, -1))
    own = [_difference(pool, rows, generator(seed, time, member)) for member in range(members)]
    # A difference of two independent states has sqrt(2) times the climatological standard deviation.
    scale = size / np.sqrt(2.0)
    return State.stack([_added(truth, shared, each, scale) for each in own])


def _difference(pool: State, rows: list[int], draws: torch.Generator) -> tuple[Tensor, Tensor]:
    first, second = (rows[int(i)] for i in torch.randperm(len(rows), generator=draws)[:2])
    return pool.now[first] - pool.now[second], pool.previous[first] - pool.previous[second]


def _added(truth: State, shared: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], scale: float) -> State:
    return replace(
        truth,
        now=truth.now + scale * (shared[0] + own[0]),
        previous=truth.previous + scale * (shared[1] + own[1]),
    )
