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
from prunefuse.scoring import score, score_ensemble


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
        (["a.npy", "--strategy", "bald"], 2, "got bald, which is for an ensemble (--members)"),
        (["a.npy", "--strategy", "k_center"], 2, "top must be a number of rows with strategy k_center"),
        (
            ["a.npy", "--members", "files"],
            2,
            "members files must have two files or folders or more, each of them a",
        ),
        (["a.npy", "--header"], 1, "a.npy: has no columns to choose from (--header is for CSV and Parquet)"),
        (
            ["x.csv", "--columns", "a,a"],
            1,
            "x.csv: columns must be different, and not the one of id, got 'a', 'a'",
        ),
        (
            ["x.csv", "--columns", "a", "--id", "a"],
            1,
            "columns must be different, and not the one of id, got 'a'",
        ),
        (["a.npy", "--members", "2"], 2, "members must be files, 0 or 1, got 2"),
        (
            ["a.npy", "b.npy", "--members", "files"],
            1,
            "b.npy: has 10 rows, where the first member, a.npy, has 20",
        ),
        (
            ["a.npy", "--members", "0"],
            1,
            "a.npy: logits must have the shape (members, rows, classes), got (20, 4)",
        ),
        (["a.npy", "--sample", "half"], 2, "sample must be a number of samples (1000) or a per cent"),
        (["a.npy", "--sample", "21"], 2, "sample must be at least 1 of the 20 rows"),
        (
            ["a.npy", "--exclude", "none.txt"],
            2,
            "exclude, none.txt, cannot be read: No such file or directory",
        ),
        (["a.npy", "--labeled", "a.npy"], 2, "labeled, a.npy, must be a sequence of row indices, or a mask"),
        (["x.csv"], 1, "x.csv: column 'label' is no logit by its name (--columns names those to read"),
        (["x.csv", "--columns", "a,c"], 1, "x.csv: has no column 'c'; its columns are 'label', 'a'"),
    ],
)
def test_an_error_is_one_line_and_nothing_is_written(shards, arguments, code, message):
    (shards / "cut.npy").write_bytes((shards / "a.npy").read_bytes()[:-9])
    (shards / "x.csv").write_text("label,a\n1,0.5\n")
    result = call(*arguments, "--out", "out.csv", stdin="")
    assert result.exit_code == code
    assert message in result.output
    assert result.output.startswith("Error: ")
    assert len(result.output.splitlines()) == 1
    assert not (shards / "out.csv").exists()


def test_a_pool_of_other_files_with_names_in_two_passes(shards):
    """What a user does next: the second batch leaves out the first, and what has labels."""
    rows = np.load(shards / "a.npy")
    lines = [f"img{i}.png,{','.join(map(str, row))}" for i, row in enumerate(rows)]
    (shards / "pool.csv").write_text("\n".join(["name,a,b,c,d", *lines]))
    (shards / "known.txt").write_text("0\n3\n")
    usual = ("pool.csv", "--id", "name", "--labeled", "known.txt", "--top", "4", "--quiet")
    assert call(*usual, "--out", "1.csv").exit_code == 0
    assert call(*usual, "--exclude", "1.csv", "--out", "2.csv").exit_code == 0
    picks = [
        line.split(",")
        for name in ("1.csv", "2.csv")
        for line in (shards / name).read_text().splitlines()[1:]
    ]
    best = np.argsort(-score(rows.astype(np.float64)), kind="stable")
    assert [int(pick[0]) for pick in picks] == [i for i in best if i not in (0, 3)][:8]
    assert all(pick[4] == f"img{pick[0]}.png" for pick in picks)
    result = call("a.npy", "--sample", "50%", "--seed", "1", "--out", "3.csv")
    assert result.output == "10 of 20 rows, 10 scored: 3.csv\n"
    result = call("a.npy", "--strategy", "k_center", "--top", "2", "--out", "4.csv")
    assert (shards / "4.csv").read_text().splitlines()[1].split(",")[1] == ""


def test_an_ensemble(shards):
    passes = np.stack([np.load(shards / "a.npy"), np.load(shards / "a.npy")[::-1]])
    np.save("both.npy", passes)
    np.save("turned.npy", passes[1])
    assert call("both.npy", "--members", "0", "--out", "1.csv").exit_code == 0
    assert (
        call("a.npy", "turned.npy", "--members", "files", "--strategy", "bald", "--out", "2.csv").exit_code
        == 0
    )
    found = [
        [line.split(",")[1] for line in (shards / n).read_text().splitlines()[1:]] for n in ("1.csv", "2.csv")
    ]
    assert found[0] == found[1] == [str(one) for one in score_ensemble(passes, "bald")]


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
