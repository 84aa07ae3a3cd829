"""What selects on a GPU waits for it once in a call at most, and gives what it gives on the CPU."""

import pytest
import torch

import prunefuse
from prunefuse._seeds import generator
from prunefuse.scoring import EnsembleScores
from prunefuse.selection._badge import badge
from prunefuse.selection._batches import STOCHASTIC, best_of_each
from prunefuse.selection._strategies import Pool, strategy

NAN, INF = float("nan"), float("inf")


def integers(rows, width):
    """Features whose distances are exact in any order of summation."""
    return torch.randint(-9, 10, (rows, width), generator=torch.Generator().manual_seed(rows)).float()


def test_top_b(count_waits):
    utilities = torch.randn(500)
    utilities[7] = NAN
    (indices, best), waits = count_waits(lambda u: prunefuse.top_b(u, 20), utilities)
    assert waits == 1
    expected = prunefuse.top_b(utilities, 20)
    assert torch.equal(indices, expected[0])
    assert torch.equal(best, expected[1])


def with_bad_rows(x):
    x = x.clone()
    x[3, 1], x[9, 0] = NAN, -INF
    return x


def test_top_b_with_excluded_rows(count_waits):
    utilities, exclude = torch.randn(500), torch.tensor([4, 9, 9])
    for given, waits in (([4, 9], 1), (exclude, 1), (torch.arange(500) < 30, 1)):
        (indices, _), counted = count_waits(
            lambda u, given=given: prunefuse.top_b(u, 20, exclude=given), utilities
        )
        assert counted == waits
        assert indices.tolist() == prunefuse.top_b(utilities, 20, exclude=given)[0].tolist()
    (indices, _), counted = count_waits(lambda u, e: prunefuse.top_b(u, 20, exclude=e), utilities, exclude)
    assert counted == 2
    assert indices.tolist() == prunefuse.top_b(utilities, 20, exclude=[4, 9])[0].tolist()

    def refuse(u, e):
        with pytest.raises(ValueError, match=r"exclude must hold rows of utilities \(0 to 499\), got 500"):
            prunefuse.top_b(u, 20, exclude=e)

    count_waits(refuse, utilities, torch.tensor([3, 500]))


FEATURES = {
    "usual": integers(80, 6),
    "not finite": with_bad_rows(integers(80, 6)),
    "large": with_bad_rows(integers(80, 6)) * 2.0**100,
    "small": integers(80, 6) * 2.0**-100,
    "16 bits": integers(80, 6).half(),
    "float64": integers(80, 6).double(),
}


@pytest.mark.parametrize("what", FEATURES)
@pytest.mark.parametrize(
    ("labeled", "start"),
    [(None, None), ([5, 3, 70], None), ([5, 3, 70], 2), (None, 8), ([3], None)],
    ids=str,
)
def test_k_center(count_waits, what, labeled, start):
    def pick(x):
        return prunefuse.k_center_greedy(x, 12, labeled, start)

    picks, waits = count_waits(pick, FEATURES[what])
    assert waits == 1
    assert picks.tolist() == pick(FEATURES[what]).tolist()


@pytest.mark.parametrize("what", FEATURES)
@pytest.mark.parametrize("labeled", [None, [5, 3, 70]], ids=str)
def test_k_center_with_weights_and_excluded_rows(count_waits, what, labeled):
    weights = torch.randint(0, 4, (80,), generator=torch.Generator().manual_seed(1)).float()
    weights[11] = NAN

    def pick(x, of_rows, exclude):
        return prunefuse.k_center_greedy(x, 12, labeled, weights=of_rows, exclude=exclude)

    exclude = torch.tensor([20, 21, 20])
    picks, waits = count_waits(pick, FEATURES[what], weights, exclude)
    assert waits == 1
    assert picks.tolist() == pick(FEATURES[what], weights, exclude).tolist()


@pytest.mark.parametrize("what", ["usual", "large"])
def test_k_center_with_a_least_distance(count_waits, what):
    """Once before it picks, once to see whether there were b."""
    unit = 2.0**100 if what == "large" else 1.0

    def pick(x):
        return prunefuse.k_center_greedy(x, 8, [5], min_distance=9 * unit)

    def refuse(x):
        with pytest.raises(ValueError, match=r"b is 70, but only \d+ of 80 rows can be picked .*nearer than"):
            prunefuse.k_center_greedy(x, 70, [5], min_distance=9 * unit)

    picks, waits = count_waits(pick, FEATURES[what])
    assert waits == 2
    assert picks.tolist() == pick(FEATURES[what]).tolist()
    count_waits(refuse, FEATURES[what])
    refuse(FEATURES[what])


def test_k_center_with_labeled_rows_on_the_device(count_waits):
    features, labeled = integers(80, 6), torch.tensor([4, 8, 8])
    picks, waits = count_waits(lambda x, known: prunefuse.k_center_greedy(x, 12, known), features, labeled)
    assert waits == 1
    assert picks.tolist() == prunefuse.k_center_greedy(features, 12, labeled).tolist()


@pytest.mark.parametrize(
    ("labeled", "options", "message"),
    [
        ([5, 80], {}, r"labeled must hold rows of features \(0 to 79\), got 80"),
        ([5, 1 << 60], {}, r"labeled must hold rows of features \(0 to 79\), got 1152921504606846976"),
        ([5, -2], {}, r"labeled must hold rows of features \(0 to 79\), got -2"),
        ([5, 4], {"start": 4}, "start is labeled already: 4"),
        ([5, 4], {"start": 9}, "start must be a row of finite features, got row 9"),
        ([5, 4], {"b": 77}, "b is 77, but only 76 of 80 rows can be picked"),
        ([5, 4], {"exclude": [1], "b": 76}, "b is 76, but only 75 of 80 rows can be picked"),
        ([5, 4], {"weights": torch.full((80,), -2.0)}, "weights must be finite and at least 0, got -2.0"),
        ([5, 4], {"start": 7, "exclude": [7]}, "start is excluded: 7"),
    ],
)
def test_k_center_refuses_on_a_device_what_it_refuses_elsewhere(count_waits, labeled, options, message):
    arguments = with_bad_rows(integers(80, 6)), torch.tensor(labeled)

    def pick(x, known):
        with pytest.raises(ValueError, match=message):
            prunefuse.k_center_greedy(x, **{"b": 3, "labeled": known, **options})

    count_waits(pick, *arguments)
    pick(*arguments)


def logits():
    x = 3 * torch.randn(60, 5, generator=torch.Generator().manual_seed(4))
    x[7] = NAN
    return x


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("stochastic", STOCHASTIC)
@pytest.mark.parametrize("token", ["entropy", "bald"])
def test_strategies_by_utility(count_waits, token, stochastic, balanced):
    chooser = strategy(token, stochastic=stochastic, class_balanced=balanced)
    unlabeled = torch.arange(100, 160)

    def pick(x):
        ensemble = EnsembleScores() if token == "bald" else None
        if ensemble:
            ensemble.update(x)
            ensemble.update(0.7 * x.roll(1, 1))
        picks = chooser.pick(Pool(unlabeled, torch.arange(9), generator(3), x, ensemble=ensemble), 12)
        assert picks.utilities is not None
        return picks.indices, picks.utilities, picks.unselectable

    (indices, utilities, unselectable), waits = count_waits(pick, logits())
    expected = pick(logits())
    assert waits == 1
    assert indices.tolist() == expected[0].tolist()
    assert utilities.dtype == torch.float32
    torch.testing.assert_close(utilities, expected[1])
    assert unselectable == expected[2] == 1


def test_what_strategies_refuse_on_a_device(count_waits):
    def refuse(x):
        pool = Pool(torch.arange(60), torch.arange(9), generator(0), x)
        for options in ({}, {"class_balanced": True}, {"stochastic": "power"}):
            with pytest.raises(ValueError, match="b is 60, but only 59 of 60 rows can be selected"):
                strategy("entropy", **options).pick(pool, 60)
        with pytest.raises(ValueError, match=r"utilities must be at least 0 for .*power, got -9\."):
            strategy(lambda x: (x[:, 0] * 0).sub(9).float(), stochastic="power").pick(pool, 3)

    count_waits(refuse, logits())
    refuse(logits())


def test_best_of_each(count_waits):
    utilities, classes = logits()[:, 0], torch.arange(60) % 7
    rows, waits = count_waits(lambda u, c: best_of_each(u, c, 30), utilities, classes)
    assert waits == 1
    assert rows.tolist() == best_of_each(utilities, classes, 30).tolist()


@pytest.mark.parametrize("what", ["usual", "not finite", "large"])
def test_the_strategy_k_center(count_waits, what):
    def pick(x):
        picks = strategy("k_center").pick(
            Pool(torch.arange(10, 80), torch.arange(10), generator(0), None, x), 12
        )
        return picks.indices, picks.unselectable

    (indices, unselectable), waits = count_waits(pick, FEATURES[what])
    expected = pick(FEATURES[what])
    assert indices.tolist() == expected[0].tolist()
    assert unselectable == expected[1] == 0
    assert waits == (2 if what == "large" else 1)  # values out of range are seen when it has picked


@pytest.mark.parametrize("kind", ["k_center", "k_means"])
def test_strategies_with_diversity(count_waits, kind):
    """Once for what is preselected, then as k-center and k-means do, and once for the picks."""
    scores = torch.randn(70, 5, generator=torch.Generator().manual_seed(5)).round()
    scores[20] = NAN
    chooser = strategy("margin", diversity=kind, preselect=3)
    features = integers(80, 6)

    def pick(x, seen):
        known = torch.arange(10) if kind == "k_center" else torch.empty(0, dtype=torch.int64)
        picks = chooser.pick(Pool(torch.arange(10, 80), known, generator(0), x, seen), 12)
        return picks.indices, picks.utilities, picks.unselectable

    arguments = scores, features if kind == "k_center" else features[10:]
    (indices, utilities, unselectable), waits = count_waits(pick, *arguments)
    expected = pick(*arguments)
    assert indices.tolist() == expected[0].tolist()
    torch.testing.assert_close(utilities, expected[1])
    assert unselectable == expected[2] == 1
    if kind == "k_center":
        assert waits == 3


@pytest.mark.parametrize("what", ["usual", "large", "16 bits"])
def test_badge(count_waits, what):
    scores = torch.randn(80, 5, generator=torch.Generator().manual_seed(5)).round()
    scores[20] = NAN

    def pick(x, features):
        return badge(x, features, 12, generator(2))

    (picks, unselectable), waits = count_waits(pick, scores, FEATURES[what])
    expected = pick(scores, FEATURES[what])
    assert waits == 1
    assert picks.tolist() == expected[0].tolist()
    assert unselectable == expected[1] == (3 if what == "large" else 1)

    def refuse(x, features):
        for b in (80, 81):
            with pytest.raises(ValueError, match=f"b is {b}, but only 7[79] of 80 rows can be picked"):
                badge(x, features, b, generator(2))

    count_waits(refuse, scores, FEATURES[what])
    refuse(scores, FEATURES[what])


@pytest.mark.parametrize("stochastic", ["none", "softmax"])
def test_strategies_by_extrapolated_scores(count_waits, stochastic):
    """Twice: how many samples can be used is a shape, which must be known before the search."""
    features, scores = with_bad_rows(integers(80, 6)), torch.rand(30, dtype=torch.float64)
    scores[4] = NAN

    def pick(x, recorded):
        pool = Pool(torch.arange(50), torch.arange(30), generator(0), None, x, scores=recorded)
        picks = strategy("extrapolated_du", stochastic=stochastic).pick(pool, 12)
        return picks.indices, picks.unselectable

    (indices, unselectable), waits = count_waits(pick, features, scores)
    assert waits == 2
    assert indices.tolist() == pick(features, scores)[0].tolist()
    assert unselectable == 0
    with pytest.raises(ValueError, match=r"scores must be finite, .* got inf in row 6"):
        pick(features, scores.index_fill(0, torch.tensor([6]), INF))
