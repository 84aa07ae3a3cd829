"""A class for each token of a sequence, as in named-entity recognition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from prunefuse._names import LOGIT_STRATEGIES
from prunefuse._options import check_fields, checked, one_of
from prunefuse.ops.integers import shown
from prunefuse.scoring import score_tokens
from prunefuse.tasks._counts import class_metrics, class_sums, cross_entropy_of
from prunefuse.tasks._task import Loss, Metrics, Task, mask_of, require_axes, require_classes

IGNORED = -100
"""The label of tokens that do not count, as transformers' collators have it."""
MNLP = "mnlp"


@dataclass(frozen=True)
class Tokens(Task):
    """Outputs are logits (N, T, C), labels are (T,) class indices, -100 for tokens that do not count.

    >>> from prunefuse.tasks import Tokens
    >>> Tokens().utilities(torch.zeros(1, 3, 2), "margin", {"attention_mask": torch.tensor([[1, 1, 0]])}).tolist()
    [1.0]

    Sequences of a batch may differ in length; labels are padded to that of the inputs. Utilities are those of
    `prunefuse.score_tokens` over the tokens of the ``attention_mask``. ``mnlp`` is the negative mean of the log-probabilities
    of the classes predicted (maximum normalized log-probability).

    Attributes:
        reduction: Of a sequence's tokens, to its utility: ``mean``, ``max`` or ``sum``. For mnlp it is the mean.
        outside: The class of tokens that are no entity, which ``f1`` leaves out; None where there is none.

    References:
        Shen et al. 2018, *Deep Active Learning for Named Entity Recognition* (MNLP).
    """

    reduction: Literal["mean", "max", "sum"] = field(
        default="mean", metadata=checked(one_of("mean", "max", "sum"))
    )
    outside: int | None = None

    strategies = (*LOGIT_STRATEGIES, MNLP)
    losses = ("cross_entropy",)
    class_weights = True
    label_smoothing = True

    def __post_init__(self) -> None:
        check_fields(self)

    def width(self, outputs: Any) -> int:
        classes = require_axes(outputs, 3, "logits (N, T, C)").shape[2]
        if self.outside is not None and not 0 <= self.outside < classes:
            raise ValueError(f"outside must be a class in [0, {classes}), got {self.outside}")
        return classes

    def label(self, argument: str, sample: int, value: Any, *, width: int | None = None) -> Any:
        found = self.numbers(argument, sample, value)
        found = found.long() if found.shape == (0,) else found  # an empty list has no type
        if found.ndim != 1 or found.dtype.is_floating_point or found.dtype == torch.bool:
            raise TypeError(
                f"{argument} must have (T,) whole numbers for sample {sample}, got {shown(value)}"
            )
        found = found.long()
        if width is not None:
            require_classes(argument, sample, found, width, IGNORED)
        return found

    def stored(self, argument: str, labels: Tensor, samples: Tensor) -> Tensor:
        return labels.long()

    def targets(self, labels: Sequence[Any]) -> Any:
        return torch.nn.utils.rnn.pad_sequence(list(labels), batch_first=True, padding_value=IGNORED)

    def loss(self, outputs: Tensor, targets: Tensor, how: Loss) -> Tensor:
        return cross_entropy_of(outputs.flatten(0, 1), _padded(targets, outputs).flatten(), how, IGNORED)

    def divergence(self, outputs: Tensor, taught: Tensor, targets: Tensor, temperature: float) -> Tensor:
        counted = (_padded(targets, outputs) != IGNORED).float()
        student, teacher = ((x / temperature).log_softmax(2) for x in (outputs, taught))
        of_each = (teacher.exp() * (teacher - student)).sum(2)
        return (of_each * counted).sum() / counted.sum().clamp(min=1)

    def utilities(self, outputs: Tensor, strategy: str, inputs: Any) -> Tensor:
        mask = mask_of(inputs, (outputs.shape[0], outputs.shape[1]), outputs.device)
        if strategy == MNLP:
            confidence = outputs.max(2).values - outputs.logsumexp(2)
            mean = confidence.where(mask, 0).sum(1) / mask.sum(1)
            return -mean
        found: Tensor = score_tokens(outputs, strategy, mask=mask, reduction=self.reduction)
        return found

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return class_sums(outputs.flatten(0, 1), _padded(targets, outputs).flatten(), IGNORED)

    def metrics(self, measured: Tensor) -> Metrics:
        metrics = class_metrics(measured)
        del metrics["mean_iou"], metrics["iou"]
        if self.outside is None:
            return metrics
        classes = len(metrics["recall"])  # type: ignore[arg-type]
        found, predicted, there = measured.cpu()[: 3 * classes].view(3, classes)
        entities = torch.ones(classes, dtype=torch.bool)
        entities[self.outside] = False
        both = (predicted + there)[entities].sum().clamp(min=1)
        micro = float(2 * found[entities].sum() / both)
        return {"entity_f1": micro, **metrics}

    def features(self, features: Tensor, inputs: Any) -> Tensor:
        if features.ndim != 3:
            return features.reshape(len(features), -1)
        mask = mask_of(inputs, (features.shape[0], features.shape[1]), features.device)[:, :, None]
        return features.where(mask, 0).sum(1) / mask.sum(1).clamp(min=1)

    def counts(self, labels: Tensor, width: int) -> Tensor:
        return torch.bincount(labels[(labels >= 0) & (labels < width)], minlength=width)

    def text(self, label: Any, classes: Sequence[str] | None) -> str:
        numbers = [int(one) for one in label]
        return " ".join("-" if n == IGNORED else str(n) if classes is None else classes[n] for n in numbers)


def _padded(targets: Tensor, outputs: Tensor) -> Tensor:
    """Labels of as many tokens as there are outputs."""
    missing = outputs.shape[1] - targets.shape[1]
    if missing < 0:
        raise ValueError(
            f"data must have at most {outputs.shape[1]} labels for a sequence, as there are outputs, got {targets.shape[1]}"
        )
    return functional.pad(targets, (0, missing), value=IGNORED)
