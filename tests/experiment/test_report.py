"""The report and the summaries it shows, from run folders written by hand, so that every number is known."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import OrderedDict
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from prunefuse._table import Group
from prunefuse.experiment import folder
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.cost import FORMULA
from prunefuse.experiment.folder import RunFolderError, Trial
from prunefuse.experiment.records import Cost, Epoch, Round
from prunefuse.experiment.report import render, report, tables, text_table
from prunefuse.experiment.summary import summarize, whole_cost
from prunefuse.pruning import plan_pruning

SCHEDULE = (28, 57, 86, 143, 287)
F_SMALL, F_DENSE = 1.3e6, 5.1e6


def make_run(
    path, seeds=(0, 1, 2), arms=("prunefuse", "dense", "random"), finished=True, data=None, **settings
):
    """A run folder with plausible numbers that depend on arm, seed and round in a known way."""
    path.mkdir(parents=True)
    config = {
        "format": 1,
        "name": path.name,
        "command": f"prunefuse run --seed {seeds[0]} --seeds {len(seeds)}",
        "started": "2026-11-21T03:30:00+00:00",
        "finished": "2026-11-21T03:34:00+00:00" if finished else None,
        "config": dataclasses.asdict(RunConfig(seeds=tuple(seeds))),
        "schedule": list(SCHEDULE),
        "data": {"name": "digits", "pool": 1437, "test": 360, "classes": 10, "input_shape": [1, 8, 8]}
        | (data or {}),
        "arms": {arm: {"prune_ratio": 0.5} | (settings if arm == "prunefuse" else {}) for arm in arms},
        "versions": {"prunefuse": "0.1"},
        "machine": {"device": "cpu", "device_name": "Some CPU", "threads": 2},
    }
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    trials = [Trial(arm, seed, tuple(make_rounds(arm, seed))) for seed in seeds for arm in arms]
    write_tables(path, trials, FORMULA)
    return path


def write_tables(path, trials, formula):
    for name, text in folder.tables(trials, formula).items():
        (path / name).write_text(text, encoding="utf-8")


def make_rounds(arm, seed):
    selector = F_SMALL if arm == "prunefuse" else F_DENSE
    for index, labels in enumerate(SCHEDULE):
        costs = []
        if index and arm != "random":
            known = SCHEDULE[index - 1]
            costs.append(
                Cost("score_pool", "selector", index, known, (1437 - known) * selector, 0.3 + 0.01 * seed)
            )
            costs.append(Cost("select", "selector", index, known, 0.0, 0.002))
        trains_selector = arm == "prunefuse" or (arm == "dense" and index + 1 < len(SCHEDULE))
        if trains_selector:
            costs.append(
                Cost("train_selector", "selector", index, labels, 120.0 * labels * selector, labels * 0.02)
            )
        if arm == "prunefuse" or not trains_selector:
            costs.append(Cost("train_final", "final", index, labels, 120.0 * labels * F_DENSE, labels * 0.03))
        if arm == "prunefuse":
            costs.append(Cost("teacher", "selector", index, labels, 40.0 * labels * F_SMALL, labels * 0.005))
        costs.append(Cost("evaluate", "final", index, labels, 360 * F_DENSE, 0.1))
        network = "selector" if arm == "dense" and trains_selector else "final"
        epochs = tuple(
            Epoch(index, network, e, 40, 0.1, 2.3 * math.exp(-e / 9), 1 - math.exp(-e / 8), None, 0.1)
            for e in range(1, 41)
        )
        accuracy = accuracy_of(arm, seed, index)
        yield Round(
            index=index,
            labels=labels,
            picks=tuple(range(SCHEDULE[index - 1] if index else 0, labels)),
            utilities=None,
            selector_accuracy=accuracy - 0.02 if trains_selector else None,
            final_accuracy=accuracy,
            unselectable=0,
            epochs=epochs,
            costs=tuple(costs),
        )


def accuracy_of(arm, seed, index):
    start = {"prunefuse": 0.62, "dense": 0.58, "random": 0.55}[arm]
    return round(1 - (1 - start) * 0.55**index + 0.004 * (seed - 1) * (5 - index) / 5, 6)


class Page(HTMLParser):
    """Tags, addresses and text of a page; refuses tags that are not closed in order."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.text, self.open = [], [], "", []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [
            value for name, value in attributes if name in ("src", "href", "action", "data", "srcset")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def summary_of(*paths):
    return summarize([folder.read(path) for path in paths])


def test_a_run_folder_reads_back_as_it_was_written(tmp_path):
    run = folder.read(make_run(tmp_path / "run", seeds=(3,)))
    assert [(trial.arm, trial.seed) for trial in run.trials] == [
        ("prunefuse", 3),
        ("dense", 3),
        ("random", 3),
    ]
    for trial in run.trials:
        expected = [dataclasses.replace(done, picks=()) for done in make_rounds(trial.arm, 3)]
        assert list(trial.rounds) == expected
    assert run.formula == FORMULA


def test_the_report_is_one_file_that_needs_nothing_from_outside(tmp_path):
    path = report([make_run(tmp_path / "run")])
    assert path == tmp_path / "run" / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert not page.addresses
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(figures) == page.tags.count("svg") >= 10
    for svg in figures:  # the figures are whole and need nothing either
        ElementTree.fromstring(svg)
        assert not re.findall(r'href="(?!#)', svg)
    names = re.findall(r'\bid="([^"]*)"', html)
    assert len(names) == len(set(names))
    for used in re.findall(r'(?:href="|url\()#([^")]*)', html):
        assert used in names


def test_the_page_is_made_for_the_dark_and_for_paper_too(tmp_path):
    html = report([make_run(tmp_path / "run")]).read_text(encoding="utf-8")
    page, _, body = html.partition("</style>")
    for rule in ("screen and (prefers-color-scheme: dark)", "@media print", "(max-width: 600px)"):
        assert rule in page
    # All colors of the body have a name that stands for another shade in the dark.
    assert not re.search(r"[:\"]\s*#[0-9a-f]{3,6}\b", body)
    named = set(re.findall(r"var\(--([a-z0-9]+)\)", body)) - {"c"}
    assert named
    for name in named:
        light, dark = re.findall(rf"--{name}: (#[0-9a-f]{{6}});", page)
        assert light != dark


HOSTILE = "<script>alert('x')</script>&amp;<img src=x onerror=alert(1)>$\\frac{1}$ ]]>"


def test_names_given_by_a_user_are_text_and_never_run(tmp_path):
    path = make_run(tmp_path / "run", seeds=(0,), data={"name": HOSTILE, "classes": HOSTILE})
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["command"] = config["versions"]["prunefuse"] = config["machine"]["device_name"] = HOSTILE
    config["config"] |= {"strategy": HOSTILE, "model": HOSTILE, "selector": HOSTILE, "data": HOSTILE}
    config["config"]["recipe"]["schedule"] = HOSTILE
    config["arms"] = {HOSTILE if arm == "prunefuse" else arm: what for arm, what in config["arms"].items()}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    trials = [Trial(arm, 0, tuple(make_rounds("dense", 0))) for arm in config["arms"]]
    write_tables(path, trials, HOSTILE)
    plan = plan_pruning(
        nn.Sequential(OrderedDict({HOSTILE.replace(".", ""): nn.Linear(3, 4), "b": nn.Linear(4, 2)})),
        torch.zeros(1, 3),
    )
    plan = dataclasses.replace(plan, notes=(HOSTILE,))
    place = folder.trial_folder(path, HOSTILE, 0)
    place.mkdir(parents=True, exist_ok=True)
    plan.save(place / "plan.json")
    html = render(summarize([folder.read(path)]))
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count(HOSTILE) >= 15
    texts = [
        text
        for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
        for text in ElementTree.fromstring(svg).itertext()
    ]
    assert any("<script>" in text for text in texts)


def test_the_report_says_what_was_found_and_how(tmp_path):
    text = Page(report([make_run(tmp_path / "run")]).read_text(encoding="utf-8")).text
    for line in FORMULA.splitlines():
        assert line in text
    assert "prunefuse run --seed 0 --seeds 3" in text
    assert "3 seeds (0, 1, 2)" in text
    assert "a backward pass is counted as two forward passes" in text
    assert "two per multiply-add" in text
    assert "after the last epoch" in text
    for word in ("train selector", "score pool", "select", "train final", "teacher", "evaluate"):
        assert word in text
    for arm in ("prunefuse", "dense", "random"):
        final = [accuracy_of(arm, seed, 4) for seed in (0, 1, 2)]
        assert f"{100 * sum(final) / 3:.1f} %" in text
        assert f"{100 * min(final):.1f}–{100 * max(final):.1f}" in text


def with_metrics(path, name, classes, **others):
    """The record of such a run whose final networks have all of these metrics, the first being its accuracy."""
    run = folder.read(path)

    def measured(trial, done):
        of_each = tuple(done.final_accuracy - 0.1 * place for place in range(classes - 1)) + (math.nan,)
        return {
            "final": {name: done.final_accuracy, **others, "spread": 0.01 * trial.seed, "recall": of_each}
        }

    trials = tuple(
        dataclasses.replace(
            trial,
            rounds=tuple(
                dataclasses.replace(done, metrics=measured(trial, done), final_accuracy=done.final_accuracy)
                for done in trial.rounds
            ),
        )
        for trial in run.trials
    )
    return dataclasses.replace(run, trials=trials)


def test_all_metrics_of_the_final_networks_have_a_table_with_deviations(tmp_path):
    record = with_metrics(make_run(tmp_path / "run"), "accuracy", 3, f1=0.25, ece=0.125)
    html = render(summarize([record]))
    text = " ".join(Page(html).text.split())
    assert "All metrics of the final networks with 287 samples (20 % of the pool) labeled" in text
    rows = [re.sub(r"<[^>]*>", "|", row) for row in re.findall(r"<tr>(.*?)</tr>", html, flags=re.DOTALL)]
    cells = [[cell.strip() for cell in row.split("|") if cell.strip()] for row in rows]
    values = [accuracy_of("prunefuse", seed, 4) for seed in (0, 1, 2)]
    mean, deviation = 100 * sum(values) / 3, 100 * 0.004 / 5  # values are this far apart
    [accuracy] = [row for row in cells if row[:1] == ["accuracy"]]
    assert accuracy[1] == f"{mean:.1f} ± {deviation:.1f} %"
    assert len(accuracy) == 4  # of three arms
    assert ["F1", *["0.250 ± 0.000"] * 3] in cells
    assert ["ECE", *["0.125 ± 0.000"] * 3] in cells
    assert ["spread", *["0.010 ± 0.010"] * 3] in cells
    assert [row for row in cells if row[:2] == ["1", f"{mean - 10:.1f}"]]  # recall of class 1
    assert ["2", "-", "-", "-"] in cells  # of which there was no sample


def test_another_first_metric_stands_where_accuracy_stood(tmp_path):
    record = with_metrics(make_run(tmp_path / "run"), "mean_iou", 2)
    summary = summarize([record])
    text = " ".join(Page(render(summary)).text.split())
    mean = sum(accuracy_of("dense", seed, 4) for seed in (0, 1, 2)) / 3
    assert "Mean IoU against labels" in text
    assert "test mean IoU of the final network" in text
    assert f"{mean:.3f}" in text
    assert "ccuracy" not in text
    table = text_table(summary)
    assert "mean IoU" in table
    assert f"{mean:.3f}" in table
    assert "%" not in table


def test_runs_without_metrics_have_no_table_of_them(tmp_path):
    text = Page(report([make_run(tmp_path / "run")]).read_text(encoding="utf-8")).text
    assert "Accuracy against labels" in text
    assert "All metrics" not in text


def test_one_seed_is_not_shown_as_a_spread(tmp_path):
    text = Page(report([make_run(tmp_path / "run", seeds=(0,))]).read_text(encoding="utf-8")).text
    assert "One seed: the spread between seeds is unknown" in text
    assert "1 seed (0)" in text


def test_the_cost_of_selection_is_that_of_the_formula(tmp_path):
    prunefuse, dense, random = summary_of(make_run(tmp_path / "run")).arms
    for arm, flops in ((prunefuse, F_SMALL), (dense, F_DENSE)):
        for position, labels in enumerate(SCHEDULE):
            before = SCHEDULE[:position]
            expected = sum(3 * 40 * known * flops + (1437 - known) * flops for known in before)
            spent = arm.selection(labels)
            assert spent[0].values == pytest.approx([expected] * 3)
            seconds = [
                sum(known * 0.02 + 0.3 + 0.01 * seed + 0.002 for known in before) for seed in (0, 1, 2)
            ]
            assert spent[1].values == pytest.approx(seconds)
        assert arm.selection(999) is None
    assert random.selection(287)[0].values == (0.0, 0.0, 0.0)
    # All phases of one seed, whether they are part of selecting or not.
    assert prunefuse.phases()["teacher"] == pytest.approx(
        (40 * sum(SCHEDULE) * F_SMALL, 0.005 * sum(SCHEDULE))
    )


def test_the_cost_of_the_whole_is_selection_and_one_final_network(tmp_path):
    path = make_run(tmp_path / "run", seeds=(0,))
    prunefuse, dense, random = summary_of(path).arms
    for labels in SCHEDULE:
        trained = 120.0 * labels * F_DENSE
        assert random.whole(labels)[0].values == pytest.approx([trained])
        # The dense selector is the final network, but for the last size, at which the final network is trained alone.
        assert dense.whole(labels)[0].values == pytest.approx([dense.selection(labels)[0].mean + trained])
        pruned = (
            trained + (120.0 + 40.0) * labels * F_SMALL
        )  # the final network, its selector, and that as a teacher
        assert prunefuse.whole(labels)[0].values == pytest.approx(
            [prunefuse.selection(labels)[0].mean + pruned]
        )
        seconds = labels * (0.03 + 0.02 + 0.005)
        assert prunefuse.whole(labels)[1].values == pytest.approx(
            [prunefuse.selection(labels)[1].mean + seconds]
        )
    assert prunefuse.whole(999) is None
    text = " ".join(Page(report([path]).read_text(encoding="utf-8")).text.split())
    saved = dense.whole(287)[0].mean / prunefuse.whole(287)[0].mean
    assert f"whole FLOPs {saved:.1f}× less" in text


def test_a_selector_that_no_final_network_comes_from_is_no_part_of_the_whole():
    costs = [
        Cost("train_selector", "selector", 0, 10, 1.0, 0.1),
        Cost("train_final", "final", 0, 10, 2.0, 0.2),
        Cost("score_pool", "selector", 1, 10, 4.0, 0.4),
        Cost("evaluate", "final", 0, 10, 8.0, 0.8),
        Cost("train_selector", "selector", 1, 20, 16.0, 1.6),
        Cost("train_final", "final", 1, 20, 32.0, 3.2),
    ]
    assert whole_cost(costs, 10).flops == 2
    assert whole_cost(costs, 20).flops == 1 + 4 + 32
    fused = [*costs, Cost("fuse", "final", 1, 20, 0.0, 6.4)]
    assert whole_cost(fused, 20).flops == 1 + 4 + 32 + 16
    assert whole_cost(fused, 20).seconds == pytest.approx(0.1 + 0.4 + 3.2 + 1.6 + 6.4)


def test_seeds_of_several_runs_are_pooled(tmp_path):
    first, second = make_run(tmp_path / "a", seeds=(0, 1)), make_run(tmp_path / "b", seeds=(2,))
    together, one = summary_of(first, second), summary_of(make_run(tmp_path / "c"))
    for pooled, alone in zip(together.arms, one.arms, strict=True):
        assert pooled.seeds == (0, 1, 2)
        assert pooled.accuracy(143, "final") == alone.accuracy(143, "final")
        assert pooled.selection(143) == alone.selection(143)
    out = report([first, second], tmp_path / "both.html")
    assert "2 runs" in Page(out.read_text(encoding="utf-8")).text
    with pytest.raises(ValueError, match="out must be given"):
        report([first, second])


def test_a_trial_given_twice_counts_once_and_the_report_says_so(tmp_path):
    run, again = make_run(tmp_path / "a", seeds=(0, 1)), make_run(tmp_path / "b", seeds=(1,))
    summary = summary_of(run, again)
    assert [arm.seeds for arm in summary.arms] == [(0, 1)] * 3
    assert "dense seed 1 of b" in Page(render(summary)).text


def test_arms_with_other_settings_are_not_pooled_but_told_apart(tmp_path):
    paths = [
        make_run(tmp_path / str(ratio), seeds=(seed,), prune_ratio=ratio)
        for seed, ratio in enumerate((0.5, 0.7))
    ]
    arms = {arm.label: arm for arm in summary_of(*paths).arms}
    assert list(arms) == ["prunefuse (prune ratio 0.5)", "prunefuse (prune ratio 0.7)", "dense", "random"]
    assert arms["dense"].seeds == (0, 1)  # the baselines do not depend on the ratio
    assert arms["prunefuse (prune ratio 0.7)"].seeds == (1,)
    report(paths, tmp_path / "both.html")


def test_runs_on_different_data_are_refused(tmp_path):
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", data={"pool": 1000})]
    with pytest.raises(RunFolderError, match="different data"):
        report(paths, tmp_path / "both.html")


def test_an_unfinished_run_and_samples_that_could_not_be_scored_are_told(tmp_path):
    path = make_run(tmp_path / "run", seeds=(0,), finished=False)
    run = folder.read(path)
    some = Trial("dense", 0, tuple(make_rounds("dense", 0))[:2])
    some = dataclasses.replace(
        some,
        rounds=(*some.rounds[:1], dataclasses.replace(some.rounds[1], unselectable=17, final_accuracy=None)),
    )
    write_tables(path, (run.trials[0], some), FORMULA)
    text = Page(report([path]).read_text(encoding="utf-8")).text
    assert "is not finished" in text
    assert "up to 17 pool samples" in text
    assert "random" not in text_table(summary_of(path))


def test_the_table_for_the_terminal_has_accuracy_and_cost(tmp_path):
    lines = text_table(summary_of(make_run(tmp_path / "run"))).splitlines()
    assert len(lines) == 1 + 3 * len(SCHEDULE)
    last = next(line for line in lines if line.startswith("prunefuse") and " 287 " in line)
    of_selection, of_the_whole = ["56", "G", "7.5"], ["291", "G", "23.3"]
    assert last.split() == ["prunefuse", "287", "96.5", "%", "96.4-96.6", "3", *of_selection, *of_the_whole]


def test_what_is_no_run_folder_is_refused_by_name(tmp_path):
    with pytest.raises(RunFolderError, match="is not a run folder"):
        report([tmp_path])
    path = make_run(tmp_path / "run")
    (path / "ledger.json").write_text('{"entries": [{"arm": "x"}]}')
    with pytest.raises(RunFolderError, match="cannot be read"):
        report([path])
    for content in ("", ",".join(folder.METRICS) + "\n"):
        empty = make_run(tmp_path / f"empty{len(content)}")
        (empty / "metrics.csv").write_text(content)
        with pytest.raises(RunFolderError, match="has no complete round"):
            report([empty])
    for name in ("metrics.csv", "epochs.csv", "ledger.json"):
        (path / name).unlink()
    with pytest.raises(RunFolderError, match="no complete round yet"):
        report([path])


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    report([make_run(tmp_path / "run", seeds=(0,))])
    assert dict(matplotlib.rcParams) == before


def test_rates_are_flops_over_seconds_where_both_are_known():
    paid = {"plan": (0.0, 2.0), "train_selector": (8e9, 4.0), "score_pool": (5e9, None)}
    shown = tables.by_phase(
        [(Group("prunefuse", 1), paid)],
        {phase: phase for phase in paid},
        sums={"both": ("plan", "train_selector")},
    )
    assert shown.head[1:] == ["FLOPs", "seconds", "FLOP/s"]
    assert [row[3] for row in shown.rows] == ["", "2 G", "", ""]
