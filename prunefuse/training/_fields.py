"""Types of the fields of a configuration, checked by their annotations."""

from __future__ import annotations

import dataclasses
from numbers import Integral, Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# By annotation, which is text under ``from __future__ import annotations``; others are checked where they are used.
_KINDS: dict[str, tuple[type, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "a string"),
}


def check_types(config: DataclassInstance) -> None:
    """Raise ``TypeError`` for a field annotated int, float, bool or str that holds something else."""
    for field in dataclasses.fields(config):
        kind, expected = _KINDS.get(str(field.type), (object, ""))
        value = getattr(config, field.name)
        # A bool is an int to Python, and a mistake to us.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind in (Integral, Real)):
            raise TypeError(f"{field.name}: expected {expected}, got {value!r} ({type(value).__name__})")
