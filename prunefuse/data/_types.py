"""What a data set is for the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Data:
    """A data set for active learning. Items are ``(image (C, H, W) float32, label)``.

    ``train`` and ``pool`` are the same samples in the same order: ``train`` with training augmentation,
    ``pool`` with evaluation transforms, for scoring. ``input_shape`` is (C, H, W).
    """

    train: Any
    pool: Any
    test: Any
    num_classes: int
    input_shape: tuple[int, int, int]
    name: str
