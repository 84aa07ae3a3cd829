"""FLOPs are FLOPs, and the formula of the ledger is the one that is printed."""

import logging
import warnings

import pytest
import torch
from torch import nn

from prunefuse import models
from prunefuse.experiment.cost import (
    FORMULA,
    Sizes,
    choosing_flops,
    scoring_flops,
    selection_cost,
    teacher_flops,
    training_flops,
)
from prunefuse.experiment.records import Cost
from prunefuse.pruning import plan_pruning
from prunefuse.selection._strategies import strategy
from prunefuse.training import Recipe, flops_per_input

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "shortcut", "multiply_adds"),
    [
        ("resnet8", "A", 12_239_488),
        ("resnet8", "B", 12_501_632),
        ("resnet20", "A", 40_551_040),
        ("resnet20", "B", 40_813_184),
        ("resnet56", "A", 125_485_696),
        ("resnet56", "B", 125_747_840),
    ],
)
def test_flops_are_twice_the_multiply_adds_of_the_table(name: str, shortcut: str, multiply_adds: int) -> None:
    assert flops_per_input(models.build(name, shortcut=shortcut), IMAGE) == 2 * multiply_adds


@pytest.mark.parametrize(
    ("name", "ratio", "multiply_adds"),
    [
        ("resnet56", 0.5, 31_482_176),
        ("resnet56", 0.7, 9_653_950),
        ("resnet8", 0.6, None),
        ("vgg11_bn", 0.5, None),
    ],
)
def test_counts_of_pruned_networks_agree_with_the_plan(
    name: str, ratio: float, multiply_adds: int | None
) -> None:
    model = models.build(name)
    plan = plan_pruning(model, (IMAGE,), ratio=ratio)
    small = flops_per_input(plan.extract(model), IMAGE)
    assert small == sum(layer.flops_after for layer in plan.layers)
    assert flops_per_input(model, IMAGE) == sum(layer.flops_before for layer in plan.layers)
    if multiply_adds is not None:
        assert small == 2 * multiply_adds


def test_counting_is_quiet_and_leaves_the_model_as_found(caplog: pytest.LogCaptureFixture) -> None:
    model = models.resnet8().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        flops_per_input(model, IMAGE)
    assert not caplog.records
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_norms_and_pooling_do_not_count() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))
    normed = nn.Sequential(plain[0], nn.BatchNorm2d(4), nn.ReLU(), plain[1], plain[2])
    expected = 2 * (30 * 30 * 4 * 27 + 4 * 30 * 30 * 2)
    assert flops_per_input(plain, IMAGE) == flops_per_input(normed, IMAGE) == expected


def test_formulas_by_hand() -> None:
    recipe = Recipe(epochs=5, batch_size=8)
    assert training_flops(recipe, 10, 7.0) == 3 * 5 * 10 * 7
    assert teacher_flops(recipe, 10, 7.0) == 5 * 10 * 7
    assert teacher_flops(recipe, 10, 7.0, once=True) == 10 * 7
    # 10 samples make 2 batches of 8 or fewer, so 30 steps take 15 epochs.
    assert training_flops(Recipe(epochs=5, batch_size=8, min_steps=30), 10, 7.0) == 3 * 15 * 10 * 7
    sizes = Sizes(selector=7.0, final=70.0, features=6, pool=100, test=20)

    def picking(chooser, asks=None):
        asks = chooser.needs if asks is None else frozenset(asks)
        return scoring_flops(chooser, asks, sizes, 30), choosing_flops(chooser, sizes, 30, 5)

    assert picking(strategy("entropy")) == (70 * 7.0, 0.0)
    assert picking(strategy("k_center")) == (100 * 7.0, 2 * 6 * 35 * 100)
    assert picking(strategy("badge")) == (70 * 7.0, 2 * 6 * 5 * 70)
    assert picking(strategy("bald", passes=4)) == (4 * 70 * 7.0, 0.0)
    # Features that are given take no pass; with logits for a stopping rule the unlabeled samples do.
    assert picking(strategy("k_center"), ()) == (0.0, 2 * 6 * 35 * 100)
    assert picking(strategy("k_center"), ("logits",)) == (70 * 7.0, 2 * 6 * 35 * 100)


def test_cost_of_selection_counts_what_was_spent_before_the_budget() -> None:
    lines = [
        Cost("plan", "selector", 0, 10, 0.0, 1e0),
        Cost("train_selector", "selector", 0, 10, 1e1, 1e1),
        Cost("score_pool", "selector", 1, 10, 1e2, 1e2),
        Cost("select", "selector", 1, 10, 1e3, 1e3),
        Cost("train_selector", "selector", 1, 20, 1e4, 1e4),
        Cost("score_pool", "selector", 2, 20, 1e5, 1e5),
        Cost("train_final", "final", 1, 20, 1e6, 1e6),
        Cost("teacher", "selector", 1, 20, 1e7, 1e7),
        Cost("evaluate", "final", 1, 20, 1e8, 1e8),
        Cost("train_selector", "selector", 2, 30, 1e9, 1e9),
    ]
    assert selection_cost(lines, 10).flops == 0
    assert selection_cost(lines, 20).flops == 1_110
    assert selection_cost(lines, 30).flops == 111_110
    # Planning takes time and, by the formula, no FLOPs.
    assert selection_cost(lines, 30).seconds == 111_111
    assert selection_cost(lines, 10).seconds == 0
    assert selection_cost([], 30).flops == 0


def test_formula_is_printable() -> None:
    for part in ("3*E*|L_r|*F(selector)", "2 * multiply-adds", "k_center", "E*b*F(teacher)"):
        assert part in FORMULA
    assert max(len(line) for line in FORMULA.splitlines()) <= 120
