"""A report as Markdown: its texts and tables."""

from __future__ import annotations

from collections.abc import Sequence

from prunefuse._extras import needed_for
from prunefuse._table import Table

with needed_for("a report"):
    from prunefuse.experiment.report import page


def markdown(title: str, top: Sequence[page.Block], sections: Sequence[page.Section]) -> str:
    """The texts and tables of a report as Markdown; figures are left out."""
    parts = [f"# {title}", *_marked(top)]
    for section in sections:
        parts += [f"## {section.title}", *_marked(section.blocks)]
    return "\n\n".join(parts) + "\n"


def _marked(blocks: Sequence[page.Block]) -> list[str]:
    found = []
    for block in blocks:
        if isinstance(block, page.Text):
            found.append(block.text)
        elif isinstance(block, page.Heading):
            found.append(f"### {block.text}")
        elif isinstance(block, page.Verbatim):
            found.append(f"```\n{block.text}\n```")
        elif isinstance(block, page.Data):
            found.append(table_text(block.table))
        elif isinstance(block, page.Facts):
            found.append("\n".join(f"- {name}: {value}" for name, value in block.values))
    return found


def table_text(table: Table) -> str:
    """A table as Markdown."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    sides = ["---"] * table.left + ["--:"] * (len(table.head) - table.left)
    return "\n".join([row(table.head), "|" + "|".join(sides) + "|", *map(row, table.rows)])
