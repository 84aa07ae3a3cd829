"""Those who are told of a run: a user's listener, the examples of docs/listeners.md, and TensorBoard."""

from __future__ import annotations

import json
import re
import sys
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from peer_packages import skip_without

from prunefuse._options import changed
from prunefuse.errors import ConfigError, ExtrapolateInterrupted, RunError, RunInterrupted
from prunefuse.experiment import extrapolate
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.extrapolate import ExtrapolateConfig
from prunefuse.experiment.folder import read
from prunefuse.experiment.run import resume, run
from prunefuse.training import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "listeners.md"
TINY = RunConfig(
    model="mlp",
    schedule=("20", "30", "40"),
    recipe=Recipe(epochs=3, batch_size=16, lr=0.05),
    baselines=("random",),
    seeds=(0,),
    threads=1,
    jobs=1,
    device="cpu",
    checkpoint_seconds=0.0,
)
# Keeps what it hears beside itself, and does what a test asks for at one of the events.
LISTENER = """
from pathlib import Path
from prunefuse.experiment.records import *

HERE = Path(__file__).parent


def start(folder):
    assert (folder / "config.json").is_file()
    (HERE / "began").open("a").write("once\\n")

    def heard(task, event):
        with (HERE / "heard").open("a") as file:
            where = (event.round, event.network, event.epoch) if isinstance(event, Epoch) else ""
            where = event.index if isinstance(event, Round) else where
            print(task, type(event).__name__, where, file=file)
        if task.endswith(AT_TASK) and isinstance(event, AT):
            if (where[:2] == (1, "final") and where[2] == 2) if AT is Epoch else where == 1:
                if not (HERE / "done").exists():
                    (HERE / "done").touch()
                    raise ERROR

    return heard
"""


def listener(folder, error="ValueError('no\\nnetwork')", at="Round", task="prunefuse/seed0"):
    path = folder / "mine.py"
    path.write_text(LISTENER.replace("AT_TASK", repr(task)).replace("AT", at).replace("ERROR", error))
    return f"{path}:start"


def heard(folder):
    return (folder / "heard").read_text().splitlines()


def test_it_hears_every_event_once_in_order_with_one_process_and_with_two(tmp_path):
    told = {}
    for jobs in (1, 2):
        place = tmp_path / str(jobs)
        place.mkdir()
        config = replace(TINY, listener=listener(place, task="nobody"), jobs=jobs, out=str(place / "run"))
        run(config, quiet=True)
        assert (place / "began").read_text() == "once\n"
        by_task = {}
        for line in heard(place):
            task, _, event = line.partition(" ")
            if "Progress" not in event:  # come now and then
                by_task.setdefault(task, []).append(event)
        told[jobs] = by_task
    assert told[1] == told[2]
    [epochs] = {sum(event.startswith("Epoch") for event in told[1][f"{arm}/seed0"]) for arm in ("prunefuse",)}
    rounds = read(tmp_path / "1" / "run").trials[0].rounds
    assert epochs == sum(len(done.epochs) for done in rounds)
    assert [event for event in told[1]["prunefuse/seed0"] if event.startswith("Round")] == [
        f"Round {index}" for index in range(3)
    ]


@pytest.mark.parametrize("quiet", [True, False])
def test_a_run_is_not_lost_for_a_listener_that_fails(tmp_path, capsys, quiet):
    run(replace(TINY, listener=listener(tmp_path), out=str(tmp_path / "run")), quiet=quiet)
    assert [len(trial.rounds) for trial in read(tmp_path / "run").trials] == [3, 3]
    said = capsys.readouterr().err.splitlines()
    assert said.count("listener is switched off, as it failed: ValueError: no network") == 1
    assert heard(tmp_path)[-1] == "prunefuse/seed0 Round 1"


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (None, "start", "listener must be a function that can be loaded, got .*No such file"),
        ("import not_there", "start", "listener must be .*No module named 'not_there'"),
        ("def start(:", "start", "listener must be .*invalid syntax"),
        ("start = 3", "start", "listener must name a function of .*mine.py, got 'start'"),
        ("def start(folder): ...", "begin", "listener must name a function of .*mine.py, got 'begin'"),
    ],
)
def test_a_listener_that_cannot_be_loaded_is_an_error_before_any_work(tmp_path, code, name, message):
    if code is not None:
        (tmp_path / "mine.py").write_text(code)
    place = f"{tmp_path / 'mine.py'}:{name}"
    with pytest.raises(ConfigError, match=message):
        run(replace(TINY, listener=place, data="folder:/nowhere", out=str(tmp_path / "run")), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["mine.py", "mine.py:", ":start", ""])
def test_a_listener_is_a_place(place):
    with pytest.raises(ConfigError, match=r"listener must be FILE\.py:FUNCTION or MODULE:FUNCTION, got"):
        replace(TINY, listener=place)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def start(folder): raise OSError('no\\nnetwork')", "listener .*:start failed: OSError: no network"),
        ("def start(folder): ...", r"listener .* must return a function of \(task, event\), got NoneType"),
    ],
)
def test_a_listener_that_fails_to_begin_ends_the_run_before_it_trains(tmp_path, code, message):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(RunError, match=message):
        run(replace(TINY, listener=f"{tmp_path}/mine.py:start", out=str(tmp_path / "run")), quiet=True)
    assert not (tmp_path / "run" / "prunefuse").exists()
    (tmp_path / "mine.py").write_text("def start(folder): return lambda task, event: None")
    assert len(read(resume(tmp_path / "run", quiet=True)).trials) == 2


def test_a_listener_may_be_a_class_in_a_file_with_the_name_of_a_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", module := StandIn("wandb"))
    (tmp_path / "wandb.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom pathlib import Path\nimport wandb\n"
        "@dataclass\nclass Start:\n    folder: Path\n    def __call__(self, task, event): wandb.log(task)\n"
    )
    config = replace(TINY, baselines=(), listener=f"{tmp_path}/wandb.py:Start")
    run(replace(config, out=str(tmp_path / "run")), quiet=True)
    assert module.calls[0] == ("log", ("prunefuse/seed0",), {})


def examples():
    text = PAGE.read_text(encoding="utf-8")
    return {
        re.search("^import (wandb|mlflow)", code, re.M)[1]: code
        for code in re.findall("```python\n(.*?)```", text, re.S)
    }


class StandIn(types.ModuleType):
    """A module that keeps the calls of its functions, and of the run that one of them gives."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments, **named):
            self.calls.append((name, arguments, named))
            return (
                types.SimpleNamespace(
                    log=self.log, define_metric=self.define_metric, info=types.SimpleNamespace(run_id="abc")
                )
                if name in ("init", "start_run")
                else None
            )

        return call


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_the_examples_of_the_page(tmp_path, monkeypatch, package):
    module = StandIn(package)
    monkeypatch.setitem(sys.modules, package, module)
    (tmp_path / "tracking.py").write_text(examples()[package])
    config = replace(TINY, listener=f"{tmp_path}/tracking.py:start", out=str(tmp_path / "digits"))
    run(config, quiet=True)
    by_name = {}
    for name, arguments, named in module.calls:
        by_name.setdefault(name, []).append((arguments, named))
    trials = {f"{trial.arm}/seed{trial.seed}": trial.rounds for trial in read(tmp_path / "digits").trials}
    accuracies = {(task, r.labels): r.final_accuracy for task, rounds in trials.items() for r in rounds}
    losses = {
        (f"{task}/round{e.round}/{e.network}", e.epoch): e.loss
        for task, rounds in trials.items()
        for r in rounds
        for e in r.epochs
    }
    assert len(accuracies) == 6
    found_accuracies, found_losses = {}, {}
    if package == "wandb":
        [(_, named)] = by_name["init"]
        assert (named["id"], named["resume"], named["config"]["model"]) == ("digits", "allow", "mlp")
        defined = {arguments[0]: named["step_metric"] for arguments, named in by_name["define_metric"]}
        for (values,), _ in by_name["log"]:
            task = next(iter(values)).rpartition("/")[0]
            if f"{task}/labels" in values:
                found_accuracies[task, values[f"{task}/labels"]] = values[f"{task}/final_accuracy"]
                assert defined[f"{task}/final_accuracy"] == f"{task}/labels"
            else:
                found_losses[task, values[f"{task}/epoch"]] = values[f"{task}/loss"]
                assert defined[f"{task}/*"] == f"{task}/epoch"
    else:
        assert by_name["start_run"] == [((), {"run_name": "digits"})]
        [((parameters,), _)] = by_name["log_params"]
        assert parameters["model"] == "mlp"
        for (values,), named in by_name["log_metrics"]:
            [(name, value)] = values.items()
            task, _, kind = name.rpartition("/")
            (found_losses if kind == "loss" else found_accuracies)[task, named["step"]] = value
        module.calls.clear()
        namespace = {}
        exec(examples()[package], namespace)
        namespace["start"](tmp_path / "digits")
        assert module.calls == [("start_run", (), {"run_id": "abc"})]
    assert found_accuracies == accuracies
    assert found_losses == losses


def points(folder):
    """Every point that is in a file, how often: (run, tag, step, value)."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = Counter()
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                place = path.parent.relative_to(folder).as_posix()
                found[place, value.tag, event.step, round(value.simple_value, 4)] += 1
    return found


def expected(path):
    """The points that the rounds of a run have."""
    found = set()
    for trial in read(path).trials:
        task = f"{trial.arm}/seed{trial.seed}"
        for done in trial.rounds:
            for name in ("final", "selector"):
                if (value := getattr(done, f"{name}_accuracy")) is not None:
                    found.add((task, f"accuracy/{name}", done.labels, round(value, 4)))
            for epoch in done.epochs:
                for name in ("loss", "lr", "train_accuracy", "test_accuracy"):
                    if (value := getattr(epoch, name)) is not None:
                        place = f"{task}/round{epoch.round}", f"{epoch.network}/{name}", epoch.epoch
                        found.add((*place, round(value, 4)))
    return found


def without_costs(found):
    assert set(found.values()) == {1}, "points that are there twice"
    costs = {one[:3] for one in found if one[1].startswith("selection/")}
    return {one for one in found if not one[1].startswith("selection/")}, costs


@pytest.mark.parametrize("jobs", [1, 2])
def test_tensorboard_has_the_epochs_and_rounds_of_a_run(tmp_path, jobs):
    skip_without("tensorboard")
    config = replace(TINY, tensorboard=True, test_every_epoch=True, jobs=jobs, out=str(tmp_path / "run"))
    run(config, quiet=True)
    found, costs = without_costs(points(tmp_path / "run" / "tensorboard"))
    assert found == expected(tmp_path / "run")
    assert any(tag == "final/test_accuracy" for _, tag, _, _ in found)
    assert costs == {
        (f"{arm}/seed0", f"selection/{unit}", labels)
        for arm in ("prunefuse", "random")
        for unit in ("FLOPs", "seconds")
        for labels in (20, 30, 40)
    }


# In a training, which goes on from a checkpoint; and when a round is on the disk, and TensorBoard has not heard of it.
@pytest.mark.parametrize("at", ["Epoch", "Round"])
def test_no_point_is_there_twice_after_a_run_was_stopped(tmp_path, at):
    skip_without("tensorboard")
    place = listener(tmp_path, "KeyboardInterrupt", at)
    with pytest.raises(RunInterrupted):
        run(replace(TINY, tensorboard=True, listener=place, out=str(tmp_path / "run")), quiet=True)
    stopped, _ = without_costs(points(tmp_path / "run" / "tensorboard"))
    resume(tmp_path / "run", quiet=True)
    found, costs = without_costs(points(tmp_path / "run" / "tensorboard"))
    assert found == expected(tmp_path / "run")
    assert len(costs) == 12
    assert 0 < len(stopped) < len(found)


def test_tensorboard_of_an_extrapolation_also_after_it_was_stopped(tmp_path):
    skip_without("tensorboard")
    kept = {"tensorboard": True, "out": str(tmp_path / "run")}
    config = changed(
        ExtrapolateConfig(model="mlp", score="el2n", keep=("20%",), threads=1, jobs=1, device="cpu"),
        {"checkpoint_seconds": 0.0, "recipe": {"epochs": 4}},
    )
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\nhere = Path(__file__).with_suffix('.done')\n"
        "def start(folder):\n    return heard\n"
        "def heard(task, event):\n    if getattr(event, 'epoch', 0) == 3 and not here.exists():\n"
        "        here.touch()\n        raise KeyboardInterrupt"
    )
    with pytest.raises(ExtrapolateInterrupted):
        extrapolate.run(replace(config, **kept, listener=f"{tmp_path}/mine.py:start"), quiet=True)
    extrapolate.resume(tmp_path / "run", quiet=True)
    found = points(tmp_path / "run" / "tensorboard")
    assert set(found.values()) == {1}
    for task, network in (("subset", "selector"), ("by-knn/keep-287", "final")):
        done = json.loads((tmp_path / "run" / "seed0" / task / "done.json").read_text())
        values = {one[1:] for one in found if one[0] == f"seed0/{task}" and not one[1].endswith("/lr")}
        assert values == {
            ("accuracy", done["samples"], round(done["accuracy"], 4)),
            *((f"{network}/loss", n, round(loss, 4)) for n, (loss, _) in enumerate(done["epochs"], 1)),
            *(
                (f"{network}/train_accuracy", n, round(accuracy, 4))
                for n, (_, accuracy) in enumerate(done["epochs"], 1)
            ),
        }
