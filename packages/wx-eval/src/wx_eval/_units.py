"""Comparison and conversion of units."""

import re

import numpy as np
import numpy.typing as npt

_FACTOR = re.compile(r"([A-Za-z_%°]+)(?:\s*(?:\*\*|\^)\s*)?([-+]?\d+)?")
_NUMBER_ONE = re.compile(r"1|\(?0\s*-\s*1\)?|dimensionless")


def same_units(a: str, b: str) -> bool:
    """Whether two spellings mean one unit: "m s-1", "m/s" and "m s**-1" do; nothing is converted."""
    return _canonical(a) == _canonical(b)


# What a value in the unit is multiplied by, and what is then added, to be in the first unit of its kind.
_UNITS: dict[str, dict[str, tuple[float, float]]] = {
    "temperature": {"K": (1, 0), "degC": (1, 273.15), "degF": (5 / 9, 273.15 - 32 * 5 / 9)},
    "pressure": {"Pa": (1, 0), "hPa": (100, 0), "kPa": (1000, 0), "inHg": (3386.389, 0)},
    "speed": {"m s-1": (1, 0), "kt": (1852 / 3600, 0), "km h-1": (1 / 3.6, 0), "mph": (0.44704, 0)},
    "length": {
        "m": (1, 0),
        "mm": (1e-3, 0),
        "cm": (1e-2, 0),
        "km": (1000, 0),
        "inch": (0.0254, 0),
        "ft": (0.3048, 0),
        "mile": (1609.344, 0),
    },
    "angle": {"degree": (1, 0)},
    "share": {"1": (1, 0), "%": (0.01, 0)},
}
_SPELLINGS = {
    "degC": ("C", "°C", "celsius", "deg_C", "degree_Celsius", "degrees_Celsius"),
    "degF": ("F", "°F", "fahrenheit", "deg_F"),
    "K": ("kelvin", "degK"),
    "hPa": ("mb", "mbar", "millibar", "millibars"),
    "inHg": ("in_Hg", "inches_Hg"),
    "kt": ("kts", "knot", "knots"),
    "km h-1": ("kph", "kmh"),
    "inch": ("in", "inches"),
    "ft": ("feet", "foot"),
    "mile": ("miles", "mi", "statute_mile"),
    "degree": ("deg", "degrees", "°"),
    "m": ("metre", "meter", "metres", "meters"),
    "%": ("percent",),
}


def convert_units(values: npt.ArrayLike, unit: str, to: str) -> npt.NDArray[np.float64]:
    """Values in another unit, in float64; the inch of mercury is that at 0 degrees Celsius, 3386.389 Pa.

    Raises:
        ValueError: for a unit that is unknown, or of another kind than the second.
    """
    array = np.asarray(values, np.float64)
    if same_units(unit, to):
        return array
    kind, factor, offset = _known(unit)
    other, divisor, removed = _known(to)
    if kind != other:
        raise ValueError(f"{unit!r} is a unit of {kind} and {to!r} of {other}: nothing converts between them")
    return np.asarray((array * factor + offset - removed) / divisor)


def unit_kind(unit: str) -> str | None:
    """What a unit measures, such as "pressure"; None when it is unknown."""
    law = _law(unit)
    return None if law is None else law[0]


def units_of_kind(kind: str) -> tuple[str, ...]:
    """Units that measure the same, such as "Pa" and "hPa" of "pressure"."""
    return tuple(_UNITS.get(kind, {}))


def _law(unit: str) -> tuple[str, float, float] | None:
    """Kind of a unit, its factor and its offset."""
    spelled = next((name for name, others in _SPELLINGS.items() if unit.strip() in others), unit)
    for kind, units in _UNITS.items():
        for name, law in units.items():
            if same_units(spelled, name):
                return (kind, *law)
    return None


def _known(unit: str) -> tuple[str, float, float]:
    law = _law(unit)
    if law is not None:
        return law
    raise ValueError(
        f"unit {unit!r} is unknown: convert the values yourself, or name one of "
        f"{', '.join(name for units in _UNITS.values() for name in units)}"
    )


def _canonical(text: str) -> str:
    if _NUMBER_ONE.fullmatch(text.strip()):
        return "1"
    powers: dict[str, int] = {}
    for sign, part in zip((1, *[-1] * text.count("/")), text.split("/"), strict=True):
        leftover = _FACTOR.sub("", part).strip(" *.1")
        if leftover:
            return " ".join(text.split())
        for symbol, power in _FACTOR.findall(part):
            powers[symbol] = powers.get(symbol, 0) + sign * int(power or 1)
    return " ".join(f"{s}{p}" for s, p in sorted(powers.items()) if p) or "1"
