"""A data set's own labels, as an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prunefuse._seeds import isolated
from prunefuse.data._batches import rows_of
from prunefuse.data._items import CLASSES, LABEL_KEYS, Targets, item_of, label_of
from prunefuse.data._tensors import in_memory
from prunefuse.ops.integers import class_index

_NONE = "pool must have labels of its own, got none; give an oracle"
_LOOKED_AT = 8  # items that are compared with `targets`


class OwnLabels:
    """An oracle that answers with the labels that a data set holds; it reads only those that it is asked for.

    A label is what the sample's item says. Images are decoded for it, but for tensors in memory, and for torchvision's data
    sets without a ``target_transform``. Of these ``targets`` is taken, and compared with some of the items asked for.

    >>> from prunefuse.data import OwnLabels, TensorImages
    >>> OwnLabels(TensorImages(torch.zeros(3, 1, 8, 8), torch.tensor([4, 5, 6])))([2, 0])
    [6, 4]
    """

    def __init__(self, data: Any, targets: Targets = CLASSES) -> None:
        self.data = data
        self.targets = targets

    def check(self) -> None:
        """Raise ``TypeError`` if the data set has no labels. No label is read, but perhaps the first item."""
        memory = in_memory(self.data)
        if memory is not None:
            found = memory.labels is not None
        elif listed_labels(self.data) is not None:
            found = True
        else:
            item = item_of(self.data, 0)
            found = (isinstance(item, tuple | list) and len(item) >= 2) or (
                isinstance(item, dict) and any(key in item for key in LABEL_KEYS)
            )
        if not found:
            raise TypeError(_NONE)

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        """The labels of the samples ``indices``.

        Raises:
            TypeError: The data set has no labels, or one of those asked for is not a whole number.
        """
        memory = in_memory(self.data)
        if memory is None:
            return labels_at(self.data, "pool", indices, self.targets)
        if memory.labels is None:
            raise TypeError(_NONE)
        rows = torch.tensor(indices, dtype=torch.int64)
        found = self.targets.stored("pool", rows_of(memory.labels, rows), rows)
        return found.tolist() if self.targets is CLASSES else list(found)


def labels_at(data: Any, name: str, indices: Sequence[int], targets: Targets = CLASSES) -> list[Any]:
    """Labels of samples of a data set that is not in memory, strictly checked; ``name`` is that of the argument."""
    listed = listed_labels(data) if targets is CLASSES else None
    if listed is not None:
        labels = [class_index(name, i, listed[i]) for i in indices]
        step = max(1, len(indices) // _LOOKED_AT)
        if _read(data, name, indices[::step], targets) == labels[::step]:
            return labels
    return _read(data, name, indices, targets)


def _read(data: Any, name: str, indices: Sequence[int], targets: Targets) -> list[Any]:
    with isolated(0):  # transforms may draw
        return [label_of(item_of(data, i), name, i, targets) for i in indices]


def listed_labels(data: Any) -> Sequence[Any] | None:
    """``targets`` of a data set where its items say the same by their code: torchvision's and ours, without transforms."""
    reader = next((kind for kind in type(data).__mro__ if "__getitem__" in vars(kind)), None)
    targets = getattr(data, "__dict__", {}).get("targets")
    if reader is None or not reader.__module__.startswith(("torchvision.datasets.", "prunefuse.data.")):
        return None
    joint = getattr(data, "transforms", None)
    transforms = (getattr(data, "target_transform", None), getattr(joint, "target_transform", None))
    if transforms != (None, None) or targets is None or len(targets) != len(data):
        return None
    return targets  # type: ignore[no-any-return]
