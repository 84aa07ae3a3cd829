"""The study that is computed: its FLOPs are those of really pruned networks, and of the ledger's formula."""

import csv
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from prunefuse import models
from prunefuse.errors import ConfigError
from prunefuse.experiment.study import Study, read_study, run
from prunefuse.experiment.study.flops import cells, selector_flops
from prunefuse.pruning import plan_pruning
from prunefuse.training import RECIPES

POINTS = {
    (p.variant, p.options["model"], tuple(p.options["image"]), p.options["classes"])
    for p in read_study("figure3").points()
}


def counted(network: torch.nn.Module, image: tuple[int, ...]) -> int:
    """FLOPs by fvcore, of convolutions and linear layers: it counts multiply-adds, and norms beside them."""
    analysis = FlopCountAnalysis(network.eval(), torch.zeros(1, *image))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = analysis.by_operator()
    return 2 * sum(by_operator[name] for name in ("conv", "linear"))


@pytest.mark.parametrize(
    ("name", "model", "image", "classes"), sorted(POINTS), ids=[p[0] for p in sorted(POINTS)]
)
def test_the_flops_of_selectors_are_those_of_pruned_networks(
    name: str, model: str, image: tuple[int, ...], classes: int
) -> None:
    """fvcore counts the dense network, and one that was cut out of it."""
    ratio = 0.7
    network = models.build(model, classes, image[0], image_size=image[1:]).eval()
    dense, small = selector_flops(model, image, classes, ratio, "floor")
    assert counted(network, image) == dense
    plan = plan_pruning(network, torch.zeros(1, *image), ratio=ratio)
    assert counted(plan.extract(network), image) == small
    assert small < 0.11 * dense


def test_the_networks_and_data_sets_of_the_figure() -> None:
    names = {name.partition(",")[0] for name, *_ in POINTS}
    assert names == {"ResNet-50", "ResNet-56", "ResNet-110", "ResNet-164", "Wide-ResNet-28-10", "VGG-16"}
    found = {p.options["image"][1]: p.options["pool"] for p in read_study("figure3").points()}
    assert found == {32: 50_000, 64: 100_000, 224: 1_281_167}
    assert read_study("figure3").grid["prune_ratio"] == (0.5, 0.6, 0.7, 0.8)


def small(**options: object) -> Study:
    usual = {"model": "resnet8", "image": [3, 32, 32], "classes": 10, "pool": 1000, "budgets": ["10%", "300"]}
    usual |= {"schedule": ["2%", "10%", "30%"], "recipe": "cifar", "strategy": "margin", **options}
    return Study(
        "f", "F", kind="flops", options=usual, grid={"prune_ratio": (0.5, 0.8)}, variants=({"name": "net"},)
    )


def test_costs_are_those_of_the_formula() -> None:
    """3 epochs |L| F for training and |U| F for scoring, summed over the rounds before the budget."""
    found = list(cells(small()))
    assert [(one.ratio, one.labels) for one in found] == [
        (r, b) for r in (None, 0.5, 0.8) for b in (100, 300)
    ]
    recipe = RECIPES["cifar"]
    for one in found:
        rounds = [20] if one.labels == 100 else [20, 100]
        work = sum(3 * recipe.epochs_for(size) * size + 1000 - size for size in rounds)
        assert one.flops == pytest.approx(work * one.per_image)
    assert found[0].per_image == 2 * 12_239_488


def test_its_folder_has_a_table_and_drawings(tmp_path: Path) -> None:
    path = run(small(), tmp_path / "figure", command="prunefuse study run f", quiet=True)
    with (path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert [float(row["against_dense"]) for row in rows[:2]] == [1.0, 1.0]
    ours = rows[2]
    assert float(ours["against_dense"]) == pytest.approx(
        float(ours["flops_per_image"]) / float(rows[0]["flops_per_image"])
    )
    assert (path / "report.html").read_text().count("<svg") == 1
    assert "| net | p = 0.8 |" in (path / "report.md").read_text()
    assert run(small(), path, quiet=True) == path  # again, into the same folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 3}, r"option must be one of model, .*, got 'lr'"),
        ({"budgets": None}, "must have budgets"),
        ({"recipe.epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, object], message: str) -> None:
    from prunefuse.experiment.study.config import check

    study = small(**options)
    wanted = {name: value for name, value in study.options.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        check(Study("f", "F", kind="flops", options=wanted, variants=study.variants))
