"""Learning from labels and from a teacher."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional

from prunefuse._options import check_fields, checked, part, positive


@dataclass(frozen=True)
class Distillation:
    """``weight * CE + (1 - weight) * T^2 * KL(teacher_T || student_T)`` (Hinton et al. 2015).

    PruneFuse trains with such a loss; which term its lambda multiplies, its value and the temperature are not
    known to us: all ours. ``weight`` is in [0, 1], 1 = no distillation; ``temperature`` is positive.
    """

    teacher: nn.Module
    weight: float = field(default=0.5, metadata=checked(part(whole=True)))
    temperature: float = field(default=4.0, metadata=checked(positive()))

    def __post_init__(self) -> None:
        check_fields(self)

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
