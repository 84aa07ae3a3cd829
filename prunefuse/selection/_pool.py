"""Scores a pool that lies in files, and writes the rows to label, or the utility of every row, to a CSV file."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, chain
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor

from prunefuse._files import replacing
from prunefuse._seeds import derive
from prunefuse.errors import LogitsFileError, TooFewRowsError
from prunefuse.ops.arrays import require_count
from prunefuse.scoring import ENSEMBLE_STRATEGIES, LOGIT_STRATEGIES, score, score_ensemble
from prunefuse.scoring._files import BLOCK_BYTES, LogitsFile, logits_files
from prunefuse.selection._k_center import k_center_greedy
from prunefuse.selection._row_files import rows_given
from prunefuse.selection._streaming import StreamingTopB

STDOUT = "-"
COLUMNS = ("index", "utility", "file", "row")
K_CENTER = "k_center"

Members = Literal["files", 0, 1]
Progress = Callable[[Path, int, int], None]


@dataclass(frozen=True)
class PoolScores:
    """What `score_pool` did.

    Attributes:
        rows: How many there are.
        scored: How many of them were scored: not excluded or labeled, and in the sample.
        written: How many were written.
        unselectable: By file, how many of those scored are NaN, where there are any.
    """

    rows: int
    scored: int
    written: int
    unselectable: Mapping[Path, int]


def score_pool(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    strategy: str | None = None,
    *,
    top: int | None = None,
    probabilities: bool = False,
    temperature: float = 1.0,
    tensor: str | None = None,
    columns: Sequence[str] = (),
    id: str | None = None,
    header: bool | None = None,
    members: Members | None = None,
    labeled: Any = None,
    exclude: Any = None,
    sample: int | Fraction | None = None,
    seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
    progress: Progress | None = None,
) -> PoolScores:
    """Score logits on disk, block by block, and write a CSV file with the columns index, utility, file, row.

    ``index`` counts the rows of all files in order, ``row`` those of one file; both start at 0. Where rows have
    names, there is a column ``id``.

    Args:
        paths: files and folders, as for `logits_files`.
        out: the CSV file, which must not exist yet. It appears when it is complete. ``-`` is standard output.
        strategy: of `score`; of an ensemble one of `score_ensemble`; or ``k_center`` on features, which are kept in memory.
            None is entropy, and bald of an ensemble.
        probabilities, temperature: as for `score`.
        top: write this many rows of the highest utility, best first, equals by lower index; None writes every row in
            order, with ``nan`` where a row has no utility. Rows of ``k_center`` are in the order of their picks, without a
            utility.
        tensor, columns, id, header: as for `logits_files`.
        members: for an ensemble. ``"files"``: each of paths is a member, all of the same rows, whose ``file`` and ``row`` are
            those of the first. An axis: as for `logits_files`.
        labeled: rows that have a label: never written, and centers of ``k_center``. Indices, a mask, or a file of either:
            text with an index on each line, CSV with a column ``index``, or .npy.
        exclude: rows that are never written, likewise.
        sample: score only so many of the other rows, or this part of them, drawn at random.
        seed: of the sample.
        block_bytes: how much to read at a time.
        progress: called after every block with the file, the rows done and the rows there are.

    Raises:
        FileExistsError: out exists.
        LogitsFileError: as for `logits_files`; or the members have other rows.
        ValueError, TypeError: as for `score` and `StreamingTopB`; or top is more than the rows that can be selected, or
            labeled, exclude or sample are no rows of the pool.
        OSError: out cannot be written.
    """
    utilities = _utilities(strategy, members is not None, probabilities, temperature, top)
    top = None if top is None else require_count("top", top, 1)
    if str(out) != STDOUT and Path(out).exists():
        raise FileExistsError(f"{out} exists and is not overwritten")
    reading: dict[str, Any] = {"tensor": tensor, "columns": columns, "id": id, "header": header}
    if members == "files":
        paths = list(paths)
        if len(paths) < 2:
            raise ValueError(
                f"members files must have two files or folders or more, each of them a member, got {len(paths)}"
            )
        whole = [logits_files([path], **reading) for path in paths]
    else:
        whole = [logits_files(paths, members=members, **reading)]
    pool = _Pool(whole, block_bytes, progress)
    known = rows_given("labeled", labeled, pool.rows)
    wanted = _wanted(pool.rows, (known, rows_given("exclude", exclude, pool.rows)), sample, seed)
    count = int(wanted.sum())
    if top is not None and top > count:
        what = "the number of rows" if count == pool.rows else "the number of rows that are left to pick from"
        raise ValueError(f"top must be at most {what}, {count}, got {top}")
    if utilities is None:
        assert top is not None
        picks = _k_center(pool, wanted, known, top)
        pool.write(out, ((picks, [""] * len(picks)),), ordered=False)
    elif top is not None:
        best = _best(pool, wanted, utilities, top)
        pool.write(out, (best,), ordered=False)
    else:
        pool.write(out, _all(pool, wanted, utilities), ordered=True)
    return PoolScores(pool.rows, count, count if top is None else top, pool.unselectable)


def _utilities(
    strategy: str | None, ensemble: bool, probabilities: bool, temperature: float, top: int | None
) -> Callable[[Tensor], Tensor] | None:
    """From a block to utilities; None for k_center. What is wrong is an error now."""
    if strategy == K_CENTER and not ensemble:
        if top is None:
            raise ValueError("top must be a number of rows with strategy k_center, got None")
        if probabilities or temperature != 1.0:
            raise ValueError(
                "probabilities and temperature are for logits: k_center takes features as they are"
            )
        return None
    if strategy is None:
        strategy = "bald" if ensemble else "entropy"
    mine = ENSEMBLE_STRATEGIES if ensemble else LOGIT_STRATEGIES
    if strategy not in mine and strategy in (*ENSEMBLE_STRATEGIES, *LOGIT_STRATEGIES, K_CENTER):
        where = "not for an ensemble" if ensemble else "for an ensemble (--members)"
        names = ", ".join((*mine, *(() if ensemble else (K_CENTER,))))
        raise ValueError(f"strategy must be one of {names}, got {strategy}, which is {where}")
    scorer: Callable[..., Any] = score_ensemble if ensemble else score

    def made(logits: Tensor) -> Tensor:
        found: Tensor = scorer(logits, strategy, probabilities=probabilities, temperature=temperature)
        return found

    made(torch.zeros((1, 0, 1) if ensemble else (0, 1)))  # a wrong one is an error now
    return made


def _wanted(
    rows: int, without: Iterable[Tensor], sample: int | Fraction | None, seed: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each row is to be scored."""
    wanted = np.ones(rows, np.bool_)
    for some in without:
        wanted[some.numpy()] = False
    if sample is None:
        return wanted
    left = int(wanted.sum())
    many = int(sample * left) if isinstance(sample, Fraction) else require_count("sample", sample, 1)
    if not 1 <= many <= left:
        raise ValueError(
            f"sample must be at least 1 of the {left} rows that can be drawn, and at most all, got {many}"
        )
    random = np.random.default_rng(derive(seed, "rows of a pool"))
    drawn = random.choice(left, many, replace=False, shuffle=False)
    rest = np.flatnonzero(wanted) if left < rows else None
    wanted[:] = False
    wanted[drawn if rest is None else rest[drawn]] = True
    return wanted


@dataclass
class _Pool:
    """The files of a pool: one series of them, or one for each member of an ensemble, over the same rows."""

    series: list[tuple[LogitsFile, ...]]
    block_bytes: int
    progress: Progress | None
    unselectable: dict[Path, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.series:
            raise LogitsFileError("there is no file of logits")
        self.files = self.series[0]
        self.starts = [0, *accumulate(file.rows for file in self.files)]
        self.rows = self.starts[-1]
        for other in self.series[1:]:
            for what, mine, its in (
                ("classes", self.files[0].classes, other[0].classes),
                ("rows", self.rows, sum(file.rows for file in other)),
            ):
                if mine != its:
                    raise LogitsFileError(
                        f"{other[0].path}: has {its} {what}, where the first member, {self.files[0].path}, has {mine}"
                    )

    def blocks(self, wanted: np.ndarray[Any, np.dtype[np.bool_]]) -> Iterator[tuple[LogitsFile, Any, Tensor]]:
        """The wanted rows: file, their indices, and values (n, C), or (members, n, C) of an ensemble."""
        size = self.block_bytes // len(self.series)
        others = [_Rows(files, size) for files in self.series[1:]]
        for file, start in zip(self.files, self.starts, strict=False):
            first = start
            for block in file.blocks(max(size, 1)):
                rows = block.shape[-2]
                if others:
                    parts = [block, *(other.take(rows) for other in others)]
                    dtype = parts[0].dtype
                    for part in parts:
                        dtype = torch.promote_types(dtype, part.dtype)
                    block = torch.stack([part.to(dtype) for part in parts])
                kept = np.flatnonzero(wanted[first : first + rows])
                if len(kept) == rows:
                    yield file, kept + first, block
                elif len(kept):
                    yield file, kept + first, block[..., torch.from_numpy(kept), :]
                first += rows
                if self.progress is not None:
                    self.progress(file.path, first, self.rows)

    def count(self, file: LogitsFile, missing: Tensor) -> None:
        """Keep in mind how many rows of a file cannot be selected."""
        if many := int(missing.sum()):
            self.unselectable[file.path] = self.unselectable.get(file.path, 0) + many

    def too_few(self, top: int, wanted: int) -> ValueError:
        """The error where fewer than ``top`` rows can be selected."""
        left = wanted - sum(self.unselectable.values())
        told = "; ".join(f"{path} has {nan} that are NaN" for path, nan in self.unselectable.items())
        return ValueError(f"top is {top}, but only {left} of {wanted} rows can be selected: {told}")

    def write(self, out: str | os.PathLike[str], parts: Iterable[tuple[Any, Any]], *, ordered: bool) -> None:
        """Write rows by index with their utilities, to a file that appears when it is complete.

        Numbers are written as NumPy prints them: the shortest digits that give the same number in its own type.
        """
        named = self.files[0].facts.id is not None
        ids = chain.from_iterable(file.ids() for file in self.files) if named else None
        with _opened(out) as file:
            writer = csv.writer(file)
            writer.writerow((*COLUMNS, "id") if named else COLUMNS)
            passed = 0
            for indices, utilities in parts:
                where = np.searchsorted(self.starts, indices, side="right") - 1
                rows = indices - np.asarray(self.starts)[where]
                found: list[Any] = [indices, utilities, (self.files[i].path for i in where), rows]
                if ids is not None:
                    names, passed = _names(ids, indices, passed, ordered=ordered)
                    found.append(names)
                writer.writerows(zip(*found, strict=True))


def _names(ids: Iterator[str], indices: Any, passed: int, *, ordered: bool) -> tuple[list[str], int]:
    """The names of some rows, of which so many have been passed; indices that rise go on from there."""
    names: dict[int, str] = {}
    for index in np.sort(indices).tolist() if not ordered else indices.tolist():
        while passed <= index:
            name = next(ids)
            passed += 1
        names[index] = name
    return [names[index] for index in indices.tolist()], passed


class _Rows:
    """Rows of files in order, as many at a time as are asked for."""

    def __init__(self, files: Sequence[LogitsFile], block_bytes: int) -> None:
        self._blocks = chain.from_iterable(file.blocks(max(block_bytes, 1)) for file in files)
        self._left: Tensor | None = None

    def take(self, rows: int) -> Tensor:
        parts: list[Tensor] = []
        while rows:
            left = next(self._blocks) if self._left is None or not len(self._left) else self._left
            parts.append(left[:rows])
            self._left = left[rows:]
            rows -= len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _best(pool: _Pool, wanted: Any, utilities: Callable[[Tensor], Tensor], top: int) -> tuple[Any, Any]:
    keeper = StreamingTopB(top, lambda values: values)
    for file, indices, block in pool.blocks(wanted):
        values = utilities(block)
        pool.count(file, values.isnan())
        keeper.update(values, indices)
    if (count := int(wanted.sum())) - keeper.unselectable < top:
        raise pool.too_few(top, count)
    indices, values = keeper.result()
    return indices.numpy(), values.numpy()


def _all(pool: _Pool, wanted: Any, utilities: Callable[[Tensor], Tensor]) -> Iterator[tuple[Any, Any]]:
    for file, indices, block in pool.blocks(wanted):
        values = utilities(block)
        pool.count(file, values.isnan())
        yield indices, values.numpy()


def _k_center(pool: _Pool, wanted: Any, known: Tensor, top: int) -> Any:
    """Indices of rows that cover the wanted ones, beside those that are known."""
    needed = wanted.copy()
    needed[known.numpy()] = True
    wide = any(file.value_bytes == 8 for file in pool.files)
    size = (int(needed.sum()), pool.files[0].classes)
    features = torch.empty(size, dtype=torch.float64 if wide else torch.float32)
    row = 0
    for file, indices, block in pool.blocks(needed):
        pool.count(file, ~block.isfinite().all(1) & torch.from_numpy(wanted[indices]))
        features[row : row + len(block)] = block
        row += len(block)
    places = np.flatnonzero(needed)
    centers = np.searchsorted(places, known.unique().numpy())
    try:
        return places[k_center_greedy(features, top, labeled=centers).numpy()]
    except TooFewRowsError:
        raise pool.too_few(top, int(wanted.sum())) from None


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
