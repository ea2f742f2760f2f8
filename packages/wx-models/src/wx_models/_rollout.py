"""Forecasts step by step: the latent state advances in latent space, the full state through the projector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from wx_models._protocols import Forcing, LatentSampler, LeadKey, Projector

KeyT = TypeVar("KeyT", bound=LeadKey)


@dataclass(frozen=True, kw_only=True)
class RolloutState:
    """All that a forecast needs to go on.

    Attributes:
        previous: normalised state one step ago (N, C, H, W).
        current: normalised state (N, C, H, W).
        latent_previous: latent state one step ago (N, C, h, w).
        latent_current: latent state (N, C, h, w).
        lead: steps taken since the initial time.
    """

    previous: Tensor
    current: Tensor
    latent_previous: Tensor
    latent_current: Tensor
    lead: int = 0


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
    """

    sampler: LatentSampler[KeyT]
    projector: Projector
    downsample: Callable[[Tensor], Tensor]
    residual_scale: Tensor
    residual_shift: Tensor
    forcing: Forcing | None = None
    interval: np.timedelta64 = np.timedelta64(6, "h")  # noqa: RUF009
    reencode_previous: bool = False

    def __post_init__(self) -> None:
        if self.residual_scale.ndim != 1 or self.residual_scale.shape != self.residual_shift.shape:
            raise ValueError(
                "residual_scale and residual_shift must both be (C,), "
                f"got {tuple(self.residual_scale.shape)} and {tuple(self.residual_shift.shape)}"
            )

    def start(self, previous: Tensor, current: Tensor) -> RolloutState:
        """Encodes two normalised analyses (N, C, H, W), one step apart.

        Raises:
            ValueError: the shapes differ or have other channels than the residual scale.
        """
        if previous.shape != current.shape or current.shape[1] != self.residual_scale.shape[0]:
            raise ValueError(
                f"previous and current must both be (N, {self.residual_scale.shape[0]}, H, W), "
                f"got {tuple(previous.shape)} and {tuple(current.shape)}"
            )
        return RolloutState(
            previous=previous,
            current=current,
            latent_previous=self.downsample(previous),
            latent_current=self.downsample(current),
        )

    def step(self, state: RolloutState, valid_time: npt.NDArray[np.datetime64], key: KeyT) -> RolloutState:
        """Advances every row by one interval.

        Args:
            state: where the forecast stands.
            valid_time: valid time of `state.current`, (N,).
            key: randomness of the rows; the step that reaches lead k draws from `key.at_lead(k)`.
        """
        lead = state.lead + 1
        forcing = None if self.forcing is None else self.forcing.at(valid_time)
        previous = self.downsample(state.previous) if self.reencode_previous else state.latent_previous
        cond = {"state": state.latent_current, "previous": previous}
        if forcing is not None:
            cond["forcing"] = self.downsample(forcing)
        residual = self.sampler.sample(state.latent_current, cond, key.at_lead(lead))
        decoded = self.projector.project(residual, state.current, forcing)
        return RolloutState(
            previous=state.current,
            current=state.current + self._increment(decoded),
            latent_previous=state.latent_current,
            latent_current=state.latent_current + self._increment(residual),
            lead=lead,
        )

    def rollout(
        self, state: RolloutState, init_time: npt.NDArray[np.datetime64], key: KeyT, *, steps: int
    ) -> Iterator[RolloutState]:
        """Yields the state after each of `steps` steps; continues from any state this forecaster has yielded.

        Args:
            state: from `start`, or where an earlier rollout stopped.
            init_time: initial time of each row (N,), datetime64.
            key: randomness of the rows.
            steps: number of steps from `state`.

        Raises:
            ValueError: init_time is not one time per row.
        """
        init_time = np.asarray(init_time)
        if init_time.shape != (state.current.shape[0],) or init_time.dtype.kind != "M":
            rows = state.current.shape[0]
            raise ValueError(
                f"init_time must be datetime64 ({rows},), got {init_time.dtype} {init_time.shape}"
            )
        for _ in range(steps):
            state = self.step(state, init_time + state.lead * self.interval, key)
            yield state

    def _increment(self, residual: Tensor) -> Tensor:
        return residual * self.residual_scale[:, None, None] + self.residual_shift[:, None, None]
