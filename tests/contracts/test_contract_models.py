"""The Protocols of wx-models: who satisfies them, what must not, and how each implementation behaves.

mypy and pyright check the annotated factories below and refuse the `refused_*` functions; the tests run every
factory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import wx_data
import wx_estimators
import wx_models

Cond = Mapping[str, Tensor]
Times = npt.NDArray[np.datetime64]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CHANNELS, GRID, LATENT = 3, (9, 16), (5, 8)


def fields(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reached(module: torch.nn.Module) -> torch.nn.Module:
    """Float64, with weights that let every input reach the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.normal_(std=0.2, generator=generator)
    return module


# LeadKey


def key(rows: int = 2) -> wx_estimators.Key:
    return wx_estimators.Key(7, torch.arange(rows) * 6 + 438_000, torch.arange(rows)[:, None])


def lead_key() -> wx_models.LeadKey:
    return key()


class KeyWithoutLead(Protocol):
    seed: int


def refused_key(key: KeyWithoutLead) -> wx_models.LeadKey:
    return key  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def test_key_moves_along_the_lead_time() -> None:
    assert lead_key().at_lead(2) is not None
    assert key().at_lead(2).lead == 2
    assert not np.array_equal(key().at_lead(1).seeds(), key().at_lead(2).seeds())
    assert np.array_equal(key().at_lead(1).at_lead(2).seeds(), key().at_lead(2).seeds())


# LatentSampler

Sampler = wx_models.LatentSampler[wx_estimators.Key]


def network(**settings: Any) -> wx_models.LatentTransformer:
    config = wx_models.LatentTransformerConfig(
        channels=CHANNELS, grid=LATENT, width=16, depth=1, heads=2, **settings
    )
    transformer = wx_models.LatentTransformer(config)
    reached(transformer)
    return transformer


def bound_interpolant() -> Sampler:
    return wx_estimators.bind(wx_estimators.StochasticInterpolant(steps=2), network())


def bound_edm() -> Sampler:
    return wx_estimators.bind(wx_estimators.EDM(steps=2), network())


def bound_crps() -> Sampler:
    streams = wx_models.Stream(("state",), 12), wx_models.Stream(("previous",), 4)
    net = network(streams=streams, takes_t=False, noise_dim=4)
    return wx_estimators.bind(wx_estimators.EnsembleCRPS(noise_shape=(4,)), net)


def bound_with_gradient() -> Sampler:
    return wx_estimators.bind(wx_estimators.EDM(steps=2), network(), chunk=1, grad=True)


class SamplerOfGenerator(Protocol):
    def sample(self, base: Tensor, cond: Cond, generator: torch.Generator, /) -> Tensor: ...


def refused_sampler(sampler: SamplerOfGenerator) -> Sampler:
    return sampler  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


SAMPLERS = pytest.mark.parametrize("make", [bound_interpolant, bound_edm, bound_crps, bound_with_gradient])
MakeSampler = Callable[[], Sampler]


def latent(rows: int = 2) -> tuple[Tensor, dict[str, Tensor]]:
    state = fields(rows, CHANNELS, *LATENT, seed=1)
    return state, {"state": state, "previous": fields(rows, CHANNELS, *LATENT, seed=2)}


@SAMPLERS
def test_sampler_shape_dtype_determinism(make: MakeSampler) -> None:
    state, cond = latent()
    residual = make().sample(state, cond, key())
    assert residual.shape == state.shape
    assert residual.dtype == state.dtype
    assert residual.device == state.device
    assert torch.equal(residual, make().sample(state, cond, key()))
    assert not torch.equal(residual, make().sample(state, cond, key().at_lead(1)))


@SAMPLERS
def test_sampler_draws_each_row_alone(make: MakeSampler) -> None:
    """Only the blocking of matrix products may differ."""
    state, cond = latent()
    together = make().sample(state, cond, key())
    for row in range(2):
        alone = {name: value[[row]] for name, value in cond.items()}
        one = wx_estimators.Key(7, key().init[[row]], key().member[[row]])
        residual = make().sample(state[[row]], alone, one)
        torch.testing.assert_close(residual, together[[row]], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("make", "flows"), [(bound_edm, False), (bound_with_gradient, True)])
def test_sampler_gradient_flows_when_asked(make: MakeSampler, flows: bool) -> None:
    state, cond = latent()
    state.requires_grad_()
    assert make().sample(state, {**cond, "state": state}, key()).requires_grad is flows


# Projector


def projector(**settings: Any) -> wx_models.LocalProjector:
    config = wx_models.LocalProjectorConfig(
        channels=CHANNELS, grid=GRID, patch=(2, 2), width=16, depth=1, heads=2, **settings
    )
    module = wx_models.LocalProjector(config)
    reached(module)
    return module


def forced_projector() -> wx_models.Projector:
    return projector(forcing_channels=2)


def upsampling_projector() -> wx_models.Projector:
    return projector(forcing_channels=2, residual_upsample=True)


class ProjectorWithoutForcing(Protocol):
    def project(self, residual: Tensor, state: Tensor, /) -> Tensor: ...


def refused_projector(projector: ProjectorWithoutForcing) -> wx_models.Projector:
    return projector  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


PROJECTORS = pytest.mark.parametrize("make", [forced_projector, upsampling_projector])
MakeProjector = Callable[[], wx_models.Projector]


def full() -> tuple[Tensor, Tensor, Tensor]:
    return fields(2, CHANNELS, *LATENT), fields(2, CHANNELS, *GRID, seed=1), fields(2, 2, *GRID, seed=2)


@PROJECTORS
def test_projector_shape_dtype_determinism(make: MakeProjector) -> None:
    residual, state, forcing = full()
    out = make().project(residual, state, forcing)
    assert out.shape == state.shape
    assert out.dtype == state.dtype
    assert out.device == state.device
    assert torch.equal(out, make().project(residual, state, forcing))


@PROJECTORS
def test_projector_gradient_reaches_every_input(make: MakeProjector) -> None:
    given = [value.requires_grad_() for value in full()]
    make().project(*given).square().sum().backward()
    for value in given:
        assert value.grad is not None
        assert value.grad.any()


@PROJECTORS
def test_projector_treats_rows_alone(make: MakeProjector) -> None:
    together = make().project(*full())
    for row in range(2):
        residual, state, forcing = (value[[row]] for value in full())
        alone = make().project(residual, state, forcing)
        torch.testing.assert_close(alone, together[[row]], rtol=1e-12, atol=1e-12)


# Forcing

GRID_OF_FORCING = wx_data.Grid.regular(*GRID)


def forcings() -> wx_models.Forcing:
    return wx_data.Forcings(GRID_OF_FORCING, ("cos_zenith", "year_progress", "latlon"))


class ForcingAsArray(Protocol):
    def at(self, valid_time: Times, /) -> npt.NDArray[np.float32]: ...


def refused_forcing(forcing: ForcingAsArray) -> wx_models.Forcing:
    return forcing  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def test_forcing_shape_dtype_determinism() -> None:
    times = np.array(["2000-01-01T00", "2000-07-01T06"], "datetime64[ns]")
    fields_NAHW = forcings().at(times)
    assert fields_NAHW.shape == (2, 7, *GRID)
    assert fields_NAHW.dtype == torch.float32
    assert fields_NAHW.isfinite().all()
    assert torch.equal(fields_NAHW, forcings().at(times))


def test_forcing_is_a_function_of_each_time_alone() -> None:
    times = np.array(["2000-01-01T00", "2000-07-01T06"], "datetime64[ns]")
    together = forcings().at(times)
    for row in range(2):
        assert torch.equal(forcings().at(times[[row]]), together[[row]])
    assert not torch.equal(together[0], together[1])


# The assembly: four Protocols at once


@SAMPLERS
def test_forecaster_runs_on_any_sampler(make: MakeSampler) -> None:
    """A rollout goes on from any of its states as if it had never stopped."""
    forecaster = wx_models.LatentForecaster(
        sampler=make(),
        projector=projector(forcing_channels=7),
        downsample=wx_models.Downsample(GRID, (2, 2)),
        forcing=forcings(),
        residual_scale=torch.full((CHANNELS,), 0.1, dtype=torch.float64),
        residual_shift=torch.zeros(CHANNELS, dtype=torch.float64),
    )
    previous, current = (fields(2, CHANNELS, *GRID, seed=seed) for seed in (1, 2))
    init = np.array(["2000-01-01T00", "2000-01-02T00"], "datetime64[ns]")
    first, second = forecaster.rollout(forecaster.start(previous, current, init), key(), steps=2)
    assert (first.lead, second.lead) == (1, 2)
    assert second.current.shape == (2, CHANNELS, *GRID)
    [resumed] = forecaster.rollout(first, key(), steps=1)
    assert torch.equal(resumed.current, second.current)
