"""Reading batches: sizes, order, repeatability, and that labels not asked for stay untouched."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prunefuse._seeds import generator
from prunefuse.data import Augment, Labeled, OwnLabels, TensorImages
from prunefuse.data._batches import Batch, batch_count, in_order, read, shuffled

CPU = torch.device("cpu")


class Forbidden:
    """A label that must not be touched."""

    def _touched(self, *_: object) -> Any:
        raise AssertionError("the label was touched")

    __int__ = __index__ = __float__ = __eq__ = __hash__ = __iter__ = __array__ = _touched


class Items:
    """A map-style data set that is not in memory; augments with torch's, NumPy's and Python's global generators."""

    def __init__(self, n: int, label: Any = None) -> None:
        self.n = n
        self.label = label

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        noise = 0.4 * (torch.rand(1) + float(np.random.rand()))  # noqa: NPY002
        return torch.full((1, 2, 2), float(i)) + noise, i % 3 if self.label is None else self.label


@pytest.mark.parametrize(
    ("samples", "batch_size", "sizes"),
    [
        (129, 128, [65, 64]),
        (7, 3, [3, 2, 2]),
        (3, 2, [3]),
        (5, 2, [3, 2]),
        (1, 8, [1]),
        (3, 1, [1, 1, 1]),
        (8, 8, [8]),
    ],
)
def test_batches_are_even_and_never_a_single_sample(samples: int, batch_size: int, sizes: list[int]) -> None:
    batches = shuffled(samples, batch_size, generator(0))
    assert [len(b.positions) for b in batches] == sizes
    assert batch_count(samples, batch_size) == len(sizes)
    assert sorted(torch.cat([b.positions for b in batches]).tolist()) == list(range(samples))


def test_epochs_differ_and_repeat_under_one_seed() -> None:
    first, second = generator(3), generator(3)
    epochs = [torch.cat([b.positions for b in shuffled(20, 8, first)]).tolist() for _ in range(2)]
    again = [torch.cat([b.positions for b in shuffled(20, 8, second)]).tolist() for _ in range(2)]
    assert epochs == again
    assert epochs[0] != epochs[1]


def test_labels_from_elsewhere_follow_their_samples() -> None:
    memory = TensorImages(torch.arange(6.0).view(6, 1, 1, 1), torch.full((6,), 9))
    items = Items(6)
    for data in (memory, items):
        labeled = Labeled(data, [4, 1, 5], [0, 2, 1])
        assert len(labeled) == 3
        [(images, labels)] = read(labeled, in_order(torch.tensor([2, 0]), 8), labels=True, device=CPU)
        assert labels is not None
        assert labels.tolist() == [1, 0]
        assert images.flatten(1)[:, 0].int().tolist() == [5, 4]
    assert labeled[1][1] == 2


def test_own_labels_stay_untouched_unless_asked_for() -> None:
    data = Items(4, Forbidden())
    batches = in_order(torch.arange(4), 3)
    assert [len(x) for x, _ in read(data, batches, labels=False, device=CPU)] == [3, 1]
    given = Labeled(data, range(4), [0, 1, 2, 3])
    assert [y.tolist() for _, y in read(given, batches, labels=True, device=CPU) if y is not None] == [
        [0, 1, 2],
        [3],
    ]
    with pytest.raises(AssertionError, match="touched"):
        list(read(data, batches, labels=True, device=CPU))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_augmentation_depends_on_the_seed_and_not_on_workers(workers: int) -> None:
    batches = [Batch(torch.tensor([0, 1]), 5), Batch(torch.tensor([2]), 6), Batch(torch.tensor([0, 1]), 5)]
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    images = [x for x, _ in read(Items(3), batches, labels=True, device=CPU, workers=workers)]
    reference = [x for x, _ in read(Items(3), batches, labels=True, device=CPU)]
    assert all(torch.equal(a, b) for a, b in zip(images, reference, strict=True))
    assert torch.equal(images[0], images[2])
    assert images[0][0, 0, 0, 0] + 1 != images[0][1, 0, 0, 0]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_augmentation_in_memory_depends_on_the_seed() -> None:
    data = TensorImages(torch.rand(8, 1, 6, 6), augment=Augment(2, True))
    batches = [Batch(torch.arange(8), 1), Batch(torch.arange(8), 1), Batch(torch.arange(8), 2)]
    a, b, c = (x for x, _ in read(data, batches, labels=False, device=CPU))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_items_that_are_no_images_are_explained() -> None:
    with pytest.raises(TypeError, match=r"list.*ToTensor|str.*ToTensor"):
        list(read([("image.png", 1)], in_order(torch.arange(1), 1), labels=False, device=CPU))
    with pytest.raises(TypeError, match="label"):
        list(read([torch.zeros(1)], in_order(torch.arange(1), 1), labels=True, device=CPU))
    with pytest.raises(TypeError, match="label"):
        list(read(torch.zeros(1, 1), in_order(torch.arange(1), 1), labels=True, device=CPU))
    with pytest.raises(ValueError, match="labels"):
        Labeled(torch.zeros(3, 1), [0, 1], [0])


class Counting(Items):
    """Counts reads."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.reads: Counter[int] = Counter()

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        self.reads[i] += 1
        return super().__getitem__(i)


def test_own_labels_as_an_oracle_read_only_what_is_asked() -> None:
    data = Counting(9)
    assert OwnLabels(data)([7, 2]) == [1, 2]
    assert data.reads == {7: 1, 2: 1}
    memory = TensorImages(torch.zeros(3, 1), torch.tensor([5, 6, 7]))
    assert OwnLabels(memory)([2, 0]) == [7, 5]
    with pytest.raises(TypeError, match="oracle"):
        OwnLabels(torch.zeros(3, 1))([0])
