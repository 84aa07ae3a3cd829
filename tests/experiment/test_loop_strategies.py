"""Every strategy in the loop: what is picked, that it is repeatable, and that the planned work is the work done."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, nn

from prunefuse import models
from prunefuse.data import TensorImages, load
from prunefuse.experiment.loop import ActiveLearning, LoopConfig, LoopState
from prunefuse.experiment.records import Progress
from prunefuse.extrapolation import KNN
from prunefuse.selection._strategies import STRATEGIES
from prunefuse.selection._top_b import top_b
from prunefuse.training import Recipe, features

CONFIG = LoopConfig(
    schedule=(10, 16, 24), recipe=Recipe(epochs=1, batch_size=8, lr=0.05, schedule="one-cycle"), passes=3
)
# Windows of the published scores are 10 epochs, and one is left out.
LONG = replace(CONFIG.recipe, epochs=11)
DIGITS = load("digits")
POOL = TensorImages(DIGITS.pool.images[:60], DIGITS.pool.labels[:60])
TEST = TensorImages(DIGITS.test.images[:30], DIGITS.test.labels[:30])


def network(dropout: float = 0.3) -> nn.Module:
    return models.build("mlp", 10, 1, image_size=(8, 8), hidden=(16, 12), dropout=dropout)


def largest(logits: Tensor) -> Tensor:
    return logits.amax(1)


CASES: dict[str, dict[str, Any]] = {
    **{
        token: {"strategy": token} | ({"recipe": LONG} if token.startswith("extrapolated_") else {})
        for token in STRATEGIES
    },
    "dynamics, balanced": {"strategy": "extrapolated_el2n", "class_balanced": True},
    "dynamics of the dense": {"strategy": "extrapolated_el2n", "selector": "dense", "stochastic": "power"},
    "function": {"strategy": largest},
    "stochastic": {"strategy": "entropy", "stochastic": "power", "beta": 2.0},
    "balanced": {"strategy": "bald", "class_balanced": True},
    "diverse by k-center": {"strategy": "margin", "diversity": "k_center", "preselect": 2},
    "diverse by k-means": {"strategy": largest, "diversity": "k_means", "preselect": 3},
    "diverse dynamics": {"strategy": "extrapolated_el2n", "diversity": "k_means", "recipe": LONG},
    "dense": {"strategy": "bald", "selector": "dense", "stochastic": "softrank"},
}


@pytest.mark.parametrize("case", CASES)
def test_every_strategy_in_the_loop(case: str) -> None:
    config = replace(CONFIG, **CASES[case])
    events: list[Any] = []
    loop = ActiveLearning(network, POOL, TEST, config, listener=events.append)
    rounds = list(loop)
    assert [len(r.picks) for r in rounds] == [10, 6, 8]
    picks = [i for r in rounds for i in r.picks]
    assert len(set(picks)) == 24
    assert set(picks) <= set(range(60))
    again = ActiveLearning(network, POOL, TEST, config)
    assert [(r.picks, r.utilities) for r in again] == [(r.picks, r.utilities) for r in rounds]
    done = [c for r in rounds for c in r.costs if c.phase not in ("plan", "fuse")]
    assert [replace(c, seconds=0.0, detail="") for c in done] == list(loop.planned)
    passes = config.chooser.passes
    scored = [c for c in done if c.phase == "score_pool" and c.round == 1]
    counted = [e for e in events if isinstance(e, Progress)]
    if config.chooser.needs:
        assert loop.selector is not None
        seen = 60 if "all_features" in config.chooser.needs else 50
        assert max(e.total for e in counted) == passes * seen
        widths = [layer.weight.shape for layer in loop.selector.modules() if isinstance(layer, nn.Linear)]
        assert scored[0].flops == passes * seen * sum(2 * a * b for a, b in widths)
    else:
        assert not scored
        assert not counted


def test_distances_of_badge_by_hand() -> None:
    loop = ActiveLearning(network, POOL, TEST, replace(CONFIG, strategy="badge", selector="dense"))
    chosen = [c.flops for r in loop for c in r.costs if c.phase == "select"]
    assert chosen == [2 * (12 + 10) * 6 * 50, 2 * (12 + 10) * 8 * 44]


def test_extrapolated_scores_in_the_loop_by_hand() -> None:
    config = replace(CONFIG, strategy="extrapolated_el2n", schedule=(10, 16))
    loop = ActiveLearning(network, POOL, TEST, config)
    first = next(iter(loop))
    scores = loop.state.scores["el2n"]
    assert scores.shape == (10,)
    assert loop.selector is not None
    embedded = features(loop.selector, POOL)
    rest = [i for i in range(60) if i not in first.picks]
    utilities = KNN(k=10).fit(embedded[list(first.picks)], scores).predict(embedded[rest])
    rounds = list(loop)
    rows, best = top_b(utilities, 6)
    assert list(rounds[0].picks) == [rest[i] for i in rows]
    assert rounds[0].utilities == pytest.approx(best.tolist())
    [searched] = [c.flops for c in rounds[0].costs if c.phase == "select"]
    assert searched == 2 * (embedded.shape[1] + 1) * 10 * 50


def test_recorded_scores_are_part_of_the_state() -> None:
    config = replace(CONFIG, strategy="extrapolated_el2n")
    whole = list(ActiveLearning(network, POOL, TEST, config))
    first = ActiveLearning(network, POOL, TEST, config)
    next(iter(first))
    saved = copy.deepcopy((first.state.to_json(), first.state.tensors()))
    rest = list(ActiveLearning(network, POOL, TEST, config, state=LoopState.restore(*saved)))
    assert [r.picks for r in rest] == [r.picks for r in whole[1:]]
    # Another score was not recorded: the selector is trained again before it picks, and its scores are those.
    other = replace(config, strategy="extrapolated_loss")
    [changed, _] = ActiveLearning(network, POOL, TEST, other, state=LoopState.restore(*saved))
    assert [c.phase for c in changed.costs].count("train_selector") == 2


def test_too_few_epochs_for_a_score_are_an_error_before_any_work() -> None:
    with pytest.raises(ValueError, match=r"strategy: extrapolated_du needs 11 epochs .* gives 1"):
        ActiveLearning(network, POOL, TEST, replace(CONFIG, strategy="extrapolated_du"))
    # Nothing is picked by the network of the last round, however few its epochs.
    longest = replace(LONG, epochs=1, min_steps=40)
    config = replace(CONFIG, strategy="extrapolated_du", schedule=(10, 60), recipe=longest)
    ActiveLearning(network, POOL, TEST, config)


def test_bald_without_dropout_is_an_error_before_any_work() -> None:
    with pytest.raises(ValueError, match="strategy must not be bald, whose passes take dropout"):
        ActiveLearning(lambda: network(0.0), POOL, TEST, replace(CONFIG, strategy="bald"))


def test_options_are_checked_with_the_configuration() -> None:
    with pytest.raises(ValueError, match="passes"):
        replace(CONFIG, passes=0)
    with pytest.raises(ValueError, match=r"class_balanced.*badge"):
        replace(CONFIG, strategy="badge", class_balanced=True)
