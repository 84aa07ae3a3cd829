"""Data sets by name."""

from __future__ import annotations

import os

from prunefuse._names import DATA as NAMES
from prunefuse.data._types import Data


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
        from prunefuse.data._digits import digits

        return digits()
    if name in ("cifar10", "cifar100"):
        from prunefuse.data._cifar import cifar

        return cifar(name, root, download)
    if name in ("places365", "imagenet"):
        from prunefuse.data._large import large

        return large(name, root, download)
    if name.startswith("folder:"):
        from prunefuse.data._folder import folder

        return folder(name.removeprefix("folder:"))
    raise ValueError(f"data must be one of {', '.join(NAMES)}, got {name!r}")
