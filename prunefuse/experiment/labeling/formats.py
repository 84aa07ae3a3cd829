"""The files that go to people and come back: one table of the tools that read and write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunefuse.errors import ConfigError
from prunefuse.experiment.labeling import cvat, fiftyone, huggingface, label_studio, table
from prunefuse.experiment.labeling.project import Project
from prunefuse.experiment.labeling.table import Pick, Row


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        name: What a user calls it.
        endings: Of files that are of this format, if nothing else is said.
        write: Images to label, or labels, as text.
        read: The labels of a file's content; the path is for messages.
        recognizes: Where another format has the same ending: whether content is of this one. None: it is the usual one.
        page: Whether a page for the browser goes with it.
        texts: Whether it is for texts, too.
    """

    name: str
    endings: tuple[str, ...]
    write: Callable[[Project, Sequence[Pick]], str]
    read: Callable[[bytes, Path, Project], tuple[Row, ...]]
    recognizes: Callable[[bytes], bool] | None = None
    page: bool = False
    texts: bool = False


CSV = Format(
    "csv",
    (".csv", ".tsv", ".txt"),
    table.text,
    lambda content, path, project: table.parsed(content, path, name=project.source.key),
    page=True,
    texts=True,
)
FORMATS = (
    CSV,
    Format("label-studio", (".json",), label_studio.text, label_studio.rows, texts=True),
    Format("cvat", (".xml", ".zip"), cvat.text, cvat.rows),
    Format("fiftyone", (".json",), fiftyone.text, fiftyone.rows, fiftyone.recognizes),
    Format("huggingface", (".jsonl",), huggingface.lines, huggingface.rows, texts=True),
    Format("huggingface", (".csv",), huggingface.text, huggingface.rows_of_csv, huggingface.recognizes_csv),
)
NAMES = tuple(dict.fromkeys(one.name for one in FORMATS))


def chosen(name: str | None, path: Path, content: bytes | None = None, *, project: Project) -> Format:
    """The format of this name, or of a file by its ending, and by its content where several have the ending.

    Raises:
        ConfigError: there is no such format, or it is not for texts, which the project has.
    """
    ending = path.suffix.lower()
    usable = [one for one in FORMATS if one.texts or project.texts is None]
    if name is not None:
        named = [one for one in usable if one.name == name]
        if not named:
            names = ", ".join(dict.fromkeys(one.name for one in usable))
            kind = "" if project.texts is None else " for texts"
            raise ConfigError(f"format must be one of {names}{kind}, got {name!r}")
        return next((one for one in named if ending in one.endings), named[0])
    if project.texts is not None and not any(ending in one.endings for one in usable):
        for one in FORMATS:
            if ending in one.endings:
                raise ConfigError(f"format {one.name}, of {path}, must be of a project of images, got texts")
    fitting = [one for one in usable if ending in one.endings]
    if content is not None:
        fitting.sort(key=lambda one: one.recognizes is None or not one.recognizes(content))
    usual = [one for one in fitting if one.recognizes is None or content is not None]
    return next(iter(usual), CSV)
