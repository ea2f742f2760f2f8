"""From forecasts and truth to records."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xarray as xr

from ._fields import Truth, as_history, forecast_chunks, seconds
from ._kernels import ensemble_statistics
from ._protocols import ForecastChunk, History
from ._records import SCHEMA, Conventions, Records
from ._reduce import NotFiniteError, Reducer, WeightSpec
from ._regions import DEFAULT_REGIONS, RegionSpec

Array = npt.NDArray[Any]

# Small fields are scored several channels at a time, so that a tile is worth its calls.
_GROUP_POINTS = 1 << 16


def evaluate(
    forecast: xr.DataArray | Iterable[ForecastChunk],
    truth: xr.DataArray | History,
    *,
    model: str,
    regions: RegionSpec = DEFAULT_REGIONS,
    weights: WeightSpec = "cell",
    truth_name: str | None = None,
    missing_truth: Literal["error", "drop"] = "error",
    rank_histogram: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Records:
    """Score every (init time, lead time, channel, region) of a forecast against the truth at its valid time.

    One row is always reduced in one fixed order, so records are bit-identical however the work is cut into
    chunks, calls or processes: evaluate parts anywhere and `merge`. Memory is that of one chunk.

    Args:
        forecast: array with dims (init_time, lead_time, member, channel, latitude, longitude), usual synonyms
            accepted and read lazily, or chunks in any order. Without a member dim it is deterministic.
        truth: array with dims (time, channel, latitude, longitude) or a History. NaN marks points that are
            not scored.
        model: name under which the rows are kept.
        regions: names or boolean masks, see `region_masks`.
        weights: "cell", "cos" (see `cell_weights`) or an array (H,) or (H, W).
        truth_name: name of the truth; by default that of the array, else "truth".
        missing_truth: whether a valid time without truth is an error or a row without scores.
        rank_histogram: also keep the rank histogram of every row.
        progress: called with the number of chunks done.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when grid, channels, units or times do not match, or a forecast is not finite where the
            truth is.
    """
    states = Truth(as_history(truth, "truth"))
    reducer = Reducer(states.latitude, states.longitude, regions, weights)
    conventions = Conventions(
        truth=truth_name or states.name,
        weights=reducer.weights_name,
        grid=reducer.grid_name,
        regions=reducer.region_hashes,
    )
    tables, units = [], {}
    chunks = forecast_chunks(forecast) if isinstance(forecast, xr.DataArray) else forecast
    for done, chunk in enumerate(chunks, start=1):
        tables.append(_score_chunk(chunk, states, reducer, model, missing_truth, rank_histogram))
        units.update(_units(chunk, states))
        if progress is not None:
            progress(done)
    if not tables:
        raise ValueError("forecast holds no chunk: check its init and lead times")
    return Records(pa.concat_tables(tables), replace(conventions, units=units))


def _units(chunk: ForecastChunk, truth: Truth) -> dict[str, str]:
    theirs: tuple[str, ...] | None = getattr(chunk, "units", None)
    known = dict(zip(truth.channels, truth.units, strict=True)) if truth.units is not None else {}
    fallback = theirs if theirs is not None else ("",) * len(chunk.channels)
    return {c: known.get(c, u) for c, u in zip(chunk.channels, fallback, strict=True)}


def _score_chunk(
    chunk: ForecastChunk,
    truth: Truth,
    reducer: Reducer,
    model: str,
    missing_truth: str,
    ranks: bool,
) -> pa.Table:
    init, lead = seconds(chunk.init_time), seconds(chunk.lead_time)
    values = np.asarray(chunk.values)
    positions = truth.check(chunk, values)
    state = truth.at((init + lead)[()])
    if state is not None:
        try:
            columns = _score(values, state[positions], reducer, ranks)
        except NotFiniteError as error:
            raise ValueError(
                f"forecast of {model!r} from {init} + {lead} is not finite in channel "
                f"{chunk.channels[error.channel]!r} where the truth is: a failed forecast cannot be scored; "
                "set the truth to NaN where nothing should be verified"
            ) from None
    elif missing_truth == "drop":
        columns = reducer.missing(len(positions))
    else:
        raise ValueError(
            f"truth has no state at {init + lead}, the valid time of init {init} + {lead}: shorten the "
            'forecast or record such forecasts without scores by missing_truth="drop"'
        )
    keys = {"model": model, "init_time": init, "lead_time": lead, "members": len(values)}
    return _table(columns, keys, chunk.channels, reducer.regions)


def _score(values: Array, state: Array, reducer: Reducer, ranks: bool) -> dict[str, Array]:
    """Columns of shape (channel, region), computed a few channels at a time."""
    step = max(1, _GROUP_POINTS // state[0].size)
    parts = []
    for start in range(0, len(state), step):
        group = slice(start, start + step)
        statistics = ensemble_statistics(values[:, group], state[group], ranks=ranks)
        try:
            parts.append(reducer.means(statistics, state[group]))
        except NotFiniteError as error:
            raise NotFiniteError(start + error.channel) from None
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _table(
    columns: dict[str, Array], keys: dict[str, Any], channels: tuple[str, ...], regions: tuple[str, ...]
) -> pa.Table:
    rows = len(channels) * len(regions)
    data: dict[str, Any] = {name: np.full(rows, value) for name, value in keys.items() if name != "model"}
    data["model"] = [keys["model"]] * rows
    data["channel"] = [channel for channel in channels for _ in regions]
    data["region"] = list(regions) * len(channels)
    data |= {name: list(column.reshape(rows, *column.shape[2:])) for name, column in columns.items()}
    arrays = [
        pa.array(data[f.name], f.type, from_pandas=True) if f.name in data else pa.nulls(rows, f.type)
        for f in SCHEMA
    ]
    return pa.table(arrays, schema=SCHEMA)
