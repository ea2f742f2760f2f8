"""Every fault is planted in a forecast whose clean twin has no finding."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_eval._doctor import Diagnosis, doctor
from wx_eval._open import open_source

HOUR = np.timedelta64(1, "h")
START = np.datetime64("2020-01-10T00", "ns")
LAT, LON = np.linspace(90, -90, 19), np.arange(0, 360, 10.0)
INITS, LEADS, MEMBERS, STEPS = 8, 4, 5, 40


def waves(rng: np.random.Generator, steps: int, speed: float) -> np.ndarray:
    """Smooth waves (T, H, W) that drift eastwards and change slowly."""
    time = np.arange(steps)[:, None, None]
    lat, lon = np.deg2rad(LAT)[:, None], np.deg2rad(LON)
    out = np.zeros((steps, LAT.size, LON.size))
    for m in range(1, 5):
        for shape in (np.cos(lat), np.cos(lat) * np.sin(2 * lat), np.cos(lat) * np.sin(lat)):
            phase = rng.uniform(0, 2 * np.pi)
            out += shape * np.cos(m * lon - speed * m * time + phase + 0.4 * np.sin(0.3 * time)) / m
    return out


def truth(seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    lat = np.deg2rad(LAT)[:, None]
    z = 55000 - 4000 * np.sin(lat) ** 2 + 900 * waves(rng, STEPS, 0.35)
    t = 255 + 30 * np.cos(lat) ** 2 + 4 * waves(rng, STEPS, 0.35)
    rain = np.maximum(waves(rng, STEPS, 0.35), 0) * 1e-3
    dims = ("time", "latitude", "longitude")
    data = {
        "z500": (dims, z, {"units": "m2 s-2"}),
        "t2m": (dims, t, {"units": "K"}),
        "tp": (dims, rain, {"units": "m"}),
    }
    return xr.Dataset(data, {"time": START + 6 * HOUR * np.arange(STEPS), "latitude": LAT, "longitude": LON})


def forecast(states: xr.Dataset, seed: int = 1) -> xr.Dataset:
    """Truth with an error that grows with lead time, drawn anew for every member."""
    rng = np.random.default_rng(seed)
    inits = START + 12 * HOUR * np.arange(1, INITS + 1)
    leads = (6 * HOUR * np.arange(1, LEADS + 1)).astype("timedelta64[ns]")
    valid = xr.DataArray(inits[:, None] + leads, dims=("init_time", "lead_time"))
    out = states.sel(time=valid).drop_vars("time").expand_dims(member=np.arange(MEMBERS), axis=2)
    out = out.assign_coords(init_time=inits, lead_time=leads).copy(deep=True)
    growth = (0.1 + 0.1 * np.arange(LEADS))[:, None, None, None]
    for name, size in (("z500", 300), ("t2m", 2), ("tp", 2e-4)):
        noise = np.stack([waves(rng, MEMBERS, 1.0) for _ in range(INITS * LEADS)])
        out[name] = out[name] + size * growth * noise.reshape(INITS, LEADS, MEMBERS, LAT.size, LON.size)
        out[name].attrs = states[name].attrs
    out["tp"] = out["tp"].clip(0, None, keep_attrs=True)
    return out


@pytest.fixture(scope="module")
def pair() -> tuple[xr.Dataset, xr.Dataset]:
    states = truth()
    return forecast(states), states


def examine(ours: xr.Dataset, theirs: xr.Dataset, **options: Any) -> Diagnosis:
    options = {"samples": 16, **options}
    return doctor(open_source(ours), open_source(theirs, "truth", truth=True), **options)


def checks(diagnosis: Diagnosis) -> set[str]:
    return {f.check for f in diagnosis.findings if f.severity != "note"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("samples", [3, 12])
def test_no_alarm_on_clean_pairs(seed: int, samples: int) -> None:
    states = truth(seed)
    found = examine(forecast(states, seed + 100), states, samples=samples, seed=seed)
    assert found.healthy, found.text()
    assert found.samples == samples


@pytest.mark.parametrize("seed", range(2))
def test_no_alarm_on_useless_forecasts(seed: int) -> None:
    """A forecast of another year is bad, not broken: its best place and time mean nothing."""
    states = truth(seed)
    found = examine(forecast(truth(seed + 50), seed), states)
    assert found.healthy, found.text()


def renamed_inits(shift: int) -> Callable[[xr.Dataset], xr.Dataset]:
    return lambda f: f.assign_coords(init_time=f["init_time"] + shift * HOUR)


def scaled(name: str, factor: float, offset: float = 0.0) -> Callable[[xr.Dataset], xr.Dataset]:
    def plant(f: xr.Dataset) -> xr.Dataset:
        return f.assign({name: (f[name] * factor + offset).assign_attrs(f[name].attrs)})

    return plant


def with_values(name: str, index: dict[str, Any], value: Any) -> Callable[[xr.Dataset], xr.Dataset]:
    def plant(f: xr.Dataset) -> xr.Dataset:
        f = f.copy(deep=True)
        f[name][index] = value if not callable(value) else value(f)
        return f

    return plant


def copied_member(f: xr.Dataset) -> xr.Dataset:
    f = f.copy(deep=True)
    for name in f.data_vars:
        f[name][{"member": 4}] = f[name].isel(member=1)
    return f


def running_sum(f: xr.Dataset) -> xr.Dataset:
    return f.assign(tp=f["tp"].cumsum("lead_time").assign_attrs(f["tp"].attrs))


def other_unit(f: xr.Dataset) -> xr.Dataset:
    return f.assign(z500=f["z500"].assign_attrs(units="m"))


FAULTS: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], str, float | None]] = {
    "starts 6 h late": (renamed_inits(6), "shifted valid times", -6),
    "starts 12 h early": (renamed_inits(-12), "shifted valid times", 12),
    "height instead of geopotential": (scaled("z500", 1 / 9.80665), "units", 1 / 9.80665),
    "celsius": (scaled("t2m", 1, -273.15), "units", -273.15),
    "millimetres": (scaled("tp", 1000), "units", 1000),
    "no known factor": (scaled("t2m", 0.01), "units", 0.01),
    "units of the attribute": (other_unit, "units", 1),
    "rows reversed": (
        lambda f: f.isel(latitude=slice(None, None, -1)).assign_coords(latitude=LAT),
        "flipped latitudes",
        None,
    ),
    "columns half a turn away": (
        lambda f: f.roll(longitude=18, roll_coords=False),
        "shifted longitudes",
        -180,
    ),
    "columns 30 degrees west": (lambda f: f.roll(longitude=-3, roll_coords=False), "shifted longitudes", 30),
    "start twice": (
        lambda f: f.isel(init_time=[0, 1, 2, 2, 3, 4, 5, 6, 7]),
        "duplicate times",
        LEADS,
    ),
    "starts missing": (lambda f: f.isel(init_time=[0, 1, 2, 5, 6, 7]), "missing starts", 2),
    "lead time missing": (lambda f: f.isel(lead_time=[0, 2, 3]), "missing lead times", 1),
    "lost member": (with_values("t2m", {"init_time": 3, "member": 2}, np.nan), "missing values", 1),
    "copied member": (copied_member, "identical members", 1),
    "empty member": (with_values("z500", {"init_time": 5, "member": 3}, 0.0), "constant fields", 1),
    "running sum": (running_sum, "running sums", 1),
    "other grid": (lambda f: f.isel(latitude=slice(None, None, 2)), "different grids", 9),
    "rows from the south": (lambda f: f.isel(latitude=slice(None, None, -1)), "order of points", 180),
    "other channels": (lambda f: f.rename(z500="a", t2m="b", tp="c"), "channels", 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_the_only_finding(pair: tuple[xr.Dataset, xr.Dataset], fault: str) -> None:
    plant, check, evidence = FAULTS[fault]
    found = examine(plant(pair[0]), pair[1], samples=INITS * LEADS)
    also = {"physical range"} if check in ("units", "constant fields") else set()
    assert check in checks(found), found.text()
    assert checks(found) <= {check} | also, found.text()
    if evidence is not None:
        [number] = {f.evidence for f in found.findings if f.check == check}
        assert number == pytest.approx(evidence, rel=0.05)
    assert not found.healthy
    assert all(f.fix and f.where and f.message for f in found.findings)


def test_fields_in_wrong_units_name_the_side(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    found = examine(pair[0], scaled("t2m", 1, -273.15)(pair[1]))
    [where] = [f.where for f in found.findings if f.check == "physical range"]
    assert where == "t2m of truth"


def test_mixed_member_counts_and_starts_with_fewer_leads(
    pair: tuple[xr.Dataset, xr.Dataset], tmp_path: Any
) -> None:
    pytest.importorskip("h5netcdf")
    for k in range(INITS):
        part = pair[0].isel(init_time=[k])
        part = part.isel(member=slice(0, 3)) if k == 2 else part
        part = part.isel(lead_time=slice(0, 2)) if k == 5 else part
        part.to_netcdf(tmp_path / f"{k}.nc", engine="h5netcdf")
    states = open_source(pair[1], "truth", truth=True)
    found = doctor(open_source(str(tmp_path / "*.nc")), states, samples=32)
    assert checks(found) == {"mixed member counts", "missing lead times"}
    evidence = {f.check: f.evidence for f in found.findings}
    assert evidence == {"mixed member counts": 3 * LEADS, "missing lead times": 1}
    assert "3 members here, 5 elsewhere" in found.text()
    again = doctor(open_source([*map(str, tmp_path.glob("*.nc")), tmp_path / "0.nc"]), states)
    assert "duplicate times" not in checks(again)
    pair[0].isel(init_time=[0]).to_netcdf(tmp_path / "copy.nc", engine="h5netcdf")
    again = doctor(open_source(str(tmp_path / "*.nc")), states)
    assert "duplicate times" in checks(again)


def test_truth_faults(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    short = examine(pair[0], pair[1].isel(time=slice(0, 10)))
    assert checks(short) == {"missing truth"}
    several = examine(pair[0], pair[1].expand_dims(member=3))
    assert checks(several) == {"truth members"}
    twice = examine(pair[0], pair[1].isel(time=[0, 1, 1, *range(2, STEPS)]))
    assert "duplicate times" in checks(twice)


def test_persistence_is_named_as_such(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    still = pair[0].copy(deep=True)
    for name in still.data_vars:
        start = pair[1][name].sel(time=still["init_time"]).values[:, None, None]
        still[name] = still[name] * 0 + start + still[name].isel(init_time=0) * 1e-6
    found = [f for f in examine(still, pair[1]).findings if f.check == "shifted valid times"]
    assert [f.severity for f in found] == ["warning"]
    assert "persistence" in found[0].message


def test_sampling_is_seeded(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    faulty = with_values("t2m", {"init_time": 3, "member": 2}, np.nan)(pair[0])
    runs = [examine(faulty, pair[1], samples=4, seed=s) for s in (0, 0, 1, 2, 3, 4, 5)]
    assert runs[0] == runs[1]
    assert len({r.healthy for r in runs}) == 2
