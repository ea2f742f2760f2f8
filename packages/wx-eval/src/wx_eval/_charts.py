"""Charts as inline SVG."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ._compare import Cell

Vector = npt.NDArray[np.float64]

# Okabe and Ito's colours, told apart with every common form of colour blindness.
SERIES_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#3b3b3b", "#8c6d31")
DASHES = ("", "5 3", "1.5 2.5", "8 3 2 3")

# Upper edges of |relative difference| in per cent and the colours for better (blue) and worse (orange).
CLASS_EDGES = (1, 2, 5, 10, 20, 50)
_BETTER = ("#e3eef7", "#c6ddf0", "#94c1e2", "#5a9dcd", "#2b74b0", "#0d4a86")
_WORSE = ("#fdebd9", "#fbd3ab", "#f5ae6c", "#e48537", "#c05f15", "#853c08")
_EVEN = "#f5f5f3"


class Series(NamedTuple):
    """One line of a panel."""

    name: str
    x: Vector
    y: Vector
    colour: str
    dash: str = ""


def class_colour(per_cent: float) -> str:
    """Colour of a relative difference; negative is better."""
    step = int(np.searchsorted(CLASS_EDGES, abs(per_cent), side="right"))
    if step == 0:
        return _EVEN
    return (_BETTER if per_cent < 0 else _WORSE)[step - 1]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers within [low, high], about `count` of them; never a negative zero."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * min((1, 2, 2.5, 5, 10), key=lambda m: abs(m * power - raw))
    first = np.ceil(low / step - 1e-9)
    last = np.floor(high / step + 1e-9)
    return [float(k * step) + 0.0 for k in np.arange(first, last + 1)]


def line_panel(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "",
    y_label: str = "",
    log: bool = False,
    zero: bool = True,
    reference: float | None = None,
    size: tuple[int, int] = (276, 188),
) -> str:
    """Lines over a common x axis; `log` makes both axes logarithmic, `zero` starts y at 0."""
    width, height = size
    left, right, top, bottom = 46, 10, 24, 34
    x, y = (_finite([getattr(s, axis) for s in series], log) for axis in ("x", "y"))
    if not x.size or not y.size:
        return _svg(size, _text(width / 2, height / 2, f"{title}: no data", "mid"))
    y_range = _y_range(y, log, zero, reference)
    x_range = (float(x.min()), float(x.max()) if x.max() > x.min() else float(x.min()) + 1)
    across = _mapper(x_range, (left, width - right), log)
    up = _mapper(y_range, (height - bottom, top), log)
    ticks_x, ticks_y = (_log_ticks(*r) if log else nice_ticks(*r) for r in (x_range, y_range))
    parts = [_text(left, 14, title, "title")]
    if y_label:
        parts.append(_text(width - right, 14, y_label, "unit end"))
    for tick in ticks_y:
        y0 = up(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y0:.1f}" y2="{y0:.1f}"/>')
        parts.append(_text(left - 5, y0 + 3, _number(tick), "tick end"))
    for tick in ticks_x:
        parts.append(_text(across(tick), height - bottom + 13, _number(tick), "tick mid"))
    parts.append(_text((left + width - right) / 2, height - 5, x_label, "unit mid"))
    base = height - bottom
    parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{base}" y2="{base}"/>')
    if reference is not None:
        y0 = up(reference)
        parts.append(
            f'<line class="reference" x1="{left}" x2="{width - right}" y1="{y0:.1f}" y2="{y0:.1f}"/>'
        )
    parts += [_polyline(s, across, up, log) for s in series]
    return _svg(size, *parts)


def bar_panel(title: str, heights: Vector, reference: float, *, size: tuple[int, int] = (276, 160)) -> str:
    """A histogram over ranks with its flat reference."""
    width, height = size
    left, right, top, bottom = 46, 10, 24, 26
    high = float(max(heights.max(), reference)) * 1.1
    up = _mapper((0.0, high), (height - bottom, top), False)
    step = (width - left - right) / len(heights)
    parts = [_text(left, 14, title, "title")]
    for tick in nice_ticks(0, high, 3):
        y0 = up(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y0:.1f}" y2="{y0:.1f}"/>')
        parts.append(_text(left - 5, y0 + 3, _number(tick), "tick end"))
    for k, value in enumerate(heights):
        y0 = up(float(value))
        parts.append(
            f'<rect class="bar" x="{left + k * step + 0.5:.1f}" y="{y0:.1f}" '
            f'width="{max(step - 1, 0.5):.1f}" height="{height - bottom - y0:.1f}">'
            f"<title>rank {k}: {value:.4f}</title></rect>"
        )
    y0 = up(reference)
    parts.append(f'<line class="reference" x1="{left}" x2="{width - right}" y1="{y0:.1f}" y2="{y0:.1f}"/>')
    parts.append(_text((left + width - right) / 2, height - 6, "rank of the truth", "unit mid"))
    return _svg(size, *parts)


def card_panel(title: str, cells: Sequence[Cell], units: Mapping[str, str]) -> str:
    """Channels down, lead times across; colour is the relative difference, a filled dot is significant."""
    channels = list(dict.fromkeys(cell.channel for cell in cells))
    leads = sorted({cell.lead_time for cell in cells})
    wide = len(leads) <= 20
    step_x, step_y, left, top = (36 if wide else 22), 21, 52, 40
    size = (left + max(step_x * len(leads), 6 * len(title)) + 4, top + step_y * len(channels) + 4)
    parts = [_text(left, 14, title, "title")]
    for i, channel in enumerate(channels):
        parts.append(_text(left - 6, top + step_y * i + 14, channel, "label end"))
    for j, lead in enumerate(leads):
        if wide or j % 2 == 0:
            parts.append(_text(left + step_x * (j + 0.5), top - 6, _days(lead), "tick mid"))
    for cell in cells:
        x = left + step_x * leads.index(cell.lead_time)
        y = top + step_y * channels.index(cell.channel)
        parts.append(_card_cell(cell, (x, y), (step_x, step_y), wide, units.get(cell.channel, "")))
    return _svg(size, *parts)


def _card_cell(cell: Cell, at: tuple[int, int], step: tuple[int, int], wide: bool, unit: str) -> str:
    (x, y), (step_x, step_y) = at, step
    per_cent = -100 * cell.skill
    tip = (
        f"{cell.channel}, {cell.region}, {_days(cell.lead_time)} d: {cell.score_a:.4g} against "
        f"{cell.score_b:.4g} {unit} ({per_cent:+.2f} %), p {cell.p_value:.2g}, adjusted "
        f"{cell.p_adjusted:.2g}, {cell.n} starts ({cell.n_effective:.0f} effective) {', '.join(cell.notes)}"
    )
    rect = f'x="{x + 0.5}" y="{y + 0.5}" width="{step_x - 1}" height="{step_y - 1}" rx="2"'
    if not np.isfinite(per_cent) or not np.isfinite(cell.p_value):
        return f'<g><title>{escape(tip)}</title><rect {rect} fill="url(#untested)"/></g>'
    dark = abs(per_cent) >= CLASS_EDGES[4]
    ink = "#ffffff" if dark else "#22303c"
    shown = _signed(per_cent) if wide else ""
    centre = x + step_x - 6 if wide else x + step_x / 2
    fill = ink if cell.significant else "none"
    weight = "bold" if cell.significant else "normal"
    label = (
        f'<text x="{x + step_x - 11}" y="{y + 14}" text-anchor="end" font-size="10" font-weight="{weight}" '
        f'fill="{ink}">{shown}</text>'
    )
    return (
        f'<g><title>{escape(tip)}</title><rect {rect} fill="{class_colour(per_cent)}"/>{label}'
        f'<circle cx="{centre}" cy="{y + step_y / 2}" r="2.6" fill="{fill}" stroke="{ink}" '
        'stroke-width="0.9"/></g>'
    )


def card_legend(model_a: str, model_b: str) -> str:
    """Key of the colours and marks of a card."""
    values = [-75, -35, -15, -7, -3, -1.5, 0, 1.5, 3, 7, 15, 35, 75]
    labels = ["", *(f"−{e}" for e in CLASS_EDGES[::-1]), *(f"+{e}" for e in CLASS_EDGES)]
    parts = [_text(0, 13, f"{model_a} better", "label")]
    start = 14 + 6.4 * len(f"{model_a} better")
    for k, value in enumerate(values):
        parts.append(
            f'<rect x="{start + 30 * k:.0f}" y="2" width="30" height="14" fill="{class_colour(value)}" '
            'stroke="#ffffff"/>'
        )
        if labels[k]:
            parts.append(_text(start + 30 * k, 28, labels[k], "tick mid"))
    end = start + 30 * len(values) + 8
    parts.append(_text(end, 13, f"worse (difference to {model_b} in %)", "label"))
    marks = end + 7 + 6.4 * len(f"worse (difference to {model_b} in %)")
    for k, (fill, label) in enumerate((("#22303c", "significant"), ("none", "not significant"))):
        at = marks + 110 * k
        parts.append(f'<circle cx="{at:.0f}" cy="9" r="3" fill="{fill}" stroke="#22303c"/>')
        parts.append(_text(at + 8, 13, label, "label"))
    return _svg((int(marks + 225), 32), *parts)


def colour_bar(image: str, limits: tuple[float, float], unit: str, size: tuple[int, int] = (300, 30)) -> str:
    """A horizontal colour bar."""
    width, left, right = size[0], 30, 58
    along = _mapper(limits, (left, width - right), False)
    parts = [
        f'<image href="{image}" x="{left}" y="2" width="{width - left - right}" height="9" '
        'preserveAspectRatio="none"/>'
    ]
    parts += [_text(along(t), 23, _number(t), "tick mid") for t in nice_ticks(*limits, 5)]
    parts.append(_text(width - right + 5, 10, unit, "unit"))
    return _svg(size, *parts)


def map_panel(
    title: str,
    image: str,
    extent: tuple[float, float, float, float],
    coast: Sequence[tuple[float, float, float, float]],
    size: tuple[int, int] = (360, 208),
) -> str:
    """A field on latitude-longitude axes; extent is (west, east, south, north) and coast is in degrees."""
    west, east, south, north = extent
    left, right, top, bottom = 30, 6, 20, 18
    across = _mapper((west, east), (left, size[0] - right), False)
    up = _mapper((south, north), (size[1] - bottom, top), False)
    box = f'x="{left}" y="{top}" width="{size[0] - left - right}" height="{size[1] - top - bottom}"'
    parts = [_text(left, 13, title, "title"), f'<image href="{image}" {box} preserveAspectRatio="none"/>']
    for lon in range(int(np.ceil(west / 60)) * 60, int(east) + 1, 60):
        x = across(lon)
        parts.append(
            f'<line class="graticule" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{size[1] - bottom}"/>'
        )
        parts.append(_text(x, size[1] - 5, _longitude(lon), "tick mid"))
    for lat in range(int(np.ceil(south / 30)) * 30, int(north) + 1, 30):
        y = up(lat)
        parts.append(
            f'<line class="graticule" x1="{left}" x2="{size[0] - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(left - 3, y + 3, _latitude(lat), "tick end"))
    path = "".join(f"M{across(a):.1f} {up(b):.1f}L{across(c):.1f} {up(d):.1f}" for a, b, c, d in coast)
    parts.append(f'<path class="coast" d="{path}"/><rect class="frame" {box}/>')
    return _svg(size, *parts)


class _Mapper:
    def __init__(self, data: tuple[float, float], pixels: tuple[float, float], log: bool) -> None:
        self._log = log
        low, high = (float(np.log10(v)) for v in data) if log else data
        self._scale = (pixels[1] - pixels[0]) / (high - low)
        self._origin = pixels[0] - low * self._scale

    def __call__(self, value: float) -> float:
        return self._origin + self._scale * (float(np.log10(value)) if self._log else float(value))


_mapper = _Mapper


def _finite(values: Sequence[Vector], log: bool) -> Vector:
    joined: Vector = np.concatenate([np.empty(0), *(np.asarray(v, np.float64) for v in values)])
    return joined[np.isfinite(joined) & ((joined > 0) | (not log))]


def _y_range(y: Vector, log: bool, zero: bool, reference: float | None) -> tuple[float, float]:
    values = y if reference is None else np.append(y, reference)
    low, high = float(values.min()), float(values.max())
    if log:
        # More than nine decades of power are rounding, not weather.
        return max(low / 1.5, high * 1e-9), high * 1.5
    if zero and low >= 0:
        return 0.0, high * 1.06 or 1.0
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    every = max(1, (len(decades) + 4) // 5)
    ticks = [10.0**d for d in decades[::every]]
    if len(decades) <= 3:
        ticks = [m * 10.0**d for d in decades for m in (1, 2, 5)]
    return [t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]


def _polyline(series: Series, across: _Mapper, up: _Mapper, log: bool) -> str:
    dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
    runs: list[list[str]] = [[]]
    for x, y in zip(series.x, series.y, strict=True):
        if np.isfinite(y) and not (log and (x <= 0 or y <= 0)):
            runs[-1].append(f"{across(x):.1f},{up(y):.1f}")
        elif runs[-1]:
            runs.append([])
    lines = "".join(
        f'<polyline fill="none" stroke="{series.colour}" stroke-width="1.8" stroke-linejoin="round"{dash} '
        f'points="{" ".join(run)}"/>'
        for run in runs
        if run
    )
    return f"<g><title>{escape(series.name)}</title>{lines}</g>"


def _svg(size: tuple[int, int], *parts: str) -> str:
    width, height = size
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _number(value: float) -> str:
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return f"{value:.6g}".replace("-", "−")


def _signed(per_cent: float) -> str:
    text = f"{per_cent:+.0f}" if abs(per_cent) >= 9.95 else f"{per_cent:+.1f}"
    return text.replace("-", "−")


def _days(lead: np.timedelta64) -> str:
    return f"{lead / np.timedelta64(86400, 's'):.4g}"


def _longitude(lon: int) -> str:
    lon = (lon + 180) % 360 - 180
    return "0" if lon == 0 else f"{abs(lon)}{'E' if lon > 0 else 'W'}" if abs(lon) != 180 else "180"


def _latitude(lat: int) -> str:
    return "0" if lat == 0 else f"{abs(lat)}{'N' if lat > 0 else 'S'}"
