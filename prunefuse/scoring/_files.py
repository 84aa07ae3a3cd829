"""Logits on disk, larger than memory: files of arrays and of tables, read in blocks of rows."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from prunefuse.errors import LogitsFileError as LogitsFileError
from prunefuse.errors import MissingPackageError
from prunefuse.ops.arrays import as_tensor, require_count
from prunefuse.scoring._array_files import ARRAYS
from prunefuse.scoring._layout import Facts, Format, Layout
from prunefuse.scoring._table_files import TABLES

BLOCK_BYTES = 32 << 20
FORMATS: dict[str, Format] = {**ARRAYS, **TABLES}
SUFFIXES = tuple(FORMATS)
_FIRST = (".npy", ".safetensors")  # in a folder with these, files of other kinds are something else
_ZARR = ("zarr.json", ".zarray", ".zgroup")


@dataclass(frozen=True)
class LogitsFile:
    """A file that has been checked: (rows, classes) of a floating type, of which the file has every byte.

    Attributes:
        path: Where it is.
        rows: How many.
        classes: How many.
        value_bytes: Bytes of a value.
        tensor: The name of the array, in a file that has names.
        members: Of an ensemble, how many predictions there are of every row; else 1.
    """

    path: Path
    rows: int
    classes: int
    value_bytes: int
    tensor: str | None
    members: int
    layout: Layout
    facts: Facts

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[Tensor]:
        """The rows in order, as CPU tensors of whole rows of at most `block_bytes` (but one row at least).

        Those of a .npy file are parts of its memory map, read when they are used; they must not be written to. Blocks of an
        ensemble are (members, n, classes).

        Raises:
            LogitsFileError: the file is no longer what it was.
        """
        row_bytes = self.classes * self.members * self.value_bytes
        step = _rows_of(require_count("block_bytes", block_bytes, 1), row_bytes)
        row = 0
        with _named(self.path):
            for block in _format(self.path).blocks(self.path, self.layout, self.facts, step):
                found = as_tensor(str(self.path), block)
                row += found.shape[-2]
                yield found
            if row != self.rows:
                raise LogitsFileError(f"{self.path}: has changed: it had {self.rows} rows, and has {row}")

    def ids(self) -> Iterator[str]:
        """The names of the rows, in order; nothing where they have none."""
        ids = _format(self.path).ids
        if ids is not None and self.facts.id is not None:
            with _named(self.path):
                yield from ids(self.path, self.layout, self.facts)


def logits_files(
    paths: Iterable[str | os.PathLike[str]],
    *,
    tensor: str | None = None,
    columns: Sequence[str] = (),
    id: str | None = None,
    header: bool | None = None,
    members: int | None = None,
) -> tuple[LogitsFile, ...]:
    """The files of a pool, in order, every one checked.

    Arrays are in .npy, .npz, .safetensors, HDF5 (.h5, .hdf5) and Zarr (.zarr); tables are CSV (.csv, .tsv) and Parquet. HDF5,
    Zarr and Parquet need the extra ``files``. Compressed arrays of .npz are unpacked whole, anything else is read in parts.

    Args:
        paths: files, and folders of them, whose files are taken in natural order (``shard-2`` before ``shard-10``), without
            their subfolders and hidden files. Where a folder has .npy or .safetensors files, others in it are not taken; else
            all must be of one kind.
        tensor: the name of the logits in files that hold more than one array.
        columns: the columns of tables, in this order; left out, all but ``id``. A column of lists is the whole row. Columns
            without a header are named by their place, from 0.
        id: the column of tables with the names of rows. Left out, the only column that looks so by its name, such as path.
        header: whether CSV files begin with names of columns. None: they do where the first line has no numbers, or counts.
        members: the axis of the members of an ensemble, 0 for arrays (members, rows, classes), 1 for (rows, members,
            classes). None: arrays are (rows, classes).

    Raises:
        LogitsFileError: there is no file; or one is missing, of another kind, truncated, without that array or column, not a
            floating matrix (float16, float32 and float64, bfloat16 in safetensors), or of another number of classes.
        MissingPackageError: the package that reads a file is not installed.
        ValueError: members is no axis.
    """
    if members not in (None, 0, 1):
        raise ValueError(f"members must be 0 or 1, got {members!r}")
    layout = Layout(tensor, tuple(columns), id, header, members)
    found = [_checked(file, layout) for path in map(Path, paths) for file in _inside(path)]
    if not found:
        raise LogitsFileError("there is no file of logits")
    for file in found:
        for what in ("classes", "members"):
            if getattr(file, what) != getattr(found[0], what):
                raise LogitsFileError(
                    f"{file.path}: has {getattr(file, what)} {what}, where {found[0].path} has "
                    f"{getattr(found[0], what)}"
                )
        if (file.facts.id is None) != (found[0].facts.id is None):
            one, other = (file, found[0]) if file.facts.id is None else (found[0], file)
            raise LogitsFileError(
                f"{one.path}: has no names of rows, where {other.path} has them, as {other.facts.id!r} (--columns)"
            )
    return tuple(found)


def logits_blocks(
    source: Any, *, tensor: str | None = None, block_bytes: int = BLOCK_BYTES, **layout: Any
) -> Iterator[Any]:
    """Blocks of rows of a pool that need not fit in memory, each (n, C) and at most `block_bytes` (but one row at least).

    Args:
        source: a path (a file, or a folder of shards), or anything to go through that gives paths, or arrays (n, C) as
            `score` takes them: a list, a generator. The blocks of a path are CPU tensors, those of an array parts of it.
        tensor: as for `logits_files`.
        block_bytes: size of a block.
        layout: columns, id, header and members, as for `logits_files`. With members, blocks of files are (members, n, C).

    Raises:
        LogitsFileError: as for `logits_files`. Files in a list are checked together, before the first block; those of a
            generator one by one.
        TypeError: something is neither a path nor an array.
    """
    block_bytes = require_count("block_bytes", block_bytes, 1)
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    if isinstance(source, (list, tuple)) and all(isinstance(one, (str, os.PathLike)) for one in source):
        source = logits_files(source, tensor=tensor, **layout)
    for one in source:
        if isinstance(one, LogitsFile):
            yield from one.blocks(block_bytes)
        elif isinstance(one, (str, os.PathLike)):
            for file in logits_files([one], tensor=tensor, **layout):
                yield from file.blocks(block_bytes)
        else:
            array = one if isinstance(one, np.ndarray) else as_tensor("logits", one)
            step = _rows_of(block_bytes, array.nbytes // max(len(array), 1))
            for first in range(0, len(array), step):
                yield array[first : first + step]


def _rows_of(block_bytes: int, row_bytes: int) -> int:
    return max(1, block_bytes // max(row_bytes, 1))


def _inside(path: Path) -> list[Path]:
    """The files of a folder in natural order; what is no folder alone."""
    if not path.is_dir() or _suffix(path) == ".zarr":
        return [path]
    found = [
        file
        for file in path.iterdir()
        if _suffix(file) in SUFFIXES
        and not file.name.startswith(".")
        and (file.is_file() or _suffix(file) == ".zarr")
    ]
    found = [file for file in found if _suffix(file) in _FIRST] or found
    kinds = {FORMATS[_suffix(file)].what: file for file in found if _suffix(file) not in _FIRST}
    if len(kinds) > 1:
        names = " and ".join(file.name for file in sorted(kinds.values()))
        raise LogitsFileError(f"{path}: the folder must have files of one kind, got {names}")
    if not found:
        raise LogitsFileError(f"{path}: the folder has no {_or(SUFFIXES)} file")
    return sorted(found, key=_natural)


def _natural(path: Path) -> tuple[list[tuple[bool, int, str]], str]:
    """Numbers by value, before letters."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], path.name


def _suffix(path: Path) -> str:
    """The ending that says the kind, in lower case. A folder that has the files of a Zarr store is one by any name."""
    known = path.suffix.lower()
    zarr = known != ".zarr" and path.is_dir() and any((path / name).is_file() for name in _ZARR)
    return ".zarr" if zarr else known


def _format(path: Path) -> Format:
    return FORMATS[_suffix(path)]


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _checked(path: Path, layout: Layout) -> LogitsFile:
    kind = _suffix(path)
    if kind not in FORMATS:
        raise LogitsFileError(f"logits must be a {_or(SUFFIXES)} file, or a folder of them, got {path}")
    given = [name for name in ("columns", "id", "header") if getattr(layout, name) not in ((), None)]
    if kind not in TABLES and given:
        raise LogitsFileError(f"{path}: has no columns to choose from (--{given[0]} is for CSV and Parquet)")
    if kind in TABLES and layout.members is not None:
        raise LogitsFileError(
            f"{path}: a table has no axis of members; give a file for each (--members files)"
        )
    with _named(path):
        facts = FORMATS[kind].check(path, layout)
    axis = 1 if layout.members == 0 else 0
    many = 1 if layout.members is None else facts.shape[layout.members]
    # What was found is what will be read, also where nothing was named.
    known = replace(layout, tensor=facts.tensor)
    return LogitsFile(
        path, facts.shape[axis], facts.shape[-1], facts.value_bytes, facts.tensor, many, known, facts
    )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of reading, in one line that names the file."""
    try:
        yield
    except (LogitsFileError, MissingPackageError):
        raise
    except OSError as error:
        raise LogitsFileError(f"{path}: {error.strerror or _line(error)}") from error
    except (ValueError, EOFError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        what = _format(path).what
        raise LogitsFileError(f"{path}: truncated, or not {what} ({_line(error)})") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
