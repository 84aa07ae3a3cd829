"""Learning from labels and from a teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from prunefuse._options import check_fields, checked, part, positive
from prunefuse.tasks._single_label import SingleLabel
from prunefuse.tasks._task import Loss, Task

_SINGLE_LABEL, _LOSS = SingleLabel(), Loss()


@dataclass(frozen=True)
class Distillation:
    """A loss from labels and a teacher: ``weight * CE + (1 - weight) * T^2 * KL(teacher_T || student_T)``.

    Of another task than classification its own loss and divergence take the place of CE and KL.

    >>> from prunefuse.training import Distillation
    >>> distillation = Distillation(teacher=torch.nn.Linear(4, 2), weight=0.5, temperature=4.0)

    PruneFuse trains with such a loss. Its weight and temperature are not published; see docs/paper.md.

    Attributes:
        teacher: A network with outputs like the student's.
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

    def loss(
        self, student: Any, teacher: Any, labels: Any, task: Task = _SINGLE_LABEL, how: Loss = _LOSS
    ) -> Tensor:
        """The mean loss, a scalar, of outputs ``student`` and ``teacher``, (N, C), under ``labels``, (N,)."""
        hard = task.loss(student, labels, how)
        t = self.temperature
        soft = task.divergence(student, teacher, labels, t)
        return self.weight * hard + (1 - self.weight) * t * t * soft
