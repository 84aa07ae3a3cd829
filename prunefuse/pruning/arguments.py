"""Checks of arguments that several functions take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from numbers import Real

from torch import Tensor, nn

from prunefuse._options import require


def checked_inputs(example_inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs as a tuple of tensors that have elements."""
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(inputs, list | tuple) or not all(isinstance(x, Tensor) for x in inputs):
        got = type(example_inputs).__name__
        if isinstance(inputs, list | tuple):
            got += f" of {', '.join(type(x).__name__ for x in inputs)}"
        raise TypeError(f"example_inputs must be a tensor or a tuple of tensors, got {got}")
    if not inputs or not all(x.numel() for x in inputs):
        raise ValueError("example_inputs must be at least one tensor, and none without elements")
    return tuple(inputs)


def checked_ratio(argument: str, ratio: float | Fraction) -> Fraction:
    """A ratio in [0, 1), exactly."""
    if isinstance(ratio, bool) or not isinstance(ratio, float | int | Real):
        raise TypeError(f"{argument} must be a number, got {type(ratio).__name__}")
    require(0 <= ratio < 1, argument, "in [0, 1)", ratio)
    return Fraction(str(ratio))  # the decimal that was written: 10 * (1 - 0.9) is 1


def check_choice(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless the value is one of those allowed."""
    require(value in allowed, argument, f"one of {', '.join(allowed)}", value)


def check_count(argument: str, value: int) -> None:
    """Raise unless the value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} must be a whole number, got {type(value).__name__}")
    require(value >= 1, argument, "at least 1", value)


def matching_modules(model: nn.Module, argument: str, patterns: Iterable[str] | str) -> set[str]:
    """Paths of the modules with these names or patterns, and of all inside them."""
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must be names of modules, got {type(pattern).__name__}")
        matches = [path for path in paths if fnmatchcase(path, pattern)]
        if not matches:
            raise ValueError(f"{argument} must match modules of the model, got {pattern!r}")
        found |= {
            path for path in paths for match in matches if path == match or path.startswith(match + ".")
        }
    return found
