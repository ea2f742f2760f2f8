"""Bilinear and conservative maps between latitude-longitude grids."""

from typing import Any

import numpy as np
import pytest

from wx_eval import Regridder, cell_weights
from wx_eval._regrid import global_axes
from wx_eval._sections import RegridSettings

GRIDS = {
    "poles": global_axes(19, 36),
    "no poles": global_axes(16, 30),
    "south first": (global_axes(19, 36)[0][::-1], global_axes(19, 36)[1]),
    "gauss": (np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(14)[0])), np.arange(0, 360, 360 / 28)),
    "from -180": (global_axes(13, 24)[0], global_axes(13, 24)[1] - 180),
    "finer": global_axes(61, 120),
}


@pytest.mark.parametrize("source", GRIDS)
@pytest.mark.parametrize("target", GRIDS)
def test_conservative_keeps_constants_and_the_global_mean(source: str, target: str) -> None:
    a, b = GRIDS[source], GRIDS[target]
    regrid = Regridder(a, b, "conservative")
    field = np.random.default_rng(0).standard_normal((2, a[0].size, a[1].size))
    out = regrid(field)
    np.testing.assert_allclose(regrid(np.full(field.shape, 7.3)), 7.3, rtol=1e-13)
    before = np.average(field.mean(-1), axis=-1, weights=cell_weights(a[0]))
    after = np.average(out.mean(-1), axis=-1, weights=cell_weights(b[0]))
    np.testing.assert_allclose(after, before, atol=1e-14)


def test_conservative_onto_cells_that_contain_whole_cells_is_a_weighted_mean() -> None:
    fine, coarse = global_axes(12, 24), global_axes(6, 12)
    field = np.random.default_rng(1).standard_normal((12, 24))
    # Coarse columns are centred on fine ones: half of each neighbour belongs to them.
    columns = (np.roll(field, 1, 1) / 4 + field / 2 + np.roll(field, -1, 1) / 4)[:, ::2]
    edges = np.sin(np.deg2rad(np.linspace(90, -90, 13)))
    area = -np.diff(edges)[:, None]
    expected = (columns * area).reshape(6, 2, 12).sum(1) / area.reshape(6, 2, 1).sum(1)
    np.testing.assert_allclose(Regridder(fine, coarse, "conservative")(field), expected, rtol=1e-12)


@pytest.mark.parametrize("source", GRIDS)
@pytest.mark.parametrize("target", GRIDS)
def test_bilinear_is_exact_for_what_is_linear_in_latitude(source: str, target: str) -> None:
    a, b = GRIDS[source], GRIDS[target]
    regrid = Regridder(a, b, "bilinear")
    field = np.broadcast_to(2 + 0.1 * a[0][:, None], (a[0].size, a[1].size))
    expected = 2 + 0.1 * np.clip(b[0], a[0].min(), a[0].max())
    np.testing.assert_allclose(
        regrid(field), np.broadcast_to(expected[:, None], (b[0].size, b[1].size)), atol=1e-12
    )


def test_bilinear_against_scipy_inside_and_across_the_seam() -> None:
    from scipy.interpolate import RegularGridInterpolator

    a, b = global_axes(19, 36), (np.linspace(83, -77, 11), np.arange(-179.5, 180, 23.0))
    field = np.random.default_rng(2).standard_normal((19, 36))
    ring = np.concatenate([field, field[:, :1]], axis=1)
    peer = RegularGridInterpolator((a[0][::-1], np.append(a[1], 360)), ring[::-1])
    points = np.stack(np.meshgrid(b[0], b[1] % 360, indexing="ij"), axis=-1)
    np.testing.assert_allclose(Regridder(a, b, "bilinear")(field), peer(points), atol=1e-12)


@pytest.mark.parametrize("method", ["bilinear", "conservative"])
def test_the_same_grid_is_left_alone(method: Any) -> None:
    a = GRIDS["poles"]
    field = np.random.default_rng(3).standard_normal((19, 36))
    np.testing.assert_allclose(Regridder(a, a, method)(field), field, atol=1e-13)


def test_missing_points_are_left_out_or_spread() -> None:
    fine, coarse = global_axes(12, 24), global_axes(6, 12)
    field = np.random.default_rng(4).standard_normal((12, 24))
    field[4:6, 7:10] = np.nan
    out = Regridder(fine, coarse, "conservative")(field)
    assert np.isnan(out[2, 4])
    assert np.isfinite(out[2, [3, 5]]).all()
    # Column 3 (45 degrees wide by half cells at 5, 6, 7) keeps its three quarters of present area.
    area = -np.diff(np.sin(np.deg2rad(np.linspace(90, -90, 13))))[4:6]
    part = (field[4:6, 5] / 4 + field[4:6, 6] / 2) / 0.75
    assert out[2, 3] == pytest.approx(part @ area / area.sum(), rel=1e-12)
    spread = Regridder(fine, (fine[0], fine[1] + 7.5), "bilinear")(field)
    assert np.isnan(spread[4:6, 6:10]).all()
    assert np.isfinite(spread).sum() == 12 * 24 - 8


def test_nothing_is_extrapolated() -> None:
    crop = (np.linspace(60, 30, 7), np.linspace(-20, 20, 9))
    inside = (np.linspace(55, 35, 5), np.linspace(-15, 15, 7))
    for method in ("bilinear", "conservative"):
        np.testing.assert_allclose(Regridder(crop, inside, method)(np.ones((7, 9))), 1, rtol=1e-13)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="reaches beyond the source in latitude"):
            Regridder(crop, (np.linspace(70, 35, 5), inside[1]), method)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="reaches beyond the source in longitude"):
            Regridder(crop, (inside[0], np.linspace(-40, 15, 7)), method)  # type: ignore[arg-type]


def edges(axes: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sines of the edges of rows and edges of columns of a global grid, cell by cell."""
    latitude, longitude = axes
    middle = (latitude[:-1] + latitude[1:]) / 2
    pole = 90.0 * np.sign(latitude[0])
    step = 360 / longitude.size
    rows = np.sin(np.deg2rad(np.concatenate([[pole], middle, [-pole]])))
    return rows, longitude[0] - step / 2 + step * np.arange(longitude.size + 1)


@pytest.mark.parametrize("source", GRIDS)
@pytest.mark.parametrize("target", GRIDS)
def test_conservative_is_the_mean_over_what_cells_share(source: str, target: str) -> None:
    """Every pair of cells by itself, with dense matrices."""
    (rows, columns), (to_rows, to_columns) = edges(GRIDS[source]), edges(GRIDS[target])

    def shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        low, high = np.minimum(a[:-1], a[1:]), np.maximum(a[:-1], a[1:])
        width = np.minimum(high, np.maximum(b[:-1], b[1:])[:, None])
        width = width - np.maximum(low, np.minimum(b[:-1], b[1:])[:, None])
        return np.maximum(width, 0)

    across = sum(shared(columns + turn, to_columns) for turn in (-720, -360, 0, 360, 720))
    down = shared(rows, to_rows)
    field = np.random.default_rng(5).standard_normal((rows.size - 1, columns.size - 1))
    area = down.sum(1)[:, None] * across.sum(1)
    expected = (down @ field @ across.T) / area
    got = Regridder(GRIDS[source], GRIDS[target], "conservative")(field)
    np.testing.assert_allclose(got, expected, atol=1e-13)


@pytest.mark.parametrize("method", ["bilinear", "conservative"])
def test_a_field_has_the_same_bits_alone_and_among_others(method: Any) -> None:
    regrid = Regridder(GRIDS["finer"], GRIDS["no poles"], method)
    fields = np.random.default_rng(6).standard_normal((3, 2, 61, 120))
    fields[1, 0, 7, 9] = np.nan
    out = regrid(fields)
    assert out.shape == (3, 2, 16, 30)
    for k in np.ndindex(3, 2):
        if k != (1, 0):
            np.testing.assert_array_equal(out[k], regrid(fields[k]))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 61, 120\), got \(120, 61\)"):
        regrid(fields[0, 0].T)


@pytest.mark.parametrize("method", ["bilinear", "conservative"])
def test_weights_take_no_more_room_than_the_neighbours(method: Any) -> None:
    """Dense they would be 5 GB."""
    coarse, fine = global_axes(721, 1440), global_axes(18001, 36000)
    for source, target in ((coarse, fine), (fine, coarse)):
        regrid = Regridder(source, target, method)
        for matrix in (regrid._rows, regrid._columns):
            assert matrix.nnz <= 2 * sum(matrix.shape)
            np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("99999999x9", "99999999 x 9 is finer than 0.005 degrees: give at most 36001 rows and 72000 columns"),
        ("9x72001", "finer than 0.005 degrees"),
        ("1x9", "2 rows and columns or more"),
        ("9", 'must be "truth", "forecast" or such as "121x240"'),
    ],
)
def test_sizes_that_no_grid_has(grid: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegridSettings(method="bilinear", grid=grid)
    if "x" in grid:
        with pytest.raises(ValueError, match=message):
            global_axes(*map(int, grid.split("x")))
