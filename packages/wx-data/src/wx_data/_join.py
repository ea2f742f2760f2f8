"""Several sources as one: consecutive periods, and channels that lie in different files."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wx_data._errors import SourceError
from wx_data._healpix import AnyGrid
from wx_data._protocols import Source
from wx_data._remote import Traffic
from wx_data._store import field_array
from wx_data._times import Hours, from_hours, show, to_hours

Versions = NDArray[np.str_]


def join(
    sources: Sequence[Source],
    *,
    channels: Sequence[str] | None = None,
    times: Literal["same", "common"] = "same",
) -> "JoinedSource":
    """One source of several on the same grid.

    Sources of the same channels follow each other in time, such as monthly files; sources of different
    channels stand side by side, such as pressure levels and single levels.

    Args:
        sources: at least one.
        channels: which ones to offer, in order; all by default.
        times: what stands side by side must have the "same" times, or offers those in "common".

    Raises:
        SourceError: other grids, a time or a channel that comes twice, or times that are not the same.
    """
    if not sources:
        raise ValueError("join needs at least one source")
    grids = {source.grid for source in sources}
    if len(grids) > 1:
        raise SourceError(f"join: the sources lie on {len(grids)} grids: {[g.shape for g in grids]}")
    groups: dict[frozenset[str], list[Source]] = {}
    for source in sources:
        groups.setdefault(frozenset(source.channels), []).append(source)
    strands = [_Strand(parts) for parts in groups.values()]
    names = [name for strand in strands for name in strand.channels]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(
            f"join: {', '.join(twice)} come from sources that do not have the same channels; open each of "
            "them with channels="
        )
    absent = sorted(set(channels or ()) - set(names))
    if absent:
        raise SourceError(f"join: no source has {', '.join(absent)}; there are {', '.join(names)}")
    return JoinedSource(strands, tuple(channels or names), _shared_times(strands, times))


def versions_of(array: xr.DataArray) -> Versions:
    """ERA5's `expver` of each time: "0001" is final, "0005" provisional; empty where the data do not say."""
    found = array.coords["expver"].values.astype(str) if "expver" in array.coords else ""
    return np.broadcast_to(np.asarray(found, dtype="U8"), array.sizes["time"])


def later(one: Versions, other: Versions) -> Versions:
    """What is made of two fields is provisional as soon as one of them is."""
    return np.where(one > other, one, other)


def with_versions(array: xr.DataArray, versions: Versions) -> xr.DataArray:
    """`array` with a coordinate `expver` where any time has a version."""
    return array.assign_coords(expver=("time", versions)) if (versions != "").any() else array


def _shared_times(strands: "Sequence[_Strand]", rule: str) -> Hours:
    hours = strands[0].hours
    for strand in strands[1:]:
        if rule == "same" and not np.array_equal(strand.hours, hours):
            different = np.setxor1d(strand.hours, hours)
            raise SourceError(
                f"join: {strands[0].channels[0]} and {strand.channels[0]} differ in {different.size} times, "
                f'first {show(from_hours(different[0]))}; times="common" takes those that both have'
            )
        hours = np.intersect1d(hours, strand.hours)
    if not hours.size:
        raise SourceError("join: the sources have no time in common")
    return hours


class _Strand:
    """Sources of the same channels, one after the other."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = sorted(parts, key=lambda part: part.times[0])
        self.channels = self.parts[0].channels
        hours = np.concatenate([to_hours(part.times) for part in self.parts])
        owner = np.repeat(np.arange(len(self.parts)), [len(part.times) for part in self.parts])
        order = np.argsort(hours, kind="stable")
        self.hours, self.owner = hours[order], owner[order]
        again = np.flatnonzero(np.diff(self.hours) == 0)
        if again.size:
            raise SourceError(
                f"join: {again.size} times come twice, first {show(from_hours(self.hours[again[0]]))} "
                f"({self.channels[0]}, ...)"
            )

    def fill(
        self, values: NDArray[np.float32], hours: Hours, names: Sequence[str], places: list[int]
    ) -> Versions:
        owner = self.owner[np.searchsorted(self.hours, hours)]
        versions = np.full(hours.size, "", dtype="U8")
        for number in np.unique(owner):
            rows = np.flatnonzero(owner == number)
            found = self.parts[number].read(from_hours(hours[rows]), list(names))
            values[rows[:, None], np.asarray(places)] = found.transpose("time", "channel", ...).values
            versions[rows] = versions_of(found)
        return versions


class JoinedSource:
    """Several sources as one; made by `join`.

    Attributes:
        channels: of all sources.
        times: ``datetime64[ns]``, strictly increasing.
        grid: of every source.
        statics: name -> (H, W), of the first source that has it.
        provenance: that of every source, as JSON data.
        variables: what the files say about each channel, of the first source that has it.
    """

    def __init__(self, strands: Sequence[_Strand], channels: tuple[str, ...], hours: Hours) -> None:
        self._strands, self._hours = strands, hours
        parts = [part for strand in strands for part in strand.parts]
        self.channels = channels
        self.times: NDArray[np.datetime64] = from_hours(hours)
        self.grid: AnyGrid = parts[0].grid
        self.statics: Mapping[str, NDArray[Any]] = {}
        for part in reversed(parts):
            self.statics = {**self.statics, **getattr(part, "statics", {})}
        origins = [getattr(part, "provenance", {}) for part in parts]
        self.provenance: dict[str, Any] = {"source": f"{len(parts)} joined sources", "parts": origins}
        self.variables: Mapping[str, Mapping[str, Any]] = {}
        for part in reversed(parts):
            self.variables = {**self.variables, **getattr(part, "variables", {})}

    @property
    def traffic(self) -> Traffic:
        """Requests, bytes and cache hits of all sources so far."""
        parts = [part for strand in self._strands for part in strand.parts]
        return sum((getattr(part, "traffic", Traffic()) for part in parts), Traffic())

    def __repr__(self) -> str:
        first, last = show(self.times[0]), show(self.times[-1])
        return (
            f"JoinedSource({sum(len(s.parts) for s in self._strands)} sources, {len(self.times)} times "
            f"{first}..{last}, {len(self.channels)} channels, {self.grid})"
        )

    def read(self, times: Any, channels: Sequence[str] | None = None, /) -> xr.DataArray:
        """float32 (time, channel, latitude, longitude), or (time, channel, cell), at exactly `times`.

        Raises:
            SourceError: a time or channel that is not there.
        """
        names = self.channels if channels is None else tuple(channels)
        absent = sorted(set(names) - set(self.channels))
        if absent:
            raise SourceError(f"no source has {', '.join(absent)}; there are {', '.join(self.channels)}")
        hours = np.atleast_1d(to_hours(times))
        missing = hours[~np.isin(hours, self._hours)]
        if missing.size:
            raise SourceError(
                f"{missing.size} of {hours.size} times are not in the sources, first "
                f"{show(from_hours(missing[0]))}; they have {len(self.times)} times "
                f"{show(self.times[0])}..{show(self.times[-1])}"
            )
        values = np.empty((hours.size, len(names), *self.grid.shape), dtype=np.float32)
        versions = np.full(hours.size, "", dtype="U8")
        for strand in self._strands:
            wanted = [name for name in names if name in strand.channels]
            if wanted:
                places = [names.index(name) for name in wanted]
                versions = later(versions, strand.fill(values, hours, wanted, places))
        return with_versions(field_array(values, from_hours(hours), names, self.grid), versions)
