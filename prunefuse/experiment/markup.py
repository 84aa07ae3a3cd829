"""The little HTML a report needs: one page with its style inside, tables, figures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

STYLE = """
:root { --ink: #1b1f24; --muted: #5f6b7a; --rule: #d9dee5; --soft: #f5f7f9; --accent: #0b6e99; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 44px 20px 72px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 6px; }
h2 { font-size: 20px; letter-spacing: -.01em; margin: 52px 0 6px; padding-top: 18px;
  border-top: 1px solid var(--rule); }
h3 { font-size: 15px; margin: 26px 0 4px; }
p { margin: 6px 0 10px; max-width: 78ch; }
.sub, figcaption, .note { color: var(--muted); }
.lead { font-size: 17px; line-height: 1.45; margin: 4px 0 8px; }
.sub { font-size: 13.5px; margin: 0; max-width: none; }
summary { cursor: pointer; font-weight: 600; font-size: 14px; margin: 8px 0; }
.note, figcaption { font-size: 13.5px; }
figcaption { max-width: 92ch; margin-top: 2px; }
figure { margin: 14px 0 18px; }
figure img { display: block; width: 100%; height: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(185px, 1fr)); gap: 12px; margin: 26px 0 8px; }
.tile { border: 1px solid var(--rule); border-top: 3px solid var(--c, var(--accent)); border-radius: 6px;
  padding: 12px 16px 13px; }
.tile b { display: block; font-size: 27px; line-height: 1.2; letter-spacing: -.02em; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.tile .what { font-size: 13px; font-weight: 600; }
.tile .more { font-size: 13px; color: var(--muted); }
.wide { overflow-x: auto; margin: 12px 0 16px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { white-space: normal; font-weight: 600; font-size: 13px; color: var(--muted); vertical-align: bottom; }
thead tr:first-child th.group { color: var(--ink); text-align: center; border-bottom: 2px solid var(--c, var(--rule)); }
th.left, td.left { text-align: left; }
td.left { white-space: normal; }
tbody tr:hover { background: var(--soft); }
tr.sum td { font-weight: 600; border-bottom: none; }
.range { color: var(--muted); font-size: 12.5px; }
pre, code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
code { font-size: .92em; }
pre { background: var(--soft); border: 1px solid var(--rule); border-radius: 6px; padding: 12px 14px; margin: 10px 0 14px;
  font-size: 13px; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 0 28px; margin: 12px 0; }
.facts div { display: flex; justify-content: space-between; gap: 14px; padding: 4px 0;
  border-bottom: 1px solid var(--rule); font-size: 14px; }
.facts dt { color: var(--muted); } .facts dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
dl { margin: 0; }
ul { margin: 8px 0; padding-left: 20px; max-width: 84ch; } li { margin: 5px 0; }
.alert { border-left: 4px solid #c8620d; background: #fff7ef; padding: 9px 14px; margin: 18px 0; max-width: none; }
@media print {
  body { font-size: 11pt; } main { max-width: none; padding: 0; }
  figure, .tile, tr, pre, .facts div { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .wide { overflow: visible; } tbody tr:hover { background: none; }
  th, td { padding: 4px 7px; font-size: 9pt; } pre { font-size: 7.5pt; } h2 { margin-top: 30px; }
  .tiles { grid-template-columns: repeat(5, 1fr); gap: 7px; } .tile { padding: 8px 10px; } .tile b { font-size: 15pt; }
}
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole document that needs nothing from outside."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int = 1,
    groups: Sequence[tuple[str, int, str]] = (),
    last_is_sum: bool = False,
) -> str:
    """A table of HTML cells.

    Args:
        head: Column titles.
        rows: Cells, already escaped.
        left: How many of the first columns are text, aligned left; the others are numbers.
        groups: A row above the titles: title, columns it spans, color of its rule (or ``""``).
        last_is_sum: The last row is the sum of the others.
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="left">{cell}</{tag}>' if column < left else f"<{tag}>{cell}</{tag}>"
            for column, cell in enumerate(row)
        )

    over = "".join(
        f'<th class="group" colspan="{span}" style="--c: {color or "transparent"}">{escape(title)}</th>'
        for title, span, color in groups
    )
    above = f"<tr>{over}</tr>" if groups else ""
    body = "\n".join(
        f"<tr{' class=sum' if last_is_sum and number == len(rows) else ''}>{cells('td', row)}</tr>"
        for number, row in enumerate(rows, 1)
    )
    return (
        f'<div class="wide"><table>\n<thead>{above}<tr>{cells("th", [escape(title) for title in head])}</tr></thead>'
        f"\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def figure(svg: str, alt: str, caption: str) -> str:
    """An SVG as an image, so that the names inside it cannot clash with those of another. ``caption`` is HTML."""
    data = base64.b64encode(svg.encode()).decode()
    return (
        f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(alt)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def tile(what: str, value: str, more: str, color: str) -> str:
    """One headline number."""
    return (
        f'<div class="tile" style="--c: {color}"><span class="what">{escape(what)}</span>'
        f'<b>{escape(value)}</b><span class="more">{escape(more)}</span></div>'
    )


def facts(values: Sequence[tuple[str, str]]) -> str:
    """Names and values, in columns as the page is wide."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values)
    return f'<dl class="facts">{items}</dl>'
