"""Which variable, level and units of a dataset a channel is."""

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from wx_data._channels import ON_LEVELS, SINGLE, Channel, channel
from wx_data._checks import convert_units
from wx_data._errors import SourceError
from wx_data._units import conversion

LATITUDE = ("latitude", "lat")
LONGITUDE = ("longitude", "lon")
LEVEL = ("level", "isobaricInhPa", "pressure_level", "plev", "levels", "lev")
MEMBER = ("number", "member", "realization", "ensemble")
CHANNEL = ("channel", "variable")
_WINDOW = re.compile(r"total_precipitation_(\d+)hr|tp(\d\d)")
_TEN_METRE = ("u10", "v10", "u100", "v100")  # in CDS files these are metres above ground, not hPa


@dataclass(frozen=True)
class Match:
    """Where a channel lives: `array` at `pick` (dimension -> index), times `factor` plus `offset`."""

    spec: Channel
    dataset: int
    array: xr.DataArray = field(repr=False, compare=False)
    pick: Mapping[str, int]
    factor: float
    offset: float


def one_of(names: Sequence[str], among: Any) -> str | None:
    """The first of `names` that is in `among`."""
    return next((name for name in names if name in among), None)


def match(spec: Channel, datasets: Sequence[xr.Dataset]) -> Match | None:
    """Find a channel; None if no dataset has a variable of that name on that level.

    Raises:
        SourceError: it is there, but as another quantity or in units that do not convert.
    """
    for number, dataset in enumerate(datasets):
        for array in _candidates(spec, dataset):
            pick = _pick(spec, array)
            if pick is None:
                continue
            factor, offset = _units(spec, array)
            return Match(spec, number, array, pick, factor, offset)
        packed = _packed(spec, dataset)
        if packed is not None:
            return Match(spec, number, *packed)
    return None


def present(datasets: Sequence[xr.Dataset]) -> tuple[str, ...]:
    """Names of every non-static channel of the lexicon that the datasets hold."""
    single = [name for name, spec in SINGLE.items() if not spec.static]
    levels = sorted({level for dataset in datasets for level in levels_of(dataset)})
    names = [*single, *(f"{name}{level}" for name in ON_LEVELS for level in levels)]
    for dataset in datasets:
        axis = one_of(CHANNEL, dataset.dims)
        if axis is not None and axis in dataset.coords:
            names += [str(name) for name in dataset[axis].values if str(name) not in names]
    return tuple(name for name in names if match(channel(name), datasets) is not None)


def levels_of(dataset: xr.Dataset | xr.DataArray) -> list[int]:
    """Pressure levels in hPa, of every level coordinate; empty without one.

    A dimension is one of levels by its name, or by the standard name `air_pressure`.

    Raises:
        SourceError: levels that are not pressures, or not whole hPa.
    """
    return [level for name in _level_axes(dataset) for level in _levels(dataset.coords[name])]


def _level_axes(dataset: xr.Dataset | xr.DataArray) -> list[str]:
    """Names of the level coordinates."""
    named = one_of(LEVEL, dataset.coords)
    found = [] if named is None else [named]
    for name, coordinate in dataset.coords.items():
        stated = coordinate.attrs.get("standard_name") == "air_pressure"
        if stated and name not in found and coordinate.dims == (name,):
            found.append(str(name))
    return found


def _levels(coordinate: xr.DataArray) -> list[int]:
    name = coordinate.name
    units = str(coordinate.attrs.get("units", "hPa"))
    try:
        scale = conversion(units, "hPa")
    except ValueError:
        scale = None
    if scale is None:
        raise SourceError(f"levels {name!r} have units {units!r}; pressure levels are expected")
    values = np.atleast_1d(coordinate.values).astype(np.float64) * scale[0]
    return [round(v) if abs(v - round(v)) < 1e-6 else -1 for v in values.tolist()]


def explain(spec: Channel, datasets: Sequence[xr.Dataset]) -> str:
    """Why a channel was not found."""
    head = f"{spec.name} ({spec.long_name})"
    for dataset in datasets:
        for array in _candidates(spec, dataset):
            levels = levels_of(array)
            if spec.level is not None and levels:
                return f"{head}: levels present are {', '.join(map(str, sorted(levels)))}"
            if spec.level is None and levels:
                at = ", ".join(map(str, sorted(levels)))
                return f"{head}: variable {array.name!r} lies on levels {at}, which the channel does not"
            if spec.accumulation_hours is not None:
                return f"{head}: {_explain_window(spec, array)}"
    names = [str(name) for dataset in datasets for name in dataset.data_vars]
    near = difflib.get_close_matches(spec.long_name, names, n=3, cutoff=0.4)
    listed = f"nearest are {', '.join(near)}" if near else f"variables are {', '.join(names[:12])}"
    return f"{head}: no such variable; {listed}"


def _candidates(spec: Channel, dataset: xr.Dataset) -> list[xr.DataArray]:
    names: list[Hashable] = [spec.name, spec.variable, spec.long_name, *spec.aliases]
    found = [dataset[name] for name in dict.fromkeys(names) if name in dataset.data_vars]
    return [array for array in found if (one_of(CHANNEL, array.dims) is None)]


def _pick(spec: Channel, array: xr.DataArray) -> dict[str, int] | None:
    """Level of `array` that is the channel; None where it is not."""
    levels = levels_of(array)
    if spec.level is None:
        if levels or not _accumulation_fits(spec, array):
            return None
        return {}
    if not levels and array.name == spec.name and spec.name not in _TEN_METRE:
        return {}
    if spec.level not in levels:
        return None
    name = one_of(_level_axes(array), array.dims)
    return {} if name is None else {name: _levels(array.coords[name]).index(spec.level)}


def window_hours(array: xr.DataArray) -> int | None:
    """Hours over which `array` accumulates, as its attribute or its name says; None if neither does."""
    stated = array.attrs.get("accumulation_hours")
    if stated is not None:
        return int(stated)
    named = _WINDOW.fullmatch(str(array.name))
    return int(named[1] or named[2]) if named else None


def _accumulation_fits(spec: Channel, array: xr.DataArray) -> bool:
    return spec.accumulation_hours is None or window_hours(array) == spec.accumulation_hours


def _explain_window(spec: Channel, array: xr.DataArray) -> str:
    found, wanted = window_hours(array), spec.accumulation_hours
    if found is not None:
        return f"variable {array.name!r} accumulates over {found} h, {wanted} h expected"
    return (
        f"variable {array.name!r} does not say over how many hours it accumulates, {wanted} expected; set "
        f"dataset[{array.name!r}].attrs['accumulation_hours'] and pass the dataset to open_source"
    )


def _units(spec: Channel, array: xr.DataArray) -> tuple[float, float]:
    units = array.attrs.get("units")
    if units is None:
        raise SourceError(
            f"channel {spec.name}: variable {array.name!r} has no units, {spec.units!r} expected; set "
            "dataset[name].attrs['units'] and pass the dataset to open_source"
        )
    return convert_units(spec, str(units), array.attrs.get("standard_name"))


def _packed(spec: Channel, dataset: xr.Dataset) -> tuple[xr.DataArray, dict[str, int], float, float] | None:
    """The channel in an array that stacks channels along a labelled dimension."""
    axis = one_of(CHANNEL, dataset.dims)
    if axis is None or axis not in dataset.coords:
        return None
    names = [str(name) for name in dataset[axis].values]
    if spec.name not in names:
        return None
    place = names.index(spec.name)
    for array in dataset.data_vars.values():
        if axis in array.dims:
            units = _packed_units(spec, array, place)
            return array, {axis: place}, *convert_units(spec, units, None)
    return None


def _packed_units(spec: Channel, array: xr.DataArray, place: int) -> str:
    if "units" in array.coords:
        return str(np.atleast_1d(array.coords["units"].values)[place])
    raise SourceError(
        f"channel {spec.name}: array {array.name!r} states no units; give it a coordinate units(channel)"
    )
