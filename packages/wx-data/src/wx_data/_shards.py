"""One time step as one Zarr v3 shard: encoded and decoded here, without zarr-python in between.

A shard holds `fields` blocks of (channel, latitude, longitude), each cut into latitude bands. Every band is
an inner chunk ``bytes -> blosc(lz4, shuffle) -> crc32c``; the index of (offset, size) pairs and its own
crc32c stand at the end of the file (Zarr v3 specification, sharding codec 1.0). zarr-python reads and writes
the same bytes.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

Field = NDArray[np.float32]
_Bytes = NDArray[np.uint8]

_CRC = 4
_ENTRY = 16
_BLOSC_HEADER = 16
_WHOLE_FILE = 1 << 20  # below this size one read of the whole file beats one read per band
_ABSENT = np.uint64(2**64 - 1)


class ShardError(ValueError):
    """A shard is missing, truncated or damaged; the caller adds which time step it is."""


def crc32c(data: Any) -> int:
    """CRC-32C (Castagnoli) of a contiguous buffer."""
    return int(google_crc32c.value(data))


@dataclass(frozen=True, kw_only=True)
class ShardCodec:
    """Shape of a shard: `fields` x `channels` x `rows` x `columns` float32, in bands of `band` rows."""

    channels: int
    rows: int
    columns: int
    band: int
    fields: int = 1
    level: int = 5

    def __post_init__(self) -> None:
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
        packed: bytes = blosc.compress(data, b"lz4", self.level, blosc.SHUFFLE, 0)
        return packed + crc32c(packed).to_bytes(_CRC, "little")

    def codec_metadata(self, *, leading: int) -> list[dict[str, Any]]:
        """The `codecs` entry of zarr.json, for an array with `leading` dimensions before the channel."""
        inner: list[dict[str, Any]] = [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {
                "name": "blosc",
                "configuration": {
                    "typesize": 4,
                    "cname": "lz4",
                    "clevel": self.level,
                    "shuffle": "shuffle",
                    "blocksize": 0,
                },
            },
            {"name": "crc32c"},
        ]
        configuration = {
            "chunk_shape": [*[1] * leading, self.channels, self.band, self.columns],
            "codecs": inner,
            "index_codecs": [inner[0], inner[2]],
            "index_location": "end",
        }
        return [{"name": "sharding_indexed", "configuration": configuration}]


class ShardReader:
    """Reads fields, or only the bands that hold some rows, into arrays of the caller.

    Buffers are reused per thread; reading releases the interpreter lock while blosc decodes.
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
        field: int = 0,
        size: int | None = None,
    ) -> None:
        """Decode rows [start, stop) of one field into `out` (channels, stop - start, columns).

        Args:
            path: file of the shard.
            out: float32 array to fill.
            rows: rows wanted; None for all.
            field: which field of the shard.
            size: bytes that the file must have, where a manifest knows.

        Raises:
            ShardError: missing or truncated file, or a checksum that does not match.
        """
        start, stop = rows or (0, self.codec.rows)
        with _open(path) as file:
            found = os.fstat(file.fileno()).st_size
            if found < self.codec.index_size or (size is not None and found != size):
                expected = size if size is not None else f"at least {self.codec.index_size}"
                raise ShardError(f"truncated or replaced: {expected} bytes expected, {found} found")
            self._read_bands(_Shard(file, found, self), out, start, stop, field)

    def _read_bands(self, shard: "_Shard", out: Field, start: int, stop: int, field: int) -> None:
        codec = self.codec
        index = shard.index()
        direct = start == 0 and stop == codec.rows == codec.band and out.flags.c_contiguous
        for band in range(start // codec.band, -(-stop // codec.band)):
            offset, size = index[field * codec.bands + band]
            chunk = shard.chunk(offset, size)
            if direct:
                blosc.decompress(chunk, out)
                return
            decoded = self.floats()
            blosc.decompress(chunk, decoded)
            first = band * codec.band
            low, high = max(start, first), min(stop, first + codec.band)
            out[:, low - start : high - start] = decoded[:, low - first : high - first]

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
        self.file, self.size, self.reader = file, size, reader
        self.whole = self._fetch(0, size) if size <= _WHOLE_FILE else None

    def _fetch(self, offset: int, size: int) -> _Bytes:
        buffer = self.reader.scratch(size)
        self.file.seek(offset)
        got = 0
        while got < size:
            more = self.file.readinto(buffer[got:].data)
            if not more:
                raise ShardError(f"truncated: the file ended at byte {offset + got}")
            got += more
        return buffer

    def _bytes(self, offset: int, size: int) -> _Bytes:
        return self.whole[offset : offset + size] if self.whole is not None else self._fetch(offset, size)

    def index(self) -> list[tuple[int, int]]:
        length = self.reader.codec.index_size
        raw = self._bytes(self.size - length, length)
        _check(raw, "index")
        pairs: list[list[int]] = raw[:-_CRC].view("<u8").reshape(-1, 2).tolist()
        return [(offset, size) for offset, size in pairs]

    def chunk(self, offset: int, size: int) -> _Bytes:
        """Compressed bytes of an inner chunk, its checksum verified and removed."""
        if offset == int(_ABSENT):
            raise ShardError("an inner chunk is absent, so its values were never written")
        if size < _BLOSC_HEADER + _CRC or offset + size > self.size:
            raise ShardError(f"index points to bytes {offset}..{offset + size} of {self.size}")
        raw = self._bytes(offset, size)
        _check(raw, "inner chunk")
        header = raw[:_BLOSC_HEADER].view("<u4")
        codec = self.reader.codec
        expected = 4 * codec.channels * codec.band * codec.columns
        if int(header[1]) != expected:
            raise ShardError(f"inner chunk decodes to {int(header[1])} bytes, expected {expected}")
        return raw[:-_CRC]


def _open(path: str) -> FileIO:
    try:
        return FileIO(path)
    except FileNotFoundError:
        raise ShardError("the file is missing") from None


def _check(raw: _Bytes, what: str) -> None:
    stored = int.from_bytes(raw[-_CRC:].tobytes(), "little")
    found = crc32c(raw[:-_CRC])
    if stored != found:
        raise ShardError(
            f"checksum of the {what} does not match: {stored:#010x} stored, {found:#010x} computed"
        )
