"""Logits on disk, larger than memory: arrays of NumPy and tensors of safetensors, read in blocks of rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from prunefuse.errors import LogitsFileError as LogitsFileError
from prunefuse.ops.arrays import as_tensor, require_count

BLOCK_BYTES = 32 << 20
SUFFIXES = (".npy", ".safetensors")
# Bytes of a value, by the names that the two formats have for types.
_NUMPY = {"float16": 2, "float32": 4, "float64": 8}
_SAFETENSORS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}


@dataclass(frozen=True)
class LogitsFile:
    """A file whose header has been checked: (rows, classes) of a floating type, of which the file has every byte."""

    path: Path
    rows: int
    classes: int
    value_bytes: int
    tensor: str | None  # the name of the tensor in a safetensors file

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[Tensor]:
        """The rows in order, as CPU tensors of whole rows of at most `block_bytes` (but one row at least).

        Those of a .npy file are parts of its memory map, read when they are used; they must not be written to.

        Raises:
            LogitsFileError: the file is no longer what it was.
        """
        step = _rows_of(require_count("block_bytes", block_bytes, 1), self.classes * self.value_bytes)
        values = _open_npy(self.path) if self.tensor is None else _open_safetensors(self.path, self.tensor)[0]
        for first in range(0, self.rows, step):
            yield as_tensor(str(self.path), values[first : min(first + step, self.rows)])


def logits_files(
    paths: Iterable[str | os.PathLike[str]], *, tensor: str | None = None
) -> tuple[LogitsFile, ...]:
    """The files of a pool, in order, every header checked.

    Args:
        paths: .npy and .safetensors files, and folders of them, whose files are taken in natural order (``shard-2`` before
            ``shard-10``), without their subfolders and hidden files.
        tensor: the name of the logits in safetensors files; None where each holds one tensor.

    Raises:
        LogitsFileError: there is no file; or one is missing, of another kind, truncated, without that tensor, not a
            floating matrix (float16, float32 and float64, bfloat16 in safetensors), or of another number of classes.
    """
    found: list[LogitsFile] = []
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            inside = sorted(
                (
                    file
                    for file in path.iterdir()
                    if file.suffix in SUFFIXES and not file.name.startswith(".")
                ),
                key=_natural,
            )
            if not inside:
                raise LogitsFileError(f"{path}: the folder has no {' or '.join(SUFFIXES)} file")
        found += [_checked(file, tensor) for file in inside]
    if not found:
        raise LogitsFileError("there is no file of logits")
    for file in found:
        if file.classes != found[0].classes:
            raise LogitsFileError(
                f"{file.path}: has {file.classes} classes, where {found[0].path} has {found[0].classes}"
            )
    return tuple(found)


def logits_blocks(source: Any, *, tensor: str | None = None, block_bytes: int = BLOCK_BYTES) -> Iterator[Any]:
    """Blocks of rows of a pool that need not fit in memory, each (n, C) and at most `block_bytes` (but one row at least).

    Args:
        source: a path (a file, or a folder of shards), or anything to go through that gives paths, or arrays (n, C) as
            `score` takes them: a list, a generator. The blocks of a path are CPU tensors, those of an array parts of it.
        tensor: as for `logits_files`.
        block_bytes: size of a block.

    Raises:
        LogitsFileError: as for `logits_files`. Files in a list are checked together, before the first block; those of a
            generator one by one.
        TypeError: something is neither a path nor an array.
    """
    block_bytes = require_count("block_bytes", block_bytes, 1)
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    if isinstance(source, (list, tuple)) and all(isinstance(one, (str, os.PathLike)) for one in source):
        source = logits_files(source, tensor=tensor)
    for one in source:
        if isinstance(one, LogitsFile):
            yield from one.blocks(block_bytes)
        elif isinstance(one, (str, os.PathLike)):
            for file in logits_files([one], tensor=tensor):
                yield from file.blocks(block_bytes)
        else:
            array = one if isinstance(one, np.ndarray) else as_tensor("logits", one)
            step = _rows_of(block_bytes, array.nbytes // max(len(array), 1))
            for first in range(0, len(array), step):
                yield array[first : first + step]


def _rows_of(block_bytes: int, row_bytes: int) -> int:
    return max(1, block_bytes // max(row_bytes, 1))


def _natural(path: Path) -> tuple[list[tuple[bool, int, str]], str]:
    """Numbers by value, before letters."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], path.name


def _checked(path: Path, tensor: str | None) -> LogitsFile:
    if path.suffix == ".npy":
        array = _open_npy(path)
        name, sizes, shape, dtype = None, _NUMPY, array.shape, array.dtype.name
    elif path.suffix == ".safetensors":
        values, name = _open_safetensors(path, tensor)
        sizes, shape, dtype = _SAFETENSORS, tuple(values.get_shape()), str(values.get_dtype())
    else:
        raise LogitsFileError(
            f"logits must be a {' or '.join(SUFFIXES)} file, or a folder of them, got {path}"
        )
    if dtype not in sizes:
        raise LogitsFileError(f"{path}: values must be of {', '.join(sizes)}, got {dtype}")
    if len(shape) != 2 or shape[1] == 0:
        raise LogitsFileError(f"{path}: logits must have the shape (rows, classes), got {shape}")
    return LogitsFile(path, shape[0], shape[1], sizes[dtype], name)


def _open_npy(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(file)
            if 0 in shape:  # an empty file cannot be mapped
                return np.empty(shape, dtype)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise LogitsFileError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise LogitsFileError(f"{path}: truncated, or not an array of numbers ({error})") from error


def _open_safetensors(path: Path, tensor: str | None) -> tuple[Any, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            if tensor is None and len(names) != 1:
                raise LogitsFileError(
                    f"{path}: has {len(names)} tensors, so name the one with the logits: {names}"
                )
            if tensor is not None and tensor not in names:
                raise LogitsFileError(f"{path}: has no tensor {tensor!r}, but {names}")
            name = tensor or names[0]
            return file.get_slice(name), name
    except OSError as error:
        raise LogitsFileError(f"{path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise LogitsFileError(f"{path}: truncated, or not a safetensors file ({error})") from error
