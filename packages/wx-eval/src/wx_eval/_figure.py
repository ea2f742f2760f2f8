"""Figures as lists of a few kinds of marks, which SVG and matplotlib draw alike."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ._raster import data_uri

INK, SOFT, LINE = "#1d2733", "#55616e", "#dfe4e8"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
FONT_SIZE = 10.0
"""Of text that does not state another, in pixels."""

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]
_FILL = "#ffffff"


class Rect(NamedTuple):
    """A filled rectangle; `title` is shown when the pointer rests on it."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str = ""
    title: str = ""


class Lines(NamedTuple):
    """Polylines, or polygons where `fill` is given, as one mark."""

    runs: Sequence[Sequence[Point]]
    stroke: str = ""
    width: float = 1.0
    dash: str = ""
    fill: str = ""
    opacity: float = 1.0
    title: str = ""


class Disc(NamedTuple):
    """A filled circle."""

    x: float
    y: float
    radius: float
    fill: str
    title: str = ""


class Text(NamedTuple):
    """One line of text; y is its base line."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    size: float = FONT_SIZE
    fill: str = SOFT
    bold: bool = False


class Image(NamedTuple):
    """Palette index (h, w) and colours (n, 3) stretched over a rectangle."""

    x: float
    y: float
    width: float
    height: float
    palette_index: npt.NDArray[np.uint8]
    colours: npt.NDArray[np.uint8]


Mark = Rect | Lines | Disc | Text | Image


@dataclass(frozen=True)
class Figure:
    """A drawing of fixed size in pixels; y runs down.

    Attributes:
        width, height: pixels at 96 per inch.
        marks: drawn in this order.
        label: what it shows, for readers who cannot see it.
    """

    width: float
    height: float
    marks: tuple[Mark, ...]
    label: str = ""

    def svg(self, *, standalone: bool = False) -> str:
        """SVG element; `standalone` adds what a file of its own needs: white ground and font."""
        body = "".join(_svg_group(style, marks) for style, marks in groupby(self.marks, _style))
        size = f'viewBox="0 0 {_n(self.width)} {_n(self.height)}" width="{_n(self.width)}" '
        size += f'height="{_n(self.height)}"'
        ground = f'<rect width="100%" height="100%" fill="{_FILL}"/>' if standalone else ""
        font = f" font-family='{FONT}'" if standalone else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(self.label)}" '
            f'font-size="{_n(FONT_SIZE)}" fill="{SOFT}"{font}>{ground}{body}</svg>'
        )

    def write(self, path: str | PathLike[str], *, dpi: float = 192) -> Path:
        """Write the figure and return its path.

        Args:
            path: ends in .svg, .png or .pdf; the last two need matplotlib, the extra "plot".
            dpi: resolution of a PNG.

        Raises:
            ValueError: for another ending.
            ImportError: when matplotlib is needed and not installed.
        """
        target, kind = Path(path), os.path.splitext(path)[1]
        if kind == ".svg":
            target.write_text(self.svg(standalone=True) + "\n", encoding="utf-8")
        elif kind in (".png", ".pdf"):
            from ._export import save

            save(self, target, dpi)
        else:
            raise ValueError(f"a figure is written as .svg, .png or .pdf, got {str(path)!r}")
        return target


def moved(mark: Mark, dx: float, dy: float) -> Mark:
    """The mark elsewhere."""
    if isinstance(mark, Lines):
        return mark._replace(runs=[[(x + dx, y + dy) for x, y in run] for run in mark.runs])
    return mark._replace(x=mark.x + dx, y=mark.y + dy)


def arranged(figures: Iterable[Figure], width: float, label: str = "", gap: float = 16) -> Figure:
    """Figures from left to right and from top to bottom on one of at least `width`."""
    marks: list[Mark] = []
    x = y = tall = wide = 0.0
    for figure in figures:
        if x and x + figure.width > width:
            x, y, tall = 0.0, y + tall + gap, 0.0
        marks += [moved(mark, x, y) for mark in figure.marks]
        x, tall, wide = x + figure.width + gap, max(tall, figure.height), max(wide, x + figure.width)
    return Figure(max(wide, width), y + tall, tuple(marks), label)


def framed(figure: Figure, margin: float = 16) -> Figure:
    """The figure with white space around it."""
    marks = tuple(moved(mark, margin, margin) for mark in figure.marks)
    return Figure(figure.width + 2 * margin, figure.height + 2 * margin, marks, figure.label)


def text_width(text: str, size: float = FONT_SIZE, bold: bool = False) -> float:
    """Upper estimate of the width of text in the fonts that browsers choose, in pixels."""
    # Of DejaVu Sans, which is wider than the other fonts of the list.
    narrow, usual, wide = (0.45, 0.7, 1.05) if bold else (0.38, 0.635, 0.98)
    return size * sum(wide if c in "mwMW@%" else narrow if c in "iljtf.,:;|!'() " else usual for c in text)


def fitted(text: str, width: float, size: float = FONT_SIZE, bold: bool = False) -> str:
    """The text, or as much of it as fits and an ellipsis."""
    kept = text
    while kept and text_width(kept if kept == text else f"{kept}…", size, bold) > width:
        kept = kept[:-1]
    return kept if kept == text else f"{kept.rstrip()}…"


def wrapped(text: str, width: float, size: float = FONT_SIZE) -> list[str]:
    """Text broken at spaces into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(joined, size) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _style(mark: Mark) -> Mark | None:
    """What neighbours must have in common to share their markup."""
    if isinstance(mark, Text):
        return mark._replace(x=0, y=0, text="")
    # Of areas that are half transparent it matters how often they overlap.
    if isinstance(mark, Lines) and not mark.title and (mark.opacity == 1 or not mark.fill):
        return mark._replace(runs=())
    return None


def _svg_group(style: Mark | None, marks: Iterable[Mark]) -> str:
    """Marks that follow one another; those of one style state it once."""
    if isinstance(style, Lines):
        return _svg_lines(style._replace(runs=[r for m in marks if isinstance(m, Lines) for r in m.runs]))
    if not isinstance(style, Text):
        return "".join(map(_svg_mark, marks))
    extra = "" if style.anchor == "start" else f' text-anchor="{style.anchor}"'
    extra += "" if style.size == FONT_SIZE else f' font-size="{_n(style.size)}"'
    extra += "" if style.fill == SOFT else f' fill="{style.fill}"'
    extra += ' font-weight="600"' if style.bold else ""
    texts = [m for m in marks if isinstance(m, Text)]
    if len(texts) == 1:
        return _svg_text(texts[0], extra)
    return f"<g{extra}>{''.join(map(_svg_text, texts))}</g>"


def _svg_mark(mark: Mark) -> str:
    if isinstance(mark, Text):
        return _svg_text(mark)
    if isinstance(mark, Lines):
        return _svg_lines(mark)
    if isinstance(mark, Image):
        href = data_uri(mark.palette_index, mark.colours)
        return f'<image href="{href}" {_box(mark)} preserveAspectRatio="none"/>'
    if isinstance(mark, Disc):
        shape = f'circle cx="{_n(mark.x)}" cy="{_n(mark.y)}" r="{_n(mark.radius)}" fill="{mark.fill}"'
        return _titled("circle", shape, mark.title)
    stroke = f' stroke="{mark.stroke}"' if mark.stroke else ""
    return _titled("rect", f'rect {_box(mark)} fill="{mark.fill or "none"}"{stroke}', mark.title)


def _box(mark: Rect | Image) -> str:
    return f'x="{_n(mark.x)}" y="{_n(mark.y)}" width="{_n(mark.width)}" height="{_n(mark.height)}"'


def _svg_text(mark: Text, extra: str = "") -> str:
    return f'<text x="{_n(mark.x)}" y="{_n(mark.y)}"{extra}>{escape(mark.text)}</text>'


def _svg_lines(mark: Lines) -> str:
    close = "Z" if mark.fill else ""
    d = "".join("M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in run) + close for run in mark.runs)
    style = f'fill="{mark.fill or "none"}"'
    if mark.stroke:
        style += f' stroke="{mark.stroke}" stroke-width="{_n(mark.width)}"'
    if mark.dash:
        style += f' stroke-dasharray="{mark.dash}"'
    if mark.opacity != 1:
        style += f' opacity="{mark.opacity:g}"'
    if not mark.title:
        style += ' pointer-events="none"'
    return _titled("path", f'path d="{d}" {style}', mark.title)


def _titled(tag: str, content: str, title: str) -> str:
    return f"<{content}><title>{escape(title)}</title></{tag}>" if title else f"<{content}/>"


def hatching(x: float, y: float, width: float, height: float, step: float = 5) -> list[tuple[Point, Point]]:
    """Diagonals of a rectangle, `step` apart along its edges."""
    out = []
    for offset in np.arange(step, width + height, step):
        low, high = max(0.0, offset - height), min(offset, width)
        out.append(((x + low, y + float(offset) - low), (x + high, y + float(offset) - high)))
    return [((float(a), float(b)), (float(c), float(d))) for (a, b), (c, d) in out]


def rgb(colour: str) -> npt.NDArray[Any]:
    """Red, green and blue of "#rrggbb", 0 to 1."""
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.1)."""
    bright = []
    for colour in (a, b):
        c = rgb(colour)
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        bright.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(bright) + 0.05) / (min(bright) + 0.05)
