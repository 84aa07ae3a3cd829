"""Images in memory: scaling, normalization, augmentation."""

import numpy as np
import pytest
import torch

from prunefuse.data import Augment, TensorImages
from prunefuse.data._tensors import in_memory


def numbered(n: int = 2, side: int = 3) -> torch.Tensor:
    """(n, 1, side, side) with values 1, 2, 3, ..."""
    return torch.arange(1.0, n * side * side + 1).view(n, 1, side, side)


def test_items_are_image_and_label() -> None:
    data = TensorImages(numbered(), torch.tensor([4, 5]))
    image, label = data[1]
    assert image.shape == (1, 3, 3)
    assert image[0, 0, 0] == 10
    assert label == 5
    assert isinstance(TensorImages(numbered())[0], torch.Tensor)
    assert len(list(data)) == 2  # iteration ends: out of range raises IndexError


def test_bytes_become_unit_range_and_are_normalized() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert TensorImages(images)[0].flatten().tolist() == pytest.approx([0, 0.2, 1])
    normalized = TensorImages(images, mean=(0, 0.2, 0.5), std=(1, 1, 0.25))
    assert normalized[0].flatten().tolist() == pytest.approx([0, 0, 2])
    assert images.flatten().tolist() == [0, 51, 255]


def test_crop_gives_every_shift_and_pads_with_zeros() -> None:
    image = numbered(1)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0, 0]
    crops = {tuple(padded[y : y + 3, x : x + 3].flatten().tolist()) for y in range(3) for x in range(3)}
    data = TensorImages(image, augment=Augment(pad=1, flip=False))
    seen = {tuple(data[0].flatten().tolist()) for _ in range(200)}
    assert seen == crops


def test_flip_is_horizontal_and_per_image() -> None:
    image = numbered(1)
    data = TensorImages(image.expand(64, 1, 3, 3), augment=Augment(pad=0, flip=True))
    batch = data.read(torch.arange(64), generator=torch.Generator().manual_seed(0))
    seen = {tuple(i.flatten().tolist()) for i in batch}
    assert seen == {tuple(image.flatten().tolist()), tuple(image.flip(3).flatten().tolist())}


def test_channels_stay_together() -> None:
    image = torch.rand(1, 3, 4, 4)
    image[:, 1] = 2 * image[:, 0]
    out = TensorImages(image, augment=Augment(pad=2, flip=True)).read(torch.zeros(20, dtype=torch.int64))
    assert out.shape == (20, 3, 4, 4)
    assert torch.equal(out[:, 1], 2 * out[:, 0])


def test_plain_is_the_same_samples_without_augmentation() -> None:
    data = TensorImages(numbered(), torch.tensor([0, 1]), augment=Augment(pad=1, flip=True))
    assert torch.equal(data.plain()[1][0], numbered()[1])
    assert data.plain().images.data_ptr() == data.images.data_ptr()


def test_what_counts_as_in_memory() -> None:
    x, y = numbered(), torch.tensor([1, 0])
    array = in_memory(x.numpy())
    assert array is not None
    assert array.images.data_ptr() == x.data_ptr()
    pair = in_memory(torch.utils.data.TensorDataset(x, y))
    assert pair is not None
    assert pair.labels is y
    assert in_memory(torch.utils.data.Subset(TensorImages(x, y), [0])) is None
    assert in_memory([np.zeros(3)]) is None


def test_wrong_labels_are_named() -> None:
    with pytest.raises(ValueError, match=r"labels must be one for each of 2 images, got shape \(3,\)"):
        TensorImages(numbered(), torch.zeros(3))
    with pytest.raises(ValueError, match="mean and std"):
        TensorImages(numbered(), mean=(0,))
