"""Places-365 and ImageNet, laid out, read and checked by torchvision; images are decoded when they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunefuse.data._images import Reading
from prunefuse.data._types import Data

SIDE = 224
_LAYOUT = {
    "places365": "categories_places365.txt, places365_train_standard.txt, places365_val.txt and the images in "
    "data_256_standard/ and val_256/ (or data_large_standard/ and val_large/)",
    "imagenet": "train/<wnid>/, val/<wnid>/ and meta.bin, or the archives ILSVRC2012_devkit_t12.tar.gz, "
    "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which are unpacked there",
}


def large(name: str, root: str | os.PathLike[str], download: bool, reading: Reading) -> Data:
    """Places-365 (standard) or ImageNet (2012); the validation part is the test part.

    Transforms are the usual ones: a random crop of 8 to 100 % of the area, at 224 x 224, and a horizontal flip for
    training; the middle 224 x 224 of the image with its shorter side brought to 256 otherwise; ImageNet's statistics.

    Raises:
        FileNotFoundError: the files are not in ``root``, or damaged; says which are expected.
        ConnectionError: the download failed.
        ValueError: ``download`` of ImageNet, which cannot be fetched without an account; or another ``crop``.
    """
    from torchvision import transforms

    if reading.crop is not None:
        raise ValueError(
            f"crop must be left out with {name}, whose random crops are of the area, got {reading.crop}"
        )
    if download and name == "imagenet":
        raise ValueError(
            "download must be False for ImageNet, got True; get its archives from image-net.org, into root"
        )
    to_tensor = [
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    flip = [] if reading.flip is False else [transforms.RandomHorizontalFlip()]
    augmented = transforms.Compose([transforms.RandomResizedCrop(SIDE), *flip, *to_tensor])
    plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(SIDE), *to_tensor])
    open_part = _places365 if name == "places365" else _imagenet

    def part(split: str, transform: Callable[[Any], Any]) -> Any:
        try:
            return open_part(os.fspath(root), split, transform, download)
        except (RuntimeError, FileNotFoundError) as error:
            advice = " With download=True (--download) it is fetched there." if name == "places365" else ""
            raise FileNotFoundError(
                f"{name} was not found (or is damaged) in {Path(root).absolute()} (root, --root), where "
                f"{_LAYOUT[name]} are expected: {error}.{advice}"
            ) from error
        except OSError as error:
            if not download:
                raise
            raise ConnectionError(f"{name} could not be downloaded to {root}: {error}") from error

    train = part("train", augmented)
    # ImageNet's classes have several names each.
    classes = tuple(one if isinstance(one, str) else ", ".join(one) for one in train.classes)
    ids = tuple(path for path, _ in train.imgs)
    shape = (3, SIDE, SIDE)
    return Data(
        train, part("train", plain), part("val", plain), len(classes), shape, name, classes=classes, ids=ids
    )


def _places365(root: str, split: str, transform: Callable[[Any], Any], download: bool) -> Any:
    from torchvision.datasets import Places365

    size = "large" if (Path(root) / "data_large_standard").is_dir() else "256"
    part = Places365(
        root,
        "train-standard" if split == "train" else split,
        small=size == "256",
        download=download,
        transform=transform,
    )
    # torchvision reads the lists alone: say at once that the images are missing, not after hours.
    first = Path(part.imgs[0][0])
    if not first.is_file():
        raise FileNotFoundError(f"there is no {first}")
    return part


def _imagenet(root: str, split: str, transform: Callable[[Any], Any], download: bool) -> Any:
    from torchvision.datasets import ImageNet

    return ImageNet(root, split, transform=transform)
