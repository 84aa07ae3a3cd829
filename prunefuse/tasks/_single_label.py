"""One of several classes for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prunefuse._names import LOGIT_STRATEGIES
from prunefuse.data._items import CLASSES
from prunefuse.ops.integers import class_index
from prunefuse.scoring import score
from prunefuse.tasks._counts import class_metrics, class_sums
from prunefuse.tasks._task import Loss, Metrics, Task, require_axes


@dataclass(frozen=True)
class SingleLabel(Task):
    """Classification: outputs are logits (N, C), labels are class indices, the loss is cross-entropy.

    >>> from prunefuse.tasks import SingleLabel
    >>> task, logits = SingleLabel(), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> task.metrics(task.measure(logits, torch.tensor([0, 0])))["accuracy"]
    0.5
    """

    strategies = LOGIT_STRATEGIES
    losses = ("cross_entropy",)
    class_weights = True
    label_smoothing = True

    def width(self, outputs: Any) -> int:
        return require_axes(outputs, 2, "logits (N, C)").shape[1]

    def label(self, argument: str, sample: int, value: Any, *, width: int | None = None) -> Any:
        if width is None:
            return CLASSES.label(argument, sample, value)
        label = class_index(argument, sample, value, floats=False)
        if not 0 <= label < width:
            raise ValueError(
                f"{argument} must have a class in [0, {width}) for sample {sample}, got {value!r}"
            )
        return label

    def stored(self, argument: str, labels: Tensor, samples: Tensor) -> Tensor:
        return CLASSES.stored(argument, labels, samples)

    def targets(self, labels: Sequence[Any]) -> Any:
        return CLASSES.targets(labels)

    def loss(self, outputs: Tensor, targets: Tensor, how: Loss) -> Tensor:
        return functional.cross_entropy(
            outputs, targets, weight=how.class_weights, label_smoothing=how.label_smoothing
        )

    def divergence(self, outputs: Tensor, taught: Tensor, targets: Tensor, temperature: float) -> Tensor:
        return functional.kl_div(
            functional.log_softmax(outputs / temperature, dim=1),
            functional.log_softmax(taught / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )

    def utilities(self, outputs: Tensor, strategy: str, inputs: Any) -> Tensor:
        found: Tensor = score(outputs, strategy)
        return found

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return class_sums(outputs, targets)

    def metrics(self, measured: Tensor) -> Metrics:
        metrics = class_metrics(measured)
        return {name: metrics[name] for name in ("accuracy", "balanced_accuracy", "f1", "ece", "recall")}

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).sum()

    def counts(self, labels: Tensor, width: int) -> Tensor:
        return torch.bincount(labels, minlength=width)

    def text(self, label: Any, classes: Sequence[str] | None) -> str:
        return str(label) if classes is None else classes[int(label)]
