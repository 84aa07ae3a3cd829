"""The drawings of a report, as SVG whose text is text. Matplotlib's figure objects are used directly: no pyplot.

Every drawing is a panel of one width, and the page sets panels side by side or, on a narrow screen, one below the other.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from prunefuse.experiment.format import engineering, percent
from prunefuse.experiment.records import Epoch
from prunefuse.experiment.summary import Arm, Spread, Summary
from prunefuse.pruning.plan import Layer

# FLOPs and seconds by phase; seconds are None where nothing was run.
Cost: TypeAlias = Mapping[str, tuple[float, float | None]]
# The end of a line, in data units, with its name and color.
_End: TypeAlias = tuple[float, float, str, str]

# Every color by its name in the page, on light and on dark paper. Arms and phases are told apart by color-blind people, too.
PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1b1f24", "#e6eaef"),
    "muted": ("#5f6b7a", "#9ba7b5"),
    "rule": ("#d9dee5", "#333c46"),
    "soft": ("#f5f7f9", "#1b2128"),
    "paper": ("#ffffff", "#12161b"),
    "blue": ("#0b6e99", "#4fb0da"),
    "blue2": ("#58a9cc", "#357f9f"),
    "blue3": ("#b5dcec", "#255468"),
    "orange": ("#c8620d", "#ee9249"),
    "orange2": ("#eba96c", "#a9662f"),
    "gray": ("#6d7785", "#939eac"),
    "gray2": ("#a9b2bd", "#66717e"),
    "gray3": ("#dfe3e8", "#404a55"),
    "violet": ("#7b3fa0", "#bb8fd8"),
    "green": ("#1f8a4c", "#5abf83"),
    "magenta": ("#b3246b", "#e46aa2"),
    "indigo": ("#4c5fd5", "#929ef2"),
}
COLORS = {name: light for name, (light, _) in PALETTE.items()}
INK, MUTED, RULE = COLORS["ink"], COLORS["muted"], COLORS["rule"]
_WIDTH = 4.9  # inches, of which a narrow screen shows 5 legibly
_PLACES = 10  # values of an option, up to which all have a tick
_NAMED = 40  # layers, above which their names and widths have no room


def colors(arms: Sequence[tuple[str, str]]) -> dict[str, str]:
    """One color per label, the same in every figure and table, of arms as label and role; the first is the main arm."""
    given: dict[str, str] = {}
    extra = [COLORS[name] for name in ("blue", "violet", "green", "magenta", "indigo")]
    extra += [COLORS[name] for name in ("blue2", "orange2", "gray2")]  # where there are many
    usual = {"dense": COLORS["orange"], "full": COLORS["orange"], "random": COLORS["gray"]}
    for label, role in arms:
        color = usual.get(role)
        if color is None or color in given.values():
            color = extra.pop(0) if extra else MUTED
        given[label] = color
    return given


def arm_colors(summary: Summary) -> dict[str, str]:
    """The `colors` of a loop's arms."""
    return colors([(arm.label, arm.role) for arm in summary.arms])


def accuracy(summary: Summary) -> list[str]:
    """Test accuracy, or the first metric of another task, of the final network against labels, and FLOPs of the whole.

    Lines are means, bands reach over the seeds, which are dots.
    """
    panels: list[str] = []
    metric = summary.metric
    unit = f",{metric.unit}" if metric.unit else ""
    with _panel(panels, f"test {metric.title} of the final network{unit}") as axes:
        _against_labels(
            axes, summary, lambda arm, labels: arm.accuracy(labels, "final"), scale=metric.scale, dots=True
        )
    with _panel(panels, f"the same against the cost of the whole{unit}") as axes:
        shades = arm_colors(summary)
        ends: list[_End] = []
        for arm in reversed(summary.arms):
            points = [
                (whole[0].mean, metric.scale * found.mean)
                for labels in arm.labels
                if (whole := arm.whole(labels)) and (found := arm.accuracy(labels, "final"))
            ]
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, color=shades[arm.label], linewidth=2, marker="o", markersize=4.5)
                ends.append((xs[-1], ys[-1], arm.label, shades[arm.label]))
        axes.set_xlim(left=0)
        axes.margins(x=0.06, y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: engineering(value)))
        axes.set_xlabel("FLOPs of selecting and of one final network", fontsize=9, color=MUTED)
        label_ends(axes, ends)
    return panels


def costs(summary: Summary) -> list[str]:
    """Cost of selection beside the cost of the whole, in FLOPs and in seconds, against labels."""
    panels: list[str] = []

    def draw(title: str, value: Callable[[Arm, int], Spread | None]) -> None:
        with _panel(panels, "", height=2.7) as axes:
            heights = _against_labels(axes, summary, value, scale=1, dots=False)
            _title(axes, title + (", log scale" if _far_apart(heights) else ""))

    for index, unit in enumerate(("FLOPs", "seconds")):
        draw(f"selection: {unit}", partial(_spent, Arm.selection, index))
        draw(f"the whole: {unit}", partial(_spent, Arm.whole, index))
    return panels


def _spent(
    of: Callable[[Arm, int], tuple[Spread, Spread] | None], index: int, arm: Arm, labels: int
) -> Spread | None:
    """FLOPs (0) or seconds (1), where there are any FLOPs."""
    found = of(arm, labels)
    return found[index] if found and found[0].mean > 0 else None


def _far_apart(heights: Sequence[float]) -> bool:
    """Whether the smaller ones would all look like nothing on a linear axis."""
    return bool(heights) and max(heights) > 10 * min(heights)


def training(summary: Summary, labels: int) -> list[str]:
    """Loss and accuracy over epochs of the final network with this many labels, mean over seeds."""
    shades = arm_colors(summary)
    panels: list[str] = []
    curves = {
        arm.label: found
        for arm in summary.arms
        if (found := arm.curves(labels, "final") or arm.curves(labels, "selector"))
    }

    def draw(axes: Axes, value: Callable[[Epoch], float], thin: bool = False) -> list[_End]:
        ends: list[_End] = []
        for label, found in curves.items():
            heights = [sum(map(value, epochs)) / len(found) for epochs in zip(*found, strict=False)]
            places = [epoch.epoch for epoch in found[0]][: len(heights)]
            width, alpha = (1.0, 0.55) if thin else (1.7, 1.0)
            axes.plot(places, heights, color=shades[label], linewidth=width, alpha=alpha)
            ends.append((places[-1], heights[-1], label, shades[label]))
        axes.set_xlabel("epoch", fontsize=9, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.margins(x=0.01)
        return ends

    with _panel(panels, "loss on the labeled set") as axes:
        ends = draw(axes, lambda epoch: epoch.loss)
        axes.set_ylim(bottom=0)
        label_ends(axes, ends)
    metric = summary.metric
    with _panel(panels, metric.title + (f",{metric.unit}" if metric.unit else "")) as axes:
        epochs = [epoch for found in curves.values() for curve in found for epoch in curve]
        tested = all(epoch.test_accuracy is not None for epoch in epochs)
        ends = draw(axes, lambda epoch: metric.scale * epoch.train_accuracy, thin=tested)
        if tested:
            ends = draw(axes, lambda epoch: metric.scale * (epoch.test_accuracy or 0))
        label_ends(axes, ends)
    return panels


def against(
    lines: Mapping[str, Mapping[float, Sequence[float]]],
    level: Mapping[str, float],
    title: str,
    told: Callable[[float], str] = "{:g}".format,
) -> list[str]:
    """Accuracy against an option: values by place for each line, whose means are drawn and whose values are dots.

    ``level`` has what does not depend on the option, by name; ``told`` writes a place.
    """
    panels: list[str] = []
    shades = colors(
        [(label, "main") for label in lines] + [(label, label.partition(",")[0]) for label in level]
    )
    places = sorted({place for points in lines.values() for place in points})
    with _panel(panels, "test accuracy of the final network, %", width=2 * _WIDTH) as axes:
        ends: list[_End] = []
        for label, height in level.items():
            axes.plot([places[0], places[-1]], [100 * height] * 2, "--", color=shades[label], linewidth=1.3)
            ends.append((places[-1], 100 * height, label, shades[label]))
        for label, points in lines.items():
            xs = sorted(points)
            means = [100 * sum(points[x]) / len(points[x]) for x in xs]
            axes.plot(
                xs, means, color=shades[label], linewidth=2, marker="o", markersize=4.5, markeredgewidth=0
            )
            for x in xs:
                if len(points[x]) > 1:
                    axes.plot(
                        [x] * len(points[x]),
                        [100 * y for y in points[x]],
                        ".",
                        color=shades[label],
                        alpha=0.45,
                    )
            ends.append((xs[-1], means[-1], label, shades[label]))
        if places[0] > 0 and places[-1] >= 8 * places[0]:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        if len(places) <= _PLACES:
            axes.set_xticks(places, list(map(told, places)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: told(place)))
        axes.set_xlabel(title, fontsize=9, color=MUTED)
        label_ends(axes, ends)
    return panels


def flops_to_select(title: str, lines: Mapping[str, Mapping[float, float]]) -> list[str]:
    """FLOPs against labels, both logarithmic, a line for each selector; the first is the dense one."""
    panels: list[str] = []
    shades = colors([(label, "dense" if label == "dense" else "main") for label in lines])
    with _panel(panels, title) as axes:
        ends: list[_End] = []
        for label, points in lines.items():
            xs = sorted(points)
            ys = [points[x] for x in xs]
            axes.plot(xs, ys, color=shades[label], linewidth=2, marker="o", markersize=4.5)
            ends.append((xs[-1], ys[-1], label, shades[label]))
        places = sorted({x for points in lines.values() for x in points})
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(places, [engineering(place) for place in places])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: engineering(value)))
        axes.set_xlabel("labels", fontsize=9, color=MUTED)
        label_ends(axes, ends)
    return panels


def phases(bars: Sequence[tuple[str, Cost]], shades: Mapping[str, str]) -> list[str]:
    """FLOPs and seconds by phase, one bar per name, side by side; ``shades`` are the colors of phases, in order."""
    panels: list[str] = []
    for index, title in enumerate(("FLOPs", "seconds")):
        with _panel(panels, title, height=0.75 + 0.42 * len(bars), grid="x") as axes:
            lefts = [0.0] * len(bars)
            for phase, color in shades.items():
                widths = [float(cost.get(phase, (0.0, 0.0))[index] or 0.0) for _, cost in bars]
                if any(widths):
                    axes.barh(range(len(bars)), widths, left=lefts, height=0.62, color=color, linewidth=0)
                lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
            texts = [engineering(length) if index == 0 else f"{length:.3g}" for length in lefts]
            for place, (_, cost) in enumerate(bars):
                if index and None in [seconds for _, seconds in cost.values()]:
                    texts[place] = "not run"
            ends = axes.barh(range(len(bars)), [0.0] * len(bars), left=lefts)
            axes.bar_label(ends, texts, padding=4, fontsize=9, color=INK)
            axes.set_xlim(0, 1.18 * (max(lefts) or 1.0))
            axes.set_ylim(len(bars) - 0.5, -0.5)
            axes.set_yticks(range(len(bars)), [_wrapped(name, 20) for name, _ in bars])
            unit = engineering if index == 0 else "{:g}".format
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: unit(value)))
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.tick_params(axis="y", labelcolor=INK)
    return panels


def widths(layers: Sequence[Layer], color: str) -> str:
    """Channels per layer, dense and kept, in the order of the model."""
    panels: list[str] = []
    named = len(layers) <= _NAMED
    with _panel(panels, "channels", width=2 * _WIDTH, height=2.5) as axes:
        places = range(len(layers))
        axes.bar(places, [layer.width_before for layer in layers], width=0.72, color=RULE, linewidth=0)
        kept = axes.bar(places, [layer.width_after for layer in layers], width=0.72, color=color, linewidth=0)
        axes.set_xlim(-0.6, len(layers) - 0.4)
        names = [_tail(layer.name) if named else "" for layer in layers]
        axes.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", labelsize=8)
        if named:
            axes.bar_label(kept, padding=1, fontsize=8, color=INK)
    return panels[0]


def label_ends(axes: Axes, ends: Sequence[_End]) -> None:
    """Write each line's name at its end: right of the axes, pushed apart, or above the end where lines end at many places."""
    if not ends:
        return
    if len({x for x, *_ in ends}) > 1:
        for x, y, text, color in ends:
            axes.annotate(
                text,
                (x, y),
                (4, 7),
                textcoords="offset points",
                ha="right" if x > 0.5 * axes.get_xlim()[1] else "left",
                fontsize=9.5,
                fontweight="bold",
                color=color,
            )
        return
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # settles the heights that follow
    to_axes = axes.transAxes.inverted()
    texts = [_wrapped(text, 16) for _, _, text, _ in ends]
    heights = [float(to_axes.transform(axes.transData.transform((x, y)))[1]) for x, y, _, _ in ends]
    room = [13 * (text.count("\n") + 1) / axes.bbox.height for text in texts]
    order = sorted(range(len(ends)), key=heights.__getitem__)
    for below, above in pairwise(order):
        heights[above] = max(heights[above], heights[below] + (room[above] + room[below]) / 2)
    overflow = max(heights[order[-1]] - 1.0, 0)
    for height, text, (*_, color) in zip(heights, texts, ends, strict=True):
        axes.text(
            1.02,
            height - overflow,
            text,
            transform=axes.transAxes,
            va="center",
            fontsize=9.5,
            fontweight="bold",
            color=color,
        )


def _against_labels(
    axes: Axes, summary: Summary, value: Callable[[Arm, int], Spread | None], *, scale: float, dots: bool
) -> list[float]:
    """One line per arm over labeled-set sizes, and a band from the lowest to the highest seed. Returns their ends' heights."""
    shades = arm_colors(summary)
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
        axes.plot(xs, means, color=color, linewidth=2, marker="o", markersize=4.5, markeredgewidth=0)
        for x, (_, found) in zip(xs, points, strict=True):
            if dots and len(found.values) > 1:
                marks = [scale * one for one in found.values]
                axes.plot([x] * len(marks), marks, ".", color=color, alpha=0.45, markersize=4)
        ends.append((xs[-1], means[-1], arm.label, color))
    heights = [y for _, y, _, _ in ends]
    if not dots:
        if _far_apart(heights):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda height, _: engineering(height)))
    _label_sizes(axes, summary)
    label_ends(axes, ends)
    return heights


def _label_sizes(axes: Axes, summary: Summary) -> None:
    """A tick at every size, in samples and per cent; where two would touch, the smaller goes without text.

    The axis is linear or logarithmic, whichever sets the sizes farther apart.
    """
    sizes = summary.labels
    logs = [math.log(size) for size in sizes]
    scale: Literal["linear", "log"] = "log" if _evenness(logs) > _evenness(sizes) else "linear"
    axes.set_xscale(scale)
    places = logs if scale == "log" else [float(size) for size in sizes]
    margin = 0.04 * (places[-1] - places[0]) or 1.0
    low, high = places[0] - margin, places[-1] + margin
    axes.set_xlim(*((math.exp(low), math.exp(high)) if scale == "log" else (low, high)))
    texts: list[str] = []
    last = math.inf
    for size, place in zip(reversed(sizes), reversed(places), strict=True):
        if last - place < 0.15 * (high - low):  # the width of a text
            texts.append("")
        else:
            texts.append(f"{size:,}\n{percent(size / summary.pool)}")
            last = place
    axes.set_xticks(sizes, texts[::-1])
    axes.xaxis.set_minor_locator(NullLocator())
    note = ", log scale" if scale == "log" else ""
    axes.set_xlabel(f"labels (samples and part of the pool{note})", fontsize=9, color=MUTED)


def _evenness(places: Sequence[float]) -> float:
    """The smallest gap as a part of the whole span."""
    gaps = [after - before for before, after in pairwise(places)]
    return min(gaps) / sum(gaps) if gaps else 1.0


@contextmanager
def _panel(
    into: list[str],
    title: str,
    *,
    width: float = _WIDTH,
    height: float = 3.0,
    grid: Literal["x", "y"] = "y",
) -> Iterator[Axes]:
    """Axes to draw in; afterwards their SVG is in ``into``."""
    # Text stays text, in the page's font, is never mathematics, and names do not depend on the time.
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "prunefuse"}
    ):
        figure = Figure(figsize=(width, height), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        _title(axes, title)
        for side in ("top", "right", "left" if grid == "y" else "bottom"):
            axes.spines[side].set_visible(False)
        for spine in axes.spines.values():
            spine.set_color(RULE)
        axes.grid(axis=grid, color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=9, labelcolor=MUTED, which="both")
        yield axes
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    # Without the XML head and the style of all lines, which the page has.
    svg = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), count=1, flags=re.DOTALL)
    into.append(re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL))


def _wrapped(text: str, width: int) -> str:
    """In lines of ``width`` letters, at most three."""
    lines = textwrap.wrap(text, width)
    return "\n".join(lines[:3]) + (" …" if len(lines) > 3 else "")


def _tail(text: str, longest: int = 28) -> str:
    return text if len(text) <= longest else "…" + text[1 - longest :]


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
