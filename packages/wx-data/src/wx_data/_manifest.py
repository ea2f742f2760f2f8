"""The manifest: what every shard must be, one row per time step; its parts are the resume log."""

import hashlib
import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wx_data._errors import StoreError

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("valid_time", pa.timestamp("s")),
        ("key", pa.string()),
        ("bytes", pa.int64()),
        ("crc32", pa.uint32()),
        ("nan_count", pa.list_(pa.int64())),
        ("minimum", pa.list_(pa.float32())),
        ("maximum", pa.list_(pa.float32())),
        ("source", pa.string()),
        ("expver", pa.string()),
        ("rounding_error", pa.list_(pa.float32())),
        ("rounding_saved", pa.list_(pa.int64())),
    ]
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """Per step: size and checksum of the shard, missing values and extremes per channel."""

    table: pa.Table

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(T,) bytes of each shard."""
        return np.asarray(self.table["bytes"].to_numpy())

    @property
    def checksums(self) -> NDArray[np.uint32]:
        """(T,) `checksum` of each file."""
        column = self.table["crc32"]
        if column.null_count:
            raise StoreError(
                "the manifest is of an earlier version, without checksums; convert the store anew"
            )
        return np.asarray(column.to_numpy())

    def per_channel(self, name: str) -> NDArray[Any]:
        """(T, C) of `nan_count`, `minimum` or `maximum`; (t, C) of what only t of the steps have."""
        column = self.table[name].drop_null().combine_chunks()
        return np.asarray(column.values.to_numpy(zero_copy_only=False)).reshape(len(column), -1)

    @property
    def content_hash(self) -> str:
        """Hash of all times and checksums: equal for equal data."""
        times = self.table["valid_time"].cast(pa.int64()).to_numpy()
        content = np.stack((times, self.checksums.astype(np.int64)))
        return hashlib.sha256(content.tobytes()).hexdigest()


def checksum(data: bytes) -> int:
    """CRC-32 of a whole file.

    Not CRC-32C: the parts of a shard end in their own, and the CRC of such a file depends on sizes alone.
    """
    return zlib.crc32(data)


def row(step: int, hour: int, key: str, data: bytes, values: NDArray[np.float32], source: str) -> Row:
    """The row of one step, from its encoded shard and its field (C, H, W)."""
    flat = values.reshape(values.shape[0], -1)
    low, high = flat.min(axis=1), flat.max(axis=1)
    missing = np.zeros(len(flat), dtype=np.int64)
    if np.isnan(low).any():
        missing = np.isnan(flat).sum(axis=1)
        low, high = np.fmin.reduce(flat, axis=1), np.fmax.reduce(flat, axis=1)
    return {
        "step": step,
        "valid_time": hour * 3600,
        "key": key,
        "bytes": len(data),
        "crc32": checksum(data),
        "nan_count": missing.tolist(),
        "minimum": low.tolist(),
        "maximum": high.tolist(),
        "source": source,
    }


class ManifestLog:
    """Appends rows in parts under `_wx/parts`, and merges them into `_wx/manifest.parquet`.

    Args:
        folder: `_wx` of the store.
        writer: tells the parts of processes apart that append at the same time.
    """

    def __init__(self, folder: Path, writer: int = 0) -> None:
        self.parts = folder / "parts"
        self.final = folder / "manifest.parquet"
        self._writer = f"{writer:08d}"

    def append(self, rows: Sequence[Row]) -> None:
        """Write `rows` as the next part, whole or not at all."""
        if not rows:
            return
        self.parts.mkdir(parents=True, exist_ok=True)
        mine = self.parts.glob(f"{self._writer}-*.parquet")
        number = 1 + max((int(p.stem.partition("-")[2]) for p in mine), default=-1)
        path = self.parts / f"{self._writer}-{number:06d}.parquet"
        write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), path)

    def read(self) -> pa.Table:
        """All rows written so far, by step."""
        if not self.final.exists():
            try:
                tables = [_read(part) for part in sorted(self.parts.glob("*.parquet"))]
                return pa.concat_tables([SCHEMA.empty_table(), *tables]).sort_by("step")
            except FileNotFoundError:
                # Another process merged the parts in the meantime.
                if not self.final.exists():
                    raise
        return _read(self.final)

    def compact(self) -> None:
        """One file in the order of the steps; the parts go."""
        if not self.final.exists():
            write_table(self.read().combine_chunks(), self.final)
        shutil.rmtree(self.parts, ignore_errors=True)

    def replace(self, rows: Sequence[Row]) -> None:
        """Put new rows in the place of those of the same steps, in the merged file."""
        new = pa.Table.from_pylist(list(rows), schema=SCHEMA)
        table = self.read()
        kept = table.filter(pc.invert(pc.is_in(table["step"], new["step"])))
        write_table(pa.concat_tables([kept, new]).sort_by("step").combine_chunks(), self.final)


def write_provenance(
    folder: Path,
    channels: Sequence[str],
    provenance: Mapping[str, Any],
    variables: Mapping[str, Mapping[str, Any]],
    versions: tuple[str, str],
) -> None:
    """Write `provenance.parquet`: per channel where it came from.

    Args:
        folder: `_wx` of the store.
        channels: names.
        provenance: of the source.
        variables: channel -> `variable`, `attributes` and those of the `dataset`, as in the file.
        versions: of wx-data, and the hash of the store's data.
    """
    general = {key: value for key, value in provenance.items() if key != "source"}
    rows = []
    for name in channels:
        about = variables.get(name, {})
        rows.append(
            {
                "channel": name,
                "source": str(provenance.get("source", "")),
                "variable": str(about.get("variable", "")),
                "attributes": _json(about.get("attributes", {})),
                "dataset": _json(about.get("dataset", {})),
                "provenance": _json(general),
                "wx_data_version": versions[0],
                "content_sha256": versions[1],
            }
        )
    write_table(pa.Table.from_pylist(rows), folder / "provenance.parquet")


def renew_content(folder: Path, content: str) -> None:
    """Put the hash of changed data into `provenance.parquet`."""
    table = pq.read_table(folder / "provenance.parquet")
    place = table.schema.get_field_index("content_sha256")
    write_table(
        table.set_column(place, "content_sha256", pa.array([content] * len(table))),
        folder / "provenance.parquet",
    )


def _json(value: Any) -> str:
    # Attributes of files hold numpy numbers and arrays.
    return json.dumps(value, sort_keys=True, default=lambda entry: np.asarray(entry).tolist())


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the conversion; None before there is one."""
    path = folder / "plan.json"
    if not path.exists():
        return None
    plan: dict[str, Any] = json.loads(path.read_text())
    return plan


def write_table(table: pa.Table, path: Path) -> None:
    """Write a parquet file, whole or not at all."""
    unfinished = path.with_suffix(".part")
    try:
        pq.write_table(table, unfinished)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _read(path: Path) -> pa.Table:
    # Columns that a store of an earlier version lacks read as null.
    return pq.read_table(path, schema=SCHEMA)
