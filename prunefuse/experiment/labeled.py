"""Labels that there are before a run starts: a CSV file, matched to the pool."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from prunefuse._files import text_of_table
from prunefuse.data import Data
from prunefuse.data._answers import NONE, SEPARATOR, numbers, parts
from prunefuse.data._labels import OwnLabels
from prunefuse.errors import ConfigError
from prunefuse.experiment.loop_config import task_named
from prunefuse.training._predict import task_targets

_MOST = 10  # wrong lines that are named


def read_labeled(file: str, data: Data, task: str = "single-label") -> dict[int, Any]:
    """Labels by pool index of the samples that a CSV file lists.

    Columns are ``path`` (or ``id``) or ``index``, and perhaps ``label``: a name, or the index of a class; several of them, or
    numbers, where the task has these. Rows with an empty
    label are not labeled. Without that column the labels are the data set's. Paths start at the folder of the file, that of
    the data set, or the current one. Commas, semicolons or tabs stand between columns. A file may also have an index in each
    line, and nothing else.

    Raises:
        ConfigError: it cannot be read, has no such columns, or a line names an unknown sample or class; names each line.
    """
    found = _listed("labeled", file, data, partial(_answer, data=data, task=task))
    own = [index for index, answer in found.items() if answer is None]
    targets = task_targets(task_named(task))
    answers = dict(zip(own, map(_plain, OwnLabels(data.pool, targets)(own)), strict=True)) if own else {}
    return {index: answers[index] if answer is None else answer for index, answer in found.items()}


def read_excluded(file: str, data: Data) -> list[int]:
    """Pool indices of the samples that a CSV file lists, by the columns ``path`` (or ``id``) or ``index``.

    Raises:
        ConfigError: as `read_labeled`.
    """
    return list(_listed("exclude", file, data))


def _listed(
    argument: str, file: str, data: Data, answered: Callable[[str], Any] | None = None
) -> dict[int, Any]:
    """Pool indices of the rows of a file, and what labels mean by ``answered``, None where there is no column of them."""
    place = Path(file).expanduser()
    try:
        text, delimiter = text_of_table(place.read_bytes())
    except OSError as error:
        raise ConfigError(f"{argument}: {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{argument}: {file} must be text: {error.reason}") from error
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    first = next(lines, [])
    alone = len(first) == 1 and first[0].strip().isdecimal()  # indices without a header
    header = ["index"] if alone else [name.strip().lower() for name in first]
    key = next((name for name in ("index", "path", "id") if name in header), None)
    if key is None:
        raise ConfigError(
            f"{argument}: {file} must have a column path or index, got {', '.join(header) or 'none'}"
        )
    known = _indices(data, place) if key != "index" else {}
    found: dict[int, Any] = {}
    wrong: list[str] = []
    for fields in chain([first] if alone else [], lines):
        if not any(field.strip() for field in fields):
            continue
        where = f"{file}, line {lines.line_num}"
        if len(fields) != len(header):
            wrong.append(f"{where}: fields must be {len(header)}, got {len(fields)}")
            continue
        row = dict(zip(header, fields, strict=True))
        label = row.get("label", "").strip() if answered else ""
        if answered and "label" in row and not label:
            continue
        index = _index(row[key], len(data.pool)) if key == "index" else _place(row[key], known, place, data)
        if index is None:
            wrong.append(f"{where}: {key} must be of a sample of the pool, got {row[key]!r}")
            continue
        try:
            answer = answered(label) if answered and label else None
        except ValueError as error:
            wrong.append(f"{where}: label must be {error}, got {label!r}")
            continue
        if index in found:
            wrong.append(f"{where}: a sample must have one line, got {row[key]!r} again")
        else:
            found[index] = answer
    if wrong:
        more = f"; and {len(wrong) - _MOST} more" if len(wrong) > _MOST else ""
        raise ConfigError(f"{argument}: {'; '.join(wrong[:_MOST])}{more}")
    if not found:
        raise ConfigError(
            f"{argument}: {file} must have a sample{' with a label' * bool(answered)}, got none"
        )
    return found


def summary(samples: Mapping[int, Any] | Sequence[int]) -> str:
    """What samples a file lists, to compare with when a run goes on."""
    listed = samples.items() if isinstance(samples, Mapping) else samples
    content = repr(sorted(listed)).encode()
    return f"{len(samples)} samples with SHA-256 {hashlib.sha256(content).hexdigest()}"


def _index(text: str, pool: int) -> int | None:
    return int(text) if text.strip().isdecimal() and int(text) < pool else None


def _answer(text: str, data: Data, task: str) -> Any:
    """What a label means; ``ValueError`` says what it must be."""
    if task == "regression":
        try:
            found = numbers(text)
        except ValueError:
            found = ()
        if len(found) != data.num_classes:
            several = f"{data.num_classes} finite numbers with {SEPARATOR} between them"
            raise ValueError("a finite number" if data.num_classes == 1 else several)
        return found
    some = ", ".join(data.classes[:20]) or f"0 to {data.num_classes - 1}"
    if task == "multi-label":
        classes = {_class(name, data) for name in parts(text)}
        if None in classes:
            raise ValueError(f"any of {some} with {SEPARATOR} between them, or {NONE}")
        return tuple(int(place in classes) for place in range(data.num_classes))
    one = _class(text, data)
    if one is None:
        raise ValueError(f"one of {some}")
    return one


def _plain(label: Any) -> Any:
    return label if isinstance(label, int) else tuple(label.tolist())


def _class(text: str, data: Data) -> int | None:
    if text in data.classes:
        return data.classes.index(text)
    return int(text) if text.isdecimal() and int(text) < data.num_classes else None


def _indices(data: Data, file: Path) -> dict[str, int]:
    """Pool indices by what the samples are called; of files, also by their absolute paths."""
    if data.ids is None:
        return {str(index): index for index in range(len(data.pool))}
    known = {os.path.abspath(name): index for index, name in enumerate(data.ids)}
    return known | {name: index for index, name in enumerate(data.ids)}


def _place(text: str, known: Mapping[str, int], file: Path, data: Data) -> int | None:
    base = Path(data.name.partition(":")[2]).expanduser()
    bases = (Path(), file.parent, base if base.is_dir() else base.parent)
    forms = (text, text.strip(), *(os.path.abspath(where / text.strip()) for where in bases))
    return next((known[form] for form in forms if form in known), None)
