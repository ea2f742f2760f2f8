"""The forecaster: which part of which package goes where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.forecaster.settings import FORCINGS, Settings
from recipes.forecaster.space import Space
from wx_data import Forcings, Grid, Statistics, Store
from wx_estimators import (
    CRPS,
    EDM,
    DifferenceCRPS,
    EnsembleCRPS,
    Estimator,
    Key,
    LogNormal,
    StochasticInterpolant,
    SumScore,
    bind,
)
from wx_models import (
    Downsample,
    LatentForecaster,
    LatentTransformer,
    LatentTransformerConfig,
    LocalProjector,
    LocalProjectorConfig,
    Stream,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """Untrained or trained, the same parts: `train` fills the networks, `forecaster` connects them."""

    settings: Settings
    channels: tuple[str, ...]
    grid: Grid
    space: Space
    forcings: Forcings
    downsample: Downsample
    network: LatentTransformer
    projector: LocalProjector

    def to(self, device: str) -> Parts:
        """Move the modules; the space stays on the CPU, where fields come from and go to."""
        for module in (self.downsample, self.network, self.projector):
            module.to(device)
        return self


def build(settings: Settings, store: Store, statistics: Statistics) -> Parts:
    """Make the networks for a store.

    Raises:
        StoreError: the statistics belong to another store.
        ValueError: the store lies on Healpix.
    """
    statistics.check(store.channels, store.grid)
    if not isinstance(store.grid, Grid):
        raise ValueError(f"the networks need rows of latitude; {store.path} lies on a {store.grid}")
    channels, grid = len(store.channels), store.grid.shape
    forcings = Forcings(store.grid, FORCINGS, store.statics)
    downsample = Downsample(grid, settings.downsampling)
    generative = settings.estimator != "crps"
    fields = ("x", "state", "forcing") if generative else ("state", "forcing")
    compute_dtype = torch.bfloat16 if settings.precision == "bf16" else None
    network = LatentTransformer(
        LatentTransformerConfig(
            channels=channels,
            forcing_channels=len(forcings.channels),
            grid=downsample.size,
            patch=settings.latent_patch,
            width=settings.latent_width,
            depth=settings.latent_depth,
            heads=settings.latent_heads,
            streams=(
                Stream(fields, settings.latent_width - settings.history_width),
                Stream(("previous",), settings.history_width),
            ),
            takes_t=generative,
            noise_dim=0 if generative else settings.noise_dim,
            position="learned",
            qk_norm=True,
            mixing=settings.latent_mixing,
            gate=settings.latent_depth**-0.5,
            linear_skip=True,
        ),
        seed=settings.seed,
        compute_dtype=compute_dtype,
    )
    projector = LocalProjector(
        LocalProjectorConfig(
            channels=channels,
            forcing_channels=len(forcings.channels),
            grid=grid,
            patch=settings.downsampling,
            width=settings.projector_width,
            depth=settings.projector_depth,
            heads=settings.projector_heads,
            residual_upsample=True,
            position="learned",
        ),
        seed=settings.seed,
        compute_dtype=compute_dtype,
    )
    return Parts(
        settings=settings,
        channels=store.channels,
        grid=store.grid,
        space=space(statistics, settings.step_hours),
        forcings=forcings,
        downsample=downsample,
        network=network,
        projector=projector,
    )


def space(statistics: Statistics, step_hours: int) -> Space:
    """Normalisation of states, and of residuals over one step."""
    residual = statistics.residual(step_hours)
    values = {
        "mean": statistics.mean,
        "std": statistics.std,
        "scale": residual.std / statistics.std,
        "shift": residual.mean / statistics.std,
    }
    return Space(**{name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()})


def estimator(settings: Settings, pairs: tuple[Tensor, Tensor] | None = None) -> Estimator:
    """The estimator named by the settings.

    Args:
        settings: `estimator`, `noise_dim`, `difference_weight` and `sampler_steps` are used.
        pairs: latent states and residuals (N, C, h, w) whose second moments precondition the networks of
            interpolant and EDM; None for unit variances.
    """
    if settings.estimator == "crps":
        score = SumScore(terms=(CRPS(), DifferenceCRPS()), factors=(1.0, settings.difference_weight))
        return EnsembleCRPS(
            noise_shape=(settings.noise_dim,), score=score if settings.difference_weight else CRPS()
        )
    if settings.estimator == "interpolant":
        if pairs is None:
            return StochasticInterpolant(steps=settings.sampler_steps)
        return StochasticInterpolant.from_pairs(*pairs, steps=settings.sampler_steps)
    sigma = 1.0 if pairs is None else tuple(pairs[1].square().mean((0, 2, 3)).sqrt().tolist())
    # More weight on high noise than for images (-1.2): what the state determines is learnt there.
    return EDM(steps=settings.sampler_steps, sigma_data=sigma, training=LogNormal(mean=0.0))


def forecaster(
    parts: Parts, trained: Estimator, *, sampler: Any = None, projector: Any = None
) -> LatentForecaster[Key]:
    """Connect trained parts; another sampler or projector may stand in, e.g. a sharded one."""
    device = parts.downsample.row_weights.device
    return LatentForecaster(
        sampler=bind(trained, parts.network) if sampler is None else sampler,
        projector=parts.projector if projector is None else projector,
        downsample=parts.downsample,
        residual_scale=parts.space.scale.to(device),
        residual_shift=parts.space.shift.to(device),
        forcing=parts.forcings,
        interval=np.timedelta64(parts.settings.step_hours, "h"),
    )
