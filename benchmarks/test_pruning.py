"""The smallest architecture of each family of torchvision and some of timm; a few networks at targets, and their speed."""

import pytest

from benchmarks import peer


@pytest.mark.parametrize("name", peer.SMALL)
def test_half_of_the_channels(name, pruning):
    pruning["coverage"][name] = found = peer.compare(name)
    assert found["prunefuse"]["error"] == ""


@pytest.mark.parametrize("name", peer.NETWORKS)
def test_targets_and_latency(name, pruning):
    pruning["networks"][name] = found = peer.compare_network(name)
    assert [x["error"] for x in found["prunefuse"].values()] == [""] * len(peer.GOALS)
    assert "error" not in found["latency"]
    for goal in peer.GOALS[1:]:
        x = found["prunefuse"][goal]
        # The planner counts convolutions and linear maps; here the products inside attention count as well.
        assert x["params" if goal == "parameters" else "flops"] < 0.53
