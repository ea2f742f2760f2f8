"""Accumulated fields: sums over longer windows, and differences of what a forecast adds up from its start."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._channels import channel
from wx_data._errors import SourceError
from wx_data._healpix import AnyGrid
from wx_data._join import Versions, later, versions_of, with_versions
from wx_data._protocols import Source
from wx_data._remote import Traffic
from wx_data._store import field_array
from wx_data._times import from_hours, show, to_hours

HOURLY: Mapping[str, str] = {"tp": "tp01"}  # a channel, and the one whose sum over its window it is


class AccumulatedSource:
    """A source that adds channels which are sums of its hourly ones.

    `tp` at time t is the sum of the six fields `tp01` whose hours make up (t - 6 h, t]. Times whose window is
    not complete in `source` are not in `times`.

    Args:
        source: has the hourly channels.
        channels: what to offer, in order: channels of `source` and their sums.

    Raises:
        SourceError: no time has a complete window.
    """

    def __init__(self, source: Source, channels: Sequence[str]) -> None:
        self._source = source
        self.channels = tuple(channels)
        self.grid: AnyGrid = source.grid
        hours = to_hours(source.times)
        complete = np.ones(hours.size, dtype=bool)
        self._windows = {name: channel(name).accumulation_hours or 1 for name in channels if name in HOURLY}
        for window in self._windows.values():
            for back in range(window):
                complete &= np.isin(hours - back, hours)
        if not complete.any():
            raise SourceError(
                f"{', '.join(self._windows)}: no time has every hourly field of its window, "
                f"{max(self._windows.values())} h long; the source has {hours.size} times "
                f"{show(source.times[0])}..{show(source.times[-1])}"
            )
        self.times: NDArray[np.datetime64] = from_hours(hours[complete])
        summed = {name: f"sum of {w} hourly fields over (t - {w} h, t]" for name, w in self._windows.items()}
        provenance: dict[str, Any] = dict(getattr(source, "provenance", {}))
        self.provenance = {**provenance, "derived": {**provenance.get("derived", {}), **summed}}

    def __repr__(self) -> str:
        return f"AccumulatedSource({', '.join(self._windows)} from {self._source!r})"

    @property
    def statics(self) -> Mapping[str, NDArray[Any]]:
        """name -> (H, W) of the source."""
        return getattr(self._source, "statics", {})

    @property
    def variables(self) -> Mapping[str, Mapping[str, Any]]:
        """What the source's files say about each channel, or about the hourly one it is summed from."""
        found: Mapping[str, Mapping[str, Any]] = getattr(self._source, "variables", {})
        summed = {name: found[HOURLY[name]] for name in self._windows if HOURLY[name] in found}
        return {**found, **summed}

    @property
    def traffic(self) -> Traffic:
        """Requests, bytes and cache hits of the source so far."""
        return getattr(self._source, "traffic", Traffic())

    def read(self, times: Any, channels: Sequence[str] | None = None, /) -> xr.DataArray:
        """float32 (time, channel, latitude, longitude) at exactly `times`; all channels by default.

        Raises:
            SourceError: a channel or time that is not there, or a window that is not complete.
        """
        names = self.channels if channels is None else tuple(channels)
        hours = np.atleast_1d(to_hours(times))
        direct = [name for name in names if name not in self._windows]
        values = np.empty((hours.size, len(names), *self.grid.shape), dtype=np.float32)
        attributes: dict[Any, Any] = {}
        versions = np.full(hours.size, "", dtype="U8")
        if direct:
            found = self._source.read(from_hours(hours), direct)
            attributes, versions = found.attrs, versions_of(found)
            values[:, [names.index(name) for name in direct]] = found.values
        for name, window in self._windows.items():
            if name in names:
                values[:, names.index(name)], hourly = self._sum(name, hours, window)
                versions = later(versions, hourly)
        array = with_versions(field_array(values, from_hours(hours), names, self.grid), versions)
        array.attrs = {**attributes, "derived": self.provenance["derived"]}
        return array

    def _sum(self, name: str, hours: NDArray[np.int64], window: int) -> tuple[NDArray[np.float64], Versions]:
        needed = hours[:, None] - np.arange(window)
        every, place = np.unique(needed, return_inverse=True)
        place = place.reshape(needed.shape)
        found = self._source.read(from_hours(every), [HOURLY[name]])
        fields, versions = found.values[:, 0], versions_of(found)
        total, latest = np.zeros((hours.size, *self.grid.shape)), versions[place[:, 0]]
        for back in range(window):
            total += fields[place[:, back]]
            latest = later(latest, versions[place[:, back]])
        return total, latest


def state_windows(path: Path, datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """GRIB datasets whose accumulated variables say over how many hours they accumulate.

    Fields that a forecast accumulates from its start become differences of neighbouring steps. Where the
    windows are not of one length nothing is stated, and the channel is refused.
    """
    accumulated = {
        str(name)
        for dataset in datasets
        for name, array in dataset.data_vars.items()
        if array.attrs.get("GRIB_stepType") == "accum"
    }
    if not accumulated:
        return list(datasets)
    steps = _step_ranges(path)
    found = []
    for dataset in datasets:
        for name in accumulated & set(map(str, dataset.data_vars)):
            ranges = steps.get(str(dataset[name].attrs.get("GRIB_shortName")), set())
            lengths = {end - start for start, end in ranges}
            if len(lengths) == 1:
                dataset = dataset.assign({name: _stated(dataset[name], lengths.pop())})
            elif ranges and all(start == 0 for start, _ in ranges):
                dataset = dataset.assign({name: _differences(dataset[name])})
        found.append(dataset)
    return found


def hourly_windows(dataset: xr.Dataset) -> xr.Dataset:
    """ERA5 as ARCO and the CDS give it, hour by hour: precipitation accumulates over the hour before."""
    names = [name for name in ("total_precipitation", "tp") if name in dataset.data_vars]
    return dataset.assign({name: dataset[name].assign_attrs(accumulation_hours=1) for name in names})


def _stated(array: xr.DataArray, hours: int) -> xr.DataArray:
    return array.assign_attrs(accumulation_hours=hours)


def _differences(array: xr.DataArray) -> xr.DataArray:
    if "step" not in array.dims:
        return array
    array = array.sortby("step")
    steps = array["step"].values.astype("timedelta64[h]").astype(np.int64)
    windows = np.diff(steps, prepend=0)
    lengths = set(windows[windows > 0].tolist())
    if len(lengths) != 1:
        return array
    values = array.transpose("step", ...).values.astype(np.float64)
    # What fell in the hours before step 0 is not in this forecast.
    first = values[:1] if windows[0] else np.full_like(values[:1], np.nan)
    change = np.concatenate((first, np.diff(values, axis=0)))
    moved = array.transpose("step", ...).copy(data=change.astype(np.float32))
    return _stated(moved, lengths.pop())


def _step_ranges(path: Path) -> dict[str, set[tuple[int, int]]]:
    """GRIB short name -> (first, last hour) of every accumulated message."""
    import eccodes

    found: dict[str, set[tuple[int, int]]] = {}
    with open(path, "rb") as file:
        while (message := eccodes.codes_grib_new_from_file(file, headers_only=True)) is not None:
            try:
                if eccodes.codes_get(message, "stepType") == "accum":
                    eccodes.codes_set(message, "stepUnits", 1)
                    span = tuple(eccodes.codes_get(message, key, int) for key in ("startStep", "endStep"))
                    found.setdefault(eccodes.codes_get(message, "shortName"), set()).add((span[0], span[1]))
            finally:
                eccodes.codes_release(message)
    return found
