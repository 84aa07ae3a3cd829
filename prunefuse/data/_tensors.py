"""Images in memory, read and augmented a batch at a time: no per-sample overhead for small data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from prunefuse.data._items import scaled
from prunefuse.data._resident import picked, resident
from prunefuse.ops.arrays import as_tensor
from prunefuse.ops.integers import class_index


@dataclass(frozen=True)
class Augment:
    """A random crop after zero padding by ``pad`` pixels, then, with ``flip``, a random horizontal flip.

    >>> from prunefuse.data import Augment, TensorImages
    >>> data = TensorImages(torch.zeros(10, 3, 32, 32), augment=Augment(pad=4, flip=True))
    """

    pad: int
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), one draw per image from ``generator`` (a CPU one; None = global)."""
        return self.applied(images, *self.drawn(images.shape, generator))

    def drawn(self, shape: Sequence[int], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Rows (N, H) and columns (N, W) of the padded images of this shape (N, C, H, W), on the CPU."""
        n, _, height, width = shape
        top, left = torch.randint(2 * self.pad + 1, (2, n, 1), generator=generator)
        rows = top + torch.arange(height)
        columns = left + torch.arange(width)
        if self.flip:
            flipped = torch.rand(n, generator=generator) < 0.5
            columns = torch.where(flipped[:, None], columns.flip(1), columns)
        return rows, columns

    def applied(self, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The images at these rows and columns."""
        rows, columns = (one.to(images.device, non_blocking=True) for one in (rows, columns))
        padded = functional.pad(images, (self.pad,) * 4)
        image = torch.arange(len(images), device=images.device)[:, None, None]
        cropped = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
        return cropped.permute(0, 3, 1, 2).contiguous()


class TensorImages(Dataset[Any]):
    """A map-style data set over tensors: items are ``(image, label)``, or only the image without labels.

    >>> from prunefuse.data import TensorImages
    >>> TensorImages(torch.full((5, 1, 2, 2), 255, dtype=torch.uint8), torch.arange(5))[3][0].max().item()
    1.0

    Args:
        images: (N, C, H, W) or any (N, ...). They are read as float32; uint8 is scaled to [0, 1].
        labels: (N,) class indices, (N, ...) of another task, or None.
        mean: One number for each channel, subtracted after scaling. It goes with ``std``.
        std: One number for each channel, which the result is divided by.
        augment: What is done to the raw images each time they are read.
        as_is: Hand the images over in their own type, unscaled, such as numbers of words.

    Raises:
        ValueError: Labels of another number than images, or only one of ``mean`` and ``std``.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: Augment | None = None,
        as_is: bool = False,
    ) -> None:
        if labels is not None and labels.shape[:1] != images.shape[:1]:
            raise ValueError(
                f"labels must be one for each of {len(images)} images, got shape {tuple(labels.shape)}"
            )
        if (mean is None) != (std is None):
            raise ValueError("mean and std must be both given or neither, got one")
        if as_is and mean is not None:
            raise ValueError("mean must be None with as_is, which changes nothing, got both")
        self.images = images
        self.labels = labels
        self.mean = mean
        self.std = std
        self.augment = augment
        self.as_is = as_is
        self._scaled: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def plain(self) -> TensorImages:
        """The same samples without augmentation; nothing is copied."""
        return TensorImages(self.images, self.labels, mean=self.mean, std=self.std, as_is=self.as_is)

    def read(
        self,
        indices: Tensor,
        *,
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
        ids: bool = False,
    ) -> Tensor:
        """The images ``indices`` (int64) as float32 on ``device``, augmented from ``generator``; with ``ids`` as int64."""
        images = picked(self.images, indices, device)
        if self.augment is not None:
            images = self.augment(images, generator)
        return self.finished(images, ids=ids)

    def finished(self, images: Tensor, *, ids: bool = False) -> Tensor:
        """Raw images, augmented or not, in the type and on the scale that they are read in."""
        if self.as_is:
            return images
        images = scaled(images, ids=ids)
        if self.mean is not None and self.std is not None:
            shape = (-1,) + (1,) * (images.ndim - 2)
            mean, std = (resident(one, images.device).view(shape) for one in self._scale())
            images = (images - mean) / std
        return images

    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation as tensors, made once for the values that they have."""
        given = (self.mean, self.std)
        if self._scaled is None or self._scaled[0] != given:
            self._scaled = (given, (torch.tensor(self.mean), torch.tensor(self.std)))
        return self._scaled[1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} out of range for {len(self)} images")
        image = self.read(torch.tensor([index]))[0]
        if self.labels is None:
            return image
        label = self.labels[index]
        return image, class_index("data", index, label) if self.labels.ndim == 1 and _whole(label) else label


def in_memory(data: Any) -> TensorImages | None:
    """``data`` as `TensorImages` if it is tensors or an array in memory, else None; nothing is copied that torch can read."""
    if isinstance(data, TensorImages):
        return data
    if isinstance(data, Tensor | np.ndarray):
        return TensorImages(_indexable(as_tensor("data", data)))
    if type(data) is TensorDataset and 1 <= len(data.tensors) <= 2:
        images, *labels = data.tensors
        return TensorImages(as_tensor("data", images), labels[0] if labels else None)
    return None


def _whole(label: Tensor) -> bool:
    return not label.dtype.is_floating_point or bool(label == label.round())


def _indexable(images: Tensor) -> Tensor:
    """Unsigned numbers that torch does not index in a type that holds them."""
    wider = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
    return images.to(wider[images.dtype]) if images.dtype in wider else images
