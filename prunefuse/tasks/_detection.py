"""Boxes with classes: what a detector is unsure of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from prunefuse._names import LOGIT_STRATEGIES
from prunefuse._options import check_fields, checked, one_of
from prunefuse.scoring import score_boxes
from prunefuse.tasks._task import Task


@dataclass(frozen=True)
class Detection(Task):
    """Outputs are a list with a mapping for each image, whose ``scores`` are (K,), or (K, C) of all classes.

    >>> from prunefuse.tasks import Detection
    >>> said = [{"scores": torch.tensor([0.5, 1.0])}, {"scores": torch.tensor([1.0])}]
    >>> Detection(reduction="max").utilities(said, "least_confidence", None).tolist()
    [0.5, 0.0]

    This is what torchvision's detectors return in evaluation mode. Utilities are those of `prunefuse.score_boxes`, of
    independent probabilities. An image without boxes has 0, as there is nothing in it to be unsure of. A detector has a
    training of its own: give the loop ``fit`` and ``evaluate``.

    Attributes:
        reduction: Of an image's boxes, to its utility: ``max``, ``mean``, ``sum``, or ``count`` of those above ``threshold``.
        threshold: Utility of a box that is counted.

    References:
        Brust, Käding and Denzler 2019, *Active Learning for Deep Object Detection*.
    """

    reduction: Literal["max", "mean", "sum", "count"] = field(
        default="max", metadata=checked(one_of("max", "mean", "sum", "count"))
    )
    threshold: float = 0.5

    strategies = LOGIT_STRATEGIES

    def __post_init__(self) -> None:
        check_fields(self)

    def output(self, given: Any) -> Any:
        rows = given if isinstance(given, list | tuple) else [given]
        if not all(isinstance(one, Mapping) and isinstance(one.get("scores"), Tensor) for one in rows):
            raise TypeError(
                f"model must return a list with a mapping that has scores for each image, got {type(given).__name__}"
            )
        return list(rows)

    def width(self, outputs: Any) -> int:
        scores = outputs[0]["scores"]
        return int(scores.shape[1]) if scores.ndim == 2 else 1

    def label(self, argument: str, sample: int, value: Any, *, width: int | None = None) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"{argument} must have a mapping for sample {sample}, got {type(value).__name__}")
        return {name: torch.as_tensor(one) for name, one in value.items()}

    def targets(self, labels: Any) -> Any:
        return list(labels)

    def utilities(self, outputs: Any, strategy: str, inputs: Any) -> Tensor:
        scores = [one["scores"] if one["scores"].ndim == 2 else one["scores"][:, None] for one in outputs]
        limit = self.threshold if self.reduction == "count" else None
        found: Tensor = score_boxes(
            scores,
            strategy=strategy,
            reduction=self.reduction,
            threshold=limit,
            independent=True,
            probabilities=True,
        )
        return found
