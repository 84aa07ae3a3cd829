"""Batches as metadata of an image folder of Hugging Face ``datasets``, and read back: ``metadata.csv`` or ``metadata.jsonl``.

The column ``file_name`` is the path from the folder of images, where the file is to lie.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunefuse.data._texts import objects
from prunefuse.experiment.labeling import table
from prunefuse.experiment.labeling.answers import SEPARATOR, joined, parts
from prunefuse.experiment.labeling.project import Project
from prunefuse.experiment.labeling.table import Pick, Row, refuse

_NAME = "file_name"
_COLUMNS = (_NAME, *table.COLUMNS[1:])


def lines(project: Project, picks: Sequence[Pick]) -> str:
    """The metadata of a batch as ``metadata.jsonl``, null where nothing is known; of texts, their names and texts.

    Labels are lists where a sample may have several.
    """
    key = project.source.key
    found = []
    for row in table.fields(project, picks):
        name = {_NAME: row.pop(key)} if project.texts is None else {}
        if project.several:
            row = {**row, **{n: parts(row[n]) for n in ("label", "predicted") if row[n]}}
        found.append({**name, **row})
    return "".join(
        json.dumps({name: None if value == "" else value for name, value in row.items()}) + "\n"
        for row in found
    )


def text(project: Project, picks: Sequence[Pick]) -> str:
    """The metadata of a batch as ``metadata.csv``."""
    written = table.text(project, picks)
    return _NAME + written.removeprefix("path")


def rows_of_csv(content: bytes, path: Path, project: Project) -> tuple[Row, ...]:
    """The labels of ``metadata.csv``.

    Raises:
        ConfigError: as `table.parsed`.
    """
    return table.parsed(content, path, name=_NAME)


def rows(content: bytes, path: Path, project: Project) -> tuple[Row, ...]:
    """The labels of ``metadata.jsonl``; without ``label``, or with null, an image is not labeled yet.

    Raises:
        ConfigError: lines that are no objects with a file name, or have a label that is no name; names each.
    """
    name = _NAME if project.texts is None else project.source.key
    found, wrong = list[Row](), list[str]()
    for number, line in objects(content.decode("utf-8-sig", "surrogateescape")):
        try:
            told = json.loads(line)
        except ValueError as error:
            wrong.append(f"{path}, line {number}: must be JSON: {error}")
            continue
        place = told.get(name) if isinstance(told, dict) else None
        if project.texts is not None and type(place) is int:
            place = str(place)
        if not isinstance(place, str):
            wrong.append(f"{path}, line {number}: must be an object with {name}")
            continue
        known = {field: told.get(field) for field in ("label", "annotator", "note", "index")}
        if project.several and isinstance(known["label"], list) and all(map(_is_one, known["label"])):
            known["label"] = joined(known["label"])
        if bad := [field for field, value in known.items() if not _is_text(value)]:
            wrong.append(f"{path}, line {number}: {bad[0]} of {place} must be a name, got {known[bad[0]]!r}")
            continue
        words = {field: "" if value is None else str(value).strip() for field, value in known.items()}
        found.append(Row(f"line {number}", place, **words))
    refuse(wrong, path)
    return tuple(found)


def recognizes_csv(content: bytes) -> bool:
    """Whether the header has file names instead of paths."""
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    head = content.decode(encoding, "replace").split("\n", 1)[0].lower().strip()
    names = {
        name.strip() for name in next(csv.reader(io.StringIO(head.replace(";", ",").replace("\t", ","))), [])
    }
    return _NAME in names and "path" not in names


def _is_one(value: Any) -> bool:
    return isinstance(value, str) and SEPARATOR not in value


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str) or type(value) is int
