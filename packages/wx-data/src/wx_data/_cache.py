"""A cache of whole objects on local disk: bounded by bytes, shared by processes, checksummed."""

import asyncio
import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import struct
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from wx_data._objects import Fetched, RemoteStore, is_coordinate, is_metadata
from wx_data._shards import crc32c

_HEADER = struct.Struct("<8sQIH")  # magic, bytes of the object, their crc32c, bytes of the entity tag
_MAGIC = b"wxcache1"
_ABANDONED = 3600.0  # seconds after which an unfinished file belongs to a process that was killed
_KEEP = 0.9  # evict down to this share of the limit, so that not every object scans the folder


class ObjectCache:
    """Files below `folder` of at most `limit` bytes together; the least recently used leaves first."""

    def __init__(self, folder: str | Path, limit: int) -> None:
        # A folder of its own below the user's: what is in it may be deleted.
        self.folder, self.limit = Path(folder) / "wx-data-objects", limit
        self._verified: set[str] = set()
        self._warned = False

    def read(self, name: str, byte_range: ByteRequest | None) -> Fetched | None:
        """The object or a part of it; None if it is not there or damaged.

        A whole object is checked against its crc32c, as is the first part of it that a process reads; any
        further part against the length.
        """
        path = self._path(name)
        try:
            with open(path, "rb") as file:
                found = self._read(file.fileno(), name, byte_range)
            if found is None:
                path.unlink(missing_ok=True)
            else:
                os.utime(path)  # the time of last use
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        return found

    def _read(self, file: int, name: str, byte_range: ByteRequest | None) -> Fetched | None:
        head = os.pread(file, _HEADER.size, 0)
        if len(head) < _HEADER.size:
            return None
        magic, size, crc, tag = _HEADER.unpack(head)
        start = _HEADER.size + tag
        if magic != _MAGIC or os.fstat(file).st_size != start + size:
            return None
        etag = os.pread(file, tag, _HEADER.size).decode() or None
        if byte_range is not None and name in self._verified:
            first, last = _span(byte_range, size)
            return Fetched(_pread(file, last - first, start + first), etag)
        data = _pread(file, size, start)
        if crc32c(data) != crc:
            return None
        self._verified.add(name)
        return Fetched(_part(data, byte_range), etag)

    def write(self, name: str, data: bytes | memoryview, etag: str | None) -> None:
        """Keep an object, atomically, making room for it first. A full disk is a warning, not an error."""
        tag, data = (etag or "").encode(), bytes(data)
        size = _HEADER.size + len(tag) + len(data)
        if size > self.limit:
            return
        path = self._path(name)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._reserve(unfinished, size):
                return
            with open(unfinished, "r+b") as file:
                file.write(_HEADER.pack(_MAGIC, len(data), crc32c(data), len(tag)) + tag)
                file.write(data)
            with self._locked():  # a scan must find the file under one name or the other
                os.replace(unfinished, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"cache {self.folder}: {error}; reading goes on without it", stacklevel=2)

    def _reserve(self, unfinished: Path, size: int) -> bool:
        """Count `size` bytes in and create the file that will hold them, all under the lock."""
        with self._locked() as file:
            used = self._used(file) + size
            if used > self.limit:
                used = self._evict(size) + size
            if used > self.limit:  # what is left is being written by others
                return False
            with open(unfinished, "wb") as space:
                os.truncate(space.fileno(), size)
            os.pwrite(file, b"%-31d\n" % used, 0)
        return True

    def _used(self, file: int) -> int:
        known = os.pread(file, 32, 0).strip()
        return int(known) if known.isdigit() else sum(entry.size for entry in self._files())

    def _evict(self, room: int) -> int:
        """Delete the least recently used files; bytes that are left."""
        files = sorted(self._files(), key=lambda entry: entry.used)
        total = sum(entry.size for entry in files)
        target = min(_KEEP * self.limit, self.limit - room)
        for entry in files:
            if total <= target:
                break
            if entry.path.endswith(".part") and time.time() - entry.used < _ABANDONED:
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
            total -= entry.size
        return total

    def _files(self) -> "Iterator[_File]":
        for folder in os.scandir(self.folder):
            if not folder.is_dir():
                continue
            for entry in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    yield _File(entry.path, status.st_size, status.st_mtime)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        file = os.open(self.folder / "usage", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name[2:]


class _File(NamedTuple):
    path: str
    size: int
    used: float


class CachedStore(WrapperStore[RemoteStore]):
    """A remote store whose chunks are fetched whole, kept on disk and served in parts from there.

    Metadata and coordinates are fetched anew, since they grow; chunks are taken to be immutable unless
    `Remote.revalidate` is set.
    """

    def __init__(self, store: RemoteStore) -> None:
        super().__init__(store)
        remote = store.remote
        self.cache = ObjectCache(str(remote.cache), remote.cache_bytes)
        self._root = f"{remote.endpoint or ''} {store.url}"
        self._flights: dict[str, concurrent.futures.Future[Fetched | None]] = {}
        self._lock = threading.Lock()
        self._too_large: set[str] = set()

    def __reduce__(self) -> tuple[type["CachedStore"], tuple[RemoteStore]]:
        return type(self), (self._store,)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As Zarr's stores."""
        name = hashlib.sha256(f"{self._root} {key}".encode()).hexdigest()
        if is_metadata(key) or is_coordinate(key) or name in self._too_large:
            return await self._store.get(key, prototype, byte_range)
        found = await asyncio.to_thread(self.cache.read, name, byte_range)
        if found is None or self._store.remote.revalidate:
            answer = await self._fetch_once(key, name, None if found is None else found.etag)
            if answer is None:
                return None
            if answer.data is not None:
                return prototype.buffer.from_bytes(_part(answer.data, byte_range))
        assert found is not None
        assert found.data is not None
        self._store.traffic.add(hits=1, hit_bytes=len(found.data))
        return prototype.buffer.from_bytes(found.data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As Zarr's stores."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def _fetch_once(self, key: str, name: str, unless: str | None) -> Fetched | None:
        """The whole object; readers of several of its parts at a time share one request."""
        with self._lock:
            flight = self._flights.get(name)
            leads = flight is None
            if flight is None:
                flight = self._flights[name] = concurrent.futures.Future()
                flight.set_running_or_notify_cancel()  # no single reader may cancel it for the others
        if not leads:
            return await asyncio.wrap_future(flight)
        try:
            found = await self._store.fetch(key, unless=unless)
            if found is not None and found.data is not None:
                await self._keep(name, found.data, found.etag)
            flight.set_result(found)
        except BaseException as error:
            flight.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._flights[name]
        return found

    async def _keep(self, name: str, data: bytes | memoryview, etag: str | None) -> None:
        if len(data) > self.cache.limit:
            self._too_large.add(name)
        else:
            await asyncio.to_thread(self.cache.write, name, data, etag)


def _span(byte_range: ByteRequest, size: int) -> tuple[int, int]:
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, min(byte_range.end, size)
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, size
    return max(0, size - byte_range.suffix), size


def _part(data: bytes | memoryview, byte_range: ByteRequest | None) -> bytes | memoryview:
    if byte_range is None:
        return data
    first, last = _span(byte_range, len(data))
    return data[first:last]


def _pread(file: int, count: int, offset: int) -> bytes:
    """`os.pread` moves at most 2 GiB at a time."""
    parts = []
    while count > 0:
        part = os.pread(file, min(count, 1 << 30), offset)
        if not part:
            break
        parts.append(part)
        count, offset = count - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
