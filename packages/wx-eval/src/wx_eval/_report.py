"""One self-contained HTML page, and its figures as files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import xarray as xr

from . import _card, _charts, _page
from ._card import days, metric_title, unit_text
from ._card_text import card_settings, card_summary, card_warnings, cell_row
from ._charts import DASHES, Axes, Reliability, Series, colour
from ._compare import Comparison
from ._figure import Figure, arranged, framed
from ._maps import Map as Map
from ._maps import map_panels
from ._records import Records

_MOST_NUMBERS = 4
_LEAST_SIZE = {"panels": 0.72, "key": 0.5}


class Report:
    """A page that is built section by section and written to one file without external parts.

    Every method but `html`, `write` and `export` adds a section and returns the report, so that calls can be
    chained. The page is a function of its inputs alone: no date, no random identifiers.

    Args:
        title: of the page.
        subtitle: below it.
        data: paths of the records, relative to the page, that scorecards link to.
        command: the one command that makes the page again, shown with every scorecard.
    """

    def __init__(
        self, title: str, subtitle: str = "", *, data: str | Sequence[str] = "", command: str = ""
    ) -> None:
        self.title = title
        self.subtitle = subtitle
        self.data = tuple(filter(None, [data] if isinstance(data, str) else data))
        self.command = command
        self._figures: dict[str, Callable[[], Figure]] = {}
        self._numbers: dict[str, str] = {}
        self._sections: list[tuple[str, str]] = []

    @classmethod
    def from_records(
        cls,
        records: Records,
        *,
        baseline: str | None = None,
        metrics: Sequence[str] | None = None,
        title: str | None = None,
        data: str | Sequence[str] = "",
        command: str = "",
        alpha: float = 0.05,
        seed: int = 0,
        **choices: Any,
    ) -> Self:
        """A whole page: cards against a baseline, curves, diagrams, tables, settings.

        There is a card for each other model, and a correction for the number of tests over all of them.
        Scorecards follow the preset of the records, if there is one. Diagrams appear where the records hold
        what they need: `RankHistogram`, `PowerSpectrum`, `SpectralRatio`, `Coherence`, `EventFrequencies`.

        Args:
            records: of one or more models.
            baseline: model that all others are compared with; by default the first by name.
            metrics: of the cards; by default those of the preset, or fair CRPS and RMSE.
            title: of the page.
            data: paths of the records, relative to the page, to link to.
            command: that makes the page again.
            alpha: level of significance.
            seed: of the resampling behind consistency bars, and of the bootstrap.
            **choices: of the cards, `months` also of the rest of the page: months, sample and lag, see
                `compare`; for records of no preset also method, resamples, block and correction.

        Raises:
            TypeError: for another choice.
            ValueError: for a baseline or metric that the records do not hold, or for no rows.
        """
        from ._overview import fill

        names = records.models
        if not names:
            raise ValueError("the records have no rows: there is nothing to report")
        if baseline is not None and baseline not in names:
            raise ValueError(f"no model {baseline!r} in the records, which hold {names}")
        reference = names[0] if baseline is None else baseline
        shown = title or (f"Verification of {', '.join(names)}" if len(names) < 4 else "Verification")
        report = cls(shown, f"against {records.conventions.truth}", data=data, command=command)
        fill(report, records, reference, metrics, alpha, seed, choices)
        return report

    def text(self, heading: str, *paragraphs: str) -> Self:
        """Plain paragraphs."""
        return self._add(heading, _page.paragraphs(paragraphs))

    def code(self, heading: str, code: str, *paragraphs: str) -> Self:
        """A block of code, such as the command that reproduces the page."""
        return self._add(heading, f"{_page.paragraphs(paragraphs)}<pre>{escape(code)}</pre>")

    def table(
        self,
        heading: str,
        rows: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *paragraphs: str,
        fold: str = "",
    ) -> Self:
        """Names and values, or rows with the same columns, which a click on a heading sorts.

        `fold` is the line to click on before the table shows; what is folded is not printed.
        """
        content = _page.pair_table(rows) if isinstance(rows, Mapping) else _page.row_table(rows)
        content = _page.folded(fold, content) if fold else content
        return self._add(heading, _page.paragraphs(paragraphs) + content)

    def scorecard(self, heading: str, comparison: Comparison, *paragraphs: str) -> Self:
        """Every cell of a comparison with its significance, its settings and all its numbers.

        Args:
            heading: of the section.
            comparison: from `compare`.
            paragraphs: shown above the card.
        """
        c = comparison
        parts = [_page.paragraphs((*paragraphs, card_summary(c)))]
        parts.append(_page.paragraphs(card_warnings(c), "warning"))
        parts.append(_elements(_card.legend(c), "key"))
        self._keep(heading, {"card": lambda: _card.scorecard(c)})
        for metric in c.metrics:
            panels = _elements(_card.panels(c, metric).values())
            parts.append(f"<h3>{escape(metric_title(metric))}</h3>{panels}")
        parts.append(self._once(heading, _numbers(c), f"Scores and bias of {c.model_b}"))
        parts.append(_page.definitions(card_settings(c)))
        parts.append(self._origin())
        rows = [cell_row(cell, c) for cell in c.cells]
        parts.append(_page.folded(f"All {len(rows)} cells as a table", _page.row_table(rows)))
        return self._add(heading, "".join(parts))

    def curves(
        self,
        heading: str,
        scores: xr.Dataset,
        metrics: str | Sequence[str],
        *paragraphs: str,
        region: str = "global",
        channels: Iterable[str] | None = None,
        bands: xr.Dataset | None = None,
    ) -> Self:
        """Scores against lead time, one panel per channel.

        Args:
            heading: of the section.
            scores: from `scores`.
            metrics: one metric, or several that share a unit, told apart by dashes.
            paragraphs: shown above the panels.
            region: of the records.
            channels: which and in which order; by default all.
            bands: intervals of the scores, from `score_intervals`.
        """
        names = [metrics] if isinstance(metrics, str) else list(metrics)
        chosen = scores.sel(region=region)
        models = [str(m) for m in scores["model"].values]
        shown = [str(c) for c in (scores["channel"].values if channels is None else channels)]
        values = {name: _by_place(chosen[name], shown) for name in names}
        around = {} if bands is None else _limits_by_place(bands.sel(region=region), names, shown)
        x_days = scores["lead_time"].values / np.timedelta64(86400, "s")
        level = {"one": 1.0, "zero": 0.0}.get(str(chosen[names[0]].attrs.get("goal")))
        panels = {}
        for i, channel in enumerate(shown):
            lines = [
                Series(
                    f"{model}, {metric_title(name)}",
                    x_days,
                    values[name][m, i],
                    colour(m),
                    DASHES[k % len(DASHES)],
                    low=around[name][0][m, i] if name in around else None,
                    high=around[name][1][m, i] if name in around else None,
                    marker=_marker(models, m),
                )
                for k, name in enumerate(names)
                for m, model in enumerate(models)
            ]
            unit = str(chosen["units"].sel(channel=channel).values)
            axes = Axes(
                x_label="lead time in days",
                y_label=unit_text(str(chosen[names[0]].attrs.get("unit", "channel")), unit),
                zero=level != 1.0,
                reference=level,
            )
            panels[channel] = _charts.line_panel(str(channel), lines, axes)
        key = _key(models, [metric_title(name) for name in names])
        around_text = "" if bands is None else _band_text(bands, names[0])
        where = f'<p class="caption">Region {escape(region)}; {escape(_starts(chosen))}.{around_text}</p>'
        return self._add(
            heading, f"{_page.paragraphs(paragraphs)}{self._panels(heading, panels, key)}{where}"
        )

    def spectrum(
        self,
        heading: str,
        panels: Mapping[str, Mapping[str, npt.ArrayLike]],
        *paragraphs: str,
        y_label: str = "",
        log: str = "xy",
        reference: float | None = None,
        x_label: str = "total wavenumber",
    ) -> Self:
        """Power, or a ratio of it, against wavenumber: panel title to name to values from wavenumber 0 on.

        Wavenumber 0 is left out. `log` has the letters of the logarithmic axes.
        """
        names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
        axes = Axes(x_label=x_label, y_label=y_label, log=log, reference=reference)
        drawn = {}
        for title, lines in panels.items():
            series = [
                Series(name, *_from_one(values), colour(k), marker=_marker(names, k))
                for k, (name, values) in ((names.index(n), (n, v)) for n, v in lines.items())
            ]
            drawn[title] = _charts.line_panel(title, series, axes)
        content = self._panels(heading, drawn, _key(names, []))
        return self._add(heading, _page.paragraphs(paragraphs) + content)

    def rank_histograms(
        self, heading: str, histograms: Mapping[str, npt.ArrayLike], *paragraphs: str
    ) -> Self:
        """Frequency of the rank of the truth; the dashed line is a perfect ensemble."""
        panels = {
            title: _charts.bar_panel(title, np.asarray(h, np.float64), 1 / np.size(h))
            for title, h in histograms.items()
        }
        return self._add(heading, f"{_page.paragraphs(paragraphs)}{self._panels(heading, panels)}")

    def reliability(
        self,
        heading: str,
        diagram: xr.Dataset,
        *paragraphs: str,
        region: str = "global",
        channels: Iterable[str] | None = None,
        lead_times: Iterable[np.timedelta64] | None = None,
    ) -> Self:
        """Reliability diagrams from `reliability_diagram`, one panel per channel and lead time.

        Dotted lines with points are observed frequencies, solid ones their isotonic fit (CORP), thick bars
        the range in which a reliable forecast would lie, and the bars below how often each probability
        was forecast.
        """
        models = [str(m) for m in diagram["model"].values]
        panels = {}
        for title, one in _places(diagram, region, channels, lead_times):
            fields = ("probability", "frequency", "weight", "calibrated", "low", "high")
            curves = []
            for k, model in enumerate(models):
                found = {name: one[name].sel(model=model).values for name in fields if name in one}
                curves.append(Reliability(name=model, colour=colour(k), marker=_marker(models, k), **found))
            panels[title] = _charts.reliability_panel(title, curves)
        return self._diagrams(heading, models, panels, paragraphs)

    def roc(
        self,
        heading: str,
        curve: xr.Dataset,
        *paragraphs: str,
        region: str = "global",
        channels: Iterable[str] | None = None,
        lead_times: Iterable[np.timedelta64] | None = None,
    ) -> Self:
        """Hits against false alarms from `roc_curve`, one panel per channel and lead time."""
        models = [str(m) for m in curve["model"].values]
        axes = Axes(
            x_label="probability of false detection",
            y_label="probability of detection",
            x_range=(0, 1),
            y_range=(0, 1),
            diagonal=True,
            size=(276, 270),
        )
        panels = {}
        for title, one in _places(curve, region, channels, lead_times):
            series = [
                Series(
                    m,
                    one["pofd"].sel(model=m).values,
                    one["pod"].sel(model=m).values,
                    colour(k),
                    points=True,
                    marker=_marker(models, k),
                )
                for k, m in enumerate(models)
            ]
            panels[title] = _charts.line_panel(title, series, axes)
        return self._diagrams(heading, models, panels, paragraphs)

    def value(
        self,
        heading: str,
        curve: xr.Dataset,
        *paragraphs: str,
        region: str = "global",
        channels: Iterable[str] | None = None,
        lead_times: Iterable[np.timedelta64] | None = None,
    ) -> Self:
        """Relative economic value from `value_curve`, one panel per channel and lead time."""
        models = [str(m) for m in curve["model"].values]
        axes = Axes(
            x_label="cost / loss", y_label="relative value", log="x", y_range=(-0.25, 1), reference=0.0
        )
        panels = {}
        for title, one in _places(curve, region, channels, lead_times):
            # Far below zero lies what nobody would use; it would hide the rest.
            lines = {m: one["best"].sel(model=m).values for m in models}
            series = [
                Series(
                    m,
                    curve["cost_loss"].values,
                    np.where(v >= -0.25, v, np.nan),
                    colour(k),
                    marker=_marker(models, k),
                )
                for k, (m, v) in enumerate(lines.items())
            ]
            panels[title] = _charts.line_panel(title, series, axes)
        return self._diagrams(heading, models, panels, paragraphs)

    def maps(self, heading: str, maps: Sequence[Map], *paragraphs: str, shared: bool = True) -> Self:
        """Fields on the globe; `shared` puts those of one scale and unit without limits on common limits."""
        panels = map_panels(maps, shared)
        return self._add(heading, f"{_page.paragraphs(paragraphs)}{self._panels(heading, panels)}")

    def html(self) -> str:
        """The page as a string."""
        footer = f"Written by wx-eval {version('wx-eval')}."
        return _page.page(self.title, self.subtitle, self._sections, footer)

    def write(self, path: str | PathLike[str]) -> Path:
        """Write the page and return its path."""
        target = Path(path)
        target.write_text(self.html(), encoding="utf-8")
        return target

    def export(self, folder: str | PathLike[str], kind: Literal["svg", "png", "pdf"] = "svg") -> list[Path]:
        """Write every figure of the page to a folder, named by section and panel.

        Args:
            folder: made if it does not exist.
            kind: "svg", or "png" or "pdf", which need matplotlib (extra "plot").

        Raises:
            ValueError: for another kind.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        return [figure.write(target / f"{name}.{kind}") for name, figure in self.figures.items()]

    @property
    def figures(self) -> dict[str, Figure]:
        """Every figure of the page by the name under which it is exported."""
        return {name: draw() for name, draw in self._figures.items()}

    @property
    def length(self) -> int:
        """Number of sections."""
        return len(self._sections)

    def joined(self, first: int, heading: str) -> Self:
        """Make the sections from `first` on the parts of one section."""
        parts = self._sections[first:]
        body = "".join(f"<h3>{escape(title)}</h3>{content}" for title, content in parts)
        self._sections[first:] = [(heading, body)]
        return self

    def _add(self, heading: str, content: str) -> Self:
        self._sections.append((heading, content))
        return self

    def _panels(self, heading: str, panels: Mapping[str, Figure], key: Sequence[Figure] = ()) -> str:
        """Elements of a key and panels; a panel is exported together with the key."""

        def draw(panel: Figure) -> Figure:
            return arranged((panel, *key), panel.width, panel.label, gap=6) if key else panel

        self._keep(heading, {title: partial(draw, panel) for title, panel in panels.items()})
        return _elements(key, "key") * bool(key) + _elements(panels.values())

    def _keep(self, heading: str, figures: Mapping[str, Callable[[], Figure]]) -> None:
        """Names for `export`, one for each figure, which is drawn when it is asked for."""
        for title, draw in figures.items():
            stem = f"{len(self._sections) + 1:02d}-{_slug(heading)}-{_slug(title)}"
            same = sum(name == stem or name.startswith(f"{stem}~") for name in self._figures)
            self._figures[f"{stem}~{same + 1}" if same else stem] = partial(_framed, draw)

    def _once(self, heading: str, content: str, what: str) -> str:
        """The content, or a line that says in which section it stands already."""
        first = self._numbers.setdefault(content, heading)
        return content if first == heading else f"<p>{escape(f'{what}: as in the section {first!r}.')}</p>"

    def _diagrams(
        self, heading: str, models: Sequence[str], panels: Mapping[str, Figure], texts: Iterable[str]
    ) -> Self:
        return self._add(heading, _page.paragraphs(texts) + self._panels(heading, panels, _key(models, [])))

    def _origin(self) -> str:
        link = ", ".join(f'<a href="{escape(path)}">{escape(path)}</a>' for path in self.data)
        parts = [("records", link), ("made by", f"<code>{escape(self.command)}</code>" * bool(self.command))]
        body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in parts if value)
        return f"<dl>{body}</dl>" if body else ""


def _elements(figures: Iterable[Figure], kind: str = "panels") -> str:
    # On a narrow screen a figure shrinks, but not below what can be read.
    least = "--least: {:.0f}px".format
    size = _LEAST_SIZE[kind]
    body = "".join(f'<figure style="{least(size * f.width)}">{f.svg()}</figure>' for f in figures)
    return f'<div class="{kind}">{body}</div>'


def _framed(draw: Callable[[], Figure]) -> Figure:
    return framed(draw(), 8)


def _marker(names: Sequence[str], k: int) -> int | None:
    """Shape that goes with colour k, for print without colour; none where there is one name only."""
    return k if len(names) > 1 else None


def _key(names: Sequence[str], dashed: Sequence[str]) -> list[Figure]:
    """A colour and a shape per name, then a dash per further distinction."""
    entries = [(name, colour(k), "", _marker(names, k)) for k, name in enumerate(names)]
    if len(dashed) > 1:
        entries += [(name, "#3b3b3b", DASHES[k % len(DASHES)], None) for k, name in enumerate(dashed)]
    return _charts.key(entries)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "figure"


def _numbers(c: Comparison) -> str:
    """Scores and bias of the baseline in their units, folded where there are many."""
    parts = [
        f"<h3>{escape(f'{c.model_b} itself: {metric_title(metric)}')}</h3>"
        f"{_elements(_card.score_panels(c, metric))}"
        for metric in c.metrics
    ]
    scored = "".join(parts)
    if len(parts) > _MOST_NUMBERS:
        scored = _page.folded(f"Scores of {c.model_b} in their units", scored)
    if not any(np.isfinite(cell.bias_b) for cell in c.cells):
        return scored
    title = f"Bias of {c.model_b}, forecast minus truth"
    return f"{scored}<h3>{escape(title)}</h3>{_elements(_card.bias_panels(c))}"


def _by_place(values: xr.DataArray, channels: Sequence[str]) -> npt.NDArray[Any]:
    """(model, channel, lead time)."""
    return np.asarray(values.sel(channel=list(channels)).transpose("model", "channel", "lead_time").values)


def _limits_by_place(
    bands: xr.Dataset, names: Sequence[str], channels: Sequence[str]
) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Lower and upper limits of those scores that have any."""
    return {
        name: (_by_place(bands[f"{name}_low"], channels), _by_place(bands[f"{name}_high"], channels))
        for name in names
        if f"{name}_low" in bands
    }


def _band_text(bands: xr.Dataset, name: str) -> str:
    if f"{name}_low" not in bands or not bands[f"{name}_low"].notnull().any():
        return ""
    attributes = bands[f"{name}_low"].attrs
    level, method = attributes.get("level", 0.95), attributes.get("method", "")
    return (
        f" Bands are {100 * level:g} % confidence intervals ({method}) of each score on its own; whether two "
        "models differ is another question, which their scorecard answers."
    )


def _from_one(values: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Wavenumbers from 1 on and the values there."""
    found = np.asarray(values, np.float64)[1:]
    return np.arange(1, found.size + 1, dtype=np.float64), found


def _places(
    data: xr.Dataset,
    region: str,
    channels: Iterable[str] | None,
    lead_times: Iterable[np.timedelta64] | None,
) -> Iterable[tuple[str, xr.Dataset]]:
    """Title and data of every channel and lead time in which anything is defined."""
    for channel in data["channel"].values if channels is None else channels:
        for lead in data["lead_time"].values if lead_times is None else lead_times:
            one = data.sel(region=region, channel=channel, lead_time=lead)
            yield f"{channel}, day {days(lead)}", one


def _starts(scores: xr.Dataset) -> str:
    """Starts and members behind each model's curves."""
    parts = []
    for model in scores["model"].values:
        one = scores.sel(model=model)
        starts, members = one["n_starts"].values, one["members"].values
        members = np.unique(members[np.isfinite(members)]).astype(int)
        size = "/".join(map(str, members)) or "varying"
        span = f"{starts.min()}" if starts.min() == starts.max() else f"{starts.min()} to {starts.max()}"
        plural = "" if starts.max() == 1 else "s", "" if size == "1" else "s"
        parts.append(f"{model}: {span} start{plural[0]}, {size} member{plural[1]}")
    return "; ".join(parts)
