"""Batches in two parts: what the host draws, and what a device makes of that; so the second can be recorded there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunefuse.data._batches import Batch, Labeled, targets_of
from prunefuse.data._items import Reading
from prunefuse.data._resident import picked, resident
from prunefuse.data._tensors import Augment, in_memory


@dataclass(frozen=True)
class Drawing:
    """How batches of a data set come to be.

    Attributes:
        draw: From a batch to tensors: its rows, its labels, and what augmentation draws for it.
        make: From these, on the device, to inputs and labels as `prunefuse.data._batches.read` gives them.
    """

    draw: Callable[[Batch], tuple[Tensor, ...]]
    make: Callable[..., tuple[Tensor, Tensor]]


def split_reading(data: Any, device: torch.device, reading: Reading) -> Drawing | None:
    """How batches are made where all images lie on the device and augmentation is known; None where that is not so."""
    base, indices, given = data, None, None
    if isinstance(data, Labeled):
        base, indices, given = data.images, data.indices, data.labels
    memory = None if reading.collate is not None else in_memory(base)
    if memory is None or type(memory.augment) not in (Augment, type(None)):
        return None
    images, augment = memory.images, memory.augment
    labels = memory.labels if given is None else given
    if not isinstance(labels, Tensor) or resident(images, device).device != device:
        return None

    def draw(batch: Batch) -> tuple[Tensor, ...]:
        rows = batch.positions if indices is None else indices[batch.positions]
        chosen = targets_of(labels, batch.positions, reading.targets)
        if augment is None:
            return rows, chosen
        rng = None if batch.seed is None else torch.Generator().manual_seed(batch.seed)
        return rows, chosen, *augment.drawn((len(rows), *images.shape[1:]), rng)

    def make(rows: Tensor, chosen: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        found = picked(images, rows, device)
        if augment is not None:
            found = augment.applied(found, *drawn)
        return memory.finished(found, ids=reading.ids), chosen

    return Drawing(draw, make)
