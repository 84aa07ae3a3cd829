"""What a run of score extrapolation is made of. What can be checked without the data is checked when it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunefuse.data._registry import NAMES as DATA
from prunefuse.dynamics import PRESETS as SCORES
from prunefuse.dynamics import Recorder
from prunefuse.dynamics._options import Forward
from prunefuse.experiment.budgets import ConfigError, parse_size
from prunefuse.models import names as model_names
from prunefuse.pruning._choose.scores import CRITERIA
from prunefuse.training import RECIPES, Recipe

BY = ("knn", "gnn", "mlp", "ridge", "direct", "random")
COMPARED = ("full", "random")
CHOICES: dict[str, tuple[str, ...]] = {
    "score": tuple(SCORES),
    "recorded": ("training", "evaluation"),
    "criterion": CRITERIA,
    "complement": ("keep", "reinit", "zero"),
    "device": ("auto", "cpu", "cuda"),
}


@dataclass(frozen=True)
class ExtrapolateConfig:
    """One run: score a fraction of a data set, extend the scores to all of it, prune it, train on what is left.

    Attributes:
        data: As `prunefuse.data.load` names it.
        root: Folder of the data sets that are not bundled.
        download: Fetch the data set into ``root`` if it is missing.
        model: Network to train in the end, by its name in `prunefuse.models`, ``torchvision:NAME``, or the NAME alone.
        subset: Random samples that the subset's network F_s is trained on: per cent (``"20%"``) or a number.
        subset_balanced: As many of every class in it as there are (ours).
        score: A preset of `prunefuse.dynamics`; higher = kept.
        recorded: Pass whose outputs are scored: ``training``, as the network sees the sample while it learns, or
            ``evaluation``, a pass of its own after every epoch, whose cost is counted.
        by: How scores reach the other samples: ``knn``, ``gnn``, ``mlp``, ``ridge`` on the embeddings of F_s; ``direct``,
            F_s scores them in one pass; ``random``, random scores. Several share F_s.
        keep: Sizes of the pruned data set, per cent or numbers; a network is trained on each.
        keep_balanced: As many of every class in it as there are, the best of each (ours).
        compare: ``full``, scores from training on all samples, and ``random``, random pruning.
        prune_ratio: Part of the channels removed from F_s before its training; 0 = none, as published.
        criterion: Channel score of that pruning.
        fuse: The final networks of extrapolated scores start from F_s, fused into the dense network (ours).
        complement: The weights outside F_s then: ``keep``, ``reinit``, ``zero``.
        recipe: How networks are trained; None = that of the digits for them, else that of CIFAR.
        workers: Processes that read data sets that are not in memory.
        seeds: Everything is done once per seed.
        device: ``auto`` (CUDA if there is a GPU), ``cpu`` or ``cuda``.
        threads: CPU threads; None = one for images as small as the digits, else torch's choice.
        out: Run folder to make; None = a new one under ``runs/``.

    Raises:
        ConfigError: a value that is not allowed, with those that are.
    """

    data: str = "digits"
    root: str = "data"
    download: bool = False
    model: str = "resnet20"
    subset: str = "20%"
    subset_balanced: bool = False
    score: str = "du"
    recorded: str = "training"
    by: tuple[str, ...] = ("knn",)
    keep: tuple[str, ...] = ("50%",)
    keep_balanced: bool = False
    compare: tuple[str, ...] = ()
    prune_ratio: float = 0.0
    criterion: str = "l2"
    fuse: bool = False
    complement: str = "keep"
    recipe: Recipe | None = None
    workers: int = 0
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    threads: int | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            _require(
                getattr(self, name) in allowed, name, f"one of {', '.join(allowed)}", getattr(self, name)
            )
        known = self.data in DATA[:-1] or self.data.removeprefix("folder:") not in ("", self.data)
        _require(known, "data", f"one of {', '.join(DATA)}", self.data)
        for name, allowed, least in (("by", BY, 1), ("compare", COMPARED, 0)):
            given = getattr(self, name)
            valid = len(set(given)) == len(given) >= least and set(given) <= set(allowed)
            _require(valid, name, f"any of {', '.join(allowed)}, each once", ", ".join(given) or "none")
        parse_size(self.subset, "subset")
        _require(len(self.keep) > 0, "keep", "one or more sizes", "none")
        for size in self.keep:
            parse_size(size, "keep")
        _require(0 <= self.prune_ratio < 1, "prune_ratio", "in [0, 1)", self.prune_ratio)
        _require(
            not self.fuse or self.prune_ratio > 0,
            "fuse",
            "left out with prune_ratio 0, as nothing is cut",
            True,
        )
        _require(self.workers >= 0, "workers", "at least 0", self.workers)
        _require(self.threads is None or self.threads >= 1, "threads", "at least 1", self.threads)
        distinct = len(set(self.seeds)) == len(self.seeds) > 0 and min(self.seeds) >= 0
        _require(distinct, "seeds", "one or more different numbers from 0 on", list(self.seeds))
        recorder = self.recorder(1, 2)
        _require(
            not recorder.needs_features() or self.recorded == "evaluation",
            "recorded",
            f"evaluation with the score {self.score}, which needs features",
            self.recorded,
        )

    def recorder(self, samples: int, classes: int, device: Any = "cpu") -> Recorder:
        """An empty recorder of the score.

        Raises:
            ConfigError: the score is not defined on the passes that are recorded.
        """
        forward: Forward = "training" if self.recorded == "training" else "evaluation"
        try:
            return Recorder(samples, (self.score,), classes=classes, device=device, forward=forward)
        except ValueError as error:
            raise ConfigError(f"recorded: {error}") from error

    @property
    def network(self) -> str:
        """The model's name, with torchvision's prefix where it is a name of theirs."""
        return self.model if self.model in model_names() or ":" in self.model else f"torchvision:{self.model}"

    @property
    def training(self) -> Recipe:
        """How networks are trained."""
        return self.recipe or RECIPES["digits" if self.data == "digits" else "cifar"]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ExtrapolateConfig:
        """The inverse of ``dataclasses.asdict``, also after a way through JSON."""
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        if fields["recipe"] is not None:
            recipe = dict(fields["recipe"])
            recipe["steps"] = tuple(map(tuple, recipe["steps"]))
            fields["recipe"] = Recipe(**recipe)
        return cls(**fields)


def with_recipe(config: Mapping[str, Any], trained: Mapping[str, Any]) -> ExtrapolateConfig:
    """A configuration of these fields, and of these of its recipe.

    Raises:
        ConfigError: a value that is not allowed.
    """
    made = ExtrapolateConfig(**config)
    try:
        return (
            dataclasses.replace(made, recipe=dataclasses.replace(made.training, **trained))
            if trained
            else made
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _require(valid: bool, name: str, expected: str, got: object) -> None:
    if not valid:
        raise ConfigError(f"{name} must be {expected}; got {got!r}")
