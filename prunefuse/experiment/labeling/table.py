"""Labels in CSV files, of spreadsheets and other tools: every wrong line is named before anything is taken."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunefuse import _files as files
from prunefuse._files import records, text_of_table
from prunefuse.data._texts import JSON_LINES, objects
from prunefuse.errors import ConfigError
from prunefuse.experiment.labeling.answers import CANNOT_TELL, SEPARATOR, in_order, joined

if TYPE_CHECKING:
    from prunefuse.experiment.labeling.project import Project

COLUMNS = ("path", "index", "utility", "predicted", "why", "label", "annotator", "note")
TEXT_COLUMNS = ("id", "index", "text", *COLUMNS[2:])


def columns(project: Project) -> tuple[str, ...]:
    """Of a batch."""
    return COLUMNS if project.texts is None else TEXT_COLUMNS


@dataclass(frozen=True)
class Pick:
    """An image to label: its path, and why it is asked; None and empty where nothing is known. Or one with its label.

    A text is likewise; its name is the path.
    """

    path: str
    utility: float | None
    why: str
    predicted: str = ""
    probability: float | None = None
    label: str = ""
    annotator: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A label of a file. ``where`` is its place in the file: lines count from 1, the header included."""

    where: str
    path: str
    label: str
    annotator: str = ""
    note: str = ""
    index: str = ""


def read(path: Path, name: str = "path", *, several: bool = False) -> tuple[Row, ...]:
    """The rows of a file with the columns path (or another ``name``) and label; annotator, note and index may be missing.

    Columns are told by the header, apart by commas, semicolons or tabs. JSON lines have them as names; with ``several``
    their labels may be lists.

    Raises:
        ConfigError: it cannot be read, has not these columns, or a line has more or fewer fields.
    """
    try:
        if path.suffix.lower() in JSON_LINES:
            return parsed_lines(path.read_bytes(), path, name=name, several=several)
        return parsed(path.read_bytes(), path, name=name)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def fields(project: Project, picks: Sequence[Pick]) -> list[dict[str, Any]]:
    """What the columns have; utilities are numbers, None where nothing is known."""
    return [
        {
            project.source.key: pick.path,
            "index": project.index[pick.path],
            **({} if project.texts is None else {"text": project.texts.seen(pick.path)}),
            "utility": None if pick.utility is None else float(f"{pick.utility:.6g}"),
            "predicted": pick.predicted,
            "why": pick.why,
            "label": pick.label,
            "annotator": pick.annotator,
            "note": pick.note,
        }
        for pick in picks
    ]


def text(project: Project, picks: Sequence[Pick]) -> str:
    """The images to label as CSV, which people fill."""
    utilities = ("" if pick.utility is None else f"{pick.utility:.6g}" for pick in picks)
    rows = zip(fields(project, picks), utilities, strict=True)
    return files.csv_text(columns(project), [row | {"utility": utility} for row, utility in rows])


def parsed(content: bytes, path: Path, *, name: str = "path") -> tuple[Row, ...]:
    """The rows of a file's content, whose column ``name`` has the paths; the argument ``path`` is for messages."""
    text, delimiter = text_of_table(content)
    lines = records(text, delimiter)
    rows, wrong = list[Row](), list[str]()
    try:
        header = [column.strip().lower() for column in next(lines, (1, list[str]()))[1]]
        for needed in (name, "label"):
            if header.count(needed) != 1:
                raise ConfigError(
                    f"{path}, line 1: columns must have {needed} once, got {', '.join(header) or 'none'}"
                )
        for line, fields in lines:
            if any(field.strip() for field in fields):
                if len(fields) != len(header):
                    wrong.append(f"{path}, line {line}: fields must be {len(header)}, got {len(fields)}")
                else:
                    row = dict(zip(header, fields, strict=True))
                    known = {key: row.get(key, "").strip() for key in ("label", "annotator", "note", "index")}
                    rows.append(Row(f"line {line}", row[name], **known))
    except csv.Error as error:
        raise ConfigError(f"{path}: content must be CSV: {error}") from error
    refuse(wrong, path)
    return tuple(rows)


def parsed_lines(content: bytes, path: Path, *, name: str, several: bool) -> tuple[Row, ...]:
    """The rows of JSON lines, whose ``name`` has the paths; without ``label``, or with null, one is not labeled yet.

    Raises:
        ConfigError: lines that are no objects with a path, or have a label that is no name; names each.
    """
    found, wrong = list[Row](), list[str]()
    for number, line in objects(content.decode("utf-8-sig", "surrogateescape")):
        try:
            told = json.loads(line)
        except ValueError as error:
            wrong.append(f"{path}, line {number}: must be JSON: {error}")
            continue
        place = told.get(name) if isinstance(told, dict) else None
        if name == "id" and type(place) is int:
            place = str(place)
        if not isinstance(place, str):
            wrong.append(f"{path}, line {number}: must be an object with {name}")
            continue
        known = {field: told.get(field) for field in ("label", "annotator", "note", "index")}
        if several and isinstance(known["label"], list) and all(map(_is_one, known["label"])):
            known["label"] = joined(known["label"])
        if bad := [field for field, value in known.items() if not _is_text(value)]:
            wrong.append(f"{path}, line {number}: {bad[0]} of {place} must be a name, got {known[bad[0]]!r}")
            continue
        words = {field: "" if value is None else str(value).strip() for field, value in known.items()}
        found.append(Row(f"line {number}", place, **words))
    refuse(wrong, path)
    return tuple(found)


def _is_one(value: Any) -> bool:
    return isinstance(value, str) and SEPARATOR not in value


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str) or type(value) is int


def checked(
    rows: Iterable[Row],
    file: Path,
    classes: Sequence[str],
    index: Mapping[str, int],
    by: str = "",
    base: Path | None = None,
    *,
    several: bool = False,
    noun: str = "image",
) -> list[Row]:
    """The rows, with ``by`` as annotator where none is named. With ``base``, paths may begin with that folder.

    With ``several``, labels are in the order of the classes. ``noun`` is what is labeled, for messages.

    Raises:
        ConfigError: lines with an unknown path or class, twice the same, or an annotator's two labels; names each.
    """
    found, wrong = list[Row](), list[str]()
    before: dict[tuple[str, str], Row] = {}
    for row in rows:
        row = replace(row, path=_known(row.path, index, base, noun == "image"), annotator=row.annotator or by)
        error = _wrong(row, classes, index, noun, several)
        if several and error is None:
            row = replace(row, label=in_order(row.label, classes))
        first = before.setdefault((row.path, row.annotator), row)
        if error is None and first is not row:
            error = f"duplicate of {first.where}, {row.path}"
            if first.label != row.label:
                who = f"annotator {row.annotator}" if row.annotator else "an annotator"
                error = (
                    f"conflict with {first.where}: label of {row.path} by {who} must be one, "
                    f"got {first.label!r} and {row.label!r}"
                )
        if error is not None:
            wrong.append(f"{file}, {row.where}: {error}")
        found.append(row)
    refuse(wrong, file)
    return found


def refuse(wrong: Sequence[str], file: Path) -> None:
    """Raise ``ConfigError`` with all that is wrong in a file, a line each."""
    if wrong:
        count = "a line is" if len(wrong) == 1 else f"{len(wrong)} lines are"
        raise ConfigError("\n".join([*wrong, f"Nothing of {file} was taken, as {count} wrong"]))


def _known(path: str, index: Mapping[str, int], base: Path | None, is_path: bool) -> str:
    """A path as the project has it; blanks belong to names of files, but not those that a spreadsheet added."""
    if not is_path:
        return path.strip()
    forms = [path, path.strip(), os.path.normpath(path)]
    if base is not None:
        above = (f"{base}{os.sep}", f"{base.name}/")
        forms += [form.removeprefix(one) for form in tuple(forms) for one in above if form.startswith(one)]
    return next((form for form in forms if form in index), path)


def _wrong(
    row: Row, classes: Sequence[str], index: Mapping[str, int], noun: str, several: bool
) -> str | None:
    if row.path not in index:
        return f"{'path' if noun == 'image' else 'id'} must be of {_a(noun)} of the project, got {row.path!r}"
    if row.index and row.index != str(index[row.path]):
        return f"index must be {index[row.path]}, that of {row.path}, got {row.index!r}"
    if several:
        try:
            in_order(row.label, classes)
        except ValueError as error:
            return str(error)
    elif row.label not in ("", CANNOT_TELL, *classes):
        near = [name for name in classes if name.lower() == row.label.lower()]
        meant = f" (is {near[0]} meant? case counts)" if near else ""
        return f"label must be one of {', '.join(classes)}, ? or empty, got {row.label!r}{meant}"
    return None


def _a(noun: str) -> str:
    return f"an {noun}" if noun == "image" else f"a {noun}"
