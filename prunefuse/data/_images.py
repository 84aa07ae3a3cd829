"""Image files as a data set: what Pillow reads, upright, in the depth that the file has; errors name the file."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from prunefuse._names import DATA_TASKS
from prunefuse._options import require
from prunefuse.data._types import Data

MAX_SIDE = 224
SAMPLED = 64  # files that the size is taken from
_COLOR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's mean and standard deviation
_GRAY = ((0.449,), (0.226,))  # their means
_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".dib"),
    *(".tif", ".tiff", ".webp", ".gif", ".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".jpf", ".tga", ".pcx"),
    *(".sgi", ".dds", ".qoi", ".ico"),
)
GRAY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_THREADS = 8  # Pillow decodes without Python's lock

Sample = tuple[str, Any]  # a path; and a class index, or what another task has


@dataclass(frozen=True)
class Reading:
    """How the images of a data set are read and divided.

    Attributes:
        image_size: Side of the square that images are brought to; None: from a sample of them.
        flip: Whether training images are mirrored at random; None: as the data set usually is.
        crop: Pixels of padding before the random crop of training images, 0 for none; None: as usual.
        channels: 1 or 3; None: 1 where all images are gray.
        skip_broken: Leave out files that cannot be read.
        verify: Read every file once, and raise for those that cannot be.
        test_fraction: The part of each class that is held out where there is no test part.
        seed: What is held out, and what of a pool is kept or copied.
        task: What labels are: ``single-label``, ``multi-label`` or ``regression``.
        long_tail: How many times rarer the last class of the pool is than the first.
        duplicates: Part of the pool that is copies of the rest.
    """

    image_size: int | None = None
    flip: bool | None = None
    crop: int | None = None
    channels: int | None = None
    skip_broken: bool = False
    verify: bool = False
    test_fraction: float = 0.2
    seed: int = 0
    task: str = "single-label"
    long_tail: float = 1.0
    duplicates: float = 0.0

    def __post_init__(self) -> None:
        require(self.image_size is None or self.image_size >= 1, "image_size", "at least 1", self.image_size)
        require(self.crop is None or self.crop >= 0, "crop", "at least 0", self.crop)
        require(self.channels in (None, 1, 3), "channels", "1 or 3", self.channels)
        require(1 <= self.long_tail < math.inf, "long_tail", "a number from 1 on", self.long_tail)
        require(0 <= self.duplicates < 1, "duplicates", "in [0, 1)", self.duplicates)
        require(0 < self.test_fraction < 1, "test_fraction", "in (0, 1)", self.test_fraction)
        require(self.task in DATA_TASKS, "task", f"one of {', '.join(DATA_TASKS)}", self.task)


def endings() -> frozenset[str]:
    """Endings of the image files that this Pillow reads, in lower case."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(ending for ending in _ENDINGS if known.get(ending) in Image.OPEN)


def read_image(path: str, *, gray: bool = False) -> Any:
    """The image of a file, upright: RGB or L of 8 bits, or F in [0, 1] for more than 8 bits of gray.

    Raises:
        OSError: it cannot be read, or has numbers without a usual range; the message names the file.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            kind = file.format
            if _orientation(file) != 1:
                ImageOps.exif_transpose(file, in_place=True)
            if file.mode in ("I", "F") or file.mode.startswith("I;16"):
                return _deep(file, kind)
            return file.convert("L" if gray else "RGB")
    except Exception as error:
        said = " ".join(str(error).replace(repr(path), "").split()) or type(error).__name__
        raise OSError(f"{path} cannot be read as an image: {said}") from error


def _orientation(image: Any) -> int:
    """How the camera was held, by EXIF; 1, upright, where it does not say."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except (SyntaxError, ValueError, KeyError, TypeError, struct.error):  # torn EXIF beside a whole image
        return 1


def _deep(image: Any, kind: str | None) -> Any:
    """Gray of 16 bits, or floating, as F in [0, 1]."""
    from PIL import Image

    values = np.asarray(image).astype(np.float32)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # NaN is neither
            raise ValueError(f"floating values must be in [0, 1], got {values.min():g} to {values.max():g}")
    elif image.mode == "I" and kind not in ("PNG", "PPM"):
        raise ValueError("whole numbers of 32 bits have no usual range (mode I): save 8 or 16 bits")
    else:
        values /= 65535
    return Image.fromarray(values)


class ImageFiles(Dataset[Any]):
    """Image files with labels: items are (image, label), as torchvision's ``ImageFolder`` has them.

    >>> from prunefuse.data import ImageFiles
    >>> ImageFiles([("a/0.png", 0), ("b/0.png", 1)], ["a", "b"]).targets
    [0, 1]

    Args:
        samples: Path and class index of each, or what another task has for a label.
        classes: Names of the classes.
        transform: What is done to an image of Pillow.
        gray: Read as one channel.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: Sequence[str],
        transform: Callable[[Any], Any] | None = None,
        *,
        gray: bool = False,
    ) -> None:
        self.samples = list(samples)
        self.classes = list(classes)
        self.targets = [label for _, label in self.samples]
        self.transform = transform
        self.gray = gray

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        path, label = self.samples[index]
        image = read_image(path, gray=self.gray)
        return image if self.transform is None else self.transform(image), label


def data_of_files(
    name: str,
    train: Sequence[Sample],
    test: Sequence[Sample],
    classes: Sequence[str],
    reading: Reading,
    notes: Iterable[str] = (),
    *,
    width: int | None = None,
) -> Data:
    """Training part, pool and test part of image files, with transforms.

    Raises:
        OSError: a file cannot be read and is not to be skipped.
        ValueError: fewer than two classes, or no file of a part or a training class is left.

    ``width`` is how many outputs a network has; None: one for each class.
    """
    said, single = list(notes), reading.task == "single-label"
    if single and len(classes) < 2:
        got = f"only {classes[0]!r}" if classes else "none"
        raise ValueError(f"data {name}: there must be two classes or more, got {got}")
    if reading.verify or reading.skip_broken:
        broken = find_broken([path for path, _ in (*train, *test)])
        if broken and not reading.skip_broken:
            raise OSError(
                f"data {name}: {_files(len(broken))} cannot be read: {_listed(broken.values())}; "
                "skip_broken (--skip-broken) leaves them out"
            )
        if broken:
            train = [sample for sample in train if sample[0] not in broken]
            test = [sample for sample in test if sample[0] not in broken]
            said.append(f"left out, as they cannot be read: {_listed(broken.values(), most=1000)}")
    there = {label for _, label in train}
    empty = [one for label, one in enumerate(classes) if single and label not in there]
    if not train or empty:
        of = f" of {', '.join(empty)}" if empty else ""
        raise ValueError(f"data {name}: there is no training image{of}")
    if not test:
        raise ValueError(f"data {name}: there is no test image")
    step = max(1, len(train) // SAMPLED)
    sampled = [header(path) for path, _ in train[::step]]
    gray = reading.channels == 1
    if reading.channels is None and all(mode in GRAY_MODES for mode, _ in sampled):
        with ThreadPoolExecutor(_THREADS) as pool:
            gray = all(mode in GRAY_MODES for mode, _ in pool.map(header, [p for p, _ in (*train, *test)]))
    sides = sorted(side for _, side in sampled)
    side = reading.image_size or min(median_low(sides), MAX_SIDE)
    if sides[0] == sides[-1] == side:
        why = ""
    elif reading.image_size:
        why = f" (the shorter sides of {len(sides)} of them are {sides[0]} to {sides[-1]})"
    else:
        why = f", from the shorter sides of {len(sides)} of them, {sides[0]} to {sides[-1]}; --image-size sets it"
    said.insert(0, f"images are read as {'1' if gray else '3'}x{side}x{side}{why}")
    training, plain = transforms_of(side, 1 if gray else 3, reading)

    def part(samples: Sequence[Sample], transform: Callable[[Any], Any]) -> ImageFiles:
        return ImageFiles(samples, classes, transform, gray=gray)

    return Data(
        part(train, training),
        part(train, plain),
        part(test, plain),
        width or len(classes),
        (1 if gray else 3, side, side),
        name,
        tuple(said),
        tuple(classes),
        tuple(path for path, _ in train),
    )


def transforms_of(
    side: int, channels: int, reading: Reading
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Transforms of training images, and of others, to squares of this side."""
    from torchvision import transforms

    resize = [transforms.Resize(side), transforms.CenterCrop(side)]
    to_tensor = [
        transforms.ToTensor(),
        _Channels(channels),
        transforms.Normalize(*(_GRAY if channels == 1 else _COLOR)),
    ]
    augment: list[Any] = []
    pad = max(1, side // 8) if reading.crop is None else reading.crop
    if pad:
        augment.append(transforms.RandomCrop(side, padding=pad))
    if reading.flip is not False:
        augment.append(transforms.RandomHorizontalFlip())
    return transforms.Compose(resize + augment + to_tensor), transforms.Compose(resize + to_tensor)


class _Channels:
    """One channel as often as there are to be."""

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, image: Tensor) -> Tensor:
        return image if len(image) == self.channels else image.expand(self.channels, -1, -1)


def find_broken(paths: Sequence[str]) -> dict[str, str]:
    """The files that cannot be read, with what is wrong. Every file is decoded, JPEG at an eighth of its size."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = zip(paths, pool.map(_wrong, paths), strict=True)
        return {path: wrong for path, wrong in found if wrong is not None}


def _wrong(path: str) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.format == "JPEG":
                image.draft("L", (1, 1))
                image.load()
                return None
        read_image(path)
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        return said if path in said else f"{path} cannot be read as an image: {said}"
    return None


def header(path: str) -> tuple[str, int]:
    """Mode and shorter side of an image, without decoding it."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.mode, min(image.size)
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise OSError(said if path in said else f"{path} cannot be read as an image: {said}") from error


def upright_size(path: str) -> tuple[int, int]:
    """Width and height of an image as `read_image` gives it, without decoding it.

    Raises:
        OSError: it cannot be read; the message names the file.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if _orientation(image) >= 5 else (width, height)
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise OSError(said if path in said else f"{path} cannot be read as an image: {said}") from error


def _files(count: int) -> str:
    return f"{count} files" if count > 1 else "a file"


def _listed(things: Iterable[str], most: int = 10) -> str:
    words = list(things)
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return "; ".join(words[:most]) + more


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` as the home folder."""
    return Path(path).expanduser()
