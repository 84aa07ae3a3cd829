"""What the labels that people and files write mean: a class, any number of labels, or numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SEPARATOR, NONE = ";", "-"
"""Between labels of a sample, and that it has none of them."""


@dataclass(frozen=True)
class Answers:
    """What the labels of a data set mean.

    Attributes:
        classes: Names of classes, or of labels; empty of numbers.
        width: How many outputs a network has for them.
        of: By what is written: class index, a zero or one for each label, or numbers.
        notes: What a user should be told.
    """

    classes: tuple[str, ...]
    width: int
    of: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def answers_of(name: str, written: Iterable[tuple[str, str]], task: str) -> Answers:
    """What labels mean, each given with the place where it stands.

    Args:
        name: Of the data set, for errors.
        written: Places, such as ``row 3``, and labels, none of which is empty.
        task: ``single-label``, ``multi-label`` or ``regression``.

    Raises:
        ValueError: there are too few classes, or a label is no number; names the place.
    """
    where: dict[str, str] = {}
    for place, label in written:
        where.setdefault(label, place)
    if task == "regression":
        return _of_numbers(name, where)
    if task == "multi-label":
        names = {label: parts(label) for label in where}
        classes = in_order({one for found in names.values() for one in found})
        if not classes:
            raise ValueError(
                f"data {name}: labels must be of one kind or more, with {SEPARATOR} between them, got none"
            )
        own = {label: tuple(int(one in found) for one in classes) for label, found in names.items()}
        return Answers(tuple(classes), len(classes), own)
    classes = in_order(where)
    if len(classes) < 2:
        got = f"only {classes[0]!r}" if classes else "none"
        raise ValueError(f"data {name}: labels must be of two classes or more, got {got}")
    several = sum(SEPARATOR in label for label in where)
    notes = (
        f"{several} of {len(classes)} classes have {SEPARATOR} in their names (--task multi-label reads these as several "
        "labels)",
    )
    indices = {label: index for index, label in enumerate(classes)}
    return Answers(tuple(classes), len(classes), indices, notes if several else ())


def parts(answer: str) -> list[str]:
    """The labels that an answer has, with ``;`` between them or as a list in JSON."""
    answer = answer.strip()
    if answer.startswith("["):
        try:
            listed = json.loads(answer)
        except ValueError:
            listed = None
        if isinstance(listed, list) and all(type(one) in (str, int) for one in listed):
            return [str(one).strip() for one in listed]
    return [] if answer == NONE else [name for part in answer.split(SEPARATOR) if (name := part.strip())]


def in_order(names: Collection[str]) -> list[str]:
    """Names of classes: by their values where all are whole numbers, else by the alphabet."""
    return sorted(names, key=int) if all(map(str.isdecimal, names)) else sorted(names)


def numbers(label: str) -> tuple[float, ...]:
    """The numbers that a label is, with ``;`` between several.

    Raises:
        ValueError: it is none, or one is not finite.
    """
    found = tuple(float(one) for one in parts(label))
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(label)
    return found


def _of_numbers(name: str, where: Mapping[str, str]) -> Answers:
    own: dict[str, Sequence[float]] = {}
    width = 0
    for label, place in where.items():
        try:
            own[label] = numbers(label)
        except ValueError:
            raise ValueError(
                f"data {name}: labels must be finite numbers, with {SEPARATOR} between several, got {label!r} in {place}"
            ) from None
        width = width or len(own[label])
        if len(own[label]) != width:
            raise ValueError(
                f"data {name}: labels must have {width} numbers, as the first, got {label!r} in {place}"
            )
    return Answers((), width, own)
