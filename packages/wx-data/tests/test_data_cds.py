"""The Climate Data Store: what is asked, and a loopback server that speaks its API to the official client."""

import json
import os
import signal
import subprocess
import sys
import threading
import time as clock
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_data import Grid, SourceError, Store, channel, convert
from wx_data import _cds as module
from wx_data._cds import CDS, fetch_cds, plan_requests

GRID = Grid.regular(7, 12)
NETCDF_NAMES = {"total_precipitation": "tp", "mean_sea_level_pressure": "msl", "2m_temperature": "t2m"}
NETCDF_NAMES |= {"10m_u_component_of_wind": "u10", "geopotential": "z", "temperature": "t"}
NETCDF_NAMES |= {"land_sea_mask": "lsm"}
PERIOD = ("2020-01-31", "2020-02-01T12")
NAMES = ("z500", "t500", "tp", "t2m", "msl", "u10m", "t850", "z850")


def hour_of(time: str) -> int:
    return int(np.datetime64(time, "h").astype(int))


def field(variable: str, level: int, hour: int) -> np.ndarray:
    base = {"z": 5e4, "t": 260.0, "tp": 1e-3, "t2m": 280.0, "msl": 1e5, "u10": 5.0, "lsm": 0.5}[variable]
    pattern = np.add.outer(np.arange(7.0), np.arange(12.0)) / 100 + (hour % 50) / 1000 + level / 1e5
    return np.asarray(base * (1 + pattern / 10), dtype=np.float32)


def netcdf(inputs: dict[str, Any], path: Path) -> bytes:
    """The product of the request, laid out as the store's own conversion to NetCDF does."""
    stamps = product(inputs["year"], inputs["month"], inputs["day"], inputs["time"])
    times = np.array([f"{y}-{m}-{d}T{t}" for y, m, d, t in stamps], dtype="datetime64[ns]")
    hours = times.astype("datetime64[h]").astype(int)
    levels = sorted((int(level) for level in inputs.get("pressure_level", [])), reverse=True)
    dims = ("valid_time", *(["pressure_level"] if levels else []), "latitude", "longitude")
    expver = np.where(hours >= hour_of("2020-01-31T21"), "0005", "0001")
    coords: dict[str, Any] = {
        "valid_time": times,
        "number": 0,
        "expver": ("valid_time", expver),
    }
    coords |= {"latitude": GRID.latitude, "longitude": GRID.longitude}
    if levels:
        coords["pressure_level"] = ("pressure_level", np.array(levels, float), {"units": "hPa"})
    dataset = xr.Dataset(coords=coords)
    for name in inputs["variable"]:
        short = NETCDF_NAMES[name]
        values = np.stack([[field(short, level, hour) for level in levels or [0]] for hour in hours])
        units = {"z": "m**2 s**-2", "tp": "m", "msl": "Pa", "u10": "m s**-1", "lsm": "(0 - 1)"}.get(
            short, "K"
        )
        dataset[short] = (
            dims,
            values if levels else values[:, 0],
            {"units": units, "standard_name": "unknown"},
        )
    dataset.to_netcdf(path, engine="h5netcdf")
    return path.read_bytes()


class FakeStore:
    """Processes, jobs and results of the API, version 1, as the official client asks for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: dict[str, dict[str, Any]] = {}
        self.calls: Counter[str] = Counter()
        self.submitted: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.polls = 2  # looks at a job before it is done
        self.faults: list[str] = []  # of downloads
        self.busy = 0  # answers 503 before a submission is taken
        self.fail = ""
        self.hold = False
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of clients that hang up early
        self._server = server
        self.url = f"http://127.0.0.1:{server.server_address[1]}/api"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def submit(self, dataset: str, inputs: dict[str, Any]) -> dict[str, Any]:
        identifier = f"job-{len(self.submitted):03}"
        self.submitted.append({"dataset": dataset, **inputs})
        content = b"" if self.fail else netcdf(inputs, self.folder / f"{identifier}.nc")
        self.jobs[identifier] = {"looks": 0, "content": content, "dataset": dataset}
        return self.status(identifier)

    def status(self, identifier: str) -> dict[str, Any]:
        job = self.jobs[identifier]
        state = "accepted" if job["looks"] == 0 else "running"
        if job["looks"] >= self.polls and not self.hold:
            state = "failed" if self.fail else "successful"
        here = f"{self.url}/retrieve/v1/jobs/{identifier}"
        links = [{"rel": "monitor", "href": here}, {"rel": "self", "href": here}]
        if state in ("successful", "failed"):
            links.append({"rel": "results", "href": f"{here}/results"})
        return {"jobID": identifier, "processID": job["dataset"], "status": state, "links": links}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, owner: FakeStore, *args: Any) -> None:
        self.owner = owner
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        owner = self.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if owner.busy:
            owner.busy -= 1
            self._json({"title": "busy"}, 503)
            return
        owner.keys.add(self.headers.get("PRIVATE-TOKEN", ""))
        dataset = self.path.split("/processes/")[1].removesuffix("/execution")
        self._json(owner.submit(dataset, body["inputs"]), 201)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        owner, path = self.owner, self.path.split("?")[0]
        owner.calls[path.split("/v1/")[-1].split("/")[0]] += 1
        if path.endswith("/messages"):
            self._json({"messages": []})
        elif "/processes/" in path:
            self._json({"id": path.rpartition("/")[2], "links": []})
        elif "/files/" in path:
            self._file(owner.jobs[path.rpartition("/")[2].removesuffix(".nc")]["content"])
        else:
            identifier = path.split("/jobs/")[1].split("/")[0]
            if identifier not in owner.jobs:
                self._json({"title": "job not found"}, 404)
            elif path.endswith("/results"):
                self._results(identifier)
            else:
                answer = owner.status(identifier)
                owner.jobs[identifier]["looks"] += 1
                self._json(answer)

    def _results(self, identifier: str) -> None:
        owner = self.owner
        if owner.fail:
            self._json({"title": "The job failed", "traceback": owner.fail}, 400)
            return
        value = {"href": f"{owner.url}/files/{identifier}.nc", "type": "application/netcdf"}
        value["file:size"] = len(owner.jobs[identifier]["content"])  # type: ignore[assignment]
        self._json({"asset": {"value": value}})

    def _file(self, body: bytes) -> None:
        fault = self.owner.faults.pop(0) if self.owner.faults and self.command == "GET" else ""
        if fault == "garbage":
            body = body[: len(body) // 2] + bytes(len(body) - len(body) // 2)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if fault == "short" else body)
        self.close_connection = True

    def _json(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStore]:
    pytest.importorskip("ecmwf.datastores")
    monkeypatch.setattr(module, "_POLL_SECONDS", (0.01, 0.05))
    folder = tmp_path / "server"
    folder.mkdir()
    running = FakeStore(folder)
    yield running
    running.close()


def access(store: FakeStore) -> CDS:
    return CDS(url=store.url, key="secret", attempts=3, pause=0.01, timeout=5)


def test_requests_are_grouped_by_month_and_data_set() -> None:
    requests = plan_requests(NAMES, PERIOD)
    asked = {(r.dataset, tuple(r.inputs["variable"]), r.inputs["month"][0]): r for r in requests}
    upper, single = "reanalysis-era5-pressure-levels", "reanalysis-era5-single-levels"
    instant = ("10m_u_component_of_wind", "2m_temperature", "mean_sea_level_pressure")
    january = asked[upper, ("geopotential", "temperature"), "01"].inputs
    assert january["pressure_level"] == ["500", "850"]
    assert january["day"] == ["31"]
    assert january["time"] == ["00:00", "06:00", "12:00", "18:00"]
    assert january["product_type"] == ["reanalysis"]
    assert (january["data_format"], january["download_format"]) == ("netcdf", "unarchived")
    assert asked[upper, ("geopotential", "temperature"), "02"].inputs["time"] == ["00:00", "06:00", "12:00"]
    assert asked[single, instant, "01"].channels == ("t2m", "msl", "u10m")
    # The sum that ends at 00 UTC on the 31st begins at 19 UTC on the 30th.
    rain = asked[single, ("total_precipitation",), "01"].inputs
    assert rain["day"] == ["30", "31"]
    assert rain["time"] == [f"{hour:02}:00" for hour in range(24)]
    assert len(requests) == 6


def test_a_request_holds_exactly_what_is_asked() -> None:
    """The product of days and hours, and of variables and levels, never asks for more."""
    names = ("z500", "t850", "t500", "q700", "t2m")
    period = ("2020-01-15T06", "2020-03-02T12")
    wanted = set(product(names, range(hour_of("2020-01-15T06"), hour_of("2020-03-02T12") + 1, 6)))
    found = []
    for request in plan_requests(names, period):
        stamps = product(*(request.inputs[key] for key in ("year", "month", "day", "time")))
        hours = [hour_of(f"{y}-{m}-{d}T{t[:2]}") for y, m, d, t in stamps]
        assert sorted(hours) == sorted(request.hours)
        levels = request.inputs.get("pressure_level", [""])
        for variable, level in product(request.inputs["variable"], levels):
            (name,) = [
                n for n in request.channels
                if channel(n).cds_name == variable and str(channel(n).level or "") == level
            ]  # fmt: skip
            found += [(name, hour) for hour in hours]
    assert len(found) == len(set(found))
    assert set(found) == wanted


def test_arguments_that_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="divide 24"):
        plan_requests(["t2m"], PERIOD, step=5)
    with pytest.raises(ValueError, match="no time at a step"):
        plan_requests(["t2m"], ("2020-01-01T01", "2020-01-01T05"))
    request = plan_requests(["t2m"], PERIOD, area=(60, -10, 30, 20), spacing=1.0)[0]
    assert request.inputs["area"] == [60, -10, 30, 20]
    assert request.inputs["grid"] == [1.0, 1.0]
    assert request.name != plan_requests(["t2m"], PERIOD)[0].name


def test_files_become_a_source_and_a_store(
    store: FakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = fetch_cds(tmp_path / "era5", NAMES, PERIOD, cds=access(store))
    assert source.channels == NAMES
    hours = np.arange(hour_of("2020-01-31"), hour_of("2020-02-01T13"), 6)
    np.testing.assert_array_equal(source.times.astype("datetime64[h]").astype(int), hours)
    got = source.read(source.times, NAMES)
    for time, hour in enumerate(hours):
        for name in NAMES:
            spec = channel(name)
            short = {"t2m": "t2m", "msl": "msl", "u10m": "u10"}.get(name, spec.variable)
            expected = field(short, spec.level or 0, hour).astype(np.float64)
            if name == "tp":
                expected = sum(field("tp", 0, hour - back).astype(np.float64) for back in range(6))
            np.testing.assert_allclose(got.values[time, NAMES.index(name)], expected, rtol=1e-6, err_msg=name)
    # From 21 UTC of the 31st the data are provisional: so is the sum that ends at 00 UTC.
    assert got["expver"].values.tolist() == ["0001"] * 4 + ["0005"] * 3
    rain = source.read(source.times, ["tp"])
    assert rain["expver"].values.tolist() == ["0001"] * 4 + ["0005"] * 3
    assert store.keys == {"secret"}
    assert len(store.submitted) == 7
    height = field("z", 0, hour_of("2000-01-01"))
    np.testing.assert_array_equal(source.statics["z_surface"], height)
    log = capsys.readouterr().err
    assert "is queued" in log
    assert ": running" in log
    assert "complete (7 of 7)" in log
    convert(source, tmp_path / "train.zarr", implausible="keep")
    np.testing.assert_array_equal(Store(tmp_path / "train.zarr").read(source.times).values, got.values)
    fetch_cds(tmp_path / "era5", NAMES, PERIOD, cds=access(store))
    assert len(store.submitted) == 7
    assert sorted(p.suffix for p in (tmp_path / "era5").iterdir()) == [".nc"] * 7


CHILD = """
import sys
from wx_data import _cds
_cds._POLL_SECONDS = (0.01, 0.05)
_cds.fetch_cds(sys.argv[1], ("t500", "t2m"), ("2020-01-31", "2020-02-01T12"),
               cds=_cds.CDS(url=sys.argv[2], key="k", queued=2), statics=False)
"""


def test_a_killed_download_takes_its_requests_up_again(store: FakeStore, tmp_path: Path) -> None:
    store.hold = True
    command: Sequence[str] = (sys.executable, "-c", CHILD, str(tmp_path / "era5"), store.url)
    child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = clock.monotonic() + 60
    notes: list[Path] = []
    while len(notes) < 2 and child.poll() is None and clock.monotonic() < deadline:
        notes = list((tmp_path / "era5").glob("*.request.json"))
        clock.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(store.submitted) == len(notes) == 2
    store.hold = False
    source = fetch_cds(
        tmp_path / "era5", ("t500", "t2m"), PERIOD, cds=access(store), progress=False, statics=False
    )
    assert len(store.submitted) == 4
    assert len(source.times) == 7
    assert not list((tmp_path / "era5").glob("*.request.json"))


def test_a_request_that_the_store_forgot_is_made_again(store: FakeStore, tmp_path: Path) -> None:
    (request,) = plan_requests(["t2m"], ("2020-01-31", "2020-01-31"))
    note = tmp_path / "era5" / request.name.replace(".nc", ".request.json")
    note.parent.mkdir()
    note.write_text('{"request_id": "job-gone"}')
    fetch_cds(
        tmp_path / "era5",
        ["t2m"],
        ("2020-01-31", "2020-01-31"),
        cds=access(store),
        progress=False,
        statics=False,
    )
    assert len(store.submitted) == 1
    assert not note.exists()


@pytest.mark.parametrize("fault", ["short", "garbage"])
def test_damaged_files_are_fetched_again(store: FakeStore, tmp_path: Path, fault: str) -> None:
    day = ("2020-01-31", "2020-01-31")
    store.faults = [fault]
    source = fetch_cds(tmp_path / "a", ["t2m"], day, cds=access(store), progress=False, statics=False)
    np.testing.assert_array_equal(
        source.read(source.times[:1], ["t2m"]).values[0, 0], field("t2m", 0, hour_of("2020-01-31"))
    )
    assert len(store.submitted) == 1
    store.faults = [fault] * 100
    with pytest.raises(SourceError, match=r"era5-sl-2020-01-\w+\.nc"):
        fetch_cds(tmp_path / "b", ["t2m"], day, cds=access(store), progress=False, statics=False)
    assert not list((tmp_path / "b").glob("*.nc"))
    assert not list((tmp_path / "b").glob(".*"))


def test_a_refused_request_shows_the_reason(store: FakeStore, tmp_path: Path) -> None:
    store.fail = "cost limits exceeded"
    with pytest.raises(SourceError, match=r"refused request job-000: .*(?s:.)*cost limits exceeded"):
        fetch_cds(tmp_path / "era5", ["t2m"], PERIOD, cds=access(store), progress=False, statics=False)
    store.fail = ""
    fetch_cds(tmp_path / "era5", ["t2m"], PERIOD, cds=access(store), progress=False, statics=False)


def test_a_busy_store_is_asked_again(store: FakeStore, tmp_path: Path) -> None:
    store.busy = 1
    fetch_cds(
        tmp_path / "era5",
        ["t2m"],
        ("2020-01-31", "2020-01-31"),
        cds=access(store),
        progress=False,
        statics=False,
    )
    assert len(store.submitted) == 1


def test_a_store_that_does_not_answer(tmp_path: Path) -> None:
    pytest.importorskip("ecmwf.datastores")
    dead = CDS(url="http://127.0.0.1:9/api", key="k", attempts=2, pause=0.01, timeout=0.5)
    with (
        pytest.warns(UserWarning, match="127.0.0.1"),
        pytest.raises(SourceError, match=r"http://127.0.0.1:9/api: no answer after 2 attempts \(key given\)"),
    ):
        fetch_cds(tmp_path, ["t2m"], PERIOD, cds=dead, progress=False)


def test_key_and_client_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ecmwf.datastores")
    monkeypatch.setenv("CDSAPI_RC", str(tmp_path / "none"))
    monkeypatch.delenv("CDSAPI_KEY", raising=False)
    with pytest.raises(SourceError, match="CDSAPI_KEY"):
        fetch_cds(tmp_path, ["t2m"], PERIOD, progress=False, statics=False)
    monkeypatch.setitem(sys.modules, "ecmwf.datastores", None)
    with pytest.raises(ImportError, match=r"wx-data\[cds\]"):
        fetch_cds(tmp_path, ["t2m"], PERIOD, cds=CDS(key="k"), progress=False, statics=False)


def test_the_configuration_file_of_cdsapi_is_read(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rc").write_text(f"url: {store.url}\nkey: from-file\n")
    monkeypatch.setenv("CDSAPI_RC", str(tmp_path / "rc"))
    monkeypatch.delenv("CDSAPI_KEY", raising=False)
    monkeypatch.delenv("CDSAPI_URL", raising=False)
    fetch_cds(tmp_path / "era5", ["lsm", "t2m"], ("2020-01-31", "2020-01-31"), progress=False)
    assert store.keys == {"from-file"}
