"""The figures of a report, as SVG. Matplotlib's figure objects are used directly: no pyplot, no global state."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from prunefuse.experiment.format import duration, engineering, percent
from prunefuse.experiment.records import Epoch, PhaseName
from prunefuse.experiment.summary import Arm, Spread, Summary
from prunefuse.pruning.plan import Layer

# The end of a line, in data units, with its name and color.
_End: TypeAlias = tuple[float, float, str, str]

INK, MUTED, RULE = "#1b1f24", "#5f6b7a", "#d9dee5"
# Readable by color-blind people and in gray; the first is the main arm's in every figure of a report.
_MAIN = ("#0b6e99", "#7b3fa0", "#1f8a4c", "#b3246b", "#4c5fd5")
_BASELINE = {"dense": "#c8620d", "random": "#6d7785"}
PHASES: dict[PhaseName, tuple[str, str]] = {
    "train_selector": ("train selector", "#0b6e99"),
    "score_pool": ("score pool", "#58a9cc"),
    "select": ("select", "#b5dcec"),
    "train_final": ("train final", "#c8620d"),
    "teacher": ("teacher", "#eba96c"),
    "plan": ("plan pruning", "#6d7785"),
    "fuse": ("fuse", "#a9b2bd"),
    "evaluate": ("evaluate", "#dfe3e8"),
}


def colors(arms: Sequence[Arm]) -> dict[str, str]:
    """One color per arm's label, the same in every figure and table."""
    given: dict[str, str] = {}
    extra = list(_MAIN)
    for arm in arms:
        color = _BASELINE.get(arm.role)
        if color is None or color in given.values():
            color = extra.pop(0) if extra else MUTED
        given[arm.label] = color
    return given


def accuracy(summary: Summary) -> str:
    """Test accuracy of the final network against labels: mean, range over seeds, and each seed as a dot."""
    figure = _figure(10.4, 4.3)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.055, right=1 - _room(summary.arms), bottom=0.145, top=0.93)
    ends = _lines(axes, summary, lambda arm, labels: arm.accuracy(labels, "final"), scale=100, dots=True)
    _finish(axes, summary, "test accuracy of the final network, %", ends)
    return _svg(figure)


def selection(summary: Summary) -> str:
    """FLOPs and seconds spent on selecting against labels, of the arms that spend any."""
    figure = _figure(10.4, 3.6)
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.055, right=1 - _room(summary.arms), bottom=0.17, top=0.91, wspace=0.17)
    for index, (axes, title) in enumerate(zip(panels, ("FLOPs", "seconds"), strict=True)):

        def spent(arm: Arm, labels: int, index: int = index) -> Spread | None:
            found = arm.selection(labels)
            return found[index] if found and found[0].mean > 0 else None

        ends = _lines(axes, summary, spent, scale=1, dots=False)
        # Far apart, the smaller ones would all look like nothing on a linear axis.
        if ends and max(y for _, y, _, _ in ends) > 10 * min(y for _, y, _, _ in ends):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
            title += " (log scale)"
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda height, _: engineering(height)))
        _finish(axes, summary, title, ends if index == 1 else ())
    return _svg(figure)


def phases(summary: Summary) -> str:
    """FLOPs and seconds per phase, one bar per arm, side by side."""
    arms = summary.arms
    figure = _figure(10.4, 1.35 + 0.52 * len(arms))
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(left=_room(arms), right=0.965, wspace=0.16, bottom=0.2, top=0.74)
    shown = [phase for phase in PHASES if any(phase in arm.phases() for arm in arms)]
    for panel, (axes, title) in enumerate(zip(panels, ("FLOPs", "seconds"), strict=True)):
        longest = max((sum(cost[panel] for cost in arm.phases().values()) for arm in arms), default=0) or 1
        for row, arm in enumerate(arms):
            left = 0.0
            for phase in shown:
                width = arm.phases().get(phase, (0.0, 0.0))[panel]
                axes.barh(row, width, left=left, height=0.62, color=PHASES[phase][1], linewidth=0)
                left += width
            text = engineering(left, "FLOPs") if panel == 0 else duration(left)
            axes.text(left + 0.012 * longest, row, text, va="center", fontsize=9, color=INK)
        axes.set_xlim(0, longest * 1.19)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_yticks(range(len(arms)), [arm.label for arm in arms] if panel == 0 else [""] * len(arms))
        unit = (lambda value, _: engineering(value)) if panel == 0 else (lambda value, _: f"{value:g}")
        axes.xaxis.set_major_formatter(FuncFormatter(unit))
        axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
        _clean(axes, grid="x")
        axes.tick_params(axis="y", labelsize=10, labelcolor=INK)
    handles = [_swatch(PHASES[phase][1]) for phase in shown]
    figure.legend(
        handles,
        [PHASES[phase][0] for phase in shown],
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(shown),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1,
        handleheight=1,
        handletextpad=0.5,
        columnspacing=1.4,
        borderaxespad=0,
    )
    return _svg(figure)


def training(summary: Summary, labels: int) -> str:
    """Loss and accuracy over epochs of the final network with this many labels, mean over seeds."""
    shades = colors(summary.arms)
    figure = _figure(10.4, 3.4)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.065, right=1 - _room(summary.arms), wspace=0.2, bottom=0.15, top=0.9)
    ends: list[_End] = []
    for arm in summary.arms:
        curves = arm.curves(labels, "final") or arm.curves(labels, "selector")
        if not curves:
            continue
        color = shades[arm.label]
        epochs = [epoch.epoch for epoch in curves[0]]
        left.plot(epochs, _mean(curves, lambda epoch: epoch.loss), color=color, linewidth=1.6)
        heights = _mean(curves, lambda epoch: 100 * epoch.train_accuracy)
        tested = all(epoch.test_accuracy is not None for curve in curves for epoch in curve)
        right.plot(
            epochs, heights, color=color, linewidth=1.0 if tested else 1.6, alpha=0.55 if tested else 1
        )
        if tested:
            heights = _mean(curves, lambda epoch: 100 * (epoch.test_accuracy or 0))
            right.plot(epochs, heights, color=color, linewidth=1.8)
        ends.append((epochs[-1], heights[-1], arm.label, color))
    left.set_title("loss on the labeled set", loc="left", fontsize=10, color=INK, fontweight="bold")
    right.set_title("accuracy, %", loc="left", fontsize=10, color=INK, fontweight="bold")
    for axes in (left, right):
        axes.set_xlabel("epoch", fontsize=9.5, color=MUTED)
        _clean(axes, grid="y")
        axes.margins(x=0.01)
    left.set_ylim(bottom=0)
    _label_ends(right, ends)
    return _svg(figure)


def widths(layers: Sequence[Layer], color: str) -> str:
    """Channels per layer, dense and kept, in the order of the model."""
    figure = _figure(10.4, 2.5)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.05, right=0.995, bottom=0.06 if len(layers) > 40 else 0.34, top=0.87)
    places = range(len(layers))
    axes.bar(places, [layer.width_before for layer in layers], width=0.72, color=RULE, linewidth=0)
    axes.bar(places, [layer.width_after for layer in layers], width=0.72, color=color, linewidth=0)
    for place, layer in zip(places, layers, strict=True):
        if len(layers) <= 40:
            axes.text(
                place,
                layer.width_after,
                str(layer.width_after),
                ha="center",
                va="bottom",
                fontsize=8,
                color=INK,
            )
    axes.set_xlim(-0.6, len(layers) - 0.4)
    names = [layer.name for layer in layers] if len(layers) <= 40 else [""] * len(layers)
    axes.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_title("channels", loc="left", fontsize=10, color=INK, fontweight="bold")
    _clean(axes, grid="y")
    axes.tick_params(axis="x", labelsize=8)
    return _svg(figure)


def _lines(
    axes: Axes, summary: Summary, value: Callable[[Arm, int], Spread | None], *, scale: float, dots: bool
) -> list[_End]:
    """One line per arm over labeled-set sizes, and a band from the lowest to the highest seed. Returns their ends."""
    shades = colors(summary.arms)
    ends: list[_End] = []
    for arm in reversed(summary.arms):  # the main arm on top
        points = [(labels, found) for labels in arm.labels if (found := value(arm, labels)) is not None]
        if not points:
            continue
        xs = [labels for labels, _ in points]
        color = shades[arm.label]
        means = [scale * found.mean for _, found in points]
        low, high = [scale * found.low for _, found in points], [scale * found.high for _, found in points]
        axes.fill_between(xs, low, high, color=color, alpha=0.13, linewidth=0)
        axes.plot(xs, means, color=color, linewidth=2, marker="o", markersize=5, markeredgewidth=0)
        for x, (_, found) in zip(xs, points, strict=True):
            if dots and len(found.values) > 1:
                marks = [scale * one for one in found.values]
                axes.plot([x] * len(marks), marks, ".", color=color, alpha=0.45, markersize=4)
        ends.append((xs[-1], means[-1], arm.label, color))
    return ends


def _finish(axes: Axes, summary: Summary, title: str, ends: Sequence[_End]) -> None:
    """Title, axis of sizes, and the names of the lines."""
    _label_sizes(axes, summary)
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    _clean(axes, grid="y")
    _label_ends(axes, ends)


def _label_sizes(axes: Axes, summary: Summary) -> None:
    """A tick at every size, in samples and per cent; where two would touch, the smaller goes without text.

    The axis is linear or logarithmic, whichever sets the sizes farther apart.
    """
    sizes = summary.labels
    logs = [math.log(size) for size in sizes]
    scale: Literal["linear", "log"] = "log" if _evenness(logs) > _evenness(sizes) else "linear"
    axes.set_xscale(scale)
    if scale == "log":
        margin = 0.04 * (logs[-1] - logs[0])
        axes.set_xlim(math.exp(logs[0] - margin), math.exp(logs[-1] + margin))
    else:
        margin = 0.04 * (sizes[-1] - sizes[0]) or 1.0
        axes.set_xlim(sizes[0] - margin, sizes[-1] + margin)
    texts: list[str] = []
    last = math.inf
    for size in reversed(sizes):
        place = float(axes.transData.transform((size, 1))[0])
        if last - place < 50:  # points of the page, the width of a text
            texts.append("")
        else:
            texts.append(f"{size:,}\n{percent(size / summary.pool)}")
            last = place
    axes.set_xticks(sizes, texts[::-1])
    axes.xaxis.set_minor_locator(NullLocator())
    note = ", log scale" if scale == "log" else ""
    axes.set_xlabel(f"labels (samples and part of the pool{note})", fontsize=9.5, color=MUTED, labelpad=2)


def _evenness(places: Sequence[float]) -> float:
    """The smallest gap as a part of the whole span."""
    gaps = [after - before for before, after in pairwise(places)]
    return min(gaps) / sum(gaps) if gaps else 1.0


def _label_ends(axes: Axes, ends: Sequence[_End]) -> None:
    """Write each line's name beside its end, pushed apart where they would overlap."""
    if not ends:
        return
    axes.apply_aspect()
    axes.autoscale_view()  # settles the limits, in whose units the gap is measured
    to_axes = axes.transAxes.inverted()
    heights = [float(to_axes.transform(axes.transData.transform((x, y)))[1]) for x, y, _, _ in ends]
    order = sorted(range(len(ends)), key=heights.__getitem__)
    gap = 17 / axes.bbox.height  # pixels of a line of text
    for below, above in pairwise(order):
        heights[above] = max(heights[above], heights[below] + gap)
    overflow = max(heights[order[-1]] - 1.0, 0)
    for height, (_, _, text, color) in zip(heights, ends, strict=True):
        axes.text(
            1.012,
            height - overflow,
            text,
            transform=axes.transAxes,
            va="center",
            fontsize=10,
            fontweight="bold",
            color=color,
        )


def _clean(axes: Axes, grid: str) -> None:
    for side in ("top", "right", "left" if grid == "y" else "bottom"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(RULE)
    axes.grid(axis="y" if grid == "y" else "x", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=MUTED, which="both")


def _mean(curves: Sequence[Sequence[Epoch]], value: Callable[[Epoch], float]) -> list[float]:
    return [sum(map(value, epochs)) / len(curves) for epochs in zip(*curves, strict=False)]


def _swatch(color: str) -> Artist:
    return Rectangle((0, 0), 1, 1, color=color, linewidth=0)


def _room(arms: Sequence[Arm]) -> float:
    """Part of the figure's width that the longest name of an arm takes."""
    return 0.03 + 0.0085 * max(len(arm.label) for arm in arms)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Figure) -> str:
    """The drawing without the XML head, the date and the creator."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), count=1, flags=re.DOTALL)
