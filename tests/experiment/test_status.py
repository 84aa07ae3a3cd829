"""``prunefuse status`` of runs that were stopped or are finished; of one that goes on, see test_kills.py."""

from __future__ import annotations

import pytest
from extrapolate_runs import config, small_digits
from typer.testing import CliRunner

from prunefuse.cli.app import app
from prunefuse.experiment import folder
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.extrapolate import run as extrapolate
from prunefuse.experiment.records import Round
from prunefuse.experiment.run import LoopRun, resume
from prunefuse.training import Recipe


def status(path):
    result = CliRunner().invoke(app, ["status", str(path)])
    return result.exit_code, result.output


def test_a_stopped_run_and_what_it_is_when_finished(tmp_path):
    recipe = Recipe(epochs=2, batch_size=32, lr=0.05, schedule="one-cycle")
    settings = RunConfig(
        model="mlp",
        schedule=("20", "30"),
        recipe=recipe,
        seeds=(0,),
        baselines=("random",),
        jobs=1,
        device="cpu",
    )
    path = folder.make(str(tmp_path / "run"), "digits", "mlp")
    experiment = LoopRun(settings)
    experiment.path = path
    folder.begin(path, experiment.describe(None))

    def stop(event):
        if isinstance(event, Round):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.do("prunefuse/seed0", stop)
    code, text = status(path)
    assert code == 0
    assert f"was stopped. To go on: prunefuse run --resume {path}" in text.replace("\n", "")
    assert "1 of 4 rounds are done (prunefuse, seed 0: 1; random, seed 0: 0)" in text
    assert "train selector" in text
    resume(path, quiet=True)
    code, text = status(path)
    assert "is finished" in text
    assert "4 of 4 rounds are done" in text


def test_steps_of_extrapolation_are_counted(tmp_path, monkeypatch):
    small_digits(monkeypatch)
    code, text = status(extrapolate(config(tmp_path / "run"), quiet=True))
    assert code == 0
    assert "4 steps are done" in text
    assert "train F_s" in text


def test_what_is_no_run_folder_is_one_line(tmp_path):
    code, text = status(tmp_path)
    assert code == 2
    assert text.replace("\n", "") == f"Error: {tmp_path} is not a run folder: it has no config.json"
