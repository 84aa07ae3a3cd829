"""Data sets by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from prunefuse._names import DATA as NAMES


@dataclass(frozen=True)
class Data:
    """A data set for active learning. Items are ``(image (C, H, W) float32, label)``.

    ``train`` and ``pool`` are the same samples in the same order: ``train`` with training augmentation,
    ``pool`` with evaluation transforms, for scoring. ``input_shape`` is (C, H, W).
    """

    train: Any
    pool: Any
    test: Any
    num_classes: int
    input_shape: tuple[int, int, int]
    name: str


def load(name: str, *, root: str | os.PathLike[str] = "data", download: bool = False) -> Data:
    """A data set by name.

    Args:
        name: ``digits`` (bundled), ``cifar10``, ``cifar100``, ``places365``, ``imagenet`` or ``folder:PATH``.
        root: Folder that holds, or with ``download`` gets, the files as torchvision expects them.
        download: Fetch a missing data set; not of ImageNet.

    Raises:
        ValueError: an unknown name, or a folder that is not laid out as expected.
        FileNotFoundError: the data are not there; says where it looked and what to do.
    """
    # Imported here: each brings scikit-learn or torchvision along.
    if name == "digits":
        from prunefuse.data.digits import digits

        return digits()
    if name in ("cifar10", "cifar100"):
        from prunefuse.data.cifar import cifar

        return cifar(name, root, download)
    if name in ("places365", "imagenet"):
        from prunefuse.data.large import large

        return large(name, root, download)
    if name.startswith("folder:"):
        from prunefuse.data.folder import folder

        return folder(name.removeprefix("folder:"))
    raise ValueError(f"data: expected one of {', '.join(NAMES)}, got {name!r}")
