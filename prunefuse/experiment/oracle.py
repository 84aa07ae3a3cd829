"""Asking for labels, and checking the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, TypeAlias

from prunefuse.ops.arrays import as_tensor
from prunefuse.ops.integers import class_index

# Pool indices in, as many class indices out: a sequence of integers, a tensor or an array.
Oracle: TypeAlias = Callable[[Sequence[int]], Any]


def ask(oracle: Oracle, indices: Sequence[int], num_classes: int) -> tuple[int, ...]:
    """The oracle's labels of the pool samples ``indices``.

    Raises:
        TypeError: the answers are no sequence, or one of them is not an integer. A mapping, a set or a string has no order
            of its own, or none of labels, and is refused too.
        ValueError: not one answer per index, an array of another shape than (N,), or a label outside [0, num_classes).
    """
    answers = oracle(list(indices))
    if isinstance(answers, Mapping | Set | str | bytes):
        kind = type(answers).__name__
        raise TypeError(
            f"oracle must answer a sequence of labels, in the order of the {len(indices)} indices, got {kind}"
        )
    shape = getattr(answers, "shape", None)
    if shape is not None and len(shape) != 1:
        raise ValueError(
            f"oracle must answer {len(indices)} labels in one dimension, shape ({len(indices)},), got shape {tuple(shape)}"
        )
    if hasattr(answers, "__dlpack__"):
        answers = as_tensor("oracle's labels", answers).tolist()
    try:
        answers = list(answers)
    except TypeError:
        raise TypeError(f"oracle must answer a sequence of labels, got {type(answers).__name__}") from None
    if len(answers) != len(indices):
        raise ValueError(f"oracle must answer {len(indices)} labels, one per index, got {len(answers)}")
    return check_labels("oracle", indices, answers, num_classes)


def check_labels(
    argument: str, indices: Sequence[int], answers: Sequence[Any], num_classes: int
) -> tuple[int, ...]:
    """Labels of the samples ``indices`` as plain numbers.

    Raises:
        TypeError: one of them is not an integer; names the argument and the sample.
        ValueError: one is outside [0, num_classes).
    """
    labels = []
    for index, answer in zip(indices, answers, strict=True):
        label = class_index(argument, index, answer, floats=False)
        if not 0 <= label < num_classes:
            raise ValueError(
                f"{argument} must have a class in [0, {num_classes}) for sample {index}, got {answer!r}"
            )
        labels.append(label)
    return tuple(labels)
