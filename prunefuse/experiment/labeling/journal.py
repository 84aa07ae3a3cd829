"""What happened in a project: entries that are only ever added, and what they come to.

An entry is a file of its own, complete or not there. Labels are kept by annotator. The last word of an annotator on an image
is that annotator's vote, and a label is what most votes are for.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunefuse import _files as files
from prunefuse.errors import DamagedFileError
from prunefuse.experiment.labeling.answers import CANNOT_TELL as CANNOT_TELL
from prunefuse.experiment.labeling.answers import joined, parts

JOURNAL = "journal"


@dataclass(frozen=True)
class Vote:
    """What an annotator said last of a sample: a class, several where samples have several, or ``?``."""

    label: str
    note: str = ""


@dataclass
class Journal:
    """What the entries come to; ``votes`` are by path and annotator.

    Attributes:
        votes: Path -> annotator -> vote.
        asked: Utility by path of the images that were ever asked, in order; None where they were drawn.
        holders: Who was asked for an image last, by path, until somebody labels it; empty where nobody was named.
        added: Images that were found after the start, in order, with the label that their folder says, or none.
        digests: By name the hash of each of them, where their names do not tell.
        draws: How often images were drawn at random.
        imported: SHA-256 of the files imported, each with the annotator that the command named.
        trained: The trainings, oldest first.
        entries: How many entries there are.
    """

    votes: dict[str, dict[str, Vote]] = field(default_factory=dict)
    asked: dict[str, float | None] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    draws: int = 0
    imported: set[tuple[str, str]] = field(default_factory=set)
    trained: list[Mapping[str, Any]] = field(default_factory=list)
    entries: int = 0

    def take(self, entry: Mapping[str, Any]) -> None:
        """Add what an entry says."""
        self.entries += 1
        if entry["kind"] == "labels":
            self.imported.add((entry["file_sha256"], entry["by"]))
            for path, annotator, label, note in entry["rows"]:
                self.votes.setdefault(path, {})[annotator] = Vote(label, note)
                self.holders.pop(path, None)
        elif entry["kind"] == "asked":
            self.draws += entry["drawn"]
            self.asked |= dict(entry["rows"])
            self.holders |= dict.fromkeys(dict(entry["rows"]), entry.get("for", ""))
        elif entry["kind"] == "images":
            self.added |= dict(entry["rows"])
            self.digests |= entry.get("digests", {})
        else:
            self.trained.append(entry)


def read(folder: Path, votes: Mapping[str, Mapping[str, Vote]]) -> Journal:
    """The journal of a project that began with these votes.

    Raises:
        DamagedFileError: an entry is missing or not what was written; names it.
    """
    journal = Journal({path: dict(own) for path, own in votes.items()})
    for entry in _entries(folder / JOURNAL):
        journal.take(entry)
    return journal


def append(folder: Path, journal: Journal, kind: str, **content: Any) -> None:
    """Add an entry, whole and on the disk when this returns. The project is locked by the caller."""
    entry = {"kind": kind, **content}
    text = json.dumps({"sha256": _digest(entry), **entry}, indent=1)
    files.write_text(folder / JOURNAL / f"{journal.entries + 1:06}.json", text + "\n")
    journal.take(json.loads(text))


def _entries(folder: Path) -> Iterator[Mapping[str, Any]]:
    # Hidden files are what a killed process was writing: those entries never happened.
    names = sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []
    for number, name in enumerate(names, 1):
        path = folder / f"{number:06}.json"
        if name != path.name:
            raise DamagedFileError(f"{path} is missing: {name} beside it was written after it")
        try:
            entry = json.loads(path.read_bytes())
            if entry.pop("sha256") != _digest(entry):
                raise ValueError("it is not what was written, by its SHA-256")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFileError(f"{path} was changed or is damaged: {error}") from error
        yield entry


def _digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Merged:
    """What votes come to.

    Attributes:
        label: The class that most votes are for, or the labels that more than half of them are for; ``?`` where all say that
            they cannot tell; empty where there is no vote, or a tie.
        votes: How many votes each class and ``?`` has, most first.
        annotators: Who has voted.
        note: All notes, with their annotators where there are several.
    """

    label: str
    votes: tuple[tuple[str, int], ...] = ()
    annotators: tuple[str, ...] = ()
    note: str = ""

    @property
    def disputed(self) -> bool:
        """Whether annotators gave different classes."""
        return sum(label != CANNOT_TELL for label, _ in self.votes) > 1

    @property
    def tied(self) -> bool:
        """Whether there are votes without a label to come of them."""
        return bool(self.votes) and not self.label


def merge(votes: Mapping[str, Vote], given: str | None, labels: Sequence[str] | None = None) -> Merged:
    """The label of a sample: that of most votes; without any vote the one that was there at the start.

    With ``labels``, of which a sample may have several, each is voted on.
    """
    if not votes:
        return Merged(given or "", annotators=() if given is None else ("",))
    counted = Counter(vote.label for vote in votes.values())
    classes = {label: count for label, count in counted.items() if label != CANNOT_TELL}
    if labels is None or not classes:
        most = [label for label, count in classes.items() if count == max(classes.values())]
        label = most[0] if len(most) == 1 else "" if most else CANNOT_TELL
    else:
        label = _voted(classes, labels)
    notes = [(annotator, vote.note) for annotator, vote in sorted(votes.items()) if vote.note]
    several = len(votes) > 1
    note = "; ".join(f"{annotator or 'unnamed'}: {text}" if several else text for annotator, text in notes)
    ordered = tuple(sorted(counted.items(), key=lambda item: (-item[1], item[0])))
    return Merged(label, ordered, tuple(sorted(votes)), note)


def _voted(answers: Mapping[str, int], labels: Sequence[str]) -> str:
    """The labels that more than half of these answers have; nothing where one is in just half of them."""
    total = sum(answers.values())
    counts = Counter(dict.fromkeys(labels, 0))
    for answer, count in answers.items():
        counts.update(dict.fromkeys(parts(answer), count))
    if any(2 * count == total for count in counts.values()):
        return ""
    return joined([name for name in labels if 2 * counts[name] > total])


def said(votes: Mapping[str, Vote]) -> str:
    """Who said what, in words."""
    return ", ".join(f"{annotator or 'unnamed'} {vote.label}" for annotator, vote in sorted(votes.items()))


def words(votes: Sequence[tuple[str, int]]) -> str:
    """Votes as text, such as ``cat:2 dog:1``."""
    return " ".join(f"{label}:{count}" for label, count in votes)
