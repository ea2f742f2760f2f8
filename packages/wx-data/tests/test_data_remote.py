"""Remote stores: a real S3 server on loopback, a proxy that misbehaves, and the stores' published layouts."""

import http.client
import multiprocessing
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from wx_data import SourceError, convert, open_source
from wx_data._cache import ObjectCache
from wx_data._remote import Remote, Traffic, TrafficCounter

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")
pytest.importorskip("obstore")

LEVELS = [1, 500, 850, 925, 1000]
LATITUDE, LONGITUDE = np.linspace(90, -90, 7), np.arange(12) * 30.0
FAST = {"timeout": 2.0, "connect_timeout": 2.0, "max_wait": 0.05}
QUICK = 30.0  # seconds within which any failure must be told


def arco(first: str = "2000-01-01", days: int = 12) -> xr.Dataset:
    """ARCO-ERA5 in small: an hourly index, data only where the attributes say, all levels in a chunk."""
    times = np.datetime64(first, "ns") + np.arange(24 * days) * np.timedelta64(1, "h")
    dataset = xr.Dataset(
        coords={"time": times, "level": LEVELS, "latitude": LATITUDE, "longitude": LONGITUDE},
        attrs={
            "valid_time_start": "2000-01-03",
            "valid_time_stop": "2000-01-06",
            "valid_time_stop_era5t": "2000-01-08",
            "last_updated": "2000-01-10 01:14:45",
        },
    )
    rng = np.random.default_rng(0)
    shape = (len(times), len(LEVELS), 7, 12)
    dims = ("time", "level", "latitude", "longitude")
    for name, units, low, high in (
        ("geopotential", "m**2 s**-2", 1e3, 6e4),
        ("temperature", "K", 220.0, 300.0),
        ("specific_humidity", "kg kg**-1", 0.0, 0.01),
    ):
        dataset[name] = (dims, rng.uniform(low, high, shape).astype("f4"), {"units": units})
    dataset["2m_temperature"] = (
        ("time", "latitude", "longitude"),
        rng.uniform(230, 310, (len(times), 7, 12)).astype("f4"),
        {"units": "K"},
    )
    mask = rng.uniform(0, 1, (7, 12)).astype("f4")
    dataset["land_sea_mask"] = (dims[2:], mask, {"units": "(0 - 1)"})
    dataset["geopotential_at_surface"] = (dims[2:], 1e4 * mask, {"units": "m**2 s**-2"})
    for name in dataset.data_vars:
        lengths = tuple(1 if dim == "time" else n for dim, n in dataset[name].sizes.items())
        dataset[name].encoding = {"chunks": lengths}
    dataset["time"].encoding = {"units": "hours since 1900-01-01", "dtype": "int64"}
    return dataset


def write(dataset: xr.Dataset, path: Path, **options: Any) -> Path:
    dataset.to_zarr(path, **{"zarr_format": 2, "consolidated": True, **options})
    return path


def without_missing(path: Path, valid: slice) -> None:
    """Delete the chunk files of the times outside `valid`, as nobody wrote them."""
    for folder in path.iterdir():
        for chunk in folder.glob("[0-9]*"):
            parts = chunk.name.split(".")
            if len(parts) > 2 and folder.name not in ("land_sea_mask", "geopotential_at_surface"):
                number = int(parts[0])
                if not valid.start <= number < valid.stop:
                    chunk.unlink()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """moto's S3 server in a process of its own."""

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-c", "from moto.server import main; import sys; main(sys.argv[1:])"]
        self._process = subprocess.Popen(
            [*command, "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="user",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)

    def upload(self, folder: Path, bucket: str, *, public: bool = True) -> None:
        self.client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                acl = {"ACL": "public-read"} if public else {}
                key = f"{folder.name}/{path.relative_to(folder)}"
                self.client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes(), **acl)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Proxy:
    """Forwards to a server; `fault(path, attempt)` says what goes wrong instead: a status, "cut" before the
    answer, "truncate" in its body, "short" (a whole answer of too few bytes), or "stall" in its body."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.fault: Callable[[str, int], str | int | None] = lambda _path, _attempt: None
        self.seen: list[tuple[str, str]] = []
        self.sent = 0
        self.signed: set[bool] = set()
        self._attempts: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of clients that hang up early
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        self.fault = lambda _path, _attempt: None
        self.seen, self.sent, self.signed, self._attempts = [], 0, set(), {}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def keys(self, part: str = "") -> list[str]:
        return [path for _, path in self.seen if part in path]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                proxy.seen.append((self.command, self.path))
                proxy.signed.add("Authorization" in self.headers)
                attempt = proxy._attempts[self.path] = proxy._attempts.get(self.path, 0) + 1
                fault = proxy.fault(self.path, attempt)
                if isinstance(fault, int):
                    return self._answer(fault, {}, b"<Error><Code>Injected</Code></Error>", None)
                if fault == "cut":
                    return self._break()
                upstream = http.client.HTTPConnection(proxy.upstream, timeout=20)
                upstream.request(self.command, self.path, headers=dict(self.headers))
                answer = upstream.getresponse()
                body = answer.read()
                upstream.close()
                return self._answer(answer.status, dict(answer.getheaders()), body, fault)

            do_HEAD = do_GET

            def _break(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: str | None) -> None:
                if fault == "short":
                    body = body[: len(body) // 2]
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                half = body[: len(body) // 2] if fault in ("truncate", "stall") else body
                self.wfile.write(half)
                proxy.sent += len(half) if status < 300 else 0
                if fault == "truncate":
                    self._break()
                elif fault == "stall":
                    time.sleep(4)
                    self._break()

        return Handler


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    return arco()


@pytest.fixture(scope="module")
def bucket(server: Server, truth: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One day and a bit of ARCO in a public bucket and in a private one."""
    folder = write(truth, tmp_path_factory.mktemp("arco") / "full_37-1h.zarr-v3")
    without_missing(folder, slice(24 * 5, 24 * 6 + 2))
    server.upload(folder, "public")
    server.upload(folder, "private", public=False)
    return "public/full_37-1h.zarr-v3"


@pytest.fixture
def proxy(server: Server, bucket: str) -> Iterator[Proxy]:  # noqa: ARG001
    proxy = Proxy(server.url)
    yield proxy
    proxy.stop()


def reach(proxy: Proxy, **changes: Any) -> Remote:
    return Remote(**{"endpoint": proxy.url, "region": "us-east-1", **FAST, **changes})


TIMES = np.datetime64("2000-01-06T00", "ns") + np.arange(24) * np.timedelta64(1, "h")
NAMES = ("z500", "t850", "t2m", "q925")


def expected(truth: xr.Dataset, times: Any, names: tuple[str, ...] = NAMES) -> np.ndarray:
    long = {"z": "geopotential", "t": "temperature", "q": "specific_humidity"}
    fields = [
        truth["2m_temperature"].sel(time=times)
        if name == "t2m"
        else truth[long[name[0]]].sel(time=times, level=int(name[1:]))
        for name in names
    ]
    return np.stack([field.values for field in fields], axis=1)


def test_anonymous_read_counts_its_requests(proxy: Proxy, bucket: str, truth: xr.Dataset) -> None:
    source = open_source(f"s3://{bucket}", "arco", channels=NAMES, remote=reach(proxy))
    assert proxy.signed == {False}
    opening = source.traffic
    # zarr.json (absent), .zmetadata, .zattrs or .zgroup at most, and one chunk per coordinate
    assert opening.requests == len(proxy.seen) <= 2 + 4 + 2
    assert opening.bytes == proxy.sent
    got = source.read(TIMES[:3])
    np.testing.assert_array_equal(got.values, expected(truth, TIMES[:3]))
    # One request per variable and step, all levels in one chunk
    assert source.traffic.requests - opening.requests == 3 * 4 == len(proxy.seen) - opening.requests
    assert source.traffic.bytes == proxy.sent
    assert source.traffic.retries == 0
    assert set(source.statics) == {"z_surface", "lsm"}


def test_requests_are_in_flight_together(proxy: Proxy, bucket: str) -> None:
    source = open_source(f"s3://{bucket}", channels=NAMES, remote=reach(proxy))
    running, most, lock = 0, 0, threading.Lock()

    def slow(_path: str, _attempt: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.2)
        with lock:
            running -= 1

    proxy.fault = slow
    started = time.monotonic()
    source.read(TIMES[:1])
    assert most == 4
    assert time.monotonic() - started < 0.75  # one after another would be 0.8


def test_signed_read_of_a_private_bucket(
    proxy: Proxy, bucket: str, truth: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://" + bucket.replace("public", "private")
    with pytest.raises(
        SourceError, match=r"private/.*failed after 1 attempt \(anonymous access\): last status 403"
    ):
        open_source(url, remote=reach(proxy))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    proxy.reset()
    source = open_source(url, channels=NAMES, remote=reach(proxy, anonymous=False))
    np.testing.assert_array_equal(source.read(TIMES[:1]).values, expected(truth, TIMES[:1]))
    assert proxy.signed == {True}


@pytest.mark.parametrize("fault", [503, 429, 500, 408, "cut", "truncate"])
def test_what_passes_is_retried(proxy: Proxy, bucket: str, truth: xr.Dataset, fault: str | int) -> None:
    proxy.fault = lambda _path, attempt: fault if attempt <= 2 else None
    source = open_source(f"s3://{bucket}", channels=NAMES, remote=reach(proxy))
    np.testing.assert_array_equal(source.read(TIMES[:2]).values, expected(truth, TIMES[:2]))
    asked = len(set(proxy.keys()))
    assert source.traffic.requests == len(proxy.seen) == 3 * asked
    assert source.traffic.retries == 2 * asked


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (503, "last status 503"),
        (429, "last status 429"),
        ("cut", "the connection broke off before an answer came"),
        ("truncate", "the connection broke off before the body was complete"),
    ],
)
def test_what_does_not_pass_is_one_clear_error(
    proxy: Proxy, bucket: str, fault: str | int, reason: str
) -> None:
    source = open_source(f"s3://{bucket}", channels=["t850"], remote=reach(proxy, retries=2))
    proxy.fault = lambda _path, _attempt: fault
    with pytest.raises(SourceError, match=reason) as caught:
        source.read(TIMES[:1])
    message = str(caught.value)
    assert f"s3://{bucket}/temperature/120.0.0.0" in message
    assert "failed after 3 attempts (anonymous access)" in message
    assert "(variable 'temperature' at 2000-01-06T00)" in message
    assert "Debug source" not in message
    assert len(proxy.keys("temperature/120")) == 3


def test_a_stalled_body_times_out(proxy: Proxy, bucket: str, truth: xr.Dataset) -> None:
    remote = reach(proxy, timeout=0.5, retries=1)
    source = open_source(f"s3://{bucket}", channels=["t850"], remote=remote)
    proxy.fault = lambda _path, attempt: "stall" if attempt == 1 else None
    started = time.monotonic()
    got = source.read(TIMES[:1]).values
    np.testing.assert_array_equal(got, expected(truth, TIMES[:1], ("t850",)))
    assert 0.5 <= time.monotonic() - started < 3
    proxy.reset()
    proxy.fault = lambda _path, _attempt: "stall"
    with pytest.raises(SourceError, match=r"failed after 2 attempts.*no byte came for 0\.5 s"):
        source.read(TIMES[1:2])


def test_a_slow_but_steady_body_is_not_cut_off(proxy: Proxy, bucket: str, truth: xr.Dataset) -> None:
    """The time-out is for silence: delays below it add up without harm."""
    source = open_source(f"s3://{bucket}", channels=["t850"], remote=reach(proxy, timeout=0.6))
    proxy.fault = lambda _path, _attempt: time.sleep(0.4)
    np.testing.assert_array_equal(source.read(TIMES[:4]).values, expected(truth, TIMES[:4], ("t850",)))
    assert source.traffic.retries == 0


def test_an_object_that_is_too_short_is_refused(proxy: Proxy, bucket: str) -> None:
    """A complete answer with half an object, as after an interrupted upload: the lengths of HTTP agree, and
    Blosc would decode what lies behind the buffer's end."""
    source = open_source(f"s3://{bucket}", channels=["t850"], remote=reach(proxy))
    proxy.fault = lambda path, _attempt: "short" if "temperature" in path else None
    with pytest.raises(
        SourceError, match=r"temperature/120\.0\.0\.0 has (\d+) bytes, (?!\1)\d+ expected; it is truncated"
    ):
        source.read(TIMES[:1])


def test_wrong_bucket_path_and_port(proxy: Proxy, bucket: str) -> None:
    with pytest.raises(SourceError, match=r"s3://nowhere/x: no such bucket \(anonymous\)"):
        open_source("s3://nowhere/x", remote=reach(proxy))
    with pytest.raises(SourceError, match=r"public/x is not a Zarr store: no zarr\.json, \.zmetadata"):
        open_source("s3://public/x", remote=reach(proxy))
    with pytest.raises(SourceError, match=r"found \['.*zarr-v3'\]"):
        open_source("s3://public", remote=reach(proxy))
    dead = Remote(endpoint=f"http://127.0.0.1:{free_port()}", region="us-east-1", retries=2, max_wait=0.05)
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"failed after 3 attempts \(anonymous access\): no connection"):
        open_source(f"s3://{bucket}", remote=dead)
    assert time.monotonic() - started < QUICK
    with pytest.raises(ValueError, match="URLs begin with one of s3, gs"):
        open_source("ftp://host/x")


def test_a_missing_chunk_is_an_error_and_not_a_number(proxy: Proxy, bucket: str) -> None:
    """Trap: Zarr reads an absent chunk as fill values."""
    source = open_source(f"s3://{bucket}", channels=["t850"], remote=reach(proxy))
    when = np.datetime64("2000-01-04T05", "ns")
    with pytest.raises(
        SourceError, match=r"chunk temperature/77\.0\.0\.0 is missing.*'temperature' at 2000-01-04T05"
    ):
        source.read(when)
    filled = open_source(f"s3://{bucket}", channels=["t850"], remote=reach(proxy), missing_chunks="fill")
    assert np.isnan(filled.read(when).values).all()


def test_absent_metadata_behind_403(proxy: Proxy, bucket: str, truth: xr.Dataset) -> None:
    """S3 answers 403, not 404, for an absent object where the reader may not list."""
    proxy.fault = lambda path, _attempt: 403 if path.endswith(("zarr.json", ".zattrs")) else None
    source = open_source(f"s3://{bucket}", channels=["t850"], remote=reach(proxy))
    np.testing.assert_array_equal(source.read(TIMES[:1]).values, expected(truth, TIMES[:1], ("t850",)))
    proxy.fault = lambda _path, _attempt: 403
    with pytest.raises(SourceError, match=r"last status 403\. The data are not public"):
        source.read(TIMES[1:2])


def test_the_cache_serves_the_second_pass(
    proxy: Proxy, bucket: str, truth: xr.Dataset, tmp_path: Path
) -> None:
    remote = reach(proxy, cache=tmp_path / "cache", cache_bytes=10 << 20)
    first = open_source(f"s3://{bucket}", channels=NAMES, remote=remote)
    want = expected(truth, TIMES[:3])
    np.testing.assert_array_equal(first.read(TIMES[:3]).values, want)
    assert first.traffic.hits == 0
    moved = first.traffic
    np.testing.assert_array_equal(first.read(TIMES[:3]).values, want)
    assert (first.traffic.requests, first.traffic.bytes, first.traffic.hits) == (
        moved.requests,
        moved.bytes,
        12,
    )
    assert proxy.sent == moved.bytes
    proxy.reset()
    second = open_source(f"s3://{bucket}", channels=NAMES, remote=remote)
    np.testing.assert_array_equal(second.read(TIMES[:3]).values, want)
    assert second.traffic.hits == 12
    # Metadata and coordinates grow in place, so they are always asked for again
    assert proxy.keys("/latitude/0")
    assert not proxy.keys("geopotential/") + proxy.keys("temperature/")
    sent = pickle.loads(pickle.dumps(second))
    np.testing.assert_array_equal(sent.read(TIMES[:3]).values, want)
    assert sent.traffic.hits == 24


def test_a_damaged_cache_file_is_fetched_again(
    proxy: Proxy, bucket: str, truth: xr.Dataset, tmp_path: Path
) -> None:
    remote = reach(proxy, cache=tmp_path / "cache")
    open_source(f"s3://{bucket}", channels=NAMES, remote=remote).read(TIMES[:2])
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "usage"]
    assert len(files) == 8
    data = files[0].read_bytes()
    files[0].write_bytes(data[:-7])  # cut short
    flipped = bytearray(files[1].read_bytes())
    flipped[-5] ^= 1
    files[1].write_bytes(bytes(flipped))
    files[2].write_bytes(b"")
    again = open_source(f"s3://{bucket}", channels=NAMES, remote=remote)
    opening = again.traffic.requests
    np.testing.assert_array_equal(again.read(TIMES[:2]).values, expected(truth, TIMES[:2]))
    assert again.traffic.hits == 5
    assert again.traffic.requests - opening == 3
    assert files[0].read_bytes() == data


def test_revalidation_notices_a_replaced_object(
    server: Server, proxy: Proxy, truth: xr.Dataset, tmp_path: Path
) -> None:
    """Trap: ERA5T is replaced in place by final ERA5."""
    folder = write(truth.isel(time=slice(120, 124)), tmp_path / "arco")
    server.upload(folder, "replaced")
    for name, value in (("trusting", False), ("careful", True)):
        remote = reach(proxy, cache=tmp_path / name, revalidate=value)
        source = open_source("s3://replaced/arco", channels=["t850"], remote=remote)
        before = source.read(TIMES[:2]).values
        key = "arco/temperature/0.0.0.0"
        old = (folder / "temperature" / "0.0.0.0").read_bytes()
        new = (folder / "temperature" / "3.0.0.0").read_bytes()
        server.client.put_object(Bucket="replaced", Key=key, Body=new, ACL="public-read")
        bodies = source.traffic.bytes
        after = source.read(TIMES[:2]).values
        np.testing.assert_array_equal(after[1], before[1])
        if value:
            np.testing.assert_array_equal(after[0], expected(truth, TIMES[3:4], ("t850",))[0])
            assert source.traffic.bytes - bodies == len(new)  # the unchanged one was not sent again
            assert source.traffic.hits == 1
        else:
            np.testing.assert_array_equal(after, before)
        server.client.put_object(Bucket="replaced", Key=key, Body=old, ACL="public-read")
    # With ERA5T the question is always asked
    trusting = reach(proxy, cache=tmp_path / "trusting")
    source = open_source("s3://replaced/arco", channels=["t850"], era5t=True, remote=trusting)
    opening = source.traffic
    source.read(TIMES[:2])
    assert (source.traffic.requests - opening.requests, source.traffic.bytes - opening.bytes) == (2, 0)


def test_shards_are_fetched_whole_and_read_in_parts(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    dims = ("time", "level", "latitude", "longitude")
    coords = {"time": TIMES[:4], "level": [500, 850], "latitude": LATITUDE, "longitude": LONGITUDE}
    values = rng.uniform(220, 300, (4, 2, 7, 12)).astype("f4")
    dataset = xr.Dataset({"temperature": (dims, values, {"units": "K"})}, coords)
    dataset["temperature"].encoding = {"chunks": (1, 1, 7, 12), "shards": (2, 2, 7, 12)}
    folder = write(dataset, tmp_path / "sharded", zarr_format=3, consolidated=False)
    server.upload(folder, "sharded")
    plain = open_source("s3://sharded/sharded", channels=["t850"], remote=reach(proxy))
    np.testing.assert_array_equal(plain.read(TIMES[:4]).values[:, 0], values[:, 1])
    proxy.reset()
    remote = reach(proxy, cache=tmp_path / "cache")
    cached = open_source("s3://sharded/sharded", remote=remote)
    for _ in range(2):
        got = cached.read(TIMES[:4], ["t500", "t850"]).values
        np.testing.assert_array_equal(got, values)
    assert len(proxy.keys("temperature/c/")) == 2  # each of the two shards once


def test_the_cache_keeps_within_its_size_and_drops_the_least_recently_used(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "c", 100_000)
    abandoned = cache.folder / "00" / "x.1.2.part"  # of a process that was killed
    abandoned.parent.mkdir(parents=True)
    abandoned.write_bytes(bytes(30_000))
    os.utime(abandoned, (0, 0))
    mine = tmp_path / "c" / "results" / "thesis.nc"  # the user's own, beside the cache
    mine.parent.mkdir()
    mine.write_bytes(b"x")
    names = [f"{n:02d}" + "a" * 20 for n in range(30)]
    for n, name in enumerate(names):
        cache.write(name, bytes([n]) * 9_000, None)
        assert cache.read(names[0], None) is not None  # in use all the time
        assert size_of(tmp_path / "c") <= 100_000
        time.sleep(0.002)
    kept = [name for name in names if cache.read(name, None) is not None]
    assert kept[0] == names[0]
    assert kept[1:] == names[-len(kept) + 1 :]
    assert len(kept) >= 9
    assert not abandoned.exists()
    assert mine.exists()
    cache.write("big" + "b" * 20, b"x" * 100_001, None)
    assert cache.read("big" + "b" * 20, None) is None
    assert [name for name in names if cache.read(name, None) is not None] == kept


def test_parts_of_a_cached_object(tmp_path: Path) -> None:
    cache, name, data = ObjectCache(tmp_path, 10_000), "ab" + "c" * 20, bytes(range(200))
    cache.write(name, data, "tag")
    for _ in range(2):  # checked as a whole first, by its length later
        assert cache.read(name, RangeByteRequest(10, 15)) == (data[10:15], "tag")
        assert cache.read(name, OffsetByteRequest(190)) == (data[190:], "tag")
        assert cache.read(name, SuffixByteRequest(3)) == (data[-3:], "tag")
        assert cache.read(name, RangeByteRequest(190, 900)) == (data[190:], "tag")
    (file,) = cache.folder.glob("ab/*")
    os.truncate(file, file.stat().st_size - 1)
    assert cache.read(name, RangeByteRequest(10, 15)) is None
    assert not file.exists()


def test_room_that_others_are_filling_is_not_used_twice(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, 100_000)
    (cache.folder / "00").mkdir(parents=True)
    (cache.folder / "00" / "x.1.2.part").write_bytes(bytes(80_000))
    cache.write("ab" + "c" * 20, bytes(30_000), None)
    assert cache.read("ab" + "c" * 20, None) is None
    assert size_of(tmp_path) == 80_000


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != "usage")


def _hammer(folder: Path, seed: int) -> None:
    cache = ObjectCache(folder, 200_000)
    rng = np.random.default_rng(seed)
    for _ in range(150):
        n = int(rng.integers(60))
        name, data = f"{n:02d}" + "c" * 20, bytes([n]) * (5_000 + n)
        found = cache.read(name, None)
        if found is None:
            cache.write(name, data, f"tag{n}")
        elif found != (data, f"tag{n}"):
            raise SystemExit(7)


def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_hammer, args=(tmp_path / "c", seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    most, cache = 0, ObjectCache(tmp_path / "c", 200_000)
    while any(worker.is_alive() for worker in workers):
        if (cache.folder / "usage").exists():
            with cache._locked():  # files must not move while their sizes are added up
                most = max(most, size_of(tmp_path / "c"))
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert 0 < most <= 200_000


def test_a_full_disk_does_not_stop_reading(
    proxy: Proxy, bucket: str, truth: xr.Dataset, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    source = open_source(f"s3://{bucket}", channels=["t850"], remote=reach(proxy, cache=tmp_path / "cache"))
    with pytest.warns(UserWarning, match="reading goes on without it"):
        got = source.read(TIMES[:2]).values
    np.testing.assert_array_equal(got, expected(truth, TIMES[:2], ("t850",)))


def _read_in_child(source: Any, queue: Any) -> None:
    try:
        queue.put(source.read(TIMES[:1]).values)
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


def test_a_fork_is_refused_and_a_spawned_process_works(proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    source = open_source(f"s3://{bucket}", channels=["t850"], remote=reach(proxy))
    want = source.read(TIMES[:1]).values
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_read_in_child, args=(source, queue))
    child.start()
    child.join(QUICK)
    assert child.exitcode == 0
    assert re.match(
        rf"SourceError: s3://.*process {child.pid} was forked from process {os.getpid()}.*Use threads",
        queue.get(),
    )
    code = (
        "import pickle, sys; source = pickle.load(open(sys.argv[1], 'rb')); "
        "sys.stdout.write(source.read(source.times[72:73]).values.tobytes().hex())"
    )
    path = tmp_path / "source"
    path.write_bytes(pickle.dumps(source))
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert bytes.fromhex(done.stdout) == want.tobytes()


def test_other_protocols(proxy: Proxy, bucket: str, truth: xr.Dataset) -> None:
    want = expected(truth, TIMES[:1], ("t850",))
    http_source = open_source(f"{proxy.url}/{bucket}", channels=["t850"], remote=Remote(**FAST))
    np.testing.assert_array_equal(http_source.read(TIMES[:1]).values, want)
    google = open_source(f"gs://{bucket}", channels=["t850"], remote=reach(proxy))
    np.testing.assert_array_equal(google.read(TIMES[:1]).values, want)
    assert proxy.signed == {False}
    with pytest.raises(ValueError, match="signed requests need an s3"):
        open_source(f"{proxy.url}/{bucket}", remote=Remote(anonymous=False))
    with pytest.raises(ValueError, match="Account must be specified"):
        open_source("az://container/store", remote=Remote())
    with pytest.raises(ValueError, match="retries must not be negative"):
        Remote(retries=-1)
    with pytest.raises(ValueError, match="timeout must be positive"):
        Remote(timeout=0)


def test_metadata_that_are_not_consolidated(
    server: Server, proxy: Proxy, truth: xr.Dataset, tmp_path: Path
) -> None:
    part = truth.isel(time=slice(120, 122))
    for version in (2, 3):
        folder = write(part, tmp_path / f"v{version}", zarr_format=version, consolidated=False)
        server.upload(folder, f"scattered-{version}")
        url = f"scattered-{version}/v{version}"
        source = open_source(f"s3://{url}/", channels=NAMES, remote=reach(proxy))
        np.testing.assert_array_equal(source.read(TIMES[:2]).values, expected(truth, TIMES[:2]))
        assert source.provenance["source"] == f"s3://{url}"
    # A plain HTTP server does not list
    with pytest.raises(SourceError, match="not consolidated: the server must list"):
        open_source(f"{proxy.url}/{url}", remote=Remote(**FAST, retries=0))


def test_a_conversion_from_afar(proxy: Proxy, bucket: str, truth: xr.Dataset, tmp_path: Path) -> None:
    """With every third request failing once."""
    names = ("z500", "t850", "t2m", "q925")
    source = open_source(f"s3://{bucket}", channels=names, remote=reach(proxy))
    proxy.fault = lambda path, attempt: 503 if attempt == 1 and sum(map(ord, path)) % 3 == 0 else None
    convert(source, tmp_path / "s", period=(TIMES[0], TIMES[18]), step=6, implausible="keep")
    stored = open_source(tmp_path / "s", channels=names)
    np.testing.assert_array_equal(stored.read(TIMES[:19:6]).values, expected(truth, TIMES[:19:6]))


# Layouts of the public stores, on local folders


def test_arco_is_clipped_to_its_validity(tmp_path: Path, truth: xr.Dataset) -> None:
    """Trap: valid_time_stop is a day, not its midnight; beyond it there is NaN and no error."""
    folder = write(truth, tmp_path / "full_37.zarr-v3")
    source = open_source(folder)
    assert source.times[0] == np.datetime64("2000-01-03T00")
    assert source.times[-1] == np.datetime64("2000-01-06T23")
    later = open_source(folder, "arco", channels=["t850"], era5t=True)
    assert later.times[-1] == np.datetime64("2000-01-08T23")
    across = np.datetime64("2000-01-06T22", "ns") + np.arange(4) * np.timedelta64(1, "h")
    got = later.read(across)
    np.testing.assert_array_equal(got.values, expected(truth, across, ("t850",)))
    assert got["expver"].values.tolist() == ["0001", "0001", "0005", "0005"]
    with pytest.raises(
        SourceError,
        match=r"valid_time_start=2000-01-03, valid_time_stop=2000-01-06, valid_time_stop_era5t=2000-01-08; "
        r"era5t=True reads 2000-01-07T00",
    ):
        source.read(across)
    with pytest.raises(SourceError, match="valid_time_stop=2000-01-06") as caught:
        source.read(np.datetime64("2000-01-09"))
    assert "era5t=True" not in str(caught.value)
    with pytest.raises(SourceError, match="valid_time_start=2000-01-03"):
        source.read(np.datetime64("1999-12-31"))


def test_expver_of_the_data_is_handed_on(truth: xr.Dataset) -> None:
    """Trap: ERA5T is replaced later, so its steps must be known; the CDS names them per time."""
    dataset = truth.isel(time=slice(0, 3)).drop_attrs(deep=False)
    dataset = dataset.assign_coords(expver=("time", np.array(["0001", "0001", "0005"], dtype=object)))
    source = open_source(dataset, channels=["t850"])
    assert source.read(source.times[[2, 0]])["expver"].values.tolist() == ["0005", "0001"]
    assert "expver" not in open_source(dataset.drop_vars("expver")).read(source.times).coords


def test_arco_levels_are_exact(tmp_path: Path, truth: xr.Dataset) -> None:
    """Trap: searchsorted takes the next level for one that is absent."""
    folder = write(truth.isel(time=slice(48, 50)), tmp_path / "a")
    with pytest.raises(SourceError, match=r"t700 .*: levels present are 1, 500, 850, 925, 1000"):
        open_source(folder, channels=["t850", "t700"])
    names = ("t1000", "t1", "t925")
    source = open_source(folder, channels=names)
    got = source.read(source.times)
    np.testing.assert_array_equal(got.values, expected(truth, source.times, names))
    # Trap: float64 results double the memory
    assert got.dtype == np.float32
    with pytest.raises(SourceError, match="1 of 1 times are not in the source"):
        source.read(source.times[0] - np.timedelta64(1, "h"))


def test_kinds_are_told_apart(tmp_path: Path, truth: xr.Dataset) -> None:
    folder = write(truth.isel(time=slice(48, 50)), tmp_path / "a")
    open_source(folder, "arco")
    with pytest.raises(SourceError, match="is ARCO-ERA5, not WeatherBench 2"):
        open_source(folder, "wb2")
    bare = truth.isel(time=slice(48, 50)).drop_attrs(deep=False)
    other = write(bare, tmp_path / "b")
    assert open_source(other, "wb2").times.size == 2
    with pytest.raises(SourceError, match="is not ARCO-ERA5: attributes valid_time_start"):
        open_source(other, "arco")
    with pytest.raises(SourceError, match="era5t=True needs the attribute"):
        open_source(other, era5t=True)
    with pytest.raises(ValueError, match="remote= is for URLs"):
        open_source(other, remote=Remote())
    damaged = truth.isel(time=slice(48, 50)).assign_attrs(valid_time_stop="soon")
    with pytest.raises(SourceError, match="attribute valid_time_stop is not a date: 'soon'"):
        open_source(damaged)


def test_an_axis_from_1900_opens_without_delay(tmp_path: Path) -> None:
    """1.1 million hours, of which a few days have chunks."""
    times = np.datetime64("1900-01-01", "ns") + np.arange(1_100_000) * np.timedelta64(1, "h")
    first = int((np.datetime64("2019-03-01") - np.datetime64("1900-01-01")) / np.timedelta64(1, "h"))
    import zarr

    group = zarr.open_group(tmp_path / "a.zarr-v3", mode="w", zarr_format=2)
    group.attrs.update({"valid_time_start": "1940-01-01", "valid_time_stop": "2019-03-31"})
    for name, values, attributes in (
        ("time", np.arange(times.size), {"units": "hours since 1900-01-01", "calendar": "gregorian"}),
        ("latitude", LATITUDE, {}),
        ("longitude", LONGITUDE, {}),
    ):
        array = group.create_array(name, data=values, chunks=values.shape, fill_value=None)
        array.attrs.update({"_ARRAY_DIMENSIONS": [name], **attributes})
    array = group.create_array(
        "2m_temperature", shape=(times.size, 7, 12), chunks=(1, 7, 12), dtype="f4", fill_value=np.nan
    )
    array.attrs.update({"_ARRAY_DIMENSIONS": ["time", "latitude", "longitude"], "units": "K"})
    array[first : first + 2] = np.arange(168, dtype="f4").reshape(2, 7, 12)
    zarr.consolidate_metadata(tmp_path / "a.zarr-v3", zarr_format=2)
    started = time.process_time()
    source = open_source(tmp_path / "a.zarr-v3")
    got = source.read(times[first : first + 2])
    assert time.process_time() - started < 3.0
    np.testing.assert_array_equal(got.values.reshape(-1), np.arange(168))
    assert source.times[0] == np.datetime64("1940-01-01")
    assert source.times.size == (np.datetime64("2019-04-01") - np.datetime64("1940-01-01")).astype(int) * 24
    with pytest.raises(SourceError, match="is missing"):
        source.read(times[first + 2])


def wb2(transposed: bool, ascending: bool, columns: int = 240) -> xr.Dataset:
    """WeatherBench 2 in small; low-resolution stores are (..., longitude, latitude), latitude ascending."""
    rng = np.random.default_rng(1)
    longitude = np.arange(columns) * (360 / columns)
    times = np.datetime64("2020-01-01", "ns") + np.arange(3) * np.timedelta64(6, "h")
    coords = {"time": times, "level": [500, 850], "latitude": LATITUDE, "longitude": longitude}
    dims = ("time", "level", "latitude", "longitude")
    values = rng.uniform(220, 300, (3, 2, 7, columns)).astype("f4")
    dataset = xr.Dataset({"temperature": (dims, values, {"units": "K"})}, coords)
    dataset["total_precipitation_6hr"] = (
        ("time", "latitude", "longitude"),
        rng.uniform(0, 0.01, (3, 7, columns)).astype("f4"),
        {"units": "m"},
    )
    if ascending:
        dataset = dataset.isel(latitude=slice(None, None, -1))
    return dataset.transpose(..., "longitude", "latitude") if transposed else dataset


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("columns", [240, 7])
def test_wb2_in_any_order(tmp_path: Path, transposed: bool, ascending: bool, columns: int) -> None:
    """Traps: longitudes rebuilt as linspace(0, 359.5, 240); square and tall grids told by their shape."""
    plain = wb2(False, False, columns)
    source = open_source(write(wb2(transposed, ascending, columns), tmp_path / "w"), "wb2")
    assert {"tp", "t500", "t850"} <= set(source.channels)
    got = source.read(source.times, ["t850", "tp"])
    np.testing.assert_array_equal(got.values[:, 0], plain["temperature"].sel(level=850).values)
    np.testing.assert_array_equal(got.values[:, 1], plain["total_precipitation_6hr"].values)
    np.testing.assert_allclose(source.grid.longitude, plain["longitude"].values, atol=1e-9)
    if columns == 240:
        assert source.grid.longitude[-1] == 358.5
    np.testing.assert_array_equal(source.grid.latitude, LATITUDE)


def test_wb2_forecasts_need_a_lead_time(tmp_path: Path) -> None:
    base = wb2(False, True)
    leads = np.array([6, 12, 24]).astype("timedelta64[h]").astype("timedelta64[ns]")
    forecasts = xr.concat([base + k for k in range(3)], dim="prediction_timedelta")
    forecasts = forecasts.assign_coords(prediction_timedelta=leads)
    for name in forecasts.data_vars:
        forecasts[name].attrs = base[name].attrs
    folder = write(forecasts, tmp_path / "f")
    with pytest.raises(
        SourceError, match=r"lead times \(prediction_timedelta\) of \[6, 12, 24\] h; choose one"
    ):
        open_source(folder)
    with pytest.raises(SourceError, match="got 18"):
        open_source(folder, lead=18)
    source = open_source(folder, channels=["t850"], lead=np.timedelta64(12, "h"))
    np.testing.assert_array_equal(source.times, base["time"].values + np.timedelta64(12, "h"))
    want = wb2(False, False)["temperature"].sel(level=850).values + np.float32(1)
    np.testing.assert_array_equal(source.read(source.times).values[:, 0], want)
    assert source.provenance["lead_hours"] == 12
    with pytest.raises(SourceError, match="there is no coordinate of lead times"):
        open_source(base, lead=6)


def test_times_chunked_one_by_one(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    """Trap: a time axis in chunks of one; each is asked for once."""
    dataset = wb2(False, False, 12)
    dataset = xr.concat(
        [dataset.assign_coords(time=dataset["time"] + np.timedelta64(k, "D")) for k in range(5)], "time"
    )
    dataset["time"].encoding = {"chunks": (1,), "units": "hours since 2020-01-01", "dtype": "int64"}
    server.upload(write(dataset, tmp_path / "t"), "chunked-times")
    source = open_source("s3://chunked-times/t", remote=reach(proxy))
    np.testing.assert_array_equal(source.times, dataset["time"].values)
    asked = proxy.keys("/time/")
    assert len(asked) == len(set(asked)) == 15


def test_units_of_the_public_stores() -> None:
    """Trap: '(0 - 1)', '~' and the like."""
    dataset = wb2(False, False, 12).isel(time=[0])
    mask = np.linspace(0, 1, 84, dtype="f4").reshape(7, 12)
    for units in ("(0 - 1)", "~", "dimensionless", "1"):
        dataset["land_sea_mask"] = (("latitude", "longitude"), mask, {"units": units})
        np.testing.assert_array_equal(open_source(dataset).statics["lsm"], mask)


def test_a_read_in_parts_is_the_same(
    tmp_path: Path, truth: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads are cut into parts at chunk borders; order and repetition of times do not matter."""
    monkeypatch.setattr("wx_data._sources._UNIT_BYTES", 2_000)
    chunked = truth.drop_attrs(deep=False)
    chunked["temperature"].encoding = {"chunks": (5, len(LEVELS), 7, 12)}
    source = open_source(write(chunked, tmp_path / "c"), channels=NAMES)
    rng = np.random.default_rng(0)
    for rows in (
        np.arange(17, 43),
        np.sort(rng.choice(288, 40, replace=False)),
        rng.integers(0, 288, 30),
        [5],
    ):
        times = source.times[rows]
        np.testing.assert_array_equal(source.read(times).values, expected(truth, times))


def test_a_read_needs_little_more_memory_than_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap: a float64 array for the result."""
    times = TIMES[:16]
    coords = {"time": times, "latitude": np.linspace(90, -90, 91), "longitude": np.arange(180) * 2.0}
    values = np.random.default_rng(0).uniform(230, 310, (16, 91, 180)).astype("f4")
    dataset = xr.Dataset(
        {"2m_temperature": (("time", "latitude", "longitude"), values, {"units": "K"})}, coords
    )
    dataset["2m_temperature"].encoding = {"chunks": (1, 91, 180)}
    source = open_source(write(dataset, tmp_path / "m"))
    source.read(times[:1])
    monkeypatch.setattr("wx_data._sources._UNIT_BYTES", 2 * 4 * 91 * 180)
    tracemalloc.start()
    got = source.read(times)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(got.values[:, 0], values)
    # The result, and a few times what is read at a time
    assert peak < 1.6 * values.nbytes


def test_any_zarr_store_object(tmp_path: Path, truth: xr.Dataset) -> None:
    import zarr

    folder = write(truth.isel(time=slice(48, 50)), tmp_path / "a")
    source = open_source(zarr.storage.LocalStore(folder), channels=["t850"])
    np.testing.assert_array_equal(source.read(source.times).values, expected(truth, source.times, ("t850",)))


def test_traffic_is_counted_from_several_threads() -> None:
    counter = TrafficCounter()
    threads = [
        threading.Thread(target=lambda: [counter.add(requests=1, bytes=3) for _ in range(500)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.total == Traffic(requests=4000, bytes=12000)


@pytest.mark.skipif(
    "WX_DATA_NETWORK" not in os.environ, reason="set WX_DATA_NETWORK=1 to read from Google Cloud"
)
def test_one_step_of_the_real_arco() -> None:
    """Names, units, order and range; about 700 MB are decoded."""
    source = open_source(
        "gs://gcp-public-data-arco-era5/ar/full_37-1h-0p25deg-chunk-1.zarr-v3",
        "arco",
        channels=("z500", "t850", "q850", "u10m", "t2m", "msl"),
    )
    assert source.grid.shape == (721, 1440)
    assert source.grid.longitude[-1] == 359.75
    assert source.times[0] == np.datetime64("1940-01-01")
    step = source.read(np.datetime64("2019-01-01T00"))
    mean = dict(zip(source.channels, step.values[0].mean(axis=-1) @ source.grid.area_weights(), strict=True))
    assert 5.3e4 < mean["z500"] < 5.6e4
    assert 270 < mean["t850"] < 285
    assert 3e-3 < mean["q850"] < 8e-3
    assert 283 < mean["t2m"] < 291
    assert 1.005e5 < mean["msl"] < 1.016e5
    south, north = step.sel(channel="t2m").values[0][[-1, 0]].mean(axis=-1)
    assert south > north  # January
