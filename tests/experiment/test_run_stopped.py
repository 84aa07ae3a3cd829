"""Runs that are killed or interrupted: what is on the disk is whole."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from prunefuse.experiment.folder import read
from prunefuse.experiment.report import report
from prunefuse.pruning import PruningPlan

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


def start(out):
    """A run with a great many short rounds; its progress comes line by line on standard error."""
    options = "--jobs 1 --model mlp --initial 20 --budget 800 --rounds 700 --epochs 1 --min-steps 0 --seeds 1 --device cpu"
    command = [sys.executable, "-m", "prunefuse.cli", "run", *options.split(), "--out", str(out)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # What a shell runs in the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process, text):
    """Read its progress up to a line with ``text``; returns all lines read."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError("".join(lines))


def parse(path):
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
        if path.name == "plan.json":
            PruningPlan.load(path)
    elif path.suffix == ".csv":
        table = list(csv.reader(path.read_text(encoding="utf-8").splitlines(keepends=True)))
        assert all(len(row) == len(table[0]) for row in table)
        assert path.read_text(encoding="utf-8").endswith("\n")
    elif path.suffix == ".safetensors":
        assert load_file(path)
    else:
        assert path.read_text(encoding="utf-8").endswith("</html>\n")


def test_every_file_of_a_killed_run_is_whole(tmp_path):
    process = start(tmp_path / "run")
    wait_for(process, "round 8/")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    found = [
        path for path in (tmp_path / "run").rglob("*") if path.is_file() and not path.name.startswith(".")
    ]
    for path in found:
        parse(path)
    assert {"config.json", "metrics.csv", "epochs.csv", "ledger.json", "picks.csv"} <= {
        path.name for path in found
    }
    # The line is printed when a round is done, before it is written: all rounds before it are there.
    [trial] = read(tmp_path / "run").trials
    assert len(trial.rounds) >= 7
    drawn = report([tmp_path / "run"]).read_text(encoding="utf-8")
    assert "is not finished" in drawn


def test_ctrl_c_says_where_the_rounds_are_and_draws_them(tmp_path):
    process = start(tmp_path / "run")
    wait_for(process, "round 3/")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert str(tmp_path / "run") in errors.replace("\n", "")
    assert "Stopped" in errors
    assert "is not finished" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
