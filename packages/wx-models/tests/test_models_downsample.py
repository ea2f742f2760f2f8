"""Downsampling: conservation, closed forms, symmetry, the published variant."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from wx_models import Downsample
from wx_models._downsample import Upsample


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cell_areas(rows: int, *, poles: bool = True) -> Tensor:
    """Exact integral of cos(latitude) over each row's cell, by its own formula."""
    spacing = math.pi / (rows - 1 if poles else rows)
    colatitude = (torch.arange(rows, dtype=torch.float64) + (0.0 if poles else 0.5)) * spacing
    upper = (colatitude - spacing / 2).clamp(0, math.pi)
    lower = (colatitude + spacing / 2).clamp(0, math.pi)
    return torch.cos(upper) - torch.cos(lower)


def global_mean(x: Tensor, *, poles: bool = True) -> Tensor:
    areas = cell_areas(x.shape[-2], poles=poles)
    return (x.mean(-1) * areas).sum(-1) / areas.sum()


MODES = ["area_mean", "bilinear_periodic", "parity_bilinear"]
CASES = [
    pytest.param((33, 64), (2, 2), True, (17, 32), id="33x64"),
    pytest.param((13, 18), (3, 3), True, (5, 6), id="odd-factor"),
    pytest.param((25, 16), (4, 4), True, (7, 4), id="factor-4"),
    pytest.param((32, 64), (2, 2), False, (16, 32), id="cell-centres"),
    pytest.param((33, 64), (1, 1), True, (33, 64), id="identity"),
]


@pytest.mark.parametrize(("grid", "factor", "poles", "size"), CASES)
def test_area_mean_conserves_the_global_mean(
    grid: tuple[int, int], factor: tuple[int, int], poles: bool, size: tuple[int, int]
) -> None:
    downsample = Downsample(grid, factor)
    x = draw(2, 3, *grid)
    z = downsample(x)
    assert z.shape == (2, 3, *size)
    assert downsample.size == size
    # The weights are stored in float32.
    torch.testing.assert_close(global_mean(z, poles=poles), global_mean(x, poles=poles), rtol=0.0, atol=2e-8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("grid", "factor", "poles", "size"), CASES)
def test_constants_are_kept(
    grid: tuple[int, int], factor: tuple[int, int], poles: bool, size: tuple[int, int], mode: str
) -> None:
    z = Downsample(grid, factor, mode=mode, poles=poles)(torch.full((1, 1, *grid), 3.5))
    torch.testing.assert_close(z, torch.full((1, 1, *size), 3.5))


def test_atlas_grid() -> None:
    downsample = Downsample((721, 1440), (4, 4))
    assert downsample.size == (181, 360)
    np.testing.assert_allclose(downsample.latitude, np.linspace(90, -90, 181))
    np.testing.assert_allclose(downsample.longitude, np.arange(360.0))


def test_zonal_waves_shrink_by_the_cell_mean() -> None:
    """cos(m lon) under weights (1/4, 1/2, 1/4) becomes cos^2(m pi / W) cos(m lon) on the coarse columns."""
    longitude = torch.arange(64, dtype=torch.float64) * (2 * math.pi / 64)
    for wave in (0, 1, 5, 16, 32):
        x = torch.cos(wave * longitude).expand(1, 1, 33, 64)
        expected = math.cos(wave * math.pi / 64) ** 2 * x[..., :17, ::2]
        torch.testing.assert_close(Downsample((33, 64), (2, 2))(x), expected, rtol=0.0, atol=1e-6)


def test_polar_row_is_the_mean_of_its_cap() -> None:
    """5 rows, factor 2: the polar cell reaches 45 degrees, the fine polar cell 67.5."""
    x = draw(1, 1, 5, 4).mean(-1, keepdim=True).expand(1, 1, 5, 4)
    cap, polar = 1 - math.sin(math.pi / 4), 1 - math.sin(3 * math.pi / 8)
    expected = (polar * x[0, 0, 0, 0] + (cap - polar) * x[0, 0, 1, 0]) / cap
    z = Downsample((5, 4), (2, 2))(x)
    torch.testing.assert_close(z[0, 0, 0, 0], expected, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("mode", ["area_mean", "bilinear_periodic"])
def test_commutes_with_rotation_and_reflection(mode: str) -> None:
    downsample, x = Downsample((33, 64), (2, 2), mode=mode), draw(1, 2, 33, 64)
    torch.testing.assert_close(downsample(x.roll(6, -1)), downsample(x).roll(3, -1))
    torch.testing.assert_close(downsample(x.flip(-2)), downsample(x).flip(-2), rtol=0.0, atol=1e-6)


def test_bilinear_picks_points_of_a_grid_with_poles() -> None:
    x = draw(1, 2, 33, 64)
    torch.testing.assert_close(Downsample((33, 64), (2, 4), mode="bilinear_periodic")(x), x[..., ::2, ::4])


def test_parity_picks_rows_and_stretches_columns() -> None:
    """Last coarse column = last fine column; between them steps of (W - 1) / (w - 1) fine columns."""
    downsample = Downsample((9, 12), (4, 4), mode="parity_bilinear")
    x = draw(1, 1, 9, 12)
    middle = 0.5 * (x[..., ::4, 5] + x[..., ::4, 6])
    expected = torch.stack([x[..., ::4, 0], middle, x[..., ::4, 11]], -1)
    torch.testing.assert_close(downsample(x), expected)
    np.testing.assert_allclose(downsample.longitude, [0.0, 165.0, 330.0])
    np.testing.assert_allclose(downsample.latitude, [90.0, 0.0, -90.0])


@pytest.mark.parametrize("grid", [(33, 64), (32, 64)])
def test_coordinates_are_those_of_the_field(grid: tuple[int, int]) -> None:
    """Interpolation reproduces a field that is linear in latitude exactly."""
    poles = grid[0] % 2 == 1
    latitude = 90 - (torch.arange(grid[0]) + (0 if poles else 0.5)) * 180 / (grid[0] - poles)
    x = latitude.view(1, 1, -1, 1).expand(1, 1, *grid)
    downsample = Downsample(grid, (2, 2), mode="bilinear_periodic")
    expected = torch.as_tensor(downsample.latitude).float().view(1, 1, -1, 1).expand(1, 1, *downsample.size)
    torch.testing.assert_close(downsample(x), expected)
    assert downsample.longitude[0] == 0.0
    assert downsample.longitude[-1] == 360.0 - 360.0 / 32


def test_area_is_the_cell_area() -> None:
    area = torch.as_tensor(Downsample((33, 64), (2, 2)).area)
    torch.testing.assert_close(area, cell_areas(17) / cell_areas(17).mean())


def test_gradient_is_the_adjoint() -> None:
    downsample, x = Downsample((9, 8), (2, 2)), draw(1, 1, 9, 8).requires_grad_()
    cotangent = draw(1, 1, 5, 4, seed=1)
    (pulled,) = torch.autograd.grad(downsample(x), x, cotangent)
    direction = draw(1, 1, 9, 8, seed=2)
    torch.testing.assert_close((pulled * direction).sum(), (cotangent * downsample(direction)).sum())


def test_autocast_does_not_round_states() -> None:
    downsample, x = Downsample((33, 64), (2, 2)), draw(1, 2, 33, 64).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = downsample(x)
    torch.testing.assert_close(rounded, downsample(x), rtol=0.0, atol=0.0)


def test_has_no_parameters_and_no_state() -> None:
    assert not list(Downsample((33, 64), (2, 2)).parameters())
    assert not Downsample((33, 64), (2, 2)).state_dict()


@pytest.mark.parametrize("factor", [(2, 2), (4, 4), (2, 4)])
def test_upsampling_meets_the_latent_at_its_points(factor: tuple[int, int]) -> None:
    z = draw(1, 2, 32 // factor[0] + 1, 64 // factor[1])
    x = Upsample((33, 64), factor)(z)
    torch.testing.assert_close(x[..., :: factor[0], :: factor[1]], z)
    half = factor[1] // 2
    torch.testing.assert_close(x[..., :: factor[0], half :: factor[1]], (z + z.roll(-1, -1)) / 2)
    torch.testing.assert_close(x[..., factor[0] // 2, 0], (z[..., 0, 0] + z[..., 1, 0]) / 2)


@pytest.mark.parametrize(
    ("grid", "factor", "options", "message"),
    [
        ((34, 64), (4, 2), {}, "H = 34 does not fit"),
        ((33, 64), (2, 3), {}, "must divide the number of columns 64"),
        ((32, 64), (2, 2), {"poles": True}, "with rows at the poles"),
        ((33, 64), (2, 2), {"mode": "nearest"}, "mode must be one of"),
    ],
)
def test_refuses_grids_that_do_not_fit(
    grid: tuple[int, int], factor: tuple[int, int], options: dict[str, bool | str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Downsample(grid, factor, **options)  # type: ignore[arg-type]


def test_refuses_fields_on_another_grid() -> None:
    with pytest.raises(ValueError, match=r"expected fields on the \(33, 64\) grid"):
        Downsample((33, 64), (2, 2))(torch.zeros(1, 1, 32, 64))
