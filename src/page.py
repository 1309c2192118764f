"""Pieces of one self-contained HTML page: it loads nothing, so it can be mailed and kept."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1500px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e3e3e3; text-align: left; }
td.number { white-space: nowrap; }
th { border-bottom: 2px solid #666; cursor: pointer; user-select: none; }
td.number, th.number { text-align: right; }
tbody tr:hover { background: #f3f8fc; }
caption { caption-side: bottom; text-align: left; color: #666; padding-top: .5rem; white-space: pre-line; }
figure { display: inline-block; vertical-align: top; margin: 1rem 1rem 0 0; max-width: 100%; }
img { max-width: 100%; height: auto; }
figcaption { color: #666; font-size: .85rem; }
details { border-top: 1px solid #e3e3e3; padding: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .88rem; }
dt { color: #666; }
dd { margin: 0; overflow-wrap: anywhere; }
"""

# A click on a heading sorts by that column, a second one the other way round.
SCRIPT = """
for (const th of document.querySelectorAll("th")) th.onclick = () => {
  const body = th.closest("table").tBodies[0], i = th.cellIndex, down = th.dataset.down = -(th.dataset.down || -1);
  const value = row => {
    const text = row.cells[i].innerText, number = parseFloat(text.replace(/,/g, ""));
    return isNaN(number) ? text : number;
  };
  const order = (a, b) => typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1;
  body.append(...[...body.rows].sort((a, b) => down * order(value(a), value(b))));
};
"""


def render(title: str, parts: Iterable[str]) -> str:
    """The whole page."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{body}\n<script>{SCRIPT}</script></body></html>\n"
    )


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table that a click on a heading sorts; columns of numbers stand to the right."""
    numeric = [all(not row[i] or row[i][0].isdigit() for row in rows) for i in range(len(heading))]

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = (' class="number"' if number else "" for number in numeric)
        return "<tr>" + "".join(f"<{tag}{k}>{escape(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"

    body = "\n".join(line("td", row) for row in rows)
    foot = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{foot}<thead>{line("th", heading)}</thead><tbody>\n{body}</tbody></table></div>'


def picture(png: bytes, caption: str) -> str:
    """A PNG inside the page, drawn smaller than its pixels, so that fine screens show it sharp."""
    width = round(int.from_bytes(png[16:20], "big") / 1.7)
    source = base64.b64encode(png).decode()
    text = escape(caption)
    image = f'<img width="{width}" alt="{text}" src="data:image/png;base64,{source}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def section(heading: str, parts: Iterable[str], opened: bool = False) -> str:
    """A part of the page that opens on a click."""
    body = "\n".join(parts)
    return f"<details{' open' * opened}><summary>{escape(heading)}</summary>\n{body}</details>"


def facts(pairs: Mapping[str, str]) -> str:
    """Names and values, a line each."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items()) + "</dl>"


def note(text: str) -> str:
    return f"<p>{escape(text)}</p>"
