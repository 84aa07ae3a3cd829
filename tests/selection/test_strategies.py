"""Every strategy: picks are unlabeled, distinct, the asked number, repeatable, and the right ones."""

import math

import pytest
import torch

from prunefuse.seeds import generator
from prunefuse.selection.strategies import STRATEGIES, Picks, Pool, strategy

N, LABELED = 40, torch.tensor([3, 17, 0])
UNLABELED = torch.tensor([i for i in range(N) if i not in (3, 17, 0)])


def pool(token: str, seed: int = 0) -> Pool:
    needs = strategy(token).needs
    rows = {"nothing": 0, "logits": len(UNLABELED), "features": N}[needs]
    outputs = torch.randn(rows, 5, generator=generator(1)) if rows else None
    return Pool(UNLABELED, LABELED, outputs, generator(seed))


@pytest.mark.parametrize("token", STRATEGIES)
def test_template(token: str) -> None:
    first = strategy(token).pick(pool(token), 7)
    assert first.indices.dtype == torch.int64
    assert len(set(first.indices.tolist())) == 7
    assert set(first.indices.tolist()) <= set(UNLABELED.tolist())
    assert first.unselectable == 0
    again = strategy(token).pick(pool(token), 7)
    assert torch.equal(first.indices, again.indices)
    if first.utilities is not None:
        assert first.utilities.shape == (7,)
        assert first.utilities.tolist() == sorted(first.utilities.tolist(), reverse=True)
    everything = strategy(token).pick(pool(token), len(UNLABELED))
    assert sorted(everything.indices.tolist()) == UNLABELED.tolist()
    with pytest.raises(ValueError, match=str(len(UNLABELED))):
        strategy(token).pick(pool(token), len(UNLABELED) + 1)


def test_random_depends_on_the_generator_alone() -> None:
    picks = [strategy("random").pick(pool("random", seed), 10).indices.tolist() for seed in (0, 1)]
    assert picks[0] != picks[1]


@pytest.mark.parametrize(
    ("token", "order", "best"),
    [
        # Rows: certain, two-way tie, three-way near-tie, uniform.
        ("least_confidence", [3, 2, 1, 0], 0.75),
        ("margin", [1, 3, 2, 0], 1.0),
        ("entropy", [3, 2, 1, 0], math.log(4)),
    ],
)
def test_uncertainty_orders_by_hand(token: str, order: list[int], best: float) -> None:
    probabilities = torch.tensor(
        [
            [0.97, 0.01, 0.01, 0.01],
            [0.49, 0.49, 0.01, 0.01],
            [0.40, 0.30, 0.29, 0.01],
            [0.25, 0.25, 0.25, 0.25],
        ]
    )
    where = torch.tensor([10, 20, 30, 40])
    picks = strategy(token).pick(Pool(where, torch.tensor([5]), probabilities.log(), generator(0)), 4)
    assert picks.indices.tolist() == [10 * (i + 1) for i in order]
    assert picks.utilities is not None
    assert picks.utilities[0].item() == pytest.approx(best, abs=1e-5)


def test_nan_rows_are_counted_and_not_picked() -> None:
    logits = torch.randn(6, 3)
    logits[[1, 4]] = float("nan")
    where = torch.arange(100, 106)
    picks: Picks = strategy("entropy").pick(Pool(where, torch.tensor([0]), logits, generator(0)), 4)
    assert sorted(picks.indices.tolist()) == [100, 102, 103, 105]
    assert picks.unselectable == 2
    with pytest.raises(ValueError, match="4"):
        strategy("entropy").pick(Pool(where, torch.tensor([0]), logits, generator(0)), 5)


def test_k_center_takes_the_farthest_from_all_labeled() -> None:
    # Labeled sample 9 sits at 0; unlabeled 4, 5, 6, 7 at 1, 10, 6 and 11.
    features = torch.tensor([[0.0], [1.0], [10.0], [6.0], [11.0]])
    chosen = Pool(torch.tensor([4, 5, 6, 7]), torch.tensor([9]), features, generator(0))
    picks = strategy("k_center").pick(chosen, 3)
    assert picks.indices.tolist() == [7, 6, 4]
    assert picks.utilities is None
    broken = features.clone()
    broken[4] = float("nan")
    picks = strategy("k_center").pick(Pool(chosen.unlabeled, chosen.labeled, broken, generator(0)), 2)
    assert picks.indices.tolist() == [5, 6]
    assert picks.unselectable == 1


def test_unknown_token_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"random, least_confidence, margin, entropy, k_center.*'maxent'"):
        strategy("maxent")
