"""The loop refuses what it cannot work with before it asks for a label; a finished loop can be extended."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from prunefuse import models
from prunefuse.data import OwnLabels, TensorImages, load
from prunefuse.experiment.cost import selection_cost
from prunefuse.experiment.loop import ActiveLearning, LoopConfig, LoopState
from prunefuse.training import Recipe

RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05, schedule="one-cycle")
CONFIG = LoopConfig(schedule=(10, 16), recipe=RECIPE)
DIGITS = load("digits")
POOL = TensorImages(DIGITS.pool.images[:60], DIGITS.pool.labels[:60])
TEST = TensorImages(DIGITS.test.images[:20], DIGITS.test.labels[:20])


def mlp(hidden: int = 16, classes: int = 10) -> nn.Module:
    return models.mlp(classes, in_channels=1, image_size=(8, 8), hidden=(hidden, hidden))


def never(_: Sequence[int]) -> list[int]:
    raise AssertionError("a label was asked for")


def learner(config: LoopConfig = CONFIG, **options: Any) -> ActiveLearning:
    if config.selector == "model":
        options.setdefault("selector_factory", lambda: mlp(4))
    parts = (options.pop("factory", mlp), options.pop("pool", POOL), options.pop("test", TEST))
    return ActiveLearning(*parts, config, **options)


def finished(config: LoopConfig = CONFIG) -> LoopState:
    loop = learner(config)
    list(loop)
    return LoopState.restore(json.loads(json.dumps(loop.state.to_json())), loop.state.tensors())


def part(data: TensorImages, count: int) -> TensorImages:
    assert data.labels is not None
    return TensorImages(data.images[:count], data.labels[:count])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"pool": part(POOL, 50)}, "loop with pool 50, got one with pool 60"),
        ({"seed": 1}, {}, "loop with seed 1, got one with seed 0"),
        ({"selector": "dense"}, {}, "loop with selector dense, got one with selector prunefuse"),
        ({}, {"factory": lambda: mlp(12)}, "loop with model "),
        ({"prune_ratio": 0.25}, {}, "selector network, got those of another model"),
        ({"schedule": (10, 20, 30)}, {}, r"schedule \(10, 20, 30\), got 10, 16 samples"),
        ({"schedule": (10,)}, {}, r"schedule \(10,\), got 10, 16 samples"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^state must .*{message}"):
        learner(replace(CONFIG, **change), state=finished(), oracle=never, **options)


def test_another_proxy_is_refused() -> None:
    config = replace(CONFIG, selector="model", schedule=(10, 16, 24))
    loop = learner(config)
    next(iter(loop))
    with pytest.raises(ValueError, match=r"^state must have weights of this selector network"):
        learner(config, selector_factory=lambda: mlp(6), state=loop.state, oracle=never)


@pytest.mark.parametrize("strategy", ["entropy", "k_center", "random"])
@pytest.mark.parametrize("selector", ["prunefuse", "dense", "model"])
def test_a_finished_loop_goes_on_with_a_longer_schedule(selector: Any, strategy: str) -> None:
    config = replace(CONFIG, selector=selector, strategy=strategy)
    longer = replace(config, schedule=(10, 16, 24))
    whole = list(learner(longer))
    loop = learner(longer, state=finished(config))
    [extended] = list(loop)
    assert (extended.picks, extended.utilities) == (whole[2].picks, whole[2].utilities)
    assert extended.final_accuracy == whole[2].final_accuracy
    # What chose the labels is in the ledger, also where it had to be trained after the fact.
    spent = selection_cost([c for r in loop.state.rounds for c in r.costs], 24).flops
    assert spent == selection_cost([c for r in whole for c in r.costs], 24).flops


def test_a_loop_that_ends_where_t_sync_prunes_anew_cannot_be_extended() -> None:
    config = replace(CONFIG, t_sync=2)
    state = finished(config)
    with pytest.raises(ValueError, match=r"^state must have the fused network.*t_sync=2.* ends at 16 labels"):
        learner(replace(config, schedule=(10, 16, 24)), state=state, oracle=never)


class Images(Dataset[Any]):
    """Images alone, not in memory."""

    def __len__(self) -> int:
        return len(POOL)

    def __getitem__(self, index: int) -> Tensor:
        return POOL.images[index]


class Stream(IterableDataset[Any]):
    """No length and no indices."""

    def __iter__(self) -> Any:
        return iter(POOL.images)


ONE = mlp()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"factory": ONE}, TypeError, "^factory must be a function"),
        ({"factory": lambda: None}, TypeError, "factory must return an nn.Module, got NoneType"),
        ({"factory": lambda: ONE}, ValueError, "factory must make a new model in every call"),
        ({"pool": Stream()}, TypeError, "pool must be a map-style data set.* got Stream"),
        ({"pool": 3}, TypeError, "pool must be a map-style data set.* got int"),
        ({"pool": POOL.images[:0]}, ValueError, "pool must have at least one sample"),
        ({"test": part(TEST, 0)}, ValueError, "test must have at least one sample"),
        ({"test": TEST.images}, TypeError, "test must have items"),
        ({"test": Images()}, TypeError, r"test: data must have items \(image, label\)"),
        (
            {"test": TensorDataset(TEST.images, TEST.labels + 1)},  # type: ignore[operator]
            ValueError,
            r"test must have labels in \[0, 10\).*got 10",
        ),
        (
            {"pool": POOL.images, "oracle": None},
            TypeError,
            "pool must have labels of its own, got none; give an oracle",
        ),
        (
            {"pool": Images(), "oracle": None},
            TypeError,
            "pool must have labels of its own, got none; give an oracle",
        ),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        learner(**({"oracle": never} | options))


def test_a_proxy_with_other_outputs_is_named() -> None:
    config = replace(CONFIG, selector="model")
    with pytest.raises(ValueError, match=r"selector_factory must make a model with 10 outputs.*\(1, 7\)"):
        learner(config, selector_factory=lambda: mlp(4, classes=7), oracle=never)
    with pytest.raises(TypeError, match="selector_factory must be a function"):
        learner(config, selector_factory=mlp(4), oracle=never)


def test_looking_for_labels_reads_none_that_are_not_asked_for() -> None:
    class Poison:
        def __int__(self) -> int:
            raise AssertionError("a label was read")

    data = [(torch.zeros(1), Poison())]
    OwnLabels(data).check()
