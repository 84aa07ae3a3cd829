"""What crosses to another device when batches are read; the meta device stands for a GPU where there is none."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prunefuse.data import Augment, Labeled, TensorImages
from prunefuse.data._batches import read, shuffled

META = torch.device("meta")


class Crossings(TorchDispatchMode):
    """Bytes of every copy from one device to another, and whether the host waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to = kwargs.get("device")
        if func.overloadpacket is torch.ops.aten._to_copy and to is not None and to != args[0].device:
            self.found.append((args[0].nbytes, not kwargs.get("non_blocking", False)))
        return func(*args, **kwargs)


def epochs(data: Any, count: int) -> Iterator[tuple[Any, Any]]:
    order = torch.Generator().manual_seed(0)
    batches = (batch for _ in range(count) for batch in shuffled(len(data), 10, order))
    return read(data, batches, labels=True, device=META)


@pytest.mark.parametrize("augment", [None, Augment(pad=1, flip=True)])
def test_images_cross_once_and_a_batch_waits_for_nothing(augment: Augment | None) -> None:
    images = torch.randint(255, (100, 3, 8, 8), dtype=torch.uint8)
    pool = TensorImages(images, mean=(0.5,) * 3, std=(0.2,) * 3, augment=augment)
    data = Labeled(pool, torch.arange(50), torch.arange(50) % 10)
    with Crossings() as first:
        batch, labels = next(epochs(data, 1))
    assert batch.device == labels.device == META
    assert (images.nbytes, True) in first.found
    with Crossings() as later:
        assert sum(1 for _ in epochs(data, 2)) == 10
    assert not any(waits for _, waits in later.found)
    # Positions, labels, and what augmentation has drawn: rows and columns of each image.
    assert all(size <= 10 * 8 * 8 for size, _ in later.found)


def test_the_pool_and_the_same_images_with_augmentation_share_what_has_crossed() -> None:
    images = torch.zeros(100, 1, 8, 8)
    train = TensorImages(images, torch.zeros(100, dtype=torch.int64), augment=Augment(pad=1, flip=False))
    list(epochs(train, 1))
    with Crossings() as seen:
        list(epochs(train.plain(), 1))
    assert all(size < images.nbytes for size, _ in seen.found)


def test_images_that_were_changed_cross_again() -> None:
    data = TensorImages(torch.zeros(100, 1, 8, 8), torch.zeros(100, dtype=torch.int64))
    list(epochs(data, 1))
    data.images += 1
    with Crossings() as seen:
        list(epochs(data, 1))
    assert (data.images.nbytes, True) in seen.found


def test_mean_and_deviation_can_be_changed() -> None:
    data = TensorImages(torch.ones(2, 1, 1, 1), mean=(0.0,), std=(1.0,))
    assert data.read(torch.tensor([0])).item() == 1
    data.mean = (1.0,)
    assert data.read(torch.tensor([0])).item() == 0


@pytest.mark.cuda
def test_no_step_of_a_training_waits_for_the_gpu() -> None:
    from prunefuse import Recipe, models
    from prunefuse.training import train

    images = torch.randint(255, (64, 3, 8, 8), dtype=torch.uint8)
    data = TensorImages(
        images, torch.arange(64) % 10, mean=(0.5,) * 3, std=(0.2,) * 3, augment=Augment(pad=1, flip=True)
    )
    model = models.resnet8().cuda()
    steps: list[int] = []

    def on_batch(outputs: Tensor, labels: Tensor, positions: Tensor) -> None:
        # From the first step on, whose images have crossed; an epoch may wait at its end.
        torch.cuda.set_sync_debug_mode("error")
        steps.append(len(positions))
        if len(steps) == 8:  # the epoch's end waits for its sums
            torch.cuda.set_sync_debug_mode("default")

    try:
        train(model, data, Recipe(epochs=1, batch_size=8, lr=0.01), on_batch=on_batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 8
