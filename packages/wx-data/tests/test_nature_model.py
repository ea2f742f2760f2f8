"""Output, reproducibility, transfers and perturbations of the nature model."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from wx_data.nature import (
    NatureConfig,
    NatureModel,
    State,
    load_states,
    operational,
    perturb,
    restart_states,
    save_states,
    spin_up,
    transfer,
)
from wx_data.nature._physics import saturation
from wx_data.nature._state import pack, unpack
from wx_data.nature._sun import season, zenith_anomaly
from wx_data.nature._surface import land_fraction, orography


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Bits are promised on one thread, and at these sizes more threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> NatureModel:
    return NatureModel()


@pytest.fixture(scope="module")
def day_later(model: NatureModel) -> State:
    return model.advance(restart_states().select(slice(0, 5)), 24)


def same(a: State, b: State) -> bool:
    tensors = all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("now", "previous", "heating", "rain")
    )
    return tensors and np.array_equal(a.time, b.time)


def channel(model: NatureModel, fields: torch.Tensor, name: str) -> torch.Tensor:
    return fields[:, model.channels.index(name)]


def test_shipped_states_are_many_and_unlike_each_other() -> None:
    states = restart_states()
    assert states.members >= 14
    assert (states.valid_time == np.datetime64("2001-01-01")).all()
    anomaly = states.now[:, :5] - states.now[:, :5].mean(0)
    flat = torch.view_as_real(anomaly).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(states.members)
    assert correlation.abs().max() < 0.5


def test_output_is_a_plausible_atmosphere(model: NatureModel, day_later: State) -> None:
    fields = model.output(day_later)
    assert fields.shape == (5, 18, 33, 64)
    assert torch.isfinite(fields).all()
    ranges = {
        "z500": (4.0e4, 6.1e4),
        "t850": (190, 320),
        "u250": (-90, 130),
        "q850": (0, 0.04),
        "msl": (8.8e4, 1.1e5),
        "t2m": (190, 325),
        "tp": (0, 0.2),
    }
    for name, (low, high) in ranges.items():
        values = channel(model, fields, name)
        assert low <= values.min(), name
        assert values.max() <= high, name
    assert channel(model, fields, "tp").mean() * 4000 == pytest.approx(2.5, abs=1.5)  # mm per day
    assert (
        channel(model, fields, "z500")[:, 16] > channel(model, fields, "z500")[:, 2]
    ).float().mean() > 0.95


def test_thickness_follows_temperature(model: NatureModel, day_later: State) -> None:
    fields = model.output(day_later)
    thickness = channel(model, fields, "z500") - channel(model, fields, "z850")
    mean = (channel(model, fields, "t500") + channel(model, fields, "t850")) / 2
    error = (thickness / (287.0 * np.log(1.7) * mean) - 1).abs()
    assert error.mean() < 0.01  # two levels stand for a curved profile
    assert error.max() < 0.06


def test_scalars_have_one_value_at_each_pole(model: NatureModel, day_later: State) -> None:
    fields = model.output(day_later)
    for name in ("z500", "t850", "q850", "tp"):
        pole = channel(model, fields, name)[:, [0, -1]]
        assert (pole.amax(2) - pole.amin(2)).max() <= 1e-4 * pole.abs().max()


def test_two_metre_temperature_has_a_day_over_land_and_none_over_sea(model: NatureModel) -> None:
    state, hours = restart_states().select([0, 1]).at("2001-06-20"), []
    for _ in range(4):
        state = model.advance(state, 6)
        hours.append(channel(model, model.output(state), "t2m"))
    swing = torch.stack(hours).amax(0) - torch.stack(hours).amin(0)
    land = model.statics()["lsm"]
    tropics = slice(10, 23)
    assert swing[:, tropics][:, land[tropics] > 0.9].mean() > 4.0
    assert swing[:, tropics][:, land[tropics] < 0.05].median() < 1.5  # weather, no sun


def test_the_same_call_gives_the_same_bits(model: NatureModel, day_later: State) -> None:
    assert same(model.advance(day_later, 12), model.advance(day_later, 12))


def test_time_may_be_cut_anywhere(model: NatureModel, day_later: State) -> None:
    assert same(model.advance(model.advance(day_later, 3), 9), model.advance(day_later, 12))


def test_a_member_does_not_know_its_batch(model: NatureModel, day_later: State) -> None:
    """Equal bits on one thread: a property of the matrix kernels, measured here, not a theorem."""
    together = model.advance(day_later, 12)
    for rows in ([0], [4], [3, 1, 0]):
        assert same(model.advance(day_later.select(rows), 12), together.select(rows))


def test_rain_counts_from_the_last_multiple_of_six_hours(model: NatureModel, day_later: State) -> None:
    flooded = dataclasses.replace(day_later, rain=day_later.rain + 1.0)
    half, whole = model.advance(day_later, 3), model.advance(day_later, 6)
    assert torch.equal(model.advance(flooded, 6).rain, whole.rain)
    assert (half.rain <= whole.rain).all()
    later = model.advance(dataclasses.replace(half, rain=half.rain + 1.0), 3)
    torch.testing.assert_close(later.rain, whole.rain + 1.0)


def test_smaller_scales_hold_less_energy(model: NatureModel, day_later: State) -> None:
    spectrum = model.spectrum(day_later).mean((0, 1))
    assert spectrum[21] < spectrum[14] < spectrum[8]
    assert (spectrum[10:] > 0).all()


def test_transfer_to_finer_and_back_changes_nothing_but_rounding() -> None:
    coarse, fine = NatureConfig(), NatureConfig(truncation=31, step_minutes=24, grid=(49, 96))
    state = restart_states(coarse).select([0, 1])
    back = transfer(transfer(state, coarse, fine), fine, coarse)
    assert (back.now - state.now).abs().max() < 1e-4
    assert torch.equal(back.now[:, :-1], state.now[:, :-1])


def test_operational_model_starts_close_to_the_truth(model: NatureModel, day_later: State) -> None:
    config = operational(model.config)
    other = NatureModel(config)
    moved = transfer(day_later, model.config, config)
    difference = channel(model, other.output(moved) - model.output(day_later), "z500") / 9.80665
    assert difference.std() < 40.0
    assert torch.isfinite(other.output(other.advance(moved, 24))).all()


def test_levels_must_agree() -> None:
    with pytest.raises(ValueError, match="from 5 to 8 levels"):
        transfer(restart_states(), NatureConfig(), NatureConfig(levels=8))


def test_perturbations_have_the_size_asked_for() -> None:
    states = restart_states()
    pool = states.select(slice(4, 16)).at("1999-01-05")
    centre = states.select([0])
    rows = perturb(centre, pool, size=0.1, seed=1, members=40)
    spread = (rows.now[:, :20] - rows.now[:, :20].mean(0)).abs().square().mean().sqrt()
    climate = (states.now[:, :20] - states.now[:, :20].mean(0)).abs().square().mean().sqrt()
    assert spread / climate == pytest.approx(0.1, abs=0.02)


def test_perturbations_depend_on_seed_time_and_member_only() -> None:
    states = restart_states()
    pool = states.select(slice(4, 16)).at("1999-01-05")
    both = State.stack([states.select([0]), states.select([1]).at("2001-01-03")])
    rows = perturb(both, pool, size=0.1, seed=1, members=3)
    alone = perturb(both.select([1]), pool, size=0.1, seed=1, members=2)
    assert torch.equal(rows.now[3:5], alone.now)
    other = perturb(both.select([1]), pool, size=0.1, seed=2, members=2)
    assert not torch.equal(other.now, alone.now)


def test_perturbing_needs_states_of_the_season() -> None:
    states = restart_states()
    with pytest.raises(ValueError, match="at least 3 states of the pool"):
        perturb(states.select([0]), states.at("1999-07-01"), size=0.1, seed=0, members=2)


def test_states_survive_packing_and_files(tmp_path: Path, day_later: State) -> None:
    assert torch.equal(unpack(pack(day_later.now)), day_later.now)
    dated = day_later.select([0, 1]).at(["2001-01-02T06", "2001-01-03T00"])
    save_states(tmp_path, dated)
    assert same(load_states(tmp_path), dated)
    assert same(load_states(tmp_path, ["2001-01-03"]), dated.select([1]))
    with pytest.raises(ValueError, match="20010104T00"):
        load_states(tmp_path, ["2001-01-04"])


def test_spin_up_gives_moving_air() -> None:
    config = NatureConfig(truncation=15, step_minutes=45)
    state = spin_up(config, 2, days=5, seed=3)
    assert (state.valid_time == np.datetime64("2001-01-01")).all()
    assert NatureModel(config).output(state)[:, 6:9].abs().max() > 1.0


def test_spin_up_resumes_and_a_member_does_not_depend_on_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = NatureConfig(truncation=15, step_minutes=45), tmp_path / "spin_up.npz"
    whole = spin_up(config, 3, days=2, seed=3)
    advance = NatureModel.advance

    def killed(model: NatureModel, state: State, hours: float) -> State:
        if path.exists():
            raise KeyboardInterrupt
        return advance(model, state, hours)

    monkeypatch.setattr("wx_data.nature._restart._CHECKPOINT_DAYS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(NatureModel, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            spin_up(config, [1, 2], days=2, seed=3, checkpoint=path)
    resumed = spin_up(config, [1, 2], days=2, seed=3, checkpoint=path)
    assert same(resumed, whole.select([1, 2]))
    with pytest.raises(ValueError, match="another spin-up"):
        spin_up(config, [1, 2], days=2, seed=4, checkpoint=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step_minutes": 50}, "divide 360"),
        ({"levels": 1}, "levels >= 2"),
        ({"friction_days": 0.0}, "friction_days must be positive"),
        ({"grid": (32, 64)}, "odd number of latitudes"),
        ({"grid": (33, 40)}, "more than 42 longitudes"),
        ({"pressure_levels": (1100,)}, "pressure_levels"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NatureConfig(**changes)  # type: ignore[arg-type]


def test_bad_calls_are_refused(model: NatureModel) -> None:
    with pytest.raises(ValueError, match="multiple of 36 minutes"):
        model.advance(restart_states(), 1)
    with pytest.raises(ValueError, match="move it with"):
        NatureModel(operational(NatureConfig())).advance(restart_states(), 6)
    with pytest.raises(ValueError, match="shipped for T21 L5"):
        restart_states(NatureConfig(levels=8))
    wild = restart_states().select([0, 1])
    with pytest.raises(ValueError, match="blew up"):
        model.advance(dataclasses.replace(wild, now=wild.now * 20), 24)


def test_saturation_against_bolton_and_its_derivative() -> None:
    temperature = torch.tensor([233.15, 273.15, 303.15], dtype=torch.float64)
    pressure = torch.tensor(85000.0, dtype=torch.float64)
    humidity, slope = saturation(temperature, pressure)
    exact = 0.622 * 611.2 * torch.exp(17.67 * (temperature - 273.15) / (temperature - 29.65)) / pressure
    torch.testing.assert_close(humidity, exact)
    numeric = saturation(temperature + 1e-3, pressure)[0] - saturation(temperature - 1e-3, pressure)[0]
    torch.testing.assert_close(slope, numeric / 2e-3, rtol=1e-6, atol=0)


def test_sun_is_highest_at_noon_in_summer_and_averages_to_zero() -> None:
    sines, angles = torch.linspace(-1, 1, 19), torch.arange(64) * (2 * torch.pi / 64)
    hours = np.datetime64("2003-06-21").astype("datetime64[s]").astype(np.int64) + 1800 * np.arange(48)
    sun = zenith_anomaly(hours, sines, angles)
    assert sun.mean(1).abs().max() < 5e-3  # half-hourly sum of a function with two kinks a day
    noon = sun[0, 24]  # 12 UTC at Greenwich
    assert sines[noon.argmax()].item() > 0
    assert season(np.array([hours[0]]))[0] == pytest.approx(1.0, abs=1e-2)


def test_the_map_has_continents_where_they_are() -> None:
    places = {"Sahara": (20, 15), "Siberia": (62, 100), "Amazon": (-8, -60), "Antarctica": (-85, 0)}
    for lat, lon in places.values():
        assert land_fraction(np.array([lat]), np.array([lon]))[0, 0] > 0.9
    for lat, lon in ((0, -150), (45, -40), (-40, 80)):
        assert land_fraction(np.array([lat]), np.array([lon]))[0, 0] < 0.05
    globe = land_fraction(np.linspace(90, -90, 61), np.arange(0, 360, 3.0))
    weights = np.cos(np.deg2rad(np.linspace(90, -90, 61)))[:, None] * np.ones(120)
    assert np.average(globe, weights=weights) == pytest.approx(0.29, abs=0.05)
    assert orography(np.array([34.0]), np.array([88.0]))[0, 0] > 4000
    assert orography(np.array([0.0]), np.array([-150.0]))[0, 0] < 10
