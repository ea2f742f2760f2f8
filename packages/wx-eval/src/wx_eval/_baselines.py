"""Reference forecasts that need nothing but past states."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._fields import Chunk, as_history, channel_names, channel_units, seconds
from ._protocols import History
from ._seasons import Calendar, check_calendar

_DAY = np.timedelta64(86400, "s")
_YEAR = np.timedelta64(1, "Y")
# Of valid times that several starts share.
_KEPT_BYTES = 256 << 20
Times = npt.NDArray[np.datetime64]


def climatology(
    history: xr.DataArray | xr.Dataset | History,
    init_times: Iterable[np.datetime64],
    lead_times: Iterable[np.timedelta64],
    *,
    members: int | None = None,
    years: Sequence[int] | None = None,
    window_days: int = 15,
    calendar: Calendar = "monthday",
) -> Iterator[Chunk]:
    """Probabilistic climatology: past states of the same hour near the same day of the year as members.

    With `members`, candidates are all states of the same hour of day within `window_days` of the day of the
    valid time in any year. Of n candidates in order of time the members are those at (k + 1/2) n / M: evenly
    spread over years and days, and the same at every call. With `years`, each year gives the state of the
    same day and hour as one member, as in WeatherBench-X.

    The same day is, in the calendar "monthday", that of the same month and day, 28 February for 29 February
    in common years; in "doy" (WeatherBench-X), that of the same number in the year, so that leap and common
    years are a day apart after February and day 366 of a common year is 1 January of the next.

    Args:
        history: training states, array (time, channel, latitude, longitude) or a History; keep the period
            that is verified out of it.
        init_times: starts.
        lead_times: leads.
        members: M.
        years: give these instead of `members`, for example range(1990, 2020).
        window_days: half width of the window around the day, 0 to 180, for `members`.
        calendar: see above.

    Yields:
        One chunk per (init time, lead time), init by init.

    Raises:
        ValueError: when a valid time has fewer than M candidates, or no state in one of the years.
    """
    check_calendar(calendar)
    if (members is None) == (years is None):
        raise ValueError("give either members or years")
    if (members is not None and members < 1) or not 0 <= window_days <= 180:
        raise ValueError(f"need members >= 1 and window_days within 0..180, got {members} and {window_days}")
    source = as_history(history, "history")
    cache: dict[np.datetime64, xr.DataArray] = {}
    for init, lead in _pairs(init_times, lead_times):
        valid = init + lead
        if valid not in cache:
            if members is None:
                chosen = _each_year(source.times, valid, years or (), calendar)
            else:
                chosen = _spread(source.times, valid, members, window_days, calendar)
            states = source.read(source.times[chosen])
            while cache and (len(cache) + 1) * states.nbytes > _KEPT_BYTES:
                cache.pop(next(iter(cache)))
            cache[valid] = states
        yield _chunk(init, lead, cache[valid])


def persistence(
    history: xr.DataArray | xr.Dataset | History,
    init_times: Iterable[np.datetime64],
    lead_times: Iterable[np.timedelta64],
) -> Iterator[Chunk]:
    """Deterministic forecast that stays at the state of the init time.

    Raises:
        ValueError: when the history has no state at an init time.
    """
    source = as_history(history, "history")
    known = set(seconds(source.times).tolist())
    state: tuple[np.datetime64, xr.DataArray] | None = None
    for init, lead in _pairs(init_times, lead_times):
        if init.item() not in known:
            raise ValueError(f"history has no state at the init time {init}")
        if state is None or state[0] != init:
            state = (init, source.read(np.array([init])))
        yield _chunk(init, lead, state[1])


def _spread(
    times: Times, valid: np.datetime64, members: int, window_days: int, calendar: Calendar
) -> npt.NDArray[np.intp]:
    """Positions of M candidates, evenly spread."""
    near = same_season(times, valid, window_days, calendar)
    if near.size < members:
        raise ValueError(
            f"history has {near.size} states within {window_days} days of {valid} at the same hour "
            f"and members = {members} were asked for: widen window_days or lower members"
        )
    return near[((np.arange(members) + 0.5) * near.size / members).astype(np.intp)]


def _each_year(
    times: Times, valid: np.datetime64, years: Sequence[int], calendar: Calendar
) -> npt.NDArray[np.intp]:
    """Positions of the state of the same day and hour of each year."""
    stamps = seconds(times)
    hour = valid - valid.astype("datetime64[D]")
    wanted = np.array([_same_day(valid, np.datetime64(str(y), "Y"), calendar) + hour for y in years])
    absent = np.setdiff1d(wanted, stamps)
    if absent.size:
        raise ValueError(f"history has no state at {absent[0]}, the day of {valid} in one of the years")
    found: npt.NDArray[np.intp] = np.searchsorted(stamps, wanted)
    return found


def same_season(
    times: Times, valid_time: np.datetime64, window_days: int, calendar: Calendar = "monthday"
) -> npt.NDArray[np.intp]:
    """Positions of the times at the same hour of day near the same day of any year."""
    stamps = seconds(times)
    if not stamps.size:
        return np.zeros(0, np.intp)
    valid = valid_time.astype("datetime64[s]")
    hour = valid - valid.astype("datetime64[D]")
    inside = np.zeros(stamps.shape, bool)
    years = stamps.astype("datetime64[Y]")
    # A window around 1 January also reaches into the years before the first and after the last.
    for year in np.arange(years.min() - _YEAR, years.max() + 2 * _YEAR):
        centre = _same_day(valid, year, calendar) + hour
        inside |= np.abs(stamps - centre) <= window_days * _DAY
    same_hour = (stamps - stamps.astype("datetime64[D]")) == hour
    return np.flatnonzero(inside & same_hour)


def _same_day(valid: np.datetime64, year: np.datetime64, calendar: Calendar) -> np.datetime64:
    if calendar == "doy":
        count = valid.astype("datetime64[D]") - valid.astype("datetime64[Y]").astype("datetime64[D]")
        counted: np.datetime64 = (year.astype("datetime64[D]") + count).astype("datetime64[s]")
        return counted
    month = valid.astype("datetime64[M]") - valid.astype("datetime64[Y]").astype("datetime64[M]")
    day = valid.astype("datetime64[D]") - valid.astype("datetime64[M]").astype("datetime64[D]")
    start = year.astype("datetime64[M]") + month
    last = (start + np.timedelta64(1, "M")).astype("datetime64[D]") - np.timedelta64(1, "D")
    found: np.datetime64 = min(start.astype("datetime64[D]") + day, last).astype("datetime64[s]")
    return found


def _pairs(
    init_times: Iterable[np.datetime64], lead_times: Iterable[np.timedelta64]
) -> Iterator[tuple[np.datetime64, np.timedelta64]]:
    leads = seconds(list(lead_times))
    for init in seconds(list(init_times)):
        for lead in leads:
            yield init, lead


def _chunk(init: np.datetime64, lead: np.timedelta64, states: xr.DataArray) -> Chunk:
    ordered = states.transpose("time", "channel", ...)
    return Chunk(
        init_time=init,
        lead_time=lead,
        channels=channel_names(ordered),
        values=ordered.values,
        latitude=ordered["latitude"].values,
        longitude=ordered["longitude"].values,
        units=channel_units(ordered),
    )
