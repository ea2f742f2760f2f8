"""Charts of lines, bars, diagrams and maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ._figure import INK, Anchor, Disc, Figure, Image, Lines, Mark, Point, Rect, Text, fitted, text_width

Vector = npt.NDArray[np.float64]

# Okabe and Ito's colours, darkened where white ground asks for it: told apart with every common form of
# colour blindness.
SERIES_COLOURS = ("#0072B2", "#C94F00", "#00835D", "#B4568D", "#A87400", "#2E8FC4", "#3b3b3b", "#8c6d31")
DASHES = ("", "5 3", "1.5 2.5", "8 3 2 3")
_GRID, _AXIS, _REFERENCE, _BAR = "#e8ecef", "#9aa5af", "#5b6875", "#5a9dcd"


# Corners around a point; the first shape is a disc.
_SHAPES: tuple[tuple[Point, ...], ...] = (
    (),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0.0, -1.25), (1.15, 0.9), (-1.15, 0.9)),
    ((0.0, -1.35), (1.35, 0.0), (0.0, 1.35), (-1.35, 0.0)),
    ((0.0, 1.25), (1.15, -0.9), (-1.15, -0.9)),
)
_RADIUS, _APART = 2.7, 44.0


def markers(k: int, points: Sequence[Point], shade: str, title: str = "") -> list[Mark]:
    """Shape k, with white around it, at every point."""
    corners = _SHAPES[k % len(_SHAPES)]
    if not corners:
        return [Disc(x, y, _RADIUS, shade, title) for x, y in points]
    runs = [[(x + _RADIUS * dx, y + _RADIUS * dy) for dx, dy in corners] for x, y in points]
    return [Lines(runs, "#ffffff", 0.5, fill=shade, title=title)] if runs else []


def colour(k: int) -> str:
    """Colour of series k."""
    return SERIES_COLOURS[k % len(SERIES_COLOURS)]


class Series(NamedTuple):
    """One line of a panel with a band (low, high) around it.

    `marker` is the number of the shape that tells the line apart without its colour, here and there on the
    line or, with `points`, on every value.
    """

    name: str
    x: Vector
    y: Vector
    colour: str
    dash: str = ""
    low: Vector | None = None
    high: Vector | None = None
    points: bool = False
    marker: int | None = None


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Axes of a panel.

    Attributes:
        x_label, y_label: y_label stands above the axis, opposite the title.
        log: the letters of the logarithmic axes.
        zero: start y at 0 where nothing is negative.
        reference: level of a dashed line.
        diagonal: dash the line from (0, 0) to (1, 1).
        x_range, y_range: instead of those of the data.
        size: pixels.
    """

    x_label: str = ""
    y_label: str = ""
    log: str = ""
    zero: bool = True
    reference: float | None = None
    diagonal: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    size: tuple[int, int] = (276, 196)


_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 26, 34


def line_panel(title: str, series: Sequence[Series], axes: Axes) -> Figure:
    """Lines over a common x axis."""
    width, height = axes.size
    base = height - _BOTTOM
    label = f"{title}: {', '.join(dict.fromkeys(s.name for s in series))}"
    x_range, y_range = _ranges(series, axes)
    head = _head(title, axes.y_label, width)
    if x_range is None or y_range is None:
        empty = Text(width / 2, height / 2, "no data", "middle", 11.0)
        return Figure(width, height, (*head, empty), f"{title}: no data")
    across = Scale(x_range, (_LEFT, width - _RIGHT), "x" in axes.log)
    up = Scale(y_range, (base, _TOP), "y" in axes.log)
    marks = [*head, *_ticks_y(up, width), *_ticks_x(across, base)]
    marks.append(Text((_LEFT + width - _RIGHT) / 2, height - 5, axes.x_label, "middle"))
    marks.append(Lines([[(_LEFT, base), (width - _RIGHT, base)]], _AXIS))
    if axes.reference is not None:
        level = up(axes.reference)
        marks.append(Lines([[(_LEFT, level), (width - _RIGHT, level)]], _REFERENCE, 1, "4 3"))
    if axes.diagonal:
        marks.append(Lines([[(across(v), up(v)) for v in (0.0, 1.0)]], _REFERENCE, 1, "4 3"))
    marks += [mark for s in series for mark in _band(s, across, up)]
    marks += [mark for s in series for mark in _line(s, across, up)]
    return Figure(width, height, tuple(marks), label)


def bar_panel(title: str, heights: Vector, reference: float, *, size: tuple[int, int] = (276, 168)) -> Figure:
    """A histogram over ranks with its flat reference."""
    width, height = size
    base, high = height - 26, float(max(heights.max(), reference)) * 1.1
    up = Scale((0.0, high), (base, _TOP), False)
    step = (width - _LEFT - _RIGHT) / len(heights)
    marks = [*_head(title, "", width), *_ticks_y(up, width)]
    for k, value in enumerate(heights):
        y, gap = up(float(value)), min(1.0, step / 4)
        box = (_LEFT + k * step + gap / 2, y, step - gap, base - y)
        marks.append(Rect(*box, _BAR, "", f"rank {k}: {value:.4f}"))
    level = up(reference)
    marks.append(Lines([[(_LEFT, level), (width - _RIGHT, level)]], INK, 1, "4 3"))
    marks.append(Text((_LEFT + width - _RIGHT) / 2, height - 6, "rank of the truth", "middle"))
    return Figure(width, height, tuple(marks), f"{title}: rank histogram of {len(heights)} ranks")


# Probabilities with room for the marks at 0 and 1.
_UNIT = (-0.05, 1.05)


class Reliability(NamedTuple):
    """One model's curve of a reliability diagram; every array has one value per forecast probability."""

    name: str
    probability: Vector
    frequency: Vector
    weight: Vector
    colour: str
    calibrated: Vector | None = None
    low: Vector | None = None
    high: Vector | None = None
    marker: int | None = None


def reliability_panel(title: str, curves: Sequence[Reliability]) -> Figure:
    """Observed frequency against forecast probability, consistency bars, and how often each was forecast."""
    size, base = (276, 330), 236
    axes = Axes(y_label="observed frequency", x_range=_UNIT, y_range=_UNIT, diagonal=True, size=(276, 270))
    lines = [
        Series(
            c.name,
            c.probability,
            c.frequency,
            c.colour,
            "" if c.calibrated is None else "1.5 2.5",
            points=True,
            marker=c.marker,
        )
        for c in curves
    ]
    steps = [
        Series(f"{c.name}, recalibrated", c.probability, c.calibrated, c.colour)
        for c in curves
        if c.calibrated is not None
    ]
    panel = line_panel(title, [*lines, *steps], axes)
    across, up = Scale(_UNIT, (_LEFT, size[0] - _RIGHT), False), Scale(_UNIT, (base, _TOP), False)
    marks: list[Mark] = list(panel.marks)
    for k, c in enumerate(curves):
        marks += _bars(c, across, up, 1.6 * (k - (len(curves) - 1) / 2))
    marks += _sharpness(curves, across, size)
    return Figure(*size, tuple(marks), f"{title}: reliability of {', '.join(c.name for c in curves)}")


def _bars(c: Reliability, across: Scale, up: Scale, shift: float) -> Iterable[Mark]:
    """Where the frequency of a reliable forecast would lie."""
    if c.low is None or c.high is None:
        return
    for p, low, high in zip(c.probability, c.low, c.high, strict=True):
        if np.isfinite(low) and np.isfinite(high):
            x = across(p) + shift
            yield Lines([[(x, up(low)), (x, up(high))]], c.colour, 3.0, opacity=0.35)


def _sharpness(curves: Sequence[Reliability], across: Scale, size: tuple[int, int]) -> Iterable[Mark]:
    """Share of points with each probability, as small bars below the diagram."""
    top, base = size[1] - 62, size[1] - 20
    highest = max((float(np.nanmax(c.weight, initial=0)) for c in curves), default=0.0)
    yield Text(_LEFT - 5, top + 8, _number(round(highest, 3)), "end")
    yield Text(_LEFT - 5, base, "0", "end")
    for k, c in enumerate(curves):
        group = min(18.0, 0.8 * (across(1) - across(0)) / max(np.isfinite(c.probability).sum() - 1, 1))
        bar = group / len(curves)
        shift = (k - len(curves) / 2) * bar
        for p, weight in zip(c.probability, c.weight, strict=True):
            if np.isfinite(p) and weight > 0:
                tall = (base - top) * weight / highest
                yield Rect(
                    across(p) + shift,
                    base - tall,
                    bar,
                    tall,
                    c.colour,
                    "",
                    f"{c.name}, {p:.3g}: {weight:.4f}",
                )
    yield Lines([[(_LEFT, base), (size[0] - _RIGHT, base)]], _AXIS)
    yield Text((_LEFT + size[0] - _RIGHT) / 2, size[1] - 5, "forecast probability; share of points", "middle")


def key(entries: Sequence[tuple[str, str, str, int | None]]) -> list[Figure]:
    """Legend, entry by entry: name, colour, dash and marker of each line."""
    out = []
    for name, shade, dash, shape in entries:
        marks: list[Mark] = [Lines([[(0, 8), (26, 8)]], shade, 2.4, dash)]
        marks += [] if shape is None else markers(shape, [(13, 8)], shade)
        marks.append(Text(32, 12, name, "start", 12.0, INK))
        out.append(Figure(32 + text_width(name, 12.0), 17, tuple(marks), name))
    return out


def colour_bar(
    colours: npt.NDArray[np.uint8], limits: tuple[float, float], unit: str, size: tuple[int, int] = (336, 30)
) -> Figure:
    """A horizontal colour bar."""
    left, right = 30.0, max(24.0, text_width(unit) + 12)
    wide = size[0] - left - right
    along = Scale(limits, (left, left + wide), False)
    strip = np.arange(len(colours), dtype=np.uint8)[None]
    marks: list[Mark] = [Image(left, 2, wide, 9, strip, colours)]
    marks += [Text(along(t), 23, _number(t), "middle") for t in nice_ticks(*limits, 5)]
    marks.append(Text(left + wide + 6, 10, unit))
    return Figure(*size, tuple(marks), f"colours from {limits[0]:.4g} to {limits[1]:.4g} {unit}")


def map_panel(
    title: str,
    image: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]],
    extent: tuple[float, float, float, float],
    coasts: Sequence[Vector],
    size: tuple[int, int] = (336, 196),
) -> Figure:
    """A field on latitude-longitude axes; extent is (west, east, south, north), coasts in degrees (n, 2)."""
    west, east, south, north = extent
    left, right, top, bottom = 30, 8, 22, 18
    across = Scale((west, east), (left, size[0] - right), False)
    up = Scale((south, north), (size[1] - bottom, top), False)
    wide, tall = size[0] - left - right, size[1] - top - bottom
    marks: list[Mark] = [
        Text(left, 14, title, "start", 12.0, INK, True),
        Image(left, top, wide, tall, *image),
    ]
    graticule: list[list[Point]] = []
    for lon in range(int(np.ceil(west / 60)) * 60, int(east) + 1, 60):
        graticule.append([(across(lon), top), (across(lon), top + tall)])
        anchor: Anchor = "end" if across(lon) > size[0] - 20 else "middle"
        marks.append(Text(min(across(lon), size[0] - 2), size[1] - 5, _longitude(lon), anchor))
    for lat in range(int(np.ceil(south / 30)) * 30, int(north) + 1, 30):
        graticule.append([(left, up(lat)), (left + wide, up(lat))])
        marks.append(Text(left - 3, up(lat) + 3, _latitude(lat), "end"))
    marks.append(Lines(graticule, "#10161c", 0.5, opacity=0.22))
    inside = [run for line in coasts for run in _inside(line, extent)]
    runs = [[(across(lon), up(lat)) for lon, lat in run] for run in inside]
    marks.append(Lines(runs, "#10161c", 0.8, opacity=0.75))
    box = [(left, top), (left + wide, top), (left + wide, top + tall), (left, top + tall), (left, top)]
    marks.append(Lines([box], _AXIS, 0.8))
    return Figure(*size, tuple(marks), f"map of {title}")


def _inside(line: Vector, extent: tuple[float, float, float, float]) -> list[Vector]:
    """Runs of at least two points within the extent, for the line and its images 360 degrees away."""
    west, east, south, north = extent
    out = []
    for turn in (-360.0, 0.0, 360.0):
        lon, lat = line[:, 0] + turn, line[:, 1]
        within = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
        for run in np.split(np.arange(len(line)), np.flatnonzero(np.diff(within)) + 1):
            if within[run[0]] and run.size > 1:
                out.append(np.stack([lon[run], lat[run]], axis=1))
    return out


class Scale:
    """Data to pixels, linear or logarithmic."""

    def __init__(self, data: tuple[float, float], pixels: tuple[float, float], log: bool) -> None:
        self.data, self.log = data, log
        low, high = (float(np.log10(v)) for v in data) if log else data
        self._scale = (pixels[1] - pixels[0]) / (high - low)
        self._origin = pixels[0] - low * self._scale

    def __call__(self, value: float) -> float:
        return self._origin + self._scale * (float(np.log10(value)) if self.log else float(value))

    def ticks(self) -> list[float]:
        """Round numbers on the axis."""
        return _log_ticks(*self.data) if self.log else nice_ticks(*self.data)


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


def _head(title: str, y_label: str, width: float) -> list[Mark]:
    # A long title starts further left, and pushes the unit to the line below it.
    left = _LEFT if _LEFT + text_width(title, 12.0, True) < width else 4.0
    marks: list[Mark] = [Text(left, 14, fitted(title, width - left, 12.0, True), "start", 12.0, INK, True)]
    crowded = left + text_width(title, 12.0, True) + text_width(y_label) + 8 > width - _RIGHT
    if y_label:
        marks.append(Text(width - _RIGHT, 24 if crowded else 14, y_label, "end"))
    return marks


def _ticks_y(up: Scale, width: float) -> Iterable[Mark]:
    yield Lines([[(_LEFT, up(t)), (width - _RIGHT, up(t))] for t in up.ticks()], _GRID)
    for tick in up.ticks():
        yield Text(_LEFT - 5, up(tick) + 3, _number(tick), "end")


def _ticks_x(across: Scale, base: float) -> Iterable[Mark]:
    end = 0.0
    for tick in across.ticks():
        x, wide = across(tick), text_width(_number(tick)) / 2
        # Decades can be closer than their numbers are wide.
        if x - wide > end + 2:
            end = x + wide
            yield Text(x, base + 13, _number(tick), "middle")


def _ranges(
    series: Sequence[Series], axes: Axes
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    x = _finite([s.x for s in series], "x" in axes.log)
    bands = [b for s in series for b in (s.low, s.high) if b is not None]
    y = _finite([*(s.y for s in series), *bands], "y" in axes.log)
    if not x.size or not y.size:
        return None, None
    x_range = axes.x_range or (float(x.min()), float(x.max()))
    if x_range[0] == x_range[1]:
        x_range = (x_range[0] * 0.9, x_range[1] * 1.1 or 1.0)
    return x_range, axes.y_range or _y_range(y, axes)


def _finite(values: Sequence[Vector], log: bool) -> Vector:
    joined: Vector = np.concatenate([np.empty(0), *(np.asarray(v, np.float64) for v in values)])
    return joined[np.isfinite(joined) & ((joined > 0) | (not log))]


def _y_range(y: Vector, axes: Axes) -> tuple[float, float]:
    values = y if axes.reference is None else np.append(y, axes.reference)
    low, high = float(values.min()), float(values.max())
    if "y" in axes.log:
        # More than nine decades of power are rounding, not weather.
        return max(low / 1.5, high * 1e-9), high * 1.5
    if axes.zero and low >= 0:
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


def _runs(x: Vector, y: Vector, across: Scale, up: Scale) -> list[list[Point]]:
    """Pixels of a line, broken where there is no value."""
    runs: list[list[Point]] = [[]]
    for a, b in zip(x, y, strict=True):
        if np.isfinite(a) and np.isfinite(b) and not (across.log and a <= 0) and not (up.log and b <= 0):
            runs[-1].append((across(a), up(_within(b, up))))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _within(value: float, scale: Scale) -> float:
    """What lies below a logarithmic axis is drawn on its edge, not outside of the panel."""
    return max(value, scale.data[0]) if scale.log else value


def _line(s: Series, across: Scale, up: Scale) -> Iterable[Mark]:
    runs = _runs(s.x, s.y, across, up)
    yield Lines([r for r in runs if len(r) > 1], s.colour, 1.8, s.dash, title=s.name)
    shown = [point for run in runs if s.points or len(run) == 1 for point in run]
    if s.marker is not None and not s.points:
        shown += _spread_out([point for run in runs if len(run) > 1 for point in run], s.marker)
    yield from markers(s.marker or 0, shown, s.colour, s.name)


def _spread_out(points: Sequence[Point], k: int) -> Iterable[Point]:
    """Points of a line for markers: apart from one another, and from those of lines with another number."""
    free = points[0][0] + _APART * (k % len(_SHAPES)) / len(_SHAPES) if points else 0.0
    for x, y in points:
        if x >= free:
            yield x, y
            free = x + _APART


def _band(s: Series, across: Scale, up: Scale) -> Iterable[Mark]:
    if s.low is None or s.high is None:
        return
    there = np.isfinite(s.low) & np.isfinite(s.high)
    low, high = (_runs(s.x, np.where(there, edge, np.nan), across, up) for edge in (s.low, s.high))
    polygons = [[*a, *b[::-1]] for a, b in zip(low, high, strict=True)]
    yield Lines(polygons, fill=s.colour, opacity=0.16)


def _number(value: float) -> str:
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return f"{value:.6g}".replace("-", "−")


def _longitude(lon: int) -> str:
    lon = (lon + 180) % 360 - 180
    return "0" if lon == 0 else f"{abs(lon)}{'E' if lon > 0 else 'W'}" if abs(lon) != 180 else "180"


def _latitude(lat: int) -> str:
    return "0" if lat == 0 else f"{abs(lat)}{'N' if lat > 0 else 'S'}"
