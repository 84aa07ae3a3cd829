"""The report of `prunefuse extrapolate`, and the tables beside it: accuracy, cost and agreement of every arm."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from prunefuse import _commit, _lock
from prunefuse import _files as files
from prunefuse._table import Group, Table
from prunefuse.errors import DamagedFileError, RunFolderError
from prunefuse.experiment import folder
from prunefuse.experiment.extrapolate.ledger import FORMULA, TITLES, spent
from prunefuse.experiment.extrapolate.record import ExtrapolateRecord, read
from prunefuse.experiment.format import engineering, made, percent, setting
from prunefuse.experiment.report import figures, page, tables

METRICS = ("arm", "seed", "kept", "accuracy", "flops", "seconds")
# Colors of phases in drawings; blue ones stand for F_s, orange for the final network.
_SHADES = {
    "plan": "gray",
    "train_subset": "blue",
    "record": "green",
    "embed": "blue2",
    "answer": "violet",
    "neighbors": "blue3",
    "extrapolate": "indigo",
    "train_full": "magenta",
    "select": "gray3",
    "fuse": "gray2",
    "train_final": "orange",
}
_MAKING = ("fuse", "train_final")  # the network of what is kept; all else is selecting that
_SUMS = {
    "selection": tuple(phase for phase in TITLES if phase not in _MAKING),
    "all": tuple(TITLES),
}


def report(path: str | PathLike[str], out: str | PathLike[str] | None = None) -> Path:
    """Write ledger.json, metrics.csv and report.html (or ``out`` instead of that) from what is done; returns the last.

    Raises:
        RunFolderError: ``path`` is not a folder of such a run.
    """
    record = read(Path(path))
    owner = _lock.owner(record.path)
    if owner is None or owner["pid"] == os.getpid():  # else they are written by the process that runs
        _write_tables(record)
    target = record.path / "report.html" if out is None else Path(out)
    files.write_text(target, render(record))
    return target


def _write_tables(record: ExtrapolateRecord) -> None:
    entries = [{"seed": seed, **asdict(line)} for seed in record.done for line in record.lines(seed)]
    ledger = json.dumps({"formula": FORMULA, "entries": entries}, indent=1, ensure_ascii=False) + "\n"
    rows = []
    for arm in record.arms:
        for keep in record.config["keeps"]:
            for seed, final in record.finals(arm, keep).items():
                costs = spent(record.lines(seed), arm, keep).values()
                sums = [sum(part) for part in zip(*costs, strict=True)]
                cells = (arm.name, seed, keep, final["accuracy"], *sums)
                rows.append(dict(zip(METRICS, cells, strict=True)))
    contents = {"ledger.json": ledger, "metrics.csv": files.csv_text(METRICS, rows)}
    if record.config["format"] == 1:
        for name, text in contents.items():
            files.write_text(record.path / name, text)
        return
    try:
        folder.check(record.path)
    except DamagedFileError as error:
        raise RunFolderError(str(error)) from error
    _commit.commit(record.path, {name: files.utf8(text) for name, text in contents.items()})


def overview(record: ExtrapolateRecord) -> list[Table | str]:
    """Accuracy, cost and agreement of a run, for a terminal."""
    blocks: list[Table | str] = []
    for keep in record.config["keeps"]:
        short = [(Group(name, 2), cost) for name, _, cost in _costs(record, keep)]
        cost = tables.by_phase(short, TITLES, sums=_SUMS, together=True)
        blocks += [_kept_line(record, keep), _accuracy_table(record, keep), "", cost, ""]
    agreed = _agreement_table(record)
    if agreed.rows:
        blocks += ["agreement of extrapolated scores", agreed, ""]
    return blocks[:-1]


def step_line(found: Mapping[str, Any]) -> str:
    """What a step found, for a line of a log."""
    if "accuracy" in found:
        return f"{found['samples']:>7,} samples, test accuracy {100 * found['accuracy']:.1f} %"
    if "held_out" in found:
        return f"Pearson {_number(found['held_out']['pearson'])} on the held-out part"
    return ""


def render(record: ExtrapolateRecord) -> str:
    """The report as HTML."""
    facts = record.config
    title = f"{facts['config']['model']} on a pruned {facts['data']['name']}"
    sections = [page.Section(_kept_line(record, keep), _kept(record, keep)) for keep in facts["keeps"]]
    sections.append(page.Section("How cost is counted", [page.Verbatim(FORMULA)]))
    agreed = _agreement_table(record)
    if agreed.rows:
        note = (
            "Overlap: the part of the samples kept by the true scores that are also kept by the extrapolated ones. Held "
            "out: a part of the subset, on which F_s was trained too. Unscored: all samples outside the subset, against "
            "full scores, which are of another network and training; only where these were asked for."
        )
        sections.append(
            page.Section("Agreement of extrapolated scores", [page.Data(agreed), page.Text(note)])
        )
    sections.append(page.Section("Settings", _settings(facts)))
    return page.document(title, _top(record), sections)


def _top(record: ExtrapolateRecord) -> list[page.Block]:
    """What was done to what, when and where, and what came of it."""
    facts = record.config
    config, data = facts["config"], facts["data"]
    pruned = f", {percent(config['prune_ratio'])} of its channels removed" if config["prune_ratio"] else ""
    lead = (
        f"Scores ({config['score']}) of {facts['subset']:,} of {data['pool']:,} samples, from training a network F_s on those "
        f"alone{pruned}, extended to all samples; the best are kept."
    )
    shape = "×".join(map(str, data["input_shape"]))
    where = (
        f"{data['test']:,} samples for testing, {data['classes']} classes, {shape} · seeds {setting(config['seeds'])} · "
        f"{made(facts)}"
    )
    blocks: list[page.Block] = [page.Text(lead, "lead"), page.Text(where, "sub")]
    if facts["finished"] is None:
        blocks.append(page.Text(f"{record.path.name} is not finished: this is what is done so far.", "alert"))
    spread = (
        "Accuracies are means over seeds, with the lowest and the highest."
        if len(config["seeds"]) > 1
        else "One seed: the spread between seeds is unknown, so small differences mean nothing."
    )
    note = page.Text(f"{spread} Accuracy is that of the last epoch, never of the best one.")
    return [*blocks, *_tiles(record, facts["keeps"][0]), note]


def _tiles(record: ExtrapolateRecord, keep: int) -> list[page.Block]:
    """Accuracy of every arm, and what the first one saves against full scores, in selection and altogether."""
    shades = _colors(record)
    accuracies = []
    for arm in record.arms:
        finals = list(record.finals(arm, keep).values())
        if finals:
            mean, span, seeds = _accuracies(finals)
            more = f"{span.replace('-', ' to ')}, {seeds} seeds" if span else "one seed"
            accuracies.append(page.Tile(arm.label, mean, more, shades[arm.label]))
    if not accuracies:
        return []
    costs = {name: (label, cost) for name, label, cost in _costs(record, keep)}
    label, ours = next(iter(costs.values()))
    # Neither, where it is asked for and not done yet.
    _, full = costs.get("full") or costs.get("full, not run") or ("", ours)
    savings = []
    for title, phases in _SUMS.items():
        own, other = tables.total(ours, phases)[0], tables.total(full, phases)[0]
        if own and other and ours is not full:
            what = f"{'whole' if title == 'all' else title} FLOPs"
            more = f"{engineering(own)} against full scores {engineering(other)}"
            savings.append(page.Tile(what, tables.compare(other / own), more, shades[label]))
    note = f"Test accuracy, cost of selection, and cost of the whole with {_kept_line(record, keep)}."
    if savings:
        note += f" Costs of: {label}."
    return [page.Tiles(accuracies), *([page.Tiles(savings)] if savings else []), page.Text(note)]


def _kept(record: ExtrapolateRecord, keep: int) -> list[page.Block]:
    """Accuracy and cost of every arm with so many samples."""
    costs = _costs(record, keep)
    shades = _colors(record)
    bars = [(label, cost) for _, label, cost in costs]
    shown = {phase: color for phase, color in _SHADES.items() if any(phase in cost for _, cost in bars)}
    blocks: list[page.Block] = [page.Data(_accuracy_table(record, keep)), page.Heading("What it cost")]
    if shown:
        blocks.append(
            page.Figure(
                figures.phases(bars, {phase: figures.COLORS[color] for phase, color in _SHADES.items()}),
                "FLOPs and seconds per phase, one bar per arm",
                "All that an arm pays for a network trained on what it keeps, mean over seeds; without tests. "
                "Selection is all but fusing and that training.",
                [(TITLES[phase], figures.COLORS[color]) for phase, color in shown.items()],
            )
        )
    columns = [(Group(label, 2, shades.get(label, "")), cost) for label, cost in bars]
    return [*blocks, page.Data(tables.by_phase(columns, TITLES, sums=_SUMS))]


def _settings(facts: Mapping[str, Any]) -> list[page.Block]:
    settings = {**facts["config"], "recipe": facts["recipe"], "command": facts["command"] or ""} | facts[
        "versions"
    ]
    recipe = {f"recipe {name}": value for name, value in settings.pop("recipe").items()}
    return [
        page.Facts(
            [(name, setting(value)) for name, value in (settings | recipe).items() if value is not None]
        )
    ]


def _colors(record: ExtrapolateRecord) -> dict[str, str]:
    return figures.colors([(arm.label, arm.name) for arm in record.arms])


def _kept_line(record: ExtrapolateRecord, keep: int) -> str:
    pool = record.config["data"]["pool"]
    return f"{keep:,} of {pool:,} samples kept ({percent(keep / pool)})"


def _accuracy_table(record: ExtrapolateRecord, keep: int) -> Table:
    rows = []
    for arm in record.arms:
        finals = list(record.finals(arm, keep).values())
        if finals:
            classes = (
                f"{min(f['fewest_of_a_class'] for f in finals)}-{max(f['most_of_a_class'] for f in finals)}"
            )
            rows.append([arm.label, *_accuracies(finals), classes])
    whole = [steps["full"] for steps in record.done.values() if "full" in steps]
    if whole:
        rows.append(["all samples", *_accuracies(whole), ""])
    subset = [steps["subset"] for steps in record.done.values() if "subset" in steps]
    if subset:
        rows.append([f"F_s, on its {record.config['subset']:,} samples", *_accuracies(subset), ""])
    return Table(["", "accuracy", "range", "seeds", "fewest-most of a class"], rows)


def _accuracies(found: Sequence[Mapping[str, Any]]) -> list[str]:
    values = [100 * one["accuracy"] for one in found]
    spread = f"{min(values):.1f}-{max(values):.1f}" if len(values) > 1 else ""
    return [f"{sum(values) / len(values):.1f} %", spread, str(len(values))]


def _costs(record: ExtrapolateRecord, keep: int) -> list[tuple[str, str, figures.Cost]]:
    """Short name, label and FLOPs and seconds by phase of every arm: means over seeds.

    Full scores and random pruning are there also where they were not run: with FLOPs alone.
    """
    found: list[tuple[str, str, figures.Cost]] = []
    for arm in record.arms:
        seeds = list(record.finals(arm, keep))
        if seeds:
            cost = _mean([spent(record.lines(seed), arm, keep) for seed in seeds])
            found.append((arm.name, arm.label, cost))
    for name, label in (("full", "full scores"), ("random", "random pruning")):
        if name not in record.config["config"]["compare"]:
            planned = record.config["planned"][str(keep)][name]
            cost = {phase: (flops, None) for phase, flops in planned.items()}
            found.append((f"{name}, not run", f"{label}, not run", cost))
    return found


def _mean(costs: Sequence[Mapping[str, tuple[float, float]]]) -> figures.Cost:
    phases = dict.fromkeys(phase for cost in costs for phase in cost)
    return {
        phase: (
            sum(cost.get(phase, (0.0, 0.0))[0] for cost in costs) / len(costs),
            sum(cost.get(phase, (0.0, 0.0))[1] for cost in costs) / len(costs),
        )
        for phase in phases
    }


def _agreement_table(record: ExtrapolateRecord) -> Table:
    """A row per extrapolator and comparison, means over seeds."""
    rows = []
    for arm in record.arms:
        found = [steps[arm.name] for steps in record.done.values() if "held_out" in steps.get(arm.name, {})]
        if not found:
            continue
        options = "; ".join(dict.fromkeys(_options(one["options"]) for one in found))
        rows.append([arm.label, "held out", *_agreed([one["held_out"] for one in found]), options])
        for keep in found[0]["unscored"]:
            rows.append([arm.label, "unscored", *_agreed([one["unscored"][keep] for one in found]), ""])
    head = ["", "on", "samples", "Pearson", "Spearman", "overlap", "keeping", "options"]
    return Table(head, rows, left=2)


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {setting(value)}" for name, value in options.items())


def _agreed(found: Sequence[Mapping[str, Any]]) -> list[str]:
    def mean(name: str) -> float | None:
        values = [one[name] for one in found]
        return None if None in values else float(sum(values) / len(values))

    measures = [_number(mean(name)) for name in ("pearson", "spearman", "overlap")]
    return [f"{found[0]['samples']:,}", *measures, percent(found[0]["keep"])]


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
