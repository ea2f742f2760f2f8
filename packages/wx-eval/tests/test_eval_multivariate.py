"""Energy and variogram scores: closed forms, plain recomputation, invariance, streams."""

import json
from itertools import combinations

import numpy as np
import pytest
import xarray as xr

from wx_eval import Chunk, Metric, Records, cell_weights, compare, evaluate, scores
from wx_eval._grid import Grid
from wx_eval._multivariate import EnergyScore, JointEnergyScore, MemberStream, VariogramScore, _NearPairs

HOUR = np.timedelta64(1, "h")
START = np.datetime64("2020-01-01T00", "ns")
LAT, LON = np.linspace(90, -90, 13), np.arange(0, 360, 15.0)


def run(
    values: np.ndarray,
    truth: np.ndarray,
    metrics: list[Metric],
    *,
    mesh: tuple | None = None,
    **options: object,
) -> Records:
    """Records of forecasts (T, M, C, *S) against truths (T, C, *S)."""
    times = START + 12 * HOUR * np.arange(len(truth))
    channels = ("u", "v")[: truth.shape[1]]
    dims: tuple[str, ...] = ("latitude", "longitude")
    where: dict[str, object] = {"latitude": LAT, "longitude": LON}
    if mesh is not None:
        dims, where = ("point",), {"latitude": ("point", mesh[0]), "longitude": ("point", mesh[1])}
    state = xr.DataArray(
        truth, {"time": times, "channel": list(channels), **where}, ("time", "channel", *dims)
    )
    chunks = [
        Chunk(init_time=t - 12 * HOUR, lead_time=12 * HOUR, channels=channels, values=x)
        for t, x in zip(times, values, strict=True)
    ]
    return evaluate(chunks, state, model="a", metrics=metrics, **options)  # type: ignore[arg-type]


def score(records: Records, metric: Metric, region: str = "global", channel: str = "u") -> float:
    found = scores(records, [metric])[metric.name]
    return float(found.sel(model="a", region=region, channel=channel).values.ravel()[0])


def random(
    members: int = 6, times: int = 1, channels: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (channels, LAT.size, LON.size)
    return 500 + rng.standard_normal((times, members, *shape)), 500 + rng.standard_normal((times, *shape))


def test_two_members_and_constant_fields_have_the_energy_score_of_numbers() -> None:
    truth = np.zeros((1, 1, 13, 24))
    values = np.stack([np.full((1, 13, 24), 3.0), np.full((1, 13, 24), -1.0)])[None]
    metrics: list[Metric] = [EnergyScore(), EnergyScore("biased"), EnergyScore(norm="euclidean")]
    records = run(values, truth, metrics)
    assert score(records, metrics[0]) == pytest.approx(2 - 4 / 2, abs=1e-12)
    assert score(records, metrics[1]) == pytest.approx(2 - 4 / 4, rel=1e-14)
    assert score(records, metrics[2]) == pytest.approx(0.0, abs=1e-11)
    north = EnergyScore("biased", "euclidean")
    got = score(run(values, truth, [north]), north, "nh")
    points = int((LAT >= 20).sum()) * LON.size
    assert got == pytest.approx(np.sqrt(points) * (2 - 4 / 4), rel=1e-14)


@pytest.mark.parametrize("region", ["global", "tropics"])
def test_energy_scores_match_their_definition_over_all_pairs(region: str) -> None:
    values, truth = random()
    rows = np.abs(LAT) <= (90 if region == "global" else 20)
    weight = np.broadcast_to((cell_weights(LAT) * rows)[:, None], (13, 24))
    x, y = values[0, :, 0], truth[0, 0]

    def area(d: np.ndarray) -> float:
        return float(np.sqrt((weight * d**2).sum() / weight.sum()))

    def plain(d: np.ndarray) -> float:
        return float(np.sqrt((d[rows] ** 2).sum()))

    for norm, name in ((area, "area"), (plain, "euclidean")):
        skill = np.mean([norm(m - y) for m in x])
        pairs = [norm(a - b) for a, b in combinations(x, 2)]
        near = {k: [norm(x[i + j] - x[i]) for j in range(1, k + 1) for i in range(6 - j)] for k in (1, 2)}
        expected = {
            EnergyScore("fair", name): skill - np.mean(pairs) / 2,
            EnergyScore("biased", name): skill - np.mean(pairs) / 2 * 5 / 6,
            EnergyScore("fair", name, lags=1): skill - np.mean(near[1]) / 2,
            EnergyScore("fair", name, lags=2): skill - np.mean(near[2]) / 2,
            EnergyScore("fair", name, lags=5): skill - np.mean(pairs) / 2,
        }
        records = run(values, truth, list(expected))
        for metric, value in expected.items():
            assert score(records, metric, region) == pytest.approx(value, rel=1e-12)


def test_on_one_point_the_energy_score_is_the_crps() -> None:
    values, truth = random()
    mask = np.zeros((13, 24), bool)
    mask[4, 7] = True
    records = run(values, truth, [EnergyScore(), EnergyScore("biased")], regions={"point": mask})
    x, y = values[0, :, 0, 4, 7], truth[0, 0, 4, 7]
    pairs = np.abs(np.subtract.outer(x, x)).sum()
    skill = np.abs(x - y).mean()
    assert score(records, EnergyScore(), "point") == pytest.approx(skill - pairs / 60, rel=1e-10)
    assert score(records, EnergyScore("biased"), "point") == pytest.approx(skill - pairs / 72, rel=1e-10)


def test_the_fair_energy_score_is_the_mean_over_all_ensembles_of_two_of_its_members() -> None:
    values, truth = random()
    pairs = np.stack([values[0, list(pair)] for pair in combinations(range(6), 2)])
    small = run(pairs, np.repeat(truth, 15, axis=0), [EnergyScore()])
    large = run(values, truth, [EnergyScore()])
    assert score(small, EnergyScore()) == pytest.approx(score(large, EnergyScore()), rel=1e-13)


def test_members_that_take_turns_as_truth_leave_half_of_their_distance() -> None:
    values, _ = random(members=5, channels=1)
    rest = np.stack([np.delete(values[0], k, axis=0) for k in range(5)])
    weight = cell_weights(LAT)[:, None] / (13 * 24)
    distance = [np.sqrt((weight * (a - b) ** 2).sum()) for a, b in combinations(values[0, :, 0], 2)]
    got = score(run(rest, values[0], [EnergyScore()]), EnergyScore())
    assert got == pytest.approx(np.mean(distance) / 2, rel=1e-12)


def test_missing_truth_leaves_the_norm() -> None:
    values, truth = random()
    holes = truth.copy()
    holes[:, :, 0, :5] = np.nan
    weights = np.broadcast_to(cell_weights(LAT)[:, None], (13, 24)).copy()
    weights[0, :5] = 0
    got = run(values, holes, [EnergyScore()])
    expected = run(values, truth, [EnergyScore()], weights=weights)
    assert score(got, EnergyScore()) == pytest.approx(score(expected, EnergyScore()), rel=1e-13)
    # A point without truth adds nothing to an unweighted sum either.
    plain = EnergyScore(norm="euclidean")
    mask = np.ones((13, 24), bool)
    mask[0, :5] = False
    rest = run(values, truth, [plain], regions={"rest": mask})
    assert score(run(values, holes, [plain]), plain) == pytest.approx(score(rest, plain, "rest"), rel=1e-13)


def test_bands_and_other_regions_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    values, truth = random()
    metrics: list[Metric] = [EnergyScore(), EnergyScore(norm="euclidean"), JointEnergyScore(("u", "v"))]
    whole = run(values, truth, metrics)
    alone = run(values, truth, metrics, regions=["tropics"])
    assert whole.select(region="tropics").table.equals(alone.table)
    monkeypatch.setattr("wx_eval._score._GROUP_POINTS", 50)
    assert run(values, truth, metrics).table.equals(whole.table)


def test_joint_energy_scores_match_their_definition_at_every_point() -> None:
    values, truth = random()
    x, y = values[0] - 500, truth[0] - 500
    weight = np.broadcast_to(cell_weights(LAT)[:, None], (13, 24)) / (13 * 24)
    scale = np.array([1.0, 4.0])[:, None, None]
    skill = np.sqrt((((x - y) / scale) ** 2).sum(1)).mean(0)
    between = sum(np.sqrt((((a - b) / scale) ** 2).sum(0)) for a, b in combinations(x, 2)) / 15
    for kind, factor in (("fair", 1.0), ("biased", 5 / 6)):
        metric = JointEnergyScore(("u", "v"), (1.0, 4.0), kind)
        expected = float((weight * (skill - between / 2 * factor)).sum())
        assert score(run(values, truth, [metric]), metric, channel="u+v") == pytest.approx(
            expected, rel=1e-12
        )


def test_joint_energy_needs_all_its_channels() -> None:
    values, truth = random(channels=1)
    with pytest.raises(ValueError, match=r"names the channels \['v'\] and the truth has \['u'\]"):
        run(values, truth, [JointEnergyScore(("u", "v")), EnergyScore()])
    with pytest.raises(ValueError, match="two or more"):
        JointEnergyScore(("u",))
    with pytest.raises(ValueError, match="one positive number per channel"):
        JointEnergyScore(("u", "v"), (1.0,))


@pytest.mark.parametrize("lags", [1, 3, 20])
def test_a_stream_of_members_has_the_scores_of_the_whole_ensemble(lags: int) -> None:
    values, truth = random(members=7)
    x, y = values[0].reshape(7, 2, -1), truth[0].reshape(2, -1).copy()
    y[0, :9] = np.nan
    weight = np.repeat(cell_weights(LAT), LON.size)
    stream = MemberStream(y, weight, lags=lags)
    for member in x:
        stream.add(member)
    metric = EnergyScore(lags=min(lags, 6))
    records = run(values, y.reshape(1, 2, 13, 24), [metric])
    for c, name in enumerate("uv"):
        assert stream.energy[c] == pytest.approx(score(records, metric, channel=name), rel=1e-12)
        used = ~np.isnan(y[c])
        w = weight[used] / weight[used].sum()
        near = [np.abs(x[i, c] - x[j, c]) for i in range(7) for j in range(max(0, i - lags), i)]
        crps = np.abs(x[:, c] - y[c])[:, used].mean(0) - np.mean(near, axis=0)[used] / 2
        assert stream.crps[c] == pytest.approx(float(w @ crps), rel=1e-12)


def test_streams_refuse_what_they_cannot_score() -> None:
    stream = MemberStream(np.zeros((1, 4)), np.ones(4))
    stream.add(np.ones((1, 4)))
    with pytest.raises(ValueError, match="at least 2 members"):
        _ = stream.energy
    with pytest.raises(ValueError, match="shape of the truth"):
        stream.add(np.ones((1, 3)))
    with pytest.raises(ValueError, match="not finite"):
        stream.add(np.full((1, 4), np.nan))
    with pytest.raises(ValueError, match="lags of at least 1"):
        MemberStream(np.zeros((1, 4)), np.ones(4), lags=0)


STATIONS = (np.array([10.0, 10.0, -30.0, 55.0]), np.array([359.5, 0.5, 120.0, 200.0]))


def test_two_stations_have_the_variogram_score_of_one_difference() -> None:
    truth = np.array([[[1.0, 5.0]]])
    values = np.array([[[[0.0, 9.0]], [[2.0, 3.0]]]])
    mesh = STATIONS[0][:2], STATIONS[1][:2]
    for p in (0.5, 1.0, 2.0):
        a, b, y = 9.0**p, 1.0, 4.0**p
        biased = 2 * (y - (a + b) / 2) ** 2
        variance = ((a - b) / 2) ** 2 * 2
        for kind, expected in (("biased", biased), ("fair", biased - 2 * variance / 2)):
            metric = VariogramScore(p, norm="sum", kind=kind)
            got = run(values, truth, [metric], mesh=mesh, weights="equal", regions=["global"])
            assert score(got, metric) == pytest.approx(expected, rel=1e-13)


def test_variogram_scores_match_their_definition_with_weights_and_distances() -> None:
    rng = np.random.default_rng(5)
    values, truth = rng.standard_normal((1, 5, 1, 4)), rng.standard_normal((1, 1, 4))
    truth[0, 0, 2] = np.nan
    lat, lon = (np.deg2rad(a) for a in STATIONS)
    cosine = np.sin(lat[:, None]) * np.sin(lat) + np.cos(lat[:, None]) * np.cos(lat) * np.cos(
        lon[:, None] - lon
    )
    distance = 6371.0088 * np.arccos(np.clip(cosine, -1, 1))
    x, y = values[0, :, 0], truth[0, 0]
    total = 0.0
    for i in range(4):
        for j in range(4):
            if i != j and 2 not in (i, j) and distance[i, j] < 12000:
                away = np.abs(y[i] - y[j]) ** 0.7 - np.mean(np.abs(x[:, i] - x[:, j]) ** 0.7)
                total += away**2 / distance[i, j]
    metric = VariogramScore(0.7, 12000.0, "inverse", "sum")
    got = run(values, truth, [metric], mesh=STATIONS, weights="equal", regions=["global"])
    assert total > 0
    assert score(got, metric) == pytest.approx(total, rel=1e-10)


def test_the_mean_over_NearPairs_is_weighted_by_area_at_both_ends() -> None:
    values, truth = random(channels=1)
    metric = VariogramScore(within_km=2500.0)
    lat, lon = np.deg2rad(np.repeat(LAT, 24)), np.deg2rad(np.tile(LON, 13))
    cosine = np.sin(lat[:, None]) * np.sin(lat) + np.cos(lat[:, None]) * np.cos(lat) * np.cos(
        lon[:, None] - lon
    )
    near = 6371.0088 * np.arccos(np.clip(cosine, -1, 1)) <= 2500.0
    np.fill_diagonal(near, val=False)
    x, y = values[0].reshape(6, -1), truth[0].ravel()
    root = np.sqrt(np.abs(x[:, :, None] - x[:, None, :])).mean(0)
    square = (np.sqrt(np.abs(y[:, None] - y)) - root) ** 2
    area = np.repeat(cell_weights(LAT), 24)
    local = (square * near * area).sum(1) / (near * area).sum(1)
    expected = float(area @ local / area.sum())
    assert score(run(values, truth, [metric]), metric) == pytest.approx(expected, rel=1e-12)


def test_orders_and_distances_are_different_statistics() -> None:
    values, truth = random(channels=1)
    metrics = [VariogramScore(p, within_km=2000.0) for p in (0.5, 1.0)] + [VariogramScore(within_km=3000.0)]
    records = run(values, truth, list(metrics))
    assert len({score(records, m) for m in metrics}) == len(records.statistics) == 3


def test_deterministic_forecasts_have_a_variogram_score_unless_it_is_fair() -> None:
    values, truth = random(members=1, channels=1)
    metrics: list[Metric] = [
        VariogramScore(within_km=2500.0),
        VariogramScore(within_km=2500.0, kind="fair"),
        EnergyScore(),
    ]
    records = run(values, truth, metrics)
    assert score(records, metrics[0]) > 0
    assert np.isnan(score(records, metrics[1]))
    assert np.isnan(score(records, metrics[2]))


def test_too_many_pairs_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    values, truth = random(channels=1)
    monkeypatch.setattr("wx_eval._multivariate._MOST_PAIRS", 1000)
    with pytest.raises(ValueError, match="limit them by within_km"):
        run(values, truth, [VariogramScore()])
    with pytest.raises(ValueError, match="choose a smaller distance"):
        _NearPairs(Grid.from_axes(LAT, LON), 9000.0)


def test_given_pairs_count_once_each_at_their_first_point() -> None:
    """Against a loop over the edges of a ring with one chord."""
    rng = np.random.default_rng(6)
    lat, lon = rng.uniform(-80, 80, 9), rng.uniform(0, 360, 9)
    values, truth = rng.standard_normal((1, 4, 1, 9)), rng.standard_normal((1, 1, 9))
    truth[0, 0, 3] = np.nan
    edges = [(k, (k + 1) % 9) for k in range(9)] + [(0, 4)]
    x, y = values[0, :, 0], truth[0, 0]
    squares: dict[int, list[float]] = {}
    for i, j in edges:
        away = abs(y[i] - y[j]) ** 0.5 - np.mean([abs(m[i] - m[j]) ** 0.5 for m in x])
        if not np.isnan(away):
            squares.setdefault(i, []).append(away**2)
    plain, mean = VariogramScore(norm="sum", pairs=edges), VariogramScore(pairs=np.array(edges))
    got = run(values, truth, [plain, mean], mesh=(lat, lon), weights="equal", regions=["global"])
    assert score(got, plain) == pytest.approx(sum(map(sum, squares.values())), rel=1e-12)
    assert score(got, mean) == pytest.approx(np.mean([np.mean(s) for s in squares.values()]), rel=1e-12)
    assert VariogramScore.from_dict(json.loads(json.dumps(mean.to_dict()))) == mean
    assert mean.name != VariogramScore(pairs=edges[1:]).name != VariogramScore().name
    few = values[..., :4], truth[..., :4]
    with pytest.raises(ValueError, match="name point 8 and there are 4"):
        run(*few, [plain], mesh=(lat[:4], lon[:4]), weights="equal", regions=["global"])


def test_all_pairs_in_both_directions_are_those_of_a_distance() -> None:
    values, truth = random(channels=1)
    grid = Grid.from_axes(LAT, LON)
    near = np.concatenate([np.stack([i, j], axis=1) for i, j, _ in _NearPairs(grid, 1500.0).blocks()])
    by_distance, by_pairs = VariogramScore(within_km=1500.0), VariogramScore(pairs=near)
    got = run(values, truth, [by_distance, by_pairs])
    assert score(got, by_pairs) == pytest.approx(score(got, by_distance), rel=1e-13)


def test_many_pairs_are_looked_up_again_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    values, truth = random(channels=1)
    metric = VariogramScore(within_km=2600.0)
    kept = score(run(values, truth, [metric]), metric)
    monkeypatch.setattr("wx_eval._multivariate._KEPT_PAIRS", 10)
    monkeypatch.setattr("wx_eval._multivariate._PAIRS_AT_ONCE", 500)
    near = _NearPairs(Grid.from_axes(LAT, LON), 2600.0)
    assert not near.kept
    sizes = [len(i) for i, _, _ in near.blocks()]
    assert len(sizes) > 5
    assert max(sizes) < 700
    _NearPairs.of.cache_clear()
    assert score(run(values, truth, [metric]), metric) == pytest.approx(kept, rel=1e-13)
    _NearPairs.of.cache_clear()


def test_equal_grids_share_what_is_kept_by_grid() -> None:
    one, two = Grid.from_axes(LAT, LON), Grid.from_axes(LAT.copy(), LON.copy())
    assert one == two
    assert _NearPairs.of(one, 900.0) is _NearPairs.of(two, 900.0)
    assert one != Grid.from_axes(LAT, LON + 1e-9)
    assert one != Grid.from_points(one.latitude, one.longitude)


def test_metrics_come_back_from_files_and_can_be_compared(tmp_path: object) -> None:
    metrics: list[Metric] = [
        EnergyScore(),
        EnergyScore(lags=1),
        JointEnergyScore(("u", "v"), (1.0, 2.0)),
        VariogramScore(within_km=2500.0, kind="fair"),
    ]
    values, truth = random(times=8)
    other, _ = random(times=8, seed=9)
    first = run(values, truth, metrics)
    path = f"{tmp_path}/a.parquet"
    first.to_parquet(path)
    back = Records.from_parquet(path)
    assert set(scores(back).data_vars) >= {m.name for m in metrics}
    wide = run(500 + 3 * (other - 500), truth, metrics)
    result = compare(first, wide, metrics)
    for cell in result.cells:
        assert cell.difference < 0
        assert cell.p_iid < 1e-3
    assert {cell.metric for cell in result.cells} == {m.name for m in metrics}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EnergyScore("wb2"), "kind must be one of"),
        (lambda: EnergyScore(norm="l1"), "norm must be one of"),
        (lambda: EnergyScore("biased", lags=1), "lags must be 0"),
        (lambda: VariogramScore(0.0), "must be positive"),
        (lambda: VariogramScore(weights="square"), "weights must be one of"),
        (lambda: VariogramScore(pairs=((0, 0),)), "two different points"),
        (lambda: VariogramScore(pairs=((0, 1), (0, 1))), "must be different"),
        (lambda: VariogramScore(pairs=((0, 1, 2),)), "got int64 of shape"),
        (lambda: VariogramScore(within_km=5.0, pairs=((0, 1),)), "not both"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_real_exchangeable_members_leave_half_of_their_distance(climate_members: np.ndarray) -> None:
    """Each of 40 climate runs at one point takes its turn as truth; the times of a month are the vector."""
    members = climate_members[:, 1:121]
    mesh = np.linspace(-60, 60, 120), np.linspace(0, 300, 120)
    rest = np.stack([np.delete(members, k, axis=0) for k in range(40)])
    metrics: list[Metric] = [EnergyScore(norm="euclidean"), VariogramScore(norm="sum", kind="fair")]
    records = run(rest[:, :, None], members[:, None], metrics, mesh=mesh, weights="equal", regions=["global"])
    x = members.astype(np.float64)
    distance = np.mean([np.sqrt(((a - b) ** 2).sum()) for a, b in combinations(x, 2)])
    assert score(records, metrics[0]) == pytest.approx(distance / 2, rel=1e-12)
    # The fair variogram score of exchangeable members is the variance of |x_i - x_j|^p, over all pairs.
    root = np.sqrt(np.abs(x[:, :, None] - x[:, None, :]))
    assert score(records, metrics[1]) == pytest.approx(root.var(axis=0, ddof=1).sum(), rel=1e-10)


def test_a_stream_without_truth_in_a_channel_has_no_score_there() -> None:
    truth = np.stack([np.ones(5), np.full(5, np.nan)])
    stream = MemberStream(truth, np.ones(5))
    for member in (np.zeros((2, 5)), np.full((2, 5), 2.0)):
        stream.add(member)
    np.testing.assert_array_equal(stream.crps, [0, np.nan])
    hole = np.ma.masked_equal(np.arange(10.0).reshape(2, 5), 2.0)
    with pytest.raises(ValueError, match="not finite"):
        stream.add(hole)
