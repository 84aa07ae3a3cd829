"""What it costs to select part of CIFAR-10 with pruned selectors and with the dense network (figure 3 of PruneFuse).

FLOPs follow from the formula of the ledger with fvcore's counts of networks that really were pruned. Beside them stand
seconds: of one training batch, and of scoring a pool, for the same networks.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunefuse
from prunefuse import _files as files
from prunefuse import models
from prunefuse.experiment.cost import FORMULA, Sizes, selection_cost
from prunefuse.experiment.format import engineering
from prunefuse.experiment.rounds import planned_costs
from prunefuse.training import RECIPES, flops_per_input, predict

NETWORKS = {
    "ResNet-56": "resnet56",
    "ResNet-110": "resnet110",
    "ResNet-164": "resnet164",
    "Wide-ResNet-16-4": "wide_resnet16_4",
    "VGG-16": "vgg16_bn",
}
RATIOS = (0.5, 0.6, 0.7, 0.8)
POOL = 50_000
SCHEDULE = (1_000, 5_000, 10_000, 15_000, 20_000, 25_000)
BUDGETS = {"10 %": 5_000, "30 %": 15_000, "50 %": 25_000}
RECIPE = RECIPES["cifar"]
BATCH, SCORED = 32, 64  # images per training step, and per scored pool, of the measured seconds


@dataclass
class Selector:
    """A network that selects: dense (ratio 0) or pruned.

    ``flops`` per image by fvcore, ``analytic`` by the plan; ``selection`` in FLOPs by budget; seconds per training
    batch and per scored pool, one for every turn.
    """

    network: str
    ratio: float
    model: nn.Module = field(repr=False)
    flops: float
    analytic: float
    selection: dict[str, float]
    train_seconds: list[float] = field(default_factory=list)
    score_seconds: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"p = {self.ratio}" if self.ratio else "dense"


def selectors(network: str) -> list[Selector]:
    """The dense network, then its pruned ones."""
    dense = models.build(NETWORKS[network])
    image = torch.zeros(1, 3, 32, 32)
    plans = {ratio: prunefuse.plan_pruning(dense, (image,), ratio=ratio) for ratio in RATIOS}
    networks = [(0.0, dense, plans[RATIOS[0]].flops[0])]
    networks += [(ratio, plan.extract(dense), plan.flops[1]) for ratio, plan in plans.items()]
    found = []
    for ratio, model, analytic in networks:
        flops = flops_per_input(model, image)
        found.append(Selector(network, ratio, model, flops, analytic, selection(flops, dense=not ratio)))
    return found


def selection(flops: float, *, dense: bool) -> dict[str, float]:
    """FLOPs to select each budget with a network of ``flops`` per image: the ledger that the loop would write."""
    config = prunefuse.LoopConfig(
        SCHEDULE, strategy="entropy", selector="dense" if dense else "prunefuse", recipe=RECIPE, finals="last"
    )
    ledger = list(planned_costs(config, Sizes(flops, flops, features=64, pool=POOL, test=0)))
    return {name: selection_cost(ledger, b).flops for name, b in BUDGETS.items()}


def turn(found: Sequence[Selector], device: torch.device) -> None:
    """Times one training batch and one scored pool of every selector."""
    images = torch.randn(SCORED, 3, 32, 32, device=device)
    labels = torch.randint(10, (BATCH,), device=device)
    for selector in found:
        model = selector.model.to(device).train()
        optimizer = torch.optim.SGD(model.parameters(), RECIPE.lr, RECIPE.momentum)
        selector.train_seconds.append(
            _seconds(lambda m=model, o=optimizer: _step(m, o, images, labels), device)
        )
        selector.score_seconds.append(_seconds(lambda m=model: prunefuse.score(predict(m, images)), device))


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    loss = nn.functional.cross_entropy(model(images[:BATCH]), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _seconds(call: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def ratios(found: Sequence[Selector]) -> list[dict[str, float]]:
    """Of every selector: how many times less than the dense one it needs, in FLOPs and in measured seconds."""
    dense = found[0]
    return [
        {
            "flops": dense.flops / one.flops,
            **{f"select {b}": dense.selection[b] / one.selection[b] for b in BUDGETS},
            "train": statistics.median(dense.train_seconds) / statistics.median(one.train_seconds),
            "score": statistics.median(dense.score_seconds) / statistics.median(one.score_seconds),
        }
        for one in found
    ]


def report(costs: Sequence[Sequence[Selector]]) -> str:
    """The formula, and a Markdown table of all selectors."""
    budgets = " | ".join(f"FLOPs to select {b}" for b in BUDGETS)
    lines = [
        FORMULA,
        f"Here: CIFAR-10 (pool {POOL:,}), |L_r| = {', '.join(f'{n:,}' for n in SCHEDULE)}, E = {RECIPE.epochs}, entropy.",
        f"Dense / pruned: FLOPs of selecting; measured seconds of a training batch of {BATCH}, of scoring {SCORED} images.",
        "",
        f"| selector | FLOPs per image | {budgets} | dense / pruned: FLOPs | training s | scoring s |",
        "|---|" + "---|" * (len(BUDGETS) + 4),
    ]
    for found in costs:
        for one, ratio in zip(found, ratios(found), strict=True):
            spent = " | ".join(engineering(one.selection[b]) for b in BUDGETS)
            times = " | ".join(f"{ratio[key]:.2f}" for key in ("flops", "train", "score"))
            lines.append(f"| {one.network} {one.label} | {engineering(one.flops)} | {spent} | {times} |")
    return "\n".join(lines)


def as_json(costs: Sequence[Sequence[Selector]]) -> dict[str, Any]:
    """Everything measured and counted, with the formula."""
    rows = []
    for found in costs:
        for one, ratio in zip(found, ratios(found), strict=True):
            values = {f.name: getattr(one, f.name) for f in dataclasses.fields(one) if f.name != "model"}
            rows.append({**values, "dense_over_this": ratio})
    setting = {"pool": POOL, "schedule": SCHEDULE, "epochs": RECIPE.epochs, "batch": BATCH, "scored": SCORED}
    return {"formula": FORMULA, "setting": setting, "selectors": rows}


def plot(costs: Sequence[Sequence[Selector]], path: Path) -> Path:
    """Draws FLOPs against budget, a panel for every network, as SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    shades = ("#c8620d", "#9fd0e4", "#58a9cc", "#0b6e99", "#064460")
    figure = Figure(figsize=(2.6 * len(costs) + 0.8, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
    for axes, found in zip(panels, costs, strict=True):
        for place, (one, color) in enumerate(zip(found, shades, strict=True)):
            xs = [i + 0.16 * (place - 2) for i in range(len(BUDGETS))]
            axes.bar(xs, list(one.selection.values()), 0.15, color=color, label=one.label)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: engineering(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(range(len(BUDGETS)), list(BUDGETS))
        axes.set_title(found[0].network, loc="left", fontsize=10, fontweight="bold")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#d9dee5", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("FLOPs to select (log scale)", fontsize=9)
    figure.supxlabel("labels, of CIFAR-10", fontsize=9)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), frameon=False, fontsize=9)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
    return path
