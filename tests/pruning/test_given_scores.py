"""Scores that a caller hands in take the place of a criterion."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunefuse.pruning import plan_pruning

X = torch.zeros(1, 3)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def test_the_channels_with_the_largest_scores_stay_and_those_without_one_too():
    plan = plan_pruning(net(), X, ratio=0.5, scores={"2.weight": {1: torch.tensor([1.0, 4, 3, 2])}})
    assert plan.criterion == "scores"
    assert plan.kept == {"0.weight": {0: (1, 2)}, "0.bias": {0: (1, 2)}, "2.weight": {1: (1, 2)}}


def test_scores_of_one_channel_are_summed_over_tensors():
    scores = {"0.weight": {0: torch.tensor([5.0, 0, 0, 0])}, "2.weight": {1: torch.tensor([0.0, 4, 3, 2])}}
    assert plan_pruning(net(), X, ratio=0.5, scores=scores).kept["0.weight"][0] == (0, 1)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"nothing": {0: torch.ones(4)}}, "must be of axes of the model, got axis 0 of a tensor 'nothing'"),
        ({"0.weight": {2: torch.ones(4)}}, "must be of axes of the model, got axis 2 of a tensor '0.weight'"),
        ({"0.weight": {0: torch.ones(3)}}, "must be 4 finite numbers for axis 0 of '0.weight', got shape"),
        ({"0.weight": {0: torch.tensor([1.0, 2, 3, torch.nan])}}, "must be 4 finite numbers for axis 0"),
    ],
    ids=["name", "axis", "length", "nan"],
)
def test_wrong_scores_are_named(scores, message):
    with pytest.raises(ValueError, match=f"scores {message}"):
        plan_pruning(net(), X, scores=scores)
