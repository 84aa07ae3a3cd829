"""Where a run is: what `prunefuse status` prints, of one that goes on, was stopped, or is finished."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from prunefuse import _lock
from prunefuse._table import Table
from prunefuse.experiment import folder, trial
from prunefuse.experiment.extrapolate.record import KIND
from prunefuse.experiment.extrapolate.record import read as read_extrapolation
from prunefuse.experiment.format import duration
from prunefuse.experiment.progress import STATUS, TITLES
from prunefuse.experiment.study.kind import KIND as STUDY


def status(path: str | Path) -> list[Table | str]:
    """Whether a run goes on, where it is, the time left, and where the time went, as lines and a table.

    Raises:
        RunFolderError: ``path`` is not a run folder, or a file that is read was changed.
    """
    path = Path(path)
    facts = folder.read_facts(path)
    owner = _lock.owner(path)
    told = _told(path) if owner is not None else None
    blocks: list[Table | str] = []
    if facts["finished"] is not None:
        blocks.append(f"{path} is finished: {path / 'report.html'}")
    elif owner is not None:
        blocks.append(f"{path} goes on, in process {owner['pid']} on {owner['host']}")
    else:
        kind = facts.get("kind", "run")
        again = f"prunefuse {kind} --resume {path}"
        if kind == STUDY:
            again = facts["command"] or "run it again with this folder"
        blocks.append(f"{path} was stopped. To go on: {again}")
    if told is not None:
        for task in told["tasks"]:
            blocks.append("  " + ", ".join(filter(None, (task["where"], task["phase"], task["what"]))))
        left = "unknown" if told["left"] is None else f"about {duration(told['left'])}"
        blocks.append(f"time left: {left}; so far {duration(told['elapsed'])}, as of {told['written']}")
    done, seconds = _done(path, facts)
    blocks += [done, ""]
    spent = (told["seconds"] if told is not None else {}) or seconds
    if spent:
        whole = sum(spent.values()) or 1.0
        rows = [
            [name, duration(amount), f"{100 * amount / whole:.0f} %"]
            for name, amount in sorted(spent.items(), key=lambda item: -item[1])
        ]
        blocks.append(Table(["where the time went", "", ""], rows))
    return blocks


def _runs(path: Path) -> list[str]:
    """Names of the runs of a study that have begun."""
    return sorted(place.parent.name for place in (path / "trials").glob(f"*/{folder.CONFIG}"))


def _told(path: Path) -> dict[str, Any] | None:
    """What the process that runs said last."""
    try:
        told: dict[str, Any] = json.loads((path / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told


def _done(path: Path, facts: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """What is done, and the seconds of it by phase."""
    sums: dict[str, float] = defaultdict(float)
    if facts.get("kind") == KIND:
        record = read_extrapolation(path)
        for seed in record.done:
            for line in record.lines(seed):
                sums[TITLES[line.phase]] += line.seconds
        return f"{sum(map(len, record.done.values()))} steps are done", dict(sums)
    if facts.get("kind") == STUDY:
        places = [(path / "trials" / name, folder.read_facts(path / "trials" / name)) for name in _runs(path)]
        for place, own in places:
            for name, seconds in _done(place, own)[1].items():
                sums[name] += seconds
        finished = sum(own["finished"] is not None for _, own in places)
        return f"{finished} of {len(places)} runs are finished", dict(sums)
    total, done = 0, []
    for seed in facts["config"]["seeds"]:
        for arm in facts["arms"]:
            rounds = trial.read_rounds(folder.trial_folder(path, arm, seed))
            total += len(rounds)
            done.append(f"{arm}, seed {seed}: {len(rounds)}")
            for cost in (cost for one in rounds for cost in one.costs):
                sums[TITLES[cost.phase]] += cost.seconds
    of = len(facts["schedule"]) * len(done)
    return f"{total} of {of} rounds are done ({'; '.join(done)})", dict(sums)
