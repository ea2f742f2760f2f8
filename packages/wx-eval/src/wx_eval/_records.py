"""Mean statistics per forecast, kept apart until the last moment."""

from __future__ import annotations

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
    ]
)
"""Columns of every table of records; one column per statistic follows, a number or a list of numbers."""

WEIGHT = ".w"
"""Ends the name of the column with the weight behind a statistic that does not exist at all scored points."""

FloatVector = npt.NDArray[np.float64]

_METADATA_KEY = b"wx_eval"
_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """The choices behind a set of records; only records with the same choices can be merged or compared.

    Attributes:
        truth: name of the verifying data.
        weights: name of the weights or "custom:<hash>".
        grid: shape and hash of the coordinates.
        climatology: name of the climatology, "" when nothing needed one.
        preset: label of the preset, "" without one.
        interpolation: how forecasts were brought to the points of the truth, "" when they were on them.
        regions: hash of the mask of each region.
        units: unit of each channel, "" when neither side states it.
        truth_models: names of models whose own analysis the truth is, which favours them at first.
    """

    truth: str
    weights: str
    grid: str
    climatology: str = ""
    preset: str = ""
    interpolation: str = ""
    regions: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    truth_models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "truth_models", tuple(sorted(self.truth_models)))

    @property
    def digest(self) -> str:
        """Hash of what must agree between two sets of records: no lists of regions, units and models."""
        shared = {k: v for k, v in asdict(self).items() if k not in ("regions", "units", "truth_models")}
        return hashlib.sha256(json.dumps([_FORMAT, shared], sort_keys=True).encode()).hexdigest()[:16]

    def union(self, other: Conventions) -> Conventions:
        """Conventions of a merge.

        Raises:
            ValueError: naming the first choice on which the two differ.
        """
        for name in ("truth", "weights", "grid", "climatology", "preset", "interpolation"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and not (name == "climatology" and "" in (mine, theirs)):
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
        return replace(
            self,
            climatology=self.climatology or other.climatology,
            regions={**self.regions, **other.regions},
            units={**self.units, **other.units},
            truth_models=tuple({*self.truth_models, *other.truth_models}),
        )


@dataclass(frozen=True, eq=False)
class Records:
    """One row of area-mean statistics per (model, channel, region, lead time, init time).

    Rows are sorted by key and statistics by name, so the same rows are the same table however they were
    computed and merged. A row with n = 0 and null statistics records a forecast that had no truth. `members`
    is M, `n` the number of points that were scored, `n_missing` that of points without truth, `sum_w` the
    weight that was scored. A statistic is null where it does not exist, such as the variance of a single
    member; one that exists at some of the scored points only has its own weight in the column with ".w" at
    its end.

    Args:
        table: with the columns of `SCHEMA` and one per statistic.
        conventions: of all rows.
        metrics: settings of the metrics that the statistics were kept for, by name.
        runs: JSON data from which the rows of each model can be made again; its form is that of whoever made
            them. `wx-eval run` keeps its configuration here.
    """

    table: pa.Table
    conventions: Conventions
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    runs: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", _canonical(self.table))
        object.__setattr__(self, "metrics", dict(sorted(self.metrics.items())))

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
        """Names, sorted."""
        return self._distinct("model")

    @property
    def channels(self) -> list[str]:
        """Names, sorted."""
        return self._distinct("channel")

    @property
    def regions(self) -> list[str]:
        """Names, sorted."""
        return self._distinct("region")

    @property
    def statistics(self) -> list[str]:
        """Ids, sorted."""
        names = self.table.column_names
        return [name for name in names if name not in SCHEMA.names and not name.endswith(WEIGHT)]

    @property
    def init_times(self) -> npt.NDArray[np.datetime64]:
        """Init times of any row."""
        return np.unique(self.table["init_time"].to_numpy())

    @property
    def lead_times(self) -> npt.NDArray[np.timedelta64]:
        """Lead times of any row."""
        return np.unique(self.table["lead_time"].to_numpy())

    def _distinct(self, column: str) -> list[str]:
        return sorted(pc.unique(self.table[column]).to_pylist())

    def merge(self, *others: Records) -> Records:
        """Union of rows and of statistics; the order of merging and repeats make no difference.

        Raises:
            ValueError: when conventions differ or one statistic of one key has two values.
        """
        conventions, metrics, runs = self.conventions, dict(self.metrics), self.runs
        for other in others:
            conventions = conventions.union(other.conventions)
            metrics |= other.metrics
            runs = _all_runs(runs, other.runs)
        tables = [self.table, *(o.table for o in others)]
        return Records(pa.concat_tables(tables, promote_options="default"), conventions, metrics, runs)

    def select(
        self,
        *,
        model: str | Sequence[str] | None = None,
        channel: str | Sequence[str] | None = None,
        region: str | Sequence[str] | None = None,
        lead_time: Iterable[np.timedelta64] | None = None,
        init_time: Iterable[np.datetime64] | None = None,
    ) -> Records:
        """Rows whose key is among the given values.

        Raises:
            ValueError: when a named model, channel, region or time is not there.
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
                self._check_times(column, wanted)
                table = table.filter(pc.is_in(table[column], pa.array(wanted, kind)))
        return Records(table, self.conventions, self.metrics, self.runs)

    def _check_times(self, column: str, wanted: npt.NDArray[Any]) -> None:
        held = (self.lead_times if column == "lead_time" else self.init_times).astype(wanted.dtype)
        absent = np.setdiff1d(wanted, held)
        if absent.size:
            ends = f"{held.min()} to {held.max()}" if held.size else "none"
            raise ValueError(
                f"no {column.replace('_', ' ')} {absent[0]} in the records, which hold {held.size}, {ends}"
            )

    def to_xarray(self, statistics: Iterable[str] | None = None) -> xr.Dataset:
        """Dense arrays (model, channel, region, lead_time, init_time) with NaN where there is no row.

        A statistic of several numbers has a last dim of its own, "<id>_k"; shorter lists end in NaN.

        Args:
            statistics: ids; by default all. Members, counts and weights are always there.

        Raises:
            ValueError: for an id that the records do not hold.
        """
        names = self.statistics if statistics is None else list(dict.fromkeys(statistics))
        absent = sorted(set(names) - set(self.statistics))
        if absent:
            raise ValueError(f"no statistic {absent} in the records, which hold {self.statistics}")
        axes = {name: np.unique(_column(self.table, name), return_inverse=True) for name in KEY}
        shape = tuple(len(values) for values, _ in axes.values())
        where = tuple(index for _, index in axes.values())
        extra = [f"{name}{WEIGHT}" for name in names if f"{name}{WEIGHT}" in self.table.column_names]
        out = {}
        for name in ("members", "n", "n_missing", "sum_w", *names, *extra):
            flat = _numbers(self.table[name])
            cube = np.full((*shape, *flat.shape[1:]), np.nan)
            cube[where] = flat
            out[name] = ((*KEY, f"{name}_k") if flat.ndim > 1 else KEY, cube)
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
        names = rows.column_names
        lists = rows["rank_histogram"].to_pylist() if "rank_histogram" in names else []
        histograms = [h for h in lists if h is not None]
        if not histograms or len({len(h) for h in histograms}) != 1:
            raise ValueError(
                f"no rank histogram of one ensemble size for {model}, {channel}, {region}, {lead_time}: "
                "give evaluate the metric RankHistogram()"
            )
        return np.asarray(np.mean(histograms, axis=0))

    def to_parquet(self, path: str | PathLike[str]) -> None:
        """Write one file, with conventions, metrics, package version and format in the schema metadata."""
        payload = {
            "format": _FORMAT,
            "version": version("wx-eval"),
            "conventions": asdict(self.conventions),
            "conventions_hash": self.conventions.digest,
            "metrics": {name: dict(settings) for name, settings in self.metrics.items()},
            "runs": self.runs,
        }
        table = self.table.replace_schema_metadata({_METADATA_KEY: json.dumps(payload, sort_keys=True)})
        pq.write_table(table, path, compression="zstd")

    @classmethod
    def from_parquet(cls, path: str | PathLike[str]) -> Records:
        """Read what `to_parquet` wrote.

        Raises:
            ValueError: when the file holds no records or was written in another format.
        """
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is no parquet file of records: `wx-eval run` writes them") from error
        raw = (table.schema.metadata or {}).get(_METADATA_KEY)
        payload: dict[str, Any] = json.loads(raw) if raw else {}
        if payload.get("format") != _FORMAT:
            raise ValueError(
                f"{path} holds no wx-eval records of format {_FORMAT} (found {payload.get('format')!r}): "
                "`wx-eval run`, `wx-eval score-tracks` or Records.to_parquet write them"
            )
        conventions = Conventions(**payload["conventions"])
        runs = payload.get("runs", {})
        return cls(table.replace_schema_metadata(None), conventions, payload["metrics"], runs)


def holds_records(path: str | PathLike[str]) -> bool:
    """Whether a parquet file holds records, and not reports of stations or anything else."""
    return _METADATA_KEY in (pq.read_schema(path).metadata or {})


def _all_runs(
    a: Mapping[str, Sequence[Mapping[str, Any]]], b: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Different runs of each model, in an order of their own."""
    out: dict[str, Sequence[Mapping[str, Any]]] = {}
    for model in sorted({*a, *b}):
        texts = {json.dumps(run, sort_keys=True) for run in (*a.get(model, ()), *b.get(model, ()))}
        out[model] = [json.loads(text) for text in sorted(texts)]
    return out


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table[name].to_numpy()
    return values.astype(str) if values.dtype == object else values


def _numbers(column: pa.ChunkedArray) -> FloatVector:
    """(rows,) numbers, or (rows, K) of lists, NaN where there is none."""
    if not pa.types.is_list(column.type):
        return np.asarray(column.to_numpy(), np.float64)
    lists = column.combine_chunks()
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    out = np.full((len(lists), int(lengths.max(initial=0))), np.nan)
    out[np.arange(out.shape[1]) < lengths[:, None]] = np.asarray(lists.flatten())
    return out


def _time_coord(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # xarray before 2025.01 keeps times in nanoseconds only and warns about anything else.
    return values.astype(f"{values.dtype.kind}8[ns]") if values.dtype.kind in "mM" else values


def _canonical(table: pa.Table) -> pa.Table:
    """Rows in key order, statistics in order of their names; rows of one key become one."""
    names = sorted(name for name in table.column_names if name not in SCHEMA.names)
    kinds = {name: table.schema.field(name).type for name in names}
    wide = pa.schema(
        [*SCHEMA, *(pa.field(n, k if pa.types.is_list(k) else pa.float64()) for n, k in kinds.items())]
    )
    table = table.select(wide.names).cast(wide)
    table = table.sort_by([(name, "ascending") for name in KEY]).combine_chunks()
    if table.num_rows < 2:
        return table
    before, after = table.slice(0, table.num_rows - 1), table.slice(1)
    same = np.ones(table.num_rows - 1, bool)
    for name in KEY:
        same &= pc.equal(before[name], after[name]).to_numpy()
    return _joined(table, np.append(True, ~same)) if same.any() else table


def _joined(table: pa.Table, first: npt.NDArray[np.bool_]) -> pa.Table:
    """One row for each run of rows of one key, which starts where `first` is true."""
    starts = np.flatnonzero(first)
    columns = []
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name in KEY:
            columns.append(column.take(pa.array(starts)))
        elif pa.types.is_list(column.type):
            columns.append(_join_lists(table, name, starts))
        else:
            columns.append(_join_numbers(table, name, starts))
    return pa.table(columns, schema=table.schema)


def _join_numbers(table: pa.Table, name: str, starts: npt.NDArray[np.intp]) -> pa.Array:
    values = np.asarray(table[name].to_numpy(), np.float64)
    low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    wrong = np.flatnonzero((low != high) & ~np.isnan(low))
    if wrong.size:
        _refuse(table, int(starts[wrong[0]]))
    return pa.array(low, pa.float64(), from_pandas=True).cast(table.schema.field(name).type)


def _join_lists(table: pa.Table, name: str, starts: npt.NDArray[np.intp]) -> pa.Array:
    values, out = table[name].to_pylist(), []
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        found = [v for v in values[start:stop] if v is not None]
        if any(v != found[0] for v in found):
            _refuse(table, int(start))
        out.append(found[0] if found else None)
    return pa.array(out, table.schema.field(name).type)


def _refuse(table: pa.Table, row: int) -> None:
    """Raise ValueError for the run of rows of one key that starts here."""
    same = [table[k].to_pylist() for k in KEY]
    stop = row + 1
    while stop < table.num_rows and all(column[stop] == column[row] for column in same):
        stop += 1
    run = table.slice(row, stop - row)
    differ = [n for n in table.column_names if len({str(v) for v in run[n].to_pylist() if v is not None}) > 1]
    key = ", ".join(f"{k}={run[k][0].as_py()}" for k in KEY)
    raise ValueError(
        f"two records of {key} differ in {differ}: they come from different forecasts or truths, so give the "
        "models different names or drop one"
    )
