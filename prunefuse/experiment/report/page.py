"""What a report is made of, and how that becomes one HTML file that needs nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from prunefuse._table import Table
from prunefuse.experiment.report.figures import PALETTE


@dataclass(frozen=True)
class Text:
    """A paragraph: the lead and the line below it, a warning, or a note on what stands beside it."""

    text: str
    role: Literal["lead", "sub", "alert", "note"] = "note"


@dataclass(frozen=True)
class Heading:
    """The title of a part of a section."""

    text: str


@dataclass(frozen=True)
class Figure:
    """Drawings side by side, or one below the other where there is no room, with one caption and one legend.

    ``panels`` are SVG by `prunefuse.experiment.report.figures`; a ``broad`` one is scrolled on a narrow screen, not shrunk.
    ``legend`` has names and colors.
    """

    panels: Sequence[str]
    alt: str
    caption: str
    legend: Sequence[tuple[str, str]] = ()
    broad: bool = False


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    what: str
    value: str
    more: str
    color: str


@dataclass(frozen=True)
class Tiles:
    """Headline numbers in a row."""

    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Data:
    """A table; ``fold`` hides it behind that title."""

    table: Table
    fold: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values, in columns as the page is wide."""

    values: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Verbatim:
    """A command or a formula."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


Block: TypeAlias = Text | Heading | Figure | Tiles | Data | Facts | Verbatim | Bullets


@dataclass(frozen=True)
class Section:
    """A titled part of a report."""

    title: str
    blocks: Sequence[Block]


def document(title: str, top: Sequence[Block], sections: Sequence[Section]) -> str:
    """The whole document. Every text in it is escaped."""
    return _template().render(
        title=title, top=top, sections=[section for section in sections if section.blocks], palette=PALETTE
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("prunefuse.experiment.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["kind"] = lambda block: type(block).__name__.lower()
    environment.filters["themed"] = _themed
    environment.filters["inline"] = _inline
    return environment.get_template("page.html.j2")


def _themed(color: str) -> str:
    """The page's name for a color of the palette, which is another shade in the dark."""
    return next((f"var(--{name})" for name, (light, _) in PALETTE.items() if light == color), "transparent")


def _inline(svg: str, prefix: str) -> Markup:
    """A drawing to stand in the page: its colors follow the page, its names cannot clash with those of another."""
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    return Markup(re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda found: _themed(found[0]), svg))
