"""The loop keeps its promises: labels only from the oracle, exact rounds, repeatable runs, resumable state."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunefuse import models
from prunefuse.data import OwnLabels, TensorImages, load
from prunefuse.experiment.loop import ActiveLearning, LoopConfig, LoopState
from prunefuse.experiment.records import Phase, Round
from prunefuse.scoring import score
from prunefuse.selection._strategies import STRATEGIES
from prunefuse.training import Recipe, evaluate, predict

RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05, schedule="one-cycle")
CONFIG = LoopConfig(schedule=(10, 16, 24), recipe=RECIPE)
DIGITS = load("digits")
POOL = TensorImages(DIGITS.pool.images[:80], DIGITS.pool.labels[:80])
TEST = TensorImages(DIGITS.test.images[:50], DIGITS.test.labels[:50])


def mlp(hidden: int = 16, dropout: float = 0.0) -> nn.Module:
    return models.build("mlp", 10, 1, image_size=(8, 8), hidden=(hidden, hidden), dropout=dropout)


def resnet8() -> nn.Module:
    return models.resnet8(in_channels=1)


def learner(config: LoopConfig = CONFIG, **options: Any) -> ActiveLearning:
    dropout = 0.2 if config.strategy == "bald" else 0.0
    if str(config.strategy).startswith(
        "extrapolated_"
    ):  # published windows are 10 epochs, and one is left out
        config = replace(config, recipe=replace(config.recipe, epochs=11))
    if config.selector == "model":
        options.setdefault("selector_factory", lambda: mlp(4, dropout))
    factory = options.pop("factory", lambda: mlp(dropout=dropout))
    return ActiveLearning(factory, options.pop("pool", POOL), TEST, config, **options)


def facts(rounds: Sequence[Round]) -> list[Any]:
    """All of the rounds that does not depend on the clock."""
    epochs = [[replace(e, seconds=0.0) for e in r.epochs] for r in rounds]
    costs = [[replace(c, seconds=0.0) for c in r.costs] for r in rounds]
    return [
        replace(r, epochs=tuple(e), costs=tuple(c)) for r, e, c in zip(rounds, epochs, costs, strict=True)
    ]


def weights(model: nn.Module | None) -> list[Tensor]:
    assert model is not None
    return list(model.state_dict().values())


def same(a: nn.Module | None, b: nn.Module | None) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


@pytest.mark.parametrize("selector", ["prunefuse", "dense", "model"])
@pytest.mark.parametrize("token", STRATEGIES)
def test_rounds_follow_the_schedule(selector: Any, token: str) -> None:
    loop = learner(replace(CONFIG, selector=selector, strategy=token))
    rounds = list(loop)
    assert [r.index for r in rounds] == [0, 1, 2]
    assert [r.labels for r in rounds] == [10, 16, 24]
    assert [len(r.picks) for r in rounds] == [10, 6, 8]
    everything = [i for r in rounds for i in r.picks]
    assert len(set(everything)) == 24
    assert set(everything) <= set(range(80))
    for r in rounds[1:]:
        scored = token not in ("random", "k_center", "badge", "typiclust", "probcover")
        assert (r.utilities is not None) == scored
        if r.utilities is not None:
            assert list(r.utilities) == sorted(r.utilities, reverse=True)
            assert len(r.utilities) == len(r.picks)
    assert rounds[0].utilities is None
    assert all(r.final_accuracy is not None for r in rounds)
    assert rounds[-1].final_accuracy == evaluate(loop.final, TEST)  # type: ignore[arg-type]
    assert list(loop) == []  # nothing is left to do


class Untouchable:
    """A pool whose labels raise when they are used, and which records which images were read."""

    def __init__(self) -> None:
        self.read: set[int] = set()

    def __len__(self) -> int:
        return len(POOL)

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        self.read.add(i)
        return POOL[i][0], Poison()

    @property
    def targets(self) -> Any:
        raise AssertionError("the pool's labels were touched")


class Poison:
    def _touched(self, *_: object) -> Any:
        raise AssertionError("the pool's labels were touched")

    __int__ = __index__ = __float__ = __bool__ = __eq__ = __hash__ = __len__ = __array__ = _touched


@pytest.mark.parametrize("selector", ["prunefuse", "dense", "model"])
@pytest.mark.parametrize("token", STRATEGIES)
def test_no_label_is_seen_that_was_not_asked_for(selector: Any, token: str) -> None:
    asked: list[list[int]] = []

    def oracle(indices: Sequence[int]) -> list[int]:
        asked.append(list(indices))
        return OwnLabels(POOL)(indices)

    config = replace(CONFIG, selector=selector, strategy=token, recipe=replace(RECIPE, epochs=1))
    rounds = list(learner(config, pool=Untouchable(), oracle=oracle))
    assert asked == [list(r.picks) for r in rounds]
    # With the labels in plain sight the same happens: they play no part.
    plain = [POOL[i] for i in range(len(POOL))]
    assert facts(rounds) == facts(list(learner(config, pool=plain)))


def test_training_reads_only_labeled_images_and_scoring_only_the_pool() -> None:
    pool, train = Untouchable(), Untouchable()
    loop = learner(pool=pool, train=train, oracle=OwnLabels(POOL))
    seen: set[int] = set()
    pool.read.clear()
    for r in loop:
        seen |= set(r.picks)
        assert train.read == seen
        assert pool.read == (set() if r.index == 0 else set(range(80)) - (seen - set(r.picks)))
        train.read.clear()
        pool.read.clear()


def test_images_alone_are_enough_and_the_oracle_s_answer_is_believed() -> None:
    [only] = learner(
        replace(CONFIG, schedule=(10,), selector="dense", recipe=replace(RECIPE, epochs=30)),
        pool=POOL.images,
        oracle=lambda indices: [7] * len(indices),
    )
    sevens = (TEST.labels == 7).float().mean().item()  # type: ignore[union-attr]
    assert only.final_accuracy == pytest.approx(sevens)


@pytest.mark.parametrize("token", STRATEGIES)
def test_a_numpy_pool_is_the_same_pool(token: str) -> None:
    config = replace(CONFIG, strategy=token)
    loop = learner(config, pool=POOL.images.numpy(), oracle=OwnLabels(POOL))
    assert facts(list(loop)) == facts(list(learner(config)))


def test_the_initial_pool_depends_on_the_seed_alone() -> None:
    first = {
        next(iter(learner(replace(CONFIG, selector=s, strategy=t)))).picks  # type: ignore[arg-type]
        for s in ("prunefuse", "dense", "model")
        for t in ("random", "entropy")
    }
    assert len(first) == 1
    assert next(iter(learner(replace(CONFIG, seed=1)))).picks not in first


@pytest.mark.parametrize("factory", [mlp, resnet8])
def test_one_seed_repeats_bit_for_bit(factory: Callable[[], nn.Module]) -> None:
    runs = []
    for disturbance, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        loop = learner(replace(CONFIG, schedule=(10, 16), seed=seed), factory=factory, train=augmented())
        runs.append((loop, facts(list(loop))))
        assert torch.equal(torch.get_rng_state(), before)
    (a, first), (b, second), (c, third) = runs
    assert first == second
    assert same(a.final, b.final)
    assert same(a.selector, b.selector)
    assert first != third
    assert not same(a.final, c.final)


def augmented() -> TensorImages:
    return TensorImages(POOL.images, POOL.labels, augment=DIGITS.train.augment)


def test_the_pool_is_scored_in_evaluation_mode_without_augmentation() -> None:
    modes: set[tuple[bool, bool]] = set()
    while_scoring: list[set[tuple[bool, bool]]] = []

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            in_pool = [any(torch.equal(image, p) for p in POOL.images) for image in x]
            modes.add((self.training, all(in_pool)))
            return self.net(x)  # type: ignore[no-any-return]

    def watch(event: object) -> None:
        if isinstance(event, Phase) and event.phase == "select":
            while_scoring.append(set(modes))
        elif isinstance(event, Phase):
            modes.clear()

    config = replace(CONFIG, selector="dense", schedule=(10, 16), strategy="entropy")
    list(learner(config, factory=Probe, train=augmented(), listener=watch))
    assert while_scoring == [{(False, True)}]


def test_a_round_yields_before_the_next_is_bought() -> None:
    asked: list[int] = []

    def oracle(indices: Sequence[int]) -> list[int]:
        asked.append(len(indices))
        return OwnLabels(POOL)(indices)

    counts = [list(asked) for _ in learner(oracle=oracle)]
    assert counts == [[10], [10, 6], [10, 6, 8]]


def test_picks_are_the_most_uncertain_to_the_trained_selector() -> None:
    loop = learner()
    iterator = iter(loop)
    first = next(iterator)
    assert loop.selector is not None
    rest = [i for i in range(80) if i not in first.picks]
    margins = score(predict(loop.selector, POOL, indices=rest), "margin")
    best = margins.sort(descending=True, stable=True)
    second = next(iterator)
    assert list(second.picks) == [rest[i] for i in best.indices[:6]]
    assert second.utilities is not None
    assert list(second.utilities) == best.values[:6].tolist()


def through_json(state: LoopState) -> LoopState:
    return LoopState.restore(json.loads(json.dumps(state.to_json())), state.tensors())


@pytest.mark.parametrize("rounds_before", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, schedule=(10, 14, 20, 24), t_sync=2),
        replace(CONFIG, selector="dense", strategy="k_center"),
        replace(CONFIG, selector="model"),
        replace(CONFIG, finals="last", complement="reinit"),
    ],
    ids=["prunefuse", "t_sync", "dense", "model", "last"],
)
def test_a_saved_state_goes_on_exactly(config: LoopConfig, rounds_before: int) -> None:
    whole = learner(config)
    expected = facts(list(whole))
    first = learner(config)
    iterator = iter(first)
    for _ in range(min(rounds_before, len(expected))):
        next(iterator)
    second = learner(config, state=through_json(first.state))
    rest = facts(list(second))
    assert rest == expected[rounds_before:]
    assert facts(second.state.rounds) == expected
    if rest:
        assert same(second.final, whole.final)


def test_an_interrupted_round_asks_for_no_label_twice() -> None:
    asked: list[int] = []

    def oracle(indices: Sequence[int]) -> list[int]:
        asked.extend(indices)
        return OwnLabels(POOL)(indices)

    def interrupt(event: object) -> None:
        if isinstance(event, Round):
            return
        if getattr(event, "round", 0) == 1 and getattr(event, "phase", "") == "train_final":
            raise KeyboardInterrupt

    first = learner(oracle=oracle, listener=interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(first)
    assert len(first.state.rounds) == 1
    assert len(asked) == 16
    second = learner(oracle=oracle, state=through_json(first.state))
    rounds = list(second)
    assert len(asked) == len(set(asked)) == 24
    assert facts(second.state.rounds) == facts(list(learner()))
    assert [r.index for r in rounds] == [1, 2]


def test_an_oracle_that_fails_can_be_asked_again() -> None:
    answers = iter([None, "go"])

    def oracle(indices: Sequence[int]) -> Any:
        return OwnLabels(POOL)(indices) if len(indices) == 10 or next(answers, "go") else [99] * len(indices)

    loop = learner(oracle=oracle)
    iterator = iter(loop)
    next(iterator)
    with pytest.raises(ValueError, match="got 99"):
        next(iterator)
    assert facts([*loop.state.rounds, *loop]) == facts(list(learner()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": ()}, "schedule"),
        ({"schedule": (10, 10)}, "schedule"),
        ({"schedule": (0, 10)}, "schedule"),
        ({"strategy": "best"}, "strategy"),
        ({"selector": "small"}, "selector"),
        ({"prune_ratio": 1.0}, "prune_ratio"),
        ({"t_sync": -1}, "t_sync"),
        ({"t_sync": 1, "fuse": False}, "t_sync"),
        ({"t_sync": 1, "selector": "dense"}, "t_sync"),
        ({"kd_lambda": 1.1}, "kd_lambda"),
        ({"kd_temperature": 0.0}, "kd_temperature"),
        ({"complement": "random"}, "complement"),
        ({"finals": "none"}, "finals"),
        ({"workers": -1}, "workers"),
    ],
)
def test_a_wrong_configuration_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message} must be"):
        replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"criterion": "l3"}, "criterion must be one of l2, l1, random"),
        ({"rounding": "up"}, "rounding must be one of floor, nearest, ceil"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"schedule": ("ten",)}, "schedule must be a number of samples"),
        ({"schedule": (10, "200%")}, "schedule must be more than 0% and at most 100%"),
    ],
)
def test_a_wrong_choice_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", 20),
        ("schedule", "10%"),
        ("schedule", [10, 20]),
        ("schedule", (20.0,)),
        ("schedule", (True, 20)),
        ("prune_ratio", "0.5"),
        ("prune_ratio", None),
        ("t_sync", 1.5),
        ("workers", "2"),
        ("seed", 0.5),
        ("seed", True),
        ("fuse", 1),
        ("kd_lambda", "half"),
        ("strategy", 3),
        ("criterion", ["l2"]),
        ("recipe", {"epochs": 3}),
        ("recipe", None),
        ("selector_recipe", "digits"),
    ],
)
def test_a_wrong_type_is_named(field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{field} must be"):
        replace(CONFIG, **{field: value})


def test_sizes_may_be_per_cents_of_the_pool() -> None:
    loop = learner(replace(CONFIG, schedule=("12.5%", 16, "30%")))
    assert loop.config.schedule == (10, 16, 24)
    assert facts(list(loop)) == facts(list(learner()))
    with pytest.raises(ValueError, match=r"schedule must be increasing sizes > 0, got \(16, 10\)"):
        learner(replace(CONFIG, schedule=("20%", 10)))
    with pytest.raises(ValueError, match=r"schedule 1% of 80 samples is less than one sample"):
        learner(replace(CONFIG, schedule=("1%", 10)))


def test_arguments_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"schedule.*80.*got 81"):
        learner(replace(CONFIG, schedule=(10, 81)))
    with pytest.raises(ValueError, match=r"train.*80.*got 50"):
        learner(train=TEST)
    with pytest.raises(ValueError, match="selector_factory"):
        learner(replace(CONFIG, selector="model"), selector_factory=None)
    with pytest.raises(ValueError, match="selector_factory"):
        learner(selector_factory=mlp)
    with pytest.raises(ValueError, match=r"factory.*logits"):
        learner(factory=lambda: nn.Conv2d(1, 2, 3), config=replace(CONFIG, selector="dense"))
