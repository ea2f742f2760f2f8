"""The lexicon: presets, parsing, messages."""

import json

import pytest

from wx_data import PRESETS, channel, channels
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
