"""Seconds of selecting, training and scoring, beside the tightest plain loop in torch with the dense network.

The plain loop has its images as normalized float32 in memory, a fused optimizer, and nothing else; it scores batches of 64.
Ours is `train` and `predict` by a recipe as `prunefuse run` calls them, from uint8 images with normalization.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import prunefuse
from prunefuse import models
from prunefuse.data import TensorImages
from prunefuse.training import RECIPES, predict, train

# Network, (channels, side) of its images, batch of a training step, images of a turn.
SETTINGS: dict[str, tuple[str, tuple[int, int], int, int]] = {
    "ResNet-56, 3x32x32": ("resnet56", (3, 32), 64, 192),
    "ResNet-20, 1x14x14": ("resnet20", (1, 14), 64, 640),
    "ResNet-20, 1x8x8 (digits)": ("resnet20", (1, 8), 16, 640),
}
RATIOS = (0.5, 0.7)


@dataclass
class Contender:
    """Who trains and scores; seconds of every turn."""

    name: str
    train: Callable[[], Any] = field(repr=False)
    score: Callable[[], Tensor] = field(repr=False)
    train_seconds: list[float] = field(default_factory=list)
    score_seconds: list[float] = field(default_factory=list)


def contenders(setting: str) -> list[Contender]:
    """The plain loop, then ours with the dense network and with pruned ones."""
    network, (channels, side), batch, count = SETTINGS[setting]
    torch.manual_seed(0)
    dense = models.build(network, in_channels=channels)
    raw = torch.randint(256, (count, channels, side, side), dtype=torch.uint8)
    labels = torch.randint(10, (count,))
    data = TensorImages(raw, labels, mean=(0.5,) * channels, std=(0.25,) * channels)
    images = (raw.float() / 255 - 0.5) / 0.25
    recipe = prunefuse.Recipe(
        epochs=1, batch_size=batch, lr=0.01, channels_last=RECIPES["cifar"].channels_last
    )
    found = [_plain(copy.deepcopy(dense), images, labels, batch)]
    for ratio in (0.0, *RATIOS):
        plan = prunefuse.plan_pruning(dense, (images[:1],), ratio=ratio) if ratio else None
        name = f"ours, p = {ratio}" if ratio else "ours, dense"
        for autocast in (False, True):
            model = copy.deepcopy(dense) if plan is None else plan.extract(dense)
            told = f"{name}, bfloat16" if autocast else name
            found.append(_ours(told, model, data, replace(recipe, autocast=autocast)))
    return found


def _ours(name: str, model: nn.Module, data: TensorImages, recipe: prunefuse.Recipe) -> Contender:
    return Contender(
        name,
        lambda: train(model, data, recipe),
        lambda: predict(model, data, recipe=recipe),
    )


def _plain(model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> Contender:
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4, fused=True)

    def step() -> None:
        model.train()
        for rows in torch.randperm(len(images)).split(batch):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def score() -> Tensor:
        model.eval()
        with torch.inference_mode():
            return torch.cat([model(part) for part in images.split(64)])

    return Contender("plain loop, dense", step, score)


def turn(found: list[Contender], clock: Callable[[], float] = time.perf_counter) -> None:
    """One training and one scoring of all images by every contender."""
    for one in found:
        began = clock()
        one.train()
        trained = clock()
        one.score()
        one.train_seconds.append(trained - began)
        one.score_seconds.append(clock() - trained)


def ratios(found: list[Contender]) -> dict[str, dict[str, float]]:
    """How many times as fast as the plain loop: medians of its seconds over those of each."""
    base = found[0]

    def times(of: Callable[[Contender], list[float]]) -> dict[str, float]:
        return {one.name: statistics.median(of(base)) / statistics.median(of(one)) for one in found}

    training, scoring = times(lambda one: one.train_seconds), times(lambda one: one.score_seconds)
    return {one.name: {"train": training[one.name], "score": scoring[one.name]} for one in found}


def report(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """A Markdown table of all settings."""
    lines = [
        "| network | who | training, times as fast as the plain dense loop | scoring |",
        "|---|---|--:|--:|",
    ]
    for setting, found in results.items():
        lines += [
            f"| {setting} | {who} | {one['train']:.2f} | {one['score']:.2f} |" for who, one in found.items()
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    # By CPU seconds of one thread, where other work on the machine counts less.
    torch.set_num_threads(1)
    measured = {}
    for setting in SETTINGS:
        found = contenders(setting)
        for _ in range(6):
            turn(found, time.process_time)
        for one in found:
            del one.train_seconds[0], one.score_seconds[0]
        measured[setting] = ratios(found)
    print(report(measured))
