"""Learning from labels and from a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Distillation:
    """``weight * CE + (1 - weight) * T^2 * KL(teacher_T || student_T)`` (Hinton et al. 2015).

    PruneFuse trains with such a loss; which term its lambda multiplies, its value and the temperature are not
    known to us: all ours. ``weight`` is in [0, 1], 1 = no distillation; ``temperature`` is positive.
    """

    teacher: nn.Module
    weight: float = 0.5
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight: expected a number in [0, 1], got {self.weight}")
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of logits ``student`` and ``teacher`` (N, C) under ``labels`` (N,); a scalar."""
        hard = functional.cross_entropy(student, labels)
        t = self.temperature
        soft = functional.kl_div(
            functional.log_softmax(student / t, dim=1),
            functional.log_softmax(teacher / t, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return self.weight * hard + (1 - self.weight) * t * t * soft
