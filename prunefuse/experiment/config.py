"""What a run is made of: its configuration, and the presets, which are configurations.

`override` changes single fields. Everything that can be checked without loading the data is checked when a
`RunConfig` is made, with messages for the person who typed the value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunefuse import models
from prunefuse.data._registry import NAMES as DATA
from prunefuse.experiment.budgets import ConfigError, parse_size
from prunefuse.pruning._choose.ranking import ROUNDINGS
from prunefuse.pruning._choose.scores import CRITERIA
from prunefuse.selection._batches import STOCHASTIC
from prunefuse.selection._strategies import STRATEGIES, strategy
from prunefuse.training import RECIPES, Recipe

SELECTORS = ("prunefuse", "dense")
STRATEGY_OPTIONS = ("passes", "stochastic", "beta", "class_balanced")
BASELINES = ("dense", "random")
CHOICES: dict[str, tuple[str, ...]] = {
    "criterion": CRITERIA,
    "rounding": tuple(ROUNDINGS),
    "strategy": STRATEGIES,
    "stochastic": STOCHASTIC,
    "complement": ("keep", "reinit", "zero"),
    "finals": ("all", "last"),
    "device": ("auto", "cpu", "cuda"),
}


def _known_models() -> str:
    return f"one of {', '.join(models.names())}, or torchvision:NAME"


def _is_model(name: str) -> bool:
    return name in models.names() or name.removeprefix("torchvision:") not in ("", name)


def _require(valid: bool, name: str, expected: str, got: object) -> None:
    if not valid:
        raise ConfigError(f"{name} must be {expected}; got {got!r}")


@dataclass(frozen=True)
class RunConfig:
    """One experiment: every arm and every seed of it. The defaults are the preset ``digits``.

    Attributes:
        data: ``digits``, ``cifar10``, ``cifar100``, ``places365``, ``imagenet`` or ``folder:PATH``.
        root: Folder of the data sets that are not bundled.
        download: Fetch the data set into ``root`` if it is missing.
        model: Dense network, by its name in `prunefuse.models`.
        dropout: Rate of dropout before the last layer of every network; ours, for dropout passes.
        shortcut: ``A`` (padding) or ``B`` (1x1 convolution), for the CIFAR ResNets; None = the model's default.
        selector: ``prunefuse`` (the dense network pruned), ``dense`` (classic active learning), or the name of
            any model (selection via proxy).
        prune_ratio: Part of the channels removed from the selector, in [0, 1).
        criterion: Channel score of the pruning: ``l2``, ``l1`` or ``random``.
        rounding: Of the number of channels kept: ``floor``, ``nearest`` or ``ceil``.
        t_sync: Every this many rounds the selector is pruned anew from the trained fused network; 0 = never.
        strategy: How the selector's outputs become picks: a token, or where a utility function of the logits stands,
            as ``package.module:name`` or ``path/to/file.py:name``.
        passes: Forward passes with dropout, for ``bald``.
        stochastic: Random batches by utility: ``none``, ``power``, ``softmax`` or ``softrank``.
        beta: How near those stay to the best batch.
        class_balanced: As many of every predicted class as there are, the best of each.
        schedule: Sizes of the labeled set, increasing, in samples (``"1000"``) or per cent of the pool (``"2%"``);
            the first set is drawn at random.
        budget: Last size. It cuts the schedule there, or is added to it.
        initial: First size; with it the steps to the last size are even.
        rounds: Number of acquisitions after the first set; with it the steps to the last size are even.
        baselines: Arms to compare with: ``dense`` (the dense network selects, same strategy) and ``random``.
        fuse: Copy the trained selector's weights into the final network.
        distill: Train the final network with the selector as teacher.
        kd_lambda: Weight of the cross-entropy; the distillation term has 1 - kd_lambda. Its value is ours.
        kd_temperature: Temperature of the distillation; ours as well.
        complement: Weights of the final network outside the selector's positions: ``keep``, ``reinit``, ``zero``.
        finals: Train the final network at ``all`` sizes of the schedule, or at the ``last`` only.
        recipe: How networks are trained.
        test_every_epoch: Evaluate on the test set after every epoch, for the curves of the report.
        workers: Processes that read data sets that are not in memory.
        seeds: Every arm is run once per seed.
        device: ``auto`` (CUDA if there is a GPU), ``cpu`` or ``cuda``.
        threads: CPU threads; None = one for images as small as the digits, which more only slow down, else
            torch's choice.
        out: Run folder to make; None = a new one under ``runs/``.

    Raises:
        ConfigError: a value that is not allowed, with those that are.
    """

    data: str = "digits"
    root: str = "data"
    download: bool = False
    model: str = "resnet20"
    shortcut: str | None = None
    dropout: float = 0.0
    selector: str = "prunefuse"
    prune_ratio: float = 0.5
    criterion: str = "l2"
    rounding: str = "floor"
    t_sync: int = 0
    strategy: str = "entropy"
    passes: int = 10
    stochastic: str = "none"
    beta: float = 1.0
    class_balanced: bool = False
    schedule: tuple[str, ...] = ("2%", "4%", "6%", "10%", "20%")
    budget: str | None = None
    initial: str | None = None
    rounds: int | None = None
    baselines: tuple[str, ...] = BASELINES
    fuse: bool = True
    distill: bool = True
    kd_lambda: float = 0.5
    kd_temperature: float = 4.0
    complement: str = "keep"
    finals: str = "all"
    recipe: Recipe = RECIPES["digits"]
    test_every_epoch: bool = False
    workers: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "auto"
    threads: int | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            got = getattr(self, name)
            own = name == "strategy" and ":" in got
            _require(own or got in allowed, name, f"one of {', '.join(allowed)}", got)
        try:
            strategy(self.strategy, **{name: getattr(self, name) for name in STRATEGY_OPTIONS})
        except ValueError as error:
            raise ConfigError(str(error)) from error
        _require(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)
        known = self.data in DATA[:-1] or self.data.removeprefix("folder:") not in ("", self.data)
        _require(known, "data", f"one of {', '.join(DATA)}", self.data)
        _require(_is_model(self.model), "model", _known_models(), self.model)
        _require(
            self.selector in SELECTORS or _is_model(self.selector),
            "selector",
            f"prunefuse, dense, or a model ({_known_models()})",
            self.selector,
        )
        _require(self.shortcut in (None, "A", "B"), "shortcut", "A or B", self.shortcut)
        _require(
            self.shortcut is None or self.model.startswith("resnet"),
            "shortcut",
            f"left out, as {self.model} has no such choice",
            self.shortcut,
        )
        unknown = [name for name in self.baselines if name not in BASELINES]
        _require(not unknown, "baselines", f"any of {', '.join(BASELINES)}, or none", ", ".join(unknown))
        _require(0 <= self.prune_ratio < 1, "prune_ratio", "in [0, 1)", self.prune_ratio)
        _require(self.t_sync >= 0, "t_sync", "0 (never) or a number of rounds", self.t_sync)
        fused = self.selector == "prunefuse" and self.fuse
        _require(
            fused or self.t_sync == 0,
            "t_sync",
            "0 without fusion: there is nothing to prune anew",
            self.t_sync,
        )
        _require(self.workers >= 0, "workers", "at least 0", self.workers)
        _require(0 <= self.kd_lambda <= 1, "kd_lambda", "in [0, 1]", self.kd_lambda)
        _require(self.kd_temperature > 0, "kd_temperature", "positive", self.kd_temperature)
        _require(self.threads is None or self.threads >= 1, "threads", "at least 1", self.threads)
        _require(self.rounds is None or self.rounds >= 1, "rounds", "at least 1", self.rounds)
        distinct = len(set(self.seeds)) == len(self.seeds) > 0 and min(self.seeds) >= 0
        _require(distinct, "seeds", "one or more different numbers from 0 on", list(self.seeds))
        for name in ("initial", "budget"):
            if getattr(self, name) is not None:
                parse_size(getattr(self, name), name)
        for size in self.schedule:
            parse_size(size, "schedule")

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms: the selector's, then the baselines that are not the same thing again."""
        arms = [self.selector.replace(":", "-")]
        for name in self.baselines:
            # Where picks are random anyway, the dense network that "selects" is the random baseline.
            twins = BASELINES if self.strategy == "random" else (name,)
            if not any(twin in arms for twin in twins):
                arms.append(name)
        return tuple(arms)


PRESETS: dict[str, RunConfig] = {
    # Ours: minutes on two CPU cores, and budgets at which the strategies differ.
    "digits": RunConfig(),
    # The paper's: network, sizes (1000, +4000, then 4 times +5000) and 181 epochs. The ratio is one of its four.
    # Ours, since they are not published or not known to us: the distillation's weight and temperature.
    "cifar10-resnet56": RunConfig(
        data="cifar10",
        model="resnet56",
        schedule=("1000", "5000", "10000", "15000", "20000", "25000"),
        recipe=RECIPES["cifar"],
        seeds=(0,),
    ),
}


def override(preset: str, options: Mapping[str, Any], recipe: Mapping[str, Any]) -> RunConfig:
    """A preset with some fields of it, and of its recipe, replaced.

    Args:
        preset: One of `PRESETS`.
        options: Fields of `RunConfig` by name.
        recipe: Fields of `Recipe` by name.

    Raises:
        ConfigError: an unknown preset, a value that is not allowed, or sizes given in two ways.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if "schedule" in options and ("initial" in options or "rounds" in options):
        raise ConfigError("schedule already says every size: give it, or initial and rounds")
    try:
        trained = dataclasses.replace(options.get("recipe", PRESETS[preset].recipe), **recipe)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return dataclasses.replace(PRESETS[preset], **{**options, "recipe": trained})
