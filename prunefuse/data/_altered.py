"""Data sets in memory made smaller, unbalanced or redundant, so that a study can ask when selecting pays."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from prunefuse._options import require
from prunefuse._seeds import generator
from prunefuse.data._tensors import Augment, TensorImages
from prunefuse.data._types import Data


def averaged(data: Data, size: int) -> Data:
    """Images averaged over squares of pixels to ``size`` x ``size``; training images are shifted by as much less.

    Raises:
        ConfigError: the side of the images is not a multiple of ``size``.
    """
    channels, height, width = data.input_shape
    fits = height == width and height % size == 0
    whole = f"a divisor of {height}" if height == width else "left out, as images are not square"
    require(fits, "image_size", f"{whole}, the images of {data.name} being {height} x {width}", size)
    factor = height // size

    def small(part: TensorImages) -> TensorImages:
        images = part.images
        mean = functional.avg_pool2d(images.float(), factor)
        images = mean.round().to(torch.uint8) if images.dtype == torch.uint8 else mean
        augment = part.augment
        if augment is not None:
            augment = Augment(-(-augment.pad // factor), augment.flip)
        return TensorImages(images, part.labels, mean=part.mean, std=part.std, augment=augment)

    train = small(data.train)
    shape = (channels, size, size)
    return replace(data, train=train, pool=train.plain(), test=small(data.test), input_shape=shape)


def altered(data: Data, long_tail: float, duplicates: float, seed: int) -> Data:
    """The data set with a pool whose classes get rarer, and then a part of which is copies of the rest.

    Raises:
        ConfigError: that is asked for of images that are not in memory, or of texts.
    """
    for name, value, alters in (
        ("long_tail", long_tail, long_tail != 1),
        ("duplicates", duplicates, duplicates != 0),
    ):
        able = isinstance(data.train, TensorImages) and data.vocabulary is None
        require(
            able or not alters, name, f"left out with {data.name}, which is no set of images in memory", value
        )
        one = able and data.train.labels is not None and data.train.labels.ndim == 1
        one = one and not data.train.labels.is_floating_point()
        require(
            one or not alters,
            name,
            f"left out with {data.name}, whose samples have not one class each",
            value,
        )
    if long_tail != 1:
        data = long_tailed(data, long_tail, seed)
    return duplicated(data, duplicates, seed) if duplicates else data


def long_tailed(data: Data, factor: float, seed: int) -> Data:
    """The pool with classes that get rarer from the first to the last, which has a ``factor``-th of what the first has.

    Of C classes, class k keeps n · factor^(−k / (C − 1)) of the samples of the largest one, at least one. Test data stay.
    """
    labels = data.pool.labels
    counts = torch.bincount(labels, minlength=data.num_classes)
    source = generator(seed, "long tail")
    chosen = []
    for place in range(data.num_classes):
        own = (labels == place).nonzero().flatten()
        wanted = float(counts.max()) * factor ** (-place / max(data.num_classes - 1, 1))
        kept = min(len(own), max(1, int(wanted)))
        chosen.append(own[torch.randperm(len(own), generator=source)[:kept]])
    return _at(data, torch.cat(chosen).sort().values)


def duplicated(data: Data, part: float, seed: int) -> Data:
    """The pool with ``part`` of its samples replaced by copies of the others, each as often as the others or once more."""
    count = len(data.pool)
    originals = max(1, round(count * (1 - part)))
    order = torch.randperm(count, generator=generator(seed, "duplicates"))[:originals]
    return _at(data, order.repeat(-(-count // originals))[:count].sort().values)


def _at(data: Data, indices: Tensor) -> Data:
    """The data set with these samples of the pool, which are called what they were; copies have their number, too."""
    train = data.train
    changed = TensorImages(
        train.images[indices], train.labels[indices], mean=train.mean, std=train.std, augment=train.augment
    )
    ids, seen = [], dict[int, int]()
    for index in indices.tolist():
        name = str(index) if data.ids is None else data.ids[index]
        copy = seen[index] = seen.get(index, 0) + 1
        ids.append(name if copy == 1 else f"{name}, copy {copy}")
    return replace(data, train=changed, pool=changed.plain(), ids=tuple(ids))
