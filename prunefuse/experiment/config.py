"""What a run is made of: its configuration, and the presets, which are configurations.

`override` changes single fields. Everything that can be checked without loading the data is checked when a
`RunConfig` is made, with messages for the person who typed the value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from prunefuse._names import DATA, DATA_TASKS, MODELS
from prunefuse._options import (
    Check,
    any_of,
    at_least,
    changed,
    check_fields,
    documented,
    like,
    one_of,
    option,
    part,
    require,
)
from prunefuse.errors import ConfigError
from prunefuse.experiment.budgets import check_length, check_size, parse_length
from prunefuse.experiment.loop_config import (
    FINAL,
    LABELS,
    RUN,
    LoopConfig,
    PruneFuseOptions,
    SelectionOptions,
    StartOptions,
    StoppingOptions,
    TrainingOptions,
    check_selection,
    check_stopping,
)
from prunefuse.training._recipe import RECIPES, Recipe

SELECTORS = ("prunefuse", "dense")
BASELINES = ("dense", "random")
FUSED, ALL = "40%", "100%"
"""Usual lengths of final trainings, of those of selectors: of a fused network, and of one that starts from scratch."""
WHAT = "What to run"
TEXTS = "Texts"
_MODELS = f"one of {', '.join(MODELS)}, torchvision:NAME, timm:NAME or FILE.py:FUNCTION"


def _is_model(name: str) -> bool:
    library, _, rest = name.partition(":")
    return name in MODELS or (rest != "" and (library in ("torchvision", "timm") or is_own(name)))


def is_own(model: str) -> bool:
    """Whether a model is a function of the user's."""
    file, _, name = model.rpartition(":")
    return file.endswith(".py") and name.isidentifier()


def _is_data(name: str) -> bool:
    kind, colon, place = name.partition(":")
    known = [one.partition(":")[:2] for one in DATA]
    return (kind, colon) in known and bool(place) == bool(colon)


@dataclass(frozen=True)
class DataOptions:
    """On what, and with which network."""

    data: str = field(
        default="digits",
        metadata=option(
            WHAT,
            f"Data set: {', '.join(name for name in DATA if ':' not in name)}. Or folder:PATH with train/CLASS/IMAGE and "
            "test/CLASS/IMAGE, table:FILE with columns path, label, split, arrays:PATH, or torchvision:NAME. Texts are "
            "text:FILE with columns text, label, split",
            check=Check(f"one of {', '.join(DATA)}", _is_data),
            metavar="NAME",
        ),
    )
    root: str = field(
        default="data",
        metadata=option(WHAT, "Folder of the data sets that are not bundled", metavar="PATH"),
    )
    download: bool = field(default=False, metadata=option(WHAT, "Fetch the data set if it is not there"))
    image_size: int | None = field(
        default=None,
        metadata=option(
            WHAT,
            "Side of the square that images of files are brought to. Left out, it is chosen from a sample of them",
            more="It is the median of their shorter sides, at most 224. Images in memory, such as those of fashion_mnist, are "
            "averaged to a divisor of their side.",
            check=at_least(1),
        ),
    )
    flip: bool | None = field(
        default=None,
        metadata=option(
            WHAT, "Mirror training images at random, or never. Left out, as is usual for the data set"
        ),
    )
    crop: int | None = field(
        default=None,
        metadata=option(
            WHAT,
            "Pixels of padding before a random crop of training images, 0 for none. Left out, as is usual",
            check=at_least(0),
        ),
    )
    skip_broken: bool = field(
        default=False, metadata=option(WHAT, "Leave out image files that cannot be read, and list them")
    )
    test_fraction: float = field(
        default=0.2,
        metadata=option(
            WHAT,
            "Part of each class that is held out for testing, by the first seed, of a folder without a test part",
            check=Check("in (0, 1)", lambda value: 0 < value < 1),
        ),
    )
    long_tail: float = field(
        default=1.0,
        metadata=option(
            WHAT,
            "How many times rarer the last class of the pool is than the first, the others between them",
            more="Of images in memory.",
            check=Check("a number from 1 on", lambda value: 1 <= value < float("inf")),
        ),
    )
    duplicates: float = field(
        default=0.0,
        metadata=option(
            WHAT,
            "Part of the pool that is replaced by copies of the rest",
            more="Of images in memory.",
            check=part(),
        ),
    )
    model: str = field(
        default="resnet20",
        metadata=option(
            WHAT,
            "Dense network to train in the end, such as resnet20, wide_resnet16_4, vgg16_bn, mlp, torchvision:resnet18 or "
            "timm:resnet18; text_cnn or text_transformer for texts; or FILE.py:FUNCTION, a function of your own",
            more="That is called with num_classes, in_channels and image_size, or for texts with num_classes, vocabulary and "
            "length.",
            check=Check(_MODELS, _is_model),
            metavar="NAME",
        ),
    )
    weights: str | None = field(
        default=None,
        metadata=option(
            WHAT,
            "Checkpoint that the dense network starts from: .safetensors, or what torch.load reads with weights_only",
            more="What does not match in name or shape, such as the last layer, is told, and left as it is drawn. A model of "
            "its own as selector does not start from it.",
            metavar="FILE",
        ),
    )
    shortcut: str | None = field(
        default=None,
        metadata=option(
            WHAT,
            "Shortcut of the CIFAR ResNets: zero padding (A, their default) or 1x1 convolution (B)",
            check=Check("A or B", lambda value: value in ("A", "B")),
            metavar="A|B",
        ),
    )
    dropout: float = field(
        default=0.0,
        metadata=option(
            WHAT,
            "Rate of dropout before the last layer, which the strategy bald needs",
            more="Every network has it.",
            check=part(),
        ),
    )


@dataclass(frozen=True)
class TextOptions:
    """How texts are read."""

    text: str | None = field(
        default=None,
        metadata=option(
            TEXTS,
            "Column of the texts. Left out, the one that is called text, or another usual name, or the only one",
            metavar="COLUMN",
        ),
    )
    id: str | None = field(
        default=None,
        metadata=option(
            TEXTS,
            "Column of the names of texts. Left out, the one that is called id, else the numbers of rows",
            metavar="COLUMN",
        ),
    )
    vocabulary: int = field(
        default=20_000,
        metadata=option(
            TEXTS,
            "Numbers of words: the most frequent words of the pool have one each. With a tokenizer, how many it has",
            more="0 is no word, and 1 any other word.",
            check=at_least(3),
        ),
    )
    length: int | None = field(
        default=None,
        metadata=option(
            TEXTS,
            "Words of a text that are read. Left out, as many as the longest text has, at most 256",
            check=at_least(1),
        ),
    )
    tokenizer: str | None = field(
        default=None,
        metadata=option(
            TEXTS,
            "Function from a text to numbers of words, FILE.py:FUNCTION or MODULE:FUNCTION. Left out: words as they are "
            "written, in lower case",
            more="0 fills texts that are shorter than others.",
            check=Check("FILE.py:FUNCTION or MODULE:FUNCTION", lambda place: all(place.rpartition(":"))),
            metavar="PLACE",
        ),
    )


@dataclass(frozen=True)
class MachineOptions:
    """Where it is computed, how often, and where the results go."""

    seeds: tuple[int, ...] = field(
        default=(0, 1, 2),
        metadata=option(
            RUN,
            "Number of seeds, counted up from the first; everything is run with each",
            more="In Python and in a file: the seeds themselves.",
            check=Check(
                "one or more different numbers from 0 on",
                lambda seeds: len(set(seeds)) == len(seeds) > 0 and min(seeds) >= 0,
            ),
        ),
    )
    device: str = field(
        default="auto",
        metadata=option(
            RUN, "Where to compute, auto being the GPU if there is one", check=one_of("auto", "cpu", "cuda")
        ),
    )
    threads: int | None = field(
        default=None,
        metadata=option(
            RUN,
            "CPU threads. Left out: 1 for images as small as the digits, else as many as there are cores",
            check=at_least(1),
        ),
    )
    jobs: int | None = field(
        default=None,
        metadata=option(
            RUN,
            "Processes side by side, for arms and seeds. Left out: as many as cores where one thread is best, else 1",
            more="Results do not depend on it.",
            check=at_least(1),
        ),
    )
    checkpoint_seconds: float = field(
        default=30.0,
        metadata=option(
            RUN,
            "Least time between two moments of a training that a killed run can go on from",
            more="Kept at the end of an epoch; 0 is every epoch.",
            check=at_least(0),
            metavar="SECONDS",
        ),
    )
    tensorboard: bool = field(
        default=False,
        metadata=option(
            RUN,
            "Write curves for TensorBoard below tensorboard/ in the run folder",
            more='Needs `pip install "prunefuse[tensorboard]"`.',
        ),
    )
    listener: str | None = field(
        default=None,
        metadata=option(
            RUN,
            "Function that is told of the run as it goes on, FILE.py:FUNCTION or MODULE:FUNCTION, as for Weights & Biases or "
            "MLflow",
            more="See docs/listeners.md.",
            check=Check("FILE.py:FUNCTION or MODULE:FUNCTION", lambda place: all(place.rpartition(":"))),
            metavar="PLACE",
        ),
    )
    out: str | None = field(
        default=None,
        metadata=option(
            RUN, "Run folder to make. Left out, a new one under runs/", metavar="PATH", short="-o"
        ),
    )


def check_network(config: DataOptions) -> None:
    """Raise ``ConfigError`` for a shortcut that a model does not have, weights that would be drawn again, or no epochs."""
    recipe: Recipe | None = getattr(config, "recipe", None)
    # Only a final training may have none.
    require(recipe is None or recipe.epochs >= 1, "recipe.epochs", "at least 1", recipe and recipe.epochs)
    unused = config.shortcut is None or config.model.startswith("resnet")
    require(unused, "shortcut", f"left out, as {config.model} has no such choice", config.shortcut)
    complement = getattr(config, "complement", "keep")
    drawn = config.weights is not None and complement == "reinit"
    require(
        not drawn,
        "complement",
        "keep, zero or preserve with weights, which a network drawn again has, too",
        complement,
    )


@documented
@dataclass(frozen=True)
class RunConfig(
    MachineOptions,
    TrainingOptions,
    PruneFuseOptions,
    StartOptions,
    StoppingOptions,
    SelectionOptions,
    TextOptions,
    DataOptions,
):
    """One experiment: every arm and every seed of it. The defaults are the preset ``digits``.

    Raises:
        TypeError: a value of another type than its field; names the field.
        ConfigError: a value that is not allowed, with those that are.
    """

    strategy: str = like(SelectionOptions, "strategy", more="")
    task: str = field(
        default="single-label",
        metadata=option(
            WHAT,
            "What labels are: a class; any number of labels, such as a;b, - being none of them; or numbers to predict",
            more="Data with other labels than a class are `text:FILE`, `table:FILE` and `arrays:PATH`; see docs/tasks.md.",
            check=one_of(*DATA_TASKS),
        ),
    )
    recipe: Recipe = like(
        TrainingOptions,
        "recipe",
        default=RECIPES["digits"],
        help="Training that the options below change; left out, the preset's, whatever the data set. One of",
    )
    budget: str | None = field(
        default=None,
        metadata=option(
            LABELS,
            "Where to stop. It cuts the schedule, or is added at its end",
            check=check_size,
            metavar="SIZE",
            short="-b",
        ),
    )
    initial: str | None = field(
        default=None,
        metadata=option(
            LABELS,
            "First size; from there to the last in even steps",
            check=check_size,
            metavar="SIZE",
        ),
    )
    rounds: int | None = field(
        default=None,
        metadata=option(LABELS, "Number of even steps from the first size to the last", check=at_least(1)),
    )
    labeled: str | None = field(
        default=None,
        metadata=option(
            LABELS,
            "CSV file of the samples whose labels are there at the start, with a column path or index, and perhaps label. "
            "They are the first size",
            more="Rows whose label is empty are not labeled. Without that column the labels are those of the data set.",
            metavar="FILE",
        ),
    )
    exclude: str | None = field(
        default=None,
        metadata=option(
            LABELS,
            "CSV file of samples that are never picked, with a column path or index",
            metavar="FILE",
        ),
    )
    final_epochs: int | str | None = field(
        default=None,
        metadata=option(
            FINAL,
            "Epochs of the final training, or per cent of those of selectors. Left out, 40% for a network that is fused",
            more="It goes on from what the selector has learned: docs/results has accuracies over lengths. Networks that "
            "start from scratch, baselines among them, are trained in full. 0 measures a network as it is fused.",
            check=check_length,
            metavar="EPOCHS",
        ),
    )
    baselines: tuple[str, ...] = field(
        default=BASELINES,
        metadata=option(
            WHAT,
            "What to compare with: dense, the dense network selecting by the same strategy; random picks; or none",
            check=any_of(*BASELINES),
            metavar="NAMES",
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_network(self)
        alone = self.labeled is None or self.initial is None
        require(alone, "initial", "left out with labeled, whose labels are the first size", self.initial)
        selector = f"prunefuse, dense, or a model ({_MODELS})"
        require(self.selector in SELECTORS or _is_model(self.selector), "selector", selector, self.selector)
        try:
            check_selection(self)
            check_stopping(self)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @property
    def loop(self) -> LoopConfig:
        """What the first arm's loop is, with the first seed."""
        return self.loop_of(self.arms[0], self.seeds[0])

    def loop_of(self, arm: str, seed: int, schedule: tuple[int | str, ...] | None = None) -> LoopConfig:
        """What the loop of an arm is; a schedule given here takes the place of this one.

        A baseline is the dense network selecting for itself, under the same training and schedule.
        """

        def of(kind: type[Any]) -> dict[str, Any]:
            return {part.name: getattr(self, part.name) for part in dataclasses.fields(kind)}

        shared = {
            **of(TrainingOptions),
            **of(StartOptions),
            "seed": seed,
            "task": self.task,
            "schedule": schedule or self.schedule,
        }
        length = parse_length(self._final_length(arm), "final_epochs")
        if isinstance(length, int):
            shared["recipe"] = dataclasses.replace(self.recipe, epochs=length, min_steps=0)
        else:
            epochs, steps = ceil(length * self.recipe.epochs), ceil(length * self.recipe.min_steps)
            shared["recipe"] = dataclasses.replace(self.recipe, epochs=epochs, min_steps=steps)
        if arm == "random" and arm != self.arms[0]:
            return LoopConfig(**shared, selector="dense", strategy="random")
        if shared["recipe"] != self.recipe and (self.strategy, self.selector) != ("random", "dense"):
            shared["selector_recipe"] = self.recipe
        shared = {**of(SelectionOptions), **of(StoppingOptions), **shared}
        if arm != self.arms[0] or self.selector == "dense":
            return LoopConfig(**shared, selector="dense")
        if self.selector != "prunefuse":
            return LoopConfig(**shared, selector="model")
        return LoopConfig(**{**of(PruneFuseOptions), **shared})

    def _final_length(self, arm: str) -> int | str:
        if arm != self.arms[0]:
            return ALL
        if self.final_epochs is not None:
            return self.final_epochs
        return FUSED if self.selector == "prunefuse" and self.fuse else ALL

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
    # Minutes on two CPU cores, and budgets at which the strategies differ.
    "digits": RunConfig(),
    # Network, sizes (1000, +4000, then 4 times +5000) and 181 epochs of the paper; see docs/paper.md.
    "cifar10-resnet56": RunConfig(
        data="cifar10",
        model="resnet56",
        schedule=("1000", "5000", "10000", "15000", "20000", "25000"),
        recipe=RECIPES["cifar"],
        final_epochs=ALL,
        seeds=(0,),
    ),
}


def check_sizes_given(options: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for sizes that are given in two ways."""
    if "schedule" in options and ("initial" in options or "rounds" in options):
        raise ConfigError("schedule already says every size: give it, or initial and rounds")


def override(preset: str, options: Mapping[str, Any], recipe: Mapping[str, Any]) -> RunConfig:
    """A preset with some fields of it, and of its recipe, replaced.

    Args:
        preset: One of `PRESETS`.
        options: Fields of `RunConfig` by name.
        recipe: Fields of `Recipe` by name.

    Raises:
        ConfigError: an unknown preset, a value that is not allowed, or sizes given in two ways.
    """
    require(preset in PRESETS, "preset", f"one of {', '.join(PRESETS)}", preset)
    check_sizes_given(options)
    return changed(changed(PRESETS[preset], options), {"recipe": recipe} if recipe else {})
