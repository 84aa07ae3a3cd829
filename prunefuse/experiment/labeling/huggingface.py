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

from prunefuse.experiment.labeling import table
from prunefuse.experiment.labeling.project import Project
from prunefuse.experiment.labeling.table import Pick, Row, refuse

_NAME = "file_name"
_COLUMNS = (_NAME, *table.COLUMNS[1:])


def lines(project: Project, picks: Sequence[Pick]) -> str:
    """The metadata of a batch as ``metadata.jsonl``, null where nothing is known."""
    found = ({_NAME: row.pop("path"), **row} for row in table.fields(project, picks))
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
    found, wrong = list[Row](), list[str]()
    for number, line in enumerate(content.decode("utf-8-sig", "surrogateescape").splitlines(), 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
        except ValueError as error:
            wrong.append(f"{path}, line {number}: must be JSON: {error}")
            continue
        if not isinstance(told, dict) or not isinstance(told.get(_NAME), str):
            wrong.append(f"{path}, line {number}: must be an object with {_NAME}")
            continue
        known = {name: told.get(name) for name in ("label", "annotator", "note", "index")}
        if bad := [name for name, value in known.items() if not _is_text(value)]:
            wrong.append(
                f"{path}, line {number}: {bad[0]} of {told[_NAME]} must be a name, got {known[bad[0]]!r}"
            )
            continue
        words = {name: "" if value is None else str(value).strip() for name, value in known.items()}
        found.append(Row(f"line {number}", told[_NAME], **words))
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


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str) or type(value) is int
