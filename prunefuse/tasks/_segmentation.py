"""A class for each pixel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from prunefuse._names import LOGIT_STRATEGIES
from prunefuse._options import check_fields, checked, one_of
from prunefuse.scoring import score_pixels
from prunefuse.tasks._counts import class_metrics, class_sums, cross_entropy_of
from prunefuse.tasks._task import Loss, Metrics, Task, require_axes, require_classes


@dataclass(frozen=True)
class Segmentation(Task):
    """Outputs are logits (N, C, H, W), labels are (H, W) class indices.

    >>> from prunefuse.tasks import Segmentation
    >>> Segmentation(reduction="share", threshold=0.5).utilities(torch.zeros(2, 3, 4, 4), "entropy", None).tolist()
    [1.0, 1.0]

    Utilities are those of `prunefuse.score_pixels`. Outputs of another size than the labels are interpolated. The loss is
    the cross-entropy; ``dice`` adds one minus the mean Dice coefficient of the classes.

    Attributes:
        ignored: The label of pixels that do not count.
        reduction: Of an image's pixels, to its utility: ``mean``, ``max``, ``sum``, or ``share`` of those above ``threshold``.
        threshold: Utility of a pixel that the share is of.

    References:
        Milletari et al. 2016, *V-Net* (Dice).
    """

    ignored: int = 255
    reduction: Literal["mean", "max", "sum", "share"] = field(
        default="mean", metadata=checked(one_of("mean", "max", "sum", "share"))
    )
    threshold: float = 0.5

    strategies = LOGIT_STRATEGIES
    losses = ("cross_entropy", "dice")
    class_weights = True
    label_smoothing = True

    def __post_init__(self) -> None:
        check_fields(self)

    def width(self, outputs: Any) -> int:
        return require_axes(outputs, 4, "logits (N, C, H, W)").shape[1]

    def label(self, argument: str, sample: int, value: Any, *, width: int | None = None) -> Any:
        found = self.numbers(argument, sample, value)
        found = found[0] if found.ndim == 3 and len(found) == 1 else found
        if found.ndim != 2 or found.dtype.is_floating_point or found.dtype.is_complex:
            raise TypeError(
                f"{argument} must have (H, W) whole numbers for sample {sample}, got {found.dtype} of shape "
                f"{tuple(found.shape)}"
            )
        found = found.long()
        if width is not None:
            require_classes(argument, sample, found, width, self.ignored)
        return found

    def stored(self, argument: str, labels: Tensor, samples: Tensor) -> Tensor:
        return (labels[:, 0] if labels.ndim == 4 and labels.shape[1] == 1 else labels).long()

    def loss(self, outputs: Tensor, targets: Tensor, how: Loss) -> Tensor:
        outputs = _sized(outputs, targets)
        loss = cross_entropy_of(outputs, targets, how, self.ignored)
        return loss + _dice(outputs, targets, self.ignored) if how.name == "dice" else loss

    def divergence(self, outputs: Tensor, taught: Tensor, targets: Tensor, temperature: float) -> Tensor:
        student, teacher = ((x / temperature).log_softmax(1) for x in (outputs, taught))
        return (teacher.exp() * (teacher - student)).sum(1).mean()

    def utilities(self, outputs: Tensor, strategy: str, inputs: Any) -> Tensor:
        limit = self.threshold if self.reduction == "share" else None
        found: Tensor = score_pixels(outputs, strategy, reduction=self.reduction, threshold=limit)
        return found

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return class_sums(_sized(outputs, targets), targets, self.ignored)

    def metrics(self, measured: Tensor) -> Metrics:
        return class_metrics(measured, "mean_iou")

    def features(self, features: Tensor, inputs: Any) -> Tensor:
        return features.flatten(2).mean(2) if features.ndim > 2 else features

    def counts(self, labels: Tensor, width: int) -> Tensor:
        return torch.bincount(labels[(labels >= 0) & (labels < width)], minlength=width)


def _sized(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape[2:] == targets.shape[1:]:
        return outputs
    return functional.interpolate(outputs, tuple(targets.shape[1:]), mode="bilinear", align_corners=False)


def _dice(outputs: Tensor, targets: Tensor, ignored: int) -> Tensor:
    counted = targets != ignored
    hot = functional.one_hot(targets.where(counted, 0), outputs.shape[1]).movedim(-1, 1)
    p, counted = outputs.softmax(1), counted[:, None]
    both, sizes = (p * hot * counted).sum((0, 2, 3)), ((p + hot) * counted).sum((0, 2, 3))
    return 1 - ((2 * both + 1) / (sizes + 1)).mean()
