"""Texts in a file: a table (CSV or TSV) with a column of texts, or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunefuse._files import records, text_of_table

JSON_LINES = (".jsonl", ".ndjson")
ENDINGS = (".csv", ".tsv", ".txt", *JSON_LINES)
_TEXTS = ("sentence", "review", "comment", "message", "content", "body", "document", "tweet", "question")
_OTHERS = (
    "id",
    "index",
    "label",
    "labels",
    "split",
    "annotator",
    "note",
    "path",
)  # columns that have no texts
_SHOWN = 20  # wrong lines that are named


@dataclass(frozen=True)
class TextFile:
    """What a file has.

    Attributes:
        column: Of the texts.
        id_column: Of the names of texts; empty where they are the numbers of rows, counted from 1.
        ids: What the texts are called.
        texts: The texts by name.
        where: In which line each is.
        others: The other columns by name: what they say of each text.
    """

    column: str
    id_column: str
    ids: tuple[str, ...]
    texts: Mapping[str, str]
    where: Mapping[str, str]
    others: Mapping[str, Mapping[str, str]]


def read_texts(path: Path, text: str | None = None, id: str | None = None) -> TextFile:
    """The texts of a file.

    Args:
        path: ``.csv``, ``.tsv`` or ``.txt``, whose columns are apart by commas, semicolons or tabs; or JSON lines, ``.jsonl``
            or ``.ndjson``, an object each. UTF-8, or UTF-16 with a mark.
        text: The column of the texts. None: the one that is called text, or another usual name, or the only one.
        id: The column of their names; empty for numbers of rows. None: the one that is called id, else numbers of rows.

    Raises:
        ValueError: it is not such a file, a column is not there, or lines are wrong, each named.
        OSError: it cannot be read.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path}: texts must be in a file that ends with {', '.join(ENDINGS)}")
    content = path.read_bytes()
    lines = _objects(content, path) if path.suffix.lower() in JSON_LINES else _table(content, path)
    columns = tuple(dict.fromkeys(name for _, row in lines for name in row))
    if not lines:
        raise ValueError(f"{path} must have texts, got none")
    column = _named(path, "text", text, columns) if text is not None else _guessed(path, columns)
    id_column = _named(path, "id", id, columns) if id else "" if id == "" else _like("id", columns)
    if column == id_column:
        raise ValueError(f"{path}: text must be another column than id, got {column} for both")
    texts, where, others, wrong = dict[str, str](), dict[str, str](), dict[str, dict[str, str]](), list[str]()
    for number, (line, row) in enumerate(lines, 1):
        try:
            name = _name(row.get(id_column)) if id_column else str(number)
            if name in texts:
                raise ValueError(f"{id_column} must be different names, got {name!r} as in {where[name]}")
            found = _text(column, row.get(column))
        except ValueError as error:
            wrong.append(f"{path}, {line}: {error}")
            continue
        texts[name], where[name] = found, line
        for other, value in row.items():
            if other not in (column, id_column) and value is not None:
                others.setdefault(other, {})[name] = value if isinstance(value, str) else json.dumps(value)
    refuse(wrong)
    return TextFile(column, id_column, tuple(texts), texts, where, others)


def refuse(wrong: Sequence[str]) -> None:
    """Raise ``ValueError`` with what is wrong, a line each."""
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        raise ValueError("\n".join([*wrong[:_SHOWN], *more]))


def decoded(content: bytes, path: Path) -> str:
    """The text of a file in UTF-8, with or without a mark, or UTF-16 with one.

    Raises:
        ValueError: it is in neither; names the line.
    """
    marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    encoding = "utf-16" if marked else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, "replace").count("\n") + 1
        got = error.object[error.start : error.start + 1].hex()
        raise ValueError(
            f"{path}, line {line}: must be {'UTF-16' if marked else 'UTF-8'}, got the byte 0x{got}: save it as UTF-8"
        ) from error


def _table(content: bytes, path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows, each with its place; a blank row is none."""
    text = decoded(content, path)
    _, delimiter = text_of_table(content)
    lines = records(text, delimiter)
    found, wrong = list[tuple[str, Mapping[str, Any]]](), list[str]()
    try:
        _, header = next(lines, (1, []))
        names = [name.strip() for name in header]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"{path}, line 1: columns must have different names, got {twice[0]!r} twice")
        for line, fields in lines:
            if len(names) > 1 and not any(field.strip() for field in fields):
                continue
            if not fields:
                continue
            if len(fields) != len(names):
                wrong.append(f"{path}, line {line}: fields must be {len(names)}, got {len(fields)}")
            else:
                found.append((f"line {line}", dict(zip(names, fields, strict=True))))
    except csv.Error as error:
        raise ValueError(f"{path}: content must be CSV: {error}") from error
    refuse(wrong)
    return found


def objects(text: str) -> Iterator[tuple[int, str]]:
    """The lines of JSON lines that are not blank, with their numbers; only a line feed ends one."""
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if line.strip():
            yield number, line


def _objects(content: bytes, path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    found, wrong = list[tuple[str, Mapping[str, Any]]](), list[str]()
    for number, line in objects(decoded(content, path)):
        try:
            told = json.loads(line)
        except (ValueError, RecursionError) as error:
            wrong.append(f"{path}, line {number}: must be JSON: {error}")
            continue
        if isinstance(told, dict):
            found.append((f"line {number}", told))
        else:
            wrong.append(f"{path}, line {number}: must be an object, got {type(told).__name__}")
    refuse(wrong)
    return found


def _like(name: str, columns: Sequence[str]) -> str:
    """The column of this name, whatever its case; or nothing."""
    exact = [column for column in columns if column == name]
    return next(iter(exact or [column for column in columns if column.casefold() == name.casefold()]), "")


def _named(path: Path, option: str, name: str, columns: Sequence[str]) -> str:
    found = _like(name.strip(), columns)
    if not found:
        raise ValueError(f"{path}: {option} must be one of its columns, {', '.join(columns)}, got {name!r}")
    return found


def _guessed(path: Path, columns: Sequence[str]) -> str:
    if found := _like("text", columns):
        return found
    usual = [found for name in _TEXTS if (found := _like(name, columns))]
    left = usual or [column for column in columns if column.casefold() not in _OTHERS]
    if len(left) != 1:
        raise ValueError(f"{path}: text must be one of its columns, {', '.join(columns)} (--text COLUMN)")
    return left[0]


def _name(value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"id must be a name or a whole number, got {value!r}")
    name = str(value).strip()
    if not name:
        raise ValueError("id must be a name, got none")
    return _storable("id", name)


def _text(column: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{column} must be a text, got {type(value).__name__}")
    return _storable(column, value)


def _storable(column: str, text: str) -> str:
    """Text that UTF-8 can hold: JSON may write halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{column} must be characters, got half of one: {text[error.start]!r}") from error
    return text
