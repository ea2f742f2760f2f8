"""Checks of a field on its way into a store: units, missing values, plausibility."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._channels import Channel, channel
from wx_data._errors import SourceError
from wx_data._grid import Grid, nearest_present
from wx_data._healpix import AnyGrid
from wx_data._shards import Field
from wx_data._times import from_hours, show
from wx_data._units import conversion

Policy = Mapping[str, float | Literal["keep", "mean", "nearest"]]
_RULES = ("keep", "mean", "nearest")


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
    stated = "" if standard_name in (None, "unknown") else standard_name
    for name, other, factor in spec.equivalents:
        if stated == name and (stated or _scale(spec, units, other) is not None):
            scale = _convertible(spec, units, other)
            return scale[0] * factor, scale[1] * factor
    if stated not in ("", spec.standard_name):
        raise SourceError(
            f"channel {spec.name}: the file says {standard_name!r}, expected {spec.standard_name!r}: "
            "these are different quantities"
        )
    return _convertible(spec, units, spec.units)


def _scale(spec: Channel, found: str, wanted: str) -> tuple[float, float] | None:
    try:
        return conversion(found, wanted)
    except ValueError as error:
        raise SourceError(f"channel {spec.name}: {error}; expected units like {wanted!r}") from None


def _convertible(spec: Channel, found: str, wanted: str) -> tuple[float, float]:
    scale = _scale(spec, found, wanted)
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


class MissingFill:
    """Replaces missing values (NaN), channel by channel as the caller decided.

    Args:
        names: channels of the fields, in order.
        policy: channel -> a constant; "mean", the area-weighted mean of what is there in that field;
            "nearest", the value at the nearest point that has one; or "keep".
        grid: where the fields lie.

    Raises:
        ValueError: a rule that is not understood.
    """

    def __init__(self, names: Sequence[str], policy: Policy, grid: AnyGrid) -> None:
        wrong = {name: rule for name, rule in policy.items() if isinstance(rule, str) and rule not in _RULES}
        if wrong:
            raise ValueError(f"nan: a number or one of {', '.join(_RULES)} is expected; got {wrong}")
        self._rules = [(place, policy.get(name, "keep")) for place, name in enumerate(names)]
        self._grid = grid
        # A mask repeats from step to step: where its nearest points are is found once.
        self._nearest: dict[bytes, NDArray[np.intp]] = {}

    def __call__(self, field: Field, /) -> Field:
        """(C, H, W) or (C, cell) with the missing values replaced; the same array where there are none."""
        filled = field
        for place, rule in self._rules:
            if rule == "keep":
                continue
            missing = np.isnan(field[place])
            if not missing.any() or missing.all():
                continue
            filled = field.copy() if filled is field else filled
            filled[place][missing] = self._values(field[place], missing, rule)
        return filled

    def _values(self, values: Field, missing: NDArray[np.bool_], rule: float | str) -> Any:
        if rule == "mean":
            present, values = ~missing.reshape(self._grid.plane), values.reshape(self._grid.plane)
            area = np.where(present, self._grid.area_weights()[:, None], 0.0)
            return (np.where(present, values, 0.0) * area).sum(dtype=np.float64) / area.sum()
        if rule == "nearest":
            key = np.packbits(missing).tobytes()
            if key not in self._nearest:
                grid = self._grid
                found = (
                    nearest_present(missing, grid)
                    if isinstance(grid, Grid)
                    else grid.nearest_present(missing)
                )
                self._nearest[key] = found
            return values.ravel()[self._nearest[key]]
        return rule


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
        f"({missing.mean():.1%} of the field){pattern}. Pass nan={{{name!r}: rule}}, the rule being a "
        'constant, "mean", "nearest" or "keep"'
    )
