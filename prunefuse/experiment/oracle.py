"""Asking for labels, and checking the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, TypeAlias

from prunefuse.ops.arrays import as_tensor
from prunefuse.tasks import SingleLabel, Task

# Pool indices in, as many labels out: a sequence of integers, a tensor or an array; or of what the task has.
Oracle: TypeAlias = Callable[[Sequence[int]], Any]
_SINGLE_LABEL = SingleLabel()


def ask(oracle: Oracle, indices: Sequence[int], width: int, task: Task = _SINGLE_LABEL) -> tuple[Any, ...]:
    """The oracle's labels of the pool samples ``indices``.

    Raises:
        TypeError: the answers are no sequence, or one of them is not an integer. A mapping, a set or a string has no order
            of its own, or none of labels, and is refused too.
        ValueError: not one answer per index, an array of another shape than (N,), or a label outside [0, width).
    """
    answers = oracle(list(indices))
    if isinstance(answers, Mapping | Set | str | bytes):
        kind = type(answers).__name__
        raise TypeError(
            f"oracle must answer a sequence of labels, in the order of the {len(indices)} indices, got {kind}"
        )
    shape = getattr(answers, "shape", None)
    single = type(task) is SingleLabel
    if shape is not None and len(shape) != 1 and single:
        raise ValueError(
            f"oracle must answer {len(indices)} labels in one dimension, shape ({len(indices)},), got shape {tuple(shape)}"
        )
    if hasattr(answers, "__dlpack__"):
        found = as_tensor("oracle's labels", answers)
        answers = found.tolist() if single else list(found)
    try:
        answers = list(answers)
    except TypeError:
        raise TypeError(f"oracle must answer a sequence of labels, got {type(answers).__name__}") from None
    if len(answers) != len(indices):
        raise ValueError(f"oracle must answer {len(indices)} labels, one per index, got {len(answers)}")
    return check_labels("oracle", indices, answers, width, task)


def check_labels(
    argument: str, indices: Sequence[int], answers: Sequence[Any], width: int, task: Task = _SINGLE_LABEL
) -> tuple[Any, ...]:
    """Labels of the samples ``indices`` in the form that the task has, of classes as plain numbers.

    Raises:
        TypeError: one of them is of another kind; names the argument and the sample.
        ValueError: one is outside [0, width).
    """
    return tuple(
        task.label(argument, index, answer, width=width)
        for index, answer in zip(indices, answers, strict=True)
    )
