"""Mean scores per forecast, kept apart until the last moment."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xarray as xr

KEY = ("model", "channel", "region", "lead_time", "init_time")
SCORES = ("crps_fair", "crps_biased", "mae_mean", "mse_mean", "error_mean", "variance")
SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("channel", pa.string(), nullable=False),
        pa.field("region", pa.string(), nullable=False),
        pa.field("lead_time", pa.duration("s"), nullable=False),
        pa.field("init_time", pa.timestamp("s"), nullable=False),
        pa.field("members", pa.int32(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("n_missing", pa.int64(), nullable=False),
        pa.field("sum_w", pa.float64(), nullable=False),
        *(pa.field(name, pa.float64()) for name in SCORES),
        pa.field("rank_histogram", pa.list_(pa.float64())),
    ]
)
FloatVector = npt.NDArray[np.float64]

_METADATA_KEY = b"wx_eval"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """The choices behind a set of records; only records with the same choices can be merged or compared.

    Attributes:
        truth: name of the verifying data.
        weights: "cell", "cos" or "custom:<hash>".
        grid: rows, columns and hash of the coordinates.
        regions: hash of the mask of each region.
        units: unit of each channel, "" when neither side states it.
        ranks: treatment of ties in the rank histogram.
    """

    truth: str
    weights: str
    grid: str
    regions: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    ranks: str = "tied ranks share the mass"

    @property
    def digest(self) -> str:
        """Hash of what must agree between two sets of records: all but the lists of regions and units."""
        shared = {k: v for k, v in asdict(self).items() if k not in ("regions", "units")}
        return hashlib.sha256(json.dumps([_FORMAT, shared], sort_keys=True).encode()).hexdigest()[:16]

    def union(self, other: "Conventions") -> "Conventions":
        """Conventions of a merge.

        Raises:
            ValueError: naming the first choice on which the two differ.
        """
        for name in ("truth", "weights", "grid", "ranks"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"records with different {name} cannot be combined: {mine!r} and {theirs!r}")
        for name in ("regions", "units"):
            mine, theirs = getattr(self, name), getattr(other, name)
            differ = sorted(k for k in mine.keys() & theirs.keys() if mine[k] != theirs[k])
            if differ:
                key = differ[0]
                raise ValueError(
                    f"records with different {name} of {key!r} cannot be combined: "
                    f"{mine[key]!r} and {theirs[key]!r}"
                )
        regions, units = {**self.regions, **other.regions}, {**self.units, **other.units}
        return replace(self, regions=regions, units=units)


@dataclass(frozen=True, eq=False)
class Records:
    """One row of area-mean scores per (model, channel, region, lead time, init time).

    Rows are sorted by key, so the same rows are the same table however they were computed and merged. A row
    with n = 0 and null scores records a forecast that had no truth. `sum_w` is the weight that was scored,
    `n_missing` the number of points whose truth is missing. Columns: crps_fair and crps_biased (null for a
    single member), mae_mean = |ensemble mean - y|, mse_mean = (ensemble mean - y)^2, error_mean = ensemble
    mean - y, variance (M - 1 in the denominator) and rank_histogram (M + 1 fractions, null unless asked for).
    """

    table: pa.Table
    conventions: Conventions

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", _sorted_union(self.table))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Records):
            return NotImplemented
        return self.conventions == other.conventions and bool(self.table.equals(other.table))

    def __hash__(self) -> int:
        return hash((self.conventions.digest, len(self)))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def models(self) -> list[str]:
        return self._distinct("model")

    @property
    def channels(self) -> list[str]:
        return self._distinct("channel")

    @property
    def regions(self) -> list[str]:
        return self._distinct("region")

    @property
    def init_times(self) -> npt.NDArray[np.datetime64]:
        return np.unique(self.table["init_time"].to_numpy())

    @property
    def lead_times(self) -> npt.NDArray[np.timedelta64]:
        return np.unique(self.table["lead_time"].to_numpy())

    def _distinct(self, column: str) -> list[str]:
        return sorted(pc.unique(self.table[column]).to_pylist())

    def merge(self, *others: "Records") -> "Records":
        """Union of rows; the order of merging and repeats of a row make no difference.

        Raises:
            ValueError: when conventions differ or one key has two different rows.
        """
        conventions = self.conventions
        for other in others:
            conventions = conventions.union(other.conventions)
        return Records(pa.concat_tables([self.table, *(o.table for o in others)]), conventions)

    def select(
        self,
        *,
        model: str | Sequence[str] | None = None,
        channel: str | Sequence[str] | None = None,
        region: str | Sequence[str] | None = None,
        lead_time: Iterable[np.timedelta64] | None = None,
        init_time: Iterable[np.datetime64] | None = None,
    ) -> "Records":
        """Rows whose key is among the given values.

        Raises:
            ValueError: when a named model, channel or region is not there.
        """
        table = self.table
        for column, chosen in (("model", model), ("channel", channel), ("region", region)):
            if chosen is not None:
                names = [chosen] if isinstance(chosen, str) else list(chosen)
                absent = sorted(set(names) - set(self._distinct(column)))
                if absent:
                    raise ValueError(
                        f"no {column} {absent} in the records, which hold {self._distinct(column)}"
                    )
                table = table.filter(pc.is_in(table[column], pa.array(names, pa.string())))
        for column, times in (("lead_time", lead_time), ("init_time", init_time)):
            if times is not None:
                kind = SCHEMA.field(column).type
                wanted = np.asarray(list(times)).astype(
                    "timedelta64[s]" if column == "lead_time" else "datetime64[s]"
                )
                table = table.filter(pc.is_in(table[column], pa.array(wanted, kind)))
        return Records(table, self.conventions)

    def to_xarray(self) -> xr.Dataset:
        """Dense arrays (model, channel, region, lead_time, init_time) with NaN where there is no row."""
        axes = {name: np.unique(_column(self.table, name), return_inverse=True) for name in KEY}
        shape = tuple(len(values) for values, _ in axes.values())
        where = tuple(index for _, index in axes.values())
        out = {}
        for name in ("members", "n", "n_missing", "sum_w", *SCORES):
            cube = np.full(shape, np.nan)
            cube[where] = _column(self.table, name)
            out[name] = (KEY, cube)
        coords = {name: (name, _time_coord(values)) for name, (values, _) in axes.items()}
        return xr.Dataset(out, coords)

    def rank_histogram(
        self, *, model: str, channel: str, region: str, lead_time: np.timedelta64
    ) -> FloatVector:
        """Mean over init times of the weighted rank frequencies, shape (M + 1,).

        Raises:
            ValueError: when no row holds a histogram or ensembles of different size are mixed.
        """
        rows = self.select(model=model, channel=channel, region=region, lead_time=[lead_time]).table
        histograms = [h for h in rows["rank_histogram"].to_pylist() if h is not None]
        if not histograms or len({len(h) for h in histograms}) != 1:
            raise ValueError(
                f"no rank histogram of one ensemble size for {model}, {channel}, {region}, {lead_time}: "
                "use evaluate(..., rank_histogram=True)"
            )
        return np.asarray(np.mean(histograms, axis=0))

    def to_parquet(self, path: str | PathLike[str]) -> None:
        """Write one file, with conventions, package version and format number in the schema metadata."""
        payload = {
            "format": _FORMAT,
            "version": version("wx-eval"),
            "conventions": asdict(self.conventions),
            "conventions_hash": self.conventions.digest,
        }
        table = self.table.replace_schema_metadata({_METADATA_KEY: json.dumps(payload, sort_keys=True)})
        pq.write_table(table, path, compression="zstd")

    @classmethod
    def from_parquet(cls, path: str | PathLike[str]) -> "Records":
        """Read what `to_parquet` wrote.

        Raises:
            ValueError: when the file holds no records or was written in another format.
        """
        table = pq.read_table(path)
        raw = (table.schema.metadata or {}).get(_METADATA_KEY)
        payload: dict[str, Any] = json.loads(raw) if raw else {}
        if payload.get("format") != _FORMAT:
            raise ValueError(
                f"{path} holds no wx-eval records of format {_FORMAT} (found {payload.get('format')!r}): "
                "write it with Records.to_parquet"
            )
        return cls(table.replace_schema_metadata(None), Conventions(**payload["conventions"]))


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table[name].to_numpy()
    return values.astype(str) if values.dtype == object else values


def _time_coord(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # xarray before 2025.01 keeps times in nanoseconds only and warns about anything else.
    return values.astype(f"{values.dtype.kind}8[ns]") if values.dtype.kind in "mM" else values


def _sorted_union(table: pa.Table) -> pa.Table:
    """Rows in key order with repeated rows dropped."""
    table = table.cast(SCHEMA).sort_by([(name, "ascending") for name in KEY]).combine_chunks()
    if table.num_rows < 2:
        return table
    before, after = table.slice(0, table.num_rows - 1), table.slice(1)
    same = np.ones(table.num_rows - 1, bool)
    for name in KEY:
        same &= pc.equal(before[name], after[name]).to_numpy()
    repeats = np.flatnonzero(same)
    if not repeats.size:
        return table
    _refuse_conflicts(table.take(repeats), table.take(repeats + 1))
    keep = np.ones(table.num_rows, bool)
    keep[repeats + 1] = False
    return table.filter(pa.array(keep)).combine_chunks()


def _refuse_conflicts(first: pa.Table, second: pa.Table) -> None:
    if first.equals(second):
        return
    for i in range(first.num_rows):
        a, b = first.slice(i, 1), second.slice(i, 1)
        if not a.equals(b):
            key = ", ".join(f"{name}={a[name][0].as_py()}" for name in KEY)
            columns = [name for name in SCHEMA.names if not a[name].equals(b[name])]
            raise ValueError(
                f"two records of {key} differ in {columns}: they come from different forecasts or truths, so "
                "give the models different names or drop one"
            )
