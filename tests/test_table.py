"""Tables as text, for a terminal, and where the output is no terminal."""

import io
import sys

import pytest
from rich.console import Console

from prunefuse._table import Table, show

TABLE = Table(("arm", "labels", "FLOPs"), [("a [red]b[/red]", "10", "1.5 G"), ("all", "", "12 G")], sums=1)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_words_stand_left_numbers_right_and_no_line_ends_in_white_space():
    assert TABLE.text().split("\n") == [
        "arm             labels  FLOPs",
        "a [red]b[/red]      10  1.5 G",
        "all                      12 G",
    ]
    left = Table(("", "type", "width"), [("conv", "Conv2d", "8"), ("", "", "")], left=3)
    assert left.text(indent="  ").split("\n") == ["        type    width", "  conv  Conv2d  8", "  "]


def test_a_ruled_table_sets_off_its_head_and_its_sums():
    head, rule, row, again, total = TABLE.text(ruled=True).split("\n")
    assert [head, row, total] == TABLE.text().split("\n")
    assert rule == again == "-" * max(map(len, (head, row, total)))


def test_a_table_may_have_no_head_and_no_row_under_its_head():
    assert (
        Table((), [("torch", "2.14"), ("prunefuse", "0.1")], left=2).text()
        == "torch      2.14\nprunefuse  0.1"
    )
    assert Table(("a", "bc"), []).text() == "a  bc"


def test_a_row_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        Table(("a", "b"), [("1",)]).text()


def test_rich_draws_the_same_cells_and_takes_no_name_for_markup():
    console = Console(width=60, file=io.StringIO())
    console.print(TABLE)
    drawn = console.file.getvalue()
    assert [line.split() for line in drawn.splitlines() if line.strip(" ─")] == [
        ["arm", "labels", "FLOPs"],
        ["a", "[red]b[/red]", "10", "1.5", "G"],
        ["all", "12", "G"],
    ]
    assert "─" * 20 in drawn.splitlines()[1]
    assert not drawn.splitlines()[-2].strip()  # the sum is set off


def test_output_is_plain_but_on_a_terminal(monkeypatch):
    blocks = ("", "a [bold]line[/bold]", TABLE)
    for file, plain in ((io.StringIO(), True), (Terminal(), False)):
        monkeypatch.setattr(sys, "stdout", file)
        show(*blocks)
        assert ("─" in file.getvalue()) != plain
        assert file.getvalue().startswith("\na [bold]line[/bold]\n")
        if plain:
            assert file.getvalue() == f"\na [bold]line[/bold]\n{TABLE.text()}\n"
