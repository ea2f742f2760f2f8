"""Units: closed forms."""

import pytest

from wx_data._units import conversion, parse_unit


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("m s**-1", "m/s"),
        ("m s-1", "m s^-1"),
        ("m**2 s**-2", "J kg-1"),
        ("m2 s-2", "m^2/s^2"),
        ("kg kg**-1", "1"),
        ("(0 - 1)", "dimensionless"),
        ("~", "1"),
        ("Pa s**-1", "kg m-1 s-3"),
        ("kg.m-2", "kg m**-2"),
        ("W m^-2", "J m-2 s-1"),
        ("meters", "gpm"),
        ("degK", "K"),
        ("fractional", "(0 - 1)"),
        ("s**-1", "1/s"),
        ("K m**2 kg**-1 s**-1", "K m2 kg-1 s-1"),
    ],
)
def test_spellings_are_equal(text: str, same: str) -> None:
    assert parse_unit(text) == parse_unit(same)


@pytest.mark.parametrize(
    ("found", "wanted", "factor", "offset"),
    [
        ("hPa", "Pa", 100.0, 0.0),
        ("degC", "K", 1.0, 273.15),
        ("K", "degC", 1.0, -273.15),
        ("mm", "m", 1e-3, 0.0),
        ("%", "1", 0.01, 0.0),
        ("1", "%", 100.0, 0.0),
        ("g kg-1", "kg kg-1", 1e-3, 0.0),
        ("mm/day", "m s-1", 1e-3 / 86400, 0.0),
        ("km h-1", "m s-1", 1 / 3.6, 0.0),
        ("mb/day", "Pa s-1", 100 / 86400, 0.0),
        ("millibars", "Pa", 100.0, 0.0),
    ],
)
def test_conversion(found: str, wanted: str, factor: float, offset: float) -> None:
    got = conversion(found, wanted)
    assert got is not None
    assert got == pytest.approx((factor, offset), rel=1e-14)


def test_other_dimensions_do_not_convert() -> None:
    assert conversion("m", "m2 s-2") is None
    assert conversion("kg m-2", "m") is None


@pytest.mark.parametrize("text", ["furlong", "m per s", "m s**", "s-1 {x}"])
def test_unknown_units_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="not understood"):
        parse_unit(text)


def test_offset_belongs_to_a_bare_temperature_only() -> None:
    assert parse_unit("degC").offset == 273.15
    assert parse_unit("degC m-1").offset == 0.0
