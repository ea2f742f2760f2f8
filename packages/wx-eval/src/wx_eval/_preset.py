"""The conventions of an evaluation as one object that evaluates, scores and compares by them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._compare import Comparison, compare, corrected_together
from ._evaluate import Band, evaluate
from ._event_scores import REV, Brier, EventFrequencies, EventMetric
from ._fields import as_chunks
from ._files import short_name
from ._inference import Method
from ._kernels import Kernel
from ._metrics import Metric
from ._multiplicity import Correction
from ._protocols import Climatology, ForecastChunk, History
from ._records import Records
from ._regions import RegionSpec
from ._samples import Sample
from ._scores import Average, resolve, scores
from ._seeps import SEEPS
from ._weights import Weights


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is tested against a baseline.

    Attributes:
        metrics: names.
        days: lead times; those that the records hold are used, and all of them when none are given.
    """

    metrics: tuple[str, ...]
    days: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Events:
    """Events that are scored by their Brier score, their outcomes and their economic value.

    Attributes:
        channels: that are scored where they exist, by short name.
        event: ">", ">=", "<" or "<=".
        thresholds: numbers in the unit of the channels, or names of climatological fields.
        cost_loss: ratios for which the economic value is on the card.
    """

    channels: tuple[str, ...]
    event: str
    thresholds: tuple[float | str, ...]
    cost_loss: tuple[float, ...] = ()

    def metrics(self, channels: Iterable[str]) -> tuple[EventMetric, ...]:
        """Of those channels that are scored, none without any."""
        held = tuple(sorted(c for c in channels if short_name(c) in self.channels))
        found: list[EventMetric] = []
        for threshold in self.thresholds if held else ():
            found += [
                Brier(threshold, self.event, channels=held),
                EventFrequencies(threshold, self.event, channels=held),
                *(REV(threshold, self.event, cost_loss=r, channels=held) for r in self.cost_loss),
            ]
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Stationary bootstrap of starts, see `compare`.

    Attributes:
        seed: of the resampling.
        resamples: that are drawn; no p-value is below 1 / (1 + resamples).
        block: mean length of the blocks in starts, None for the choice of Politis and White.
    """

    seed: int = 0
    resamples: int = 2000
    block: float | None = None


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Conventions of one evaluation protocol.

    Records keep `label`, so that those of two presets cannot be merged or compared by accident. A selection
    of metrics or regions in a call keeps the label; `dataclasses.replace` makes another preset.

    Attributes:
        name: short name.
        source: what the conventions were taken from, and which of them are our choice.
        weights: see `cell_weights`.
        average: over init times, see `scores`.
        method: standard error behind p-values, see `paired_test`.
        correction: for the number of tests of all cards of a report together.
        seeps: kind of `SEEPS`, which is added for channels of precipitation.
        regions: default regions.
        metrics: default metrics.
        ensembles: card when both models have two members or more.
        single: card otherwise.
        events: that are scored besides.
        event_bootstrap: test of the scores of events; None for that of all others.
        event_days: lead times of the card of events; those that the records hold are used.
        costly: further metrics of the evaluation, a hundred times as slow as all others together: they are
            left out unless `evaluate` is told otherwise.
        facts: what was evaluated, by a word for it.
        unchecked: words of `facts` that were not compared with the text of the publication.
    """

    name: str
    source: str
    weights: Weights
    average: Average
    method: Method
    correction: Correction
    seeps: Literal["wbx", "wb2"]
    regions: tuple[str, ...]
    metrics: tuple[Metric, ...]
    ensembles: Card
    single: Card
    events: tuple[Events, ...] = ()
    event_bootstrap: Bootstrap | None = None
    event_days: tuple[int, ...] = ()
    costly: tuple[Metric, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    unchecked: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name and hash of everything but the words about it."""
        plain = ("name", "weights", "average", "method", "correction", "seeps", "regions", "event_days")
        shared: dict[str, Any] = {name: getattr(self, name) for name in plain}
        for name in ("metrics", "costly"):
            shared[name] = [m.to_dict() for m in getattr(self, name)]
        shared["events"] = [asdict(e) for e in self.events]
        for name in ("ensembles", "single", "event_bootstrap"):
            value = getattr(self, name)
            shared[name] = None if value is None else asdict(value)
        text = json.dumps(shared, sort_keys=True)
        return f"{self.name}:{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def event_metrics(self, channels: Iterable[str]) -> tuple[EventMetric, ...]:
        """Metrics of the events of the preset for those of these channels that have any."""
        held = list(channels)
        return tuple(m for e in self.events for m in e.metrics(held))

    def evaluate(
        self,
        forecast: xr.DataArray | xr.Dataset | Iterable[ForecastChunk],
        truth: xr.DataArray | xr.Dataset | History,
        *,
        model: str,
        climatology: Climatology | None = None,
        precipitation: Mapping[str, int] | None = None,
        metrics: Sequence[Metric] | None = None,
        costly: bool = False,
        regions: RegionSpec | None = None,
        land_fraction: npt.ArrayLike | None = None,
        truth_name: str | None = None,
        missing_truth: Literal["error", "drop"] = "error",
        truth_models: Sequence[str] = (),
        kernel: Kernel = "numpy",
        workers: int = 1,
        band: Band | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Records:
        """`wx_eval.evaluate` by these conventions.

        Those not named here are the arguments of `wx_eval.evaluate`.

        Args:
            climatology: which anomalies, SEEPS and quantiles as thresholds need; pass `metrics` without them
                where there is none.
            precipitation: hours over which each channel of precipitation is summed, 6 or 24; these get SEEPS.
                By default total_precipitation_6hr and total_precipitation_24hr, the names of WeatherBench.
            metrics: instead of those of the preset, its events included.
            costly: add the costly metrics of the preset.
            regions: instead of those of the preset.

        Raises:
            ValueError: as `evaluate`, and for events beyond quantiles without a climatology.
        """
        channels, forecast = _peeked(forecast, truth)
        if precipitation is None:
            precipitation = {c: _RAIN[c] for c in channels if c in _RAIN and metrics is None}
        if metrics is None:
            events = self.event_metrics(channels)
            self._check_events(events, climatology)
            chosen = (*self.metrics, *events)
        else:
            chosen = tuple(metrics)
        chosen += self.costly if costly else ()
        for hours in sorted(set(precipitation.values())):
            summed = tuple(c for c, h in precipitation.items() if h == hours)
            chosen += (SEEPS(summed, hours=hours, kind=self.seeps),)
        return evaluate(
            forecast,
            truth,
            model=model,
            metrics=chosen,
            regions=self.regions if regions is None else regions,
            weights=self.weights,
            climatology=climatology,
            land_fraction=land_fraction,
            truth_name=truth_name,
            missing_truth=missing_truth,
            truth_models=truth_models,
            preset=self.label,
            kernel=kernel,
            workers=workers,
            band=band,
            progress=progress,
        )

    def scores(self, records: Records, metrics: Sequence[Metric | str] | None = None) -> xr.Dataset:
        """`wx_eval.scores` with the preset's mean over init times.

        Raises:
            ValueError: for records of other conventions.
        """
        self._check(records)
        return scores(records, metrics, average=self.average)

    def compare(
        self,
        a: Records,
        b: Records,
        *,
        model_a: str | None = None,
        model_b: str | None = None,
        metrics: Sequence[str | Metric] | None = None,
        channels: Sequence[str] | None = None,
        regions: Sequence[str] | None = None,
        lead_times: Iterable[np.timedelta64] | None = None,
        months: Iterable[int] | None = None,
        sample: Sample = "each",
        lag: np.timedelta64 | None = None,
        alpha: float = 0.05,
    ) -> Comparison:
        """`wx_eval.compare` on the preset's card.

        Args:
            a, b, model_a, model_b, channels, regions, months, sample, lag, alpha: see `compare`.
            metrics: instead of those of the card.
            lead_times: instead of those of the card.

        Raises:
            ValueError: for records of other conventions or without any lead time of the card.
        """
        for records in (a, b):
            self._check(records)
        left, right = (r if m is None else r.select(model=m) for r, m in ((a, model_a), (b, model_b)))
        chosen = resolve(left, self._card(left, right).metrics if metrics is None else list(metrics))
        events = [m for m in chosen if isinstance(m, EventMetric)]
        resampled = self.event_bootstrap if events else None
        if resampled is not None and len(events) < len(chosen):
            raise ValueError(
                f"preset {self.name!r} tests {events[0].name!r} by a bootstrap and others by "
                f"{self.method!r}: compare them apart, or all by cards"
            )
        days = self._card(left, right).days
        if len(events) == len(chosen):
            known = np.array(self.event_days, "timedelta64[D]").astype("timedelta64[s]")
            some = np.isin(known, left.lead_times.astype("timedelta64[s]")).any()
            days = self.event_days if some else ()
        test: dict[str, Any] = {"method": self.method}
        if resampled is not None:
            test = {"method": "bootstrap", **asdict(resampled)}
        return compare(
            left,
            right,
            chosen,
            channels=channels,
            regions=regions,
            lead_times=_lead_times(days, left, right, lag) if lead_times is None else lead_times,
            months=months,
            sample=sample,
            lag=lag,
            average=self.average,
            correction=self.correction,
            alpha=alpha,
            **test,
        )

    def cards(
        self, a: Records, b: Records, *, metrics: Sequence[str | Metric] | None = None, **choices: Any
    ) -> tuple[Comparison, ...]:
        """Every card of the preset for all models of `a`, corrected together as by `compare_models`.

        A model has a card of the metrics that are tested alike: of scores and, where the records hold them,
        of events.

        Args:
            a: records of the models under test; those of the baseline among them are left out.
            b: records of the baseline alone.
            metrics: instead of those of the cards.
            **choices: arguments of `compare` from `channels` on.

        Raises:
            ValueError: as `compare`, or when there is no model to test.
        """
        models = [m for m in a.models if len(a.models) == 1 or m not in b.models]
        if not models:
            raise ValueError(f"there is no model to test against {b.models}")
        found = []
        for model in models:
            ours = a.select(model=model)
            for group in self._groups(ours, b, metrics):
                found.append(self.compare(ours, b, metrics=group, **choices))
        return tuple(corrected_together(found))

    def _groups(
        self, a: Records, b: Records, metrics: Sequence[str | Metric] | None
    ) -> Iterable[Sequence[Metric]]:
        """Metrics of a card that are tested alike."""
        if metrics is None:
            chosen = resolve(a, self._card(a, b).metrics)
            known = [m.name for m in self.event_metrics(a.channels) if not m.vector and m.goal != "none"]
            chosen += resolve(a, [n for n in known if n in a.metrics and n in b.metrics])
        else:
            chosen = resolve(a, list(metrics))
        apart = self.event_bootstrap is not None
        events = [m for m in chosen if apart and isinstance(m, EventMetric)]
        return [g for g in ([m for m in chosen if m not in events], events) if g]

    def _card(self, a: Records, b: Records) -> Card:
        sizes = np.concatenate([r.table["members"].to_numpy() for r in (a, b)])
        return self.ensembles if (sizes > 1).all() else self.single

    def _check_events(self, events: Sequence[EventMetric], climatology: Climatology | None) -> None:
        named = [m for m in events if isinstance(m.threshold, str)]
        if named and climatology is None:
            wanted = ", ".join(dict.fromkeys(str(m.threshold) for m in named))
            raise ValueError(
                f"preset {self.name!r} scores events of {list(named[0].channels)} beyond {wanted} of a "
                "climatology: give one that has them (wx-eval climatology --quantiles), or name metrics"
            )

    def _check(self, records: Records) -> None:
        if records.conventions.preset != self.label:
            raise ValueError(
                f"preset {self.label!r} needs records that it evaluated, these are of "
                f"{records.conventions.preset or 'no preset'!r}"
            )


_RAIN = {"total_precipitation_6hr": 6, "total_precipitation_24hr": 24}


def _peeked(
    forecast: xr.DataArray | xr.Dataset | Iterable[ForecastChunk], truth: xr.DataArray | xr.Dataset | History
) -> tuple[tuple[str, ...], xr.DataArray | xr.Dataset | Iterable[ForecastChunk]]:
    """Channels, and the forecast to go on with: those of the array, of the truth, or of the first chunk."""
    for side in (forecast, truth):
        if isinstance(side, xr.DataArray) and "channel" in side.coords:
            return tuple(map(str, np.atleast_1d(side["channel"].values))), forecast
    known = getattr(truth, "channels", None)
    if known is not None:
        return tuple(known), forecast
    chunks = iter(as_chunks(forecast))
    first = list(islice(chunks, 1))
    return tuple(first[0].channels) if first else (), chain(first, chunks)


def _lead_times(
    days: tuple[int, ...], a: Records, b: Records, lag: np.timedelta64 | None
) -> npt.NDArray[np.timedelta64] | None:
    """Those of the days that both have."""
    if not days:
        return None
    theirs = b.lead_times.astype("timedelta64[s]") - (np.timedelta64(0, "s") if lag is None else lag)
    wanted = np.array(days, "timedelta64[D]").astype("timedelta64[s]")
    found = np.intersect1d(wanted, np.intersect1d(a.lead_times.astype("timedelta64[s]"), theirs))
    if not found.size:
        raise ValueError(
            f"the card is of the days {days}, of which the records hold none: use wx_eval.compare"
        )
    return found
