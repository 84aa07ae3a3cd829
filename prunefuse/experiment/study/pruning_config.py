"""A method of pruning as the options of a run of a study; read without torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib.util import find_spec

from prunefuse._names import CRITERIA_WITHOUT_DATA
from prunefuse._options import check_fields, documented, one_of, option, part, positive, require
from prunefuse.experiment.config import DataOptions, MachineOptions, check_network
from prunefuse.experiment.loop_config import TrainingOptions
from prunefuse.training._recipe import Recipe

METHODS = ("local", "global", "obspa", "torch-pruning", "torch-pruning-global")
WITH_DATA = ("snip", "taylor", "fisher", "activation")
PEERS = {
    "l1": "magnitude",
    "l2": "group norm",
    "taylor": "Taylor",
}  # criteria of torch-pruning that are most alike


@documented
@dataclass(frozen=True)
class PruningConfig(MachineOptions, TrainingOptions, DataOptions):
    """A method of pruning, and how much it shall leave.

    Raises:
        TypeError: a value of another type than its field; names the field.
        ConfigError: a value that is not allowed, with those that are.
    """

    method: str = field(
        default="local",
        metadata=option(
            "Pruning",
            "What prunes: local or global ranking, OBSPA, or torch-pruning",
            check=one_of(*METHODS),
        ),
    )
    criterion: str = field(
        default="l2",
        metadata=option("Pruning", "Score of a channel", check=one_of(*CRITERIA_WITHOUT_DATA, *WITH_DATA)),
    )
    flops: float = field(
        default=0.5, metadata=option("Pruning", "Part of the FLOPs that stays, at most", check=part())
    )
    tune_steps: int = field(default=50, metadata=option("Pruning", "Steps of fine-tuning", check=positive()))
    tune_lr: float = field(
        default=0.2,
        metadata=option("Pruning", "Rate of fine-tuning, as a part of that of training", check=positive()),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_network(self)
        require(self.flops > 0, "flops", "in (0, 1)", self.flops)
        if self.method.startswith("torch-pruning"):
            require(self.criterion in PEERS, "criterion", f"one of {', '.join(PEERS)}", self.criterion)
            there = find_spec("torch_pruning") is not None
            require(there, "method", "another one where torch-pruning is not installed", self.method)

    @property
    def tuning(self) -> Recipe:
        """The recipe of fine-tuning: one pass or as many as the steps take."""
        return dataclasses.replace(
            self.recipe, epochs=1, min_steps=self.tune_steps, lr=self.recipe.lr * self.tune_lr
        )
