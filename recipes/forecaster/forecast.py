"""Forecasts: an ensemble from every initial time, written as one CF Zarr store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from recipes.forecaster.assemble import Parts, forecaster
from recipes.forecaster.settings import Settings
from recipes.forecaster.train import load
from wx_data import ForecastWriter, Store
from wx_estimators import Estimator, Key

DISCLAIMER = (
    "Trained on a simulated planet (wx_data.nature): a test of methods. A forecast for the real atmosphere "
    "needs a model trained on analyses of the real atmosphere."
)


def forecast(settings: Settings, run: Path, *, progress: bool = True) -> None:
    """Forecast from the test year; initial times that are complete in `run/forecast.zarr` are kept."""
    parts, trained = load(settings, run)
    truth = Store(run / "test.store")
    write(parts, trained, truth, settings.init_times, run / "forecast.zarr", progress=progress)


def write(
    parts: Parts,
    trained: Estimator,
    analyses: Any,
    init_times: np.ndarray,
    out: Path,
    *,
    progress: bool = True,
) -> Path:
    """Forecast from the analyses at `init_times` and one step before; resumes by initial time.

    Args:
        parts: trained.
        trained: the estimator.
        analyses: any `Source` with the forecaster's channels, on its grid.
        init_times: datetime64.
        out: forecast store.
        progress: show a bar.
    """
    settings = parts.settings
    writer = ForecastWriter.create(
        out,
        init_times=init_times,
        lead_times=settings.leads,
        members=settings.members,
        channels=parts.channels,
        grid=parts.grid,
        attributes={
            "title": f"ensemble forecast, estimator {settings.estimator}",
            "comment": DISCLAIMER,
            "settings": settings.to_dict(),
            "analyses": getattr(analyses, "provenance", {}),
        },
    )
    left = {init for init, *_ in writer.missing()}
    step = np.timedelta64(settings.step_hours, "h")
    for init in tqdm(sorted(left), desc="forecast", unit="start", disable=not progress):
        states = analyses.read(np.array([init - step, init]), parts.channels).values
        fields = issue(parts, trained, torch.from_numpy(states), init, settings.members)
        for lead, values in zip(settings.leads, fields, strict=True):
            writer.write(init, lead, values)
    return writer.finalise()


@torch.inference_mode()
def issue(
    parts: Parts, trained: Estimator, states: Tensor, init_time: np.datetime64, members: int
) -> Iterator[Tensor]:
    """One ensemble forecast.

    Args:
        parts: trained.
        trained: the estimator.
        states: physical fields (2, C, H, W) one step before and at the initial time.
        init_time: datetime64.
        members: ensemble size; member m does not depend on it.

    Yields:
        Physical fields (M, C, H, W) at each lead time, on the CPU.
    """
    settings = parts.settings
    previous, current = (
        parts.space.encode(state).expand(members, -1, -1, -1).to(settings.device) for state in states
    )
    model, times = forecaster(parts, trained), np.full(members, init_time)
    key = Key.from_times(settings.seed, np.array([init_time]), range(members)).rows()
    steps = len(settings.leads)
    for state in model.rollout(model.start(previous, current, times), key, steps=steps):
        yield parts.space.decode(state.current.cpu())
