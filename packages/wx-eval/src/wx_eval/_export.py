"""Figures through matplotlib, which only the extra "plot" installs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ._figure import Disc, Figure, Image, Lines, Mark, Rect, Text

_POINTS = 72 / 96


def save(figure: Figure, path: Path, dpi: float) -> None:
    """Write a figure as PNG or PDF, by the ending of the path.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ImportError(
            "PNG and PDF need matplotlib: pip install 'wx-eval[plot]', or write .svg"
        ) from error
    canvas = Canvas(figsize=(figure.width / 96, figure.height / 96), facecolor="white")
    FigureCanvasAgg(canvas)
    axes: Any = canvas.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, figure.width)
    axes.set_ylim(figure.height, 0)
    axes.axis("off")
    for order, mark in enumerate(figure.marks):
        _draw(axes, mark, order)
    # Without a date the same figure is the same file.
    date = {"CreationDate": None} if path.suffix == ".pdf" else None
    canvas.savefig(path, dpi=dpi, metadata=date)


def _draw(axes: Any, mark: Mark, order: int) -> None:
    from matplotlib import patches

    if isinstance(mark, Text):
        _draw_text(axes, mark, order)
    elif isinstance(mark, Lines):
        _draw_lines(axes, mark, order)
    elif isinstance(mark, Image):
        box = (mark.x, mark.x + mark.width, mark.y + mark.height, mark.y)
        limits = axes.get_xlim(), axes.get_ylim()
        axes.imshow(
            mark.colours[mark.palette_index], extent=box, aspect="auto", zorder=order, interpolation="nearest"
        )
        axes.set_xlim(limits[0])
        axes.set_ylim(limits[1])
    elif isinstance(mark, Disc):
        axes.add_patch(patches.Circle((mark.x, mark.y), mark.radius, fc=mark.fill, lw=0, zorder=order))
    elif isinstance(mark, Rect):
        axes.add_patch(
            patches.Rectangle(
                (mark.x, mark.y),
                mark.width,
                mark.height,
                fc=mark.fill or "none",
                ec=mark.stroke or "none",
                lw=_POINTS if mark.stroke else 0,
                zorder=order,
            )
        )


def _draw_text(axes: Any, mark: Text, order: int) -> None:
    side = {"start": "left", "middle": "center", "end": "right"}[mark.anchor]
    weight = "bold" if mark.bold else "normal"
    # A dollar sign would switch to formulas.
    text = mark.text.replace("$", r"\$")
    axes.text(
        mark.x,
        mark.y,
        text,
        ha=side,
        va="baseline",
        size=mark.size * _POINTS,
        color=mark.fill,
        weight=weight,
        zorder=order,
    )


def _draw_lines(axes: Any, mark: Lines, order: int) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    width = mark.width * _POINTS
    if mark.fill:
        axes.add_collection(
            PolyCollection(
                mark.runs,
                facecolors=mark.fill,
                edgecolors=mark.stroke or "none",
                linewidths=width if mark.stroke else 0,
                alpha=mark.opacity,
                zorder=order,
            ),
            autolim=False,
        )
    else:
        dash = [float(v) / max(mark.width, 1e-6) for v in mark.dash.split()]
        style = (0, tuple(dash)) if dash else "solid"
        lines = LineCollection(
            mark.runs,
            colors=mark.stroke,
            linewidths=width,
            linestyles=style,
            alpha=mark.opacity,
            zorder=order,
        )
        axes.add_collection(lines, autolim=False)
