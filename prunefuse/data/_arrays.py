"""Images and labels in arrays on disk: MNIST's format (idx), NumPy's, and SVHN's; kept in memory."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunefuse.data._images import Reading, expanded
from prunefuse.data._split import test_part
from prunefuse.data._tensors import Augment, TensorImages
from prunefuse.data._types import Data
from prunefuse.ops.arrays import as_tensor
from prunefuse.ops.integers import class_indices, shown

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_IDX = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_FASHION = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# Names of the arrays of a part, in files and in archives.
_NAMES = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train"), ("X_train", "y_train")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test"), ("X_test", "y_test")),
    "all": (("images", "labels"), ("x", "y"), ("X", "y")),
}

Pair = tuple[np.ndarray, np.ndarray]


def fashion_mnist(root: str | os.PathLike[str], download: bool) -> Data:
    """Fashion-MNIST: 60000 training and 10000 test images of 1x28x28, ten classes.

    The files are those of torchvision (``ROOT/FashionMNIST/raw``), or lie in ``ROOT``, packed or not; or those of the Debian
    package ``dataset-fashion-mnist``. Training images get a crop after padding by 2, and a horizontal flip.

    Raises:
        FileNotFoundError: they are in none of these places.
        ValueError: a file is not of the format, or is cut.
        ConnectionError: the download failed.
    """
    base = expanded(root)
    places = (base / "FashionMNIST" / "raw", base, DEBIAN)
    here = next((place for place in places if _idx_file(place, _FASHION["train"][0]) is not None), None)
    if here is None and download:
        from torchvision import datasets

        try:
            datasets.FashionMNIST(os.fspath(base), download=True)
        except (RuntimeError, OSError) as error:
            raise ConnectionError(f"fashion_mnist could not be downloaded to {base}: {error}") from error
        here = places[0]
    if here is None:
        raise FileNotFoundError(
            f"fashion_mnist was not found: there is no {_FASHION['train'][0]} (or .gz) in "
            f"{', '.join(map(str, places))}. With download=True (--download) it is fetched, or install the Debian "
            "package dataset-fashion-mnist, or give the folder with the files as root (--root)"
        )
    parts = {part: (_idx(here, names[0]), _idx(here, names[1])) for part, names in _FASHION.items()}
    return data_of_arrays("fashion_mnist", parts, Reading(), Augment(pad=2, flip=True), _CLOTHES)


def svhn(root: str | os.PathLike[str], download: bool) -> Data:
    """SVHN (cropped digits): 73257 training and 26032 test images of 3x32x32, ten classes.

    The files ``train_32x32.mat`` and ``test_32x32.mat`` are read and checked by torchvision. Training images get a crop
    after padding by 4.

    Raises:
        FileNotFoundError: they are not in ``root``, or damaged.
        ConnectionError: the download failed.
    """
    from torchvision import datasets

    base = expanded(root)
    try:
        found = {
            part: datasets.SVHN(os.fspath(base), split=part, download=download) for part in ("train", "test")
        }
    except RuntimeError as error:
        raise FileNotFoundError(
            f"svhn was not found (or is damaged): train_32x32.mat and test_32x32.mat must be in {base.absolute()} "
            "(--root); with download=True (--download) they are fetched"
        ) from error
    except OSError as error:
        raise ConnectionError(f"svhn could not be downloaded to {base}: {error}") from error
    parts = {part: (one.data, one.labels) for part, one in found.items()}
    digits = tuple(map(str, range(10)))
    return data_of_arrays("svhn", parts, Reading(), Augment(pad=4, flip=False), digits)


def arrays(path: str, reading: Reading) -> Data:
    """Images and labels of a ``.npz`` archive, or of ``.npy`` or idx files in a folder.

    Arrays are named ``train_images`` and ``train_labels`` (or ``x_train`` and ``y_train``), likewise ``test``; without a
    test part ``images`` and ``labels`` (or ``x`` and ``y``), of which a part is held out. idx files have MNIST's names.
    Labels are whole numbers (N,); of several labels zeros and ones (N, L); numbers to predict are (N,) or (N, D).

    Raises:
        FileNotFoundError: there are no such arrays.
        ValueError, TypeError: an array is not of images, or labels are not what the task has.
    """
    name, place = f"arrays:{path}", expanded(path)
    try:
        if place.is_dir():
            found = _of_folder(place)
        else:
            with np.load(place, allow_pickle=False) as archive:
                found = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"data {name}: there is no {place.absolute()}") from error
        raise ValueError(f"data {name}: {place} is not an archive of arrays (.npz): {error}") from error
    parts = {part: pair for part in _NAMES if (pair := _pair(found, part)) is not None}
    if "train" not in parts and "all" in parts:
        parts["train"] = parts.pop("all")
    if "train" not in parts:
        raise FileNotFoundError(
            f"data {name}: there must be arrays train_images and train_labels (x_train, y_train), or images and labels, "
            f"got {', '.join(found) or 'none'}"
        )
    return data_of_arrays(name, parts, reading, None)


def _of_folder(place: Path) -> dict[str, np.ndarray]:
    found = {file.stem: np.load(file, allow_pickle=False) for file in sorted(place.glob("*.npy"))}
    for part, names in _FASHION.items():
        for kind, file in zip(("images", "labels"), names, strict=True):
            if _idx_file(place, file) is not None:
                found[f"{part}_{kind}"] = _idx(place, file)
    return found


def _pair(found: Mapping[str, np.ndarray], part: str) -> Pair | None:
    for images, labels in _NAMES[part]:
        if images in found and labels in found:
            return found[images], found[labels]
    return None


def data_of_arrays(
    name: str,
    parts: Mapping[str, Pair],
    reading: Reading,
    augment: Augment | None,
    names: Sequence[str] = (),
) -> Data:
    """Parts ``train`` and ``test`` as a data set in memory; a part is held out where there is no ``test``.

    ``names`` are those of the classes; they are left out where they are not as many as there are classes.
    """
    train, labels = _checked(name, "train", *parts["train"], reading.task)
    notes: tuple[str, ...] = ()
    ids: tuple[str, ...] | None = None
    if "test" in parts:
        test, test_labels = _checked(name, "test", *parts["test"], reading.task)
    else:
        *rows, note = test_part(labels.tolist(), reading.test_fraction, reading.seed, "images")
        kept, chosen = map(torch.tensor, rows)
        test, test_labels, train, labels = train[chosen], labels[chosen], train[kept], labels[kept]
        ids, notes = tuple(map(str, kept.tolist())), (note,)
    if train.shape[1:] != test.shape[1:]:
        shapes = " and ".join(str(tuple(part.shape[1:])) for part in (train, test))
        raise ValueError(f"data {name}: training and test images must have one shape, got {shapes}")
    single = reading.task == "single-label"
    if labels.shape[1:] != test_labels.shape[1:]:
        shapes = " and ".join(str(tuple(part.shape[1:])) for part in (labels, test_labels))
        raise ValueError(f"data {name}: training and test labels must have one shape, got {shapes}")
    classes = int(torch.cat((labels, test_labels)).max()) + 1 if single else labels.shape[1]
    if single and classes < 2:
        raise ValueError(f"data {name}: labels must be of two classes or more, got class 0 alone")
    mean, std = _statistics(train)
    whole = TensorImages(train, labels, mean=mean, std=std, augment=augment)
    held = TensorImages(test, test_labels, mean=mean, std=std)
    channels, height, width = train.shape[1:]
    called = tuple(map(str, names)) if len(names) == classes else ()
    shape = (channels, height, width)
    return Data(whole, whole.plain(), held, classes, shape, name, notes, called, ids)


def _checked(name: str, part: str, images: Any, labels: Any, task: str) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W), uint8 or float32, and labels: (N,) int64, (N, L) uint8 or (N, D) float32, by the task."""
    where = f"data {name}: {part} images"
    x = as_tensor(where, images)
    y = as_tensor(f"data {name}: {part} labels", labels)
    single = task == "single-label"
    y = y.reshape(-1) if single and y.shape[1:] == (1,) else y
    y = y.reshape(-1, 1) if task == "regression" and y.dim() == 1 else y
    if not single and (y.dim() != 2 or len(y) != len(x) or y.numel() == 0):
        raise ValueError(
            f"data {name}: {part} labels must be ({len(x)}, {'L' if task == 'multi-label' else 'D'}) for {task}, got shape "
            f"{tuple(y.shape)}"
        )
    if single and (y.dim() != 1 or len(y) != len(x) or len(x) == 0):
        raise ValueError(
            f"data {name}: {part} labels must be one for each of {len(x)} images, got shape {tuple(y.shape)}"
        )
    if x.dim() == 3:
        x = x[:, None]
    elif x.dim() == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.permute(0, 3, 1, 2).contiguous()
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"{where} must have 1 or 3 channels, got shape {tuple(x.shape)}")
    if x.dtype == torch.uint16:
        x = x.to(torch.float32) / 65535
    elif x.dtype != torch.uint8:
        if not x.dtype.is_floating_point:
            raise TypeError(f"{where} must be uint8, uint16 or floating, got {x.dtype}")
        x = x.to(torch.float32)
    if not single:
        return x, _own(f"data {name}: {part} labels", y, task)
    classes = class_indices(f"data {name}: {part}", y, torch.arange(len(y)))
    if int(classes.min()) < 0:
        raise ValueError(
            f"data {name}: {part} labels must be class indices from 0 on, got {int(classes.min())}"
        )
    return x, classes


def _own(where: str, labels: Tensor, task: str) -> Tensor:
    """Labels (N, ...) of another task than classification, checked."""
    if task == "multi-label":
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError(f"{where} must be zeros and ones for multi-label, got {shown(labels)}")
        return labels.to(torch.uint8)
    if not bool(labels.isfinite().all()):
        raise ValueError(f"{where} must be finite numbers, got {shown(labels)}")
    return labels.to(torch.float32)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, as images are read; 1 where that is 0."""
    means, deviations = [], []
    for channel in range(images.shape[1]):
        values = images[:, channel]
        if images.dtype == torch.uint8:  # by counts, as there may be a billion pixels
            counts = torch.bincount(values.flatten(), minlength=256).double()
            levels = torch.arange(256, dtype=torch.float64) / 255
            mean = float((counts * levels).sum() / counts.sum())
            deviation = float(((counts * (levels - mean) ** 2).sum() / counts.sum()).sqrt())
        else:
            mean, deviation = float(values.double().mean()), float(values.double().std(correction=0))
        means.append(mean)
        deviations.append(deviation or 1.0)
    return tuple(means), tuple(deviations)


def _idx_file(place: Path, name: str) -> Path | None:
    return next((place / f"{name}{end}" for end in ("", ".gz") if (place / f"{name}{end}").is_file()), None)


def _idx(place: Path, name: str) -> np.ndarray:
    """The array of an idx file, packed or not.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another format, or cut.
    """
    file = _idx_file(place, name)
    if file is None:
        raise FileNotFoundError(f"there is no {place / name} (or .gz)")
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{file} is not a whole gzip file: {error}") from error
    kind = _IDX.get(raw[2]) if len(raw) >= 4 and raw[:2] == b"\0\0" else None
    if kind is None:
        raise ValueError(f"{file} is not an idx file")
    start = 4 + 4 * raw[3]
    shape = tuple(np.frombuffer(raw[4:start], ">i4").tolist())
    expected = start + int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
    if len(raw) != expected:
        raise ValueError(f"{file} must have {expected} bytes by its header, got {len(raw)}")
    return np.frombuffer(raw, kind, offset=start).reshape(shape)
