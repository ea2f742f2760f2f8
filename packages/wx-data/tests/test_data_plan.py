"""The plan of a conversion against the conversion itself, and the synthetic source it is tried with."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_data import Grid, SourceError, Store, channel, convert
from wx_data._plan import plan
from wx_data._synthetic import SyntheticSource
from wx_data._times import period_hours

Make = Callable[..., Any]


@dataclass(frozen=True)
class Count:
    requests: int
    bytes: int


class Counted:
    """A source that counts like a remote one: one request of 1000 bytes per channel and time."""

    def __init__(self, source: Any, seconds: float = 0.0) -> None:
        self.channels, self.grid, self.times = source.channels, source.grid, source.times
        self.statics, self.provenance = source.statics, source.provenance
        self.traffic, self._source, self._seconds = Count(0, 0), source, seconds

    def read(self, times: Any, channels: Sequence[str], /) -> xr.DataArray:
        requests = self.traffic.requests + len(times) * len(channels)
        self.traffic = Count(requests, 1000 * requests)
        time.sleep(self._seconds * len(times))
        return self._source.read(times, channels)


def test_plan_says_what_conversion_does(make_source: Make, tmp_path: Path) -> None:
    source = Counted(make_source(60))
    found = plan(source, tmp_path / "s", period=("2001-01-02", "2001-01-11"))
    assert not list(tmp_path.iterdir())
    before = source.traffic
    report = convert(source, tmp_path / "s", period=("2001-01-02", "2001-01-11"))
    assert found.steps == report.steps == 40
    assert found.requests == source.traffic.requests - before.requests == 200
    assert found.read_bytes == source.traffic.bytes - before.bytes
    assert found.disk_bytes == pytest.approx(report.bytes, rel=0.02)
    assert found.decoded_bytes == 40 * 5 * 9 * 16 * 4
    assert (found.first, found.last) == (source.times[4], source.times[43])
    assert found.fits
    done = plan(source, tmp_path / "s", period=("2001-01-02", "2001-01-11"))
    assert (done.done, done.requests, done.seconds) == (40, 0, 0.0)


def test_time_is_estimated_from_the_sample(make_source: Make, tmp_path: Path) -> None:
    found = plan(Counted(make_source(50), seconds=0.02), tmp_path / "s", sample=5)
    assert found.bottleneck == "read"
    assert 50 * 0.02 < found.seconds < 4 * 50 * 0.02
    assert found.sampled == 5


def test_local_sources_count_nothing(make_source: Make, tmp_path: Path) -> None:
    found = plan(make_source(3), tmp_path / "s")
    assert (found.requests, found.read_bytes, found.sampled) == (None, None, 3)


def test_the_sample_passes_the_checks_of_the_conversion(make_source: Make, tmp_path: Path) -> None:
    source = make_source(10)
    read = source.read
    source.read = lambda times, names: read(times, names) - 273.15
    with pytest.raises(SourceError, match=r"t850 at .* leave the plausible range"):
        plan(source, tmp_path / "s")
    source.times = np.delete(source.times, 4)
    with pytest.raises(SourceError, match="lacks 1 of 10 times"):
        plan(source, tmp_path / "s", step=6)


def test_a_year_or_month_as_the_end_is_whole() -> None:
    none = np.zeros(0, dtype=np.int64)
    first = int(np.datetime64("1979-01-01T00").astype(int))
    for period, last in [
        (("1979", "2017"), "2017-12-31T23"),
        (("1979", "1980-02"), "1980-02-29T23"),
        (("1979", "1979-01-01"), "1979-01-01T23"),
        (("1979", "1979-01-01T06"), "1979-01-01T06"),
    ]:
        assert period_hours(period, none) == (first, int(np.datetime64(last).astype(int)))


def test_synthetic_fields(tmp_path: Path) -> None:
    names = ("z500", "t850", "q850", "u200", "v200", "t2m", "sst", "tp", "msl", "sp", "tcwv", "w500", "r500")
    grid = Grid.regular(33, 64)
    source = SyntheticSource(names, grid, ("2001-01-01", "2001-01-10"))
    again = SyntheticSource(names, grid, ("2000-12-01", "2001-02-10"))
    times = source.times[[3, 17]]
    fields = source.read(times, names)
    xr.testing.assert_identical(fields, again.read(times, names))
    assert not fields.equals(SyntheticSource(names, grid, ("2001", "2001"), seed=1).read(times, names))
    for name in names:
        low, high = channel(name).valid_range
        values = fields.sel(channel=name).values
        assert np.nanmin(values) >= low
        assert np.nanmax(values) <= high
        assert len(np.unique(values[0])) <= 2**16
    missing = np.isnan(fields.sel(channel="sst").values[0])
    np.testing.assert_array_equal(missing, source.statics["lsm"] > 0.5)
    assert 0.1 < missing.mean() < 0.6
    # Neighbouring times resemble each other, distant ones do not.
    z = source.read(source.times, ["z500"]).values[:, 0, 8:-8]
    z = z - z.mean(axis=0)
    near = np.corrcoef(z[10].ravel(), z[11].ravel())[0, 1]
    assert near > 0.8 > np.corrcoef(z[0].ravel(), z[39].ravel())[0, 1]
    with pytest.raises(SourceError, match="pattern is that of the land mask"):
        convert(source, tmp_path / "a")
    convert(source, tmp_path / "b", nan={"sst": "nearest"})
    assert not np.isnan(Store(tmp_path / "b").read(times, ["sst"]).values).any()
