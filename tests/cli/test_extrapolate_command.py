"""``prunefuse extrapolate`` from the outside."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prunefuse.cli.app import app
from prunefuse.experiment.extrapolate._run import ExtrapolateInterrupted

TINY = (
    "extrapolate --model mlp --score el2n --epochs 2 --min-steps 0 --batch-size 64 --device cpu --threads 1"
)


def call(line, *more):
    return CliRunner().invoke(app, [*shlex.split(line), *map(str, more)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "one"
    return call(
        TINY, "--compare", "full,random", "--by", "knn, direct", "--keep", "10%,40%", "--out", out
    ), out


def test_a_run_prints_accuracy_cost_agreement_and_where_the_samples_are(finished):
    result, out = finished
    assert result.exit_code == 0, result.output
    for text in ("143 of 1,437 samples kept", "574 of 1,437 samples kept", "scored by F_s directly"):
        assert text in result.output
    for text in ("find neighbors", "train on all samples", "FLOP", "unscored", "held out"):
        assert text in result.output
    assert f"Kept samples: {out / 'seed0/by-direct/keep-143/kept.csv'}" in result.output
    assert f"Report: {out / 'report.html'}" in result.output
    with (out / "seed0/by-knn/keep-143/kept.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 143


def test_the_options_are_the_configuration(finished):
    stored = json.loads((finished[1] / "config.json").read_text())
    config = stored["config"]
    assert (config["by"], config["keep"], config["compare"]) == (
        ["knn", "direct"],
        ["10%", "40%"],
        ["full", "random"],
    )
    assert (config["recipe"]["epochs"], config["recipe"]["batch_size"]) == (2, 64)
    assert (config["seeds"], stored["keeps"], stored["subset"]) == ([0], [143, 574], 287)


def test_resuming_and_reporting_again(finished, tmp_path):
    out = finished[1]
    result = call("extrapolate --quiet --resume", out)
    assert (result.exit_code, result.output) == (0, f"{out}\n")
    before = (out / "report.html").read_text()
    (out / "report.html").unlink()
    assert call("report", out).output == f"Report: {out / 'report.html'}\n"
    assert (out / "report.html").read_text() == before
    assert call("report", out, "--out", tmp_path / "elsewhere.html").exit_code == 0
    assert (tmp_path / "elsewhere.html").read_text() == before
    several = call("report", out, out)
    assert several.exit_code == 2
    assert "whose reports are of one run" in several.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--by magic", "by must be any of knn"),
        ("--keep most", "keep must be a number of samples"),
        ("--subset 0.1%", "subset must be at least 10 samples"),
        ("--recipe best", "recipe must be one of cifar, digits"),
        ("--lr -1", "lr must be a positive number"),
        ("--score du --epochs 5", "epochs must be at least 11 for the score du"),
        ("--resume somewhere", "resume goes on with the options of the run: leave out model"),
        ("--seeds 0", "seeds must be one or more"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(f"{TINY} {options}")
    assert result.exit_code == 2
    assert result.output.startswith("Error: ")
    assert message in result.output
    assert result.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_data_say_what_to_do(tmp_path):
    result = call(f"{TINY} --data places365", "--root", tmp_path)
    assert result.exit_code == 1
    assert "places365 was not found" in result.output


def test_ctrl_c_says_how_to_go_on(monkeypatch):
    def interrupted(*_, **__):
        raise ExtrapolateInterrupted(Path("runs/x"))

    monkeypatch.setattr("prunefuse.experiment.extrapolate.run", interrupted)
    result = call("extrapolate")
    assert (result.exit_code, result.output) == (
        130,
        "Stopped. To go on: prunefuse extrapolate --resume runs/x\n",
    )


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_run_that_is_killed_is_taken_up_again(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "prunefuse.cli", *shlex.split(TINY), "--out", str(out)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stderr:
            if "subset" in line:
                break
        process.send_signal(signal.SIGKILL)
    done = out / "seed0/subset/done.json"
    before = done.read_bytes()
    assert not (out / "report.html").exists()
    result = call("extrapolate --resume", out)
    assert result.exit_code == 0, result.output
    assert done.read_bytes() == before
    assert "done before" in result.output
    whole = call(TINY, "--out", tmp_path / "whole")
    assert whole.exit_code == 0
    for name in ("by-knn/scores.csv", "by-knn/keep-718/kept.csv", "by-knn/keep-718/final.safetensors"):
        assert (out / "seed0" / name).read_bytes() == (tmp_path / "whole/seed0" / name).read_bytes()
