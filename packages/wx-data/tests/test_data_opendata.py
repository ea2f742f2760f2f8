"""Operational analyses: real and encoded GRIB messages behind a loopback server with faults."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_data import Grid, SourceError, Store, convert
from wx_data._cli import main
from wx_data._healpix import Healpix
from wx_data._opendata import OpenData, fetch_initial_state

eccodes = pytest.importorskip("eccodes")
pytest.importorskip("cfgrib")

GRAVITY = 9.80665
GRID = Grid.regular(19, 36)
TIME = "2024-06-03T06"
IFS = {  # key of the index -> (paramId, level)
    **{f"gh:pl:{p}": (156, p) for p in (500, 850)},
    **{f"t:pl:{p}": (130, p) for p in (500, 850)},
    **{f"r:pl:{p}": (157, p) for p in (500, 850)},
    "q:pl:500": (133, 500),
    "2t:sfc": (167, None),
    "10u:sfc": (165, None),
    "msl:sfc": (151, None),
    "tcwv:sfc": (137, None),
    "z:sfc": (129, None),
    "lsm:sfc": (172, None),
}
GFS = {  # variable and level of the index -> (discipline, category, number, kind of level, level)
    "PRMSL:mean sea level": (0, 3, 1, 101, 0),
    "HGT:500 mb": (0, 3, 5, 100, 50000),
    "TMP:500 mb": (0, 0, 0, 100, 50000),
    "SPFH:500 mb": (0, 1, 0, 100, 50000),
    "UGRD:500 mb": (0, 2, 2, 100, 50000),
    "VGRD:500 mb": (0, 2, 3, 100, 50000),
    "UGRD:10 m above ground": (0, 2, 2, 103, 10),
    "UGRD:100 m above ground": (0, 2, 2, 103, 100),
    "TMP:2 m above ground": (0, 0, 0, 103, 2),
    "PRES:surface": (0, 3, 0, 1, 0),
    "PWAT:entire atmosphere (considered as a single layer)": (0, 1, 3, 200, 0),
    "LAND:surface": (2, 0, 0, 1, 0),
    "HGT:surface": (0, 3, 5, 1, 0),
}


def field(key: str, hour: int, grid: Grid = GRID) -> np.ndarray:
    """Smooth values in the message's own units, different for every message."""
    phi, lam = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    number = sum(map(ord, key)) % 97 + hour % 24
    base = {"t": 270, "2": 285, "T": 270, "m": 1e5, "P": 1e5, "r": 50, "q": 5e-3, "S": 5e-3}.get(key[0], 20)
    base = {"PWAT": 25, "gh:p": 5500, "HGT:": 5500, "LAND": 0.5, "lsm:": 0.5, "tp:s": 3e-3}.get(key[:4], base)
    values = base * (1 + 0.05 * np.cos(phi) * np.cos(lam - number) + 0.01 * np.sin(phi))
    return np.asarray(values, dtype=np.float64)


def encode(values: np.ndarray, hour: int, step: int, keys: dict[str, Any], west: int = 0) -> bytes:
    """A GRIB 2 message whose first column lies at `west`."""
    level = "pl" if keys.get("typeOfLevel") == "isobaricInhPa" else "sfc"
    message = eccodes.codes_grib_new_from_samples(f"regular_ll_{level}_grib2")
    start = str(np.datetime64(hour, "h"))
    first = {
        "Ni": 36, "Nj": 19, "iDirectionIncrementInDegrees": 10, "jDirectionIncrementInDegrees": 10,
        "latitudeOfFirstGridPointInDegrees": 90, "latitudeOfLastGridPointInDegrees": -90,
        "longitudeOfFirstGridPointInDegrees": west, "longitudeOfLastGridPointInDegrees": (west + 350) % 360,
        "dataDate": int(start[:10].replace("-", "")), "dataTime": int(start[11:13]) * 100,
    }  # fmt: skip
    for key, value in {**first, **keys}.items():
        eccodes.codes_set(message, key, value)
    if step:
        eccodes.codes_set(message, "stepRange", f"0-{step}" if "stepType" in keys else step)
    eccodes.codes_set(message, "bitsPerValue", 24)
    eccodes.codes_set_values(message, np.roll(values, -west // 10, axis=1).ravel())
    found: bytes = eccodes.codes_get_message(message)
    eccodes.codes_release(message)
    return found


def ifs_file(hour: int, step: int) -> tuple[bytes, bytes]:
    """GRIB and index as ECMWF publishes them: the first column lies at 180 degrees."""
    body, index = b"", []
    entries: dict[str, dict[str, Any]] = {}
    for key, (number, level) in IFS.items():
        on_level = {"typeOfLevel": "isobaricInhPa", "level": level} if level else {}
        entries[key] = {**on_level, "paramId": number}
    if step:
        entries = {"tp:sfc": {"paramId": 228, "stepType": "accum"}}
    for key, keys in entries.items():
        message = encode(field(key, hour), hour, step, keys, west=180)
        name, kind, *level = key.split(":")
        entry = {
            "param": name,
            "levtype": kind,
            "step": str(step),
            "_offset": len(body),
            "_length": len(message),
        }
        index.append(json.dumps({**entry, **({"levelist": level[0]} if level else {})}))
        body += message + b"\0" * 7
    return body, ("\n".join(index) + "\n").encode()


def gfs_file(hour: int, step: int) -> tuple[bytes, bytes]:
    """GRIB and index as NCEP publishes them."""
    names = ("discipline", "parameterCategory", "parameterNumber", "typeOfFirstFixedSurface")
    entries = {
        key: {**dict(zip(names, value[:4], strict=True)), "scaledValueOfFirstFixedSurface": value[4]}
        for key, value in GFS.items()
    }
    if step:
        rain = {"productDefinitionTemplateNumber": 8, "typeOfStatisticalProcessing": 1}
        entries = {
            "APCP:surface": {**rain, **dict(zip(names, (0, 1, 8, 1), strict=True)), "stepType": "accum"}
        }
    body, lines = b"", []
    for number, (key, keys) in enumerate(entries.items(), 1):
        text = f"0-{step} hour acc fcst" if step else "anl"
        stamp = str(np.datetime64(hour, "h")).replace("-", "").replace("T", "")
        lines.append(f"{number}:{len(body)}:d={stamp}:{key}:{text}:")
        surface = {"scaleFactorOfFirstFixedSurface": 0}
        body += encode(field(key, hour), hour, step, {"centre": "kwbc", **keys, **surface})
    return body, "\n".join(lines).encode()


class Server:
    """Files by path; `faults` holds for a path what to do wrong, once per entry."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.requests: Counter[str] = Counter()
        self.bytes = 0
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of clients that hang up early
        self._server = server
        self.root = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def publish(self, data: OpenData, hour: int) -> None:
        make = gfs_file if data.centre == "gfs" else ifs_file
        for step in (0, 6):
            body, index = make(hour, step)
            self.files[data.file_url(hour, step).removeprefix(self.root)] = body
            self.files[data.index_url(hour, step).removeprefix(self.root)] = index

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, owner: Server, *args: Any) -> None:
        self.owner = owner
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, head: bool) -> None:
        owner, path = self.owner, self.path
        owner.requests[path] += 1
        waiting = owner.faults.get(path, [])
        fault = waiting.pop(0) if waiting else ""
        body = owner.files.get(path)
        if fault.isdigit() or body is None:
            self.send_error(int(fault or 404))
            return
        status, span = 200, self.headers.get("Range")
        if span and fault != "whole":
            first, _, last = span.removeprefix("bytes=").partition("-")
            body, status = body[int(first) : int(last) + 1 if last else None], 206
        if fault == "hang":
            threading.Event().wait(1.0)
        if fault == "garbage":
            body = bytes(len(body))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not head and fault != "drop":
            sent = body[: len(body) // 2] if fault == "short" else body
            owner.bytes += len(sent)
            self.wfile.write(sent)
        self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def hour_of(time: str) -> int:
    return int(np.datetime64(time, "h").astype(int))


def publish(server: Server, centre: Any, *times: str) -> OpenData:
    data = OpenData(centre, root=server.root, timeout=0.5, attempts=3, pause=0.01)
    for time in times:
        server.publish(data, hour_of(time))
    return data


def test_ifs_state_has_our_names_units_and_order(server: Server) -> None:
    data = publish(server, "ifs-open", "2024-06-03T00", TIME)
    names = ["t850", "z500", "q500", "t2m", "u10m", "msl", "tcwv", "z_surface", "lsm", "tp"]
    state = fetch_initial_state(TIME, names, data)
    assert state.dims == ("time", "channel", "latitude", "longitude")
    assert state["channel"].values.tolist() == names
    assert state["time"].values.tolist() == [np.datetime64(TIME, "ns").astype(int)]
    np.testing.assert_array_equal(state["longitude"], GRID.longitude)
    keys = [
        "t:pl:850",
        "gh:pl:500",
        "q:pl:500",
        "2t:sfc",
        "10u:sfc",
        "msl:sfc",
        "tcwv:sfc",
        "z:sfc",
        "lsm:sfc",
    ]
    for name, key in zip(names, keys, strict=False):
        scale = GRAVITY if key.startswith("gh") else 1.0
        np.testing.assert_allclose(
            state.sel(channel=name).values[0], field(key, hour_of(TIME)) * scale, rtol=1e-6, err_msg=name
        )
    # Rain up to the analysis is what the previous run, six hours before, forecast for these hours.
    rain = field("tp:sfc", hour_of("2024-06-03T00"))
    np.testing.assert_allclose(state.sel(channel="tp").values[0], rain, rtol=1e-5)
    assert state["units"].sel(channel="z500").item() == "m2 s-2"
    assert state.attrs["source"] == "ifs-open 2024-06-03T06"


def test_gfs_state_has_our_names_units_and_order(server: Server) -> None:
    data = publish(server, "gfs", "2024-06-03T00", TIME)
    keys = {
        "z500": "HGT:500 mb",
        "t500": "TMP:500 mb",
        "q500": "SPFH:500 mb",
        "v500": "VGRD:500 mb",
        "u10m": "UGRD:10 m above ground",
        "u100m": "UGRD:100 m above ground",
        "t2m": "TMP:2 m above ground",
        "sp": "PRES:surface",
        "msl": "PRMSL:mean sea level",
        "tcwv": "PWAT:entire atmosphere (considered as a single layer)",
        "lsm": "LAND:surface",
        "z_surface": "HGT:surface",
    }
    state = fetch_initial_state(TIME, [*keys, "tp"], data)
    for name, key in keys.items():
        scale = GRAVITY if key.startswith("HGT") else 1.0
        np.testing.assert_allclose(
            state.sel(channel=name).values[0], field(key, hour_of(TIME)) * scale, rtol=1e-6, err_msg=name
        )
    rain = field("APCP:surface", hour_of("2024-06-03T00")) * 1e-3  # kg m-2 of water are mm
    np.testing.assert_allclose(state.sel(channel="tp").values[0], rain, rtol=1e-5)


def test_only_the_messages_asked_for_travel(server: Server) -> None:
    data = publish(server, "gfs", TIME)
    url = data.file_url(hour_of(TIME), 0).removeprefix(server.root)
    data_bytes, index_bytes = len(server.files[url]), len(server.files[f"{url}.idx"])
    fetch_initial_state(TIME, ["t500"], data)
    assert server.requests == {url: 1, f"{url}.idx": 1}
    assert server.bytes - index_bytes == pytest.approx(data_bytes / len(GFS), rel=0.2)


def test_grids_and_healpix(server: Server) -> None:
    data = publish(server, "gfs", TIME)
    plain = fetch_initial_state(TIME, ["t500", "u500"], data)
    fine = Grid.regular(37, 72)
    assert fetch_initial_state(TIME, ["t500"], data, grid=fine).shape == (1, 1, 37, 72)
    coarse = Grid.regular(9, 16)
    mean = fetch_initial_state(TIME, ["t500", "u500"], data, grid=coarse, method="conservative")
    for state, grid in ((plain, GRID), (mean, coarse)):
        state.attrs["mean"] = state.values.astype(np.float64).mean(-1) @ grid.area_weights()
    np.testing.assert_allclose(mean.attrs["mean"], plain.attrs["mean"], rtol=1e-6)
    assert fetch_initial_state(TIME, ["t500"], data, grid=Healpix(4)).shape == (1, 1, 192)


def test_cache_is_used_without_a_server(server: Server, tmp_path: Path) -> None:
    data = publish(server, "ifs-open", "2024-06-03T00", TIME)
    first = fetch_initial_state(TIME, ["t850", "tp"], data, cache=tmp_path)
    before = server.requests.total()
    server.files.clear()
    again = fetch_initial_state(TIME, ["t850", "tp"], data, cache=tmp_path)
    xr.testing.assert_identical(again, first)
    assert server.requests.total() == before
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(SourceError, match="not published"):
        fetch_initial_state(TIME, ["t500"], data, cache=tmp_path)


def test_a_time_not_yet_published_names_the_newest(server: Server) -> None:
    data = publish(server, "ifs-open", "2024-06-02T12", "2024-06-02T18")
    with pytest.raises(
        SourceError, match=r"2024-06-03T06 is not published \(HTTP 404 .*newest that is: 2024-06-02T18"
    ):
        fetch_initial_state(TIME, ["t850"], data)
    empty = publish(server, "gfs")
    with pytest.raises(SourceError, match="nor any of the 12 runs before"):
        fetch_initial_state(TIME, ["t850"], empty)
    with pytest.raises(SourceError, match="00, 06, 12 and 18 UTC; got 2024-06-03T05"):
        fetch_initial_state("2024-06-03T05", ["t850"], data)


def test_channels_that_are_not_published(server: Server) -> None:
    data = publish(server, "ifs-open", TIME)
    with pytest.raises(SourceError, match=r"sst \(sea_surface_temperature\): looked for sst:sfc"):
        fetch_initial_state(TIME, ["t850", "sst"], data)
    with pytest.raises(SourceError, match=r"t925 \(temperature\): there are t:pl:500, t:pl:850"):
        fetch_initial_state(TIME, ["t925"], data)
    gfs = publish(server, "gfs", TIME)
    with pytest.raises(SourceError, match=r"sst \(sea_surface_temperature\): it has no such field"):
        fetch_initial_state(TIME, ["sst"], gfs)
    with pytest.raises(SourceError, match="6 h only"):
        fetch_initial_state(TIME, ["tp01"], data)
    state = fetch_initial_state(
        TIME, ["t850", "sst", "q850"], data, fill={"sst": 290.0}, derive={"q": "relative_humidity"}
    )
    assert (state.sel(channel="sst") == 290).all()
    assert state.attrs["filled"] == {"sst": "constant 290.0"}
    assert state.attrs["derived"] == {"q850": "specific humidity from r850 and t850"}
    assert 0 < state.sel(channel="q850").min() < 0.02


@pytest.mark.parametrize("fault", ["503", "429", "short", "drop", "hang", "garbage"])
def test_faults_are_retried_and_then_named(server: Server, fault: str) -> None:
    data = publish(server, "ifs-open", TIME)
    url = data.file_url(hour_of(TIME), 0).removeprefix(server.root)
    expected = fetch_initial_state(TIME, ["t850"], data)
    server.faults[url] = [fault, fault]
    xr.testing.assert_identical(fetch_initial_state(TIME, ["t850"], data), expected)
    server.faults[url] = [fault] * 3
    with pytest.raises(SourceError, match=rf"{url}: no answer after 3 attempts \(anonymous\); the last: \w"):
        fetch_initial_state(TIME, ["t850"], data)


def test_a_server_without_byte_ranges_or_answer(server: Server) -> None:
    data = publish(server, "ifs-open", TIME)
    server.faults[data.file_url(hour_of(TIME), 0).removeprefix(server.root)] = ["whole"]
    with pytest.raises(SourceError, match="does not serve byte ranges"):
        fetch_initial_state(TIME, ["t850"], data)
    server.faults[data.index_url(hour_of(TIME), 0).removeprefix(server.root)] = ["400"]
    with pytest.raises(SourceError, match="HTTP 400"):
        fetch_initial_state(TIME, ["t850"], data)
    dead = OpenData("gfs", root="http://127.0.0.1:9", attempts=2, pause=0.01, timeout=0.5)
    with pytest.raises(SourceError, match="no answer after 2 attempts"):
        fetch_initial_state(TIME, ["t850"], dead)


def test_addresses_are_those_of_the_archives() -> None:
    hour = hour_of("2024-06-03T06")
    ifs, gfs = OpenData("ifs-open"), OpenData("gfs")
    assert ifs.index_url(hour, 0) == (
        "https://storage.googleapis.com/ecmwf-open-data/20240603/06z/ifs/0p25/scda/"
        "20240603060000-0h-scda-fc.index"
    )
    assert "/00z/ifs/0p25/oper/20240603000000-6h-oper-fc.grib2" in ifs.file_url(hour - 6, 6)
    assert "/18z/ifs/0p25/oper/20260601180000-0h-oper-fc" in ifs.file_url(hour_of("2026-06-01T18"), 0)
    assert gfs.index_url(hour, 6) == (
        "https://noaa-gfs-bdp-pds.s3.amazonaws.com/gfs.20240603/06/atmos/gfs.t06z.pgrb2.0p25.f006.idx"
    )
    with pytest.raises(ValueError, match="centre must be one of"):
        OpenData("icon")  # type: ignore[arg-type]


def test_real_messages(server: Server, samples: Path) -> None:
    """Real ECMWF messages behind an index: values as eccodes decodes them."""
    data = OpenData("ifs-open", root=server.root, attempts=2, pause=0.01)
    body, index, expected = b"", [], {}
    with open(samples / "ifs_fc" / "ifs_pl_10deg_20240603-04_step0-6.grib", "rb") as file:
        while (message := eccodes.codes_grib_new_from_file(file)) is not None:
            get = partial(eccodes.codes_get, message)
            if (get("dataDate"), get("dataTime"), get("step")) == (20240603, 0, 0):
                part = eccodes.codes_get_message(message)
                where = {"param": get("shortName"), "levtype": "pl", "levelist": str(get("level"))}
                index.append(json.dumps({**where, "_offset": len(body), "_length": len(part)}))
                expected[get("shortName"), get("level")] = eccodes.codes_get_values(message).reshape(19, 36)
                body += part
            eccodes.codes_release(message)
    hour = hour_of("2024-06-03T00")
    server.files[data.file_url(hour, 0).removeprefix(server.root)] = body
    server.files[data.index_url(hour, 0).removeprefix(server.root)] = "\n".join(index).encode()
    names = [f"{v}{p}" for v in "ztuvr" for p in (850, 500)]
    state = fetch_initial_state("2024-06-03", names, data)
    for name in names:
        got = state.sel(channel=name).values[0]
        np.testing.assert_allclose(got, expected[name[0], int(name[1:])], rtol=1e-6)


def test_a_store_is_a_source_too(make_source: Any, tmp_path: Path) -> None:
    source = make_source(steps=3)
    convert(source, tmp_path / "s")
    store = Store(tmp_path / "s")
    state = fetch_initial_state("2001-01-01T06", ["msl", "z500"], store)
    np.testing.assert_array_equal(state.values, source.read(source.times[1:2], ["msl", "z500"]).values)
    moved = fetch_initial_state("2001-01-01T06", ["msl"], source, grid=Grid.regular(5, 8))
    assert moved.shape == (1, 1, 5, 8)
    with pytest.raises(ValueError, match="for operational centres"):
        fetch_initial_state("2001-01-01", ["msl"], store, fill={"msl": 1.0})


def test_the_command_fetches_an_analysis(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5netcdf")
    publish(server, "ifs-open", "2024-06-03T00", TIME)
    data = OpenData("ifs-open", root=server.root)  # as patient as the command
    names = ["t850", "sst", "q850", "tp"]
    options = ["--time", TIME, "--channels", ",".join(names), "--endpoint", server.root, "--json"]
    rules = ["--fill", "sst=290", "--derive", "q=relative_humidity"]
    out = tmp_path / "state.nc"
    assert main(["fetch-init", str(out), *options, *rules]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["sizes"] == {"time": 1, "channel": 4, "latitude": 19, "longitude": 36}
    expected = fetch_initial_state(TIME, names, data, fill={"sst": 290.0}, derive={"q": "relative_humidity"})
    with xr.open_dataset(out) as dataset:
        xr.testing.assert_equal(dataset["state"].drop_vars("units"), expected.drop_vars("units"))
        assert dataset["units"].values.tolist() == ["K", "K", "kg kg-1", "m"]
        assert dataset["latitude"].attrs["units"] == "degrees_north"
        assert json.loads(dataset["state"].attrs["filled"]) == {"sst": "constant 290.0"}

    def fails(code: int, *words: str) -> str:
        assert main(["fetch-init", *words]) == code
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 2
        return error

    before = server.requests.total()
    assert "state.nc exists" in fails(1, str(out), *options, *rules)
    assert "--member, --era5t would be ignored" in fails(
        2, str(tmp_path / "b.nc"), *options, "--member", "3", "--era5t"
    )
    assert server.requests.total() == before
    assert "does not publish 1 of the channels" in fails(1, str(tmp_path / "b.nc"), *options, *rules[2:])
    assert "is not published" in fails(1, str(tmp_path / "b.nc"), *options, "--time", "2024-06-04T00")
    monkeypatch.setattr("wx_data._opendata.clock.sleep", lambda _: None)
    dead = ["--endpoint", "http://127.0.0.1:9"]
    assert "no answer after 5 attempts (anonymous)" in fails(3, str(tmp_path / "b.nc"), *options, *dead)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.nc"]
    small = ["--time", TIME, "--channels", "t850", "--endpoint", server.root, "--no-progress"]
    assert (
        main(["fetch-init", str(tmp_path / "c.nc"), *small, "--grid", "9x16", "--method", "conservative"])
        == 0
    )
    assert "c.nc: 2024-06-03T06, 1 channels" in capsys.readouterr().out
    with xr.open_dataset(tmp_path / "c.nc") as dataset:
        assert dataset["state"].shape == (1, 1, 9, 16)
