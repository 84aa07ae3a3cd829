"""A folder of image files, one sub-folder per class, with a training and a test part or without."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from prunefuse.data._images import Reading, Sample, data_of_files, endings, expanded
from prunefuse.data._split import held_out
from prunefuse.data._types import Data

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")
_NOTHING = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini")
CLASSES = "classes.txt"
LAYOUT = "PATH/train/CLASS/IMAGE and PATH/test/CLASS/IMAGE (or val/), or PATH/CLASS/IMAGE, of which a part is held out"


def folder(path: str, reading: Reading) -> Data:
    """The images under ``path``; the test part is ``test/``, or else ``val/``, ``valid/`` or ``validation/``.

    Without ``train/`` the folders are classes, and a part of each is held out for testing. Names that begin with a dot, and
    what systems leave behind, are nothing. Other files that are no images are counted in the notes. A class may lack test
    images, where its folder in the test part is empty or ``classes.txt`` names it.

    All images are brought to one square size, by resizing the shorter side and cropping the center. It is the median of the
    shorter sides of some training images, at most 224. Training images get a random crop after padding by an eighth of the
    size, and a horizontal flip; values are normalized by ImageNet's statistics.

    Raises:
        FileNotFoundError: ``path``, its ``train/`` or its test part is missing, or a class has no images.
        ValueError: training and test part have different classes, or there are fewer than two.
        OSError: an image cannot be read.
    """
    base = expanded(path)
    left: Counter[str] = Counter()
    parts = {entry.name.lower(): entry for entry in _folders(base)}
    train_part = next((parts[name] for name in _TRAIN if name in parts), None)
    test_part = next((parts[name] for name in _TEST if name in parts), None)
    if train_part is not None and test_part is None and len(parts) > 1 and not _folders(train_part):
        train_part = None  # a class of that name
    named = _named_classes(base)
    if train_part is None and test_part is None and parts:
        classes = named or sorted(entry.name for entry in parts.values())
        samples = _samples(path, base, classes, left, may_lack=False)
        _require_classes(path, base, classes)
        kept, chosen = held_out([label for _, label in samples], reading.test_fraction, reading.seed)
        train, test = [samples[i] for i in kept], [samples[i] for i in chosen]
        notes = [
            f"{len(test)} of {len(samples)} images are the test part, {reading.test_fraction:g} of each class by seed "
            f"{reading.seed} (--test-fraction)"
        ]
        return data_of_files(f"folder:{path}", train, test, classes, reading, [*notes, *_told(left)])
    for part, missing in ((train_part, base / "train"), (test_part, base / "val")):
        if part is None:
            raise FileNotFoundError(
                f"folder must have {base.absolute()}/train/<class>/<image> and "
                f"{base.absolute()}/test/<class>/<image> (or val/), or <class>/<image> without a test part; "
                f"there is no folder {missing.absolute()}"
            )
    assert train_part is not None
    assert test_part is not None
    classes = named or _class_names(path, train_part)
    of_test = {entry.name for entry in _folders(test_part)}
    differing = sorted(of_test - set(classes) if named else set(classes) ^ of_test)
    if differing:
        raise ValueError(
            f"folder must have the same classes in {train_part} and {test_part}, got {', '.join(differing)} in one "
            f"only; an empty folder in the test part, or {CLASSES} with the names, says that a class has no test images"
        )
    train = _samples(path, train_part, classes, left, may_lack=False)
    _require_classes(path, train_part, classes)
    test = _samples(path, test_part, classes, left, may_lack=True)
    return data_of_files(f"folder:{path}", train, test, classes, reading, _told(left))


def hidden(name: str) -> bool:
    return name.startswith(".") or name in _NOTHING


def _folders(base: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    if not base.is_dir():
        return []
    return sorted(entry for entry in base.iterdir() if entry.is_dir() and not hidden(entry.name))


def _class_names(path: str, part: Path) -> list[str]:
    names = [entry.name for entry in _folders(part)]
    if not names:
        raise FileNotFoundError(f"data folder:{path}: no class folders in {part}")
    return names


def _named_classes(base: Path) -> list[str]:
    """Names of ``classes.txt``, one a line; none without it."""
    listed = base / CLASSES
    if not listed.is_file():
        return []
    return [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]


def _require_classes(path: str, part: Path, classes: Sequence[str]) -> None:
    if len(classes) >= 2:
        return
    deeper = [entry.name for entry in _folders(part / classes[0])]
    hint = f"; are {', '.join(deeper[:5])} in {part / classes[0]} the classes?" if len(deeper) > 1 else ""
    raise ValueError(
        f"data folder:{path}: a folder must have two classes or more, got only {classes[0]!r} in {part}; "
        f"the layout is {LAYOUT}{hint}"
    )


def _samples(
    path: str, part: Path, classes: Sequence[str], left: Counter[str], *, may_lack: bool
) -> list[Sample]:
    """The images by class, in the order of torchvision's ``ImageFolder``; what is left out is counted by ending."""
    known, found = endings(), list[Sample]()
    empty = []
    for label, name in enumerate(classes):
        before = len(found)
        for file in _files_in(part / name):
            if os.path.splitext(file)[1].lower() in known:
                found.append((file, label))
            else:
                left[os.path.splitext(file)[1].lower() or "no ending"] += 1
        if len(found) == before:
            empty.append(name)
    if empty and not may_lack:
        raise FileNotFoundError(
            f"data folder:{path}: in {part}: found no image for the classes {', '.join(empty)}. Endings read are "
            f"{', '.join(sorted(known))}"
        )
    return found


def _files_in(folder: Path) -> Iterator[str]:
    for root, _, names in sorted(os.walk(folder, followlinks=True)):
        if any(map(hidden, Path(root).relative_to(folder).parts)):
            continue
        yield from (os.path.join(root, name) for name in sorted(names) if not hidden(name))


def _told(left: Counter[str]) -> list[str]:
    """What is left out, by ending."""
    if not left:
        return []
    endings = ", ".join(f"{count} of {ending}" for ending, count in left.most_common())
    return [f"left out, as they are no images that are read: {endings}"]
