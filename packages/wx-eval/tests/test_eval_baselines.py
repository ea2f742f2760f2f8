"""Climatology and persistence."""

import numpy as np
import pytest
import xarray as xr

from wx_eval import climatology, evaluate, persistence, scores
from wx_eval._baselines import same_season
from wx_eval._fields import States

HOUR, DAY = np.timedelta64(1, "h"), np.timedelta64(1, "D")


def history(start: str = "2010-01-01", end: str = "2014-01-01") -> xr.DataArray:
    """Six-hourly states whose value is their own time in hours since 2010."""
    times = np.arange(start, end, np.timedelta64(6, "h"), dtype="datetime64[ns]")
    hours = ((times - np.datetime64("2010-01-01")) / HOUR).astype(np.float64)
    values = np.broadcast_to(hours[:, None, None, None], (hours.size, 1, 3, 4))
    coords = {"time": times, "channel": ["t"], "latitude": [90.0, 0, -90], "longitude": np.arange(4) * 90.0}
    return xr.DataArray(values, coords, ("time", "channel", "latitude", "longitude"))


def by_hand(times: np.ndarray, valid: np.datetime64, window: int) -> list[int]:
    """The same rule written over Python dates."""
    valid_date = valid.astype("datetime64[s]").item()
    chosen = []
    for i, t in enumerate(times.astype("datetime64[s]").tolist()):
        for year in range(t.year - 1, t.year + 2):
            day = valid_date.day
            if (valid_date.month, day) == (2, 29) and not (year % 4 == 0 and (year % 100 or year % 400 == 0)):
                day = 28
            centre = valid_date.replace(year=year, day=day)
            if abs((t - centre).total_seconds()) <= window * 86400 and t.hour == valid_date.hour:
                chosen.append(i)
                break
    return chosen


@pytest.mark.parametrize("valid", ["2015-01-01T00", "2016-02-29T12", "2015-12-31T18", "2015-07-04T06"])
@pytest.mark.parametrize("window", [0, 3, 180])
def test_members_come_from_the_same_hour_and_season_of_every_year(valid: str, window: int) -> None:
    times = history()["time"].values
    got = same_season(times, np.datetime64(valid), window)
    assert got.tolist() == by_hand(times, np.datetime64(valid), window)


def test_climatology_spreads_its_members_over_the_years() -> None:
    start, lead = np.datetime64("2015-07-01T00"), 3 * DAY
    (chunk,) = climatology(history(), [start], [lead], members=8, window_days=5)
    stamps = np.datetime64("2010-01-01") + chunk.values[:, 0, 0, 0].astype(int) * HOUR
    years = stamps.astype("datetime64[Y]").astype(str).tolist()
    assert years == ["2010"] * 2 + ["2011"] * 2 + ["2012"] * 2 + ["2013"] * 2
    assert chunk.values.shape == (8, 1, 3, 4)
    assert chunk.init_time + chunk.lead_time == np.datetime64("2015-07-04T00")
    (again,) = climatology(history(), [start], [lead], members=8, window_days=5)
    np.testing.assert_array_equal(chunk.values, again.values)


def test_climatology_without_enough_years_is_refused() -> None:
    with pytest.raises(ValueError, match="history has 4 states within 0 days"):
        list(climatology(history(), [np.datetime64("2015-07-01T00")], [DAY], members=5, window_days=0))
    with pytest.raises(ValueError, match="members >= 1"):
        list(climatology(history(), [np.datetime64("2015-07-01T00")], [DAY], members=0))


def test_persistence_errs_by_the_change_since_the_start() -> None:
    truth = history()
    starts = [np.datetime64("2012-03-01T00"), np.datetime64("2012-03-02T00")]
    got = scores(evaluate(persistence(truth, starts, [DAY, 2 * DAY]), truth, model="persistence"))
    np.testing.assert_allclose(got["bias"].sel(region="global").squeeze(), [-24, -48])
    assert got["members"].values.ravel()[0] == 1
    with pytest.raises(ValueError, match="no state at the init time"):
        list(persistence(truth, [np.datetime64("2012-03-01T01")], [DAY]))


def test_climatology_of_independent_states_is_calibrated() -> None:
    rng = np.random.default_rng(0)
    truth = history("2000-01-01", "2012-01-01").copy(data=rng.standard_normal((17532, 1, 3, 4)))
    past, future = truth.sel(time=slice("2000", "2010")), truth.sel(time="2011")
    starts = np.arange("2011-01-01", "2011-12-01", 2, dtype="datetime64[D]")
    got = scores(evaluate(climatology(past, starts, [DAY], members=20), future, model="climatology"))
    assert float(got["crps_fair"].sel(region="global").squeeze()) == pytest.approx(
        1 / np.sqrt(np.pi), abs=0.03
    )
    assert float(got["spread_skill_fortin"].sel(region="global").squeeze()) == pytest.approx(1, abs=0.05)


def test_kept_states_are_bounded_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    states = history()
    starts, leads = np.datetime64("2015-03-01") + DAY * np.arange(6), DAY * np.arange(1, 4)

    class Counting(States):
        reads = 0

        def read(self, times: np.ndarray, /) -> xr.DataArray:
            Counting.reads += 1
            return super().read(times)

    def reads(kept_bytes: int) -> int:
        monkeypatch.setattr("wx_eval._baselines._KEPT_BYTES", kept_bytes)
        Counting.reads = 0
        made = [c.values for c in climatology(Counting(states), starts, leads, members=4)]
        assert len(made) == 18
        return Counting.reads

    one = 4 * states[0].nbytes
    assert reads(0) == 18
    assert reads(one) == 18
    assert reads(3 * one) == 8
