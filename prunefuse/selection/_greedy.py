"""Strategies of regression: greedy sampling in outputs and inputs, and the variance of passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunefuse.errors import TooFewRowsError


@dataclass(frozen=True)
class Found:
    """Rows in the order of their picks, on the CPU, and how many rows had no finite numbers."""

    rows: Tensor
    unselectable: int


def greedy_sampling(values: Tensor, b: int, labeled: int, *, features: Tensor | None = None) -> Found:
    """``b`` of the samples after the first ``labeled`` ones, each farthest from all that are labeled or picked.

    Distances are those of ``values``; with ``features``, products of both, of which the least over labeled and picked ones
    counts. The value of a picked sample is what was predicted for it. On a GPU it waits for the device at the end.

    Args:
        values: (labeled + N, D): the labels of the labeled samples, then what is predicted for the others.
        b: How many to pick.
        labeled: How many are labeled.
        features: (labeled + N, d), or None.

    Returns:
        Rows among the N others.

    Raises:
        TooFewRowsError: fewer than ``b`` have finite numbers.

    References:
        Wu, Lin and Huang 2019, *Active Learning for Regression Using Greedy Sampling*: GSy, and with features iGS.
    """
    parts = [values.double()] + ([] if features is None else [features.double()])
    usable = torch.stack([part.isfinite().all(1) for part in parts]).all(0)
    others, known = usable[labeled:], usable[:labeled].nonzero()[:, 0]
    count = int(others.sum())
    if count < b:
        said = f"b is {b}, but only {count} of {len(others)} rows can be selected (the others are not finite)"
        raise TooFewRowsError(said, count, len(others))
    ours = [part[labeled:].where(others[:, None], 0) for part in parts]

    def distance(centers: list[Tensor]) -> Tensor:
        """(N,) to one sample."""
        pairs = zip(ours, centers, strict=True)
        found: list[Tensor] = [(part - center).square().sum(1).sqrt() for part, center in pairs]
        return found[0] if len(found) == 1 else found[0] * found[1]

    least = torch.full((len(others),), torch.inf, dtype=torch.float64, device=values.device)
    for row in known.tolist():
        least = torch.minimum(least, distance([part[row] for part in parts]))
    if not len(known) and b:  # nothing to be far from: the sample nearest to the mean comes first
        middle = [part[others].mean(0) for part in ours]
        least = -distance(middle)
    picks: list[Tensor] = []
    free = others.clone()
    for number in range(b):
        pick = least.where(free, -torch.inf).argmax()
        picks.append(pick)
        free[pick] = False
        now = distance([part[pick] for part in ours])
        least = now if number == 0 and not len(known) else torch.minimum(least, now)
    rows = torch.stack(picks).cpu() if picks else torch.empty(0, dtype=torch.int64)
    return Found(rows, len(others) - count)


class PassVariance:
    """The variance of what passes predict, summed over the numbers that are predicted; with memory for two passes."""

    def __init__(self) -> None:
        self.passes = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0

    def update(self, outputs: Tensor) -> None:
        """Add a pass: (N, D)."""
        self.passes += 1
        values = outputs.double()
        delta = values - self._mean
        self._mean = self._mean + delta / self.passes
        self._squares = self._squares + delta * (values - self._mean)

    def result(self) -> Tensor:
        """(N,) float64."""
        variance: Tensor = self._squares / self.passes
        return variance.sum(1)
