"""Studies of pruning: one trained network for all methods, and at most the FLOPs asked for."""

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunefuse import models
from prunefuse.data import load
from prunefuse.errors import ConfigError
from prunefuse.experiment.study import Study, forecast, read_study, run
from prunefuse.experiment.study.config import check
from prunefuse.experiment.study.pruning import pruned
from prunefuse.experiment.study.pruning_config import PruningConfig
from prunefuse.experiment.study.report import overview
from prunefuse.training import evaluate, flops_per_input

OPTIONS = {"data": "digits", "model": "mlp", "recipe": "digits", "recipe.epochs": 2, "recipe.min_steps": 0}
OPTIONS |= {"device": "cpu", "threads": 1, "tune_steps": 10}
VARIANTS = (
    {"name": "l2, local"},
    {"name": "OBSPA", "method": "obspa"},
    {"name": "snip, global", "method": "global", "criterion": "snip"},
)


def study(**changes: Any) -> Study:
    usual: dict[str, Any] = {"options": OPTIONS, "grid": {"flops": (0.5, 0.25)}, "variants": VARIANTS}
    return Study("pruned", "Pruned", kind="pruning", draw=(), **({"seeds": (0,)} | usual | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(study(), tmp_path_factory.mktemp("studies") / "pruned", jobs=1, quiet=True)


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_methods_have_one_trained_network_and_keep_to_the_flops(finished: Path) -> None:
    found = rows(finished)
    assert len(found) == 3 * 2
    assert len({row["dense_accuracy"] for row in found}) == 1
    assert len(list((finished / "shared").iterdir())) == 1
    for row in found:
        assert 0.5 * float(row["flops_asked"]) < float(row["flops_kept"]) <= float(row["flops_asked"])
    assert "| OBSPA, flops 0.25 |" in (finished / "report.md").read_text()
    assert (finished / "report.html").read_text().count("<svg") == 2
    assert len(overview(finished)[0].rows) == 6  # type: ignore[union-attr]


def test_accuracies_are_those_of_the_networks_on_the_disk(finished: Path) -> None:
    data = load("digits")
    model = models.build("mlp", 10, 1, image_size=(8, 8))
    [place, *_] = sorted((finished / "trials").glob("*/seed0/train"))
    model.load_state_dict(load_file(place / "weights.safetensors"))
    assert {float(row["dense_accuracy"]) for row in rows(finished)} == {evaluate(model, data.test)}


def test_a_finished_one_is_left_and_a_larger_one_does_what_is_new(finished: Path) -> None:
    before = rows(finished)
    assert forecast(study(), finished, jobs=1).trials == 0
    assert forecast(study(seeds=(0, 1)), finished, jobs=1).trials == 12
    run(study(), finished, jobs=1, quiet=True)
    assert rows(finished) == before


@pytest.mark.skipif(find_spec("torch_pruning") is None, reason="torch-pruning is not installed")
@pytest.mark.parametrize("method", ["torch-pruning", "torch-pruning-global"])
@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor"])
def test_torch_pruning_keeps_to_the_flops_too(method: str, criterion: str) -> None:
    data, model = load("digits"), models.build("resnet8", 10, 1, shortcut="B").eval()
    config = PruningConfig(method=method, criterion=criterion, flops=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = pruned(model, data, config, torch.randperm(1437), torch.device("cpu"))
    example = torch.zeros(1, 1, 8, 8)
    assert 0.3 < flops_per_input(small, example) / flops_per_input(model, example) <= 0.5
    assert small(example).shape == (1, 10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_variants_of_packages_that_are_not_here_are_left_out(tmp_path: Path) -> None:
    text = 'title = "T"\nkind = "pruning"\n[[variant]]\nname = "a"\n[[variant]]\nname = "b"\nneeds = "no_such_package"\n'
    (tmp_path / "t.toml").write_text(text)
    assert [one["name"] for one in read_study(str(tmp_path / "t.toml")).variants] == ["a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flops": 0.0}, r"flops must be in \(0, 1\), got 0.0"),
        ({"flops": 1.5}, r"flops must be in \[0, 1\), got 1.5"),
        ({"method": "best"}, "method must be one of local"),
        (
            {"method": "torch-pruning", "criterion": "bn_scale"},
            r"(criterion|method) must be",
        ),
        ({"tune_steps": 0}, "tune_steps must be a positive number, got 0"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(study(options={**OPTIONS, **options}, grid={}, variants=()))
