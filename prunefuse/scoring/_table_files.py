"""Files of tables, CSV and Parquet: a column for each class, and perhaps one with the names of rows."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prunefuse._extras import needed_for
from prunefuse.errors import LogitsFileError
from prunefuse.scoring._layout import NUMPY, Facts, Format, Layout

_CHECK_ROWS = 4096
_TEXTS = 1 << 18  # fields of CSV at a time, which as text are some ten times as large as their numbers
# Names of columns that name rows, and of others that are no logits, whatever their numbers are. The empty one is the index
# that pandas writes.
_IDS = frozenset(
    ("", "id", "ids", "index", "idx", "row", "path", "file", "filename", "file_name", "filepath", "image")
    + ("name", "unnamed: 0", "__index_level_0__")
)
_OTHERS = frozenset(("label", "labels", "target", "targets", "class", "y", "split"))
_HOW = "(--columns names those to read, --id the one that names rows)"


class _Csv(NamedTuple):
    """An open CSV file behind its header."""

    lines: Any
    width: int
    names: tuple[str, ...]  # of its columns; places where there is no header
    ahead: tuple[list[str], ...]  # the first line, where that is none


@contextmanager
def _csv(path: Path, layout: Layout) -> Iterator[_Csv]:
    with path.open("rb") as raw:
        wide = raw.read(2) in (b"\xff\xfe", b"\xfe\xff")
    with path.open(newline="", encoding="utf-16" if wide else "utf-8-sig") as file:
        head = file.readline()
        delimiter = max(",;\t", key=head.count)
        if head.count(delimiter) == 0 and " " in head.removeprefix("#").strip():
            delimiter = " "
        file.seek(0)
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            first = [field.strip() for field in next(lines, [])]
            commented = bool(first) and first[0].startswith("#")
            if commented:  # as NumPy writes a header
                first[0] = first[0][1:].strip()
                first = first[1:] if delimiter == " " and not first[0] else first
            if commented or (_header(path, first) if layout.header is None else layout.header):
                yield _Csv(lines, len(first), tuple(first), ())
            else:
                yield _Csv(lines, len(first), tuple(map(str, range(len(first)))), (first,) if first else ())
        except csv.Error as error:
            raise LogitsFileError(f"{path}: line {lines.line_num} must be CSV ({error})") from error


def _header(path: Path, fields: Sequence[str]) -> bool:
    """Whether the first line has names. Numbers may be names, too: pandas writes 0,1,2 over columns without any."""
    numbers = [field for field in fields if _number(field)]
    counted = len(numbers) > 1 and numbers == [str(i) for i in range(len(numbers))]
    if counted and len(numbers) == len(fields):
        raise LogitsFileError(
            f"{path}: line 1, {','.join(fields[:4])}{',...' if len(fields) > 4 else ''}, may be names or numbers: "
            "say which (--header or --no-header)"
        )
    return bool(fields) and (counted or not numbers)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _places(path: Path, names: Sequence[str], layout: Layout) -> tuple[tuple[int, ...], str | None]:
    """Places of the columns with numbers, and the column that names rows.

    Raises:
        LogitsFileError: a column is not there, or there twice, or looks like no logits and is not named.
    """
    for name in (*layout.columns, *(() if layout.id is None else (layout.id,))):
        if names.count(name) != 1:
            count = "no column" if name not in names else f"{names.count(name)} columns"
            raise LogitsFileError(f"{path}: has {count} {name!r}; its columns are {_few(names)}")
    if len({*layout.columns, layout.id}) <= len(layout.columns):
        given = ", ".join(map(repr, layout.columns))
        raise LogitsFileError(f"{path}: columns must be different, and not the one of id, got {given}")
    if layout.columns:
        return tuple(names.index(name) for name in layout.columns), layout.id
    ids = [name for name in names if name.lower() in _IDS]
    named = layout.id if layout.id is not None or len(ids) != 1 else ids[0]
    found = tuple(place for place, name in enumerate(names) if name != named)
    for place in found:
        if names[place].lower() in _IDS | _OTHERS:
            raise LogitsFileError(f"{path}: column {names[place]!r} is no logit by its name {_HOW}")
    if not found:
        raise LogitsFileError(f"{path}: has no column of numbers")
    return found, named


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _rows_of_csv(path: Path, table: _Csv) -> Iterator[tuple[int, list[str]]]:
    """Lines with their numbers; those without a field are nothing.

    Raises:
        LogitsFileError: a line has more or fewer fields than the first.
    """
    yield from ((1, fields) for fields in table.ahead)
    for fields in table.lines:
        if fields and (len(fields) > 1 or table.width == 1 or fields[0].strip()):
            if len(fields) != table.width:
                raise LogitsFileError(
                    f"{path}: line {table.lines.line_num} must have {table.width} fields, got {len(fields)}"
                )
            yield table.lines.line_num, fields


def _csv_blocks(
    path: Path, table: _Csv, places: tuple[int, ...], rows: int
) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    every = places == tuple(range(table.width))
    lines = _rows_of_csv(path, table)
    rows = max(1, min(rows, _TEXTS // len(places)))
    while block := list(islice(lines, rows)):
        texts = [fields if every else [fields[place] for place in places] for _, fields in block]
        try:
            if "_" in "".join(chain.from_iterable(texts)):  # Python's 1_000
                raise ValueError
            numbers = map(float, chain.from_iterable(texts))
            yield np.fromiter(numbers, np.float64).reshape(-1, len(places))
        except ValueError:
            yield np.array(
                [
                    [_value(path, line, table.names[place], fields[place]) for place in places]
                    for line, fields in block
                ]
            )


def _value(path: Path, line: int, name: str, text: str) -> float:
    """A number, NaN where nothing is written."""
    try:
        if "_" in text:
            raise ValueError
        return float(text) if text.strip() else np.nan
    except ValueError:
        raise LogitsFileError(
            f"{path}: line {line}, column {name!r} must be a number, got {text!r:.40} {_HOW}"
        ) from None


def _check_csv(path: Path, layout: Layout) -> Facts:
    """Every number is read: nothing else tells how many rows there are, and that all are numbers."""
    rows = 0
    with _csv(path, layout) as table:
        if not table.width:
            raise LogitsFileError(f"{path}: is empty")
        places, named = _places(path, table.names, layout)
        counts = np.full(len(places), not layout.columns and len(places) > 1)  # columns that count the rows
        starts = np.zeros(len(places))
        for block in _csv_blocks(path, table, places, _CHECK_ROWS):
            starts = block[0] if rows == 0 else starts
            numbers = np.arange(rows, rows + len(block))[:, None] + starts
            counts &= (block == numbers).all(0) & np.isin(starts, (0, 1))
            rows += len(block)
        if rows > 2 and counts.any():
            name = table.names[places[int(counts.argmax())]]
            raise LogitsFileError(f"{path}: column {name!r} counts the rows, so it is no logit {_HOW}")
    return Facts((rows, len(places)), "float64", 8, columns=places, id=named)


def _read_csv(path: Path, layout: Layout, facts: Facts, rows: int) -> Iterator[Any]:
    with _csv(path, layout) as table:
        yield from _csv_blocks(path, table, facts.columns, rows)


def _ids_of_csv(path: Path, layout: Layout, facts: Facts) -> Iterator[str]:
    with _csv(path, layout) as table:
        place = table.names.index(facts.id or "")
        yield from (fields[place] for _, fields in _rows_of_csv(path, table))


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    with needed_for(f"{path}"):
        from pyarrow import parquet
    path.stat()
    with parquet.ParquetFile(path) as file:
        yield file


def _check_parquet(path: Path, layout: Layout) -> Facts:
    with _parquet(path) as file:
        import pyarrow

        schema = file.schema_arrow
        names = list(schema.names)
        places, named = _places(path, names, layout)
        lists = [place for place in places if hasattr(schema.types[place], "value_type")]
        if lists and len(places) > 1:
            raise LogitsFileError(
                f"{path}: column {names[lists[0]]!r} has lists, so it must be the only one {_HOW}"
            )
        kinds = [schema.types[place].value_type if lists else schema.types[place] for place in places]
        for place, kind in zip(places, kinds, strict=True):
            if not pyarrow.types.is_floating(kind):
                raise LogitsFileError(
                    f"{path}: column {names[place]!r} must be of {', '.join(NUMPY)}, got {schema.types[place]} {_HOW}"
                )
        dtype = np.result_type(*(kind.to_pandas_dtype() for kind in kinds))
        rows = file.metadata.num_rows
        classes = _list_size(path, file, names[places[0]]) if lists else len(places)
    return Facts((rows, classes), dtype.name, dtype.itemsize, columns=places, id=named)


def _list_size(path: Path, file: Any, name: str) -> int:
    """The length that all lists of a column have."""
    size, row = None, 0
    for batch in file.iter_batches(_CHECK_ROWS, columns=[name]):
        column = batch.column(0)
        if column.null_count:
            row += column.is_null().to_pylist().index(True)
            raise LogitsFileError(f"{path}: row {row}, column {name!r} must be a list of numbers, got none")
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        size = int(lengths[0]) if size is None and len(lengths) else size
        if (other := np.flatnonzero(lengths != size)).size:
            at = int(other[0])
            raise LogitsFileError(
                f"{path}: row {row + at}, column {name!r} must have {size} numbers, got {lengths[at]}"
            )
        row += len(lengths)
    if size == 0:
        raise LogitsFileError(f"{path}: column {name!r} has empty lists")
    return size or 1


def _read_parquet(path: Path, layout: Layout, facts: Facts, rows: int) -> Iterator[Any]:
    with _parquet(path) as file:
        names = [file.schema_arrow.names[place] for place in facts.columns]
        for batch in file.iter_batches(rows, columns=names):
            columns = [batch.column(batch.schema.get_field_index(name)) for name in names]
            if hasattr(columns[0].type, "value_type"):
                values = columns[0].flatten().to_numpy(zero_copy_only=False)
                yield values.reshape(len(batch), facts.shape[1])
            else:
                # What is missing becomes NaN.
                parts = [column.to_numpy(zero_copy_only=False) for column in columns]
                yield np.stack(parts, 1, dtype=np.dtype(facts.dtype))


def _ids_of_parquet(path: Path, layout: Layout, facts: Facts) -> Iterator[str]:
    with _parquet(path) as file:
        for batch in file.iter_batches(_CHECK_ROWS, columns=[facts.id]):
            yield from ("" if value is None else str(value) for value in batch.column(0).to_pylist())


_CSV = Format("CSV in UTF-8", _check_csv, _read_csv, _ids_of_csv)
TABLES = {
    ".csv": _CSV,
    ".tsv": _CSV,
    ".parquet": Format("a Parquet file", _check_parquet, _read_parquet, _ids_of_parquet),
}
