"""Tables of FLOPs and seconds by phase, which every report has, and of accuracy, cost and widths of a loop's arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from prunefuse._table import Group, Table
from prunefuse.experiment.format import Metric, engineering, percent
from prunefuse.experiment.report import figures
from prunefuse.experiment.summary import Arm, Spread, Summary
from prunefuse.pruning.plan import Layer, PruningPlan


def by_phase(
    columns: Sequence[tuple[Group, figures.Cost]],
    titles: Mapping[str, str],
    *,
    sums: Mapping[str, Sequence[str]],
    together: bool = False,
) -> Table:
    """FLOPs, seconds and FLOPs a second of every column, a row for each phase that any has, and then the sums.

    Args:
        columns: Title and costs; the title's number of columns is not read.
        titles: Phases in order, with what they are for people.
        sums: Titles of the last rows, and the phases that each sums.
        together: FLOPs and seconds in one cell with their units, below the titles, for a terminal.
    """

    def cells(cost: tuple[float, float | None] | None) -> list[str]:
        if cost is None:
            return [""] if together else ["", "", ""]
        if together:
            return [engineering(cost[0], "FLOP") + ("" if cost[1] is None else f" {cost[1]:8.2f} s")]
        flops, seconds = cost
        rate = engineering(flops / seconds) if flops and seconds else ""
        return [engineering(flops), "" if seconds is None else f"{seconds:.2f}", rate]

    costs = [cost for _, cost in columns]
    rows = [
        [title, *(cell for cost in costs for cell in cells(cost.get(phase)))]
        for phase, title in titles.items()
        if any(phase in cost for cost in costs)
    ]
    rows += [
        [title, *(cell for cost in costs for cell in cells(total(cost, included)))]
        for title, included in sums.items()
    ]
    if together:
        return Table(["cost", *(group.title for group, _ in columns)], rows, sums=len(sums))
    groups = [Group("", 1), *(Group(group.title, 3, group.color) for group, _ in columns)]
    head = ["phase", *["FLOPs", "seconds", "FLOP/s"] * len(columns)]
    return Table(head, rows, sums=len(sums), groups=groups)


def total(cost: figures.Cost, phases: Sequence[str]) -> tuple[float, float | None]:
    """FLOPs and seconds of these phases together; no seconds where not all of ``cost`` was run."""
    flops = sum(cost[phase][0] for phase in phases if phase in cost)
    if any(took is None for _, took in cost.values()):
        return flops, None
    return flops, sum(cost[phase][1] or 0.0 for phase in phases if phase in cost)


def compare(ratio: float) -> str:
    """How much less one takes than another that takes ``ratio`` times as much."""
    if 0.95 < ratio < 1.05:
        return "equal"
    return f"{ratio:.1f}× less" if ratio > 1 else f"{1 / ratio:.1f}× more"


def accuracy(summary: Summary) -> Table:
    """One row per size: for every arm, mean and range over seeds of its final network and its selector."""

    text = summary.metric.text

    def cell(found: Spread | None) -> str:
        if found is None:
            return ""
        several = f" ({text(found.low)}–{text(found.high)})" if len(found.values) > 1 else ""
        return text(found.mean) + several

    what = summary.metric.unit or f" {summary.metric.title}"
    columns: list[tuple[Arm, str, list[str]]] = []
    for arm in summary.arms:
        columns.append(
            (arm, f"final{what}", [cell(arm.accuracy(labels, "final")) for labels in summary.labels])
        )
        selectors = [cell(arm.accuracy(labels, "selector")) for labels in summary.labels]
        if any(selectors) and arm.role == "main":
            columns.append((arm, f"selector{what}", selectors))
    return _by_size(summary, columns)


def metrics(summary: Summary, labels: int) -> Table:
    """All metrics at a size: a row for each, a column for each arm with mean and standard deviation over seeds."""
    found = [(arm, arm.metrics(labels)) for arm in summary.arms]
    found = [(arm, values) for arm, values in found if values]

    def cell(metric: Metric, spread: Spread | None) -> str:
        if spread is None:
            return ""
        several = f" ± {metric.text(spread.deviation)}" if len(spread.values) > 1 else ""
        return f"{metric.text(spread.mean)}{several}{metric.unit}"

    rows = [
        [metric.title, *(cell(metric, values.get(metric.name)) for _, values in found)]
        for metric in map(Metric, dict.fromkeys(name for _, values in found for name in values))
    ]
    return Table(["metric", *(arm.label for arm, _ in found)], rows)


def of_classes(summary: Summary, labels: int, classes: Sequence[str]) -> Table:
    """The metrics of each class at a size: a row for each class, the mean over seeds in a column for each arm and metric."""
    shades = figures.arm_colors(summary)
    found = [(arm, arm.of_classes(labels)) for arm in summary.arms]
    columns = [
        (arm.label, Metric(name), values) for arm, of_each in found for name, values in of_each.items()
    ]
    count = max((len(values) for *_, values in columns), default=0)
    names = classes if len(classes) == count else [str(place) for place in range(count)]
    spans = Counter(label for label, *_ in columns)
    rows = [
        [names[place], *(metric.text(values[place]) for _, metric, values in columns)]
        for place in range(count)
    ]
    return Table(
        ["class", *(f"{metric.title}{metric.unit}" for _, metric, _ in columns)],
        rows,
        groups=[Group("", 1), *(Group(label, span, shades[label]) for label, span in spans.items())],
    )


def costs(summary: Summary) -> Table:
    """One row per size: for every arm, the cost of selection, where it has any, beside the cost of the whole."""
    columns: list[tuple[Arm, str, list[str]]] = []
    for arm in summary.arms:
        for name, of in (("selection", arm.selection), ("whole", arm.whole)):
            found = [of(labels) for labels in summary.labels]
            if name == "whole" or any(cost[0].mean for cost in found if cost):
                flops = [engineering(cost[0].mean) if cost else "" for cost in found]
                seconds = [f"{cost[1].mean:.1f}" if cost else "" for cost in found]
                columns += [(arm, f"{name} FLOPs", flops), (arm, f"{name} s", seconds)]
    return _by_size(summary, columns)


def _by_size(summary: Summary, columns: Sequence[tuple[Arm, str, Sequence[str]]]) -> Table:
    """A row for every size of the labeled set; the columns of an arm stand under its name."""
    shades = figures.arm_colors(summary)
    spans = Counter(arm.label for arm, *_ in columns)
    groups = [Group("", 2), *(Group(label, span, shades[label]) for label, span in spans.items())]
    sizes = [f"{labels:,}" for labels in summary.labels]
    parts = [percent(labels / summary.pool) for labels in summary.labels]
    rows = [list(row) for row in zip(sizes, parts, *(cells for *_, cells in columns), strict=True)]
    return Table(["labels", "pool", *(name for _, name, _ in columns)], rows, left=0, groups=groups)


def layers(plan: PruningPlan) -> Table:
    """Widths, parameters and FLOPs of every layer that has any, and of all."""

    def change(before: int, after: int) -> str:
        return f"{before:,}" if before == after else f"{before:,} → {after:,}"

    rows = [
        [
            layer.name,
            layer.type,
            change(layer.width_before, layer.width_after),
            change(layer.params_before, layer.params_after),
            change(layer.flops_before, layer.flops_after),
            percent(layer.flops_after / layer.flops_before),
        ]
        for layer in counted(plan)
    ]
    kept = percent(plan.flops[1] / plan.flops[0])
    rows.append(["all layers", "", "", change(*plan.params), change(*plan.flops), kept])
    head = ["layer", "type", "width", "parameters", "FLOPs per image", "FLOPs kept"]
    return Table(head, rows, left=2, sums=1)


def counted(plan: PruningPlan) -> list[Layer]:
    """Layers with FLOPs: norms and the like follow the layer before them."""
    return [layer for layer in plan.layers if layer.flops_before]
