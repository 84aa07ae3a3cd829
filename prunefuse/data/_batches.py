"""Batches from any map-style data set: tensors in memory directly, everything else through a DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunefuse._seeds import isolated
from prunefuse.data._tensors import in_memory


class Labeled(Dataset[Any]):
    """A data set of some samples of another one, with labels from elsewhere; the other one's labels are not read.

    >>> from prunefuse.data import Labeled
    >>> Labeled(torch.zeros(100, 1, 8, 8), indices=[3, 7], labels=[1, 0])[1][1]
    0

    Args:
        images: A map-style data set. Its items are images, or tuples that start with one.
        indices: The samples, as indices into ``images``.
        labels: One class index for each of ``indices``.

    Raises:
        ValueError: There are not as many labels as indices.
    """

    def __init__(self, images: Any, indices: Sequence[int] | Tensor, labels: Sequence[int] | Tensor) -> None:
        self.images = images
        self.indices = torch.as_tensor(indices, dtype=torch.int64)
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        if self.indices.shape != self.labels.shape:
            raise ValueError(
                f"labels must be one for each of {len(self.indices)} indices, got {len(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return image_of(self.images[int(self.indices[position])]), int(self.labels[position])


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
    data: Any, batches: Iterable[Batch], *, labels: bool, device: torch.device, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images (float32) and labels (int64; None unless asked for) of each batch, on ``device``.

    A sample read through a DataLoader is augmented under a seed of its own, so the result does not depend on
    the number of ``workers``. Labels that are not asked for are not touched.

    Raises:
        TypeError: an item is neither a tensor or array nor a tuple that starts with one, or has no label.
    """
    base, indices, given = data, None, None
    if isinstance(data, Labeled):
        base, indices, given = data.images, data.indices, data.labels
    memory = in_memory(base)
    if memory is None:
        yield from _read_items(data, batches, labels, device, workers)
        return
    own = memory.labels if given is None else given
    if labels and own is None:
        raise TypeError("data must have labels, got images alone")
    for batch in batches:
        rng = None if batch.seed is None else torch.Generator().manual_seed(batch.seed)
        rows = batch.positions if indices is None else indices[batch.positions]
        images = memory.read(rows, device=device, generator=rng)
        if labels and own is not None:
            # Given labels are in the order of the positions, the data set's own in the order of the data set.
            yield images, own[batch.positions.to(own.device)].to(device, torch.int64)
        else:
            yield images, None


def image_of(item: Any) -> Tensor:
    """The image of a data set's item: the item itself, or the first element of a tuple or list."""
    image = item[0] if isinstance(item, tuple | list) else item
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"data must have items that are tensors or arrays, got {type(image).__name__}; "
            "give the data set a transform such as torchvision.transforms.ToTensor()"
        )
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()


def label_of(item: Any) -> int:
    """The label of a data set's item, its second element."""
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise TypeError(f"data must have items (image, label), got {type(item).__name__}")
    return int(item[1])


class _Items(Dataset[Any]):
    """Reads the (position, seed) pairs that the batch sampler hands out."""

    def __init__(self, data: Any, labels: bool) -> None:
        self.data = data
        self.labels = labels

    def __getitem__(self, key: tuple[int, int | None]) -> tuple[Tensor, int]:
        position, seed = key
        if seed is None:
            item = self.data[position]
        else:
            with isolated(seed):
                item = self.data[position]
        return image_of(item), label_of(item) if self.labels else 0


def _read_items(
    data: Any, batches: Iterable[Batch], labels: bool, device: torch.device, workers: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    keys = (
        [(p, None if b.seed is None else b.seed + k) for k, p in enumerate(b.positions.tolist())]
        for b in batches
    )
    loader = DataLoader(
        _Items(data, labels),
        batch_sampler=keys,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        # The loader draws a base seed for its workers from here instead of from the global generator.
        generator=torch.Generator().manual_seed(0),
    )
    for images, targets in loader:
        yield images.to(device, non_blocking=True), targets.to(device, non_blocking=True) if labels else None
