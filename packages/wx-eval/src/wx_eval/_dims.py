"""Names of dims and coordinates: one for each here, and what files call them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

SYNONYMS = {
    "init_time": ("initial_time", "forecast_reference_time", "initialization_time", "reftime"),
    "lead_time": ("prediction_timedelta", "step", "forecast_period", "leadtime", "lead"),
    "valid_time": ("validity_time",),
    "member": ("number", "realization", "ensemble", "sample", "member_id", "ensemble_member"),
    "latitude": ("lat",),
    "longitude": ("lon",),
    "level": ("isobaricInhPa", "pressure_level", "plev", "pressure", "lev", "isobaricInPa"),
}
"""Listed in docs/wx-eval-conventions.md. `time` has no synonym: what it means depends on the others."""

SPACE = ("latitude", "longitude")
# Axes written in float32 differ from the same axes in float64 by up to 2e-5 degrees.
GRID_TOLERANCE = 1e-4
UNIT_SECONDS = {
    "ns": 1e-9,
    "nanoseconds": 1e-9,
    "s": 1,
    "seconds": 1,
    "minutes": 60,
    "h": 3600,
    "hour": 3600,
    "hours": 3600,
    "d": 86400,
    "days": 86400,
}

Named = TypeVar("Named", xr.DataArray, xr.Dataset)


def standard_names(data: Named) -> Named:
    """Rename the synonyms of dims and coordinates."""
    variables: dict[Any, xr.DataArray] = dict(data.data_vars) if isinstance(data, xr.Dataset) else {}
    known = set(map(str, data.dims)) | set(map(str, data.coords))
    renames = {}
    for name, synonyms in SYNONYMS.items():
        # forecast_period and its kin may be data variables in files without a "coordinates" attribute.
        present = [s for s in synonyms if s in known or (s in variables and variables[s].ndim <= 1)]
        if name not in known and present:
            renames[present[0]] = name
    data = data.rename(renames)
    if isinstance(data, xr.Dataset):
        return data.set_coords([n for n in SYNONYMS if n in data.data_vars and data[n].ndim <= 1])
    return data


def stored_size(field: xr.DataArray | xr.Variable, dim: str) -> int:
    """Size along a dim of the pieces in which a field is stored; 0 where nothing tells."""
    pieces = field.encoding.get("preferred_chunks", {})
    return max((int(pieces.get(name, 0)) for name in (dim, *SYNONYMS.get(dim, ()))), default=0)


def seconds(times: Any) -> npt.NDArray[Any]:
    """Times or durations to whole seconds, the resolution of every record key.

    Raises:
        TypeError: for anything else, such as plain numbers.
    """
    array = np.asarray(times)
    if array.dtype.kind == "O" and array.size and isinstance(array.flat[0], datetime):
        return array.astype("datetime64[s]")
    plain = array.dtype.kind not in "mM" and array.size
    if plain and not isinstance(array.flat[0], timedelta):
        raise TypeError(f"times must be of dtype datetime64 and durations timedelta64, got {times!r}")
    return array.astype("datetime64[s]" if array.dtype.kind == "M" else "timedelta64[s]")


def lead_seconds(lead: xr.DataArray, origin: str) -> npt.NDArray[np.timedelta64]:
    """Lead times of a coordinate, from their dtype or the unit it states.

    Args:
        lead: the coordinate.
        origin: whose it is, for messages.

    Raises:
        ValueError: for plain numbers without a unit.
    """
    values = lead.values
    if values.dtype.kind == "m":
        return seconds(values)
    scale = UNIT_SECONDS.get(str(lead.attrs.get("units", "")).strip().lower())
    if scale is None:
        raise ValueError(
            f"the lead times of {origin} are plain numbers without a unit: give that coordinate the "
            'attribute units = "hours", or the dtype timedelta64'
        )
    whole: npt.NDArray[np.timedelta64] = np.round(values * scale).astype("timedelta64[s]")
    return whole
