"""Data sets by name."""

from __future__ import annotations

import os

from prunefuse._names import DATA as NAMES
from prunefuse.data._types import Data


def load(name: str, *, root: str | os.PathLike[str] = "data", download: bool = False) -> Data:
    """A data set by name, with its training part, the same samples as a pool, and its test part.

    >>> from prunefuse.data import load
    >>> len(load("digits").pool)
    1437

    Args:
        name: ``digits`` (bundled), ``cifar10``, ``cifar100``, ``places365``, ``imagenet`` or ``folder:PATH``.
        root: The folder with the files, as torchvision expects them. With ``download`` they are put there.
        download: Fetch a data set that is missing. ImageNet cannot be fetched.

    Raises:
        ValueError: The name is unknown, or a folder is not laid out as expected.
        FileNotFoundError: The data are not there. The message says where it looked and what to do.
        MissingPackageError: The digits are asked for, and scikit-learn is not installed.
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
