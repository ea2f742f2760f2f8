"""The scorecard: every cell of a comparison with its sign, size and significance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ._cells import p_text
from ._compare import Cell, Comparison
from ._figure import (
    INK,
    LINE,
    Figure,
    Lines,
    Mark,
    Rect,
    Text,
    arranged,
    contrast,
    framed,
    hatching,
    text_width,
    wrapped,
)
from ._inference import MINIMUM_STARTS

NAMES = {
    "crps_fair": "fair CRPS",
    "crps_biased": "CRPS of the empirical distribution",
    "rmse": "RMSE of the ensemble mean",
    "rmse_debiased": "debiased RMSE of the ensemble mean",
    "mae": "MAE of the ensemble mean",
    "mse": "MSE of the ensemble mean",
    "bias": "bias of the ensemble mean",
    "spread": "ensemble spread",
    "spread_skill_raw": "spread / skill, raw",
    "spread_skill_fortin": "spread / skill after Fortin et al. (2014)",
    "spread_skill_debiased": "spread / debiased skill",
}

CLASS_EDGES = (1, 2, 5, 10, 20, 50)
"""Edges of |relative difference| in per cent between the colours."""

_BETTER = ("#e3eef7", "#c6ddf0", "#94c1e2", "#5a9dcd", "#2b74b0", "#0d4a86")
_WORSE = ("#fdebd9", "#fbd3ab", "#f5ae6c", "#e48537", "#b85a13", "#853c08")
_EVEN, _UNTESTED = "#f5f5f3", "#e3e1dd"
_HATCH = 0.25
_HEIGHT = 22
_MOST_NAMED = 4
_SMALL, _SETTING = 9.5, 11.0


_EVENT_NAMES = {
    "brier_fair": "fair Brier score",
    "brier_biased": "Brier score",
    "auc": "area under the ROC curve",
    "rev": "economic value",
}
_BEYOND = {">": "above", ">=": "at or above", "<": "below", "<=": "at or below"}
_EVENT = re.compile(r"(\w+)\((>=|<=|>|<)(.*?)(?:, cost_loss=([\d.e-]+), decision=(\w+|[\d.]+))?\)")


def metric_title(name: str) -> str:
    """What a metric is called on a page."""
    found = _EVENT.fullmatch(name)
    if found is None or found[1] not in _EVENT_NAMES:
        return NAMES.get(name, name)
    kind, beyond, threshold, ratio, decision = found.groups()
    at = f" at cost / loss {ratio}" if ratio else ""
    chosen = f" by decision {decision}" if decision not in (None, "best") else ""
    return f"{_EVENT_NAMES[kind]}{at}{chosen}, {event_title(beyond, threshold)}"


def event_title(event: str, threshold: str) -> str:
    """What an event is called on a page."""
    where = re.sub(r"quantile\((.*)\)", r"quantile \1", threshold)
    return f"{_BEYOND[event]} {where}"


def metrics_title(names: Sequence[str]) -> str:
    """What several metrics are called in a sentence."""
    titles = list(map(metric_title, names))
    if len(titles) <= _MOST_NAMED:
        return ", ".join(titles)
    kinds = dict.fromkeys(title.partition(",")[0] for title in titles)
    return f"{len(titles)} metrics ({', '.join(kinds)})"


def unit_text(kind: str, channel: str) -> str:
    """Unit of a metric, see `Metric.unit`, for a channel of a unit."""
    if kind == "channel":
        return channel
    if not kind.startswith("square"):
        return ""
    squared = f"({channel})²" if " " in channel or "*" in channel else f"{channel}²"
    return (squared if channel else "") + kind.removeprefix("square")


def class_step(per_cent: float) -> int:
    """Class 0 to 6 of the size of a relative difference in per cent."""
    return int(np.searchsorted(CLASS_EDGES, abs(per_cent), side="right"))


def class_colour(per_cent: float) -> str:
    """Colour of an improvement in per cent; positive is better."""
    step = class_step(per_cent)
    if step == 0:
        return _EVEN
    return (_BETTER if per_cent > 0 else _WORSE)[step - 1]


def class_ink(per_cent: float) -> str:
    """Colour of text on `class_colour`."""
    ground = class_colour(per_cent)
    return max(("#ffffff", "#16202a"), key=lambda ink: contrast(ink, ground))


def few(cell: Cell) -> bool:
    """Whether there are too few starts, or effective ones, for a test to be relied on."""
    # A short series can look less than independent by chance, with more effective starts than starts.
    return not min(cell.n, cell.n_effective) >= MINIMUM_STARTS


def doubtful(cell: Cell) -> bool:
    """Whether too few starts or a truth of the model's own make the test unreliable."""
    return few(cell) or "own analysis" in cell.notes


def scorecard(comparison: Comparison, *, width: float = 1180) -> Figure:
    """The whole card as one figure: legend, a panel for each metric and region, and the settings.

    Args:
        comparison: from `compare`.
        width: pixels that panels are arranged on.

    Returns:
        A figure; `write` makes .svg, .png or .pdf of it.
    """
    title = f"{comparison.model_a} against {comparison.model_b}"
    head = Figure(width, 22, (Text(0, 16, title, "start", 16.0, INK, True),), title)
    parts = [head, arranged(legend(comparison), width, gap=18)]
    for metric in comparison.metrics:
        heading = Figure(width, 16, (Text(0, 14, metric_title(metric), "start", 13.0, INK, True),))
        parts += [heading, arranged(panels(comparison, metric).values(), width)]
    parts.append(_settings(comparison, width))
    wide = max(part.width for part in parts)
    stacked = arranged(
        (Figure(wide, p.height, p.marks, p.label) for p in parts), wide, f"scorecard of {title}"
    )
    return framed(stacked)


def panels(comparison: Comparison, metric: str) -> dict[str, Figure]:
    """One panel per region of a metric: channels down, lead times in days across."""
    found: dict[str, list[Cell]] = {}
    for cell in comparison.cells:
        if cell.metric == metric:
            found.setdefault(cell.region, []).append(cell)
    shown = (region for region in regions_of(comparison) if region in found)
    return {region: card_panel(region, found[region], comparison) for region in shown}


def regions_of(comparison: Comparison) -> list[str]:
    """Regions, the whole globe first."""
    return sorted(dict.fromkeys(cell.region for cell in comparison.cells), key=lambda r: r != "global")


def card_panel(title: str, cells: Sequence[Cell], comparison: Comparison) -> Figure:
    """Colour and number are the relative difference, the triangle its sign, size and significance."""
    channels = list(dict.fromkeys(cell.channel for cell in cells))
    leads = sorted({cell.lead_time for cell in cells})
    numbers = len(leads) <= 20
    step, top = (33 if numbers else 20), 38
    left = max(text_width(channel, 11.0) for channel in channels) + 10
    width = max(left + step * len(leads), text_width(title, 12.0, True)) + 2
    marks: list[Mark] = [Text(0, 14, title, "start", 12.0, INK, True)]
    end = 0.0
    for j, lead in enumerate(leads):
        x, wide = left + step * (j + 0.5), text_width(days(lead)) / 2
        if x - wide > end + 3:
            end = x + wide
            marks.append(Text(x, top - 5, days(lead), "middle"))
    room = width - text_width(title, 12.0, True) - 10
    axis = next((text for text in ("lead time in days", "days") if text_width(text) < room), "")
    marks.append(Text(width - 2, 14, axis, "end"))
    for i, channel in enumerate(channels):
        marks.append(Text(left - 6, top + _HEIGHT * i + 15, channel, "end", 11.0, INK))
    drawn: list[Mark] = []
    for cell in cells:
        x = left + step * leads.index(cell.lead_time)
        y = top + _HEIGHT * channels.index(cell.channel)
        drawn += _cell(cell, (x, y), step, numbers, comparison)
    marks += sorted(drawn, key=_layer)
    label = f"{title}: {len(channels)} channels by {len(leads)} lead times"
    return Figure(width, top + _HEIGHT * len(channels) + 2, tuple(marks), label)


def _layer(mark: Mark) -> tuple[int, bool, float, str, str, bool]:
    """Order of painting: ground, hatching, triangles, what crosses them out, numbers; alike side by side."""
    if isinstance(mark, Lines):
        return 1, mark.opacity == 1, mark.width, mark.stroke, mark.fill, False
    if isinstance(mark, Text):
        return 2, True, mark.size, mark.fill, "", mark.bold
    return 0, True, 0.0, "", "", False


def _cell(
    cell: Cell, at: tuple[float, float], step: int, numbers: bool, comparison: Comparison
) -> list[Mark]:
    x, y = at
    box = (x + 0.5, y + 0.5, step - 1.0, _HEIGHT - 1.0)
    per_cent = 100 * cell.skill
    tip = describe(cell, comparison)
    tested = not (np.isnan(per_cent) or np.isnan(cell.p_value))
    shade = class_colour(per_cent) if tested else _UNTESTED
    marks: list[Mark] = [Rect(*box, shade, "", tip)]
    if doubtful(cell) or not tested:
        marks.append(Lines(hatching(*box), class_ink(per_cent) if tested else INK, 0.8, opacity=_HATCH))
    if not tested:
        return marks
    ink = class_ink(per_cent)
    centre = (x + 5.5, y + _HEIGHT / 2) if numbers else (x + step / 2, y + _HEIGHT / 2)
    if per_cent:
        marks.append(_triangle(centre, per_cent, cell.significant, ink))
    if lenient(cell, comparison):
        marks.append(_flaw(centre, per_cent, shade))
    if numbers:
        marks.append(Text(x + step - 2.5, y + 15, _size(per_cent), "end", _SMALL, ink, cell.significant))
    return marks


def lenient(cell: Cell, comparison: Comparison) -> bool:
    """Whether a cell is significant by the test of the card alone, not by the default one."""
    return cell.significant and not cell.robust and not comparison.by_default


def _flaw(centre: tuple[float, float], per_cent: float, ground: str) -> Lines:
    """A bar through a filled triangle."""
    (x, y), half = centre, 2.6 + 0.45 * class_step(per_cent)
    return Lines([[(x - half, y + half), (x + half, y - half)]], ground, 1.8)


def _triangle(centre: tuple[float, float], per_cent: float, filled: bool, ink: str) -> Lines:
    """Up is better; the size is the class of the difference."""
    half = 2.0 + 0.45 * class_step(per_cent)
    up = -half if per_cent >= 0 else half
    (x, y), tall = centre, up * 0.9
    points = [(x - half, y - tall), (x + half, y - tall), (x, y + tall)]
    if filled:
        return Lines([points], ink, 0.8, fill=ink)
    return Lines([[*points, points[0]]], ink, 0.9)


def bias_panels(comparison: Comparison) -> list[Figure]:
    """The bias of the baseline in each region."""
    units = comparison.conventions.units
    return [
        number_panel(region, {(c.channel, c.lead_time): c.bias_b for c in cells}, units, "bias")
        for region, cells in _by_region(comparison.cells).items()
    ]


def score_panels(comparison: Comparison, metric: str) -> list[Figure]:
    """The score of the baseline in each region."""
    kind, known = comparison.metric_units.get(metric, ""), comparison.conventions.units
    found = _by_region([cell for cell in comparison.cells if cell.metric == metric])
    return [
        number_panel(
            region,
            {(c.channel, c.lead_time): c.score_b for c in cells},
            {c.channel: unit_text(kind, known.get(c.channel, "")) for c in cells},
            metric_title(metric),
        )
        for region, cells in found.items()
    ]


def _by_region(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=lambda c: c.region != "global"):
        found.setdefault(cell.region, []).append(cell)
    return found


def number_panel(
    region: str, values: Mapping[tuple[str, np.timedelta64], float], units: Mapping[str, str], what: str
) -> Figure:
    """Numbers by channel and lead time, each row with its unit."""
    channels = list(dict.fromkeys(channel for channel, _ in values))
    leads = sorted({lead for _, lead in values})
    step, top, height = 35, 38, 17
    left = max(text_width(channel, 11.0) for channel in channels) + 10
    end = left + step * len(leads)
    marks: list[Mark] = [Text(0, 14, region, "start", 12.0, INK, True)]
    marks += [Text(left + step * (j + 1) - 4, top - 5, days(lead), "end") for j, lead in enumerate(leads)]
    width = max(end, text_width(region, 12.0, True))
    for i, channel in enumerate(channels):
        y = top + height * i
        texts, factor = _short([values.get((channel, lead), np.nan) for lead in leads])
        unit = f"{factor} {units.get(channel, '')}".strip()
        marks.append(Lines([[(left, y), (end, y)]], LINE))
        marks.append(Text(left - 6, y + 12, channel, "end", 11.0, INK))
        for j, text in enumerate(texts):
            marks.append(Text(left + step * (j + 1) - 4, y + 12, text, "end", _SMALL, INK))
        marks.append(Text(end + 6, y + 12, unit))
        width = max(width, end + 8 + text_width(unit))
    return Figure(width, top + height * len(channels) + 2, tuple(marks), f"{what} in {region}")


def _short(row: Sequence[float]) -> tuple[list[str], str]:
    """Numbers in at most five characters, the largest with two digits or more, and the power of ten."""
    known = [abs(v) for v in row if np.isfinite(v)]
    largest = max(known, default=0.0)
    power = 0
    if largest and not 0.0995 <= largest < 9999.5:
        power = int(np.floor(np.log10(largest)))
        largest /= 10.0**power
    places = 0 if largest >= 99.95 else 1 if largest >= 9.995 else 2
    # Adding zero makes the negative zero a positive one.
    numbers = [round(v / 10.0**power, places) + 0.0 if np.isfinite(v) else v for v in row]
    texts = [f"{v:.{places}f}".replace("-", "−") if np.isfinite(v) else "–" for v in numbers]
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return texts, f"10{raised}" if power else ""


def describe(cell: Cell, comparison: Comparison) -> str:
    """Everything that is known of a cell, on a few lines."""
    unit = unit_text(
        comparison.metric_units.get(cell.metric, ""), comparison.conventions.units.get(cell.channel, "")
    )
    unit = f" {unit}" if unit else ""
    lines = [f"{cell.channel}, {cell.region}, {days(cell.lead_time)} d: {metric_title(cell.metric)}"]
    for name, score in ((comparison.model_a, cell.score_a), (comparison.model_b, cell.score_b)):
        lines.append(f"{name} {score:.4g}{unit}" if np.isfinite(score) else f"{name} without score")
    if np.isfinite(cell.p_value):
        span = f"95 % from {cell.low:.3g} to {cell.high:.3g}"
        lines.append(f"difference in loss {cell.difference:.3g}{unit}, {span}")
        if np.isfinite(cell.skill):
            size = f"{100 * abs(cell.skill):.3g} % {'better' if cell.skill > 0 else 'worse'}"
            lines[-1] += f", {size if cell.skill else 'equal'}"
        lines.append(f"p {p_text(cell.p_value)}, corrected {p_text(cell.p_adjusted)}")
        if not comparison.by_default:
            sound = f"{p_text(cell.p_ewc_ar1)}, corrected {p_text(cell.p_robust)}"
            lines.append(f"by the default test p {sound}")
    starts = f"{cell.n} starts, {cell.n_dropped} dropped"
    if np.isfinite(cell.n_effective):
        starts += f", {cell.n_effective:.0f} effective (inflation {cell.inflation:.2f})"
    return "\n".join([*lines, starts, *cell.notes])


def legend(comparison: Comparison) -> list[Figure]:
    """Key of colours, triangles and hatching, entry by entry."""
    return [_colour_scale(), *_signs(comparison)]


def _colour_scale() -> Figure:
    """Colours from worse to better with the edges of their classes."""
    marks: list[Mark] = []
    values = [-75, -35, -15, -7, -3, -1.5, 0, 1.5, 3, 7, 15, 35, 75]
    edges = [*map(str, CLASS_EDGES[::-1]), *map(str, CLASS_EDGES)]
    side, left = 24, text_width("worse", 12.0) + 4
    for k, value in enumerate(values):
        marks.append(Rect(left + side * k, 2, side - 1, 13, class_colour(value)))
    marks += [Text(left + side * (k + 1) - 0.5, 27, label, "middle") for k, label in enumerate(edges)]
    wide = left + side * len(values)
    marks += [
        Text(0, 13, "worse", "start", 12.0, INK),
        Text(wide + 6, 13, "better, in %", "start", 12.0, INK),
    ]
    width = wide + 6 + text_width("better, in %", 12.0)
    return Figure(width, 30, tuple(marks), "colours of the scorecard: worse to better")


def _signs(comparison: Comparison) -> list[Figure]:
    """What triangles, their filling and hatching say."""
    model_a, model_b = comparison.model_a, comparison.model_b
    ink = "#16202a"
    entries = [
        _entry([_triangle((8, 9), 15, True, ink)], f"{model_a} is better than {model_b}", 18),
        _entry([_triangle((8, 9), -15, True, ink)], "worse", 18),
        _entry([_triangle((8, 9), 15, True, ink), _triangle((22, 9), -15, True, ink)], "significant", 32),
        _entry(
            [_triangle((8, 9), 15, False, ink), _triangle((22, 9), -15, False, ink)], "not significant", 32
        ),
        _entry(
            [
                _triangle((6, 9), 0.5, True, ink),
                _triangle((17, 9), 7, True, ink),
                _triangle((32, 9), 75, True, ink),
            ],
            "size of the difference",
            43,
        ),
        _entry(
            [Rect(0, 2, 22, 13, "#c6ddf0"), Lines(hatching(0, 2, 22, 13), INK, 0.8, opacity=_HATCH)],
            f"fewer than {MINIMUM_STARTS} effective starts, or own analysis",
            28,
        ),
        _entry(
            [Rect(0, 2, 22, 13, _UNTESTED), Lines(hatching(0, 2, 22, 13), INK, 0.8, opacity=_HATCH)],
            "not tested",
            28,
        ),
    ]
    if not comparison.by_default:
        marks = [_triangle((8, 9), 15, True, ink), _flaw((8, 9), 15, "#ffffff")]
        marks += [_triangle((24, 9), -15, True, ink), _flaw((24, 9), -15, "#ffffff")]
        entries.insert(4, _entry(marks, "significant by this test, not by the default one", 34))
    return entries


def _entry(marks: Sequence[Mark], words: str, left: float = 0) -> Figure:
    text = Text(left, 13, words, "start", 12.0, INK)
    return Figure(left + text_width(words, 12.0), 18, (*marks, text), words)


def _settings(comparison: Comparison, width: float) -> Figure:
    marks: list[Mark] = []
    y = 12.0
    for name, value in comparison.settings().items():
        marks.append(Text(0, y, name, "start", _SETTING))
        for line in wrapped(str(value), width - 200, _SETTING):
            marks.append(Text(190, y, line, "start", _SETTING, INK))
            y += 15
    return Figure(width, y, tuple(marks), "settings")


def _size(per_cent: float) -> str:
    """Magnitude with two digits; the triangle has the sign."""
    if abs(per_cent) >= 999.5:
        return ">1k"
    return f"{abs(per_cent):.0f}" if abs(per_cent) >= 9.95 else f"{abs(per_cent):.1f}"


def days(lead: np.timedelta64) -> str:
    """Lead time in days."""
    return f"{lead / np.timedelta64(86400, 's'):.4g}"
