"""Climatology by day of the year and hour of the day, smoothed over neighbouring days, kept in the store."""

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._convert import merging
from wx_data._errors import StoreError
from wx_data._progress import Progress
from wx_data._shards import ShardCodec
from wx_data._store import Store, channel_coordinates, field_attributes
from wx_data._times import Hours, TimeLike, from_hours, period_hours, show
from wx_data._zarr3 import SmallArray, read_group, sharded_metadata, write_atomic, write_json

Floats = NDArray[np.float64]
_DAYS = 366
_YEAR: Any = np.timedelta64(1, "Y")
_NAME = "climatology"


def climatology(
    store: Store,
    *,
    period: tuple[TimeLike, TimeLike] | None = None,
    window: int = 61,
    weights: Literal["gaussian", "triangular"] = "gaussian",
    hours: Sequence[int] | None = None,
    workers: int = 2,
    memory_bytes: int = 2 << 30,
    progress: bool = False,
) -> xr.DataArray:
    """Mean state by day of the year and hour of the day over `period`, written into the store.

    For day d = 1..366 and hour h the mean of all fields at hour h, each with weight w(k) for every day d that
    lies k days from it, |k| <= (window - 1) / 2, also across the year's end:
    w(k) = 1 - |k| / ((window + 1) / 2), or exp(-k^2 / 2 s^2) with s = window / 6. Distances are counted in
    days of the calendar, so 31 December is next to 1 January in every year. Day 366 of a common year is 1
    January of the next. Missing values are left out. Sums are float64, the result float32. The window is that
    of Jung and Leutbecher (2008), doi:10.1002/qj.289.

    Every shard is read once, in bands of latitude so that the memory stays bounded; a call that was killed
    goes on with the bands that are left. A climatology of other settings in the store is replaced at the end.

    Args:
        store: the training store.
        period: first and last time, both inclusive; the whole store by default.
        window: days, odd.
        weights: "gaussian" or "triangular".
        hours: hours of the day; by default all that occur.
        workers: threads that read.
        memory_bytes: for the sums; at least those of one latitude band must fit.
        progress: show a progress bar.

    Returns:
        (dayofyear, hour, channel, latitude, longitude), on `Healpix` (..., cell), lazy: the array
        `climatology` of the store.

    Raises:
        ValueError: an even window, or a day and hour without any data within the window.
    """
    plan = _plan(store, period, window, weights, hours)
    block = _block_rows(store, plan, memory_bytes)
    identity = {**plan.attributes, "rows": block}
    with merging(store.path / "_wx"):
        if _finished(store) != identity:
            with ThreadPoolExecutor(max(1, workers), thread_name_prefix="wx-climatology") as pool:
                _write(store, plan, block, identity, pool, progress)
    return open_climatology(store)


def open_climatology(store: Store | str | Path) -> xr.DataArray:
    """The climatology of a store, lazily: (dayofyear, hour, channel, latitude, longitude).

    Raises:
        StoreError: the store has none.
    """
    path = store.path if isinstance(store, Store) else Path(store)
    dataset = xr.open_zarr(path, chunks=None)
    if _NAME not in dataset:
        raise StoreError(
            f"{path} has no climatology; climatology(store) or `wx-data climatology` computes it"
        )
    found: xr.DataArray = dataset[_NAME]
    return found


@dataclass(frozen=True)
class _Plan:
    """Which steps are summed together, and with which weights the sums make up a day.

    Attributes:
        hours: hours of the day.
        steps: per hour of the day, per sum, the steps that it adds.
        weights: per hour of the day, (366, sums).
        attributes: what tells one climatology from another, JSON data.
    """

    hours: tuple[int, ...]
    steps: tuple[tuple[NDArray[np.int64], ...], ...]
    weights: tuple[Floats, ...]
    attributes: dict[str, Any]


def _plan(
    store: Store,
    period: tuple[TimeLike, TimeLike] | None,
    window: int,
    kind: str,
    hours: Sequence[int] | None,
) -> _Plan:
    kernel = _kernel(window, kind)
    first, last = period_hours(period, store.hours)
    steps = np.flatnonzero((store.hours >= first) & (store.hours <= last))
    if not steps.size:
        raise ValueError(f"period {period} holds no step of {store!r}")
    of_day = store.hours[steps] % 24
    chosen = tuple(sorted(set(hours))) if hours is not None else tuple(np.unique(of_day).tolist())
    if not chosen or not set(chosen) <= set(of_day.tolist()):
        raise ValueError(f"hours {chosen} are not all in the period; it has {np.unique(of_day).tolist()}")
    parts = [_sums(store.hours, steps[of_day == hour], kernel, hour) for hour in chosen]
    attributes = {
        "period": [show(from_hours(store.hours[steps[0]])), show(from_hours(store.hours[steps[-1]]))],
        "window_days": window,
        "weights": kind,
        "hours": list(chosen),
        "steps": len(steps),
    }
    return _Plan(chosen, tuple(part[0] for part in parts), tuple(part[1] for part in parts), attributes)


def _kernel(window: int, kind: str) -> Floats:
    """Weights at 0, 1, ... (window - 1) / 2 days."""
    if window < 1 or window % 2 == 0 or window > 365:
        raise ValueError(f"window must be an odd number of days in 1..365; got {window}")
    days = np.arange(window // 2 + 1, dtype=np.float64)
    if kind == "triangular":
        return np.asarray(1.0 - days / ((window + 1) / 2))
    if kind == "gaussian":
        return np.asarray(np.exp(-0.5 * (days / (window / 6)) ** 2))
    raise ValueError(f'weights must be "gaussian" or "triangular"; got {kind!r}')


def _sums(
    hours: Hours, steps: NDArray[np.int64], kernel: Floats, hour: int
) -> tuple[tuple[NDArray[np.int64], ...], Floats]:
    """Steps that get the same weights, and these weights (366, sums), divided by their total."""
    keys = np.unique(_calendar(hours[steps], len(kernel) - 1), axis=0, return_inverse=True)
    groups = tuple(steps[keys[1].ravel() == number] for number in range(len(keys[0])))
    weights = np.stack([_weights(day, before, own, kernel) for day, before, own in keys[0].tolist()], axis=1)
    total = weights @ np.array([len(group) for group in groups], dtype=np.float64)
    if not (total > 0).all():
        day = int(np.flatnonzero(total == 0)[0]) + 1
        raise ValueError(
            f"no field at {hour} UTC lies within {len(kernel) - 1} days of day {day} of the year; "
            "choose a longer period or a wider window"
        )
    return groups, weights / total[:, None]


def _calendar(hours: Hours, half: int) -> NDArray[np.int64]:
    """(N, 3): day of the year, and the lengths of the year before and of the own year where they matter."""
    days = from_hours(hours).astype("datetime64[D]")
    years = days.astype("datetime64[Y]")
    day = (days - years.astype("datetime64[D]")).astype(np.int64) + 1
    before, own = _length(years - _YEAR), _length(years)
    return np.stack((day, np.where(day <= half + 1, before, 0), np.where(day + half >= 365, own, 0)), axis=1)


def _length(years: NDArray[np.datetime64]) -> NDArray[np.int64]:
    days = (years + _YEAR).astype("datetime64[D]") - years.astype("datetime64[D]")
    return np.asarray(days.astype(np.int64))


def _weights(day: int, before: int, own: int, kernel: Floats) -> Floats:
    """(366,) weight of a field on `day` for each day of its own year, the year before and the year after."""
    targets = np.arange(1, _DAYS + 1)
    distances = [np.abs(day - targets)]
    if before:
        distances.append(np.abs(day + before - targets))
    if own:
        distances.append(np.abs(day - own - targets))
    padded = np.append(kernel, 0.0)
    return np.asarray(sum(padded[np.minimum(distance, len(kernel))] for distance in distances))


def _block_rows(store: Store, plan: _Plan, memory_bytes: int) -> int:
    """Rows computed at a time: whole bands, as many as the memory holds."""
    sums = max(len(groups) for groups in plan.steps) + _DAYS
    per_row = 8 * sums * len(store.channels) * store.codec.columns * (2 if store.channels_with_nan else 1)
    band = store.codec.band
    bands = memory_bytes // (per_row * band)
    if bands < 1:
        raise ValueError(
            f"memory_bytes={memory_bytes} does not hold the sums of one band of {band} rows, which are "
            f"{per_row * band} bytes"
        )
    return int(min(bands, store.codec.bands)) * band


def _codec(store: Store, block: int) -> ShardCodec:
    """A shard holds all days of one hour of the day and one block of rows."""
    return replace(store.codec, fields=_DAYS, rows=block, band=store.codec.band)


def _write(
    store: Store, plan: _Plan, block: int, identity: dict[str, Any], pool: ThreadPoolExecutor, progress: bool
) -> None:
    folder = store.path / "_wx" / _NAME
    note = folder.with_suffix(".json")
    if not note.exists() or json.loads(note.read_text()) != identity:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(note, identity)
    folder.mkdir(exist_ok=True)
    codec, rows = _codec(store, block), store.codec.rows
    tail = ".0" * (len(codec.dims) - 1)
    starts = range(0, rows, block)
    reads = sum(len(group) for groups in plan.steps for group in groups) * len(starts)
    with Progress(_NAME, reads, enabled=progress) as shown:
        for number, start in enumerate(starts):
            for place in range(len(plan.hours)):
                path = folder / f"c.0.{place}.0.{number}{tail}"
                if not path.exists():
                    mean = _means(store, plan, place, (start, min(rows, start + block)), pool, shown)
                    write_atomic(path, codec.encode(_padded(mean, block)))
    _publish(store, plan, codec, folder, identity)
    note.unlink()


def _means(
    store: Store,
    plan: _Plan,
    place: int,
    rows: tuple[int, int],
    pool: ThreadPoolExecutor,
    shown: Progress,
) -> NDArray[np.float32]:
    """(366, C, rows, W) of one hour of the day."""
    groups, weights = plan.steps[place], plan.weights[place]
    shape = (len(store.channels), rows[1] - rows[0], store.codec.columns)
    gaps = bool(store.channels_with_nan)
    sums = np.zeros((len(groups), *shape))
    present = np.zeros((len(groups), *shape) if gaps else 0)

    def add(number: int) -> None:
        field = np.empty(shape, dtype=np.float32)
        for step in groups[number].tolist():
            store.read_into(step, field, rows=rows)
            if gaps:
                there = ~np.isnan(field)
                present[number] += there
                np.copyto(field, 0.0, where=~there)
            sums[number] += field
            shown.update()

    list(pool.map(add, range(len(groups))))
    mean = weights @ sums.reshape(len(groups), -1)
    if gaps:
        share = weights @ present.reshape(len(groups), -1)
        mean = np.divide(mean, share, out=np.full_like(mean, np.nan), where=share > 0)
    return mean.reshape(_DAYS, *shape).astype(np.float32)


def _padded(mean: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """The last block of rows filled up with NaN: shards of an array have one shape."""
    lacking = block - mean.shape[2]
    if not lacking:
        return mean
    return np.pad(mean, ((0, 0), (0, 0), (0, lacking), (0, 0)), constant_values=np.nan)


def _publish(store: Store, plan: _Plan, codec: ShardCodec, folder: Path, identity: Mapping[str, Any]) -> None:
    """Move the finished files into the Zarr group; its zarr.json, which names the array, comes last."""
    attributes = {
        **field_attributes(store.grid, *channel_coordinates()),
        "wx_climatology": dict(identity),
    }
    leading = {"dayofyear": (_DAYS, _DAYS), "hour": (len(plan.hours), 1)}
    metadata = sharded_metadata(codec, leading, attributes)
    metadata["shape"][3] = store.codec.rows
    days = SmallArray(np.arange(1, _DAYS + 1), ("dayofyear",), {"long_name": "day of the year"})
    hours = SmallArray(np.array(plan.hours), ("hour",), {"long_name": "hour of the day, UTC"})
    group = read_group(store.path)
    members = group["consolidated_metadata"]["metadata"]
    members.pop(_NAME, None)
    write_json(store.path / "zarr.json", group)
    shutil.rmtree(store.path / _NAME, ignore_errors=True)
    for name, small in (("dayofyear", days), ("hour", hours)):
        members[name] = small.metadata()
        (store.path / name).mkdir(exist_ok=True)
        write_json(store.path / name / "zarr.json", members[name])
        write_atomic(store.path / name / "c.0", small.encode())
    members[_NAME] = metadata
    write_json(folder / "zarr.json", metadata)
    folder.rename(store.path / _NAME)
    write_json(store.path / "zarr.json", group)


def _finished(store: Store) -> dict[str, Any] | None:
    members = read_group(store.path)["consolidated_metadata"]["metadata"]
    attributes: dict[str, Any] = members.get(_NAME, {}).get("attributes", {})
    text = attributes.get("wx_climatology")
    found: dict[str, Any] | None = None if text is None else json.loads(text)
    return found
