from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunefuse import data, models
from prunefuse.experiment import folder
from prunefuse.experiment.budgets import ConfigError
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.folder import RunError
from prunefuse.experiment.loop import ActiveLearning, LoopState
from prunefuse.experiment.records import Epoch
from prunefuse.experiment.run import run
from prunefuse.pruning import PruningPlan, load_pruned
from prunefuse.training import Recipe, evaluate

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05, schedule="one-cycle")


def tiny(**changes):
    settings = {
        "model": "mlp",
        "schedule": ("20", "30", "45"),
        "recipe": RECIPE,
        "seeds": (0,),
        "threads": 1,
        "jobs": 1,
    }
    return RunConfig(**(settings | {"device": "cpu"} | changes))


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A complete run of all arms and two seeds."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert run(tiny(seeds=(0, 7), out=str(out)), command="prunefuse run --some options", quiet=True) == out
    return out


def test_the_folder_has_every_file_and_no_other(finished):
    weights = {
        "prunefuse": ["plan.json", "selector.safetensors"],
        "dense": ["selector.safetensors"],
        "random": [],
    }
    expected = {"config.json", "manifest.json", "metrics.csv", "epochs.csv", "ledger.json", "report.html"}
    expected.add("scores.csv")
    always = ("manifest.json", "state.json", "state.safetensors", "picks.csv", "final.safetensors")
    for arm, more in weights.items():
        for seed in (0, 7):
            expected |= {f"{arm}/seed{seed}/{name}" for name in (*always, *more)}
    assert {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()} == expected


def test_config_json_is_the_resolved_configuration(finished):
    config = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    assert config["schedule"] == [20, 30, 45]
    assert config["config"]["model"] == "mlp"
    assert config["config"]["recipe"]["epochs"] == 2
    assert config["command"] == "prunefuse run --some options"
    hashes = [config["data"].pop(name) for name in ("pool_is", "test_is")]
    assert [sorted(one) for one in hashes] == [["images", "labels", "samples"]] * 2
    assert config["data"] == {
        "name": "digits",
        "pool": 1437,
        "test": 360,
        "classes": 10,
        "input_shape": [1, 8, 8],
    }
    assert config["machine"]["device"] == "cpu"
    assert config["machine"]["threads"] == 1
    assert {"prunefuse", "torch", "python"} <= config["versions"].keys()
    assert config["started"] <= config["finished"]
    assert list(config["arms"]) == ["prunefuse", "dense", "random"]


def test_metrics_have_every_round_of_every_arm_and_seed(finished):
    metrics = rows(finished / "metrics.csv")
    assert list(metrics[0]) == list(folder.METRICS)
    found = [(row["arm"], int(row["seed"]), int(row["round"]), int(row["labels"])) for row in metrics]
    sizes = list(enumerate((20, 30, 45)))
    assert sorted(found) == sorted(
        (arm, seed, *size) for arm in ("prunefuse", "dense", "random") for seed in (0, 7) for size in sizes
    )
    for row in metrics:
        assert 0 <= float(row["final_accuracy"]) <= 1
        assert bool(row["selector_accuracy"]) == (
            row["arm"] == "prunefuse" or (row["arm"] == "dense" and row["round"] != "2")
        )


def test_epochs_have_every_epoch_of_every_training(finished):
    epochs = rows(finished / "epochs.csv")
    trainings = {(row["arm"], row["seed"], row["round"], row["network"]) for row in epochs}
    assert len(trainings) == 2 * (6 + 3 + 3)  # PruneFuse trains two networks a round
    for arm, seed, round_, network in trainings:
        fused = (arm, network) == ("prunefuse", "final")  # for 40 % of two epochs, rounded up
        told = [
            row["epoch"]
            for row in epochs
            if (row["arm"], row["seed"], row["round"]) == (arm, seed, round_) and row["network"] == network
        ]
        assert told == (["1"] if fused else ["1", "2"])
    assert all(math.isfinite(float(row["loss"])) for row in epochs)


def test_picks_are_indices_into_the_data_set_in_pick_order(finished):
    for arm in ("prunefuse", "dense", "random"):
        picks = rows(finished / arm / "seed0" / "picks.csv")
        indices = [int(row["index"]) for row in picks]
        assert len(set(indices)) == len(indices) == 45
        assert all(0 <= index < 1437 for index in indices)
        assert [int(row["round"]) for row in picks] == [0] * 20 + [1] * 10 + [2] * 15
        assert [int(row["order"]) for row in picks] == [*range(20), *range(10), *range(15)]
        for number, size in ((1, 10), (2, 15)):
            utilities = [row["utility"] for row in picks if row["round"] == str(number)]
            if arm == "random":
                assert utilities == [""] * size
            else:
                values = [float(one) for one in utilities]
                assert values == sorted(values, reverse=True)
                assert 0 <= values[-1] <= values[0] <= math.log(10) + 1e-6
    first = {
        arm: rows(finished / arm / "seed0" / "picks.csv")[:20] for arm in ("prunefuse", "dense", "random")
    }
    assert first["prunefuse"] == first["dense"] == first["random"]
    assert first["dense"] != rows(finished / "dense" / "seed7" / "picks.csv")[:20]


def test_the_saved_networks_have_the_accuracy_reported(finished):
    test = data.load("digits").test

    def dense():
        return models.build("mlp", 10, 1, image_size=(8, 8))

    last = {
        row["arm"]: row for row in rows(finished / "metrics.csv") if (row["seed"], row["round"]) == ("7", "2")
    }
    for arm in ("prunefuse", "dense", "random"):
        model = dense()
        model.load_state_dict(load_file(finished / arm / "seed7" / "final.safetensors"))
        assert evaluate(model, test) == pytest.approx(float(last[arm]["final_accuracy"]))
    place = finished / "prunefuse" / "seed7"
    selector = load_pruned(dense, PruningPlan.load(place / "plan.json"), place / "selector.safetensors")
    assert evaluate(selector, test) == pytest.approx(float(last["prunefuse"]["selector_accuracy"]))


def test_the_ledger_has_the_formula_and_every_phase(finished):
    ledger = json.loads((finished / "ledger.json").read_text(encoding="utf-8"))
    assert "C_select(b)" in ledger["formula"]
    phases = {}
    for entry in ledger["entries"]:
        assert entry["seconds"] >= 0
        phases.setdefault(entry["arm"], set()).add(entry["phase"])
    assert {"train_selector", "score_pool", "select", "fuse", "teacher", "train_final", "evaluate"} <= phases[
        "prunefuse"
    ]
    assert {"train_selector", "score_pool", "train_final"} <= phases["dense"]
    assert not {"train_selector", "score_pool"} & phases["random"]


def test_the_report_shows_the_widths_and_the_command(finished):
    html = (finished / "report.html").read_text(encoding="utf-8")
    assert "What was pruned" in html
    assert "256 → 128" in html
    assert "prunefuse run --some options" in html
    assert "is not finished" not in html


def test_the_same_seed_gives_the_same_run_again(finished, tmp_path):
    again = run(tiny(seeds=(7,), baselines=("random",), out=str(tmp_path / "again")), quiet=True)
    for arm in ("prunefuse", "random"):
        for name in ("picks.csv", "final.safetensors"):
            assert (again / arm / "seed7" / name).read_bytes() == (
                finished / arm / "seed7" / name
            ).read_bytes()


def test_processes_side_by_side_change_nothing(finished, tmp_path):
    out = run(tiny(seeds=(0, 7), out=str(tmp_path / "jobs"), jobs=2), quiet=True)
    for path in finished.rglob("*"):
        if path.name in ("picks.csv", "plan.json", "metrics.csv") or path.suffix == ".safetensors":
            assert (out / path.relative_to(finished)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("arm", ["prunefuse", "dense", "random"])
def test_the_loop_of_the_library_finds_the_same(finished, tmp_path, arm):
    """In memory, and in a folder where it is stopped within a training and goes on in another loop."""
    loaded = data.load("digits")

    def learner(**options):
        config = tiny().loop_of(arm, 7, (20, 30, 45))
        return ActiveLearning(
            lambda: models.build("mlp", 10, 1, image_size=(8, 8)),
            loaded.pool,
            loaded.test,
            config,
            train=loaded.train,
            ids=loaded.ids,
            classes=loaded.classes,
            **options,
        )

    def stop(event):
        if isinstance(event, Epoch) and (event.round, event.epoch) == (1, 1):
            raise KeyboardInterrupt

    place, found = tmp_path / "mine", finished / arm / "seed7"
    in_memory = learner()
    rounds = list(in_memory)
    with pytest.raises(KeyboardInterrupt):
        list(learner(folder=place, checkpoint_seconds=0.0, listener=stop))
    gone_on = learner(folder=place, checkpoint_seconds=0.0)
    assert [one.index for one in gone_on] == [1, 2]
    assert [one.picks for one in gone_on.state.rounds] == [one.picks for one in rounds]
    assert (place / "picks.csv").read_bytes() == (found / "picks.csv").read_bytes()
    assert (place / "final.safetensors").read_bytes() == (found / "final.safetensors").read_bytes()
    expected = load_file(found / "final.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in in_memory.final.state_dict().items())
    assert list(learner(folder=place)) == []  # all is done


def test_a_folder_of_another_loop_or_of_other_data_is_refused(tmp_path):
    loaded = data.load("digits")
    config = tiny().loop_of("random", 7, (20, 30))

    def learner(pool=loaded.pool, test=loaded.test, config=config, **options):
        def factory():
            return models.build("mlp", 10, 1, image_size=(8, 8))

        return ActiveLearning(factory, pool, test, config, folder=tmp_path / "mine", **options)

    list(learner())
    with pytest.raises(ValueError, match="is of a loop with seed 7, and this one has 8"):
        learner(config=replace(config, seed=8))
    images = loaded.test.images.clone()
    images[3, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="test: its images had the hash"):
        learner(test=data.TensorImages(images, loaded.test.labels))
    with pytest.raises(ValueError, match="state must be None with a folder"):
        learner(state=LoopState())
    assert [one.labels for one in learner(config=replace(config, schedule=(20, 30, 40)))] == [40]


def test_another_architecture_can_select_for_a_resnet(tmp_path):
    config = tiny(
        model="resnet8", shortcut="B", selector="mlp", strategy="k_center", baselines=(), finals="last"
    )
    out = run(RunConfig(**(vars(config) | {"out": str(tmp_path / "svp")})), quiet=True)
    metrics = rows(out / "metrics.csv")
    assert [row["arm"] for row in metrics] == ["mlp"] * 3
    assert [bool(row["final_accuracy"]) for row in metrics] == [False, False, True]
    assert not list(out.rglob("plan.json"))
    assert (out / "report.html").is_file()


def test_without_out_a_new_folder_appears_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny(schedule=("20", "30"), baselines=())
    first, second = run(config, quiet=True), run(config, quiet=True)
    assert first != second
    assert first.parent == second.parent == Path("runs")
    assert first.name.endswith("-digits-mlp")
    assert [path.name for path in folder.read(first).path.glob("*.html")] == ["report.html"]


def test_folders_of_the_same_name_get_numbers(tmp_path):
    made = [folder.create(tmp_path / "runs", "name") for _ in range(3)]
    assert [path.name for path in made] == ["name", "name-2", "name-3"]
    assert all(path.is_dir() for path in made)


def test_an_existing_folder_is_never_written_to(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match="out must be a folder that does not exist yet"):
        run(tiny(out=str(tmp_path / "mine")), quiet=True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "2000"}, "budget 2000 is more than the pool has"),
        ({"schedule": ("20", "2000")}, "schedule 2000 is more than the pool has"),
        ({"model": "torchvision:resnet18"}, "model torchvision:resnet18 does not work on 1x8x8 images"),
        ({"model": "torchvision:resnet0"}, "resnet0"),
        ({"selector": "torchvision:resnet18"}, "does not work on 1x8x8 images"),
    ],
)
def test_what_only_the_data_can_tell_is_checked_before_any_work(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        run(tiny(**changes), quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the run folder cannot be made"):
        run(tiny(out=str(tmp_path / "file" / "run")), quiet=True)


def test_missing_data_says_how_to_get_them_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="download"):
        run(tiny(data="cifar10", root=str(tmp_path / "data")), quiet=True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="device must be auto or cpu"):
        run(tiny(device="cuda"), quiet=True)


def test_a_training_that_diverges_ends_the_run_and_keeps_its_folder(tmp_path):
    wild = Recipe(epochs=3, batch_size=8, lr=1e30, schedule="one-cycle")
    with pytest.raises(RunError, match=f"No round was complete; see {tmp_path / 'run'}"):
        run(tiny(recipe=wild, out=str(tmp_path / "run")), quiet=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["finished"] is None


def test_the_number_of_threads_is_given_back(tmp_path):
    before = torch.get_num_threads()
    run(tiny(threads=before + 1, schedule=("20", "30"), baselines=(), out=str(tmp_path / "run")), quiet=True)
    assert torch.get_num_threads() == before
