"""The images of a folder: which there are, and how a network and a person see them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any

from prunefuse.errors import ConfigError
from prunefuse.experiment.labeling.config import LabelConfig

if TYPE_CHECKING:
    from prunefuse.data import Data


@dataclass(frozen=True)
class Images:
    """The images of a folder.

    Attributes:
        base: The folder.
        config: How images are read.
    """

    base: Path
    config: LabelConfig

    noun = "image"
    key = "path"

    def listed(self) -> Iterator[str]:
        """The paths of the images that are there; none where the folder is not."""
        return listed(self.base) if self.base.is_dir() else iter(())

    def broken(self, names: Sequence[str], *, skip: bool) -> tuple[str, ...]:
        """The files that cannot be read as images; as `broken`."""
        return broken(self.base, names, skip=skip)

    def check_standing(self) -> None:
        """Nothing: an image is known by its path."""

    def hashes(self, names: Sequence[str]) -> dict[str, str]:
        """Nothing, likewise."""
        return {}

    def size(self, names: Sequence[str]) -> str:
        """How a network reads them, in words."""
        return f"images are read as {'x'.join(map(str, shape(self.base, names, self.config)))}"

    def data(self, names: Sequence[str], classes: Sequence[str]) -> Data:
        """The images as a pool, and with augmentation for training; as `data_of`."""
        return data_of(self.base, names, classes, self.config)


def listed(base: Path) -> Iterator[str]:
    """The image files under a folder, at any depth, as paths from there with slashes; hidden ones are nothing."""
    from prunefuse.data._folder import hidden
    from prunefuse.data._images import endings

    known = endings()
    for place, folders, names in os.walk(base, followlinks=True):
        folders[:] = sorted(name for name in folders if not hidden(name))
        for name in sorted(names):
            if not hidden(name) and os.path.splitext(name)[1].lower() in known:
                yield (Path(place) / name).relative_to(base).as_posix()


def broken(base: Path, paths: Sequence[str], *, skip: bool) -> tuple[str, ...]:
    """The files that cannot be read as images.

    Raises:
        ConfigError: there are some, and they are not to be skipped.
    """
    from prunefuse.data._images import find_broken

    found = find_broken([str(base / path) for path in paths])
    if found and not skip:
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise ConfigError(
            f"data must have images that can be read, got {'; '.join([*found.values()][:5])}{more} "
            "(--skip-broken leaves them out)"
        )
    return tuple(path for path in paths if str(base / path) in found)


def shape(base: Path, paths: Sequence[str], config: LabelConfig) -> tuple[int, int, int]:
    """Channels, height and width that images are read with: one channel if all are gray.

    The size is the one of the configuration, or the median of the shorter sides of some images, at most 224.

    Raises:
        OSError: an image cannot be read.
    """
    from prunefuse.data._images import GRAY_MODES, MAX_SIDE, SAMPLED, header

    some = [header(str(base / path)) for path in paths[:: max(1, len(paths) // SAMPLED)]]
    side = config.image_size or min(median_low(side for _, side in some), MAX_SIDE)
    gray = all(mode in GRAY_MODES for mode, _ in some)
    gray = gray and all(header(str(base / path))[0] in GRAY_MODES for path in paths)
    return 1 if gray else 3, side, side


def size(path: Path) -> tuple[int, int]:
    """Width and height of the image of a file, upright.

    Raises:
        OSError: it cannot be read; names the file.
    """
    from prunefuse.data._images import upright_size

    return upright_size(str(path))


def data_of(base: Path, paths: Sequence[str], classes: Sequence[str], config: LabelConfig) -> Data:
    """The images as a pool, and with augmentation for training; their labels are -1 and not used.

    Raises:
        OSError: an image cannot be read.
    """
    from prunefuse.data import Data
    from prunefuse.data._images import ImageFiles, Reading, transforms_of

    size = shape(base, paths, config)
    training, plain = transforms_of(size[1], size[0], Reading(flip=config.flip, crop=config.crop))
    samples = [(str(base / path), -1) for path in paths]
    train, pool = (ImageFiles(samples, classes, one, gray=size[0] == 1) for one in (training, plain))
    return Data(train, pool, None, len(classes), size, str(base))


def seen(path: Path) -> Any:
    """The image of a file as a person sees it, upright, in 8 bits.

    Raises:
        OSError: it cannot be read; names the file.
    """
    from prunefuse.data._images import read_image

    image = read_image(str(path))
    return image.point(lambda value: value * 255).convert("L") if image.mode == "F" else image
