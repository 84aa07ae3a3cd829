"""What an active-learning run is, apart from data and model; and which network it trains when."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

from prunefuse._names import (
    ANNEALINGS,
    COLD_STARTS,
    CRITERIA,
    DIVERSITY,
    ROUNDINGS,
    STARTS,
    STOCHASTIC,
    STRATEGIES,
    Annealing,
    Complement,
    Diversity,
    Start,
    Stochastic,
)
from prunefuse._options import (
    Check,
    at_least,
    check_fields,
    documented,
    like,
    one_of,
    option,
    part,
    positive,
    require,
)
from prunefuse.experiment.budgets import check_size, check_sizes, to_samples
from prunefuse.training._recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from prunefuse.selection._strategies import Need, Strategy
    from prunefuse.tasks import Task

LABELS, SELECT, FINAL = "How much to label", "How to select", "The final network"
TRAIN, RUN = "Training", "The run"
REFITTED = ("obspa",)  # criteria whose selector does not start from kept slices
GIVEN = "array"  # features_from, where the features are an argument of the loop
_STRATEGY = Check(
    f"one of {', '.join(STRATEGIES)}",
    # One that a task has is looked for when the task is known.
    lambda value: value in STRATEGIES or callable(value) or ":" in value or value.isidentifier(),
    STRATEGIES,
)


@dataclass(frozen=True)
class SelectionOptions:
    """How much is labeled, and by which strategy."""

    schedule: tuple[int | str, ...] = field(
        default=("2%", "4%", "6%", "10%", "20%"),
        metadata=option(
            LABELS,
            "Sizes of the labeled set, in samples or per cent of the pool, with commas; the first is drawn at random",
            more="They increase. A per cent, such as 10%, is resolved exactly, rounding down.",
            check=check_sizes,
            metavar="SIZES",
        ),
    )
    strategy: str | Callable[..., Any] = field(
        default="margin",
        metadata=option(
            SELECT,
            "What to label first, FILE.py:FUNCTION or MODULE:FUNCTION being your own utility of the logits",
            more="In Python also a utility function itself; see `prunefuse.selection.strategies.strategy`.",
            check=_STRATEGY,
            metavar="NAME",
            short="-s",
        ),
    )
    passes: int = field(
        default=10,
        metadata=option(SELECT, "Forward passes with dropout, for the strategy bald", check=at_least(2)),
    )
    stochastic: Stochastic = field(
        default="none",
        metadata=option(
            SELECT,
            "Random batches that prefer a high utility, instead of the highest",
            check=one_of(*STOCHASTIC),
        ),
    )
    beta: float = field(
        default=1.0, metadata=option(SELECT, "How near random batches stay to the best one", check=positive())
    )
    class_balanced: bool = field(
        default=False,
        metadata=option(SELECT, "As many of every predicted class as there are, the best of each"),
    )
    diversity: Diversity = field(
        default="none",
        metadata=option(
            SELECT,
            "Batches that differ: picks of the useful samples by k_center, or one of each cluster by k_means",
            more="For strategies by utility; see `prunefuse.selection.strategies.strategy`.",
            check=one_of(*DIVERSITY),
        ),
    )
    preselect: int = field(
        default=10,
        metadata=option(
            SELECT,
            "Useful samples that diversity picks from, in times the number of picks",
            check=at_least(1),
        ),
    )
    cold_start: str | None = field(
        default=None,
        metadata=option(
            SELECT,
            "How the first size is chosen, without labels: at random, or by features. Left out: by the strategy where it is "
            "typiclust or probcover, else at random",
            more="The features of the untrained network say little; see ``features_from``.",
            check=one_of(*COLD_STARTS),
        ),
    )
    candidates: str | None = field(
        default=None,
        metadata=option(
            SELECT,
            "How much of a large pool is looked at in a round: a random part of so many samples, or per cent. Left out, all",
            more="Another part in each round. Random picks look at nothing.",
            check=check_size,
            metavar="SIZE",
        ),
    )
    features_from: str | None = field(
        default=None,
        metadata=option(
            SELECT,
            "Where features to compare come from: a .npy file with a row for each sample of the pool, or a module of the "
            "selector",
            more="Of a module the output is taken. Left out, it is what enters the last linear layer.",
            metavar="FILE|MODULE",
        ),
    )


@dataclass(frozen=True)
class StartOptions:
    """From where the selector of a round starts."""

    start: Start = field(
        default="fresh",
        metadata=option(
            SELECT,
            "Weights that the selector of a round starts from: its initial ones; those of the round before; or these "
            "shrunk, with noise",
            more="``shrink`` is shrink and perturb (Ash and Adams 2020): each parameter is multiplied by ``shrink_to``, and "
            "a normal number times ``noise`` is added. Buffers, such as running means, stay.",
            check=one_of(*STARTS),
        ),
    )
    shrink_to: float = field(
        default=0.6,
        metadata=option(SELECT, "Factor of the weights, where they are shrunk", check=part(whole=True)),
    )
    noise: float = field(
        default=0.01,
        metadata=option(
            SELECT, "Standard deviation of the noise, where weights are shrunk", check=at_least(0)
        ),
    )


def stopping_rules(rules: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """Names and thresholds of rules such as ``kappa:0.99``.

    Raises:
        ValueError: one is none of these, or its threshold is not a number that it can have.
    """
    found = []
    for rule in rules:
        name, _, text = rule.partition(":")
        least, most = _RULES[name]
        threshold = float(text)
        if not least <= threshold <= most:
            raise ValueError(rule)
        found.append((name, threshold))
    return tuple(found)


def _are_rules(rules: tuple[str, ...]) -> bool:
    try:
        names = [name for name, _ in stopping_rules(rules)]
    except (KeyError, ValueError):
        return False
    return len(set(names)) == len(names)


_RULES = {"kappa": (0.0, 1.0), "uncertainty": (0.0, 1.0), "cost": (0.0, float("inf"))}


@dataclass(frozen=True)
class StoppingOptions:
    """When to stop labeling."""

    stop_when: tuple[str, ...] = field(
        default=(),
        metadata=option(
            LABELS,
            "Rules that propose to stop: kappa:0.99, for stable predictions; uncertainty:0.05, of 1; cost:1e15, in FLOPs",
            more="Any of them is enough; see `prunefuse.experiment.stopping`.",
            check=Check(
                "any of kappa:X, uncertainty:X, with X in [0, 1], and cost:FLOPS, each once", _are_rules
            ),
            metavar="RULES",
        ),
    )
    stop: bool = field(
        default=False,
        metadata=option(LABELS, "Stop where a rule proposes it, instead of only telling so"),
    )


@dataclass(frozen=True)
class PruneFuseOptions:
    """What is pruned, fused and distilled: options that classic active learning does not have."""

    selector: str = field(
        default="prunefuse",
        metadata=option(
            SELECT,
            "Network that selects: prunefuse, the dense one pruned; dense, that one itself; or any other model",
            metavar="NAME",
        ),
    )
    prune_ratio: float = field(
        default=0.5,
        metadata=option(
            SELECT,
            "Part of the channels removed from the selector, from 0 to below 1",
            check=part(),
            short="-p",
        ),
    )
    criterion: str = field(
        default="l2",
        metadata=option(
            SELECT,
            "Score of a channel, of which the lowest are pruned. With obspa, for pretrained weights, the layers that read "
            "pruned channels make up for these",
            more="OBSPA reads unlabeled samples of the pool; see `prunefuse.prune_without_finetuning` and "
            "docs/pretrained.md. The others start from the kept slices of the weights.",
            check=one_of(*CRITERIA, *REFITTED),
        ),
    )
    calibration: int = field(
        default=1024,
        metadata=option(
            SELECT,
            "Samples of the pool, drawn at random, that the criterion obspa reads without their labels",
            check=at_least(1),
        ),
    )
    rounding: str = field(
        default="floor",
        metadata=option(SELECT, "Rounding of the number of channels kept", check=one_of(*ROUNDINGS)),
    )
    t_sync: int = field(
        default=0,
        metadata=option(
            SELECT,
            "Prune the selector anew from the fused network every so many rounds; 0 is never",
            more="See docs/paper.md.",
            check=at_least(0),
        ),
    )
    fuse: bool = field(
        default=True,
        metadata=option(
            FINAL,
            "Start the final network from the selector's weights",
            more="Else it starts from its own.",
        ),
    )
    distill: bool = field(
        default=True, metadata=option(FINAL, "Train the final network with the selector as teacher")
    )
    kd_lambda: float = field(
        default=0.5,
        metadata=option(
            FINAL,
            "Weight of the labels' loss; the teacher's has the rest",
            more="See docs/paper.md.",
            check=part(whole=True),
        ),
    )
    kd_temperature: float = field(
        default=4.0,
        metadata=option(FINAL, "Temperature of the teacher", more="See docs/paper.md.", check=positive()),
    )
    complement: Complement = field(
        default="keep",
        metadata=option(
            FINAL,
            "Weights the selector does not have: the dense network's, drawn again, or zero",
            more="preserve: the dense network's, which nothing of the selector reads at first. See docs/fusing.md.",
            check=one_of("keep", "reinit", "zero", "preserve"),
        ),
    )
    fused_lr: float = field(
        default=1.0,
        metadata=option(
            FINAL,
            "Factor of the learning rate for the weights that came from the selector; 0 keeps them as they are",
            more="Discriminative fine-tuning (Howard and Ruder 2018), for single elements. Whole updates are scaled, with "
            "momentum and weight decay. Other weights, and statistics of norms, learn as without.",
            check=part(whole=True),
        ),
    )
    shrink_fused: bool = field(
        default=False,
        metadata=option(
            FINAL,
            "Shrink and perturb the fused network before its training, by shrink_to and noise",
            more="All of it, as for the start ``shrink`` of selectors.",
        ),
    )
    kd_annealing: Annealing = field(
        default="none",
        metadata=option(
            FINAL,
            "How the teacher's weight falls to 0 over the final training",
            more="Teacher annealing (Clark et al. 2019): it begins at 1 - kd_lambda, and the labels have the rest.",
            check=one_of(*ANNEALINGS),
        ),
    )


@dataclass(frozen=True)
class TrainingOptions:
    """How networks are trained, and when."""

    finals: Literal["all", "last"] = field(
        default="all",
        metadata=option(
            FINAL,
            "Sizes at which the final network is trained",
            more="All of the schedule, for the curve, or the last alone.",
            check=one_of("all", "last"),
        ),
    )
    recipe: Recipe = field(
        default=RECIPES["cifar"],
        metadata=option(TRAIN, "Training that the options below change", named=RECIPES),
    )
    test_every_epoch: bool = field(
        default=False,
        metadata=option(TRAIN, "Test after every epoch, for the curves of the report; takes longer"),
    )
    workers: int = field(
        default=0,
        metadata=option(
            RUN,
            "Processes that read images from disk",
            more="Data sets in memory need none.",
            check=at_least(0),
        ),
    )


@documented
@dataclass(frozen=True)
class LoopConfig(TrainingOptions, PruneFuseOptions, StartOptions, StoppingOptions, SelectionOptions):
    """Configuration of `ActiveLearning`.

    >>> prunefuse.LoopConfig(schedule=("10%", "20%"), strategy="margin", prune_ratio=0.5).for_pool(1437).sizes
    (143, 287)

    Raises:
        TypeError: a value of another type than its field; names the field.
        ValueError: a value outside its range; names the field.
    """

    schedule: tuple[int | str, ...] = like(SelectionOptions, "schedule", required=True)
    selector: Literal["prunefuse", "dense", "model"] = like(
        PruneFuseOptions,
        "selector",
        help="Network that selects",
        more="With prunefuse, the dense one pruned at initialization. With dense, that one itself, which is the final network "
        "too: classic active learning. With model, another network, as in selection via proxy. There the final network is "
        "trained on its own, without fusion or distillation.",
        check=one_of("prunefuse", "dense", "model"),
    )
    selector_recipe: Recipe | None = field(
        default=None, metadata=option("", "Training of the selector; None is that of the final network")
    )
    task: Any = field(
        default="single-label",
        metadata=option(
            "",
            "What the network learns: single-label, multi-label, segmentation, tokens, regression, or a `Task`",
        ),
    )
    seed: int = field(
        default=0,
        metadata=option("", "Fixes initialization, order, augmentation and selection", check=at_least(0)),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_selection(self)
        check_stopping(self)
        epochs, name = (
            self.training_of_selector.epochs,
            "selector_recipe" if self.selector_recipe else "recipe",
        )
        require(epochs >= 1, f"{name}.epochs", "at least 1 for a network that selects", epochs)

    @cached_property
    def learns(self) -> Task:
        """The task."""
        return task_named(self.task)

    @cached_property
    def chooser(self) -> Strategy:
        """The strategy with its options."""
        return chosen_strategy(self)

    @cached_property
    def _first_chooser(self) -> Strategy:
        from prunefuse.selection._strategies import strategy

        if self.cold_start is None:
            return self.chooser if self.chooser.cold_start else strategy("random")
        return strategy(self.cold_start, task=self.learns)

    def chooser_of(self, index: int) -> Strategy:
        """The strategy that chooses the samples of round ``index``."""
        return self.chooser if index else self._first_chooser

    @property
    def has_features(self) -> bool:
        """Whether the features of the pool are given, and no network is asked for them."""
        return self.features_from is not None and self.features_from.endswith((GIVEN, ".npy"))

    def asks(self, index: int) -> frozenset[Need]:
        """What the selector is asked to choose the samples of round ``index``, beside what is given."""
        asks = self.chooser_of(index).needs
        if self.has_features:
            asks = asks - {"features", "all_features"}
        looked_at = index > 0 and any(not rule.startswith("cost:") for rule in self.stop_when)
        return asks | {"logits"} if looked_at and "ensemble" not in asks else asks

    def for_pool(self, pool: int) -> LoopConfig:
        """The same with a schedule in samples of a pool of ``pool``.

        Raises:
            ValueError: a size that the pool does not have, or sizes that do not increase; names ``schedule``.
        """
        sizes = tuple(
            to_samples(size, pool, "schedule") if isinstance(size, str) else int(size)
            for size in self.schedule
        )
        if sizes and sizes[-1] > pool:
            raise ValueError(f"schedule must be at most {pool} labels, the size of the pool, got {sizes[-1]}")
        return replace(self, schedule=sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The schedule in samples.

        Raises:
            ValueError: it has per cents; see `for_pool`.
        """
        if any(isinstance(size, str) for size in self.schedule):
            raise ValueError(f"schedule must be sizes in samples, got {self.schedule!r}")
        return cast("tuple[int, ...]", self.schedule)

    @property
    def budget(self) -> int:
        """b, the last size of the schedule."""
        return self.sizes[-1]

    @property
    def training_of_selector(self) -> Recipe:
        """The recipe of the selector."""
        return self.selector_recipe or self.recipe

    def distills(self) -> bool:
        """Whether final networks are trained with a teacher."""
        return self.selector == "prunefuse" and self.distill


def check_selection(config: SelectionOptions) -> None:
    """Check what options mean together, of a configuration that has these and `PruneFuseOptions`.

    Raises:
        ConfigError: a combination without a meaning, or a utility function that is not there.
    """
    assert isinstance(config, PruneFuseOptions)
    fused = config.selector == "prunefuse" and config.fuse
    require(fused or config.t_sync == 0, "t_sync", "0 without fusion", config.t_sync)
    plain = config.stochastic == "none" and config.diversity == "none" and not config.class_balanced
    usual = _is_usual(config)
    if config.strategy not in STRATEGIES or not plain or not usual:
        chosen_strategy(config)


def check_stopping(config: StoppingOptions) -> None:
    """Raise ``ConfigError`` for rules that the strategy gives nothing to, or that are missing."""
    assert isinstance(config, SelectionOptions)
    require(bool(config.stop_when) or not config.stop, "stop", "False without stop_when", config.stop)
    if not _is_usual(config):
        blind = all(rule.startswith("cost") for rule in config.stop_when)
        require(blind, "stop_when", "cost alone with another task than single-label", config.stop_when)
    if config.strategy == "random":
        blind = all(rule.startswith("cost") for rule in config.stop_when)
        require(blind, "stop_when", "cost alone with random, which asks no network", config.stop_when)


def chosen_strategy(config: SelectionOptions) -> Strategy:
    """The strategy with its options."""
    from prunefuse.selection._strategies import strategy  # here, so that options are read without torch

    return strategy(
        config.strategy,
        passes=config.passes,
        stochastic=config.stochastic,
        beta=config.beta,
        class_balanced=config.class_balanced,
        diversity=config.diversity,
        preselect=config.preselect,
        task=task_named(getattr(config, "task", _USUAL)),
    )


def _is_usual(config: SelectionOptions) -> bool:
    """Whether the task is classification."""
    given = getattr(config, "task", _USUAL)
    return given == _USUAL or type(task_named(given)).__name__ == _TASKS[_USUAL]


_USUAL = "single-label"
_TASKS = {
    _USUAL: "SingleLabel",
    "multi-label": "MultiLabel",
    "segmentation": "Segmentation",
    "tokens": "Tokens",
    "regression": "Regression",
    "detection": "Detection",
}


def task_named(given: Any) -> Task:
    """The task by its name, or itself.

    Raises:
        TypeError, ValueError: it is none; names ``task``.
    """
    from prunefuse import tasks  # here, so that options are read without torch

    if isinstance(given, tasks.Task):
        return given
    if not isinstance(given, str):
        raise TypeError(f"task must be a Task or the name of one, got {type(given).__name__}")
    if given not in _TASKS:
        raise ValueError(f"task must be one of {', '.join(_TASKS)}, or a Task, got {given!r}")
    made: Task = getattr(tasks, _TASKS[given])()
    return made
