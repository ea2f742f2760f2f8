"""Zarr v3 metadata and small coordinate arrays, written as plain files with atomic renames.

zarr.json of the group carries the consolidated metadata inline, as xarray and zarr-python expect it.
"""

import json
import os
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wx_data._shards import ShardCodec

Metadata = dict[str, Any]
_BYTES: list[Metadata] = [{"name": "bytes", "configuration": {"endian": "little"}}]
_FILL: dict[str, Any] = {"float32": "NaN", "float64": "NaN", "string": ""}


@dataclass(frozen=True)
class SmallArray:
    """An array kept in one chunk: numbers, or text."""

    values: NDArray[Any] | Sequence[str]
    dims: tuple[str, ...]
    attributes: Mapping[str, Any]

    def metadata(self) -> Metadata:
        """Its zarr.json."""
        text = not isinstance(self.values, np.ndarray)
        shape = [len(self.values)] if text else list(np.asarray(self.values).shape)
        kind = "string" if text else np.asarray(self.values).dtype.name
        codecs = [{"name": "vlen-utf8", "configuration": {}}] if text else _BYTES
        return _array(kind, shape, shape, codecs, self.dims, self.attributes)

    def encode(self) -> bytes:
        """The bytes of its chunk."""
        if isinstance(self.values, np.ndarray):
            return np.ascontiguousarray(self.values).astype(self.values.dtype.newbyteorder("<")).tobytes()
        words = [word.encode() for word in self.values]
        return struct.pack("<I", len(words)) + b"".join(struct.pack("<I", len(w)) + w for w in words)


def sharded_metadata(
    codec: ShardCodec, leading: Mapping[str, tuple[int, int]], attributes: Mapping[str, Any]
) -> Metadata:
    """zarr.json of a sharded field array.

    Args:
        codec: shape of a shard.
        leading: dimension name -> (length, length within one shard) before the channel.
        attributes: attributes of the array.
    """
    shape = [length for length, _ in leading.values()] + codec.extent(codec.rows)
    shard = [part for _, part in leading.values()] + codec.extent(codec.padded_rows)
    dims = (*leading, "channel", *codec.dims)
    return _array("float32", shape, shard, codec.codec_metadata(leading=len(leading)), dims, attributes)


def write_group(
    root: Path, attributes: Mapping[str, Any], small: Mapping[str, SmallArray], large: Mapping[str, Metadata]
) -> None:
    """Write a group with its small arrays and the metadata of its large ones; the group's zarr.json last."""
    members = {name: array.metadata() for name, array in small.items()} | dict(large)
    for name, metadata in members.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        write_json(root / name / "zarr.json", metadata)
    for name, array in small.items():
        key = "c" + "".join(".0" for _ in array.dims)
        write_atomic(root / name / key, array.encode())
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": plain_attributes(attributes),
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": members},
    }
    write_json(root / "zarr.json", group)


def plain_attributes(attributes: Mapping[str, Any]) -> Metadata:
    """Attributes that NetCDF can hold as well: tables, empty lists and truth values become JSON text."""

    def plain(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return bool(value) and all(isinstance(item, (int, float, str)) for item in value)
        return isinstance(value, (int, float, str)) and not isinstance(value, bool)

    return {name: value if plain(value) else json.dumps(value) for name, value in attributes.items()}


def read_group(root: Path) -> Metadata:
    """The group's zarr.json.

    Raises:
        FileNotFoundError: there is none.
    """
    found: Metadata = json.loads((root / "zarr.json").read_text())
    return found


def read_small(root: Path, name: str, metadata: Metadata) -> NDArray[Any] | tuple[str, ...]:
    """A `SmallArray` back from its chunk."""
    data = (root / name / ("c" + ".0" * len(metadata["shape"]))).read_bytes()
    if metadata["data_type"] != "string":
        kind = np.dtype(metadata["data_type"]).newbyteorder("<")
        return np.frombuffer(data, kind).reshape(metadata["shape"]).astype(kind.newbyteorder("="))
    words, at = [], 4
    for _ in range(struct.unpack_from("<I", data)[0]):
        (length,) = struct.unpack_from("<I", data, at)
        words.append(data[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return tuple(words)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False).encode())


def write_atomic(path: Path | str, data: bytes, *, temporary: Path | None = None) -> None:
    """Write a whole file or nothing: into a temporary one in the same file system, then rename.

    Args:
        path: final place.
        data: content.
        temporary: folder for the unfinished file; the target's own by default.
    """
    path = Path(path)
    unfinished = (temporary or path.parent) / f".{path.name}.{os.getpid()}.{threading.get_ident()}.part"
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _array(
    kind: str,
    shape: list[int],
    chunk: list[int],
    codecs: list[Metadata],
    dims: Sequence[str],
    attributes: Mapping[str, Any],
) -> Metadata:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": kind,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, n) for n in chunk]}},
        # One flat folder of files: a path with four levels below it costs more to open than to read.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": _FILL.get(kind, 0),
        "codecs": codecs,
        "attributes": plain_attributes(attributes),
        "dimension_names": list(dims),
        "storage_transformers": [],
    }
