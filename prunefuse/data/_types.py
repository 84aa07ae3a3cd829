"""What a data set is for the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Data:
    """A data set for active learning. Items are ``(image (C, H, W) float32, label)``, or texts ``((L,) int32, label)``.

    >>> from prunefuse.data import load
    >>> load("digits").input_shape
    (1, 8, 8)

    Attributes:
        train: The training samples, with training augmentation.
        pool: The same samples in the same order, with evaluation transforms, for scoring.
        test: The test samples.
        num_classes: How many classes there are.
        input_shape: (C, H, W); (L,) of texts.
        name: The name of the data set.
        notes: What a user should be told: the size that images are read in, and what was left out.
        classes: Names of the classes, by class index; empty where they have none.
        ids: What the samples of the pool are called where they come from: the path of a file, or the row of an array.
            None where that is their index.
        vocabulary: Of texts: how many numbers of words there are.
    """

    train: Any
    pool: Any
    test: Any
    num_classes: int
    input_shape: tuple[int, ...]
    name: str
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    ids: tuple[str, ...] | None = None
    vocabulary: int | None = None
