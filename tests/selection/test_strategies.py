"""Every strategy: picks are unlabeled, distinct, the asked number, repeatable, and the right ones."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunefuse._seeds import generator
from prunefuse.ops import reference
from prunefuse.scoring import EnsembleScores
from prunefuse.selection import k_center_greedy, k_means, probcover, typiclust
from prunefuse.selection._batches import STOCHASTIC
from prunefuse.selection._strategies import STRATEGIES, Pool, Strategy, strategy

N, LABELED = 40, torch.tensor([3, 17, 0])
UNLABELED = torch.tensor([i for i in range(N) if i not in (3, 17, 0)])


NAN = UNLABELED[[4, 20]]  # samples whose outputs are NaN, where that is asked for


def utility(logits: Tensor) -> Tensor:
    """A user's own: the largest logit."""
    return logits.amax(1)


def utility_of_one(logits: Tensor) -> Tensor:
    """Infinite for some, alike for the others."""
    return torch.where(logits[:, 0] > 1, torch.inf, logits[:, 0] * 0)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{token: (token, {}) for token in STRATEGIES},
    "function": (utility, {}),
    "place": (f"{__name__}:utility", {}),
    **{
        f"{token}-{kind}": (token, {"stochastic": kind})
        for token in ("entropy", "bald")
        for kind in STOCHASTIC[1:]
    },
    **{f"{token}-balanced": (token, {"class_balanced": True}) for token in ("margin", "bald")},
    **{
        f"{token}-{kind}": (token, {"diversity": kind, "preselect": 3})
        for token in ("margin", "logit_margin", "extrapolated_du")
        for kind in ("k_center", "k_means")
    },
    "function-k_means-softmax": (utility_of_one, {"diversity": "k_means", "stochastic": "softmax"}),
    "function-softmax-balanced": (utility, {"stochastic": "softmax", "class_balanced": True}),
}


def pool(chooser: Strategy, seed: int = 0, broken: bool = False) -> Pool:
    """A pool with all that the strategy needs, and nothing else."""
    rows = generator(1)

    def draw(width: int) -> Tensor:
        outputs = torch.randn(N, width, generator=rows)
        if broken:
            outputs[NAN] = float("nan")
        return outputs

    given: dict[str, Any] = {}
    if "logits" in chooser.needs:
        given["logits"] = draw(5)[UNLABELED]
    if "features" in chooser.needs:
        given["features"] = draw(3)[UNLABELED]
    if "all_features" in chooser.needs:
        given["features"] = draw(3)[torch.cat((LABELED, UNLABELED))]
    if "dynamics" in chooser.needs:
        given["scores"] = torch.rand(len(LABELED), generator=rows, dtype=torch.float64)
    if "ensemble" in chooser.needs:
        given["ensemble"] = EnsembleScores()
        for _ in range(chooser.passes):
            given["ensemble"].update(draw(5)[UNLABELED])
    return Pool(UNLABELED, LABELED, generator(seed), **given)


@pytest.mark.parametrize("case", CASES)
def test_template(case: str) -> None:
    token, options = CASES[case]
    chooser = strategy(token, **options)
    given = pool(chooser)
    before = [None if t is None else t.clone() for t in (given.logits, given.features, given.unlabeled)]
    first = chooser.pick(given, 7)
    assert first.indices.dtype == torch.int64
    assert len(set(first.indices.tolist())) == len(first.indices) == 7
    assert set(first.indices.tolist()) <= set(UNLABELED.tolist())
    assert first.unselectable == 0
    for old, now in zip(before, (given.logits, given.features, given.unlabeled), strict=True):
        assert (old is None and now is None) or torch.equal(old, now)
    again = chooser.pick(pool(chooser), 7)
    assert torch.equal(first.indices, again.indices)
    if first.utilities is not None:
        assert first.utilities.shape == (7,)
        if not options:
            assert first.utilities.tolist() == sorted(first.utilities.tolist(), reverse=True)
    everything = chooser.pick(pool(chooser), len(UNLABELED))
    assert sorted(everything.indices.tolist()) == UNLABELED.tolist()
    assert len(chooser.pick(pool(chooser), 0).indices) == 0
    with pytest.raises(ValueError, match=str(len(UNLABELED))):
        chooser.pick(pool(chooser), len(UNLABELED) + 1)
    if chooser.needs:
        count = len(UNLABELED) - len(NAN)
        rest = chooser.pick(pool(chooser, broken=True), count)
        assert sorted(rest.indices.tolist()) == sorted(set(UNLABELED.tolist()) - set(NAN.tolist()))
        assert rest.unselectable == len(NAN)
        with pytest.raises(ValueError, match=str(count)):
            chooser.pick(pool(chooser, broken=True), count + 1)


RANDOM = (
    *("random", "badge", "typiclust", "probcover"),
    *(case for case in CASES if any(kind in case for kind in (*STOCHASTIC[1:], "k_means"))),
)


@pytest.mark.parametrize("case", CASES)
def test_the_generator_decides_for_random_ones_and_for_no_other(case: str) -> None:
    token, options = CASES[case]
    chooser = strategy(token, **options)
    picks = [chooser.pick(pool(chooser, seed), 10).indices.tolist() for seed in (0, 1)]
    assert (picks[0] != picks[1]) == (case in RANDOM)


@pytest.mark.parametrize(
    ("token", "order", "best"),
    [
        # Rows: certain, two-way tie, three-way near-tie, uniform.
        ("least_confidence", [3, 2, 1, 0], 0.75),
        ("margin", [1, 3, 2, 0], 1.0),
        ("entropy", [3, 2, 1, 0], math.log(4)),
        ("logit_margin", [1, 3, 2, 0], 0.0),
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
    picks = strategy(token).pick(Pool(where, torch.tensor([5]), generator(0), logits=probabilities.log()), 4)
    assert picks.indices.tolist() == [10 * (i + 1) for i in order]
    assert picks.utilities is not None
    assert picks.utilities[0].item() == pytest.approx(best, abs=1e-5)


def test_k_center_takes_the_farthest_from_all_labeled() -> None:
    # Labeled sample 9 sits at 0; unlabeled 4, 5, 6, 7 at 1, 10, 6 and 11.
    features = torch.tensor([[0.0], [1.0], [10.0], [6.0], [11.0]])
    chosen = Pool(torch.tensor([4, 5, 6, 7]), torch.tensor([9]), generator(0), features=features)
    picks = strategy("k_center").pick(chosen, 3)
    assert picks.indices.tolist() == [7, 6, 4]
    assert picks.utilities is None
    broken = features.clone()
    broken[4] = float("nan")
    picks = strategy("k_center").pick(replace(chosen, features=broken), 2)
    assert picks.indices.tolist() == [5, 6]
    assert picks.unselectable == 1


def test_unknown_token_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"random, least_confidence, .*k_center, badge.*'maxent'"):
        strategy("maxent")


@pytest.mark.parametrize(
    ("token", "options", "message"),
    [
        ("entropy", {"stochastic": "gumbel"}, "stochastic must be one of none, power"),
        ("entropy", {"beta": 0.0}, "beta must be a positive"),
        ("bald", {"passes": 1}, "passes must be at least 2"),
        ("badge", {"stochastic": "power"}, "stochastic must be none for badge, which has no utilities"),
        (
            "random",
            {"class_balanced": True},
            "class_balanced must be False for random, which has no utilities",
        ),
        ("entropy", {"diversity": "badge"}, "diversity must be one of none, k_center, k_means, got 'badge'"),
        ("entropy", {"diversity": "k_means", "preselect": 0}, "preselect must be at least 1, got 0"),
        (
            "entropy",
            {"diversity": "k_means", "class_balanced": True},
            "class_balanced must be False with diversity",
        ),
        (
            "k_center",
            {"diversity": "k_center"},
            "diversity must be none for k_center, which has no utilities",
        ),
        ("typiclust", {"diversity": "k_center"}, "diversity must be none for typiclust"),
        ("bald", {"diversity": "k_center"}, "diversity must be none for bald, whose passes give no features"),
        ("no.such.module:f", {}, r"strategy must be a function that can be loaded, got no\.such\.module:f"),
        ("nowhere.py:f", {}, r"strategy must be a function that can be loaded, got nowhere\.py:f"),
        ("math:nothing", {}, "strategy must name a function of math, got 'nothing'"),
    ],
)
def test_wrong_options(token: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strategy(token, **options)


def test_a_function_must_answer_for_every_row() -> None:
    for wrong, error in ((lambda x: x, ValueError), (lambda x: x.argmax(1), TypeError)):
        chooser = strategy(wrong)
        with pytest.raises(error, match="utility function"):
            chooser.pick(pool(chooser), 3)
    with pytest.raises(TypeError, match="a name or a function"):
        strategy(3)  # type: ignore[arg-type]


def test_a_function_may_answer_in_numpy_and_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def smallest(logits):\n    return -logits.numpy().min(1)\n")
    chooser = strategy(f"{tmp_path / 'own.py'}:smallest")
    given = pool(chooser)
    assert given.logits is not None
    expected = UNLABELED[given.logits.amin(1).argsort()[:4]]
    assert torch.equal(chooser.pick(given, 4).indices, expected)


def test_bald_prefers_what_the_passes_disagree_about() -> None:
    ensemble = EnsembleScores()
    # Sample 0: sure and of one mind. 1: unsure and of one mind. 2: sure and of two minds.
    ensemble.update(torch.tensor([[9.0, 0.0], [0.0, 0.0], [9.0, 0.0]]))
    ensemble.update(torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.0, 9.0]]))
    three = Pool(torch.arange(3), torch.tensor([5]), generator(0), ensemble=ensemble)
    picks = strategy("bald").pick(three, 1)
    assert picks.indices.tolist() == [2]
    assert picks.utilities is not None
    assert picks.utilities.item() == pytest.approx(math.log(2), abs=2e-3)


def embeddings(given: Pool) -> Tensor:
    """BADGE's gradient embeddings, formed."""
    assert given.logits is not None
    assert given.features is not None
    p = given.logits.double().softmax(1)
    residual = p - torch.nn.functional.one_hot(p.argmax(1), p.shape[1])
    return (residual[:, :, None] * given.features.double()[:, None, :]).flatten(1)


def test_badge_starts_with_the_largest_gradient_and_never_repeats_one() -> None:
    chooser = strategy("badge")
    given = pool(chooser)
    assert given.logits is not None
    assert given.features is not None
    given.logits[5:] = given.logits[:1]
    given.features[5:] = given.features[:1]
    picks = [UNLABELED.tolist().index(i) for i in chooser.pick(given, 5).indices]
    assert picks[0] == int(embeddings(given).norm(dim=1).argmax()) or picks[0] in (
        0,
        *range(5, len(UNLABELED)),
    )
    # Six different embeddings, one of them many times over: five picks show five of them, whatever is drawn.
    assert len({0 if i >= 5 else i for i in picks}) == 5


def test_badge_draws_by_squared_distance() -> None:
    generator_ = torch.Generator().manual_seed(0)
    logits, seen = torch.randn(6, 3, generator=generator_), torch.randn(6, 2, generator=generator_)
    given = Pool(torch.arange(6), torch.tensor([9]), generator_, logits=logits, features=seen)
    g = embeddings(given)
    first = int(g.norm(dim=1).argmax())
    expected = (g - g[first]).square().sum(1)
    counts = torch.zeros(6)
    for _ in range(4000):
        picks = strategy("badge").pick(given, 2).indices.tolist()
        assert picks[0] == first
        counts[picks[1]] += 1
    torch.testing.assert_close(counts / 4000, (expected / expected.sum()).float(), atol=0.03, rtol=0)


def test_badge_draws_on_the_embeddings_of_any_magnitude() -> None:
    """The whole sequence, from the same numbers as draws over embeddings that are formed."""
    given = pool(strategy("badge"))
    assert given.features is not None
    numbers = torch.cat((torch.zeros(1), torch.rand(29, dtype=torch.float64, generator=generator(0))))
    g = embeddings(given)
    expected = reference.k_means_plus_plus(g, torch.ones(len(g), 1, dtype=torch.float64), numbers)
    for scale in (1, 2.0**100, 2.0**-100):
        scaled = replace(given, features=given.features * scale, generator=generator(0))
        assert torch.equal(strategy("badge").pick(scaled, 30).indices, UNLABELED[expected])


@pytest.mark.parametrize("kind", STOCHASTIC[1:])
def test_stochastic_batches_follow_their_distribution(kind: Any) -> None:
    """The largest of values with Gumbel noise is a draw from their softmax."""
    utilities = torch.tensor([[0.5], [2.0], [1.0], [0.1]])
    chooser = strategy(lambda x: x[:, 0], stochastic=kind, beta=1.5)
    weights = {
        "power": utilities[:, 0] ** 1.5,
        "softmax": (1.5 * utilities[:, 0]).exp(),
        "softrank": torch.tensor([3.0, 1.0, 2.0, 4.0]) ** -1.5,
    }[kind]
    given = Pool(torch.arange(4), torch.tensor([9]), generator(0), logits=utilities)
    counts = torch.zeros(4)
    for _ in range(4000):
        picks = chooser.pick(given, 1)
        assert picks.utilities is not None
        assert picks.utilities.item() == utilities[picks.indices[0], 0]
        counts[picks.indices[0]] += 1
    torch.testing.assert_close(counts / 4000, weights / weights.sum(), atol=0.03, rtol=0)


def test_a_large_beta_gives_the_best_batch() -> None:
    plain, sharp = strategy("entropy"), strategy("entropy", stochastic="softmax", beta=1e9)
    assert torch.equal(plain.pick(pool(plain), 9).indices, sharp.pick(pool(sharp), 9).indices)


def test_power_takes_no_negative_utility() -> None:
    chooser = strategy(lambda x: -x[:, 0].abs(), stochastic="power")
    with pytest.raises(ValueError, match="utilities must be at least 0 for stochastic power"):
        chooser.pick(pool(chooser), 3)


def test_class_balanced_takes_the_best_of_every_class_in_turn() -> None:
    # Predicted classes 0, 0, 0, 1, 1, 2; utilities are how large the last column is.
    logits = torch.tensor(
        [[9, 0, 0, 6], [9, 0, 0, 5], [9, 0, 0, 4], [0, 9, 0, 3], [0, 9, 0, 2], [0, 0, 9, 1]]
    ).float()
    given = Pool(torch.arange(10, 16), torch.tensor([0]), generator(0), logits=logits)
    picks = strategy(lambda x: x[:, 3], class_balanced=True).pick(given, 5)
    assert picks.indices.tolist() == [10, 13, 15, 11, 14]
    assert picks.utilities is not None
    assert picks.utilities.tolist() == [6, 3, 1, 5, 2]


def test_extrapolated_scores_are_those_of_the_neighbors() -> None:
    features = torch.tensor([[0.0], [10.0], [0.5], [9.0], [5.0], [float("nan")]])
    given = Pool(
        torch.tensor([2, 3, 4, 5]),
        torch.tensor([0, 1]),
        generator(0),
        features=features,
        scores=torch.tensor([1.0, 3.0], dtype=torch.float64),
    )
    chosen = strategy("extrapolated_du").pick(given, 3)
    assert chosen.indices.tolist() == [3, 4, 2]
    near, far = (1 + 2 / (1 + math.exp(10 - 2 * x)) for x in (0.5, 9.0))
    assert chosen.utilities is not None
    assert chosen.utilities.tolist() == pytest.approx([far, 2.0, near])
    assert chosen.unselectable == 1
    # A labeled sample without a score says nothing.
    alone = replace(given, scores=torch.tensor([1.0, float("nan")], dtype=torch.float64))
    utilities = strategy("extrapolated_du").pick(alone, 3).utilities
    assert utilities is not None
    assert utilities.tolist() == [1, 1, 1]


@pytest.mark.parametrize("preselect", [1, 3, 100])
@pytest.mark.parametrize("token", ["margin", "logit_margin", "extrapolated_du"])
def test_diversity_picks_of_the_most_useful(token: str, preselect: int) -> None:
    """k-center: as if only these and the labeled ones were there. k-means: one of each cluster, nearest to its center."""
    for kind in ("k_center", "k_means"):
        chooser = strategy(token, diversity=kind, preselect=preselect)  # type: ignore[arg-type]
        assert not chooser.cold_start
        given = pool(chooser)
        assert given.features is not None
        plain = strategy(token).pick(replace(given, generator=generator(0)), len(UNLABELED))
        assert plain.utilities is not None
        useful = plain.indices[: 6 * preselect]
        picks = chooser.pick(given, 6)
        assert set(picks.indices.tolist()) <= set(useful.tolist())
        known = len(LABELED) if "all_features" in chooser.needs else 0
        places = [known + UNLABELED.tolist().index(i) for i in useful.tolist()]
        seen = given.features[places]
        if kind == "k_center":
            both = torch.cat((given.features[:known], seen))
            expected = useful[k_center_greedy(both, 6, range(known)) - known]
            assert picks.indices.tolist() == expected.tolist()
        else:
            least = min(0.0, float(plain.utilities[: len(useful)].min()))
            weights = plain.utilities[: len(useful)].double() - least
            found = k_means(seen, 6, generator=generator(0), weights=weights / weights.max())
            chosen = [useful.tolist().index(i) for i in picks.indices.tolist()]
            assert chosen == sorted(chosen)
            assert sorted(found.labels[chosen].tolist()) == list(range(6))
            away = (seen - found.centers[found.labels]).norm(dim=1)
            for place in chosen:
                assert away[place] <= away[found.labels == found.labels[place]].min() * (1 + 1e-6)
        assert picks.utilities is not None
        where = [plain.indices.tolist().index(i) for i in picks.indices.tolist()]
        assert torch.equal(picks.utilities, plain.utilities[where])


def test_strategies_without_labels_say_so_and_pick_of_nothing_labeled() -> None:
    rows = torch.randn(50, 4, generator=generator(3))
    for token in ("typiclust", "probcover"):
        chooser = strategy(token)
        assert chooser.cold_start
        nothing = torch.empty(0, dtype=torch.int64)
        given = Pool(torch.arange(100, 150), nothing, generator(0), features=rows, classes=3)
        picks = chooser.pick(given, 8)
        if token == "typiclust":
            expected = typiclust(rows, 8, generator=generator(0))
        else:
            expected = probcover(rows, 8, classes=3, generator=generator(0))
        assert picks.indices.tolist() == (100 + expected).tolist()
        assert picks.utilities is None
    assert {token for token in STRATEGIES if strategy(token).cold_start} == {
        "random",
        "typiclust",
        "probcover",
    }
