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
        cds_name: name of the variable in requests to the Climate Data Store; None where it has none.
        grib_name: ECMWF's GRIB short name.
        param_id: ECMWF's GRIB parameter number.
        gfs_name: variable and level in the index of a GFS file; None where GFS does not have it.
        ifs_name: GRIB short name in the index of an IFS open-data file.
        aliases: further names in CDS NetCDF files and in what GRIB readers return.
        standard_name: CF standard name.
        units: units that every array of this package holds.
        valid_range: values outside are refused at conversion.
        accumulation_hours: length of the accumulation that ends at the valid time; None if instantaneous.
        static: does not change in time.
        wind: a component of a vector, which has no single value at a pole.
        sea_only: missing (NaN) over land by nature; a conversion must be told how to fill it.
        equivalents: (standard name, units, factor) of quantities that convert to this one; an empty
            standard name stands for a file that states none.
    """

    name: str
    variable: str
    level: int | None = None
    long_name: str
    cds_name: str | None = None
    grib_name: str
    param_id: int
    gfs_name: str | None = None
    ifs_name: str
    aliases: tuple[str, ...] = ()
    standard_name: str
    units: str
    valid_range: tuple[float, float]
    accumulation_hours: int | None = None
    static: bool = False
    wind: bool = False
    sea_only: bool = False
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
            found["cell_methods"] = f"time: sum (comment: over {self.accumulation_hours} h up to the time)"
        return found


_HEIGHT = (("geopotential_height", "m", GRAVITY),)
_ALTITUDE = (  # what ECMWF's and NCEP's GRIB and ARCO-ERA5 call the orography
    ("geopotential", "m2 s-2", 1.0),
    ("surface_altitude", "m", GRAVITY),
    ("geopotential_height", "m", GRAVITY),
    ("", "m", GRAVITY),
)
_WATER = (("precipitation_amount", "kg m-2", 1e-3), ("", "kg m-2", 1e-3))  # water of 1000 kg m-3
_U, _V = "eastward_wind", "northward_wind"
_OMEGA = "lagrangian_tendency_of_air_pressure"
_COLUMN_WATER = (("lwe_thickness_of_atmosphere_mass_content_of_water_vapor", "kg m-2", 1.0),)
_VAPOUR = "atmosphere_mass_content_of_water_vapor"
_RAIN = "lwe_thickness_of_precipitation_amount"
_LIQUID = "mass_fraction_of_cloud_liquid_water_in_air"
_ICE = "mass_fraction_of_cloud_ice_in_air"
_COLUMN = "PWAT:entire atmosphere (considered as a single layer)"


def _entry(
    name: str,
    long_name: str,
    grib: tuple[str, int],
    standard_name: str,
    units: str,
    valid_range: tuple[float, float],
    **more: Any,
) -> Channel:
    """A channel whose other names follow from the two given ones unless stated."""
    names = {"cds_name": long_name, "ifs_name": grib[0], **more}
    aliases = dict.fromkeys((grib[0], *names.pop("aliases", ())))
    return Channel(
        name=name,
        variable=name,
        long_name=long_name,
        grib_name=grib[0],
        param_id=grib[1],
        aliases=tuple(aliases),
        standard_name=standard_name,
        units=units,
        valid_range=valid_range,
        **names,
    )


def _on_levels() -> tuple[Channel, ...]:
    wind, share = (-300, 300), (-5e-3, 0.06)
    return (
        _entry("u", "u_component_of_wind", ("u", 131), _U, "m s-1", wind, gfs_name="UGRD", wind=True),
        _entry("v", "v_component_of_wind", ("v", 132), _V, "m s-1", wind, gfs_name="VGRD", wind=True),
        _entry(
            "z",
            "geopotential",
            ("z", 129),
            "geopotential",
            "m2 s-2",
            (-1.5e4, 9e5),
            gfs_name="HGT",
            ifs_name="gh",
            aliases=("gh",),
            equivalents=_HEIGHT,
        ),
        _entry("t", "temperature", ("t", 130), "air_temperature", "K", (130, 360), gfs_name="TMP"),
        _entry("q", "specific_humidity", ("q", 133), "specific_humidity", "kg kg-1", share, gfs_name="SPFH"),
        _entry("w", "vertical_velocity", ("w", 135), _OMEGA, "Pa s-1", (-100, 100), gfs_name="VVEL"),
        _entry("r", "relative_humidity", ("r", 157), "relative_humidity", "%", (-10, 200), gfs_name="RH"),
        _entry("clwc", "specific_cloud_liquid_water_content", ("clwc", 246), _LIQUID, "kg kg-1", share),
        _entry("ciwc", "specific_cloud_ice_water_content", ("ciwc", 247), _ICE, "kg kg-1", share),
    )


def _single() -> tuple[Channel, ...]:
    near, high = (-120, 120), (-150, 150)
    metres = "{} m above ground".format
    return (
        _entry(
            "u10m",
            "10m_u_component_of_wind",
            ("10u", 165),
            _U,
            "m s-1",
            near,
            aliases=("u10",),
            gfs_name=f"UGRD:{metres(10)}",
            wind=True,
        ),
        _entry(
            "v10m",
            "10m_v_component_of_wind",
            ("10v", 166),
            _V,
            "m s-1",
            near,
            aliases=("v10",),
            gfs_name=f"VGRD:{metres(10)}",
            wind=True,
        ),
        _entry(
            "u100m",
            "100m_u_component_of_wind",
            ("100u", 228246),
            _U,
            "m s-1",
            high,
            aliases=("u100",),
            gfs_name=f"UGRD:{metres(100)}",
            wind=True,
        ),
        _entry(
            "v100m",
            "100m_v_component_of_wind",
            ("100v", 228247),
            _V,
            "m s-1",
            high,
            aliases=("v100",),
            gfs_name=f"VGRD:{metres(100)}",
            wind=True,
        ),
        _entry(
            "t2m",
            "2m_temperature",
            ("2t", 167),
            "air_temperature",
            "K",
            (170, 350),
            aliases=("t2m",),
            gfs_name=f"TMP:{metres(2)}",
        ),
        _entry(
            "d2m",
            "2m_dewpoint_temperature",
            ("2d", 168),
            "dew_point_temperature",
            "K",
            (150, 330),
            aliases=("d2m",),
            gfs_name=f"DPT:{metres(2)}",
        ),
        _entry(
            "sp",
            "surface_pressure",
            ("sp", 134),
            "surface_air_pressure",
            "Pa",
            (3e4, 1.15e5),
            gfs_name="PRES:surface",
        ),
        _entry(
            "msl",
            "mean_sea_level_pressure",
            ("msl", 151),
            "air_pressure_at_mean_sea_level",
            "Pa",
            (8e4, 1.15e5),
            aliases=("prmsl",),
            gfs_name="PRMSL:mean sea level",
        ),
        _entry(
            "tcwv",
            "total_column_water_vapour",
            ("tcwv", 137),
            _VAPOUR,
            "kg m-2",
            (-5, 150),
            aliases=("pwat",),
            gfs_name=_COLUMN,
            equivalents=_COLUMN_WATER,
        ),
        _entry("skt", "skin_temperature", ("skt", 235), "surface_temperature", "K", (170, 360)),
        _entry("tcc", "total_cloud_cover", ("tcc", 164), "cloud_area_fraction", "1", (-0.01, 1.01)),
        _entry(
            "sst",
            "sea_surface_temperature",
            ("sst", 34),
            "sea_surface_temperature",
            "K",
            (260, 320),
            sea_only=True,
        ),
        _entry(
            "siconc",
            "sea_ice_cover",
            ("ci", 31),
            "sea_ice_area_fraction",
            "1",
            (-0.01, 1.01),
            aliases=("siconc",),
            gfs_name="ICEC:surface",
            sea_only=True,
        ),
        *(
            _entry(
                name,
                f"total_precipitation_{hours}hr",
                ("tp", 228),
                _RAIN,
                "m",
                (-1e-5, 2.0),
                cds_name="total_precipitation",
                aliases=(f"tp{hours:02}", "total_precipitation"),
                gfs_name="APCP:surface",
                accumulation_hours=hours,
                equivalents=_WATER,
            )
            for name, hours in (("tp", 6), ("tp01", 1))
        ),
        _entry(
            "z_surface",
            "geopotential_at_surface",
            ("z", 129),
            "surface_geopotential",
            "m2 s-2",
            (-5e3, 9e4),
            cds_name="geopotential",
            aliases=("orog",),
            gfs_name="HGT:surface",
            static=True,
            equivalents=_ALTITUDE,
        ),
        _entry(
            "lsm",
            "land_sea_mask",
            ("lsm", 172),
            "land_binary_mask",
            "1",
            (-0.01, 1.01),
            gfs_name="LAND:surface",
            static=True,
        ),
    )


ON_LEVELS: Mapping[str, Channel] = MappingProxyType({entry.name: entry for entry in _on_levels()})
SINGLE: Mapping[str, Channel] = MappingProxyType({entry.name: entry for entry in _single()})
_LEVEL_NAME = re.compile(rf"({'|'.join(ON_LEVELS)})([1-9]\d{{0,3}})")

_LEVELS_13 = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
_UPPER_AIR = tuple(f"{name}{level}" for name in "uvztq" for level in _LEVELS_13)
_SURFACE = ("u10m", "v10m", "u100m", "v100m", "t2m", "sp", "msl", "tcwv")

PRESETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "atlas75": (*_SURFACE, *_UPPER_AIR, "sst", "tp"),
        "sfno73": (*_SURFACE, *_UPPER_AIR),
        "fcn3-72": (*(name for name in _SURFACE if name != "sp"), *_UPPER_AIR),
        "pangu69": ("u10m", "v10m", "t2m", "msl", *_UPPER_AIR),
    }
)


def channel(name: str) -> Channel:
    """The channel called `name`: `z500`, `t2m`, `tp`, `lsm`, ...

    Raises:
        ValueError: no such channel; the message names the nearest ones.
    """
    if name in SINGLE:
        return SINGLE[name]
    match = _LEVEL_NAME.fullmatch(name)
    if match and 1 <= int(match[2]) <= 1100:
        return _at_level(ON_LEVELS[match[1]], int(match[2]))
    near = difflib.get_close_matches(name, [*SINGLE, *_UPPER_AIR], n=3, cutoff=0.3)
    hint = f"; nearest names: {', '.join(near)}" if near else ""
    raise ValueError(
        f"channel {name!r} is not in the lexicon{hint}. Expected a variable on a pressure level in hPa "
        f"({', '.join(ON_LEVELS)} followed by 1..1100, e.g. z500) or one of {', '.join(SINGLE)}"
    )


def _at_level(spec: Channel, level: int) -> Channel:
    gfs = None if spec.gfs_name is None else f"{spec.gfs_name}:{level} mb"
    return replace(spec, name=f"{spec.name}{level}", level=level, gfs_name=gfs)


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
