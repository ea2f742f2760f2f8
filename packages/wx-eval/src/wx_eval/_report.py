"""One self-contained HTML page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xarray as xr

from . import _charts, _raster
from ._compare import Comparison

_NAMES = {
    "crps_fair": "fair CRPS",
    "crps_biased": "CRPS of the empirical distribution",
    "rmse": "RMSE of the ensemble mean",
    "mae": "MAE of the ensemble mean",
    "bias": "bias of the ensemble mean",
    "spread": "ensemble spread",
    "spread_skill_raw": "spread / skill, raw",
    "spread_skill_fortin": "spread / skill after Fortin et al. (2014)",
    "spread_skill_debiased": "spread / debiased skill",
}

_STYLE = """
:root { --ink: #1d2733; --soft: #5b6875; --line: #dfe4e8; --accent: #0b5a94; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f8; color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 1300px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 34px; padding-bottom: 6px; }
h1 { font-size: 29px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
header p { margin: 0; color: var(--soft); font-size: 16px; }
nav { max-width: 1300px; margin: 12px auto 0; padding: 0 28px; font-size: 13px; }
nav a { color: var(--accent); text-decoration: none; margin-right: 18px; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px; margin: 18px 0;
  padding: 18px 24px 20px; }
h2 { font-size: 19px; margin: 0 0 8px; }
p { margin: 0 0 10px; max-width: 82ch; }
.panels { display: flex; flex-wrap: wrap; gap: 14px 22px; align-items: flex-start; }
.scroll { overflow-x: auto; }
svg { max-width: none; font-family: inherit; }
svg .title { font-size: 12px; font-weight: 600; fill: var(--ink); }
svg .label { font-size: 11.5px; fill: var(--ink); }
svg .tick { font-size: 10px; fill: var(--soft); }
svg .unit { font-size: 10px; fill: var(--soft); }
svg .mid { text-anchor: middle; } svg .end { text-anchor: end; }
svg .grid { stroke: #e8ecef; } svg .axis { stroke: #9aa5af; }
svg .reference { stroke: #5b6875; stroke-dasharray: 4 3; }
svg .bar { fill: #5a9dcd; }
svg .coast { fill: none; stroke: #10161c; stroke-width: 0.8; stroke-opacity: 0.75; }
svg .graticule { stroke: #10161c; stroke-width: 0.4; stroke-opacity: 0.22; }
svg .frame { fill: none; stroke: #9aa5af; stroke-width: 0.8; }
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; margin: 2px 0 12px; }
.key svg { vertical-align: -2px; margin-right: 6px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 1px 16px; font-size: 13px;
  margin: 12px 0 0; }
dt { color: var(--soft); } dd { margin: 0; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 16px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
pre { background: #f4f6f8; border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px;
  overflow-x: auto;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0; }
.caption { color: var(--soft); font-size: 13px; margin: 8px 0 0; max-width: none; }
footer { color: var(--soft); font-size: 12.5px; padding-bottom: 34px; }
@media print { body { background: #fff; } nav { display: none; }
  section { break-inside: avoid; border: none; padding: 0; } }
"""
_HATCH = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
    '<pattern id="untested" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="5" height="5" fill="#f5f5f3"/>'
    '<line x1="0" x2="0" y1="0" y2="5" stroke="#b4bcc4" stroke-width="1.5"/></pattern></defs></svg>'
)


@dataclass(frozen=True, kw_only=True)
class Map:
    """A field for Report.maps.

    Attributes:
        title: above the map.
        field: shape (H, W); NaN is drawn grey.
        latitude: degrees, shape (H,), either direction.
        longitude: degrees, shape (W,), increasing.
        units: at the colour bar.
        scale: "sequential", or "diverging" around zero.
        limits: ends of the colour scale; by default the 1st to 99th percentile.
        land: mask or fraction (H, W) whose 0.5 contour is drawn as a coast line.
    """

    title: str
    field: npt.NDArray[Any]
    latitude: npt.NDArray[Any]
    longitude: npt.NDArray[Any]
    units: str = ""
    scale: _raster.Scale = "sequential"
    limits: tuple[float, float] | None = None
    land: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        shape = (np.size(self.latitude), np.size(self.longitude))
        for name in ("field", "land"):
            array = getattr(self, name)
            if array is not None and np.shape(array) != shape:
                raise ValueError(
                    f"{name} of map {self.title!r} must have shape {shape}, got {np.shape(array)}"
                )


class Report:
    """A page that is built section by section and written to one file without external parts.

    Every method but `html` and `write` adds a section and returns the report, so that calls can be chained.
    The page is a function of its inputs alone: no date, no random identifiers.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._sections: list[tuple[str, str]] = []

    def text(self, heading: str, *paragraphs: str) -> Self:
        """Plain paragraphs."""
        return self._add(heading, _paragraphs(paragraphs))

    def code(self, heading: str, code: str, *paragraphs: str) -> Self:
        """A block of code, such as the command that reproduces the page."""
        return self._add(heading, f"{_paragraphs(paragraphs)}<pre>{escape(code)}</pre>")

    def table(
        self, heading: str, rows: Mapping[str, object] | Sequence[Mapping[str, object]], *paragraphs: str
    ) -> Self:
        """Names and values, or rows with the same columns."""
        if isinstance(rows, Mapping):
            body = "".join(f"<tr><th>{escape(k)}</th><td>{_cell_text(v)}</td></tr>" for k, v in rows.items())
            return self._add(heading, f"{_paragraphs(paragraphs)}<table>{body}</table>")
        columns = list(dict.fromkeys(name for row in rows for name in row))
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        lines = ("".join(f"<td>{_cell_text(row.get(name, ''))}</td>" for name in columns) for row in rows)
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        content = f'{_paragraphs(paragraphs)}<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
        return self._add(heading, content)

    def scorecard(self, heading: str, comparison: Comparison, *paragraphs: str) -> Self:
        """Relative difference of every cell of a comparison, with its significance and its settings."""
        c, count = comparison, comparison.count()
        names = ", ".join(_NAMES.get(m, m) for m in c.metrics)
        better = f"better than {c.model_b} in {count['better']} of {len(c.cells)} cells"
        summary = (
            f"{names}: {c.model_a} is {better} ({count['better_significant']} significantly) and "
            f"worse in {count['worse']} ({count['worse_significant']} significantly)."
        )
        summary = summary[0].upper() + summary[1:]
        few = sum(cell.n_effective < 30 for cell in c.cells)
        regions = list(dict.fromkeys(cell.region for cell in c.cells))
        panels = "".join(
            _charts.card_panel(
                f"{_NAMES.get(metric, metric)}, {region} · lead time in days",
                [cell for cell in c.cells if cell.region == region and cell.metric == metric],
                c.conventions.units,
            )
            for metric in c.metrics
            for region in regions
        )
        settings = {**c.settings(), "cells with fewer than 30 effective starts": f"{few} of {len(c.cells)}"}
        legend = _charts.card_legend(c.model_a, c.model_b)
        return self._add(
            heading,
            f'{_paragraphs((*paragraphs, summary))}<div class="scroll">{legend}</div>'
            f'<div class="panels scroll">{panels}</div>{_definitions(settings)}',
        )

    def curves(
        self,
        heading: str,
        scores: xr.Dataset,
        metrics: str | Sequence[str],
        *paragraphs: str,
        region: str = "global",
        channels: Iterable[str] | None = None,
    ) -> Self:
        """Scores against lead time, one panel per channel.

        Args:
            heading: of the section.
            scores: from `scores`.
            metrics: one metric, or several that share a unit, told apart by dashes.
            paragraphs: shown above the panels.
            region: of the records.
            channels: which and in which order; by default all.
        """
        names = [metrics] if isinstance(metrics, str) else list(metrics)
        chosen = scores.sel(region=region)
        models = [str(m) for m in scores["model"].values]
        days = scores["lead_time"].values / np.timedelta64(86400, "s")
        ratio = all(name.startswith("spread_skill") for name in names)
        panels = []
        for channel in scores["channel"].values if channels is None else channels:
            lines = [
                _charts.Series(
                    f"{model}, {_NAMES.get(name, name)}",
                    days,
                    chosen[name].sel(model=model, channel=channel).values,
                    _charts.SERIES_COLOURS[m % len(_charts.SERIES_COLOURS)],
                    _charts.DASHES[k % len(_charts.DASHES)],
                )
                for k, name in enumerate(names)
                for m, model in enumerate(models)
            ]
            panels.append(
                _charts.line_panel(
                    str(channel),
                    lines,
                    x_label="lead time in days",
                    y_label="" if ratio else str(chosen["units"].sel(channel=channel).values),
                    zero=not ratio,
                    reference=1.0 if ratio else 0.0 if "bias" in names else None,
                )
            )
        key = _key(models, [_NAMES.get(name, name) for name in names])
        where = f'<p class="caption">Region {escape(region)}; {escape(_starts(chosen))}.</p>'
        return self._add(heading, f"{_paragraphs(paragraphs)}{key}{_panels(panels)}{where}")

    def spectrum(
        self, heading: str, panels: Mapping[str, Mapping[str, npt.ArrayLike]], *paragraphs: str
    ) -> Self:
        """Power against total wavenumber on logarithmic axes: panel title to name to S_l, l = 0 left out."""
        names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
        drawn = []
        for title, lines in panels.items():
            series = [
                _charts.Series(
                    name,
                    np.arange(1, np.size(power), dtype=np.float64),
                    np.asarray(power, np.float64)[1:],
                    _charts.SERIES_COLOURS[names.index(name) % len(_charts.SERIES_COLOURS)],
                )
                for name, power in lines.items()
            ]
            drawn.append(_charts.line_panel(title, series, x_label="total wavenumber", log=True))
        return self._add(heading, f"{_paragraphs(paragraphs)}{_key(names, [])}{_panels(drawn)}")

    def rank_histograms(
        self, heading: str, histograms: Mapping[str, npt.ArrayLike], *paragraphs: str
    ) -> Self:
        """Frequency of the rank of the truth; the dashed line is a perfect ensemble."""
        panels = [
            _charts.bar_panel(title, np.asarray(h, np.float64), 1 / np.size(h))
            for title, h in histograms.items()
        ]
        return self._add(heading, f"{_paragraphs(paragraphs)}{_panels(panels)}")

    def maps(self, heading: str, maps: Sequence[Map], *paragraphs: str, shared: bool = True) -> Self:
        """Fields on the globe; `shared` puts those of one scale and unit without limits on common limits."""
        fixed = [
            replace(m, limits=_limits([o for o in maps if _alike(o, m)] if shared else [m])) for m in maps
        ]
        panels = [f"<div>{_draw_map(m)}</div>" for m in fixed]
        return self._add(heading, f"{_paragraphs(paragraphs)}{_panels(panels)}")

    def html(self) -> str:
        """The page as a string."""
        links = "".join(f'<a href="#s{k}">{escape(h)}</a>' for k, (h, _) in enumerate(self._sections))
        body = "".join(
            f'<section id="s{k}"><h2>{escape(heading)}</h2>{content}</section>'
            for k, (heading, content) in enumerate(self._sections)
        )
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head><body>{_HATCH}"
            f"<header><h1>{escape(self.title)}</h1><p>{escape(self.subtitle)}</p></header>"
            f"<nav>{links}</nav><main>{body}</main>"
            f"<footer>Written by wx-eval {version('wx-eval')}.</footer></body></html>\n"
        )

    def write(self, path: str | PathLike[str]) -> Path:
        """Write the page and return its path."""
        target = Path(path)
        target.write_text(self.html(), encoding="utf-8")
        return target

    def _add(self, heading: str, content: str) -> Self:
        self._sections.append((heading, content))
        return self


def _paragraphs(paragraphs: Iterable[str]) -> str:
    return "".join(f"<p>{escape(p)}</p>" for p in paragraphs)


def _panels(panels: Iterable[str]) -> str:
    return f'<div class="panels">{"".join(panels)}</div>'


def _definitions(pairs: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in pairs.items())}</dl>"


def _cell_text(value: object) -> str:
    return escape(f"{value:.4g}" if isinstance(value, float | np.floating) else str(value))


def _key(names: Sequence[str], dashed: Sequence[str]) -> str:
    """Legend: a colour per name, then a dash per further distinction."""
    entries = [
        (name, _charts.SERIES_COLOURS[k % len(_charts.SERIES_COLOURS)], "") for k, name in enumerate(names)
    ]
    if len(dashed) > 1:
        entries += [
            (name, "#3b3b3b", _charts.DASHES[k % len(_charts.DASHES)]) for k, name in enumerate(dashed)
        ]
    items = "".join(
        f'<span><svg width="26" height="12"><line x1="0" x2="26" y1="6" y2="6" stroke="{colour}" '
        f'stroke-width="2.4" stroke-dasharray="{dash}"/></svg>{escape(name)}</span>'
        for name, colour, dash in entries
    )
    return f'<div class="key">{items}</div>'


def _starts(scores: xr.Dataset) -> str:
    """Starts and members behind each model's curves."""
    parts = []
    for model in scores["model"].values:
        one = scores.sel(model=model)
        starts, members = one["n_starts"].values, one["members"].values
        members = np.unique(members[np.isfinite(members)]).astype(int)
        size = "/".join(map(str, members)) or "varying"
        span = f"{starts.min()}" if starts.min() == starts.max() else f"{starts.min()} to {starts.max()}"
        parts.append(f"{model}: {span} starts, {size} members")
    return "; ".join(parts)


def _alike(a: Map, b: Map) -> bool:
    return (a.scale, a.units, a.limits) == (b.scale, b.units, b.limits)


def _limits(maps: Sequence[Map]) -> tuple[float, float]:
    if maps[0].limits is not None:
        return maps[0].limits
    values = np.concatenate([np.ravel(m.field) for m in maps]).astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, [1, 99]))
    if maps[0].scale == "diverging":
        high = max(abs(low), abs(high)) or 1.0
        return -high, high
    return (low, high) if high > low else (low, low + 1.0)


def _draw_map(m: Map) -> str:
    """Map and colour bar, north up."""
    limits = _limits([m])
    lat, lon = np.asarray(m.latitude, np.float64), np.asarray(m.longitude, np.float64)
    flip = slice(None, None, -1 if lat[0] < lat[-1] else 1)
    image = _raster.field_image(np.asarray(m.field)[flip], limits, m.scale)
    half_y, half_x = abs(lat[1] - lat[0]) / 2, (lon[1] - lon[0]) / 2
    extent = (lon[0] - half_x, lon[-1] + half_x, lat.min() - half_y, lat.max() + half_y)
    segments = [] if m.land is None else _raster.contour(np.asarray(m.land)[flip])
    at_x, at_y = np.arange(lon.size), np.arange(lat.size)
    coast = [
        tuple(np.interp((x0, x1), at_x, lon)) + tuple(np.interp((y0, y1), at_y, lat[flip]))
        for x0, y0, x1, y1 in segments
    ]
    ordered = [(x0, y0, x1, y1) for x0, x1, y0, y1 in coast]
    bar = _raster.data_uri(np.arange(255, dtype=np.uint8)[None], _raster.palette(m.scale))
    size = (360, 30)
    return (
        _charts.map_panel(m.title, image, extent, ordered)
        + "<br>"
        + _charts.colour_bar(bar, limits, m.units, size)
    )
