"""From scores of coupled channels to which of them stay: on arrays alone, whatever framework they are from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from prunefuse.pruning._graph.couplings import Ids

Key: TypeAlias = tuple[bytes, bytes, int]

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
        copies: How often each of them is there.
        fixed: How many more places the axis has, which must stay.
    """

    channels: Ids
    copies: Ids
    fixed: int

    @property
    def unit(self) -> int:
        """Places that come and go together, at least."""
        return int(np.gcd.reduce(self.copies))

    @property
    def width(self) -> int:
        """How many such units the axis has."""
        return int(self.copies.sum() + self.fixed) // self.unit

    @staticmethod
    def of(labels: Ids) -> Axis | None:
        """The axis with these coupled channels; None if all of it must stay."""
        channels, first, copies = np.unique(labels, return_index=True, return_counts=True)
        live = channels != 0
        if not live.any():
            return None
        order = np.argsort(first[live])
        return Axis(channels[live][order], copies[live][order], int(copies[~live].sum()))

    @property
    def alike(self) -> tuple[bytes, int, int]:
        """What axes have in common that have the same channels and width."""
        return np.sort(self.channels).tobytes(), self.width, self.fixed // self.unit

    @property
    def key(self) -> Key:
        """What equal axes have in common."""
        return np.sort(self.channels).tobytes(), self.copies[np.argsort(self.channels)].tobytes(), self.fixed


@dataclass(frozen=True)
class Axes:
    """Every different axis of a model, the narrow ones first, prepared for any number of settlings.

    Attributes:
        ordered: The axes, each with the number of the set of axes that keep equally many; None for most.
    """

    ordered: tuple[tuple[Axis, int | None], ...]

    @staticmethod
    def of(axes: Iterable[Ids], alike: Sequence[Sequence[Ids]] = ()) -> Axes:
        """The axes with these coupled channels, and those that are to keep the same number of indices."""
        distinct: dict[Key, Axis] = {}
        every = {
            labels.tobytes(): labels for labels in chain(axes, *alike)
        }  # most axes are like an earlier one
        for labels in every.values():
            if axis := Axis.of(labels):
                distinct.setdefault(axis.key, axis)
        ties = _tie(alike)
        # Of axes with the same channels the one with the fewest places comes first: least counts are in places.
        first: dict[tuple[bytes, int, int], int] = {}
        for position, axis in enumerate(distinct.values()):
            first.setdefault(axis.alike, position)
        ordered = sorted(
            distinct.items(),
            key=lambda item: (item[1].width, item[0] not in ties, first[item[1].alike], item[1].unit),
        )
        return Axes(tuple((axis, ties.get(key)) for key, axis in ordered))

    @property
    def channels(self) -> Ids:
        """The coupled channels that may be pruned, each once, increasing."""
        empty = np.zeros(0, dtype=np.int64)
        return np.unique(np.concatenate([empty, *(axis.channels for axis, _ in self.ordered)]))

    def settle(self, scores: npt.NDArray[np.float64], count: Callable[[Axis], int]) -> npt.NDArray[np.bool_]:
        """Decide which coupled channels stay.

        Narrow axes are settled first: a wider one that shares channels with them keeps what they kept and fills
        up from its own, by score, to its count. Where it has not enough of its own, or already too many, it takes
        the nearest count it can have, and never none. A channel may be on an axis several times (behind a
        flattened 7x7 map, a linear layer has every one 49 times); where all are there equally often, each counts
        once.

        Args:
            scores: One per coupled channel, the larger the more worth keeping; ties go to the lower index.
            count: An axis -> how many of its units it keeps.

        Returns:
            One flag per coupled channel.
        """
        places: dict[int, int] = {}
        keep = np.zeros(len(scores), dtype=np.bool_)
        keep[0] = True
        settled = keep.copy()
        for axis, tie in self.ordered:
            total = places[tie] if tie is not None and tie in places else count(axis) * axis.unit
            room = total - axis.fixed - int(axis.copies[keep[axis.channels]].sum())
            best = _best(np.flatnonzero(~settled[axis.channels]), scores[axis.channels])
            fitting = best[np.cumsum(axis.copies[best]) <= room]
            keep[axis.channels[fitting]] = True
            settled[axis.channels] = True
            if not axis.fixed and not keep[axis.channels].any():
                keep[axis.channels[_best(np.arange(len(axis.channels)), scores[axis.channels])[0]]] = True
            if tie is not None:
                places.setdefault(tie, axis.fixed + int(axis.copies[keep[axis.channels]].sum()))
        return keep


def _tie(alike: Sequence[Sequence[Ids]]) -> dict[Key, int]:
    """Axis -> the number of the set it is in; sets that overlap are one, axes that stay whole are in none."""
    ties: dict[Key, int] = {}
    for number, members in enumerate(alike):
        for axis in filter(None, map(Axis.of, members)):
            if (other := ties.setdefault(axis.key, number)) != number:
                ties.update((key, number) for key, tie in ties.items() if tie == other)
    return ties


def _best(candidates: Ids, scores: npt.NDArray[np.float64]) -> Ids:
    return candidates[np.argsort(-scores[candidates], kind="stable")]


RANKINGS = ("local", "global")
GLOBAL_LEAST = Fraction(1, 10)
"""The part of an axis that global ranking leaves: scores of layers compare badly, and one that is gone carries nothing."""
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
        min_fraction: They keep at least this part. None: ``GLOBAL_LEAST`` in global ranking, where no ratio of their own
            says what the channels of an axis lose; else nothing.
        own: Coupled channel -> a ratio that holds for it whatever the others lose.
        multiples: Coupled channel -> its axis keeps a multiple of so many channels: a kernel takes nothing else.
        chosen: Coupled channel, an expert -> how many of its axis stay at least: a router chooses so many.
    """

    ranking: str = "local"
    rounding: str = "floor"
    round_to: int = 1
    min_channels: int = 1
    min_fraction: Fraction | None = None
    own: Mapping[int, Fraction] = field(default_factory=dict)
    chosen: Mapping[int, int] = field(default_factory=dict)
    multiples: Mapping[int, int] = field(default_factory=dict)

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
        if self.multiples:
            step = math.lcm(step, *(self.multiples.get(channel, 1) for channel in axis.channels.tolist()))
        count = ROUNDINGS[self.rounding](wanted / step) * step
        fraction = self.min_fraction
        if fraction is None:
            ranked_globally = self.ranking == "global" and bool(places[1:3].any())
            fraction = GLOBAL_LEAST if ranked_globally else Fraction(0)
        least = max(step, -(-self.min_channels // axis.unit), math.ceil(fraction * axis.width))
        if self.chosen:
            experts = max(self.chosen.get(channel, 0) for channel in axis.channels.tolist())
            least = max(least, experts + axis.fixed // axis.unit if experts else 0)
        return min(axis.width, max(count, -(-least // step) * step))
