"""Runs of score extrapolation that are stopped: what is done is kept, and the rest comes out the same."""

from __future__ import annotations

import json

import pytest
from extrapolate_runs import config, small_digits

from prunefuse import data as datasets
from prunefuse.errors import ConfigError, RunError, RunFolderError
from prunefuse.experiment import folder
from prunefuse.experiment.extrapolate import resume, run
from prunefuse.experiment.extrapolate._run import ExtrapolateRun
from prunefuse.experiment.extrapolate.record import read
from prunefuse.experiment.records import Epoch, Progress
from prunefuse.experiment.report import report
from prunefuse.training import Recipe

OPTIONS = {"by": ("knn", "direct"), "compare": ("full", "random"), "prune_ratio": 0.5, "fuse": True}


@pytest.fixture(autouse=True)
def data(monkeypatch):
    return small_digits(monkeypatch)


def results(out):
    """Every file of the steps, but for the seconds in done.json."""
    found = {}
    for path in (out / "seed0").rglob("*"):
        if path.name == "done.json":
            done = json.loads(path.read_text())
            for line in done["spent"]:
                del line["seconds"]
            del done["sha256"]  # of the seconds too
            found[path.relative_to(out)] = done
        elif path.is_file():
            found[path.relative_to(out)] = path.read_bytes()
    return found


def carried_out(path, interrupt=lambda task, event: None):
    """Do what is left of the steps of a run, in this process, with someone who may stop it at an event."""
    experiment = ExtrapolateRun(config(path, **OPTIONS))
    experiment.path = path
    if not path.exists():
        folder.make(str(path), "digits", "mlp")
        folder.begin(path, experiment.describe(None))
    for task in experiment.tasks():
        if not experiment.is_done(task):
            experiment.do(task.name, lambda event, task=task: interrupt(task, event))


def test_a_stop_within_every_step_changes_nothing(tmp_path):
    """At the first epoch or batch of each, and at the start of the test, when a training is done."""
    whole = run(config(tmp_path / "whole", **OPTIONS), quiet=True)
    begun = []

    def stops_once(task, event):
        at = (task.name, type(event).__name__, getattr(event, "phase", ""))
        if (isinstance(event, Epoch | Progress) or at[2] == "evaluate") and at not in begun:
            begun.append(at)
            raise KeyboardInterrupt

    out, stops = tmp_path / "stopped", 0
    while True:
        try:
            carried_out(out, stops_once)
            break
        except KeyboardInterrupt:
            stops += 1
            # The report can be drawn of what is there.
            assert "is not finished" in report([out]).read_text()
    # Two in each of six trainings (full, subset, four final networks), one in each pass over all samples.
    assert stops == 6 * 2 + 2
    assert resume(out, quiet=True) == out
    assert results(out) == results(whole)
    assert read(out).config["finished"] is not None


def test_what_is_done_is_not_done_again(tmp_path):
    def stops_at_the_end(task, event):
        if "keep" in task.name:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        carried_out(out, stops_at_the_end)
    kept = {path: path.stat().st_mtime_ns for path in (out / "seed0").rglob("done.json")}
    assert len(kept) == 6  # all but the final networks
    resume(out, quiet=True)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert len(list((out / "seed0").rglob("done.json"))) == len(kept) + 4


def test_a_training_that_diverges_is_an_error_of_the_run(tmp_path):
    wild = Recipe(epochs=2, batch_size=32, lr=1e30, schedule="one-cycle")
    with pytest.raises(RunError, match=f"loss became .*What is done is in {tmp_path / 'run'}"):
        run(config(tmp_path / "run", recipe=wild), quiet=True)


def test_only_the_folder_of_such_a_run_can_be_resumed(tmp_path):
    with pytest.raises(RunFolderError, match=r"has no config\.json"):
        resume(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 1, "kind": "run"}')
    with pytest.raises(RunFolderError, match="not a folder of prunefuse extrapolate"):
        resume(tmp_path)


def test_data_that_changed_are_noticed(tmp_path, monkeypatch, data):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        carried_out(out, interrupted)
    monkeypatch.setattr(data.test, "labels", data.test.labels[:90])
    monkeypatch.setattr(data.test, "images", data.test.images[:90])
    monkeypatch.setattr(datasets, "load", lambda *_, **__: data)
    with pytest.raises(ConfigError, match="data: its test was 100 when the run began, and now is 90"):
        resume(out)


def test_data_of_the_same_size_that_changed_are_noticed(tmp_path, monkeypatch, data):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        carried_out(out, interrupted)
    images = data.pool.images.clone()
    images[17, 0, 3, 3] += 1
    monkeypatch.setattr(data.pool, "images", images)
    with pytest.raises(
        ConfigError, match=r"data: pool: its images had the hash .* when the run began, and now"
    ):
        resume(out)


def interrupted(task, event):
    raise KeyboardInterrupt
