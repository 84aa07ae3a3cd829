"""The report of `prunefuse run`: what one or several runs found and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prunefuse._commit import manifest
from prunefuse._table import Group, Table
from prunefuse.experiment.format import duration, engineering, made, percent, setting
from prunefuse.experiment.report import figures, page, tables
from prunefuse.experiment.summary import Arm, Summary
from prunefuse.pruning.plan import PruningPlan

_LONG_TABLE = 30  # rows, above which a table of layers is folded
# What phases are for people, and their colors in drawings.
PHASES: dict[str, tuple[str, str]] = {
    "train_selector": ("train selector", "blue"),
    "score_pool": ("score pool", "blue2"),
    "select": ("select", "blue3"),
    "train_final": ("train final", "orange"),
    "teacher": ("teacher", "orange2"),
    "plan": ("plan pruning", "gray"),
    "fuse": ("fuse", "gray2"),
    "evaluate": ("evaluate", "gray3"),
}


def render(summary: Summary) -> str:
    """The report as HTML."""
    config = summary.runs[0].config
    sections = [
        page.Section(f"{_titled(summary)} against labels", _accuracy(summary)),
        page.Section("Cost of selection, and of the whole", _cost(summary)),
        page.Section("Training of the final network", _training(summary)),
        page.Section("What was pruned", _widths(summary)),
        page.Section("How it was made", _settings(summary)),
        page.Section("How to read this", _reading(summary)),
    ]
    top = [*_subtitle(summary), *_alerts(summary), *_tiles(summary)]
    return page.document(f"{config['config']['model']} on {config['data']['name']}", top, sections)


def overview(summary: Summary) -> Table:
    """Accuracy, or the first metric of another task, and cost of selection and of the whole per arm and size."""
    metric, rows = summary.metric, []
    for arm in summary.arms:
        for labels in arm.labels:
            found = arm.accuracy(labels, "final")
            spent, whole = arm.selection(labels), arm.whole(labels)
            if found is None or spent is None or whole is None:
                continue
            seeds = len(found.values)
            span = f"{metric.text(found.low)}-{metric.text(found.high)}" if seeds > 1 else ""
            cost = [
                text for flops, s in (spent, whole) for text in (engineering(flops.mean), f"{s.mean:.1f}")
            ]
            mean = f"{metric.text(found.mean)}{metric.unit}"
            rows.append([arm.label, str(labels), mean, span, str(seeds), *cost])
    costs = [f"{what}{unit}" for what in ("selection", "whole") for unit in (" FLOPs", ", s")]
    return Table(["arm", "labels", metric.title, "range", "seeds", *costs], rows)


def overview_of_metrics(summary: Summary) -> list[Table | str]:
    """All metrics of the final networks at the largest size that all arms have, for a terminal; nothing of older runs."""
    labels = _last_common(summary)
    if labels is None or not (found := tables.metrics(summary, labels)).rows:
        return []
    return ["", f"final networks with {labels:,} labels", found]


def text_table(summary: Summary) -> str:
    """The `overview` as text."""
    return overview(summary).text()


def _subtitle(summary: Summary) -> list[page.Block]:
    """What was compared on what, and when and where."""
    run = summary.runs[0].config
    config, data = run["config"], run["data"]
    selector = {
        "prunefuse": f"A network with {percent(config['prune_ratio'])} of its channels pruned",
        "dense": "The dense network itself",
    }.get(config["selector"], f"A {config['selector']}")
    others = {
        "dense": "the dense network selecting for itself (classic active learning)",
        "random": "random picks",
    }
    against = " and ".join(others[arm.role] for arm in summary.arms[1:] if arm.role in others)
    compared = f" Compared with {against}." if against else ""
    kinds = {"multi-label": "labels", "regression": "numbers to predict"}.get(config.get("task"), "classes")
    shape = "×".join(map(str, data["input_shape"]))
    seeds = sorted({seed for arm in summary.arms for seed in arm.seeds})
    several = f"{len(summary.runs)} runs, the first of " if len(summary.runs) > 1 else ""
    where = (
        f"{data['pool']:,} samples in the pool, {data['test']:,} for testing, {data['classes']} {kinds}, {shape} · "
        f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''} ({', '.join(map(str, seeds))}) · "
        f"{several}{made(run)}"
    )
    strategy = config["strategy"].replace("_", " ")
    return [
        page.Text(f"{selector} selects what to label, by {strategy}.{compared}", "lead"),
        page.Text(where, "sub"),
    ]


def _alerts(summary: Summary) -> list[page.Block]:
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
    return [page.Text(text, "alert") for text in found]


def _tiles(summary: Summary) -> list[page.Block]:
    """The first metric of every arm at the largest size all have, and what the first arm saves against the dense one."""
    labels = _last_common(summary)
    if labels is None:
        return []
    shades, metric = figures.arm_colors(summary), summary.metric
    main = summary.arms[0]
    accuracies = []
    for arm in summary.arms:
        found = arm.accuracy(labels, "final")
        if found is not None:
            several = f"{metric.text(found.low)} to {metric.text(found.high)}, {len(found.values)} seeds"
            more = several if len(found.values) > 1 else "one seed"
            mean = f"{metric.text(found.mean)}{metric.unit}"
            accuracies.append(page.Tile(arm.label, mean, more, shades[arm.label]))
    costs = []
    dense = next((arm for arm in summary.arms if arm.role == "dense" and arm is not main), None)
    for name, of in (("selection", Arm.selection), ("whole", Arm.whole)):
        ours, theirs = of(main, labels), of(dense, labels) if dense else None
        if ours and theirs and ours[0].mean > 0:
            for index, unit, shown in ((0, "FLOPs", engineering), (1, "time", duration)):
                costs.append(
                    page.Tile(
                        f"{name} {unit}",
                        tables.compare(theirs[index].mean / ours[index].mean),
                        f"{shown(ours[index].mean)} against dense {shown(theirs[index].mean)}",
                        shades[main.label],
                    )
                )
    where = f"Test {metric.title}, cost of selection, and cost of the whole with {_size(labels, summary)} labeled."
    whole = " The whole is selecting, and making one final network." if costs else ""
    return [page.Tiles(accuracies), *([page.Tiles(costs)] if costs else []), page.Text(where + whole)]


def _accuracy(summary: Summary) -> list[page.Block]:
    several = max(len(arm.seeds) for arm in summary.arms) > 1
    spread = (
        "Lines are means over seeds, bands reach from the lowest to the highest seed, dots are the seeds."
        if several
        else "One seed: the spread between seeds is unknown, so small differences mean nothing."
    )
    title = summary.metric.title
    alt = (
        f"Test {title} of the final network against the number of labels and against FLOPs, one line per arm"
    )
    caption = f"{spread} {_titled(summary)} is that of the last epoch, never of the best one."
    blocks: list[page.Block] = [
        page.Figure(figures.accuracy(summary), alt, caption),
        page.Data(tables.accuracy(summary)),
    ]
    last = _last_common(summary)
    if last is None or not (metrics := tables.metrics(summary, last)).rows:
        return blocks
    spread = ", mean ± standard deviation over seeds" if several else ""
    blocks += [
        page.Heading(f"All metrics of the final networks with {_size(last, summary)} labeled{spread}"),
        page.Data(metrics),
    ]
    of_each = tables.of_classes(summary, last, summary.runs[0].config.get("classes") or ())
    if of_each.rows:
        title = f"Each of the {len(of_each.rows)} classes{', mean over seeds' if several else ''}"
        blocks.append(page.Data(of_each, title))
    return blocks


def _cost(summary: Summary) -> list[page.Block]:
    """What selecting cost, what all of it cost, the formula, and where all work and time went."""
    free = [arm.label for arm in summary.arms if not any(_flops(arm, labels) for labels in arm.labels)]
    note = f" Selected without a network, and so without cost: {', '.join(free)}." if free else ""
    bars = [(arm.label, {str(phase): paid for phase, paid in arm.phases().items()}) for arm in summary.arms]
    shown = {phase: found for phase, found in PHASES.items() if any(phase in cost for _, cost in bars)}
    shades = figures.arm_colors(summary)
    return [
        page.Figure(
            figures.costs(summary),
            "FLOPs and seconds of selection and of the whole against the number of labels, one line per arm",
            "Selection: spent to choose the labels up to each size, all rounds together, training of the selector "
            f"included. The whole: that, and making one final network of this size.{note}",
        ),
        page.Data(tables.costs(summary)),
        page.Verbatim(summary.runs[0].formula),
        page.Heading("Where the work and the time of the run go"),
        page.Figure(
            figures.phases(bars, {phase: figures.COLORS[color] for phase, (_, color) in shown.items()}),
            "FLOPs and seconds per phase, one bar per arm",
            "All rounds of one seed, mean over seeds, with a final network at every size that the run reports. Blue phases "
            "are what selecting takes, but for the selector of the last size, which selects nothing any more and is the "
            "teacher; orange phases make the final network.",
            [(title, figures.COLORS[color]) for title, color in shown.values()],
        ),
        page.Data(
            tables.by_phase(
                [(Group(label, 2, shades[label]), cost) for label, cost in bars],
                {phase: title for phase, (title, _) in PHASES.items()},
                sums={"all phases": tuple(PHASES)},
            )
        ),
    ]


def _training(summary: Summary) -> list[page.Block]:
    """Curves of the final networks at the largest size."""
    labels = _last_common(summary)
    if labels is None:
        return []
    finals = [curve for arm in summary.arms for curve in arm.curves(labels, "final")]
    if not finals and not any(arm.curves(labels, "selector") for arm in summary.arms):
        return []
    tested = any(epoch.test_accuracy is not None for curve in finals for epoch in curve)
    which = "thick on the test set, thin on the labeled set" if tested else "on the labeled set, as trained"
    return [
        page.Figure(
            figures.training(summary, labels),
            f"Training loss and {summary.metric.title} of the final networks over epochs",
            f"With {_size(labels, summary)} labeled, mean over seeds; {summary.metric.title} {which}. Distilled networks "
            "minimize another loss than the others, so compare the shapes of the losses, not their heights.",
        )
    ]


def _widths(summary: Summary) -> list[page.Block]:
    """Widths, parameters and FLOPs of every arm's selector that was pruned."""
    blocks: list[page.Block] = []
    shades = figures.arm_colors(summary)
    for arm in summary.arms:
        path = arm.folders[0] / "plan.json"
        if not path.is_file():
            continue
        kept = manifest(path.parent)
        if kept is not None:
            kept.read(path.name)  # not what was written: an error that names it
        plan = PruningPlan.load(path)
        layers = tables.counted(plan)
        if blocks:
            blocks.append(page.Heading(arm.label))
        (params, flops) = (percent(after / before) for before, after in (plan.params, plan.flops))
        blocks += [
            page.Figure(
                [figures.widths(layers, shades[arm.label])],
                "Channels per layer of the dense and of the pruned network",
                f"Channels of each layer, dense (light) and kept (dark), at a pruning ratio of {plan.ratio:g}. The small "
                f"network has {params} of the parameters and {flops} of the FLOPs. Which channels are kept differs from "
                "seed to seed, their number does not.",
                broad=True,
            ),
            page.Data(tables.layers(plan), f"All {len(layers)} layers" if len(layers) > _LONG_TABLE else ""),
            *(page.Text(note) for note in plan.notes),
        ]
    return blocks


def _settings(summary: Summary) -> list[page.Block]:
    """Command, configuration, versions and machine."""
    config = summary.runs[0].config
    blocks: list[page.Block] = []
    for run in summary.runs:
        if len(summary.runs) > 1:
            blocks.append(page.Text(run.path.name))
        blocks.append(page.Verbatim(run.config["command"] or "(started from Python)"))
    sizes = ", ".join(f"{size:,}" for size in config["schedule"])
    chosen = {**config["config"], "schedule": f"{sizes} samples"}
    recipe = chosen.pop("recipe")
    which = " of the first run; where others differ, their arms say so" if len(summary.runs) > 1 else ""
    return [
        *blocks,
        page.Heading(f"Configuration{which}"),
        _facts({name: value for name, value in chosen.items() if value not in (None, "")}),
        page.Heading("Training recipe"),
        _facts(recipe),
        page.Heading("Versions and machine"),
        _facts(config["versions"] | config["machine"]),
    ]


def _facts(values: Mapping[str, Any]) -> page.Facts:
    return page.Facts([(name.replace("_", " "), setting(value)) for name, value in values.items()])


def _reading(summary: Summary) -> list[page.Block]:
    """What the numbers are and are not."""
    labels = _last_common(summary)
    found = summary.arms[0].accuracy(labels, "final") if labels is not None else None
    tests = summary.runs[0].config["data"]["test"]
    notes = [
        f"{_titled(summary)} is measured on the test set after the last epoch. No epoch, seed or setting is picked by it.",
        "FLOPs are floating-point operations, two per multiply-add (MAC), of convolutions and linear layers as counted "
        "by fvcore; a backward pass is counted as two forward passes.",
        "Seconds are wall-clock time on the machine named above, loading of data included. Small networks on small "
        "images are bound by overhead, so seconds save less than FLOPs there.",
        "The seconds of selection include planning the pruning, once per trial (again with T_sync), which has no FLOPs "
        "by this count, but with obspa those of calibrating. Fusing, distilling and evaluating are no part of the cost of "
        "selection.",
        "The cost of the whole is that of selection and of one final network, as if no smaller one had been trained: its "
        "training, its teacher, fusing, and the selector it comes from. Where the selector is dense, it is the final network "
        "of its size. Evaluating is no part of the whole.",
        "Set by us, because the published method leaves them open: the distillation weight and temperature, the "
        "rounding of widths, and the details of re-pruning.",
    ]
    if found is not None and summary.metric.name == "accuracy":
        error = 100 * math.sqrt(max(found.mean * (1 - found.mean), 0) / tests)
        notes.insert(
            1,
            f"With {tests:,} test samples an accuracy of {100 * found.mean:.1f} % has a standard error of "
            f"{error:.1f} points from the test set alone.",
        )
    return [page.Bullets(notes)]


def _last_common(summary: Summary) -> int | None:
    """Largest size at which every arm has a final network; else the largest of the first arm."""
    sizes = [{size for size in arm.labels if arm.accuracy(size, "final")} for arm in summary.arms]
    common = set.intersection(*sizes) if sizes else set()
    return max(common or (sizes[0] if sizes else ()), default=None)


def _titled(summary: Summary) -> str:
    """The first metric, at the start of a sentence."""
    title = summary.metric.title
    return title[0].upper() + title[1:]


def _flops(arm: Arm, labels: int) -> float:
    spent = arm.selection(labels)
    return spent[0].mean if spent else 0.0


def _size(labels: int, summary: Summary) -> str:
    """Samples and per cent of the pool."""
    return f"{labels:,} samples ({percent(labels / summary.pool)} of the pool)"
