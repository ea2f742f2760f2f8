"""Cyclones: analytic vortices at known positions, errors that are put in, strikes by dense sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_eval import Chunk, Records, compare, evaluate, scores
from wx_eval._cyclones import Matching, score_tracks
from wx_eval._event_scores import Brier
from wx_eval._grid import EARTH_RADIUS_KM, Grid, great_circle_km
from wx_eval._tracker import Fix, Tracker, _Sphere, bearing, destination, track_forecasts, track_history
from wx_eval._tracks import (
    Track,
    TrackForecasts,
    TrackLayout,
    read_tracks,
    strike_truth,
    strikes,
    tracks_from_table,
    tracks_to_table,
)

AXES = {
    "poles": (np.linspace(90, -90, 181), np.arange(0, 360, 1.0)),
    "no poles, south first": (np.linspace(-89.5, 89.5, 180), np.arange(-180, 180, 1.0)),
}
CENTRES = [(15.3, 140.2), (-20.4, 179.97), (12.6, 359.6), (55.5, 200.1), (89.6, 33.0), (-88.7, 250.0)]
START = np.datetime64("2020-08-01T00", "s")
HOUR = np.timedelta64(3600, "s")
Axes = tuple[np.ndarray, np.ndarray]


def vortex(
    axes: Axes,
    centre: tuple[float, float],
    depth: float = 4000.0,
    size_km: float = 250.0,
    speed: float = 40.0,
) -> dict[str, np.ndarray]:
    """Gaussian low with cyclonic wind and a warm core, round on the sphere."""
    grid = Grid.from_axes(*axes)
    away = great_circle_km(grid.latitude, grid.longitude, *centre)
    shape = np.exp(-((away / size_km) ** 2) / 2)
    blow = speed * away / size_km * shape * np.exp(0.5)
    heading = bearing(grid.latitude, grid.longitude, *centre) + np.pi / 2 * np.sign(centre[0])
    fields = {
        "msl": 101_000 - depth * shape,
        "10u": blow * np.sin(heading),
        "10v": blow * np.cos(heading),
        "z300": 90_000 + 800 * shape,
        "z500": 55_000 - 200 * shape,
    }
    return {name: values.reshape(grid.shape) for name, values in fields.items()}


def together(*fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Several vortices in one field."""
    first = fields[0]
    rest = {"msl": 101_000.0, "z300": 90_000.0, "z500": 55_000.0}
    return {n: sum(f[n] for f in fields) - (len(fields) - 1) * rest.get(n, 0.0) for n in first}


def km(fix: Any, centre: tuple[float, float]) -> float:
    return float(great_circle_km(fix.latitude, fix.longitude, *centre))


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("centre", CENTRES)
def test_centre_is_found_between_grid_points(axes: str, centre: tuple[float, float]) -> None:
    fields = vortex(AXES[axes], centre)
    [fix] = Tracker(warm_core=("z300", "z500")).find(fields, AXES[axes])
    # 0.03 of the spacing of 111 km; the nearest grid point is up to 78 km away.
    assert km(fix, centre) < 3.5
    assert abs(fix.pressure - 97_000) < (fields["msl"].min() - 97_000) / 4 + 1
    assert fix.wind == pytest.approx(40, abs=0.6)


@pytest.mark.parametrize("centre", CENTRES)
def test_a_parabola_is_found_exactly(centre: tuple[float, float]) -> None:
    axes = AXES["poles"]
    grid = Grid.from_axes(*axes)
    away = great_circle_km(grid.latitude, grid.longitude, *centre).reshape(grid.shape)
    [fix] = Tracker(wind=None).find({"msl": 95_000 + np.minimum(away, 3000.0) ** 2 / 100}, axes)
    # Distances from one point are not quite a parabola around another: a share (100 km / radius)^2.
    assert km(fix, centre) < 0.03
    assert fix.pressure == pytest.approx(95_000, abs=0.1)


def test_halving_the_spacing_makes_the_error_a_lot_smaller() -> None:
    errors = []
    for count in (90, 180, 360):
        axes = np.linspace(90, -90, count + 1), np.arange(2 * count) * 180 / count
        errors.append(km(Tracker().find(vortex(axes, (15.37, 140.71)), axes)[0], (15.37, 140.71)))
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 4


def test_checks_refuse_what_is_no_cyclone() -> None:
    axes, centre = AXES["poles"], (15.0, 140.0)
    full = vortex(axes, centre)
    assert len(Tracker().find(full, axes)) == 1
    # Where the ring begins, 1.5 rows inside of 550 km, the pressure has risen by 0.69 of the depth.
    assert not Tracker().find(vortex(axes, centre, depth=270), axes)
    assert len(Tracker().find(vortex(axes, centre, depth=310), axes)) == 1
    assert len(Tracker(depth=150).find(vortex(axes, centre, depth=270), axes)) == 1
    assert not Tracker().find(vortex(axes, centre, speed=9), axes)
    assert len(Tracker(wind_minimum=8).find(vortex(axes, centre, speed=9), axes)) == 1
    assert len(Tracker(wind=None).find(vortex(axes, centre, speed=9), axes)) == 1
    cold = full | {"z300": full["z500"] + 35_000}
    assert len(Tracker().find(cold, axes)) == 1
    assert not Tracker(warm_core=("z300", "z500")).find(cold, axes)
    # A trough is lower than its two sides, not lower than all around.
    trough = {
        **full,
        "msl": 101_000 - 4000 * np.exp(-(((axes[1] - 140) / 2) ** 2))[None] + 0 * axes[0][:, None],
    }
    trough["msl"] += np.abs(axes[0] - 15)[:, None]
    assert not Tracker().find(trough, axes)


def test_two_centres_that_are_near_are_one() -> None:
    axes = AXES["poles"]
    pair = together(
        vortex(axes, (15.0, 140.0), size_km=120), vortex(axes, (15.0, 144.0), depth=3000, size_km=120)
    )
    fixes = Tracker(separation_km=400, depth_km=300).find(pair, axes)
    assert len(fixes) == 2
    assert fixes[0].pressure < fixes[1].pressure
    assert len(Tracker(separation_km=500, depth_km=300).find(pair, axes)) == 1


@pytest.mark.parametrize("centre", [(15.3, 140.2), (-20.4, 359.8), (-62.3, 10.5)])
def test_vorticity_finds_the_same_centre(centre: tuple[float, float]) -> None:
    axes = np.linspace(90, -90, 361), np.arange(0, 360, 0.5)
    fields = vortex(axes, centre)
    fields |= {"u850": fields["10u"], "v850": fields["10v"]}
    fixes = Tracker(search="vorticity").find(fields, axes)
    assert km(fixes[0], centre) < 6
    assert len(fixes) == 1
    assert fixes[0].pressure == pytest.approx(97_000, abs=50)
    # Solid rotation in the middle: 2 speed exp(0.5) / size.
    strongest = 2 * 40 * np.exp(0.5) / 250_000
    assert len(Tracker(search="vorticity", vorticity_minimum=0.9 * strongest).find(fields, axes)) == 1
    assert not Tracker(search="vorticity", vorticity_minimum=1.1 * strongest).find(fields, axes)
    anticyclone = fields | {"u850": -fields["u850"], "v850": -fields["v850"]}
    assert not Tracker(search="vorticity", vorticity_minimum=strongest / 2).find(anticyclone, axes)


def test_vorticity_of_solid_rotation_and_around_the_seam() -> None:
    lat, lon = np.linspace(90, -90, 361), np.arange(0, 360, 0.5)
    sphere = _Sphere(lat, lon)
    u = 30 * np.cos(np.deg2rad(lat))[:, None] + 0 * lon
    found = sphere.cyclonic(u, 0 * u)[1:-1]
    # 2 U sin(latitude) / radius, positive in the sense of the rotation of the Earth in both hemispheres.
    expected = 60 * np.abs(np.sin(np.deg2rad(lat[1:-1])))[:, None] / (EARTH_RADIUS_KM * 1000) + 0 * lon
    np.testing.assert_allclose(found[1:-1], expected[1:-1], atol=2e-4 * expected.max())
    u, v = np.random.default_rng(0).standard_normal((2, lat.size, lon.size))
    turned = sphere.cyclonic(np.roll(u, 7, axis=1), np.roll(v, 7, axis=1))
    np.testing.assert_allclose(turned, np.roll(sphere.cyclonic(u, v), 7, axis=1), rtol=1e-9, atol=1e-16)


def test_a_regional_grid_has_no_centres_at_its_edge() -> None:
    lat, lon = np.arange(40, -0.5, -1.0), np.arange(100, 160.5, 1.0)
    assert len(Tracker().find(vortex((lat, lon), (20.3, 130.2)), (lat, lon))) == 1
    for centre in ((38.0, 130.0), (2.0, 130.0), (20.0, 102.0), (20.0, 158.0)):
        assert not Tracker().find(vortex((lat, lon), centre), (lat, lon))


def test_bad_fields_are_refused() -> None:
    axes = AXES["poles"]
    full = vortex(axes, (15.3, 140.2))
    with pytest.raises(ValueError, match="must be in Pa"):
        Tracker().find(full | {"msl": full["msl"] / 100}, axes)
    with pytest.raises(ValueError, match="must be finite"):
        Tracker().find(full | {"10u": full["10u"] * np.nan}, axes)
    with pytest.raises(ValueError, match=r"needs the channels \['10u'\]"):
        Tracker().find({n: f for n, f in full.items() if n != "10u"}, axes)


def path(
    start: tuple[float, float], heading: float, speed: float, hours: Sequence[float]
) -> list[tuple[float, float]]:
    """Positions on a great circle."""
    return [destination(*start, np.deg2rad(heading), speed * 3.6 * h) for h in hours]


PATHS = {
    "date line": ((15.0, 176.0), 280.0, 8.0),
    "date line east": ((-18.0, 178.0), 100.0, 7.0),
    "over the pole": ((87.0, 30.0), 5.0, 12.0),
}
HOURS = np.arange(0, 49, 6)


def test_moving_vortices_are_followed_by_every_member() -> None:
    axes = AXES["poles"]
    names = tuple(vortex(axes, (0.0, 0.0)))[:3]
    routes = [path(*p, HOURS) for p in PATHS.values()]

    def chunks() -> Iterator[Chunk]:
        for k in np.random.default_rng(0).permutation(HOURS.size):
            fields = [together(*(vortex(axes, r[k]) for r in routes[m:])) for m in range(2)]
            values = np.stack([np.stack([f[n] for n in names]) for f in fields]).astype(np.float32)
            yield Chunk(
                init_time=START, lead_time=int(HOURS[k]) * HOUR, channels=names, values=values,
                latitude=axes[0], longitude=axes[1],
            )  # fmt: skip

    found = track_forecasts(chunks(), Tracker())
    assert [t.member for t in found.tracks] == [0, 0, 0, 1, 1]
    assert (found.members, found.lead_times.size) == (2, HOURS.size)
    for member in range(2):
        ours = [t for t in found.tracks if t.member == member]
        for route in routes[member:]:
            errors = [
                great_circle_km(t.latitude, t.longitude, *np.transpose(route)).max()
                for t in ours
                if t.times.size == HOURS.size
            ]
            assert min(errors) < 4
    again = xr.DataArray(
        np.stack([np.stack([vortex(axes, c)[n] for n in names]) for c in routes[0][:3]]),
        {"time": (START + HOURS[:3] * HOUR).astype("datetime64[ns]"), "channel": list(names),
         "latitude": axes[0], "longitude": axes[1]},
        ("time", "channel", "latitude", "longitude"),
    )  # fmt: skip
    [alone] = track_history(again, Tracker())
    assert great_circle_km(alone.latitude, alone.longitude, *np.transpose(routes[0][:3])).max() < 4


def fixes_at(*places: tuple[float, float]) -> list[Fix]:
    return [Fix(lat, lon, 99_000.0, 20.0) for lat, lon in places]


def test_linking_goes_on_with_the_motion_and_keeps_the_speed() -> None:
    times = [START + k * 6 * HOUR for k in range(5)]
    # Two storms that cross: the nearest centre to the last one is the wrong one.
    a = [(10.0, 100.0 + 2 * k) for k in range(5)]
    b = [(10.4, 107.0 - 2 * k) for k in range(5)]
    tracks = Tracker().link(
        times, [fixes_at(p, q)[:: 1 - 2 * (k % 2)] for k, (p, q) in enumerate(zip(a, b, strict=True))]
    )
    assert sorted(t.longitude.tolist() for t in tracks) == sorted([[p[1] for p in a], [q[1] for q in b]])
    # 2 degrees in 6 hours are 10 m/s.
    assert not Tracker(speed=10.0).link(times, [fixes_at(p) for p in a])
    assert len(Tracker(speed=10.3).link(times, [fixes_at(p) for p in a])) == 1
    lost = [fixes_at(p) if k != 2 else [] for k, p in enumerate(a)]
    [track] = Tracker(missed=1).link(times, lost)
    assert track.times.tolist() == [t.item() for k, t in enumerate(times) if k != 2]
    assert [t.times.size for t in Tracker(missed=0).link(times, lost)] == [2, 2]
    assert not Tracker(missed=0, steps=3).link(times, lost)


# Scores


def track(places: Sequence[tuple[float, float]], storm: str = "A", first: int = 0, **more: Any) -> Track:
    """Fixes every 6 hours."""
    lat, lon = np.transpose(places)
    count = len(places)
    return Track(
        storm=storm,
        times=START + (first + 6 * np.arange(count)) * HOUR,
        latitude=lat,
        longitude=lon,
        pressure=more.pop("pressure", np.full(count, 98_000.0)),
        wind=more.pop("wind", np.full(count, 30.0)),
        **more,
    )


ROUTE = path((15.0, 176.0), 280.0, 8.0, HOURS)
BEST = [track(ROUTE)]


def aside(angle: float, distance: float) -> list[tuple[float, float]]:
    """Every position moved by a distance at an angle, in degrees, clockwise from the motion."""
    out = []
    for k, here in enumerate(ROUTE):
        back = float(bearing(*here, *ROUTE[k - 1 if k else 1]))
        heading = back + np.pi if k else back
        out.append(destination(*here, heading + np.deg2rad(angle), distance))
    return out


def forecasts(tracks: Sequence[Track], members: int = 1, inits: int = 1) -> TrackForecasts:
    return TrackForecasts(
        tracks=tracks,
        members=members,
        init_times=START + 6 * np.arange(inits) * HOUR,
        lead_times=HOURS[:5] * HOUR,
    )


def column(records: Records, channel: str, name: str, model: str = "a") -> np.ndarray:
    return np.asarray(
        records.select(model=model, channel=channel).table[name].to_numpy(zero_copy_only=False), float
    )


@pytest.mark.parametrize(
    ("angle", "distance"), [(0, 50.0), (90, 80.0), (180, 20.0), (-90, 200.0), (37, 120.0)]
)
def test_known_errors_along_and_across(angle: float, distance: float) -> None:
    moved = track(
        aside(angle, distance), init_time=START, wind=np.full(9, 33.0), pressure=np.full(9, 97_000.0)
    )
    records = score_tracks({"a": forecasts([moved])}, BEST)
    turn = np.deg2rad(angle)
    np.testing.assert_allclose(column(records, "position", "mae_mean"), distance, rtol=1e-9)
    np.testing.assert_allclose(
        column(records, "along_track", "error_mean"), distance * np.cos(turn), atol=1e-6
    )
    np.testing.assert_allclose(
        column(records, "cross_track", "error_mean"), distance * np.sin(turn), atol=1e-6
    )
    np.testing.assert_allclose(column(records, "wind", "error_mean"), 3, rtol=1e-12)
    np.testing.assert_allclose(column(records, "pressure", "error_mean"), -1000, rtol=1e-12)
    parts = column(records, "along_track", "mse_mean") + column(records, "cross_track", "mse_mean")
    np.testing.assert_allclose(parts, column(records, "position", "mse_mean"), rtol=1e-12)
    found = scores(records, average="weights")
    np.testing.assert_allclose(found["mae"].sel(channel="position"), distance, rtol=1e-9)
    np.testing.assert_allclose(found["bias"].sel(channel="wind"), 3, rtol=1e-12)
    assert np.isnan(found["crps_fair"]).all()
    assert found["units"].sel(channel="position") == "km"


def ensemble(members: int, seed: int = 0, spread: float = 100.0) -> list[Track]:
    rng = np.random.default_rng(seed)
    return [
        track(
            aside(rng.uniform(0, 360), rng.uniform(0, spread)),
            init_time=START,
            member=m,
            wind=rng.uniform(20, 40, 9),
            pressure=rng.uniform(97_000, 99_000, 9),
        )
        for m in range(members)
    ]


def test_ensemble_statistics_equal_loops_over_members() -> None:
    tracks = ensemble(5)
    records = score_tracks({"a": forecasts(tracks, 5)}, BEST)
    for k in range(5):
        winds = np.array([t.wind[k] for t in tracks])
        spots = np.array([(t.latitude[k], t.longitude[k]) for t in tracks])
        gaps = [great_circle_km(*p, *q) for p in spots for q in spots]
        skill = np.mean([great_circle_km(*p, *ROUTE[k]) for p in spots])
        vectors = np.stack(
            [[np.cos(b) * np.cos(x), np.cos(b) * np.sin(x), np.sin(b)] for b, x in np.deg2rad(spots)]
        )
        middle = vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
        centre = np.rad2deg([np.arcsin(middle[2]), np.arctan2(middle[1], middle[0])])
        squares = [great_circle_km(*p, *centre) ** 2 for p in spots]
        expected = {
            ("position", "crps_fair"): skill - np.sum(gaps) / 40,
            ("position", "crps_biased"): skill - np.sum(gaps) / 50,
            ("position", "mae_mean"): great_circle_km(*centre, *ROUTE[k]),
            ("position", "variance"): np.sum(squares) / 4,
            ("wind", "variance_of_mean"): winds.var(ddof=1) / 5,
            ("wind", "mse_mean"): (winds.mean() - 30) ** 2,
            ("wind", "crps_fair"): np.abs(winds - 30).mean() - np.abs(winds[:, None] - winds).sum() / 40,
        }
        for (channel, name), value in expected.items():
            assert column(records, channel, name)[k] == pytest.approx(float(value), rel=1e-9)
    assert set(records.table["members"].to_pylist()) == {5}


def test_the_mean_needs_enough_members_that_are_alive() -> None:
    whole = ensemble(4)
    short = [
        Track(**{n: getattr(t, n)[:size] for n in ("times", "latitude", "longitude", "pressure", "wind")},
              storm=t.storm, init_time=START, member=t.member)
        for t, size in zip(whole, (5, 4, 3, 2), strict=True)
    ]  # fmt: skip
    for alive, scored in ((0.25, 5), (0.5, 4), (0.75, 3), (1.0, 2)):
        records = score_tracks({"a": forecasts(short, 4)}, BEST, alive=alive)
        assert column(records, "position", "n").tolist() == [1] * scored + [0] * (5 - scored)
        assert (column(records, "position", "n") + column(records, "position", "n_missing") == 1).all()
    table = score_tracks({"a": forecasts(short, 4)}, BEST, alive=0.25)
    # One member alone has no spread, and its error counts.
    assert column(table, "position", "variance.w").tolist() == [1, 1, 1, 1, 0]
    alone = great_circle_km(whole[0].latitude[4], whole[0].longitude[4], *ROUTE[4])
    assert column(table, "position", "mae_mean")[4] == pytest.approx(float(alone))
    # Members that found nothing count too.
    assert column(score_tracks({"a": forecasts(short, 9)}, BEST), "position", "n").sum() == 0


def test_matching_takes_the_nearest_once_and_obeys_its_limits() -> None:
    other = [(lat - 2.5, lon) for lat, lon in ROUTE]
    best = [track(ROUTE, "A"), track(other, "B")]
    near_a, near_b = track(aside(0, 100), "x"), track([(lat - 0.5, lon) for lat, lon in other], "y")
    assert sorted(Matching().pairs([near_a, near_b], best, START)) == [(0, 0), (1, 1)]
    # Both are nearest to A; the second gets B, which is within reach.
    between = track([(lat - 1.0, lon) for lat, lon in ROUTE], "z")
    assert sorted(Matching().pairs([near_a, between], best, START)) == [(0, 0), (1, 1)]
    assert sorted(Matching(radius_km=120).pairs([near_a, between], best, START)) == [(0, 0)]
    late = track(ROUTE[3:], "late", first=18)
    assert Matching().pairs([late], best, START) == []
    assert Matching(late=18 * HOUR).pairs([late], best, START) == [(0, 0)]
    assert Matching(overlap=10).pairs([near_a], best, START) == []
    assert Matching(overlap=9).pairs([near_a], best, START) == [(0, 0)]


def test_homogeneous_samples_hold_what_all_models_have() -> None:
    other = [(lat - 10, lon) for lat, lon in ROUTE]
    best = [track(ROUTE, "A"), track(other, "B")]
    a = forecasts([track(aside(0, 50), "1", init_time=START), track(other, "2", init_time=START)])
    b = forecasts([track(aside(90, 60)[:3], "1", init_time=START)])
    each = score_tracks({"a": a, "b": b}, best, sample="each")
    both = score_tracks({"a": a, "b": b}, best)
    assert column(each, "position", "n").tolist() == [2] * 5
    assert column(each, "position", "mae_mean").tolist() == pytest.approx([25] * 5)
    for model, error in (("a", 50), ("b", 60)):
        assert column(both, "position", "n", model).tolist() == [1, 1, 1, 0, 0]
        assert column(both, "position", "n_missing", model).tolist() == [1, 1, 1, 2, 2]
        assert column(both, "position", "mae_mean", model)[:3].tolist() == pytest.approx([error] * 3)
    assert both.conventions.grid != each.conventions.grid


def many(model: int, inits: int = 30) -> TrackForecasts:
    """Forecasts from consecutive starts, with random errors of a size of their own."""
    rng = np.random.default_rng(model)
    tracks = []
    for k in range(inits):
        for m in range(3):
            places = [
                destination(*c, rng.uniform(0, 2 * np.pi), rng.uniform(0, 100 + 200 * model))
                for c in LONG[k : k + 5]
            ]
            tracks.append(track(places, first=6 * k, init_time=START + 6 * k * HOUR, member=m))
    return forecasts(tracks, 3, inits)


LONG = path((15.0, 176.0), 280.0, 5.0, np.arange(0, 6 * 40, 6).tolist())


def test_records_merge_by_start_and_compare(tmp_path: Path) -> None:
    best = [track(LONG)]
    models = {"a": many(0), "b": many(1)}
    whole = score_tracks(models, best, regions=("global", "nh", "tropics"))
    parts = []
    for init in models["a"].init_times:
        cut = {
            n: TrackForecasts(
                tracks=[t for t in f.tracks if t.init_time == init],
                members=3,
                init_times=np.array([init]),
                lead_times=f.lead_times,
            )
            for n, f in models.items()
        }
        parts.append(score_tracks(cut, best, regions=("global", "nh", "tropics")))
    assert parts[-1].merge(*parts[:-1]) == whole
    assert set(whole.regions) == {"global", "tropics"} | ({"nh"} if max(c[0] for c in LONG) >= 20 else set())
    card = compare(
        whole,
        whole,
        ["mae", "crps_fair"],
        model_a="a",
        model_b="b",
        channels=["position"],
        regions=["global"],
        method="iid",
    )
    assert len(card.cells) == 10
    assert all(c.difference < 0 and c.n == 30 for c in card.cells)
    assert all(c.significant for c in card.cells)
    card = compare(whole, whole, ["mae", "rmse"], model_a="a", model_b="b")
    assert {c.channel for c in card.cells if np.isfinite(c.score_a)} == set(whole.channels)
    whole.to_parquet(tmp_path / "r.parquet")
    assert Records.from_parquet(tmp_path / "r.parquet") == whole


def test_scores_refuse_what_cannot_be_scored() -> None:
    moved = track(aside(0, 50), init_time=START)
    with pytest.raises(ValueError, match=r"unknown regions \['atlantis'\]"):
        score_tracks({"a": forecasts([moved])}, BEST, regions=("atlantis",))
    with pytest.raises(ValueError, match="a name of its own"):
        score_tracks({"a": forecasts([moved])}, BEST * 2)
    with pytest.raises(ValueError, match="there is no case"):
        score_tracks({"a": forecasts([moved])}, [track(ROUTE, first=240)])
    with pytest.raises(ValueError, match="is of no forecast"):
        forecasts([track(ROUTE, init_time=START, member=3)], 2)
    with pytest.raises(ValueError, match="must strictly increase"):
        Track(
            storm="A", times=np.array([START, START]), latitude=np.zeros(2), longitude=np.zeros(2),
            pressure=np.zeros(2), wind=np.zeros(2),
        )  # fmt: skip


# Strikes

MAP = np.linspace(30, 0, 31), np.arange(160, 201, 1.0) % 360


def sampled(way: Track, time: np.datetime64, hours: int, radius: float) -> np.ndarray:
    """Points within reach of 4000 positions on the way, by great circles from fix to fix."""
    grid = Grid.from_axes(*MAP)
    found = np.zeros(grid.size, bool)
    ages = (way.times - START) / HOUR
    end = (time - START) / HOUR
    for when in np.linspace(max(end - hours, ages[0]), min(end, ages[-1]), 4000):
        left = min(int(np.searchsorted(ages, when, side="right")) - 1, ages.size - 2)
        here = way.latitude[left], way.longitude[left]
        there = way.latitude[left + 1], way.longitude[left + 1]
        share = (when - ages[left]) / (ages[left + 1] - ages[left])
        spot = destination(
            *here, float(bearing(*here, *there)), share * float(great_circle_km(*here, *there))
        )
        found |= great_circle_km(grid.latitude, grid.longitude, *spot) <= radius
    return found


@pytest.mark.parametrize("hours", [6, 15, 24])
def test_strikes_equal_dense_sampling(hours: int) -> None:
    way = track(path((8.0, 170.0), 40.0, 20.0, HOURS))
    time = START + 30 * HOUR
    truth = strike_truth([way], np.array([time]), MAP, radius_km=150, window=hours * HOUR)
    expected = sampled(way, time, hours, 150)
    assert 10 < expected.sum() < 400
    np.testing.assert_array_equal(truth.values.ravel() == 1, expected)


def test_strike_probability_is_scored_like_any_event() -> None:
    init = {"init_time": START}
    tracks = [track(aside(90, d), member=m, **init) for m, d in enumerate((0, 60, 150, 600))]
    found = forecasts(tracks, 4)
    window = 12 * HOUR
    chunks = list(strikes(found, MAP, window=window))
    assert [int(c.lead_time / HOUR) for c in chunks] == [12, 18, 24]
    truth = strike_truth(BEST, START + HOURS * HOUR, MAP, window=window)
    np.testing.assert_array_equal(chunks[0].values[0, 0], truth.values[2, 0])
    records = evaluate(
        chunks, truth, model="a", metrics=[Brier(0.5, kind="biased")], regions=["global"], weights="cos"
    )
    value = scores(records).data_vars[Brier(0.5, kind="biased").name].values.ravel()
    weight = np.cos(np.deg2rad(MAP[0]))[:, None] + 0 * MAP[1]
    for k, chunk in enumerate(chunks):
        error = (chunk.values[:, 0].mean(axis=0) - truth.values[2 + k, 0]) ** 2
        assert value[k] == pytest.approx(float((weight * error).sum() / weight.sum()), rel=1e-10)
    assert (value > 0).all()


def test_no_strike_outside_of_the_life_of_a_storm() -> None:
    way = track(ROUTE)
    before, after = START - HOUR, way.times[-1] + 7 * HOUR
    assert not strike_truth([way], np.array([before, after]), MAP, window=6 * HOUR).values.any()
    touching = strike_truth([way], np.array([way.times[-1] + 6 * HOUR]), MAP, window=6 * HOUR).values
    grid = Grid.from_axes(*MAP)
    near = great_circle_km(grid.latitude, grid.longitude, *ROUTE[-1]) <= 120
    np.testing.assert_array_equal(touching.ravel() == 1, near)


# Tables

IBTRACS = """SID,SEASON,NATURE,ISO_TIME,LAT,LON,WMO_WIND,WMO_PRES
 ,Year, ,,degrees_north,degrees_east,kts,mb
2020233N14313,2020,TS,2020-08-20 00:00:00,14.2,-45.9,30,1006
2020233N14313,2020,TS,2020-08-20 06:00:00,14.9,-47.9, ,
2020234N16300,2020,DS,2020-08-20 06:00:00,16.0,-60.0,35,1005
2020233N14313,2020,TS,2020-08-20 03:00:00,14.5,-46.9,35,1005
"""


def test_best_tracks_of_ibtracs(tmp_path: Path) -> None:
    path_ = tmp_path / "ibtracs.csv"
    path_.write_text(IBTRACS)
    laura, other = read_tracks(path_)
    assert (laura.storm, other.storm) == ("2020233N14313", "2020234N16300")
    assert laura.times.tolist() == [np.datetime64(f"2020-08-20T0{h}", "s").item() for h in (0, 3, 6)]
    np.testing.assert_allclose(laura.wind, [30 * 1852 / 3600, 35 * 1852 / 3600, np.nan])
    np.testing.assert_allclose(laura.pressure, [100_600, 100_500, np.nan])
    np.testing.assert_array_equal(laura.longitude, [-45.9, -46.9, -47.9])
    [only] = read_tracks(path_, TrackLayout(only={"NATURE": ("TS",)}))
    assert only.storm == laura.storm
    with pytest.raises(ValueError, match="'fathom' is unknown"):
        read_tracks(path_, TrackLayout(pressure_unit="fathom"))


def test_tables_and_files_give_tracks_back(tmp_path: Path) -> None:
    tracks = ensemble(3)
    found = forecasts(tracks, 4, inits=2)
    found.to_parquet(tmp_path / "f.parquet")
    back = TrackForecasts.from_parquet(tmp_path / "f.parquet")
    assert tracks_to_table(back.tracks).equals(tracks_to_table(tracks))
    assert back.members == 4
    np.testing.assert_array_equal(back.init_times, found.init_times)
    np.testing.assert_array_equal(back.lead_times, found.lead_times)
    best = tracks_from_table(tracks_to_table(BEST), TrackLayout.own())
    assert best[0].init_time is None
    np.testing.assert_array_equal(best[0].latitude, BEST[0].latitude)
    empty = forecasts([], 2)
    empty.to_parquet(tmp_path / "e.parquet")
    assert TrackForecasts.from_parquet(tmp_path / "e.parquet").tracks == ()


def test_directions_and_destinations() -> None:
    quarter = EARTH_RADIUS_KM * np.pi / 2
    assert destination(0, 170, np.pi / 2, quarter) == pytest.approx((0, 260), abs=1e-12)
    assert destination(80, 10, 0.0, quarter / 9 * 2) == pytest.approx((80, 190), abs=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(50):
        lat, lon, heading, far = (
            rng.uniform(-89, 89),
            rng.uniform(0, 360),
            rng.uniform(-3, 3),
            rng.uniform(1, 9000),
        )
        there = destination(lat, lon, heading, far)
        assert great_circle_km(lat, lon, *there) == pytest.approx(far, rel=1e-9)
        assert float(bearing(lat, lon, *there)) == pytest.approx(heading, abs=1e-7)
