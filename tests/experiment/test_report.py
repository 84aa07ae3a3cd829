"""The report and the summaries it shows, from run folders written by hand, so that every number is known."""

from __future__ import annotations

import base64
import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from prunefuse.experiment import folder
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.cost import FORMULA
from prunefuse.experiment.folder import RunFolderError, Trial
from prunefuse.experiment.records import Cost, Epoch, Round
from prunefuse.experiment.report import render, report, text_table
from prunefuse.experiment.summary import summarize

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
    folder.write_config(path, config)
    trials = [Trial(arm, seed, tuple(make_rounds(arm, seed))) for seed in seeds for arm in arms]
    folder.write_tables(path, trials, FORMULA)
    for trial in trials:
        folder.write_picks(path, trial)
    return path


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
