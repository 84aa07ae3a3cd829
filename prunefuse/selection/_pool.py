"""Scores a pool that lies in files, and writes the rows to label, or the utility of every row, to a CSV file."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, repeat
from pathlib import Path
from typing import IO, Any

import numpy as np

from prunefuse._files import replacing
from prunefuse.ops.arrays import require_count
from prunefuse.scoring import score
from prunefuse.scoring._files import BLOCK_BYTES, LogitsFile, logits_files
from prunefuse.selection._streaming import StreamingTopB

STDOUT = "-"
COLUMNS = ("index", "utility", "file", "row")


@dataclass(frozen=True)
class PoolScores:
    """What `score_pool` did: rows read, rows written, and by file how many rows are NaN, where there are any."""

    rows: int
    written: int
    unselectable: Mapping[Path, int]


def score_pool(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    strategy: str = "entropy",
    *,
    top: int | None = None,
    probabilities: bool = False,
    temperature: float = 1.0,
    tensor: str | None = None,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[Path, int, int], None] | None = None,
) -> PoolScores:
    """Score logits on disk, block by block, and write a CSV file with the columns index, utility, file, row.

    ``index`` counts the rows of all files in order, ``row`` those of one file; both start at 0.

    Args:
        paths: files and folders, as for `logits_files`.
        out: the CSV file, which must not exist yet. It appears when it is complete. ``-`` is standard output.
        strategy, probabilities, temperature: as for `score`.
        top: write this many rows of the highest utility, best first, equals by lower index; None writes every row in
            order, with ``nan`` where a row has no utility.
        tensor: the name of the logits in safetensors files; None where each holds one tensor.
        block_bytes: how much to read at a time.
        progress: called after every block with the file, the rows done and the rows there are.

    Raises:
        FileExistsError: out exists.
        LogitsFileError: as for `logits_files`; nothing has been read then but headers.
        ValueError, TypeError: as for `score` and `StreamingTopB`, or top is more than the rows that can be selected.
        OSError: out cannot be written.
    """
    if top is not None:
        top = require_count("top", top, 1)
    keeper = StreamingTopB(top or 1, strategy, probabilities=probabilities, temperature=temperature)
    if str(out) != STDOUT and Path(out).exists():
        raise FileExistsError(f"{out} exists and is not overwritten")
    pool = logits_files(paths, tensor=tensor)
    starts = [0, *accumulate(file.rows for file in pool)]
    if top is not None and top > starts[-1]:
        raise ValueError(f"top must be at most the number of rows, {starts[-1]}, got {top}")
    unselectable: dict[Path, int] = {}

    def blocks() -> Iterator[tuple[LogitsFile, int, Any]]:
        for file, start in zip(pool, starts, strict=False):
            row = 0
            for logits in file.blocks(block_bytes):
                yield file, row, logits
                row += len(logits)
                if progress is not None:
                    progress(file.path, start + row, starts[-1])

    def count(file: LogitsFile, nan: int) -> None:
        if nan:
            unselectable[file.path] = unselectable.get(file.path, 0) + nan

    if top is not None:
        for file, _, logits in blocks():
            before = keeper.unselectable
            keeper.update(logits)
            count(file, keeper.unselectable - before)
        if starts[-1] - keeper.unselectable < top:
            raise ValueError(
                f"top is {top}, but only {starts[-1] - keeper.unselectable} of {starts[-1]} rows can be selected: "
                + "; ".join(f"{path} has {nan} that are NaN" for path, nan in unselectable.items())
            )
        indices, utilities = (kept.numpy() for kept in keeper.result())
        where = np.searchsorted(starts, indices, side="right") - 1
        rows = indices - np.asarray(starts)[where]
        _write(out, [zip(indices, utilities, (pool[i].path for i in where), rows, strict=True)])
        return PoolScores(starts[-1], top, unselectable)

    def scored() -> Iterator[Iterable[tuple[Any, ...]]]:
        index = 0
        for file, row, logits in blocks():
            values = score(logits, strategy, probabilities=probabilities, temperature=temperature)
            count(file, int(values.isnan().sum()))
            end = index + len(values)
            yield zip(range(index, end), values.numpy(), repeat(file.path), range(row, row + len(values)))
            index = end

    _write(out, scored())
    return PoolScores(starts[-1], starts[-1], unselectable)


def _write(out: str | os.PathLike[str], parts: Iterable[Iterable[tuple[Any, ...]]]) -> None:
    """Numbers are written as NumPy prints them: the shortest digits that give the same number in its own type."""
    with _opened(out) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for part in parts:
            writer.writerows(part)


@contextmanager
def _opened(out: str | os.PathLike[str]) -> Iterator[IO[str]]:
    if str(out) == STDOUT:
        yield sys.stdout
        return
    # The bytes of a name in no encoding stay as they are.
    unknown = "surrogateescape"
    with (
        replacing(out) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors=unknown) as file,
    ):
        yield file
