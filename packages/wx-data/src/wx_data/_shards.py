"""One time step as one Zarr v3 shard: encoded and decoded here, without zarr-python in between.

A shard holds `fields` blocks of (channel, latitude, longitude), each cut into latitude bands. Every band is
an inner chunk ``bytes -> blosc(lz4, shuffle) -> crc32c``, or ``bytes -> crc32c`` uncompressed; the index of
(offset, size) pairs and its own crc32c stand at the end of the file (Zarr v3 specification, sharding codec
1.0). zarr-python reads and writes the same bytes.

Reading is bound by memory traffic, so every value is moved as seldom as possible: a compressed band is
decoded into a buffer that stays in the processor's cache and leaves it selected and scaled; an uncompressed
one is scattered by the kernel straight into the caller's array.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from typing import Any, Literal, NamedTuple, get_args

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

Field = NDArray[np.float32]
Compression = Literal["lz4", "lz4hc", "none"]
_Bytes = NDArray[np.uint8]

_CRC = 4
_ENTRY = 16
_BLOSC_HEADER = 16
_WHOLE_FILE = 1 << 20  # below this size one read of the whole file beats one read per band
_GROUP_BYTES = 512 << 10
_MAX_SEGMENTS = 1024  # IOV_MAX of Linux and macOS
_ABSENT = np.uint64(2**64 - 1)


class ShardError(ValueError):
    """A shard is missing, truncated or damaged; the caller adds which time step it is."""


def crc32c(data: Any) -> int:
    """CRC-32C (Castagnoli) of a contiguous buffer."""
    return int(google_crc32c.value(data))


@dataclass(frozen=True, kw_only=True)
class ShardCodec:
    """Shape of a shard: `fields` x `channels` x `rows` x `columns` float32, in bands of `band` rows.

    `dims` name what follows the channel in the array: where it is one dimension, of cells, these are rows of
    one column.
    `compression` is "lz4" or "lz4hc" (blosc with byte shuffle; the latter packs slowly and reads faster) or
    "none".
    """

    channels: int
    rows: int
    columns: int
    band: int
    fields: int = 1
    level: int = 5
    compression: Compression = "lz4"
    dims: tuple[str, ...] = ("latitude", "longitude")

    def __post_init__(self) -> None:
        if self.compression not in get_args(Compression):
            raise ValueError(f"compression must be one of {get_args(Compression)}; got {self.compression!r}")
        for name in ("channels", "rows", "columns", "band", "fields"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.band > self.rows:
            raise ValueError(f"band ({self.band} rows) is higher than the grid ({self.rows} rows)")

    @property
    def bands(self) -> int:
        """Inner chunks per field."""
        return -(-self.rows // self.band)

    @property
    def padded_rows(self) -> int:
        """Rows of the shard: the last band is padded, since inner chunks must divide it evenly."""
        return self.bands * self.band

    @property
    def key_tail(self) -> str:
        """What ends the Zarr key of a shard: it holds all channels and all points."""
        return ".0" * (1 + len(self.dims))

    def extent(self, rows: int) -> list[int]:
        """Lengths of the dimensions from the channel on, of so many rows."""
        return [self.channels, rows, self.columns][: 1 + len(self.dims)]

    @property
    def band_bytes(self) -> int:
        """Decoded bytes of an inner chunk."""
        return 4 * self.channels * self.band * self.columns

    @property
    def index_size(self) -> int:
        """Bytes of the index at the end of the file, its checksum included."""
        return self.fields * self.bands * _ENTRY + _CRC

    def encode(self, values: Field) -> bytes:
        """Bytes of the shard of (fields, channels, rows, columns): the same bytes for the same values.

        Raises:
            ValueError: values of another shape.
        """
        if values.shape != (self.fields, self.channels, self.rows, self.columns):
            raise ValueError(f"shard of {self} cannot hold values of shape {values.shape}")
        if threading.current_thread() is threading.main_thread():
            # There blosc would use several threads and interleave their blocks in the order they finish.
            with ThreadPoolExecutor(1, thread_name_prefix="wx-encode") as pool:
                return pool.submit(self._encode, values).result()
        return self._encode(values)

    def _encode(self, values: Field) -> bytes:
        parts, entries, offset = [], [], 0
        for field in values:
            for start in range(0, self.rows, self.band):
                chunk = self._encode_band(field[:, start : start + self.band])
                parts.append(chunk)
                entries.append((offset, len(chunk)))
                offset += len(chunk)
        index = np.array(entries, dtype="<u8").tobytes()
        return b"".join((*parts, index, crc32c(index).to_bytes(_CRC, "little")))

    def _encode_band(self, rows: Field) -> bytes:
        if rows.shape[1] < self.band:
            full = np.full((self.channels, self.band, self.columns), np.nan, dtype=np.float32)
            full[:, : rows.shape[1]] = rows
            rows = full
        data = np.ascontiguousarray(rows, dtype="<f4")
        if self.compression == "none":
            packed = data.tobytes()
        else:
            packed = blosc.compress(data, self.compression.encode(), self.level, blosc.SHUFFLE, 0)
        return packed + crc32c(packed).to_bytes(_CRC, "little")

    def codec_metadata(self, *, leading: int) -> list[dict[str, Any]]:
        """The `codecs` entry of zarr.json, for an array with `leading` dimensions before the channel."""
        plain: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
        checksum: dict[str, Any] = {"name": "crc32c"}
        packer: dict[str, Any] = {
            "name": "blosc",
            "configuration": {
                "typesize": 4,
                "cname": self.compression,
                "clevel": self.level,
                "shuffle": "shuffle",
                "blocksize": 0,
            },
        }
        configuration = {
            "chunk_shape": [*[1] * leading, *self.extent(self.band)],
            "codecs": [plain, checksum] if self.compression == "none" else [plain, packer, checksum],
            "index_codecs": [plain, checksum],
            "index_location": "end",
        }
        return [{"name": "sharding_indexed", "configuration": configuration}]


class Scale(NamedTuple):
    """Read values become (value - `offset`) * `factor`; both are float32 (channels read, 1, 1)."""

    offset: Field
    factor: Field


class ShardReader:
    """Reads fields, or only the bands that hold some rows, into arrays of the caller.

    Buffers are reused per thread; the interpreter lock is released while the kernel copies and blosc decodes.
    """

    def __init__(self, codec: ShardCodec) -> None:
        self.codec = codec
        self._local = threading.local()

    def read(
        self,
        path: str,
        out: Field,
        *,
        rows: tuple[int, int] | None = None,
        channels: Sequence[int] | None = None,
        scale: Scale | None = None,
        field: int = 0,
        size: int | None = None,
    ) -> None:
        """Decode rows [start, stop) of one field into `out` (channels, stop - start, columns).

        Args:
            path: file of the shard.
            out: float32 array to fill.
            rows: rows wanted; None for all.
            channels: positions of the channels wanted, in the order of `out`; None for all.
            scale: applied to what is read.
            field: which field of the shard.
            size: bytes that the file must have, where a manifest knows.

        Raises:
            ShardError: missing or truncated file, or a checksum that does not match.
        """
        start, stop = rows or (0, self.codec.rows)
        if channels is not None and len(set(channels)) < len(channels):
            raise ValueError(f"the channels of one read must differ; got {list(channels)}")
        with _open(path) as file:
            found = os.fstat(file.fileno()).st_size
            if found < self.codec.index_size or (size is not None and found != size):
                expected = size if size is not None else f"at least {self.codec.index_size}"
                raise ShardError(f"truncated or replaced: {expected} bytes expected, {found} found")
            shard = _Shard(file, found, self)
            for band, place in enumerate(shard.index(field)):
                first = band * self.codec.band
                low, high = max(start, first), min(stop, first + self.codec.band)
                if low < high:
                    target = out[:, low - start : high - start]
                    shard.band(place, (low - first, high - first), target, channels, scale)

    @property
    def scratch_bytes(self) -> int:
        """Memory of the buffers of one thread at most: a decoded band, and the bytes it is decoded from."""
        packed = max(self.codec.band_bytes + _BLOSC_HEADER + _CRC, _WHOLE_FILE)
        return self.codec.band_bytes + packed + packed // 4

    def scratch(self, size: int) -> _Bytes:
        """This thread's byte buffer, at least `size` long."""
        held: _Bytes | None = getattr(self._local, "bytes", None)
        if held is None or held.size < size:
            held = np.empty(size + size // 4, dtype=np.uint8)
            self._local.bytes = held
        return held[:size]

    def floats(self) -> Field:
        """This thread's buffer of one decoded band."""
        held: Field | None = getattr(self._local, "floats", None)
        if held is None:
            held = np.empty((self.codec.channels, self.codec.band, self.codec.columns), dtype="<f4")
            self._local.floats = held
        return held


class _Shard:
    """An open shard file: checks what it hands out."""

    def __init__(self, file: FileIO, size: int, reader: ShardReader) -> None:
        self.file, self.size, self.reader, self.codec = file, size, reader, reader.codec
        self.whole = self._fetch(0, size) if size <= _WHOLE_FILE else None

    def index(self, field: int) -> list[list[int]]:
        """(offset, size) of the bands of a field."""
        length = self.codec.index_size
        raw = self._bytes(self.size - length, length)
        _check(raw, "index")
        bands = self.codec.bands
        found: list[list[int]] = raw[:-_CRC].view("<u8").reshape(-1, 2)[field * bands :][:bands].tolist()
        return found

    def band(
        self,
        place: Sequence[int],
        rows: tuple[int, int],
        target: Field,
        channels: Sequence[int] | None,
        scale: Scale | None,
    ) -> None:
        """Put rows [start, stop) of the inner chunk at `place` = (offset, size) into `target`."""
        offset, size = place
        if offset == int(_ABSENT):
            raise ShardError("an inner chunk is absent, so its values were never written")
        if size < _BLOSC_HEADER + _CRC or offset + size > self.size:
            raise ShardError(f"index points to bytes {offset}..{offset + size} of {self.size}")
        codec = self.codec
        if codec.compression == "none" and self.whole is None and target[0].flags.c_contiguous:
            self._scatter(offset, size, rows, target, channels)
            source, channels = target, None
        elif channels is None and target.nbytes == codec.band_bytes and target.flags.c_contiguous:
            self._decode(offset, size, target)
            source = target
        else:
            source = self.reader.floats()
            self._decode(offset, size, source)
            source = source[:, slice(*rows)]
        _move(source, target, channels, scale)

    def _bytes(self, offset: int, size: int) -> _Bytes:
        return self.whole[offset : offset + size] if self.whole is not None else self._fetch(offset, size)

    def _fetch(self, offset: int, size: int) -> _Bytes:
        buffer = self.reader.scratch(size)
        _read_into(self.file, [buffer.data], offset)
        return buffer

    def _decode(self, offset: int, size: int, out: Field) -> None:
        """Decode a whole inner chunk into a contiguous array."""
        raw = self._bytes(offset, size)
        _check(raw, "inner chunk")
        data, none = raw[:-_CRC], self.codec.compression == "none"
        self._check_size(data.size if none else int(data[:_BLOSC_HEADER].view("<u4")[1]))
        if none:
            out.reshape(-1)[:] = data.view("<f4")
        else:
            blosc.decompress(data, out)

    def _scatter(
        self, offset: int, size: int, rows: tuple[int, int], target: Field, channels: Sequence[int] | None
    ) -> None:
        """Read an uncompressed inner chunk; what `target` does not want goes into the thread's buffer."""
        self._check_size(size - _CRC)
        rest = self.reader.floats()
        places = range(len(target)) if channels is None else _places(channels, self.codec.channels)
        whole = rows == (0, self.codec.band)
        segments: list[Field] = []
        for channel, place in enumerate(places):
            if place is None:
                segments.append(rest[channel])
            elif whole:
                segments.append(target[place])
            else:
                parts = (rest[channel, : rows[0]], target[place], rest[channel, rows[1] :])
                segments += [part for part in parts if part.size]
        found = 0
        # In groups, so that the checksum finds them in the processor's cache.
        for group in _groups(segments, _GROUP_BYTES):
            _read_into(self.file, [part.data for part in group], offset)
            for part in group:
                offset += part.nbytes
                found = google_crc32c.extend(found, part)
        stored = self._fetch(offset, _CRC)
        _compare(int.from_bytes(stored, "little"), found, "inner chunk")

    def _check_size(self, found: int) -> None:
        if found != self.codec.band_bytes:
            raise ShardError(f"inner chunk decodes to {found} bytes, expected {self.codec.band_bytes}")


def _groups(segments: Sequence[Field], size: int) -> Iterator[Sequence[Field]]:
    """Runs of neighbouring segments of about `size` bytes."""
    start, total = 0, 0
    for stop, segment in enumerate(segments, 1):
        total += segment.nbytes
        if total >= size or stop == len(segments):
            yield segments[start:stop]
            start, total = stop, 0


def _places(channels: Sequence[int], count: int) -> list[int | None]:
    """Where each of `count` stored channels goes."""
    places: list[int | None] = [None] * count
    for place, channel in enumerate(channels):
        places[channel] = place
    return places


def _move(source: Field, target: Field, channels: Sequence[int] | None, scale: Scale | None) -> None:
    """Copy channels of `source` into `target`, scaled; the two may be the same array."""
    if channels is not None:
        for place, channel in enumerate(channels):
            one = None if scale is None else Scale(scale.offset[place], scale.factor[place])
            _move(source[channel], target[place], None, one)
    elif scale is not None:
        np.subtract(source, scale.offset, out=target)
        np.multiply(target, scale.factor, out=target)
    elif source is not target:
        np.copyto(target, source)


def _read_into(file: FileIO, segments: list[memoryview], offset: int) -> None:
    """Fill `segments` one after the other from byte `offset` of the file."""
    while segments:
        got = os.preadv(file.fileno(), segments[:_MAX_SEGMENTS], offset)
        if not got:
            raise ShardError(f"truncated: the file ended at byte {offset}")
        offset += got
        while segments and got >= segments[0].nbytes:
            got -= segments.pop(0).nbytes
        if got:
            segments[0] = segments[0].cast("B")[got:]


def _open(path: str) -> FileIO:
    try:
        return FileIO(path)
    except FileNotFoundError:
        raise ShardError("the file is missing") from None


def _check(raw: _Bytes, what: str) -> None:
    _compare(int.from_bytes(raw[-_CRC:].tobytes(), "little"), crc32c(raw[:-_CRC]), what)


def _compare(stored: int, found: int, what: str) -> None:
    if stored != found:
        raise ShardError(
            f"checksum of the {what} does not match: {stored:#010x} stored, {found:#010x} computed"
        )
