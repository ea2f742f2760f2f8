"""Forecasts of a baseline, made of past states while a run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._baselines import climatology, persistence
from ._cube import Key
from ._fields import Chunk, seconds
from ._grid import Array
from ._kept import Kept
from ._open import Source, Truth
from ._protocols import History
from ._sections import BaselineSettings

Starts = npt.NDArray[np.datetime64]

_KEPT_BYTES = 256 << 20


class Made:
    """Forecasts of a baseline, in the form of `Forecast`.

    Args:
        source: past states.
        settings: of the baseline.
        starts: that are made.
        leads: of all of them, in seconds.
        units: of the truth, taken where the states have none.

    Raises:
        ValueError: for a climatology whose members would hold the truth.
    """

    def __init__(
        self,
        source: Source,
        settings: BaselineSettings,
        starts: Starts,
        leads: Sequence[int],
        units: Mapping[str, str],
    ) -> None:
        self.source, self._settings = source, settings
        self._leads = np.array(sorted(leads), "timedelta64[s]")
        self.keys: list[Key] = [
            (start, lead) for start in starts.astype(np.int64).tolist() for lead in sorted(leads)
        ]
        history = Reread(Truth(source, units))
        self._history: History = Some(history, history.times[settings.within(history.times)])
        if settings.baseline == "climatology":
            self._refuse_truth()

    def channels_at(self, key: Key) -> tuple[str, ...]:
        """All."""
        del key
        return self.source.channels

    def chunks(self, init_times: Iterable[np.datetime64]) -> Iterator[Chunk]:
        """Every lead time of some starts."""
        s = self._settings
        if s.baseline == "persistence":
            return persistence(self._history, init_times, self._leads)
        return climatology(
            self._history,
            init_times,
            self._leads,
            members=s.members,
            years=s.years,
            window_days=s.window_days,
            calendar=s.calendar,
        )

    def _refuse_truth(self) -> None:
        held = seconds(self._history.times)
        if self._settings.years is not None:
            held = held[np.isin(held.astype("datetime64[Y]").astype(int) + 1970, self._settings.years)]
        verified = np.unique([start + lead for start, lead in self.keys]).astype("datetime64[s]")
        both = np.intersect1d(held, verified)
        if both.size:
            raise ValueError(
                f"the climatology would have {both.size} states of the verified period as members, the first "
                f'of {both[0]}: leave that period out by forecast.period = "first/last" or years'
            )


@dataclass(frozen=True)
class Some:
    """A History of some of its times."""

    history: History
    times: Starts

    def read(self, times: Starts, /) -> xr.DataArray:
        return self.history.read(times)


class Reread:
    """A History that keeps what it read last: the members of one day serve several starts."""

    def __init__(self, history: History) -> None:
        self._history, self.times = history, history.times
        self._kept: Kept[Array] = Kept(_KEPT_BYTES)

    @cached_property
    def _like(self) -> xr.DataArray:
        first = self._history.read(self.times[:1])
        return first.isel(time=0, drop=True)

    def read(self, times: Starts, /) -> xr.DataArray:
        """See `History.read`."""
        stamps = seconds(times)
        values = np.stack([self._state(t) for t in stamps.astype(np.int64).tolist()])
        like = self._like
        coords = {**like.coords, "time": stamps.astype("datetime64[ns]")}
        return xr.DataArray(values, coords, ("time", *like.dims), name=like.name)

    def _state(self, time: int) -> Array:
        def read() -> Array:
            state = self._history.read(np.array([time], "datetime64[s]"))
            return np.asarray(state.isel(time=0).transpose(*self._like.dims).values)

        return self._kept.get(time, read)
