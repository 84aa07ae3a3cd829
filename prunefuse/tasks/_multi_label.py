"""Any number of labels for each sample, independent of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from prunefuse._names import LOGIT_STRATEGIES
from prunefuse._options import check_fields, checked, one_of
from prunefuse.data._answers import NONE, SEPARATOR
from prunefuse.ops.integers import shown
from prunefuse.scoring import score_labels
from prunefuse.tasks._counts import mean_of
from prunefuse.tasks._task import Loss, Metrics, Task


@dataclass(frozen=True)
class MultiLabel(Task):
    """Outputs are logits (N, L), one for each label; a sample has a label where its logit is above 0.

    >>> from prunefuse.tasks import MultiLabel
    >>> task = MultiLabel(reduction="max")
    >>> task.metrics(task.measure(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])))["recall"]
    (1.0, 0.0)

    Labels of a sample are (L,) zeros and ones, or truth values. The loss is the binary cross-entropy, summed over labels.
    Class weights are those of the labels that a sample has. Utilities are those of `prunefuse.score_labels`.

    Attributes:
        reduction: Of a sample's labels, to its utility: ``mean``, ``max`` or ``sum``.
    """

    reduction: Literal["mean", "max", "sum"] = field(
        default="mean", metadata=checked(one_of("mean", "max", "sum"))
    )

    strategies = LOGIT_STRATEGIES
    losses = ("binary_cross_entropy",)
    class_weights = True
    label_smoothing = True

    def __post_init__(self) -> None:
        check_fields(self)

    def label(self, argument: str, sample: int, value: Any, *, width: int | None = None) -> Any:
        found = self.numbers(argument, sample, value)
        if found.ndim != 1 or (width is not None and len(found) != width):
            size = "(L,)" if width is None else f"({width},)"
            raise ValueError(
                f"{argument} must have {size} zeros and ones for sample {sample}, got {shown(value)}"
            )
        if not bool(((found == 0) | (found == 1)).all()):
            raise ValueError(f"{argument} must have zeros and ones for sample {sample}, got {shown(value)}")
        return found.float()

    def loss(self, outputs: Tensor, targets: Tensor, how: Loss) -> Tensor:
        s = how.label_smoothing
        smooth = targets * (1 - s) + s / 2
        of_each = functional.binary_cross_entropy_with_logits(
            outputs, smooth, pos_weight=how.class_weights, reduction="none"
        )
        return of_each.sum(1).mean()

    def divergence(self, outputs: Tensor, taught: Tensor, targets: Tensor, temperature: float) -> Tensor:
        p = (taught / temperature).sigmoid()
        # Both cross-entropies from logits, so that nothing is 0 * inf.
        crossed = functional.binary_cross_entropy_with_logits(outputs / temperature, p, reduction="none")
        own = functional.binary_cross_entropy_with_logits(taught / temperature, p, reduction="none")
        return (crossed - own).sum(1).mean()

    def utilities(self, outputs: Tensor, strategy: str, inputs: Any) -> Tensor:
        found: Tensor = score_labels(outputs, strategy, reduction=self.reduction)
        return found

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        predicted, there = outputs > 0, targets > 0.5
        exact = (predicted == there).all(1)
        brier = (outputs.sigmoid() - targets).square()
        sums = [(predicted & there).sum(0), predicted.sum(0), there.sum(0), (predicted == there).sum(0)]
        whole = torch.stack([exact.sum(), brier.mean(1).sum(), brier.new_tensor(len(targets))])
        return torch.cat([*sums, whole]).double()

    def metrics(self, measured: Tensor) -> Metrics:
        host = measured.double().cpu()
        labels = (len(host) - 3) // 4
        found, predicted, there, right = host[: 4 * labels].view(4, labels)
        exact, brier, samples = host[4 * labels :].tolist()
        f1 = 2 * found / (predicted + there)
        known = there > 0
        return {
            "f1": float(2 * found.sum() / (predicted + there).sum().clamp(min=1)),  # micro
            "f1_macro": mean_of(f1[known]),
            "accuracy": float(right.sum()) / (samples * labels),
            "exact_match": exact / samples,
            "brier": brier / samples,
            "recall": tuple((found / there).tolist()),
        }

    def counts(self, labels: Tensor, width: int) -> Tensor:
        return labels.sum(0)

    def text(self, label: Any, classes: Sequence[str] | None) -> str:
        places = torch.as_tensor(label).nonzero().flatten().tolist()
        return SEPARATOR.join(str(place) if classes is None else classes[place] for place in places) or NONE
