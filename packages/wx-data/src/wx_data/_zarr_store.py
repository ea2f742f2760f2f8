"""Zarr stores near and far as datasets: absent and truncated chunks are errors."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import xarray as xr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, WrapperStore

from wx_data._cache import CachedStore
from wx_data._errors import SourceError
from wx_data._objects import Forbidden, RemoteStore, is_coordinate, is_metadata
from wx_data._remote import Remote


class GuardedStore(WrapperStore[Store]):
    """A Zarr store for which an absent chunk is an error.

    Metadata of the root and coordinates are read once: opening asks for them several times. Coordinates may
    be absent where they equal the fill value; checks of the axes find what is really missing.
    """

    def __init__(self, store: Store, name: str, missing_chunks: Literal["error", "fill"] = "error") -> None:
        super().__init__(store)
        self.name, self.missing_chunks = name, missing_chunks
        self.forbidden: Forbidden | None = None
        self.blosc: frozenset[str] = frozenset()  # arrays each of whose chunks is one Blosc buffer
        self._known: dict[str, bytes | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._store, self.name, self.missing_chunks, self.blosc)

    def root(self, key: str) -> bytes | None:
        """A metadata object of the root, read once."""
        try:
            found = sync(self.get(key, default_buffer_prototype()))
        except Forbidden as error:
            self.forbidden, found = error, None
        self._known[key] = None if found is None else found.to_bytes()
        return self._known[key]

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As Zarr's stores, but a chunk that is not there raises."""
        if key in self._known and byte_range is None:
            known = self._known[key]
            return None if known is None else prototype.buffer.from_bytes(known)
        found = await self._store.get(key, prototype, byte_range)
        if found is None and self.missing_chunks == "error" and _is_field(key):
            raise SourceError(
                f"{self.name}: chunk {key} is missing; Zarr would read it as fill values. "
                'missing_chunks="fill" accepts that, for stores whose writer left out chunks of fill values'
            )
        if byte_range is None and is_coordinate(key):
            self._known[key] = None if found is None else found.to_bytes()
        if found is not None and byte_range is None and key.partition("/")[0] in self.blosc:
            self._check_blosc(key, found)
        return found

    def _check_blosc(self, key: str, found: Buffer) -> None:
        """Blosc decodes a truncated buffer by reading on behind its end."""
        if is_metadata(key):
            return
        head, size = found[12:16].to_bytes(), len(found)  # bytes of the buffer, in its header
        expected = int.from_bytes(head, "little") if len(head) == 4 else 16
        if size != expected:
            raise SourceError(
                f"{self.name}: chunk {key} has {size} bytes, {expected} expected; it is truncated"
            )

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As Zarr's stores."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]


def _restore(store: Store, name: str, missing_chunks: Any, blosc: frozenset[str]) -> GuardedStore:
    source = GuardedStore(store, name, missing_chunks)
    source.blosc = blosc
    return source


def _is_field(key: str) -> bool:
    return not is_metadata(key) and not is_coordinate(key)


class OpenedZarr(NamedTuple):
    """A Zarr store as a dataset; `remote` if it came over the network."""

    dataset: xr.Dataset
    name: str
    remote: RemoteStore | None


def open_zarr(
    data: Any, remote: Remote | None, missing_chunks: Literal["error", "fill"], *, careful: bool
) -> OpenedZarr:
    """Open a folder, a URL or a Zarr store object.

    Args:
        data: which.
        remote: how to reach a URL.
        missing_chunks: what to do about chunks that are not there.
        careful: ask whether cached chunks have changed, since ERA5T is replaced in place by final ERA5.

    Raises:
        SourceError: no Zarr store there, or it cannot be reached.
    """
    far: RemoteStore | None = None
    store: Store
    if isinstance(data, Path):
        store, name = LocalStore(data, read_only=True), data.name
    elif isinstance(data, str):
        remote = remote or Remote()
        far = RemoteStore(data, replace(remote, revalidate=remote.revalidate or careful))
        store, name = far if remote.cache is None else CachedStore(far), far.url
    elif isinstance(data, Store):
        store, name = data if data.read_only else data.with_read_only(True), str(data)
    else:
        raise TypeError(f"expected a path, a URL, a Zarr store or an xarray object; got {type(data)}")
    return OpenedZarr(_dataset(GuardedStore(store, name, missing_chunks), far), name, far)


def _dataset(guarded: GuardedStore, remote: RemoteStore | None) -> xr.Dataset:
    version, consolidated = _zarr_format(guarded, remote)
    try:
        dataset: xr.Dataset = xr.open_zarr(
            guarded, chunks=None, consolidated=consolidated, zarr_format=version, decode_timedelta=True
        )
    except SourceError as error:
        if consolidated:
            raise
        raise SourceError(
            f"{error}. The store's metadata are not consolidated: the server must list"
        ) from error
    guarded.blosc = frozenset(str(key) for key, array in dataset.variables.items() if _is_blosc(array))
    return dataset


def _is_blosc(array: xr.Variable) -> bool:
    last = (array.encoding.get("compressors") or (None,))[-1]
    return array.encoding.get("shards") is None and "blosc" in type(last).__name__.lower()


def _zarr_format(store: GuardedStore, remote: RemoteStore | None) -> tuple[Literal[2, 3], bool]:
    """Format and whether metadata are consolidated, from the objects at the root: names say nothing."""
    group = store.root("zarr.json")
    if group is not None:
        return 3, json.loads(group).get("consolidated_metadata") is not None
    if store.root(".zmetadata") is not None:
        return 2, True
    if store.root(".zgroup") is not None:
        return 2, False
    if store.forbidden is not None:
        raise store.forbidden
    raise SourceError(
        f"{store.name} is not a Zarr store: no zarr.json, .zmetadata or .zgroup there"
        f"{_listing(store, remote)}"
    )


def _listing(store: GuardedStore, remote: RemoteStore | None) -> str:
    """What is at the root instead, where the server tells."""

    async def names() -> list[str]:
        return [name async for name in store.list_dir("")]

    try:
        found = sorted(sync(names()))[:8]
    except (SourceError, OSError):
        return ""
    if not found and remote is not None:
        return "; nothing is below this URL"
    return f"; found {found}"
