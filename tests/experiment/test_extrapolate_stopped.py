"""Runs of score extrapolation that are stopped: what is done is kept, and the rest comes out the same."""

from __future__ import annotations

import json

import pytest
from extrapolate_runs import KEEP, config, small_digits

from prunefuse import _files as files
from prunefuse import data as datasets
from prunefuse.experiment.budgets import ConfigError
from prunefuse.experiment.extrapolate import resume, run
from prunefuse.experiment.extrapolate._run import ExtrapolateInterrupted
from prunefuse.experiment.extrapolate.progress import StepProgress
from prunefuse.experiment.extrapolate.record import read
from prunefuse.experiment.folder import RunError, RunFolderError
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
            found[path.relative_to(out)] = done
        elif path.is_file():
            found[path.relative_to(out)] = path.read_bytes()
    return found


def until_done(path):
    """How often the run is stopped until it is finished; then its folder is asked once more."""
    stops = 0
    while True:
        try:
            return stops, resume(path, quiet=True)
        except ExtrapolateInterrupted:
            stops += 1


def test_a_kill_at_the_end_of_every_step_changes_nothing(tmp_path, monkeypatch):
    whole = run(config(tmp_path / "whole", **OPTIONS), quiet=True)
    write, refused = files.write_json, []

    def dies_first(path, value):
        if path.name == "done.json" and path not in refused:
            refused.append(path)
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(files, "write_json", dies_first)
    with pytest.raises(ExtrapolateInterrupted) as stopped:
        run(config(tmp_path / "stopped", **OPTIONS), quiet=True)
    assert stopped.value.folder == tmp_path / "stopped"
    assert read(tmp_path / "stopped").config["finished"] is None
    # The report can be drawn of what is there.
    assert "is not finished" in report([tmp_path / "stopped"]).read_text()
    (tmp_path / "stopped" / "report.html").unlink()
    stops, out = until_done(tmp_path / "stopped")
    assert 1 + stops == len(refused) == len([name for name in results(whole) if name.name == "done.json"])
    assert results(out) == results(whole)
    assert read(out).config["finished"] is not None


def test_a_kill_within_every_step_changes_nothing(tmp_path, monkeypatch):
    """In the middle of training, and of the passes over all samples."""
    whole = run(config(tmp_path / "whole", **OPTIONS), quiet=True)
    begun = []

    def dies_first(self, done, total, what):
        if self._name not in begun:
            begun.append(self._name)
            raise KeyboardInterrupt

    monkeypatch.setattr(StepProgress, "update", dies_first)
    with pytest.raises(ExtrapolateInterrupted):
        run(config(tmp_path / "stopped", **OPTIONS), quiet=True)
    stops, out = until_done(tmp_path / "stopped")
    # Full, subset, embeddings, answers, and four final networks.
    assert 1 + stops == 8
    assert results(out) == results(whole)


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    out = run(config(tmp_path / "run"), quiet=True)
    (out / f"seed0/by-knn/keep-{KEEP}/done.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "seed0").rglob("done.json")}
    resume(out, quiet=True)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert len(list((out / "seed0").rglob("done.json"))) == len(kept) + 1


def test_a_training_that_diverges_is_an_error_of_the_run(tmp_path):
    wild = Recipe(epochs=2, batch_size=32, lr=1e30, schedule="one-cycle")
    with pytest.raises(RunError, match=f"loss became .*What is done is in {tmp_path / 'run'}"):
        run(config(tmp_path / "run", recipe=wild), quiet=True)


def test_only_the_folder_of_such_a_run_can_be_resumed(tmp_path):
    with pytest.raises(RunFolderError, match=r"has no config\.json"):
        resume(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 1}')
    with pytest.raises(RunFolderError, match="not a folder of prunefuse extrapolate"):
        resume(tmp_path)


def test_data_that_changed_are_noticed(tmp_path, monkeypatch, data):
    out = run(config(tmp_path / "run"), quiet=True)
    monkeypatch.setattr(data.test, "labels", data.test.labels[:90])
    monkeypatch.setattr(data.test, "images", data.test.images[:90])
    monkeypatch.setattr(datasets, "load", lambda *_, **__: data)
    with pytest.raises(ConfigError, match="data: its test was 100 when the run began, and now is 90"):
        resume(out)
