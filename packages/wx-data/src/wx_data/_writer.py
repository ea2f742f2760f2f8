"""Forecast output: the whole shape declared first, every slice written once, by any process."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from wx_data._convert import FULL, merging
from wx_data._errors import StoreError
from wx_data._healpix import AnyGrid
from wx_data._manifest import read_plan
from wx_data._shards import ShardCodec
from wx_data._store import (
    channel_arrays,
    channel_coordinates,
    conventions,
    default_band_rows,
    field_attributes,
    grid_arrays,
    read_grid,
)
from wx_data._times import Hours, LeadLike, from_hours, lead_hours, leads_hours, show, to_hours
from wx_data._zarr3 import SmallArray, read_group, read_small, sharded_metadata, write_atomic, write_group

FORMAT = 1
_COMPLETE = Path("_wx") / "complete.json"
_SINCE = {"units": "hours since 1970-01-01", "calendar": "proleptic_gregorian"}
_ATTRIBUTES = {
    "init_time": {"standard_name": "forecast_reference_time", "long_name": "init time", **_SINCE},
    # "h" is CF, and unlike "hours" it is not turned into nanoseconds on opening.
    "lead_time": {"standard_name": "forecast_period", "long_name": "lead time", "units": "h"},
    "member": {"standard_name": "realization", "long_name": "ensemble member", "units": "1"},
    "valid_time": {"standard_name": "time", "long_name": "valid time", **_SINCE},
}

Slice = tuple[np.datetime64, int] | tuple[np.datetime64, int, int]


@dataclass(frozen=True, kw_only=True)
class ForecastLayout:
    """The declared shape of a forecast store.

    Attributes:
        init_hours: init times, hours since 1970-01-01, increasing.
        lead_hours: lead times, increasing.
        members: member numbers.
        channels: names of the lexicon.
        grid: latitude rows and longitude columns, or `Healpix` cells.
        unit: what one file holds, and so what one `write` writes: all members of a "lead", or one "member".
    """

    init_hours: Hours
    lead_hours: Hours
    members: Hours
    channels: tuple[str, ...]
    grid: AnyGrid
    unit: Literal["lead", "member"]

    def __post_init__(self) -> None:
        for name in ("init_hours", "lead_hours", "members"):
            values = getattr(self, name)
            if values.ndim != 1 or not values.size or not (np.diff(values) > 0).all():
                raise ValueError(f"{name} must be a non-empty, strictly increasing list; got {values}")
        if self.unit not in ("lead", "member"):
            raise ValueError(f'unit must be "lead" or "member"; got {self.unit!r}')

    @property
    def codec(self) -> ShardCodec:
        """Shape of one file."""
        rows, columns = self.grid.plane
        return ShardCodec(
            channels=len(self.channels),
            rows=rows,
            columns=columns,
            band=default_band_rows(len(self.channels), self.grid),
            fields=len(self.members) if self.unit == "lead" else 1,
            dims=self.grid.dims,
        )

    def same_as(self, other: "ForecastLayout") -> str | None:
        """None if equal, else the name of the first difference."""
        for name in ("init_hours", "lead_hours", "members"):
            if not np.array_equal(getattr(self, name), getattr(other, name)):
                return name
        rest = ("channels", "grid", "unit")
        return next((name for name in rest if getattr(self, name) != getattr(other, name)), None)


class ForecastWriter:
    """Writes forecasts (init_time, lead_time, member, channel, latitude, longitude) as a CF Zarr v3 store.

    On `Healpix` they are (init_time, lead_time, member, channel, cell).

    `create` declares the full shape; from then on any number of processes open the path and write slices.
    A slice is one file that appears whole or not at all, so `missing` after a crash is exactly what is left.

    Args:
        path: a store made by `create`.

    Raises:
        StoreError: not a forecast store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.layout = _read_layout(self.path)
        self._codec = self.layout.codec
        self._inits = {int(hour): place for place, hour in enumerate(self.layout.init_hours)}
        self._leads = {int(hour): place for place, hour in enumerate(self.layout.lead_hours)}
        self._members = {int(number): place for place, number in enumerate(self.layout.members)}

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        init_times: Any,
        lead_times: Sequence[LeadLike],
        members: int | Sequence[int],
        channels: Sequence[str],
        grid: AnyGrid,
        unit: Literal["lead", "member"] = "lead",
        attributes: Mapping[str, Any] | None = None,
    ) -> "ForecastWriter":
        """Declare a forecast store, or open the one that was declared equally before.

        Args:
            path: folder.
            init_times: datetime-like, increasing.
            lead_times: hours or timedeltas, increasing.
            members: how many, or their numbers.
            channels: names of the lexicon.
            grid: of every field.
            unit: one file per (init, "lead") with all members, or per (init, lead, "member").
            attributes: JSON data for the group: model, settings, provenance. Tables become JSON text, since
                NetCDF has none.

        Raises:
            StoreError: the path holds something else.
        """
        numbers = range(members) if isinstance(members, int) else members
        layout = ForecastLayout(
            init_hours=np.atleast_1d(to_hours(init_times)),
            lead_hours=np.array(leads_hours(lead_times), dtype=np.int64),
            members=np.array(list(numbers), dtype=np.int64),
            channels=tuple(channels),
            grid=grid,
            unit=unit,
        )
        root = Path(path)
        if not (root / "zarr.json").exists():
            _check_empty(root)
            (root / "_wx" / "tmp").mkdir(parents=True, exist_ok=True)
            with merging(root / "_wx"):
                if not (root / "zarr.json").exists():
                    _declare(root, layout, dict(attributes or {}))
        writer = cls(root)
        difference = writer.layout.same_as(layout)
        if difference:
            raise StoreError(f"{root} was declared with other {difference}; use another path")
        return writer

    def write(
        self,
        init_time: Any,
        lead_time: LeadLike,
        values: torch.Tensor | NDArray[Any],
        *,
        member: int | None = None,
    ) -> None:
        """Write one slice: (member, channel, H, W), or (channel, H, W) with `member` if the unit is a member.

        On `Healpix` the cells stand for (H, W).

        A slice that is there already is replaced: a forecast that is run again may differ in rounding, and
        its leads belong together.

        Raises:
            ValueError: a time, member or shape that was not declared, or values that are not finite.
            StoreError: the store was finalised, or the disk is full.
        """
        if (self.path / _COMPLETE).exists():
            raise StoreError(f"{self.path} was finalised; its slices are no longer written")
        if isinstance(values, torch.Tensor):
            values = values.detach().to("cpu", torch.float32).numpy()
        field = np.asarray(values, dtype=np.float32)
        key = self._key(init_time, lead_time, member)
        codec, grid = self._codec, self.layout.grid
        expected = (codec.fields, codec.channels, *grid.shape)
        expected = expected if self.layout.unit == "lead" else expected[1:]
        if field.shape != expected:
            raise ValueError(f"values of {key} must have shape {expected}; got {field.shape}")
        field = field.reshape(codec.fields, codec.channels, codec.rows, codec.columns)
        if not np.isfinite(field).all():
            self._refuse(field, init_time, lead_time)
        temporary = self.path / "_wx" / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        try:
            write_atomic(self.path / "forecast" / key, self._codec.encode(field), temporary=temporary)
        except OSError as error:
            if error.errno not in FULL:
                raise
            left = len(self.missing())
            raise StoreError(
                f"{self.path}: the disk is full or a quota is reached at {show(init_time)} "
                f"+{lead_hours(lead_time)} h, {left} slices are missing ({error.strerror}). Free some space "
                "and write what ForecastWriter.missing() lists"
            ) from error

    def missing(self) -> list[Slice]:
        """Slices not written yet, in order: (init time, lead hours) or (init time, lead hours, member)."""
        return [where for where, written in self._slices() if not written]

    def done(self) -> list[Slice]:
        """Slices written."""
        return [where for where, written in self._slices() if written]

    def finalise(self) -> Path:
        """Check that everything is there and mark the store complete; its path.

        Raises:
            StoreError: slices are missing; the first is named.
        """
        left = self.missing()
        if left:
            total = len(self._slices())
            raise StoreError(
                f"{self.path}: {len(left)} of {total} slices are missing, first {_name(left[0])}"
            )
        write_atomic(self.path / _COMPLETE, json.dumps({"slices": len(self._slices())}).encode())
        shutil.rmtree(self.path / "_wx" / "tmp", ignore_errors=True)
        return self.path

    def _slices(self) -> list[tuple[Slice, bool]]:
        folder = self.path / "forecast"
        there = {entry.name for entry in folder.iterdir()}
        members = self.layout.members.tolist() if self.layout.unit == "member" else [None]
        found: list[tuple[Slice, bool]] = []
        for i, init in enumerate(from_hours(self.layout.init_hours)):
            for j, lead in enumerate(self.layout.lead_hours.tolist()):
                for k, member in enumerate(members):
                    where: Slice = (init, lead) if member is None else (init, lead, member)
                    found.append((where, f"c.{i}.{j}.{k}{self._codec.key_tail}" in there))
        return found

    def _key(self, init_time: Any, lead_time: LeadLike, member: int | None) -> str:
        if (member is None) != (self.layout.unit == "lead"):
            raise ValueError(
                f"this store is written one {self.layout.unit} at a time, so `member` must "
                f"{'not ' if self.layout.unit == 'lead' else ''}be given"
            )
        i = _place(self._inits, int(to_hours(init_time)), "init time", show(from_hours(to_hours(init_time))))
        j = _place(self._leads, lead_hours(lead_time), "lead time", f"{lead_hours(lead_time)} h")
        k = 0 if member is None else _place(self._members, member, "member", str(member))
        return f"c.{i}.{j}.{k}{self._codec.key_tail}"

    def _refuse(self, field: NDArray[np.float32], init_time: Any, lead_time: LeadLike) -> None:
        bad = ~np.isfinite(field)
        by_channel = np.asarray(bad.any(axis=(0, 2, 3)))
        names = [name for name, wrong in zip(self.layout.channels, by_channel, strict=True) if wrong]
        members = int(np.asarray(bad.any(axis=(1, 2, 3))).sum())
        raise ValueError(
            f"forecast {show(init_time)} +{lead_hours(lead_time)} h: {int(bad.sum())} values are not "
            f"finite, in {members} of {len(field)} members, channels {', '.join(names)}"
        )


def open_forecast(path: str | Path, *, incomplete: bool = False) -> xr.Dataset:
    """Open a forecast store lazily with plain xarray: `forecast` with labelled dimensions.

    `init_time` and `valid_time` are ``datetime64``, `lead_time` is whole hours.

    Args:
        path: the store.
        incomplete: allow a store that was not finalised; what is missing reads as NaN.

    Raises:
        StoreError: not a forecast store, not finalised, or slices have been lost since.
    """
    root = Path(path)
    writer = ForecastWriter(root)
    if not incomplete:
        if not (root / _COMPLETE).exists():
            raise StoreError(f"{root} was not finalised; call ForecastWriter({str(root)!r}).finalise()")
        lost = writer.missing()
        if lost:
            raise StoreError(
                f"{root} was complete and has lost {len(lost)} slices, first {_name(lost[0])}. Delete "
                f"{_COMPLETE} in it and write them anew, or open it with incomplete=True: they read as NaN"
            )
    dataset: xr.Dataset = xr.open_zarr(root, chunks=None)
    return dataset


def _check_empty(root: Path) -> None:
    """Refuse a folder of other things; one that a killed `create` left is taken up."""
    ours = (root / "_wx").is_dir() and read_plan(root / "_wx") is None
    if root.exists() and any(root.iterdir()) and not ours:
        raise StoreError(f"{root} is not empty and not a forecast store")


def _declare(root: Path, layout: ForecastLayout, attributes: dict[str, Any]) -> None:
    valid = layout.init_hours[:, None] + layout.lead_hours
    arrays = {
        "init_time": (layout.init_hours, ("init_time",)),
        "lead_time": (layout.lead_hours, ("lead_time",)),
        "member": (layout.members, ("member",)),
        "valid_time": (valid, ("init_time", "lead_time")),
    }
    small = {name: SmallArray(values, dims, _ATTRIBUTES[name]) for name, (values, dims) in arrays.items()}
    small |= channel_arrays(layout.channels)
    small |= grid_arrays(layout.grid)
    leading = {
        "init_time": (len(layout.init_hours), 1),
        "lead_time": (len(layout.lead_hours), 1),
        "member": (len(layout.members), layout.codec.fields),
    }
    about = field_attributes(layout.grid, "valid_time", *channel_coordinates())
    forecast = sharded_metadata(layout.codec, leading, about)
    group = {"Conventions": conventions(layout.grid), "wxforecast": FORMAT, "unit": layout.unit, **attributes}
    write_group(root, group, small, {"forecast": forecast})


def _read_layout(root: Path) -> ForecastLayout:
    group = read_group(root) if (root / "zarr.json").exists() else {}
    if group.get("attributes", {}).get("wxforecast") != FORMAT:
        raise StoreError(
            f"{root} is not a forecast store of format {FORMAT}; ForecastWriter.create makes one"
        )
    members = group["consolidated_metadata"]["metadata"]

    def small(name: str) -> Any:
        return read_small(root, name, members[name])

    return ForecastLayout(
        init_hours=small("init_time"),
        lead_hours=small("lead_time"),
        members=small("member"),
        channels=small("channel"),
        grid=read_grid(root, members),
        unit=group["attributes"]["unit"],
    )


def _place(places: Mapping[int, int], value: int, what: str, shown: str) -> int:
    if value not in places:
        raise ValueError(f"{what} {shown} was not declared; there are {len(places)} of them")
    return places[value]


def _name(where: Slice) -> str:
    member = f" member {where[2]}" if len(where) == 3 else ""
    return f"{show(where[0])} +{where[1]} h{member}"
