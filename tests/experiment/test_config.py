from __future__ import annotations

import dataclasses
import json

import pytest

from prunefuse import models
from prunefuse.experiment.budgets import ConfigError, resolve_schedule, to_samples
from prunefuse.experiment.config import PRESETS, RunConfig, override
from prunefuse.training import RECIPES


def sizes(*schedule, pool=1000, budget=None, initial=None, rounds=None):
    return resolve_schedule(schedule, pool, budget=budget, initial=initial, rounds=rounds)


def test_the_default_is_the_digits_preset_with_most_sizes_from_2_to_20_per_cent():
    assert RunConfig() == PRESETS["digits"]
    percents = [float(size.removesuffix("%")) for size in RunConfig().schedule]
    assert min(percents) >= 2
    assert max(percents) <= 20
    assert len(percents) >= 5


def test_the_papers_preset_is_the_papers_set_up():
    paper = PRESETS["cifar10-resnet56"]
    assert (paper.data, paper.model) == ("cifar10", "resnet56")
    schedule = resolve_schedule(paper.schedule, 50_000, budget=None, initial=None, rounds=None)
    assert schedule == (1000, 5000, 10_000, 15_000, 20_000, 25_000)
    recipe = paper.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.weight_decay) == (
        181,
        128,
        0.1,
        0.9,
        5e-4,
    )
    assert recipe.min_steps == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_plain_data(preset):
    assert json.loads(json.dumps(dataclasses.asdict(PRESETS[preset])))["data"] == PRESETS[preset].data


def test_any_field_can_be_overridden_and_the_others_stay():
    changed = override("cifar10-resnet56", {"strategy": "k_center", "seeds": (5,)}, {"epochs": 3})
    paper = PRESETS["cifar10-resnet56"]
    assert (changed.strategy, changed.seeds, changed.recipe.epochs) == ("k_center", (5,), 3)
    assert changed.schedule == paper.schedule
    assert changed.recipe == dataclasses.replace(paper.recipe, epochs=3)
    assert override("digits", {"recipe": RECIPES["cifar"]}, {"lr": 0.2}).recipe.epochs == 181


def test_per_cents_are_exact():
    # In floating point 0.29 * 100 is 28.999999999999996 and 0.07 * 100 is 7.000000000000001.
    assert to_samples("29%", 100, "budget") == 29
    assert to_samples("7%", 100, "budget") == 7
    assert to_samples("0.1%", 1000, "budget") == 1
    assert to_samples("2.5 %", 1437, "budget") == 35  # 35.925, never more than asked for
    assert to_samples("100%", 1437, "budget") == 1437
    assert to_samples("1437", 1437, "budget") == 1437


def test_a_budget_cuts_the_schedule_or_is_added_to_it():
    assert sizes("2%", "4%", "10%", "20%") == (20, 40, 100, 200)
    assert sizes("2%", "4%", "10%", "20%", budget="10%") == (20, 40, 100)
    assert sizes("2%", "4%", "10%", "20%", budget="70") == (20, 40, 70)
    assert sizes("2%", "4%", "10%", "20%", budget="50%") == (20, 40, 100, 200, 500)


def test_initial_and_rounds_make_even_steps():
    assert sizes("2%", "20%", rounds=3) == (20, 80, 140, 200)
    assert sizes("2%", "20%", initial="50", budget="100", rounds=5) == (50, 60, 70, 80, 90, 100)
    assert sizes("2%", "4%", "20%", initial="10%") == (100, 150, 200)
    assert sizes("10", "20", rounds=3) == (10, 13, 16, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": "1001"}, "budget 1001 is more than the pool has"),
        ({"budget": "2%"}, "not more than the initial pool"),
        ({"initial": "30%"}, r"schedule \(200 samples\) is not more than initial 30% \(300 samples\)"),
        (
            {"initial": "50", "budget": "20"},
            r"budget 20 \(20 samples\) is not more than initial 50 \(50 samples\): raise the budget, or lower initial",
        ),
        ({"budget": "20", "rounds": 3}, "is not more than the initial pool"),
        ({"initial": "195", "rounds": 6}, "less than one sample a round"),
        ({"pool": 40}, "less than one sample"),
        ({"pool": 60}, "must be two or more increasing sizes"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        sizes("2%", "3%", "20%", **arguments)


@pytest.mark.parametrize("size", ["0.2", "-5", "0", "0%", "101%", "1e3", "", "2 percent"])
def test_what_is_no_size_is_refused_when_the_configuration_is_made(size):
    with pytest.raises(ConfigError, match="budget must be"):
        RunConfig(budget=size)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        (
            "strategy",
            "maxent",
            "random, least_confidence, margin, entropy, energy, logit_margin, bald, extrapolated_du, extrapolated_dual, "
            "extrapolated_tdds, extrapolated_el2n, extrapolated_loss, k_center, badge",
        ),
        ("strategy", "least-confidence", "least_confidence"),
        ("model", "resnet21", ", ".join(models.names())),
        ("selector", "resnet21", "prunefuse, dense, or a model"),
        ("data", "mnist", "digits, cifar10, cifar100, places365, imagenet, folder:PATH"),
        ("data", "folder:", "folder:PATH"),
        ("baselines", ("dense", "other"), "dense, random, or none"),
        ("prune_ratio", 1.0, r"in \[0, 1\)"),
        ("shortcut", "C", "A or B"),
        ("complement", "average", "keep, reinit, zero"),
        ("finals", "some", "all, last"),
        ("rounding", "up", "floor, nearest, ceil"),
        ("device", "gpu", "auto, cpu, cuda"),
        ("kd_lambda", 1.5, r"in \[0, 1\]"),
        ("kd_temperature", 0.0, "positive"),
        ("t_sync", -1, "at least 0"),
        ("threads", 0, "at least 1"),
        ("workers", -1, "at least 0"),
        ("rounds", 0, "at least 1"),
        ("seeds", (), "one or more"),
        ("seeds", (1, 1), "different"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(field, value, allowed):
    with pytest.raises(ConfigError, match=f"^{field} must be .*{allowed}"):
        RunConfig(**{field: value})


def test_combinations_without_meaning_are_refused():
    with pytest.raises(ConfigError, match="shortcut must be left out, as mlp"):
        RunConfig(model="mlp", shortcut="B")
    with pytest.raises(ConfigError, match="t_sync must be 0 without fusion"):
        RunConfig(t_sync=1, fuse=False)
    with pytest.raises(ConfigError, match="t_sync must be 0 without fusion"):
        RunConfig(t_sync=1, selector="dense")
    with pytest.raises(ConfigError, match="schedule already says every size"):
        override("digits", {"schedule": ("2%", "4%"), "rounds": 3}, {})
    with pytest.raises(ConfigError, match="preset must be one of digits, cifar10-resnet56"):
        override("imagenet", {}, {})
    with pytest.raises(ConfigError, match="epochs"):
        override("digits", {}, {"epochs": 0})


def test_arms_are_named_once_and_never_the_same_thing_twice():
    assert RunConfig().arms == ("prunefuse", "dense", "random")
    assert RunConfig(baselines=()).arms == ("prunefuse",)
    assert RunConfig(selector="dense").arms == ("dense", "random")
    assert RunConfig(selector="dense", strategy="random").arms == ("dense",)
    assert RunConfig(selector="resnet8", baselines=("random",)).arms == ("resnet8", "random")
    assert RunConfig(strategy="random").arms == (
        "prunefuse",
        "dense",
    )  # dense with random picks is the random arm
    assert RunConfig(selector="torchvision:resnet18").arms[0] == "torchvision-resnet18"  # names a folder
