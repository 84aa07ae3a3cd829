"""What a labeling project is made of: the options of a run that concern the network that selects."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prunefuse._options import checked, documented, like, option
from prunefuse.experiment.config import WHAT, DataOptions, MachineOptions, RunConfig
from prunefuse.experiment.loop_config import (
    LoopConfig,
    PruneFuseOptions,
    SelectionOptions,
    StartOptions,
    StoppingOptions,
    TrainingOptions,
)
from prunefuse.training._recipe import RECIPES


def _hidden(kind: Any, name: str, default: Any) -> Any:
    """A field that no command has: nothing is bought by a schedule here, and no final network is trained."""
    return like(kind, name, default=default, panel="", check=None)


@documented
@dataclass(frozen=True)
class LabelConfig(RunConfig):
    """How the images or texts to label next are chosen: the network, its training, and the strategy.

    Raises:
        TypeError: a value of another type than its field; names the field.
        ConfigError: a value that is not allowed, with those that are.
    """

    data: str = _hidden(DataOptions, "data", "folder")
    root: str = _hidden(DataOptions, "root", "")
    download: bool = _hidden(DataOptions, "download", False)
    test_fraction: float = _hidden(DataOptions, "test_fraction", 0.2)
    schedule: tuple[int | str, ...] = _hidden(SelectionOptions, "schedule", (1,))
    t_sync: int = _hidden(PruneFuseOptions, "t_sync", 0)
    fuse: bool = _hidden(PruneFuseOptions, "fuse", True)
    distill: bool = _hidden(PruneFuseOptions, "distill", True)
    kd_lambda: float = _hidden(PruneFuseOptions, "kd_lambda", 0.5)
    kd_temperature: float = _hidden(PruneFuseOptions, "kd_temperature", 4.0)
    complement: Literal["keep", "reinit", "zero"] = _hidden(PruneFuseOptions, "complement", "keep")
    fused_lr: float = _hidden(PruneFuseOptions, "fused_lr", 1.0)
    shrink_fused: bool = _hidden(PruneFuseOptions, "shrink_fused", False)
    kd_annealing: Literal["none", "linear", "cosine"] = _hidden(PruneFuseOptions, "kd_annealing", "none")
    finals: Literal["all", "last"] = _hidden(TrainingOptions, "finals", "last")
    test_every_epoch: bool = _hidden(TrainingOptions, "test_every_epoch", False)
    seeds: tuple[int, ...] = _hidden(MachineOptions, "seeds", (0,))
    jobs: int | None = _hidden(MachineOptions, "jobs", None)
    tensorboard: bool = _hidden(MachineOptions, "tensorboard", False)
    listener: str | None = _hidden(MachineOptions, "listener", None)
    out: str | None = _hidden(MachineOptions, "out", None)
    budget: str | None = field(default=None, metadata=checked())
    initial: str | None = field(default=None, metadata=checked())
    rounds: int | None = field(default=None, metadata=checked())
    baselines: tuple[str, ...] = field(default=(), metadata=checked())
    labeled: str | None = field(default=None, metadata=checked())
    exclude: str | None = field(default=None, metadata=checked())
    # Each training is new, and people stop when they like.
    start: Literal["fresh", "continue", "shrink"] = _hidden(StartOptions, "start", "fresh")
    shrink_to: float = _hidden(StartOptions, "shrink_to", 0.6)
    noise: float = _hidden(StartOptions, "noise", 0.01)
    stop_when: tuple[str, ...] = _hidden(StoppingOptions, "stop_when", ())
    stop: bool = _hidden(StoppingOptions, "stop", False)
    task: str = _hidden(RunConfig, "task", "single-label")  # what multi_label says
    multi_label: bool = field(
        default=False,
        metadata=option(
            WHAT,
            "Any number of labels for each sample, such as a;b; - is none of them",
            more="Binary cross-entropy.",
        ),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", "multi-label" if self.multi_label else "single-label")
        super().__post_init__()

    @property
    def first(self) -> str:
        """The strategy that chooses where there are no labels of two classes yet."""
        return self.cold_start or (self.strategy if self.loop_for((1,)).chooser.cold_start else "random")

    def loop_for(self, sizes: tuple[int, ...]) -> LoopConfig:
        """The loop that trains a selector on the first of these sizes, and asks up to the second.

        Random picks need no selector, so predictions are made by that of entropy.
        """
        loop = self.loop_of(self.arms[0], self.seeds[0], sizes)
        return replace(loop, strategy="entropy") if self.strategy == "random" else loop


FOR_TEXTS = LabelConfig(model="text_cnn", recipe=RECIPES["text"])
"""What holds for texts where nothing is said."""
