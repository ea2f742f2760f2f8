"""Neighbourhoods: discs against a search tree, fractions and pooled scores against plain recomputation."""

from itertools import combinations

import numpy as np
import pytest
import xarray as xr

from wx_eval import CRPS, Chunk, Metric, Records, cell_weights, compare, evaluate, scores
from wx_eval import _neighbourhood as neighbourhood
from wx_eval._grid import Grid
from wx_eval._neighbourhood import FSS, Discs, PooledCRPS, RowDiscs, UsefulFSS, discs

HOUR = np.timedelta64(1, "h")
START = np.datetime64("2020-01-01T00", "ns")
LAT, LON = np.linspace(90, -90, 13), np.arange(0, 360, 15.0)


def run(
    values: np.ndarray, truth: np.ndarray, metrics: list[Metric], lat: np.ndarray = LAT, **options: object
) -> Records:
    """Records of forecasts (T, M, H, W) against truths (T, H, W)."""
    times = START + 12 * HOUR * np.arange(len(truth))
    where = {"time": times, "channel": ["tp"], "latitude": lat, "longitude": LON[: truth.shape[2]]}
    state = xr.DataArray(truth[:, None], where, ("time", "channel", "latitude", "longitude"))
    chunks = [
        Chunk(init_time=t - 12 * HOUR, lead_time=12 * HOUR, channels=("tp",), values=x[:, None])
        for t, x in zip(times, values, strict=True)
    ]
    return evaluate(chunks, state, model="a", metrics=metrics, **options)  # type: ignore[arg-type]


def score(records: Records, metric: Metric, region: str = "global") -> float:
    found = scores(records, [metric])[metric.name]
    return float(found.sel(model="a", region=region, channel="tp").values.ravel()[0])


def random(members: int = 5, times: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.gamma(0.5, size=(times, members, 13, 24)), rng.gamma(0.5, size=(times, 13, 24))


def distance(lat: np.ndarray = LAT) -> np.ndarray:
    """Great-circle distance of all pairs of points in km."""
    phi, turn = np.deg2rad(np.repeat(lat, 24)), np.deg2rad(np.tile(LON, lat.size))
    along = np.cos(phi)[:, None] * np.cos(phi) * np.cos(turn[:, None] - turn)
    cosine = np.sin(phi)[:, None] * np.sin(phi) + along
    return 6371.0088 * np.arccos(np.clip(cosine, -1, 1))


GRIDS = [np.linspace(90, -90, 19), np.linspace(-85.0, 85.0, 18), np.array([5.0, 15.0, 40.0])]


@pytest.mark.parametrize("lat", GRIDS, ids=["poles", "no poles", "belt"])
@pytest.mark.parametrize("radius", [100.0, 1112.0, 3000.0, 12000.0, 25000.0])
def test_discs_by_rows_are_those_of_a_search_tree(lat: np.ndarray, radius: float) -> None:
    grid = Grid.from_axes(lat, np.arange(0, 360, 10.0))
    assert isinstance(discs(grid, radius), RowDiscs)
    fields = np.random.default_rng(0).standard_normal((3, grid.size))
    rows, tree = RowDiscs(grid, radius), Discs(grid, radius)
    np.testing.assert_array_equal(rows.maxima(fields), tree.maxima(fields))
    np.testing.assert_allclose(rows.sums(fields), tree.sums(fields), rtol=1e-12, atol=1e-12)


def test_limited_grids_and_meshes_have_discs_too() -> None:
    limited = Grid.from_axes(LAT[2:8], LON[:9])
    assert isinstance(discs(limited, 3000.0), Discs)
    mesh = Grid.from_points(np.array([0.0, 0.0, 50.0]), np.array([0.0, 5.0, 0.0]))
    np.testing.assert_array_equal(discs(mesh, 600.0).sums(np.array([[1.0, 2.0, 4.0]])), [[3.0, 3.0, 4.0]])


def test_discs_that_would_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wx_eval._neighbourhood._MOST_ENTRIES", 100)
    with pytest.raises(ValueError, match="choose a smaller radius"):
        Discs(Grid.from_axes(LAT, LON[:9]), 5000.0)


def test_equal_grids_share_discs_and_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, twin = (Grid.from_points(np.linspace(0, 9, 200), np.arange(200) * 0.1) for _ in range(2))
    first = discs(grid, 100.0)
    assert discs(twin, 100.0) is first
    monkeypatch.setattr(neighbourhood._kept, "_limit", 3 * first.nbytes)
    for radius in np.linspace(90, 110, 12):
        discs(grid, radius)
        assert sum(found.nbytes for found in neighbourhood._kept._arrays.values()) <= 3 * first.nbytes
    assert discs(grid, 100.0) is not first


def test_a_shifted_event_scores_what_its_windows_share() -> None:
    """One event forecast d columns off in windows of n: (n - d) / n of the columns of the windows overlap."""
    truth, values = np.zeros((1, 13, 24)), np.zeros((1, 1, 13, 24))
    truth[0, 6, 0] = values[0, 0, 6, 22] = 1.0
    for window, expected in ((1, 0.0), (3, 1 / 3), (5, 3 / 5), (7, 5 / 7)):
        metric = FSS(0.5, window=window)
        got = score(run(values, truth, [metric], weights="equal"), metric)
        assert got == pytest.approx(expected, abs=1e-14)
    # Without going around the globe both windows are cut, the one in column 0 to half.
    zero = FSS(0.5, window=3, edge="zero")
    assert score(run(values, truth, [zero], weights="equal"), zero) == pytest.approx(0.0, abs=1e-14)


def test_perfect_and_empty_forecasts() -> None:
    values, truth = random()
    metrics: list[Metric] = [FSS(1.0, window=5), FSS(1.0, radius_km=2500.0)]
    perfect = run(np.repeat(truth[:, None], 5, axis=1), truth, metrics)
    dry = run(0 * values, truth, metrics)
    nothing = run(0 * values, 0 * truth, metrics)
    for metric in metrics:
        assert score(perfect, metric) == 1.0
        assert score(dry, metric) == pytest.approx(0.0, abs=1e-15)
        assert np.isnan(score(nothing, metric))


@pytest.mark.parametrize("edge", ["periodic", "interior", "zero"])
def test_windows_match_plain_loops(edge: str) -> None:
    values, truth = random()
    half, window = 2, 5
    p, q = (values[0] > 0.7).mean(0), (truth[0] > 0.7).astype(float)
    top = bottom = 0.0
    for i, w in enumerate(cell_weights(LAT)):
        for j in range(24):
            inside_rows = half <= i < 13 - half
            inside = inside_rows and half <= j < 24 - half
            if (edge == "periodic" and not inside_rows) or (edge == "interior" and not inside):
                continue
            a = b = 0.0
            for r in range(max(0, i - half), min(13, i + half + 1)):
                for c in range(j - half, j + half + 1):
                    if edge == "periodic" or 0 <= c < 24:
                        a, b = a + p[r, c % 24] / window**2, b + q[r, c % 24] / window**2
            top, bottom = top + w * (a - b) ** 2, bottom + w * (a * a + b * b)
    metric = FSS(0.7, window=window, edge=edge)
    assert score(run(values, truth, [metric]), metric) == pytest.approx(1 - top / bottom, rel=1e-12)


def test_discs_weigh_points_by_area_and_leave_out_missing_truth() -> None:
    values, truth = random()
    truth[0, 3, 4:9] = np.nan
    used = ~np.isnan(truth[0]).ravel()
    p, q = (values[0] > 0.7).mean(0).ravel(), (truth[0] > 0.7).astype(float).ravel()
    area = np.repeat(cell_weights(LAT), 24) * used
    near = (distance() <= 2500.0) * area
    a, b = near @ p / near.sum(1), near @ q / near.sum(1)
    expected = 1 - float(area @ (a - b) ** 2) / float(area @ (a * a + b * b))
    metrics: list[Metric] = [FSS(0.7, radius_km=2500.0), UsefulFSS(0.7, radius_km=2500.0)]
    records = run(values, truth, metrics)
    assert score(records, metrics[0]) == pytest.approx(expected, rel=1e-12)
    assert score(records, metrics[1]) == pytest.approx(0.5 + float(area @ q / area.sum()) / 2, rel=1e-12)
    assert len(records.statistics) == 1


def test_windows_with_missing_truth_are_left_out() -> None:
    values, truth = random()
    metric = FSS(0.7, window=3, edge="zero")
    holes = truth.copy()
    holes[0, 6, 0] = np.nan
    weights = np.broadcast_to(cell_weights(LAT)[:, None], (13, 24)).copy()
    weights[5:8, [0, 1]] = 0
    got, expected = run(values, holes, [metric]), run(values, truth, [metric], weights=weights)
    assert score(got, metric) == pytest.approx(score(expected, metric), rel=1e-13)


def test_sums_of_many_forecasts_come_before_the_ratio() -> None:
    values, truth = random(times=3)
    metric = FSS(0.7, window=3)
    table = run(values, truth, [metric]).select(region="global").table
    terms = np.array(table[metric.statistics[0].id].to_pylist()).sum(axis=0)
    got = score(run(values, truth, [metric]), metric)
    assert got == pytest.approx(1 - terms[0] / terms[1], rel=1e-13)
    single = [score(run(values[t : t + 1], truth[t : t + 1], [metric]), metric) for t in range(3)]
    assert abs(got - np.mean(single)) > 1e-6


def test_own_quantiles_take_out_any_monotone_bias() -> None:
    values, truth = random(members=1)
    metric = FSS(0.8, radius_km=2000.0, own_quantile=True)
    plain, bent = run(values, truth, [metric]), run(3 * values**2 + 1, truth, [metric])
    assert plain.table.equals(bent.table)
    useful = UsefulFSS(0.8, radius_km=2000.0, own_quantile=True)
    # The event covers the rest of the area, up to the cell that holds the quantile.
    frequency = 2 * (score(run(values, truth, [useful]), useful) - 0.5)
    assert frequency == pytest.approx(0.2, abs=cell_weights(LAT).max() / (13 * 24))


def test_thresholds_by_channel_and_event_signs() -> None:
    values, truth = random()
    named = FSS({"tp": 0.7}, window=3)
    assert score(run(values, truth, [named]), named) == score(
        run(values, truth, [FSS(0.7, window=3)]), FSS(0.7, window=3)
    )
    below, above = FSS(0.7, "<=", window=3), FSS(-0.7, ">=", window=3)
    assert score(run(values, truth, [below]), below) == score(run(-values, -truth, [above]), above)
    with pytest.raises(ValueError, match=r"names the channels \['t2m'\] and the truth has \['tp'\]"):
        run(values, truth, [FSS({"t2m": 0.7}, window=3)])


@pytest.mark.parametrize("kind", ["fair", "biased"])
@pytest.mark.parametrize("pool", ["average", "max"])
def test_pooled_crps_matches_its_definition(pool: str, kind: str) -> None:
    values, truth = random()
    truth[0, 3, 4:9] = np.nan
    used = ~np.isnan(truth[0]).ravel()
    x, y = values[0].reshape(5, -1), np.where(used, truth[0].ravel(), 0.0)
    near = (distance() <= 2500.0) & used
    area = np.repeat(cell_weights(LAT), 24) * used
    if pool == "average":
        x, y = ((near * area) @ f.T / (near @ area)[:, None] for f in (x, y[None]))
        x, y = x.T, y[:, 0]
    else:
        x = np.stack([np.where(near, member, -np.inf).max(axis=1) for member in x])
        y = np.where(near, y, -np.inf).max(axis=1)
    pairs = sum(np.abs(a - b) for a, b in combinations(x, 2)) / (10 if kind == "fair" else 12.5)
    crps = np.abs(x - y).mean(0) - pairs / 2
    metric = PooledCRPS(2500.0, pool, kind)
    got = score(run(values, truth, [metric]), metric)
    assert got == pytest.approx(float(area @ crps / area.sum()), rel=1e-11)


def test_pooling_over_a_point_changes_nothing_and_over_the_globe_leaves_one_number() -> None:
    values, truth = random()
    # Points of a pole row are one point: take a grid without them.
    lat = np.linspace(82.5, -82.5, 12)
    x, y = values[:, :, :12], truth[:, :12]
    metrics: list[Metric] = [CRPS(), PooledCRPS(1.0), PooledCRPS(1.0, "max"), PooledCRPS(30000.0)]
    records = run(x, y, metrics, lat)
    for metric in metrics[1:3]:
        assert score(records, metric) == pytest.approx(score(records, metrics[0]), rel=1e-13)
    weight = cell_weights(lat)[:, None] / (12 * 24)
    means, one = (x[0] * weight).sum((1, 2)), (y[0] * weight).sum()
    pairs = np.abs(np.subtract.outer(means, means)).sum() / 20
    assert score(records, metrics[3]) == pytest.approx(np.abs(means - one).mean() - pairs / 2, rel=1e-11)


def test_metrics_come_back_from_files_and_can_be_compared(tmp_path: object) -> None:
    metrics: list[Metric] = [
        FSS({"tp": 0.7}, window=3),
        FSS(0.7, radius_km=2500.0),
        UsefulFSS(0.7, radius_km=2500.0),
        PooledCRPS(2500.0, "max"),
    ]
    values, truth = random(times=8)
    records = run(values, truth, metrics)
    records.to_parquet(f"{tmp_path}/a.parquet")
    back = Records.from_parquet(f"{tmp_path}/a.parquet")
    assert set(scores(back).data_vars) >= {m.name for m in metrics}
    near = run(0.8 * truth[:, None] + 0.2 * values, truth, metrics)
    for cell in compare(near, records, [metrics[0], metrics[1], metrics[3]]).cells:
        assert cell.skill > 0
        assert cell.p_iid < 1e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FSS(1.0), "either window"),
        (lambda: FSS(1.0, window=3, radius_km=100.0), "either window"),
        (lambda: FSS(1.0, window=4), "odd and positive"),
        (lambda: FSS(1.0, radius_km=0.0), "must be positive"),
        (lambda: FSS(1.0, window=3, edge="reflect"), "edge must be one of"),
        (lambda: FSS(1.0, window=3, own_quantile=True), "is a probability"),
        (lambda: PooledCRPS(-1.0), "must be positive"),
        (lambda: PooledCRPS(1.0, "min"), "pool must be one of"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
