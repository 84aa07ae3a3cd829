"""The images of a folder: which there are, and how a network reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any

from prunefuse.errors import ConfigError

if TYPE_CHECKING:
    from prunefuse.data import Data

MAX_SIDE = 224
_SAMPLED = 64  # images that the size is taken from
_NOTHING = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")


def listed(base: Path) -> Iterator[str]:
    """The image files under a folder, at any depth, as paths from there with slashes; hidden ones are nothing."""
    from PIL import Image

    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    for place, folders, names in os.walk(base, followlinks=True):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in sorted(names):
            if not _is_hidden(name) and os.path.splitext(name)[1].lower() in known - {
                ".pdf",
                ".mpg",
                ".mpeg",
            }:
                yield (Path(place) / name).relative_to(base).as_posix()


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _NOTHING


def check(base: Path, paths: Sequence[str]) -> None:
    """Raise ``ConfigError`` for the first files that cannot be opened as images; they are not decoded."""
    from PIL import Image

    def wrong(path: str) -> str | None:
        try:
            with Image.open(base / path) as image:
                image.verify()
        except Exception as error:
            return f"{path} ({' '.join(str(error).split())})"
        return None

    with ThreadPoolExecutor() as threads:
        broken = [found for found in threads.map(wrong, paths) if found]
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ConfigError(
            f"data must have images that can be read, got {', '.join(broken[:5])}{more} in {base}"
        )


def opened(path: Path) -> Any:
    """The image of a file, upright, in RGB.

    Raises:
        OSError: it cannot be read; names the file.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits of gray
                image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
            return image.convert("RGB")
    except FileNotFoundError:
        raise OSError(f"{path} is missing: it was there when the project began") from None
    except Exception as error:
        raise OSError(f"{path} cannot be read as an image: {' '.join(str(error).split())}") from error


class Images:
    """A map-style data set of image files; items are tensors (3, H, W)."""

    def __init__(self, base: Path, paths: Sequence[str], transform: Callable[[Any], Any]) -> None:
        self.samples = [(str(base / path), -1) for path in paths]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.transform(opened(Path(self.samples[index][0])))


def data_of(base: Path, paths: Sequence[str], classes: int) -> Data:
    """The images as a pool, and with augmentation for training, in one square size.

    The size is the median of the shorter sides of some of them, at most 224.

    Raises:
        OSError: an image cannot be read.
    """
    from torchvision import transforms

    from prunefuse.data import Data

    some = paths[:: max(1, len(paths) // _SAMPLED)]
    side = min(median_low(min(opened(base / path).size) for path in some), MAX_SIDE)
    resize = [transforms.Resize(side), transforms.CenterCrop(side)]
    augment = [transforms.RandomCrop(side, padding=max(1, side // 8)), transforms.RandomHorizontalFlip()]
    tensor = [
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    train = Images(base, paths, transforms.Compose([*resize, *augment, *tensor]))
    pool = Images(base, paths, transforms.Compose([*resize, *tensor]))
    return Data(train, pool, None, classes, (3, side, side), str(base))
