"""What the loop reports while it runs, and that the plan of the work is the work."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from prunefuse import models
from prunefuse.data import TensorImages, load
from prunefuse.experiment.cost import selection_cost
from prunefuse.experiment.loop import ActiveLearning, LoopConfig
from prunefuse.experiment.records import Cost, Epoch, Phase, Progress, Round
from prunefuse.training import Recipe, flops_per_input

RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05, schedule="one-cycle")
CONFIG = LoopConfig(schedule=(10, 16, 24), recipe=RECIPE)
DIGITS = load("digits")
POOL = TensorImages(DIGITS.pool.images[:60], DIGITS.pool.labels[:60])
TEST = TensorImages(DIGITS.test.images[:30], DIGITS.test.labels[:30])


def learner(config: LoopConfig = CONFIG, **options: Any) -> ActiveLearning:
    if config.selector == "model":
        options["selector_factory"] = lambda: models.mlp(10, in_channels=1, image_size=(8, 8), hidden=(4,))
    return ActiveLearning(
        lambda: models.mlp(10, in_channels=1, image_size=(8, 8), hidden=(16, 16)),
        POOL,
        TEST,
        config,
        **options,
    )


VARIANTS = [
    CONFIG,
    replace(CONFIG, strategy="k_center"),
    replace(CONFIG, strategy="random"),
    replace(CONFIG, finals="last"),
    replace(CONFIG, distill=False, t_sync=1),
    replace(CONFIG, t_sync=1, finals="last"),
    replace(CONFIG, fuse=False, distill=False),
    replace(CONFIG, selector="dense"),
    replace(CONFIG, selector="dense", strategy="random"),
    replace(CONFIG, selector="dense", finals="last"),
    replace(CONFIG, selector="model"),
    replace(CONFIG, selector_recipe=replace(RECIPE, epochs=3, min_steps=9), test_every_epoch=True),
]


@pytest.mark.parametrize("config", VARIANTS)
def test_the_planned_work_is_the_work_done(config: LoopConfig) -> None:
    events: list[Any] = []
    loop = learner(config, listener=events.append)
    done = [c for r in loop for c in r.costs]
    free = ("plan", "fuse")  # no FLOPs in these
    assert [replace(c, seconds=0.0, detail="") for c in done if c.phase not in free] == [
        replace(c, seconds=0.0) for c in loop.planned
    ]
    assert all(c.seconds > 0 for c in done if c.phase != "select")
    assert all(c.flops > 0 for c in done if c.phase not in (*free, "select"))
    # Announced work is the same work, up to the teacher's, which is announced with the training it is part of, and
    # the evaluations after every epoch, which are not announced.
    announced = sum(e.flops for e in events if isinstance(e, Phase) and e.phase != "evaluate")
    assert announced == pytest.approx(sum(c.flops for c in done if c.phase != "evaluate"))


def test_flops_of_a_run_by_hand() -> None:
    loop = learner()
    costs = [c for r in loop for c in r.costs]
    image = torch.zeros(1, 1, 8, 8)
    small, large = 2 * (64 * 8 + 8 * 8 + 8 * 10), 2 * (64 * 16 + 16 * 16 + 16 * 10)
    assert loop.selector is not None
    assert loop.final is not None
    assert (flops_per_input(loop.selector, image), flops_per_input(loop.final, image)) == (small, large)

    def total(phase: str) -> list[float]:
        return [c.flops for c in costs if c.phase == phase]

    assert total("train_selector") == [3 * 2 * n * small for n in (10, 16, 24)]
    assert total("train_final") == [3 * 2 * n * large for n in (10, 16, 24)]
    # The images are not augmented: what the teacher says of each is computed once.
    assert total("teacher") == [n * small for n in (10, 16, 24)]
    assert total("score_pool") == [(60 - 10) * small, (60 - 16) * small]
    assert [c.labels for c in costs if c.phase == "score_pool"] == [10, 16]
    selection = selection_cost(costs, 24).flops
    assert selection == 3 * 2 * 10 * small + 50 * small + 3 * 2 * 16 * small + 44 * small
    assert selection_cost(costs, 10).flops == 0


def test_random_selection_costs_nothing_and_dense_more_than_pruned() -> None:
    def spent(**change: Any) -> float:
        costs = [c for r in learner(replace(CONFIG, **change)) for c in r.costs]
        return selection_cost(costs, 24).flops

    assert spent(selector="dense", strategy="random") == 0
    assert 0 < spent() < spent(selector="dense")


def test_events_come_in_order() -> None:
    events: list[Any] = []
    loop = learner(replace(CONFIG, schedule=(10, 16)), listener=events.append)
    rounds = list(loop)
    phases = [(e.round, e.phase, e.network, e.labels, e.epochs) for e in events if isinstance(e, Phase)]
    trained = [
        ("train_selector", "selector"),
        ("evaluate", "selector"),
        ("fuse", "final"),
        ("train_final", "final"),
        ("evaluate", "final"),
    ]

    def round_of(index: int, labels: int) -> list[tuple[int, str, str, int, int]]:
        return [
            (index, phase, network, labels, 2 if phase.startswith("train") else 0)
            for phase, network in trained
        ]

    assert phases == [
        (0, "plan", "selector", 10, 0),
        *round_of(0, 10),
        (1, "score_pool", "selector", 10, 0),
        (1, "select", "selector", 10, 0),
        *round_of(1, 16),
    ]
    assert [e for e in events if isinstance(e, Round)] == rounds
    epochs = [e for e in events if isinstance(e, Epoch)]
    assert epochs == [e for r in rounds for e in r.epochs]
    assert [(e.round, e.network, e.epoch, e.epochs) for e in epochs] == [
        (r, network, epoch, 2) for r in (0, 1) for network in ("selector", "final") for epoch in (1, 2)
    ]
    progress = [e for e in events if isinstance(e, Progress)]
    assert progress[-1].done == progress[-1].total == 50
    for e in epochs:
        start = next(
            p
            for p in events
            if isinstance(p, Phase) and (p.round, p.network) == (e.round, e.network) and p.epochs
        )
        assert events.index(start) < events.index(e)


def test_seconds_of_training_are_split_between_student_and_teacher() -> None:
    for r in learner(replace(CONFIG, test_every_epoch=True)):
        seconds = {(c.phase, c.network): c.seconds for c in r.costs}
        trained = {n: sum(e.seconds for e in r.epochs if e.network == n) for n in ("selector", "final")}
        assert seconds["train_selector", "selector"] == pytest.approx(trained["selector"])
        teacher = seconds["teacher", "selector"]
        assert 0 < teacher < trained["final"]
        assert seconds["train_final", "final"] + teacher == pytest.approx(trained["final"])


def test_rounds_hold_their_own_costs() -> None:
    for r in learner(replace(CONFIG, t_sync=1)):
        assert {c.round for c in r.costs} == {r.index}
        assert all(isinstance(c, Cost) for c in r.costs)


def test_accuracy_after_every_epoch_only_if_asked() -> None:
    assert {e.test_accuracy for r in learner() for e in r.epochs} == {None}
    for r in learner(replace(CONFIG, test_every_epoch=True)):
        last = {e.network: e.test_accuracy for e in r.epochs}
        assert last == {"selector": r.selector_accuracy, "final": r.final_accuracy}


def test_asking_for_it_changes_nothing_else() -> None:
    plain, asked = learner(), learner(replace(CONFIG, test_every_epoch=True))
    assert [(r.picks, r.final_accuracy) for r in plain] == [(r.picks, r.final_accuracy) for r in asked]


def test_unselectable_samples_are_reported() -> None:
    images = POOL.images.clone()
    with_nan = TensorImages(images, POOL.labels)
    loop = ActiveLearning(
        lambda: models.mlp(10, in_channels=1, image_size=(8, 8), hidden=(16,)),
        with_nan,
        TEST,
        replace(CONFIG, selector="dense"),
    )
    iterator = iter(loop)
    first = next(iterator)
    broken = sorted(set(range(60)) - set(first.picks))[:3]
    images[broken] = float("nan")
    second = next(iterator)
    assert (first.unselectable, second.unselectable) == (0, 3)
    assert not set(broken) & set(second.picks)


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_the_metrics_of_a_network_are_those_of_its_last_test(validation: float) -> None:
    """With a validation part they are those of the epoch whose weights are left."""

    class Read:
        def __init__(self) -> None:
            self.read = 0

        def __len__(self) -> int:
            return len(TEST)

        def __getitem__(self, index: int) -> Any:
            self.read += 1
            return TEST[index]

    def rounds(test: Any, **change: Any) -> list[Round]:
        recipe = replace(RECIPE, epochs=3, validation=validation)
        config = replace(CONFIG, schedule=(20, 30), recipe=recipe, **change)
        factory = lambda: models.mlp(10, in_channels=1, image_size=(8, 8), hidden=(16, 16))  # noqa: E731
        return list(ActiveLearning(factory, POOL, test, config))

    once, each = Read(), Read()
    plain, asked = rounds(once), rounds(each, test_every_epoch=True)
    looked = 4 * len(TEST)  # once for each network
    checked = once.read - looked  # of the labels, before anything is trained
    assert checked <= len(TEST)
    assert each.read == checked + 3 * looked
    assert repr([r.metrics for r in asked]) == repr(
        [r.metrics for r in plain]
    )  # NaN for classes without samples


def test_a_teacher_that_has_said_all_before_is_charged_in_full_where_training_stops_early() -> None:
    recipe = replace(CONFIG.recipe, epochs=30, validation=0.3, patience=1)
    loop = learner(replace(CONFIG, schedule=(20,), recipe=recipe))
    [done] = list(loop)
    planned, spent = (
        {cost.phase: cost.flops for cost in lines if cost.phase in ("teacher", "train_final")}
        for lines in (loop.planned, done.costs)
    )
    assert spent["train_final"] < planned["train_final"]  # it did stop early
    assert spent["teacher"] == planned["teacher"] > 0
