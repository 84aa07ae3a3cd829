"""From scores of coupled channels to which of them stay: on arrays alone, whatever framework they are from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from prunefuse.pruning.coupling import Ids
from prunefuse.pruning.groups import ROUNDINGS, Axes, Axis, kept_count

RANKINGS = ("local", "global")
NORMALIZATIONS = ("none", "sum", "mean", "max")


def groups_of(axes: Sequence[Ids], count: int) -> Ids:
    """Number the groups: coupled channels that live on the same axes of the same tensors are in one.

    Args:
        axes: For every axis of every tensor, the coupled channel of each index; 0 = stays.
        count: How many coupled channels there are.

    Returns:
        (count,) the group of each; 0 is that of channel 0.
    """
    marks = np.random.default_rng(0).integers(1, 2**63, len(axes), dtype=np.uint64)  # one for each axis
    member = np.zeros(count, dtype=np.uint64)
    for mark, labels in zip(marks, axes, strict=True):
        member[np.unique(labels)] ^= mark
    member[0] = 0
    groups: Ids = np.unique(member, return_inverse=True)[1].astype(np.int64)
    return groups


def normalized(scores: npt.NDArray[np.float64], groups: Ids, by: str) -> npt.NDArray[np.float64]:
    """Scores divided by the sum, mean or maximum of the magnitudes in their group; a group of zeros stays.

    Args:
        scores: One per coupled channel; NaN where there is none, which counts as 0.
        groups: The group of each; that of channel 0 does not count.
        by: One of ``NORMALIZATIONS``.
    """
    if by == "none":
        return scores
    amounts = np.where(np.isnan(scores), 0, np.abs(scores))
    count = int(groups.max()) + 1
    if by == "max":
        whole: npt.NDArray[np.float64] = np.zeros(count)
        np.maximum.at(whole, groups, amounts)
    else:
        whole = np.bincount(groups, weights=amounts, minlength=count).astype(np.float64)
        if by == "mean":
            whole = whole / np.maximum(np.bincount(groups, minlength=count), 1)
    return scores / np.where(whole > 0, whole, 1)[groups]


@dataclass(frozen=True)
class Selection:
    """How many channels are kept, and within what they are ranked.

    Attributes:
        ranking: ``"local"``: every axis loses its lowest channels; ``"global"``: of all coupled channels that may
            be pruned the lowest leave.
        rounding: How kept counts are rounded.
        round_to: Axes keep a multiple of this, where couplings allow it; narrower ones stay whole.
        min_channels: Axes keep at least so many.
        own: Coupled channel -> a ratio that holds for it whatever the others lose.
    """

    ranking: str = "local"
    rounding: str = "floor"
    round_to: int = 1
    min_channels: int = 1
    own: Mapping[int, Fraction] = field(default_factory=dict)

    def choose(self, axes: Axes, scores: npt.NDArray[np.float64], ratio: Fraction) -> npt.NDArray[np.bool_]:
        """Which coupled channels stay if a fraction ``ratio`` is to be removed: one flag for each."""
        ratios = [ratio, Fraction(0), Fraction(1), *sorted(set(self.own.values()))]
        which = np.zeros(len(scores), dtype=np.int64)  # the ratio of each channel
        if self.ranking == "global":
            free = np.array([c for c in axes.channels.tolist() if c not in self.own], dtype=np.int64)
            order = free[np.argsort(-scores[free], kind="stable")]
            stay = kept_count(len(order), ratio, self.rounding)
            which[order[:stay]], which[order[stay:]] = 1, 2
        for channel, value in self.own.items():
            which[channel] = ratios.index(value, 3)
        return axes.settle(scores, lambda axis: self._kept(axis, which, ratios))

    def _kept(self, axis: Axis, which: Ids, ratios: Sequence[Fraction]) -> int:
        """The units that an axis keeps; its places that must stay count as part of what is to be kept."""
        places = np.bincount(which[axis.channels], weights=axis.copies, minlength=len(ratios)).astype(int)
        units = [(int(n) // axis.unit, ratio) for n, ratio in zip(places, ratios, strict=True) if n]
        units.append((axis.fixed // axis.unit, min(ratio for _, ratio in units)))
        wanted = sum((n * (1 - ratio) for n, ratio in units), Fraction(0))
        step = self.round_to // math.gcd(self.round_to, axis.unit)
        count = ROUNDINGS[self.rounding](wanted / step) * step
        least = max(step, -(-self.min_channels // axis.unit))
        return min(axis.width, max(count, -(-least // step) * step))
