"""How remote stores are reached, and what that moved."""

import functools
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from wx_data._errors import SourceError

_SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "http", "https")


@dataclass(frozen=True, kw_only=True)
class Remote:
    """How to reach a remote store, for `open_source`.

    Attributes:
        anonymous: send unsigned requests, as public buckets want them. If False, credentials come from the
            environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`) or from the machine's role.
        endpoint: URL of a server that speaks the protocol of the URL's scheme, e.g. one's own S3 server.
        region: S3 only.
        timeout: seconds without a single byte after which a request has failed; a large object may take
            longer.
        connect_timeout: seconds until a connection must stand.
        retries: further attempts after a time-out, a dropped or truncated answer, or status 408, 429 or 5xx.
        max_wait: longest pause between two attempts in seconds; pauses double from 0.2 s, with jitter.
        requests: requests in flight; each holds its chunk in memory until it is decoded.
        cache: folder of a local cache of whole objects; None for no cache. Processes may share it.
        cache_bytes: size the cache never exceeds; what was used least recently goes first.
        revalidate: ask the server at every read whether a cached object has changed (one request without a
            body). Metadata and coordinates are always fetched anew.
    """

    anonymous: bool = True
    endpoint: str | None = None
    region: str | None = None
    timeout: float = 60.0
    connect_timeout: float = 10.0
    retries: int = 6
    max_wait: float = 20.0
    requests: int = 8
    cache: str | Path | None = None
    cache_bytes: int = 50 << 30
    revalidate: bool = False

    def __post_init__(self) -> None:
        for name in ("timeout", "connect_timeout", "max_wait", "requests", "cache_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Remote: {name} must be positive; got {getattr(self, name)}")
        if self.retries < 0:
            raise ValueError(f"Remote: retries must not be negative; got {self.retries}")


@dataclass(frozen=True)
class Traffic:
    """What a source has moved so far.

    Attributes:
        requests: requests sent to the server, repeated ones included.
        bytes: bytes of their bodies that arrived whole.
        retries: how many of the requests were repetitions.
        hits: reads served by the local cache.
        hit_bytes: bytes of these.
    """

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    hits: int = 0
    hit_bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        mine, theirs = asdict(self), asdict(other)
        return Traffic(**{name: mine[name] + theirs[name] for name in mine})


class TrafficCounter:
    """Adds up `Traffic` from several threads."""

    def __init__(self, total: Traffic = Traffic()) -> None:
        self._total, self._lock = total, threading.Lock()

    def __reduce__(self) -> tuple[type["TrafficCounter"], tuple[Traffic]]:
        return type(self), (self._total,)

    def add(self, **counts: int) -> None:
        """Add to the counts of these names."""
        with self._lock:
            self._total += Traffic(**counts)

    @property
    def total(self) -> Traffic:
        """The counts so far."""
        return self._total


def is_url(data: str) -> bool:
    """Whether `data` is a URL rather than a local path.

    Raises:
        ValueError: a URL of a scheme that is not supported.
    """
    scheme, found, _ = data.partition("://")
    if not found:
        return False
    if scheme not in _SCHEMES:
        raise ValueError(f"URLs begin with one of {', '.join(_SCHEMES)}; got {data!r}")
    return True


@functools.cache
def _first_process() -> int:
    return os.getpid()


def refuse_fork(url: str) -> None:
    """Refuse remote reads in a process forked from one that has made a client: they would hang.

    Raises:
        SourceError: this is such a process.
    """
    if _first_process() != os.getpid():
        raise SourceError(
            f"{url}: process {os.getpid()} was forked from process {_first_process()}, which has a client "
            "for remote stores; its connections do not survive a fork. Use threads, or start processes with "
            "the spawn or forkserver method"
        )
