"""Data sets by name. CIFAR is read by torchvision from small files in the real format."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from prunefuse import data


def test_digits() -> None:
    digits = data.load("digits")
    assert (len(digits.train), len(digits.pool), len(digits.test)) == (1437, 1437, 360)
    assert (digits.num_classes, digits.input_shape, digits.name) == (10, (1, 8, 8), "digits")
    image, label = digits.pool[3]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    assert label in range(10)
    counts = digits.test.labels.bincount()
    assert 34 <= counts.min() <= counts.max() <= 38
    assert torch.equal(digits.train.images, digits.pool.images)
    assert digits.train.augment is not None
    assert digits.pool.augment is None
    assert torch.equal(digits.test.images, data.load("digits").test.images)


def test_digits_split_is_a_partition() -> None:
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    ours = torch.cat((digits.train.images, digits.test.images)).flatten(1) * 16
    theirs = torch.from_numpy(load_digits().data).float()
    assert sorted(ours.tolist()) == sorted(theirs.tolist())


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, kind: type[CIFAR10] = CIFAR10) -> np.ndarray:
    """Small batches in CIFAR's format; the checksums torchvision insists on are those of our files."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    key, names = ("fine_labels", "fine_label_names") if kind is CIFAR100 else ("labels", "label_names")
    classes = 100 if kind is CIFAR100 else 10

    def write(name: str, content: dict[str, object]) -> str:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    images = []
    for which in lists:
        for name, _ in getattr(kind, which):
            batch = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
            images.append(batch)
            md5 = write(name, {"data": batch, key: rng.integers(0, classes, 4).tolist()})
            lists[which].append([name, md5])
        monkeypatch.setattr(kind, which, lists[which])
    labels = {names: [f"class {i}" for i in range(classes)]}
    meta = {"filename": kind.meta["filename"], "key": names, "md5": write(kind.meta["filename"], labels)}
    monkeypatch.setattr(kind, "meta", meta)
    return np.concatenate(images)


@pytest.mark.parametrize(("name", "kind", "classes"), [("cifar10", CIFAR10, 10), ("cifar100", CIFAR100, 100)])
def test_cifar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: type[CIFAR10], classes: int
) -> None:
    raw = write_cifar10(tmp_path, monkeypatch, kind)
    loaded = data.load(name, root=tmp_path)
    assert len(loaded.train) == len(loaded.pool) == len(raw) - 4
    assert len(loaded.test) == 4
    assert (loaded.num_classes, loaded.input_shape, loaded.name) == (classes, (3, 32, 32), name)
    image, label = loaded.pool[2]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loaded.pool.mean, loaded.pool.std))
    expected = (torch.from_numpy(raw[2]).view(3, 32, 32) / 255 - mean) / std
    torch.testing.assert_close(image, expected)
    assert label == loaded.train.labels[2]
    augment = loaded.train.augment
    assert augment is not None
    assert (augment.pad, augment.flip) == (4, True)
    by_class = data.load(f"torchvision:{kind.__name__}", root=tmp_path)
    assert torch.equal(by_class.pool.images, loaded.pool.images)
    assert torch.equal(by_class.pool.labels, loaded.pool.labels)
    assert loaded.pool.augment is None
    assert loaded.test.augment is None


def test_missing_cifar_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        data.load("cifar10", root=tmp_path / "nothing")
    message = str(error.value)
    assert str(tmp_path / "nothing" / "cifar-10-batches-py") in message
    assert "--download" in message
    assert "--root" in message
    assert "cifar-10-python.tar.gz" in message


def test_damaged_cifar_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path, monkeypatch)
    with (tmp_path / CIFAR10.base_folder / "data_batch_3").open("ab") as file:
        file.write(b"x")
    with pytest.raises(FileNotFoundError, match="damaged"):
        data.load("cifar10", root=tmp_path)


def write_images(folder: Path, side: tuple[int, int], value: int, count: int = 2) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", side, (value, value, value)).save(folder / f"{i}.png")


@pytest.mark.parametrize("test_part", ["test", "val"])
def test_folder(tmp_path: Path, test_part: str) -> None:
    for part, count in (("train", 3), (test_part, 1)):
        write_images(tmp_path / part / "cat", (12, 10), 0, count)
        write_images(tmp_path / part / "dog", (20, 16), 255, count)
    loaded = data.load(f"folder:{tmp_path}")
    assert (len(loaded.train), len(loaded.pool), len(loaded.test)) == (6, 6, 2)
    assert (loaded.num_classes, loaded.input_shape) == (2, (3, 10, 10))
    for part in (loaded.train, loaded.pool, loaded.test):
        assert {tuple(image.shape) for image, _ in part} == {(3, 10, 10)}
        assert {label for _, label in part} == {0, 1}
    black, white = loaded.pool[0][0], loaded.pool[5][0]
    assert (white - black).flatten(1)[:, 0].tolist() == pytest.approx([1 / 0.229, 1 / 0.224, 1 / 0.225])
    assert torch.equal(loaded.pool[5][0], loaded.pool[5][0])
    assert any(not torch.equal(loaded.train[5][0], loaded.pool[5][0]) for _ in range(50))


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train"):
        data.load(f"folder:{tmp_path}")
    write_images(tmp_path / "train" / "cat", (4, 4), 0)
    with pytest.raises(FileNotFoundError, match=r"val"):
        data.load(f"folder:{tmp_path}")
    write_images(tmp_path / "val" / "dog", (4, 4), 0)
    with pytest.raises(ValueError, match=r"the same classes .* got cat, dog in one only"):
        data.load(f"folder:{tmp_path}")


def test_a_class_without_images_is_named_with_its_folder(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_images(tmp_path / part / "cat", (4, 4), 0)
        (tmp_path / part / "dog").mkdir()
    with pytest.raises(FileNotFoundError, match=f"data folder:{tmp_path}: in {tmp_path / 'train'}: .*dog"):
        data.load(f"folder:{tmp_path}")
    write_images(tmp_path / "bare" / "test" / "cat", (4, 4), 0)
    (tmp_path / "bare" / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=f"data folder:{tmp_path}/bare: no class folders in .*train"):
        data.load(f"folder:{tmp_path}/bare")


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"digits.*folder:PATH.*'mnist'"):
        data.load("mnist")
