"""Image files that a list names: a table of paths and labels, and Tiny ImageNet with its annotations."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from prunefuse._extras import needed_for
from prunefuse.data._answers import answers_of
from prunefuse.data._images import Reading, Sample, data_of_files, expanded
from prunefuse.data._split import test_part
from prunefuse.data._types import Data

PARTS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test", "": "train"}


def table(path: str, reading: Reading) -> Data:
    """Images by a CSV or Parquet file with the columns ``path``, ``label`` and, if there is a test part, ``split``.

    Paths start at the folder of the file. Labels are what the task has (`answers_of`); classes are sorted. ``split`` is
    ``train`` or ``test`` (or ``val``). Without it a part of each class is held out.

    Raises:
        FileNotFoundError: there is no such file, or it lists an image that is not there.
        ValueError: a column is missing, or a row has no label, one that the task has not, or another split; the message names
            the row.
        MissingPackageError: it is Parquet, and pyarrow is not installed.
    """
    name, file = f"table:{path}", expanded(path)
    if not file.is_file():
        raise FileNotFoundError(f"data {name}: there is no file {file.absolute()}")
    rows = list(_parquet(name, file) if file.suffix.lower() == ".parquet" else _csv(file))
    if not rows or not {"path", "label"} <= rows[0].keys():
        got = ", ".join(rows[0]) if rows else "no rows"
        raise ValueError(f"data {name}: there must be columns path and label, got {got}")
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    written: list[tuple[str, str]] = []
    for number, row in enumerate(rows, start=1):
        label, split = _text(row["label"]), _text(row.get("split")).lower()
        if not label:
            raise ValueError(f"data {name}: row {number} must have a label, got none for {row['path']}")
        if split not in PARTS:
            raise ValueError(f"data {name}: split must be train, test or val, got {split!r} in row {number}")
        image = os.path.join(file.parent, os.path.expanduser(_text(row["path"])))
        if not os.path.isfile(image):
            raise FileNotFoundError(f"data {name}: row {number} names {image}, which is not there")
        parts[PARTS[split]].append((image, label))
        written.append((f"row {number}", label))
    answers = answers_of(name, written, reading.task)
    train, test = ([(image, answers.of[label]) for image, label in parts[part]] for part in ("train", "test"))
    notes = list(answers.notes)
    if not test:
        targets = [target for _, target in train]
        kept, chosen, note = test_part(targets, reading.test_fraction, reading.seed, "images")
        notes.append(note)
        train, test = [train[i] for i in kept], [train[i] for i in chosen]
    return data_of_files(name, train, test, answers.classes, reading, notes, width=answers.width)


def _csv(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
        yield from csv.DictReader(opened)


def _parquet(name: str, file: Path) -> Iterator[Mapping[str, Any]]:
    with needed_for(f"data {name}"):
        parquet = import_module("pyarrow.parquet")
    yield from parquet.read_table(file).to_pylist()


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()


def tiny_imagenet(root: str | os.PathLike[str], reading: Reading) -> Data:
    """Tiny ImageNet: ``wnids.txt``, ``train/<wnid>/images/`` and ``val/images/`` with ``val/val_annotations.txt``.

    The folder is ``root``, or ``tiny-imagenet-200`` in it. The validation part is the test part.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: the annotations name another class.
    """
    base = expanded(root)
    base = base / "tiny-imagenet-200" if (base / "tiny-imagenet-200").is_dir() else base
    listed, annotations = base / "wnids.txt", base / "val" / "val_annotations.txt"
    for needed in (listed, annotations, base / "train", base / "val" / "images"):
        if not needed.exists():
            raise FileNotFoundError(
                f"tiny_imagenet was not found: there is no {needed.absolute()}; unpack tiny-imagenet-200.zip, and give its "
                "folder as root (--root)"
            )
    classes = sorted(listed.read_text(encoding="utf-8").split())
    place = {wnid: index for index, wnid in enumerate(classes)}
    train: list[Sample] = [
        (str(image), place[wnid])
        for wnid in classes
        for image in sorted((base / "train" / wnid / "images").glob("*.JPEG"))
    ]
    test: list[Sample] = []
    for line in annotations.read_text(encoding="utf-8").splitlines():
        image, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in place:
            raise ValueError(f"tiny_imagenet: {annotations} must name classes of {listed}, got {wnid!r}")
        test.append((str(base / "val" / "images" / image), place[wnid]))
    return data_of_files("tiny_imagenet", train, test, classes, reading)
