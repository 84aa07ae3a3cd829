"""Learning from labels and from a teacher."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional

from prunefuse._options import check_fields, checked, part, positive


@dataclass(frozen=True)
class Distillation:
    """A loss from labels and a teacher: ``weight * CE + (1 - weight) * T^2 * KL(teacher_T || student_T)``.

    >>> from prunefuse.training import Distillation
    >>> distillation = Distillation(teacher=torch.nn.Linear(4, 2), weight=0.5, temperature=4.0)

    PruneFuse trains with such a loss. Its weight and temperature are not published; see docs/paper.md.

    Attributes:
        teacher: A classifier.
        weight: That of the labels' loss, in [0, 1]. 1 is no distillation.
        temperature: T, positive.

    References:
        Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*.
    """

    teacher: nn.Module
    weight: float = field(default=0.5, metadata=checked(part(whole=True)))
    temperature: float = field(default=4.0, metadata=checked(positive()))

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The mean loss, a scalar, of logits ``student`` and ``teacher`` (N, C) under ``labels`` (N,)."""
        hard = functional.cross_entropy(student, labels)
        t = self.temperature
        soft = functional.kl_div(
            functional.log_softmax(student / t, dim=1),
            functional.log_softmax(teacher / t, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return self.weight * hard + (1 - self.weight) * t * t * soft
