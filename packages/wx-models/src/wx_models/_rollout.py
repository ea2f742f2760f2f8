"""Forecasts step by step: the latent state advances in latent space, the full state through the projector."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from wx_models._protocols import Forcing, LatentSampler, LeadKey, Projector

KeyT = TypeVar("KeyT", bound=LeadKey)


Times = npt.NDArray[np.datetime64]
_FIELDS = ("previous", "current", "latent_previous", "latent_current")


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutState:
    """All that a forecast needs to go on: N rows, each one initial time and member.

    The latent states are not the encoded full states after the first step: they advance by themselves. A
    forecast therefore goes on from its `RolloutState` and never from its fields alone.

    Attributes:
        previous: normalised state one step ago (N, C, H, W).
        current: normalised state (N, C, H, W).
        latent_previous: latent state one step ago (N, C, h, w).
        latent_current: latent state (N, C, h, w).
        init_time: initial time of each row (N,), datetime64[ns].
        lead: steps taken since the initial time.
        interval: length of a step.

    Raises:
        ValueError: shapes that disagree, or init_time is not one datetime64 per row.
    """

    previous: Tensor
    current: Tensor
    latent_previous: Tensor
    latent_current: Tensor
    init_time: Times
    lead: int = 0
    interval: np.timedelta64 = np.timedelta64(6, "h")  # noqa: RUF009

    def __post_init__(self) -> None:
        for before, now in (("previous", "current"), ("latent_previous", "latent_current")):
            shapes = tuple(getattr(self, before).shape), tuple(getattr(self, now).shape)
            if shapes[0] != shapes[1] or len(shapes[0]) != 4:
                raise ValueError(f"{before} and {now} must both be (N, C, rows, columns), got {shapes}")
        (rows, channels), latent = self.current.shape[:2], tuple(self.latent_current.shape)
        if latent[:2] != (rows, channels):
            raise ValueError(f"latent states must be ({rows}, {channels}, h, w), got {latent}")
        times = np.asarray(self.init_time)
        if times.shape != (rows,) or times.dtype.kind != "M":
            raise ValueError(f"init_time must be datetime64 ({rows},), got {times.dtype} {times.shape}")
        object.__setattr__(self, "init_time", times.astype("datetime64[ns]"))

    @property
    def valid_time(self) -> Times:
        """Valid time of `current`, (N,)."""
        return self.init_time + self.lead * self.interval

    def save(self, path: str | Path) -> None:
        """Writes the state as safetensors, atomically; a forecast goes on from `load` bit for bit."""
        path = Path(path)
        about = {
            "init_time": np.datetime_as_string(self.init_time).tolist(),
            "lead": self.lead,
            "interval_ns": int(self.interval / np.timedelta64(1, "ns")),
        }
        # Clones: safetensors refuses tensors that share memory, as expanded members do.
        tensors = {name: getattr(self, name).detach().cpu().contiguous().clone() for name in _FIELDS}
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        save_file(tensors, partial, metadata={"rollout_state": json.dumps(about)})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> RolloutState:
        """Reads what `save` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        with safe_open(path, framework="pt", device=str(device)) as file:
            about = (file.metadata() or {}).get("rollout_state")
            if about is None:
                raise ValueError(f"{path} is not a RolloutState: RolloutState.save writes one")
            fields = {name: file.get_tensor(name) for name in _FIELDS}
        data = json.loads(about)
        return cls(
            **fields,
            init_time=np.array(data["init_time"], dtype="datetime64[ns]"),
            lead=data["lead"],
            interval=np.timedelta64(data["interval_ns"], "ns"),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentForecaster(Generic[KeyT]):
    """Autoregressive forecaster (ATLAS, arXiv 2601.18111, section 5).

    With r sampled given (z0, z_-1) and y = D(r, x0), one step is
    x1 = x0 + (y s + m) on the full grid and z1 = z0 + (r s + m) in the latent. Latent states are never
    encoded again from decoded fields. Rows are forecasts (initial time x member); gradients flow unless the
    caller turns them off.

    Attributes:
        sampler: draws r, one member per row.
        projector: decodes r.
        downsample: encoder B from the full grid to the latent grid.
        residual_scale: s (C,), one residual unit in units of the normalised state.
        residual_shift: m (C,), mean residual in units of the normalised state.
        forcing: forcing fields at the valid time of the current state; None for none.
        interval: length of a step.
        reencode_previous: z_-1 is encoded from x_-1 at every step, as the published interpolant does.
        rows_at_once: rows that sampler and projector see together, so that memory does not grow with the
            ensemble; None for all. The result does not depend on it.
    """

    sampler: LatentSampler[KeyT]
    projector: Projector
    downsample: Callable[[Tensor], Tensor]
    residual_scale: Tensor
    residual_shift: Tensor
    forcing: Forcing | None = None
    interval: np.timedelta64 = np.timedelta64(6, "h")  # noqa: RUF009
    reencode_previous: bool = False
    rows_at_once: int | None = None

    def __post_init__(self) -> None:
        if self.residual_scale.ndim != 1 or self.residual_scale.shape != self.residual_shift.shape:
            raise ValueError(
                "residual_scale and residual_shift must both be (C,), "
                f"got {tuple(self.residual_scale.shape)} and {tuple(self.residual_shift.shape)}"
            )
        if self.rows_at_once is not None and self.rows_at_once < 1:
            raise ValueError(f"rows_at_once must be positive or None, got {self.rows_at_once}")

    def start(self, previous: Tensor, current: Tensor, init_time: Times) -> RolloutState:
        """Encodes two normalised analyses, at `init_time` and one step before.

        Args:
            previous: (N, C, H, W), one interval before the initial time.
            current: (N, C, H, W), at the initial time.
            init_time: initial time of each row (N,), datetime64.

        Raises:
            ValueError: the shapes differ, have other channels than the residual scale, or values are not
                finite.
        """
        channels = self.residual_scale.shape[0]
        if previous.shape != current.shape or current.ndim != 4 or current.shape[1] != channels:
            raise ValueError(
                f"previous and current must both be (N, {channels}, H, W), "
                f"got {tuple(previous.shape)} and {tuple(current.shape)}"
            )
        for name, fields in (("previous", previous), ("current", current)):
            if not bool(fields.isfinite().all()):
                raise ValueError(
                    f"{name} has values that are not finite; fill them (SST over land) before the start"
                )
        return RolloutState(
            previous=previous,
            current=current,
            latent_previous=self.downsample(previous),
            latent_current=self.downsample(current),
            init_time=init_time,
            interval=self.interval,
        )

    def step(self, state: RolloutState, key: KeyT) -> RolloutState:
        """Advances every row by one interval.

        Args:
            state: from `start`, or what an earlier step returned.
            key: randomness of the rows; the step that reaches lead k draws from `key.at_lead(k)`.

        Raises:
            TypeError: fields in place of a state.
            ValueError: a state of another step length, or with other channels.
        """
        self._check(state)
        parts = [self._residuals(state, rows, key) for rows in self._chunks(state)]
        decoded, residual = (
            torch.cat(part) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True)
        )
        return replace(
            state,
            previous=state.current,
            current=state.current + self._increment(decoded),
            latent_previous=state.latent_current,
            latent_current=state.latent_current + self._increment(residual),
            lead=state.lead + 1,
        )

    def rollout(self, state: RolloutState, key: KeyT, *, steps: int) -> Iterator[RolloutState]:
        """Yields the state after each of `steps` steps, and keeps none of them.

        Args:
            state: from `start`, or where an earlier rollout stopped: it goes on as if it never had.
            key: randomness of the rows.
            steps: number of steps from `state`.
        """
        for _ in range(steps):
            state = self.step(state, key)
            yield state

    def _residuals(self, state: RolloutState, rows: slice | None, key: KeyT) -> tuple[Tensor, Tensor]:
        """Decoded and latent residual of some rows."""

        def pick(fields: Tensor) -> Tensor:
            return fields if rows is None else fields[rows]

        current, latent = pick(state.current), pick(state.latent_current)
        time = state.valid_time if rows is None else state.valid_time[rows]
        forcing = None if self.forcing is None else self.forcing.at(time)
        previous = (
            self.downsample(pick(state.previous)) if self.reencode_previous else pick(state.latent_previous)
        )
        cond = {"state": latent, "previous": previous}
        if forcing is not None:
            cond["forcing"] = self.downsample(forcing)
        key = key.at_lead(state.lead + 1)
        residual = self.sampler.sample(latent, cond, key if rows is None else key.rows(rows))
        return self.projector.project(residual, current, forcing), residual

    def _chunks(self, state: RolloutState) -> list[slice | None]:
        count, size = state.current.shape[0], self.rows_at_once
        if size is None or size >= count:
            return [None]
        return [slice(start, start + size) for start in range(0, count, size)]

    def _check(self, state: RolloutState) -> None:
        if not isinstance(state, RolloutState):
            raise TypeError(
                f"expected a RolloutState, got {type(state).__name__}: fields alone have lost the latent "
                "states, which advance by themselves. Begin with start() and pass on what step() returns"
            )
        if state.interval != self.interval:
            raise ValueError(f"the state was made with steps of {state.interval}, not {self.interval}")
        channels = self.residual_scale.shape[0]
        if state.current.shape[1] != channels:
            raise ValueError(f"the state has {state.current.shape[1]} channels, the forecaster {channels}")

    def _increment(self, residual: Tensor) -> Tensor:
        return residual * self.residual_scale[:, None, None] + self.residual_shift[:, None, None]
