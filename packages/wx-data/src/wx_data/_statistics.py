"""Area-weighted statistics of states and of their differences over a lead, tied to what they describe."""

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
from tqdm.auto import tqdm

from wx_data._errors import StoreError
from wx_data._grid import Grid
from wx_data._shards import Field
from wx_data._store import Store
from wx_data._times import LeadLike, TimeLike, from_hours, lead_hours, leads_hours, period_hours, show

Floats = NDArray[np.float64]
_FILE = Path("_wx") / "stats.parquet"


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and population standard deviation over area and time; extremes; number of fields. All (C,)."""

    mean: Floats
    std: Floats
    minimum: Floats
    maximum: Floats
    count: int

    def take(self, index: NDArray[np.int64]) -> "Moments":
        """The moments of some channels."""
        return Moments(
            mean=self.mean[index],
            std=self.std[index],
            minimum=self.minimum[index],
            maximum=self.maximum[index],
            count=self.count,
        )


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of a store over a period.

    Attributes:
        channels: names, in the order of the arrays.
        state: moments of the fields.
        residuals: lead in hours -> moments of x(t + lead) - x(t).
        period: first and last time used, both inclusive.
        grid: digest of the grid.
    """

    channels: tuple[str, ...]
    state: Moments
    residuals: Mapping[int, Moments]
    period: tuple[np.datetime64, np.datetime64]
    grid: str

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
            period=self.period,
            grid=self.grid,
        )

    def check(self, channels: Sequence[str], grid: Grid) -> None:
        """Refuse statistics of other channels, of another order, or of another grid.

        Raises:
            StoreError: both hashes and the first difference are named.
        """
        names = tuple(channels)
        if names != self.channels:
            order = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
            pairs = zip((*self.channels, "nothing"), (*names, "nothing"), strict=False)
            place, (mine, theirs) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
            raise StoreError(
                f"statistics belong to other channels ({self.digests}, the data's are {order}): "
                f"channel {place} is {mine} in the statistics and {theirs} in the data"
            )
        if grid.digest != self.grid:
            raise StoreError(
                f"statistics belong to another grid ({self.digests}, the data's is {grid.digest})"
            )

    def save(self, path: str | Path) -> None:
        """Write a parquet table: one row per channel and kind."""
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
                        "count": moments.count,
                    }
                )
        about = {"period": [show(t) for t in self.period], "grid": self.grid, "weighting": "area"}
        table = pa.Table.from_pylist(rows).replace_schema_metadata({"wx_data": json.dumps(about)})
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        pq.write_table(table, unfinished)
        unfinished.replace(path)

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
        first, last = (np.datetime64(t, "ns") for t in about["period"])
        return cls(
            channels=tuple(entry["channel"] for entry in kinds[None]),
            state=_from_rows(kinds[None]),
            residuals={lead: _from_rows(rows) for lead, rows in kinds.items() if lead is not None},
            period=(first, last),
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
    parts = [part for part in np.array_split(steps, max(1, workers)) if part.size]
    with (
        tqdm(total=len(steps), disable=not progress, unit="step") as bar,
        ThreadPoolExecutor(len(parts), thread_name_prefix="wx-statistics") as pool,
    ):
        found = list(pool.map(lambda part: _scan(store, part, lags, first, bar), parts))
    moments = {lag: _combine([table for tables in found for table in tables[lag]]) for lag in (0, *lags)}
    empty = [lag for lag in lags if moments[lag] is None]
    if empty:
        raise ValueError(f"no two steps in the period are {empty[0]} h apart")
    whole = {lag: m for lag, m in moments.items() if m is not None}
    statistics = Statistics(
        channels=store.channels,
        state=whole.pop(0),
        residuals=whole,
        period=(store.times[steps[0]], store.times[steps[-1]]),
        grid=store.grid.digest,
    )
    if save:
        statistics.save(store.path / _FILE)
    return statistics


_Entry = tuple[Floats, Floats, Floats, Floats]  # mean, variance, minimum, maximum of one field, each (C,)


def _scan(
    store: Store, steps: NDArray[np.int64], lags: tuple[int, ...], first: int, bar: Any
) -> dict[int, list[_Entry]]:
    """Moments of every field in `steps`, and of its difference to each earlier one that is a lag away."""
    weights = store.grid.area_weights() / store.grid.shape[1]
    recent: dict[int, Field] = {}
    found: dict[int, list[_Entry]] = {lag: [] for lag in (0, *lags)}
    start = int(store.hours[steps[0]])
    earlier = [h for h in store.hours.tolist() if max(first, start - max(lags, default=0)) <= h < start]
    for hour in earlier:
        recent[hour] = _read(store, hour)
    for step in steps.tolist():
        hour = int(store.hours[step])
        field = _read(store, hour)
        found[0].append(_moments(field.astype(np.float64), weights))
        for lag in lags:
            if hour - lag in recent:
                found[lag].append(_moments(np.subtract(field, recent[hour - lag], dtype=np.float64), weights))
        recent[hour] = field
        for old in [h for h in recent if h <= hour - max(lags, default=0)]:
            del recent[old]
        bar.update()
    return found


def _read(store: Store, hour: int) -> Field:
    field = np.empty((len(store.channels), *store.grid.shape), dtype=np.float32)
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


def _combine(entries: list[_Entry]) -> Moments | None:
    """Law of total variance over fields, each of weight one; a field without any value is left out."""
    if not entries:
        return None
    means, variances, lows, highs = (np.array(column) for column in zip(*entries, strict=True))
    mean = np.nanmean(means, axis=0)
    variance = np.nanmean(variances + (means - mean) ** 2, axis=0)
    return Moments(
        mean=mean,
        std=np.sqrt(variance),
        minimum=lows.min(axis=0),
        maximum=highs.max(axis=0),
        count=len(entries),
    )


def _from_rows(rows: list[dict[str, Any]]) -> Moments:
    columns = {name: np.array([row[name] for row in rows]) for name in ("mean", "std", "minimum", "maximum")}
    return Moments(count=int(rows[0]["count"]), **columns)
