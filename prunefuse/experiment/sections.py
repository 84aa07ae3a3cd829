"""The sections of a report, each a list of pieces of HTML."""

from __future__ import annotations

import math
from html import escape

from prunefuse.experiment import markup, plots
from prunefuse.experiment.format import engineering, percent, setting
from prunefuse.experiment.plots import PHASES
from prunefuse.experiment.summary import Arm, Summary
from prunefuse.pruning.plan import Layer, PruningPlan

_LONG_TABLE = 30  # rows, above which a table of layers is folded


def accuracy(summary: Summary) -> list[str]:
    """Figure and table of accuracy against labels."""
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
            return points(found.mean)
        return f"{points(found.mean)} <span class=range>{points(found.low)}–{points(found.high)}</span>"
    spent = arm.selection(labels)
    if spent is None:
        return ""
    return engineering(spent[0].mean) if name == "selection FLOPs" else f"{spent[1].mean:.1f}"


def cost(summary: Summary) -> list[str]:
    """What selecting cost, the formula, and where all work and time went."""
    formula = escape(summary.runs[0].formula)
    body = ["<h2>Cost of selection</h2>"]
    spending = [arm for arm in summary.arms if any(_flops(arm, labels) for labels in arm.labels)]
    if spending:
        free = [arm.label for arm in summary.arms if arm not in spending]
        note = f" Without cost, as it selects without a network: {', '.join(free)}." if free else ""
        body.append(
            markup.figure(
                plots.selection(summary),
                "FLOPs and seconds spent on selection against the number of labels, one line per arm",
                escape(
                    f"Spent to choose the labels up to each size, all rounds together, training of the selector included.{note}"
                ),
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


def training(summary: Summary) -> list[str]:
    """Curves of the final networks at the largest size."""
    labels = last_common(summary)
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
                f"With {size(labels, summary)} labeled, mean over seeds; accuracy {which}. Distilled networks "
                "minimize another loss than the others, so compare the shapes of the losses, not their heights."
            ),
        ),
    ]


def widths(summary: Summary) -> list[str]:
    """Widths, parameters and FLOPs of every arm's selector that was pruned."""
    body: list[str] = []
    for arm in summary.arms:
        path = arm.folders[0] / "plan.json"
        if not path.is_file():
            continue
        plan = PruningPlan.load(path)
        # Norms and the like follow the layer before them.
        layers = [layer for layer in plan.layers if layer.flops_before]
        rows = [
            [
                f"<code>{escape(layer.name)}</code>",
                escape(layer.type),
                *(
                    f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} → {pair[1]:,}"
                    for pair in _changes(layer)
                ),
                percent(layer.flops_after / layer.flops_before),
            ]
            for layer in layers
        ]
        params, flops = plan.params, plan.flops
        kept = percent(flops[1] / flops[0])
        rows.append(
            ["all layers", "", "", f"{params[0]:,} → {params[1]:,}", f"{flops[0]:,} → {flops[1]:,}", kept]
        )
        table = markup.table(
            ["layer", "type", "width", "parameters", "FLOPs per image", "FLOPs kept"],
            rows,
            left=2,
            last_is_sum=True,
        )
        if len(layers) > _LONG_TABLE:
            table = f"<details><summary>All {len(layers)} layers</summary>{table}</details>"
        title = f"<h3>{escape(arm.label)}</h3>" if len(summary.arms) > 1 and body else ""
        caption = (
            f"Channels of each layer, dense (light) and kept (dark), at a pruning ratio of {plan.ratio:g}. The small "
            f"network has {percent(params[1] / params[0])} of the parameters and {kept} of the FLOPs. Which channels "
            "are kept differs from seed to seed, their number does not."
        )
        alt = "Channels per layer of the dense and of the pruned network"
        body += [
            title,
            markup.figure(plots.widths(layers, plots.colors(summary.arms)[arm.label]), alt, escape(caption)),
        ]
        body += [table, *(f'<p class="note">{escape(note)}</p>' for note in plan.notes)]
    return ["<h2>What was pruned</h2>", *body] if body else []


def _changes(layer: Layer) -> tuple[tuple[int, int], ...]:
    return (
        (layer.width_before, layer.width_after),
        (layer.params_before, layer.params_after),
        (layer.flops_before, layer.flops_after),
    )


def settings(summary: Summary) -> list[str]:
    """Command, configuration, versions and machine."""
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
        (name.replace("_", " "), setting(value)) for name, value in flat.items() if value not in (None, "")
    ]
    which = " of the first run; where others differ, their arms say so" if len(summary.runs) > 1 else ""
    body += [f"<h3>Configuration{which}</h3>", markup.facts(shown)]
    body += [
        "<h3>Training recipe</h3>",
        markup.facts([(name.replace("_", " "), setting(value)) for name, value in recipe.items()]),
        "<h3>Versions and machine</h3>",
        markup.facts(
            [
                (name.replace("_", " "), setting(value))
                for name, value in (config["versions"] | config["machine"]).items()
            ]
        ),
    ]
    return body


def reading(summary: Summary) -> list[str]:
    """What the numbers are and are not."""
    config = summary.runs[0].config
    labels = last_common(summary)
    found = summary.arms[0].accuracy(labels, "final") if labels is not None else None
    tests = config["data"]["test"]
    notes = [
        "Accuracy is measured on the test set after the last epoch. No epoch, seed or setting is picked by it.",
        "FLOPs are floating-point operations, two per multiply-add (MAC), of convolutions and linear layers as counted "
        "by fvcore; a backward pass is counted as two forward passes.",
        "Seconds are wall-clock time on the machine named above, loading of data included. Small networks on small "
        "images are bound by overhead, so seconds save less than FLOPs there.",
        "The seconds of selection include planning the pruning, once per trial (again with T_sync), which has no FLOPs "
        "by this count. Fusing, distilling and evaluating are no part of the cost of selection; they are listed beside it.",
        "Set by us, because the published method leaves them open: the distillation weight and temperature, the "
        "rounding of widths, and the details of re-pruning.",
    ]
    if found is not None:
        error = 100 * math.sqrt(max(found.mean * (1 - found.mean), 0) / tests)
        notes.insert(
            1,
            f"With {tests:,} test samples an accuracy of {points(found.mean)} % has a standard error of "
            f"{error:.1f} points from the test set alone.",
        )
    return [
        "<h2>How to read this</h2>",
        "<ul>" + "".join(f"<li>{escape(one)}</li>" for one in notes) + "</ul>",
    ]


def last_common(summary: Summary) -> int | None:
    """Largest size at which every arm has a final network; else the largest of the first arm."""
    sizes = [{size for size in arm.labels if arm.accuracy(size, "final")} for arm in summary.arms]
    common = set.intersection(*sizes) if sizes else set()
    return max(common or (sizes[0] if sizes else ()), default=None)


def _flops(arm: Arm, labels: int) -> float:
    spent = arm.selection(labels)
    return spent[0].mean if spent else 0.0


def size(labels: int, summary: Summary) -> str:
    """Samples and per cent of the pool."""
    return f"{labels:,} samples ({percent(labels / summary.pool)} of the pool)"


def points(value: float) -> str:
    """Per cent with one decimal, without the sign."""
    return f"{100 * value:.1f}"
