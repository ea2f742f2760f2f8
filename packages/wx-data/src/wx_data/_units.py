"""Units as powers of SI base units: compared and converted, never matched as text."""

import re
from dataclasses import dataclass

_Dims = tuple[int, int, int, int]  # powers of metre, kilogram, second, kelvin

_NONE: _Dims = (0, 0, 0, 0)
_UNITS: dict[str, tuple[float, float, _Dims]] = {  # scale, offset, dimensions
    "m": (1.0, 0.0, (1, 0, 0, 0)),
    "meter": (1.0, 0.0, (1, 0, 0, 0)),
    "meters": (1.0, 0.0, (1, 0, 0, 0)),
    "metre": (1.0, 0.0, (1, 0, 0, 0)),
    "metres": (1.0, 0.0, (1, 0, 0, 0)),
    "km": (1e3, 0.0, (1, 0, 0, 0)),
    "cm": (1e-2, 0.0, (1, 0, 0, 0)),
    "mm": (1e-3, 0.0, (1, 0, 0, 0)),
    "dam": (10.0, 0.0, (1, 0, 0, 0)),
    "gpm": (1.0, 0.0, (1, 0, 0, 0)),
    "kg": (1.0, 0.0, (0, 1, 0, 0)),
    "g": (1e-3, 0.0, (0, 1, 0, 0)),
    "mg": (1e-6, 0.0, (0, 1, 0, 0)),
    "s": (1.0, 0.0, (0, 0, 1, 0)),
    "sec": (1.0, 0.0, (0, 0, 1, 0)),
    "min": (60.0, 0.0, (0, 0, 1, 0)),
    "h": (3600.0, 0.0, (0, 0, 1, 0)),
    "hr": (3600.0, 0.0, (0, 0, 1, 0)),
    "hour": (3600.0, 0.0, (0, 0, 1, 0)),
    "d": (86400.0, 0.0, (0, 0, 1, 0)),
    "day": (86400.0, 0.0, (0, 0, 1, 0)),
    "K": (1.0, 0.0, (0, 0, 0, 1)),
    "degK": (1.0, 0.0, (0, 0, 0, 1)),
    "Kelvin": (1.0, 0.0, (0, 0, 0, 1)),
    "kelvin": (1.0, 0.0, (0, 0, 0, 1)),
    "degC": (1.0, 273.15, (0, 0, 0, 1)),
    "celsius": (1.0, 273.15, (0, 0, 0, 1)),
    "Celsius": (1.0, 273.15, (0, 0, 0, 1)),
    "°C": (1.0, 273.15, (0, 0, 0, 1)),
    "Pa": (1.0, 0.0, (-1, 1, -2, 0)),
    "hPa": (1e2, 0.0, (-1, 1, -2, 0)),
    "kPa": (1e3, 0.0, (-1, 1, -2, 0)),
    "mbar": (1e2, 0.0, (-1, 1, -2, 0)),
    "mb": (1e2, 0.0, (-1, 1, -2, 0)),
    "millibar": (1e2, 0.0, (-1, 1, -2, 0)),
    "millibars": (1e2, 0.0, (-1, 1, -2, 0)),
    "J": (1.0, 0.0, (2, 1, -2, 0)),
    "W": (1.0, 0.0, (2, 1, -3, 0)),
    "N": (1.0, 0.0, (1, 1, -2, 0)),
    "%": (1e-2, 0.0, _NONE),
    "percent": (1e-2, 0.0, _NONE),
}
_DIMENSIONLESS = {
    *("", "1", "~", "-", "(0 - 1)", "(0-1)", "0 - 1", "dimensionless", "none", "unitless"),
    *("fraction", "fractional", "proportion", "Dimensionless"),
}
_TOKEN = re.compile(r"(?P<name>%|°?[A-Za-z]+|1)(?:(?:\*\*|\^)?\(?(?P<power>[+-]?\d+)\)?)?")


@dataclass(frozen=True)
class Unit:
    """``SI value = value * scale + offset`` with the powers of m, kg, s, K in `dims`."""

    scale: float
    offset: float
    dims: _Dims


def parse_unit(text: str) -> Unit:
    """Parse `m s**-1`, `m/s`, `m s-1`, `m^2 s^-2`, `J kg-1`, `degC`, `%`, `(0 - 1)`, ...

    Raises:
        ValueError: a part of `text` is not a unit known here.
    """
    if text.strip() in _DIMENSIONLESS:
        return Unit(1.0, 0.0, _NONE)
    scale, offset, dims, tokens = 1.0, 0.0, _NONE, 0
    for sign, name, power in _tokens(text):
        factor, shift, base = _UNITS[name] if name != "1" else (1.0, 0.0, _NONE)
        exponent = sign * power
        scale *= factor**exponent
        offset = shift if exponent == 1 else 0.0
        dims = (
            dims[0] + exponent * base[0],
            dims[1] + exponent * base[1],
            dims[2] + exponent * base[2],
            dims[3] + exponent * base[3],
        )
        tokens += 1
    return Unit(scale, offset if tokens == 1 else 0.0, dims)


def _tokens(text: str) -> list[tuple[int, str, int]]:
    found, rest, sign = [], text.strip(), 1
    while rest:
        match = _TOKEN.match(rest)
        if match is None or (match["name"] not in _UNITS and match["name"] != "1"):
            raise ValueError(f"unit {text!r}: {rest!r} is not understood")
        found.append((sign, match["name"], int(match["power"] or 1)))
        rest = rest[match.end() :]
        separator = re.match(r"\s*(/|\*|\.|·)?\s*", rest)
        sign = -1 if separator and separator[1] == "/" else 1
        rest = rest[separator.end() :] if separator else rest
    return found


def conversion(found: str, wanted: str) -> tuple[float, float] | None:
    """(factor, offset) with ``value_wanted = value_found * factor + offset``; None if dimensions differ.

    Raises:
        ValueError: one of the two is not a unit.
    """
    a, b = parse_unit(found), parse_unit(wanted)
    if a.dims != b.dims:
        return None
    return a.scale / b.scale, (a.offset - b.offset) / b.scale
