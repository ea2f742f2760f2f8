"""Area-weighted statistics of states and of their differences over a lead, tied to what they describe."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wx_data._errors import StoreError
from wx_data._healpix import AnyGrid
from wx_data._manifest import write_table
from wx_data._progress import Progress
from wx_data._shards import Field
from wx_data._store import Store
from wx_data._times import (
    LeadLike,
    TimeLike,
    from_hours,
    lead_hours,
    leads_hours,
    period_hours,
    show,
    to_hours,
)

Floats = NDArray[np.float64]
_FILE = Path("_wx") / "stats.parquet"


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and population standard deviation over area and time, and extremes; every array is (C,).

    Attributes:
        mean: area-weighted mean.
        std: area-weighted standard deviation.
        minimum: smallest value.
        maximum: largest value.
        fields: how many fields have any value in this channel: the weight of a merge.
        count: number of fields.
    """

    mean: Floats
    std: Floats
    minimum: Floats
    maximum: Floats
    fields: Floats
    count: int

    def take(self, index: NDArray[np.int64]) -> "Moments":
        """The moments of some channels."""
        return Moments(
            mean=self.mean[index],
            std=self.std[index],
            minimum=self.minimum[index],
            maximum=self.maximum[index],
            fields=self.fields[index],
            count=self.count,
        )

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both samples together (Chan et al. 1983, doi:10.1080/00031305.1983.10483115).

        With n_a and n_b fields and d = mean_b - mean_a: mean = mean_a + d n_b / n and
        n std^2 = n_a std_a^2 + n_b std_b^2 + d^2 n_a n_b / n.
        """
        fields = self.fields + other.fields
        share = np.divide(other.fields, fields, out=np.zeros_like(fields), where=fields > 0)
        # A side without any value has NaN moments of weight zero.
        means = [np.where(side.fields > 0, side.mean, 0.0) for side in (self, other)]
        variances = [np.where(side.fields > 0, side.std**2, 0.0) for side in (self, other)]
        difference = np.where((self.fields > 0) & (other.fields > 0), means[1] - means[0], 0.0)
        base = np.where(self.fields > 0, means[0], means[1])
        variance = (1 - share) * variances[0] + share * variances[1] + difference**2 * share * (1 - share)
        empty = fields == 0
        return Moments(
            mean=np.where(empty, np.nan, base + difference * share),
            std=np.where(empty, np.nan, np.sqrt(variance)),
            minimum=np.minimum(self.minimum, other.minimum),
            maximum=np.maximum(self.maximum, other.maximum),
            fields=fields,
            count=self.count + other.count,
        )


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of a store over a period.

    Attributes:
        channels: names, in the order of the arrays.
        state: moments of the fields.
        residuals: lead in hours -> moments of x(t + lead) - x(t).
        parts: first and last time used, both inclusive, of each part that was merged.
        grid: digest of the grid.
    """

    channels: tuple[str, ...]
    state: Moments
    residuals: Mapping[int, Moments]
    parts: tuple[tuple[np.datetime64, np.datetime64], ...]
    grid: str

    @property
    def period(self) -> tuple[np.datetime64, np.datetime64]:
        """First and last time used, both inclusive."""
        return min(first for first, _ in self.parts), max(last for _, last in self.parts)

    @property
    def mean(self) -> Floats:
        """(C,) mean of the state."""
        return self.state.mean

    @property
    def std(self) -> Floats:
        """(C,) standard deviation of the state."""
        return self.state.std

    @property
    def digests(self) -> dict[str, str]:
        """Hashes of what the numbers belong to."""
        order = hashlib.sha256("\n".join(self.channels).encode()).hexdigest()[:12]
        return {
            "period": f"{show(self.period[0])}..{show(self.period[1])}",
            "channels": order,
            "grid": self.grid,
        }

    def residual(self, lead: LeadLike) -> Moments:
        """Moments of x(t + lead) - x(t).

        Raises:
            KeyError: they were not computed for this lead.
        """
        hours = lead_hours(lead)
        if hours not in self.residuals:
            have = ", ".join(f"{h} h" for h in self.residuals) or "none"
            raise KeyError(f"no residual statistics for {hours} h; computed leads: {have}")
        return self.residuals[hours]

    def select(self, channels: Sequence[str]) -> "Statistics":
        """The statistics of some channels, in that order."""
        absent = [name for name in channels if name not in self.channels]
        if absent:
            raise ValueError(
                f"statistics have no channel {', '.join(absent)}; they have {', '.join(self.channels)}"
            )
        index = np.array([self.channels.index(name) for name in channels], dtype=np.int64)
        return Statistics(
            channels=tuple(channels),
            state=self.state.take(index),
            residuals={lead: moments.take(index) for lead, moments in self.residuals.items()},
            parts=self.parts,
            grid=self.grid,
        )

    def merge(self, *others: "Statistics") -> "Statistics":
        """Statistics of several parts of a period together, in any order.

        Parts made with ``compute_statistics(..., part=(i, n))`` give what one call over the period gives.
        Separate periods merge as well, but without the residuals from one into the next.

        Raises:
            StoreError: other channels, grid or leads, or periods that overlap.
        """
        merged = self
        for other in others:
            merged = merged._merge(other)
        return merged

    def _merge(self, other: "Statistics") -> "Statistics":
        _check_channels(self, other.channels, "the other part")
        if other.grid != self.grid:
            raise StoreError(f"statistics of different grids cannot be merged: {self.grid} and {other.grid}")
        if self.residuals.keys() != other.residuals.keys():
            leads = f"{sorted(self.residuals)} and {sorted(other.residuals)} hours"
            raise StoreError(f"statistics of different leads cannot be merged: {leads}")
        twice = [(a, b) for a in self.parts for b in other.parts if a[0] <= b[1] and b[0] <= a[1]]
        if twice:
            (a, b), (c, d) = twice[0]
            raise StoreError(
                f"statistics of overlapping periods cannot be merged: {show(a)}..{show(b)} and "
                f"{show(c)}..{show(d)}"
            )
        return Statistics(
            channels=self.channels,
            state=self.state.merge(other.state),
            residuals={lead: m.merge(other.residuals[lead]) for lead, m in self.residuals.items()},
            parts=tuple(sorted((*self.parts, *other.parts))),
            grid=self.grid,
        )

    def check(
        self,
        channels: Sequence[str],
        grid: AnyGrid,
        period: tuple[TimeLike, TimeLike] | None = None,
    ) -> None:
        """Refuse statistics of other channels, of another order, of another grid, or of another period.

        Args:
            channels: of the data.
            grid: of the data.
            period: what the statistics must not reach beyond, both ends inclusive: the training years.

        Raises:
            StoreError: both hashes and the first difference are named.
        """
        _check_channels(self, tuple(channels), "the data")
        if grid.digest != self.grid:
            raise StoreError(
                f"statistics belong to another grid ({self.digests}, the data's is {grid.digest})"
            )
        if period is not None:
            self._check_period(period)

    def _check_period(self, period: tuple[TimeLike, TimeLike]) -> None:
        found = to_hours(self.period)
        first, last = period_hours(period, found)
        if found[0] < first or found[1] > last:
            wanted = f"{show(from_hours(first))}..{show(from_hours(last))}"
            raise StoreError(
                f"statistics belong to another period ({self.digests}): they reach beyond {wanted}. "
                f"Compute them anew over that period"
            )

    def save(self, path: str | Path) -> None:
        """Write a parquet table, one row per channel and kind; the path of a store means its own table."""
        rows = []
        for kind, lead, moments in self._kinds():
            for place, name in enumerate(self.channels):
                rows.append(
                    {
                        "channel": name,
                        "kind": kind,
                        "lead_hours": lead,
                        "mean": float(moments.mean[place]),
                        "std": float(moments.std[place]),
                        "minimum": float(moments.minimum[place]),
                        "maximum": float(moments.maximum[place]),
                        "fields": float(moments.fields[place]),
                        "count": moments.count,
                    }
                )
        parts = [[show(first), show(last)] for first, last in self.parts]
        about = {
            "period": [show(t) for t in self.period],
            "parts": parts,
            "grid": self.grid,
            "weighting": "area",
        }
        table = pa.Table.from_pylist(rows).replace_schema_metadata({"wx_data": json.dumps(about)})
        path = Path(path) / _FILE if Path(path).is_dir() else Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, path)

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Read back what `save` wrote; the path of a store means the table inside it.

        Raises:
            FileNotFoundError: there is no such table.
        """
        path = Path(path) / _FILE if Path(path).is_dir() else Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; compute_statistics(store, ...) writes it")
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"wx_data"])
        kinds: dict[int | None, list[dict[str, Any]]] = {}
        for entry in table.to_pylist():
            kinds.setdefault(entry["lead_hours"], []).append(entry)
        parts = about.get("parts", [about["period"]])
        return cls(
            channels=tuple(entry["channel"] for entry in kinds[None]),
            state=_from_rows(kinds[None]),
            residuals={lead: _from_rows(rows) for lead, rows in kinds.items() if lead is not None},
            parts=tuple((np.datetime64(first, "ns"), np.datetime64(last, "ns")) for first, last in parts),
            grid=about["grid"],
        )

    def _kinds(self) -> list[tuple[str, int | None, Moments]]:
        residuals = [(f"residual_{lead}h", lead, m) for lead, m in self.residuals.items()]
        return [("state", None, self.state), *residuals]


def compute_statistics(
    store: Store,
    *,
    period: tuple[TimeLike, TimeLike] | None = None,
    leads: Sequence[LeadLike] = (6,),
    part: tuple[int, int] = (0, 1),
    workers: int = 2,
    save: bool = True,
    progress: bool = False,
) -> Statistics:
    """Statistics of the states and of x(t + lead) - x(t) over `period`.

    With row weights a_i (share of the sphere's area) and T fields,
    mean = 1/T sum_t sum_ij a_i x_tij / W and std^2 = 1/T sum_t sum_ij a_i (x_tij - mean)^2 / W, in float64.
    Only pairs exactly `lead` apart and both inside the period count, so gaps and validation years stay out.
    Missing values are left out of their field.

    Args:
        store: the training store.
        period: first and last time, both inclusive; the whole store by default.
        leads: leads of the residuals; integers are hours.
        part: (i, n): do part i = 0..n-1 of n; `Statistics.merge` puts them together, and `save` with the
            path of the store keeps the result there. A part is never saved by itself.
        workers: threads.
        save: write `_wx/stats.parquet` into the store.
        progress: show a progress bar.

    Raises:
        ValueError: no step, or for some lead no pair, lies in the period.
    """
    first, last = period_hours(period, store.hours)
    steps = np.flatnonzero((store.hours >= first) & (store.hours <= last))
    if not steps.size:
        raise ValueError(f"period {period} holds no step of {store!r}")
    lags = leads_hours(leads)
    if any(lag < 1 for lag in lags):
        raise ValueError(f"leads must be positive; got {leads!r}")
    if not 0 <= part[0] < part[1] <= len(steps):
        raise ValueError(f"part must be (i, n) with 0 <= i < n <= {len(steps)} steps; got {part}")
    steps = np.array_split(steps, part[1])[part[0]]
    blocks = [block for block in np.array_split(steps, max(1, workers)) if block.size]
    with (
        Progress("statistics", len(steps), enabled=progress) as shown,
        ThreadPoolExecutor(len(blocks), thread_name_prefix="wx-statistics") as pool,
    ):
        found = list(pool.map(lambda block: _scan(store, block, lags, first, shown), blocks))
    moments = {lag: _total([block[lag] for block in found]) for lag in (0, *lags)}
    empty = [lag for lag in lags if not moments[lag].count and part == (0, 1)]
    if empty:
        raise ValueError(f"no two steps in the period are {empty[0]} h apart")
    statistics = Statistics(
        channels=store.channels,
        state=moments.pop(0),
        residuals=moments,
        parts=((store.times[steps[0]], store.times[steps[-1]]),),
        grid=store.grid.digest,
    )
    if save and part == (0, 1):
        statistics.save(store.path)
    return statistics


_Entry = tuple[Floats, Floats, Floats, Floats]  # mean, variance, minimum, maximum of one field, each (C,)


class _Sum:
    """Moments of fields that come one by one; the memory does not grow (Welford's update)."""

    def __init__(self, channels: int) -> None:
        self._count, self._fields = 0, np.zeros(channels)
        self._mean, self._squares = np.zeros(channels), np.zeros(channels)
        self._low, self._high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, entry: _Entry) -> None:
        """One more field, of weight one; a channel without any value is left out."""
        mean, variance, low, high = entry
        there = ~np.isnan(mean)
        self._count += 1
        self._fields += there
        difference = np.where(there, mean - self._mean, 0.0)
        self._mean += difference / np.maximum(self._fields, 1.0)
        self._squares += np.where(there, variance + difference * (mean - self._mean), 0.0)
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)

    def moments(self) -> Moments:
        """Of everything added so far."""
        fields = np.where(self._fields > 0, self._fields, np.nan)
        return Moments(
            mean=np.where(self._fields > 0, self._mean, np.nan),
            std=np.sqrt(self._squares / fields),
            minimum=self._low,
            maximum=self._high,
            fields=self._fields,
            count=self._count,
        )


def _total(parts: list[Moments]) -> Moments:
    return functools.reduce(Moments.merge, parts)


def _scan(
    store: Store, steps: NDArray[np.int64], lags: tuple[int, ...], first: int, shown: Progress
) -> dict[int, Moments]:
    """Moments of every field in `steps`, and of its difference to each earlier one that is a lag away."""
    weights = store.grid.area_weights() / store.grid.plane[1]
    recent: dict[int, Field] = {}
    found = {lag: _Sum(len(store.channels)) for lag in (0, *lags)}
    start = int(store.hours[steps[0]])
    earlier = [h for h in store.hours.tolist() if max(first, start - max(lags, default=0)) <= h < start]
    for hour in earlier:
        recent[hour] = _read(store, hour)
    for step in steps.tolist():
        hour = int(store.hours[step])
        field = _read(store, hour)
        found[0].add(_moments(field.astype(np.float64), weights))
        for lag in lags:
            if hour - lag in recent:
                found[lag].add(_moments(np.subtract(field, recent[hour - lag], dtype=np.float64), weights))
        recent[hour] = field
        for old in [h for h in recent if h <= hour - max(lags, default=0)]:
            del recent[old]
        shown.update()
    return {lag: total.moments() for lag, total in found.items()}


def _read(store: Store, hour: int) -> Field:
    field = np.empty((len(store.channels), *store.grid.plane), dtype=np.float32)
    store.read_into(int(store.index(from_hours(hour))[0]), field)
    return field


def _moments(field: Floats, weights: Floats) -> _Entry:
    """Of (C, H, W) in float64, which is overwritten; `weights` (H,) sum to 1/W."""
    low, high = field.min(axis=(1, 2)), field.max(axis=(1, 2))
    if np.isnan(low).any():
        return _moments_with_gaps(field, weights)
    mean = field.sum(axis=2) @ weights
    field -= mean[:, None, None]
    variance = np.einsum("chw,chw->ch", field, field) @ weights
    return mean, variance, low, high


def _moments_with_gaps(field: Floats, weights: Floats) -> _Entry:
    present = ~np.isnan(field)
    share = present * weights[:, None]
    total = share.sum(axis=(1, 2))
    total = np.where(total > 0, total, np.nan)
    mean = (np.where(present, field, 0.0) * share).sum(axis=(1, 2)) / total
    square = np.where(present, (field - mean[:, None, None]) ** 2, 0.0)
    variance = (square * share).sum(axis=(1, 2)) / total
    low = np.where(present, field, np.inf).min(axis=(1, 2))
    high = np.where(present, field, -np.inf).max(axis=(1, 2))
    return mean, variance, low, high


def _check_channels(statistics: Statistics, names: tuple[str, ...], whose: str) -> None:
    if names == statistics.channels:
        return
    order = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    pairs = zip((*statistics.channels, "nothing"), (*names, "nothing"), strict=False)
    place, (mine, theirs) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
    raise StoreError(
        f"statistics belong to other channels ({statistics.digests}, those of {whose} are {order}): "
        f"channel {place} is {mine} in the statistics and {theirs} in {whose}"
    )


def _from_rows(rows: list[dict[str, Any]]) -> Moments:
    names = ("mean", "std", "minimum", "maximum")
    columns = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}
    count = int(rows[0]["count"])
    fields = np.array([row.get("fields", count) for row in rows], dtype=np.float64)
    return Moments(count=count, fields=fields, **columns)
