"""Rows of a pool that a user names: indices or a mask, in memory or in a file."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunefuse.errors import ConfigError
from prunefuse.ops.integers import row_indices

_INDEX = "index"
_DIGITS = 18  # of 64 bits


def rows_given(argument: str, given: Any, rows: int) -> Tensor:
    """Row indices (N,) int64 of what is given: indices, a mask, or a path of a file with either; none for None.

    A file is text with an index on each line, CSV with a column ``index`` (such as `score_pool` writes), or .npy.

    Raises:
        ConfigError: the file cannot be read, or a line is no index; names it.
        TypeError, ValueError: these are no rows of the pool.
    """
    if given is None:
        return torch.empty(0, dtype=torch.int64)
    if not isinstance(given, (str, os.PathLike)):
        return row_indices(argument, given, rows, "the pool")
    path = Path(given).expanduser()
    argument = f"{argument}, {path},"
    try:
        found = _npy(path) if path.suffix.lower() == ".npy" else _lines(argument, path)
    except OSError as error:
        raise ConfigError(f"{argument} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{argument} must have indices of rows, or a mask: {error}") from error
    if found.dtype != bool and len(found) == rows > 2 and np.isin(found, (0, 1)).all():
        raise ConfigError(
            f"{argument} must have indices, or a mask of truth values, got 0 or 1 for each of the {rows} rows"
        )
    try:
        return row_indices(argument, found, rows, "the pool")
    except TypeError as error:
        raise ConfigError(str(error)) from error


def _npy(path: Path) -> Any:
    found = np.load(path, allow_pickle=False)
    return found.reshape(-1) if isinstance(found, np.ndarray) and found.ndim == 0 else found


def _lines(argument: str, path: Path) -> Any:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [(number, fields) for number, fields in enumerate(csv.reader(file), 1) if any(fields)]
    place = 0
    if lines and _INDEX in (names := [field.strip().lower() for field in lines[0][1]]):
        place = names.index(_INDEX)
        lines = lines[1:]
    elif any(len(fields) > 1 for _, fields in lines):
        raise ConfigError(f"{argument} must have an index on each line, or a column {_INDEX}")
    found = []
    for number, fields in lines:
        text = fields[place].strip() if place < len(fields) else ""
        if not text.removeprefix("-").isdecimal() or len(text) > _DIGITS:
            raise ConfigError(f"{argument} line {number}: must have the index of a row, got {text!r:.40}")
        found.append(int(text))
    return np.array(found, dtype=np.int64)
