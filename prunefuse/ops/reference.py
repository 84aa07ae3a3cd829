"""The plain-torch reference of every operator, by the operator's name: `reference.score` is `ops.score.reference`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prunefuse.ops._operator import OPERATORS
from prunefuse.ops._scores import log_probabilities as log_probabilities


def __getattr__(name: str) -> Callable[..., Any]:
    if name not in OPERATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return OPERATORS[name].reference
