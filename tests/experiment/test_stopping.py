"""Stopping rules: what they look at, what they propose, and how a loop ends by one."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefuse import models
from prunefuse.data import TensorImages
from prunefuse.errors import ConfigError
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.loop import ActiveLearning, LoopConfig
from prunefuse.experiment.records import Epoch, Round, Stop
from prunefuse.experiment.run import resume, run
from prunefuse.experiment.stopping import cohens_kappa, measure, proposing
from prunefuse.selection._strategies import Pool
from prunefuse.training import Recipe

IMAGES = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TRUTH = [int(image.mean() > 0.5) for image in IMAGES]
RECIPE = Recipe(epochs=2, batch_size=4, lr=0.05, schedule="one-cycle")
TEST = TensorImages(IMAGES[:16], torch.tensor(TRUTH[:16]))
ALWAYS = {"stop_when": ("uncertainty:1",), "stop": True}


def learner(
    schedule=(6, 12, 20, 30), *, test=TEST, oracle=None, listener=None, folder=None, state=None, **config
):
    def factory():
        return models.mlp(2, in_channels=1, image_size=(8, 8), hidden=(8, 8))

    settings = {"strategy": "margin", "recipe": RECIPE, **config}
    return ActiveLearning(
        factory,
        IMAGES,
        test,
        LoopConfig(schedule=schedule, **settings),
        oracle=oracle or (lambda indices: [TRUTH[index] for index in indices]),
        listener=listener,
        folder=folder,
        state=state,
    )


# --- what is looked at


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_kappa_is_scikit_learns(pairs):
    from sklearn.metrics import cohen_kappa_score

    a, b = (torch.tensor(side) for side in zip(*pairs, strict=True))
    found = cohens_kappa(a, b, 4)
    if len({*a.tolist(), *b.tolist()}) == 1:
        assert found == 1.0
    else:
        assert found == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)


def of_pool(logits, unlabeled):
    return Pool(torch.tensor(unlabeled), torch.tensor([0]), torch.Generator(), logits=logits)


def test_uncertainty_is_the_mean_entropy_and_rows_without_numbers_count_for_nothing():
    logits = torch.tensor([[0.0, 0.0], [100.0, 0.0], [float("nan"), 0.0]])
    found = measure(of_pool(logits, [1, 3, 4]), 6, None)
    assert found.signals == {"uncertainty": pytest.approx(0.5)}
    assert found.classes.tolist()[3] == 0
    assert found.classes.tolist()[0] == found.classes.tolist()[2] == found.classes.tolist()[4] == -1
    nothing = measure(of_pool(torch.full((2, 3), float("nan")), [1, 2]), 6, None)
    assert nothing.signals == {}
    assert nothing.classes.eq(-1).all()


def test_classes_are_compared_where_both_rounds_have_one():
    before = torch.tensor([-1, 0, 1, 0, 1, -1])
    after = measure(of_pool(torch.tensor([[1.0, 0], [0, 1.0], [0, 1.0]]), [1, 2, 5]), 6, before)
    assert after.signals["kappa"] == 1.0
    other = measure(of_pool(torch.tensor([[0, 1.0], [1.0, 0]]), [1, 2]), 6, before)
    assert other.signals["kappa"] == -1.0


def test_kappa_has_to_hold_three_times_in_the_mean_and_others_now():
    def kappas(*values):
        return [{}, *({"kappa": value} for value in values)]

    rules = ("kappa:0.9",)
    assert proposing(rules, kappas(1.0, 1.0)) == ()
    assert proposing(rules, kappas(1.0, 1.0, 0.8)) == ("kappa:0.9",)
    assert proposing(rules, kappas(1.0, 1.0, 1.0, 0.5)) == ()
    assert proposing(rules, [*kappas(1.0, 1.0, 1.0), {}]) == ()
    both = ("uncertainty:0.1", "cost:100")
    assert proposing(both, [{"uncertainty": 0.1, "cost": 100.0}]) == ("uncertainty:0.1",)
    assert proposing(both, [{"uncertainty": 0.2, "cost": 101.0}]) == ("cost:100",)
    assert proposing(both, []) == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stop_when": ("kappa",)}, "stop_when must be any of kappa:X"),
        ({"stop_when": ("kappa:1.5",)}, "stop_when must be"),
        ({"stop_when": ("kappa:nan",)}, "stop_when must be"),
        ({"stop_when": ("loss:0.5",)}, "stop_when must be"),
        ({"stop_when": ("kappa:0.9", "kappa:0.8")}, "each once"),
        ({"stop": True}, "stop must be False without stop_when"),
        ({"stop_when": ("kappa:0.9",), "strategy": "random"}, "stop_when must be cost alone with random"),
    ],
)
def test_rules_that_mean_nothing_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        LoopConfig(schedule=(6, 12), recipe=RECIPE, **options)


# --- the loop


def test_rules_that_only_propose_change_no_pick_and_no_weight():
    events = []
    plain, told = learner(), learner(stop_when=("uncertainty:1", "kappa:0"), listener=events.append)
    rounds, seen = list(plain), list(told)
    assert [one.picks for one in rounds] == [one.picks for one in seen]
    assert all(
        torch.equal(a, b) for a, b in zip(plain.final.parameters(), told.final.parameters(), strict=True)
    )
    stops = [event for event in events if isinstance(event, Stop)]
    assert [(one.round, one.labels, one.stopped) for one in stops] == [
        (0, 6, False),
        (1, 12, False),
        (2, 20, False),
    ]
    assert seen[0].signals == {}
    assert seen[1].signals.keys() == {"uncertainty"}
    assert all(one.signals.keys() == {"uncertainty", "kappa"} for one in seen[2:])


@pytest.mark.parametrize("strategy", ["margin", "k_center", "badge", "bald"])
def test_rules_look_at_what_any_strategy_asks(strategy):
    def factory():
        return models.mlp(2, in_channels=1, image_size=(8, 8), hidden=(8, 8))

    def made():
        model = factory()
        model.dropout.p = 0.2
        return model

    config = LoopConfig(schedule=(6, 12, 20), strategy=strategy, recipe=RECIPE, stop_when=("kappa:0.5",))
    loop = ActiveLearning(made, TensorImages(IMAGES, torch.tensor(TRUTH)), None, config)
    rounds = list(loop)
    assert -1 <= rounds[2].signals["kappa"] <= 1
    assert 0 <= rounds[2].signals["uncertainty"] <= 1


@pytest.mark.parametrize("finals", ["all", "last"])
@pytest.mark.parametrize("selector", ["prunefuse", "dense"])
def test_a_loop_that_stops_is_a_loop_that_was_to_end_there(finals, selector):
    events = []
    settings = {"finals": finals, "selector": selector}
    loop = learner(listener=events.append, **ALWAYS, **settings)
    rounds = list(loop)
    assert [one.labels for one in rounds] == [6]
    assert loop.state.stopped == 1
    assert isinstance(events[-1], Stop)
    assert events[-1].stopped
    assert not any(isinstance(event, Round) for event in events[events.index(events[-1]) :])
    short = learner((6,), **settings)
    [expected] = short
    assert loop.state.rounds[0].picks == expected.picks
    assert all(
        torch.equal(a, b) for a, b in zip(loop.final.parameters(), short.final.parameters(), strict=True)
    )
    assert loop.state.rounds[0].final_accuracy in (expected.final_accuracy, expected.selector_accuracy)
    assert loop.state.rounds[0].final_accuracy is not None
    assert list(loop) == []
    assert "score_pool" in {cost.phase for cost in loop.state.rounds[0].costs}  # what it took to see it


def test_a_network_that_a_rule_of_cost_needs_is_trained_when_it_stops():
    """Random picks, and final networks at the last size only: the round that turns out to be last has trained nothing."""
    least = sum(line.flops for line in learner(strategy="random", finals="last").planned)
    loop = learner(strategy="random", finals="last", stop_when=(f"cost:{least / 1e6}",), stop=True)
    rounds = list(loop)
    assert [one.labels for one in rounds] == [6, 12, 20]
    assert loop.state.rounds[-1].final_accuracy is not None
    short = learner((6, 12, 20), strategy="random", finals="last")
    list(short)
    assert all(
        torch.equal(a, b) for a, b in zip(loop.final.parameters(), short.final.parameters(), strict=True)
    )


def test_cost_stops_before_the_round_that_would_exceed_it():
    whole = learner()
    [*_] = whole
    sums = [
        sum(cost.flops for one in whole.state.rounds[:count] for cost in one.costs) for count in (1, 2, 3, 4)
    ]
    loop = learner(stop_when=(f"cost:{(sums[1] + sums[2]) / 2}",), stop=True)
    assert [one.labels for one in loop] == [6, 12]
    assert sum(cost.flops for one in loop.state.rounds for cost in one.costs) == pytest.approx(sums[1])


class Killed(Exception):
    pass


def test_a_loop_that_is_killed_while_it_stops_stops_where_it_would_have(tmp_path):
    whole = learner(finals="last", **ALWAYS)
    list(whole)
    seen = []

    def kill(event):
        seen.append(event)
        if isinstance(event, Epoch) and event.network == "final" and len(seen) > 1:
            raise Killed

    with pytest.raises(Killed):
        list(learner(finals="last", folder=tmp_path / "mine", listener=kill, **ALWAYS))
    again = learner(finals="last", folder=tmp_path / "mine", **ALWAYS)
    list(again)
    assert again.state.stopped == 1
    assert all(
        torch.equal(a, b) for a, b in zip(again.final.parameters(), whole.final.parameters(), strict=True)
    )
    # Made anew it stays stopped; without the rule it goes on, to what it would have been.
    assert list(learner(finals="last", folder=tmp_path / "mine", **ALWAYS)) == []
    on = learner(finals="last", folder=tmp_path / "mine")
    assert [one.labels for one in on] == [12, 20, 30]
    plain = learner(finals="last")
    assert [one.picks for one in plain] == [one.picks for one in on.state.rounds]
    assert all(
        torch.equal(a, b) for a, b in zip(on.final.parameters(), plain.final.parameters(), strict=True)
    )


def test_rules_see_the_same_when_a_loop_goes_on(tmp_path):
    rules = ("kappa:0.99", "uncertainty:0")
    whole = list(learner(stop_when=rules))
    list(learner((6, 12), stop_when=rules, folder=tmp_path / "mine"))
    rest = learner(stop_when=rules, folder=tmp_path / "mine")
    list(rest)
    assert [one.signals for one in rest.state.rounds] == [one.signals for one in whole]


def test_people_are_told_of_rules_and_asked_no_more_where_one_stops(tmp_path):
    loop = learner(oracle="people", test=None, stop_when=("uncertainty:1",))
    first = loop.ask()
    assert first.stop == ()
    loop.tell([TRUTH[index] for index in first.indices])
    second = loop.ask()
    assert len(second.indices) == 6
    assert second.stop == ("uncertainty:1",)

    loop = learner(oracle="people", test=None, folder=tmp_path / "mine", **ALWAYS)
    loop.tell([TRUTH[index] for index in loop.ask().indices])
    assert loop.ask().indices == ()
    assert loop.state.stopped == 1
    assert learner(oracle="people", test=None, folder=tmp_path / "mine", **ALWAYS).ask().indices == ()


# --- runs


def of_digits(**changes):
    settings = {"model": "mlp", "schedule": ("20", "30", "45"), "seeds": (0, 1), "threads": 1}
    recipe = Recipe(epochs=2, batch_size=32, lr=0.05, schedule="one-cycle")
    return RunConfig(**(settings | {"device": "cpu", "recipe": recipe} | changes))


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("jobs", [1, 2])
def test_arms_of_a_run_stop_each_for_itself_and_the_run_is_finished(tmp_path, jobs, capfd):
    out = run(of_digits(out=str(tmp_path / "run"), jobs=jobs, stop_when=("uncertainty:1",), stop=True))
    reached = {(row["arm"], row["seed"]): int(row["labels"]) for row in rows(out / "metrics.csv")}
    assert reached == {
        (arm, seed): 45 if arm == "random" else 20
        for arm in ("prunefuse", "dense", "random")
        for seed in ("0", "1")
    }
    told = capfd.readouterr().err
    assert "stopped at 20 labels by uncertainty:1" in told
    facts = json.loads((out / "config.json").read_text())
    assert facts["finished"]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert resume(out, quiet=True) == out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_what_rules_look_at_is_in_the_table(tmp_path):
    out = run(of_digits(out=str(tmp_path / "run"), seeds=(0,), jobs=1, stop_when=("kappa:0.99",)), quiet=True)
    table = {(row["arm"], row["round"]): row for row in rows(out / "metrics.csv")}
    assert table["prunefuse", "1"]["kappa"] == ""
    assert 0 < float(table["prunefuse", "1"]["uncertainty"]) <= 1
    assert -1 <= float(table["prunefuse", "2"]["kappa"]) <= 1
    assert table["random", "2"]["uncertainty"] == ""
