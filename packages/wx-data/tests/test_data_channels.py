"""The lexicon: presets, parsing, messages."""

import json

import pytest

from wx_data import PRESETS, channel, channels
from wx_data._channels import ON_LEVELS, SINGLE
from wx_data._checks import convert_units
from wx_data._units import parse_unit


@pytest.mark.parametrize(
    ("preset", "count"), [("atlas75", 75), ("sfno73", 73), ("fcn3-72", 72), ("pangu69", 69)]
)
def test_presets_have_their_published_length(preset: str, count: int) -> None:
    found = channels(preset)
    assert len(found) == len({c.name for c in found}) == count


def test_atlas_order() -> None:
    names = PRESETS["atlas75"]
    assert names[:8] == ("u10m", "v10m", "u100m", "v100m", "t2m", "sp", "msl", "tcwv")
    assert names[8] == "u50"
    assert names[8 + 13] == "v50"
    assert names[-2:] == ("sst", "tp")


def test_every_unit_parses_and_every_range_is_a_range() -> None:
    for spec in (
        *channels("atlas75"),
        channel("z_surface"),
        channel("lsm"),
        channel("w500"),
        channel("r500"),
    ):
        parse_unit(spec.units)
        assert spec.valid_range[0] < spec.valid_range[1]
        json.dumps(spec.attributes())


def test_pressure_and_height_names_do_not_collide() -> None:
    assert channel("u10").level == 10
    assert channel("u10m").level is None
    assert channel("z_surface").static


def test_accumulation_is_part_of_the_channel() -> None:
    assert channel("tp").accumulation_hours == 6
    assert channel("t2m").accumulation_hours is None


@pytest.mark.parametrize("name", ["z050", "z0", "z1101", "500z", "t2x", "ssst", ""])
def test_unknown_names_say_what_is_known(name: str) -> None:
    with pytest.raises(ValueError, match=r"not in the lexicon.*z500"):
        channel(name)


def test_nearest_names_are_offered() -> None:
    with pytest.raises(ValueError, match="nearest names: sst"):
        channel("sstt")


def test_repeated_and_unknown_lists() -> None:
    with pytest.raises(ValueError, match="z500 named more than once"):
        channels(["z500", "t850", "z500"])
    with pytest.raises(ValueError, match="presets are atlas75"):
        channels("atlas")


ALL = (*SINGLE, *(f"{name}500" for name in ON_LEVELS))


@pytest.mark.parametrize("name", ALL)
def test_grib_numbers_and_names_against_eccodes(name: str) -> None:
    """ECMWF's tables name the parameter as the lexicon does, in units that convert."""
    eccodes = pytest.importorskip("eccodes")
    spec = channel(name)
    message = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
    eccodes.codes_set(message, "paramId", spec.param_id)
    short, variable, units, standard_name = (
        eccodes.codes_get(message, key) for key in ("shortName", "cfVarName", "units", "cfName")
    )
    eccodes.codes_release(message)
    assert short == spec.grib_name
    assert variable in (spec.variable, *spec.aliases)
    factor, offset = convert_units(spec, units, standard_name)
    assert (factor, offset) == pytest.approx((1.0, 0.0))


def test_no_two_channels_share_a_request() -> None:
    """What is asked of the CDS, of IFS open data and of GFS names one channel, but for sums and statics."""
    for key in ("cds_name", "gfs_name"):
        asked = [(getattr(channel(n), key), channel(n).level) for n in ALL if n != "tp01"]
        asked = [entry for entry in asked if entry[0] is not None]
        assert len(asked) == len(set(asked)), key
    names = [(channel(n).ifs_name, channel(n).level) for n in ALL if n != "tp01"]
    assert len(names) == len(set(names))


def test_names_in_the_archives() -> None:
    assert channel("z500").gfs_name == "HGT:500 mb"
    assert channel("q1000").gfs_name == "SPFH:1000 mb"
    assert channel("u100").gfs_name == "UGRD:100 mb"
    assert channel("u100m").gfs_name == "UGRD:100 m above ground"
    assert channel("z500").ifs_name == "gh"
    assert channel("z_surface").cds_name == "geopotential"
    assert channel("sst").gfs_name is None
    assert channel("clwc850").level == 850
    assert channel("sst").sea_only
    assert not channel("skt").sea_only


def test_hourly_and_six_hourly_rain_are_two_channels() -> None:
    assert channel("tp01").accumulation_hours == 1
    assert channel("tp01").long_name == "total_precipitation_1hr"
    assert channel("tp").long_name == "total_precipitation_6hr"
    assert channel("tp").cds_name == channel("tp01").cds_name == "total_precipitation"
