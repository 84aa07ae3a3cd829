"""Batches as metadata of an image folder of Hugging Face ``datasets``, and read back: ``metadata.csv`` or ``metadata.jsonl``.

The column ``file_name`` is the path from the folder of images, where the file is to lie.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from prunefuse.experiment.labeling import table
from prunefuse.experiment.labeling.answers import parts
from prunefuse.experiment.labeling.project import Project
from prunefuse.experiment.labeling.table import Pick, Row

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
        ConfigError: as `table.parsed_lines`.
    """
    name = _NAME if project.texts is None else project.source.key
    return table.parsed_lines(content, path, name=name, several=project.several)


def recognizes_csv(content: bytes) -> bool:
    """Whether the header has file names instead of paths."""
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    head = content.decode(encoding, "replace").split("\n", 1)[0].lower().strip()
    names = {
        name.strip() for name in next(csv.reader(io.StringIO(head.replace(";", ",").replace("\t", ","))), [])
    }
    return _NAME in names and "path" not in names
