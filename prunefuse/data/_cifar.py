"""CIFAR-10 and CIFAR-100, read and checked by torchvision, then kept in memory as uint8."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from prunefuse.data._tensors import Augment, TensorImages
from prunefuse.data._types import Data

# Mean and standard deviation of the training images per channel.
_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def cifar(name: str, root: str | os.PathLike[str], download: bool) -> Data:
    """CIFAR-10 or CIFAR-100 with the usual augmentation: crop of 32 after padding by 4, horizontal flip.

    Raises:
        FileNotFoundError: the files are not under ``root``, or damaged, and ``download`` was not asked for.
        ConnectionError: the download failed.
    """
    from torchvision import datasets

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    folder = Path(root) / kind.base_folder
    try:
        parts = [kind(os.fspath(root), train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        if download:
            raise ConnectionError(
                f"{name} could not be downloaded from {kind.url} to {folder}: {error}"
            ) from error
        raise FileNotFoundError(
            f"{name} was not found (or is damaged) in {folder.absolute()}. With download=True (--download) "
            f"it is fetched from {kind.url} (about 170 MB), checked and unpacked there; or unpack that "
            f"archive in {Path(root).absolute()} yourself, or give the folder that holds it as root (--root)."
        ) from error
    except OSError as error:
        raise ConnectionError(
            f"{name} could not be downloaded from {kind.url} to {folder}: {error}"
        ) from error
    mean, std = _STATISTICS[name]

    def tensors(part: Any, augment: Augment | None) -> TensorImages:
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        return TensorImages(images, torch.tensor(part.targets), mean=mean, std=std, augment=augment)

    train = tensors(parts[0], Augment(pad=4, flip=True))
    classes = tuple(parts[0].classes)
    test = tensors(parts[1], None)
    return Data(train, train.plain(), test, len(classes), (3, 32, 32), name, classes=classes)
