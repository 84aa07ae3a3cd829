"""Labels in and out of a project, and where it stands."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from prunefuse import _files as files
from prunefuse.errors import ConfigError
from prunefuse.experiment.labeling import formats, journal, project, table
from prunefuse.experiment.labeling.answers import CANNOT_TELL, NONE, parts
from prunefuse.experiment.labeling.journal import Merged

EXPORTED = ("label", "votes", "annotators", "note")


@dataclass(frozen=True)
class Imported:
    """What an import came to.

    Attributes:
        new: Labels of images that the annotator had not labeled.
        changed: What became of labels, such as ``a.png: cat → dog``.
        empty: Rows that are not labeled yet.
        kept: The same as ``changed``, of a file that was imported before: later corrections that stay.
    """

    new: int
    changed: tuple[str, ...]
    empty: int
    kept: tuple[str, ...]


def import_labels(
    folder: Path | str,
    file: Path | str,
    *,
    annotator: str = "",
    again: bool = False,
    format: str | None = None,
) -> Imported:
    """Take the labels of a file, all or none; the last word of an annotator on an image counts.

    An empty label is not labeled yet, and changes nothing. Of a file that was imported before, labels that were corrected
    since stay as they are.

    Args:
        folder: The project.
        file: CSV with the columns path and label, and perhaps index, annotator and note; or the file of a tool.
        annotator: Of the rows that name none.
        again: Take labels of a file that was imported before as the last word.
        format: One of `formats.NAMES`; None: by the ending and the content of the file.

    Raises:
        ConfigError: wrong lines, each named; nothing is taken.
    """
    found, path, annotator = project.find(folder), Path(file).expanduser(), annotator.strip()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    read = formats.chosen(format, path, content, project=found).read(content, path, found)
    base = found.base if found.texts is None else None
    names = (found.classes, found.index, annotator, base)
    rows = table.checked(read, path, *names, several=found.several, noun=found.source.noun)
    digest = hashlib.sha256(content).hexdigest()
    with found.held() as now:
        new, changed, add = 0, list[str](), list[tuple[str, str, str, str]]()
        for row in rows:
            before = now.votes.get(row.path, {}).get(row.annotator)
            if not row.label or (before and (before.label, before.note) == (row.label, row.note)):
                continue
            add.append((row.path, row.annotator, row.label, row.note))
            if before is None:
                new += 1
            else:
                changed.append(f"{row.path}: {before.label} → {row.label}")
        stale = (digest, annotator) in now.imported and not again
        if add and not stale:
            told = {"file": str(path), "file_sha256": digest, "by": annotator, "time": time()}
            journal.append(found.folder, now, "labels", rows=add, **told)
    empty = sum(not row.label for row in rows)
    return Imported(0, (), empty, tuple(changed)) if stale else Imported(new, tuple(changed), empty, ())


@dataclass(frozen=True)
class Status:
    """Where a project stands.

    Attributes:
        images: How many images or texts the project has.
        noun: What these are.
        labeled: How many have a label.
        labels: How many have each class, or with several labels for each sample none of them.
        open: How many were asked and have no label yet.
        open_for: Of these, how many whom; empty for nobody in particular.
        cannot_tell: How many nobody can tell.
        disputed: Images whose annotators disagree, with their label and who said what.
        annotators: How many images each has labeled.
        trained: The last training.
        added: Images that have come into the folder and are not in the project yet.
        gone: Images of the project that are no longer in the folder.
    """

    images: int
    noun: str
    labeled: int
    labels: Mapping[str, int]
    open: int
    open_for: Mapping[str, int]
    cannot_tell: int
    disputed: tuple[tuple[str, str, str], ...]
    annotators: Mapping[str, int]
    trained: Mapping[str, Any] | None
    added: int
    gone: int


def status(folder: Path | str) -> Status:
    """Where a project stands: labels by class, what is open, what nobody can tell, and disagreements."""
    found = project.find(folder)
    now = found.read()
    merged = found.merged(now)
    counted = Counter(one.label for one in merged.values())
    each = counted
    if found.several:
        each = Counter(
            name for one in merged.values() for name in parts(one.label) if one.label != CANNOT_TELL
        )
        each[NONE] = counted[NONE]
    disputed = tuple(
        (path, one.label or "tie", journal.said(now.votes[path]))
        for path, one in merged.items()
        if one.disputed
    )
    annotators = Counter(by for votes in now.votes.values() for by in votes)
    there = set(found.source.listed())
    names = [*found.classes, NONE] if found.several else found.classes
    return Status(
        len(found.paths),
        found.source.noun,
        sum(counted.values()) - counted[""] - counted[CANNOT_TELL],
        {name: each[name] for name in names},
        sum(is_open(path, merged) for path in now.asked),
        Counter(now.holders[path] for path in now.asked if path in now.holders and is_open(path, merged)),
        counted[CANNOT_TELL],
        disputed,
        dict(sorted(annotators.items())),
        now.trained[-1] if now.trained else None,
        len(there - found.index.keys() - set(found.skipped)),
        len(found.index.keys() - there),
    )


def is_open(path: str, merged: Mapping[str, Merged]) -> bool:
    """Whether an image has no label yet, and is not one of which everybody says that they cannot tell."""
    return path not in merged or not merged[path].label


def export(folder: Path | str, out: Path | str, *, format: str | None = None) -> int:
    """Write the labels of a project to a file, which must not exist; how many there are.

    The columns of CSV are path, label, votes, annotators and note. Images that nobody can tell have the label ``?``. Those
    whose votes are a tie have none. The file of a tool has the labels alone.

    Args:
        folder: The project.
        out: The file; ``-`` is standard output.
        format: One of `formats.NAMES`; None: by the ending.

    Raises:
        ConfigError: ``out`` exists.
    """
    found, out = project.find(folder), Path(out).expanduser()
    merged = found.merged(found.read())
    told = formats.chosen(format, out, project=found)
    if told is not formats.CSV:
        known = {path: one for path, one in merged.items() if one.label not in ("", CANNOT_TELL)}
        picks = [
            table.Pick(path, None, "labeled", label=one.label, note=one.note) for path, one in known.items()
        ]
        write_new(out, told.write(found, picks))
        return len(picks)
    texts = found.texts
    rows = [
        {
            found.source.key: path,
            **({} if texts is None else {"text": texts.seen(path)}),
            "label": one.label,
            "votes": journal.words(one.votes),
            "annotators": " ".join(by or "unnamed" for by in one.annotators) if one.votes else "given",
            "note": one.note,
        }
        for path, one in merged.items()
    ]
    header = (found.source.key, *(() if texts is None else ("text",)), *EXPORTED)
    write_new(out, files.csv_text(header, rows))
    return sum(bool(row["label"]) and row["label"] != CANNOT_TELL for row in rows)


def refuse_existing(*paths: Path) -> None:
    """Raise ``ConfigError`` for a file that is there already."""
    for path in paths:
        if path.exists():
            raise ConfigError(f"out must be a file that does not exist yet, got {path}")


def write_new(path: Path, text: str) -> None:
    """Write a file that does not exist, whole or not at all; ``-`` is standard output.

    Raises:
        ConfigError: it exists, perhaps as another process has just written it.
    """
    content = text.encode("utf-8", errors="surrogateescape")
    if str(path) == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # which never replaces a file, as a renaming would
        except FileExistsError:
            refuse_existing(path)
            raise
        except OSError:  # a file system without links
            refuse_existing(path)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def time() -> str:
    """The time with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
