"""The published cost comparison, from counts of pruned networks; and what it is worth in seconds."""

from itertools import pairwise

import pytest
import selection_cost
import torch

# Multiply-adds per image, counted by hand elsewhere (convolutions and the classifier, 32x32, shortcut A).
KNOWN = {("ResNet-56", 0.0): 125_485_696, ("ResNet-56", 0.5): 31_482_176, ("ResNet-56", 0.7): 9_653_950}


@pytest.mark.parametrize("network", selection_cost.NETWORKS)
def test_cost_of_selection(network, benchmark, costs):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = selection_cost.selectors(network)
    for one in found:
        assert one.flops == one.analytic
        assert one.flops == 2 * KNOWN.get((network, one.ratio), one.flops / 2)
        for name, budget in selection_cost.BUDGETS.items():
            rounds = [labels for labels in selection_cost.SCHEDULE if labels < budget]
            images = sum(3 * selection_cost.RECIPE.epochs * n + selection_cost.POOL - n for n in rounds)
            assert one.selection[name] == pytest.approx(images * one.flops, rel=1e-12)
    assert all(a.flops > b.flops for a, b in pairwise(found))
    selection_cost.turn(found, device)
    for one in found:
        one.train_seconds.clear()
        one.score_seconds.clear()
    benchmark.pedantic(selection_cost.turn, (found, device), rounds=3)
    costs.append(found)
    benchmark.extra_info.update(
        {one.label: ratio for one, ratio in zip(found, selection_cost.ratios(found), strict=True)}
    )
