"""Sizes of the labeled set: ``"1000"`` samples or ``"2%"`` of the pool, turned into samples exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

from prunefuse._options import require
from prunefuse.errors import ConfigError as ConfigError

_SIZE = re.compile(r"(?P<samples>\d+)|(?P<percent>\d+(\.\d+)?|\.\d+)\s*%")


def parse_size(text: str, name: str) -> int | Fraction:
    """``"1000"`` -> 1000 samples; ``"2.5%"`` -> ``Fraction(1, 40)`` of the pool.

    Raises:
        ConfigError: neither of the two; or zero, or more than 100 %.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{name} must be a number of samples (1000) or a per cent of the pool (2%), got {text!r}"
        )
    if match["samples"] is not None:
        if int(match["samples"]) == 0:
            raise ConfigError(f"{name} must be at least 1 sample, got {text!r}")
        return int(match["samples"])
    part = Fraction(match["percent"]) / 100
    if not 0 < part <= 1:
        raise ConfigError(f"{name} must be more than 0% and at most 100% of the pool, got {text!r}")
    return part


def check_size(name: str, size: str) -> None:
    """Raise ``ConfigError`` unless a size can be parsed."""
    parse_size(size, name)


def parse_length(value: int | str, name: str) -> int | Fraction:
    """``8`` or ``"8"`` -> 8 epochs; ``"40%"`` -> ``Fraction(2, 5)`` of the usual ones.

    Raises:
        ConfigError: neither of the two; or 0 %, or more than 100 %.
    """
    found = _SIZE.fullmatch(str(value).strip())
    if found is not None and found["samples"] is not None:
        return int(found["samples"])
    length = None if found is None else Fraction(found["percent"]) / 100
    if length is None or not 0 < length <= 1:
        raise ConfigError(f"{name} must be epochs (8) or per cent of the usual ones (40%), got {value!r}")
    return length


def check_length(name: str, value: int | str) -> None:
    """Raise ``ConfigError`` unless a number of epochs can be parsed."""
    parse_length(value, name)


def check_sizes(name: str, sizes: tuple[Any, ...]) -> None:
    """Raise ``ConfigError`` unless there are sizes, and all can be parsed; those in samples must increase."""
    require(bool(sizes), name, "one or more sizes", sizes)
    for size in sizes:
        if isinstance(size, str):
            parse_size(size, name)
    samples = [size for size in sizes if not isinstance(size, str)]
    increasing = all(a < b for a, b in pairwise(samples)) and min(samples, default=1) >= 1
    require(increasing, name, "increasing sizes > 0", sizes)


def to_samples(text: str, pool: int, name: str) -> int:
    """Samples that ``text`` means in a pool of ``pool``; a per cent is rounded down, so it is never exceeded.

    Raises:
        ConfigError: not a size, none at all once rounded, or more than the pool has.
    """
    size = parse_size(text, name)
    samples = size if isinstance(size, int) else int(size * pool)
    if samples < 1:
        raise ConfigError(f"{name} {text} of {pool} samples is less than one sample")
    if samples > pool:
        raise ConfigError(f"{name} {text} is more than the pool has ({pool} samples)")
    return samples


def resolve_schedule(
    schedule: Sequence[int | str],
    pool: int,
    *,
    budget: str | None,
    initial: str | None,
    rounds: int | None,
    labeled: int | None = None,
) -> tuple[int, ...]:
    """Labelled-set sizes in samples, increasing.

    ``budget`` ends the schedule: sizes from it on are dropped and it is added. With ``initial`` or ``rounds``
    the sizes in between are not the schedule's but ``rounds`` even steps (default: as many as were left),
    size ``r`` being ``initial + floor(r * (last - initial) / rounds)``.

    Args:
        schedule: Sizes, those as text see `to_samples`.
        pool: Number of samples in the pool.
        budget: Last size; None = the schedule's.
        initial: First size; None = the schedule's.
        rounds: Number of steps; None = the schedule's.
        labeled: Labels that there are already: the first size, in place of those up to it. Beside ``initial`` it must be None.

    Raises:
        ConfigError: a size that cannot be, or sizes that do not increase.
    """
    sizes = [to_samples(str(size), pool, "schedule") for size in schedule]
    if labeled is not None:
        sizes = [labeled, *(size for size in sizes if size > labeled)]
        schedule = sizes
    if budget is not None:
        last = to_samples(budget, pool, "budget")
        if initial is None and last <= sizes[0]:
            raise ConfigError(
                f"budget {budget} ({last} samples) is not more than the initial pool ({sizes[0]} samples): "
                "raise it, or lower initial"
            )
        sizes = [size for size in sizes if size < last] + [last]
    if initial is not None or rounds is not None:
        first = sizes[0] if initial is None else to_samples(initial, pool, "initial")
        if first >= sizes[-1]:
            raise ConfigError(
                f"{'schedule' if budget is None else f'budget {budget}'} ({sizes[-1]} samples) is not more than "
                f"initial {initial or schedule[0]} ({first} samples): raise the budget, or lower initial"
            )
        steps = max(len(sizes) - 1, 1) if rounds is None else rounds
        if first + steps > sizes[-1]:
            raise ConfigError(
                f"{steps} rounds from {first} to {sizes[-1]} samples leave less than one sample a round: "
                "raise the budget, or lower initial or rounds"
            )
        sizes = [first + step * (sizes[-1] - first) // steps for step in range(steps + 1)]
    if labeled is not None and len(sizes) < 2:
        raise ConfigError(
            f"schedule must go beyond the {labeled} labels that there are (labeled), got no size above"
        )
    if len(sizes) < 2 or any(after <= before for before, after in pairwise(sizes)):
        raise ConfigError(
            "schedule must be two or more increasing sizes; "
            f"{', '.join(map(str, schedule))} of {pool} samples is {', '.join(map(str, sizes))}"
        )
    return tuple(sizes)
