"""Pruning in steps: the plan of all of them leads from the dense model to the small one."""

from __future__ import annotations

import copy

import pytest
import torch
from pruning_oracle import assert_pruning_is_masking, scramble_

from prunefuse import models
from prunefuse.fusion import fuse_
from prunefuse.pruning import PruningPlan, Target, compose, plan_pruning, prune_and_finetune

IMAGE = torch.zeros(2, 3, 16, 16)


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("options", [{}, {"preset": "spa", "criterion": "l1"}, {"ignore": "stage2"}])
def test_steps_end_at_the_ratio_and_their_plan_cuts_and_fuses(options, tmp_path):
    dense = scramble_(models.resnet8())  # its paddings are attributes that change at every step
    seen = []

    def finetune(small):
        seen.append(sum(p.numel() for p in small.parameters()))

    small, plan = prune_and_finetune(dense, IMAGE, finetune, steps=3, ratio=0.75, **options)
    assert len(seen) == 3
    assert seen == sorted(set(seen), reverse=True)
    assert plan.params == (sum(p.numel() for p in dense.parameters()), seen[-1])
    assert plan.ratio == 0.75
    assert plan.seconds[0] > plan.seconds[1] > 0
    if not options:  # 16 -> 12 -> 8 -> 4: nothing is rounded
        assert plan.layers == plan_pruning(dense, IMAGE, ratio=0.75).layers
    plan.save(tmp_path / "plan.json")
    plan = PruningPlan.load(tmp_path / "plan.json")
    assert same(plan.extract(dense), small)
    assert_pruning_is_masking(copy.deepcopy(dense).double(), plan, torch.randn(2, 3, 16, 16).double())
    with torch.no_grad():
        for tensor in small.parameters():
            tensor.add_(1)
    assert same(plan.extract(fuse_(dense, small, plan)), small)


def test_what_is_trained_between_the_steps_is_ranked_at_the_next():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))

    def last_are_large(small):
        with torch.no_grad():
            small[0].weight.copy_(
                torch.arange(1.0, len(small[0].weight) + 1)[:, None].expand_as(small[0].weight)
            )

    _, plan = prune_and_finetune(model, torch.zeros(1, 4), last_are_large, steps=2, ratio=0.5)
    assert (
        plan.kept["0.weight"][0] == plan_pruning(model, torch.zeros(1, 4), ratio=0.25).kept["0.weight"][0][2:]
    )


@pytest.mark.parametrize("target", [Target("flops", 0.4), Target("parameters", at_most=60_000)])
def test_steps_to_a_target(target):
    model = models.resnet14(shortcut="B")
    reached = []
    _, plan = prune_and_finetune(
        model, IMAGE, lambda small: reached.append(sum(p.numel() for p in small.parameters())), steps=2, target=target
    )  # fmt: skip
    dense, after = plan.flops if target.quantity == "flops" else plan.params
    assert 0.9 * target.limit(dense) < after <= target.limit(dense)
    assert reached[1] < reached[0] < plan.params[0]


def test_only_plans_that_follow_each_other_compose():
    first = plan_pruning(models.resnet8(), IMAGE)
    with pytest.raises(ValueError, match="second must be a plan for the small model of the first"):
        compose(first, first)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"finetune": 3}, TypeError, "finetune must be a function, got int"),
        ({"ratio": 0.5, "target": Target("flops", 0.5)}, ValueError, "target must be left out beside a ratio"),
        ({"steps": 2, "target": Target("latency", 0.5)}, ValueError, "target must be parameters or flops in several steps"),
        ({"steps": 2, "ratios": {"conv1": 0.5}}, ValueError, "ratios must be left out in several steps"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(arguments, error, message):
    given = {"finetune": lambda small: None, **arguments}
    with pytest.raises(error, match=message):
        prune_and_finetune(models.resnet8(), IMAGE, **given)
