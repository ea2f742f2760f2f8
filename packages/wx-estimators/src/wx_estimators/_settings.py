"""Settings as JSON data: {"type": class name, field: value}, for frozen dataclasses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self


def _plain(name: str, value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(name, item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} = {value!r} is not JSON data and has no to_dict(): it cannot be written")


def write(settings: Any, *, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """Dictionary of JSON data for a frozen dataclass; `skip` names run-time objects that are left out."""
    out: dict[str, Any] = {"type": type(settings).__name__}
    for field in fields(settings):
        if field.name not in skip:
            out[field.name] = _plain(f"{out['type']}.{field.name}", getattr(settings, field.name))
    json.dumps(out, allow_nan=False)
    return out


def _value(value: Any, parts: tuple[type[Any], ...]) -> Any:
    if isinstance(value, Mapping):
        return read_any(value, parts)
    if isinstance(value, list):
        return tuple(_value(item, parts) for item in value)
    return value


def read(cls: type[Any], data: Mapping[str, Any], parts: tuple[type[Any], ...] = ()) -> Any:
    """Inverse of `write`; nested settings must be of one of the classes in `parts`.

    Raises:
        ValueError: wrong type name or unknown keys.
    """
    name = cls.__name__
    if data.get("type") != name:
        raise ValueError(f"expected settings of type {name!r}, got {data.get('type')!r}")
    known = [field.name for field in fields(cls)]
    unknown = sorted(set(data) - set(known) - {"type"})
    if unknown:
        raise ValueError(f"unknown keys {unknown} for {name}; known are {sorted(known)}")
    return cls(**{key: _value(value, parts) for key, value in data.items() if key != "type"})


class Settings:
    """Base of frozen dataclasses whose fields are their settings: JSON data both ways."""

    _runtime: ClassVar[tuple[str, ...]] = ()
    """Fields that hold run-time objects: `to_dict` leaves them out, `from_dict` takes their defaults."""

    @classmethod
    def _parts(cls) -> tuple[type[Any], ...]:
        """Classes that nested settings may have."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """JSON data, without objects that exist at run time only."""
        return write(self, skip=self._runtime)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ValueError: settings of another class, or unknown ones.
        """
        settings: Self = read(cls, data, cls._parts())
        return settings


def read_any(data: Mapping[str, Any], classes: tuple[type[Any], ...]) -> Any:
    """Read settings of whichever of the classes the data name."""
    for cls in classes:
        if cls.__name__ == data.get("type"):
            return cls.from_dict(data)
    names = sorted(cls.__name__ for cls in classes)
    raise ValueError(f"settings of type {data.get('type')!r} are not among {names}")
