from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from prunefuse.experiment.progress import Forecast, RunProgress
from prunefuse.experiment.records import Cost, Epoch, Phase, Progress, Round

PLANNED = {
    "prunefuse": [
        Cost("train_selector", "selector", 0, 20, 100.0, 0.0),
        Cost("train_final", "final", 0, 20, 400.0, 0.0),
    ],
    "random": [Cost("train_final", "final", 0, 20, 400.0, 0.0)],
}


def epoch(number, seconds, test_accuracy=None):
    return Epoch(0, "selector", number, 4, 0.1, 1.234, 0.5, test_accuracy, seconds)


def ended(costs, **changes):
    fields = {"index": 0, "labels": 20, "picks": (), "utilities": None, "selector_accuracy": 0.5}
    fields |= {"final_accuracy": 0.625, "unselectable": 0, "epochs": (), "costs": tuple(costs)}
    return Round(**(fields | changes))


def test_time_left_follows_the_pace_of_each_kind_of_work():
    forecast = Forecast(PLANNED, seeds=2)
    assert forecast.seconds() == (0.0, None)
    # Half of the first selector in 5 seconds: all work left, 1700 of 1800 FLOPs, is taken to go at 0.1 s a FLOP.
    forecast.work(("prunefuse", "train_selector", "selector"), 50.0, 5.0)
    assert forecast.seconds() == pytest.approx((5.0, 175.0))
    # A round's ledger replaces its parts. The final network turns out to be faster per FLOP; unseen work (the
    # random arm) is taken to go at the pace of everything so far, 18 s for 500 FLOPs.
    forecast.complete(
        "prunefuse",
        [
            Cost("train_selector", "selector", 0, 20, 100.0, 10.0),
            Cost("train_final", "final", 0, 20, 400.0, 8.0),
        ],
    )
    assert forecast.seconds() == pytest.approx((18.0, 10.0 + 8.0 + 800 * 18 / 500))
    forecast.complete("random", [Cost("train_final", "final", 0, 20, 400.0, 8.0)])
    forecast.complete("random", [Cost("train_final", "final", 0, 20, 400.0, 8.0)])
    forecast.complete(
        "prunefuse",
        [
            Cost("train_selector", "selector", 0, 20, 100.0, 10.0),
            Cost("train_final", "final", 0, 20, 400.0, 8.0),
        ],
    )
    assert forecast.seconds() == pytest.approx((52.0, 0.0))


def test_several_tasks_at_a_time_are_counted_apart():
    forecast = Forecast(PLANNED, seeds=2)
    forecast.work(("prunefuse", "train_selector", "selector"), 50.0, 5.0, "first")
    forecast.work(("prunefuse", "train_selector", "selector"), 100.0, 10.0, "second")
    # 200 planned, 150 done; the rest at the pace of everything.
    assert forecast.seconds() == pytest.approx((15.0, 5.0 + 1600 * 0.1))
    # The ledger of one replaces what was known of it, and of it alone.
    forecast.complete("prunefuse", [Cost("train_selector", "selector", 0, 20, 100.0, 8.0)], "first")
    assert forecast.seconds()[0] == pytest.approx(18.0)
    assert forecast.by_phase() == {"train_selector": pytest.approx(18.0)}


def test_time_left_is_shared_by_the_processes():
    progress = RunProgress(console=Console(file=io.StringIO(), force_terminal=False))
    with progress.running(PLANNED, 1, 5, jobs=2):
        for arm in ("prunefuse", "random"):
            progress.begin(arm, arm, f"{arm}, seed 0")
            progress(arm, Phase(0, "train_final", "final", 20, 4, 400.0))
        progress("prunefuse", Epoch(0, "final", 1, 4, 0.1, 1.0, 0.5, None, 10.0))
        shown = io.StringIO()
        Console(file=shown, width=140).print(progress.renderable())
    assert "prunefuse, seed 0, round 1/5" in shown.getvalue()
    assert "random, seed 0, round 1/5" in shown.getvalue()
    # 800 of 900 FLOPs at 0.1 s each, in two processes.
    assert "about 40 s left" in shown.getvalue()


def test_status_json_says_where_a_run_is(tmp_path):
    progress = RunProgress(quiet=True)
    with progress.running(PLANNED, 1, 5, status=tmp_path / "status.json"):
        progress.begin("trial", "prunefuse", "prunefuse, seed 3")
        progress("trial", Phase(0, "train_selector", "selector", 20, 4, 100.0))
        progress("trial", epoch(1, 2.0))
        progress("trial", ended([Cost("train_selector", "selector", 0, 20, 100.0, 8.0)]))
    told = json.loads((tmp_path / "status.json").read_text())
    assert told["seconds"] == {"train selector": 8.0}
    assert told["left"] == pytest.approx(64.0)
    assert told["tasks"][0]["where"] == "prunefuse, seed 3, round 1/5, 20 labels"


def test_planning_is_not_taken_for_the_pace_of_the_work():
    forecast = Forecast(PLANNED, seeds=1)
    forecast.work(("prunefuse", "plan", "selector"), 0.0, 60.0)
    assert forecast.seconds() == (60.0, None)
    forecast.work(("prunefuse", "train_selector", "selector"), 50.0, 5.0)
    assert forecast.seconds() == pytest.approx((65.0, 85.0))


def watch(console, **options):
    progress = RunProgress(console=console, **options)
    progress("trial", Phase(0, "plan", "selector", 0, 0, 0.0))  # while a loop is made: before anything begins
    with progress.running(PLANNED, 1, 5):
        progress.note("run folder [runs/x]")
        progress.begin("trial", "prunefuse", "prunefuse, seed 3")
        progress("trial", Phase(0, "train_selector", "selector", 20, 4, 100.0))
        progress("trial", epoch(1, 2.0))
        progress("trial", epoch(2, 2.0, test_accuracy=0.75))
        progress("trial", Phase(0, "score_pool", "selector", 20, 0, 10.0))
        progress("trial", Progress(500, 1000, "scoring the pool"))
        live = progress
        shown = io.StringIO()
        Console(file=shown, width=120).print(live.renderable())
        progress("trial", ended([Cost("train_selector", "selector", 0, 20, 100.0, 8.0)], unselectable=2))
    return shown.getvalue()


def test_a_log_gets_plain_lines():
    text = io.StringIO()
    watch(Console(file=text, force_terminal=False, soft_wrap=True))
    first, second = text.getvalue().splitlines()
    assert first == "run folder [runs/x]"
    assert second.startswith(
        "prunefuse, seed 3    round 1/5      20 labels  final 62.5 %, selector 50.0 %, 2 samples"
    )
    assert "about 64 s left" in second
    assert "\x1b" not in text.getvalue()


def test_a_terminal_gets_a_live_display():
    text = io.StringIO()
    shown = watch(Console(file=text, force_terminal=True, width=120))
    assert "prunefuse, seed 3, round 1/5, 20 labels" in shown
    assert "score pool" in shown
    assert "500 of 1,000 samples" in shown
    assert "whole run" in shown
    assert "left" in shown
    assert "final 62.5 %" in text.getvalue()


def test_quiet_says_nothing():
    text = io.StringIO()
    watch(Console(file=text, force_terminal=True), quiet=True)
    assert text.getvalue() == ""


def test_an_epoch_is_shown_with_loss_and_accuracy():
    progress = RunProgress(console=Console(file=io.StringIO(), force_terminal=False))
    with progress.running(PLANNED, 1, 5):
        progress.begin("trial", "prunefuse", "prunefuse, seed 0")
        progress("trial", Phase(0, "train_selector", "selector", 20, 4, 100.0))
        progress("trial", epoch(1, 2.0))
        shown = io.StringIO()
        Console(file=shown, width=140).print(progress.renderable())
        assert "epoch 1/4, loss 1.234, accuracy 50.0 % (labeled set)" in shown.getvalue()
        progress("trial", epoch(2, 2.0, test_accuracy=0.75))
        shown = io.StringIO()
        Console(file=shown, width=140).print(progress.renderable())
        assert "epoch 2/4, loss 1.234, accuracy 75.0 % (test set)" in shown.getvalue()
