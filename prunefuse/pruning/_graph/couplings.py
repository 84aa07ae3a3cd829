"""Couplings: which channels of which tensors must leave together.

Every index of every axis of every tensor is a node, known by an integer id. Operators add equalities between
ids; the connected components of those equalities are the coupled channels. Id 0 stands for everything that
must stay: whatever becomes connected to it (batch and spatial axes, inputs and outputs, what no rule
understands) is not pruned.

Where an axis is split in several (heads x head dimension) or several are merged, equality is not enough: what
is removed must be whole slices along one of the factors. Such places are kept as :class:`Split` until all
equalities are known; then one factor of each is chosen and the others stay.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
"""One node id per index of an axis; 0 = fixed."""


def fixed(size: int) -> Ids:
    """The ids of an axis that stays as it is."""
    return np.zeros(size, dtype=np.int64)


@dataclass(frozen=True)
class Value:
    """A tensor as the rules see it: the ids of each of its axes.

    Attributes:
        axes: One array of ids per axis; its length is the size of the axis.
        name: The parameter or buffer that this is, None for what is computed.
        points: The axis whose indices its values are, as those of experts that a router chose; None where none is known.
    """

    axes: tuple[Ids, ...]
    name: str | None = None
    points: Ids | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        return tuple(len(ids) for ids in self.axes)

    def with_axis(self, axis: int, ids: Ids) -> Value:
        """A computed value like this one, with other ids on one axis."""
        axes = list(self.axes)
        axes[axis] = ids
        return Value(tuple(axes))


class Place(NamedTuple):
    """A call: its operator, and the module or node that makes it.

    What is no call has a word in the place of an operator: the ``output`` of the network, the ``forward`` of a module whose
    code has sizes, a tensor that a module ``held``.
    """

    op: str
    module: str

    def __str__(self) -> str:
        return f"{self.module or 'the model itself'} ({self.op})"


class Link(NamedTuple):
    """Nodes that leave together, pair by pair, and the call that makes them; None if no call does."""

    left: Ids
    right: Ids
    where: Place | None


@dataclass(frozen=True)
class Split:
    """An axis whose index runs over several factors, the last one fastest.

    Attributes:
        flat: The ids of the axis.
        factors: The ids of each factor; the product of their lengths is the length of ``flat``.
        where: The call that splits or merges.
    """

    flat: Ids
    factors: tuple[Ids, ...]
    where: Place

    def lanes(self, factor: int, labels: Ids | None = None) -> Ids:
        """(size of the factor, the rest): the places on the flat axis of each index of one factor."""
        flat = self.flat if labels is None else labels[self.flat]
        grid = flat.reshape([len(ids) for ids in self.factors])
        return np.moveaxis(grid, factor, 0).reshape(len(self.factors[factor]), -1)


class Couplings:
    """The nodes, the equalities between them, collected in arrays, and the splits.

    Attributes:
        links: The equalities.
        splits: Those of which no factor is chosen yet.
        choices: Modules with a split of which another factor could have been chosen.
    """

    def __init__(self) -> None:
        self._nodes = 1
        self.links: list[Link] = []
        self._open: list[tuple[int, int]] = []  # first and last node of each such axis, increasing
        self.splits: list[Split] = []
        self.choices: set[str] = set()
        self._known: tuple[Ids, int] = (fixed(1), 0)  # the components by so many of the first links

    def split(self, flat: Ids, sizes: tuple[int, ...], where: Place) -> tuple[Ids, ...]:
        """The ids of the factors of an axis: new ones, or those it was merged from."""
        for earlier in reversed(self.splits):
            if earlier.flat is flat and tuple(map(len, earlier.factors)) == sizes:
                return earlier.factors
        factors = tuple(map(self.open, sizes))
        self.splits.append(Split(flat, factors, where))
        return factors

    def merge(self, factors: tuple[Ids, ...], where: Place) -> Ids:
        """The ids of an axis that runs over the factors: new ones, or those that were split into them."""
        for earlier in reversed(self.splits):
            if len(earlier.factors) == len(factors) and all(map(np.array_equal, earlier.factors, factors)):
                return earlier.flat
        flat = self.fresh(int(np.prod([len(ids) for ids in factors])))
        self.splits.append(Split(flat, factors, where))
        return flat

    def open(self, size: int) -> Ids:
        """Like :meth:`fresh`, for an axis of which nobody needs to know that it stays."""
        ids = self.fresh(size)
        if size > 1:
            self._open.append((int(ids[0]), int(ids[-1])))
        return ids

    def is_open(self, ids: Ids) -> bool:
        """Whether all of these are of one axis that :meth:`open` made: a factor of a split, or a constant."""
        at = bisect_right(self._open, (int(ids.min()), self._nodes)) - 1
        return at >= 0 and int(ids.max()) <= self._open[at][1]

    def fresh(self, size: int) -> Ids:
        """Ids for a new axis that may be pruned. An axis of one channel cannot be, and is fixed."""
        if size == 1:
            return fixed(1)
        first, self._nodes = self._nodes, self._nodes + size
        return np.arange(first, self._nodes, dtype=np.int64)

    def link(self, left: Ids, right: Ids, where: Place | None = None) -> None:
        """Channel i of the one axis leaves with channel i of the other, for all i, because of a call.

        Raises:
            ValueError: the axes differ in length.
        """
        if left.shape != right.shape:
            raise ValueError(f"cannot couple axes of {left.size} and {right.size} channels")
        differ = left != right
        if differ.any():
            self.links.append(Link(left[differ], right[differ], where))

    def resolve(self, smallest: Collection[str] = ()) -> list[Split]:
        """Choose one factor of every split; its slices are coupled and the other factors stay.

        A factor that is the only one not fixed is chosen, then one along which the axis is coupled in whole
        slices already; of several the one that another split has chosen (whole heads, where the head
        dimension of query and key stays), then the largest, then the last.

        Args:
            smallest: Modules of which the smallest factor is chosen, not the largest.

        Returns:
            The splits that have no factor left to prune.
        """
        stuck: list[Split] = []
        chosen: list[Ids] = []
        while self.splits:
            labels = self.components()
            favored = np.unique(labels[np.concatenate([fixed(0), *chosen])])
            forced: list[tuple[Split, list[int]]] = []
            open_: list[tuple[Split, list[int]]] = []
            for split in self.splits:
                live = [k for k, ids in enumerate(split.factors) if labels[ids].any()]
                if labels[split.flat].any() and len(live) > 1:
                    slices = [k for k in live if _equal_within(split.lanes(k, labels))]
                    live = slices[-1:] or live
                (open_ if len(live) > 1 else forced).append((split, live))
            if not forced:
                favorites = [
                    [k for k in live if np.isin(labels[split.factors[k]], favored).all()]
                    for split, live in open_
                ]
                now = [n for n, live in enumerate(favorites) if live] or [0]
                forced = [
                    (split, _best(split, favorites[n] or live, split.where.module in smallest))
                    for n in now
                    for split, live in [open_[n]]
                ]
                self.choices.update(split.where.module for split, _ in forced)
                open_ = [item for n, item in enumerate(open_) if n not in now]
            for split, live in forced:
                if not live and labels[split.flat].any():
                    stuck.append(split)
                self._choose(split, live)
                chosen += [split.factors[k] for k in live]
            self.splits = [split for split, _ in open_]
        return stuck

    def _choose(self, split: Split, live: list[int]) -> None:
        for k, ids in enumerate(split.factors):
            if k not in live:
                self.link(ids, fixed(len(ids)), split.where)
        if not live:
            self.link(split.flat, fixed(len(split.flat)), split.where)
        for k in live:
            lanes = split.lanes(k)
            self.link(lanes.ravel(), np.repeat(split.factors[k], lanes.shape[1]), split.where)

    def components(self) -> Ids:
        """The coupled channel of every node by the equalities so far, numbered from 0; 0 is what stays."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        # Those of before, and the nodes and equalities that are new.
        known, done = self._known
        before = np.concatenate([known, np.arange(len(known), self._nodes) - len(known) + known.max() + 1])
        links = self.links[done:]
        left = before[np.concatenate([fixed(0), *(link.left for link in links)])]
        right = before[np.concatenate([fixed(0), *(link.right for link in links)])]
        size = int(before.max()) + 1
        graph = coo_array((np.ones(left.size, dtype=np.int8), (left, right)), shape=(size, size))
        count, labels = connected_components(graph, directed=False)
        # Rotate the numbering so that the component of node 0 is number 0.
        rotated: Ids = ((labels.astype(np.int64) - labels[0]) % count)[before]
        self._known = (rotated, len(self.links))
        return rotated


def _best(split: Split, live: list[int], smallest: bool) -> list[int]:
    return [(min if smallest else max)(live, key=lambda k: (len(split.factors[k]), k))]


def _equal_within(lanes: Ids) -> bool:
    return bool((lanes == lanes[:, :1]).all())
