"""Pieces of an HTML page: everything that comes from a user is escaped here, and the style sheet is inline."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from fedsem.reporting.summary import Grid
from fedsem.reporting.words import number

STYLE_SHEET = """
:root { color-scheme: light dark; --ink: #1d2125; --soft: #5b6570; --line: #dde1e5; --page: #ffffff; --tint: #f5f7f9;
  --accent: #0072b2; --warn: #b34700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #9aa5b0; --line: #363d44; --page: #15181b;
  --tint: #1e2327; --accent: #56b4e9; --warn: #f0a35e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
header { border-bottom: 2px solid var(--accent); padding-bottom: 1.2rem; margin-bottom: 1.5rem; }
.kicker { color: var(--soft); font-size: .85rem; margin: 0; }
h1 { font-size: 2rem; line-height: 1.2; margin: .1rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .7rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .5rem 0; }
.lead { font-size: 1.05rem; max-width: 48rem; }
.soft, .hint { color: var(--soft); font-size: .9rem; }
.warning { border-left: 4px solid var(--warn); background: var(--tint); padding: .6rem .9rem; margin: 1rem 0; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .8rem 0 0;
  font-size: .9rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
dl.facts { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1.2rem; margin: .8rem 0; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .82rem; display: block; line-height: 1.35; }
.scroll { overflow-x: auto; margin: .4rem 0 .3rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; min-width: 40%; }
th, td { padding: .32rem .55rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 500; white-space: normal; min-width: 7rem; }
td small, td em { display: block; color: var(--soft); font-size: .75rem; font-style: normal; }
tr.quiet th, tr.quiet td { color: var(--soft); font-weight: 400; }
table.text td, table.text th { text-align: left; white-space: normal; }
figure { margin: 1.6rem 0 2.2rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; padding: .6rem; border-radius: 6px;
  border: 1px solid var(--line); }
figcaption { font-size: .9rem; margin-top: .5rem; max-width: 52rem; } figcaption b { margin-right: .3rem; }
pre, code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: .83rem; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem;
  line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem; }
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --tint: #f6f6f6; --accent: #005a8c; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } nav { display: none; }
  h2, h3 { break-after: avoid; } figure, .tile, tr { break-inside: avoid; } .scroll { overflow: visible; }
  table { font-size: 7.5pt; } th, td { padding: .2rem .4rem; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""


def page(title: str, body: str) -> str:
    """A whole document around the body; it needs no other file and no script."""
    # The policy makes sure of it: whatever a user's text holds, nothing runs and nothing is fetched.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE_SHEET}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(anchor: str, heading: str, *parts: str) -> str:
    """A section with a heading; empty where none of its parts says anything."""
    content = "\n".join(part for part in parts if part)
    return f'<section id="{anchor}">\n<h2>{escape(heading)}</h2>\n{content}\n</section>' if content else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; empty for no text."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>" if text else ""


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and what they are; pairs without text are left out."""
    items = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs if text)
    return f'<dl class="facts">\n{items}\n</dl>' if items else ""


def tiles(numbers: Sequence[tuple[str, str, str]]) -> str:
    """A few numbers (what, value, interval) in large print, the rest in small."""
    items = []
    for what, value, interval in numbers:
        small = "".join(f"<span>{escape(line)}</span>" for line in (what, interval) if line)
        items.append(f'<div class="tile"><b>{escape(value)}</b>{small}</div>')
    return f'<div class="tiles">\n{"".join(items)}\n</div>' if items else ""


def grid_table(grid: Grid) -> str:
    """A grid of numbers with its title and note."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in grid.columns)
    lines = []
    for label, cells in grid.rows:
        numbers = "".join(
            f"<td>{escape(cell.value)}"
            + (f"<small>{escape(cell.interval)}</small>" if cell.interval else "")
            + (f"<em>{escape(cell.note)}</em>" if cell.note else "")
            + "</td>"
            for cell in cells
        )
        quiet = ' class="quiet"' if label in grid.quiet else ""
        lines.append(f'<tr{quiet}><th scope="row">{escape(label)}</th>{numbers}</tr>')
    body = "\n".join(lines)
    return (
        f"<h3>{escape(grid.title)}</h3>\n"
        f'<div class="scroll"><table>\n<thead><tr><th scope="col">{escape(grid.corner)}</th>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n{paragraph(grid.note, 'soft')}"
    )


def text_table(columns: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "text") -> str:
    """A table of text."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    if not body:
        return ""
    return (
        f'<div class="scroll"><table class="{kind}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def picture(number: int, title: str, hint: str, png: bytes, width: int) -> str:
    """A figure with its caption, the image inside the page."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure>\n<img alt="{escape(f"{title}. {hint}")}" width="{width}" src="data:image/png;base64,{data}">\n'
        f'<figcaption><b>Figure {number}. {escape(title)}.</b><span class="hint">{escape(hint)}</span></figcaption>\n'
        "</figure>"
    )


def code(text: str) -> str:
    """Preformatted text."""
    return f"<pre><code>{escape(text)}</code></pre>" if text else ""


def folded(summary: str, content: str) -> str:
    """Content that opens on a click."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{content}\n</details>" if content else ""


ACRONYMS = {"snr": "SNR", "psr": "PSR", "csi": "CSI", "lr": "learning rate"}


def brief(value: Any) -> str:
    """A setting in one line: ``rayleigh (fading block, CSI zf)``; what is empty or off is left out."""
    if isinstance(value, Mapping):
        if list(value) == ["uniform"]:
            return f"uniform from {' to '.join(map(brief, value['uniform']))}"
        kind = value.get("kind")
        said = ", ".join(
            _setting(str(key), item)
            for key, item in value.items()
            if key != "kind" and item not in (None, {}, [], "", False)
        )
        if kind is None:
            return said
        return f"{kind} ({said})" if said else str(kind)
    if isinstance(value, list | tuple):
        return ", ".join(map(brief, value))
    if isinstance(value, bool) or value is None:
        return "yes" if value else ""
    return number(value) if isinstance(value, int | float) else str(value)


def _setting(key: str, value: Any) -> str:
    name = " ".join(ACRONYMS.get(part, part) for part in key.removesuffix("_db").split("_"))
    nested = isinstance(value, Mapping) and not {"kind", "uniform"} & value.keys()
    inner = f"({brief(value)})" if nested else brief(value)
    return f"{name} {inner}{' dB' if key.endswith('_db') else ''}"
