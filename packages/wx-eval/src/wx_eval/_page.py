"""The frame of a report: style, script, tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ._figure import FONT, INK, LINE, SOFT

STYLE = f"""
:root {{ --ink: {INK}; --soft: {SOFT}; --line: {LINE}; --accent: #0b5a94; }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; }}
body {{ margin: 0; background: #f4f6f8; color: var(--ink); font: 15px/1.55 {FONT};
  overflow-wrap: break-word; }}
header, nav, main, footer {{ max-width: 1300px; margin: 0 auto; padding: 0 28px; }}
header {{ padding-top: 34px; padding-bottom: 6px; }}
h1 {{ font-size: 29px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }}
header p {{ margin: 0; color: var(--soft); font-size: 16px; }}
nav {{ margin-top: 12px; font-size: 13.5px; }}
nav a {{ display: inline-block; margin: 0 18px 2px 0; }}
a {{ color: var(--accent); text-decoration: none; }}
a:hover, a:focus {{ text-decoration: underline; }}
section {{ background: #fff; border: 1px solid var(--line); border-radius: 8px; margin: 18px 0;
  padding: 18px 24px 20px; }}
h2 {{ font-size: 19px; margin: 0 0 8px; }}
h3 {{ font-size: 15px; margin: 14px 0 6px; }}
p {{ margin: 0 0 10px; max-width: 82ch; }}
p.warning {{ border-left: 4px solid #c05f15; background: #fdf3e9; padding: 6px 12px; }}
.panels {{ display: flex; flex-wrap: wrap; gap: 14px 18px; align-items: flex-start; }}
figure {{ margin: 0; max-width: 100%; overflow-x: auto; overflow-y: hidden; }}
figure svg {{ display: block; max-width: none; }}
.key {{ display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 2px 0 12px; }}
.scroll {{ overflow-x: auto; max-width: 100%; }}
dl {{ display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 1px 16px; font-size: 13px;
  margin: 14px 0 0; }}
dt {{ color: var(--soft); }} dd {{ margin: 0; overflow-wrap: anywhere; }}
details {{ margin-top: 12px; }}
summary {{ cursor: pointer; color: var(--accent); font-size: 13.5px; }}
details .scroll {{ max-height: 70vh; overflow-y: auto; margin-top: 8px; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 4px 16px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }}
.sortable td, .sortable th {{ text-align: right; white-space: nowrap; padding: 4px 0 4px 16px; }}
.sortable .t {{ text-align: left; white-space: normal; padding: 4px 16px 4px 0; }}
th {{ color: var(--soft); font-weight: 600; }} tbody th {{ white-space: nowrap; }}
thead th {{ background: #fff; vertical-align: bottom; }}
details thead th {{ position: sticky; top: 0; }}
th button {{ all: unset; cursor: pointer; }}
th button:focus-visible {{ outline: 2px solid var(--accent); }}
th[aria-sort] button {{ color: var(--ink); }}
th[aria-sort=ascending] button::after {{ content: " ▲"; }}
th[aria-sort=descending] button::after {{ content: " ▼"; }}
pre {{ background: #f4f6f8; border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px;
  overflow-x: auto; margin: 0; }}
pre, code {{ font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
.caption {{ color: var(--soft); font-size: 13px; margin: 8px 0 0; max-width: none; }}
footer {{ color: var(--soft); font-size: 12.5px; padding-bottom: 34px; }}
@media (max-width: 640px) {{
  header, nav, main, footer {{ padding-left: 12px; padding-right: 12px; }}
  section {{ padding: 14px 12px 16px; border-radius: 6px; }}
  h1 {{ font-size: 23px; }}
  figure {{ width: 100%; }} .key figure {{ width: auto; }}
  figure svg {{ max-width: 100%; min-width: var(--least); height: auto; }}
  dl {{ grid-template-columns: minmax(0, 1fr); }} dd {{ margin-bottom: 5px; }}
}}
@page {{ size: A4; margin: 12mm; }}
@media print {{
  * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  body {{ background: #fff; font-size: 12px; }}
  header, main, footer {{ padding: 0; max-width: none; }}
  header {{ padding-bottom: 6px; }}
  nav, details {{ display: none; }}
  section {{ border: none; padding: 0; margin: 14px 0; }}
  h2, h3, .key {{ break-after: avoid; }}
  figure, dl, pre, tr, .key {{ break-inside: avoid; }}
  .panels {{ zoom: 0.8; }}
  figure, .scroll {{ overflow: visible; }}
  figure svg {{ max-width: 100%; min-width: 0; height: auto; }}
  pre {{ white-space: pre-wrap; }}
  .scroll table {{ font-size: 9.5px; }} th, td {{ padding-right: 8px; }}
}}
"""

# Headings become buttons; a click sorts by that column, another one turns the order round. Numbers come
# before words, and cells without either stay at the end.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, k) => {
    const text = row.cells[k].textContent.trim();
    const number = Number(text.replace("−", "-").replace("∞", "Infinity"));
    return text === "" || text === "–" ? null : Number.isNaN(number) ? text : number;
  };
  const order = (a, b) => typeof a === typeof b
    ? (typeof a === "number" ? a - b : a.localeCompare(b)) : typeof a === "number" ? -1 : 1;
  heads.forEach((head, k) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keyed = [...body.rows].map((row) => [value(row, k), row]);
      keyed.sort(([a], [b]) => a === null || b === null
        ? (a === null) - (b === null) : (up ? 1 : -1) * order(a, b));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}
"""


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]], footer: str) -> str:
    """A whole document; the sections hold HTML, all other arguments text."""
    links = "".join(f'<a href="#s{k}">{escape(heading)}</a>' for k, (heading, _) in enumerate(sections))
    body = "".join(
        f'<section id="s{k}"><h2>{escape(heading)}</h2>{content}</section>'
        for k, (heading, content) in enumerate(sections)
    )
    script = f"<script>{SCRIPT}</script>" if 'class="sortable"' in body else ""
    # Without an icon of its own the page would make browsers ask for one.
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head><body>'
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>"
        f'<nav aria-label="Sections">{links}</nav><main>{body}</main>'
        f"<footer>{escape(footer)}</footer>{script}</body></html>\n"
    )


def paragraphs(texts: Iterable[str], kind: str = "") -> str:
    """One p element each."""
    attribute = f' class="{kind}"' if kind else ""
    return "".join(f"<p{attribute}>{escape(text)}</p>" for text in texts)


def definitions(pairs: Mapping[str, object]) -> str:
    """Names and values."""
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>' for k, v in pairs.items())}</dl>"


def pair_table(pairs: Mapping[str, object]) -> str:
    """Names and values as a table."""
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{_text(v)}</td></tr>" for k, v in pairs.items())
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def row_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same columns, sortable."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    # A class on the few columns of words is shorter than one on the many of numbers.
    words = {name for name in columns if rows and isinstance(rows[0].get(name), str | bool | np.bool_)}
    kind = {name: ' class="t"' * (name in words) for name in columns}
    head = "".join(f'<th scope="col"{kind[name]}>{escape(name)}</th>' for name in columns)
    lines = ("".join(f"<td{kind[name]}>{_text(row.get(name, ''))}" for name in columns) for row in rows)
    # HTML closes cells and rows by itself, and a page can have hundreds of thousands of them.
    body = "".join(f"<tr>{line}" for line in lines)
    table = f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def folded(summary: str, content: str) -> str:
    """Content that opens on demand and is not printed."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _text(value: Any) -> str:
    """Markup of what a cell shows."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else f"{value:.4g}".replace("inf", "∞")
    return escape(str(value))
