"""A table that is aligned text without any library, drawn by rich on a terminal, and HTML in a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import rich.table


class Group(NamedTuple):
    """A title above several columns; ``color`` is that of its rule, ``""`` for none."""

    title: str
    columns: int
    color: str = ""


@dataclass(frozen=True)
class Table:
    """Cells as text, under a head.

    ``head`` may be empty. The first ``left`` columns are words and stand left, the others are numbers and stand right.
    The last ``sums`` rows are sums over the rows above. ``groups`` stand above the head, in HTML alone.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    sums: int = 0
    groups: Sequence[Group] = ()

    def text(self, *, indent: str = "", ruled: bool = False) -> str:
        """Aligned lines, without white space at their ends; ``ruled`` sets off the head and the sums by dashes."""
        cells = [self.head, *self.rows] if self.head else [*self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        pads = [str.ljust] * self.left + [str.rjust] * (len(widths) - self.left)
        lines = [
            "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=False)).rstrip()
            for row in cells
        ]
        if ruled:
            rule = "-" * max(map(len, lines))
            lines.insert(1, rule)
            lines.insert(len(lines) - self.sums, rule)
        return "\n".join(indent + line for line in lines)

    def __rich__(self) -> rich.table.Table:
        """The same for `rich.print`."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        drawn = RichTable(box=box.SIMPLE_HEAD, show_header=bool(self.head), show_edge=False, pad_edge=False)
        columns = len(self.head or self.rows[0])
        for column in range(columns):
            title = Text(self.head[column] if self.head else "")
            drawn.add_column(title, justify="left" if column < self.left else "right", overflow="fold")
        for number, row in enumerate(self.rows):
            if self.sums and number == len(self.rows) - self.sums:
                drawn.add_section()
            # As text, so that brackets in a name are no markup.
            drawn.add_row(*map(Text, row))
        return drawn


def show(*blocks: Table | str) -> None:
    """Print on standard output: tables by rich where that is a terminal, else as aligned text, for pipes and files."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(markup=False, highlight=False, emoji=False)
        for block in blocks:
            console.print(block, soft_wrap=isinstance(block, str))
        return
    for block in blocks:
        print(block if isinstance(block, str) else block.text())
