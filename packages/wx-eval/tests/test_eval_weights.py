"""Cell weights, regions and units."""

import numpy as np
import pytest

from wx_eval import cell_weights
from wx_eval._grid import Grid
from wx_eval._regions import region_masks
from wx_eval._units import same_units
from wx_eval._weights import Weights, point_weights

POLES = np.linspace(90, -90, 33)
CENTRES = np.linspace(87.1875, -87.1875, 32)


@pytest.mark.parametrize("latitude", [POLES, CENTRES, POLES[::-1]])
def test_cell_weights_are_areas_between_midpoints_and_sum_to_the_sphere(latitude: np.ndarray) -> None:
    area = cell_weights(latitude) / cell_weights(latitude).sum() * 2
    half = 180 / len(POLES[:-1]) / 2
    north = np.sin(np.radians(np.clip(latitude + half, -90, 90)))
    south = np.sin(np.radians(np.clip(latitude - half, -90, 90)))
    np.testing.assert_allclose(area, north - south, rtol=1e-12)
    assert area.sum() == pytest.approx(2, rel=1e-15)


def test_cosine_and_area_differ_at_poles_only_up_to_normalisation() -> None:
    np.testing.assert_allclose(cell_weights(CENTRES, "cos"), cell_weights(CENTRES), rtol=1e-13)
    cosine, area = cell_weights(POLES, "cos"), cell_weights(POLES)
    assert cosine[0] == cosine[-1] == 0
    assert area[0] > 0
    ratio = (cosine / area)[1:-1]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-13)


@pytest.mark.parametrize(
    ("latitude", "message"),
    [
        (np.linspace(60, 20, 41), "stops 110 degrees short"),
        (np.linspace(90, 0, 17), "ambiguous"),
        (np.array([10.0, 20.0, 15.0]), "monotone"),
        (np.linspace(100, -100, 5), "within -90..90"),
    ],
)
def test_ambiguous_rows_are_refused(latitude: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cell_weights(latitude)


def test_regions_are_inclusive_on_both_sides() -> None:
    lat, lon = np.arange(90, -91, -10.0).astype(np.float32), np.arange(0, 360, 90.0)
    masks = {k: m.reshape(19, 4) for k, m in region_masks(Grid.from_axes(lat, lon)).items()}
    assert masks["global"].all()
    for name in ("tropics", "nh"):
        assert masks[name][lat == 20].all()
    for name in ("tropics", "sh"):
        assert masks[name][lat == -20].all()
    assert lat[masks["tropics"][:, 0]].tolist() == [20, 10, 0, -10, -20]
    assert not (masks["nh"] & masks["sh"]).any()


def test_own_masks_are_taken_after_a_check() -> None:
    lat, lon = np.array([45.0, -45.0]), np.array([0.0, 180.0])
    mask = np.array([[True, False], [False, False]])
    assert region_masks(Grid.from_axes(lat, lon), {"box": mask})["box"] is not None
    with pytest.raises(ValueError, match="no point"):
        region_masks(Grid.from_axes(lat, lon), {"box": ~mask & mask})
    with pytest.raises(ValueError, match="boolean mask"):
        region_masks(Grid.from_axes(lat, lon), {"box": mask.astype(float)})
    with pytest.raises(ValueError, match="unknown region 'europa'"):
        region_masks(Grid.from_axes(lat, lon), ["europa"])


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("m s-1", "m/s", True),
        ("m s**-1", "m s^-1", True),
        ("m2 s-2", "m**2 s**-2", True),
        ("kg kg-1", "1", True),
        ("(0 - 1)", "1", True),
        ("kg m-2 s-1", "kg/m2/s", True),
        ("K", "degC", False),
        ("m", "mm", False),
        ("m s-1", "m s-2", False),
        ("Pa", "hPa", False),
        ("10 m", "m", False),
    ],
)
def test_unit_strings_compare_by_meaning(a: str, b: str, same: bool) -> None:
    assert same_units(a, b) is same


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        (POLES, np.array([0.0, np.nan]), "1 values that are not finite"),
        (np.array([95.0, 0, -95]), np.arange(4.0), "within -90..90"),
        (np.zeros((2, 2)), np.arange(4.0), "one dim each"),
    ],
)
def test_positions_that_are_none_are_refused(
    latitude: np.ndarray, longitude: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Grid.from_axes(latitude, longitude)


def test_stations_may_lie_anywhere_on_earth_and_together() -> None:
    assert Grid.from_points([90.0, 90, -90], [0, 360, 0]).size == 3
    with pytest.raises(ValueError, match="not finite"):
        Grid.from_points([0.0, np.nan], [0, 1])


@pytest.mark.parametrize("kind", ["cell", "cos", "equal"])
def test_a_meridian_that_comes_twice_is_refused_unless_the_weights_are_given(kind: Weights) -> None:
    for longitude in (np.linspace(0, 360, 65), np.linspace(-180, 180, 65, dtype=np.float32)[::-1]):
        grid = Grid.from_axes(POLES, longitude)
        with pytest.raises(ValueError, match="a meridian twice"):
            point_weights(grid, kind)
        weights = np.ones(grid.shape)
        weights[:, -1] = 0
        assert point_weights(grid, weights)[0].sum() == 64 * POLES.size
    assert point_weights(Grid.from_axes(POLES, [10.0]), kind)[0].size == POLES.size
