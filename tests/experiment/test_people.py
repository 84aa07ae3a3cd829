"""Labels from people: ask, label, tell; from labels that one has; state on the disk between processes."""

from __future__ import annotations

import pytest
import torch

from prunefuse import models
from prunefuse.errors import FolderInUseError
from prunefuse.experiment.loop import ActiveLearning, LoopConfig
from prunefuse.training import Recipe

IMAGES = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TRUTH = [int(image.mean() > 0.5) for image in IMAGES]
RECIPE = Recipe(epochs=2, batch_size=4, lr=0.05, schedule="one-cycle")
CONFIG = LoopConfig(schedule=(6, 12, 20), strategy="margin", recipe=RECIPE)


def learner(config=CONFIG, oracle="people", **options):
    def factory():
        return models.mlp(2, in_channels=1, image_size=(8, 8), hidden=(8, 8))

    return ActiveLearning(factory, IMAGES, None, config, oracle=oracle, **options)


def answered(indices):
    return [TRUTH[index] for index in indices]


def by_oracle(config=CONFIG, **options):
    loop = learner(config, answered, **options)
    return loop, list(loop)


def told(loop):
    """Ask and tell until nothing is left."""
    while (asked := loop.ask()).indices:
        loop.tell(answered(asked.indices))
    return loop


def same(a, b):
    assert [(r.labels, r.picks, r.utilities) for r in a] == [(r.labels, r.picks, r.utilities) for r in b]


@pytest.mark.parametrize("strategy", ["margin", "random", "k_center"])
def test_people_are_asked_what_an_oracle_is_asked(strategy):
    config = LoopConfig(schedule=(6, 12, 20), strategy=strategy, recipe=RECIPE)
    loop, rounds = by_oracle(config)
    people = told(learner(config))
    same(people.state.rounds, rounds)
    assert all(torch.equal(value, people.state.selector[name]) for name, value in loop.state.selector.items())
    assert {one.final_accuracy for one in rounds} == {None}
    assert "evaluate" not in {cost.phase for one in rounds for cost in one.costs}


def test_labels_come_in_any_parts_and_from_other_processes(tmp_path):
    rounds, asks = by_oracle()[1], 0
    while (asked := learner(folder=tmp_path / "mine").ask()).indices:
        some = asked.indices[-4:]
        learner(folder=tmp_path / "mine").tell({index: TRUTH[index] for index in some})
        # Asked again: what is open comes first, and nothing new.
        assert (
            learner(folder=tmp_path / "mine").ask().indices[: len(asked.indices) - len(some)]
            == asked.indices[: len(asked.indices) - len(some)]
        )
        asks += 1
    assert asks == 2 + 2 + 2
    same(learner(folder=tmp_path / "mine").state.rounds, rounds)


def test_an_ask_twice_is_the_same_and_has_utilities():
    loop = learner()
    first = loop.ask()
    assert first.utilities is None  # drawn at random
    assert loop.ask() == first
    loop.tell(answered(first.indices))
    second = loop.ask()
    assert second.utilities is not None
    assert list(second.utilities) == sorted(second.utilities, reverse=True)
    assert not set(first.indices) & set(second.indices)


def test_what_nobody_can_tell_is_replaced_and_not_asked_again():
    loop = learner()
    asked = loop.ask().indices
    unclear = set(asked[:2])
    loop.tell({index: None if index in unclear else TRUTH[index] for index in asked})
    more = loop.ask().indices
    assert len(more) == 2
    assert not set(more) & set(asked)
    told(loop)
    assert [one.labels for one in loop.state.rounds] == [6, 12, 20]
    bought = {index for one in loop.state.rounds for index in one.picks}
    assert len(bought) == 20
    assert not bought & unclear
    assert set(loop.state.unclear) == unclear


def test_the_last_word_counts_and_earlier_rounds_can_be_corrected(tmp_path):
    loop = learner(folder=tmp_path / "mine")
    asked = loop.ask().indices
    loop.tell({asked[0]: 1 - TRUTH[asked[0]]})
    loop.tell({asked[0]: None})
    loop.tell({asked[0]: TRUTH[asked[0]]})
    loop.tell({index: TRUTH[index] for index in asked[1:]})
    second = loop.ask().indices
    loop.tell({asked[3]: 1 - TRUTH[asked[3]]})
    again = learner(folder=tmp_path / "mine")
    [first] = again.state.acquisitions
    expected = answered(asked)
    expected[3] = 1 - expected[3]
    assert list(first.labels) == expected
    assert again.ask().indices == second


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (lambda asked: {999: 0}, ValueError, "labels must be of samples that were asked, got index 999"),
        (lambda asked: {asked[0]: 0, asked[1]: 2}, ValueError, r"labels must have a class in \[0, 2\)"),
        (lambda asked: {asked[0]: 0, asked[1]: "cat"}, TypeError, "labels must have an integer label"),
        (lambda asked: [0, 1], ValueError, "labels must have one for each of the 6 samples asked, got 2"),
    ],
)
def test_wrong_labels_are_named_and_none_is_taken(labels, error, message):
    loop = learner()
    asked = loop.ask().indices
    with pytest.raises(error, match=message):
        loop.tell(labels(asked))
    assert loop.ask().indices == asked


def test_a_loop_starts_from_labels_one_has():
    have = {index: TRUTH[index] for index in (5, 70, 31)}
    _, rounds = by_oracle(labeled=have)
    assert [(one.labels, len(one.picks)) for one in rounds] == [(3, 3), (6, 3), (12, 6), (20, 8)]
    assert rounds[0].picks == (5, 70, 31)
    assert rounds[1].utilities is not None  # chosen by a selector trained on what there was
    people = told(learner(labeled=have))
    same(people.state.rounds, rounds)
    assert [one.labels for one in by_oracle(LoopConfig(schedule=(3, 6), recipe=RECIPE), labeled=have)[1]] == [
        3,
        6,
    ]


@pytest.mark.parametrize(
    ("labeled", "error", "message"),
    [
        ([1, 2], TypeError, "labeled must be a mapping of pool indices to classes, got list"),
        ({}, ValueError, "labeled must have at least one label"),
        ({80: 1}, ValueError, r"labeled must have indices in \[0, 80\), got 80"),
        ({True: 1}, ValueError, "got True"),
        ({1: 7}, ValueError, r"labeled must have a class in \[0, 2\) for sample 1, got 7"),
        (dict.fromkeys(range(7), 0), ValueError, "schedule must start at 7 labels or more"),
    ],
)
def test_labels_that_cannot_be_started_from_are_named(labeled, error, message):
    with pytest.raises(error, match=message):
        learner(labeled=labeled)


def test_asking_and_iterating_are_two_ways():
    with pytest.raises(ValueError, match="oracle must answer where a loop is iterated"):
        next(iter(learner()))
    loop = learner(oracle=answered)
    with pytest.raises(ValueError, match='oracle must be "people" where a loop is asked'):
        loop.ask()
    with pytest.raises(ValueError, match='oracle must be "people" where a loop is told'):
        loop.tell([1])


def test_another_loop_in_the_folder_is_not_written_over(tmp_path):
    first, second = learner(folder=tmp_path / "mine"), learner(folder=tmp_path / "mine")
    asked = first.ask().indices
    first.tell({asked[0]: TRUTH[asked[0]]})
    with pytest.raises(FolderInUseError, match="another went on: make the loop of"):
        second.tell({asked[1]: TRUTH[asked[1]]})
    third = learner(folder=tmp_path / "mine")
    assert third.ask().indices == asked[1:]
    third.tell({asked[1]: TRUTH[asked[1]]})
    with pytest.raises(FolderInUseError):
        first.ask()
    assert learner(folder=tmp_path / "mine").ask().indices == asked[2:]
