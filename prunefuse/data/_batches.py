"""Batches from any map-style data set: tensors in memory directly, everything else through a DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunefuse._seeds import isolated
from prunefuse.data._items import (
    CLASSES,
    PLAIN,
    Failure,
    Reading,
    Targets,
    collated,
    has_several,
    image_of,
    inputs_of,
    item_of,
    label_of,
    mapped,
    with_label,
)
from prunefuse.data._tensors import in_memory
from prunefuse.ops.integers import class_index, row_indices


class Labeled(Dataset[Any]):
    """A data set of some samples of another one, with labels from elsewhere; the other one's labels are not read.

    Items are pairs of an image and a label. Those that are mappings with several inputs stay so, with the label in its place.

    >>> from prunefuse.data import Labeled
    >>> Labeled(torch.zeros(100, 1, 8, 8), indices=[3, 7], labels=[1, 0])[1][1]
    0

    Args:
        images: A map-style data set. Its items are images, or tuples that start with one.
        indices: The samples, as indices into ``images``, or as a mask of them.
        labels: One for each of the samples.
        targets: What labels are, such as a `prunefuse.tasks.Task`. By default class indices.

    Raises:
        TypeError: An index or a label is not a whole number. The message names the sample.
        ValueError: There are not as many labels as indices, or an index is out of range.
    """

    def __init__(
        self,
        images: Any,
        indices: Sequence[int] | Tensor,
        labels: Sequence[Any] | Tensor,
        targets: Targets = CLASSES,
    ) -> None:
        self.images = images
        self.indices = row_indices("indices", indices, len(images), "images")
        self.targets = targets
        self.labels: Any = (
            _given_labels(labels, self.indices)
            if targets is CLASSES
            else _own_labels(labels, self.indices, targets)
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        item = item_of(self.images, int(self.indices[position]))
        if has_several(item):
            label = self.labels[position]
            return with_label(item, int(label) if isinstance(self.labels, Tensor) else label)
        if self.targets is not CLASSES:
            return inputs_of(item, Reading(ids=True)), self.labels[position]
        return image_of(item), int(self.labels[position])


def _own_labels(labels: Any, indices: Tensor, targets: Targets) -> list[Any]:
    if len(labels) != len(indices):
        raise ValueError(f"labels must be one for each of {len(indices)} indices, got {len(labels)}")
    places = indices.tolist()
    return [targets.label("labels", place, label) for place, label in zip(places, labels, strict=True)]


def _given_labels(labels: Any, indices: Tensor) -> Tensor:
    if isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == indices.shape:
        return labels
    try:
        values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    except TypeError:
        values = None
    if not isinstance(values, list) or isinstance(labels, Mapping | Set | str | bytes):
        kind = type(labels).__name__
        raise TypeError(f"labels must be a sequence of one for each of {len(indices)} indices, got {kind}")
    if len(values) != len(indices):
        raise ValueError(f"labels must be one for each of {len(indices)} indices, got {len(values)}")
    places = indices.tolist()
    return torch.tensor(
        [class_index("labels", place, label) for place, label in zip(places, values, strict=True)],
        dtype=torch.int64,
    )


@dataclass(frozen=True)
class Batch:
    """``positions`` (int64) in the data set; under ``seed`` their augmentation is repeatable."""

    positions: Tensor
    seed: int | None = None


def batch_count(samples: int, batch_size: int) -> int:
    """Batches of an epoch: ceil(samples / batch_size), but no batch of one sample if there are two."""
    return max(1, min(-(-samples // batch_size), samples // 2 if batch_size > 1 else samples))


def shuffled(samples: int, batch_size: int, generator: torch.Generator) -> list[Batch]:
    """One epoch in random order, in `batch_count` batches whose sizes differ by at most one.

    Sizes are even, without a small remainder: a last batch of one sample has no batch statistics.
    """
    count = batch_count(samples, batch_size)
    order = torch.randperm(samples, generator=generator).tensor_split(count)
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    return [Batch(positions, seed) for positions, seed in zip(order, seeds, strict=True)]


def in_order(positions: Tensor, batch_size: int) -> list[Batch]:
    """``positions`` as they are, in batches of ``batch_size`` and a remainder."""
    return [Batch(part) for part in torch.split(positions, batch_size)]


def read(
    data: Any,
    batches: Iterable[Batch],
    *,
    labels: bool,
    device: torch.device,
    workers: int = 0,
    reading: Reading = PLAIN,
) -> Iterator[tuple[Any, Any]]:
    """Inputs (float32 images, or as `Reading` says) and labels (None unless asked for) of each batch, on ``device``.

    A sample read through a DataLoader is augmented under a seed of its own, so the result does not depend on
    the number of ``workers``. Labels that are not asked for are not touched.

    Raises:
        TypeError: an item is neither a tensor or array nor a tuple that starts with one, or its label is not a whole number.
    """
    base, indices, given = data, None, None
    if isinstance(data, Labeled):
        base, indices, given = data.images, data.indices, data.labels
    memory = None if reading.collate is not None else in_memory(base)
    if memory is None:
        yield from _read_items(data, batches, labels, device, workers, reading)
        return
    own = memory.labels if given is None else given
    if labels and own is None:
        raise TypeError("data must have labels, got images alone")
    for batch in batches:
        rng = None if batch.seed is None else torch.Generator().manual_seed(batch.seed)
        rows = batch.positions if indices is None else indices[batch.positions]
        images = memory.read(rows, device=device, generator=rng, ids=reading.ids)
        if labels and own is not None:
            # Given labels are in the order of the positions, the data set's own in the order of the data set.
            chosen = targets_of(own, batch.positions, reading.targets)
            yield images, mapped(lambda one: one.to(device, non_blocking=True), chosen)
        else:
            yield images, None


def always_same(data: Any) -> bool:
    """Whether samples are the same each time they are read: in memory, and not augmented."""
    memory = in_memory(data.images if isinstance(data, Labeled) else data)
    return memory is not None and memory.augment is None


def targets_of(labels: Any, positions: Tensor, targets: Targets) -> Any:
    """The labels of some positions, as a batch."""
    if isinstance(labels, Tensor):
        return targets.stored("data", rows_of(labels, positions), positions)
    return targets.targets([labels[position] for position in positions.tolist()])


def rows_of(labels: Tensor, rows: Tensor) -> Tensor:
    """Some of the labels, also of unsigned types that torch does not index."""
    if labels.dtype in (torch.uint16, torch.uint32, torch.uint64):
        labels = labels.to(torch.int64)
    return labels[rows.to(labels.device)]


class _Items(Dataset[Any]):
    """Reads the (position, seed) pairs that the batch sampler hands out."""

    def __init__(self, data: Any, labels: bool, reading: Reading) -> None:
        self.data = data
        self.labels = labels
        self.reading = reading

    def __getitem__(self, key: tuple[int, int | None]) -> Any:
        position, seed = key
        if torch.utils.data.get_worker_info() is None:
            return self._read(position, seed)
        try:
            return self._read(position, seed)
        except Exception as error:  # torch would make the worker's traceback its message
            return Failure.of(error)

    def _read(self, position: int, seed: int | None) -> Any:
        base, sample, given = self.data, position, None
        if isinstance(self.data, Labeled):
            base, sample = self.data.images, int(self.data.indices[position])
            given = self.data.labels[position]
            given = int(given) if isinstance(self.data.labels, Tensor) else given
        with nullcontext() if seed is None else isolated(seed):
            item = item_of(base, sample)
        if self.reading.collate is not None:
            return item if given is None else with_label(item, given)
        inputs = inputs_of(item, self.reading)
        if not self.labels:
            return inputs, 0
        targets = self.reading.targets
        return inputs, label_of(item, "data", sample, targets) if given is None else given


def _read_items(
    data: Any,
    batches: Iterable[Batch],
    labels: bool,
    device: torch.device,
    workers: int,
    reading: Reading,
) -> Iterator[tuple[Any, Any]]:
    keys = (
        [(p, None if b.seed is None else b.seed + k) for k, p in enumerate(b.positions.tolist())]
        for b in batches
    )
    loader = DataLoader(
        _Items(data, labels, reading),
        batch_sampler=keys,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        collate_fn=partial(collated, reading=reading, labels=labels),
        # The loader draws a base seed for its workers from here instead of from the global generator.
        generator=torch.Generator().manual_seed(0),
    )
    for batch in loader:
        if isinstance(batch, Failure):
            batch.throw()
        yield mapped(lambda one: one.to(device, non_blocking=True), batch)
