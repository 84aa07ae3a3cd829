"""How a network is trained: a recipe is data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from prunefuse.data._batches import batch_count
from prunefuse.training._fields import check_types


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum under a learning-rate schedule. The defaults are SVP's CIFAR training (181 epochs).

    Attributes:
        epochs: Passes over the labeled set.
        min_steps: Optimizer steps at least: a set so small that ``epochs`` passes have fewer gets more passes (ours).
        batch_size: Samples per step at most; the batches of an epoch are of even size.
        lr: Largest learning rate.
        momentum: Of SGD.
        nesterov: Nesterov's form of it.
        weight_decay: L2 penalty on all parameters.
        schedule: ``step``: constant pieces, see ``steps``. ``one-cycle``: per step, up linearly from
            ``lr / 25`` for the fraction ``warmup`` of training, then down to zero along a cosine.
        steps: (length, factor) of the pieces of ``step``; lengths are epochs, scaled if they do not add up to
            the epochs trained, factors multiply ``lr``.
        warmup: Fraction of training in which ``one-cycle`` rises.
        autocast: Forward passes in bfloat16 autocast.
        channels_last: Images and weights in channels-last memory format.

    Raises:
        TypeError: a value of another type than its field; names the field.
        ValueError: a value outside its range; names the field.
    """

    epochs: int = 181
    min_steps: int = 0
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["step", "one-cycle"] = "step"
    steps: tuple[tuple[int, float], ...] = ((1, 0.1), (90, 1.0), (45, 0.1), (45, 0.01))
    warmup: float = 0.3
    autocast: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if not isinstance(self.steps, tuple) or not all(map(_is_piece, self.steps)):
            raise TypeError(f"steps: expected a tuple of pairs (epochs, factor of lr), got {self.steps!r}")
        checks = (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("min_steps", self.min_steps >= 0, "at least 0"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("lr", self.lr > 0 and math.isfinite(self.lr), "a positive number"),
            ("momentum", 0 <= self.momentum < 1, "a number in [0, 1)"),
            ("nesterov", not self.nesterov or self.momentum > 0, "False when momentum is 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("schedule", self.schedule in ("step", "one-cycle"), '"step" or "one-cycle"'),
            ("steps", bool(self.steps) and all(n > 0 for n, _ in self.steps), "pieces longer than 0"),
            ("warmup", 0 <= self.warmup < 1, "a number in [0, 1)"),
        )
        for name, valid, expected in checks:
            if not valid:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def epochs_for(self, samples: int) -> int:
        """Epochs of a training on ``samples`` samples: ``epochs``, or more to reach ``min_steps``."""
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
            raise ValueError(f"step: expected less than {steps}, got {step}")
        done = step / steps
        if done < self.warmup:
            return self.lr * (1 / 25 + (1 - 1 / 25) * done / self.warmup)
        return self.lr * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup))) / 2


def _is_piece(piece: object) -> bool:
    return (
        isinstance(piece, tuple | list) and len(piece) == 2 and all(isinstance(n, int | float) for n in piece)
    )


RECIPES = {
    # Selection via proxy (Coleman et al.): 1 epoch at 0.01, 90 at 0.1, 45 at 0.01, 45 at 0.001.
    "cifar": Recipe(),
    # Ours: ResNet-20 on 8x8 images in seconds.
    "digits": Recipe(epochs=40, min_steps=400, batch_size=16, lr=0.03, schedule="one-cycle"),
}
