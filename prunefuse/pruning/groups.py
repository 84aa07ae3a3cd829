"""How many channels every axis keeps, and which."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from prunefuse.pruning.coupling import Ids

ROUNDINGS: dict[str, Callable[[Fraction], int]] = {
    "floor": math.floor,
    "nearest": lambda x: math.floor(x + Fraction(1, 2)),
    "ceil": math.ceil,
}


def kept_count(width: int, ratio: Fraction, rounding: str) -> int:
    """Channels that remain of ``width``: ``round(width * (1 - ratio))``, exactly, and at least one.

    ``nearest`` rounds halves up.
    """
    return max(1, ROUNDINGS[rounding](width * (1 - ratio)))


@dataclass(frozen=True)
class Axis:
    """A set of coupled channels that lie together on some axis of some tensor.

    Attributes:
        channels: The distinct prunable ones, in the order of the axis.
        fixed: How many more the axis has that must stay.
    """

    channels: Ids
    fixed: int

    @property
    def width(self) -> int:
        """Channels in all."""
        return len(self.channels) + self.fixed


def distinct_axes(axes: Iterable[Ids]) -> list[Axis]:
    """The different ones among axes given as arrays of coupled channels (0 = stays), narrow first.

    A channel may be there several times: behind a flattened 7x7 map, a linear layer has every one 49 times.
    It counts once, and so do 49 fixed places.
    """
    found: dict[tuple[bytes, int], Axis] = {}
    for labels in axes:
        channels, first, copies = np.unique(labels, return_index=True, return_counts=True)
        live = channels != 0
        if live.any():
            fixed = int(copies[~live].sum() // copies[live].min())
            in_order = channels[live][np.argsort(first[live])]
            found.setdefault((channels[live].tobytes(), fixed), Axis(in_order, fixed))
    return sorted(found.values(), key=lambda axis: axis.width)


def settle(
    axes: Iterable[Ids], scores: npt.NDArray[np.float64], count: Callable[[int], int]
) -> npt.NDArray[np.bool_]:
    """Decide which coupled channels stay.

    Narrow axes are settled first: a wider one that shares channels with them keeps what they kept and fills
    up from its own, by score, to its count. Where it has not enough of its own, or already too many, it takes
    the nearest count it can have, and never none.

    Args:
        axes: For every axis of every tensor, the coupled channel of each index; 0 = stays.
        scores: One per coupled channel, the larger the more worth keeping; ties go to the lower index.
        count: Width of an axis -> how many channels it keeps.

    Returns:
        One flag per coupled channel.
    """
    keep = np.zeros(len(scores), dtype=np.bool_)
    keep[0] = True
    settled = keep.copy()
    for axis in distinct_axes(axes):
        free = axis.channels[~settled[axis.channels]]
        wanted = count(axis.width) - axis.fixed - int(keep[axis.channels].sum())
        keep[_best(free, scores)[: max(0, wanted)]] = True
        settled[axis.channels] = True
        if not axis.fixed and not keep[axis.channels].any():
            keep[_best(axis.channels, scores)[0]] = True
    return keep


def _best(channels: Ids, scores: npt.NDArray[np.float64]) -> Ids:
    return channels[np.argsort(-scores[channels], kind="stable")]
