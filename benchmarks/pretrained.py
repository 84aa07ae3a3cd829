"""What a selector is worth that is cut from a pretrained network, by L2 or by OBSPA, beside one from random weights.

``python -m benchmarks.pretrained --seeds 3`` runs active learning on three tasks, and writes ``results/pretrained.json``, a row
for each case, and the page ``docs/pretrained.md``. A run that was stopped goes on with the cases that have no row.

- ``digits``: a ResNet-8 is trained on half of scikit-learn's training digits, and learns digits that are turned, noisy and
  partly covered, from the other half. Classes are the same, so the last layer comes along.
- ``gentle``: the same with a tenth of the learning rate, as one fine-tunes.
- ``fashion``: it is trained on five classes of Fashion-MNIST, shrunk to 14x14, and learns the five others. The last layer is
  new. The files are those of the package ``dataset-fashion-mnist`` of Debian and Ubuntu, or given by ``--root``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prunefuse import ActiveLearning, LoopConfig, Recipe
from prunefuse import _files as files
from prunefuse.data import load
from prunefuse.models import resnet8
from prunefuse.pruning import plan_pruning
from prunefuse.training import evaluate, train

RESULTS = Path(__file__).parent / "results" / "pretrained.json"
PAGE = Path(__file__).parents[1] / "docs" / "pretrained.md"
SIZES = (20, 40, 80, 160)
PRETRAINING = Recipe(epochs=12, batch_size=32, lr=0.05, schedule="one-cycle")
RECIPE = Recipe(epochs=20, min_steps=100, batch_size=16, lr=0.02, schedule="one-cycle")
ODD, EVEN = (1, 3, 5, 7, 9), (0, 2, 4, 6, 8)
ARMS = {
    "obspa": "cut by OBSPA from pretrained weights, fused",
    "l2": "cut by L2 from pretrained weights, fused",
    "small": "as small, from random weights; final network pretrained, not fused",
    "dense": "the pretrained dense network itself",
    "scratch": "cut by L2 from random weights, fused; nothing is pretrained",
}

PAGE_TEXT = """# Selectors cut from a pretrained network

Written by `python -m benchmarks.pretrained`. A network that was trained before gives the selector its weights in two ways:

- `criterion="l2"`: the kept channels with the largest weights, as they are.
- `criterion="obspa"`: unlabeled samples of the pool decide, and the layers that read pruned channels make up for these.

From the command line this is `prunefuse run --weights FILE --criterion obspa --calibration 1024`.

Beside them are a selector as small from random weights, the dense network as its own selector, and a loop in which nothing
is pretrained. Strategy margin, half of the channels, a ResNet-8, the same budgets and recipe for all arms of a task.
Accuracy in per cent, mean ± standard deviation of {seeds} seeds. torch {torch}, one thread.

## Harder digits

The network has learned half of the training digits, as they are. The other half is turned by up to 40 degrees, noisy, and
partly covered: 719 images to choose from, 1,080 for test. Learning rate 0.02.

Selectors:

{digits_selector}

Final networks:

{digits_final}

## The same, with a tenth of the learning rate

Selectors:

{gentle_selector}

Final networks:

{gentle_final}

## Other classes of Fashion-MNIST

The network has learned trousers, dresses and shoes at 14x14 pixels. It learns shirts, pullovers, coats and bags with a new
last layer: 2,000 images to choose from, 1,000 for test. Learning rate 0.02.

Selectors:

{fashion_selector}

Final networks:

{fashion_final}

## What to take

**Take `obspa` where the weights are pretrained and labels are few.** On the digits, the only selector that comes near the
dense network's accuracy before training is OBSPA's. L2 starts little above chance. After training, OBSPA's has the better mean
at every size of both digits tasks, and up to 80 labels of Fashion-MNIST. At 160 labels there L2 is ahead, by less than the
seeds differ. Means of final networks follow the same order.

**The default stays `l2`.** A loop from random weights has nothing to make up for, L2 costs nothing, and what was run before
stays as it was. OBSPA took {planning[digits]} s for a plan on the digits, and {planning[fashion]} s on Fashion-MNIST, on a
machine with other work. That is a part of such small runs, and does not grow with the schedule without T_sync.
The ledger has these seconds, and no FLOPs.

**Pretraining matters more than how one cuts** on the digits: whatever starts from pretrained weights ends above a loop from
random ones. On other classes of Fashion-MNIST that holds for few labels alone. The dense network as its own selector ends
about where OBSPA's does, at the cost of training it in every round.

**Which learning rate** matters, too: at 0.02, twenty labels undo a part of what the digits network knew.

How it is fused: with `complement="keep"`, what training changed in the selector is added to the dense network's weights. Its
refitted layers make up for channels that the dense network still has, so that they would count twice if they were written
there. For kept slices, as of L2, adding and writing are the same. With `zero` and `reinit` the refitted weights are written.
"""


@dataclass(frozen=True)
class Task:
    """Images and labels to pretrain on, to choose from, and to test with."""

    classes: int
    before: TensorDataset
    pool: TensorDataset
    test: TensorDataset
    same_classes: bool


@dataclass(frozen=True)
class Row:
    """One case: accuracies in per cent, of the selector before any training, then after it and of the final network by size."""

    task: str
    seed: int
    arm: str
    start: float
    selector: tuple[float | None, ...]
    final: tuple[float, ...]
    plan_seconds: float
    seconds: float


def harder(images: Tensor, seed: int) -> Tensor:
    """Digits turned by up to 40 degrees, with noise, and a 3x3 part of them covered."""
    g = torch.Generator().manual_seed(seed)
    angle = (torch.rand(len(images), generator=g) * 2 - 1) * (40 * torch.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = nn.functional.affine_grid(turn, list(images.shape), align_corners=False)
    images = nn.functional.grid_sample(images, grid, align_corners=False)
    images = images + 0.1 * torch.randn(images.shape, generator=g)
    corner = torch.randint(0, 6, (len(images), 2), generator=g)
    places = torch.arange(8)
    covered = [(places >= c[:, None]) & (places < c[:, None] + 3) for c in corner.T]
    return images.masked_fill((covered[0][:, :, None] & covered[1][:, None, :])[:, None], 0.0)


def tensors(data: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W), float32 in [0, 1], and labels."""
    images, labels = zip(*data, strict=True)
    return torch.stack([torch.as_tensor(image) for image in images]).float(), torch.tensor(labels)


@cache
def digits(root: str) -> Task:
    """Clean digits, and others that are harder."""
    data = load("digits")
    images, labels = tensors(data.pool)
    half = len(images) // 2
    test_images, test_labels = tensors(data.test)
    # Each test image three times, in other ways, so that chance has less of a say.
    test = torch.cat([harder(test_images, seed) for seed in (1, 2, 3)])
    pool = TensorDataset(harder(images[half:], 0), labels[half:])
    before = TensorDataset(images[:half], labels[:half])
    return Task(10, before, pool, TensorDataset(test, test_labels.repeat(3)), same_classes=True)


@cache
def fashion(root: str) -> Task:
    """Trousers, dresses and shoes; and shirts, pullovers, coats and bags."""
    data = load("fashion_mnist", root=root)

    def some(source: Sequence[tuple[Tensor, int]], classes: Sequence[int], each: int) -> TensorDataset:
        """The first so many of each class, shrunk."""
        found: dict[int, list[Tensor]] = {c: [] for c in classes}
        for image, label in source:
            if len(of := found.get(int(label), [None] * each)) < each:
                of.append(torch.as_tensor(image).float())
            if all(len(of) == each for of in found.values()):
                break
        images = torch.cat([torch.stack(of) for of in found.values()])
        labels = torch.arange(len(classes)).repeat_interleave(each)
        return TensorDataset(nn.functional.avg_pool2d(images, 2), labels)

    return Task(
        5,
        some(data.pool, ODD, 300),
        some(data.pool, EVEN, 400),
        some(data.test, EVEN, 200),
        same_classes=False,
    )


TASKS: dict[str, Callable[[str], Task]] = {"digits": digits, "gentle": digits, "fashion": fashion}
RECIPES = {"digits": RECIPE, "gentle": replace(RECIPE, lr=0.002), "fashion": RECIPE}


@cache
def pretrained(task: str, root: str, seed: int) -> dict[str, Tensor]:
    """Weights for the task: the last layer is among them where classes are the same."""
    given = TASKS[task](root)
    torch.manual_seed(seed)
    model = resnet8(given.classes, in_channels=1)
    train(model, given.before, PRETRAINING, seed=seed)
    return {
        name: value
        for name, value in model.state_dict().items()
        if given.same_classes or not name.startswith("fc.")
    }


def case(task: str, root: str, seed: int, arm: str) -> Row:
    """Active learning by one arm."""
    given, weights = TASKS[task](root), pretrained(task, root, seed)

    def scratch() -> nn.Module:
        return resnet8(given.classes, in_channels=1)

    def start() -> nn.Module:
        model = scratch()
        model.load_state_dict(weights, strict=False)
        return model

    def small() -> nn.Module:
        model = scratch()
        return plan_pruning(model, given.pool[0][0][None], ratio=0.5).extract(model)

    own = {"small": {"selector": "model"}, "dense": {"selector": "dense"}, "obspa": {"criterion": "obspa"}}
    config = LoopConfig(
        schedule=SIZES, strategy="margin", recipe=RECIPES[task], seed=seed, **own.get(arm, {})
    )
    begun = time.perf_counter()
    loop = ActiveLearning(
        scratch if arm == "scratch" else start,
        given.pool,
        given.test,
        config,
        selector_factory=small if arm == "small" else None,
    )
    made = time.perf_counter()
    first = 100 * evaluate(loop._initial_selector(), given.test)
    begun += time.perf_counter() - made  # that is no part of it
    rounds = list(loop)
    seconds = time.perf_counter() - begun
    finals = tuple(100 * one.final_accuracy for one in rounds)
    chosen = [one.final_accuracy if arm == "dense" else one.selector_accuracy for one in rounds]
    selectors = tuple(None if one is None else 100 * one for one in chosen)
    planning = sum(cost.seconds for one in rounds for cost in one.costs if cost.phase == "plan")
    return Row(task, seed, arm, first, selectors, finals, planning, seconds)


def page(rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """The tables, and what they say."""

    def cell(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        if not known:
            return ""
        spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
        return f"{statistics.mean(known):.1f}{spread}"

    def table(task: str, network: str) -> str:
        heads = ["before training"] * (network == "selector") + [f"{size} labels" for size in SIZES]
        lines = [f"| | {' | '.join(heads)} |", "|---" + "|--:" * len(heads) + "|"]
        for arm, name in ARMS.items():
            own = [row for row in rows if (row.task, row.arm) == (task, arm)]
            columns = [[row.start for row in own]] * (network == "selector")
            columns += [[getattr(row, network)[index] for row in own] for index in range(len(SIZES))]
            lines.append(f"| {name} | {' | '.join(map(cell, columns))} |")
        return "\n".join(lines)

    tables = {
        f"{task}_{network}": table(task, network) for task in TASKS for network in ("selector", "final")
    }
    planning = {
        task: cell([r.plan_seconds for r in rows if (r.task, r.arm) == (task, "obspa")]) for task in TASKS
    }
    seeds = len({row.seed for row in rows})
    return PAGE_TEXT.format(seeds=seeds, torch=settings["torch"], planning=planning, **tables)


def done(settings: dict[str, object]) -> list[Row]:
    """The rows that there are of the same settings."""
    if not RESULTS.exists():
        return []
    found = json.loads(RESULTS.read_text())
    if found["settings"] != settings:
        raise SystemExit(f"{RESULTS} is of other settings: move it away to measure anew")
    return [
        Row(**{**row, "selector": tuple(row["selector"]), "final": tuple(row["final"])})
        for row in found["rows"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many of each case")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument(
        "--root", default="data", help="folder of Fashion-MNIST, where the package is not installed"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = json.loads(
        json.dumps(
            {
                "sizes": SIZES,
                "pretraining": asdict(PRETRAINING),
                "recipes": {name: asdict(recipe) for name, recipe in RECIPES.items()},
                "torch": torch.__version__,
            }
        )
    )
    rows = done(settings)
    known = {(row.task, row.seed, row.arm) for row in rows}
    for seed in range(options.seeds):
        for task in options.tasks:
            for arm in ARMS:
                if (task, seed, arm) not in known:
                    row = case(task, options.root, seed, arm)
                    rows.append(row)
                    print(row, flush=True)
                    told = {"settings": settings, "rows": [asdict(one) for one in rows]}
                    files.write_text(RESULTS, json.dumps(told, indent=1) + "\n")
    files.write_text(PAGE, page(rows, settings))
    print(PAGE)


if __name__ == "__main__":
    main()
