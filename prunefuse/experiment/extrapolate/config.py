"""What a run of score extrapolation is made of. What can be checked without the data is checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from prunefuse._names import CRITERIA, MODELS, SCORES, Complement
from prunefuse._options import any_of, changed, check_fields, documented, like, one_of, option, require
from prunefuse.errors import ConfigError
from prunefuse.experiment.budgets import check_size, check_sizes
from prunefuse.experiment.config import DataOptions, MachineOptions, TextOptions, check_network
from prunefuse.experiment.loop_config import PruneFuseOptions, TrainingOptions
from prunefuse.training._recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from prunefuse.dynamics import Recorder

_SCORES, _PRUNED, _FINAL = "Scores", "A pruned F_s", "What is kept"


@dataclass(frozen=True)
class ScoreOptions:
    """What is scored, how scores reach the rest, and what is trained in the end."""

    subset: str = field(
        default="20%",
        metadata=option(
            _SCORES,
            "How much is scored, by training F_s on it alone",
            more="Random samples: per cent or a number.",
            check=check_size,
            metavar="SIZE",
        ),
    )
    subset_balanced: bool = field(
        default=False,
        metadata=option(_SCORES, "As many samples of every class in it as there are"),
    )
    score: str = field(
        default="du",
        metadata=option(_SCORES, "What is scored; the highest are kept", check=one_of(*SCORES)),
    )
    recorded: str = field(
        default="training",
        metadata=option(
            _SCORES,
            "Forward passes whose outputs are scored",
            more="With training, as the network sees the sample while it learns. With evaluation, a pass of its own after "
            "every epoch, whose cost is counted.",
            check=one_of("training", "evaluation"),
        ),
    )
    by: tuple[str, ...] = field(
        default=("knn",),
        metadata=option(
            _SCORES,
            "How the others get scores, one or several, with commas",
            more="The choices knn, gnn, mlp and ridge go by the embeddings of F_s. With direct, F_s scores them in one pass. "
            "With random, scores are random. Several share F_s.",
            check=any_of("knn", "gnn", "mlp", "ridge", "direct", "random", least=1),
            metavar="NAMES",
        ),
    )
    compare: tuple[str, ...] = field(
        default=(),
        metadata=option(
            _SCORES,
            "What to run beside it, with commas: full, random (scores from training on everything, random pruning)",
            check=any_of("full", "random"),
            metavar="NAMES",
        ),
    )
    prune_ratio: float = like(
        PruneFuseOptions,
        "prune_ratio",
        default=0.0,
        panel=_PRUNED,
        help="Part of the channels removed from F_s before its training; 0 as published, where run removes half",
        short="",
    )
    criterion: str = like(
        PruneFuseOptions,
        "criterion",
        panel=_PRUNED,
        help="Score of a channel, of which the lowest are pruned",
        more="",
        check=one_of(*CRITERIA),
    )
    rounding: str = like(PruneFuseOptions, "rounding", panel=_PRUNED)
    fuse: bool = like(
        PruneFuseOptions,
        "fuse",
        default=False,
        panel=_PRUNED,
        help="Start the final training from F_s, fused into the dense network; left out, it does not, where run does",
        more="Of extrapolated scores.",
    )
    complement: Complement = like(
        PruneFuseOptions, "complement", panel=_PRUNED, help="Weights outside F_s when it is fused"
    )
    keep: tuple[str, ...] = field(
        default=("50%",),
        metadata=option(
            _FINAL,
            "Size of the pruned data set, or several, with commas",
            more="Per cent or numbers; a network is trained on each.",
            check=check_sizes,
            metavar="SIZES",
        ),
    )
    keep_balanced: bool = field(
        default=False,
        metadata=option(_FINAL, "As many samples of every class as there are", more="The best of each."),
    )
    recipe: Recipe | None = like(
        TrainingOptions,
        "recipe",
        default=None,
        help="Training that the options below change; left out, the data set's: digits, whose values are in parentheses, "
        "text for texts, or cifar. One of",
        usual=RECIPES["digits"],
        instead="training",
    )
    workers: int = like(TrainingOptions, "workers")


@documented
@dataclass(frozen=True)
class ExtrapolateConfig(MachineOptions, ScoreOptions, TextOptions, DataOptions):
    """One run: score a fraction of a data set, extend the scores to all of it, prune it, train on what is left.

    >>> from prunefuse.experiment.extrapolate import ExtrapolateConfig
    >>> config = ExtrapolateConfig(subset="20%", score="du", by=("knn", "ridge"), keep=("30%", "50%"))

    Raises:
        TypeError: a value of another type than its field; names the field.
        ConfigError: a value that is not allowed, with those that are.

    References:
        Schmidt et al. 2025, *Effective Data Pruning through Score Extrapolation*, arXiv:2506.09010.
    """

    model: str = like(
        DataOptions,
        "model",
        help="Network to train in the end, such as resnet20, timm:resnet18, or resnet18 and others of torchvision",
        check=None,
    )
    dropout: float = like(DataOptions, "dropout", help="Rate of dropout before the last layer")
    seeds: tuple[int, ...] = like(MachineOptions, "seeds", default=(0,))

    def __post_init__(self) -> None:
        check_fields(self)
        check_network(self)
        cut = self.prune_ratio > 0
        require(cut or not self.fuse, "fuse", "left out with prune_ratio 0, as nothing is cut", True)
        require(
            not self.recorder(1, 2).needs_features() or self.recorded == "evaluation",
            "recorded",
            f"evaluation with the score {self.score}, which needs features",
            self.recorded,
        )

    def recorder(self, samples: int, classes: int, device: Any = "cpu") -> Recorder:
        """An empty recorder of the score.

        Raises:
            ConfigError: the score is not defined on the passes that are recorded.
        """
        from prunefuse.dynamics import Recorder  # here, so that options are read without torch

        forward: Literal["training", "evaluation"] = (
            "training" if self.recorded == "training" else "evaluation"
        )
        try:
            return Recorder(samples, (self.score,), classes=classes, device=device, forward=forward)
        except ValueError as error:
            raise ConfigError(f"recorded: {error}") from error

    @property
    def network(self) -> str:
        """The model's name, with torchvision's prefix where it is a name of theirs."""
        return self.model if self.model in MODELS or ":" in self.model else f"torchvision:{self.model}"

    @property
    def training(self) -> Recipe:
        """How networks are trained."""
        usual = "digits" if self.data == "digits" else "text" if self.data.startswith("text:") else "cifar"
        return self.recipe or RECIPES[usual]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ExtrapolateConfig:
        """The inverse of ``dataclasses.asdict``, also after a way through JSON."""
        return changed(cls(), fields)


def with_recipe(config: Mapping[str, Any], trained: Mapping[str, Any]) -> ExtrapolateConfig:
    """A configuration of these fields, and of these of its recipe.

    Raises:
        ConfigError: a value that is not allowed.
    """
    return changed(changed(ExtrapolateConfig(), config), {"recipe": trained} if trained else {})
