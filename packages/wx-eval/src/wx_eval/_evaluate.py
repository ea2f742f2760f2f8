"""From forecasts and truth to records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xarray as xr
from scipy import sparse

from ._case import Case
from ._fields import Truth, as_history, forecast_chunks, seconds
from ._grid import Array, Vector, digest
from ._metrics import STANDARD_METRICS, Metric
from ._protocols import Climatology, ForecastChunk, History
from ._records import SCHEMA, WEIGHT, Conventions, Records
from ._reduce import Reducer
from ._regions import DEFAULT_REGIONS, RegionSpec, region_masks
from ._statistics import AnyStatistic, FieldStatistic, Statistic
from ._weights import WeightSpec, point_weights

# Points (times channels) that are scored together: worth the calls, and bounded whatever the grid.
_GROUP_POINTS = 1 << 16
# A forecast below this size is read at once; a larger one in pieces.
_READ_BYTES = 1 << 29


def evaluate(
    forecast: xr.DataArray | Iterable[ForecastChunk],
    truth: xr.DataArray | History,
    *,
    model: str,
    metrics: Sequence[Metric] = STANDARD_METRICS,
    regions: RegionSpec = DEFAULT_REGIONS,
    weights: WeightSpec = "cell",
    climatology: Climatology | None = None,
    land_fraction: npt.ArrayLike | None = None,
    truth_name: str | None = None,
    missing_truth: Literal["error", "drop"] = "error",
    progress: Callable[[int], object] | None = None,
) -> Records:
    """Score every (init time, lead time, channel, region) of a forecast against the truth at its valid time.

    One row is always reduced in one fixed order, so records are bit-identical however the work is cut into
    chunks, calls or processes: evaluate parts anywhere and `merge`. Memory is that of one chunk, and less
    when its values are read lazily.

    Args:
        forecast: array with dims (init_time, lead_time, member, channel, latitude, longitude), usual synonyms
            accepted and read lazily, or chunks in any order. Without a member dim it is deterministic. On a
            mesh or at stations one dim of points takes the place of the last two.
        truth: array with dims (time, channel, latitude, longitude) or a History. NaN marks points that are
            not scored.
        model: name under which the rows are kept.
        metrics: decide which statistics are kept.
        regions: names or boolean masks, see `region_masks`.
        weights: a convention, see `cell_weights`, or an array of the shape of the grid or of its rows.
        climatology: for metrics that need one.
        land_fraction: for regions that end in "_land", of the shape of the grid.
        truth_name: name of the truth; by default that of the array, else "truth".
        missing_truth: whether a valid time without truth is an error or a row without scores.
        progress: called with the number of chunks done.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when grid, channels, units or times do not match, or a forecast is not finite where the
            truth is.
    """
    states = Truth(as_history(truth, "truth"))
    masks = region_masks(states.grid, regions, land_fraction=land_fraction)
    weight, weights_name = point_weights(states.grid, weights)
    scorer = _Scorer(states, Reducer(states.grid, masks, weight), metrics, climatology)
    tables, units = [], {}
    chunks = forecast_chunks(forecast) if isinstance(forecast, xr.DataArray) else forecast
    for done, chunk in enumerate(chunks, start=1):
        tables.append(scorer.table(chunk, model, missing_truth))
        units.update(_units(chunk, states))
        if progress is not None:
            progress(done)
    if not tables:
        raise ValueError("forecast holds no chunk: check its init and lead times")
    conventions = Conventions(
        truth=truth_name or states.name,
        weights=weights_name,
        grid=states.grid.name,
        climatology=climatology.name if scorer.used_climatology and climatology is not None else "",
        regions={name: digest(mask) for name, mask in masks.items()},
        units=units,
    )
    settings = {metric.name: metric.to_dict() for metric in metrics}
    return Records(pa.concat_tables(tables, promote_options="default"), conventions, settings)


class _NotFiniteError(ValueError):
    """A forecast is not finite at a point whose truth is; holds the name of the channel."""


class _Scorer:
    """Statistics of one chunk after the other, on one grid."""

    def __init__(
        self, truth: Truth, reducer: Reducer, metrics: Sequence[Metric], climatology: Climatology | None
    ) -> None:
        self._truth, self._reducer, self._climatology = truth, reducer, climatology
        self._statistics: list[AnyStatistic] = list(dict.fromkeys(s for m in metrics for s in m.statistics))
        ids = [s.id for s in self._statistics]
        if len(set(ids)) != len(ids):
            raise ValueError(
                f"two different statistics have one id: {sorted({i for i in ids if ids.count(i) > 1})}"
            )
        self.used_climatology = False
        self.ranks = any(getattr(s, "ranks", False) for s in self._statistics)

    def table(self, chunk: ForecastChunk, model: str, missing_truth: str) -> pa.Table:
        """Rows of one chunk."""
        init, lead = seconds(chunk.init_time)[()], seconds(chunk.lead_time)[()]
        values = chunk.values if hasattr(chunk.values, "shape") else np.asarray(chunk.values)
        positions = self._truth.check(chunk, tuple(values.shape))
        state = self._truth.at(init + lead)
        if state is None and missing_truth != "drop":
            raise ValueError(
                f"truth has no state at {init + lead}, the valid time of init {init} + {lead}: shorten the "
                'forecast or record such forecasts without scores by missing_truth="drop"'
            )
        if state is None:
            columns = {channel: self._missing() for channel in chunk.channels}
        else:
            try:
                columns = self._score(values, state[positions], chunk.channels, init + lead)
            except _NotFiniteError as error:
                raise ValueError(
                    f"forecast of {model!r} from {init} + {lead} is not finite in channel "
                    f"{str(error)!r} where the truth is: a failed forecast cannot be scored; set the truth to NaN where nothing "
                    "should be verified"
                ) from None
        keys = {"model": model, "init_time": init, "lead_time": lead, "members": len(values)}
        return _table(columns, keys, self._reducer.regions, self._statistics)

    def _missing(self) -> dict[str, Array]:
        count = np.zeros((len(self._reducer.regions), 1))
        everywhere = np.ones((self._reducer.grid.size, 1))
        self._reducer.add(count, everywhere, slice(0, self._reducer.rows), weighted=False)
        points = count[:, 0].astype(np.int64)
        return {"n": np.zeros_like(points), "n_missing": points, "sum_w": np.zeros(len(points))}

    def _score(
        self, values: Array, state_CN: Array, channels: tuple[str, ...], valid_time: np.datetime64
    ) -> dict[str, dict[str, Array]]:
        """Columns (region,) or (region, K) by channel."""
        values = _loaded(values)
        alone: list[AnyStatistic] = []
        joint: dict[tuple[str, tuple[str, ...]], list[AnyStatistic]] = {}
        for statistic in self._statistics:
            if statistic.minimum_members > len(values):
                continue
            groups = statistic.groups(channels) if isinstance(statistic, Statistic) else None
            if groups is None:
                alone.append(statistic)
            for item in (groups or {}).items():
                joint.setdefault(item, []).append(statistic)
        references: dict[str, Array] = {}
        step = max(1, _GROUP_POINTS // self._reducer.grid.size)
        work: list[tuple[slice | list[int], list[AnyStatistic], tuple[str, ...] | None]] = [
            (slice(c, c + step), alone, None) for c in range(0, len(channels), step)
        ]
        for (name, members), found in joint.items():
            work.append(([channels.index(m) for m in members], found, (name,)))
        out: dict[str, dict[str, Array]] = {}
        for pick, statistics, names in work:
            group = _Group(self, values, state_CN, channels, pick, valid_time, references)
            for name, columns in group.columns(statistics, names).items():
                out.setdefault(name, {}).update(columns)
        return out

    def reference(self, name: str, channels: tuple[str, ...], valid_time: np.datetime64) -> Array:
        """Climatological field (C, N)."""
        if self._climatology is None:
            raise ValueError(f"a metric needs the climatological {name}: give evaluate a climatology")
        self.used_climatology = True
        field = self._climatology.at(name, valid_time)
        absent = [c for c in channels if c not in field["channel"].values]
        if absent:
            raise ValueError(f"climatology {self._climatology.name!r} has no channel {absent}")
        picked = np.asarray(field.sel(channel=list(channels)).values)
        if picked.shape[1:] != self._reducer.grid.shape:
            raise ValueError(
                f"climatology {self._climatology.name!r} has fields {picked.shape[1:]}, the truth "
                f"{self._reducer.grid.shape}: regrid one of them"
            )
        return picked.reshape(len(channels), -1)

    @property
    def reducer(self) -> Reducer:
        """Of the grid."""
        return self._reducer


class _Group:
    """Some channels of one chunk, scored together."""

    def __init__(
        self,
        scorer: _Scorer,
        values: Array,
        state_CN: Array,
        channels: tuple[str, ...],
        pick: slice | list[int],
        valid_time: np.datetime64,
        references: dict[str, Array],
    ) -> None:
        self._scorer, self._reducer, self._references = scorer, scorer.reducer, references
        self._values, self._state, self._pick = values, state_CN, pick
        self._all = channels
        self._channels = tuple(np.asarray(channels, object)[pick])
        self._valid_time = valid_time

    def columns(
        self, statistics: Sequence[AnyStatistic], names: tuple[str, ...] | None
    ) -> dict[str, dict[str, Array]]:
        """Columns by channel; `names` are those of combined channels."""
        local = [s for s in statistics if isinstance(s, Statistic) and s.scope == "point"]
        whole = [s for s in statistics if isinstance(s, Statistic) and s.scope == "field"]
        fields = [s for s in statistics if isinstance(s, FieldStatistic)]
        everything = slice(0, self._reducer.rows)
        case = self._case(everything) if whole or fields else None
        bands = self._reducer.bands(max(1, _GROUP_POINTS // len(self._channels)))
        sums = _Sums(self._reducer, len(names or self._channels))
        for band in bands if local or not whole else []:
            part = case if case is not None and len(bands) == 1 else self._case(band)
            sums.add(part, local, band)
        if case is not None:
            sums.add(case, whole, everything, base=not local)
        out = dict(zip(names or self._channels, sums.columns(case_members=len(self._values)), strict=True))
        for statistic in fields:
            assert case is not None
            for name, vector in zip(self._channels, statistic.value(case), strict=True):
                out[name][statistic.id] = self._global(vector)
        return out

    def _case(self, rows: slice) -> Case:
        points = self._reducer.points(rows)
        place = rows if self._reducer.grid.regular else points
        values = np.asarray(self._values[:, self._pick, place])
        case = Case(
            values.reshape(*values.shape[:2], -1),
            self._state[self._pick][:, points],
            channels=self._channels,
            grid=self._reducer.grid,
            points=points,
            valid_time=self._valid_time,
            reference=lambda name: self._reference(name)[self._pick][:, points],
            ranks=self._scorer.ranks,
        )
        finite = (np.isfinite(case.error) | ~case.scored).all(axis=1)
        if not finite.all():
            raise _NotFiniteError(self._channels[int(np.argmin(finite))])
        return case

    def _reference(self, name: str) -> Array:
        if name not in self._references:
            self._references[name] = self._scorer.reference(name, self._all, self._valid_time)
        return self._references[name]

    def _global(self, vector: Vector) -> Array:
        """The vector for the region "global", nothing for the others."""
        if "global" not in self._reducer.regions:
            raise ValueError('spectra are of the whole globe: add "global" to the regions')
        out = np.full((len(self._reducer.regions), vector.size), np.nan)
        out[self._reducer.regions.index("global")] = vector
        return out


class _Sums:
    """Sums over regions of statistics and of the weights behind them."""

    def __init__(self, reducer: Reducer, channels: int) -> None:
        self._reducer, self._channels = reducer, channels
        self._totals: dict[str, Vector] = {}
        self._statistics: dict[str, Statistic] = {}
        self._masked: set[str] = set()

    def add(self, case: Case, statistics: Sequence[Statistic], rows: slice, *, base: bool = True) -> None:
        """Add the statistics of a band of rows; `base` counts its points."""
        joint = len(case.channels) != self._channels
        scored = np.asarray(case.scored.all(axis=0, keepdims=True) if joint else case.scored)
        fields: dict[str, Array] = {}
        if base:
            fields["sum_w"] = scored[..., None]
            self._add({"n": scored[..., None], "points": np.ones((*scored.shape, 1))}, rows, weighted=False)
        for statistic in statistics:
            mask, valid = scored, statistic.valid(case)
            if valid is not None:
                mask = scored & valid
                self._masked.add(statistic.id)
                fields[statistic.id + WEIGHT] = mask[..., None]
            self._statistics[statistic.id] = statistic
            field = statistic.map(case)
            if isinstance(field, list):
                self._add_sparse(statistic.id, field, mask, rows)
            else:
                full = field if field.ndim == 3 else field[..., None]
                fields[statistic.id] = full if mask.all() else np.where(mask[..., None], full, 0.0)
        self._add(fields, rows)

    def _total(self, name: str, channels: int, size: int) -> Vector:
        return self._totals.setdefault(name, np.zeros((channels, len(self._reducer.regions), size)))

    def _add(self, fields: Mapping[str, Array], rows: slice, *, weighted: bool = True) -> None:
        """Add fields (C, N, K) in one product."""
        if not fields:
            return
        points = next(iter(fields.values())).shape[1]
        ends = np.cumsum([0, *(f.shape[0] * f.shape[2] for f in fields.values())])
        flat = np.empty((points, ends[-1]))
        total = np.empty((len(self._reducer.regions), ends[-1]))
        places = list(zip(fields.items(), ends[:-1], ends[1:], strict=True))
        for (name, field), start, stop in places:
            channels, _, size = field.shape
            flat[:, start:stop].reshape(points, channels, size)[:] = np.moveaxis(field, 0, 1)
            sums = np.moveaxis(self._total(name, channels, size), 0, 1)
            total[:, start:stop] = sums.reshape(len(total), -1)
        self._reducer.add(total, flat, rows, weighted=weighted)
        for (name, field), start, stop in places:
            sums = total[:, start:stop].reshape(len(total), field.shape[0], field.shape[2])
            self._totals[name][:] = np.moveaxis(sums, 1, 0)

    def _add_sparse(
        self, name: str, fields: list[sparse.csr_array], mask: npt.NDArray[np.bool_], rows: slice
    ) -> None:
        total = self._total(name, len(fields), fields[0].shape[1])
        for sums, field, keep in zip(total, fields, mask, strict=True):
            self._reducer.add(sums, field if keep.all() else sparse.diags_array(1.0 * keep) @ field, rows)

    def columns(self, case_members: int) -> list[dict[str, Array]]:
        """Means by channel, (region,) or (region, K)."""
        n, points = (self._totals[name][..., 0].astype(np.int64) for name in ("n", "points"))
        sum_w = self._totals["sum_w"][..., 0]
        columns: dict[str, Array] = {"n": n, "n_missing": points - n, "sum_w": sum_w}
        for name, statistic in self._statistics.items():
            weight = self._totals[name + WEIGHT] if name in self._masked else sum_w[..., None]
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = statistic.finish(self._totals[name] / weight, case_members)
            columns[name] = mean if statistic.vector else mean[..., 0]
            if name in self._masked:
                columns[name + WEIGHT] = weight[..., 0]
        return [{name: column[c] for name, column in columns.items()} for c in range(self._channels)]


def _loaded(values: Array) -> Array:
    """Values in memory, unless they are lazy and large."""
    if isinstance(values, np.ndarray) or np.prod(values.shape) * values.dtype.itemsize > _READ_BYTES:
        return values
    return np.asarray(values)


def _units(chunk: ForecastChunk, truth: Truth) -> dict[str, str]:
    theirs: tuple[str, ...] | None = getattr(chunk, "units", None)
    known = dict(zip(truth.channels, truth.units, strict=True)) if truth.units is not None else {}
    fallback = theirs if theirs is not None else ("",) * len(chunk.channels)
    return {c: known.get(c, u) for c, u in zip(chunk.channels, fallback, strict=True)}


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


def _cell(value: Any) -> list[float] | None:
    """A list, None where nothing is defined."""
    return None if value is None or np.isnan(value).all() else np.asarray(value).tolist()
