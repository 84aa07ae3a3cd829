"""Data sets by name."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import Any

from prunefuse._names import DATA as NAMES
from prunefuse.data._altered import altered, averaged
from prunefuse.data._images import Reading, expanded
from prunefuse.data._tensors import Augment, TensorImages
from prunefuse.data._text_data import TextReading, texts
from prunefuse.data._types import Data
from prunefuse.data._words import Tokenize
from prunefuse.errors import DataWarning


def load(
    name: str,
    *,
    root: str | os.PathLike[str] = "data",
    download: bool = False,
    image_size: int | None = None,
    flip: bool | None = None,
    crop: int | None = None,
    channels: int | None = None,
    skip_broken: bool = False,
    verify: bool = False,
    test_fraction: float = 0.2,
    long_tail: float = 1.0,
    duplicates: float = 0.0,
    seed: int = 0,
    text: str | None = None,
    id: str | None = None,
    vocabulary: int = 20_000,
    length: int | None = None,
    tokenizer: Tokenize | None = None,
    task: str = "single-label",
) -> Data:
    """A data set by name, with its training part, the same samples as a pool, and its test part.

    >>> from prunefuse.data import load
    >>> len(load("digits").pool)
    1437

    Args:
        name: ``digits`` (bundled), ``cifar10``, ``cifar100``, ``fashion_mnist``, ``svhn``, ``tiny_imagenet``, ``places365``
            or ``imagenet``. Files of one's own are ``folder:PATH``, ``table:FILE`` (CSV or Parquet) or ``arrays:PATH``
            (NumPy's or idx files). Texts are ``text:FILE``, CSV or JSON lines with a column ``label``. ``torchvision:NAME`` is
            another one of torchvision's, such as ``torchvision:KMNIST``.
        root: The folder with the files, as torchvision expects them. With ``download`` they are put there.
        download: Fetch a data set that is missing. ImageNet cannot be fetched.
        image_size: Side of the square that images of files are brought to. Left out, it is chosen from a sample of them.
            Images in memory are averaged to a divisor of their side, such as 14 for ``fashion_mnist``.
        flip: Whether training images are mirrored at random. Left out, as is usual for the data set.
        crop: Pixels of padding before a random crop of training images, 0 for none. Left out, as is usual.
        channels: 1 or 3, of images in files. Left out, 1 where all are gray.
        skip_broken: Leave out image files that cannot be read. All are read once to find them.
        verify: Read all image files once, and raise if one cannot be read.
        test_fraction: The part of each class that is held out, of a folder without a test part.
        long_tail: How many times rarer the last class of the pool is than the first; the others lie between them. Images in
            memory only.
        duplicates: Part of the pool that is replaced by copies of the rest. Images in memory only.
        seed: Which samples these are.
        text: Column of the texts. Left out, the one that is called text, or another usual name, or the only one.
        id: Column of their names. Left out, the one that is called id, else the numbers of rows.
        vocabulary: Numbers of words: the most frequent words have one each. With ``tokenizer``, how many it has.
        length: Words of a text that are read. Left out, as many as the longest text has, at most 256.
        tokenizer: From a text to numbers of words, from 1 on. Left out, see `words_of`.
        task: What labels are: ``single-label`` for a class, ``multi-label`` for any number of labels, such as ``a;b``, or
            ``regression`` for numbers. All but classes are for ``table:``, ``arrays:`` and ``text:``.

    Raises:
        ValueError: The name is unknown, a folder is not laid out as expected, or an option is not one of this data set.
        FileNotFoundError: The data are not there. The message says where it looked and what to do.
        OSError: An image file cannot be read. The message names it.
        MissingPackageError: The digits are asked for, and scikit-learn is not installed.
    """
    reading = Reading(
        image_size,
        flip,
        crop,
        channels,
        skip_broken,
        verify,
        test_fraction,
        seed,
        task,
        long_tail,
        duplicates,
    )
    how = TextReading(text, id, vocabulary, length, tokenizer)
    if how != TextReading() and not name.startswith("text:"):
        raise ValueError(
            f"text, id, vocabulary, length and tokenizer must be left out with {name}, which has no texts"
        )
    if task != "single-label" and not name.startswith(("text:", "table:", "arrays:")):
        raise ValueError(
            f"task must be single-label with {name}, whose samples have one class each, got {task!r}; data with other labels "
            "are text:FILE, table:FILE and arrays:PATH"
        )
    if name.startswith("text:"):
        data = texts(name.removeprefix("text:"), reading, how)
    else:
        data = _load(name, expanded(root), download, reading)
    data = altered(data, reading.long_tail, reading.duplicates, seed)
    for note in data.notes:
        if note.startswith("left out"):
            warnings.warn(f"{name}: {note}", DataWarning, stacklevel=2)
    return data


def _load(name: str, root: os.PathLike[str], download: bool, reading: Reading) -> Data:
    # Imported here: each brings scikit-learn or torchvision along.
    if name.startswith("folder:"):
        from prunefuse.data._folder import folder

        return folder(name.removeprefix("folder:"), reading)
    if name.startswith("table:"):
        from prunefuse.data._listed import table

        return table(name.removeprefix("table:"), reading)
    if name.startswith("torchvision:"):
        from prunefuse.data._torchvision import torchvision_data

        found = torchvision_data(name.removeprefix("torchvision:"), root, download, reading)
        return _augmented(found, reading)
    if name == "tiny_imagenet":
        from prunefuse.data._listed import tiny_imagenet

        return tiny_imagenet(root, reading)
    if name not in NAMES and not name.startswith("arrays:"):
        raise ValueError(f"data must be one of {', '.join(NAMES)}, got {name!r}")
    if reading.skip_broken:
        raise ValueError(f"skip_broken must be left out with {name}, whose images are of one size and whole")
    if name in ("places365", "imagenet"):
        if reading.image_size:
            raise ValueError(f"image_size must be left out with {name}, whose images are of one size")
        from prunefuse.data._large import large

        return large(name, root, download, reading)
    if name.startswith("arrays:"):
        from prunefuse.data._arrays import arrays

        return _augmented(arrays(name.removeprefix("arrays:"), reading), reading)
    if name in ("fashion_mnist", "svhn"):
        from prunefuse.data import _arrays

        return _augmented(getattr(_arrays, name)(root, download), reading)
    if name == "digits":
        from prunefuse.data._digits import digits

        return _augmented(digits(), reading)
    from prunefuse.data._cifar import cifar

    return _augmented(cifar(name, root, download), reading)


def _augmented(data: Data, reading: Reading) -> Data:
    """The data set with another size of its images, and another crop and flip in training, where one is asked for."""
    if reading.image_size is not None and isinstance(data.train, TensorImages):
        data = averaged(data, reading.image_size)
    train: Any = data.train
    if not isinstance(train, TensorImages) or (reading.flip is None and reading.crop is None):
        return data
    usual = train.augment or Augment(pad=0, flip=False)
    pad = usual.pad if reading.crop is None else reading.crop
    flip = usual.flip if reading.flip is None else reading.flip
    changed = TensorImages(
        train.images, train.labels, mean=train.mean, std=train.std, augment=Augment(pad=pad, flip=flip)
    )
    return replace(data, train=changed)
