from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from prunefuse.cli.app import app
from prunefuse.cli.progress import RowsProgress


def call(*arguments, stdin=None):
    return CliRunner().invoke(app, ["score", *map(str, arguments)], input=stdin)


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).numpy()
    logits[25] = np.nan
    for name, part in (("a.npy", logits[:20]), ("b.npy", logits[20:])):
        np.save(tmp_path / name, part)
    return tmp_path


def test_picks_of_a_list_of_files_and_the_nan_rows_by_name(shards):
    result = call("-", "--strategy", "margin", "--top", "3", "--out", "picks.csv", stdin="a.npy\n\nb.npy\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == "3 of 30 rows: picks.csv\n"
    assert result.stderr == "b.npy: 1 of its rows cannot be picked (NaN)\n"
    lines = (shards / "picks.csv").read_text().splitlines()
    assert lines[0] == "index,utility,file,row"
    assert len(lines) == 4
    assert call("a.npy", "b.npy", "-s", "margin", "--top", "3", "-o", "same.csv").exit_code == 0
    assert (shards / "same.csv").read_text().splitlines() == lines


def test_quiet_prints_nothing(shards):
    result = call(shards, "--out", "all.csv", "--quiet", "--temperature", "2", "--probabilities")
    assert (result.exit_code, result.output) == (0, "")
    assert len((shards / "all.csv").read_text().splitlines()) == 31


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.npy", "--strategy", "bald"], 2, "strategy must be one of least_confidence, margin, entropy"),
        (["a.npy", "--top", "0"], 2, "top must be at least 1, got 0"),
        (["a.npy", "--top", "21"], 2, "top must be at most the number of rows, 20, got 21"),
        (["b.npy", "--top", "10"], 2, "b.npy has 1 that are NaN"),
        (["a.npy", "--temperature", "0"], 2, "temperature must be positive"),
        (["none.npy"], 1, "none.npy: No such file"),
        (["-"], 1, "there is no file of logits"),
        (["cut.npy"], 1, "cut.npy: truncated"),
    ],
)
def test_an_error_is_one_line_and_nothing_is_written(shards, arguments, code, message):
    (shards / "cut.npy").write_bytes((shards / "a.npy").read_bytes()[:-9])
    result = call(*arguments, "--out", "out.csv", stdin="")
    assert result.exit_code == code
    assert message in result.output
    assert result.output.startswith("Error: ")
    assert len(result.output.splitlines()) == 1
    assert not (shards / "out.csv").exists()


def test_an_existing_file_is_not_overwritten(shards):
    (shards / "out.csv").write_text("mine")
    result = call("a.npy", "--out", "out.csv")
    assert (result.exit_code, result.output) == (1, "Error: out.csv exists and is not overwritten\n")
    assert (shards / "out.csv").read_text() == "mine"


def shown(quiet=False, **console):
    text = io.StringIO()
    with RowsProgress(quiet=quiet, console=Console(file=text, width=120, **console)) as progress:
        progress(Path("pool/shard-7.npy"), 2_500, 10_000)
        progress.note("a note")
    return text.getvalue()


def test_progress_is_a_bar_on_a_terminal_lines_in_a_log_and_nothing_when_quiet(monkeypatch):
    monkeypatch.setattr("prunefuse.cli.progress._LOG_EVERY", 0.0)
    terminal = shown(force_terminal=True)
    assert "shard-7.npy" in terminal
    assert "2500/10000" in terminal
    assert shown(force_terminal=False) == "pool/shard-7.npy: 2,500 of 10,000 rows\na note\n"
    assert shown(quiet=True, force_terminal=True) == shown(quiet=True, force_terminal=False) == ""
