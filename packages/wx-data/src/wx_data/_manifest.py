"""The manifest: what every shard must be, one row per time step; its parts are the resume log."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("valid_time", pa.timestamp("s")),
        ("key", pa.string()),
        ("bytes", pa.int64()),
        ("crc32c", pa.uint32()),
        ("nan_count", pa.list_(pa.int64())),
        ("minimum", pa.list_(pa.float32())),
        ("maximum", pa.list_(pa.float32())),
        ("source", pa.string()),
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
        """(T,) crc32c of each whole file."""
        return np.asarray(self.table["crc32c"].to_numpy())

    def per_channel(self, name: str) -> NDArray[Any]:
        """(T, C) of `nan_count`, `minimum` or `maximum`."""
        column = self.table[name].combine_chunks()
        return np.asarray(column.values.to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def row(
    step: int, hour: int, key: str, data: bytes, crc: int, values: NDArray[np.float32], source: str
) -> Row:
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
        "crc32c": crc,
        "nan_count": missing.tolist(),
        "minimum": low.tolist(),
        "maximum": high.tolist(),
        "source": source,
    }


class ManifestLog:
    """Appends rows in parts under `_wx/parts`, and merges them into `_wx/manifest.parquet`."""

    def __init__(self, folder: Path) -> None:
        self.parts = folder / "parts"
        self.final = folder / "manifest.parquet"

    def append(self, rows: Sequence[Row]) -> None:
        """Write `rows` as the next part, whole or not at all."""
        if not rows:
            return
        self.parts.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.stem) for p in self.parts.glob("*.parquet")), default=-1)
        _write(pa.Table.from_pylist(list(rows), schema=SCHEMA), self.parts / f"{number:06d}.parquet")

    def read(self) -> pa.Table:
        """All rows written so far, by step."""
        if self.final.exists():
            return pq.read_table(self.final, schema=SCHEMA)
        tables = [pq.read_table(part, schema=SCHEMA) for part in sorted(self.parts.glob("*.parquet"))]
        return pa.concat_tables([SCHEMA.empty_table(), *tables]).sort_by("step")

    def compact(self) -> None:
        """One file in the order of the steps; the parts go."""
        if not self.final.exists():
            _write(self.read().combine_chunks(), self.final)
        for part in self.parts.glob("*.parquet"):
            part.unlink()
        if self.parts.exists():
            self.parts.rmdir()


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the conversion; None before there is one."""
    path = folder / "plan.json"
    if not path.exists():
        return None
    plan: dict[str, Any] = json.loads(path.read_text())
    return plan


def _write(table: pa.Table, path: Path) -> None:
    unfinished = path.with_suffix(".part")
    try:
        pq.write_table(table, unfinished)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
