"""Checks of a field on its way into a store: units, missing values, plausibility."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._channels import Channel, channel
from wx_data._errors import SourceError
from wx_data._shards import Field
from wx_data._times import from_hours, show
from wx_data._units import conversion

Policy = Mapping[str, float | Literal["keep"]]


class _Layout(Protocol):
    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def hours(self) -> NDArray[np.int64]: ...
    @property
    def statics(self) -> Mapping[str, NDArray[np.float32]]: ...


def convert_units(spec: Channel, units: str, standard_name: str | None) -> tuple[float, float]:
    """(factor, offset) from what a file states to the units of the lexicon.

    Raises:
        SourceError: another quantity, or units that cannot be converted.
    """
    for name, other, factor in spec.equivalents:
        if standard_name == name:
            scale = _convertible(spec, units, other)
            return scale[0] * factor, scale[1] * factor
    accepted = {spec.standard_name, None, "unknown", ""}
    if standard_name not in accepted:
        raise SourceError(
            f"channel {spec.name}: the file says {standard_name!r}, expected {spec.standard_name!r}: "
            "these are different quantities"
        )
    return _convertible(spec, units, spec.units)


def _convertible(spec: Channel, found: str, wanted: str) -> tuple[float, float]:
    try:
        scale = conversion(found, wanted)
    except ValueError as error:
        raise SourceError(f"channel {spec.name}: {error}; expected units like {wanted!r}") from None
    if scale is None:
        raise SourceError(f"channel {spec.name}: units {found!r} found, {wanted!r} expected; not convertible")
    return scale


def check_units(array: xr.DataArray, names: Sequence[str]) -> None:
    """Refuse an array whose `units` coordinate, if it has one, differs from the lexicon."""
    if "units" not in array.coords:
        return
    for name, units in zip(names, np.atleast_1d(array["units"].values), strict=True):
        spec = channel(name)
        if not np.allclose(_convertible(spec, str(units), spec.units), (1.0, 0.0), rtol=1e-12, atol=0):
            raise SourceError(
                f"channel {name}: the source gives {str(units)!r}, it must convert to {spec.units!r}"
            )


def fill_missing(field: Field, names: Sequence[str], policy: Policy) -> Field:
    """Replace NaN in the channels that have a fill value."""
    for place, name in enumerate(names):
        value = policy.get(name, "keep")
        if value != "keep" and np.isnan(field[place]).any():
            field = field.copy()
            field[place] = np.nan_to_num(field[place], nan=float(value), posinf=np.inf, neginf=-np.inf)
    return field


def check_field(
    field: Field, entry: Mapping[str, Any], layout: _Layout, policy: Policy, implausible: str
) -> None:
    """Refuse missing, constant and out-of-range values that nobody allowed.

    Raises:
        SourceError: channel, time and values are named.
    """
    for place, name in enumerate(layout.channels):
        if entry["nan_count"][place] and policy.get(name) != "keep":
            raise SourceError(_nan_message(field[place], name, entry, layout))
        if implausible == "error":
            low, high = entry["minimum"][place], entry["maximum"][place]
            _check_range(channel(name), low, high, entry, field[place].size)


def _check_range(spec: Channel, low: float, high: float, entry: Mapping[str, Any], size: int) -> None:
    when = show(from_hours(entry["valid_time"] // 3600))
    least, most = spec.valid_range
    if low < least or high > most:
        raise SourceError(
            f"channel {spec.name} at {when}: values {low:g}..{high:g} {spec.units} leave the plausible range "
            f'{least:g}..{most:g}. implausible="keep" stores them as they are'
        )
    if low == high and size > 1 and spec.accumulation_hours is None:
        raise SourceError(
            f"channel {spec.name} at {when}: the field is constant ({low:g} {spec.units}). "
            'implausible="keep" stores it as it is'
        )


def _nan_message(field: Field, name: str, entry: Mapping[str, Any], layout: _Layout) -> str:
    missing = np.isnan(field)
    pattern = ""
    if missing.all():
        pattern = "; the whole field is missing: a hole in the source"
    elif "lsm" in layout.statics and np.mean(missing == (layout.statics["lsm"] > 0.5)) > 0.95:
        pattern = "; the pattern is that of the land mask"
    when = show(from_hours(entry["valid_time"] // 3600))
    return (
        f"channel {name} at {when}: {int(missing.sum())} missing values "
        f"({missing.mean():.1%} of the field){pattern}. Pass nan={{{name!r}: value}} to fill them or "
        f'nan={{{name!r}: "keep"}} to keep them'
    )
