"""Small languages of settings and options: durations, members and lists, by the standard library alone."""

from __future__ import annotations

import ast
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

Seconds = int

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def duration(text: Any) -> Seconds:
    """Seconds of "6h", "10d", "30min" or "90s".

    Raises:
        ValueError: for anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d)\s*", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f'expected a duration such as "6h" or "10d", got {text!r}')
    return round(float(found[1]) * _UNITS[found[2]])


def durations(data: Any) -> tuple[Seconds, ...]:
    """Durations of a list, or of a range "first/last/step" with its end."""
    if data == []:
        raise ValueError('expected durations such as ["6h", "10d"], got an empty list')
    if isinstance(data, str) and "/" in data:
        parts = [duration(p) for p in data.split("/")]
        if len(parts) != 3 or parts[2] <= 0 or parts[0] > parts[1]:
            raise ValueError(f'expected a range such as "6h/10d/6h", got {data!r}')
        return tuple(range(parts[0], parts[1] + 1, parts[2]))
    return tuple(duration(t) for t in listed(data))


def size(text: str) -> int:
    """Bytes of "500MB" or "4GB".

    Raises:
        ValueError: for anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(MB|GB)\s*", text)
    if found is None or not float(found[1]):
        raise ValueError(f'expected a size such as "500MB" or "4GB", got {text!r}')
    return round(float(found[1]) * {"MB": 1 << 20, "GB": 1 << 30}[found[2]])


def members(data: Any) -> tuple[int, ...]:
    """Labels of a list of numbers and of ranges such as "1-50"."""
    out: list[int] = []
    for item in listed(data):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(item).strip())
        if found is None or isinstance(item, bool):
            raise ValueError(f'expected members such as 0 or "1-50", got {item!r}')
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"members {item!r} run backwards")
        out += range(first, last + 1)
    return tuple(out)


def months(text: str) -> tuple[int, ...]:
    """Increasing numbers 1 to 12 of "12,1,2".

    Raises:
        ValueError: for anything else.
    """
    found = {int(part) if part.isdecimal() else 0 for part in names(text)}
    if not found or not found <= set(range(1, 13)):
        raise ValueError(f"months must be numbers from 1 to 12, got {text!r}")
    return tuple(sorted(found))


def numbers(text: str) -> tuple[float, ...]:
    """Numbers of "0.1,0.9"."""
    try:
        return tuple(float(part) for part in names(text))
    except ValueError:
        raise ValueError(f"expected numbers such as 0.1,0.9, got {text!r}") from None


def names(text: str) -> list[str]:
    """Parts of "a,b"."""
    return [name.strip() for name in text.split(",") if name.strip()]


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"must be a whole number from 1 on, got {text}")
    return int(text)


def natural(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal():
        raise ValueError(f"must be a whole number from 0 on, got {text}")
    return int(text)


def share(text: str) -> float:
    """A number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise ValueError(f"must be a number between 0 and 1, got {text}")
    return value


def pair(text: str) -> tuple[str, str]:
    """Both sides of "NAME=VALUE"."""
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise ValueError(f"expected NAME=VALUE, got {text!r}")
    return left, right


def listed(data: Any) -> list[Any]:
    """A list, of text its parts between commas, of anything else the thing itself."""
    if isinstance(data, str):
        return [part.strip() for part in data.split(",")] if "(" not in data else [data]
    return list(data) if isinstance(data, list | tuple) else [data]


def call(text: str, expected: str) -> dict[str, Any]:
    """JSON data of "Name" or "Name(key=value, ...)".

    Raises:
        ValueError: for anything else, with what was expected.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return {"type": node.id}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            return {"type": node.func.id, **{str(k.arg): ast.literal_eval(k.value) for k in node.keywords}}
    except (SyntaxError, ValueError):
        pass
    raise ValueError(f"expected {expected}, got {text!r}")


def checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argument type of argparse that keeps the message of a ValueError."""

    def wrapped(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return wrapped
