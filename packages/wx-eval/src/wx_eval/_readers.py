"""Values of a configuration: what each has to be, and one clear error for what it is instead."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np

from ._texts import call

Reader = Callable[[Any, str], Any]
"""A setting from a value of TOML and its name; ValueError for what it cannot be."""


def read_table(
    data: Any, cls: type, section: str, readers: Mapping[str, Reader], hidden: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Settings of a class; a value without a reader stays as it is.

    Args:
        data: table of TOML.
        cls: dataclass whose fields are the keys.
        section: for messages; "" for the whole configuration.
        readers: by key.
        hidden: fields that are no keys.

    Raises:
        ValueError: for what is no table, an unknown key, and as the readers do.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{section or 'the configuration'} must be a table of settings, got {data!r}")
    names = [f.name for f in fields(cls) if f.name not in hidden]
    unknown = [k for k in data if k not in names]
    if unknown:
        where = f"[{section}]" if section else "the configuration"
        raise ValueError(f"unknown key {unknown[0]!r} in {where}{near(unknown[0], names)}")
    prefix = f"{section}." if section else ""
    return {k: readers[k](v, prefix + k) if k in readers else v for k, v in data.items()}


def read_section(data: Any, cls: type, section: str) -> Any:
    """A section from its table, or from the path alone where it has one.

    Raises:
        ValueError: see `read_table`, and for a key that is absent.
    """
    data = {"path": data} if isinstance(data, str) else data
    texts: dict[str, Reader] = {f.name: text for f in fields(cls) if f.type == "str"}
    found = read_table(data, cls, section, texts)
    needed = [f.name for f in fields(cls) if f.default is f.default_factory is MISSING]
    absent = [name for name in needed if name not in found]
    if absent:
        raise ValueError(f"[{section}] is not complete: it needs {' and '.join(absent)}")
    return cls(**found)


def settings_of(text: str, cls: type, section: str) -> dict[str, Any]:
    """Settings of a class from "name=value, ...".

    Raises:
        ValueError: for text of another form and for an unknown name.
    """
    data = call(f"{cls.__name__}({text})", f"{section} settings such as 'name=value, ...'")
    del data["type"]
    return read_table(data, cls, section, {})


def near(name: str, names: Iterable[str]) -> str:
    """The end of a message on an unknown name: the one that was meant, or all."""
    listed = sorted(names)
    close = difflib.get_close_matches(name, listed, 1)
    return f", did you mean {close[0]!r}?" if close else f": it takes {', '.join(listed)}"


def typed(kind: Any, expected: str) -> Reader:
    """A value of some type."""

    def read(value: Any, key: str) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"{key} must be {expected}, got {value!r}")
        return value

    return read


def one_of(*choices: str) -> Reader:
    """One of some strings."""

    def read(value: Any, key: str) -> Any:
        if value not in choices:
            raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")
        return value

    return read


def by(parse: Callable[[Any], Any]) -> Reader:
    """What a function makes of it, whose errors need no key."""

    def read(value: Any, key: str) -> Any:
        del key
        return parse(value)

    return read


text = typed(str, "a string")
flag = typed(bool, "true or false")
number = typed(int | float, "a number")


def strings(data: Any, key: str) -> tuple[str, ...]:
    """Strings of a list, or one alone."""
    items = [data] if isinstance(data, str) else data
    if not isinstance(items, list | tuple) or not all(isinstance(i, str) for i in items) or not items:
        raise ValueError(f"{key} must be a string or a list of strings, got {data!r}")
    return tuple(items)


def renames(data: Any, key: str) -> Mapping[str, str]:
    """New names by old ones."""
    if not isinstance(data, Mapping) or not all(isinstance(v, str) for v in data.values()):
        raise ValueError(f'{key} must be a table of names such as {{"2t" = "t2m"}}, got {data!r}')
    return data


def instant(value: Any) -> np.datetime64:
    """A time in ISO form, or a time of TOML.

    Raises:
        ValueError: for anything else.
    """
    try:
        stamp = np.datetime64(str(value).replace(" ", "T").removesuffix("Z"), "s")
    except ValueError:
        stamp = None
    if stamp is None or np.isnat(stamp):
        raise ValueError(f'expected a time such as "2020-01-31T12", got {value!r}')
    return stamp


def period(value: str) -> tuple[np.datetime64, np.datetime64]:
    """First and last second of "first/last", days, months and years being meant whole.

    Raises:
        ValueError: for anything else.
    """
    parts = str(value).split("/")
    if len(parts) != 2:
        raise ValueError(f'expected a period such as "1990-01-01/2019-12-31", got {value!r}')
    first, last = instant(parts[0]), instant(parts[1])
    stated = np.datetime64(parts[1].strip().replace(" ", "T").removesuffix("Z"))
    if np.datetime_data(stated.dtype)[0] in ("Y", "M", "D"):
        step = np.timedelta64(1, np.datetime_data(stated.dtype)[0])  # type: ignore[call-overload]
        last = (stated + step).astype("datetime64[s]") - np.timedelta64(1, "s")
    return first, last
