"""A data set's own labels, as an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prunefuse.data._batches import label_of
from prunefuse.data._tensors import in_memory


class OwnLabels:
    """An oracle that answers with the labels that a data set holds; it reads only those that it is asked for.

    Labels are read without decoding images from tensors in memory, and from the attribute ``targets`` of torchvision's data
    sets.

    >>> from prunefuse.data import OwnLabels, TensorImages
    >>> OwnLabels(TensorImages(torch.zeros(3, 1, 8, 8), torch.tensor([4, 5, 6])))([2, 0])
    [6, 4]
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def check(self) -> None:
        """Raise ``TypeError`` if the data set has no labels. No label is read, but perhaps the first item."""
        memory = in_memory(self.data)
        if memory is not None:
            found = memory.labels is not None
        elif getattr(self.data, "targets", None) is not None:
            found = True
        else:
            item = self.data[0]
            found = isinstance(item, tuple | list) and len(item) >= 2
        if not found:
            raise TypeError("pool must have labels of its own, got none; give an oracle")

    def __call__(self, indices: Sequence[int]) -> list[int]:
        """The labels of the samples ``indices``.

        Raises:
            TypeError: the data set has no labels.
        """
        memory = in_memory(self.data)
        if memory is not None:
            if memory.labels is None:
                raise TypeError("pool must have labels of its own, got none; give an oracle")
            rows = torch.tensor(indices, dtype=torch.int64, device=memory.labels.device)
            return [int(label) for label in memory.labels[rows]]
        targets = getattr(self.data, "targets", None)
        if targets is not None:
            return [int(targets[i]) for i in indices]
        return [label_of(self.data[i]) for i in indices]
