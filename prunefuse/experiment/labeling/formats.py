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
    """

    name: str
    endings: tuple[str, ...]
    write: Callable[[Project, Sequence[Pick]], str]
    read: Callable[[bytes, Path, Project], tuple[Row, ...]]
    recognizes: Callable[[bytes], bool] | None = None
    page: bool = False


CSV = Format(
    "csv",
    (".csv", ".tsv", ".txt"),
    table.text,
    lambda content, path, _: table.parsed(content, path),
    page=True,
)
FORMATS = (
    CSV,
    Format("label-studio", (".json",), label_studio.text, label_studio.rows),
    Format("cvat", (".xml", ".zip"), cvat.text, cvat.rows),
    Format("fiftyone", (".json",), fiftyone.text, fiftyone.rows, fiftyone.recognizes),
    Format("huggingface", (".jsonl",), huggingface.lines, huggingface.rows),
    Format("huggingface", (".csv",), huggingface.text, huggingface.rows_of_csv, huggingface.recognizes_csv),
)
NAMES = tuple(dict.fromkeys(one.name for one in FORMATS))


def chosen(name: str | None, path: Path, content: bytes | None = None) -> Format:
    """The format of this name, or of a file by its ending, and by its content where several have the ending.

    Raises:
        ConfigError: there is no such format.
    """
    ending = path.suffix.lower()
    if name is not None:
        named = [one for one in FORMATS if one.name == name]
        if not named:
            raise ConfigError(f"format must be one of {', '.join(NAMES)}, got {name!r}")
        return next((one for one in named if ending in one.endings), named[0])
    fitting = [one for one in FORMATS if ending in one.endings]
    if content is not None:
        fitting.sort(key=lambda one: one.recognizes is None or not one.recognizes(content))
    usual = [one for one in fitting if one.recognizes is None or content is not None]
    return next(iter(usual), CSV)
