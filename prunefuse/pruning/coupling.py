"""Couplings: which channels of which tensors must leave together.

Every index of every axis of every tensor is a node, known by an integer id. Operators add equalities between
ids; the connected components of those equalities are the coupled channels. Id 0 stands for everything that
must stay: whatever becomes connected to it (batch and spatial axes, inputs and outputs, what no rule
understands) is not pruned.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    axes: tuple[Ids, ...]
    name: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        return tuple(len(ids) for ids in self.axes)

    def with_axis(self, axis: int, ids: Ids) -> Value:
        """A computed value like this one, with other ids on one axis."""
        axes = list(self.axes)
        axes[axis] = ids
        return Value(tuple(axes))


class Couplings:
    """The nodes and the equalities between them, collected in arrays and resolved once."""

    def __init__(self) -> None:
        self._nodes = 1
        self._equalities: list[tuple[Ids, Ids]] = []

    def fresh(self, size: int) -> Ids:
        """Ids for a new axis that may be pruned. An axis of one channel cannot be, and is fixed."""
        if size == 1:
            return fixed(1)
        first, self._nodes = self._nodes, self._nodes + size
        return np.arange(first, self._nodes, dtype=np.int64)

    def link(self, left: Ids, right: Ids) -> None:
        """Channel i of the one axis leaves with channel i of the other, for all i.

        Raises:
            ValueError: the axes differ in length.
        """
        if left.shape != right.shape:
            raise ValueError(f"cannot couple axes of {left.size} and {right.size} channels")
        differ = left != right
        if differ.any():
            self._equalities.append((left[differ], right[differ]))

    def components(self) -> Ids:
        """The coupled channel of every node, numbered from 0; 0 is what stays."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        left = np.concatenate([fixed(0), *(pair[0] for pair in self._equalities)])
        right = np.concatenate([fixed(0), *(pair[1] for pair in self._equalities)])
        links = coo_array(
            (np.ones(left.size, dtype=np.int8), (left, right)), shape=(self._nodes, self._nodes)
        )
        count, labels = connected_components(links, directed=False)
        # Rotate the numbering so that the component of node 0 is number 0.
        rotated: Ids = (labels.astype(np.int64) - labels[0]) % count
        return rotated
