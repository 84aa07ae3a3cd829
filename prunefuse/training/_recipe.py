"""How a network is trained: a recipe is data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from prunefuse._options import (
    Check,
    at_least,
    check_fields,
    documented,
    one_of,
    option,
    part,
    positive,
    require,
)


@documented
@dataclass(frozen=True)
class Recipe:
    """How a network is trained; SGD with momentum by default. The defaults are SVP's CIFAR training (181 epochs).

    >>> recipe = prunefuse.Recipe(epochs=20, batch_size=32, schedule="one-cycle")
    >>> recipe.epochs_for(1000), recipe.lr_at(step=0, steps=100)
    (20, 0.004)

    Raises:
        TypeError: a value of another type than its field; names the field.
        ValueError: a value outside its range; names the field.

    References:
        Coleman et al. 2020, *Selection via Proxy: Efficient Data Selection for Deep Learning* (SVP).
    """

    epochs: int = field(
        default=181,
        metadata=option(
            "Training", "Passes over the labeled set; 0 leaves a network as it is", check=at_least(0)
        ),
    )
    min_steps: int = field(
        default=0,
        metadata=option(
            "Training",
            "Steps of training at least; small sets get more epochs",
            more="Optimizer steps: a set so small that its epochs have fewer gets more passes.",
            check=at_least(0),
        ),
    )
    batch_size: int = field(
        default=128,
        metadata=option(
            "Training",
            "Samples per step",
            more="At most: the batches of an epoch are of even size.",
            check=at_least(1),
        ),
    )
    lr: float = field(default=0.1, metadata=option("Training", "Largest learning rate", check=positive()))
    momentum: float = field(
        default=0.9, metadata=option("Training", "Momentum of SGD; the first beta of AdamW", check=part())
    )
    nesterov: bool = field(default=False, metadata=option("Training", "Nesterov's momentum"))
    weight_decay: float = field(
        default=5e-4, metadata=option("Training", "L2 penalty on the weights", check=at_least(0))
    )
    schedule: Literal["step", "one-cycle", "linear", "constant"] = field(
        default="step",
        metadata=option(
            "Training",
            "Learning rate over time",
            more="step is constant pieces, see steps. one-cycle changes with every step. For the fraction warmup of training "
            "it rises linearly from lr / 25, then it falls to zero along a cosine. With linear both are straight lines, from 0 "
            "and to 0.",
            check=one_of("step", "one-cycle", "linear", "constant"),
            flag="lr_schedule",
        ),
    )
    steps: tuple[tuple[int, float], ...] = field(
        default=((1, 0.1), (90, 1.0), (45, 0.1), (45, 0.01)),
        metadata=option(
            "Training",
            "Pieces of the schedule step, each EPOCHS:FACTOR of lr, with commas",
            more="Lengths are scaled if they do not add up to the epochs trained.",
            check=Check("pieces longer than 0", lambda steps: steps and all(n > 0 for n, _ in steps)),
            metavar="PIECES",
        ),
    )
    warmup: float = field(
        default=0.3,
        metadata=option("Training", "Fraction of training in which one-cycle and linear rise", check=part()),
    )
    autocast: bool | Literal["auto"] = field(
        default=False,
        metadata=option(
            "Training",
            "Compute in bfloat16 where it is safe",
            more="Forward passes are made in autocast. ``auto``, in Python and files, does so where the processor multiplies "
            "in bfloat16: by AMX, by AVX-512 BF16, or on GPUs since Ampere. A run's config.json says what it has.",
            check=Check("True, False or auto", lambda value: value in (True, False, "auto")),
        ),
    )
    compile: bool = field(
        default=False,
        metadata=option(
            "Training",
            "Compile the network for training steps; pays back in long trainings",
            more="By ``torch.compile``, which takes a C++ compiler and minutes. Results differ in their last bits, and in what "
            "dropout draws. See docs/speed.md.",
        ),
    )
    cuda_graphs: bool = field(
        default=False,
        metadata=option(
            "Training",
            "Record whole steps on a GPU as CUDA graphs, and replay them",
            more="For data in memory: from augmentation to the optimizer. Steps of rare batch sizes run as ever. See "
            "docs/speed.md.",
        ),
    )
    channels_last: bool | None = field(
        default=False,
        metadata=option(
            "Training",
            "Memory format of images and weights",
            more="Whether it is channels-last. None is what is faster: on a CPU that is channels-last for networks whose "
            "2-d convolutions have at most 64 channels.",
        ),
    )
    optimizer: Literal["sgd", "adamw"] = field(
        default="sgd",
        metadata=option(
            "Training",
            "Optimizer",
            more="AdamW decays weights apart from the gradient (Loshchilov and Hutter 2019).",
            check=one_of("sgd", "adamw"),
        ),
    )
    clip_norm: float = field(
        default=0.0,
        metadata=option(
            "Training",
            "Largest norm of the gradient, which is scaled down to it; 0 is any",
            check=at_least(0),
        ),
    )
    loss: str = field(
        default="",
        metadata=option("Training", "Loss, of those that the task has; left out, its first", metavar="NAME"),
    )
    class_weights: tuple[float, ...] = field(
        default=(),
        metadata=option(
            "Training",
            "Weight of each class in the loss, with commas",
            check=Check("numbers of 0 or more", lambda weights: all(weight >= 0 for weight in weights)),
            metavar="NUMBERS",
        ),
    )
    balance_classes: bool = field(
        default=False,
        metadata=option(
            "Training",
            "Weigh classes by how rare they are among the labels",
            more="A weight is the number of labels over classes times those of the class. Of a class without labels it is 1.",
        ),
    )
    label_smoothing: float = field(
        default=0.0,
        metadata=option("Training", "Part of a label that is spread over all classes", check=part()),
    )
    validation: float = field(
        default=0.0,
        metadata=option(
            "Training",
            "Part of the labels that is held out, to keep the weights of the best epoch",
            more="Drawn at random, at least one; the metric is the first of the task.",
            check=part(),
        ),
    )
    patience: int = field(
        default=0,
        metadata=option(
            "Training",
            "Epochs without a better one after which training stops early; 0 is never",
            check=at_least(0),
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(not self.nesterov or self.momentum > 0, "nesterov", "False with momentum 0", self.nesterov)
        require(not self.nesterov or self.optimizer == "sgd", "nesterov", "False with adamw", self.nesterov)
        require(self.validation > 0 or not self.patience, "patience", "0 without validation", self.patience)
        both = self.balance_classes and bool(self.class_weights)
        require(not both, "balance_classes", "False with class_weights", self.balance_classes)

    def held_out(self, samples: int) -> int:
        """How many of ``samples`` labels are held out for validation: at most half of them."""
        return min(max(1, round(self.validation * samples)), samples // 2) if self.validation else 0

    def epochs_for(self, samples: int) -> int:
        """Epochs of a training on ``samples`` samples: ``epochs``, or more to reach ``min_steps``."""
        from prunefuse.data._batches import batch_count  # here, so that options are read without torch

        return max(self.epochs, -(-self.min_steps // batch_count(samples, self.batch_size)))

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of optimizer step ``step`` of ``steps``, counted from 0."""
        if self.schedule == "step":
            total = sum(length for length, _ in self.steps)
            end = 0
            for length, factor in self.steps:
                end += length
                if step * total < end * steps:  # in integers, so that pieces end exactly with an epoch
                    return self.lr * factor
            raise ValueError(f"step must be less than {steps}, got {step}")
        done = step / steps
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "linear":
            # The first step, too, is one: it is at the end of what it does.
            rising = (step + 1) / (self.warmup * steps) if self.warmup else 1.0
            return self.lr * min(rising, (1 - done) / (1 - self.warmup))
        if done < self.warmup:
            return self.lr * (1 / 25 + (1 - 1 / 25) * done / self.warmup)
        return self.lr * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup))) / 2


def completed_recipe(known: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain data, with the usual values of options that it does not have: it may be older than they are."""
    usual: dict[str, Any] = json.loads(json.dumps(asdict(Recipe())))
    return usual | dict(known)


RECIPES = {
    # Selection via proxy (Coleman et al.): 1 epoch at 0.01, 90 at 0.1, 45 at 0.01, 45 at 0.001.
    "cifar": Recipe(channels_last=None),
    # ResNet-20 on 8x8 images in seconds.
    "digits": Recipe(
        epochs=40, min_steps=400, batch_size=16, lr=0.03, schedule="one-cycle", channels_last=None
    ),
    # ResNet-20 on Fashion-MNIST averaged to 14x14, in minutes on two CPU cores.
    "fashion_mnist": Recipe(
        epochs=20, min_steps=300, batch_size=64, lr=0.1, schedule="one-cycle", channels_last=None
    ),
    # Texts: an embedding learns little by SGD where most words are rare.
    "text": Recipe(
        epochs=20,
        min_steps=200,
        batch_size=16,
        lr=0.001,
        optimizer="adamw",
        weight_decay=0.01,
        schedule="one-cycle",
    ),
}
