"""The command `prunefuse study`, with real files."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from prunefuse.cli.app import app
from prunefuse.experiment.study.config import built_in, text_of

TINY = """
title = "Tiny"
seeds = [0]
against = ["dense"]
[options]
data = "digits"
model = "mlp"
schedule = ["20", "40"]
strategy = "margin"
threads = 1
device = "cpu"
baselines = ["dense"]
recipe = {epochs = 1, min_steps = 0, batch_size = 16, lr = 0.05, schedule = "one-cycle"}
[grid]
prune_ratio = [0.5]
"""


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    return lambda *words: CliRunner().invoke(app, ["study", *words])


def test_studies_are_listed_one_line_each(called) -> None:
    lines = called("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(built_in())
    wanted = {
        "figure3",
        "figure4",
        "figure5",
        "budgets",
        "tsync",
        "ablation",
        "ratios",
        "time-to-accuracy",
        "variants",
        "imbalance",
    }
    assert wanted | {"extrapolation"} <= set(built_in())


def test_a_study_is_printed_or_copied(called) -> None:
    assert called("list", "ablation").stdout == text_of("ablation")
    assert called("list", "ablation", "--copy", "mine.toml").exit_code == 0
    assert Path("mine.toml").read_text() == text_of("ablation")
    again = called("list", "ablation", "--copy", "mine.toml")
    assert (again.exit_code, again.stderr) == (2, "Error: copy must be a new file, got mine.toml\n")
    assert called("list", "--copy", "all.toml").exit_code == 2


def test_a_file_is_run_reported_and_gone_on_with(called) -> None:
    dry = called("run", "tiny.toml", "--jobs", "1", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "2 runs, 2 trials to do" in dry.stdout
    assert not Path("studies").exists()
    result = called("run", "tiny.toml", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert "Report: studies/tiny/report.html" in result.stdout
    assert "prunefuse  dense" in result.stdout
    Path("studies/tiny/report.md").unlink()
    assert called("report", "studies/tiny").stdout == "Report: studies/tiny/report.html\n"
    assert "| prunefuse | dense | 40 |" in Path("studies/tiny/report.md").read_text()
    more = called("run", "tiny.toml", "--jobs", "1", "--seeds", "2", "--set", "prune_ratio=[0.5, 0.7]", "-q")
    assert more.stdout == "studies/tiny\n"
    assert called(
        "run", "tiny.toml", "--set", "prune_ratio=[0.5, 0.7]", "--seeds", "2", "--dry-run"
    ).stdout.startswith("3 runs, 0 trials to do")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("run", "tiny"), 2, "Error: study must be a file, or one of"),
        (("run", "tiny.toml", "--set", "epoch=3"), 2, "did you mean 'epochs'?"),
        (("run", "tiny.toml", "--set", "data=digit"), 2, "data must be one of"),
        (
            ("run", "tiny.toml", "--out", "tiny.toml"),
            2,
            "out must be a new folder or that of a study, got tiny.toml",
        ),
        (("run", "tiny.toml", "--set", "image_size=3"), 2, "image_size must be a divisor of 8"),
        (("report", "nowhere"), 2, "nowhere is not a run folder"),
        (("list", "nothing"), 2, "study must be a file"),
    ],
)
def test_errors_are_one_line(called, words: tuple[str, ...], code: int, message: str) -> None:
    result = called(*words)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not Path("studies").exists()
