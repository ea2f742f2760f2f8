"""What one file holds: channels at times and members, read when they are needed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._dims import lead_seconds, seconds, stored_size
from ._files import Field, channel_fields
from ._grid import Array
from ._kept import Kept

Key = tuple[int, int]
"""Init time in seconds since 1970 and lead time in seconds."""
Index = slice | list[int]

READ_AHEAD_BYTES = 256 << 20
"""What is kept of pieces of storage that hold more than what was asked for."""


@dataclass(frozen=True, eq=False)
class Cube:
    """Channels of one file that share times and members.

    Attributes:
        origin: path.
        variables: lazy, dims out of `dims`, member, space and one along which channels are stacked.
        fields: where each channel is among them.
        dims: of time.
        space: dims of space, in the order in which values are given.
        where: position along `dims` of every (init time, lead time).
        duplicates: keys that the file has twice.
        members: labels, or None without members.
    """

    origin: str
    variables: Mapping[str, xr.Variable]
    fields: Mapping[str, Field]
    dims: tuple[str, ...]
    space: tuple[str, ...]
    where: Mapping[Key, tuple[int, ...]]
    duplicates: tuple[Key, ...]
    members: tuple[int, ...] | None

    @property
    def labels(self) -> tuple[int, ...]:
        """Of the members; a single one is 0."""
        return self.members or (0,)

    def variable(self, channel: str) -> xr.Variable:
        """That holds a channel."""
        return self.variables[self.fields[channel].variable]

    def piece(self, channel: str) -> Hashable:
        """What channels have in common that share their pieces of storage."""
        field = self.fields[channel]
        stored = stored_size(self.variable(channel), field.dim) or 1
        return id(self), field.variable, field.place // stored

    @cached_property
    def state_bytes(self) -> int:
        """Of all channels and members at one time."""
        total = 0
        for field in self.fields.values():
            variable = self.variables[field.variable]
            sizes = [n for d, n in variable.sizes.items() if d not in (*self.dims, field.dim)]
            total += variable.dtype.itemsize * int(np.prod(sizes))
        return total

    def of_members(self, wanted: tuple[int, ...]) -> Cube | None:
        """Some members by their labels, None without any."""
        keep = [k for k, label in enumerate(self.labels) if label in wanted]
        if not keep:
            return None
        return replace(self.picked({"member": np.array(keep)}), members=tuple(self.labels[k] for k in keep))

    def of_channels(self, names: tuple[str, ...]) -> Cube | None:
        """Some channels, None without any."""
        fields = {c: f for c, f in self.fields.items() if c in names}
        used = {f.variable for f in fields.values()}
        variables = {name: v for name, v in self.variables.items() if name in used}
        return replace(self, fields=fields, variables=variables) if fields else None

    def picked(self, places: Mapping[str, npt.NDArray[np.intp]]) -> Cube:
        """Some positions along dims of member or space."""
        index = {dim: _index(p.tolist()) for dim, p in places.items()}
        variables = {n: v.isel(index, missing_dims="ignore") for n, v in self.variables.items()}
        return replace(self, variables=variables)

    def read(self, channels: Sequence[str], key: Key, rows: slice, kept: Kept[Array], room: int) -> Array:
        """Channels at one time (M, C, *space).

        Args:
            channels: that this file holds.
            key: that this file holds.
            rows: of the first dim of space.
            kept: what was read for other times or channels that share a piece of storage.
            room: whole states that may be kept.
        """
        groups: dict[str, list[int]] = {}
        for k, channel in enumerate(channels):
            groups.setdefault(self.fields[channel].variable, []).append(k)
        parts = [self._read([channels[k] for k in g], key, rows, kept, room) for g in groups.values()]
        if len(parts) == 1:
            return parts[0]
        shape = (len(parts[0]), len(channels), *parts[0].shape[2:])
        out: Array = np.empty(shape, np.result_type(*parts))
        for group, part in zip(groups.values(), parts, strict=True):
            out[:, group] = part
        return out

    def _read(self, channels: Sequence[str], key: Key, rows: slice, kept: Kept[Array], room: int) -> Array:
        """Channels of one variable (M, C, *space)."""
        variable, dim = self.variable(channels[0]), self.fields[channels[0]].dim
        place = {d: p for d, p in zip(self.dims, self.where[key], strict=True) if d in variable.dims}
        times = self._times_together(variable, place, room)
        wanted = [self.fields[c].place for c in channels]
        held = self._places_together(channels, room)
        order = [d for d in (*place, "member", dim, *self.space) if d in variable.dims]

        def read() -> Array:
            index: dict[str, Index] = {**times, self.space[0]: rows, **({dim: _index(held)} if dim else {})}
            part = variable.isel(index)
            # Transposed when it is read: a lazy array would be read point by point.
            return np.asarray(xr.Variable(part.dims, part.values).transpose(*order).values)

        if set(held) == set(wanted) and all(t.stop - t.start == 1 for t in times.values()):
            values = read()
        else:
            spans = tuple((s.start, s.stop, s.step) for s in (*times.values(), rows))
            values = kept.get((id(variable), spans, tuple(held)), read)
        values = values[tuple(p - times[d].start for d, p in place.items())]
        if "member" not in variable.dims:
            values = values[None]
        if not dim:
            return np.expand_dims(values, 1)
        return values if held == wanted else np.take(values, [held.index(p) for p in wanted], axis=1)

    def _times_together(self, variable: xr.Variable, place: Mapping[str, int], room: int) -> dict[str, slice]:
        """Times that share pieces of storage with one, as many as there is room for."""
        out = {}
        # A start goes through its lead times: what is kept of the next start has to last for all of them.
        for dim in sorted(place, key=lambda d: d != "lead_time"):
            size, stored = variable.sizes[dim], max(stored_size(variable, dim), 1)
            piece, step = place[dim] // stored * stored, max(1, min(stored, room))
            first = piece + (place[dim] - piece) // step * step
            out[dim] = slice(first, min(first + step, piece + stored, size))
            room //= size
        return {dim: out[dim] for dim in place}

    def _places_together(self, channels: Sequence[str], room: int) -> list[int]:
        """Positions of the channels that share pieces of storage with some, if there is room for them."""
        pieces = {self.piece(c) for c in channels}
        shared = [c for c in self.fields if self.piece(c) in pieces] if room else channels
        return sorted({self.fields[c].place for c in shared})


def file_cube(
    origin: str,
    dataset: xr.Dataset,
    space: tuple[str, ...],
    *,
    truth: bool,
    rename: Mapping[str, str],
    init_time: np.datetime64 | None,
    lead_time: np.timedelta64 | None,
) -> tuple[Cube, list[str]]:
    """Channels of one dataset, and why others are none.

    Raises:
        ValueError: for a dataset without the times that are needed.
    """
    init, lead = _times(dataset, origin, truth, init_time, lead_time)
    dims = tuple(str(d) for d in init.dims)
    where, duplicates = _keys(init, lead)
    fields: dict[str, Field] = {}
    skipped = []
    for field in channel_fields(dataset):
        channel, stored = rename.get(field.channel, field.channel), dataset[field.variable].dims
        own = set(map(str, stored)) - {field.dim}
        if not set(space) <= own:
            continue
        if not own <= {*dims, *space, "member"} or not set(dims) <= own:
            along = tuple(d for d in stored if d != field.dim)
            skipped.append(f"{channel!r} of {origin} has dims {along}, times are along {dims}")
            continue
        if channel in fields:
            raise ValueError(f"{origin} holds two channels {channel!r}: rename or drop one of the variables")
        fields[channel] = field
    if not skipped and not fields:
        skipped = [f"{origin} holds {list(map(str, dataset.data_vars))}, none of them over {space}"]
    variables = {f.variable: dataset[f.variable].variable for f in fields.values()}
    return Cube(origin, variables, fields, dims, space, where, duplicates, _members(dataset, origin)), skipped


def _members(dataset: xr.Dataset, origin: str) -> tuple[int, ...] | None:
    """Labels; without a coordinate members count from 0."""
    if "member" in dataset.coords:
        return tuple(_label(m, origin) for m in np.atleast_1d(dataset["member"].values))
    return tuple(range(dataset.sizes["member"])) if "member" in dataset.dims else None


def _label(value: Any, origin: str) -> int:
    try:
        if float(value) == int(value):
            return int(value)
    except ValueError:
        pass
    raise ValueError(f"members of {origin} must be labelled by whole numbers, got {value!s}")


def _times(
    dataset: xr.Dataset,
    origin: str,
    truth: bool,
    init_time: np.datetime64 | None,
    lead_time: np.timedelta64 | None,
) -> tuple[xr.DataArray, xr.DataArray]:
    """Init and lead time of every state, over the same dims."""
    coords = dataset.coords
    lead = coords.get("lead_time")
    init = coords.get("init_time", coords.get("time") if lead is not None else None)
    valid = coords.get("valid_time", coords.get("time"))
    if lead is not None:
        lead = lead.copy(data=lead_seconds(lead, origin))
    elif lead_time is not None:
        lead = xr.DataArray(seconds(lead_time))
    elif truth and init is None:
        lead = xr.DataArray(np.timedelta64(0, "s"))
    if init is not None:
        init = _stamps(init, origin)
        # CF keeps the lead time along the valid time.
        if lead is not None and coords.get("init_time") is None and lead.dims == init.dims == ("time",):
            init = init - lead
    elif init_time is not None:
        init = xr.DataArray(seconds(init_time))
    elif valid is not None and lead is not None:
        init = _stamps(valid, origin) - lead
    if init is not None and lead is None and valid is not None:
        lead = _stamps(valid, origin) - init
    if init is None or lead is None:
        missing = "time" if truth or (valid is None and init is None) else "lead time"
        raise ValueError(
            f"{origin} has no {missing}: its coordinates are {sorted(map(str, coords))}; name a constant one "
            'by lead_time = "24h" or init_time = "2020-01-01T00"'
        )
    pair = xr.broadcast(init.reset_coords(drop=True), lead.reset_coords(drop=True))
    return pair[0], pair[1].transpose(*pair[0].dims)


def _stamps(array: xr.DataArray, origin: str) -> xr.DataArray:
    if array.dtype.kind != "M":
        raise ValueError(
            f"{array.name} of {origin} is no time but {array.dtype}: give it CF units such as "
            '"hours since 1970-01-01"'
        )
    return array.copy(data=seconds(array.values))


def _keys(init: xr.DataArray, lead: xr.DataArray) -> tuple[dict[Key, tuple[int, ...]], tuple[Key, ...]]:
    """Position of every (init time, lead time), and those that come twice."""
    where: dict[Key, tuple[int, ...]] = {}
    twice = []
    there = ~(np.isnat(init.values) | np.isnat(lead.values))
    starts, steps = seconds(init.values).astype(np.int64), seconds(lead.values).astype(np.int64)
    for place in np.ndindex(*init.shape):
        if there[place] and steps[place] >= 0:
            key = int(starts[place]), int(steps[place])
            if key in where:
                twice.append(key)
            where.setdefault(key, place)
    return where, tuple(twice)


def _index(places: list[int]) -> Index:
    """A slice where positions follow one another, which storage reads without sorting points."""
    if places == list(range(places[0], places[0] + len(places))):
        return slice(places[0], places[0] + len(places))
    return places
