"""Grids: area weights in closed form, order, bilinear regridding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wx_data import Grid
from wx_data._conservative import regrid_conservative
from wx_data._grid import Points, nearest_present, regrid, reorder
from wx_data._healpix import Healpix


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


@pytest.mark.parametrize(
    ("longitude", "periodic"),
    [
        ([0.0, 5.0, 10.0], False),
        ([0.0, 90.0, 180.0, 270.0], True),
        ([0.0], True),
        ([0.0, 120.0, 240.0], True),
        ([0.0, 120.0], False),
        (list(np.arange(0.0, 350.0, 10.0)), False),
    ],
)
def test_only_a_full_circle_is_periodic(longitude: list[float], periodic: bool) -> None:
    grid = Grid(np.array([90.0, 0, -90]), np.array(longitude))
    assert grid.is_periodic == periodic
    assert grid.is_global == periodic


def test_a_limited_area_is_not_wrapped() -> None:
    source = Grid(np.array([60.0, 55.0, 50.0]), np.array([0.0, 5.0, 10.0]))
    with pytest.raises(ValueError, match="longitude reaches"):
        regrid(np.ones((3, 3)), source, Grid(np.array([55.0]), np.array([5.0, 180.0])))


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


def _area_mean(field: np.ndarray, grid: Grid) -> np.ndarray:
    return field.astype(np.float64).mean(-1) @ grid.area_weights()


GRIDS = {
    "poles": Grid.regular(33, 64),
    "cells": Grid.regular(32, 64, poles=False),
    "odd": Grid.regular(19, 30),
    "gaussian": Grid(
        np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(48)[0]))[::-1], np.arange(96) * 3.75
    ),
    "shifted": Grid(Grid.regular(45, 8).latitude, 1.25 + 2.5 * np.arange(144)),
}


@pytest.mark.parametrize("source", GRIDS)
@pytest.mark.parametrize("target", GRIDS)
def test_conservative_keeps_area_mean_and_constants(source: str, target: str) -> None:
    here, there = GRIDS[source], GRIDS[target]
    field = np.random.default_rng(0).standard_normal((2, *here.shape)) + 3
    out = regrid_conservative(field, here, there)
    np.testing.assert_allclose(_area_mean(out, there), _area_mean(field, here), rtol=1e-6)
    np.testing.assert_allclose(regrid_conservative(np.full(here.shape, 7.7), here, there), 7.7, rtol=1e-7)


def test_conservative_against_brute_force() -> None:
    """Every pair of cells, its overlap written out as an integral of the indicator functions."""
    source, target = GRIDS["shifted"], GRIDS["odd"]
    field = np.random.default_rng(1).standard_normal(source.shape)
    got = regrid_conservative(field, source, target)
    fine = Grid(90 - 0.125 * (np.arange(1440) + 0.5), 0.25 * (np.arange(1440) + 0.5))

    def cell(edges: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.searchsorted(edges, at, side="right") - 1

    rows = cell(-source.latitude_edges(), -fine.latitude)
    turned = source.longitude_edges()[0] + (fine.longitude - source.longitude_edges()[0]) % 360
    sampled = field[rows][:, cell(source.longitude_edges(), turned)]
    to_rows = cell(-target.latitude_edges(), -fine.latitude)
    to_columns = cell(
        target.longitude_edges(),
        target.longitude_edges()[0] + (fine.longitude - target.longitude_edges()[0]) % 360,
    )
    area = np.broadcast_to(fine.area_weights()[:, None], fine.shape)
    place = (to_rows[:, None] * target.shape[1] + to_columns).ravel()
    total = np.bincount(place, (sampled * area).ravel())
    expected = (total / np.bincount(place, area.ravel())).reshape(target.shape)
    # The fine cells sample edges that do not lie on their borders to half a cell.
    np.testing.assert_allclose(got, expected, atol=0.06)
    assert np.abs(got - expected).mean() < 5e-3


def test_conservative_halves_are_exact_means() -> None:
    source = Grid.regular(8, 16, poles=False)
    target = Grid(source.latitude.reshape(4, 2).mean(1), source.longitude.reshape(8, 2).mean(1))
    field = np.random.default_rng(2).standard_normal(source.shape)
    weights = np.broadcast_to(source.area_weights()[:, None], source.shape)
    total, area = (x.reshape(4, 2, 8, 2).sum((1, 3)) for x in (field * weights, weights))
    np.testing.assert_allclose(regrid_conservative(field, source, target), total / area, rtol=1e-6)


def test_conservative_leaves_out_missing_values() -> None:
    source = Grid.regular(8, 16, poles=False)
    target = Grid(source.latitude.reshape(4, 2).mean(1), source.longitude.reshape(8, 2).mean(1))
    field = np.full(source.shape, 5.0)
    field[0, 0] = np.nan  # the small share of a cell at the pole
    field[2:4, 2] = np.nan  # half of a cell
    field[4:6, 4:6] = np.nan
    field[6, 6], field[7, 6:8] = np.nan, np.nan  # most of a cell
    out = regrid_conservative(field, source, target)
    assert np.isnan(out[2, 2])
    assert np.isnan(out[3, 3])
    assert np.isnan(out).sum() == 2
    np.testing.assert_array_equal(out[~np.isnan(out)], 5.0)


def test_conservative_never_extrapolates() -> None:
    source = Grid(np.array([60.0, 55.0, 50.0]), np.array([0.0, 5.0, 10.0]))
    inside = Grid(np.array([57.5, 52.5]), np.array([2.5, 7.5]))
    np.testing.assert_allclose(regrid_conservative(np.ones((3, 3)), source, inside), 1.0)
    with pytest.raises(ValueError, match="outside the source grid in longitude"):
        regrid_conservative(np.ones((3, 3)), source, Grid(inside.latitude, np.array([2.5, 12.5])))


@pytest.mark.parametrize("order", ["ring", "nested"])
@pytest.mark.parametrize("nside", [1, 2, 4, 32, 128])
def test_healpix_centres_against_healpy(nside: int, order: str) -> None:
    healpy = pytest.importorskip("healpy")
    grid = Healpix(nside, order)
    east, north = healpy.pix2ang(nside, np.arange(12 * nside**2), nest=order == "nested", lonlat=True)
    np.testing.assert_allclose(grid.latitude, north, atol=1e-11)
    np.testing.assert_allclose(grid.longitude, east, atol=1e-11)


def test_healpix_in_closed_form() -> None:
    """Twelve pixels; equal areas integrate low harmonics to zero; nested children surround their parent."""
    first = Healpix(1)
    np.testing.assert_allclose(
        np.sin(np.deg2rad(first.latitude)), np.repeat([2 / 3, 0, -2 / 3], 4), atol=1e-15
    )
    np.testing.assert_allclose(first.longitude, [45, 135, 225, 315, 0, 90, 180, 270, 45, 135, 225, 315])
    for order in ("ring", "nested"):
        grid = Healpix(16, order)
        z, east = np.sin(np.deg2rad(grid.latitude)), np.deg2rad(grid.longitude)
        assert abs(z.mean()) < 1e-14
        assert (z**2).mean() == pytest.approx(1 / 3, abs=1e-3)
        assert abs((np.sqrt(1 - z**2) * np.exp(1j * east)).mean()) < 1e-14
    coarse, fine = Healpix(8, "nested"), Healpix(16, "nested")

    def xyz(grid: Healpix) -> np.ndarray:
        phi, lam = np.deg2rad(grid.latitude), np.deg2rad(grid.longitude)
        return np.stack((np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)), -1)

    middle = xyz(fine).reshape(-1, 4, 3).mean(1)
    apart = np.arccos(np.clip((middle * xyz(coarse)).sum(-1) / np.linalg.norm(middle, axis=-1), -1, 1))
    assert np.rad2deg(apart.max()) < 1.5


@pytest.mark.parametrize(("nside", "order"), [(3, "ring"), (0, "ring"), (4, "spiral")])
def test_healpix_refuses(nside: int, order: str) -> None:
    with pytest.raises(ValueError, match=r"power of two|'ring' or 'nested'"):
        Healpix(nside, order)


def test_points_are_interpolated_as_grids_are() -> None:
    source, target = Grid.regular(19, 36), Grid.regular(33, 64)
    field = np.random.default_rng(3).standard_normal((2, *source.shape))
    field[0, 4:8, 4:9] = np.nan
    north, east = (at.ravel() for at in np.meshgrid(target.latitude, target.longitude, indexing="ij"))
    for poles in (True, False):
        source = Grid.regular(19, 36, poles=poles)
        points = Points(source, north, east)
        for wind in (False, True):
            got = points(field, wind=wind).reshape(2, *target.shape)
            np.testing.assert_allclose(got, regrid(field, source, target, wind=wind), atol=1e-6)
    area = Grid(np.array([60.0, 50.0, 45.0]), np.array([5.0, 10.0, 20.0]))
    values = np.arange(9.0).reshape(3, 3)
    inside = Grid(np.array([60.0, 47.0]), np.array([7.0, 20.0]))
    at = Points(area, np.repeat(inside.latitude, 2), np.tile(inside.longitude, 2))
    np.testing.assert_allclose(at(values).reshape(2, 2), regrid(values, area, inside), atol=1e-6)
    with pytest.raises(ValueError, match="never extrapolates"):
        Points(area, np.array([50.0]), np.array([21.0]))


def test_healpix_source_reproduces_smooth_fields() -> None:
    source = Grid.regular(181, 360)
    phi, lam = np.deg2rad(source.latitude)[:, None], np.deg2rad(source.longitude)
    pixels = Healpix(32, "nested")
    got = Points(source, pixels.latitude, pixels.longitude)(np.cos(phi) * np.cos(lam))
    at_phi, at_lam = np.deg2rad(pixels.latitude), np.deg2rad(pixels.longitude)
    np.testing.assert_allclose(got, np.cos(at_phi) * np.cos(at_lam), atol=1e-4)


def test_nearest_present_against_brute_force() -> None:
    grid = Grid.regular(13, 18)
    missing = np.random.default_rng(4).uniform(size=grid.shape) < 0.85
    missing[5] = True
    phi, lam = (np.deg2rad(x).ravel() for x in np.meshgrid(grid.latitude, grid.longitude, indexing="ij"))
    cosine = np.sin(phi)[:, None] * np.sin(phi) + np.cos(phi)[:, None] * np.cos(phi) * np.cos(
        lam[:, None] - lam
    )
    gone, there = np.flatnonzero(missing), np.flatnonzero(~missing)
    best = cosine[np.ix_(gone, there)].max(axis=1)
    got = nearest_present(missing, grid)
    assert not missing.ravel()[got].any()
    np.testing.assert_allclose(cosine[gone, got], best, atol=1e-12)
    with pytest.raises(ValueError, match="every point"):
        nearest_present(np.ones(grid.shape, bool), grid)


def test_a_regridded_source_converts(make_source, tmp_path) -> None:
    from wx_data import Store, convert
    from wx_data._regrid import RegriddedSource

    inner = make_source(steps=3, names=("u850", "t850"))
    coarse = Grid.regular(5, 8)
    source = RegriddedSource(inner, coarse, "conservative")
    convert(source, tmp_path / "s", implausible="keep")
    store = Store(tmp_path / "s")
    expected = regrid_conservative(inner.read(inner.times, ["u850", "t850"]).values, inner.grid, coarse)
    np.testing.assert_array_equal(store.read(store.times).values, expected)
    assert store.attributes["provenance"]["regridding"] == "conservative"
    assert set(source.statics) == {"z_surface", "lsm"}
    pixels = RegriddedSource(inner, Healpix(2, "nested"))
    state = pixels.read(inner.times[:2], ["t850"])
    assert state.dims == ("time", "channel", "cell")
    assert state.shape == (2, 1, 48)
    assert state["cell"].attrs == {"nside": 2, "order": "nested"}
    with pytest.raises(ValueError, match="lies on a nested Healpix of nside 2, from which nothing"):
        RegriddedSource(pixels, coarse)
    with pytest.raises(ValueError, match="bilinear interpolation"):
        RegriddedSource(inner, Healpix(2), "conservative")
    with pytest.raises(ValueError, match="method must be"):
        RegriddedSource(inner, coarse, "nearest")  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "columns"), [(121, 240), (181, 360), (32, 64)])
def test_the_full_grid_keeps_its_poles_and_its_mean(rows: int, columns: int) -> None:
    """721 rows divide by nothing: no row may be lost on the way to a coarser grid."""
    source, target = Grid.regular(721, 1440), Grid.regular(rows, columns, poles=rows % 2 == 1)
    field = np.random.default_rng(5).standard_normal(source.shape).astype(np.float32) + 270
    field[0] += 100
    field[-1] -= 100
    out = regrid_conservative(field, source, target)
    np.testing.assert_allclose(_area_mean(out, target), _area_mean(field, source), rtol=1e-7)
    assert out[0].mean() > 270.01
    assert out[-1].mean() < 269.99
