"""Run folders that were changed, torn, moved or filled: one line that names the file, nothing lost, still resumable."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest

from prunefuse.errors import ConfigError, DamagedFileError, RunError, RunFolderError
from prunefuse.experiment import folder
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.extrapolate import ExtrapolateConfig
from prunefuse.experiment.extrapolate import resume as resume_extrapolate
from prunefuse.experiment.extrapolate._run import ExtrapolateRun
from prunefuse.experiment.records import Phase
from prunefuse.experiment.report import report
from prunefuse.experiment.run import LoopRun, resume
from prunefuse.training import Recipe

RECIPE = Recipe(epochs=3, batch_size=32, lr=0.05, schedule="one-cycle")
SHARED = {"model": "mlp", "recipe": RECIPE, "seeds": (0,), "threads": 1, "device": "cpu", "jobs": 1}
LOOP = RunConfig(**SHARED, schedule=("20", "30", "45"), baselines=("random",), checkpoint_seconds=0.0)
EXTRAPOLATE = ExtrapolateConfig(**SHARED, score="el2n", keep=("10%",), checkpoint_seconds=0.0)
RESUME = {"run": resume, "extrapolate": resume_extrapolate}


def carried_out(experiment, path, stop):
    """A run in this process until ``stop(task, event)``, with its folder as a kill would leave it."""
    experiment.path = folder.make(str(path), "digits", "mlp")
    folder.begin(path, experiment.describe("prunefuse ..."))

    def listener(task):
        def told(event):
            if stop(task, event):
                raise KeyboardInterrupt

        return told

    def all_tasks():
        for task in experiment.tasks():
            experiment.do(task.name, listener(task))

    with pytest.raises(KeyboardInterrupt):
        all_tasks()
    return path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Runs stopped within the training of a final network, with tables, and a step and a checkpoint in progress."""

    def late(task, event):
        at = getattr(event, "round", 0) == 1 and getattr(event, "network", "") == "final"
        return ("random" in task.name or at) and getattr(event, "epoch", 0) == 2

    def in_final(task, event):
        return "keep" in task.name and getattr(event, "epoch", 0) == 2

    runs = tmp_path_factory.mktemp("stopped")
    loop = carried_out(LoopRun(LOOP), runs / "run", late)
    folder.write_tables(loop, folder.read(loop).trials, "formula")
    return {
        "run": loop,
        "extrapolate": carried_out(ExtrapolateRun(EXTRAPOLATE), runs / "extrapolate", in_final),
    }


def copied(path, to):
    shutil.copytree(path, to)
    return to


def weights(path):
    return {one.relative_to(path): one.read_bytes() for one in path.rglob("final.safetensors")}


# What a run has done until it was stopped, every kind of file.
FILES = {
    "run": [
        *("config.json", "manifest.json", "metrics.csv", "epochs.csv", "ledger.json"),
        *("prunefuse/seed0/manifest.json", "prunefuse/seed0/state.json", "prunefuse/seed0/state.safetensors"),
        *("prunefuse/seed0/picks.csv", "prunefuse/seed0/plan.json", "prunefuse/seed0/selector.safetensors"),
        *("prunefuse/seed0/final.safetensors", "prunefuse/seed0/.steps/1/label/done.json"),
        "prunefuse/seed0/.steps/1/train_selector/done.json",
        "prunefuse/seed0/.steps/1/train_selector/weights.safetensors",
        "prunefuse/seed0/.steps/1/train_final/checkpoint.safetensors",
    ],
    "extrapolate": [
        *("config.json", "manifest.json", "seed0/subset/done.json", "seed0/subset/scores.csv"),
        *(
            "seed0/subset/network.safetensors",
            "seed0/embeddings/embeddings.npy",
            "seed0/embeddings/done.json",
        ),
        *(
            "seed0/by-knn/scores.csv",
            "seed0/by-knn/done.json",
            "seed0/by-knn/keep-143/checkpoint.safetensors",
        ),
    ],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in FILES for name in FILES[kind]])
def test_a_changed_file_is_named_and_put_back_all_goes_on(tmp_path, stopped, kind, name):
    path = copied(stopped[kind], tmp_path / "run")
    content = (path / name).read_bytes()
    middle = len(content) // 2
    changed = bytearray(content)
    for place in range(middle, min(middle + 1000, len(content))):
        changed[place] ^= 1
    (path / name).write_bytes(changed)
    before = {one: one.read_bytes() for one in path.rglob("*") if one.is_file()}
    with pytest.raises((DamagedFileError, RunFolderError, RunError), match=name) as error:
        RESUME[kind](path, quiet=True)
    assert "\n" not in str(error.value)
    assert {one: one.read_bytes() for one in before if one.exists()} == before
    (path / name).write_bytes(content)
    assert RESUME[kind](path, quiet=True) == path


@pytest.mark.parametrize("kind", FILES)
def test_a_report_of_a_changed_folder_names_the_file(tmp_path, stopped, kind):
    read = {"run": ["config.json", "manifest.json", "metrics.csv", "prunefuse/seed0/state.json"]}
    read["extrapolate"] = ["config.json", "manifest.json", "seed0/subset/done.json"]
    for number, name in enumerate(read[kind]):
        path = copied(stopped[kind], tmp_path / str(number))
        assert report([path]).is_file()
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[:-20] + b"x" * 20)
        with pytest.raises((RunFolderError, DamagedFileError), match=name.replace(".", r"\.")):
            report([path])


@pytest.mark.parametrize("kind", FILES)
def test_a_changed_configuration_is_shown(tmp_path, stopped, kind):
    path = copied(stopped[kind], tmp_path / "run")
    facts = json.loads((path / "config.json").read_text())
    facts["config"]["recipe"]["epochs"] = 30
    facts["config"]["model"] = "resnet8"
    (path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(RunFolderError, match="model was 'mlp' and now is 'resnet8'") as error:
        RESUME[kind](path, quiet=True)
    assert "'epochs': 30" in str(error.value)


def test_a_table_that_is_gone_is_written_again(tmp_path, stopped):
    path = copied(stopped["run"], tmp_path / "run")
    (path / "metrics.csv").unlink()
    (path / "ledger.json").unlink()
    assert report([path]).is_file()
    resume(path, quiet=True)
    assert (path / "metrics.csv").is_file()
    assert (path / "ledger.json").is_file()


def test_a_run_that_went_on_is_the_run_that_was_never_stopped(tmp_path, stopped):
    whole = LoopRun(LOOP)
    whole.path = folder.make(str(tmp_path / "whole"), "digits", "mlp")
    for task in whole.tasks():
        whole.do(task.name, lambda event: None)
    gone_on = copied(stopped["run"], tmp_path / "run")
    resume(gone_on, quiet=True)
    assert len(weights(whole.path)) == 2
    assert weights(gone_on) == weights(whole.path)


def test_a_folder_of_a_kill_before_the_configuration_is_used_again(tmp_path):
    def at_once(task, event):
        return isinstance(event, Phase)

    left = tmp_path / "left"
    left.mkdir()
    (left / ".lock").write_text('{"pid": 1, "host": "x"}')
    (left / ".config.json.0123456789abcdef.new").write_text("{")
    (left / "..config.json.0123456789abcdef.new.01234567.tmp").write_text("{")
    carried_out(LoopRun(LOOP), left, at_once)
    assert (left / "config.json").is_file()
    with pytest.raises(ConfigError, match=r"--resume .* goes on with the run in it"):
        folder.make(str(left), "digits", "mlp")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.toml").write_text("")
    with pytest.raises(ConfigError, match="out must be a folder that does not exist yet"):
        folder.make(str(tmp_path / "mine"), "digits", "mlp")


@pytest.mark.parametrize("kind", FILES)
def test_a_folder_of_format_1_can_be_reported_and_not_resumed(tmp_path, stopped, kind):
    path = copied(stopped[kind], tmp_path / "run")
    for file in path.rglob("manifest.json"):
        file.unlink()
    facts = json.loads((path / "config.json").read_text()) | {"format": 1}
    (path / "config.json").write_text(json.dumps(facts))
    assert report([path]).is_file()
    with pytest.raises(RunFolderError, match="was written before runs could go on"):
        RESUME[kind](path, quiet=True)


FULL = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = ["prunefuse", *sys.argv[2:]]
runpy.run_module("prunefuse.cli", run_name="__main__")
"""


@pytest.mark.parametrize("kind", FILES)
def test_a_disk_that_is_full_is_one_line_and_the_run_goes_on_later(tmp_path, stopped, kind):
    """By a limit on the size of files, which ends in the same kind of error."""
    path = copied(stopped[kind], tmp_path / "run")
    command = [sys.executable, "-c", FULL, "30000", kind, "--resume", str(path), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("Error: ")
    assert "File too large" in done.stderr
    assert str(path) in done.stderr
    assert done.stderr.count("\n") == 1
    assert RESUME[kind](path, quiet=True) == path
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
