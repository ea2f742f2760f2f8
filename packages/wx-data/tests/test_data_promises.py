"""Promises that no single module keeps: messages, CF metadata, traps, and what the package weighs.

CF is checked by rules written down here from CF-1.11, the standard-name table among them, and not by what the
package says about itself.
"""

import ast
import fcntl
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import wx_data
from wx_data import (
    Forcings,
    ForecastWriter,
    Grid,
    Loader,
    RowRange,
    SourceError,
    Store,
    StoreError,
    SyntheticSource,
    TimeWindow,
    compute_statistics,
    convert,
    open_forecast,
    open_source,
)
from wx_data._export import export

Make = Callable[..., Any]
GRID = Grid.regular(9, 16)
WINDOW = TimeWindow((-6, 0), (6,))


def dataset(**coordinates: Any) -> xr.Dataset:
    times = np.datetime64("2001-01-01", "ns") + np.arange(3) * np.timedelta64(6, "h")
    coords = {"time": times, "latitude": GRID.latitude, "longitude": GRID.longitude, **coordinates}
    values = np.random.default_rng(0).uniform(250, 300, (3, 9, 16)).astype("f4")
    dims = ("time", "latitude", "longitude")
    return xr.Dataset({"2m_temperature": (dims, values, {"units": "K"})}, coords)


# Messages


def test_missing_channels_name_the_preset_the_long_name_and_three_near_names() -> None:
    for asked in ("pangu69", wx_data.PRESETS["pangu69"]):
        with pytest.raises(SourceError, match="lacks 68 of 69 channels of preset 'pangu69':") as caught:
            open_source(dataset(), channels=asked)
    lines = str(caught.value).splitlines()
    (line,) = (line for line in lines if line.strip().startswith("u10m"))
    assert "u10m (10m_u_component_of_wind): no such variable" in line
    near = dataset()
    for name in ("2m_dewpoint", "2m_temperature_min", "2m_temp", "2m_temperature_max"):
        near[name] = near["2m_temperature"]
    with pytest.raises(SourceError) as caught:
        open_source(near.drop_vars("2m_temperature"), channels=["t2m"])
    assert "preset" not in str(caught.value)
    listed = re.search(r"t2m \(2m_temperature\): no such variable; nearest are (.*)", str(caught.value))
    assert listed is not None
    assert len(listed[1].split(", ")) == 3


def test_turned_rows_and_columns_are_recorded(tmp_path: Path) -> None:
    plain = open_source(dataset())
    assert "reordered" not in plain.provenance
    west = dataset(longitude=GRID.longitude - 180).isel(latitude=slice(None, None, -1))
    convert(open_source(west), tmp_path / "s")
    store = Store(tmp_path / "s")
    assert store.attributes["provenance"]["reordered"] == [
        "latitude ran from south to north",
        "longitude began 8 columns west of 0",
    ]
    rolled = np.roll(plain.read(plain.times).values, 8, axis=-1)
    np.testing.assert_array_equal(store.read(store.times).values, rolled)


def test_a_training_store_from_south_to_north_is_refused(make_source: Make, tmp_path: Path) -> None:
    convert(make_source(3), tmp_path / "s")
    place = tmp_path / "s" / "latitude" / "c.0"
    place.write_bytes(GRID.latitude[::-1].astype("<f8").tobytes())
    with pytest.raises(ValueError, match=r"latitude must decrease .* -90\.0 at index 0, .* 90\.0 at index 8"):
        Store(tmp_path / "s")


def model_calendar(path: Path, kind: str) -> Any:
    """Data whose times have the calendar noleap: as a file, and as cftime makes it of one."""
    raw = dataset().assign_coords(time=("time", [0, 6, 12], {"units": "hours since 2001-01-01"}))
    raw["time"].attrs["calendar"] = "noleap"
    if kind == "netcdf":
        pytest.importorskip("h5netcdf")
        raw.to_netcdf(path)
    elif kind == "memory":
        dates = np.array([SimpleNamespace(calendar="noleap", day=day) for day in (1, 2, 3)], dtype=object)
        return dataset().drop_vars("time").assign_coords(time=xr.Variable("time", dates))
    else:
        raw.to_zarr(path, zarr_format=2 if kind == "zarr2" else 3, consolidated=True)
    return path


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.parametrize("kind", ["netcdf", "zarr2", "zarr3", "memory"])
def test_calendars_of_models_are_refused_with_a_remedy(tmp_path: Path, kind: str) -> None:
    data = model_calendar(tmp_path / "data", kind)
    with pytest.raises(
        SourceError, match=r"calendar 'noleap', the standard one .*cftime.*convert_calendar"
    ) as caught:
        open_source(data)
    assert "decode_times" not in str(caught.value)


def test_a_real_file_of_a_model_calendar(samples: Path) -> None:
    with pytest.raises(SourceError, match=r"^cesm_lens40\S*\.nc: .*'noleap'.*convert_calendar\('standard'"):
        open_source(samples / "members" / "cesm_lens40_point_ts_6hourly_1990-1995.nc")


def test_statistics_that_know_the_validation_years_are_refused(make_source: Make, tmp_path: Path) -> None:
    """Trap: a table over all years leaks; both loaders name the training period."""
    convert(make_source(40), tmp_path / "s")
    store = Store(tmp_path / "s")
    training, later = ("2001-01-01", "2001-01-05"), ("2001-01-06", "2001-01-10")
    leaky = compute_statistics(store, save=False)
    for times in (training, later):
        with pytest.raises(StoreError, match=r"another period .*beyond 2001-01-01T00\.\.2001-01-05T23"):
            Loader(store, WINDOW, batch_size=2, times=times, normalise=leaky, training_period=training)
    clean = compute_statistics(store, period=training, save=False)
    for times in (training, later):
        loader = Loader(store, WINDOW, batch_size=2, times=times, normalise=clean, training_period=training)
        assert len(loader) > 0
    with pytest.raises(ValueError, match="pass normalise= as well"):
        Loader(store, WINDOW, batch_size=2, training_period=training)


def test_the_remedy_of_a_refused_conversion_works_in_the_same_folder(
    make_source: Make, tmp_path: Path
) -> None:
    """A source that is refused at its first step leaves nothing that other settings contradict."""
    source = make_source(6)
    original = source.read

    def read(times: Any, channels: Any) -> Any:
        array = original(times, channels).copy()
        array.loc[{"channel": "t850"}][:, 2:5] = np.nan
        return array

    source.read = read
    with pytest.raises(SourceError, match="Pass nan="):
        convert(source, tmp_path / "s")
    claims = tmp_path / "s" / "_wx" / "claims"
    with open(claims / "0-3", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as a process that does half of the work
        with pytest.raises(StoreError, match="begun with other settings"):
            convert(source, tmp_path / "s", nan={"t850": "mean"}, part=(1, 2))
    convert(source, tmp_path / "s", nan={"t850": "mean"}, channels=["t850", "msl"], statics={})
    convert(source, tmp_path / "fresh", nan={"t850": "mean"}, channels=["t850", "msl"], statics={})
    files = [
        {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file() and path.suffix != ".parquet"
        }
        for root in (tmp_path / "s", tmp_path / "fresh")
    ]
    assert files[0] == files[1]
    with pytest.raises(StoreError, match="begun with other settings: nan was"):
        convert(source, tmp_path / "s", nan={"t850": "nearest"}, channels=["t850", "msl"], statics={})


# Traps


@pytest.mark.parametrize("sizes", [(361, 360), (181, 181, 181, 178), (91,) * 7 + (84,)])
def test_ranks_that_share_721_rows_lose_no_pole(store_721: Store, sizes: tuple[int, ...]) -> None:
    """Trap: 721 rows do not divide by 2, 4 or 8."""
    assert sum(sizes) == 721
    whole = next(iter(Loader(store_721, WINDOW, batch_size=1, seed=3)))
    stops = np.cumsum(sizes).tolist()
    parts = [
        next(iter(Loader(store_721, WINDOW, batch_size=1, seed=3, rows=RowRange(stop - size, stop))))
        for size, stop in zip(sizes, stops, strict=True)
    ]
    assert [part.x.shape[-2] for part in parts] == list(sizes)
    assert torch.equal(torch.cat([part.x for part in parts], dim=-2), whole.x)
    assert torch.equal(torch.cat([part.y for part in parts], dim=-2), whole.y)


@pytest.fixture(scope="module")
def store_721(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("poles") / "s"
    period = ("2001-01-01T00", "2001-01-01T18")
    source = SyntheticSource(("t850", "msl"), Grid.regular(721, 8), period, 6, 0)
    convert(source, path, band_rows=23)
    return Store(path)


def python_calls(run: Callable[[], Any]) -> int:
    """How many Python functions `run` calls."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:  # noqa: ARG001
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


def test_dates_are_not_a_loop_in_python() -> None:
    """Trap: `np.vectorize` around date code in the hot path."""
    times = np.datetime64("2001-01-01", "ns") + np.arange(64) * np.timedelta64(6, "h")
    instant = Forcings(GRID, ["cos_zenith", "day_progress", "year_progress"])
    few, many = (python_calls(lambda n=n: instant.at(times[:n])) for n in (4, 64))
    assert many == few, "calls grow with the number of times"
    small, large = (
        python_calls(lambda grid=grid: Forcings(grid, ["toa_incident_solar_radiation"]).at(times[:4]))
        for grid in (GRID, Grid.regular(91, 180))
    )
    assert large < small + 20, "calls grow with the number of points"


def test_coordinates_lie_in_one_chunk(make_source: Make, tmp_path: Path) -> None:
    """Trap: `time` in chunks of one makes opening slow; here it is whole hours in one object."""
    convert(make_source(30), tmp_path / "s")
    export(Store(tmp_path / "s"), tmp_path / "out")
    for path, objects in ((tmp_path / "s" / "time", ["c.0"]), (tmp_path / "out" / "time", ["0"])):
        found = [entry.name for entry in path.iterdir() if entry.name[0] != "." and entry.suffix != ".json"]
        assert found == objects
        raw = xr.open_zarr(path.parent, chunks=None, decode_cf=False)["time"]
        assert (raw.dtype, raw.size) == (np.dtype("int64"), 30)


# CF-1.11

STANDARD_NAMES = {  # canonical units of the CF standard-name table
    "air_pressure": "Pa",
    "air_pressure_at_mean_sea_level": "Pa",
    "air_temperature": "K",
    "atmosphere_mass_content_of_water_vapor": "kg m-2",
    "cloud_area_fraction": "1",
    "dew_point_temperature": "K",
    "eastward_wind": "m s-1",
    "geopotential": "m2 s-2",
    "lagrangian_tendency_of_air_pressure": "Pa s-1",
    "land_binary_mask": "1",
    "lwe_thickness_of_precipitation_amount": "m",
    "mass_fraction_of_cloud_ice_in_air": "1",
    "mass_fraction_of_cloud_liquid_water_in_air": "1",
    "northward_wind": "m s-1",
    "relative_humidity": "1",
    "sea_ice_area_fraction": "1",
    "sea_surface_temperature": "K",
    "specific_humidity": "1",
    "surface_air_pressure": "Pa",
    "surface_geopotential": "m2 s-2",
    "surface_temperature": "K",
}
SAME_DIMENSION = {"kg kg-1": "1", "%": "1", "hPa": "Pa"}
ACCUMULATED = {"lwe_thickness_of_precipitation_amount"}
CALENDARS = {"standard", "gregorian", "proleptic_gregorian"}
METHOD = re.compile(r"(\w+: )+(point|sum|mean|maximum|minimum)( \([^()]*\))?")
COORDINATES = {  # name -> standard name, units, axis
    "latitude": ("latitude", "degrees_north", "Y"),
    "longitude": ("longitude", "degrees_east", "X"),
    "level": ("air_pressure", "hPa", "Z"),
    "time": ("time", "hours since 1970-01-01", "T"),
    "init_time": ("forecast_reference_time", "hours since 1970-01-01", None),
    "lead_time": ("forecast_period", "h", None),
    "member": ("realization", "1", None),
    "valid_time": ("time", "hours since 1970-01-01", None),
}


def quantity_problems(name: str, attributes: Any) -> Iterator[str]:
    """CF 3.1, 3.3, 7.3 of one quantity."""
    standard_name, units = attributes.get("standard_name"), attributes.get("units")
    if standard_name not in STANDARD_NAMES:
        yield f"{name}: standard name {standard_name!r} is not in the table"
    elif SAME_DIMENSION.get(units, units) != STANDARD_NAMES[standard_name]:
        yield f"{name}: units {units!r} are not {STANDARD_NAMES[standard_name]!r}"
    methods = attributes.get("cell_methods", "")
    if methods and not METHOD.fullmatch(methods):
        yield f"{name}: cell_methods {methods!r}"
    if (standard_name in ACCUMULATED) != methods.startswith("time: sum"):
        yield f"{name}: an accumulation has the cell method sum over time, and nothing else has: {methods!r}"


def coordinate_problems(raw: xr.Dataset) -> Iterator[str]:
    """CF 2.5.1, 4.1 to 4.4, 6.1 of the coordinates of a dataset opened without decoding."""
    if not str(raw.attrs.get("Conventions", "")).startswith("CF-1."):
        yield "no Conventions"
    for name in raw.variables:
        if name in COORDINATES:
            standard_name, units, axis = COORDINATES[str(name)]
            attributes = raw[name].attrs
            found = (attributes.get("standard_name"), attributes.get("units"), attributes.get("axis"))
            # An auxiliary coordinate, as the level of each channel, is no axis.
            if found != (standard_name, units, axis if raw[name].dims == (name,) else None):
                yield f"{name}: {found}"
            if " since " in units and attributes.get("calendar") not in CALENDARS:
                yield f"{name}: calendar {attributes.get('calendar')!r}"
            if {"_FillValue", "missing_value"} & set(attributes):
                yield f"{name}: a coordinate must not have a fill value"
        if raw[name].dims == (name,) and raw[name].dtype.kind in "if":
            steps = np.diff(raw[name].values)
            if not ((steps > 0).all() or (steps < 0).all()):
                yield f"{name}: not monotonic"
    if raw["latitude"].dims == ("latitude",) and np.abs(raw["latitude"]).max() > 90:
        yield "latitude beyond a pole"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of every single-level channel of the lexicon and of three variables on other levels."""
    path = tmp_path_factory.mktemp("cf") / "s"
    names = ("u10m", "v100m", "t2m", "d2m", "sp", "msl", "tcwv", "skt", "tcc", "sst", "siconc", "tp", "tp01")
    names += ("z500", "z850", "t500", "t850", "w700", "q500", "r850", "clwc500", "ciwc500", "u500", "v500")

    class Plain:
        channels, grid, statics = names, GRID, {"z_surface": np.ones((9, 16)), "lsm": np.ones((9, 16))}
        times = np.datetime64("2001-01-01", "ns") + np.arange(4) * np.timedelta64(6, "h")

        def read(self, times: Any, wanted: Any, /) -> xr.DataArray:
            rng, levels = np.random.default_rng(0), []
            for name in wanted:
                low, high = wx_data.channel(name).valid_range
                levels.append(rng.uniform(max(low, 0.0), high, (len(np.atleast_1d(times)), 9, 16)))
            coords = {"time": np.atleast_1d(times), "channel": list(wanted)}
            dims = ("time", "channel", "latitude", "longitude")
            return xr.DataArray(np.stack(levels, axis=1).astype("f4"), coords, dims)

    convert(Plain(), path)
    return Store(path)


def channel_table(raw: xr.Dataset, prefix: str = "") -> dict[str, dict[str, Any]]:
    """Channel -> attributes, from the coordinates along the channels."""
    texts = ("long_name", "standard_name", "units", "cell_methods")
    numbers = {"level": "level_hPa", "accumulation_hours": "accumulation_hours"}
    table = {}
    for place, name in enumerate(raw[f"{prefix}channel"].values):
        about = {text: str(raw[prefix + text].values[place]) for text in texts}
        values = {key: raw[prefix + number].values[place] for number, key in numbers.items()}
        about |= {key: int(value) for key, value in values.items() if not np.isnan(value)}
        table[str(name)] = {key: value for key, value in about.items() if value != ""}
    return table


def test_stores_and_forecasts_can_be_written_as_netcdf(everything: Store, tmp_path: Path) -> None:
    """NetCDF attributes are numbers and text: a table anywhere makes `to_netcdf` fail."""
    pytest.importorskip("h5netcdf")
    writer = ForecastWriter.create(
        tmp_path / "f",
        init_times=everything.times[:1],
        lead_times=[6],
        members=2,
        channels=everything.channels,
        grid=GRID,
        attributes={"settings": {"width": 64, "leads": []}, "ensemble": True},
    )
    writer.write(everything.times[0], 6, np.ones((2, len(everything.channels), 9, 16), np.float32))
    writer.finalise()
    for name in (everything.path, tmp_path / "f"):
        dataset = xr.open_zarr(name, chunks=None)
        dataset.to_netcdf(tmp_path / "case.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / "case.nc", engine="h5netcdf") as back:
            xr.testing.assert_equal(back.load(), dataset.load())
    assert json.loads(dataset.attrs["settings"]) == {"width": 64, "leads": []}


def test_cf_of_the_training_store(everything: Store) -> None:
    raw = xr.open_zarr(everything.path, chunks=None, decode_cf=False)
    assert list(coordinate_problems(raw)) == []
    for table in (channel_table(raw), channel_table(raw, "static_")):
        assert [problem for name, about in table.items() for problem in quantity_problems(name, about)] == []
    assert tuple(channel_table(raw)) == everything.channels
    assert channel_table(raw)["t850"] == wx_data.channel("t850").attributes()
    decoded = xr.open_zarr(everything.path, chunks=None)
    np.testing.assert_array_equal(decoded["time"].values, everything.times)


def test_cf_of_a_forecast(everything: Store, tmp_path: Path) -> None:
    writer = ForecastWriter.create(
        tmp_path / "f",
        init_times=everything.times[:2],
        lead_times=[6, 12],
        members=2,
        channels=everything.channels,
        grid=GRID,
    )
    for init_time, lead_time in writer.missing():
        writer.write(init_time, lead_time, np.zeros((2, len(everything.channels), 9, 16), np.float32))
    writer.finalise()
    raw = xr.open_zarr(tmp_path / "f", chunks=None, decode_cf=False)
    assert list(coordinate_problems(raw)) == []
    table = channel_table(raw)
    assert {name: wx_data.channel(name).attributes() for name in table} == table
    assert [problem for name, about in table.items() for problem in quantity_problems(name, about)] == []
    decoded = open_forecast(tmp_path / "f")
    lead = decoded["lead_time"].values.astype("timedelta64[h]")
    np.testing.assert_array_equal(decoded["valid_time"].values, decoded["init_time"].values[:, None] + lead)


@pytest.mark.parametrize("kind", ["zarr", "netcdf"])
def test_cf_of_an_export_on_different_levels(everything: Store, tmp_path: Path, kind: Any) -> None:
    if kind == "netcdf":
        pytest.importorskip("h5netcdf")
    path = export(everything, tmp_path / "out", kind=kind)
    open_raw = xr.open_zarr if kind == "zarr" else xr.open_dataset
    with open_raw(path, decode_cf=False) as raw:
        assert list(coordinate_problems(raw)) == []
        assert [
            p for name, array in raw.data_vars.items() for p in quantity_problems(str(name), array.attrs)
        ] == []
        # What most variables share is `level`; others have a dimension of their own, and none is padded.
        assert raw["level"].values.tolist() == [500]
        assert raw["geopotential"].dims == ("time", "level_geopotential", "latitude", "longitude")
        assert raw["temperature"].dims == raw["geopotential"].dims
        assert raw["level_geopotential"].values.tolist() == [500, 850]
        assert raw["level_vertical_velocity"].values.tolist() == [700]
        for name in ("level", "level_geopotential", "level_vertical_velocity"):
            assert raw[name].attrs["standard_name"] == "air_pressure"
            assert raw[name].attrs["positive"] == "down"
    back = open_source(path, channels=everything.channels)
    np.testing.assert_array_equal(
        back.read(everything.times).values, everything.read(everything.times).values
    )
    assert set(open_source(path).channels) == set(everything.channels)
    np.testing.assert_array_equal(back.statics["z_surface"], everything.statics["z_surface"])


# What the package weighs

EXTRAS = {"obstore", "cfgrib", "eccodes", "h5py", "h5netcdf", "scipy", "requests", "ecmwf"}
NEVER = {"dask", "gcsfs", "s3fs", "fsspec", "kerchunk", "virtualizarr", "xbatcher", "tensorstore"}


def test_import_and_command_need_no_extra() -> None:
    """With every extra barred; that other libraries import some of them where they can is their affair."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({EXTRAS | NEVER - {'fsspec'}!r}))\n"  # torch may import fsspec
        "import wx_data, wx_data._cli\n"
        "for name in wx_data.__all__: getattr(wx_data, name)\n"
        "sys.exit(wx_data._cli.main(['channels', 'pangu69', '--json']))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert "z500" in json.loads(found.stdout)


def test_no_pandas_and_no_rival_is_imported() -> None:
    sources = Path(wx_data.__file__).parent.rglob("*.py")
    found = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    assert not found & (NEVER | {"pandas"})


def test_tests_that_need_the_internet_are_asked_for() -> None:
    """Addresses of the world stand in tests of addresses, and in the one test that must be asked for."""
    here = Path(__file__).parent
    readers = [
        path.name
        for path in here.glob("test_data_*.py")
        if path != Path(__file__) and "gcp-public-data" in path.read_text(encoding="utf-8")
    ]
    assert readers == ["test_data_remote.py"]
    text = (here / "test_data_remote.py").read_text(encoding="utf-8")
    before, _, _ = text.partition("def test_one_step_of_the_real_arco")
    assert '"WX_DATA_NETWORK" not in os.environ' in before.rsplit("\n\n\n", 1)[1]
    assert "WX_DATA_NETWORK=1" in (here.parent / "README.md").read_text(encoding="utf-8")
