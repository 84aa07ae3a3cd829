"""A folder of image files, one sub-folder per class: ``PATH/train/<class>/*`` and ``PATH/test/<class>/*``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunefuse.data._types import Data

MAX_SIDE = 224


def folder(path: str) -> Data:
    """The images under ``path``, in RGB; the test part is ``test/``, or ``val/`` where there is no ``test/``.

    All images are brought to one square size: the shorter side of the first training image, at most 224, by
    resizing the shorter side and cropping the center. Training images get a random crop after padding by an
    eighth of the size, and a horizontal flip; values are normalized by ImageNet's statistics.

    Raises:
        FileNotFoundError: ``path``, its ``train/`` or its test part is missing, or a class has no images.
        ValueError: training and test part have different classes.
    """
    from torchvision import transforms

    base = Path(path)
    train_part = base / "train"
    test_part = base / "test" if (base / "test").is_dir() else base / "val"
    for part in (train_part, test_part):
        if not part.is_dir():
            raise FileNotFoundError(
                f"folder must have {train_part.absolute()}/<class>/<image> and "
                f"{base.absolute()}/test/<class>/<image> (or val/); there is no folder {part.absolute()}"
            )
    plain = _images(path, train_part, None)
    side = min(*plain[0][0].size, MAX_SIDE)
    resize = [transforms.Resize(side), transforms.CenterCrop(side)]
    to_tensor = [
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    augment = [transforms.RandomCrop(side, padding=max(1, side // 8)), transforms.RandomHorizontalFlip()]
    evaluation = transforms.Compose(resize + to_tensor)
    train = _images(path, train_part, transforms.Compose(resize + augment + to_tensor))
    pool = _images(path, train_part, evaluation)
    test = _images(path, test_part, evaluation)
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"folder must have the same classes in {train_part} and {test_part}, got {', '.join(differing)} in one only"
        )
    return Data(train, pool, test, len(train.classes), (3, side, side), f"folder:{path}")


def _images(path: str, part: Path, transform: Callable[[Any], Any] | None) -> Any:
    """The images under ``part``, by class.

    Raises:
        FileNotFoundError: there are no classes, or one has no images; names the data set and the folders.
    """
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(part), transform)
    except FileNotFoundError as error:
        classes = sorted(folder for folder in part.iterdir() if folder.is_dir())
        if not classes:
            raise FileNotFoundError(f"data folder:{path}: no class folders in {part}") from error
        # torchvision's message names the classes without images, and not where they are.
        raise FileNotFoundError(f"data folder:{path}: in {part}: {error}") from error
