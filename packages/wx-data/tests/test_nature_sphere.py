"""Transforms against closed forms and invariants; float32 throughout, tolerance 1e-5 of the largest value."""

import numpy as np
import pytest
import torch
from torch import Tensor

from wx_data.nature import Analysis, Synthesis
from wx_data.nature._sphere import gaussian_latitudes, laplacian_eigenvalues, legendre

GRIDS = [(21, 32, 64), (42, 64, 128)]
TOLERANCE = 1e-5


def coefficients(truncation: int, rows: int = 3) -> Tensor:
    size = truncation + 1
    values = torch.randn(size, 2, rows, size, generator=torch.Generator().manual_seed(7))
    values *= torch.tensor([[float(n >= m) for n in range(size)] for m in range(size)])[:, None, None]
    values[0, 1] = 0.0
    return values


def pair(truncation: int, nlat: int, nlon: int, radius: float = 1.0) -> tuple[Synthesis, Analysis]:
    sines, _ = gaussian_latitudes(nlat)
    return Synthesis(truncation, sines, nlon, radius=radius), Analysis(truncation, nlat, nlon, radius=radius)


def cartesian(nlat: int, nlon: int) -> tuple[Tensor, Tensor, Tensor]:
    sines, _ = gaussian_latitudes(nlat)
    lat, lon = np.arcsin(sines)[None, :], (2 * np.pi * np.arange(nlon) / nlon)[:, None]
    points = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat) + 0 * lon
    return tuple(torch.from_numpy(p).float() for p in points)  # type: ignore[return-value]


@pytest.mark.parametrize(("truncation", "nlat", "nlon"), GRIDS)
def test_round_trip(truncation: int, nlat: int, nlon: int) -> None:
    synthesis, analysis = pair(truncation, nlat, nlon)
    start = coefficients(truncation)
    back = analysis.scalar(analysis.fourier(synthesis.scalar(start)))
    assert (back - start).abs().max() < TOLERANCE * start.abs().max()


@pytest.mark.parametrize(("truncation", "nlat", "nlon"), GRIDS)
def test_vorticity_and_divergence_survive_the_wind(truncation: int, nlat: int, nlon: int) -> None:
    synthesis, analysis = pair(truncation, nlat, nlon, radius=6.371e6)
    start = coefficients(truncation, 2) * 1e-5
    start[..., 0] = 0.0
    waves = analysis.fourier(synthesis.wind(start[:, :, :1], start[:, :, 1:]))
    east, north = waves[:, :, 0], waves[:, :, 1]
    assert (analysis.curl(east, north) - start[:, :, :1]).abs().max() < TOLERANCE * start.abs().max()
    assert (analysis.divergence(east, north) - start[:, :, 1:]).abs().max() < TOLERANCE * start.abs().max()


@pytest.mark.parametrize(("truncation", "nlat", "nlon"), GRIDS)
def test_parseval(truncation: int, nlat: int, nlon: int) -> None:
    synthesis, _ = pair(truncation, nlat, nlon)
    start = coefficients(truncation)
    _, weights = gaussian_latitudes(nlat)
    mean = (synthesis.scalar(start).double() ** 2).mean(0) @ torch.from_numpy(weights.copy())
    power = (start.double() ** 2).sum((1, 3))
    torch.testing.assert_close(mean, power[0] + 2 * power[1:].sum(0), rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize(("truncation", "nlat", "nlon"), GRIDS)
def test_gradient_and_laplacian_of_a_cubic(truncation: int, nlat: int, nlon: int) -> None:
    """f = x y z is a harmonic of degree 3: laplacian -12 f; its gradient by hand."""
    synthesis, analysis = pair(truncation, nlat, nlon)
    x, y, z = cartesian(nlat, nlon)
    field = (x * y * z)[:, None]
    laplacian = (
        analysis.scalar(analysis.fourier(field)) * torch.from_numpy(laplacian_eigenvalues(truncation)).float()
    )
    assert (synthesis.scalar(laplacian) + 12 * field).abs().max() < TOLERANCE * 12
    slope = synthesis.wind(torch.zeros_like(laplacian), laplacian)[:, :, 0]
    cosine = torch.sqrt(1 - z**2)
    lon = (2 * torch.pi * torch.arange(nlon) / nlon)[:, None]
    east = cosine * z * torch.cos(2 * lon)
    north = 0.5 * torch.sin(2 * lon) * (cosine**3 - 2 * cosine * z**2)
    assert (slope[:, 0] - east).abs().max() < TOLERANCE
    assert (slope[:, 1] - north).abs().max() < TOLERANCE


def test_solid_rotation_and_flow_over_the_poles() -> None:
    """Vorticity 2 mu is the wind cos(lat); rotated by 90 degrees it blows straight across the poles."""
    latitudes = np.linspace(90, -90, 33)
    synthesis = Synthesis(21, np.sin(np.deg2rad(latitudes)), 64)
    spin = torch.zeros(22, 2, 2, 22)
    spin[0, 0, 0, 1] = 2 / np.sqrt(3)  # 2 mu
    spin[1, 0, 1, 1] = 1 / np.sqrt(1.5)  # 2 cos(lat) cos(lon)
    wind = synthesis.wind(spin, torch.zeros_like(spin))
    cosine = torch.from_numpy(np.cos(np.deg2rad(latitudes))).float()
    assert (wind[:, 0, 0] - cosine).abs().max() < TOLERANCE
    assert wind[:, 1, 0].abs().max() < TOLERANCE
    speed = wind[:, :, 1, 0].norm(dim=1)
    assert (speed - 1).abs().max() < TOLERANCE
    lon = 2 * torch.pi * torch.arange(64) / 64
    assert (wind[:, 0, 1, 0] + torch.cos(lon)).abs().max() < TOLERANCE


def test_a_scalar_has_one_value_at_a_pole() -> None:
    synthesis = Synthesis(21, [1.0, 0.3, -1.0], 64)
    values = synthesis.scalar(coefficients(21))
    assert (values[..., [0, 2]] - values[:1, :, [0, 2]]).abs().max() < 1e-4  # 22 waves of size ~5 each


def test_legendre_functions_are_orthonormal_to_rounding_at_high_degree() -> None:
    sines, weights = gaussian_latitudes(192)
    values, _, _ = legendre(127, sines)
    for m in (0, 1, 40, 127):
        gram = (values[m, m:] * weights) @ values[m, m:].T
        assert np.abs(gram - np.eye(128 - m)).max() < 1e-12


@pytest.mark.parametrize("kind", [Synthesis, Analysis])
def test_refuses_too_few_longitudes(kind: type) -> None:
    with pytest.raises(ValueError, match="T21 needs more than"):
        kind(21, [0.0] if kind is Synthesis else 32, 42)
