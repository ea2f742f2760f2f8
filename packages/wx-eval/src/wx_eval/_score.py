"""Area means of statistics for one chunk of a forecast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import numpy.typing as npt

from ._blocks import Blocks
from ._case import Case
from ._fields import Layout
from ._grid import Array, Vector
from ._kernels import Kernel
from ._metrics import Metric
from ._protocols import Climatology, Comm
from ._records import WEIGHT
from ._reduce import Reducer, add_rows
from ._statistics import AnyStatistic, Fields, FieldStatistic, Products, Ranks, Statistic

if TYPE_CHECKING:
    import xarray as xr
    from scipy import sparse

# Points (times channels) that are scored together: worth the calls, and bounded whatever the grid.
_GROUP_POINTS = 1 << 16

Columns = dict[str, dict[str, Array]]
"""(region,) or (region, K) by channel and statistic."""


@dataclass(frozen=True)
class Task:
    """A chunk that was checked and its truth.

    Attributes:
        values: (M, C, *space), perhaps in a file.
        truth: (C, N).
        units: by channel, "" when unknown.
        valid_time: of the truth.
        name: of the forecast in errors.
    """

    values: Array
    truth: Array
    units: Mapping[str, str]
    valid_time: np.datetime64
    name: str


class Scorer:
    """Statistics of one chunk after the other, on one grid.

    Args:
        layout: of the truth.
        reducer: of the whole grid.
        metrics: decide on the statistics.
        climatology: for those that need one.
        first_row: of the grid that the chunks hold.
        kernel: see `ensemble_statistics`.
    """

    def __init__(
        self,
        layout: Layout,
        reducer: Reducer,
        metrics: Sequence[Metric],
        climatology: Climatology | None,
        first_row: int = 0,
        kernel: Kernel = "numpy",
    ) -> None:
        self.layout, self.reducer, self._climatology = layout, reducer, climatology
        self.rows = slice(first_row, first_row + len(layout.grid.edges) - 1)
        self.statistics: list[AnyStatistic] = list(dict.fromkeys(s for m in metrics for s in m.statistics))
        ids = [s.id for s in self.statistics]
        if len(set(ids)) != len(ids):
            raise ValueError(
                f"two different statistics have one id: {sorted({i for i in ids if ids.count(i) > 1})}"
            )
        whole = [s.id for s in self.statistics if isinstance(s, FieldStatistic) or s.scope == "field"]
        if whole and self.rows != slice(0, reducer.rows):
            raise ValueError(
                f"{whole} need whole fields and no rank holds one: gather it or leave their metrics out"
            )
        self.used_climatology, self.kernel = False, kernel
        self.ranks = any(getattr(s, "ranks", False) for s in self.statistics)

    def missing(self) -> dict[str, Array]:
        """Columns of a chunk that has no truth."""
        count = self.reducer.weights(slice(0, self.reducer.rows), weighted=False)
        points = count.sum(axis=0)[:, 0, 0].astype(np.int64)
        return {"n": np.zeros_like(points), "n_missing": points, "sum_w": np.zeros(len(points))}

    def columns(self, task: Task) -> Columns:
        """What is kept of a chunk."""
        return self.finish(self.groups(task), None)

    def groups(self, task: Task) -> list[Group]:
        """Channels of a chunk that are scored together, with their sums over the rows of the chunk."""
        channels = tuple(task.units)
        alone: list[AnyStatistic] = []
        joint: dict[tuple[str, tuple[str, ...]], list[AnyStatistic]] = {}
        for statistic in self.statistics:
            if statistic.minimum_members > task.values.shape[0]:
                continue
            found = statistic.groups(channels) if isinstance(statistic, Statistic) else None
            if found is None:
                alone.append(statistic)
            for item in (found or {}).items():
                joint.setdefault(item, []).append(statistic)
        regular, first = self.reducer.grid.regular, self.reducer.points(self.rows).start
        run = 1 if regular else self.reducer.points(slice(self.rows.start, self.rows.start + 1)).stop - first
        blocks = Blocks(task.values, run=run, rows=self.rows.stop - self.rows.start)
        source = _Source(self, task, blocks, {})
        step = max(1, _GROUP_POINTS // self.layout.grid.size)
        picks = [slice(c, min(c + step, len(channels))) for c in range(0, len(channels), step)]
        groups = [Group(source, pick, alone, None) for pick in picks]
        for (name, members), statistics in joint.items():
            groups.append(Group(source, [channels.index(m) for m in members], statistics, (name,)))
        for rows in blocks.rows:
            for group in groups:
                group.add(slice(rows.start + self.rows.start, rows.stop + self.rows.start))
        for group in groups:
            group.add_whole()
        return groups

    def finish(self, groups: Sequence[Group], comm: Comm | None) -> Columns:
        """Columns from the sums of all groups, and of all ranks."""
        out: Columns = {}
        for group in groups:
            for name, columns in group.columns(comm).items():
                out.setdefault(name, {}).update(columns)
        return out

    def reference(self, name: str, valid_time: np.datetime64) -> xr.DataArray:
        """Climatological field of all channels that have it."""
        if self._climatology is None:
            raise ValueError(
                f"a metric needs the climatological {name}: give a climatology (climatology= in Python, "
                "--climatology on the command line)"
            )
        self.used_climatology = True
        field = self._climatology.at(name, valid_time)
        if field.shape[1:] != self.layout.grid.shape:
            raise ValueError(
                f"climatology {self._climatology.name!r} has fields {field.shape[1:]}, the truth "
                f"{self.layout.grid.shape}: regrid one of them"
            )
        self.layout.check_reference(field, dimensionless=name.endswith("fraction"))
        return field

    def pick(self, field: xr.DataArray, name: str, channels: tuple[str, ...]) -> Array:
        """Some channels of a climatological field (C, N)."""
        absent = [c for c in channels if c not in field["channel"].values]
        if absent and self._climatology is not None:
            raise ValueError(f"climatology {self._climatology.name!r} has no {name} of the channels {absent}")
        return np.asarray(field.sel(channel=list(channels)).values).reshape(len(channels), -1)


@contextmanager
def agreed(comm: Comm | None) -> Iterator[None]:
    """Let all ranks fail where one does, so that none waits for another one."""
    try:
        yield
    except Exception:
        if comm is not None:
            comm.sum(np.ones(1))
        raise
    if comm is not None and comm.sum(np.zeros(1))[0] > 0:
        raise RuntimeError("another rank could not score its rows: its own error says why")


@dataclass(frozen=True)
class _Source:
    """What the groups of one chunk share."""

    scorer: Scorer
    task: Task
    blocks: Blocks
    references: dict[str, xr.DataArray]


class Group:
    """Some channels of one chunk, scored together.

    Args:
        source: of the chunk.
        pick: positions of the channels.
        statistics: of these channels.
        names: of what the channels are combined to, None if each is scored by itself.
    """

    def __init__(
        self,
        source: _Source,
        pick: slice | list[int],
        statistics: Sequence[AnyStatistic],
        names: tuple[str, ...] | None,
    ) -> None:
        self._source, self._scorer, self._pick = source, source.scorer, pick
        self._reducer = source.scorer.reducer
        self._channels = tuple(np.asarray(tuple(source.task.units), object)[pick])
        self._names = names or self._channels
        self._picked: dict[str, Array] = {}
        self._local = [s for s in statistics if isinstance(s, Statistic) and s.scope == "point"]
        self._whole = [s for s in statistics if isinstance(s, Statistic) and s.scope == "field"]
        self._fields = [s for s in statistics if isinstance(s, FieldStatistic)]
        self._ensemble = any(s.reads_ensemble for s in (*self._local, *self._whole))
        self._sums = _Sums(self._reducer, len(self._names), source.scorer.rows)

    def add(self, rows: slice) -> None:
        """Add the sums of some rows, which follow one another."""
        if self._whole and not self._local:
            return
        for band in self._reducer.bands(rows, max(1, _GROUP_POINTS // len(self._channels))):
            shared = (self._whole or self._fields) and band == self._scorer.rows
            self._sums.add(self._everywhere if shared else self._case(band), self._local, band)

    def add_whole(self) -> None:
        """Add the statistics that need whole fields."""
        if self._whole:
            self._sums.add(self._everywhere, self._whole, self._scorer.rows, base=not self._local)

    def columns(self, comm: Comm | None) -> Columns:
        """Columns by channel."""
        if comm is not None:
            self._sums.exchange(comm)
        members = self._source.task.values.shape[0]
        out = dict(zip(self._names, self._sums.columns(members), strict=True))
        for statistic in self._fields:
            for name, vector in zip(self._channels, statistic.value(self._everywhere), strict=True):
                out[name][statistic.id] = self._global(vector)
        return out

    @cached_property
    def _everywhere(self) -> Case:
        return self._case(self._scorer.rows)

    def _case(self, rows: slice) -> Case:
        task, first = self._source.task, self._scorer.rows.start
        points, start = self._reducer.points(rows), self._reducer.points(self._scorer.rows).start
        local = slice(points.start - start, points.stop - start)
        values = self._source.blocks.read(self._pick, slice(rows.start - first, rows.stop - first))
        case = Case(
            values.reshape(*values.shape[:2], -1),
            task.truth[self._pick][:, local],
            channels=self._channels,
            grid=self._reducer.grid,
            points=points,
            valid_time=task.valid_time,
            reference=lambda name: self._reference(name)[:, local],
            units=tuple(task.units[c] for c in self._channels),
            ranks=self._scorer.ranks,
            kernel=self._scorer.kernel,
        )
        if self._ensemble:
            _ = case.ensemble
        finite = (np.isfinite(case.error) | ~case.scored).all(axis=1)
        if not finite.all():
            _refuse(case, int(np.argmin(finite)), task.name)
        return case

    def _reference(self, name: str) -> Array:
        references = self._source.references
        if name not in references:
            references[name] = self._scorer.reference(name, self._source.task.valid_time)
        if name not in self._picked:
            self._picked[name] = self._scorer.pick(references[name], name, self._channels)
        return self._picked[name]

    def _global(self, vector: Vector) -> Array:
        """The vector for the region "global", nothing for the others."""
        if "global" not in self._reducer.regions:
            raise ValueError('spectra are of the whole globe: add "global" to the regions')
        out = np.full((len(self._reducer.regions), vector.size), np.nan)
        out[self._reducer.regions.index("global")] = vector
        return out


def _refuse(case: Case, channel: int, name: str) -> NoReturn:
    """Raise ValueError for a channel in which the difference from the truth is not finite."""
    if np.isinf(case.truth[channel]).any():
        raise ValueError(
            f"the truth at {case.valid_time} is infinite in channel {case.channels[channel]!r}: set it to "
            "NaN where nothing should be verified"
        )
    raise ValueError(
        f"{name} is not finite in channel {case.channels[channel]!r} where the truth is: a failed forecast "
        "cannot be scored; set the truth to NaN where nothing should be verified"
    )


class _Sums:
    """Sums over regions of statistics and of the weights behind them.

    Where the rows are those of the whole grid they are added up at once. Otherwise they are kept until
    `exchange` has put those of all ranks together: the order of additions is that of the rows.
    """

    def __init__(self, reducer: Reducer, channels: int, rows: slice) -> None:
        self._reducer, self._channels, self._held = reducer, channels, rows
        self._shared = rows != slice(0, reducer.rows)
        self._rows: dict[str, list[Vector]] = {}
        self._totals: dict[str, Vector] = {}
        self._statistics: dict[str, Statistic] = {}
        self._masked: set[str] = set()

    def add(self, case: Case, statistics: Sequence[Statistic], rows: slice, *, base: bool = True) -> None:
        """Add the statistics of a band of rows; `base` counts its points."""
        joint = len(case.channels) != self._channels
        scored = np.asarray(case.scored.all(axis=0, keepdims=True) if joint else case.scored)
        if base:
            self._keep("sum_w", self._weights(scored, rows))
            self._keep("n", self._weights(scored, rows, weighted=False))
            self._keep("points", self._weights(np.ones_like(scored), rows, weighted=False))
        for statistic in statistics:
            valid = statistic.valid(case)
            mask = scored if valid is None else scored & valid
            if valid is not None:
                self._masked.add(statistic.id)
            if valid is not None or self._shared:
                self._keep(statistic.id + WEIGHT, self._weights(mask, rows))
            self._statistics[statistic.id] = statistic
            self._keep(statistic.id, self._mapped(statistic, case, mask, rows))

    def _weights(self, mask: npt.NDArray[np.bool_], rows: slice, *, weighted: bool = True) -> Vector:
        """(rows, R, C, 1) of the points in a mask."""
        if not mask.all():
            return self._reducer.sums(mask, rows, weighted=weighted)
        ones = self._reducer.weights(rows, weighted=weighted)
        return np.broadcast_to(ones, (*ones.shape[:2], len(mask), 1))

    def _mapped(self, statistic: Statistic, case: Case, mask: npt.NDArray[np.bool_], rows: slice) -> Vector:
        """(rows, R, C, K) of a statistic."""
        field, reducer = statistic.map(case), self._reducer
        weighted = not statistic.summed
        if isinstance(field, Ranks):
            pairs = zip(field.below, field.tied, mask, strict=True)
            sums = [reducer.rank_sums(b, t, m, case.members, rows) for b, t, m in pairs]
        elif isinstance(field, Products):
            products = [reducer.product_sums(v, rows, weighted=weighted) for v in field.vectors]
            sums = [p.reshape(*p.shape[:2], -1) for p in products]
        elif isinstance(field, Fields):
            whole = mask.all()
            kept = (f if whole else np.where(mask, f, 0.0) for f in field.fields)
            return np.concatenate([reducer.sums(f, rows, weighted=weighted) for f in kept], axis=-1)
        elif isinstance(field, list):
            sums = [self._sparse(f, m, rows) for f, m in zip(field, mask, strict=True)]
        else:
            where = mask if field.ndim == 2 else mask[..., None]
            return reducer.sums(field if mask.all() else np.where(where, field, 0.0), rows, weighted=weighted)
        return np.stack(sums, axis=2)

    def _sparse(self, field: sparse.csr_array, mask: npt.NDArray[np.bool_], rows: slice) -> Vector:
        if not mask.all():
            from scipy import sparse

            field = sparse.diags_array(1.0 * mask) @ field
        return self._reducer.sparse_sums(field, rows)

    def _keep(self, name: str, rows: Vector) -> None:
        if self._shared:
            self._rows.setdefault(name, []).append(rows)
        else:
            add_rows(self._totals.setdefault(name, np.zeros(rows.shape[1:])), rows)

    def exchange(self, comm: Comm) -> None:
        """Put the rows of all ranks together: one of them holds a row and the others add zeros to it."""
        if not self._shared:  # a single rank
            return
        found = {name: np.concatenate(rows) for name, rows in sorted(self._rows.items())}
        shapes = {name: rows.shape[1:] for name, rows in found.items()}
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        masked = np.array([name in self._masked for name in sorted(self._statistics)], np.float64)
        whole = np.zeros((self._reducer.rows, sum(sizes)))
        whole[self._held] = np.concatenate([r.reshape(len(r), -1) for r in found.values()], axis=1)
        summed = comm.sum(np.concatenate([masked, whole.ravel()]))
        self._masked = {n for n, flag in zip(sorted(self._statistics), summed, strict=False) if flag > 0}
        parts = np.split(summed[masked.size :].reshape(whole.shape), np.cumsum(sizes)[:-1], axis=1)
        for (name, shape), part in zip(shapes.items(), parts, strict=True):
            self._totals[name] = np.zeros(shape)
            add_rows(self._totals[name], part.reshape(-1, *shape))

    def columns(self, members: int) -> list[dict[str, Array]]:
        """Means by channel, (region,) or (region, K)."""
        totals = {name: np.moveaxis(total, 0, 1) for name, total in self._totals.items()}
        n, points = (totals[name][..., 0].astype(np.int64) for name in ("n", "points"))
        sum_w = totals["sum_w"][..., 0]
        columns: dict[str, Array] = {"n": n, "n_missing": points - n, "sum_w": sum_w}
        for name, statistic in self._statistics.items():
            weight = totals[name + WEIGHT] if name in self._masked else sum_w[..., None]
            divisor = np.where(weight > 0, 1.0, 0.0) if statistic.summed else weight
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = statistic.finish(totals[name] / divisor, members)
            columns[name] = mean if statistic.vector else mean[..., 0]
            if name in self._masked:
                columns[name + WEIGHT] = weight[..., 0]
        return [{name: column[c] for name, column in columns.items()} for c in range(self._channels)]
