"""Files that appear whole or not at all: write to a temporary file beside the target, fsync, rename.

A process that is killed while it writes leaves the previous version of the file untouched; what it was
writing is a hidden ``.NAME.XXXXXXXX.tmp`` in the same folder, which nothing reads.
"""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends without error it becomes ``path`` in one step.

    Missing parent folders are created. If the block raises, ``path`` keeps what it had and the temporary
    file is removed. What is not ``durable`` may be lost when the machine loses power, and is written faster.

    Raises:
        OSError: the folder cannot be created or written to.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        if durable:
            publish(temporary, target)
        else:
            temporary.replace(target)
    except OSError as error:
        if error.filename is None or Path(error.filename) != temporary:
            raise
        # The caller knows the target, and nothing of the temporary name.
        raise type(error)(error.errno, error.strerror, str(target)) from error
    finally:
        with suppress(OSError):  # where the name cannot be, as for one that is too long, nothing was made
            temporary.unlink()


def publish(temporary: Path, target: Path) -> None:
    """Give a complete file its name, in the same folder, in one step; both last when this returns."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    # rename(2) within one folder is atomic; the name is only as durable as the folder that holds it.
    temporary.replace(target)
    _sync_folder(target.parent)


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder to write to; when the block ends without error it becomes ``path`` in one step.

    Missing parent folders are created. If the block raises, nothing is left.

    Raises:
        FileExistsError: ``path`` is a file, or a folder that has something in it.
        OSError: the folder cannot be created or written to.
    """
    target = Path(os.path.realpath(path))
    refusal = FileExistsError(f"{path} exists and is not overwritten")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise refusal
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
            else:
                _sync_folder(file)
        _sync_folder(temporary)
        try:
            temporary.rename(target)  # in place of an empty folder; one that got something meanwhile refuses
        except OSError as error:
            raise (refusal if target.exists() else error) from None
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` to ``path`` atomically."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str, *, durable: bool = True) -> None:
    """Write ``text`` to ``path`` atomically, as `utf8` with the line ends it has."""
    write_bytes(path, utf8(text), durable=durable)


def utf8(text: str) -> bytes:
    """``text`` as UTF-8. Bytes of file names that are in no encoding become escapes that JSON reads as they were."""
    return text.encode("utf-8", "backslashreplace")


def write_json(path: str | os.PathLike[str], value: object, *, allow_nan: bool = False) -> None:
    """Write ``value`` to ``path`` atomically, as indented JSON.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have, unless ``allow_nan``.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=allow_nan) + "\n")


def csv_text(header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with these columns as CSV; None becomes an empty field."""
    rows = list(rows)
    # Not every version of Python puts quotes around a carriage return, which ends a row where it has none.
    ends = any("\r" in value for row in rows for value in row.values() if isinstance(value, str))
    text = io.StringIO()
    writer = csv.DictWriter(
        text, header, lineterminator="\n", quoting=csv.QUOTE_ALL if ends else csv.QUOTE_MINIMAL
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table with the lines that they begin in, from 1 on; fields may be as long as the text.

    Raises:
        csv.Error: it is none; names the line.
    """
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begin = 1
    while True:
        usual = csv.field_size_limit(max(len(text), 1 << 17))
        try:
            fields = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            raise csv.Error(f"line {lines.line_num}: {error}") from error
        finally:
            csv.field_size_limit(usual)
        yield begin, fields
        begin = lines.line_num + 1


def text_of_table(content: bytes) -> tuple[str, str]:
    """The text of a table that a spreadsheet or a tool has written, and what stands between its columns.

    UTF-8 with or without a mark, or UTF-16 with one; bytes that are in neither become escapes, as in names of files. Columns
    are apart by commas, semicolons or tabs, whichever the first line has most of.
    """
    marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = content.decode("utf-16") if marked else content.decode("utf-8-sig", errors="surrogateescape")
    head = text.splitlines()[0] if text.strip() else ""
    return text, max(",;\t", key=head.count)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table, by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    >>> prunefuse.save_tensors("small.safetensors", torch.nn.Linear(2, 1).state_dict())

    Args:
        path: The file. One that is there is replaced.
        tensors: Any shapes, dtypes, devices and strides. They are stored contiguous. Tensors that share memory are stored
            once each.
        metadata: Strings for the header of the file.
    """
    # Not save_file: it makes its own file, readable by its owner only whatever the umask says.
    write_bytes(path, tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of a safetensors file; the arguments are those of `save_tensors`."""
    from safetensors.torch import save

    # safetensors refuses tensors that are strided or share memory: store copies.
    stored = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return save(stored, metadata=dict(metadata) if metadata else None)


def _sync_folder(folder: Path) -> None:
    # Some systems (Windows, some network file systems) cannot open or sync a folder; there the rename is
    # still atomic.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def decode(hint: Any, value: Any, where: str) -> Any:
    """Build what ``hint`` asks for: a dataclass, dict, tuple, int, float or str, a union of two of these, or anything.

    Args:
        hint: The type.
        value: What :func:`json.loads` gave for it.
        where: Its place in the file, for messages.

    Raises:
        ValueError: a field is missing or unknown, or a value has another type.
    """
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        hints = get_type_hints(hint)
        names = {field.name for field in fields(hint) if field.compare}  # others are not in files
        if wrong := names.symmetric_difference(value):
            raise ValueError(
                f"{where} must have all its fields and no others, got missing or unknown {sorted(wrong)}"
            )
        return hint(**{name: decode(hints[name], value[name], f"{where}.{name}") for name in sorted(names)})
    if origin is dict and isinstance(value, dict):
        return {
            _key(arguments[0], k, where): decode(arguments[1], v, f"{where}[{k!r}]") for k, v in value.items()
        }
    if origin is tuple and isinstance(value, list):
        return tuple(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is UnionType:
        if value is None and type(None) in arguments:
            return None
        hint = next(h for h in arguments if (get_origin(h) is tuple) == isinstance(value, list))
        return decode(hint, value, where)
    if hint is float and type(value) is int:
        return float(value)
    if hint in (int, float, str) and type(value) is hint:
        return value
    raise ValueError(f"{where} must be {getattr(hint, '__name__', hint)}, got {value!r:.60}")


def _key(hint: Any, key: str, where: str) -> Any:
    if hint is not int:
        return key
    if not key.isdecimal():
        raise ValueError(f"{where} must have numbers as keys, got {key!r}")
    return int(key)
