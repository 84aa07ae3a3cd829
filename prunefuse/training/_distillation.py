"""Learning from labels and from a teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from prunefuse._names import ANNEALINGS, Annealing
from prunefuse._options import check_fields, checked, one_of, part, positive
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
        annealing: How the teacher's weight falls from ``1 - weight`` to 0 over the training, the labels' rising to 1:
            ``none``, ``linear`` or ``cosine``.

    References:
        Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*.
        Clark et al. 2019, *BAM! Born-Again Multi-Task Networks for Natural Language Understanding*: teacher annealing.
    """

    teacher: nn.Module
    weight: float = field(default=0.5, metadata=checked(part(whole=True)))
    temperature: float = field(default=4.0, metadata=checked(positive()))
    annealing: Annealing = field(default="none", metadata=checked(one_of(*ANNEALINGS)))

    def __post_init__(self) -> None:
        check_fields(self)

    def weight_at(self, progress: float) -> float:
        """That of the labels' loss when this part of the training is done, from 0 to 1."""
        if self.annealing == "none":
            return self.weight
        left = 1 - progress if self.annealing == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return 1 - (1 - self.weight) * left

    def loss(
        self,
        student: Any,
        teacher: Any,
        labels: Any,
        task: Task = _SINGLE_LABEL,
        how: Loss = _LOSS,
        progress: float = 0.0,
    ) -> Tensor:
        """The mean loss, a scalar, of outputs ``student`` and ``teacher``, (N, C), under ``labels``, (N,).

        ``progress`` is the part of the training that is done, which ``annealing`` looks at.
        """
        return self.mixed(student, teacher, labels, task, how, self.weight_at(progress))

    def mixed(
        self, student: Any, teacher: Any, labels: Any, task: Task, how: Loss, weight: float | Tensor
    ) -> Tensor:
        """The same with a weight of the labels' loss, which may lie on the device."""
        hard, t = task.loss(student, labels, how), self.temperature
        soft = task.divergence(student, teacher, labels, t)
        return weight * hard + (1 - weight) * t * t * soft
