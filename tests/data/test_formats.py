"""Data sets in the formats that they come in, written small: idx, NumPy's, SVHN's, tables, Tiny ImageNet's."""

import gzip
import hashlib
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from image_files import write_image
from torchvision.datasets import SVHN

from prunefuse.data import _arrays, load
from prunefuse.errors import MissingPackageError

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (20, 28, 28)).astype(np.uint8)
TEST = RNG.integers(0, 256, (6, 28, 28)).astype(np.uint8)
LABELS, TEST_LABELS = np.arange(20) % 10, np.arange(6) % 10


def write_idx(file: Path, array: np.ndarray, packed: bool = False) -> None:
    kinds = {"uint8": 8, "float32": 13}
    head = bytes([0, 0, kinds[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    raw = head + array.astype(array.dtype.newbyteorder(">")).tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_name(file.name + ".gz" * packed).write_bytes(gzip.compress(raw) if packed else raw)


def write_fashion(folder: Path, packed: bool) -> None:
    for part, images, labels in (("train", TRAIN, LABELS), ("t10k", TEST, TEST_LABELS)):
        write_idx(folder / f"{part}-images-idx3-ubyte", images, packed)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels.astype(np.uint8), packed)


def same_images(part: Any, images: np.ndarray) -> bool:
    return bool(np.array_equal(part.images.numpy().reshape(images.shape), images))


@pytest.mark.parametrize(("place", "packed"), [("FashionMNIST/raw", False), ("", True), ("debian", True)])
def test_fashion_mnist_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, packed: bool
) -> None:
    monkeypatch.setattr(_arrays, "DEBIAN", tmp_path / "debian")
    write_fashion(tmp_path / place, packed)
    data = load("fashion_mnist", root=tmp_path)
    assert (data.num_classes, data.input_shape, data.name) == (10, (1, 28, 28), "fashion_mnist")
    assert same_images(data.pool, TRAIN)
    assert same_images(data.test, TEST)
    assert data.pool.labels.tolist() == LABELS.tolist()
    image, label = data.pool[3]
    expected = (TRAIN[3] / 255 - (TRAIN / 255).mean()) / (TRAIN / 255).std()
    assert image[0].numpy() == pytest.approx(expected, abs=1e-5)
    assert label == 3
    assert (data.train.augment.pad, data.train.augment.flip) == (2, True)
    assert load("fashion_mnist", root=tmp_path, flip=False, crop=0).train.augment.flip is False


def test_a_missing_fashion_mnist_says_where_it_looked_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_arrays, "DEBIAN", tmp_path / "debian")
    with pytest.raises(
        FileNotFoundError, match=r"FashionMNIST/raw.*debian.*--download.*dataset-fashion-mnist"
    ):
        load("fashion_mnist", root=tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_a_cut_idx_file_is_named(tmp_path: Path, packed: bool) -> None:
    write_fashion(tmp_path, packed)
    file = tmp_path / f"train-images-idx3-ubyte{'.gz' * packed}"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte.* (not a whole gzip|must have 15696 bytes)"
    ):
        load("fashion_mnist", root=tmp_path)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    images = RNG.integers(0, 256, (32, 32, 3, 12)).astype(np.uint8)
    labels = (np.arange(12) % 10 + 1)[:, None].astype(np.uint8)  # 10 is the digit 0
    lists = {}
    for part in ("train", "test"):
        file = tmp_path / f"{part}_32x32.mat"
        savemat(file, {"X": images, "y": labels})
        lists[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", lists)
    data = load("svhn", root=tmp_path)
    assert (data.num_classes, data.input_shape) == (10, (3, 32, 32))
    assert np.array_equal(data.pool.images[7].numpy(), images[..., 7].transpose(2, 0, 1))
    assert data.test.labels.tolist()[8:11] == [9, 0, 1]
    with pytest.raises(FileNotFoundError, match=r"train_32x32.mat and test_32x32.mat must be in .*none"):
        load("svhn", root=tmp_path / "none")


# --- arrays


@pytest.mark.parametrize("kind", ["npz", "keras", "npy", "idx"])
def test_arrays_of_images_and_labels(tmp_path: Path, kind: str) -> None:
    place = tmp_path
    if kind == "idx":
        write_fashion(tmp_path, False)
    elif kind == "npy":
        for name, array in (("train_images", TRAIN), ("train_labels", LABELS)):
            np.save(tmp_path / f"{name}.npy", array)
        for name, array in (("test_images", TEST), ("test_labels", TEST_LABELS)):
            np.save(tmp_path / f"{name}.npy", array)
    else:
        place = tmp_path / "x.npz"
        names = ("x_train", "y_train", "x_test", "y_test")
        if kind == "npz":
            names = ("train_images", "train_labels", "test_images", "test_labels")
        np.savez(place, **dict(zip(names, (TRAIN, LABELS, TEST, TEST_LABELS), strict=True)))
    data = load(f"arrays:{place}")
    assert (data.num_classes, data.input_shape, len(data.pool), len(data.test)) == (10, (1, 28, 28), 20, 6)
    assert same_images(data.pool, TRAIN)
    assert data.test.labels.tolist() == TEST_LABELS.tolist()


@pytest.mark.parametrize(
    ("images", "shape", "value"),
    [
        (np.full((30, 8, 8), 255, np.uint8), (1, 8, 8), 1.0),
        (np.full((30, 8, 8, 3), 255, np.uint8), (3, 8, 8), 1.0),
        (np.full((30, 3, 8, 8), 65535, ">u2"), (3, 8, 8), 1.0),
        (np.full((30, 8, 8), 0.25, ">f8"), (1, 8, 8), 0.25),
    ],
)
def test_arrays_of_any_layout_and_depth(tmp_path: Path, images: Any, shape: Any, value: float) -> None:
    np.savez(tmp_path / "x.npz", images=images, labels=(np.arange(30) % 3).astype(float))
    data = load(f"arrays:{tmp_path / 'x.npz'}")
    assert (data.input_shape, len(data.pool), len(data.test)) == (shape, 24, 6)
    assert "6 of 30 images are the test part" in data.notes[0]
    raw = data.pool.images[:1].float() / (255 if data.pool.images.dtype == torch.uint8 else 1)
    assert raw.unique().tolist() == [value]
    other = load(f"arrays:{tmp_path / 'x.npz'}", test_fraction=0.5)
    assert len(other.test) == 15


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": np.arange(30) / 2}, TypeError, "must have an integer label for sample 1, got 0.5"),
        (
            {"labels": np.eye(30)},
            ValueError,
            r"labels must be one for each of 30 images, got shape \(30, 30\)",
        ),
        ({"labels": np.zeros(30, int)}, ValueError, "two classes or more"),
        ({"labels": np.arange(30) - 1}, ValueError, "class indices from 0 on"),
        ({"images": np.zeros((30, 8))}, ValueError, r"1 or 3 channels, got shape \(30, 8\)"),
        ({"images": np.zeros((30, 8, 8), int)}, TypeError, "uint8, uint16 or floating"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, changes: Any, error: type[Exception], message: str) -> None:
    content = {"images": np.zeros((30, 8, 8), np.uint8), "labels": np.arange(30) % 3} | changes
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(error, match=message):
        load(f"arrays:{tmp_path / 'x.npz'}")


def test_missing_arrays_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", pictures=TRAIN)
    with pytest.raises(FileNotFoundError, match=r"train_images and train_labels .*, got pictures"):
        load(f"arrays:{tmp_path / 'x.npz'}")
    with pytest.raises(FileNotFoundError, match=r"there is no .*none.npz"):
        load(f"arrays:{tmp_path / 'none.npz'}")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text.npz is not an archive of arrays"):
        load(f"arrays:{tmp_path / 'text.npz'}")


# --- tables


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(12):
        write_image(tmp_path / "images" / f"{i}.png", size=(8, 8))
    return tmp_path


def write_table(root: Path, rows: list[str], header: str = "path,label,split") -> str:
    (root / "table.csv").write_text("\n".join([header, *rows]) + "\n")
    return f"table:{root / 'table.csv'}"


def test_a_table_of_paths_labels_and_parts(photos: Path) -> None:
    parts = ("train", "Train", "val", "test")
    rows = [f"images/{i}.png,{'dog' if i % 2 else 'cat'},{parts[i % 4]}" for i in range(12)]
    data = load(write_table(photos, rows))
    assert data.pool.classes == ["cat", "dog"]
    assert [Path(path).name for path, _ in data.test.samples] == [f"{i}.png" for i in (2, 3, 6, 7, 10, 11)]
    assert [label for _, label in data.pool] == [0, 1] * 3
    assert data.pool[0][0].shape == (3, 8, 8)


def test_a_table_without_parts_is_divided_and_numbers_are_in_order(photos: Path) -> None:
    name = write_table(photos, [f"images/{i}.png,{(9, 10)[i % 2]}" for i in range(12)], "path,label")
    data = load(name)
    assert data.pool.classes == ["9", "10"]
    assert (len(data.pool), len(data.test)) == (10, 2)
    assert load(name, test_fraction=0.5).num_classes == 2


@pytest.mark.parametrize(
    ("rows", "header", "error", "message"),
    [
        (["images/0.png,cat"], "file,class", ValueError, "columns path and label, got file, class"),
        (["images/0.png,cat", "images/1.png,"], "path,label", ValueError, "row 2 must have a label"),
        (["images/0.png,cat,dev"], "path,label,split", ValueError, "train, test or val, got 'dev' in row 1"),
        (["images/99.png,cat"], "path,label", FileNotFoundError, "row 1 names .*99.png, which is not there"),
        (["images/0.png,cat", "images/1.png,cat"], "path,label", ValueError, "two classes or more, got only"),
        ([], "path,label", ValueError, "got no rows"),
    ],
)
def test_other_tables_are_refused(
    photos: Path, rows: list[str], header: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(write_table(photos, rows, header))


def test_parquet_by_pyarrow_or_an_error_that_names_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = photos / "table.parquet"
    file.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        MissingPackageError, match=r'needs pyarrow, which is not installed: pip install "prunefuse\[files\]"'
    ):
        load(f"table:{file}")
    rows = [{"path": f"images/{i}.png", "label": i % 2, "split": None} for i in range(12)]
    module: Any = ModuleType("pyarrow.parquet")
    module.read_table = lambda path: SimpleNamespace(to_pylist=lambda: rows if path == file else [])
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)
    assert load(f"table:{file}").pool.classes == ["0", "1"]


# --- Tiny ImageNet


def test_tiny_imagenet_in_its_layout(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        for i in range(3):
            write_image(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", size=(64, 64))
    for i in range(4):
        write_image(root / "val" / "images" / f"val_{i}.JPEG", size=(64, 64))
    (root / "wnids.txt").write_text("n02\nn01\n")
    lines = [f"val_{i}.JPEG\tn0{1 + i % 2}\t0\t0\t62\t62" for i in range(4)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    for place in (tmp_path, root):
        data = load("tiny_imagenet", root=place)
        assert (data.num_classes, data.input_shape) == (2, (3, 64, 64))
        assert data.pool.targets == [0] * 3 + [1] * 3
        assert data.test.targets == [0, 1, 0, 1]
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09\n")
    with pytest.raises(ValueError, match=r"must name classes of .*, got 'n09'"):
        load("tiny_imagenet", root=root)
    (root / "wnids.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*wnids.txt; unpack tiny-imagenet-200.zip"):
        load("tiny_imagenet", root=root)


# --- torchvision's, by the names of their classes


def test_a_data_set_of_torchvision_in_arrays(tmp_path: Path) -> None:
    write_fashion(tmp_path / "KMNIST" / "raw", False)
    data = load("torchvision:KMNIST", root=tmp_path, flip=False, crop=1)
    assert (data.num_classes, data.input_shape, data.name) == (10, (1, 28, 28), "torchvision:KMNIST")
    assert same_images(data.pool, TRAIN)
    assert same_images(data.test, TEST)
    assert data.pool.labels.tolist() == LABELS.tolist()
    assert data.train.augment.pad == 1


def test_arguments_of_a_data_set_of_torchvision_follow_its_name(tmp_path: Path) -> None:
    for part, images, labels in (("train", TRAIN, LABELS), ("test", TEST, TEST_LABELS)):
        file = tmp_path / "EMNIST" / "raw" / f"emnist-digits-{part}-"
        write_idx(file.with_name(f"{file.name}images-idx3-ubyte"), images, False)
        write_idx(file.with_name(f"{file.name}labels-idx1-ubyte"), labels.astype(np.uint8), False)
    data = load("torchvision:EMNIST:split=digits", root=tmp_path)
    assert same_images(data.pool, TRAIN)
    assert same_images(data.test, TEST)
    assert data.classes == tuple("0123456789")


def test_a_data_set_of_torchvision_in_files(tmp_path: Path) -> None:
    for name in ("banded", "dotted"):
        for i in range(6):
            write_image(tmp_path / "dtd" / "dtd" / "images" / name / f"{i}.jpg", size=(40, 40))
    for part, rows in (("train", range(3)), ("test", range(3, 6))):
        lines = [f"{name}/{i}.jpg" for i in rows for name in ("banded", "dotted")]
        file = tmp_path / "dtd" / "dtd" / "labels" / f"{part}1.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
    data = load("torchvision:DTD", root=tmp_path, image_size=32)
    assert (data.num_classes, data.input_shape) == (2, (3, 32, 32))
    assert [Path(path).stem for path, _ in data.test.samples] == ["3", "3", "4", "4", "5", "5"]
    assert data.pool.targets == [0, 1] * 3


def test_a_data_set_of_torchvision_without_a_test_part_is_divided(tmp_path: Path) -> None:
    for name in ("Forest", "River"):
        for i in range(10):
            write_image(tmp_path / "eurosat" / "2750" / name / f"{i}.jpg", size=(8, 8))
    data = load("torchvision:EuroSAT", root=tmp_path)
    assert (len(data.pool), len(data.test), data.pool.classes) == (16, 4, ["Forest", "River"])
    assert any("4 of 20 images are the test part" in note for note in data.notes)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("KMNIST", FileNotFoundError, r"torchvision:KMNIST was not found .*\(--root\)"),
        (
            "Nothing",
            ValueError,
            "data must name a data set of torchvision.datasets.* got torchvision:Nothing",
        ),
        (
            "EMNIST",
            ValueError,
            "torchvision:EMNIST cannot be opened so: .*as in torchvision:EMNIST:split=balanced",
        ),
        ("EMNIST:split=none", ValueError, "Unknown value 'none' for argument split"),
        ("EMNIST:part=digits", ValueError, "arguments must be split, as NAME=VALUE, got 'part=digits'"),
        ("EMNIST:split", ValueError, "as NAME=VALUE, got 'split'"),
        ("EMNIST:split=digits", FileNotFoundError, r"torchvision:EMNIST:split=digits was not found"),
    ],
)
def test_other_data_sets_of_torchvision_are_told(
    tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(f"torchvision:{name}", root=tmp_path)
