"""The channel lexicon: one short name, its other names, its units and what values are plausible."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

GRAVITY = 9.80665  # m s-2, standard gravity (CGPM 1901): geopotential = 9.80665 x geopotential height


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One two-dimensional field.

    Attributes:
        name: short name, e.g. `z500`.
        variable: the short name without the level, e.g. `z`.
        level: pressure level in hPa; None for a single-level field.
        long_name: name in ARCO-ERA5 and WeatherBench2.
        aliases: names in CDS NetCDF files and GRIB short names.
        standard_name: CF standard name.
        units: units that every array of this package holds.
        valid_range: values outside are refused at conversion.
        accumulation_hours: length of the accumulation that ends at the valid time; None if instantaneous.
        static: does not change in time.
        wind: a component of a vector, which has no single value at a pole.
        equivalents: (standard name, units, factor) of quantities that convert to this one.
    """

    name: str
    variable: str
    level: int | None = None
    long_name: str
    aliases: tuple[str, ...] = ()
    standard_name: str
    units: str
    valid_range: tuple[float, float]
    accumulation_hours: int | None = None
    static: bool = False
    wind: bool = False
    equivalents: tuple[tuple[str, str, float], ...] = ()

    def attributes(self) -> dict[str, object]:
        """CF attributes of the channel, as JSON data."""
        found: dict[str, object] = {
            "long_name": self.long_name,
            "standard_name": self.standard_name,
            "units": self.units,
        }
        if self.level is not None:
            found["level_hPa"] = self.level
        if self.accumulation_hours is not None:
            found["accumulation_hours"] = self.accumulation_hours
        return found


def _entry(
    name: str,
    long_name: str,
    aliases: tuple[str, ...],
    standard_name: str,
    units: str,
    valid_range: tuple[float, float],
    **more: Any,
) -> tuple[str, Channel]:
    spec = Channel(
        name=name,
        variable=name,
        long_name=long_name,
        aliases=aliases,
        standard_name=standard_name,
        units=units,
        valid_range=valid_range,
        **more,
    )
    return name, spec


_HEIGHT = (("geopotential_height", "m", GRAVITY),)
_ALTITUDE = (("surface_altitude", "m", GRAVITY),)
_WATER = (("precipitation_amount", "kg m-2", 1e-3),)  # water of 1000 kg m-3
_U, _V = "eastward_wind", "northward_wind"
_OMEGA = "lagrangian_tendency_of_air_pressure"
_VAPOUR = "atmosphere_mass_content_of_water_vapor"
_RAIN = "lwe_thickness_of_precipitation_amount"

_ON_LEVELS = ("u", "v", "z", "t", "q", "w", "r")
_VARIABLES: dict[str, Channel] = dict(
    [
        _entry("u", "u_component_of_wind", ("u",), _U, "m s-1", (-300, 300), wind=True),
        _entry("v", "v_component_of_wind", ("v",), _V, "m s-1", (-300, 300), wind=True),
        _entry(
            "z", "geopotential", ("z", "gh"), "geopotential", "m2 s-2", (-1.5e4, 9e5), equivalents=_HEIGHT
        ),
        _entry("t", "temperature", ("t",), "air_temperature", "K", (130, 360)),
        _entry("q", "specific_humidity", ("q",), "specific_humidity", "kg kg-1", (-5e-3, 0.06)),
        _entry("w", "vertical_velocity", ("w",), _OMEGA, "Pa s-1", (-100, 100)),
        _entry("r", "relative_humidity", ("r",), "relative_humidity", "%", (-10, 200)),
        _entry("u10m", "10m_u_component_of_wind", ("u10", "10u"), _U, "m s-1", (-120, 120), wind=True),
        _entry("v10m", "10m_v_component_of_wind", ("v10", "10v"), _V, "m s-1", (-120, 120), wind=True),
        _entry("u100m", "100m_u_component_of_wind", ("u100", "100u"), _U, "m s-1", (-150, 150), wind=True),
        _entry("v100m", "100m_v_component_of_wind", ("v100", "100v"), _V, "m s-1", (-150, 150), wind=True),
        _entry("t2m", "2m_temperature", ("t2m", "2t"), "air_temperature", "K", (170, 350)),
        _entry("sp", "surface_pressure", ("sp",), "surface_air_pressure", "Pa", (3e4, 1.15e5)),
        _entry(
            "msl",
            "mean_sea_level_pressure",
            ("msl",),
            "air_pressure_at_mean_sea_level",
            "Pa",
            (8e4, 1.15e5),
        ),
        _entry("tcwv", "total_column_water_vapour", ("tcwv",), _VAPOUR, "kg m-2", (-5, 150)),
        _entry("sst", "sea_surface_temperature", ("sst",), "sea_surface_temperature", "K", (260, 320)),
        _entry(
            "tp",
            "total_precipitation_6hr",
            ("tp06", "tp"),
            _RAIN,
            "m",
            (-1e-5, 2.0),
            accumulation_hours=6,
            equivalents=_WATER,
        ),
        _entry(
            "z_surface",
            "geopotential_at_surface",
            ("z",),
            "surface_geopotential",
            "m2 s-2",
            (-5e3, 9e4),
            static=True,
            equivalents=_ALTITUDE,
        ),
        _entry("lsm", "land_sea_mask", ("lsm",), "land_binary_mask", "1", (-0.01, 1.01), static=True),
    ]
)
_LEVEL_NAME = re.compile(r"([uvztqwr])([1-9]\d{0,3})")

_LEVELS_13 = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
_UPPER_AIR = tuple(f"{name}{level}" for name in "uvztq" for level in _LEVELS_13)
_SINGLE = ("u10m", "v10m", "u100m", "v100m", "t2m", "sp", "msl", "tcwv")

PRESETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "atlas75": (*_SINGLE, *_UPPER_AIR, "sst", "tp"),
        "sfno73": (*_SINGLE, *_UPPER_AIR),
        "fcn3-72": (*(name for name in _SINGLE if name != "sp"), *_UPPER_AIR),
        "pangu69": ("u10m", "v10m", "t2m", "msl", *_UPPER_AIR),
    }
)


def channel(name: str) -> Channel:
    """The channel called `name`: `z500`, `t2m`, `tp`, `lsm`, ...

    Raises:
        ValueError: no such channel; the message names the nearest ones.
    """
    if name in _VARIABLES and name not in _ON_LEVELS:
        return _VARIABLES[name]
    match = _LEVEL_NAME.fullmatch(name)
    if match and 1 <= int(match[2]) <= 1100:
        return replace(_VARIABLES[match[1]], name=name, level=int(match[2]))
    known = [*(n for n in _VARIABLES if n not in _ON_LEVELS), *_UPPER_AIR]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    hint = f"; nearest names: {', '.join(near)}" if near else ""
    raise ValueError(
        f"channel {name!r} is not in the lexicon{hint}. Expected a variable on a pressure level in hPa "
        f"({', '.join(_ON_LEVELS)} followed by 1..1100, e.g. z500) or one of "
        f"{', '.join(n for n in _VARIABLES if n not in _ON_LEVELS)}"
    )


def channels(names: str | Iterable[str]) -> tuple[Channel, ...]:
    """The channels of a preset ("atlas75", "sfno73", "fcn3-72", "pangu69") or of a list of names.

    Raises:
        ValueError: an unknown name, or the same name twice.
    """
    if isinstance(names, str):
        if names not in PRESETS:
            raise ValueError(f"channels: preset {names!r} is unknown; presets are {', '.join(PRESETS)}")
        names = PRESETS[names]
    names = tuple(names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"channels: {', '.join(twice)} named more than once")
    return tuple(channel(name) for name in names)
