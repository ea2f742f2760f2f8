"""From forecasts and truth to records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xarray as xr

from ._choices import PresetName
from ._fields import Layout, Truth, as_chunks, as_history, on_grid, seconds
from ._grid import Array, Grid, digest
from ._kernels import Kernel
from ._metrics import STANDARD_METRICS, Metric, check_channels
from ._parallel import in_processes
from ._protocols import Climatology, Comm, ForecastChunk, History
from ._records import SCHEMA, Conventions, Records
from ._reduce import Reducer
from ._regions import DEFAULT_REGIONS, Mask, RegionSpec, region_masks
from ._score import Columns, Scorer, Task, agreed
from ._statistics import AnyStatistic, Statistic
from ._weights import WeightSpec, point_weights

# A table of a few rows takes three times the memory of its numbers: so many are joined.
_TABLES = 256


@dataclass(frozen=True, kw_only=True)
class Band:
    """The rows of the grid that this rank holds when a grid is spread over ranks.

    Forecast, truth and climatology then hold these rows only; masks, weights and land fraction are of the
    whole grid. Ranks exchange sums over rows, never fields, and all get the records of one process, bit for
    bit. Statistics that need a whole field, such as spectra, are refused.

    Attributes:
        first: the first row of latitude, or the first point of a mesh, which must be a multiple of 1024.
        total: rows, or points, of the whole grid.
        comm: of the ranks.
    """

    first: int
    total: int
    comm: Comm


def evaluate(
    forecast: xr.DataArray | xr.Dataset | Iterable[ForecastChunk],
    truth: xr.DataArray | xr.Dataset | History,
    *,
    model: str,
    metrics: Sequence[Metric] = STANDARD_METRICS,
    regions: RegionSpec = DEFAULT_REGIONS,
    weights: WeightSpec = "cell",
    climatology: Climatology | None = None,
    land_fraction: npt.ArrayLike | None = None,
    truth_name: str | None = None,
    missing_truth: Literal["error", "drop"] = "error",
    preset: str = "",
    truth_models: Sequence[str] = (),
    kernel: Kernel = "numpy",
    workers: int = 1,
    band: Band | None = None,
    progress: Callable[[int], object] | None = None,
) -> Records:
    """Score every (init time, lead time, channel, region) of a forecast against the truth at its valid time.

    One row is always reduced in one fixed order, so records are bit-identical however the work is cut into
    chunks, calls or processes: evaluate parts anywhere and `merge`. Chunks are drawn one after the other and
    dropped, values that are read lazily are read in blocks that follow the pieces of their storage: memory is
    that of one chunk in memory, or of one block. A rollout that calls back instead uses `Evaluation`.

    Args:
        forecast: array with dims (init_time, lead_time, member, channel, latitude, longitude), usual synonyms
            accepted and read lazily, a Dataset as `open_source` takes it, or chunks in any order. Without a
            member dim it is deterministic. On a mesh or at stations one dim of points takes the place of the
            last two.
        truth: array with dims (time, channel, latitude, longitude) or a History. NaN marks points that are
            not scored. Its channels that the forecast does not have are not scored either.
        model: name under which the rows are kept.
        metrics: decide which statistics are kept.
        regions: names, or boolean masks by name, see `region_masks`.
        weights: a convention, see `cell_weights`, a rule such as `DensityWeights`, or an array of the shape
            of the grid or of its rows.
        climatology: for metrics that need one.
        land_fraction: for regions that end in "_land", of the shape of the grid. An `xarray.DataArray`, here
            as in regions and weights, is brought into the order of the truth by its coordinates.
        truth_name: name of the truth; by default that of the array, else "truth".
        missing_truth: whether a valid time without truth is an error or a row without scores.
        preset: label kept with the records, see `Preset`, whose `evaluate` sets it.
        truth_models: names of models whose own analysis the truth is: `compare` marks their first two days.
        kernel: of the ensemble statistics, see `ensemble_statistics`; "numpy" and "numba" give the same bits.
        workers: processes that score chunks. Values, metrics and climatology are pickled: arrays of a file
            that xarray has opened lazily are read by the worker. The truth is read here. A script needs
            `if __name__ == "__main__":`.
        band: where the grid is spread over ranks.
        progress: called with the number of chunks done.

    Raises:
        TypeError: when an argument is of the wrong kind, or cannot be pickled for workers.
        ValueError: when grid, channels, units or times do not match, a metric names a channel that is not
            there, or a forecast is not finite where the truth is.
        RuntimeError: when a worker was killed, or another rank failed.
    """
    evaluation = Evaluation(
        truth,
        model=model,
        metrics=metrics,
        regions=regions,
        weights=weights,
        climatology=climatology,
        land_fraction=land_fraction,
        truth_name=truth_name,
        missing_truth=missing_truth,
        preset=preset,
        truth_models=truth_models,
        kernel=kernel,
        band=band,
    )
    if isinstance(forecast, xr.DataArray) and "channel" in forecast.coords:
        check_channels(metrics, np.atleast_1d(forecast["channel"].values).tolist(), "the forecast")
    for done in evaluation.extend(as_chunks(forecast), workers=workers):
        if progress is not None:
            progress(done)
    return evaluation.records()


class Evaluation:
    """`evaluate` for a rollout that hands over its chunks one by one; only rows of sums are kept.

        evaluation = Evaluation(truth, model="mine")
        rollout(callback=evaluation.add)
        records = evaluation.records()

    The arguments are those of `evaluate`.

    Raises:
        TypeError, ValueError: see `evaluate`.
    """

    def __init__(
        self,
        truth: xr.DataArray | xr.Dataset | History,
        *,
        model: str,
        metrics: Sequence[Metric] = STANDARD_METRICS,
        regions: RegionSpec = DEFAULT_REGIONS,
        weights: WeightSpec = "cell",
        climatology: Climatology | None = None,
        land_fraction: npt.ArrayLike | None = None,
        truth_name: str | None = None,
        missing_truth: Literal["error", "drop"] = "error",
        preset: str = "",
        truth_models: Sequence[str] = (),
        kernel: Kernel = "numpy",
        band: Band | None = None,
    ) -> None:
        metrics = (metrics,) if isinstance(metrics, Metric) else metrics
        _check_kinds(metrics, climatology, preset)
        self._truth = Truth(as_history(truth, "truth"))
        self._model, self._metrics, self._missing_truth = model, tuple(metrics), missing_truth
        self._climatology, self._comm = climatology, None if band is None else band.comm
        layout = self._truth.layout
        check_channels(metrics, layout.channels, "the truth")
        grid, first_row = (layout.grid, 0) if band is None else _whole_grid(layout.grid, band)
        weight, weights_name = point_weights(grid, on_grid(weights, grid, "weights"))
        masks = _masks(grid, regions, land_fraction)
        empty = [name for name, mask in masks.items() if not weight[mask].any()]
        if empty:
            raise ValueError(
                f"all points of the regions {empty} have weight 0 ({weights_name}): leave them out"
            )
        self._scorer = Scorer(layout, Reducer(grid, masks, weight), metrics, climatology, first_row, kernel)
        self._conventions = Conventions(
            truth=truth_name or self._truth.name,
            weights=weights_name,
            grid=grid.name,
            climatology="",
            preset=preset,
            truth_models=tuple(truth_models),
            regions={name: digest(mask) for name, mask in masks.items()},
            units={},
        )
        self._tables: list[pa.Table] = []
        self._joined: list[pa.Table] = []
        self._units: dict[str, str] = {}
        self._ways: set[str] = set()

    def add(self, chunk: ForecastChunk) -> None:
        """Score one chunk; its values may be overwritten afterwards.

        Raises:
            ValueError, RuntimeError: see `evaluate`.
        """
        with agreed(self._comm):
            key, task = self._task(chunk)
            groups = None if task is None else self._scorer.groups(task)
        self._keep(key, None if groups is None else self._scorer.finish(groups, self._comm))

    def extend(self, chunks: Iterable[ForecastChunk], *, workers: int = 1) -> Iterator[int]:
        """Score chunks as they come, and tell how many are done.

        Raises:
            TypeError, ValueError, RuntimeError: see `evaluate`.
        """
        if workers > 1 and self._comm is not None:
            raise ValueError("a grid that is spread over ranks is scored by them: leave workers at 1")
        if workers > 1:
            results = in_processes(self._scorer, map(self._task, chunks), workers)
            for done, (key, columns) in enumerate(results, start=1):
                self._keep(key, columns)
                yield done
        else:
            for done, chunk in enumerate(chunks, start=1):
                self.add(chunk)
                yield done

    def records(self) -> Records:
        """Records of all chunks so far.

        Raises:
            ValueError: when there was none, they were interpolated in different ways, or no chunk had a
                channel that a metric names.
        """
        tables = [*self._joined, *self._tables]
        if not tables:
            raise ValueError("forecast holds no chunk: check its init and lead times")
        if len(self._ways) > 1:
            raise ValueError(
                f"chunks of {self._model!r} were interpolated in different ways: {sorted(self._ways)}"
            )
        check_channels(self._metrics, self._units, "the forecast")
        used = self._climatology if self._scorer.used_climatology else None
        conventions = replace(
            self._conventions,
            climatology="" if used is None else used.name,
            units=dict(self._units),
            interpolation=next(iter(self._ways)),
        )
        settings = {metric.name: metric.to_dict() for metric in self._metrics}
        return Records(_concat(tables), conventions, settings)

    def _task(self, chunk: ForecastChunk) -> tuple[_Key, Task | None]:
        """What is scored, None without a truth."""
        absent = [name for name in _CHUNK if not hasattr(chunk, name)]
        if absent:
            raise TypeError(
                f"a forecast is made of chunks with {', '.join(_CHUNK)}; this {type(chunk).__name__} has no "
                f"{' and no '.join(absent)}"
            )
        init: Any = seconds(chunk.init_time)[()]
        lead: Any = seconds(chunk.lead_time)[()]
        kinds = isinstance(init, np.datetime64) and isinstance(lead, np.timedelta64)
        if not kinds or np.isnat(init + lead):
            raise ValueError(
                f"a chunk needs an init time and a lead time, got {chunk.init_time!r} and {chunk.lead_time!r}"
            )
        values = chunk.values if hasattr(chunk.values, "shape") else np.asarray(chunk.values)
        layout = self._truth.layout
        positions = layout.check(chunk, tuple(values.shape))
        statistics = self._scorer.statistics
        key = _Key(
            init_time=init,
            lead_time=lead,
            members=values.shape[0],
            units=_units(chunk, layout, [s for s in statistics if s.minimum_members <= values.shape[0]]),
            interpolation=str(getattr(chunk, "interpolation", "")),
        )
        state = self._truth.at(init + lead)
        if state is None and self._missing_truth != "drop":
            raise ValueError(
                f"truth has no state at {init + lead}, the valid time of init {init} + {lead}: shorten the "
                'forecast or record such forecasts without scores by missing_truth="drop"'
            )
        if state is None:
            return key, None
        name = f"forecast of {self._model!r} from {init} + {lead}"
        return key, Task(values, state[positions], _units(chunk, layout), init + lead, name)

    def _keep(self, key: _Key, columns: Columns | None) -> None:
        """Rows of a chunk."""
        if columns is None:
            columns = {channel: self._scorer.missing() for channel in key.units}
        keys = {
            "model": self._model,
            "init_time": key.init_time,
            "lead_time": key.lead_time,
            "members": key.members,
        }
        self._tables.append(_table(columns, keys, self._scorer.reducer.regions, self._scorer.statistics))
        if len(self._tables) == _TABLES:
            self._joined.append(_concat(self._tables).combine_chunks())
            self._tables.clear()
        self._units.update(key.units)
        self._ways.add(key.interpolation)


_CHUNK = ("init_time", "lead_time", "channels", "values")


def _check_kinds(metrics: Sequence[Metric], climatology: object, preset: str) -> None:
    """Refuse what is easily taken for a metric, a climatology or a preset."""
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise TypeError(
                f'metrics must be objects such as wx_eval.CRPS("fair") or wx_eval.RMSE(), got {metric!r}'
            )
    if climatology is not None and not hasattr(climatology, "at"):
        raise TypeError(
            "climatology must be one such as wx_eval.DayClimatology.open(dataset), got a "
            f"{type(climatology).__name__}"
        )
    if preset in get_args(PresetName):
        raise ValueError(
            f"preset is the label that a preset gives its records: wx_eval.PRESETS[{preset!r}].evaluate(...) "
            "takes the same arguments and sets metrics, regions and weights"
        )


@dataclass(frozen=True, kw_only=True)
class _Key:
    """What the rows of a chunk keep of it; `units` names all channels that have rows."""

    init_time: np.datetime64
    lead_time: np.timedelta64
    members: int
    units: Mapping[str, str]
    interpolation: str


def _whole_grid(part: Grid, band: Band) -> tuple[Grid, int]:
    """The grid of all ranks, and the first of its rows that this one holds."""
    size = part.shape[0]
    axes = part.axes or (part.latitude, part.longitude)
    spread = axes if part.axes is None else axes[:1]
    held = np.zeros((len(spread) + 1, band.total))
    if band.first < 0 or band.first + size > band.total:
        held[0] = np.nan
    else:
        held[:, band.first : band.first + size] = np.stack([np.ones(size), *spread])
    whole = band.comm.sum(held)
    if not (whole[0] == 1).all():
        raise ValueError(
            f"the bands of the ranks must cover each of {band.total} rows once; this one holds {size} from "
            f"{band.first}"
        )
    if part.axes is not None:
        return Grid.from_axes(whole[1], axes[1]), band.first
    grid = Grid.from_points(whole[1], whole[2])
    ends = {int(e) for e in grid.edges}
    if not {band.first, band.first + size} <= ends:
        raise ValueError(
            f"a band of a mesh must begin and end at a multiple of {int(np.diff(grid.edges).max())} points "
            f"or at its end, this one is {band.first}..{band.first + size}"
        )
    return grid, int(np.searchsorted(grid.edges, band.first))


def _masks(grid: Grid, regions: RegionSpec, land_fraction: npt.ArrayLike | None) -> dict[str, Mask]:
    """`region_masks` of arrays that may have coordinates of their own."""
    if isinstance(regions, Mapping):
        regions = {name: on_grid(mask, grid, f"region {name!r}") for name, mask in regions.items()}
    return region_masks(grid, regions, land_fraction=on_grid(land_fraction, grid, "land_fraction"))


def _units(chunk: ForecastChunk, truth: Layout, statistics: Sequence[AnyStatistic] = ()) -> dict[str, str]:
    """Unit of each channel, and of what statistics combine channels to, "" when unknown."""
    theirs: tuple[str, ...] | None = getattr(chunk, "units", None)
    known = dict(zip(truth.channels, truth.units, strict=True)) if truth.units is not None else {}
    fallback = theirs if theirs is not None else ("",) * len(chunk.channels)
    units = {c: known.get(c, u) for c, u in zip(chunk.channels, fallback, strict=True)}
    for statistic in statistics:
        groups = statistic.groups(chunk.channels) if isinstance(statistic, Statistic) else None
        for name, members in (groups or {}).items():
            shared = {units[member] for member in members}
            units.setdefault(name, shared.pop() if len(shared) == 1 else "")
    return units


def _table(
    columns: Mapping[str, Mapping[str, Array]],
    keys: dict[str, Any],
    regions: tuple[str, ...],
    statistics: Sequence[AnyStatistic],
) -> pa.Table:
    """Rows (channel, region) of one chunk, with a column for every statistic."""
    rows = len(columns) * len(regions)
    data: dict[str, Any] = {name: np.full(rows, value) for name, value in keys.items() if name != "model"}
    data["model"] = [keys["model"]] * rows
    data["channel"] = [channel for channel in columns for _ in regions]
    data["region"] = list(regions) * len(columns)
    lists = {s.id for s in statistics if s.vector}
    kept = (name for found in columns.values() for name in found)
    names = dict.fromkeys((*SCHEMA.names, *kept, *(s.id for s in statistics)))
    for name in names:
        if name not in data:
            cells = [value for found in columns.values() for value in found.get(name, [None] * len(regions))]
            data[name] = [_cell(cell) for cell in cells] if name in lists else cells
    kinds = {f.name: f.type for f in SCHEMA} | {name: pa.list_(pa.float64()) for name in lists}
    return pa.table({n: pa.array(data[n], kinds.get(n, pa.float64()), from_pandas=True) for n in names})


def _concat(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="default")


def _cell(value: Any) -> list[float] | None:
    """A list, None where nothing is defined."""
    return None if value is None or np.isnan(value).all() else np.asarray(value).tolist()
