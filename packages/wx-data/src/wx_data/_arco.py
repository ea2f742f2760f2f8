"""ARCO-ERA5: a time axis from 1900 of which only the days named in the attributes hold data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._errors import SourceError
from wx_data._times import show

_NAMES = ("valid_time_start", "valid_time_stop", "valid_time_stop_era5t")
_DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class Validity:
    """Days that hold data, all inclusive: final ERA5 until `stop`, provisional ERA5T until `stop_era5t`."""

    start: np.datetime64
    stop: np.datetime64
    stop_era5t: np.datetime64 | None

    @classmethod
    def of(cls, attributes: Mapping[Any, Any]) -> "Validity | None":
        """Read from the attributes of a store; None if they do not state it.

        Raises:
            SourceError: an attribute is not a date.
        """
        if not {"valid_time_start", "valid_time_stop"} <= set(attributes):
            return None
        dates: list[np.datetime64 | None] = []
        for name in _NAMES:
            try:
                dates.append(np.datetime64(attributes[name], "D") if name in attributes else None)
            except ValueError:
                raise SourceError(f"attribute {name} is not a date: {attributes[name]!r}") from None
        start, stop, later = dates
        assert start is not None
        assert stop is not None
        return cls(start, stop, later)

    def clip(self, dataset: xr.Dataset, *, era5t: bool) -> xr.Dataset:
        """`dataset` on the valid times only, with a coordinate `expver`: "0001" is final, "0005" ERA5T."""
        times = dataset["time"].values
        last = self.stop_era5t if era5t and self.stop_era5t is not None else self.stop
        first, end = np.searchsorted(times, [self.start, last + _DAY])  # the whole last day
        if end <= first:
            raise SourceError(f"no time of the store lies within its validity: {self}")
        final = times[first:end] < self.stop + _DAY
        clipped = dataset.isel(time=slice(int(first), int(end)))
        return clipped.assign_coords(expver=("time", np.where(final, "0001", "0005")))

    def explain(self, times: NDArray[np.datetime64]) -> str:
        """Why times are not there, for an error message."""
        beyond = times >= self.stop + _DAY
        hint = ""
        if self.stop_era5t is not None and beyond.any() and (times < self.stop_era5t + _DAY).all():
            hint = f"; era5t=True reads {show(times[beyond][0])} from the provisional ERA5T"
        return f"; the store is valid for {self}{hint}"

    def __str__(self) -> str:
        dates = (self.start, self.stop, self.stop_era5t)
        return ", ".join(f"{name}={date}" for name, date in zip(_NAMES, dates, strict=True) if date)
