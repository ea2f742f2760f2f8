"""Grids: area weights in closed form, order, bilinear regridding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wx_data import Grid
from wx_data._grid import regrid, reorder


@pytest.mark.parametrize("poles", [True, False])
@pytest.mark.parametrize("rows", [2, 9, 33, 181])
def test_area_weights_integrate_one_and_linear_functions_of_sine(rows: int, poles: bool) -> None:
    grid = Grid.regular(rows, 8, poles=poles)
    weights = grid.area_weights()
    assert weights.sum() == pytest.approx(1.0, abs=1e-14)
    np.testing.assert_allclose(weights, weights[::-1], atol=1e-15)
    assert weights @ np.sin(np.deg2rad(grid.latitude)) == pytest.approx(0.0, abs=1e-14)


def test_area_of_a_polar_cap_is_exact() -> None:
    weights = Grid.regular(33, 64).area_weights()
    edge = np.deg2rad(90 - 180 / 32 / 2)
    assert weights[0] == pytest.approx((1 - np.sin(edge)) / 2, rel=1e-12)


def test_limited_area_weights_follow_the_cell_edges() -> None:
    weights = Grid(np.array([50.0, 40.0, 30.0]), np.array([0.0, 10.0])).area_weights()
    edges = np.sin(np.deg2rad([55, 45, 35, 25]))
    np.testing.assert_allclose(weights, -np.diff(edges) / (edges[0] - edges[-1]), rtol=1e-13)


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        ([-90, 0, 90], [0, 180], "index 0"),
        ([90, 0, -90], [-180, 0], "0..<360"),
        ([90, 0, -90], [0, 180, 360], "0..<360"),
        ([95, 0, -90], [0, 180], "-90..90"),
        ([90, 0, -90], [180, 0], "increase"),
        ([90, np.nan, -90], [0, 180], "finite"),
    ],
)
def test_wrong_coordinates_are_refused(latitude: list[float], longitude: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(np.array(latitude, float), np.array(longitude, float))


def test_reorder_flips_and_rolls() -> None:
    field = np.arange(12.0).reshape(3, 4)
    order = reorder([-90, 0, 90], [-180, -90, 0, 90])
    np.testing.assert_array_equal(order.grid.longitude, [0, 90, 180, 270])
    np.testing.assert_array_equal(order.grid.latitude, [90, 0, -90])
    np.testing.assert_array_equal(order(field), field[::-1][:, [2, 3, 0, 1]])


def test_repeated_column_is_refused() -> None:
    with pytest.raises(ValueError, match="repeats a column"):
        reorder([90, 0, -90], [0, 120, 240, 360])
    with pytest.raises(ValueError, match="repeats a column"):
        reorder([90, 0, -90], [-180, -60, 60, 180])


def test_equality_is_by_coordinates() -> None:
    grid = Grid.regular(9, 16)
    assert grid == Grid(grid.latitude.astype(np.float32), grid.longitude.astype(np.float32))
    assert grid != Grid.regular(9, 16, poles=False)
    assert len({grid, Grid.regular(9, 16)}) == 1


@settings(max_examples=30, deadline=None)
@given(
    st.integers(3, 20),
    st.integers(4, 20),
    st.integers(2, 25),
    st.integers(1, 25),
    st.floats(-50, 50),
    st.booleans(),
)
def test_constants_are_kept(h: int, w: int, rows: int, columns: int, value: float, poles: bool) -> None:
    source, target = Grid.regular(h, w, poles=poles), Grid.regular(rows, columns)
    out = regrid(np.full((2, h, w), value), source, target)
    np.testing.assert_allclose(out, np.float32(value), rtol=1e-6)


def test_linear_functions_are_reproduced_inside() -> None:
    source, target = Grid.regular(19, 36), Grid.regular(33, 64)
    field = np.broadcast_to(source.latitude[:, None], source.shape)
    np.testing.assert_allclose(regrid(field, source, target)[:, 0], target.latitude, atol=1e-5)
    east = np.broadcast_to(source.longitude, source.shape)
    inside = target.longitude <= 350
    np.testing.assert_allclose(regrid(east, source, target)[5, inside], target.longitude[inside], atol=1e-4)


def test_longitude_is_periodic() -> None:
    source = Grid.regular(5, 4)
    field = np.broadcast_to([0.0, 1.0, 2.0, 4.0], source.shape)
    out = regrid(field, source, Grid.regular(5, 8))
    np.testing.assert_allclose(out[2], [0, 0.5, 1, 1.5, 2, 3, 4, 2], atol=1e-6)


def test_pole_of_a_scalar_is_single_valued_and_of_a_wind_is_not() -> None:
    source, target = Grid.regular(8, 16, poles=False), Grid.regular(9, 16)
    field = np.random.default_rng(0).standard_normal(source.shape)
    scalar = regrid(field, source, target)
    np.testing.assert_allclose(scalar[0], field[0].mean(), rtol=1e-5)
    np.testing.assert_allclose(scalar[-1], field[-1].mean(), rtol=1e-5)
    np.testing.assert_allclose(regrid(field, source, target, wind=True)[0], field[0], rtol=1e-6)


def test_missing_values_are_left_out_where_less_than_half() -> None:
    source = Grid(np.array([10.0, 0.0]), np.array([0.0, 10.0]))
    field = np.array([[np.nan, 3.0], [3.0, 3.0]])
    near = Grid(np.array([9.0, 5.0]), np.array([1.0, 5.0]))
    out = regrid(field, source, near)
    assert np.isnan(out[0, 0])
    np.testing.assert_allclose(out[1], 3.0, rtol=1e-6)


def test_regridding_never_extrapolates() -> None:
    source = Grid(np.array([60.0, 50.0]), np.array([0.0, 10.0]))
    with pytest.raises(ValueError, match="never extrapolates"):
        regrid(np.zeros((2, 2)), source, Grid.regular(5, 4))
    with pytest.raises(ValueError, match="source grid"):
        regrid(np.zeros((3, 2)), source, source)
