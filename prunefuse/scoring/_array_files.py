"""Files of arrays: NumPy's, safetensors, HDF5 and Zarr. All are read by slices, so a block costs what it holds."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from prunefuse._extras import needed_for
from prunefuse.errors import LogitsFileError
from prunefuse.scoring._layout import NUMPY, Facts, Format, Layout, chosen

_SAFETENSORS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_ZIP_HEADER = 30  # bytes of the fixed part of a member's own header


class _Array(NamedTuple):
    values: Any  # to be sliced
    shape: tuple[int, ...]
    dtype: str
    name: str | None = None


_Open = Callable[[Path, str | None], AbstractContextManager[_Array]]


@contextmanager
def _npy(path: Path, name: str | None) -> Iterator[_Array]:
    with path.open("rb") as file:
        shape, dtype = _npy_header(file)[:2]
    # An empty file cannot be mapped.
    empty = 0 in shape
    values = np.empty(shape, dtype) if empty else np.load(path, mmap_mode="r", allow_pickle=False)
    yield _Array(values, shape, dtype.name)


@contextmanager
def _npz(path: Path, name: str | None) -> Iterator[_Array]:
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        name = chosen(path, "array", list(members), name)
        entry = members[name]
        with archive.open(entry) as file:
            shape, dtype, fortran = _npy_header(file)
            start = file.tell()
            if dtype.hasobject:
                raise ValueError("Object arrays cannot be read")
            missing = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize - entry.file_size
            if missing > 0:
                raise ValueError(f"{missing} bytes of {name} are missing")
        if entry.compress_type == zipfile.ZIP_STORED and 0 not in shape:
            with path.open("rb") as file:
                file.seek(entry.header_offset)
                header = file.read(_ZIP_HEADER)
            start += entry.header_offset + _ZIP_HEADER + sum(np.frombuffer(header[26:30], "<u2").tolist())
            values: Any = np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
        else:
            values = _Unpacked(path, entry.filename)
    yield _Array(values, shape, dtype.name, name)


class _Unpacked:
    """An array that is compressed as one piece: it is unpacked where the first slice is taken."""

    def __init__(self, path: Path, member: str) -> None:
        self._path, self._member = path, member
        self._values: Any = None

    def __getitem__(self, part: Any) -> Any:
        if self._values is None:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as file:
                self._values = np.lib.format.read_array(file, allow_pickle=False)
        return self._values[part]


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, type, and whether the first index runs fastest."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, dtype, fortran


@contextmanager
def _safetensors(path: Path, name: str | None) -> Iterator[_Array]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            name = chosen(path, "tensor", list(file.keys()), name)
            values = file.get_slice(name)
            yield _Array(values, tuple(values.get_shape()), str(values.get_dtype()), name)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


@contextmanager
def _hdf5(path: Path, name: str | None) -> Iterator[_Array]:
    with needed_for(f"{path}"):
        import h5py
    path.stat()  # whose error is better than that of h5py
    with h5py.File(path, "r") as file:
        found: dict[str, Any] = {}
        file.visititems(
            lambda key, item: found.__setitem__(key, item) if isinstance(item, h5py.Dataset) else None
        )
        name = chosen(path, "dataset", list(found), name if name is None else name.strip("/"))
        dataset = found[name]
        expected = [-(-size // of) for size, of in zip(dataset.shape, dataset.chunks or (), strict=False)]
        if dataset.chunks is not None:
            _require_written(dataset.id.get_num_chunks(), int(np.prod(expected)), dataset.fillvalue)
        elif dataset.size and not dataset.is_virtual and not dataset.external:
            _require_written(int(dataset.id.get_storage_size() > 0), 1, dataset.fillvalue)
        yield _Array(dataset, dataset.shape or (), dataset.dtype.name, name)


@contextmanager
def _zarr(path: Path, name: str | None) -> Iterator[_Array]:
    with needed_for(f"{path}"):
        import zarr
    path.stat()
    opened = zarr.open(str(path), mode="r")
    if isinstance(opened, zarr.Group):
        found = dict(_zarr_arrays(opened))
        name = chosen(path, "array", list(found), name if name is None else name.strip("/"))
        opened = found[name]
    _require_written(opened.nchunks_initialized, opened.nchunks, opened.fill_value)
    yield _Array(opened, opened.shape, np.dtype(opened.dtype).name, name)


def _require_written(there: int, expected: int, fill: Any) -> None:
    """A chunk that is not there reads as the fill value: rows that were never written would be scored, but for NaN."""
    if there < expected and not (isinstance(fill, float | np.floating) and np.isnan(fill)):
        raise ValueError(f"{expected - there} of {expected} chunks were never written")


def _zarr_arrays(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    for key, array in group.arrays():
        yield above + key, array
    for key, inner in group.groups():
        yield from _zarr_arrays(inner, f"{above}{key}/")


def _check(path: Path, layout: Layout, *, opened: _Open, sizes: dict[str, int]) -> Facts:
    with opened(path, layout.tensor) as array:
        shape, dtype, name = array.shape, array.dtype, array.name
    if dtype not in sizes:
        raise LogitsFileError(f"{path}: values must be of {', '.join(sizes)}, got {dtype}")
    expected = {None: "rows, classes", 0: "members, rows, classes", 1: "rows, members, classes"}
    text = expected[layout.members]
    if len(shape) != text.count(",") + 1 or 0 in (shape[-1], shape[layout.members or -1]):
        hint = ""
        if layout.members is None and len(shape) == 3:
            hint = "; of an ensemble say which axis has its members (--members 0 or 1)"
        raise LogitsFileError(f"{path}: logits must have the shape ({text}), got {shape}{hint}")
    return Facts(shape, dtype, sizes[dtype], name)


def _blocks(path: Path, layout: Layout, facts: Facts, rows: int, *, opened: _Open) -> Iterator[Any]:
    with opened(path, facts.tensor) as array:
        if (array.shape, array.dtype) != (facts.shape, facts.dtype):
            raise ValueError(f"it has changed: it was {facts.shape}, and is {array.shape}")
        values = array.values
        for first in range(0, facts.shape[1 if layout.members == 0 else 0], rows):
            part = slice(first, first + rows)
            if layout.members is None:
                yield values[part]
            elif layout.members == 0:
                yield values[:, part]
            else:
                yield values[part].swapaxes(0, 1)


def _format(what: str, opened: _Open, sizes: dict[str, int] = NUMPY) -> Format:
    return Format(what, partial(_check, opened=opened, sizes=sizes), partial(_blocks, opened=opened))


ARRAYS = {
    ".npy": _format("an array of numbers", _npy),
    ".safetensors": _format("a safetensors file", _safetensors, _SAFETENSORS),
    ".npz": _format("an archive of arrays", _npz),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), _format("an HDF5 file", _hdf5)),
    ".zarr": _format("a Zarr store", _zarr),
}
