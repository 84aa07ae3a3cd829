"""What is said of the files of a pool, and what is found of one before its rows are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from prunefuse.errors import LogitsFileError

NUMPY = {"float16": 2, "float32": 4, "float64": 8}  # bytes of a value, by the name of its type


@dataclass(frozen=True)
class Layout:
    """Where the numbers are in files.

    Attributes:
        tensor: The name of the array in files that may hold several.
        columns: The columns of tables; empty: all but `id`.
        id: A column of tables that is no number of a row but its name; None: the only one that looks so by its own name.
        header: Whether the first line of CSV files has names; None: by what it looks like.
        members: The axis of the members of an ensemble, 0 or 1; None: arrays have rows alone.
    """

    tensor: str | None = None
    columns: tuple[str, ...] = ()
    id: str | None = None
    header: bool | None = None
    members: int | None = None


class Facts(NamedTuple):
    """What a file holds, found without its rows, or by reading them once where nothing else tells."""

    shape: tuple[int, ...]
    dtype: str
    value_bytes: int
    tensor: str | None = None
    columns: tuple[int, ...] = ()  # places of the columns
    id: str | None = None


class Format(NamedTuple):
    """A kind of file. ``blocks`` gives so many rows at a time, and ``ids`` the names of all rows, where there are any."""

    what: str
    check: Callable[[Path, Layout], Facts]
    blocks: Callable[[Path, Layout, Facts, int], Iterator[Any]]
    ids: Callable[[Path, Layout, Facts], Iterator[str]] | None = None


def chosen(path: Path, kind: str, names: list[str], name: str | None) -> str:
    """The array that is named, or the only one.

    Raises:
        LogitsFileError: there is no such array, or several of which none is named.
    """
    if name is None and len(names) != 1:
        raise LogitsFileError(
            f"{path}: has {len(names)} {kind}s, so name the one with the logits: {sorted(names)}"
        )
    if name is not None and name not in names:
        raise LogitsFileError(f"{path}: has no {kind} {name!r}, but {sorted(names)}")
    return name if name is not None else names[0]
