"""Objects behind a URL (S3, Google Cloud, Azure, HTTP) as a read-only Zarr store."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from wx_data._errors import SourceError
from wx_data._remote import Remote, TrafficCounter, refuse_fork

_STATUS = re.compile(r"status code: (\d{3})")
_KIND = re.compile(r"kind: (Timeout|Connect|Interrupted|Request|Unknown)\b")
_FIRST_PAUSE = 0.2  # seconds
_COORDINATE = re.compile(r"[^/]+/(c[/.])?\d+")
_METADATA = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")


class Fetched(NamedTuple):
    """Bytes of an object and its entity tag; `data` is None where the server says "not modified"."""

    data: bytes | memoryview | None
    etag: str | None


def is_metadata(key: str) -> bool:
    """Whether a Zarr key names metadata, not a chunk."""
    return key.rpartition("/")[2] in _METADATA


def is_coordinate(key: str) -> bool:
    """Whether a Zarr key names a chunk of a one-dimensional array: coordinates, which grow in place."""
    return _COORDINATE.fullmatch(key) is not None


class RemoteStore(Store):
    """Read-only Zarr store of the objects below a URL.

    One client serves all threads. Every request is tried `1 + remote.retries` times. An object that is not
    there is None, as Zarr expects; any other failure is a `SourceError` with URL, attempts and last status.
    """

    def __init__(self, url: str, remote: Remote, traffic: TrafficCounter | None = None) -> None:
        super().__init__(read_only=True)
        refuse_fork(url)
        self.url, self.remote = url.rstrip("/"), remote
        self.traffic = traffic or TrafficCounter()
        self._client = _client(self.url, remote)
        self._jitter = random.Random()
        self._has_answered = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.remote, self.traffic)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and (self.url, self.remote) == (other.url, other.remote)

    def __hash__(self) -> int:
        return hash((self.url, self.remote))

    def __str__(self) -> str:
        return self.url

    async def fetch(
        self, key: str, byte_range: ByteRequest | None = None, *, unless: str | None = None
    ) -> Fetched | None:
        """An object or a part of it; None if there is no such object.

        Args:
            key: its key below the URL.
            byte_range: which part.
            unless: entity tag of a copy at hand; if it is still right, nothing is transferred.

        Raises:
            SourceError: every attempt failed.
        """
        options = _options(byte_range, unless)
        found: Fetched | None = await self._attempt(lambda: self._once(key, options, byte_range), key)
        return found

    async def _once(
        self, key: str, options: dict[str, Any], byte_range: ByteRequest | None
    ) -> Fetched | None:
        import obstore
        from obstore.exceptions import NotModifiedError, PermissionDeniedError

        try:
            answer = await obstore.get_async(self._client, key, options=options)  # type: ignore[arg-type]
            start, stop = answer.range
            data = memoryview(await answer.bytes_async())
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise SourceError(f"{self.url}: no such bucket ({self._access}); check the URL") from None
            return None
        except NotModifiedError:
            return Fetched(None, options["if_none_match"])
        except PermissionDeniedError:
            # S3 answers 403 for an absent object where the reader may not list the bucket.
            if is_metadata(key) and self._has_answered:
                return None
            raise
        if len(data) != stop - start or (byte_range is None and stop != answer.meta["size"]):
            raise _Truncated(f"{len(data)} of {stop - start} bytes arrived")
        self._has_answered = True
        self.traffic.add(bytes=len(data))
        return Fetched(data, answer.meta["e_tag"])

    async def _attempt(self, call: Callable[[], Awaitable[Any]], key: str) -> Any:
        from obstore.exceptions import BaseError

        refuse_fork(self.url)
        for attempt in range(1, self.remote.retries + 2):
            self.traffic.add(requests=1, retries=int(attempt > 1))
            try:
                return await call()
            except (BaseError, _Truncated, OSError) as error:
                if attempt > self.remote.retries or not _is_transient(error):
                    raise self._failure(key, error, attempt) from error
            pause = min(self.remote.max_wait, _FIRST_PAUSE * 2.0 ** (attempt - 1))
            await asyncio.sleep(pause * self._jitter.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    @property
    def _access(self) -> str:
        return "anonymous" if self.remote.anonymous else "signed"

    def _failure(self, key: str, error: Exception, attempts: int) -> SourceError:
        status = _status(error)
        last = f"last status {status}" if status else _cause(error, self.remote)
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        advice = self._advice(status, error)
        kind = Forbidden if status in (401, 403) else SourceError
        return kind(f"{self.url}/{key}: failed after {tries} ({self._access} access): {last}. {advice}")

    def _advice(self, status: int | None, error: Exception) -> str:
        if _lacks_ranges(error):
            return "The server cannot send parts of objects; Remote(cache=...) reads whole ones"
        if status in (401, 403) and self.remote.anonymous:
            return "The data are not public: pass remote=Remote(anonymous=False) and set credentials"
        if status in (401, 403):
            return "The credentials found in the environment do not allow this; check them"
        if status in (301, 307, 400) or "redirect" in str(error):
            return "Check the bucket's region and the endpoint in Remote"
        return "Check the URL, the endpoint and the network, or raise timeout and retries in Remote"

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As Zarr's stores."""
        found = await self.fetch(key, byte_range)
        return None if found is None or found.data is None else prototype.buffer.from_bytes(found.data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As Zarr's stores."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """As Zarr's stores."""
        return await self.fetch(key, RangeByteRequest(0, 1)) is not None

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """As Zarr's stores."""
        import obstore

        head = prefix.strip("/") + "/" if prefix.strip("/") else ""
        found = await self._attempt(
            lambda: obstore.list_with_delimiter_async(self._client, prefix=head or None), head
        )
        for path in (*found["common_prefixes"], *(item["path"] for item in found["objects"])):
            yield path.rstrip("/").removeprefix(head)

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """As Zarr's stores."""
        import obstore

        async def collect() -> list[str]:
            found = await obstore.list(self._client, prefix=prefix or None).collect_async()
            return [item["path"] for item in found]

        for path in await self._attempt(collect, prefix):
            yield path

    async def list(self) -> AsyncIterator[str]:
        """As Zarr's stores."""
        async for path in self.list_prefix(""):
            yield path

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Refused: the store is read-only."""
        raise SourceError(f"{self.url} is opened for reading only")

    async def delete(self, key: str) -> None:  # noqa: ARG002
        """Refused: the store is read-only."""
        raise SourceError(f"{self.url} is opened for reading only")

    supports_writes = False
    supports_deletes = False
    supports_partial_writes = False
    supports_listing = True


class Forbidden(SourceError):
    """Status 401 or 403, which some servers also answer for objects that are not there."""


class _Truncated(Exception):
    """Fewer bytes than announced."""


def _client(url: str, remote: Remote) -> Any:
    try:
        from obstore import store as stores
        from obstore.exceptions import BaseError
    except ImportError as error:
        raise ImportError(f"{url}: remote stores need obstore; pip install 'wx-data[remote]'") from error
    parts = urlsplit(url)
    config: dict[str, Any] = {"skip_signature": True} if remote.anonymous else {}
    if remote.endpoint is not None:
        config["base_url" if parts.scheme == "gs" else "endpoint"] = remote.endpoint
    if remote.region is not None and parts.scheme == "s3":
        config["region"] = remote.region
    # The library limits a whole request to 30 s by default, which a 100 MB chunk exceeds on a slow line.
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=remote.connect_timeout),
        "read_timeout": timedelta(seconds=remote.timeout),
        "timeout": timedelta(days=1),
        "allow_http": "http" in (parts.scheme, urlsplit(remote.endpoint or "").scheme),
        "pool_max_idle_per_host": str(remote.requests),
    }
    once: dict[str, Any] = {"max_retries": 0, "retry_timeout": timedelta(0)}
    if parts.scheme in ("http", "https"):
        if not remote.anonymous:
            raise ValueError(f"{url}: signed requests need an s3://, gs:// or az:// URL")
        return stores.HTTPStore(url, client_options=options, retry_config=once)  # type: ignore[arg-type]
    try:
        return stores.from_url(url, config=config, client_options=options, retry_config=once)  # type: ignore
    except BaseError as error:
        raise ValueError(f"{url}: {_cause(error, remote)}") from error


def _options(byte_range: ByteRequest | None, unless: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {} if unless is None else {"if_none_match": unless}
    if isinstance(byte_range, RangeByteRequest):
        options["range"] = (byte_range.start, byte_range.end)
    elif isinstance(byte_range, OffsetByteRequest):
        options["range"] = {"offset": byte_range.offset}
    elif byte_range is not None:
        options["range"] = {"suffix": byte_range.suffix}
    return options


def _status(error: Exception) -> int | None:
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    if isinstance(error, PermissionDeniedError):
        return 403
    if isinstance(error, UnauthenticatedError):
        return 401
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _is_transient(error: Exception) -> bool:
    from obstore.exceptions import GenericError

    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    if _lacks_ranges(error) or "redirect" in str(error):
        return False
    return isinstance(error, (GenericError, _Truncated, OSError))


def _lacks_ranges(error: Exception) -> bool:
    return any(name in str(error) for name in ("NotPartial", "RangeNotSupported"))


def _cause(error: Exception, remote: Remote) -> str:
    """One line in place of the library's chain of causes and its debug form."""
    found = _KIND.search(str(error))
    match found[1] if found else "":
        case "Timeout":
            return f"no byte came for {remote.timeout:g} s, or no connection for {remote.connect_timeout:g} s"
        case "Connect":
            return "no connection: refused, or no such host"
        case "Interrupted":
            return "the connection broke off before the body was complete"
        case "Request" | "Unknown":
            return "the connection broke off before an answer came"
    return " ".join(str(error).split("\n\nDebug source:")[0].split())[:300]
