"""Means, paired differences and areas over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """Mean of ``n`` values, and their standard deviation (of a sample; None of one value)."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of the differences of ``n`` pairs, and its confidence interval by Student's t; None of one pair."""

    mean: float
    interval: tuple[float, float] | None
    n: int

    @property
    def told(self) -> bool:
        """Whether the interval has no zero in it."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of one or more values.

    >>> from prunefuse.experiment.study.statistics import mean_of
    >>> mean_of([1.0, 3.0]).mean
    2.0
    """
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Mean(mean, None, 1)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Mean(mean, math.sqrt(squares / (len(values) - 1)), len(values))


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Ours minus theirs over the seeds that both have; None where there are none.

    >>> from prunefuse.experiment.study.statistics import difference
    >>> difference({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5}).mean
    0.25
    """
    pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not pairs:
        return None
    found = mean_of(pairs)
    if found.deviation is None:
        return Difference(found.mean, None, 1)
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, found.n - 1)) * found.deviation / math.sqrt(found.n)
    return Difference(found.mean, (found.mean - half, found.mean + half), found.n)


def area(points: Mapping[int, float]) -> float | None:
    """The area under a curve by trapezoids, divided by its width: its mean height. None with fewer than two points.

    >>> from prunefuse.experiment.study.statistics import area
    >>> area({100: 0.5, 200: 0.75, 400: 0.75})
    0.7083333333333334
    """
    places = sorted(points)
    if len(places) < 2:
        return None
    pairs = list(pairwise(places))
    whole = math.fsum((b - a) * (points[a] + points[b]) / 2 for a, b in pairs)
    return whole / (places[-1] - places[0])
