"""The smaller Protocols of wx-estimators: solvers, paths, laws, transforms, transitions of a rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import pytest
import torch
from torch import Tensor

import wx_estimators

# Solvers


def euler_maruyama() -> wx_estimators.SdeSampler:
    return wx_estimators.EulerMaruyama()


def sra1() -> wx_estimators.SdeSampler:
    return wx_estimators.SRA1()


def heun() -> wx_estimators.OdeSampler:
    return wx_estimators.Heun()


def rk4() -> wx_estimators.OdeSampler:
    return wx_estimators.RK4()


def dpm2s() -> wx_estimators.DenoisingSampler:
    return wx_estimators.DPM2S()


def dpm2m() -> wx_estimators.DenoisingSampler:
    return wx_estimators.DPM2M()


class Unrolled(Protocol):
    def integrate(self, f: Callable[[Tensor, float], Tensor], x: Tensor, /) -> Tensor: ...


def refused_sde(solver: Unrolled) -> wx_estimators.SdeSampler:
    return solver  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def refused_ode(solver: Unrolled) -> wx_estimators.OdeSampler:
    return solver  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def refused_denoising(solver: Unrolled) -> wx_estimators.DenoisingSampler:
    return solver  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("make", [heun, rk4])
def test_ode_solver_meets_the_exponential(make: Callable[[], wx_estimators.OdeSampler]) -> None:
    x, solver = torch.ones(2, 3, dtype=torch.float64), make()
    for step in range(32):
        x = solver.step(lambda y, _: -y, x, step / 32, (step + 1) / 32)
    torch.testing.assert_close(x, torch.full_like(x, torch.e**-1), rtol=2e-4, atol=0)


@pytest.mark.parametrize("make", [euler_maruyama, sra1])
def test_sde_solver_without_noise_is_an_ode_solver(make: Callable[[], wx_estimators.SdeSampler]) -> None:
    x, solver = torch.ones(2, 3, dtype=torch.float64), make()
    noise = torch.ones_like(x)
    for step in range(256):
        x = solver.step(lambda y, _: -y, x, step / 256, (step + 1) / 256, lambda _: 0.0, lambda _: noise)
    torch.testing.assert_close(x, torch.full_like(x, torch.e**-1), rtol=3e-3, atol=0)


@pytest.mark.parametrize("make", [dpm2s, dpm2m])
def test_denoising_solver_is_exact_where_the_truth_is_known(
    make: Callable[[], wx_estimators.DenoisingSampler],
) -> None:
    """For one possible state D is constant, and x moves towards it in proportion to sigma."""
    truth, x = torch.full((2, 3), 0.5, dtype=torch.float64), torch.full((2, 3), 8.5, dtype=torch.float64)
    last: tuple[float, Tensor] | None = None
    for s0, s1 in ((8.0, 4.0), (4.0, 1.0), (1.0, 0.25)):
        x, last = make().denoise_step(lambda y, _: truth.expand_as(y), x, s0, s1, last)
        torch.testing.assert_close(x, truth + s1)


# Paths and laws


def linear_path() -> wx_estimators.Path:
    return wx_estimators.LinearPath()


def trig_path() -> wx_estimators.Path:
    return wx_estimators.TrigPath()


class PathAtFloats(Protocol):
    def coeff(self, t: float, /) -> float: ...


def refused_path(path: PathAtFloats) -> wx_estimators.Path:
    return path  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("make", [linear_path, trig_path])
def test_path_goes_from_noise_to_data(make: Callable[[], wx_estimators.Path]) -> None:
    ends = make().coeff(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends.b, torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends.s, torch.tensor([1.0, 0.0], dtype=torch.float64))


def uniform() -> wx_estimators.Law:
    return wx_estimators.Uniform()


def logit_normal() -> wx_estimators.Law:
    return wx_estimators.LogitNormal()


class LawBySampling(Protocol):
    def sample(self, count: int, /) -> Tensor: ...


def refused_law(law: LawBySampling) -> wx_estimators.Law:
    return law  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("make", [uniform, logit_normal])
def test_law_increases(make: Callable[[], wx_estimators.Law]) -> None:
    found = make().quantile(torch.linspace(0.01, 0.99, 99, dtype=torch.float64))
    assert bool((found.diff() > 0).all())


# Transforms


class Halves:
    """Half sums and half differences of neighbours: orthogonal, and both forms of one transform."""

    @property
    def freedom(self) -> Tensor:
        return torch.ones(4)

    def analyse(self, x: Tensor, /) -> Tensor:
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        halves: Tensor = torch.cat([pairs.sum(-1), pairs[..., 0] - pairs[..., 1]], -1) / 2**0.5
        return halves


def halves() -> wx_estimators.SpectralAnalysis:
    return Halves()


class AnalyseOnly(Protocol):
    def analyse(self, x: Tensor, /) -> Tensor: ...


def refused_transform(transform: AnalyseOnly) -> wx_estimators.SpectralAnalysis:
    return transform  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def test_transform_keeps_the_mean_square() -> None:
    x, transform = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), halves()
    freedom = transform.freedom
    mean = (freedom * transform.analyse(x).square()).sum(-1) / freedom.sum()
    torch.testing.assert_close(mean, x.square().mean(-1))


class Constant:
    """The mean alone: Y_00 = 1 / sqrt(4 pi)."""

    def synthesize(self, coefficients: Tensor, /) -> Tensor:
        value: Tensor = coefficients[:, 0, 0].real / (4 * torch.pi) ** 0.5
        return value[:, None, None].expand(-1, 3, 4)


def constant() -> wx_estimators.SphericalSynthesis:
    return Constant()


class NamedOtherwise(Protocol):
    def inverse(self, coefficients: Tensor, /) -> Tensor: ...


def refused_synthesis(transform: NamedOtherwise) -> wx_estimators.SphericalSynthesis:
    return transform  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def test_synthesis_of_the_mean() -> None:
    coefficients = torch.tensor([[[(4 * torch.pi) ** 0.5]]], dtype=torch.complex64)
    torch.testing.assert_close(constant().synthesize(coefficients), torch.ones(1, 3, 4))


# Rollout


class Increment:
    def inputs(
        self, previous: Tensor, current: Tensor, known: Mapping[str, Tensor], /
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return current, {"state": current, "previous": previous, **known}

    def advance(self, current: Tensor, output: Tensor, /) -> Tensor:
        return current + output


def increment() -> wx_estimators.Transition:
    return Increment()


class AdvanceOnly(Protocol):
    def advance(self, current: Tensor, output: Tensor, /) -> Tensor: ...


def refused_transition(transition: AdvanceOnly) -> wx_estimators.Transition:
    return transition  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def test_transition_treats_rows_alone() -> None:
    transition, states = increment(), torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    base, cond = transition.inputs(states[0], states[1], {})
    alone, _ = transition.inputs(states[0][1:2], states[1][1:2], {})
    assert torch.equal(base[1:2], alone)
    assert cond.keys() == {"state", "previous"}
    assert torch.equal(transition.advance(states[1], base)[1:2], transition.advance(states[1][1:2], alone))
