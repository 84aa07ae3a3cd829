"""report.html: what one or several runs found and what it cost, in one file that opens offline.

Only the files of the run folders are read, so a report can be drawn again, or for several runs together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from os import PathLike
from pathlib import Path

from prunefuse import files
from prunefuse.experiment import folder, markup, plots
from prunefuse.experiment.format import duration, engineering, percent
from prunefuse.experiment.plots import PHASES
from prunefuse.experiment.summary import Arm, Summary, summarize


def report(runs: Sequence[str | PathLike[str]], out: str | PathLike[str] | None = None) -> Path:
    """Draw the report of one run, or of several on the same data with their seeds pooled.

    Args:
        runs: Run folders.
        out: The file to write; None = ``report.html`` in the run folder, which takes a single run.

    Returns:
        The file written.

    Raises:
        RunFolderError: a folder cannot be read, or runs do not belong together.
        ValueError: no run, or several without ``out``.
    """
    if not runs or (out is None and len(runs) > 1):
        raise ValueError(f"out must be given for a report of several runs (there are {len(runs)})")
    path = Path(runs[0]) / "report.html" if out is None else Path(out)
    files.write_text(path, render(summarize([folder.read(Path(run)) for run in runs])))
    return path


def overview(run: str | PathLike[str]) -> str:
    """Accuracy and cost of selection of one run, as a table for a terminal."""
    return text_table(summarize([folder.read(Path(run))]))


def render(summary: Summary) -> str:
    """The report as HTML."""
    config = summary.runs[0].config
    title = f"{config['config']['model']} on {config['data']['name']}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(_subtitle(summary))}</p>',
        *_alerts(summary),
        *_tiles(summary),
        *_accuracy(summary),
        *_cost(summary),
        *_training(summary),
        *_settings(summary),
        *_reading(summary),
    ]
    return markup.page(f"prunefuse: {title}", body)


def text_table(summary: Summary) -> str:
    """Accuracy and cost of selection per arm and size, for a terminal."""
    rows = [["arm", "labels", "accuracy", "range", "seeds", "selection FLOPs", "seconds"]]
    for arm in summary.arms:
        for labels in arm.labels:
            found = arm.accuracy(labels, "final")
            spent = arm.selection(labels)
            if found is None or spent is None:
                continue
            seeds = len(found.values)
            span = f"{100 * found.low:.1f}-{100 * found.high:.1f}" if seeds > 1 else ""
            cost = engineering(spent[0].mean), f"{spent[1].mean:.1f}"
            rows.append([arm.label, str(labels), f"{100 * found.mean:.1f} %", span, str(seeds), *cost])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _subtitle(summary: Summary) -> str:
    config = summary.runs[0].config
    data = config["data"]
    shape = "×".join(map(str, data["input_shape"]))
    seeds = sorted({seed for arm in summary.arms for seed in arm.seeds})
    several = f"{len(summary.runs)} runs pooled, the first of " if len(summary.runs) > 1 else ""
    return (
        f"{data['pool']:,} pool and {data['test']:,} test samples, {data['classes']} classes, {shape} · "
        f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''} ({', '.join(map(str, seeds))}) · "
        f"{several}{config['started'].replace('T', ' ')} · {config['machine']['device_name']}, "
        f"{config['machine']['threads']} threads"
    )


def _alerts(summary: Summary) -> list[str]:
    found = []
    for run in summary.runs:
        if run.config["finished"] is None:
            found.append(f"{run.path.name} is not finished: these are its complete rounds so far.")
    for arm in summary.arms:
        if arm.unselectable():
            found.append(
                f"{arm.label}: up to {arm.unselectable():,} pool samples in one round had no utility (NaN) and "
                "could not be selected. Look for diverged training or broken samples."
            )
    if summary.repeated:
        found.append(f"Counted once although given twice: {', '.join(summary.repeated)}.")
    return [f'<p class="alert">{escape(text)}</p>' for text in found]


def _tiles(summary: Summary) -> list[str]:
    """Accuracy of every arm at the largest size all have, and what the first arm's selection saves."""
    labels = _last_common(summary)
    if labels is None:
        return []
    colors = plots.colors(summary.arms)
    main = summary.arms[0]
    tiles = []
    for arm in summary.arms:
        found = arm.accuracy(labels, "final")
        if found is not None:
            more = f"{_percent(found.low)} to {_percent(found.high)}, {len(found.values)} seeds"
            tiles.append(
                markup.tile(
                    arm.label,
                    f"{_percent(found.mean)} %",
                    more if len(found.values) > 1 else "one seed",
                    colors[arm.label],
                )
            )
    dense = next((arm for arm in summary.arms if arm.role == "dense" and arm is not main), None)
    ours, theirs = main.selection(labels), dense.selection(labels) if dense else None
    if ours and theirs and ours[0].mean > 0:
        for index, what, name in ((0, "selection FLOPs", engineering), (1, "selection time", duration)):
            ratio = theirs[index].mean / ours[index].mean
            tiles.append(
                markup.tile(
                    what,
                    f"{ratio:.2g}× less" if ratio >= 1 else f"{1 / ratio:.2g}× more",
                    f"{name(ours[index].mean)} against dense {name(theirs[index].mean)}",
                    colors[main.label],
                )
            )
    where = f"Test accuracy and cost of selection with {_size(labels, summary)} labeled."
    return [f'<div class="tiles">{"".join(tiles)}</div>', f'<p class="note">{escape(where)}</p>']


def _accuracy(summary: Summary) -> list[str]:
    several = max(len(arm.seeds) for arm in summary.arms) > 1
    spread = (
        "Lines are means over seeds, bands reach from the lowest to the highest seed, dots are the seeds."
        if several
        else "One seed: the spread between seeds is unknown, so small differences mean nothing."
    )
    return [
        "<h2>Accuracy against labels</h2>",
        markup.figure(
            plots.accuracy(summary),
            "Test accuracy of the final network against the number of labels, one line per arm",
            escape(f"{spread} Accuracy is that of the last epoch, never of the best one."),
        ),
        _budget_table(summary),
    ]


def _budget_table(summary: Summary) -> str:
    """One row per size; for every arm its accuracy, and what selecting so far has cost where it costs anything."""
    colors = plots.colors(summary.arms)
    groups: list[tuple[str, int, str]] = [("", 2, "")]
    head = ["labels", "pool"]
    columns: list[tuple[Arm, str]] = []
    for arm in summary.arms:
        shown = ["final %"]
        if any(arm.accuracy(labels, "selector") for labels in arm.labels) and arm.role == "main":
            shown.append("selector %")
        if any((cost := arm.selection(labels)) and cost[0].mean for labels in arm.labels):
            shown += ["selection FLOPs", "seconds"]
        groups.append((arm.label, len(shown), colors[arm.label]))
        head += shown
        columns += [(arm, name) for name in shown]
    rows = [
        [f"{labels:,}", f"{percent(labels / summary.pool)}"]
        + [_budget_cell(arm, name, labels) for arm, name in columns]
        for labels in summary.labels
    ]
    return markup.table(head, rows, left=0, groups=groups)


def _budget_cell(arm: Arm, name: str, labels: int) -> str:
    if name in ("final %", "selector %"):
        found = arm.accuracy(labels, "final" if name == "final %" else "selector")
        if found is None:
            return ""
        if len(found.values) == 1:
            return _percent(found.mean)
        return f"{_percent(found.mean)} <span class=range>{_percent(found.low)}–{_percent(found.high)}</span>"
    spent = arm.selection(labels)
    if spent is None:
        return ""
    return engineering(spent[0].mean) if name == "selection FLOPs" else f"{spent[1].mean:.1f}"


def _cost(summary: Summary) -> list[str]:
    formula = escape(summary.runs[0].formula)
    body = ["<h2>Cost of selection</h2>"]
    spending = [arm for arm in summary.arms if any(_flops(arm, labels) for labels in arm.labels)]
    if spending:
        free = [arm.label for arm in summary.arms if arm not in spending]
        note = f" {' and '.join(free)} needs no network to select and costs nothing here." if free else ""
        body.append(
            markup.figure(
                plots.selection(summary),
                "FLOPs spent on selection against the number of labels, one line per arm",
                escape(f"FLOPs spent to choose the labels up to each size, all rounds together.{note}"),
            )
        )
    body += [
        f"<pre>{formula}</pre>",
        "<h3>Where the work and the time go</h3>",
        markup.figure(
            plots.phases(summary),
            "FLOPs and seconds per phase, one bar per arm",
            "All rounds of one seed, mean over seeds. Blue phases are what selecting takes, but for the selector of "
            "the last size, which selects nothing any more and is the teacher; orange phases make the final network.",
        ),
        _phase_table(summary),
    ]
    return body


def _phase_table(summary: Summary) -> str:
    colors = plots.colors(summary.arms)
    phases = [phase for phase in PHASES if any(phase in arm.phases() for arm in summary.arms)]
    costs = [arm.phases() for arm in summary.arms]
    rows = []
    for phase in phases:
        row = [PHASES[phase][0]]
        for cost in costs:
            row += [engineering(cost[phase][0]), f"{cost[phase][1]:.2f}"] if phase in cost else ["", ""]
        rows.append(row)
    sums = ["all phases"]
    for cost in costs:
        sums += [
            engineering(sum(flops for flops, _ in cost.values())),
            f"{sum(seconds for _, seconds in cost.values()):.2f}",
        ]
    groups = [("", 1, ""), *((arm.label, 2, colors[arm.label]) for arm in summary.arms)]
    head = ["phase", *["FLOPs", "seconds"] * len(costs)]
    return markup.table(head, [*rows, sums], groups=groups, last_is_sum=True)


def _training(summary: Summary) -> list[str]:
    labels = _last_common(summary)
    if labels is None or not any(
        arm.curves(labels, "final") or arm.curves(labels, "selector") for arm in summary.arms
    ):
        return []
    tested = any(
        epoch.test_accuracy is not None
        for arm in summary.arms
        for curve in arm.curves(labels, "final")
        for epoch in curve
    )
    which = "thick on the test set, thin on the labeled set" if tested else "on the labeled set, as trained"
    return [
        "<h2>Training of the final network</h2>",
        markup.figure(
            plots.training(summary, labels),
            "Training loss and accuracy of the final networks over epochs",
            escape(
                f"With {_size(labels, summary)} labeled, mean over seeds; accuracy {which}. Distilled networks "
                "minimize another loss than the others, so compare the shapes of the losses, not their heights."
            ),
        ),
    ]


def _settings(summary: Summary) -> list[str]:
    config = summary.runs[0].config
    body = ["<h2>How it was made</h2>"]
    for run in summary.runs:
        command = run.config["command"] or "(started from Python)"
        name = f'<p class="note">{escape(run.path.name)}</p>' if len(summary.runs) > 1 else ""
        body.append(f"{name}<pre>{escape(command)}</pre>")
    chosen = dict(config["config"])
    recipe = chosen.pop("recipe")
    sizes = ", ".join(f"{size:,}" for size in config["schedule"])
    flat = {**chosen, "schedule": f"{sizes} samples", "seeds": chosen["seeds"]}
    shown = [
        (name.replace("_", " "), _value(value)) for name, value in flat.items() if value not in (None, "")
    ]
    body += ["<h3>Configuration</h3>", markup.facts(shown)]
    body += [
        "<h3>Training recipe</h3>",
        markup.facts([(name.replace("_", " "), _value(value)) for name, value in recipe.items()]),
        "<h3>Versions and machine</h3>",
        markup.facts(
            [(name, _value(value)) for name, value in (config["versions"] | config["machine"]).items()]
        ),
    ]
    return body


def _reading(summary: Summary) -> list[str]:
    config = summary.runs[0].config
    labels = _last_common(summary)
    found = summary.arms[0].accuracy(labels, "final") if labels is not None else None
    tests = config["data"]["test"]
    points = [
        "Accuracy is measured on the test set after the last epoch. No epoch, seed or setting is picked by it.",
        "FLOPs are floating-point operations, two per multiply-add (MAC), of convolutions and linear layers as counted "
        "by fvcore; a backward pass is counted as two forward passes.",
        "Seconds are wall-clock time on the machine named above, loading of data included. Small networks on small "
        "images are bound by overhead, so seconds save less than FLOPs there.",
        "Planning, fusing, distilling and evaluating are no part of the cost of selection; they are listed beside it.",
        "Set by us, because the published method leaves them open: the distillation weight and temperature, the "
        "rounding of widths, and the details of re-pruning.",
    ]
    if found is not None:
        error = 100 * math.sqrt(max(found.mean * (1 - found.mean), 0) / tests)
        points.insert(
            1,
            f"With {tests:,} test samples an accuracy of {_percent(found.mean)} % has a standard error of "
            f"{error:.1f} points from the test set alone.",
        )
    return [
        "<h2>How to read this</h2>",
        "<ul>" + "".join(f"<li>{escape(one)}</li>" for one in points) + "</ul>",
    ]


def _last_common(summary: Summary) -> int | None:
    """Largest size at which every arm has a final network; else the largest of the first arm."""
    sizes = [{size for size in arm.labels if arm.accuracy(size, "final")} for arm in summary.arms]
    common = set.intersection(*sizes) if sizes else set()
    return max(common or (sizes[0] if sizes else ()), default=None)


def _flops(arm: Arm, labels: int) -> float:
    spent = arm.selection(labels)
    return spent[0].mean if spent else 0.0


def _size(labels: int, summary: Summary) -> str:
    return f"{labels:,} samples ({percent(labels / summary.pool)} of the pool)"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    return str(value)
