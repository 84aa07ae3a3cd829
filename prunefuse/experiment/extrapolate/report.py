"""report.html, the tables beside it, and the table for a terminal: accuracy, cost and agreement of every arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from prunefuse import _files as files
from prunefuse.experiment import markup
from prunefuse.experiment.extrapolate.ledger import FORMULA, TITLES, spent
from prunefuse.experiment.extrapolate.record import ExtrapolateRecord, read
from prunefuse.experiment.folder import write_csv
from prunefuse.experiment.format import engineering, percent, setting

# FLOPs and seconds by phase.
_Cost: TypeAlias = dict[str, tuple[float, float | None]]
METRICS = ("arm", "seed", "kept", "accuracy", "flops", "seconds")


def report(path: str | PathLike[str], out: str | PathLike[str] | None = None) -> Path:
    """Write ledger.json, metrics.csv and report.html (or ``out`` instead of that) from what is done; returns the last.

    Raises:
        RunFolderError: ``path`` is not a folder of such a run.
    """
    record = read(Path(path))
    entries = [{"seed": seed, **asdict(line)} for seed in record.done for line in record.lines(seed)]
    files.write_json(record.path / "ledger.json", {"formula": FORMULA, "entries": entries})
    rows = []
    for arm in record.arms:
        for keep in record.config["keeps"]:
            for seed, final in record.finals(arm, keep).items():
                costs = spent(record.lines(seed), arm, keep).values()
                sums = [sum(part) for part in zip(*costs, strict=True)]
                cells = (arm.name, seed, keep, final["accuracy"], *sums)
                rows.append(dict(zip(METRICS, cells, strict=True)))
    write_csv(record.path / "metrics.csv", METRICS, rows)
    target = record.path / "report.html" if out is None else Path(out)
    files.write_text(target, render(record))
    return target


def overview(path: str | Path) -> str:
    """Accuracy, cost and agreement of a run, as tables for a terminal."""
    record = read(Path(path))
    blocks = []
    for keep in record.config["keeps"]:
        blocks += [_kept_line(record, keep), _plain(_accuracy_table(record, keep)), ""]
        blocks += [_cost_text(record, keep), ""]
    agreed = _agreement_table(record)
    if len(agreed) > 1:
        blocks += ["agreement of extrapolated scores", _plain(agreed), ""]
    return "\n".join(blocks).rstrip()


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
    config, data = facts["config"], facts["data"]
    title = f"{config['model']} on a pruned {data['name']}"
    pruned = f", {percent(config['prune_ratio'])} of its channels removed" if config["prune_ratio"] else ""
    lead = (
        f"Scores ({config['score']}) of {facts['subset']:,} of {data['pool']:,} samples, from training a network F_s on those "
        f"alone{pruned}, extended to all samples; the best are kept."
    )
    shape = "×".join(map(str, data["input_shape"]))
    threads = facts["machine"]["threads"]
    where = (
        f"{data['test']:,} samples for testing, {data['classes']} classes, {shape} · seeds {setting(config['seeds'])} · "
        f"{facts['started']} · {facts['machine']['device_name']}, {threads} thread{'s' if threads != 1 else ''}"
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(lead)}</p>',
        f'<p class="sub">{escape(where)}</p>',
    ]
    if facts["finished"] is None:
        unfinished = f"{record.path.name} is not finished: this is what is done so far."
        body.append(f'<p class="alert">{escape(unfinished)}</p>')
    spread = (
        "Accuracies are means over seeds, with the lowest and the highest."
        if len(config["seeds"]) > 1
        else "One seed: the spread between seeds is unknown, so small differences mean nothing."
    )
    body.append(f'<p class="note">{spread} Accuracy is that of the last epoch, never of the best one.</p>')
    for keep in facts["keeps"]:
        body += [f"<h2>{escape(_kept_line(record, keep))}</h2>", _html(_accuracy_table(record, keep))]
        body += ["<h3>What it cost</h3>", _cost_html(record, keep)]
    body.append(f"<pre>{escape(FORMULA)}</pre>")
    agreed = _agreement_table(record)
    if len(agreed) > 1:
        body += ["<h2>Agreement of extrapolated scores</h2>", _html(agreed, left=2)]
        body.append(
            '<p class="note">Overlap: the part of the samples kept by the true scores that are also kept by the '
            "extrapolated ones. Held out: a part of the subset, on which F_s was trained too. Unscored: all samples outside "
            "the subset, against full scores, which are of another network and training; only where these were asked for.</p>"
        )
    settings = {**config, "recipe": facts["recipe"], "command": facts["command"] or ""} | facts["versions"]
    recipe = {f"recipe {name}": value for name, value in settings.pop("recipe").items()}
    named = [(name, setting(value)) for name, value in (settings | recipe).items() if value is not None]
    body += ["<h2>Settings</h2>", markup.facts(named)]
    return markup.page(f"prunefuse: {title}", body)


def _kept_line(record: ExtrapolateRecord, keep: int) -> str:
    pool = record.config["data"]["pool"]
    return f"{keep:,} of {pool:,} samples kept ({percent(keep / pool)})"


def _accuracy_table(record: ExtrapolateRecord, keep: int) -> list[list[str]]:
    rows = [["", "accuracy", "range", "seeds", "fewest-most of a class"]]
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
    return rows


def _accuracies(found: Sequence[Mapping[str, Any]]) -> list[str]:
    values = [100 * one["accuracy"] for one in found]
    spread = f"{min(values):.1f}-{max(values):.1f}" if len(values) > 1 else ""
    return [f"{sum(values) / len(values):.1f} %", spread, str(len(values))]


def _costs(record: ExtrapolateRecord, keep: int) -> list[tuple[str, str, _Cost]]:
    """Short name, label and FLOPs and seconds by phase of every arm: means over seeds.

    Full scores and random pruning are there also where they were not run: with FLOPs alone.
    """
    found: list[tuple[str, str, _Cost]] = []
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


def _by_phase(
    costs: Sequence[_Cost], cells: Callable[[tuple[float, float | None] | None], list[str]]
) -> list[list[str]]:
    """A row for every phase, and the sums."""
    rows = []
    for phase, title in TITLES.items():
        if any(phase in cost for cost in costs):
            rows.append([title, *(cell for cost in costs for cell in cells(cost.get(phase)))])
    sums = ["all"]
    for cost in costs:
        seconds = [took for _, took in cost.values() if took is not None]
        whole = sum(seconds) if len(seconds) == len(cost) else None
        sums += cells((sum(flops for flops, _ in cost.values()), whole))
    return [*rows, sums]


def _cost_text(record: ExtrapolateRecord, keep: int) -> str:
    costs = _costs(record, keep)

    def cell(cost: tuple[float, float | None] | None) -> list[str]:
        if cost is None:
            return [""]
        return [engineering(cost[0], "FLOP") + ("" if cost[1] is None else f" {cost[1]:8.2f} s")]

    return _plain([["cost", *(name for name, _, _ in costs)], *_by_phase([c for _, _, c in costs], cell)])


def _cost_html(record: ExtrapolateRecord, keep: int) -> str:
    costs = _costs(record, keep)

    def cells(cost: tuple[float, float | None] | None) -> list[str]:
        if cost is None:
            return ["", ""]
        return [engineering(cost[0]), "" if cost[1] is None else f"{cost[1]:.2f}"]

    groups = [("", 1, ""), *((label, 2, "") for _, label, _ in costs)]
    head = ["phase", *["FLOPs", "seconds"] * len(costs)]
    return markup.table(head, _by_phase([c for _, _, c in costs], cells), groups=groups, last_is_sum=True)


def _mean(costs: Sequence[Mapping[str, tuple[float, float]]]) -> _Cost:
    phases = dict.fromkeys(phase for cost in costs for phase in cost)
    return {
        phase: (
            sum(cost.get(phase, (0.0, 0.0))[0] for cost in costs) / len(costs),
            sum(cost.get(phase, (0.0, 0.0))[1] for cost in costs) / len(costs),
        )
        for phase in phases
    }


def _agreement_table(record: ExtrapolateRecord) -> list[list[str]]:
    """A row per extrapolator and comparison, means over seeds."""
    rows = [["", "on", "samples", "Pearson", "Spearman", "overlap", "keeping", "options"]]
    for arm in record.arms:
        found = [steps[arm.name] for steps in record.done.values() if "held_out" in steps.get(arm.name, {})]
        if not found:
            continue
        options = "; ".join(dict.fromkeys(_options(one["options"]) for one in found))
        rows.append([arm.label, "held out", *_agreed([one["held_out"] for one in found]), options])
        for keep in found[0]["unscored"]:
            rows.append([arm.label, "unscored", *_agreed([one["unscored"][keep] for one in found]), ""])
    return rows


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


def _plain(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        pad: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(row) - 1)]
        return "  ".join(p(cell, w) for p, cell, w in zip(pad, row, widths, strict=True)).rstrip()

    return "\n".join(map(line, rows))


def _html(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    return markup.table(rows[0], [[escape(cell) for cell in row] for row in rows[1:]], left=left)
