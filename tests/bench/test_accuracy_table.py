"""The comparison of accuracies after pruning: it goes on where it was stopped, and its rows mean what they say."""

import functools

import pytest
import torch
from torch import nn

from benchmarks import accuracy


def images():
    torch.manual_seed(0)
    x = torch.randn(704, 1, 4, 4)
    labels = (x.flatten(1) @ torch.randn(16, 10)).argmax(1)
    return accuracy.Images((x[:640], labels[:640]), (x[640:], labels[640:]))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.ReLU())
        self.fc = nn.Linear(40, 10)

    def forward(self, x):
        return self.fc(self.body(x))


METHODS = {
    "l1, local": functools.partial(accuracy.ours, criterion="l1"),
    "OBSPA": accuracy.obspa,
    "broken, local": lambda dense: nn.Linear(dense.missing, 1),
}


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(accuracy, "CASES", {"small": accuracy.Case(images, Small, 0.1, 5, 640)})
    monkeypatch.setattr(accuracy, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(accuracy, "methods", lambda: dict(METHODS))
    return tmp_path


def test_a_run_goes_on_where_it_was_stopped_to_the_same_rows(small, monkeypatch):
    accuracy.run(["small"], 2, ["*"], small)
    whole = accuracy.read()
    assert [(row.seed, row.method) for row in whole] == [(seed, name) for seed in (0, 1) for name in METHODS]
    accuracy.RESULTS.unlink()

    def stopped(dense):
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "methods", lambda: {**METHODS, "OBSPA": stopped})
    with pytest.raises(KeyboardInterrupt):
        accuracy.run(["small"], 2, ["*"], small)
    assert [row.method for row in accuracy.read()] == ["l1, local"]
    monkeypatch.setattr(accuracy, "methods", lambda: dict(METHODS))
    accuracy.run(["small"], 2, ["*"], small)

    def facts(row):
        return row.seed, row.method, row.dense, row.flops, row.pruned, row.tuned, row.error

    assert [facts(row) for row in accuracy.read()] == [facts(row) for row in whole]


def test_rows_are_of_networks_at_half_of_the_flops(small):
    accuracy.run(["small"], 1, ["*"], small)
    deleted, refitted, failed = accuracy.read()
    assert deleted.flops == refitted.flops == 0.5
    assert refitted.pruned > deleted.pruned
    assert deleted.tuned > deleted.pruned
    assert failed.error.startswith("AttributeError")
    assert "torch-pruning" not in (page := accuracy.tables(accuracy.read()))
    assert f"| OBSPA | {refitted.pruned:.1f} → {refitted.tuned:.1f} |" in page
    assert page.count("| broken, local | AttributeError |") == 3
    assert f"Before pruning: small {deleted.dense:.1f}." in page
