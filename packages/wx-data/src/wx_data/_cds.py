"""ERA5 from the Climate Data Store: requests queued, taken up again after a crash, and checked."""

import hashlib
import json
import os
import sys
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from wx_data._accumulation import HOURLY, AccumulatedSource, hourly_windows
from wx_data._channels import Channel, channel
from wx_data._channels import channels as lexicon
from wx_data._errors import SourceError
from wx_data._join import JoinedSource, join
from wx_data._protocols import Source
from wx_data._sources import open_source
from wx_data._times import Hours, LeadLike, TimeLike, from_hours, lead_hours, period_hours, show
from wx_data._zarr3 import write_atomic

_PRESSURE, _SINGLE = "reanalysis-era5-pressure-levels", "reanalysis-era5-single-levels"
_STATICS = ("z_surface", "lsm")
_ANY_DAY = "2000-01-01"
_POLL_SECONDS = (1.0, 60.0)  # first and longest wait between two looks at the queue


@dataclass(frozen=True, kw_only=True)
class CDS:
    """Access to the Climate Data Store and manners towards it.

    Attributes:
        url: address of the API; by default CDSAPI_URL, then ~/.cdsapirc, then the public one.
        key: personal access token; by default CDSAPI_KEY, then ~/.cdsapirc.
        queued: requests in the queue at a time; the store holds back what one user asks beyond a few.
        timeout: seconds without an answer after which a connection is given up.
        attempts: how often a failed connection, or a damaged file, is tried.
        pause: seconds between two tries of a connection.
    """

    url: str | None = None
    key: str | None = None
    queued: int = 4
    timeout: float = 60.0
    attempts: int = 10
    pause: float = 10.0


def fetch_cds(
    folder: str | Path,
    channels: str | Sequence[str],
    period: tuple[TimeLike, TimeLike],
    *,
    step: LeadLike = 6,
    area: tuple[float, float, float, float] | None = None,
    spacing: float | None = None,
    statics: bool = True,
    cds: CDS | None = None,
    progress: bool = True,
) -> JoinedSource:
    """Download ERA5 from the Climate Data Store into NetCDF files, and open them as one source.

    One request holds a month of the pressure levels, of the instantaneous single levels, or of the hourly
    accumulations that `tp` is summed from; the hours before the first time that its window needs belong to
    their own month. The identifier of a request is kept beside its file until the file is whole, so a call
    that was killed takes up its place in the queue, and files that are there are not asked for again.

    Args:
        folder: where the files are kept; one folder serves several calls.
        channels: names or a preset.
        period: first and last time, both inclusive; a date as the end means its whole day.
        step: hours between times, counted from 00 UTC; a divisor of 24.
        area: north, west, south, east in degrees; the globe by default.
        spacing: grid spacing in degrees that the store interpolates to; 0.25 by default.
        statics: also fetch the orography and the land mask, for the source's `statics`.
        cds: address, key, queue length and patience.
        progress: print the state of the queue to stderr when it changes.

    Raises:
        SourceError: a request fails, or a file stays unreadable or short.
        ImportError: the client is not installed.
    """
    names = tuple(spec.name for spec in lexicon(channels))
    access, target = cds or CDS(), Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    requests = plan_requests(names, period, step, area, spacing)
    fixed = plan_requests(_STATICS, (_ANY_DAY, _ANY_DAY), 24, area, spacing) if statics else []
    _Queue(access, progress).run([_Download(target, request) for request in (*fixed, *requests)])
    source = _open(target, requests, names)
    for request in fixed:
        found = _open_file(target, request)
        field = found.read(found.times, _STATICS).values[0]
        source.statics = dict(zip(_STATICS, field, strict=True))
    return source


@dataclass(frozen=True)
class CDSRequest:
    """What is asked of one data set of the store for one month.

    Attributes:
        dataset: name of the data set.
        channels: our names of what it holds.
        hours: valid times, in hours since 1970.
        inputs: the request as the API takes it.
    """

    dataset: str
    channels: tuple[str, ...]
    hours: tuple[int, ...]
    inputs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the file: readable, and unique for what is asked."""
        digest = hashlib.sha256(json.dumps([self.dataset, self.inputs], sort_keys=True).encode()).hexdigest()
        kind = "pl" if self.dataset == _PRESSURE else "sl"
        return f"era5-{kind}-{str(from_hours(self.hours[0]))[:7]}-{digest[:10]}.nc"


def plan_requests(
    names: Sequence[str],
    period: tuple[TimeLike, TimeLike],
    step: LeadLike = 6,
    area: tuple[float, float, float, float] | None = None,
    spacing: float | None = None,
) -> list[CDSRequest]:
    """The requests of `fetch_cds`, oldest month first."""
    every = lead_hours(step)
    if every < 1 or 24 % every:
        raise ValueError(f"step must divide 24 h; got {every} h")
    first, last = period_hours(period, np.zeros(1, np.int64))
    hours = np.arange(-(-first // every) * every, last + 1, every)
    if not hours.size:
        raise ValueError(f"period: no time at a step of {every} h from {period[0]} to {period[1]}")
    specs = [channel(name) for name in dict.fromkeys(HOURLY.get(name, name) for name in names)]
    lacking = [spec.name for spec in specs if spec.cds_name is None]
    if lacking:
        raise SourceError(f"the Climate Data Store has no {', '.join(lacking)}")
    extra = {"area": list(area)} if area else {}
    if spacing is not None:
        extra["grid"] = [spacing, spacing]
    found = []
    for dataset, group, at in _groups(specs, hours):
        for part in _months(at):
            found.append(CDSRequest(dataset, tuple(s.name for s in group), part, _inputs(group, part, extra)))
    return sorted(found, key=lambda request: request.hours[0])


def _groups(specs: Sequence[Channel], hours: Hours) -> Iterator[tuple[str, list[Channel], Hours]]:
    """Channels that one file can hold: the store splits files by level type and by kind of time step."""
    upper = [spec for spec in specs if spec.level is not None]
    single = [spec for spec in specs if spec.level is None]
    instant = [spec for spec in single if spec.accumulation_hours is None]
    summed = [spec for spec in single if spec.accumulation_hours is not None]
    # A request is a product of variables and levels: channels on other levels are a request of their own.
    by_levels: dict[tuple[int, ...], list[Channel]] = {}
    for variable in dict.fromkeys(spec.variable for spec in upper):
        group = [spec for spec in upper if spec.variable == variable]
        by_levels.setdefault(tuple(sorted(spec.level or 0 for spec in group)), []).extend(group)
    for group in by_levels.values():
        yield _PRESSURE, group, hours
    if instant:
        yield _SINGLE, instant, hours
    if summed:
        needed = np.unique(hours[:, None] - np.arange(6))
        whole = np.unique(needed // 24)[:, None] * 24 + np.unique(needed % 24)
        yield _SINGLE, summed, whole.ravel()


def _months(hours: Hours) -> Iterator[tuple[int, ...]]:
    """Hours by month, cut where the days do not all have the same hours of day."""
    months = from_hours(hours).astype("datetime64[M]")
    for month in np.unique(months):
        part = hours[months == month]
        shapes: dict[tuple[int, ...], list[int]] = {}
        for day in np.unique(part // 24):
            on_day = part[part // 24 == day]
            shapes.setdefault(tuple((on_day % 24).tolist()), []).extend(on_day.tolist())
        yield from (tuple(shape) for shape in shapes.values())


def _inputs(group: Sequence[Channel], hours: tuple[int, ...], extra: Mapping[str, Any]) -> dict[str, Any]:
    stamps = [str(stamp) for stamp in from_hours(hours).astype("datetime64[m]")]
    levels = sorted({spec.level for spec in group if spec.level is not None})
    return {
        "product_type": ["reanalysis"],
        "variable": sorted({str(spec.cds_name) for spec in group}),
        **({"pressure_level": [str(level) for level in levels]} if levels else {}),
        "year": sorted({stamp[:4] for stamp in stamps}),
        "month": sorted({stamp[5:7] for stamp in stamps}),
        "day": sorted({stamp[8:10] for stamp in stamps}),
        "time": sorted({stamp[11:16] for stamp in stamps}),
        "data_format": "netcdf",
        "download_format": "unarchived",
        **extra,
    }


@dataclass(frozen=True, eq=False)
class _Download:
    """One request, its file, and the note of its identifier beside it."""

    folder: Path
    request: CDSRequest

    @property
    def path(self) -> Path:
        return self.folder / self.request.name

    @property
    def note(self) -> Path:
        return self.path.with_suffix(".request.json")

    def known(self) -> str | None:
        """Identifier of a request that an earlier call queued."""
        try:
            return str(json.loads(self.note.read_text())["request_id"])
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def remember(self, identifier: str) -> None:
        content = {"request_id": identifier, "dataset": self.request.dataset, **self.request.inputs}
        write_atomic(self.note, json.dumps(content, indent=1).encode())

    def check(self, path: Path) -> None:
        """Refuse a file that is not what was asked for, or cannot be read to its last byte."""
        try:
            _read_through(path)
            with xr.open_dataset(path, engine="h5netcdf") as dataset:
                source = open_source(hourly_windows(dataset), channels=self.request.channels)
                lacking = np.setdiff1d(from_hours(self.request.hours), source.times)
                if lacking.size:
                    raise SourceError(f"{lacking.size} times are not in the file, first {show(lacking[0])}")
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise SourceError(f"{path.name}: {error}") from error


def _read_through(path: Path) -> None:
    """Read everything in an HDF5 file: damage shows only where it is read."""
    import h5py

    def visit(_name: str, entry: Any) -> None:
        for value in entry.attrs.values():
            del value
        if isinstance(entry, h5py.Dataset):
            entry[()]

    # h5netcdf would leave a half-open file behind.
    with h5py.File(path) as file:
        file.visititems(visit)


class _Queue:
    """Downloads with a few of them queued at the store at a time."""

    def __init__(self, access: CDS, progress: bool) -> None:
        self.access, self.progress = access, progress
        self._client: Any = None

    def run(self, downloads: Sequence[_Download]) -> None:
        todo = [download for download in downloads if not download.path.exists()]
        self._say(f"{len(downloads) - len(todo)} of {len(downloads)} files are there already")
        waiting, active = list(reversed(todo)), dict[_Download, Any]()
        tries = dict.fromkeys(todo, 0)
        done, wait = len(downloads) - len(todo), _POLL_SECONDS[0]
        while waiting or active:
            while waiting and len(active) < self.access.queued:
                download = waiting.pop()
                active[download] = self._queue(download)
            ready = [download for download, remote in active.items() if self._ready(download, remote)]
            for download in ready:
                error = self._fetch(download, active.pop(download))
                if error is None:
                    done += 1
                    self._say(f"{download.path.name} is complete ({done} of {len(downloads)})")
                    continue
                tries[download] += 1
                self._say(f"{error}; asking again")
                if tries[download] >= self.access.attempts:
                    raise error
                if tries[download] > 1:  # the store's own copy may be the damaged one
                    download.note.unlink(missing_ok=True)
                waiting.append(download)
            if active and not ready:
                clock.sleep(wait)
                wait = min(wait * 1.5, _POLL_SECONDS[1])
            else:
                wait = _POLL_SECONDS[0]

    def _queue(self, download: _Download) -> Any:
        known = download.known()
        if known is not None:
            with suppress(*_client_errors()):
                remote = self.client.get_remote(known)
                if remote.status in ("accepted", "running", "successful"):
                    self._say(f"{download.path.name}: request {known} taken up again")
                    return remote
            self._say(f"{download.path.name}: request {known} is no longer kept; asking anew")
        try:
            remote = self.client.submit(download.request.dataset, dict(download.request.inputs))
        except _client_errors() as error:
            raise SourceError(
                f"{self.client.url}: no answer after {self.access.attempts} attempts (key given) to the "
                f"request for {download.path.name}; the last: {error}"
            ) from error
        download.remember(remote.request_id)
        self._say(f"{download.path.name}: request {remote.request_id} is queued")
        return remote

    def _ready(self, download: _Download, remote: Any) -> bool:
        before = remote.last_status
        try:
            ready = bool(remote.results_ready)
        except _client_errors() as error:
            download.note.unlink(missing_ok=True)
            raise SourceError(
                f"{download.path.name}: the Climate Data Store refused request {remote.request_id}: {error}"
            ) from error
        if remote.last_status != before:
            self._say(f"{download.path.name}: {remote.last_status}")
        return ready

    def _fetch(self, download: _Download, remote: Any) -> SourceError | None:
        """Download and check; what was wrong with the file, if anything."""
        partial = download.path.with_name(f".{download.path.name}.{os.getpid()}.part")
        try:
            results = remote.get_results()
            results.download(str(partial))
            download.check(partial)
        except SourceError as error:
            failed = error
        except _client_errors() as error:
            failed = SourceError(f"{download.path.name}: {error}")
        else:
            os.replace(partial, download.path)
            download.note.unlink(missing_ok=True)
            return None
        finally:
            partial.unlink(missing_ok=True)
        return failed

    @property
    def client(self) -> Any:
        if self._client is None:
            self._client = _client(self.access)
        return self._client

    def _say(self, message: str) -> None:
        if self.progress:
            print(f"{clock.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def _client(access: CDS) -> Any:
    try:
        from ecmwf.datastores import Client
    except ImportError as error:
        raise ImportError(
            "the Climate Data Store needs ecmwf-datastores-client; pip install 'wx-data[cds]'"
        ) from error
    stated = _configuration()
    key = access.key or os.environ.get("CDSAPI_KEY") or stated.get("key")
    if not key:
        raise SourceError(
            "no key for the Climate Data Store: pass cds=CDS(key=...), set CDSAPI_KEY, or write ~/.cdsapirc; "
            "the key stands on your profile page of cds.climate.copernicus.eu"
        )
    url = access.url or os.environ.get("CDSAPI_URL") or stated.get("url")
    return Client(
        url=url or "https://cds.climate.copernicus.eu/api",
        key=key,
        timeout=access.timeout,
        maximum_tries=access.attempts,
        retry_after=access.pause,
        progress=False,
    )


def _client_errors() -> tuple[type[Exception], ...]:
    import requests
    from ecmwf.datastores.processing import DownloadError, ProcessingFailedError

    return DownloadError, ProcessingFailedError, requests.RequestException


def _configuration() -> dict[str, str]:
    """`key: value` lines of ~/.cdsapirc."""
    path = Path(os.environ.get("CDSAPI_RC", "~/.cdsapirc")).expanduser()
    if not path.exists():
        return {}
    lines = [line.split(":", 1) for line in path.read_text().splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in lines}


def _open(folder: Path, requests: Sequence[CDSRequest], names: tuple[str, ...]) -> JoinedSource:
    """The files as one source; `tp` summed across the borders of months."""
    parts: dict[tuple[str, ...], list[Source]] = {}
    for request in requests:
        parts.setdefault(request.channels, []).append(_open_file(folder, request))
    strands: list[Source] = []
    for sources in parts.values():
        strand = join(sources)
        sums = tuple(name for name, hourly in HOURLY.items() if name in names and hourly in strand.channels)
        kept = tuple(name for name in strand.channels if name in names)
        strands.append(AccumulatedSource(strand, (*kept, *sums)) if sums else strand)
    return join(strands, times="common", channels=names)


def _open_file(folder: Path, request: CDSRequest) -> Source:
    dataset = hourly_windows(xr.open_dataset(folder / request.name, engine="h5netcdf"))
    source = open_source(dataset, channels=request.channels)
    source.provenance["source"] = f"CDS {request.dataset}: {request.name}"
    return source
