"""A file of texts with labels as a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunefuse.data._answers import answers_of
from prunefuse.data._images import Reading, expanded
from prunefuse.data._listed import PARTS
from prunefuse.data._split import test_part
from prunefuse.data._tensors import TensorImages
from prunefuse.data._texts import read_texts, refuse
from prunefuse.data._types import Data
from prunefuse.data._words import Tokenize, Vocabulary, numbered


@dataclass(frozen=True)
class TextReading:
    """How texts are read; see `prunefuse.data.load`."""

    text: str | None = None
    id: str | None = None
    vocabulary: int = 20_000
    length: int | None = None
    tokenizer: Tokenize | None = None


def texts(path: str, reading: Reading, how: TextReading) -> Data:
    """Texts by a file (see `read_texts`) with a column ``label`` and, if there is a test part, ``split``.

    Labels are what the task has (`answers_of`); classes are sorted. ``split`` is ``train`` or ``test`` (or ``val``). Without
    it a part of each class is held out. The vocabulary is that of the training texts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file, or a text is empty, or has no label or another split; names each line.
    """
    name, file = f"text:{path}", expanded(path)
    if not file.is_file():
        raise FileNotFoundError(f"data {name}: there is no file {file.absolute()}")
    for option in ("image_size", "flip", "crop"):
        if getattr(reading, option) is not None:
            raise ValueError(f"{option} must be left out with {name}, which has no images")
    table = read_texts(Path(file), how.text, how.id)
    others = {column.casefold(): told for column, told in table.others.items()}
    if "label" not in others:
        raise ValueError(
            f"data {name}: columns must have label, got {table.column}, {', '.join(table.others)}"
        )
    labels, splits = others["label"], others.get("split", {})
    parts: dict[str, list[str]] = {"train": [], "test": []}
    wrong, empty = list[str](), 0
    for one in table.ids:
        split = splits.get(one, "").strip().lower()
        if not labels.get(one, "").strip():
            wrong.append(f"{file}, {table.where[one]}: text {one} must have a label, got none")
        elif split not in PARTS:
            wrong.append(f"{file}, {table.where[one]}: split must be train, test or val, got {split!r}")
        elif table.texts[one].strip():
            parts[PARTS[split]].append(one)
        elif reading.skip_broken:
            empty += 1
        else:
            wrong.append(
                f"{file}, {table.where[one]}: text {one} must not be empty (--skip-broken leaves it out)"
            )
    refuse(wrong)
    train, test = parts["train"], parts["test"]
    written = [(table.where[one], labels[one].strip()) for one in (*train, *test)]
    answers = answers_of(name, written, reading.task)
    targets = {one: answers.of[labels[one].strip()] for one in (*train, *test)}
    notes = [f"left out {empty} texts that are empty"] if empty else []
    notes += answers.notes
    if not test:
        own = [targets[one] for one in train]
        kept, chosen, note = test_part(own, reading.test_fraction, reading.seed, "texts")
        notes.append(note)
        train, test = [train[i] for i in kept], [train[i] for i in chosen]
    seen = [table.texts[one] for one in train]
    words = Vocabulary.of(seen, how.vocabulary) if how.tokenizer is None else None
    size = how.vocabulary if words is None else len(words)
    tokenize = words or how.tokenizer
    assert tokenize is not None
    pool = numbered(seen, train, tokenize, size, how.length)
    held = numbered([table.texts[one] for one in test], test, tokenize, size, pool.shape[1])
    made = [
        TensorImages(rows, _stored([targets[one] for one in ids], reading.task), as_is=True)
        for rows, ids in ((pool, train), (held, test))
    ]
    notes.append(f"texts are read as {pool.shape[1]} words")
    shape = (pool.shape[1],)
    told = (answers.width, shape, name, tuple(notes), answers.classes, tuple(train), size)
    return Data(made[0], made[0], made[1], *told)


def _stored(targets: list[Any], task: str) -> torch.Tensor:
    """Labels as they lie in memory: class indices (N,) int64, zeros and ones (N, L) uint8, or numbers (N, D) float32."""
    kind = {"single-label": torch.int64, "multi-label": torch.uint8, "regression": torch.float32}[task]
    return torch.tensor(targets, dtype=kind)
