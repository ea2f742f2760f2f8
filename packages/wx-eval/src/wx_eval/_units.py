"""Comparison of unit strings."""

import re

_FACTOR = re.compile(r"([A-Za-z_%°]+)(?:\s*(?:\*\*|\^)\s*)?([-+]?\d+)?")
_NUMBER_ONE = re.compile(r"1|\(?0\s*-\s*1\)?|dimensionless")


def same_units(a: str, b: str) -> bool:
    """Whether two spellings mean one unit: "m s-1", "m/s" and "m s**-1" do; nothing is converted."""
    return _canonical(a) == _canonical(b)


def _canonical(text: str) -> str:
    if _NUMBER_ONE.fullmatch(text):
        return "1"
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
