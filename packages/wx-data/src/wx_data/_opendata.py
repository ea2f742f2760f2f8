"""One operational analysis over HTTP: the byte ranges of the channels that are asked for, and no more."""

import hashlib
import http.client
import json
import time as clock
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._channels import Channel, channel
from wx_data._channels import channels as lexicon
from wx_data._errors import SourceError
from wx_data._grid import Grid
from wx_data._healpix import Healpix
from wx_data._join import join
from wx_data._protocols import Source
from wx_data._regrid import Method, RegriddedSource
from wx_data._sources import open_source
from wx_data._times import TimeLike, from_hours, show, to_hours
from wx_data._zarr3 import write_atomic

_CYCLE_HOURS = 6
_CYCLES_BACK = 12  # how far to look for the newest analysis when one is not there
_GAP = 64 << 10  # bytes between two ranges below which one request takes both
_AGAIN = {408, 425, 429, 500, 502, 503, 504}

Fill = Mapping[str, float | NDArray[Any]]
_T = TypeVar("_T")
Span = tuple[int, int | None]  # first byte, and the byte behind the last; None: to the end


@dataclass(frozen=True)
class OpenData:
    """Where an operational centre publishes its analyses, and how patiently to ask.

    Attributes:
        centre: "ifs-open" (ECMWF, CC-BY-4.0) or "gfs" (NCEP, public domain).
        root: address of the archive; by default a public mirror that keeps old dates.
        timeout: seconds without an answer after which a request is given up.
        attempts: how often a request is made before it counts as failed.
        pause: seconds before the second attempt; doubled each time.
    """

    centre: Literal["ifs-open", "gfs"]
    root: str = ""
    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0

    def __post_init__(self) -> None:
        if self.centre not in ARCHIVES:
            raise ValueError(f"centre must be one of {', '.join(ARCHIVES)}; got {self.centre!r}")

    def file_url(self, hour: int, step: int) -> str:
        """Address of the GRIB file of the forecast that starts at `hour` since 1970, at `step` hours."""
        start = str(from_hours(hour).astype("datetime64[h]"))
        day, cycle = start[:10].replace("-", ""), start[11:13]
        root = (self.root or ARCHIVES[self.centre]).rstrip("/")
        if self.centre == "gfs":
            return f"{root}/gfs.{day}/{cycle}/atmos/gfs.t{cycle}z.pgrb2.0p25.f{step:03}"
        # Before IFS cycle 50r1 the runs of 06 and 18 UTC were a stream of their own.
        stream = "oper" if cycle in ("00", "12") or day >= "20260512" else "scda"
        return f"{root}/{day}/{cycle}z/ifs/0p25/{stream}/{day}{cycle}0000-{step}h-{stream}-fc.grib2"

    def index_url(self, hour: int, step: int) -> str:
        """Address of the index of that file."""
        url = self.file_url(hour, step)
        return f"{url}.idx" if self.centre == "gfs" else f"{url.removesuffix('.grib2')}.index"


ARCHIVES = {
    "ifs-open": "https://storage.googleapis.com/ecmwf-open-data",
    "gfs": "https://noaa-gfs-bdp-pds.s3.amazonaws.com",
}


def fetch_initial_state(
    time: TimeLike,
    channels: str | Sequence[str],
    source: OpenData | Literal["ifs-open", "gfs"] | Source = "ifs-open",
    *,
    grid: Grid | Healpix | None = None,
    method: Method = "bilinear",
    cache: str | Path | None = None,
    fill: Fill | None = None,
    derive: Mapping[str, str] | None = None,
) -> xr.DataArray:
    """The state of the atmosphere at one time, to start a forecast from.

    From an operational centre only the byte ranges of the channels are fetched. A channel that accumulates
    is the forecast of the previous run for the hours up to `time`, since an analysis has none.

    Args:
        time: a whole hour; 00, 06, 12 or 18 UTC from a centre.
        channels: names or a preset.
        source: a centre, an `OpenData` with another address or time-outs, or any `Source`, a `Store` among
            them.
        grid: target of regridding; the source's own by default.
        method: see `RegriddedSource`.
        cache: folder in which what was fetched is kept and found again; none by default.
        fill: channel -> constant or (H, W) field on the source's grid, for channels that the centre does not
            publish; recorded in `attrs["filled"]`.
        derive: see `open_source`.

    Returns:
        float32 (time, channel, latitude, longitude), or (time, channel, cell), with units per channel.

    Raises:
        SourceError: the time is not published yet (the newest one is named), a channel is not, or the server
            does not answer.
        ImportError: the GRIB reader is missing.
    """
    names = tuple(spec.name for spec in lexicon(channels))
    hour = int(to_hours(np.datetime64(time)))
    if not isinstance(source, str | OpenData):
        if fill or derive:
            raise ValueError("fill and derive are for operational centres; give them to open_source instead")
        return _read(source, hour, names, grid, method)
    data = OpenData(source) if isinstance(source, str) else source
    with ExitStack() as stack:
        folder = Path(cache) if cache else Path(stack.enter_context(TemporaryDirectory(prefix="wx-data-")))
        folder.mkdir(parents=True, exist_ok=True)
        state = _open_state(_Archive(data, folder), hour, names, dict(fill or {}), dict(derive or {}))
        return _read(state, hour, names, grid, method)


def _read(
    source: Source, hour: int, names: Sequence[str], grid: Grid | Healpix | None, method: Method
) -> xr.DataArray:
    state = source if grid is None or grid == source.grid else RegriddedSource(source, grid, method)
    array = state.read(from_hours([hour]), names)
    provenance: Mapping[str, Any] = getattr(source, "provenance", {})
    for part in (provenance, *provenance.get("parts", ())):
        for key in ("filled", "derived"):
            if part.get(key):
                array.attrs[key] = {**array.attrs.get(key, {}), **part[key]}
    array.attrs["source"] = str(provenance.get("source", ""))
    return array


def _open_state(
    archive: "_Archive", hour: int, names: Sequence[str], fill: Fill, derive: Mapping[str, str]
) -> Source:
    """The channels of the analysis, and those that the previous run accumulated up to it."""
    centre = archive.data.centre
    if hour % _CYCLE_HOURS:
        raise SourceError(f"{centre} has analyses at 00, 06, 12 and 18 UTC; got {show(from_hours(hour))}")
    summed = [name for name in names if channel(name).accumulation_hours and name not in fill]
    wrong = [name for name in summed if channel(name).accumulation_hours != _CYCLE_HOURS]
    if wrong:
        raise SourceError(f"{', '.join(wrong)}: {centre} has sums over {_CYCLE_HOURS} h only")
    present = [name for name in names if name not in summed]
    parts: list[Source] = []
    if present:
        path = archive.fetch(hour, 0, [n for n in present if n not in fill], derive)
        parts.append(open_source(path, channels=present, fill=fill, derive=derive))
    if summed:
        path = archive.fetch(hour - _CYCLE_HOURS, _CYCLE_HOURS, summed, {})
        parts.append(open_source(path, channels=summed))
    state = parts[0] if len(parts) == 1 else join(parts)
    state.provenance["source"] = f"{centre} {show(from_hours(hour))}"  # type: ignore[attr-defined]
    return state


@dataclass(frozen=True)
class _Archive:
    """GRIB messages of an archive, fetched into files of `folder`."""

    data: OpenData
    folder: Path

    def fetch(self, hour: int, step: int, names: Sequence[str], derive: Mapping[str, str]) -> Path:
        """A file with the messages of these channels; nothing is fetched if it is there already."""
        url = self.data.file_url(hour, step)
        key = hashlib.sha256(json.dumps([url, sorted(names), sorted(derive.items())]).encode()).hexdigest()
        path = self.folder / f"{Path(url).stem}-{key[:12]}.grib2"
        if not path.exists():
            spans = self._spans(hour, step, names, derive)
            write_atomic(path, b"".join(self._messages(url, spans)))
        return path

    def _spans(self, hour: int, step: int, names: Sequence[str], derive: Mapping[str, str]) -> list[Span]:
        url = self.data.index_url(hour, step)
        try:
            text = _get(self.data, url).decode()
        except _AbsentError as error:
            raise SourceError(self._not_published(hour, step, error)) from None
        index = _gfs_index(text, step) if self.data.centre == "gfs" else _ifs_index(text)
        found: list[Span] = []
        lacking: list[Channel] = []
        for name in names:
            spec = channel(name)
            spans = [_find(index, self.data.centre, spec)]
            if spans[0] is None and derive.get(spec.variable) == "relative_humidity":
                parts = [channel(f"{variable}{spec.level}") for variable in "rt"]
                spans = [_find(index, self.data.centre, part) for part in parts]
            here = [span for span in spans if span is not None]
            if len(here) == len(spans):
                found += here
            else:
                lacking.append(spec)
        if lacking:
            raise SourceError(_lacking(self.data.centre, lacking, index, url))
        return sorted(set(found))

    def _messages(self, url: str, spans: Sequence[Span]) -> list[bytes]:
        """The messages, several requests at a time; neighbours share one."""
        groups: list[list[Span]] = []
        for span in spans:
            last = groups[-1][-1][1] if groups else None
            if groups and last is not None and span[0] - last <= _GAP:
                groups[-1].append(span)
            else:
                groups.append([span])
        with ThreadPoolExecutor(4, thread_name_prefix="wx-opendata") as pool:
            return [
                m for found in pool.map(lambda g: _get_messages(self.data, url, g), groups) for m in found
            ]

    def _not_published(self, hour: int, step: int, error: Exception) -> str:
        now = int(np.datetime64("now", "h").astype(np.int64)) // _CYCLE_HOURS * _CYCLE_HOURS
        for start in (hour, now):
            for back in range(_CYCLES_BACK + 1):
                if self._is_there(start - _CYCLE_HOURS * back, step):
                    newest = show(from_hours(start - _CYCLE_HOURS * back))
                    return (
                        f"{self.data.centre}: the run of {show(from_hours(hour))} is not published "
                        f"({error}); the newest that is: {newest}"
                    )
        return (
            f"{self.data.centre}: the run of {show(from_hours(hour))} is not published ({error}), nor any of "
            f"the {_CYCLES_BACK} runs before it or before now"
        )

    def _is_there(self, hour: int, step: int) -> bool:
        try:
            _get(self.data, self.data.index_url(hour, step), method="HEAD")
        except _AbsentError:
            return False
        return True


def _keys(centre: str, spec: Channel) -> list[str]:
    """What the channel may be called in an index."""
    if centre == "gfs":
        return [spec.gfs_name] if spec.gfs_name else []
    place = "sfc" if spec.level is None else f"pl:{spec.level}"
    return [f"{name}:{place}" for name in dict.fromkeys((spec.ifs_name, spec.grib_name))]


def _find(index: Mapping[str, Span], centre: str, spec: Channel) -> Span | None:
    return next((index[key] for key in _keys(centre, spec) if key in index), None)


def _ifs_index(text: str) -> dict[str, Span]:
    """Of one JSON object per message."""
    found: dict[str, Span] = {}
    for line in text.splitlines():
        entry = json.loads(line)
        level = f":{entry['levelist']}" if entry.get("levtype") == "pl" else ""
        key = f"{entry['param']}:{entry.get('levtype')}{level}"
        found[key] = entry["_offset"], entry["_offset"] + entry["_length"]
    return found


def _gfs_index(text: str, step: int) -> dict[str, Span]:
    """Of lines `number:first byte:d=date:variable:level:forecast:`; a message ends where the next begins."""
    lines = [line.split(":") for line in text.splitlines() if line]
    starts = sorted({int(line[1]) for line in lines})
    ends: dict[int, int | None] = dict(zip(starts, [*starts[1:], None], strict=True))
    wanted = {"anl", f"{step} hour fcst", f"{max(0, step - _CYCLE_HOURS)}-{step} hour acc fcst"}
    return {f"{line[3]}:{line[4]}": (int(line[1]), ends[int(line[1])]) for line in lines if line[5] in wanted}


def _lacking(centre: str, lacking: Sequence[Channel], index: Mapping[str, Span], url: str) -> str:
    lines = [f"{centre} does not publish {len(lacking)} of the channels ({url}):"]
    for spec in lacking:
        keys = _keys(centre, spec)
        variables = {key.split(":")[0] for key in keys} if spec.level is not None else set()
        levels = [key for key in index if key.split(":")[0] in variables]
        looked = f"looked for {' or '.join(keys)}" if keys else "it has no such field"
        near = f"there are {', '.join(levels[:20])}" if levels else looked
        lines.append(f"  {spec.name} ({spec.long_name}): {near}")
    lines.append("fill={name: constant or field} supplies a channel on your own decision; it is recorded.")
    return "\n".join(lines)


class _AbsentError(Exception):
    """The server has no such object."""


def _get_messages(data: OpenData, url: str, group: Sequence[Span]) -> list[bytes]:
    start, stop = group[0][0], group[-1][1]

    def split(body: bytes) -> list[bytes]:
        found = [body[a - start : None if b is None else b - start] for a, b in group]
        for (first, _), message in zip(group, found, strict=True):
            if not (message.startswith(b"GRIB") and message.endswith(b"7777")):
                raise _BrokenError(f"no whole GRIB message at byte {first}")
        return found

    try:
        return _attempt(data, url, lambda: split(_request(data, url, "GET", (start, stop))))
    except _AbsentError as error:
        raise SourceError(f"{url}: its index is there, the file is not ({error})") from None


def _get(data: OpenData, url: str, method: str = "GET") -> bytes:
    return _attempt(data, url, lambda: _request(data, url, method, None))


class _BrokenError(OSError):
    """An answer that is not what was asked for."""


def _attempt(data: OpenData, url: str, ask: Callable[[], _T]) -> _T:
    last: Exception | None = None
    for attempt in range(1, data.attempts + 1):
        try:
            return ask()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (403, 404, 410):
                raise _AbsentError(_said(error)) from None
            if error.code not in _AGAIN:
                raise SourceError(f"{url}: {_said(error)} (anonymous, attempt {attempt})") from error
            last = error
        except (OSError, http.client.HTTPException) as error:
            last = error
        if attempt < data.attempts:
            clock.sleep(data.pause * 2 ** (attempt - 1))
    raise SourceError(
        f"{url}: no answer after {data.attempts} attempts (anonymous); the last: {_said(last)}"
    ) from last


def _said(error: Exception | None) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return f"{type(error).__name__}: {getattr(error, 'reason', error)}"


def _request(data: OpenData, url: str, method: str, span: Span | None) -> bytes:
    headers = {"User-Agent": "wx-data"}
    if span is not None:
        headers["Range"] = f"bytes={span[0]}-" if span[1] is None else f"bytes={span[0]}-{span[1] - 1}"
    request = urllib.request.Request(url, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=data.timeout) as answer:
        if span is not None and answer.status != 206:
            raise SourceError(f"{url}: the server does not serve byte ranges (HTTP {answer.status})")
        body: bytes = answer.read()
    if span is not None and span[1] is not None and len(body) != span[1] - span[0]:
        raise _BrokenError(f"{len(body)} of {span[1] - span[0]} bytes")
    return body
